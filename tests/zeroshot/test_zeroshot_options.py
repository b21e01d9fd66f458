"""Options of the method on models: presets, masks, several targets, boxes between key frames, reversed frames."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tubelet.errors import DataError, ModelError, QueryError
from tubelet.frames import Clip, FrameGrid
from tubelet.mllm.parts import VisualTokens
from tubelet.proposals import Track, Tracks, save_tracks
from tubelet.proposals.rle import encode
from tubelet.tube import Span
from tubelet.video import open_video, sample_indices
from tubelet.world.files import make_world, read_annotations
from tubelet.zeroshot.decompose import SubQueries
from tubelet.zeroshot.encoded import backwards, span_of
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
    assert prediction.query == prediction.tube.label == "The Red circle that spins"
    assert prediction.provenance["sampling"] == PRESETS[name].sampling
    assert any("none of the layers -26:-6" in note for note in prediction.notes) == (name == "published")
    if name == "published":
        assert prediction.provenance["token"] == -3 and prediction.provenance["consistency"] is not None


def test_lower_case_is_what_the_model_is_asked(
    pico: ZeroShotGrounder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sentence in small letters, its parts as they were split (published); the query as it was given."""
    asked: list[str] = []
    prompt = pico.mllm.prompt
    monkeypatch.setattr(pico.mllm, "prompt", lambda video, text: asked.append(text) or prompt(video, text))
    split: list[str] = []

    def splitter(sentence: str) -> SubQueries:
        split.append(sentence)
        return SubQueries("The Red circle", None, "test")

    clip = clip_of(3)
    grounder = with_settings(pico, replace(PRESETS["published"], frames=3), splitter=splitter)
    given = "  The Red circle that Spins "
    prediction = grounder.ground(grounder.encode(clip, tracks=tracks_on(clip, 2)), given)
    assert prediction.query == given and split == ["The Red circle that Spins"]
    assert "Is there the red circle that spins in this video?" in asked
    assert "Is there The Red circle in this video?" in asked
    assert not any("Spins" in text for text in asked)


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
    assert (paper.sampling, published.sampling) == ("cells", "published")
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
    assert found[0.0].tube.score == pytest.approx(plain.tube.score, rel=1e-5)
    assert found[300.0].tube.score != pytest.approx(plain.tube.score, rel=1e-5)
    # a prompt that was made to say yes is not asked
    assert found[300.0].confidence == pytest.approx(plain.confidence, rel=1e-5)


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


