"""`Span`, `Tube` and `Prediction`: every rule and what it says, interpolation, and JSON there and back."""

from __future__ import annotations

import copy
import json
import math
import pickle
import re
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tubelet.errors import DataError
from tubelet.frames import FrameGrid
from tubelet.tube import SCHEMA_VERSION, TASKS, Prediction, Span, Tube

quick = settings(deadline=None, max_examples=80)

BOX = [0.1, 0.2, 0.5, 0.6]
HOSTILE: list[Any] = [None, True, "1", "", [], {}, [0.0], float("nan"), float("inf"), -float("inf"), 1j, b"1"]

# microseconds are what JSON keeps; whole ones come back exactly
micros = st.integers(0, 3_600_000_000).map(lambda us: us / 1e6)
parts = st.integers(0, 1_000_000).map(lambda k: k / 1e6)
texts = st.text(max_size=12)


@st.composite
def spans(draw: st.DrawFn) -> Span:
    start, length = draw(st.integers(0, 10**9)), draw(st.integers(1, 10**8))
    return Span(start / 1e6, (start + length) / 1e6)


@st.composite
def boxes(draw: st.DrawFn) -> list[float]:
    x, y = sorted([draw(parts), draw(parts)]), sorted([draw(parts), draw(parts)])
    return [x[0], y[0], x[1], y[1]]


@st.composite
def tubes(draw: st.DrawFn) -> Tube:
    start, length = draw(st.integers(0, 10**8)), draw(st.integers(1, 10**8))
    ticks = sorted(draw(st.sets(st.integers(start, start + length), max_size=6)))
    some = draw(st.booleans())
    return Tube(
        Span(start / 1e6, (start + length) / 1e6),
        [t / 1e6 for t in ticks],
        [draw(boxes()) for _ in ticks],
        score=draw(st.none() | parts),
        box_scores=[draw(parts) for _ in ticks] if some else None,
        label=draw(st.none() | texts),
    )


@st.composite
def grids(draw: st.DrawFn) -> FrameGrid:
    index = sorted(draw(st.sets(st.integers(0, 10**6), min_size=1, max_size=5)))
    fps = Fraction(draw(st.integers(1, 120_000)), draw(st.integers(1, 1001)))
    ticks = sorted(draw(st.sets(st.integers(0, 10**8), min_size=len(index), max_size=len(index))))
    return FrameGrid(index, [t / 1e6 for t in ticks], fps, (ticks[-1] + 40_000) / 1e6, 640, 360)


@st.composite
def predictions(draw: st.DrawFn) -> Prediction:
    found = tuple(draw(st.lists(tubes(), max_size=3)))
    return Prediction(
        video=draw(texts),
        query=draw(texts),
        task=draw(st.sampled_from(TASKS)),
        tubes=found,
        text=draw(texts),
        confidence=draw(st.none() | parts),
        failure=None if found else draw(st.none() | texts),
        grid=draw(st.none() | grids()),
        timings_s=draw(st.dictionaries(texts, micros, max_size=3)),
        provenance=draw(
            st.dictionaries(texts, st.none() | texts | st.integers() | st.booleans(), max_size=3)
        ),
        notes=tuple(draw(st.lists(texts, max_size=3))),
    )


def tube(times: Any = (1.0, 2.0), rows: Any = None, **changes: Any) -> Tube:
    return Tube(Span(1.0, 3.0), times, [BOX] * len(times) if rows is None else rows, **changes)


# --- spans ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "end", "says"),
    [
        (-0.001, 1.0, "a span starts at or after 0 s, got start_s=-0.001"),
        (2.0, 2.0, "a span ends after it starts, got start_s=2, end_s=2"),
        (2.0, 1.0, "a span ends after it starts, got start_s=2, end_s=1"),
        (float("nan"), 1.0, "Span.start_s must be finite, got nan"),
        (0.0, float("inf"), "Span.end_s must be finite, got inf"),
        (True, 2.0, "Span.start_s must be a number, got True"),
        (0.0, "2", "Span.end_s must be a number, got '2'"),
        (0.0, None, "Span.end_s must be a number, got None"),
    ],
)
def test_span_rules_and_what_they_say(start: Any, end: Any, says: str) -> None:
    with pytest.raises(DataError) as caught:
        Span(start, end)
    assert str(caught.value) == says


