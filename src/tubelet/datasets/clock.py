"""Native frames and seconds: `FrameRange`, `as_fps`, and `Clock`, which turns one into the other.

Frames are 0-based and ranges half-open. A clock goes by the times of the opened video where it has them, else by
the rate that the annotation says, as if it were constant.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from tubelet.errors import DataError
from tubelet.tube import Span

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
_NTSC = (15, 24, 30, 48, 60, 120)
MAX_FRAME = 2**40  # far beyond any video; keeps every index and its time exact in floats


def as_fps(value: float | int | str | Fraction) -> Fraction:
    """A frame rate as the fraction it means: 29.97 and 29.97003 -> 30000/1001, 23.98 -> 24000/1001, 25.0 -> 25.

    Raises DataError unless it is above 0 and at most 10,000.
    """
    try:
        if not 0 < float(Fraction(value[:40]) if isinstance(value, str) and "/" in value else value) < 1e6:
            raise ValueError(value)  # before Fraction("1e999999999") computes all its digits
        exact = Fraction(value)
    except (ValueError, ZeroDivisionError, OverflowError, TypeError) as error:
        raise DataError(f"a frame rate is a number above 0, got {value!r:.40}") from error
    if not Fraction(1, 10_000) <= exact <= 10_000:
        raise DataError(f"a frame rate lies between 0.0001 and 10000, got {value!r:.40}")
    for rate in _NTSC:
        ntsc = Fraction(rate * 1000, 1001)
        if abs(exact - ntsc) < Fraction(51, 10_000):
            return ntsc
    return exact.limit_denominator(10_000)


@dataclass(frozen=True, slots=True)
class FrameRange:
    """Native frames begin, begin + 1, ..., end - 1 (0-based, end excluded; never empty)."""

    begin: int
    end: int

    def __post_init__(self) -> None:
        for value in (self.begin, self.end):
            if isinstance(value, bool) or not isinstance(value, int | np.integer):
                raise DataError(f"a frame range is two whole numbers, got {self.begin!r} and {self.end!r}")
        if not 0 <= self.begin < self.end <= MAX_FRAME:
            raise DataError(
                f"a frame range starts at or after 0 and ends after it starts, got [{self.begin}, {self.end})"
            )

    def __len__(self) -> int:
        return self.end - self.begin

    def span(self, fps: Fraction) -> Span:
        """When these frames are shown: [begin / fps, end / fps) seconds (constant rate assumed)."""
        return Span(float(self.begin / fps), float(self.end / fps))


class Clock:
    """Turns native frames into seconds: by the times of the opened video, else by the annotated rate."""

    def __init__(
        self, name: str, fps: Fraction | None, times_s: npt.ArrayLike | None, duration_s: float | None
    ) -> None:
        self.name, self.fps, self.known = name, fps, times_s is not None
        self.edges = np.asarray([] if times_s is None else times_s, dtype=np.float64)
        if self.known:
            if self.edges.ndim != 1 or len(self.edges) == 0:
                raise DataError("frame_times_s are the times (M,) of all native frames, at least one")
            step = float(self.edges[-1] - self.edges[-2]) if len(self.edges) > 1 else 1.0
            end_s = self.edges[-1] + step if duration_s is None else duration_s
            self.edges = np.append(self.edges, end_s)

    @property
    def n_frames(self) -> int | None:
        """How many frames the opened video has; None where it was not opened."""
        return len(self.edges) - 1 if self.known else None

    def cut(self, frames: FrameRange) -> FrameRange:
        """The frames that the opened video has. DataError when it has none of them."""
        n = self.n_frames
        if n is None or frames.end <= n:
            return frames
        if frames.begin >= n:
            raise DataError(
                f"{self.name}: the annotation speaks of frames {frames.begin} to {frames.end - 1}, the video has {n} "
                "frames: another file, or another cut of it?"
            )
        return FrameRange(frames.begin, n)

    def times(self, index: IntArray) -> FloatArray:
        if not self.known:
            if self.fps is None:
                raise DataError(
                    f"{self.name}: boxes are on frames and no frame rate is known: give frame_times_s"
                )
            return np.asarray(index / float(self.fps), dtype=np.float64)
        if len(index) and index[-1] >= len(self.edges):
            raise DataError(
                f"{self.name}: the annotation speaks of frame {index[-1]}, the video has {len(self.edges) - 1} frames"
            )
        return np.asarray(self.edges[index], dtype=np.float64)

    def span(self, frames: FrameRange) -> Span:
        start_s, end_s = self.times(np.array([frames.begin, frames.end], dtype=np.int64))
        return Span(float(start_s), float(end_s))
