"""The whole chain as a resumable job: captions in, a folder with samples, drops, funnel and card out.

    OUT/ledger.sqlite     what is done (`tubelet.scale.ledger`); an item is a video, a part one caption of it
    OUT/samples.jsonl     kept samples with provenance, in the order of the captions (samples.parquet: format parquet)
    OUT/drops.jsonl       what was not kept: key, stage, reason, detail
    OUT/funnel.json       counts of every stage and reason; thresholds; hashes
    OUT/README.md         the dataset card

Killed at any moment, the same call with resume=True goes on; the four outputs hold no times and no machine, are
written whole when all items are done, and are byte-identical to those of an uninterrupted run.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from tubelet.benchmarks.run_folder import write_whole
from tubelet.config_io import from_dict, to_dict
from tubelet.datasets.problems import Problems
from tubelet.datasets.reading import stream_jsonl
from tubelet.errors import DataError, ModelError, OutputError, RecipeError
from tubelet.scale.job import Job, Report, Stage, Step
from tubelet.scale.ledger import Ledger, Part, open_ledger
from tubelet.unistg.analyzer import analyze, make_finder
from tubelet.unistg.annotator import annotate_file, load_annotator
from tubelet.unistg.captions import read_captions
from tubelet.unistg.filter import filter_records
from tubelet.unistg.recipe import UniSTGRecipe
from tubelet.unistg.records import Caption, Detected, Drop, Phrase, Refined, Sample
from tubelet.unistg.refiner import refine
from tubelet.unistg.rows import write_lines, write_parquet

LEDGER, SAMPLES, DROPS, FUNNEL, CARD = (
    "ledger.sqlite",
    "samples.jsonl",
    "drops.jsonl",
    "funnel.json",
    "README.md",
)
_FILLED = "filled"
_COLUMNS = {
    **dict.fromkeys(("id", "task", "video", "sentence"), "string"),
    **dict.fromkeys(("start_s", "end_s"), "float64"),
    "times_s": "list<float64>",
    "boxes_xyxy": "list<list<float64>>",
    "score": "float64",
    "provenance": "string",
}
STAGES = ("captions", "analyzer", "annotator", "refiner", "filter")


@dataclass(frozen=True, slots=True)
class Built:
    """What `build` made. aside: captions whose video was set aside by the engine (a worker died, a lease ran out)."""

    folder: Path
    kept: int
    dropped: int
    aside: int


def build(
    recipe: UniSTGRecipe,
    out: Path | str,
    *,
    engine: str = "local",
    workers: int = 1,
    resume: bool = False,
    report: Report | None = None,
) -> Built:
    """Run a recipe. Raises RecipeError for one that cannot run, DataError for a folder of another recipe or one that
    needs resume, OutputError where nothing can be written (make space, then resume)."""
    if not recipe.sources:
        raise RecipeError(
            "a Uni-STG recipe names its captions: sources: [{kind: jsonl, path: captions.jsonl}]"
        )
    run = _engine(engine)
    if recipe.annotator.provider != "files":
        load_annotator(recipe.annotator)  # a provider that is not there is said before any work
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make {folder}: {error.strerror or error}") from error
    if (folder / LEDGER).exists() and not resume:
        raise DataError(f"{folder} holds a build already: go on with --resume, or give another folder")
    options = {"recipe": to_dict(recipe)}
    job = Job(
        "uni-stg",
        (
            Stage("analyze", "tubelet.unistg.build:analyze_step", options),
            Stage("annotate", "tubelet.unistg.build:annotate_step", options, workers=workers),
        ),
    )
    with open_ledger(folder / LEDGER) as ledger:
        _fill(ledger, recipe)
        run(job, ledger, report)
        return write_outputs(ledger, recipe, folder)


def analyze_step(recipe: Any) -> Step:
    """Stage 1: captions (JSON) of a video -> phrases and drops (JSON) of each."""
    settings = from_dict(UniSTGRecipe, recipe).analyzer
    finder = None if settings.how == "rules" else make_finder(settings)

    def step(key: str, values: Sequence[Any]) -> list[str]:
        captions = [Caption.from_dict(json.loads(value)) for value in values]
        place = {caption.id: k for k, caption in enumerate(captions)}
        out: list[list[dict[str, Any]]] = [[] for _ in captions]
        for record in analyze(captions, settings, finder):
            name = record.key if isinstance(record, Drop) else record.caption.id
            out[place[name]].append(_tagged(record))
        return [json.dumps(rows, ensure_ascii=False) for rows in out]

    return step


def annotate_step(recipe: Any) -> Step:
    """Stages 2-4: phrases of a video -> samples and drops of each caption."""
    chosen = from_dict(UniSTGRecipe, recipe)
    annotator = load_annotator(chosen.annotator)

    def step(key: str, values: Sequence[Any]) -> list[str]:
        records = [[_untagged(row) for row in json.loads(value)] for value in values]
        phrases = [(k, r) for k, rows in enumerate(records) for r in rows if isinstance(r, Phrase)]
        out: list[list[Any]] = [[r for r in rows if isinstance(r, Drop)] for rows in records]
        found = annotate_file([p for _, p in phrases], chosen.videos, annotator)
        for (k, _), answer in zip(phrases, found, strict=True):
            out[k] += judge_one(answer, chosen)
        return [json.dumps([_tagged(r) for r in rows], ensure_ascii=False) for rows in out]

    return step


def judge_one(record: Detected | Drop, recipe: UniSTGRecipe) -> list[Sample | Drop]:
    """Refiner and Filter over one answer of the Annotator."""
    refined: Refined | Drop = record if isinstance(record, Drop) else refine(record, recipe.refiner)
    return [refined] if isinstance(refined, Drop) else list(filter_records([refined], recipe))


def write_outputs(ledger: Ledger, recipe: UniSTGRecipe, folder: Path) -> Built:
    """Samples, drops, funnel and card of a ledger whose items are all done or set aside."""
    drops: list[Drop] = [Drop.from_dict(row) for row in json.loads(ledger.meta("drops") or "[]")]
    before = Counter(d.stage for d in drops)
    aside, kept = 0, 0
    digest = hashlib.sha256()
    sources: Counter[str] = Counter()

    def samples() -> Iterator[dict[str, Any]]:
        nonlocal aside, kept
        for _, payload, result, reason in ledger.results(in_order=True):
            if result is None:
                aside += 1
                drops.append(
                    Drop(Caption.from_dict(json.loads(payload)).id, "annotator", "set-aside", reason or "")
                )
                continue
            for row in json.loads(result):
                if row["kind"] == "drop":
                    drops.append(Drop.from_dict(row["record"]))
                    continue
                kept += 1
                sources[str(row["record"]["provenance"]["source"])] += 1
                digest.update(json.dumps(row["record"], sort_keys=True).encode())
                yield row["record"]

    write_lines(samples(), folder / SAMPLES)
    if recipe.format in ("parquet", "both"):
        flat = (_flat(item.data) for item in stream_jsonl(folder / SAMPLES, "raise"))
        write_parquet(flat, folder / "samples.parquet", _COLUMNS)
    write_lines((d.to_dict() for d in drops), folder / DROPS)
    reasons = Counter(f"{d.stage}: {d.reason}" for d in drops)
    by_stage = Counter(d.stage for d in drops)
    left = kept + len(drops)
    stages = {}
    for stage in (*sorted(set(by_stage) - set(STAGES)), *STAGES):
        stages[stage] = {"took": left, "dropped": by_stage[stage], "kept": left - by_stage[stage]}
        left -= by_stage[stage]
    funnel = {
        "records": kept + len(drops),
        "kept": kept,
        "dropped": len(drops),
        "dropped_before_job": sum(before.values()),
        "broken_lines": int(ledger.meta("broken") or 0),
        "stages": stages,
        "reasons": dict(sorted(reasons.items())),
        "sources": dict(sorted(sources.items())),
        "thresholds": recipe.thresholds(),
        "recipe": recipe.digest(),
        "samples_sha256": digest.hexdigest(),
    }
    write_whole(folder / FUNNEL, json.dumps(funnel, indent=1, ensure_ascii=False) + "\n")
    write_whole(folder / CARD, card(recipe, funnel))
    return Built(folder, kept, len(drops), aside)


def card(recipe: UniSTGRecipe, funnel: dict[str, Any]) -> str:
    """The dataset card (Markdown with the front matter that dataset hubs read)."""
    rows = "\n".join(
        f"| {name} | {s['took']:,} | {s['kept']:,} | {s['dropped']:,} |"
        for name, s in funnel["stages"].items()
    )
    reasons = (
        "\n".join(f"| {name} | {count:,} |" for name, count in funnel["reasons"].items()) or "| none | 0 |"
    )
    numbers = "\n".join(f"| {name} | {value} |" for name, value in funnel["thresholds"].items())
    return f"""---
