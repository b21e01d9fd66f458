"""Our own data in the published format: a `Record` of any dataset, or a question about a toy-world scene, to an `Item`.

Time. 0 and 1 are the first and the last frame of the clip (`meta.split`, or the whole video), as in the model's answers
(readout.py); a range of frames ends at its last frame, and values are rounded to three decimals, as published.

Boxes are written for frames that the model samples (`frames` of the clip, official_text.frame_indices), at most
`max_boxes` of them, evenly chosen with the first and the last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tubelet.datasets.record import Record, Target, VideoRef, as_fps
from tubelet.errors import DataError
from tubelet.llava_st.coordinates import Box
from tubelet.llava_st.item_words import Facts, Place, Wording, make_item
from tubelet.llava_st.items import Item
from tubelet.llava_st.official_text import frame_indices
from tubelet.tube import Span

if TYPE_CHECKING:
    from tubelet.world.scene import Scene
    from tubelet.world.tasks import Question

FloatArray = npt.NDArray[np.float64]

KIND_OF_TASK = {
    "stvg": "stvg",
    "svg": "svg",
    "tvg": "tvg",
    "rec": "rec",
    "elc": "elc",
    "reg": "region_caption",
    "tr": "temporal_referring",
    "dgc": "dgc",
    "qa": "conversation",
}
"""What a record becomes where no kind is asked for."""

_DECIMALS = 3


@dataclass(frozen=True, slots=True, eq=False)
class Timeline:
    """When the frames of a video are shown, and which of them are the clip.

    times_s: (N,) of all native frames, or None where only the duration is known; first, last: native frames.
    """

    times_s: FloatArray | None
    start_s: float
    end_s: float
    first: int = 0
    last: int = 0

    def fraction(self, time_s: float) -> float:
        """Clipped to the clip, rounded."""
        return _rounded((time_s - self.start_s) / (self.end_s - self.start_s))

    def span(self, span: Span) -> tuple[float, float]:
        """At least the last decimal long. DataError for a span outside of the clip."""
        if span.end_s <= self.start_s or span.start_s >= self.end_s:
            raise DataError(
                f"the span {span.start_s:g}-{span.end_s:g} s lies outside of the clip "
                f"({self.start_s:g}-{self.end_s:g} s)"
            )
        start, end = self.fraction(span.start_s), self.fraction(span.end_s)
        if end > start:
            return start, end
        step = 10.0**-_DECIMALS
        return (start, _rounded(start + step)) if start + step <= 1 else (_rounded(1 - step), 1.0)


def timeline_of(
    record: Record, frame_times_s: npt.ArrayLike | None = None, duration_s: float | None = None
) -> Timeline:
    """The clip of a record. frame_times_s: of all native frames, from the opened video; else the record's rate counts.

    DataError where neither the frames nor the duration are known, and for a clip outside of the video or of one frame.
    """
    video = record.video
    times = None if frame_times_s is None else np.asarray(frame_times_s, dtype=np.float64)
    if times is None and video.fps is not None and video.frame_count is not None:
        times = np.arange(video.frame_count) / float(video.fps)
    if times is None:
        end_s = duration_s or video.duration_s
        if end_s is None or video.segment is not None:
            raise DataError(
                f"{record.id}: how long its video is, is not known: give frame_times_s of the opened video"
            )
        return Timeline(None, 0.0, end_s)
    first, last = 0, len(times) - 1
    if video.segment is not None:
        first, last = video.segment.begin, video.segment.end - 1
    elif video.segment_s is not None:
        inside = np.flatnonzero(video.segment_s.contains(times))
        if len(inside):
            first, last = int(inside[0]), int(inside[-1])
    if not 0 <= first < last < len(times):
        raise DataError(
            f"{record.id}: the clip is frames {first} to {last} of a video of {len(times)} frames"
        )
    return Timeline(times, float(times[first]), float(times[last]), first, last)


def item_from_record(
    record: Record,
    timeline: Timeline | None = None,
    kind: str | None = None,
    path: str | None = None,
    wording: Wording = Wording(),
    frames: int = 100,
    max_boxes: int = 20,
) -> Item:
    """One question of a dataset as an item.

    timeline: of its video (default: `timeline_of(record)`). kind: default by task; video_captioning, video_qa,
    classification and conversation are for records with a text answer. path: below the data folder (default: the first
    of the record's files). DataError when the record lacks what the kind needs.
    """
    return items_joined(
        kind or KIND_OF_TASK[record.task], [record], timeline, path, wording, frames, max_boxes, record.id
    )


def items_joined(
    kind: str,
    records: Sequence[Record],
    timeline: Timeline | None = None,
    path: str | None = None,
    wording: Wording = Wording(),
    frames: int = 100,
    max_boxes: int = 20,
    id: str = "",
) -> Item:
    """Several records of one video as one item: the events of a dvc, or the turns of a (grounded) conversation."""
    if not records:
        raise DataError(f"an item of kind {kind} is made of at least one record")
    first = records[0]
    image = first.video.kind == "image"
    if any(record.video.id != first.video.id for record in records):
        raise DataError("an item is about one video: these records are about several")
    if timeline is None and not image:
        timeline = timeline_of(first)
    where = path or (first.video.files[0] if first.video.files else first.video.id)
    split = None
    if timeline is not None and timeline.times_s is not None:
        whole = (timeline.first, timeline.last) == (0, len(timeline.times_s) - 1)
        split = None if whole else (timeline.first, timeline.last)
    place = Place(where, image, split)
    if kind == "dvc" and timeline is not None:
        events = sorted((timeline.span(_span_of(record, timeline)), _sentence(record)) for record in records)
        return make_item(kind, place, Facts(events=tuple(events)), id, wording)
    joined = len(records) > 1 or "grounded" in kind
    turns = []
    for record in records:
        own = KIND_OF_TASK[record.task] if joined else kind
        turns.append((own, facts_of(record, own, timeline, frames, max_boxes)))
    return make_item(kind, place, turns, id, wording)


def facts_of(
    record: Record, kind: str, timeline: Timeline | None, frames: int = 100, max_boxes: int = 20
) -> Facts:
    """What a record says, as fractions of its clip."""
    text = record.answer or (record.choices[record.answer_index] if record.answer_index is not None else "")
    if not record.present:
        return Facts(query=record.query, present=False)
    if kind == "rec":
        return Facts(
            query=record.query, box=_first_box(record, record.targets[0] if record.targets else None)
        )
    if kind == "region_caption":
        return Facts(text=text, box=_first_box(record, record.given_box))
    if kind == "dgc":
        phrases = tuple((target.name, _first_box(record, target)) for target in record.targets)
        return Facts(text=text, phrases=phrases)
    if kind in ("conversation", "video_qa", "classification", "video_captioning"):
        return Facts(query=_with_choices(record), text=text)
    if timeline is None:
        raise DataError(f"{record.id}: a {kind} is about a video, this record is about an image")
    span = _span_of(record, timeline)
    fractions = timeline.span(span)
    if kind in ("tvg", "temporal_referring"):
        return Facts(query=record.query, text=text, span=fractions)
    if not record.targets:
        raise DataError(f"{record.id}: a {kind} needs boxes, the record has none")
    times, boxes = _timed_boxes(record, record.targets[0], timeline, span, frames, max_boxes)
    given = _first_box(record, record.given_box) if kind == "elc" else None
    return Facts(query=record.query, text=text, span=fractions, times=times, boxes=boxes, box=given)


def _sentence(record: Record) -> str:
    return record.answer or record.query


def _with_choices(record: Record) -> str:
    lines = [f"({chr(ord('A') + number)}) {choice}" for number, choice in enumerate(record.choices)]
    return "\n".join([record.query, *lines])


def _span_of(record: Record, timeline: Timeline) -> Span:
    """Its true or given window. A range of frames ends when its last frame is shown, as published."""
    frames = record.frames or record.given_frames
    if frames is not None and timeline.times_s is not None:
        if frames.end > len(timeline.times_s):
            raise DataError(
                f"{record.id}: the annotation speaks of frame {frames.end - 1}, "
                f"the video has {len(timeline.times_s)} frames"
            )
        start_s, end_s = float(timeline.times_s[frames.begin]), float(timeline.times_s[frames.end - 1])
        return Span(start_s, max(end_s, start_s + 1e-3))
    span = record.span or record.given_span
    if span is None:
        raise DataError(f"{record.id}: there is no span")
    return span


def _timed_boxes(
    record: Record, target: Target, timeline: Timeline, span: Span, frames: int, max_boxes: int
) -> tuple[tuple[float, ...], tuple[Box, ...]]:
    boxes = target.fractions(record.video.width, record.video.height)
    times, index = target.times_s, target.frame_index
    if index is not None and timeline.times_s is not None:
        if len(index) and index[-1] >= len(timeline.times_s):
            raise DataError(
                f"{record.id}: a box is on frame {index[-1]}, the video has {len(timeline.times_s)} frames"
            )
        times = timeline.times_s[index]
    if times is None:
        raise DataError(f"{record.id}: boxes are on frames: give frame_times_s of the opened video")
    inside = (times >= span.start_s - 1e-6) & (times <= span.end_s + 1e-6)
    inside &= (times >= timeline.start_s - 1e-6) & (times <= timeline.end_s + 1e-6)
    if index is not None and timeline.times_s is not None:
        sampled = frame_indices(len(timeline.times_s), (timeline.first, timeline.last), frames)
        seen = inside & np.isin(index, sampled)
        inside = seen if seen.any() else inside  # a span between two samples keeps its own boxes
    rows = np.flatnonzero(inside)
    if not len(rows):
        raise DataError(f"{record.id}: no box lies in the span")
    if len(rows) > max_boxes:
        rows = rows[np.unique(np.linspace(0, len(rows) - 1, max(max_boxes, 1)).round().astype(int))]
    out: dict[float, Box] = {}
    for row in rows:
        out.setdefault(timeline.fraction(float(times[row])), _box(boxes[row]))
    return tuple(out), tuple(out.values())


def _first_box(record: Record, target: Target | None) -> Box:
    if target is None or not len(target):
        raise DataError(f"{record.id}: there is no box")
    return _box(target.fractions(record.video.width, record.video.height)[0])


def _box(values: FloatArray) -> Box:
    x0, y0, x1, y1 = (_rounded(float(value)) for value in values)
    return x0, y0, x1, y1


def _rounded(value: float) -> float:
    return round(min(max(value, 0.0), 1.0), _DECIMALS)


# --- the toy world -------------------------------------------------------------------------------------


def record_of_question(scene: Scene, question: Question, id: str, path: str, fps: float = 15.0) -> Record:
    """A question about a toy-world scene with its truth, as the record of a video (path *.mp4) or image (*.png)."""
    from tubelet.world.files import frame_times
    from tubelet.world.tasks import truth_boxes

    image = path.endswith(".png")
    times = np.zeros(1) if image else frame_times(scene, fps)
    boxes, has = truth_boxes(scene, question, times)
    at = np.flatnonzero(has)
    targets: tuple[Target, ...] = ()
    if question.phrases:
        first = scene.boxes_at([0.0])[0][:, 0]
        targets = tuple(
            Target(first[actor][None], frame_index=np.zeros(1, dtype=np.int64), name=name)
            for name, actor in question.phrases
        )
    elif len(at):
        targets = (Target(boxes[at], frame_index=at, times_s=times[at]),)
    given = None
    if question.given_box is not None:
        start_s = question.span.start_s if question.span is not None else 0.0
        given = Target(np.array([question.given_box]), times_s=np.array([start_s]))
    rate = as_fps(fps)
    return Record(
        dataset="world",
        split="train",
        id=id,
        task=question.task,
        query=question.query,
        video=VideoRef(id, (path,), kind="image")
        if image
        else VideoRef(id, (path,), rate, len(times), duration_s=float(len(times) / rate)),
        spans=() if question.span is None else (question.span,),
        targets=targets,
        present=question.present,
        answer=question.answer,
        given_span=question.span if question.task in ("svg", "tr") else None,
        given_box=given,
        tags={"kind": question.kind},
    )
