"""Moment retrieval: R@k and mIoU of spans, mAP and highlight detection as moment_detr does it, DiDeMo's scores.

Times are seconds unless said (DiDeMo: 5 s chunks). A reversed or empty window has IoU 0. A query without any
predicted window scores 0 and is listed as a failure; nothing is dropped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tubelet.errors import DataError
from tubelet.metrics.boxes import span_iou

FloatArray = npt.NDArray[np.float64]
Windows = Sequence[Sequence[float]]

MAP_THRESHOLDS = tuple(round(0.5 + 0.05 * k, 2) for k in range(10))


@dataclass(frozen=True, slots=True)
class SpanRules:
    """How windows are compared.

    strict: hits are > threshold, else >=. best_truth: with several true windows, the one that fits best counts,
    else the first. most_windows: only so many predicted windows, in the order they were given, enter mAP.
    undefined_hits: in mAP, a reversed window as long as the true one has the IoU 0/0, which the public code takes
    for a hit at every threshold (a comparison with NaN); without this rule it is 0.
    """

    name: str
    source: str
    strict: bool = False
    best_truth: bool = True
    most_windows: int = 10
    undefined_hits: bool = False
    thresholds: tuple[float, ...] = (0.3, 0.5, 0.7)
    length_ranges: tuple[tuple[str, float, float], ...] = ()


SPAN_PROTOCOLS: dict[str, SpanRules] = {
    r.name: r
    for r in (
        SpanRules("tubelet", "tubelet's default", strict=True),
        SpanRules("charades", "lmms-eval tasks/charades_sta (first span of the text)"),
        SpanRules("vstar", "V-STaR-Bench/V-STaR eval.py (when)"),
        SpanRules("llavast_tvg", "LLaVA-ST inference/src/metrics.py:eval_tvg", strict=True),
        SpanRules(
            "moment_detr",
            "jayleicn/moment_detr standalone_eval/eval.py",
            undefined_hits=True,
            thresholds=MAP_THRESHOLDS,
            length_ranges=(
                ("short", 0, 10),
                ("middle", 10, 30),
                ("long", 30, 150),
                ("full", -np.inf, np.inf),
            ),
        ),
        SpanRules(
            "lighthouse",
            "line/lighthouse training/standalone_eval/eval.py",
            undefined_hits=True,
            thresholds=MAP_THRESHOLDS,
            length_ranges=(("full", 0, 1500),),
        ),
    )
}


def pad_windows(windows: Sequence[Windows], most: int | None = None) -> FloatArray:
    """(Q, K, 3) start, end, score of every query's windows, NaN beyond their number; missing scores are 0."""
    cut = [list(w)[:most] for w in windows]
    out = np.full((len(cut), max([len(w) for w in cut], default=0), 3), np.nan)
    for q, rows in enumerate(cut):
        for k, row in enumerate(rows):
            if len(row) not in (2, 3):
                raise DataError(f"query {q}: a window is start, end and perhaps a score, got {row!r}")
            out[q, k] = (*row, 0.0)[:3]
    return out


def top_window_iou(predicted: Sequence[Windows], truth: Sequence[Windows], rules: SpanRules) -> FloatArray:
    """(Q,) IoU of the first predicted window with the true one; 0 without a prediction."""
    return recall_ious(predicted, truth, 1, rules)


def recall_ious(
    predicted: Sequence[Windows], truth: Sequence[Windows], k: int, rules: SpanRules
) -> FloatArray:
    """(Q,) the best IoU among the first k predicted windows: R@k at a threshold is the share that passes it."""
    first, true = pad_windows(predicted, k), pad_windows(truth, None if rules.best_truth else 1)
    if 0 in (first.shape[1], true.shape[1]):
        return np.zeros(len(first))
    best: FloatArray = span_iou(first[:, :, None, :2], true[:, None, :, :2]).max(axis=(1, 2))
    return best


