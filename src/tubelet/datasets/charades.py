"""Charades-STA: one sentence, one span, in home videos of about 30 s (12,408 train and 3,720 test sentences).

    charades_sta_test.txt       3MSZA 24.3 30.4##person turn a light on.          seconds, one decimal
    Charades_v1_test.csv        id, ..., length                                   durations

- **562 of the 3,720 test spans end after the video**, by up to 1.5 s. They are kept as written (note "span-past-end"),
  as most published numbers have it; `Record.clipped` cuts them.
- lighthouse's charades_*_release.jsonl holds the same sentences with those spans already cut. Time-R1's
  Charades_sta_*.json does not cut. Both are read too; the .txt is taken where several are there.
- durations come from the csv. Without it, or for a video that it lacks, the end of the video is not known (note
  "duration-missing") and nothing can be cut.
- the same sentence and span may be listed twice for one video: both count, as everywhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from tubelet.datasets import moments
from tubelet.datasets.fields import Item, RecordError
from tubelet.datasets.layout import FileSpec, check_split, find_file
from tubelet.datasets.optional import optional_file
from tubelet.datasets.problems import OnError, attempt, handle, unique
from tubelet.datasets.reading import stream_csv, stream_lines
from tubelet.datasets.record import Record
from tubelet.errors import DataError

NAME = "charades-sta"
SPLITS = ("train", "test")
SOURCE = "github.com/jiyanggao/TALL (sentences; also in github.com/microsoft/2D-TAN, data/Charades-STA)"
_CHARADES = "prior.allenai.org/projects/charades (AI2 terms, non-commercial)"
_FOLDERS = ("", "Charades-STA/", "charades_sta/", "charades-sta/", "Charades_anno/", "annotations/")
FILES = (
    *(
        FileSpec(
            "annotations",
            tuple(
                f"{folder}{name}"
                for name in (
                    f"[cC]harades_sta_{split}.txt",
                    f"[cC]harades_sta_{split}.*.txt",
                    f"[cC]harades_sta_{split}.json",
                    f"charades_{split}_release.jsonl",
                )
                for folder in _FOLDERS
            ),
            f"{split} sentences and spans",
            SOURCE,
            (split,),
        )
        for split in SPLITS
    ),
    *(
        FileSpec(
            "durations",
            tuple(
                f"{folder}Charades_v1_{split}{end}.csv"
                for end in ("", ".*")
                for folder in (*_FOLDERS, "Charades/")
            ),
            f"durations of the {split} videos (Charades_v1_{split}.csv)",
            _CHARADES,
            (split,),
            required=False,
        )
        for split in SPLITS
    ),
    FileSpec(
        "videos", ("**/*.mp4",), "Charades videos, e.g. Charades_v1_480/3MSZA.mp4", _CHARADES, kind="media"
    ),
)
_LINE = re.compile(r"(\S+)\s+(\S+)\s+(\S+?)\s*##(.*)")


def read(folder: Path | str, split: str, *, on_error: OnError = "raise") -> Iterator[Record]:
    """Records of `split`, lazily, in file order. `folder` may be the annotation file itself (.txt, .json, .jsonl)."""
    path = find_file(folder, FILES, "annotations", check_split(split, SPLITS, NAME))
    if path.suffix == ".txt":
        base = path.parent if Path(folder).is_file() else Path(folder)
        return _read_text(path, optional_file(base, FILES, "durations", split), split, on_error)
    if path.suffix == ".json":
        return moments.grouped(path, partial(_timed, split), on_error)
    if path.suffix == ".jsonl":
        return moments.lines(path, partial(_timed, split), on_error)
    raise DataError(f"Charades-STA is read from .txt, .json or .jsonl, got {path.name}")


def _places(video: str) -> tuple[str, ...]:
    return tuple(f"{folder}{video}.mp4" for folder in ("Charades_v1_480/", "Charades_v1/", "videos/", ""))


def _timed(split: str, moment: moments.Moment) -> Record:
    """A sentence of a file that has durations."""
    duration_s = moment.item.number("duration", 0.001)
    return moments.record(NAME, split, moment, _places(moment.video), duration_s)


def _read_text(path: Path, csv: Path | None, split: str, on_error: OnError) -> Iterator[Record]:
    durations = {} if csv is None else read_durations(csv, on_error)
    where = "no csv with durations is here" if csv is None else f"{csv.name} lacks this video"
    counts: dict[str, int] = {}

    def one(item: Item, line: str) -> Record:
        found = _LINE.fullmatch(line)
        if found is None:
            raise item.error("", "expected VIDEO start end##sentence (a truncated line?)")
        video, start, end, sentence = found.groups()
        number = counts[video] = counts.get(video, -1) + 1
        item = Item({"start": start, "end": end, "sentence": sentence}, item.file, item.where, textual=True)
        ends = (item.number("start"), item.number("end"))
        moment = moments.Moment(item, video, number, item.text("sentence"), (ends,), "end")
        duration_s = durations.get(video)
        notes = () if duration_s is not None else (f"duration-missing: {where}",)
        return moments.record(NAME, split, moment, _places(video), duration_s, notes)

    def pairs() -> Iterator[tuple[Item, Record | None]]:
        for number, line in stream_lines(path, on_error):
            item = Item({}, str(path), f"line {number}")
            yield item, attempt(on_error, item, partial(one, item, line))

    yield from unique(pairs(), on_error)


def read_durations(path: Path, on_error: OnError = "raise") -> dict[str, float]:
    """Video -> seconds of a Charades_v1_*.csv."""
    durations: dict[str, float] = {}
    for item in stream_csv(path, ("id", "length"), on_error):
        try:
            durations[item.text("id")] = item.number("length", 0.001)
        except RecordError as error:
            handle(on_error, error)
    return durations
