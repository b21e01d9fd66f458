"""Runs that are killed: SIGKILL at random moments loses no query, repeats none, and changes no score."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from fake_models import Fake, lines_of, make_vstar

from tubelet.benchmarks.run import run_benchmark
from tubelet.benchmarks.run_folder import read_run
from tubelet.benchmarks.run_score import rescore
from tubelet.errors import DataError

KILLS = 12
FORK = multiprocessing.get_context("fork")  # a child without Python's start-up: its whole life is the run


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_vstar(tmp_path_factory.mktemp("vstar"))


def evaluate(data: Path, out: Path) -> None:
    """In a child process: the exit code says whether it got to its end."""
    run_benchmark(Fake(delay_s=0.004), "v-star", data, out)


def test_killed_at_random_moments(tmp_path: Path) -> None:
    data = make_vstar(tmp_path / "data", videos=24, items=1)
    whole, out = tmp_path / "whole", tmp_path / "killed"
    scores = run_benchmark(Fake(), "v-star", data, whole)
    predictions, draw, kills, seen = out / "predictions.jsonl", random.Random(5), 0, []
    for _ in range(200):
        process = FORK.Process(target=evaluate, args=(data, out))
        process.start()
        if kills < KILLS:
            # some moments come before the first answer, most between the answers of two videos
            process.join(draw.uniform(0.01, 0.08))
            if process.exitcode is None:
                process.kill()
            process.join(60)
            kills += process.exitcode == -signal.SIGKILL
            if not (out / "run.json").exists():
                continue
            # what a kill within a write leaves: half a line
            if kills % 3 == 0 and predictions.exists() and predictions.stat().st_size:
                with predictions.open("ab") as file:
                    file.write(b'{"id": "half a li')
            seen.append(len(read_run(out, unfinished=True, keep_good=True).lines))
            if len(seen) > 1 and seen[-1] == 96 and kills < KILLS:
                shutil.rmtree(out)  # a fast machine: begin again, the kills count on
                seen.clear()
            continue
        process.join(60)
        break
    assert process.exitcode == 0 and kills == KILLS
    assert seen == sorted(seen), "answers were lost"
    assert lines_of(out) == lines_of(whole)
    again, first = (json.loads((f / "metrics.json").read_text()) for f in (out, whole))
    assert again["parts"] == first["parts"] and again["n"] == scores.n == 96
    assert (out / "records.jsonl").read_bytes() == (whole / "records.jsonl").read_bytes()
    for key in ("benchmark", "model", "data_hash", "n"):
        assert again["run"][key] == first["run"][key]


def test_every_cut_of_the_file_resumes(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run_benchmark(Fake(), "v-star", data, out)
    first, text = lines_of(out), (out / "predictions.jsonl").read_bytes()
    for keep in (0, 1, len(text) // 3, len(text) // 2, len(text) - 1, len(text)):
        (out / "predictions.jsonl").write_bytes(text[:keep])
        fake = Fake()
        run_benchmark(fake, "v-star", data, out)
        assert lines_of(out) == first
        left = len(first) - text[:keep].count(b"\n")
        # the second pass of an stvg question is not a question of its own
        assert len(fake.asked) - sum(len(x.get("given_span", ())) for x in first.values()) <= left <= 48
        assert (len(fake.encoded) == 0) == (left == 0)


def test_a_finished_run_asks_nothing_and_another_one_is_refused(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run_benchmark(Fake(), "v-star", data, out, task="stvg")
    fake = Fake()
    run_benchmark(fake, "v-star", data, out, task="stvg")
    assert fake.encoded == []
    other = Fake()
    other.revision = "r2"
    with pytest.raises(DataError, match=r"another run: revision 'r1' \(now 'r2'\)"):
        run_benchmark(other, "v-star", data, out, task="stvg")  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"task 'stvg'.*data_hash"):
        run_benchmark(Fake(), "v-star", data, out)
    changed = json.loads((data / "V_STaR_test.json").read_text())
    changed[0]["timestamps"] = [0.25, 1.5]
    (tmp_path / "other.json").write_text(json.dumps(changed))
    with pytest.raises(DataError, match="another run: data_hash"):
        run_benchmark(Fake(), "v-star", tmp_path / "other.json", out, task="stvg", videos=data)


def test_predictions_of_unknown_queries_stop_a_resume(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run_benchmark(Fake(), "v-star", data, out, limit=3)
    path = out / "predictions.jsonl"
    line = json.loads(path.read_text().splitlines()[0])
    path.write_text(path.read_text() + json.dumps({**line, "id": "nobody"}) + "\n")
    with pytest.raises(DataError, match="not in this run"):
        run_benchmark(Fake(), "v-star", data, out, limit=3)
    with pytest.raises(DataError, match=r"line 4: field id: there is no query 'nobody'"):
        rescore(out)


def test_the_process_that_is_killed_is_a_real_one() -> None:
    """The program of the kill test ends with an error, not in silence, when its data are missing."""
    program = [
        sys.executable,
        str(Path(__file__).with_name("fake_models.py")),
        "/nowhere",
        "/nowhere/out",
        "0",
    ]
    done = subprocess.run(program, capture_output=True, env={**os.environ}, timeout=60, check=False)
    assert done.returncode != 0 and b"does not exist" in done.stderr
