"""ActivityNet-RTL (LITA): questions about ActivityNet videos whose answers need reasoning, and name the time.

{"v_ID": {"duration": 60.5, "QA": [{"q": "When does she need help?", "a": "<12.5> <20.0> ..."}]}}

- times stand in angle brackets, in seconds of the video, in the answers.
- each question is a record of its own, as LITA trains them: ID/NUMBER.
- the published training file is activitynet_train_gpt-4-0613_temp_6_f10009.json.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from tubelet.datasets.fields import Item, RecordError
from tubelet.datasets.layout import FileSpec, check_split, find_file
from tubelet.datasets.problems import OnError, attempt, handle, unique
from tubelet.datasets.reading import stream_items
from tubelet.datasets.record import Record, VideoRef
from tubelet.datasets.talks import Said, marks_in, talk_record
from tubelet.errors import DataError

NAME = "anet-rtl"
SPLITS = ("train",)
SOURCE = "github.com/NVlabs/LITA (docs/Video_Data.md: temporal_reasoning)"
FILES = (
    FileSpec(
        "annotations",
        (
            "temporal_reasoning/activitynet_train_gpt-4-0613_temp_6_f10009.json",
            "activitynet_train_gpt-4-0613_temp_6_f10009.json",
            "temporal_reasoning/activitynet_train*.json",
            "activitynet_train*.json",
        ),
        "questions and answers with times",
        SOURCE,
        ("train",),
    ),
    FileSpec(
        "videos",
        ("**/*.mp4", "**/*.mkv", "**/*.webm"),
        "ActivityNet videos, e.g. videos/v_QOlSCBRmfWY.mp4",
        "activity-net.org (on request; YouTube's terms apply)",
        kind="media",
    ),
)
_TIME = re.compile(r"<\s*(\d+(?:\.\d*)?|\.\d+)\s*>")


def read(folder: Path | str, split: str = "train", *, on_error: OnError = "raise") -> Iterator[Record]:
    """Records, lazily, in file order. `folder` may be the annotation file itself."""
    path = find_file(folder, FILES, "annotations", check_split(split, SPLITS, NAME))

    def records() -> Iterator[tuple[Item, Record | None]]:
        for item in stream_items(path, on_error):
            try:
                if "__key__" not in item.data:
                    raise item.error("", "expected {video: {duration, QA}}, got a list")
                video, pairs = _video(item), item.children("QA")
            except RecordError as error:
                handle(on_error, error)
                continue
            for number, pair in enumerate(pairs):
                yield item, attempt(on_error, item, partial(_record, pair, split, video, number))

    return unique(records(), on_error)


def _video(item: Item) -> VideoRef:
    name = item.text("__key__")
    duration_s = item.number("duration", 0.001)
    files = (f"{place}{name}{end}" for place in ("videos/", "") for end in (".mp4", ".mkv", ".webm"))
    try:
        return VideoRef(name, tuple(files), duration_s=duration_s)
    except DataError as error:
        raise item.error("", str(error)) from None


def _record(pair: Item, split: str, video: VideoRef, number: int) -> Record:
    said = []
    for who, key in (("human", "q"), ("gpt", "a")):
        text = pair.text(key)
        said.append(Said(who, text, marks_in(pair, key, text, _TIME)))
    return talk_record(pair, NAME, split, f"{video.id}/{number}", video, said)
