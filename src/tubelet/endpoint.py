"""Asking an OpenAI-compatible server for text that follows a JSON schema, patiently; and keeping answers on disk.

    endpoint = Endpoint("http://localhost:8000/v1", "some-model", attempts=5)
    text = ask_endpoint(endpoint, "Split this ...", schema)    # ValueError with one sentence for whatever goes wrong

Over HTTP with a time limit for a whole request, however slowly the server writes. A server that is busy (429, 500, 502,
503, 504), silent or gone is asked again up to `attempts` times in all: after the seconds of its Retry-After, else after
1, 2, 4, ... s (`pause_s`), never longer than `longest_pause_s`. A server that refuses a request (400, 422) is asked
again without what it names of temperature, max_tokens (then as max_completion_tokens) and the schema; where it names
none, without the schema, then without the others. What helped is remembered as long as the `Endpoint` lives. The key is
read from an environment variable and never written anywhere.

`kept_answer` and `keep_answer` are a folder of small JSON files, each under the hash of what was asked.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from tubelet.errors import OutputError, QueryError

_MOST_BYTES = 1 << 20  # of an endpoint's answer
_BUSY = (429, 500, 502, 503, 504)
_REFUSED = (400, 422)  # servers that do not take a field say so with one of these
_LEFT_OUT = (
    "response_format",
    "temperature",
    "max_tokens",
    "max_completion_tokens",
)  # fields that an answer can miss
_MOST_SAID_BYTES = 1 << 16  # of what a server says with an error


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An OpenAI-compatible server (vLLM, llama.cpp, Ollama, a provider).

    url: up to and with the version ("http://localhost:8000/v1"). model: its name there. key_variable: the environment
    variable that holds the key, if it needs one. timeout_s: for a whole request. attempts: requests for one answer
    while the server is busy or away. pause_s: before the second, doubled each time. longest_pause_s: also for
    Retry-After.
    """

    url: str
    model: str
    key_variable: str = "OPENAI_API_KEY"
    timeout_s: float = 30.0
    attempts: int = 1
    pause_s: float = 1.0
    longest_pause_s: float = 60.0
    refused: set[str] = field(default_factory=set, init=False, repr=False, compare=False)
    """Fields of a request that this server was found not to take."""

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


class _Status(ValueError):
    """An HTTP status that is no success. said: what came with it."""

    def __init__(self, code: int, said: str, wait_s: float | None) -> None:
        self.code, self.said, self.wait_s = code, said, wait_s
        super().__init__(f"it answered with HTTP status {code}")


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
    body["response_format"] = {
        "type": "json_schema",
        "json_schema": {"name": name, "strict": True, "schema": dict(schema)},
    }
    pause_s = endpoint.pause_s
    for left in range(endpoint.attempts - 1, -1, -1):
        try:
            return _content(_post_what_it_takes(endpoint, body))
        except _Status as error:
            if error.code not in _BUSY or not left:
                raise
            wait_s = error.wait_s
        except _Again as error:
            if not left:
                raise
            wait_s = error.wait_s
        time.sleep(min(pause_s if wait_s is None else wait_s, endpoint.longest_pause_s))
        pause_s *= 2
    raise ValueError("it was not asked")  # attempts is at least 1


def _post_what_it_takes(endpoint: Endpoint, body: Mapping[str, Any]) -> bytes:
    """The answer to the request, or to what is left of it without the fields that the server refuses."""
    refused = set(endpoint.refused)
    while True:
        try:
            answer = _post(endpoint, _without(body, refused))
        except _Status as error:
            more = _refused_next(error.said, refused) if error.code in _REFUSED else set()
            if not more:
                raise
            refused |= more
            continue
        endpoint.refused.update(refused)  # a request that is refused for itself (too long) teaches nothing
        return answer


def _without(body: Mapping[str, Any], refused: set[str]) -> dict[str, Any]:
    made = {key: value for key, value in body.items() if key not in refused}
    if "max_tokens" in refused and "max_completion_tokens" not in refused:
        made["max_completion_tokens"] = body["max_tokens"]
    return made


