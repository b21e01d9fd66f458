"""Referring expressions in images: IoU, Acc@t and centre accuracy of one box per sentence.

Boxes are xyxy in any unit that prediction and truth share. A sentence without a predicted box scores 0 and is
listed, unless the protocol drops it (LLaVA-ST's evaluator does).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tubelet.errors import DataError
from tubelet.metrics.bootstrap import Interval, bootstrap_table
from tubelet.metrics.boxes import box_area, paired_iou

FloatArray = npt.NDArray[np.float64]
Box = Sequence[float]


@dataclass(frozen=True, slots=True)
class BoxRules:
    """strict: hits are > threshold, else >=. drop_missing: sentences without a box leave the denominator."""

    name: str
    source: str
    strict: bool = False
    drop_missing: bool = False
    thresholds: tuple[float, ...] = (0.5,)


BOX_PROTOCOLS: dict[str, BoxRules] = {
    r.name: r
    for r in (
        BoxRules("tubelet", "tubelet's default"),
        BoxRules("refcoco", "lmms-eval tasks/refcoco/utils_rec.py", thresholds=(0.1, 0.3, 0.5, 0.7, 0.9)),
        BoxRules("llavast_rec", "LLaVA-ST inference/src/metrics.py:eval_rec", drop_missing=True),
        BoxRules("grefexp", "mjhucla/Google_Refexp_toolbox"),
    )
}


@dataclass(frozen=True, slots=True, eq=False)
class BoxScores:
    """Per sentence values (Q,) (NaN: dropped by the protocol), their means with intervals, and failures."""

    protocol: str
    values: dict[str, FloatArray]
    metrics: dict[str, Interval]
    failures: dict[int, str]


def score_boxes(
    predicted: Sequence[Box | None], truth: Sequence[Box], protocol: str = "tubelet"
) -> BoxScores:
    """IoU, ACC@t and Center_ACC of Q predicted boxes (None: the answer holds no box)."""
    if protocol not in BOX_PROTOCOLS:
        raise DataError(f"unknown protocol {protocol!r}; boxes are scored by {', '.join(BOX_PROTOCOLS)}")
    if len(predicted) != len(truth):
        raise DataError(f"{len(predicted)} predicted boxes for {len(truth)} sentences")
    rules = BOX_PROTOCOLS[protocol]
    true = np.asarray(truth, dtype=np.float64).reshape(-1, 4)
    missing = np.array([b is None for b in predicted], dtype=bool)
    given = np.array([(0.0,) * 4 if b is None else tuple(b) for b in predicted], dtype=np.float64).reshape(
        -1, 4
    )
    failures = {int(k): "the answer holds no box" for k in np.flatnonzero(missing)}
    empty = (box_area(given) == 0) & (box_area(true) == 0)
    failures |= {
        int(k): "both boxes have no area: their IoU is 0/0" for k in np.flatnonzero(empty & ~missing)
    }
    iou = paired_iou(given, true)
    values = {"IoU": iou}
    for limit in rules.thresholds:
        values[f"ACC@{limit:g}"] = (iou > limit if rules.strict else iou >= limit).astype(np.float64)
    centre = (given[:, :2] + given[:, 2:]) / 2
    inside = ((centre >= true[:, :2]) & (centre <= true[:, 2:])).all(axis=1)
    values["Center_ACC"] = (inside & ~missing).astype(np.float64)
    if rules.drop_missing:
        for column in values.values():
            column[missing] = np.nan
    return BoxScores(protocol, values, bootstrap_table(values), failures)


def recall_of_boxes(
    candidates: Sequence[Sequence[Box]], truth: Sequence[Box], k: int, threshold: float = 0.5
) -> FloatArray:
    """(Q,) whether one of the first k candidate boxes has IoU >= threshold (precision@k of the RefExp toolbox)."""
    out = np.zeros(len(truth))
    for q, (listed, true) in enumerate(zip(candidates, truth, strict=True)):
        if len(listed):
            first = np.asarray(listed[:k], dtype=np.float64)
            out[q] = (
                paired_iou(first, np.broadcast_to(np.asarray(true, dtype=np.float64), first.shape)).max()
                >= threshold
            )
    return out
