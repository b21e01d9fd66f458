"""Moment retrieval (task tvg): what Charades-STA, TACoS, ActivityNet Captions and QVHighlights files share.

Two layouts are in use, for the same sentences in the same order:

    {"VIDEO": {"duration": 30.96, "timestamps": [[24.3, 30.4], ...], "sentences": ["...", ...]}}        grouped, JSON
    {"qid": 1, "query": "...", "duration": 30.96, "vid": "VIDEO", "relevant_windows": [[24.3, 30.4]]}   lines, JSONL

Sentences are numbered from 0 within their video and `VIDEO_number` is the id of a record, so that both layouts of one
split give the same ids (checked on the real files). What is wrong with a window:

- before 0, or its end before its start: RecordError;
- its end past the end of the video: kept, note "span-past-end" (`Record.clipped` cuts it on request);
- its end equal to its start: 1 ms long, note "span-empty": the query counts, as in the public code, and is a miss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tubelet.datasets.fields import Item, RecordError, check_number, show
from tubelet.datasets.problems import OnError, attempt, handle, unique
from tubelet.datasets.reading import stream_items, stream_jsonl
from tubelet.datasets.record import Record, VideoRef
from tubelet.errors import DataError
from tubelet.tube import Span

SLACK_S = 0.01
"""A window may end this much after the video without a note: durations are written with two decimals."""

SHORTEST_S = 0.001
"""Length that is given to a window without any."""


@dataclass(frozen=True, slots=True)
class Moment:
    """One sentence of a file: `item` is where it stands, `number` counts from 0 within its video.

    windows: as written, (start, end) in the unit of the file.
    """

    item: Item
    video: str
    number: int
    query: str
    windows: tuple[tuple[float, float], ...]
    key: str = "timestamps"

    @property
    def id(self) -> str:
        return f"{self.video}_{self.number}"


def pair(item: Item, key: str, value: Any) -> tuple[float, float]:
    """[start, end] as two finite numbers; RecordError for field `key`."""
    if not isinstance(value, list) or len(value) != 2:
        raise item.error(key, f"expected [start, end], got {show(value)}")
    return check_number(value[0], item, f"{key}[0]"), check_number(value[1], item, f"{key}[1]")


def window(
    item: Item, key: str, start_s: float, end_s: float, duration_s: float | None = None
) -> tuple[Span, list[str]]:
    """A window in seconds as a span, and notes; RecordError before 0 or when it ends before it starts."""
    if start_s < 0 or end_s < start_s:
        raise item.error(key, f"expected 0 <= start <= end, got {start_s:g} to {end_s:g} s")
    notes = []
    if end_s == start_s:
        end_s = start_s + SHORTEST_S
        notes.append(f"span-empty: the window {start_s:g}-{start_s:g} s has no length; it is kept as 1 ms")
    if duration_s is not None and start_s >= duration_s:
        notes.append(f"span-past-end: the span starts at {start_s:g} s of {duration_s:g} s")
    elif duration_s is not None and end_s > duration_s + SLACK_S:
        notes.append(f"span-past-end: the span ends at {end_s:g} s of {duration_s:g} s")
    try:
        return Span(start_s, end_s), notes
    except DataError as error:
        raise item.error(key, str(error)) from None


def record(
    dataset: str,
    split: str,
    moment: Moment,
    files: tuple[str, ...],
    duration_s: float | None,
    notes: tuple[str, ...] = (),
) -> Record:
    """The record of a moment whose windows are seconds."""
    spans: list[Span] = []
    said = list(notes)
    for start_s, end_s in moment.windows:
        span, more = window(moment.item, moment.key, start_s, end_s, duration_s)
        spans.append(span)
        said += more
    source: dict[str, Any] = {"file": Path(moment.item.file).name, "record": moment.item.where}
    if isinstance(moment.item.data.get("qid"), str | int):
        source["qid"] = moment.item.data["qid"]
    return Record(
        dataset=dataset,
        split=split,
        id=moment.id,
        task="tvg",
        query=moment.query,
        video=VideoRef(moment.video, files, duration_s=duration_s),
        spans=tuple(spans),
        source=source,
        notes=tuple(said),
    )


def grouped(path: Path, make: Callable[[Moment], Record], on_error: OnError) -> Iterator[Record]:
    """Records of a {video: {"timestamps", "sentences", ...}} file, one per sentence, a video at a time."""

    def one(item: Item, video: str, number: int) -> Record:
        key, text = f"timestamps[{number}]", item.items("sentences")[number]
        if not isinstance(text, str) or not text.strip():
            raise item.error(f"sentences[{number}]", f"expected text that is not empty, got {show(text)}")
        ends = pair(item, key, item.items("timestamps")[number])
        return make(Moment(item, video, number, text.strip(), (ends,), key))

    def pairs() -> Iterator[tuple[Item, Record | None]]:
        for item in stream_items(path, on_error):
            try:
                if "__key__" not in item.data:
                    raise item.error("", "expected {video: {timestamps, sentences}}, got a list of objects")
                video = item.text("__key__")
                count = len(item.items("timestamps"))
                if len(item.items("sentences")) != count:
                    said = f"expected one per timestamp, got {len(item.items('sentences'))} for {count}"
                    raise item.error("sentences", said)
            except RecordError as error:
                handle(on_error, error)
                continue
            for number in range(count):
                yield item, attempt(on_error, item, partial(one, item, video, number))

    yield from unique(pairs(), on_error)


def lines(path: Path, make: Callable[[Moment], Record], on_error: OnError) -> Iterator[Record]:
    """Records of a JSONL file of lighthouse's and moment_detr's layout; `relevant_windows` must be there."""
    counts: dict[str, int] = {}

    def one(item: Item) -> Record:
        video = item.text("vid")
        number = counts[video] = counts.get(video, -1) + 1
        windows = item.items("relevant_windows")
        if not windows:
            raise item.error("relevant_windows", "expected at least one window, got none")
        ends = tuple(pair(item, f"relevant_windows[{k}]", value) for k, value in enumerate(windows))
        return make(Moment(item, video, number, item.text("query"), ends, "relevant_windows"))

    def pairs() -> Iterator[tuple[Item, Record | None]]:
        for item in stream_jsonl(path, on_error):
            yield item, attempt(on_error, item, partial(one, item))

    yield from unique(pairs(), on_error)
