"""What Ray's workers are doing, kept in one small actor that the driver asks: who is at which item, and since when.

Ray repeats the task of a worker that died but does not say which item it died of, and it does not notice a step that
hangs. So a worker says when it begins and ends an item, and gives signs of life. An item that begins although somebody
else had begun it has killed that worker: a failed try. `late` finds items in work for too long, and workers not heard
of for the lease: a failed try too; the driver then kills these workers, and Ray gives their tasks to new ones. Where
a machine is lost and no other has room, nobody takes these tasks: `stuck` tells, and the driver begins anew. All times
are this process's own. If the board itself dies, Ray starts it again, empty: some failed tries are then not counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from tubelet.scale.job import Job, gone_silent, too_late

Place = tuple[str, int]
"""A worker: Ray's id of its machine, and its process there."""


@dataclass(slots=True)
class _Work:
    place: Place
    since_s: float


class Board:
    """Plain Python; `ray_engine` makes an actor of it. Items are (number of the stage, seq)."""

    def __init__(self, job: Job, clock: Callable[[], float] = time.monotonic) -> None:
        self._job, self._clock = job, clock
        self._work: dict[tuple[int, int], _Work] = {}
        self._failures: dict[tuple[int, int], list[str]] = {}
        self._heard: dict[Place, float] = {}
        self._begun = 0
        self._looked = self._moved = clock()

    def new_wave(self) -> None:
        """Nobody is at work; failures stay."""
        self._work.clear()
        self._heard.clear()
        self._begun = 0
        self._looked = self._moved = self._clock()

    def begun(self) -> int:
        """How often an item was begun in this wave."""
        return self._begun

    def begin(self, stage: int, seq: int, place: Place) -> list[str]:
        """A worker takes an item; returns why it failed here before, without what steps raised."""
        item = (stage, seq)
        before = self._work.get(item)
        if before is not None and before.place != place:
            self._note(item, f"{self._job.stages[stage].name}: its worker died")
        now = self._clock()
        self._work[item] = _Work(place, now)
        self._heard[place] = self._moved = now
        self._begun += 1
        return list(self._failures.get(item, ()))

    def end(self, stage: int, seq: int) -> None:
        self._work.pop((stage, seq), None)
        self._moved = self._clock()

    def beat(self, place: Place, ready: bool = True) -> None:
        """A sign of life. ready: its stage is made; a worker that still loads a model will take items."""
        self._heard[place] = self._clock()
        if not ready:
            self._moved = self._heard[place]

    def forget(self, seq: int) -> None:
        """Its failures are in the ledger now."""
        for item in [item for item in self._failures if item[1] == seq]:
            del self._failures[item]

    def late(self) -> list[Place]:
        """Workers that are to be killed; the items they are at have a failed try from now on."""
        now, out = self._clock(), []
        pause_s, self._looked = now - self._looked, now
        if pause_s > self._job.lease_s / 2:  # we slept, or nobody asked: the workers are not to blame
            self._moved += pause_s
            for work in self._work.values():
                work.since_s += pause_s
            self._heard = dict.fromkeys(self._heard, now)
        for item, work in list(self._work.items()):
            stage = self._job.stages[item[0]]
            if now - work.since_s > self._job.item_timeout_s:
                reason = too_late(stage, self._job)
            elif now - self._heard[work.place] > self._job.lease_s:
                reason = gone_silent(stage, self._job)
            else:
                continue
            self._note(item, reason)
            del self._work[item]  # so that its next begin is no second failure
            self._moved = now
            out.append(work.place)
        return out

    def stuck(self) -> bool:
        """Workers are gone, and for the lease nobody has been at an item or has made ready for one: nobody will take
        what they had. Not before the first item of a wave: machines take long to come."""
        since_s = self._clock() - self._job.lease_s
        idle = self._begun > 0 and not self._work and self._moved < since_s
        return idle and any(heard_s < since_s for heard_s in self._heard.values())

    def owners(self) -> dict[int, str]:
        """Who is at which item: seq -> a name for the ledger."""
        return {
            seq: f"{self._job.stages[stage].name} {work.place[0][:8]}:{work.place[1]}"
            for (stage, seq), work in self._work.items()
        }

    def _note(self, item: tuple[int, int], reason: str) -> None:
        self._failures.setdefault(item, []).append(reason)
