"""What a job costs beside its work: two workers against one, the ledger's share, memory over 100,000 items.

    python perf/scale.py [--items 160] [--item-ms 50] [--rounds 3] [--many 100000]

About three minutes on two cores with nothing else running. All in one run on the same machine:

- ledger alone: items claimed and finished one by one in this process, in rows per second, with this process's memory
  after 10, 50 and 100 % of them and after the streamed export. Target: flat, at most 1.1 x that of 10 %.
- the whole engine: the same number of items that do next to nothing through two local workers, with the memory of the
  driver and of the workers. Target: the same.
- 2 local workers against 1 on items of fixed CPU work (the same number of hashes each, about `--item-ms` on a free
  core), in turns. Rates are steady ones, from a tenth of the items on; "whole" is with the start of the workers.
  Target: median ratio of the steady rates at least 1.7 on two cores.
- ledger share: seconds that the driver spent in the ledger over the CPU seconds of the items' work. Target: below 1 %
  for items of 50 ms.

Cores that others use too make all of this worse; the load before the start is printed.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tubelet.scale.export import export_lines
from tubelet.scale.job import Job, JobProgress, Stage
from tubelet.scale.ledger import Ledger, Part, open_ledger
from tubelet.scale.local import run_local

BLOCK = bytes(range(256)) * 64


def hash_often(times: int) -> float:
    """CPU seconds that this took. Chunks are large, so that it is all work and the same work."""
    start = time.process_time()
    digest = hashlib.sha256()
    for _ in range(times):
        digest.update(BLOCK)
    digest.hexdigest()
    return time.process_time() - start


def make_busy(times: int) -> Callable[[str, Sequence[str]], list[str]]:
    """The stage (workers import it): a result is the CPU seconds that it took."""
    return lambda key, values: [str(hash_often(times)) for _ in values]


def make_weighed() -> Callable[[str, Sequence[str]], list[str]]:
    """The stage (workers import it): a result is the memory of the worker."""
    return lambda key, values: [f"{memory_mib():.1f}" for _ in values]


def calibrated(seconds: float) -> int:
    """How many hashes take so long; the best of some tries, as others may be at work."""
    return max(1, round(seconds * 2000 / min(hash_often(2000) for _ in range(5))))


def memory_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def items(count: int) -> Iterator[tuple[str, Part]]:
    """A generator, so that nothing but the ledger holds them; payloads as long as a short pair."""
    for k in range(count):
        payload = (
            f'{{"video": "clips/{k:08d}.mp4", "sentence": "the red circle that moves left", "id": "{k}"}}'
        )
        yield f"clips/{k:08d}.mp4", Part(k, f"{k}", payload)


def ledger_alone(folder: Path, count: int) -> None:
    print(f"ledger alone, {count:,} items of one row")
    with open_ledger(folder / "many.sqlite") as ledger:
        start, before = time.perf_counter(), memory_mib()
        ledger.fill(items(count))
        print(f"  fill           {count / (time.perf_counter() - start):10,.0f} rows/s")
        marks = [max(1, round(count * share)) for share in (0.1, 0.5, 1.0)]
        seen: list[float] = []
        start, done = time.perf_counter(), 0
        while claimed := ledger.claim(1, 3600):
            for item in claimed:
                ledger.finish(item.seq, item.payloads)
                done += 1
                if done in marks:
                    seen.append(memory_mib())
        seconds = time.perf_counter() - start
        print(f"  claim, finish  {count / seconds:10,.0f} rows/s ({1e6 * seconds / count:.0f} us each)")
        start = time.perf_counter()
        written = export_lines(ledger, folder / "many.jsonl")
        print(f"  export         {written / (time.perf_counter() - start):10,.0f} rows/s")
        after = memory_mib()
        size = (folder / "many.sqlite").stat().st_size / 2**20
    told = ", ".join(f"{mib:.1f} at {mark:,}" for mib, mark in zip(seen, marks, strict=True))
    print(
        f"  memory MiB: {before:.1f} before, {told}, {after:.1f} after the export (ledger {size:.0f} on disk)"
    )
    print(f"  ratio {seen[-1] / seen[0]:.2f} at the end against a tenth of the items (target: at most 1.1)\n")


def engine_over_many(folder: Path, count: int) -> None:
    print(f"two local workers, {count:,} items that do next to nothing")
    marks = [max(1, round(count * share)) for share in (0.1, 0.5, 1.0)]
    seen: list[float] = []

    def tell(now: JobProgress) -> None:
        while len(seen) < len(marks) and now.done >= marks[len(seen)]:
            seen.append(memory_mib())

    stage = Stage("weighed", f"{Path(__file__).stem}:make_weighed", {}, workers=2)
    with open_ledger(folder / "engine.sqlite") as ledger:
        ledger.fill(items(count))
        start = time.perf_counter()
        run_local(Job("perf", (stage,)), ledger, tell)
        seconds = time.perf_counter() - start
        of_workers = [float(result) for _, _, result, _ in ledger.results() if result is not None]
    if len(of_workers) != count or len(seen) != len(marks):
        raise SystemExit(f"{len(of_workers)} of {count} items came back, {len(seen)} marks were seen")
    early, late = max(of_workers[: marks[0]]), max(of_workers[marks[1] :])
    told = ", ".join(f"{mib:.1f} at {mark:,}" for mib, mark in zip(seen, marks, strict=True))
    print(
        f"  {count / seconds:,.0f} items/s; driver MiB: {told}; workers at most {early:.1f}, later {late:.1f}"
    )
    print(
        f"  ratio {seen[-1] / seen[0]:.2f} of the driver, {late / early:.2f} of the workers (target: at most 1.1)\n"
    )


def work_of(ledger: Ledger) -> list[float]:
    return [float(result) for _, _, result, _ in ledger.results() if result is not None]


def timed(folder: Path, count: int, times: int, workers: int) -> tuple[float, float, float, float]:
    """(items per second: steady, whole call; ledger's share of the work; CPU seconds of an item)."""
    told: list[tuple[float, int]] = []

    def tell(now: JobProgress) -> None:
        told.append((time.perf_counter(), now.done))

    stage = Stage("busy", f"{Path(__file__).stem}:make_busy", {"times": times}, workers=workers)
    with tempfile.TemporaryDirectory(dir=folder) as place, open_ledger(Path(place) / "l.sqlite") as ledger:
        ledger.fill(items(count))
        start, spent = time.perf_counter(), ledger.spent_s
        run_local(Job("perf", (stage,)), ledger, tell)
        seconds, spent = time.perf_counter() - start, ledger.spent_s - spent
        work = work_of(ledger)
    first = next(entry for entry in told if entry[1] >= count / 10)
    if len(work) != count or told[-1][1] == first[1]:
        raise SystemExit("too few items to time, or some failed: give more --items")
    steady = (told[-1][1] - first[1]) / (told[-1][0] - first[0])
    return steady, count / seconds, spent / sum(work), statistics.median(work)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, default=160)
    parser.add_argument("--item-ms", type=float, default=50.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--many", type=int, default=100_000)
    given = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before the start\n")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        ledger_alone(folder, given.many)
        engine_over_many(folder, given.many)
        times = calibrated(given.item_ms / 1000)
        print(f"{given.items} items of {times:,} hashes, {given.rounds} rounds in turns")
        print(f"  {'':10}{'items/s':>10}{'whole call':>12}{'CPU ms':>10}{'ledger':>10}")
        ratios, shares = [], []
        for number in range(given.rounds):
            steady: dict[int, float] = {}
            for workers in (1, 2) if number % 2 == 0 else (2, 1):
                steady[workers], whole, share, work_s = timed(folder, given.items, times, workers)
                shares.append(share)
                name = f"{workers} worker" + ("s" if workers > 1 else "")
                print(f"  {name:10}{steady[workers]:10.1f}{whole:12.1f}{1000 * work_s:10.1f}{share:10.3%}")
            ratios.append(steady[2] / steady[1])
    print(f"  ratio {statistics.median(ratios):.2f} of 2 workers to 1, steady (target: at least 1.7)")
    print(f"  ledger share {statistics.median(shares):.3%} of the work (target: below 1 %)")


if __name__ == "__main__":
    main()
