"""Multiple choice: which option an answer text names, as several public evaluators read it, and the accuracy.

Letters count from "A". Every reader takes (response, options, right) and gives 1.0, 0.0 or None: None where the
public code has no verdict of its own (it asks an LLM judge, draws a letter at random, or raises). A None counts
as wrong and is reported as unread; nothing is ever drawn at random here.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tubelet.errors import DataError
from tubelet.metrics.bootstrap import Interval, bootstrap_mean

Verdict = float | None

_PHRASES = (
    *(f"{x}answer is" for x in ("", "the ", "correct ", "the correct ", "best ", "the best ", "my ")),
    *(f"{x}option is" for x in ("correct ", "the correct ", "best ", "the best ")),
    *(f"{x}choice is" for x in ("", "the ", "correct ", "the correct ", "my ")),
    *("i choose", "i select", "i pick"),
    *("옵션", "정답은", "답은", "답:", "答案是", "答案为", "选", "答えは"),
)
_VIDEOMME_PHRASES = (
    "The best answer is",
    "The correct answer is",
    "The answer is",
    "The answer",
    # two commas are missing in the public code
    "The best option isThe correct option is",
    "Best answer:Best option:",
)
_MVBENCH_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'


def letters(n: int) -> str:
    """The first n option letters."""
    if not 1 <= n <= 26:
        raise DataError(f"a multiple-choice question has 1 to 26 options, got {n}")
    return string.ascii_uppercase[:n]


def read_letter(response: str, options: Sequence[str]) -> str | None:
    """tubelet's reading: the option a text settles on, or None when it names none or several.

    In order: the last <answer> block; a text that is a lone letter ("b", "(B)", "B."); the last "answer is B" or
    "option B"; a leading label ("B. two dogs", "(B) two dogs", "B: ..."); a single bracketed letter; the text of
    exactly one option.
    """
    blocks = re.findall(r"<answer>(.*?)(?:</answer>|$)", response, flags=re.DOTALL | re.IGNORECASE)
    text = (blocks[-1] if blocks else _without_thoughts(response)).strip()
    valid = letters(len(options))
    lone = re.fullmatch(rf"[\s*_`\"'(\[]*([{valid}{valid.lower()}])[\s*_`\"')\].:!]*", text)
    if lone:
        return lone[1].upper()
    declared = re.findall(
        rf"\b(?:answer|option|choice)\b(?:\s+is)?\s*[:=]?\s*[*(\[\"']*([{valid}])(?![\w'])",
        text,
        re.IGNORECASE,
    )
    declared = [x for x in declared if x.isupper()]
    if declared:
        return str(declared[-1])
    either = re.match(rf"[(\[]?([{valid}])[)\]]?\s*(?:,|/|\bor\b|\band\b)\s*[(\[]?[{valid}]\b", text)
    if either:
        return None
    leading = re.match(rf"[(\[*]*([{valid}])(?:[)\]*]+|[.:])(?:\s|$)", text)
    if leading:
        return leading[1]
    bracketed = set(re.findall(rf"\(([{valid}])\)", text))
    if len(bracketed) == 1:
        return str(bracketed.pop())
    plain = text.casefold().rstrip(".!")
    named = [k for k, option in enumerate(options) if option.casefold().rstrip(".") == plain]
    return valid[named[0]] if len(named) == 1 else None


def _without_thoughts(response: str) -> str:
    """Without <think>...</think>. The pattern, quadratic in unclosed tags, does not see what follows the last end."""
    thoughts, end, rest = response.rpartition("</think>")
    return re.sub(r"<think>.*?</think>", "", thoughts + end, flags=re.DOTALL) + rest


def _tubelet(response: str, options: Sequence[str], right: str) -> Verdict:
    letter = read_letter(response, options)
    return None if letter is None else float(letter == right)


def videomme_letter(response: str, valid: str = "ABCD") -> str:
    """lmms-eval's reading for Video-MME (before its rewrite): the candidate of the most trusted format, "" if none.

    Formats by trust: at the very start, at the very end, after a phrase like "answer is", (A), A., A:, A), "A ";
    within one format the last place wins; with no candidate at all, any capital letter of the alphabet.
    """
    text = response.strip()
    for char in ",.!?;:'\"":
        text = text.strip(char)
    if not text.strip():
        return ""
    bare = text.strip()
    text = f" {text} "
    lower = text.lower()
    found: list[tuple[int, int, str]] = []
    for letter in valid:
        for trust, form in (
            (6, f"({letter})"),
            (5, f"{letter}."),
            (4, f"{letter}:"),
            (3, f"{letter})"),
            (2, f"{letter} "),
        ):
            if form in text:
                found.append((trust, text.rfind(form), letter))
        for (
            phrase
        ) in _PHRASES:  # "option is" counts after "the correct" or "best" only there; no model writes it bare
            after = lower.find(phrase)
            place = -1 if after < 0 else text.find(letter, after + len(phrase))
            if place >= 0:
                found.append((7, place, letter))
        if bare.startswith(letter) and not bare[1:2].isalpha():
            found.append((10, 0, letter))
        if bare.endswith(letter) and not (len(bare) > 1 and bare[-2].isalpha()):
            found.append((9, len(text), letter))
    if not found:
        found = [(0, text.rfind(letter), letter) for letter in valid if letter in text]
    # Python's stable sort of the public code keeps the earlier letter among equals
    best = max(found, key=lambda f: f[:2], default=None)
    return best[2] if best else ""


def _videomme(response: str, options: Sequence[str], right: str) -> Verdict:
    return float(videomme_letter(response) == right)


def _videomme_official(response: str, options: Sequence[str], right: str) -> Verdict:
    """The project's own script: after its phrases the first capital A, B, C or D; None (it leaves the mean) if none."""
    text = response.strip()
    for phrase in _VIDEOMME_PHRASES:
        text = text.replace(phrase, "")
    found = re.search("[ABCD]", text)
    return None if found is None else float(found[0] == right)


