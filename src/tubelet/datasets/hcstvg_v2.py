"""HC-STVG version 2: about 16,000 clips of 20 s (10,131 train, 2,000 val), re-annotated and cleaned.

See `hcstvg` for the format and its traps. The test split has captions only, its truth is not public, so tables
report **val** (and some code calls that file "test": a `hcstvg_v2/test.json` next to STCAT-style code is val).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tubelet.datasets import hcstvg
from tubelet.datasets.layout import FileSpec, check_split, find_file
from tubelet.datasets.problems import OnError
from tubelet.datasets.record import Record

NAME = "hcstvg-v2"
SPLITS = ("train", "val", "test")
SOURCE = "the links in the README of github.com/tzhhhh123/HC-STVG (version 2.0: ten packages of videos)"
VIDEO_FOLDERS = ("v2_video", "video", "videos", "v2/video", "")


def _patterns(*names: str) -> tuple[str, ...]:
    folders = ("anno_v2/", "annos/hcstvg_v2/", "hcstvg_v2/", "annotations/", "")
    return tuple(folder + name for name in names for folder in folders)


FILES = (
    FileSpec(
        "annotations",
        (*_patterns("train_v2.json", "trainv2.json"), "annos/hcstvg_v2/train.json", "hcstvg_v2/train.json"),
        "train annotations (boxes, captions)",
        SOURCE,
        ("train",),
    ),
    FileSpec(
        "annotations",
        (*_patterns("val_v2.json", "valv2.json"), "annos/hcstvg_v2/test.json", "hcstvg_v2/test.json"),
        "val annotations (boxes, captions)",
        SOURCE,
        ("val",),
    ),
    FileSpec(
        "annotations",
        _patterns("query_v2.json", "query_v2*.json"),
        "test captions (no truth: it is not public)",
        SOURCE,
        ("test",),
        required=False,
    ),
    FileSpec(
        "videos",
        ("**/*.mp4", "**/*.mkv"),
        "clips of 20 s (.mp4 and .mkv), e.g. v2_video/",
        SOURCE,
        kind="media",
    ),
)


def read(folder: Path | str, split: str, *, on_error: OnError = "raise") -> Iterator[Record]:
    """Records of `split`, lazily; those of "test" have no truth. `folder` may be the annotation file itself."""
    path = find_file(folder, FILES, "annotations", check_split(split, SPLITS, NAME))
    read_file = hcstvg.read_queries if split == "test" else hcstvg.read_annotated
    return read_file(path, NAME, split, VIDEO_FOLDERS, on_error)
