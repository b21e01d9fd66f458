"""HiREST: how-to queries, the part of a video that answers them, and its steps (moment retrieval, dense captions).

{"Fold a Paper Boat": {"ID.mp4": {"relevant": true, "clip": true, "v_duration": 90.5, "bounds": [10, 80], "steps":
[{"index": 0, "heading": "fold the corner", "absolute_bounds": [10, 22]}]}}}

- `bounds` and `absolute_bounds` are seconds of the whole video.
- "clip": false says that the whole video is about the query (bounds are [0, 0]); "relevant": false that it is not.
  Neither is a moment, and neither gives a record.
- a clippable video is a record (tags["part"] "moment": the query), and each of its steps is one ("step": the heading;
  the query is in `extra`). `parts=("step",)` reads some; the steps of a video make a dense caption.
- a video may stand under several queries: ids are QUERY/VIDEO and QUERY/VIDEO/INDEX.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath

from tubelet.datasets import moments
from tubelet.datasets.fields import Item, RecordError
from tubelet.datasets.layout import FileSpec, check_split, find_file
from tubelet.datasets.problems import OnError, attempt, handle, unique
from tubelet.datasets.reading import stream_items
from tubelet.datasets.record import Record
from tubelet.errors import DataError

NAME = "hirest"
SPLITS = ("train", "val", "test")
SOURCE = "github.com/j-min/HiREST (data/splits)"
PARTS = ("moment", "step")
FILES = (
    *(
        FileSpec(
            "annotations",
            tuple(
                f"{place}all_data_{split}.json" for place in ("", "data/splits/", "splits/", "annotations/")
            ),
            f"{split} queries, moments and steps",
            SOURCE,
            (split,),
        )
        for split in SPLITS
    ),
    FileSpec("videos", ("**/*.mp4",), "YouTube videos, e.g. videos/ID.mp4", SOURCE, kind="media"),
)


def read(
    folder: Path | str, split: str, *, parts: Sequence[str] = PARTS, on_error: OnError = "raise"
) -> Iterator[Record]:
    """Records of `split`, lazily, a query at a time. `folder` may be the annotation file itself."""
    wrong = [part for part in parts if part not in PARTS]
    if wrong or not parts:
        raise DataError(f"parts are {' and '.join(PARTS)}, got {', '.join(map(str, wrong)) or 'none'}")
    path = find_file(folder, FILES, "annotations", check_split(split, SPLITS, NAME))

    def records() -> Iterator[tuple[Item, Record | None]]:
        for item in stream_items(path, on_error):
            try:
                if "__key__" not in item.data:
                    raise item.error("", "expected {query: {video: {...}}}, got a list")
                query = item.text("__key__")
                videos = [(name, item.child(name)) for name in item.data if name != "__key__"]
            except RecordError as error:
                handle(on_error, error)
                continue
            for name, video in videos:
                yield from _video(split, query, name, video, parts, on_error)

    return unique(records(), on_error)


def _video(
    split: str, query: str, name: str, item: Item, parts: Sequence[str], on_error: OnError
) -> Iterator[tuple[Item, Record | None]]:
    try:
        if not (_flag(item, "relevant") and _flag(item, "clip")):
            return
        steps = item.children("steps")
    except RecordError as error:
        handle(on_error, error)
        return
    if "moment" in parts:
        yield item, attempt(on_error, item, partial(_moment, split, query, name, item))
    if "step" in parts:
        for number, step in enumerate(steps):
            yield item, attempt(on_error, item, partial(_step, split, query, name, item, step, number))


def _flag(item: Item, key: str) -> bool:
    value = item.raw(key)
    if not isinstance(value, bool):
        raise item.error(key, f"expected true or false, got {value!r:.40}")
    return value


def _moment(split: str, query: str, name: str, item: Item) -> Record:
    return _record(split, f"{query}/{name}", query, name, item, item, "bounds", "moment", {})


def _step(split: str, query: str, name: str, item: Item, step: Item, number: int) -> Record:
    id, extra = f"{query}/{name}/{number}", {"query": query}
    return _record(split, id, step.text("heading"), name, item, step, "absolute_bounds", "step", extra)


def _record(
    split: str,
    id: str,
    text: str,
    name: str,
    item: Item,
    place: Item,
    key: str,
    part: str,
    extra: dict[str, str],
) -> Record:
    start_s, end_s = place.numbers(key, 2)
    stem = PurePosixPath(name).stem or name
    found = moments.Moment(place, stem, 0, text, ((start_s, end_s),), key)
    files = tuple(f"{folder}{name}" for folder in ("videos/", "video/", ""))
    made = moments.record(NAME, split, found, files, item.number("v_duration", 0.001))
    return replace(made, id=id, tags={"part": part}, extra=extra)
