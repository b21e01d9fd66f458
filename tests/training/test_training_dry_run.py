"""What a dry run says: parameters as the real model has them, memory by hand, missing data, 7B without weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tubelet.cli import app
from tubelet.errors import RecipeError
from tubelet.llava_st.mixture import Entry, Mixture, write_mixture
from tubelet.spacevllm.config import SpaceVLLMConfig
from tubelet.spacevllm.train import make_job
from tubelet.training.dry_run import dry_run, report
from tubelet.training.recipe import ItemList, LoraSettings, Recipe, Stage, load_recipe
from tubelet.training.samples import WorldMix

RECIPES = Path(__file__).parents[2] / "recipes"


def tiny_recipe(start: Path, config: SpaceVLLMConfig, train: str) -> Recipe:
    lora = LoraSettings(4, 8.0) if train == "lora" else LoraSettings()
    stage = Stage("s", 10, (WorldMix(batch=2, frames=3, questions=2),), train=train)
    return Recipe("tiny", "spacevllm", (stage,), start=str(start), spacevllm=config, lora=lora)


@pytest.mark.parametrize("train", ["all", "decoder", "lora"])
def test_parameters_are_those_of_the_model(
    tiny_base_folder: Path, tiny_config: SpaceVLLMConfig, train: str
) -> None:
    recipe = tiny_recipe(tiny_base_folder, tiny_config, train)
    cost = dry_run(recipe).stages[0]
    job = make_job(recipe)
    assert job.prepare is not None
    job.prepare(recipe.stages[0])
    learnt = sum(p.numel() for p in job.model.parameters() if p.requires_grad)
    still = sum(p.numel() for p in job.model.parameters() if not p.requires_grad)
    assert sum(cost.trainable.values()) == learnt and sum(cost.frozen.values()) == still
    assert cost.memory["weights"] == 4 * (learnt + still)
    assert cost.memory["gradients"] == 4 * learnt and cost.memory["optimiser"] == 8 * learnt
    assert ("LoRA" in cost.trainable) == (train == "lora")


def test_sharding_checkpointing_and_hours(tiny_base_folder: Path, tiny_config: SpaceVLLMConfig) -> None:
    recipe = tiny_recipe(tiny_base_folder, tiny_config, "all")
    whole = dry_run(recipe, 4).stages[0]
    zero2, zero3 = (dry_run(recipe, 4, sharding).stages[0] for sharding in ("zero2", "zero3"))
    assert zero2.memory["weights"] == whole.memory["weights"] >= zero3.memory["weights"]
    assert zero2.memory["optimiser"] == zero3.memory["optimiser"] == whole.memory["optimiser"] // 4
    saved = dry_run(replace(recipe, gradient_checkpointing=True), 4).stages[0]
    assert saved.memory["activations"] < whole.memory["activations"]
    assert whole.tokens_per_step == 4 * dry_run(recipe).stages[0].tokens_per_step
    rate = whole.tokens_per_step / 3.6  # so each step takes 3.6 s
    assert dry_run(recipe, 4, tokens_per_s=rate).stages[0].hours == pytest.approx(10 * 3.6 / 3600)
    timed = dry_run(recipe, 4, mfu=0.5, gpu_tflops=2.0).stages[0]
    assert timed.hours == pytest.approx(10 * whole.flops_per_step / (0.5 * 2e12 * 4) / 3600)
    with pytest.raises(RecipeError, match="--mfu and --gpu-tflops together"):
        dry_run(recipe, mfu=0.5)


def test_seven_billion_without_weights() -> None:
    """The published sizes: Qwen2-7B 7.6 B with its two matrices, SigLIP so400m 0.4 B."""
    found = dry_run(load_recipe(RECIPES / "spacevllm-7b-lora.yaml"), 16, "fsdp2", mfu=0.4, gpu_tflops=312.0)
    cost = found.stages[0]
    assert 6.4e9 < cost.frozen["language model"] < 6.7e9
    assert 3.9e8 < cost.frozen["vision tower"] < 4.3e8
    # rank 128 on seven matrices of 28 layers: r * (in + out) each
    d, i, kv = 3584, 18944, 512
    per_layer = 128 * (2 * (d + d) + 2 * (d + kv) + 3 * (d + i))
    assert cost.trainable["LoRA"] == 28 * per_layer
    assert cost.tokens_per_step > 16 * 8 * 64 * 196 and (cost.hours or 0) > 1
    assert "trainable" in report(found) and "hours" in report(found)


def test_the_command_lists_what_is_missing(
    tiny_base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "rows.jsonl").write_text("{}\n")
    entries = (Entry("rows.jsonl", "here"), Entry("gone.jsonl", "nowhere"))
    write_mixture(Mixture(entries), tmp_path / "list.yaml")
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"name: r\nmodel: spacevllm\nstart: {tiny_base_folder}\nspacevllm: {{max_frames: 4}}\nstages:\n"
        f"  - {{name: s, steps: 5, items: {{path: {tmp_path / 'list.yaml'}, batch: 1}}}}\n"
    )
    result = CliRunner().invoke(app, ["train", str(recipe), "--dry-run"])
    assert result.exit_code == 1
    assert "gone.jsonl" in result.output and "nowhere" in result.output and "rows.jsonl" not in result.output
    assert not (tmp_path / "runs").exists()
    write_mixture(Mixture(entries[:1]), tmp_path / "list.yaml")
    result = CliRunner().invoke(app, ["train", str(recipe), "--dry-run", "--tokens-per-s", "1000"])
    assert result.exit_code == 0, result.output
    assert "hours:" in result.output and "missing" not in result.output


@pytest.mark.parametrize("name", ["llava-st-7b-1", "llava-st-7b-2", "llava-st-7b-3", "spacevllm-7b-full"])
def test_full_size_recipes_have_a_cost(name: str) -> None:
    recipe = load_recipe(RECIPES / f"{name}.yaml")
    found = dry_run(recipe, 16, "zero3")
    assert all(sum(cost.trainable.values()) > 5e7 and cost.memory_bytes > 2**30 for cost in found.stages)
    assert found.missing and isinstance(recipe.stages[0].items, ItemList)
