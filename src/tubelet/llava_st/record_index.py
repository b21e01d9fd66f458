"""Where the records of a .json array or a .jsonl file lie, so that any of them can be read alone.

One pass over the bytes, which parses nothing; 16 bytes of memory per record, and 1 MiB of the file at a time (more only
where a single text is longer). Records are JSON objects in file order, counted from 0.
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from tubelet.datasets.fields import Item as RawRecord
from tubelet.datasets.fields import RecordError, show
from tubelet.datasets.problems import OnError, handle
from tubelet.errors import DataError

CHUNK = 1 << 20
# a whole text, so that brackets inside of it do not count; a text that goes on behind the chunk; a bracket
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|(?P<open>"[^"\\]*(?:\\.[^"\\]*)*\\?\Z)|[{}\[\]]', re.DOTALL)
_OPENING, _CLOSING = (b"[", b"{"), (b"]", b"}")
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True, eq=False)
class RecordIndex:
    """A file and where its records are: record k is bytes [start[k], stop[k]). lines: whether it is .jsonl."""

    path: Path
    start: npt.NDArray[np.int64]
    stop: npt.NDArray[np.int64]
    lines: bool

    def __len__(self) -> int:
        return len(self.start)

    def read(self, number: int) -> RawRecord:
        """Record `number`. RecordError when it is no JSON object, DataError when the file cannot be read."""
        where = f"record {number}"
        start, stop = int(self.start[number]), int(self.stop[number])
        with _open(self.path) as file:
            try:
                file.seek(start)
                data = file.read(stop - start)
            except OSError as error:
                raise DataError(f"cannot read {self.path}: {error.strerror or error}") from error
        if len(data) < stop - start:
            raise RecordError(
                str(self.path), where, "", "the file is shorter than it was: it was written anew"
            )
        try:
            value = json.loads(data.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise RecordError(str(self.path), where, "", f"not JSON ({error!s:.80})") from None
        if not isinstance(value, dict):
            raise RecordError(str(self.path), where, "", f"expected a JSON object, got {show(value)}")
        return RawRecord(value, str(self.path), where)


def index_records(path: Path | str, on_error: OnError = "raise") -> RecordIndex:
    """Find every record of a file.

    A file that ends too early, or in which something else stands between records, is an error; a `Problems` counts it,
    and the records before it are kept.
    """
    path = Path(path)
    if path.suffix not in (".json", ".jsonl"):
        raise DataError(f"items are read from .json or .jsonl files, got {path.name}")
    start, stop = array("q"), array("q")
    lines = path.suffix == ".jsonl"
    with _open(path) as file:
        try:
            for low, high in _lines(file) if lines else _objects(file):
                start.append(low)
                stop.append(high)
        except _Broken as error:
            where = f"after record {len(start) - 1}" if len(start) else "the beginning"
            handle(on_error, RecordError(str(path), where, "", str(error)))
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    return RecordIndex(path, _numbers(start), _numbers(stop), lines)


class _Broken(Exception):
    """The file is not a list of records; the text says why."""


def _lines(file: BinaryIO) -> Iterator[tuple[int, int]]:
    """Lines that are not blank."""
    at = 0
    for line in file:
        skip = len(_BOM) if not at and line.startswith(_BOM) else 0
        if line[skip:].strip():
            yield at + skip, at + len(line)
        at += len(line)


def _objects(file: BinaryIO) -> Iterator[tuple[int, int]]:
    """Objects of a top-level array. What is inside of them is not looked at, but for brackets and texts."""
    text, offset = b"", 0  # a piece of the file, and the byte at which it begins
    depth, count = 0, 0
    begin, after = 0, 0  # bytes: where the record begins; behind the last bracket outside of records
    closed = False
    while True:
        data = file.read(CHUNK)
        text += data
        keep = len(text)  # what comes after it is looked at again with the next piece
        for token in _TOKEN.finditer(text):
            if token.lastgroup == "open" and data:
                keep = token.start()
                break
            found = token[0]
            if depth < 2:
                between = text[after - offset : token.start()].removeprefix(b"" if after else _BOM).strip()
                _check_outside(found, between, depth, count, closed)
                after = offset + token.end()
                if depth and found == b"{":
                    begin = offset + token.start()
            if found in _OPENING:
                depth += 1
            elif found in _CLOSING:
                depth -= 1
                if depth == 1:
                    after = offset + token.end()
                    count += 1
                    yield begin, after
            closed = closed or depth == 0
        if not data:
            break
        if depth < 2:
            keep = min(keep, after - offset)
        text, offset = text[keep:], offset + keep
    if not after:
        raise _Broken("the file is empty" if not text.strip() else "expected a list of items, [ ... ]")
    if not closed:
        raise _Broken("the file ends too early (a truncated download?)")
    if text[after - offset :].strip():
        raise _Broken("not JSON: there is more text after the end")


def _check_outside(found: bytes, between: bytes, depth: int, count: int, closed: bool) -> None:
    """_Broken unless this bracket, with this text before it, may stand outside of a record."""
    if closed:
        raise _Broken("not JSON: there is more text after the end")
    if depth == 0:
        if found != b"[" or between:
            raise _Broken("expected a list of items, [ ... ]")
        return
    wanted = b"," if found == b"{" and count else b""
    if found not in (b"{", b"]") or between != wanted:
        shown = (between + found)[:40].decode("utf-8", "replace")
        raise _Broken(f"expected an item, {{...}}, and commas between items, got {shown!r}")


def _numbers(values: array[int]) -> npt.NDArray[np.int64]:
    out = np.array(values, dtype=np.int64)
    out.flags.writeable = False
    return out


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except (OSError, ValueError) as error:
        raise DataError(f"cannot open {path}: {getattr(error, 'strerror', None) or error}") from error
