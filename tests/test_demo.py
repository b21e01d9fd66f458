"""The demo command, and that importing the package is light."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tubelet import cli, demo
from tubelet.demo import demo_scene
from tubelet.tube import Prediction
from tubelet.video import open_video


def test_demo_writes_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command that `make demo` runs: a line per sentence, then where the files are."""
    folder = tmp_path / "new" / "demo"
    monkeypatch.setattr(sys, "argv", ["tubelet", "demo", "--out", str(folder)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    told = capsys.readouterr()
    assert not stop.value.code and told.err == ""
    answers, _, listed = told.out.partition("\n\n")
    files = {line[:16].strip(): Path(line[16:].strip()) for line in listed.strip().splitlines()}
    assert set(files) == {"example", "annotated video", "timeline", "contact sheet", "JSON"}
    assert sorted(files.values()) == sorted(folder.iterdir())
    for path in files.values():
        assert path.stat().st_size > 1000
    example, annotated = open_video(files["example"]), open_video(files["annotated video"])
    assert annotated.n_frames == example.n_frames
    predictions = [Prediction.from_dict(p) for p in json.loads(files["JSON"].read_text())]
    asked = [q.query for q in demo_scene()[1]]
    assert [p.query for p in predictions] == asked and not any(p.failure for p in predictions)
    assert [line.split(":")[0] for line in answers.splitlines()] == asked


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


def test_answers_are_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill or a full disk leaves no half of the JSON: it is written beside, then renamed."""
    from tubelet.benchmarks.run_folder import write_whole
    from tubelet.errors import OutputError

    (tmp_path / "answers.json").write_text("[]")

    def full(self: Path, text: str, **_: object) -> int:
        self.write_bytes(text[:3].encode())
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OutputError, match="No space left"):
        write_whole(tmp_path / "answers.json", "[1, 2, 3]")
    assert [path.name for path in tmp_path.iterdir()] == ["answers.json"]
    assert (tmp_path / "answers.json").read_bytes() == b"[]"
    assert demo.write_whole is write_whole  # what the demo writes its answers with


def test_make_clean_keeps_training_runs() -> None:
    makefile = Path(__file__).resolve().parents[1] / "Makefile"
    told = subprocess.run(
        ["make", "--no-print-directory", "-n", "-f", str(makefile), "clean"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert told[:2] == ["rm", "-rf"] and ".venv" in told and "runs" not in told


def test_every_public_name_exists() -> None:
    import tubelet

    assert {"write_contact_sheet", "write_overlay", "write_timeline"} <= set(tubelet.__all__)
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
