"""A folder of the toy-world benchmark read as a `Run`, so that it can be scored again, compared and reported.

    RUN                    its answers (predictions.jsonl), stvg and the other grounding tasks, or qa
    RUN/untrained.jsonl    the answers of the untrained model, as a run of its own

Such a folder keeps its own form (docs of `benchmarks.world`): a header instead of a card, annotations instead of
records, metrics.json with baselines. Nothing is written here. Records of annotations without the tag `look_alikes` (how
many other actors of the scene look like the target) get it here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from tubelet.benchmarks.run_card import CARD, data_hash, make_card
from tubelet.benchmarks.run_folder import METRICS, PREDICTIONS, Line, Run
from tubelet.benchmarks.run_truth import VideoFacts, video_key
from tubelet.datasets.reading import stream_jsonl
from tubelet.datasets.record import Record
from tubelet.datasets.world import read
from tubelet.errors import DataError
from tubelet.metrics.boxes import paired_iou
from tubelet.tube import Prediction
from tubelet.world.choreography import SceneConfig, make_scene
from tubelet.world.files import even

_SPLITS = ("train", "val", "test")  # by number, as scenes name theirs
_MOST_FRAMES = 1_000_000  # of a video of the toy world, whose longest take seconds


def is_world_run(path: Path | str) -> bool:
    """A folder that the toy-world benchmark wrote, or the file of its untrained model."""
    base = Path(path)
    if base.is_file():
        return base.suffix == ".jsonl" and is_world_run(base.parent)
    return (
        not (base / CARD).exists()
        and (base / PREDICTIONS).is_file()
        and (base / "data" / "annotations.jsonl").is_file()
    )


def read_world_run(path: Path | str) -> Run:
    """All of it, as `read_run` gives other runs; the card holds the baselines of metrics.json under "baselines".

    Raises DataError for files that are broken or of another run.
    """
    base = Path(path)
    folder, file = (base.parent, base) if base.suffix == ".jsonl" else (base, base / PREDICTIONS)
    header, lines = _read_lines(file)
    data = folder / "data"
    annotations = {item.text("id"): item.data for item in stream_jsonl(data / "annotations.jsonl")}
    records = [_with_look_alikes(r, annotations[r.id]) for r in read(data)]
    limit = _count(header, "limit", file)
    if limit:
        records = records[:limit]
    unknown = lines.keys() - {r.id for r in records}
    if unknown:
        raise DataError(f"{file} answers {min(unknown)!r}, which is no query of {data}: it is of another run")
    kept = _metrics(folder) if file.name == PREDICTIONS else {}
    told = _count(kept, "n", folder / METRICS)
    if told and kept.get("run") == header:
        records = records[:told]  # a limit is said by metrics.json alone
    card = make_card(
        benchmark="world",
        split=str(header.get("split", "test")),
        task=str(header.get("task", "")),
        model=str(header.get("model", "")),
        revision=str(header.get("revision", "")),
        data_hash=data_hash(records),
        n=len(records),
        span_reader=str(header.get("span_reader", "")),
        seed=_count(header, "seed", file),
    )
    card["versions"] = {"tubelet": kept["tubelet"]} if "tubelet" in kept else {}
    machine, seconds = kept.get("machine", {}), kept.get("seconds", 0.0)
    card["hardware"] = dict(machine) if isinstance(machine, dict) else {}
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < 1e12:
        raise DataError(f"{folder / METRICS}: seconds is how long the run took, got {seconds!r:.40}")
    card["seconds"] = seconds
    card["baselines"] = _baselines(kept)
    for line in lines.values():  # versions are those that answered, not those that read
        tubelet = line.prediction.provenance.get("tubelet")
        if isinstance(tubelet, str) and not card["versions"]:
            card["versions"] = {"tubelet": tubelet}
    videos = _facts(annotations, records, lines)
    asked = {r.id for r in records}
    return Run(folder, card, tuple(records), videos, {k: v for k, v in lines.items() if k in asked})


def _count(told: Mapping[str, Any], key: str, path: Path) -> int:
    """A whole number from 0 that a header or metrics.json says, 0 where it says none."""
    value = told.get(key)
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise DataError(f"{path}: {key} is a whole number from 0, got {value!r:.40}")
    return value


def _read_lines(path: Path) -> tuple[dict[str, Any], dict[str, Line]]:
    """The header, and the answers by id."""
    header: dict[str, Any] | None = None
    lines: dict[str, Line] = {}
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    # only \n ends a line of JSON: an answer may hold other characters that splitlines() takes for line ends
    for number, row in enumerate(text.removesuffix("\n").split("\n"), start=1):
        where = f"{path}, line {number}"
        try:
            found = json.loads(row)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: not JSON ({error!s:.80}); run the same evaluation again") from error
        if not isinstance(found, dict):
            raise DataError(f"{where}: expected an object, got {type(found).__name__}")
        if isinstance(found.get("run"), dict):
            header = found["run"]
            continue
        try:
            line = _answer_in_words(found) if "answer" in found else Line.from_dict(found)
        except DataError as error:
            raise DataError(f"{where}: {error}") from error
        if line.id in lines:
            raise DataError(f"{where}: the id {line.id!r:.80} was there before")
        lines[line.id] = line
    if header is None:
        raise DataError(f'{path} has no header {{"run": ...}}: it is no run of the toy-world benchmark')
    return header, lines


def _answer_in_words(line: Mapping[str, Any]) -> Line:
    """A line of `world_qa`, which holds no prediction."""
    name, answer, failure = line.get("id"), line.get("answer"), line.get("failure")
    if not isinstance(name, str) or not isinstance(answer, str) or not isinstance(failure, str | None):
        raise DataError("an answer in words has an id, an answer and at most a failure, all text")
    return Line(name, Prediction("", "", "qa", text=answer, failure=failure))


def _metrics(folder: Path) -> dict[str, Any]:
    """metrics.json; empty where it is not written yet."""
    path = folder / METRICS
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"cannot read {path}: {error!s:.100}") from error
    if not isinstance(found, dict):
        raise DataError(f"{path} is an object, got {type(found).__name__}")
    return found


def _baselines(kept: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Name -> metric -> mean, low, high, n, under the names that `score_run` gives the same numbers."""
    found = kept.get("baselines")
    out: dict[str, dict[str, Any]] = {}
    for name, metrics in (found if isinstance(found, dict) else {}).items():
        if isinstance(metrics, dict):
            out[str(name)] = {
                ("sIoU_given_span" if k == "sIoU" else str(k)): v
                for k, v in metrics.items()
                if isinstance(v, dict)
                and all(_is_number(v.get(part)) for part in ("mean", "low", "high", "n"))
            }
    return out


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**53


