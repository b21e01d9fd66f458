"""Percentile bootstrap intervals of means and of paired differences, vectorised.

Queries are redrawn with replacement; several metrics of the same queries share the same draws, so the intervals of
a whole table cost about as much as one. Undefined values (NaN) leave the mean of the draw they are in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tubelet.errors import DataError


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
    """Means (resamples,) of that many redraws, with replacement, of (n,) values; n >= 1.

    (n, k) values give (resamples, k) means, every column redrawn alike. NaN where a redraw holds no defined value.
    """
    sample = np.asarray(values, dtype=np.float64)
    table = sample.reshape(len(sample), -1)
    defined = ~np.isnan(table)
    filled = np.where(defined, table, 0.0)
    n = len(table)
    rng = np.random.default_rng(seed)
    sums, counts = np.empty((resamples, table.shape[1])), np.empty((resamples, table.shape[1]))
    chunk = max(1, 2_000_000 // n)  # bounds memory to a few tens of megabytes
    for lo in range(0, resamples, chunk):
        k = min(chunk, resamples - lo)
        drawn = rng.integers(0, n, size=(k, n), dtype=np.int32) + np.arange(k, dtype=np.int64)[:, None] * n
        times_drawn = np.bincount(drawn.ravel(), minlength=k * n).reshape(k, n).astype(np.float64)
        sums[lo : lo + k] = times_drawn @ filled
        counts[lo : lo + k] = n if defined.all() else times_drawn @ defined
    means = np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)
    return means[:, 0] if sample.ndim == 1 else means


def bootstrap_table(
    columns: Mapping[str, npt.ArrayLike], resamples: int = 1000, seed: int = 0
) -> dict[str, Interval]:
    """The interval of every column (n,) of a table, one draw of queries for all of them. NaN values are skipped."""
    if not columns:
        return {}
    table = np.stack([np.asarray(v, dtype=np.float64) for v in columns.values()], axis=1)
    counts = (~np.isnan(table)).sum(axis=0)
    out = {name: Interval(float("nan"), float("nan"), float("nan"), 0) for name in columns}
    kept = [k for k, name in enumerate(columns) if counts[k]]
    if not kept:
        return out
    low, high = np.nanquantile(bootstrap_means(table[:, kept], resamples, seed), [0.025, 0.975], axis=0)
    names = list(columns)
    for j, k in enumerate(kept):
        mean = float(np.nanmean(table[:, k]))
        out[names[k]] = Interval(mean, float(low[j]), float(high[j]), int(counts[k]))
    return out


def bootstrap_mean(values: npt.ArrayLike, resamples: int = 1000, seed: int = 0) -> Interval:
    """Mean of (n,) values and the 2.5 and 97.5 percentiles of the redrawn means; NaN for no values."""
    return bootstrap_table({"": values}, resamples, seed)[""]


def paired_difference(a: npt.ArrayLike, b: npt.ArrayLike, resamples: int = 1000, seed: int = 0) -> Interval:
    """Interval of mean(a - b) over the same queries in the same order: the difference is redrawn, not the means."""
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape:
        raise DataError(
            f"a paired difference needs the same queries on both sides, got {first.shape} and {second.shape}"
        )
    return bootstrap_mean(first - second, resamples, seed)
