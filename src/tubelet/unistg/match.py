"""Which tracks of a video a phrase means, and how sure that is. The Annotator's second half.

A provider that reads phrases (Grounding DINO, SAM 3, OWLv2) has answered already: its labels are the phrases
("provider"). Providers that know no phrases (motion, files, world-truth) need one of these:

    only       the one track there is in the span; several are all kept, and left to the Filter
    largest    the track with the largest mean area in the span
    colour     tracks whose pixels have the colour that the phrase names ("a red ball"): the score is the part of the
               box in that colour, twice, at most 1; every track that is near the best is kept, so that a caption
               whose colour does not say which thing is meant looks ambiguous. Phrases without a colour: all tracks
    grounder   the track that lies best on the tube which a grounder gives for the whole sentence; the score is the
               mean box IoU. The grounder's mistakes come along: do not train its like on the result

Colours are told from hue, saturation and brightness (eleven basic names). No other word is understood: "colour" is no
detector, and the score of "only" and "largest" is the provider's own (1 where it has none).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tubelet.frames import Clip
from tubelet.metrics.boxes import box_area, paired_iou
from tubelet.proposals.track import Track, Tracks
from tubelet.tube import Span, Tube

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

_WORD = re.compile(r"[a-z]+")
_HUES = {  # degrees from, to
    "red": (345.0, 15.0),
    "orange": (15.0, 42.0),
    "yellow": (42.0, 70.0),
    "green": (70.0, 165.0),
    "cyan": (165.0, 200.0),
    "blue": (200.0, 262.0),
    "purple": (262.0, 310.0),
    "pink": (310.0, 345.0),
}
_SAME = {"turquoise": "cyan", "violet": "purple", "magenta": "pink", "grey": "gray", "golden": "yellow"}
COLOUR_WORDS = (*_HUES, "brown", "white", "black", "gray", *_SAME)
_NEAR_BEST = 0.6  # tracks with at least this part of the best one's colour are candidates, too
_FULL = 0.5  # part of a box in the colour that makes a score of 1: shapes do not fill their boxes


@dataclass(frozen=True, slots=True, eq=False)
class Matched:
    """A track that a phrase may mean, and the score of every one of its boxes (T,)."""

    track: Track
    scores: FloatArray


def by_label(tracks: Tracks, phrase: str) -> list[Matched]:
    """Tracks whose label is the phrase. A detector may answer with a part of it: its words must all be in the phrase.

    An exact label wins over a part; tracks without a label belong to nobody.
    """
    wanted = _plain(phrase)
    labels = [(track, _plain(track.label)) for track in tracks if track.label]
    exact = [track for track, label in labels if label == wanted]
    words = set(wanted.split())
    part = [track for track, label in labels if label and set(label.split()) <= words]
    return [Matched(track, box_scores(track)) for track in exact or part]


def only(tracks: Tracks, inside: BoolArray) -> list[Matched]:
    return [Matched(t, box_scores(t)) for t in tracks if (t.visible & inside).any()]


def largest(tracks: Tracks, inside: BoolArray) -> list[Matched]:
    found = only(tracks, inside)
    if not found:
        return []
    areas = [float(box_area(m.track.boxes_xyxy[m.track.visible & inside]).mean()) for m in found]
    return [found[int(np.argmax(areas))]]


def by_colour(
    tracks: Tracks, inside: BoolArray, phrase: str, shares: Mapping[str, FloatArray]
) -> list[Matched]:
    """shares: colour -> part of each track's boxes (P,) in that colour (`colour_shares`)."""
    colour = colour_of(phrase)
    if colour is None:
        return only(tracks, inside)
    share = shares[colour]
    seen = np.array([bool((t.visible & inside).any()) for t in tracks], dtype=np.bool_)
    if not seen.any():
        return []
    best = float(share[seen].max())
    out = []
    for track, value, ok in zip(tracks, share.tolist(), seen.tolist(), strict=True):
        if ok and value > 0 and value >= _NEAR_BEST * best:
            out.append(Matched(track, np.where(track.visible, min(1.0, value / _FULL), 0.0)))
    return out


