"""The Ray engine's parts without a cluster: its worker on rows, what it kills, what it says where there is no Ray."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tubelet.errors import ModelError
from tubelet.scale.job import Job, Stage
from tubelet.scale.ledger import Part, open_ledger
from tubelet.scale.ray_board import Board
from tubelet.scale.ray_engine import _Actor, _Box, _kill, run_ray


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parent))


def row(key: str = "a", value: str = "3", tries: int = 3, **other: Any) -> dict[str, Any]:
    made = {"seq": 1, "key": key, "kind": "done", "tries": tries, "failures": _Box([]), "box": _Box([value])}
    return made | other


def answer(given: dict[str, Any]) -> tuple[str, Any, list[str]]:
    got = _Actor(Stage("s", "scale_steps:double"), last=True)(given)
    assert (got["seq"], got["key"], got["tries"]) == (given["seq"], given["key"], given["tries"])
    return got["kind"], got["box"].value, got["failures"].value


def test_what_failed_before_is_handed_on() -> None:
    assert answer(row()) == ("done", ["6"], [])
    assert answer(row(failures=_Box(["t: before"]))) == ("done", ["6"], ["t: before"])


def test_what_a_step_raises_is_tried_again_at_once_until_the_tries_are_used_up() -> None:
    said = "s: ValueError: poison is corrupt"
    assert answer(row("poison", tries=2)) == ("failed", None, [said] * 2)
    told = answer(row("poison", tries=3, failures=_Box(["t: before"])))
    assert told == ("failed", None, ["t: before", said, said])
    assert answer(row(tries=1, failures=_Box(["t: before"]))) == ("failed", None, ["t: before"])


def test_only_workers_of_ray_are_killed() -> None:
    """A number may belong to another process by the time that the word arrives."""
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    named = subprocess.Popen(["ray::worker", "-c", "import time; time.sleep(60)"], executable=sys.executable)
    try:
        while not Path(f"/proc/{named.pid}/cmdline").read_bytes():  # it is just being made
            time.sleep(0.01)
        _kill(other.pid)
        _kill(named.pid)
        assert named.wait(20) == -signal.SIGKILL
        assert other.poll() is None
        _kill(named.pid)  # gone
    finally:
        for process in (other, named):
            process.kill()
            process.wait()


def test_the_board_tells_when_nobody_will_take_what_a_lost_machine_had() -> None:
    now = 0.0
    board = Board(Job("j", (Stage("s", "m:f"),), lease_s=100, item_timeout_s=1000), lambda: now)
    here, lost, loading = ("here", 1), ("lost", 1), ("here", 2)

    def wait(seconds: float, *alive: tuple[str, int], ready: bool = True) -> list[Any]:
        nonlocal now
        killed: list[Any] = []
        for _ in range(round(seconds / 20)):
            now += 20
            for place in alive:
                board.beat(place, ready)
            killed += board.late()
        return killed

    board.beat(lost)
    wait(4000, here)
    assert not board.stuck()  # nobody has begun: models load, machines start
    board.new_wave()
    board.begin(0, 1, here)
    board.end(0, 1)
    wait(4000, here)
    assert not board.stuck()  # everybody lives: a slow machine is still to come, the next stage still loads
    board.begin(0, 2, lost)
    assert wait(120, here) == [lost]  # silent for the lease: its item has a failed try
    wait(100, here)
    assert not board.stuck()
    wait(4000, loading, ready=False)
    assert not board.stuck()  # another one loads the model, for however long
    board.begin(0, 2, loading)
    wait(800, here, loading)
    assert not board.stuck() and board.owners() == {2: "s here:2"}
    board.end(0, 2)
    wait(80, here, loading)
    assert not board.stuck()
    now += 5000  # a computer that slept
    board.late()
    assert not board.stuck()
    wait(120, here, loading)
    assert board.stuck()
    board.new_wave()
    assert not board.stuck()


def job(folder: Path) -> dict[str, int]:
    with open_ledger(folder / "l") as ledger:
        ledger.fill([("a", Part(0, "a", "1"))])
        try:
            run_ray(Job("j", (Stage("double", "scale_steps:double"),)), ledger)
        finally:
            counts = ledger.counts()
            assert counts["todo"] == 1 and sum(counts.values()) == 1
    return counts


def test_without_ray_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ModelError, match=r"needs ray: pip install 'tubelet\[scale\]', or use --engine local"):
        job(tmp_path)


def test_an_address_where_no_cluster_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="the extra scale (ray) is not installed")
    monkeypatch.setenv("RAY_ADDRESS", "nonsense")
    with pytest.raises(ModelError, match=r"no Ray cluster answers at nonsense .*RAY_ADDRESS"):
        job(tmp_path)


def test_a_ray_that_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray", reason="the extra scale (ray) is not installed")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def starved(**_: Any) -> None:
        raise Exception("The current node timed out during startup.")  # what Ray itself raises

    monkeypatch.setattr(ray, "init", starved)
    with pytest.raises(ModelError, match=r"does not start on this machine \(The current node timed out"):
        job(tmp_path)
