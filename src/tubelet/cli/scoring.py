"""Commands that score files again: score."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tubelet.cli.common import check_outputs, write_text


def score(
    file: Annotated[Path, typer.Argument(help="Predictions, ours or other people's.")],
    format: Annotated[
        str,
        typer.Option(
            "--format",
            "-f",
            help="tubelet, vue_stg, moment_detr, llavast, stvg_r1, qwen or doro; default: told from the file.",
        ),
    ] = "",
    protocol: Annotated[
        list[str] | None,
        typer.Option("--protocol", "-p", help="A column of the table; may be given several times."),
    ] = None,
    benchmark: Annotated[
        str,
        typer.Option(
            help="Dataset with the truth (`tubelet data list`); doro, llavast, stvg_r1 files can carry it."
        ),
    ] = "",
    data: Annotated[
        Path | None, typer.Option(help="Folder of the dataset's files; no videos needed.")
    ] = None,
    split: Annotated[str, typer.Option(help="Split; default: the one with public truth.")] = "",
    task: Annotated[str, typer.Option(help="stvg, svg or tvg, where the data has several.")] = "",
    boxes: Annotated[
        str, typer.Option(help="Unit of boxes: fraction, 1000, pixel or pixel:WIDTHxHEIGHT.")
    ] = "",
    times: Annotated[
        str, typer.Option(help="Unit of times: second, fraction, frame, frame:RATE or uniform:NUMBER.")
    ] = "",
    fps: Annotated[float, typer.Option(help="Frame rate, where neither file nor data says.", min=0.0)] = 0.0,
    json_out: Annotated[Path | None, typer.Option("--json", help="Also write everything as JSON.")] = None,
    keep_going: Annotated[
        bool, typer.Option(help="Leave out broken, repeated and unknown records, counted.")
    ] = False,
) -> None:
    """Score a prediction file under one or several protocols; one table, one column per protocol."""
    import json

    from tubelet.scoring import render, score_file
    from tubelet.scoring.score import to_dict

    check_outputs([json_out])
    scores = score_file(
        file,
        format or None,
        protocol or (),
        benchmark=benchmark or None,
        data=data,
        split=split or None,
        task=task or None,
        boxes=boxes or None,
        times=times or None,
        fps=fps or None,
        keep_going=keep_going,
    )
    typer.echo(render(scores))
    if json_out is not None:
        write_text(json_out, json.dumps(to_dict(scores), ensure_ascii=False, indent=1) + "\n")
    if scores.left_out:
        raise SystemExit(1)
