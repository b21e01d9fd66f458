"""Benchmarks that annotate boxes by the second: VUE-STG and V-STaR.

VUE-STG rows are [time_ms, x0, y0, x1, y1] in fractions; times are rounded to the step (halves up), corners are sorted
and clipped to the picture; a box without area counts as absent. Undefined values (the precision of an empty answer)
are NaN and leave the means, as in its published tables; `evaluate` reports how many those are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tubelet.errors import DataError
from tubelet.metrics.answers import vstar_span
from tubelet.metrics.boxes import box_area, paired_iou, shared_area, span_iou
from tubelet.metrics.ragged import FloatArray, IntArray, Ragged, is_listed, merge, rows_of, segment_sum

Policy = Literal["first", "last", "union"]
VSTAR_THRESHOLDS = (0.1, 0.3, 0.5, 0.7, 0.9)


@dataclass(frozen=True, slots=True, eq=False)
class Slices:
    """Regions per second: keys (ragged, ms) and the boxes of each, at least one: boxes (N, 4) of slice (N,)."""

    keys: Ragged
    boxes_xyxy: FloatArray
    slice_of: IntArray


def quantize_ms(time_ms: npt.ArrayLike, step_ms: int = 1000) -> IntArray:
    """Times rounded to the step, halves up."""
    times = np.asarray(time_ms, dtype=np.int64)
    out: IntArray = (times * 2 + step_ms) // (2 * step_ms) * step_ms
    return out


def vue_slices(rows: Sequence[npt.ArrayLike], step_ms: int = 1000) -> Slices:
    """Rows [time_ms, x0, y0, x1, y1] of Q queries as slices; boxes of one second stay in the given order."""
    counts = np.array([len(r) for r in rows], dtype=np.int64)  # type: ignore[arg-type]
    table = np.concatenate(
        [np.asarray(r, dtype=np.float64).reshape(-1, 5) for r in rows] or [np.empty((0, 5))]
    )
    query = np.repeat(np.arange(len(rows)), counts)
    at = quantize_ms(table[:, 0].astype(np.int64), step_ms)
    low, high = np.minimum(table[:, 1:3], table[:, 3:5]), np.maximum(table[:, 1:3], table[:, 3:5])
    boxes = np.clip(np.concatenate([low, high], axis=1), 0.0, 1.0)
    order = np.lexsort((at, query))  # stable
    query, at, boxes = query[order], at[order], boxes[order]
    starts = np.append(True, (np.diff(query) != 0) | (np.diff(at) != 0))[: len(at)]
    slice_of = np.cumsum(starts) - 1
    offsets = np.concatenate([[0], np.cumsum(np.bincount(query[starts], minlength=len(rows)))])
    return Slices(Ragged(at[starts].astype(np.float64), offsets), boxes, slice_of)


def score_vue(truth: Slices, predicted: Slices, policy: Policy = "first") -> dict[str, FloatArray]:
    """VUE-STG's ten numbers, each (Q,); NaN where its evaluator leaves a value undefined.

    t_iou, t_recall, t_precision over seconds; v_iou, v_recall, v_precision: sum of box IoU over seconds of either,
    of the truth, of the prediction; v_iou_intersection: over seconds of both; 3d_*: volumes.
    """
    if policy not in ("first", "last", "union"):
        raise DataError(f"several boxes in one second are read as first, last or union, got {policy!r}")
    both = merge(truth.keys, predicted.keys)
    rows, n = rows_of(both.offsets), len(both)
    if policy == "union":
        true_area, given_area, shared = _region_areas(truth, predicted, both)
    else:
        pick = 0 if policy == "first" else -1
        true_box, given_box = (_picked(s, both, rows, pick) for s in (truth, predicted))
        true_area, given_area = box_area(true_box), box_area(given_box)
        shared = shared_area(true_box, given_box)
    united = true_area + given_area - shared
    in_true, in_given = true_area > 0, given_area > 0
    tiny = np.finfo(float).eps
    iou = segment_sum(shared / (united + tiny), rows, n)
    seconds = {
        "iou": segment_sum(in_true | in_given, rows, n),
        "recall": segment_sum(in_true, rows, n),
        "precision": segment_sum(in_given, rows, n),
        "both": segment_sum(in_true & in_given, rows, n),
    }
    volumes = {
        "iou": segment_sum(united, rows, n) + tiny,
        "recall": segment_sum(true_area, rows, n) + tiny,
        "precision": segment_sum(given_area, rows, n) + tiny,
    }
    out: dict[str, FloatArray] = {}
    for name in ("iou", "recall", "precision"):
        defined = seconds[name] > 0
        out[f"t_{name}"] = _ratio(seconds["both"], seconds[name], defined)
        out[f"v_{name}"] = _ratio(iou, seconds[name], defined)
        out[f"3d_{name}"] = _ratio(segment_sum(shared, rows, n), volumes[name], defined)
    out["v_iou_intersection"] = _ratio(iou, seconds["both"], seconds["both"] > 0)
    return out


def _ratio(a: FloatArray, b: FloatArray, defined: npt.NDArray[np.bool_]) -> FloatArray:
    ratio: FloatArray = np.divide(a, b, out=np.full(len(a), np.nan), where=defined)
    return ratio


def _picked(slices: Slices, both: Ragged, rows: IntArray, pick: int) -> FloatArray:
    """(M, 4) first or last box of every second of `both`; an empty box where there is none."""
    out = np.zeros((len(both.at), 4))
    present = is_listed(slices.keys, both.at, rows)
    index = np.searchsorted(
        slices.slice_of, np.arange(len(slices.keys.at)), side="left" if pick == 0 else "right"
    )
    out[present] = slices.boxes_xyxy[index + pick]
    return out


def _region_areas(
    truth: Slices, predicted: Slices, both: Ragged
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Areas of the unions of boxes per second, and of their overlap. Loops over seconds: few hold several boxes."""
    rows = rows_of(both.offsets)
    groups = []
    for slices in (truth, predicted):
        present = is_listed(slices.keys, both.at, rows)
        split = np.split(
            slices.boxes_xyxy, np.searchsorted(slices.slice_of, np.arange(1, len(slices.keys.at)))
        )
        listed = iter(split if len(slices.keys.at) else [])
        groups.append([next(listed) if p else np.empty((0, 4)) for p in present])
    areas = np.array([_covered(a, b) for a, b in zip(*groups, strict=True)]).reshape(-1, 3)
    return areas[:, 0], areas[:, 1], areas[:, 2]


