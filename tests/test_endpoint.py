"""An OpenAI-compatible server that is slow, or does not take every field of a request."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tubelet.endpoint import Endpoint, ask_endpoint

SCHEMA: dict[str, Any] = {"type": "object"}
ANSWER = json.dumps({"choices": [{"message": {"content": "yes"}}]}).encode()

Reply = Callable[["Handler", dict[str, Any]], None]


class Server(ThreadingHTTPServer):
    """Answers each request by `reply`; keeps what it was sent."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.reply, self.bodies, self.over = reply, [], threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append(body)
        self.server.reply(self, body)

    def say(self, status: int, data: bytes) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(data)

    def trickle(self, data: bytes, most_s: float = 6.0) -> None:
        """A byte now and then, oftener than any time limit of a single read; at most so long."""
        until = time.monotonic() + most_s
        try:
            for k in range(len(data)):
                if self.server.over.wait(0.05) or time.monotonic() > until:
                    return
                self.wfile.write(data[k : k + 1])
                self.wfile.flush()
        except OSError:  # the other side has gone
            return

    def log_message(self, *args: Any) -> None:
        """Quiet."""


@pytest.fixture
def serve() -> Iterator[Callable[[Reply], Server]]:
    running: list[Server] = []

    def start(reply: Reply) -> Server:
        server = Server(reply)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        running.append(server)
        return server

    yield start
    for server in running:
        server.over.set()
        server.shutdown()
        server.server_close()


def slow_body(handler: Handler, body: dict[str, Any]) -> None:
    handler.send_response(200)
    handler.end_headers()
    handler.trickle(b" " * 100 + ANSWER)


def slow_headers(handler: Handler, body: dict[str, Any]) -> None:
    handler.trickle(b"HTTP/1.1 200 OK\r\nX-Slow: " + b"a" * 200 + b"\r\n\r\n" + ANSWER)


def slow_body_with_length(handler: Handler, body: dict[str, Any]) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(100 + len(ANSWER)))
    handler.end_headers()
    handler.trickle(b" " * 100 + ANSWER)


@pytest.mark.parametrize("reply", [slow_body, slow_headers, slow_body_with_length])
def test_a_server_that_writes_slowly_has_the_time_limit_for_all_of_it(serve: Any, reply: Reply) -> None:
    server = serve(reply)
    began = time.monotonic()
    with pytest.raises(ValueError, match=r"no answer within 0\.4 s"):
        ask_endpoint(Endpoint(server.url, "m", timeout_s=0.4), "?", SCHEMA)
    assert 0.35 < time.monotonic() - began < 3.0  # the server would take 6 s
    assert len(server.bodies) == 1


def test_slow_but_in_time(serve: Any) -> None:
    def reply(handler: Handler, body: dict[str, Any]) -> None:
        time.sleep(0.3)
        handler.say(200, ANSWER)

    assert ask_endpoint(Endpoint(serve(reply).url, "m", timeout_s=20.0), "?", SCHEMA) == "yes"


def refusing(*names: str, tell: bool = True, wants: str = "") -> Reply:
    """400 for requests with one of these fields, or without `wants`; tell: as OpenAI's servers do."""

    def reply(handler: Handler, body: dict[str, Any]) -> None:
        wrong = [name for name in names if name in body]
        if wrong or (wants and wants not in body):
            name = wrong[0] if wrong else wants
            hint = f" Use {wants!r} instead." if name == "max_tokens" and wants else ""
            said = f"Unsupported parameter: {name!r} is not supported with this model.{hint}"
            handler.say(400, json.dumps({"error": {"message": said, "param": name} if tell else {}}).encode())
        else:
            handler.say(200, ANSWER)

    return reply


@pytest.mark.parametrize(
    ("reply", "requests", "left"),
    [
        (refusing("temperature"), 2, {"max_tokens", "response_format"}),
        (
            refusing("max_tokens", wants="max_completion_tokens"),
            2,
            {"max_completion_tokens", "temperature", "response_format"},
        ),
        (
            refusing("max_tokens", "temperature", wants="max_completion_tokens"),
            3,
            {"max_completion_tokens", "response_format"},
        ),
        (refusing("max_tokens", "max_completion_tokens"), 3, {"temperature", "response_format"}),
        (refusing("response_format"), 2, {"max_tokens", "temperature"}),
        (refusing("response_format", tell=False), 2, {"max_tokens", "temperature"}),
        (refusing("temperature", tell=False), 3, {"max_completion_tokens"}),
        (refusing("response_format", "temperature"), 3, {"max_tokens"}),
    ],
)
def test_fields_that_a_server_does_not_take_are_left_out_and_remembered(
    serve: Any, reply: Reply, requests: int, left: set[str]
) -> None:
    server = serve(reply)
    endpoint = Endpoint(server.url, "m", timeout_s=20.0)
    assert ask_endpoint(endpoint, "?", SCHEMA, max_tokens=77) == "yes"
    assert len(server.bodies) == requests
    assert set(server.bodies[-1]) == {"model", "messages"} | left
    assert all(server.bodies[-1][name] == 77 for name in left & {"max_tokens", "max_completion_tokens"})
    assert ask_endpoint(endpoint, "and?", SCHEMA, max_tokens=77) == "yes"
    assert len(server.bodies) == requests + 1  # nothing is tried twice
    assert endpoint == Endpoint(server.url, "m", timeout_s=20.0)  # what is remembered makes it no other


def test_a_request_that_is_refused_for_itself_teaches_nothing(serve: Any) -> None:
    def reply(handler: Handler, body: dict[str, Any]) -> None:
        if len(body["messages"][0]["content"]) > 10:
            handler.say(400, b'{"error": {"message": "too long"}}')
        else:
            handler.say(200, ANSWER)

    server = serve(reply)
    endpoint = Endpoint(server.url, "m", timeout_s=20.0)
    with pytest.raises(ValueError, match="HTTP status 400"):
        ask_endpoint(endpoint, "?" * 20, SCHEMA)
    assert 2 <= len(server.bodies) <= 4  # bounded
    asked = len(server.bodies)
    assert ask_endpoint(endpoint, "?", SCHEMA) == "yes"
    assert len(server.bodies) == asked + 1
    assert {"temperature", "max_tokens", "response_format"} < set(server.bodies[-1])


def test_other_refusals_are_not_asked_again(serve: Any) -> None:
    server = serve(lambda handler, body: handler.say(401, b'{"error": "max_tokens"}'))
    with pytest.raises(ValueError, match="HTTP status 401"):
        ask_endpoint(Endpoint(server.url, "m", timeout_s=20.0), "?", SCHEMA)
    assert len(server.bodies) == 1


def test_tls_that_is_none_is_said(serve: Any) -> None:
    server = serve(lambda handler, body: handler.say(200, ANSWER))
    address = server.url.replace("http://", "https://")
    with pytest.raises(ValueError, match=r"it cannot be reached: .*SSL"):
        ask_endpoint(Endpoint(address, "m", timeout_s=20.0), "?", SCHEMA)
