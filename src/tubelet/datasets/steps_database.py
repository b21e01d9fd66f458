"""Videos with their steps as ActivityNet's challenge files have them: what COIN and YouCook2 share.

{"database": {VIDEO: {"subset": "training", "duration": 90.5, ANNOTATIONS: [{"segment": [12.0, 20.0], TEXT: "..."}]}}}

Segments are seconds. Each step is a record (tvg), VIDEO_NUMBER; the steps of a video make a dense caption (dvc).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from tubelet.datasets import moments
from tubelet.datasets.fields import Item, RecordError
from tubelet.datasets.problems import OnError, attempt, handle, unique
from tubelet.datasets.reading import stream_items
from tubelet.datasets.record import Record


@dataclass(frozen=True, slots=True)
class Layout:
    """dataset: its name. steps, text: the fields of the list and of a step's words. tags: fields of a video that are
    kept. folders: where its file may lie; {subset} and tags stand for their values."""

    dataset: str
    steps: str
    text: str
    tags: tuple[str, ...] = ()
    folders: tuple[str, ...] = ("videos/", "")


def read_steps(path: Path, layout: Layout, split: str, subset: str, on_error: OnError) -> Iterator[Record]:
    """Records of the videos whose `subset` is this one, lazily, a video at a time."""

    def pairs() -> Iterator[tuple[Item, Record | None]]:
        for item in stream_items(path, on_error, inside="database"):
            try:
                if "__key__" not in item.data:
                    raise item.error("", "expected {video: {subset, ...}} in database, got a list")
                if item.text("subset") != subset:
                    continue
                steps = item.children(layout.steps)
            except RecordError as error:
                handle(on_error, error)
                continue
            for number, step in enumerate(steps):
                yield item, attempt(on_error, item, partial(_record, item, step, number, layout, split))

    return unique(pairs(), on_error)


def _record(item: Item, step: Item, number: int, layout: Layout, split: str) -> Record:
    video = item.text("__key__")
    start_s, end_s = step.numbers("segment", 2)
    known: dict[str, Any] = {key: item.name_or_number(key) for key in layout.tags if item.has(key)}
    places = [
        folder.format(subset=item.text("subset"), **known)
        for folder in layout.folders
        if all("{" + key + "}" not in folder or key in known for key in layout.tags)
    ]
    files = tuple(f"{place}{video}{end}" for place in places for end in (".mp4", ".mkv", ".webm"))
    found = moments.Moment(step, video, number, step.text(layout.text), ((start_s, end_s),), "segment")
    duration_s = item.number("duration", 0.001) if item.has("duration") else None
    made = moments.record(layout.dataset, split, found, files, duration_s)
    return replace(made, tags=known)
