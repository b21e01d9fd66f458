"""Commands that learn: train."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from tubelet.cli.common import training_bar


def train(
    recipe: Annotated[Path, typer.Argument(help="A YAML recipe, see recipes/.")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="key=value, for example stages.0.steps=100.")
    ] = None,
    resume: Annotated[bool, typer.Option(help="Go on from the newest checkpoint in the run folder.")] = True,
    threads: Annotated[int, typer.Option(help="CPU threads; 0: all.", min=0)] = 0,
) -> None:
    """Train a model from a recipe; killed at any moment, the same command resumes."""
    import torch

    from tubelet.training.loop import train as run
    from tubelet.training.recipe import load_recipe

    logging.getLogger("tubelet").setLevel(logging.INFO)
    if threads:
        torch.set_num_threads(threads)
    loaded = load_recipe(recipe, settings or [])
    if loaded.model == "llava-st":
        from tubelet.llava_st.train import make_job
    else:
        from tubelet.spacevllm.train import make_job
    with training_bar(sum(stage.steps for stage in loaded.stages)) as step:
        done = run(loaded, make_job(loaded), resume, step)
    typer.echo(
        f"{loaded.folder / 'model'}: {done.total_steps} steps, {done.questions} questions, "
        f"{done.seconds / 60:.1f} minutes"
    )
