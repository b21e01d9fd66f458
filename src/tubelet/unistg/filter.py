"""Filter: which tubes are good enough to learn from (Uni-STG, stage 4). Many records at a time, in numpy.

In this order, the first that holds is the reason:
- frames with more than 3 boxes lose their box ("complex"); a tube without any left is dropped ("complex-frames");
- the area of the box changes by more than 2x between neighbouring frames: the tube is dropped ("area-jump");
- too few boxes, or boxes in too small a part of the span's frames ("too-few-boxes", "too-sparse");
- mean confidence below 0.3 ("low-confidence").

Neighbouring frames are neighbouring sampled frames that both kept their box: a hole is not a jump. Nor is it one when
the smaller box is cut by the picture's edge (`edge_margin`, ours): its area is only the part in the picture, a lower
bound, so that a thing that comes in or goes out says nothing about the track. A larger box at the edge is still judged.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt

from tubelet.tube import Span, Tube
from tubelet.unistg.recipe import FilterSettings, UniSTGRecipe
from tubelet.unistg.records import Drop, FloatArray, IntArray, Refined, Sample

REASONS = ("", "complex-frames", "area-jump", "too-few-boxes", "too-sparse", "low-confidence")
BoolArray = npt.NDArray[np.bool_]
_BATCH = 1024


def judge(
    rows: IntArray,
    boxes_xyxy: FloatArray,
    scores: FloatArray,
    n_boxes: IntArray,
    lengths: IntArray,
    settings: FilterSettings,
) -> tuple[IntArray, BoolArray]:
    """Verdicts over R records whose N boxes lie one after the other, lengths (R,), each at least 1.

    Returns the reason of each record (R,), a place in REASONS (0: kept), and which boxes are kept (N,).
    """
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    owner = np.repeat(np.arange(len(lengths)), lengths)
    keep = n_boxes <= settings.max_boxes
    kept = np.add.reduceat(keep.astype(np.int64), starts)
    area = (boxes_xyxy[:, 2] - boxes_xyxy[:, 0]) * (boxes_xyxy[:, 3] - boxes_xyxy[:, 1])
    neighbours = (np.diff(rows) == 1) & (np.diff(owner) == 0) & keep[1:] & keep[:-1]
    larger, smaller = np.maximum(area[1:], area[:-1]), np.minimum(area[1:], area[:-1])
    jump = neighbours & (larger > settings.max_area_ratio * smaller * (1 + 1e-9))
    if settings.edge_margin is not None:
        cut = _at_edge(boxes_xyxy, settings.edge_margin)
        jump &= ~np.where(area[1:] < area[:-1], cut[1:], cut[:-1])
    jumps = np.bincount(owner[1:][jump], minlength=len(lengths))
    frames = rows[starts + lengths - 1] - rows[starts] + 1
    sums = np.bincount(owner, weights=np.where(keep, scores, 0.0), minlength=len(lengths))
    mean = sums / np.maximum(kept, 1)
    rules = [
        kept == 0,
        jumps > 0,
        kept < settings.min_boxes,
        kept < settings.min_coverage * frames - 1e-9,
        mean < settings.min_confidence - 1e-9,
    ]
    return np.select(rules, list(range(1, len(rules) + 1)), default=0).astype(np.int64), keep


def _at_edge(boxes_xyxy: FloatArray, margin: float) -> BoolArray:
    """(N,) boxes with a side within `margin` of the picture's edge, or beyond."""
    x0, y0, x1, y1 = boxes_xyxy.T
    low, high = margin + 1e-9, 1 - margin - 1e-9
    return np.asarray((x0 <= low) | (y0 <= low) | (x1 >= high) | (y1 >= high))


def filter_records(refined: Iterable[Refined], recipe: UniSTGRecipe | None = None) -> Iterator[Sample | Drop]:
    """A Sample or a Drop per record, in order; `recipe` gives the thresholds and goes into the provenance.

    Reads 1,024 records ahead. The arrays of samples are read-only parts of one array per such batch.
    """
    recipe = recipe or UniSTGRecipe()
    thresholds, digest = recipe.thresholds(), recipe.digest()
    source = iter(refined)
    while batch := list(islice(source, _BATCH)):
        yield from _judged(batch, recipe.filter, thresholds, digest)


