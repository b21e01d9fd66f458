"""Speed of the metrics: 3,000 tubes against a per-frame loop, and the bootstrap of 10,000 queries.

    python perf/metrics.py [--tubes 3000] [--seed 0]

The loop is written the way the public evaluators of the TubeDETR family are: sets of frame numbers, a dictionary of
boxes per query, and one small numpy IoU of two (1, 4) arrays per frame. Both sides score the same seeded tubes with
HC-STVG's shape (20 s at 25 fps, true spans of 1 to 18 s), and must agree to 1e-9. Times are processor time of one
thread, the best of several runs, so that a busy machine does not decide. A second loop does its IoU in plain
Python floats: faster than any public evaluator we know of, and still a loop.
"""

from __future__ import annotations

import argparse
import os
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from tubelet.metrics.bootstrap import bootstrap_mean, bootstrap_table
from tubelet.metrics.grounding import score_many
from tubelet.metrics.protocols import PROTOCOLS
from tubelet.metrics.ragged import Tubes
from tubelet.metrics.truth import Truth
from tubelet.metrics.tubes import score_tubes
from tubelet.tube import Span, Tube

FRAMES, FPS = 500, 25


def make(
    n: int, seed: int
) -> tuple[list[tuple[int, int]], list[tuple[int, int]], list[np.ndarray], list[np.ndarray]]:
    """Frame spans and dense boxes of n true and predicted tubes."""
    rng = np.random.default_rng(seed)
    length = np.clip(rng.gamma(4, 1.6 * FPS, n), FPS, 450).astype(int)
    start = rng.integers(0, FRAMES - length)
    noise = rng.normal(0, 0.18 * length[:, None] + 8, (n, 2))
    low = np.clip(start + noise[:, 0], 0, FRAMES - 2).astype(int)
    high = np.clip(start + length + noise[:, 1], low + 1, FRAMES).astype(int)
    true_spans = list(zip(start.tolist(), (start + length).tolist(), strict=True))
    given_spans = list(zip(low.tolist(), high.tolist(), strict=True))
    true_boxes, given_boxes = [], []
    for (a, b), (s, e) in zip(true_spans, given_spans, strict=True):
        centre, size = rng.uniform(0.3, 0.7, 2), rng.uniform(0.1, 0.25, 2)
        path = centre + np.cumsum(rng.normal(0, 0.002, (FRAMES, 2)), axis=0)
        boxes = np.clip(np.concatenate([path - size / 2, path + size / 2], axis=1), 0, 1)
        moved = np.clip(boxes + rng.normal(0, 0.02, 4) + rng.normal(0, 0.005, boxes.shape), 0, 1)
        moved = np.concatenate(
            [np.minimum(moved[:, :2], moved[:, 2:]), np.maximum(moved[:, :2], moved[:, 2:])], axis=1
        )
        true_boxes.append(boxes[a:b])
        given_boxes.append(moved[s:e])
    return true_spans, given_spans, true_boxes, given_boxes


def small_iou(given: list[float], true: list[float]) -> float:
    """IoU of one pair through a pairwise numpy helper: both boxes become (1, 4) arrays, the answer is [0][0]."""
    a, b = np.array([given]), np.array([true])
    area_a = (a[:, 2] - a[:, 0]) * (a[:, 3] - a[:, 1])
    area_b = (b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1])
    corner = np.maximum(a[:, None, :2], b[None, :, :2])
    side = (np.minimum(a[:, None, 2:], b[None, :, 2:]) - corner).clip(min=0)
    shared = side[:, :, 0] * side[:, :, 1]
    return float((shared / (area_a[:, None] + area_b - shared))[0][0])


