"""From a map to one score per track and frame (paper, equation 2).

Shapes: P tracks, T steps of time, h x w cells. A weight says how much of a cell a track is.

The published weights resize masks bilinearly without antialiasing: few pixels per cell are looked at, and small things
vanish. Ours are areas: of the part that cell and thing share, over the smaller of the two, so that a thing inside one
cell has its full weight.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tubelet.errors import DataError

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]


def box_weights(boxes_xyxy: FloatArray, visible: BoolArray, grid: tuple[int, int]) -> FloatArray:
    """Boxes (P, T, 4) fractions and visible (P, T) -> (P, T, h, w), exact areas; 0 where not visible."""
    rows, columns = grid
    x = _shared(boxes_xyxy[..., 0], boxes_xyxy[..., 2], columns)  # (P, T, w)
    y = _shared(boxes_xyxy[..., 1], boxes_xyxy[..., 3], rows)
    area = (boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]).clip(0).prod(-1)
    smaller = np.minimum(area, 1 / (rows * columns))[..., None, None]
    weights = y[..., :, None] * x[..., None, :] / np.maximum(smaller, 1e-12)
    out: FloatArray = np.where(visible[..., None, None], np.minimum(weights, 1.0), 0.0)
    return out


def _shared(low: FloatArray, high: FloatArray, cells: int) -> FloatArray:
    edges = np.arange(cells + 1) / cells
    shared: FloatArray = np.minimum(high[..., None], edges[1:]) - np.maximum(low[..., None], edges[:-1])
    return shared.clip(0)


def mask_weights(masks: BoolArray, grid: tuple[int, int]) -> FloatArray:
    """Masks (P, T, H, W) -> (P, T, h, w), exact areas. Only the pixels around each mask are looked at."""
    rows, columns = grid
    height, width = masks.shape[-2:]
    along_y, along_x = _overlap(height, rows), _overlap(width, columns)
    area = np.zeros((*masks.shape[:2], rows, columns))  # in pixels
    count = np.zeros(masks.shape[:2])
    for at in np.ndindex(*masks.shape[:2]):
        around = _around(masks[at])
        if around is not None:
            piece = masks[at][around].astype(np.float64)
            area[at] = along_y[:, around[0]] @ piece @ along_x[:, around[1]].T
            count[at] = piece.sum()
    smaller = np.minimum(count, height * width / (rows * columns))
    out: FloatArray = np.minimum(area / np.maximum(smaller, 1e-12)[..., None, None], 1.0)
    return out


def _around(mask: BoolArray) -> tuple[slice, slice] | None:
    """Rows and columns of the smallest rectangle that holds a mask (H, W); None when it is empty."""
    rows = np.flatnonzero(mask.any(1))
    if not len(rows):
        return None
    band = slice(int(rows[0]), int(rows[-1]) + 1)
    columns = np.flatnonzero(mask[band].any(0))
    return band, slice(int(columns[0]), int(columns[-1]) + 1)


def _overlap(pixels: int, cells: int) -> FloatArray:
    """(cells, pixels): how much of each pixel lies in each cell."""
    at = np.arange(pixels)
    edges = np.arange(cells + 1) * pixels / cells
    shared: FloatArray = np.minimum(at + 1, edges[1:, None]) - np.maximum(at, edges[:-1, None])
    return shared.clip(0)


def bilinear_weights(masks: BoolArray, grid: tuple[int, int]) -> FloatArray:
    """Masks (P, T, H, W) -> (P, T, h, w) as published: bilinear, half-pixel centres, no antialiasing."""
    return _resize(masks, grid)


def track_scores(relative_map: FloatArray, weights: FloatArray) -> FloatArray:
    """(P,): the largest weighted value over all frames and cells; the first best track wins."""
    if weights.shape[1:] != relative_map.shape:
        raise DataError(f"weights {weights.shape} do not fit a map of {relative_map.shape}")
    out: FloatArray = (weights * relative_map).max((1, 2, 3), initial=0.0)
    return out


def frame_scores(relative_map: FloatArray, weights: FloatArray) -> FloatArray:
    """(P, T): the largest weighted value in each frame."""
    out: FloatArray = (weights * relative_map).max((2, 3))
    return out


def pixel_frame_scores(relative_map: FloatArray, masks: BoolArray) -> FloatArray:
    """(P, T) as published: the map is brought to the masks' size bilinearly and meets full-size masks (P, T, H, W).

    Pixels outside of a mask count as 0, and are not computed.
    """
    height, width = masks.shape[-2:]
    out = np.zeros(masks.shape[:2])
    for row, step in np.ndindex(*masks.shape[:2]):
        mask = masks[row, step]
        around = _around(mask)
        if around is not None:
            large = _resize(relative_map[step], (height, width), around)
            inside = float(large[mask[around]].max())
            out[row, step] = inside if mask.all() else max(inside, 0.0)
    return out


def _resize(
    values: FloatArray | BoolArray,
    size: tuple[int, int],
    piece: tuple[slice, slice] = (slice(None), slice(None)),
) -> FloatArray:
    """Bilinear on the last two axes, half-pixel centres, edges repeated, no antialiasing; of the result the piece."""
    for axis, n, part in ((-2, size[0], piece[0]), (-1, size[1], piece[1])):
        old = values.shape[axis]
        at = np.clip((np.arange(n)[part] + 0.5) * old / n - 0.5, 0, None)
        low = np.minimum(at.astype(np.int64), old - 1)
        high = np.minimum(low + 1, old - 1)
        shape = [1] * values.ndim
        shape[axis] = len(at)
        share = (at - low).reshape(shape)
        values = values.take(low, axis) * (1 - share) + values.take(high, axis) * share
    return np.asarray(values, dtype=np.float64)
