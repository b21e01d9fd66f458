"""Which questions a run asks: of a split, a task, the first so many, and of these a shard of whole videos."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tubelet.benchmarks.run_card import data_hash
from tubelet.benchmarks.run_truth import video_key
from tubelet.datasets import open_dataset
from tubelet.datasets.record import Record
from tubelet.errors import DataError

DEFAULT_SPLITS = {"hcstvg-v2": "val", "qvhighlights": "val", "activitynet": "val_2", "egoschema": "subset"}
"""The split whose truth is public and that papers report, where it is not called "test"."""


@dataclass(frozen=True, slots=True)
class Selection:
    """What a run asks. rows: the place of each record in the whole selection; hash and tasks: of that whole
    selection."""

    records: tuple[Record, ...]
    rows: tuple[int, ...]
    hash: str
    tasks: tuple[str, ...]


def default_split(name: str) -> str:
    """The split that is scored when none is named; DataError where there is no obvious one."""
    module = open_dataset(name)
    split = DEFAULT_SPLITS.get(module.NAME, "test")
    if split in module.SPLITS:
        return split
    raise DataError(f"{module.NAME} has no default split: name one of {', '.join(module.SPLITS)}")


def parse_shard(text: str) -> tuple[int, int]:
    """ "2/4" (the second of four, from 1) -> (1, 4)."""
    part, _, of = text.partition("/")
    if part.strip().isdecimal() and of.strip().isdecimal() and 1 <= int(part) <= int(of):
        return int(part) - 1, int(of)
    raise DataError(f"a shard is i/n, from 1/n to n/n, for example 2/4; got {text!r:.40}")


def select(
    records: Iterable[Record],
    task: str | None = None,
    limit: int | None = None,
    shard: tuple[int, int] = (0, 1),
) -> Selection:
    """The records of a task, the first `limit` of them, and of these the shard: whole videos, dealt out in turn."""
    index, count = shard
    if not 0 <= index < count:
        raise DataError(f"a shard is (i, n) with 0 <= i < n, got {shard}")
    if limit is not None and limit < 1:
        raise DataError(f"a limit is at least 1 query, got {limit}")
    chosen: list[Record] = []
    tasks: dict[str, int] = {}
    for record in records:
        tasks[record.task] = tasks.get(record.task, 0) + 1
        if task in (None, record.task):
            chosen.append(record)
            if limit is not None and len(chosen) == limit:
                break
    if not chosen:
        there = f"it has {', '.join(tasks)}" if tasks else "it is empty"
        raise DataError(
            f"there is nothing to evaluate{f' of task {task}' if task and tasks else ''}: {there}"
        )
    number: dict[str, int] = {}
    for record in chosen:
        number.setdefault(video_key(record.video), len(number))
    mine = [(k, r) for k, r in enumerate(chosen) if number[video_key(r.video)] % count == index]
    return Selection(
        tuple(r for _, r in mine),
        tuple(k for k, _ in mine),
        data_hash(chosen),
        tuple(dict.fromkeys(r.task for r in chosen)),
    )
