"""Moment-10M (Momentor): instructions about segments of YouTube videos (YTTemporal-1B), generated.

    Moment-10M_0.json, Moment-10M_1.json     split "train": {VIDEO: {DATA_TYPE: [{"conversations": [{"User": "...",
                                             "Assistant": "... {moment}"}], "variables": {"moment": [3.0, 9.5]},
                                             "clip_similarity": 0.2}]}}
    GESM_data.json                           split "gesm": {VIDEO: {"timestamps": [[0.0, 4.1], ...], "captions": [...]}}

- times are seconds of the video, and stand in `variables`, named in braces in the texts: {moment} (a span, or several),
  {SOURCE_CLIP} (a span: what the question is about), {click_position} (a moment and a point), {instance_class} and
  {content} (words). A `conversations` that is one object is one pair.
- the point of a {click_position} has no place in a record: it is written into the text, "(0.25, 0.50)".
- the published script keeps what scores above a threshold per type (`SCORES`), which it calls optional:
  `read(..., scored=True)` does the same; the score is in `extra["score"]` in any case.
- how long a video is, is not said: open it. Each event of GESM is a record (tvg); those of a video make a dvc.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from tubelet.datasets import moments
from tubelet.datasets.fields import Item, RecordError, check_number, show
from tubelet.datasets.layout import FileSpec, check_split, find_all, find_file
from tubelet.datasets.problems import OnError, attempt, handle, unique
from tubelet.datasets.reading import stream_items
from tubelet.datasets.record import Record, VideoRef
from tubelet.datasets.talks import Mark, Said, talk_record

NAME = "moment-10m"
SPLITS = ("train", "gesm")
SOURCE = "github.com/DCDmllm/Momentor"
_TRAIN = tuple(f"{place}Moment-10M*.json" for place in ("", "Moment-10M/", "moment-10m/", "annotations/"))
FILES = (
    FileSpec("annotations", _TRAIN, "instructions (one or several files)", SOURCE, ("train",)),
    FileSpec(
        "annotations",
        tuple(f"{place}GESM_data.json" for place in ("", "Moment-10M/", "moment-10m/", "annotations/")),
        "event sequences",
        SOURCE,
        ("gesm",),
    ),
    FileSpec(
        "videos",
        ("**/*.mp4", "**/*.mkv"),
        "YouTube videos by id, e.g. videos/ID.mp4",
        "YouTube",
        kind="media",
    ),
)
SCORES: Mapping[str, float] = {
    "segment_caption_data": 0.145,
    "instance_segment_caption_data": 0.146,
    "instance_caption_data": 0.126,
    "appearance_data": 0.129,
    "qa_data": 0.177,
    "instance_qa_data": 0.159,
    "cross_segment_qa_data": 0.211,
    "hypo_scene_data": 0.888,
    "comp_ret_data": 0.195,
    "segment_locate_data": 1.067,
}
"""Data type -> the score that the published script asks for (more than this)."""
_VARIABLE = re.compile(r"\{(\w+)\}")


def read(
    folder: Path | str, split: str, *, scored: bool = False, on_error: OnError = "raise"
) -> Iterator[Record]:
    """Records, lazily, a video at a time. scored: only what scores above the published thresholds."""
    first = find_file_of(folder, check_split(split, SPLITS, NAME))
    if split == "gesm":
        return _events(first[0], on_error)
    return unique((pair for path in first for pair in _instructions(path, scored, on_error)), on_error)


def find_file_of(folder: Path | str, split: str) -> list[Path]:
    """The files of a split: of "train" there may be several."""
    base = Path(folder)
    found = find_all(base, _TRAIN) if split == "train" and base.is_dir() else []
    return found or [find_file(folder, FILES, "annotations", split)]


def _instructions(path: Path, scored: bool, on_error: OnError) -> Iterator[tuple[Item, Record | None]]:
    for item in stream_items(path, on_error):
        try:
            if "__key__" not in item.data:
                raise item.error("", "expected {video: {type: [instructions]}}, got a list")
            video = item.text("__key__")
            kinds = {kind: item.children(kind) for kind in item.data if kind != "__key__"}
        except RecordError as error:
            handle(on_error, error)
            continue
        for kind, rows in kinds.items():
            for number, row in enumerate(rows):
                if scored and not _score(row) > SCORES.get(kind, float("-inf")):
                    continue
                yield item, attempt(on_error, item, partial(_instruction, row, video, kind, number))


def _score(row: Item) -> float:
    for key in ("match_score", "clip_similarity"):
        value = row.data.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    return float("-inf")


def _instruction(row: Item, video: str, kind: str, number: int) -> Record:
    variables = (
        row.child("variables")
        if row.has("variables")
        else Item({}, row.file, row.where, row.name("variables"))
    )
    raw = row.raw("conversations")
    pairs = [row.child("conversations")] if isinstance(raw, dict) else row.children("conversations")
    said = []
    for pair in pairs:
        for who, key in (("human", "User"), ("gpt", "Assistant")):
            said.append(_said(pair.text(key), who, variables))
    score = _score(row)
    return talk_record(
        row,
        NAME,
        "train",
        f"{video}/{kind}/{number}",
        _video(video),
        said,
        {"data_type": kind},
        {} if score == float("-inf") else {"score": score},
    )


def _video(name: str) -> VideoRef:
    return VideoRef(name, tuple(f"{p}{name}{e}" for p in ("videos/", "") for e in (".mp4", ".mkv", ".webm")))


def _said(text: str, who: str, variables: Item) -> Said:
    """The text with its variables written out, and where the times are."""
    out, marks, at = "", [], 0
    for found in _VARIABLE.finditer(text):
        out += text[at : found.start()]
        at = found.end()
        for piece in _written(found[1], variables):
            if isinstance(piece, float):
                marks.append(Mark(len(out), len(out) + 1, piece))
                out += "@"
            else:
                out += piece
    return Said(who, out + text[at:], tuple(marks))


def _written(name: str, variables: Item) -> list[str | float]:
    """A variable as words and times."""
    if name not in variables.data:
        raise variables.error(name, "a text names it, and it has no value")
    value = variables.data[name]
    if name in ("moment", "SOURCE_CLIP"):
        several = isinstance(value, list) and bool(value) and isinstance(value[0], list)
        spans = [moments.pair(variables, name, one) for one in (value if several else [value])]
        out: list[str | float] = []
        for number, (start_s, end_s) in enumerate(spans):
            joint = "" if not number else " and " if number == len(spans) - 1 else ", "
            out += [joint, start_s, " to ", end_s]
        return out
    if name == "click_position":
        if not isinstance(value, list) or len(value) != 2:
            raise variables.error(name, f"expected [seconds, [x, y]], got {show(value)}")
        x, y = moments.pair(variables, name, value[1])
        return [f"({x:.2f}, {y:.2f}) at ", check_number(value[0], variables, name, 0)]
    return [variables.text(name)]


def _events(path: Path, on_error: OnError) -> Iterator[Record]:
    def one(item: Item, video: str, number: int) -> Record:
        key, text = f"timestamps[{number}]", item.texts("captions")[number]
        ends = moments.pair(item, key, item.items("timestamps")[number])
        found = moments.Moment(item, video, number, text, (ends,), key)
        return moments.record(NAME, "gesm", found, _video(video).files, None)

    def pairs() -> Iterator[tuple[Item, Record | None]]:
        for item in stream_items(path, on_error):
            try:
                if "__key__" not in item.data:
                    raise item.error("", "expected {video: {timestamps, captions}}, got a list of objects")
                video, count = item.text("__key__"), len(item.items("timestamps"))
                if len(item.items("captions")) != count:
                    said = f"expected one per timestamp, got {len(item.items('captions'))} for {count}"
                    raise item.error("captions", said)
            except RecordError as error:
                handle(on_error, error)
                continue
            for number in range(count):
                yield item, attempt(on_error, item, partial(one, item, video, number))

    return unique(pairs(), on_error)
