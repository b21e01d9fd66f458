"""The toy world as a stream of samples: what each kind of mix holds."""

from __future__ import annotations

from dataclasses import replace

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


def test_sentences_asked_as_yes_or_no_keep_their_truth() -> None:
    """The same scenes and sentences; what was grounded becomes a question in words about the frames of the event."""
    plain = WorldMix(batch=4, questions=6, tasks=("stvg",), absent_rate=0.4, box_frames="visible", seed=3)
    asked = replace(plain, yes_no_rate=1.0)
    answers = set()
    for before, after in zip(world_batch(plain, 0), world_batch(asked, 0), strict=True):
        assert np.array_equal(before.pixels, after.pixels)
        for target, question in zip(before.questions, after.questions, strict=True):
            if "?" in target.query:
                assert question.query == target.query and question.task == "stvg"
                continue
            assert question.task == "qa" and target.query in question.query and question.span is None
            assert question.answer == ("yes" if target.present else "no") and question.learn_answer
            assert not question.has_box.any() and not question.active.any()
            seen = target.has_box & target.active
            assert (question.about is None) == (not seen.any())
            if question.about is not None:
                assert np.array_equal(question.about, seen)
                assert np.array_equal(question.boxes_xyxy, target.boxes_xyxy)
            answers.add(question.answer)
    assert answers == {"yes", "no"}


def test_words_about_an_action_are_about_the_frames_in_which_it_goes_on() -> None:
    """Where a model is taught to look: at the thing while it acts, in questions that name one action."""
    partly = 0
    for sample in world_batch(WorldMix(batch=40, questions=6, tasks=("qa",)), 0):
        assert sample.things is not None
        for question in sample.questions:
            if question.about is None or question.kind not in ("action", "attribute", "yes_no"):
                continue
            (actor,) = [
                k
                for k, boxes in enumerate(sample.things.boxes_xyxy)
                if np.array_equal(boxes[question.about], question.boxes_xyxy[question.about])
            ]
            visible, doing = sample.things.visible[actor], sample.things.doing[actor]
            assert not (question.about & ~visible).any()
            if question.kind == "action":
                assert (
                    np.array_equal(question.about, visible & (doing > 0)) or not (visible & (doing > 0)).any()
                )
            partly += int(question.about.sum() < visible.sum())
    assert partly >= 10
