"""EgoSchema: five-choice questions about 3-minute egocentric videos (5,031; 500 with public answers).

    questions.json          [{"q_uid": "...", "question": "...", "option 0": "...", ..., "option 4": "..."}]
    subset_answers.json     {q_uid: 0 to 4}                  the 500 public answers
    uid_to_ego4d.json       {q_uid: {"video_uid", "starting_sec", "ending_sec"}}      where the clip was cut (optional)

- **two splits**: "subset" has the 500 questions with answers, "full" all questions without truth (their answers are
  only on the official server; a score of the subset is not a score of the full set).
- answers count from 0. Videos are already cut: named by q_uid, seconds start at 0; Ego4D's times are in `source`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from tubelet.datasets.fields import Item, RecordError, show
from tubelet.datasets.layout import FileSpec, check_split, find_file
from tubelet.datasets.optional import optional_file
from tubelet.datasets.problems import OnError, attempt, handle, unique
from tubelet.datasets.reading import stream_items, stream_json
from tubelet.datasets.record import Record, VideoRef
from tubelet.errors import DataError

NAME = "egoschema"
SPLITS = ("subset", "full")
SOURCE = "github.com/egoschema/EgoSchema"
OPTIONS = 5
_FOLDERS = ("", "EgoSchema/", "egoschema/", "annotations/")
FILES = (
    FileSpec(
        "questions",
        tuple(f"{folder}questions{end}.json" for end in ("", ".*") for folder in _FOLDERS),
        "questions.json",
        SOURCE,
    ),
    FileSpec(
        "answers",
        tuple(f"{folder}subset_answers.json" for folder in _FOLDERS),
        "subset_answers.json (the 500 public answers)",
        SOURCE,
        ("subset",),
    ),
    FileSpec(
        "ego4d",
        tuple(f"{folder}uid_to_ego4d{end}.json" for end in ("", ".*") for folder in _FOLDERS),
        "uid_to_ego4d.json (where the clips were cut)",
        SOURCE,
        required=False,
    ),
    FileSpec(
        "videos",
        ("**/*.mp4",),
        "the 3-minute clips, named by q_uid, e.g. videos/Q_UID.mp4",
        "the download script of that repository (Ego4D's licence)",
        kind="media",
    ),
)


def read(folder: Path | str, split: str = "subset", *, on_error: OnError = "raise") -> Iterator[Record]:
    """Records in the order of questions.json, lazily; answers and Ego4D's times (some 100 kB) are held in memory."""
    check_split(split, SPLITS, NAME)
    questions = find_file(folder, FILES, "questions")
    if Path(folder).is_file():
        raise DataError(f"{folder} is one file: give the folder with questions.json and subset_answers.json")
    answers = find_file(folder, FILES, "answers", "subset") if split == "subset" else None
    return _read(questions, answers, optional_file(Path(folder), FILES, "ego4d"), split, on_error)


def _read(
    questions: Path, answers: Path | None, ego4d: Path | None, split: str, on_error: OnError
) -> Iterator[Record]:
    right = None if answers is None else _answers(answers, on_error)
    cut = {} if ego4d is None else _cuts(ego4d, on_error)

    def pairs() -> Iterator[tuple[Item, Record | None]]:
        asked: set[str] = set()
        for item in stream_items(questions, on_error):
            uid = item.data.get("q_uid")
            if isinstance(uid, str):
                asked.add(uid.strip())
                if right is not None and uid.strip() not in right:
                    continue  # not of the subset
            yield item, attempt(on_error, item, partial(_record, item, split, right, cut))
        for uid in right or ():
            if uid not in asked:
                reason = f"no question of {questions.name} has this q_uid"
                handle(on_error, RecordError(str(answers), f"key {show(uid)}", "", reason))

    yield from unique(pairs(), on_error)


def _record(item: Item, split: str, right: dict[str, int] | None, cut: dict[str, dict[str, Any]]) -> Record:
    uid = item.text("q_uid")
    choices = tuple(item.text(f"option {k}") for k in range(OPTIONS))
    index = None if right is None else right[uid]
    return Record(
        dataset=NAME,
        split=split,
        id=uid,
        task="qa",
        query=item.text("question"),
        video=VideoRef(
            id=uid,
            files=tuple(f"{folder}{uid}.mp4" for folder in ("videos/", "video/", "good_clips_git/", "")),
        ),
        choices=choices,
        answer="" if index is None else choices[index],
        answer_index=index,
        source={"file": Path(item.file).name, "record": item.where, **cut.get(uid, {})},
    )


def _answers(path: Path, on_error: OnError) -> dict[str, int]:
    right: dict[str, int] = {}
    for uid, value in stream_json(path, on_error):
        if isinstance(uid, int) or type(value) is not int or not 0 <= value < OPTIONS:
            where = f"record {uid}" if isinstance(uid, int) else f"key {show(uid)}"
            reason = f"expected q_uid -> 0 to {OPTIONS - 1}, got {show(value)}"
            handle(on_error, RecordError(str(path), where, "", reason))
            continue
        right[uid.strip()] = value
    return right


def _cuts(path: Path, on_error: OnError) -> dict[str, dict[str, Any]]:
    cuts: dict[str, dict[str, Any]] = {}
    for item in stream_items(path, on_error):
        try:
            cuts[item.text("__key__")] = {
                "ego4d_video": item.text("video_uid"),
                "ego4d_s": [item.number("starting_sec", 0), item.number("ending_sec", 0)],
            }
        except RecordError as error:
            handle(on_error, error)
    return cuts
