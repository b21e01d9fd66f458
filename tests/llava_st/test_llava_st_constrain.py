"""Constrained decoding: whatever the scores, the answer parses and keeps the rules."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tubelet.errors import ModelError, QueryError
from tubelet.llava_st.answers import Answer, parse_answer
from tubelet.llava_st.constrain import (
    GRAMMARS,
    Alphabet,
    CoordinateConstraint,
    Grammar,
    grammar_for,
    make_alphabet,
    shape_of_text,
    start_state,
    words_needed,
)
from tubelet.llava_st.words import find_words

TASKS = ("rec", "dgc", "tvg", "dvc", "stvg", "svg", "elc", "qa")


class Short:
    """A tokenizer and its alphabet, with a short repr for failing examples."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.alphabet = tokenizer, make_alphabet(tokenizer, find_words(tokenizer))

    def __repr__(self) -> str:
        return "Short"


@pytest.fixture(scope="module")
def short(small_tokenizer: Any) -> Short:
    return Short(small_tokenizer)


@pytest.fixture(scope="module")
def alphabet(short: Short) -> Alphabet:
    return short.alphabet


def scores_for(seed: int, row: int, step: int, width: int, style: str) -> torch.Tensor:
    """Random scores; "signs" loves coordinates and brackets, "text" avoids them, "end" wants to stop."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + row * 10_007 + step)
    return torch.randn(width, generator=generator) * 3 + _bias(width, style)


def _bias(width: int, style: str) -> torch.Tensor:
    bias = torch.zeros(width)
    if style == "signs":
        bias[-300:] += 6
    elif style == "text":
        bias[-300:] -= 20
    return bias


def write(short: Short, grammars: list[Grammar], budget: int, seed: int, style: str) -> list[str]:
    """What a model with such scores writes."""
    alphabet, tokenizer = short.alphabet, short.tokenizer
    constraint = CoordinateConstraint(alphabet, grammars, budget)
    width = alphabet.vocabulary + 3 * alphabet.bins
    signs = [
        k
        for k, s in enumerate(alphabet.shape_of.tolist())
        if s >= 0 and set(alphabet.shapes[s]) & set("[]{}:")
    ]
    ids = torch.empty(len(grammars), 0, dtype=torch.long)
    for step in range(budget):
        scores = torch.stack([scores_for(seed, row, step, width, style) for row in range(len(grammars))])
        if style == "signs":
            scores[:, signs] += 5
        if style == "end":
            scores[:, alphabet.end] += 30
        scores = constraint(ids, scores)
        assert (scores > -torch.inf).any(1).all(), "a row has nothing left to say"
        ids = torch.cat([ids, scores.argmax(1, keepdim=True)], dim=1)
    texts = []
    for row in ids.tolist():
        words = row[: row.index(alphabet.end)] if alphabet.end in row else row
        texts.append(tokenizer.decode(words))
    return texts


def check(answer: Answer, text: str, grammar: Grammar) -> None:
    assert answer.problems == (), (text, answer.problems)
    for box in [*answer.boxes, *(b for _, b in answer.timed_boxes)]:
        assert box[0] < box[2] and box[1] < box[3], text
    assert all(s < e for s, e in answer.spans), text
    there = {
        "span": answer.spans, "boxes": answer.timed_boxes, "box": answer.phrases, "end": answer.end is not None
    }  # fmt: skip
    for kind, found in there.items():
        assert found or kind not in grammar.required, (kind, text)
        assert not found or grammar.may(kind), (kind, text)


@given(
    st.sampled_from(TASKS),
    st.sampled_from(["even", "signs", "text", "end"]),
    st.integers(0, 10**6),
    st.integers(0, 40),
)
@settings(max_examples=120, deadline=None)
def test_any_scores_give_an_answer_that_parses(
    short: Short, task: str, style: str, seed: int, spare: int
) -> None:
    grammar = GRAMMARS[task]
    budget = words_needed(start_state(grammar, 100), grammar) + 1 + spare
    (text,) = write(short, [grammar], budget, seed, style)
    answer = parse_answer(text, task)
    check(answer, text, grammar)
    if task == "stvg":
        (start, end), times = answer.spans[0], [t for t, _ in answer.timed_boxes]
        assert all(start <= t <= end for t in times)


@given(st.integers(0, 99), st.integers(0, 99), st.integers(0, 10**6), st.integers(0, 60))
@settings(max_examples=60, deadline=None)
def test_given_coordinates_are_kept(short: Short, start: int, length: int, seed: int, spare: int) -> None:
    end = min(start + length, 99)
    svg = grammar_for("svg", 100, span=(start, end))
    elc = grammar_for("elc", 100, start=start)
    assert svg is not None and elc is not None
    texts = write(short, [svg, elc], 12 + spare, seed, "signs")
    where, event = parse_answer(texts[0], "svg"), parse_answer(texts[1], "elc")
    check(where, texts[0], svg)
    check(event, texts[1], elc)
    assert all(start / 99 <= t <= end / 99 for t, _ in where.timed_boxes)
    assert event.end is not None and (event.end > start / 99 or start == 99)
    assert all(start / 99 <= t <= event.end for t, _ in event.timed_boxes)


def test_rows_are_independent_and_steps_may_be_repeated(short: Short, alphabet: Alphabet) -> None:
    """Rows of different tasks side by side write what they write alone; going back in time is allowed."""
    grammars = [GRAMMARS[task] for task in ("stvg", "rec", "tvg")]
    together = write(short, grammars, 30, 5, "signs")
    constraint = CoordinateConstraint(alphabet, grammars, 30)
    width = alphabet.vocabulary + 300
    ids = torch.empty(3, 0, dtype=torch.long)
    zeros = torch.zeros(3, width)
    first = constraint(ids, zeros)
    longer = torch.tensor([[alphabet.vocabulary + 1]] * 3)
    constraint(longer, zeros)
    assert torch.equal(constraint(ids, zeros), first)
    assert len(set(together)) == 3


def test_a_prompt_in_front_is_skipped(alphabet: Alphabet) -> None:
    prompt = torch.tensor([[5, 6, 7]])
    zeros = torch.zeros(1, alphabet.vocabulary + 300)
    with_prompt = CoordinateConstraint(alphabet, [GRAMMARS["tvg"]], 20, prompt_length=3)(prompt, zeros)
    without = CoordinateConstraint(alphabet, [GRAMMARS["tvg"]], 20)(prompt[:, :0], zeros)
    assert torch.equal(with_prompt, without)


def test_what_is_allowed_is_left_alone(alphabet: Alphabet, small_tokenizer: Any) -> None:
    constraint = CoordinateConstraint(alphabet, [GRAMMARS["rec"]], 50)
    scores = torch.arange(alphabet.vocabulary + 300, dtype=torch.float32)[None]
    out = constraint(torch.empty(1, 0, dtype=torch.long), scores)
    kept = out > -torch.inf
    assert torch.equal(out[kept], scores[kept])
    allowed = set(kept[0].nonzero()[:, 0].tolist())
    assert small_tokenizer.convert_tokens_to_ids("[") in allowed
    assert alphabet.end not in allowed
    assert not allowed & set(range(alphabet.vocabulary, alphabet.vocabulary + 300))
    for word in ("<|im_start|>", "<vid_patch>", "<TEMP-OUTPUT>", "<|endoftext|>", "{", "]", "<"):
        assert small_tokenizer.convert_tokens_to_ids(word) not in allowed, word
    assert small_tokenizer.convert_tokens_to_ids("e") in allowed


@pytest.mark.parametrize(
    ("text", "shape"),
    [("],", "],"), (" the", " a"), ("}. ", "}. "), ("\n\n", " "), ("a.b", "a.a"), ("", ""), ("[[", "[[")],
)
def test_shapes(text: str, shape: str) -> None:
    assert shape_of_text(text) == shape


def test_bad_settings_are_errors(alphabet: Alphabet, small_tokenizer: Any) -> None:
    with pytest.raises(QueryError, match="max_new_tokens is 5"):
        CoordinateConstraint(alphabet, [GRAMMARS["stvg"]], 5)
    with pytest.raises(QueryError, match="knows span, end"):
        Grammar(("boxs",))
    with pytest.raises(QueryError, match="constrain as many rows"):
        CoordinateConstraint(alphabet, [GRAMMARS["tvg"]], 20)(
            torch.empty(2, 0, dtype=torch.long), torch.zeros(2, 600)
        )
    assert grammar_for("no such task", 100) is None


def test_a_tokenizer_without_brackets_is_an_error() -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    from tubelet.llava_st.words import add_words

    plain = Tokenizer(models.WordLevel({"a": 0, "\n": 1, "?": 2}, unk_token="?"))
    fast = PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="?")
    words = add_words(fast)
    with pytest.raises(ModelError, match=r"no words \[ \]"):
        make_alphabet(fast, words)
