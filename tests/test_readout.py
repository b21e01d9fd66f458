"""From frame probabilities and answers to spans and tubes."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tubelet.frames import FrameGrid
from tubelet.spacevllm.prompts import SpanAnswer
from tubelet.spacevllm.readout import FrameReading, best_window, expected_tiou, make_tube, read_span
from tubelet.tube import Span

probability = st.floats(0, 1, allow_nan=False)
weight = st.floats(0.05, 5)


def grid_of(times: list[float], duration: float) -> FrameGrid:
    index = np.arange(len(times))
    return FrameGrid(index, np.array(times), Fraction(len(times)), duration, 64, 48)


def reading_of(activity: list[float], seed: int = 0) -> FrameReading:
    rng = np.random.default_rng(seed)
    low, size = rng.uniform(0, 0.5, (len(activity), 2)), rng.uniform(0.1, 0.5, (len(activity), 2))
    return FrameReading(
        np.concatenate([low, low + size], axis=1),
        np.array(activity),
        rng.uniform(0, 1, len(activity)),
        presence=0.8,
    )


def brute_force(p: list[float], w: list[float]) -> tuple[float, dict[tuple[int, int], float]]:
    scores = {}
    for a in range(len(p)):
        for b in range(a, len(p)):
            inside = sum(p[i] * w[i] for i in range(a, b + 1))
            outside = sum(p[i] * w[i] for i in range(len(p)) if not a <= i <= b)
            scores[a, b] = inside / (sum(w[a : b + 1]) + outside)
    return max(scores.values()), scores


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(probability, weight), min_size=1, max_size=9))
def test_best_window_against_brute_force(frames: list[tuple[float, float]]) -> None:
    p, w = [f[0] for f in frames], [f[1] for f in frames]
    a, b, value = best_window(p, w)
    best, scores = brute_force(p, w)
    assert 0 <= a <= b < len(p)
    assert value == pytest.approx(best, abs=1e-9)
    assert scores[a, b] == pytest.approx(best, abs=1e-9)
    assert 0 <= value <= 1


def test_best_window_by_number() -> None:
    assert best_window([0, 1, 1, 0], [1, 1, 1, 1]) == (1, 2, 1.0)
    assert best_window([1.0], [2.0]) == (0, 0, 1.0)
    assert best_window([0.9, 0.1, 0.9], [1, 1, 1])[:2] == (0, 2)  # one gap is worth bridging
    assert best_window([0.9, 0.0, 0.0, 0.0, 0.0, 0.9, 0.9], [1] * 7)[:2] == (5, 6)  # a long one is not
    a, b, value = best_window([0.0, 0.0], [1, 1])
    assert (a, b) in ((0, 0), (0, 1), (1, 1)) and value == 0.0
    # with certain frames the estimate is the IoU itself
    assert best_window([1, 1, 0, 0], [3, 1, 1, 1])[2] == 1.0


@settings(max_examples=150, deadline=None)
@given(st.lists(probability, min_size=1, max_size=8), st.data())
def test_expected_tiou_of_whole_cells_is_the_windows_score(p: list[float], data: st.DataObject) -> None:
    edges = np.cumsum([0.0, *data.draw(st.lists(weight, min_size=len(p), max_size=len(p)))])
    _, scores = brute_force(p, np.diff(edges).tolist())
    for (a, b), score in scores.items():
        got = expected_tiou(Span(float(edges[a]), float(edges[b + 1])), p, edges)
        assert got == pytest.approx(min(1.0, score), abs=1e-9)


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 6), st.floats(0, 5), st.floats(0.05, 6), st.data())
def test_expected_tiou_of_certain_frames_is_the_tiou(
    n: int, start: float, length: float, data: st.DataObject
) -> None:
    """Where frames a..b are certain and no other is, the estimate is the tIoU with that run."""
    a = data.draw(st.integers(0, n - 1))
    b = data.draw(st.integers(a, n - 1))
    edges = np.arange(n + 1, dtype=np.float64)
    p = np.zeros(n)
    p[a : b + 1] = 1.0
    span = Span(start, start + length)
    assert expected_tiou(span, p, edges) == pytest.approx(span.iou(Span(float(a), float(b + 1))), abs=1e-9)


def test_readers() -> None:
    grid = grid_of([0.5, 1.5, 2.5, 3.5], 4.0)
    reading = reading_of([0.0, 1.0, 1.0, 0.0])
    active = Span(1.0, 3.0)
    near, far = SpanAnswer(span=Span(1.0, 3.5)), SpanAnswer(span=Span(3.0, 4.0))
    lost, absent = SpanAnswer(problem="no two times"), SpanAnswer(absent=True)
    assert read_span("activity", reading, near, grid) == (active, 1.0, None)
    assert read_span("text", reading, None, grid) == (active, 1.0, None)  # no text was written
    span, sure, problem = read_span("text", reading, near, grid)
    assert (span, problem) == (near.span, None) and sure == pytest.approx(2.0 / 2.5)
    assert read_span("text", reading, lost, grid) == (None, 0.0, "no two times")
    assert read_span("text", reading, absent, grid) == (None, 0.0, None)
    span, sure, problem = read_span("both", reading, near, grid)
    assert span == Span(1.0, 3.25) and problem is None and sure == pytest.approx(2.0 / 2.25)
    for other in (far, lost, absent):  # where they disagree, or there is no text, the frames decide
        assert read_span("both", reading, other, grid) == (active, 1.0, None)


@st.composite
def grids(draw: st.DrawFn) -> FrameGrid:
    steps = draw(st.lists(st.floats(0.04, 3), min_size=1, max_size=8))
    times = np.cumsum([draw(st.floats(0, 2)), *steps])
    return grid_of(times[:-1].tolist(), float(times[-1]))


@settings(max_examples=300, deadline=None)
@given(grids(), st.floats(0, 1), st.floats(0.0005, 1), st.booleans())
def test_make_tube_rules(grid: FrameGrid, start: float, length: float, extend: bool) -> None:
    """Any span inside the video gives a valid tube: times increase, lie in it, every frame inside is kept."""
    start_s = start * grid.duration_s * 0.999
    end_s = min(grid.duration_s, start_s + length * grid.duration_s)
    assume(end_s - start_s > 1e-4)
    span = Span(start_s, end_s)
    reading = reading_of([0.5] * len(grid))
    tube = make_tube(span, reading, grid, 0.7, "a label", extend)
    assert tube.span == span and tube.score == 0.7 and tube.label == "a label"
    assert len(tube) >= 1 and (np.diff(tube.times_s) > 0).all()
    assert tube.times_s[0] >= span.start_s and tube.times_s[-1] <= span.end_s
    inside = (grid.times_s >= span.start_s) & (grid.times_s <= span.end_s)
    assert set(grid.times_s[inside]) <= set(tube.times_s)
    at = np.searchsorted(tube.times_s, grid.times_s[inside])
    assert np.allclose(tube.boxes_xyxy[at], reading.boxes_xyxy[inside])
    assert tube.box_scores is not None and np.allclose(tube.box_scores[at], reading.quality[inside])
    if extend or not inside.any():  # the ends are in too, with the interpolated box
        for end in (span.start_s, span.end_s):
            assert np.abs(tube.times_s - end).min() <= 1e-6 + 1e-5 * end
            expected = [np.interp(end, grid.times_s, reading.boxes_xyxy[:, k]) for k in range(4)]
            nearest = int(np.abs(tube.times_s - end).argmin())
            assert np.allclose(tube.boxes_xyxy[nearest], expected, atol=1e-3)
    else:
        assert len(tube) == int(inside.sum())


def test_span_shorter_than_a_frame_step() -> None:
    """It lies between two samples: its boxes are the interpolated ends."""
    grid = grid_of([0.0, 1.0, 2.0], 3.0)
    boxes = np.array([[0.0, 0.0, 0.2, 0.2], [0.2, 0.2, 0.4, 0.4], [0.4, 0.4, 0.6, 0.6]])
    reading = FrameReading(boxes, np.ones(3), np.array([0.0, 0.5, 1.0]), 1.0)
    for extend in (True, False):
        tube = make_tube(Span(0.25, 0.5), reading, grid, 1.0, "x", extend)
        assert tube.times_s.tolist() == [0.25, 0.5]
        assert np.allclose(tube.boxes_xyxy, [[0.05, 0.05, 0.25, 0.25], [0.1, 0.1, 0.3, 0.3]])
        assert tube.box_scores is not None and np.allclose(tube.box_scores, [0.125, 0.25])
    last = make_tube(Span(2.5, 3.0), reading, grid, 1.0, "x")  # after the last sample: its box is held
    assert np.allclose(last.boxes_xyxy, [boxes[2], boxes[2]])


def test_ends_that_are_frames_are_not_doubled() -> None:
    grid = grid_of([0.0, 1.0, 2.0], 3.0)
    tube = make_tube(Span(0.0, 2.0), reading_of([1, 1, 1]), grid, 1.0, "x")
    assert tube.times_s.tolist() == [0.0, 1.0, 2.0]
    tube = make_tube(Span(1.0, 2.5), reading_of([1, 1, 1]), grid, 1.0, "x")
    assert tube.times_s.tolist() == [1.0, 2.0, 2.5]


def test_numbers_outside_the_unit_range_are_cut() -> None:
    grid = grid_of([0.0, 1.0], 2.0)
    reading = FrameReading(np.array([[-0.1, 0.0, 0.5, 1.2]] * 2), np.ones(2), np.array([-0.2, 1.5]), 1.0)
    tube = make_tube(Span(0.0, 2.0), reading, grid, 1.5, "x")
    assert tube.boxes_xyxy.min() == 0.0 and tube.boxes_xyxy.max() == 1.0 and tube.score == 1.0
    assert tube.box_scores is not None and tube.box_scores.tolist() == [0.0, 1.0, 1.0]
