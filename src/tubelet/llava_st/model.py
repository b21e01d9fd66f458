"""LLaVA-ST as a torch module: a SigLIP tower, a projector, the packer, and a stock Qwen language model.

    image (1, 3, S, S)  -> tower -> projector -> + coordinate embeddings -> n tokens
    video (T, 3, S, S)  -> the same per frame -> packer -> fast and slow tokens
    prompt              -> embeddings, visual slots and coordinate placeholders overwritten -> language model

The language model is transformers' own, unchanged. Its embedding matrix and head have V + 3 * bins rows: the ordinary
words, then the input (output) tables of time, height and width. So it reads and writes coordinates as words, and
nothing is concatenated or recomputed per generated word.

SigLIP features are those before its last normalisation, of all layers that are there: a checkpoint holds one layer
less than the stock tower.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from tubelet.errors import ModelError, QueryError
from tubelet.llava_st.config import LlavaSTConfig
from tubelet.llava_st.coordinates import AXES, DIRECTIONS, Variables, field_name, placeholder
from tubelet.llava_st.lape import GridOffsets, add_to_grid, blend, grid_offsets, propagate
from tubelet.llava_st.packer import Packer
from tubelet.llava_st.words import Slot, Words
from tubelet.motion import MotionLayer
from tubelet.packed import read_packed

FRAME_CHUNK = 20  # frames per pass in inference: bounds memory, changes no number


@dataclass(frozen=True, slots=True)
class Visual:
    """The visual tokens of one sample, in the language model's width C: either image, or slow (and fast)."""

    image: torch.Tensor | None = None  # (n, C)
    slow: torch.Tensor | None = None  # (n_slow, C)
    fast: torch.Tensor | None = None  # (n_fast, C); None where the mode does not use it


@dataclass(frozen=True, slots=True)
class VisualCounts:
    """How many tokens a picture takes in the prompt; fast and slow are 0 for an image, and the other way round."""

    image: int = 0
    fast: int = 0
    slow: int = 0


