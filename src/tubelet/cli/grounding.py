"""Commands that look at a video: ground, ask, info, models, demo."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from tubelet.cli.common import check_kind, check_outputs, make_folder, progress, write_text
from tubelet.cli.zeroshot_options import (
    Cache,
    EndpointModel,
    EndpointUrl,
    MaxFrameTokens,
    Method,
    Phrases,
    Preset,
    Proposals,
    ProposalsFile,
    ProviderSettings,
    Quality,
    Settings,
    Split,
    load_grounder,
    options_of,
    what_answered,
)
from tubelet.errors import OutputError, QueryError, TubeletError


def ground(
    video: Annotated[Path, typer.Argument(help="A video or image file.")],
    sentences: Annotated[
        list[str] | None,
        typer.Argument(help="What to look for; several are asked at once. elc, tr, reg and dgc need none."),
    ] = None,
    model: Annotated[
        str,
        typer.Option(
            "--model",
            "-m",
            help="Embedded name, folder or hub id; default: spacevllm-pico, for zero-shot pico-base.",
        ),
    ] = "",
    task: Annotated[
        str,
        typer.Option(
            help="stvg, svg, tvg or rec (a LLaVA-ST also: elc, tr, reg, dgc); default: stvg, rec for an image."
        ),
    ] = "",
    span: Annotated[
        str, typer.Option(help="For svg, tr, and elc (its start): START-END in seconds, for example 1.5-4.")
    ] = "",
    box: Annotated[
        str,
        typer.Option(help="For reg and elc: x0,y0,x1,y1 as fractions of the frame, for example .1,.2,.4,.6."),
    ] = "",
    span_reader: Annotated[str, typer.Option(help="text, activity or both; default: the model's own.")] = "",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the predictions as JSON.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write an annotated video (or picture, for an image).")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Write a timeline picture (png or svg).")] = None,
    sheet: Annotated[Path | None, typer.Option(help="Write a contact sheet of the sampled frames.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...; default: cuda if there is one.")] = "",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16; default: by the device.")] = "",
    method: Method = "",
    proposals: Proposals = "",
    proposals_file: ProposalsFile = "",
    phrase: Phrases = None,
    quality: Quality = False,
    preset: Preset = "",
    settings: Settings = None,
    provider_settings: ProviderSettings = None,
    cache: Cache = "",
    split: Split = "",
    endpoint: EndpointUrl = "",
    endpoint_model: EndpointModel = "",
    max_frame_tokens: MaxFrameTokens = 0,
) -> None:
    """When and where is it? One line per sentence on stdout."""
    from tubelet.tube import Span
    from tubelet.video import open_video

    check_outputs([json_file, out, plot, sheet])
    opened = open_video(video)  # fails fast, before a model is loaded
    _check_pictures(opened, [json_file, out, plot, sheet], out, plot, sheet)
    given = _parse_span(span) if span else None
    extra = {"box_xyxy": _parse_box(box)} if box else {}
    wordless = task in ("elc", "tr", "reg", "dgc")
    sentences = sentences or ([""] if wordless else [])
    if not sentences:
        raise QueryError("say what to look for, for example 'the red circle that spins'")
    for sentence in sentences:
        _check_text(sentence)
        if not sentence.strip() and not wordless:
            raise QueryError(
                "the sentence is empty: say what to look for, for example 'the red circle that spins'"
            )
    options = options_of(
        proposals, proposals_file, phrase, quality, preset, settings, provider_settings, cache, split,
        endpoint, endpoint_model, max_frame_tokens,
    )  # fmt: skip
    grounder = load_grounder(model, method, options, device, dtype)
    if extra and "elc" not in getattr(grounder, "tasks", ()):
        raise QueryError(f"{grounder.name} takes no box: --box is for the tasks reg and elc of a LLaVA-ST")
    state = grounder.encode(opened)
    between = given if isinstance(given, Span) else None
    predictions = grounder.ground_many(state, sentences, task or None, between, span_reader or None, **extra)
    if what := what_answered(grounder, predictions):
        typer.echo(what, err=True)
    _tell(note for p in predictions for note in p.notes)
    for prediction in predictions:
        typer.echo(describe(prediction))
    if json_file is not None:
        text = json.dumps([p.to_dict() for p in predictions], ensure_ascii=False, indent=1) + "\n"
        write_text(json_file, text)
    if out is not None or plot is not None or sheet is not None:
        _pictures(opened, predictions, out, plot, sheet)
    if any(p.failure for p in predictions):
        raise SystemExit(1)


def _check_pictures(
    video: Any, targets: list[Path | None], out: Path | None, plot: Path | None, sheet: Path | None
) -> None:
    """Names that do not fit what is written to them, and the video itself, are errors before work is done."""
    for target in targets:
        if target is not None and target.exists() and target.samefile(video.path):
            raise OutputError(f"{target} is the video that is read: give the output another name")
    if out is not None or plot is not None or sheet is not None:
        from tubelet.video.write import SUFFIXES
        from tubelet.view.overlay import IMAGE_SUFFIXES

        if video.is_image:
            check_kind(out, IMAGE_SUFFIXES, "an annotated picture")
        else:
            check_kind(out, SUFFIXES, "an annotated video")
        check_kind(plot, (".png", ".svg"), "a timeline")
        check_kind(sheet, IMAGE_SUFFIXES, "a contact sheet")


def _tell(notes: Iterable[str]) -> None:
    """What a user should know about the answers, each thing once, on stderr."""
    for note in dict.fromkeys(notes):
        typer.echo(f"note: {note}", err=True)


def _check_text(text: str) -> None:
    """A shell hands over any bytes; no tokenizer takes those that are no text."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise QueryError(
            f"character {error.start + 1} of the sentence is no text (it is not UTF-8): type or paste it again"
        ) from error


