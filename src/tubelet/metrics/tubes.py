"""Scores of tubes: tIoU, vIoU, gt_vIoU, sIoU and volume IoU of many queries at once, under explicit rules.

    tIoU     overlap of the spans over their hull
    vIoU     sum of box IoU over counted frames in both spans / counted frames in the hull of the spans
    gt_vIoU  sum of box IoU over all true frames / number of true frames, whatever span was predicted
    sIoU     sum of box IoU over frames where both have a box / number of those frames
    volume   sum of shared box areas / sum of united box areas, over all counted frames

Every choice on which public evaluators disagree is a field of `Rules`; `tubelet.metrics.protocols` names the
combinations that are in use. A query that the rules call an error scores 0 everywhere and is listed with a reason.
Knows neither seconds nor files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from tubelet.errors import DataError
from tubelet.metrics.boxes import box_area, paired_iou, shared_area, span_iou
from tubelet.metrics.ragged import (
    BoolArray,
    FloatArray,
    IntArray,
    Interpolate,
    Ragged,
    Tubes,
    is_listed,
    last_not_after,
    merge,
    rows_of,
    segment_sum,
    sum_by,
)

Ends = Literal["exclusive", "inclusive"]
BLOCK_BOXES = 131_072
"""Queries are scored in blocks of about this many boxes, so that what is worked on stays in the processor's cache."""

Extension = Literal["none", "last+1", "next", "midpoint"]


@dataclass(frozen=True, slots=True)
class Rules:
    """What a protocol counts, and how.

    frames: frames that divide vIoU. all: every frame of the hull (whole numbers, or those of the grid when one is
        given); listed: only frames of the grid, boxes elsewhere are ignored; keys: frames that carry a true or a
        predicted box.
    ends: whether the last frame of a span belongs to it, in vIoU. tiou_ends: the same in tIoU.
    tiou: spans, or keys: frames that carry both boxes over the frames of the hull.
    numerator: spans: frames in both spans; keys: every frame with both boxes.
    strict: hits are > threshold, else >=.
    missing: a true frame without a predicted box counts as IoU 0 (zero), fails the query (error), or leaves the
        sums and the denominators (skip).
    empty: IoU of two boxes without area is 0 (zero), or fails the query (error: 0/0 in the public code).
    span_extension: the span of a prediction that states none, from its first and last box.
    interpolate: predicted boxes between (linear) and beside (hold) the given ones.
    point_overlap: spans that share a single frame overlap.
    volume: also compute the volume IoU.
    """

    frames: Literal["all", "listed", "keys"] = "all"
    ends: Ends = "exclusive"
    tiou_ends: Ends = "exclusive"
    tiou: Literal["spans", "keys"] = "spans"
    numerator: Literal["spans", "keys"] = "spans"
    strict: bool = True
    missing: Literal["zero", "error", "skip"] = "zero"
    empty: Literal["zero", "error"] = "zero"
    span_extension: Extension = "none"
    interpolate: Interpolate = "none"
    point_overlap: bool = True
    volume: bool = False

    def hit(self, values: FloatArray, threshold: float) -> BoolArray:
        """Which values pass a threshold."""
        return values > threshold if self.strict else values >= threshold


@dataclass(frozen=True, slots=True, eq=False)
class TubeScores:
    """One value per query (Q,); failed queries are 0 and named in `failures` as row -> reason."""

    tiou: FloatArray
    viou: FloatArray
    gt_viou: FloatArray
    siou: FloatArray
    volume_iou: FloatArray | None
    failures: dict[int, str]


def score_tubes(
    predicted: Tubes, truth: Tubes, rules: Rules | None = None, grid: Ragged | None = None
) -> TubeScores:
    """Scores of Q predicted tubes against Q true ones, row by row.

    Args:
        predicted, truth: spans and boxes on the same axis (frames or seconds).
        grid: the frames that exist (seconds axis) or that were sampled; needed for frames="listed" and to extend
            spans; without it every whole number is a frame.
    """
    rules = rules or Rules()
    n = len(truth)
    if len(predicted) != n or (grid is not None and len(grid) != n):
        raise DataError(f"{len(predicted)} predictions for {n} truths: score them row by row")
    if rules.frames == "listed" and grid is None:
        raise DataError("frames='listed' needs the list of frames: give grid")
    cuts = blocks(np.diff(predicted.offsets) + np.diff(truth.offsets))
    parts = []
    for part in cuts:
        frames = None if grid is None else grid.part(part)
        parts.append(_score_block(predicted.part(part), truth.part(part), rules, frames))
    return join(parts)


