"""The ledger of a job: one SQLite file that says what there is to do, what is running, done or set aside.

An *item* (for example a video) has a unique key and *parts* (for example its questions), each with a unique key, a
place in the input, a payload and, once the item is done, a result. State and results change in one transaction, so
a kill at any moment leaves an item either done with all its results, or not done. Only the driver writes; a lock
on `<ledger>.lock`, which the kernel frees when its holder dies, keeps a second driver out.

Results are collected and committed together (`commit_s`), in WAL mode: a killed process loses at most the last
`commit_s` seconds of results, which are computed again; a power cut may lose a few commits more and breaks nothing.

Claims are committed at once, so that a driver's death is counted against the items that were running. Such items run
in ever smaller company (each death halves how many may run at a time), so that the culprit soon runs alone; after
`MAX_INTERRUPTED` deaths it is set aside. A driver that ends in order (Ctrl-C, a full disk) counts nothing.
This module knows nothing of videos, models or processes.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tubelet.errors import DataError, OutputError

LEDGER_VERSION = 1
_APPLICATION = 0x7475626C  # "tubl": a file of another program is told from one of ours

MAX_INTERRUPTED = 20
"""An item that ran while its driver died so often is set aside: it seems to take the driver down."""

TODO, RUNNING, DONE, ASIDE = "todo", "running", "done", "aside"
STATES = (TODO, RUNNING, DONE, ASIDE)

_LOT = 256  # rows that are read at a time
_DAMAGE = ("decode to UTF-8", "malformed", "no such table", "no such column", "no such index")

_SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE items (
  seq INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, state TEXT NOT NULL DEFAULT 'todo',
  tries INTEGER NOT NULL DEFAULT 0, interrupted INTEGER NOT NULL DEFAULT 0,
  lease_until_s REAL, reason TEXT);
CREATE INDEX todo ON items (seq) WHERE state = 'todo';
CREATE INDEX running ON items (seq) WHERE state = 'running';
CREATE TABLE parts (
  seq INTEGER NOT NULL, place INTEGER NOT NULL, key TEXT NOT NULL UNIQUE, payload TEXT NOT NULL, result TEXT,
  PRIMARY KEY (seq, place)) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True)
class Part:
    """One piece of an item. place: its row in the input, from 0."""

    place: int
    key: str
    payload: str


@dataclass(frozen=True, slots=True)
class Item:
    """What a worker gets: key and payloads (in order of place). tries: how often it failed before."""

    seq: int
    key: str
    payloads: tuple[str, ...]
    tries: int = 0


@dataclass(frozen=True, slots=True)
class Aside:
    """An item that was given up."""

    seq: int
    key: str
    reason: str
    tries: int


@dataclass(frozen=True, slots=True)
class Duplicate:
    """A part whose key was there before: `place` is left out, `first` is kept."""

    key: str
    place: int
    first: int


class Ledger:
    """An open ledger; `open_ledger` makes one. Use it in one thread."""

    def __init__(self, path: Path, base: sqlite3.Connection, lock: int, commit_s: float) -> None:
        self.path = path
        self._base = base
        self._lock = lock
        self._commit_s = commit_s
        self._committed_s = time.monotonic()
        self._next = 0  # items before this seq are not todo: claims need not look at them again
        self.spent_s = 0.0
        """Seconds that this process has spent in the ledger."""

    def meta(self, name: str) -> str | None:
        with self._guard():
            row = self._base.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        if row is not None and not isinstance(row[0], str):
            raise self._damaged(f"its {name} is no text")
        return None if row is None else str(row[0])

    def set_meta(self, name: str, value: str) -> None:
        with self._guard():
            self._base.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))
        self.commit()

    def fill(self, parts: Iterable[tuple[str, Part]]) -> list[Duplicate]:
        """Take in (item key, part) pairs, all or none; items keep the order in which they first appear.

        A part key that was there before is returned and left out. Raises DataError for two parts in one place, and for
        a new part of an item that is no longer to do. A fill that a kill interrupted leaves nothing.
        """
        self.commit()
        whole = False
        try:
            out = self._insert(parts)
            whole = True
        finally:
            if not whole and self._base.in_transaction:
                with self._guard():
                    self._base.execute("ROLLBACK")
                    self._base.execute("BEGIN")
        self.commit()
        return out

    def _insert(self, parts: Iterable[tuple[str, Part]]) -> list[Duplicate]:
        out: list[Duplicate] = []
        for key, part in parts:  # the reader's time and errors are not the ledger's
            with self._guard():
                first = self._insert_one(key, part)
            if first is not None:
                out.append(Duplicate(part.key, part.place, first))
        if out:  # an item of duplicates alone has nothing to do
            with self._guard():
                self._base.execute("DELETE FROM items WHERE seq NOT IN (SELECT seq FROM parts)")
        return out

    def _insert_one(self, key: str, part: Part) -> int | None:
        """The place of the part that has the same key, if there is one."""
        self._base.execute("INSERT OR IGNORE INTO items (key) VALUES (?)", (key,))
        seq, state = self._base.execute("SELECT seq, state FROM items WHERE key = ?", (key,)).fetchone()
        new = self._base.execute(
            "INSERT OR IGNORE INTO parts (seq, place, key, payload) VALUES (?, ?, ?, ?)",
            (seq, part.place, part.key, part.payload),
        )
        if new.rowcount and state != TODO:
            raise DataError(f"item {key!r:.80} is {state} already: give its new parts to another job")
        if new.rowcount:
            return None
        row = self._base.execute("SELECT place FROM parts WHERE key = ?", (part.key,)).fetchone()
        if row is None:
            raise DataError(f"two parts of item {key!r:.80} have the place {part.place}")
        return int(row[0])

    def claim(self, limit: int, lease_s: float) -> list[Item]:
        """Up to `limit` items that are to do, in order; they are running from now on, for `lease_s` seconds.

        None come while an item that may take the driver down (see above) has to run alone; claim again later.
        """
        with self._guard():
            rows = self._base.execute(
                "SELECT seq, key, tries, interrupted FROM items WHERE state = 'todo' AND seq >= ? "
                "ORDER BY seq LIMIT ?",
                (self._next, limit),
            ).fetchall()
            rows = self._company(rows, limit)
            until = time.time() + lease_s
            self._base.executemany(
                "UPDATE items SET state = 'running', lease_until_s = ? WHERE seq = ?",
                [(until, row[0]) for row in rows],
            )
            if rows:
                self._next = int(rows[-1][0]) + 1
            out = [Item(int(row[0]), row[1], self._payloads(row[0]), int(row[2])) for row in rows]
        if out:
            self.commit()
        return out

    def _company(self, rows: list[Any], limit: int) -> list[Any]:
        """Those of the rows that may run beside each other and what is running."""
        running, worst = self._base.execute(
            "SELECT count(*), coalesce(max(interrupted), 0) FROM items WHERE state = 'running'"
        ).fetchone()
        for taken, row in enumerate(rows):
            worst = max(worst, row[3])
            if running + taken >= max(1, (running + limit) >> worst):
                return rows[:taken]
        return rows

    def finish(self, seq: int, results: Sequence[str]) -> None:
        """An item is done: one result per part, in order of place. An item that is done already stays as it is."""
        with self._guard():
            state = self._base.execute("SELECT state FROM items WHERE seq = ?", (seq,)).fetchone()
            places = self._base.execute(
                "SELECT place FROM parts WHERE seq = ? ORDER BY place", (seq,)
            ).fetchall()
            if state is None:
                raise DataError(f"{self.path} has no item {seq}: finish what was claimed from it")
            if len(places) != len(results):
                raise DataError(
                    f"an item gets one result per part: item {seq} has {len(places)}, got {len(results)}"
                )
            for text in results:
                _check_text(text, seq)
            if state[0] != DONE:
                self._base.executemany(
                    "UPDATE parts SET result = ? WHERE seq = ? AND place = ?",
                    [(text, seq, place[0]) for text, place in zip(results, places, strict=True)],
                )
                self._base.execute(
                    "UPDATE items SET state = 'done', lease_until_s = NULL, reason = NULL WHERE seq = ?",
                    (seq,),
                )
        self.commit_if_due()

    def fail(self, seq: int, reason: str, max_tries: int) -> bool:
        """Count a failed try: the item is to do again, or set aside after `max_tries`. True: set aside.

        An item that is done or set aside already stays as it is.
        """
        with self._guard():
            row = self._base.execute("SELECT state, tries FROM items WHERE seq = ?", (seq,)).fetchone()
            if row is None:
                raise DataError(f"{self.path} has no item {seq}: report what was claimed from it")
            if row[0] in (DONE, ASIDE):
                return bool(row[0] == ASIDE)
            tries = int(row[1]) + 1
            state = ASIDE if tries >= max_tries else TODO
            self._base.execute(
                "UPDATE items SET state = ?, tries = ?, reason = ?, lease_until_s = NULL WHERE seq = ?",
                (state, tries, _printable(reason), seq),
            )
            self._next = min(self._next, seq)
        self.commit_if_due()
        return state == ASIDE

    def release(self, seqs: Iterable[int] | None = None) -> int:
        """Running items (None: all) are to do again, without a try counted against them; how many."""
        which = "" if seqs is None else " AND seq = ?"
        rows = [()] if seqs is None else [(seq,) for seq in seqs]
        changed = 0
        with self._guard():
            for row in rows:
                changed += self._base.execute(
                    f"UPDATE items SET state = 'todo', lease_until_s = NULL WHERE state = 'running'{which}",
                    row,
                ).rowcount
            self._next = 0
        self.commit()
        return changed

    def recover(self) -> int:
        """After a driver's death (`open_ledger` calls it): what it left running is to do again, or is set aside when
        it ran at `MAX_INTERRUPTED` deaths; how many."""
        reason = (
            f"the driver died {MAX_INTERRUPTED} times while this was running: does it take all the memory?"
        )
        with self._guard():
            changed = self._base.execute(
                "UPDATE items SET lease_until_s = NULL, interrupted = interrupted + 1, "
                "state = iif(interrupted + 1 >= :most, 'aside', 'todo'), "
                "reason = iif(interrupted + 1 >= :most, :reason, reason) WHERE state = 'running'",
                {"most": MAX_INTERRUPTED, "reason": reason},
            )
            self._next = 0
        self.commit()
        return changed.rowcount

    def retry_aside(self) -> int:
        """Items that were set aside are to do again, with all their tries; how many."""
        with self._guard():
            done = self._base.execute(
                "UPDATE items SET state = 'todo', tries = 0, interrupted = 0, reason = NULL WHERE state = 'aside'"
            )
            self._next = 0
        self.commit()
        return done.rowcount

    def counts(self) -> dict[str, int]:
        """Items by state."""
        with self._guard():
            rows = self._base.execute("SELECT state, count(*) FROM items GROUP BY state").fetchall()
        found = {state: int(n) for state, n in rows}
        if found.keys() - set(STATES):
            raise self._damaged(f"items have the states {', '.join(map(repr, found))}")
        return dict.fromkeys(STATES, 0) | found

    def aside(self) -> Iterator[Aside]:
        """Items that were given up, in order."""
        query = "SELECT seq, key, reason, tries FROM items WHERE state = 'aside' ORDER BY seq"
        for seq, key, reason, tries in self._rows(query):
            yield Aside(int(seq), key, reason, int(tries))

    def results(self, in_order: bool = False) -> Iterator[tuple[str, str, str | None, str | None]]:
        """(item key, payload, result, reason) of every part: by item, or in order of place (SQLite sorts, in its
        temporary files where they are many). Not all in memory.

        result is None for items that are not done; reason is why they were set aside.
        """
        order = "parts.place" if in_order else "parts.seq, parts.place"
        query = (
            f"SELECT items.key, payload, result, reason FROM parts JOIN items USING (seq) ORDER BY {order}"
        )
        yield from self._rows(query)

    def _rows(self, query: str) -> Iterator[Any]:
        """Rows in small lots; the time that the caller takes between them is not the ledger's."""
        with self._guard():
            found = self._base.execute(query)
        while True:
            with self._guard():
                rows = found.fetchmany(_LOT)
            if not rows:
                return
            for row in rows:
                if any(isinstance(value, bytes) for value in row):
                    raise self._damaged("text has become bytes")
                yield row

    def commit(self) -> None:
        with self._guard():
            if self._base.in_transaction:
                self._base.execute("COMMIT")
            self._committed_s = time.monotonic()
            self._base.execute("BEGIN")

    def close(self) -> None:
        try:
            with self._guard():
                if self._base.in_transaction:
                    self._base.execute("COMMIT")
        finally:
            self._base.close()
            os.close(self._lock)

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _payloads(self, seq: int) -> tuple[str, ...]:
        rows = self._base.execute("SELECT payload FROM parts WHERE seq = ? ORDER BY place", (seq,))
        return tuple(row[0] for row in rows)

    def commit_if_due(self) -> None:
        """Commit when `commit_s` have passed; drivers call it while they wait, so that a pause loses nothing."""
        if time.monotonic() - self._committed_s >= self._commit_s:
            self.commit()

    def _damaged(self, why: str) -> DataError:
        return DataError(f"{self.path} is damaged: {why}; start again in another folder")

    @contextmanager
    def _guard(self) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        except (sqlite3.Error, UnicodeError) as error:
            raise _translated(error, self.path) from error
        finally:
            self.spent_s += time.perf_counter() - start


def open_ledger(path: Path | str, commit_s: float = 0.5) -> Ledger:
    """Open a ledger, or make a new one; items that a dead driver left running are to do again.

    Raises DataError for a ledger of another version, a file that is none, and a ledger that a live driver holds;
    OutputError when it cannot be written.
    """
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
        base = sqlite3.connect(place, isolation_level=None, timeout=30)
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
    ledger = Ledger(place, base, lock, commit_s)
    whole = False
    try:
        ledger.recover()
        whole = True
    finally:
        if not whole:
            base.close()
            os.close(lock)
    return ledger


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


def _check_text(text: str, seq: int) -> None:
    if not isinstance(text, str):
        raise DataError(f"results are text: item {seq} got {type(text).__name__}; make JSON of it")
    if _printable(text) != text:
        raise DataError(
            f"item {seq} got a result with half a character (a lone surrogate), which no file can hold"
        )


def _printable(text: str) -> str:
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
