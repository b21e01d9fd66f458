"""Phrases by text models: endpoints that misbehave, a real (tiny) causal LM, the cache, the recorded fallback."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tubelet.endpoint import Endpoint, ask_endpoint, keep_answer, kept_answer
from tubelet.errors import ModelError, OutputError, QueryError
from tubelet.tube import Span
from tubelet.unistg.analyzer import AnalyzerSettings, analyze, make_finder
from tubelet.unistg.analyzer_llm import SCHEMA, LlmFinder, parse_answer, prompt, transformers_writer
from tubelet.unistg.records import Caption, Drop, Phrase

TEXT = "a man in red opens the door"
GOOD = json.dumps({"subject": "a man in red", "others": ["the door"]})


def caption(text: str = TEXT, id: str = "a") -> Caption:
    return Caption(id, "test", "a.mp4", text, Span(0, 5))


class Server(ThreadingHTTPServer):
    """Answers with `replies` in turn (the last one again and again): text, "hang", (status, headers), or a function."""

    def __init__(self, replies: list[Any]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.replies, self.bodies, self.times = replies, [], []
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            reply = self.server.replies[min(len(self.server.bodies), len(self.server.replies) - 1)]
            self.server.bodies.append(body)
            self.server.times.append(time.monotonic())
        if callable(reply):
            reply = reply(body["messages"][0]["content"])
        if reply == "hang":
            time.sleep(0.5)
            return
        status, headers = reply if isinstance(reply, tuple) else (200, {})
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        if status == 200:
            self.wfile.write(json.dumps({"choices": [{"message": {"content": reply}}]}).encode())

    def log_message(self, *args: Any) -> None:
        """Quiet."""


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    running = []

    def start(*replies: Any) -> Server:
        server = Server(list(replies))
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        running.append(server)
        return server

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


def by(server: Server, **more: Any) -> AnalyzerSettings:
    given = {
        "how": "endpoint",
        "url": server.url,
        "model": "m",
        "keep": "all",
        "pause_s": 0.02,
        "workers": 2,
        **more,
    }
    return AnalyzerSettings(**given)


def test_an_endpoint_is_asked_with_a_schema(serve: Callable[..., Server]) -> None:
    server = serve(GOOD)
    out = list(analyze([caption()], by(server)))
    assert [(p.text, p.subject, p.analyzer) for p in out if isinstance(p, Phrase)] == [
        ("a man in red", True, "m"),
        ("the door", False, "m"),
    ]
    assert server.bodies[0]["response_format"]["json_schema"]["schema"] == SCHEMA
    assert TEXT in server.bodies[0]["messages"][0]["content"] and server.bodies[0]["temperature"] == 0


def test_a_rate_limit_is_waited_for(serve: Callable[..., Server]) -> None:
    server = serve((429, {"Retry-After": "0.3"}), (503, {}), GOOD)
    (first, _) = analyze([caption()], by(server))
    assert isinstance(first, Phrase) and first.analyzer == "m" and len(server.bodies) == 3
    waited = [b - a for a, b in zip(server.times, server.times[1:], strict=False)]
    assert waited[0] >= 0.28  # what the server asked for
    assert 0.035 <= waited[1] < 0.3  # its own pause, doubled once


def test_a_retry_after_may_be_a_date_and_is_bounded(serve: Callable[..., Server]) -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(hours=3), usegmt=True)
    server = serve((429, {"Retry-After": later}), (429, {"Retry-After": "soon"}), GOOD)
    endpoint = Endpoint(server.url, "m", attempts=3, pause_s=0.01, longest_pause_s=0.1)
    begin = time.monotonic()
    assert ask_endpoint(endpoint, "x", SCHEMA) == GOOD
    assert 0.1 <= time.monotonic() - begin < 2


def test_patience_ends_and_rules_answer(serve: Callable[..., Server]) -> None:
    server = serve((429, {"Retry-After": "0"}))
    (first, *_) = analyze([caption()], by(server, attempts=3))
    assert isinstance(first, Phrase) and first.text == "a man in red"
    assert first.analyzer == "rules (m: it answered with HTTP status 429)"
    assert len(server.bodies) == 6  # three requests, and the one retry has three more


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ("The subject is a man.", "no JSON"),
        ('{"subject": "a man"', "broken JSON"),
        ('{"subject": 3, "others": []}', "no text"),
        ('{"subject": "a man", "others": [1]}', "no list of texts"),
        ('{"subject": "a zebra", "others": []}', "does not speak of"),
        (json.dumps({"subject": "a man " * 40, "others": []}), "longer than its caption"),
        (json.dumps({"subject": "a man", "others": ["door"] * 31}), "31 things"),
        ("[" * 5000, "JSON"),
        ((401, {}), "HTTP status 401"),
        ("hang", "no answer within"),
    ],
)
def test_what_cannot_be_used_is_asked_once_more_then_recorded(
    serve: Callable[..., Server], reply: Any, said: str, tmp_path: Path
) -> None:
    server = serve(reply)
    limit = 0.15 if reply == "hang" else 5.0
    (first, *_) = analyze([caption()], by(server, attempts=1, timeout_s=limit, cache=str(tmp_path)))
    assert isinstance(first, Phrase) and first.text == "a man in red" and said in first.analyzer
    assert first.analyzer.startswith("rules (m: ") and len(server.bodies) == 2
    assert not list(tmp_path.rglob("*.json"))  # a failure is not kept


def test_the_second_answer_counts(serve: Callable[..., Server]) -> None:
    server = serve("no idea", "Sure:\n```json\n" + GOOD + "\n```")
    (first, *_) = analyze([caption()], by(server))
    assert isinstance(first, Phrase) and first.analyzer == "m" and len(server.bodies) == 2


def test_answers_are_kept_by_caption_and_model(serve: Callable[..., Server], tmp_path: Path) -> None:
    server = serve(GOOD)
    captions = [caption(id="1"), caption(id="2"), caption("  a man in red   opens the door ", "3")]
    first = [p.text for p in analyze(captions, by(server, cache=str(tmp_path))) if isinstance(p, Phrase)]
    assert len(first) == 6 and len(server.bodies) == 1  # one text, asked once
    again = [p.text for p in analyze(captions, by(server, cache=str(tmp_path))) if isinstance(p, Phrase)]
    assert again == first and len(server.bodies) == 1
    list(analyze(captions, by(server, cache=str(tmp_path), model="n")))
    assert len(server.bodies) == 2  # another model has its own answers
    for path in tmp_path.rglob("*.json"):
        path.write_text('{"caption": "x"')
    list(analyze(captions, by(server, cache=str(tmp_path))))
    assert len(server.bodies) == 3  # damaged: asked again
    assert not list(tmp_path.rglob("*.part"))


def test_a_cache_that_cannot_be_written_says_so(serve: Callable[..., Server], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot keep phrases"):
        list(analyze([caption()], by(serve(GOOD), cache=str(tmp_path / "file"))))


def test_a_model_may_say_that_nothing_can_be_boxed(serve: Callable[..., Server]) -> None:
    server = serve('{"subject": "", "others": []}')
    (drop,) = analyze([caption("the music is loud near the house")], by(server))
    assert isinstance(drop, Drop) and drop.reason == "no-locatable-noun" and "m:" in drop.detail
    assert len(server.bodies) == 1


def test_order_is_kept_with_several_requests_at_a_time(serve: Callable[..., Server]) -> None:
    def answer(asked: str) -> str:
        name = asked.rstrip().rsplit("Caption: ", 1)[1].split(" runs")[0]
        time.sleep(0.03 if name.endswith("1") else 0)
        return json.dumps({"subject": name, "others": []})

    server = serve(answer)
    captions = [caption(f"dog number {chr(97 + k)}{k} runs", str(k)) for k in range(30)]
    out = list(analyze(captions, by(server, workers=6)))
    assert [p.caption.id for p in out if isinstance(p, Phrase)] == [str(k) for k in range(30)]
    assert all(isinstance(p, Phrase) and p.text in p.caption.text for p in out)


def test_a_dead_endpoint_stops_the_run(serve: Callable[..., Server]) -> None:
    server = serve((500, {}))
    captions = [caption(f"dog {k} runs", str(k)) for k in range(40)]
    out = []
    with pytest.raises(ModelError, match="10 captions in a row"):
        out += list(analyze(captions, by(server, attempts=1, give_up=10)))
    whole = list(analyze(captions, by(server, attempts=1, give_up=0)))
    assert len(whole) == 40 and all(isinstance(p, Phrase) and "HTTP status 500" in p.analyzer for p in whole)


def test_texts_that_are_no_captions_are_not_asked_about(serve: Callable[..., Server]) -> None:
    server = serve(GOOD)
    out = list(analyze([caption("..."), caption("x " * 3000, "b")], by(server)))
    assert [d.reason for d in out if isinstance(d, Drop)] == ["empty", "too-long"] and not server.bodies


def test_endpoints_that_make_no_sense() -> None:
    with pytest.raises(QueryError, match="at least once"):
        Endpoint("http://localhost/v1", "m", attempts=0)
    with pytest.raises(QueryError, match="starts with http"):
        make_finder(AnalyzerSettings(how="endpoint", url="localhost", model="m"))


def test_kept_answers_are_whole(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.json"
    assert kept_answer(path) is None
    keep_answer(path, {"x": "\u00e9"})
    assert kept_answer(path) == {"x": "\u00e9"}
    path.write_text("[1]")
    assert kept_answer(path) is None


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=120), st.text(max_size=200))
def test_any_answer_is_phrases_or_a_value_error(text: str, answer: str) -> None:
    try:
        phrases, subject = parse_answer(text, answer)
    except ValueError:
        return
    assert isinstance(subject, bool) and all(isinstance(p, str) and p for p in phrases)


@settings(max_examples=100, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.text(max_size=9) | st.integers(),
        lambda c: (
            st.lists(c, max_size=3)
            | st.dictionaries(st.sampled_from(["subject", "others", "x"]), c, max_size=3)
        ),
        max_leaves=8,
    )
)
def test_any_json_is_phrases_or_a_value_error(data: Any) -> None:
    try:
        phrases, _ = parse_answer(TEXT, json.dumps(data))
    except ValueError:
        return
    assert isinstance(phrases, tuple)


# --- transformers --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A causal LM with random weights and a tokenizer of words, with a chat template."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = [*sorted(set(prompt(TEXT).split())), "{", "}", '"subject"', "dog"]
    vocabulary = {word: k for k, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *dict.fromkeys(words)])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    )
    tokenizer.chat_template = "{% for m in messages %}<s> {{ m['content'] }}{% endfor %}"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
    )
    out = tmp_path_factory.mktemp("model")
    LlamaForCausalLM(config).save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out


def test_a_causal_model_is_asked_in_batches_and_its_prose_is_recorded(folder: Path) -> None:
    settings_ = AnalyzerSettings(
        how="transformers", model=str(folder), device="cpu", batch_size=2, max_new_tokens=4
    )
    captions = [caption(id="1"), caption("the dog runs", "2"), caption("a cat sits", "3")]
    out = list(analyze(captions, settings_))
    assert [p.text for p in out if isinstance(p, Phrase)] == ["a man in red", "the dog", "a cat"]
    assert all(isinstance(p, Phrase) and p.analyzer.startswith(f"rules ({folder}: ") for p in out)


def test_a_batch_does_not_change_what_a_model_writes(folder: Path) -> None:
    write = transformers_writer(str(folder), "cpu", 4)
    texts = [prompt(TEXT), prompt("the dog runs")]
    assert write(texts) == [*write(texts[:1]), *write(texts[1:])]  # padded on the left, masked
    (long,) = write(["dog " * 600])
    assert isinstance(long, ValueError) and "does not fit" in str(long)


def test_usable_answers_of_a_writer_are_taken(tmp_path: Path) -> None:
    asked: list[list[str]] = []

    def write(prompts: Sequence[str]) -> list[str | ValueError]:
        asked.append(list(prompts))
        return [GOOD if len(asked) == 2 or k else "hm" for k, _ in enumerate(prompts)]

    finder = LlmFinder(write, "lm", "lm", tmp_path)
    found = finder([TEXT, "the door opens for a man in red", TEXT])
    assert [f.analyzer for f in found] == ["lm"] * 3 and [len(batch) for batch in asked] == [2, 1]
    assert found[0].phrases == ("a man in red", "the door") and (finder.asked, finder.failed) == (2, 0)
    finder([TEXT])
    assert finder.kept == 1 and len(asked) == 2


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot load the text model"):
        make_finder(AnalyzerSettings(how="transformers", model=str(tmp_path / "none")))
