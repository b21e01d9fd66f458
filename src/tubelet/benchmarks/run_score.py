"""Scores of a run, from its folder alone: one `Part` per task, under a protocol that fits the task.

Every query counts: a failure, and a query without a prediction, is 0 and listed. Queries whose truth is hidden are
counted apart. Where records have tags of few values, there is a breakdown by each. How the queries of a task are
scored is in `run_part`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tubelet.benchmarks.part import Number, Part
from tubelet.benchmarks.questions import reader_of
from tubelet.benchmarks.run_folder import METRICS, Run, read_run, write_whole
from tubelet.benchmarks.run_part import CHOICE_TASKS, TUBE_TASKS, score_part
from tubelet.datasets.record import Record
from tubelet.errors import DataError
from tubelet.metrics.bootstrap import bootstrap_table
from tubelet.metrics.choices import CHOICE_READERS
from tubelet.metrics.moments import SPAN_PROTOCOLS
from tubelet.metrics.protocols import PROTOCOLS
from tubelet.metrics.referring import BOX_PROTOCOLS

__all__ = [
    "Number",
    "Part",
    "RunScores",
    "check_protocol",
    "protocol_of",
    "protocols_for",
    "rescore",
    "score_run",
]

_MOST_GROUPS = 24
_DEFAULTS = {("vue-stg", "stvg"): "vue_stg", ("didemo", "tvg"): "didemo", ("refcoco", "rec"): "refcoco"}


@dataclass(frozen=True, slots=True)
class RunScores:
    """Parts by task. n_missing: queries without a prediction (they are among the failures too)."""

    parts: Mapping[str, Part]
    n: int
    n_missing: int
    problems: tuple[str, ...] = ()

    @property
    def n_failed(self) -> int:
        return sum(part.n_failed for part in self.parts.values())

    def to_dict(self, card: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "schema": 1,
            "run": dict(card),
            "n": self.n,
            "n_failed": self.n_failed,
            "n_missing": self.n_missing,
            "parts": {task: part.to_dict() for task, part in self.parts.items()},
            "problems": list(self.problems),
        }


def protocols_for(task: str) -> tuple[str, ...]:
    """The names of the protocols that score a task; none where answers are only kept."""
    if task in TUBE_TASKS:
        return tuple(PROTOCOLS)
    if task in ("tvg", "elc"):
        return (*SPAN_PROTOCOLS, "didemo") if task == "tvg" else tuple(SPAN_PROTOCOLS)
    if task == "rec":
        return tuple(BOX_PROTOCOLS)
    return tuple(CHOICE_READERS) if task in CHOICE_TASKS else ()


def check_protocol(protocol: str | None, tasks: Sequence[str]) -> None:
    """DataError, before any work is done, when a protocol scores none of these tasks."""
    if protocol is None or any(protocol in protocols_for(task) for task in tasks):
        return
    offered = dict.fromkeys(name for task in tasks for name in protocols_for(task))
    raise DataError(
        f"protocol {protocol!r} scores none of the tasks here ({', '.join(tasks)}): "
        f"there are {', '.join(offered) or 'no protocols for them'}"
    )


def protocol_of(benchmark: str, task: str, protocol: str | None) -> str:
    """The given protocol where it scores this task, else the default of benchmark and task."""
    if protocol in protocols_for(task):
        return str(protocol)
    if task in CHOICE_TASKS:
        return reader_of(benchmark)
    return _DEFAULTS.get((benchmark, task), "tubelet")


def rescore(
    folder: Path | str, protocol: str | None = None, *, keep_good: bool = False, unfinished: bool = False
) -> RunScores:
    """Score a run again from its files alone, and write metrics.json; see `read_run` for the options."""
    run = read_run(folder, keep_good=keep_good, unfinished=unfinished)
    scores = score_run(run, protocol)
    write_whole(
        run.folder / METRICS, json.dumps(scores.to_dict(run.card), ensure_ascii=False, indent=1) + "\n"
    )
    return scores


def score_run(run: Run, protocol: str | None = None) -> RunScores:
    """Scores of every task of a run. `protocol` applies to the tasks it can score; None: the card's, else defaults."""
    asked = protocol or run.card.get("protocol") or None
    check_protocol(asked, run.tasks)
    parts: dict[str, Part] = {}
    for task in run.tasks:
        records = [r for r in run.records if r.task == task]
        shown = [r for r in records if r.labelled]
        chosen = protocol_of(str(run.card["benchmark"]), task, asked)
        part = score_part(run, task, shown, chosen) if shown else Part(task, chosen, 0, {})
        hidden = len(records) - len(shown)
        notes = part.notes
        if hidden:
            notes += (f"{hidden} queries have no public truth: their answers are kept, not scored",)
        parts[task] = replace(
            part, n=len(records), n_hidden=hidden, notes=notes, groups=_groups(shown, part.values)
        )
    return RunScores(parts, len(run.records), len(run.missing), run.problems)


def _groups(
    records: Sequence[Record], values: Mapping[str, Mapping[str, float]]
) -> dict[str, dict[str, dict[str, Number]]]:
    """Means of every value by every tag that has 2 to 24 different values."""
    out: dict[str, dict[str, dict[str, Number]]] = {}
    names = dict.fromkeys(name for record in records for name in record.tags)
    for tag in names:
        label = {r.id: _label(r.tags.get(tag)) for r in records}
        kinds = sorted({value for value in label.values() if value is not None})
        if not 2 <= len(kinds) <= _MOST_GROUPS:
            continue
        out[tag] = {}
        for kind in kinds:
            columns = {
                name: [v for key, v in column.items() if label.get(key) == kind]
                for name, column in values.items()
            }
            metrics: dict[str, Number] = {}
            for name, column in columns.items():
                metrics |= bootstrap_table({name: column}) if column else {}
            out[tag][kind] = metrics
    return out


def _label(value: Any) -> str | None:
    return str(value) if isinstance(value, str | bool | int) and value != "" else None
