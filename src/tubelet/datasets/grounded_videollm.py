"""Grounded-VideoLLM's fine-tuning mixture: conversations about videos of many datasets, times in angle brackets.

[{"video_id": "...", "question_id": "...", "video_file": "coin/videos/ID.mp4", "dataset_name": "COIN", "conversation":
[{"from": "human", "value": "<image>\\n..."}, {"from": "gpt", "value": "From <12.0> to <20.0>, ..."}]}]

- times are seconds of the video, with a decimal point (<12.5>); <image> stands for the video.
- a `question_id` may come several times: ids of records are NUMBER of the file, the others are in `source`.
- how long a video is, is not said: open it. `dataset_name` is missing in the files of a single dataset.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath

from tubelet.datasets.fields import Item
from tubelet.datasets.layout import FileSpec, check_split, find_file
from tubelet.datasets.problems import OnError, records
from tubelet.datasets.reading import stream_items
from tubelet.datasets.record import Record, VideoRef
from tubelet.datasets.talks import Said, marks_in, talk_record

NAME = "grounded-videollm"
SPLITS = ("sft", "grounding", "instruction")
SOURCE = "github.com/WHB139426/Grounded-VideoLLM"
_NAMES = {"sft": "mix_sft", "grounding": "mix_sft_grounding", "instruction": "mix_sft_instruction"}
FILES = (
    *(
        FileSpec(
            "annotations",
            tuple(f"{place}{name}.json" for place in ("", "mix_sft/", "annotations/")),
            f"conversations ({name}.json)",
            SOURCE,
            (split,),
        )
        for split, name in _NAMES.items()
    ),
    FileSpec(
        "videos",
        ("**/*.mp4", "**/*.mkv", "**/*.webm", "**/*.avi"),
        "the videos of its datasets, as video_file says",
        "the authors of the datasets",
        kind="media",
    ),
)
_TIME = re.compile(r"<(\d+\.\d+)>")


def read(folder: Path | str, split: str, *, on_error: OnError = "raise") -> Iterator[Record]:
    """Records, lazily, in file order. `folder` may be the annotation file itself."""
    path = find_file(folder, FILES, "annotations", check_split(split, SPLITS, NAME))
    return records(stream_items(path, on_error), partial(_record, split), on_error)


def _record(split: str, item: Item) -> Record:
    if not item.where.startswith("record "):
        raise item.error("", "expected a list of conversations, got an object")
    name, file = item.name_or_number("video_id"), item.text("video_file")
    said = []
    for turn in item.children("conversation"):
        who, text = turn.text("from"), turn.text("value")
        said.append(Said(who, text, marks_in(turn, "value", text, _TIME)))
    asked = item.name_or_number("question_id") if item.has("question_id") else ""
    return talk_record(
        item,
        NAME,
        split,
        item.where.split()[-1],
        VideoRef(name, (file, PurePosixPath(file).name)),
        said,
        {"origin": item.text("dataset_name", ""), "question": asked},
    )