def _parse_box(text: str) -> tuple[float, float, float, float]:
    try:
        x0, y0, x1, y1 = (float(part) for part in text.split(","))
    except ValueError:
        raise QueryError(
            f"--box is x0,y0,x1,y1 as fractions of the frame, for example .1,.2,.4,.6; got {text!r}"
        ) from None
    return x0, y0, x1, y1


def _cut(text: str, most: int = 120) -> str:
    """What is wrong with a very long sentence must not stand behind all of it."""
    return text if len(text) <= most else f"{text[: most - 1].rstrip()}…"


def describe(prediction: Any) -> str:
    """One line: sentence, span, first and last box, confidence; or why there is none."""
    asked = prediction.query or prediction.task  # elc, tr, reg and dgc may be asked without words
    head = f"{asked}: "
    sure = "" if prediction.confidence is None else f" (confidence {prediction.confidence:.2f})"
    if prediction.failure:
        return f"{_cut(asked)}: failed: {prediction.failure}"
    tube = prediction.tube
    if tube is None:
        return f"{head}not in this video{sure}"
    if tube.label and tube.label != prediction.query:  # the answer is a text: elc, tr, reg, dgc
        head = f"{tube.label}: "
    line = f"{head}{tube.span.start_s:.2f}-{tube.span.end_s:.2f} s{sure}"
    if len(tube):
        corners = [" ".join(f"{v:.3f}" for v in tube.boxes_xyxy[k]) for k in (0, -1)]
        line += f", box {corners[0]}" + (f" -> {corners[1]}" if len(tube) > 1 else "")
    return line


