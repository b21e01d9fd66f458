"""The interface of a video MLLM as parts. Everything that reads a frozen MLLM is written against this file.

    mllm = load_mllm("pico-base")                         # tubelet.mllm.loading
    visual = mllm.encode(clip)                            # the vision tower, once per video
    prompts = [mllm.prompt(visual, text) for text in ("Is there a man in red in this video?", "Describe this video.")]
    prefix = mllm.prefix(visual)                          # the language model over the video, once per video
    readings = mllm.ask(prefix, prompts, rows=RowSpec())  # all questions in one forward
    readings[0].rows                                      # (R, T, h, w): where each candidate token looks
    readings[0].logits                                    # (V,) of the first token of the answer

What the shapes mean: T steps of time (one frame, or a temporal patch of several), h x w cells of the picture, D the
language model's width, L its layers, H its heads, N tokens of a prompt, P of them in the prefix, R rows that are read.
Cells cover the whole displayed frame. Knows data and names only: no family, no method (arXiv 2509.15178, 3.1-3.3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from tubelet.errors import ModelError, QueryError
from tubelet.frames import Clip

if TYPE_CHECKING:
    import torch

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a loaded model is like, as data.

    family: its name ("Qwen2.5-VL"); model_type: transformers' name of it.
    grid: (h, w) cells per frame, or None when they follow the size of the frames.
    tokens_per_step: h * w, or None likewise.
    frames_per_step: frames that share one step of time (the temporal patch); 1: every frame has its own map.
    timestamps: what the prompt says about time: "none", "seconds" or "frame numbers".
    contiguous: are all visual tokens of a prompt next to each other?
    trailing_tokens: visual tokens after the last cell that belong to no cell (LLaVA-OneVision's newline).
    position_axes: 1, or 3 where positions (time, row, column) must be passed explicitly (M-RoPE). Done by `Mllm`.
    deepstack_layers: first layers of the language model that get visual features added.
    softmax_layers: layers whose attention can be read; the others have none (all of n_layers, or loading fails).
    max_frames: as many frames as it was trained with, where its folder says so; None: bounded by max_tokens alone.
    """

    family: str
    model_type: str
    grid: tuple[int, int] | None
    tokens_per_step: int | None
    frames_per_step: int
    timestamps: Literal["none", "seconds", "frame numbers"]
    contiguous: bool
    trailing_tokens: int
    position_axes: int
    deepstack_layers: int
    n_layers: int
    n_heads: int
    hidden_size: int
    max_tokens: int
    softmax_layers: tuple[int, ...]
    max_frames: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class VisualGrid:
    """Which piece of the video every visual token stands for.

    n_steps, n_rows, n_columns: T, h, w. Cell (t, y, x) covers [x/w, (x+1)/w] x [y/h, (y+1)/h] of the frame.
    frames: (T, k) rows of the clip's `FrameGrid` behind each step (the last frame repeats when they do not divide).
    times_s: (T,) time of each step: the mean of its frames' times.
    seconds_per_step: mean time from one full step to the next.
    trailing: visual tokens after the cells, in no cell.
    """

    n_steps: int
    n_rows: int
    n_columns: int
    frames: IntArray
    times_s: FloatArray
    seconds_per_step: float
    trailing: int = 0

    @property
    def shape(self) -> tuple[int, int, int]:
        """(T, h, w)"""
        return self.n_steps, self.n_rows, self.n_columns

    @property
    def n_cells(self) -> int:
        """M = T * h * w, the tokens that a map has values for."""
        return self.n_steps * self.n_rows * self.n_columns

    @property
    def n_tokens(self) -> int:
        """M and the trailing tokens: the length of a learnable prompt (LRA tunes the newline, too)."""
        return self.n_cells + self.trailing

    @property
    def one_frame_per_step(self) -> bool:
        """Does no step mix two different frames? Then tokens may be flipped in time instead of frames."""
        return bool((self.frames == self.frames[:, :1]).all())

    def flip(self, tokens: torch.Tensor) -> torch.Tensor:
        """(n_tokens, ...) with the steps in reversed order; trailing tokens stay last. Twice is the identity."""
        cells = tokens[: self.n_cells].unflatten(0, self.shape).flip(0).flatten(0, 2)
        if not self.trailing:
            return cells
        import torch

        return torch.cat([cells, tokens[self.n_cells :]])


@dataclass(frozen=True, slots=True, eq=False)
class VisualTokens:
    """What the vision tower made of a clip.

    tokens: (n_tokens, D) in the order of the prompt: cells by (t, y, x), then trailing tokens.
    deepstack: one (n_cells, D) per layer that adds visual features (Qwen3-VL), else empty.
    """

    grid: VisualGrid
    tokens: torch.Tensor
    deepstack: tuple[torch.Tensor, ...] = ()

    def flipped(self) -> VisualTokens:
        """The video backwards, without encoding again: exact where each step holds one frame.

        Raises ModelError otherwise: encode the reversed frames (`zeroshot.encoded.backwards`), or encode with
        one_frame_per_step=True.
        """
        if not self.grid.one_frame_per_step:
            raise ModelError(
                "a step of time of this model mixes two frames, so its tokens cannot be flipped: encode the "
                "reversed frames, or encode with one_frame_per_step=True"
            )
        flip = self.grid.flip
        cells = replace(self.grid, trailing=0)
        return VisualTokens(self.grid, flip(self.tokens), tuple(cells.flip(part) for part in self.deepstack))


