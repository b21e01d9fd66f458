"""ActivityNet Captions: several sentences per YouTube video (37,421 train, 17,505 val_1, 17,031 val_2 sentences).

{"v_QOlSCBRmfWY": {"duration": 82.73, "timestamps": [[0.83, 19.86], ...], "sentences": ["...", " ..."]}}, seconds.

- **there are two validation files with different annotators, and no public test.** 2D-TAN's and Time-R1's "test" is
  val_2, lighthouse's "val" is val_1. Splits have their own names here: train, val_1, val_2; say which one you report.
- most sentences begin with a space, some hold a newline: they are stripped.
- spans may end after the video. In the files here only by floating-point noise (under 1e-13 s, no note); more than
  0.01 s is noted "span-past-end" and kept.
- spans of one video overlap, and one sentence may be true at several times: the annotated one is the truth.
- many of the videos are gone from YouTube: code that drops them has another denominator.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from tubelet.datasets import moments
from tubelet.datasets.layout import FileSpec, check_split, find_file
from tubelet.datasets.problems import OnError
from tubelet.datasets.record import Record
from tubelet.errors import DataError

NAME = "activitynet"
SPLITS = ("train", "val_1", "val_2")
SOURCE = (
    "cs.stanford.edu/people/ranjaykrishna/densevid (captions.zip; also in microsoft/2D-TAN, data/ActivityNet)"
)
_NAMES = {
    "train": ("train.json", "activitynet_train_release.jsonl"),
    "val_1": ("val_1.json", "val.json", "activitynet_val_release.jsonl"),
    "val_2": ("val_2.json", "test.json"),
}
_AMBIGUOUS = {
    "val": "'val' is val_1 in 2D-TAN and lighthouse, and both files together elsewhere",
    "test": "'test' is val_2 in 2D-TAN and Time-R1; the true test set has no public captions",
}
_FOLDERS = (
    "captions/",
    "ActivityNet/",
    "activitynet/",
    "annotations/sentence_temporal_grounding/",
    "annotations/",
    "",
)
FILES = (
    *(
        FileSpec(
            "annotations",
            tuple(f"{folder}{name}" for name in _NAMES[split] for folder in _FOLDERS),
            f"{split} captions and spans",
            SOURCE,
            (split,),
        )
        for split in SPLITS
    ),
    FileSpec(
        "videos",
        ("**/*.mp4", "**/*.mkv", "**/*.webm"),
        "ActivityNet videos, e.g. videos/v_QOlSCBRmfWY.mp4",
        "activity-net.org (on request; YouTube's terms apply)",
        kind="media",
    ),
)


def read(folder: Path | str, split: str, *, on_error: OnError = "raise") -> Iterator[Record]:
    """Records of `split`, lazily, in file order. `folder` may be the annotation file itself (.json, .jsonl)."""
    if split in _AMBIGUOUS:
        raise DataError(f"activitynet: {_AMBIGUOUS[split]}; splits are {', '.join(SPLITS)}")
    path = find_file(folder, FILES, "annotations", check_split(split, SPLITS, NAME))
    if path.suffix == ".json":
        return moments.grouped(path, partial(_record, split), on_error)
    if path.suffix == ".jsonl":
        return moments.lines(path, partial(_record, split), on_error)
    raise DataError(f"ActivityNet Captions are read from .json or .jsonl, got {path.name}")


def _record(split: str, moment: moments.Moment) -> Record:
    files = tuple(
        f"{folder}{moment.video}{end}"
        for folder in ("videos/", "video/", "")
        for end in (".mp4", ".mkv", ".webm")
    )
    return moments.record(NAME, split, moment, files, moment.item.number("duration", 0.001))
