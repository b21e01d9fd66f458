"""TVGBench (Time-R1): 800 questions from five datasets, balanced over lengths and 11 kinds of question.

    {"path": "./dataset/.../P6JGZ.mp4", "question": "...", "answer": "0.0-4.4", "start": null, "end": null,
     "duration": 11.46, "dataset_name": "charades", "qsemtype": "Human Action (Simple)", "bins": {...}}

- `answer` is text, "start-end" in seconds. **Where `start` and `end` are given, the question is about that part of the
  file and the answer counts from its start.** Proof: HiREST annotates whole seconds, and `start` + answer is whole in
  28 of 28 such questions of the slice. Spans here are seconds of the whole file, `start` + answer.
- where a part starts at 0 the HiREST answers are not whole (8 of 8): they were moved before the start was cut to 0, by
  how much is not recorded. They are kept as written, note "answer-moved".
- `duration` is that of the part where there is one; a part may reach past the end of the file (`segment_s` as written).
- one file serves several parts, so files are whole videos. The published loader shows the model the whole file and
  compares with the answer of the part: `tags["part"]` tells these questions apart.
- Charades answers end after the video as they do there (note "span-past-end"); a few answers have no length (note
  "span-empty": 1 ms is kept, the query counts). The published loader leaves out missing videos; here they count.
- `dataset_name` is missing for Ego4D: `tags["origin"]` takes it from `bins`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath

from tubelet.datasets.fields import Item
from tubelet.datasets.layout import FileSpec, check_split, find_file
from tubelet.datasets.moments import window
from tubelet.datasets.problems import OnError, records
from tubelet.datasets.reading import stream_items
from tubelet.datasets.record import Record, VideoRef
from tubelet.errors import DataError
from tubelet.tube import Span

NAME = "tvgbench"
SPLITS = ("test",)
SOURCE = "github.com/xiaomi-research/time-r1, dataset/timer1/annotations/tvgbench.json (Apache-2.0)"
FILES = (
    FileSpec(
        "annotations",
        (
            *(
                f"{folder}tvgbench.json"
                for folder in ("", "annotations/", "timer1/annotations/", "trainval/")
            ),
            "tvgbench.*.json",
        ),
        "tvgbench.json",
        SOURCE,
    ),
    FileSpec(
        "videos",
        ("**/*.mp4", "**/*.avi", "**/*.mkv"),
        "the videos (Charades, ActivityNet, TACoS, HiREST, Ego4D), e.g. videos/tvgbench_data/P6JGZ.mp4",
        "huggingface.co/datasets/Boshenxx/TimeR1-Dataset, or the five datasets themselves",
        kind="media",
    ),
)
_ANSWER = re.compile(r"\s*(\d{1,9}(?:\.\d*)?)\s*-\s*(\d{1,9}(?:\.\d*)?)\s*", re.ASCII)


def read(folder: Path | str, split: str = "test", *, on_error: OnError = "raise") -> Iterator[Record]:
    """Records, lazily, in file order. `folder` may be the annotation file itself."""
    path = find_file(folder, FILES, "annotations", check_split(split, SPLITS, NAME))
    return records(stream_items(path, on_error), partial(_record, split), on_error)


def _record(split: str, item: Item) -> Record:
    number = int(item.where.split()[-1]) if item.where.startswith("record ") else None
    if number is None:
        raise item.error("", "expected a list of questions, got an object")
    name = PurePosixPath(item.text("path")).name
    found = _ANSWER.fullmatch(item.text("answer"))
    if found is None:
        raise item.error("answer", f"expected 'start-end' in seconds, got {item.text('answer')!r:.40}")
    start_s, end_s = float(found[1]), float(found[2])
    duration_s = item.number("duration", 0.001)
    part = _part(item, duration_s)
    local, notes = window(item, "answer", start_s, end_s, duration_s)
    offset_s = part.start_s if part is not None else 0.0
    start, end = offset_s + local.start_s, offset_s + local.end_s
    bins = item.child("bins") if item.has("bins") else None
    origin = item.text("dataset_name", "") or ("" if bins is None else bins.text("dataset", ""))
    if origin == "hirest" and part is not None and not (_whole(start) and _whole(end)):
        notes.append(
            f"answer-moved: HiREST annotates whole seconds, this answer lies at {start:.3f}-{end:.3f} s of the file"
        )
    return Record(
        dataset=NAME,
        split=split,
        id=f"tvgbench-{number}",
        task="tvg",
        query=item.text("question"),
        video=VideoRef(
            id=PurePosixPath(name).stem or name,
            files=tuple(
                f"{folder}{name}" for folder in ("videos/tvgbench_data/", "tvgbench_data/", "videos/", "")
            ),
            duration_s=duration_s if part is None else None,
            segment_s=part,
        ),
        spans=(Span(start, end),),
        source={"file": Path(item.file).name, "record": number, "path": item.text("path")},
        tags={"qsemtype": item.text("qsemtype", ""), "origin": origin, "part": part is not None},
        extra={
            "answer_s": [start_s, end_s],
            "duration_s": duration_s,
            "bins": {}
            if bins is None
            else {key: value for key, value in bins.data.items() if type(value) in (str, int)},
        },
        notes=tuple(notes),
    )


def _whole(time_s: float) -> bool:
    return abs(time_s - round(time_s)) < 1e-6


def _part(item: Item, duration_s: float) -> Span | None:
    """The part of the file that is asked about, None for all of it. One of its ends alone is an error."""
    if not item.has("start") and not item.has("end"):
        return None
    start_s, end_s = item.number("start"), item.number("end")
    try:
        part = Span(start_s, end_s)
    except DataError as error:
        raise item.error("end", str(error)) from None
    if abs(part.duration_s - duration_s) > 0.05:
        raise item.error(
            "duration",
            f"expected end - start = {part.duration_s:g} s for a part of a video, got {duration_s:g}",
        )
    return part
