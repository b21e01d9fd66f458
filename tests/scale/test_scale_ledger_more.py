"""The ledger on its own: any order of events, duplicates, set-aside items, deadly items, damaged files, streaming."""

from __future__ import annotations

import os
import random
import sqlite3
import tempfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tubelet.errors import DataError, ModelError, OutputError, RecipeError, TubeletError
from tubelet.scale.export import export_lines
from tubelet.scale.job import Job, Stage, reason_of, run_step
from tubelet.scale.ledger import Ledger, Part, open_ledger
from tubelet.scale.ledger_claims import MAX_INTERRUPTED, STATES

ONE = Stage("one", "scale_steps:double")


def parts(count: int, each: int = 1) -> Iterator[tuple[str, Part]]:
    """Items of `each` parts that lie far from each other in the input."""
    for j in range(each):
        for k in range(count):
            yield f"item {k}", Part(j * count + k, f"{k}/{j}", f"{10 * k + j}")


def filled(path: Path, count: int, each: int = 1, **options: Any) -> Ledger:
    ledger = open_ledger(path, **options)
    ledger.fill(parts(count, each))
    return ledger


def kill(ledger: Ledger) -> None:
    """What a dead driver leaves: nothing is committed, the kernel frees the lock."""
    ledger.file.drop()


def states(ledger: Ledger) -> dict[int, str]:
    return dict(ledger.file.base.execute("SELECT seq, state FROM items").fetchall())


def test_an_item_of_duplicates_alone_is_not_there(tmp_path: Path) -> None:
    with open_ledger(tmp_path / "l") as ledger:
        again = ledger.fill(
            [
                ("a", Part(0, "x", "1")),
                ("b", Part(1, "x", "2")),
                ("c", Part(2, "x", "3")),
                ("c", Part(3, "y", "4")),
            ]
        )
        assert [(d.place, d.first) for d in again] == [(1, 0), (2, 0)]
        assert [(item.key, item.payloads) for item in ledger.claim(9, 1)] == [("a", ("1",)), ("c", ("4",))]
        assert sum(ledger.counts().values()) == 2


def test_two_parts_in_one_place_take_the_whole_fill_back(tmp_path: Path) -> None:
    with open_ledger(tmp_path / "l") as ledger:
        with pytest.raises(DataError, match="place 0"):
            ledger.fill([("a", Part(0, "x", "1")), ("a", Part(0, "y", "2"))])
        assert sum(ledger.counts().values()) == 0 and list(ledger.results()) == []
        assert ledger.fill(parts(2)) == []  # and it can be filled again
        assert ledger.counts()["todo"] == 2


def test_new_parts_of_a_done_item_are_refused_and_old_ones_are_duplicates(tmp_path: Path) -> None:
    with filled(tmp_path / "l", 2) as ledger:
        ledger.finish(ledger.claim(1, 1)[0].seq, ["1"])
        assert len(ledger.fill(parts(2))) == 2
        with pytest.raises(DataError, match="'item 0' is done already"):
            ledger.fill([("item 0", Part(9, "new", "1"))])
        assert len(list(ledger.results())) == 2  # else it would stay without a result for ever
        assert ledger.fill([("item 1", Part(9, "new", "1"))]) == []
        assert ledger.claim(1, 1)[0].payloads == ("10", "1")


def test_a_reader_that_breaks_takes_the_whole_fill_back(tmp_path: Path) -> None:
    def broken() -> Iterator[tuple[str, Part]]:
        yield from parts(3)
        raise DataError("line 4 is bad")

    with open_ledger(tmp_path / "l") as ledger:
        with pytest.raises(DataError, match="line 4"):
            ledger.fill(broken())
        assert sum(ledger.counts().values()) == 0


