"""LLaVA-ST's result records: answers in tokens, with their own truth. No dataset is needed.

    {"outputs": "During the span of {<TEMP-010><TEMP-040>} <TEMP-010>:[<WIDTH-020>...]...", "converted_outputs": "...",
     "split": [0, 598], "width": 640, "height": 360, "gt": {"tvg": [60, 240], "svg": {"60": [x0, y0, x1, y1], ...}}}

Tasks are told from the truth: stvg (gt has tvg and svg), svg (svg only), elc (a caption too), tvg (gt is [start, end],
fractions), rec (gt_bbox). Under protocol llavast, llavast_tvg and llavast_rec records are scored by the project's own
reading of the text. Under other protocols the same answer is a tube on the record's 100 sampled frames: only they
have boxes, so only they count.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from tubelet.datasets.fields import Item, show
from tubelet.metrics.answers import llavast_box, llavast_span
from tubelet.metrics.llavast import read_tokens
from tubelet.metrics.sampling import llavast_frames
from tubelet.metrics.truth import Truth
from tubelet.scoring.answers import Answer, RawTube
from tubelet.scoring.checks import Frame, check_windows, to_prediction
from tubelet.scoring.lines import Source, json_items
from tubelet.scoring.raw import IDS, record_id
from tubelet.scoring.readers import Options
from tubelet.scoring.truths import ASSUMED_FPS, Case
from tubelet.tube import Span

N_FRAMES = 100
_ABSURD = re.compile(r"\d{16}")
_ENDLESS = re.compile(r"\d{400}")  # "1 1 1 ...": the project's pattern takes quadratic time over it
_ABSURD_FRACTION = re.compile(r"\d{25}")


def read_llavast(source: Source, options: Options) -> Iterator[tuple[Item, str, Case]]:
    """(record, task, case) of every record that can be read; ids are those of the file, or numbers from 0."""
    from tubelet.datasets.fields import RecordError

    for k, item in enumerate(json_items(source)):
        try:
            task = task_of(item)
            yield item, task, _case(item, task, k, options, source)
        except RecordError as error:
            source.broken(error)


def task_of(item: Item) -> str:
    if item.has("gt_bbox"):
        return "rec"
    true = item.raw("gt")
    if isinstance(true, list):
        return "tvg"
    if not isinstance(true, dict) or "svg" not in true:
        raise item.error("gt", f"expected the truth: tvg, svg, perhaps a caption; got {show(true)}")
    if "tvg" not in true:
        return "svg"
    return "elc" if "caption" in true else "stvg"


def _text(item: Item, key: str) -> str:
    value = item.raw(key)
    if not isinstance(value, str):
        raise item.error(key, f"expected text, got {show(value)}")
    return value


def _case(item: Item, task: str, k: int, options: Options, source: Source) -> Case:
    name = record_id(item) if any(item.has(key) for key in IDS) else str(k)
    converted = _text(item, "converted_outputs")
    absurd = _ABSURD_FRACTION.search(converted) is not None
    if absurd:
        source.counts.add("not-finite", f"{item.where}: a number of more than 24 digits in the answer")
        converted = ""
    if task == "rec":
        true = item.numbers("gt_bbox", 4)
        box = llavast_box(converted)
        if box is None and not absurd:
            source.counts.add("unread", f"{item.where}: no box in {converted[:60]!r}")
        return Case(
            name, failure=None if box else "unread: no box in the answer", extra={"box": box, "true": true}
        )
    if task == "tvg":
        span = llavast_span(converted)
        failure = None if span else ("unread", f"no span in {converted[:60]!r}")
        tubes = (RawTube.make(span),) if span else ()
        answer = Answer(name, item.where, tubes, converted, failure)
        windows, why = check_windows(answer, Frame(duration_s=1.0), source.counts)
        return Case(
            name,
            windows=windows,
            true_windows=[item.numbers("gt", 2)],
            failure=None if why is None else f"{why[0]}: {why[1]}",
            text=converted,
        )
    return _tube_case(item, task, name, converted, options, source)


def _tube_case(item: Item, task: str, name: str, converted: str, options: Options, source: Source) -> Case:
    outputs = _text(item, "outputs")
    if _ABSURD.search(outputs) or _ENDLESS.search(outputs.replace(" ", "")):
        source.counts.add("not-finite", f"{item.where}: a token of more than 15 digits in the answer")
        outputs = ""
    split = item.numbers("split", 2, 0)
    if not (split[0].is_integer() and split[1].is_integer() and split[0] < split[1] < 1e7):
        raise item.error("split", f"expected the first and last frame, got {split}")
    first, last = int(split[0]), int(split[1])
    width, height = item.whole("width", 1, 10**6), item.whole("height", 1, 10**6)
    true = item.child("gt")
    boxes = _true_boxes(true)
    gt: dict[str, Any] = {"svg": {str(f): list(b) for f, b in boxes.items()}}
    if task != "svg":
        ends = true.numbers("tvg", 2)
        if not all(first <= x <= last for x in ends) or ends[1] < ends[0]:
            raise true.error("tvg", f"expected frames of the split {first}-{last}, got {ends}")
        gt["tvg"] = ends
    native = {
        "outputs": outputs,
        "converted_outputs": converted,
        "split": [first, last],
        "width": width,
        "height": height,
        "gt": gt,
    }
    rate = item.number("fps", 0.01, 1000) if item.has("fps") else options.fps or ASSUMED_FPS
    frames = np.unique(llavast_frames(first, last, N_FRAMES))
    if task == "svg":
        listed = sorted(boxes) or [first]
        span = Span(listed[0] / rate, (listed[-1] + 1) / rate)
    else:
        span = Span(gt["tvg"][0] / rate, (gt["tvg"][1] + 1) / rate)
    at = np.array([f for f in sorted(boxes) if f in set(frames.tolist())], dtype=np.int64)
    at = at[(at / rate >= span.start_s - 1e-6) & (at / rate < span.end_s + 1e-6)]
    size = np.array([width, height, width, height], dtype=np.float64)
    rows = np.array([boxes[int(f)] for f in at], dtype=np.float64).reshape(-1, 4) / size
    truth = Truth(span, frames / rate, at / rate, rows)
    answer = _answer(item, name, native, span if task == "svg" else None, rate)
    prediction = to_prediction(answer, Frame(duration_s=(last + 1) / rate), source.counts)
    return Case(
        name,
        (truth,),
        prediction,
        failure=prediction.failure,
        text=outputs,
        native=native,
        extra={"caption": _text(true, "caption") if task == "elc" else ""},
    )


def _true_boxes(true: Item) -> dict[int, list[float]]:
    listed = true.child("svg")
    out = {}
    for key in listed.data:
        if not str(key).isdecimal() or len(str(key)) > 8:
            raise listed.error(str(key)[:20], "expected boxes by frame")
        out[int(key)] = listed.numbers(key, 4)
    return out


def _answer(item: Item, name: str, native: dict[str, Any], given: Span | None, rate: float) -> Answer:
    """The answer in seconds: tokens name sampled frames, a span includes the frame it ends on."""
    first, last = native["split"]

    def frame(share: float) -> float:
        return float(first + round(min(share, 1e6) * (last - first)))

    tokens = {k: b for k, b in read_tokens(native["outputs"]).items() if k < 1_000_000}
    stated = llavast_span(native["converted_outputs"])
    if given is not None:
        span: tuple[float, float] | None = (given.start_s, given.end_s)
    elif stated is not None:
        span = frame(stated[0]) / rate, (frame(stated[1]) + 1) / rate
    else:
        reason = f"no span in {native['converted_outputs'][:60]!r}"
        return Answer(name, item.where, text=native["outputs"], failure=("unread", reason))
    if given is not None and not tokens:
        return Answer(name, item.where, failure=("unread", f"no box in {native['outputs'][:60]!r}"))
    times = [frame(k / (N_FRAMES - 1)) / rate for k in tokens]
    boxes = [[c / 99 for c in row] for row in tokens.values()]
    return Answer(name, item.where, (RawTube.make(span, times, boxes),), text=native["outputs"])