def hits(ious: FloatArray, threshold: float, strict: bool) -> npt.NDArray[np.bool_]:
    return ious > threshold if strict else ious >= threshold


def average_precision(
    predicted: Sequence[Windows],
    truth: Sequence[Windows],
    thresholds: Sequence[float],
    most: int = 10,
    undefined_hits: bool = False,
) -> FloatArray:
    """(Q, T) average precision of each query's windows at each IoU threshold (VOC, every recall point).

    Windows are cut to `most` in the given order, then sorted by score (stable). Each takes the best true window
    that is not taken yet and passes the threshold.
    """
    first, true = pad_windows(predicted, most), pad_windows(truth)
    q, k, g, t = len(first), first.shape[1], true.shape[1], len(thresholds)
    if k == 0 or g == 0:
        return np.zeros((q, t))
    order = np.argsort(-first[:, :, 2], axis=1, kind="stable")  # NaN (no window) goes last
    first = np.take_along_axis(first, order[:, :, None], axis=1)
    there = ~np.isnan(first[:, :, 0])
    iou = span_iou(first[:, :, None, :2], true[:, None, :, :2])  # (Q, K, G)
    if undefined_hits:
        lengths = (first[:, :, 1] - first[:, :, 0])[:, :, None] + (true[:, :, 1] - true[:, :, 0])[:, None]
        iou[(lengths == 0) & (iou == 0)] = np.inf
    limits = np.asarray(thresholds, dtype=np.float64)
    taken = np.zeros((q, g, t), dtype=bool)
    right = np.zeros((q, k, t))
    everyone = np.arange(q)
    for rank in range(k):
        # of equal IoUs the later true window is tried first, as the reversed argsort of the public code does
        candidates = g - 1 - np.argsort(-iou[:, rank, ::-1], axis=1, kind="stable")
        for place in range(g):
            window = candidates[:, place]
            free = ~taken[everyone, window]
            passes = (iou[everyone, rank, window, None] >= limits) & there[:, rank, None]
            match = free & passes & (right[:, rank] == 0)
            right[:, rank] += match
            taken[everyone, window] |= match
    ranks = np.arange(1, k + 1)[None, :, None]
    precision = np.cumsum(right, axis=1) / ranks
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    positives = np.maximum((~np.isnan(true[:, :, 0])).sum(axis=1), 1)
    ap: FloatArray = (right * envelope).sum(axis=1) / positives[:, None]
    return ap


