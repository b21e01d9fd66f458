"""Raw boxes -> xyxy fractions, checked: what is impossible is an error, what is repaired is noted and counted.

- not four finite numbers, or a corner left of / above the other: RecordError, with the row;
- pixels where fractions are expected, fractions where pixels are, or both in one record: RecordError that says so;
- more than half of the boxes wholly outside the frame: RecordError (boxes of another resolution?);
- a box that reaches outside the frame: clipped, note "box-outside";
- a box without area: kept, note "box-empty".

VidOR calls right and bottom pixels inclusive; like every peer, coordinates are taken as edges, nothing is added.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from tubelet.datasets.fields import Item, check_number, show
from tubelet.datasets.record import FloatArray, Unit

Layout = Literal["xyxy", "xywh"]
_NUMBER = (int, float)


def box_rows(item: Item, key: str, rows: list[Any], layout: Layout) -> FloatArray:
    """(N, 4) xyxy floats of N raw rows in `layout`; RecordError names the first row that is no box."""
    for k, row in enumerate(rows):
        if type(row) is not list or len(row) != 4:
            raise item.error(f"{key}[{k}]", f"expected a box of four numbers ({layout}), got {show(row)}")
        for j, value in enumerate(row):
            if type(value) not in _NUMBER or not -1e9 < value < 1e9:  # the slow check words the error
                check_number(value, item, f"{key}[{k}][{j}]", -1e9, 1e9)
    boxes = np.array(rows, dtype=np.float64).reshape(-1, 4)
    if layout == "xywh":
        boxes[:, 2:] += boxes[:, :2]
    wrong = np.nonzero((boxes[:, 2:] < boxes[:, :2]).any(axis=1))[0]
    if len(wrong):
        reason = "width and height at or above 0" if layout == "xywh" else "x0 <= x1 and y0 <= y1"
        raise item.error(f"{key}[{wrong[0]}]", f"expected {reason}, got {show(rows[wrong[0]])}")
    return boxes


def from_pixels(
    item: Item, key: str, boxes_px: FloatArray, width: int | None, height: int | None
) -> tuple[FloatArray, Unit, list[str]]:
    """Pixel boxes as fractions (unit "fraction"), or as they are (unit "pixel") where the size is not known."""
    if len(boxes_px) == 0:
        return boxes_px, "fraction", []
    small = (boxes_px.max(axis=1) <= 1.0) & (boxes_px != np.round(boxes_px)).any(axis=1)
    if small.any():
        row = int(np.nonzero(small)[0][0])
        what = "look like fractions" if small.all() else "mix fractions and pixels"
        raise item.error(
            f"{key}[{row}]",
            f"boxes {what}: expected pixels, got {boxes_px[row].tolist()} among {len(boxes_px)}",
        )
    if width is None or height is None:
        return boxes_px, "pixel", _empty(boxes_px)
    scale = np.array([width, height, width, height], dtype=np.float64)
    size = f"{width} x {height} frame"
    fractions, notes = _clip(item, key, boxes_px / scale, size)
    return fractions, "fraction", notes


def from_fractions(item: Item, key: str, boxes: FloatArray) -> tuple[FloatArray, list[str]]:
    """Boxes that the source gives as fractions, clipped to [0, 1]."""
    if len(boxes) == 0:
        return boxes, []
    large = boxes.max(axis=1) > 1.5
    if large.any():
        row = int(np.nonzero(large)[0][0])
        what = "look like pixels" if large.all() else "mix fractions and pixels"
        raise item.error(
            f"{key}[{row}]", f"boxes {what}: expected fractions, got {boxes[row].tolist()} among {len(boxes)}"
        )
    return _clip(item, key, boxes, "frame")


def _clip(item: Item, key: str, boxes: FloatArray, frame: str) -> tuple[FloatArray, list[str]]:
    clipped = np.clip(boxes, 0.0, 1.0)
    over = np.abs(boxes - clipped).max(axis=1)
    outside = over > 1e-9
    gone = (boxes[:, :2] >= 1).any(axis=1) | (boxes[:, 2:] <= 0).any(axis=1)
    gone &= outside
    if 2 * gone.sum() > len(boxes):
        row = int(np.nonzero(gone)[0][0])
        reason = (
            f"{int(gone.sum())} of {len(boxes)} boxes lie wholly outside the {frame}: of another resolution?"
        )
        raise item.error(f"{key}[{row}]", reason)
    notes = []
    if outside.any():
        notes.append(
            f"box-outside: {int(outside.sum())} of {len(boxes)} boxes reach outside the {frame} "
            f"(by up to {100 * over.max():.1f} % of a side) and are clipped"
        )
    return clipped, notes + _empty(clipped)


def _empty(boxes: FloatArray) -> list[str]:
    empty = int((boxes[:, 2:] <= boxes[:, :2]).any(axis=1).sum())
    return [f"box-empty: {empty} of {len(boxes)} boxes have no area"] if empty else []
