"""Our tubes and truths, laid out the way a protocol's own files would hold them.

A prediction is turned into what a submission to that benchmark would contain: its span in that project's unit and
ending, and one box on every frame (or sampled frame, or second) of the span, interpolated as `Tube.boxes_at` does.
Differences between two protocols are then differences of scoring, not of what was handed in. Evaluators that report
gt_vIoU expect a box on every frame of the video: outside the predicted span the nearest box is repeated; it enters
gt_vIoU alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tubelet.errors import DataError
from tubelet.metrics.protocols import Protocol
from tubelet.metrics.ragged import (
    EPS,
    BoolArray,
    FloatArray,
    IntArray,
    Ragged,
    Tubes,
    count_before,
    is_listed,
    rows_of,
    segment_sum,
)
from tubelet.metrics.sampling import llavast_frames, sampled_at_rate
from tubelet.metrics.truth import Truth
from tubelet.tube import Tube

_NOTHING = np.empty(0)
_NO_BOX = np.empty((0, 4))


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """Q predictions and truths on one axis; `grid`: the frames that exist there or were sampled."""

    predicted: Tubes
    truth: Tubes
    grid: Ragged


def prepare(predicted: Sequence[Tube | None], truths: Sequence[Truth], protocol: Protocol) -> Prepared:
    """Predictions (None: nothing found) and truths of queries that are true in their video, row by row."""
    if len(predicted) != len(truths):
        raise DataError(
            f"{len(predicted)} predictions for {len(truths)} truths: give one per query, in order"
        )
    for row, truth in enumerate(truths):
        if truth.span is None:
            raise DataError(f"query {row} is true of nothing: it has no tIoU, judge the rejection instead")
    given = Tubes.stack(
        [None if t is None else (t.span.start_s, t.span.end_s) for t in predicted],
        [_NOTHING if t is None else t.times_s for t in predicted],
        [_NO_BOX if t is None else t.boxes_xyxy for t in predicted],
        check=False,  # a Tube was checked when it was made
    )
    true = Tubes.stack(
        [(t.span.start_s, t.span.end_s) for t in truths if t.span is not None],
        [t.box_times_s for t in truths],
        [t.boxes_xyxy for t in truths],
    )
    times = Ragged.stack([t.frame_times_s for t in truths])
    if protocol.axis == "seconds":
        return Prepared(given, true, times)
    if protocol.axis == "every_second":
        return _by_second(given, true, times)
    if (np.diff(times.offsets) == 0).any():
        raise DataError(f"protocol {protocol.name} counts native frames: every truth needs frame_times_s")
    return _by_frame(given, true, times, protocol)


def _by_frame(given: Tubes, true: Tubes, times: Ragged, protocol: Protocol) -> Prepared:
    lengths = np.diff(times.offsets)
    rows = times_rows = rows_of(times.offsets)
    index = np.arange(len(times.at)) - times.offsets[rows]
    sampled = _sampled(times, protocol, index)
    span_in = _truncated if protocol.axis == "truncated_seconds" else _first_frames
    spans = span_in(given.spans, times) - [0, int(protocol.prediction_end == "inclusive")]
    true_spans = span_in(true.spans, times) - [0, int(protocol.truth_end == "inclusive")]

    start, end = given.spans[times_rows, 0], given.spans[times_rows, 1]
    inside = sampled & (times.at >= start - EPS) & (times.at < end - EPS)
    if protocol.axis == "truncated_seconds":
        inside = (index >= spans[rows, 0]) & (index <= spans[rows, 1])
    elif "gt_vIoU" in protocol.metrics:
        inside = sampled & ~np.isnan(start)  # outside the span only gt_vIoU looks
    clamped = np.clip(times.at[inside], start[inside], end[inside])
    boxes = given.boxes_at(clamped, times_rows[inside], "hold")
    has_box = ~np.isnan(boxes[:, 0])
    counts = segment_sum(has_box, times_rows[inside], len(lengths)).astype(np.int64)
    predicted = Tubes(
        spans,
        index[inside][has_box].astype(np.float64),
        boxes[has_box],
        np.concatenate([[0], np.cumsum(counts)]),
    )
    frame = np.minimum(count_before(times, true.at - EPS, true.rows), lengths[true.rows] - 1)
    truth = Tubes(true_spans, frame.astype(np.float64), true.boxes_xyxy, true.offsets)
    taken = segment_sum(sampled, rows, len(lengths)).astype(np.int64)
    grid = Ragged(index[sampled].astype(np.float64), np.concatenate([[0], np.cumsum(taken)]))
    if protocol.rules.frames == "keys":
        truth = truth.keep(is_listed(grid, truth.at, truth.rows))
    return Prepared(predicted, truth, grid)


def _by_second(given: Tubes, true: Tubes, times: Ragged) -> Prepared:
    """Whole seconds at which a frame is shown; spans stay in seconds."""
    last = np.maximum.reduceat(times.at, times.offsets[:-1]) if len(times.at) else np.zeros(len(times))
    offsets = np.concatenate([[0], np.cumsum(np.floor(last + EPS).astype(np.int64) + 1)])
    rows = rows_of(offsets)
    grid = Ragged((np.arange(len(rows)) - offsets[rows]).astype(np.float64), offsets)

    def at_seconds(tubes: Tubes) -> Tubes:
        inside = (grid.at >= tubes.spans[rows, 0] - EPS) & (grid.at < tubes.spans[rows, 1] - EPS)
        clamped = np.clip(grid.at[inside], tubes.spans[rows[inside], 0], tubes.spans[rows[inside], 1])
        boxes = tubes.boxes_at(clamped, rows[inside], "hold")
        has_box = ~np.isnan(boxes[:, 0])
        counts = segment_sum(has_box, rows[inside], len(tubes)).astype(np.int64)
        cut = np.concatenate([[0], np.cumsum(counts)])
        return Tubes(tubes.spans, grid.at[inside][has_box], boxes[has_box], cut)

    return Prepared(at_seconds(given), at_seconds(true), grid)


def _sampled(times: Ragged, protocol: Protocol, index: IntArray) -> BoolArray:
    """(N,) which native frames the protocol looks at."""
    if protocol.axis not in ("5fps", "100_frames"):
        return np.ones(len(times.at), dtype=bool)
    mask = np.zeros(len(times.at), dtype=bool)
    for first, past in zip(times.offsets[:-1], times.offsets[1:], strict=True):
        n = int(past - first)
        if protocol.axis == "100_frames":
            taken = llavast_frames(0, n - 1)
        else:
            shown = times.at[first:past]
            fps = 5.0 if n < 2 else float((n - 1) / (shown[-1] - shown[0]))
            # slow videos are taken whole; the public reader refuses them
            taken = sampled_at_rate(0, n - 1, max(fps, 5.0))
        mask[first + taken] = True
    return mask


def _first_frames(spans: FloatArray, times: Ragged) -> FloatArray:
    """(Q, 2) native frames [first, past the last) of half-open spans in seconds; NaN stays NaN."""
    out = spans.copy()
    stated = np.flatnonzero(~np.isnan(spans[:, 0]))
    for column in (0, 1):
        out[stated, column] = count_before(times, spans[stated, column] - EPS, stated)
    return out


def _truncated(spans: FloatArray, times: Ragged) -> FloatArray:
    """(Q, 2) frames floor(seconds x fps), end one further so that `- 1` gives the truncated inclusive end."""
    lengths = np.diff(times.offsets)
    first, last = times.at[times.offsets[:-1]], times.at[times.offsets[1:] - 1]
    fps = np.divide(lengths - 1, last - first, out=np.ones(len(lengths)), where=last > first)
    out: FloatArray = np.floor(spans * fps[:, None] + 1e-4) + np.array([0.0, 1.0])
    return out
