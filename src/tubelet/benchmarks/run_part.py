"""Scores of the queries of one task (`Part`), each task by its own rules (`score_part`).

    task stvg, svg      tubes: `metrics.PROTOCOLS`; with boxes asked for the true span also sIoU
    task tvg            spans: `metrics.SPAN_PROTOCOLS`, "didemo"
    task rec            boxes: `metrics.BOX_PROTOCOLS`
    task qa             choices: `metrics.CHOICE_READERS`; the toy world's free answers as `world_qa` does
    task elc            the span, and captions where pycocoevalcap and Java are there
    other tasks         answers are kept, not scored

Every query counts: a failure, and a query without a prediction, is 0 and listed. Which protocol is used, hidden
truth and breakdowns are `run_score`'s business.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tubelet.benchmarks.part import Number, Part, failures_of
from tubelet.benchmarks.questions import verdict_of
from tubelet.benchmarks.run_folder import Run
from tubelet.benchmarks.run_spans import score_spans
from tubelet.benchmarks.run_truth import image_box, truths_of
from tubelet.datasets.record import Record
from tubelet.errors import ModelError
from tubelet.metrics.bootstrap import bootstrap_table
from tubelet.metrics.captions import score_captions
from tubelet.metrics.convert import prepare
from tubelet.metrics.evaluate import Report, evaluate
from tubelet.metrics.grounding import balanced_accuracy, score_many
from tubelet.metrics.protocols import PROTOCOLS
from tubelet.metrics.ragged import Ragged
from tubelet.metrics.referring import score_boxes
from tubelet.metrics.seconds import Slices, score_vue
from tubelet.metrics.truth import Truth
from tubelet.metrics.words import answer_score
from tubelet.tube import Prediction, Tube

TUBE_TASKS, CHOICE_TASKS = ("stvg", "svg"), ("qa",)
_VUE = {
    "tIoU": "t_iou",
    "tRecall": "t_recall",
    "tPrecision": "t_precision",
    "vIoU": "v_iou",
    "vRecall": "v_recall",
    "vPrecision": "v_precision",
    "vIoU_Int": "v_iou_intersection",
    "volume_IoU": "3d_iou",
}


def score_part(run: Run, task: str, records: Sequence[Record], protocol: str) -> Part:
    """Score the labelled queries of one task; tasks without a score keep their answers and list their failures."""
    if task in TUBE_TASKS:
        return _tubes(run, task, records, protocol)
    if task == "tvg":
        return score_spans(run, records, protocol)
    if task == "rec":
        return _boxes(run, records, protocol)
    if task == "elc":
        return _captions(run, records, protocol)
    if task in CHOICE_TASKS:
        return _answers(run, records, protocol)
    return Part(
        task, "", len(records), {}, failures_of(run, records), notes=(f"task {task} is not scored here",)
    )


# --- tubes ------------------------------------------------------------------------------------------


def _tubes(run: Run, task: str, records: Sequence[Record], protocol: str) -> Part:
    true, odd = {}, []
    for record in records:
        true[record.id], note = truths_of(record, run.facts(record))
        odd += [f"{record.id}: {note}"] if note else []
    truths = {key: t[0] if len(t) == 1 else t for key, t in true.items()}
    predictions = {r.id: run.lines[r.id].prediction for r in records if r.id in run.lines}
    report = evaluate(predictions, truths, protocol)
    if protocol == "vue_stg":
        report = _with_gaps(report, predictions, true)
    values = {name: dict(zip(report.ids, map(float, v), strict=True)) for name, v in report.values.items()}
    metrics: dict[str, Number] = dict(report.metrics)
    given = _given_span_tubes(run, task, report.ids)
    if given is not None and report.ids:
        siou = score_many(given, [true[key][0] for key in report.ids]).gt_viou
        values["sIoU_given_span"] = dict(zip(report.ids, map(float, siou), strict=True))
        metrics |= bootstrap_table({"sIoU_given_span": siou})
    notes = report.notes
    if odd:
        notes += (f"{len(odd)} truths need a word, the first: {odd[0]}",)
    return Part(task, report.protocol, len(records), metrics, report.failures, notes=notes, values=values)


def _given_span_tubes(run: Run, task: str, ids: Sequence[str]) -> list[Tube | None] | None:
    """Tubes of the pass in which the true span was given; None when there was no such pass."""
    if task == "svg":
        return [run.lines[key].prediction.tube if key in run.lines else None for key in ids]
    if not any(key in run.lines and run.lines[key].given_span is not None for key in ids):
        return None
    tubes = [run.lines[key].given_span if key in run.lines else None for key in ids]
    return [each[0] if each else None for each in tubes]


def _with_gaps(
    report: Report, predictions: Mapping[str, Prediction], true: Mapping[str, list[Truth]]
) -> Report:
    """VUE-STG's values where a target is away for a while: only the annotated seconds are true."""
    truths = [true[key][0] for key in report.ids]
    tubes = [predictions[key].tube if key in predictions else None for key in report.ids]
    given = prepare(tubes, truths, PROTOCOLS["vue_stg"]).predicted
    at = Ragged.stack([np.round(t.box_times_s * 1000) for t in truths])
    boxes = np.concatenate([t.boxes_xyxy for t in truths]) if truths else np.empty((0, 4))
    scored = score_vue(
        Slices(at, boxes, np.arange(len(boxes))),
        Slices(Ragged(given.at * 1000, given.offsets), given.boxes_xyxy, np.arange(len(given.at))),
    )
    values = {name: scored[key] for name, key in _VUE.items()}
    named = {f"m_{name}" if name in ("tIoU", "vIoU") else name: v for name, v in values.items()}
    return replace(report, values=values, metrics={**report.metrics, **bootstrap_table(named)})


