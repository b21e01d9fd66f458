"""Does reading the next videos while the model works on this one make an evaluation faster?

    python perf/eval_overlap.py [--model spacevllm-pico] [--device cpu] [--videos 16] [--questions 3]
                                  [--height 360] [--fps 25] [--repeats 3]

The same run (toy-world videos, `tubelet.benchmarks.run`) with and without reading ahead, in turns on the same machine;
printed are medians, their ratio, and the best ratio that is possible: (decode + model) / max(decode, model). On few
cores decoding and a model on the CPU share them, and the ratio says by how much that eats the gain. Beside it the same
with a model that only waits (as one on an accelerator does for the CPU), for as long as the real one took.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from tubelet.benchmarks.run import run_benchmark
from tubelet.benchmarks.run_folder import read_run
from tubelet.grounder import load
from tubelet.world.files import make_world


class Waiting:
    """Answers like the model inside, from memory, after waiting as long as it had taken. It reads as the model does."""

    revision = "1"

    def __init__(self, inside: Any, answers: dict[tuple[str, str], Any], seconds: float) -> None:
        self.inside, self.answers, self.seconds, self.name = (
            inside,
            answers,
            seconds,
            f"{inside.name}, waiting",
        )

    def read_clip(self, video: Any, window: Any) -> Any:
        from tubelet.video import read_clip, sample_uniform

        side = self.inside.model.image_size
        return read_clip(video, sample_uniform(video, self.inside.max_frames, window), size=(side, side)), ()

    def encode(self, video: Any, window: Any = None) -> None:
        time.sleep(self.seconds)

    def ground_many(
        self, state: None, queries: Any, task: str, span: Any = None, span_reader: str | None = None
    ) -> list[Any]:
        return [self.answers[query, task] for query in queries]


def timed(model: Any, data: Path, out: Path, prefetch: int) -> float:
    start = time.perf_counter()
    run_benchmark(model, "world", data, out, prefetch=prefetch, given_span=False)
    return time.perf_counter() - start


def compare(what: str, model: Any, data: Path, folder: Path, repeats: int) -> float:
    """Print the comparison; returns the seconds per video that the model took without reading ahead."""
    seconds: dict[int, list[float]] = {0: [], 2: []}
    timed(model, data, folder / f"{what}-warm", 0)
    for k in range(repeats):
        for prefetch in (0, 2) if k % 2 else (2, 0):
            seconds[prefetch].append(timed(model, data, folder / f"{what}-{k}-{prefetch}", prefetch))
    run = read_run(folder / f"{what}-0-0")
    by_video = {r.video.id: run.lines[r.id].prediction.timings_s["decode_s"] for r in run.records}
    decode = sum(by_video.values())
    model_s = sum(line.seconds or 0.0 for line in run.lines.values())
    alone, together = (statistics.median(seconds[k]) for k in (0, 2))
    n = len(run.records)
    print(f"{what}")
    print(f"  decode {decode:6.2f} s, model {model_s:6.2f} s for {n} questions on {len(by_video)} videos")
    print(f"  one after the other  {alone:6.2f} s  {n / alone:7.1f} queries/s")
    print(f"  reading ahead        {together:6.2f} s  {n / together:7.1f} queries/s")
    best = (decode + model_s) / max(decode, model_s)
    print(f"  ratio {alone / together:.2f} (at best {best:.2f})")
    return model_s / len(by_video)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="spacevllm-pico")
    parser.add_argument("--device", default=None)
    parser.add_argument("--videos", type=int, default=16)
    parser.add_argument("--questions", type=int, default=3)
    parser.add_argument("--height", type=int, default=360)
    parser.add_argument("--fps", type=float, default=25.0)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    model: Any = load(args.model, args.device)
    print(
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before the start, model on {model.model.device}"
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_world(
            folder / "data", args.videos, 3, questions=args.questions, height=args.height, fps=args.fps
        )
        per_video = compare("model", model, folder / "data", folder, args.repeats)
        run = read_run(folder / "model-0-0")
        answers = {(r.query, r.task): run.lines[r.id].prediction for r in run.records}
        waiting = Waiting(model, answers, per_video)
        compare("waiting", waiting, folder / "data", folder, args.repeats)


if __name__ == "__main__":
    main()
