"""A sentence as two sub-queries: how its target looks, and what it does (paper, 3.3; DSTH).

    "the man in red stands up and sits down"  ->  attribute "the man in red", action "the man stands up and sits down"
    "what does the child in red push?"        ->  action "an object that the child pushes"

By rules (no model), by the loaded MLLM, or by any function that answers an instruction with JSON. What cannot be used
is asked once more, with the reason, then the rules decide, and the result says so. A part that is not there is None:
the whole sentence is asked instead, as published. A question, and "there is ...", cannot stand in "Is there {text} in
this video?": the whole of it as a statement ("a person who holds a cup") then stands for the missing part.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from tubelet.zeroshot.questions import is_question, phrases_of, read_sentence, subject_of

__all__ = ["INSTRUCTION", "SubQueries", "by_model", "by_rules", "phrases_of", "question_of", "subject_of"]

_SMALL = frozenset([
    "a", "an", "the", "his", "her", "their", "its", "in", "on", "at", "of", "with", "to", "from", "by", "near",
    "behind", "beside", "under", "over", "left", "right", "next", "front", "and", "is", "are", "was", "were", "be",
    "been", "being", "has", "have", "does", "do", "did", "that", "who", "which",
])  # fmt: skip
_STANDS_FOR = frozenset([
    "person", "people", "someone", "somebody", "animal", "object", "something", "thing", "item", "man", "woman", "one",
])  # fmt: skip
_IRREGULAR = {
    form: forms[0]
    for forms in (
        ("sit", "sat", "seated", "seat"), ("stand", "stood"), ("lie", "lying", "lay", "laid", "laying", "lies"),
        ("hold", "held"), ("ride", "rode", "ridden", "riding"), ("run", "ran"), ("go", "goes", "going", "went", "gone"),
        ("take", "took", "taken"), ("give", "gave", "given"), ("wear", "wore", "worn"), ("speak", "spoke", "spoken"),
        ("throw", "threw", "thrown"), ("catch", "caught"), ("bring", "brought"), ("fall", "fell", "fallen"),
        ("come", "came", "coming"), ("get", "got", "getting"), ("leave", "left", "leaves"), ("bite", "bit", "bitten"),
        ("eat", "ate", "eaten"), ("drink", "drank", "drunk"), ("drive", "drove", "driven"), ("fly", "flew", "flown"),
        ("feed", "fed"), ("fight", "fought"), ("put", "puts"), ("make", "made"), ("see", "saw", "seen"),
        ("child", "children"), ("man", "men"), ("woman", "women"), ("person", "people"), ("foot", "feet"),
    )
    for form in forms
}  # fmt: skip
_CONTENT = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?")
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)  # Thai, Lao, Burmese, Khmer, Japanese, Chinese
_MOST_OBJECTS = 50  # of an answer, from its end
INSTRUCTION = """Split a sentence about one target in a video (a person, animal or thing) into two parts about it.
"attribute": what the target is and looks like: clothes, colour, place, relation to others. No action of it.
"action": the bare target and everything it does or that is done to it, in order. No clothes, no colours, no places.
A question asks for its target: write "a person" for who, "an object" for what. Never describe the one who acts instead.
Otherwise use only words of the sentence. Use "" for a part that the sentence does not have. Answer with JSON only.
Sentence: the tall woman beside the door picks up a cup and drinks
{"attribute": "the tall woman beside the door", "action": "the woman picks up a cup and drinks"}
Sentence: a white dog on the left of the sofa
{"attribute": "a white dog on the left of the sofa", "action": ""}
Sentence: what does the child in the blue coat push?
{"attribute": "", "action": "an object that the child in the blue coat pushes"}
Sentence: who is next to the grey horse?
{"attribute": "a person next to the grey horse", "action": ""}
Sentence: who throws the hat over the fence?
{"attribute": "", "action": "a person throws the hat over the fence"}
Sentence: where is the boy in the green cap who runs away?
{"attribute": "the boy in the green cap", "action": "the boy runs away"}
Sentence: """


@dataclass(frozen=True, slots=True)
class SubQueries:
    """attribute, action: texts, None where the sentence has none. source: who split it. note: what went wrong."""

    attribute: str | None
    action: str | None
    source: str
    note: str = ""


def by_rules(sentence: str) -> SubQueries:
    """Read the sentence as `questions.read_sentence` does; English only, other languages are all attribute."""
    found = read_sentence(sentence)
    return _said(SubQueries(found.attribute, found.action, "rules"), sentence)


def _said(parts: SubQueries, sentence: str) -> SubQueries:
    """Of a question, the part that is not there is the whole question as a statement; of a statement it is None."""
    found = read_sentence(sentence)
    if not found.restated:
        return parts
    return replace(parts, attribute=parts.attribute or found.whole, action=parts.action or found.whole)


def by_model(sentence: str, answer: Callable[[str], str], source: str) -> SubQueries:
    """Ask with the instruction; unusable answers are asked for once more, then the rules decide (`note` says why).

    answer: raises ValueError where none could be had. The second request says what was wrong with the first answer.
    """
    asked = INSTRUCTION + " ".join(sentence.split()) + "\n"
    problem, wrong = "", ""
    for _ in range(2):
        try:
            text = answer(asked + wrong)
        except ValueError as error:
            problem = str(error)
            continue
        try:
            return _said(replace(_read(sentence, text), source=source), sentence)
        except ValueError as error:
            problem = str(error)
            wrong = f"Your first answer could not be used: {problem:.200}. Answer again, with one JSON object only.\n"
    return replace(by_rules(sentence), note=f"{source} gave no usable parts ({problem}); split by rules")


def _read(sentence: str, text: str) -> SubQueries:
    """The last usable JSON object of an answer, thoughts left out. ValueError where there is none, with the reason."""
    text = text.rpartition("</think>")[2]
    if "<think>" in text:
        raise ValueError("the answer ends before its thoughts do")
    problem = "no JSON in the answer"
    starts = [k for k, mark in enumerate(text) if mark == "{"][-_MOST_OBJECTS:]
    for start in reversed(starts):
        try:
            found, _ = json.JSONDecoder().raw_decode(text[start:])
        except (ValueError, RecursionError):
            problem = problem if problem != "no JSON in the answer" else "broken JSON in the answer"
            continue
        try:
            return _parts(sentence, found)
        except ValueError as error:
            problem = str(error) if problem.endswith("in the answer") else problem  # the last object's
    raise ValueError(problem)


def _parts(sentence: str, found: object) -> SubQueries:
    """An object's two texts, null as "". ValueError for everything that is not two texts made of the sentence."""
    parts: dict[str, str | None] = {}
    for name in ("attribute", "action"):
        value = found.get(name, 0) if isinstance(found, dict) else 0
        value = "" if value is None else value
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
    """Are at least half of the words that say something in `part` words of the sentence ("is seated" for "sits")?

    Models that answer with one of the examples share "the" and "in" with every sentence. Of a question, "a person"
    and "an object" stand for what it asks. Scripts without spaces are compared by characters.
    """
    known = {_stem(word) for word in _units(sentence)}
    said = _units(part)
    small = _SMALL | _STANDS_FOR if is_question(sentence) else _SMALL
    telling = [word for word in said if word not in small]
    if not telling and is_question(sentence):
        return bool(said)
    telling = telling or said
    return 2 * sum(_stem(word) in known for word in telling) >= len(telling) > 0


