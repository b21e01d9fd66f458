"""The report as markdown, for commit messages, wikis and terminals: the same numbers as the page, no pictures.

Text from data is escaped, so that it stays in its cell and is no markup.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from tubelet.benchmarks.report.contents import Contents, Rows, TaskReport, number, signed, verdict
from tubelet.metrics.bootstrap import Interval

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~$&!])")


def markdown_page(contents: Contents) -> str:
    """The whole report; ends with a line end."""
    out = [f"# {plain(contents.title)}", "", plain(contents.subtitle), ""]
    out += [f"- left out: {plain(problem)}" for problem in contents.problems]
    for task in contents.tasks:
        out += _task(task, contents.names)
    out += ["## Run cards", ""]
    rows = [[field, *(v or "–" for v in values)] for field, values in contents.cards.items()]
    out += table(["field", *contents.names], rows)
    out += [
        "[low, high]: 95 % interval. Every query counts, a failed one as 0. Differences are paired. "
        "Pictures are in report.html.",
        "",
    ]
    return "\n".join(out).encode("utf-8", "replace").decode("utf-8")


def plain(value: object) -> str:
    """Any text as markdown that shows it: on one line, nothing in it is markup."""
    return _SPECIAL.sub(r"\\\1", " ".join(str(value).split()))


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """A table whose cells are text; empty without rows."""
    if not rows:
        return []
    lines = [head, ["---"] * len(head)]
    out = ["| " + " | ".join(plain(c) for c in lines[0]) + " |", "|" + "---|" * len(head)]
    out += ["| " + " | ".join(plain(c) for c in row) + " |" for row in rows]
    return [*out, ""]


def _task(task: TaskReport, names: Sequence[str]) -> list[str]:
    part = task.parts[0]
    under = f", protocol {task.protocol}" if task.protocol else ""
    hidden = f", {part.n_hidden} without public truth" if part.n_hidden else ""
    failed = " / ".join(str(p.n_failed) for p in task.parts)
    out = [f"## Task {task.task}", "", f"{part.n} queries, {failed} failed{hidden}{plain(under)}.", ""]
    out += [f"- {plain(note)}" for note in dict.fromkeys(n for p in task.parts for n in p.notes)]
    out += [""] if out[-1] else []
    rows = []
    for name in task.metric_names:
        cells = [number(p.metrics.get(name)) for p in task.parts]
        rows.append([name, *cells, *(number(m.get(name)) for m in task.baselines.values())])
    out += table(["metric", *names, *(f"baseline {b}" for b in task.baselines)], rows)
    if any(task.differences):
        out += [f"### Paired differences to {plain(names[0])}", ""]
        values = dict.fromkeys(name for found in task.differences for name in found)
        out += table(
            ["value", *names[1:]],
            [[name, *(_difference(found.get(name)) for found in task.differences)] for name in values],
        )
    for rows_of in task.rows:
        out += _breakdown(rows_of, task, names)
    out += _rejection(task, names) + _confidence(task, names) + _cases(task, names) + _failures(task, names)
    return out


def _difference(value: Interval | None) -> str:
    if value is None:
        return "–"
    said = verdict(value)
    return signed(value) + (f" {said}" if said else "")


def _breakdown(rows: Rows, task: TaskReport, names: Sequence[str]) -> list[str]:
    several = bool(rows.differences)
    what = f"{task.headline}. " if several else ""
    out = [f"### {plain(rows.breakdown.title)}", "", f"{plain(what + rows.breakdown.what)}", ""]
    body = [
        [
            label,
            len(ids),
            *(number(means.get(label)) for means in rows.means),
            *(_difference(found.get(label)) for found in rows.differences),
        ]
        for label, ids in rows.breakdown.groups.items()
    ]
    extra = [f"{name} - {names[0]}" for name in names[1:]] if several else []
    return out + table(["group", "n", *rows.columns, *extra], body)


def _rejection(task: TaskReport, names: Sequence[str]) -> list[str]:
    found = [
        (name, r, p) for name, r, p in zip(names, task.rejections, task.parts, strict=True) if r is not None
    ]
    if not found:
        return []
    rows = [
        ["present and found", *(f"{r.found.k} of {r.found.n}: {r.found.interval}" for _, r, _ in found)],
        [
            "absent and rejected",
            *(f"{r.rejected.k} of {r.rejected.n}: {r.rejected.interval}" for _, r, _ in found),
        ],
        ["balanced accuracy", *(number(p.metrics.get("rejection_balanced_accuracy")) for _, _, p in found)],
        ["AUROC of the confidence", *(number(r.auroc) for _, r, _ in found)],
        ["failed: present, absent", *(f"{r.failed_present}, {r.failed_absent}" for _, r, _ in found)],
    ]
    return ["### Rejection", "", *table(["", *(name for name, _, _ in found)], rows)]


def _confidence(task: TaskReport, names: Sequence[str]) -> list[str]:
    rows = [
        [name, c.title, c.claim, f"{c.ece:.3f}", f"{c.n} of {c.n_asked}", f"{c.base_rate:.3f}"]
        for name, found in zip(names, task.calibrations, strict=True)
        for c in found
    ]
    if not rows:
        return []
    return [
        "### Confidence",
        "",
        *table(["run", "question", "compares", "ECE", "queries", "share true"], rows),
    ]


def _cases(task: TaskReport, names: Sequence[str]) -> list[str]:
    out: list[str] = []
    for group in task.cases:
        out += [f"### {plain(group.title)}", "", plain(group.what), ""]
        rows = [
            [
                c.id,
                c.query,
                c.truth,
                *(
                    answer + ("" if value is None or value != value else f"; {task.headline} {value:.3f}")
                    for answer, value in zip(c.answers, c.values, strict=True)
                ),
            ]
            for c in group.cases
        ]
        out += table(["id", "query", "truth", *names], rows)
    return out


def _failures(task: TaskReport, names: Sequence[str]) -> list[str]:
    rows = [
        [name, len(ids), reason, ", ".join(ids[:3]) + (", …" if len(ids) > 3 else "")]
        for name, reasons in zip(names, task.reasons, strict=True)
        for reason, ids in list(reasons.items())[:20]
    ]
    return ["### Failures", "", *table(["run", "queries", "reason", "for example"], rows)] if rows else []
