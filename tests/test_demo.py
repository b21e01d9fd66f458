"""The demo command, and that importing the package is light."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tubelet.demo import demo_scene, run_demo
from tubelet.tube import Prediction
from tubelet.video import open_video


def test_demo_writes_everything(tmp_path: Path) -> None:
    result = run_demo(tmp_path, "spacevllm-pico")
    assert set(result.files) == {"example", "annotated video", "timeline", "contact sheet", "JSON"}
    for path in result.files.values():
        assert path.stat().st_size > 1000
    example, annotated = open_video(result.files["example"]), open_video(result.files["annotated video"])
    assert annotated.n_frames == example.n_frames
    answers = [Prediction.from_dict(p) for p in json.loads(result.files["JSON"].read_text())]
    assert [p.query for p in answers] == [q.query for q in demo_scene()[1]]
    assert not any(p.failure for p in answers)


def test_demo_has_true_and_absent_sentences() -> None:
    scene, questions = demo_scene()
    assert scene.seed[0] == 2  # the test split
    assert [q.present for q in questions].count(True) >= 2
    assert [q.present for q in questions].count(False) == 1


def test_import_needs_no_torch() -> None:
    code = (
        "import sys, tubelet; tubelet.Span(0, 1); "
        "assert not {'torch', 'transformers', 'av', 'PIL'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_exists() -> None:
    import tubelet

    for name in tubelet.__all__:
        assert getattr(tubelet, name) is not None


def test_training_on_the_toy_world_needs_no_video_library(tmp_path: Path) -> None:
    code = """
import sys
sys.modules["av"] = None  # importing it fails
from tubelet.spacevllm.train import make_job
from tubelet.training.loop import train
from tubelet.training.recipe import load_recipe
recipe = load_recipe(sys.argv[1], ["out=" + sys.argv[2]])
assert train(recipe, make_job(recipe)).total_steps == 1
"""
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "name: x\nmodel: pico-base\nworkers: 0\nspacevllm: {max_frames: 2, prompts: brief}\n"
        "stages: [{name: a, steps: 1, data: [{batch: 1, questions: 1, frames: 2}]}]\n"
    )
    command = [sys.executable, "-c", code, str(recipe), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "out" / "model" / "config.json").is_file()