def test_span_takes_whole_and_numpy_numbers_as_floats() -> None:
    span = Span(np.int64(1), np.float32(2.5))
    assert (span.start_s, span.end_s, span.duration_s) == (1.0, 2.5, 1.5)
    assert type(span.start_s) is float and type(span.end_s) is float


def test_span_is_half_open() -> None:
    span = Span(1.0, 2.0)
    assert span.contains(1.0) is True and span.contains(2.0) is False
    assert span.contains([0.9, 1.0, 1.5, 2.0]).tolist() == [False, True, True, False]


@quick
@given(spans(), spans())
def test_tiou_agrees_with_counting(a: Span, b: Span) -> None:
    """Restated on the elementary intervals between all four borders, in whole microseconds."""
    borders = sorted({round(v * 1e6) for s in (a, b) for v in (s.start_s, s.end_s)})
    shared = covered = 0
    for lo, hi in pairwise(borders):
        inside = [round(s.start_s * 1e6) <= lo and hi <= round(s.end_s * 1e6) for s in (a, b)]
        shared += (hi - lo) * all(inside)
        covered += (hi - lo) * any(inside)
    assert a.iou(b) == pytest.approx(shared / covered, abs=1e-6)
    assert a.iou(b) == pytest.approx(b.iou(a), abs=1e-12)
    assert a.iou(a) == pytest.approx(1.0)
    assert a.intersection_s(b) == pytest.approx(shared / 1e6, abs=1e-6)


@quick
@given(spans(), spans())
def test_clip_is_the_intersection(a: Span, b: Span) -> None:
    cut = a.clip(b.start_s, b.end_s)
    if cut is None:
        assert a.intersection_s(b) == 0.0
    else:
        assert cut.duration_s == a.intersection_s(b)
        assert a.start_s <= cut.start_s < cut.end_s <= a.end_s


@quick
@given(spans())
def test_span_json_there_and_back(span: Span) -> None:
    assert Span.from_dict(json.loads(json.dumps(span.to_dict()))) == span


# --- tubes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: tube([1.0, 2.0], [BOX]), "one box per time"),
        (
            lambda: tube([1.0], [[0.1, 0.2, 0.3]]),
            r"times_s \(N,\) and boxes_xyxy \(N, 4\), got \(1,\) and \(1, 3\)",
        ),
        (lambda: tube([[1.0]], [BOX]), "one box per time"),
        (lambda: tube([2.0, 1.0]), "must increase strictly"),
        (lambda: tube([1.0, 1.0]), "must increase strictly"),
        (lambda: tube([0.9, 2.0]), "must lie in the span 1-3 s, got 0.9-2 s"),
        (lambda: tube([1.0, 3.1]), "must lie in the span 1-3 s, got 1-3.1 s"),
        (lambda: tube([1.0], [[10, 20, 300, 200]]), r"fractions .* 10 to 300 \(pixels\? divide by width"),
        (lambda: tube([1.0], [[-0.1, 0, 1, 1]]), "fractions of the frame"),
        (lambda: tube([1.0], [[0.5, 0.2, 0.4, 0.6]]), r"x0 <= x1 and y0 <= y1 \(xywh given\?\)"),
        (lambda: tube([1.0], [[0.5, 0.7, 0.6, 0.6]]), "x0 <= x1 and y0 <= y1"),
        (lambda: tube([1.0], [[0.1, 0.2, float("nan"), 0.4]]), "Tube.boxes_xyxy must be finite"),
        (lambda: tube([float("inf")], [BOX]), "Tube.times_s must be finite"),
        (lambda: tube(["soon"], [BOX]), "Tube.times_s must be an array of numbers, got"),
        (lambda: tube([1.0, 2.0], [BOX, [0.1]]), "Tube.boxes_xyxy must be an array of numbers"),
        (lambda: tube(score=1.2), r"Tube.score must be in \[0, 1\], got 1.2"),
        (lambda: tube(score="0.5"), "Tube.score must be a number, got '0.5'"),
        (lambda: tube(box_scores=[0.5]), r"Tube.box_scores must be \(N,\), one value in \[0, 1\] per box"),
        (lambda: tube(box_scores=[0.5, -0.1]), "Tube.box_scores"),
        (lambda: tube(box_scores=[0.5, 1.1]), "Tube.box_scores"),
        (lambda: tube(box_scores=0.5), "Tube.box_scores"),
    ],
)
def test_tube_rules_and_what_they_say(make: Any, says: str) -> None:
    with pytest.raises(DataError, match=says):
        make()


