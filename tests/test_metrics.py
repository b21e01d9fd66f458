"""Scores against plain restatements, frame by frame; intervals against known cases."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tubelet.metrics.bootstrap import bootstrap_mean
from tubelet.metrics.grounding import (
    Scores,
    Truth,
    balanced_accuracy,
    paired_iou,
    score_tube,
    siou,
    summarise,
)
from tubelet.tube import Span, Tube


def plain_iou(a: list[float], b: list[float]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0.0, width) * max(0.0, height)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / union if union > 0 else 0.0


def plain_viou(tube: Tube, truth: Truth) -> float:
    """Frame by frame, as the benchmark papers write it down."""
    assert truth.span is not None
    total, union = 0.0, 0
    boxes = dict(zip(truth.box_times_s.tolist(), truth.boxes_xyxy.tolist(), strict=True))
    for t in truth.frame_times_s.tolist():
        in_p = tube.span.start_s <= t < tube.span.end_s
        in_t = truth.span.start_s <= t < truth.span.end_s
        union += in_p or in_t
        if in_p and in_t and t in boxes:
            x = [np.interp(t, tube.times_s, tube.boxes_xyxy[:, k]) for k in range(4)]
            total += plain_iou(x, boxes[t])
    return total / union if union else 0.0


boxes = st.tuples(*[st.floats(0, 1) for _ in range(4)]).map(
    lambda v: [min(v[0], v[2]), min(v[1], v[3]), max(v[0], v[2]), max(v[1], v[3])]
)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Tube, Truth]:
    n, fps = draw(st.integers(2, 40)), draw(st.sampled_from([1.0, 5.0, 29.97]))
    frames = np.arange(n) / fps
    spans = []
    for _ in range(2):
        lo = draw(st.floats(0, float(frames[-1])))
        spans.append(Span(lo, lo + draw(st.floats(0.01, n / fps))))
    inside = frames[spans[0].contains(frames)]
    truth = Truth(
        spans[0], frames, inside, np.array([draw(boxes) for _ in inside], dtype=np.float64).reshape(-1, 4)
    )
    k = draw(st.integers(1, 6))
    times = np.linspace(spans[1].start_s, spans[1].end_s, k + 1)
    return Tube(spans[1], times, [draw(boxes) for _ in times]), truth


@settings(max_examples=150, deadline=None)
@given(cases())
def test_viou_is_the_frame_by_frame_sum(case: tuple[Tube, Truth]) -> None:
    tube, truth = case
    scores = score_tube(tube, truth)
    assert scores.viou == pytest.approx(plain_viou(tube, truth), abs=1e-9)
    assert truth.span is not None
    shared = max(0, min(tube.span.end_s, truth.span.end_s) - max(tube.span.start_s, truth.span.start_s))
    whole = tube.span.duration_s + truth.span.duration_s - shared
    assert scores.tiou == pytest.approx(shared / whole, abs=1e-9)
    assert 0 <= scores.viou <= 1 + 1e-9


def perfect() -> tuple[Tube, Truth]:
    frames = np.arange(50) / 10
    span = Span(1.0, 3.0)
    inside = frames[span.contains(frames)]
    rows = np.stack([inside / 10, inside / 10, inside / 10 + 0.2, inside / 10 + 0.3], axis=1)
    return Tube(span, inside, rows), Truth(span, frames, inside, rows)


def test_a_perfect_answer_scores_one_and_nothing_scores_zero() -> None:
    tube, truth = perfect()
    assert score_tube(tube, truth) == Scores(1.0, pytest.approx(1.0))
    assert siou(tube, truth) == pytest.approx(1.0)
    assert score_tube(None, truth) == Scores(0.0, 0.0)
    assert siou(None, truth) == 0.0
    assert score_tube(Tube(truth.span), truth) == Scores(1.0, 0.0)  # when, but not where


def test_truth_with_nothing_to_find_is_refused() -> None:
    tube, truth = perfect()
    with pytest.raises(ValueError, match="rejection"):
        score_tube(tube, Truth(None, truth.frame_times_s, np.empty(0), np.empty((0, 4))))


def test_paired_iou_of_nan_and_empty_boxes_is_zero() -> None:
    a = [[np.nan] * 4, [0.5, 0.5, 0.5, 0.5], [0, 0, 1, 1]]
    assert paired_iou(a, [[0, 0, 1, 1], [0.5, 0.5, 0.5, 0.5], [0, 0, 1, 1]]).tolist() == [0, 0, 1]


def test_bootstrap_interval_covers_and_shrinks() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for k in range(200):
        interval = bootstrap_mean(rng.normal(0.3, 1.0, 100), resamples=400, seed=k)
        hits += interval.low <= 0.3 <= interval.high
    assert 180 <= hits <= 199  # 95 % of 200 is 190
    wide, narrow = bootstrap_mean(rng.random(50)), bootstrap_mean(rng.random(5000))
    assert narrow.high - narrow.low < (wide.high - wide.low) / 5
    assert np.isnan(bootstrap_mean([]).mean)


def test_balanced_accuracy() -> None:
    interval = balanced_accuracy([True, True, False, False, True], [True, True, True, False, False])
    assert interval is not None and interval.n == 5
    assert interval.mean == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert 0 <= interval.low <= interval.mean <= interval.high <= 1
    assert balanced_accuracy([True], [True]) is None
    sure = balanced_accuracy([True] * 9 + [False], [True] * 9 + [False])
    assert sure is not None and (sure.low, sure.mean, sure.high) == (1, 1, 1)


def test_summary_counts_every_query() -> None:
    out = summarise(
        [Scores(1.0, 0.6), Scores(0.0, 0.0)], [True, False, True], [True, True, False], [0.5, 0.0]
    )
    assert out["m_tIoU"].mean == 0.5 and out["m_vIoU"].mean == pytest.approx(0.3)
    assert out["vIoU@0.5"].mean == 0.5 and out["vIoU@0.5"].n == 2
    assert out["sIoU"].mean == 0.25
    assert out["rejection_balanced_accuracy"].mean == pytest.approx((0.5 + 0.0) / 2)
