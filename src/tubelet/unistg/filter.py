"""Filter: which tubes are good enough to learn from (Uni-STG, stage 4). Many records at a time, in numpy.

In this order, the first that holds is the reason:
- frames with more than 3 boxes lose their box ("complex"); a tube without any left is dropped ("complex-frames");
- the area of the box changes by more than 2x between neighbouring frames: the tube is dropped ("area-jump");
- too few boxes, or boxes in too small a part of the span's frames ("too-few-boxes", "too-sparse");
- mean confidence below 0.3 ("low-confidence").

Neighbouring frames are neighbouring sampled frames that both kept their box: a hole is not a jump.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import numpy as np
import numpy.typing as npt

from tubelet.tube import Tube
from tubelet.unistg.recipe import FilterSettings, UniSTGRecipe
from tubelet.unistg.records import Drop, FloatArray, IntArray, Refined, Sample

REASONS = ("", "complex-frames", "area-jump", "too-few-boxes", "too-sparse", "low-confidence")
_BATCH = 4096


def judge(
    rows: IntArray,
    boxes_xyxy: FloatArray,
    scores: FloatArray,
    n_boxes: IntArray,
    lengths: IntArray,
    settings: FilterSettings,
) -> tuple[IntArray, npt.NDArray[np.bool_]]:
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


def judge_records(
    refined: Sequence[Refined], settings: FilterSettings
) -> tuple[IntArray, npt.NDArray[np.bool_]]:
    """`judge` over records."""
    lengths = np.array([len(r.rows) for r in refined], dtype=np.int64)
    return judge(
        np.concatenate([r.rows for r in refined]),
        np.concatenate([r.boxes_xyxy for r in refined]),
        np.concatenate([r.scores for r in refined]),
        np.concatenate([r.n_boxes for r in refined]),
        lengths,
        settings,
    )


def filter_records(refined: Iterable[Refined], recipe: UniSTGRecipe | None = None) -> Iterator[Sample | Drop]:
    """A Sample or a Drop per record, in order; `recipe` gives the thresholds and goes into the provenance."""
    recipe = recipe or UniSTGRecipe()
    thresholds, digest = recipe.thresholds(), recipe.digest()
    source = iter(refined)
    while batch := list(islice(source, _BATCH)):
        reasons, keep = judge_records(batch, recipe.filter)
        start = 0
        for record, reason in zip(batch, reasons.tolist(), strict=True):
            mask = keep[start : start + len(record.rows)]
            start += len(record.rows)
            if reason:
                detail = f"{int(mask.sum())} of {len(mask)} boxes left"
                yield Drop(record.detected.phrase.key, "filter", REASONS[reason], detail)
            else:
                yield make_sample(record, mask, thresholds, digest)


def make_sample(
    record: Refined, mask: npt.NDArray[np.bool_], thresholds: dict[str, object], digest: str
) -> Sample:
    detected = record.detected
    phrase, caption = detected.phrase, detected.phrase.caption
    scores = np.clip(record.scores[mask], 0.0, 1.0)
    tube = Tube(
        record.span,
        record.times_s[mask],
        record.boxes_xyxy[mask],
        score=round(float(scores.mean()), 6),
        box_scores=scores,
        label=phrase.text,
    )
    provenance: dict[str, object] = {
        "caption_id": caption.id,
        "source": caption.source,
        "phrase": phrase.text,
        "subject": phrase.subject,
        "coarse_span": caption.span.to_dict(),
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
    return Sample(phrase.key, caption.video, sentence, tube, provenance)
