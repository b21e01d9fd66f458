"""The Ray engine when things die: kill -9 of its workers and of its driver, hung and frozen workers; GPUs per stage.

One local cluster for all of them; it is stopped at the end.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tubelet.scale.export import export_lines
from tubelet.scale.job import Job, JobProgress, Stage
from tubelet.scale.ledger import Part, open_ledger
from tubelet.scale.local import run_local

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Of a local cluster with four CPUs and two GPUs, which it only believes to have."""
    ray = pytest.importorskip("ray", reason="the extra scale (ray) is not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(HERE))
        patch.setenv("PYTHONPATH", str(HERE))
        patch.setenv("RAY_worker_niceness", "0")
        patch.setenv("RAY_BACKEND_LOG_LEVEL", "fatal")
        ray.init(
            num_cpus=4,
            num_gpus=2,
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=100 * 2**20,
        )
        yield ray.get_runtime_context().gcs_address
        ray.shutdown()


def tries(folder: Path) -> list[list[str]]:
    """[key, process] of every try so far."""
    path = folder / "tries"
    return [line.rsplit(" ", 1) for line in path.read_text().splitlines()] if path.exists() else []


def done(folder: Path) -> set[str]:
    """Keys that a ledger holds results of, read beside its driver."""
    if not (folder / "ledger.sqlite").exists():
        return set()
    with closing(sqlite3.connect(f"file:{folder}/ledger.sqlite?mode=ro", uri=True, timeout=10)) as base:
        try:
            return {row[0] for row in base.execute("SELECT key FROM items WHERE state = 'done'")}
        except sqlite3.OperationalError:  # not filled yet
            return set()


def undisturbed(folder: Path, items: int) -> bytes:
    import scale_ray_driver

    folder.mkdir()
    with open_ledger(folder / "ledger.sqlite") as ledger:
        scale_ray_driver.fill(ledger, items)
        run_local(scale_ray_driver.job(folder), ledger)
        export_lines(ledger, folder / "out.jsonl")
    return (folder / "out.jsonl").read_bytes()


def test_killed_workers_change_no_byte(tmp_path: Path, address: str) -> None:
    import scale_ray_driver

    from tubelet.scale.ray_engine import _BLOCK, run_ray

    items, kills = 80, [5, 30]
    killed: list[int] = []

    def kill(progress: JobProgress) -> None:
        if len(killed) < len(kills) and progress.done >= kills[len(killed)]:
            killed.append(int(tries(tmp_path)[-1][1]))
            os.kill(killed[-1], signal.SIGKILL)

    with open_ledger(tmp_path / "ledger.sqlite") as ledger:
        scale_ray_driver.fill(ledger, items)
        run_ray(scale_ray_driver.job(tmp_path), ledger, kill)
        export_lines(ledger, tmp_path / "out.jsonl")
    assert len(killed) == len(kills)
    assert len({pid for _, pid in tries(tmp_path)}) > 2  # others took over
    repeated = len(tries(tmp_path)) - items
    assert 0 <= repeated <= len(kills) * _BLOCK * 2  # tasks in work and those that waited behind them
    assert (tmp_path / "out.jsonl").read_bytes() == undisturbed(tmp_path / "whole", items)


def test_a_killed_driver_resumes_to_the_same_bytes(tmp_path: Path, address: str) -> None:
    items = 80
    command = [sys.executable, str(HERE / "scale_ray_driver.py"), str(tmp_path), str(items), address]
    first = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    second: subprocess.Popen[bytes] | None = None
    try:
        until_s = time.monotonic() + 120
        while len(done(tmp_path)) < 20 and first.poll() is None and time.monotonic() < until_s:
            time.sleep(0.02)
        assert first.poll() is None, "it was through before it could be killed"
        first.kill()
        first.wait()
        kept = done(tmp_path)
        assert 20 <= len(kept) < items and not (tmp_path / "out.jsonl").exists()
        before = Counter(key for key, _ in tries(tmp_path))
        second = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        assert second.wait(120) == 0
    finally:
        for process in (first, second):
            if process is not None and process.poll() is None:
                process.kill()
                process.wait()
    after = Counter(key for key, _ in tries(tmp_path))
    assert {after[key] - before[key] for key in kept} == {0}, "what was done is done again"
    assert len(done(tmp_path)) == items
    assert (tmp_path / "out.jsonl").read_bytes() == undisturbed(tmp_path / "whole", items)


def run(folder: Path, job: Job, keys: list[str]) -> list[Any]:
    from tubelet.scale.ray_engine import run_ray

    with open_ledger(folder / "ledger.sqlite") as ledger:
        ledger.fill((key, Part(k, f"{key}/{k}", str(k))) for k, key in enumerate(keys))
        run_ray(job, ledger)
        assert ledger.counts()["running"] == ledger.counts()["todo"] == 0
        return list(ledger.results(in_order=True))


def test_workers_that_die_hang_or_freeze_cost_their_item_a_try(tmp_path: Path, address: str) -> None:
    stage = Stage("work", "scale_steps:trouble", {"folder": str(tmp_path)}, workers=2, cpus=0.5)
    job = Job("j", (stage,), max_tries=2, item_timeout_s=5.0, lease_s=3.0)
    rows = run(tmp_path, job, ["a", "hang once", "freeze once", "die", "die once", "b"])
    assert [row[2] for row in rows] == ["0", "2", "4", None, "8", "10"]
    assert rows[3][3] in (  # where Ray needs longer than the lease to start another worker it is the second
        "work: its worker died",
        "work: its worker gave no sign of life for the lease of 3 s",
    )
    count = Counter(key for key, _ in tries(tmp_path))
    assert (count["hang once"], count["freeze once"], count["die"], count["die once"]) == (2, 2, 2, 2)


def test_ray_workers_get_the_gpus_of_their_stage(tmp_path: Path, address: str) -> None:
    stage = Stage("see", "scale_steps:visible", workers=2, cpus=0.5, gpus=1.0)
    seen = [str(row[2]).split() for row in run(tmp_path, Job("j", (stage,)), [f"{k}" for k in range(24)])]
    assert {gpu for gpu, _ in seen} <= {"0", "1"}
    assert (
        len({tuple(pair) for pair in seen}) == len({pid for _, pid in seen}) == len({gpu for gpu, _ in seen})
    )
