"""Commands that make training data from captions: unistg build, stats, prove."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from tubelet.scale.job import JobProgress

unistg_app = typer.Typer(
    help="Uni-STG: tubes from captions with coarse times (analyzer, annotator, refiner, filter).",
    no_args_is_help=True,
)


@unistg_app.command()
def build(
    out: Annotated[Path, typer.Option(help="Folder for samples, drops, funnel and card.")],
    recipe: Annotated[Path | None, typer.Argument(help="YAML, see recipes/unistg/world.yaml.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="key=value of the recipe, e.g. filter.max_boxes=2.")
    ] = None,
    engine: Annotated[str, typer.Option(help="local or ray.")] = "local",
    workers: Annotated[int, typer.Option(help="Processes of the annotator.", min=1)] = 1,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the build in the folder.")] = False,
) -> None:
    """Captions in, tubes with provenance out; killed at any moment, --resume goes on to the same bytes."""
    from tubelet.unistg.build import build as run
    from tubelet.unistg.recipe import load_unistg_recipe
    from tubelet.unistg.stats import lines, stats

    chosen = load_unistg_recipe(recipe, settings or [])
    try:
        done = run(chosen, out, engine=engine, workers=workers, resume=resume, report=_teller())
    except KeyboardInterrupt:
        typer.echo("tubelet: what is done is kept: the same command with --resume goes on", err=True)
        raise SystemExit(130) from None
    for line in lines(stats(out)):
        typer.echo(line, err=True)
    typer.echo(f"{done.folder}: {done.kept} samples, {done.dropped} dropped")
    if done.aside:
        typer.echo(f"tubelet: {done.aside} captions were set aside, drops.jsonl says why", err=True)
        raise SystemExit(1)


@unistg_app.command("stats")
def show(
    folder: Annotated[Path, typer.Argument(help="A finished build.")],
    plot: Annotated[Path | None, typer.Option(help="Funnel, lengths and box sizes as a picture.")] = None,
) -> None:
    """The funnel, lengths of spans and sizes of boxes of a build."""
    from tubelet.unistg.stats import lines, stats
    from tubelet.unistg.stats import plot as draw

    for line in lines(stats(folder)):
        typer.echo(line)
    if plot is not None:
        draw(folder, plot)


@unistg_app.command()
def prove(
    n: Annotated[int, typer.Option(help="Captions, one per scene.", min=2)] = 150,
    seed: Annotated[int, typer.Option(help="Of the scenes.")] = 11,
    kind: Annotated[
        str, typer.Option(help="presence (while it is in the picture) or event (its action).")
    ] = "presence",
) -> None:
    """Precision of spans and tubes after each stage, on toy-world captions with loose spans."""
    from tubelet.unistg.world_proof import prove as run

    found = run(n, seed, kind)
    for name, row in {**found.stages, **found.gains}.items():
        typer.echo(
            f"{name:28}" + "".join(f"  {metric} {value!s} n={value.n}" for metric, value in row.items())
        )
    for reason, count in found.drops.items():
        typer.echo(f"  {count:6}  {reason}")


def _teller() -> Callable[[JobProgress], None]:
    """A line on stderr for every tenth of the videos."""
    told = 0

    def tell(now: JobProgress) -> None:
        nonlocal told
        tenth = 10 * (now.done + now.aside) // max(now.total, 1)
        if tenth > told:
            told = tenth
            typer.echo(f"{now.done + now.aside}/{now.total} videos, {now.items_per_s:.2f}/s", err=True)

    return tell
