"""Coordinates as words: the 300 anchors, the 6 placeholders, and the numbers they stand for (paper, section 3.2).

Three axes, always in this order: TEMP (time), HEIGHT (y), WIDTH (x). A value is a fraction in [0, 1] of the clip or
of the frame. An *anchor* `<AXIS-kkk>` says k / (bins - 1) and is an ordinary word of the vocabulary. A *placeholder*
`<AXIS-INPUT>` (in a question) or `<AXIS-OUTPUT>` (in a training answer) stands for one exact value, which travels
beside the text in `Variables`; the model blends its two neighbouring anchors.

Layout: box `[<WIDTH-x0><HEIGHT-y0><WIDTH-x1><HEIGHT-y1>]`, span `{<TEMP-s><TEMP-e>}`, timed box `<TEMP-t>:[...]`.

This module knows text and numbers, nothing of tensors or tokenizers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

from tubelet.errors import DataError

AXES = ("TEMP", "HEIGHT", "WIDTH")
DIRECTIONS = ("INPUT", "OUTPUT")
BINS = 100
PLACEHOLDERS = tuple(f"<{axis}-{direction}>" for axis in AXES for direction in DIRECTIONS)

Box = tuple[float, float, float, float]


def placeholder(axis: str, direction: str) -> str:
    """`<WIDTH-INPUT>` and its five siblings."""
    return f"<{axis}-{direction}>"


def anchor(axis: str, index: int) -> str:
    """`<TEMP-012>`: three digits, as in the released tokenizer."""
    return f"<{axis}-{index:03d}>"


def anchors(bins: int = BINS) -> list[str]:
    """All anchors in the order of their ids: time, height, width."""
    return [anchor(axis, index) for axis in AXES for index in range(bins)]


def value_of(index: int, bins: int = BINS) -> float:
    """The fraction that anchor `index` stands for."""
    return index / (bins - 1) if bins > 1 else 0.0


def nearest_anchor(value: float, bins: int = BINS) -> int:
    """The anchor closest to a fraction (ties go up); values outside [0, 1] are clipped."""
    return math.floor(clipped(value) * (bins - 1) + 0.5)


def clipped(value: Any) -> float:
    """A fraction, clipped to [0, 1]. DataError for what is not a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not -math.inf < value < math.inf:
        raise DataError(f"a coordinate is a finite number, a fraction in [0, 1], got {value!r:.40}")
    return float(min(max(value, 0.0), 1.0))


def position_to_bins(value: Any, bins: int = BINS) -> tuple[int, int, float]:
    """Lower anchor, upper anchor, weight of the upper one; exact multiples give the same anchor twice and 0."""
    at = clipped(value) * (bins - 1)
    low = math.floor(at)
    return low, math.ceil(at), at - low


def checked_box(box: Sequence[float], what: str = "a box") -> Box:
    """x0, y0, x1, y1 as fractions with x0 <= x1 and y0 <= y1; DataError otherwise."""
    if len(box) != 4:
        raise DataError(f"{what} has four numbers x0, y0, x1, y1, got {len(box)}")
    if any(clipped(v) != v for v in box):
        raise DataError(
            f"{what} holds fractions of the frame in [0, 1], got {tuple(box)} (pixels? divide by width and height)"
        )
    x0, y0, x1, y1 = (float(v) for v in box)
    if x1 < x0 or y1 < y0:
        raise DataError(
            f"{what} is x0, y0, x1, y1 with x0 <= x1 and y0 <= y1, got {tuple(box)} (xywh given?)"
        )
    return x0, y0, x1, y1


def checked_span(start: float, end: float, what: str = "a span") -> tuple[float, float]:
    """start < end as fractions of the clip; DataError otherwise."""
    if clipped(start) != start or clipped(end) != end:
        raise DataError(f"{what} holds fractions of the clip in [0, 1], got {start:g} and {end:g} (seconds?)")
    if end <= start:
        raise DataError(f"{what} ends after it starts, got {start:g} and {end:g}")
    return float(start), float(end)


