"""Asking a model what it holds of every answer that names two sampled frames (`answer_tree` has the arithmetic; ours).

How likely the first time is the time of each frame, against "not in this video", says whether it is there; then the
ends of the likely starts are weighed, and the answer is the one whose span overlaps most with all of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tubelet.frames import FrameGrid
from tubelet.spacevllm.answer_tree import (
    AnswerTree,
    FloatArray,
    best_overlap,
    common_beginning,
    likely_starts,
    make_tree,
)
from tubelet.spacevllm.checkpoint import Bundle
from tubelet.spacevllm.model import PrefixState
from tubelet.spacevllm.prompts import time_answers


def weighed_answers(
    bundle: Bundle, state: PrefixState, grid: FrameGrid, questions: Sequence[Sequence[int]]
) -> tuple[list[list[int]], list[float]]:
    """Ids of the answer to each question (ids of its words), without the end of the turn, and its presence.

    Presence: the probability of all answers that begin with a time against that of "not in this video"; below the
    model's `text_presence_threshold` the latter is the answer.
    """
    answers, absent = time_answers(bundle.model.config, bundle.tokenizer, grid.times_s)
    edges, threshold = grid.cell_edges_s(), bundle.model.config.text_presence_threshold
    tree = _tree_of_starts(bundle, answers, absent)
    out, presences = [], []
    for question in questions:
        scores = _scores(bundle, state, question, tree)
        presences.append(_presence(scores))
        if presences[-1] < threshold:
            out.append(absent)
            continue
        pairs = [(i, j) for i in likely_starts(scores[:-1]) for j in range(i, len(grid.times_s))]
        ended = make_tree([[*answers[i][j], *bundle.layout.end] for i, j in pairs])
        spans_s = np.array([(edges[i], edges[j + 1]) for i, j in pairs])
        i, j = pairs[best_overlap(_scores(bundle, state, question, ended), spans_s)[0]]
        out.append(answers[i][j])
    return out, presences


def text_presences(
    bundle: Bundle, state: PrefixState, times_s: FloatArray, questions: Sequence[Sequence[int]]
) -> list[float]:
    """The presence of each question's answer alone (`weighed_answers`), of frames at times_s (T,)."""
    answers, absent = time_answers(bundle.model.config, bundle.tokenizer, times_s)
    tree = _tree_of_starts(bundle, answers, absent)
    return [_presence(_scores(bundle, state, question, tree)) for question in questions]


def _tree_of_starts(bundle: Bundle, answers: Sequence[Sequence[list[int]]], absent: list[int]) -> AnswerTree:
    """What answers begin with, by their first frame, and last the answer that it is not there."""
    return make_tree([*(common_beginning(row) for row in answers), [*absent, *bundle.layout.end]])


def _scores(bundle: Bundle, state: PrefixState, question: Sequence[int], tree: AnswerTree) -> FloatArray:
    found = bundle.model.answer_scores(state, [*question, *bundle.layout.tail], tree)
    return tree.total(found.double().cpu().numpy())


def _presence(scores: FloatArray) -> float:
    odds = np.logaddexp.reduce(scores[:-1]) - scores[-1]
    return float(1 / (1 + np.exp(-np.clip(odds, -700, 700))))
