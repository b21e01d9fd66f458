"""The Ray engine when a whole machine is lost: raylets of one local cluster stand for machines, loopback only.

The driver is a program on the head, which has no CPUs to give, so that all workers are on the other machines. Losing
one means: its raylet and all its processes get SIGKILL at once, then the cluster takes it out (no goodbye).
"""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tubelet.scale.export import export_lines
from tubelet.scale.ledger import open_ledger
from tubelet.scale.local import run_local
from tubelet.scale.ray_engine import _BLOCK

HERE = Path(__file__).resolve().parent
ITEMS = 60
LONGEST_S = 120.0  # of a job; it takes some 10 s where nothing else runs
ENVIRONMENT = {
    "PYTHONPATH": str(HERE),
    "RAY_worker_niceness": "0",  # Ray's 15 starves workers beside anything else
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_enable_worker_prestart": "0",
    # a dead machine is found in seconds, because nobody listens there; a slow one has a minute to answer
    "RAY_health_check_initial_delay_ms": "0",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_failure_threshold": "3",
    "RAY_health_check_timeout_ms": "60000",
    "RAY_agent_register_timeout_ms": "120000",
    "RAY_worker_register_timeout_seconds": "120",
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without CPUs. Its files are in a folder of its own: Ray tells other programs of this user there which
    cluster was started last, and tests beside this one must not join it."""
    pytest.importorskip("ray", reason="the extra scale (ray) is not installed")
    from ray.cluster_utils import Cluster

    folder = tempfile.mkdtemp(prefix="tl")  # short: names of sockets are
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(HERE))
        patch.setenv("RAY_TMPDIR", folder)
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        made = Cluster()
        try:
            machine(made, 0)
            yield made
        finally:
            for it in made.list_all_nodes()[::-1]:  # the head last
                made.remove_node(it, allow_graceful=False)
            shutil.rmtree(folder, ignore_errors=True)


def machine(cluster: Any, cpus: int) -> Any:
    """A new one."""
    options: dict[str, Any] = {
        "num_cpus": cpus,
        "object_store_memory": 80 * 2**20,
        "include_dashboard": False,
    }
    if cluster.head_node:  # a driver joins the machine that has its own address: the head
        options["node_ip_address"] = f"127.0.0.{1 + len(cluster.list_all_nodes())}"
    return cluster.add_node(**options)


def raylet_of(it: Any) -> int:
    return int(it.all_processes["raylet"][0].process.pid)


def children(parent: int) -> set[int]:
    found = set()
    for place in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = place.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == parent:
            found.add(int(place.parent.name))
    return found


def lose(cluster: Any, it: Any) -> set[int]:
    """Its processes, which are gone now."""
    raylet = raylet_of(it)
    os.kill(raylet, signal.SIGSTOP)  # so that it starts nobody while we look
    gone = children(raylet)
    for pid in [raylet, *gone]:
        os.kill(pid, signal.SIGKILL)
    cluster.remove_node(it, allow_graceful=False)
    return gone


def tries(folder: Path) -> list[tuple[str, int]]:
    """(key, process) of every try so far."""
    place = folder / "tries"
    lines = place.read_text().splitlines() if place.exists() else []
    return [(key, int(pid)) for key, _, pid in (line.rpartition(" ") for line in lines)]


def states(folder: Path) -> dict[str, str]:
    """Of the items of a ledger, read beside its driver."""
    if not (folder / "ledger.sqlite").exists():
        return {}
    with closing(sqlite3.connect(f"file:{folder}/ledger.sqlite?mode=ro", uri=True, timeout=10)) as base:
        try:
            return dict(base.execute("SELECT key, state FROM items").fetchall())
        except sqlite3.OperationalError:  # not filled yet
            return {}


def done(folder: Path) -> set[str]:
    return {key for key, state in states(folder).items() if state == "done"}


def undisturbed(folder: Path) -> bytes:
    import scale_ray_driver

    folder.mkdir()
    with open_ledger(folder / "ledger.sqlite") as ledger:
        scale_ray_driver.fill(ledger, ITEMS)
        run_local(scale_ray_driver.job(folder), ledger)
        export_lines(ledger, folder / "out.jsonl")
    return (folder / "out.jsonl").read_bytes()


@pytest.mark.parametrize("another", [False, True], ids=["no other has room", "another one joins"])
def test_a_lost_machine_changes_no_byte(tmp_path: Path, cluster: Any, another: bool) -> None:
    machines = [machine(cluster, 1) for _ in range(2)]
    command = [sys.executable, str(HERE / "scale_ray_driver.py"), str(tmp_path), str(ITEMS), cluster.address]
    job = subprocess.Popen(
        [*command, "1", "4"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )  # a worker takes a whole CPU, a lease is 4 s
    try:
        until_s = time.monotonic() + LONGEST_S
        while job.poll() is None and time.monotonic() < until_s:
            at_work = {pid for _, pid in tries(tmp_path)}
            if len(done(tmp_path)) >= 10 and all(at_work & children(raylet_of(it)) for it in machines):
                break
            time.sleep(0.02)
        assert job.poll() is None, "it was through before a machine was lost"
        lost = lose(cluster, machines.pop())
        kept, before = done(tmp_path), tries(tmp_path)
        assert 10 <= len(kept) < ITEMS and not (tmp_path / "out.jsonl").exists()
        if another:
            machines.append(machine(cluster, 1))
        said = job.communicate(timeout=LONGEST_S)[1]
        assert job.returncode == 0, said
    finally:
        if job.poll() is None:
            job.kill()
            job.wait()
        for it in machines:
            cluster.remove_node(it, allow_graceful=False)
    later = tries(tmp_path)[len(before) :]
    assert {pid for _, pid in before} & lost, "nobody worked on the lost machine"
    assert later and not {pid for _, pid in later} & lost
    assert not {key for key, _ in later} & kept, "what was done is done again"
    assert set(states(tmp_path).values()) == {"done"} and len(states(tmp_path)) == ITEMS
    assert (
        len(before) + len(later) - ITEMS <= 2 * _BLOCK
    )  # the task in work there; more only where leases ran out
    assert (tmp_path / "out.jsonl").read_bytes() == undisturbed(tmp_path / "whole")
