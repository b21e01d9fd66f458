"""Do Refiner and Filter raise the precision of tubes? Measured on the toy world, where the truth is known.

Captions with deliberately loose spans ("a red circle" while it is in the picture, widened on both sides by up to its
own length) of things that come in or go out; motion proposals; tracks by the colour that the caption names ("colour"
in match.py), which is blind to shape and texture: things of one colour are ambiguous, and the pipeline must deal with
it. Before the Refiner a tube is the coarse span with the chosen track's boxes. Scenes are rendered, not decoded.

Rows: precision (mean over what is there after each stage) of spans (tIoU) and tubes (vIoU), and over the same captions
before and after the Refiner and the Filter's choice (kept minus dropped) with 95 % bootstrap intervals.
Captions about an action, which no presence of boxes can bound, are not in it: `kind="event"` measures those.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np

from tubelet.errors import DataError
from tubelet.frames import Clip, FrameGrid
from tubelet.metrics.bootstrap import Interval, bootstrap_mean, bootstrap_means, paired_difference
from tubelet.metrics.grounding import Truth, score_tube
from tubelet.tube import Span, Tube
from tubelet.unistg.annotator import annotate, load_annotator
from tubelet.unistg.filter import filter_records
from tubelet.unistg.recipe import AnnotatorSettings, UniSTGRecipe
from tubelet.unistg.records import Caption, Detected, Drop, Phrase, Sample
from tubelet.unistg.refiner import choose_boxes, refine

_FPS = 8.0
_SIDE = 96


@dataclass(frozen=True, slots=True)
class Proof:
    """stages: stage -> {"tIoU", "vIoU"} precision. gains: named differences. drops: "stage: reason" -> count."""

    captions: int
    stages: dict[str, dict[str, Interval]]
    gains: dict[str, dict[str, Interval]]
    drops: dict[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        def plain(table: dict[str, dict[str, Interval]]) -> dict[str, Any]:
            return {a: {b: i.to_dict() for b, i in row.items()} for a, row in table.items()}

        stages, gains = plain(self.stages), plain(self.gains)
        return {"captions": self.captions, "stages": stages, "gains": gains, "drops": self.drops}


def prove(n: int = 150, seed: int = 11, kind: str = "presence", recipe: UniSTGRecipe | None = None) -> Proof:
    """`n` captions, one per scene. kind: "presence" (truth: when it is in the picture) or "event" (its action)."""
    if kind not in ("presence", "event"):
        raise DataError(f"kind is presence or event, got {kind!r}")
    recipe = recipe or UniSTGRecipe(annotator=AnnotatorSettings(provider="motion", match="colour", fps=4.0))
    annotator = load_annotator(recipe.annotator)
    scores: dict[str, list[tuple[float, float]]] = {"coarse": [], "refined": [], "filtered": []}
    pairs: list[tuple[tuple[float, float], tuple[float, float]]] = []
    thrown: list[tuple[float, float]] = []
    drops: dict[str, int] = {}
    for clip, phrase, truth in _captions(n, seed, kind):
        found = annotate([phrase], clip, annotator)[0]
        if isinstance(found, Drop):
            _count(drops, found)
            continue
        before = _judged(_coarse_tube(found), truth)
        scores["coarse"].append(before)
        refined = refine(found, recipe.refiner)
        if isinstance(refined, Drop):
            _count(drops, refined)
            continue
        whole = Tube(refined.span, refined.times_s, refined.boxes_xyxy)
        after = _judged(whole, truth)
        scores["refined"].append(after)
        pairs.append((before, after))
        answer = next(filter_records([refined], recipe))
        if isinstance(answer, Sample):
            scores["filtered"].append(_judged(answer.tube, truth))
        else:
            thrown.append(after)
            _count(drops, answer)
    names = ("tIoU", "vIoU")
    stages = {
        stage: {name: bootstrap_mean([v[k] for v in rows]) for k, name in enumerate(names)}
        for stage, rows in scores.items()
    }
    gains: dict[str, dict[str, Interval]] = {"refiner, same captions": {}, "filter, after minus before": {}}
    for k, name in enumerate(names):
        gains["refiner, same captions"][name] = paired_difference(
            [b[k] for _, b in pairs], [a[k] for a, _ in pairs]
        )
        gains["filter, after minus before"][name] = _selection(
            [v[k] for v in scores["filtered"]], [v[k] for v in thrown]
        )
    return Proof(n, stages, gains, dict(sorted(drops.items())))


def _selection(kept: list[float], thrown: list[float]) -> Interval:
    """mean(kept) - mean(kept and thrown), captions redrawn together."""
    values = np.array(kept + thrown)
    mask = np.array([1.0] * len(kept) + [np.nan] * len(thrown))
    if not kept:
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    table = bootstrap_means(np.stack([values * mask, values], axis=1))
    draws = table[:, 0] - table[:, 1]
    low, high = np.nanquantile(draws, [0.025, 0.975])
    return Interval(float(np.mean(kept) - values.mean()), float(low), float(high), len(values))


def _captions(n: int, seed: int, kind: str) -> Iterator[tuple[Clip, Phrase, Truth]]:
    from tubelet.world.choreography import SceneConfig, make_scene
    from tubelet.world.render import render

    found = index = 0
    while found < n:
        scene = make_scene("test", seed, index, SceneConfig())
        rng = np.random.default_rng([seed, index, 9])
        index += 1
        chosen = _target(scene, rng, kind)
        if chosen is None:
            continue
        actor, span = chosen
        before, after = rng.uniform(0.3, 1.0, size=2) * span.duration_s
        coarse = Span(max(0.0, span.start_s - before), min(scene.duration_s, span.end_s + after))
        times = np.arange(int(scene.duration_s * _FPS)) / _FPS
        pixels = render([scene], [times], _SIDE, _SIDE)[0].numpy()
        grid = FrameGrid(np.arange(len(times)), times, Fraction(8), scene.duration_s, _SIDE, _SIDE)
        boxes, visible = scene.boxes_at(times)
        has = visible[actor] & np.asarray(span.contains(times))
        if not has.any():
            continue
        look = scene.actors[actor]
        text = f"a {look.colour} {look.shape}"
        caption = Caption(f"world:{seed}:{index}", "world", f"{index}.mp4", text, coarse, scene.duration_s)
        found += 1
        yield (
            Clip(pixels, grid),
            Phrase(caption, text, True, "exact"),
            Truth(span, times, times[has], boxes[actor][has]),
        )


def _target(scene: Any, rng: np.random.Generator, kind: str) -> tuple[int, Span] | None:
    spans = []
    for number, actor in enumerate(scene.actors):
        if kind == "event":
            spans += [(number, e.span) for e in actor.events]
        else:
            seen = scene.visible_span(number)
            if seen is not None and 1.5 <= seen.duration_s < 0.85 * scene.duration_s:
                spans.append((number, seen))
    return spans[int(rng.integers(len(spans)))] if spans else None


def _coarse_tube(detected: Detected) -> Tube:
    rows, boxes, scores, _ = choose_boxes(detected)
    return Tube(detected.coarse, detected.times_s[rows], boxes, box_scores=scores)


def _judged(tube: Tube, truth: Truth) -> tuple[float, float]:
    score = score_tube(tube, truth)
    return score.tiou, score.viou


def _count(drops: dict[str, int], drop: Drop) -> None:
    name = f"{drop.stage}: {drop.reason}"
    drops[name] = drops.get(name, 0) + 1
