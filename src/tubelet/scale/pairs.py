"""pairs.jsonl: one (video, sentence) per line, read one at a time and grouped by the file that `video` names.

A line is an object: "video" and "sentence"; if wanted "id", "task" (one of BATCH_TASKS), "start_s" and "end_s". Other
fields are ignored. A relative path belongs to `base`. Two paths of the same file (relative and absolute, through a
link) are one group. A pair without an id is named by a digest of what it asks.

Knows files of text; whether the videos exist is found out when they are opened.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tubelet.errors import DataError
from tubelet.tube import Span

BATCH_TASKS = ("stvg", "svg", "tvg", "rec")
"""Tasks whose question is a sentence, with a span where the task needs one."""

MAX_ID_CHARACTERS = 500
_REQUIRED = ("video", "sentence")


@dataclass(frozen=True, slots=True)
class Pair:
    """One question. line: its place in the file, from 1. video: as it was written; path: the file it names.

    window: what part of the video is looked at (task svg: the given span), None for all of it.
    """

    line: int
    id: str
    video: str
    path: str
    sentence: str
    task: str | None = None
    window: Span | None = None

    def to_json(self) -> str:
        """The payload of a ledger: all but the line."""
        span = None if self.window is None else [self.window.start_s, self.window.end_s]
        return json.dumps([self.id, self.video, self.path, self.sentence, self.task, span])

    @classmethod
    def from_json(cls, text: str) -> Pair:
        name, video, path, sentence, task, span = json.loads(text)
        return cls(0, name, video, path, sentence, task, None if span is None else Span(*span))


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that is no pair, and why."""

    line: int
    reason: str

    def __str__(self) -> str:
        return f"line {self.line} {self.reason}"


def iter_pairs(
    path: Path, base: Path, task: str | None = None, bad: Callable[[BadLine], None] | None = None
) -> Iterator[Pair]:
    """The pairs of a file in order. Empty lines are skipped.

    Args:
        base: the folder that relative videos belong to.
        task: for lines without one.
        bad: told of each line that is no pair; None: the first one is a DataError.
    """
    seen: dict[str, str] = {}  # the last video: its lines usually follow each other
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                data = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
                if not data.strip():
                    continue
                try:
                    pair = _pair(number, data, base, task, seen)
                except DataError as error:
                    wrong = BadLine(number, str(error))
                    if bad is None:
                        raise DataError(
                            f"{path}, {wrong}; mend it, or leave such lines out with --skip-bad-lines"
                        ) from error
                    bad(wrong)
                    continue
                yield pair
    except FileNotFoundError as error:
        raise DataError(
            f"there is no file {path}: give JSON lines with video and sentence (see docs/batch.md)"
        ) from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes; DataError when it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError as error:
        raise DataError(
            f"there is no file {path}: give JSON lines with video and sentence (see docs/batch.md)"
        ) from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def _pair(number: int, raw: bytes, base: Path, task: str | None, seen: dict[str, str]) -> Pair:
    data = _object(raw)
    for name in _REQUIRED:
        if name not in data:
            raise DataError(f"has no {name!r}: a pair needs video and sentence")
        if not isinstance(data[name], str):
            raise DataError(f"has a {name} that is no text: {_shown(data[name])}")
        if not data[name].strip():
            raise DataError(f"has an empty {name}")
    video, sentence = data["video"], data["sentence"]
    if "\0" in video:
        raise DataError("has a video with a null character in its path")
    asked = task if data.get("task") is None else data["task"]
    if asked is not None and asked not in BATCH_TASKS:
        raise DataError(f"has the task {_shown(asked)}; a batch takes {', '.join(BATCH_TASKS)}")
    window = _window(data, asked)
    path = _resolved(video, base, seen)
    named = data.get("id")
    pair = Pair(number, "", video, path, sentence, asked, window)
    name = _digest(pair, base) if named is None else _name(named)
    return Pair(number, name, video, path, sentence, asked, window)


def _object(raw: bytes) -> dict[str, Any]:
    try:
        text = raw.decode("utf-8")
        data = json.loads(text)
    except UnicodeDecodeError as error:
        raise DataError(f"is not UTF-8 (byte {error.start + 1})") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"is no JSON ({' '.join(str(error).split())})") from error
    if not isinstance(data, dict):
        raise DataError(f"is no JSON object: {_shown(data)}")
    for name in ("id", "video", "sentence"):
        value = data.get(name)
        if isinstance(value, str) and not _writable(value):
            raise DataError(f"has half a character (a lone surrogate) in its {name}")
    return data


def _writable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _name(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"has an id that is neither text nor a whole number: {_shown(value)}")
    if len(value) > MAX_ID_CHARACTERS:
        raise DataError(f"has an id of {len(value)} characters, at most {MAX_ID_CHARACTERS} are kept")
    return value


def _window(data: dict[str, Any], task: str | None) -> Span | None:
    start_s, end_s = data.get("start_s"), data.get("end_s")
    if start_s is None and end_s is None:
        if task == "svg":
            raise DataError("asks task svg without its span: give start_s and end_s")
        return None
    if start_s is None or end_s is None:
        raise DataError("has only one of start_s and end_s")
    if task == "rec":
        raise DataError("gives start_s and end_s for an image (task rec), which has no time")
    try:
        return Span(start_s, end_s)
    except DataError as error:
        raise DataError(f"has a start_s and end_s that are no span: {error}") from error


def _resolved(video: str, base: Path, seen: dict[str, str]) -> str:
    known = seen.get(video)
    if known is None:
        try:
            known = os.path.realpath(base / Path(video).expanduser())
        except RuntimeError:  # "~name/clip.mp4" without such a user: a folder of that name, then
            known = os.path.realpath(base / video)
        seen.clear()
        seen[video] = known
    return known


def _digest(pair: Pair, base: Path) -> str:
    """The same on another machine, as long as the videos lie in the same place below `base`."""
    root = os.path.realpath(base)
    path = Path(pair.path)
    video = path.relative_to(root).as_posix() if path.is_relative_to(root) else pair.path
    span = None if pair.window is None else [pair.window.start_s, pair.window.end_s]
    # names of files may be bytes that are no UTF-8: escaped by json
    asked = json.dumps([video, pair.sentence, pair.task, span])
    return hashlib.sha256(asked.encode()).hexdigest()[:20]


def _shown(value: Any) -> str:
    return f"{value!r:.60}"


def safe_name(name: str, also: str = "") -> str:
    """A file name that says what it is: letters, digits, . _ - as they are, a digest where something was changed.

    also: what else must tell two names apart (then there always is a digest).
    """
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "_" for c in name)[:80].lstrip(".")
    if kept == name and kept and not also:
        return kept
    digest = hashlib.sha256(f"{name}\0{also}".encode("utf-8", "surrogateescape")).hexdigest()
    return f"{kept or 'video'}-{digest[:8]}"


def folder_of(path: str | os.PathLike[str]) -> Path:
    """The folder that relative videos belong to; DataError when it is none."""
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}: --videos is where the videos of relative paths are")
    return folder