def test_the_end_of_the_span_and_rounding_noise_are_allowed() -> None:
    noisy = Tube(Span(1.0, 3.0), [1.0 - 5e-7, 3.0], [[-5e-7, 0, 1, 1 + 5e-7], [0.2, 0.2, 0.2, 0.2]])
    assert noisy.boxes_xyxy.min() == 0.0 and noisy.boxes_xyxy.max() == 1.0


def test_a_tube_without_boxes_says_only_when() -> None:
    for empty in (Tube(Span(1, 2)), Tube(Span(1, 2), [], []), Tube(Span(1, 2), [], np.empty((0, 4)))):
        assert len(empty) == 0 and empty.boxes_xyxy.shape == (0, 4)
        assert np.isnan(empty.boxes_at([1.5])).all() and empty.box_at(1.5) is None
        assert Tube.from_dict(empty.to_dict()) == empty


def linear(times: list[float], values: list[float], at: float) -> float:
    """Linear interpolation with held ends, written out."""
    if at <= times[0]:
        return values[0]
    for (t0, v0), (t1, v1) in pairwise(zip(times, values, strict=True)):
        if at <= t1:
            return v0 + (v1 - v0) * (at - t0) / (t1 - t0)
    return values[-1]


@quick
@given(tubes(), st.lists(st.floats(0, 1), min_size=1, max_size=5))
def test_boxes_between_samples_are_linear_and_held_at_the_ends(a: Tube, where: list[float]) -> None:
    assume(len(a))
    at = [min(a.span.start_s + w * a.span.duration_s, a.span.end_s) for w in where]
    got = a.boxes_at(at)
    for row, t in zip(got, at, strict=True):
        for k in range(4):
            want = linear(a.times_s.tolist(), a.boxes_xyxy[:, k].tolist(), t)
            assert row[k] == pytest.approx(want, abs=1e-9)
    order = np.argsort(at)
    assert np.array_equal(a.boxes_at(np.array(at)[order]), got[order])


@quick
@given(tubes(), st.floats(2e-6, 100))
def test_a_tube_says_nothing_outside_its_span(a: Tube, away: float) -> None:
    outside = [a.span.start_s - away, a.span.end_s + away]
    assert np.isnan(a.boxes_at(outside)).all()
    assert a.box_at(outside[0]) is None and a.box_at(outside[1]) is None
    for t, box in zip(a.times_s, a.boxes_xyxy, strict=True):
        assert np.array_equal(a.box_at(t), box)


def test_boxes_stay_ordered_between_samples() -> None:
    moving = tube([1.0, 3.0], [[0.0, 0.0, 0.1, 0.1], [0.8, 0.9, 1.0, 1.0]])
    at = moving.boxes_at(np.linspace(1, 3, 50))
    assert (at[:, 2:] >= at[:, :2]).all() and moving.boxes_at(2.0).shape == (1, 4)


@quick
@given(tubes(), st.integers(1, 4000), st.integers(1, 4000))
def test_pixels_are_fractions_times_the_size(a: Tube, width: int, height: int) -> None:
    px = a.boxes_px(width, height)
    assert px.shape == (len(a), 4)
    for got, box in zip(px, a.boxes_xyxy, strict=True):
        assert got.tolist() == pytest.approx(
            [box[0] * width, box[1] * height, box[2] * width, box[3] * height]
        )


def test_tubes_cannot_be_changed() -> None:
    times, rows, scores = np.array([1.0, 2.0]), np.array([BOX, BOX]), np.array([0.5, 0.5])
    made = Tube(Span(1, 3), times, rows, box_scores=scores)
    times[0], rows[0, 0], scores[0] = 2.5, 0.9, 0.9  # what was given stays the caller's own
    assert made.times_s[0] == 1.0 and made.boxes_xyxy[0, 0] == 0.1
    assert made.box_scores is not None and made.box_scores[0] == 0.5
    for array in (made.times_s, made.boxes_xyxy, made.box_scores):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
    with pytest.raises(AttributeError):
        made.score = 0.5  # type: ignore[misc]


@quick
@given(tubes())
def test_equal_tubes_have_equal_hashes(a: Tube) -> None:
    b = copy.deepcopy(a)
    assert a == b and hash(a) == hash(b) and len({a, b}) == 1
    assert pickle.loads(pickle.dumps(a)) == a  # noqa: S301


