"""`Best`: the so many best of what comes, however many come. Providers keep the tracks that are over in one."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(slots=True)
class Best(Generic[T]):
    """The `most` items of the highest rank; of equal ones the first. n_dropped: how many others there were."""

    most: int
    n_dropped: int = 0
    _kept: list[tuple[float, int, T]] = field(
        default_factory=list
    )  # a heap; the second makes every key different
    _count: int = 0

    def add(self, rank: float, item: T) -> None:
        self._count += 1
        heapq.heappush(self._kept, (rank, -self._count, item))
        if len(self._kept) > self.most:
            heapq.heappop(self._kept)
            self.n_dropped += 1

    def ranked(self) -> list[tuple[float, T]]:
        """(rank, item), best first."""
        return [(rank, item) for rank, _, item in sorted(self._kept, key=lambda kept: (-kept[0], -kept[1]))]

    def notes(self) -> list[str]:
        """The note to keep with the tracks, where some were left out."""
        if not self.n_dropped:
            return []
        found = self.n_dropped + len(self._kept)
        return [f"{found} tracks were found and the best {len(self._kept)} kept: raise max_tracks for more"]
