"""What every picture of tubelet is made of: colours, anti-aliased shapes on uint8 RGB arrays, whole files.

Contract: an image is a uint8 (H, W, 3) array that is changed in place. Shapes are given in pixel edges as
floats (a box from 0 to W covers the whole width), are anti-aliased, and are clipped to the picture. Only
pixels near a line are touched, so a frame costs what is drawn on it. Knows nothing of text, tubes or time.
"""

from __future__ import annotations

import math
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tubelet.errors import OutputError

RGB = tuple[int, int, int]
Pixels = npt.NDArray[np.uint8]

PALETTE: tuple[RGB, ...] = (
    (255, 159, 28),
    (86, 180, 233),
    (0, 178, 124),
    (240, 228, 66),
    (222, 121, 178),
    (232, 93, 44),
    (64, 132, 214),
)
"""Colours of tubes: after Okabe and Ito, told apart with any colour vision, brightened to stand on video."""

WHITE: RGB = (255, 255, 255)
INK: RGB = (17, 20, 25)
_OUTLINE_OPACITY = 0.62


def ink_on(colour: RGB) -> RGB:
    """Black or white: whichever is read better on this colour (WCAG relative luminance)."""
    linear = [(c / 255 / 12.92) if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return INK if (luminance + 0.05) ** 2 > 0.05 * 1.05 else WHITE


def mix(colour: RGB, other: RGB, share: float) -> RGB:
    """`colour` with this share of `other` in it."""
    r, g, b = (round(a * (1 - share) + c * share) for a, c in zip(colour, other, strict=True))
    return (r, g, b)


def blend(
    image: Pixels, x: int, y: int, coverage: Pixels, colour: RGB | Pixels, opacity: float = 1.0
) -> None:
    """Mix a colour, or a small picture (h, w, 3), into the image where `coverage` (h, w; 0-255) says.

    The top left corner of `coverage` lies at (x, y); what lies outside the image is left out.
    """
    x0, y0 = max(x, 0), max(y, 0)
    x1, y1 = min(x + coverage.shape[1], image.shape[1]), min(y + coverage.shape[0], image.shape[0])
    if x1 <= x0 or y1 <= y0:
        return
    part = (slice(y0 - y, y1 - y), slice(x0 - x, x1 - x))
    alpha = coverage[part].astype(np.uint16)
    if opacity < 1.0:
        alpha = (alpha * np.uint16(round(opacity * 256))) >> np.uint16(8)
    alpha = alpha[:, :, None]
    source = np.array(colour, np.uint16) if isinstance(colour, tuple) else colour[part].astype(np.uint16)
    region = image[y0:y1, x0:x1]
    mixed = region * (np.uint16(255) - alpha) + alpha * source + np.uint16(128)
    region[...] = (mixed + (mixed >> np.uint16(8))) >> np.uint16(8)  # exact division by 255


def _distance(
    x: tuple[int, int], y: tuple[int, int], box: tuple[float, float, float, float], radius: float
) -> npt.NDArray[np.float32]:
    """Signed distance in pixels from pixel centres to a rounded box's edge; negative inside."""
    x0, y0, x1, y1 = box
    px = np.arange(*x, dtype=np.float32) + np.float32(0.5)
    py = np.arange(*y, dtype=np.float32) + np.float32(0.5)
    qx = np.abs(px - np.float32((x0 + x1) / 2)) - np.float32((x1 - x0) / 2 - radius)
    qy = np.abs(py - np.float32((y0 + y1) / 2)) - np.float32((y1 - y0) / 2 - radius)
    outside = np.hypot(np.maximum(qx, 0)[None, :], np.maximum(qy, 0)[:, None])
    inside = np.minimum(np.maximum(qx[None, :], qy[:, None]), 0)
    distance: npt.NDArray[np.float32] = outside + inside - np.float32(radius)
    return distance


def _coverage(distance: npt.NDArray[np.float32]) -> Pixels:
    share = np.clip(np.float32(0.5) - distance, 0, 1)
    cover: Pixels = (share * np.float32(255) + np.float32(0.5)).astype(np.uint8)
    return cover


def fill_box(
    image: Pixels,
    box: tuple[float, float, float, float],
    colour: RGB,
    *,
    radius: float = 0.0,
    opacity: float = 1.0,
) -> None:
    """A filled box (x0, y0, x1, y1 in pixel edges) with round corners."""
    x0, y0, x1, y1 = box
    if x1 <= x0 or y1 <= y0:
        return
    height, width = image.shape[:2]
    xs = (max(math.floor(x0), 0), min(math.ceil(x1), width))
    ys = (max(math.floor(y0), 0), min(math.ceil(y1), height))
    if xs[1] <= xs[0] or ys[1] <= ys[0]:
        return
    radius = min(radius, (x1 - x0) / 2, (y1 - y0) / 2)
    if radius > 0.3:
        cover = _coverage(_distance(xs, ys, box, radius))
    else:  # exact area of every pixel, also for boxes thinner than one
        cx = np.clip(np.minimum(np.arange(*xs) + 1, x1) - np.maximum(np.arange(*xs), x0), 0, 1)
        cy = np.clip(np.minimum(np.arange(*ys) + 1, y1) - np.maximum(np.arange(*ys), y0), 0, 1)
        cover = np.rint(cy[:, None] * cx[None, :] * 255).astype(np.uint8)
    blend(image, xs[0], ys[0], cover, colour, opacity)


def _inside(
    box: tuple[float, float, float, float], width: int, height: int, edge: float
) -> tuple[float, ...]:
    """The box moved and grown so that a line of half-width `edge` around it can be seen whole."""
    out = []
    for lo, hi, size in ((box[0], box[2], width), (box[1], box[3], height)):
        edge_px = min(edge, size / 2)
        lo, hi = min(max(lo, edge_px), size - edge_px), min(max(hi, edge_px), size - edge_px)
        if hi - lo < 2.0:
            middle = min(max((lo + hi) / 2, edge_px + 1), max(size - edge_px - 1, edge_px + 1))
            lo, hi = middle - 1, middle + 1
        out.append((lo, hi))
    return out[0][0], out[1][0], out[0][1], out[1][1]


def outline_box(
    image: Pixels,
    box: tuple[float, float, float, float],
    colour: RGB,
    *,
    line_px: float,
    halo_px: float = 0.0,
    radius: float = 0.0,
) -> None:
    """A box line with a dark halo on both sides, kept inside the picture."""
    height, width = image.shape[:2]
    reach = line_px / 2 + halo_px
    x0, y0, x1, y1 = _inside(box, width, height, reach)
    radius = min(radius, (x1 - x0) / 2, (y1 - y0) / 2)
    band = math.ceil(
        reach + radius * 0.3 + 1
    )  # a round corner leaves its edge by (1 - sqrt(1/2)) of its radius
    left, right = max(math.floor(x0 - reach), 0), min(math.ceil(x1 + reach), width)
    top, bottom = max(math.floor(y0 - reach), 0), min(math.ceil(y1 + reach), height)
    upper, lower = min(math.floor(y0) + band, bottom), max(math.ceil(y1) - band, top)
    lower = max(lower, upper)
    inner, outer = min(math.floor(x0) + band, right), max(math.ceil(x1) - band, left)
    outer = max(outer, inner)
    strips = (
        ((left, right), (top, upper)),
        ((left, right), (lower, bottom)),
        ((left, inner), (upper, lower)),
        ((outer, right), (upper, lower)),
    )
    for xs, ys in strips:
        if xs[1] <= xs[0] or ys[1] <= ys[0]:
            continue
        distance = np.abs(_distance(xs, ys, (x0, y0, x1, y1), radius))
        if halo_px > 0:
            blend(image, xs[0], ys[0], _coverage(distance - np.float32(reach)), INK, _OUTLINE_OPACITY)
        blend(image, xs[0], ys[0], _coverage(distance - np.float32(line_px / 2)), colour)


def _ramp(lo: float, hi: float, first: int, last: int) -> npt.NDArray[np.float64]:
    """How much of each pixel first..last-1 lies in [lo, hi]."""
    at = np.arange(first, last)
    share: npt.NDArray[np.float64] = np.clip(np.minimum(at + 1, hi) - np.maximum(at, lo), 0, 1)
    return share


def dash_box(
    image: Pixels,
    box: tuple[float, float, float, float],
    colour: RGB,
    *,
    line_px: float,
    dash_px: float,
    halo_px: float = 0.0,
) -> None:
    """A dashed box line with a dark halo, solid at its corners, kept inside the picture."""
    height, width = image.shape[:2]
    line_px = max(1, round(line_px))  # on whole pixels: a thin line stays crisp and bright
    edge = line_px / 2
    x0, y0, x1, y1 = (round(at - edge) + edge for at in _inside(box, width, height, edge + halo_px))
    for grow, tint, opacity in ((halo_px, INK, _OUTLINE_OPACITY), (0.0, colour, 1.0)):
        if tint is INK and halo_px <= 0:
            continue
        half = edge + grow
        along_x = _dashes(x0 - edge, x1 + edge, dash_px, grow, width)
        along_y = _dashes(y0 - edge, y1 + edge, dash_px, grow, height)
        for y in (y0, y1):
            top = math.floor(y - half)
            cover = _ramp(y - half, y + half, top, math.ceil(y + half))[:, None] * along_x[None, :]
            blend(image, 0, top, np.rint(cover * 255).astype(np.uint8), tint, opacity)
        for x in (x0, x1):
            left = math.floor(x - half)
            cover = along_y[:, None] * _ramp(x - half, x + half, left, math.ceil(x + half))[None, :]
            blend(image, left, 0, np.rint(cover * 255).astype(np.uint8), tint, opacity)


def _dashes(lo: float, hi: float, dash_px: float, grow: float, size: int) -> npt.NDArray[np.float64]:
    """(size,) coverage of a dashed line from lo to hi that begins and ends with a dash."""
    n_gaps = max(0, round((hi - lo - dash_px) / (dash_px * 1.75)))
    period = (hi - lo - dash_px) / n_gaps if n_gaps else 0.0
    out = np.zeros(size)
    for i in range(n_gaps + 1):
        end = hi if n_gaps == 0 else lo + i * period + dash_px
        out = np.maximum(out, _ramp(lo + i * period - grow, end + grow, 0, size))
    return out


@contextmanager
def replacing(path: str | os.PathLike[str], suffixes: tuple[str, ...]) -> Iterator[Path]:
    """A temporary sibling to write to; it becomes `path` only if the block ends well, and is removed if not.

    Raises OutputError for a suffix not in `suffixes`, a missing folder, a folder in the way, and any OSError.
    """
    target = Path(path)
    if target.suffix.lower() not in suffixes:
        raise OutputError(f"expected a file name ending in {' or '.join(suffixes)}, got {target.name!r}")
    if target.is_dir():
        raise OutputError(f"expected a file to write, but {target} is a folder")
    if not target.parent.is_dir():
        raise OutputError(f"the folder {target.parent} does not exist: make it first")
    part = target.with_name(f".{target.stem[:60]}.{secrets.token_hex(4)}.part{target.suffix.lower()}")
    try:
        yield part
        part.replace(target)
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)
