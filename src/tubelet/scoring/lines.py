"""Records of a prediction file, one after the other: JSON Lines, a JSON array or object, or CSV.

Only one record is in memory at a time, whatever the size of the file. A broken line raises a DataError that names
file and line; with `keep_going` it is counted and the rest is read (broken JSON has no rest: reading ends there).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tubelet.datasets.fields import Item, RecordError
from tubelet.datasets.problems import OnError, Problems
from tubelet.datasets.reading import stream_csv, stream_items, stream_jsonl
from tubelet.errors import DataError
from tubelet.scoring.answers import Counts

HEAD = 1 << 16


@dataclass(slots=True)
class Source:
    """A file, and what to do with what is broken in it."""

    path: Path
    counts: Counts
    keep_going: bool = False

    def broken(self, error: DataError) -> None:
        """Raise, or count and go on."""
        if not self.keep_going:
            raise DataError(f"{error} (--keep-going reads the rest)") from error
        self.counts.add("broken", str(error))

    def odd(self, kind: str, item: Item, sentence: str) -> None:
        """Of a record that is left out: raise, or count and go on."""
        message = f"{item.file}, {item.where}: {sentence}"
        if not self.keep_going:
            raise DataError(f"{message} (--keep-going leaves it out and counts it)")
        self.counts.add(kind, message)


def head_of(path: Path) -> str:
    """The beginning of a file as text; DataError where it cannot be read, is empty, or is not text."""
    try:
        with path.open("rb") as file:
            data = file.read(HEAD)
    except (OSError, ValueError) as error:
        raise DataError(f"cannot open {path}: {getattr(error, 'strerror', None) or error}") from error
    text = data.decode("utf-8-sig", errors="ignore").lstrip()
    if not text:
        raise DataError(f"{path} is empty: there is no prediction in it")
    if "\0" in text:
        raise DataError(f"{path} is no text file: predictions are JSON, JSON Lines, CSV or text")
    return text


def json_items(source: Source) -> Iterator[Item]:
    """Objects of a JSON array, of a JSON object {key: object} (its key under "__key__"), or of JSON Lines."""
    head = head_of(source.path)
    lines = head.split(
        "\n"
    )  # only this ends a line of JSON: texts may hold what splitlines() takes for line ends
    whole = head[0] == "[" or (head[0] == "{" and not _is_jsonl(lines))
    reader = stream_items if whole else stream_jsonl
    yield from _counted(source, lambda on_error: reader(source.path, on_error))


def csv_items(source: Source, columns: Sequence[str]) -> Iterator[Item]:
    head_of(source.path)
    yield from _counted(source, lambda on_error: stream_csv(source.path, columns, on_error))


def _is_jsonl(lines: Sequence[str]) -> bool:
    """Whether the first line is a record, rather than (the beginning of) one object {key: object}."""
    first = lines[0].rstrip()
    if len(lines) == 1:
        try:
            value = json.loads(first)
        except (ValueError, RecursionError):  # broken, or longer than the head: the reader says what is wrong
            return True
        return not (isinstance(value, dict) and value and all(isinstance(v, dict) for v in value.values()))
    return first.endswith("}") or (len(first) > 1 and lines[1][:1] == "{")


def on_error_of(source: Source) -> OnError:
    """What readers of `tubelet.datasets` are to do with what is broken: raise it, or count it in the source."""
    return _Counting(counts=source.counts) if source.keep_going else "raise"


@dataclass(slots=True)
class _Counting(Problems):
    """Problems that count themselves as broken records of a prediction file."""

    counts: Counts = field(default_factory=Counts)

    def add(self, error: RecordError) -> None:
        self.count += 1
        self.counts.add("broken", str(error))


def _counted(source: Source, items: Callable[[OnError], Iterator[Item]]) -> Iterator[Item]:
    """Items; what is broken between them is raised, with a hint, or counted."""
    try:
        yield from items(on_error_of(source))
    except RecordError as error:
        source.broken(error)
