"""The local engine: worker processes of this machine, fed by one driver that owns the ledger.

Every stage has its own processes (spawned, so that CUDA works). The driver claims few items ahead (two per worker),
which bounds memory and is the backpressure: a slow stage stops the claims. A worker that dies, or holds an item
longer than its lease, costs that item one try, is replaced, and its waiting item goes back. Workers watch the
driver and end with it, so that `kill -9` of the driver leaves nobody behind.
"""

from __future__ import annotations

import os
import queue
import signal
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing import connection, get_context, parent_process
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from tubelet.errors import ModelError, OutputError, RecipeError
from tubelet.scale.job import Job, Meter, Report, Stage, make_step, reason_of, run_step
from tubelet.scale.ledger import Item, Ledger

_DEPTH = 2  # items at a worker: one in work, one waiting
_GRACE_S = 5.0
_STARTS = 3  # workers of a stage that may die in a row before they finished one item


@dataclass(slots=True, eq=False)
class _Worker:
    stage: int
    process: BaseProcess
    pipe: Connection
    items: deque[tuple[Item, Sequence[Any]]] = field(default_factory=deque)
    since_s: float = 0.0  # when the first of its items began
    ready: bool = False


def run_local(job: Job, ledger: Ledger, report: Report | None = None) -> None:
    """Run all items that are to do. Raises OutputError when nothing can be written, RecipeError or ModelError when
    a stage cannot start; what was finished until then stays in the ledger."""
    _Driver(job, ledger, Meter(ledger, report)).run()


class _Driver:
    def __init__(self, job: Job, ledger: Ledger, meter: Meter) -> None:
        self.job, self.ledger, self.meter = job, ledger, meter
        self.queues: list[deque[tuple[Item, Sequence[Any]]]] = [deque() for _ in job.stages]
        self.workers: list[_Worker] = []
        self.in_flight = 0
        self.early_deaths = 0
        self.limit = _DEPTH * sum(stage.workers for stage in job.stages)

    def run(self) -> None:
        try:
            more = self._claim()
            if not more:
                return
            for number, stage in enumerate(self.job.stages):
                for _ in range(stage.workers):
                    self.workers.append(_start(number, self.job))
            while more or self.in_flight:
                more = self._claim() or self.in_flight > 0
                self._hand_out()
                self._listen()
                self.ledger.commit_if_due()
        finally:
            self._stop()
            self.ledger.release()

    def _claim(self) -> bool:
        room = self.limit - self.in_flight
        if room <= 0:
            return True
        items = self.ledger.claim(room, self.job.lease_s)
        self.queues[0].extend((item, item.payloads) for item in items)
        self.in_flight += len(items)
        return bool(items)

    def _hand_out(self) -> None:
        for depth in range(1, _DEPTH + 1):  # one for everybody before anybody gets a second
            for worker in self.workers:
                queue = self.queues[worker.stage]
                if queue and worker.ready and len(worker.items) < depth:
                    task = queue.popleft()
                    if not worker.items:
                        worker.since_s = time.monotonic()
                    worker.items.append(task)
                    try:
                        worker.pipe.send((task[0].key, list(task[1])))
                    except OSError:  # it has died: _listen finds out and deals with its items
                        continue

    def _listen(self) -> None:
        pipes = {worker.pipe: worker for worker in self.workers}
        for pipe in connection.wait(list(pipes), timeout=1.0):
            worker = pipes[pipe]  # type: ignore[index]
            try:
                kind, value = worker.pipe.recv()
            except (EOFError, OSError):
                self._bury(worker, None)
                continue
            self._take(worker, kind, value)
        for worker in list(self.workers):
            if worker.items and time.monotonic() - worker.since_s > self.job.lease_s:
                self._bury(worker, f"took longer than its lease of {self.job.lease_s:g} s")

    def _take(self, worker: _Worker, kind: str, value: Any) -> None:
        if kind == "ready":
            worker.ready = True
            return
        if kind == "broken":
            raise ModelError(value)
        if kind == "full":
            raise OutputError(value)
        item, _ = worker.items.popleft()
        worker.since_s = time.monotonic()
        self.early_deaths = 0
        if kind == "failed":
            self._failed(item, value)
        elif worker.stage + 1 < len(self.job.stages):
            self.queues[worker.stage + 1].append((item, value))
        else:
            self.ledger.finish(item.seq, value)
            self.in_flight -= 1
            self.meter.add(done=1)

    def _failed(self, item: Item, reason: str) -> None:
        aside = self.ledger.fail(item.seq, reason, self.job.max_tries)
        self.in_flight -= 1
        self.meter.add(aside=int(aside))

    def _bury(self, worker: _Worker, reason: str | None) -> None:
        stage = self.job.stages[worker.stage]
        if reason is None:
            worker.process.join(_GRACE_S)  # so that the reason tells its own exit code, not our signal
        worker.process.kill()
        worker.process.join()
        worker.pipe.close()
        self.workers.remove(worker)
        code = worker.process.exitcode or 0
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        if worker.items:
            item, _ = worker.items.popleft()
            self._failed(item, f"{stage.name}: {reason or f'its worker died ({how})'}")
            self.queues[worker.stage].extendleft(reversed(worker.items))
        elif not worker.ready:
            self.early_deaths += 1
            if self.early_deaths >= _STARTS:
                raise ModelError(
                    f"workers of stage {stage.name!r} die before their first item ({how}): too little memory?"
                )
        self.workers.append(_start(worker.stage, self.job))

    def _stop(self) -> None:
        for worker in self.workers:
            worker.process.kill()
        for worker in self.workers:
            worker.process.join()
            worker.pipe.close()


