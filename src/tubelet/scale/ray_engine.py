"""The Ray engine: the same job and ledger as `tubelet.scale.local`, streamed through Ray Data on many machines.

Every stage is a pool of actors with its own CPUs and GPUs; Ray Data streams between them with backpressure. The
driver claims `Job.wave` items at a time, which bounds its memory, and alone writes the ledger. A step that raises costs
its item a try; the same actor tries again at once. A worker that dies, hangs or falls silent costs the item it was at a
try (`ray_board`); Ray starts it again and repeats its task, at most `_BLOCK` items, on another machine if its own is
lost. Where no other has room, Ray would wait for one with these tasks: once nobody else has been at work for `lease_s`,
the wave is given up, and a new one goes on with the workers that are left. Where Ray gives up on a wave, the unfinished
items come back in smaller waves, down to one item, which is then blamed. Stages must be importable on every machine.
"""

from __future__ import annotations

import logging
import os
import threading
import uuid
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tubelet.errors import ModelError, OutputError, RecipeError, TubeletError
from tubelet.scale.job import Job, Meter, Report, Stage, make_step, reason_of, run_step
from tubelet.scale.ledger import Ledger
from tubelet.scale.ledger_claims import Item
from tubelet.scale.ray_board import Board, Place

_BLOCK = 8  # items of a task at most: what a death may have to repeat
_SHRINK = 8  # where Ray gives up on a wave, the next one is so many times smaller
_RESTARTS = 32  # of an actor and of a task; the tries of items end long before
_ASK_S = 30.0


class _Box:
    """Keeps Arrow from changing the types of what goes from stage to stage."""

    def __init__(self, value: Any) -> None:
        self.value = value


class _Actor:
    """A worker. board: the actor to report to; None: nobody."""

    def __init__(
        self, stage: Stage, last: bool, number: int = 0, board: Any = None, beat_s: float = 60
    ) -> None:
        self.stage, self.last, self.number, self.board = stage, last, number, board
        self.step: Any = None
        self.broken = ""
        self.place: Place = ("", os.getpid())
        if board is not None:
            import ray

            self.place = (ray.get_runtime_context().get_node_id(), os.getpid())
            threading.Thread(target=_beat, args=(self, beat_s), daemon=True).start()
        try:
            self.step = make_step(stage)
        except Exception as error:  # noqa: BLE001  whatever a stage raises is told to the driver, which stops the job
            self.broken = reason_of(stage, error)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        if row["kind"] != "done":
            return row
        if self.broken:
            return row | {"kind": "broken", "box": _Box(self.broken)}
        earlier: list[str] = list(row["failures"].value)
        raised: list[str] = []
        while True:
            failures = [*earlier, *self._begin(row["seq"]), *raised]
            try:
                if len(failures) >= row["tries"]:
                    return row | {"kind": "failed", "failures": _Box(failures), "box": _Box(None)}
                values = run_step(self.stage, self.step, row["key"], row["box"].value, self.last)
            except OutputError as error:
                return row | {"kind": "full", "box": _Box(str(error))}
            except RecipeError as error:
                return row | {"kind": "broken", "box": _Box(str(error))}
            except Exception as error:  # noqa: BLE001  a poison item must not end the job: it is counted and set aside
                raised.append(reason_of(self.stage, error))
            else:
                return row | {"failures": _Box(failures), "box": _Box(values)}
            finally:
                if self.board is not None:
                    self.board.end.remote(self.number, row["seq"])

    def _begin(self, seq: int) -> list[str]:
        if self.board is None:
            return []
        import ray

        return list(ray.get(self.board.begin.remote(self.number, seq, self.place)))


def _beat(worker: _Actor, beat_s: float) -> None:
    pause = threading.Event()
    while not pause.wait(beat_s):
        worker.board.beat.remote(worker.place, worker.step is not None or bool(worker.broken))


def _kill(pid: int) -> None:
    """Runs on the worker's machine. Its own way to end would need it to be alive."""
    import signal

    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        if command.startswith(b"ray::"):
            os.kill(pid, signal.SIGKILL)
    except OSError:  # it has ended by itself
        return


@dataclass(frozen=True)
class _Restarts:
    """How often Ray starts a dead actor, and its task, again; and a name for every actor, so that it can be killed."""

    times: int
    prefix: str

    def __call__(self) -> dict[str, Any]:
        name = f"{self.prefix}{uuid.uuid4().hex}"
        return {"name": name, "max_restarts": self.times, "max_task_retries": self.times}


def pool_options(job: Job, number: int, board: Any = None) -> dict[str, Any]:
    """What `ray.data.Dataset.map` is told of the actors of a stage: how many, what each reserves, how it is made."""
    import ray

    stage = job.stages[number]
    return {
        "fn_constructor_args": (stage, number + 1 == len(job.stages), number, board, job.beat_s),
        "compute": ray.data.ActorPoolStrategy(size=stage.workers),
        "num_cpus": stage.cpus,
        "num_gpus": stage.gpus,
        "ray_remote_args_fn": _Restarts(_RESTARTS, "" if board is None else _prefix()),
    }


def _prefix() -> str:
    """Of the names of this driver's workers."""
    import ray

    return f"tubelet {ray.get_runtime_context().get_job_id()} "


