"""Commands that ask what built labels are worth: unistg prove-training prepare, compare, start."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tubelet.cli.common import progress
from tubelet.errors import QueryError

if TYPE_CHECKING:
    from tubelet.metrics.bootstrap import Interval

prove_training_app = typer.Typer(
    help="A model trained on built labels against one trained on exact truth (recipes/unistg-pico.yaml).",
    no_args_is_help=True,
)

Folder = Annotated[Path, typer.Argument(help="Folder of the proof, for example runs/unistg-training.")]


@prove_training_app.command()
def prepare(
    folder: Folder,
    n: Annotated[int, typer.Option(help="Toy-world videos to learn from.", min=1)] = 500,
    n_test: Annotated[int, typer.Option(help="Toy-world videos to test on, one query each.", min=1)] = 250,
    seed: Annotated[int, typer.Option(help="Of the scenes.")] = 41,
    workers: Annotated[int, typer.Option(help="Processes of the annotator.", min=1)] = 1,
) -> None:
    """Videos, loose captions, the build, and the rows of all arms; killed at any moment, the same call goes on."""
    from tubelet.unistg.training_proof import prepare as run
    from tubelet.unistg.training_world import ProofData

    told: dict[str, int] = {}

    def tell(what: str, done: int, total: int) -> None:
        tenth = 10 * done // max(total, 1)
        if tenth > told.get(what, 0):
            told[what] = tenth
            typer.echo(f"{what}: {done}/{total}", err=True)

    found = run(folder, ProofData(n=n, n_test=n_test, seed=seed), workers, tell)
    typer.echo(f"{found.folder}: {found.captions} captions, {found.queries} test queries")
    for arm, kinds in found.labels.items():
        typer.echo(f"{arm}: {found.rows[arm]} rows of {found.videos[arm]} videos")
        for kind, row in kinds.items():
            _tell_row(f"  labels, {kind}", row)


@prove_training_app.command()
def compare(
    folder: Folder,
    models: Annotated[list[str], typer.Argument(help="NAME=FOLDER of each model, the reference first.")],
    limit: Annotated[int, typer.Option(help="Only the first queries; 0: all.", min=0)] = 0,
) -> None:
    """Score models on the same test queries; differences to the first one are paired."""
    from tubelet.unistg.training_compare import compare as run

    named: dict[str, str] = {}
    for given in models:
        name, sign, path = given.partition("=")
        if not sign or not path or not name.replace("-", "").isalnum() or name in named:
            raise QueryError(f"models are NAME=FOLDER, each name once, got {given!r}")
        named[name] = path
    with progress("asking") as step:
        found = run(folder, named, limit or None, step)
    for tables in (found.models, found.differences):
        for name, kinds in tables.items():
            for kind, row in kinds.items():
                _tell_row(f"{name}, {kind}", row)
    if any(found.n_failed.values()):
        typer.echo(f"failed: {dict(found.n_failed)}", err=True)
        raise SystemExit(1)


@prove_training_app.command()
def start(
    out: Annotated[Path, typer.Argument(help="Folder of the new start, for the recipe's `start`.")],
    model: Annotated[
        str, typer.Option("--model", "-m", help="SpaceVLLM whose trunk is kept.")
    ] = "spacevllm-pico",
) -> None:
    """A trained SpaceVLLM with a new space decoder and new heads: an easier start than a chat base."""
    from tubelet.unistg.training_start import fresh_decoder

    typer.echo(str(fresh_decoder(model, out)))


def _tell_row(name: str, row: Mapping[str, Interval]) -> None:
    n = next(iter(row.values())).n
    typer.echo(f"{name:28}" + "".join(f"  {metric} {value!s}" for metric, value in row.items()) + f"  n={n}")
