"""`Part`: the scores of the queries of one task, and which of its queries failed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tubelet.benchmarks.run_folder import Run
from tubelet.datasets.record import Record
from tubelet.metrics.bootstrap import Interval

Number = Interval | float | None


@dataclass(frozen=True, slots=True)
class Part:
    """Scores of the queries of one task. metrics: with 95 % intervals where they are means over queries.

    n counts all queries; n_hidden of them have no public truth and are not scored. failures: id -> reason, counted
    as 0. groups: tag -> value -> metrics. values: per query, for paired comparisons.
    """

    task: str
    protocol: str
    n: int
    metrics: Mapping[str, Number]
    failures: Mapping[str, str] = field(default_factory=dict)
    n_hidden: int = 0
    groups: Mapping[str, Mapping[str, Mapping[str, Number]]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    values: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def n_failed(self) -> int:
        return len(self.failures)

    def to_dict(self) -> dict[str, Any]:
        return {
            "task": self.task,
            "protocol": self.protocol,
            "n": self.n,
            "n_hidden": self.n_hidden,
            "n_failed": self.n_failed,
            "metrics": _json(self.metrics),
            "groups": {t: {v: _json(m) for v, m in by.items()} for t, by in self.groups.items()},
            "failures": [{"id": key, "reason": reason} for key, reason in self.failures.items()],
            "notes": list(self.notes),
        }


def failures_of(run: Run, records: Sequence[Record]) -> dict[str, str]:
    out: dict[str, str] = {}
    for record in records:
        line = run.lines.get(record.id)
        reason = "no prediction" if line is None else line.prediction.failure
        if reason is not None:
            out[record.id] = reason
    return out


def _json(metrics: Mapping[str, Number]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in metrics.items():
        if isinstance(value, Interval):
            out[name] = {k: None if v != v else v for k, v in value.to_dict().items()}  # NaN is no JSON
        else:
            out[name] = None if value is None or value != value else round(float(value), 6)
    return out