def test_items_set_aside_get_all_their_tries_again(tmp_path: Path) -> None:
    with filled(tmp_path / "l", 3) as ledger:
        for expected in (False, True):
            item = ledger.claim(1, 1)[0]
            assert item.key == "item 0" and ledger.fail(item.seq, "bad", 2) is expected
        assert [(a.key, a.reason, a.tries) for a in ledger.aside()] == [("item 0", "bad", 2)]
        ledger.claim(1, 1)
        assert ledger.retry_aside() == 1 and ledger.retry_aside() == 0
        assert ledger.counts() == {"todo": 2, "running": 1, "done": 0, "aside": 0}
        item = ledger.claim(1, 1)[0]
        assert (item.key, item.tries) == ("item 0", 0) and ledger.fail(item.seq, "bad", 2) is False
        ledger.claim(1, 1)
        ledger.finish(item.seq, ["7"])
        assert [row[2:] for row in ledger.results()] == [("7", None), (None, None), (None, None)]


def test_what_is_done_or_aside_stays_so(tmp_path: Path) -> None:
    with filled(tmp_path / "l", 2) as ledger:
        a, b = ledger.claim(2, 1)
        ledger.finish(a.seq, ["first"])
        ledger.finish(a.seq, ["second"])
        assert ledger.fail(a.seq, "late", 1) is False
        assert ledger.fail(b.seq, "bad", 1) and ledger.fail(b.seq, "late", 9)
        assert ledger.counts() == {"todo": 0, "running": 0, "done": 1, "aside": 1}
        assert [row[2:] for row in ledger.results()] == [("first", None), (None, "bad")]
        for wrong in (lambda: ledger.finish(99, ["1"]), lambda: ledger.fail(99, "?", 1)):
            with pytest.raises(DataError, match="no item 99"):
                wrong()


def test_release_counts_no_try_and_only_what_runs(tmp_path: Path) -> None:
    with filled(tmp_path / "l", 4) as ledger:
        a, b, c = ledger.claim(3, 1)
        ledger.finish(a.seq, ["1"])
        assert ledger.release([a.seq, b.seq, 99]) == 1
        assert ledger.release() == 1 and ledger.release() == 0
        assert [(i.seq, i.tries) for i in ledger.claim(9, 1)] == [(b.seq, 0), (c.seq, 0), (4, 0)]
        assert ledger.file.base.execute("SELECT max(interrupted) FROM items").fetchone() == (0,)


def test_results_stream_in_both_orders(tmp_path: Path) -> None:
    with filled(tmp_path / "l", 700, 2) as ledger:
        while items := ledger.claim(100, 1):
            for item in items:
                ledger.finish(item.seq, [f"{value}!" for value in item.payloads])
        by_item, in_order = list(ledger.results()), list(ledger.results(in_order=True))
        assert [row[1] for row in by_item] == [f"{10 * k + j}" for k in range(700) for j in range(2)]
        assert [row[1] for row in in_order] == [f"{10 * k + j}" for j in range(2) for k in range(700)]
        assert all(row[2] == row[1] + "!" and row[3] is None for row in by_item)
        assert export_lines(ledger, tmp_path / "a", in_order=False) == 1400
        assert (tmp_path / "a").read_text().splitlines()[1] == '["item 0", "1", "1!", null]'
        assert not (tmp_path / "a.part").exists()


def test_results_are_not_all_in_memory(tmp_path: Path) -> None:
    size, count = 20_000, 1200  # 24 MB in all
    with open_ledger(tmp_path / "l") as ledger:
        ledger.fill((f"{k}", Part(k, f"{k}", f"{k:0{size}}")) for k in range(count))
        for in_order in (False, True):
            tracemalloc.start()
            assert sum(1 for _ in ledger.results(in_order)) == count
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert peak < 3 * 256 * size, peak  # at most a few lots of 256 rows


def test_time_of_the_reader_is_not_the_ledgers(tmp_path: Path) -> None:
    import time

    with filled(tmp_path / "l", 3) as ledger:
        before = ledger.spent_s
        for _ in ledger.results():
            time.sleep(0.05)
        assert ledger.spent_s - before < 0.1


