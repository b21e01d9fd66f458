"""Things followed by mask: collected frame by frame, made into tracks at the end.

What is over and cannot be a result (seen too rarely, or outranked by `max_tracks` others) is forgotten at once, so that
what is held grows with the video only by the masks of the results: a result needs its masks.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from tubelet.proposals.best import Best
from tubelet.proposals.rle import Mask, Rle, box_of, encode
from tubelet.proposals.track import FloatArray, Track


@dataclass(slots=True, eq=False)
class MaskPath:
    """One thing: its phrase, the score of its last detection, and per row a mask (or None: `masks` is False) with its
    box and score."""

    label: str
    score: float
    masks: bool = True
    seen: dict[int, tuple[Rle | None, FloatArray, float]] = field(default_factory=dict)

    def see(self, row: int, mask: Mask, score: float) -> None:
        """Keep a mask; an empty one, or one that is rather not there (score 0 to 1), shows nothing."""
        box = box_of(mask)
        if box is not None and score > 0.5 * self.score:
            self.seen[row] = (encode(mask) if self.masks else None, box, min(1.0, max(0.0, score)))

    @property
    def rank(self) -> float:
        return float(self.score * np.sqrt(len(self.seen)))


class MaskPaths:
    """All things of a video of `n_frames`. Those that are over go into `over`, the best `max_tracks` of them stay."""

    def __init__(self, n_frames: int, min_seen: int, max_tracks: int, masks: bool) -> None:
        self.n_frames, self.masks = n_frames, masks
        self.needed = max(1, min(min_seen, n_frames))
        self.live: list[MaskPath] = []
        self.over: Best[MaskPath] = Best(max_tracks)

    def start(self, label: str, score: float) -> MaskPath:
        path = MaskPath(label, score, self.masks)
        self.live.append(path)
        return path

    def only(self, going_on: Iterable[MaskPath]) -> None:
        """All other things are over: nothing more will be seen of them."""
        names = {id(path) for path in going_on}
        for path in self.live:
            if id(path) not in names and len(path.seen) >= self.needed:
                self.over.add(path.rank, path)
        self.live = [path for path in self.live if id(path) in names]

    def finish(self) -> tuple[list[Track], list[str]]:
        """Tracks of what was seen in `min_seen` frames (or all there are), best first, and notes."""
        self.only(())
        tracks = [self._track(number, path) for number, (_, path) in enumerate(self.over.ranked())]
        return tracks, self.over.notes()

    def _track(self, number: int, path: MaskPath) -> Track:
        boxes, scores = np.zeros((self.n_frames, 4)), np.zeros(self.n_frames)
        visible = np.zeros(self.n_frames, dtype=np.bool_)
        shown: list[Rle | None] = [None] * self.n_frames
        for row, (mask, box, score) in path.seen.items():
            boxes[row], visible[row], scores[row], shown[row] = box, True, score, mask
        return Track(
            number,
            boxes,
            visible,
            score=min(1.0, max(0.0, path.score)),
            box_scores=scores,
            masks=tuple(shown) if self.masks else None,
            label=path.label,
        )
