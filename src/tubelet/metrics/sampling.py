"""Frames and spans as the public code picks them: needed to score on the same frames.

Frame ids are native and count from 0. The functions return whole numbers, one array per video.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tubelet.errors import DataError

IntArray = npt.NDArray[np.int64]


def sampled_at_rate(first: int, past: int, video_fps: float, fps: float = 5.0, most: int = 200) -> IntArray:
    """TubeDETR's frames of [first, past): the first, then one whenever floor(frame x rate) grows; thinned to `most`.

    Raises DataError for videos below `fps`, which the public code refuses with an assertion.
    """
    if fps > video_fps:
        raise DataError(f"a video of {video_fps:g} fps cannot be sampled at {fps:g} fps")
    rate = fps / video_fps
    ids = np.arange(first, max(past, first + 1))
    beats = (ids * rate).astype(np.int64)
    ids = ids[np.concatenate([[True], np.diff(beats) > 0])]
    if len(ids) > most:
        ids = ids[(np.arange(most) * len(ids)) // most]
    return np.asarray(ids, dtype=np.int64)


def llavast_frames(first: int, last: int, n: int = 100) -> IntArray:
    """LLaVA-ST's n frames of [first, last], both included: first + round(i / (n - 1) x (last - first)).

    Halves are rounded to even; frames repeat when there are fewer than n.
    """
    steps = np.rint(np.arange(n) / (n - 1) * (last - first))
    return np.asarray(first + steps, dtype=np.int64)


def cgstvg_hcstvg_frames(frame_count: int, fps: float, clip_s: float = 20.0) -> tuple[IntArray, IntArray]:
    """CG-STVG's and STCAT's two passes over an HC-STVG clip, (even, odd) of its frames at 2 x `fps`.

    The last frame of the list is frame_count - 2 (the public reader never looks at the last one) and always taken.
    """
    ids = np.arange(frame_count - 1)
    rate = 2 * fps / (frame_count / clip_s)
    beats = (ids * rate).astype(np.int64)
    taken = ids[np.concatenate([[True], np.diff(beats) > 0])]
    if taken[-1] != ids[-1]:
        taken = np.append(taken, ids[-1])
    return taken[::2], taken[1::2]


def cgstvg_vidstg_frames(begin: int, end: int, n: int) -> tuple[IntArray, IntArray]:
    """CG-STVG's and STCAT's two passes over a VidSTG segment [begin, end]: 2 n frames by linspace, truncated.

    A segment of at most 2 n frames is taken whole.
    """
    if end - begin + 1 <= 2 * n:
        taken = np.arange(begin, end + 1)
    else:
        taken = np.linspace(begin, end, 2 * n).astype(np.int64)
    return taken[::2], taken[1::2]


def mvbench_frames(
    max_frame: int, fps: float, bound_s: tuple[float, float] | None = None, n: int = 16
) -> IntArray:
    """MVBench's n segment centres inside the bound (whole video: None); `max_frame` is the last frame."""
    start, end = bound_s if bound_s else (-100000.0, 100000.0)
    first, last = max(0, round(start * fps)), min(round(end * fps), max_frame)
    size = (last - first) / n
    return np.array([int(first + size / 2 + round(size * i)) for i in range(n)], dtype=np.int64)


def best_span(
    start_end_logits: npt.ArrayLike, frame_ids: npt.ArrayLike, duration: int | None = None
) -> tuple[float, float]:
    """TubeDETR's span from start and end logits (T, 2): the best pair with the end after the start, end + 1.

    Returns native frames, the end exclusive. Only the first `duration` frames may be chosen (CG-STVG; TubeDETR
    lets a video that is alone in its batch end in its padding: duration None).
    """
    logits = np.asarray(start_end_logits, dtype=np.float64)
    ids = np.asarray(frame_ids)
    n = len(logits) if duration is None else min(duration, len(logits))
    if n < 2:
        raise DataError("a span is read from at least two frames: its end comes after its start")
    log_p = logits[:n] - logits[:n].max(axis=0)
    log_p = log_p - np.log(np.exp(log_p).sum(axis=0))
    pair = np.where(np.triu(np.ones((n, n), dtype=bool), k=1), log_p[:, None, 0] + log_p[None, :, 1], -np.inf)
    start, end = np.unravel_index(int(pair.argmax()), pair.shape)
    return float(ids[start]), float(ids[end]) + 1
