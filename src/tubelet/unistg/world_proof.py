"""Do Refiner and Filter raise the precision of tubes? Measured on the toy world, where the truth is known.

Captions with deliberately loose spans ("a red circle" while it is in the picture, widened on both sides by up to its
own length) of things that come in or go out; motion proposals; tracks by the colour that the caption names ("colour"
in match.py), which is blind to shape and texture: things of one colour are ambiguous, and the pipeline must deal with
it. Before the Refiner a tube is the coarse span with the chosen track's boxes. Scenes are rendered, not decoded.

Rows, with 95 % bootstrap intervals: precision (mean over what is there after each stage) of spans (tIoU) and tubes
(vIoU); the Refiner's gain over the same captions; the Filter's, which is what it kept minus all that it was given.
The Filter is run as the recipe has it (`world_recipe`), with the default settings, and with the paper's ("paper").
Captions about an action, which no presence of boxes can bound, are not in it: `kind="event"` measures those.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
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
from tubelet.unistg.recipe import AnnotatorSettings, FilterSettings, UniSTGRecipe
from tubelet.unistg.records import Caption, Detected, Drop, Phrase, Refined, Sample
from tubelet.unistg.refiner import choose_boxes, refine

_FPS = 8.0
_SIDE = 96
_METRICS = ("tIoU", "vIoU")


@dataclass(frozen=True, slots=True)
class Proof:
    """stages: stage -> {"tIoU", "vIoU"} precision. gains: named differences. drops: "stage: reason" -> count.

    The Filter's names end with " (default)" and " (paper)" where it ran with other settings than the recipe's.
    """

    captions: int
    stages: dict[str, dict[str, Interval]]
    gains: dict[str, dict[str, Interval]]
    drops: dict[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        def plain(table: dict[str, dict[str, Interval]]) -> dict[str, Any]:
            return {a: {b: i.to_dict() for b, i in row.items()} for a, row in table.items()}

        stages, gains = plain(self.stages), plain(self.gains)
        return {"captions": self.captions, "stages": stages, "gains": gains, "drops": self.drops}


@dataclass(frozen=True, slots=True)
class _Case:
    """What the Refiner gave for a caption, and (tIoU, vIoU) before and after it."""

    refined: Refined
    truth: Truth
    before: tuple[float, float]
    after: tuple[float, float]


def world_recipe() -> UniSTGRecipe:
    """recipes/unistg/world.yaml without its files. One box per frame: a phrase means one thing of the few in a scene
    (half of the scenes hold a twin), and a second candidate leaves open which."""
    annotator = AnnotatorSettings(provider="motion", match="colour", fps=4.0)
    return UniSTGRecipe(annotator=annotator, filter=FilterSettings(max_boxes=1))


def prove(n: int = 150, seed: int = 11, kind: str = "presence", recipe: UniSTGRecipe | None = None) -> Proof:
    """`n` captions, one per scene. kind: "presence" (truth: when it is in the picture) or "event" (its action).

    recipe: None is `world_recipe`.
    """
    if kind not in ("presence", "event"):
        raise DataError(f"kind is presence or event, got {kind!r}")
    recipe = recipe or world_recipe()
    annotator = load_annotator(recipe.annotator)
    coarse: list[tuple[float, float]] = []
    judged: list[_Case] = []
    drops: dict[str, int] = {}
    for clip, phrase, truth in _captions(n, seed, kind):
        found = annotate([phrase], clip, annotator)[0]
        if isinstance(found, Drop):
            _count(drops, found)
            continue
        before = _judged(_coarse_tube(found), truth)
        coarse.append(before)
        refined = refine(found, recipe.refiner)
        if isinstance(refined, Drop):
            _count(drops, refined)
            continue
        whole = Tube(refined.span, refined.times_s, refined.boxes_xyxy)
        judged.append(_Case(refined, truth, before, _judged(whole, truth)))
    stages = {"coarse": _means(coarse), "refined": _means([j.after for j in judged])}
    refiner = {
        name: paired_difference([j.after[k] for j in judged], [j.before[k] for j in judged])
        for k, name in enumerate(_METRICS)
    }
    gains = {"refiner, same captions": refiner}
    others = {"": recipe.filter, " (default)": FilterSettings(), " (paper)": FilterSettings(edge_margin=None)}
    for which, chosen in others.items():
        answers = list(filter_records((j.refined for j in judged), replace(recipe, filter=chosen)))
        kept = [
            _judged(answer.tube, j.truth) if isinstance(answer, Sample) else None
            for j, answer in zip(judged, answers, strict=True)
        ]
        stages["filtered" + which] = _means([score for score in kept if score is not None])
        gains["filter, after minus before" + which] = {
            name: _selection([j.after[k] for j in judged], [None if s is None else s[k] for s in kept])
            for k, name in enumerate(_METRICS)
        }
        for answer in answers:
            if isinstance(answer, Drop):
                _count(drops, answer, which)
    return Proof(n, stages, gains, dict(sorted(drops.items())))


def _means(scores: list[tuple[float, float]]) -> dict[str, Interval]:
    return {name: bootstrap_mean([score[k] for score in scores]) for k, name in enumerate(_METRICS)}


def _selection(before: list[float], after: list[float | None]) -> Interval:
    """mean(after, where there is one) - mean(before), captions redrawn together."""
    table = np.stack([np.array([np.nan if a is None else a for a in after]), np.array(before)], axis=1)
    if np.isnan(table[:, 0]).all():
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    means = bootstrap_means(table)
    draws = means[:, 0] - means[:, 1]
    low, high = np.nanquantile(draws, [0.025, 0.975])
    value = float(np.nanmean(table[:, 0]) - table[:, 1].mean())
    return Interval(value, float(low), float(high), len(table))


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


def _count(drops: dict[str, int], drop: Drop, which: str = "") -> None:
    name = f"{drop.stage}{which}: {drop.reason}"
    drops[name] = drops.get(name, 0) + 1