def run_ray(job: Job, ledger: Ledger, report: Report | None = None, address: str | None = None) -> None:
    """Run all items that are to do. address: a cluster ("auto"); None: the one that is connected, or a local one.

    Raises ModelError when ray is missing or goes away, or a stage cannot start, OutputError when nothing can be
    written; what was finished until then stays in the ledger.
    """
    try:
        import ray
    except ImportError as error:
        raise ModelError(
            "the ray engine needs ray: pip install 'tubelet[scale]', or use --engine local"
        ) from error
    if not ray.is_initialized():
        _connect(address)
    meter = Meter(ledger, report)
    wave = job.wave
    name = f"driver {os.getpid()}"
    board: Any = None
    try:
        while items := ledger.claim(wave, job.lease_s, name):
            if board is None:
                board = _make_board(job)
            wave = _wave(job, ledger, meter, items, wave, board)
    except ray.exceptions.RayError as error:
        raise ModelError(
            f"Ray is not there any more ({type(error).__name__}): start the cluster again, then go on with --resume"
        ) from error
    finally:
        ledger.release()
        if board is not None and ray.is_initialized():
            ray.kill(board)


def _connect(address: str | None) -> None:
    import ray

    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 starves workers beside anything else
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # Ray raises a bare one where a part of it does not start
        where = address or os.environ.get("RAY_ADDRESS")
        said = " ".join(str(error).split())[:200]
        raise ModelError(
            f"no Ray cluster answers at {where} ({said}): start it, or correct the address (RAY_ADDRESS)"
            if where
            else f"Ray does not start on this machine ({said}): try again, or use --engine local"
        ) from error


def _make_board(job: Job) -> Any:
    """On the driver's machine, the only one without which the job ends anyway."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    actor: Any = ray.remote(Board)
    lasting = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1}
    return actor.options(scheduling_strategy=here, **lasting).remote(job)


def _wave(job: Job, ledger: Ledger, meter: Meter, items: list[Item], size: int, board: Any) -> int:
    """One wave; returns the size of the next one."""
    import ray

    left = {item.seq for item in items}
    ray.get(board.new_wave.remote())
    watch = _Watch(job, ledger, left, board)
    try:
        for row in _stream(job, items, board):
            watch.check()
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
        watch.check()
        if watch.given_up:
            ledger.release(left)
            return size
        if ray.get(board.begun.remote(), timeout=_ASK_S) == 0:
            raise ModelError(
                f"Ray's workers end before their first item ({type(error).__name__}): too little memory?"
            ) from error
        if len(items) > 1 or not left:
            ledger.release(left)
            return max(1, min(size, len(items)) // _SHRINK)
        board.forget.remote(items[0].seq)
        said = f"its worker died ({type(error).__name__})"
        meter.add(aside=int(ledger.fail(items[0].seq, said, job.max_tries)))
        return 1
    finally:
        watch.stop()
    return min(job.wave, size * 2)


class _Watch:
    """A thread beside the stream, which may say nothing for hours: commits, renews leases, has lost workers killed.

    It ends the stream, by killing all workers, when nothing can be written and when nobody takes what is left.
    """

    def __init__(self, job: Job, ledger: Ledger, left: set[int], board: Any) -> None:
        self._job, self._ledger, self._left, self._board = job, ledger, left, board
        self._end = threading.Event()
        self.given_up = False
        self._error: TubeletError | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises what went wrong in the thread."""
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        import ray

        pause_s = min(0.5, self._job.beat_s, self._job.item_timeout_s / 4)
        ticks, every = 0, max(1, int(self._job.beat_s / pause_s))
        while not self._end.wait(pause_s):
            ticks += 1
            try:
                for place in ray.get(self._board.late.remote(), timeout=_ASK_S):
                    _send_kill(place)
                if ticks % every == 0:
                    owners = ray.get(self._board.owners.remote(), timeout=_ASK_S)
                    named = [(seq, owners.get(seq, f"driver {os.getpid()}")) for seq in list(self._left)]
                    self._ledger.renew(named, self._job.lease_s)
                self._ledger.commit_if_due()
                if ray.get(self._board.stuck.remote(), timeout=_ASK_S):
                    self.given_up = True
                    _kill_workers()
                    return
            except ray.exceptions.RayError:  # the board starts again; where Ray is gone the stream says so
                continue
            except TubeletError as error:
                self._error = error
                _kill_workers()
                return


def _kill_workers() -> None:
    """Those of this driver, also the ones that wait for a machine, for good: the stream raises then."""
    import ray

    prefix = _prefix()
    for name in ray.util.list_named_actors():
        if name.startswith(prefix):
            try:
                ray.kill(ray.get_actor(name), no_restart=True)
            except ValueError:  # it has gone by itself
                continue


def _send_kill(place: Place) -> None:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(place[0], soft=False)
    task: Any = ray.remote(_kill)
    task.options(num_cpus=0, max_retries=0, scheduling_strategy=there).remote(place[1])


def _stream(job: Job, items: list[Item], board: Any) -> Iterator[dict[str, Any]]:
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
    many = 4 * max(stage.workers for stage in job.stages)
    blocks = max(min(len(items), many), -(-len(items) // _BLOCK))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray calls both ways of naming restarts deprecated
        data: Any = ray.data.from_items(rows, override_num_blocks=blocks)
        for number in range(len(job.stages)):
            data = data.map(_Actor, **pool_options(job, number, board))
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # set up by Ray when the first data are made
    yield from data.iter_rows()
