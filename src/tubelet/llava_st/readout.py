"""From a read answer (`answers.Answer`, fractions) to tubes in seconds.

Time convention, the published one: the fraction 0 is the time of the first sampled frame and 1 that of the last one
(`clock_of`), not the end of the video; so an answer ends at the latest when the last sampled frame is shown. A given
span or start is kept to the microsecond and only the question is rounded; boxes that the answer times half a
coordinate step outside of it are moved to its edge, as the grammar's limits are rounded too.

What could be read is used and the rest becomes a note; only an answer without anything to use is a failure. Between
its boxes a `Tube` interpolates. This module knows no tensors and no models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from tubelet.errors import QueryError
from tubelet.frames import FrameGrid
from tubelet.llava_st.answers import Answer, Clock, caption
from tubelet.llava_st.coordinates import Box
from tubelet.tube import Span, Tube


@dataclass(frozen=True, slots=True)
class Given:
    """What a question came with, in seconds and fractions of the frame; the span lies in the video."""

    span: Span | None = None
    box: Box | None = None


@dataclass(frozen=True, slots=True)
class Reading:
    """Tubes, or the reason why there are none (`failure`); no tubes and no failure: "it is not there"."""

    tubes: tuple[Tube, ...] = ()
    failure: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(slots=True)
class _Maker:
    """What all answers of one question share."""

    answer: Answer
    clock: Clock
    whole: Span
    bins: int
    label: str
    score: float | None
    notes: list[str] = field(default_factory=list)

    @property
    def step_s(self) -> float:
        return (self.clock.end_s - self.clock.start_s) / (self.bins - 1)

    def tube(self, span: Span, times_s: Sequence[float] = (), boxes: Sequence[Box] = ()) -> Tube:
        return Tube(
            span, np.array(times_s), np.array(boxes).reshape(-1, 4), score=self.score, label=self.label
        )

    def boxed(self, span: Span) -> Tube:
        """The timed boxes inside a span; where there are none, one box without a time stands for all of it."""
        times: list[float] = []
        boxes: list[Box] = []
        low, high = (min(max(at, self.clock.start_s), self.clock.end_s) for at in (span.start_s, span.end_s))
        # rounded limits reach half a step outside; a span outside of the sampled frames was asked one step long
        reach = self.step_s * (0.5 if high > low else 1.5) + 1e-6
        for fraction, box in self.answer.timed_boxes:
            at = self.clock.seconds(fraction)
            near = min(max(at, span.start_s), span.end_s)
            if low - reach <= at <= high + reach and (not times or near > times[-1]):
                times.append(near)
                boxes.append(box)
        left_out = len(self.answer.timed_boxes) - len(times)
        if left_out:
            self.notes.append(f"{left_out} boxes lie outside the span and were left out")
        if not times and self.answer.phrases:
            self.notes.append("the box of this answer has no time; it is taken for the whole span")
            times, boxes = [span.start_s], [self.answer.phrases[0].box]
        return self.tube(span, times, boxes)

    def answered_span(self) -> Span | None:
        """The first span of the answer, else from its first to its last timed box."""
        spans, timed = self.answer.spans, self.answer.timed_boxes
        if len(spans) > 1:
            self.notes.append(f"{len(spans)} different spans were given; the first one counts")
        if not spans and not timed:
            return None
        return self.clock.span(*(spans[0] if spans else (timed[0][0], timed[-1][0])), self.bins)


def clock_of(grid: FrameGrid) -> Clock:
    """Fractions of this grid: first to last sampled frame; of a single frame: the whole video."""
    if len(grid) == 1:
        return Clock(0.0, grid.duration_s)
    return Clock(float(grid.times_s[0]), float(grid.times_s[-1]))


def fractions_of(span: Span, clock: Clock, bins: int) -> tuple[float, float]:
    """A given span for the question, at least one coordinate step long."""
    start, end = clock.fraction(span.start_s), clock.fraction(span.end_s)
    if end <= start:
        step = 1 / (bins - 1)
        start, end = (start, start + step) if start + step <= 1 else (1 - step, 1.0)
    return start, end


def read_tubes(
    answer: Answer,
    task: str,
    grid: FrameGrid,
    whole: Span,
    given: Given = Given(),
    bins: int = 100,
    label: str = "",
    score: float | None = None,
) -> Reading:
    """The tubes of an answer.

    Args:
        task: stvg, svg (given.span), tvg, rec, elc (given.span, whose start counts, and given.box), reg (given.box),
            tr (given.span) or dgc. A text answer (reg, tr, elc) is the label of its tube.
        grid: the sampled frames. whole: the part of the video that was read.
        score: of every tube.

    Raises QueryError when a task lacks what it is asked with, or is none of these.
    """
    maker = _Maker(answer, clock_of(grid), whole, bins, label, score, list(answer.problems))
    if answer.absent and task in ("stvg", "svg", "tvg", "rec"):
        return Reading(notes=tuple(maker.notes))
    match task:
        case "stvg" | "tvg":
            tubes = _span_and_boxes(maker, boxes=task == "stvg")
        case "svg":
            tubes = _boxes_in(maker, _needed(given.span, task))
        case "elc":
            tubes = _event(maker, _needed(given.span, task))
        case "rec":
            tubes = _picture_box(maker, grid)
        case "dgc":
            tubes = _phrases(maker, grid)
        case "reg" | "tr":
            tubes = _text(maker, grid, task, given)
        case _:
            raise QueryError(f"an answer of task {task} has no tubes")
    if tubes:
        return Reading(tubes, None, tuple(maker.notes))
    return Reading((), "; ".join(maker.notes) or "the answer holds nothing that can be used")


def _span_and_boxes(maker: _Maker, boxes: bool) -> tuple[Tube, ...]:
    span = maker.answered_span()
    if span is None:
        return ()
    return (maker.boxed(span) if boxes else maker.tube(span),)


def _boxes_in(maker: _Maker, span: Span) -> tuple[Tube, ...]:
    tube = maker.boxed(span)
    return (tube,) if len(tube) else ()


def _event(maker: _Maker, given: Span) -> tuple[Tube, ...]:
    """From the given start to the answer's end, with its caption."""
    answer, clock, start_s = maker.answer, maker.clock, given.start_s
    maker.label = caption(answer)
    if not maker.label:
        maker.notes.append("there is no caption in the answer")
    ends = [answer.end] if answer.end is not None else []
    ends += [span[1] for span in answer.spans[:1]] + [time for time, _ in answer.timed_boxes[-1:]]
    if not ends:
        return ()
    end_s = clock.seconds(ends[0])
    if end_s < start_s - maker.step_s / 2 - 1e-6:
        maker.notes.append(f"the answer ends ({end_s:.2f} s) before the given start ({start_s:.2f} s)")
        return ()
    if end_s <= start_s:
        end_s = min(start_s + maker.step_s, maker.whole.end_s)
    return (maker.boxed(Span(start_s, end_s)),)


