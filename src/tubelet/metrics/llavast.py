"""LLaVA-ST's result records as tubes: tokens to frames and pixels, exactly as its evaluator reads them.

A record holds `outputs` with tokens <TEMP-k>, <WIDTH-k>, <HEIGHT-k> (k in 0..99), `converted_outputs` with the same
as fractions, `split` [first, last] native frames (both included), `width`, `height`, and `gt` with `tvg` (frames),
`svg` {frame: xyxy pixels} and, for ELC, `caption`. Protocols llavast (tasks stvg, svg, elc), llavast_tvg, llavast_rec.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tubelet.errors import DataError
from tubelet.metrics.answers import NUMBER, llavast_caption, llavast_span
from tubelet.metrics.boxes import span_iou
from tubelet.metrics.protocols import protocol
from tubelet.metrics.ragged import FloatArray, Tubes
from tubelet.metrics.sampling import llavast_frames
from tubelet.metrics.tubes import score_tubes

_TOKEN = re.compile(r"<(?:WIDTH|HEIGHT|TEMP)-(\d+)>")
# from the start of a run of digits only: every later start of the run fails as it does
_PAIR = re.compile(rf"(?<!\d)({NUMBER}),:\s*\[({NUMBER}),\s*({NUMBER}),\s*({NUMBER}),\s*({NUMBER})\]")
_ABSURD = 1e15


@dataclass(frozen=True, slots=True, eq=False)
class LlavastScores:
    """Per record: tiou, siou, viou (Q,), captions, and failures row -> reason (their values are 0)."""

    tiou: FloatArray
    siou: FloatArray
    viou: FloatArray
    spans: tuple[tuple[float, float] | None, ...]
    tokens: tuple[dict[int, tuple[float, ...]], ...]
    captions: tuple[str, ...]
    failures: dict[int, str]


def read_tokens(outputs: str) -> dict[int, tuple[float, ...]]:
    """{time token: four coordinate tokens} of an answer; a time named twice keeps its last box.

    Numbers beyond 1e15, which no token has, are not read.
    """
    plain = _TOKEN.sub(lambda m: f"{m[1]},", outputs).replace(",]", "]").replace(",}", "}")
    rows = [[float(x) for x in row] for row in _PAIR.findall(plain.replace(" ", ""))]
    return {int(t): tuple(box) for t, *box in rows if t < _ABSURD and max(box) < _ABSURD}


def score_llavast(
    records: Sequence[Mapping[str, Any]], task: str = "stvg", frames: int = 100
) -> LlavastScores:
    """Scores of LLaVA-ST result records; task svg has no tIoU (0). An answer without a span has tIoU 0."""
    if task not in ("stvg", "svg", "elc"):
        raise DataError(f"LLaVA-ST scores the tasks stvg, svg and elc, got {task!r}")
    failures: dict[int, str] = {}
    stated = [llavast_span(r["converted_outputs"]) for r in records]
    tokens = [read_tokens(r["outputs"]) for r in records]
    true_spans = []
    predicted: list[dict[int, list[float]]] = []
    truth: list[dict[int, list[float]]] = []
    for row, record in enumerate(records):
        first, last = record["split"]
        listed = set(llavast_frames(first, last, frames).tolist())
        true = {int(k): v for k, v in record["gt"]["svg"].items()}
        boxes: dict[int, list[float]] = {}
        for k, coordinates in tokens[row].items():
            # rounded after the sum here and before it in the list of frames: the public code asserts on the latter
            if first + round(k / (frames - 1) * (last - first)) not in listed:
                failures[row] = f"time token {k} names no sampled frame"
            size = (record["width"], record["height"]) * 2
            at = round(first + k / (frames - 1) * (last - first))
            boxes[at] = [float(round(c / 99 * s)) for c, s in zip(coordinates, size, strict=True)]
        if not set(true) <= listed:
            failures[row] = f"true frame {min(set(true) - listed)} is not among the {frames} sampled frames"
        predicted.append(boxes)
        truth.append(true)
        if task != "svg":
            true_spans.append([round((f - first) / (last - first), 3) for f in record["gt"]["tvg"]])
    scores = score_tubes(_tubes(predicted), _tubes(truth), protocol("llavast").rules)
    tiou = np.zeros(len(records))
    if task != "svg":
        given = np.array([s or (0.0, 0.0) for s in stated]).reshape(-1, 2)
        true_span = np.array(true_spans).reshape(-1, 2)
        tiou = span_iou(given, true_span)
        hull = np.maximum(given[:, 1], true_span[:, 1]) - np.minimum(given[:, 0], true_span[:, 0])
        for point in np.flatnonzero(hull == 0):
            failures[int(point)] = "true and predicted span are the same single point: their tIoU is 0/0"
    for values in (tiou, scores.siou, scores.viou):
        values[list(failures)] = 0.0
    captions = tuple(llavast_caption(r["outputs"]) for r in records)
    return LlavastScores(
        tiou, scores.siou, scores.viou, tuple(stated), tuple(tokens), captions, failures | scores.failures
    )


def _tubes(boxes: Sequence[Mapping[int, Sequence[float]]]) -> Tubes:
    """Boxes by frame as tubes without a span: only keys matter here."""
    ordered = [sorted(b) for b in boxes]
    return Tubes.stack(
        [None] * len(boxes),
        ordered,
        [np.array([b[k] for k in keys], dtype=np.float64) for keys, b in zip(ordered, boxes, strict=True)],
    )
