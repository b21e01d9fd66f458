"""The ledger of a job: one SQLite file that says what there is to do, what is running, done or set aside.

An *item* (for example a video) has a unique key and *parts* (for example its questions), each with a unique key, a
place in the input, a payload and, once the item is done, a result. State and results change in one transaction, so
a kill at any moment leaves an item either done with all its results, or not done. Only the driver writes
(`ledger_file`: the file, its lock, its version); what is running belongs to an owner for some time (`ledger_claims`).

Results are collected and committed together (`commit_s`): a killed process loses at most the last `commit_s` seconds
of results, which are computed again; a power cut may lose a few commits more and breaks nothing.
This module knows nothing of videos, models or processes.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tubelet.errors import DataError
from tubelet.scale.ledger_claims import DONE, STATES, TODO, Claim, Claims, Item
from tubelet.scale.ledger_file import LedgerFile, open_file, printable


@dataclass(frozen=True, slots=True)
class Part:
    """One piece of an item. place: its row in the input, from 0."""

    place: int
    key: str
    payload: str


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
    """An open ledger; `open_ledger` makes one. `fill` and `results` are for one thread."""

    def __init__(self, file: LedgerFile) -> None:
        self.file = file
        self._claims = Claims(file)

    @property
    def path(self) -> Path:
        return self.file.path

    @property
    def spent_s(self) -> float:
        """Seconds that this process has spent in the ledger."""
        return self.file.spent_s

    def meta(self, name: str) -> str | None:
        return self.file.meta(name)

    def set_meta(self, name: str, value: str) -> None:
        self.file.set_meta(name, value)

    # --- what is to do -------------------------------------------------------------------------------

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
            if not whole:
                self.file.take_back()
        self.commit()
        return out

    def _insert(self, parts: Iterable[tuple[str, Part]]) -> list[Duplicate]:
        out: list[Duplicate] = []
        for key, part in parts:  # the reader's time and errors are not the ledger's
            with self.file.guard() as base:
                first = _insert_one(base, key, part)
            if first is not None:
                out.append(Duplicate(part.key, part.place, first))
        if out:  # an item of duplicates alone has nothing to do
            with self.file.guard() as base:
                base.execute("DELETE FROM items WHERE seq NOT IN (SELECT seq FROM parts)")
        return out

    # --- what is running -----------------------------------------------------------------------------

    def claim(self, limit: int, lease_s: float, owner: str = "") -> list[Item]:
        """Up to `limit` items that are to do, in order; they are the owner's from now on, for `lease_s` seconds.

        None come while an item that may take the driver down (see `ledger_claims`) has to run alone; claim again later.
        """
        return self._claims.claim(limit, lease_s, owner)

    def renew(self, owners: Iterable[tuple[int, str]], lease_s: float) -> int:
        """Running items (seq, owner) belong to these owners for `lease_s` seconds from now on; how many still run."""
        return self._claims.renew(owners, lease_s)

    def expired(self) -> list[Claim]:
        """Running items whose lease is over, in order: `fail` or `release` them, then another owner gets them."""
        return self._claims.expired()

    def finish(self, seq: int, results: Sequence[str]) -> None:
        """An item is done: one result per part, in order of place. An item that is done already stays as it is, so a
        result that comes late, after the item went to another owner, counts at most once."""
        with self.file.guard() as base:
            state = base.execute("SELECT state FROM items WHERE seq = ?", (seq,)).fetchone()
            places = base.execute("SELECT place FROM parts WHERE seq = ? ORDER BY place", (seq,)).fetchall()
            if state is None:
                raise DataError(f"{self.path} has no item {seq}: finish what was claimed from it")
            if len(places) != len(results):
                raise DataError(
                    f"an item gets one result per part: item {seq} has {len(places)}, got {len(results)}"
                )
            for text in results:
                _check_text(text, seq)
            if state[0] != DONE:
                base.executemany(
                    "UPDATE parts SET result = ? WHERE seq = ? AND place = ?",
                    [(text, seq, place[0]) for text, place in zip(results, places, strict=True)],
                )
                base.execute(
                    "UPDATE items SET state = 'done', owner = NULL, lease_until_s = NULL, reason = NULL WHERE seq = ?",
                    (seq,),
                )
        self.commit_if_due()

    def fail(self, seq: int, reason: str, max_tries: int, owner: str | None = None) -> bool:
        """Count a failed try: the item is to do again, or set aside after `max_tries`. True: set aside.

        An item that is done or set aside already stays as it is; so does one that is no longer this owner's (None:
        whoever's it is).
        """
        return self._claims.fail(seq, reason, max_tries, owner)

    def release(self, seqs: Iterable[int] | None = None) -> int:
        """Running items (None: all) are to do again, without a try counted against them; how many."""
        return self._claims.release(seqs)

    def recover(self) -> int:
        """After a driver's death (`open_ledger` calls it): what it left running is to do again, or is set aside when
        it ran at `MAX_INTERRUPTED` deaths; how many."""
        return self._claims.recover()

    def retry_aside(self) -> int:
        """Items that were set aside are to do again, with all their tries; how many."""
        return self._claims.retry_aside()

    # --- what has become of them ---------------------------------------------------------------------

    def counts(self) -> dict[str, int]:
        """Items by state."""
        with self.file.guard() as base:
            rows = base.execute("SELECT state, count(*) FROM items GROUP BY state").fetchall()
        found = {state: int(n) for state, n in rows}
        if found.keys() - set(STATES):
            raise self.file.damaged(f"items have the states {', '.join(map(repr, found))}")
        return dict.fromkeys(STATES, 0) | found

    def aside(self) -> Iterator[Aside]:
        """Items that were given up, in order."""
        query = "SELECT seq, key, reason, tries FROM items WHERE state = 'aside' ORDER BY seq"
        for seq, key, reason, tries in self.file.rows(query):
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
        yield from self.file.rows(query)

    # --- the file ------------------------------------------------------------------------------------

    def commit(self) -> None:
        self.file.commit()

    def commit_if_due(self) -> None:
        """Commit when `commit_s` have passed; drivers call it while they wait, so that a pause loses nothing."""
        self.file.commit_if_due()

    def close(self) -> None:
        self.file.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_ledger(path: Path | str, commit_s: float = 0.5) -> Ledger:
    """Open a ledger, or make a new one; items that a dead driver left running are to do again.

    Raises DataError for a ledger of another version, a file that is none, and a ledger that a live driver holds;
    OutputError when it cannot be written.
    """
    ledger = Ledger(open_file(path, commit_s))
    whole = False
    try:
        ledger.recover()
        whole = True
    finally:
        if not whole:
            ledger.file.drop()
    return ledger


def _insert_one(base: sqlite3.Connection, key: str, part: Part) -> int | None:
    """The place of the part that has the same key, if there is one."""
    base.execute("INSERT OR IGNORE INTO items (key) VALUES (?)", (key,))
    seq, state = base.execute("SELECT seq, state FROM items WHERE key = ?", (key,)).fetchone()
    new = base.execute(
        "INSERT OR IGNORE INTO parts (seq, place, key, payload) VALUES (?, ?, ?, ?)",
        (seq, part.place, part.key, part.payload),
    )
    if new.rowcount and state != TODO:
        raise DataError(f"item {key!r:.80} is {state} already: give its new parts to another job")
    if new.rowcount:
        return None
    row = base.execute("SELECT place FROM parts WHERE key = ?", (part.key,)).fetchone()
    if row is None:
        raise DataError(f"two parts of item {key!r:.80} have the place {part.place}")
    return int(row[0])


def _check_text(text: str, seq: int) -> None:
    if not isinstance(text, str):
        raise DataError(f"results are text: item {seq} got {type(text).__name__}; make JSON of it")
    if printable(text) != text:
        raise DataError(
            f"item {seq} got a result with half a character (a lone surrogate), which no file can hold"
        )