def _picture_box(maker: _Maker, grid: FrameGrid) -> tuple[Tube, ...]:
    boxes = [phrase.box for phrase in maker.answer.phrases] or [box for _, box in maker.answer.timed_boxes]
    if len(boxes) > 1:
        maker.notes.append(f"{len(boxes)} boxes were given; the first one counts")
    return tuple(
        maker.tube(Span(0.0, grid.duration_s), grid.times_s[:1].tolist(), [box]) for box in boxes[:1]
    )


def _phrases(maker: _Maker, grid: FrameGrid) -> tuple[Tube, ...]:
    out = []
    for phrase in maker.answer.phrases:
        maker.label = phrase.text
        out.append(maker.tube(Span(0.0, grid.duration_s), grid.times_s[:1].tolist(), [phrase.box]))
    return tuple(out)


def _text(maker: _Maker, grid: FrameGrid, task: str, given: Given) -> tuple[Tube, ...]:
    """What was given, with the answer's words as its label."""
    maker.label = maker.answer.text
    if not maker.label:
        maker.notes.append("the answer holds no words")
        return ()
    if task == "tr":
        return (maker.tube(_needed(given.span, task)),)
    if given.box is None:
        raise QueryError("task reg is asked with a box")
    return (maker.tube(Span(0.0, grid.duration_s), grid.times_s[:1].tolist(), [given.box]),)


def _needed(span: Span | None, task: str) -> Span:
    if span is None:
        raise QueryError(f"task {task} is asked with a span")
    return span
