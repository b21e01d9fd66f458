"""STVG-R1's answers as tubes: an object id and seconds, boxes from the masks of tracked objects.

Its evaluator never leaves a frame without a box: where the chosen object is absent it takes the object that overlaps
the previous box best, else the nearest frame's, else the largest object in the picture. Reading follows that, frame
by frame because each choice depends on the last one; scoring is protocol stvg_r1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tubelet.metrics.answers import stvg_r1_answer
from tubelet.metrics.boxes import box_area, pairwise_iou, span_iou, xywh_to_xyxy
from tubelet.metrics.protocols import protocol
from tubelet.metrics.ragged import Tubes
from tubelet.metrics.tubes import TubeScores, score_tubes

Objects = Mapping[str, Sequence[float]]


def chosen_boxes(
    objects: Mapping[int, Objects], target: int, first: int, last: int
) -> dict[int, Sequence[float]]:
    """Box of every frame of [first, last] that has objects {id as text: xyxy}, with the public code's fallbacks."""
    key = str(target)
    seen = [f for f in range(first, last + 1) if key in objects.get(f, {})]
    boxes: dict[int, Sequence[float]] = {}
    current: Sequence[float] | None = None
    latest: int | None = None
    for frame in range(first, last + 1):
        here = objects.get(frame)
        if here is None:
            continue
        if key in here:
            boxes[frame] = current = here[key]
            latest = frame
            continue
        if current is not None:
            chosen = _best_overlap(here, current) or _largest(here)
            if chosen is None and latest is not None:
                chosen = current = _best_overlap(here, objects[latest][key]) or objects[latest][key]
        else:
            chosen = None
            if seen:
                nearest = objects[min(seen, key=lambda f: abs(f - frame))][key]
                chosen = current = _best_overlap(here, nearest) or nearest
                latest = max((f for f in seen if f <= frame), default=latest)
            else:
                chosen = _largest(here)
        if chosen is not None:
            boxes[frame] = chosen
    return boxes


def score_stvg_r1(records: Sequence[Mapping[str, Any]]) -> TubeScores:
    """Scores of records with response, fps, gt_timestamps (s), st_frame, gt_bbox_xywh and
    object_boxes_by_frame_xyxy {frame: {id: xyxy}}; an answer that does not parse fails."""
    rules = protocol("stvg_r1").rules
    failures: dict[int, str] = {}
    spans: list[tuple[int, int] | None] = []
    boxes: list[dict[int, Sequence[float]]] = []
    tiou = np.zeros(len(records))
    for row, r in enumerate(records):
        answer = stvg_r1_answer(r["response"])
        if answer is None:
            failures[row] = "the answer does not parse: no object id or no time range"
            spans.append(None)
            boxes.append({})
            continue
        target, start_s, end_s = answer
        tiou[row] = span_iou([start_s, end_s], r["gt_timestamps"])
        first, last = int(start_s * r["fps"]), int(end_s * r["fps"])
        low, high = (int(t * r["fps"]) for t in r["gt_timestamps"])
        objects = {int(f): o for f, o in r["object_boxes_by_frame_xyxy"].items()}
        spans.append((first, last))
        boxes.append(chosen_boxes(objects, target, max(first, low), min(last, high)))
    predicted = Tubes.stack(spans, [list(b) for b in boxes], [list(b.values()) for b in boxes])
    truth = Tubes.stack(
        [[int(t * r["fps"]) for t in r["gt_timestamps"]] for r in records],
        [r["st_frame"] + np.arange(len(r["gt_bbox_xywh"])) for r in records],
        [xywh_to_xyxy(np.asarray(r["gt_bbox_xywh"], dtype=np.float64).reshape(-1, 4)) for r in records],
    )
    scores = score_tubes(predicted, truth, rules)
    return TubeScores(
        tiou, scores.viou, scores.gt_viou, scores.siou, scores.volume_iou, failures | scores.failures
    )


def _best_overlap(objects: Objects, box: Sequence[float]) -> Sequence[float] | None:
    """The object that overlaps a box best, None if none does."""
    if not objects:
        return None
    listed = list(objects.values())
    iou = pairwise_iou(listed, [box])[:, 0]
    return listed[int(iou.argmax())] if iou.max() > 0 else None


def _largest(objects: Objects) -> Sequence[float] | None:
    if not objects:
        return None
    listed = list(objects.values())
    area = box_area(listed)
    return listed[int(area.argmax())] if area.max() > 0 else None
