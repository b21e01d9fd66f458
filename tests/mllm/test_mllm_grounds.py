"""Every family grounds a sentence through `tubelet.load`: the track that eager maps choose, and every preset."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_checkpoints import FAMILIES, clip, clip_for, stock_inputs

import tubelet
from tubelet.errors import ModelError
from tubelet.mllm.loading import load_mllm
from tubelet.proposals import Track, Tracks
from tubelet.zeroshot.grounder import ZeroShotGrounder
from tubelet.zeroshot.reattention import yes_no_ids
from tubelet.zeroshot.scoring import track_scores
from tubelet.zeroshot.settings import PRESETS, ZeroShotSettings

every_family = pytest.mark.parametrize("family", FAMILIES)
SENTENCE = "the man in purple clothes sits down"


@pytest.fixture(scope="module")
def loaded(pair_of: Callable[..., Any]) -> Callable[[str], ZeroShotGrounder]:
    made: dict[str, Any] = {}

    def load(family: str) -> ZeroShotGrounder:
        if family not in made:
            # a LLaVA-OneVision can also become a SpaceVLLM: it is told what it is loaded for
            method = "zero-shot" if family in ("llava_onevision", "qwen3_vl_moe") else None
            made[family] = tubelet.load(pair_of(family).folder, device="cpu", method=method)
        found: ZeroShotGrounder = made[family]
        assert isinstance(found, ZeroShotGrounder) and found.settings == ZeroShotSettings()
        assert found.about is None  # published checkpoints have no note about what they know
        return found

    return load


def tracks_on(video: Any, n: int = 4) -> Tracks:
    made = []
    for k in range(n):
        x, y = 0.5 * (k % 2), 0.5 * (k // 2)
        box = np.tile([x, y, x + 0.5, y + 0.5], (len(video), 1))
        made.append(Track(k, box, np.ones(len(video), dtype=bool)))
    return Tracks(video.grid, tuple(made))


@every_family
def test_the_track_that_eager_maps_choose(
    family: str, pair_of: Callable[..., Any], loaded: Callable[[str], ZeroShotGrounder]
) -> None:
    """Relative maps of transformers' own forward of two prompts, the token of the highest peak, equation 2."""
    grounder, pair = loaded(family), pair_of(family)
    video = clip_for(family, n=4, seed=3)
    state = grounder.encode(video, tracks=tracks_on(video))
    prediction = grounder.ground(state, SENTENCE)
    rows = []
    asked = (grounder.settings.question.replace("{text}", SENTENCE), grounder.settings.general)
    for text in asked:
        layout = grounder.mllm.prompt(state.visual, text)
        inputs = stock_inputs(pair.mllm.processor, family, video, text)
        with torch.no_grad():
            maps = torch.stack(pair.stock(**inputs, output_attentions=True).attentions)[:, 0]
        mean = maps.double().mean((0, 1))[torch.from_numpy(layout.candidates)]
        rows.append(mean[:, torch.from_numpy(layout.visual)].unflatten(-1, state.visual.grid.shape).numpy())
    epsilon = 1e-4 * 720 / rows[0][0].size
    relative = rows[0] / (rows[1] + epsilon)
    token = int(relative.reshape(len(relative), -1).max(1).argmax())
    scores = track_scores(relative[token], state.weights)
    assert prediction.provenance["track"] == int(scores.argmax())
    assert prediction.provenance["token"] == token - len(relative)
    assert prediction.tube.score == pytest.approx(scores.max() / scores.sum(), rel=1e-4)
    yes, no = yes_no_ids(grounder.mllm.tokenizer, "variants")
    inputs = stock_inputs(pair.mllm.processor, family, video, asked[0])
    with torch.no_grad():
        logits = pair.stock(**inputs).logits[0, -1].double()
    chances = logits[[*yes, *no]].softmax(0)
    assert prediction.confidence == pytest.approx(float(chances[: len(yes)].sum()), abs=1e-4)


@every_family
@pytest.mark.parametrize("name", ["quality", "paper", "published"])
def test_every_preset_answers(family: str, name: str, loaded: Callable[[str], ZeroShotGrounder]) -> None:
    grounder = loaded(family)
    settings = ZeroShotSettings().with_quality() if name == "quality" else PRESETS[name]
    tuned = ZeroShotGrounder(grounder.mllm, settings=replace(settings, rate=1.0))
    video = clip_for(family, n=4, seed=3)
    state = tuned.encode(video, tracks=tracks_on(video))
    prediction = tuned.ground(state, SENTENCE)
    assert prediction.failure is None and prediction.found
    reverses = name != "published" or family.startswith("llava")
    assert (prediction.provenance["consistency"] is not None) == reverses
    if name == "published":
        offset = -5 if family == "llava_next_video" else -3
        assert prediction.provenance["token"] == offset
    plain = replace(tuned.settings, spatial=False, temporal=False, assemble=False)
    untuned = ZeroShotGrounder(grounder.mllm, settings=plain).ground(state, SENTENCE)
    assert untuned.tube.score != prediction.tube.score  # tuning did something


def test_a_template_without_video_is_named(pair_of: Callable[..., Any], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(pair_of("qwen2_vl").folder, tmp_path / "mute"))
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|video_pad|>", ""))
    mllm = load_mllm(folder, device="cpu")
    with pytest.raises(ModelError, match="has no video support"):
        mllm.prompt(mllm.grid_of(clip(2)), "what is it?")