def highlight_ap(relevant: npt.ArrayLike, scores: npt.ArrayLike) -> float:
    """Interpolated average precision of clip scores (C,) for labels (C,); 0 without positives, 1 with nothing else."""
    labels, values = np.asarray(relevant, dtype=bool), np.asarray(scores, dtype=np.float64)
    if labels.all() or not labels.any():
        return float(labels.any())
    order = np.argsort(-values, kind="stable")
    last_of_tie = np.append(np.diff(values[order]) != 0, True)
    positives = np.cumsum(labels[order])[last_of_tie]
    precision = positives / (np.flatnonzero(last_of_tie) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    gains = np.diff(positives, prepend=0) > 0
    return float(envelope[gains].mean())


@dataclass(frozen=True, slots=True)
class MomentScores:
    """What `score_moments` reports: numbers as fractions, None where no query qualifies, and what went wrong.

    failures: query id -> reason, counted as 0; notes: whole parts that could not be scored.
    """

    protocol: str
    n: int
    metrics: dict[str, float | None]
    failures: dict[Any, str]
    notes: tuple[str, ...] = ()


def score_moments(
    submission: Sequence[Mapping[str, Any]],
    truth: Sequence[Mapping[str, Any]],
    protocol: str = "moment_detr",
    only_shared: bool = False,
) -> MomentScores:
    """Scores of QVHighlights-style records, over all queries of the truth.

    Args:
        submission: records with qid, pred_relevant_windows [[start_s, end_s, score]] in rank order, and perhaps
            pred_saliency_scores, one per 2 s clip.
        truth: records with qid, relevant_windows, duration; for highlights relevant_clip_ids, saliency_scores.
        only_shared: leave out queries that were not predicted, as `match_number=False` does; otherwise they are 0.

    Metrics: MR-{range}-mAP[@t], MR-{range}-R1@t, HL-min-{Fair,Good,VeryGood}-{mAP,Hit1}.
    """
    rules = _span_rules(protocol)
    answers = {record["qid"]: record for record in submission}
    unknown = set(answers) - {record["qid"] for record in truth}
    if unknown and not only_shared:
        raise DataError(
            f"predictions for {len(unknown)} unknown queries, the first is {sorted(map(str, unknown))[0]}"
        )
    counted = [r for r in truth if not only_shared or r["qid"] in answers]
    if not counted:
        raise DataError("no query is left to score")
    failures: dict[Any, str] = {}
    windows: dict[Any, Windows] = {}
    for record in counted:
        qid = record["qid"]
        windows[qid] = answers.get(qid, {}).get("pred_relevant_windows", [])
        if not windows[qid]:
            failures[qid] = "no predicted window" if qid in answers else "no prediction"
    metrics: dict[str, float | None] = {}
    notes: list[str] = []
    for name, low, high in rules.length_ranges or (("full", -np.inf, np.inf),):
        part = [(r, _of_length(r["relevant_windows"], low, high)) for r in counted]
        part = [(r, true) for r, true in part if true]
        if not part:
            notes.append(f"{name}: no query has a true window longer than {low:g} s and up to {high:g} s")
        metrics |= _retrieval(name, [windows[r["qid"]] for r, _ in part], [t for _, t in part], rules)
    if any("pred_saliency_scores" in record for record in submission):
        metrics |= _highlights(counted, answers, failures)
    return MomentScores(protocol, len(counted), metrics, failures, tuple(notes))


def _span_rules(protocol: str) -> SpanRules:
    if protocol not in SPAN_PROTOCOLS:
        raise DataError(f"unknown protocol {protocol!r}; spans are scored by {', '.join(SPAN_PROTOCOLS)}")
    return SPAN_PROTOCOLS[protocol]


def _of_length(windows: Windows, low: float, high: float) -> list[Sequence[float]]:
    return [w for w in windows if low < w[1] - w[0] <= high]


def _retrieval(
    name: str, predicted: Sequence[Windows], truth: Sequence[Windows], rules: SpanRules
) -> dict[str, float | None]:
    limits = rules.thresholds
    if not truth:
        keys = ["mAP", *(f"mAP@{t:g}" for t in limits), *(f"R1@{t:g}" for t in limits), "mIoU"]
        return {f"MR-{name}-{key}": None for key in keys}
    ap = average_precision(predicted, truth, limits, rules.most_windows, rules.undefined_hits)
    top = top_window_iou(predicted, truth, rules)
    out: dict[str, float | None] = {f"MR-{name}-mAP": float(ap.mean()), f"MR-{name}-mIoU": float(top.mean())}
    for k, limit in enumerate(limits):
        out[f"MR-{name}-mAP@{limit:g}"] = float(ap[:, k].mean())
        out[f"MR-{name}-R1@{limit:g}"] = float(hits(top, limit, rules.strict).mean())
    return out


def _highlights(
    truth: Sequence[Mapping[str, Any]], answers: Mapping[Any, Mapping[str, Any]], failures: dict[Any, str]
) -> dict[str, float | None]:
    """HL-mAP (mean over three annotators) and HIT@1 (any annotator), at three levels of approval."""
    levels = {"Fair": 2, "Good": 3, "VeryGood": 4}
    ap: dict[str, list[float]] = {name: [] for name in levels}
    hit: dict[str, list[float]] = {name: [] for name in levels}
    for record in truth:
        clips = _clip_scores(record)
        given = given_saliency(record["qid"], answers.get(record["qid"], {}).get("pred_saliency_scores"))
        if len(given) == 0:
            failures.setdefault(record["qid"], "no saliency scores")
        scores = np.zeros(len(clips))
        scores[: len(given)] = given[: len(clips)]
        for name, least in levels.items():
            if len(given) == 0:
                ap[name].append(0.0)
                hit[name].append(0.0)
                continue
            approved = clips >= least
            ap[name].append(float(np.mean([highlight_ap(approved[:, a], scores) for a in range(3)])))
            top = int(given.argmax())
            hit[name].append(float(top < len(clips) and approved[top].any()))
    out: dict[str, float | None] = {}
    for name in levels:
        out[f"HL-min-{name}-mAP"] = float(np.mean(ap[name]))
        out[f"HL-min-{name}-Hit1"] = float(np.mean(hit[name]))
    return out


def _clip_scores(record: Mapping[str, Any]) -> FloatArray:
    """(C, 3) the annotators' scores of all 2 s clips; listed clips after the end of the video have no row."""
    missing = [k for k in ("duration", "relevant_clip_ids", "saliency_scores") if record.get(k) is None]
    if missing:
        raise DataError(
            f"query {record['qid']}: highlights are scored against {', '.join(missing)}: the truth has none"
        )
    if not 0 < record["duration"] < 1e6:
        raise DataError(f"query {record['qid']}: a video of {record['duration']!r:.40} s has no clips of 2 s")
    clips = np.zeros((int(record["duration"] / 2), 3))
    try:
        for clip, scores in zip(record["relevant_clip_ids"], record["saliency_scores"], strict=True):
            if clip < len(clips):
                clips[clip] = scores
    except (TypeError, ValueError, IndexError) as error:
        raise DataError(
            f"query {record['qid']}: saliency_scores are three numbers for each of relevant_clip_ids: {error}"
        ) from error
    return clips


def given_saliency(qid: Any, given: Any) -> FloatArray:
    """(K,) predicted scores of the clips of query `qid`; none where none are given. DataError for anything else."""
    if given is None:
        return np.empty(0)
    try:
        scores = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"query {qid}: saliency scores are one number per 2 s clip, got {given!r:.60}"
        ) from error
    if scores.ndim != 1 or not np.isfinite(scores).all():
        raise DataError(f"query {qid}: saliency scores are one finite number per 2 s clip, got {given!r:.60}")
    return scores


