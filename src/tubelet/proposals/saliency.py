"""What stands out in a run of frames: each pixel's distance from the background, in units of its noise.

Two cues, both without weights:
- colour: the background is what most of the picture looks like. A robust Gaussian of all colours finds a first
  guess; then a smooth picture of the background is laid under the objects (a weighted average of the background
  around them), and each pixel is compared with it. Finds things that stand still, on plain or softly textured ground.
- motion: the background is what stays when the camera's movement (a translation, found by phase correlation) is
  taken out: the median over time at each place. Finds things that move, on any ground.

`auto` takes colour, and motion where the colours are too many to say what is background.

Shapes: T frames of (H, W), pixels uint8 RGB (T, H, W, 3) -> distance float32 (T, H, W).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage  # type: ignore[import-untyped]

Array = npt.NDArray[np.float32]

CUES = ("auto", "colour", "motion")

_CELL = 4  # the background picture is smooth: kept at one value per so many pixels
_SMOOTH = 1 / 14  # its smoothness, as a fraction of the short side
_FLOOR = np.array([0.012, 0.008, 0.008], dtype=np.float32)  # noise of 8-bit video, never assumed smaller
_CLUTTER = 0.45  # with more of the picture than this standing out, it is the ground that stands out
_ROUGH = 0.12  # nor is a background smooth whose light strays this much from its smooth picture
_NEAR = 3.0  # distance up to which a cell is taken for background
_INSIDE = 6.0  # distance from which it is certainly not


def distances(pixels: npt.NDArray[np.uint8], cue: str = "auto") -> tuple[Array, Array, str]:
    """(distance (T, H, W), opponent colours (T, H, W, 3), the cue that was used: colour or motion)."""
    colours = opponent(pixels)
    if cue != "motion":
        distance, noise = _colour_distance(colours)
        plain = float((distance > _INSIDE).mean()) < _CLUTTER and noise < _ROUGH
        if cue == "colour" or plain:
            return distance, colours, "colour"
    return _motion_distance(colours), colours, "motion"


def opponent(pixels: npt.NDArray[np.uint8]) -> Array:
    """Light, red against blue, green against both: (T, H, W, 3), light evened out over the frames, noise reduced."""
    rgb = pixels.astype(np.float32) / 255
    light = rgb.mean(axis=-1)
    level = np.median(light.reshape(len(rgb), -1)[:, ::3], axis=1)
    gain = np.median(level) / np.clip(level, 0.02, None)  # a lamp that goes out dims everything alike
    red, green, blue = (rgb[..., k] * gain[:, None, None].astype(np.float32) for k in range(3))
    planes = (light * gain[:, None, None].astype(np.float32), red - blue, green - (red + blue) / 2)
    smooth = [ndimage.gaussian_filter(p, (0, 0.6, 0.6), truncate=2.0) for p in planes]
    return np.stack(smooth, axis=-1).astype(np.float32)


def _colour_distance(colours: Array) -> tuple[Array, float]:
    """Distance from the smooth background, and how far the background itself lies from being smooth (light)."""
    cells = _shrink(colours, _CELL)
    centre, spread = _usual(cells.reshape(-1, 3))
    weight = (np.abs((cells - centre) / spread).max(axis=-1) < _NEAR).astype(np.float32)
    sigma = max(0.7, min(colours.shape[1:3]) * _SMOOTH / _CELL)
    ground = cells
    for _ in range(4):
        ground = _under(cells, weight, centre, sigma)
        rest = cells - ground
        noise = _noise(rest[weight > 0]) if (weight > 0).any() else _FLOOR
        weight = (np.abs(rest / noise).max(axis=-1) < _NEAR).astype(np.float32)
    rest = colours - _grow(ground, colours.shape[1], colours.shape[2])
    calm = _grow(weight[..., None], colours.shape[1], colours.shape[2])[..., 0] > 0.99
    noise = _noise(rest[calm][::3]) if calm.any() else _FLOOR
    scaled = rest / noise
    return np.sqrt((scaled * scaled).sum(axis=-1)), float(noise[0])


def _usual(values: Array) -> tuple[Array, Array]:
    """Centre and spread (standard deviations) of the most common colours: the closer 60 %, again and again."""
    centre = np.median(values, axis=0)
    spread = np.maximum(1.4826 * np.median(np.abs(values - centre), axis=0), 2 * _FLOOR)
    for _ in range(4):
        far = (((values - centre) / spread) ** 2).sum(axis=1)
        near = values[far <= np.partition(far, int(0.6 * (len(far) - 1)))[int(0.6 * (len(far) - 1))]]
        centre = near.mean(axis=0)
        # the closer 60 % of a Gaussian in three dimensions have 0.66 of its standard deviation
        spread = np.maximum(near.std(axis=0) / 0.66, 2 * _FLOOR)
    return centre.astype(np.float32), spread.astype(np.float32)


def _under(cells: Array, weight: Array, centre: Array, sigma: float) -> Array:
    """The smooth picture of the background: weighted averages, near ones first, far ones where none is near."""
    ground = np.broadcast_to(centre, cells.shape).astype(np.float32)
    for scale in (4.0, 1.0):
        total = ndimage.gaussian_filter(weight, (0, scale * sigma, scale * sigma), truncate=3.0)
        part = ndimage.gaussian_filter(
            cells * weight[..., None], (0, scale * sigma, scale * sigma, 0), truncate=3.0
        )
        trust = 0.03
        ground = (part + trust * ground) / (total + trust)[..., None]
    return ground


def _noise(rest: Array) -> Array:
    return np.maximum(1.4826 * np.median(np.abs(rest), axis=0), _FLOOR).astype(np.float32)


def _motion_distance(colours: Array) -> Array:
    shifts = camera_shifts(colours[..., 0])
    n = len(colours)
    steady = np.stack([_moved(frame, -dy, -dx) for frame, (dy, dx) in zip(colours, shifts, strict=True)])
    with np.errstate(all="ignore"):
        ground = np.nanmedian(steady[:: max(1, n // 32)], axis=0)
    ground = np.where(np.isnan(ground), np.nanmedian(ground, axis=(0, 1)), ground)
    rest = np.empty_like(colours)
    for t, (dy, dx) in enumerate(shifts):
        back = _moved(ground, dy, dx)
        rest[t] = colours[t] - np.where(np.isnan(back), colours[t], back)  # newly seen ground is no object
    noise = _noise(rest.reshape(-1, 3)[::7])
    scaled = rest / (1.5 * noise)  # edges are never aligned exactly
    distance = np.sqrt((scaled * scaled).sum(axis=-1))
    smooth: Array = ndimage.gaussian_filter(distance, (0, 0.7, 0.7), truncate=2.0)
    return smooth


def camera_shifts(light: Array) -> npt.NDArray[np.int64]:
    """(T, 2) whole pixels (down, right) by which each frame's ground lies off the first frame's: phase correlation."""
    n, height, width = light.shape
    window = np.outer(np.hanning(height), np.hanning(width)).astype(np.float32)
    limit_y, limit_x = max(1, height // 6), max(1, width // 6)
    shifts = np.zeros((n, 2), dtype=np.int64)
    before: Any = None
    for t in range(n):
        spectrum = np.fft.rfft2((light[t] - light[t].mean()) * window)
        if before is not None:
            cross = spectrum * np.conj(before)
            peak = np.fft.irfft2(cross / np.maximum(np.abs(cross), 1e-6), (height, width))
            peak = np.fft.fftshift(peak)
            y0, x0 = height // 2, width // 2
            near = peak[y0 - limit_y : y0 + limit_y + 1, x0 - limit_x : x0 + limit_x + 1]
            # a big moving thing has a peak of its own: the ground is what fits most pixels
            tries = [(0, 0)]
            peaks = np.argpartition(-near.ravel(), min(5, near.size - 1))[:5].tolist()
            tries += [(flat // near.shape[1] - limit_y, flat % near.shape[1] - limit_x) for flat in peaks]
            misfits = [
                float(np.nanmedian(np.abs(light[t] - _moved(light[t - 1], dy, dx)))) for dy, dx in tries
            ]
            shifts[t] = shifts[t - 1] + tries[int(np.argmin(misfits))]
        before = spectrum
    return shifts


def _moved(picture: Array, dy: int, dx: int) -> Array:
    """The picture moved down and right by whole pixels; NaN where nothing is known."""
    height, width = picture.shape[:2]
    out = np.full_like(picture, np.nan)
    if abs(dy) >= height or abs(dx) >= width:
        return out
    out[max(0, dy) : height + min(0, dy), max(0, dx) : width + min(0, dx)] = picture[
        max(0, -dy) : height + min(0, -dy), max(0, -dx) : width + min(0, -dx)
    ]
    return out


def _shrink(x: Array, k: int) -> Array:
    """Means of k x k pixels; the border cells repeat the last pixels."""
    pad = [(0, 0), (0, -x.shape[1] % k), (0, -x.shape[2] % k), (0, 0)]
    x = np.pad(x, pad, mode="edge")
    n, height, width, channels = x.shape
    cells: Array = x.reshape(n, height // k, k, width // k, k, channels).mean(axis=(2, 4))
    return cells


def _grow(x: Array, height: int, width: int) -> Array:
    """The inverse of `_shrink`, linear between the cells' centres."""
    rows, columns = _between(height, x.shape[1]), _between(width, x.shape[2])
    x = x[:, rows[0]] * (1 - rows[2])[:, None, None] + x[:, rows[1]] * rows[2][:, None, None]
    grown: Array = x[:, :, columns[0]] * (1 - columns[2])[:, None] + x[:, :, columns[1]] * columns[2][:, None]
    return grown


def _between(size: int, cells: int) -> tuple[Any, Any, Array]:
    at = np.clip((np.arange(size) + 0.5) / _CELL - 0.5, 0, cells - 1)
    low = np.floor(at).astype(np.int64)
    return low, np.minimum(low + 1, cells - 1), (at - low).astype(np.float32)
