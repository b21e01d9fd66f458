"""Analyzer, the first stage of Uni-STG: captions in, locatable phrases out, subject first (SpaceVLLM, Uni-STG data).

    for record in analyze(captions, AnalyzerSettings()):            # rules: no model
        ...                                                         # Phrase or Drop, in the order of the captions
    analyze(captions, AnalyzerSettings(how="transformers", model="Qwen/Qwen2.5-7B-Instruct"))
    analyze(captions, AnalyzerSettings(how="endpoint", url="http://localhost:8000/v1", model="qwen", cache="answers"))

Every caption gives at least one record: its phrases, or one Drop of stage "analyzer" whose reason is

    empty               no word in it            not-english          letters that the rules do not know
    too-long            more than 4,000 letters  no-noun              nothing in it is a thing
    no-locatable-noun   only "the camera", "the scene", "something", ...
    no-subject          things, but none of them is what it is about (with keep = "subject")

`Phrase.analyzer` says who found it: "rules", the model's name, or "rules (MODEL: why it could not be used)" where a
model was asked and the rules answered. Drops in the input (of captions.py) go through unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from tubelet.errors import RecipeError
from tubelet.unistg.analyzer_rules import phrases_by_rules
from tubelet.unistg.records import Caption, Drop, Phrase

STAGE = "analyzer"
WAYS = ("rules", "transformers", "endpoint")


@dataclass(frozen=True, slots=True)
class AnalyzerSettings:
    """How phrases are found.

    how: "rules", "transformers" (a causal LM) or "endpoint" (an OpenAI-compatible server).
    keep: "subject" (one phrase per caption, as the paper's samples have) or "all". most_phrases: of one caption.
    pronouns: "he" is "the man", "takes a knife" is about "the person" (rules only).
    model: folder or hub id for transformers, its name at the endpoint. url: of the endpoint, with the version.
    cache: folder for answers of models ("": none). batch_size: captions per forward. workers: requests at a time.
    give_up: captions in a row without a usable answer after which the run stops with a ModelError (0: never).
    key_variable, timeout_s, attempts, pause_s, longest_pause_s: see `tubelet.endpoint.Endpoint`.
    """

    how: str = "rules"
    keep: str = "subject"
    most_phrases: int = 8
    pronouns: bool = True
    model: str = ""
    url: str = ""
    cache: str = ""
    batch_size: int = 16
    workers: int = 4
    device: str = "auto"
    max_new_tokens: int = 200
    give_up: int = 50
    key_variable: str = "OPENAI_API_KEY"
    timeout_s: float = 60.0
    attempts: int = 5
    pause_s: float = 1.0
    longest_pause_s: float = 60.0

    def __post_init__(self) -> None:
        if self.how not in WAYS:
            raise RecipeError(f"an analyzer works by {', '.join(WAYS)}; got {self.how!r}")
        if self.keep not in ("subject", "all"):
            raise RecipeError(f'an analyzer keeps "subject" or "all" phrases, got {self.keep!r}')
        if self.how != "rules" and not self.model:
            raise RecipeError(f"analyzer how = {self.how!r} needs the name of a model")
        if self.how == "endpoint" and not self.url:
            raise RecipeError('analyzer how = "endpoint" needs a url, for example http://localhost:8000/v1')
        for name in ("most_phrases", "batch_size", "workers", "max_new_tokens", "attempts"):
            if getattr(self, name) < 1:
                raise RecipeError(f"analyzer {name} is at least 1, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class Found:
    """What a caption holds: phrases (subject first where `subject`), who found them, and why there are none."""

    phrases: tuple[str, ...]
    subject: bool
    analyzer: str
    reason: str = ""


Finder = Callable[[list[str]], list[Found]]
"""Texts to one Found each."""


def analyze(
    captions: Iterable[Caption | Drop],
    settings: AnalyzerSettings = AnalyzerSettings(),
    finder: Finder | None = None,
) -> Iterator[Phrase | Drop]:
    """Phrases and drops of captions, lazily, in their order.

    finder: instead of the one that the settings describe (`make_finder`). Raises ModelError where a model cannot be
    loaded or `give_up` captions in a row had no usable answer, OutputError where the cache cannot be written.
    """
    if finder is None and settings.how == "rules":
        for caption in captions:
            if isinstance(caption, Drop):
                yield caption
                continue
            phrases, subject, reason = phrases_by_rules(caption.text, settings.pronouns)
            yield from _records(caption, Found(phrases, subject, "rules", reason), settings)
        return
    find = finder or make_finder(settings)
    size = settings.batch_size if settings.how == "transformers" else settings.workers * 4
    stream = iter(captions)
    while batch := list(islice(stream, size)):
        found = iter(find([caption.text for caption in batch if isinstance(caption, Caption)]))
        for caption in batch:
            if isinstance(caption, Drop):
                yield caption
            else:
                yield from _records(caption, next(found), settings)


def make_finder(settings: AnalyzerSettings) -> Finder:
    """Who finds phrases by these settings. Loads the model of how = "transformers" (ModelError where it cannot)."""
    if settings.how == "rules":
        return lambda texts: [by_rules(text, settings.pronouns) for text in texts]
    from tubelet.unistg.analyzer_llm import LlmFinder, endpoint_writer, transformers_writer

    cache = Path(settings.cache).expanduser() if settings.cache else None
    if settings.how == "transformers":
        writer = transformers_writer(settings.model, settings.device, settings.max_new_tokens)
        return LlmFinder(writer, settings.model, f"transformers|{settings.model}", cache, settings.give_up)
    from tubelet.endpoint import Endpoint

    endpoint = Endpoint(
        settings.url,
        settings.model,
        settings.key_variable,
        settings.timeout_s,
        settings.attempts,
        settings.pause_s,
        settings.longest_pause_s,
    )
    writer = endpoint_writer(endpoint, settings.workers, settings.max_new_tokens)
    return LlmFinder(writer, settings.model, f"{settings.url}|{settings.model}", cache, settings.give_up)


def by_rules(text: str, pronouns: bool = True, why: str = "") -> Found:
    """Found by rules. why: what happened to the model that was asked before."""
    phrases, subject, reason = phrases_by_rules(text, pronouns)
    return Found(phrases, subject, f"rules ({why})" if why else "rules", reason)


def _records(caption: Caption, found: Found, settings: AnalyzerSettings) -> Iterator[Phrase | Drop]:
    if not found.phrases:
        detail = (
            f"{caption.text:.200}" if found.analyzer == "rules" else f"{found.analyzer}: {caption.text:.200}"
        )
        yield Drop(caption.id, STAGE, found.reason or "no-locatable-noun", detail)
    elif settings.keep == "subject":
        if found.subject:
            yield Phrase(caption, found.phrases[0], True, found.analyzer)
        else:
            yield Drop(caption.id, STAGE, "no-subject", f"{caption.text:.200}")
    else:
        for k, text in enumerate(found.phrases[: settings.most_phrases]):
            yield Phrase(caption, text, found.subject and k == 0, found.analyzer)
