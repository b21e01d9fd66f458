"""What built labels are worth: the data of a model trained on built labels and of its twin trained on exact ones.

    prepare("runs/unistg-training")                                   # toy videos -> three data sets
    tubelet train recipes/unistg-pico.yaml ...                        # once per arm, from the same start
    compare("runs/unistg-training", {"exact": FOLDER, "built": FOLDER})   # training_compare.py

`world_proof.py` measures the labels; this measures what is learnt from them. Toy-world videos of the train split get
captions of things that come or go ("a red circle") and of actions ("a red circle spins"), each true of one thing only,
with spans that are widened on both sides by 0.3 to 1.0 of their length. Out of them come three arms:

    built    what `unistg.build` keeps (rules, motion proposals, tracks by colour, Refiner, Filter)
    exact    the same sentences on the same videos, in the same order: true span, true boxes at the same sampled frames
    coarse   what the Annotator gives in the loose span, without Refiner and Filter: also sentences that these drop

FOLDER/train, FOLDER/test   videos (mp4), of splits that share no scene
FOLDER/captions.jsonl       loose captions; truth.jsonl: the truth of each, as `world.files.annotation` writes it
FOLDER/build                the build; tracks: its proposals, which the coarse arm reads again
FOLDER/ARM.jsonl, ARM.yaml  training rows (`unistg.rows`) and the mixing list that a SpaceVLLM's `items` stage reads
FOLDER/queries.jsonl        one test query per video with its truth
FOLDER/arms.json            how many rows, and how precise their labels are

Killed at any moment, the same call goes on. Knows nothing of training or models.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from tubelet.benchmarks.run_folder import write_whole
from tubelet.benchmarks.world import truth_of
from tubelet.datasets.reading import stream_jsonl
from tubelet.errors import DataError, OutputError
from tubelet.llava_st.mixture import Entry, Mixture, write_mixture
from tubelet.metrics.bootstrap import Interval, bootstrap_table
from tubelet.metrics.grounding import score_many
from tubelet.scale.job import Report
from tubelet.tube import Span, Tube
from tubelet.unistg.analyzer import analyze
from tubelet.unistg.annotator import annotate_file, load_annotator
from tubelet.unistg.build import LEDGER, SAMPLES, build
from tubelet.unistg.captions import CaptionSource, checked, read_rows
from tubelet.unistg.recipe import UniSTGRecipe
from tubelet.unistg.records import Detected, Phrase, Sample
from tubelet.unistg.refiner import choose_boxes
from tubelet.unistg.rows import write_lines, write_rows
from tubelet.unistg.tasks import stvg_of_sample
from tubelet.unistg.training_world import (
    KINDS,
    ProofData,
    draw_videos,
    query_lines,
    scene_of,
    write_captions,
)
from tubelet.unistg.world_proof import world_recipe
from tubelet.world.tasks import Question, truth_boxes

ARMS = ("exact", "built", "coarse")
QUERIES = "queries.jsonl"


@dataclass(frozen=True, slots=True)
class Arms:
    """What `prepare` made. rows: of each arm. labels: arm -> kind -> tIoU, vIoU of its labels against the truth."""

    folder: Path
    captions: int
    rows: Mapping[str, int]
    videos: Mapping[str, int]
    queries: int
    labels: Mapping[str, Mapping[str, Mapping[str, Interval]]]

    def to_dict(self) -> dict[str, Any]:
        labels = {
            arm: {kind: {m: i.to_dict() for m, i in row.items()} for kind, row in kinds.items()}
            for arm, kinds in self.labels.items()
        }
        counts = {"captions": self.captions, "rows": dict(self.rows), "videos": dict(self.videos)}
        return {**counts, "queries": self.queries, "labels": labels}


def prepare(
    folder: Path | str,
    settings: ProofData | None = None,
    workers: int = 1,
    progress: Callable[[str, int, int], None] | None = None,
) -> Arms:
    """Make all files of the proof. progress: is told what is being made, how many are done, of how many.

    Raises DataError for a folder that was made with other settings, OutputError where nothing can be written.
    """
    settings, folder = settings or ProofData(), Path(folder)
    _keep_settings(folder, settings)
    scenes = {
        split: draw_videos(folder, split, n, settings, progress)
        for split, n in (("train", settings.n), ("test", settings.n_test))
    }
    spoken = write_captions(folder, scenes["train"], settings)
    recipe = recipe_of(folder)
    report: Report | None = None
    if progress is not None:
        tell = progress

        def report(now: Any) -> None:
            tell("videos built", now.done + now.aside, now.total)

    build(
        recipe, folder / "build", workers=workers, resume=(folder / "build" / LEDGER).exists(), report=report
    )
    kept = [Sample.from_dict(item.data) for item in stream_jsonl(folder / "build" / SAMPLES, "raise")]
    truths = {line["id"]: line for line in spoken}
    arms = _arms(kept, list(_detected(folder, recipe)), truths)
    queries = query_lines(scenes["test"], settings)
    write_lines(queries, folder / QUERIES)
    for arm, samples in arms.items():
        write_rows((stvg_of_sample(sample) for sample in samples), folder / f"{arm}.jsonl")
        entry = Entry(f"{arm}.jsonl", "train/videos", source=arm)
        write_mixture(Mixture((entry,)), folder / f"{arm}.yaml")
    found = Arms(
        folder,
        captions=len(spoken),
        rows={arm: len(samples) for arm, samples in arms.items()},
        videos={arm: len({s.video for s in samples}) for arm, samples in arms.items()},
        queries=len(queries),
        labels={arm: _precision(samples, truths) for arm, samples in arms.items()},
    )
    write_whole(folder / "arms.json", json.dumps(found.to_dict(), indent=1) + "\n")
    return found


def recipe_of(folder: Path | str) -> UniSTGRecipe:
    """The recipe of the build: `world_proof.world_recipe` with this folder's files."""
    folder, recipe = Path(folder), world_recipe()
    return replace(
        recipe,
        name="unistg-training",
        videos=str(folder / "train" / "videos"),
        sources=(CaptionSource("jsonl", str(folder / "captions.jsonl")),),
        annotator=replace(recipe.annotator, cache=str(folder / "tracks")),
    )


