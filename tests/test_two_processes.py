"""Two processes (gloo) learn what one process learns from the same batches."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

SCRIPT = """
import sys
import torch
from tubelet.spacevllm.train import make_job
from tubelet.training.loop import train
from tubelet.training.recipe import load_recipe

torch.set_num_threads(1)
recipe = load_recipe(sys.argv[1], sys.argv[2:])
train(recipe, make_job(recipe))
"""

RECIPE = """
name: pair
model: pico-base
seed: 3
workers: 0
spacevllm: {max_frames: 4, time_layout: interleaved, prompts: brief, mid_layer: 2,
            decoder: {width: 32, heads: 2, temporal_layers: 1, cells: true}}
stages:
  - name: one
    steps: 2
    optimiser: {kind: adamw, lr: 1.0e-3, clip: 1000000.0}
    data: [{kind: image, batch: 3, questions: 2, tasks: [rec, qa]}]
"""


def test_two_processes_equal_one_that_accumulates(tmp_path: Path) -> None:
    """Rank r of 2 takes batches 2k + r; one process accumulating 2 takes the same two: same mean, same step."""
    recipe, script = tmp_path / "r.yaml", tmp_path / "run.py"
    recipe.write_text(RECIPE)
    script.write_text(SCRIPT)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    two = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    runs = {"two": ([*two], []), "one": ([], ["stages.0.accumulate=2"])}
    weights = {}
    for name, (launcher, settings) in runs.items():
        out = tmp_path / name
        command = [sys.executable, *launcher, str(script), str(recipe), f"out={out}", *settings]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        weights[name] = load_file(out / "checkpoint-00000002" / "model.safetensors")
    assert weights["one"].keys() == weights["two"].keys()
    for name, value in weights["one"].items():
        torch.testing.assert_close(weights["two"][name], value, rtol=1e-4, atol=2e-5, msg=name)
