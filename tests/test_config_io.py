"""Settings from plain data: values arrive typed, and every mistake names its field."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tubelet.config_io import from_dict, load_yaml, to_dict, with_overrides
from tubelet.errors import RecipeError

quick = settings(deadline=None, max_examples=80)


@dataclass(frozen=True)
class Part:
    name: str
    weight: float = 1.0
    sizes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Whole:
    part: Part
    steps: int = 10
    rate: float = 1e-3
    on: bool = True
    note: str | None = None
    warmup: float | None = None
    parts: tuple[Part, ...] = ()
    losses: dict[str, float] = field(default_factory=dict)
    anything: Any = None


names = st.text(max_size=8)
numbers = st.floats(allow_nan=False, allow_infinity=False)
parts = st.builds(Part, names, numbers, st.lists(st.integers(-(2**60), 2**60), max_size=3).map(tuple))
wholes = st.builds(
    Whole,
    part=parts,
    steps=st.integers(-(2**60), 2**60),
    rate=numbers,
    on=st.booleans(),
    note=st.none() | names,
    warmup=st.none() | numbers,
    parts=st.lists(parts, max_size=3).map(tuple),
    losses=st.dictionaries(names, numbers, max_size=3),
    anything=st.none() | st.integers() | names | st.lists(st.integers(), max_size=2),
)


@quick
@given(wholes)
def test_plain_data_there_and_back(whole: Whole) -> None:
    data = to_dict(whole)
    assert from_dict(Whole, data) == whole
    assert from_dict(Whole, yaml.safe_load(yaml.safe_dump(data))) == whole


def test_what_is_left_out_has_its_default() -> None:
    assert from_dict(Whole, {"part": {"name": "a"}}) == Whole(Part("a"))


def test_yaml_numbers_that_yaml_reads_as_text_are_numbers() -> None:
    data = yaml.safe_load("part: {name: a}\nrate: 1e-3\nwarmup: 5\n")
    assert data["rate"] == "1e-3"  # YAML 1.1 wants 1.0e-3
    whole = from_dict(Whole, data)
    assert whole.rate == 0.001 and whole.warmup == 5.0 and type(whole.warmup) is float


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (None, "Whole must hold fields, got None"),
        ([], "Whole must hold fields, got []"),
        ({}, "Whole needs part"),
        ({"part": {}}, "part needs name"),
        ({"part": 5}, "part must hold fields, got 5"),
        ({"part": {"name": 5}}, "part.name must be str, got 5"),
        (
            {"part": {"name": "a", "wieght": 1}},
            "part has no field wieght; its fields are name, weight, sizes",
        ),
        ({"part": {"name": "a", 3: 1}}, "part has no field 3; its fields are name, weight, sizes"),
        ({"part": {"name": "a", "sizes": 3}}, "part.sizes must be a list, got 3"),
        ({"part": {"name": "a", "sizes": "12"}}, "part.sizes must be a list, got '12'"),
        ({"part": {"name": "a", "sizes": [1, 2.0]}}, "part.sizes.1 must be int, got 2.0"),
        ({"steps": "ten"}, "steps must be int, got 'ten'"),
        ({"steps": True}, "steps must be int, got True"),
        ({"steps": 1.0}, "steps must be int, got 1.0"),
        ({"steps": None}, "steps must be int, got None"),
        ({"on": 1}, "on must be bool, got 1"),
        ({"on": "yes"}, "on must be bool, got 'yes'"),
        ({"rate": "fast"}, "rate must be a number, got 'fast'"),
        ({"rate": True}, "rate must be float, got True"),
        ({"rate": None}, "rate must be float, got None"),
        ({"rate": 10**400}, "rate must be a number, got 1000"),
        ({"note": 3}, "note must be str, got 3"),
        ({"warmup": "slow"}, "warmup must be a number, got 'slow'"),
        (
            {"parts": [{"name": "a"}, {"name": "b", "weight": "x"}]},
            "parts.1.weight must be a number, got 'x'",
        ),
        ({"losses": {"box": []}}, "losses.box must be float, got []"),
        ({"losses": 3}, "losses must hold fields, got 3"),
    ],
    ids=str,
)
def test_mistakes_name_their_field(data: Any, says: str) -> None:
    if isinstance(data, dict) and data:
        data = {"part": {"name": "a"}} | data
    with pytest.raises(RecipeError) as caught:
        from_dict(Whole, data)
    assert str(caught.value).startswith(says)


def test_the_place_in_a_larger_recipe_is_named() -> None:
    with pytest.raises(RecipeError, match=r"^stages\.0 has no field nope"):
        from_dict(Part, {"name": "a", "nope": 1}, "stages.0")
    with pytest.raises(RecipeError, match=r"^stages\.0\.weight must be a number"):
        from_dict(Part, {"name": "a", "weight": "x"}, "stages.0")


# --- overrides -----------------------------------------------------------------------------------


def test_overrides_reach_any_depth_and_leave_the_original_alone() -> None:
    data = {"steps": 1, "stages": [{"rate": 1.0}, {"rate": 2.0}], "tags": ["a", "b"]}
    before = copy.deepcopy(data)
    out = with_overrides(
        data,
        [
            "steps=7",
            "stages.1.rate=0.5",
            "tags.0=c",
            "new.deep.field=[1, 2]",
            "text=a=b",
            "off=false",
            "empty=",
        ],
    )
    assert out == {
        "steps": 7,
        "stages": [{"rate": 1.0}, {"rate": 0.5}],
        "tags": ["c", "b"],
        "new": {"deep": {"field": [1, 2]}},
        "text": "a=b",
        "off": False,
        "empty": None,
    }
    assert data == before


def test_the_last_override_wins() -> None:
    assert with_overrides({}, ["a=1", "a=2"]) == {"a": 2}
    assert with_overrides({}, ["a.b=1", "a.c=2"]) == {"a": {"b": 1, "c": 2}}


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("steps", "a setting is key=value, for example stages.0.steps=100; got 'steps'"),
        ("=5", "a setting is key=value"),
        ("", "a setting is key=value"),
        ("steps=[1", "cannot read the value in 'steps=\\[1'"),
        ("stages.2.rate=1", r"stages\.2\.rate: '2' must be a number from 0 to 1"),
        ("stages.-1.rate=1", "'-1' must be a number from 0 to 1"),
        ("stages.first.rate=1", "'first' must be a number from 0 to 1"),
        ("stages.²=1", "'²' must be a number from 0 to 1"),
        ("stages.9=1", "'9' must be a number from 0 to 1"),
        ("steps.a.b=1", "steps.a.b: there is nothing inside 'a' to set"),
        ("steps.a=1", "steps.a: steps is 1, which holds no fields to set"),
        ("none.a=1", "none.a: none is None, which holds no fields to set"),
    ],
)
def test_overrides_that_make_no_sense(override: str, says: str) -> None:
    data = {"steps": 1, "none": None, "stages": [{"rate": 1.0}, {"rate": 2.0}]}
    with pytest.raises(RecipeError, match=says):
        with_overrides(data, [override])


@quick
@given(st.integers(), st.integers(0, 2))
def test_an_override_equals_writing_it_in_the_file(value: int, row: int) -> None:
    data = {"parts": [{"name": str(k), "sizes": [0, 0]} for k in range(3)], "part": {"name": "a"}}
    out = with_overrides(data, [f"parts.{row}.sizes.1={value}"])
    data["parts"][row]["sizes"][1] = value  # type: ignore[index]
    assert out == data
    assert from_dict(Whole, out).parts[row].sizes == (0, value)


# --- files ---------------------------------------------------------------------------------------


def test_a_recipe_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "é.yaml"
    path.write_text("part: {name: «é»}\nsteps: 3\n", encoding="utf-8")
    assert from_dict(Whole, load_yaml(path)) == Whole(Part("«é»"), steps=3)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "must hold fields, got NoneType"),
        (b"- a\n- b\n", "must hold fields, got list"),
        (b"just text", "must hold fields, got str"),
        (b"a: [1", "cannot read the recipe"),
        (b"a: b: c", "cannot read the recipe"),
        (b"a: \xff\xfe", "cannot read the recipe"),
        (b"a: !!python/object/apply:os.getcwd []", "cannot read the recipe"),
    ],
    ids=repr,
)
def test_a_broken_recipe_file_is_named(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=says) as caught:
        load_yaml(path)
    assert "recipe.yaml" in str(caught.value) and "\n" not in str(caught.value)
    if content in (b"a: [1", b"a: b: c"):
        assert "(line 1, column " in str(caught.value)


def test_a_broken_setting_is_one_line() -> None:
    with pytest.raises(RecipeError, match=r"cannot read the value in .*\(line 1, column \d+\)$") as caught:
        with_overrides({}, ["a=[1, {2: "])
    assert "\n" not in str(caught.value)


def test_a_missing_recipe_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"there is no recipe .*absent\.yaml"):
        load_yaml(tmp_path / "absent.yaml")
    with pytest.raises(RecipeError, match="cannot read the recipe"):
        load_yaml(tmp_path)


def test_the_recipes_that_ship_are_valid() -> None:
    from tubelet.training.recipe import load_recipe

    recipes = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))
    assert recipes
    for path in recipes:
        recipe = load_recipe(path, [])
        assert from_dict(type(recipe), to_dict(recipe)) == recipe
