"""Who splits sentences into sub-queries: rules, the loaded MLLM, or an OpenAI-compatible endpoint; kept on disk.

    split = make_splitter("model", mllm, cache="~/.cache/tubelet/parts")
    split("the man in red stands up")      # SubQueries

An endpoint is asked over HTTP with a JSON schema and a time limit; whatever goes wrong (no network, a time limit,
prose, wrong JSON) is asked once more and then split by rules, and the result's `note` says so. An endpoint that let the
time limit pass three times in a row is not asked for five minutes: the rules split at once meanwhile. Only usable
answers are kept, by sentence and model, so that a passing failure is not remembered. The key of an endpoint is read
from an environment variable and never written anywhere.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from tubelet.endpoint import Endpoint, ask_endpoint, keep_answer, kept_answer, kept_path
from tubelet.errors import ModelError, QueryError
from tubelet.mllm.parts import Mllm
from tubelet.zeroshot.decompose import INSTRUCTION, SubQueries, by_model, by_rules

__all__ = ["SCHEMA", "Endpoint", "Splitter", "make_splitter"]

Splitter = Callable[[str], SubQueries]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"attribute": {"type": "string"}, "action": {"type": "string"}},
    "required": ["attribute", "action"],
    "additionalProperties": False,
}
"""What an answer must be."""
_CACHE_VERSION = 2
_TIMEOUTS = 3  # in a row, after which an endpoint rests
_REST_S = 300.0
_MOST_TOKENS = 128  # of an answer by the loaded model
_MOST_THOUGHT = 1000  # of an answer by an endpoint, which may think aloud first


def make_splitter(
    how: str | Endpoint = "rules", mllm: Mllm | None = None, cache: Path | str | None = None
) -> Splitter:
    """A function from a sentence to its sub-queries. how: "rules", "model" (`mllm` writes them) or an `Endpoint`.

    cache: folder for answers of models. Raises QueryError for another way, ModelError where a model is missing.
    """
    if how == "rules":
        return by_rules
    if isinstance(how, Endpoint):
        endpoint = how
        who, name = f"the endpoint ({endpoint.model})", f"{endpoint.url}|{endpoint.model}"
        answer: Callable[[str], str] = _Patience(
            lambda text: ask_endpoint(endpoint, text, SCHEMA, max_tokens=_MOST_THOUGHT)
        )
    elif how == "model":
        if mllm is None:
            raise ModelError("sentences cannot be split by the model: none was given")
        loaded = mllm
        who, name = f"the model ({mllm.name})", f"{mllm.name}|{mllm.revision}"

        def answer(text: str) -> str:
            return loaded.write(text, max_new_tokens=_MOST_TOKENS)
    else:
        raise QueryError(f"sentences are split by rules, by the model, or by an Endpoint; got {how!r}")

    def split(sentence: str) -> SubQueries:
        def make() -> SubQueries:
            return by_model(sentence, _readable(answer), who)

        return make() if cache is None else _kept(Path(cache).expanduser(), sentence, name, make)

    return split


def _readable(answer: Callable[[str], str]) -> Callable[[str], str]:
    """Sentences that a model cannot be asked (control tokens, too long) count as an unusable answer."""

    def ask(text: str) -> str:
        try:
            return answer(text)
        except (QueryError, ModelError) as error:
            raise ValueError(str(error)) from error

    return ask


class _Patience:
    """Asks, but lets an endpoint rest that was silent `_TIMEOUTS` times in a row; after a rest one request decides."""

    def __init__(self, answer: Callable[[str], str]) -> None:
        self.answer, self.silent, self.until = answer, 0, 0.0

    def __call__(self, text: str) -> str:
        left_s = self.until - _now_s()
        if self.silent >= _TIMEOUTS and left_s > 0:
            raise ValueError(
                f"no answer within its time limit {self.silent} times in a row: not asked for {left_s:.0f} s more"
            )
        try:
            found = self.answer(text)
        except ValueError as error:
            self.silent = self.silent + 1 if _timed_out(error) else 0
            if self.silent >= _TIMEOUTS:
                self.until = _now_s() + _REST_S
            raise
        self.silent = 0
        return found


def _now_s() -> float:
    return time.monotonic()


def _timed_out(error: ValueError) -> bool:
    return str(error).startswith(
        "no answer within"
    )  # the words of tubelet.endpoint for a time limit that passed


def _kept(folder: Path, sentence: str, model: str, make: Callable[[], SubQueries]) -> SubQueries:
    """The parts kept under (sentence, model), or new ones. A damaged file is made again. Raises OutputError."""
    plain = " ".join(sentence.split())
    path = kept_path(folder, [_CACHE_VERSION, INSTRUCTION, model, plain])
    data = kept_answer(path)
    with suppress(LookupError, TypeError):
        if data is not None:
            parts = SubQueries(data["attribute"], data["action"], data["source"])
            texts = (parts.attribute, parts.action)
            if (
                data["sentence"] == plain
                and all(t is None or isinstance(t, str) for t in texts)
                and any(texts)
            ):
                return parts
    parts = make()
    if not parts.note:  # a fallback is asked again next time
        data = {
            "sentence": plain,
            "model": model,
            "attribute": parts.attribute,
            "action": parts.action,
            "source": parts.source,
        }
        keep_answer(path, data, "sub-queries")
    return parts