def test_an_item_that_takes_the_driver_down_is_found_and_set_aside(tmp_path: Path) -> None:
    """Six items run at a time; "item 9" kills the driver before the others of its company can finish."""
    deaths = alone = 0
    while deaths < 100:
        ledger = open_ledger(tmp_path / "l", commit_s=1e9)
        if ledger.meta("filled") is None:
            ledger.fill(parts(30))
            ledger.set_meta("filled", "yes")
        while items := ledger.claim(6, 1):
            if any(item.key == "item 9" for item in items):
                alone += len(items) == 1
                break
            for item in items:
                ledger.finish(item.seq, ["1"])
        if not items:
            break
        kill(ledger)
        deaths += 1
    assert deaths == MAX_INTERRUPTED and alone > MAX_INTERRUPTED / 2
    assert ledger.counts() == {"todo": 0, "running": 0, "done": 29, "aside": 1}
    assert [(a.key, a.tries) for a in ledger.aside()] == [("item 9", 0)]
    assert f"died {MAX_INTERRUPTED} times" in next(ledger.aside()).reason
    assert ledger.retry_aside() == 1 and len(ledger.claim(6, 1)) == 1
    kill(ledger)
    with open_ledger(tmp_path / "l") as ledger:
        assert ledger.counts()["todo"] == 1  # it has all its deaths before it again


def test_suspects_run_in_ever_smaller_company(tmp_path: Path) -> None:
    path = tmp_path / "l"
    kill(filled(path, 100))
    for expected in (64, 32, 16, 8, 4, 2, 1, 1):
        ledger = open_ledger(path)
        assert len(ledger.claim(64, 1)) == expected
        if expected < 64:
            assert ledger.claim(64 - expected, 1) == []  # nothing joins them while they run
        kill(ledger)
    with open_ledger(path) as ledger:  # a driver that ends in order counts nothing
        for _ in range(2 * MAX_INTERRUPTED):
            (item,) = ledger.claim(64, 1)
            ledger.release()
        assert ledger.counts()["aside"] == 0
        ledger.finish(item.seq, ["1"])
        assert len(ledger.claim(64, 1)) == 1


def test_a_killed_driver_loses_no_more_than_was_not_committed(tmp_path: Path) -> None:
    ledger = filled(tmp_path / "l", 4, commit_s=1e9)
    a, b = ledger.claim(2, 1)
    ledger.finish(a.seq, ["1"])
    ledger.commit()
    ledger.finish(b.seq, ["2"])
    kill(ledger)
    with open_ledger(tmp_path / "l") as ledger:
        assert ledger.counts() == {"todo": 3, "running": 0, "done": 1, "aside": 0}
        assert [item.key for item in ledger.claim(1, 1)] == ["item 1"]


# --- bad places, damaged files, bad results ----------------------------------------------------------


@pytest.mark.parametrize("flips", [1, 40])
def test_flipped_bytes_give_a_sentence_and_no_crash(tmp_path: Path, flips: int) -> None:
    path = tmp_path / "l"
    with filled(path, 120, 2) as ledger:
        ledger.set_meta("filled", "yes")
        for item in ledger.claim(80, 1):
            ledger.finish(item.seq, ["é" * 20] * 2)
    whole = path.read_bytes()
    chance = random.Random(flips)
    told = 0
    for _ in range(40):
        raw = bytearray(whole)
        for _ in range(flips):
            raw[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)
        for end in ("-wal", "-shm"):
            path.with_name(path.name + end).unlink(missing_ok=True)
        path.write_bytes(raw)
        try:
            with open_ledger(path) as ledger:
                ledger.meta("filled")
                while items := ledger.claim(50, 1):
                    for item in items:
                        ledger.finish(item.seq, ["1"] * len(item.payloads))
                ledger.counts()
                export_lines(ledger, tmp_path / "out")
        except (DataError, OutputError) as error:
            told += 1
            assert str(path) in str(error) or "result" in str(error)
    assert told > (4 if flips == 1 else 35)


def test_a_ledger_cut_in_half_is_found_when_it_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "l"
    filled(path, 2000).close()
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match="damaged"):
        open_ledger(path)


