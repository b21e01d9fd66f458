"""How the general benchmarks ask, and how they read the answers: official prompts, option parsing, categories.

| benchmark   | prompt from                                        | answers read by                    |
|-------------|----------------------------------------------------|------------------------------------|
| mvbench     | OpenGVLab/Ask-Anything video_chat2/mvbench.ipynb   | its check_ans ("mvbench_official") |
| video-mme   | BradyFU/Video-MME README.md                        | evaluation/eval_your_results.py    |
|             |                                                    | ("videomme_official")              |
| egoschema   | lmms-eval tasks/egoschema (there is no official)   | lmms-eval ("egoschema")            |
| tempcompass | llyx97/TempCompass run_*/inference_dataset.py      | its eval_*.py without an LLM judge |

What the official codes add around the prompt (system messages, a forced beginning of the answer such as "Best
option:(") is the model's own business here: a grounder's `ask` takes one question. A verdict of None means that the
official rules have none (an LLM would be asked, a letter drawn): it counts as wrong and is reported as unread.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy.typing as npt

from tubelet.datasets.record import Record
from tubelet.datasets.subtitles import read_srt, words_at
from tubelet.errors import DataError
from tubelet.metrics.choices import CHOICE_READERS, Verdict, letters

ASK_TOKENS = 32
"""New tokens of an answer to a multiple-choice question."""

_TEMPCOMPASS = {
    "multi-choice": "\nPlease directly give the best option:",
    "yes_no": "\nPlease answer yes or no:",
    "caption_matching": "\nPlease directly give the best option:",
    "captioning": "",
}
OFFICIAL_READERS = {
    "mvbench": "mvbench_official",
    "video-mme": "videomme_official",
    "egoschema": "egoschema",
    "tempcompass": "tempcompass",
}
"""Benchmark -> the reader of its official (or most used) code."""


def prompt_of(record: Record, subtitles: str = "") -> str:
    """The words that are asked: the official prompt of the benchmark, else the question (with lettered options).

    subtitles: those of the frames that the model reads, for Video-MME with subtitles (`subtitles_of`).
    """
    if record.dataset == "tempcompass":
        asked = record.extra.get("prompt")
        if not isinstance(asked, str):
            raise DataError(f"{record.id}: a TempCompass record keeps its prompt in extra, this one has none")
        return asked + _TEMPCOMPASS.get(record.split, "")
    if not record.choices:
        return record.query
    if record.dataset == "mvbench":
        options = "".join(
            f"({a}) {c}\n" for a, c in zip(letters(len(record.choices)), record.choices, strict=True)
        )
        return f"Question: {record.query}\nOptions:\n{options}Only give the best option."
    if record.dataset == "video-mme":
        spoken = f"This video's subtitles are listed below:\n{subtitles}\n" if subtitles else ""
        return (
            f"{spoken}Select the best answer to the following multiple-choice question based on the video. "
            "Respond with only the letter (A, B, C, or D) of the correct option.\n"
            f"{record.query}\n{_lettered(record)}\nThe best answer is:"
        )
    return f"{record.query}\n{_lettered(record)}\nAnswer with the option's letter from the given choices directly."


def _lettered(record: Record) -> str:
    return "\n".join(f"{a}. {c}" for a, c in zip(letters(len(record.choices)), record.choices, strict=True))


def subtitles_of(record: Record, folders: Sequence[Path], times_s: npt.ArrayLike | None = None) -> str:
    """The subtitles that a question comes with, at these times (of the frames that the model reads; None: all).

    "" where it comes with none. DataError where its file is gone, or no longer what the run was started with.
    """
    told = record.extra.get("subtitles")
    if not isinstance(told, Mapping):
        return ""
    name = str(told.get("file", ""))
    found = next((folder / name for folder in folders if (folder / name).is_file()), None)
    if found is None:
        raise DataError(f"the subtitles {name} are missing from the data folder")
    if hashlib.sha256(found.read_bytes()).hexdigest()[:16] != told.get("sha256"):
        raise DataError(f"the subtitles {name} have changed since the run was started: start another one")
    return words_at(read_srt(found), times_s)


def reader_of(benchmark: str, protocol: str | None = None) -> str:
    """The name of the way to read choices: the given one if there is such a reader, else the official one."""
    if protocol in CHOICE_READERS:
        return protocol
    return OFFICIAL_READERS.get(benchmark, "tubelet")


def verdict_of(record: Record, answer: str, reader: str) -> Verdict:
    """1.0 right, 0.0 wrong, None where this reader has no verdict. Needs a record with choices and their truth."""
    if record.answer_index is None:
        raise DataError(f"{record.id} of {record.dataset} {record.split} has no public answer")
    if reader == "tempcompass" and record.split in _TEMPCOMPASS_READERS:
        return _TEMPCOMPASS_READERS[record.split](answer, record)
    if record.dataset == "tempcompass" and record.split == "yes_no":
        return _yes_no(answer, record)  # its options have no letters
    return CHOICE_READERS[reader](answer, record.choices, letters(len(record.choices))[record.answer_index])


def _yes_no(answer: str, record: Record) -> Verdict:
    """How the answer begins, in lower case."""
    found = re.match(r"yes|no", answer.lower())
    return None if found is None else float(found[0] == record.answer)


def _caption_matching(answer: str, record: Record) -> Verdict:
    """A whole option line, its text, or its name ("Caption A", "Option 1"), to the letter."""
    if not {"prompt", "answer"} <= record.extra.keys():
        raise DataError(
            f"{record.id}: a TempCompass record keeps its prompt and answer in extra, this one does not"
        )
    lines = str(record.extra["prompt"]).split("\n")[1:]
    right = str(record.extra["answer"])
    parts = [line.split(": ") for line in lines if ": " in line]
    after = answer.split(") ")[1] if ") " in answer else None
    named: str | None = None
    for line in lines:
        if line == answer:
            named = line
    for part in parts:
        if part[1] in (answer, after):
            named = part[1]
    for part in parts:
        if part[0] in (answer, answer.replace(".", "")):
            named = part[0]
    if named is None:
        return None
    return float(named in (right, right.split(":")[0], right.split(": ")[1] if ": " in right else right))


_TEMPCOMPASS_READERS: Mapping[str, Callable[[str, Record], Verdict]] = {
    "yes_no": _yes_no,
    "caption_matching": _caption_matching,
}
