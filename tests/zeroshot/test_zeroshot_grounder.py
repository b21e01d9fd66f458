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
from tubelet.proposals.world_truth import tracks_of_scene
from tubelet.training.samples import sample_times
from tubelet.tube import Prediction, Span
from tubelet.world.choreography import SceneConfig, make_scene
from tubelet.world.files import make_world, read_annotations
from tubelet.world.render import render
from tubelet.world.tasks import make_questions
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
        assert prediction.provenance["proposals"] == "motion" and prediction.provenance["sub_queries"] is None
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
            assert still.tube == plain.tube and still.confidence == pytest.approx(plain.confidence, rel=1e-5)
        else:
            assert 0 < still.provenance["consistency"] <= 1
        grounder.settings = replace(SETTINGS, rate=200.0, **tuned[kind])
        moved = grounder.ground(state, "the red circle spins")
        assert moved.failure is None
        if kind == "spatial":
            assert moved.tube.score != pytest.approx(plain.tube.score, rel=1e-4)
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
        assert prediction.found and (n > 1 or prediction.tube.score == 1.0)
        assert 0 < prediction.confidence < 1


def test_confidence_says_whether_it_is_there_and_no_number_of_proposals_does(tmp_path: Path) -> None:
    """True tracks of validation scenes, all of them and one alone; sentences about what is there and what is not."""
    grounder = load_zero_shot("pico-base", settings={"frames": 8, "absent_below": 0})
    sure: dict[bool, list[float]] = {True: [], False: []}
    for index in range(12):
        scene = make_scene("val", 5, index, SceneConfig())
        times = sample_times(scene.duration_s, 8)
        size = int(grounder.mllm.model.config.vision_config.image_size)
        grid = FrameGrid(np.arange(8), times, Fraction(8), scene.duration_s, size, size)
        tracks = Tracks(grid, tuple(tracks_of_scene(scene, grid)))
        clip = Clip(render([scene], [times], size, size)[0].numpy(), grid)
        state = grounder.encode(clip, tracks=tracks)
        alone = grounder.encode(clip, tracks=replace(tracks, tracks=tracks.tracks[:1]))
        for there in (True, False):
            rng = np.random.default_rng(index)
            asked = make_questions(scene, rng, ("stvg",), 1, absent_rate=float(not there))
            if not asked or (asked[0].span is not None) != there:
                continue
            prediction = grounder.ground(state, asked[0].query)
            sure[there].append(prediction.confidence)
            assert grounder.ground(alone, asked[0].query).confidence == prediction.confidence
            assert grounder.ground(alone, asked[0].query).tube.score == 1.0
    assert min(len(found) for found in sure.values()) >= 8
    assert np.mean(sure[True]) - np.mean(sure[False]) > 0.3, sure


def test_a_prediction_says_what_was_asked(grounder: ZeroShotGrounder) -> None:
    """Settings that are not the defaults, sub-queries, by whom; and the same fields where the query failed."""
    clip = clip_of(3)
    settings = replace(SETTINGS, spatial=True, layers=(-2, -1), question="do you see {text}?", epochs=1)
    told = ZeroShotGrounder(grounder.mllm, settings=settings)
    state = told.encode(clip, tracks=tracks_on(clip, 2, notes=("a note of the provider",)))
    good, bad, none = told.ground_many(
        state, ["the red circle that spins", "the <video> that spins", ""], "stvg"
    )
    assert good.found and bad.failure is not None and none.failure is not None
    expected = {
        "frames": 6,
        "spatial": True,
        "layers": [-2, -1],
        "question": "do you see {text}?",
    }
    for prediction in (good, bad, none):
        assert prediction.provenance["settings"] == expected
        assert prediction.provenance.keys() == good.provenance.keys()
        assert prediction.provenance["revision"] == grounder.revision
        assert prediction.provenance["n_proposals"] == 2
        assert prediction.notes == ("a note of the provider",) and prediction.grid == clip.grid
        assert set(prediction.timings_s) == {"decode_s", "encode_s", "proposals_s", "answer_s"}
        assert Prediction.from_json(prediction.to_json()).provenance == prediction.provenance
    assert good.provenance["sub_queries"] == {
        "attribute": "the red circle",
        "action": "the circle spins",
        "by": "rules",
    }
    assert bad.provenance["sub_queries"]["action"] is not None and bad.provenance["track"] is None
    assert none.provenance["sub_queries"] is None and none.query == ""


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
        sure = grounder.ground(state, "the red circle").confidence
        assert sure is not None and 0 < sure < 1
        for limit, found in ((sure * 0.999, True), (sure * 1.001, False)):
            grounder.settings = replace(SETTINGS, absent_below=limit)
            prediction = grounder.ground(state, "the red circle")
            assert prediction.found is found and prediction.failure is None and prediction.confidence == sure
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
