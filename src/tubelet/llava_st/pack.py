"""Training rows: one picture's prompt and all questions about it with their answers (`tubelet.packed`).

    row:  [ system, picture | question 1, answer 1 | question 2, answer 2 | ... ]

Labels stand on answers and the marks that end them. A row is one sample of the loss. The published format, one
conversation after another, is `prompts.training_ids`; here no answer is read by the next question.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from tubelet.llava_st.coordinates import Variables, Worded
from tubelet.llava_st.loss import IGNORE
from tubelet.llava_st.model import VisualCounts
from tubelet.llava_st.prompts import prompt_ids, text_ids
from tubelet.llava_st.words import Words


@dataclass(frozen=True, slots=True)
class Turn:
    """A question and its answer; frames: of each coordinate word of the answer, in order, the frame that it is about
    (-1: none; () where nothing is known)."""

    question: Worded
    answer: Worded
    frames: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Rows:
    """B rows of length L with Q questions. visual_at (B,): column of the picture's first token.

    variables: per row, in the order of the placeholders; asks_row, asks_at (Q,): the last word of each question.
    named (N, 4): row, column before a coordinate word of an answer, its question, and the frame that it is about.
    """

    ids: torch.Tensor  # (B, L)
    labels: torch.Tensor  # (B, L), -100 where nothing is learnt
    segment: torch.Tensor  # (B, L)
    position: torch.Tensor  # (B, L)
    visual_at: torch.Tensor  # (B,)
    asks_row: torch.Tensor  # (Q,)
    asks_at: torch.Tensor  # (Q,)
    named: torch.Tensor  # (N, 4)
    variables: tuple[Variables, ...]

    def to(self, device: torch.device | str) -> Rows:
        names = ("ids", "labels", "segment", "position", "visual_at", "asks_row", "asks_at", "named")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})


def pack_rows(
    tokenizer: Any, words: Words, counts: VisualCounts | None, samples: Sequence[Sequence[Turn]]
) -> Rows:
    """One row per sample; all samples show a picture of the same kind and size (None: none of them does)."""
    rows: list[tuple[list[int], list[int], list[int], list[int]]] = []
    values: list[Variables] = []
    asks: list[tuple[int, int]] = []
    named: list[tuple[int, int, int, int]] = []
    coordinates = {words.output_placeholder(axis) for axis in range(3)}
    visual_at = 0
    for number, turns in enumerate(samples):
        ids: list[int] = []
        labels: list[int] = []
        segment: list[int] = []
        position: list[int] = []
        variables = Variables()
        for k, turn in enumerate(turns, start=1):
            prompt = prompt_ids(tokenizer, words, turn.question, counts)
            if not ids:
                ids += prompt.ids[: prompt.prefix]
                labels += [IGNORE] * prompt.prefix
                segment += [0] * prompt.prefix
                position += range(prompt.prefix)
                n_visual = 0 if counts is None else counts.image + counts.fast + counts.slow
                visual_at = prompt.prefix - 1 - n_visual
            asked = prompt.ids[prompt.prefix :]
            said = [*text_ids(tokenizer, turn.answer.text), words.turn_end]
            asks.append((number, len(ids) + len(text_ids(tokenizer, turn.question.text)) - 1))
            before = len(ids) + len(asked) - 1
            places = [before + j for j, token in enumerate(said) if token in coordinates]
            if turn.frames:
                told = zip(places, turn.frames, strict=True)
                named += [(number, at, len(asks) - 1, frame) for at, frame in told if frame >= 0]
            ids += [*asked, *said]
            labels += [*[IGNORE] * len(asked), *said]
            segment += [k] * (len(asked) + len(said))
            position += range(prompt.prefix, prompt.prefix + len(asked) + len(said))
            variables = variables + turn.question.variables + turn.answer.variables
        rows.append((ids, labels, segment, position))
        values.append(variables)
    length = max(len(row[0]) for row in rows)
    fills = (words.turn_end, IGNORE, -1, 0)
    at = torch.tensor(asks, dtype=torch.long).reshape(-1, 2)
    all_ids, all_labels, all_segments, all_positions = (
        _padded([row[k] for row in rows], length, fill) for k, fill in enumerate(fills)
    )
    return Rows(
        ids=all_ids,
        labels=all_labels,
        segment=all_segments,
        position=all_positions,
        visual_at=torch.full((len(rows),), visual_at),
        asks_row=at[:, 0],
        asks_at=at[:, 1],
        named=torch.tensor(named, dtype=torch.long).reshape(-1, 4),
        variables=tuple(values),
    )


def _padded(lists: Sequence[Sequence[int]], length: int, fill: int) -> torch.Tensor:
    out = np.full((len(lists), length), fill, dtype=np.int64)
    for row, values in zip(out, lists, strict=True):
        row[: len(values)] = values
    return torch.from_numpy(out)
