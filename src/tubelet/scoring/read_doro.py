"""DORO-STVG's results: spans and boxes by number of the sampled frame, ends included, boxes as fractions.

    {"item_id": "50_TM5MPJIq1Is.mkv", "pred_temporal_bound": [0, 10], "pred_bboxes": {"0": [x0, y0, x1, y1], ...}}
    {"video_name": "...", "pred_temporal_sampled": [..], "pred_bboxes_sampled": {..}, "gt_temporal_sampled": [..],
     "gt_bboxes_sampled": {..}}
    {"video_name": "...", "prediction": [{"temporal_span": [..], "spatial_bboxes": {..}}]}

The second carries its truth: it is scored on the sampled frames (protocol doro exactly as its evaluator does), and no
dataset is needed. The others need one; their frames are `uniform:N` of the video, N from num_frames or the metadata,
else 100 (or as declared).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import numpy as np

from tubelet.datasets.fields import Item, RecordError, show
from tubelet.metrics.truth import Truth
from tubelet.scoring.answers import Answer, BoxUnit, RawTube, TimeUnit
from tubelet.scoring.checks import Frame, to_prediction
from tubelet.scoring.lines import Source, json_items
from tubelet.scoring.raw import Box, keyed_boxes, pair, record_id
from tubelet.scoring.readers import Options, each
from tubelet.scoring.truths import Case
from tubelet.tube import Span

IDS = ("item_id", "id", "qid", "query_id", "video_name")
_SPANS = ("pred_temporal_sampled", "pred_temporal_bound", "pred_span_inclusive")
_BOXES = ("pred_bboxes_sampled", "pred_bboxes", "pred_boxes")
_TRUE_SPANS = ("gt_temporal_sampled", "gt_span_inclusive")
_TRUE_BOXES = ("gt_bboxes_sampled", "gt_boxes")
_MOST = 100_000  # frames


def has_truth(item: Item) -> bool:
    return any(item.has(key) for key in _TRUE_SPANS)


def read_doro(source: Source, options: Options, known: Collection[str]) -> Iterator[Answer]:
    """Answers to be scored against a dataset."""
    return each(source, known, lambda item: _answer(item, options, uniform=True), IDS)


def read_doro_cases(source: Source, options: Options) -> Iterator[tuple[Item, str, Case]]:
    """(record, "stvg", case) of records that carry their truth."""
    for k, item in enumerate(json_items(source)):
        try:
            if not has_truth(item):
                raise item.error(
                    _TRUE_SPANS[0], "is missing: without a truth of its own, give --benchmark and --data"
                )
            yield item, "stvg", _case(item, options, k, source)
        except RecordError as error:
            source.broken(error)


def _key(item: Item, names: tuple[str, ...]) -> str | None:
    return next((key for key in names if key in item.data), None)


def _answer(item: Item, options: Options, uniform: bool, name: str = "") -> Answer:
    name = name or record_id(item, IDS)
    unit = options.times or (
        TimeUnit("uniform", of=_sampled(item)) if uniform else TimeUnit("frame", rate=1.0)
    )
    common: dict[str, Any] = {
        "boxes_unit": options.boxes or BoxUnit(),
        "times_unit": unit,
        "inclusive": True,
    }
    tracks = _tracks(item)
    tubes = []
    for track, span_key, boxes_key in tracks:
        if track.data.get(span_key) is None:
            continue
        boxes = keyed_boxes(track, boxes_key) if boxes_key and track.has(boxes_key) else {}
        at = [number_of(track, boxes_key or "", key) for key in boxes]
        tubes.append(RawTube.make(pair(track, span_key, track.data[span_key]), at, list(boxes.values())))
    failure = None if tubes else ("unread", "the record has no predicted span")
    return Answer(name, item.where, tuple(tubes), failure=failure, **common)


def number_of(item: Item, key: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise item.error(key, f"expected boxes by number of frame, got the key {show(text)}") from None


def _tracks(item: Item) -> list[tuple[Item, str, str | None]]:
    """Where the span and the boxes of each predicted object are."""
    span = _key(item, _SPANS)
    if span is not None:
        return [(item, span, _key(item, _BOXES))]
    if "prediction" in item.data:
        return [(track, "temporal_span", "spatial_bboxes") for track in item.children("prediction")]
    raise item.error(_SPANS[0], f"is missing: the span is expected as one of {', '.join(_SPANS)}, prediction")


def _sampled(item: Item) -> int:
    if item.has("num_frames"):
        return item.whole("num_frames", 2, _MOST)
    if item.has("video_metadata"):
        meta = item.child("video_metadata")
        if meta.has("num_frames_sampled"):
            return meta.whole("num_frames_sampled", 2, _MOST)
    return 100


def _case(item: Item, options: Options, k: int, source: Source) -> Case:
    span_key, boxes_key = _key(item, _TRUE_SPANS), _key(item, _TRUE_BOXES)
    assert span_key is not None  # has_truth said so
    true_span = item.numbers(span_key, 2, 0)
    if boxes_key is None:
        raise item.error(_TRUE_BOXES[0], "is missing: a record with a true span has true boxes")
    if not (all(x.is_integer() and x < _MOST for x in true_span) and true_span[1] >= true_span[0]):
        raise item.error(span_key, f"expected numbers of sampled frames, got {true_span}")
    true_boxes = _frames(item, boxes_key, keyed_boxes(item, boxes_key))
    if any(not np.isfinite(box).all() for box in true_boxes.values()):
        raise item.error(boxes_key, "true boxes must be finite")
    name = record_id(item, IDS) if _key(item, IDS) else str(k)
    answer = _answer(item, options, uniform=False, name=name)
    tube = answer.tubes[0] if answer.tubes else None
    given: dict[float, Any] = {}
    if tube is not None:
        for at, box in zip(tube.times, tube.boxes, strict=True):
            given.setdefault(float(at), box)
    finite = tube is not None and tube.span is not None and bool(np.isfinite(tube.span).all())
    native = {
        "span": tube.span if tube is not None and finite else None,
        "boxes": {at: box for at, box in given.items() if np.isfinite(at) and np.isfinite(box).all()},
        "true_span": true_span,
        "true_boxes": true_boxes,
    }
    prediction = to_prediction(answer, Frame(), source.counts)
    return Case(name, (_truth(native),), prediction, failure=prediction.failure, native=native)


def _frames(item: Item, key: str, boxes: dict[str, Box]) -> dict[float, Box]:
    out: dict[float, Box] = {}
    for text, box in boxes.items():
        at = number_of(item, key, text)
        if not at.is_integer() or not 0 <= at < _MOST:
            raise item.error(key, f"expected boxes by number of frame, got the key {show(text)}")
        out[at] = box
    return out


def _truth(native: dict[str, Any]) -> Truth:
    """On the sampled frames, one per second: protocols see the sampled frames and nothing else."""
    start, end = native["true_span"]
    at = np.array(sorted(f for f in native["true_boxes"] if start <= f <= end))
    boxes = np.array([native["true_boxes"][f] for f in at.tolist()], dtype=np.float64).reshape(-1, 4)
    n = int(max([end, *native["true_boxes"], 99.0])) + 1
    return Truth(Span(start, end + 1.0), np.arange(n, dtype=np.float64), at, boxes)
