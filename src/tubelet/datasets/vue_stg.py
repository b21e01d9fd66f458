"""VUE-STG: 1,600 queries on 982 long YouTube videos, one box per second (bytedance/vidi, CC BY-NC 4.0).

Three CSV files: query.csv (query_id, query_text, video_id), video.csv (video_id, video_duration), tubes.csv
(query_id, time_ms, time_normalized, x0, y0, x1, y1).

- boxes are fractions, one per whole second; each stands for the second that starts with it.
- **a fifth of the tubes have gaps**: the true spans are the runs of consecutive seconds, several windows per query.
- the last second may reach past the end of the video: its span is cut there (note "span-past-end").
- one query, one target. Queries without a row in tubes.csv are problems, so are tubes of unknown queries.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tubelet.datasets.boxes import box_rows, from_fractions
from tubelet.datasets.fields import Item, RecordError
from tubelet.datasets.layout import FileSpec, check_split, find_file
from tubelet.datasets.problems import OnError, attempt, handle, unique
from tubelet.datasets.reading import stream_csv
from tubelet.datasets.record import FloatArray, IntArray, Record, Target, VideoRef
from tubelet.errors import DataError
from tubelet.tube import Span

NAME = "vue-stg"
SPLITS = ("test",)
SOURCE = "github.com/bytedance/vidi, folder VUE_STG/vue-stg-benchmark (CC BY-NC 4.0)"
FILES = (
    *(
        FileSpec(
            role,
            tuple(
                f"{place}{role}{end}.csv"
                for end in ("", ".*")
                for place in ("", "vue-stg-benchmark/", "VUE_STG/vue-stg-benchmark/")
            ),
            what,
            SOURCE,
        )
        for role, what in (
            ("query", "query.csv (the sentences)"),
            ("video", "video.csv (durations)"),
            ("tubes", "tubes.csv (the boxes)"),
        )
    ),
    FileSpec(
        "videos",
        ("**/*.mp4", "**/*.mkv", "**/*.webm"),
        "the YouTube videos, named by their id, e.g. videos/Q82itikVn44.mp4",
        "YouTube, by video_id; their terms apply, some may be gone",
        kind="media",
    ),
)
_STEP_MS = 1000


def read(folder: Path | str, split: str = "test", *, on_error: OnError = "raise") -> Iterator[Record]:
    """Records in the order of query.csv. Boxes of all queries (some MB) and durations are held in memory."""
    check_split(split, SPLITS, NAME)
    paths = {role: find_file(folder, FILES, role) for role in ("query", "video", "tubes")}
    if len(set(paths.values())) < 3:
        raise DataError(f"{folder} is one file: give the folder with query.csv, video.csv and tubes.csv")
    return _read(paths, split, on_error)


def _read(paths: dict[str, Path], split: str, on_error: OnError) -> Iterator[Record]:
    durations: dict[str, float] = {}
    for item in stream_csv(paths["video"], ("video_id", "video_duration"), on_error):
        try:
            durations[item.text("video_id")] = item.number("video_duration", 0.001)
        except RecordError as error:
            handle(on_error, error)
    rows: dict[str, list[Item]] = {}
    columns = ("query_id", "time_ms", "x0", "y0", "x1", "y1")
    for item in stream_csv(paths["tubes"], columns, on_error):
        try:
            rows.setdefault(item.text("query_id"), []).append(item)
        except RecordError as error:
            handle(on_error, error)

    def pairs() -> Iterator[tuple[Item, Record | None]]:
        asked: set[str] = set()
        for item in stream_csv(paths["query"], ("query_id", "query_text", "video_id"), on_error):
            asked.add(item.data["query_id"].strip())
            yield item, attempt(on_error, item, lambda item=item: _record(item, split, durations, rows))  # type: ignore[misc]
        for name, found in rows.items():
            if name not in asked:
                handle(on_error, found[0].error("query_id", f"{name} is no query of {paths['query'].name}"))

    yield from unique(pairs(), on_error)


def _record(item: Item, split: str, durations: dict[str, float], rows: dict[str, list[Item]]) -> Record:
    name, video = item.text("query_id"), item.text("video_id")
    if name not in rows:
        raise item.error("query_id", f"{name} has no row in tubes.csv")
    if video not in durations:
        raise item.error("video_id", f"{video} has no row in video.csv")
    if not video.replace("-", "").replace("_", "").isalnum():
        raise item.error("video_id", f"expected a YouTube id, got {video!r:.40}")
    seconds, boxes, notes = _tube(rows[name])
    spans, said = _windows(seconds, durations[video])
    return Record(
        dataset=NAME,
        split=split,
        id=name,
        task="stvg",
        query=item.text("query_text"),
        video=VideoRef(
            id=video,
            files=tuple(
                f"{place}{video}{end}"
                for place in ("videos/", "video/", "")
                for end in (".mp4", ".mkv", ".webm")
            ),
            duration_s=durations[video],
        ),
        spans=spans,
        targets=(Target(boxes, times_s=seconds.astype(np.float64)),),
        source={"file": Path(item.file).name, "line": item.where.split()[-1]},
        notes=tuple(notes + said),
    )


def _tube(rows: list[Item]) -> tuple[IntArray, FloatArray, list[str]]:
    """Whole seconds (N,), boxes (N, 4) and notes of the rows of one query, in order of time."""
    found: dict[int, FloatArray] = {}
    for row in rows:
        time_ms = row.whole("time_ms", 0, 10**9)
        if time_ms % _STEP_MS:
            raise row.error(
                "time_ms", f"the truth is on whole seconds, got {time_ms} ms (a prediction file?)"
            )
        if time_ms in found:
            raise row.error("time_ms", f"{time_ms} ms has two boxes: one per second was expected")
        found[time_ms] = box_rows(row, "x0", [[row.number(key) for key in ("x0", "y0", "x1", "y1")]], "xyxy")[
            0
        ]
    order = sorted(found)
    boxes, notes = from_fractions(rows[0], "x0", np.array([found[time_ms] for time_ms in order]))
    return np.array(order, dtype=np.int64) // _STEP_MS, boxes, notes


def _windows(seconds: IntArray, duration_s: float) -> tuple[tuple[Span, ...], list[str]]:
    """Runs of consecutive seconds as spans [first, last + 1), cut at the end of the video."""
    notes: list[str] = []
    runs = np.split(seconds, np.nonzero(np.diff(seconds) > 1)[0] + 1)
    spans = []
    for run in runs:
        end_s = float(run[-1] + 1)
        if duration_s < end_s and duration_s > run[-1]:
            notes.append(f"span-past-end: second {run[-1]} is cut at the end of the video, {duration_s:g} s")
            end_s = duration_s
        elif duration_s <= run[-1]:
            notes.append(f"span-past-end: second {run[-1]} lies after the end of the video, {duration_s:g} s")
        spans.append(Span(float(run[0]), end_s))
    if len(spans) > 1:
        notes.append(f"several-windows: {len(spans)} runs of seconds")
    return tuple(spans), notes
