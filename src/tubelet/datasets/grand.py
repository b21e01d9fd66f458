"""GranD (Grounding-anything): things in SAM's images with words for them, and captions with boxes for their phrases.

One JSON file per image, {"sa_1.jpg": ...}, as published or as the authors' scripts cut it:

    {"objects": [{"id", "bbox", "labels", "attributes", "segmentation"}],            published
     "floating_objects": [...], "short_captions": [{"caption", "details": [...]}], ...}
    [{"attribute", "id", "bbox", "segmentation"}]                                    prepared: referring expressions
    [{"caption", "details": [{"phrase", "tokens_positive", "id", "bbox"}]}]          prepared: grounded captions

- `bbox` is xyxy in pixels of the image. Its size stands in a `segmentation` only (RLE, "size": [height, width]): where
  there is none, boxes stay pixels and the image has to be opened.
- split "referring": an attribute (words for one thing) and its box, task rec. Of several attributes of a thing those
  that hold one of its labels count, else the first, as in the authors' script; what a chat model left before them
  ("Assistant:") is cut off. Things without attributes give no record.
- split "captions": a caption and a target per phrase with a box, task dgc; `tokens_positive` (characters) orders them.
  Phrases whose thing has no box (null) are noted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tubelet.datasets.boxes import box_rows, from_pixels
from tubelet.datasets.fields import Item, RecordError
from tubelet.datasets.layout import FileSpec, check_split, find_all
from tubelet.datasets.problems import OnError, attempt, handle, unique
from tubelet.datasets.reading import load_json
from tubelet.datasets.record import Record, Target, VideoRef
from tubelet.errors import DataError

NAME = "grand"
SPLITS = ("referring", "captions")
SOURCE = "github.com/mbzuai-oryx/groundingLMM (docs/GranD.md)"
_FOLDERS = {
    "referring": ("referring/", "Grand_Referring_Expression/"),
    "captions": ("captions/", "Grand_Caption_Grounding/"),
}
FILES = (
    *(
        FileSpec(
            "annotations",
            tuple(f"{place}*.json" for place in (*_FOLDERS[split], "annotations/", "")),
            f"a JSON file per image ({split}, or all of it)",
            SOURCE,
            (split,),
        )
        for split in SPLITS
    ),
    FileSpec(
        "images", ("**/sa_*.jpg",), "SA-1B images, e.g. images/sa_1.jpg", "ai.meta.com/datasets", kind="media"
    ),
)
_CHATTER = re.compile(r"^\s*(?:as)?sistant\s*:?\s*", re.IGNORECASE)


def read(folder: Path | str, split: str, *, on_error: OnError = "raise") -> Iterator[Record]:
    """Records of `split`, lazily, a file at a time, by name. `folder` may be one file."""
    check_split(split, SPLITS, NAME)
    base = Path(folder)
    spec = next(one for one in FILES if split in one.splits)
    if not base.exists():
        raise DataError(f"{base} does not exist: give the folder with {spec.what}, from {SOURCE}")
    files = [base] if base.is_file() else find_all(base, spec.patterns)
    if not files:
        raise DataError(f"{base} has no {spec.what}: looked for {', '.join(spec.patterns)}; from {SOURCE}")

    def pairs() -> Iterator[tuple[Item, Record | None]]:
        for path in files:
            try:
                whole = load_json(path)
                rows = [(name, *row) for name in whole.data for row in _rows(whole, str(name), split)]
            except RecordError as error:
                handle(on_error, error)
                continue
            size = _size(whole.data)
            for name, number, row, prepared in rows:
                if split == "captions":
                    yield row, attempt(on_error, row, partial(_caption, name, number, row, size))
                    continue
                try:
                    texts = [row.text("attribute")] if prepared else _attributes(row)
                except RecordError as error:
                    handle(on_error, error)
                    continue
                for k, text in enumerate(texts):
                    place = str(number) if prepared else f"{number}/{k}"
                    yield row, attempt(on_error, row, partial(_referring, name, place, row, text, size))

    return unique(pairs(), on_error)


def _rows(whole: Item, name: str, split: str) -> list[tuple[int, Item, bool]]:
    """(number, object or caption, whether it is prepared) of an image."""
    prepared = isinstance(whole.data[name], list)
    if prepared:
        rows = whole.children(name)
    else:
        rows = whole.child(name).children("objects" if split == "referring" else "short_captions")
    where = f"key {name!r:.80}"
    return [(n, Item(row.data, row.file, where, f"[{n}]"), prepared) for n, row in enumerate(rows)]


def _attributes(row: Item) -> list[str]:
    given = row.data.get("attributes")
    if not given:
        return []
    texts = [given] if isinstance(given, str) else row.texts("attributes")
    texts = [text for text in (_CHATTER.sub("", one).strip() for one in texts) if text]
    labels = row.data.get("labels") or []
    names = [one.replace("_", " ") for one in ([labels] if isinstance(labels, str) else row.texts("labels"))]
    with_label = [text for text in texts if any(name in text for name in names)]
    return texts if len(texts) < 2 else with_label or texts[:1]


def _size(value: Any) -> tuple[int, int] | None:
    """(width, height) of the first RLE mask anywhere in a file."""
    waiting: list[Any] = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            size = one.get("size")
            if "counts" in one and isinstance(size, list) and len(size) == 2:
                height, width = size
                if all(type(side) is int and 0 < side < 1 << 20 for side in size):
                    return width, height
            waiting += one.values()
        elif isinstance(one, list):
            waiting += [row for row in one if isinstance(row, dict | list)]
    return None


def _image(name: str, size: tuple[int, int] | None) -> VideoRef:
    width, height = size or (None, None)
    return VideoRef(
        name, tuple(f"{place}{name}" for place in ("images/", "")), width=width, height=height, kind="image"
    )


def _target(row: Item, size: tuple[int, int] | None, name: str) -> tuple[Target, list[str]]:
    width, height = size or (None, None)
    pixels = box_rows(row, "bbox", [row.raw("bbox")], "xyxy")
    boxes, unit, notes = from_pixels(row, "bbox", pixels, width, height)
    thing = row.name_or_number("id") if row.has("id") else ""
    return Target(boxes, unit, np.zeros(1, dtype=np.int64), id=thing, name=name), notes


def _referring(name: str, place: str, row: Item, text: str, size: tuple[int, int] | None) -> Record:
    target, notes = _target(row, size, "")
    return Record(
        dataset=NAME,
        split="referring",
        id=f"{name}/{place}",
        task="rec",
        query=text,
        video=_image(name, size),
        targets=(target,),
        source={"file": Path(row.file).name, "record": f"{name}{row.path}"},
        notes=tuple(notes),
    )


def _caption(name: str, place: int, row: Item, size: tuple[int, int] | None) -> Record:
    if "caption" not in row.data:
        raise row.error("caption", "is missing: are these referring expressions?")
    found: list[tuple[float, Target]] = []
    notes: list[str] = []
    without = 0
    for detail in row.children("details"):
        if not detail.has("bbox"):
            without += 1
            continue
        target, said = _target(detail, size, detail.text("phrase"))
        at = detail.numbers("tokens_positive", 2, 0)[0] if detail.has("tokens_positive") else len(found)
        found.append((at, target))
        notes += said
    if without or not found:
        notes.append(f"boxes-missing: {without} phrases of this caption have no box")
    found.sort(key=lambda pair: pair[0])
    return Record(
        dataset=NAME,
        split="captions",
        id=f"{name}/{place}",
        task="dgc",
        query="",
        video=_image(name, size),
        targets=tuple(target for _, target in found),
        answer=row.text("caption"),
        source={"file": Path(row.file).name, "record": f"{name}{row.path}"},
        notes=tuple(dict.fromkeys(notes)),
    )
