"""Pictures -> the tower's pixels, as published: a plain square resize (bicubic), no crop, no padding."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from tubelet.errors import VideoError


def to_pixels(
    frames: npt.NDArray[np.uint8],
    size: int,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> torch.Tensor:
    """uint8 RGB (T, H, W, 3) -> normalised float32 (T, 3, size, size). The aspect ratio is not kept."""
    from PIL import Image

    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or not len(frames):
        raise VideoError(f"frames are uint8 (T, H, W, 3), got {frames.dtype} {frames.shape}")
    out = torch.empty(len(frames), 3, size, size)
    scale, shift = torch.tensor(std)[:, None, None], torch.tensor(mean)[:, None, None]
    for number, frame in enumerate(frames):
        if frame.shape[:2] != (size, size):
            frame = np.asarray(Image.fromarray(frame).resize((size, size), Image.Resampling.BICUBIC))
        channels = torch.from_numpy(np.array(frame)).permute(2, 0, 1).float()
        out[number] = (channels / 255 - shift) / scale
    return out
