"""The words that the rules of the analyzer know, as one letter each; unknown words are judged by their endings.

The lists are text files in `unistg/data`, read once. A class is one of

    A article       D other determiner  M number     J describes       N noun           B noun or verb (base form)
    S B with an s   V verb              G -ing       E -ed, participle  X auxiliary      Q adverb
    W a person (he) I other pronoun     R relative   P preposition      O of             T to
    C and, or       , comma             . stop       ? letters that English does not have
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files

_CLOSED = {
    "article": "A",
    "determiner": "D",
    "number": "M",
    "person": "W",
    "pronoun": "I",
    "relative": "R",
    "preposition": "P",
    "of": "O",
    "to": "T",
    "conjunction": "C",
    "auxiliary": "X",
    "adverb": "Q",
}
_VOWELS = frozenset("aeiou")
_MOST_GUESSES = 200_000  # words kept: typing errors never end


@dataclass(frozen=True, slots=True)
class Lexicon:
    """classes: word -> letter. The sets are for single rules and are described in their files."""

    classes: dict[str, str]
    colours: frozenset[str]
    gerund_nouns: frozenset[str]
    nonlocatable: frozenset[str]
    views: frozenset[str]
    parts: frozenset[str]
    worn: frozenset[str]
    people: frozenset[str]
    commands: frozenset[str]
    describing_nouns: frozenset[str]
    guesses: dict[str, str] = field(default_factory=dict)

    def class_of(self, word: str) -> str:
        """The letter of a lower-case word, digits, or a mark."""
        known = self.guesses.get(word)
        if known is None:
            known = self.classes.get(word) or _guess(word, self.classes)
            if len(self.guesses) < _MOST_GUESSES:
                self.guesses[word] = known
        return known


@cache
def lexicon() -> Lexicon:
    """The shipped lists (about 2 ms, once)."""
    both = set(_words("nouns_or_verbs.txt"))
    verbs = set(_words("verbs.txt"))
    classes: dict[str, str] = {}
    for base in verbs | both:
        classes.update(_forms(base))
    for word in _words("irregular.txt"):
        classes[word] = "E"
    for base in verbs - both:
        classes[base] = "V"
        classes[_with_s(base)] = "V"
    for base in both:
        classes[base] = "B"
        classes[_with_s(base)] = "S"
    for word in _words("adjectives.txt"):
        classes[word] = "J"
    for word in _words("people.txt"):
        if classes.get(word) == "V":  # "the groom"
            classes[word] = "N"
    gerunds, nouns = (frozenset(part) for part in _sections("gerund_nouns.txt").values())
    classes.update(dict.fromkeys(nouns, "N"))
    for name, words in _sections("closed.txt").items():
        if name:
            classes.update(dict.fromkeys(words, _CLOSED[name]))
    classes.update({",": ",", ";": ",", ":": ",", "(": ",", ")": ",", ".": ".", "!": ".", "?": "."})
    return Lexicon(
        classes,
        colours=frozenset(_words("colours.txt")),
        gerund_nouns=gerunds,
        nonlocatable=frozenset(_words("nonlocatable.txt")),
        views=frozenset(_words("view_nouns.txt")),
        parts=frozenset(_words("parts.txt")),
        worn=frozenset(_words("worn.txt")),
        people=frozenset(_words("people.txt")),
        describing_nouns=frozenset(_sections("adjectives.txt")["or_nouns"]),
        commands=frozenset(_sections("nouns_or_verbs.txt")["mostly_verbs"]),
    )


def _guess(word: str, classes: dict[str, str]) -> str:
    if word.isdecimal():
        return "M"
    if not any("a" <= letter <= "z" for letter in word):
        return "?"
    if word.endswith(("'s", "’s", "s'", "s’")):
        return "J"  # whose: describes the noun after it
    if "-" in word:
        last = word.rsplit("-", 1)[1]
        letter = classes.get(last, "N")
        return "J" if letter in "JEGM" else "N"
    if len(word) > 4:
        if word.endswith("ing"):
            return "G"
        if word.endswith("ed") and not word.endswith("eed"):
            return "E"
        if word.endswith("ly"):
            return "Q"
        if word.endswith("est") and "J" in (
            classes.get(word[:-3]),
            classes.get(word[:-4]),
            classes.get(word[:-2]),
        ):
            return "J"  # darkest, biggest, palest
        if word.endswith(("ous", "ful", "less", "ish", "able", "ible")) and not word.endswith("table"):
            return "J"
    return "N"


def _forms(base: str) -> Iterator[tuple[str, str]]:
    """The -ing and -ed forms of a verb."""
    stems = [base]
    if base.endswith("e") and not base.endswith(("ee", "oe", "ye")):
        stems = [base[:-1]]
    elif len(base) > 2 and base[-1] not in "wxyaeiou" and base[-2] in _VOWELS and base[-3] not in _VOWELS:
        stems.append(base + base[-1])
    for stem in stems:
        yield stem + "ing", "G"
    if base.endswith("ie"):
        yield base[:-2] + "ying", "G"
    if base.endswith("e"):
        yield base + "d", "E"
    elif base.endswith("y") and base[-2] not in _VOWELS:
        yield base[:-1] + "ied", "E"
    else:
        for stem in stems:
            yield stem + "ed", "E"


def _with_s(base: str) -> str:
    if base.endswith("y") and base[-2] not in _VOWELS:
        return base[:-1] + "ies"
    if base in ("leaf", "shelf", "loaf", "knife", "calf", "half"):
        return base.removesuffix("fe").removesuffix("f") + "ves"
    return base + ("es" if base.endswith(("s", "x", "z", "ch", "sh", "o")) else "s")


def _words(name: str) -> list[str]:
    return [word for words in _sections(name).values() for word in words]


def _sections(name: str) -> dict[str, list[str]]:
    """ "[section]" lines begin a section; "#" lines are comments."""
    out: dict[str, list[str]] = {"": []}
    here = ""
    text = files("tubelet.unistg").joinpath("data").joinpath(name).read_text(encoding="utf-8")
    for line in text.splitlines():
        plain = line.strip()
        if plain.startswith("[") and plain.endswith("]"):
            here = plain[1:-1]
            out.setdefault(here, [])
        elif plain and not plain.startswith("#"):
            out[here] += plain.split()
    return out
