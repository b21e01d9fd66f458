"""Asking an OpenAI-compatible server for text that follows a JSON schema, patiently; and keeping answers on disk.

    endpoint = Endpoint("http://localhost:8000/v1", "some-model", attempts=5)
    text = ask_endpoint(endpoint, "Split this ...", schema)    # ValueError with one sentence for whatever goes wrong

Over HTTP with a time limit. A server that is busy (429, 500, 502, 503, 504), silent or gone is asked again up to
`attempts` times in all: after the seconds of its Retry-After, else after 1, 2, 4, ... s (`pause_s`), never longer than
`longest_pause_s`. A server that does not know schemas (400, 422) is asked once more without. The key is read from an
environment variable and never written anywhere.

`kept_answer` and `keep_answer` are a folder of small JSON files, each under the hash of what was asked.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from tubelet.errors import OutputError, QueryError

_MOST_BYTES = 1 << 20  # of an endpoint's answer
_BUSY = (429, 500, 502, 503, 504)
_NO_SCHEMAS = (400, 422)  # servers without schemas say so with one of these


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An OpenAI-compatible server (vLLM, llama.cpp, Ollama, a provider).

    url: up to and with the version ("http://localhost:8000/v1"). model: its name there. key_variable: the environment
    variable that holds the key, if it needs one. timeout_s: per request. attempts: requests for one answer while the
    server is busy or away. pause_s: before the second, doubled each time. longest_pause_s: also for Retry-After.
    """

    url: str
    model: str
    key_variable: str = "OPENAI_API_KEY"
    timeout_s: float = 30.0
    attempts: int = 1
    pause_s: float = 1.0
    longest_pause_s: float = 60.0

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise QueryError(
                f"an endpoint's url starts with http:// or https://, for example http://localhost:8000/v1; "
                f"got {self.url!r}"
            )
        if not self.model or not self.timeout_s > 0:
            raise QueryError("an endpoint needs the name of a model and a time limit above 0 s")
        if self.attempts < 1 or self.pause_s < 0 or self.longest_pause_s < 0:
            raise QueryError("an endpoint is asked at least once, with pauses of 0 s or more")


class _Again(ValueError):
    """What may pass: said as a ValueError when patience ends. wait_s: what the server asks for, if it does."""

    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        self.wait_s = wait_s
        super().__init__(reason)


def ask_endpoint(
    endpoint: Endpoint,
    text: str,
    schema: Mapping[str, Any],
    name: str = "parts",
    max_tokens: int = 300,
) -> str:
    """The answer's text. ValueError with one sentence for everything that can go wrong on the way."""
    body: dict[str, Any] = {
        "model": endpoint.model,
        "messages": [{"role": "user", "content": text}],
        "temperature": 0,
        "max_tokens": max_tokens,
    }
    wanted = {
        "type": "json_schema",
        "json_schema": {"name": name, "strict": True, "schema": dict(schema)},
    }
    pause_s = endpoint.pause_s
    for left in range(endpoint.attempts - 1, -1, -1):
        try:
            try:
                answer = _post(endpoint, body | {"response_format": wanted} if wanted else body)
            except urllib.error.HTTPError as error:
                if error.code not in _NO_SCHEMAS or not wanted:
                    raise
                wanted = {}
                answer = _post(endpoint, body)
            return _content(answer)
        except urllib.error.HTTPError as error:
            reason = f"it answered with HTTP status {error.code}"
            if error.code not in _BUSY or not left:
                raise ValueError(reason) from error
            wait_s = _retry_after_s(error.headers.get("Retry-After"))
        except _Again as error:
            if not left:
                raise
            wait_s = error.wait_s
        time.sleep(min(pause_s if wait_s is None else wait_s, endpoint.longest_pause_s))
        pause_s *= 2
    raise ValueError("it was not asked")  # attempts is at least 1


def _content(answer: bytes) -> str:
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
    try:
        request = urllib.request.Request(address, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=endpoint.timeout_s) as response:
            answer: bytes = response.read(_MOST_BYTES)
            return answer
    except urllib.error.HTTPError:
        raise
    except TimeoutError as error:
        raise _Again(f"no answer within {endpoint.timeout_s:g} s") from error
    except urllib.error.URLError as error:
        if isinstance(error.reason, TimeoutError):
            raise _Again(f"no answer within {endpoint.timeout_s:g} s") from error
        raise _Again(f"it cannot be reached: {error.reason}") from error
    except (OSError, http.client.HTTPException, UnicodeError) as error:
        raise _Again(f"the connection broke: {type(error).__name__}") from error


def _retry_after_s(value: str | None) -> float | None:
    """Seconds of a Retry-After header (a number, or a date); None where there is none that can be read."""
    if value is None:
        return None
    with suppress(ValueError):
        seconds = float(value)
        return max(0.0, seconds) if seconds < float("inf") else None
    with suppress(ValueError, TypeError, OverflowError):
        until = parsedate_to_datetime(value)
        return max(0.0, (until - datetime.now(UTC)).total_seconds())
    return None


# --- kept answers --------------------------------------------------------------------------------------


def kept_path(folder: Path, question: Sequence[object]) -> Path:
    """Where the answer to this question (JSON values: version, instruction, model, text) is kept."""
    return folder / f"{hashlib.sha256(json.dumps(list(question)).encode()).hexdigest()[:24]}.json"


def kept_answer(path: Path) -> dict[str, Any] | None:
    """The object kept there; None where there is none, or a damaged file."""
    with suppress(OSError, ValueError, RecursionError):
        data = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(data, dict):
            return data
    return None


def keep_answer(path: Path, data: Mapping[str, Any], what: str = "answers") -> None:
    """Write it whole or not at all. OutputError where the folder cannot be written."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(dict(data), ensure_ascii=False) + "\n", encoding="utf-8")
        part.replace(path)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        raise OutputError(f"cannot keep {what} in {path.parent}: {error.strerror or error}") from error
