"""Which batch goes where: nothing repeated, nothing skipped, whatever stops a run and however many processes go on."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tubelet.spacevllm.item_rows import place
from tubelet.training.checkpoint import Progress
from tubelet.training.loop import STAGE_OFFSET, Job, _dealt, _loader
from tubelet.training.recipe import Stage
from tubelet.training.samples import WorldMix


def numbers_job() -> Job:
    return Job(None, lambda stage, k: k, lambda *_: (None, {}, 0), lambda folder: None)  # type: ignore[arg-type, return-value]


def dealt(
    progress: Progress, stage: Stage, world: int, steps: int, number: int
) -> tuple[Progress, list[int]]:
    """Batches of all processes over so many steps, as the loop asks for them."""
    progress = _dealt(progress, stage, world)
    shift = progress.batches - progress.step * stage.accumulate * world
    taken: list[int] = []
    for rank in range(world):
        loader = _loader(
            numbers_job(),
            stage,
            progress.step * stage.accumulate,
            (progress.step + steps) * stage.accumulate,
            world,
            rank,
            0,
            number,
            shift,
        )
        taken += list(loader)
    after = progress.batches + steps * stage.accumulate * world
    return replace(progress, step=progress.step + steps, batches=after), taken


@settings(deadline=None, max_examples=60)
@given(
    runs=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 4)), min_size=1, max_size=4),
    accumulate=st.integers(1, 3),
    number=st.integers(0, 2),
)
def test_no_batch_is_repeated_or_skipped(runs: list[tuple[int, int]], accumulate: int, number: int) -> None:
    """A run of several pieces, each with its own number of processes, takes batches 0, 1, 2, ... once each."""
    stage = Stage("s", 1000, (WorldMix(),), accumulate=accumulate)
    progress, taken = Progress(), []
    for world, steps in runs:
        progress, more = dealt(progress, stage, world, steps, number)
        taken += more
    assert sorted(taken) == [number * STAGE_OFFSET + k for k in range(len(taken))]
    assert len(taken) == progress.batches == accumulate * sum(world * steps for world, steps in runs)


def test_a_checkpoint_that_does_not_count_batches_goes_on_as_before() -> None:
    stage = Stage("s", 10, (WorldMix(),), accumulate=2)
    old = Progress(stage=0, step=3, total_steps=3)
    assert _dealt(old, stage, 2) == replace(old, batches=12, processes=2)


@settings(deadline=None, max_examples=60)
@given(
    count=st.integers(1, 40),
    batch=st.integers(1, 7),
    seed=st.integers(0, 5),
    stop=st.integers(0, 60),
    data=st.data(),
)
def test_every_group_once_per_epoch_also_after_a_resume(
    count: int, batch: int, seed: int, stop: int, data: st.DataObject
) -> None:
    def order(epoch: int) -> np.ndarray:
        return np.random.default_rng([seed, epoch]).permutation(count).astype(np.int64)

    total = batch * 60
    orders: dict[int, np.ndarray] = {}
    drawn = [place(count, order, at, orders) for at in range(total)]
    for epoch in range(total // count):
        assert Counter(drawn[epoch * count : (epoch + 1) * count]) == Counter(range(count))
    orders = {}  # a resumed run remembers nothing
    assert [place(count, order, at, orders) for at in range(stop * batch, total)] == drawn[stop * batch :]
    jump = data.draw(st.integers(0, total - 1))
    assert place(count, order, jump, orders) == drawn[jump]
