"""Things followed by mask: collected frame by frame, made into tracks at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from tubelet.proposals.rle import Mask, Rle, box_of, encode
from tubelet.proposals.track import FloatArray, Track


@dataclass(slots=True, eq=False)
class MaskPath:
    """One thing: its phrase, the score of its last detection, and per row a mask with its box and score."""

    label: str
    score: float
    seen: dict[int, tuple[Rle, FloatArray, float]] = field(default_factory=dict)

    def see(self, row: int, mask: Mask, score: float) -> None:
        """Keep a mask; an empty one, or one that is rather not there (score 0 to 1), shows nothing."""
        box = box_of(mask)
        if box is not None and score > 0.5 * self.score:
            self.seen[row] = (encode(mask), box, min(1.0, max(0.0, score)))


def tracks_of(
    paths: Sequence[MaskPath], n_frames: int, min_seen: int, max_tracks: int, masks: bool
) -> list[Track]:
    """Tracks of the paths that were seen in `min_seen` frames (or all there are), best first."""
    kept = [p for p in paths if len(p.seen) >= min(min_seen, n_frames) and p.seen]
    kept.sort(key=lambda p: -p.score * np.sqrt(len(p.seen)))
    tracks = []
    for number, path in enumerate(kept[:max_tracks]):
        boxes, visible, scores = (
            np.zeros((n_frames, 4)),
            np.zeros(n_frames, dtype=np.bool_),
            np.zeros(n_frames),
        )
        shown: list[Rle | None] = [None] * n_frames
        for row, (mask, box, score) in path.seen.items():
            boxes[row], visible[row], scores[row], shown[row] = box, True, score, mask
        tracks.append(
            Track(
                number,
                boxes,
                visible,
                score=min(1.0, max(0.0, path.score)),
                box_scores=scores,
                masks=tuple(shown) if masks else None,
                label=path.label,
            )
        )
    return tracks
