"""Who splits sentences into sub-queries: rules, the loaded MLLM, or an OpenAI-compatible endpoint; kept on disk.

    split = make_splitter("model", mllm, cache="~/.cache/tubelet/parts")
    split("the man in red stands up")      # SubQueries

An endpoint is asked over HTTP with a JSON schema and a time limit; whatever goes wrong (no network, a time limit,
prose, wrong JSON) is asked once more and then split by rules, and the result's `note` says so. Only usable answers are
kept, by sentence and model, so that a passing failure is not remembered. The key of an endpoint is read from an
environment variable and never written anywhere.
"""

from __future__ import annotations

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
_CACHE_VERSION = 1


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

        def answer(text: str) -> str:
            return ask_endpoint(endpoint, text, SCHEMA)
    elif how == "model":
        if mllm is None:
            raise ModelError("sentences cannot be split by the model: none was given")
        loaded = mllm
        who, name = f"the model ({mllm.name})", f"{mllm.name}|{mllm.revision}"

        def answer(text: str) -> str:
            return loaded.write(text, max_new_tokens=128)
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
