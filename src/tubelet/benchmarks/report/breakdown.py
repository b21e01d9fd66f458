"""Queries in groups: by what is true of them (span, box, motion, look-alikes, question type), never by the answers.

    span length, share of the video       seconds of the true span
    box size, motion                      mean area of the true boxes; path of their centre per second
    look-alikes, question type, ...       tags of the records

Runs that are compared share their queries, so they share their groups. What is not known because no run could open
the video is a group of its own: its truth is a stand-in (`run_truth`). Numbers are means of per-query values with
95 % bootstrap intervals; a query that is true of nothing has none and is in `rejection`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from tubelet.benchmarks.report.collect import Scored
from tubelet.benchmarks.run_truth import VideoFacts, image_box, truths_of
from tubelet.datasets.record import Record
from tubelet.errors import DataError
from tubelet.metrics.bootstrap import Interval, bootstrap_table, paired_difference
from tubelet.metrics.truth import Truth

NOT_OPENED = "video not opened"
_MOST_GROUPS = 24
_SPAN_S = (1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 60.0)
_SHARE = (0.1, 0.25, 0.5, 0.75)
_AREA = (0.01, 0.03, 0.1, 0.3)
_SPEED = (0.01, 0.05, 0.15, 0.4)
_LENGTH_S = (5.0, 10.0, 30.0, 60.0, 180.0, 600.0, 1800.0)
_QUESTION_TAGS = ("kind", "qtype", "qsemtype", "task_type", "question_type", "dimension")


@dataclass(frozen=True, slots=True)
class Breakdown:
    """title; what: one sentence; groups: label -> ids, in order."""

    title: str
    what: str
    groups: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Facts:
    """What is true of one query, in numbers; None where it has none or it is not known."""

    span_s: float | None = None
    share: float | None = None
    area: float | None = None
    speed: float | None = None
    video_s: float | None = None
    opened: bool = True


def breakdowns(runs: Sequence[Scored], task: str) -> tuple[Breakdown, ...]:
    """All breakdowns of a task that have at least two groups."""
    records = [r for r in runs[0].run.records if r.task == task and r.present and r.labelled]
    known = {r.id: measure(r, facts_of(runs, r)) for r in records}
    out = [
        _by_number(
            "Span length",
            "Seconds of the true span.",
            {k: f.span_s for k, f in known.items()},
            known,
            _SPAN_S,
            "s",
        ),
        _by_number(
            "Share of the video",
            "True span over the length of the video.",
            {k: f.share for k, f in known.items()},
            known,
            _SHARE,
            "%",
        ),
        _by_number(
            "Box size",
            "Mean area of the true boxes, as a share of the picture.",
            {k: f.area for k, f in known.items()},
            known,
            _AREA,
            "%",
        ),
        _by_number(
            "Motion",
            "Path of the true box's centre, as a share of the picture's diagonal per second.",
            {k: f.speed for k, f in known.items()},
            known,
            _SPEED,
            "%/s",
        ),
        *_by_tags(records),
        _by_number(
            "Video length",
            "Seconds of the video.",
            {k: f.video_s for k, f in known.items()},
            known,
            _LENGTH_S,
            "s",
        ),
    ]
    return tuple(b for b in out if len(b.groups) > 1)


def group_means(values: Mapping[str, float], groups: Mapping[str, Sequence[str]]) -> dict[str, Interval]:
    """The mean of a per-query value in every group, in the order of the values; groups without values are left out."""
    out: dict[str, Interval] = {}
    for label, ids in groups.items():
        inside = set(ids)
        column = [v for key, v in values.items() if key in inside]
        if column:
            out[label] = bootstrap_table({"": column})[""]
    return out


def group_differences(
    a: Mapping[str, float], b: Mapping[str, float], groups: Mapping[str, Sequence[str]]
) -> dict[str, Interval]:
    """Paired a - b in every group; the queries that both have."""
    out: dict[str, Interval] = {}
    for label, ids in groups.items():
        inside = set(ids)
        both = [key for key in a if key in inside and key in b]
        if both:
            out[label] = paired_difference([a[key] for key in both], [b[key] for key in both])
    return out


def facts_of(runs: Sequence[Scored], record: Record) -> VideoFacts | None:
    """Of a record's video, from whichever run has opened it."""
    return next((f for s in runs if (f := s.run.facts(record)) is not None), None)