@dataclass(frozen=True, slots=True, eq=False)
class PromptLayout:
    """One question about a video, as tokens, and what each of them is.

    text: the question; rendered: the filled chat template, one placeholder per run of visual tokens.
    input_ids: (N,). Placeholders are repeated: one id per visual token.
    position_ids: (A, N), A = `Capabilities.position_axes`.
    visual: (M,) where the cells are, in order of (t, y, x); trailing: (K,) where the other visual tokens are.
    tyx: (M, 3) step, row, column of each cell.
    prefix_length: P, everything up to the last visual token; the same tokens for every question.
    role: (R,) tokens after the question that every question has (the chat template's turn change), found by
        comparing renderings. candidates: the token before them and these (paper 3.1: "." or "?" counts).
    """

    text: str
    rendered: str
    input_ids: IntArray
    position_ids: IntArray
    visual: IntArray
    trailing: IntArray
    tyx: IntArray
    prefix_length: int
    role: IntArray
    grid: VisualGrid

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def candidates(self) -> IntArray:
        return np.arange(self.role[0] - 1, len(self), dtype=np.int64)


@dataclass(frozen=True, slots=True)
class RowSpec:
    """Which attention rows to read, and how to add them up.

    tokens: "candidates" (role tokens and the one before), "role", "last", or offsets from the end (-1 is the last).
    layers: indices (negative: from the end), None: all. The published code reads [-26:-6] of 32.
    layer_weights: one per chosen layer, used as given; None: mean.
    head_weights: (H,), or (layers, H), used as given; None: mean over heads.
    per_layer: keep the layers apart: rows (layers, R, T, h, w), not weighted by layer_weights.
    """

    tokens: Literal["candidates", "role", "last"] | tuple[int, ...] = "candidates"
    layers: tuple[int, ...] | None = None
    layer_weights: tuple[float, ...] | None = None
    head_weights: tuple[float, ...] | tuple[tuple[float, ...], ...] | None = None
    per_layer: bool = False

    def offsets(self, prompt: PromptLayout) -> tuple[int, ...]:
        """Rows to read, counted from the end of the prompt (negative), in rising order as given."""
        if self.tokens == "candidates":
            return tuple(int(at) - len(prompt) for at in prompt.candidates)
        if self.tokens == "role":
            return tuple(int(at) - len(prompt) for at in prompt.role)
        if self.tokens == "last":
            return (-1,)
        readable = len(prompt) - prompt.prefix_length
        if not self.tokens or any(not -readable <= at < 0 for at in self.tokens):
            raise QueryError(
                f"rows are offsets from the end of the prompt, -{readable} to -1 for this question, got {self.tokens}"
            )
        return self.tokens


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """What a forward says about one question.

    logits: (V,) fp32 of the answer's first token, or (K,) for `token_ids`, or None when not asked for.
    rows: (R, T, h, w) fp32, the share of attention that each row gives to each cell (its sum is below 1: text and
        trailing tokens get the rest), or (layers, R, T, h, w), or None.
    offsets: (R,) which token each row is, counted from the end: the same offset is the same role token in every
        question of a model.
    """

    logits: torch.Tensor | None
    rows: torch.Tensor | None
    offsets: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Prefix:
    """The language model's state after the video: keys and values of P tokens per layer. Never changed by `ask`.

    n_layers: so many layers were read, the first ones; a question may be asked no more of this prefix.
    """

    grid: VisualGrid
    input_ids: IntArray
    cache: Any
    visual: IntArray
    n_layers: int

    def __len__(self) -> int:
        return len(self.input_ids)


class Mllm(Protocol):
    """A loaded video MLLM. Its parameters are frozen; nothing is sampled; methods do not change it."""

    name: str
    revision: str
    capabilities: Capabilities
    tokenizer: Any
    model: Any  # transformers' model
    device: torch.device
    dtype: torch.dtype

    def grid_of(self, clip: Clip, one_frame_per_step: bool = False) -> VisualGrid:
        """Which cells a clip will have; no pixels are read."""

    def encode(
        self, clip: Clip, one_frame_per_step: bool = False, chunk_frames: int = 16, like: Clip | None = None
    ) -> VisualTokens:
        """The vision tower over a clip, `chunk_frames` at a time; pixels go to the device as uint8.

        like: frames get the size that they have for this clip (a model may bound all frames of a video together, so
        that a frame more makes all of them smaller); None: for the clip itself.

        one_frame_per_step: where a model merges `frames_per_step` frames, give it each frame so often: T maps for
        T frames, for as many times the tokens. No effect on the other models.
        """

    def prompt(self, video: VisualTokens | VisualGrid, text: str) -> PromptLayout:
        """Fill the chat template with the video and then the text. QueryError: no text, special tokens in it."""

    def prefix(
        self, visual: VisualTokens, delta: torch.Tensor | None = None, n_layers: int | None = None
    ) -> Prefix:
        """Read the video, and all that the template puts before it.

        n_layers: keys and values of the first layers only, for rows of these and no logits; None: all.
        delta: (n_tokens, D) added to the visual tokens (LRA's prompt, fp32; the sum is rounded to the model's
        dtype). Gradients reach it through logits and rows when it requires them and grad mode is on.
        """

    def ask(
        self,
        prefix: Prefix,
        prompts: Sequence[PromptLayout],
        rows: RowSpec | None = None,
        token_ids: Sequence[int] | None = None,
        logits: bool = True,
    ) -> list[Reading]:
        """All prompts in one forward after the prefix; each sees the prefix and itself (exactly as if alone).

        token_ids: compute only these logits. logits=False: layers after the last one that is read are not run.
        Raises QueryError for a prompt that was laid out for another video, and for a prefix of too few layers.
        """

    def write(self, text: str, max_new_tokens: int = 256, prefix: Prefix | None = None) -> str:
        """Answer in words, greedily: about a video that was read, or about the text alone (prefix None)."""
