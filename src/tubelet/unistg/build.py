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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tubelet.benchmarks.run_folder import write_whole
from tubelet.config_io import to_dict
from tubelet.datasets.problems import Problems
from tubelet.datasets.reading import stream_jsonl
from tubelet.errors import DataError, OutputError, RecipeError
from tubelet.scale.job import Job, Report, Stage
from tubelet.scale.ledger import Ledger, Part, open_ledger
from tubelet.unistg.analyzer import analyze
from tubelet.unistg.annotator import load_annotator
from tubelet.unistg.captions import read_captions
from tubelet.unistg.recipe import UniSTGRecipe
from tubelet.unistg.records import Caption, Drop
from tubelet.unistg.rows import write_lines, write_parquet
from tubelet.unistg.steps import aside_drop
from tubelet.unistg.steps import engine as engine_of

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
    """What `build` made. aside: captions whose video was set aside by the engine (its provider failed,
    a worker died, a lease ran out). broken: lines of the caption files that could not be read."""

    folder: Path
    kept: int
    dropped: int
    aside: int
    broken: int = 0


def build(
    recipe: UniSTGRecipe,
    out: Path | str,
    *,
    engine: str = "local",
    workers: int = 1,
    cpus: float = 1.0,
    gpus: float = 0.0,
    resume: bool = False,
    retry_aside: bool = False,
    report: Report | None = None,
) -> Built:
    """Run a recipe. retry_aside: with resume, try videos again that were set aside earlier.

    workers: of the annotator; cpus, gpus: what each reserves (`tubelet.scale.job.Stage`). An analyzer that loads a
    language model is one worker more, which reserves the same.

    Raises RecipeError for one that cannot run, DataError for a folder of another recipe or one that needs resume,
    OutputError where nothing can be written (make space, then resume).
    """
    if not recipe.sources:
        raise RecipeError(
            "a Uni-STG recipe names its captions: sources: [{kind: jsonl, path: captions.jsonl}]"
        )
    run = engine_of(engine)
    if recipe.annotator.provider != "files":
        load_annotator(recipe.annotator)  # a provider that is not there is said before any work
    job = job_of(recipe, workers, cpus, gpus)
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make {folder}: {error.strerror or error}") from error
    if (folder / LEDGER).exists() and not resume:
        raise DataError(f"{folder} holds a build already: go on with --resume, or give another folder")
    with open_ledger(folder / LEDGER) as ledger:
        _fill(ledger, recipe)
        if retry_aside:
            ledger.retry_aside()
        run(job, ledger, report)
        return write_outputs(ledger, recipe, folder)


def job_of(recipe: UniSTGRecipe, workers: int = 1, cpus: float = 1.0, gpus: float = 0.0) -> Job:
    """The two steps of a build and what their workers reserve. Raises RecipeError for what no worker can have."""
    options = {"recipe": to_dict(recipe)}
    loads = recipe.analyzer.how == "transformers"  # rules and requests to an endpoint need no GPU
    first = (cpus, gpus) if loads else (1.0, 0.0)
    return Job(
        "uni-stg",
        (
            Stage("analyze", "tubelet.unistg.steps:analyze_step", options, 1, *first),
            Stage("annotate", "tubelet.unistg.steps:tube_step", options, workers, cpus, gpus),
        ),
    )


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
                lost = _of_aside(Caption.from_dict(json.loads(payload)), reason, recipe)
                aside += any(drop.stage == STAGES[2] for drop in lost)
                drops.extend(lost)
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
    return Built(folder, kept, len(drops), aside, int(ledger.meta("broken") or 0))


def _of_aside(caption: Caption, reason: str | None, recipe: UniSTGRecipe) -> list[Drop]:
    """The drops of a caption whose video was set aside: what rules say of its words, they say without the video."""
    if recipe.analyzer.how != "rules":
        return [aside_drop(caption.id, reason)]
    found = analyze([caption], recipe.analyzer)
    return [one if isinstance(one, Drop) else aside_drop(one.key, reason) for one in found]


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
