"""COIN: the steps of 180 everyday tasks in 11,827 YouTube videos, with their times.

{"database": {"ID": {"duration": 90.5, "class": "FoldBoat", "start": 10.0, "end": 80.0, "subset": "training",
"recipe_type": 7, "annotation": [{"id": "3", "segment": [12.0, 20.0], "label": "fold the corner"}]}}}

- seconds of the whole video. `start` and `end` are the part that shows the task.
- its page says the subsets are "training" and "validation"; files with "testing" are about, too: split test.
- labels are classes of steps (tags["class"] is the task): the same words in many videos.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tubelet.datasets.layout import FileSpec, check_split, find_file
from tubelet.datasets.problems import OnError
from tubelet.datasets.record import Record
from tubelet.datasets.steps_database import Layout, read_steps

NAME = "coin"
SPLITS = ("train", "val", "test")
SOURCE = "github.com/coin-dataset/annotations"
FILES = (
    FileSpec(
        "annotations",
        tuple(f"{place}COIN.json" for place in ("", "coin/", "COIN/", "annotations/")),
        "steps (COIN.json)",
        SOURCE,
        SPLITS,
    ),
    FileSpec(
        "videos",
        ("**/*.mp4", "**/*.mkv", "**/*.webm"),
        "YouTube videos, e.g. videos/ID.mp4",
        SOURCE,
        kind="media",
    ),
)
_SUBSETS = {"train": "training", "val": "validation", "test": "testing"}
_LAYOUT = Layout(
    NAME, "annotation", "label", ("class", "recipe_type"), ("videos/", "videos/{recipe_type}/", "")
)


def read(folder: Path | str, split: str, *, on_error: OnError = "raise") -> Iterator[Record]:
    """Records of `split`, lazily, a step at a time. `folder` may be the annotation file itself."""
    path = find_file(folder, FILES, "annotations", check_split(split, SPLITS, NAME))
    return read_steps(path, _LAYOUT, split, _SUBSETS[split], on_error)
