"""Stages with their own resources: which GPUs local workers see, what Ray is told. No GPU is needed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tubelet.errors import RecipeError
from tubelet.scale.devices import share_out, visible_devices
from tubelet.scale.job import Job, Stage
from tubelet.scale.ledger import Part, open_ledger
from tubelet.scale.local import run_local


def stage(workers: int, gpus: float) -> Stage:
    return Stage("s", "scale_steps:visible", workers=workers, gpus=gpus)


@pytest.mark.parametrize(
    ("told", "names"),
    [("0,1", ("0", "1")), (" 3 , GPU-8f ", ("3", "GPU-8f")), ("", ()), ("-1", ()), ("2,-1,3", ("2",))],
)
def test_visible_devices(told: str, names: tuple[str, ...]) -> None:
    assert visible_devices({"CUDA_VISIBLE_DEVICES": told}) == names


def test_gpus_are_dealt_out() -> None:
    four = ("4", "5", "6", "7")
    assert share_out([stage(3, 0)], four) == [[None, None, None]]
    assert share_out([stage(3, 1)], four) == [["4", "5", "6"]]
    assert share_out([stage(2, 2)], four) == [["4,5", "6,7"]]
    assert share_out([stage(5, 1 / 3)], four) == [["4", "4", "4", "5", "5"]]
    assert share_out([stage(1, 1), stage(2, 0), stage(2, 0.5)], four) == [["4"], [None, None], ["5", "5"]]
    assert share_out([stage(1, 0.5), stage(1, 1), stage(1, 0.5)], ("0", "1")) == [["0"], ["1"], ["0"]]


@pytest.mark.parametrize(("workers", "gpus", "shown"), [(3, 1, 2), (1, 1, 0), (5, 0.5, 2), (1, 3, 2)])
def test_too_few_gpus_are_a_sentence(workers: int, gpus: float, shown: int) -> None:
    with pytest.raises(RecipeError, match=rf"'s' asks for {workers} workers .* shows {shown} GPUs: ask for"):
        share_out([stage(workers, gpus)], [str(k) for k in range(shown)])


def run(folder: Path, job: Job) -> list[list[str]]:
    with open_ledger(folder / "l") as ledger:
        ledger.fill((f"{k}", Part(k, f"{k}", f"{k}")) for k in range(30))
        run_local(job, ledger)
        return [str(row[2]).split() for row in ledger.results()]


def test_every_local_worker_sees_its_own_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = str(Path(__file__).resolve().parent)
    monkeypatch.syspath_prepend(here)
    monkeypatch.setenv("PYTHONPATH", here)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    rows = run(tmp_path, Job("j", (stage(2, 1),)))
    seen = {pid: gpu for gpu, pid in rows}
    assert sorted(seen.values()) == ["2", "5"]  # two workers, one each
    assert all(seen[pid] == gpu for gpu, pid in rows)
    with pytest.raises(RecipeError, match="shows 2 GPUs"):
        (tmp_path / "more").mkdir()
        run(tmp_path / "more", Job("j", (stage(3, 1),)))


def test_without_gpus_workers_see_what_the_driver_sees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = str(Path(__file__).resolve().parent)
    monkeypatch.syspath_prepend(here)
    monkeypatch.setenv("PYTHONPATH", here)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert {gpu for gpu, _ in run(tmp_path, Job("j", (stage(1, 0),)))} == {"2,5"}


def test_what_ray_is_told_of_a_stage() -> None:
    pytest.importorskip("ray", reason="the extra scale (ray) is not installed")
    from tubelet.scale.ray_engine import pool_options

    two = (
        Stage("decode", "m:f", workers=4, cpus=2.5),
        Stage("model", "m:g", workers=3, cpus=1, gpus=0.5),
    )
    told = [pool_options(Job("j", two, lease_s=80), number) for number in (0, 1)]
    assert [(o["num_cpus"], o["num_gpus"]) for o in told] == [(2.5, 0.0), (1, 0.5)]
    assert [(o["compute"].min_size, o["compute"].max_size) for o in told] == [(4, 4), (3, 3)]
    assert [o["fn_constructor_args"] for o in told] == [
        (two[0], False, 0, None, 20),
        (two[1], True, 1, None, 20),
    ]
    assert all(o["ray_remote_args_fn"]()["max_restarts"] > 0 for o in told)
