"""The toy world as a stream of samples: what each kind of mix holds."""

from __future__ import annotations

import numpy as np
import pytest

from tubelet.errors import RecipeError
from tubelet.training.samples import WorldMix, world_batch


def test_a_moment_is_one_frame_of_a_video_in_which_things_happen() -> None:
    samples = world_batch(WorldMix(kind="moment", batch=40, questions=1), 0)
    times = [float(s.times_s[0]) for s in samples]
    assert all(len(s.times_s) == 1 and s.pixels.shape == (1, 64, 64, 3) and s.is_image for s in samples)
    assert min(times) < 1.5 and max(times) > 5.0
    assert all(0 <= t <= s.duration_s for t, s in zip(times, samples, strict=True))
    doing = np.concatenate([s.things.doing.ravel() for s in samples if s.things is not None])
    assert len(set(doing.tolist())) > 5  # several actions are caught in the act


def test_a_window_shows_a_part_of_the_video_at_its_frame_rate() -> None:
    whole = world_batch(WorldMix(batch=20, questions=2), 3)
    parts = world_batch(WorldMix(batch=20, questions=2, frames=4, window=0.25), 3)
    starts = []
    for a, b in zip(whole, parts, strict=True):
        assert a.duration_s == b.duration_s and len(b.times_s) == 4
        step = a.duration_s / 16
        assert np.diff(b.times_s) == pytest.approx(np.full(3, step), rel=0.25)
        assert b.times_s[-1] - b.times_s[0] < 0.25 * b.duration_s
        assert b.times_s[0] >= 0 and b.times_s[-1] <= b.duration_s
        starts.append(b.times_s[0] / b.duration_s)
        for question in b.questions:
            if question.span is not None:
                assert question.active.tolist() == question.span.contains(b.times_s).tolist()
    assert np.ptp(starts) > 0.4


@pytest.mark.parametrize(("field", "value"), [("kind", "film"), ("window", 0.0), ("window", 1.5)])
def test_mistakes_name_the_field(field: str, value: object) -> None:
    with pytest.raises(RecipeError, match=f"data.{field}"):
        WorldMix(**{field: value})  # type: ignore[arg-type]
