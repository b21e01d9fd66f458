"""Regions: connected pixels that stand out, cut apart where their colours differ.

`find_regions` turns the distances of `proposals.saliency` into regions per frame; touching things of different
colours are separated by a small palette of the colours met in this run of frames. `share` cuts one region among
several expected boxes: touching things of the same colour.

Shapes: T frames of (H, W); boxes are in pixels (x0, y0, x1, y1).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage  # type: ignore[import-untyped]

from tubelet.proposals.saliency import Array

FloatArray = npt.NDArray[np.float64]

_PLANE = np.zeros((3, 3, 3), dtype=bool)
_PLANE[1] = True  # neighbours within a frame only
_EDGE_AT = 0.15  # a region ends where the distance falls below this part of its own: thin tips are kept
_SAME_COLOUR = 0.22  # colours closer than this are one palette entry
_SMALLEST_PART = 0.12  # parts below this fraction of a region are not cut off


@dataclass(frozen=True, slots=True, eq=False)
class Region:
    """One thing in one frame: box (4,) in pixels, its pixels within the box, colour (2,), contrast (distance)."""

    box: FloatArray
    mask: npt.NDArray[np.bool_]
    colour: FloatArray
    contrast: float

    @property
    def area(self) -> float:
        return float((self.box[2] - self.box[0]) * (self.box[3] - self.box[1]))


def find_regions(
    distance: Array, colours: Array, low: float, high: float, min_area: float
) -> list[list[Region]]:
    """Regions of every frame: pixels above `low` with a peak of at least `high` and at least `min_area` pixels."""
    tints = colours[..., 1:] / np.clip(colours[..., :1], 0.08, None)
    labels, _ = ndimage.label(distance > low, structure=_PLANE)
    found: list[list[Region]] = [[] for _ in distance]
    whole: list[tuple[int, tuple[slice, slice], npt.NDArray[np.bool_]]] = []
    for number, place in enumerate(ndimage.find_objects(labels), start=1):
        if place is None:
            continue
        t, window = place[0].start, (place[1], place[2])
        inside = labels[t][window] == number
        if inside.sum() < min_area:
            continue
        values = distance[t][window]
        strong = float(
            np.partition(values[inside], int(0.9 * (inside.sum() - 1)))[int(0.9 * (inside.sum() - 1))]
        )
        if strong < high:
            continue
        whole.append((t, window, inside & (values > max(low, _EDGE_AT * strong))))
    palette = _palette([tints[t][window][mask] for t, window, mask in whole if mask.any()])
    for t, window, mask in whole:
        for part in _cut(mask, tints[t][window], palette, min_area):
            region = _region(part, window, distance[t], tints[t], min_area)
            if region is not None:
                found[t].append(region)
    return found


def _palette(groups: list[Array]) -> FloatArray:
    """(K, 2) tints of which the regions are made, the most frequent first."""
    means = [np.median(group, axis=0) for group in groups]
    entries: list[list[float]] = []  # sum of tint, weight
    for mean, group in sorted(zip(means, groups, strict=True), key=lambda item: -len(item[1])):
        weight = float(len(group))
        for entry in entries:
            if np.hypot(entry[0] / entry[2] - mean[0], entry[1] / entry[2] - mean[1]) < _SAME_COLOUR:
                entry[0], entry[1], entry[2] = (
                    entry[0] + weight * mean[0],
                    entry[1] + weight * mean[1],
                    entry[2] + weight,
                )
                break
        else:
            entries.append([weight * float(mean[0]), weight * float(mean[1]), weight])
    entries.sort(key=lambda entry: -entry[2])
    total = sum(entry[2] for entry in entries)
    kept = [(e[0] / e[2], e[1] / e[2]) for e in entries[:10] if e[2] > 0.02 * total]
    return np.array(kept, dtype=np.float64).reshape(-1, 2)


def _cut(
    mask: npt.NDArray[np.bool_], tints: Array, palette: FloatArray, min_area: float
) -> list[npt.NDArray[np.bool_]]:
    """The parts of a region that differ in colour; the region itself when there are not two of them."""
    if len(palette) < 2:
        return [mask]
    smooth = ndimage.uniform_filter(tints, (3, 3, 1), mode="nearest")
    far = ((smooth[:, :, None, :] - palette) ** 2).sum(axis=-1)
    nearest = np.where(mask, far.argmin(axis=-1), -1)
    least = max(min_area, _SMALLEST_PART * mask.sum())
    seeds = np.zeros(mask.shape, dtype=np.int32)
    count = 0
    for k in range(len(palette)):
        # thin rims of mixed colours around a thing are no thing
        labels, n = ndimage.label(ndimage.binary_opening(nearest == k, np.ones((3, 3))))
        sizes = np.bincount(labels.ravel(), minlength=n + 1)
        for label in range(1, n + 1):
            if sizes[label] >= least:
                count += 1
                seeds[labels == label] = count
    if count < 2:
        return [mask]
    owner = ndimage.distance_transform_edt(seeds == 0, return_distances=False, return_indices=True)
    shared = np.where(mask, seeds[tuple(owner)], 0)
    return [shared == k for k in range(1, count + 1)]


def _region(
    mask: npt.NDArray[np.bool_], window: tuple[slice, slice], distance: Array, tints: Array, min_area: float
) -> Region | None:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if len(rows) == 0 or (rows[-1] + 1 - rows[0]) * (columns[-1] + 1 - columns[0]) < min_area:
        return None
    tight = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    y, x = window[0].start + int(rows[0]), window[1].start + int(columns[0])
    inner = (slice(y, y + tight.shape[0]), slice(x, x + tight.shape[1]))
    return Region(
        np.array([x, y, x + tight.shape[1], y + tight.shape[0]], dtype=np.float64),
        tight,
        np.median(tints[inner][tight], axis=0).astype(np.float64),
        float(np.median(distance[inner][tight])),
    )


def share(region: Region, expected: list[FloatArray]) -> list[Region | None]:
    """Give each pixel of a region to the nearest of the expected boxes: one region each, None where nothing is left.

    A pixel's distance to a box is measured from its centre in units of its half size, so a small box keeps to itself.
    """
    height, width = region.mask.shape
    ys = np.arange(height)[:, None] + region.box[1] + 0.5
    xs = np.arange(width)[None, :] + region.box[0] + 0.5
    far = []
    for box in expected:
        half_w, half_h = max(1.0, (box[2] - box[0]) / 2), max(1.0, (box[3] - box[1]) / 2)
        across, down = (xs - (box[0] + box[2]) / 2) / half_w, (ys - (box[1] + box[3]) / 2) / half_h
        far.append(np.maximum(np.abs(across), np.abs(down)))
    nearest = np.argmin(np.stack(far), axis=0)
    parts: list[Region | None] = []
    for k in range(len(expected)):
        mask = region.mask & (nearest == k)
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if len(rows) < 2 or len(columns) < 2:
            parts.append(None)
            continue
        x, y = region.box[0] + columns[0], region.box[1] + rows[0]
        tight = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        box = np.array([x, y, x + tight.shape[1], y + tight.shape[0]])
        parts.append(Region(box, tight, region.colour, region.contrast))
    return parts
