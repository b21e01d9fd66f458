"""Commands about the zero-shot method: study."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tubelet.cli.common import make_folder, progress
from tubelet.errors import QueryError

study_app = typer.Typer(help="What the parts of a method bring.", no_args_is_help=True)


@study_app.callback()
def _studies() -> None:
    """Keeps `zero-shot` a command of its own, also while it is the only one."""


@study_app.command("zero-shot")
def study_zero_shot(
    out: Annotated[Path, typer.Option(help="Folder for queries.jsonl and study.json.")],
    model: Annotated[str, typer.Option("--model", "-m", help="A video MLLM.")] = "pico-base",
    n: Annotated[int, typer.Option(help="Queries, one per toy-world scene.", min=2)] = 300,
    seed: Annotated[int, typer.Option(help="Of the scenes.")] = 7,
    split: Annotated[str, typer.Option(help="val (to choose) or test (for numbers).")] = "test",
    preset: Annotated[str, typer.Option(help="Start from tubelet, paper or published.")] = "tubelet",
    layout: Annotated[str, typer.Option(help="Prompts as in the model's training, or stock.")] = "trained",
    token: Annotated[
        str,
        typer.Option(
            help="raw, relative, fixed or mean; what is not given follows the model's folder and the preset."
        ),
    ] = "",
    read: Annotated[str, typer.Option(help="whole, sub, mixed or parts.")] = "",
    epsilon: Annotated[float, typer.Option(help="Of the division.")] = 0.0,
    rate: Annotated[float, typer.Option(help="Of tuning steps; below 0: not given.")] = -1.0,
    layers: Annotated[str, typer.Option(help="FIRST,LAST as a slice, for example -4,-1.")] = "",
    question: Annotated[str, typer.Option(help="Wording, with {text} in it.")] = "",
    general: Annotated[str, typer.Option(help="The prompt whose attention divides.")] = "",
    variants: Annotated[list[str] | None, typer.Option("--variant", help="Only these; default: all.")] = None,
) -> None:
    """Random track, mean of tokens, token identification, tunings, reversed video: on true tracks of the toy world.

    The same command goes on where it was stopped.
    """
    from tubelet.zeroshot.grounder import load_zero_shot
    from tubelet.zeroshot.settings import QUALITY
    from tubelet.zeroshot.study import VARIANTS, study

    chosen = {
        "layers": _slice(layers) if layers else None,
        "question": question or None,
        "general": general or None,
        "token": token or None,
        "read": read or None,
        "epsilon": epsilon or None,
        "rate": rate if rate >= 0 else None,
    }
    # tunings are what the variants switch on; the rest stays
    changes = dict.fromkeys(QUALITY, False) | {k: v for k, v in chosen.items() if v is not None}
    grounder = load_zero_shot(model, settings=changes, layout=layout, preset=preset)
    make_folder(out)
    with progress("asking") as step:
        result = study(grounder, n, seed, tuple(variants or VARIANTS), out, step, split)
    names = list(next(iter(result.rows.values())))
    typer.echo(f"{'':16}" + "".join(f"{name:>24}" for name in names) + f"{'failed':>8}")
    for variant, row in result.rows.items():
        cells = "".join(f"{row[name]!s:>24}" for name in names)
        typer.echo(f"{variant:16}{cells}{result.failed[variant]:8}")


def _slice(text: str) -> tuple[int, int]:
    try:
        first, last = (int(part) for part in text.split(","))
    except ValueError:
        raise QueryError(f"--layers is FIRST,LAST, for example -4,-1; got {text!r}") from None
    return first, last
