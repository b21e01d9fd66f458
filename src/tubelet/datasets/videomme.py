"""Video-MME: 2,700 four-choice questions on 900 YouTube videos, short, medium and long (11 s to 1 h).

The benchmark comes as a parquet file (one row per question); its result template is a JSON list of videos with their
questions. Both are read, and rows as JSON or JSON Lines:

    {"video_id": "001", "videoID": "fFjv93ACGo8", "duration": "short", "domain": ..., "sub_category": ...,
     "task_type": ..., "question_id": "001-1", "question": ..., "options": ["A. ...", ...], "answer": "C"}

- options carry their letters; `choices` are without, `extra["options"]` as they are. `answer` is a letter.
- `duration` is a class, not seconds: `tags["length"]`. Scores are reported per class, with and without subtitles.
- split "test_subtitles" asks the same questions with subtitles (`extra["subtitles"]`: one .srt per video). Not every
  video has one; the others are asked without (note "subtitles-missing").
- files are named by `videoID` (YouTube's), questions by `video_id` (001 to 900): the template has only the latter.
- the published template has trailing commas and is not valid JSON: the error says in which record.
- its licence forbids redistribution; nothing of it is in tubelet.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from tubelet.datasets.fields import Item, RecordError
from tubelet.datasets.layout import FileSpec, check_split, find_all, find_file
from tubelet.datasets.lettered import letter_index, unlettered
from tubelet.datasets.parquet import stream_parquet
from tubelet.datasets.problems import OnError, attempt, handle, unique
from tubelet.datasets.reading import stream_items, stream_jsonl
from tubelet.datasets.record import Record, VideoRef
from tubelet.errors import DataError

NAME = "video-mme"
SPLITS = ("test", "test_subtitles")
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
        "subtitles",
        ("subtitle/*.srt", "subtitles/*.srt", "*.srt"),
        "subtitles named by videoID, e.g. subtitle/fFjv93ACGo8.srt",
        SOURCE,
        ("test_subtitles",),
    ),
    FileSpec(
        "videos", ("**/*.mp4",), "videos named by videoID, e.g. data/fFjv93ACGo8.mp4", SOURCE, kind="media"
    ),
)
_COLUMNS = ("video_id", "duration", "question_id", "question", "options", "answer")
_SHARED = ("video_id", "videoID", "duration", "domain", "sub_category")


def read(folder: Path | str, split: str = "test", *, on_error: OnError = "raise") -> Iterator[Record]:
    """Records, lazily, in file order. `folder` may be the annotation file itself (.parquet, .json, .jsonl).

    Split test_subtitles needs the folder: DataError where it has no subtitles at all.
    """
    path = find_file(folder, FILES, "annotations", check_split(split, SPLITS, NAME))
    if path.suffix not in (".parquet", ".json", ".jsonl"):
        raise DataError(f"Video-MME is read from .parquet, .json or .jsonl, got {path.name}")
    spoken: dict[str, Path] | None = None
    if split == "test_subtitles":
        if Path(folder).is_file():
            raise DataError(f"{folder} is one file: give the folder that has the subtitles too")
        spec = next(spec for spec in FILES if spec.role == "subtitles")
        spoken = {file.stem: file for file in find_all(folder, spec.patterns)}
        if not spoken:
            raise DataError(
                f"{folder} has no {spec.what}: looked for {', '.join(spec.patterns)}; they are to be had from {SOURCE}"
            )
    return _read(path, split, on_error, Path(folder), spoken)


def _read(
    path: Path, split: str, on_error: OnError, folder: Path, spoken: dict[str, Path] | None
) -> Iterator[Record]:
    def pairs() -> Iterator[tuple[Item, Record | None]]:
        for item in _rows(path, on_error):
            record = attempt(on_error, item, partial(_record, item, split))
            if record is not None and spoken is not None:
                record = _with_subtitles(record, folder, spoken.get(record.video.id))
            yield item, record

    yield from unique(pairs(), on_error)


def _with_subtitles(record: Record, folder: Path, file: Path | None) -> Record:
    """Which file, and its hash: the words may be long, and only those at the frames that a model reads are asked."""
    if file is None:
        said = "subtitles-missing: the video has no subtitles, the question is asked without"
        return replace(record, extra={**record.extra, "subtitles": None}, notes=(*record.notes, said))
    try:
        digest = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror or error}") from error
    where = {"file": file.relative_to(folder).as_posix(), "sha256": digest}
    return replace(record, extra={**record.extra, "subtitles": where})


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
