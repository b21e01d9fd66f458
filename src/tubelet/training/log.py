"""What a run writes down: one JSON line per logged step, the same for TensorBoard, a line for people."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tubelet.errors import OutputError
from tubelet.training.checkpoint import Progress

log = logging.getLogger(__name__)


class RunLog:
    """Appends to `folder`/log.jsonl, and to `folder`/tensorboard when the package tensorboard is installed.

    A resumed run goes on in the same files; lines of steps that will be done again are dropped first. A full disk is an
    OutputError; a half-written line is dropped when the run is resumed.
    """

    def __init__(self, folder: Path, done: Progress) -> None:
        self.path = folder / "log.jsonl"
        self._board: Any = None
        with _told(self.path):
            if self.path.exists():
                text = self.path.read_text(encoding="utf-8", errors="replace")
                kept = [line for line in text.splitlines() if _step(line) <= done.total_steps]
                temporary = self.path.with_suffix(".part")
                temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
                temporary.replace(self.path)
            if find_spec("tensorboard") is not None:
                from torch.utils.tensorboard import SummaryWriter

                self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=done.total_steps + 1)

    def write(self, stage: str, steps: int, progress: Progress, numbers: dict[str, float]) -> None:
        record = {
            "stage": stage,
            "step": progress.step,
            "total_steps": progress.total_steps,
            "questions": progress.questions,
            "seconds": round(progress.seconds, 1),
            **{name: round(value, 5) for name, value in numbers.items()},
        }
        rate = progress.questions / max(progress.seconds, 1e-9)
        with _told(self.path):
            with self.path.open("a") as file:
                file.write(json.dumps(record) + "\n")
            if self._board is not None:
                for name, value in {**numbers, "questions_per_second": rate}.items():
                    self._board.add_scalar(name, value, progress.total_steps)
        parts = " ".join(f"{name} {value:.3f}" for name, value in numbers.items())
        log.info("%s %d/%d  %.0f questions/s  %s", stage, progress.step, steps, rate, parts)

    def close(self) -> None:
        if self._board is not None:
            with _told(self.path):
                self._board.close()


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """TensorBoard's writer thread, too, tells of a full disk as an OSError, at the next call."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"cannot write the log {path}: {error.strerror or error}; make room and start the same command again: the "
            "run goes on from its newest checkpoint"
        ) from error


def _step(line: str) -> int:
    try:
        return int(json.loads(line)["total_steps"])
    except (ValueError, KeyError, TypeError):
        return 1 << 62  # a half-written line is dropped
