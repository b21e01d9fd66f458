"""Streaming readers for JSON, JSON Lines, CSV and text files: lazily, a record at a time, with errors that say where.

`stream_json` holds one record of a top-level array or object in memory (plus a 1 MiB buffer), whatever the size of
the file. `load_json` holds everything and refuses files above 256 MiB: it is for files that are one record.
A record that is not valid is handled (see `problems`) and the rest is kept where a rest can be told: after a broken
line of JSONL or CSV reading goes on; broken JSON has no place to go on from, so the records before it are kept and
one problem says at which record it ends. UTF-8 only, with or without a byte order mark.
"""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from tubelet.datasets.fields import Item, RecordError, show
from tubelet.datasets.problems import OnError, handle
from tubelet.errors import DataError

CHUNK = 1 << 20
MAX_RECORD = 1 << 28  # characters: 256 Mi. A single record of this size is a broken file, not a record.
_SPACE = " \t\n\r"
_NEAR_END = 64  # a JSON error this near the end of the buffer may only mean that the value goes on


_TOO_EARLY = "the file ends too early (a truncated download?)"


class _Broken(Exception):
    """The JSON text is not what it should be; the text says what."""


class _Buffer:
    """The part of a JSON text that is in memory, and a position in it."""

    def __init__(self, handle: BinaryIO) -> None:
        self.handle, self.text, self.at, self.eof = handle, "", 0, False
        self.decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self.parse = json.JSONDecoder().raw_decode

    def more(self, size: int | None = None) -> None:
        data = self.handle.read(size or CHUNK)
        self.eof = not data
        try:
            new = self.decoder.decode(data, final=self.eof)
        except UnicodeDecodeError as error:
            raise _Broken(f"is not UTF-8 text ({error.reason})") from None
        self.text, self.at = self.text[self.at :] + new, 0

    def peek(self) -> str:
        """The next character that is not white space, "" at the end; stays before it."""
        while True:
            while self.at < len(self.text) and self.text[self.at] in _SPACE:
                self.at += 1
            if self.at < len(self.text) or self.eof:
                return self.text[self.at : self.at + 1]
            self.more()

    def take(self, wanted: str) -> str:
        found = self.peek()
        if not found:
            raise _Broken(_TOO_EARLY)
        if found not in wanted:
            raise _Broken(f"not JSON: expected {' or '.join(wanted)}, got {found!r}")
        self.at += 1
        return found

    def value(self) -> Any:
        """The next JSON value; reads on (in growing pieces) while the value is not complete."""
        self.peek()
        size = CHUNK
        while True:
            try:
                value, end = self.parse(self.text, self.at)
            except json.JSONDecodeError as error:
                if self.eof:
                    reason = _TOO_EARLY if _cut(self.text, error) else f"not JSON ({error.msg})"
                    raise _Broken(reason) from None
                if error.pos < len(self.text) - _NEAR_END and not error.msg.startswith("Unterminated"):
                    raise _Broken(f"not JSON ({error.msg})") from None
            except RecursionError:
                raise _Broken("not a sensible record: nested too deeply") from None
            except ValueError:  # whole numbers of more digits than Python converts
                raise _Broken("not a sensible record: a number of thousands of digits") from None
            else:
                rest = self.text[end : end + _NEAR_END]
                # a number near the end may go on in the next piece: 1.5e is 1.5 so far
                if self.eof or len(rest) == _NEAR_END or (rest and rest[0] in ",:]}" + _SPACE):
                    self.at = end
                    return value
            if len(self.text) - self.at > MAX_RECORD:
                raise _Broken(f"a single record of more than {MAX_RECORD >> 20} Mi characters")
            self.more(size)
            size *= 2


def _cut(text: str, error: json.JSONDecodeError) -> bool:
    """Whether the error is that the text ends: inside a string, a word such as true, or before a value or comma."""
    rest = text[error.pos :].strip()
    return error.msg.startswith("Unterminated") or any(
        word.startswith(rest) for word in ("true", "false", "null")
    )


def stream_json(
    path: Path, on_error: OnError = "raise", inside: str | None = None
) -> Iterator[tuple[str | int, Any]]:
    """(number from 0, value) of a top-level array, or (key, value) of a top-level object, one after the other.

    inside: the key of a top-level object whose value (an array or object) is streamed instead, e.g. "annotations".
    Keys that come twice are problems; the first is kept.
    """
    where = "the beginning"
    with _open(path) as file:
        buffer = _Buffer(file)
        try:
            if not buffer.peek():
                raise _Broken("the file is empty")
            if inside is not None:
                _enter(buffer, inside)
            opening = buffer.take("[{")
            closing = "]" if opening == "[" else "}"
            seen: set[str] = set()
            number = 0
            if buffer.peek() == closing:
                buffer.take(closing)
            else:
                while True:
                    name: str | int = number
                    where = f"record {number}"
                    if opening == "{":
                        name = _key(buffer)
                        where = f"key {show(name)}"
                    value = buffer.value()
                    if isinstance(name, str) and name in seen:
                        handle(
                            on_error, RecordError(str(path), where, "", "key appears twice: first is kept")
                        )
                    else:
                        if isinstance(name, str):
                            seen.add(name)
                        yield name, value
                    number += 1
                    where = f"after {where}"
                    if buffer.take("," + closing) == closing:
                        break
            if inside is None and buffer.peek():
                raise _Broken("not JSON: there is more text after the end")
        except _Broken as error:
            handle(on_error, RecordError(str(path), where, "", str(error)))
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def _key(buffer: _Buffer) -> str:
    if buffer.peek() != '"':
        raise _Broken('not JSON: expected a key in "quotes"' if buffer.peek() else "the file ends too early")
    key = buffer.value()
    buffer.take(":")
    return str(key)


