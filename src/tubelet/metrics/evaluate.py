"""Predictions and truths in, a report out: under any named protocol of tubes, every query counted.

A missing or failed prediction, and a query that the protocol's public code would raise on, score 0 and are listed
with a reason. Queries that are true of nothing have no tube scores; they enter the balanced accuracy of rejection.
Every number comes with its 95 % bootstrap interval; two reports on the same queries are compared query by query.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tubelet.errors import DataError
from tubelet.metrics.bootstrap import Interval, bootstrap_table, paired_difference
from tubelet.metrics.boxes import paired_iou, span_iou
from tubelet.metrics.convert import Prepared, prepare
from tubelet.metrics.grounding import balanced_accuracy, score_objects
from tubelet.metrics.protocols import Protocol, protocol
from tubelet.metrics.ragged import FloatArray, Ragged, Tubes, segment_sum
from tubelet.metrics.seconds import VSTAR_THRESHOLDS, Slices, score_vue
from tubelet.metrics.targets import TargetScores, score_bostvg, score_targets
from tubelet.metrics.truth import Truth
from tubelet.tube import Prediction, Tube

Targets = Truth | Sequence[Truth]

_MEANS = ("tIoU", "vIoU", "gt_vIoU", "sIoU")
_VUE = {
    "tIoU": "t_iou",
    "tRecall": "t_recall",
    "tPrecision": "t_precision",
    "vIoU": "v_iou",
    "vRecall": "v_recall",
    "vPrecision": "v_precision",
    "vIoU_Int": "v_iou_intersection",
    "volume_IoU": "3d_iou",
}


@dataclass(frozen=True, slots=True, eq=False)
class Report:
    """What one protocol says of a set of predictions.

    ids: the queries that are true in their video, in order; values: per query (Q,), in that order, NaN where the
    protocol defines no value; metrics: their means with intervals; failures: id -> reason, counted as 0;
    unknown: ids that were predicted and are no queries. n counts all queries, those true of nothing too.
    """

    protocol: str
    n: int
    ids: tuple[str, ...]
    values: Mapping[str, FloatArray]
    metrics: Mapping[str, Interval]
    failures: Mapping[str, str]
    unknown: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())

    @property
    def n_failed(self) -> int:
        return len(self.failures)

    def to_dict(self) -> dict[str, Any]:
        return {
            "protocol": self.protocol,
            "n": self.n,
            "n_present": len(self.ids),
            "n_failed": self.n_failed,
            "metrics": {name: interval.to_dict() for name, interval in self.metrics.items()},
            "failures": [{"id": key, "reason": reason} for key, reason in self.failures.items()],
            "unknown": list(self.unknown),
            "notes": list(self.notes),
        }


def evaluate(
    predictions: Mapping[str, Prediction],
    truths: Mapping[str, Targets],
    protocol_name: str | Protocol = "tubelet",
) -> Report:
    """Score predictions by query id against truths by query id.

    A truth is one `Truth`, or several for a query with several targets (protocols tubelet and bostvg). Raises
    DataError for an unknown protocol, no truths, or several targets under a protocol for one.
    """
    chosen = protocol(protocol_name)
    if not truths:
        raise DataError("there is nothing to score: no truths were given")
    present = {key: targets for key, value in truths.items() if (targets := _targets(key, value))}
    failures: dict[str, str] = {}
    for key in truths:
        if key not in predictions:
            failures[key] = "no prediction"
        elif (reason := predictions[key].failure) is not None:
            failures[key] = reason
    several = any(len(t) > 1 for t in present.values())
    if several and not (chosen.several_targets or chosen.name == "tubelet"):
        raise DataError(
            f"protocol {chosen.name} scores one target per query; use tubelet or bostvg for several"
        )
    ids = tuple(present)
    tubes = [predictions[k].tubes if k in predictions else () for k in ids]
    values, failed = _values(tubes, [present[k] for k in ids], chosen)
    for row, reason in failed.items():
        failures.setdefault(ids[row], reason)
    found = [key in predictions and predictions[key].found for key in truths]
    metrics = bootstrap_table(_columns(values, chosen))
    rejection = balanced_accuracy(found, [key in present for key in truths])
    if rejection is not None:
        metrics["rejection_balanced_accuracy"] = rejection
    unknown = tuple(key for key in predictions if key not in truths)
    return Report(chosen.name, len(truths), ids, values, metrics, failures, unknown, _notes(values, chosen))


def compare(a: Report, b: Report) -> dict[str, Interval]:
    """Paired differences a - b of every per-query value both reports have, with 95 % intervals.

    Raises DataError when the reports are not about the same queries.
    """
    if set(a.ids) != set(b.ids):
        odd = sorted(set(a.ids) ^ set(b.ids))
        raise DataError(
            f"the reports are about different queries: {len(odd)} are in one only, such as {odd[0]!r}"
        )
    place = {key: k for k, key in enumerate(b.ids)}
    order = np.array([place[key] for key in a.ids], dtype=np.int64)
    return {
        name: paired_difference(v, b.values[name][order]) for name, v in a.values.items() if name in b.values
    }


def by_group(report: Report, groups: Mapping[str, str]) -> dict[str, dict[str, Interval]]:
    """Metrics per group of queries ({id: group}, for instance the question type); unnamed queries are "other"."""
    labels = np.array([groups.get(key, "other") for key in report.ids])
    chosen = protocol(report.protocol)
    return {
        str(label): bootstrap_table(
            _columns({k: v[labels == label] for k, v in report.values.items()}, chosen)
        )
        for label in np.unique(labels)
    }


def _notes(values: Mapping[str, FloatArray], chosen: Protocol) -> tuple[str, ...]:
    """What a reader of the numbers must know."""
    notes = [
        f"{name} is undefined for {int(np.isnan(v).sum())} queries, which are not in its mean"
        for name, v in values.items()
        if np.isnan(v).any()
    ]
    if "gt_vIoU" in values and chosen.axis != "seconds":
        notes.append("gt_vIoU: outside the predicted span the nearest predicted box was repeated")
    return tuple(notes)


def _targets(key: str, value: Targets) -> list[Truth]:
    """The true targets of a query; none when it is true of nothing."""
    listed = [value] if isinstance(value, Truth) else list(value)
    return [t for t in listed if t.span is not None]


def _columns(values: Mapping[str, FloatArray], chosen: Protocol) -> dict[str, FloatArray]:
    """Values and their hits, under the names they are reported by."""
    out = {f"m_{name}" if name in _MEANS else name: v for name, v in values.items()}
    for name in chosen.hits:
        for limit in chosen.thresholds:
            out[f"{name}@{limit:g}"] = chosen.rules.hit(values[name], limit).astype(np.float64)
    return out


def _values(
    tubes: Sequence[tuple[Tube, ...]], truths: Sequence[Sequence[Truth]], chosen: Protocol
) -> tuple[dict[str, FloatArray], dict[int, str]]:
    """The protocol's values per query, and row -> reason of queries it cannot score."""
    if chosen.several_targets:
        return _bostvg(tubes, truths, chosen)
    best, true_tubes = [t[0] if t else None for t in tubes], [t[0] for t in truths]
    if chosen.name == "vue_stg":
        ready = prepare(best, true_tubes, chosen)
        scored = score_vue(_slices(ready.truth), _slices(ready.predicted))
        return {name: scored[key] for name, key in _VUE.items()}, {}
    if chosen.name == "vstar":
        return _vstar(prepare(best, true_tubes, chosen)), {}
    scores = score_objects(best, true_tubes, chosen)
    values = {"tIoU": scores.tiou, "vIoU": scores.viou, "gt_vIoU": scores.gt_viou, "sIoU": scores.siou}
    if chosen.axis == "truncated_seconds":
        values["tIoU"] = _span_tiou(tubes, truths)
    for row, true in enumerate(truths):
        if len(true) > 1:
            several = _several(tubes[row], true, chosen)
            values["tIoU"][row], values["vIoU"][row], values["gt_vIoU"][row] = (
                several.tiou,
                several.viou,
                np.nan,
            )
    # where nothing is found there is no box to miss: that is a 0, not a failure
    failures = {row: reason for row, reason in scores.failures.items() if tubes[row]}
    return {name: values[name] for name in chosen.metrics}, failures


