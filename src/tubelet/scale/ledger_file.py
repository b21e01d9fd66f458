"""The file of a ledger: its tables, opening it under a lock, checking version and damage, transactions.

One SQLite file in WAL mode and `<ledger>.lock`, on which a live driver holds a lock that the kernel frees when it dies;
a second driver is kept out. Everything that SQLite says is translated into DataError (damage, another version, a file
that is none) or OutputError (a full disk, no permission). Work is collected in one transaction and committed every
`commit_s` seconds: a killed process loses at most that. This module knows nothing of what the states of items mean.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tubelet.errors import DataError, OutputError

LEDGER_VERSION = 2
"""Version 2 knows the owner of a claim."""

_APPLICATION = 0x7475626C  # "tubl": a file of another program is told from one of ours
_LOT = 256  # rows that are read at a time
_DAMAGE = ("decode to UTF-8", "malformed", "no such table", "no such column", "no such index")

_SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE items (
  seq INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, state TEXT NOT NULL DEFAULT 'todo',
  tries INTEGER NOT NULL DEFAULT 0, interrupted INTEGER NOT NULL DEFAULT 0,
  owner TEXT, lease_until_s REAL, reason TEXT);
CREATE INDEX todo ON items (seq) WHERE state = 'todo';
CREATE INDEX running ON items (seq) WHERE state = 'running';
CREATE TABLE parts (
  seq INTEGER NOT NULL, place INTEGER NOT NULL, key TEXT NOT NULL UNIQUE, payload TEXT NOT NULL, result TEXT,
  PRIMARY KEY (seq, place)) WITHOUT ROWID;
"""


class LedgerFile:
    """An open file; `open_file` makes one. Threads may share it: `guard` lets in one at a time."""

    def __init__(self, path: Path, base: sqlite3.Connection, lock: int, commit_s: float) -> None:
        self.path, self.base = path, base
        self.spent_s = 0.0
        self._lock, self._commit_s = lock, commit_s
        self._committed_s = time.monotonic()
        self._one = threading.RLock()

    @contextmanager
    def guard(self) -> Iterator[sqlite3.Connection]:
        """Statements that belong together: errors become sentences, the time is counted in `spent_s`."""
        with self._one:
            start = time.perf_counter()
            try:
                yield self.base
            except (sqlite3.Error, UnicodeError) as error:
                raise _translated(error, self.path) from error
            finally:
                self.spent_s += time.perf_counter() - start

    def rows(self, query: str) -> Iterator[Any]:
        """Rows in small lots; the time that the caller takes between them is not the ledger's."""
        with self.guard() as base:
            found = base.execute(query)
        while True:
            with self.guard():
                rows = found.fetchmany(_LOT)
            if not rows:
                return
            for row in rows:
                if any(isinstance(value, bytes) for value in row):
                    raise self.damaged("text has become bytes")
                yield row

    def meta(self, name: str) -> str | None:
        with self.guard() as base:
            row = base.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        if row is not None and not isinstance(row[0], str):
            raise self.damaged(f"its {name} is no text")
        return None if row is None else str(row[0])

    def set_meta(self, name: str, value: str) -> None:
        with self.guard() as base:
            base.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))
        self.commit()

    def commit(self) -> None:
        with self.guard() as base:
            if base.in_transaction:
                base.execute("COMMIT")
            self._committed_s = time.monotonic()
            base.execute("BEGIN")

    def commit_if_due(self) -> None:
        if time.monotonic() - self._committed_s >= self._commit_s:
            self.commit()

    def take_back(self) -> None:
        """Undo what was not committed."""
        with self.guard() as base:
            if base.in_transaction:
                base.execute("ROLLBACK")
                base.execute("BEGIN")

    def close(self) -> None:
        try:
            with self.guard() as base:
                if base.in_transaction:
                    base.execute("COMMIT")
        finally:
            self.drop()

    def drop(self) -> None:
        """Close without a commit and free the lock: what a dead driver leaves."""
        self.base.close()
        os.close(self._lock)

    def damaged(self, why: str) -> DataError:
        return DataError(f"{self.path} is damaged: {why}; start again in another folder")


def open_file(path: Path | str, commit_s: float) -> LedgerFile:
    """Open or make it. Raises DataError for another version, a file that is no ledger, a damaged one, and one that a
    live driver holds; OutputError when it cannot be written."""
    place = Path(path)
    try:
        lock = os.open(place.with_name(place.name + ".lock"), os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise OutputError(f"cannot write {place}: {error.strerror or error}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock)
        raise DataError(f"another run is at work on {place}: wait for it, or stop it first") from error
    except OSError as error:
        os.close(lock)
        raise OutputError(
            f"cannot lock {place}: {error.strerror or error}; give a folder on a disk"
        ) from error
    base: sqlite3.Connection | None = None
    try:
        base = sqlite3.connect(place, isolation_level=None, timeout=30, check_same_thread=False)
        _prepare(base, place)
    except (sqlite3.Error, UnicodeError, DataError) as error:
        os.close(lock)
        if base is not None:
            base.close()
        if isinstance(error, DataError):
            raise
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_NOTADB:
            raise DataError(f"{place} is no ledger: {error}; give another folder") from error
        raise _translated(error, place) from error
    return LedgerFile(place, base, lock, commit_s)


def printable(text: str) -> str:
    """Text that can be written: bytes of file names that are no text become \\x escapes."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")


def _prepare(base: sqlite3.Connection, path: Path) -> None:
    application = base.execute("PRAGMA application_id").fetchone()[0]
    version = base.execute("PRAGMA user_version").fetchone()[0]
    tables = base.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if tables and application != _APPLICATION:
        raise DataError(f"{path} is a database of something else, not a ledger: give another folder")
    if tables and version != LEDGER_VERSION:
        raise DataError(
            f"{path} is a ledger of version {version}, this tubelet reads version {LEDGER_VERSION}: finish the job "
            "with the tubelet that began it, or start again in another folder"
        )
    if tables:  # found now, not after hours: pages and indexes are read once (it cannot see a changed letter)
        (found,) = base.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            said = " ".join(str(found).split())
            raise DataError(f"{path} is damaged: {said:.200}; start again in another folder")
    base.execute("PRAGMA journal_mode = WAL")
    base.execute("PRAGMA synchronous = NORMAL")
    if not tables:
        marks = f"PRAGMA application_id = {_APPLICATION}; PRAGMA user_version = {LEDGER_VERSION};"
        base.executescript(f"BEGIN; {_SCHEMA} {marks} COMMIT;")


def _translated(error: sqlite3.Error | UnicodeError, path: Path) -> OutputError | DataError:
    if isinstance(error, UnicodeEncodeError):
        return DataError(
            f"text with half a character (a lone surrogate) cannot be kept: {error.object!r:.80}"
        )
    if isinstance(error, sqlite3.OperationalError) and not any(word in str(error) for word in _DAMAGE):
        return OutputError(
            f"cannot write {path}: {error}; make space or repair the disk, then go on with --resume"
        )
    return DataError(f"{path} is damaged: {error}; start again in another folder")
