"""IoU of boxes and of spans: the two formulas under every metric, over arrays.

Boxes are xyxy and need not be ordered: areas are signed, so a box with one reversed side has a negative area and
an IoU of 0, as in the public evaluators. Nothing here clips, sorts or repairs.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


def box_area(boxes: npt.ArrayLike) -> FloatArray:
    """Signed areas of xyxy boxes (..., 4) -> (...)."""
    b = np.asarray(boxes, dtype=np.float64)
    area: FloatArray = (b[..., 2] - b[..., 0]) * (b[..., 3] - b[..., 1])
    return area


def shared_area(a: npt.ArrayLike, b: npt.ArrayLike) -> FloatArray:
    """Area of the overlap of boxes row by row (broadcasting): (..., 4), (..., 4) -> (...)."""
    p, q = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    width = np.minimum(p[..., 2], q[..., 2]) - np.maximum(p[..., 0], q[..., 0])
    height = np.minimum(p[..., 3], q[..., 3]) - np.maximum(p[..., 1], q[..., 1])
    area: FloatArray = np.maximum(width, 0) * np.maximum(height, 0)
    return area


def paired_iou(a: npt.ArrayLike, b: npt.ArrayLike) -> FloatArray:
    """IoU of xyxy boxes row by row: (N, 4), (N, 4) -> (N,). Rows with NaN, and two empty boxes, give 0."""
    shared = shared_area(a, b)
    union = box_area(a) + box_area(b) - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def pairwise_iou(a: npt.ArrayLike, b: npt.ArrayLike) -> FloatArray:
    """IoU of every box of (P, 4) with every box of (G, 4) -> (P, G)."""
    p, q = np.asarray(a, dtype=np.float64)[:, None], np.asarray(b, dtype=np.float64)[None]
    return paired_iou(p, q)


def xywh_to_xyxy(boxes: npt.ArrayLike) -> FloatArray:
    b = np.asarray(boxes, dtype=np.float64)
    return np.concatenate([b[..., :2], b[..., :2] + b[..., 2:]], axis=-1)


def span_iou(a: npt.ArrayLike, b: npt.ArrayLike, inclusive: bool = False) -> FloatArray:
    """tIoU of spans row by row (broadcasting): (..., 2), (..., 2) -> (...).

    Overlap over hull, which is overlap over union whenever the spans overlap. `inclusive` counts the last frame
    of both. NaN, reversed and empty spans, and two points, give 0.
    """
    p, q = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    extra = 1.0 if inclusive else 0.0
    overlap = np.minimum(p[..., 1], q[..., 1]) - np.maximum(p[..., 0], q[..., 0]) + extra
    hull = np.maximum(p[..., 1], q[..., 1]) - np.minimum(p[..., 0], q[..., 0]) + extra
    out: FloatArray = np.divide(overlap, hull, out=np.zeros_like(overlap), where=(overlap > 0) & (hull > 0))
    return out
