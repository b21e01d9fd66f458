"""Providers that must be told what to look for: the subject of each sentence, looked for once, or a clear failure."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tubelet.errors import ModelError, RecipeError
from tubelet.frames import Clip, FrameGrid
from tubelet.proposals import Track, Tracks
from tubelet.zeroshot import grounder as module
from tubelet.zeroshot.decompose import subject_of
from tubelet.zeroshot.grounder import ZeroShotGrounder, load_zero_shot
from tubelet.zeroshot.settings import ZeroShotSettings

SETTINGS = ZeroShotSettings(frames=4)


@pytest.mark.parametrize(
    ("sentence", "subject"),
    [
        ("the tall man in red sits down", "man"),
        ("The woman who stands up and leaves.", "woman"),
        ("a white dog on the left of the sofa", "dog"),
        ("the green ring that spins", "ring"),
        ("guy standing on left", "guy"),
        ("the man wearing a hat", "man"),
        ("the tall red building", "building"),
        ("which red ball rolls to the left?", "ball"),
        ("where is the blue star?", "star"),
        ("who opens the door?", "person"),
        ("lady", "lady"),
        ('"umbrella", open', "open"),
        ("what does the child push?", None),
        ("the one on the left", None),
        ("left", None),
        ("12 34", None),
        ("", None),
    ],
)
def test_what_a_sentence_is_about(sentence: str, subject: str | None) -> None:
    assert subject_of(sentence) == subject


@given(st.text(max_size=80))
def test_a_subject_is_one_word_of_the_sentence_or_none(sentence: str) -> None:
    found = subject_of(sentence)
    assert found is None or found == "person" or (found in sentence.lower() and not found.isspace())


class Detector:
    """Stands in for `propose_tracks`: finds a thing for every phrase but "unicorn", and counts."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, ...]] = []

    def __call__(self, name: str, source: Any, phrases: Sequence[str] = (), **settings: Any) -> Tracks:
        self.asked.append(tuple(phrases))
        there = [] if "unicorn" in phrases else [Track(0, *self.box(source), label=phrases[0])]
        return Tracks(source.grid, tuple(there), provider=name, settings={"phrases": list(phrases)})

    def box(self, source: Any) -> tuple[Any, Any]:
        n = len(source.grid)
        return np.tile([0.2, 0.3, 0.5, 0.6], (n, 1)), np.ones(n, dtype=bool)


@pytest.fixture
def detector(monkeypatch: pytest.MonkeyPatch) -> Detector:
    made = Detector()
    monkeypatch.setattr(module, "propose_tracks", made)
    return made


@pytest.fixture(scope="module")
def pico() -> ZeroShotGrounder:
    return load_zero_shot("pico-base", settings=SETTINGS)


def clip_of(frames: int) -> Clip:
    pixels = np.random.default_rng(frames).integers(0, 255, (frames, 48, 64, 3), dtype=np.uint8)
    return Clip(
        pixels, FrameGrid(np.arange(frames), np.arange(frames) * 0.5, Fraction(2), frames / 2, 64, 48)
    )


@pytest.mark.parametrize("frames", [1, 3])
def test_subjects_are_looked_for_once_each(pico: ZeroShotGrounder, detector: Detector, frames: int) -> None:
    grounder = ZeroShotGrounder(pico.mllm, "owlv2", SETTINGS)
    state = grounder.encode(clip_of(frames))
    assert detector.asked == []  # nothing to look for yet
    asked = ["the man in red", "a dog runs", "the man who sits", "what does he push?", "a unicorn", ""]
    found = grounder.ground_many(state, asked)
    assert detector.asked == [("man",), ("dog",), ("unicorn",)]
    assert [p.query for p in found] == asked and [p.failure is None for p in found] == [True] * 3 + [
        False
    ] * 3
    np.testing.assert_allclose(found[0].tube.boxes_xyxy, np.tile([0.2, 0.3, 0.5, 0.6], (frames, 1)))
    assert found[0].tube == grounder.ground(state, "the man in red").tube and len(detector.asked) == 3
    assert "names no thing" in found[3].failure and "phrases" in found[3].failure
    assert "found nothing for 'unicorn'" in found[4].failure and "empty" in found[5].failure


def test_given_phrases_are_looked_for_at_once(pico: ZeroShotGrounder, detector: Detector) -> None:
    grounder = ZeroShotGrounder(pico.mllm, "owlv2", SETTINGS, phrases=["person"])
    state = grounder.encode(clip_of(2))
    assert detector.asked == [("person",)]
    assert grounder.ground(state, "what does he push?").found and len(detector.asked) == 1


def test_a_provider_is_checked_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no proposal provider 'yolo'"):
        load_zero_shot("pico-base", "yolo")
    with pytest.raises(RecipeError, match="no field thresold"):
        load_zero_shot("pico-base", "owlv2", thresold=0.1)
    with pytest.raises(ModelError, match="there is no model"):
        load_zero_shot("pico-base", "sam3", proposal_model=str(tmp_path / "none"))
    with pytest.raises(ModelError, match="there is no model"):
        load_zero_shot("pico-base", "grounding-dino-sam2", detector=str(tmp_path / "none"))
