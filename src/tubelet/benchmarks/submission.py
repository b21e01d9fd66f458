"""The answers of a run in the file that a benchmark's own script or server takes.

    egoschema      {q_uid: 0..4}, what validate.py of egoschema/EgoSchema sends to the server: the only way to a number
                   on the full set. An answer that names no option is -1: the server has no other way to count it
    video-mme      the list of videos with their questions and a "response" each, for evaluation/eval_your_results.py
    tempcompass    {video: {dimension: [{question, answer, prediction}]}}, for eval_*.py: captions are judged by an LLM
                   there. predictions/NAME/WAY.json in its folder

`write_submission` writes into the run folder. Every question is in the file: a failure is an empty answer.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tubelet.benchmarks.run_folder import Run, read_run, write_whole
from tubelet.metrics.choices import egoschema_letter, letters, read_letter


def write_submission(folder: Path | str) -> Path | None:
    """The file for a finished run's benchmark, in its folder; None where there is no such file.

    Raises DataError for a folder that is no finished run.
    """
    run = read_run(folder)
    benchmark, split = str(run.card["benchmark"]), str(run.card["split"])
    if benchmark not in ("egoschema", "video-mme", "tempcompass"):
        return None
    content: Any
    if benchmark == "egoschema":
        content = {record.id: _option(run, record.id, record.choices) for record in run.records}
    elif benchmark == "video-mme":
        content = _videomme(run)
    else:
        content = _tempcompass(run)
    path = run.folder / f"submission_{benchmark}_{split}.json"
    write_whole(path, json.dumps(content, ensure_ascii=False, indent=1) + "\n")
    return path


def _said(run: Run, key: str) -> str:
    line = run.lines.get(key)
    return "" if line is None or line.prediction.failure is not None else line.prediction.text


def _option(run: Run, key: str, choices: tuple[str, ...]) -> int:
    said = _said(run, key)
    letter = egoschema_letter(said, choices) or read_letter(said, choices)
    return -1 if letter is None else letters(len(choices)).index(letter)


def _videomme(run: Run) -> list[dict[str, Any]]:
    videos: dict[str, dict[str, Any]] = {}
    for record in run.records:
        tags = record.tags
        number = str(record.source.get("video_id", record.video.id))
        # the keys of the template, and those that the script of 2024 looks for
        video = videos.setdefault(
            number,
            {
                "video_id": number,
                "duration": tags.get("length", ""),
                "domain": tags.get("domain", ""),
                "sub_category": tags.get("sub_category", ""),
                "duration_category": tags.get("length", ""),
                "video_category": tags.get("domain", ""),
                "video_subcategory": tags.get("sub_category", ""),
                "missing": False,
                "questions": [],
            },
        )
        video["questions"].append(
            {
                "question_id": record.id,
                "task_type": tags.get("task_type", ""),
                "question": record.query,
                "options": record.extra.get("options", list(record.choices)),
                "answer": ""
                if record.answer_index is None
                else letters(len(record.choices))[record.answer_index],
                "response": _said(run, record.id),
            }
        )
    return list(videos.values())


def _tempcompass(run: Run) -> dict[str, dict[str, list[dict[str, Any]]]]:
    out: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for record in run.records:
        rows = out.setdefault(record.video.id, {}).setdefault(str(record.tags.get("dimension", "")), [])
        asked, right = record.extra.get("prompt", record.query), record.extra.get("answer", record.answer)
        rows.append({"question": asked, "answer": right, "prediction": _said(run, record.id)})
    return out
