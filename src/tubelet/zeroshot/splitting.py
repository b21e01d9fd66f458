"""Who splits sentences into sub-queries: rules, the loaded MLLM, or an OpenAI-compatible endpoint; kept on disk.

    split = make_splitter("model", mllm, cache="~/.cache/tubelet/parts")
    split("the man in red stands up")      # SubQueries

An endpoint is asked over HTTP with a JSON schema and a time limit; whatever goes wrong (no network, a time limit,
prose, wrong JSON) is asked once more and then split by rules, and the result's `note` says so. Only usable answers are
kept, by sentence and model, so that a passing failure is not remembered. The key of an endpoint is read from an
environment variable and never written anywhere.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tubelet.errors import ModelError, OutputError, QueryError
from tubelet.mllm.parts import Mllm
from tubelet.zeroshot.decompose import INSTRUCTION, SubQueries, by_model, by_rules

Splitter = Callable[[str], SubQueries]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"attribute": {"type": "string"}, "action": {"type": "string"}},
    "required": ["attribute", "action"],
    "additionalProperties": False,
}
"""What an answer must be."""
_CACHE_VERSION = 1
_MOST_BYTES = 1 << 20  # of an endpoint's answer


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An OpenAI-compatible server (vLLM, llama.cpp, Ollama, a provider).

    url: up to and with the version ("http://localhost:8000/v1"). model: its name there. key_variable: the environment
    variable that holds the key, if it needs one. timeout_s: per request.
    """

    url: str
    model: str
    key_variable: str = "OPENAI_API_KEY"
    timeout_s: float = 30.0

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise QueryError(
                f"an endpoint's url starts with http:// or https://, for example http://localhost:8000/v1; "
                f"got {self.url!r}"
            )
        if not self.model or not self.timeout_s > 0:
            raise QueryError("an endpoint needs the name of a model and a time limit above 0 s")


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
            return ask_endpoint(endpoint, text)
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


def ask_endpoint(endpoint: Endpoint, text: str) -> str:
    """The answer's text. ValueError with one sentence for everything that can go wrong on the way."""
    body: dict[str, Any] = {
        "model": endpoint.model,
        "messages": [{"role": "user", "content": text}],
        "temperature": 0,
        "max_tokens": 300,
    }
    schema = {"type": "json_schema", "json_schema": {"name": "parts", "strict": True, "schema": SCHEMA}}
    try:
        answer = _post(endpoint, body | {"response_format": schema})
    except urllib.error.HTTPError as error:
        if error.code not in (400, 422):  # servers without schemas say so with one of these
            raise ValueError(f"it answered with HTTP status {error.code}") from error
        try:
            answer = _post(endpoint, body)
        except urllib.error.HTTPError as again:
            raise ValueError(f"it answered with HTTP status {again.code}") from again
    try:
        content = json.loads(answer)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise ValueError("its answer is not a chat completion") from error
    if not isinstance(content, str):
        raise ValueError("its answer holds no text")
    return content


def _post(endpoint: Endpoint, body: dict[str, Any]) -> bytes:
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get(endpoint.key_variable):
        headers["Authorization"] = f"Bearer {key}"
    address = f"{endpoint.url.rstrip('/')}/chat/completions"
    request = urllib.request.Request(address, json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=endpoint.timeout_s) as response:
            answer: bytes = response.read(_MOST_BYTES)
            return answer
    except urllib.error.HTTPError:
        raise
    except TimeoutError as error:
        raise ValueError(f"no answer within {endpoint.timeout_s:g} s") from error
    except urllib.error.URLError as error:
        if isinstance(error.reason, TimeoutError):
            raise ValueError(f"no answer within {endpoint.timeout_s:g} s") from error
        raise ValueError(f"it cannot be reached: {error.reason}") from error
    except (OSError, http.client.HTTPException, UnicodeError) as error:
        raise ValueError(f"the connection broke: {type(error).__name__}") from error


def _kept(folder: Path, sentence: str, model: str, make: Callable[[], SubQueries]) -> SubQueries:
    """The parts kept under (sentence, model), or new ones. A damaged file is made again. Raises OutputError."""
    plain = " ".join(sentence.split())
    key = json.dumps([_CACHE_VERSION, INSTRUCTION, model, plain])
    path = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.json"
    with suppress(OSError, ValueError, LookupError, TypeError, RecursionError):
        data = json.loads(path.read_text(encoding="utf-8"))
        parts = SubQueries(data["attribute"], data["action"], data["source"])
        texts = (parts.attribute, parts.action)
        if data["sentence"] == plain and all(t is None or isinstance(t, str) for t in texts) and any(texts):
            return parts
    parts = make()
    if parts.note:  # a fallback: asked again next time
        return parts
    data = {
        "sentence": plain,
        "model": model,
        "attribute": parts.attribute,
        "action": parts.action,
        "source": parts.source,
    }
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(data, ensure_ascii=False) + "\n", encoding="utf-8")
        part.replace(path)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        raise OutputError(f"cannot keep sub-queries in {folder}: {error.strerror or error}") from error
    return parts