def by_tube(tracks: Tracks, inside: BoolArray, tube: Tube | None, coarse: Span) -> list[Matched]:
    """The track that lies best on a tube, by mean IoU over the moments of the coarse span where the tube has a box."""
    if tube is None:
        return []
    boxes = tube.boxes_at(tracks.grid.times_s)
    at = inside & ~np.isnan(boxes[:, 0]) & coarse.contains(tracks.grid.times_s)
    if not at.any() or not len(tracks):
        return []
    overlap = [
        float(np.where(t.visible[at], paired_iou(t.boxes_xyxy[at], boxes[at]), 0.0).mean()) for t in tracks
    ]
    best = int(np.argmax(overlap))
    if overlap[best] <= 0:
        return []
    track = tracks[best]
    return [Matched(track, np.where(track.visible, overlap[best], 0.0))]


def colour_of(phrase: str) -> str | None:
    """The first colour that the phrase names, None without."""
    for word in _WORD.findall(phrase.lower()):
        if word in COLOUR_WORDS:
            return str(_SAME.get(word, word))
    return None


def colour_shares(clip: Clip, tracks: Tracks, colours: Sequence[str]) -> dict[str, FloatArray]:
    """Colour -> (P,) part of the pixels in each track's boxes that have it, mean over the frames of `clip`.

    The frames of the clip are frames of the tracks' grid.
    """
    row_of = {int(number): row for row, number in enumerate(tracks.grid.frame_index)}
    height, width = clip.pixels.shape[1:3]
    sums = {colour: np.zeros(len(tracks)) for colour in colours}
    counts = np.zeros(len(tracks))
    for number, picture in zip(clip.grid.frame_index, clip.pixels, strict=True):
        row = row_of[int(number)]
        masks = {colour: has_colour(picture, colour) for colour in colours}
        for place, track in enumerate(tracks):
            if not track.visible[row]:
                continue
            x0, y0, x1, y1 = track.boxes_xyxy[row] * (width, height, width, height)
            part = (slice(int(y0), max(int(y0) + 1, round(y1))), slice(int(x0), max(int(x0) + 1, round(x1))))
            counts[place] += 1
            for colour in colours:
                sums[colour][place] += float(masks[colour][part].mean())
    return {colour: total / np.maximum(counts, 1) for colour, total in sums.items()}


def has_colour(picture: npt.NDArray[np.uint8], colour: str) -> BoolArray:
    """(H, W) pixels of an rgb picture (H, W, 3) that have a basic colour."""
    rgb = picture.astype(np.float64) / 255
    high, low = rgb.max(axis=-1), rgb.min(axis=-1)
    chroma = high - low
    saturation = chroma / np.maximum(high, 1e-6)
    grey = (saturation < 0.25) | (chroma < 0.12)
    if colour == "white":
        return np.asarray(grey & (low > 0.72))
    if colour == "black":
        return np.asarray(high < 0.2)
    if colour == "gray":
        return np.asarray(grey & (high >= 0.2) & (low <= 0.72))
    r, g, b = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    safe = np.maximum(chroma, 1e-6)
    hue = np.where(high == r, (g - b) / safe % 6, np.where(high == g, (b - r) / safe + 2, (r - g) / safe + 4))
    hue = hue * 60 % 360
    dull = (high < 0.6) & (hue >= 10) & (hue < 50)
    if colour == "brown":
        return np.asarray(~grey & dull & (high >= 0.2))
    start, end = _HUES[colour]
    inside = (hue >= start) & (hue < end) if start < end else (hue >= start) | (hue < end)
    return np.asarray(inside & ~grey & (high >= 0.2) & ~(dull & (colour == "orange")))


def box_scores(track: Track) -> FloatArray:
    """(T,) scores of a track's boxes: its own, else the track's, else 1."""
    if track.box_scores is not None:
        return track.box_scores
    return np.where(track.visible, 1.0 if track.score is None else track.score, 0.0)


def _plain(text: str | None) -> str:
    return " ".join(_WORD.findall((text or "").lower()))
