"""Short answers compared by their words: no synonyms, no grammar, no model."""

from __future__ import annotations

from collections import Counter


def plain(text: str) -> str:
    """Lower case, without full stops and commas."""
    return " ".join(text.lower().replace(",", " ").replace(".", " ").split())


def word_f1(told: str, true: str) -> float:
    """Share of the words (by count, without case, full stops and commas) that two texts have in common: F1."""
    a, b = plain(told).split(), plain(true).split()
    shared = sum((Counter(a) & Counter(b)).values())
    return 2 * shared / (len(a) + len(b)) if a and b else 0.0


def answer_score(kind: str, answer: str, truth: str) -> float:
    """1 for the true answer, else 0; for captions the F1 of words."""
    return word_f1(answer, truth) if kind == "caption" else float(plain(answer) == plain(truth))
