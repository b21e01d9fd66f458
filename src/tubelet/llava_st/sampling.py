"""Which frames LLaVA-ST sees: pure functions from a video or a clip to a grid and rows of it.

The published rule takes the first and the last frame and rounds between them, always exactly 100 frames; those of a
short video are repeated. A `FrameGrid` holds every frame once, so a repetition is a list of rows.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from tubelet.frames import Clip, FrameGrid
from tubelet.tube import Span
from tubelet.video import Video
from tubelet.video.sample import frames_in, grid_of

Rows = npt.NDArray[np.int64]


def sample_frames(
    video: Video, count: int, window: Span | None = None, repeat: bool = False
) -> tuple[FrameGrid, Rows]:
    """The published rule, frame round(i / (count - 1) * (n - 1)): the grid of distinct frames, and rows of it.

    repeat: exactly `count` rows, however short the video (mode official); else at most as many as there are frames.
    Where the rate is not constant, moments are spread evenly and the nearest frames taken.
    """
    first, stop = frames_in(video, window)
    n = stop - first
    count = count if repeat else min(count, n)
    if video.constant_rate or count == 1:
        chosen = _spread(count, n)
    else:
        times = video.times_s[first:stop]
        grid = grid_of(video, np.arange(first, stop))
        chosen = grid.nearest(np.linspace(times[0], times[-1], count)).tolist()
    index, rows = _distinct(chosen)
    return grid_of(video, first + index), rows if repeat else np.arange(len(index))


def thin_clip(clip: Clip, count: int, repeat: bool = False) -> tuple[Clip, Rows]:
    """The same rule for the frames of a clip made elsewhere."""
    count = count if repeat else min(len(clip), count)
    index, rows = _distinct(_spread(count, len(clip)))
    grid = replace(clip.grid, frame_index=clip.grid.frame_index[index], times_s=clip.grid.times_s[index])
    return Clip(clip.pixels[index], grid), rows if repeat else np.arange(len(index))


def _spread(count: int, n: int) -> list[int]:
    return [round(i / max(count - 1, 1) * (n - 1)) for i in range(count)]


def _distinct(chosen: list[int]) -> tuple[Rows, Rows]:
    index, rows = np.unique(np.array(chosen, dtype=np.int64), return_inverse=True)
    return index, rows
