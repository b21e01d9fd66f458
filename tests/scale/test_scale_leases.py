"""Claims belong to an owner for some time: dead, frozen and hung workers, late results, the board of the Ray engine."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from tubelet.scale.job import Job, Stage
from tubelet.scale.ledger import Ledger, Part, open_ledger
from tubelet.scale.local import run_local
from tubelet.scale.ray_board import Board


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    here = str(Path(__file__).resolve().parent)
    monkeypatch.syspath_prepend(here)
    monkeypatch.setenv("PYTHONPATH", here)


def filled(path: Path, keys: list[str]) -> Ledger:
    ledger = open_ledger(path)
    ledger.fill((key, Part(k, f"{key}/{k}", str(k))) for k, key in enumerate(keys))
    return ledger


def owners(ledger: Ledger) -> dict[int, Any]:
    with ledger.file.guard() as base:
        return dict(base.execute("SELECT seq, owner FROM items WHERE owner IS NOT NULL").fetchall())


# --- the ledger --------------------------------------------------------------------------------------


def test_an_expired_claim_goes_to_another_worker_and_the_late_result_counts_once(tmp_path: Path) -> None:
    with filled(tmp_path / "l", ["a", "b"]) as ledger:
        (first,) = ledger.claim(1, 0.05, "one")
        assert owners(ledger) == {1: "one"} and ledger.expired() == []
        time.sleep(0.06)
        (lost,) = ledger.expired()
        assert (lost.seq, lost.key, lost.owner) == (1, "a", "one") and lost.lease_until_s < time.time()
        assert ledger.fail(lost.seq, "silent", 3, owner="one") is False
        assert ledger.expired() == [] and owners(ledger) == {}
        (second,) = ledger.claim(1, 60, "two")
        assert (second.seq, second.tries) == (first.seq, 1) and owners(ledger) == {1: "two"}
        ledger.finish(first.seq, ["same"])  # the one that was given up comes after all
        assert ledger.counts()["done"] == 1 and owners(ledger) == {}
        ledger.finish(second.seq, ["other"])
        assert ledger.fail(second.seq, "late", 1) is False
        assert [row[2] for row in ledger.results()] == ["same", None]
        assert [item.key for item in ledger.claim(9, 60)] == ["b"]


def test_what_a_former_owner_says_of_a_failure_does_not_count(tmp_path: Path) -> None:
    with filled(tmp_path / "l", ["a"]) as ledger:
        ledger.claim(1, 60, "one")
        ledger.release([1])
        ledger.claim(1, 60, "two")
        assert ledger.fail(1, "from before", 1, owner="one") is False
        assert ledger.counts()["running"] == 1 and owners(ledger) == {1: "two"}
        assert ledger.fail(1, "of its own", 1, owner="two") is True
        assert next(ledger.aside()).reason == "of its own"


def test_a_renewed_claim_holds_and_only_running_ones_can_be_renewed(tmp_path: Path) -> None:
    with filled(tmp_path / "l", ["a", "b", "c"]) as ledger:
        ledger.claim(2, 0.05, "driver")
        time.sleep(0.06)
        assert [claim.seq for claim in ledger.expired()] == [1, 2]
        assert ledger.renew([(1, "worker 7"), (3, "worker 7"), (99, "worker 7")], 60) == 1
        assert [claim.seq for claim in ledger.expired()] == [2]
        assert owners(ledger) == {1: "worker 7", 2: "driver"}
        ledger.finish(1, ["x"])
        assert ledger.renew([(1, "worker 7")], 60) == 0


def test_a_dead_drivers_claims_are_free_at_once_however_long_their_lease(tmp_path: Path) -> None:
    ledger = filled(tmp_path / "l", ["a", "b"])
    ledger.claim(2, 1e6, "driver 1")
    ledger.file.drop()  # kill -9
    with open_ledger(tmp_path / "l") as ledger:
        assert owners(ledger) == {} and ledger.counts()["todo"] == 2
        assert len(ledger.claim(1, 60)) == 1


# --- local workers -----------------------------------------------------------------------------------


def run(
    folder: Path, keys: list[str], workers: int = 2, **options: Any
) -> list[tuple[str | None, str | None]]:
    stage = Stage("work", "scale_steps:trouble", {"folder": str(folder)}, workers=workers)
    with filled(folder / "l", keys) as ledger:
        run_local(Job("j", (stage,), **options), ledger)
        assert owners(ledger) == {} and ledger.counts()["running"] == ledger.counts()["todo"] == 0
        return [(row[2], row[3]) for row in ledger.results(in_order=True)]


def tries(folder: Path) -> dict[str, list[str]]:
    out: dict[str, list[str]] = {}
    for line in (folder / "tries").read_text().splitlines():
        key, _, pid = line.rpartition(" ")
        out.setdefault(key, []).append(pid)
    return out


def test_hung_items_are_tried_again_by_another_worker_and_then_set_aside(tmp_path: Path) -> None:
    rows = run(tmp_path, ["a", "hang", "hang once", "b"], item_timeout_s=1.0, max_tries=2)
    assert rows == [
        ("0", None),
        (None, "work: took longer than item_timeout_s (1 s)"),
        ("4", None),
        ("6", None),
    ]
    done = tries(tmp_path)
    assert len(set(done["hang"])) == 2 and len(set(done["hang once"])) == 2


def test_frozen_workers_lose_their_claims(tmp_path: Path) -> None:
    rows = run(tmp_path, ["freeze", "a", "freeze once", "b"], lease_s=2.0, max_tries=2)
    said = "work: its worker gave no sign of life for the lease of 2 s"
    assert rows == [(None, said), ("2", None), ("4", None), ("6", None)]
    done = tries(tmp_path)
    assert len(set(done["freeze"])) == 2 and len(set(done["freeze once"])) == 2
    assert not any(Path(f"/proc/{pid}").exists() for pids in done.values() for pid in pids)


def test_a_long_item_keeps_its_claim_as_long_as_its_worker_lives(tmp_path: Path) -> None:
    stage = Stage("work", "scale_steps:trouble", {"folder": str(tmp_path), "sleep_s": 5.0})
    with filled(tmp_path / "l", ["a"]) as ledger:
        run_local(Job("j", (stage,), lease_s=2.0, max_tries=1), ledger)
        assert [row[2:] for row in ledger.results()] == [("0", None)]
    assert len(tries(tmp_path)["a"]) == 1


def test_a_worker_that_dies_once_costs_no_result(tmp_path: Path) -> None:
    assert run(tmp_path, ["die once", "a"], max_tries=2) == [("0", None), ("2", None)]
    assert len(tries(tmp_path)["die once"]) == 2


# --- the board of the Ray engine -----------------------------------------------------------------------


def test_the_board_tells_deaths_hangs_and_silence_apart() -> None:
    now = 0.0
    job = Job("j", (Stage("s", "m:f"), Stage("t", "m:g")), lease_s=100, item_timeout_s=1000)
    board = Board(job, lambda: now)
    a, b, c = ("node", 1), ("node", 2), ("node", 3)
    assert board.begin(0, 7, a) == [] and board.begun() == 1
    board.end(0, 7)
    assert board.begin(1, 7, b) == []  # another stage, another worker: nobody died
    assert board.owners() == {7: "t node:2"}
    board.end(1, 7)
    board.begin(0, 8, a)
    assert board.begin(0, 8, a) == []  # the same process: it lives
    assert board.begin(0, 8, b) == ["s: its worker died"]
    assert board.begin(0, 8, c) == ["s: its worker died"] * 2
    board.end(0, 8)
    board.begin(1, 9, a)
    while now < 120:
        now += 40
        board.beat(c)
        lost = board.late()
    assert lost == [a] and board.late() == []
    silent = "t: its worker gave no sign of life for the lease of 100 s"
    assert board.begin(1, 9, b) == [silent]  # once, though its worker was killed as well
    while now < 1200:
        now += 40
        board.beat(b)
        lost = board.late()
        if lost:
            break
    assert lost == [b] and now == 1160.0
    assert board.begin(1, 9, c) == [silent, "t: took longer than item_timeout_s (1000 s)"]
    board.forget(9)
    board.new_wave()
    assert board.begin(1, 9, a) == [] and board.begun() == 1


def test_the_board_blames_nobody_after_a_sleep() -> None:
    now = 0.0
    board = Board(Job("j", (Stage("s", "m:f"),), lease_s=100, item_timeout_s=200), lambda: now)
    board.begin(0, 1, ("node", 1))
    now = 5000.0
    assert board.late() == []
    now = 5040.0
    assert board.late() == [] and board.owners() == {1: "s node:1"}