def _facts(
    annotations: Mapping[str, Mapping[str, Any]], records: list[Record], lines: Mapping[str, Line]
) -> dict[str, VideoFacts]:
    """Of every video: what the annotations know exactly; the size from an answer, else from the scene's shape."""
    out: dict[str, VideoFacts] = {}
    for record in records:
        key, line, note = video_key(record.video), lines.get(record.id), annotations[record.id]
        if key in out or line is None:
            continue
        grid = line.prediction.grid
        height = 180 if grid is None else grid.height
        width = even(height * 16 / 9) if grid is None else grid.width
        if record.video.duration_s is None and record.video.kind != "image":
            raise DataError(f"{record.id}: its annotation does not say n_frames and fps of the video")
        n, fps = _clock(record, note)
        is_image = record.video.kind == "image"
        duration_s = 0.04 if is_image else float(n / fps)
        out[key] = VideoFacts(key, key, np.arange(n) / float(fps), fps, duration_s, width, height, is_image)
    return out


def _clock(record: Record, note: Mapping[str, Any]) -> tuple[int, Fraction]:
    """Number and rate of the frames that an annotation says (an image has one)."""
    n, fps = note.get("n_frames", 1), note.get("fps", 25.0)
    whole = isinstance(n, int | float) and not isinstance(n, bool) and 1 <= n <= _MOST_FRAMES and n == int(n)
    if not whole or not _is_number(fps) or not 1e-3 <= fps <= 1000:
        raise DataError(f"{record.id}: n_frames and fps of its video are {n!r:.20} and {fps!r:.20}")
    return int(n), Fraction(fps).limit_denominator(1000)


def _with_look_alikes(record: Record, annotation: Mapping[str, Any]) -> Record:
    """Annotations of before this tag do not say it."""
    if "look_alikes" in record.tags:
        return record
    try:
        count = look_alikes(annotation)
    except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
        raise DataError(f"{record.id}: the scene of its annotation is broken ({error!r:.60})") from error
    return record if count is None else replace(record, tags={**record.tags, "look_alikes": count})


def look_alikes(annotation: Mapping[str, Any]) -> int | None:
    """How many other actors have the target's size, texture, colour and shape; None where there is no target.

    The annotation does not say which actor is meant, so it is the one whose box is the true one.
    """
    if not annotation.get("boxes_xyxy"):
        return None
    looks = [
        tuple(a[k] for k in ("size", "texture", "colour", "shape")) for a in annotation["scene"]["actors"]
    ]
    if len(set(looks)) == len(looks):
        return 0  # whichever is meant
    boxes = np.asarray(annotation["boxes_xyxy"], dtype=np.float64).reshape(-1, 4)
    told = annotation["scene"]["seed"]
    if len(told) != 3 or not 0 <= told[0] < len(_SPLITS):
        return None
    scene = make_scene(_SPLITS[told[0]], told[1], told[2], SceneConfig(still=annotation["n_frames"] == 1))
    middle = len(boxes) // 2
    all_boxes, visible = scene.boxes_at(np.asarray(annotation["times_s"], dtype=np.float64)[[middle]])
    overlap = paired_iou(all_boxes[:, 0], np.broadcast_to(boxes[middle], (len(scene.actors), 4)))
    target = int(np.argmax(np.where(visible[:, 0], overlap, -1.0)))
    if overlap[target] < 0.9:
        return None  # not this scene: made by another version
    look = scene.actors[target].look
    return sum(actor.look == look for actor in scene.actors) - 1