class LlavaST(nn.Module):  # type: ignore[misc]
    """llm: a Qwen2ForCausalLM or Qwen3ForCausalLM with config.rows rows; vision: a SiglipVisionModel."""

    def __init__(self, llm: Any, vision: Any, config: LlavaSTConfig, words: Words) -> None:
        super().__init__()
        size, rows = llm.config.hidden_size, llm.get_input_embeddings().weight.shape[0]
        if rows != config.rows or (words.vocabulary, words.bins) != (config.vocabulary, config.bins):
            raise ModelError(
                f"the language model has {rows} words and the tokenizer's anchors start at {words.vocabulary}; these "
                f"settings need {config.rows} = {config.vocabulary} + 3 * {config.bins}: mixed tokenizers?"
            )
        self.config, self.words = config, words
        self.llm = llm
        self.vision = getattr(vision, "vision_model", vision)
        self.projector = nn.Sequential(
            nn.Linear(self.vision.config.hidden_size, size), nn.GELU(), nn.Linear(size, size)
        )
        self.packer = Packer(size, config.packer)
        if config.motion_layers:
            heads, side = llm.config.num_attention_heads, -(-self.grid // config.packer.space)
            self.motion = nn.ModuleList(MotionLayer(size, heads, side) for _ in range(config.motion_layers))
            for layer in self.motion:
                layer.start_silent()

    # --- sizes -----------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        device: torch.device = self.embeddings.device
        return device

    @property
    def image_size(self) -> int:
        return int(self.vision.config.image_size)

    @property
    def grid(self) -> int:
        """Patches per side; a border that does not fill a patch is not seen."""
        return self.image_size // int(self.vision.config.patch_size)

    def counts(self, frames: int | None) -> VisualCounts:
        """Visual tokens of a video of so many frames, or of an image (None)."""
        grid = self.grid
        if frames is None:
            return VisualCounts(
                image=self.packer.slow_tokens(1, grid, grid) if self.config.pack_images else grid**2
            )
        self._check_frames(frames)
        return VisualCounts(
            fast=self.packer.fast_tokens(frames, grid, grid), slow=self.packer.slow_tokens(frames, grid, grid)
        )

    def _check_frames(self, frames: int) -> None:
        if self.config.mode == "official" and frames != self.config.frames:
            raise ModelError(
                f"in official mode a video has exactly {self.config.frames} frames, got {frames}: "
                "sample that many (frames may repeat), or use mode fixed"
            )
        if frames < 1:
            raise ModelError("a video has at least one frame, got none")

    # --- the two matrices ------------------------------------------------------------------------

    @property
    def embeddings(self) -> torch.Tensor:
        """(V + 3 * bins, C): rows of words, then the input tables."""
        weight: torch.Tensor = self.llm.get_input_embeddings().weight
        return weight

    @property
    def head(self) -> torch.Tensor:
        """(V + 3 * bins, C): rows of words, then the output tables; the embeddings themselves where they are tied."""
        weight: torch.Tensor = self.llm.get_output_embeddings().weight
        return weight

    def trained_embeddings(self) -> torch.Tensor:
        """The embeddings with propagated gradients of the tables; the same values."""
        return propagate(self.embeddings, self.config.vocabulary, self.config.bins)

    def trained_head(self) -> torch.Tensor:
        """The head with propagated gradients of the tables; the same values."""
        return propagate(self.head, self.config.vocabulary, self.config.bins)

    # --- pictures --------------------------------------------------------------------------------

    def tower(self, pixels: torch.Tensor) -> torch.Tensor:
        """Normalised pixels (N, 3, S, S) -> patch features (N, grid, grid, D) before the last normalisation."""
        if pixels.ndim != 4 or pixels.shape[1:] != (3, self.image_size, self.image_size):
            raise ModelError(
                f"pixels must be (frames, 3, {self.image_size}, {self.image_size}), got {tuple(pixels.shape)}"
            )
        patches = self.vision.embeddings(pixels.to(self.vision.embeddings.patch_embedding.weight.dtype))
        features: torch.Tensor = self.vision.encoder(inputs_embeds=patches).last_hidden_state
        return features.view(len(pixels), self.grid, self.grid, -1)

    def encode_image(self, pixels: torch.Tensor) -> Visual:
        """One image (3, S, S) or (1, 3, S, S), normalised."""
        pixels = pixels[None] if pixels.ndim == 3 else pixels
        if len(pixels) != 1:
            raise ModelError(
                f"one image per sample, got {len(pixels)}: ask about them one by one, or as a video"
            )
        tokens = self._placed(pixels, self._offsets(1, torch.zeros(1, device=pixels.device)))
        if self.config.pack_images:
            tokens = self.packer.slow(self.moved(self.packer.space(tokens)[None])[0])
        return Visual(image=tokens.flatten(0, 2))

    def encode_video(
        self, pixels: torch.Tensor, positions: torch.Tensor | None = None, chunk: int | None = None
    ) -> Visual:
        """A video (T, 3, S, S), normalised; frames go through in chunks, so long ones need little memory.

        positions: (T,) frame times as fractions of the clip, when the frames are not uniform.
        chunk: frames per pass; default: all at once with gradients, FRAME_CHUNK without.
        """
        frames = len(pixels)
        self._check_frames(frames)
        if chunk is None:
            chunk = frames if torch.is_grad_enabled() else FRAME_CHUNK
        step = -(-chunk // self.config.packer.time) * self.config.packer.time
        offsets = self._offsets(frames, positions)
        parts = []
        for start in range(0, frames, step):
            stop = min(start + step, frames)
            parts.append(self.packer.space(self._placed(pixels[start:stop], offsets.frames(start, stop))))
        base = self.moved(torch.cat(parts)[None])[0]
        fast = self.packer.fast(base, step).flatten(0, 2) if self.config.splices_fast else None
        return Visual(slow=self.packer.slow(base, step).flatten(0, 2), fast=fast)

    def encode_batch(
        self, pixels: torch.Tensor, positions: torch.Tensor
    ) -> tuple[list[Visual], torch.Tensor]:
        """B videos of T frames each (B, T, 3, S, S) with positions (B, T), or B images (T = 1, packed), as one.

        Returns what `encode_video` (`encode_image`) gives for each, and the tokens behind the first block and the
        motion layers, (B, T, K, C), for training on dense labels.
        """
        n, frames = pixels.shape[:2]
        is_image = frames == 1
        if is_image and not self.config.pack_images:
            raise ModelError("a batch of images is packed: set pack_images, or encode them one by one")
        self._check_frames(frames if not is_image else self.config.frames)
        offsets = self._offsets(n * frames, positions.flatten())
        placed = self._placed(pixels.flatten(0, 1), offsets)
        base = self.moved(self.packer.space(placed).unflatten(0, (n, frames)))
        whole = frames % self.config.packer.time == 0 or is_image
        if whole and not is_image:  # no window of the slow block reaches into the next video
            slow = self.packer.slow(base.flatten(0, 1)).unflatten(0, (n, -1)).flatten(1, 3)
        else:
            slow = torch.stack([self.packer.slow(video).flatten(0, 2) for video in base])
        if is_image:
            return [Visual(image=one) for one in slow], base.flatten(2, 3)
        fast: Any = [None] * n
        if self.config.splices_fast:
            fast = self.packer.fast(base.flatten(0, 1)).unflatten(0, (n, frames)).flatten(1, 3)
        return [Visual(slow=s, fast=f) for s, f in zip(slow, fast, strict=True)], base.flatten(2, 3)

    def moved(self, base: torch.Tensor) -> torch.Tensor:
        """(B, T, H, W, C) after the motion layers."""
        if not self.config.motion_layers:
            return base
        grid = base.shape[2:4]
        tokens = base.flatten(2, 3)
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        for layer in self.motion:
            tokens = layer(tokens, mask)
        return tokens.unflatten(2, grid)

    def _offsets(self, frames: int, positions: torch.Tensor | None) -> GridOffsets:
        first = self.config.vocabulary
        return grid_offsets(
            self.trained_embeddings()[first:],
            self.trained_head()[first:],
            (frames, self.grid, self.grid),
            positions,
        )

    def _placed(self, pixels: torch.Tensor, offsets: GridOffsets) -> torch.Tensor:
        """(T, 3, S, S) -> (T, grid, grid, C) with coordinate embeddings."""
        features: torch.Tensor = self.projector(self.tower(pixels))
        return add_to_grid(features, offsets) if self.config.inject else features

    # --- prompts ---------------------------------------------------------------------------------

    def embed(
        self,
        ids: torch.Tensor,
        visuals: Sequence[Visual | None],
        variables: Sequence[Variables | None],
    ) -> torch.Tensor:
        """Ids (B, L), one Visual (None: text only) and one Variables per row -> embeddings (B, L, C).

        Raises QueryError when a row has more placeholders than values, or visual slots that do not fit its picture.
        """
        if not len(ids) == len(visuals) == len(variables):
            raise QueryError(f"{len(ids)} prompts need as many pictures and value lists")
        matrix = self.trained_embeddings()
        embeds = F.embedding(ids, matrix)
        for row, visual in enumerate(visuals):
            for slot, features in self._slots(visual):
                at = _find_slot(ids[row], slot, 0 if features is None else len(features))
                if at is not None and features is not None:
                    embeds[row, at : at + len(features)] = features.to(embeds.dtype)
        self._write_values(embeds, ids, variables, matrix)
        return embeds

    def _slots(self, visual: Visual | None) -> list[tuple[Slot, torch.Tensor | None]]:
        visual = visual or Visual()
        slots: list[tuple[Slot, torch.Tensor | None]] = [
            (self.words.image, visual.image),
            (self.words.slow, visual.slow),
        ]
        if visual.fast is not None or self.config.splices_fast:
            slots.append((self.words.fast, visual.fast))
        return slots

    def _write_values(
        self,
        embeds: torch.Tensor,
        ids: torch.Tensor,
        variables: Sequence[Variables | None],
        matrix: torch.Tensor,
    ) -> None:
        """Blend the anchors of every placeholder's value, in place."""
        for axis, name in enumerate(AXES):
            first = self.config.first_anchor(axis)
            table = matrix[first : first + self.config.bins]
            for direction in DIRECTIONS:
                where = ids == self.words.placeholders[name, direction]
                values = values_of(where, variables, name, direction)
                if len(values) and (self.config.reads_width or (name, direction) != ("WIDTH", "INPUT")):
                    embeds[where] = blend(table, values.to(embeds.device)).to(embeds.dtype)

    def forward(
        self,
        ids: torch.Tensor,
        visuals: Sequence[Visual | None],
        variables: Sequence[Variables | None],
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Last hidden states (B, L, C), for `loss.soft_label_loss` or for `logits`."""
        out: torch.Tensor = self.llm.model(
            inputs_embeds=self.embed(ids, visuals, variables), attention_mask=attention_mask, use_cache=False
        ).last_hidden_state
        return out

    def read_rows(
        self,
        ids: torch.Tensor,
        visuals: Sequence[Visual | None],
        variables: Sequence[Variables | None],
        segment: torch.Tensor,
        position: torch.Tensor,
        middle: int = 0,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Last states (B, L, C) of packed rows (`tubelet.packed`), and those of layer `middle` (0: None)."""
        embeds = self.embed(ids, visuals, variables)
        return read_packed(self.llm.model, embeds, segment, position, middle)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(..., C) -> (..., V + 3 * bins)."""
        return F.linear(hidden, self.trained_head())


def values_of(
    where: torch.Tensor, variables: Sequence[Variables | None], axis: str, direction: str
) -> torch.Tensor:
    """The values of one kind of placeholder, in the order of `where` (B, L): (N,) float64 on the CPU."""
    needed = where.sum(1).tolist()
    out: list[float] = []
    for row, (count, given) in enumerate(zip(needed, variables, strict=True)):
        values = given.of(axis, direction) if given is not None else ()
        if count > len(values):
            raise QueryError(
                f"prompt {row} holds {count} {placeholder(axis, direction)} but {len(values)} values in "
                f"{field_name(axis, direction)}: give one value per placeholder"
            )
        out += values[:count]
    return torch.tensor(out, dtype=torch.float64)


def _find_slot(ids: torch.Tensor, slot: Slot, count: int) -> int | None:
    """Where the features of a picture go, None when there are none. QueryError when ids and features disagree."""
    starts = (ids == slot.start).nonzero()[:, 0].tolist()
    if len(starts) != (1 if count else 0):
        raise QueryError(
            f"the prompt holds {len(starts)} pictures of a kind of which {1 if count else 0} came: "
            "one image or one video per prompt"
        )
    if not count:
        return None
    at: int = starts[0]
    last = at + count - 1
    if last >= len(ids) or int(ids[last]) != slot.last(count):
        raise QueryError(
            f"the prompt's place for a picture does not hold {count} tokens: was it made for other frame counts?"
        )
    return at
