"""The toy world as a dataset: annotations.jsonl as `tubelet world make` writes it (see docs/json.md, docs/world.md).

Already in tubelet's own conventions; here it only changes its clothes. The one split is called "test", whatever
seeds it was made with; records say which in `tags["scene_split"]` where the file does.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from tubelet.datasets.boxes import box_rows, from_fractions
from tubelet.datasets.fields import Item
from tubelet.datasets.layout import FileSpec, check_split, find_file
from tubelet.datasets.problems import OnError, records
from tubelet.datasets.reading import stream_jsonl
from tubelet.datasets.record import Record, Target, VideoRef, as_fps
from tubelet.errors import DataError
from tubelet.tube import TASKS, Span
from tubelet.world.files import SCHEMA_VERSION

T = TypeVar("T")
NAME = "world"
SPLITS = ("test",)
SOURCE = "'tubelet world make DIR --n 100', which makes it"
FILES = (
    FileSpec("annotations", ("annotations.jsonl",), "questions with their truth", SOURCE),
    FileSpec("videos", ("videos/*.mp4", "images/*.png"), "videos or images", SOURCE, kind="media"),
)


def read(folder: Path | str, split: str = "test", *, on_error: OnError = "raise") -> Iterator[Record]:
    """All records of a toy-world folder, lazily. `folder` may be the annotation file itself."""
    path = find_file(folder, FILES, "annotations", check_split(split, SPLITS, NAME))
    return records(stream_jsonl(path, on_error), partial(_record, split), on_error)


def _record(split: str, item: Item) -> Record:
    if item.data.get("schema", SCHEMA_VERSION) != SCHEMA_VERSION:
        raise item.error("schema", f"this tubelet reads {SCHEMA_VERSION}: make the folder again")
    present, task, place = item.raw("present"), item.text("task"), item.text("video")
    if not isinstance(present, bool):
        raise item.error("present", "expected true or false")
    if task not in TASKS:
        raise item.error("task", f"expected one of {', '.join(TASKS)}, got {task!r:.40}")
    video = _video(item, place)
    spans: tuple[Span, ...] = ()
    if item.has("span"):
        span = item.child("span")
        try:
            spans = (Span(span.number("start_s"), span.number("end_s")),)
        except DataError as error:
            raise item.error("span", str(error)) from None
    targets, notes = _targets(item)
    if spans and video.duration_s is not None and spans[0].end_s > video.duration_s + 1e-6:
        notes.append(f"span-past-end: the span ends at {spans[0].end_s:g} s of {video.duration_s:g} s")
    given, said = _given(item, spans)
    kind = item.text("kind", "")
    return Record(
        dataset=NAME,
        split=split,
        id=item.text("id"),
        task=task,
        query=item.text("query"),
        video=video,
        spans=spans,
        targets=targets,
        present=present,
        answer=item.text("answer", "") if item.data.get("answer") else "",
        given_span=spans[0] if spans and task in ("svg", "tr") else None,
        given_box=given,
        source={"file": Path(item.file).name, "line": item.where},
        tags={
            **(_kept(item, "tags", dict(item.child("tags").data)) if item.has("tags") else {}),
            "kind": kind,
        },
        extra={"phrases": _kept(item, "phrases", item.items("phrases"))} if item.data.get("phrases") else {},
        notes=tuple(notes + said),
    )


def _kept(item: Item, name: str, value: T) -> T:
    """A value that goes into the record as it is, so that it must be one that JSON can hold."""
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        raise item.error(name, "holds a number that is not finite") from None
    return value


def _video(item: Item, place: str) -> VideoRef:
    """The video shows n_frames / fps seconds; `duration_s` in the file is the scene's, which may be a little more."""
    name = Path(place).stem or place
    if place.endswith(".png"):
        return VideoRef(name, (place,), kind="image")
    fps = as_fps(item.number("fps", 0.001, 1000)) if item.has("fps") else None
    count = item.whole("n_frames", 1) if item.has("n_frames") else None
    return VideoRef(
        name,
        (place,),
        fps,
        count,
        duration_s=float(count / fps) if fps is not None and count is not None else None,
    )


def _targets(item: Item) -> tuple[tuple[Target, ...], list[str]]:
    """The target's track; for dgc one target per phrase, named by it, on the one picture there is."""
    rows = item.items("boxes_xyxy") if item.has("boxes_xyxy") else []
    phrases = item.items("phrases") if item.has("phrases") else []
    if not rows and phrases and isinstance(phrases[0], dict):
        out, notes = [], []
        for phrase in item.children("phrases"):
            box, said = from_fractions(
                phrase, "box_xyxy", box_rows(phrase, "box_xyxy", [phrase.items("box_xyxy")], "xyxy")
            )
            notes += said
            out.append(
                Target(box, frame_index=np.array([0]), times_s=np.array([0.0]), name=phrase.text("text"))
            )
        return tuple(out), notes
    if not rows:
        return (), []
    boxes, notes = from_fractions(item, "boxes_xyxy", box_rows(item, "boxes_xyxy", rows, "xyxy"))
    index = [int(x) if x.is_integer() else -1 for x in item.numbers("frame_index", len(rows), 0)]
    try:
        target = Target(
            boxes, frame_index=np.array(index), times_s=np.array(item.numbers("times_s", len(rows), 0))
        )
    except DataError as error:
        raise item.error("frame_index", str(error)) from None
    return (target,), notes


def _given(item: Item, spans: tuple[Span, ...]) -> tuple[Target | None, list[str]]:
    """The box that is handed over, at the start of the span (at 0 s in images)."""
    if not item.has("given_box"):
        return None, []
    box, notes = from_fractions(
        item, "given_box", box_rows(item, "given_box", [item.items("given_box")], "xyxy")
    )
    return Target(box, times_s=np.array([spans[0].start_s if spans else 0.0])), notes
