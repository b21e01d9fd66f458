"""kill -9 of workers, the driver and the whole group at random moments; then resume: the same bytes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

HERE = Path(__file__).resolve().parent
ITEMS = 3000
PLAN = ["worker"] * 16 + ["driver"] * 7 + ["group"] * 7
KILLS = len(PLAN)


def start(out: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(HERE / "scale_driver.py"), str(out), str(ITEMS)]
    return subprocess.Popen(
        command, start_new_session=True, env=os.environ | {"PYTHONPATH": str(HERE)}, stderr=subprocess.DEVNULL
    )


def workers_of(session: int) -> list[int]:
    """The driver's processes, itself left out (the resource tracker of multiprocessing too)."""
    out = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            command = (folder / "cmdline").read_text()
        except OSError:
            continue
        alive = fields[0] != "Z"
        if alive and int(fields[3]) == session and int(folder.name) != session and "spawn_main" in command:
            out.append(int(folder.name))
    return out


def test_thirty_random_kills_change_no_byte(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    reference = start(whole)
    chance = random.Random(0)
    done: Counter[str] = Counter()
    run = start(killed)
    deadline_s = time.monotonic() + 100
    plan = chance.sample(PLAN, KILLS)
    while plan and time.monotonic() < deadline_s:
        if chance.random() < 0.8:  # most kills hit a job at work, the others one that is starting
            until_s = time.monotonic() + 10
            while run.poll() is None and len(workers_of(run.pid)) < 2 and time.monotonic() < until_s:
                time.sleep(0.02)
        time.sleep(chance.uniform(0.0, 0.3))
        if run.poll() is not None:
            run = start(killed)
            continue
        what = plan[-1]
        if what == "worker":
            workers = workers_of(run.pid)
            if not workers:
                time.sleep(0.05)
                continue
            os.kill(chance.choice(workers), signal.SIGKILL)
        elif what == "driver":
            run.kill()
            run.wait()
            until_s = time.monotonic() + 10
            while workers_of(run.pid) and time.monotonic() < until_s:
                time.sleep(0.02)
            assert not workers_of(run.pid), "workers outlive their driver"
            run = start(killed)
        else:
            os.killpg(run.pid, signal.SIGKILL)
            run.wait()
            run = start(killed)
        plan.pop()
        done[what] += 1
    assert run.wait(60) == 0 or start(killed).wait(60) == 0
    assert reference.wait(60) == 0
    assert sum(done.values()) >= KILLS, done
    assert len(done) == 3
    assert (killed / "out.jsonl").read_bytes() == (whole / "out.jsonl").read_bytes()
    lines = (killed / "out.jsonl").read_text().splitlines()
    assert len(lines) == 2 * ITEMS
    assert sum("is corrupt" in line for line in lines) == 2
    steps = Counter((killed / "log").read_text().splitlines())  # one line for every step that came to its end
    assert len(steps) == ITEMS - 1, "all but the corrupt one"
    again = sum(steps.values()) - len(steps)
    assert (
        again <= 8 * KILLS
    )  # what was in flight: two workers of two items, and results on their way to the ledger
