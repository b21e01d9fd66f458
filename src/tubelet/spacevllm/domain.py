"""Does a video look like what a small model was trained on?

A pico model answers any video, and its answer on real footage is meaningless: it must say so. The check is a
plain
one: a Gaussian over simple picture statistics of the training pictures, and the distance that 99 % of them
stay below. It knows nothing of sentences, and a strange toy video may pass; real footage rarely does
(measured in docs/results.md).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tubelet.errors import ModelError
from tubelet.model_folder import first_line, read_json

FILE = "domain.json"
N_STATISTICS = 12


@dataclass(frozen=True, slots=True)
class Domain:
    """mean (F,), precision (F, F) of the statistics; limit: largest Mahalanobis distance taken as known."""

    mean: tuple[float, ...]
    precision: tuple[tuple[float, ...], ...]
    limit: float


def statistics(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """(F,) numbers that tell flat shapes on a smooth ground from photographs: pixels (T, S, S, 3) uint8."""
    p = pixels.astype(np.float64) / 255
    grey = p.mean(-1)
    dx, dy = np.abs(np.diff(grey, axis=2)), np.abs(np.diff(grey, axis=1))
    saturation = p.max(-1) - p.min(-1)
    edges = np.quantile(np.concatenate([dx.ravel(), dy.ravel()]), [0.5, 0.75, 0.9, 0.97])
    return np.array(
        [
            *np.log(edges + 0.004),
            grey.std(axis=(1, 2)).mean(),
            saturation.mean(),
            np.quantile(saturation, 0.9),
            (saturation > 0.45).mean(),
            np.median(saturation),
            *np.median(p, axis=(0, 1, 2)),
        ]
    )


def fit_domain(rows: npt.NDArray[np.float64]) -> Domain:
    """From statistics (N, F) of N training clips."""
    mean = rows.mean(0)
    covariance = np.cov(rows.T) + 1e-6 * np.eye(rows.shape[1])
    precision = np.linalg.inv(covariance).astype(np.float64)
    limit = float(np.quantile([_distance(row, mean, precision) for row in rows], 0.99))
    return Domain(tuple(mean.tolist()), tuple(map(tuple, precision.tolist())), limit)


def domain_note(
    domain: Domain,
    pixels: npt.NDArray[np.uint8],
    name: str,
    instead: str = "--model path/to/a/SpaceVLLM/folder",
) -> str | None:
    """One sentence when the clip does not look like the training data, else None. instead: what to load then."""
    far = _distance(statistics(pixels), np.array(domain.mean), np.array(domain.precision))
    if far <= domain.limit:
        return None
    return (
        f"this model knows only {name or 'its training data'}, and this video does not look like it: "
        f"do not trust the answer. For real footage load a full-size model, for example {instead}"
    )


def _distance(
    row: npt.NDArray[np.float64], mean: npt.NDArray[np.float64], precision: npt.NDArray[np.float64]
) -> float:
    return float(np.sqrt(max(0.0, float((row - mean) @ precision @ (row - mean)))))


def save_domain(domain: Domain, folder: Path) -> None:
    data = {
        "mean": [round(v, 6) for v in domain.mean],
        "precision": [[round(v, 4) for v in row] for row in domain.precision],
        "limit": round(domain.limit, 4),
    }
    (folder / FILE).write_text(json.dumps(data) + "\n")


def load_domain(folder: Path) -> Domain | None:
    """The domain of a model folder, None when it has none; ModelError when the file is damaged."""
    path = folder / FILE
    if not path.is_file():
        return None
    data = read_json(path)
    try:
        mean, precision = np.array(data["mean"], dtype=float), np.array(data["precision"], dtype=float)
        limit = float(data["limit"])
    except (KeyError, TypeError, ValueError) as error:
        raise _broken(path, f"{type(error).__name__}: {first_line(error)}") from error
    if mean.shape != (N_STATISTICS,) or precision.shape != (N_STATISTICS, N_STATISTICS):
        raise _broken(path, f"shapes {mean.shape} and {precision.shape}")
    if not (np.isfinite(mean).all() and np.isfinite(precision).all() and np.isfinite(limit)):
        raise _broken(path, "numbers that are not finite")
    return Domain(tuple(mean.tolist()), tuple(map(tuple, precision.tolist())), limit)


def _broken(path: Path, found: str) -> ModelError:
    return ModelError(
        f"{path} must hold mean ({N_STATISTICS} numbers), precision ({N_STATISTICS} x {N_STATISTICS}) and limit, got "
        f"{found}: copy or download the folder again"
    )
