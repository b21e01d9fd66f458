"""HC-STVG: what versions 1 and 2 share. One person per clip, one sentence, one box on each frame of its tube.

    {"55_vfjywN5CN0Y.mp4": {"bbox": [[x, y, w, h], ...], "st_frame": 268, "img_num": 600, "caption": ...}}

Conversions (research: the README of the dataset, its issues 9 and 13, and how six code bases read it):

- `st_frame` counts from **1**: the tube is frames [st_frame - 1, st_frame - 1 + len(bbox)). `ed_frame`, 1-based and
  inclusive, is in some files; where it disagrees with the number of boxes, the boxes win (note "end-disagrees").
- `st_time` and `ed_time` disagree with the frames by up to seconds in places: frames win (note "seconds-disagree").
- the frame rate is not in the file. Clips last 20 s, so fps = img_num / 20; it is approximate (a 29.97 fps clip has
  600 frames too), which is why `Record.tubes` takes the times of the opened video.
- `img_num` may be off by two from what a decoder yields: a tube that ends after it is kept (note "span-past-end").
- boxes are xywh in pixels of `width` x `height` (v1) or `img_size` [h, w, 3] (v2).
- peers leave out clips that do not decode for them (note "known-missing"); here every query counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from tubelet.datasets.boxes import box_rows, from_pixels
from tubelet.datasets.fields import Item, RecordError, show
from tubelet.datasets.problems import OnError, attempt, handle, records, unique
from tubelet.datasets.reading import stream_items, stream_json
from tubelet.datasets.record import FrameRange, Record, Target, VideoRef
from tubelet.tube import Span

CLIP_S = 20
"""Length of every clip in seconds."""

LEFT_OUT = {
    "10__Gvp-cj3bmIY.mp4": "STCAT, CG-STVG and TA-STVG",
    "1_aMYcLyh9OhU.mkv": "STCAT, CG-STVG and TA-STVG",
    "119_E-6ruyZFfZs.mkv": "the zero-shot code",
    "331_phrYEKv0rmw.mp4": "the zero-shot code",
}
"""Clips that published code leaves out, and whose code does."""

_TIME_SLACK_S = 0.25


def read_annotated(
    path: Path, dataset: str, split: str, folders: tuple[str, ...], on_error: OnError
) -> Iterator[Record]:
    """Records of a train, val or test file with boxes."""
    yield from records(
        stream_items(path, on_error), lambda item: _record(item, dataset, split, folders), on_error
    )


def read_queries(
    path: Path, dataset: str, split: str, folders: tuple[str, ...], on_error: OnError
) -> Iterator[Record]:
    """Records without truth of a file {clip name: caption} (or {clip name: {"English": caption}})."""

    def pairs() -> Iterator[tuple[Item, Record | None]]:
        for name, value in stream_json(path, on_error):
            where = f"key {show(name)}"
            if isinstance(name, int) or not isinstance(value, str | dict):
                reason = f"expected clip name -> caption, got {show(value)}"
                handle(on_error, RecordError(str(path), where, "", reason))
                continue
            item = Item(value if isinstance(value, dict) else {"caption": value}, str(path), where)
            yield item, attempt(on_error, item, lambda item=item, name=name: _query(item, name))  # type: ignore[misc]

    def _query(item: Item, name: str) -> Record:
        key = "English" if item.has("English") else "caption"
        return Record(
            dataset=dataset,
            split=split,
            id=name,
            task="stvg",
            query=item.text(key),
            video=VideoRef(name, _places(name, folders), duration_s=float(CLIP_S)),
            source={"file": path.name, "key": name},
        )

    yield from unique(pairs(), on_error)


def _places(name: str, folders: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{folder}/{name}" if folder else name for folder in folders)


def _record(item: Item, dataset: str, split: str, folders: tuple[str, ...]) -> Record:
    name = item.text("__key__")
    query = item.text("English" if item.has("English") else "caption")
    n_frames = item.whole("img_num", 1, 10_000 * CLIP_S)
    width, height = _size(item)
    raw = item.items("bbox")
    if not raw:
        raise item.error("bbox", "expected one box per frame of the tube, got none")
    first = item.whole("st_frame", 1)  # counts from 1
    frames = FrameRange(first - 1, first - 1 + len(raw))
    boxes, unit, notes = from_pixels(item, "bbox", box_rows(item, "bbox", raw, "xywh"), width, height)
    fps = Fraction(n_frames, CLIP_S)
    span = frames.span(fps)
    if item.has("ed_frame"):
        last = item.whole("ed_frame", 1)
        if last != frames.end:  # 1-based inclusive is 0-based exclusive
            notes.append(
                f"end-disagrees: ed_frame {last} means {last - first + 1} frames, there are {len(raw)} boxes; "
                "the boxes are kept"
            )
    if frames.end > n_frames:
        notes.append(f"span-past-end: the tube ends with frame {frames.end} of {n_frames}")
    notes += _times(item, span)
    if name in LEFT_OUT:
        notes.append(f"known-missing: {LEFT_OUT[name]} leave this clip out")
    return Record(
        dataset=dataset,
        split=split,
        id=name,
        task="stvg",
        query=query,
        video=VideoRef(name, _places(name, folders), fps, n_frames, width, height, float(CLIP_S)),
        spans=(span,),
        frames=frames,
        targets=(Target(boxes, unit, np.arange(frames.begin, frames.end), name="person"),),
        source={"file": Path(item.file).name, "key": name, "st_frame": first},
        notes=tuple(notes),
    )


def _size(item: Item) -> tuple[int | None, int | None]:
    if item.has("img_size"):
        sides = item.numbers("img_size", minimum=1)  # [h, w, 3]
        if not 2 <= len(sides) <= 3 or not all(side.is_integer() and side <= 10**6 for side in sides):
            raise item.error("img_size", f"expected [height, width, 3], got {show(item.items('img_size'))}")
        return int(sides[1]), int(sides[0])
    if item.has("width") and item.has("height"):
        return item.whole("width", 1, 10**6), item.whole("height", 1, 10**6)
    return None, None


def _times(item: Item, span: Span) -> list[str]:
    """A note where the seconds in the file are not those of its frames."""
    given: dict[str, Any] = {key: item.number(key) for key in ("st_time", "ed_time") if item.has(key)}
    start_s, end_s = given.get("st_time", span.start_s), given.get("ed_time", span.end_s)
    if max(abs(start_s - span.start_s), abs(end_s - span.end_s)) <= _TIME_SLACK_S:
        return []
    return [
        f"seconds-disagree: st_time and ed_time say {start_s:.2f}-{end_s:.2f} s, the frames "
        f"{span.start_s:.2f}-{span.end_s:.2f} s; the frames are kept"
    ]
