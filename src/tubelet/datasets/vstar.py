"""V-STaR: what, when and where about one event, asked in two orders (V-STaR-Bench/V-STaR, CC BY-NC-SA 4.0).

One JSON array; every item becomes up to four records, `tags["part"]` and the end of the id say which:

    what    task qa     `question` -> `answer` (free text; the official score asks a 72B judge)
    when    task tvg    `temporal_question` -> `timestamps` [start, end] in seconds
    where   task svg    `spatial_question`, the span is given (chain 1)
    where2  task stvg   `spatial_question_2`, no span is given (chain 2)

Boxes are xyxy pixels at `timestamp` seconds (whole ones, the last may equal the end of the span): entries
{timestamp, frame_index, xmin, ...} or, as the README of the data prints them, {"timestamp_frame": {xmin, ...}}.
The official scorer looks boxes up by the text of the timestamp, so seconds are the truth; the frame index (whose
base is not documented) is kept in `extra["frame_index"]` only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tubelet.datasets.boxes import box_rows, from_pixels
from tubelet.datasets.fields import Item, RecordError
from tubelet.datasets.layout import FileSpec, check_split, find_file
from tubelet.datasets.problems import OnError, attempt, unique
from tubelet.datasets.reading import stream_items
from tubelet.datasets.record import Record, Target, VideoRef, as_fps
from tubelet.errors import DataError
from tubelet.tube import Span

NAME = "v-star"
SPLITS = ("test",)
SOURCE = "huggingface.co/datasets/V-STaR-Bench/V-STaR (CC BY-NC-SA 4.0)"
PARTS = ("what", "when", "where", "where2")
FILES = (
    FileSpec(
        "annotations",
        (
            "V_STaR_test.json",
            "*STaR*test*.json",
            "data/*STaR*.json",
            "*STaR*.json",
            "*vstar*.json",
            "test.json",
        ),
        "the annotation file",
        SOURCE,
    ),
    FileSpec("videos", ("**/*.mp4",), "videos named by vid", SOURCE, kind="media"),
)


def read(
    folder: Path | str, split: str = "test", *, on_error: OnError = "raise", parts: Sequence[str] = PARTS
) -> Iterator[Record]:
    """Records of these parts, lazily, item by item."""
    unknown = set(parts) - set(PARTS)
    if unknown:
        raise DataError(f"V-STaR has no part {', '.join(sorted(unknown))}; parts are {', '.join(PARTS)}")
    path = find_file(folder, FILES, "annotations", check_split(split, SPLITS, NAME))

    def pairs() -> Iterator[tuple[Item, Record | None]]:
        for item in stream_items(path, on_error):
            for part in parts:
                yield item, attempt(on_error, item, partial(_record, item, split, part))

    return unique(pairs(), on_error)


_QUESTION = {
    "what": "question",
    "when": "temporal_question",
    "where": "spatial_question",
    "where2": "spatial_question_2",
}
_TASK = {"what": "qa", "when": "tvg", "where": "svg", "where2": "stvg"}


def _record(item: Item, split: str, part: str) -> Record:
    number = item.where.split()[-1] if item.where.startswith("record ") else "0"
    video = _video(item)
    assert video.duration_s is not None  # set by _video
    start_s, end_s = item.numbers("timestamps", 2, 0)
    try:
        span = Span(start_s, end_s)
    except DataError as error:
        raise item.error("timestamps", str(error)) from None
    notes: list[str] = []
    if span.end_s > video.duration_s + 0.01:
        notes.append(f"span-past-end: the span ends at {span.end_s:g} s of {video.duration_s:.2f} s")
    targets: tuple[Target, ...] = ()
    extra: dict[str, Any] = {}
    if part in ("where", "where2"):
        target, index, said = _boxes(item, video)
        targets, notes = (target,), notes + said
        extra = {"frame_index": index}
        assert target.times_s is not None  # set by _boxes
        outside = int(((target.times_s < span.start_s) | (target.times_s > span.end_s)).sum())
        if outside:
            notes.append(f"boxes-outside-span: {outside} of {len(target)} boxes are not in the span")
    return Record(
        dataset=NAME,
        split=split,
        id=f"{video.id}-{number}-{part}",
        task=_TASK[part],
        query=item.text(_QUESTION[part]),
        video=video,
        spans=() if part == "what" else (span,),
        given_span=span if part == "where" else None,
        targets=targets,
        answer=item.text("answer") if part == "what" else "",
        source={"file": Path(item.file).name, "record": item.where},
        tags={
            "part": part,
            "domain": item.text("domain", ""),
            "length": "short" if video.duration_s < 60 else "medium" if video.duration_s < 180 else "long",
        },
        extra=extra,
        notes=tuple(notes),
    )


def _video(item: Item) -> VideoRef:
    vid = item.name_or_number("vid")
    fps = as_fps(item.number("fps", 0.001, 1000))
    count = item.whole("frame_count", 1)
    name = vid if vid.endswith(".mp4") else f"{vid}.mp4"
    return VideoRef(
        id=vid,
        files=(f"videos/{name}", f"video/{name}", f"data/{name}", name),
        fps=fps,
        frame_count=count,
        width=item.whole("width", 1, 10**6),
        height=item.whole("height", 1, 10**6),
        duration_s=float(count / fps),
    )


def _boxes(item: Item, video: VideoRef) -> tuple[Target, list[int], list[str]]:
    """Boxes in order of time, their frame indices as written, and notes. Two boxes at one second are an error."""
    found: dict[float, tuple[int, list[Any]]] = {}
    for k, entry in enumerate(_entries(item)):
        corners = [entry.raw(key) for key in ("xmin", "ymin", "xmax", "ymax")]
        time_s = entry.number("timestamp", 0)
        if time_s in found:
            raise item.error(f"bboxes[{k}]", f"second {time_s:g} has two boxes")
        found[time_s] = (entry.whole("frame_index"), corners)
    if not found:
        raise item.error("bboxes", "expected at least one box")
    order = sorted(found)
    rows = [found[time_s][1] for time_s in order]
    boxes, unit, notes = from_pixels(
        item, "bboxes", box_rows(item, "bboxes", rows, "xyxy"), video.width, video.height
    )
    target = Target(boxes, unit, times_s=np.array(order), name=item.text("object", ""))
    return target, [found[time_s][0] for time_s in order], notes


def _entries(item: Item) -> Iterator[Item]:
    for entry in item.children("bboxes"):
        if entry.has("timestamp"):
            yield entry
            continue
        for key in entry.data:
            time_s, _, frame = str(key).partition("_")
            box = entry.child(key)
            try:
                moment = {"timestamp": float(time_s), "frame_index": int(frame)}
            except ValueError:
                raise RecordError(
                    item.file, item.where, entry.path, f"expected TIMESTAMP_FRAME, got {key!r:.40}"
                ) from None
            yield Item({**box.data, **moment}, item.file, item.where, box.path)
