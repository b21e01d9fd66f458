"""Read an answer: spans, boxes, timed boxes and captions from whatever the model wrote. Never raises.

Tolerant: braces, brackets, spaces and commas are optional, spans may be repeated, lists may be cut off. What can be
read is returned, and for everything that cannot there is a sentence in `problems`. An axis is told by its word, not by
its place: `[<HEIGHT-..><WIDTH-..>...]` is still a box. Numbers in plain notation (`{0.1,0.2}`, `[0.1,0.2,0.3,0.4]`,
`0.1:[...]`) are read too.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np

from tubelet.errors import DataError
from tubelet.llava_st.coordinates import BINS, Box
from tubelet.tube import Span, Tube

MAX_CHARACTERS = 100_000
_WORD = re.compile(r"<(TEMP|HEIGHT|WIDTH)-(\d{1,9})>")
_CUT_WORD = re.compile(r"<(?:T(?:E(?:M(?:P(?:-\d{0,9})?)?)?)?|H(?:E(?:I(?:G(?:H(?:T(?:-\d{0,9})?)?)?)?)?)?"
                       r"|W(?:I(?:D(?:T(?:H(?:-\d{0,9})?)?)?)?)?)$")  # fmt: skip
_PLACEHOLDER = re.compile(r"<(?:TEMP|HEIGHT|WIDTH)-(?:INPUT|OUTPUT)>")
_BETWEEN_NUMBERS = re.compile(r"[\s,]*")  # between the numbers of one box or span
_BEFORE_BOX = re.compile(r"[\s,]*:?[\s\[{(]*")  # between a time and its box
# bounded repeats: an answer is not trusted, and reading it takes linear time whatever it holds
_NUMBER, _GAP = r"(\d{1,6}(?:\.\d{1,12})?|\.\d{1,12})", r"\s{0,8}"
_COMMA = rf"{_GAP},{_GAP}"
_PLAIN_BOX = re.compile(
    rf"(?:{_NUMBER}{_GAP},?{_GAP}:{_GAP})?"
    rf"\[{_GAP}{_NUMBER}{_COMMA}{_NUMBER}{_COMMA}{_NUMBER}{_COMMA}{_NUMBER}{_GAP}\]"
)
_PLAIN_SPAN = re.compile(rf"\{{{_GAP}{_NUMBER}{_COMMA}{_NUMBER}{_GAP},?{_GAP}\}}")
_PLAIN_END = re.compile(rf"ends in{_GAP}{_NUMBER}", re.IGNORECASE)
_ENDS = re.compile(r"\b(?:ends|ending|until)\b[^.<>]{0,12}$", re.IGNORECASE)
_ABSENT = re.compile(
    r"\bnot (?:in|present|shown|visible|happen|occur)|\bdoes not (?:happen|occur|appear)", re.IGNORECASE
)
_BOX_HEADING = re.compile(r"object bounding box(?:es)?\s*:?\s*", re.IGNORECASE)

EXPECTED: dict[str, tuple[str, ...]] = {
    "rec": ("box",),
    "dgc": ("box",),
    "tvg": ("span",),
    "dvc": ("span",),
    "stvg": ("span", "timed boxes"),
    "svg": ("timed boxes",),
    "elc": ("end", "timed boxes"),
}


@dataclass(frozen=True, slots=True)
class Phrase:
    """A box and the words before it."""

    text: str
    box: Box


@dataclass(frozen=True, slots=True)
class Event:
    """A span and the sentence after it."""

    span: tuple[float, float]
    text: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What was read. Times are fractions of the clip, boxes (x0, y0, x1, y1) fractions of the frame.

    spans: distinct, in order; timed_boxes: increasing times; phrases: boxes without a time, with the words before them;
    events: every span with the sentence after it; end: a single moment ("Ends in"); text: the words without
    coordinates; absent: the answer says that there is nothing; problems: what could not be read, and why.
    """

    spans: tuple[tuple[float, float], ...] = ()
    timed_boxes: tuple[tuple[float, Box], ...] = ()
    phrases: tuple[Phrase, ...] = ()
    events: tuple[Event, ...] = ()
    end: float | None = None
    text: str = ""
    absent: bool = False
    problems: tuple[str, ...] = ()

    @property
    def boxes(self) -> tuple[Box, ...]:
        return tuple(phrase.box for phrase in self.phrases)


