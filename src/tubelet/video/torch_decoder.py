"""Decoding with torchcodec, an optional package: on request, and only after it has really decoded something.

torchcodec imports cleanly and fails at its first file where FFmpeg's shared libraries are missing, so it is
probed by decoding a tiny video, once per process. It counts frames itself; every frame it returns must carry
the time that the grid promises. Turned, mirrored and non-square pictures, and files in memory or without
timestamps, are left to PyAV.

Not measured: no advantage over PyAV was found in this project yet, so "auto" never takes it.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy.typing as npt

from tubelet.errors import VideoError
from tubelet.frames import FrameGrid
from tubelet.video.probe import Video

_TIME_TOLERANCE_S = 2e-3  # containers count in milliseconds or finer


@functools.cache
def why_not() -> str | None:
    """None if torchcodec decodes here, else the reason in one phrase. Probed once per process."""
    from tubelet.video.write import encode_bytes

    try:
        from torchcodec.decoders import VideoDecoder
    except ImportError as error:
        return f"it cannot be imported ({error}): pip install torchcodec"
    except (OSError, RuntimeError) as error:
        return f"it cannot be loaded ({_first_line(error)}): it needs FFmpeg's shared libraries"
    frames = np.zeros((3, 64, 64, 3), dtype=np.uint8)
    frames[1:] = 255
    try:
        decoder = VideoDecoder(encode_bytes(frames, 10))
        means = [float(decoder.get_frame_at(k).data.float().mean()) for k in range(3)]
    except (OSError, RuntimeError, ValueError, AttributeError) as error:
        return f"it cannot decode a test video ({_first_line(error)}): it needs FFmpeg's shared libraries"
    if not (means[0] < 32 and means[1] > 224 and means[2] > 224):
        return f"it decodes a test video wrongly (brightness {means} for black, white, white)"
    return None


def read_pictures(video: Video, grid: FrameGrid, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """(T, H, W, 3) pictures of a grid. Raises VideoError where torchcodec cannot be used or disagrees."""
    reason = why_not()
    if reason is not None:
        raise VideoError(f"decoder 'torchcodec' was asked for, but {reason}; or use decoder='pyav'")
    if video.data is not None or video.counted or video.is_image:
        raise VideoError("decoder 'torchcodec' reads video files with timestamps only: use decoder='pyav'")
    if video.rotation_deg or video.mirrored or video.sample_aspect_ratio != 1:
        raise VideoError(
            "decoder 'torchcodec' does not read turned pictures or non-square pixels here: use decoder='pyav'"
        )
    from torchcodec.decoders import VideoDecoder

    try:
        decoder = VideoDecoder(str(video.path), dimension_order="NHWC", stream_index=video.stream_index)
        out = np.empty((len(grid), size[1], size[0], 3), dtype=np.uint8)
        for row, index in enumerate(grid.frame_index.tolist()):
            frame = decoder.get_frame_at(index)
            time_s = float(frame.pts_seconds) - video.start_offset_s
            if abs(time_s - grid.times_s[row]) > _TIME_TOLERANCE_S:
                raise VideoError(
                    f"torchcodec gives frame {index} of {video.path.name} the time {time_s:.3f} s, "
                    f"the file says {grid.times_s[row]:.3f} s: use decoder='pyav'"
                )
            out[row] = _resized(frame.data, size)
    except (OSError, RuntimeError, ValueError, IndexError) as error:
        raise VideoError(f"torchcodec cannot read {video.path}: {_first_line(error)}") from error
    return out


def _resized(data: Any, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    import av

    picture: npt.NDArray[np.uint8] = np.ascontiguousarray(data.cpu().numpy())
    if picture.shape[:2] == (size[1], size[0]):
        return picture
    frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
    resized: npt.NDArray[np.uint8] = frame.reformat(*size, interpolation="BICUBIC").to_ndarray()
    return resized


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__
