"""Several processes: plain or sharded they equal one process, and a run goes on with another number of them.

"The same global batch" is what docs/training.md says: a step is the mean of its batches' losses, two processes with one
batch each are one process with `accumulate: 2`. Two things are compared, for every parameter and without exception:

- the gradients of the first step, within 1e-5 of the tensor's largest (Adam's first moment after one step is a tenth
  of the clipped gradient, so checkpoints hold them);
- the losses of all steps and the weights after the last, within 1e-5, with an epsilon that keeps Adam's
  step smooth in its gradient (training_launch.py).

Why Adam's own epsilon would not do, as measured with these models: plain processes equal one bit by bit, whatever the
optimiser (halves are exact, and a sum of two does not depend on their order). Sharded ones have gradients within 4e-7
of each tensor's largest, from the norm for clipping, which is summed in another order. But biases of the vision
tower's keys, which softmax cannot see, have gradients of 2e-11 that are nothing but rounding (the largest of all is
0.15), and differ by as much as they are. Adam divides them by their own size and moves them by the whole rate.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from training_launch import in_this_process, in_two_processes, launch_variables

from tubelet.errors import RecipeError
from tubelet.spacevllm.checkpoint import load_bundle
from tubelet.spacevllm.config import SpaceVLLMConfig
from tubelet.spacevllm.loss import LossWeights
from tubelet.training.checkpoint import checkpoints, read_progress
from tubelet.training.recipe import LoraSettings, Optimiser, Recipe, Stage
from tubelet.training.samples import WorldMix
from tubelet.training.sharding import check_shardable, wants_sharding

CONFIGS = Path(__file__).parents[2] / "recipes" / "accelerate"
VIDEOS = WorldMix(kind="video", batch=2, questions=2, tasks=("stvg", "tvg"), frames=3)
STEPS = 2
TOLERANCE = 1e-5
NOISE = 1e-9  # of the largest gradient of all: a tensor below it is 0 but for rounding
HEAD, TABLE = "base.lm_head.weight", "base.model.language_model.embed_tokens.weight"  # one tensor, tied


def recipe_of(
    out: Path, start: Path, config: SpaceVLLMConfig, accumulate: int, train: str = "all", steps: int = STEPS
) -> Recipe:
    stage = Stage(
        "videos",
        steps,
        (VIDEOS,),
        optimiser=Optimiser(lr=0.3, warmup=0.0, final=1.0),
        losses=LossWeights(presence=0.0),
        accumulate=accumulate,
        train=train,
    )
    lora = LoraSettings(4, 8.0, 0.0) if train == "lora" else LoraSettings()
    return Recipe(
        "tiny",
        "spacevllm",
        (stage,),
        start=str(start),
        out=str(out),
        workers=0,
        log_every=1,
        checkpoint_s=0.0,  # one after each step; the newest two stay
        spacevllm=config,
        lora=lora,
    )


def going_on(recipe: Recipe, out: Path, accumulate: int) -> Recipe:
    """One step more, in another folder or with another number of batches per process."""
    stage = replace(recipe.stages[0], steps=STEPS + 1, accumulate=accumulate)
    return replace(recipe, out=str(out), stages=(stage,))


@pytest.fixture(scope="module")
def alone(
    tiny_base_folder: Path, tiny_config: SpaceVLLMConfig, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """One process with two batches a step: run folders after STEPS steps ("all", "lora"), and "all" after one more."""
    folder = tmp_path_factory.mktemp("alone")
    for kind in ("all", "lora"):
        in_this_process(recipe_of(folder / kind, tiny_base_folder, tiny_config, 2, kind))
    shutil.copytree(folder / "all", folder / "longer")
    recipe = recipe_of(folder / "all", tiny_base_folder, tiny_config, 2)
    in_this_process(going_on(recipe, folder / "longer", 2))
    return {name: folder / name for name in ("all", "lora", "longer")}


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


def tensors_of(path: Path) -> dict[str, torch.Tensor]:
    """What a checkpoint's file holds; tied tensors, of which sharded runs write both, once."""
    found: dict[str, torch.Tensor] = load_file(path)
    if TABLE in found and HEAD in found:
        assert torch.equal(found.pop(TABLE), found[HEAD])
    return found


def gaps(one: Path, other: Path, file: str) -> dict[str, tuple[float, float]]:
    """Of every tensor of two checkpoints: the largest difference, and the largest element."""
    first, second = tensors_of(one / file), tensors_of(other / file)
    assert first.keys() == second.keys() and first
    return {n: (float((t - second[n]).abs().max()), float(second[n].abs().max())) for n, t in first.items()}


