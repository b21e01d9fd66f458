"""What the page says about one task: scores, differences, spread, breakdowns, rejection, confidence, failures.

`task_section(task, names)` -> markup. Only lays out what `contents.TaskReport` holds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tubelet.benchmarks.report.charts import (
    histogram,
    interval_glyph,
    pair_chart,
    reliability_chart,
    roc_chart,
)
from tubelet.benchmarks.report.contents import FEW, Rows, TaskReport, number, signed, verdict
from tubelet.benchmarks.report.markup import Markup, Node, el, join, sentence
from tubelet.benchmarks.report.page_cases import case_section
from tubelet.benchmarks.run_score import Number
from tubelet.metrics.bootstrap import Interval

N_COLOURS = 7
TASK_NAMES = {
    "stvg": "When and where (stvg)",
    "svg": "Where, with the span given (svg)",
    "tvg": "When (tvg)",
    "rec": "Boxes in images (rec)",
    "elc": "When, and in words (elc)",
    "qa": "Questions (qa)",
}
_REASONS = 20


def key(run: int, klass: str = "") -> Markup:
    """The colour of a run, as a small square."""
    return el("span", klass=f"key r{run % N_COLOURS} {klass}".strip(), aria_hidden="true")


def task_section(task: TaskReport, names: Sequence[str]) -> Markup:
    part = task.parts[0]
    under = f" Protocol {task.protocol}." if task.protocol else ""
    hidden = f" {part.n_hidden} have no public truth and are not scored." if part.n_hidden else ""
    notes = dict.fromkeys(note for p in task.parts for note in p.notes)
    return el(
        "section",
        el("h2", TASK_NAMES.get(task.task, f"Task {task.task}"), id=task.task),
        el("p", f"{part.n} queries.{under}{hidden}", klass="note"),
        *(el("p", note, klass="note") for note in notes),
        _results(task, names),
        _differences(task, names),
        _spread(task, names),
        _breakdowns(task, names),
        _rejection(task, names),
        _confidence(task, names),
        case_section(task, names),
        _failures(task, names),
    )


def table(caption: str, head: Sequence[Node], *bodies: Markup, label: str = "") -> Markup:
    """A table that scrolls sideways on its own where it is too wide."""
    header = [h if isinstance(h, Markup) and h.startswith("<th") else el("th", h, scope="col") for h in head]
    inside = el("table", el("caption", caption) if caption else None, el("thead", el("tr", *header)), *bodies)
    return el("div", inside, klass="wide", tabindex="0", role="region", aria_label=label or caption)


def breakable(name: str) -> Markup:
    """A name that may break after its underscores."""
    nodes: list[Node] = []
    for piece in name.split("_"):
        nodes += [piece, "_", el("wbr")]
    return join(nodes[:-2])


def right(title: str) -> Markup:
    return el("th", title, scope="col", klass="n")


def value_cell(value: Number, low: float, high: float, run: int = 0, glyph: bool = True) -> Markup:
    """A number, its interval, and the same as a glyph."""
    shown, _, interval = number(value).partition(" ")
    drawn: Node = None
    if glyph and isinstance(value, Interval):
        drawn = interval_glyph(value, low, high, run % N_COLOURS)
    return el("td", _numbers(shown, interval), drawn, klass="value")


def _numbers(shown: str, interval: str, klass: str = "num") -> Markup:
    """A mean and its interval, as wide as those above and below."""
    return (
        el("span", shown, " ", el("span", interval, klass="ci"), klass=klass)
        if interval
        else el("span", shown)
    )


def difference_cell(value: Interval | None, reach: float, run: int) -> Markup:
    if value is None:
        return el("td", "–")
    shown, _, interval = signed(value).partition(" ")
    said = verdict(value)
    glyph = interval_glyph(value, -reach, reach, run % N_COLOURS)
    mark = el("span", said, klass=f"verdict {said}") if said else None
    return el("td", _numbers(shown, interval, "num d"), glyph, mark, klass="value")


def _axis_of(values: Sequence[Number]) -> tuple[float, float]:
    """0 to 1, or to what the largest needs."""
    tops = [v.high for v in values if isinstance(v, Interval) and v.high == v.high]
    return 0.0, 1.0 if max(tops, default=0.0) <= 1.0 else max(tops)


def _reach(values: Sequence[Interval]) -> float:
    """Half the width of an axis of differences around 0."""
    return max((max(abs(v.low), abs(v.high)) for v in values if v.low == v.low), default=0.0) * 1.05 or 1.0


def _results(task: TaskReport, names: Sequence[str]) -> Markup:
    if not task.metric_names:
        return el("p", "The answers are kept; this task has no score.", klass="note")
    rows = []
    for name in task.metric_names:
        values = [part.metrics.get(name) for part in task.parts]
        shown = [*values, *(metrics.get(name) for metrics in task.baselines.values())]
        low, high = _axis_of(shown)
        n = next((v.n for v in values if isinstance(v, Interval)), None)
        lead = task.headline is not None and name in (task.headline, f"m_{task.headline}")
        cells: list[Node] = [value_cell(v, low, high, k, len(names) < 3) for k, v in enumerate(values)]
        for metrics in task.baselines.values():
            there = metrics.get(name)
            cells.append(el("td", el("span", number(there), klass="ci"), klass="value"))
        count = el("td", "–" if n is None else n, klass="n")
        rows.append(
            el(
                "tr",
                el("th", name, scope="row", klass="metric"),
                count,
                *cells,
                klass="lead-row" if lead else None,
            )
        )
    head: list[Node] = ["metric", right("n")]
    head += [el("th", key(k), name, scope="col") for k, name in enumerate(names)]
    head += [el("th", f"baseline: {name.replace('_', ' ')}", scope="col") for name in task.baselines]
    caption = "Means over queries with 95 % intervals."
    if task.baselines:
        caption += " Baselines as the run wrote them."
    return join([el("h3", "Scores"), table(caption, head, el("tbody", *rows), label="Scores")])


def _differences(task: TaskReport, names: Sequence[str]) -> Markup | None:
    if not any(task.differences):
        return None
    every = [v for found in task.differences for v in found.values()]
    reach = _reach(every)
    rows = []
    for name in dict.fromkeys(n for found in task.differences for n in found):
        cells = [
            difference_cell(found.get(name), reach, k) for k, found in enumerate(task.differences, start=1)
        ]
        rows.append(el("tr", el("th", name, scope="row"), *cells))
    head: list[Node] = ["per-query value"]
    head += [el("th", key(k), name, scope="col") for k, name in enumerate(names[1:], start=1)]
    return join(
        [
            el("h3", "Paired differences"),
            table(
                f"Each run minus {names[0]}, query by query, with 95 % intervals.",
                head,
                el("tbody", *rows),
                label="Paired differences",
            ),
        ]
    )


def _spread(task: TaskReport, names: Sequence[str]) -> Markup | None:
    """How the headline value is distributed, and run against run; only where it is a number between 0 and 1."""
    if task.headline is None:
        return None
    columns = [part.values.get(task.headline, {}) for part in task.parts]
    values = [v for column in columns for v in column.values() if v == v]
    if len(set(values)) < 3 or min(values) < 0 or max(values) > 1:
        return None
    figures = [
        el(
            "figure",
            histogram(
                [list(c.values()) for c in columns], names, f"Distribution of {task.headline}", task.headline
            ),
            el("figcaption", f"{task.headline} of single queries, in steps of 0.05."),
        )
    ]
    for k in range(1, len(names)):
        both = [q for q in columns[0] if q in columns[k]]
        a, b = [columns[0][q] for q in both], [columns[k][q] for q in both]
        better, worse = (
            sum(op) for op in zip(*((y > x, y < x) for x, y in zip(a, b, strict=True)), strict=True)
        )
        chart = pair_chart(a, b, (names[0], names[k]), f"{task.headline} of the same queries", k % N_COLOURS)
        told = f"Above the diagonal {names[k]} is better: {better} queries; below, worse: {worse}."
        figures.append(el("figure", chart, el("figcaption", told)))
    return join([el("h3", "Spread"), el("div", *figures, klass="charts")])


def _breakdowns(task: TaskReport, names: Sequence[str]) -> Markup | None:
    if not task.rows:
        return None
    several = len(task.parts) > 1
    intro = (
        f"{task.headline} in every group, and each run minus {names[0]} on the same queries."
        if several
        else "Means of per-query values in every group."
    )
    parts: list[Node] = [
        el("h3", "Breakdowns"),
        el("p", f"{intro} n counts the group's queries.", klass="note"),
    ]
    parts += [_breakdown(rows, names) for rows in task.rows]
    return join(parts)


def _breakdown(rows: Rows, names: Sequence[str]) -> Markup:
    several = bool(rows.differences)
    low, high = _axis_of([v for means in rows.means for v in means.values()])
    reach = _reach([v for found in rows.differences for v in found.values()])
    body = []
    for label, ids in rows.breakdown.groups.items():
        cells: list[Node] = [
            value_cell(means.get(label), low, high, glyph=not several) for means in rows.means
        ]
        cells += [
            difference_cell(found.get(label), reach, k) for k, found in enumerate(rows.differences, start=1)
        ]
        row = [el("th", sentence(label), scope="row"), el("td", len(ids), klass="n"), *cells]
        body.append(el("tr", *row, klass="few" if len(ids) < FEW else None))
    head: list[Node] = ["group", right("n")]
    head += [el("th", key(k) if several else None, name, scope="col") for k, name in enumerate(rows.columns)]
    for k, name in enumerate(names[1:], start=1) if several else ():
        head.append(el("th", key(k), "difference" if len(names) == 2 else f"difference, {name}", scope="col"))
    return join(
        [
            el("h4", rows.breakdown.title),
            table(rows.breakdown.what, head, el("tbody", *body), label=rows.breakdown.title),
        ]
    )


def _rejection(task: TaskReport, names: Sequence[str]) -> Markup | None:
    found = [
        (k, name, r) for k, (name, r) in enumerate(zip(names, task.rejections, strict=True)) if r is not None
    ]
    if not found:
        return None
    first = found[0][2]
    rows: list[Markup] = []

    def row(title: str, make: Callable[[int], Node], klass: str | None = None) -> None:
        rows.append(
            el("tr", el("th", title, scope="row"), *(make(k) for k in range(len(found))), klass=klass)
        )

    def share(pick: Callable[[int], Interval]) -> Callable[[int], Node]:
        return lambda k: value_cell(pick(k), 0.0, 1.0, found[k][0])

    row(f"present and found, of {first.found.n}", share(lambda k: found[k][2].found.interval))
    row(f"absent and rejected, of {first.rejected.n}", share(lambda k: found[k][2].rejected.interval))
    for kind in first.absent_kinds:
        row(
            f"— {kind or 'other'}, of {first.absent_kinds[kind].n}",
            share(lambda k, kind=kind: found[k][2].absent_kinds[kind].interval),  # type: ignore[misc]
            "same",
        )
    balanced = [task.parts[k].metrics.get("rejection_balanced_accuracy") for k, _, _ in found]
    if any(v is not None for v in balanced):
        row("balanced accuracy", lambda k: value_cell(balanced[k], 0.0, 1.0, found[k][0]), "lead-row")
    if any(r.auroc is not None for _, _, r in found):
        row("AUROC of the confidence", lambda k: value_cell(found[k][2].auroc, 0.0, 1.0, found[k][0]))
    row(
        "absent, but found (false alarms)",
        lambda k: el("td", found[k][2].rejected.n - found[k][2].rejected.k, klass="value"),
    )
    row(
        "present, but rejected",
        lambda k: el(
            "td", found[k][2].found.n - found[k][2].found.k - found[k][2].failed_present, klass="value"
        ),
    )
    row(
        "failed: present, absent",
        lambda k: el("td", f"{found[k][2].failed_present}, {found[k][2].failed_absent}", klass="value"),
    )
    head: list[Node] = ["", *(el("th", key(k), name, scope="col") for k, name, _ in found)]
    curves = [(k % N_COLOURS, r.roc) for k, _, r in found if r.roc is not None]
    chart: Node = None
    if curves:
        with_curve = [name for _, name, r in found if r.roc is not None]
        told = "Finds over false alarms for every threshold on the confidence; the diagonal is guessing."
        chart = el("figure", roc_chart(curves, with_curve, "ROC of rejection"), el("figcaption", told))
    return join(
        [
            el("h3", "Rejection"),
            el(
                "p",
                "Sentences that are true of nothing in their video: does the run say so? A failed query finds "
                "nothing, so it counts as a rejection; how many did is in the last row.",
                klass="note",
            ),
            el("div", table("", head, el("tbody", *rows), label="Rejection"), chart, klass="charts beside"),
        ]
    )


def _confidence(task: TaskReport, names: Sequence[str]) -> Markup | None:
    figures: list[Node] = []
    for k, (name, found) in enumerate(zip(names, task.calibrations, strict=True)):
        for c in found:
            title = f"{c.title} {name}" if len(names) > 1 else c.title
            asked = f"{c.n} of {c.n_asked} queries" if c.n < c.n_asked else f"{c.n} queries"
            told = f" · {asked}, {c.base_rate:.1%} true. {c.claim[:1].upper()}{c.claim[1:]}."
            figures.append(
                el(
                    "figure",
                    el("h4", key(k) if len(names) > 1 else None, title),
                    reliability_chart(c.bins, f"Reliability: {title}", k % N_COLOURS),
                    el("figcaption", el("strong", f"ECE {c.ece:.3f}"), told),
                )
            )
    if not figures:
        return None
    return join(
        [
            el("h3", "Confidence"),
            el(
                "p",
                "On the diagonal a confidence means what it says; below it the run is too sure. Bars at the "
                "bottom count queries.",
                klass="note",
            ),
            el("div", *figures, klass="charts"),
        ]
    )


def _failures(task: TaskReport, names: Sequence[str]) -> Markup | None:
    rows = []
    for k, reasons in enumerate(task.reasons):
        for reason, ids in list(reasons.items())[:_REASONS]:
            shown = ", ".join(ids[:3]) + (", …" if len(ids) > 3 else "")
            who = [el("td", key(k), names[k])] if len(names) > 1 else []
            rows.append(
                el("tr", *who, el("td", len(ids), klass="n"), el("td", sentence(reason), klass="wrap"),
                   el("td", sentence(shown), klass="wrap"))
            )  # fmt: skip
        if len(reasons) > _REASONS:
            rest = sum(len(ids) for ids in list(reasons.values())[_REASONS:])
            rows.append(el("tr", el("td", f"{names[k]}: {rest} more of other reasons", colspan=4)))
    if not rows:
        return join([el("h3", "Failures"), el("p", "None: every query has an answer.", klass="note")])
    head: list[Node] = [*(["run"] if len(names) > 1 else []), right("queries"), "reason", "for example"]
    caption = "Each counts as 0 in the scores above."
    return join([el("h3", "Failures"), table(caption, head, el("tbody", *rows), label="Failures")])
