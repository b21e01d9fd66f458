"""Lettered options of multiple-choice questions: "A. a cat", "(B) a dog" -> texts and an index.

A record's `choices` are the texts without their letters, `answer_index` counts from 0, `answer` is the text. Who
prints a prompt writes the letters anew, or takes the original wording from `extra`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from tubelet.datasets.fields import Item, show

_LABEL = re.compile(r"\s*\(?([A-Z])[).:]")
MOST = 26


def unlettered(item: Item, key: str, options: Sequence[str]) -> tuple[str, ...]:
    """Options without "A.", "B.", ... in order; as they are where the first has no "A."; else RecordError."""
    if not 2 <= len(options) <= MOST:
        raise item.error(key, f"expected 2 to {MOST} options, got {len(options)}")
    found = [_LABEL.match(option) for option in options]
    if found[0] is None or found[0][1] != "A":
        return tuple(option.strip() for option in options)
    texts = []
    for k, match in enumerate(found):
        text = "" if match is None else options[k][match.end() :].strip()
        if match is None or ord(match[1]) - ord("A") != k or not text:
            wanted = chr(ord("A") + k)
            raise item.error(f"{key}[{k}]", f"expected '{wanted}. text', got {show(options[k])}")
        texts.append(text)
    return tuple(texts)


def letter_index(item: Item, key: str, letter: str, count: int) -> int:
    """0 for "A", 1 for "B", ...; RecordError unless it is one of `count` options."""
    text = letter.strip()
    index = ord(text) - ord("A") if len(text) == 1 else -1
    if not 0 <= index < count:
        last = chr(ord("A") + min(count, MOST) - 1)
        raise item.error(key, f"expected a letter from A to {last}, got {show(letter)}")
    return index
