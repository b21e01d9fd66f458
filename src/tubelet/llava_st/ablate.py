"""What LLaVA-ST's parts are worth, at pico size: the same budget with and without each, over several seeds.

    full             the paper's parts
    no_injection     without coordinate embeddings on the visual features (half of LAPE; words and soft labels stay)
    average_packer   windows are averaged instead of packed by attention: the same number of tokens
    no_stages        the whole budget on all tasks at once, instead of pictures first

Every run starts from the same base, sees the same number of steps and questions, and is judged on the same validation
scenes by what it answers, greedily and unconstrained by anything but its grammar. A finished run is not repeated.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tubelet.errors import OutputError, RecipeError
from tubelet.metrics.bootstrap import Interval
from tubelet.training.recipe import Recipe, Stage, load_recipe

log = logging.getLogger(__name__)

VARIANTS = ("full", "no_injection", "average_packer", "no_stages")


@dataclass(frozen=True, slots=True)
class Ablation:
    """scores: variant -> metric -> interval over seeds and queries; runs: (variant, seed) -> metric -> mean."""

    scores: dict[str, dict[str, Interval]]
    runs: dict[tuple[str, int], dict[str, float]]
    folder: Path


def ablate(
    recipe: Recipe | Path,
    out: Path | str,
    variants: Sequence[str] = VARIANTS,
    seeds: Sequence[int] = (0, 1, 2),
    n: int = 200,
    progress: Callable[[str], None] | None = None,
) -> Ablation:
    """Train and judge every variant with every seed. `recipe`: of the full model, pictures first, then all tasks.

    n: validation pictures (REC) and half as many videos (STVG). Raises RecipeError for a recipe without two stages.
    """
    base = load_recipe(recipe) if isinstance(recipe, Path) else recipe
    if base.model != "llava-st" or len(base.stages) != 2:
        raise RecipeError("an ablation takes a llava-st recipe of two stages: pictures, then all tasks")
    unknown = set(variants) - set(VARIANTS)
    if unknown:
        raise RecipeError(f"variants are {', '.join(VARIANTS)}; got {', '.join(sorted(unknown))}")
    folder = Path(out)
    values: dict[tuple[str, int], dict[str, list[float]]] = {}
    for seed in seeds:
        for variant in variants:
            if progress is not None:
                progress(f"{variant}, seed {seed}")
            values[variant, seed] = _one_run(variant_of(base, variant), folder / f"{variant}-{seed}", seed, n)
    names = list(next(iter(values.values())))
    scores = {
        variant: {name: over_seeds([values[variant, seed][name] for seed in seeds]) for name in names}
        for variant in variants
    }
    runs = {key: {name: float(np.mean(v)) for name, v in row.items()} for key, row in values.items()}
    result = Ablation(scores, runs, folder)
    _write(result, n)
    return result


def variant_of(recipe: Recipe, variant: str) -> Recipe:
    """The recipe without one part; the number of steps stays."""
    config = recipe.llava_st
    match variant:
        case "no_injection":
            return replace(recipe, llava_st=replace(config, inject=False))
        case "average_packer":
            return replace(recipe, llava_st=replace(config, packer=replace(config.packer, kind="average")))
        case "no_stages":
            first, last = recipe.stages
            whole: Stage = replace(last, steps=first.steps + last.steps)
            return replace(recipe, stages=(whole,))
    return recipe


def _one_run(recipe: Recipe, folder: Path, seed: int, n: int) -> dict[str, list[float]]:
    """Per-query values of one trained model; read back where they are there."""
    kept = folder / "values.json"
    if kept.is_file():
        found: dict[str, list[float]] = json.loads(kept.read_text(encoding="utf-8"))
        return found
    from tubelet.grounder import load
    from tubelet.llava_st.train import make_job
    from tubelet.training.loop import train

    stages = tuple(
        replace(stage, data=tuple(replace(mix, seed=mix.seed + seed) for mix in stage.data))
        for stage in recipe.stages
    )
    recipe = replace(recipe, out=str(folder), seed=recipe.seed + seed, stages=stages)
    train(recipe, make_job(recipe))
    values = judge(load(folder / "model"), n)
    temporary = folder / ".values.json.part"
    try:
        temporary.write_text(json.dumps(values) + "\n", encoding="utf-8")
        temporary.replace(kept)
    except OSError as error:
        raise OutputError(f"cannot write {kept}: {error.strerror or error}") from error
    return values


def judge(grounder: Any, n: int, seed: int = 3) -> dict[str, list[float]]:
    """Values per query on rendered validation scenes: IoU and hit of REC, tIoU and vIoU of STVG."""
    from fractions import Fraction

    from tubelet.frames import Clip, FrameGrid
    from tubelet.metrics.boxes import paired_iou
    from tubelet.metrics.grounding import Truth, score_tube
    from tubelet.training.samples import WorldMix, world_batch

    out: dict[str, list[float]] = {"rec_iou": [], "rec_acc": [], "stvg_tiou": [], "stvg_viou": []}
    image = WorldMix(kind="image", batch=n, questions=1, tasks=("rec",), absent_rate=0.0, seed=seed)
    for sample in world_batch(image, 0, split="val"):
        target = sample.questions[0]
        grid = FrameGrid(np.array([0]), np.zeros(1), Fraction(25), 0.04, *sample.pixels.shape[2:0:-1])
        tube = grounder.ground(Clip(sample.pixels, grid), target.query, "rec").tube
        iou = 0.0 if tube is None else float(paired_iou(tube.boxes_xyxy[:1], target.boxes_xyxy[:1])[0])
        out["rec_iou"].append(iou)
        out["rec_acc"].append(float(iou >= 0.5))
    frames = grounder.max_frames
    video = WorldMix(
        batch=max(1, n // 2),
        questions=1,
        tasks=("stvg",),
        absent_rate=0.0,
        frames=frames,
        sampling="ends",
        seed=seed,
    )
    for sample in world_batch(video, 1, split="val"):
        target, times = sample.questions[0], sample.times_s
        index = np.arange(len(times))
        fps = Fraction(len(times) - 1) / Fraction(float(times[-1])).limit_denominator(1000)
        grid = FrameGrid(index, times, fps, sample.duration_s, *sample.pixels.shape[2:0:-1])
        seen = target.has_box & target.active
        truth = Truth(target.span, times, times[seen], target.boxes_xyxy[seen])
        score = score_tube(grounder.ground(Clip(sample.pixels, grid), target.query, "stvg").tube, truth)
        out["stvg_tiou"].append(score.tiou)
        out["stvg_viou"].append(score.viou)
    return out


def over_seeds(values: Sequence[Sequence[float]], resamples: int = 2000) -> Interval:
    """Mean over seeds and queries, 95 % interval by drawing seeds, then queries, with replacement."""
    table = np.array(values, dtype=np.float64)  # (seeds, queries)
    rng = np.random.default_rng(0)
    seeds = rng.integers(len(table), size=(resamples, len(table)))
    queries = rng.integers(table.shape[1], size=(resamples, table.shape[1]))
    means = np.array([table[s][:, q].mean() for s, q in zip(seeds, queries, strict=True)])
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(table.mean()), float(low), float(high), table.size)


def _write(result: Ablation, n: int) -> None:
    data = {
        "scores": {v: {m: i.to_dict() for m, i in row.items()} for v, row in result.scores.items()},
        "runs": [{"variant": v, "seed": s, **row} for (v, s), row in result.runs.items()],
        "n": n,
    }
    temporary = result.folder / ".ablation.json.part"
    temporary.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    temporary.replace(result.folder / "ablation.json")
