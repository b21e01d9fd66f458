"""Percentile bootstrap intervals of means, vectorised."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over n queries with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float
    n: int

    def to_dict(self) -> dict[str, float | int]:
        return {
            "mean": round(self.mean, 4),
            "low": round(self.low, 4),
            "high": round(self.high, 4),
            "n": self.n,
        }

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def bootstrap_means(values: npt.ArrayLike, resamples: int = 1000, seed: int = 0) -> npt.NDArray[np.float64]:
    """Means (resamples,) of that many redraws, with replacement, of (n,) values; n >= 1."""
    sample = np.asarray(values, dtype=np.float64)
    n = len(sample)
    rng = np.random.default_rng(seed)
    means = np.empty(resamples)
    chunk = max(1, 2_000_000 // n)  # bounds memory to a few tens of megabytes
    for lo in range(0, resamples, chunk):
        rows = min(chunk, resamples - lo)
        means[lo : lo + rows] = sample[rng.integers(0, n, size=(rows, n), dtype=np.int32)].mean(axis=1)
    return means


def bootstrap_mean(values: npt.ArrayLike, resamples: int = 1000, seed: int = 0) -> Interval:
    """Mean of (n,) values and the 2.5 and 97.5 percentiles of the redrawn means; NaN for no values."""
    sample = np.asarray(values, dtype=np.float64)
    if len(sample) == 0:
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    low, high = np.quantile(bootstrap_means(sample, resamples, seed), [0.025, 0.975])
    return Interval(float(sample.mean()), float(low), float(high), len(sample))
