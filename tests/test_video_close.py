"""Closing a video whose frames are still being decoded: PyAV alone waits for ever when libav has something to log."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

from tubelet.video import write_video

_PROGRAM = """
import logging, sys
import av.logging
from tubelet.video.probe import open_container
av.logging.set_level(av.logging.DEBUG)  # every decoding thread logs
logging.getLogger("libav").setLevel(logging.CRITICAL + 1)
for _ in range(5):
    with open_container(__import__("pathlib").Path(sys.argv[1]), None) as media:
        stream = media.streams.video[0]
        stream.thread_type = "AUTO"
        stream.codec_context.thread_count = 4
        frames = media.decode(stream)
        next(frames)  # more are under way
print("closed")
"""


def test_a_video_is_closed_while_threads_decode_and_log(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "noise.mp4"
    frames = [rng.integers(0, 255, (180, 320, 3), dtype=np.uint8) for _ in range(40)]
    write_video(path, frames, fps=25)
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(path)], capture_output=True, text=True, timeout=90, check=False
    )
    assert done.stdout.strip() == "closed", done.stderr[-500:]
