"""What the workers of a build and of the annotator reserve: from the command line to the job that an engine gets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tubelet.cli import app
from tubelet.config_io import from_dict
from tubelet.errors import RecipeError
from tubelet.scale.job import Job
from tubelet.unistg.build import build, job_of
from tubelet.unistg.recipe import UniSTGRecipe
from tubelet.unistg.stages import run_annotator

ANNOTATOR = {"provider": "motion", "match": "colour", "fps": 4.0}
NO_MODEL = {"how": "rules"}
MODEL = {"how": "transformers", "model": "some/llm"}
ENDPOINT = {"how": "endpoint", "model": "some-llm", "url": "http://localhost:1/v1"}


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """Every job that an engine of any name is given; it is not run."""
    seen: list[Job] = []

    def engine(name: str) -> Any:
        return lambda job, ledger, report: seen.append(job)

    for module in ("build", "stages"):
        monkeypatch.setattr(f"tubelet.unistg.{module}.engine{'_of' if module == 'build' else ''}", engine)
    return seen


@pytest.fixture
def captions(tmp_path: Path) -> Path:
    path = tmp_path / "captions.jsonl"
    row = {"id": "a", "video": "gone.mp4", "text": "a red circle moves", "start_s": 0.0, "end_s": 4.0}
    path.write_text(json.dumps(row) + "\n")
    return path


def reserved(job: Job) -> dict[str, tuple[int, float, float]]:
    return {stage.name: (stage.workers, stage.cpus, stage.gpus) for stage in job.stages}


def recipe_file(folder: Path, captions: Path) -> Path:
    path = folder / "recipe.yaml"  # YAML holds JSON
    sources = [{"kind": "jsonl", "path": str(captions)}]
    path.write_text(json.dumps({"videos": str(folder), "sources": sources, "annotator": ANNOTATOR}))
    return path


def test_build_hands_them_to_the_annotator(jobs: list[Job], captions: Path, tmp_path: Path) -> None:
    recipe = str(recipe_file(tmp_path, captions))
    begin = ["unistg", "build", recipe, "--engine", "ray", "--out"]
    tell = CliRunner()
    tell.invoke(app, [*begin, str(tmp_path / "a"), "--workers", "3", "--cpus", "2.5", "--gpus", "0.5"])
    tell.invoke(app, [*begin, str(tmp_path / "b"), "--workers", "2"])
    assert [reserved(job) for job in jobs] == [
        {"analyze": (1, 1.0, 0.0), "annotate": (3, 2.5, 0.5)},
        {"analyze": (1, 1.0, 0.0), "annotate": (2, 1.0, 0.0)},
    ]


def test_annotate_hands_them_on(jobs: list[Job], captions: Path, tmp_path: Path) -> None:
    phrases = str(tmp_path / "phrases.jsonl")
    CliRunner().invoke(app, ["unistg", "analyze", str(captions), phrases])
    flags = ["--workers", "2", "--cpus", "3", "--gpus", "2"]
    set_ = [word for key, value in ANNOTATOR.items() for word in ("--set", f"annotator.{key}={value}")]
    CliRunner().invoke(app, ["unistg", "annotate", phrases, str(tmp_path / "out.jsonl"), *set_, *flags])
    assert [reserved(job) for job in jobs] == [{"annotate": (2, 3.0, 2.0)}]


@pytest.mark.parametrize(("analyzer", "gpus"), [(NO_MODEL, 0.0), (ENDPOINT, 0.0), (MODEL, 0.5)])
def test_an_analyzer_that_loads_a_model_reserves_the_same(analyzer: dict[str, str], gpus: float) -> None:
    job = job_of(from_dict(UniSTGRecipe, {"analyzer": analyzer}), 4, 2.0, 0.5)
    assert reserved(job)["annotate"] == (4, 2.0, 0.5)
    assert reserved(job)["analyze"] == (1, 2.0 if gpus else 1.0, gpus)


@pytest.mark.parametrize(("cpus", "gpus"), [(-1.0, 0.0), (1.0, -1.0), (1.0, 1.5)])
def test_what_no_worker_can_have_is_said_before_anything_is_written(
    captions: Path, tmp_path: Path, cpus: float, gpus: float
) -> None:
    data = {"sources": [{"kind": "jsonl", "path": str(captions)}], "annotator": ANNOTATOR}
    with pytest.raises(RecipeError, match=r"cpus and gpus are at least 0|a whole number"):
        build(from_dict(UniSTGRecipe, data), tmp_path / "out", cpus=cpus, gpus=gpus)
    assert not (tmp_path / "out").exists()
    with pytest.raises(RecipeError, match=r"cpus and gpus are at least 0|a whole number"):
        run_annotator(captions, tmp_path / "o.jsonl", from_dict(UniSTGRecipe, data), cpus=cpus, gpus=gpus)
    assert not list(tmp_path.glob("o.*"))


def test_a_machine_without_that_many_gpus_says_so(
    captions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real local engine deals them out: two workers of one GPU each need two."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    data = {"sources": [{"kind": "jsonl", "path": str(captions)}], "annotator": ANNOTATOR}
    with pytest.raises(
        RecipeError, match="'annotate' asks for 2 workers of 1 GPUs each, this machine shows 1"
    ):
        build(from_dict(UniSTGRecipe, data), tmp_path / "out", workers=2, gpus=1)


def test_ray_is_told() -> None:
    pytest.importorskip("ray", reason="the extra scale (ray) is not installed")
    from tubelet.scale.ray_engine import pool_options

    job = job_of(from_dict(UniSTGRecipe, {}), 2, 1.5, 0.25)
    told = [pool_options(job, number) for number in range(2)]
    assert [(one["num_cpus"], one["num_gpus"]) for one in told] == [(1.0, 0.0), (1.5, 0.25)]
