"""Conversations in which times stand between the words: what VTimeLLM, Moment-10M, ANet-RTL, Grounded-VideoLLM and
VTG-IT files share.

Every source marks times in its own way. A reader turns each into a `Mark` (where it stands, how many seconds it is),
and `talk_record` makes one record of a conversation:

    record.extra["turns"]     [{"from": "human", "value": "What happens during the span of {<t0><t1>}?"}, ...]
    record.extra["times_s"]   [12.0, 17.5, ...]        seconds of the whole file; <t3> is the fourth
    record.tags["kind"]       what it is good for, by what it asks and answers (`kind_of`; names of docs/st-align.md)

Two times that belong together ("from <a> to <b>", "between <a> and <b>", "<a> - <b>", "<a> <b>") become a span,
{<t0><t1>}; the others are moments. `llava_st.talk_items` writes such a record as an item with placeholders. Marks of
pictures (<video>, <image>) are taken out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from tubelet.datasets.fields import Item, show
from tubelet.datasets.record import Record, VideoRef
from tubelet.tube import Span

MARK = re.compile(r"<t(\d+)>")
SPAN = re.compile(r"\{<t(\d+)><t(\d+)>\}")
_PICTURE = re.compile(r"\s*<(?:image|video)>\s*", re.IGNORECASE)
_UNIT = r"(?:\s*(?:seconds?|secs?)\b)?"
_PAIR = re.compile(
    rf"(?:(?P<word>\b(?:from|between)\s+))?(?P<a><t\d+>)"
    rf"(?:{_UNIT}\s*(?:-|–|~|\bto\b|\band\b|\buntil\b)\s*|\s+)(?P<b><t\d+>){_UNIT}",
    re.IGNORECASE,
)
_EVENT = re.compile(r"\}\s*[,:]\s*\w")
_TASK_OF = {"tvg": "tvg", "temporal_referring": "tr"}


@dataclass(frozen=True, slots=True)
class Mark:
    """A time in a text: characters [begin, end), seconds of the whole file."""

    begin: int
    end: int
    time_s: float


@dataclass(frozen=True, slots=True)
class Said:
    """One turn before its marks are joined. who: human or gpt."""

    who: str
    text: str
    marks: tuple[Mark, ...] = ()


def talk_record(
    item: Item,
    dataset: str,
    split: str,
    id: str,
    video: VideoRef,
    said: Sequence[Said],
    tags: dict[str, Any] | None = None,
    extra: dict[str, Any] | None = None,
) -> Record:
    """The record of a conversation. RecordError where turns do not alternate, are empty, or a span ends before it
    starts."""
    if len(said) < 2 or [one.who for one in said] != ["human", "gpt"] * (len(said) // 2):
        who = ", ".join(one.who for one in said[:4]) or "none"
        raise item.error("conversations", f"expected human and gpt in turns, got {who}")
    times: list[float] = []
    turns: list[dict[str, str]] = []
    for number, one in enumerate(said):
        text = _PAIR.sub(_joined, _PICTURE.sub(" ", _numbered(item, one, times)).strip())
        if not text:
            raise item.error(f"conversations[{number}]", "expected text that is not empty")
        turns.append({"from": one.who, "value": text})
    spans = {k: _spans(item, turn["value"], times) for k, turn in enumerate(turns)}
    kind = kind_of([turn["value"] for turn in turns])
    task = _TASK_OF.get(kind, "qa")
    return Record(
        dataset=dataset,
        split=split,
        id=id,
        task=task,
        query=turns[0]["value"],
        video=video,
        spans=tuple(spans[1]) if kind in ("tvg", "dvc") else (),
        given_span=spans[0][0] if kind == "temporal_referring" and spans[0] else None,
        answer="" if kind == "tvg" else turns[1]["value"],
        source={"file": Path(item.file).name, "record": item.where},
        tags={**(tags or {}), "kind": kind},
        extra={**(extra or {}), "turns": turns, "times_s": times},
    )


def kind_of(texts: Sequence[str]) -> str:
    """What a conversation is good for. texts: its turns, with spans and moments joined.

    One question: a span asked for is a tvg; events, each behind its span, a dvc; a time given and none answered a
    temporal_referring. Times anywhere else: temporal_grounded_conversation. No times: conversation.
    """
    asked, answered = (MARK.findall(texts[0]), MARK.findall(texts[1]))
    if len(texts) == 2 and not asked:
        spans = SPAN.findall(texts[1])
        if 2 * len(spans) == len(answered) and spans:
            return "dvc" if len(spans) > 1 or _EVENT.search(texts[1]) else "tvg"
    if len(texts) == 2 and asked and not answered:
        return "temporal_referring"
    if any(MARK.search(text) for text in texts):
        return "temporal_grounded_conversation"
    return "conversation"


def is_talk(record: Record) -> bool:
    return isinstance(record.extra.get("turns"), list)


def times_of(record: Record) -> list[float]:
    """Seconds of the marks of a talk; empty where there are none."""
    found: list[float] = record.extra.get("times_s", [])
    return found


def marks_in(
    item: Item, name: str, text: str, pattern: re.Pattern[str], shift_s: float = 0.0
) -> tuple[Mark, ...]:
    """Times that a text spells as numbers: group 1 of each match of `pattern`, in seconds. shift_s: where 0 is."""
    out = []
    for found in pattern.finditer(text):
        try:
            time_s = float(found[1])
        except ValueError:
            raise item.error(name, f"expected seconds, got {show(found[0])}") from None
        out.append(Mark(found.start(), found.end(), time_s + shift_s))
    return tuple(out)


def _numbered(item: Item, one: Said, times: list[float]) -> str:
    """The text with <t0>, <t1>, ... for its marks. Such words in the source's own text lose their brackets."""
    parts: list[str] = []
    at = 0
    for mark in sorted(one.marks, key=lambda m: m.begin):
        if mark.begin < at or not 0 <= mark.time_s < 1e7:
            raise item.error("conversations", f"expected times at or after 0 s, got {mark.time_s:g} s")
        parts += [MARK.sub(r"t\1", one.text[at : mark.begin]), f"<t{len(times)}>"]
        times.append(float(mark.time_s))
        at = mark.end
    return "".join([*parts, MARK.sub(r"t\1", one.text[at:])])


def _joined(found: re.Match[str]) -> str:
    word = found["word"] or ""
    lead = "" if not word else "During the span of " if word[0].isupper() else "during the span of "
    return f"{lead}{{{found['a']}{found['b']}}}"


def _spans(item: Item, text: str, times: Sequence[float]) -> list[Span]:
    out = []
    for found in SPAN.finditer(text):
        start_s, end_s = times[int(found[1])], times[int(found[2])]
        if end_s < start_s:
            raise item.error("conversations", f"a span ends before it starts: {start_s:g} to {end_s:g} s")
        out.append(Span(start_s, max(end_s, start_s + 1e-3)))
    return out


def pairs_of(said: Sequence[Said]) -> list[tuple[Said, Said]]:
    """Questions with their answers, where each stands for itself."""
    return [(a, b) for k, (a, b) in enumerate(pairwise(said)) if k % 2 == 0]
