"""Runs side by side: scores of each, and paired differences of what is defined per query. Draws nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tubelet.benchmarks.run_folder import Run, read_run
from tubelet.benchmarks.run_score import RunScores, score_run
from tubelet.benchmarks.world_run import is_world_run, read_world_run
from tubelet.errors import DataError
from tubelet.metrics.bootstrap import Interval, paired_difference


@dataclass(frozen=True, slots=True)
class Scored:
    """A run with its scores."""

    run: Run
    scores: RunScores


def collect(folders: Sequence[Path | str], protocol: str | None = None) -> tuple[Scored, ...]:
    """Read and score run folders, those of the toy-world benchmark too.

    DataError: none given, no predictions, or runs on different queries.
    """
    if not folders:
        raise DataError("a report needs at least one run folder, none was given")
    runs = [
        read_world_run(folder) if is_world_run(folder) else read_run(folder, unfinished=True)
        for folder in folders
    ]
    for run in runs:
        if not run.lines:
            raise DataError(f"{run.folder} has no predictions: run the evaluation first")
        odd = {r.id for r in run.records} ^ {r.id for r in runs[0].records}
        if odd or run.card["data_hash"] != runs[0].card["data_hash"]:
            example = f", such as {min(odd)!r}" if odd else " (their data_hash differs)"
            raise DataError(f"{run.folder} and {runs[0].folder} are runs on different queries{example}")
    return tuple(Scored(run, score_run(run, protocol)) for run in runs)


def differences(a: Scored, b: Scored, task: str) -> dict[str, Interval]:
    """Paired a - b of every per-query value of a task, with 95 % intervals. DataError: other ids or protocol."""
    one, two = a.scores.parts[task], b.scores.parts[task]
    if one.protocol != two.protocol:
        raise DataError(f"the runs are scored under {one.protocol} and {two.protocol}: name one protocol")
    out: dict[str, Interval] = {}
    for name, column in one.values.items():
        other = two.values.get(name)
        if other is None:
            continue
        if set(other) != set(column):
            raise DataError(f"the runs have {name} of different queries")
        out[name] = paired_difference(list(column.values()), [other[key] for key in column])
    return out
