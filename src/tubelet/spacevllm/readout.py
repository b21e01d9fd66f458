"""From decoder outputs and answer texts to a tube: which frames, which span, which boxes, how sure.

Three ways to read the span (`span_reader`): "text" parses the answer (paper); "activity" takes the window
that is best under the per-frame activity probabilities; "both" averages the two where they agree (our
additions).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tubelet.frames import FrameGrid
from tubelet.spacevllm.prompts import SpanAnswer
from tubelet.tube import Span, Tube

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class FrameReading:
    """Decoder outputs of one question, in [0, 1]: boxes (T, 4) xyxy, activity and quality (T,), presence."""

    boxes_xyxy: FloatArray
    activity: FloatArray
    quality: FloatArray
    presence: float


def calibrated(presence_logit: float, threshold: float) -> float:
    """Presence as a probability that is 0.5 where the threshold is: below 0.5 means "not in this video".

    threshold: in probabilities, as calibrated on validation data; 0 (no calibration) shifts nothing.
    """
    shift = math.log(threshold / (1 - threshold)) if 0 < threshold < 1 else (math.inf if threshold else 0.0)
    return 1 / (1 + math.exp(min(700.0, shift - presence_logit)))


def best_window(probability: npt.ArrayLike, weight: npt.ArrayLike) -> tuple[int, int, float]:
    """The run of frames a..b (inclusive) with the highest expected tIoU, and that value.

    With independent frame probabilities p and frame lengths w (seconds), the IoU of a window W with the true
    set is estimated by  sum_W(p w) / (sum_W(w) + sum_outside(p w)), a ratio of expectations. All O(T^2)
    windows are tried.
    """
    p, w = np.asarray(probability, dtype=np.float64), np.asarray(weight, dtype=np.float64)
    mass = np.concatenate([[0.0], np.cumsum(p * w)])
    length = np.concatenate([[0.0], np.cumsum(w)])
    inside = mass[None, 1:] - mass[:-1, None]  # [a, b]
    covered = length[None, 1:] - length[:-1, None]
    score = np.where(covered > 0, inside / np.maximum(covered + mass[-1] - inside, 1e-12), -1.0)
    a, b = np.unravel_index(int(score.argmax()), score.shape)
    return int(a), int(b), float(min(1.0, score[a, b]))


def expected_tiou(span: Span, probability: npt.ArrayLike, edges_s: FloatArray) -> float:
    """The same estimate for any span, over the pieces of time between `edges_s` (T + 1,)."""
    p = np.asarray(probability, dtype=np.float64)
    w = np.diff(edges_s)
    shared = np.clip(np.minimum(span.end_s, edges_s[1:]) - np.maximum(span.start_s, edges_s[:-1]), 0, None)
    inside = float((p * shared).sum())
    return min(1.0, inside / max(span.duration_s + float((p * w).sum()) - inside, 1e-12))


def read_span(
    reader: str, reading: FrameReading, answer: SpanAnswer | None, grid: FrameGrid
) -> tuple[Span | None, float, str | None]:
    """(span, confidence of the span, problem). No span and no problem: the text says it is not there."""
    edges = grid.cell_edges_s()
    a, b, sure = best_window(reading.activity, np.diff(edges))
    active = Span(float(edges[a]), float(edges[b + 1]))
    if reader == "activity" or answer is None:
        return active, sure, None
    if reader == "text":
        if answer.span is None:
            return None, 0.0, answer.problem
        return answer.span, expected_tiou(answer.span, reading.activity, edges), None
    if answer.span is not None and answer.span.iou(active) >= 0.5:
        middle = Span((answer.span.start_s + active.start_s) / 2, (answer.span.end_s + active.end_s) / 2)
        return middle, expected_tiou(middle, reading.activity, edges), None
    return active, sure, None


def make_tube(
    span: Span, reading: FrameReading, grid: FrameGrid, score: float, label: str, extend: bool = True
) -> Tube:
    """Boxes of the sampled frames inside the span; with `extend`, also at its two ends, interpolated.

    A span between two samples holds no sampled frame: its boxes are then the interpolated ends alone.
    """
    boxes = np.clip(reading.boxes_xyxy, 0.0, 1.0)
    inside = (grid.times_s >= span.start_s) & (grid.times_s <= span.end_s)
    times, rows, quality = grid.times_s[inside], boxes[inside], reading.quality[inside]
    if extend or not inside.any():
        ends = [t for t in (span.start_s, span.end_s) if not np.isclose(times, t, atol=1e-6).any()]
        at = np.array([np.interp(ends, grid.times_s, boxes[:, k]) for k in range(4)]).T.reshape(-1, 4)
        order = np.argsort(np.concatenate([times, ends]), kind="stable")
        rows = np.concatenate([rows, at])[order]
        quality = np.concatenate([quality, np.interp(ends, grid.times_s, reading.quality)])[order]
        times = np.concatenate([times, ends])[order]
    return Tube(
        span, times, rows, score=float(np.clip(score, 0, 1)), box_scores=np.clip(quality, 0, 1), label=label
    )
