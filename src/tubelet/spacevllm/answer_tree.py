"""What a model's words about time mean, all answers weighed: the span with the highest expected overlap (ours).

Where answers name sampled frames (`snap_answers`), there are T (T + 1) / 2 of them. Greedy writing takes the likeliest
first digit and then has to go on from it; here the answers become a tree of tokens, all branches are read in one
forward behind the shared prefix, and the span is taken that overlaps most with what the model holds for possible.

Two rounds keep the tree small: the starts first, then the ends of those starts that hold most of the probability.
Knows token ids, no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
STARTS, STARTS_MASS = 16, 0.98  # at most so many starts, or those that hold this much


@dataclass(frozen=True, slots=True)
class AnswerTree:
    """N tokens, parents before children: ids, parent (-1: follows the question) and depth, each (N,);
    leaf (A,): the last token of each answer."""

    ids: npt.NDArray[np.int64]
    parent: npt.NDArray[np.int64]
    depth: npt.NDArray[np.int64]
    leaf: npt.NDArray[np.int64]

    def sees(self) -> npt.NDArray[np.bool_]:
        """(N, N): a token sees itself and those it follows."""
        out = np.eye(len(self.ids), dtype=bool)
        for k, parent in enumerate(self.parent):
            if parent >= 0:
                out[k] |= out[parent]
        return out

    def total(self, logprobs: FloatArray) -> FloatArray:
        """Log-probabilities of tokens (N,) after what they follow -> of answers (A,)."""
        out = np.array(logprobs, dtype=np.float64)
        for k, parent in enumerate(self.parent):
            if parent >= 0:
                out[k] += out[parent]
        return out[self.leaf]


def make_tree(answers: Sequence[Sequence[int]]) -> AnswerTree:
    """Answers (none empty) with their common beginnings merged."""
    ids: list[int] = []
    parent: list[int] = []
    depth: list[int] = []
    leaf: list[int] = []
    node_of: dict[tuple[int, int], int] = {}
    for answer in answers:
        node = -1
        for at, token in enumerate(answer):
            key = (node, token)
            if key not in node_of:
                node_of[key] = len(ids)
                ids.append(token)
                parent.append(node)
                depth.append(at)
            node = node_of[key]
        leaf.append(node)
    return AnswerTree(*(np.array(values, dtype=np.int64) for values in (ids, parent, depth, leaf)))


def common_beginning(answers: Sequence[Sequence[int]]) -> list[int]:
    """The tokens that all answers begin with."""
    columns = zip(*answers, strict=False)
    return [column[0] for column in takewhile(lambda column: len(set(column)) == 1, columns)]


def likely_starts(scores: FloatArray) -> list[int]:
    """Starts to go on from, in order of time, by their log-probabilities (T,)."""
    order = np.argsort(-scores, kind="stable")
    mass = np.cumsum(_probabilities(scores)[order])
    count = min(STARTS, 1 + int((mass < STARTS_MASS).sum()))
    return sorted(order[:count].tolist())


def best_overlap(scores: FloatArray, spans_s: FloatArray) -> tuple[int, float]:
    """The span with the highest expected tIoU under log-probabilities (A,) of spans (A, 2), and that value."""
    p = _probabilities(scores)
    start, end = spans_s[:, 0], spans_s[:, 1]
    shared = np.clip(np.minimum.outer(end, end) - np.maximum.outer(start, start), 0, None)
    length = end - start
    expected = (shared / (np.add.outer(length, length) - shared)) @ p
    best = int(expected.argmax())
    return best, float(expected[best])


def _probabilities(scores: FloatArray) -> FloatArray:
    p = np.exp(scores - scores.max())
    out: FloatArray = p / p.sum()
    return out
