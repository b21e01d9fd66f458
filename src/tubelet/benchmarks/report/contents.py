"""Everything a report says, as data: `make_contents`. The page and the markdown only lay it out.

Per task: the scores of every run, paired differences to the first run, breakdowns, rejection, calibration, cases,
failures. Every number is one of `score_run`'s, or a mean of its per-query values.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tubelet.benchmarks.report.breakdown import (
    Breakdown,
    breakdowns,
    group_differences,
    group_means,
)
from tubelet.benchmarks.report.cases import CaseGroup, Pictures, case_groups
from tubelet.benchmarks.report.collect import Scored, collect, differences
from tubelet.benchmarks.report.presence import Calibration, Rejection, calibrations, rejection
from tubelet.benchmarks.run_score import Number, Part
from tubelet.errors import DataError, RecipeError
from tubelet.metrics.bootstrap import Interval

FEW = 10
"""Bootstrap intervals of fewer queries than this are too narrow to lean on."""

_HEADLINES = ("vIoU", "tIoU", "IoU", "accuracy", "rank@1", "exact_answer")
_OTHERS = ("tIoU", "sIoU_given_span", "accuracy_tubelet")
_CARD = (
    "model",
    "revision",
    "benchmark",
    "split",
    "task",
    "n",
    "protocol",
    "data_hash",
    "data",
    "sampling",
    "span_reader",
    "seed",
    "limit",
    "shard",
    "versions",
    "hardware",
    "seconds",
)


@dataclass(frozen=True, slots=True)
class Rows:
    """A breakdown with its numbers. means: per column (of a run, or of a value of the one run), label -> mean.

    differences: label -> paired difference of every further run to the first.
    """

    breakdown: Breakdown
    columns: tuple[str, ...]
    means: tuple[Mapping[str, Interval], ...]
    differences: tuple[Mapping[str, Interval], ...]


@dataclass(frozen=True, slots=True)
class TaskReport:
    """One task. parts, rejections, calibrations: per run. headline: the per-query value that leads, None without.

    baselines: name -> metric -> interval, as the run that made them wrote them. differences: of every run after the
    first to the first. reasons: per run, reason of failure -> ids.
    """

    task: str
    protocol: str
    headline: str | None
    parts: tuple[Part, ...]
    baselines: Mapping[str, Mapping[str, Interval]]
    differences: tuple[Mapping[str, Interval], ...]
    rows: tuple[Rows, ...]
    rejections: tuple[Rejection | None, ...]
    calibrations: tuple[tuple[Calibration, ...], ...]
    cases: tuple[CaseGroup, ...]
    reasons: tuple[Mapping[str, tuple[str, ...]], ...]

    @property
    def metric_names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for part in self.parts for name in part.metrics))


@dataclass(frozen=True, slots=True)
class Contents:
    """A report. names: of the runs, all different. cards: field -> value per run, as text. data: was it there."""

    title: str
    subtitle: str
    names: tuple[str, ...]
    tasks: tuple[TaskReport, ...]
    cards: Mapping[str, tuple[str, ...]]
    problems: tuple[str, ...]
    has_videos: bool


def make_contents(
    folders: Sequence[Path | str],
    data: Path | str | None = None,
    protocol: str | None = None,
    cases: int = 4,
) -> Contents:
    """Read, score and compare runs on the same queries.

    Args:
        folders: run folders (of the toy-world benchmark too); differences are to the first.
        data: where the videos are; None: what the run says, or a folder `data` in it. cases: per group.

    Raises DataError for runs that cannot be read or compared, and a data folder that is none.
    """
    if cases < 0:
        raise RecipeError(f"the number of cases is at least 0, got {cases}")
    if data is not None and not Path(data).is_dir():
        raise DataError(f"{data} is not a folder: give the folder with the videos of the runs")
    if len({str(Path(f).resolve()) for f in folders}) != len(folders):
        raise DataError("a run is given twice: a report compares different runs")
    runs = collect(folders, protocol)
    pictures = Pictures(Path(data) if data is not None else data_of(runs))
    names = names_of(runs)
    tasks = tuple(_task(runs, names, task, pictures, cases) for task in runs[0].run.tasks)
    card = runs[0].run.card
    benchmark = f"{card['benchmark']} {card['split']}".strip()
    models = list(dict.fromkeys(str(s.run.card["model"]) or "a model" for s in runs))
    title = f"{models[0]} on {card['benchmark']}" if len(models) == 1 else " vs ".join(models)
    n = runs[0].scores.n
    failed = ", ".join(str(s.scores.n_failed) for s in runs)
    subtitle = f"{benchmark}: {n} {'query' if n == 1 else 'queries'}, {failed} failed"
    return Contents(
        title=title,
        subtitle=subtitle,
        names=names,
        tasks=tasks,
        cards=_cards(runs),
        problems=tuple(p for s in runs for p in s.scores.problems),
        has_videos=pictures.data is not None,
    )


def data_of(runs: Sequence[Scored]) -> Path | None:
    """The folder of the videos, where a card names one that is there, or one lies in a run folder."""
    for scored in runs:
        told = scored.run.card.get("data")
        for path in ([Path(told)] if isinstance(told, str) and told else []) + [scored.run.folder / "data"]:
            if path.is_dir():
                return path
    return None


def names_of(runs: Sequence[Scored]) -> tuple[str, ...]:
    """As short as tells the runs apart: model; model and revision; with the folder; with a number."""
    model = [str(s.run.card["model"]) or "model" for s in runs]
    with_revision = [f"{m} @{s.run.card['revision']}" for m, s in zip(model, runs, strict=True)]
    with_folder = [f"{m} ({s.run.folder.resolve().name})" for m, s in zip(model, runs, strict=True)]
    for names in (model, with_revision, with_folder):
        if len(set(names)) == len(runs):
            return tuple(names)
    return tuple(f"{name} {k}" for k, name in enumerate(model, start=1))


def headline_of(part: Part) -> str | None:
    """The per-query value that leads."""
    if part.task == "svg" and "sIoU_given_span" in part.values:
        return "sIoU_given_span"
    names = [name for name in part.values if part.values[name]]
    return next((name for name in _HEADLINES if name in names), names[0] if names else None)


def _task(
    runs: Sequence[Scored], names: Sequence[str], task: str, pictures: Pictures, cases: int
) -> TaskReport:
    parts = tuple(s.scores.parts[task] for s in runs)
    headline = headline_of(parts[0])
    against = tuple(differences(s, runs[0], task) for s in runs[1:])
    return TaskReport(
        task=task,
        protocol=parts[0].protocol,
        headline=headline,
        parts=parts,
        baselines=_baselines(runs, names, parts[0]),
        differences=against,
        rows=tuple(_rows(parts, names, headline, b) for b in breakdowns(runs, task)) if headline else (),
        rejections=tuple(rejection(s, task) for s in runs),
        calibrations=tuple(calibrations(s, task, headline) for s in runs),
        cases=case_groups(runs, task, headline, cases, pictures) if cases else (),
        reasons=tuple(_reasons(part) for part in parts),
    )


def _rows(parts: Sequence[Part], names: Sequence[str], headline: str, breakdown: Breakdown) -> Rows:
    first = parts[0].values
    if len(parts) == 1:
        shown = [headline, *(v for v in _OTHERS if v in first and v != headline)][:3]
        means = tuple(group_means(first[name], breakdown.groups) for name in shown)
        return Rows(breakdown, tuple(shown), means, ())
    columns = [part.values.get(headline, {}) for part in parts]
    return Rows(
        breakdown,
        tuple(names),
        tuple(group_means(column, breakdown.groups) for column in columns),
        tuple(group_differences(column, columns[0], breakdown.groups) for column in columns[1:]),
    )


def _baselines(runs: Sequence[Scored], names: Sequence[str], part: Part) -> dict[str, dict[str, Interval]]:
    """What toy-world runs wrote beside their own scores, under the same protocol; the queries are the same.

    One that is a run of this report is left out. Where runs disagree (untrained models of two kinds) each is named.
    """
    told: list[tuple[str, str, dict[str, Interval]]] = []
    for scored, owner in zip(runs, names, strict=True):
        by_name = scored.run.card.get("baselines")
        if part.protocol != "tubelet" or not isinstance(by_name, Mapping):
            continue
        for name, metrics in by_name.items():
            found = {
                key: Interval(float(v["mean"]), float(v["low"]), float(v["high"]), int(v["n"]))
                for key, v in metrics.items()
                if isinstance(v, Mapping) and {"mean", "low", "high", "n"} <= v.keys()
            }
            if found and not {name, f"{owner}, {name}"} & set(names):  # as benchmarks.world names its models
                told.append((str(name), owner, found))
    out: dict[str, dict[str, Interval]] = {}
    for name, owner, found in told:
        agree = all(other == found for same, _, other in told if same == name)
        out[name if agree else f"{name} of {owner}"] = found
    return out


def _reasons(part: Part) -> dict[str, tuple[str, ...]]:
    """Reasons of failure, the most frequent first, and their queries."""
    order = Counter(part.failures.values()).most_common()
    return {reason: tuple(k for k, r in part.failures.items() if r == reason) for reason, _ in order}


def _cards(runs: Sequence[Scored]) -> dict[str, tuple[str, ...]]:
    """Fields of the cards as text; those that are empty everywhere are left out."""
    out: dict[str, tuple[str, ...]] = {"folder": tuple(s.run.folder.resolve().name for s in runs)}
    for key in _CARD:
        values = tuple(_plain(key, s.run.card.get(key)) for s in runs)
        if any(values):
            out[key] = values
    return out


def _plain(key: str, value: Any) -> str:
    if value in (None, "", {}, []):
        return ""
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {v}" for k, v in value.items())
    if key == "shard" and isinstance(value, list) and len(value) == 2:
        return "" if value == [0, 1] else f"{value[0] + 1} of {value[1]}"
    return str(value)


def number(value: Number) -> str:
    """A metric as text: three decimals and its 95 % interval; a dash where it is not defined."""
    if value is None or (isinstance(value, float) and value != value):
        return "–"
    if isinstance(value, Interval):
        return "–" if value.mean != value.mean else str(value)
    return f"{value:.3f}"


def signed(value: Interval) -> str:
    """A difference as text, with signs."""
    if value.mean != value.mean:
        return "–"
    return f"{value.mean:+.3f} [{value.low:+.3f}, {value.high:+.3f}]"


def verdict(value: Interval) -> str:
    """What the interval of a difference says; "" where it holds 0, and for too few queries to say anything."""
    if value.n < FEW:
        return ""
    return "better" if value.low > 0 else "worse" if value.high < 0 else ""