def _mvbench_plain(text: str) -> str:
    """What lmms-eval's MVBench compares: a letter where it sees one (the word "a" is one), else lower-case words."""
    labelled = re.match(r"^([A-E])\.\s*(.+)$", text.strip(), flags=re.IGNORECASE)
    if labelled:
        return labelled[1].upper()
    text = text.replace("\n", " ").replace("\t", " ").strip()
    digits = re.search(r"(\d)(,)(\d)", text) is not None
    plain = text
    for mark in _MVBENCH_PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        plain = plain.replace(mark, "" if beside_space or digits else " ")
    plain = re.sub(r"\.(?!\d)", "", plain, count=int(re.UNICODE))
    plain = plain.strip("'").strip('"').strip(")").strip("(").strip().lower()
    letter = re.search(r"\b([A-E])\b", plain, flags=re.IGNORECASE)
    return letter[1].upper() if letter else plain


def _mvbench(response: str, options: Sequence[str], right: str) -> Verdict:
    return float(_mvbench_plain(response) == _mvbench_plain(right))


def _mvbench_official(response: str, options: Sequence[str], right: str) -> Verdict:
    """The notebook's check: first word against "(b)", either inside the other. An empty answer is right."""
    first = response.lower().split(" ")[0]
    wanted = f"({right.lower()})"
    return float(first.replace(".", "") in wanted or wanted in first)


def _timer1(response: str, options: Sequence[str], right: str) -> Verdict:
    bracketed = re.findall(r"\(([A-Z])\)", response)
    if bracketed:
        return float(bracketed[-1] == right)
    return float(response[0] == right) if response else None


def _tempcompass(response: str, options: Sequence[str], right: str) -> Verdict:
    if response == f"{right}. {options[letters(len(options)).index(right)]}":
        return 1.0
    if response in ("A", "B", "C", "D"):
        return float(response == right)
    label = re.match(r"([A-D])[.)]", response)
    return float(label[1] == right) if label else None


def egoschema_letter(response: str, options: Sequence[str]) -> str | None:
    """lmms-eval's reading for EgoSchema: the first place of any "(A)", "A " or "A."; None where it draws a letter."""
    for char in ",.!?;:'":
        response = response.strip(char)
    text = f" {response} "
    valid = letters(len(options))
    places = [(text.rfind(form), x) for x in valid for form in (f"({x})", f"{x} ", f"{x}.") if form in text]
    if not places and len(text.split()) > 5:
        lower = text.lower()
        texts = [f"{x}. {o}".lower() for x, o in zip(valid, options, strict=True)]  # as its files write them
        places = [(lower.rfind(t), x) for x, t in zip(valid, texts, strict=True) if t in lower]
    return min(places)[1] if places else None


def _egoschema(response: str, options: Sequence[str], right: str) -> Verdict:
    letter = egoschema_letter(response, options)
    return None if letter is None else float(letter == right)


CHOICE_READERS: dict[str, Callable[[str, Sequence[str], str], Verdict]] = {
    "tubelet": _tubelet,
    "videomme": _videomme,
    "videomme_official": _videomme_official,
    "mvbench": _mvbench,
    "mvbench_official": _mvbench_official,
    "timer1": _timer1,
    "tempcompass": _tempcompass,
    "egoschema": _egoschema,
}


@dataclass(frozen=True, slots=True)
class ChoiceResult:
    """Accuracy over all questions; `unread`: rows without a verdict, counted as wrong."""

    protocol: str
    accuracy: Interval
    verdicts: tuple[Verdict, ...]
    unread: tuple[int, ...]


def score_choices(
    responses: Sequence[str],
    options: Sequence[Sequence[str]],
    right: Sequence[str],
    protocol: str = "tubelet",
) -> ChoiceResult:
    """Accuracy of answers to multiple-choice questions; `right`: the letters of the right options."""
    if protocol not in CHOICE_READERS:
        raise DataError(f"unknown way to read choices {protocol!r}; there are {', '.join(CHOICE_READERS)}")
    if not len(responses) == len(options) == len(right):
        raise DataError(
            f"{len(responses)} answers, {len(options)} lists of options, {len(right)} right letters"
        )
    for k, (offered, letter) in enumerate(zip(options, right, strict=True)):
        if len(letter) != 1 or letter not in letters(len(offered)):
            raise DataError(
                f"question {k}: the right letter {letter!r} is not one of {letters(len(offered))}"
            )
    read = CHOICE_READERS[protocol]
    verdicts = tuple(read(*each) for each in zip(responses, options, right, strict=True))
    values = np.array([v or 0.0 for v in verdicts])
    unread = tuple(k for k, v in enumerate(verdicts) if v is None)
    return ChoiceResult(protocol, bootstrap_mean(values), verdicts, unread)
