"""`Record`: one question of any dataset, in one schema; `VideoRef`, `FrameRange` and `Target` are its parts.

Contract. Whatever the source says (1-based, inclusive ends, xywh, pixels, wrong seconds), a record says:
frames are native, 0-based, ranges half-open [begin, end); time is seconds from the first displayed frame of the
*whole* file (not of the used segment); boxes are xyxy, fractions of the displayed frame. Where a source gives pixels
but no size, `Target.unit` is "pixel" and `Target.fractions(width, height)` converts once the video is open. What a
reader repaired, or finds suspicious, is in `Record.notes`, each "code: sentence" (codes are counted by the check).

A record is made of facts of its annotation file. It does not know whether the video exists or what is in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tubelet.datasets.clock import MAX_FRAME, Clock, FloatArray, FrameRange, IntArray, as_fps
from tubelet.datasets.fields import is_text
from tubelet.errors import DataError
from tubelet.tube import TASKS, Span, Tube

__all__ = ["FloatArray", "FrameRange", "IntArray", "Record", "Target", "Unit", "VideoRef", "as_fps"]

Unit = Literal["fraction", "pixel"]


@dataclass(frozen=True, slots=True)
class VideoRef:
    """Which video (or image) a record speaks of, as far as the annotation says; None where it does not.

    id: the dataset's own id. files: relative paths, POSIX style, where the file usually lies under the data folder,
    best first. segment / segment_s: the part that is given to the model, in the frames / seconds of the whole file.
    """

    id: str
    files: tuple[str, ...] = ()
    fps: Fraction | None = None
    frame_count: int | None = None
    width: int | None = None
    height: int | None = None
    duration_s: float | None = None
    segment: FrameRange | None = None
    segment_s: Span | None = None
    kind: Literal["video", "image"] = "video"

    def __post_init__(self) -> None:
        if not self.id or not is_text(self.id):
            raise DataError("a video reference needs the dataset's id of the video")
        for name in self.files:
            if (
                PurePosixPath(name).is_absolute()
                or ".." in PurePosixPath(name).parts
                or "\0" in name
                or not is_text(name)
            ):
                raise DataError(f"a video path lies inside the data folder, got {name!r:.80}")
        for what, value in (
            ("fps", self.fps),
            ("frame_count", self.frame_count),
            ("width", self.width),
            ("height", self.height),
            ("duration_s", self.duration_s),
        ):
            if value is not None and not 0 < value < MAX_FRAME:
                raise DataError(f"{what} of a video is above 0 and below 2**40, got {value!r:.40}")

    def find(self, folder: Path | str) -> Path | None:
        """The first of `files` that exists under `folder` (see `media.MediaIndex` for other layouts)."""
        for name in self.files:
            path = Path(folder) / name
            try:
                if path.is_file():
                    return path
            except OSError:  # a name too long for the disk is a name that is not there
                continue
        return None


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """Boxes of one thing: row k is at `frame_index[k]` and / or `times_s[k]`.

    Args:
        boxes_xyxy: (N, 4) edges x0 <= x1, y0 <= y1, in `unit`. Fractions lie in [0, 1].
        unit: "fraction" of the displayed frame, or "pixel" of it where the source names no size.
        frame_index: (N,) 0-based native frames of the whole file, strictly increasing, or None.
        times_s: (N,) seconds, strictly increasing, where the source speaks time instead of frames, or None.
        id, name: the source's id and category of this thing.
        frames, span: when this target is true, where targets of one record differ (else None: the record's).
    """

    boxes_xyxy: FloatArray
    unit: Unit = "fraction"
    frame_index: IntArray | None = None
    times_s: FloatArray | None = None
    id: str = ""
    name: str = ""
    frames: FrameRange | None = None
    span: Span | None = None

    def __post_init__(self) -> None:
        boxes = np.array(self.boxes_xyxy, dtype=np.float64)
        boxes = boxes.reshape(0, 4) if boxes.size == 0 else boxes
        if boxes.ndim != 2 or boxes.shape[1] != 4 or not np.isfinite(boxes).all():
            raise DataError(f"boxes are finite (N, 4), got shape {boxes.shape}")
        if self.unit not in ("fraction", "pixel"):
            raise DataError(f"boxes are in fraction or pixel, got {self.unit!r}")
        if (boxes[:, 2:] < boxes[:, :2]).any():
            raise DataError("boxes are x0, y0, x1, y1 with x0 <= x1 and y0 <= y1 (xywh given?)")
        if self.unit == "fraction" and len(boxes) and (boxes.min() < 0 or boxes.max() > 1):
            raise DataError(f"fractions lie in [0, 1], got {boxes.min():g} to {boxes.max():g} (pixels?)")
        object.__setattr__(self, "boxes_xyxy", _readonly(boxes))
        for name, kind in (("frame_index", np.int64), ("times_s", np.float64)):
            given = getattr(self, name)
            if given is None:
                continue
            array = np.asarray(given)
            if array.size and name == "frame_index" and array.dtype.kind not in "iu":
                raise DataError(f"Target.frame_index are whole numbers, got {array.dtype}")
            array = np.array(array, dtype=kind)
            if array.shape != (len(boxes),) or not np.isfinite(array).all():
                raise DataError(f"one {name} per box: expected ({len(boxes)},), got {array.shape}")
            if len(array) and (array[0] < 0 or (np.diff(array) <= 0).any()):
                raise DataError(f"Target.{name} start at or after 0 and increase strictly")
            object.__setattr__(self, name, _readonly(array))
        if len(boxes) and self.frame_index is None and self.times_s is None:
            raise DataError("a box belongs to a moment: give frame_index or times_s")

    def __len__(self) -> int:
        return len(self.boxes_xyxy)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Target) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]

    def fractions(self, width: int | None = None, height: int | None = None) -> FloatArray:
        """(N, 4) boxes as fractions; pixels are divided by the displayed size and clipped to the frame.

        DataError when the boxes are pixels and no size is given.
        """
        if self.unit == "fraction":
            return self.boxes_xyxy
        if not width or not height:
            raise DataError("these boxes are in pixels and the source names no size: give width and height")
        scale = np.array([width, height, width, height], dtype=np.float64)
        return np.clip(self.boxes_xyxy / scale, 0.0, 1.0)

    def to_dict(self) -> dict[str, Any]:
        return {
            "boxes_xyxy": self.boxes_xyxy.tolist(),
            "unit": self.unit,
            "frame_index": None if self.frame_index is None else self.frame_index.tolist(),
            "times_s": None if self.times_s is None else self.times_s.tolist(),
            "id": self.id,
            "name": self.name,
            "frames": None if self.frames is None else [self.frames.begin, self.frames.end],
            "span": _span_dict(self.span),
        }


@dataclass(frozen=True, slots=True)
class Record:
    """One question and its truth.

    Args:
        dataset, split, id: where it is from; `id` is unique in the split.
        task: one of `tubelet.tube.TASKS`. query: the sentence or question, stripped.
        video: which video. present: False when the sentence is true of nothing in it.
        spans: true windows in seconds of the whole file: usually one; several in QVHighlights; one per annotator
            where `spans_kind` is "votes" (DiDeMo). Empty where labels are hidden or the task has none.
        frames: native frames of the (single) span where the source speaks frames; the truth from which the
            seconds were computed.
        targets: boxes; several where the sentence means several things.
        choices, answer, answer_index: multiple choice and text answers (`answer` is the text, index 0-based).
        given_span, given_frames, given_box: what the question hands over (svg: the span; elc, reg: a box).
        source: ids and indices in the source files. tags: for breakdowns (question type, domain, ...).
        extra: other truths, as JSON (saliency scores, ...). notes: "code: sentence" of repairs and suspicions.
    """

    dataset: str
    split: str
    id: str
    task: str
    query: str
    video: VideoRef
    spans: tuple[Span, ...] = ()
    frames: FrameRange | None = None
    targets: tuple[Target, ...] = ()
    present: bool = True
    choices: tuple[str, ...] = ()
    answer: str = ""
    answer_index: int | None = None
    given_span: Span | None = None
    given_frames: FrameRange | None = None
    given_box: Target | None = None
    spans_kind: Literal["windows", "votes"] = "windows"
    source: Mapping[str, Any] = field(default_factory=dict)
    tags: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise DataError(f"unknown task {self.task!r}; tasks are {', '.join(TASKS)}")
        if not self.id or not is_text(self.id):
            raise DataError("a record needs an id")
        if self.answer_index is not None and not 0 <= self.answer_index < len(self.choices):
            raise DataError(f"answer {self.answer_index} of {len(self.choices)} choices")
        if not self.present and (self.spans or self.targets):
            raise DataError("a record whose sentence is true of nothing has no span and no boxes")
        if self.spans_kind not in ("windows", "votes"):
            raise DataError(f"spans are windows or votes, got {self.spans_kind!r}")

    @property
    def span(self) -> Span | None:
        """The first true span, None where there is none."""
        return self.spans[0] if self.spans else None

    @property
    def labelled(self) -> bool:
        """False where the source hides the truth (test sets of challenges)."""
        return not self.present or bool(self.spans or self.targets or self.answer) or self.frames is not None

    def tubes(
        self,
        frame_times_s: npt.ArrayLike | None = None,
        duration_s: float | None = None,
        width: int | None = None,
        height: int | None = None,
        past_end: Literal["cut", "raise"] = "cut",
    ) -> tuple[Tube, ...]:
        """The truth as tubes: one per target and true window (without boxes where the record has spans only).

        frame_times_s: (M,) the time of every native frame, and duration_s, width, height, of the opened video.
        Where the source speaks frames these times win over frame / fps: they are when the frames are shown.
        Size is needed only for boxes in pixels. Boxes outside the window are left out.

        A file is often a frame or two shorter than its annotation says. past_end "cut": the tube ends with the video,
        boxes on frames that are not there are left out, and `past_video` says so; "raise": that is a DataError. A tube
        that lies wholly behind the end is a DataError in any case, as is whatever is missing to make one.
        """
        if self.video.kind == "image":
            raise DataError(f"{self.id}: an image has boxes but no tube: use targets[k].fractions()")
        clock = Clock(self.id, self.video.fps, frame_times_s, duration_s)

        def shown(frames: FrameRange) -> Span:
            return clock.span(clock.cut(frames) if past_end == "cut" else frames)

        windows = self.spans or ((self.given_span,) if self.given_span is not None else ())
        frames = self.frames or self.given_frames
        if frames is not None and len(windows) <= 1 and (clock.known or not windows):
            windows = (shown(frames),)
        if not self.targets:
            return tuple(Tube(span) for span in windows)
        out: list[Tube] = []
        for target in self.targets:
            own = windows
            if target.frames is not None and (clock.known or target.span is None):
                own = (shown(target.frames),)
            elif target.span is not None:
                own = (target.span,)
            if not own:
                raise DataError(f"{self.id}: boxes without a span make no tube")
            boxes = target.fractions(self.video.width or width, self.video.height or height)
            times = target.times_s
            if target.frame_index is not None and (times is None or clock.known):
                index = target.frame_index
                if past_end == "cut" and clock.n_frames is not None:
                    index = index[: int(np.searchsorted(index, clock.n_frames))]
                times, boxes = clock.times(index), boxes[: len(index)]
            if times is None:  # a target without boxes may name no moments
                times = np.empty(0)
            for span in own:
                last = span.end_s + 1e-6 if len(own) == 1 else span.end_s - 1e-6
                inside = (times >= span.start_s - 1e-6) & (times <= last)
                out.append(Tube(span, times[inside], boxes[inside], label=target.name or None))
        return tuple(out)

    def past_video(self, n_frames: int) -> str:
        """ "span-past-video: ..." where the annotated frames do not all exist in a video of `n_frames`, else ""."""
        ends = [frames.end for frames in (self.frames, self.given_frames) if frames is not None]
        for target in self.targets:
            if target.frames is not None:
                ends.append(target.frames.end)
            if target.frame_index is not None and len(target.frame_index):
                ends.append(int(target.frame_index[-1]) + 1)
        if not ends or max(ends) <= n_frames:
            return ""
        return (
            f"span-past-video: the annotation speaks of frames up to {max(ends) - 1}, the video has {n_frames} frames: "
            "cut at its end"
        )

    def clipped(self) -> Record:
        """The same record with its spans cut at the end of the video (only where the duration is known).

        Some protocols ask for it (Charades-STA has spans past the end). A span with nothing left stays as it is,
        with a note.
        """
        end_s = self.video.duration_s
        if end_s is None or all(span.end_s <= end_s for span in self.spans):
            return self
        cut = tuple(span.clip(0.0, end_s) or span for span in self.spans)
        return replace(self, spans=cut, notes=(*self.notes, f"span-cut: spans are cut at {end_s:g} s"))

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON; stable, so that a hash of it names the data."""
        video = self.video
        return {
            "dataset": self.dataset,
            "split": self.split,
            "id": self.id,
            "task": self.task,
            "query": self.query,
            "present": self.present,
            "video": {
                "id": video.id,
                "files": list(video.files),
                "kind": video.kind,
                "fps": None if video.fps is None else f"{video.fps.numerator}/{video.fps.denominator}",
                "frame_count": video.frame_count,
                "width": video.width,
                "height": video.height,
                "duration_s": video.duration_s,
                "segment": None if video.segment is None else [video.segment.begin, video.segment.end],
                "segment_s": _span_dict(video.segment_s),
            },
            "spans": [_span_dict(span) for span in self.spans],
            "spans_kind": self.spans_kind,
            "frames": None if self.frames is None else [self.frames.begin, self.frames.end],
            "targets": [target.to_dict() for target in self.targets],
            "choices": list(self.choices),
            "answer": self.answer,
            "answer_index": self.answer_index,
            "given_span": _span_dict(self.given_span),
            "given_frames": None
            if self.given_frames is None
            else [self.given_frames.begin, self.given_frames.end],
            "given_box": None if self.given_box is None else self.given_box.to_dict(),
            "source": dict(self.source),
            "tags": dict(self.tags),
            "extra": dict(self.extra),
            "notes": list(self.notes),
        }


def _span_dict(span: Span | None) -> dict[str, float] | None:
    return None if span is None else {"start_s": span.start_s, "end_s": span.end_s}


def _readonly(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    array.flags.writeable = False
    return array
