"""`write_report`: runs in, report.html and report.md out, each written whole or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tubelet.benchmarks.report.contents import make_contents
from tubelet.benchmarks.report.markdown import markdown_page
from tubelet.benchmarks.report.page import html_page
from tubelet.benchmarks.run_folder import write_whole
from tubelet.errors import OutputError

HTML, MARKDOWN = "report.html", "report.md"


def write_report(
    runs: Sequence[Path | str],
    out: Path | str | None = None,
    *,
    data: Path | str | None = None,
    protocol: str | None = None,
    cases: int = 4,
) -> tuple[Path, Path]:
    """Report on one run, or on several that answered the same queries; returns the page and the markdown.

    Args:
        runs: run folders, or RUN/untrained.jsonl of a toy-world run. The first is what the others are compared to.
        out: folder for both files (made where it is not there); None: the first run's folder.
        data: where the videos are, for pictures. protocol: how to score; None: as the runs say. cases: per group.

    Raises DataError for runs that cannot be read or compared, OutputError where nothing can be written.
    """
    folder = Path(out) if out is not None else _home(runs)
    contents = make_contents(runs, data, protocol, cases)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {folder}: {error.strerror or error}") from error
    page, text = folder / HTML, folder / MARKDOWN
    write_whole(page, html_page(contents))
    write_whole(text, markdown_page(contents))
    return page, text


def _home(runs: Sequence[Path | str]) -> Path:
    first = Path(runs[0]) if runs else Path()
    return first.parent if first.is_file() else first
