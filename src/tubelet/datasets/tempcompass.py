"""TempCompass: temporal perception in five dimensions, asked in four ways, on 410 videos (CC BY-NC 4.0).

    questions/multi-choice.json     {video: {dimension: [{"question": "...?\\nA. ...\\nB. ...", "answer": "B. ..."}]}}

The four ways are the splits (1,580 / 2,453 / 1,503 / 2,004 questions):

- "multi-choice": the options are lines of the question, "A. ..." (in places " D. ..." and "C.Both"); the answer is one.
- "yes_no": "yes" or "no".
- "caption_matching": two lines, "Sentence A: ...", "Caption A: ..." or "Option 1: ...": three spellings.
- "captioning": the task is to write a caption; pieces of information are listed as "Information A: {...}", the answer
  names one by its letter. An LLM judges the caption, so the record has no `choices`: see `extra["information"]`.

`query` is the question without its options; `extra["prompt"]` and `extra["answer"]` are as the file has them, and the
official rules compare with these. Videos such as ID_reverse and ID_concat_2 are made from others: `tags["made"]`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from tubelet.datasets.fields import Item, RecordError
from tubelet.datasets.layout import FileSpec, check_split, find_file
from tubelet.datasets.lettered import letter_index
from tubelet.datasets.optional import optional_file
from tubelet.datasets.problems import OnError, attempt, handle, unique
from tubelet.datasets.reading import stream_items
from tubelet.datasets.record import Record, VideoRef

NAME = "tempcompass"
SPLITS = ("multi-choice", "yes_no", "caption_matching", "captioning")
SOURCE = "github.com/llyx97/TempCompass, folder questions (CC BY-NC 4.0)"
DIMENSIONS = ("action", "direction", "speed", "order", "attribute_change")
FILES = (
    *(
        FileSpec(
            "questions",
            tuple(
                f"{folder}{name}{end}.json"
                for end in ("", ".*")
                for folder, name in (("questions/", split), ("", split), ("", f"questions_{split}"))
            ),
            f"{split} questions",
            SOURCE,
            (split,),
        )
        for split in SPLITS
    ),
    FileSpec(
        "meta", ("meta_info.json", "meta_info.*.json"), "meta_info.json (contents)", SOURCE, required=False
    ),
    FileSpec(
        "videos",
        ("**/*.mp4",),
        "videos named by their id, e.g. videos/1021488277_reverse.mp4",
        "the link in github.com/llyx97/TempCompass",
        kind="media",
    ),
)
_OPTION = {
    "multi-choice": re.compile(r"\s*([A-Z])\."),
    "caption_matching": re.compile(r"\s*(?:Sentence|Caption|Option) ([A-Z1-9]):"),
    "captioning": re.compile(r"\s*Information ([A-Z]):"),
}
_LAST_LINE = "Generated Caption:"
_MADE = re.compile(r".*_(reverse|concat)(?:_\d+)?")


def read(folder: Path | str, split: str, *, on_error: OnError = "raise") -> Iterator[Record]:
    """Records of one way of asking, lazily, video by video. `folder` may be the file of that way."""
    path = find_file(folder, FILES, "questions", check_split(split, SPLITS, NAME))
    meta = None if Path(folder).is_file() else optional_file(Path(folder), FILES, "meta")
    return _read(path, meta, split, on_error)


def _read(path: Path, meta: Path | None, split: str, on_error: OnError) -> Iterator[Record]:
    contents: dict[str, list[str]] = {}
    for item in stream_items(meta, on_error) if meta is not None else ():
        try:
            contents[item.text("__key__")] = item.texts("content")
        except RecordError as error:
            handle(on_error, error)

    def pairs() -> Iterator[tuple[Item, Record | None]]:
        for item in stream_items(path, on_error):
            asked: list[tuple[str, int, Item]] = []
            try:
                video = item.text("__key__")
                for dimension in item.data:
                    if dimension != "__key__":
                        asked += [
                            (dimension, k, question) for k, question in enumerate(item.children(dimension))
                        ]
            except RecordError as error:
                handle(on_error, error)
                continue
            for dimension, k, question in asked:
                name = f"{video}-{dimension}-{k}"
                make = partial(_record, question, split, video, dimension, name, contents.get(video, []))
                yield question, attempt(on_error, question, make)

    yield from unique(pairs(), on_error)


def _record(item: Item, split: str, video: str, dimension: str, name: str, contents: list[str]) -> Record:
    if dimension not in DIMENSIONS:
        raise item.error("", f"expected a dimension of {', '.join(DIMENSIONS)}, got {dimension!r:.40}")
    prompt, right = item.text("question"), item.text("answer")
    query, choices, index, answer = _parse(item, split, prompt, right)
    extra: dict[str, Any] = {"prompt": item.raw("question"), "answer": item.raw("answer")}  # spaces and all
    if split == "captioning":
        extra |= {"information": list(choices), "information_index": index}
        choices, index = (), None
    made = _MADE.fullmatch(video)
    return Record(
        dataset=NAME,
        split=split,
        id=name,
        task="qa",
        query=query,
        video=VideoRef(id=video, files=tuple(f"{folder}{video}.mp4" for folder in ("videos/", "video/", ""))),
        choices=choices,
        answer=answer,
        answer_index=index,
        source={"file": Path(item.file).name, "field": item.path},
        tags={"way": split, "dimension": dimension, "made": made[1] if made else "", "content": contents},
        extra=extra,
    )


def _parse(item: Item, split: str, prompt: str, right: str) -> tuple[str, tuple[str, ...], int | None, str]:
    """The question without options, the options, which of them is right, and its text."""
    if split == "yes_no":
        if right not in ("yes", "no"):
            raise item.error("answer", f"expected yes or no, got {right!r:.40}")
        return prompt, ("yes", "no"), ("yes", "no").index(right), right
    stem: list[str] = []
    labels: list[str] = []
    options: list[str] = []
    for line in prompt.split("\n"):
        label, text = _labelled(line, split)
        if label and label in (chr(ord(labels[-1]) + 1) if labels else "A1"):
            labels.append(label)
            options.append(text)
        elif not options:
            stem.append(line.strip())
        elif line.strip() and line.strip() != _LAST_LINE:
            raise item.error("question", f"expected options to the end, got the line {line.strip()!r:.60}")
    if len(options) < 2 or not all(options):
        raise item.error(
            "question", f"expected a line per option in order (A, B, ...), found {labels or 'none'}"
        )
    query = " ".join(line for line in stem if line)
    if not query:
        raise item.error("question", "expected a question before the options, got none")
    if split == "captioning":
        label, text = _labelled(right, "multi-choice")
        if not text:
            raise item.error("answer", f"expected 'A. text', got {right!r:.40}")
        return query, tuple(options), letter_index(item, "answer", label, len(options)), text
    label, text = _labelled(right, split)
    if label not in labels or options[labels.index(label)] != text:
        raise item.error("answer", f"expected one of the option lines, got {right!r:.60}")
    return query, tuple(options), labels.index(label), text


def _labelled(line: str, split: str) -> tuple[str, str]:
    """("B", text) of an option line, ("", "") of another."""
    found = _OPTION[split].match(line)
    return (found[1], line[found.end() :].strip()) if found else ("", "")