@dataclass(slots=True)
class _Reader:
    """What was found so far; the groups are (start, end) in the text."""

    text: str
    wants_end: bool = False  # the first time that stands alone is the end
    spans: list[tuple[float, float]] = field(default_factory=list)
    span_groups: list[tuple[int, int]] = field(default_factory=list)
    timed: list[tuple[float, Box]] = field(default_factory=list)
    boxes: list[tuple[int, Box]] = field(default_factory=list)
    end: float | None = None
    groups: list[tuple[int, int]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def add_span(self, start: float, end: float, group: tuple[int, int]) -> None:
        self.groups.append(group)
        if end < start:
            self.problems.append(f"a span ends before it starts ({start:.3f} to {end:.3f})")
            return
        self.spans.append((start, end))
        self.span_groups.append(group)

    def add_box(self, box: Box | None, group: tuple[int, int], time: float | None) -> None:
        self.groups.append(group)
        if box is None:
            return
        if box[2] < box[0] or box[3] < box[1]:
            self.problems.append(f"a box is inverted ({', '.join(f'{v:.3f}' for v in box)})")
        elif time is None:
            self.boxes.append((group[0], box))
        else:
            self.timed.append((time, box))


def parse_answer(text: str | None, task: str | None = None, bins: int = BINS) -> Answer:
    """Read an answer. With a task, `problems` also says which part that task asks for is not there."""
    if not isinstance(text, str):
        return Answer(problems=("there is no answer text",))
    problems = []
    if len(text) > MAX_CHARACTERS:
        problems.append(f"the answer has {len(text)} characters, the first {MAX_CHARACTERS} were read")
        text = text[:MAX_CHARACTERS]
    reader = _Reader(text, "end" in EXPECTED.get(task or "", ()), problems=problems)
    if _WORD.search(text):
        _read_words(reader, bins)
    else:
        _read_numbers(reader)
    for found in sorted(set(_PLACEHOLDER.findall(text))):
        reader.problems.append(f"the model wrote the placeholder {found} instead of a coordinate")
    cut = _CUT_WORD.search(text)
    if cut:
        reader.problems.append(f"the answer was cut off inside a coordinate ({cut[0]})")
    return _finished(reader, task)


# --- coordinate words --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Number:
    axis: str
    value: float
    start: int
    end: int


def _read_words(reader: _Reader, bins: int) -> None:
    numbers = []
    for found in _WORD.finditer(reader.text):
        index = int(found[2])
        if index >= bins:
            reader.problems.append(f"{found[0]} is outside the {bins} coordinates of an axis")
        value = index / (bins - 1) if index < bins else float("nan")
        numbers.append(_Number(found[1], value, found.start(), found.end()))
    runs = _runs(reader.text, numbers)
    position = 0
    while position < len(runs):
        run, after = runs[position], runs[position + 1] if position + 1 < len(runs) else None
        if run[0].axis != "TEMP":
            _read_box(reader, run, None)
            position += 1
            continue
        belongs = after is not None and after[0].axis != "TEMP" and _leads(reader.text, run[-1], after[0])
        _read_times(reader, run[:-1] if belongs else run)
        if belongs and after is not None:
            _read_box(reader, after, run[-1])
            position += 1
        position += 1


def _runs(text: str, numbers: Sequence[_Number]) -> list[list[_Number]]:
    """Neighbouring numbers of time, or of space, with only spaces and commas between them."""
    runs: list[list[_Number]] = []
    for number in numbers:
        last = runs[-1][-1] if runs else None
        same = last is not None and (last.axis == "TEMP") == (number.axis == "TEMP")
        if last is not None and same and _BETWEEN_NUMBERS.fullmatch(text, last.end, number.start):
            runs[-1].append(number)
        else:
            runs.append([number])
    return runs


def _leads(text: str, time: _Number, space: _Number) -> bool:
    near = space.start - time.end <= 40
    return near and _BEFORE_BOX.fullmatch(text, time.end, space.start) is not None


def _read_times(reader: _Reader, run: Sequence[_Number]) -> None:
    if not run:
        return
    group = _with_brackets(reader.text, run[0].start, run[-1].end)
    if any(n.value != n.value for n in run):
        reader.groups.append(group)
        return
    if len(run) == 2:
        reader.add_span(run[0].value, run[1].value, group)
    elif len(run) == 1:
        reader.groups.append(group)
        before = reader.text[max(0, group[0] - 30) : group[0]]
        if reader.end is None and (reader.wants_end or _ENDS.search(before) or not before.strip()):
            reader.end = run[0].value
        elif reader.text[run[0].end :].strip() == "":
            reader.problems.append("the answer was cut off after a time")
        else:
            reader.problems.append(
                f"a time stands alone ({run[0].value:.3f}): neither span, nor box, nor end"
            )
    else:
        reader.groups.append(group)
        reader.problems.append(f"a span has two times, this one has {len(run)}")


def _read_box(reader: _Reader, run: Sequence[_Number], time: _Number | None) -> None:
    start = (time or run[0]).start
    for first in range(0, len(run), 4):
        four = run[first : first + 4]
        group = _with_brackets(reader.text, start if first == 0 else four[0].start, four[-1].end)
        box = _box_of(reader, four)
        if time is not None and time.value != time.value:
            box = None
        if first and time is not None and box is not None:
            reader.problems.append("a second box follows one time; it was left out")
            box = None
        reader.add_box(box, group, None if time is None else time.value)


def _box_of(reader: _Reader, four: Sequence[_Number]) -> Box | None:
    if any(n.value != n.value for n in four):
        return None
    xs = [n.value for n in four if n.axis == "WIDTH"]
    ys = [n.value for n in four if n.axis == "HEIGHT"]
    if len(four) < 4:
        cut = (
            "the answer was cut off inside a box" if not reader.text[four[-1].end :].strip(" ,") else "a box"
        )
        reader.problems.append(f"{cut}: it has {len(four)} of 4 numbers")
        return None
    if len(xs) != 2:
        reader.problems.append(f"a box has two x and two y, this one has {len(xs)} and {len(ys)}")
        return None
    return xs[0], ys[0], xs[1], ys[1]


def _with_brackets(text: str, start: int, end: int) -> tuple[int, int]:
    """The group together with the brackets around it; spaces count only inside of them."""
    at = start
    while at > 0 and text[at - 1] in " [{(":
        at -= 1
        if text[at] != " ":
            start = at
    at = end
    while at < len(text) and text[at] in " ]})":
        at += 1
        if text[at - 1] != " ":
            end = at
    return start, end


# --- plain numbers -----------------------------------------------------------------------------------


def _read_numbers(reader: _Reader) -> None:
    for found in _PLAIN_SPAN.finditer(reader.text):
        start, end = (float(v) for v in found.groups())
        if max(start, end) > 1:
            reader.groups.append(found.span())
            reader.problems.append(f"a span holds fractions of the clip, got {found[0]}")
        else:
            reader.add_span(start, end, found.span())
    for found in _PLAIN_BOX.finditer(reader.text):
        time, *values = (None if v is None else float(v) for v in found.groups())
        x0, y0, x1, y1 = (v or 0.0 for v in values)
        if max(x0, y0, x1, y1, time or 0.0) > 1:
            reader.groups.append(found.span())
            reader.problems.append(f"a box holds fractions of the frame, got {found[0]}")
        else:
            reader.add_box((x0, y0, x1, y1), found.span(), time)
    end_found = _PLAIN_END.search(reader.text)
    if end_found and float(end_found[1]) <= 1:
        reader.end = float(end_found[1])
        reader.groups.append(end_found.span(1))


# --- putting together ----------------------------------------------------------------------------------


def _finished(reader: _Reader, task: str | None) -> Answer:
    text, groups = reader.text, sorted(reader.groups)
    timed: dict[float, Box] = {}
    for time, box in reader.timed:
        if time in timed and timed[time] != box:
            reader.problems.append(f"two boxes are given for the time {time:.3f}; the last one counts")
        timed[time] = box
    order = [time for time, _ in reader.timed]
    if any(b < a for a, b in pairwise(order)):
        reader.problems.append("the times of the boxes do not increase; they were put in order")
    phrases = tuple(Phrase(_words_before(text, groups, at), box) for at, box in reader.boxes)
    events = tuple(
        Event(span, _words_after(text, groups, group))
        for span, group in zip(reader.spans, reader.span_groups, strict=True)
    )
    plain = _without(text, groups)
    answer = Answer(
        tuple(dict.fromkeys(reader.spans)),
        tuple(sorted(timed.items())),
        phrases,
        events,
        reader.end,
        plain,
        _ABSENT.search(plain) is not None and not (reader.spans or reader.timed or reader.boxes),
    )
    problems = [*reader.problems, *_not_there(answer, task)]
    return replace(answer, problems=tuple(dict.fromkeys(problems)))


def _not_there(answer: Answer, task: str | None) -> list[str]:
    if answer.absent:
        return []
    there = {
        "box": bool(answer.phrases),
        "span": bool(answer.spans),
        "timed boxes": bool(answer.timed_boxes),
        "end": answer.end is not None or bool(answer.spans),
    }
    return [f"there is no {part} in the answer" for part in EXPECTED.get(task or "", ()) if not there[part]]


def _words_before(text: str, groups: Sequence[tuple[int, int]], at: int) -> str:
    number = bisect_left(groups, (at, 0))
    previous = groups[number - 1][1] if number else 0
    return _tidy(re.split(r"[.!?]\s", text[previous:at])[-1])


def _words_after(text: str, groups: Sequence[tuple[int, int]], group: tuple[int, int]) -> str:
    number = bisect_right(groups, (group[0], len(text)))
    following = groups[number][0] if number < len(groups) else len(text)
    return _tidy(_BOX_HEADING.split(text[group[1] : following])[0])


def _without(text: str, groups: Sequence[tuple[int, int]]) -> str:
    kept, at = [], 0
    for start, end in groups:
        kept.append(text[at : max(at, start)])
        at = max(at, end)
    return re.sub(r" (?=[.,;])", "", " ".join("".join([*kept, text[at:]]).split()))


def _tidy(text: str) -> str:
    return " ".join(text.split()).strip(" ,.:;")


def caption(answer: Answer) -> str:
    """The sentence of an ELC answer: its words without "Ends in", and before the boxes."""
    words = _BOX_HEADING.split(answer.text)[0]
    return _tidy(re.sub(r"^\s*ends in\s*,?", "", words, flags=re.IGNORECASE))


# --- fractions -> seconds ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Clock:
    """What the fractions 0 and 1 mean in seconds: usually the times of the first and the last sampled frame."""

    start_s: float
    end_s: float

    def __post_init__(self) -> None:
        if not 0 <= self.start_s < self.end_s:
            raise DataError(f"a clip ends after it starts, got {self.start_s:g} to {self.end_s:g} s")

    def seconds(self, fraction: float) -> float:
        return self.start_s + fraction * (self.end_s - self.start_s)

    def fraction(self, time_s: float) -> float:
        """Clipped to [0, 1]."""
        return min(max((time_s - self.start_s) / (self.end_s - self.start_s), 0.0), 1.0)

    def span(self, start: float, end: float, bins: int = BINS) -> Span:
        """At least one step of the coordinates long, so that a moment is a span too."""
        if end <= start:
            step = 1 / (bins - 1)
            start, end = (start, start + step) if start + step <= 1 else (1 - step, 1.0)
        return Span(self.seconds(start), self.seconds(end))


def tube_of(
    answer: Answer,
    clock: Clock,
    span: tuple[float, float] | None = None,
    start: float | None = None,
    bins: int = BINS,
) -> Tube | None:
    """The tube of a spatio-temporal answer, None when it holds neither span nor timed boxes.

    span: the given one (svg), start: the given start (elc), as fractions. Boxes outside the span are left out; between
    boxes a tube interpolates.
    """
    if span is None and answer.spans:
        span = answer.spans[0]
    elif span is None and start is not None and answer.end is not None and answer.end >= start:
        span = (start, answer.end)
    elif span is None and answer.timed_boxes:
        span = (answer.timed_boxes[0][0], answer.timed_boxes[-1][0])
    if span is None:
        return None
    inside = [(time, box) for time, box in answer.timed_boxes if span[0] <= time <= span[1]]
    return Tube(
        clock.span(*span, bins),
        np.array([clock.seconds(time) for time, _ in inside]),
        np.array([box for _, box in inside]).reshape(-1, 4),
    )
