"""Tracks from files: the authors' released proposals, MOT text, and our own JSON.

- published (arXiv 2509.15178's data): a JSON with `sample_frames`, file names whose stem is the native frame number,
  and `dino_sam2_proposals`, tracks of seven entries in this order: track id, boxes (absolute xyxy, one per frame),
  masks (COCO RLE), class name, box format, image width, image height. A zero box means: not there. A folder of such
  files (VidSTG: one per category) is read as one.
- mot: text lines frame, id, left, top, width, height[, confidence, ...] in pixels; frames and, as the benchmark
  writes them, pixels count from 1 (`first_pixel`).
- tubelet: what `proposals.store.save_tracks` wrote. Its hash must be this video's.

Published files and MOT text carry no hash of their video. What can be compared is: the pictures' shape (published) and
the frame numbers; a note says that nothing else was. Boxes that leave the frame are cut and counted. Tracks are moved
onto the wanted grid (see `track.resample`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tubelet.errors import DataError, RecipeError
from tubelet.frames import FrameGrid
from tubelet.proposals.rle import Rle
from tubelet.proposals.source import Source
from tubelet.proposals.store import load_tracks
from tubelet.proposals.track import Found, Track, Tracks, clip_boxes

FORMATS = ("auto", "published", "mot", "tubelet")
_ROUNDED_PX = 2.0
_NO_CORNERS = (
    "xywh",
    "cxcywh",
    "ltwh",
    "tlwh",
    "coco",
    "yolo",
)  # of the entry "box format": would be misread


@dataclass(frozen=True, slots=True)
class FilesSettings:
    """path: the file (or a folder of published ones); "{stem}" in it stands for the video's file name without its
    ending, for many videos with a file each. format: one of FORMATS. first_frame, first_pixel: what MOT text counts
    from."""

    path: str = ""
    format: str = "auto"
    first_frame: int = 1
    first_pixel: float = 1.0

    def __post_init__(self) -> None:
        if not self.path:
            raise RecipeError(
                "the provider files reads tracks that were made before: give path, a file of tracks (.json, or MOT's "
                '.txt) or a folder of published ones; "{stem}" in it stands for the name of each video'
            )
        if self.format not in FORMATS:
            raise RecipeError(f"format is one of {', '.join(FORMATS)}, got {self.format!r}")


def propose_files(source: Source, phrases: Sequence[str], settings: FilesSettings) -> Found:
    """Tracks of a file on the source's grid. Phrases are ignored."""
    path = path_for(settings, source)
    kind = settings.format if settings.format != "auto" else guess_format(path)
    if kind == "tubelet":
        read = load_tracks(path)
    elif kind == "published":
        read = read_published(path, source)
    else:
        read = read_mot(path, source, settings.first_frame, settings.first_pixel)
    moved = read.on_grid(source.grid)
    notes = list(moved.notes)
    if read.video_hash is None:
        compared = (
            "the shape of its pictures and its frame numbers" if kind == "published" else "its frame numbers"
        )
        notes.append(
            f"{path.name} carries no hash of its video, so proposals of another one would not be noticed: only "
            f"{compared if kind != 'tubelet' else 'the rate and size of its video'} could be compared"
        )
    return Found(moved.tracks, notes, read.n_clipped, read.n_failed)


def path_for(settings: FilesSettings, source: Source) -> Path:
    """The file (or folder) of this source. DataError for "{stem}" and a clip, which has no file name."""
    if "{stem}" not in settings.path:
        return Path(settings.path).expanduser()
    if source.video is None:
        raise DataError(
            f"{settings.path} names a file of tracks for each video file, but a clip has no file name: give a path "
            "without {stem}, or the tracks themselves"
        )
    return Path(settings.path.replace("{stem}", source.video.path.stem)).expanduser()


def hash_of_file(settings: FilesSettings, source: Source) -> str | None:
    """The hash of the video that our own files were made from; None for the other formats."""
    path = path_for(settings, source)
    kind = settings.format if settings.format != "auto" else guess_format(path)
    return load_tracks(path).video_hash if kind == "tubelet" else None


