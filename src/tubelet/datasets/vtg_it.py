"""VTG-IT-120K (VTG-LLM): moment retrieval, dense captions, summaries and highlights as questions and answers.

[{"video": "path/to/ID.mp4", "QA": [{"q": "...", "a": "<TIME_ZERO><TIME_ZERO><TIME_ONE><TIME_TWO><TIME_DOT><TIME_FIVE>
- ... seconds, a man ..."}]}]

- a time is spelled in digits that are words: <TIME_ZERO> to <TIME_NINE> and <TIME_DOT>; 0012.5 is 12.5 seconds of the
  video. Digits that make no number are an error.
- paths are those of its authors: the file's name is what is looked for, too.
- all pairs of an entry are one record (NUMBER of the file). How long a video is, is not said: open it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath

from tubelet.datasets.fields import Item, show
from tubelet.datasets.layout import FileSpec, check_split, find_file
from tubelet.datasets.problems import OnError, records
from tubelet.datasets.reading import stream_items
from tubelet.datasets.record import Record, VideoRef
from tubelet.datasets.talks import Mark, Said, talk_record

NAME = "vtg-it"
SPLITS = ("train",)
SOURCE = "github.com/gyxxyg/VTG-LLM (annotation/vtg-it-120k.json)"
FILES = (
    FileSpec(
        "annotations",
        tuple(f"{place}vtg-it-120k.json" for place in ("", "annotation/", "annotations/")),
        "questions and answers",
        SOURCE,
        ("train",),
    ),
    FileSpec(
        "videos",
        ("**/*.mp4", "**/*.mkv", "**/*.webm"),
        "YouTube videos of its datasets, by name",
        "docs/DATA.md of github.com/gyxxyg/VTG-LLM",
        kind="media",
    ),
)
_NAMES = ("ZERO", "ONE", "TWO", "THREE", "FOUR", "FIVE", "SIX", "SEVEN", "EIGHT", "NINE")
_DIGITS = {**{name: str(k) for k, name in enumerate(_NAMES)}, "DOT": "."}
_DIGIT = re.compile(r"<TIME_([A-Z]+)>")
_TIME = re.compile(r"<TIME_[A-Z]+>(?:\s*<TIME_[A-Z]+>)*")


def read(folder: Path | str, split: str = "train", *, on_error: OnError = "raise") -> Iterator[Record]:
    """Records, lazily, in file order. `folder` may be the annotation file itself."""
    path = find_file(folder, FILES, "annotations", check_split(split, SPLITS, NAME))
    return records(stream_items(path, on_error), partial(_record, split), on_error)


def _record(split: str, item: Item) -> Record:
    if not item.where.startswith("record "):
        raise item.error("", "expected a list of {video, QA}, got an object")
    path = PurePosixPath(item.text("video").replace("\\", "/"))
    name = path.name.removeprefix("video-")
    stem = (
        PurePosixPath(name).stem if PurePosixPath(name).suffix in (".mp4", ".mkv", ".webm", ".avi") else name
    )
    places = [path.as_posix().lstrip("/")] if ".." not in path.parts else []
    places += [f"{place}{stem}{end}" for place in ("videos/", "") for end in (".mp4", ".mkv", ".webm")]
    said = []
    for pair in item.children("QA"):
        for who, key in (("human", "q"), ("gpt", "a")):
            text = pair.text(key)
            said.append(Said(who, text, _marks(pair, key, text)))
    return talk_record(item, NAME, split, item.where.split()[-1], VideoRef(stem, tuple(places)), said)


def _marks(item: Item, key: str, text: str) -> tuple[Mark, ...]:
    out = []
    for found in _TIME.finditer(text):
        digits = "".join(_DIGITS.get(word, "?") for word in _DIGIT.findall(found[0]))
        try:
            time_s = float(digits)
        except ValueError:
            raise item.error(key, f"expected digits that make seconds, got {show(digits)}") from None
        out.append(Mark(found.start(), found.end(), time_s))
    return tuple(out)
