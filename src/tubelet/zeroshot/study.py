"""What each part of the zero-shot method brings, on the toy world with true tracks as proposals.

    random            a random track, all of its visible time
    mean              mean of all candidate tokens (the paper's baseline)
    + token           token identification
    + spatial, + temporal, + both, + assembling     the tunings, and the reversed video

Scenes are rendered, not decoded: the same frames for all variants. Per query: is the chosen track the target's? vIoU?
A query that fails counts 0 and is counted. Every answer is a line of queries.jsonl in the folder of the study, so that
a study that was stopped goes on where it was, and one of more queries begins with those that were asked. Layers, tokens
and wordings are chosen on the split "val"; "test" is for the numbers.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from tubelet.errors import OutputError, QueryError, TubeletError
from tubelet.frames import Clip, FrameGrid
from tubelet.metrics.bootstrap import Interval, bootstrap_mean
from tubelet.metrics.grounding import Truth, score_tube
from tubelet.proposals import Tracks
from tubelet.proposals.store import video_hash
from tubelet.proposals.world_truth import tracks_of_scene
from tubelet.tube import Prediction
from tubelet.zeroshot.grounder import ZeroShotGrounder
from tubelet.zeroshot.settings import ZeroShotSettings

METRICS = ("m_tIoU", "m_vIoU", "track_accuracy")
SPLITS = ("val", "test")

VARIANTS: dict[str, dict[str, Any]] = {
    "mean": {"token": "mean"},
    "+ token": {},
    "+ spatial": {"spatial": True},
    "+ temporal": {"temporal": True},
    "+ both": {"spatial": True, "temporal": True},
    "+ assembling": {"spatial": True, "temporal": True, "assemble": True},
}


@dataclass(frozen=True, slots=True)
class Study:
    """rows: variant -> "m_vIoU", "m_tIoU" and "track_accuracy"; n queries; failed: variant -> how many.

    better: variant -> difference to "random" per metric, paired by query.
    """

    rows: dict[str, dict[str, Interval]]
    n: int
    failed: dict[str, int]
    better: dict[str, dict[str, Interval]]


@dataclass(frozen=True, slots=True)
class Asked:
    """One line of queries.jsonl: what one variant answered to one query. scores: as METRICS."""

    index: int
    variant: str
    scores: tuple[float, float, float]
    failed: bool


def study(
    grounder: ZeroShotGrounder,
    n: int = 300,
    seed: int = 7,
    variants: tuple[str, ...] = tuple(VARIANTS),
    out: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    split: str = "test",
) -> Study:
    """n queries, one per scene of two or more things. Keeps queries.jsonl and writes study.json in `out`.

    Raises QueryError for another variant or split and OutputError for a folder that holds another study.
    """
    unknown = set(variants) - set(VARIANTS)
    if unknown:
        raise QueryError(f"variants are {', '.join(VARIANTS)}; got {', '.join(sorted(unknown))}")
    if split not in SPLITS:
        raise QueryError(f"split is {' or '.join(SPLITS)}, got {split!r}")
    base: ZeroShotSettings = grounder.settings
    about = {
        "model": grounder.name,
        "revision": grounder.revision,
        "split": split,
        "seed": seed,
        "settings": json.loads(json.dumps(asdict(base))),
    }
    kept = _Kept(out, about)
    wanted = ("random", *variants)
    try:
        for index, query in enumerate(_queries(n, seed, grounder.max_frames, _side(grounder), split)):
            left = [name for name in wanted if (index, name) not in kept.found]
            if left:
                for asked in _ask(grounder, base, query(), index, seed, left):
                    kept.add(asked)
            if progress is not None:
                progress(index + 1, n)
    finally:
        grounder.settings = base
    result = _summary(kept.found, wanted, n)
    if out is not None:
        data = {
            **about,
            "n": n,
            "failed": result.failed,
            "rows": {v: {m: i.to_dict() for m, i in row.items()} for v, row in result.rows.items()},
            "better_than_random": {
                v: {m: i.to_dict() for m, i in row.items()} for v, row in result.better.items()
            },
        }
        _write(out / "study.json", data)
    return result


def _ask(
    grounder: ZeroShotGrounder,
    base: ZeroShotSettings,
    query: tuple[Clip, Tracks, str, Truth, int],
    index: int,
    seed: int,
    variants: list[str],
) -> Iterator[Asked]:
    clip, tracks, text, truth, target = query
    state = None
    ids = [track.track_id for track in tracks]
    for name in variants:
        if name == "random":
            drawn = int(np.random.default_rng([seed, index, 5]).integers(len(tracks)))
            yield Asked(index, name, _judged(_whole(tracks, drawn), truth, drawn == target), False)
            continue
        grounder.settings = replace(base, **VARIANTS[name])
        try:
            state = state or grounder.encode(clip, tracks=tracks)
            prediction = grounder.ground(state, text, "stvg")
        except (TubeletError, RuntimeError, MemoryError) as error:  # counts 0: the others are asked
            prediction = Prediction("clip", text, "stvg", failure=f"{type(error).__name__}: {error}")
        row = None if prediction.tube is None else ids.index(prediction.provenance["track"])
        scores = _judged(prediction.tube, truth, row == target)
        yield Asked(index, name, scores, prediction.failure is not None)


def _summary(found: dict[tuple[int, str], Asked], variants: tuple[str, ...], n: int) -> Study:
    values = {v: np.array([found[index, v].scores for index in range(n)]) for v in variants}
    rows = {
        v: {name: bootstrap_mean(scores[:, k].tolist()) for k, name in enumerate(METRICS)}
        for v, scores in values.items()
    }
    better = {
        v: {
            name: bootstrap_mean((scores - values["random"])[:, k].tolist()) for k, name in enumerate(METRICS)
        }
        for v, scores in values.items()
        if v != "random"
    }
    failed = {v: sum(found[index, v].failed for index in range(n)) for v in variants}
    return Study(rows, n, failed, better)


class _Kept:
    """The lines of a folder's queries.jsonl, and a way to add to them; folder None: in memory only."""

    def __init__(self, folder: Path | None, about: dict[str, Any]) -> None:
        self.found: dict[tuple[int, str], Asked] = {}
        self.path = None if folder is None else folder / "queries.jsonl"
        if folder is None or self.path is None:
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
            about_path = folder / "about.json"
            if about_path.is_file():
                if json.loads(about_path.read_text(encoding="utf-8")) != about:
                    raise OutputError(
                        f"{folder} holds a study of other settings, another model, split or seed: choose another folder"
                    )
            else:
                _write(about_path, about)
            lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.is_file() else []
        except (OSError, ValueError) as error:
            raise OutputError(f"cannot keep a study in {folder}: {error}") from error
        for line in lines:
            try:
                data = json.loads(line)
                scores = tuple(float(x) for x in data["scores"])
                asked = Asked(int(data["index"]), str(data["variant"]), scores, bool(data["failed"]))  # type: ignore[arg-type]
            except (ValueError, LookupError, TypeError):
                continue  # cut short when the study was stopped: asked again
            if len(scores) == len(METRICS):
                self.found[asked.index, asked.variant] = asked

    def add(self, asked: Asked) -> None:
        self.found[asked.index, asked.variant] = asked
        if self.path is not None:
            try:
                with self.path.open("a+b") as file:
                    # a line that was cut short must not swallow the next one
                    if file.tell() and not _ends_line(self.path):
                        file.write(b"\n")
                    file.write(json.dumps(asdict(asked)).encode() + b"\n")
            except OSError as error:
                raise OutputError(f"cannot write {self.path}: {error.strerror or error}") from error


