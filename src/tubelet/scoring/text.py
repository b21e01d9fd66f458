"""Spans and boxes in free text, as Qwen-style models write them.

Read, in this order (the first that holds anything wins):

1. JSON in the text, fenced or not: objects with bbox_2d / bbox / box [x0, y0, x1, y1], with time / timestamp / t /
   frame (a number, "1.5s" or a clock "00:01.5"), or a list of two of them (a span), or start_time and end_time
   (start, end);
2. "During the span of {0, 10} 0: [..], 1: [..]": a span in braces, boxes after "moment:";
3. "at 1.5 s <|box_start|>(x0,y0),(x1,y1)<|box_end|>": boxes in round brackets after a moment;
4. a span in words: "from 1.5 to 4 seconds", "1.5 - 4", "00:01 - 00:04".

Inside <answer>...</answer> where there is one (the last). Knows no units: numbers are returned as they are written.
A text without a span and without boxes returns None.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

Box = tuple[float, float, float, float]

LONGEST = 200_000
"""Characters of an answer that are read; what comes after is a model repeating itself."""

_N = r"-?\d{1,18}(?:\.\d{1,24})?"
_ABSURD = re.compile(r"\d{25}")
_BRACES = re.compile(rf"\{{\s*({_N})\s*,\s*({_N})\s*\}}")
_AFTER_MOMENT = re.compile(rf"({_N})\s*s?\s*,?\s*:\s*\[\s*({_N})\s*,\s*({_N})\s*,\s*({_N})\s*,\s*({_N})\s*\]")
_ROUND = re.compile(
    rf"({_N})\s*(?:s|sec|seconds?)?\s*[:,]?\s*(?:<\|box_start\|>|<box>)?\s*"
    rf"\(\s*({_N})\s*,\s*({_N})\s*\)\s*,\s*\(\s*({_N})\s*,\s*({_N})\s*\)"
)
_CLOCK = r"\d{1,3}:\d{2}(?::\d{2})?(?:\.\d{1,6})?"
_WORDS = re.compile(rf"({_CLOCK}|{_N})\s*(?:s|sec|seconds?)?\s*(?:-|–|—|to|and|until)\s*({_CLOCK}|{_N})")
_BOX_KEYS = ("bbox_2d", "bbox", "box", "box_2d")
_TIME_KEYS = ("time", "timestamp", "t", "frame", "time_s", "second", "span", "time_range", "temporal_span")
_PAIRS = (("start_time", "end_time"), ("start", "end"), ("start_s", "end_s"))


@dataclass(frozen=True, slots=True)
class Said:
    """span: (start, end) or None; boxes: (moment, box) in the order of the text."""

    span: tuple[float, float] | None
    boxes: tuple[tuple[float, Box], ...]


def read_text(text: str) -> Said | None:
    """What an answer says; None where no span and no box could be read. Never raises."""
    text = re.sub(r"\s+", " ", text[:LONGEST])  # long runs of blanks make patterns slow
    block = last_answer(text)
    text = text if block is None else block
    if _ABSURD.search(text):
        return None
    for reader in (_json, _written):
        said = reader(text)
        if said is not None and (said.span is not None or said.boxes):
            return said
    return None


def last_answer(text: str) -> str | None:
    """What is inside the last <answer>...</answer>; None where there is none. Linear, unlike a lazy pattern."""
    end = text.rfind("</answer>")
    while end >= 0:
        before = text.rfind("</answer>", 0, end)
        start = text.find("<answer>", max(before, 0), end)
        if start >= 0:
            return text[start + len("<answer>") : end]
        end = before
    return None


def _written(text: str) -> Said:
    span: tuple[float, float] | None = None
    braces = _BRACES.search(text)
    boxes = [_row(found) for found in _AFTER_MOMENT.finditer(text)] or [
        _row(found) for found in _ROUND.finditer(text)
    ]
    if braces:
        span = float(braces[1]), float(braces[2])
    elif not boxes:
        words = _WORDS.search(text)
        if words:
            span = _seconds(words[1]), _seconds(words[2])
    else:
        # a span in words, before the first box
        first = (_AFTER_MOMENT.search(text) or _ROUND.search(text)).start()  # type: ignore[union-attr]
        words = _WORDS.search(text[:first])
        if words:
            span = _seconds(words[1]), _seconds(words[2])
    return Said(span, tuple(boxes))


def _row(found: re.Match[str]) -> tuple[float, Box]:
    t, a, b, c, d = (float(x) for x in found.groups())
    return t, (a, b, c, d)


def _seconds(text: str) -> float:
    """A number, or a clock time h:m:s as seconds."""
    total = 0.0
    for part in text.split(":"):
        total = total * 60 + float(part)
    return total


def _json(text: str) -> Said | None:
    """The first JSON value in the text that holds objects with a span or boxes."""
    decoder = json.JSONDecoder()
    at, tries = 0, 0
    while tries < 50:  # a text of thousands of brackets is not JSON
        found = re.search(r"[\[{]", text[at:])
        if found is None:
            return None
        at += found.start()
        try:
            value, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            at, tries = at + 1, tries + 1
            continue
        said = _of_objects(list(_objects(value)))
        if said is not None:
            return said
        at = end
        tries += 1
    return None


def _objects(value: Any, depth: int = 0) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
    if depth > 4 or not isinstance(value, list | dict):
        return
    for inner in value.values() if isinstance(value, dict) else value:
        yield from _objects(inner, depth + 1)


def _of_objects(objects: list[dict[str, Any]]) -> Said | None:
    span: tuple[float, float] | None = None
    boxes: list[tuple[float, Box]] = []
    for one in objects:
        place = next((b for key in _BOX_KEYS if (b := _four(one.get(key))) is not None), None)
        for first, last in _PAIRS:
            ends = _moment(one.get(first)), _moment(one.get(last))
            if span is None and ends[0] is not None and ends[1] is not None:
                span = ends[0], ends[1]
        for key in _TIME_KEYS:
            stated = one.get(key)
            two = _two(stated)
            at = _moment(stated)
            if two is not None and span is None:
                span = two
            elif at is not None and place is not None:
                boxes.append((at, place))
                break
    return Said(span, tuple(boxes)) if span is not None or boxes else None


def _moment(value: Any) -> float | None:
    if isinstance(value, str):
        found = re.fullmatch(rf"\s*({_CLOCK}|{_N})\s*(?:s|sec|seconds?)?\s*", value)
        return _seconds(found[1]) if found else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if -1e18 < value < 1e18 else None  # NaN and infinity are no moments


def _two(value: Any) -> tuple[float, float] | None:
    if isinstance(value, str):
        found = re.fullmatch(rf"\s*{_WORDS.pattern}\s*(?:s|sec|seconds?)?\s*", value)
        return (_seconds(found[1]), _seconds(found[2])) if found else None
    if not isinstance(value, list) or len(value) != 2:
        return None
    first, last = _moment(value[0]), _moment(value[1])
    return None if first is None or last is None else (first, last)


def _four(value: Any) -> Box | None:
    if not isinstance(value, list) or len(value) != 4:
        return None
    out = []
    for x in value:
        if isinstance(x, bool) or not isinstance(x, int | float):
            return None
        out.append(float(x))  # NaN and infinity pass: they are the checks' business
    return out[0], out[1], out[2], out[3]
