"""Commands over many videos: batch."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tubelet.cli.zeroshot_options import (
    Cache,
    EndpointModel,
    EndpointUrl,
    MaxFrameTokens,
    Phrases,
    Preset,
    Proposals,
    ProposalsFile,
    ProviderSettings,
    Quality,
    Split,
)

if TYPE_CHECKING:
    from tubelet.scale.job import JobProgress

_TELL_EVERY_S = 30.0


def batch(
    pairs: Annotated[
        Path, typer.Argument(help='JSON lines: {"video": ..., "sentence": ...}; see docs/batch.md.')
    ],
    out: Annotated[Path, typer.Option(help="Folder for predictions.jsonl, job.json and the ledger.")],
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Embedded name, folder or hub id.")
    ] = None,
    videos: Annotated[
        str | None, typer.Option(help="Folder that relative paths belong to; default: that of the pairs.")
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(help="For pairs without one: stvg, svg, tvg or rec; default: stvg, rec for images."),
    ] = None,
    span_reader: Annotated[
        str | None, typer.Option(help="text, activity or both; default: the model's own.")
    ] = None,
    method: Annotated[str | None, typer.Option(help='"zero-shot": attention over proposals.')] = None,
    proposals: Proposals = "",
    proposals_file: ProposalsFile = "",
    phrase: Phrases = None,
    quality: Quality = False,
    preset: Preset = "",
    provider_settings: ProviderSettings = None,
    cache: Cache = "",
    split: Split = "",
    endpoint: EndpointUrl = "",
    endpoint_model: EndpointModel = "",
    max_frame_tokens: MaxFrameTokens = 0,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...; default: cuda if there is one.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    engine: Annotated[str | None, typer.Option(help="local (default) or ray.")] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes, each with its own model; default: 1.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads of each worker; default: 1.")] = None,
    cpus: Annotated[float | None, typer.Option(help="Ray: CPUs that a worker reserves; default: 1.")] = None,
    gpus: Annotated[
        float | None, typer.Option(help="GPUs that a worker gets for itself; default: 0, all see the same.")
    ] = None,
    order: Annotated[
        str | None,
        typer.Option(help="Of predictions.jsonl: input (default) or video (those of a video together)."),
    ] = None,
    overlays: Annotated[
        str | None, typer.Option(help="video or question: annotated videos, one for each; default: none.")
    ] = None,
    max_tries: Annotated[
        int | None, typer.Option(help="A video that failed so often is set aside; default: 3.")
    ] = None,
    item_timeout_s: Annotated[
        float | None, typer.Option(help="A video that takes longer counts as failed; default: 3600.")
    ] = None,
    lease_s: Annotated[
        float | None,
        typer.Option(help="So does one whose worker gives no sign of life for so long; default: 300."),
    ] = None,
    skip_bad_lines: Annotated[
        bool | None,
        typer.Option(
            "--skip-bad-lines/--no-skip-bad-lines", help="Leave them out, counted, instead of stopping."
        ),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML with these settings; flags go before it.")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="key=value, as in the YAML.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the job that the folder holds.")
    ] = False,
    retry_aside: Annotated[
        bool, typer.Option("--retry-aside", help="With --resume: try videos again that were set aside.")
    ] = False,
) -> None:
    """Ground a file of (video, sentence) pairs; killed at any moment, --resume goes on."""
    from tubelet.config_io import from_dict, to_dict, with_overrides
    from tubelet.scale.grounding import BatchSettings, ground_pairs, load_batch_settings
    from tubelet.scale.grounding_output import PREDICTIONS

    flags = {
        "model": model, "videos": videos, "task": task, "span_reader": span_reader, "method": method,
        "device": device, "dtype": dtype, "engine": engine, "workers": workers, "threads": threads,
        "cpus": cpus, "gpus": gpus, "order": order, "overlays": overlays, "max_tries": max_tries,
        "item_timeout_s": item_timeout_s, "lease_s": lease_s, "skip_bad_lines": skip_bad_lines,
    }  # fmt: skip
    loaded = load_batch_settings(config, settings or [])
    of_zero_shot = {
        "proposals": proposals, "proposals_file": proposals_file, "phrases": phrase, "quality": quality,
        "preset": preset, "provider": with_overrides(loaded.provider, provider_settings or []), "cache": cache,
        "split": split, "endpoint": endpoint, "endpoint_model": endpoint_model,
        "max_frame_tokens": max_frame_tokens,
    }  # fmt: skip
    given = {k: v for k, v in flags.items() if v is not None} | {k: v for k, v in of_zero_shot.items() if v}
    chosen = from_dict(BatchSettings, to_dict(loaded) | given)
    try:
        with _telling() as tell:
            result = ground_pairs(pairs, out, chosen, resume=resume, retry_aside=retry_aside, report=tell)
    except KeyboardInterrupt:
        typer.echo("tubelet: what is done is kept: the same command with --resume goes on", err=True)
        raise SystemExit(130) from None
    for reason, n in list(result.failures.items())[:10]:
        typer.echo(f"{n} failed: {reason}", err=True)
    if result.bad_lines:
        typer.echo(f"{result.bad_lines} bad lines of {pairs} were left out (job.json names them)", err=True)
    typer.echo(
        f"{out / PREDICTIONS}: {result.pairs} pairs of {result.videos} videos, {result.answered} answered "
        f"({result.absent} not in their video), {result.failed} failed"
    )
    if not result.ok:
        raise SystemExit(1)


def words(now: JobProgress) -> str:
    """Progress in a line: videos, rate, time left."""
    aside = f", {now.aside} set aside" if now.aside else ""
    left = "" if now.left_s is None else f", {_clock(now.left_s)} left"
    return f"{now.done + now.aside}/{now.total} videos, {now.items_per_s:.2f}/s{aside}{left}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


@contextmanager
def _telling() -> Iterator[Callable[[JobProgress], None]]:
    """A bar on a terminal, else a line now and then; both on stderr."""
    if not sys.stderr.isatty():
        told_s = time.monotonic()

        def line(now: JobProgress) -> None:
            nonlocal told_s
            if time.monotonic() - told_s >= _TELL_EVERY_S:
                told_s = time.monotonic()
                typer.echo(words(now), err=True)

        yield line
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (BarColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        shown = bar.add_task("starting", total=None)
        yield lambda now: bar.update(
            shown, completed=now.done + now.aside, total=now.total, description=words(now)
        )
