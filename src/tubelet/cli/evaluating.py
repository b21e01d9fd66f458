"""Commands that measure: eval."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tubelet.cli.common import make_folder, progress
from tubelet.errors import QueryError


def evaluate(
    benchmark: Annotated[str, typer.Argument(help="Name of the benchmark: world.")],
    out: Annotated[Path, typer.Option(help="Folder for data, predictions.jsonl and metrics.json.")],
    model: Annotated[str, typer.Option("--model", "-m")] = "spacevllm-pico",
    n: Annotated[int, typer.Option(help="Number of test videos.", min=1)] = 500,
    seed: Annotated[int, typer.Option(help="Seed of the test videos.")] = 7,
    task: Annotated[str, typer.Option(help="stvg, tvg, svg, rec or qa.")] = "stvg",
    span_reader: Annotated[str, typer.Option(help="text, activity or both; default: the model's own.")] = "",
    untrained: Annotated[
        bool, typer.Option(help="Also score the model with random weights, as a baseline.")
    ] = True,
) -> None:
    """Score a model; prints a table, writes predictions.jsonl and metrics.json; a second call resumes."""
    if benchmark != "world":
        raise QueryError(f"unknown benchmark {benchmark!r}; there is: world")
    from tubelet.benchmarks.world import evaluate_world
    from tubelet.benchmarks.world_qa import evaluate_world_qa
    from tubelet.grounder import load

    grounder = load(model)
    make_folder(out)
    random_weights = getattr(grounder, "untrained", None)  # methods without training have none
    with progress("evaluating") as step:
        if task == "qa":
            _print_answers(evaluate_world_qa(grounder, out, n, seed, progress=step), model)
            return
        result = evaluate_world(
            grounder,
            out,
            n,
            seed,
            task,
            span_reader or None,
            progress=step,
            untrained=random_weights() if untrained and random_weights else None,
        )
    names = list(result.metrics)
    widths = [max(24, len(name) + 2) for name in names]
    typer.echo(f"{'':18}" + "".join(f"{name:>{w}}" for name, w in zip(names, widths, strict=True)))
    rows = {model: result.metrics, **result.baselines}
    for name, row in rows.items():
        cells = [str(row[m]) if m in row else "-" for m in names]
        typer.echo(f"{name[-18:]:18}" + "".join(f"{c:>{w}}" for c, w in zip(cells, widths, strict=True)))
    typer.echo(f"n {result.n}, failed {result.n_failed}; written to {out}", err=True)
    if result.n_failed:
        raise SystemExit(1)


def _print_answers(result: Any, model: str) -> None:
    typer.echo(f"{'':12}{model[-24:]:>24}{'constant answer':>24}{'n':>7}")
    for kind, score in result.accuracy.items():
        typer.echo(f"{kind:12}{score!s:>24}{result.constant[kind]!s:>24}{score.n:7}")
    typer.echo(f"n {result.n}, failed {result.n_failed}; written to {result.folder}", err=True)
    if result.n_failed:
        raise SystemExit(1)
