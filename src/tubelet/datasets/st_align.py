"""ST-Align benchmark (LLaVA-ST): STVG, SVG and ELC on VidSTG videos, as three files = three "splits" here.

    {"video_path": ..., "meta": {"width", "height", "split": [first, last], "time_token": {"<s>": frame, "<e>": frame},
     "spatial_token": {name: [x, y, w, h] or {frame: [x, y, w, h]}}}, "conversations": [human, gpt]}

Conversions (research notes datasets-metrics 8, llava-st 7):

- `split` is first and **last** native frame, inclusive; `<e>` is the last frame of the span, inclusive
  (VidSTG's end_fid - 1): frames are [<s>, <e> + 1).
- boxes are xywh pixels on native frames of the whole file; frame keys are text.
- prompts keep their placeholders (`extra["prompt"]`, `query` without the media token); what they stand for is in
  `extra["time_token"]` and, for the box that is handed over, `given_box`. `local_times` gives 0..1 in the segment.
- the official evaluation uses the **first 2,000** records of each file: `tags["official"]`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tubelet.datasets.boxes import box_rows, from_pixels
from tubelet.datasets.fields import Item
from tubelet.datasets.layout import FileSpec, check_split, find_file
from tubelet.datasets.problems import OnError, records
from tubelet.datasets.reading import stream_items
from tubelet.datasets.record import FrameRange, Record, Target, VideoRef

NAME = "st-align"
SPLITS = ("stvg", "svg", "elc")
SOURCE = "the ST-Align benchmark on the Hugging Face hub, linked from github.com/appletea233/LLaVA-ST"
OFFICIAL_RECORDS = 2000
FILES = (
    *(
        FileSpec(
            "annotations",
            tuple(
                f"{place}{task}.json"
                for place in ("", "st-align/", "st_align/", "ST-Align-Benchmark/", "annotations/")
            ),
            f"{task} records",
            SOURCE,
            (task,),
        )
        for task in SPLITS
    ),
    FileSpec(
        "videos", ("**/*.mp4",), "the VidOR / VidSTG videos that video_path names", SOURCE, kind="media"
    ),
)
_MEDIA = ("<image>", "<video>")
_ENDS, _WHERE = "Ends in <e>, ", " Object bounding box: <bboxes>"


def read(folder: Path | str, split: str, *, on_error: OnError = "raise") -> Iterator[Record]:
    """Records of one task ("stvg", "svg" or "elc"), lazily. `folder` may be the annotation file itself."""
    path = find_file(folder, FILES, "annotations", check_split(split, SPLITS, NAME))
    return records(stream_items(path, on_error), partial(_record, split), on_error)


def local_times(record: Record) -> tuple[float, float]:
    """(start, end) in 0..1 of the segment as the official code computes them: (frame - first) / (last - first)."""
    segment, token = record.video.segment, record.extra["time_token"]
    first, length = (segment.begin, len(segment) - 1) if segment is not None else (0, 0)
    return tuple(round((token[key] - first) / max(1, length), 3) for key in ("<s>", "<e>"))  # type: ignore[return-value]


def _record(task: str, item: Item) -> Record:
    number = int(item.where.split()[-1]) if item.where.startswith("record ") else 0
    name = item.text("video_path").lstrip("/")
    meta = item.child("meta")
    width, height = meta.whole("width", 1, 10**6), meta.whole("height", 1, 10**6)
    ends = [int(x) if x.is_integer() else -1 for x in meta.numbers("split", 2, 0)]
    if min(ends) < 0:
        raise meta.error("split", "expected two whole frame numbers")
    segment = FrameRange(ends[0], ends[1] + 1)  # inclusive there
    times = meta.child("time_token")
    token = {"<s>": times.whole("<s>"), "<e>": times.whole("<e>")}
    frames = FrameRange(token["<s>"], token["<e>"] + 1)  # inclusive there
    boxes, given, notes = _boxes(meta, width, height, frames.begin)
    if frames.begin < segment.begin or frames.end > segment.end:
        notes.append(
            f"span-outside-segment: frames [{frames.begin}, {frames.end}) reach outside the segment "
            f"[{segment.begin}, {segment.end})"
        )
    turns = item.children("conversations")
    if len(turns) < 2:
        raise item.error("conversations", f"expected a question and an answer, got {len(turns)} turns")
    prompt, answer = turns[0].text("value"), turns[1].text("value")
    query = prompt
    for media in _MEDIA:
        query = query.replace(media, "")
    if not query.strip():
        raise turns[0].error("value", "the prompt is empty")
    if task == "elc" and given is None:
        raise meta.error("spatial_token", "an elc record hands over a box [x, y, w, h], there is none")
    return Record(
        dataset=NAME,
        split=task,
        id=f"{task}-{number}",
        task=task,
        query=query.strip(),
        video=VideoRef(
            id=Path(name).stem or name,
            files=(name, f"video/{name}", f"videos/{name}", Path(name).name),
            width=width,
            height=height,
            segment=segment,
        ),
        frames=frames,
        given_frames=frames if task == "svg" else None,
        given_box=given,
        targets=(boxes,),
        answer=answer.replace(_ENDS, "").replace(_WHERE, "").strip() if task == "elc" else "",
        source={"file": Path(item.file).name, "record": number},
        tags={"official": number < OFFICIAL_RECORDS},
        extra={"prompt": prompt, "answer": answer, "time_token": token},
        notes=tuple(notes),
    )


def _boxes(meta: Item, width: int, height: int, start: int) -> tuple[Target, Target | None, list[str]]:
    """The track under "<bboxes>", the box that the prompt hands over (on the first frame), and notes."""
    spatial = meta.child("spatial_token")
    track = spatial.child("<bboxes>")
    try:
        order = sorted((int(key), key) for key in track.data if key.isascii() and key.isdigit())
    except ValueError:  # thousands of digits
        order = []
    if not order or len(order) != len(track.data) or len({frame for frame, _ in order}) != len(order):
        raise spatial.error("<bboxes>", "expected boxes by frame number, {'12': [x, y, w, h], ...}")
    if order[-1][0] >= 2**40:
        raise spatial.error("<bboxes>", f"frame {order[-1][1][:20]}... is no frame of a video")
    rows: list[Any] = [track.raw(key) for _, key in order]
    boxes, unit, notes = from_pixels(
        spatial, "<bboxes>", box_rows(spatial, "<bboxes>", rows, "xywh"), width, height
    )
    given = None
    for key in spatial.data:
        if isinstance(spatial.data[key], list) and given is None:
            box = box_rows(spatial, key, [spatial.items(key)], "xywh")
            fraction, kind, said = from_pixels(spatial, key, box, width, height)
            given = Target(fraction, kind, np.array([start]), name=key)
            notes += said
    return Target(boxes, unit, np.array([frame for frame, _ in order])), given, notes