pretty_name: {recipe.name}
configs:
- config_name: default
  data_files: {SAMPLES if recipe.format == "jsonl" else "samples.parquet"}
---
# {recipe.name}

{funnel["kept"]:,} tubes made from captions with coarse times, by tubelet's Uni-STG pipeline. Boxes and spans were made
by models and rules; nobody looked at them. Rights and personal data are those of the source videos and captions.

| | |
|---|---|
| analyzer | {recipe.analyzer.how} {recipe.analyzer.model} |
| annotator | {recipe.annotator.provider}, match {recipe.annotator.match} |
| recipe (sha256) | {funnel["recipe"]} |
| samples (sha256) | {funnel["samples_sha256"]} |

| stage | took | kept | dropped |
|---|---|---|---|
{rows}

| dropped because of | count |
|---|---|
{reasons}

| threshold | value |
|---|---|
{numbers}

Lines of the caption files that could not be read: {funnel["broken_lines"]}.
"""


def _fill(ledger: Ledger, recipe: UniSTGRecipe) -> None:
    """Captions into the ledger, once: the videos' keys are their paths. Drops of the reader are kept in the ledger."""
    problems = Problems()
    identity = hashlib.sha256(json.dumps([recipe.digest(), to_dict(recipe.sources)]).encode()).hexdigest()
    known = ledger.meta("recipe")
    if known not in (None, identity):
        raise DataError("this folder is a build of another recipe or other captions: give another folder")
    if ledger.meta(_FILLED) is not None:
        return
    drops: list[Drop] = []
    names: list[str] = []

    def parts() -> Iterator[tuple[str, Part]]:
        for source in recipe.sources:
            for record in read_captions(source, problems):
                if isinstance(record, Drop):
                    drops.append(record)
                    continue
                text = json.dumps(record.to_dict(), ensure_ascii=False)
                names.append(record.id)
                yield record.video, Part(len(names) - 1, record.id, text)

    # a fill that a kill fell behind meets its own captions again: those are no duplicates
    again = [d for d in ledger.fill(parts()) if d.place != d.first]
    drops += [Drop(d.key, "captions", "duplicate-id", "of another source") for d in again]
    ledger.set_meta("recipe", identity)
    ledger.set_meta("drops", json.dumps([d.to_dict() for d in drops]))
    ledger.set_meta("broken", str(problems.count))
    ledger.set_meta(_FILLED, "yes")


def _engine(name: str) -> Any:
    if name == "local":
        return import_module("tubelet.scale.local").run_local
    if name != "ray":
        raise RecipeError(f"the engine is local or ray, got {name!r}")
    try:
        return import_module("tubelet.scale.ray_engine").run_ray
    except ImportError as error:
        raise ModelError(
            f"the engine ray cannot be loaded ({error}): pip install 'tubelet[scale]'"
        ) from error


def _tagged(record: Phrase | Sample | Drop) -> dict[str, Any]:
    kind = {Phrase: "phrase", Sample: "sample", Drop: "drop"}[type(record)]
    return {"kind": kind, "record": record.to_dict()}


def _untagged(row: dict[str, Any]) -> Phrase | Drop:
    return Drop.from_dict(row["record"]) if row["kind"] == "drop" else Phrase.from_dict(row["record"])


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """Parquet: one type per column; provenance as JSON text."""
    tube = row["tube"]
    return {
        **{k: row[k] for k in ("id", "task", "video", "sentence")},
        **tube["span"],
        "times_s": tube["times_s"],
        "boxes_xyxy": tube["boxes_xyxy"],
        "score": tube["score"],
        "provenance": json.dumps(row["provenance"], sort_keys=True, ensure_ascii=False),
    }
