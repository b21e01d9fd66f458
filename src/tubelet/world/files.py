"""The toy world on disk: mp4 files (or png images) with annotations, as any video dataset would come.

    DIR/annotations.jsonl   one question per line, with the exact truth on the native frames (docs/json.md)
    DIR/videos/*.mp4        H.264 (DIR/images/*.png for rec, reg, dgc)
    DIR/world.json          the settings it was made with

The default split is "test": its scenes can never be seen in training (see `scene.scene_rng`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from tubelet.errors import DataError, OutputError
from tubelet.world.choreography import SceneConfig, make_scene
from tubelet.world.render import render
from tubelet.world.scene import Scene
from tubelet.world.tasks import IMAGE_TASKS, Question, make_questions, truth_boxes

SCHEMA_VERSION = 1
WORLD_VERSION = 2  # of the scenes that a seed stands for; 1: touching shapes stopped short of each other
_CHUNK = 32  # frames drawn at a time: bounds memory


def scene_with_questions(
    split: str, seed: int, index: int, tasks: Sequence[str], count: int, still: bool
) -> tuple[Scene, list[Question]]:
    """Scene number `index` of a split and up to `count` questions; while it has none, a scene further on."""
    for attempt in range(50):
        scene = make_scene(split, seed, index + 1_000_000 * attempt, SceneConfig(still=still))
        rng = np.random.default_rng([seed, index, attempt, 5])
        questions = make_questions(scene, rng, tasks, count)
        if questions:
            return scene, questions
    raise DataError(f"no scene of the toy world has a question of task {', '.join(tasks)}")


def draw_frames(scene: Scene, height: int, fps: float) -> Iterator[np.ndarray[Any, np.dtype[np.uint8]]]:
    """All frames of a scene, (H, W, 3) uint8, one after the other; frame k shows time k / fps."""
    width = even(height * scene.aspect)
    times = frame_times(scene, fps)
    for lo in range(0, len(times), _CHUNK):
        yield from render([scene], [times[lo : lo + _CHUNK]], height, width)[0].numpy()


def frame_times(scene: Scene, fps: float) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.arange(max(1, round(scene.duration_s * fps))) / fps


def even(pixels: float) -> int:
    return 2 * max(8, round(pixels / 2))


def make_world(
    folder: Path | str,
    n: int,
    seed: int = 0,
    split: str = "test",
    tasks: Sequence[str] = ("stvg",),
    questions: int = 1,
    height: int = 180,
    fps: float = 15.0,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write `n` scenes with up to `questions` questions each; returns the annotations file.

    Videos that are already there are kept (they are a function of split, seed and index), so an interrupted
    call can be repeated with the same settings. Image tasks write png files. Raises DataError for unknown or
    mixed tasks, numbers that make no sense, and a folder that was made with other settings.
    """
    from PIL import Image

    from tubelet.video import VideoWriter

    if min(n, questions, height) < 1 or not 0 < fps < math.inf or not tasks:
        raise DataError(
            "a toy world needs n, questions and height of at least 1, fps above 0 and a task, "
            f"got {n}, {questions}, {height}, {fps} and {', '.join(tasks) or 'none'}"
        )
    still = all(task in IMAGE_TASKS for task in tasks) and tuple(tasks) != ("qa",)
    if not still and any(task in ("rec", "reg", "dgc") for task in tasks):
        raise DataError("image tasks (rec, reg, dgc) and video tasks cannot be in one folder: make two")
    # what makes no sense is refused before anything is made
    scene_with_questions(split, seed, 0, tasks, questions, still)
    folder, height = Path(folder), even(height)
    media = folder / ("images" if still else "videos")
    settings = {"tasks": list(tasks), "questions": questions, "height": height, "fps": fps}
    lines: list[str] = []
    try:
        media.mkdir(parents=True, exist_ok=True)
        _keep_settings(folder, settings, started=any(media.iterdir()))
        for index in range(n):
            scene, asked = scene_with_questions(split, seed, index, tasks, questions, still)
            name = f"{split}-{seed}-{index:05d}"
            path = media / f"{name}.{'png' if still else 'mp4'}"
            if not path.exists():
                if still:
                    with _replacing(path) as part:
                        Image.fromarray(next(draw_frames(scene, height, 1.0))).save(part, format="PNG")
                else:
                    with VideoWriter(path, even(height * scene.aspect), height, fps) as writer:
                        for frame in draw_frames(scene, height, fps):
                            writer.write(frame)
            lines += [
                json.dumps(annotation(scene, q, f"{name}-{k}", f"{media.name}/{path.name}", fps))
                for k, q in enumerate(asked)
            ]
            if progress is not None:
                progress(index + 1, n)
        annotations = folder / "annotations.jsonl"
        with _replacing(annotations) as part:
            part.write_text("\n".join(lines) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write the toy world to {folder}: {error.strerror or error}") from error
    return annotations


def _keep_settings(folder: Path, settings: dict[str, Any], started: bool) -> None:
    """Note the settings in DIR/world.json; DataError if the files that are there were made with others."""
    path = folder / "world.json"
    text = json.dumps({"schema": SCHEMA_VERSION, "world": WORLD_VERSION, **settings}, indent=1) + "\n"
    if started and path.exists() and path.read_text(encoding="utf-8") != text:
        raise DataError(
            f"{folder} holds a toy world with other settings, or of another version (see {path}): its files "
            f"would not fit these annotations ({settings}); give another folder, or delete this one"
        )
    with _replacing(path) as part:
        part.write_text(text, encoding="utf-8")


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A hidden sibling to write to; it becomes `path` when the block ends well, and is gone when not."""
    part = path.with_name(f".{path.name}.part")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _look_alikes(scene: Scene, question: Question, boxed: bool) -> dict[str, int]:
    """A tag for breakdowns: how many other actors have the look of the one that is to be boxed."""
    if question.actor is None or not question.present or not boxed:
        return {}
    look = scene.actors[question.actor].look
    return {"look_alikes": sum(actor.look == look for actor in scene.actors) - 1}


def annotation(scene: Scene, question: Question, name: str, video: str, fps: float) -> dict[str, Any]:
    """One line of annotations.jsonl: the question, and its truth on every native frame."""
    times = frame_times(scene, fps) if video.endswith(".mp4") else np.zeros(1)
    boxes, has = truth_boxes(scene, question, times)
    at = np.nonzero(has)[0]
    first = scene.boxes_at([0.0])[0][:, 0]
    return {
        "schema": SCHEMA_VERSION,
        "id": name,
        "video": video,
        "task": question.task,
        "query": question.query,
        "present": question.present,
        "span": None if question.span is None else question.span.to_dict(),
        "frame_index": at.tolist(),
        "times_s": np.round(times[at], 6).tolist(),
        "boxes_xyxy": np.round(boxes[at], 5).tolist(),
        "answer": question.answer,
        "given_box": question.given_box,
        "phrases": [
            {"text": text, "actor": actor, "box_xyxy": np.round(first[actor], 5).tolist()}
            for text, actor in question.phrases
        ],
        "kind": question.kind,
        "tags": question.tags | _look_alikes(scene, question, len(at) > 0),
        "duration_s": scene.duration_s,
        "fps": fps,
        "n_frames": len(times),
        "scene": {"seed": list(scene.seed), "actors": [asdict(a) for a in scene.actors]},
    }


def read_annotations(folder: Path | str) -> list[dict[str, Any]]:
    """Lines of DIR/annotations.jsonl; DataError that names the line when one is broken."""
    path = Path(folder) / "annotations.jsonl"
    if not path.is_file():
        raise DataError(
            f"{folder} has no annotations.jsonl: make it with 'tubelet world make {folder} --n 100'"
        )
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # other line ends may stand in a text
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    records = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}, line {number}: not JSON ({error})") from error
        if not isinstance(record, dict):
            raise DataError(f"{path}, line {number}: expected a JSON object, got {type(record).__name__}")
        missing = [key for key in ("id", "video", "task", "query", "present") if key not in record]
        if missing:
            raise DataError(f"{path}, line {number}: lacks {', '.join(missing)}")
        if record.get("schema", SCHEMA_VERSION) != SCHEMA_VERSION:
            raise DataError(
                f"{path}, line {number}: schema {record['schema']!r}, this tubelet reads {SCHEMA_VERSION}: "
                "make the folder again, or use the tubelet that made it"
            )
        records.append(record)
    return records
