"""The default protocol on our own types, one query at a time, and the summary of many.

Spans are half-open seconds; boxes are compared on all native frames; a sparse predicted tube is interpolated linearly
between its boxes; a missing box is IoU 0; every query counts, a failed or wrongly rejected one as 0; thresholds are
strict (>). The formula and its vectorised form are in `tubes`; many queries are better scored by `evaluate`.

    tIoU = |P and T| / |P or T| in seconds
    vIoU = sum of box IoU over native frames in both spans / number of native frames in either span
    sIoU = mean box IoU over the true frames, boxes asked for with the true span given (task svg)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tubelet.errors import DataError
from tubelet.metrics.bootstrap import Interval, bootstrap_means, bootstrap_table
from tubelet.metrics.boxes import paired_iou
from tubelet.metrics.convert import prepare
from tubelet.metrics.protocols import PROTOCOLS, Protocol
from tubelet.metrics.truth import Truth
from tubelet.metrics.tubes import TubeScores, blocks, join, score_tubes
from tubelet.tube import Prediction, Tube

__all__ = [
    "Scores",
    "Truth",
    "balanced_accuracy",
    "paired_iou",
    "score_many",
    "score_prediction",
    "score_tube",
    "siou",
    "summarise",
]

VIOU_THRESHOLDS = (0.3, 0.5)


@dataclass(frozen=True, slots=True)
class Scores:
    tiou: float
    viou: float


def score_many(tubes: Sequence[Tube | None], truths: Sequence[Truth]) -> TubeScores:
    """Scores (Q,) of predicted tubes (None: nothing was found) under the default protocol."""
    return score_objects(tubes, truths, PROTOCOLS["tubelet"])


def score_objects(tubes: Sequence[Tube | None], truths: Sequence[Truth], chosen: Protocol) -> TubeScores:
    """Scores (Q,) under any protocol of tubes; laid out and scored block by block, to stay in the cache."""
    if len(tubes) != len(truths):
        raise DataError(f"{len(tubes)} predictions for {len(truths)} truths: give one per query, in order")
    sizes = [
        (0 if t is None else len(t)) + len(true.box_times_s) for t, true in zip(tubes, truths, strict=True)
    ]
    parts = []
    for part in blocks(np.array(sizes, dtype=np.int64)):
        ready = prepare(tubes[part], truths[part], chosen)
        grid = ready.grid if chosen.axis == "seconds" or chosen.rules.frames == "listed" else None
        parts.append(score_tubes(ready.predicted, ready.truth, chosen.rules, grid))
    return join(parts)


def score_tube(tube: Tube | None, truth: Truth) -> Scores:
    """Scores of one predicted tube (None: nothing was found) against a query that is true in the video."""
    if truth.span is None:
        raise ValueError("a query that is true of nothing has no tIoU: judge the rejection instead")
    scores = score_many([tube], [truth])
    return Scores(float(scores.tiou[0]), float(scores.viou[0]))


def siou(tube: Tube | None, truth: Truth) -> float:
    """Mean box IoU over the true frames; NaN when there are none."""
    if len(truth.box_times_s) == 0:
        return float("nan")
    return float(score_many([tube], [truth]).gt_viou[0])


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
    columns = {"m_tIoU": tiou, "m_vIoU": viou}
    columns |= {f"vIoU@{t}": (viou > t).astype(np.float64) for t in VIOU_THRESHOLDS}
    out = bootstrap_table(columns)
    if len(sious):
        out |= bootstrap_table({"sIoU": np.array(sious)})
    rejection = balanced_accuracy(found, present)
    if rejection is not None:
        out["rejection_balanced_accuracy"] = rejection
    return out
