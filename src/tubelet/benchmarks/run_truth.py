"""What is true of a record, on the frames of the video as it was opened: `VideoFacts` and `truths_of`.

Native frame times decide what is scored, so a run keeps them: as rate and count where frame k is shown at k / fps
(within a microsecond), else as the list. A video that could not be opened has no facts; its questions are failures,
score 0 whatever the truth, and get a stand-in from the annotation alone.

Where a question is about a segment of its video (VidSTG, ST-Align, TVGBench), only the frames of that segment exist
for the protocols that sample frames.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from tubelet.datasets.record import Record, VideoRef
from tubelet.errors import DataError
from tubelet.metrics.truth import Truth
from tubelet.tube import Span, Tube
from tubelet.video import Video

FloatArray = npt.NDArray[np.float64]
_STAND_IN_FPS = 25.0  # where nothing at all is known of a video that was not opened
_MOST_STAND_IN = 1 << 22  # frames: two days at 25 per second
IMAGE_SPAN = Span(0.0, 0.04)  # a still image lasts 1/25 s (tubelet.video.probe)


def video_key(video: VideoRef) -> str:
    """What names a video in a run: where it usually lies. Ids alone are not unique (MVBench has two 'video_1.mp4')."""
    return video.files[0] if video.files else video.id


@dataclass(frozen=True, slots=True, eq=False)
class VideoFacts:
    """What scoring needs to know of an opened video. id: its `video_key`; file: where it was, below the data folder.

    times_s (N,): when each native frame is shown.
    """

    id: str
    file: str
    times_s: FloatArray
    fps: Fraction
    duration_s: float
    width: int
    height: int
    is_image: bool = False

    @classmethod
    def of(cls, name: str, file: str, video: Video) -> VideoFacts:
        """`name`: the `video_key`; `file`: its path below the data folder."""
        return cls(
            name,
            file,
            video.times_s,
            video.fps,
            video.duration_s,
            video.width,
            video.height,
            video.is_image,
        )

    def to_dict(self) -> dict[str, Any]:
        n = len(self.times_s)
        on_grid = np.abs(self.times_s - np.arange(n) / float(self.fps)).max() < 1e-6
        return {
            "id": self.id,
            "file": self.file,
            "fps": f"{self.fps.numerator}/{self.fps.denominator}",
            "n_frames": n,
            "times_s": None if on_grid else np.round(self.times_s, 6).tolist(),
            "duration_s": round(self.duration_s, 6),
            "width": self.width,
            "height": self.height,
            "is_image": self.is_image,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> VideoFacts:
        try:
            fps, n = Fraction(data["fps"]), int(data["n_frames"])
            if not 1 <= n < 2**31 or fps <= 0:
                raise DataError(f"a video has frames and a rate, got {n} at {fps}")
            width, height, duration = int(data["width"]), int(data["height"]), float(data["duration_s"])
            if width <= 0 or height <= 0 or not 0 < duration < 1e9:
                raise DataError(f"a video has a size and a duration, got {width} x {height}, {duration} s")
            listed = data.get("times_s")
            if listed is None and n > 2 * duration * fps + 100:  # before memory is taken for all of them
                raise DataError(f"{n} frames at {float(fps):g} per second do not fit into {duration:g} s")
            times = np.arange(n) / float(fps) if listed is None else np.asarray(listed, dtype=np.float64)
            if times.shape != (n,) or not np.isfinite(times).all() or (np.diff(times) <= 0).any():
                raise DataError(f"times_s of a video are {n} increasing seconds")
            name, file = data["id"], data["file"]
            if not isinstance(name, str) or not isinstance(file, str):
                raise DataError("id and file of a video are text")
            return cls(name, file, times, fps, duration, width, height, bool(data.get("is_image", False)))
        except (KeyError, TypeError, ValueError, OverflowError, ZeroDivisionError) as error:
            raise DataError(f"not the facts of a video: {error!r:.100}") from error


def truths_of(record: Record, facts: VideoFacts | None) -> tuple[list[Truth], str]:
    """The truths of one question, one per target, and a note ("" when all is as it should be).

    One with span None where the sentence is true of nothing. Several true windows of one target (VUE-STG) become
    the span from the first to the last of them. A truth that ends after the file does is cut there, and the note says
    so; where nothing of it is in the file, its seconds are frame / rate. DataError where the record has no truth
    (hidden labels).
    """
    times = frame_times(record, facts)
    if not record.present:
        return [Truth(None, times, np.empty(0), np.empty((0, 4)))], ""
    if record.video.kind == "image":
        return [Truth(IMAGE_SPAN, np.zeros(1), np.zeros(1), image_box(record, facts)[None])], ""
    note = ""
    if facts is None:
        tubes = _stand_in(record)
    else:
        try:
            tubes = record.tubes(facts.times_s, facts.duration_s, facts.width, facts.height)
            note = record.past_video(len(facts.times_s))
        except DataError as error:
            note = f"the annotation does not fit the video: {error}"
            stated = replace(record, video=replace(record.video, fps=record.video.fps or facts.fps))
            tubes = stated.tubes(None, None, facts.width, facts.height)
    if not tubes:
        raise DataError(f"{record.id} of {record.dataset} {record.split} has no truth: its labels are hidden")
    per_target = len(tubes) // max(1, len(record.targets))
    if per_target > 1 and len(tubes) == per_target * max(1, len(record.targets)):
        note = note or f"{per_target} true windows are scored as the span from the first to the last"
        tubes = tuple(_hull(tubes[k : k + per_target]) for k in range(0, len(tubes), per_target))
    return [Truth(tube.span, times, tube.times_s, tube.boxes_xyxy) for tube in tubes], note


def _hull(windows: tuple[Tube, ...]) -> Tube:
    """One tube over all windows, with the boxes that are in them."""
    order = sorted(windows, key=lambda tube: tube.span.start_s)
    span = Span(order[0].span.start_s, max(tube.span.end_s for tube in order))
    times = np.concatenate([tube.times_s for tube in order])
    boxes = np.concatenate([tube.boxes_xyxy for tube in order])
    times, first = np.unique(times, return_index=True)
    return Tube(span, times, boxes[first])


def frame_times(record: Record, facts: VideoFacts | None) -> FloatArray:
    """(N,) times of the native frames that the question is about: those of its segment."""
    if facts is not None:
        times = facts.times_s
    else:
        fps = float(record.video.fps or _STAND_IN_FPS)
        end_s = max((span.end_s for span in record.spans), default=1.0)
        length = min((record.video.duration_s or end_s) * fps, _MOST_STAND_IN)
        count = record.video.frame_count or int(np.ceil(length))
        if record.video.segment is not None:
            count = max(count, record.video.segment.end)
        # its question scores 0 whatever the frames are: an absurd length is not worth the memory
        times = np.arange(min(max(1, count), _MOST_STAND_IN)) / fps
    if record.video.segment is not None:
        kept = times[record.video.segment.begin : record.video.segment.end]
    elif record.video.segment_s is not None:
        kept = times[record.video.segment_s.contains(times)]
    else:
        return times
    return kept if len(kept) else times


def image_box(record: Record, facts: VideoFacts | None) -> FloatArray:
    """(4,) the true box of a referring expression, as fractions of the image."""
    if not record.targets or not len(record.targets[0]):
        raise DataError(f"{record.id} of {record.dataset} {record.split} has no box")
    width = record.video.width or (facts.width if facts is not None else None)
    height = record.video.height or (facts.height if facts is not None else None)
    if record.targets[0].unit == "pixel" and (width is None or height is None):
        return np.array([0.0, 0.0, 1.0, 1.0])  # an image that was not opened: its question is a failure
    boxes: FloatArray = record.targets[0].fractions(width, height)[0]
    return boxes


def _stand_in(record: Record) -> tuple[Tube, ...]:
    """Tubes of a video that was not opened: spans as the annotation says them, else as if at 25 fps."""
    if record.spans:
        spans = list(record.spans)
    else:
        frames = record.frames or record.given_frames
        if frames is None:
            return ()
        spans = [frames.span(Fraction(record.video.fps or int(_STAND_IN_FPS)))]
    whole = np.array([[0.0, 0.0, 1.0, 1.0]])
    if not record.targets:
        return tuple(Tube(span) for span in spans)
    return tuple(Tube(span, np.array([span.start_s]), whole) for _ in record.targets for span in spans)