def test_errors_while_results_stream_are_sentences(tmp_path: Path) -> None:
    with filled(tmp_path / "l", 600) as ledger:
        ledger.claim(1, 1)
        ledger.fail(1, "bad", 1)
        rows = ledger.results()
        next(rows)
        ledger.file.base.set_progress_handler(
            lambda: 1, 1
        )  # every statement fails from now on: "interrupted"
        for broken in (rows, ledger.aside(), ledger.results(in_order=True)):
            with pytest.raises(OutputError, match="--resume"):
                list(broken)
        ledger.file.base.set_progress_handler(None, 0)
        with pytest.raises(OutputError, match="cannot write"):
            export_lines(ledger, tmp_path / "nowhere" / "out")


def test_a_full_disk_is_a_sentence_and_the_job_goes_on_later(tmp_path: Path) -> None:
    path = tmp_path / "l"
    with filled(path, 5) as ledger:
        a, b = ledger.claim(2, 1)
        ledger.finish(a.seq, ["kept"])
        ledger.commit()
        pages = ledger.file.base.execute("PRAGMA page_count").fetchone()[0]
        ledger.file.base.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(OutputError, match=r"full.*make space.*--resume"):
            ledger.finish(b.seq, ["x" * 100_000])
        with pytest.raises(OutputError, match="full"):
            ledger.fill((f"new {k}", Part(9, f"new {k}", "x" * 9000)) for k in range(99))
    with open_ledger(path) as ledger:
        assert ledger.counts() == {"todo": 4, "running": 0, "done": 1, "aside": 0}


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for place in ("file/l", "nowhere/l", "folder"):
        with pytest.raises(OutputError, match="cannot write"):
            open_ledger(tmp_path / place)
    (tmp_path / "folder").rmdir()
    open_ledger(tmp_path / "folder").close()  # the lock was given back


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folders_and_files_without_permission(tmp_path: Path) -> None:
    filled(tmp_path / "l", 1).close()
    (tmp_path / "l").chmod(0o444)
    with pytest.raises(OutputError, match="cannot write"):
        open_ledger(tmp_path / "l")
    (tmp_path / "shut").mkdir(mode=0o555)
    with pytest.raises(OutputError, match="Permission denied"):
        open_ledger(tmp_path / "shut" / "l")


def test_a_file_that_is_no_ledger_gives_its_lock_back(tmp_path: Path) -> None:
    path = tmp_path / "l"
    path.write_text("no database, whatever its name says\n" * 50)
    for _ in range(2):  # not "another run is at work"
        with pytest.raises(DataError, match="is no ledger"):
            open_ledger(path)


def test_results_that_no_file_can_hold(tmp_path: Path) -> None:
    with filled(tmp_path / "l", 2) as ledger:
        a, b = ledger.claim(2, 1)
        with pytest.raises(DataError, match=r"results are text.*dict"):
            ledger.finish(a.seq, [{}])  # type: ignore[list-item]
        with pytest.raises(DataError, match="half a character"):
            ledger.finish(a.seq, ["\ud800"])
        with pytest.raises(DataError, match="one result per part"):
            ledger.finish(a.seq, ["1", "2"])
        assert ledger.counts()["running"] == 2
        ledger.finish(a.seq, ["日本語 🎈"])
        ledger.fail(b.seq, reason_of(ONE, OSError("no \udcff.mp4")), 1)  # a file name that is no text
        assert [row[2:] for row in ledger.results()] == [
            ("日本語 🎈", None),
            (None, "one: OSError: no \\udcff.mp4"),
        ]


def test_keys_that_no_file_can_hold_take_the_fill_back(tmp_path: Path) -> None:
    with open_ledger(tmp_path / "l") as ledger:
        with pytest.raises(DataError, match="half a character"):
            ledger.fill([("a", Part(0, "x", "1")), ("\udcff.mp4", Part(1, "y", "1"))])
        assert sum(ledger.counts().values()) == 0


