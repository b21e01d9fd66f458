"""A folder says how its model is asked; what somebody chose stays."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tubelet.errors import ModelError
from tubelet.zeroshot.settings import FOLDER_FILE, ZeroShotSettings, as_folder_says, preset


def write(folder: Path, data: object) -> Path:
    (folder / FOLDER_FILE).write_text(json.dumps(data))
    return folder


def test_defaults_give_way_and_choices_stay(tmp_path: Path) -> None:
    folder = write(tmp_path, {"question": "do you see {text}?", "layers": [3, 4], "token": "raw"})
    found = as_folder_says(ZeroShotSettings(), folder)
    assert (found.question, found.layers, found.token) == ("do you see {text}?", (3, 4), "raw")
    chosen = ZeroShotSettings(question="where is {text}?", token="mean")
    found = as_folder_says(chosen, folder)
    assert (found.question, found.layers, found.token) == ("where is {text}?", (3, 4), "mean")
    published = as_folder_says(preset("published"), folder)
    assert published.layers == (-26, -6) and published.token == "fixed"  # what the preset is for
    assert published.question == "do you see {text}?"


def test_folders_that_say_nothing(tmp_path: Path) -> None:
    assert as_folder_says(ZeroShotSettings(), tmp_path) == ZeroShotSettings()


@pytest.mark.parametrize("data", [[1], {"no_such": 1}, {"token": "loud"}, {"question": "what?"}, "x"])
def test_damaged_files_are_named(tmp_path: Path, data: object) -> None:
    with pytest.raises(ModelError, match=FOLDER_FILE):
        as_folder_says(ZeroShotSettings(), write(tmp_path, data))


def test_the_embedded_model_is_asked_in_its_own_words() -> None:
    from tubelet.zeroshot.grounder import load_zero_shot

    own, stock = load_zero_shot("pico-base"), load_zero_shot("pico-base", layout="stock")
    assert own.settings.question != stock.settings.question == ZeroShotSettings().question
    assert own.settings.layers is not None
