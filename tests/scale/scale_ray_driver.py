"""A small Ray job as a program, for test_scale_ray.py and test_scale_machines.py, which kill it or what it runs on.

python scale_ray_driver.py OUT ITEMS ADDRESS [CPUS of a worker] [LEASE_S]
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from tubelet.scale.export import export_lines
from tubelet.scale.job import Job, Stage
from tubelet.scale.ledger import Ledger, Part, open_ledger


def job(out: Path, cpus: float = 0.5, lease_s: float = 300.0) -> Job:
    stage = Stage("work", "scale_steps:trouble", {"folder": str(out), "sleep_s": 0.05}, workers=2, cpus=cpus)
    return Job("test", (stage,), max_tries=6, lease_s=lease_s)


def fill(ledger: Ledger, items: int) -> None:
    if ledger.meta("filled") is None:
        ledger.fill(
            (f"item-{k}", Part(2 * k + j, f"{k}/{j}", str(k + j))) for k in range(items) for j in (0, 1)
        )
        ledger.set_meta("filled", "yes")


def main(out: Path, items: int, address: str, cpus: float = 0.5, lease_s: float = 300.0) -> None:
    import ray

    from tubelet.scale.ray_engine import run_ray

    # the driver lives on the head: older versions of Ray would take the machine that joined last
    here = address.rsplit(":", 1)[0]
    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, _node_ip_address=here)
    with open_ledger(out / "ledger.sqlite", commit_s=0.05) as ledger:
        fill(ledger, items)
        run_ray(job(out, cpus, lease_s), ledger)
        export_lines(ledger, out / "out.jsonl")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], *map(float, sys.argv[4:]))
