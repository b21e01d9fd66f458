"""What of every cell a track covers: tracks on the steps of a map as weights, by box or by mask.

    area       exact shared areas (ours): a thing inside one cell keeps that cell's full value
    bilinear   masks sampled without antialiasing, frame scores at the masks' own size (published)

Masks are used where `region` is "mask" and the track has one at that frame, its box elsewhere. Masks are decoded one
track at a time, so 500 tracks need no more memory than one.

A step of the map may stand for several frames (Qwen: two). A track's weight in a step is the maximum over them: what is
seen in any of them counts in full, so that a thing that moves or that only one of them shows is no worse off than one
that stands still. A track that none of the model's frames shows is weighed where it is during each step's time
(`weights_on_steps`): its moments lie between the frames, and it can still be chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from tubelet.mllm.parts import VisualGrid
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
Steps = Sequence[npt.NDArray[np.int64]] | npt.NDArray[np.int64]
"""For every step of a map, the rows of the tracks' grid that belong to it; there may be none."""

_LONGEST_SIDE = 480  # pixels of a box that is drawn as a mask: boxes need no more


def weights_on_steps(
    read: Tracks, dense: Tracks, grid: VisualGrid, edges_s: FloatArray, settings: ZeroShotSettings
) -> FloatArray:
    """(P, T, h, w) of tracks on a map's steps.

    read: the tracks on the frames that the model read. dense: the same tracks on all frames that they are known on.
    edges_s: (T + 1,) the steps' borders in time. With bilinear weights only the model's frames count, as published.
    """
    cells = grid.n_rows, grid.n_columns
    weights = track_weights(read, cells, settings, grid.frames)
    unseen = np.flatnonzero(~read.visible.any(1))
    if settings.weights == "area" and len(unseen):
        times = dense.grid.times_s
        during = [np.flatnonzero((times >= start) & (times < end)) for start, end in pairwise(edges_s)]
        between = replace(dense, tracks=tuple(dense[row] for row in unseen.tolist()))
        weights[unseen] = track_weights(between, cells, settings, during)
    return weights


def track_weights(
    tracks: Tracks, cells: tuple[int, int], settings: ZeroShotSettings, steps: Steps | None = None
) -> FloatArray:
    """(P, T, h, w), the maximum over the frames of each step; cells: (h, w). steps None: every frame is a step."""
    per_step = np.arange(len(tracks.grid))[:, None] if steps is None else steps
    out = np.zeros((len(tracks), len(per_step), *cells))
    for row, track in enumerate(tracks):
        frames = _frame_weights(track, tracks, cells, settings)
        for step, rows in enumerate(per_step):
            out[row, step] = frames[rows].max(0, initial=0.0)
    return out


def _frame_weights(
    track: Track, tracks: Tracks, cells: tuple[int, int], settings: ZeroShotSettings
) -> FloatArray:
    """(F, h, w) on the F frames of the tracks' grid."""
    if settings.weights == "bilinear":
        smooth: FloatArray = bilinear_weights(_as_masks(track, tracks, settings)[None], cells)[0]
        return smooth
    out: FloatArray = box_weights(track.boxes_xyxy[None], track.visible[None], cells)[0]
    if settings.region == "mask" and track.masks is not None:
        for frame, mask in enumerate(track.masks):
            if mask is not None:
                out[frame] = mask_weights(decode(mask)[None, None], cells)[0, 0]
    return out


def scores_per_frame(
    relative_map: FloatArray,
    tracks: Tracks,
    row: int,
    weights: FloatArray,
    settings: ZeroShotSettings,
    steps: Steps | None = None,
) -> FloatArray:
    """(T,) of one track: from its weights, or (bilinear) at the masks' size as published, inside any of the masks."""
    if settings.weights == "bilinear":
        masks = _as_masks(tracks[row], tracks, settings)
        if steps is not None:
            masks = np.stack([masks[rows].any(0) for rows in steps])
        at_pixels: FloatArray = pixel_frame_scores(relative_map, masks[None])[0]
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
