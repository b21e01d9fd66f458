"""One item of LLaVA-ST's training data (ST-Align): a picture, a conversation, the values of its placeholders.

    {"id": "7", "type": "stvg", "video": "a/b.mp4",
     "conversations": [{"from": "human", "value": "<video>\\n..."}, {"from": "gpt", "value": "... <TEMP-OUTPUT> ..."}],
     "variables": {"temporal_output_locations": [0.25, 0.5], ... six lists ...},
     "meta": {"split": [0, 829]}}

`image` or `video` is a path below the data folder. `meta.split` is the first and the last native frame of the clip,
both included; times are fractions of it. `variables` may be left out where there are no placeholders. `type` is one of
`item_layout.KINDS` or anything else; other fields are kept in `other` and `meta`, and written again.

Every item is checked when it is made. Stricter than the published reader, which clips values, ignores some that are
left over, and replaces what it cannot use by its neighbour: here each of these is an error that names file, record and
field, or is counted by a `Problems` (docs/st-align.md lists them all).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from tubelet.datasets.fields import is_text, show
from tubelet.errors import DataError
from tubelet.llava_st.answers import parse_answer
from tubelet.llava_st.coordinates import PLACEHOLDERS, Variables, Worded, check_counts
from tubelet.llava_st.item_layout import KINDS, Parts, read_parts, split_values
from tubelet.llava_st.words import IMAGE_MARK, VIDEO_MARK

ROLES = ("human", "gpt")
LISTS = tuple(Variables().to_dict())


class ItemError(DataError):
    """What is wrong with an item: the field of the published format, and why."""

    def __init__(self, field: str, reason: str) -> None:
        self.field, self.reason = field, reason
        super().__init__(f"field {field}: {reason}")


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a conversation as it is written, the mark of the picture included."""

    who: str
    text: str


@dataclass(frozen=True, slots=True)
class Item:
    """
    image, video: a path below the data folder; exactly one of the two.
    conversations: human and gpt in turns. A turn of gpt before the first question is kept but not learnt, as published.
    split: first and last native frame, both included; None: the whole video.
    kind: one of KINDS, or "" where the source names none. other, meta: fields that mean nothing here.
    """

    conversations: tuple[Turn, ...]
    image: str | None = None
    video: str | None = None
    variables: Variables = field(default_factory=Variables)
    split: tuple[int, int] | None = None
    id: str = ""
    kind: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)
    other: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_media(self)
        _check_turns(self)
        _check_values(self)
        _check_kind(self, _parts(self))

    @property
    def path(self) -> str:
        return self.image or self.video or ""

    @property
    def is_image(self) -> bool:
        return self.image is not None

    def worded(self) -> tuple[tuple[str, Worded], ...]:
        """The turns with their own values and without the mark of the picture: what `prompts.training_ids` takes."""
        from tubelet.llava_st.prompts import split_mark  # imports torch

        values = split_values(tuple(turn.text for turn in self.conversations), self.variables)
        return tuple(
            (turn.who, Worded(split_mark(turn.text)[1], own))
            for turn, own in zip(self.conversations, values, strict=True)
        )

    def parts(self) -> tuple[Parts, ...]:
        """What the coordinates of every turn say."""
        return _parts(self)

    def to_dict(self) -> dict[str, Any]:
        """The published format. Fields without a meaning here come last, and never replace one that has."""
        out: dict[str, Any] = {"id": self.id} if self.id else {}
        if self.kind:
            out["type"] = self.kind
        out["image" if self.is_image else "video"] = self.path
        out["conversations"] = [{"from": turn.who, "value": turn.text} for turn in self.conversations]
        out["variables"] = self.variables.to_dict()
        meta = {**self.meta, **({} if self.split is None else {"split": list(self.split)})}
        if meta:
            out["meta"] = meta
        return {**out, **{key: value for key, value in self.other.items() if key not in out}}


# --- checks --------------------------------------------------------------------------------------------


def _check_media(item: Item) -> None:
    if item.image is not None and item.video is not None:
        raise ItemError("image", "an item has an image or a video, this one has both")
    if item.image is None and item.video is None:
        raise ItemError("video", "an item has an image or a video, this one has neither")
    name = "image" if item.is_image else "video"
    path = item.path
    if not isinstance(path, str) or not path.strip() or not is_text(path) or "\0" in path:
        raise ItemError(name, f"expected a path, got {show(path)}")
    if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
        raise ItemError(
            name, f"expected a path below the data folder, got {show(path)}: name its folder in data_folder"
        )
    if item.split is None:
        return
    if item.is_image:
        raise ItemError("meta.split", "an image has no frames to split; is it a video?")
    if len(item.split) != 2 or any(isinstance(at, bool) or not isinstance(at, int) for at in item.split):
        raise ItemError("meta.split", f"expected two whole frame numbers, got {item.split!r:.60}")
    first, last = item.split
    if not 0 <= first <= last:
        raise ItemError(
            "meta.split", f"expected the first and the last frame, both included, got {first} and {last}"
        )


