"""Cheap stages for the tests of tubelet.scale: importable by worker processes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path


def double(sleep_s: float = 0.0, log: str = "") -> Callable[[str, Sequence[str]], list[str]]:
    """Doubles numbers. Keys say what goes wrong: "poison..." raises, "deadly..." kills the worker, "slow..." hangs."""

    def step(key: str, values: Sequence[str]) -> list[str]:
        if key.startswith("poison"):
            raise ValueError(f"{key} is corrupt")
        if key.startswith("deadly"):
            os.kill(os.getpid(), signal.SIGKILL)
        if key.startswith("slow"):
            time.sleep(60)
        if sleep_s:
            time.sleep(sleep_s)
        if log:
            with open(log, "a") as file:  # noqa: PTH123
                file.write(f"{key}\n")
        return [str(2 * int(value)) for value in values]

    return step


def increment() -> Callable[[str, Sequence[str]], list[str]]:
    return lambda key, values: [str(int(value) + 1) for value in values]


def full_disk() -> Callable[[str, Sequence[str]], list[str]]:
    from tubelet.errors import OutputError

    def step(key: str, values: Sequence[str]) -> list[str]:
        raise OutputError("cannot write overlays: No space left on device")

    return step


def broken() -> Callable[[str, Sequence[str]], list[str]]:
    raise RuntimeError("no such weights")


def numbers() -> Callable[[str, Sequence[str]], list[int]]:
    """Fine between two stages, no text for the ledger."""
    return lambda key, values: [int(value) for value in values]


def text() -> Callable[[str, Sequence[int]], list[str]]:
    return lambda key, values: [str(value) for value in values]


def trouble(folder: str, sleep_s: float = 0.0) -> Callable[[str, Sequence[str]], list[str]]:
    """Doubles numbers. Keys say what goes wrong, and whether only once: "hang", "freeze", "die", "die once"...

    Every try leaves a line "key pid" in folder/tries.
    """

    def step(key: str, values: Sequence[str]) -> list[str]:
        with (Path(folder) / "tries").open("a") as file:
            file.write(f"{key} {os.getpid()}\n")
        what, *rest = key.split()
        once = Path(folder) / f"{key} was here"
        if "once" not in rest or not once.exists():
            once.touch()
            if what == "hang":
                time.sleep(300)
            if what == "freeze":
                os.kill(os.getpid(), signal.SIGSTOP)
            if what == "die":
                os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(sleep_s)
        return [str(2 * int(value)) for value in values]

    return step


def visible() -> Callable[[str, Sequence[str]], list[str]]:
    """What a worker sees of the GPUs."""
    told = os.environ.get("CUDA_VISIBLE_DEVICES", "all")

    def step(key: str, values: Sequence[str]) -> list[str]:
        time.sleep(0.05)
        return [f"{told} {os.getpid()}" for _ in values]

    return step


def stillborn() -> Callable[[str, Sequence[str]], list[str]]:
    """Its worker dies while it is made, as for lack of memory."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def too_few() -> Callable[[str, Sequence[str]], list[str]]:
    return lambda key, values: []
