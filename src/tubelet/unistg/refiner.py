"""Refiner: one box per moment, and the coarse span tightened to where the boxes are (Uni-STG, stage 3).

Which box: of the track with the highest sum of scores where the provider tracks; else the best of each frame.
The span begins half-way between the first moment with a box and the one before it (at the coarse start when there is
none before), and ends likewise. Spans shorter than 2 s or longer than 120 s are dropped. It judges nothing else.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tubelet.tube import Span
from tubelet.unistg.recipe import RefinerSettings
from tubelet.unistg.records import Detected, Drop, FloatArray, IntArray, Refined


def refine(detected: Detected, settings: RefinerSettings | None = None) -> Refined | Drop:
    """A Refined, or a Drop with the reason "no-boxes", "too-short" or "too-long"."""
    settings = settings or RefinerSettings()
    key = detected.phrase.key
    rows, boxes, scores, n_boxes = choose_boxes(detected)
    if not len(rows):
        return Drop(key, "refiner", "no-boxes", f"no box in {len(detected.times_s)} frames")
    keep = _longest(detected.times_s[rows], settings.max_gap_s)
    rows, boxes, scores, n_boxes = rows[keep], boxes[keep], scores[keep], n_boxes[keep]
    span = span_of(detected.times_s, int(rows[0]), int(rows[-1]), detected.coarse)
    length = span.duration_s
    if length < settings.min_s - 1e-6:
        return Drop(key, "refiner", "too-short", f"{length:.2f} s, at least {settings.min_s:g} s")
    if length > settings.max_s + 1e-6:
        return Drop(key, "refiner", "too-long", f"{length:.2f} s, at most {settings.max_s:g} s")
    return Refined(detected, span, rows, boxes, scores, n_boxes)


def choose_boxes(detected: Detected) -> tuple[IntArray, FloatArray, FloatArray, IntArray]:
    """One box per frame that has one: rows (N,), boxes (N, 4), scores (N,), boxes in that frame (N,)."""
    counts = np.array([len(s) for s in detected.scores], dtype=np.int64)
    row_of = np.repeat(np.arange(len(counts)), counts)
    boxes = np.concatenate(detected.boxes_xyxy).reshape(-1, 4)
    scores, ids = np.concatenate(detected.scores), np.concatenate(detected.track_ids)
    if len(ids) and (ids >= 0).any():
        tracked = ids >= 0
        names, place = np.unique(ids[tracked], return_inverse=True)
        totals = np.bincount(place, weights=scores[tracked])
        mine = ids == names[int(np.argmax(totals))]
        row_of, boxes, scores = row_of[mine], boxes[mine], scores[mine]
    order = np.lexsort((np.arange(len(scores)), -scores, row_of))
    rows, first = np.unique(row_of[order], return_index=True)
    chosen = order[first]
    return rows.astype(np.int64), boxes[chosen], scores[chosen], counts[rows]


def span_of(times_s: FloatArray, first: int, last: int, coarse: Span) -> Span:
    """The span of the moments `first` to `last`, with borders half-way to their neighbours, inside `coarse`."""
    start_s = coarse.start_s if first == 0 else (times_s[first - 1] + times_s[first]) / 2
    end_s = coarse.end_s if last == len(times_s) - 1 else (times_s[last] + times_s[last + 1]) / 2
    return Span(max(coarse.start_s, float(start_s)), min(coarse.end_s, float(end_s)))


def _longest(times_s: FloatArray, max_gap_s: float | None) -> npt.NDArray[np.bool_]:
    """Which moments are in the longest part without a hole of more than max_gap_s (the first one of equals)."""
    if max_gap_s is None:
        return np.ones(len(times_s), dtype=np.bool_)
    part = np.concatenate([[0], np.cumsum(np.diff(times_s) > max_gap_s + 1e-6)])
    starts = np.searchsorted(part, np.arange(part[-1] + 1))
    ends = np.append(starts[1:], len(times_s)) - 1
    mask: npt.NDArray[np.bool_] = part == int(np.argmax(times_s[ends] - times_s[starts]))
    return mask
