"""STVG-R1's answers: an object id and seconds, boxes from the masks of tracked objects. Records carry their truth.

As JSON (Lines), one record per query:

    {"id": "...", "response": "<answer>Target ID: 2, Time range: 1.44 to 2.24</answer>", "fps": 25.0,
     "gt_timestamps": [1.44, 2.24], "st_frame": 36, "gt_bbox_xywh": [[x, y, w, h], ...],
     "object_boxes_by_frame_xyxy": {"36": {"1": [x0, y0, x1, y1], ...}, ...}}

or prediction.txt as its evaluate.py writes it (ID, Query, Ground Truth, Prediction, ..., Model Output, dashes): that
has no boxes, so it is scored as spans.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from tubelet.datasets.fields import Item, RecordError, show
from tubelet.datasets.reading import stream_lines
from tubelet.metrics.answers import stvg_r1_answer
from tubelet.metrics.boxes import xywh_to_xyxy
from tubelet.metrics.stvg_r1 import chosen_boxes
from tubelet.metrics.truth import Truth
from tubelet.scoring.answers import Answer, RawTube
from tubelet.scoring.checks import Frame, check_windows, to_prediction
from tubelet.scoring.lines import Source, head_of, json_items, on_error_of
from tubelet.scoring.raw import IDS, record_id
from tubelet.scoring.readers import Options
from tubelet.scoring.text import last_answer
from tubelet.scoring.truths import Case
from tubelet.tube import Span

LONGEST_FRAMES = 1_000_000
_ABSURD = re.compile(r"\d{16}")
_TRUE = re.compile(r"\[\s*(\d{1,9}(?:\.\d+)?)\s*,\s*(\d{1,9}(?:\.\d+)?)\s*\]")
_FIRST_LINE = re.compile(r"ID: \S")


def is_prediction_txt(head: str) -> bool:
    return _FIRST_LINE.match(head) is not None and "\nModel Output:" in head


def read_stvg_r1(source: Source, options: Options) -> Iterator[tuple[Item, str, Case]]:
    """(record, task, case): task stvg where the objects' boxes are there, else tvg."""
    items = _text_items(source) if is_prediction_txt(head_of(source.path)) else json_items(source)
    for k, item in enumerate(items):
        try:
            task = "stvg" if item.has("object_boxes_by_frame_xyxy") else "tvg"
            name = record_id(item) if any(item.has(key) for key in IDS) else str(k)
            response = item.raw("response")
            if not isinstance(response, str):
                raise item.error("response", f"expected text, got {show(response)}")
            said = last_answer(
                response
            )  # all that is read of it; the project's pattern is slow on endless answers
            response = "" if said is None else f"<answer>{said}</answer>"
            if _ABSURD.search(response):
                source.counts.add(
                    "not-finite", f"{item.where}: a number of more than 15 digits in the answer"
                )
                response = ""
            case = (
                _case(item, name, response, source)
                if task == "stvg"
                else _spans(item, name, response, source)
            )
            yield item, task, case
        except RecordError as error:
            source.broken(error)


def _unread(response: str) -> tuple[str, str]:
    return "unread", f"no object id or no time range in {response[-60:]!r}"


def _true_span(item: Item) -> list[float]:
    ends = item.numbers("gt_timestamps", 2, 0)
    if ends[1] <= ends[0] or ends[1] > 1e6:
        raise item.error("gt_timestamps", f"expected start and end in seconds, got {ends}")
    return ends


def _spans(item: Item, name: str, response: str, source: Source) -> Case:
    said = stvg_r1_answer(response)
    failure = None if said else _unread(response)
    tubes = (RawTube.make((said[1], said[2])),) if said else ()
    windows, why = check_windows(Answer(name, item.where, tubes, response, failure), Frame(), source.counts)
    return Case(
        name,
        windows=windows,
        true_windows=[_true_span(item)],
        failure=None if why is None else f"{why[0]}: {why[1]}",
        text=response,
    )


