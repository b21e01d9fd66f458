"""Where proposals get their pictures from: one way to walk over a clip or a video, few pictures in memory.

A `Source` is a clip, or a video with the grid of the frames to look at. `pictures` yields them in order, resized;
a video is decoded once and never held as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tubelet.errors import DataError
from tubelet.frames import Clip, FrameGrid
from tubelet.video import Video, iter_frames, read_clip, sample_rate

Picture = npt.NDArray[np.uint8]

_SPARSE = 24  # a grid with fewer than one in so many frames is read by jumps, in pieces
_PIECE = 32
DEFAULT_FPS = 8.0


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """Pictures to find things in: those of `clip`, or the frames `grid` of `video`."""

    grid: FrameGrid
    clip: Clip | None = None
    video: Video | None = None

    @property
    def height(self) -> int:
        return self.clip.pixels.shape[1] if self.clip is not None else self.grid.height

    @property
    def width(self) -> int:
        return self.clip.pixels.shape[2] if self.clip is not None else self.grid.width


def make_source(source: Clip | Video, grid: FrameGrid | None = None, fps: float = DEFAULT_FPS) -> Source:
    """A clip as it is; a video on `grid`, by default `fps` frames per second of it. Raises DataError, VideoError."""
    if isinstance(source, Clip):
        if grid is not None and grid != source.grid:
            raise DataError("a clip has its own grid: give a grid only with a video")
        return Source(source.grid, clip=source)
    if not isinstance(source, Video):
        raise DataError(f"proposals are made from a Clip or a Video, got {type(source).__name__}")
    return Source(grid if grid is not None else sample_rate(source, fps), video=source)


def fitted(source: Source, short_side: int | None, long_side: int | None = None) -> tuple[int, int]:
    """(width, height) scaled down, never up, to a short side and a long side at most (even, at least 16)."""
    width, height = source.width, source.height
    scale = min(
        1.0,
        (short_side or min(width, height)) / min(width, height),
        (long_side or max(width, height)) / max(width, height),
    )
    if scale == 1.0:
        return width, height
    return max(16, 2 * round(width * scale / 2)), max(16, 2 * round(height * scale / 2))


def pictures(source: Source, size: tuple[int, int] | None = None) -> Iterator[tuple[int, Picture]]:
    """(row of the grid, rgb uint8 (H, W, 3)) in order; size is (width, height).

    Frames of a video that cannot be decoded are left out, so rows may skip (sparse grids: shown as a neighbour).
    """
    if source.clip is not None:
        for row, picture in enumerate(source.clip.pixels):
            yield row, _resized(picture, size)
        return
    assert source.video is not None
    index = source.grid.frame_index
    if len(index) * _SPARSE < int(index[-1] - index[0]) or len(index) == 1:
        for lo in range(0, len(index), _PIECE):
            part = _part(source.grid, lo, lo + _PIECE)
            for k, picture in enumerate(read_clip(source.video, part, size).pixels):
                yield lo + k, picture
        return
    row_of = {int(number): row for row, number in enumerate(index)}
    last = int(index[-1])
    for number, _, picture in iter_frames(source.video, size):
        if number in row_of:
            yield row_of[number], picture
        if number >= last:
            return


def _part(grid: FrameGrid, lo: int, hi: int) -> FrameGrid:
    return FrameGrid(
        grid.frame_index[lo:hi], grid.times_s[lo:hi], grid.fps, grid.duration_s, grid.width, grid.height
    )


def _resized(picture: Picture, size: tuple[int, int] | None) -> Picture:
    if size is None or size == (picture.shape[1], picture.shape[0]):
        return picture
    from PIL import Image

    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))
