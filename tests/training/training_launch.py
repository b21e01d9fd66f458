"""For tests: processes that train together, and what `accelerate launch` tells the processes it starts.

As a script it is one of them, `training_launch.py PORT RECIPE [PORT RECIPE ...]`: one run after the other, each with a
process group of its own, because most of the time of a small run is the import of its libraries.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tubelet.config_io import to_dict
from tubelet.spacevllm.train import make_job
from tubelet.training import log, loop
from tubelet.training.checkpoint import Progress
from tubelet.training.loop import train
from tubelet.training.recipe import Optimiser, Recipe, load_recipe

SMOOTH_EPS = 1.0


@contextmanager
def _settled() -> Iterator[None]:
    """No TensorBoard, smooth steps, and an accelerate that remembers no earlier run."""
    from accelerate.state import AcceleratorState

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log, "find_spec", lambda name: None)
        patch.setattr(loop, "make_optimisers", _smooth(loop.make_optimisers))
        try:
            yield
        finally:
            AcceleratorState._reset_state(True)


def _smooth(plain: Any) -> Any:
    """The optimisers of training, with an epsilon so large that AdamW steps as momentum SGD does.

    Adam divides a gradient by its own size. Where that is 0 but for rounding (biases of the vision tower's keys, which
    softmax does not see), or tiny beside the tensor's others, a step has the size of the rate and the sign of the
    rounding: two runs that differ in the last bit of one weight are apart by the rate one step later, however right
    both are. With this epsilon a difference of rounding stays one, so that two equal runs can be asked to be equal in
    all weights.
    """

    def make(model: torch.nn.Module, settings: Optimiser) -> list[torch.optim.Optimizer]:
        optimisers = plain(model, settings)
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["eps"] = SMOOTH_EPS
        return optimisers

    return make


def in_this_process(recipe: Recipe) -> Progress:
    with _settled():
        return train(recipe, make_job(recipe))


def in_two_processes(folder: Path, recipes: Sequence[Recipe], variables: dict[str, str]) -> None:
    """Runs one after the other, over two processes on the CPU (gloo); variables: of accelerate."""
    from two_processes import free_port, run_two  # not where this file runs as their program

    words: list[str] = []
    for number, recipe in enumerate(recipes):
        path = folder / f"two-{number}.yaml"
        path.write_text(yaml.safe_dump(to_dict(recipe)))
        words += [str(free_port()), str(path)]
    run_two([__file__, *words], variables)


def launch_variables(*words: str) -> dict[str, str]:
    """What `accelerate launch WORDS` puts into the environment of its processes, by accelerate's own code.

    Nothing is started: its parser reads the words, its loader the config file, and it prepares the environment.
    """
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    args = launch_command_parser().parse_args(["--main_process_port", "0", *words])
    args, defaults, _ = _validate_launch_command(args)
    if args.use_deepspeed:
        args.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
        found = prepare_deepspeed_cmd_env(args)[1]
    else:
        found = prepare_multi_gpu_env(args)
    return {name: value for name, value in found.items() if name.startswith(("ACCELERATE_", "FSDP_"))}


def main(words: Sequence[str]) -> None:
    torch.set_num_threads(1)
    for port, path in zip(words[::2], words[1::2], strict=True):
        os.environ["MASTER_PORT"] = port
        in_this_process(load_recipe(Path(path)))


if __name__ == "__main__":
    main(sys.argv[1:])
