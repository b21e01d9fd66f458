"""What LLaVA-ST reads: question texts per task, the chat turn around them, training answers, ids and labels.

Two wordings: "official", the published ones (several per task, chosen by number or by seed), and "brief", ours, for
models with a small vocabulary. Coordinates in a question are placeholders with exact values (`Worded`).

    <|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n
    <|im_start|>user\\n{visual tokens}\\n{question}<|im_end|>\\n<|im_start|>assistant\\n{answer}<|im_end|>\\n

In a user's text only coordinate words are words of their own: `<video>`, `<|im_end|>` and the like are just letters.
A literal anchor (`<TEMP-012>`) is read as that coordinate; a placeholder needs a value.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tubelet.errors import DataError, QueryError
from tubelet.llava_st.coordinates import (
    Variables,
    Worded,
    box_words,
    check_counts,
    join,
    span_words,
    time_words,
)
from tubelet.llava_st.loss import IGNORE
from tubelet.llava_st.model import VisualCounts
from tubelet.llava_st.words import IMAGE_MARK, VIDEO_MARK, Words

SYSTEM = "You are a helpful assistant."
MAX_QUESTION_CHARACTERS = 4000

_STVG_SUFFIX = (
    "Please firstly give the timestamps, and then give the spatial bounding box corresponding to each timestamp "
    "in the time period."
)
_SVG_SUFFIX = "Please give the spatial bounding box corresponding to each timestamp in the time period."
_ELC_SUFFIX = (
    "Please firstly give the end timestamp, then give the event associated with the object/subject, finally give "
    "the spatial bounding box corresponding to each timestamp in the time period."
)
_WHERE = "Please describe the location of the corresponding subject/object in this video."
_SVG_OPENINGS = (
    "During the span of",
    "In the time range",
    "During the period",
    "Within the time frame of",
    "In the time period",
    "During",
    "Between",
    "At",
)

# {query}: the user's words; {span}, {start}, {box}: given coordinates
QUESTIONS: dict[str, dict[str, tuple[str, ...]]] = {
    "official": {
        "rec": (
            "Where can I find {query} in this image?",
            "What part of this image contains {query}?",
            "Where does {query} appear in this image?",
            "Where is {query} situated within this image?",
            "Please describe the location of {query} in this image.",
            "What is the specific area in this image that represents {query}?",
        ),
        "reg": (
            "What object can be observed within the region {box} in the image?",
            "What is the primary object within the region {box}?",
        ),
        "dgc": (
            "Please describe in detail the contents of the image. Please respond with interleaved bounding boxes for "
            "the corresponding parts of the answer.",
            "Can you provide a thorough description of this image? Please output with interleaved bounding boxes for "
            "the corresponding phrases.",
            "Could you give me an elaborate explanation of this picture? Please respond with interleaved bounding "
            "boxes for the corresponding phrases.",
        ),
        "tvg": (
            "Give you a textual query: '{query}'. When does the described content occur in the video? Please return "
            "the start and end timestamps.",
        ),
        "tr": (
            "Describe what took place during the period {span} in the video.",
            "What was going on within the time frame of {span} in the video?",
        ),
        "dvc": ("Please describe the events in the video in order, each with its start and end timestamps.",),
        "stvg": (
            "At which time interval in the video can we see {query} occurring? " + _WHERE + _STVG_SUFFIX,
        ),
        "svg": tuple(f"{opening} {{span}}, {{query}}. {_WHERE}{_SVG_SUFFIX}" for opening in _SVG_OPENINGS),
        "elc": (
            "Starts in {start}, what happened about the subject/object within the specified region {box}? Where is "
            "the corresponding subject/object located?" + _ELC_SUFFIX,
            "Starts in {start}, describe the event about subject/object located within the region {box}. "
            + _WHERE
            + _ELC_SUFFIX,
        ),
        "qa": ("{query}",),
    },
    "brief": {
        "rec": ("see {query}",),
        "reg": ("what is in {box}",),
        "dgc": ("describe with boxes",),
        "tvg": ("when {query}",),
        "tr": ("what happens in {span}",),
        "dvc": ("describe with times",),
        "stvg": ("find {query}",),
        "svg": ("{span} find {query}",),
        "elc": ("from {start} {box} what happens",),
        "qa": ("{query}",),
    },
}

IMAGE_TASKS = ("rec", "reg", "dgc")

ANSWERS: dict[str, dict[str, str]] = {
    "official": {
        "rec": "It appears at {box}.",
        "tvg": "During the period {span}.",
        "stvg": "During the span of {span}. Object bounding box: {boxes}",
        "svg": "Object bounding box: {boxes}",
        "elc": "Ends in {end}, {text}. Object bounding box: {boxes}",
        "absent": "That is not in this video.",
    },
    "brief": {
        "rec": "{box}",
        "tvg": "{span}",
        "stvg": "{span}{boxes}",
        "svg": "{boxes}",
        "elc": "{end}, {text}.{boxes}",
        "absent": "not in this video.",
    },
}


def question(
    task: str,
    query: str = "",
    span: tuple[float, float] | None = None,
    start: float | None = None,
    box: Sequence[float] | None = None,
    style: str = "official",
    choice: int | None = None,
    seed: int | None = None,
) -> Worded:
    """The user's question for a task, without the picture.

    Args:
        span, start: fractions of the clip; box: fractions of the frame (x0, y0, x1, y1).
        choice: which wording; default: the first, or with `seed` one drawn from seed and query.

    Raises QueryError when the task needs something that was not given.
    """
    wordings = QUESTIONS.get(style, {}).get(task)
    if wordings is None:
        raise QueryError(
            f"there is no {style!r} question for task {task!r}; tasks: {', '.join(QUESTIONS['official'])}"
        )
    if choice is None:
        choice = 0 if seed is None else random.Random(f"{seed} {task} {query}").randrange(len(wordings))
    if not 0 <= choice < len(wordings):
        raise QueryError(f"task {task} has wordings 0 to {len(wordings) - 1} in style {style}, got {choice}")
    text = _checked(query, task) if "{query}" in wordings[choice] else ""
    given: dict[str, str | Worded | None] = {
        "query": text.rstrip(".").lower() if (task, style) == ("tvg", "official") else text,
        "span": None if span is None else span_words(*span),
        "start": None if start is None else time_words(start),
        "box": None if box is None else box_words(box),
    }
    if task in ("svg", "stvg") and style == "official":
        given["query"] = text.rstrip(".?")
    return _filled(wordings[choice], given, task)


def answer(
    task: str,
    span: Worded | None = None,
    box: Worded | None = None,
    boxes: Worded | None = None,
    end: Worded | None = None,
    text: str = "",
    present: bool = True,
    style: str = "official",
) -> Worded:
    """The true answer for training, with output placeholders (coordinates.box_words(..., "OUTPUT") and the like)."""
    wording = ANSWERS[style].get(task if present else "absent")
    if wording is None:
        return Worded(text, Variables())
    given: dict[str, str | Worded | None] = {"span": span, "box": box, "boxes": boxes, "end": end}
    return _filled(wording, {**given, "text": text.rstrip(".")}, task)


def _filled(wording: str, given: dict[str, str | Worded | None], task: str) -> Worded:
    parts: list[str | Worded] = []
    for number, piece in enumerate(re.split(r"\{(\w+)\}", wording)):
        if number % 2 == 0:
            parts.append(piece)
            continue
        value = given[piece]
        if value is None:
            raise QueryError(f"task {task} is asked with a {piece}: give it")
        parts.append(value)
    return join(*parts)


def _checked(query: str, task: str) -> str:
    text = " ".join(query.split()) if isinstance(query, str) else ""
    if not text:
        raise QueryError(f"task {task} is asked with a sentence (text), got {query!r:.60}")
    if len(text) > MAX_QUESTION_CHARACTERS:
        raise QueryError(
            f"the sentence has {len(text)} characters, at most {MAX_QUESTION_CHARACTERS} are read"
        )
    return text


# --- visual marks in text (published data) -----------------------------------------------------------


def split_mark(text: str) -> tuple[str | None, str]:
    """A published user turn -> which mark it holds ("<image>", "<video>" or None), and the question without it.

    Raises QueryError for several marks: one image or one video per sample.
    """
    marks = [mark for mark in (IMAGE_MARK, VIDEO_MARK) for _ in range(text.count(mark))]
    if not marks:
        return None, text
    if len(marks) > 1:
        raise QueryError(
            f"a prompt holds one image or one video, this one has {len(marks)} marks: {text[:60]!r}"
        )
    rest = text.replace(marks[0], "").replace("QA_GT_caption_based_noisy", "")
    return marks[0], rest.strip()


# --- ids ---------------------------------------------------------------------------------------------

_COORDINATE_WORD = re.compile(r"(<(?:TEMP|HEIGHT|WIDTH)-(?:INPUT|OUTPUT|\d{3})>)")


@dataclass(frozen=True, slots=True)
class Prompt:
    """Ids of one question, and the values of its placeholders. ids[:prefix] do not depend on the question."""

    ids: tuple[int, ...]
    prefix: int
    variables: Variables


@dataclass(frozen=True, slots=True)
class TrainingIds:
    """Ids of a conversation, its labels (-100: not supervised), and the values of its placeholders."""

    ids: tuple[int, ...]
    labels: tuple[int, ...]
    variables: Variables


def text_ids(tokenizer: Any, text: str) -> list[int]:
    """Ids of a text in which only coordinate words are special; those that the tokenizer lacks are letters."""
    vocabulary = tokenizer.get_vocab()
    ids: list[int] = []
    plain = ""
    for number, piece in enumerate(_COORDINATE_WORD.split(text)):
        if number % 2 and piece in vocabulary:
            ids += _plain_ids(tokenizer, plain)
            ids.append(vocabulary[piece])
            plain = ""
        else:
            plain += piece
    return ids + _plain_ids(tokenizer, plain)


def _plain_ids(tokenizer: Any, text: str) -> list[int]:
    if not text:
        return []
    ids: list[int] = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return ids


def visual_ids(words: Words, counts: VisualCounts) -> list[int]:
    """The place of a picture in a prompt: image, or fast then slow; [] for none."""
    ids: list[int] = []
    for slot, count in ((words.image, counts.image), (words.fast, counts.fast), (words.slow, counts.slow)):
        ids += slot.ids(count)
    return ids


def turn_ids(tokenizer: Any, words: Words, role: str, content: Sequence[int]) -> list[int]:
    """<|im_start|>role\\n content <|im_end|>\\n"""
    return [
        words.turn_start, *_plain_ids(tokenizer, role), words.newline, *content, words.turn_end, words.newline
    ]  # fmt: skip


def prompt_ids(
    tokenizer: Any, words: Words, asked: Worded | str, counts: VisualCounts | None = None
) -> Prompt:
    """The chat prompt of one question about a picture (None: text only), up to where the answer starts."""
    asked = Worded(asked, Variables()) if isinstance(asked, str) else asked
    try:
        check_counts(asked.text, asked.variables, "the question")
    except DataError as error:
        raise QueryError(str(error)) from error
    head = [
        *turn_ids(tokenizer, words, "system", _plain_ids(tokenizer, SYSTEM)),
        words.turn_start,
        *_plain_ids(tokenizer, "user"),
        words.newline,
    ]
    if counts is not None:
        head += [*visual_ids(words, counts), words.newline]
    tail = [
        words.turn_end,
        words.newline,
        words.turn_start,
        *_plain_ids(tokenizer, "assistant"),
        words.newline,
    ]
    return Prompt((*head, *text_ids(tokenizer, asked.text), *tail), len(head), asked.variables)


def training_ids(
    tokenizer: Any,
    words: Words,
    turns: Sequence[tuple[str, Worded]],
    counts: VisualCounts | None = None,
    supervise: str = "official",
) -> TrainingIds:
    """A conversation of ("human" or "gpt", text) turns; the picture stands before the first human turn.

    supervise: "official": whole assistant turns, and every line break and turn mark elsewhere; "answers": only the
        answers and the marks that end them.
    """
    if supervise not in ("official", "answers"):
        raise DataError(f"supervise is official or answers, got {supervise!r}")
    if turns and turns[0][0] != "human":
        turns = turns[1:]  # as published: a conversation starts with its first question
    if not turns:
        raise DataError("a conversation holds at least one question of a human")
    ids = turn_ids(tokenizer, words, "system", _plain_ids(tokenizer, SYSTEM))
    supervised = [False] * len(ids)
    variables = Variables()
    for number, (who, worded) in enumerate(turns):
        if who not in ("human", "gpt"):
            raise DataError(f"a turn is of human or gpt, got {who!r}")
        check_counts(worded.text, worded.variables, f"turn {number}")
        content = text_ids(tokenizer, worded.text)
        if number == 0 and counts is not None:
            content = [*visual_ids(words, counts), words.newline, *content]
        turn = turn_ids(tokenizer, words, "user" if who == "human" else "assistant", content)
        before = len(turn) - len(content) - 2
        if who == "human":
            supervised += [False] * len(turn)
        elif supervise == "official":
            supervised += [True] * len(turn)
        else:
            supervised += [False] * before + [True] * (len(content) + 1) + [False]
        ids += turn
        variables = variables + worded.variables
    if supervise == "official":
        marks = {words.newline, words.turn_start, words.turn_end}
        supervised = [yes or token in marks for yes, token in zip(supervised, ids, strict=True)]
    labels = tuple(token if yes else IGNORE for token, yes in zip(ids, supervised, strict=True))
    return TrainingIds(tuple(ids), labels, variables)
