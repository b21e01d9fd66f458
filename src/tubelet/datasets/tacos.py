"""TACoS: long kitchen videos, many sentences each (9,790 train, 4,436 val, 4,001 test sentences on 75/27/25 videos).

2D-TAN's files, which everyone uses: {"s30-d52.avi": {"timestamps": [[141, 354], ...], "sentences": [...], "fps": 29.4,
"num_frames": 7346}}

- **timestamps are frames**, not seconds; seconds = frame / fps (29.4), the end taken as exclusive, as all readers do.
  Whether the first frame is 0 or 1 is documented nowhere; it is taken as 0.
- a few spans end after `num_frames` (5 of the 4,001 test spans, by 7 frames): they are kept in seconds, and
  `frames` is None because the video has no such frames (note "span-past-end").
- lighthouse's tacos_*_release.jsonl is the same in seconds, videos without ".avi" (equal to 1e-6 on the real files).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from tubelet.datasets import moments
from tubelet.datasets.layout import FileSpec, check_split, find_file
from tubelet.datasets.problems import OnError
from tubelet.datasets.record import FrameRange, Record, VideoRef, as_fps
from tubelet.errors import DataError

NAME = "tacos"
SPLITS = ("train", "val", "test")
SOURCE = "github.com/microsoft/2D-TAN, data/TACoS"
_FOLDERS = ("TACoS/", "tacos/", "annotations/", "")
FILES = (
    *(
        FileSpec(
            "annotations",
            tuple(
                f"{folder}{name}"
                for name in (f"{split}.json", f"tacos_{split}.json", f"tacos_{split}_release.jsonl")
                for folder in _FOLDERS
            ),
            f"{split} sentences and spans",
            SOURCE,
            (split,),
        )
        for split in SPLITS
    ),
    FileSpec(
        "videos",
        ("**/*.avi", "**/*.mp4"),
        "MPII Cooking Composite videos, e.g. videos/s30-d52.avi",
        "the MPII Cooking Composite Activities page of the Max Planck Institute for Informatics",
        kind="media",
    ),
)


def read(folder: Path | str, split: str, *, on_error: OnError = "raise") -> Iterator[Record]:
    """Records of `split`, lazily, in file order. `folder` may be the annotation file itself (.json, .jsonl)."""
    path = find_file(folder, FILES, "annotations", check_split(split, SPLITS, NAME))
    if path.suffix == ".json":
        return moments.grouped(path, partial(_from_frames, split), on_error)
    if path.suffix == ".jsonl":
        return moments.lines(path, partial(_from_seconds, split), on_error)
    raise DataError(f"TACoS is read from .json or .jsonl, got {path.name}")


def _places(video: str) -> tuple[str, ...]:
    return tuple(f"{folder}{video}{end}" for folder in ("videos/", "video/", "") for end in (".avi", ".mp4"))


def _from_frames(split: str, moment: moments.Moment) -> Record:
    item, ends = moment.item, moment.windows[0]
    fps = as_fps(item.number("fps", 0.001, 1000))
    count = item.whole("num_frames", 1)
    if not all(end.is_integer() for end in ends):
        raise item.error(
            moment.key, f"expected whole frame numbers, got {ends[0]:g} and {ends[1]:g} (seconds?)"
        )
    if moment.video.endswith(".avi") and len(moment.video) > 4:
        moment = replace(moment, video=moment.video[:-4])
    video = VideoRef(moment.video, _places(moment.video), fps, count, duration_s=float(count / fps))
    inside = 0 <= ends[0] < ends[1] <= count
    seconds = (float(int(ends[0]) / fps), float(int(ends[1]) / fps))
    made = moments.record(NAME, split, replace(moment, windows=(seconds,)), video.files, video.duration_s)
    frames = FrameRange(int(ends[0]), int(ends[1])) if inside else None
    return replace(made, video=video, frames=frames, source={**made.source, "frames": [int(x) for x in ends]})


def _from_seconds(split: str, moment: moments.Moment) -> Record:
    duration_s = moment.item.number("duration", 0.001)
    return moments.record(NAME, split, moment, _places(moment.video), duration_s)
