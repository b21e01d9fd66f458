"""Grammar-constrained decoding: a coordinate answer always parses, times increase, boxes have positive area.

A small automaton reads the answer as it is written: words of text freely, and coordinates only in the layout of the
training data (`{<TEMP><TEMP>}`, `<TEMP>:[<WIDTH><HEIGHT><WIDTH><HEIGHT>]`, `[...]`, `Ends in <TEMP>,`). Before each
word, every word that leads out of the grammar is forbidden; so is every word after which what the task requires could
no longer be written within the budget of words, and the end while something is open or still required. What is
allowed is left to the model.

A word of text may hold several signs ("]," or ":["). It is reduced to a *shape*, the sequence of signs that matter;
a vocabulary has few shapes, so a step costs one automaton run per shape and a table look-up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch

from tubelet.errors import ModelError, QueryError
from tubelet.llava_st.words import Words

_SIGNS = "[]{}<:,."


@dataclass(frozen=True, slots=True)
class Grammar:
    """What an answer may and must hold.

    required: in this order, of "span", "end", "boxes" (a timed box), "box" (one without a time).
    allowed: kinds that may appear (required ones always may). spans: how many at most (0: any number).
    first, last: anchors between which timed boxes and the end lie, when a span or a start was given.
    """

    required: tuple[str, ...] = ()
    allowed: tuple[str, ...] = ()
    spans: int = 0
    first: int = 0
    last: int | None = None

    def __post_init__(self) -> None:
        unknown = set(self.required + self.allowed) - {"span", "end", "boxes", "box"}
        if unknown:
            raise QueryError(f"a grammar knows span, end, boxes and box, got {', '.join(sorted(unknown))}")

    def may(self, kind: str) -> bool:
        return kind in self.required or kind in self.allowed


GRAMMARS = {
    "rec": Grammar(("box",)),
    "dgc": Grammar(("box",)),
    "tvg": Grammar(("span",), spans=1),
    "dvc": Grammar(("span",)),
    "stvg": Grammar(("span", "boxes"), spans=1),
    "svg": Grammar(("boxes",)),
    "elc": Grammar(("end", "boxes")),
    "reg": Grammar(),
    "tr": Grammar(),
    "qa": Grammar(),
}


def grammar_for(
    task: str, bins: int, span: tuple[int, int] | None = None, start: int | None = None
) -> Grammar | None:
    """The grammar of a task, None for one without. span (svg), start (elc): given anchors."""
    grammar = GRAMMARS.get(task)
    if grammar is None:
        return None
    if span is not None:
        return replace(grammar, first=span[0], last=max(span))
    return replace(grammar, first=min(start, bins - 1)) if start is not None else grammar


# --- the automaton ---------------------------------------------------------------------------------

# where the automaton stands: what was written of the coordinate that is open
_FREE, _BRACE, _TIME, _SPAN_TIME, _SPAN_END, _COLON = "free", "{", "t", "{t", "{tt", "t:"
_BOX = ("[", "[w", "[wh", "[whw", "[whwh")
_COST = {"span": 4, "end": 2, "boxes": 8, "box": 6}  # words of each kind, every sign a word of its own


@dataclass(frozen=True, slots=True)
class State:
    """Where an answer stands. `done` counts the required kinds that are there."""

    at: str = _FREE
    done: int = 0
    listed: bool = False  # inside "{t:[...], ..."
    timed: bool = False  # the box being written has a time
    spans: int = 0
    time: int = -1  # of the span or box being written
    latest: int = -1  # of the last timed box
    first: int = 0  # timed boxes lie between these
    last: int = 0
    x: int = 0
    y: int = 0


def start_state(grammar: Grammar, bins: int) -> State:
    return State(first=grammar.first, last=bins - 1 if grammar.last is None else min(grammar.last, bins - 1))


def words_needed(state: State, grammar: Grammar) -> int:
    """How many words at least until the answer may end."""
    kind, need = _being_written(state, grammar)
    left = grammar.required[state.done :]
    if left and kind == left[0]:
        left = left[1:]
    return need + state.listed + sum(_COST[other] for other in left)


def _being_written(state: State, grammar: Grammar) -> tuple[str, int]:
    """Which kind is half written, and how many words it still needs."""
    match state.at:
        case "free":
            return "", 0
        case "{":
            return ("span", 3) if _may_span(state, grammar) else ("boxes", 9)
        case "{t":
            return ("span", 2) if _may_span(state, grammar) else ("boxes", 8)
        case "{tt":
            return "span", 1
        case "t":
            return ("end", 1) if _ends_allowed(state, grammar) and not state.listed else ("boxes", 7)
        case "t:":
            return "boxes", 6
    return "boxes" if state.timed else "box", 5 - _BOX.index(state.at)


def _ends_allowed(state: State, grammar: Grammar) -> bool:
    left = grammar.required[state.done :]
    return left[0] == "end" if left else "end" in grammar.allowed


def read_shape(state: State, shape: str, grammar: Grammar) -> State | None:
    """The state after a word of text, None where it is forbidden."""
    for sign in shape:
        following = _read_sign(state, sign, grammar)
        if following is None:
            return None
        state = following
    return state


def _read_sign(state: State, sign: str, grammar: Grammar) -> State | None:
    if sign == "<":
        return None  # letters must not spell a coordinate word
    match state.at:
        case "free":
            return _read_free(state, sign, grammar)
        case "[whwh":
            return _close_box(state, grammar) if sign == "]" else None
        case "{tt":
            return (
                replace(_did(state, "span", grammar), at=_FREE, spans=state.spans + 1)
                if sign == "}"
                else None
            )
        case "{t":
            return (
                replace(state, at=_COLON, listed=True) if sign == ":" and _may_box(state, grammar) else None
            )
        case "t":
            if sign == ":" and _may_box(state, grammar):
                return replace(state, at=_COLON)
            if sign in ",." and not state.listed and _ends_allowed(state, grammar):
                return replace(_did(state, "end", grammar), at=_FREE, last=state.time)
        case "t:":
            return replace(state, at="[", timed=True) if sign == "[" else None
    return None


def _read_free(state: State, sign: str, grammar: Grammar) -> State | None:
    left = grammar.required[state.done :]
    if sign == "[":
        allowed = grammar.may("box") and (not left or left[0] == "box") and not state.listed
        return replace(state, at="[", timed=False) if allowed else None
    if sign == "{":
        wanted = not state.listed and (_may_span(state, grammar) or _may_list(state, grammar))
        return replace(state, at=_BRACE) if wanted else None
    if sign == "}":
        return replace(state, listed=False) if state.listed else None
    if sign == "]":
        return None
    if state.listed and sign not in ", ":
        return None  # between the boxes of a list in braces
    return state


def _may_span(state: State, grammar: Grammar) -> bool:
    left = grammar.required[state.done :]
    room = not grammar.spans or state.spans < grammar.spans
    return grammar.may("span") and room and (not left or left[0] == "span")


def _may_list(state: State, grammar: Grammar) -> bool:
    return grammar.may("boxes") and _turn_of_boxes(state, grammar) and _next_time(state) <= state.last


def _may_box(state: State, grammar: Grammar) -> bool:
    """May the time just read be that of a box?"""
    return (
        grammar.may("boxes")
        and _turn_of_boxes(state, grammar)
        and _next_time(state) <= state.time <= state.last
    )


def _turn_of_boxes(state: State, grammar: Grammar) -> bool:
    left = grammar.required[state.done :]
    return not left or left[0] == "boxes"


def _next_time(state: State) -> int:
    return max(state.first, state.latest + 1)


def _close_box(state: State, grammar: Grammar) -> State:
    if not state.timed:
        return replace(_did(state, "box", grammar), at=_FREE)
    return replace(_did(state, "boxes", grammar), at=_FREE, latest=state.time)


def _did(state: State, kind: str, grammar: Grammar) -> State:
    left = grammar.required[state.done :]
    return replace(state, done=state.done + 1) if left and left[0] == kind else state


def anchor_range(state: State, axis: int, grammar: Grammar, bins: int) -> tuple[int, int] | None:
    """Which anchors of an axis (0: time, 1: height, 2: width) may follow: first and last, None for none."""
    top = bins - 1
    low, high = 1, 0
    match (state.at, axis):
        case ("[", 2):
            low, high = 0, top - 1
        case ("[w", 1):
            low, high = 0, top - 1
        case ("[wh", 2):
            low, high = state.x + 1, top
        case ("[whw", 1):
            low, high = state.y + 1, top
        case ("{", 0):
            low, high = _brace_range(state, grammar, top)
        case ("{t", 0):
            if _may_span(state, grammar):
                low, high = state.time + 1, top
        case ("free", 0):
            low, high = _free_time_range(state, grammar, top)
    return (low, high) if low <= high else None


def _brace_range(state: State, grammar: Grammar, top: int) -> tuple[int, int]:
    if _may_span(state, grammar):
        return 0, top - 1
    return _next_time(state), state.last


def _free_time_range(state: State, grammar: Grammar, top: int) -> tuple[int, int]:
    if _ends_allowed(state, grammar) and not state.listed:
        return min(state.first + 1, top), top
    if grammar.may("boxes") and _turn_of_boxes(state, grammar):
        return _next_time(state), state.last
    return 1, 0


def read_anchor(state: State, axis: int, index: int, grammar: Grammar, bins: int) -> State | None:
    """The state after an anchor, None where it is forbidden."""
    limits = anchor_range(state, axis, grammar, bins)
    if limits is None or not limits[0] <= index <= limits[1]:
        return None
    match state.at:
        case "[":
            return replace(state, at="[w", x=index)
        case "[w":
            return replace(state, at="[wh", y=index)
        case "[wh":
            return replace(state, at="[whw")
        case "[whw":
            return replace(state, at="[whwh")
        case "{":
            return replace(state, at=_SPAN_TIME, time=index)
        case "{t":
            limits_known = grammar.may("boxes") and state.latest < 0
            return replace(
                state,
                at=_SPAN_END,
                first=state.time if limits_known else state.first,
                last=index if limits_known else state.last,
            )
    return replace(state, at=_TIME, time=index)


# --- the vocabulary ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Alphabet:
    """A vocabulary as the automaton sees it: the shape of every ordinary word."""

    shape_of: torch.Tensor  # (V,) index into shapes; -1: never part of an answer
    shapes: tuple[str, ...]
    vocabulary: int
    bins: int
    end: int


def shape_of_text(text: str) -> str:
    """Signs as they are, spaces as " ", any run of other letters as "a"."""
    out: list[str] = []
    for letter in text:
        kind = letter if letter in _SIGNS else " " if letter.isspace() else "a"
        if kind in _SIGNS or not out or out[-1] != kind:
            out.append(kind)
    return "".join(out)


def make_alphabet(tokenizer: Any, words: Words) -> Alphabet:
    """Read a tokenizer's words once (a second for 150,000 of them). ModelError when it lacks a bracket."""
    special = set(tokenizer.all_special_ids) | {
        token for token, added in tokenizer.added_tokens_decoder.items() if added.special
    }
    known = set(tokenizer.get_vocab().values())
    ordinary = [token for token in range(words.vocabulary) if token in known and token not in special]
    texts = tokenizer.batch_decode([[token] for token in ordinary], clean_up_tokenization_spaces=False)
    shapes: dict[str, int] = {}
    shape_of = torch.full((words.vocabulary,), -1, dtype=torch.long)
    numbers = [shapes.setdefault(shape_of_text(text), len(shapes)) if text else -1 for text in texts]
    shape_of[torch.tensor(ordinary)] = torch.tensor(numbers)
    lacking = [sign for sign in "[]{}:," if sign not in shapes]
    if lacking:
        raise ModelError(
            f"the tokenizer has no words {' '.join(lacking)}, which coordinates are written with"
        )
    return Alphabet(shape_of, tuple(shapes), words.vocabulary, words.bins, words.turn_end)


