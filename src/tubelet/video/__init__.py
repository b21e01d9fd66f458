"""Open, sample, decode and write videos (PyAV).

- probe.py: `open_video("clip.mp4")` knows the sizes and the exact time of every frame, and holds no pixels;
- sample.py: `sample_uniform(video, 16)` and its kin say which frames, pure functions that give a `FrameGrid`;
- decode.py: `read_clip(video, grid, size=(448, 448))` reads exactly these, resized while decoding;
- write.py: `write_video("out.mp4", clip.pixels, fps=8)` writes H.264 that a browser plays.
"""

from __future__ import annotations

from tubelet.video.decode import DecodeReport, iter_frames, read_clip, read_clip_report
from tubelet.video.probe import Video, open_video
from tubelet.video.sample import sample_at, sample_indices, sample_rate, sample_uniform
from tubelet.video.write import VideoWriter, encode_bytes, roundtrip, write_video

__all__ = [
    "DecodeReport",
    "Video",
    "VideoWriter",
    "encode_bytes",
    "iter_frames",
    "open_video",
    "read_clip",
    "read_clip_report",
    "roundtrip",
    "sample_at",
    "sample_indices",
    "sample_rate",
    "sample_uniform",
    "write_video",
]
