"""The one schema: what it refuses, how frames become seconds, how truth becomes tubes."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from tubelet.datasets.record import FrameRange, Record, Target, VideoRef, as_fps
from tubelet.errors import DataError
from tubelet.tube import Span


@pytest.mark.parametrize(
    ("given", "means"),
    [
        (29.97002997002997, Fraction(30000, 1001)),
        (29.97, Fraction(30000, 1001)),
        (23.98, Fraction(24000, 1001)),
        (23.976, Fraction(24000, 1001)),
        (59.94, Fraction(60000, 1001)),
        (30, Fraction(30)),
        (30.0, Fraction(30)),
        (25.0, Fraction(25)),
        (24, Fraction(24)),
        (12.5, Fraction(25, 2)),
        (29.95, Fraction(599, 20)),
        ("30000/1001", Fraction(30000, 1001)),
    ],
)
def test_a_rate_is_the_fraction_it_means(given: Any, means: Fraction) -> None:
    assert as_fps(given) == means


@pytest.mark.parametrize(
    "given", [0, -1, float("nan"), float("inf"), "x", "1e999999999", "1/0", 10**400, 1e7]
)
def test_a_rate_that_is_none(given: Any) -> None:
    with pytest.raises(DataError):
        as_fps(given)


@pytest.mark.parametrize(("begin", "end"), [(3, 3), (4, 3), (-1, 2), (0, 2**41), (0.0, 2), (True, 2)])
def test_a_frame_range_is_never_empty(begin: Any, end: Any) -> None:
    with pytest.raises(DataError):
        FrameRange(begin, end)
    assert len(FrameRange(3, 7)) == 4
    assert FrameRange(30, 60).span(Fraction(30)) == Span(1.0, 2.0)


@pytest.mark.parametrize(
    "bad",
    [
        {"boxes_xyxy": [[0, 0, 1, np.nan]]},
        {"boxes_xyxy": [[0.5, 0, 0.4, 1]]},
        {"boxes_xyxy": [[0, 0, 64, 48]]},
        {"boxes_xyxy": [[0, 0, 1]]},
        {"unit": "percent"},
        {"frame_index": [-1]},
        {"frame_index": [1.5]},
        {"frame_index": [1, 2]},
        {"frame_index": None},
    ],
)
def test_a_target_refuses(bad: dict[str, Any]) -> None:
    with pytest.raises(DataError):
        Target(**({"boxes_xyxy": [[0, 0, 1, 1]], "frame_index": [3]} | bad))


def test_pixels_without_a_size_say_so_and_convert_later() -> None:
    target = Target(np.array([[0, 0, 64, 500]]), unit="pixel", frame_index=np.array([2]))
    with pytest.raises(DataError, match="names no size"):
        target.fractions()
    assert target.fractions(640, 480).tolist() == [[0, 0, 0.1, 1.0]]
    assert not target.boxes_xyxy.flags.writeable


def record(**changes: Any) -> Record:
    video = changes.pop("video", VideoRef("v", ("v.mp4",), Fraction(10), 20, 640, 480, 2.0))
    base: dict[str, Any] = {
        "dataset": "d",
        "split": "s",
        "id": "1",
        "task": "stvg",
        "query": "q",
        "video": video,
        "spans": (Span(0.5, 0.8),),
        "frames": FrameRange(5, 8),
        "targets": (Target(np.full((3, 4), 0.5), frame_index=np.arange(5, 8)),),
    }
    return Record(**(base | changes))


@pytest.mark.parametrize(
    "bad",
    [
        {"task": "x"},
        {"id": ""},
        {"present": False},
        {"choices": ("a",), "answer_index": 1},
        {"spans_kind": "x"},
    ],
)
def test_a_record_refuses(bad: dict[str, Any]) -> None:
    with pytest.raises(DataError):
        record(**bad)


@pytest.mark.parametrize(
    "bad", [{"id": ""}, {"files": ("/x",)}, {"files": ("a/../../b",)}, {"fps": Fraction(0)}]
)
def test_a_video_reference_refuses(bad: dict[str, Any]) -> None:
    with pytest.raises(DataError):
        VideoRef(**({"id": "v"} | bad))


def test_tubes_go_by_the_annotated_rate_until_the_video_is_open() -> None:
    (tube,) = record().tubes()
    assert tube.span == Span(0.5, 0.8)
    assert tube.times_s.tolist() == pytest.approx([0.5, 0.6, 0.7])
    times = np.arange(20) / 8  # the file runs at 8 fps, whatever the annotation thinks
    (tube,) = record().tubes(times, duration_s=2.5)
    assert tube.span == Span(0.625, 1.0)
    assert tube.times_s.tolist() == pytest.approx([0.625, 0.75, 0.875])
    (tube,) = record(frames=FrameRange(18, 20), targets=(), spans=()).tubes(times, duration_s=2.6)
    assert tube.span == Span(2.25, 2.6)
    with pytest.raises(DataError, match="has 6 frames"):
        record().tubes(times[:6], past_end="raise")


def test_tubes_need_a_rate_and_a_size() -> None:
    bare = VideoRef("v")
    pixel = Target(np.array([[0, 0, 64, 48]] * 3), unit="pixel", frame_index=np.arange(5, 8))
    with pytest.raises(DataError, match="no frame rate"):
        record(video=bare, spans=()).tubes()
    with pytest.raises(DataError, match="no size"):
        record(video=bare, targets=(pixel,)).tubes(np.arange(20) / 10)
    (tube,) = record(video=bare, targets=(pixel,)).tubes(np.arange(20) / 10, None, 640, 480)
    assert tube.boxes_xyxy[0].tolist() == [0, 0, 0.1, 0.1]
    with pytest.raises(DataError, match="image"):
        record(video=VideoRef("v", kind="image")).tubes()


def test_several_windows_make_a_tube_each_and_targets_may_have_their_own() -> None:
    seconds = Target(np.full((3, 4), 0.5), times_s=np.array([1.0, 2.0, 5.0]))
    windows = record(spans=(Span(1, 3), Span(5, 6)), frames=None, targets=(seconds,)).tubes()
    assert [(tube.span, tube.times_s.tolist()) for tube in windows] == [
        (Span(1, 3), [1.0, 2.0]),
        (Span(5, 6), [5.0]),
    ]
    own = Target(np.full((2, 4), 0.5), frame_index=np.arange(6, 8), frames=FrameRange(6, 8))
    first, second = record(targets=(record().targets[0], own)).tubes()
    assert (first.span, second.span) == (Span(0.5, 0.8), Span(0.6, 0.8))


def test_a_target_without_boxes_and_without_moments_is_a_tube_without_boxes() -> None:
    empty = Target(np.empty((0, 4)))
    video = VideoRef("v", fps=Fraction(10))
    record = Record("d", "test", "1", "stvg", "x", video, spans=(Span(0.5, 1.0),), targets=(empty,))
    (tube,) = record.tubes()
    assert tube.span == Span(0.5, 1.0) and len(tube) == 0


def test_clipping_is_only_on_request() -> None:
    late = record(spans=(Span(1.5, 2.5), Span(2.1, 3.0)), frames=None, targets=())
    assert late.clipped().spans == (Span(1.5, 2.0), Span(2.1, 3.0))
    assert late.clipped().notes[-1].startswith("span-cut:")
    assert record().clipped() == record()


def test_labelled_and_json() -> None:
    assert record().labelled
    assert not record(spans=(), frames=None, targets=()).labelled
    assert record(spans=(), frames=None, targets=(), present=False).labelled
    data = json.loads(json.dumps(record(given_box=record().targets[0]).to_dict(), allow_nan=False))
    assert data["frames"] == [5, 8]
    assert data["video"]["fps"] == "10/1"
    assert data["given_box"]["frame_index"] == [5, 6, 7]


def test_a_tube_ends_with_its_video() -> None:
    """Files are often a frame or two shorter than their annotation says (HC-STVG's img_num)."""
    boxes = np.tile([0.1, 0.1, 0.5, 0.5], (4, 1))
    record = Record(
        "hcstvg-v1",
        "test",
        "a.mp4",
        "stvg",
        "the man",
        VideoRef("a.mp4", fps=Fraction(10)),
        spans=(Span(0.6, 1.0),),
        frames=FrameRange(6, 10),
        targets=(Target(boxes, frame_index=np.arange(6, 10)),),
    )
    times = np.arange(8) / 10
    (tube,) = record.tubes(times, 0.8)
    assert (tube.span, tube.times_s.tolist()) == (Span(0.6, 0.8), [0.6, 0.7])
    assert record.past_video(8) == (
        "span-past-video: the annotation speaks of frames up to 9, the video has 8 frames: cut at its end"
    )
    assert record.past_video(10) == ""
    assert record.tubes(np.arange(12) / 10)[0].span == Span(0.6, 1.0)
    with pytest.raises(DataError, match="speaks of frame 10, the video has 8 frames"):
        record.tubes(times, 0.8, past_end="raise")
    with pytest.raises(DataError, match="annotation speaks of frames 6 to 9, the video has 5 frames"):
        record.tubes(times[:5])
    # the given span of a question, and targets with times of their own
    asked = replace(record, spans=(), frames=None, given_frames=FrameRange(6, 10))
    assert asked.tubes(times, 0.8)[0].span == Span(0.6, 0.8)
    own = replace(record, targets=(replace(record.targets[0], frames=FrameRange(7, 10)),))
    (tube,) = own.tubes(times, 0.8)
    assert (tube.span, tube.times_s.tolist()) == (Span(0.7, 0.8), [0.7])
    # seconds stay as they are written: what is cut, is cut on request (`clipped`)
    spoken = replace(record, frames=None, targets=())
    assert spoken.tubes(times, 0.8)[0].span == Span(0.6, 1.0)
