"""Cases on the page: the sentence, truth and answers on a common time bar, and frames as data URIs."""

from __future__ import annotations

import base64
from collections.abc import Sequence

from tubelet.benchmarks.report.cases import Case, Frame
from tubelet.benchmarks.report.charts import span_bar
from tubelet.benchmarks.report.contents import TaskReport
from tubelet.benchmarks.report.markup import Markup, Node, el, join, sentence

_N_COLOURS = 7


def case_section(task: TaskReport, names: Sequence[str]) -> Markup | None:
    """All groups of cases of a task; None without any."""
    if not task.cases:
        return None
    parts: list[Node] = [
        el("h3", "Cases"),
        el(
            "ul",
            el("li", el("span", klass="key truth", aria_hidden="true"), "truth (dashed white box)"),
            *(
                el("li", el("span", klass=f"key r{k % _N_COLOURS}", aria_hidden="true"), name)
                for k, name in enumerate(names)
            ),
            klass="legend",
            aria_label="Colours of the cases",
        ),
    ]
    for group in task.cases:
        parts += [el("h4", group.title), el("p", group.what, klass="note")]
        parts += [_case(case, names, task.headline) for case in group.cases]
    return join(parts)


def _case(case: Case, names: Sequence[str], headline: str | None) -> Markup:
    timed = not case.is_image
    lines: list[Node] = _line(
        "truth", None, case.truth, span_bar(case.true_spans, case.duration_s, "truth"), "", timed
    )
    for k, (name, answer, value) in enumerate(zip(names, case.answers, case.values, strict=True)):
        told = "" if value is None or value != value else f"{headline} {value:.3f}"
        bar = span_bar(case.spans[k], case.duration_s, f"r{k % _N_COLOURS}")
        lines += _line(name, k, answer, bar, told, timed)
    if timed:
        axis = el("div", el("span", "0 s"), el("span", f"{case.duration_s:.2f} s"), klass="axis-s")
        lines += [el("span"), el("span"), axis, el("span")]
    frames: Node = None
    if case.frames:
        klass = "frames one" if len(case.frames) == 1 else "frames"
        frames = el("div", *(_frame(f, names, case) for f in case.frames), klass=klass)
    return el(
        "article",
        el("h5", sentence(case.query)),
        el("p", sentence(case.id), " · ", sentence(case.video), klass="id"),
        el("div", *lines, klass="lines"),
        frames,
        el("p", case.missing, klass="note") if case.missing else None,
        klass="case",
    )


def _line(name: str, run: int | None, answer: str, bar: Markup, told: str, timed: bool) -> list[Node]:
    """Four cells: who, what they say, when (a bar), and the score."""
    mark = "key truth" if run is None else f"key r{run % _N_COLOURS}"
    return [
        el("span", el("span", klass=mark, aria_hidden="true"), name, klass="who"),
        el("span", sentence(answer), klass="said"),
        el("span", bar if timed else None, klass="bar"),
        el("span", told, klass="score"),
    ]


def _frame(frame: Frame, names: Sequence[str], case: Case) -> Markup:
    told = [f"{iou:.2f}" for iou in frame.iou if iou is not None]
    caption = ("" if case.is_image else f"{frame.time_s:.2f} s") + (
        f" · IoU {' / '.join(told)}" if told else ""
    )
    data = base64.b64encode(frame.jpeg).decode("ascii")
    marks = [el("i", klass="truth on" if frame.true else "truth")]
    marks += [
        el("i", klass=f"r{k % _N_COLOURS}" + (" on" if on else "")) for k, on in enumerate(frame.predicted)
    ]
    image = el("img", src=f"data:image/jpeg;base64,{data}", alt=_alt(frame, names))
    return el(
        "figure",
        None if case.is_image else el("div", *marks, klass="marks", aria_hidden="true"),
        image,
        el("figcaption", caption) if caption else None,
    )


def _alt(frame: Frame, names: Sequence[str]) -> str:
    """What the picture shows, in words."""
    said = [f"Frame at {frame.time_s:.2f} s", "the truth is shown" if frame.true else "outside the true span"]
    for name, on, iou in zip(names, frame.predicted, frame.iou, strict=True):
        if iou is not None:
            said.append(f"{name}: box with IoU {iou:.2f}")
        else:
            said.append(f"{name}: {'predicted here' if on else 'nothing predicted here'}")
    return "; ".join(said)
