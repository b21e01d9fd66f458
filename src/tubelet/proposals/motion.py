"""Proposals without any weights: what stands out or moves, followed through the video. The offline default.

Frames are looked at in small size and in windows (besides the results nothing grows with the video). In each window
`proposals.saliency` says how far each pixel is from the background, `proposals.regions` makes regions of it, and an
online tracker joins them: Hungarian matching on predicted place, size and colour; touching things of one colour are
cut apart by where they were expected; a thing that disappears (blinks, is hidden) is waited for.

It finds things, not kinds of things: phrases are ignored, and labels are None. On cluttered ground it finds what
moves only; in one picture nothing moves, so there it looks at colours, and says so where they are many. Boxes are
those of the visible pixels. Quality and speed on the toy world: docs/proposals.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from tubelet.errors import RecipeError
from tubelet.frames import FrameGrid
from tubelet.proposals.best import Best
from tubelet.proposals.regions import Region, find_regions, share
from tubelet.proposals.rle import Rle, encode
from tubelet.proposals.saliency import CUES, distances
from tubelet.proposals.source import Source, fitted, pictures
from tubelet.proposals.track import Found, Track, fill_gaps

FloatArray = npt.NDArray[np.float64]
DETECTORS = "owlv2, grounding-dino-sam2 or sam3"
"""Providers for what this one cannot find."""


@dataclass(frozen=True, slots=True)
class MotionSettings:
    """How the motion provider looks.

    short_side: pixels of the short side that are looked at. window: frames whose background is estimated together.
    cue: "colour", "motion" or "auto" (see `proposals.saliency`). low, high: a region holds pixels farther than `low`
    from the background, and a tenth of it is farther than `high`. min_area: smallest region, a fraction of the picture.
    max_gap_s: how long a thing that disappeared is waited for. min_seen: frames a thing must be seen in.
    max_tracks: the best so many are kept. masks: whether to keep the regions' masks.
    """

    short_side: int = 72
    window: int = 64
    cue: str = "auto"
    low: float = 4.0
    high: float = 8.0
    min_area: float = 0.0015
    max_gap_s: float = 1.5
    min_seen: int = 3
    max_tracks: int = 64
    masks: bool = False

    def __post_init__(self) -> None:
        if self.cue not in CUES:
            raise RecipeError(f"cue is one of {', '.join(CUES)}, got {self.cue!r}")
        if self.short_side < 16 or self.window < 2 or self.min_seen < 1 or self.max_tracks < 1:
            raise RecipeError(
                "motion proposals need short_side >= 16, window >= 2, min_seen >= 1 and max_tracks >= 1, "
                f"got {self.short_side}, {self.window}, {self.min_seen} and {self.max_tracks}"
            )


@dataclass(slots=True, eq=False)  # told apart by identity: arrays have no one truth value
class _Path:
    """A thing that is being followed; boxes in units of the picture's short side, times in seconds."""

    rows: list[int]
    boxes: list[FloatArray]
    contrasts: list[float]
    colour: FloatArray
    masks: list[Rle | None]
    speed: FloatArray = field(default_factory=lambda: np.zeros(2))

    def expected(self, dt_s: float) -> FloatArray:
        """Its box after dt_s: straight on, for a quarter of a second at most."""
        step = self.speed * min(dt_s, 0.25)
        box: FloatArray = self.boxes[-1] + np.concatenate([step, step])
        return box

    @property
    def size(self) -> float:
        box = self.boxes[-1]
        return float(np.sqrt((box[2] - box[0]) * (box[3] - box[1])))


