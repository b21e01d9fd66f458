"""Questions about toy-world videos, answered in words: captions, yes/no, attributes, counts, places.

    DIR/data/              the mp4 files and annotations
    DIR/predictions.jsonl  one answer per question, written as they come; a second run resumes
    DIR/metrics.json       accuracy by kind of question with 95 % intervals

An answer is right when it equals the true one, but for case, spaces and a full stop. Captions have many right forms:
their score is the share of the true caption's words (by count) in the answer, and the other way round (F1).
Beside it stands what the best constant answer to each kind of question would score.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from tubelet import __version__
from tubelet.benchmarks.world import resumed_lines
from tubelet.errors import OutputError, TubeletError
from tubelet.grounder import Grounder
from tubelet.metrics.bootstrap import Interval, bootstrap_mean
from tubelet.metrics.words import answer_score
from tubelet.world.files import make_world, read_annotations

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class QaResult:
    """accuracy and constant: by kind of question, "all" over all kinds but captions."""

    accuracy: dict[str, Interval]
    constant: dict[str, Interval]
    n: int
    n_failed: int
    folder: Path


def evaluate_world_qa(
    grounder: Grounder,
    folder: Path | str,
    n: int = 500,
    seed: int = 7,
    questions: int = 4,
    split: str = "test",
    height: int = 180,
    fps: float = 15.0,
    progress: Callable[[int, int], None] | None = None,
) -> QaResult:
    """Ask up to `questions` questions about each of n test videos. Resumes; a failure counts as wrong."""
    folder = Path(folder)
    data = folder / "data"
    make_world(data, n, seed, split, tasks=("qa",), questions=questions, height=height, fps=fps)
    records = read_annotations(data)
    settings = {"n": n, "seed": seed, "task": "qa", "questions": questions, "split": split}
    header = {"model": grounder.name, "revision": getattr(grounder, "revision", ""), **settings}
    path = folder / "predictions.jsonl"
    done = resumed_lines(path, header)
    try:
        with path.open("a", encoding="utf-8") as out:
            if path.stat().st_size == 0:
                out.write(json.dumps({"run": header}) + "\n")
            todo = [r for r in records if r["id"] not in done]
            for video, group in groupby(todo, key=lambda r: r["video"]):
                for line in _answer(grounder, str(data / video), list(group)):
                    out.write(json.dumps(line, ensure_ascii=False) + "\n")
                    done[line["id"]] = line
                out.flush()
                if progress is not None:
                    progress(len(done), len(records))
        result = score_answers(records, done, folder)
        report = {
            "run": header,
            "n": result.n,
            "n_failed": result.n_failed,
            "accuracy": {k: v.to_dict() for k, v in result.accuracy.items()},
            "constant_answer": {k: v.to_dict() for k, v in result.constant.items()},
            "tubelet": __version__,
        }
        temporary = folder / ".metrics.json.part"
        temporary.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        temporary.replace(folder / "metrics.json")
    except OSError as error:
        raise OutputError(f"cannot write to {folder}: {error.strerror or error}") from error
    return result


def _answer(grounder: Grounder, video: str, group: Sequence[Record]) -> list[Record]:
    try:
        state = grounder.encode(video)
    except TubeletError as error:
        return [{"id": r["id"], "answer": "", "failure": str(error)} for r in group]
    lines: list[Record] = []
    for record in group:
        try:
            lines.append({"id": record["id"], "answer": grounder.ask(state, record["query"])})
        except TubeletError as error:
            lines.append({"id": record["id"], "answer": "", "failure": str(error)})
    return lines


def score_answers(records: Sequence[Record], done: dict[str, Record], folder: Path) -> QaResult:
    kinds: dict[str, list[float]] = {}
    truths: dict[str, list[str]] = {}
    for record in records:
        answer = done[record["id"]]["answer"]
        score = answer_score(record["kind"], answer, record["answer"])
        kinds.setdefault(record["kind"], []).append(score)
        truths.setdefault(record["kind"], []).append(record["answer"])
    constant = {}
    for kind, answers in truths.items():
        best = Counter(answers).most_common(1)[0][0]
        constant[kind] = [answer_score(kind, best, true) for true in answers]
    tables = []
    for scores in (kinds, constant):
        rows = {kind: bootstrap_mean(values) for kind, values in sorted(scores.items())}
        together = [v for kind, values in scores.items() if kind != "caption" for v in values]
        tables.append({"all": bootstrap_mean(together), **rows} if together else rows)
    failed = sum("failure" in done[r["id"]] for r in records)
    return QaResult(tables[0], tables[1], len(records), failed, folder)