def _span_tiou(tubes: Sequence[tuple[Tube, ...]], truths: Sequence[Sequence[Truth]]) -> FloatArray:
    nothing = (np.nan, np.nan)
    given = [(t[0].span.start_s, t[0].span.end_s) if t else nothing for t in tubes]
    true = [(s.start_s, s.end_s) if (s := t[0].span) else nothing for t in truths]
    return span_iou(np.array(given).reshape(-1, 2), np.array(true).reshape(-1, 2))


def _several(tubes: Sequence[Tube], truths: Sequence[Truth], chosen: Protocol) -> TargetScores:
    given = Tubes.stack(
        [(t.span.start_s, t.span.end_s) for t in tubes],
        [t.times_s for t in tubes],
        [t.boxes_xyxy for t in tubes],
    )
    true = Tubes.stack(
        [(t.span.start_s, t.span.end_s) for t in truths if t.span],
        [t.box_times_s for t in truths],
        [t.boxes_xyxy for t in truths],
    )
    return score_targets(given, true, chosen.rules, truths[0].frame_times_s)


def _slices(tubes: Tubes) -> Slices:
    return Slices(Ragged(tubes.at * 1000, tubes.offsets), tubes.boxes_xyxy, np.arange(len(tubes.at)))


def _vstar(ready: Prepared) -> dict[str, FloatArray]:
    rows, n = ready.truth.rows, len(ready.truth)
    iou = paired_iou(ready.predicted.boxes_at(ready.truth.at, rows, "none"), ready.truth.boxes_xyxy)
    seconds = np.maximum(np.diff(ready.truth.offsets), 1)
    values = {
        "tIoU": span_iou(ready.predicted.spans, ready.truth.spans),
        "mIoU": segment_sum(iou, rows, n) / seconds,
    }
    return values | {f"AP@{t:g}": segment_sum(iou >= t, rows, n) / seconds for t in VSTAR_THRESHOLDS}


