"""The table of a scored file: one row per metric, one column per protocol, and how far the protocols lie apart."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tubelet.metrics.bootstrap import Interval
from tubelet.scoring.answers import KINDS
from tubelet.scoring.score import FileScores

_LISTED = 5
_FINE = re.compile(r"^MR-.*@0\.(55|6|65|8|85|9|95)$|^MR-.*R1@0\.75$|^MR-.*mAP@0\.7$")


def render(scores: FileScores, most_missing: int = _LISTED) -> str:
    """Plain text for a terminal: the table, then every count with its meaning and an example, then notes."""
    columns = list(scores.columns.values())
    every = list(dict.fromkeys(name for c in columns for name in c.metrics))
    names = [name for name in every if not _FINE.search(name)]
    rows = [
        ["", *(c.protocol for c in columns)],
        ["n", *(str(c.n) for c in columns)],
        ["n_failed", *(str(c.n_failed) for c in columns)],
    ]
    rows += [[name, *(_cell(c.metrics.get(name), c.n) for c in columns)] for name in names]
    if len(columns) > 1:
        rows[0].append("apart")
        rows[1].append("")
        rows[2].append("")
        for row, name in zip(rows[3:], names, strict=True):
            means = [c.metrics[name].mean for c in columns if name in c.metrics]
            row.append(f"{max(means) - min(means):.3f}" if len(means) > 1 else "")
    title = (
        f"{scores.file}: format {scores.format}, truth {scores.truth}, task {scores.task}, {scores.n} queries"
    )
    out = [title, "", *_aligned(rows)]
    said = [kind for kind in KINDS if scores.counts[kind]]
    if said:
        out += ["", "counted"]
    for kind in said:
        out.append(f"  {kind}: {scores.counts[kind]} {KINDS[kind]}")
        examples = scores.missing[:most_missing] if kind == "missing" else scores.counts.examples[kind][:1]
        out += [
            f"    {', '.join(examples)}{', ...' if kind == 'missing' and scores.counts[kind] > most_missing else ''}"
        ]
    notes = [*scores.notes, *(f"{c.protocol}: {note}" for c in columns for note in c.notes)]
    out += ["", *(f"note: {note}" for note in notes)] if notes else []
    if len(every) > len(names):
        out += ["", f"{len(every) - len(names)} more metrics, at finer thresholds, are in the JSON"]
    return "\n".join(out)


def _cell(value: Interval | None, n: int) -> str:
    if value is None or value.n == 0:
        return "-"
    if value.low != value.low:
        return f"{value.mean:.3f}"
    star = "" if value.n == n else f" n={value.n}"
    return f"{value}{star}"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    return ["  ".join(text.ljust(w) for text, w in zip(row, widths, strict=True)).rstrip() for row in rows]
