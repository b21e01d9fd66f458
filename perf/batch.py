"""Pairs per second of `tubelet batch` with 1 and 2 workers, against one `ground` call per pair.

    python perf/batch.py [--videos 120] [--questions 8] [--workers 1 2] [--model spacevllm-pico]

All in one run on the same machine, on toy-world videos, one CPU thread per process. A batch is timed as a whole (start
of workers and loading of the model included) and after a fifth of its videos, when all workers are at work; `ground` is
timed on a part of the pairs with the model loaded. Ratios are between steady rates.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

SENTENCES = [
    "the red circle moves left",
    "which star spins?",
    "the big blue square grows",
    "something blinks",
    "the green ring to the left of the white cross",
    "the triangle that bounces",
    "what enters?",
    "the purple cross leaves",
]


def make_pairs(folder: Path, videos: int, questions: int) -> list[dict[str, str]]:
    from tubelet.world.files import make_world

    make_world(folder, videos, seed=3, height=96, fps=8)
    return [
        {"video": f"videos/{path.name}", "sentence": sentence}
        for path in sorted(folder.glob("videos/*.mp4"))
        for sentence in (SENTENCES * (1 + questions // len(SENTENCES)))[:questions]
    ]


def one_by_one(folder: Path, pairs: list[dict[str, str]], model: str, limit: int) -> float:
    """Pairs per second of `ground`, spread over the videos."""
    import torch

    from tubelet import load

    torch.set_num_threads(1)
    grounder = load(model)
    some = pairs[:: max(1, len(pairs) // limit)]
    grounder.ground(folder / some[0]["video"], some[0]["sentence"])  # not counted
    start = time.perf_counter()
    for pair in some:
        grounder.ground(folder / pair["video"], pair["sentence"])
    return len(some) / (time.perf_counter() - start)


def batch(folder: Path, questions: int, model: str, workers: int) -> tuple[float, float]:
    """(pairs per second as a whole, and after a fifth of the videos)."""
    from tubelet.scale.grounding import BatchSettings, ground_pairs
    from tubelet.scale.job import JobProgress

    told: list[tuple[float, int]] = []

    def tell(now: JobProgress) -> None:
        told.append((time.perf_counter(), now.done))

    start = time.perf_counter()
    result = ground_pairs(
        folder / "pairs.jsonl",
        folder / f"out{workers}",
        BatchSettings(model=model, workers=workers),
        report=tell,
    )
    whole = result.pairs / (time.perf_counter() - start)
    if not result.ok or len(told) < 3:
        raise SystemExit("too few videos to time, or some failed: give more --videos")
    # workers start at different moments: the first fifth of the videos is not counted
    first = next(entry for entry in told if entry[1] >= result.videos / 5)
    seconds, videos = told[-1][0] - first[0], told[-1][1] - first[1]
    return whole, videos * questions / seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--videos", type=int, default=120)
    parser.add_argument("--questions", type=int, default=8)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--model", default="spacevllm-pico")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        pairs = make_pairs(folder, given.videos, given.questions)
        # a pair is named by what it asks: repeated sentences need their own ids
        lines = [json.dumps({"id": str(k), **pair}) for k, pair in enumerate(pairs)]
        (folder / "pairs.jsonl").write_text("\n".join(lines) + "\n")
        single = one_by_one(folder, pairs, given.model, limit=100)
        print(f"{len(pairs)} pairs, {given.questions} per video\n")
        print(f"{'':24}{'pairs/s':>10}{'whole call':>12}{'x ground':>10}{'x first':>9}")
        print(f"{'ground, one by one':24}{single:10.1f}{'':12}{1:10.2f}")
        first = None
        for workers in given.workers:
            whole, steady = batch(folder, given.questions, given.model, workers)
            first = first or steady
            name = f"batch, {workers} worker" + ("s" if workers > 1 else "")
            print(f"{name:24}{steady:10.1f}{whole:12.1f}{steady / single:10.2f}{steady / first:9.2f}")


if __name__ == "__main__":
    main()
