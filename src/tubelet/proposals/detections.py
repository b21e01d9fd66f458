"""Boxes found frame by frame, and joining them to tracks by overlap.

`detect_every` runs a detector on every N-th frame; a frame on which it fails is skipped and noted. `associate` joins
the boxes: Hungarian matching of overlap (IoU) with where each thing is expected (straight on), within one label,
re-detection after a gap, boxes between detections interpolated. It takes detections as they come and forgets what is
over and cannot be a result, so neither keeps what grows with the video besides the results.

Knows no model. Boxes are xyxy fractions of the frame.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from tubelet.errors import ModelError
from tubelet.frames import FrameGrid
from tubelet.metrics.boxes import pairwise_iou
from tubelet.model_folder import first_line
from tubelet.proposals.best import Best
from tubelet.proposals.source import Picture, Source, pictures
from tubelet.proposals.track import Track, clip_boxes, fill_gaps

FloatArray = npt.NDArray[np.float64]

CRASHES = (RuntimeError, ValueError, IndexError, KeyError, TypeError, ArithmeticError, MemoryError)
"""What a model may raise on one frame without stopping the video (no memory stops it: `Failures` says so)."""
_ROWS_SAID = 8  # of the frames that failed
_NO_MEMORY = ("out of memory", "allocate memory")  # torch's words on a GPU and on the CPU


@dataclass(frozen=True, slots=True, eq=False)
class Detection:
    """A box (4,) as fractions of the frame (it may leave it), a score in [0, 1] and the phrase it was found for."""

    box: FloatArray
    score: float
    label: str


@dataclass(slots=True)
class Failures:
    """Frames on which a model failed. `add` counts; too many of them, or no memory, is a ModelError.

    tried, failed: frames; rows: the first of those that failed.
    """

    what: str
    lower: str
    tried: int = 0
    failed: int = 0
    rows: list[int] = field(default_factory=list)
    reason: str = ""

    def add(self, row: int, error: BaseException) -> None:
        said = str(error).lower()
        if isinstance(error, MemoryError) or any(words in said for words in _NO_MEMORY):
            raise ModelError(f"{self.what} ran out of memory: lower {self.lower}") from error
        self.failed += 1
        if len(self.rows) < _ROWS_SAID:
            self.rows.append(row)
        self.reason = self.reason or f"{type(error).__name__}: {first_line(error)}"

    def notes(self) -> list[str]:
        """The note to keep; ModelError when half of the frames or more failed."""
        if not self.failed:
            return []
        if 2 * self.failed >= self.tried:
            raise ModelError(
                f"{self.what} failed on {self.failed} of {self.tried} frames; first: {self.reason}"
            )
        return [
            f"{self.what} failed on {self.failed} of {self.tried} frames (rows {self.rows}): {self.reason}"
        ]


def detect_every(
    source: Source,
    every: int,
    size: tuple[int, int] | None,
    detect: Callable[[Picture], list[Detection]],
    failures: Failures,
) -> Iterator[tuple[int, list[Detection]]]:
    """(row, detections) of every `every`-th row of the source's grid and the last; pictures are `size` (width, height).

    `failures` is complete when all were taken.
    """
    for row, picture in pictures(source, size):
        if row % every and row != len(source.grid) - 1:
            continue
        failures.tried += 1
        try:
            found = detect(picture)
        except CRASHES as error:
            failures.add(row, error)
            continue
        yield row, found


@dataclass(slots=True, eq=False)  # told apart by identity: arrays have no one truth value
class _Path:
    label: str
    rows: list[int]
    boxes: list[FloatArray]
    scores: list[float]

    def expected(self, time_s: float, times_s: FloatArray) -> FloatArray:
        if len(self.rows) < 2:
            return self.boxes[-1]
        before, last = times_s[self.rows[-2]], times_s[self.rows[-1]]
        # it keeps its speed, but not for longer than it was watched
        ahead = min(1.0, (time_s - last) / (last - before))
        box: FloatArray = self.boxes[-1] + ahead * (self.boxes[-1] - self.boxes[-2])
        return box


def associate(
    detections: Mapping[int, Sequence[Detection]] | Iterable[tuple[int, Sequence[Detection]]],
    grid: FrameGrid,
    *,
    min_iou: float = 0.3,
    max_gap_s: float = 2.0,
    min_seen: int = 2,
    nms_iou: float = 0.7,
    max_tracks: int = 64,
) -> tuple[list[Track], list[str], int]:
    """Tracks of the detections, best first, notes, and how many boxes were cut at the frame.

    detections: by row, or (row, detections) in order. min_seen: detections that a track needs (all, when fewer frames
    were looked at). max_tracks: more are left out, which a note says.
    """
    from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]

    live: list[_Path] = []
    early: list[_Path] = []  # over before min_seen frames were looked at: there may be no more
    over: Best[_Path] = Best(max_tracks)
    n_looked = 0

    def put_away(path: _Path, needed: int) -> None:
        if len(path.rows) >= needed:
            over.add(float(np.sum(path.scores)), path)

    in_order = sorted(detections.items()) if isinstance(detections, Mapping) else detections
    for row, all_found in in_order:
        n_looked += 1
        time_s = float(grid.times_s[row])
        gone = [p for p in live if time_s - grid.times_s[p.rows[-1]] > max_gap_s]
        live = [p for p in live if p not in gone]
        for path in gone:
            if n_looked <= min_seen:
                early.append(path)
            else:
                put_away(path, min_seen)
        found = suppress(all_found, nms_iou)
        taken: set[int] = set()
        if live and found:
            expected = np.stack([p.expected(time_s, grid.times_s) for p in live])
            last = np.stack([p.boxes[-1] for p in live])
            boxes = np.stack([d.box for d in found])
            # what turned round is near its last place, not where it was going
            overlap = np.maximum(pairwise_iou(expected, boxes), pairwise_iou(last, boxes))
            same = np.array([[p.label == d.label for d in found] for p in live])
            overlap = np.where(same, overlap, 0.0)
            for p, d in zip(*linear_sum_assignment(-overlap), strict=True):
                if overlap[p, d] >= min_iou:
                    live[p].rows.append(row)
                    live[p].boxes.append(found[d].box)
                    live[p].scores.append(found[d].score)
                    taken.add(int(d))
        live += [_Path(d.label, [row], [d.box], [d.score]) for k, d in enumerate(found) if k not in taken]
    for path in [*early, *live]:
        put_away(path, min(min_seen, max(1, n_looked)))
    tracks, n_clipped = [], 0
    for number, (_, path) in enumerate(over.ranked()):
        boxes, visible, scores = (
            np.zeros((len(grid), 4)),
            np.zeros(len(grid), dtype=np.bool_),
            np.zeros(len(grid)),
        )
        boxes[path.rows], visible[path.rows], scores[path.rows] = np.stack(path.boxes), True, path.scores
        boxes, visible, cut = clip_boxes(boxes, visible)
        n_clipped += cut
        track = Track(
            number,
            boxes,
            visible,
            score=float(np.mean(path.scores)),
            box_scores=np.clip(scores, 0.0, 1.0),
            label=path.label,
        )
        tracks.append(fill_gaps(track, grid, max_gap_s))
    return tracks, over.notes(), n_clipped


def suppress(found: Sequence[Detection], nms_iou: float) -> list[Detection]:
    """Without those that overlap a better one of the same label by more than `nms_iou`; best first."""
    kept: list[Detection] = []
    for detection in sorted(found, key=lambda d: -d.score):
        rivals = [d.box for d in kept if d.label == detection.label]
        if not rivals or pairwise_iou(np.stack(rivals), detection.box[None]).max() <= nms_iou:
            kept.append(detection)
    return kept


def windows(found: Iterator[tuple[int, Picture]], length: int) -> Iterator[list[tuple[int, Picture]]]:
    """Runs of length + 1 pictures; the last of a run is the first of the next."""
    held: list[tuple[int, Picture]] = []
    fresh = False
    for item in found:
        held.append(item)
        fresh = True
        if len(held) == length + 1:
            yield held
            held, fresh = held[-1:], False
    if held and fresh:
        yield held
