"""What the coordinate words of a training text say, and the 15 kinds of task that such texts are about.

    {<TEMP-s><TEMP-e>}          a span
    [<W-x0><H-y0><W-x1><H-y1>]  a box; <TEMP-t>:[...] a box at a moment
    <TEMP-t>                    any other time word is a moment

Commas and spaces between the words of a group are allowed. A word is a placeholder, which takes the next value of its
axis and direction, or a literal anchor `<TEMP-012>`. This module knows text and numbers, nothing of files or tensors.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from tubelet.errors import DataError
from tubelet.llava_st.coordinates import AXES, BINS, DIRECTIONS, Box, Variables, field_name, value_of

_WORD = re.compile(r"<(TEMP|HEIGHT|WIDTH)-(INPUT|OUTPUT|\d{1,9})>")
_T, _H, _W = (rf"<{axis}-(?:INPUT|OUTPUT|\d{{1,9}})>" for axis in AXES)
_GAP = r"[\s,]*"
_SPAN = re.compile(rf"\{{\s*{_T}{_GAP}{_T}\s*\}}")
_BOX = re.compile(rf"(?:({_T})\s*,?\s*:\s*)?\[\s*{_W}{_GAP}{_H}{_GAP}{_W}{_GAP}{_H}\s*\]")


@dataclass(frozen=True, slots=True)
class Parts:
    """Times are fractions of the clip, boxes (x0, y0, x1, y1) fractions of the frame; each in order of appearance.

    times: moments that belong neither to a span nor to a box. boxes: those without a time.
    """

    spans: tuple[tuple[float, float], ...] = ()
    boxes: tuple[Box, ...] = ()
    timed_boxes: tuple[tuple[float, Box], ...] = ()
    times: tuple[float, ...] = ()

    def has(self, part: str) -> bool:
        """ "span", "box", "timed boxes" or "time" (a moment, or the ends of a span)."""
        found = {"span": self.spans, "box": self.boxes, "timed boxes": self.timed_boxes, "time": self.times}
        return bool(found[part]) or (part == "time" and bool(self.spans))

    @property
    def names(self) -> tuple[str, ...]:
        """Which parts there are."""
        return tuple(part for part in ("span", "time", "box", "timed boxes") if self.has(part))


def read_parts(text: str, values: Variables) -> Parts:
    """The spans, boxes and moments of a text whose placeholders stand for these values, in order.

    DataError for a span or box that is inverted, a box with a word missing, an anchor that does not exist, and a list
    of timed boxes that goes back in time. The values themselves, and their number, are not checked here.
    """
    at = {found.start(): value for found, value in _valued(text, values)}
    spans: list[tuple[float, float]] = []
    boxes: list[Box] = []
    timed: list[tuple[float, Box]] = []
    used: set[int] = set()
    for found in _SPAN.finditer(text):
        starts = [word.start() for word in _WORD.finditer(text, *found.span())]
        start, end = (at[word] for word in starts)
        if end < start:
            raise DataError(f"a span ends after it starts, got {start:g} and {end:g} at {_near(text, found)}")
        spans.append((start, end))
        used.update(starts)
    before = -1  # where the list of timed boxes ended so far
    for found in _BOX.finditer(text):
        starts = [word.start() for word in _WORD.finditer(text, *found.span())]
        *time, x0, y0, x1, y1 = (at[word] for word in starts)
        if x1 < x0 or y1 < y0:
            raise DataError(
                f"a box is x0, y0, x1, y1 with x0 <= x1 and y0 <= y1, got {x0:g}, {y0:g}, {x1:g}, {y1:g} "
                f"at {_near(text, found)} (xywh given?)"
            )
        used.update(starts)
        if not time:
            boxes.append((x0, y0, x1, y1))
            continue
        goes_on = timed and before >= 0 and not text[before : found.start()].strip(" ,;\n")
        if goes_on and time[0] < timed[-1][0]:
            raise DataError(f"times of boxes increase, got {timed[-1][0]:g}, then {time[0]:g}")
        timed.append((time[0], (x0, y0, x1, y1)))
        before = found.end()
    moments = []
    for word in _WORD.finditer(text):
        if word.start() in used:
            continue
        if word[1] != "TEMP":
            raise DataError(
                f"{word[0]} stands outside of a box: a box is [<WIDTH><HEIGHT><WIDTH><HEIGHT>], "
                f"got {_near(text, word)}"
            )
        moments.append(at[word.start()])
    return Parts(tuple(spans), tuple(boxes), tuple(timed), tuple(moments))


def split_values(texts: tuple[str, ...], variables: Variables) -> tuple[Variables, ...]:
    """The values of a conversation, handed out to its turns in order of appearance.

    Each turn gets one value per placeholder as long as there are any; check_counts says where they do not fit.
    """
    left = {(axis, way): list(variables.of(axis, way)) for axis in AXES for way in DIRECTIONS}
    out = []
    for text in texts:
        lists: dict[str, tuple[float, ...]] = {}
        for (axis, way), values in left.items():
            count = text.count(f"<{axis}-{way}>")
            lists[field_name(axis, way)] = tuple(values[:count])
            del values[:count]
        out.append(Variables(**lists))
    return tuple(out)


def _valued(text: str, values: Variables) -> Iterator[tuple[re.Match[str], float]]:
    queues = {(axis, way): iter(values.of(axis, way)) for axis in AXES for way in DIRECTIONS}
    for found in _WORD.finditer(text):
        axis, what = found[1], found[2]
        if what in DIRECTIONS:
            value = next(queues[axis, what], None)
            if value is None:
                raise DataError(f"{found[0]} has no value: give one in {field_name(axis, what)}")
            yield found, value
            continue
        if len(what) != 3 or int(what) >= BINS:
            raise DataError(
                f"{found[0]} is no coordinate word: they go from <{axis}-000> to <{axis}-{BINS - 1:03d}>"
            )
        yield found, value_of(int(what))


def _near(text: str, found: re.Match[str]) -> str:
    return repr(text[max(0, found.start() - 20) : found.start() + 40])


# --- kinds of task -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of task of the published mixture.

    label: its name there. media: "video", "image". stages: of the training in which it is used. asked, answered: parts
    (see `Parts.has`) of the first question and answer; somewhere: of any turn.
    """

    label: str
    media: tuple[str, ...]
    stages: tuple[int, ...]
    asked: tuple[str, ...] = ()
    answered: tuple[str, ...] = ()
    somewhere: tuple[str, ...] = ()


