"""The toy-world benchmark: fixed test scenes as decoded mp4, one query per video, baselines beside the model.

    DIR/data/              the mp4 files and annotations (made once per n and seed)
    DIR/predictions.jsonl  one prediction per query, written as they come; a second run resumes
    DIR/untrained.jsonl    the same of the model with random weights, when asked for
    DIR/metrics.json       scores with 95 % intervals, run card

`world_run.read_world_run(DIR)` reads the folder as any other run (`tubelet report DIR`).
Queries are grouped by video: each is decoded and encoded once.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from tubelet import __version__
from tubelet.errors import DataError, OutputError, QueryError, TubeletError
from tubelet.grounder import Grounder
from tubelet.metrics.bootstrap import Interval, bootstrap_mean
from tubelet.metrics.grounding import Scores, Truth, score_tube, siou, summarise
from tubelet.metrics.words import word_f1
from tubelet.spacevllm.config import SPAN_READERS
from tubelet.tube import Prediction, Span, Tube
from tubelet.world.files import make_world, read_annotations

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class WorldResult:
    metrics: dict[str, Interval]
    baselines: dict[str, dict[str, Interval]]
    n: int
    n_failed: int
    folder: Path


def evaluate_world(
    grounder: Grounder,
    folder: Path | str,
    n: int = 500,
    seed: int = 7,
    task: str = "stvg",
    span_reader: str | None = None,
    limit: int | None = None,
    split: str = "test",
    height: int = 180,
    fps: float = 15.0,
    progress: Callable[[int, int], None] | None = None,
    untrained: Grounder | None = None,
) -> WorldResult:
    """Run and score. Resumes from predictions.jsonl when it belongs to the same model and data.

    untrained: a model to be scored as a baseline on the same queries.
    """
    if task not in ("stvg", "tvg", "svg", "rec", "elc"):
        raise DataError(f"the toy-world benchmark scores stvg, tvg, svg, rec and elc, got {task!r}")
    if task == "elc" and "elc" not in getattr(grounder, "tasks", ()):
        raise DataError(f"{grounder.name} does not take task elc: a LLaVA-ST does")
    if span_reader not in (None, *SPAN_READERS):  # here, and not after hundreds of videos were made
        raise QueryError(
            f"span_reader is {', '.join(SPAN_READERS[:-1])} or {SPAN_READERS[-1]}, got {span_reader!r}"
        )
    folder = Path(folder)
    data = folder / "data"
    make_world(data, n, seed, split, tasks=(task,), height=height, fps=fps)
    records = read_annotations(data)[: limit or n]
    settings = {
        "n": n,
        "seed": seed,
        "task": task,
        "split": split,
        "height": height,
        "fps": fps,
        "span_reader": span_reader or "",
    }
    started = time.monotonic()
    runs = [(grounder, folder / "predictions.jsonl")]
    runs += [(untrained, folder / "untrained.jsonl")] if untrained is not None else []
    headers, answered = [], []
    for k, (asked, path) in enumerate(runs):
        told = getattr(asked, "sampling", None)  # of methods whose answers depend on more than their weights
        own = {"sampling": told} if told else {}
        headers.append({"model": asked.name, "revision": getattr(asked, "revision", ""), **settings, **own})

        def step(finished: int, total: int, before: int = k * len(records)) -> None:
            if progress is not None:
                progress(before + finished, len(runs) * total)

        answered.append(_run(asked, data, records, path, headers[k], step))
    random_weights = None
    if untrained is not None:
        random_weights = judge(records, answered[1], task).metrics
    return _score(folder, records, answered[0], headers[0], random_weights, time.monotonic() - started)


def _run(
    grounder: Grounder,
    data: Path,
    records: Sequence[Record],
    path: Path,
    header: Record,
    progress: Callable[[int, int], None],
) -> dict[str, Record]:
    """Answer what `path` does not hold yet, video by video; returns all lines by id."""
    done = resumed_lines(path, header)
    task, span_reader = header["task"], header["span_reader"] or None
    try:
        with path.open("a", encoding="utf-8") as out:
            if path.stat().st_size == 0:
                out.write(json.dumps({"run": header}) + "\n")
            todo = [r for r in records if r["id"] not in done]
            finished = len(records) - len(todo)
            for video, group in groupby(todo, key=lambda r: r["video"]):
                for line in _answer(grounder, data, video, list(group), task, span_reader):
                    out.write(json.dumps(line, ensure_ascii=False) + "\n")
                    done[line["id"]] = line
                    finished += 1
                out.flush()
                progress(finished, len(records))
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    return done


def resumed_lines(path: Path, header: Record) -> dict[str, Record]:
    """Finished lines of an earlier run; a half-written last line is dropped from the file."""
    if not path.exists():
        return {}
    good: list[str] = []
    done: dict[str, Record] = {}
    # only \n ends a line: an answer may hold other characters that splitlines() takes for line ends
    rows = path.read_bytes().removesuffix(b"\n").split(b"\n")
    for number, row in enumerate(rows, start=1):
        try:
            line = row.decode("utf-8")
            record = json.loads(line)
        except (
            ValueError,
            RecursionError,
        ) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
            if number == len(rows):
                break  # what a kill leaves
            raise DataError(
                f"{path}, line {number}: not JSON ({error!s:.80}); give another --out or delete it"
            ) from error
        is_header = isinstance(record, dict) and isinstance(record.get("run"), dict)
        if not is_header and not (isinstance(record, dict) and isinstance(record.get("id"), str)):
            raise DataError(f"{path}, line {number}: neither the header of a run nor an answer with its id")
        if is_header:
            if record["run"] != header:
                raise DataError(
                    f"{path} belongs to another run ({record['run'].get('model')}, {record['run']}): "
                    "give another --out or delete it"
                )
        else:
            done[record["id"]] = record
        good.append(line)
    temporary = path.with_suffix(".part")
    temporary.write_text("".join(line + "\n" for line in good), encoding="utf-8")
    temporary.replace(path)
    return done


def _answer(
    grounder: Grounder, data: Path, video: str, group: Sequence[Record], task: str, span_reader: str | None
) -> list[Record]:
    """Predictions of all questions about one video; a failure is a prediction with a reason, no gap."""
    queries = [r["query"] for r in group]
    spans = [None if r["span"] is None else Span.from_dict(r["span"]) for r in group]
    try:
        state = grounder.encode(str(data / video))
        predictions = _ask(grounder, state, group, task, spans, span_reader)
        where: list[Prediction] = []
        if task == "stvg" and all(s is not None for s in spans):
            where = grounder.ground_many(state, queries, "svg", spans)
    except TubeletError as error:
        predictions = [Prediction(str(data / video), q, task, failure=str(error)) for q in queries]
        where = []
    lines = []
    for k, (record, prediction) in enumerate(zip(group, predictions, strict=True)):
        line: Record = {"id": record["id"], "prediction": prediction.to_dict()}
        if where:
            line["given_span"] = where[k].to_dict()["tubes"]
        lines.append(line)
    return lines


def _ask(
    grounder: Grounder,
    state: Any,
    group: Sequence[Record],
    task: str,
    spans: Sequence[Span | None],
    span_reader: str | None,
) -> list[Prediction]:
    queries = [r["query"] for r in group]
    if task != "elc":
        given = list(spans) if task == "svg" else None
        return grounder.ground_many(state, queries, task, given, span_reader=span_reader)
    starts = [None if s is None else Span(s.start_s, s.start_s + 1e-3) for s in spans]  # the end is asked for
    boxes = [r["given_box"] for r in group]
    asked: Any = grounder  # what asks with a box is not part of every grounder
    answered: list[Prediction] = asked.ground_many(state, queries, task, starts, box_xyxy=boxes)
    return answered


def truth_of(record: Record) -> Truth:
    """Truth of an annotation line, on its native frames."""
    is_image = record["n_frames"] == 1
    times = np.arange(record["n_frames"]) / record["fps"]
    span = None
    if record["present"]:
        span = Span(0.0, 1.0) if record["span"] is None else Span.from_dict(record["span"])
    return Truth(
        span=Span(0.0, 0.04) if is_image and span is not None else span,
        frame_times_s=times,
        # not its times_s: these are rounded, and a box a microsecond before its frame would be lost
        box_times_s=np.array(record["frame_index"], dtype=np.int64) / record["fps"],
        boxes_xyxy=np.array(record["boxes_xyxy"], dtype=np.float64).reshape(-1, 4),
    )


@dataclass(frozen=True, slots=True)
class Judged:
    """metrics by name; failures: id and reason; vious: vIoU by kind of question."""

    metrics: dict[str, Interval]
    failures: list[Record]
    vious: dict[str, list[float]]


def judge(records: Sequence[Record], done: dict[str, Record], task: str) -> Judged:
    """Score the answered lines against the truth."""
    scores: list[Scores] = []
    found: list[bool] = []
    present: list[bool] = []
    sious: list[float] = []
    captions: list[float] = []
    failures: list[Record] = []
    by_kind: dict[str, list[float]] = {}
    with_span = any("given_span" in done[record["id"]] for record in records)
    for record in records:
        line = done[record["id"]]
        prediction = Prediction.from_dict(line["prediction"])
        truth = truth_of(record)
        if prediction.failure is not None:
            failures.append({"id": record["id"], "reason": prediction.failure})
        found.append(prediction.found)
        present.append(bool(record["present"]))
        if truth.span is None:
            continue
        scores.append(score_tube(prediction.tube, truth))
        by_kind.setdefault(record["kind"], []).append(scores[-1].viou)
        if task == "elc":
            told = None if prediction.tube is None else prediction.tube.label
            captions.append(word_f1(told or "", record["answer"]))
        if task == "svg":
            sious.append(siou(prediction.tube, truth))
        elif with_span:
            tubes = line.get("given_span")  # none where the query failed: that is a 0, too
            sious.append(siou(Tube.from_dict(tubes[0]) if tubes else None, truth))
    metrics = summarise(scores, found, present, sious)
    if captions:
        metrics |= {
            "caption_F1": bootstrap_mean(captions),
            "caption_exact": bootstrap_mean([float(c == 1.0) for c in captions]),
        }
    return Judged(metrics, failures, by_kind)


def _score(
    folder: Path,
    records: Sequence[Record],
    done: dict[str, Record],
    header: Record,
    untrained: dict[str, Interval] | None,
    seconds: float,
) -> WorldResult:
    judged = judge(records, done, header["task"])
    metrics, failures, by_kind = judged.metrics, judged.failures, judged.vious
    baselines = {} if untrained is None else {"untrained": untrained}
    baselines |= {name: baseline(name, records) for name in ("constant_centre", "random_track")}
    report = {
        "run": header,
        "protocol": "tubelet",
        "n": len(records),
        "n_present": sum(bool(r["present"]) for r in records),
        "n_failed": len(failures),
        "metrics": {k: v.to_dict() for k, v in metrics.items()},
        "vIoU_by_kind": {
            k: {"mean": round(float(np.mean(v)), 4), "n": len(v)} for k, v in sorted(by_kind.items())
        },
        "baselines": {k: {m: v.to_dict() for m, v in b.items()} for k, b in baselines.items()},
        "failures": failures,
        "seconds": round(seconds, 2),
        "tubelet": __version__,
        "machine": {
            "python": platform.python_version(),
            "system": platform.system(),
            "cpu": platform.machine(),
        },
    }
    temporary = folder / ".metrics.json.part"
    temporary.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    temporary.replace(folder / "metrics.json")
    return WorldResult(metrics, baselines, len(records), len(failures), folder)


def baseline(name: str, records: Sequence[Record]) -> dict[str, Interval]:
    """What needs no model, scored in the same way.

    constant_centre: the middle 75 % of the video with a box of a third of the picture in its middle;
    random_track: a random actor's true boxes over its whole visible time (knows where things are, not which).
    """
    from tubelet.world.choreography import SceneConfig, make_scene

    scores: list[Scores] = []
    sious: list[float] = []
    for record in records:
        truth = truth_of(record)
        if truth.span is None:
            continue
        duration = record["n_frames"] / record["fps"]
        times = truth.frame_times_s
        if name == "constant_centre":
            span = Span(0.15 * duration, 0.9 * duration) if len(times) > 1 else Span(0.0, 0.04)
            boxes = np.tile([1 / 3, 1 / 3, 2 / 3, 2 / 3], (2, 1))
            tube = Tube(span, np.array([span.start_s, span.end_s]), boxes)
            wide = Tube(Span(0.0, duration + 1), np.array([0.0, duration]), boxes)
        else:
            split, seed, index = record["scene"]["seed"]
            names = ("train", "val", "test")
            scene = make_scene(names[split], seed, index, SceneConfig(still=len(times) == 1))
            actor = int(np.random.default_rng([seed, index, 3]).integers(len(scene.actors)))
            all_boxes, visible = scene.boxes_at(times)
            if not visible[actor].any():
                scores.append(Scores(0.0, 0.0))
                sious.append(0.0)
                continue
            seen = times[visible[actor]]
            span = Span(float(seen[0]), float(seen[-1]) + 1 / record["fps"])
            tube = Tube(span, seen, all_boxes[actor][visible[actor]])
            wide = tube
        scores.append(score_tube(tube, truth))
        sious.append(siou(wide, truth))
    return summarise(scores, [True] * len(scores), [True] * len(scores), sious)