# --- the arms -------------------------------------------------------------------------------------------


def _detected(folder: Path, recipe: UniSTGRecipe) -> Iterator[Detected]:
    """What the Annotator gave, of all captions; the proposals are read from the build's cache."""
    annotator = load_annotator(recipe.annotator)
    captions = checked(read_rows(folder / "captions.jsonl"))
    phrases = [p for p in analyze(captions, recipe.analyzer) if isinstance(p, Phrase)]
    for _, group in groupby(phrases, key=lambda p: p.caption.video):
        for found in annotate_file(list(group), recipe.videos, annotator):
            if isinstance(found, Detected):
                yield found


def _arms(
    kept: Sequence[Sample], found: Sequence[Detected], truths: Mapping[str, Mapping[str, Any]]
) -> dict[str, list[Sample]]:
    """exact and built: the same samples in the same order; coarse: all that was found."""
    detected = {one.phrase.key: one for one in found}
    pairs = []
    for sample in kept:
        if sample.provenance["subject"] and sample.id in detected:
            true = exact_sample(sample, detected[sample.id], truths[str(sample.provenance["caption_id"])])
            if true is not None:
                pairs.append((true, sample))
    coarse = [coarse_sample(one) for one in found if one.phrase.subject]
    if not pairs:
        raise DataError("the build kept no sample: make more videos")
    return {"exact": [a for a, _ in pairs], "built": [b for _, b in pairs], "coarse": coarse}


def exact_sample(sample: Sample, detected: Detected, truth: Mapping[str, Any]) -> Sample | None:
    """The sample with its true span and boxes, at the frames that the Annotator sampled; None: in none of them."""
    span = Span.from_dict(truth["span"])
    scene = scene_of(truth)
    question = Question("stvg", truth["query"], truth["kind"], actor=truth["tags"]["actor"], span=span)
    boxes, has = truth_boxes(scene, question, detected.times_s)
    if not has.any():
        return None
    tube = Tube(span, detected.times_s[has], boxes[has], label=sample.tube.label)
    return replace(sample, tube=tube, provenance={**sample.provenance, "annotator": "truth"})


def coarse_sample(detected: Detected) -> Sample:
    """The loose span with the boxes of the chosen track."""
    phrase = detected.phrase
    rows, boxes, scores, _ = choose_boxes(detected)
    tube = Tube(detected.coarse, detected.times_s[rows], boxes, box_scores=scores, label=phrase.text)
    provenance: dict[str, object] = {
        "caption_id": phrase.caption.id,
        "phrase": phrase.text,
        "subject": phrase.subject,
        "duration_s": phrase.caption.duration_s,
        "annotator": detected.annotator,
    }
    return Sample(phrase.key, phrase.caption.video, phrase.caption.text, tube, provenance)


def _precision(
    samples: Sequence[Sample], truths: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Interval]]:
    lines = [dict(truths[str(sample.provenance["caption_id"])]) for sample in samples]
    scores = score_many([s.tube for s in samples], [truth_of(line) for line in lines])
    kinds = np.array([line["kind"] for line in lines])
    out = {}
    for kind in ("all", *KINDS):
        rows = np.ones(len(kinds), dtype=bool) if kind == "all" else kinds == kind
        if rows.any():
            out[kind] = bootstrap_table({"tIoU": scores.tiou[rows], "vIoU": scores.viou[rows]})
    return out


# --- files ----------------------------------------------------------------------------------------------


def _keep_settings(folder: Path, settings: ProofData) -> None:
    path = folder / "settings.json"
    text = json.dumps(asdict(settings), indent=1) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if path.exists() and path.read_text(encoding="utf-8") != text:
            raise DataError(
                f"{folder} holds a proof with other settings (see {path.name}): give another folder, or those settings"
            )
    except OSError as error:
        raise OutputError(f"cannot make {folder}: {error.strerror or error}") from error
    write_whole(path, text)