def _refused_next(said: str, refused: set[str]) -> set[str]:
    """What to leave out after a refusal: what it names, else the schema, else the rest; empty: nothing is left."""
    sent = set(_LEFT_OUT) - refused - ({"max_completion_tokens"} if "max_tokens" not in refused else set())
    # a server that wants max_completion_tokens names it while it refuses max_tokens
    named = {name for name in sent if name in said}
    return named or sent & {"response_format"} or sent


def _content(answer: bytes) -> str:
    try:
        content = json.loads(answer)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise ValueError("its answer is not a chat completion") from error
    if not isinstance(content, str):
        raise ValueError("its answer holds no text")
    return content


def _post(endpoint: Endpoint, body: Mapping[str, Any]) -> bytes:
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get(endpoint.key_variable):
        headers["Authorization"] = f"Bearer {key}"
    address = f"{endpoint.url.rstrip('/')}/chat/completions"
    with _deadline(endpoint.timeout_s) as limit:
        try:
            request = urllib.request.Request(address, json.dumps(body).encode(), headers)
            opener = urllib.request.build_opener(_Http(limit), _Https(limit))
            try:
                with opener.open(request, timeout=endpoint.timeout_s) as response:
                    answer: bytes = response.read(_MOST_BYTES)
            except urllib.error.HTTPError as error:
                with error:
                    said = error.read(_MOST_SAID_BYTES).decode("utf-8", "replace")
                    wait_s = _retry_after_s(error.headers.get("Retry-After"))
                raise _Status(error.code, said, wait_s) from error
        except (OSError, http.client.HTTPException, UnicodeError) as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            if limit.over or isinstance(reason, TimeoutError):
                raise _Again(f"no answer within {endpoint.timeout_s:g} s") from error
            if isinstance(error, urllib.error.URLError):
                raise _Again(f"it cannot be reached: {reason}") from error
            raise _Again(f"the connection broke: {type(error).__name__}") from error
        if limit.over:  # an answer without a length ends where it was cut
            raise _Again(f"no answer within {endpoint.timeout_s:g} s")
    return answer


class _Limit:
    """Cuts the connection of a request when its time is over: time limits of sockets are for each read alone."""

    def __init__(self) -> None:
        self.over = False
        self._sockets: list[socket.socket] = []
        self._lock = threading.Lock()

    def watch(self, connected: socket.socket) -> None:
        with self._lock:
            self._sockets.append(connected)
        if self.over:
            self.cut()

    def cut(self) -> None:
        self.over = True
        with self._lock:
            for connected in self._sockets:
                with suppress(OSError):  # closed by now
                    socket.socket.shutdown(connected, socket.SHUT_RDWR)  # of the socket below TLS, too

    def connection(self, kind: Any) -> Any:
        """A class of http.client whose connections are watched."""

        def make(*args: Any, **more: Any) -> Any:
            made = kind(*args, **more)
            connect = made.connect

            def watched() -> None:
                connect()
                self.watch(made.sock)

            made.connect = watched
            return made

        return make


@contextmanager
def _deadline(seconds: float) -> Iterator[_Limit]:
    limit = _Limit()
    timer = threading.Timer(seconds, limit.cut)
    timer.daemon = True
    timer.start()
    try:
        yield limit
    finally:
        timer.cancel()


class _Http(urllib.request.HTTPHandler):
    def __init__(self, limit: _Limit) -> None:
        super().__init__()
        self._limit = limit

    def do_open(self, http_class: Any, req: Any, **more: Any) -> Any:
        return super().do_open(self._limit.connection(http_class), req, **more)


class _Https(urllib.request.HTTPSHandler):
    def __init__(self, limit: _Limit) -> None:
        super().__init__()
        self._limit = limit

    def do_open(self, http_class: Any, req: Any, **more: Any) -> Any:
        return super().do_open(self._limit.connection(http_class), req, **more)


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
