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
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from tubelet.benchmarks.run_folder import write_whole
from tubelet.config_io import from_dict, to_dict
from tubelet.datasets.fields import RecordError
from tubelet.datasets.problems import Problems
from tubelet.datasets.reading import stream_jsonl
from tubelet.errors import DataError, OutputError, RecipeError
from tubelet.scale.job import Job, Report, Stage
from tubelet.scale.ledger import Ledger, Part, open_ledger
from tubelet.unistg.analyzer import AnalyzerSettings, analyze
from tubelet.unistg.annotator import load_annotator, normal_video
from tubelet.unistg.captions import CaptionSource, read_captions
from tubelet.unistg.filter import filter_records
from tubelet.unistg.recipe import AnnotatorSettings, RefinerSettings, UniSTGRecipe
from tubelet.unistg.records import Detected, Drop, Phrase, Refined, Sample
from tubelet.unistg.refiner import refine
from tubelet.unistg.rows import write_lines
from tubelet.unistg.steps import aside_drop, engine

INPUT = "input"
T = TypeVar("T", Phrase, Detected, Refined)
_MAKER = {Phrase: "analyze", Detected: "annotate", Refined: "refine"}
_SETTINGS = {"analyzer": AnalyzerSettings, "annotator": AnnotatorSettings, "refiner": RefinerSettings}


@dataclass(frozen=True, slots=True)
class StageDone:
    """What a stage did. took: records (and broken lines) read; gave: records written; reasons: of the drops.

    broken: lines that were no records. aside: phrases whose video was set aside (its provider failed, a worker died).
    """

    out: Path
    took: int
    gave: int
    reasons: Mapping[str, int]
    broken: int
    aside: int = 0

    @property
    def dropped(self) -> int:
        return sum(self.reasons.values())


def run_analyzer(source: CaptionSource, out: Path | str, recipe: UniSTGRecipe) -> StageDone:
    """Captions -> phrases. Raises DataError for a source that cannot be read, OutputError where nothing can be
    written, ModelError for an analyzer that is not there."""
    place = _place(out, source.path)
    broken = _Broken()
    took = Counter[str]()

    def captions() -> Iterator[Any]:
        for record in read_captions(source, broken):
            took["records"] += 1
            yield record

    found = analyze(captions(), recipe.analyzer)
    return _write(place, "analyzer", _with_broken(found, broken), broken, took, {}, recipe)


def run_refiner(path: Path | str, out: Path | str, recipe: UniSTGRecipe) -> StageDone:
    """Detected -> refined."""
    place, broken, took = _place(out, path), _Broken(), Counter[str]()
    found = (
        one if isinstance(one, Drop) else refine(one, recipe.refiner)
        for one in read_records(Path(path), Detected, broken, took)
    )
    return _write(place, "refiner", _with_broken(found, broken), broken, took, _before(path), recipe)


def run_filter(path: Path | str, out: Path | str, recipe: UniSTGRecipe) -> StageDone:
    """Refined -> samples, as `unistg build` keeps them."""
    place, broken, took = _place(out, path), _Broken(), Counter[str]()
    before = _before(path)
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

    return _write(place, "filter", _with_broken(found(), broken), broken, took, before, recipe)


def run_annotator(
    path: Path | str,
    out: Path | str,
    recipe: UniSTGRecipe,
    *,
    engine_name: str = "local",
    workers: int = 1,
    resume: bool = False,
    retry_aside: bool = False,
    report: Report | None = None,
) -> StageDone:
    """Phrases -> detected, video by video, written in the order of the phrases.

    resume: go on with the job beside OUT; retry_aside: try videos again that were set aside. Raises RecipeError for an
    annotator that is not there, DataError for a job of other phrases or settings or one that needs resume, OutputError
    where nothing can be written (make space, then resume).
    """
    path, place = Path(path), _place(out, path)
    run = engine(engine_name)
    if recipe.annotator.provider != "files":
        load_annotator(recipe.annotator)  # a provider that is not there is said before any work
    _make_folder(place)
    ledger_path = place.with_name(f"{place.stem}.ledger.sqlite")
    if ledger_path.exists() and not resume:
        raise DataError(
            f"{ledger_path} is a job that was begun: go on with --resume, or write to another file"
        )
    stage = Stage("annotate", "tubelet.unistg.steps:detect_step", {"recipe": to_dict(recipe)}, workers)
    with open_ledger(ledger_path) as ledger:
        _fill(ledger, path, recipe)
        if retry_aside:
            ledger.retry_aside()
        run(Job("uni-stg annotate", (stage,)), ledger, report)
        broken = _Broken(int(ledger.meta("broken") or 0))
        took = Counter(records=int(ledger.meta("records") or 0))
        lost = Counter[str]()
        done = _write(place, "annotator", _results(ledger, lost), broken, took, _before(path), recipe)
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


