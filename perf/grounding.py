"""How fast is an answer? Cold start, first answer, further questions, ten together against ten separate calls.

    python perf/grounding.py [--model spacevllm-pico] [--repeats 5]

Everything is measured in one run on the same machine and printed with ratios; absolute times are this machine's.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SENTENCES = [
    "the red circle moves left",
    "which star spins?",
    "the big blue square grows",
    "something blinks",
    "the green ring to the left of the white cross",
    "the triangle that bounces",
    "what enters?",
    "the purple cross leaves",
    "the small yellow circle gets smaller",
    "the orange square follows the cyan star",
]


def timed(call: Callable[[], Any], repeats: int) -> float:
    """Median seconds of `repeats` calls, after one that is not counted."""
    call()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="spacevllm-pico")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()

    import tubelet
    from tubelet.video import VideoWriter
    from tubelet.world.choreography import SceneConfig, make_scene
    from tubelet.world.files import draw_frames

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        config = SceneConfig(min_duration_s=10.0, max_duration_s=10.0)
        scene = next(s for s in (make_scene("test", 1, k, config) for k in range(100)) if s.aspect > 1.7)
        with VideoWriter(path, 640, 360, 25.0) as writer:
            for frame in draw_frames(scene, 360, 25.0):
                writer.write(frame)
        command = [sys.executable, "-m", "tubelet", "ground", str(path), SENTENCES[0], "--model", args.model]
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        cold = time.perf_counter() - start

        g = tubelet.load(args.model)
        state = g.encode(str(path))
        first = timed(lambda: g.ground(str(path), SENTENCES[0]), args.repeats)
        encode = timed(lambda: g.encode(str(path)), args.repeats)
        further = timed(lambda: g.ground(state, SENTENCES[1]), args.repeats)
        together = timed(lambda: g.ground_many(str(path), SENTENCES), args.repeats)
        separate = timed(lambda: [g.ground(str(path), s) for s in SENTENCES], args.repeats)
        one_by_one = timed(lambda: [g.ground(state, s) for s in SENTENCES], args.repeats)
        text = timed(lambda: g.ground(state, SENTENCES[1], span_reader="text"), args.repeats)

    print(f"10 s of 640x360 at 25 fps, model {args.model}, median of {args.repeats}")
    rows = [
        ("cold `tubelet ground`", cold, "target <= 12 s"),
        ("encode + first answer", first, "target <= 1.5 s"),
        ("  of which encode", encode, ""),
        ("further question", further, f"{further / first:.1%} of the first (target <= 5 %)"),
        ("further question, text", text, f"{text / first:.1%} of the first"),
        (
            "10 questions together",
            together,
            f"{separate / together:.1f}x faster than 10 calls (target >= 6x)",
        ),
        ("10 separate calls", separate, ""),
        ("10 on one state", one_by_one, ""),
    ]
    for name, seconds, remark in rows:
        print(f"{name:26} {seconds:8.3f} s   {remark}")


if __name__ == "__main__":
    main()