def _start(number: int, job: Job) -> _Worker:
    stage, last = job.stages[number], number + 1 == len(job.stages)
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(
        target=_work, args=(stage, theirs, last), daemon=True, name=f"tubelet-{stage.name}"
    )
    process.start()
    theirs.close()  # so that its end is seen here
    return _Worker(number, process, ours)


def _work(stage: Stage, pipe: Connection, last: bool) -> None:
    """A worker process. Messages out: ("ready", None), then per item ("done", values), ("failed", reason) or
    ("full", reason); ("broken", reason) when the stage cannot be made."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's to deal with: it ends its workers
    threading.Thread(target=_end_with_driver, daemon=True).start()
    try:
        step = make_step(stage)
    except Exception as error:  # noqa: BLE001  whatever a stage raises is told to the driver, which stops the job
        pipe.send(("broken", reason_of(stage, error)))
        return
    pipe.send(("ready", None))
    waiting: queue.SimpleQueue[tuple[str, Sequence[Any]] | None] = queue.SimpleQueue()
    # always reading: a driver and a worker that both send more than a pipe holds would wait for each other forever
    threading.Thread(target=_read, args=(pipe, waiting), daemon=True).start()
    while (task := waiting.get()) is not None:
        key, values = task
        pipe.send(_answer(stage, step, key, values, last))


def _read(pipe: Connection, waiting: queue.SimpleQueue[tuple[str, Sequence[Any]] | None]) -> None:
    while True:
        try:
            waiting.put(pipe.recv())
        except (EOFError, OSError):
            waiting.put(None)
            return


def _answer(stage: Stage, step: Any, key: str, values: Sequence[Any], last: bool) -> tuple[str, Any]:
    try:
        return "done", run_step(stage, step, key, values, last)
    except OutputError as error:
        return "full", str(error)
    except RecipeError as error:
        return "broken", str(error)
    except Exception as error:  # noqa: BLE001  a poison item must not end the job: it is counted and set aside
        return "failed", reason_of(stage, error)


def _end_with_driver() -> None:
    driver = parent_process()
    if driver is not None:
        connection.wait([driver.sentinel])
        os._exit(1)
