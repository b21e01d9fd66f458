"""Questions as statements about what they ask for, and what a detector should look for; without a model.

    read_sentence("who is beside the dog?")                # attribute "a person beside the dog"
    read_sentence("what does the child in red push?")      # action "an object that the child pushes"
    read_sentence("there is a cat kicking a ball")         # attribute "a cat", action "a cat kicking a ball"
    phrases_of("a small dog away from a child").phrases    # ("dog",)

What a question asks for is the target: of "what does the child push" the thing pushed, never the child. Every text
that comes out can stand in "Is there {text} in this video?". Knows English questions with who, whom, what, which,
whose, where, when, how and why at the beginning; everything else is read as a statement. Never raises.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tubelet.unistg.lexicon import lexicon
from tubelet.zeroshot.rules import read_statement
from tubelet.zeroshot.words import MARKS, classes_of, is_plural, plain, third_person, tidy

GENERAL_PHRASES = (
    "animal", "dog", "cat", "bird", "horse", "cow", "sheep", "elephant", "bear", "tiger", "rabbit",
    "hamster", "duck", "fish", "snake", "toy", "ball", "bicycle", "car", "motorcycle", "bus",
    "truck", "train", "airplane", "boat", "ski", "snowboard", "skateboard", "surfboard", "chair",
    "table", "sofa", "bed", "stool", "bench", "cup", "bottle", "dish", "cake", "bread", "food",
    "fruit", "vegetable", "bag", "backpack", "handbag", "suitcase", "guitar", "piano", "camera",
    "cellphone", "laptop", "screen", "microwave", "refrigerator", "oven", "sink", "fan", "sign",
    "bat", "racket", "book", "umbrella", "box", "hat", "stroller",
)  # fmt: skip
"""What "what ...?" may ask for, in words that open-vocabulary detectors know."""
_COMPOUNDS = frozenset(
    ["baby seat", "baby walker", "stop sign", "traffic light", "electric fan", "cell phone", "teddy bear"]
)
_ASKS = re.compile(r"^(who|whom|what|which|whose|where|when|how|why)\b\s*", re.IGNORECASE)
_THERE = re.compile(r"^(?:there\s+(?:is|are|was|were)|is\s+there|are\s+there)\s+", re.IGNORECASE)
_STRANDED = re.compile(
    r"\b(?:in front of|on top of|next to|close to|away(?: from)?|far from|towards?(?: to)?|(?:to|on) the (?:left|right)"
    r" of|left of|right of|behind|beside|besides|above|beneath|under|underneath|below|over|near|inside|outside|against"
    r"|around|between|on|in|at|with)(?=\s*$|\s+(?:in|on|at|inside|outside|out|by|near|outdoors|indoors|with|when|while"
    r"|during|from)\b)",
    re.IGNORECASE,
)
_IS = frozenset(["is", "are", "was", "were"])
_DOES = frozenset(["does", "do", "did", "can", "will", "has", "have"])
_GROUPS = frozenset([
    "group", "pair", "couple", "crowd", "team", "bunch", "herd", "flock", "row", "line", "pile",
    "kind", "type", "piece", "lot", "number", "set",
])  # fmt: skip
_NAMELESS = frozenset([
    "one", "ones", "it", "thing", "things", "something", "anything", "object", "objects", "first", "second", "third",
    "fourth", "last", "middle", "center", "centre", "left", "right", "top", "bottom", "front", "back", "side", "same",
    "other", "another", "this", "that", "these", "those",
])  # fmt: skip
_PERSONS = frozenset([
    "he", "she", "they", "him", "her", "them", "someone", "somebody", "who", "everyone", "i", "we", "you",
])  # fmt: skip
_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")


@dataclass(frozen=True, slots=True)
class Reading:
    """attribute, action: None where the sentence has none. whole: all of it as a noun phrase or clause.

    restated: is `whole` in other words than the sentence (a question, "there is ...")? noun: what it is about, None
    where it names no thing.
    """

    attribute: str | None
    action: str | None
    whole: str | None
    restated: bool = False
    noun: str | None = None


@dataclass(frozen=True, slots=True)
class Phrases:
    """phrases: what a detector should look for, never empty. note: why they are not a word of the sentence, or ""."""

    phrases: tuple[str, ...]
    note: str = ""


def read_sentence(sentence: str) -> Reading:
    """The parts of a statement, of "there is ...", or of a question."""
    text = tidy(sentence)
    there = _THERE.match(text)
    if there and there.end() < len(text):
        return _stated(text[there.end() :], restated=True)
    asked = _ASKS.match(text)
    if asked and asked.end() >= len(text):
        return Reading(None, None, text or None)
    if not asked:
        return _stated(text)
    asks, rest = asked[1].lower(), text[asked.end() :]
    first = plain(rest.split()[0])
    if asks in ("when", "where", "how", "why"):
        return _place_or_time(text, first, rest)
    if asks in ("which", "whose") and first not in _IS | _DOES:
        return _which("the" if asks == "which" else "a", rest.removeprefix("of the "))
    if asks == "what" and classes_of([first])[0] in "NJ" and len(rest.split()) > 2:
        return _which("the", rest)  # "what animal chases the dog"
    person = asks in ("who", "whom")
    thing = "a person" if person else "an object"
    if first in _DOES and (begins := _asker(rest)) is not None:
        return _done_to(thing, first, rest.split()[1:], begins)
    if first in _IS and (placed := _beside_asker(thing, first, rest)) is not None:
        return placed
    return _asked_for("person" if person else None, "a person" if person else "something", rest)


def is_question(sentence: str) -> bool:
    """Does it ask for its target (who, what, which, ...)?"""
    return _ASKS.match(tidy(sentence)) is not None


def phrases_of(sentence: str) -> Phrases:
    """What a detector should look for: the noun of what the sentence is about, or general things, with a note."""
    text = tidy(sentence)
    noun = read_sentence(text).noun
    asked = _ASKS.match(text)
    if asked and asked[1].lower() in ("who", "whom"):
        return Phrases(("person", "animal"))  # "who chases the ball" may be a dog
    if noun is not None:
        return Phrases((noun,))
    why = "asks for a thing without naming it" if asked else "names no thing"
    return Phrases(
        GENERAL_PHRASES if asked else ("person", *GENERAL_PHRASES),
        f"the sentence {why}: general things were looked for ({GENERAL_PHRASES[0]}, {GENERAL_PHRASES[1]}, ...)",
    )


def subject_of(sentence: str) -> str | None:
    """The noun of what a sentence is about ("the tall man in red sits" -> "man"); None where it names no thing."""
    return read_sentence(sentence).noun


# --- statements ----------------------------------------------------------------------------------------


def _stated(text: str, restated: bool = False) -> Reading:
    found = read_statement(text)
    noun = _nameable(found.noun, text)
    return Reading(found.description, found.action, tidy(text) or None, restated, noun)


def _nameable(noun: str | None, text: str) -> str | None:
    """A word a detector can look for: no pronoun, "baby seat" as one thing, the people of "a group of people"."""
    words = [plain(word) for word in tidy(text).split()]
    if noun is None or noun not in words:
        return None
    at = words.index(noun)
    if (noun in _GROUPS or noun in lexicon().parts) and words[at + 1 : at + 2] == ["of"]:
        return _nameable(read_statement(" ".join(words[at + 2 :])).noun, " ".join(words[at + 2 :]))
    if noun in _PERSONS:
        return "person"
    if noun in _NAMELESS or classes_of([noun])[0] in "JMQPOTCXR" or not _WORD.fullmatch(noun):
        return None
    pair = " ".join(words[max(0, at - 1) : at + 1])
    return pair if pair in _COMPOUNDS else noun


# --- questions -----------------------------------------------------------------------------------------


def _asked_for(noun: str | None, who: str, rest: str) -> Reading:
    """ "who holds a cup", "what is behind the dog": a statement about a person, about something."""
    words = rest.split()
    first = plain(words[0])
    is_plural_verb = classes_of([first])[0] in "VB" and not first.endswith("s")
    if first not in _IS and is_plural_verb and noun == "person":
        who = "people"  # "who hold the ball"
    tag = classes_of([plain(words[1])])[0] if len(words) > 1 else "."
    if first in _IS and (tag == "G" or (tag == "Q" and classes_of([plain(w) for w in words[2:3]]) == ["G"])):
        what = f"{who} {' '.join(words[1:])}"  # "a person holding a cup"
        if plain(words[1]) in ("wearing", "standing", "sitting", "lying", "facing"):
            return Reading(what, None, what, True, noun)
        return Reading(None, what, what, True, noun)
    if first in _IS and tag == "E":
        what = f"{who} {rest}"
        return Reading(None, what, f"{who} {' '.join(words[1:])}", True, noun)
    found = read_statement(f"{who} {rest}")
    description = found.description
    action = found.action if found.predicate else None
    if action is None and description == f"{who} {rest}":  # no verb known: all of it is what the person does
        description, action = who, f"{who} {rest}"
    whole = (
        description if action is None else f"{who} {rest}" if first in _IS else f"{who} {_that(noun)} {rest}"
    )
    return Reading(None if description == who else description, action, whole, True, noun)


def _that(noun: str | None) -> str:
    return "who" if noun == "person" else "that"


def _asker(rest: str) -> int | None:
    """Where the verb stands in "does the child in red push on the floor", without the first word; None: no asker."""
    words = [plain(word) for word in rest.split()[1:]]
    tags = classes_of(words)
    if not words or tags[0] not in "ADWMINJ":
        return None
    if len(words) > 1 and words[-1] == "do":
        return len(words) - 1
    for k in range(1, len(words)):
        if tags[k] not in "VB" or tags[k - 1] in "ADMPO":
            continue
        if k + 1 < len(words) and tags[k + 1] in "VB" and words[k + 1] not in ("hand", "hands"):
            continue  # "with the toy train push", but "shake hands with"
        described = k > 1 and tags[k - 1] == "J" and tags[k - 2] in "AD"
        if tags[k] == "B" and described and any(tag in "VB" for tag in tags[k + 1 :]):
            continue
        return k
    for k in range(1, len(words)):  # a verb that is not in the lists, or that is also clothes ("watch")
        behind = tags[k + 1] if k + 1 < len(words) else "."
        if tags[k] in "NSB" and tags[k - 1] not in "ADMPOT" and behind in "PQ.TAD":
            return k
    return None


def _done_to(thing: str, does: str, words: list[str], at: int) -> Reading:
    """ "what does the child in red push on the floor" -> "an object that the child in red pushes on the floor"."""
    asker, verb, behind = " ".join(words[:at]), words[at], words[at + 1 :]
    found = read_statement(asker)
    bare = found.subject or asker
    if does in ("does", "do"):
        plural = does == "do" or (found.noun is not None and is_plural(found.noun))
        verb = verb if plural else third_person(plain(verb))
    else:
        verb = f"{does} {verb}"
    tail = " ".join([verb, *behind])
    if plain(words[at]) == "do" and not behind:  # "what does the man in red do": about him
        return Reading(found.description, None, asker, True, _nameable(found.noun, asker))
    noun = "person" if thing == "a person" else None
    return Reading(None, f"{thing} that {bare} {tail}", f"{thing} that {asker} {tail}", True, noun)


def _beside_asker(thing: str, be: str, rest: str) -> Reading | None:
    """ "what is the child in red next to?", "who is the man holding?"; None where "is" is followed by no thing."""
    words = rest.split()[1:]
    plains = [plain(word) for word in words]
    tags = classes_of(plains)
    if not words or tags[0] not in "ADWM":
        return None
    text = " ".join(words)
    noun = "person" if thing == "a person" else None
    found = read_statement(text)
    stranded = _STRANDED.search(text)
    if stranded and stranded.start() > 0:
        asker, place = text[: stranded.start()].strip(), text[stranded.start() :]
        does = plain(asker.split()[-1])
        if classes_of([does])[0] == "G" and len(asker.split()) > 1:  # "what is the man sitting on"
            asker = " ".join(asker.split()[:-1])
            bare = f"{thing} that {read_statement(asker).subject} {be} {does} {place}"
            return Reading(None, bare, f"{thing} that {asker} {be} {does} {place}", True, noun)
        placed = f"{thing} that {asker} {be} {place}"
        return Reading(placed, None, placed, True, noun)
    if tags[-1] == "G" and len(words) > 2 and plains[-1] != "doing":  # "what is the woman wearing"
        asker = " ".join(words[:-1])
        bare = f"{thing} that {read_statement(asker).subject} {be} {words[-1]}"
        return Reading(None, bare, f"{thing} that {asker} {be} {words[-1]}", True, noun)
    if found.predicate and tags[plains.index(plain(found.predicate.split()[0]))] == "G":
        if plain(found.predicate) == "doing":
            return Reading(found.description, None, found.description, True, _nameable(found.noun, text))
        action = f"{thing} that {found.subject} {be} {found.predicate}"
        return Reading(None, action, f"{thing} that {found.description} {be} {found.predicate}", True, noun)
    return _stated(text, restated=True)


def _which(article: str, rest: str) -> Reading:
    """ "which red ball rolls" is about a red ball; so is "which red ball does the child push"."""
    words = [plain(word) for word in rest.split()]
    does = next((k for k, word in enumerate(words) if word in _DOES and k), None)
    if does is not None:
        behind = " ".join(rest.split()[does:])
        asker = _asker(behind)
        if asker is not None:
            thing = f"{article} {' '.join(rest.split()[:does])}"
            told = _done_to(thing, words[does], behind.split()[1:], asker)
            about = read_statement(thing)
            return Reading(about.description, told.action, told.whole, True, _nameable(about.noun, thing))
    return _stated(f"{article} {rest}", restated=True)


def _place_or_time(text: str, first: str, rest: str) -> Reading:
    """ "where is the blue star", "when does the dog jump": about the star, about the dog that jumps."""
    words = rest.split()[1:]
    if not words or first not in _IS | _DOES:
        return _stated(text)
    at = _asker(rest) if first in _DOES else None
    if at is None:
        return _stated(" ".join(words), restated=True)
    verb = third_person(plain(words[at])) if first == "does" else words[at]
    if first not in ("does", "do"):
        verb = f"{first} {verb}"
    asker, tail = " ".join(words[:at]).strip(MARKS), " ".join([verb, *words[at + 1 :]])
    found = read_statement(asker)
    return Reading(
        found.description,
        f"{found.subject} {tail}",
        f"{asker} {tail}",
        True,
        _nameable(found.noun, asker),
    )
