"""What commands share: writing files whole, checking targets before work, progress bars on a terminal."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tubelet.errors import OutputError


def check_outputs(paths: list[Path | None]) -> None:
    """Targets that cannot be written, or are given twice, are an error before work is done, not after."""
    given = [path for path in paths if path is not None]
    for path in given:
        if path.is_dir():
            raise OutputError(f"{path} is a folder; give a file name")
        if not path.parent.is_dir():
            raise OutputError(f"cannot write {path}: the folder {path.parent} does not exist")
        if not os.access(path.parent, os.W_OK):
            raise OutputError(f"cannot write {path}: the folder {path.parent} is not writable by this user")
    places = [path.resolve() for path in given]
    for place in places:
        if places.count(place) > 1:
            raise OutputError(f"{place} is given for two outputs: give each a name of its own")


def check_kind(path: Path | None, kinds: tuple[str, ...], what: str) -> None:
    """A file name that does not end as its content has to is an error before work is done, too."""
    if path is not None and path.suffix.lower() not in kinds:
        raise OutputError(f"{what} is written as {', '.join(kinds)}, got {path.name!r}")


def make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {folder}: {error.strerror or error}") from error


def write_text(path: Path, text: str) -> None:
    """Whole or not at all, also after Ctrl-C."""
    temporary = path.with_name(f".{path.name}.part")
    try:
        # names of files may hold bytes that are no UTF-8; in JSON "\\udcff" is what stands for one
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
        temporary.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def training_bar(total: int) -> Iterator[Callable[[Any, dict[str, float]], None] | None]:
    """Steps, loss and pairs (video, sentence) per second; on a terminal only, else the log lines tell."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    logging.getLogger("tubelet").setLevel(logging.WARNING)
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=total)

        def step(progress: Any, numbers: dict[str, float]) -> None:
            rate = progress.questions / max(progress.seconds, 1e-9)
            text = f"loss {numbers['loss']:.3f}  {rate:.0f} pairs/s"
            bar.update(task, completed=progress.total_steps, description=text)

        yield step


@contextmanager
def progress(what: str) -> Iterator[Callable[..., None]]:
    """A progress bar on stderr when that is a terminal; silence otherwise. Call it with done, total[, per second]."""
    if not sys.stderr.isatty():
        yield lambda done, total, per_s=None: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None, rate="")
        yield lambda done, total, per_s=None: bar.update(
            task, completed=done, total=total, rate="" if per_s is None else f"{per_s:.2f}/s"
        )
