"""The files of recipes/accelerate and the command lines of docs/training.md, read by accelerate's own code.

Parser, loader and environment are accelerate's, and so is the plugin that its Accelerator makes of the environment in
every process; nothing is launched, and no GPU is asked for. That two processes which got this environment train as one
is in test_training_processes.py (on CPUs). DeepSpeed is not installed and not used: its test reaches as far as the
environment that accelerate would give to DeepSpeed's processes, which tubelet refuses there.
"""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from training_launch import launch_variables

from tubelet.cli import app
from tubelet.errors import RecipeError
from tubelet.training.sharding import blocks, wants_sharding

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "recipes" / "accelerate").glob("*.yaml"))
WHOLE_AFTER_FORWARD = {"fsdp2.yaml": False, "zero2.yaml": True, "zero3.yaml": False}
PLACEHOLDER = "RECIPE"


def test_every_shipped_file_is_tested() -> None:
    assert {path.name for path in CONFIGS} == set(WHOLE_AFTER_FORWARD)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_accelerate_loads_it(path: Path) -> None:
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.utils import DistributedType

    config = load_config_from_file(str(path))  # raises for a key that it does not know
    assert config.distributed_type == DistributedType.FSDP
    assert (config.num_machines, config.mixed_precision) == (1, "bf16")
    assert config.fsdp_config == yaml.safe_load(path.read_text())["fsdp_config"]


def test_the_loader_would_say_what_is_wrong(tmp_path: Path) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    broken = tmp_path / "broken.yaml"
    broken.write_text(CONFIGS[0].read_text() + "fsdp_cofnig: {}\n")
    with pytest.raises(ValueError, match="fsdp_cofnig"):
        load_config_from_file(str(broken))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_its_settings_reach_the_plugin(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the file to the environment of a process, to accelerate's plugin there, and to what tubelet reads."""
    from accelerate.utils import FullyShardedDataParallelPlugin
    from torch.distributed.fsdp import StateDictType
    from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

    for name, value in launch_variables("--config_file", str(path), "--num_processes", "16", "x.py").items():
        monkeypatch.setenv(name, value)
    assert wants_sharding()
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is not WHOLE_AFTER_FORWARD[path.name]
    assert plugin.auto_wrap_policy is transformer_auto_wrap_policy
    assert plugin.state_dict_type == StateDictType.SHARDED_STATE_DICT
    assert plugin.cpu_offload is None or not getattr(plugin.cpu_offload, "offload_params", False)


def test_what_is_cut_as_one(new_tiny: Callable[..., Any]) -> None:
    """Blocks of the language model and of the vision tower, each once and none inside another."""
    model = new_tiny().model
    found = Counter(type(block).__name__ for block in blocks(model))
    config = model.base.config
    assert found == {
        "Qwen2DecoderLayer": config.text_config.num_hidden_layers,
        "SiglipEncoderLayer": config.vision_config.num_hidden_layers,
    }


@pytest.mark.parametrize("reshard", [True, False])
def test_stages_of_zero_are_what_the_files_say(
    reshard: bool, monkeypatch: pytest.MonkeyPatch, new_tiny: Callable[..., Any]
) -> None:
    """zero2 keeps weights whole from forward to backward, zero3 gathers them again: what `fully_shard` is told."""
    from torch.distributed import device_mesh, fsdp

    from tubelet.training.sharding import shard

    told: list[tuple[str, bool]] = []

    def record(module: Any, *, reshard_after_forward: bool, **_: Any) -> None:
        told.append((type(module).__name__, reshard_after_forward))

    monkeypatch.setattr(fsdp, "fully_shard", record)
    monkeypatch.setattr(device_mesh, "init_device_mesh", lambda *_: None)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    path = ROOT / "recipes" / "accelerate" / ("zero3.yaml" if reshard else "zero2.yaml")
    for name, value in launch_variables("--config_file", str(path), "x.py").items():
        monkeypatch.setenv(name, value)
    model = new_tiny().model
    shard(model, model.device)
    assert told[-1] == ("SpaceVLLM", False)  # the root stays whole
    assert {kept for _, kept in told[:-1]} == {reshard} and len(told) == len(blocks(model)) + 1


@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_is_refused_with_what_to_use(
    stage: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "deepspeed.yaml"
    config = {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": "DEEPSPEED",
        "deepspeed_config": {"zero_stage": stage},
        "mixed_precision": "bf16",
        "num_machines": 1,
        "num_processes": 8,
    }
    path.write_text(yaml.safe_dump(config))
    variables = launch_variables("--config_file", str(path), "x.py")
    assert variables["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == str(stage)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RecipeError, match=r"zero2\.yaml and zero3\.yaml"):
        wants_sharding()


# --- command lines in words ----------------------------------------------------------------------------


def command_lines() -> list[tuple[str, list[str]]]:
    """Of the page and of the comments in the recipes: (where, words)."""
    found = []
    recipes = [*(ROOT / "recipes").glob("*.yaml"), *CONFIGS]
    for path in (ROOT / "docs" / "training.md", *sorted(recipes)):
        for line in path.read_text(encoding="utf-8").splitlines():
            text = re.sub(r"^(    |# )", "", line)
            if text != line and text.startswith(("tubelet train ", "accelerate launch ")):
                found.append((path.name, shlex.split(text, comments=True)))
    return found


def arguments_of_train(words: list[str]) -> dict[str, Any]:
    """As the command reads them; a word that it does not know is an error."""
    command: Any = typer.main.get_command(app)
    read: dict[str, Any] = command.commands["train"].make_context("train", list(words)).params
    return read


def test_there_are_command_lines() -> None:
    pages = Counter(where for where, _ in command_lines())
    assert pages["training.md"] >= 8
    assert all(pages[path.name] for path in CONFIGS)


@pytest.mark.parametrize(("where", "words"), command_lines(), ids=lambda value: str(value)[:60])
def test_a_command_line_names_files_and_options_that_exist(where: str, words: list[str]) -> None:
    if words[0] == "accelerate":
        from accelerate.commands.launch import launch_command_parser

        args = launch_command_parser().parse_args(words[2:])
        assert args.module and args.training_script == "tubelet"
        assert args.config_file is None or (ROOT / args.config_file).is_file()
        words = ["tubelet", *args.training_script_args]
    assert words[:2] == ["tubelet", "train"]
    read = arguments_of_train(words[2:])
    recipe = str(read["recipe"])
    assert recipe == PLACEHOLDER or (ROOT / recipe).is_file(), f"{where}: there is no {recipe}"


def test_paths_in_the_page_exist() -> None:
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    named = set(re.findall(r"(?:recipes|tests|perf|docs)/[\w./-]+\.(?:yaml|py|md)", text))
    assert len(named) >= 6
    assert not [path for path in named if not (ROOT / path).is_file()]
