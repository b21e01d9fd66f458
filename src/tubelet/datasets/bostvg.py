"""BOSTVG (OmniSTVG): every object that the sentence mentions, 1 to 10 targets per video, one sentence per video.

    {video: {"width", "height", "img_num", "fps", "st_frame", "end_frame", "st_time", "ed_time", "caption",
             "bbox": [{"id": ..., "bbox": [[x1, y1, x2, y2], ...], "temp": [start, end]}, ...]}}

- `st_frame` and `end_frame` count from **1**, the end **inclusive**: frames are [st_frame - 1, end_frame).
- each target's `temp` is 0-based with the end **exclusive**, one box per frame; targets may appear later, leave
  earlier, and reach outside the sentence's span (note "target-outside-span").
- the official reader skips items whose img_num is null and spans that end before they start: problems here.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from tubelet.datasets.boxes import box_rows, from_pixels
from tubelet.datasets.fields import Item
from tubelet.datasets.layout import FileSpec, check_split, find_file
from tubelet.datasets.problems import OnError, records
from tubelet.datasets.reading import stream_items
from tubelet.datasets.record import FrameRange, Record, Target, VideoRef, as_fps
from tubelet.errors import DataError

NAME = "bostvg"
SPLITS = ("train", "test")
SOURCE = "the BOSTVG data set on the Hugging Face hub, linked from github.com/JellyYao3000/OmniSTVG"
FILES = (
    *(
        FileSpec(
            "annotations",
            tuple(f"{place}{split}.json" for place in ("annos/", "annotations/", "")),
            f"{split} annotations",
            SOURCE,
            (split,),
        )
        for split in SPLITS
    ),
    FileSpec("videos", ("**/*.mp4", "**/*.mkv"), "videos/NAME, as the keys name them", SOURCE, kind="media"),
)
_TIME_SLACK_S = 0.25


def read(folder: Path | str, split: str, *, on_error: OnError = "raise") -> Iterator[Record]:
    """Records of `split`, lazily, with one `Target` per object. `folder` may be the annotation file itself."""
    path = find_file(folder, FILES, "annotations", check_split(split, SPLITS, NAME))
    return records(stream_items(path, on_error), partial(_record, split), on_error)


def _record(split: str, item: Item) -> Record:
    name = item.text("__key__")
    count = item.whole("img_num", 1)
    fps = as_fps(item.number("fps", 0.001, 1000))
    width, height = item.whole("width", 1, 10**6), item.whole("height", 1, 10**6)
    try:
        frames = FrameRange(item.whole("st_frame", 1) - 1, item.whole("end_frame", 1))  # 1-based, inclusive
    except DataError as error:
        raise item.error("end_frame", str(error)) from None
    notes = []
    if frames.end > count:
        notes.append(f"span-past-end: the span ends with frame {frames.end} of {count}")
    span = frames.span(fps)
    for key, ours in (("st_time", span.start_s), ("ed_time", span.end_s)):
        if item.has(key) and abs(item.number(key) - ours) > _TIME_SLACK_S:
            notes.append(
                f"seconds-disagree: {key} is {item.number(key):.2f} s, its frame {ours:.2f} s; frames are kept"
            )
    targets = []
    for target in item.children("bbox"):
        made, said = _target(target, fps_frames=frames, width=width, height=height)
        targets.append(made)
        notes += said
    if not targets:
        raise item.error("bbox", "expected at least one target")
    return Record(
        dataset=NAME,
        split=split,
        id=name,
        task="stvg",
        query=item.text("caption"),
        video=VideoRef(
            name,
            (f"videos/{name}", f"video/{name}", name),
            fps,
            count,
            width,
            height,
            float(count / fps),
        ),
        spans=(span,),
        frames=frames,
        targets=tuple(targets),
        source={"file": Path(item.file).name, "key": name},
        tags={"targets": len(targets)},
        notes=tuple(notes),
    )


def _target(item: Item, fps_frames: FrameRange, width: int, height: int) -> tuple[Target, list[str]]:
    start, end = (int(x) if x.is_integer() else -1 for x in item.numbers("temp", 2, 0))
    try:
        own = FrameRange(start, end)
    except DataError as error:
        raise item.error("temp", str(error)) from None
    rows = item.items("bbox")
    if len(rows) != len(own):
        raise item.error("bbox", f"expected {len(own)} boxes for frames [{start}, {end}), got {len(rows)}")
    boxes, unit, notes = from_pixels(item, "bbox", box_rows(item, "bbox", rows, "xyxy"), width, height)
    if own.begin < fps_frames.begin or own.end > fps_frames.end:
        notes.append(
            f"target-outside-span: a target is on frames [{own.begin}, {own.end}), the span is "
            f"[{fps_frames.begin}, {fps_frames.end})"
        )
    name = next((item.name_or_number(key) for key in ("position_id", "id") if item.has(key)), "")
    return Target(boxes, unit, np.arange(own.begin, own.end), id=name, frames=own), notes
