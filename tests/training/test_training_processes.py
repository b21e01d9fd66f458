"""Several processes: plain or sharded they equal one process, and a run goes on with another number of them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tubelet.config_io import to_dict
from tubelet.errors import RecipeError
from tubelet.spacevllm.checkpoint import load_bundle
from tubelet.spacevllm.config import SpaceVLLMConfig
from tubelet.spacevllm.loss import LossWeights
from tubelet.spacevllm.train import make_job
from tubelet.training.checkpoint import checkpoints, read_progress
from tubelet.training.loop import train
from tubelet.training.recipe import LoraSettings, Optimiser, Recipe, Stage
from tubelet.training.samples import WorldMix
from tubelet.training.sharding import check_shardable, wants_sharding

VIDEOS = WorldMix(kind="video", batch=2, questions=2, tasks=("stvg", "tvg"), frames=3)
STEPS = 3

CHILD = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
import tubelet.training.log
from tubelet.spacevllm.train import make_job
from tubelet.training.loop import train
from tubelet.training.recipe import load_recipe
tubelet.training.log.find_spec = lambda name: None
recipe = load_recipe(Path(sys.argv[1]))
train(recipe, make_job(recipe))
"""


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    from accelerate.state import AcceleratorState

    monkeypatch.setattr("tubelet.training.log.find_spec", lambda name: None)
    yield
    AcceleratorState._reset_state(True)


def recipe_of(
    out: Path, start: Path, config: SpaceVLLMConfig, accumulate: int, train: str = "all", steps: int = STEPS
) -> Recipe:
    stage = Stage(
        "videos",
        steps,
        (VIDEOS,),
        optimiser=Optimiser(lr=1e-3, warmup=0.0, final=1.0),
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
        checkpoint_s=1e6,
        spacevllm=config,
        lora=lora,
    )


def two_processes(recipe: Recipe, folder: Path, **variables: str) -> None:
    path = folder / f"{recipe.folder.name}.yaml"
    path.write_text(yaml.safe_dump(to_dict(recipe)))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    shared |= {"ACCELERATE_USE_CPU": "true", **variables}
    children = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD, str(path)],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        for child in children:
            _, said = child.communicate(timeout=240)
            assert child.returncode == 0, said[-3000:]
    finally:
        for child in children:
            child.kill()


def numbers(folder: Path, name: str) -> list[float]:
    return [json.loads(line)[name] for line in (folder / "log.jsonl").read_text().splitlines()]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = load_bundle(folder / "model").model.state_dict()
    return state


def same_run(one: Path, other: Path) -> None:
    """The loss of every step, and all weights: within 1e-5, where Adam does not blow up the sign of rounding."""
    assert numbers(one, "loss") == pytest.approx(numbers(other, "loss"), abs=1e-5)
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        gap = (tensor - second[name]).abs()
        # a gradient that is 0 but for rounding moves an element by its sign (keys' biases): few, and known as such
        assert float((gap > 1e-5).float().mean()) < 0.02 or "bias" in name, (name, float(gap.max()))


FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}


@pytest.mark.parametrize(
    ("train_what", "variables"),
    [
        ("all", FSDP),
        ("lora", {**FSDP, "FSDP_RESHARD_AFTER_FORWARD": "false"}),
    ],
)
def test_sharded_equals_one_process(
    tiny_base_folder: Path,
    tiny_config: SpaceVLLMConfig,
    tmp_path: Path,
    train_what: str,
    variables: dict[str, str],
) -> None:
    """FSDP2 over two processes is one process with the same global batch; a sharded checkpoint goes on in one process.

    In the LoRA stage the vocabulary's rows that are no query tokens stay as they are, also when it is cut.
    """
    alone = recipe_of(tmp_path / "alone", tiny_base_folder, tiny_config, 2, train_what)
    job = make_job(alone)
    before = job.model.base.get_input_embeddings().weight.detach().clone()
    train(alone, job)
    sharded = recipe_of(tmp_path / "sharded", tiny_base_folder, tiny_config, 1, train_what)
    two_processes(sharded, tmp_path, **variables)
    same_run(tmp_path / "sharded", tmp_path / "alone")
    progress = read_progress(checkpoints(tmp_path / "sharded")[-1])
    assert (progress.batches, progress.processes) == (2 * STEPS, 2)
    if train_what == "lora":
        saved = load_bundle(tmp_path / "sharded" / "model")
        table = saved.model.state_dict()["base.model.language_model.embed_tokens.weight"]
        moved = (table != before).any(1).nonzero()[:, 0].tolist()
        assert moved and set(moved) <= set(saved.layout.query_tokens)
        return
    # one process goes on with two batches a step where two went on with one each
    longer = replace(sharded.stages[0], steps=STEPS + 1, accumulate=2)
    go_on = replace(sharded, stages=(longer,))
    done = train(go_on, make_job(go_on))
    assert (done.total_steps, done.batches, done.processes) == (STEPS + 1, 2 * STEPS + 2, 1)
    through = replace(alone, out=str(tmp_path / "through"), stages=(longer,))
    train(through, make_job(through))
    same_run(tmp_path / "sharded", tmp_path / "through")


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
