"""`score_file`: a prediction file of any format, its truth, and one column of scores per protocol.

The file is read record by record and scored in batches; what is kept per query is its id and one number per metric.
What stops the scoring, unless `keep_going`: broken records, repeated ids, predictions for unknown queries. What is
always only counted: missing predictions and odd values (`answers.KINDS`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

from tubelet.datasets.fields import Item
from tubelet.errors import DataError
from tubelet.metrics.bootstrap import Interval
from tubelet.scoring.answers import KINDS, Answer, BoxUnit, Counts, TimeUnit
from tubelet.scoring.columns import Column, make_column, protocols_for
from tubelet.scoring.formats import Format, detect, first_item, format_of
from tubelet.scoring.lines import Source
from tubelet.scoring.read_doro import has_truth, read_doro, read_doro_cases
from tubelet.scoring.read_llavast import read_llavast
from tubelet.scoring.read_stvg_r1 import read_stvg_r1
from tubelet.scoring.readers import Options, read_moment_detr, read_qwen, read_tubelet, read_vue_stg
from tubelet.scoring.truths import Case, Queries, load_queries

BATCH = 256
BATCH_NUMBERS = 400_000
OwnCases = Iterator[tuple[Item, str, Case]]


@dataclass(frozen=True, slots=True)
class ColumnScores:
    """One protocol. n: all queries; failures: id -> reason, each counted as the protocol counts an empty answer."""

    protocol: str
    n: int
    metrics: dict[str, Interval]
    failures: dict[str, str]
    notes: tuple[str, ...] = ()
    own: bool = False

    @property
    def n_failed(self) -> int:
        return len(self.failures)


@dataclass(frozen=True, slots=True)
class FileScores:
    """What `score_file` found. counts: odd things (`answers.KINDS`) with examples; missing: ids without prediction."""

    file: str
    format: str
    truth: str
    task: str
    n: int
    columns: dict[str, ColumnScores]
    counts: Counts
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())

    @property
    def left_out(self) -> int:
        """Records of the file that are in no number: broken ones, repeated ids, unknown queries."""
        return sum(self.counts[kind] for kind in ("broken", "duplicate-id", "unknown-query"))


def score_file(
    path: Path | str,
    fmt: str | None = None,
    protocols: Sequence[str] = (),
    *,
    benchmark: str | None = None,
    data: Path | str | None = None,
    split: str | None = None,
    task: str | None = None,
    boxes: str | None = None,
    times: str | None = None,
    fps: float | None = None,
    keep_going: bool = False,
) -> FileScores:
    """Score a prediction file under one or several protocols.

    Args:
        fmt: a name of `FORMATS`; None: told from the file where that leaves no doubt.
        protocols: names for the task; none: the format's own and tubelet's default.
        benchmark, data, split: the truth, for formats without it: a dataset, its folder, its split.
        task: of the truth, where there are several: stvg, svg or tvg.
        boxes, times: the units of the file, see `BoxUnit.parse` and `TimeUnit.parse`; None: the format's usual.
        fps: frames per second of the videos, where neither the file nor the annotation says.
        keep_going: leave out and count what otherwise raises.

    Raises DataError for what cannot be read, for missing options, and for protocols that do not fit.
    """
    source = Source(Path(path), Counts(), keep_going)
    chosen = format_of(fmt) if fmt else detect(source.path)
    options = Options(
        BoxUnit.parse(boxes) if boxes else None, TimeUnit.parse(times) if times else None, fps, task
    )
    if fps is not None and not 0.01 <= fps <= 1000:
        raise DataError(f"fps is a rate between 0.01 and 1000 per second, got {fps:g}")
    own = chosen.own_truth == "always" or (
        chosen.own_truth == "some" and benchmark is None and has_truth(first_item(source.path))
    )
    if own:
        if benchmark is not None or data is not None:
            raise DataError(f"format {chosen.name} carries its own truth: leave --benchmark and --data out")
        return _score_own(source, chosen, options, protocols)
    if benchmark is None or data is None:
        raise DataError(
            f"format {chosen.name} holds no truth: give --benchmark NAME and --data DIR (see `tubelet data list`)"
        )
    return _score_against(source, chosen, options, protocols, benchmark, data, split)


def _score_own(source: Source, chosen: Format, options: Options, protocols: Sequence[str]) -> FileScores:
    cases: OwnCases
    if chosen.name == "llavast":
        cases = read_llavast(source, options)
    elif chosen.name == "stvg_r1":
        cases = read_stvg_r1(source, options)
    else:
        cases = read_doro_cases(source, options)
    first = next(cases, None)
    if first is None:
        raise DataError(f"{source.path}: no record could be read{_examples(source.counts)}")
    task = first[1]
    if options.task is not None and options.task != task:
        raise DataError(f"{source.path} holds records of task {task}, not {options.task}")
    name = "doro_own" if chosen.name == "doro" else chosen.name
    columns = _columns(protocols, chosen, task, name)

    def unique() -> Iterator[Case]:
        seen: set[str] = set()
        for item, kind, case in chain([first], cases):
            if kind != task:
                source.odd("broken", item, f"a record of task {kind} among records of task {task}")
            elif case.id in seen:
                source.odd("duplicate-id", item, f"the id {case.id!r:.80} was there before")
            else:
                seen.add(case.id)
                yield case

    n = _run(unique(), columns)
    notes = ["the truth is the file's own; every protocol counts the frames that have true boxes there"]
    if chosen.name == "llavast" and task in ("stvg", "svg", "elc"):
        notes.append(
            "25 frames per second are assumed where a record has no fps (--fps); few protocols depend on it"
        )
    if task == "svg":
        notes.append("the true span is given in this task: tIoU says nothing")
    return _result(source, chosen, "its own", task, n, columns, (), notes[: 1 if task == "tvg" else None])


def _score_against(
    source: Source,
    chosen: Format,
    options: Options,
    protocols: Sequence[str],
    benchmark: str,
    data: Path | str,
    split: str | None,
) -> FileScores:
    tasks = (options.task,) if options.task else chosen.tasks
    if not set(tasks) <= set(chosen.tasks):
        raise DataError(
            f"format {chosen.name} holds answers to {' or '.join(chosen.tasks)}, not {options.task}"
        )
    queries = load_queries(benchmark, data, split, tasks, options.fps)
    options = replace(options, task=queries.task)
    columns = _columns(protocols, chosen, queries.task, chosen.name)
    seen: set[str] = set()
    missing: list[str] = []

    def cases() -> Iterator[Case]:
        for answer in _answers(source, chosen, options, queries):
            record = queries.find(answer.id)
            item = Item({}, str(source.path), answer.where)
            if record is None:
                source.odd(
                    "unknown-query",
                    item,
                    f"there is no query {answer.id!r:.80} in {queries.dataset} {queries.split}",
                )
            elif record.id in seen:
                source.odd("duplicate-id", item, f"the id {answer.id!r:.80} was there before")
            else:
                seen.add(record.id)
                yield queries.case(answer, record, source.counts)
        if not seen:
            raise DataError(f"{source.path}: no prediction for any query{_examples(source.counts)}")
        for name, query in {r.id: r for r in queries.records.values()}.items():
            if name not in seen:
                source.counts.add("missing", name)
                missing.append(name)
                yield queries.case(None, query, source.counts)

    n = _run(cases(), columns)
    notes = [text if k == n else f"{text} ({k} queries)" for text, k in queries.notes.items()]
    truth = f"{queries.dataset} {queries.split}"
    return _result(source, chosen, truth, queries.task, n, columns, tuple(missing), notes)


def _answers(source: Source, chosen: Format, options: Options, queries: Queries) -> Iterator[Answer]:
    readers = {
        "vue_stg": read_vue_stg,
        "tubelet": read_tubelet,
        "moment_detr": read_moment_detr,
        "qwen": read_qwen,
        "doro": read_doro,
    }
    return readers[chosen.name](source, options, queries.records.keys())


def _columns(protocols: Sequence[str], chosen: Format, task: str, name: str) -> list[Column]:
    asked = list(dict.fromkeys(protocols)) or list(dict.fromkeys((chosen.protocol(task), "tubelet")))
    offered = protocols_for(task)
    if not offered:
        raise DataError(f"answers to task {task} are not scored here")
    return [make_column(protocol, task, name) for protocol in asked]


def _run(cases: Iterator[Case], columns: Sequence[Column]) -> int:
    batch: list[Case] = []
    n = weight = 0
    for case in cases:
        batch.append(case)
        weight += case.weight
        n += 1
        if len(batch) >= BATCH or weight >= BATCH_NUMBERS:
            _add(columns, batch)
            batch, weight = [], 0
    _add(columns, batch)
    return n


def _add(columns: Sequence[Column], batch: Sequence[Case]) -> None:
    for column in columns:
        column.add(batch)


def _result(
    source: Source,
    chosen: Format,
    truth: str,
    task: str,
    n: int,
    columns: Sequence[Column],
    missing: tuple[str, ...],
    notes: Sequence[str],
) -> FileScores:
    scored = {}
    for column in columns:
        metrics, said = column.metrics()
        scored[column.protocol] = ColumnScores(
            column.protocol, column.n, metrics, column.failures, tuple(said), column.own
        )
    counts = source.counts
    out = list(notes)
    if counts["other-unit"] or counts["mixed-units"]:
        odd = counts["other-unit"] + counts["mixed-units"]
        out.append(
            f"mixed coordinates: {odd} of {n} answers are not in the declared unit; were --boxes right?"
        )
    if any(c.own for c in columns) and any(counts[k] for k in _VALUES):
        own = ", ".join(c.protocol for c in columns if c.own)
        out.append(
            f"{own}: odd values are scored as its own evaluator scores them, in the other columns they fail"
        )
    return FileScores(str(source.path), chosen.name, truth, task, n, scored, counts, missing, tuple(out))


_VALUES = ("not-finite", "reversed-span", "inverted-box", "mixed-units", "other-unit")


def _examples(counts: Counts) -> str:
    texts = [text for kind in KINDS for text in counts.examples.get(kind, [])]
    return f"; the first problem: {texts[0]}" if texts else ""


def to_dict(scores: FileScores) -> dict[str, Any]:
    """Everything as JSON (NaN as null)."""

    def interval(value: Interval) -> dict[str, Any]:
        return {k: None if v != v else v for k, v in value.to_dict().items()}

    return {
        "schema": 1,
        "file": scores.file,
        "format": scores.format,
        "truth": scores.truth,
        "task": scores.task,
        "n": scores.n,
        "protocols": {
            name: {
                "n": c.n,
                "n_failed": c.n_failed,
                "own_evaluator": c.own,
                "metrics": {k: interval(v) for k, v in c.metrics.items()},
                "failures": [{"id": key, "reason": reason} for key, reason in c.failures.items()],
                "notes": list(c.notes),
            }
            for name, c in scores.columns.items()
        },
        "counts": {
            kind: {
                "n": scores.counts[kind],
                "meaning": KINDS[kind],
                "examples": scores.counts.examples.get(kind, []),
            }
            for kind in KINDS
        },
        "missing": list(scores.missing),
        "notes": list(scores.notes),
    }
