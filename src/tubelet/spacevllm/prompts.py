"""What SpaceVLLM reads and writes as text: prompt layout, questions, answers, reading a span from an answer.

The prompt is one chat turn. Everything before the question (its *prefix*: the frames, their query tokens,
their times) does not depend on the question, so it is computed once per video; a *suffix* is one question and
its answer:

    prefix:  head [frame 0 tokens] <r_0> ... [frame T-1 tokens] <r_T-1> between (times)
    suffix:  question tail answer

A base's newline tokens stand after the last frame, after every frame, or after every row of a frame
(`SpaceVLLMConfig.newline`), always before the frame's query token.

The layout comes from rendering the tokenizer's own chat template, never from hard-coded role strings.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tubelet.errors import ModelError, QueryError
from tubelet.frames import FrameGrid
from tubelet.spacevllm.config import SpaceVLLMConfig
from tubelet.tube import Span

MAX_QUERY_CHARACTERS = 2000
MAX_QUESTION_CHARACTERS = 20_000
NOT_PRESENT = "not in this video"
_SENTINEL = "\u241f"  # a symbol no template contains

_QUESTIONS = {
    "full": {
        "stvg": 'At which time interval does the following happen, and where is its subject: "{query}"',
        "svg": 'From {start} to {end} the following happens: "{query}" Where is its subject?',
        "tvg": 'At which time interval does the following happen: "{query}"',
        "rec": 'Where is this in the picture: "{query}"',
    },
    "brief": {
        "stvg": "find {query}",
        "svg": "{start}-{end} find {query}",
        "tvg": "when {query}",
        "rec": "see {query}",
    },
}
_SPAN_ANSWER = {"full": "The event occurs from {start} to {end}.", "brief": "{start}-{end}."}
_HERE_ANSWER = {"full": "It is here.", "brief": "here."}
_ABSENT_ANSWER = {"full": "That is not in this video.", "brief": "not in this video."}


def query_token(index: int) -> str:
    """The text of query token <r_index>."""
    return f"<r_{index}>"


def question_text(config: SpaceVLLMConfig, task: str, query: str, span: Span | None = None) -> str:
    """The user's words for a task. qa and other text tasks are asked as they are."""
    templates = _QUESTIONS[config.prompts]
    if task not in templates:
        return query
    if task == "svg":
        if span is None:
            raise QueryError(
                "task svg asks where something is in a given span: give span=Span(start_s, end_s)"
            )
        return templates[task].format(
            query=query, start=seconds(config, span.start_s), end=seconds(config, span.end_s)
        )
    return templates[task].format(query=query)


def answer_text(
    config: SpaceVLLMConfig, task: str, named_s: tuple[float, float] | None, present: bool, text: str = ""
) -> str:
    """The true answer for training; named_s: the two times it names."""
    if task in ("stvg", "tvg", "rec", "svg"):
        if not present:
            return _ABSENT_ANSWER[config.prompts]
        if task in ("rec", "svg") or named_s is None:
            return _HERE_ANSWER[config.prompts]
        return _SPAN_ANSWER[config.prompts].format(
            start=seconds(config, named_s[0]), end=seconds(config, named_s[1])
        )
    return text


def seconds(config: SpaceVLLMConfig, time_s: float) -> str:
    return f"{time_s:.{config.time_decimals}f}s"


def time_answers(
    config: SpaceVLLMConfig, tokenizer: Any, times_s: npt.NDArray[np.float64]
) -> tuple[list[list[list[int]]], list[int]]:
    """Ids of every answer that names two of T frames' times, [T][T] (also those in the wrong order, which nobody should
    write), and of the answer that it is not there; without the end of the turn."""
    named = [
        [encode(tokenizer, answer_text(config, "tvg", (float(a), float(b)), True)) for b in times_s]
        for a in times_s
    ]
    return named, encode(tokenizer, answer_text(config, "tvg", None, False))


def snapped(span: Span, times_s: npt.NDArray[np.float64]) -> tuple[float, float]:
    """The times of the first and the last sampled frame inside the span (the nearest one, if none is).

    Both can be copied from the prompt, and both are moments at which it can be seen; `parse_span` turns them
    back into a span.
    """
    inside = np.nonzero((times_s >= span.start_s) & (times_s < span.end_s))[0]
    if len(inside) == 0:
        nearest = int(np.abs(times_s - (span.start_s + span.end_s) / 2).argmin())
        inside = np.array([nearest])
    return float(times_s[inside[0]]), float(times_s[inside[-1]])


# --- reading answers -----------------------------------------------------------------------------