def _bostvg(
    tubes: Sequence[tuple[Tube, ...]], truths: Sequence[Sequence[Truth]], chosen: Protocol
) -> tuple[dict[str, FloatArray], dict[int, str]]:
    """Queries as BOSTVG records: one span for all targets, several boxes per frame."""
    given_rows = [row for row, given in enumerate(tubes) for _ in given]
    true_rows = [row for row, true in enumerate(truths) for _ in true]
    given = prepare([t for g in tubes for t in g], [truths[row][0] for row in given_rows], chosen).predicted
    true = prepare([None] * len(true_rows), [t for each in truths for t in each], chosen).truth
    boxes: list[dict[int, list[FloatArray]]] = [{} for _ in tubes]
    for row, at, box in zip(
        np.array(given_rows, dtype=int)[given.rows], given.at, given.boxes_xyxy, strict=True
    ):
        boxes[row].setdefault(int(at), []).append(box)
    targets: list[list[dict[int, FloatArray]]] = [[] for _ in tubes]
    for k, row in enumerate(true_rows):
        part = slice(true.offsets[k], true.offsets[k + 1])
        targets[row].append(dict(zip(true.at[part].astype(int).tolist(), true.boxes_xyxy[part], strict=True)))
    spans, bounds = _hulls(given.spans, given_rows, len(tubes)), _hulls(true.spans, true_rows, len(tubes))
    scores = score_bostvg(
        [
            {
                "gt_temp_bound": bounds[row],
                "gt_tubes_xyxy": targets[row],
                "pred": {"sted": spans[row], "boxes": boxes[row]},
            }
            for row in range(len(tubes))
        ]
    )
    return {"tIoU": scores.tiou, "vIoU": scores.viou, "gt_vIoU": scores.gt_viou}, scores.failures


def _hulls(spans: FloatArray, rows: Sequence[int], n: int) -> FloatArray:
    """(n, 2) from the first start to the last end of each query's spans; NaN where it has none."""
    low, high = np.full(n, np.inf), np.full(n, -np.inf)
    np.minimum.at(low, np.array(rows, dtype=int), spans[:, 0])
    np.maximum.at(high, np.array(rows, dtype=int), spans[:, 1])
    out = np.stack([low, high], axis=1)
    out[~np.isfinite(out)] = np.nan
    return out
