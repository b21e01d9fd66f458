"""Phrases of a caption by a text LLM: a causal LM through transformers, or an OpenAI-compatible endpoint.

The model is given an instruction and a JSON schema, and answers {"subject": "...", "others": ["..."]}. What cannot be
used (prose, broken JSON, things that the caption does not speak of) is asked once more; then the rules answer, and
`Found.analyzer` says so. Usable answers are kept on disk by instruction, model and caption, so that an interrupted
build pays for no answer twice; failures are not kept.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tubelet.endpoint import Endpoint, ask_endpoint, keep_answer, kept_answer, kept_path
from tubelet.errors import ModelError
from tubelet.unistg.analyzer import Found, by_rules
from tubelet.unistg.analyzer_rules import MOST_CHARACTERS

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "subject": {"type": "string"},
        "others": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["subject", "others"],
    "additionalProperties": False,
}
"""What an answer must be."""

INSTRUCTION = """A caption describes a moment of a video. Name the things in it that one could draw a box around.
"subject": who or what the caption is about, as a short noun phrase with its looks and clothes but without what it does.
"others": the other visible people, animals and objects of the caption, in order, each a short noun phrase.
Replace pronouns by what they stand for ("the man", "the woman", "the person"). Leave out the camera, the scene, times,
sounds, feelings and rooms. Use "" as the subject where nothing can be boxed. Answer with JSON only.
Caption: a man in a red hat opens the door and walks out of the room
{"subject": "a man in a red hat", "others": ["the door"]}
Caption: she takes the cup off the table
{"subject": "the woman", "others": ["the cup", "the table"]}
Caption: we see the dog for the first time
{"subject": "the dog", "others": []}
Caption: the camera zooms out
{"subject": "", "others": []}
Caption: """
_VERSION = 1
_MOST_PHRASES = 30
_WORD = re.compile(r"[^\W\d_]+")
_STANDS_FOR = frozenset(
    ["person", "people", "man", "woman", "men", "women", "boy", "girl", "child", "someone"]
)
_EMPTY_WORDS = frozenset(["a", "an", "the", "of", "in", "on", "with", "and", "to", "is", "at"])

Writer = Callable[[Sequence[str]], list[str | ValueError]]
"""Prompts to answers, in order; a ValueError where one could not be had."""


class LlmFinder:
    """Texts to Found by `writer`, with one retry, the disk cache and the recorded fallback (analyzer.Finder).

    name: as it is recorded. key: what makes its answers its own (url, folder). give_up: see AnalyzerSettings.
    asked, kept, failed: captions so far.
    """

    def __init__(
        self, writer: Writer, name: str, key: str, cache: Path | None = None, give_up: int = 50
    ) -> None:
        self.writer, self.name, self.key, self.cache, self.give_up = writer, name, key, cache, give_up
        self.asked = self.kept = self.failed = 0
        self._in_a_row = 0

    def __call__(self, texts: list[str]) -> list[Found]:
        done: dict[str, Found] = {}
        plain = [" ".join(text.split()) for text in texts]
        for text in dict.fromkeys(plain):
            if not _WORD.search(text) or len(text) > MOST_CHARACTERS:
                done[text] = by_rules(text)  # empty, or no caption: nothing to ask about
            elif (known := self._read(text)) is not None:
                done[text] = known
                self.kept += 1
        for round_ in range(2):
            open_ = [text for text in dict.fromkeys(plain) if text not in done]
            if not open_:
                break
            if not round_:
                self.asked += len(open_)
            for text, answer in zip(open_, self.writer([prompt(text) for text in open_]), strict=True):
                try:
                    if isinstance(answer, ValueError):
                        raise answer
                    phrases, subject = parse_answer(text, answer)
                except ValueError as error:
                    if round_:
                        done[text] = self._failed(text, error)
                    continue
                self._in_a_row = 0
                done[text] = Found(phrases, subject, self.name, "" if phrases else "no-locatable-noun")
                self._keep(text, phrases, subject)
        return [done[text] for text in plain]

    def _failed(self, text: str, error: ValueError) -> Found:
        self.failed += 1
        self._in_a_row += 1
        if self.give_up and self._in_a_row >= self.give_up:
            raise ModelError(
                f"{self.name} gave no usable answer for {self._in_a_row} captions in a row (last: {error}); answers so "
                "far are kept where a cache is set: put it right and run again, or analyze by rules"
            ) from error
        return by_rules(text, why=f"{self.name}: {error!s:.120}")

    def _path(self, text: str) -> Path | None:
        if self.cache is None:
            return None
        path = kept_path(self.cache, [_VERSION, INSTRUCTION, self.key, text])
        return path.parent / path.name[:2] / path.name  # a folder of a million files is slow to list

    def _read(self, text: str) -> Found | None:
        path = self._path(text)
        data = None if path is None else kept_answer(path)
        if data is None or data.get("caption") != text:
            return None
        try:
            phrases, subject = parse_answer(text, json.dumps(data.get("answer")))
        except ValueError:
            return None  # damaged, or of looser rules: asked again
        return Found(phrases, subject, self.name, "" if phrases else "no-locatable-noun")

    def _keep(self, text: str, phrases: tuple[str, ...], subject: bool) -> None:
        path = self._path(text)
        if path is not None:
            answer = {
                "subject": phrases[0] if subject else "",
                "others": list(phrases[1:] if subject else phrases),
            }
            keep_answer(path, {"caption": text, "model": self.name, "answer": answer}, "phrases")


def prompt(text: str) -> str:
    """What the model is asked about a caption."""
    return f"{INSTRUCTION}{' '.join(text.split())}\n"


def parse_answer(text: str, answer: str) -> tuple[tuple[str, ...], bool]:
    """(phrases, is the first the subject) of a model's answer. ValueError for everything that cannot be used."""
    start = answer.find("{")
    if start < 0:
        raise ValueError("no JSON in the answer")
    try:
        data, _ = json.JSONDecoder().raw_decode(answer[start:])
    except (ValueError, RecursionError):
        raise ValueError("broken JSON in the answer") from None
    if not isinstance(data, dict) or not isinstance(data.get("subject"), str):
        raise ValueError('no text under "subject"')
    others = data.get("others", [])
    if not isinstance(others, list) or not all(isinstance(other, str) for other in others):
        raise ValueError('no list of texts under "others"')
    if len(others) > _MOST_PHRASES:
        raise ValueError(f"{len(others)} things in one caption")
    spoken = {word for word in _WORD.findall(text.lower()) if word not in _EMPTY_WORDS}
    spoken |= (
        {word[:-1] for word in spoken if word.endswith("s")} | {f"{word}s" for word in spoken} | _STANDS_FOR
    )
    phrases: dict[str, None] = {}
    for phrase in (data["subject"], *others):
        plain = " ".join(phrase.lower().split()).strip(" .,;:\"'")
        if not plain:
            continue
        if len(plain) > len(text) + 20:
            raise ValueError("a phrase is longer than its caption")
        if spoken.isdisjoint(_WORD.findall(plain)):
            raise ValueError(f"the caption does not speak of {plain[:40]!r}")
        phrases[plain] = None
    return tuple(phrases), bool(data["subject"].strip(" .,;:\"'\t\n"))


