"""Commands that learn: train."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from tubelet.cli.common import make_folder, training_bar
from tubelet.errors import OutputError


def train(
    recipe: Annotated[Path, typer.Argument(help="A YAML recipe, see recipes/.")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="key=value, for example stages.0.steps=100.")
    ] = None,
    resume: Annotated[bool, typer.Option(help="Go on from the newest checkpoint in the run folder.")] = True,
    threads: Annotated[int, typer.Option(help="CPU threads; 0: all.", min=0)] = 0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what it costs, and whether the data is there.")
    ] = False,
    processes: Annotated[int, typer.Option(help="Dry run: number of GPUs.", min=1)] = 1,
    sharding: Annotated[str, typer.Option(help="Dry run: none, fsdp2, zero2 or zero3.")] = "none",
    tokens_per_s: Annotated[
        float | None, typer.Option(help="Dry run: tokens per second of all GPUs together.")
    ] = None,
    mfu: Annotated[float | None, typer.Option(help="Dry run: share of the GPUs' peak rate.")] = None,
    gpu_tflops: Annotated[float | None, typer.Option(help="Dry run: peak rate of one GPU, TFLOP/s.")] = None,
) -> None:
    """Train a model from a recipe; killed at any moment, the same command resumes."""
    if dry_run:
        _dry_run(recipe, settings or [], processes, sharding, tokens_per_s, mfu, gpu_tflops)
        return
    import torch
    from safetensors import SafetensorError

    from tubelet.model_folder import check_replaceable
    from tubelet.training.loop import train as run
    from tubelet.training.recipe import load_recipe

    logging.getLogger("tubelet").setLevel(logging.INFO)
    if threads:
        torch.set_num_threads(threads)
    loaded = load_recipe(recipe, settings or [])
    check_replaceable(loaded.folder / "model")  # now, and not when hours of training are to be saved
    if loaded.model == "llava-st":
        from tubelet.llava_st.train import make_job
    else:
        from tubelet.spacevllm.train import make_job
    with training_bar(sum(stage.steps for stage in loaded.stages)) as step:
        job = make_job(loaded)
        make_folder(loaded.folder)
        try:
            done = run(loaded, job, resume, step)
        except (PermissionError, SafetensorError) as error:  # that is what a full disk is to safetensors
            raise OutputError(
                f"a checkpoint in {loaded.folder} cannot be written or read: {str(error)[:300]}; once it can, the "
                "same command goes on from the last whole one"
            ) from error
    typer.echo(
        f"{loaded.folder / 'model'}: {done.total_steps} steps, {done.questions} questions, "
        f"{done.seconds / 60:.1f} minutes"
    )


def _dry_run(
    recipe: Path,
    settings: list[str],
    processes: int,
    sharding: str,
    tokens_per_s: float | None,
    mfu: float | None,
    gpu_tflops: float | None,
) -> None:
    """Print what a recipe costs; exit code 1 when data is missing."""
    from tubelet.training.dry_run import dry_run, report
    from tubelet.training.recipe import load_recipe

    found = dry_run(load_recipe(recipe, settings), processes, sharding, tokens_per_s, mfu, gpu_tflops)
    typer.echo(report(found))
    if found.missing:
        raise typer.Exit(1)