def blocks(sizes: IntArray) -> list[slice]:
    """Consecutive queries (Q,) of about `BLOCK_BOXES` boxes together; at least one block."""
    cuts = np.flatnonzero(np.diff(np.cumsum(sizes) // BLOCK_BOXES)) + 1
    if len(cuts):
        # glibc keeps freed memory up to the largest piece it saw freed: without this every temporary array of every
        # block is fresh memory, which costs more than the arithmetic. Nothing is touched, and nothing is kept.
        np.empty(16 * BLOCK_BOXES)
    edges = [0, *cuts.tolist(), len(sizes)]
    return [slice(low, high) for low, high in pairwise(edges)]


def join(parts: Sequence[TubeScores]) -> TubeScores:
    """Scores of consecutive blocks of queries in one piece."""
    volumes = [p.volume_iou for p in parts if p.volume_iou is not None]
    starts = np.cumsum([0, *(len(p.tiou) for p in parts)]).tolist()
    return TubeScores(
        tiou=np.concatenate([p.tiou for p in parts]),
        viou=np.concatenate([p.viou for p in parts]),
        gt_viou=np.concatenate([p.gt_viou for p in parts]),
        siou=np.concatenate([p.siou for p in parts]),
        volume_iou=np.concatenate(volumes) if volumes else None,
        failures={
            row + start: reason
            for p, start in zip(parts, starts, strict=False)
            for row, reason in p.failures.items()
        },
    )


def _score_block(predicted: Tubes, truth: Tubes, rules: Rules, grid: Ragged | None) -> TubeScores:
    predicted = predicted.with_spans(stated_spans(predicted, grid, rules.span_extension))
    if rules.frames == "listed" and grid is not None:
        truth = truth.keep(is_listed(grid, truth.at, truth.rows))

    rows, offsets = truth.rows, truth.offsets
    lengths = np.diff(offsets)
    found = predicted.boxes_at(truth.at, rows, rules.interpolate, lengths)
    has_box = ~np.isnan(found[:, 0])
    iou = paired_iou(found, truth.boxes_xyxy)
    inside = _in_both(predicted.spans, truth.spans, truth.at, lengths, rules)
    used = has_box if rules.numerator == "keys" else inside
    both = sum_by(has_box, offsets)
    counted = _frames_counted(predicted, truth, rules, grid, both)
    true_frames = lengths.astype(np.float64)
    if rules.missing == "skip":
        counted = counted - sum_by(inside & ~has_box, offsets)
        true_frames = both
    if grid is not None and rules.frames == "all":
        # a time rounded in a file may fall out of its own span: a frame that is compared is counted
        counted = np.maximum(counted, sum_by(used & has_box, offsets))
    counted = np.maximum(counted, 1.0)
    total = sum_by(iou, offsets)
    scores = TubeScores(
        tiou=both / counted
        if rules.tiou == "keys"
        else span_iou(predicted.spans, truth.spans, rules.tiou_ends == "inclusive"),
        viou=sum_by(iou * used, offsets) / counted,
        gt_viou=total / np.maximum(true_frames, 1.0),
        siou=total / np.maximum(both, 1.0),
        volume_iou=volume_iou(predicted, truth, rules, grid) if rules.volume else None,
        failures=_failures(found, truth, has_box, rules),
    )
    for row in scores.failures:
        for values in (scores.tiou, scores.viou, scores.gt_viou, scores.siou, scores.volume_iou):
            if values is not None:
                values[row] = 0.0
    return scores


def volume_iou(predicted: Tubes, truth: Tubes, rules: Rules, grid: Ragged | None = None) -> FloatArray:
    """(Q,) shared volume over united volume; boxes are compared at the frames of the grid, or where there are any."""
    n = len(truth)
    frames = grid if grid is not None else merge(_ragged(predicted), _ragged(truth))
    rows = rows_of(frames.offsets)
    in_truth = truth.boxes_at(frames.at, rows, "none")
    in_prediction = predicted.boxes_at(frames.at, rows, rules.interpolate)
    closed = rules.ends == "inclusive"
    if rules.numerator == "spans":
        in_prediction[~_inside(predicted.spans, frames.at, rows, closed)] = np.nan
        in_truth[~_inside(truth.spans, frames.at, rows, closed)] = np.nan
    shared = segment_sum(np.nan_to_num(shared_area(in_prediction, in_truth)), rows, n)
    areas = np.nan_to_num(box_area(in_prediction)) + np.nan_to_num(box_area(in_truth))
    united = segment_sum(areas, rows, n) - shared
    return np.divide(shared, united, out=np.zeros(n), where=united > 0)


def stated_spans(tubes: Tubes, grid: Ragged | None, extension: Extension) -> FloatArray:
    """(Q, 2) the spans, those not stated taken from the first and the last box.

    none: [first, last]; last+1: [first, last + 1]; next: up to the next sampled frame; midpoint: from midway to
    the previous sampled frame up to midway to the next. "next" and "midpoint" need the sampled frames as grid;
    beside the first and the last sample the neighbouring step is repeated.
    """
    spans = tubes.spans.copy()
    unstated = np.isnan(spans).any(axis=1) & (np.diff(tubes.offsets) > 0)
    if not unstated.any():
        return spans
    rows = np.flatnonzero(unstated)
    first, last = tubes.at[tubes.offsets[rows]], tubes.at[tubes.offsets[rows + 1] - 1]
    if extension == "last+1":
        spans[rows] = np.stack([first, last + 1], axis=1)
    elif extension == "none":
        spans[rows] = np.stack([first, last], axis=1)
    else:
        if grid is None:
            raise DataError(f"span_extension={extension!r} needs the sampled frames: give grid")
        before, _ = _neighbours(grid, first, rows)
        _, after = _neighbours(grid, last, rows)
        if extension == "midpoint":
            spans[rows] = np.stack([(before + first) / 2, (last + after) / 2], axis=1)
        else:
            spans[rows] = np.stack([first, after], axis=1)
    return spans


def _neighbours(grid: Ragged, at: FloatArray, rows: IntArray) -> tuple[FloatArray, FloatArray]:
    """The sampled frames before and after a sampled frame of each row; a step beyond at the ends of the list."""
    first, past = grid.offsets[rows], grid.offsets[rows + 1]
    if (past - first < 2).any():
        raise DataError("a span can only be extended among at least two sampled frames")
    if not is_listed(grid, at, rows).all():
        raise DataError("the boxes that define a span must lie on sampled frames")
    index = last_not_after(grid.at, grid.offsets, at, rows)
    previous, following = np.maximum(index - 1, first), np.minimum(index + 1, past - 1)
    before, after = grid.at[previous], grid.at[following]
    before = np.where(index == first, at - (after - at), before)
    after = np.where(index == past - 1, at + (at - grid.at[previous]), after)
    return before, after


def _inside(spans: FloatArray, at: FloatArray, rows: IntArray, closed: bool) -> BoolArray:
    start, end = spans[rows, 0], spans[rows, 1]
    inside: BoolArray = (at >= start) & ((at <= end) if closed else (at < end))
    return inside


def _in_both(a: FloatArray, b: FloatArray, at: FloatArray, lengths: IntArray, rules: Rules) -> BoolArray:
    """(N,) which positions, lengths[k] of row k, lie in both spans of their row."""
    low, high = (
        np.maximum(a[:, 0], b[:, 0]),
        np.minimum(a[:, 1], b[:, 1]),
    )  # NaN, if one is: nothing is inside
    if not rules.point_overlap:
        low = np.where(high > low, low, np.nan)
    inside: BoolArray = at >= np.repeat(low, lengths)
    end = np.repeat(high, lengths)
    inside &= (at <= end) if rules.ends == "inclusive" else (at < end)
    return inside


def _frames_counted(
    predicted: Tubes, truth: Tubes, rules: Rules, grid: Ragged | None, both: FloatArray
) -> FloatArray:
    """(Q,) frames that divide vIoU, before the floor of one."""
    if rules.frames == "keys":
        return np.diff(predicted.offsets) + np.diff(truth.offsets) - both
    low = np.fmin(predicted.spans[:, 0], truth.spans[:, 0])  # fmin ignores a span that is not there
    high = np.fmax(predicted.spans[:, 1], truth.spans[:, 1])
    closed = rules.ends == "inclusive"
    if grid is not None:
        return grid.count_between(low, high, closed)
    return np.nan_to_num(np.maximum(high - low + (1.0 if closed else 0.0), 0.0))


def _failures(found: FloatArray, truth: Tubes, has_box: BoolArray, rules: Rules) -> dict[int, str]:
    rows = truth.rows
    out: dict[int, str] = {}
    if rules.empty == "error":
        empty = has_box & (box_area(found) == 0) & (box_area(truth.boxes_xyxy) == 0)
        for k in np.flatnonzero(empty)[::-1]:
            out[int(rows[k])] = f"both boxes of frame {truth.at[k]:g} have no area: their IoU is 0/0"
    if rules.missing == "error":
        absent = segment_sum(~has_box, rows, len(truth))
        for k in np.flatnonzero(~has_box)[
            ::-1
        ]:  # backwards: the first missing frame is the one that is named
            row = int(rows[k])
            out[row] = f"no predicted box for frame {truth.at[k]:g} ({absent[row]:.0f} missing in all)"
    return out


def _ragged(tubes: Tubes) -> Ragged:
    return Ragged(tubes.at, tubes.offsets)
