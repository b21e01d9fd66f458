"""The command line: thin typed functions over the library.

Data goes to stdout, everything else to stderr; progress bars appear on a terminal only; the exit code is 0
when everything worked, 1 when something failed, 2 for a wrong call, 130 after Ctrl-C.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from tubelet.errors import OutputError, QueryError, TubeletError

app = typer.Typer(
    name="tubelet",
    help="Find when and where: a video and a sentence go in, a tube (time span + boxes) comes out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
world_app = typer.Typer(help="The toy world: videos with exact truth.", no_args_is_help=True)
app.add_typer(world_app, name="world")


def main() -> None:
    """Entry point: run a command; every expected error is one sentence on stderr."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    try:
        app(standalone_mode=True)
    except TubeletError as error:
        _fail(str(error))
    except SystemExit as stop:
        if stop.code == 130:  # typer turns Ctrl-C into this code without a word
            typer.echo("tubelet: interrupted", err=True)
        raise
    except BrokenPipeError:  # the reader of our stdout has gone (for example `| head`)
        sys.stderr.close()
        raise SystemExit(1) from None


def _fail(message: str, code: int = 1) -> None:
    typer.echo(f"tubelet: {message}", err=True)
    raise SystemExit(code)


def _version(value: bool) -> None:
    if value:
        from tubelet import __version__

        typer.echo(__version__)
        raise typer.Exit()


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options before the command."""


@app.command()
def ground(
    video: Annotated[Path, typer.Argument(help="A video or image file.")],
    sentences: Annotated[
        list[str], typer.Argument(help="What to look for; several sentences are asked at once.")
    ],
    model: Annotated[
        str, typer.Option("--model", "-m", help="Embedded name, folder or hub id.")
    ] = "spacevllm-pico",
    task: Annotated[str, typer.Option(help="stvg, svg, tvg or rec; default: stvg, rec for an image.")] = "",
    span: Annotated[str, typer.Option(help="For svg: START-END in seconds, for example 1.5-4.")] = "",
    span_reader: Annotated[str, typer.Option(help="text, activity or both; default: the model's own.")] = "",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the predictions as JSON.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write an annotated video (or picture, for an image).")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Write a timeline picture (png or svg).")] = None,
    sheet: Annotated[Path | None, typer.Option(help="Write a contact sheet of the sampled frames.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...; default: cuda if there is one.")] = "",
) -> None:
    """When and where is it? One line per sentence on stdout."""
    from tubelet.tube import Span
    from tubelet.video import open_video

    _check_outputs([json_file, out, plot, sheet])
    opened = open_video(video)  # fails fast, before a model is loaded
    given = _parse_span(span) if span else None
    for sentence in sentences:
        if not sentence.strip():
            raise QueryError(
                "the sentence is empty: say what to look for, for example 'the red circle that spins'"
            )
    from tubelet.grounder import load

    grounder = load(model, device or None)
    state = grounder.encode(opened)
    predictions = grounder.ground_many(
        state, sentences, task or None, given if isinstance(given, Span) else None, span_reader or None
    )
    for note in dict.fromkeys(note for p in predictions for note in p.notes):
        typer.echo(f"note: {note}", err=True)
    for prediction in predictions:
        typer.echo(describe(prediction))
    if json_file is not None:
        text = json.dumps([p.to_dict() for p in predictions], ensure_ascii=False, indent=1) + "\n"
        _write_text(json_file, text)
    if out is not None or plot is not None or sheet is not None:
        _pictures(opened, predictions, out, plot, sheet)
    if any(p.failure for p in predictions):
        raise SystemExit(1)


def describe(prediction: Any) -> str:
    """One line: sentence, span, first and last box, confidence; or why there is none."""
    head = f"{prediction.query}: "
    sure = "" if prediction.confidence is None else f" (confidence {prediction.confidence:.2f})"
    if prediction.failure:
        return f"{head}failed: {prediction.failure}"
    tube = prediction.tube
    if tube is None:
        return f"{head}not in this video{sure}"
    line = f"{head}{tube.span.start_s:.2f}-{tube.span.end_s:.2f} s{sure}"
    if len(tube):
        corners = [" ".join(f"{v:.3f}" for v in tube.boxes_xyxy[k]) for k in (0, -1)]
        line += f", box {corners[0]}" + (f" -> {corners[1]}" if len(tube) > 1 else "")
    return line


def _pictures(
    video: Any, predictions: list[Any], out: Path | None, plot: Path | None, sheet: Path | None
) -> None:
    from tubelet.view import write_contact_sheet, write_overlay, write_timeline

    if plot is not None:
        write_timeline(predictions, plot, duration_s=video.duration_s)
        typer.echo(f"timeline: {plot}", err=True)
    if sheet is not None:
        from tubelet.video import read_clip, sample_uniform

        clip = read_clip(video, sample_uniform(video, 16), size=_fit(video.width, video.height, 480))
        write_contact_sheet(clip, predictions, sheet)
        typer.echo(f"contact sheet: {sheet}", err=True)
    if out is not None:
        with _progress("drawing") as step:
            write_overlay(video, predictions, out, progress=step)
        typer.echo(f"annotated: {out}", err=True)


def _fit(width: int, height: int, longest: int) -> tuple[int, int]:
    scale = min(1.0, longest / max(width, height))
    return max(2, round(width * scale)), max(2, round(height * scale))


@app.command()
def ask(
    video: Annotated[Path, typer.Argument(help="A video or image file.")],
    question: Annotated[str, typer.Argument(help="A question in words.")],
    model: Annotated[str, typer.Option("--model", "-m")] = "spacevllm-pico",
) -> None:
    """Ask a question and print the answer in words."""
    from tubelet.grounder import load
    from tubelet.video import open_video

    opened = open_video(video)
    typer.echo(load(model).ask(opened, question))


@app.command()
def info(video: Annotated[Path, typer.Argument(help="A video or image file.")]) -> None:
    """What a file holds: size, exact duration and rate, frames, rotation, as JSON."""
    from tubelet.video import open_video

    typer.echo(json.dumps(open_video(video).to_dict(), indent=1, default=str))


@app.command()
def models() -> None:
    """List the models that are shipped inside the package."""
    from tubelet.grounder import DEFAULT_MODEL, embedded_models

    found = embedded_models()
    if not found:
        raise TubeletError("this installation ships no model: reinstall tubelet, or give a folder or hub id")
    for entry in found:
        mark = "  (default)" if entry.name == DEFAULT_MODEL else ""
        typer.echo(
            f"{entry.name:18} {entry.byte_size / 1e6:4.1f} MB  {entry.kind}; knows {entry.domain}{mark}"
        )


@app.command("eval")
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
    _make_folder(out)
    random_weights = getattr(grounder, "untrained", None)  # methods without training have none
    with _progress("evaluating") as step:
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


@app.command()
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

    from tubelet.spacevllm.train import make_job
    from tubelet.training.loop import train as run
    from tubelet.training.recipe import load_recipe

    logging.getLogger("tubelet").setLevel(logging.INFO)
    if threads:
        torch.set_num_threads(threads)
    loaded = load_recipe(recipe, settings or [])
    with _training_bar(sum(stage.steps for stage in loaded.stages)) as step:
        progress = run(loaded, make_job(loaded), resume, step)
    typer.echo(
        f"{loaded.folder / 'model'}: {progress.total_steps} steps, {progress.questions} questions, "
        f"{progress.seconds / 60:.1f} minutes"
    )


@world_app.command("make")
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

    with _progress("drawing") as step:
        path = make_world(
            folder, n, seed, split, tuple(task.split(",")), questions, height, fps, progress=step
        )
    typer.echo(str(path))


@app.command()
def demo(
    folder: Annotated[Path, typer.Option("--out", help="Where to write the demo.")] = Path("demo"),
    model: Annotated[str, typer.Option("--model", "-m")] = "spacevllm-pico",
) -> None:
    """Make an example video, ground sentences in it, and write an annotated mp4, a timeline and JSON."""
    from tubelet.demo import run_demo

    _make_folder(folder)
    with _progress("drawing") as step:
        result = run_demo(folder, model, step)
    for prediction in result.predictions:
        typer.echo(describe(prediction))
    typer.echo("")
    for what, path in result.files.items():
        typer.echo(f"{what:16} {path}")


# --- small helpers -------------------------------------------------------------------------------


def _parse_span(text: str) -> Any:
    from tubelet.errors import DataError
    from tubelet.tube import Span

    start, _, end = text.partition("-")
    try:
        return Span(float(start), float(end))
    except (ValueError, DataError) as error:
        raise QueryError(f"--span is START-END in seconds, for example 1.5-4; got {text!r}") from error


def _check_outputs(paths: list[Path | None]) -> None:
    """Unwritable targets are an error before work is done, not after."""
    for path in paths:
        if path is None:
            continue
        if path.is_dir():
            raise OutputError(f"{path} is a folder; give a file name")
        if not path.parent.is_dir():
            raise OutputError(f"cannot write {path}: the folder {path.parent} does not exist")


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {folder}: {error.strerror or error}") from error


def _write_text(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.part")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


@contextmanager
def _training_bar(total: int) -> Iterator[Callable[[Any, dict[str, float]], None] | None]:
    """Steps, loss and pairs (video, sentence) per second; on a terminal only, else the log lines tell."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    logging.getLogger("tubelet").setLevel(logging.WARNING)
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=total)

        def step(progress: Any, numbers: dict[str, float]) -> None:
            rate = progress.questions / max(progress.seconds, 1e-9)
            text = f"loss {numbers['loss']:.3f}  {rate:.0f} pairs/s"
            bar.update(task, completed=progress.total_steps, description=text)

        yield step


@contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on stderr when that is a terminal; silence otherwise."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