def float_iou(a: list[float], b: list[float]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def loop(true_spans, given_spans, true_boxes, given_boxes, iou_of) -> np.ndarray:
    """(n, 3) tIoU, vIoU, gt_vIoU, frame by frame. Boxes: {frame: box} per query."""
    out = []
    for (a, b), (s, e), truth, given in zip(true_spans, given_spans, true_boxes, given_boxes, strict=True):
        overlap = min(b, e) - max(a, s)
        tiou = overlap / (b - a + e - s - overlap) if overlap > 0 else 0.0
        union = set(range(min(a, s), max(b, e)))
        both = set(range(max(a, s), min(b, e)))
        total = inside = 0.0
        for frame, box in truth.items():
            if frame not in given:
                continue
            iou = iou_of(given[frame], box)
            total += iou
            if frame in both:
                inside += iou
        out.append((tiou, inside / max(len(union), 1), total / max(len(truth), 1)))
    return np.array(out)


def best_of(times: int, run) -> tuple[float, object]:
    seconds, result = float("inf"), None
    for _ in range(times):
        started = time.process_time()
        result = run()
        seconds = min(seconds, time.process_time() - started)
    return seconds, result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tubes", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    n = options.tubes
    true_spans, given_spans, true_boxes, given_boxes = make(n, options.seed)
    frames = sum(len(b) for b in true_boxes)

    def keyed(spans, boxes):
        return [
            {s + k: row for k, row in enumerate(rows.tolist())}
            for (s, _), rows in zip(spans, boxes, strict=True)
        ]

    lists = (keyed(true_spans, true_boxes), keyed(given_spans, given_boxes))
    peers_s, peers = best_of(2, lambda: loop(true_spans, given_spans, *lists, small_iou))
    plain_s, plain = best_of(3, lambda: loop(true_spans, given_spans, *lists, float_iou))

    truth = Tubes.stack(true_spans, [np.arange(*s) for s in true_spans], true_boxes)
    given = Tubes.stack(given_spans, [np.arange(*s) for s in given_spans], given_boxes)
    ours_s, ours = best_of(9, lambda: score_tubes(given, truth, PROTOCOLS["cgstvg"].rules))

    times = np.arange(FRAMES) / FPS
    tubes = [
        Tube(Span(s / FPS, e / FPS), times[s:e], boxes)
        for (s, e), boxes in zip(given_spans, given_boxes, strict=True)
    ]
    truths = [
        Truth(Span(s / FPS, e / FPS), times.copy(), times[s:e], boxes)  # every video has its own times
        for (s, e), boxes in zip(true_spans, true_boxes, strict=True)
    ]
    objects_s, objects = best_of(9, lambda: score_many(tubes, truths))

    for name, scores in (("arrays", ours), ("objects", objects)):
        table = np.stack([scores.tiou, scores.viou, scores.gt_viou], axis=1)
        columns = (
            slice(0, 2) if name == "objects" else slice(0, 3)
        )  # our own gt_vIoU holds no box outside the span
        for other in (peers, plain):
            worst = float(np.abs(table[:, columns] - other[:, columns]).max())
            if worst > 1e-9:
                raise SystemExit(f"{name}: scores differ from the loop's by {worst:g}")
    print(
        f"{n} tubes, {frames} true frames; m_tIoU {ours.tiou.mean():.4f}, m_vIoU {ours.viou.mean():.4f}, all equal"
    )
    print(f"per-frame loop, numpy IoU of one pair (as the public evaluators)  {peers_s * 1000:9.1f} ms")
    print(f"per-frame loop, IoU in plain Python floats                        {plain_s * 1000:9.1f} ms")
    print(
        f"score_tubes, frames, arrays in                                    {ours_s * 1000:9.1f} ms", end=""
    )
    print(f"  {peers_s / ours_s:6.0f}x  {plain_s / ours_s:5.0f}x")
    print(
        f"score_many, seconds, interpolating, Tube and Truth objects in     {objects_s * 1000:9.1f} ms",
        end="",
    )
    print(f"  {peers_s / objects_s:6.0f}x  {plain_s / objects_s:5.0f}x")

    values = np.random.default_rng(options.seed).random(10_000)
    one_s, _ = best_of(3, lambda: bootstrap_mean(values, 1000))
    table = {f"metric {k}": values + k for k in range(5)}
    five_s, _ = best_of(3, lambda: bootstrap_table(table, 1000))
    print(
        f"1,000 resamples of 10,000 queries: one metric {one_s * 1000:.0f} ms, a table of five {five_s * 1000:.0f} ms"
    )


if __name__ == "__main__":
    main()
