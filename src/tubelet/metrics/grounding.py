"""tIoU, vIoU and sIoU of one prediction under tubelet's default protocol, and their summary.

The default protocol: spans are half-open seconds; boxes are compared on all native frames; a sparse predicted
tube is interpolated linearly between its boxes; a missing box is IoU 0; every query counts, a failed or
wrongly rejected one as 0; thresholds are strict (>).

    tIoU = |P and T| / |P or T| in seconds
    vIoU = sum of box IoU over native frames in both spans / number of native frames in either span
    sIoU = mean box IoU over the true frames, boxes asked for with the true span given (task svg)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tubelet.metrics.bootstrap import Interval, bootstrap_mean, bootstrap_means
from tubelet.tube import Prediction, Span, Tube

FloatArray = npt.NDArray[np.float64]
VIOU_THRESHOLDS = (0.3, 0.5)


@dataclass(frozen=True, slots=True)
class Truth:
    """What is true of one query: span None means "not in this video".

    frame_times_s (N,): times of all native frames; boxes_xyxy (M, 4) at box_times_s (M,): the true boxes, on
    those native frames of the span where the target can be seen.
    """

    span: Span | None
    frame_times_s: FloatArray
    box_times_s: FloatArray
    boxes_xyxy: FloatArray


@dataclass(frozen=True, slots=True)
class Scores:
    tiou: float
    viou: float


def paired_iou(a: npt.ArrayLike, b: npt.ArrayLike) -> FloatArray:
    """IoU of xyxy boxes row by row: (N, 4), (N, 4) -> (N,). Rows with NaN, and two empty boxes, give 0."""
    p, q = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    side = np.minimum(p[:, 2:], q[:, 2:]) - np.maximum(p[:, :2], q[:, :2])
    shared = np.prod(np.clip(side, 0, None), axis=1)
    union = np.prod(p[:, 2:] - p[:, :2], axis=1) + np.prod(q[:, 2:] - q[:, :2], axis=1) - shared
    with np.errstate(invalid="ignore", divide="ignore"):
        iou = np.where(union > 0, shared / union, 0.0)
    return np.nan_to_num(iou, nan=0.0)


def score_tube(tube: Tube | None, truth: Truth) -> Scores:
    """Scores of one predicted tube (None: nothing was found) against a query that is true in the video."""
    if truth.span is None:
        raise ValueError("a query that is true of nothing has no tIoU: judge the rejection instead")
    if tube is None:
        return Scores(0.0, 0.0)
    tiou = tube.span.iou(truth.span)
    either = tube.span.contains(truth.frame_times_s) | truth.span.contains(truth.frame_times_s)
    counted = int(either.sum())
    if counted == 0 or len(tube) == 0:
        return Scores(tiou, 0.0)
    both = tube.span.contains(truth.box_times_s)
    ious = paired_iou(tube.boxes_at(truth.box_times_s[both]), truth.boxes_xyxy[both])
    return Scores(tiou, float(ious.sum() / counted))


def siou(tube: Tube | None, truth: Truth) -> float:
    """Mean box IoU over the true frames."""
    if len(truth.box_times_s) == 0:
        return float("nan")
    if tube is None or len(tube) == 0:
        return 0.0
    return float(paired_iou(tube.boxes_at(truth.box_times_s), truth.boxes_xyxy).mean())


def score_prediction(prediction: Prediction, truth: Truth) -> Scores:
    return score_tube(prediction.tube, truth)


def balanced_accuracy(found: npt.ArrayLike, present: npt.ArrayLike) -> Interval | None:
    """Mean of "found when present" and "rejected when absent", each group redrawn on its own.

    None when only one of the two groups is there.
    """
    f, p = np.asarray(found, dtype=bool), np.asarray(present, dtype=bool)
    if p.all() or not p.any():
        return None
    means = (bootstrap_means(f[p], seed=0) + bootstrap_means(~f[~p], seed=1)) / 2
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float((f[p].mean() + (~f[~p]).mean()) / 2), float(low), float(high), len(f))


def summarise(
    scores: Sequence[Scores], found: Sequence[bool], present: Sequence[bool], sious: Sequence[float] = ()
) -> dict[str, Interval]:
    """Means with 95 % intervals. `scores`: of the present queries, in order; found and present: of all."""
    tiou = np.array([s.tiou for s in scores])
    viou = np.array([s.viou for s in scores])
    out = {"m_tIoU": bootstrap_mean(tiou), "m_vIoU": bootstrap_mean(viou)}
    for threshold in VIOU_THRESHOLDS:
        out[f"vIoU@{threshold}"] = bootstrap_mean(viou > threshold)
    if len(sious):
        values = np.array(sious)
        out["sIoU"] = bootstrap_mean(values[~np.isnan(values)])
    rejection = balanced_accuracy(found, present)
    if rejection is not None:
        out["rejection_balanced_accuracy"] = rejection
    return out
