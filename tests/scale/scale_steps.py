"""Cheap stages for the tests of tubelet.scale: importable by worker processes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence


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
