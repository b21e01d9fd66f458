"""Readers of files that are scored against a dataset: one `Answer` per record, in the order of the file.

    tubelet       {"id", "prediction": {...}} per line (predictions.jsonl of a run)
    moment_detr   {"qid", "pred_relevant_windows": [[s, e, score]], "pred_saliency_scores"?} per line
    vue_stg       CSV query_id, time_ms, x0, y0, x1, y1
    qwen          {"id", "answer": "free text"} per line; units as declared

A record of the wrong shape is broken (raised, or counted with keep_going); odd values are the checks' business.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from tubelet.datasets.fields import Item, RecordError, one_line, show
from tubelet.errors import DataError
from tubelet.scoring.answers import Answer, BoxUnit, RawTube, TimeUnit
from tubelet.scoring.lines import Source, csv_items, json_items
from tubelet.scoring.raw import IDS, LONGEST, number, pair, record_id
from tubelet.scoring.text import read_text
from tubelet.tube import SCHEMA_VERSION

TEXTS = ("answer", "response", "output", "text", "model_output", "raw_response", "prediction", "pred")
VUE_COLUMNS = ("query_id", "time_ms", "x0", "y0", "x1", "y1")
_STEP_MS = 1000


@dataclass(frozen=True, slots=True)
class Options:
    """What a file does not say of itself. fps: of the videos, where neither file nor data says."""

    boxes: BoxUnit | None = None
    times: TimeUnit | None = None
    fps: float | None = None
    task: str | None = None


def each(
    source: Source,
    known: Collection[str],
    make: Callable[[Item], Answer],
    ids: tuple[str, ...] = IDS,
) -> Iterator[Answer]:
    """make(item) of every record; one that is broken is raised or counted. Of unknown queries only the id is read."""
    for item in without_header(json_items(source)):
        try:
            name = record_id(item, ids)
            yield make(item) if name in known else Answer(name, item.where)
        except RecordError as error:
            source.broken(error)


def without_header(items: Iterable[Item]) -> Iterator[Item]:
    """All records but the first where that only says what was run: runs on the toy world begin so."""
    return (item for k, item in enumerate(items) if k or set(item.data) != {"run"})


# --- tubelet ----------------------------------------------------------------------------------------


def read_tubelet(source: Source, options: Options, known: Collection[str]) -> Iterator[Answer]:
    return each(source, known, lambda item: _tubelet(item, options))


def _tubelet(item: Item, options: Options) -> Answer:
    name, told = record_id(item), item.child("prediction")
    if told.raw("schema") != SCHEMA_VERSION:
        raise told.error("schema", f"this tubelet reads {SCHEMA_VERSION}, got {show(told.data['schema'])}")
    reason = told.data.get("failure")
    if reason is not None and not isinstance(reason, str):
        raise told.error("failure", f"expected text or null, got {show(reason)}")
    text = told.data.get("text", "")
    if not isinstance(text, str):
        raise told.error("text", f"expected text, got {show(text)}")
    tubes = tuple(_tubelet_tube(tube) for tube in told.children("tubes"))
    failure = None if reason is None else ("no-answer", one_line(reason) or "no reason given")
    return Answer(
        name, item.where, () if failure else tubes, text, failure, boxes_unit=options.boxes or BoxUnit()
    )


def _tubelet_tube(item: Item) -> RawTube:
    span = item.child("span")
    ends = number(span, "start_s", span.raw("start_s")), number(span, "end_s", span.raw("end_s"))
    times = _floats(item, "times_s")
    boxes = _rows(item, "boxes_xyxy")
    if len(times) != len(boxes):
        raise item.error("boxes_xyxy", f"expected one box per time, got {len(boxes)} for {len(times)}")
    score = item.data.get("score")
    return RawTube.make(ends, times, boxes, None if score is None else number(item, "score", score))


def _floats(item: Item, key: str) -> list[float]:
    values = item.items(key)
    if len(values) > LONGEST:
        raise item.error(key, f"expected at most {LONGEST} numbers, got {len(values)}")
    if all(type(x) is float for x in values):
        return values
    return [number(item, f"{key}[{k}]", x) for k, x in enumerate(values)]


def _rows(item: Item, key: str) -> list[list[float]]:
    rows = item.items(key)
    for k, row in enumerate(rows):
        if not isinstance(row, list) or len(row) != 4:
            raise item.error(f"{key}[{k}]", f"expected a box of four numbers, got {show(row)}")
    return [
        row if all(type(x) is float for x in row) else [number(item, f"{key}[{k}]", x) for x in row]
        for k, row in enumerate(rows)
    ]


# --- moment_detr ------------------------------------------------------------------------------------


def read_moment_detr(source: Source, options: Options, known: Collection[str]) -> Iterator[Answer]:
    return each(source, known, lambda item: _moments(item, options))


def _moments(item: Item, options: Options) -> Answer:
    tubes = []
    for k, row in enumerate(item.items("pred_relevant_windows")):
        key = f"pred_relevant_windows[{k}]"
        if not isinstance(row, list) or len(row) not in (2, 3):
            raise item.error(key, f"expected [start, end, score], got {show(row)}")
        score = number(item, key, row[2]) if len(row) == 3 else None
        tubes.append(RawTube.make(pair(item, key, row[:2]), score=score))
    native: dict[str, Any] | None = None
    if item.has("pred_saliency_scores"):
        saliency = _floats(item, "pred_saliency_scores")
        if not np.isfinite(saliency).all():
            raise item.error("pred_saliency_scores", "expected finite numbers, got NaN or infinity")
        native = {"pred_saliency_scores": saliency}
    failure = None if tubes else ("no-answer", "no window in the list")
    return Answer(
        record_id(item),
        item.where,
        tuple(tubes),
        failure=failure,
        times_unit=options.times or TimeUnit(),
        native=native,
    )


# --- VUE-STG ----------------------------------------------------------------------------------------


def read_vue_stg(source: Source, options: Options, known: Collection[str]) -> Iterator[Answer]:
    """One answer per query. The file is read twice: first to see which queries have their rows in several places,
    so that only those are kept in memory to the end. Rows of unknown queries are counted once per run of rows."""
    unit = options.boxes or BoxUnit()
    scattered = _scattered(source, known)
    kept: dict[str, _Rows] = {}
    current: _Rows | None = None
    for item in csv_items(source, VUE_COLUMNS):
        try:
            name = item.text("query_id")
            values = [number(item, key, item.raw(key)) for key in VUE_COLUMNS[1:]]
        except RecordError as error:
            source.broken(error)
            continue
        if current is None or current.id != name:
            if current is not None and current.id not in scattered:
                yield current.answer(unit)
            current = kept.setdefault(name, _Rows(name, item.where)) if name in scattered else None
            current = current or _Rows(name, item.where)
        current.add(values)
    if current is not None and current.id not in scattered:
        yield current.answer(unit)
    for rows in kept.values():
        yield rows.answer(unit)


def _scattered(source: Source, known: Collection[str]) -> set[str]:
    """Known queries whose rows do not follow each other."""
    quiet = Source(source.path, type(source.counts)(), keep_going=True)
    seen: set[str] = set()
    out: set[str] = set()
    last = ""
    for item in csv_items(quiet, VUE_COLUMNS):
        name = str(item.data["query_id"]).strip()
        if name != last and name in known:
            if name in seen:
                out.add(name)
            seen.add(name)
        last = name
    return out


class _Rows:
    """Rows of one query: as many as there are different seconds; of rows in one second the first counts."""

    def __init__(self, name: str, where: str) -> None:
        self.id, self.where = name, where
        self.numbers = array("d")
        self.seconds: set[float] = set()
        self.repeats = self.nothing = 0

    def add(self, values: list[float]) -> None:
        if all(x != x for x in values):  # a line without numbers: the query was asked, there is no answer
            self.nothing += 1
            return
        if math.isfinite(sum(values)) and abs(values[0]) < 2.0**53:
            second = float((int(values[0]) * 2 + _STEP_MS) // (2 * _STEP_MS))
            if second in self.seconds:
                self.repeats += 1
                return
            self.seconds.add(second)
        elif len(self.numbers) > 5 * LONGEST:
            return
        self.numbers.extend(values)

    def answer(self, unit: BoxUnit) -> Answer:
        rows = np.array(self.numbers).reshape(-1, 5)
        failure = None if len(rows) else ("no-answer", "rows without numbers")
        times = np.floor((rows[:, 0] / _STEP_MS) + 0.5) if len(rows) else np.empty(0)
        fine = np.isfinite(rows).all(axis=1) & (np.abs(rows[:, 0]) < 2.0**53)
        span = (float(times.min()), float(times.max()) + 1.0) if len(rows) else None
        return Answer(
            self.id,
            self.where,
            (RawTube.make(span, times, rows[:, 1:]),) if len(rows) else (),
            failure=failure,
            boxes_unit=unit,
            repeats=self.repeats,
            native={"rows": rows[fine]},
        )


# --- text -------------------------------------------------------------------------------------------


def read_qwen(source: Source, options: Options, known: Collection[str]) -> Iterator[Answer]:
    return each(source, known, lambda item: _qwen(item, options), (*IDS, "__key__"))


def _qwen(item: Item, options: Options) -> Answer:
    text = next((item.data[key] for key in TEXTS if isinstance(item.data.get(key), str)), None)
    if text is None:
        raise item.error(TEXTS[0], f"is missing: the text is expected as one of {', '.join(TEXTS)}")
    size = (
        (item.whole("width", 1, 10**6), item.whole("height", 1, 10**6))
        if item.has("width") and item.has("height")
        else None
    )
    said = read_text(text)
    common: dict[str, Any] = {
        "boxes_unit": options.boxes or BoxUnit(),
        "times_unit": options.times or TimeUnit(),
        "inclusive": True,
        "size": size,
    }
    name = record_id(item, (*IDS, "__key__"))
    if said is None:
        reason = f"no span and no box in {text[:60]!r}" if text.strip() else "the answer is empty"
        return Answer(name, item.where, text=text, failure=("unread", reason), **common)
    if said.boxes and options.boxes is None and options.task != "tvg":
        raise DataError(
            f"{item.file}, {item.where}: the answer holds boxes and nothing says their unit: "
            "give --boxes fraction, 1000, pixel or pixel:WIDTHxHEIGHT"
        )
    tube = RawTube.make(said.span, [t for t, _ in said.boxes], [b for _, b in said.boxes])
    return Answer(name, item.where, (tube,), text=text, **common)
