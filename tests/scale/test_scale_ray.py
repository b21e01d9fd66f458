"""The Ray engine when things die: kill -9 of its workers and of its driver, hung and frozen workers; what stops a whole
job, and how Ray's giving up is dealt with; GPUs per stage. Lost machines: test_scale_machines.py.

One local cluster for all of them; it is stopped at the end.
"""

from __future__ import annotations

import json
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

from tubelet.errors import ModelError, OutputError, TubeletError
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


# --- what stops a whole job --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        ("broken", ModelError, "s: RuntimeError: no such weights"),
        ("too_few", ModelError, "stage 's' must return one value per part: 1, got 0"),
        ("numbers", ModelError, "must return text, got int"),
        ("full_disk", OutputError, "cannot write overlays: No space left"),
        ("stillborn", ModelError, "workers end before their first item"),
    ],
)
def test_what_is_no_fault_of_an_item_stops_the_job_and_costs_no_try(
    tmp_path: Path,
    address: str,
    monkeypatch: pytest.MonkeyPatch,
    make: str,
    error: type[TubeletError],
    says: str,
) -> None:
    from tubelet.scale import ray_engine

    monkeypatch.setattr(ray_engine, "_RESTARTS", 1)
    with open_ledger(tmp_path / "l") as ledger:
        ledger.fill((f"{k}", Part(k, f"{k}", f"{k}")) for k in range(12))
        with pytest.raises(error, match=says):
            ray_engine.run_ray(Job("j", (Stage("s", f"scale_steps:{make}", cpus=0.5),)), ledger)
        assert ledger.counts() == {"todo": 12, "running": 0, "done": 0, "aside": 0}
        assert {item.tries for item in ledger.claim(12, 60)} == {0}


def test_where_ray_gives_up_waves_shrink_until_the_item_is_found(
    tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tubelet.scale import ray_engine

    monkeypatch.setattr(ray_engine, "_RESTARTS", 0)
    stage = Stage("work", "scale_steps:trouble", {"folder": str(tmp_path)}, cpus=0.5)
    rows = run(tmp_path, Job("j", (stage,), max_tries=2), ["a", "die", "b"])
    assert [row[2] for row in rows] == ["0", None, "4"]
    assert rows[1][3].startswith("its worker died (")
    assert Counter(key for key, _ in tries(tmp_path))["die"] >= 2


def test_a_full_disk_is_told_while_no_result_comes(
    tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver waits for an item of an hour; its thread beside cannot commit."""
    from tubelet.scale.ledger import Ledger
    from tubelet.scale.ray_engine import run_ray

    def full(ledger: Ledger) -> None:
        if tries(tmp_path):
            raise OutputError("cannot write the ledger: disk is full")

    monkeypatch.setattr(Ledger, "commit_if_due", full)
    stage = Stage("work", "scale_steps:trouble", {"folder": str(tmp_path)}, cpus=0.5)
    start_s = time.monotonic()
    with open_ledger(tmp_path / "l") as ledger:
        ledger.fill([("hang", Part(0, "hang", "1"))])
        with pytest.raises(OutputError, match="disk is full"):
            run_ray(Job("j", (stage,)), ledger)
        assert ledger.counts()["todo"] == 1
    assert time.monotonic() - start_s < 200  # the item takes 300 s


def test_a_ray_that_is_gone_is_a_sentence_and_the_items_are_to_do_again(
    tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    from tubelet.scale import ray_engine

    def gone(*_: Any) -> int:
        raise ray.exceptions.RaySystemError("the raylet does not answer")

    monkeypatch.setattr(ray_engine, "_wave", gone)
    with open_ledger(tmp_path / "l") as ledger:
        ledger.fill([("a", Part(0, "a", "1"))])
        with pytest.raises(ModelError, match=r"not there any more \(RaySystemError\): .* --resume"):
            ray_engine.run_ray(Job("j", (Stage("s", "scale_steps:double"),)), ledger)
        assert ledger.counts()["todo"] == 1


def test_a_wave_is_all_that_is_claimed_at_a_time(tmp_path: Path, address: str) -> None:
    from tubelet.scale.ray_engine import run_ray

    running: list[int] = []
    with open_ledger(tmp_path / "l") as ledger:
        ledger.fill((f"{k}", Part(k, f"{k}", f"{k}")) for k in range(15))
        stage = Stage("double", "scale_steps:double", {"sleep_s": 0.1}, cpus=0.5)
        run_ray(Job("j", (stage,), wave=6), ledger, lambda _: running.append(ledger.counts()["running"]))
        assert ledger.counts()["done"] == 15
    assert 1 <= max(running) <= 6


# --- the commands ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tubelet.world.files import make_world

    folder = tmp_path_factory.mktemp("world")
    make_world(folder, 2, seed=11, height=64, fps=4)
    return folder


def test_a_batch_gives_the_same_bytes_on_ray(tmp_path: Path, address: str, world: Path) -> None:
    from tubelet.scale.grounding import BatchSettings, ground_pairs

    videos = [*sorted(world.glob("videos/*.mp4")), "gone.mp4"]
    asked = [
        {"video": str(video), "sentence": text}
        for text in ("the red circle", "what spins?")
        for video in videos
    ]
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(line) + "\n" for line in asked))
    result = ground_pairs(pairs, tmp_path / "ray", BatchSettings(engine="ray", cpus=0.5))
    assert (result.videos, result.answered, result.failed, result.videos_aside) == (3, 4, 2, 1)
    ground_pairs(pairs, tmp_path / "local")
    one, other = (tmp_path / name / "predictions.jsonl" for name in ("ray", "local"))
    assert len(one.read_text().splitlines()) == 6
    assert one.read_bytes() == other.read_bytes()


def test_a_unistg_build_gives_the_same_bytes_on_ray(tmp_path: Path, address: str, world: Path) -> None:
    from tubelet.config_io import from_dict
    from tubelet.unistg.build import build
    from tubelet.unistg.recipe import UniSTGRecipe

    captions = [
        {"id": f"{path.stem}/{colour}", "video": path.name, "text": f"a {colour} circle moves around"}
        | {"start_s": 0.0, "end_s": 4.0}
        for path in (*sorted(world.glob("videos/*.mp4")), Path("gone.mp4"))
        for colour in ("red", "blue")
    ]
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in captions))
    recipe = from_dict(
        UniSTGRecipe,
        {
            "videos": str(world / "videos"),
            "sources": [{"kind": "jsonl", "path": str(tmp_path / "captions.jsonl")}],
            "annotator": {"provider": "motion", "fps": 4.0},
        },
    )
    for engine in ("ray", "local"):
        build(recipe, tmp_path / engine, engine=engine)
    for name in ("samples.jsonl", "drops.jsonl", "funnel.json"):
        assert (tmp_path / "ray" / name).read_bytes() == (tmp_path / "local" / name).read_bytes(), name
    assert (tmp_path / "ray/drops.jsonl").read_text().count("gone.mp4") >= 2
