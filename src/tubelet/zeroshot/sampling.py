"""Which frames the model is shown: spread over the video ("cells"), or over the proposals' own frames ("published").

    cells       the middles of equal pieces of the video (`tubelet.video.sample_uniform`)
    published   evenly over the frames that the proposals were made on, both ends included, truncated to a frame

The published code repeats positions where there are fewer proposal frames than model frames; a model that is given one
map per distinct frame does not need that, so a frame is shown once here (`frames_to_read`). The functions per dataset
restate the published loaders' arithmetic of frame numbers, for parity with their files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from tubelet.config_io import from_dict
from tubelet.errors import DataError
from tubelet.frames import Clip, FrameGrid
from tubelet.proposals.files import FilesSettings, guess_format, path_for, read_mot, read_published
from tubelet.proposals.source import make_source
from tubelet.proposals.store import load_tracks
from tubelet.tube import Span
from tubelet.video import Video, sample_indices, sample_uniform

IntArray = npt.NDArray[np.int64]

HCSTVG_STRIDE = 10
"""HC-STVG annotations of the published code count every tenth frame: a unit is ten frames."""
SHORTEST_S = 19.0
"""Below this duration the published HC-STVG loader shows almost black frames and scores them."""

_STEM = re.compile(r"(\d+)(?:\.\w+)?$")


def positions(n_proposal_frames: int, count: int = 20) -> IntArray:
    """`count` positions, evenly spaced from the first proposal frame to the last, truncated; they may repeat."""
    if n_proposal_frames < 1 or count < 1:
        raise DataError(f"sampling needs frames, got {n_proposal_frames} proposal frames for {count}")
    if count == 1:
        return np.zeros(1, dtype=np.int64)
    return np.arange(count, dtype=np.int64) * (n_proposal_frames - 1) // (count - 1)


def frames_to_read(
    video: Video, count: int, window: Span | None = None, own: FrameGrid | None = None
) -> FrameGrid:
    """At most `count` frames of a video. own: the frames of its proposals, for published sampling; None: "cells".

    Raises VideoError for a window without frames, DataError for one without frames of the proposals.
    """
    if own is None:
        return sample_uniform(video, count, window)
    rows = np.arange(len(own)) if window is None else np.flatnonzero(window.contains(own.times_s))
    if not len(rows):
        raise DataError(
            f"no frame of the proposals lies in {window}: choose a longer window, or sampling cells"
        )
    return sample_indices(video, own.frame_index[rows[positions(len(rows), count)]])


def rows_to_read(clip: Clip, count: int, own: FrameGrid | None = None) -> IntArray:
    """The same of a clip, as rows of it: those nearest to the frames of its proposals."""
    if own is None:
        rows = np.linspace(0, len(clip) - 1, min(len(clip), count)).round().astype(np.int64)
    else:
        rows = clip.grid.nearest(own.times_s[positions(len(own), count)])
    return np.unique(rows)


def grid_of_files(source: Video | Clip, settings: Mapping[str, Any]) -> FrameGrid:
    """The frames that a file of proposals is about. settings: of the provider "files". Raises DataError."""
    own = {field.name: settings[field.name] for field in fields(FilesSettings) if field.name in settings}
    chosen, looked_at = from_dict(FilesSettings, own, ""), make_source(source, None)
    path = path_for(chosen, looked_at)
    kind = guess_format(path) if chosen.format == "auto" else chosen.format
    if kind == "tubelet":
        return load_tracks(path).grid
    if kind == "published":
        return read_published(path, looked_at).grid
    return read_mot(path, looked_at, chosen.first_frame, chosen.first_pixel).grid


@dataclass(frozen=True, slots=True)
class SampledUnits:
    """positions: rows of the proposals; units: of the annotation; frames: numbers that are decoded.

    n_behind: how many of them lay behind the annotation, whose last unit stands in.
    """

    positions: IntArray
    units: IntArray
    frames: IntArray
    n_behind: int = 0


def hcstvg_frames(sample_frames: Sequence[str], n_units: int, count: int = 20) -> SampledUnits:
    """Proposal frame names ("00120.jpg") -> what is decoded: ten times the floor of the stem over ten.

    A stem that is no multiple of ten is decoded up to nine frames early, as published. For a frame
    behind the n_units of the annotation the last unit is taken (the published code stops there, and the query is lost).
    Raises DataError for names without a number and for an annotation without units.
    """
    found = [_STEM.search(name) for name in sample_frames]
    if not all(found):
        bad = next(name for name, match in zip(sample_frames, found, strict=True) if match is None)
        raise DataError(f"a proposal frame is named by its number (00120.jpg), got {bad!r}")
    stems = np.array([int(match.group(1)) for match in found if match], dtype=np.int64)
    rows = positions(len(stems), count)
    units = stems[rows] // HCSTVG_STRIDE
    if n_units < 1:
        raise DataError(f"an annotation has at least one unit, got {n_units}")
    behind = units >= n_units
    units = np.where(behind, n_units - 1, units)
    return SampledUnits(rows, units, units * HCSTVG_STRIDE, int(behind.sum()))


def hcstvg_is_blank(duration_s: float) -> bool:
    """Does the published loader replace this video by constant frames?"""
    return duration_s < SHORTEST_S


def vidstg_frames(
    proposal_frames: Sequence[int], used_frame_mask: Sequence[int | bool], count: int = 20
) -> tuple[IntArray, IntArray, IntArray]:
    """(positions, decoded frame numbers, rows of the track file).

    proposal_frames: the frames of the annotated segment. used_frame_mask: for every row of the track file, whether it
    is one of them. Raises DataError when they do not go together.
    """
    rows = np.flatnonzero(np.asarray(used_frame_mask, dtype=np.bool_))
    frames = np.asarray(proposal_frames, dtype=np.int64)
    if len(rows) != len(frames):
        raise DataError(
            f"the mask of used frames keeps {len(rows)} rows, but there are {len(frames)} proposal frames: "
            "files of different videos?"
        )
    at = positions(len(frames), count)
    return at, frames[at], rows[at]
