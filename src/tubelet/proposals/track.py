"""`Track` and `Tracks`: where things are in a video, before anybody asked about them.

A track follows one object over the frames of a `FrameGrid`; `Tracks` are all tracks of one video with that grid,
the video's hash and what made them. Every proposal provider returns `Tracks`; the zero-shot method chooses
among them (arXiv 2509.15178, section 3.1; there: Grounding DINO + SAM 2).

Shapes: T frames of the grid. Boxes are xyxy fractions of the displayed frame. A row where the object is not visible
is all zero and `visible` is False. No pixels, no models here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, NamedTuple, overload

import numpy as np
import numpy.typing as npt

from tubelet.errors import DataError
from tubelet.frames import FrameGrid
from tubelet.proposals.rle import Rle
from tubelet.tube import Span, Tube

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

_EDGE = 1e-6  # boxes may leave the frame by rounding only
_SAME_PLACE = 0.5  # IoU of boxes from which a mask of a near frame is shown as it is
_NO_MASK = "no mask for "  # how the note of `Tracks.on_grid` begins


@dataclass(frozen=True, slots=True, eq=False)
class Track:
    """One proposal: one object over the T frames of a grid (which is kept by `Tracks`).

    Args:
        track_id: number of the object, unique within its `Tracks`.
        boxes_xyxy: (T, 4) fractions of the displayed frame, x0 < x1 and y0 < y1 where visible; zero elsewhere.
        visible: (T,) bool.
        score: how much this is an object, in [0, 1], or None.
        box_scores: (T,) confidence per box in [0, 1] (0 where not visible), or None.
        masks: T masks (None where there is none, always where not visible), or None: boxes only.
        label: the phrase or class it was found for, or None.

    Arrays are copied and made read-only. Raises DataError when a rule is broken.
    """

    track_id: int
    boxes_xyxy: FloatArray
    visible: BoolArray
    score: float | None = None
    box_scores: FloatArray | None = None
    masks: tuple[Rle | None, ...] | None = None
    label: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.track_id, bool) or not isinstance(self.track_id, int | np.integer):
            raise DataError(f"Track.track_id is a whole number, got {self.track_id!r}")
        object.__setattr__(self, "track_id", int(self.track_id))
        where = f"track {self.track_id}"
        visible = np.array(self.visible)
        if visible.dtype != np.bool_ or visible.ndim != 1 or len(visible) == 0:
            raise DataError(f"{where}: visible is (T,) bool with T >= 1, got {visible.dtype} {visible.shape}")
        boxes = _numbers(self.boxes_xyxy, f"{where}: boxes_xyxy")
        if boxes.shape != (len(visible), 4):
            raise DataError(f"{where}: one box per frame, boxes_xyxy ({len(visible)}, 4), got {boxes.shape}")
        boxes = np.where(visible[:, None], boxes, 0.0)
        if boxes.min() < -_EDGE or boxes.max() > 1 + _EDGE:
            raise DataError(
                f"{where}: boxes are fractions of the frame in [0, 1], got values from {boxes.min():g} to "
                f"{boxes.max():g}: divide pixels by width and height, or cut with clip_boxes"
            )
        boxes = np.clip(boxes, 0.0, 1.0)
        if (boxes[visible, 2:] <= boxes[visible, :2]).any():
            raise DataError(
                f"{where}: a visible box is x0, y0, x1, y1 with x0 < x1 and y0 < y1 "
                "(xywh given? or not visible there?)"
            )
        _freeze(self, "boxes_xyxy", boxes)
        _freeze(self, "visible", visible)
        if self.score is not None:
            object.__setattr__(self, "score", float(_fractions(self.score, f"{where}: score")))
        if self.box_scores is not None:
            scores = _fractions(self.box_scores, f"{where}: box_scores")
            if scores.shape != visible.shape:
                raise DataError(f"{where}: box_scores must be ({len(visible)},), got {scores.shape}")
            _freeze(self, "box_scores", np.where(visible, scores, 0.0))
        if self.masks is not None:
            masks = tuple(self.masks)
            if len(masks) != len(visible) or not all(m is None or isinstance(m, Rle) for m in masks):
                raise DataError(f"{where}: masks are {len(visible)} Rle or None, one per frame")
            shown = tuple(m if seen else None for m, seen in zip(masks, visible.tolist(), strict=True))
            object.__setattr__(self, "masks", shown)
        if self.label is not None and not isinstance(self.label, str):
            raise DataError(f"{where}: a label is text, got {self.label!r}")

    def __len__(self) -> int:
        return len(self.visible)

    @property
    def rows(self) -> npt.NDArray[np.int64]:
        """Rows of the grid where the object is visible."""
        return np.flatnonzero(self.visible)


@dataclass(frozen=True, slots=True, eq=False)
class Tracks(Sequence[Track]):
    """All tracks of one video; a sequence of `Track`, best first where the provider has scores.

    Args:
        grid: the frames all tracks lie on.
        tracks: the tracks; every one has len(grid) rows and its own track_id. None at all is allowed.
        video_hash: of the pixels they were made from (`proposals.store.video_hash`), or None if unknown.
        provider: what made them ("motion", "sam3", a file format, ...).
        settings: that provider's settings, plain data.
        n_clipped: boxes that left the frame and were cut (or hidden, when nothing was left inside).
        notes: what went wrong on the way, one sentence each (frames that could not be read, ...).
        n_failed: frames on which a model failed: what it would have found there is missing.
    """

    grid: FrameGrid
    tracks: tuple[Track, ...] = ()
    video_hash: str | None = None
    provider: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    n_clipped: int = 0
    notes: tuple[str, ...] = ()
    n_failed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "tracks", tuple(self.tracks))
        object.__setattr__(self, "notes", tuple(self.notes))
        seen: set[int] = set()
        for track in self.tracks:
            if len(track) != len(self.grid):
                raise DataError(
                    f"track {track.track_id} has {len(track)} rows, but its grid has {len(self.grid)} frames: "
                    "tracks of another video, or of another sampling?"
                )
            if track.track_id in seen:
                raise DataError(f"two tracks have the number {track.track_id}")
            seen.add(track.track_id)

    def __len__(self) -> int:
        return len(self.tracks)

    def __iter__(self) -> Iterator[Track]:
        return iter(self.tracks)

    @overload
    def __getitem__(self, place: int) -> Track: ...
    @overload
    def __getitem__(self, place: slice) -> tuple[Track, ...]: ...
    def __getitem__(self, place: int | slice) -> Track | tuple[Track, ...]:
        return self.tracks[place]

    @property
    def boxes_xyxy(self) -> FloatArray:
        """(P, T, 4) of all P tracks."""
        if not self.tracks:
            return np.zeros((0, len(self.grid), 4))
        return np.stack([track.boxes_xyxy for track in self.tracks])

    @property
    def visible(self) -> BoolArray:
        """(P, T) of all P tracks."""
        if not self.tracks:
            return np.zeros((0, len(self.grid)), dtype=np.bool_)
        return np.stack([track.visible for track in self.tracks])

    def check_hash(self, video_hash: str) -> None:
        """DataError unless these tracks were made from the video with this hash (unknown hashes pass)."""
        if self.video_hash is not None and self.video_hash != video_hash:
            raise DataError(
                f"these proposals ({self.provider or 'unknown provider'}) were made from another video: their hash is "
                f"{self.video_hash}, this video's is {video_hash}; make them again from this video"
            )

    def best(self, count: int) -> Tracks:
        """The `count` tracks of the highest scores (no score counts as 0), in that order."""
        if count < 0:
            raise DataError(f"a number of tracks is at least 0, got {count}")
        order = sorted(range(len(self)), key=lambda i: -(self.tracks[i].score or 0.0))
        return replace(self, tracks=tuple(self.tracks[i] for i in order[:count]))

    def on_grid(self, grid: FrameGrid) -> Tracks:
        """The same tracks on other frames of the same video (see `resample`).

        A note says how many boxes of tracks with masks have no mask there (none: no note).
        """
        moved = tuple(resample(t, self.grid, grid) for t in self.tracks)
        notes = [note for note in self.notes if not note.startswith(_NO_MASK)]
        masked = [new for old, new in zip(self.tracks, moved, strict=True) if old.masks and any(old.masks)]
        n_boxes = sum(len(track.rows) for track in masked)
        n_masks = sum(mask is not None for track in masked for mask in track.masks or ())
        if n_masks < n_boxes:
            notes.append(
                f"{_NO_MASK}{n_boxes - n_masks} of the {n_boxes} boxes that tracks with masks have on "
                f"{len(grid)} frames: the box stands for it"
            )
        return replace(self, grid=grid, tracks=moved, notes=tuple(notes))


class Found(NamedTuple):
    """What a provider found, on the grid of its source: fields of `Tracks`."""

    tracks: Sequence[Track]
    notes: Sequence[str] = ()
    n_clipped: int = 0
    n_failed: int = 0


def resample(track: Track, grid: FrameGrid, onto: FrameGrid) -> Track:
    """A track on the frames of another grid of the same video.

    Between two neighbouring frames that both show the object, boxes and box scores are interpolated; where only
    one does, the object is shown on the half that is nearer to it. Before the first and after the last frame of
    the grid the nearest box holds for half a step. Masks are not interpolated, moved or scaled: a frame shows the mask
    of the nearest frame of the grid (so at most half a step away) as it is, and none where the thing has moved too far
    for that (that frame's box and the interpolated one overlap by less than half, IoU).
    Raises DataError when the grids are of different videos.
    """
    if (grid.fps, grid.width, grid.height) != (onto.fps, onto.width, onto.height):
        raise DataError(
            f"tracks can be moved between grids of one video only: {grid.width}x{grid.height} at {grid.fps} fps "
            f"is not {onto.width}x{onto.height} at {onto.fps} fps"
        )
    if grid == onto:
        return track
    times, at = grid.times_s, onto.times_s
    right = np.clip(np.searchsorted(times, at), 0, len(times) - 1)
    left = np.where(times[right] == at, right, np.clip(right - 1, 0, None))
    left = np.where(at > times[-1], len(times) - 1, left)  # behind the last frame
    step = np.maximum(times[right] - times[left], 1e-12)
    part = np.clip(np.where(right == left, 0.0, (at - times[left]) / step), 0.0, 1.0)
    edges = grid.cell_edges_s()
    inside = (at >= edges[0] - _EDGE) & (at <= edges[-1] + _EDGE)
    seen_left, seen_right = track.visible[left], track.visible[right]
    both = seen_left & seen_right
    # where one side only shows it, its box is held
    part = np.where(both, part, np.where(seen_right, 1.0, 0.0))
    near_left = np.abs(at - times[left]) <= np.abs(times[right] - at)
    visible = inside & (both | (seen_left & ~seen_right & near_left) | (seen_right & ~seen_left & ~near_left))
    boxes = track.boxes_xyxy[left] * (1 - part[:, None]) + track.boxes_xyxy[right] * part[:, None]
    scores = None
    if track.box_scores is not None:
        scores = np.where(visible, track.box_scores[left] * (1 - part) + track.box_scores[right] * part, 0.0)
    masks = None
    if track.masks is not None:
        from tubelet.metrics.boxes import paired_iou

        near = np.where(near_left, left, right)
        shown = visible & (paired_iou(track.boxes_xyxy[near], boxes) >= _SAME_PLACE)
        masks = tuple(
            track.masks[row] if fits else None
            for row, fits in zip(near.tolist(), shown.tolist(), strict=True)
        )
    return replace(
        track,
        boxes_xyxy=np.where(visible[:, None], boxes, 0.0),
        visible=visible,
        box_scores=scores,
        masks=masks,
    )


def fill_gaps(track: Track, grid: FrameGrid, longest_s: float) -> Track:
    """Interpolate boxes over gaps of at most `longest_s` between visible frames (occlusions, sparse detections).

    Interpolated boxes have the lower of their neighbours' scores, and no mask.
    """
    rows = track.rows
    if len(rows) < 2:
        return track
    boxes, visible = track.boxes_xyxy.copy(), track.visible.copy()
    scores = None if track.box_scores is None else track.box_scores.copy()
    for first, last in pairwise(rows.tolist()):
        if last - first < 2 or grid.times_s[last] - grid.times_s[first] > longest_s + _EDGE:
            continue
        between = np.arange(first + 1, last)
        part = (grid.times_s[between] - grid.times_s[first]) / (grid.times_s[last] - grid.times_s[first])
        boxes[between] = boxes[first] * (1 - part[:, None]) + boxes[last] * part[:, None]
        visible[between] = True
        if scores is not None:
            scores[between] = min(scores[first], scores[last])
    return replace(track, boxes_xyxy=boxes, visible=visible, box_scores=scores)


def clip_boxes(boxes_xyxy: npt.ArrayLike, visible: npt.ArrayLike) -> tuple[FloatArray, BoolArray, int]:
    """Cut boxes at the frame: (boxes, visible, how many visible boxes were cut or hidden).

    A box of which nothing is left inside the frame becomes invisible. Cuts by rounding (1e-6) are not counted.
    """
    boxes, seen = np.array(boxes_xyxy, dtype=np.float64), np.array(visible, dtype=np.bool_)
    boxes = np.where(seen[:, None], boxes, 0.0)
    cut = np.clip(boxes, 0.0, 1.0)
    moved = np.abs(cut - boxes).max(axis=1, initial=0.0) > _EDGE
    left = seen & (cut[:, 2] > cut[:, 0]) & (cut[:, 3] > cut[:, 1])
    count = int((seen & (moved | ~left)).sum())
    return np.where(left[:, None], cut, 0.0), left, count


def to_tube(track: Track, grid: FrameGrid, span: Span | None = None) -> Tube | None:
    """The track as a `Tube` in `span` (default: from its first to its last visible frame); None if nothing is left."""
    edges = grid.cell_edges_s()
    if span is None:
        if not track.visible.any():
            return None
        rows = track.rows
        span = Span(float(edges[rows[0]]), float(edges[rows[-1] + 1]))
    keep = track.visible & (grid.times_s >= span.start_s) & (grid.times_s <= span.end_s)
    if not keep.any():
        return None
    return Tube(
        span,
        grid.times_s[keep],
        track.boxes_xyxy[keep],
        score=track.score,
        box_scores=None if track.box_scores is None else track.box_scores[keep],
        label=track.label,
    )


def _numbers(values: npt.ArrayLike, what: str) -> FloatArray:
    try:
        array = np.array(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{what} must be numbers, got {values!r:.80}") from error
    if not np.isfinite(array).all():
        raise DataError(f"{what} must be finite, it holds NaN or infinity")
    return array


def _fractions(values: npt.ArrayLike, what: str) -> FloatArray:
    array = _numbers(values, what)
    if array.size and (array.min() < -_EDGE or array.max() > 1 + _EDGE):
        raise DataError(f"{what} must be in [0, 1], got {array.min():g} to {array.max():g}")
    return np.clip(array, 0.0, 1.0)


def _freeze(track: Track, name: str, array: npt.NDArray[Any]) -> None:
    array.flags.writeable = False
    object.__setattr__(track, name, array)
