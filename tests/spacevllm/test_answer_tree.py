"""Answers as a tree: the same numbers as one by one, and the span that overlaps most with all of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tubelet.spacevllm.answer_tree import (
    STARTS,
    best_overlap,
    common_beginning,
    likely_starts,
    make_tree,
)
from tubelet.spacevllm.pack import pack
from tubelet.spacevllm.prompts import encode_query, make_prefix, time_answers
from tubelet.spacevllm.weigh import text_presences

ANSWERS = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=5), min_size=1, max_size=12)


@given(ANSWERS)
def test_a_tree_holds_each_answer_once(answers: list[list[int]]) -> None:
    tree = make_tree(answers)
    assert len(tree.ids) == len({tuple(a[:k]) for a in answers for k in range(1, len(a) + 1)})
    sees = tree.sees()
    for answer, leaf in zip(answers, tree.leaf, strict=True):
        path = np.flatnonzero(sees[leaf])
        assert tree.ids[path].tolist() == answer and tree.depth[path].tolist() == list(range(len(answer)))
        assert tree.total(np.arange(1.0, len(tree.ids) + 1))[list(tree.leaf).index(leaf)] == (path + 1).sum()


def test_scores_of_a_tree_are_those_of_each_answer_alone(tiny_bundle: Any) -> None:
    """One forward of all branches behind the cached prefix == a plain forward of prefix, question and answer."""
    model, layout, tokenizer = tiny_bundle.model, tiny_bundle.layout, tiny_bundle.tokenizer
    times = np.array([0.4, 1.3, 2.2, 11.0])
    prefix = make_prefix(model.config, layout, tokenizer, times, 12.0, model.tokens_per_frame)
    pixels = torch.rand(4, 3, model.image_size, model.image_size, generator=torch.Generator().manual_seed(0))
    packed = pack([prefix], [[]])
    state = model.encode_prefix(packed, pixels)
    named, absent = time_answers(model.config, tokenizer, times)
    answers = [*(a for row in named for a in row), absent]
    suffix = [*encode_query(tokenizer, "when the red circle spins"), *layout.tail]
    tree = make_tree(answers)
    found = tree.total(model.answer_scores(state, suffix, tree).double().numpy())
    features = model.with_motion(model.frame_features(pixels), packed.frame_mask)
    before = model.embed(packed, features)
    for k in (0, 5, len(answers) - 1):
        ids = torch.tensor([[*suffix, *answers[k]]])
        embeds = torch.cat([before, model.base.get_input_embeddings()(ids)], dim=1)
        with torch.no_grad():
            hidden = model.base.model.language_model(inputs_embeds=embeds).last_hidden_state[0]
            logprobs = model.base.lm_head(hidden).log_softmax(-1)
        at = before.shape[1] + len(suffix) - 1
        alone = sum(float(logprobs[at + j, token]) for j, token in enumerate(answers[k]))
        assert found[k] == pytest.approx(alone, abs=1e-4)


def test_likely_starts_hold_most_of_the_probability() -> None:
    scores = np.log(np.array([0.005, 0.6, 0.005, 0.385, 0.005]))
    assert likely_starts(scores) == [1, 3]
    assert len(likely_starts(np.zeros(4 * STARTS))) == STARTS
    assert likely_starts(np.array([-3.0])) == [0]


def test_the_span_that_overlaps_most_is_not_always_the_likeliest() -> None:
    """Two spans that nearly agree hold 0.6 together; one that agrees with nothing holds 0.4 alone."""
    spans = np.array([[0.0, 1.0], [5.0, 9.0], [5.0, 10.0]])
    best, expected = best_overlap(np.log(np.array([0.4, 0.28, 0.32])), spans)
    assert best == 2 and expected == pytest.approx(0.32 + 0.28 * 4 / 5)
    assert best_overlap(np.array([0.0]), spans[:1]) == (0, 1.0)


def test_common_beginning() -> None:
    assert common_beginning([[1, 2, 3], [1, 2, 4], [1, 2]]) == [1, 2]
    assert common_beginning([[1], [2]]) == []
    assert common_beginning([[4, 5]]) == [4, 5]


def test_the_text_route_answers_with_frames_that_exist(tiny_bundle: Any) -> None:
    """Weighed answers always name two sampled frames in order, or say that it is not there."""
    from fractions import Fraction

    from tubelet.frames import Clip, FrameGrid
    from tubelet.spacevllm.grounder import SpaceVLLMGrounder
    from tubelet.spacevllm.model import SpaceVLLM

    config = replace(tiny_bundle.model.config, snap_answers=True, presence_threshold=0.0)
    model = SpaceVLLM(tiny_bundle.model.base, config).eval()
    grounder = SpaceVLLMGrounder(replace(tiny_bundle, model=model), "tiny")
    n = min(6, config.max_frames)
    grid = FrameGrid(np.arange(n), (np.arange(n) + 0.5) * 0.7, Fraction(10, 7), n * 0.7, 64, 64)
    pixels = np.random.default_rng(0).integers(0, 255, (n, 64, 64, 3)).astype(np.uint8)
    state = grounder.encode(Clip(pixels, grid))
    edges = grid.cell_edges_s()
    for query in ("the red circle", "a thing that is not there", "something spins"):
        prediction = grounder.ground(state, query, "stvg", span_reader="text")
        assert prediction.failure is None
        if prediction.tube is None:
            assert prediction.text == "not in this video." or "not" in prediction.text
        else:
            span = prediction.tube.span
            assert np.isclose(edges, span.start_s).any() and np.isclose(edges, span.end_s).any()
            assert prediction.text.endswith("s.") or prediction.text.endswith(".")
    many = grounder.ground_many(state, ["the red circle", "something spins"], "stvg", span_reader="text")
    alone = [
        grounder.ground(state, q, "stvg", span_reader="text") for q in ("the red circle", "something spins")
    ]
    assert [p.text for p in many] == [p.text for p in alone]


def test_the_threshold_decides_what_words_say_is_not_there(tiny_bundle: Any) -> None:
    """0: always a time; 1: never; between two sentences' presences: the one, not the other. Confidence agrees."""
    from fractions import Fraction

    from tubelet.frames import Clip, FrameGrid
    from tubelet.spacevllm.grounder import SpaceVLLMGrounder
    from tubelet.spacevllm.model import SpaceVLLM
    from tubelet.spacevllm.prompts import question_text

    grid = FrameGrid(np.arange(4), np.arange(4) + 0.5, Fraction(1), 4.0, 64, 64)
    clip = Clip(np.random.default_rng(1).integers(0, 255, (4, 64, 64, 3)).astype(np.uint8), grid)
    queries = ["the red circle", "something that spins"]

    def asked(threshold: float) -> tuple[list[Any], list[float]]:
        config = replace(
            tiny_bundle.model.config,
            snap_answers=True,
            presence_threshold=0.0,
            text_presence_threshold=threshold,
        )
        bundle = replace(tiny_bundle, model=SpaceVLLM(tiny_bundle.model.base, config).eval())
        grounder = SpaceVLLMGrounder(bundle, "tiny")
        state = grounder.encode(clip)
        words = [encode_query(bundle.tokenizer, question_text(config, "stvg", q)) for q in queries]
        presences = text_presences(bundle, state.prefix, grid.times_s, words)
        return grounder.ground_many(state, queries, "stvg", span_reader="text"), presences

    there, presences = asked(0.0)
    assert all(p.tube is not None for p in there) and presences[0] != presences[1]
    gone, _ = asked(1.0)
    assert all(p.tube is None and p.failure is None and p.confidence < 0.5 for p in gone)
    middle, _ = asked(sum(presences) / 2)
    for prediction, presence in zip(middle, presences, strict=True):
        here = presence > sum(presences) / 2
        assert (prediction.tube is not None) == here and (prediction.confidence > 0.5) == here
