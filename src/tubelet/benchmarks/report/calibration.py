"""Does a confidence mean what it says: reliability per bin, and the expected calibration error (Guo et al. 2017).

Confidences are put in bins of equal width; the ECE weighs each bin's gap, mean confidence minus share that was
right, by its count. Pure functions on arrays.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tubelet.errors import DataError

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Bin:
    """Queries whose confidence lies in [lo, hi): their count, mean confidence and share that was right.

    right_low, right_high: 95 % Wilson interval of that share.
    """

    lo: float
    hi: float
    n: int
    said: float
    right: float
    right_low: float
    right_high: float


def ece(confidence: npt.ArrayLike, right: npt.ArrayLike, bins: int = 10) -> float:
    """ECE of (n,) confidences in [0, 1] against (n,) outcomes in [0, 1]; NaN for n = 0. DataError otherwise."""
    said, was, row = _binned(confidence, right, bins)
    if not len(said):
        return float("nan")
    return float(np.abs(np.bincount(row, weights=said - was, minlength=bins)).sum() / len(said))


def reliability(confidence: npt.ArrayLike, right: npt.ArrayLike, bins: int = 10) -> tuple[Bin, ...]:
    """The bins that hold anything, in order; the last one includes 1. Raises as `ece`."""
    said, was, row = _binned(confidence, right, bins)
    out = []
    for k in range(bins):
        inside = row == k
        n = int(inside.sum())
        if n:
            share = float(was[inside].mean())
            out.append(Bin(k / bins, (k + 1) / bins, n, float(said[inside].mean()), share, *wilson(share, n)))
    return tuple(out)


def wilson(share: float, n: int, z: float = 1.959964) -> tuple[float, float]:
    """95 % interval of a share of n >= 1 (Wilson 1927): holds for few queries, and for 0 and 1."""
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def _binned(
    confidence: npt.ArrayLike, right: npt.ArrayLike, bins: int
) -> tuple[FloatArray, FloatArray, npt.NDArray[np.int64]]:
    said, was = np.asarray(confidence, dtype=np.float64), np.asarray(right, dtype=np.float64)
    if said.ndim != 1 or said.shape != was.shape or bins < 1:
        raise DataError(f"expected (n,) confidences and outcomes, got {said.shape} and {was.shape}")
    if not ((said >= 0) & (said <= 1) & (was >= 0) & (was <= 1)).all():
        raise DataError("confidences and outcomes lie in [0, 1]")
    return said, was, np.minimum((said * bins).astype(np.int64), bins - 1)
