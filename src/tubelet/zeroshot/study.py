"""What each part of the zero-shot method brings, on the toy world with true tracks as proposals.

    random            a random track, all of its visible time
    mean              mean of all candidate tokens (the paper's baseline)
    + token           token identification
    + spatial, + temporal, + both, + assembling     the tunings, and the reversed video

Scenes are rendered, not decoded: the same frames for all variants. Per query: is the chosen track the target's? vIoU?
A query that fails counts 0 and is counted.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from tubelet.errors import QueryError
from tubelet.frames import Clip, FrameGrid
from tubelet.metrics.bootstrap import Interval, bootstrap_mean
from tubelet.metrics.grounding import Truth, score_tube
from tubelet.proposals import Tracks
from tubelet.proposals.store import video_hash
from tubelet.proposals.world_truth import tracks_of_scene
from tubelet.zeroshot.grounder import ZeroShotGrounder
from tubelet.zeroshot.settings import ZeroShotSettings

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
    """rows: variant -> "m_vIoU", "m_tIoU" and "track_accuracy"; n queries; failed: variant -> how many."""

    rows: dict[str, dict[str, Interval]]
    n: int
    failed: dict[str, int]


def study(
    grounder: ZeroShotGrounder,
    n: int = 300,
    seed: int = 7,
    variants: tuple[str, ...] = tuple(VARIANTS),
    out: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Study:
    """n queries, one per scene of two or more things. Writes study.json into `out`."""
    unknown = set(variants) - set(VARIANTS)
    if unknown:
        raise QueryError(f"variants are {', '.join(VARIANTS)}; got {', '.join(sorted(unknown))}")
    base: ZeroShotSettings = grounder.settings
    values: dict[str, list[tuple[float, float, float]]] = {name: [] for name in ("random", *variants)}
    failed = dict.fromkeys(values, 0)
    asked = 0
    for index, (clip, tracks, query, truth, target) in enumerate(_queries(n, seed, grounder.max_frames)):
        state = grounder.encode(clip, tracks=tracks)
        ids = [track.track_id for track in tracks]
        drawn = int(np.random.default_rng([seed, index, 5]).integers(len(tracks)))
        values["random"].append(_judged(_whole(tracks, drawn), truth, drawn == target))
        for name in variants:
            grounder.settings = replace(base, **VARIANTS[name])
            prediction = grounder.ground(state, query, "stvg")
            failed[name] += prediction.failure is not None
            row = None if prediction.tube is None else ids.index(prediction.provenance["track"])
            values[name].append(_judged(prediction.tube, truth, row == target))
        asked += 1
        if progress is not None:
            progress(asked, n)
    grounder.settings = base
    names = ("m_tIoU", "m_vIoU", "track_accuracy")
    rows = {
        variant: {name: bootstrap_mean([v[k] for v in found]) for k, name in enumerate(names)}
        for variant, found in values.items()
    }
    result = Study(rows, asked, failed)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        data = {
            "model": grounder.name,
            "revision": grounder.revision,
            "n": asked,
            "seed": seed,
            "failed": failed,
            "rows": {v: {m: i.to_dict() for m, i in row.items()} for v, row in rows.items()},
        }
        temporary = out / ".study.json.part"
        temporary.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
        temporary.replace(out / "study.json")
    return result


def _queries(n: int, seed: int, frames: int) -> Any:
    from tubelet.training.samples import sample_times
    from tubelet.world.choreography import SceneConfig, make_scene
    from tubelet.world.render import render
    from tubelet.world.tasks import make_questions, truth_boxes

    found = index = 0
    while found < n:
        scene = make_scene("test", seed, index, SceneConfig())
        index += 1
        if len(scene.actors) < 2:
            continue
        questions = make_questions(scene, np.random.default_rng([seed, index]), ("stvg",), 1, absent_rate=0.0)
        if not questions or questions[0].span is None:
            continue
        times = sample_times(scene.duration_s, frames)
        pixels = render([scene], [times], 96, 96)[0].numpy()
        fps = Fraction(len(times)) / Fraction(scene.duration_s).limit_denominator(1000)
        clip = Clip(pixels, FrameGrid(np.arange(len(times)), times, fps, scene.duration_s, 96, 96))
        tracks = tracks_of_scene(scene, clip.grid)
        question = questions[0]
        boxes, has = truth_boxes(scene, question, times)
        ids = [t.track_id for t in tracks]
        if question.actor not in ids or not has.any():
            continue
        made = Tracks(clip.grid, tuple(tracks), video_hash=video_hash(clip), provider="world-truth")
        truth = Truth(question.span, times, times[has], boxes[has])
        found += 1
        yield clip, made, question.query, truth, ids.index(question.actor)


def _whole(tracks: Tracks, row: int) -> Any:
    from tubelet.proposals.track import to_tube

    return to_tube(tracks[row], tracks.grid)


def _judged(tube: Any, truth: Truth, right: bool) -> tuple[float, float, float]:
    score = score_tube(tube, truth)
    return score.tiou, score.viou, float(right)
