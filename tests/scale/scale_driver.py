"""A small job as a program, to be killed by test_scale_kill.py: python scale_driver.py OUT ITEMS."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tubelet.scale.job import Job, Stage
from tubelet.scale.ledger import Ledger, Part, open_ledger
from tubelet.scale.local import run_local


def export(ledger: Ledger, path: Path) -> None:
    part = path.with_name(path.name + ".part")
    with part.open("w") as file:
        for key, payload, result, reason in ledger.results():
            file.write(json.dumps([key, payload, result, reason]) + "\n")
    part.replace(path)


def main(out: Path, items: int) -> None:
    stage = Stage("double", "scale_steps:double", {"sleep_s": 0.003, "log": str(out / "log")}, workers=2)
    with open_ledger(out / "ledger.sqlite", commit_s=0.05) as ledger:
        if ledger.meta("filled") is None:
            keys = ["poison" if k == 7 else f"item {k}" for k in range(items)]
            ledger.fill(
                (key, Part(2 * k + j, f"{k}/{j}", str(k + j))) for k, key in enumerate(keys) for j in (0, 1)
            )
            ledger.set_meta("filled", "yes")
        run_local(Job("test", (stage,), max_tries=6), ledger)
        export(ledger, out / "out.jsonl")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
