"""Who works on what: claims with an owner and a lease, failed tries, and what a driver's death leaves behind.

A claim belongs to an owner and holds for `lease_s` seconds. Whoever sees that the owner lives renews it; a claim whose
lease is over shows up in `expired`, is failed or released by the engine, and then goes to another owner. A late word
of the former one does no harm: the first result of an item stays, and a failure that a former owner reports does not
count. Leases use the clock of the wall, because a ledger outlives its process.

Claims are committed at once, so that a driver's death is counted against the items that were running. Such items run
in ever smaller company (each death halves how many may run at a time), so that the culprit soon runs alone; after
`MAX_INTERRUPTED` deaths it is set aside. A driver that ends in order (Ctrl-C, a full disk) counts nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tubelet.errors import DataError
from tubelet.scale.ledger_file import LedgerFile, printable

MAX_INTERRUPTED = 20
"""An item that ran while its driver died so often is set aside: it seems to take the driver down."""

TODO, RUNNING, DONE, ASIDE = "todo", "running", "done", "aside"
STATES = (TODO, RUNNING, DONE, ASIDE)

_FREE = "owner = NULL, lease_until_s = NULL"


@dataclass(frozen=True, slots=True)
class Item:
    """What a worker gets: key and payloads (in order of place). tries: how often it failed before."""

    seq: int
    key: str
    payloads: tuple[str, ...]
    tries: int = 0


@dataclass(frozen=True, slots=True)
class Claim:
    """An item that is running. lease_until_s: seconds since 1970."""

    seq: int
    key: str
    owner: str
    lease_until_s: float


class Claims:
    """The claims in a file."""

    def __init__(self, file: LedgerFile) -> None:
        self._file = file
        self._next = 0  # items before this seq are not todo: claims need not look at them again

    def claim(self, limit: int, lease_s: float, owner: str) -> list[Item]:
        with self._file.guard() as base:
            rows = base.execute(
                "SELECT seq, key, tries, interrupted FROM items WHERE state = 'todo' AND seq >= ? "
                "ORDER BY seq LIMIT ?",
                (self._next, limit),
            ).fetchall()
            rows = self._company(rows, limit)
            until = time.time() + lease_s
            base.executemany(
                "UPDATE items SET state = 'running', owner = ?, lease_until_s = ? WHERE seq = ?",
                [(owner, until, row[0]) for row in rows],
            )
            if rows:
                self._next = int(rows[-1][0]) + 1
            out = [Item(int(row[0]), row[1], self._payloads(row[0]), int(row[2])) for row in rows]
        if out:
            self._file.commit()
        return out

    def _payloads(self, seq: int) -> tuple[str, ...]:
        rows = self._file.base.execute("SELECT payload FROM parts WHERE seq = ? ORDER BY place", (seq,))
        return tuple(row[0] for row in rows)

    def _company(self, rows: list[Any], limit: int) -> list[Any]:
        """Those of the rows that may run beside each other and what is running."""
        running, worst = self._file.base.execute(
            "SELECT count(*), coalesce(max(interrupted), 0) FROM items WHERE state = 'running'"
        ).fetchone()
        for taken, row in enumerate(rows):
            worst = max(worst, row[3])
            if running + taken >= max(1, (running + limit) >> worst):
                return rows[:taken]
        return rows

    def renew(self, owners: Iterable[tuple[int, str]], lease_s: float) -> int:
        until = time.time() + lease_s
        changed = 0
        with self._file.guard() as base:
            for seq, owner in owners:
                changed += base.execute(
                    "UPDATE items SET owner = ?, lease_until_s = ? WHERE seq = ? AND state = 'running'",
                    (owner, until, seq),
                ).rowcount
        self._file.commit()
        return changed

    def expired(self) -> list[Claim]:
        with self._file.guard() as base:
            rows = base.execute(
                "SELECT seq, key, owner, lease_until_s FROM items WHERE state = 'running' AND lease_until_s < ? "
                "ORDER BY seq",
                (time.time(),),
            ).fetchall()
        return [Claim(int(row[0]), str(row[1]), str(row[2] or ""), float(row[3])) for row in rows]

    def fail(self, seq: int, reason: str, max_tries: int, owner: str | None) -> bool:
        with self._file.guard() as base:
            row = base.execute("SELECT state, tries, owner FROM items WHERE seq = ?", (seq,)).fetchone()
            if row is None:
                raise DataError(f"{self._file.path} has no item {seq}: report what was claimed from it")
            former = owner is not None and row[2] != owner
            if row[0] in (DONE, ASIDE) or former:
                return bool(row[0] == ASIDE)
            tries = int(row[1]) + 1
            state = ASIDE if tries >= max_tries else TODO
            base.execute(
                f"UPDATE items SET state = ?, tries = ?, reason = ?, {_FREE} WHERE seq = ?",
                (state, tries, printable(reason), seq),
            )
            self._next = min(self._next, seq)
        self._file.commit_if_due()
        return state == ASIDE

    def release(self, seqs: Iterable[int] | None) -> int:
        which = "" if seqs is None else " AND seq = ?"
        rows = [()] if seqs is None else [(seq,) for seq in seqs]
        changed = 0
        with self._file.guard() as base:
            for row in rows:
                changed += base.execute(
                    f"UPDATE items SET state = 'todo', {_FREE} WHERE state = 'running'{which}", row
                ).rowcount
            self._next = 0
        self._file.commit()
        return changed

    def recover(self) -> int:
        reason = (
            f"the driver died {MAX_INTERRUPTED} times while this was running: does it take all the memory?"
        )
        with self._file.guard() as base:
            changed = base.execute(
                f"UPDATE items SET {_FREE}, interrupted = interrupted + 1, "
                "state = iif(interrupted + 1 >= :most, 'aside', 'todo'), "
                "reason = iif(interrupted + 1 >= :most, :reason, reason) WHERE state = 'running'",
                {"most": MAX_INTERRUPTED, "reason": reason},
            )
            self._next = 0
        self._file.commit()
        return changed.rowcount

    def retry_aside(self) -> int:
        with self._file.guard() as base:
            done = base.execute(
                "UPDATE items SET state = 'todo', tries = 0, interrupted = 0, reason = NULL WHERE state = 'aside'"
            )
            self._next = 0
        self._file.commit()
        return done.rowcount