def _units(text: str) -> list[str]:
    """Words in lower case; of scripts without spaces, characters."""
    units: list[str] = []
    for run in _CONTENT.findall(text.lower()):
        units += list(run) if _UNSPACED.search(run) else [run]
    return units


def _stem(word: str) -> str:
    """What the forms of a word have in common: "sits", "sitting", "sat" and "seated" are "sit"."""
    word = word.removesuffix("'s")
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if word.endswith(("ies", "ied")) and len(word) > 4:
        word = word[:-3] + "y"
    elif word.endswith(("ing", "ed")) and len(word) > 5:
        word = word[:-3] if word.endswith("g") else word[:-2]
    elif word.endswith(("ses", "xes", "zes", "ches", "shes", "oes")):
        word = word[:-2]
    elif word.endswith("s") and not word.endswith("ss") and len(word) > 3:
        word = word[:-1]
    word = _IRREGULAR.get(word, word)
    if len(word) > 3 and word[-1] == word[-2]:
        word = word[:-1]  # "sitt", "kiss"
    return _IRREGULAR.get(word, word.removesuffix("e"))


def question_of(text: str, wording: str) -> str:
    """A sub-query in a wording ("Is there {text} in this video?" is the published one), without a full stop."""
    return wording.replace("{text}", text.strip().rstrip(".?! "))
