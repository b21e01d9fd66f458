"""Sub-queries by models: endpoints that misbehave, the disk cache, the recorded fallback."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tubelet.errors import ModelError, OutputError, QueryError
from tubelet.zeroshot import splitting
from tubelet.zeroshot.splitting import SCHEMA, Endpoint, make_splitter

SENTENCE = "the man in red stands up and sits down"
GOOD = json.dumps({"attribute": "the man in red", "action": "the man stands up and sits down"})


class Server(ThreadingHTTPServer):
    """Answers with `replies` in turn (the last one again and again); keeps what it was sent."""

    def __init__(self, replies: list[Any]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.replies, self.bodies, self.keys = replies, [], []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        reply = self.server.replies[min(len(self.server.bodies), len(self.server.replies) - 1)]
        self.server.bodies.append((self.path, body))
        self.server.keys.append(self.headers.get("Authorization"))
        if reply == "hang":
            time.sleep(0.6)
            return
        status, data = reply if isinstance(reply, tuple) else (200, _completion(reply))
        self.send_response(status)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        """Quiet."""


def _completion(text: Any) -> bytes:
    return json.dumps({"choices": [{"message": {"content": text}}]}).encode()


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    running = []

    def start(*replies: Any) -> Server:
        server = Server(list(replies))
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        running.append(server)
        return server

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


def test_an_endpoint_is_asked_with_a_schema(
    serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENDPOINT_KEY", "abc")
    server = serve(GOOD)
    parts = make_splitter(Endpoint(server.url, "some-model", "ENDPOINT_KEY"))(SENTENCE)
    assert (parts.attribute, parts.action) == ("the man in red", "the man stands up and sits down")
    assert "some-model" in parts.source and parts.note == ""
    path, body = server.bodies[0]
    assert path == "/v1/chat/completions" and body["model"] == "some-model" and len(server.bodies) == 1
    assert body["response_format"]["json_schema"]["schema"] == SCHEMA
    assert SENTENCE in body["messages"][0]["content"] and server.keys == ["Bearer abc"]


def test_a_server_without_schemas_is_asked_without(serve: Callable[..., Server]) -> None:
    server = serve((400, b"{}"), GOOD)
    parts = make_splitter(Endpoint(server.url, "m"))(SENTENCE)
    assert parts.attribute == "the man in red" and not parts.note
    assert "response_format" in server.bodies[0][1] and "response_format" not in server.bodies[1][1]


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ("I think it is about a man.", "no JSON"),
        ('{"attribute": "the man in red"', "broken JSON"),
        ('{"attribute": 3, "action": "x"}', "no text under"),
        ('{"attribute": "", "action": ""}', "empty"),
        ('{"attribute": "a zebra", "action": "zebra"}', "not made of words"),
        (
            '{"attribute": "the tall woman beside the door", "action": "the woman picks up a cup and drinks"}',
            "not made of words",  # the first example of the instruction
        ),
        ('{"attribute": "the man in red", "action": "the woman juggles knives"}', "not made of words"),
        ('["attribute"]', "JSON"),
        ("[" * 5000, "JSON"),
        ((500, b"oops"), "HTTP status 500"),
        ((200, b"not json"), "not a chat completion"),
        ((200, _completion(None)), "no text"),
        ((200, b"[]"), "not a chat completion"),
        ("hang", "no answer within"),
    ],
)
def test_what_cannot_be_used_is_asked_again_then_split_by_rules(
    serve: Callable[..., Server], reply: Any, said: str, tmp_path: Path
) -> None:
    server = serve(reply)
    limit = 0.15 if reply == "hang" else 5.0
    parts = make_splitter(Endpoint(server.url, "m", timeout_s=limit), cache=tmp_path)(SENTENCE)
    assert (parts.attribute, parts.source) == ("the man in red", "rules")
    assert parts.action == "the man stands up and sits down"
    assert said in parts.note and "split by rules" in parts.note
    assert len(server.bodies) == 2  # one retry
    assert not list(tmp_path.glob("*.json"))  # a failure is not kept


def test_the_second_answer_counts(serve: Callable[..., Server]) -> None:
    server = serve("no idea", GOOD)
    parts = make_splitter(Endpoint(server.url, "m"))(SENTENCE)
    assert parts.attribute == "the man in red" and not parts.note and len(server.bodies) == 2


def test_the_second_request_says_what_was_wrong(serve: Callable[..., Server]) -> None:
    server = serve('{"attribute": "a zebra", "action": ""}', GOOD)
    make_splitter(Endpoint(server.url, "m"))(SENTENCE)
    first, second = (body["messages"][0]["content"] for _, body in server.bodies)
    assert (
        second.startswith(first) and "'a zebra' is not made of words of the sentence" in second[len(first) :]
    )


def test_a_silent_endpoint_is_left_alone_for_a_while(
    serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(splitting, "_now_s", lambda: now[0])
    server = serve("hang", "hang", "hang", "hang", GOOD)
    split = make_splitter(Endpoint(server.url, "m", timeout_s=0.15))
    notes = [split(f"the man in red jumps {k} times").note for k in range(6)]
    assert len(server.bodies) == 3  # two of the first sentence, one of the second
    assert all("split by rules" in note for note in notes)
    assert "3 times in a row: not asked for 300 s more" in notes[2]
    now[0] += 301.0  # after the rest one request decides: silent again
    assert "4 times in a row" in split(SENTENCE).note and len(server.bodies) == 4
    now[0] += 301.0
    assert split(SENTENCE).note == "" and len(server.bodies) == 5
    assert split("the man in red stands up and sits down again").note == ""


def test_only_silence_in_a_row_counts(serve: Callable[..., Server]) -> None:
    server = serve("hang", "no idea", "hang", "hang", "no idea", GOOD)
    split = make_splitter(Endpoint(server.url, "m", timeout_s=0.15))
    for _ in range(3):
        parts = split(SENTENCE)
    assert not parts.note and len(server.bodies) == 6


def test_nobody_there() -> None:
    parts = make_splitter(Endpoint("http://127.0.0.1:9/v1", "m", timeout_s=2.0))(SENTENCE)
    assert "cannot be reached" in parts.note and parts.source == "rules"


def test_parts_are_kept_by_sentence_and_model(serve: Callable[..., Server], tmp_path: Path) -> None:
    server = serve(GOOD)
    for model, text, asked in (("a", SENTENCE, 1), ("a", f" {SENTENCE} ", 1), ("b", SENTENCE, 2)):
        parts = make_splitter(Endpoint(server.url, model), cache=tmp_path / "deep")(text)
        assert parts.attribute == "the man in red" and len(server.bodies) == asked
    files = sorted((tmp_path / "deep").glob("*.json"))
    assert len(files) == 2
    for file in files:
        file.write_text("{broken")
    assert make_splitter(Endpoint(server.url, "a"), cache=tmp_path / "deep")(SENTENCE).attribute
    assert len(server.bodies) == 3  # a damaged file is made again
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot keep sub-queries"):
        make_splitter(Endpoint(server.url, "a"), cache=tmp_path / "file")(SENTENCE)


def test_words_may_change_their_form(serve: Callable[..., Server]) -> None:
    reply = json.dumps({"attribute": None, "action": "an object that the child pushes"})
    parts = make_splitter(Endpoint(serve(reply).url, "m"))("what does the child push in the yard?")
    assert parts.action == "an object that the child pushes" and not parts.note
    assert parts.attribute == "an object that the child pushes in the yard"  # the question as a statement


def test_a_real_model_is_asked_and_its_answer_used_or_noted() -> None:
    """pico-base was never taught to write JSON: the whole way through `write`, and the recorded fallback."""
    from tubelet.zeroshot.grounder import load_zero_shot

    grounder = load_zero_shot("pico-base", split="model")
    parts = grounder.splitter(SENTENCE)
    assert (parts.attribute, parts.source) == ("the man in red", "rules")
    assert "the model (pico-base) gave no usable parts" in parts.note and "split by rules" in parts.note
    assert grounder.sampling["split"] == "model"


def test_the_loaded_model_splits_or_the_rules_do() -> None:
    class Writer:
        name, revision = "writer", "1"

        def __init__(self, texts: list[str]) -> None:
            self.texts = texts

        def write(self, text: str, max_new_tokens: int) -> str:
            found = self.texts.pop(0)
            if found == "refuse":
                raise QueryError("the question contains a control token")
            return found

    assert make_splitter("model", Writer([f"Sure: {GOOD}"]))(SENTENCE).attribute == "the man in red"  # type: ignore[arg-type]
    parts = make_splitter("model", Writer(["refuse", "refuse"]))(SENTENCE)  # type: ignore[arg-type]
    assert "control token" in parts.note and parts.attribute == "the man in red"
    with pytest.raises(ModelError, match="none was given"):
        make_splitter("model")
    with pytest.raises(QueryError, match="by rules, by the model"):
        make_splitter("guess")
    with pytest.raises(QueryError, match="http"):
        Endpoint("localhost:8000", "m")
    with pytest.raises(QueryError, match="name of a model"):
        Endpoint("http://localhost", "")
