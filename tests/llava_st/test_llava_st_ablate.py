"""The ablation: every variant loses one part and no step, runs are kept, intervals are over seeds and queries."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tubelet.errors import ModelError, RecipeError
from tubelet.llava_st.ablate import ablate, over_seeds, variant_of
from tubelet.llava_st.checkpoint import load_llava_st
from tubelet.llava_st.config import LlavaSTConfig, PackerConfig
from tubelet.llava_st.packer import AverageBlock, PackerBlock
from tubelet.training.recipe import Optimiser, Recipe, Stage
from tubelet.training.samples import WorldMix

CONFIG = LlavaSTConfig(
    frames=4,
    prompts="brief",
    pack_images=True,
    packer=PackerConfig(width=16, heads=2, space=2, fast=2, time=2),
)
IMAGES = WorldMix(kind="image", batch=2, questions=2, tasks=("rec",))
VIDEOS = WorldMix(batch=1, questions=2, tasks=("stvg",), frames=4, sampling="ends")


def recipe_of(**changes: Any) -> Recipe:
    stages = tuple(
        Stage(name, steps, (mix,), optimiser=Optimiser(lr=1e-3))
        for name, steps, mix in (("pictures", 2, IMAGES), ("tasks", 1, VIDEOS))
    )
    settings = {"start": "pico-base", "llava_st": CONFIG, "workers": 0, "log_every": 1, **changes}
    return Recipe("ablation", "llava-st", stages, **settings)


def test_a_variant_loses_one_part_and_no_step() -> None:
    full = recipe_of()
    assert variant_of(full, "full") == full
    assert variant_of(full, "no_injection").llava_st == replace(CONFIG, inject=False)
    assert variant_of(full, "average_packer").llava_st.packer == replace(CONFIG.packer, kind="average")
    (whole,) = variant_of(full, "no_stages").stages
    assert whole.steps == 3 and whole.data == full.stages[1].data


@pytest.mark.parametrize("size", [(4, 6, 6), (5, 7, 6)])
def test_an_average_has_as_many_tokens_and_no_parameters(size: tuple[int, int, int]) -> None:
    tokens = torch.randn(*size, 8)
    window = (2, 3, 2)
    block = AverageBlock(8, 4, 2, window)
    out = block(tokens)
    assert out.shape == PackerBlock(8, 4, 2, window)(tokens).shape and not list(block.parameters())
    torch.testing.assert_close(out[0, 0, 0], tokens[:2, :3, :2].reshape(-1, 8).mean(0))
    last = tokens[2 * (out.shape[0] - 1) :, 3 * (out.shape[1] - 1) :, 2 * (out.shape[2] - 1) :]
    torch.testing.assert_close(out[-1, -1, -1], last.reshape(-1, 8).mean(0))
    with pytest.raises(ModelError, match="attention or average"):
        PackerConfig(kind="max")


def test_runs_are_kept_and_judged_alike(tmp_path: Path) -> None:
    said: list[str] = []
    result = ablate(recipe_of(), tmp_path, ("full", "no_injection"), (0, 1), n=4, progress=said.append)
    assert said == ["full, seed 0", "no_injection, seed 0", "full, seed 1", "no_injection, seed 1"]
    row = result.scores["full"]
    assert set(row) == {"rec_iou", "rec_acc", "stvg_tiou", "stvg_viou"} and row["rec_iou"].n == 8
    written = json.loads((tmp_path / "ablation.json").read_text())
    assert written["scores"]["full"]["rec_iou"]["mean"] == pytest.approx(row["rec_iou"].mean, abs=1e-4)
    assert len(written["runs"]) == 4
    assert not load_llava_st(tmp_path / "no_injection-0" / "model").config.inject
    before = (tmp_path / "full-0" / "log.jsonl").read_bytes()
    again = ablate(recipe_of(), tmp_path, ("full", "no_injection"), (0, 1), n=4)
    assert again.scores == result.scores and (tmp_path / "full-0" / "log.jsonl").read_bytes() == before


def test_intervals_widen_with_seeds_that_differ() -> None:
    rng = np.random.default_rng(0)
    queries = rng.random(200)
    alike = over_seeds([queries, queries, queries])
    apart = over_seeds([queries - 0.3, queries, queries + 0.3])
    assert alike.mean == pytest.approx(apart.mean) and alike.low < alike.mean < alike.high
    assert apart.high - apart.low > 2 * (alike.high - alike.low)


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="two stages"):
        ablate(replace(recipe_of(), stages=recipe_of().stages[:1]), tmp_path)
    with pytest.raises(RecipeError, match="variants are full"):
        ablate(recipe_of(), tmp_path, ("half",))
