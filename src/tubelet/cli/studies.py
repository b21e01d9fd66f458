"""Commands that compare: ablate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ablate_app = typer.Typer(help="What the parts of a method are worth, at pico size.", no_args_is_help=True)


@ablate_app.command("llava-st")
def ablate_llava_st(
    recipe: Annotated[Path, typer.Argument(help="A llava-st recipe of two stages, see recipes/.")],
    out: Annotated[Path, typer.Option(help="Folder for the runs and ablation.json.")],
    variants: Annotated[list[str] | None, typer.Option("--variant", help="Only these; default: all.")] = None,
    seeds: Annotated[int, typer.Option(help="How many seeds.", min=1)] = 3,
    n: Annotated[int, typer.Option(help="Validation pictures; half as many videos.", min=2)] = 200,
    settings: Annotated[list[str] | None, typer.Option("--set", help="key=value of the recipe.")] = None,
    threads: Annotated[int, typer.Option(help="CPU threads; 0: all.", min=0)] = 0,
) -> None:
    """LLaVA-ST without its coordinate embeddings, packer or stages: the same budget, several seeds."""
    import torch

    from tubelet.llava_st.ablate import VARIANTS, ablate
    from tubelet.training.recipe import load_recipe

    if threads:
        torch.set_num_threads(threads)
    loaded = load_recipe(recipe, settings or [])
    result = ablate(
        loaded, out, variants or VARIANTS, range(seeds), n, lambda text: typer.echo(text, err=True)
    )
    names = list(next(iter(result.scores.values())))
    typer.echo(f"{'':16}" + "".join(f"{name:>24}" for name in names))
    for variant, row in result.scores.items():
        typer.echo(f"{variant:16}" + "".join(f"{row[name]!s:>24}" for name in names))
