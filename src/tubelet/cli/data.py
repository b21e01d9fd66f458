"""Commands about data: world make, data check."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tubelet.cli.common import progress


def world_make(
    folder: Annotated[Path, typer.Argument(help="Where to write.")],
    n: Annotated[int, typer.Option("--n", help="Number of scenes.", min=1)] = 10,
    seed: Annotated[int, typer.Option(help="Seed of the scenes.")] = 0,
    task: Annotated[str, typer.Option(help="Comma-separated tasks, for example stvg or stvg,tvg.")] = "stvg",
    split: Annotated[str, typer.Option(help="train, val or test: scenes are never shared.")] = "test",
    questions: Annotated[int, typer.Option(help="Questions per scene.", min=1)] = 1,
    height: Annotated[int, typer.Option(help="Picture height in pixels.", min=16)] = 180,
    fps: Annotated[float, typer.Option(help="Frames per second.", min=1.0)] = 15.0,
) -> None:
    """Write toy-world videos (or images) and annotations.jsonl with the exact truth."""
    from tubelet.world.files import make_world

    with progress("drawing") as step:
        path = make_world(
            folder,
            n,
            seed,
            split,
            tuple(part.strip() for part in task.split(",")),
            questions,
            height,
            fps,
            progress=step,
        )
    typer.echo(str(path))


def data_check(
    name: Annotated[str, typer.Argument(help="Name of a dataset, see `tubelet data list`.")],
    folder: Annotated[Path, typer.Argument(help="The folder that holds its files.")],
    split: Annotated[list[str] | None, typer.Option(help="Only these splits.")] = None,
    videos: Annotated[
        Path | None, typer.Option(help="Where the videos are, when not below the folder.")
    ] = None,
    probe: Annotated[int, typer.Option(help="Videos per split that are opened.", min=0)] = 4,
    limit: Annotated[int, typer.Option(help="Stop after this many records per split; 0: all.", min=0)] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """What is there, what is missing, what is broken, and where to get it. Never downloads."""
    import json

    from tubelet.datasets.check import data_check as check

    report = check(name, folder, split, videos=videos, probe=probe, limit=limit or None)
    typer.echo(json.dumps(report.to_dict(), indent=1) if as_json else report.render())
    if not report.ok:
        raise SystemExit(1)


def data_list() -> None:
    """List the datasets that tubelet reads."""
    from tubelet.datasets import DATASETS

    for name in sorted(DATASETS):
        typer.echo(name)