_NUMBER = r"(\d{1,2}:\d{2}(?::\d{2})?(?:\.\d+)?|\d+(?:\.\d+)?)"
_UNIT = r"\s*(?:s|sec|secs|second|seconds)?"
_PAIR = re.compile(
    _NUMBER + _UNIT + r"\s*(?:to|and|until|till|through|->|-|–|—|~|,)\s*" + _NUMBER + _UNIT, re.IGNORECASE
)
_ANY_NUMBER = re.compile(_NUMBER, re.IGNORECASE)
_ABSENT = re.compile(
    r"\bnot (?:in|present|shown|visible|happen|occur)|\bdoes not|\bno such|\bnever\b", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class SpanAnswer:
    """A span read from text. Exactly one of: `span`, `absent`, or a `problem` that says why there is none."""

    span: Span | None = None
    absent: bool = False
    problem: str | None = None


def parse_span(text: str, duration_s: float, frames: FrameGrid | None = None) -> SpanAnswer:
    """Read a span from any model's words; never raises.

    frames: given when the two times name the first and the last sampled frame of the span (`snap_answers`):
    the span then ends half-way to the frames outside.

    Understands "from 3.1s to 5.6s", "3.1 - 5.6 seconds", "00:03 to 00:05", the last two numbers of a
    sentence; reversed numbers are put in order, times after the end of the video are cut at it.
    """
    pairs = _PAIR.findall(text)
    if pairs:
        values = [_to_seconds(value) for value in pairs[0]]
    else:
        if _ABSENT.search(text):
            return SpanAnswer(absent=True)
        values = [_to_seconds(value) for value in _ANY_NUMBER.findall(text)[-2:]]
        if len(values) < 2:
            return SpanAnswer(problem=f"no two times in the answer {text[:80]!r}")
    start, end = sorted(values)
    if frames is not None:
        first, last = (int(np.abs(frames.times_s - value).argmin()) for value in (start, end))
        edges = frames.cell_edges_s()
        return SpanAnswer(span=Span(float(edges[first]), float(edges[last + 1])))
    if start >= duration_s:
        return SpanAnswer(
            problem=f"the answer's span starts at {start:g} s, after the video's end ({duration_s:g} s)"
        )
    end = min(end, duration_s)
    if end <= start:
        return SpanAnswer(problem=f"the answer's span is empty ({start:g} s to {end:g} s)")
    return SpanAnswer(span=Span(start, end))


def _to_seconds(text: str) -> float:
    total = 0.0
    for part in text.split(":"):
        total = total * 60 + float(part[:12])
    return total


def check_query(query: str) -> str:
    """The sentence, stripped; QueryError for what no model can answer."""
    if not isinstance(query, str):
        raise QueryError(f"a query is a sentence (text), got {type(query).__name__}")
    text = " ".join(query.split())
    _check_characters(text, "sentence")
    if not text:
        raise QueryError(
            "the sentence is empty: say what to look for, for example 'the red circle that spins'"
        )
    if len(text) > MAX_QUERY_CHARACTERS:
        raise QueryError(
            f"the sentence has {len(text)} characters, at most {MAX_QUERY_CHARACTERS} are read: "
            "ask for one event at a time"
        )
    return text


def _check_characters(text: str, what: str) -> None:
    """Half of a character (a lone surrogate, from a cut string or bytes that are no UTF-8) is in no vocabulary."""
    for at, character in enumerate(text):
        if "\ud800" <= character <= "\udfff":
            raise QueryError(
                f"the {what} holds half of a character (U+{ord(character):04X} at position {at}): it was cut, or is "
                "not UTF-8; write it again"
            )


def check_question(question: str) -> str:
    """A free question, stripped, with its lines (options of a multiple choice); QueryError when empty or huge."""
    if not isinstance(question, str):
        raise QueryError(f"a question is text, got {type(question).__name__}")
    text = question.strip()
    _check_characters(text, "question")
    if not text:
        raise QueryError("the question is empty: ask something about the video")
    if len(text) > MAX_QUESTION_CHARACTERS:
        raise QueryError(
            f"the question has {len(text)} characters, at most {MAX_QUESTION_CHARACTERS} are read: shorten it"
        )
    return text


# --- layout --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PromptLayout:
    """Token ids around the frames and the question, from the tokenizer's chat template."""

    head: tuple[int, ...]
    between: tuple[int, ...]
    tail: tuple[int, ...]
    end: tuple[int, ...]
    video_token: int
    query_tokens: tuple[int, ...]  # N_v + 1 ids; empty for a base model without queries


@dataclass(frozen=True, slots=True)
class Prefix:
    """Ids of [video + queries], and where things are in it. T frames of K visual tokens each.

    newline_at: the last of the base's newline tokens, -1 where there is none; earlier_newlines_at: those before it.
    """

    ids: npt.NDArray[np.int64]  # (P,)
    visual_at: npt.NDArray[np.int64]  # (T, K)
    query_at: npt.NDArray[np.int64]  # (T,)
    newline_at: int
    earlier_newlines_at: tuple[int, ...] = ()


def make_layout(tokenizer: Any, video_token: str, max_frames: int) -> PromptLayout:
    """Read the layout off the tokenizer. max_frames = 0: a base model without query tokens."""
    messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": _SENTINEL}]}]
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        head, rest = text.split(video_token)
        between, tail = rest.split(_SENTINEL)
    except (ValueError, TypeError) as error:
        raise ModelError(
            f"the tokenizer's chat template does not put a {video_token} before the user's text: {error}"
        ) from error
    names = [query_token(i) for i in range(max_frames + 1)] if max_frames else []
    queries = tokenizer.convert_tokens_to_ids(names)
    end_text = "<|im_end|>" if "<|im_end|>" in tokenizer.get_vocab() else tokenizer.eos_token
    return PromptLayout(
        head=tuple(encode(tokenizer, head)),
        between=tuple(encode(tokenizer, between)),
        tail=tuple(encode(tokenizer, tail)),
        end=(tokenizer.convert_tokens_to_ids(end_text),),
        video_token=tokenizer.convert_tokens_to_ids(video_token),
        query_tokens=tuple(queries),
    )


def encode(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
    return ids


def encode_query(tokenizer: Any, text: str) -> list[int]:
    """User text to ids; no special token can be smuggled in: "<video>" in it is just these letters."""
    ids: list[int] = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return ids


def make_prefix(
    config: SpaceVLLMConfig,
    layout: PromptLayout,
    tokenizer: Any,
    times_s: Sequence[float] | npt.NDArray[np.float64],
    duration_s: float,
    tokens_per_frame: int,
    is_image: bool = False,
) -> Prefix:
    """Interleave frames and queries: [frame i tokens] <r_i>; a single image is followed by <r_N_v> (REC).

    In a base model without query tokens a frame's last visual token stands where its query would.
    """
    n = len(times_s)
    if n > config.max_frames:
        raise ModelError(f"this model takes at most {config.max_frames} frames, got {n}: sample fewer")
    ids: list[int] = list(layout.head)
    visual_at = np.empty((n, tokens_per_frame), dtype=np.int64)
    query_at = np.empty(n, dtype=np.int64)
    newlines: list[int] = []
    for i, time_s in enumerate(times_s):
        if config.time_layout == "interleaved" and not is_image:
            ids += encode(tokenizer, seconds(config, float(time_s)))
        if config.newline == "grid":
            row_starts, side = _row_starts(len(ids), tokens_per_frame)
            visual_at[i] = (row_starts[:, None] + np.arange(side)).ravel()
            newlines += (row_starts + side).tolist()
            ids += [layout.video_token] * (side * (side + 1))
        else:
            visual_at[i] = np.arange(len(ids), len(ids) + tokens_per_frame)
            ids += [layout.video_token] * tokens_per_frame
            if config.newline == "frame" or (config.newline in ("base", "one") and i == n - 1):
                newlines.append(len(ids))
                ids.append(layout.video_token)
        if layout.query_tokens:
            ids.append(layout.query_tokens[-1 if is_image else i])
        query_at[i] = len(ids) - 1
    ids += layout.between
    if config.time_layout == "list" and not is_image:
        listed = ",".join(seconds(config, float(t)) for t in times_s)
        ids += encode(
            tokenizer,
            f"The video lasts for {seconds(config, duration_s)}, "
            f"and {n} frames are uniformly sampled from it. "
            f"These frames are located at {listed}.\n",
        )
    if config.time_layout == "llava_video" and not is_image:
        listed = ",".join(seconds(config, float(t)) for t in times_s)
        ids += encode(  # to the letter, with no space before "Please"
            tokenizer,
            f"The video lasts for {duration_s:.{config.time_decimals}f} seconds, "
            f"and {n} frames are uniformly sampled from it. "
            f"These frames are located at {listed}."
            "Please answer the following questions related to this video.\n",
        )
    return Prefix(
        np.array(ids, dtype=np.int64),
        visual_at,
        query_at,
        newlines[-1] if newlines else -1,
        tuple(newlines[:-1]),
    )


def _row_starts(start: int, tokens_per_frame: int) -> tuple[npt.NDArray[np.int64], int]:
    """Where the rows of a square frame begin when each is followed by a newline, and how long they are."""
    side = math.isqrt(tokens_per_frame)
    if side * side != tokens_per_frame:
        raise ModelError(
            f'newline "grid" ends each row of a square frame, but a frame has {tokens_per_frame} tokens: '
            'choose newline "frame" or "one"'
        )
    return start + np.arange(side, dtype=np.int64) * (side + 1), side
