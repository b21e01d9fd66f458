"""One job description for both engines: stages with their own resources, and how failures are dealt with.

A stage is named by an importable function, "package.module:function", because worker processes and other machines
import it themselves: `function(**options)` is called once per worker (a model is loaded there) and returns the step,
`step(key, values) -> values`, which gets the values of one item, one per part, and returns as many. The first stage
gets the payloads of the ledger (text), the last one must return text. What a step raises is a failed try of its
item, except `OutputError`: where nothing can be written, the whole job stops and can be resumed.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from tubelet.errors import DataError, RecipeError
from tubelet.scale.ledger import Ledger
from tubelet.scale.ledger_claims import ASIDE, DONE

Step = Callable[[str, Sequence[Any]], Sequence[Any]]


@dataclass(frozen=True, slots=True)
class Stage:
    """One step. make: "module:function"; options: its keyword arguments (JSON values).

    workers: how many processes (actors) run it. cpus, gpus: what each of them reserves on a Ray cluster; of local
    processes gpus says which GPUs each one sees (`devices`). gpus: a fraction of one, or whole ones.
    """

    name: str
    make: str
    options: Mapping[str, Any] = field(default_factory=dict)
    workers: int = 1
    cpus: float = 1.0
    gpus: float = 0.0

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise RecipeError(f"stage {self.name!r} needs at least 1 worker, got {self.workers}")
        if self.cpus < 0 or self.gpus < 0:
            raise RecipeError(
                f"stage {self.name!r}: cpus and gpus are at least 0, got {self.cpus}, {self.gpus}"
            )
        if self.gpus > 1 and self.gpus != round(self.gpus):
            raise RecipeError(
                f"stage {self.name!r}: gpus is a fraction of one GPU or a whole number, got {self.gpus:g}"
            )


@dataclass(frozen=True, slots=True)
class Job:
    """What to run over the items of a ledger.

    max_tries: an item that failed so often is set aside. item_timeout_s: an item that takes longer in one stage counts
    as hung: its worker is killed, which costs it a try. lease_s: a claim whose worker gives no sign of life for so long
    is taken from it, with the same cost. wave: Ray only, how many items are handed over at a time (bounds the driver's
    memory).
    """

    name: str
    stages: tuple[Stage, ...]
    max_tries: int = 3
    lease_s: float = 300.0
    wave: int = 20_000
    item_timeout_s: float = 3600.0

    def __post_init__(self) -> None:
        if not self.stages:
            raise RecipeError(f"job {self.name!r} needs at least one stage")
        if self.max_tries < 1 or self.wave < 1 or not (self.lease_s > 0 and self.item_timeout_s > 0):
            raise RecipeError("max_tries and wave are at least 1, lease_s and item_timeout_s are above 0 s")

    @property
    def beat_s(self) -> float:
        """Between two signs of life: several must be missed before a lease is over."""
        return self.lease_s / 4


@dataclass(frozen=True, slots=True)
class JobProgress:
    """Items so far; rate and time left are of this session."""

    done: int
    aside: int
    total: int
    items_per_s: float
    left_s: float | None


Report = Callable[[JobProgress], None]


class Meter:
    """Counts items for `JobProgress` without asking the ledger again; tells at most every `every_s` seconds."""

    def __init__(self, ledger: Ledger, report: Report | None, every_s: float = 0.2) -> None:
        counts = ledger.counts()
        self.done, self.aside, self.total = counts[DONE], counts[ASIDE], sum(counts.values())
        self._before = self.done + self.aside
        self._report, self._every_s = report, every_s
        self._start_s = self._told_s = time.monotonic()

    def add(self, done: int = 0, aside: int = 0) -> None:
        self.done += done
        self.aside += aside
        now = time.monotonic()
        if self._report is None or (
            now - self._told_s < self._every_s and self.done + self.aside < self.total
        ):
            return
        self._told_s = now
        rate = (self.done + self.aside - self._before) / max(now - self._start_s, 1e-9)
        left = (self.total - self.done - self.aside) / rate if rate > 0 else None
        self._report(JobProgress(self.done, self.aside, self.total, rate, left))


def make_step(stage: Stage) -> Step:
    """Import and call the stage's function. Raises RecipeError when there is no such function."""
    module, _, name = stage.make.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise RecipeError(
            f"stage {stage.name!r}: there is no {stage.make!r} (module:function): {error}"
        ) from error
    return cast(Step, function(**stage.options))


def run_step(stage: Stage, step: Step, key: str, values: Sequence[Any], last: bool = False) -> list[Any]:
    """One item through one stage, with its results counted; those of the last stage are text.

    Raises RecipeError where the stage breaks that, DataError for text that no file can hold.
    """
    out = list(step(key, values))
    if len(out) != len(values):
        raise RecipeError(
            f"stage {stage.name!r} must return one value per part: {len(values)}, got {len(out)}"
        )
    for value in out if last else ():
        if not isinstance(value, str):
            raise RecipeError(
                f"stage {stage.name!r} is the last and must return text, got {type(value).__name__}"
            )
        if not value.isascii() and value.encode("utf-8", "replace") != value.encode("utf-8", "surrogatepass"):
            raise DataError("its result holds half a character (a lone surrogate), which no file can hold")
    return out


def too_late(stage: Stage, job: Job) -> str:
    """Why an item failed that took too long."""
    return f"{stage.name}: took longer than item_timeout_s ({job.item_timeout_s:g} s)"


def gone_silent(stage: Stage, job: Job) -> str:
    """Why an item failed whose worker was not heard of."""
    return f"{stage.name}: its worker gave no sign of life for the lease of {job.lease_s:g} s"


def reason_of(stage: Stage, error: Exception) -> str:
    """Why an item failed, in one line without anything that changes from run to run."""
    said = " ".join(str(error).split()) or "no message"
    return f"{stage.name}: {type(error).__name__}: {said}"[:500]