def as_it_was(recipe: UniSTGRecipe, before: Mapping[str, Any]) -> UniSTGRecipe:
    """The recipe with the settings that earlier stages were run with (of a .stage.json)."""
    known: dict[str, Any] = {
        name: from_dict(kind, before["settings"][name], name)
        for name, kind in _SETTINGS.items()
        if name in before.get("settings", {})
    }
    return replace(recipe, **known)


# --- parts ---------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Broken(Problems):
    """Problems that become drops. waiting: those that are not written yet."""

    waiting: list[Drop] = field(default_factory=list)

    def add(self, error: RecordError) -> None:
        Problems.add(self, error)
        what = f"field {error.field}: {error.reason}" if error.field else error.reason
        name = Path(error.file).name  # files hold no machine's paths
        self.waiting.append(Drop(f"{name}, {error.where}", INPUT, "broken-line", what[:300]))

    def take(self) -> list[Drop]:
        out, self.waiting = self.waiting, []
        return out


def _with_broken(records: Iterable[Any], broken: _Broken) -> Iterator[Any]:
    for record in records:
        yield from broken.take()
        yield record
    yield from broken.take()


def _phrase(record: Detected | Refined) -> Phrase:
    return record.phrase if isinstance(record, Detected) else record.detected.phrase


def _write(
    out: Path,
    stage: str,
    records: Iterable[Any],
    broken: Problems,
    took: Counter[str],
    before: Mapping[str, Any],
    recipe: UniSTGRecipe,
) -> StageDone:
    """Records (with to_dict, or plain) to OUT and drops beside it, then the counts; OUT appears last."""
    reasons: Counter[str] = Counter()
    drops = out.with_name(f"{out.stem}.drops.jsonl")
    part, drops_part = (p.with_name(f".{p.name}.{os.getpid()}.half") for p in (out, drops))
    _make_folder(out)
    try:
        with drops_part.open("w", encoding="utf-8") as file:

            def kept() -> Iterator[Mapping[str, Any]]:
                for record in records:
                    if isinstance(record, Drop):
                        reasons[f"{record.stage}: {record.reason}"] += 1
                        file.write(json.dumps(record.to_dict(), ensure_ascii=False) + "\n")
                    else:
                        yield record if isinstance(record, Mapping) else record.to_dict()

            gave = write_lines(kept(), part)
        counts = {
            "stage": stage,
            "took": took["records"] + broken.count,
            "gave": gave,
            "dropped": dict(sorted(reasons.items())),
        }
        settings = {**before.get("settings", {}), stage: recipe.decisive()[stage]}
        told = {"stages": [*before.get("stages", []), counts], "settings": settings}
        drops_part.replace(drops)
        write_whole(_told_path(out), json.dumps(told, indent=1, ensure_ascii=False) + "\n")
        part.replace(out)
    except OSError as error:
        raise OutputError(f"cannot write {out}: {error.strerror or error}") from error
    finally:
        for path in (part, drops_part):
            with suppress(OSError):
                path.unlink(missing_ok=True)
    return StageDone(out, int(counts["took"]), gave, counts["dropped"], broken.count)  # type: ignore[arg-type, call-overload]


def _before(path: Path | str) -> dict[str, Any]:
    """What the stage that wrote this file said of itself; nothing where there is no such file."""
    told = _told_path(Path(path))
    try:
        data = json.loads(told.read_text(encoding="utf-8"))
        as_it_was(UniSTGRecipe(), data)
        if not isinstance(data["stages"], list):
            raise TypeError("stages are a list")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, RecipeError) as error:
        raise DataError(
            f"{told} does not say how {Path(path).name} was made ({error!s:.120}): remove it"
        ) from error
    return dict(data)


def _told_path(path: Path) -> Path:
    return path.with_name(f"{path.stem}.stage.json")


def _place(out: Path | str, path: Path | str) -> Path:
    place = Path(out)
    if place.suffix != ".jsonl":
        raise OutputError(
            f"records are written as JSON Lines: a name that ends in .jsonl, got {place.name!r}"
        )
    if place.absolute() == Path(path).absolute():
        raise OutputError(f"{place} is what is read: write to another file")
    return place


def _make_folder(out: Path) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {out}: {error.strerror or error}") from error


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
    broken, took, drops = _Broken(), Counter[str](), list[Drop]()

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
