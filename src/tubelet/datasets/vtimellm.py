"""VTimeLLM's training data: conversations about clips of InternVid (stage 2), ActivityNet and DiDeMo (stage 3).

[{"source": "internvid", "id": "YOUTUBE_ID", "conversations": [{"from": "human", "value": "<video>\\n..."}, {"from":
"gpt", "value": "From <s0> to <e0>, ..."}], "meta": {"split": [20.0, 50.0], "duration": 30.0, "token": {"<s0>": 2,
"<e0>": 9.5}}}]

- `token`: seconds **of the clip**; `split`: where the clip lies in the original video, in seconds. Records speak of the
  whole file (times are moved by the start of the clip), `video.segment_s` is the clip.
- without `split` the whole video is the input, and `duration` is its length.
- some 20,000 conversations of stage 3 (from Video-ChatGPT) have neither `meta` nor times.
- an id comes as often as there are conversations about the video: ids of records are ID/NUMBER of the file.
- stage 2 asks questions that stand for themselves, several in a conversation: each is a record. A conversation of
  stage 3 is one record. `pairs=True` or False says otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from tubelet.datasets.fields import Item
from tubelet.datasets.layout import FileSpec, check_split, find_file
from tubelet.datasets.problems import OnError, attempt, unique
from tubelet.datasets.reading import stream_items
from tubelet.datasets.record import Record, VideoRef
from tubelet.datasets.talks import Mark, Said, pairs_of, talk_record
from tubelet.errors import DataError
from tubelet.tube import Span

NAME = "vtimellm"
SPLITS = ("stage2", "stage3")
SOURCE = "github.com/huangb23/VTimeLLM (docs/data.md)"
FILES = (
    *(
        FileSpec(
            "annotations",
            tuple(f"{folder}{split}.json" for folder in ("", "data/", "vtimellm/", "annotations/")),
            f"conversations of {split}",
            SOURCE,
            (split,),
        )
        for split in SPLITS
    ),
    FileSpec(
        "videos",
        ("**/*.mp4", "**/*.mkv", "**/*.webm"),
        "the original videos, by id (YouTube for internvid), e.g. videos/ID.mp4",
        "YouTube, activity-net.org and DiDeMo's authors",
        kind="media",
    ),
)
_ROLES = {"human": "human", "gpt": "gpt"}
_TOKEN = re.compile(r"<[se]\d+>")


def read(
    folder: Path | str, split: str, *, pairs: bool | None = None, on_error: OnError = "raise"
) -> Iterator[Record]:
    """Records of one stage, lazily. pairs: a record per question (default: in stage 2) or per conversation."""
    path = find_file(folder, FILES, "annotations", check_split(split, SPLITS, NAME))
    alone = split == "stage2" if pairs is None else pairs

    def records() -> Iterator[tuple[Item, Record | None]]:
        for item in stream_items(path, on_error):
            made: list[Record] = []

            def make(item: Item = item, made: list[Record] = made) -> Record:
                made += _records(split, alone, item)
                return made[0]

            if attempt(on_error, item, make) is None:
                yield item, None
                continue
            for record in made:
                yield item, record

    return unique(records(), on_error)


def _records(split: str, alone: bool, item: Item) -> list[Record]:
    if not item.where.startswith("record "):
        raise item.error("", "expected a list of conversations, got an object")
    number = item.where.split()[-1]
    name, source = item.text("id"), item.text("source", "")
    meta = item.child("meta") if item.has("meta") else None
    clip: Span | None = None
    duration_s: float | None = None
    if meta is not None:
        duration_s = meta.number("duration", 0.001)
        if meta.has("split"):
            start_s, end_s = meta.numbers("split", 2, 0)
            try:
                clip = Span(start_s, end_s)
            except DataError as error:
                raise meta.error("split", str(error)) from None
            duration_s = None  # of the whole file it is not known
    video = VideoRef(
        id=name,
        files=tuple(f"{place}{name}{end}" for place in ("videos/", "") for end in (".mp4", ".mkv", ".webm")),
        duration_s=duration_s,
        segment_s=clip,
    )
    said = [_said(turn, meta, clip) for turn in item.children("conversations")]
    make = partial(talk_record, item, NAME, split, video=video, tags={"source": source})
    if not alone or len(said) <= 2:
        return [make(id=f"{name}/{number}", said=said)]
    if len(said) % 2:
        raise item.error("conversations", f"expected questions with their answers, got {len(said)} turns")
    return [make(id=f"{name}/{number}/{k}", said=pair) for k, pair in enumerate(pairs_of(said))]


def _said(turn: Item, meta: Item | None, clip: Span | None) -> Said:
    who, text = _ROLES.get(turn.text("from"), ""), turn.text("value")
    if not who:
        raise turn.error("from", f"expected human or gpt, got {turn.text('from')!r:.40}")
    shift_s = 0.0 if clip is None else clip.start_s
    marks = []
    for found in _TOKEN.finditer(text):
        if meta is None:
            raise turn.error("value", f"{found[0]} stands for no time: there is no meta.token")
        marks.append(Mark(found.start(), found.end(), meta.child("token").number(found[0], 0) + shift_s))
    return Said(who, text, tuple(marks))
