"""YouCook2: the steps of recipes in cooking videos, each a sentence with its times.

{"database": {"ID": {"subset": "training", "duration": 120.5, "recipe_type": "7", "annotations": [{"id": 0, "segment":
[10, 22], "sentence": "peel the pear"}]}}}

- seconds of the whole video; splits are `subset` training and validation. The test split has no public sentences.
- videos lie in SUBSET/RECIPE_TYPE/ID in the authors' folders (raw_videos/training/7/ID.mp4).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tubelet.datasets.layout import FileSpec, check_split, find_file
from tubelet.datasets.problems import OnError
from tubelet.datasets.record import Record
from tubelet.datasets.steps_database import Layout, read_steps

NAME = "youcook2"
SPLITS = ("train", "val")
SOURCE = "youcook2.eecs.umich.edu"
FILES = (
    FileSpec(
        "annotations",
        tuple(
            f"{place}youcookii_annotations_trainval.json"
            for place in ("", "annotations/", "YouCookII/", "YouCookII/annotations/")
        ),
        "steps (youcookii_annotations_trainval.json)",
        SOURCE,
        SPLITS,
    ),
    FileSpec("videos", ("**/*.mp4", "**/*.mkv", "**/*.webm"), "YouTube videos by id", SOURCE, kind="media"),
)
_SUBSETS = {"train": "training", "val": "validation"}
_LAYOUT = Layout(
    NAME,
    "annotations",
    "sentence",
    ("recipe_type",),
    ("raw_videos/{subset}/{recipe_type}/", "{subset}/{recipe_type}/", "videos/", ""),
)


def read(folder: Path | str, split: str, *, on_error: OnError = "raise") -> Iterator[Record]:
    """Records of `split`, lazily, a step at a time. `folder` may be the annotation file itself."""
    path = find_file(folder, FILES, "annotations", check_split(split, SPLITS, NAME))
    return read_steps(path, _LAYOUT, split, _SUBSETS[split], on_error)