# --- who writes ----------------------------------------------------------------------------------------


def endpoint_writer(endpoint: Endpoint, workers: int = 4, max_tokens: int = 200) -> Writer:
    """Answers of a server, `workers` requests at a time."""

    def one(text: str) -> str | ValueError:
        try:
            return ask_endpoint(endpoint, text, SCHEMA, "phrases", max_tokens)
        except ValueError as error:
            return error

    def write(prompts: Sequence[str]) -> list[str | ValueError]:
        with ThreadPoolExecutor(max_workers=max(1, min(workers, len(prompts)))) as pool:
            return list(pool.map(one, prompts))

    return write


def transformers_writer(model: str, device: str = "auto", max_new_tokens: int = 200) -> Writer:
    """Answers of a causal LM (folder or hub id), greedy, one batch per call. Raises ModelError when it cannot load."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    try:
        tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
        loaded = AutoModelForCausalLM.from_pretrained(
            model, dtype=torch.float32 if where == "cpu" else torch.bfloat16
        )
        loaded = loaded.to(where).eval()
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(f"cannot load the text model {model!r}: {error!s:.300}") from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    chat = getattr(tokenizer, "chat_template", None) is not None

    def write(prompts: Sequence[str]) -> list[str | ValueError]:
        rendered = [_rendered(tokenizer, text) for text in prompts] if chat else list(prompts)
        batch = tokenizer(rendered, return_tensors="pt", padding=True, add_special_tokens=not chat)
        ids, mask = batch["input_ids"].to(where), batch["attention_mask"].to(where)
        most = getattr(loaded.config, "max_position_embeddings", None)
        if most is not None and ids.shape[1] + max_new_tokens > most:
            reason = f"the prompt of {ids.shape[1]} tokens does not fit into {most}"
            return [ValueError(reason) for _ in prompts]
        with torch.inference_mode():
            out = loaded.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                pad_token_id=tokenizer.pad_token_id,
            )
        return list(tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True))

    return write


def _rendered(tokenizer: Any, text: str) -> str:
    messages = [{"role": "user", "content": text}]
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
