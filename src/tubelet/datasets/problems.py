"""What to do with a broken record: raise, or count it and go on. Nothing is ever dropped without one of the two.

Readers take `on_error`: "raise" (the default) stops at the first broken record with a `RecordError` that names
file, record and field; a `Problems` object counts every one of them, keeps the first examples, and lets the reader
go on with the next record. `tubelet data check` prints such a `Problems`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from tubelet.datasets.fields import Item, RecordError
from tubelet.datasets.record import Record
from tubelet.errors import DataError

EXAMPLES = 3
"""How many examples of each kind of problem are kept."""


@dataclass(slots=True)
class Problems:
    """A growing count of broken records.

    count: all of them. by_kind: (file, field without indices) -> how many. examples: the first sentences of each.
    """

    count: int = 0
    by_kind: dict[tuple[str, str], int] = field(default_factory=dict)
    examples: dict[tuple[str, str], list[str]] = field(default_factory=dict)

    def add(self, error: RecordError) -> None:
        kind = (error.file, error.kind)
        self.count += 1
        self.by_kind[kind] = self.by_kind.get(kind, 0) + 1
        kept = self.examples.setdefault(kind, [])
        if len(kept) < EXAMPLES:
            kept.append(str(error))


OnError = Literal["raise"] | Problems


def handle(on_error: OnError, error: RecordError) -> None:
    """Raise the error, or count it: the one place where a broken record is decided on."""
    if isinstance(on_error, Problems):
        on_error.add(error)
    elif on_error == "raise":
        raise error
    else:
        raise DataError(f'on_error is "raise" or a Problems object, got {on_error!r:.40}')


def attempt(on_error: OnError, item: Item, make: Callable[[], Record]) -> Record | None:
    """make(), or None when it raised a DataError (handled with the item's file and record named)."""
    try:
        return make()
    except RecordError as error:
        handle(on_error, error)
    except DataError as error:
        handle(on_error, RecordError(item.file, item.where, item.path, str(error)))
    return None


def records(items: Iterable[Item], make: Callable[[Item], Record], on_error: OnError) -> Iterator[Record]:
    """One record per item, lazily; broken items and repeated ids are handled, the first of an id is kept."""

    def pairs() -> Iterator[tuple[Item, Record | None]]:
        for item in items:
            yield item, attempt(on_error, item, partial(make, item))

    yield from unique(pairs(), on_error)


def unique(pairs: Iterable[tuple[Item, Record | None]], on_error: OnError) -> Iterator[Record]:
    """Records that are not None, each id once; a second one of the same id is a problem and is left out."""
    seen: set[str] = set()
    for item, record in pairs:
        if record is None:
            continue
        if record.id in seen:
            reason = f"the id {record.id!r:.80} was there before: ids are unique in a split"
            handle(on_error, RecordError(item.file, item.where, "id", reason))
            continue
        seen.add(record.id)
        yield record
