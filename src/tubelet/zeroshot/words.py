"""Words of a sentence: tidied, in lower case, with their classes; and the two forms that restating a question needs.

The classes are those of `tubelet.unistg.lexicon`, put right where captions of videos use a word in another way than
captions of scenes do: "an adult" is a noun, "in red clothes" ends with a noun, "outdoors" is no verb. English only.
"""

from __future__ import annotations

import re

from tubelet.unistg.lexicon import lexicon

MARKS = ".,;:!?()[]\"'“”‘’"
_SPACED = re.compile(r"\s+(?=[,;:]|'s\b)|(?<=\w)\s+-\s+(?=\w)")
_SHORT = re.compile(r"\b(who|what|where|that|which|there)['’]s\b", re.IGNORECASE)
_ADVERBS = frozenset([
    "outdoors", "indoors", "upstairs", "downstairs", "sideways", "lengthways", "always", "otherwise", "clockwise",
    "anticlockwise", "counterclockwise", "upwards", "downwards", "forwards", "backwards", "inwards", "outwards",
    "leftwards", "rightwards", "sidewards", "afterwards", "sometimes", "besides", "overseas", "outdoor", "indoor",
])  # fmt: skip
_MEN = frozenset(["men", "women", "children", "people", "guys", "kids"])


def tidy(text: str) -> str:
    """One space between words, none before commas and "'s", none around hyphens; "who is" for "who's"; no full stop."""
    text = _SPACED.sub(lambda gap: "-" if "-" in gap[0] else "", " ".join(text.replace("_", " ").split()))
    return _SHORT.sub(r"\1 is", text).strip(".?! ")


def plain(word: str) -> str:
    """A word in lower case without the marks around it."""
    return word.strip(MARKS).lower()


def classes_of(words: list[str]) -> list[str]:
    """One letter for each plain word (see `tubelet.unistg.lexicon`)."""
    known = lexicon()
    tags: list[str] = []
    for word in words:
        if not word:
            tags.append(",")
        elif word in _ADVERBS:
            tags.append("Q")
        elif word in known.people and known.class_of(word) == "J":
            tags.append("N")  # "an adult", "a male"
        elif word == "opposite" and tags and tags[-1] == "N":
            tags.append("P")  # "the man opposite the woman"
        elif word in known.worn and tags and tags[-1] in "ADMJPO":
            tags.append("N")  # "in red clothes"
        else:
            tags.append(known.class_of(word))
    return tags


def third_person(verb: str) -> str:
    """ "carry" -> "carries"."""
    if verb in ("have", "be"):
        return {"have": "has", "be": "is"}[verb]
    if verb.endswith("y") and verb[-2:-1] not in ("a", "e", "i", "o", "u", ""):
        return verb[:-1] + "ies"
    return verb + ("es" if verb.endswith(("s", "x", "z", "ch", "sh", "o")) else "s")


def is_plural(noun: str) -> bool:
    """ "men", "dogs", but not "bus"."""
    return noun in _MEN or (len(noun) > 3 and noun.endswith("s") and not noun.endswith(("ss", "us", "is")))
