"""Several targets in one query: tubes matched to true tubes by the Hungarian method (scipy).

tubelet's own score matches whole tubes: the pairs maximise the sum of vIoU, and the sum is divided by the larger
number of tubes, so a superfluous and a missing target both cost. BOSTVG's public evaluator instead matches boxes anew
in every frame and averages over the pairs (`score_bostvg`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tubelet.errors import DataError, ModelError
from tubelet.metrics.boxes import box_area, paired_iou, shared_area, span_iou
from tubelet.metrics.protocols import protocol
from tubelet.metrics.ragged import Ragged, Tubes
from tubelet.metrics.tubes import Rules, TubeScores, score_tubes

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class TargetScores:
    """Scores of one query with several targets; pairs: (predicted, true) tubes that were matched."""

    tiou: float
    viou: float
    pairs: tuple[tuple[int, int], ...]


def assign(cost: npt.ArrayLike) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Rows and columns of the cheapest one-to-one assignment of a (P, G) cost matrix."""
    matrix = np.asarray(cost, dtype=np.float64)
    if min(matrix.shape) == 1:  # the common case needs no solver: the cheapest of one row or column
        best = int(matrix.argmin())
        row, column = np.unravel_index(best, matrix.shape)
        return np.array([row], dtype=np.int64), np.array([column], dtype=np.int64)
    try:
        from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]
    except ImportError as error:
        raise ModelError("several targets are matched with scipy: install it (pip install scipy)") from error
    rows, columns = linear_sum_assignment(matrix)
    return rows.astype(np.int64), columns.astype(np.int64)


def score_targets(
    predicted: Tubes, truth: Tubes, rules: Rules | None = None, frames: npt.ArrayLike | None = None
) -> TargetScores:
    """tIoU and vIoU of P predicted tubes against G true tubes of one query.

    frames: the positions that count (seconds axis or sampled frames); without them every whole number does.
    """
    p, g = len(predicted), len(truth)
    if g == 0:
        raise DataError("a query without true tubes has no vIoU: judge the rejection instead")
    if p == 0:
        return TargetScores(0.0, 0.0, ())
    every_p, every_g = np.repeat(np.arange(p), g), np.tile(np.arange(g), p)
    grid = None
    if frames is not None:
        listed = np.asarray(frames, dtype=np.float64)
        grid = Ragged(np.tile(listed, p * g), np.arange(p * g + 1) * len(listed))
    scores = score_tubes(take(predicted, every_p), take(truth, every_g), rules, grid)
    # tIoU decides among pairs of equal vIoU (two tubes without boxes)
    rows, columns = assign(-(scores.viou + 1e-6 * scores.tiou).reshape(p, g))
    picked = rows * g + columns
    share = 1 / max(p, g)
    return TargetScores(
        float(scores.tiou[picked].sum() * share),
        float(scores.viou[picked].sum() * share),
        tuple((int(a), int(b)) for a, b in zip(rows, columns, strict=True)),
    )


def take(tubes: Tubes, rows: npt.NDArray[np.int64]) -> Tubes:
    """The tubes of these rows, in this order, repeats allowed."""
    first, lengths = tubes.offsets[rows], np.diff(tubes.offsets)[rows]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    index = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths) + np.repeat(first, lengths)
    return Tubes(tubes.spans[rows], tubes.at[index], tubes.boxes_xyxy[index], offsets)


def score_bostvg(records: Sequence[Mapping[str, Any]]) -> TubeScores:
    """BOSTVG's public scores of records with gt_temp_bound [first, last], gt_tubes_xyxy [{frame: box}] and
    pred {sted [start, end), boxes {frame: boxes}}: per frame the mean IoU of matched pairs."""
    rules = protocol("bostvg").rules
    n = len(records)
    viou, gt_viou = np.zeros(n), np.zeros(n)
    spans = np.array([r["pred"]["sted"] for r in records], dtype=np.float64).reshape(-1, 2)
    bounds = np.array([r["gt_temp_bound"] for r in records], dtype=np.float64).reshape(-1, 2)
    for row, record in enumerate(records):
        true: dict[int, list[Any]] = {}
        for tube in record["gt_tubes_xyxy"]:
            for frame, box in tube.items():
                true.setdefault(int(frame), []).append(box)
        given = {int(f): b for f, b in record["pred"]["boxes"].items()}
        frames = np.array(sorted(true))
        iou = _matched_ious([given.get(int(f)) for f in frames], [true[int(f)] for f in frames])
        low, high = np.maximum(spans[row, 0], bounds[row, 0]), np.minimum(spans[row, 1], bounds[row, 1])
        hull = np.fmax(spans[row, 1], bounds[row, 1]) - np.fmin(spans[row, 0], bounds[row, 0])
        viou[row] = iou[(frames >= low) & (frames < high)].sum() / max(hull, 1)
        gt_viou[row] = iou.sum() / max(len(frames), 1)
    tiou = span_iou(spans, bounds, rules.tiou_ends == "inclusive")
    return TubeScores(tiou, viou, gt_viou, gt_viou.copy(), None, {})


def _matched_ious(given: Sequence[Sequence[Any] | None], true: Sequence[Sequence[Any]]) -> FloatArray:
    """Mean IoU of the matched pairs of every frame (F,); 0 without predictions. One against one needs no matching."""
    iou = np.zeros(len(true))
    alone = [
        k for k, (a, b) in enumerate(zip(given, true, strict=True)) if a is not None and len(a) == len(b) == 1
    ]
    if alone:
        iou[alone] = paired_iou(
            np.array([given[k] for k in alone], dtype=np.float64).reshape(-1, 4),
            np.array([true[k] for k in alone], dtype=np.float64).reshape(-1, 4),
        )
    for k in set(range(len(true))) - set(alone):
        if given[k]:
            a, b = (np.asarray(x, dtype=np.float64).reshape(-1, 4) for x in (given[k], true[k]))
            rows, columns = assign(_bostvg_cost(a, b))
            iou[k] = paired_iou(a[rows], b[columns]).mean()
    return iou


def _bostvg_cost(a: FloatArray, b: FloatArray) -> FloatArray:
    """L1 distance minus generalised IoU, the latter of the corners read as centre and size (as the public code)."""
    p, q = a[:, None].astype(np.float32), b[None].astype(np.float32)
    distance = np.abs(p - q).sum(axis=-1)
    p, q = (
        np.concatenate([x[..., :2] - x[..., 2:] / 2, x[..., :2] + x[..., 2:] / 2], axis=-1) for x in (p, q)
    )
    shared = shared_area(p, q)
    union = box_area(p) + box_area(q) - shared
    hull = np.concatenate([np.minimum(p[..., :2], q[..., :2]), np.maximum(p[..., 2:], q[..., 2:])], axis=-1)
    area = box_area(hull)
    cost: FloatArray = distance - (shared / union - (area - union) / area)
    return cost