@pytest.mark.parametrize("targets", [50, 60, 100])
def test_as_many_targets_as_were_asked_for(pico: ZeroShotGrounder, targets: int) -> None:
    """60 things beside each other, each of them proposed twice."""
    clip = clip_of(2)
    made = []
    for k in range(120):
        x, y = (k % 60 % 10) / 10, (k % 60 // 10) / 10
        made.append(Track(k, np.tile([x, y, x + 0.1, y + 0.1], (2, 1)), np.ones(2, dtype=bool)))
    tracks = Tracks(clip.grid, tuple(made))
    grounder = with_settings(pico, replace(SMALL, targets=targets, target_share=1e-9))
    tubes = grounder.ground(grounder.encode(clip, tracks=tracks), "the red circle").tubes
    assert len(tubes) == min(targets, 60)
    assert len({tuple(tube.boxes_xyxy[0].round(6)) for tube in tubes}) == len(tubes)


def test_a_track_that_is_not_seen_where_the_model_looks(pico: ZeroShotGrounder) -> None:
    """Visible only between the frames that are read: it has weight in its step alone, and can be the one chosen."""
    clip = clip_of(9)
    visible = np.zeros(9, dtype=bool)
    visible[1] = True  # frames 0, 4 and 8 are read: the first step ends midway between 0 and 4
    box = np.tile([0.0, 0.0, 0.5, 0.5], (9, 1))
    other = np.tile([0.5, 0.5, 1.0, 1.0], (9, 1))
    tracks = Tracks(clip.grid, (Track(0, other, np.ones(9, dtype=bool)), Track(1, box, visible)))
    grounder = with_settings(pico, replace(SMALL, frames=3))
    state = grounder.encode(clip, tracks=tracks)
    assert not state.tracks[1].visible.any()
    assert state.weights[1, 0].sum() == pytest.approx(4.0) and not state.weights[1, 1:].any()
    peak = np.zeros(state.visual.grid.shape)
    peak[0, 1, 1] = 5.0  # where it is
    assert (state.weights * peak).max((1, 2, 3)).tolist() == [0.0, pytest.approx(5.0)]
    alone = grounder.encode(clip, tracks=replace(tracks, tracks=(tracks[1],)))
    tube = grounder.ground(alone, "the red circle").tube
    assert tube is not None and tube.times_s.tolist() == [0.5]
    assert (tube.span.start_s, tube.span.end_s) == (0.0, 1.0)  # the first step
    np.testing.assert_allclose(tube.boxes_xyxy, box[:1])
    published = with_settings(pico, replace(PRESETS["published"], frames=3, sampling="cells"))
    assert (
        not published.encode(clip, tracks=tracks).weights[1].any()
    )  # the model's frames alone, as published


def test_a_track_that_the_model_sees_counts_where_it_sees_it(pico: ZeroShotGrounder) -> None:
    """What goes on between the frames adds nothing to a track that one of them shows."""
    clip = clip_of(9)
    moving = np.tile([0.0, 0.0, 0.25, 0.25], (9, 1))
    moving[[1, 2, 3]] += 0.5
    grounder = with_settings(pico, replace(SMALL, frames=3))
    state = grounder.encode(clip, tracks=Tracks(clip.grid, (Track(0, moving, np.ones(9, dtype=bool)),)))
    assert state.weights[0, :, 0, 0].tolist() == [1.0] * 3 and state.weights.sum() == pytest.approx(3.0)


# --- which frames are read -------------------------------------------------------------------------


def test_published_sampling_takes_the_proposals_frames(pico: ZeroShotGrounder) -> None:
    """Both ends, evenly between, truncated: of the tracks' own grid, not of the video."""
    clip = clip_of(40)
    every = np.arange(3, 37, 3)  # 12 frames of proposals, 3 to 36
    own = replace(clip.grid, frame_index=every, times_s=clip.grid.times_s[every])
    tracks = Tracks(own, (Track(0, np.tile([0.1, 0.1, 0.5, 0.5], (12, 1)), np.ones(12, dtype=bool)),))
    published = with_settings(pico, replace(PRESETS["published"], frames=5))
    state = published.encode(clip, tracks=tracks)
    positions = np.linspace(0, 11, 5).astype(int)
    assert state.grid.frame_index.tolist() == every[positions].tolist() and state.sampled == "published"
    assert state.tracks.visible.all()
    cells = with_settings(pico, replace(SMALL, frames=5)).encode(clip, tracks=tracks)
    assert cells.sampled == "cells" and cells.grid.frame_index[[0, -1]].tolist() == [0, 39]
    first = replace(own, frame_index=every[:2], times_s=own.times_s[:2])
    few = Tracks(first, (Track(0, np.tile([0.1, 0.1, 0.5, 0.5], (2, 1)), np.ones(2, dtype=bool)),))
    assert published.encode(clip, tracks=few).grid.frame_index.tolist() == [3, 6]  # each once
    motion = published.encode(clip)
    assert motion.sampled == "cells"  # these proposals have no frames of their own
    with pytest.raises(QueryError, match="sampling is one of"):
        ZeroShotSettings(sampling="random")


@pytest.mark.parametrize("form", ["published", "mot", "tubelet"])
def test_published_sampling_of_files(pico: ZeroShotGrounder, tmp_path: Path, form: str) -> None:
    """A video and a file of proposals on every tenth frame from 10 on (MOT: on all frames from 10 on)."""
    make_world(tmp_path, 1, seed=3, height=64, fps=20)
    video = open_video(tmp_path / read_annotations(tmp_path)[0]["video"])
    every = np.arange(10, video.n_frames - 5, 10)
    if form == "published":
        boxes = [[[4, 4, 20, 20]] for _ in every]
        track = {"id": 0, "b": boxes, "m": None, "c": "x", "f": "xyxy", "w": video.width, "h": video.height}
        data = {"sample_frames": [f"{k:05d}.jpg" for k in every], "dino_sam2_proposals": [track]}
        path = tmp_path / "tracks.json"
        path.write_text(json.dumps(data))
    elif form == "mot":
        path = tmp_path / "tracks.txt"
        every = np.arange(10, video.n_frames - 5)
        path.write_text("\n".join(f"{k + 1},1,5,5,16,16" for k in every))
    else:
        path = tmp_path / "own.json"
        grid = sample_indices(video, every)
        box = np.tile([0.1, 0.1, 0.4, 0.4], (len(every), 1))
        save_tracks(Tracks(grid, (Track(0, box, np.ones(len(every), dtype=bool)),)), path)
    grounder = with_settings(pico, replace(PRESETS["published"], frames=5), proposals="files", path=str(path))
    state = grounder.encode(video)
    assert state.grid.frame_index.tolist() == every[np.linspace(0, len(every) - 1, 5).astype(int)].tolist()
    assert state.dense.grid.frame_index.tolist() == every.tolist()
    prediction = grounder.ground(state, "the red circle")
    assert prediction.found and prediction.provenance["sampling"] == "published"
    window = Span(float(video.times_s[every[1]]), float(video.times_s[every[-2]]))
    inside = grounder.encode(video, window).grid.frame_index
    assert inside[0] == every[1] and inside[-1] == every[-3]  # a window is half-open
    with pytest.raises(DataError, match="no frame of the proposals"):
        grounder.encode(video, Span(0.0, float(video.times_s[5])))


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


@pytest.mark.parametrize("limit", [None, 12])
@pytest.mark.parametrize("frames", [3, 4, 5, 7])
@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_reversed_video_of_a_model_whose_steps_mix_frames(
    family: str, frames: int, limit: int | None, tiny: Callable[..., Any]
) -> None:
    """Step t of the reversed video shows what step T - 1 - t shows, also where the last frame stands twice."""
    mllm, clip = tiny(family, limit), clip_of(frames, 56)
    visual: VisualTokens = mllm.encode(clip)
    assert not visual.grid.one_frame_per_step
    assert limit is None or visual.grid.n_rows * visual.grid.n_columns <= limit
    back = backwards(mllm, visual, clip)
    assert back.grid is visual.grid and back.tokens.shape == visual.tokens.shape
    assert [len(part) for part in back.deepstack] == [len(part) for part in visual.deepstack]
    order = visual.grid.frames[::-1, ::-1]
    turned = Clip(clip.pixels[order.reshape(-1)], clip_of(order.size, 56).grid)
    torch.testing.assert_close(back.tokens, mllm.encode(turned, like=clip).tokens)
    symmetric = Clip(np.repeat(clip.pixels[:1], frames, 0), clip.grid)
    same = mllm.encode(symmetric)
    torch.testing.assert_close(backwards(mllm, same, symmetric).tokens, same.tokens)
    if frames == 5:
        grounder = ZeroShotGrounder(mllm, settings=replace(SMALL.with_quality(), frames=5))
        prediction = grounder.ground(
            grounder.encode(clip, tracks=tracks_on(clip, 2)), "the man that sits down"
        )
        assert prediction.failure is None and prediction.provenance["consistency"] is not None


def test_a_frame_more_makes_all_frames_of_some_models_smaller(tiny: Callable[..., Any]) -> None:
    """Why the reversed video is read `like` the video."""
    mllm = tiny("qwen3_vl", None)
    short, longer = mllm.encode(clip_of(5, 56)).grid, mllm.grid_of(clip_of(6, 56))
    assert short.n_steps == longer.n_steps and short.n_rows > longer.n_rows
    assert mllm.encode(clip_of(6, 56), like=clip_of(5, 56)).grid.shape == short.shape


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl"])
def test_steps_of_several_frames_last_as_long_as_these(family: str, tiny: Callable[..., Any]) -> None:
    """20 frames at 0.5 to 19.5 s, two a step: ten steps from 0 to 20 s."""
    clip = clip_of(20, 16)
    grid = replace(clip.grid, times_s=np.arange(20) + 0.5, duration_s=20.0, fps=Fraction(1))
    clip = Clip(clip.pixels, grid)
    grounder = ZeroShotGrounder(tiny(family, None), settings=ZeroShotSettings(frames=20))
    state = grounder.encode(clip, tracks=tracks_on(clip, 2))
    assert state.edges_s.tolist() == np.arange(0, 21, 2).tolist() and state.visual.grid.n_steps == 10
    whole, second = span_of(state, 0, 9), span_of(state, 1, 1)
    assert (whole.start_s, whole.end_s, second.start_s, second.end_s) == (0.0, 20.0, 2.0, 4.0)
    prediction = grounder.ground(state, "the man in red")
    assert prediction.grid == grid  # the frames that were read, not one per step
    tail = grounder.encode(
        Clip(clip.pixels[:19], replace(grid, **_first(grid, 19))), tracks=tracks_on(clip, 1)
    )
    assert tail.edges_s.tolist() == [*range(0, 19, 2), 19.0]  # the last step is one frame
    assert len(tail.weights[0]) == 10


def _first(grid: FrameGrid, n: int) -> dict[str, Any]:
    return {"frame_index": grid.frame_index[:n], "times_s": grid.times_s[:n]}


@pytest.mark.parametrize("weights", ["area", "bilinear"])
@pytest.mark.parametrize("seen", [0, 1])
def test_a_track_in_one_frame_of_each_step_counts_in_full(
    seen: int, weights: str, tiny: Callable[..., Any]
) -> None:
    """Only even frames, or only odd ones: the same weight and the same scores as in all of them."""
    clip = clip_of(6, 56)
    box = np.tile([0.0, 0.0, 0.5, 0.5], (6, 1))
    other = np.tile([0.5, 0.5, 1.0, 1.0], (6, 1))
    some = np.arange(6) % 2 == seen
    # gaps of a second or less are filled: these frames are two seconds apart
    clip = Clip(clip.pixels, replace(clip.grid, times_s=np.arange(6) * 2.0, duration_s=12.0))
    grounder = ZeroShotGrounder(tiny("qwen2_5_vl", None), settings=ZeroShotSettings(weights=weights))
    every = np.ones(6, dtype=bool)
    state = grounder.encode(
        clip,
        tracks=Tracks(clip.grid, (Track(0, other, every), Track(1, box, some), Track(2, box, every))),
    )
    assert state.tracks.visible[1].tolist() == some.tolist() and state.weights[1].any((1, 2)).all()
    np.testing.assert_allclose(state.weights[1], state.weights[2])
    peak = np.zeros(state.visual.grid.shape)
    peak[1, 1, 1] = 3.0
    scores = [
        scores_per_frame(peak, state.tracks, row, state.weights, grounder.settings, state.visual.grid.frames)
        for row in range(3)
    ]
    np.testing.assert_allclose(scores[1], scores[2])
    assert scores[1].argmax() == 1 and scores[1].max() > 2.5 and scores[0].max() < 1e-6
    only = grounder.encode(clip, tracks=Tracks(clip.grid, (Track(1, box, some),)))
    span = grounder.ground(only, "the man in red").tube.span
    assert (span.start_s, span.end_s) == (0.0, 11.0)  # all steps, from the first frame's start


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """tiny(family, max_frame_tokens): a random model of a family, each written and loaded once."""
    import sys

    from tubelet.mllm.loading import load_mllm

    where = str(Path(__file__).resolve().parents[1] / "mllm")
    sys.path.insert(0, where)
    try:
        from tiny_checkpoints import write_checkpoint
    finally:
        sys.path.remove(where)
    folder = tmp_path_factory.mktemp("tiny")
    made: dict[tuple[str, int | None], Any] = {}

    def load(family: str, limit: int | None) -> Any:
        if (family, limit) not in made:
            if not (folder / family).is_dir():
                write_checkpoint(family, folder / family)
            made[family, limit] = load_mllm(folder / family, device="cpu", max_frame_tokens=limit)
        return made[family, limit]

    return load


def test_a_model_without_video_support_is_named() -> None:
    with pytest.raises(ModelError, match="cannot be read as a video MLLM"):
        load_zero_shot("spacevllm-pico")