def same_gradients(one: Path, other: Path) -> None:
    """Of the first step of two runs, all of them."""
    found = {
        name: gap
        for name, gap in gaps(
            one / "checkpoint-00000001", other / "checkpoint-00000001", "optimiser.safetensors"
        ).items()
        if name.endswith(".exp_avg")
    }
    noise = NOISE * max(largest for _, largest in found.values())
    # the others: what no loss reads, and what a silent start hides (adapters' first matrices, motion layers)
    assert sum(largest > noise for _, largest in found.values()) > 0.7 * len(found)
    apart = {n: gap for n, gap in found.items() if gap[0] > max(TOLERANCE * gap[1], noise)}
    assert not apart


def same_weights(one: Path, other: Path, steps: int) -> None:
    name = f"checkpoint-{steps:08d}"
    apart = {
        n: gap for n, gap in gaps(one / name, other / name, "model.safetensors").items() if gap[0] > TOLERANCE
    }
    assert not apart


def same_run(one: Path, other: Path, steps: int = STEPS) -> None:
    """The loss of every step, and all weights after the last."""
    assert len(losses(one)) == steps
    assert losses(one) == pytest.approx(losses(other), abs=TOLERANCE)
    same_weights(one, other, steps)


def test_a_step_moves_more_than_what_is_tolerated(alone: dict[str, Path]) -> None:
    """Else equal weights would say nothing."""
    moved = gaps(*checkpoints(alone["all"]), "model.safetensors")
    assert sum(gap > 10 * TOLERANCE for gap, _ in moved.values()) > 0.7 * len(moved)


@pytest.mark.parametrize("config", ["", "fsdp2.yaml"])
def test_two_processes_equal_one_and_go_on_for_each_other(
    alone: dict[str, Path], tiny_base_folder: Path, tiny_config: SpaceVLLMConfig, tmp_path: Path, config: str
) -> None:
    """Plain and sharded (by the shipped file): from the start, 1 -> 2 and 2 -> 1 processes."""
    variables = launch_variables("--config_file", str(CONFIGS / config), "x.py") if config else {}
    both = recipe_of(tmp_path / "both", tiny_base_folder, tiny_config, 1)
    shutil.copytree(alone["all"], tmp_path / "after-one")
    more = going_on(both, tmp_path / "after-one", 1)
    in_two_processes(tmp_path, [both, more], variables)
    same_gradients(tmp_path / "both", alone["all"])
    same_run(tmp_path / "both", alone["all"])
    progress = read_progress(checkpoints(tmp_path / "both")[-1])
    assert (progress.batches, progress.processes) == (2 * STEPS, 2)
    same_run(tmp_path / "after-one", alone["longer"], STEPS + 1)
    progress = read_progress(checkpoints(tmp_path / "after-one")[-1])
    assert (progress.total_steps, progress.batches, progress.processes) == (STEPS + 1, 2 * STEPS + 2, 2)
    # one process goes on with two batches a step where two went on with one each
    done = in_this_process(going_on(both, tmp_path / "both", 2))
    assert (done.total_steps, done.batches, done.processes) == (STEPS + 1, 2 * STEPS + 2, 1)
    same_run(tmp_path / "both", alone["longer"], STEPS + 1)


def test_lora_with_gradients_and_states_cut(
    alone: dict[str, Path], tiny_base_folder: Path, tiny_config: SpaceVLLMConfig, tmp_path: Path
) -> None:
    """The vocabulary's rows that are no query tokens stay as they are, also when the table is cut."""
    both = recipe_of(tmp_path / "both", tiny_base_folder, tiny_config, 1, "lora")
    in_two_processes(tmp_path, [both], launch_variables("--config_file", str(CONFIGS / "zero2.yaml"), "x.py"))
    same_gradients(tmp_path / "both", alone["lora"])
    same_run(tmp_path / "both", alone["lora"])
    saved, started = load_bundle(tmp_path / "both" / "model"), load_bundle(tiny_base_folder)
    table, before = saved.model.state_dict()[TABLE], started.model.state_dict()[TABLE]
    moved = set((table[: len(before)] != before).any(1).nonzero()[:, 0].tolist())
    assert moved <= set(saved.layout.query_tokens)
    queries = list(saved.layout.query_tokens)
    first = load_file(checkpoints(alone["lora"])[0] / "model.safetensors")[HEAD]
    assert not torch.equal(table[queries], first[queries])  # they learn


def test_what_cannot_be_sharded_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, tmp_path, SpaceVLLMConfig(), 1)
    check_shardable(recipe)
    stage: Any = recipe.stages[0]
    with pytest.raises(RecipeError, match="one recipe per kind"):
        check_shardable(replace(recipe, stages=(stage, replace(stage, train="decoder"))))
    with pytest.raises(RecipeError, match="kind adamw"):
        check_shardable(replace(recipe, stages=(replace(stage, optimiser=Optimiser(kind="muon")),)))
    assert not wants_sharding()
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(RecipeError, match="fsdp_version: 2"):
        wants_sharding()
    monkeypatch.setenv("FSDP_VERSION", "2")
    assert wants_sharding()
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(RecipeError, match=r"zero2\.yaml"):
        wants_sharding()