def test_tubes_differ_in_every_field() -> None:
    one = tube(score=0.5, box_scores=[0.5, 0.5], label="a")
    others = [
        tube([1.0, 2.5], score=0.5, box_scores=[0.5, 0.5], label="a"),
        tube(rows=[BOX, [0, 0, 1, 1]], score=0.5, box_scores=[0.5, 0.5], label="a"),
        tube(score=0.6, box_scores=[0.5, 0.5], label="a"),
        tube(score=0.5, box_scores=[0.5, 0.6], label="a"),
        tube(score=0.5, label="a"),
        tube(score=0.5, box_scores=[0.5, 0.5], label="b"),
        Tube(Span(1, 4), [1.0, 2.0], [BOX, BOX], 0.5, [0.5, 0.5], "a"),
    ]
    assert all(one != other and other != one for other in others)
    assert one != "a tube"


@quick
@given(tubes())
def test_tube_json_there_and_back(a: Tube) -> None:
    assert Tube.from_dict(json.loads(json.dumps(a.to_dict()))) == a


@quick
@given(st.floats(0, 1e4), st.floats(1e-3, 1e3), st.lists(st.floats(0, 1), min_size=4, max_size=4))
def test_json_keeps_any_number_to_a_microsecond(start: float, length: float, box: list[float]) -> None:
    assume((start * 1e6) % 1 != 0.5)
    x0, x1 = sorted(box[:2])
    y0, y1 = sorted(box[2:])
    middle = start + length / 2
    before = Tube(Span(start, start + length), [middle], [[x0, y0, x1, y1]], score=box[0])
    after = Tube.from_dict(json.loads(json.dumps(before.to_dict())))
    assert np.abs(after.boxes_xyxy - before.boxes_xyxy).max() <= 0.51e-6
    assert abs(after.span.start_s - start) <= 0.51e-6 and abs(after.times_s[0] - middle) <= 0.51e-6
    assert Tube.from_dict(after.to_dict()) == after  # nothing more is lost the second time


def test_a_tube_that_starts_on_half_a_microsecond_comes_back() -> None:
    start = 10.3784925
    made = Tube(Span(start, start + 1), [start, start + 1], [BOX, BOX])
    assert len(Tube.from_dict(made.to_dict())) == 2


@pytest.mark.parametrize("key", ["span", "times_s", "boxes_xyxy"])
def test_a_tube_record_that_lacks_a_field_names_it(key: str) -> None:
    data = tube().to_dict()
    del data[key]
    with pytest.raises(DataError, match=f"a tube needs {key}; it has "):
        Tube.from_dict(data)


# --- predictions ---------------------------------------------------------------------------------


@quick
@given(predictions())
def test_prediction_json_there_and_back(p: Prediction) -> None:
    for indent in (None, 2):
        back = Prediction.from_json(p.to_json(indent))
        assert back == p
    assert back.to_json() == p.to_json()
    data = json.loads(p.to_json())
    assert data["schema"] == SCHEMA_VERSION and data["found"] is p.found
    assert p.tube == (p.tubes[0] if p.tubes else None)


@quick
@given(predictions(), st.data())
def test_truncated_json_is_an_error_and_never_half_a_prediction(p: Prediction, data: st.DataObject) -> None:
    text = p.to_json()
    cut = data.draw(st.integers(0, len(text) - 1))
    with pytest.raises(DataError, match=r"not a JSON prediction: .*line 1 column"):
        Prediction.from_json(text[:cut])


@pytest.mark.parametrize("version", [0, SCHEMA_VERSION + 1, "1", None, [1]])
def test_another_schema_is_refused(version: Any) -> None:
    data = Prediction("v.mp4", "q", "stvg").to_dict() | {"schema": version}
    with pytest.raises(DataError) as caught:
        Prediction.from_dict(data)
    assert f"schema {version!r}" in str(caught.value) and f"reads {SCHEMA_VERSION}" in str(caught.value)


@pytest.mark.parametrize("key", ["schema", "video", "query", "task", "tubes"])
def test_a_prediction_record_that_lacks_a_field_names_it(key: str) -> None:
    data = Prediction("v.mp4", "q", "stvg").to_dict()
    del data[key]
    with pytest.raises(DataError, match=f"a prediction needs {key}; it has "):
        Prediction.from_dict(data)


def test_fields_that_may_be_left_out_have_defaults() -> None:
    least = {"schema": SCHEMA_VERSION, "video": "v.mp4", "query": "q", "task": "stvg", "tubes": []}
    assert Prediction.from_dict(least) == Prediction("v.mp4", "q", "stvg")
    assert Prediction.from_dict(least | {"a_field_of_tomorrow": 1}) == Prediction("v.mp4", "q", "stvg")