KINDS: dict[str, Kind] = {
    "video_captioning": Kind("video captioning", ("video",), (1, 3)),
    "tvg": Kind("TVG", ("video",), (2, 3), answered=("span",)),
    "dvc": Kind("DVC", ("video",), (2, 3), answered=("span",)),
    "temporal_referring": Kind("temporal referring", ("video",), (2,), asked=("time",)),
    "rec": Kind("REC", ("image",), (2, 3), answered=("box",)),
    "dgc": Kind("DGC", ("image",), (2, 3), answered=("box",)),
    "region_caption": Kind("region caption", ("image",), (2, 3), asked=("box",)),
    "temporal_grounded_conversation": Kind(
        "temporal grounded conversation", ("video",), (3,), somewhere=("time",)
    ),
    "image_grounded_conversation": Kind("image grounded conversation", ("image",), (3,), somewhere=("box",)),
    "stvg": Kind("STVG", ("video",), (3,), answered=("span", "timed boxes")),
    "elc": Kind("ELC", ("video",), (3,), asked=("time", "box"), answered=("time", "timed boxes")),
    "svg": Kind("SVG", ("video",), (3,), asked=("span",), answered=("timed boxes",)),
    "conversation": Kind("conversation", ("video", "image"), (3,)),
    "video_qa": Kind("VideoQA", ("video",), (3,)),
    "classification": Kind("classification", ("video", "image"), (3,)),
}
"""The 15 task kinds of the published training mixture, by the name that an item's "type" has here."""