def _case(item: Item, name: str, response: str, source: Source) -> Case:
    fps = item.number("fps", 0.01, 1000)
    ends = _true_span(item)
    if ends[1] * fps > LONGEST_FRAMES:
        raise item.error("gt_timestamps", f"expected at most {LONGEST_FRAMES} frames, got {ends} at {fps:g}")
    rows = item.items("gt_bbox_xywh")
    if not rows:
        raise item.error("gt_bbox_xywh", "expected one box per frame of the tube, got none")
    true = [
        Item({"box": row}, item.file, item.where, f"gt_bbox_xywh[{k}]").numbers("box", 4)
        for k, row in enumerate(rows)
    ]
    native: dict[str, Any] = {
        "response": response,
        "fps": fps,
        "gt_timestamps": ends,
        "st_frame": item.whole("st_frame", 0, 10**7),
        "gt_bbox_xywh": true,
        "object_boxes_by_frame_xyxy": _objects(item),
    }
    prediction = to_prediction(_answer(item, name, native), Frame(), source.counts)
    return Case(name, (_truth(native),), prediction, failure=prediction.failure, text=response, native=native)


def _objects(item: Item) -> dict[str, dict[str, list[float]]]:
    frames = item.child("object_boxes_by_frame_xyxy")
    out: dict[str, dict[str, list[float]]] = {}
    for key in frames.data:
        if not str(key).isdecimal() or len(str(key)) > 8:
            raise frames.error(str(key)[:20], "expected objects by frame")
        objects = frames.child(key)
        out[key] = {str(name): objects.numbers(name, 4) for name in objects.data}
    return out


def _scale(native: dict[str, Any]) -> float:
    """Pixels that everything is divided by: no size is stated, and no IoU depends on it."""
    true = xywh_to_xyxy(np.array(native["gt_bbox_xywh"]))
    seen = [abs(x) for o in native["object_boxes_by_frame_xyxy"].values() for box in o.values() for x in box]
    return float(max([1.0, np.abs(true).max(initial=0.0), *seen]))


def _truth(native: dict[str, Any]) -> Truth:
    """As its evaluator pairs them: box k of the list is at native frame st_frame + k."""
    fps, (start, end) = native["fps"], native["gt_timestamps"]
    at = native["st_frame"] + np.arange(len(native["gt_bbox_xywh"]))
    boxes = xywh_to_xyxy(np.array(native["gt_bbox_xywh"])) / _scale(native)
    inside = (at / fps >= start - 1e-6) & (at / fps < end)
    n = int(max(end * fps, at[-1])) + 2
    return Truth(Span(start, end), np.arange(n) / fps, at[inside] / fps, boxes[inside])


def _answer(item: Item, name: str, native: dict[str, Any]) -> Answer:
    said = stvg_r1_answer(native["response"])
    if said is None:
        return Answer(name, item.where, text=native["response"], failure=_unread(native["response"]))
    target, start_s, end_s = said
    fps = native["fps"]
    objects = {int(f): o for f, o in native["object_boxes_by_frame_xyxy"].items()}
    # where nothing is tracked there is no box to choose
    first = max(int(np.ceil(start_s * fps - 1e-6)), min(objects, default=0))
    last = min(int(end_s * fps), max(objects, default=-1))
    boxes = chosen_boxes(objects, target, first, last)
    scale = _scale(native)
    raw = RawTube.make(
        (start_s, end_s), [f / fps for f in boxes], [[x / scale for x in box] for box in boxes.values()]
    )
    return Answer(name, item.where, (raw,), text=native["response"])


def _text_items(source: Source) -> Iterator[Item]:
    """Blocks of prediction.txt as records."""
    fields: dict[str, Any] = {}
    started = 0
    output: list[str] = []
    for number, line in stream_lines(source.path, on_error_of(source)):
        if not started:
            started = number
        if set(line) == {"-"} and len(line) >= 40:
            yield Item({**fields, "response": "\n".join(output)}, str(source.path), f"line {started}")
            fields, output, started = {}, [], 0
        elif output:
            output.append(line)
        elif line.startswith("Model Output:"):
            output = [line.removeprefix("Model Output:").strip()]
        elif line.startswith("ID: "):
            fields["id"] = line[4:]
        elif line.startswith("Ground Truth:"):
            found = _TRUE.search(line)
            if found:
                fields["gt_timestamps"] = [float(found[1]), float(found[2])]
    if started:
        source.broken(
            RecordError(str(source.path), f"line {started}", "", "the block has no end: a truncated file?")
        )