class CoordinateConstraint:
    """A transformers LogitsProcessor: call with generated ids (B, n) and scores (B, V + 3 * bins).

    grammars: one per row. max_new_tokens: the budget; the answer is complete within it.
    prompt_length: how many of the ids that come in are the prompt's (0 when the prompt was given as embeddings).
    absent: ids of the answer "it is not there": an answer of exactly these words may end without coordinates.
    """

    def __init__(
        self,
        alphabet: Alphabet,
        grammars: Sequence[Grammar],
        max_new_tokens: int,
        prompt_length: int = 0,
        absent: Sequence[int] = (),
    ) -> None:
        self.alphabet, self.grammars, self.absent = alphabet, tuple(grammars), list(absent)
        self.budget, self.prompt_length = max_new_tokens, prompt_length
        self._read: list[tuple[list[int], State]] = [
            ([], start_state(grammar, alphabet.bins)) for grammar in self.grammars
        ]
        for grammar, (_, state) in zip(self.grammars, self._read, strict=True):
            need = words_needed(state, grammar)
            if need + 1 > max_new_tokens:
                raise QueryError(
                    f"an answer of this task needs up to {need + 1} words, max_new_tokens is {max_new_tokens}"
                )

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if len(scores) != len(self.grammars):
            raise QueryError(f"{len(self.grammars)} grammars constrain as many rows, got {len(scores)}")
        rows = [self.allowed(row, ids[self.prompt_length :]) for row, ids in enumerate(input_ids.tolist())]
        allowed = torch.stack(rows).to(scores.device)
        return scores.masked_fill(~allowed[:, : scores.shape[1]], float("-inf"))

    def allowed(self, row: int, ids: list[int]) -> torch.Tensor:
        """(V + 3 * bins,) which words may follow these ids."""
        alphabet, grammar = self.alphabet, self.grammars[row]
        out = torch.zeros(alphabet.vocabulary + 3 * alphabet.bins, dtype=torch.bool)
        state = self._state(row, ids)
        if state is None:  # the answer is over; what follows is padding
            out[alphabet.end] = True
            return out
        left = self.budget - len(ids) - 1  # words after this one
        fits = shapes_allowed(state, alphabet.shapes, grammar, min(left, 64))
        known = alphabet.shape_of >= 0
        out[: alphabet.vocabulary] = torch.tensor(fits)[alphabet.shape_of] & known
        for axis in range(3):
            limits = anchor_range(state, axis, grammar, alphabet.bins)
            if limits is not None:
                after = read_anchor(state, axis, limits[0], grammar, alphabet.bins)
                if after is not None and words_needed(after, grammar) <= left:
                    first = alphabet.vocabulary + axis * alphabet.bins
                    out[first + limits[0] : first + limits[1] + 1] = True
        said_absent = bool(self.absent) and ids == self.absent
        out[alphabet.end] = said_absent or words_needed(state, grammar) == 0
        return out

    def _state(self, row: int, ids: list[int]) -> State | None:
        """The automaton after `ids`; continues from the last call where it can. None after the end."""
        known, state = self._read[row]
        if ids[: len(known)] != known:
            known, state = [], start_state(self.grammars[row], self.alphabet.bins)
        for token in ids[len(known) :]:
            if token == self.alphabet.end:
                return None
            following = self._step(state, token, self.grammars[row])
            if following is None:
                return None
            state = following
        self._read[row] = (ids, state)
        return state

    def _step(self, state: State, token: int, grammar: Grammar) -> State | None:
        alphabet = self.alphabet
        if token >= alphabet.vocabulary:
            axis, index = divmod(token - alphabet.vocabulary, alphabet.bins)
            return read_anchor(state, axis, index, grammar, alphabet.bins)
        shape = int(alphabet.shape_of[token])
        return None if shape < 0 else read_shape(state, alphabet.shapes[shape], grammar)


@lru_cache(maxsize=4096)
def shapes_allowed(state: State, shapes: tuple[str, ...], grammar: Grammar, left: int) -> tuple[bool, ...]:
    """Which shapes may follow when `left` words come after."""
    out = []
    for shape in shapes:
        after = read_shape(state, shape, grammar)
        out.append(after is not None and words_needed(after, grammar) <= left)
    return tuple(out)
