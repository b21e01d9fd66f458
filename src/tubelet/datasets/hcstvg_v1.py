"""HC-STVG version 1: 5,660 clips of 20 s (4,500 train, 1,160 test), one person, one sentence each.

See `hcstvg` for the format and its traps. Tables call "test" what is in test.json; it is the split to report.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tubelet.datasets import hcstvg
from tubelet.datasets.layout import FileSpec, check_split, find_file
from tubelet.datasets.problems import OnError
from tubelet.datasets.record import Record

NAME = "hcstvg-v1"
SPLITS = ("train", "test")
SOURCE = "the links in the README of github.com/tzhhhh123/HC-STVG (version 1)"
VIDEO_FOLDERS = ("v1_video", "video", "videos", "v1/video", "")
FILES = (
    *(
        FileSpec(
            "annotations",
            (
                f"annos/hcstvg_v1/{split}.json",
                f"hcstvg_v1/{split}.json",
                f"anno_v1/{split}.json",
                f"annotations/{split}.json",
                f"{split}.json",
            ),
            f"{split} annotations (boxes, captions)",
            SOURCE,
            (split,),
        )
        for split in SPLITS
    ),
    FileSpec(
        "videos",
        ("**/*.mp4", "**/*.mkv"),
        "clips of 20 s (.mp4 and .mkv), e.g. v1_video/",
        SOURCE,
        kind="media",
    ),
)


def read(folder: Path | str, split: str, *, on_error: OnError = "raise") -> Iterator[Record]:
    """Records of `split`, lazily. `folder` may be the annotation file itself."""
    path = find_file(folder, FILES, "annotations", check_split(split, SPLITS, NAME))
    return hcstvg.read_annotated(path, NAME, split, VIDEO_FOLDERS, on_error)
