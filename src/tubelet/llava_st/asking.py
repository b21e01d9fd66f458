"""How a question to LLaVA-ST is made from what a user gives: checks, wording, coordinates, grammar.

Nothing here knows tensors or videos; times are seconds on the way in and fractions of a `Clock` in the question.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tubelet.errors import DataError, QueryError
from tubelet.llava_st.answers import Clock
from tubelet.llava_st.constrain import Grammar, grammar_for
from tubelet.llava_st.coordinates import Box, Worded, checked_box, nearest_anchor
from tubelet.llava_st.prompts import MAX_QUESTION_CHARACTERS, question
from tubelet.llava_st.readout import Given, fractions_of
from tubelet.tube import TASKS, Span

VIDEO_TASKS = ("stvg", "svg", "tvg", "elc", "tr")
IMAGE_TASKS = ("rec", "reg", "dgc")
SENTENCE_TASKS = ("stvg", "svg", "tvg", "rec")
SPAN_TASKS, BOX_TASKS = ("svg", "tr", "elc"), ("reg", "elc")


@dataclass(frozen=True, slots=True)
class Asking:
    """How questions are put and answered.

    constrained: keep answers within the grammar of their task, so that they always parse.
    style: "official" wordings or "brief" ones; default: what the checkpoint was trained with.
    wording: which of a task's wordings; with wording_seed one is drawn per sentence instead.
    max_new_tokens: default: enough for the task (1024 words, as published, where boxes are listed).
    temperature, seed: 0 is greedy. repetition_penalty: default: what the checkpoint says.
    """

    constrained: bool = True
    style: str | None = None
    wording: int = 0
    wording_seed: int | None = None
    max_new_tokens: int | None = None
    temperature: float = 0.0
    seed: int = 0
    repetition_penalty: float | None = None

    @property
    def choice(self) -> int | None:
        """The wording's number, None to draw one."""
        return self.wording if self.wording_seed is None else None


@dataclass(frozen=True, slots=True)
class Job:
    """A question that can be asked, and its place among those that came."""

    place: int
    query: str
    given: Given
    asked: Worded
    grammar: Grammar | None


def make_job(
    place: int,
    query: str,
    task: str,
    given: Given,
    clock: Clock,
    bins: int,
    style: str,
    asking: Asking = Asking(),
) -> Job:
    """The question of a task. QueryError for what cannot be asked."""
    words = sentence(query, may_be_empty=task not in SENTENCE_TASKS)
    between = fractions_of(given.span, clock, bins) if given.span is not None else None
    start = clock.fraction(given.span.start_s) if given.span is not None else None
    asked = question(task, words, between, start, given.box, style, asking.choice, asking.wording_seed)
    grammar = None
    if asking.constrained:
        ends = (
            None if between is None else (nearest_anchor(between[0], bins), nearest_anchor(between[1], bins))
        )
        grammar = grammar_for(
            task,
            bins,
            span=ends if task == "svg" else None,
            start=nearest_anchor(start, bins) if task == "elc" and start is not None else None,
        )
    return Job(place, words, given, asked, grammar)


def sentence(query: str, may_be_empty: bool = False) -> str:
    """A user's words, stripped; QueryError for what no model can answer."""
    if not isinstance(query, str):
        raise QueryError(f"a query is a sentence (text), got {type(query).__name__}")
    text = " ".join(query.split())
    if not text and not may_be_empty:
        raise QueryError(
            "the sentence is empty: say what to look for, for example 'the red circle that spins'"
        )
    if len(text) > MAX_QUESTION_CHARACTERS:
        raise QueryError(
            f"the sentence has {len(text)} characters, at most {MAX_QUESTION_CHARACTERS} are read: "
            "ask for one event at a time"
        )
    return text


def checked_given(task: str, span: Span | None, box_xyxy: Any, whole: Span) -> Given:
    """The span and box that a task needs, the span cut to what was read; QueryError when they are not there."""
    inside = box = None
    if task in SPAN_TASKS:
        if not isinstance(span, Span):
            what = "a start and the box there" if task == "elc" else "a span"
            raise QueryError(f"task {task} is asked with {what}: give span=Span(start_s, end_s)")
        inside = span.clip(whole.start_s, whole.end_s)
        if inside is None:
            raise QueryError(
                f"the given span ({span.start_s:g}-{span.end_s:g} s) lies outside the video "
                f"({whole.start_s:g}-{whole.end_s:g} s)"
            )
    if task in BOX_TASKS:
        if box_xyxy is None:
            raise QueryError(f"task {task} is asked with a box: give box_xyxy=(x0, y0, x1, y1), fractions")
        box = _box(box_xyxy)
    return Given(inside, box)


def _box(box_xyxy: Any) -> Box:
    try:
        return checked_box(np.asarray(box_xyxy, dtype=np.float64).ravel().tolist(), "box_xyxy")
    except (TypeError, ValueError) as error:
        raise QueryError(f"box_xyxy is four numbers x0, y0, x1, y1, got {box_xyxy!r:.60}") from error
    except DataError as error:
        raise QueryError(str(error)) from error


def one_each(given: Any, count: int, what: str) -> list[Any]:
    """One thing per question: None, a span or a box stands for all of them."""
    alone = given is None or isinstance(given, Span)
    if not alone and not isinstance(given, str) and isinstance(given, Sequence | np.ndarray):
        alone = len(given) == 4 and all(np.isscalar(value) for value in given)
        if not alone and len(given) == count:
            return list(given)
        if not alone:
            raise QueryError(f"one {what} per sentence is needed, got {len(given)} for {count}")
    elif not alone:
        raise QueryError(f"a {what}, or one per sentence, is needed, got {given!r:.60}")
    return [given] * count


def check_task(task: str, name: str, is_image: bool) -> None:
    """QueryError for a task that this model has not, or not for this file."""
    if task == "dvc":
        raise QueryError("task dvc answers with many events: use describe_events()")
    if task not in TASKS:
        raise QueryError(f"unknown task {task!r}; tasks are {', '.join(TASKS)}")
    if task not in VIDEO_TASKS + IMAGE_TASKS:
        raise QueryError(f"LLaVA-ST grounds {', '.join(VIDEO_TASKS + IMAGE_TASKS)}; for {task} use ask()")
    if task in VIDEO_TASKS and is_image:
        raise QueryError(
            f"task {task} asks about time, but {name} is a single image: use task {', '.join(IMAGE_TASKS)}"
        )
    if task in IMAGE_TASKS and not is_image:
        raise QueryError(
            f"task {task} asks about an image, but {name} is a video: use task stvg or svg, or encode a frame"
        )
