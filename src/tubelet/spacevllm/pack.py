"""SpaceVLLM's videos and questions as packed rows, with the places of what is read from them.

How rows look and who sees whom: `tubelet.packed`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tubelet.spacevllm.prompts import Prefix

IGNORE = -100
NO_FRAME, ANY_FRAME = -1, -2  # what an answer token is about: nothing, or a thing wherever it is seen


@dataclass(frozen=True, slots=True)
class Suffix:
    """One question: ids of its words, of the turn's tail, and (in training) of answer and end token.

    answer_frame: of each answer token, the frame whose time it tells, NO_FRAME or ANY_FRAME; () where nothing is known.
    """

    question: tuple[int, ...]
    tail: tuple[int, ...]
    answer: tuple[int, ...] = ()
    answer_frame: tuple[int, ...] = ()

    @property
    def ids(self) -> tuple[int, ...]:
        return (*self.question, *self.tail, *self.answer)


@dataclass(frozen=True, slots=True)
class Packed:
    """B rows of length L holding Q questions in all. Index tensors point into a row.

    segment: 0 in the prefix, k in the row's k-th suffix, -1 in padding.
    newline_at: the base's newline tokens, -1 where a row has fewer (N = 1 but for `SpaceVLLMConfig.newline`).
    answer_row/answer_at/answer_ids: (A,) the positions whose next token is an answer token, and that token;
    answer_question: its question; answer_frame: the frame whose time it tells, NO_FRAME or ANY_FRAME.
    """

    ids: torch.Tensor  # (B, L)
    position: torch.Tensor  # (B, L)
    segment: torch.Tensor  # (B, L)
    prefix_length: torch.Tensor  # (B,)
    visual_at: torch.Tensor  # (B, T, K), 0 where a row has fewer frames
    query_at: torch.Tensor  # (B, T)
    frame_mask: torch.Tensor  # (B, T)
    newline_at: torch.Tensor  # (B, N)
    question_row: torch.Tensor  # (Q,)
    text_at: torch.Tensor  # (Q, S)
    text_mask: torch.Tensor  # (Q, S)
    answer_row: torch.Tensor
    answer_at: torch.Tensor
    answer_ids: torch.Tensor
    answer_question: torch.Tensor
    answer_frame: torch.Tensor

    def to(self, device: torch.device | str) -> Packed:
        moved: dict[str, Any] = {name: getattr(self, name).to(device) for name in self.__slots__}
        return replace(self, **moved)


def pack(prefixes: Sequence[Prefix], suffixes: Sequence[Sequence[Suffix]], pad_id: int = 0) -> Packed:
    """One row per prefix with all of its suffixes."""
    lengths = [len(p.ids) + sum(len(s.ids) for s in row) for p, row in zip(prefixes, suffixes, strict=True)]
    n_rows, length = len(prefixes), max(lengths)
    n_frames = max(len(p.query_at) for p in prefixes)
    n_visual = prefixes[0].visual_at.shape[1]
    ids = np.full((n_rows, length), pad_id, dtype=np.int64)
    position = np.zeros((n_rows, length), dtype=np.int64)
    segment = np.full((n_rows, length), -1, dtype=np.int64)
    visual_at = np.zeros((n_rows, n_frames, n_visual), dtype=np.int64)
    query_at = np.zeros((n_rows, n_frames), dtype=np.int64)
    frame_mask = np.zeros((n_rows, n_frames), dtype=bool)
    newlines = [
        [at for at in (*prefix.earlier_newlines_at, prefix.newline_at) if at >= 0] for prefix in prefixes
    ]
    newline_at = np.full((n_rows, max(map(len, newlines))), -1, dtype=np.int64)
    for b, places in enumerate(newlines):
        newline_at[b, : len(places)] = places
    question_row: list[int] = []
    texts: list[npt.NDArray[np.int64]] = []
    answers: list[tuple[int, int, int, int, int]] = []
    for b, (prefix, row) in enumerate(zip(prefixes, suffixes, strict=True)):
        at, n = len(prefix.ids), len(prefix.query_at)
        ids[b, :at], position[b, :at], segment[b, :at] = prefix.ids, np.arange(at), 0
        visual_at[b, :n], query_at[b, :n], frame_mask[b, :n] = prefix.visual_at, prefix.query_at, True
        for k, suffix in enumerate(row, start=1):
            words = suffix.ids
            ids[b, at : at + len(words)] = words
            position[b, at : at + len(words)] = len(prefix.ids) + np.arange(len(words))
            segment[b, at : at + len(words)] = k
            question_row.append(b)
            texts.append(np.arange(at, at + len(suffix.question)))
            first = at + len(suffix.question) + len(suffix.tail) - 1
            frames = suffix.answer_frame or (NO_FRAME,) * len(suffix.answer)
            told = zip(suffix.answer, frames, strict=True)
            answers += [(b, first + j, token, len(texts) - 1, f) for j, (token, f) in enumerate(told)]
            at += len(words)
    longest = max((len(t) for t in texts), default=0)
    text_at = np.zeros((len(texts), longest), dtype=np.int64)
    text_mask = np.zeros((len(texts), longest), dtype=bool)
    for q, text in enumerate(texts):
        text_at[q, : len(text)], text_mask[q, : len(text)] = text, True
    answer = np.array(answers, dtype=np.int64).reshape(-1, 5)
    arrays = {
        "ids": ids,
        "position": position,
        "segment": segment,
        "prefix_length": np.array([len(p.ids) for p in prefixes]),
        "visual_at": visual_at,
        "query_at": query_at,
        "frame_mask": frame_mask,
        "newline_at": newline_at,
        "question_row": np.array(question_row, dtype=np.int64),
        "text_at": text_at,
        "text_mask": text_mask,
        "answer_row": answer[:, 0],
        "answer_at": answer[:, 1],
        "answer_ids": answer[:, 2],
        "answer_question": answer[:, 3],
        "answer_frame": answer[:, 4],
    }
    return Packed(**{name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in arrays.items()})