def test_text_that_became_bytes_is_damage(tmp_path: Path) -> None:
    """One flipped bit does this, and SQLite does not mind."""
    for change in (
        "UPDATE parts SET payload = CAST(payload AS BLOB)",
        "UPDATE items SET state = CAST(state AS BLOB)",
        "UPDATE meta SET value = CAST(value AS BLOB)",
    ):
        path = tmp_path / f"l{len(change)}"
        with filled(path, 2) as ledger:
            ledger.set_meta("filled", "yes")
            ledger.file.base.execute(change)
        with open_ledger(path) as ledger, pytest.raises(DataError, match="damaged"):
            ledger.counts(), ledger.meta("filled"), list(ledger.results())


def test_the_last_stage_returns_text() -> None:
    assert run_step(ONE, lambda key, values: [3], "a", ["1"]) == [3]
    with pytest.raises(RecipeError, match="must return text, got int"):
        run_step(ONE, lambda key, values: [3], "a", ["1"], last=True)
    with pytest.raises(DataError, match="half a character"):
        run_step(ONE, lambda key, values: ["é\udcff"], "a", ["1"], last=True)
    assert run_step(ONE, lambda key, values: ["é🎈"], "a", ["1"], last=True) == ["é🎈"]
    with pytest.raises(RecipeError, match="one value per part: 1, got 2"):
        run_step(ONE, lambda key, values: ["1", "2"], "a", ["1"])


def test_jobs_and_stages_that_make_no_sense() -> None:
    for wrong in (
        lambda: Stage("s", "m:f", workers=0),
        lambda: Stage("s", "m:f", gpus=-1),
        lambda: Stage("s", "m:f", gpus=1.5),
        lambda: Job("j", ()),
        lambda: Job("j", (ONE,), max_tries=0),
        lambda: Job("j", (ONE,), lease_s=0),
        lambda: Job("j", (ONE,), item_timeout_s=0),
        lambda: Job("j", (ONE,), lease_s=float("nan")),
        lambda: Job("j", (ONE,), wave=0),
    ):
        with pytest.raises(RecipeError):
            wrong()


# --- any sequence of events --------------------------------------------------------------------------

EVENTS = st.lists(
    st.tuples(
        st.sampled_from(
            ["claim", "claim", "finish", "finish", "fail", "release", "reopen", "kill", "retry", "commit"]
        ),
        st.integers(0, 7),
    ),
    max_size=30,
)


@settings(max_examples=40, deadline=None)
@given(EVENTS, st.sampled_from([0.0, 1e9]))
def test_any_sequence_of_events_keeps_the_ledger_true(events: list[tuple[str, int]], commit_s: float) -> None:
    """Against a model in memory: {seq: state} and the number of a result, one per finish that counted."""
    count = 6
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "l"
        ledger = filled(path, count, 2, commit_s=commit_s)
        model, won, number = dict.fromkeys(range(1, count + 1), "todo"), dict[int, int](), 0
        for event, k in events:
            running = [seq for seq, state in model.items() if state == "running"]
            if event == "claim":
                for item in ledger.claim(k + 1, 10):
                    assert model[item.seq] == "todo", "claimed twice"
                    assert item.payloads == tuple(f"{10 * (item.seq - 1) + j}" for j in range(2))
                    model[item.seq] = "running"
            elif event == "finish":  # also late ones: done, released or set aside meanwhile
                seq = running[k % len(running)] if running else 1 + k % count
                number += 1
                ledger.finish(seq, [f"{number}", f"{number}"])
                if model[seq] != "done":
                    model[seq], won[seq] = "done", number
            elif event == "fail":
                seq = running[k % len(running)] if running else 1 + k % count
                aside = ledger.fail(seq, "bad", 2)
                if model[seq] in ("done", "aside"):
                    assert aside == (model[seq] == "aside")
                else:
                    model[seq] = "aside" if aside else "todo"
            elif event == "release":
                assert ledger.release() == len(running)
                model |= dict.fromkeys(running, "todo")
            elif event == "retry":
                away = [seq for seq, state in model.items() if state == "aside"]
                assert ledger.retry_aside() == len(away)
                model |= dict.fromkeys(away, "todo")
            elif event == "commit":
                ledger.commit()
            elif event == "reopen":
                ledger.close()
                ledger = open_ledger(path, commit_s)
                for seq in running:
                    model[seq] = "todo"
            else:
                before = dict(model)
                kill(ledger)
                ledger = open_ledger(path, commit_s)
                model = states(ledger)
                for (
                    seq,
                    state,
                ) in model.items():  # what was not committed is to do again, nothing else differs
                    assert state == before[seq] or state == "todo" or before[seq] == "done"
                    assert state != "running" and (state != "done" or before[seq] == "done")
                    if commit_s == 0:
                        assert state == (before[seq] if before[seq] != "running" else "todo")
                won = {seq: result for seq, result in won.items() if model[seq] == "done"}
            assert states(ledger) == model
            assert ledger.counts() == {s: list(model.values()).count(s) for s in STATES}
            found = [row[2] for row in ledger.results()]
            assert found == [str(won[s]) if s in won else None for s in model for _ in range(2)]
        ledger.release()
        ledger.retry_aside()
        while items := ledger.claim(3, 10):
            for item in items:
                ledger.finish(item.seq, ["end", "end"])
        assert ledger.counts()["done"] == count, "something was lost"
        assert [row[2] for row in ledger.results()] == [str(won.get(s, "end")) for s in model for _ in (0, 1)]
        ledger.close()