def _enter(buffer: _Buffer, key: str) -> None:
    """Move to the value of one key of a top-level object; other values are read and forgotten."""
    buffer.take("{")
    while _key(buffer) != key:
        buffer.value()
        if buffer.take(",}") == "}":
            raise _Broken(f"has no key {key!r}")


def stream_jsonl(path: Path, on_error: OnError = "raise") -> Iterator[Item]:
    """One Item per line that is not blank; a line that is not a JSON object is a problem."""
    for number, line in stream_lines(path, on_error):
        reason = ""
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            reason = f"not JSON ({error.msg}): a truncated line?"
        except (RecursionError, ValueError):
            reason = "not a sensible record: nested too deeply, or a number of thousands of digits"
        else:
            if isinstance(value, dict):
                yield Item(value, str(path), f"line {number}")
                continue
            reason = f"expected a JSON object, got {show(value)}"
        handle(on_error, RecordError(str(path), f"line {number}", "", reason))


def stream_lines(path: Path, on_error: OnError = "raise") -> Iterator[tuple[int, str]]:
    """(line number from 1, text) of lines that are not blank, without line ends."""
    with _open(path) as file:
        number = 0
        try:
            while data := file.readline(MAX_RECORD):
                number += 1
                try:
                    line = data.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                except UnicodeDecodeError as error:
                    reason = f"not UTF-8 text ({error.reason})"
                    handle(on_error, RecordError(str(path), f"line {number}", "", reason))
                    continue
                if line:
                    yield number, line
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def stream_items(path: Path, on_error: OnError = "raise", inside: str | None = None) -> Iterator[Item]:
    """Items of a top-level JSON array ("record 3") or object ("key 'a.mp4'", and its key under "__key__")."""
    for name, value in stream_json(path, on_error, inside):
        where = f"record {name}" if isinstance(name, int) else f"key {show(name)}"
        if not isinstance(value, dict):
            reason = f"expected an object, got {show(value)}"
            handle(on_error, RecordError(str(path), where, "", reason))
            continue
        yield Item(value if isinstance(name, int) else {**value, "__key__": name}, str(path), where)


def stream_csv(path: Path, columns: Sequence[str], on_error: OnError = "raise") -> Iterator[Item]:
    """One Item (fields are text) per row; the header must have `columns`, in any order, and may have more."""
    with _open(path) as file:
        number = 0
        try:
            rows = csv.reader(codecs.getreader("utf-8-sig")(file))
            header: list[str] | None = None
            while True:
                try:
                    row = next(rows)
                except StopIteration:
                    break
                except csv.Error as error:
                    handle(on_error, RecordError(str(path), f"line {rows.line_num}", "", f"not CSV: {error}"))
                    continue
                number = rows.line_num
                if header is None:
                    header = [name.strip() for name in row]
                    missing = [name for name in columns if name not in header]
                    if missing:
                        reason = f"the header lacks {', '.join(missing)}; it has {', '.join(header)[:120]}"
                        handle(on_error, RecordError(str(path), "line 1", "", reason))
                        return
                elif row and len(row) != len(header):
                    reason = f"expected {len(header)} fields, got {len(row)}: a truncated line?"
                    handle(on_error, RecordError(str(path), f"line {number}", "", reason))
                elif row:
                    yield Item(dict(zip(header, row, strict=True)), str(path), f"line {number}", textual=True)
            if header is None:
                handle(on_error, RecordError(str(path), "the beginning", "", "the file is empty"))
        except UnicodeDecodeError as error:
            reason = f"not UTF-8 text ({error.reason}): reading ends here"
            handle(on_error, RecordError(str(path), f"after line {number}", "", reason))
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def load_json(path: Path) -> Item:
    """A whole file that is one JSON object; RecordError where it is not one, or larger than 256 MiB."""
    with _open(path) as file:
        try:
            data = file.read(MAX_RECORD + 1)
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    if len(data) > MAX_RECORD:
        raise RecordError(str(path), "", "", f"larger than {MAX_RECORD >> 20} MiB: not one record")
    try:
        value = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise RecordError(str(path), "", "", f"not JSON ({error!s:.80})") from None
    if not isinstance(value, dict):
        raise RecordError(str(path), "", "", f"expected a JSON object, got {show(value)}")
    return Item(value, str(path), "")


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except (OSError, ValueError) as error:
        raise DataError(f"cannot open {path}: {getattr(error, 'strerror', None) or error}") from error
