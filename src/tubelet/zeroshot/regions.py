"""What of every cell a track covers: tracks on the steps of a map as weights, by box or by mask.

    area       exact shared areas (ours): a thing inside one cell keeps that cell's full value
    bilinear   masks sampled without antialiasing, frame scores at the masks' own size (published)

Masks are used where `region` is "mask" and the track has one at that step, its box elsewhere. Masks are decoded one
track at a time, so 500 tracks need no more memory than one.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tubelet.proposals import Track, Tracks
from tubelet.proposals.rle import decode
from tubelet.zeroshot.scoring import (
    bilinear_weights,
    box_weights,
    frame_scores,
    mask_weights,
    pixel_frame_scores,
)
from tubelet.zeroshot.settings import ZeroShotSettings

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

_LONGEST_SIDE = 480  # pixels of a box that is drawn as a mask: boxes need no more


def track_weights(tracks: Tracks, cells: tuple[int, int], settings: ZeroShotSettings) -> FloatArray:
    """(P, T, h, w) of tracks that lie on the map's steps; cells: (h, w)."""
    out = np.zeros((len(tracks), len(tracks.grid), *cells))
    for row, track in enumerate(tracks):
        if settings.weights == "bilinear":
            out[row] = bilinear_weights(_as_masks(track, tracks, settings)[None], cells)[0]
            continue
        out[row] = box_weights(track.boxes_xyxy[None], track.visible[None], cells)[0]
        if settings.region == "mask" and track.masks is not None:
            for step, mask in enumerate(track.masks):
                if mask is not None:
                    out[row, step] = mask_weights(decode(mask)[None, None], cells)[0, 0]
    return out


def scores_per_frame(
    relative_map: FloatArray, tracks: Tracks, row: int, weights: FloatArray, settings: ZeroShotSettings
) -> FloatArray:
    """(T,) of one track: from its weights, or (bilinear) at the masks' size as published."""
    if settings.weights == "bilinear":
        masks = _as_masks(tracks[row], tracks, settings)[None]
        at_pixels: FloatArray = pixel_frame_scores(relative_map, masks)[0]
        return at_pixels
    at_cells: FloatArray = frame_scores(relative_map, weights[row : row + 1])[0]
    return at_cells


def _as_masks(track: Track, tracks: Tracks, settings: ZeroShotSettings) -> BoolArray:
    """(T, H, W): its masks, or its boxes drawn; H and W are the masks' own size where there are any."""
    known = [m for m in track.masks or () if m is not None] if settings.region == "mask" else []
    if known:
        height, width = known[0].height, known[0].width
    else:
        scale = min(1.0, _LONGEST_SIDE / max(tracks.grid.height, tracks.grid.width))
        height, width = (
            max(1, round(tracks.grid.height * scale)),
            max(1, round(tracks.grid.width * scale)),
        )
    out = np.zeros((len(track), height, width), dtype=np.bool_)
    for step in track.rows.tolist():
        mask = None if not known or track.masks is None else track.masks[step]
        if mask is not None and (mask.height, mask.width) == (height, width):
            out[step] = decode(mask)
            continue
        x0, y0, x1, y1 = track.boxes_xyxy[step]
        rows = slice(int(y0 * height), max(int(y0 * height) + 1, int(np.ceil(y1 * height))))
        columns = slice(int(x0 * width), max(int(x0 * width) + 1, int(np.ceil(x1 * width))))
        out[step, rows, columns] = True
    return out