def guess_format(path: Path) -> str:
    """By the name and the first keys. Raises DataError when there is no such file or none of the formats fits."""
    if path.is_dir():
        return "published"
    if path.suffix.lower() in (".txt", ".csv"):
        return "mot"
    data = _json(path)
    if isinstance(data, Mapping) and data.get("kind") == "tubelet.tracks":
        return "tubelet"
    if isinstance(data, Mapping) and "dino_sam2_proposals" in data:
        return "published"
    raise DataError(
        f"{path} is none of the known formats of tracks: published (with dino_sam2_proposals), MOT text (.txt), "
        "or a file of tubelet's"
    )


def read_published(path: Path, source: Source) -> Tracks:
    """The authors' file, or a folder of them (one per category), on the frames that it names."""
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    if not files:
        raise DataError(f"the folder {path} holds no .json file of proposals")
    parts = [_read_published_file(file, source) for file in files]
    if any(part.grid != parts[0].grid for part in parts):
        raise DataError(f"the files of {path} name different frames: they are not of one video")
    tracks = [track for part in parts for track in part]
    numbered = tuple(replace(track, track_id=number) for number, track in enumerate(tracks))
    return Tracks(parts[0].grid, numbered, n_clipped=sum(p.n_clipped for p in parts), provider="published")


def _read_published_file(path: Path, source: Source) -> Tracks:
    data = _json(path)
    names = data.get("sample_frames") if isinstance(data, Mapping) else None
    items = data.get("dino_sam2_proposals") if isinstance(data, Mapping) else None
    if not isinstance(names, list) or not names or not isinstance(items, list):
        raise DataError(f"{path} needs the lists sample_frames and dino_sam2_proposals")
    try:
        index = np.array([int(Path(str(name)).stem) for name in names], dtype=np.int64)
    except ValueError as error:
        raise DataError(
            f"{path}: sample_frames are file names whose stem is a frame number: {error}"
        ) from error
    order = np.argsort(index, kind="stable")
    grid = native_grid(source, index[order], path)
    tracks: list[Track] = []
    n_clipped = 0
    for number, item in enumerate(items):
        values = list(item.values()) if isinstance(item, Mapping) else None
        if values is None or len(values) != 7:
            raise DataError(f"{path}: track {number} must have seven entries, got {item!r:.60}")
        _, boxes_px, masks, label, form, width, height = values
        if str(form).strip().lower() in _NO_CORNERS:
            raise DataError(
                f"{path}: track {number} says its boxes are {form!r:.40}; published proposals are corners (xyxy)"
            )
        try:
            boxes = np.array(boxes_px, dtype=np.float64).reshape(len(index), 4)
            scale = np.array([float(width), float(height)] * 2)
        except (TypeError, ValueError) as error:
            raise DataError(
                f"{path}: track {number} needs {len(index)} boxes, its width and its height: {error}"
            ) from error
        if not (scale > 0).all() or not np.isfinite(boxes).all():
            raise DataError(f"{path}: track {number} has a size of 0 or boxes that are not finite")
        _check_shape((scale[0], scale[1]), source, f"{path}: track {number} was made on pictures")
        shown, visible, cut = clip_boxes(boxes / scale, np.abs(boxes).sum(axis=1) > 0)
        n_clipped += cut
        rles: tuple[Rle | None, ...] | None = None
        if masks:
            if len(masks) != len(index):
                raise DataError(f"{path}: track {number} has {len(masks)} masks for {len(index)} frames")
            read = [None if mask is None else Rle.from_dict(mask) for mask in masks]
            for width_px, height_px in {(m.width, m.height) for m in read if m is not None}:
                _check_shape((width_px, height_px), source, f"{path}: track {number} has masks")
            rles = tuple(read[k] for k in order)
        tracks.append(Track(number, shown[order], visible[order], masks=rles, label=str(label)))
    return Tracks(grid, tuple(tracks), n_clipped=n_clipped, provider="published")


