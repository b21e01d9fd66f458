"""The Ray engine: the same job and ledger as `tubelet.scale.local`, streamed through Ray Data on many machines.

Every stage is a pool of actors with its own CPUs and GPUs; Ray Data streams between them with backpressure. The
driver claims `Job.wave` items at a time, which bounds its memory, and alone writes the ledger. A step that raises
costs its item a try; the same actor tries again at once, since a new wave means new actors. A worker that dies ends
the wave as far as Ray cannot repeat it: its unfinished items come back in smaller waves, down to one item, which is
then blamed. `Job.lease_s` is not watched here. Stages must be importable on every machine.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tubelet.errors import ModelError, OutputError, RecipeError
from tubelet.scale.job import Job, Meter, Report, Stage, make_step, reason_of, run_step
from tubelet.scale.ledger import Item, Ledger

_SHRINK = 8  # after a death the next wave is so many times smaller


class _Box:
    """Keeps Arrow from changing the types of what goes from stage to stage."""

    def __init__(self, value: Any) -> None:
        self.value = value


class _Actor:
    def __init__(self, stage: Stage, last: bool) -> None:
        self.stage, self.last = stage, last
        self.step: Any = None
        self.broken = ""
        try:
            self.step = make_step(stage)
        except Exception as error:  # noqa: BLE001  whatever a stage raises is told to the driver, which stops the job
            self.broken = reason_of(stage, error)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        if row["kind"] != "done":
            return row
        if self.broken:
            return row | {"kind": "broken", "box": _Box(self.broken)}
        failures = list(row["failures"].value)
        while len(failures) < row["tries"]:
            try:
                values = run_step(self.stage, self.step, row["key"], row["box"].value, self.last)
            except OutputError as error:
                return row | {"kind": "full", "box": _Box(str(error))}
            except RecipeError as error:
                return row | {"kind": "broken", "box": _Box(str(error))}
            except Exception as error:  # noqa: BLE001  a poison item must not end the job: it is counted and set aside
                failures.append(reason_of(self.stage, error))
            else:
                return row | {"failures": _Box(failures), "box": _Box(values)}
        return row | {"kind": "failed", "failures": _Box(failures), "box": _Box(None)}


@dataclass(frozen=True)
class _Restarts:
    """How often Ray starts a dead actor, and its task, again."""

    times: int

    def __call__(self) -> dict[str, Any]:
        return {"max_restarts": self.times, "max_task_retries": self.times}


def run_ray(job: Job, ledger: Ledger, report: Report | None = None, address: str | None = None) -> None:
    """Run all items that are to do. address: a cluster ("auto"); None: the one that is connected, or a local one.

    Raises ModelError when ray is missing or a stage cannot start, OutputError when nothing can be written; what was
    finished until then stays in the ledger.
    """
    try:
        import ray
    except ImportError as error:
        raise ModelError(
            "the ray engine needs ray: pip install 'tubelet[scale]', or use --engine local"
        ) from error
    if not ray.is_initialized():
        os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 starves workers beside anything else
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    meter = Meter(ledger, report)
    wave = job.wave
    try:
        while items := ledger.claim(wave, job.lease_s):
            wave = _wave(job, ledger, meter, items, wave)
    finally:
        ledger.release()


def _wave(job: Job, ledger: Ledger, meter: Meter, items: list[Item], size: int) -> int:
    """One wave; returns the size of the next one."""
    import ray

    left = {item.seq for item in items}
    try:
        for row in _stream(job, items):
            seq, kind, value = int(row["seq"]), row["kind"], row["box"].value
            if kind == "broken":
                raise ModelError(value)
            if kind == "full":
                raise OutputError(value)
            left.discard(seq)
            for reason in row["failures"].value:
                meter.add(aside=int(ledger.fail(seq, reason, job.max_tries)))
            if kind == "done":
                ledger.finish(seq, value)
                meter.add(done=1)
    except ray.exceptions.RayError as error:
        if len(items) > 1 or not left:
            ledger.release(left)
            return max(1, min(size, len(items)) // _SHRINK)
        said = f"its worker died ({type(error).__name__})"
        meter.add(aside=int(ledger.fail(items[0].seq, said, job.max_tries)))
        return 1
    return min(job.wave, size * 2)


def _stream(job: Job, items: list[Item]) -> Iterator[dict[str, Any]]:
    import ray

    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    rows = [
        {
            "seq": item.seq,
            "key": item.key,
            "kind": "done",
            "tries": max(1, job.max_tries - item.tries),
            "failures": _Box([]),
            "box": _Box(list(item.payloads)),
        }
        for item in items
    ]
    blocks = max(1, min(len(items), 4 * max(stage.workers for stage in job.stages)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray calls both ways of naming restarts deprecated
        data: Any = ray.data.from_items(rows, override_num_blocks=blocks)
        for number, stage in enumerate(job.stages, 1):
            data = data.map(
                _Actor,
                fn_constructor_args=(stage, number == len(job.stages)),
                compute=ray.data.ActorPoolStrategy(size=stage.workers),
                num_cpus=stage.cpus,
                num_gpus=stage.gpus,
                ray_remote_args_fn=_Restarts(job.max_tries),
            )
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # set up by Ray when the first data are made
    yield from data.iter_rows()
