"""The stages as steps of a job (`tubelet.scale`): text in, text out, imported by worker processes themselves.

An item is a video. `analyze_step` takes its captions and gives phrases, `detect_step` takes phrases and gives their
boxes, `tube_step` takes phrases and gives samples (Annotator, Refiner and Filter in one). A value is JSON: one tagged
record, {"kind": "phrase" | "detected" | "sample" | "drop", "record": {...}}, or a list of them per caption.

A provider that fails on a video fails its item: the engine tries it again, then sets it aside with the reason, and
`retry_aside` takes it up later. A missing or broken video is a drop, because another try would see the same file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from typing import Any

from tubelet.config_io import from_dict
from tubelet.errors import ModelError, RecipeError
from tubelet.scale.job import Job, Report, Step
from tubelet.scale.ledger import Ledger
from tubelet.unistg.analyzer import analyze, make_finder
from tubelet.unistg.annotator import STAGE, annotate_file, load_annotator
from tubelet.unistg.filter import filter_records
from tubelet.unistg.recipe import UniSTGRecipe
from tubelet.unistg.records import Caption, Detected, Drop, Phrase, Refined, Sample
from tubelet.unistg.refiner import refine

_KINDS: dict[type, str] = {Phrase: "phrase", Detected: "detected", Sample: "sample", Drop: "drop"}


class ProviderError(ModelError):
    """A provider failed on one video."""


def analyze_step(recipe: Any) -> Step:
    """Stage 1: captions (JSON) of a video -> a list of phrases and drops (JSON) of each."""
    settings = from_dict(UniSTGRecipe, recipe).analyzer
    finder = None if settings.how == "rules" else make_finder(settings)

    def step(key: str, values: Sequence[Any]) -> list[str]:
        captions = [Caption.from_dict(json.loads(value)) for value in values]
        place = {caption.id: k for k, caption in enumerate(captions)}
        out: list[list[dict[str, Any]]] = [[] for _ in captions]
        for record in analyze(captions, settings, finder):
            name = record.key if isinstance(record, Drop) else record.caption.id
            out[place[name]].append(tagged(record))
        return [json.dumps(rows, ensure_ascii=False) for rows in out]

    return step


def detect_step(recipe: Any) -> Step:
    """Stage 2: phrases (JSON) of a video -> a Detected or a drop (JSON) of each."""
    chosen = from_dict(UniSTGRecipe, recipe)
    annotator = load_annotator(chosen.annotator)

    def step(key: str, values: Sequence[Any]) -> list[str]:
        phrases = [Phrase.from_dict(json.loads(value)) for value in values]
        found = _whole(annotate_file(phrases, chosen.videos, annotator))
        return [json.dumps(tagged(record), ensure_ascii=False) for record in found]

    return step


def tube_step(recipe: Any) -> Step:
    """Stages 2-4: what `analyze_step` gave of a video -> a list of samples and drops of each caption."""
    chosen = from_dict(UniSTGRecipe, recipe)
    annotator = load_annotator(chosen.annotator)

    def step(key: str, values: Sequence[Any]) -> list[str]:
        records = [[_untagged(row) for row in json.loads(value)] for value in values]
        phrases = [(k, r) for k, rows in enumerate(records) for r in rows if isinstance(r, Phrase)]
        out: list[list[Any]] = [[r for r in rows if isinstance(r, Drop)] for rows in records]
        found = _whole(annotate_file([p for _, p in phrases], chosen.videos, annotator))
        for (k, _), answer in zip(phrases, judged(found, chosen), strict=True):
            out[k].append(answer)
        return [json.dumps([tagged(r) for r in rows], ensure_ascii=False) for rows in out]

    return step


def judged(found: Iterable[Detected | Drop], recipe: UniSTGRecipe) -> list[Sample | Drop]:
    """Refiner and Filter over answers of the Annotator; one record each, in order."""
    refined: list[Refined | Drop] = [
        one if isinstance(one, Drop) else refine(one, recipe.refiner) for one in found
    ]
    answers = filter_records((one for one in refined if isinstance(one, Refined)), recipe)
    return [one if isinstance(one, Drop) else next(answers) for one in refined]


def aside_drop(key: str, reason: str | None) -> Drop:
    """The drop of something whose item was set aside; reason: as the ledger has it ("stage: class: words")."""
    _, _, said = (reason or "").partition(": ")
    name, _, words = said.partition(": ")
    failed = name == ProviderError.__name__
    return Drop(key, STAGE, "provider-failed" if failed else "set-aside", words if failed else reason or "")


def engine(name: str) -> Callable[[Job, Ledger, Report | None], None]:
    """What runs a job: "local" processes or "ray". RecipeError for another name, ModelError without the extra."""
    run: Callable[[Job, Ledger, Report | None], None]
    if name == "local":
        run = import_module("tubelet.scale.local").run_local
        return run
    if name != "ray":
        raise RecipeError(f"the engine is local or ray, got {name!r}")
    try:
        run = import_module("tubelet.scale.ray_engine").run_ray
    except ImportError as error:
        raise ModelError(
            f"the engine ray cannot be loaded ({error}): pip install 'tubelet[scale]'"
        ) from error
    return run


def tagged(record: Phrase | Detected | Sample | Drop) -> dict[str, Any]:
    return {"kind": _KINDS[type(record)], "record": record.to_dict()}


def _untagged(row: dict[str, Any]) -> Phrase | Drop:
    return Drop.from_dict(row["record"]) if row["kind"] == "drop" else Phrase.from_dict(row["record"])


def _whole(found: list[Detected | Drop]) -> list[Detected | Drop]:
    """The answers, unless the provider failed."""
    for answer in found:
        if isinstance(answer, Drop) and answer.reason == "provider-failed":
            raise ProviderError(answer.detail)
    return found
