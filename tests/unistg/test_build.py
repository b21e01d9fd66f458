"""The whole chain on real mp4 files: outputs, provenance, counts, and the same bytes after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tubelet.cli import main
from tubelet.config_io import from_dict
from tubelet.errors import DataError, RecipeError
from tubelet.unistg.build import build
from tubelet.unistg.recipe import UniSTGRecipe
from tubelet.unistg.records import Drop, Sample
from tubelet.unistg.stats import plot, stats

OUTPUTS = ("samples.jsonl", "drops.jsonl", "funnel.json", "README.md")


def recipe(toys: Path, **more: Any) -> UniSTGRecipe:
    data = {
        "videos": str(toys / "videos"),
        "sources": [{"kind": "jsonl", "path": str(toys / "captions.jsonl")}],
        "annotator": {"provider": "motion", "match": "colour", "fps": 4.0},
        **more,
    }
    return from_dict(UniSTGRecipe, data)


@pytest.fixture(scope="module")
def built(toys: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built") / "out"
    build(recipe(toys), out)
    return out


def test_every_caption_is_a_sample_or_a_drop_with_its_reason(built: Path, toys: Path) -> None:
    samples = [Sample.from_dict(json.loads(x)) for x in (built / "samples.jsonl").read_text().splitlines()]
    drops = [Drop.from_dict(json.loads(x)) for x in (built / "drops.jsonl").read_text().splitlines()]
    captions = (toys / "captions.jsonl").read_text().splitlines()
    assert len(samples) + len(drops) == len(captions)
    assert len(samples) >= 2
    by_key = {d.key.split("#")[0]: d for d in drops}
    assert by_key["no-video"].stage == "annotator" and "gone.mp4" in by_key["no-video"].detail
    assert by_key["outside"].stage == "captions" and by_key["no-noun"].stage == "analyzer"
    assert any("duplicate" in d.reason for d in drops)
    for sample in samples:
        assert 2.0 <= sample.tube.span.duration_s <= 120.0
        assert len(sample.tube) >= 3
        assert {"source", "phrase", "analyzer", "annotator"} <= set(sample.provenance)
    funnel = json.loads((built / "funnel.json").read_text())
    assert (funnel["kept"], funnel["dropped"]) == (len(samples), len(drops))
    assert funnel["stages"]["filter"]["kept"] == len(samples)
    assert "Boxes and spans were made" in (built / "README.md").read_text()


def test_two_workers_and_a_resumed_build_write_the_same_bytes(
    built: Path, toys: Path, tmp_path: Path
) -> None:
    build(recipe(toys), tmp_path / "two", workers=2)
    before = {name: (built / name).read_bytes() for name in OUTPUTS}
    assert {name: (tmp_path / "two" / name).read_bytes() for name in OUTPUTS} == before
    build(recipe(toys), built, resume=True)
    assert {name: (built / name).read_bytes() for name in OUTPUTS} == before


def test_killed_and_resumed(built: Path, toys: Path, tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"  # YAML holds JSON
    sources = [{"kind": "jsonl", "path": str(toys / "captions.jsonl")}]
    annotator = {"provider": "motion", "match": "colour", "fps": 4.0}
    path.write_text(json.dumps({"videos": str(toys / "videos"), "sources": sources, "annotator": annotator}))
    out = tmp_path / "out"
    command = [sys.executable, "-m", "tubelet", "unistg", "build", str(path), "--out", str(out)]
    run = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
    end_s = time.monotonic() + 60
    while not (out / "ledger.sqlite").exists() and time.monotonic() < end_s:
        time.sleep(0.02)
    time.sleep(0.3)
    killed = run.poll() is None
    if killed:
        os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    assert killed, "the build was over before it could be killed"
    again = subprocess.run([*command, "--resume"], capture_output=True, text=True, timeout=120, check=False)
    assert again.returncode == 0, again.stderr
    for name in OUTPUTS:
        assert (out / name).read_bytes() == (built / name).read_bytes(), name


def test_what_cannot_be_built_is_said(built: Path, toys: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--resume"):
        build(recipe(toys), built)
    with pytest.raises(DataError, match="another recipe"):
        build(recipe(toys, filter={"max_boxes": 1}), built, resume=True)
    with pytest.raises(RecipeError, match="names its captions"):
        build(UniSTGRecipe(), tmp_path / "x")
    with pytest.raises(RecipeError, match="local or ray"):
        build(recipe(toys), tmp_path / "x", engine="slurm")


def test_parquet_holds_the_same_samples(toys: Path, built: Path, tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow.parquet")
    build(recipe(toys, format="both"), tmp_path / "out")
    rows = arrow.read_table(tmp_path / "out" / "samples.parquet").to_pylist()
    lines = [json.loads(x) for x in (built / "samples.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [line["id"] for line in lines]
    assert rows[0]["boxes_xyxy"] == lines[0]["tube"]["boxes_xyxy"]


def test_stats_and_their_picture(built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = stats(built)
    assert found["quantiles"]["length_s"][0] >= 2.0
    plot(built, tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(SystemExit) as ended:
        sys.argv = ["tubelet", "unistg", "stats", str(built)]
        main()
    assert ended.value.code in (0, None)
    assert "filter" in capsys.readouterr().out
    with pytest.raises(DataError, match="no finished Uni-STG build"):
        stats(tmp_path)


def test_a_provider_that_crashes_on_one_video_costs_its_captions_until_it_is_tried_again(
    toys: Path, tmp_path: Path, providers: None
) -> None:
    flag = tmp_path / "crash"
    flag.touch()
    video = json.loads((toys / "captions.jsonl").read_text().splitlines()[0])["video"]
    options = {"fails_on": video, "while_there": str(flag)}
    annotator = {"provider": "unistg_providers:steady", "options": options}
    out = tmp_path / "out"
    done = build(recipe(toys, annotator=annotator), out)
    drops = [json.loads(x) for x in (out / "drops.jsonl").read_text().splitlines()]
    failed = [d for d in drops if d["reason"] == "provider-failed"]
    rows = [json.loads(line) for line in (toys / "captions.jsonl").read_text().splitlines()]
    twice = {d["key"] for d in drops if d["reason"] == "duplicate"}  # said before: nobody looked for them
    lost = {r["id"] for r in rows if r["video"] == video} - {"outside", "no-noun"} - twice
    assert {d["key"].split("#")[0] for d in failed} == lost and done.aside == len(lost) >= 1
    assert all(d["detail"] == "RuntimeError: out of memory" for d in failed)
    assert [d["stage"] for d in drops if d["key"] == "no-noun"] == ["analyzer"]  # the video is not to blame
    assert done.kept >= 3  # of the other videos
    build(recipe(toys, annotator=annotator), out, resume=True)
    assert json.loads((out / "funnel.json").read_text())["reasons"]["annotator: provider-failed"] == len(lost)
    flag.unlink()
    again = build(recipe(toys, annotator=annotator), out, resume=True, retry_aside=True)
    assert (again.aside, again.kept) == (0, done.kept + len(lost))
    assert "provider-failed" not in (out / "drops.jsonl").read_text()


def test_a_model_that_cannot_load_is_no_matter_of_single_captions(
    toys: Path, tmp_path: Path, providers: None
) -> None:
    done = build(recipe(toys, annotator={"provider": "unistg_providers:cannot_load"}), tmp_path / "out")
    assert done.kept == 0 and done.aside >= 4  # the command ends with exit code 1, and says why
    drops = (tmp_path / "out" / "drops.jsonl").read_text()
    assert "set-aside" in drops and "no model.safetensors" in drops
