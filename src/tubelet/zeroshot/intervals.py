"""From a track's score per frame to the frames in which it happens: first and last, both inside.

window     published: from the best frame, the better neighbour again and again until k + 1 frames are in; it stops
           where both neighbours are equal
top_k      the hull of the k best frames
adaptive   ours, no k: the run of frames with the largest sum above a threshold that splits the scores' logarithms best
           (Otsu), if their order says something about time; else all of the track's visible time
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tubelet.errors import QueryError

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

SIGNIFICANT = 0.05
"""So rarely may shuffled scores have as strong a run; chosen on the toy world's validation scenes."""
_SHUFFLES = 499
_LOWEST = 1e-4  # of the highest score: scores below it count as equally low


def interval(
    scores: npt.ArrayLike, rule: str, k: int = 7, visible: BoolArray | None = None
) -> tuple[int, int]:
    """(first, last) of scores (T,). visible (T,): where the track is seen (None: everywhere), for "adaptive".

    QueryError for another rule or no scores.
    """
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
            return adaptive(values, visible)
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


def adaptive(scores: FloatArray, visible: BoolArray | None = None) -> tuple[int, int]:
    """The best run of the visible frames where `p_of_run` is at most SIGNIFICANT, else first to last visible frame.

    Both are of the logarithms: attention is shared out by a softmax, so that one frame of an event can take most of it,
    and scores differ by factors. Frames in which the track is not seen count neither for nor against: a run may bridge
    them. Nothing visible: all.
    """
    seen = np.arange(len(scores)) if visible is None else np.flatnonzero(visible)
    if not len(seen):
        return 0, len(scores) - 1
    values = logarithms(scores[seen])
    first, last = (0, len(seen) - 1) if p_of_run(values) > SIGNIFICANT else best_run(values)
    return int(seen[first]), int(seen[last])


def logarithms(scores: FloatArray) -> FloatArray:
    """log(score / highest score), at least log(_LOWEST); zeros where no score is above 0."""
    highest = scores.max()
    return np.log(np.maximum(scores / highest, _LOWEST)) if highest > 0 else np.zeros_like(scores)


def best_run(scores: FloatArray) -> tuple[int, int]:
    """The run with the largest sum of score - threshold; all frames when all scores are equal."""
    if np.ptp(scores) == 0:
        return 0, len(scores) - 1
    above = scores - otsu(scores)
    total = np.concatenate([[0.0], np.cumsum(above)])
    gains = total[None, 1:] - total[:-1, None]  # [first, last]
    gains[np.tril_indices(len(scores), -1)] = -np.inf
    first, last = np.unravel_index(int(gains.argmax()), gains.shape)
    return int(first), int(last)


def p_of_run(scores: FloatArray) -> float:
    """How often shuffled scores have a run that stands out as much: near 0 for an event, 1 for equal scores.

    One frame that stands out does so in any order, so it is no event; neither are fewer than six frames, of which no
    order is rare. The shuffles are the same in every call: the same scores give the same answer.
    """
    if len(scores) < 2 or np.ptp(scores) == 0:
        return 1.0
    rng = np.random.default_rng(0)
    shuffled = rng.permuted(np.tile(scores, (_SHUFFLES, 1)), axis=1)
    found = float(_contrast(scores[None])[0])
    as_strong = int((_contrast(shuffled) >= found * (1 - 1e-9)).sum())
    return (1 + as_strong) / (1 + _SHUFFLES)


def _contrast(scores: FloatArray) -> FloatArray:
    """(B, T) -> (B,): of all runs, the largest sum above the mean, over the deviation that its length lets expect."""
    n = scores.shape[1]
    total = np.cumsum(np.pad(scores - scores.mean(1, keepdims=True), ((0, 0), (1, 0))), axis=1)
    best = np.full(len(scores), -np.inf)
    for length in range(1, n):
        gain = (total[:, length:] - total[:, :-length]).max(1)
        best = np.maximum(best, gain / np.sqrt(length * (n - length)))
    return best


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
