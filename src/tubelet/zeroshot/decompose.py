"""A sentence as two sub-queries: how its target looks, and what it does (paper, 3.3; DSTH).

    "the man in red stands up and sits down"  ->  attribute "the man in red", action "the man stands up and sits down"

By rules (no model), by the loaded MLLM, or by any function that answers an instruction with JSON. What cannot be used
is asked once more, then the rules decide, and the result says so. A part that is not there is None: the whole sentence
is asked instead, as published.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

# words after which the description of a thing ends and what it does begins
_RELATIVE = re.compile(r"\b(?:that|who|which)\b", re.IGNORECASE)
_QUESTION = re.compile(r"^(?:what|who|which|where)\b", re.IGNORECASE)
_ARTICLE = ("a", "an", "the", "his", "her", "their")
_NOT_VERBS = frozenset(
    [
        "is",
        "this",
        "dress",
        "glass",
        "grass",
        "bus",
        "stairs",
        "steps",
        "clothes",
        "glasses",
        "pants",
        "shoes",
        "jeans",
        "shorts",
        "trousers",
        "cross",
        "across",
        "always",
        "towards",
        "besides",
        "downstairs",
        "upstairs",
        "sometimes",
        "others",
        "its",
        "his",
        "hers",
        "theirs",
        "as",
        "was",
        "has",
        "does",
        "sunglasses",
    ]
)
_PLACES = frozenset(
    [
        "in",
        "on",
        "at",
        "of",
        "with",
        "to",
        "from",
        "by",
        "near",
        "behind",
        "beside",
        "under",
        "over",
        "left",
        "right",
        "next",
        "front",
        "and",
    ]
)
_ING_NOUNS = frozenset([
    "awning", "building", "ceiling", "clothing", "drawing", "duckling", "dumpling", "earring",
    "frosting", "painting", "pudding", "railing", "sibling", "something", "spring", "string",
    "stuffing", "topping",
])  # fmt: skip
_NAMELESS = frozenset([
    "one", "ones", "it", "thing", "things", "something", "object", "first", "second", "third", "fourth",
    "last", "middle", "center", "centre", "left", "right", "top", "bottom", "front", "back", "side",
    "same", "other", "he", "she", "they", "him", "her", "them",
])  # fmt: skip
_CONTENT = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?")
_STEM = 4  # letters by which two forms of a word are told to be one
INSTRUCTION = """Split a sentence about one person or thing in a video into two parts.
"attribute": who or what it is and looks like: clothes, colour, position, relation to others. No action of it.
"action": the bare subject and everything it does, in order. No clothes, no colours, no positions.
Use only words of the sentence. Use "" for a part that the sentence does not have. Answer with JSON only.
Sentence: the tall woman beside the door picks up a cup and drinks
{"attribute": "the tall woman beside the door", "action": "the woman picks up a cup and drinks"}
Sentence: what does the child in the blue coat push?
{"attribute": "the child in the blue coat", "action": "the child pushes something"}
Sentence: a white dog on the left of the sofa
{"attribute": "a white dog on the left of the sofa", "action": ""}
Sentence: """


@dataclass(frozen=True, slots=True)
class SubQueries:
    """attribute, action: texts, None where the sentence has none. source: who split it. note: what went wrong."""

    attribute: str | None
    action: str | None
    source: str
    note: str = ""


def by_rules(sentence: str) -> SubQueries:
    """Split at "that/who/which", or at the first word that looks like a verb of a third person ("sits")."""
    text = " ".join(sentence.split()).rstrip(".?! ")
    if _QUESTION.match(text):
        return _of_question(text)
    relative = _RELATIVE.search(text)
    if relative and relative.start() > 0:
        attribute, action = text[: relative.start()].strip(), text[relative.end() :].strip()
        return SubQueries(attribute, f"{bare_noun(attribute)} {action}" if action else None, "rules")
    words = text.split()
    for at in range(1, len(words)):
        if _looks_like_a_verb(words, at):
            attribute, action = " ".join(words[:at]), " ".join(words[at:])
            return SubQueries(attribute, f"{bare_noun(attribute)} {action}", "rules")
    return SubQueries(text or None, None, "rules")


def _of_question(text: str) -> SubQueries:
    """ "which red ball rolls" is a sentence about a red ball; "what/who does X hold" is one about what X holds."""
    words = text.split()
    does = next((k for k, w in enumerate(words) if w.lower() in ("does", "is", "did")), None)
    if words[0].lower() == "which" and len(words) > 1 and does != 1:
        return by_rules("the " + " ".join(words[1:]))
    if does is not None and does + 1 < len(words):
        return SubQueries(None, " ".join(words[does + 1 :]), "rules")
    rest = " ".join(words[1:])
    return SubQueries(None, f"something {rest}" if rest else None, "rules")


def _looks_like_a_verb(words: list[str], at: int) -> bool:
    word, before = words[at].lower().strip(","), words[at - 1].lower()
    if not word.endswith("s") or word.endswith("ss") or word in _NOT_VERBS or not word.isalpha():
        return False
    return before not in _ARTICLE and before not in _PLACES and len(word) > 3


def bare_noun(attribute: str) -> str:
    """ "the tall man in purple clothes" -> "the man": article and the last word before a preposition."""
    words = attribute.split()
    head = next(
        (k for k, w in enumerate(words) if k > 0 and w.lower() in _PLACES | {"wearing", "to"}), len(words)
    )
    noun = words[max(0, head - 1)]
    article = words[0].lower() if words[0].lower() in _ARTICLE else "the"
    return noun if len(words) == 1 else f"{article} {noun}"


def subject_of(sentence: str) -> str | None:
    """The bare noun of what a sentence is about, for a detector: "the tall man in red sits" -> "man".

    None where the sentence does not name it: questions after it ("what does the child push?"), "the one on the left".
    """
    text = " ".join(sentence.split()).strip(".?! ")
    words = text.split()
    if not words:
        return None
    first = words[0].lower()
    if first == "who":
        return "person"
    if first == "what":
        return None
    if first == "where":
        text = " ".join(words[2:])
    description = by_rules(text).attribute or ""
    named = [word.strip(",;:\"'()").lower() for word in description.split()]
    head = next((k for k, word in enumerate(named) if k > 0 and _ends_a_noun(word)), len(named))
    nouns = [word for word in named[:head] if _CONTENT.fullmatch(word) and word not in _ARTICLE]
    return nouns[-1] if nouns and nouns[-1] not in _NAMELESS else None


def _ends_a_noun(word: str) -> bool:
    """Does the description go on behind the noun here: a place, or what it is doing ("sitting", but not "ring")?"""
    return word in _PLACES | {"that", "is", "are"} or (
        word.endswith("ing") and len(word) > 5 and word not in _ING_NOUNS
    )


def by_model(sentence: str, answer: Callable[[str], str], source: str) -> SubQueries:
    """Ask with the instruction; unusable answers are asked for once more, then the rules decide (`note` says why)."""
    problem = ""
    for _ in range(2):
        try:
            return replace(
                _read(sentence, answer(INSTRUCTION + " ".join(sentence.split()) + "\n")), source=source
            )
        except ValueError as error:
            problem = str(error)
    return replace(by_rules(sentence), note=f"{source} gave no usable parts ({problem}); split by rules")


def _read(sentence: str, text: str) -> SubQueries:
    """The first JSON object of an answer. ValueError for everything that is not two texts made of the sentence."""
    start = text.find("{")
    if start < 0:
        raise ValueError("no JSON in the answer")
    try:
        found, _ = json.JSONDecoder().raw_decode(text[start:])
    except (ValueError, RecursionError):
        raise ValueError("broken JSON in the answer") from None
    parts = {}
    for name in ("attribute", "action"):
        value = found.get(name) if isinstance(found, dict) else None
        if not isinstance(value, str) or len(value) > 4 * len(sentence) + 40:
            raise ValueError(f"no text under {name!r}")
        parts[name] = " ".join(value.split()) or None
    if parts["attribute"] is None and parts["action"] is None:
        raise ValueError("both parts are empty")
    for part in parts.values():
        if part is not None and not _made_of(part, sentence):
            raise ValueError(f"{part!r} is not made of words of the sentence")
    return SubQueries(parts["attribute"], parts["action"], "model")


def _made_of(part: str, sentence: str) -> bool:
    """Are at least half of the words that say something in `part` words of the sentence ("pushes" for "push")?

    Models that answer with one of the examples share "the" and "in" with every sentence.
    """
    known = {word.lower()[:_STEM] for word in _CONTENT.findall(sentence)}
    said = [word.lower() for word in _CONTENT.findall(part)]
    telling = [word for word in said if word not in _PLACES and word not in _ARTICLE] or said
    return 2 * sum(word[:_STEM] in known for word in telling) >= len(telling) > 0


def question_of(text: str, wording: str) -> str:
    """A sub-query in a wording ("Is there {text} in this video?" is the published one), without a full stop."""
    return wording.replace("{text}", text.strip().rstrip(".?! "))
