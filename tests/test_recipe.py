"""Recipes: every shipped one loads, every wrong field is named, and --set changes what it says."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tubelet.config_io import from_dict, to_dict
from tubelet.errors import ModelError, RecipeError, TubeletError
from tubelet.training.recipe import Optimiser, Recipe, Stage, load_recipe
from tubelet.training.samples import WorldMix
from tubelet.world.tasks import IMAGE_TASKS, VIDEO_TASKS

RECIPES = sorted((Path(__file__).resolve().parents[1] / "recipes").glob("*.yaml"))
PLAIN: dict[str, Any] = {
    "name": "plain",
    "model": "pico-base",
    "stages": [
        {"name": "images", "steps": 10, "data": [{"kind": "image", "tasks": ["rec"]}]},
        {
            "name": "videos",
            "steps": 20,
            "data": [{"kind": "video"}, {"kind": "image"}],
            "data_weights": [3, 1],
        },
    ],
}


def written(tmp_path: Path, data: Any = None) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(PLAIN if data is None else data))
    return path


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    return written(tmp_path)


# --- the shipped ones ----------------------------------------------------------------------------


def test_there_are_recipes() -> None:
    assert {"pico-base", "spacevllm-pico"} <= {path.stem for path in RECIPES}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes_load(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.name == path.stem and recipe.folder == Path("runs") / path.stem
    assert recipe.model == "pico-base" or recipe.start  # a spacevllm grows from something
    for stage in recipe.stages:
        for mix in stage.data:
            known = IMAGE_TASKS if mix.kind == "image" else VIDEO_TASKS
            assert set(mix.tasks) <= set(known), f"{stage.name} asks {mix.tasks} of {mix.kind}s"
            assert mix.frames <= recipe.spacevllm.max_frames or mix.kind == "image"
    assert from_dict(Recipe, yaml.safe_load(yaml.safe_dump(to_dict(recipe)))) == recipe  # nothing is lost
    assert from_dict(Recipe, json.loads(json.dumps(to_dict(recipe)))) == recipe


def test_shipped_pair_fits_together() -> None:
    """The SpaceVLLM starts from the base's heads, so both must be of one shape."""
    found = {path.stem: load_recipe(path) for path in RECIPES}
    base, grown = found["pico-base"], found["spacevllm-pico"]
    assert base.spacevllm.decoder == grown.spacevllm.decoder
    assert base.spacevllm.mid_layer == grown.spacevllm.mid_layer
    assert base.spacevllm.time_layout == grown.spacevllm.time_layout


# --- validation ----------------------------------------------------------------------------------


def test_defaults(plain: Path) -> None:
    recipe = load_recipe(plain)
    assert recipe.stages[0].optimiser == Optimiser() and recipe.stages[1].data_weights == (3.0, 1.0)
    assert recipe.stages[0].data == (WorldMix(kind="image", tasks=("rec",)),)
    assert load_recipe(plain, ["out=elsewhere"]).folder == Path("elsewhere")


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("modell=x", "modell"),
        ("model=llama", "model is pico-base, spacevllm or llava-st"),
        ("precision=fp8", "precision"),
        ("save_dtype=int8", "save_dtype"),
        ("seed=one", "seed"),
        ("seed=1.5", "seed"),
        ("seed=true", "seed"),
        ("stages=[]", "at least one stage"),
        ("stages=3", "stages must be a list"),
        ("stages.0=3", "stages.0"),
        ("stages.0.steps=0", "stage images: steps"),
        ("stages.0.steps=ten", "stages.0.steps"),
        ("stages.0.accumulate=0", "accumulate"),
        ("stages.0.data=[]", "stage images: data is empty"),
        ("stages.0.train=some", "train is one of all, decoder"),
        ("stages.0.data.0.kind=audio", "data.kind"),
        ("stages.0.data.0.batch=0", "data.batch"),
        ("stages.0.data.0.box_frames=none", "data.box_frames"),
        ("stages.0.data.0.tasks=rec", "stages.0.data.0.tasks must be a list"),
        ("stages.0.data.0.colour=red", "colour"),
        ("stages.0.optimiser.kind=sgd", "optimiser.kind"),
        ("stages.0.optimiser.lr=fast", "stages.0.optimiser.lr"),
        ("stages.0.optimiser.lr=0", "optimiser.lr"),
        ("stages.0.optimiser.clip=-1", "optimiser.clip"),
        ("stages.0.optimiser.warmup=3", "optimiser.warmup"),
        ("stages.0.optimiser.speed=1", "speed"),
        ("stages.0.losses.boxes=1", "boxes"),
        ("stages.1.data_weights=[1]", "stage videos: data_weights needs one weight"),
        ("stages.1.data_weights=[-1, 2]", "data_weights must not be negative"),
        ("stages.1.data_weights=[0, 0]", "data_weights"),
        ("spacevllm.max_frames=0", "max_frames"),
        ("spacevllm.prompts=long", "prompts"),
        ("spacevllm.decoder.heads=3", "decoder.heads"),
        ("spacevllm.decoder.rings=3", "rings"),
        ("workers=-1", "workers"),
        ("log_every=0", "log_every"),
        ("stages.7.steps=1", "stages.7.steps: '7' must be a number from 0 to 1"),
        ("stages.first.steps=1", "'first' must be a number"),
        ("name.x.y=1", "name.x.y"),
        ("name.x=1", "name.x"),
        ("steps", "key=value"),
        ("=3", "key=value"),
        ("seed=[1", "cannot read the value"),
    ],
)
def test_wrong_fields_are_named(plain: Path, setting: str, named: str) -> None:
    with pytest.raises((RecipeError, ModelError)) as caught:
        load_recipe(plain, [setting])
    assert named in str(caught.value)


