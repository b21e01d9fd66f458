"""Raw answers to `Prediction`s: what is impossible fails the query and is counted; what is clipped is counted too.

A failed query scores 0 with its reason; no value is sorted, swapped or guessed. The one exception to failing are
boxes that reach over the edge of the frame: they are clipped, as every public evaluator does or as makes no difference
to it, and counted. Units are converted here, by what the caller declared (`BoxUnit`, `TimeUnit`) and what is known of
the video (`Frame`). A file that mixes units shows in the counts "mixed-units" and "other-unit".
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tubelet.datasets.record import FloatArray
from tubelet.errors import DataError
from tubelet.scoring.answers import Answer, BoxUnit, Counts, RawTube, TimeUnit
from tubelet.tube import Prediction, Span, Tube

_LARGEST = 2.0**53
_SLACK = 1.5
"""A fraction up to this is a box over the edge; above it is a pixel."""


@dataclass(frozen=True, slots=True)
class Frame:
    """What is known of the video of a query; None where it is not."""

    fps: float | None = None
    n_frames: int | None = None
    duration_s: float | None = None
    width: int | None = None
    height: int | None = None


class _Wrong(Exception):
    """An answer that fails: which count, and why."""

    def __init__(self, kind: str, sentence: str) -> None:
        super().__init__(kind, sentence)
        self.kind, self.sentence = kind, sentence


def to_prediction(answer: Answer, frame: Frame, counts: Counts, task: str = "stvg") -> Prediction:
    """The prediction that an answer makes; a failure with a reason where it makes none. Counts what is odd."""

    def failed(kind: str, sentence: str) -> Prediction:
        counts.add(kind, f"{answer.where}, id {answer.id}: {sentence}")
        return Prediction("", "", task, text=answer.text, failure=f"{kind}: {sentence}")

    if answer.repeats:
        counts.add("repeated-moment", f"{answer.where}, id {answer.id}: {answer.repeats} more boxes")
    if answer.failure is not None:
        return failed(*answer.failure)
    try:
        tubes = tuple(_tube(answer, raw, frame, counts) for raw in answer.tubes)
    except _Wrong as wrong:
        return failed(wrong.kind, wrong.sentence)
    return Prediction("", "", task, tubes=tubes, text=answer.text)


def check_windows(
    answer: Answer, frame: Frame, counts: Counts
) -> tuple[list[list[float]], tuple[str, str] | None]:
    """Windows [start_s, end_s, score] of an answer that is spans only, as they are, and why there are none.

    Reversed windows are counted and kept: an IoU with them is 0. Boxes are not looked at.
    """
    where = f"{answer.where}, id {answer.id}"
    failure = answer.failure
    out: list[list[float]] = []
    for raw in answer.tubes:
        if failure is not None:
            break
        if raw.span is None:
            failure = "unread", "the answer has no span"
            break
        values = np.array([*raw.span, 0.0 if raw.score is None else raw.score])
        if not np.isfinite(values).all() or np.abs(values).max() > _LARGEST:
            failure = "not-finite", f"a window is {raw.span[0]} to {raw.span[1]}, score {raw.score}"
            break
        span, _ = _clocked(answer.times_unit, raw.span, np.empty(0), frame, answer.inclusive)
        assert span is not None  # it was stated
        out.append([span[0], span[1], float(values[2])])
    if failure is not None:
        counts.add(failure[0], f"{where}: {failure[1]}")
        return [], failure
    reversed_ = [w for w in out if w[1] <= w[0] or w[0] < 0]
    if reversed_:
        counts.add("reversed-span", f"{where}: {reversed_[0][0]:g} to {reversed_[0][1]:g} s")
    limit = frame.duration_s
    beyond = [w for w in out if limit is not None and _beyond((w[0], w[1]), limit)]
    if beyond:
        counts.add("span-outside-video", f"{where}: {beyond[0][0]:g}-{beyond[0][1]:g} s of {limit:g} s")
    return out, None


def _beyond(span: tuple[float, float], duration_s: float) -> bool:
    """Whether a span leaves its video; an end that is rounded up to a whole second does not."""
    return span[1] > duration_s + 1.0 or (span[0] >= duration_s and span[1] > span[0])


def _tube(answer: Answer, raw: RawTube, frame: Frame, counts: Counts) -> Tube:
    where = f"{answer.where}, id {answer.id}"
    numbers = np.concatenate([raw.times, raw.boxes.ravel(), raw.span or ()])
    if not np.isfinite(numbers).all() or np.abs(numbers).max(initial=0.0) > _LARGEST:
        raise _Wrong("not-finite", "the answer holds NaN, infinite or absurdly large numbers")
    if raw.score is not None and not np.isfinite(raw.score):
        raise _Wrong("not-finite", f"the score of a span is {raw.score}")
    boxes = _fractions(answer, raw, frame, counts, where)
    span, times_s = _clocked(answer.times_unit, raw.span, raw.times, frame, answer.inclusive)
    order = np.argsort(times_s, kind="stable")
    times_s, boxes = times_s[order], boxes[order]
    first = np.append(True, np.diff(times_s) > 0)[: len(times_s)]
    if not first.all():
        counts.add("repeated-moment", f"{where}: {int((~first).sum())} more boxes")
        times_s, boxes = times_s[first], boxes[first]
    if span is None:
        span = _from_boxes(times_s)
        counts.add("span-from-boxes", f"{where}: {len(times_s)} boxes, no span")
    if span[0] < 0 or span[1] <= span[0]:
        raise _Wrong("reversed-span", f"the span {span[0]:g} to {span[1]:g} s is no span")
    if frame.duration_s is not None and _beyond(span, frame.duration_s):
        counts.add("span-outside-video", f"{where}: {span[0]:g}-{span[1]:g} s of {frame.duration_s:g} s")
    inside = (times_s >= span[0] - 1e-6) & (times_s <= span[1] + 1e-6)
    if not inside.all():
        counts.add("box-outside-span", f"{where}: {int((~inside).sum())} of {len(inside)} boxes")
    score = None if raw.score is None or not 0.0 <= raw.score <= 1.0 else raw.score
    try:
        return Tube(Span(*span), times_s[inside], boxes[inside], score=score)
    except DataError as error:  # a rule of Tube that no check above names
        raise _Wrong("not-finite", str(error)) from error


def _fractions(answer: Answer, raw: RawTube, frame: Frame, counts: Counts, where: str) -> FloatArray:
    """(N, 4) boxes as fractions, in the order of the answer."""
    boxes, unit = raw.boxes, answer.boxes_unit
    if not len(boxes):
        return boxes
    if len(boxes) != len(raw.times):
        raise _Wrong("not-finite", f"{len(boxes)} boxes for {len(raw.times)} moments")
    _check_unit(boxes, unit)
    wrong = np.flatnonzero((boxes[:, 2:] < boxes[:, :2]).any(axis=1))
    if len(wrong):
        raise _Wrong(
            "inverted-box", f"{len(wrong)} of {len(boxes)} boxes, the first {_shown(boxes[wrong[0]])}"
        )
    if unit.kind == "fraction":
        out = boxes
    elif unit.kind == "1000":
        out = boxes / 1000.0
    else:
        width, height = unit.size or answer.size or (frame.width, frame.height)
        if not width or not height:
            raise DataError(
                f"{where}: boxes are in pixels and nothing says the size of the frame: declare pixel:WIDTHxHEIGHT"
            )
        out = boxes / np.array([width, height, width, height], dtype=np.float64)
    clipped = np.clip(out, 0.0, 1.0)
    over = (np.abs(out - clipped) > 1e-6).any(axis=1)
    if over.any():
        example = _shown(boxes[np.flatnonzero(over)[0]])
        counts.add(
            "box-outside-frame", f"{where}: {int(over.sum())} of {len(boxes)} boxes, the first {example}"
        )
    return clipped


def _check_unit(boxes: FloatArray, unit: BoxUnit) -> None:
    """Raise where boxes are not in the declared unit: all of them, or some."""
    most = boxes.max(axis=1)
    if unit.kind == "fraction":
        odd, what = most > _SLACK, "pixels"
    else:
        odd = (most <= 1.0) & (boxes != np.round(boxes)).any(axis=1)
        what = "fractions"
        if unit.kind == "1000" and not odd.any():
            odd, what = most > 1000.0 * _SLACK, "pixels"
    if not odd.any():
        return
    example = _shown(boxes[np.flatnonzero(odd)[0]])
    declared = "fractions" if unit.kind == "fraction" else "thousandths" if unit.kind == "1000" else "pixels"
    if odd.all():
        hint = " (or thousandths)" if unit.kind == "fraction" else ""
        raise _Wrong("other-unit", f"boxes look like {what}{hint}, {declared} were declared: {example}")
    other = _shown(boxes[np.flatnonzero(~odd)[0]])
    raise _Wrong("mixed-units", f"one answer holds {declared}, {other}, and {what}, {example}")


def _clocked(
    unit: TimeUnit, span: tuple[float, float] | None, times: FloatArray, frame: Frame, inclusive: bool
) -> tuple[tuple[float, float] | None, FloatArray]:
    """Span and times in seconds. A span counted in frames that ends on a frame ends when that frame does."""
    if unit.kind == "second":
        return span, times
    if unit.kind == "fraction":
        scale = _needed(frame.duration_s, "the duration of the video", "fraction")
        return (None if span is None else (span[0] * scale, span[1] * scale)), times * scale
    if unit.kind == "uniform" and unit.of is not None:
        count = _needed(frame.n_frames, "the number of frames", "uniform")
        step = (count - 1) / (unit.of - 1)
        rate = _needed(frame.fps, "the frame rate", "uniform")
        return (
            None
            if span is None
            else (np.floor(span[0] * step) / rate, (np.floor(span[1] * step) + 1) / rate),
            np.floor(times * step) / rate,
        )
    rate = unit.rate or _needed(frame.fps, "the frame rate", "frame")
    end = 1.0 if inclusive else 0.0
    return (None if span is None else (span[0] / rate, (span[1] + end) / rate)), times / rate


def _needed(value: float | None, what: str, unit: str) -> float:
    if not value:
        raise DataError(f"times in {unit} need {what}, which neither the file nor the data says")
    return float(value)


def _from_boxes(times_s: FloatArray) -> tuple[float, float]:
    """From the first box to a step after the last: each box stands for the time to the next."""
    if not len(times_s):
        raise _Wrong("unread", "the answer has no span and no box")
    step = float(np.median(np.diff(times_s))) if len(times_s) > 1 else 1.0
    return float(times_s[0]), float(times_s[-1]) + step


def _shown(box: FloatArray) -> str:
    return "[" + ", ".join(f"{x:g}" for x in box) + "]"
