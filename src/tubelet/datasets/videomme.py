"""Video-MME: 2,700 four-choice questions on 900 YouTube videos, short, medium and long (11 s to 1 h).

The benchmark comes as a parquet file (one row per question); its result template is a JSON list of videos with their
questions. Both are read, and rows as JSON or JSON Lines:

    {"video_id": "001", "videoID": "fFjv93ACGo8", "duration": "short", "domain": ..., "sub_category": ...,
     "task_type": ..., "question_id": "001-1", "question": ..., "options": ["A. ...", ...], "answer": "C"}

- options carry their letters; `choices` are without, `extra["options"]` as they are. `answer` is a letter.
- `duration` is a class, not seconds: `tags["length"]`. Scores are reported per class, with and without subtitles.
- files are named by `videoID` (YouTube's), questions by `video_id` (001 to 900): the template has only the latter.
- the published template has trailing commas and is not valid JSON: the error says in which record.
- its licence forbids redistribution; nothing of it is in tubelet.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from tubelet.datasets.fields import Item, RecordError
from tubelet.datasets.layout import FileSpec, check_split, find_file
from tubelet.datasets.lettered import letter_index, unlettered
from tubelet.datasets.parquet import stream_parquet
from tubelet.datasets.problems import OnError, attempt, handle, unique
from tubelet.datasets.reading import stream_items, stream_jsonl
from tubelet.datasets.record import Record, VideoRef
from tubelet.errors import DataError

NAME = "video-mme"
SPLITS = ("test",)
SOURCE = "huggingface.co/datasets/lmms-lab/Video-MME (its licence: academic use, no redistribution)"
LENGTHS = ("short", "medium", "long")
OPTIONS = 4
FILES = (
    FileSpec(
        "annotations",
        (
            *(f"{folder}test-*.parquet" for folder in ("videomme/", "")),
            *(
                f"{name}.{end}"
                for name in ("videomme", "video_mme", "Video-MME")
                for end in ("jsonl", "json")
            ),
            "output_test_template.json",
            "*template*.json",
        ),
        "parquet file with the questions",
        SOURCE,
    ),
    FileSpec(
        "videos", ("**/*.mp4",), "videos named by videoID, e.g. data/fFjv93ACGo8.mp4", SOURCE, kind="media"
    ),
)
_COLUMNS = ("video_id", "duration", "question_id", "question", "options", "answer")
_SHARED = ("video_id", "videoID", "duration", "domain", "sub_category")


def read(folder: Path | str, split: str = "test", *, on_error: OnError = "raise") -> Iterator[Record]:
    """Records, lazily, in file order. `folder` may be the annotation file itself (.parquet, .json, .jsonl)."""
    path = find_file(folder, FILES, "annotations", check_split(split, SPLITS, NAME))
    if path.suffix not in (".parquet", ".json", ".jsonl"):
        raise DataError(f"Video-MME is read from .parquet, .json or .jsonl, got {path.name}")
    return _read(path, split, on_error)


def _read(path: Path, split: str, on_error: OnError) -> Iterator[Record]:
    def pairs() -> Iterator[tuple[Item, Record | None]]:
        for item in _rows(path, on_error):
            yield item, attempt(on_error, item, partial(_record, item, split))

    yield from unique(pairs(), on_error)


def _rows(path: Path, on_error: OnError) -> Iterator[Item]:
    """One Item per question; the questions of a video get what the video says."""
    if path.suffix == ".parquet":
        yield from stream_parquet(path, _COLUMNS, on_error)
        return
    for item in stream_jsonl(path, on_error) if path.suffix == ".jsonl" else stream_items(path, on_error):
        if not item.has("questions"):
            yield item
            continue
        shared = {key: item.data[key] for key in _SHARED if key in item.data}
        try:
            questions = item.children("questions")
        except RecordError as error:
            handle(on_error, error)
            continue
        for question in questions:
            yield Item({**shared, **question.data}, item.file, item.where, question.path)


def _record(item: Item, split: str) -> Record:
    number = item.name_or_number("video_id")
    name = item.text("videoID", number)
    length = item.text("duration")
    if length not in LENGTHS:
        raise item.error("duration", f"expected one of {', '.join(LENGTHS)}, got {length!r:.40}")
    options = item.texts("options")
    if len(options) != OPTIONS:
        raise item.error("options", f"expected {OPTIONS} options, got {len(options)}")
    choices = unlettered(item, "options", options)
    index = letter_index(item, "answer", item.text("answer"), OPTIONS)
    return Record(
        dataset=NAME,
        split=split,
        id=item.text("question_id"),
        task="qa",
        query=item.text("question"),
        video=VideoRef(
            id=name,
            files=tuple(f"{folder}{name}.mp4" for folder in ("data/", "videos/", "video/", "")),
        ),
        choices=choices,
        answer=choices[index],
        answer_index=index,
        source={"file": Path(item.file).name, "record": item.where, "video_id": number},
        tags={
            "length": length,
            **{key: item.text(key, "") for key in ("domain", "sub_category", "task_type")},
        },
        extra={"options": options},
    )
