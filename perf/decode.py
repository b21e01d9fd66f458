"""Reading a few frames: going on decoding against jumping to keyframes, on long and short groups of pictures.

    python perf/decode.py [--seconds 60] [--sizes ...] [--repeats 3]

Side by side: `strategy="sequential"`, "seek" and "auto" of `read_clip`, and what a user would write with PyAV
alone (decode everything, keep the wanted frames). The last column says how much cheaper "auto" is than plain
PyAV. The pixels of the three strategies are compared, and the cost of a jump in decoded frames
(`SEEK_COST_FRAMES`) is estimated from the timings. Videos are made once and kept in the temporary folder.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np

from tubelet.video import VideoWriter, open_video, read_clip_report, sample_uniform
from tubelet.video.probe import Video

SIZES = {"360p": (640, 360), "1080p": (1920, 1080)}


def moving_texture(name: str, seconds: int, gop: int) -> Path:
    """A noisy texture that slides under a moving square: work for the decoder, cheap to make."""
    width, height = SIZES[name]
    path = Path(tempfile.gettempdir()) / "tubelet-perf" / f"texture_{name}_{seconds}s_gop{gop}.mp4"
    if path.exists():
        return path
    path.parent.mkdir(exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 255, (height // 8, width // 8 + 40, 3), dtype=np.uint8)
    texture = noise.repeat(8, axis=0).repeat(8, axis=1)
    with VideoWriter(path, width, height, 25, preset="veryfast", quality=26, gop=gop) as out:
        for k in range(seconds * 25):
            shift = (k * 2) % 320
            picture = texture[:, shift : shift + width].copy()
            x = (k * 5) % (width - 100)
            picture[50:150, x : x + 100] = 255
            out.write(picture)
    return path


def plain_pyav(video: Video, wanted: set[int], size: tuple[int, int]) -> int:
    kept = []
    with av.open(str(video.path)) as media:
        media.streams.video[0].thread_type = "AUTO"
        for k, frame in enumerate(media.decode(video=0)):
            if k in wanted:
                kept.append(frame.to_ndarray(format="rgb24", width=size[0], height=size[1]))
                if len(kept) == len(wanted):
                    break
    return len(kept)


def best_of(repeats: int, work: Callable[[], Any]) -> tuple[float, Any]:
    best, result = float("inf"), None
    for _ in range(repeats):
        start = time.perf_counter()
        result = work()
        best = min(best, time.perf_counter() - start)
    return best, result


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    args = parser.parse_args()
    print(f"{args.seconds} s at 25 fps, H.264, read at 448x252; milliseconds, best of {args.repeats}")
    print(
        f"{'video':>6} {'gop':>4} {'frames':>6} {'open':>6} {'PyAV':>7} {'sequent.':>8} {'seek':>7} "
        f"{'auto':>7} {'jumps':>5} {'PyAV/auto':>9}"
    )
    size, costs, same = (448, 252), [], True
    for name in args.sizes:
        for gop in (250, 25):
            path = moving_texture(name, args.seconds, gop)
            open_s, video = best_of(args.repeats, lambda path=path: open_video(path))
            for count in (8, 32, 64):
                grid = sample_uniform(video, count)
                wanted = set(grid.frame_index.tolist())
                took, clips = {}, {}
                for strategy in ("sequential", "seek", "auto"):
                    took[strategy], clips[strategy] = best_of(
                        args.repeats,
                        lambda s=strategy, g=grid, v=video: read_clip_report(v, g, size, strategy=s),
                    )
                took["pyav"], _ = best_of(args.repeats, lambda v=video, w=wanted: plain_pyav(v, w, size))
                same &= all(
                    np.array_equal(clip.pixels, clips["auto"][0].pixels) for clip, _ in clips.values()
                )
                jumps = clips["seek"][1].n_seeks
                if gop == 25 and jumps:
                    # a jump decodes from the keyframe on: what is left of its time is the jump itself
                    index, keys = grid.frame_index, np.flatnonzero(video.keyframes)
                    per_frame = took["sequential"] / (index[-1] + 1)
                    decoded = index - keys[np.searchsorted(keys, index, side="right") - 1] + 1
                    costs.append((took["seek"] / per_frame - decoded.sum()) / jumps)
                ms = {k: f"{1000 * v:.0f}" for k, v in took.items()}
                n_jumps, ratio = clips["auto"][1].n_seeks, took["pyav"] / took["auto"]
                print(
                    f"{name:>6} {gop:>4} {count:>6} {1000 * open_s:>6.0f} {ms['pyav']:>7} "
                    f"{ms['sequential']:>8} {ms['seek']:>7} {ms['auto']:>7} {n_jumps:>5} {ratio:>9.2f}"
                )
    print(f"the three strategies gave {'equal' if same else 'DIFFERENT'} pixels")
    if costs:
        middle, least, most = np.median(costs), min(costs), max(costs)
        print(f"a jump costs about {middle:.1f} decoded frames (from {least:.1f} to {most:.1f})")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