def _ends_line(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def _write(path: Path, data: dict[str, Any]) -> None:
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


def _side(grounder: ZeroShotGrounder) -> int:
    """Scenes are drawn as large as the model sees them: small models were trained so."""
    size = getattr(grounder.mllm.model.config.vision_config, "image_size", None)
    side = size[0] if isinstance(size, list | tuple) else size
    return min(max(int(side or 224), 64), 224)


def _queries(n: int, seed: int, frames: int, side: int, split: str) -> Iterator[Callable[[], Any]]:
    """Functions that draw the scene: one that was asked already is not drawn."""
    from tubelet.training.samples import sample_times
    from tubelet.world.choreography import SceneConfig, make_scene
    from tubelet.world.render import render
    from tubelet.world.tasks import make_questions, truth_boxes

    found = index = 0
    while found < n:
        scene = make_scene(split, seed, index, SceneConfig())
        index += 1
        if len(scene.actors) < 2:
            continue
        questions = make_questions(scene, np.random.default_rng([seed, index]), ("stvg",), 1, absent_rate=0.0)
        if not questions or questions[0].span is None:
            continue
        times = sample_times(scene.duration_s, frames)
        fps = Fraction(len(times)) / Fraction(scene.duration_s).limit_denominator(1000)
        grid = FrameGrid(np.arange(len(times)), times, fps, scene.duration_s, side, side)
        tracks = tracks_of_scene(scene, grid)
        question = questions[0]
        boxes, has = truth_boxes(scene, question, times)
        ids = [t.track_id for t in tracks]
        if question.actor not in ids or not has.any():
            continue
        truth = Truth(question.span, times, times[has], boxes[has])
        target, query = ids.index(question.actor), question.query

        def draw(
            scene: Any = scene,
            grid: FrameGrid = grid,
            tracks: Any = tracks,
            query: str = query,
            truth: Truth = truth,
            target: int = target,
        ) -> Any:
            clip = Clip(render([scene], [grid.times_s], side, side)[0].numpy(), grid)
            made = Tracks(grid, tuple(tracks), video_hash=video_hash(clip), provider="world-truth")
            return clip, made, query, truth, target

        found += 1
        yield draw


def _whole(tracks: Tracks, row: int) -> Any:
    from tubelet.proposals.track import to_tube

    return to_tube(tracks[row], tracks.grid)


def _judged(tube: Any, truth: Truth, right: bool) -> tuple[float, float, float]:
    score = score_tube(tube, truth)
    return score.tiou, score.viou, float(right)
