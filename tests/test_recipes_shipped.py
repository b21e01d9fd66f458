"""The recipes in recipes/: they load, belong together, and every stage of them takes a step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tubelet.llava_st.train import make_job as llava_st_job
from tubelet.spacevllm.saving import save_base
from tubelet.spacevllm.train import make_job
from tubelet.training.recipe import Recipe, load_recipe
from tubelet.training.samples import WORLD_ACTIONS, WORLD_ATTRIBUTES

RECIPES = Path(__file__).parents[1] / "recipes"


def small(recipe: Recipe, **changes: Any) -> Recipe:
    stages = tuple(
        replace(stage, data=tuple(replace(mix, batch=2, questions=2) for mix in stage.data))
        for stage in recipe.stages
    )
    return replace(recipe, stages=stages, **changes)


def a_step_of_every_stage(recipe: Recipe) -> None:
    job = llava_st_job(recipe) if recipe.model == "llava-st" else make_job(recipe)
    for number, stage in enumerate(recipe.stages):
        assert job.prepare is not None
        job.prepare(stage)
        kinds: set[float] = set()
        for k in range(3):
            loss, parts, count = job.loss(job.model, job.make_batch(stage, 100 * number + k), stage)
            loss.backward()
            assert bool(torch.isfinite(loss)) and count >= 2 and float(loss.detach()) > 0
            kinds.add(float(loss.detach()))
            still = all(mix.kind == "image" for mix in stage.data)
            drawn_image = recipe.model == "llava-st" and "doing" not in parts
            assert "seen" in parts and (stage.train == "vision" or still or drawn_image or "doing" in parts)
        assert len(kinds) == 3
        moved = [n for n, p in job.model.named_parameters() if p.grad is not None and p.requires_grad]
        assert moved
        job.model.zero_grad(set_to_none=True)


def test_the_base_and_what_grows_from_it(tmp_path: Path) -> None:
    base, grown = load_recipe(RECIPES / "pico-base.yaml"), load_recipe(RECIPES / "spacevllm-pico.yaml")
    assert base.spacevllm == replace(grown.spacevllm, motion_layers=0)  # its heads are taken over
    assert base.spacevllm.dense_attributes == WORLD_ATTRIBUTES
    assert base.spacevllm.dense_actions == WORLD_ACTIONS
    assert grown.start == f"{base.folder}/model"
    tiny = small(base)
    a_step_of_every_stage(tiny)
    job = make_job(tiny)
    bundle = next(
        cell.cell_contents
        for cell in job.make_batch.__closure__ or ()
        if type(cell.cell_contents).__name__ == "Bundle"
    )
    folder = save_base(bundle, tmp_path / "base")
    a_step_of_every_stage(small(grown, start=str(folder)))
    second = load_recipe(RECIPES / "pico-base-2.yaml")
    assert second.spacevllm == replace(base.spacevllm, time_layout="none") and second.start == grown.start
    a_step_of_every_stage(small(second, start=str(folder)))


def test_the_stages_of_llava_st(tmp_path: Path) -> None:
    """Each starts from the folder of the one before; the first from the embedded base."""
    start = "pico-base"
    for number in (1, 2, 3):
        recipe = load_recipe(RECIPES / f"llava-st-pico-{number}.yaml")
        assert recipe.start == ("pico-base" if number == 1 else f"runs/llava-st-pico-{number - 1}/model")
        assert recipe.auxiliary.attributes == WORLD_ATTRIBUTES and recipe.auxiliary.actions == WORLD_ACTIONS
        one = small(recipe, start=start)
        a_step_of_every_stage(one)
        folder = tmp_path / str(number)
        llava_st_job(one).save(folder)
        start = str(folder)


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_recipe_is_named_as_its_file(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.name == path.stem and all(stage.steps > 0 for stage in recipe.stages)
