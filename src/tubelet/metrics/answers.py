"""Spans, boxes and ids out of answer texts, each the way one public evaluator reads them.

A reader returns None for a text that it cannot read: the query then fails with a reason instead of scoring what a
default would. Knows text only; tokens of LLaVA-ST are read in `llavast`.

Answers may be long (a model that repeats itself): every reader takes time in proportion to the text. Patterns start
where a run of digits starts and give nothing back (`++`), which finds what the public pattern finds.
"""

from __future__ import annotations

import ast
import re
from typing import Any

NUMBER = r"\d+(?:\.\d+)?"
_DOTTED = r"(?<!\d)(\d++(?:\.++\d*+)?)"  # \d+\.*\d* of the public code, in linear time
_CHARADES = re.compile(rf"{_DOTTED}\s*+-\s*+{_DOTTED}")
_R1_TARGET = re.compile(r"Target ID:\s*+(\d++)", re.IGNORECASE)
_R1_TIMES = re.compile(
    r"Time range:\s*+(\d++(?:\.\d*+)?+)\s*+(?:to|and)\s*+(\d++(?:\.\d*+)?+)", re.IGNORECASE
)
_MOST_DIGITS = 18  # of an object's number; longer ones name no object


def charades_span(text: str) -> tuple[float, float] | None:
    """lmms-eval's reading for Charades-STA, seconds: the first span of a text, swapped when reversed.

    Clock times ("00:04 - 00:05") first; then the first "a - b" or "a to b"; then the first number of each line that
    speaks of a start, an end or a happening, paired up. Two equal times are a span of length 0.
    """
    text = text.lower()
    clock = [_clock_s(t) for t in re.findall(r"\b\d{1,2}:\d{2}(?::\d{2})?(?:\.\d+)?\b", text)]
    if len(clock) >= 2:
        return min(clock[:2]), max(clock[:2])
    text = text.replace("to", "-")  # the public code replaces it inside words too
    pair = _CHARADES.search(text)
    if pair:
        try:
            first, second = float(pair[1]), float(pair[2])
        except ValueError:  # "1..5": the pattern lets several dots through
            return None
        return min(first, second), max(first, second)
    lines = [x for x in re.split(r"[!?\n]", text) if re.search(r"start|end|happen", x)]
    times = [float(m[0]) for m in (re.search(r"\b\d+\.\d+\b|\b\d+\b", x) for x in lines) if m]
    return (min(times[:2]), max(times[:2])) if len(times) >= 2 else None


def _clock_s(text: str) -> float:
    seconds = 0.0
    for part in text.split(":"):
        seconds = seconds * 60 + float(part)
    return seconds


def refcoco_box(text: str) -> tuple[float, float, float, float] | None:
    """lmms-eval's reading for RefCOCO: the first bracketed four numbers (signs and spaces allowed)."""
    number = rf"\s*(-?{NUMBER})\s*"
    return _four(re.search(rf"\[{number},{number},{number},{number}\]", text))


def llavast_box(text: str) -> tuple[float, float, float, float] | None:
    """LLaVA-ST's reading of a box: the first "[a,b,c,d]" of non-negative numbers, spaces ignored."""
    number = f"({NUMBER})"
    return _four(re.search(rf"\[{number},{number},{number},{number}\]", text.replace(" ", "")))


def llavast_span(text: str) -> tuple[float, float] | None:
    """LLaVA-ST's reading of a span: the first "{a, b}". An ELC answer ("Ends in t, ...") has none."""
    found = re.search(rf"\{{\s*({NUMBER}),\s*({NUMBER})\s*\}}", text)
    return (float(found[1]), float(found[2])) if found else None


def llavast_caption(text: str) -> str:
    """LLaVA-ST's reading of an ELC caption: up to the first full stop, after the last comma of that."""
    return text.split(".")[0].split(",")[-1]


def stvg_r1_answer(text: str) -> tuple[int, float, float] | None:
    """STVG-R1's answer: object id, start_s, end_s out of the last <answer> block."""
    block = _last_block(text)
    if block is None:
        return None
    target, times = _R1_TARGET.search(block), _R1_TIMES.search(block)
    if not target or not times or len(target[1].lstrip("0")) > _MOST_DIGITS:
        return None
    return int(target[1].lstrip("0") or "0"), float(times[1]), float(times[2])


def _last_block(text: str) -> str | None:
    """What the last match of <answer>(.*?)</answer> holds, by one walk: that pattern is quadratic in unclosed tags."""
    block, at = None, 0
    while True:
        start = text.find("<answer>", at)
        end = -1 if start < 0 else text.find("</answer>", start)
        if end < 0:
            return block
        block, at = text[start + len("<answer>") : end], end + len("</answer>")


def vstar_span(value: Any) -> tuple[float, float] | None:
    """V-STaR's span: two numbers, or a text that spells such a list."""
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return None
    if not isinstance(value, list | tuple) or len(value) != 2:
        return None
    if not all(
        isinstance(x, int | float) and abs(x) < 1e300 for x in value
    ):  # NaN and whole numbers beyond float
        return None
    return float(value[0]), float(value[1])


def _four(found: re.Match[str] | None) -> tuple[float, float, float, float] | None:
    return None if found is None else (float(found[1]), float(found[2]), float(found[3]), float(found[4]))
