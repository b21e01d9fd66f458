"""The published text conventions: numbers in prompts, converted answers, their strict parsers, frame sampling.

Used at the edges only: to read and write the published data and results, and to score exactly like them. Our own
parser, which understands more and says what it could not read, is answers.py.

Differences: a number inside a tag is read, never evaluated, so what is not a plain number is a DataError; "nothing
found" is None, where the published functions return zeros.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from tubelet.errors import DataError, VideoError
from tubelet.llava_st.coordinates import BINS, Variables, Worded, field_name, placeholder

_N = r"(\d+(?:\.\d+)?)"
_BOX = re.compile(rf"\[\s*{_N},\s*{_N},\s*{_N},\s*{_N}\s*\]")
_SPAN = re.compile(rf"\{{\s*{_N},\s*{_N}\s*\}}")
_START = re.compile(rf"Starts in {_N}")
_TAG = re.compile(r"<(TEMP|HEIGHT|WIDTH)-(INPUT|OUTPUT)([^>]*)>")
_PLAIN_NUMBER = re.compile(r"\s*-?(?:0|[1-9]\d*)(?:\.\d+)?(?:e-?\d+)?\s*")
_DEMO = re.compile(rf"<([twh]){_N}>")
_DEMO_AXES = {"t": "TEMP", "h": "HEIGHT", "w": "WIDTH"}
_ANCHOR = re.compile(r"<(?:TEMP|HEIGHT|WIDTH)-(\d+)>")

SPAN_ERROR = "{<error>}"


# --- numbers in prompts -> placeholders --------------------------------------------------------------


def boxes_to_tags(text: str, direction: str = "INPUT") -> str:
    """`[0.1, 0.2, 0.3, 0.4]` -> ` [<WIDTH-INPUT0.1>...]`; values are rounded to 3 decimals and cut at 1."""

    def tags(found: re.Match[str]) -> str:
        values = [min(max(round(float(v), 3), 0), 1) for v in found.groups()]
        axes = ("WIDTH", "HEIGHT", "WIDTH", "HEIGHT")
        return " [" + "".join(f"<{a}-{direction}{v}>" for a, v in zip(axes, values, strict=True)) + "]"

    return _BOX.sub(tags, text)


def spans_to_tags(text: str, direction: str = "INPUT") -> str:
    """`{0.1,0.2}` -> ` {<TEMP-INPUT0.1><TEMP-INPUT0.2>} `; a span that does not end after its start -> `{<error>}`."""

    def tags(found: re.Match[str]) -> str:
        start, end = (float(v) for v in found.groups())
        if start >= end:
            return SPAN_ERROR
        return f" {{<TEMP-{direction}{round(start, 3)}><TEMP-{direction}{round(end, 3)}>}} "

    return _SPAN.sub(tags, text)


def starts_to_tags(text: str, direction: str = "INPUT") -> str:
    """`Starts in 0.591` -> ` Starts in <TEMP-INPUT0.591> `."""
    return _START.sub(lambda m: f" Starts in <TEMP-{direction}{round(float(m[1]), 3)}> ", text)


def tags_to_variables(texts: Sequence[str | None]) -> tuple[list[str | None], Variables]:
    """Move the numbers inside tags to the six lists, in order of appearance over all texts (None: no text).

    DataError when a tag holds no plain number.
    """
    lists: dict[str, list[float]] = {}

    def move(found: re.Match[str]) -> str:
        axis, direction, number = found.groups()
        if not _PLAIN_NUMBER.fullmatch(number):
            raise DataError(
                f"a coordinate tag holds one plain number, like {placeholder(axis, direction)[:-1]}0.25>, "
                f"got {found[0]!r:.60}"
            )
        lists.setdefault(field_name(axis, direction), []).append(float(number))
        return placeholder(axis, direction)

    out = [None if text is None else _TAG.sub(move, text) for text in texts]
    return out, Variables(**{name: tuple(values) for name, values in lists.items()})


def benchmark_prompt(text: str, direction: str = "INPUT") -> Worded:
    """A benchmark's text with plain numbers -> placeholders and values: boxes, then spans, then "Starts in"."""
    tagged = starts_to_tags(spans_to_tags(boxes_to_tags(text, direction), direction), direction)
    (out,), variables = tags_to_variables([tagged])
    return Worded(out or "", variables)


