"""The ids of LLaVA-ST's words in a tokenizer, and the order in which they are added to one.

    ordinary words ... 8 visual marks, 6 coordinate placeholders | 300 anchors (time, height, width)
                                                                 V

Ids are looked up by text and checked: a tokenizer of another model is an error, never a shifted coordinate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tubelet.errors import ModelError
from tubelet.llava_st.coordinates import AXES, BINS, DIRECTIONS, PLACEHOLDERS, anchor, anchors, placeholder

IMAGE_MARK, VIDEO_MARK = "<image>", "<video>"
VISUAL_WORDS = (
    "<im_start>",
    "<im_end>",
    "<im_patch>",
    "<vid_start>",
    "<vid_end>",
    "<vid_patch>",
    "<slow_vid_start>",
    "<slow_vid_end>",
)
TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"


@dataclass(frozen=True, slots=True)
class Slot:
    """A run of visual tokens in the ids: its first, middle and last word."""

    start: int
    patch: int
    end: int

    def ids(self, count: int) -> list[int]:
        """`count` ids that features will replace; a single one is the start."""
        if count == 1:
            return [self.start]
        return [self.start, *[self.patch] * (count - 2), self.end] if count else []

    def last(self, count: int) -> int:
        """The id at the end of `count` of them."""
        return self.end if count > 1 else self.start


@dataclass(frozen=True, slots=True)
class Words:
    """Ids by meaning. placeholders[(axis, direction)]; `vocabulary` is V, the id of the first anchor."""

    image: Slot
    fast: Slot
    slow: Slot
    placeholders: dict[tuple[str, str], int]
    vocabulary: int
    bins: int
    turn_start: int
    turn_end: int
    newline: int

    def output_placeholder(self, axis: int) -> int:
        return self.placeholders[AXES[axis], "OUTPUT"]


def find_words(tokenizer: Any, bins: int = BINS) -> Words:
    """Look every word up. ModelError names what a tokenizer lacks or holds elsewhere."""
    have = tokenizer.get_vocab()
    wanted = [TURN_START, TURN_END, *VISUAL_WORDS, *PLACEHOLDERS, *anchors(bins)]
    missing = [word for word in wanted if word not in have]
    if missing:
        more = f" and {len(missing) - 4} more" if len(missing) > 4 else ""
        raise ModelError(
            f"this is not a LLaVA-ST tokenizer: it lacks {', '.join(missing[:4])}{more}; "
            "was the tokenizer of another model put beside these weights?"
        )
    first = int(have[anchor(AXES[0], 0)])
    for offset, word in enumerate(anchors(bins)):
        if have[word] != first + offset:
            raise ModelError(
                f"the anchors must be consecutive ids from {first} on, but {word} is {have[word]} "
                f"instead of {first + offset}: the tokenizer was changed after training"
            )
    low = [word for word in wanted[: 2 + len(VISUAL_WORDS) + len(PLACEHOLDERS)] if have[word] >= first]
    if low:
        raise ModelError(f"{', '.join(low)} must come before the anchors (id {first}) in the tokenizer")
    ids = {word: int(have[word]) for word in wanted}
    return Words(
        image=Slot(ids["<im_start>"], ids["<im_patch>"], ids["<im_end>"]),
        fast=Slot(ids["<vid_start>"], ids["<vid_patch>"], ids["<vid_end>"]),
        slow=Slot(ids["<slow_vid_start>"], ids["<vid_patch>"], ids["<slow_vid_end>"]),
        placeholders={(a, d): ids[placeholder(a, d)] for a in AXES for d in DIRECTIONS},
        vocabulary=first,
        bins=bins,
        turn_start=ids[TURN_START],
        turn_end=ids[TURN_END],
        newline=_newline(tokenizer),
    )


def add_words(tokenizer: Any, bins: int = BINS) -> Words:
    """Give a tokenizer LLaVA-ST's words, in the published order. Words that it has already must be in that order."""
    extra = [w for w in (TURN_START, TURN_END) if w not in tokenizer.get_vocab()]
    tokenizer.add_tokens([*extra, *VISUAL_WORDS, *PLACEHOLDERS, *anchors(bins)], special_tokens=True)
    return find_words(tokenizer, bins)


def _newline(tokenizer: Any) -> int:
    ids: Sequence[int] = tokenizer("\n", add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise ModelError(f"a line break must be one word of the tokenizer, it is {len(ids)}")
    return int(ids[0])