@pytest.mark.parametrize("text", ["[]", "3", "null", '"x"', "true"])
def test_json_that_is_no_object_is_refused(text: str) -> None:
    with pytest.raises(DataError, match="a prediction is a JSON object, got"):
        Prediction.from_json(text)


def test_prediction_rules() -> None:
    with pytest.raises(DataError, match=r"unknown task 'find'; tasks are stvg, svg"):
        Prediction("v.mp4", "q", "find")
    with pytest.raises(DataError, match="a failed prediction has no tubes"):
        Prediction("v.mp4", "q", "stvg", (tube(),), failure="out of memory")
    with pytest.raises(DataError, match=r"Prediction.confidence must be in \[0, 1\], got 2"):
        Prediction("v.mp4", "q", "stvg", confidence=2)
    absent = Prediction("v.mp4", "q", "stvg")
    assert not absent.found and absent.tube is None
    two = Prediction("v.mp4", "q", "stvg", [tube(score=0.9), tube()])  # type: ignore[arg-type]
    assert two.found and two.tube is two.tubes[0] and isinstance(two.tubes, tuple)


@pytest.mark.parametrize("value", HOSTILE, ids=repr)
@pytest.mark.parametrize("key", ["span", "times_s", "boxes_xyxy"])
def test_a_hostile_value_in_a_tube_is_a_data_error(key: str, value: Any) -> None:
    data = tube([1.0]).to_dict() | {key: value}
    if key != "span" and isinstance(value, list | dict) and not value:
        data |= {"times_s": [], "boxes_xyxy": []} | ({key: value} if value == {} else {})
        if value == []:
            assert len(Tube.from_dict(data)) == 0  # a tube without boxes
            return
    with pytest.raises(DataError):
        Tube.from_dict(data)


@pytest.mark.parametrize("value", [v for v in HOSTILE if v is not None], ids=repr)
@pytest.mark.parametrize("key", ["score", "confidence"])
def test_a_hostile_score_is_a_data_error(key: str, value: Any) -> None:
    with pytest.raises(DataError):
        if key == "score":
            Tube.from_dict(tube().to_dict() | {key: value})
        else:
            Prediction.from_dict(Prediction("v", "q", "stvg").to_dict() | {key: value})


@pytest.mark.parametrize(
    "changes",
    [
        {"tubes": 5},
        {"tubes": None},
        {"notes": 5},
        {"timings_s": 5},
        {"timings_s": {"decode": "fast"}},
        {"provenance": 5},
        {"confidence": 10**400},
        {"query": 5},
        {"text": None},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_prediction_record_of_wrong_types_is_a_data_error(changes: dict[str, Any]) -> None:
    data = Prediction("v", "q", "stvg").to_dict() | changes
    with pytest.raises(DataError):
        Prediction.from_dict(data)


def test_numbers_beyond_floats_are_data_errors() -> None:
    huge = 10**400
    for make in (lambda: Span(0, huge), lambda: tube([huge], [BOX]), lambda: tube(score=huge)):
        with pytest.raises(DataError):
            make()


def test_json_nested_beyond_reason_is_a_data_error() -> None:
    with pytest.raises(DataError):
        Prediction.from_json("[" * 200_000)


def test_times_in_json_have_at_most_six_decimals() -> None:
    p = Prediction("v", "q", "stvg", (Tube(Span(1 / 3, 2 / 3), [math.pi / 9], [[1 / 7, 0, 1, 1]]),))
    text = p.to_json()
    assert "0.333333," in text and "0.666667}" in text and "0.142857," in text and "0.349066]" in text


def test_the_example_in_the_docs_is_a_prediction_and_names_every_field() -> None:
    text = (Path(__file__).parents[1] / "docs" / "json.md").read_text(encoding="utf-8")
    example = re.findall(r"```json\n(.*?)```", text, re.DOTALL)[0]
    p = Prediction.from_json(example)
    assert p.found and p.grid is not None and p.to_dict() == json.loads(example)
    full = Tube(Span(0, 1), [0.5], [BOX], 0.5, [0.5], "a")
    for key in (*p.to_dict(), *full.to_dict(), *full.span.to_dict(), *p.grid.to_dict()):
        assert f"| `{key}`" in text or f", `{key}`" in text, f"docs/json.md does not describe {key}"