def read_mot(path: Path, source: Source, first_frame: int = 1, first_pixel: float = 1.0) -> Tracks:
    """MOT text, on every native frame from its first to its last line. Pixels are those of the displayed video."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read tracks from {path}: {error}") from error
    rows: list[tuple[float, ...]] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        parts = line.replace(",", " ").split()
        try:
            values = tuple(float(part) for part in parts[:7])
        except ValueError as error:
            raise DataError(f"{path}, line {number}: expected numbers, got {line!r:.60}") from error
        if len(values) < 6 or not all(np.isfinite(values)):
            raise DataError(
                f"{path}, line {number}: expected frame, id, left, top, width, height[, confidence], got {line!r:.60}"
            )
        rows.append(values if len(values) == 7 else (*values, 1.0))
    if not rows:
        return Tracks(source.grid, provider="mot")
    table = np.array(rows)
    frames = table[:, 0].astype(np.int64) - first_frame
    if (frames < 0).any():
        raise DataError(
            f"{path}: frames count from {first_frame}, got {int(table[:, 0].min())} (set first_frame=0?)"
        )
    index = np.arange(frames.min(), frames.max() + 1)
    grid = native_grid(source, index, path)
    size = np.array([grid.width, grid.height] * 2, dtype=np.float64)
    corners = table[:, 2:6].copy()
    corners[:, :2] -= first_pixel
    corners[:, 2:] += corners[:, :2]
    # a confidence of -1 is the format's "unknown"
    confidence = np.where(table[:, 6] < 0, 1.0, np.clip(table[:, 6], 0.0, 1.0))
    tracks, n_clipped = [], 0
    for identity in np.unique(table[:, 1].astype(np.int64)):
        mine = np.flatnonzero(table[:, 1].astype(np.int64) == identity)
        at = frames[mine] - index[0]
        if len(np.unique(at)) < len(at):
            raise DataError(f"{path}: track {identity} has two boxes in one frame")
        boxes, visible, scores = (
            np.zeros((len(index), 4)),
            np.zeros(len(index), np.bool_),
            np.zeros(len(index)),
        )
        boxes[at], visible[at], scores[at] = corners[mine] / size, True, confidence[mine]
        boxes, visible, cut = clip_boxes(boxes, visible)
        n_clipped += cut
        tracks.append(
            Track(int(identity), boxes, visible, score=float(confidence[mine].mean()), box_scores=scores)
        )
    return Tracks(grid, tuple(tracks), n_clipped=n_clipped, provider="mot")


def native_grid(source: Source, index: npt.NDArray[np.int64], path: Path) -> FrameGrid:
    """The grid of these native frames of the source's video. Raises DataError for frames that it has not."""
    grid = source.grid
    if index[0] < 0 or (np.diff(index) <= 0).any():
        raise DataError(f"{path}: frame numbers must be different and at least 0")
    if source.video is not None:
        if index[-1] >= source.video.n_frames:
            raise DataError(
                f"{path} names frame {index[-1]}, but the video has {source.video.n_frames} frames: "
                "tracks of another video?"
            )
        times = source.video.times_s[index]
    else:  # a clip knows its own frames only: between and around them the rate is taken as constant
        times = np.interp(index, grid.frame_index, grid.times_s)
        outside = (index < grid.frame_index[0]) | (index > grid.frame_index[-1])
        nearest = np.where(index < grid.frame_index[0], 0, len(grid) - 1)
        beyond = grid.times_s[nearest] + (index - grid.frame_index[nearest]) / float(grid.fps)
        times = np.where(outside, beyond, times)
        if times[0] < 0 or times[-1] >= grid.duration_s:
            raise DataError(
                f"{path} names frame {index[-1]}, which lies outside the clip's video of "
                f"{grid.duration_s:g} s: tracks of another video?"
            )
    return FrameGrid(index, times, grid.fps, grid.duration_s, grid.width, grid.height)


def _check_shape(size: tuple[float, float], source: Source, what: str) -> None:
    """DataError unless a picture of this (width, height) may be of the source's video, scaled and rounded."""
    shown = (float(source.grid.width), float(source.grid.height))
    shapes = [shown]
    if source.video is not None and source.video.sample_aspect_ratio > 0:  # public readers show stored pixels
        aspect = float(source.video.sample_aspect_ratio)
        turned = source.video.rotation_deg % 180 == 90
        shapes.append((shown[0], shown[1] / aspect) if turned else (shown[0] / aspect, shown[1]))
    width, height = size
    for w, h in shapes:
        # both sides of both may be off by two pixels: sizes are rounded, often to even numbers
        if abs(width * h - height * w) <= _ROUNDED_PX * (width + height + w + h):
            return
    raise DataError(
        f"{what} of {width:g}x{height:g}, but this video is {shown[0]:g}x{shown[1]:g}, which is of another shape: "
        "tracks of another video?"
    )


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"there is no file of tracks {path}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"cannot read tracks from {path}: {error}") from error
