"""Which frames of a video to take: pure functions from a `Video` to a `FrameGrid`. Nothing is decoded here.

Conventions
- A window is a `Span`, half-open: frame i is in it if start_s <= times_s[i] < end_s. None means the whole
  video.
- "The frame on display" at a moment is the last one whose time is not after it (within 1 microsecond, because
  times are written with microseconds).
- No frame is taken twice, so a grid is strictly increasing and may be shorter than what was asked for.

Two conventions of uniform sampling are in use, and models differ in which they were trained with:
- centres (`ends=False`): the window is cut into `count` equal pieces and the frame on display at the middle
  of each is taken; with a constant rate, index floor((k + 1/2) * n / count);
- ends (`ends=True`): the first and the last frame are taken and the rest is spread between them; with a
  constant rate, `np.linspace(0, n - 1, count).astype(int)`, as in LLaVA-ST.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tubelet.errors import VideoError
from tubelet.frames import FrameGrid
from tubelet.tube import Span
from tubelet.video.probe import Video

IndexArray = npt.NDArray[np.int64]

TIME_TOLERANCE_S = 1e-6
"""Moments this close before a frame's time count as that frame's."""


def sample_uniform(video: Video, count: int, window: Span | None = None, *, ends: bool = False) -> FrameGrid:
    """min(count, frames in the window) frames, spread evenly over the window.

    With a variable rate the frames are even in time, as far as distinct frames allow. Raises VideoError for
    count < 1 and for a window without frames.
    """
    count = _whole(count, "count", least=1)
    first, stop = frames_in(video, window)
    available = stop - first
    if count >= available:
        return grid_of(video, np.arange(first, stop))
    if video.constant_rate:
        if ends:
            chosen = np.linspace(0, available - 1, count).astype(np.int64)
        else:
            chosen = (2 * np.arange(count, dtype=np.int64) + 1) * available // (2 * count)
        return grid_of(video, first + chosen)
    times = video.times_s[first:stop]
    if ends:
        moments = np.linspace(times[0], times[-1], count)
    else:
        start_s = max(0.0, window.start_s) if window else 0.0
        end_s = min(video.duration_s, window.end_s) if window else video.duration_s
        moments = start_s + (np.arange(count) + 0.5) * (end_s - start_s) / count
    chosen = np.clip(np.searchsorted(times, moments + TIME_TOLERANCE_S, side="right") - 1, 0, available - 1)
    return grid_of(video, first + _distinct(chosen, available))


def sample_rate(
    video: Video, fps: float, window: Span | None = None, *, max_frames: int | None = None
) -> FrameGrid:
    """The frames on display at start, start + 1/fps, start + 2/fps, ... of the window.

    The frame at a window's first moments may have begun before it: then the first frame inside the window is
    taken. A rate above the video's own gives every frame. If more than `max_frames` frames result, they are
    `sample_uniform(video, max_frames, window)` instead. Raises VideoError.
    """
    if not np.isfinite(fps) or fps <= 0:
        raise VideoError(f"a sampling rate is in frames per second and > 0, got {fps!r}")
    first, stop = frames_in(video, window)
    start_s = window.start_s if window else 0.0
    end_s = min(video.duration_s, window.end_s) if window else video.duration_s
    if (end_s - start_s) * fps > 4 * (stop - first) + 4:
        # far denser than the frames: the moments would be many times the frames
        chosen = np.arange(first, stop)
    else:
        moments = start_s + np.arange(int(np.ceil((end_s - start_s) * fps)) + 1) / fps
        moments = moments[moments < end_s - TIME_TOLERANCE_S]
        if len(moments) == 0:
            moments = np.array([start_s])
        chosen = np.unique(np.clip(_on_display(video, moments), first, stop - 1))
    if max_frames is not None and len(chosen) > _whole(max_frames, "max_frames", least=1):
        return sample_uniform(video, max_frames, window)
    return grid_of(video, chosen)


def sample_at(video: Video, times_s: npt.ArrayLike) -> FrameGrid:
    """The frames on display at these moments (seconds), in order of time, each once.

    The end of the video belongs to its last frame. Raises VideoError for moments outside the video.
    """
    moments = np.atleast_1d(np.asarray(times_s, dtype=np.float64))
    if moments.ndim != 1 or len(moments) == 0:
        raise VideoError("give at least one moment in seconds, as a list")
    if not np.isfinite(moments).all():
        raise VideoError("moments must be finite seconds, they hold NaN or infinity")
    lo, hi = float(moments.min()), float(moments.max())
    if lo < -TIME_TOLERANCE_S or hi > video.duration_s + TIME_TOLERANCE_S:
        wrong = lo if lo < -TIME_TOLERANCE_S else hi
        raise VideoError(f"{wrong:g} s lies outside {video.path.name}, which lasts 0-{video.duration_s:g} s")
    return grid_of(video, np.unique(_on_display(video, moments)))


def sample_indices(video: Video, indices: Sequence[int] | npt.NDArray[np.integer[Any]]) -> FrameGrid:
    """The frames with these native indices (0-based), in order, each once. Raises VideoError."""
    given = np.atleast_1d(np.asarray(indices))
    if given.ndim != 1 or given.size == 0:
        raise VideoError("give at least one frame index, as a list")
    if not np.issubdtype(given.dtype, np.integer):
        raise VideoError(f"frame indices are whole numbers, got {given.dtype} (times? use sample_at)")
    lo, hi = int(given.min()), int(given.max())
    if lo < 0 or hi >= video.n_frames:
        raise VideoError(
            f"frame {lo if lo < 0 else hi} is not in {video.path.name}: its {video.n_frames} frames are "
            f"0 to {video.n_frames - 1}"
        )
    return grid_of(video, np.unique(given).astype(np.int64))


def frames_in(video: Video, window: Span | None) -> tuple[int, int]:
    """(first, stop) with frames first to stop - 1 in the window, at least one. Raises VideoError."""
    if window is None:
        return 0, video.n_frames
    if window.start_s >= video.duration_s:
        raise VideoError(
            f"the window {window.start_s:g}-{window.end_s:g} s begins after the end of {video.path.name}, "
            f"which lasts {video.duration_s:g} s"
        )
    bounds = np.array([window.start_s, window.end_s]) - TIME_TOLERANCE_S
    first, stop = np.searchsorted(video.times_s, bounds, side="left")
    if first >= stop:
        raise VideoError(
            f"no frame of {video.path.name} begins in the window {window.start_s:g}-{window.end_s:g} s: "
            f"its frames are {float(1 / video.fps):.3g} s apart on average, use a longer window or sample_at"
        )
    return int(first), int(stop)


def grid_of(video: Video, frame_index: IndexArray) -> FrameGrid:
    """The grid of these valid, strictly increasing native indices."""
    return FrameGrid(
        frame_index=frame_index,
        times_s=video.times_s[frame_index],
        fps=video.fps,
        duration_s=video.duration_s,
        width=video.width,
        height=video.height,
    )


def _on_display(video: Video, moments: npt.NDArray[np.float64]) -> IndexArray:
    after = np.searchsorted(video.times_s, moments + TIME_TOLERANCE_S, side="right")
    return np.clip(after - 1, 0, video.n_frames - 1).astype(np.int64)


def _distinct(chosen: IndexArray, available: int) -> IndexArray:
    """As many strictly increasing indices below `available`, pushed from these non-decreasing ones."""
    steps = np.arange(len(chosen))
    pushed = np.maximum.accumulate(chosen - steps) + steps  # each at least one after the one before
    room = available - len(chosen) + steps  # and leaves room for those behind it
    return np.minimum(pushed, room)


def _whole(value: int, what: str, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise VideoError(f"{what} must be a whole number >= {least}, got {value!r}")
    return int(value)