def _covered(a: FloatArray, b: FloatArray) -> tuple[float, float, float]:
    """Area of the union of boxes a, of boxes b, and of the overlap of both unions, on the grid of all edges."""
    every = np.concatenate([a, b])
    xs, ys = np.unique(every[:, [0, 2]]), np.unique(every[:, [1, 3]])
    if len(xs) < 2 or len(ys) < 2:
        return 0.0, 0.0, 0.0
    cell = np.diff(xs)[:, None] * np.diff(ys)[None]
    x, y = xs[:-1, None, None], ys[None, :-1, None]

    def inside(boxes: FloatArray) -> npt.NDArray[np.bool_]:
        hit = (x >= boxes[:, 0]) & (x < boxes[:, 2]) & (y >= boxes[:, 1]) & (y < boxes[:, 3])
        return np.asarray(hit.any(axis=2), dtype=bool)

    in_a, in_b = inside(a), inside(b)
    return float(cell[in_a].sum()), float(cell[in_b].sum()), float(cell[in_a & in_b].sum())


def score_vstar(records: Sequence[Mapping[str, Any]]) -> tuple[dict[str, FloatArray], dict[int, str]]:
    """V-STaR's numbers per record (Q,), tIoU, mIoU, AP@t, and failures row -> reason.

    Records hold gt_timestamps, gt_bboxes [{timestamp, xmin, ymin, xmax, ymax}], pred_timestamps (list or text),
    pred_bboxes {second as text: box or boxes}. Boxes with other than four numbers count as absent.
    """
    n = len(records)
    failures: dict[int, str] = {}
    given, true_spans = np.full((n, 2), np.nan), np.full((n, 2), np.nan)
    owner: list[int] = []  # of every candidate box: the row of its true box
    candidates: list[Sequence[float]] = []
    true_boxes: list[list[float]] = []
    query: list[int] = []
    for row, record in enumerate(records):
        true_spans[row] = record["gt_timestamps"]
        span = vstar_span(record.get("pred_timestamps"))
        if span is None:
            failures[row] = "the span does not parse"
        else:
            given[row] = span
        answered = record.get("pred_bboxes") or {}
        for true in record["gt_bboxes"]:
            boxes = answered.get(str(true["timestamp"])) or []
            if len(boxes) == 4 and isinstance(boxes[0], int | float):
                boxes = [boxes]
            for box in boxes:
                if isinstance(box, list | tuple) and len(box) == 4:
                    owner.append(len(true_boxes))
                    candidates.append(box)
            true_boxes.append([true[k] for k in ("xmin", "ymin", "xmax", "ymax")])
            query.append(row)
    truth = np.asarray(true_boxes, dtype=np.float64).reshape(-1, 4)
    best = np.zeros(len(truth))
    owners = np.asarray(owner, dtype=np.int64)
    np.maximum.at(best, owners, paired_iou(np.asarray(candidates).reshape(-1, 4), truth[owners]))
    rows = np.asarray(query, dtype=np.int64)
    frames = np.maximum(np.bincount(rows, minlength=n), 1)
    values = {"tIoU": span_iou(given, true_spans), "mIoU": segment_sum(best, rows, n) / frames}
    for limit in VSTAR_THRESHOLDS:
        values[f"AP@{limit:g}"] = segment_sum(best >= limit, rows, n) / frames
    return values, failures