def score_didemo(
    ranked: Sequence[Sequence[Sequence[int]]], times: Sequence[Sequence[Sequence[int]]]
) -> MomentScores:
    """DiDeMo's rank@1, rank@5 and mIoU: inclusive 5 s chunks, the mean over the three best annotators of a query.

    ranked: per query all candidate segments [first, last], best first; times: per query the annotators' segments.
    A true segment that is not among the candidates fails the query: rank@k 0, its IoU still counts.
    """
    if len(ranked) != len(times):
        raise DataError(f"{len(ranked)} ranked lists for {len(times)} queries")
    ranks, ious = np.full(len(times), np.inf), np.zeros(len(times))
    failures: dict[Any, str] = {}
    for q, (listed, true) in enumerate(zip(ranked, times, strict=True)):
        if not listed:
            failures[q] = "no ranked segment"
            continue
        order = [tuple(s) for s in listed]
        iou = span_iou(np.array(listed[0]), np.array(true), inclusive=True)
        ious[q] = np.sort(iou)[-3:].mean()
        absent = [tuple(t) for t in true if tuple(t) not in order]
        if absent:
            failures[q] = f"the true segment {list(absent[0])} is not among the ranked segments"
        else:
            ranks[q] = np.sort([order.index(tuple(t)) + 1 for t in true])[:3].mean()
    metrics: dict[str, float | None] = {
        "rank@1": float(np.mean(ranks <= 1)),
        "rank@5": float(np.mean(ranks <= 5)),
        "mIoU": float(ious.mean()),
    }
    return MomentScores("didemo", len(times), metrics, failures)
