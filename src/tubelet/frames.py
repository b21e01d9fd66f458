"""`FrameGrid` and `Clip`: which frames were taken, and their pixels.

The grid travels with the pixels and with every result, so that nobody has to recompute a time from a frame
count. This module knows numpy only; `tubelet.video` makes grids and clips from files, `tubelet.world` from scenes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from tubelet.errors import DataError


@dataclass(frozen=True, slots=True, eq=False)
class FrameGrid:
    """Which frames of a video were taken, and when each is shown.

    Args:
        frame_index: (T,) native frame indices, 0-based, strictly increasing.
        times_s: (T,) presentation times, seconds from the first displayed frame, strictly increasing.
        fps: average native rate of the source, a fraction (30000/1001, never 29.97 or 29).
        duration_s: length of the source: when its last frame stops being shown.
        width, height: displayed size of the source in pixels (after rotation and non-square pixels).
    """

    frame_index: npt.NDArray[np.int64]
    times_s: npt.NDArray[np.float64]
    fps: Fraction
    duration_s: float
    width: int
    height: int

    def __post_init__(self) -> None:
        given = np.asarray(self.frame_index)
        if given.size and given.dtype.kind not in "iu":
            raise DataError(
                f"FrameGrid.frame_index are whole numbers, got {given.dtype} {self.frame_index!r:.60}"
            )
        index = np.array(given, dtype=np.int64)
        times = np.array(self.times_s, dtype=np.float64)
        if index.ndim != 1 or times.shape != index.shape or len(index) == 0:
            raise DataError(
                "a frame grid holds at least one frame, frame_index (T,) and times_s (T,), "
                f"got {index.shape} and {times.shape}"
            )
        if index[0] < 0 or (np.diff(index) <= 0).any():
            raise DataError("FrameGrid.frame_index must be 0-based and increase strictly")
        if not np.isfinite(times).all() or times[0] < 0 or (np.diff(times) <= 0).any():
            raise DataError("FrameGrid.times_s must be finite, at or after 0 and increase strictly")
        if self.fps <= 0 or self.width <= 0 or self.height <= 0:
            raise DataError(
                f"FrameGrid needs fps, width and height > 0, got {self.fps}, {self.width}, {self.height}"
            )
        if not np.isfinite(self.duration_s) or self.duration_s <= times[-1]:
            raise DataError(
                f"FrameGrid.duration_s must lie after the last frame ({times[-1]:g} s), got {self.duration_s}"
            )
        index.flags.writeable = times.flags.writeable = False
        object.__setattr__(self, "frame_index", index)
        object.__setattr__(self, "times_s", times)
        object.__setattr__(self, "fps", Fraction(self.fps))
        object.__setattr__(self, "duration_s", float(self.duration_s))

    def __len__(self) -> int:
        return len(self.frame_index)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, FrameGrid):
            return NotImplemented
        return (
            (self.fps, self.duration_s, self.width, self.height)
            == (other.fps, other.duration_s, other.width, other.height)
            and np.array_equal(self.frame_index, other.frame_index)
            and np.array_equal(self.times_s, other.times_s)
        )

    def __hash__(self) -> int:
        return hash((self.fps, self.duration_s, self.frame_index.tobytes(), self.times_s.tobytes()))

    def nearest(self, time_s: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Rows of the grid whose times are nearest to these moments (the earlier one on a tie)."""
        at = np.asarray(time_s, dtype=np.float64)
        right = np.clip(np.searchsorted(self.times_s, at), 0, len(self) - 1)
        left = np.clip(right - 1, 0, None)
        take_left = np.abs(at - self.times_s[left]) <= np.abs(self.times_s[right] - at)
        return np.where(take_left, left, right)

    def cell_edges_s(self) -> npt.NDArray[np.float64]:
        """(T + 1,) borders of the piece of time that each sampled frame stands for.

        The border between two samples lies midway; the first and last are extended by half a neighbouring step
        and clipped to the video. Turns "frames a..b are in" into seconds.
        """
        if len(self) == 1:
            return np.array([0.0, self.duration_s])
        middle = (self.times_s[1:] + self.times_s[:-1]) / 2
        first = max(0.0, self.times_s[0] - (self.times_s[1] - self.times_s[0]) / 2)
        last = min(self.duration_s, self.times_s[-1] + (self.times_s[-1] - self.times_s[-2]) / 2)
        return np.concatenate([[first], middle, [last]])

    def to_dict(self) -> dict[str, Any]:
        return {
            "frame_index": self.frame_index.tolist(),
            "times_s": np.round(self.times_s, 6).tolist(),
            "fps": f"{self.fps.numerator}/{self.fps.denominator}",
            "duration_s": round(self.duration_s, 6),
            "width": self.width,
            "height": self.height,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> FrameGrid:
        try:
            return cls(
                frame_index=np.asarray(data["frame_index"]),
                times_s=np.asarray(data["times_s"], dtype=np.float64),
                fps=Fraction(data["fps"]),
                duration_s=float(data["duration_s"]),
                width=int(data["width"]),
                height=int(data["height"]),
            )
        except (KeyError, TypeError, ValueError, OverflowError, ZeroDivisionError) as error:
            raise DataError(f"not a frame grid: {error!r}") from error


@dataclass(frozen=True, slots=True, eq=False)
class Clip:
    """Pixels and when they were: uint8 RGB (T, H, W, 3) + the `FrameGrid` they were taken on.

    H and W are the size of these pixels and may be smaller than the displayed size in the grid (resized while
    decoding). Boxes are fractions, so they hold for both.
    """

    pixels: npt.NDArray[np.uint8]
    grid: FrameGrid

    def __post_init__(self) -> None:
        pixels = self.pixels
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3:
            raise DataError(f"Clip.pixels must be uint8 (T, H, W, 3), got {pixels.dtype} {pixels.shape}")
        if len(pixels) != len(self.grid):
            raise DataError(f"a clip has one picture per grid frame, got {len(pixels)} for {len(self.grid)}")

    def __len__(self) -> int:
        return len(self.grid)
