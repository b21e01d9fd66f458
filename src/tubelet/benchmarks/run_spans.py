"""Scores of predicted spans (task tvg, and the spans of elc): recalls, highlights, DiDeMo's segments, rejection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tubelet.benchmarks.part import Number, Part, failures_of
from tubelet.benchmarks.run_folder import Run
from tubelet.datasets.record import Record
from tubelet.errors import DataError
from tubelet.metrics.bootstrap import bootstrap_table
from tubelet.metrics.grounding import balanced_accuracy
from tubelet.metrics.moments import (
    SPAN_PROTOCOLS,
    given_saliency,
    hits,
    recall_ious,
    score_didemo,
    score_moments,
)
from tubelet.tube import Prediction


def _windows(prediction: Prediction | None) -> list[list[float]]:
    if prediction is None:
        return []
    return [[t.span.start_s, t.span.end_s, 0.0 if t.score is None else t.score] for t in prediction.tubes]


def score_spans(run: Run, records: Sequence[Record], protocol: str) -> Part:
    failures = failures_of(run, records)
    found = [r.id in run.lines and run.lines[r.id].prediction.found for r in records]
    metrics: dict[str, Number] = {}
    rejection = balanced_accuracy(found, [r.present for r in records])
    present = [r for r in records if r.present]
    windows = {r.id: _windows(run.lines[r.id].prediction if r.id in run.lines else None) for r in present}
    values: dict[str, dict[str, float]] = {}
    notes: tuple[str, ...] = ()
    if protocol == "didemo":
        metrics, values, notes = _didemo(present, windows)
    elif present:
        rules = SPAN_PROTOCOLS[protocol]
        predicted = [windows[r.id] for r in present]
        true = [[[s.start_s, s.end_s] for s in r.spans] for r in present]
        iou = recall_ious(predicted, true, 1, rules)
        columns = {"mIoU": iou} | {
            f"R1@{t:g}": hits(iou, t, rules.strict).astype(np.float64) for t in rules.thresholds
        }
        metrics |= bootstrap_table(columns)
        values = {"tIoU": {r.id: float(v) for r, v in zip(present, iou, strict=True)}}
        if protocol in ("moment_detr", "lighthouse"):
            answers = [
                {"qid": key, "pred_relevant_windows": w} | _saliency(run, key) for key, w in windows.items()
            ]
            scored = score_moments(
                answers,
                [
                    {**r.extra, "qid": r.id, "relevant_windows": t, "duration": r.video.duration_s}
                    for r, t in zip(present, true, strict=True)
                ],
                protocol,
            )
            metrics |= scored.metrics
            notes += scored.notes
            told = [len(a["pred_saliency_scores"]) > 0 for a in answers if "pred_saliency_scores" in a]
            if told:
                notes += (
                    f"highlights: {sum(told)} of {len(answers)} answers have saliency scores, the rest is 0",
                )
            elif any(r.extra.get("saliency_scores") for r in present):
                notes += (
                    "highlights (HL-*) need saliency scores (provenance.saliency_scores), which a span does not give",
                )
    if rejection is not None:
        metrics["rejection_balanced_accuracy"] = rejection
    return Part("tvg", protocol, len(records), metrics, failures, notes=notes, values=values)


def _saliency(run: Run, key: str) -> dict[str, Any]:
    """Scores of the 2 s clips of a video, where the model says them: `provenance["saliency_scores"]`.

    What is no list of numbers counts as not said.
    """
    told = run.lines[key].prediction.provenance.get("saliency_scores") if key in run.lines else None
    if told is None:
        return {}
    try:
        return {"pred_saliency_scores": given_saliency(key, told)}
    except DataError:
        return {"pred_saliency_scores": []}


def _votes(record: Record) -> tuple[int, list[list[int]]]:
    """Number of chunks, and the first and last chunk that each annotator marked. DataError where they are not said."""
    if "times" not in record.extra or "num_segments" not in record.extra:
        raise DataError(f"{record.id}: protocol didemo needs the annotators' chunks (dataset didemo)")
    chunks, votes = record.extra["num_segments"], record.extra["times"]
    if type(chunks) is not int or not 1 <= chunks <= 1000:
        raise DataError(f"{record.id}: num_segments is a number of 5 s chunks, got {chunks!r:.40}")
    for vote in votes if isinstance(votes, list) and votes else [votes]:
        pair = isinstance(vote, list) and len(vote) == 2 and all(type(x) is int for x in vote)
        if not pair:
            raise DataError(
                f"{record.id}: times are the first and last chunk of each annotator, got {vote!r:.40}"
            )
    return chunks, votes


def _didemo(
    records: Sequence[Record], windows: Mapping[str, list[list[float]]]
) -> tuple[dict[str, Number], dict[str, dict[str, float]], tuple[str, ...]]:
    """All candidate segments, ranked by their overlap with the predicted span (earlier and shorter first on ties)."""
    ranked: list[list[tuple[int, int]]] = []
    times: list[Any] = []
    for record in records:
        chunks, votes = _votes(record)
        segments = [(a, b) for a in range(chunks) for b in range(a, chunks)]
        times.append(votes)
        if not windows[record.id]:
            ranked.append([])
            continue
        start, end = windows[record.id][0][:2]

        def overlap(segment: tuple[int, int], start: float = start, end: float = end) -> float:
            lo, hi = segment[0] * 5.0, (segment[1] + 1) * 5.0
            shared = max(0.0, min(hi, end) - max(lo, start))
            return shared / max(hi - lo + end - start - shared, 1e-9)

        ranked.append(sorted(segments, key=lambda s: (-overlap(s), s[1] - s[0], s[0])))
    scored = score_didemo(ranked, times)
    each = [score_didemo([a], [b]).metrics for a, b in zip(ranked, times, strict=True)]
    values = {
        name: {r.id: float(m[name] or 0.0) for r, m in zip(records, each, strict=True)}
        for name in scored.metrics
    }
    metrics: dict[str, Number] = dict(
        bootstrap_table({name: list(column.values()) for name, column in values.items()})
    )
    return metrics, values, ("segments of 5 s chunks are ranked by their overlap with the predicted span",)
