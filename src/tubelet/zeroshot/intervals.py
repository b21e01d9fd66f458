"""From a track's score per frame to the frames in which it happens: first and last, both inside.

window     published: from the best frame, the better neighbour again and again until k + 1 frames are in; it stops
           where both neighbours are equal
top_k      the hull of the k best frames
adaptive   ours, no k: the run of frames with the largest sum above a threshold that splits the scores best (Otsu)
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tubelet.errors import QueryError

FloatArray = npt.NDArray[np.float64]


def interval(scores: npt.ArrayLike, rule: str, k: int = 7) -> tuple[int, int]:
    """(first, last) of scores (T,). QueryError for another rule or no scores."""
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1 or not len(values):
        raise QueryError(f"an interval is read from one score per frame, got {values.shape}")
    match rule:
        case "window":
            return window(values, k)
        case "top_k":
            best = np.argsort(-values, kind="stable")[:k]
            return int(best.min()), int(best.max())
        case "adaptive":
            return adaptive(values)
    raise QueryError(f"interval rules are window, top_k and adaptive, got {rule!r}")


def window(scores: FloatArray, k: int) -> tuple[int, int]:
    """The published growth, its end at equal neighbours included."""
    first = last = int(scores.argmax())
    while last - first < k:
        before = scores[first - 1] if first > 0 else -100.0
        after = scores[last + 1] if last + 1 < len(scores) else -100.0
        if before == after:
            break
        if before > after:
            first -= 1
        else:
            last += 1
    return first, last


def adaptive(scores: FloatArray) -> tuple[int, int]:
    """The run with the largest sum of score - threshold; all frames when all scores are equal."""
    if np.ptp(scores) == 0:
        return 0, len(scores) - 1
    above = scores - otsu(scores)
    total = np.concatenate([[0.0], np.cumsum(above)])
    gains = total[None, 1:] - total[:-1, None]  # [first, last]
    gains[np.tril_indices(len(scores), -1)] = -np.inf
    first, last = np.unravel_index(int(gains.argmax()), gains.shape)
    return int(first), int(last)


def otsu(scores: FloatArray) -> float:
    """The threshold midway between two neighbouring scores that separates two groups best (Otsu 1979)."""
    ordered = np.sort(scores)
    n = len(ordered)
    below = np.cumsum(ordered)[:-1]
    count = np.arange(1, n)
    mean_below, mean_above = below / count, (ordered.sum() - below) / (n - count)
    between = count * (n - count) * (mean_above - mean_below) ** 2
    at = int(between.argmax())
    return float((ordered[at] + ordered[at + 1]) / 2)
