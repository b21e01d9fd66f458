"""Where everything is in a prompt: chat template, visual tokens as (t, y, x), role suffix.

A rendering holds one placeholder token per run of visual tokens; after tokenizing, it is repeated once per token. That
gives the same ids as tokenizing the long text (special tokens separate) without tokenizing thousands of placeholders.
The role suffix is the longest common suffix of this question's tokens and those of two probe questions that end
differently: no index is hard-coded. Knows a processor and a `VisualGrid`, no weights (arXiv 2509.15178, 3.1).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tubelet.errors import ModelError, QueryError
from tubelet.mllm.parts import IntArray, PromptLayout, VisualGrid

_PROBES = ("the one", "a few?")  # end in different tokens: their common suffix belongs to the template


@dataclass(frozen=True, slots=True)
class VisualText:
    """How a video is written into a prompt.

    text: replaces the template's video placeholder; holds `placeholder` once per run of visual tokens.
    runs: how many visual tokens each of them stands for (cells by (t, y, x), trailing ones at the very end).
    """

    text: str
    placeholder: str
    runs: tuple[int, ...]


class PromptWriter:
    """Fills the chat template of a processor."""

    def __init__(self, processor: Any, family: str) -> None:
        self.processor, self.tokenizer, self.family = processor, processor.tokenizer, family
        tokens = {str(token) for token in self.tokenizer.added_tokens_decoder.values() if token.special}
        self._probed: tuple[VisualText, list[IntArray]] | None = None
        self._reserved = sorted(tokens | set(self.tokenizer.all_special_tokens), key=len, reverse=True)
        if not getattr(processor, "chat_template", None):
            raise ModelError(
                f"the {family} checkpoint has no chat template: add its chat_template.jinja to the folder"
            )

    def render(self, text: str, with_video: bool = True) -> str:
        """The chat template with one user turn (the video, then the text), up to where the answer starts."""
        content = [{"type": "text", "text": text}]
        if with_video:
            content.insert(0, {"type": "video"})
        turn = [{"role": "user", "content": content}]
        rendered: str = self.processor.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
        return rendered

    def tokens(self, rendered: str) -> IntArray:
        """Token ids as the family's processor makes them: with the tokenizer's own start token unless it is there."""
        bos = self.tokenizer.bos_token
        special = not (bos and rendered.startswith(bos))
        return np.array(self.tokenizer(rendered, add_special_tokens=special)["input_ids"], dtype=np.int64)

    def check_text(self, text: str) -> str:
        """The text without outer white space; QueryError when it is empty or would be read as template."""
        clean = text.strip()
        if not clean:
            raise QueryError("the question is empty: write what to look for")
        for token in self._reserved:
            if token and token in clean:
                raise QueryError(
                    f"the question contains {token!r}, a control token of {self.family}: leave it out"
                )
        return clean

    def lay_out(
        self,
        text: str,
        grid: VisualGrid,
        video: VisualText,
        video_token: str,
        positions: Callable[[IntArray, IntArray], IntArray],
    ) -> PromptLayout:
        """One question about one video.

        video_token: what the template writes for a video; positions: (input_ids (N,), is_visual (N,)) -> (A, N).
        """
        text = self.check_text(text)
        rendered, ids = self._video_tokens(text, video, video_token)
        if self._probed is None or self._probed[0] != video:
            self._probed = video, [self._video_tokens(probe, video, video_token)[1] for probe in _PROBES]
        probes = self._probed[1]
        n_role = min(_common_suffix(ids, probe) for probe in probes)
        n_role = min(n_role, _common_suffix(*probes))
        placeholder = self.tokenizer.convert_tokens_to_ids(video.placeholder)
        found = np.flatnonzero(ids == placeholder)
        if len(found) != len(video.runs) or sum(video.runs) != grid.n_tokens:
            raise ModelError(
                f"the chat template of this {self.family} checkpoint wrote {len(found)} video placeholders, "
                f"expected {len(video.runs)}: it does not fit the model"
            )
        repeats = np.ones(len(ids), dtype=np.int64)
        repeats[found] = video.runs
        n_role = min(n_role, len(ids) - found[-1] - 2)  # a question lies between
        ids = np.repeat(ids, repeats)
        if n_role < 1:
            raise ModelError(
                f"the chat template of this {self.family} checkpoint ends with the question: no role tokens"
            )
        is_visual = ids == placeholder
        where = np.flatnonzero(is_visual)
        cells = np.indices(grid.shape).reshape(3, -1).T.astype(np.int64)
        return PromptLayout(
            text=text,
            rendered=rendered,
            input_ids=ids,
            position_ids=positions(ids, is_visual),
            visual=where[: grid.n_cells],
            trailing=where[grid.n_cells :],
            tyx=cells,
            prefix_length=int(where[-1]) + 1,
            role=np.arange(len(ids) - n_role, len(ids), dtype=np.int64),
            grid=grid,
        )

    def _video_tokens(self, text: str, video: VisualText, video_token: str) -> tuple[str, IntArray]:
        rendered = self.render(text)
        if rendered.count(video_token) != 1:
            raise ModelError(
                f"the chat template of this {self.family} checkpoint writes {rendered.count(video_token)} "
                f"{video_token!r} for one video, expected 1: it has no video support"
            )
        rendered = rendered.replace(video_token, video.text)
        return rendered, self.tokens(rendered)


def sequential_positions(ids: IntArray, is_visual: IntArray) -> IntArray:
    """(1, N): 0, 1, 2, ..."""
    return np.arange(len(ids), dtype=np.int64)[None]


def _common_suffix(a: IntArray, b: IntArray) -> int:
    length = min(len(a), len(b))
    same = a[len(a) - length :] == b[len(b) - length :]
    different = np.flatnonzero(~same)
    return length if not len(different) else int(length - different[-1] - 1)
