"""InternVid-G (HawkEye): captions of segments of YouTube videos, with the span around them where nothing else is alike.

JSON Lines: {"video": "ID.mp4", "duration": 187.3, "caption": "...", "start_sec": 12.0, "end_sec": 15.5,
"neg_start_sec": 3.2, "neg_end_sec": 60.1, ...}

- all times are seconds of the whole video. A caption is true of its segment; outside the "negative span" there may be
  others like it: `extra["negative_s"]`. (HawkEye shows its model a part of that span only.)
- an entry has no id: records are VIDEO/NUMBER, counted within the video.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath

from tubelet.datasets import moments
from tubelet.datasets.fields import Item
from tubelet.datasets.layout import FileSpec, check_split, find_file
from tubelet.datasets.problems import OnError, attempt, unique
from tubelet.datasets.reading import stream_jsonl
from tubelet.datasets.record import Record

NAME = "internvid-g"
SPLITS = ("train",)
SOURCE = "github.com/yellow-binary-tree/HawkEye (internvid_g/README.md)"
FILES = (
    FileSpec(
        "annotations",
        tuple(f"{place}train.jsonl" for place in ("", "InternVid-G/", "internvid-g/", "annotations/")),
        "captions of segments",
        SOURCE,
        ("train",),
    ),
    FileSpec(
        "videos",
        ("**/*.mp4", "**/*.mkv", "**/*.webm"),
        "YouTube videos, e.g. videos/ID.mp4",
        SOURCE,
        kind="media",
    ),
)


def read(folder: Path | str, split: str = "train", *, on_error: OnError = "raise") -> Iterator[Record]:
    """Records, lazily, in file order. `folder` may be the annotation file itself."""
    path = find_file(folder, FILES, "annotations", check_split(split, SPLITS, NAME))
    counts: dict[str, int] = {}

    def pairs() -> Iterator[tuple[Item, Record | None]]:
        for item in stream_jsonl(path, on_error):
            yield item, attempt(on_error, item, partial(_record, split, item, counts))

    return unique(pairs(), on_error)


def _record(split: str, item: Item, counts: dict[str, int]) -> Record:
    file = item.text("video")
    name = PurePosixPath(file).stem or file
    ends = item.number("start_sec"), item.number("end_sec")
    number = counts[name] = counts.get(name, -1) + 1
    found = moments.Moment(item, name, number, item.text("caption"), (ends,), "start_sec")
    stem = str(PurePosixPath(file).with_suffix("")) if PurePosixPath(file).suffix else file
    files = tuple(f"{p}{stem}{e}" for p in ("videos/", "") for e in (".mp4", ".mkv", ".webm"))
    made = moments.record(NAME, split, found, files, item.number("duration", 0.001))
    extra = {}
    if item.has("neg_start_sec") and item.has("neg_end_sec"):
        extra = {"negative_s": [item.number("neg_start_sec", 0), item.number("neg_end_sec", 0)]}
    return replace(made, id=f"{name}/{number}", extra=extra)