# --- boxes, words -----------------------------------------------------------------------------------


def _boxes(run: Run, records: Sequence[Record], protocol: str) -> Part:
    failures = failures_of(run, records)
    found = [r.id in run.lines and run.lines[r.id].prediction.found for r in records]
    rejection = balanced_accuracy(found, [r.present for r in records])
    present = [r for r in records if r.present]
    predicted: list[list[float] | None] = []
    for record in present:
        tube = run.lines[record.id].prediction.tube if record.id in run.lines else None
        predicted.append(None if tube is None or not len(tube) else tube.boxes_xyxy[0].tolist())
    true = [image_box(r, run.facts(r)).tolist() for r in present]
    scores = score_boxes(predicted, true, protocol)
    metrics: dict[str, Number] = dict(scores.metrics)
    if rejection is not None:
        metrics["rejection_balanced_accuracy"] = rejection
    values = {
        name: {r.id: float(v) for r, v in zip(present, column, strict=True)}
        for name, column in scores.values.items()
    }
    return Part("rec", protocol, len(records), metrics, failures, values=values)


def _captions(run: Run, records: Sequence[Record], protocol: str) -> Part:
    """Span under the protocol, boxes as LLaVA-ST scores them, captions of the corpus (a failure is an empty one)."""
    part = score_spans(
        run, [replace(r, spans=r.spans or _own_span(run, r), frames=None) for r in records], protocol
    )
    metrics, values, notes = dict(part.metrics), dict(part.values), part.notes
    boxed = [r for r in records if r.present and r.targets and r.video.kind == "video"]
    if boxed:
        tubes = _tubes(run, "elc", boxed, "llavast")
        metrics |= {name: v for name, v in tubes.metrics.items() if "sIoU" in name or "vIoU" in name}
        values |= {name: v for name, v in tubes.values.items() if name in ("sIoU", "vIoU")}
        notes += ("boxes (sIoU, vIoU) are scored under protocol llavast", *tubes.notes)
    failures = part.failures
    said = [_caption(None if r.id in failures else run.lines[r.id].prediction) for r in records]
    try:
        metrics |= score_captions(said, [r.answer for r in records])
    except ModelError as error:
        notes += (f"captions are not scored: {error}",)
    return replace(part, task="elc", metrics=metrics, values=values, notes=notes)


def _caption(prediction: Prediction | None) -> str:
    """The caption of an answer: the label of its tube (LLaVA-ST), else its words; "" for none."""
    if prediction is None:
        return ""
    tube = prediction.tube
    return (tube.label or "") if tube is not None and tube.label is not None else prediction.text


def _own_span(run: Run, record: Record) -> tuple[Any, ...]:
    """The true span of a record that speaks frames."""
    true, _ = truths_of(record, run.facts(record))
    return tuple(t.span for t in true[:1] if t.span is not None)


def _answers(run: Run, records: Sequence[Record], protocol: str) -> Part:
    """Accuracy under the reader of the protocol, and under tubelet's own."""
    failures = failures_of(run, records)
    said = {r.id: "" if r.id in failures else run.lines[r.id].prediction.text for r in records}
    chosen = [r for r in records if r.answer_index is not None]
    values: dict[str, dict[str, float]] = {}
    notes: tuple[str, ...] = ()
    for name, reader in (("accuracy", protocol), ("accuracy_tubelet", "tubelet")):
        verdicts = {r.id: None if r.id in failures else verdict_of(r, said[r.id], reader) for r in chosen}
        if name == "accuracy" or protocol != "tubelet":
            values |= {name: {key: v or 0.0 for key, v in verdicts.items()}} if verdicts else {}
            unread = sum(v is None and key not in failures for key, v in verdicts.items())
            if unread:
                notes += (f"{name}: {unread} answers name no option for reader {reader}: counted as wrong",)
    free = [r for r in records if r.answer_index is None]
    judged = [r for r in free if r.dataset == "world"]
    for name, asked in (
        ("exact_answer", [r for r in judged if r.tags.get("kind") != "caption"]),
        ("caption_word_F1", [r for r in judged if r.tags.get("kind") == "caption"]),  # many forms are right
    ):
        if asked:
            values[name] = {
                r.id: 0.0 if r.id in failures else answer_score(str(r.tags.get("kind")), said[r.id], r.answer)
                for r in asked
            }
    if len(free) > len(judged):
        notes += (
            f"{len(free) - len(judged)} answers in free words are kept, not scored: the official score asks an LLM",
        )
    metrics: dict[str, Number] = {}
    for name, column in values.items():
        metrics |= bootstrap_table({name: list(column.values())})
    return Part("qa", protocol, len(records), metrics, failures, notes=notes, values=values)
