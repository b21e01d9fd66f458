"""`LoadedMllm`: the interface of parts.py on a transformers model and a family adapter.

    prefix:   [ system, role | visual tokens ]            once per video, keys and values are kept
    suffixes: [ "\\n", question 1, role | question 2 ... ]  once per set of questions, block mask, positions restart

Both are exact: the same numbers as one forward per question over the whole prompt (tests/mllm). Of the last layer the
prefix needs keys and values only, and rows without logits need no layer after the last that is read: neither is run.
Knows no family.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch

from tubelet.errors import ModelError, QueryError
from tubelet.frames import Clip
from tubelet.mllm.attention_rows import LastLayerReached, RowReader, row_weights
from tubelet.mllm.family import Family, visual_grid
from tubelet.mllm.layout import PromptWriter, sequential_positions
from tubelet.mllm.memory import memory_guard
from tubelet.mllm.parts import (
    Capabilities,
    Prefix,
    PromptLayout,
    Reading,
    RowSpec,
    VisualGrid,
    VisualTokens,
)
from tubelet.packed import suffix_mask


class LoadedMllm:
    """A frozen video MLLM; see `tubelet.mllm.parts.Mllm` for the methods. Made by `load_mllm`."""

    def __init__(
        self,
        name: str,
        revision: str,
        family: Family,
        capabilities: Capabilities,
        model: Any,
        processor: Any,
        max_frame_tokens: int | None = None,
    ) -> None:
        self.name, self.revision, self.capabilities = name, revision, capabilities
        self.model, self.processor, self.tokenizer = model, processor, processor.tokenizer
        self.family, self.max_frame_tokens = family, max_frame_tokens
        self.device, self.dtype = model.device, model.dtype
        self._writer = PromptWriter(processor, family.name)
        self._lm = model.model.language_model
        self._start: tuple[VisualGrid, PromptLayout] | None = None

    def grid_of(self, clip: Clip, one_frame_per_step: bool = False) -> VisualGrid:
        """Which cells a clip will have; no pixels are read."""
        return self._plan(clip, one_frame_per_step)[0]

    def encode(
        self, clip: Clip, one_frame_per_step: bool = False, chunk_frames: int = 16, like: Clip | None = None
    ) -> VisualTokens:
        """The vision tower over a clip, about `chunk_frames` at a time; pixels go to the device as uint8."""
        grid, size = self._plan(clip, one_frame_per_step, like)
        steps = max(1, chunk_frames // self.capabilities.frames_per_step)
        parts = []
        remedy = "read fewer frames, lower max_frame_tokens, or lower chunk_frames"
        with torch.no_grad(), memory_guard("encode the video", remedy):
            for start in range(0, grid.n_steps, steps):
                frames = clip.pixels[grid.frames[start : start + steps].reshape(-1)]
                pixels = torch.from_numpy(np.ascontiguousarray(frames)).to(self.device).permute(0, 3, 1, 2)
                parts.append(
                    self.family.features(self.model, self.processor, pixels, size, self.max_frame_tokens)
                )
            cells = [part.cells for part in parts]
            if self.family.trailing is not None:
                cells.append(self.family.trailing(self.model).to(cells[0]))
            tokens = torch.cat(cells)
            deepstack = tuple(torch.cat(layer) for layer in zip(*(p.deepstack for p in parts), strict=True))
        if len(tokens) != grid.n_tokens:
            raise ModelError(
                f"{self.family.name} made {len(tokens)} visual tokens of {len(clip)} frames, expected {grid.n_tokens}: "
                "its processor and its config do not fit"
            )
        return VisualTokens(grid, tokens, deepstack)

    def prompt(self, video: VisualTokens | VisualGrid, text: str) -> PromptLayout:
        """Fill the chat template with the video and then the text."""
        grid = video.grid if isinstance(video, VisualTokens) else video
        positions = self.family.positions(self.model, grid) if self.family.positions else sequential_positions
        written = self.family.video_text(self.processor, grid)
        layout = self._writer.lay_out(text, grid, written, self.processor.video_token, positions)
        if len(layout) > self.capabilities.max_tokens:
            raise QueryError(
                f"this prompt has {len(layout)} tokens, {self.name} reads {self.capabilities.max_tokens}: "
                "read fewer frames or lower max_frame_tokens"
            )
        return layout

    def prefix(
        self, visual: VisualTokens, delta: torch.Tensor | None = None, n_layers: int | None = None
    ) -> Prefix:
        """Read the video, and all that the template puts before it, in the first `n_layers` (None: all)."""
        from transformers import DynamicCache

        everything = self.capabilities.n_layers
        n_layers = everything if n_layers is None else n_layers
        if not 1 <= n_layers <= everything:
            raise QueryError(f"n_layers is 1 to {everything}, the layers of {self.name}; got {n_layers}")
        # tuning reads the same video again and again: what stands before the question stays
        if self._start is None or self._start[0] is not visual.grid:
            self._start = visual.grid, self.prompt(visual, "what")
        layout = self._start[1]
        tokens, n_tokens = visual.tokens, visual.grid.n_tokens
        if delta is not None:
            if delta.shape != tokens.shape:
                raise QueryError(
                    f"delta is {tuple(tokens.shape)}, one vector per visual token; got {tuple(delta.shape)}"
                )
            tokens = (tokens.float() + delta).to(self.dtype)
        length = layout.prefix_length
        ids = torch.from_numpy(layout.input_ids[:length]).to(self.device)
        where = torch.from_numpy(np.concatenate([layout.visual, layout.trailing])).to(self.device)
        with memory_guard(f"read {n_tokens} visual tokens", "read fewer frames or lower max_frame_tokens"):
            embeds = self.model.get_input_embeddings()(ids).index_copy(0, where, tokens)
            extra = {}
            if visual.deepstack:
                is_cell = torch.zeros(1, length, dtype=torch.bool, device=self.device)
                is_cell[0, where] = True
                extra = {"visual_pos_masks": is_cell, "deepstack_visual_embeds": list(visual.deepstack)}
            cache = DynamicCache(config=self.model.config)
            with suppress(LastLayerReached):  # what is kept of the last layer are keys and values
                self._lm(
                    inputs_embeds=embeds[None],
                    position_ids=self._positions([layout.position_ids[:, :length]]),
                    past_key_values=cache,
                    use_cache=True,
                    last_layer=n_layers - 1,
                    **extra,
                )
        return Prefix(visual.grid, layout.input_ids[:length], cache, layout.visual, n_layers)

    def ask(
        self,
        prefix: Prefix,
        prompts: Sequence[PromptLayout],
        rows: RowSpec | None = None,
        token_ids: Sequence[int] | None = None,
        logits: bool = True,
    ) -> list[Reading]:
        """All prompts in one forward after the prefix; each sees the prefix and itself."""
        if not prompts:
            return []
        length = len(prefix)
        for prompt in prompts:
            if prompt.prefix_length != length or not np.array_equal(
                prompt.input_ids[:length], prefix.input_ids
            ):
                raise QueryError(
                    "a prompt was laid out for another video than the prefix: lay it out for this one"
                )
        if logits and prefix.n_layers < self.capabilities.n_layers:
            raise QueryError(
                f"this prefix holds {prefix.n_layers} of {self.capabilities.n_layers} layers, answers need all: "
                "read the video again without n_layers, or ask with logits=False"
            )
        suffixes = [prompt.input_ids[length:] for prompt in prompts]
        ends = np.cumsum([len(suffix) for suffix in suffixes])
        offsets = [rows.offsets(prompt) if rows else () for prompt in prompts]
        reader = None
        if rows is not None:
            at = np.concatenate([end + np.array(offset) for end, offset in zip(ends, offsets, strict=True)])
            reader = self._reader(rows, at, prefix)
        if not logits and reader is None:
            return [Reading(None, None, ()) for _ in prompts]
        with memory_guard(
            f"read {len(prompts)} questions", "ask fewer questions at a time or read fewer frames"
        ):
            segment = torch.from_numpy(np.repeat(np.arange(len(suffixes)), [len(s) for s in suffixes])) + 1
            hidden = self._continue(
                np.concatenate(suffixes),
                [prompt.position_ids[:, length:] for prompt in prompts],
                _branch(prefix.cache),
                suffix_mask(segment.to(self.device), length) if len(prompts) > 1 else None,
                reader,
                logits,
            )
            scores = None
            if hidden is not None:
                scores = self._logits(hidden[torch.from_numpy(ends - 1).to(self.device)], token_ids)
        maps = self._maps(rows, reader, prefix.grid, [len(offset) for offset in offsets])
        return [
            Reading(None if scores is None else scores[i], maps[i], offsets[i]) for i in range(len(prompts))
        ]

    def write(self, text: str, max_new_tokens: int = 256, prefix: Prefix | None = None) -> str:
        """Answer in words, greedily: about a video that was read, or about the text alone (prefix None).

        Ends where the model reads no further. Raises QueryError for a text that is too long, ModelError without memory.
        """
        most = self.capabilities.max_tokens
        if prefix is None:
            ids = self._writer.tokens(self._writer.render(self._writer.check_text(text), with_video=False))
            if len(ids) > most:
                raise QueryError(
                    f"this text has {len(ids)} tokens, {self.name} reads {most}: write a shorter one"
                )
            positions = np.arange(len(ids))[None].repeat(self.capabilities.position_axes, axis=0)
            cache = None
            room = most - len(ids)
        else:
            layout = self.prompt(prefix.grid, text)
            ids, positions = layout.input_ids[len(prefix) :], layout.position_ids[:, len(prefix) :]
            if prefix.n_layers < self.capabilities.n_layers:
                raise QueryError("this prefix holds some of the layers only: read the video without n_layers")
            cache = _branch(prefix.cache)
            room = most - len(layout)
        written: list[int] = []
        stop = self._stop_tokens()
        remedy = "write a shorter text, ask for fewer new tokens, or read fewer frames"
        with torch.no_grad(), memory_guard("write an answer", remedy):
            # the last word is not read again
            for _ in range(min(max_new_tokens, room + 1)):
                out = self._forward(ids, [positions], cache)
                cache = out.past_key_values
                token = int(self._logits(out.last_hidden_state[0, -1:], None).argmax())
                if token in stop:
                    break
                written.append(token)
                ids = np.array([token], dtype=np.int64)
                positions = np.full_like(positions[:, :1], positions.max() + 1)
        answer: str = self.tokenizer.decode(written, skip_special_tokens=True)
        return answer.strip()

    def _plan(self, clip: Clip, repeat: bool, like: Clip | None = None) -> tuple[VisualGrid, tuple[int, int]]:
        sized = clip if like is None else like
        n_frames = len(sized) * (self.capabilities.frames_per_step if repeat else 1)
        shape = (n_frames, sized.pixels.shape[1], sized.pixels.shape[2])
        try:
            size = self.family.frame_size(self.processor, self.model, shape, self.max_frame_tokens)
        except ValueError as error:
            raise QueryError(
                f"{self.family.name} cannot read frames of {shape[2]}x{shape[1]} pixels: {error}"
            ) from error
        cells = self.family.cells(self.model, size, self.max_frame_tokens)
        steps = self.capabilities.frames_per_step
        return visual_grid(clip, cells, steps, repeat, self.capabilities.trailing_tokens), size

    def _positions(self, parts: Sequence[np.ndarray[Any, Any]]) -> torch.Tensor:
        """(A, n) pieces -> (1, N) or (A, 1, N), as the language model takes them."""
        joined = torch.from_numpy(np.concatenate(parts, axis=1)).to(self.device)
        return joined if self.capabilities.position_axes == 1 else joined[:, None]

    def _forward(
        self,
        ids: Any,
        positions: Sequence[Any],
        cache: Any,
        mask: Any = None,
        reader: Any = None,
        last_layer: int | None = None,
    ) -> Any:
        embeds = self.model.get_input_embeddings()(torch.from_numpy(ids).to(self.device))
        extra = {} if reader is None else {"row_reader": reader, "last_layer": last_layer}
        return self._lm(
            inputs_embeds=embeds[None],
            position_ids=self._positions(positions),
            attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
            **extra,
        )

    def _continue(
        self, ids: Any, positions: Any, cache: Any, mask: Any, reader: RowReader | None, logits: bool
    ) -> torch.Tensor | None:
        """(N, D) after the last layer; None where only rows are wanted, which end with the last layer read."""
        last = None if logits or reader is None else max(reader.wanted, default=None)
        try:
            hidden: torch.Tensor = self._forward(ids, positions, cache, mask, reader, last).last_hidden_state[
                0
            ]
        except LastLayerReached:
            return None
        return hidden

    def _logits(self, hidden: torch.Tensor, token_ids: Sequence[int] | None) -> torch.Tensor:
        head = self.model.lm_head
        if token_ids is None:
            everything: torch.Tensor = head(hidden).float()
            return everything
        ids = torch.tensor(list(token_ids), device=self.device)
        if isinstance(head, torch.nn.Linear) and head.weight.is_floating_point():
            bias = None if head.bias is None else head.bias[ids]
            return torch.nn.functional.linear(hidden, head.weight[ids], bias).float()
        some: torch.Tensor = head(hidden)[..., ids].float()
        return some

    def _reader(self, spec: RowSpec, at: Any, prefix: Prefix) -> RowReader:
        n_layers, n_heads = self.capabilities.n_layers, self.capabilities.n_heads
        weights = row_weights(
            n_layers, n_heads, spec.layers, None if spec.per_layer else spec.layer_weights, spec.head_weights
        )
        read = (weights != 0).any(dim=1).nonzero().flatten().tolist()
        if read and read[-1] >= prefix.n_layers:
            raise QueryError(
                f"this prefix holds the first {prefix.n_layers} layers, layer {read[-1]} is to be read: "
                "read the video again with more of them"
            )
        keep: frozenset[int] = frozenset()
        if spec.per_layer:
            used = (weights != 0).any(dim=1)
            weights = weights * int(used.sum())  # each layer's own mean, not a share of the sum
            keep = frozenset(used.nonzero().flatten().tolist())
        return RowReader(
            rows=torch.from_numpy(at).to(self.device),
            columns=torch.from_numpy(prefix.visual).to(self.device),
            weights=weights.to(self.device),
            keep_layers=keep,
        )

    def _maps(
        self, spec: RowSpec | None, reader: RowReader | None, grid: VisualGrid, counts: Sequence[int]
    ) -> list[torch.Tensor | None]:
        if spec is None or reader is None or reader.total is None:
            return [None] * len(counts)
        read = reader.total[0]
        if spec.per_layer:
            order = [
                at % self.capabilities.n_layers for at in spec.layers or range(self.capabilities.n_layers)
            ]
            read = torch.stack([reader.layers[at][0] for at in order])
        return list(read.unflatten(-1, grid.shape).split(list(counts), dim=-4))

    def _stop_tokens(self) -> set[int]:
        ends = self.model.generation_config.eos_token_id
        found = set(ends if isinstance(ends, list) else [ends])
        return {at for at in found | {self.tokenizer.eos_token_id} if at is not None}


def _branch(cache: Any) -> Any:
    """A cache that continues this one and leaves it as it is: its tensors are shared, additions are not."""
    twin = copy.copy(cache)
    twin.layers = [copy.copy(layer) for layer in cache.layers]
    return twin
