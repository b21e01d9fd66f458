"""The Annotator on clips: how many boxes are kept, spans outside the video, providers that fail."""

from __future__ import annotations

import json
import subprocess
import sys
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from tubelet.errors import OutputError, RecipeError, VideoError
from tubelet.frames import Clip, FrameGrid
from tubelet.proposals.track import Track, Tracks
from tubelet.tube import Span
from tubelet.unistg.annotator import Annotator, annotate, load_annotator
from tubelet.unistg.recipe import AnnotatorSettings, UniSTGRecipe
from tubelet.unistg.records import Caption, Detected, Drop, Phrase
from tubelet.unistg.steps import judged

FRAMES = 32


@pytest.fixture(scope="module")
def clip() -> Clip:
    grid = FrameGrid(np.arange(FRAMES), np.arange(FRAMES) / 4, Fraction(4), FRAMES / 4, 64, 48)
    return Clip(np.zeros((FRAMES, 48, 64, 3), dtype=np.uint8), grid)


def phrase(start_s: float = 0.0, end_s: float = 8.0, id: str = "1") -> Phrase:
    return Phrase(Caption(id, "t", "a.mp4", "a dog runs", Span(start_s, end_s)), "a dog", True, "rules")


def annotator(propose: Any, **options: Any) -> Annotator:
    return Annotator(AnnotatorSettings(provider="test:it", **options), propose)


def dogs(count: int, score: float = 0.9) -> Any:
    def propose(source: Any, phrases: Any, grid: FrameGrid) -> Tracks:
        boxes = np.tile([0.123456789, 0.2, 0.5, 0.6], (len(grid), 1))
        visible = np.ones(len(grid), dtype=bool)
        scores = [np.full(len(grid), score * (1 - k / 2 / count)) for k in range(count)]
        tracks = [Track(k, boxes, visible, box_scores=s, label="a dog") for k, s in enumerate(scores)]
        return Tracks(grid, tuple(tracks), provider="test")

    return propose


def fails(error: BaseException) -> Any:
    def propose(source: Any, phrases: Any, grid: FrameGrid) -> Tracks:
        raise error

    return propose


def test_of_thousands_of_boxes_the_best_are_kept_and_the_others_counted(clip: Clip) -> None:
    (found,) = annotate([phrase()], clip, annotator(dogs(3000), max_boxes_per_frame=50))
    assert isinstance(found, Detected)
    assert {len(s) for s in found.scores} == {50} and found.n_cut == 2950 * len(found.times_s)
    assert all(ids.tolist() == list(range(50)) for ids in found.track_ids)
    (answer,) = judged([found], UniSTGRecipe())
    assert isinstance(answer, Drop) and answer.reason == "complex-frames"


def test_a_file_of_boxes_holds_what_was_judged(clip: Clip) -> None:
    (found,) = annotate([phrase(0.1234567891, 7.9999999)], clip, annotator(dogs(1)))
    assert isinstance(found, Detected)
    again = Detected.from_dict(json.loads(json.dumps(found.to_dict())))
    assert np.array_equal(np.concatenate(again.boxes_xyxy), np.concatenate(found.boxes_xyxy))
    assert np.array_equal(again.times_s, found.times_s) and again.coarse == found.coarse


def test_spans_are_cut_at_the_end_of_the_video_or_lie_outside(clip: Clip) -> None:
    asked = [phrase(4.0, 30.0, "cut"), phrase(8.0, 9.0, "after"), phrase(500.0, 501.0, "far")]
    cut, *outside = annotate(asked, clip, annotator(dogs(1)))
    assert isinstance(cut, Detected) and cut.coarse == Span(4.0, 8.0) and cut.times_s[0] >= 4.0
    assert cut.phrase.caption.span == Span(4.0, 30.0)  # what the source said stays
    assert [d.reason for d in outside if isinstance(d, Drop)] == ["span-outside-video"] * 2


def test_boxes_below_the_confidence_are_not_found(clip: Clip) -> None:
    assert isinstance(annotate([phrase()], clip, annotator(dogs(1, 0.3)))[0], Detected)
    (drop,) = annotate([phrase()], clip, annotator(dogs(1, 0.29)))
    assert isinstance(drop, Drop) and drop.reason == "not-found"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (IndexError("7"), "provider-failed"),
        (MemoryError(), "provider-failed"),
        (VideoError("cut"), "broken-video"),
    ],
)
def test_what_fails_on_a_video_is_a_drop_of_its_phrases(error: Exception, reason: str, clip: Clip) -> None:
    found = annotate([phrase(), phrase(900.0, 901.0, "2"), phrase(id="3")], clip, annotator(fails(error)))
    assert [d.reason for d in found if isinstance(d, Drop)] == [reason, "span-outside-video", reason]


@pytest.mark.parametrize("error", [OutputError("the disk is full"), RecipeError("no such setting")])
def test_what_is_no_matter_of_one_video_is_raised(error: Exception, clip: Clip) -> None:
    with pytest.raises(type(error)):
        annotate([phrase()], clip, annotator(fails(error)))


def test_unknown_providers_are_said() -> None:
    for name in ("yolo", "no_such_module:function", "json:no_such_function"):
        with pytest.raises(RecipeError, match=r"no .*provider"):
            load_annotator(AnnotatorSettings(provider=name))


def test_stages_without_a_model_start_without_torch() -> None:
    code = "import sys, tubelet.unistg.stages, tubelet.unistg.steps; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