# --- values that travel beside the text ------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Variables:
    """The values of a sample's placeholders, per axis and direction, in order of appearance.

    The fields' names are the keys of the published data format.
    """

    temporal_input_locations: tuple[float, ...] = ()
    temporal_output_locations: tuple[float, ...] = ()
    spatial_height_input_locations: tuple[float, ...] = ()
    spatial_height_output_locations: tuple[float, ...] = ()
    spatial_width_input_locations: tuple[float, ...] = ()
    spatial_width_output_locations: tuple[float, ...] = ()

    def of(self, axis: str, direction: str) -> tuple[float, ...]:
        values: tuple[float, ...] = getattr(self, field_name(axis, direction))
        return values

    def __add__(self, other: Variables) -> Variables:
        """The values of this text followed by those of another."""
        return Variables(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def to_dict(self) -> dict[str, list[float]]:
        return {f.name: list(getattr(self, f.name)) for f in fields(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Variables:
        """From the published format: all six lists must be there. DataError names what is wrong."""
        names = [f.name for f in fields(cls)]
        if not isinstance(data, Mapping):
            raise DataError(f"variables must hold six lists, got {type(data).__name__}")
        missing = [name for name in names if name not in data]
        unknown = [str(name) for name in data if name not in names]
        if missing or unknown:
            raise DataError(
                f"variables hold the six lists {', '.join(names)}; "
                f"missing: {', '.join(missing) or 'none'}, not known: {', '.join(unknown) or 'none'}"
            )
        lists: list[tuple[float, ...]] = []
        for name in names:
            if not isinstance(data[name], list | tuple):
                raise DataError(f"variables.{name} is a list of numbers, got {data[name]!r:.60}")
            for value in data[name]:
                clipped(value)
            lists.append(tuple(data[name]))
        return cls(*lists)


_FIELD_OF_AXIS = {"TEMP": "temporal", "HEIGHT": "spatial_height", "WIDTH": "spatial_width"}


def field_name(axis: str, direction: str) -> str:
    """("HEIGHT", "INPUT") -> "spatial_height_input_locations"."""
    return f"{_FIELD_OF_AXIS[axis]}_{direction.lower()}_locations"


def check_counts(text: str, variables: Variables, what: str = "the text") -> None:
    """DataError unless every placeholder of a text has a value and every value a placeholder."""
    for axis in AXES:
        for direction in DIRECTIONS:
            name, have = placeholder(axis, direction), len(variables.of(axis, direction))
            need = text.count(name)
            if need != have:
                raise DataError(
                    f"{what} holds {need} {name} but there are {have} values in {field_name(axis, direction)}: "
                    "give one value per placeholder"
                )


# --- writing ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Worded:
    """A text with placeholders, and their values."""

    text: str
    variables: Variables


def box_words(box: Sequence[float], direction: str = "INPUT") -> Worded:
    """A box as placeholders, in the layout of the training data (no commas)."""
    x0, y0, x1, y1 = checked_box(box)
    w, h = placeholder("WIDTH", direction), placeholder("HEIGHT", direction)
    return Worded(f"[{w}{h}{w}{h}]", _variables(direction, height=(y0, y1), width=(x0, x1)))


def span_words(start: float, end: float, direction: str = "INPUT") -> Worded:
    """A span as placeholders."""
    start, end = checked_span(start, end)
    t = placeholder("TEMP", direction)
    return Worded(f"{{{t}{t}}}", _variables(direction, time=(start, end)))


def time_words(value: float, direction: str = "INPUT") -> Worded:
    """One moment as a placeholder."""
    if clipped(value) != value:
        raise DataError(f"a moment is a fraction of the clip in [0, 1], got {value:g} (seconds?)")
    return Worded(placeholder("TEMP", direction), _variables(direction, time=(float(value),)))


def timed_boxes_words(
    times: Sequence[float], boxes: Sequence[Sequence[float]], direction: str = "OUTPUT"
) -> Worded:
    """`<TEMP>:[...],<TEMP>:[...]`; times must increase."""
    if len(times) != len(boxes) or any(b <= a for a, b in pairwise(times)):
        raise DataError(f"timed boxes need one increasing time per box, got {len(times)} and {len(boxes)}")
    parts = [
        join(time_words(t, direction), ":", box_words(b, direction))
        for t, b in zip(times, boxes, strict=True)
    ]
    out = Worded("", Variables())
    for number, part in enumerate(parts):
        out = join(out, "," if number else "", part)
    return out


def join(*parts: str | Worded) -> Worded:
    """Concatenate texts; values keep the order of their placeholders."""
    text, variables = "", Variables()
    for part in parts:
        if isinstance(part, str):
            text += part
        else:
            text += part.text
            variables = variables + part.variables
    return Worded(text, variables)


def _variables(
    direction: str,
    time: tuple[float, ...] = (),
    height: tuple[float, ...] = (),
    width: tuple[float, ...] = (),
) -> Variables:
    if direction == "INPUT":
        return Variables(time, (), height, (), width, ())
    return Variables((), time, (), height, (), width)


def box_anchors(box: Sequence[float], bins: int = BINS) -> str:
    """A box as literal anchors, rounded to the nearest: what an answer looks like."""
    x0, y0, x1, y1 = (nearest_anchor(v, bins) for v in checked_box(box))
    return f"[{anchor('WIDTH', x0)}{anchor('HEIGHT', y0)}{anchor('WIDTH', x1)}{anchor('HEIGHT', y1)}]"


def span_anchors(start: float, end: float, bins: int = BINS) -> str:
    """A span as literal anchors, rounded to the nearest."""
    start, end = checked_span(start, end)
    return f"{{{anchor('TEMP', nearest_anchor(start, bins))}{anchor('TEMP', nearest_anchor(end, bins))}}}"