def measure(record: Record, facts: VideoFacts | None) -> Facts:
    """The numbers of one query; without facts only that its video was not opened."""
    if facts is None:
        return Facts(opened=False)
    if record.video.kind == "image":
        if not record.targets:
            return Facts()
        x0, y0, x1, y1 = image_box(record, facts)
        return Facts(area=float((x1 - x0) * (y1 - y0)))
    if record.task not in ("stvg", "svg", "tvg", "elc"):
        return Facts(video_s=facts.duration_s)
    if record.task == "tvg":
        longest = max((s.duration_s for s in record.spans), default=None)
        share = None if longest is None else min(1.0, longest / facts.duration_s)
        return Facts(span_s=longest, share=share, video_s=facts.duration_s)
    try:
        truths, _ = truths_of(record, facts)
    except DataError:  # an annotation that fits no clock: scored as it is, in no group
        return Facts(video_s=facts.duration_s)
    spans = [t.span for t in truths if t.span is not None]
    if not spans:
        return Facts(video_s=facts.duration_s)
    length = float(np.mean([s.duration_s for s in spans]))
    boxes = np.concatenate([t.boxes_xyxy for t in truths])
    area = None
    if len(boxes):
        area = float(((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).mean())
    speeds = [s for t in truths if (s := speed_of(t, facts.width, facts.height)) is not None]
    return Facts(
        span_s=length,
        share=min(1.0, length / facts.duration_s),
        area=area,
        speed=float(np.mean(speeds)) if speeds else None,
        video_s=facts.duration_s,
    )


def speed_of(truth: Truth, width: int, height: int) -> float | None:
    """Path of the centre of the true boxes, in picture diagonals per second; None for fewer than two boxes."""
    times, boxes = truth.box_times_s, truth.boxes_xyxy
    if len(times) < 2:
        return None
    centres = (
        np.stack([(boxes[:, 0] + boxes[:, 2]) * width, (boxes[:, 1] + boxes[:, 3]) * height], axis=1) / 2
    )
    path = np.hypot(*np.diff(centres, axis=0).T).sum()
    return float(path / np.hypot(width, height) / (times[-1] - times[0]))


def _by_number(
    title: str,
    what: str,
    numbers: Mapping[str, float | None],
    known: Mapping[str, Facts],
    edges: Sequence[float],
    unit: str,
) -> Breakdown:
    rows: dict[str, list[str]] = {label: [] for label in _labels(edges, unit)}
    names = list(rows)
    rows[NOT_OPENED] = []
    for key, number in numbers.items():
        if not known[key].opened:
            rows[NOT_OPENED].append(key)
        elif number is not None:
            rows[names[int(np.searchsorted(edges, number, side="right"))]].append(key)
    groups = {label: tuple(ids) for label, ids in rows.items() if ids}
    only_unknown = set(groups) - {NOT_OPENED}
    return Breakdown(title, what, groups if only_unknown else {})


def _labels(edges: Sequence[float], unit: str) -> list[str]:
    """ "under 1 s", "1 - 2 s", ..., "60 s and more"."""
    scale = 100.0 if unit.startswith("%") else 1.0
    shown = [f"{edge * scale:g}" for edge in edges]
    middle = [f"{a} – {b} {unit}" for a, b in pairwise(shown)]
    return [f"under {shown[0]} {unit}", *middle, f"{shown[-1]} {unit} and more"]


def _by_tags(records: Sequence[Record]) -> list[Breakdown]:
    """Every tag with 2 to 24 different values: look-alikes first, then types of question, then the others."""
    names = list(dict.fromkeys(name for record in records for name in record.tags))
    if "look_alikes" in names and "twin" in names:
        names.remove("twin")  # says the same with less
    rank = {"look_alikes": 0, "twin": 0} | dict.fromkeys(_QUESTION_TAGS, 1)
    out = []
    for tag in sorted(names, key=lambda name: rank.get(name, 2)):
        groups: dict[str, list[str]] = {}
        found = {r.id: r.tags[tag] for r in records if _usable(r.tags.get(tag))}
        for key, value in sorted(found.items(), key=lambda item: _order(item[1])):
            groups.setdefault(_shown(value), []).append(key)
        if 2 <= len(groups) <= _MOST_GROUPS:
            out.append(Breakdown(_title(tag), _about(tag), {k: tuple(v) for k, v in groups.items()}))
    return out


def _usable(value: object) -> bool:
    return isinstance(value, str | bool | int) and value != ""


def _order(value: object) -> tuple[int, float, str]:
    """Numbers by size, then words by letter."""
    return (0, float(value), "") if isinstance(value, int) else (1, 0.0, str(value))


def _shown(value: object) -> str:
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)


def _title(tag: str) -> str:
    if tag in ("look_alikes", "twin"):
        return "Look-alikes"
    return f"Question type ({tag})" if tag in _QUESTION_TAGS else tag.replace("_", " ").capitalize()


def _about(tag: str) -> str:
    if tag == "look_alikes":
        return "How many other things in the video look like the one that is meant."
    if tag == "twin":
        return "Whether another thing in the video looks like the one that is meant."
    return f"Tag {tag} of the dataset."