def _pictures(
    video: Any, predictions: list[Any], out: Path | None, plot: Path | None, sheet: Path | None
) -> None:
    from tubelet.view import write_contact_sheet, write_overlay, write_timeline
    from tubelet.view.letters import lacking

    squares = lacking(" ".join(prediction.query for prediction in predictions))
    if squares:
        _tell(
            [
                f"no font at hand has {squares[:30]}: install one that does, for example Noto; now they are squares"
            ]
        )
    if plot is not None:
        write_timeline(predictions, plot, duration_s=video.duration_s)
        typer.echo(f"timeline: {plot}", err=True)
    if sheet is not None:
        from tubelet.video import read_clip

        clip = read_clip(video, _sheet_frames(video, predictions), size=_fit(video.width, video.height, 480))
        write_contact_sheet(clip, predictions, sheet)
        typer.echo(f"contact sheet: {sheet}", err=True)
    if out is not None:
        with progress("drawing") as step:
            write_overlay(video, predictions, out, progress=step)
        typer.echo(f"annotated: {out}", err=True)


def _sheet_frames(video: Any, predictions: list[Any]) -> Any:
    """16 frames, evenly spread, and one more for each tube that none of them shows."""
    from tubelet.video import sample_at, sample_indices, sample_uniform

    grid = sample_uniform(video, 16)
    spans = [tube.span for prediction in predictions for tube in prediction.tubes]
    missed = [(s.start_s + s.end_s) / 2 for s in spans if not s.contains(grid.times_s).any()]
    if not missed:
        return grid
    more = sample_at(video, [min(moment, video.duration_s) for moment in missed])
    return sample_indices(video, [*grid.frame_index, *more.frame_index])


def _fit(width: int, height: int, longest: int) -> tuple[int, int]:
    scale = min(1.0, longest / max(width, height))
    return max(2, round(width * scale)), max(2, round(height * scale))


def ask(
    video: Annotated[Path, typer.Argument(help="A video or image file.")],
    question: Annotated[str, typer.Argument(help="A question in words.")],
    model: Annotated[str, typer.Option("--model", "-m")] = "pico-base",
) -> None:
    """Ask a question and print the answer in words."""
    from tubelet.grounder import load
    from tubelet.video import open_video

    opened = open_video(video)
    _check_text(question)
    if not question.strip():
        raise QueryError("the question is empty: ask something about the video")
    grounder = load(model)
    state = grounder.encode(opened)
    answer = grounder.ask(state, question)
    _tell(getattr(state, "notes", ()))
    typer.echo(answer)


def info(video: Annotated[Path, typer.Argument(help="A video or image file.")]) -> None:
    """What a file holds: size, exact duration and rate, frames, rotation, as JSON."""
    from tubelet.video import open_video

    typer.echo(json.dumps(open_video(video).to_dict(), indent=1, default=str))


def models() -> None:
    """List the models that are shipped inside the package."""
    from tubelet.grounder import DEFAULT_MODEL, embedded_models

    found = embedded_models()
    if not found:
        raise TubeletError("this installation ships no model: reinstall tubelet, or give a folder or hub id")
    for entry in sorted(found, key=lambda e: e.name != DEFAULT_MODEL):
        mark = "  (default)" if entry.name == DEFAULT_MODEL else ""
        typer.echo(
            f"{entry.name:18} {entry.byte_size / 1e6:4.1f} MB  {entry.kind}; knows {entry.domain}{mark}"
        )


def demo(
    folder: Annotated[Path, typer.Option("--out", help="Where to write the demo.")] = Path("demo"),
    model: Annotated[str, typer.Option("--model", "-m")] = "spacevllm-pico",
) -> None:
    """Make an example video, ground sentences in it, and write an annotated mp4, a timeline and JSON."""
    from tubelet.demo import run_demo

    make_folder(folder)
    with progress("drawing") as step:
        result = run_demo(folder, model, step)
    for prediction in result.predictions:
        typer.echo(describe(prediction))
    typer.echo("")
    for what, path in result.files.items():
        typer.echo(f"{what:16} {path}")


def _parse_span(text: str) -> Any:
    from tubelet.errors import DataError
    from tubelet.tube import Span

    start, _, end = text.partition("-")
    try:
        return Span(float(start), float(end))
    except (ValueError, DataError) as error:
        raise QueryError(f"--span is START-END in seconds, for example 1.5-4; got {text!r}") from error
