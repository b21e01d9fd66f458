"""Expected calibration error (Guo et al. 2017): bins of equal width, the gap of each weighted by its count."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tubelet.errors import DataError


def ece(confidence: npt.ArrayLike, right: npt.ArrayLike, bins: int = 10) -> float:
    """ECE of (n,) confidences in [0, 1] against (n,) outcomes in [0, 1]; NaN for n = 0. DataError otherwise."""
    said, was = np.asarray(confidence, dtype=np.float64), np.asarray(right, dtype=np.float64)
    if said.ndim != 1 or said.shape != was.shape or bins < 1:
        raise DataError(f"expected (n,) confidences and outcomes, got {said.shape} and {was.shape}")
    if not ((said >= 0) & (said <= 1) & (was >= 0) & (was <= 1)).all():
        raise DataError("confidences and outcomes lie in [0, 1]")
    if not len(said):
        return float("nan")
    row = np.minimum((said * bins).astype(np.int64), bins - 1)
    return float(np.abs(np.bincount(row, weights=said - was, minlength=bins)).sum() / len(said))
