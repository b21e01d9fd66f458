"""Screens: what is asked for is what is shown."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tubelet.training.samples import Sample, WorldMix, world_batch
from tubelet.world.scene import COLOURS


def _batch(**options: Any) -> list[Sample]:
    return world_batch(WorldMix(kind="screens", batch=12, questions=4, size=16, **options), 3)


@pytest.mark.parametrize("sampling", ["centres", "ends"])
def test_the_named_colour_is_on_the_screen_in_the_span_and_only_there(sampling: str) -> None:
    checked = 0
    for sample in _batch(sampling=sampling, absent_rate=0.3):
        means = sample.pixels.reshape(len(sample.times_s), -1, 3).mean(1)
        palette = np.array(list(COLOURS.values()))
        closest = np.array([_closest(mean, palette) for mean in means])
        for question in sample.questions:
            colour = list(COLOURS).index(question.query.split()[1])
            shown = closest == colour
            assert question.present == shown.any()
            assert np.array_equal(question.active, shown)
            if question.span is not None:
                assert np.array_equal(np.asarray(question.span.contains(sample.times_s)), shown)
                assert 0 <= question.span.start_s < question.span.end_s <= sample.duration_s
            checked += 1
    assert checked == 48


def test_a_batch_is_a_function_of_seed_and_step() -> None:
    first, second = _batch(), _batch()
    assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(first, second, strict=True))
    other = world_batch(WorldMix(kind="screens", batch=12, questions=4, size=16), 4)
    assert not np.array_equal(first[0].pixels, other[0].pixels)
    assert {q.present for s in first for q in s.questions} == {True, False}


def _closest(mean: np.ndarray, palette: np.ndarray) -> int:
    """Brightness differs between frames: compare directions."""
    unit = mean / np.linalg.norm(mean)
    return int((palette / np.linalg.norm(palette, axis=1, keepdims=True) @ unit).argmax())
