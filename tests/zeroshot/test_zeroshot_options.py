"""Options of the method on models: presets, masks, several targets, boxes between key frames, reversed frames."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from tubelet.errors import ModelError, QueryError
from tubelet.frames import Clip, FrameGrid
from tubelet.mllm.parts import VisualTokens
from tubelet.proposals import Track, Tracks
from tubelet.proposals.rle import encode
from tubelet.zeroshot import grounder as grounding
from tubelet.zeroshot.decompose import SubQueries
from tubelet.zeroshot.grounder import ZeroShotGrounder, load_zero_shot
from tubelet.zeroshot.regions import scores_per_frame, track_weights
from tubelet.zeroshot.settings import PRESETS, ZeroShotSettings

SMALL = ZeroShotSettings(frames=5)


@pytest.fixture(scope="module")
def pico() -> ZeroShotGrounder:
    return load_zero_shot(
        "pico-base", settings=SMALL, layout="stock"
    )  # its own wording is not what is tested


def with_settings(grounder: ZeroShotGrounder, settings: ZeroShotSettings, **more: Any) -> ZeroShotGrounder:
    return ZeroShotGrounder(grounder.mllm, settings=settings, **more)


def clip_of(frames: int, size: int = 64) -> Clip:
    pixels = np.random.default_rng(frames).integers(0, 255, (frames, size, size, 3), dtype=np.uint8)
    times = np.arange(frames) * 0.5
    return Clip(pixels, FrameGrid(np.arange(frames), times, Fraction(2), frames * 0.5, size, size))


def tracks_on(clip: Clip, n: int, **changes: Any) -> Tracks:
    made = []
    for k in range(n):
        x = 0.75 * k / max(n - 1, 1)
        box = np.tile([x, x, x + 0.25, x + 0.25], (len(clip), 1))
        made.append(Track(k, box, np.ones(len(clip), dtype=bool)))
    return Tracks(clip.grid, tuple(made), **changes)


# --- presets ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_answers_on_a_small_model(pico: ZeroShotGrounder, name: str) -> None:
    """pico-base has none of the published layers: all of its layers are read, and no query is lost."""
    clip = clip_of(5)
    grounder = with_settings(pico, replace(PRESETS[name], frames=5))
    prediction = grounder.ground(
        grounder.encode(clip, tracks=tracks_on(clip, 3)), "The Red circle that spins"
    )
    assert prediction.failure is None and prediction.found
    assert prediction.query == (
        "the red circle that spins" if name == "published" else "The Red circle that spins"
    )
    assert any("none of the layers -26:-6" in note for note in prediction.notes) == (name == "published")
    if name == "published":
        assert prediction.provenance["token"] == -3 and prediction.provenance["consistency"] is not None


def test_what_the_published_scripts_do_for_a_family() -> None:
    published = PRESETS["published"]
    assert published.for_model("LLaVA-NeXT-Video", 32).token_offset == -5
    assert published.for_model("LLaVA-OneVision", 28) == published
    qwen = published.for_model("Qwen2-VL", 28)
    assert qwen.token_offset == -3 and not qwen.assemble and qwen.spatial and qwen.temporal
    assert qwen.read == "mixed" and published.read == "sub"  # the action is tuned on, the whole sentence read
    internvl = published.for_model("InternVL", 28)
    assert internvl.spatial and not internvl.temporal and not internvl.assemble and internvl.read == "sub"
    assert published.for_model("LLaVA-OneVision", 6).layers is None
    assert published.for_model("LLaVA-OneVision", 7).layers == (-26, -6)
    assert PRESETS["paper"].for_model("Qwen2-VL", 28).assemble  # the paper implies all models
    with pytest.raises(QueryError, match="target_share"):
        ZeroShotSettings(target_share=0.0)
    with pytest.raises(QueryError, match="region is one of"):
        ZeroShotSettings(region="pixels")


def test_presets_differ_where_paper_and_code_do() -> None:
    """The table of section 10.4, row by row."""
    paper, published = PRESETS["paper"], PRESETS["published"]
    assert (paper.token, published.token) == ("raw", "fixed")
    assert (paper.layers, published.layers) == (None, (-26, -6))
    assert (paper.loss, published.loss) == ("paper", "published")
    assert (paper.epochs, published.epochs) == (1, 2)
    assert (paper.averaging, published.averaging) == (1.0, 0.5)
    assert (paper.read, published.read) == ("whole", "sub")
    assert (paper.general, published.general) == (
        "Describe this video in details.",
        "please describe this video",
    )
    assert (paper.general_tuned, published.general_tuned) == (False, True)
    assert (paper.interval, published.interval) == ("top_k", "window")
    assert (paper.region, published.region) == ("box", "mask")
    assert paper.k == published.k == 7
    assert (paper.as_published, published.as_published) == (False, True)


def test_the_last_tokens_as_candidates(pico: ZeroShotGrounder) -> None:
    clip = clip_of(3)
    six = with_settings(pico, replace(SMALL, candidates=6))
    prediction = six.ground(six.encode(clip, tracks=tracks_on(clip, 2)), "the red circle")
    assert prediction.found and -6 <= prediction.provenance["token"] < 0
    many = with_settings(pico, replace(SMALL, candidates=900))
    failed = many.ground(many.encode(clip, tracks=tracks_on(clip, 2)), "the red circle")
    assert "offsets from the end" in (failed.failure or "")


@pytest.mark.parametrize("general_tuned", [True, False])
def test_the_general_prompt_with_and_without_the_tuned_prompt(
    pico: ZeroShotGrounder, general_tuned: bool
) -> None:
    """Rate 0 makes both alike; a rate does not."""
    clip = clip_of(4)
    tracks = tracks_on(clip, 3)
    found = {}
    for rate in (0.0, 300.0):
        settings = replace(SMALL, spatial=True, rate=rate, general_tuned=general_tuned)
        grounder = with_settings(pico, settings)
        found[rate] = grounder.ground(grounder.encode(clip, tracks=tracks), "the red circle spins")
    plain = pico.ground(pico.encode(clip, tracks=tracks), "the red circle spins")
    assert found[0.0].confidence == pytest.approx(plain.confidence, rel=1e-5)
    assert found[300.0].confidence != pytest.approx(plain.confidence, rel=1e-5)


def test_sentences_are_split_only_for_tuning_and_fallbacks_are_said(pico: ZeroShotGrounder) -> None:
    asked: list[str] = []

    def split(sentence: str) -> SubQueries:
        asked.append(sentence)
        return SubQueries(None, "the circle spins", "rules", "the endpoint gave no usable parts")

    clip = clip_of(3)
    cheap = with_settings(pico, SMALL, splitter=split)
    cheap.ground(cheap.encode(clip, tracks=tracks_on(clip, 2)), "the red circle spins")
    assert asked == []
    tuned = with_settings(pico, replace(SMALL, spatial=True), splitter=split)
    prediction = tuned.ground(tuned.encode(clip, tracks=tracks_on(clip, 2)), "the red circle spins")
    assert asked == ["the red circle spins"] and prediction.failure is None
    assert any("no usable parts" in note for note in prediction.notes)


def test_a_runaway_rate_is_a_failure_that_says_what_to_lower(pico: ZeroShotGrounder) -> None:
    clip = clip_of(3)
    grounder = with_settings(pico, replace(SMALL, spatial=True, loss="paper", rate=1e300, epochs=3))
    prediction = grounder.ground(grounder.encode(clip, tracks=tracks_on(clip, 2)), "the red circle spins")
    assert prediction.failure is not None and "lower the rate" in prediction.failure


# --- tracks ----------------------------------------------------------------------------------------


def test_masks_are_used_where_there_are_any() -> None:
    clip = clip_of(2)
    mask = np.zeros((64, 64), dtype=bool)
    mask[:16, :16] = True  # a quarter of the box
    box = np.tile([0.0, 0.0, 0.5, 0.5], (2, 1))
    track = Track(0, box, np.ones(2, dtype=bool), masks=(encode(mask), None))
    tracks = Tracks(clip.grid, (track,))
    weights = track_weights(tracks, (4, 4), ZeroShotSettings())
    assert weights[0, 0].sum() == pytest.approx(1.0) and weights[0, 1].sum() == pytest.approx(4.0)
    boxes = track_weights(tracks, (4, 4), ZeroShotSettings(region="box"))
    assert boxes[0, 0].sum() == pytest.approx(4.0)
    published = replace(PRESETS["published"], frames=2)
    smooth = track_weights(tracks, (4, 4), published)
    assert smooth[0, 0, 0, 0] == pytest.approx(1.0) and smooth[0, 1, :2, :2].min() == pytest.approx(1.0)
    rel = np.ones((2, 4, 4))
    rel[0, 3, 3] = 9.0  # outside the track
    assert scores_per_frame(rel, tracks, 0, smooth, published).tolist() == [1.0, 1.0]
    assert scores_per_frame(rel, tracks, 0, weights, ZeroShotSettings()).tolist() == [1.0, 1.0]


def test_boxes_come_from_the_dense_grid_and_between_key_frames(pico: ZeroShotGrounder) -> None:
    clip = clip_of(9)
    moving = np.stack([np.array([0.05 * t, 0.1, 0.05 * t + 0.3, 0.4]) for t in range(9)])
    visible = np.ones(9, dtype=bool)
    visible[[1, 3]] = False  # key frames on both sides
    tracks = Tracks(clip.grid, (Track(7, moving, visible),))
    grounder = with_settings(pico, replace(SMALL, frames=3, interval="top_k", k=3))
    state = grounder.encode(clip, tracks=tracks)
    prediction = grounder.ground(state, "the red circle")
    tube = prediction.tube
    assert tube is not None and prediction.provenance["track"] == 7
    assert state.visual.grid.n_steps == 3 and len(tube) == 9  # three frames were read, nine have boxes
    np.testing.assert_allclose(tube.boxes_xyxy, moving, atol=1e-9)


def test_several_targets_have_places_of_their_own(pico: ZeroShotGrounder) -> None:
    clip = clip_of(4)
    tracks = tracks_on(clip, 4)
    twin = replace(tracks[0], track_id=99)
    both = replace(tracks, tracks=(*tracks.tracks, twin))
    several = with_settings(pico, replace(SMALL, targets=10, target_share=1e-6))
    prediction = several.ground(several.encode(clip, tracks=both), "the red circle")
    assert len(prediction.tubes) == 4  # the twin is no fifth one
    scores = [tube.score or 0.0 for tube in prediction.tubes]
    assert scores == sorted(scores, reverse=True)
    one = pico.ground(pico.encode(clip, tracks=both), "the red circle")
    assert len(one.tubes) == 1 and one.tube == prediction.tube
    strict = with_settings(pico, replace(SMALL, targets=10, target_share=1.0))
    assert len(strict.ground(strict.encode(clip, tracks=tracks), "the red circle").tubes) == 1
    two = with_settings(pico, replace(SMALL, targets=2, target_share=1e-6))
    assert len(two.ground(two.encode(clip, tracks=both), "the red circle").tubes) == 2


def test_a_track_that_is_not_seen_where_the_model_looks(pico: ZeroShotGrounder) -> None:
    """One proposal, visible only between the frames that are read: an answer, or a failure, never an exception."""
    clip = clip_of(9)
    visible = np.zeros(9, dtype=bool)
    visible[1] = True
    tracks = Tracks(clip.grid, (Track(0, np.tile([0.1, 0.1, 0.3, 0.3], (9, 1)), visible),))
    grounder = with_settings(pico, replace(SMALL, frames=3))
    prediction = grounder.ground(grounder.encode(clip, tracks=tracks), "the red circle")
    assert prediction.failure is not None or prediction.tube is not None


# --- models ----------------------------------------------------------------------------------------


def test_a_model_without_yes_and_no_fails_by_name_and_reads_without_tuning(pico: ZeroShotGrounder) -> None:
    import copy

    class Mute:
        unk_token_id = 0

        def convert_tokens_to_ids(self, piece: str) -> None:
            return None

        def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
            return {"input_ids": [1, 2, 3]}

    mute = copy.copy(pico.mllm)
    mute.tokenizer = Mute()
    clip = clip_of(3)
    grounder = ZeroShotGrounder(mute, settings=replace(SMALL, spatial=True))
    prediction = grounder.ground(grounder.encode(clip, tracks=tracks_on(clip, 2)), "the red circle")
    assert "no single token for 'yes'" in (prediction.failure or "")
    cheap = ZeroShotGrounder(mute, settings=SMALL)
    assert cheap.ground(cheap.encode(clip, tracks=tracks_on(clip, 2)), "the red circle").found


def test_out_of_memory_says_what_to_lower(pico: ZeroShotGrounder, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = clip_of(3)
    grounder = with_settings(pico, SMALL)
    state = grounder.encode(clip, tracks=tracks_on(clip, 2))

    def full(*args: Any, **kwargs: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(grounder.mllm, "_continue", full)
    prediction = grounder.ground(state, "the red circle")
    assert "not enough memory" in (prediction.failure or "") and "fewer frames" in (prediction.failure or "")
    assert not prediction.tubes


@pytest.mark.parametrize("frames", [4, 5])
def test_reversed_video_of_a_model_whose_steps_mix_frames(frames: int, tiny_qwen: Any) -> None:
    """Step t of the reversed video shows what step T - 1 - t shows, also where the last frame stands twice."""
    clip = clip_of(frames, 56)
    visual: VisualTokens = tiny_qwen.encode(clip)
    assert not visual.grid.one_frame_per_step
    back = grounding._encode_backwards(tiny_qwen, visual, clip)
    assert back.grid is visual.grid and back.tokens.shape == visual.tokens.shape
    order = visual.grid.frames[::-1, ::-1]
    turned = Clip(clip.pixels[order.reshape(-1)], clip_of(order.size, 56).grid)
    torch.testing.assert_close(back.tokens, tiny_qwen.encode(turned).tokens)
    symmetric = Clip(np.repeat(clip.pixels[:1], frames, 0), clip.grid)
    same = tiny_qwen.encode(symmetric)
    again = grounding._encode_backwards(tiny_qwen, same, symmetric)
    torch.testing.assert_close(again.tokens, same.tokens)
    grounder = ZeroShotGrounder(tiny_qwen, settings=replace(SMALL.with_quality(), epochs=1))
    prediction = grounder.ground(grounder.encode(clip, tracks=tracks_on(clip, 2)), "the man that sits down")
    assert prediction.failure is None and prediction.provenance["consistency"] is not None


@pytest.fixture(scope="module")
def tiny_qwen(tmp_path_factory: pytest.TempPathFactory) -> Any:
    import sys
    from pathlib import Path

    from tubelet.mllm.loading import load_mllm

    where = str(Path(__file__).resolve().parents[1] / "mllm")
    sys.path.insert(0, where)
    try:
        from tiny_checkpoints import write_checkpoint
    finally:
        sys.path.remove(where)
    make: Callable[..., Path] = write_checkpoint
    return load_mllm(make("qwen2_vl", tmp_path_factory.mktemp("qwen") / "qwen2_vl"), device="cpu")


def test_a_model_without_video_support_is_named() -> None:
    with pytest.raises(ModelError, match="cannot be read as a video MLLM"):
        load_zero_shot("spacevllm-pico")