def test_every_error_of_the_ledger_is_one_of_tubelets(tmp_path: Path) -> None:
    with filled(tmp_path / "l", 1) as ledger:
        other = sqlite3.connect(tmp_path / "l")
        ledger.commit()
        other.executescript("DROP TABLE parts; DROP TABLE items;")
        other.close()
        for call in (
            lambda: ledger.claim(1, 1),
            lambda: ledger.finish(1, ["1"]),
            lambda: ledger.fail(1, "x", 1),
            lambda: ledger.release(),
            lambda: ledger.recover(),
            lambda: ledger.retry_aside(),
            lambda: ledger.counts(),
            lambda: list(ledger.aside()),
            lambda: list(ledger.results()),
            lambda: ledger.fill(parts(1)),
        ):
            with pytest.raises(TubeletError, match="damaged"):
                call()


def test_a_ray_actor_says_what_is_wrong_in_the_words_of_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a cluster: what goes in and out of one actor."""
    from tubelet.scale.ray_engine import _Actor, _Box

    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parent))
    row = {"seq": 1, "key": "a", "kind": "done", "tries": 2, "failures": _Box([]), "box": _Box(["2"])}

    def told(make: str, last: bool, key: str = "a") -> tuple[str, Any]:
        out = _Actor(Stage("s", f"scale_steps:{make}"), last)(row | {"key": key})
        return out["kind"], out["failures"].value or out["box"].value

    assert told("double", True) == ("done", ["4"])
    assert told("numbers", False) == ("done", [2])
    assert told("numbers", True) == ("broken", "stage 's' is the last and must return text, got int")
    assert told("double", True, "poison") == ("failed", ["s: ValueError: poison is corrupt"] * 2)
    assert told("full_disk", True)[0] == "full"
    assert told("broken", True) == ("broken", "s: RuntimeError: no such weights")
    assert _Actor(ONE, True)(row | {"kind": "failed"})["kind"] == "failed"  # passed on as it is


def test_a_stage_that_returns_no_text_stops_a_local_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tubelet.scale.local import run_local

    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parent))
    with filled(tmp_path / "l", 2) as ledger:
        with pytest.raises(ModelError, match="must return text, got int"):
            run_local(Job("j", (Stage("s", "scale_steps:numbers"),)), ledger)
        assert ledger.counts()["todo"] == 2
        two = (Stage("s", "scale_steps:numbers"), Stage("t", "scale_steps:text"))
        run_local(Job("j", two), ledger)
        assert [row[2] for row in ledger.results()] == ["0", "10"]