def _judged(
    batch: Sequence[Refined], settings: FilterSettings, thresholds: dict[str, object], digest: str
) -> Iterator[Sample | Drop]:
    flat = _flatten(batch)
    reasons, keep = judge(flat.rows, flat.boxes_xyxy, flat.scores, flat.n_boxes, flat.lengths, settings)
    ends = np.cumsum(np.bincount(flat.owner[keep], minlength=len(batch))).tolist()
    times, raw = _fixed(flat.times_s[keep]), _fixed(flat.boxes_xyxy[keep])
    boxes, scores = _fixed(np.clip(raw, 0.0, 1.0)), _fixed(np.clip(flat.scores[keep], 0.0, 1.0))
    checked = _tubes_hold(batch, flat, keep).tolist()
    coarse = np.round(
        [(s.start_s, s.end_s) for s in (r.detected.phrase.caption.span for r in batch)], 6
    ).tolist()
    start = 0
    for record, reason, end, sound, (start_s, end_s), length in zip(
        batch, reasons.tolist(), ends, checked, coarse, flat.lengths.tolist(), strict=True
    ):
        detected = record.detected
        phrase = detected.phrase
        caption = phrase.caption
        if reason:
            yield Drop(phrase.key, "filter", REASONS[reason], f"{end - start} of {length} boxes left")
            start = end
            continue
        own = scores[start:end]
        score = round(float(np.add.reduce(own) / (end - start)), 6)
        if sound:
            tube = _sound_tube(record.span, times[start:end], boxes[start:end], score, own, phrase.text)
        else:  # Tube decides, and says what is wrong with it
            tube = Tube(record.span, times[start:end], raw[start:end], score, own, phrase.text)
        start = end
        provenance: dict[str, object] = {
            "caption_id": caption.id,
            "source": caption.source,
            "phrase": phrase.text,
            "subject": phrase.subject,
            "coarse_span": {"start_s": start_s, "end_s": end_s},
            "duration_s": caption.duration_s,
            "analyzer": phrase.analyzer,
            "annotator": detected.annotator,
            "video_hash": detected.video_sha256,
            "frames": len(detected.times_s),
            "boxes_cut": detected.n_cut,
            "thresholds": thresholds,
            "recipe": digest,
        }
        # the whole sentence is about its subject only
        sentence = caption.text if phrase.subject else phrase.text
        yield Sample(phrase.key, caption.video, sentence, tube, provenance)


@dataclass(frozen=True, slots=True)
class _Flat:
    """R records, their N boxes one after the other. owner: (N,) which record a box is of; lengths: (R,)."""

    rows: IntArray
    times_s: FloatArray
    boxes_xyxy: FloatArray
    scores: FloatArray
    n_boxes: IntArray
    owner: IntArray
    lengths: IntArray


def _flatten(batch: Sequence[Refined]) -> _Flat:
    lengths = np.array([len(r.rows) for r in batch], dtype=np.int64)
    moments = [r.detected.times_s for r in batch]
    before = np.concatenate([[0], np.cumsum([len(m) for m in moments])[:-1]])
    owner = np.repeat(np.arange(len(batch)), lengths)
    rows = np.concatenate([r.rows for r in batch])
    return _Flat(
        rows,
        np.concatenate(moments)[rows + before[owner]],
        np.concatenate([r.boxes_xyxy for r in batch]),
        np.concatenate([r.scores for r in batch]),
        np.concatenate([r.n_boxes for r in batch]),
        owner,
        lengths,
    )


def _tubes_hold(batch: Sequence[Refined], flat: _Flat, keep: BoolArray) -> BoolArray:
    """(R,) records whose kept boxes and times pass every check of `Tube` for sure (it is the judge of the others)."""
    boxes, times, owner = flat.boxes_xyxy[keep], flat.times_s[keep], flat.owner[keep]
    low, high = np.array([(r.span.start_s, r.span.end_s) for r in batch]).T
    right = np.isfinite(boxes).all(axis=1) & np.isfinite(flat.scores[keep]) & np.isfinite(times)
    right &= ((boxes >= 0) & (boxes <= 1)).all(axis=1) & (boxes[:, 2:] >= boxes[:, :2]).all(axis=1)
    right &= (times >= low[owner]) & (times <= high[owner])
    right[1:] &= (np.diff(times) > 0) | (np.diff(owner) > 0)
    return np.asarray(np.bincount(owner[~right], minlength=len(batch)) == 0)


def _sound_tube(
    span: Span, times_s: FloatArray, boxes_xyxy: FloatArray, score: float, box_scores: FloatArray, label: str
) -> Tube:
    """A Tube of read-only arrays that `_tubes_hold` checked: the same object, without checking it again one by one."""
    tube = object.__new__(Tube)
    fill = object.__setattr__
    fill(tube, "span", span)
    fill(tube, "times_s", times_s)
    fill(tube, "boxes_xyxy", boxes_xyxy)
    fill(tube, "score", score)
    fill(tube, "box_scores", box_scores)
    fill(tube, "label", label)
    return tube


def _fixed(values: FloatArray) -> FloatArray:
    array = np.asarray(values, dtype=np.float64)
    array.flags.writeable = False
    return array