def demo_prompt(text: str, direction: str = "INPUT") -> Worded:
    """`<w0.523>`, `<h0.621>`, `<t0.409>` -> placeholders and values (3 decimals); all else stays as typed."""
    tagged = _DEMO.sub(lambda m: f"<{_DEMO_AXES[m[1]]}-{direction}{round(float(m[2]), 3)}>", text)
    (out,), variables = tags_to_variables([tagged])
    return Worded(out or "", variables)


def demo_to_numbers(text: str) -> str:
    """Demo notation shown as plain numbers."""
    return _DEMO.sub(lambda m: str(round(float(m[2]), 3)), text)


# --- answers -> numbers ------------------------------------------------------------------------------


def anchor_to_number(index: int) -> str:
    """12 -> "0.12121,"."""
    return f"{index / (BINS - 1):.5f},"


def answer_to_numbers(text: str, as_indices: bool = False) -> str:
    """Anchors -> numbers (k / 99 with 5 decimals, or k itself) followed by commas, as the published results hold."""
    shown = _ANCHOR.sub(lambda m: f"{int(m[1])}," if as_indices else anchor_to_number(int(m[1])), text)
    return shown.replace(",]", "]").replace(",}", "}")


def strict_span(text: str) -> tuple[float, float] | None:
    """The first `{s,e}` in a converted answer."""
    found = _SPAN.search(text)
    return (float(found[1]), float(found[2])) if found else None


_STRICT_BOX = re.compile(rf"\[{_N},{_N},{_N},{_N}\]")
_STRICT_TIMED = re.compile(rf"{_N},:\[{_N},{_N},{_N},{_N}\]")
_ENDS = re.compile(rf"Ends in\s*{_N}")


def strict_boxes(text: str) -> list[list[float]]:
    """Every `[a,b,c,d]` in a converted answer."""
    return [[float(v) for v in found] for found in _STRICT_BOX.findall(text.replace(" ", ""))]


def strict_box(text: str) -> list[float] | None:
    """The first one."""
    found = strict_boxes(text)
    return found[0] if found else None


def strict_timed_boxes(text: str) -> dict[float, list[float]]:
    """Every `t,:[a,b,c,d]` in a converted answer, by time; the last one of a repeated time."""
    found = _STRICT_TIMED.findall(text.replace(" ", ""))
    return {float(time): [float(v) for v in box] for time, *box in found}


def strict_end(text: str) -> float | None:
    """The number after "Ends in"."""
    found = _ENDS.search(text)
    return float(found[1]) if found else None


# --- sampling ----------------------------------------------------------------------------------------


def frame_indices(frames: int, split: Sequence[float] | None = None, count: int = 100) -> list[int]:
    """Native frame numbers that the published code takes: `count` of them, repeated in short clips.

    split: first and last frame, both included; None: the whole video. Rounds half to even. count 1: the middle one.
    Raises VideoError for a split outside the video or one that ends before it starts.
    """
    if frames < 1 or count < 1:
        raise VideoError(f"at least one frame of a video with frames is taken, got {count} of {frames}")
    first, last = split if split is not None else (0, frames - 1)
    if first != int(first) or last != int(last):
        raise VideoError(f"a split holds whole frame numbers, got {split}")
    first, last = int(first), int(last)
    if not 0 <= first <= last < frames:
        raise VideoError(
            f"a split lies in frames 0 to {frames - 1}, first before last, got {first} to {last}"
        )
    if count == 1:
        return [(first + last) // 2]
    return [first + round(i / (count - 1) * (last - first)) for i in range(count)]