def propose_motion(source: Source, phrases: Sequence[str], settings: MotionSettings) -> Found:
    """Tracks of what stands out or moves in the source, best first. Phrases are ignored."""
    one_picture = len(source.grid) == 1
    if one_picture and settings.cue == "motion":
        raise RecipeError(
            "cue motion compares frames, and one picture shows none moving: use cue colour or auto, or name things to "
            f"a provider that detects them ({DETECTORS})"
        )
    size = fitted(source, settings.short_side)
    follower = _Follower(source.grid, size, settings)
    rows: list[int] = []
    frames: list[npt.NDArray[np.uint8]] = []
    cues: set[str] = set()

    def look() -> None:
        distance, colours, cue = distances(np.stack(frames), settings.cue)
        cues.add(cue)
        if one_picture and cue == "motion":  # many colours, but nothing else to go by
            distance, colours, _ = distances(np.stack(frames), "colour")
        least = max(9.0, settings.min_area * size[0] * size[1])
        for row, regions in zip(
            rows, find_regions(distance, colours, settings.low, settings.high, least), strict=True
        ):
            follower.step(row, regions)
        rows.clear()
        frames.clear()

    for row, picture in pictures(source, size):
        rows.append(row)
        frames.append(picture)
        if len(frames) == settings.window:
            look()
    if frames:
        look()
    tracks, notes = follower.finish()
    if one_picture and (not tracks or "motion" in cues):
        notes.append(
            "one picture shows no motion, so only regions of a colour of their own were looked for, which says little "
            f"on a background of many colours: a provider that detects what it is told ({DETECTORS}) finds more"
        )
    elif "motion" in cues:
        notes.append("the background has many colours: what stands still there was not looked for")
    return Found(tracks, notes)


