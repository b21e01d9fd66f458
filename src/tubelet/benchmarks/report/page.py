"""The report as one HTML page that needs nothing else: no script, no font, no picture from elsewhere.

`html_page(contents)` -> text. The frame of the page is here: head, titles, results at a glance, run cards. What is
said about a task is in `sections`, its cases are in `page_cases`. Everything from data goes through `markup`, and the
page forbids scripts and loading (Content-Security-Policy) in case a reader of it ever adds any.
"""

from __future__ import annotations

from pathlib import Path

from tubelet import __version__
from tubelet.benchmarks.report.contents import FEW, Contents, TaskReport, number
from tubelet.benchmarks.report.markup import Markup, Node, el, join
from tubelet.benchmarks.report.sections import TASK_NAMES, key, task_section
from tubelet.metrics.bootstrap import Interval

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_TILES = 4


def html_page(contents: Contents) -> str:
    """The whole page, UTF-8 text."""
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        el("meta", name="color-scheme", content="light dark"),
        el("meta", name="generator", content=f"tubelet {__version__}"),
        el("title", f"{contents.title} - tubelet report"),
        el("style", Markup(Path(__file__).with_name("style.css").read_text(encoding="utf-8"))),
    )
    body = el(
        "body",
        el(
            "main",
            _header(contents),
            join(task_section(task, contents.names) for task in contents.tasks),
            _cards(contents),
            _guide(),
            el("footer", f"Made by tubelet {__version__} from the files of the runs alone."),
        ),
    )
    return "<!doctype html>\n" + el("html", head, body, lang="en") + "\n"


def _header(contents: Contents) -> Markup:
    links = [
        el("li", el("a", TASK_NAMES.get(task.task, task.task), href=f"#{task.task}"))
        for task in contents.tasks
    ]
    links += [
        el("li", el("a", "Run cards", href="#cards")),
        el("li", el("a", "How to read this", href="#guide")),
    ]
    several = len(contents.names) > 1
    legend = el(
        "ul",
        *(el("li", key(k), name) for k, name in enumerate(contents.names)),
        klass="legend",
        aria_label="Runs and their colours",
    )
    return el(
        "header",
        el("p", "tubelet report", klass="eyebrow"),
        el("h1", contents.title),
        el("p", contents.subtitle, klass="lead"),
        legend if several else None,
        *(el("p", problem, klass="problem") for problem in contents.problems),
        el("nav", el("ul", *links), aria_label="Contents"),
        None if several or len(contents.tasks) > 1 else _tiles(contents.tasks[0]),
    )


def _tiles(task: TaskReport) -> Markup | None:
    """The first few numbers of a single run, large."""
    part = task.parts[0]
    shown: list[Node] = []
    for name in _at_a_glance(task):
        value = part.metrics[name]
        interval: Node = None
        big = number(value)
        if isinstance(value, Interval) and value.mean == value.mean:
            big = f"{value.mean:.3f}"
            interval = el("dd", f"[{value.low:.3f}, {value.high:.3f}]", klass="ci")
        shown.append(el("div", el("dt", name), el("dd", big, klass="big"), interval, klass="tile"))
    return el("dl", *shown, klass="tiles") if shown else None


def _at_a_glance(task: TaskReport) -> list[str]:
    """The headline first, then the others in their order, rejection among them."""
    names = list(task.parts[0].metrics)
    led = [
        n for n in names if task.headline and n in (f"m_{task.headline}", task.headline, f"m{task.headline}")
    ]
    wanted = [
        *led,
        *(n for n in ("m_tIoU", "mIoU", "rejection_balanced_accuracy", "sIoU_given_span") if n in names),
    ]
    return list(dict.fromkeys([*wanted, *names]))[:_TILES]


def _cards(contents: Contents) -> Markup:
    rows = []
    for field, values in contents.cards.items():
        cells = [el("td", value or "–", klass="wrap") for value in values]
        rows.append(el("tr", el("th", field.replace("_", " "), scope="row"), *cells))
    names = contents.names
    head = el(
        "tr", el("th", "field", scope="col"), *(el("th", key(k), n, scope="col") for k, n in enumerate(names))
    )
    return el(
        "section",
        el("h2", "Run cards", id="cards"),
        el("p", "What was asked of which model on which data.", klass="note"),
        el("div", el("table", el("thead", head), el("tbody", *rows)), klass="wide", tabindex="0", role="region",
           aria_label="Run cards"),
    )  # fmt: skip


def _guide() -> Markup:
    lines = (
        "Every query counts. A failed query, and one without a prediction, scores 0 and is listed with its reason.",
        "[low, high] is the 95 % interval of the mean over queries: percentile bootstrap, queries redrawn.",
        "A difference is paired: the same queries under both runs, the difference is redrawn. Where its interval "
        "does not hold 0 it is called better or worse; among many such comparisons some will be so by chance.",
        f"Groups of fewer than {FEW} queries are grey: intervals of so few are too narrow to lean on.",
        "Intervals of shares (rejection, reliability) are Wilson's. They say nothing about other videos, other "
        "ways to ask, or another training of the same model.",
        "ECE is the gap between mean confidence and the share that was right, in ten bins of equal width, "
        "weighted by their counts.",
        "In pictures the truth is a dashed white box, a prediction is a box in the colour of its run.",
    )
    return el(
        "section",
        el("h2", "How to read this", id="guide"),
        el("ul", *(el("li", line) for line in lines)),
    )
