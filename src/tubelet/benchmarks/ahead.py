"""`ahead`: compute the next results in one background thread while the caller works on this one.

    with closing(ahead(decode, jobs, depth=2)) as results:
        for job, result in results: ...

Results come in the order of the items; at most `depth` of them are being made or wait, so memory is bounded. What
`make` raises is raised here, at its item's turn. Closing waits for the item that is being made and drops the rest.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead(
    make: Callable[[Item], Result], items: Iterable[Item], depth: int = 2
) -> Generator[tuple[Item, Result], None, None]:
    """(item, make(item)) for every item; depth 0 computes each when it is asked for, without a thread."""
    source = iter(items)
    if depth < 1:
        for item in source:
            yield item, make(item)
        return
    waiting: deque[tuple[Item, Future[Result]]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="tubelet-ahead") as pool:
        try:
            waiting.extend((item, pool.submit(make, item)) for item in islice(source, depth))
            while waiting:
                item, future = waiting.popleft()
                result = future.result()
                waiting.extend((later, pool.submit(make, later)) for later in islice(source, 1))
                yield item, result
        finally:
            for _, future in waiting:
                future.cancel()
