"""perf/training_step.py counts what is computed: its model FLOPs against those that torch counts while a step runs."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from tubelet.packed import block_mask

SCRIPT = Path(__file__).parents[2] / "perf" / "training_step.py"
MATRIX_OPS = ("mm", "addmm", "convolution", "convolution_backward")
FRAMES = 2


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("training_step", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def runner(script: ModuleType) -> Any:
    words = ["--size", "tiny", "--frames", str(FRAMES), "--precision", "fp32", "--no-checkpointing"]
    recipe = script.settings_of(script.arguments([*words, "--device", "cpu"]))
    torch.manual_seed(0)
    bundle = script.make_bundle(recipe, "tiny", torch.device("cpu"))
    optimisers = script.make_optimisers(bundle.model, recipe.stages[0].optimiser)
    return script.Runner(bundle, recipe, optimisers, torch.device("cpu"))


def counted(module: Any) -> dict[str, int]:
    """FLOPs of matrix products and convolutions by the name of the module they are in."""
    counts: dict[str, dict[Any, int]] = module.get_flop_counts()
    return {
        name: sum(value for op, value in ops.items() if str(op).split(".")[-1] in MATRIX_OPS)
        for name, ops in counts.items()
    }


def test_the_formula_is_what_torch_counts(script: ModuleType, runner: Any) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    model = runner.bundle.model
    batch = script.make_batch(runner.bundle, 1, FRAMES, 3)
    stated = script.model_flops(model, batch.packed)
    with FlopCounterMode(display=False) as counter:
        loss = runner.step(batch)
    found = counted(counter)
    inside = "SpaceVLLM.base.model"
    assert loss > 0
    assert found[f"{inside}.language_model"] == stated["language model"]
    assert found[f"{inside}.multi_modal_projector"] == stated["projector"]
    vision = model.base.config.vision_config
    patches = FRAMES * (vision.image_size // vision.patch_size) ** 2
    seeing = 4.0 * vision.num_hidden_layers * vision.hidden_size * patches**2 / FRAMES
    assert found[f"{inside}.vision_tower"] == stated["vision tower"] - seeing
    assert found["SpaceVLLM.base.lm_head"] == stated["head"]


def test_pairs_are_those_of_the_mask(script: ModuleType, runner: Any) -> None:
    packed = script.make_batch(runner.bundle, 2, FRAMES, 3).packed
    mask = block_mask(packed.segment) & (packed.segment >= 0)[:, None, :, None]
    assert script.visible_pairs(packed.segment) == int(mask.sum())


def test_a_step_trains_what_a_lora_stage_trains(script: ModuleType, runner: Any) -> None:
    model = runner.bundle.model
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    runner.step(script.make_batch(runner.bundle, 1, FRAMES, 2))
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert any(".lora_" in name for name in moved) and any(n.startswith("space_decoder.") for n in moved)
    learn = {name for name, p in model.named_parameters() if p.requires_grad}
    assert moved <= learn and not any("vision" in name or "base_layer" in name for name in learn)


def test_what_is_asked_for_is_checked(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        script.arguments(["--size", "7b", "--device", "cpu"])
    assert "needs a GPU" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        script.arguments(["--size", "tiny", "--rounds", "0"])
    assert script.peak_tflops(None, torch.device("cpu"), "bf16") is None
    assert script.peak_tflops(123.0, torch.device("cpu"), "bf16") == 123.0


@pytest.mark.parametrize(
    "name", ["NVIDIA H200", "NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-80GB", "NVIDIA A10"]
)
def test_known_gpus(script: ModuleType, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    known = {
        "NVIDIA H200": 989.0,
        "NVIDIA H100 80GB HBM3": 989.0,
        "NVIDIA A100-SXM4-80GB": 312.0,
        "NVIDIA A10": 125.0,
    }
    assert script.peak_tflops(None, torch.device("cuda"), "bf16") == known[name]
    assert script.peak_tflops(None, torch.device("cuda"), "fp32") is None  # the table is of bf16


@pytest.mark.parametrize("size", ["7b", "0.5b"])
def test_full_sizes_have_their_shapes(script: ModuleType, size: str) -> None:
    """On the meta device, nothing is downloaded or filled."""
    from transformers.initialization import no_init_weights

    recipe = script.settings_of(
        script.arguments(["--size", size, "--device", "meta", "--frames", "2", "--rank", "8"])
    )
    with no_init_weights():
        model = script.make_bundle(recipe, size, torch.device("meta")).model
    assert sum(p.numel() for p in model.parameters()) > {"7b": 8.0e9, "0.5b": 8.5e8}[size]
    weights, learnt = script.matrix_weights(model.base.model.language_model)
    assert 0 < learnt < 0.02 * weights
