"""Peak memory of reading 64 frames of a ten-minute 1080p video, above what importing costs.

    python perf/decode_memory.py [--width 640 --height 360] [--minutes 10] [--limit-mb 400]

The video is made once (a sliding texture, H.264, at most 250 frames from keyframe to keyframe) and kept in
the temporary folder. Reading happens in a fresh process, whose peak resident set is compared with the one
after its imports. The exit code is 1 above the limit.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import av
import numpy as np

from tubelet.video import VideoWriter

CHILD = """
import json, resource, sys, time
import av, numpy
from tubelet.video import open_video, read_clip_report, sample_uniform
def peak():
    # ru_maxrss would begin with the peak of the parent process; VmHWM begins with this program
    try:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
path, width, height, frames = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
before = peak()
start = time.perf_counter()
video = open_video(path)
opened, open_s = peak(), time.perf_counter() - start
start = time.perf_counter()
clip, report = read_clip_report(video, sample_uniform(video, frames), (width, height))
print(json.dumps({"imports": before, "opened": opened, "read": peak(), "pixels": clip.pixels.nbytes,
                  "open_s": open_s, "read_s": time.perf_counter() - start, "n_frames": video.n_frames,
                  "n_seeks": report.n_seeks}))
"""

SEED_SECONDS = 10


def long_video(minutes: float) -> Path:
    """A 1080p30 file of this length, made once: ten seconds are encoded, their packets are repeated."""
    path = Path(tempfile.gettempdir()) / "tubelet-perf" / f"repeated_1080p_{minutes:g}min.mp4"
    if path.exists():
        return path
    path.parent.mkdir(exist_ok=True)
    start = time.perf_counter()
    seed = path.with_name("seed_1080p.mp4")
    noise = np.random.default_rng(0).integers(0, 255, (135, 300, 3), dtype=np.uint8)
    texture = noise.repeat(8, axis=0).repeat(8, axis=1)
    with VideoWriter(seed, 1920, 1080, 30, preset="ultrafast", quality=30, gop=250) as out:
        for k in range(SEED_SECONDS * 30):
            out.write(texture[:, k : k + 1920])
    part = path.with_name("part.mp4")
    with av.open(str(seed)) as media, av.open(str(part), "w") as out:
        source = media.streams.video[0]
        stream = out.add_stream_from_template(source)
        shift = 0
        for _ in range(round(minutes * 60 / SEED_SECONDS)):
            media.seek(0)
            for packet in media.demux(source):
                if packet.size:  # this preset has no B-frames: decoding order is display order
                    packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, stream
                    out.mux(packet)
            shift += round(SEED_SECONDS / source.time_base)
    part.replace(path)
    print(f"made {path.name} in {time.perf_counter() - start:.0f} s")
    return path


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--frames", type=int, default=64)
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--height", type=int, default=360)
    parser.add_argument("--limit-mb", type=float, default=400)
    args = parser.parse_args()
    path = long_video(args.minutes)
    command = [sys.executable, "-c", CHILD, str(path), str(args.width), str(args.height), str(args.frames)]
    got = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    above = (got["read"] - got["imports"]) / 1e6
    print(f"{got['n_frames']} frames of 1920x1080, {path.stat().st_size / 1e6:.1f} MB")
    print(f"open  {got['open_s']:.2f} s, peak {(got['opened'] - got['imports']) / 1e6:.0f} MB above imports")
    print(
        f"read  {args.frames} frames at {args.width}x{args.height} ({got['pixels'] / 1e6:.0f} MB of pixels): "
        f"{got['read_s']:.2f} s with {got['n_seeks']} jumps, peak {above:.0f} MB above imports"
    )
    print(f"limit {args.limit_mb:.0f} MB: {'ok' if above <= args.limit_mb else 'EXCEEDED'}")
    return 0 if above <= args.limit_mb else 1


if __name__ == "__main__":
    sys.exit(main())
