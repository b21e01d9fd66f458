"""What wins: what somebody chose, then the preset's own choices, then the model's folder, then the defaults."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tubelet.errors import ModelError, QueryError, RecipeError
from tubelet.zeroshot.grounder import load_zero_shot
from tubelet.zeroshot.settings import FOLDER_FILE, QUESTION, ZeroShotSettings, preset, settings_for

FOLDER = {"question": "do you see {text}?", "layers": [3, 4], "token": "raw"}


def write(folder: Path, data: object) -> Path:
    (folder / FOLDER_FILE).write_text(json.dumps(data))
    return folder


def test_the_folder_answers_for_what_nobody_chose(tmp_path: Path) -> None:
    folder = write(tmp_path, FOLDER)
    found = settings_for(folder)
    assert (found.question, found.layers, found.token) == ("do you see {text}?", (3, 4), "raw")
    assert found == replace(ZeroShotSettings(), question="do you see {text}?", layers=(3, 4), token="raw")


def test_a_choice_wins_also_where_it_is_the_default(tmp_path: Path) -> None:
    folder = write(tmp_path, FOLDER)
    plain = ZeroShotSettings()
    found = settings_for(
        folder, {"token": plain.token, "question": QUESTION, "layers": plain.layers, "frames": 7}
    )
    assert plain.token == "relative" and plain.layers is None
    assert found == replace(plain, frames=7)


def test_a_preset_says_what_it_is_about_and_choices_go_before_it(tmp_path: Path) -> None:
    folder = write(tmp_path, FOLDER)
    published = settings_for(folder, None, "published")
    assert published == replace(preset("published"), question="do you see {text}?")
    found = settings_for(folder, {"token": "relative", "layers": [-2, -1]}, "published")
    assert found == replace(published, token="relative", layers=(-2, -1))


def test_folders_that_say_nothing(tmp_path: Path) -> None:
    assert settings_for(tmp_path) == settings_for(None) == ZeroShotSettings()
    assert settings_for(None, {}, "paper") == preset("paper")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"tokens": "raw"}, "no field tokens"),
        ({"token": "loud"}, "token is one of"),
        ({"k": "many"}, "k must be int"),
        ({"layers": [1]}, "layers is first and last"),
        ({"question": "what?"}, "{text}"),
    ],
)
def test_choices_that_make_no_sense(changes: dict[str, Any], says: str) -> None:
    with pytest.raises((QueryError, RecipeError), match=says):
        settings_for(None, changes)
    with pytest.raises(QueryError, match="presets are"):
        settings_for(None, {}, "best")


@pytest.mark.parametrize(
    "data", [[1], {"no_such": 1}, {"token": "loud"}, {"question": "what?"}, {"layers": [3]}, {"k": "x"}, "x"]
)
def test_damaged_files_are_named(tmp_path: Path, data: object) -> None:
    """Also where what is wrong in them was chosen otherwise."""
    with pytest.raises(ModelError, match=FOLDER_FILE):
        settings_for(write(tmp_path, data), {"token": "mean"})


def test_the_embedded_model_is_asked_in_its_own_words_unless_somebody_chose() -> None:
    own, stock = load_zero_shot("pico-base"), load_zero_shot("pico-base", layout="stock")
    assert own.settings.question != stock.settings.question == ZeroShotSettings().question
    assert own.settings.layers is not None
    chosen = load_zero_shot("pico-base", settings={"token": "relative", "question": QUESTION})
    assert chosen.settings == replace(own.settings, token="relative", question=QUESTION)
    whole = ZeroShotSettings(frames=5)
    assert load_zero_shot("pico-base", settings=whole).settings == whole
    started = load_zero_shot("pico-base", preset="published", settings={"k": 3}).settings
    assert (started.token, started.interval, started.k) == ("fixed", "window", 3)
    assert started.question == own.settings.question
    with pytest.raises(QueryError, match="preset published"):
        load_zero_shot("pico-base", settings=whole, preset="published")
