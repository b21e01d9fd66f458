"""Each stage alone: a file of records in, a file of records out (JSON Lines, `records.py`), both readable by hand.

    run_analyzer(CaptionSource("jsonl", "captions.jsonl"), "phrases.jsonl", recipe)
    run_annotator("phrases.jsonl", "detected.jsonl", recipe, workers=2)
    run_refiner("detected.jsonl", "refined.jsonl", recipe)
    run_filter("refined.jsonl", "samples.jsonl", recipe)

Beside OUT.jsonl stand OUT.drops.jsonl (what was not kept: key, stage, reason, detail) and OUT.stage.json (counts of
this and all earlier stages, and their settings). A line that is no record of the stage before is a drop of stage
"input" that names the line ("broken-line"), as is a second record of one key ("duplicate-key"). The settings of
earlier stages are read from the .stage.json of the input, so that provenance says what was done and not what this
call's recipe would have done. Each file is written whole or not at all, OUT last.

The annotator takes long, so it is a job with a ledger (OUT.ledger.sqlite): killed, the same call with resume=True goes
on to the same bytes. The others stream: memory holds a batch, and 8 bytes per record.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from tubelet.config_io import to_dict
from tubelet.datasets.fields import RecordError
from tubelet.datasets.problems import Problems
from tubelet.datasets.reading import stream_jsonl
from tubelet.errors import DataError
from tubelet.scale.job import Job, Report, Stage
from tubelet.scale.ledger import Ledger, Part, open_ledger
from tubelet.unistg.analyzer import analyze
from tubelet.unistg.annotator import load_annotator, normal_video
from tubelet.unistg.captions import CaptionSource, read_captions
from tubelet.unistg.filter import filter_records
from tubelet.unistg.recipe import UniSTGRecipe
from tubelet.unistg.records import Detected, Drop, Phrase, Refined, Sample
from tubelet.unistg.refiner import refine
from tubelet.unistg.stage_files import (
    INPUT,
    BrokenLines,
    StageDone,
    as_it_was,
    make_folder,
    place_of,
    told_before,
    with_broken,
    write_stage,
)
from tubelet.unistg.steps import aside_drop, engine

T = TypeVar("T", Phrase, Detected, Refined)
_MAKER = {Phrase: "analyze", Detected: "annotate", Refined: "refine"}


def run_analyzer(source: CaptionSource, out: Path | str, recipe: UniSTGRecipe) -> StageDone:
    """Captions -> phrases. Raises DataError for a source that cannot be read, OutputError where nothing can be
    written, ModelError for an analyzer that is not there."""
    place = place_of(out, source.path)
    broken = BrokenLines()
    took = Counter[str]()

    def captions() -> Iterator[Any]:
        for record in read_captions(source, broken):
            took["records"] += 1
            yield record

    found = analyze(captions(), recipe.analyzer)
    return write_stage(place, "analyzer", with_broken(found, broken), broken, took, {}, recipe)


def run_refiner(path: Path | str, out: Path | str, recipe: UniSTGRecipe) -> StageDone:
    """Detected -> refined."""
    place, broken, took = place_of(out, path), BrokenLines(), Counter[str]()
    found = (
        one if isinstance(one, Drop) else refine(one, recipe.refiner)
        for one in read_records(Path(path), Detected, broken, took)
    )
    return write_stage(place, "refiner", with_broken(found, broken), broken, took, told_before(path), recipe)


def run_filter(path: Path | str, out: Path | str, recipe: UniSTGRecipe) -> StageDone:
    """Refined -> samples, as `unistg build` keeps them."""
    place, broken, took = place_of(out, path), BrokenLines(), Counter[str]()
    before = told_before(path)
    aside: list[Drop] = []

    def good() -> Iterator[Refined]:
        for one in read_records(Path(path), Refined, broken, took):
            if isinstance(one, Drop):
                aside.append(one)
            else:
                yield one

    def found() -> Iterator[Sample | Drop]:
        yield from filter_records(good(), as_it_was(recipe, before))
        yield from aside

    return write_stage(place, "filter", with_broken(found(), broken), broken, took, before, recipe)


def run_annotator(
    path: Path | str,
    out: Path | str,
    recipe: UniSTGRecipe,
    *,
    engine_name: str = "local",
    workers: int = 1,
    cpus: float = 1.0,
    gpus: float = 0.0,
    resume: bool = False,
    retry_aside: bool = False,
    report: Report | None = None,
) -> StageDone:
    """Phrases -> detected, video by video, written in the order of the phrases.

    cpus, gpus: what each worker reserves (`tubelet.scale.job.Stage`).
    resume: go on with the job beside OUT; retry_aside: try videos again that were set aside. Raises RecipeError for an
    annotator that is not there, DataError for a job of other phrases or settings or one that needs resume, OutputError
    where nothing can be written (make space, then resume).
    """
    path, place = Path(path), place_of(out, path)
    run = engine(engine_name)
    if recipe.annotator.provider != "files":
        load_annotator(recipe.annotator)  # a provider that is not there is said before any work
    make_folder(place)
    ledger_path = place.with_name(f"{place.stem}.ledger.sqlite")
    if ledger_path.exists() and not resume:
        raise DataError(
            f"{ledger_path} is a job that was begun: go on with --resume, or write to another file"
        )
    stage = Stage(
        "annotate", "tubelet.unistg.steps:detect_step", {"recipe": to_dict(recipe)}, workers, cpus, gpus
    )
    with open_ledger(ledger_path) as ledger:
        _fill(ledger, path, recipe)
        if retry_aside:
            ledger.retry_aside()
        run(Job("uni-stg annotate", (stage,)), ledger, report)
        broken = BrokenLines(int(ledger.meta("broken") or 0))
        took = Counter(records=int(ledger.meta("records") or 0))
        lost = Counter[str]()
        done = write_stage(
            place, "annotator", _results(ledger, lost), broken, took, told_before(path), recipe
        )
    return replace(done, aside=lost["aside"])


def read_records(
    path: Path, kind: type[T], broken: Problems, took: Counter[str] | None = None
) -> Iterator[T | Drop]:
    """Records of a file, each key once. Lines that are none go to `broken`; DataError when not one line is."""
    seen: set[bytes] = set()
    read = 0
    for item in stream_jsonl(path, broken):
        try:
            record = kind.from_dict(item.data)
        except DataError as error:
            broken.add(RecordError(item.file, item.where, "", str(error)))
            continue
        read += 1
        key = record.key if isinstance(record, Phrase) else _phrase(record).key
        short = hashlib.blake2b(key.encode("utf-8", "replace"), digest_size=8).digest()
        if short in seen:
            yield Drop(key, INPUT, "duplicate-key", f"{item.where}: the first of this key is kept")
            continue
        seen.add(short)
        yield record
    if took is not None:
        took["records"] += read
    if broken.count and not read:
        first = next(iter(broken.examples.values()))[0]
        raise DataError(
            f"{path} holds no records of `tubelet unistg {_MAKER[kind]}`, which are expected here: {first}"
        )


# --- parts ---------------------------------------------------------------------------------------------


def _phrase(record: Detected | Refined) -> Phrase:
    return record.phrase if isinstance(record, Detected) else record.detected.phrase


def _fill(ledger: Ledger, path: Path, recipe: UniSTGRecipe) -> None:
    """Phrases into the ledger, once; an item is a video, however its path is spelled."""
    try:
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    settings = recipe.decisive()["annotator"]
    identity = hashlib.sha256(json.dumps([content, settings], sort_keys=True).encode()).hexdigest()
    if ledger.meta("phrases") not in (None, identity):
        raise DataError(f"{ledger.path} is a job of other phrases or settings: write to another file")
    if ledger.meta("drops") is not None:
        return
    broken, took, drops = BrokenLines(), Counter[str](), list[Drop]()

    def parts() -> Iterator[tuple[str, Part]]:
        for place, one in enumerate(read_records(path, Phrase, broken, took)):
            if isinstance(one, Drop):
                drops.append(one)
                continue
            video = normal_video(one.caption.video, recipe.videos)
            plain = replace(one, caption=replace(one.caption, video=video))
            yield video, Part(place, one.key, json.dumps(plain.to_dict(), ensure_ascii=False))

    ledger.fill(parts())
    for name, value in (("phrases", identity), ("broken", broken.count), ("records", took["records"])):
        ledger.set_meta(name, str(value))
    ledger.set_meta("drops", json.dumps([d.to_dict() for d in [*broken.take(), *drops]]))


def _results(ledger: Ledger, lost: Counter[str]) -> Iterator[Drop | Mapping[str, Any]]:
    for row in json.loads(ledger.meta("drops") or "[]"):
        yield Drop.from_dict(row)
    for _, payload, result, reason in ledger.results(in_order=True):
        if result is None:
            lost["aside"] += 1
            yield aside_drop(Phrase.from_dict(json.loads(payload)).key, reason)
            continue
        row = json.loads(result)
        yield Drop.from_dict(row["record"]) if row["kind"] == "drop" else row["record"]