class _Follower:
    """The online tracker. All lengths in units of the picture's short side."""

    def __init__(self, grid: FrameGrid, size: tuple[int, int], settings: MotionSettings) -> None:
        self.grid, self.settings = grid, settings
        self.width, self.height = size
        self.unit = float(min(size))
        self.live: list[_Path] = []
        self.over: Best[_Path] = Best(settings.max_tracks)

    def step(self, row: int, regions: list[Region]) -> None:
        time_s = self.grid.times_s[row]
        for path in [p for p in self.live if time_s - self.grid.times_s[p.rows[-1]] > self._patience(p)]:
            self.live.remove(path)
            self._put_away(path)
        waits = [float(time_s - self.grid.times_s[path.rows[-1]]) for path in self.live]
        expected = [path.expected(wait) for path, wait in zip(self.live, waits, strict=True)]
        regions = self._shared(regions, expected, waits)
        taken: set[int] = set()
        if self.live and regions:
            from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]

            cost = np.array(
                [
                    [self._cost(path, box, wait, region) for region in regions]
                    for path, box, wait in zip(self.live, expected, waits, strict=True)
                ]
            )
            for p, r in zip(*linear_sum_assignment(np.minimum(cost, 1e3)), strict=True):
                if cost[p, r] < 1e3:
                    self._append(self.live[p], row, regions[r])
                    taken.add(r)
        for r, region in enumerate(regions):
            if r not in taken:
                self.live.append(
                    _Path(
                        [row],
                        [region.box / self.unit],
                        [region.contrast],
                        region.colour,
                        [self._mask(region)],
                    )
                )

    def _patience(self, path: _Path) -> float:
        step_s = float(np.median(np.diff(self.grid.times_s))) if len(self.grid) > 1 else 1.0
        # what was seen once only is soon forgotten
        return max(2.5 * step_s, self.settings.max_gap_s if len(path.rows) >= 3 else 0.3)

    def _cost(self, path: _Path, expected: FloatArray, wait_s: float, region: Region) -> float:
        """How badly a region continues a path; 1e3 or more: not at all."""
        box = region.box / self.unit
        apart = float(np.hypot(*((box[:2] + box[2:] - expected[:2] - expected[2:]) / 2)))
        tint = float(np.hypot(*(region.colour - path.colour)))
        grown = abs(float(np.log(region.area / self.unit**2) - 2 * np.log(max(path.size, 1e-3))))
        if self._at_border(box) or self._at_border(path.boxes[-1]):
            grown *= 0.4  # things that come in or go out change their size fast
        reach = 0.6 * path.size + 1.3 * min(wait_s, 0.7)
        if apart > reach or tint > 0.35 or grown > 1.4:
            return 1e3
        return apart / (0.3 * path.size + 0.25 * wait_s + 0.02) + 6 * tint + 1.5 * grown

    def _shared(self, regions: list[Region], expected: list[FloatArray], waits: list[float]) -> list[Region]:
        """Cut regions in which two or more things of its colour are expected, and which are too big for either."""
        out: list[Region] = []
        for region in regions:
            claims = []
            for path, box, wait in zip(self.live, expected, waits, strict=True):
                if len(path.rows) < 3 or wait > 0.6 or np.hypot(*(region.colour - path.colour)) > 0.35:
                    continue
                pixels = box * self.unit
                w = min(pixels[2], region.box[2]) - max(pixels[0], region.box[0])
                h = min(pixels[3], region.box[3]) - max(pixels[1], region.box[1])
                area = max(1.0, (pixels[2] - pixels[0]) * (pixels[3] - pixels[1]))
                if w > 0 and h > 0 and w * h > 0.5 * area:
                    claims.append((pixels, area))
            if len(claims) >= 2 and region.area > 1.3 * max(area for _, area in claims):
                parts = share(region, [pixels for pixels, _ in claims])
                out.extend(part for part in parts if part is not None)
            else:
                out.append(region)
        return out

    def _at_border(self, box: FloatArray) -> bool:
        edge = 1.5 / self.unit
        return bool(
            box[0] < edge
            or box[1] < edge
            or box[2] > self.width / self.unit - edge
            or box[3] > self.height / self.unit - edge
        )

    def _append(self, path: _Path, row: int, region: Region) -> None:
        box = region.box / self.unit
        dt = float(self.grid.times_s[row] - self.grid.times_s[path.rows[-1]])
        moved = (box[:2] + box[2:] - path.boxes[-1][:2] - path.boxes[-1][2:]) / 2
        path.speed = 0.5 * path.speed + 0.5 * moved / dt
        path.rows.append(row)
        path.boxes.append(box)
        path.contrasts.append(region.contrast)
        path.colour = 0.9 * path.colour + 0.1 * region.colour
        path.masks.append(self._mask(region))

    def _mask(self, region: Region) -> Rle | None:
        if not self.settings.masks:
            return None
        full = np.zeros((self.height, self.width), dtype=np.bool_)
        x0, y0, x1, y1 = region.box.astype(int)
        full[y0:y1, x0:x1] = region.mask
        return encode(full)

    def _put_away(self, path: _Path) -> None:
        """It is over: kept if it was seen often enough and is among the best."""
        if len(path.rows) >= min(self.settings.min_seen, len(self.grid)):
            self.over.add(self._score(path), path)

    def finish(self) -> tuple[list[Track], list[str]]:
        """The best of what was seen often enough, as tracks, best first, and notes."""
        for path in self.live:
            self._put_away(path)
        self.live = []
        tracks = []
        for number, (score, path) in enumerate(self.over.ranked()):
            tracks.append(fill_gaps(self._track(number, score, path), self.grid, self.settings.max_gap_s))
        return tracks, self.over.notes()

    def _score(self, path: _Path) -> float:
        """In [0, 1]: how clearly it stands out, and for how much of the video."""
        clear = 1 - np.exp(-float(np.median(path.contrasts)) / 15)
        return float(clear * np.sqrt(len(path.rows) / len(self.grid)))

    def _track(self, number: int, score: float, path: _Path) -> Track:
        n = len(self.grid)
        scale = np.array([self.width, self.height, self.width, self.height]) / self.unit
        boxes, visible, scores = np.zeros((n, 4)), np.zeros(n, dtype=np.bool_), np.zeros(n)
        boxes[path.rows] = np.clip(np.stack(path.boxes) / scale, 0.0, 1.0)
        visible[path.rows] = True
        scores[path.rows] = 1 - np.exp(-np.array(path.contrasts) / 15)
        masks: tuple[Rle | None, ...] | None = None
        if self.settings.masks:
            kept = dict(zip(path.rows, path.masks, strict=True))
            masks = tuple(kept.get(row) for row in range(n))
        return Track(number, boxes, visible, score=score, box_scores=scores, masks=masks)
