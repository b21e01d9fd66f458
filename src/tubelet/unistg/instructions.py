"""The one instruction format of all tasks: `Instruction`, and the wordings of its questions and answers.

Turns hold marks where numbers belong, so that every output format can write its own: {span} ("from 2.0 s to 5.5 s"),
{span_first} (the same as the beginning of a sentence), {box} and {boxes} (one per moment). Only tasks with numbers have
marks; the texts of general conversations are never touched. Wordings are in data/templates.json; which one an item gets
depends on its id and the seed alone, so that adding items changes no other item.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np

from tubelet.errors import DataError
from tubelet.tube import Span

TASKS = ("vtg", "rec", "stvg", "general")
GROUNDING = ("vtg", "rec", "stvg")
MEDIA = ("video", "image", "text")
MARKS = ("{span}", "{span_first}", "{box}", "{boxes}")
_MARK = re.compile(r"\{(?:span|span_first|box|boxes)\}")
Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Instruction:
    """One training conversation about a video, an image or nothing.

    turns: ("human" | "gpt", text with marks) in turns. span, duration_s: seconds. times_s, boxes_xyxy: one box per
    moment, fractions of the displayed frame; a rec has one box and no time. query: the sentence. phrase: the thing.
    provenance: JSON values. Raises DataError where a part is missing.
    """

    id: str
    task: str
    source: str
    media: str
    path: str
    turns: tuple[tuple[str, str], ...]
    query: str = ""
    phrase: str = ""
    span: Span | None = None
    duration_s: float | None = None
    times_s: tuple[float, ...] = ()
    boxes_xyxy: tuple[Box, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        where = f"instruction {self.id!r:.60}"
        if not self.id or self.task not in TASKS or self.media not in MEDIA:
            raise DataError(
                f"{where}: needs an id, a task of {', '.join(TASKS)} and media of {', '.join(MEDIA)}"
            )
        if bool(self.path) == (self.media == "text"):
            raise DataError(
                f"{where}: an instruction about {self.media} has {'no' if self.path else 'a'} path"
            )
        roles = [who for who, _ in self.turns]
        if (
            not roles
            or roles != ["human", "gpt"] * (len(roles) // 2)
            or not all(t.strip() for _, t in self.turns)
        ):
            raise DataError(
                f"{where}: human and gpt take turns, with texts that are not empty; got {roles[:4]}"
            )
        if self.task in ("vtg", "stvg") and (self.span is None or self.media != "video"):
            raise DataError(f"{where}: a {self.task} is about a video and has a span")
        if self.task == "stvg" and (not self.boxes_xyxy or len(self.times_s) != len(self.boxes_xyxy)):
            raise DataError(f"{where}: an stvg has one box per time, at least one")
        if self.task == "rec" and (self.media != "image" or len(self.boxes_xyxy) != 1):
            raise DataError(f"{where}: a rec is about an image and has one box")
        if self.task in GROUNDING and _MARK.search(self.query + self.phrase):
            raise DataError(f"{where}: the sentence holds one of the marks {', '.join(MARKS)}")
        boxes = np.array(self.boxes_xyxy, dtype=np.float64).reshape(-1, 4)
        if len(boxes) and (boxes.min() < 0 or boxes.max() > 1 or (boxes[:, 2:] < boxes[:, :2]).any()):
            raise DataError(f"{where}: boxes are x0, y0, x1, y1 in fractions of the frame")

    def rendered(self, span: str, box: str, boxes: str) -> tuple[tuple[str, str], ...]:
        """The turns with these words for the marks (span_first is span with a capital)."""
        if self.task == "general":
            return self.turns
        words = {"{span}": span, "{span_first}": span[:1].upper() + span[1:], "{box}": box, "{boxes}": boxes}
        return tuple((who, _MARK.sub(lambda m: words[m[0]], text)) for who, text in self.turns)


@cache
def templates() -> dict[str, dict[str, tuple[str, ...]]]:
    """task -> "questions" / "answers" -> wordings."""
    text = files("tubelet.unistg").joinpath("data").joinpath("templates.json").read_text(encoding="utf-8")
    return {
        task: {part: tuple(wordings) for part, wordings in parts.items()}
        for task, parts in json.loads(text).items()
    }


def draw(seed: int, *parts: str) -> int:
    """A 64-bit number that depends on the seed and the texts alone."""
    key = "\x1f".join((str(seed), *parts)).encode("utf-8", "replace")
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest())


def question_and_answer(
    task: str, id: str, query: str, phrase: str, seed: int
) -> tuple[tuple[str, str], ...]:
    """A question and an answer in wordings drawn for this id. The answer holds marks."""
    parts = templates()[task]
    question, answer = (
        parts[part][draw(seed, id, part) % len(parts[part])] for part in ("questions", "answers")
    )
    plain = " ".join(query.split()).rstrip(" .")
    asked: dict[str, Callable[[], str]] = {"query": lambda: plain, "phrase": lambda: phrase or "its subject"}
    return (
        ("human", re.sub(r"\{(query|phrase)\}", lambda m: asked[m[1]](), question)),
        ("gpt", answer),
    )


def caption_question(id: str, seed: int) -> str:
    """A question for a caption that has none."""
    wordings = templates()["caption"]["questions"]
    return wordings[draw(seed, id, "questions") % len(wordings)]
