"""Commands that measure: eval."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tubelet.cli.common import make_folder, progress
from tubelet.cli.zeroshot_options import (
    Cache,
    MaxFrameTokens,
    Method,
    Phrases,
    Preset,
    Proposals,
    ProposalsFile,
    ProviderSettings,
    Quality,
    Settings,
    load_grounder,
    options_of,
)
from tubelet.errors import QueryError

if TYPE_CHECKING:
    from tubelet.grounder import Grounder


def evaluate(
    benchmark: Annotated[str, typer.Argument(help="world, or a dataset of `tubelet data list`.")],
    out: Annotated[
        Path, typer.Option(help="Folder of the run: predictions.jsonl, metrics.json and the rest.")
    ],
    model: Annotated[str, typer.Option("--model", "-m", help="Embedded name, folder or hub id.")] = "",
    data: Annotated[
        Path | None, typer.Option(help="Folder of the dataset's files; world makes its own.")
    ] = None,
    task: Annotated[
        str, typer.Option(help="Only this task; world: stvg (default), tvg, svg, rec, elc or qa.")
    ] = "",
    span_reader: Annotated[str, typer.Option(help="text, activity or both; default: the model's own.")] = "",
    seed: Annotated[int, typer.Option(help="Seed; world: of the test videos.")] = 7,
    n: Annotated[int, typer.Option(help="world: number of test videos.", min=1)] = 500,
    untrained: Annotated[
        bool, typer.Option(help="world: also score the model with random weights, as a baseline.")
    ] = True,
    split: Annotated[str, typer.Option(help="Split; default: the one with public truth.")] = "",
    protocol: Annotated[
        str, typer.Option(help="Named protocol; default: tubelet's, or the dataset's own.")
    ] = "",
    limit: Annotated[int, typer.Option(help="Only the first queries; 0: all.", min=0)] = 0,
    shard: Annotated[
        str, typer.Option(help="i/n: this part of n, split by video; merge with `merge`.")
    ] = "1/1",
    videos: Annotated[Path | None, typer.Option(help="Where the videos are, when not below --data.")] = None,
    skip_broken: Annotated[bool, typer.Option(help="Leave broken annotations out, counted.")] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...; default: cuda if there is one.")] = "",
    method: Method = "",
    proposals: Proposals = "",
    proposals_file: ProposalsFile = "",
    phrase: Phrases = None,
    quality: Quality = False,
    preset: Preset = "",
    settings: Settings = None,
    provider_settings: ProviderSettings = None,
    cache: Cache = "",
    max_frame_tokens: MaxFrameTokens = 0,
) -> None:
    """Score a model; prints a table, writes predictions.jsonl and metrics.json; a second call resumes."""
    from tubelet.datasets import DATASETS
    from tubelet.grounder import default_model

    model = model or default_model(method)
    options = options_of(
        proposals, proposals_file, phrase, quality, preset, settings, provider_settings, cache,
        max_frame_tokens=max_frame_tokens,
    )  # fmt: skip

    def load() -> Grounder:
        grounder: Grounder = load_grounder(model, method, options, device)
        return grounder

    if benchmark == "world" and data is None:
        unused: dict[str, object] = {
            "--protocol": protocol,
            "--videos": videos,
            "--skip-broken": skip_broken,
            "--shard": shard != "1/1",
            "--limit": limit,
            "--split": split,
        }
        if any(unused.values()):
            raise QueryError(
                f"{', '.join(name for name, value in unused.items() if value)}: not for the toy world, which makes "
                "its own test videos (--n and --seed say which); leave it out, or give --data"
            )
        _evaluate_world(load(), model, out, n, seed, task or "stvg", span_reader, untrained)
        return
    if benchmark not in DATASETS:
        raise QueryError(f"unknown benchmark {benchmark!r}; there are: {', '.join(sorted(DATASETS))}")
    if data is None:
        raise QueryError(
            f"say where the files of {benchmark} are: --data DIR (tubelet data check {benchmark} DIR tells what "
            "is needed)"
        )
    from tubelet.benchmarks.run import Progress, eval_benchmark, render_scores

    make_folder(out)
    with progress("evaluating") as step:

        def told(now: Progress) -> None:
            step(now.done, now.total, now.queries_per_s)

        scores, problems = eval_benchmark(
            benchmark,
            load,
            data,
            out,
            split=split or None,
            task=task or None,
            limit=limit or None,
            shard=shard,
            span_reader=span_reader or None,
            protocol=protocol or None,
            seed=seed,
            videos=videos,
            skip_broken=skip_broken,
            progress=told,
        )
    typer.echo(render_scores(scores))
    if problems.count:
        typer.echo(f"{problems.count} broken annotations were left out", err=True)
    if problems.count or any(part.n_failed for part in scores.parts.values()):
        raise SystemExit(1)


def merge(
    folders: Annotated[list[Path], typer.Argument(help="The shards' run folders.")],
    out: Annotated[Path, typer.Option(help="Folder of the whole run.")],
    protocol: Annotated[str, typer.Option(help="Named protocol.")] = "",
) -> None:
    """Put the shards of a run together; equal to the run that was not divided."""
    from tubelet.benchmarks.run import render_scores
    from tubelet.benchmarks.run_shards import merge_shards

    typer.echo(render_scores(merge_shards(folders, out, protocol or None)))


def _evaluate_world(
    grounder: Grounder,
    model: str,
    out: Path,
    n: int,
    seed: int,
    task: str,
    span_reader: str,
    untrained: bool,
) -> None:
    from tubelet.benchmarks.world import evaluate_world
    from tubelet.benchmarks.world_qa import evaluate_world_qa

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
