"""A worker process of the local engine: makes its stage once, then answers items until its pipe ends.

Messages out: ("ready", None), then per item ("done", values), ("failed", reason) or ("full", reason); ("broken",
reason) when the stage cannot be made or breaks its contract; and ("beat", None) now and then while an item is in work,
from a thread of its own: a sign that the process lives and runs, not that its item gets on.
"""

from __future__ import annotations

import os
import queue
import signal
import threading
from collections.abc import Sequence
from multiprocessing import connection, parent_process
from multiprocessing.connection import Connection
from typing import Any

from tubelet.errors import OutputError, RecipeError
from tubelet.scale.devices import VISIBLE
from tubelet.scale.job import Stage, make_step, reason_of, run_step

_Tasks = queue.SimpleQueue[tuple[str, Sequence[Any]] | None]


def work(stage: Stage, pipe: Connection, last: bool, beat_s: float, gpus: str | None) -> None:
    """The whole life of a worker. beat_s: between two signs of life. gpus: the value of CUDA_VISIBLE_DEVICES."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's to deal with: it ends its workers
    if gpus is not None:
        os.environ[VISIBLE] = gpus  # before the stage brings CUDA up
    threading.Thread(target=_end_with_driver, daemon=True).start()
    mouth = _Mouth(pipe)
    try:
        step = make_step(stage)
    except Exception as error:  # noqa: BLE001  whatever a stage raises is told to the driver, which stops the job
        mouth.say("broken", reason_of(stage, error))
        return
    mouth.say("ready", None)
    waiting: _Tasks = queue.SimpleQueue()
    busy = threading.Event()
    # always reading: a driver and a worker that both send more than a pipe holds would wait for each other forever
    threading.Thread(target=_read, args=(pipe, waiting), daemon=True).start()
    threading.Thread(target=_beat, args=(mouth, busy, beat_s), daemon=True).start()
    while (task := waiting.get()) is not None:
        busy.set()
        mouth.say(*_answer(stage, step, *task, last))
        busy.clear()


class _Mouth:
    """The sending end: one thread at a time."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe, self._one = pipe, threading.Lock()

    def say(self, kind: str, value: Any) -> None:
        with self._one:
            self._pipe.send((kind, value))


def _read(pipe: Connection, waiting: _Tasks) -> None:
    while True:
        try:
            waiting.put(pipe.recv())
        except (EOFError, OSError):
            waiting.put(None)
            return


def _beat(mouth: _Mouth, busy: threading.Event, beat_s: float) -> None:
    pause = threading.Event()
    while True:
        busy.wait()
        try:
            mouth.say("beat", None)
        except OSError:  # the driver has gone
            return
        pause.wait(beat_s)


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
