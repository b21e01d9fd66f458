"""The zero-shot grounder on pico-base: real videos and images, proposals of all kinds, every failure a prediction."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tubelet.errors import DataError, ModelError, QueryError
from tubelet.frames import Clip, FrameGrid
from tubelet.proposals import Track, Tracks
from tubelet.tube import Span
from tubelet.world.files import make_world, read_annotations
from tubelet.zeroshot.grounder import ZeroShotGrounder, load_zero_shot
from tubelet.zeroshot.settings import ZeroShotSettings
from tubelet.zeroshot.study import study

SETTINGS = ZeroShotSettings(frames=6)


@pytest.fixture(scope="module")
def grounder() -> ZeroShotGrounder:
    return load_zero_shot("pico-base", settings=SETTINGS, layout="stock")


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zero")
    make_world(folder, 1, seed=3, height=96, fps=10)
    return folder / read_annotations(folder)[0]["video"]


def clip_of(frames: int, size: int = 64) -> Clip:
    rng = np.random.default_rng(frames)
    pixels = rng.integers(0, 255, (frames, size, size, 3), dtype=np.uint8)
    times = np.arange(frames) * 0.5
    return Clip(pixels, FrameGrid(np.arange(frames), times, Fraction(2), frames * 0.5, size, size))


def tracks_on(clip: Clip, n: int, **changes: Any) -> Tracks:
    frames = len(clip)
    made = []
    for k in range(n):
        x = 0.8 * k / max(n - 1, 1)
        made.append(Track(k, np.tile([x, x, x + 0.2, x + 0.2], (frames, 1)), np.ones(frames, dtype=bool)))
    return Tracks(clip.grid, tuple(made), **changes)


def test_a_real_video_with_motion_proposals(grounder: ZeroShotGrounder, video: Path) -> None:
    state = grounder.encode(video)
    assert state.weights.shape[1:] == (6, 4, 4) and len(state.tracks) >= 1
    first, second = grounder.ground_many(state, ["the red circle", "the thing that spins"])
    for prediction in (first, second):
        assert prediction.found and prediction.failure is None
        assert 0 <= prediction.tube.span.start_s < prediction.tube.span.end_s <= state.grid.duration_s
        assert 0 < prediction.confidence <= 1 and len(prediction.tube) >= 1
        assert prediction.provenance["proposals"] == "motion" and prediction.provenance["split_by"] == "rules"
    again = grounder.ground(state, "the red circle")
    assert again.tube == first.tube
    assert grounder.ground(state, "the red circle", "tvg").tube.times_s.size == 0
    span = Span(0.5, 1.5)
    assert grounder.ground(state, "the red circle", "svg", span).tube.span == span


@pytest.mark.parametrize("kind", ["spatial", "temporal", "assemble"])
def test_tuning_changes_the_maps_and_no_rate_does_not(grounder: ZeroShotGrounder, kind: str) -> None:
    clip = clip_of(5)
    state = grounder.encode(clip, tracks=tracks_on(clip, 4))
    plain = grounder.ground(state, "the red circle spins")
    tuned = {
        "spatial": {"spatial": True},
        "temporal": {"temporal": True},
        "assemble": {"spatial": True, "assemble": True},
    }
    try:
        grounder.settings = replace(SETTINGS, rate=0.0, **tuned[kind])
        still = grounder.ground(state, "the red circle spins")
        assert still.provenance["token"] == plain.provenance["token"]
        if kind != "assemble":
            assert still.tube == plain.tube and still.confidence == pytest.approx(plain.confidence, rel=1e-4)
        else:
            assert 0 < still.provenance["consistency"] <= 1
        grounder.settings = replace(SETTINGS, rate=200.0, **tuned[kind])
        moved = grounder.ground(state, "the red circle spins")
        assert moved.failure is None
        if kind == "spatial":
            assert moved.confidence != pytest.approx(plain.confidence, rel=1e-4)
    finally:
        grounder.settings = SETTINGS


def test_an_image_through_the_same_code(grounder: ZeroShotGrounder) -> None:
    clip = clip_of(1)
    prediction = grounder.ground(grounder.encode(clip, tracks=tracks_on(clip, 3)), "the red circle")
    assert prediction.task == "rec" and prediction.tube.span.end_s == clip.grid.duration_s
    assert len(prediction.tube) == 1


@pytest.mark.parametrize("n", [0, 1, 500])
def test_any_number_of_proposals(grounder: ZeroShotGrounder, n: int) -> None:
    clip = clip_of(4)
    state = grounder.encode(clip, tracks=tracks_on(clip, n, provider="files"))
    prediction = grounder.ground(state, "the red circle spins")
    assert prediction.provenance["n_proposals"] == n
    if n == 0:
        assert prediction.failure is not None and "files found nothing" in prediction.failure
    else:
        assert prediction.found and (n > 1 or prediction.confidence == 1.0)


def test_a_bad_query_is_a_prediction_and_the_others_are_answered(grounder: ZeroShotGrounder) -> None:
    clip = clip_of(3)
    state = grounder.encode(clip, tracks=tracks_on(clip, 2))
    predictions = grounder.ground_many(state, ["", "the red circle", "x" * 5000, "🦊 שועל"])
    assert [p.failure is not None for p in predictions] == [True, False, True, False]
    assert "empty" in predictions[0].failure


def test_absent_is_an_answer(grounder: ZeroShotGrounder) -> None:
    clip = clip_of(3)
    state = grounder.encode(clip, tracks=tracks_on(clip, 2))
    try:
        grounder.settings = replace(SETTINGS, absent_below=1e9)
        prediction = grounder.ground(state, "the red circle")
        assert not prediction.found and prediction.failure is None and prediction.confidence is not None
    finally:
        grounder.settings = SETTINGS


def test_mistakes_are_named(grounder: ZeroShotGrounder) -> None:
    clip = clip_of(3)
    with pytest.raises(DataError, match="another video"):
        grounder.encode(clip, tracks=tracks_on(clip, 2, video_hash="0" * 16))
    state = grounder.encode(clip, tracks=tracks_on(clip, 2))
    with pytest.raises(QueryError, match="takes stvg"):
        grounder.ground(state, "a dog", "elc")
    with pytest.raises(QueryError, match="span_reader"):
        grounder.ground(state, "a dog", span_reader="text")
    assert "span" in (grounder.ground(state, "a dog", "svg").failure or "")
    with pytest.raises(ModelError, match="encode it again"):
        ZeroShotGrounder(replace_name(grounder.mllm)).ground(state, "a dog")


def replace_name(mllm: Any) -> Any:
    import copy

    other = copy.copy(mllm)
    other.name = "another"
    return other


def test_the_study_counts_every_query(grounder: ZeroShotGrounder, tmp_path: Path) -> None:
    result = study(grounder, n=4, seed=1, variants=("mean", "+ token", "+ both"), out=tmp_path)
    assert result.n == 4 and set(result.rows) == {"random", "mean", "+ token", "+ both"}
    assert all(row["m_vIoU"].n == 4 for row in result.rows.values()) and not any(result.failed.values())
    assert (tmp_path / "study.json").is_file() and grounder.settings == SETTINGS
    with pytest.raises(QueryError, match="variants are"):
        study(grounder, n=2, variants=("best",))


def test_a_loaded_model_says_what_it_is(tmp_path: Path) -> None:
    """load(method="zero-shot"); other video MLLMs than LLaVA-OneVision are zero-shot grounders by themselves."""
    import tubelet

    loaded = tubelet.load("pico-base", method="zero-shot")
    assert isinstance(loaded, ZeroShotGrounder) and loaded.name == "pico-base, zero-shot"
    assert tubelet.load(method="zero-shot").name == "pico-base, zero-shot"
    with pytest.raises(ModelError, match="method is"):
        tubelet.load("pico-base", method="one-shot")
    with pytest.raises(ModelError, match="cannot be read as a video MLLM"):
        tubelet.load("spacevllm-pico", method="zero-shot")
