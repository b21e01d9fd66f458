"""Commands that report: report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Run folders; the others are compared to the first, query by query."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for report.html and report.md; default: the first run's."),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder with the videos, for pictures; default: what the run says.")
    ] = None,
    protocol: Annotated[str, typer.Option(help="Named protocol; default: the runs' own.")] = "",
    cases: Annotated[int, typer.Option(help="Cases with pictures per group; 0: none.", min=0)] = 4,
) -> None:
    """Tables, breakdowns, calibration and cases of runs, as one HTML page and as markdown; prints both paths."""
    from tubelet.benchmarks.report.write import write_report

    for path in write_report(runs, out, data=data, protocol=protocol or None, cases=cases):
        typer.echo(str(path))
