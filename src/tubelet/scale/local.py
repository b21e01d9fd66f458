"""The local engine: worker processes of this machine, fed by one driver that owns the ledger.

Every stage has its own processes (spawned, so that CUDA works). The driver claims few items ahead (two per worker),
which bounds memory and is the backpressure: a slow stage stops the claims. A worker that dies, that is at an item for
longer than `Job.item_timeout_s`, or that gives no sign of life until the lease is over, costs that item one try and is
replaced; its waiting item goes back. Workers watch the driver and end with it, so that `kill -9` of the driver leaves
nobody behind. What happens inside a worker is in `local_worker`.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing import connection, get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from tubelet.errors import ModelError, OutputError
from tubelet.scale.devices import share_out, visible_devices
from tubelet.scale.job import Job, Meter, Report, gone_silent, too_late
from tubelet.scale.ledger import Ledger
from tubelet.scale.ledger_claims import Item
from tubelet.scale.local_worker import work

_DEPTH = 2  # items at a worker: one in work, one waiting
_GRACE_S = 5.0
_STARTS = 3  # workers of a stage that may die in a row before they finished one item


@dataclass(frozen=True, slots=True)
class _Moment:
    clock_s: float  # does not run while the machine sleeps
    wall_s: float

    @classmethod
    def now(cls) -> _Moment:
        return cls(time.monotonic(), time.time())


@dataclass(slots=True, eq=False)
class _Worker:
    stage: int
    process: BaseProcess
    pipe: Connection
    name: str  # as the owner of claims
    gpus: str | None
    items: deque[tuple[Item, Sequence[Any]]] = field(default_factory=deque)
    since_s: float = 0.0  # when the first of its items began
    heard_s: float = 0.0
    ready: bool = False


def run_local(job: Job, ledger: Ledger, report: Report | None = None) -> None:
    """Run all items that are to do. Raises OutputError when nothing can be written, RecipeError or ModelError when
    a stage cannot start or there are too few GPUs; what was finished until then stays in the ledger."""
    _Driver(job, ledger, Meter(ledger, report)).run()


class _Driver:
    def __init__(self, job: Job, ledger: Ledger, meter: Meter) -> None:
        self.job, self.ledger, self.meter = job, ledger, meter
        self.queues: list[deque[tuple[Item, Sequence[Any]]]] = [deque() for _ in job.stages]
        self.workers: list[_Worker] = []
        self.in_flight = 0
        self.early_deaths = 0
        self.limit = _DEPTH * sum(stage.workers for stage in job.stages)
        self.name = f"driver {os.getpid()}"
        self.wait_s = min(1.0, job.beat_s / 2, job.item_timeout_s / 4)
        self.looked = self.renewed = _Moment.now()

    def run(self) -> None:
        try:
            more = self._claim()
            if not more:
                return
            wanted = any(stage.gpus for stage in self.job.stages)
            devices = visible_devices(os.environ) if wanted else ()
            for number, places in enumerate(share_out(self.job.stages, devices)):
                for gpus in places:
                    self.workers.append(_start(number, self.job, gpus))
            while more or self.in_flight:
                more = self._claim() or self.in_flight > 0
                self._hand_out()
                self._listen()
                self._watch()
                self.ledger.commit_if_due()
        finally:
            self._stop()
            self.ledger.release()

    def _claim(self) -> bool:
        room = self.limit - self.in_flight
        if room <= 0:
            return True
        items = self.ledger.claim(room, self.job.lease_s, self.name)
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
                        worker.since_s = worker.heard_s = time.monotonic()
                    worker.items.append(task)
                    try:
                        worker.pipe.send((task[0].key, list(task[1])))
                    except OSError:  # it has died: _listen finds out and deals with its items
                        continue

    def _listen(self) -> None:
        pipes = {worker.pipe: worker for worker in self.workers}
        for pipe in connection.wait(list(pipes), timeout=self.wait_s):
            worker = pipes[pipe]  # type: ignore[index]
            try:
                kind, value = worker.pipe.recv()
            except (EOFError, OSError):
                self._bury(worker, None)
                continue
            worker.heard_s = time.monotonic()
            self._take(worker, kind, value)

    def _watch(self) -> None:
        """Workers that hang, claims that nobody works on any more."""
        now, before = _Moment.now(), self.looked
        self.looked = now
        pause_s = max(now.clock_s - before.clock_s, now.wall_s - before.wall_s)
        if (
            pause_s > self.job.lease_s / 2
        ):  # we slept (Ctrl-Z, a suspended machine): the workers are not to blame
            for worker in self.workers:
                worker.since_s += now.clock_s - before.clock_s
            self._renew(now, everybody=True)
        elif now.clock_s - self.renewed.clock_s > self.job.beat_s:
            self._renew(now)
            for claim in self.ledger.expired():
                for worker in [w for w in self.workers if any(i.seq == claim.seq for i, _ in w.items)]:
                    self._bury(worker, gone_silent(self.job.stages[worker.stage], self.job))
        for worker in list(self.workers):
            if worker.items and now.clock_s - worker.since_s > self.job.item_timeout_s:
                self._bury(worker, too_late(self.job.stages[worker.stage], self.job))

    def _renew(self, now: _Moment, everybody: bool = False) -> None:
        """Claims of items that wait here, and of workers that were heard of since the last time."""
        owners = [(item.seq, self.name) for queue in self.queues for item, _ in queue]
        for worker in self.workers:
            if everybody or worker.heard_s >= self.renewed.clock_s:
                owners += [(item.seq, worker.name) for item, _ in worker.items]
        self.ledger.renew(owners, self.job.lease_s)
        self.renewed = now

    def _take(self, worker: _Worker, kind: str, value: Any) -> None:
        if kind == "beat":
            return
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
            self._failed(item, reason or f"{stage.name}: its worker died ({how})")
            self.queues[worker.stage].extendleft(reversed(worker.items))
        elif not worker.ready:
            self.early_deaths += 1
            if self.early_deaths >= _STARTS:
                raise ModelError(
                    f"workers of stage {stage.name!r} die before their first item ({how}): too little memory?"
                )
        self.workers.append(_start(worker.stage, self.job, worker.gpus))

    def _stop(self) -> None:
        for worker in self.workers:
            worker.process.kill()
        for worker in self.workers:
            worker.process.join()
            worker.pipe.close()


def _start(number: int, job: Job, gpus: str | None) -> _Worker:
    stage, last = job.stages[number], number + 1 == len(job.stages)
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(
        target=work,
        args=(stage, theirs, last, job.beat_s, gpus),
        daemon=True,
        name=f"tubelet-{stage.name}",
    )
    process.start()
    theirs.close()  # so that its end is seen here
    return _Worker(number, process, ours, f"{stage.name} {process.pid}", gpus)
