"""How many of each task: the paper's proportions, drawn so that the same items are drawn again, wherever they stand.

    chosen = choose({"vtg": ids, "rec": ids, ...}, Mixture())      # task and id, in training order
    for instruction in mix({"vtg": vtg, ...}, Mixture(total=100_000)): ...

Items are ranked by a hash of seed and id: the choice depends on the set of ids, not on their order, and one more item
changes at most one other. Nothing is drawn twice unless `repeat` says so. Where a task has too little, the whole
mixture shrinks until the proportions hold (`sizes` says to what); a task without any items is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tubelet.errors import DataError, RecipeError
from tubelet.unistg.instructions import TASKS, Instruction, draw


@dataclass(frozen=True, slots=True)
class Mixture:
    """Weights of the tasks: SpaceVLLM's numbers of samples. total: how many in all (None: as many as there can be).

    repeat: a task with too little is repeated instead of shrinking the mixture.
    """

    vtg: float = 50_000
    rec: float = 320_000
    stvg: float = 110_000
    general: float = 200_000
    total: int | None = None
    repeat: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        weights = [getattr(self, task) for task in TASKS]
        if min(weights) < 0 or not sum(weights) > 0:
            raise RecipeError("the weights of a mixture are 0 or more, and one is more than 0")
        if self.total is not None and self.total < 1:
            raise RecipeError(f"the total of a mixture is at least 1, got {self.total}")


def sizes(available: Mapping[str, int], mixture: Mixture = Mixture()) -> dict[str, int]:
    """How many of each task are drawn, by largest remainder. DataError where nothing can be."""
    weights = {task: float(getattr(mixture, task)) for task in TASKS if available.get(task, 0) > 0}
    weights = {task: weight for task, weight in weights.items() if weight > 0}
    if not weights:
        raise DataError(f"a mixture needs items of a task that has weight; there are {dict(available)}")
    whole = sum(weights.values())
    most = min(available[task] * whole / weight for task, weight in weights.items())
    total = mixture.total if mixture.total is not None else int(most + 1e-9)
    if not mixture.repeat:
        total = min(total, int(most + 1e-9))
    exact = {task: total * weight / whole for task, weight in weights.items()}
    out = {task: int(value) for task, value in exact.items()}
    by_rest = sorted(weights, key=lambda task: (out[task] - exact[task], TASKS.index(task)))
    for task in by_rest:
        if sum(out.values()) < total and (mixture.repeat or out[task] < available[task]):
            out[task] += 1
    return {task: out.get(task, 0) for task in TASKS}


def choose(ids: Mapping[str, Sequence[str]], mixture: Mixture = Mixture()) -> list[tuple[str, str]]:
    """(task, id) in training order. Ids are unique within a task."""
    unknown = sorted(set(ids) - set(TASKS))
    if unknown:
        raise DataError(f"unknown tasks {', '.join(unknown)}; a mixture has {', '.join(TASKS)}")
    for task, own in ids.items():
        if len(set(own)) != len(own):
            raise DataError(f"the ids of {task} are not unique: {len(own) - len(set(own))} are there twice")
    wanted = sizes({task: len(own) for task, own in ids.items()}, mixture)
    rows: list[tuple[int, str, str]] = []
    for task, count in wanted.items():
        if not count:
            continue
        ranked = sorted(ids[task], key=lambda id: (draw(mixture.seed, "rank", task, id), id))
        for start in range(0, count, len(ranked)):
            rows += [
                (draw(mixture.seed, "order", task, id, str(start)), task, id)
                for id in ranked[: count - start]
            ]
    rows.sort()
    return [(task, id) for _, task, id in rows]


def mix(pools: Mapping[str, Sequence[Instruction]], mixture: Mixture = Mixture()) -> Iterator[Instruction]:
    """The chosen instructions of pools that lie in memory."""
    by_id = {task: {one.id: one for one in pool} for task, pool in pools.items()}
    for task, id in choose({task: [one.id for one in pool] for task, pool in pools.items()}, mixture):
        yield by_id[task][id]