def _check_turns(item: Item) -> None:
    turns = item.conversations
    for number, turn in enumerate(turns):
        name = f"conversations[{number}]"
        if turn.who not in ROLES:
            raise ItemError(f"{name}.from", f"a turn is from human or gpt, got {show(turn.who)}")
        if not isinstance(turn.text, str) or not turn.text.strip() or not is_text(turn.text):
            raise ItemError(f"{name}.value", f"expected text that is not empty, got {show(turn.text)}")
    skipped = 1 if turns and turns[0].who == "gpt" else 0
    asked = turns[skipped:]
    if len(asked) < 2:
        raise ItemError("conversations", f"expected a question and an answer, got {len(turns)} turns")
    for number, turn in enumerate(asked):
        if turn.who != ROLES[number % 2]:
            raise ItemError(
                f"conversations[{number + skipped}].from",
                f"human and gpt take turns: expected {ROLES[number % 2]}, got {turn.who}",
            )
    if len(asked) % 2:
        raise ItemError(f"conversations[{len(turns) - 1}].from", "the last question has no answer")
    if skipped and any(word in turns[0].text for word in PLACEHOLDERS):
        raise ItemError(
            "conversations[0].value",
            "a turn before the first question is not learnt: it takes no coordinates",
        )
    _check_marks(item, skipped)


def _check_marks(item: Item, first: int) -> None:
    """One mark, of the right sort, in the first question."""
    right = IMAGE_MARK if item.is_image else VIDEO_MARK
    for number, turn in enumerate(item.conversations):
        name = f"conversations[{number}].value"
        marks = turn.text.count(IMAGE_MARK) + turn.text.count(VIDEO_MARK)
        if number == first and marks > 1:
            raise ItemError(name, f"an item has one image or one video, this question has {marks} marks")
        if number == first and right not in turn.text:
            raise ItemError(name, f"the first question holds the mark {right}, got {show(turn.text)}")
        if number != first and marks:
            raise ItemError(name, "only the first question holds the mark of the image or video")


def _check_values(item: Item) -> None:
    for name in LISTS:
        for number, value in enumerate(getattr(item.variables, name)):
            number_like = isinstance(value, int | float) and not isinstance(value, bool)
            if not number_like or not 0 <= value <= 1:
                raise ItemError(
                    f"variables.{name}[{number}]",
                    f"expected a fraction in [0, 1], got {show(value)} (seconds or pixels?)",
                )
    try:
        check_counts("\n".join(turn.text for turn in item.conversations), item.variables, "the conversation")
    except DataError as error:
        raise ItemError("variables", str(error)) from None
    for number, turn in enumerate(item.conversations):
        wrong = [word for word in PLACEHOLDERS if "-INPUT" in word and word in turn.text]
        if turn.who == "gpt" and wrong:
            raise ItemError(
                f"conversations[{number}].value",
                f"an answer holds output placeholders, got {wrong[0]}: it would be learnt as a word",
            )


def _parts(item: Item) -> tuple[Parts, ...]:
    texts = tuple(turn.text for turn in item.conversations)
    out = []
    for number, (text, values) in enumerate(zip(texts, split_values(texts, item.variables), strict=True)):
        try:
            out.append(read_parts(text, values))
        except DataError as error:
            raise ItemError(f"conversations[{number}].value", str(error)) from None
    return tuple(out)


def _check_kind(item: Item, parts: tuple[Parts, ...]) -> None:
    if not item.kind:
        return
    if item.kind not in KINDS:
        raise ItemError("type", f"unknown kind {show(item.kind)}; kinds are {', '.join(KINDS)}")
    kind = KINDS[item.kind]
    medium = "image" if item.is_image else "video"
    if medium not in kind.media:
        raise ItemError(
            "type", f"{item.kind} is a task about {' or '.join(kind.media)}, this item has {medium}"
        )
    skipped = 1 if item.conversations[0].who == "gpt" else 0
    question, reply = parts[skipped], parts[skipped + 1]
    for part in kind.asked:
        if not question.has(part):
            raise ItemError(
                f"conversations[{skipped}].value", f"{item.kind} is asked with a {part}, there is none"
            )
    for part in kind.answered:
        if not reply.has(part) and not parse_answer(item.conversations[skipped + 1].text).absent:
            raise ItemError(
                f"conversations[{skipped + 1}].value", f"{item.kind} is answered with a {part}, there is none"
            )
    for part in kind.somewhere:
        timed = part == "time" and any(turn.has("timed boxes") for turn in parts)
        if not timed and not any(turn.has(part) for turn in parts):
            raise ItemError("conversations", f"{item.kind} speaks of a {part} in some turn, there is none")
