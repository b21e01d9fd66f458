"""From what a sample is about (`Facts`) to its question and answer in words, and to an `Item`, for all 15 task kinds.

Coordinates come as fractions and leave as placeholders with values: in questions INPUT, in answers OUTPUT. The wordings
are those of prompts.py ("official" or "brief"); kinds that prompts.py does not know have their own here. Nothing here
knows seconds, frames or videos.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from tubelet.errors import DataError
from tubelet.llava_st.coordinates import (
    Box,
    Variables,
    Worded,
    box_words,
    join,
    span_words,
    time_words,
    timed_boxes_words,
)
from tubelet.llava_st.item_layout import KINDS
from tubelet.llava_st.items import Item, Turn
from tubelet.llava_st.words import IMAGE_MARK, VIDEO_MARK

TASK_OF_KIND = {
    "tvg": "tvg",
    "dvc": "dvc",
    "temporal_referring": "tr",
    "rec": "rec",
    "dgc": "dgc",
    "region_caption": "reg",
    "stvg": "stvg",
    "elc": "elc",
    "svg": "svg",
}
"""Kinds whose questions are those of a task of prompts.py; the others are plain words."""

QUESTIONS_OF_KIND: dict[str, dict[str, tuple[str, ...]]] = {
    "official": {
        "video_captioning": ("Please describe this video.", "What is shown in this video?"),
        "classification": ("What is the person doing in this video?",),
    },
    "brief": {"video_captioning": ("describe the video.",), "classification": ("what happens?",)},
}
"""Asked where a sample has no question of its own."""


@dataclass(frozen=True, slots=True)
class Wording:
    """style: "official" or "brief". choice: which question of a task; with a seed one is drawn per question."""

    style: str = "official"
    choice: int | None = None
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """What one question and its answer are about. Times are fractions of the clip, boxes fractions of the frame.

    query: the sentence, or the question itself. text: the answer, or the caption of an event.
    span: asked for or given; its start is what an elc gives. times, boxes: boxes with a time, increasing.
    box: answered (rec) or given (region_caption, elc). phrases: (words of `text`, box), in order (dgc).
    events: (span, sentence), in order (dvc). present: False: the sentence is true of nothing.
    """

    query: str = ""
    text: str = ""
    span: tuple[float, float] | None = None
    times: tuple[float, ...] = ()
    boxes: tuple[Box, ...] = ()
    box: Box | None = None
    phrases: tuple[tuple[str, Box], ...] = ()
    events: tuple[tuple[tuple[float, float], str], ...] = ()
    present: bool = True


@dataclass(frozen=True, slots=True)
class Place:
    """Whose picture it is: a path below the data folder, and of a video the clip (first and last frame)."""

    path: str
    is_image: bool = False
    split: tuple[int, int] | None = None


def make_item(
    kind: str,
    place: Place,
    turns: Sequence[tuple[str, Facts]] | Facts,
    id: str = "",
    wording: Wording = Wording(),
) -> Item:
    """An item of one of the 15 kinds.

    turns: the facts of a single question, or (kind, facts) of each of several, as grounded conversations have them.
    DataError for what a kind needs and the facts do not have.
    """
    if kind not in KINDS:
        raise DataError(f"unknown kind {kind!r}; kinds are {', '.join(KINDS)}")
    pairs = [(kind, turns)] if isinstance(turns, Facts) else list(turns)
    if not pairs:
        raise DataError(f"an item of kind {kind} has at least one question")
    written: list[Turn] = []
    values = Variables()
    for number, (own, facts) in enumerate(pairs):
        asked, answered = question_of(own, facts, wording), answer_of(own, facts, wording.style)
        mark = "" if number else f"{IMAGE_MARK if place.is_image else VIDEO_MARK}\n"
        written += [Turn("human", mark + asked.text), Turn("gpt", answered.text)]
        values = values + asked.variables + answered.variables
    return Item(
        conversations=tuple(written),
        image=place.path if place.is_image else None,
        video=None if place.is_image else place.path,
        variables=values,
        split=None if place.is_image else place.split,
        id=id,
        kind=kind,
    )


def question_of(kind: str, facts: Facts, wording: Wording = Wording()) -> Worded:
    """The question, without the mark of the picture."""
    from tubelet.llava_st.prompts import question  # imports torch

    task = TASK_OF_KIND.get(kind)
    if task is None:
        return Worded(facts.query.strip() or _own_question(kind, facts, wording), Variables())
    if kind == "elc" and facts.span is None:
        raise DataError("an elc is asked with the start of an event: give its span")
    return question(
        task,
        facts.query,
        span=facts.span if kind in ("svg", "temporal_referring") else None,
        start=facts.span[0] if kind == "elc" and facts.span is not None else None,
        box=facts.box if kind in ("elc", "region_caption") else None,
        style=wording.style,
        choice=wording.choice,
        seed=wording.seed,
    )


def answer_of(kind: str, facts: Facts, style: str = "official") -> Worded:
    """The answer, with output placeholders."""
    from tubelet.llava_st.prompts import answer  # imports torch

    if kind == "dgc":
        return interleaved(facts.text, facts.phrases)
    if kind == "dvc":
        if not facts.events:
            raise DataError("a dvc answers with events, there are none")
        parts: list[str | Worded] = []
        for span, sentence in facts.events:
            parts += [" " if parts else "", span_words(*span, "OUTPUT"), f", {sentence.strip().rstrip('.')}."]
        return join(*parts)
    task = TASK_OF_KIND.get(kind)
    if task is None or kind in ("temporal_referring", "region_caption"):
        if not facts.text.strip():
            raise DataError(f"a {kind} answers with a text, there is none")
        return Worded(facts.text.strip(), Variables())
    if not facts.present:
        return answer(task, present=False, style=style)
    if kind in ("stvg", "tvg", "elc") and facts.span is None:
        raise DataError(f"the answer of {kind} needs a span")
    if kind in ("stvg", "svg", "elc") and not facts.boxes:
        raise DataError(f"the answer of {kind} needs boxes with times")
    if kind == "rec" and facts.box is None:
        raise DataError("the answer of rec needs a box")
    return answer(
        task,
        span=None if facts.span is None else span_words(*facts.span, "OUTPUT"),
        box=None if facts.box is None else box_words(facts.box, "OUTPUT"),
        boxes=timed_boxes_words(facts.times, facts.boxes) if facts.boxes else None,
        end=None if facts.span is None else time_words(facts.span[1], "OUTPUT"),
        text=facts.text,
        style=style,
    )


def interleaved(text: str, phrases: Sequence[tuple[str, Box]]) -> Worded:
    """A description with a box behind each of its phrases, which are looked for in order.

    A phrase that the text does not hold stands at its end, with its box.
    """
    if not phrases:
        raise DataError("a dgc answers with boxes behind phrases, there are none")
    parts: list[str | Worded] = []
    at = 0
    behind: list[str | Worded] = []
    for phrase, box in phrases:
        found = text.find(phrase, at) if phrase else -1
        if found < 0:
            behind += [f" {phrase} ", box_words(box, "OUTPUT")]
            continue
        parts += [text[at : found + len(phrase)], " ", box_words(box, "OUTPUT")]
        at = found + len(phrase)
    return join(*parts, text[at:], *behind)


def _own_question(kind: str, facts: Facts, wording: Wording) -> str:
    known = QUESTIONS_OF_KIND.get(wording.style, {}).get(kind)
    if known is None:
        raise DataError(f"a {kind} has a question of its own: give it as query")
    if wording.choice is not None:
        return known[wording.choice % len(known)]
    return known[
        0 if wording.seed is None else random.Random(f"{wording.seed} {facts.text}").randrange(len(known))
    ]
