"""Both engines on one job: results, poison, deadly and hung items, a full disk, other ledgers."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tubelet.errors import DataError, ModelError, OutputError
from tubelet.scale.export import export_lines
from tubelet.scale.job import Job, JobProgress, Stage
from tubelet.scale.ledger import Part, open_ledger
from tubelet.scale.local import run_local

TWO = (Stage("double", "scale_steps:double"), Stage("add", "scale_steps:increment"))


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    here = str(Path(__file__).resolve().parent)
    monkeypatch.syspath_prepend(here)
    monkeypatch.setenv("PYTHONPATH", here)


def results(folder: Path, job: Job, keys: list[str], run: Any = run_local) -> list[Any]:
    folder.mkdir(exist_ok=True)
    with open_ledger(folder / "ledger.sqlite") as ledger:
        ledger.fill((key, Part(k, f"{key}/{k}", str(k))) for k, key in enumerate(keys))
        run(job, ledger)
        export_lines(ledger, folder / "out.jsonl")
        return list(ledger.results(in_order=True))


def test_local_stages_and_poison(tmp_path: Path) -> None:
    rows = results(tmp_path, Job("j", TWO), ["a", "poison", "b"])
    assert [row[2] for row in rows] == ["1", None, "5"]
    assert rows[1][3] == "double: ValueError: poison is corrupt"


def test_a_deadly_item_is_set_aside_and_the_others_are_done(tmp_path: Path) -> None:
    rows = results(tmp_path, Job("j", TWO, max_tries=2), ["a", "deadly", "b"])
    assert [row[2] for row in rows] == ["1", None, "5"]
    assert "signal 9" in rows[1][3]


def test_a_hung_worker_is_killed_after_its_time(tmp_path: Path) -> None:
    rows = results(tmp_path, Job("j", TWO, max_tries=1, item_timeout_s=0.5), ["a", "slow", "b"])
    assert [row[2] for row in rows] == ["1", None, "5"]
    assert rows[1][3] == "double: took longer than item_timeout_s (0.5 s)"


def test_few_items_are_claimed_ahead_however_many_there_are(tmp_path: Path) -> None:
    """The backpressure: what is claimed is in memory."""
    stages = (Stage("fast", "scale_steps:double"), Stage("slow", "scale_steps:double", {"sleep_s": 0.02}))
    running: list[int] = []
    with open_ledger(tmp_path / "l") as ledger:
        ledger.fill((f"{k}", Part(k, f"{k}", f"{k}")) for k in range(60))
        run_local(Job("j", stages), ledger, lambda progress: running.append(ledger.counts()["running"]))
        assert ledger.counts()["done"] == 60
    assert len(running) >= 3 and 1 <= max(running) <= 2 * len(stages)


def test_a_full_disk_stops_the_job_and_it_resumes(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="No space left"):
        results(tmp_path, Job("j", (Stage("full", "scale_steps:full_disk"),)), ["a", "b"])
    assert [row[2] for row in results(tmp_path, Job("j", TWO), ["a", "b"])] == ["1", "3"]


def test_a_stage_that_cannot_start(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such weights"):
        results(tmp_path, Job("j", (Stage("broken", "scale_steps:broken"),)), ["a"])


def test_ledgers(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with open_ledger(path) as ledger:
        again = ledger.fill([("a", Part(0, "x", "1")), ("a", Part(1, "x", "2"))])
        assert [(d.key, d.place, d.first) for d in again] == [("x", 1, 0)]
        with pytest.raises(DataError, match="another run"):
            open_ledger(path)
    for version in (1, 99):
        base = sqlite3.connect(path)
        base.execute(f"PRAGMA user_version = {version}")
        base.close()
        teaches = (
            rf"version {version}, this tubelet reads version 2: finish the job .* or start again in another"
        )
        with pytest.raises(DataError, match=teaches):
            open_ledger(path)


def test_pauses_are_committed(tmp_path: Path) -> None:
    with open_ledger(tmp_path / "l.sqlite", commit_s=0.0) as ledger:
        ledger.fill([("a", Part(0, "x", "1"))])
        (item,) = ledger.claim(1, 10)
        ledger.finish(item.seq, ["2"])
        ledger.commit_if_due()
        other = sqlite3.connect(tmp_path / "l.sqlite")
        assert other.execute("SELECT result FROM parts").fetchall() == [("2",)]
        other.close()


@pytest.fixture
def cluster(importable: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("RAY_worker_niceness", "0")  # Ray's 15 starves workers beside anything else
    ray = pytest.importorskip("ray", reason="the extra scale (ray) is not installed")
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, object_store_memory=100 * 2**20)
    yield
    ray.shutdown()


def test_ray_gives_the_same_results_and_resumes(tmp_path: Path, cluster: None) -> None:
    from tubelet.scale.ray_engine import run_ray

    keys = [*(f"item {k}" for k in range(30)), "poison"]
    stages = tuple(Stage(s.name, s.make, cpus=0.5) for s in TWO)
    job = Job("j", stages, max_tries=2)
    results(tmp_path / "local", job, keys)

    def stopped(job: Job, ledger: Any) -> None:
        def stop(progress: JobProgress) -> None:
            raise KeyboardInterrupt

        run_ray(job, ledger, stop)

    with pytest.raises(KeyboardInterrupt):
        results(tmp_path / "ray", job, keys, stopped)
    results(tmp_path / "ray", job, keys, run_ray)
    assert (tmp_path / "ray/out.jsonl").read_bytes() == (tmp_path / "local/out.jsonl").read_bytes()