@pytest.mark.parametrize("missing", ["name", "model", "stages"])
def test_missing_fields_are_named(tmp_path: Path, missing: str) -> None:
    with pytest.raises(RecipeError, match=f"needs {missing}"):
        load_recipe(written(tmp_path, {k: v for k, v in PLAIN.items() if k != missing}))


@pytest.mark.parametrize("text", ["", "just words", "- a\n- list", "a: [1", "\x00"])
def test_files_that_are_no_recipe(tmp_path: Path, text: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match="recipe"):
        load_recipe(path)
    with pytest.raises(RecipeError, match="there is no recipe"):
        load_recipe(tmp_path / "nothing.yaml")
    with pytest.raises(RecipeError, match="cannot read"):
        load_recipe(tmp_path)


# --- settings ------------------------------------------------------------------------------------


def test_settings_change_what_they_say_and_nothing_else(plain: Path) -> None:
    before = to_dict(load_recipe(plain))
    changed = to_dict(
        load_recipe(
            plain,
            [
                "stages.1.steps=7",
                "stages.0.optimiser.lr=3e-4",
                "stages.0.data.0.tasks=[rec, qa]",
                "spacevllm.decoder.cells=true",
                "out=a=b",
            ],
        )
    )
    expected = json.loads(json.dumps(before))
    expected["stages"][1]["steps"] = 7
    expected["stages"][0]["optimiser"]["lr"] = 3e-4
    expected["stages"][0]["data"][0]["tasks"] = ["rec", "qa"]
    expected["spacevllm"]["decoder"]["cells"] = True
    expected["out"] = "a=b"  # only the first equals sign parts
    assert changed == expected


def test_the_last_setting_wins(plain: Path) -> None:
    assert load_recipe(plain, ["seed=1", "seed=2"]).seed == 2


@settings(max_examples=60, deadline=None)
@given(st.integers(-(10**12), 10**12), st.floats(1e-12, 1e6), st.booleans(), st.integers(1, 10**9))
def test_values_arrive_as_written(seed: int, rate: float, cells: bool, steps: int) -> None:
    data = json.loads(json.dumps(PLAIN))
    from tubelet.config_io import with_overrides

    overrides = [
        f"seed={seed}",
        f"stages.0.optimiser.lr={rate!r}",
        f"spacevllm.decoder.cells={json.dumps(cells)}",
        f"stages.0.steps={steps}",
    ]
    recipe = from_dict(Recipe, with_overrides(data, overrides))
    assert recipe.seed == seed and recipe.stages[0].steps == steps
    assert recipe.stages[0].optimiser.lr == rate and recipe.spacevllm.decoder.cells is cells
    assert data == PLAIN  # what was read is not changed


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(max_size=12), max_size=3).map(".".join), st.text(max_size=12))
def test_any_setting_is_taken_or_refused_in_words(key: str, value: str) -> None:
    from tubelet.config_io import with_overrides

    try:
        recipe = from_dict(Recipe, with_overrides(PLAIN, [f"{key}={value}"]))
    except TubeletError as error:
        assert str(error)
    else:
        assert isinstance(recipe, Recipe)


NAMES = st.sampled_from(
    [f.name for f in (*fields(Recipe), *fields(Stage), *fields(Optimiser), *fields(WorldMix))]
)
VALUES = st.sampled_from(
    ["", "1", "-1", "0", "x", "[]", "{}", "[1, 2]", "null", "true", "1e-3", ".inf", ".nan", "{a: 1}"]
)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(["", "stages.0.", "stages.1.", "stages.0.data.0.", "stages.0.optimiser.", "spacevllm."]),
    NAMES,
    VALUES,
)
def test_any_value_of_a_field_is_taken_or_refused_in_words(where: str, name: str, value: str) -> None:
    from tubelet.config_io import with_overrides

    try:
        from_dict(Recipe, with_overrides(PLAIN, [f"{where}{name}={value}"]))
    except TubeletError as error:
        assert len(str(error)) > 10
