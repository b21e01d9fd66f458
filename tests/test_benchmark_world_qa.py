"""Questions about the toy world: what counts as right, and what is written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tubelet.benchmarks.world_qa import evaluate_world_qa
from tubelet.errors import QueryError, VideoError
from tubelet.metrics.words import answer_score
from tubelet.world.files import read_annotations


class Student:
    """Knows the answers to some kinds of questions; cannot open some videos."""

    name = "student"

    def __init__(
        self, records: Sequence[dict[str, Any]] = (), knows: Sequence[str] = (), broken: str = ""
    ) -> None:
        self.answers = {(Path(r["video"]).name, r["query"]): r for r in records}
        self.knows, self.broken, self.encoded = knows, broken, 0

    def encode(self, video: str, window: Any = None) -> str:
        self.encoded += 1
        if Path(video).name == self.broken:
            raise VideoError(f"{self.broken} is broken")
        return Path(video).name

    def ask(self, video: str, question: str, max_new_tokens: int = 64) -> str:
        if not self.answers:
            raise QueryError("no idea")
        record = self.answers[video, question]
        return str(record["answer"]).upper() if record["kind"] in self.knows else "maybe"


SMALL: dict[str, Any] = {"n": 30, "seed": 3, "height": 48, "fps": 4.0}


def test_accuracy_by_kind(tmp_path: Path) -> None:
    first = evaluate_world_qa(Student(), tmp_path, **SMALL)
    records = read_annotations(tmp_path / "data")
    assert first.n == first.n_failed == len(records) and first.accuracy["all"].mean == 0.0
    (tmp_path / "predictions.jsonl").unlink()
    result = evaluate_world_qa(Student(records, ("yes_no", "caption")), tmp_path, **SMALL)
    assert result.n_failed == 0
    assert result.accuracy["yes_no"].mean == result.accuracy["caption"].mean == 1.0
    assert result.accuracy["count"].mean == 0.0 < result.constant["count"].mean
    rows = {kind: score for kind, score in result.accuracy.items() if kind not in ("all", "caption")}
    assert result.accuracy["all"].n == sum(score.n for score in rows.values())
    assert result.accuracy["all"].mean == pytest.approx(rows["yes_no"].n / result.accuracy["all"].n)
    report = json.loads((tmp_path / "metrics.json").read_text())
    assert report["n"] == len(records) and report["accuracy"]["yes_no"]["mean"] == 1.0


def test_it_resumes_and_counts_failures(tmp_path: Path) -> None:
    evaluate_world_qa(Student(), tmp_path, **SMALL)
    records = read_annotations(tmp_path / "data")
    (tmp_path / "predictions.jsonl").unlink()
    broken = Path(records[0]["video"]).name
    knows = sorted({r["kind"] for r in records})
    whole = evaluate_world_qa(Student(records, knows, broken), tmp_path, **SMALL)
    n_broken = sum(Path(r["video"]).name == broken for r in records)
    assert whole.n_failed == n_broken > 0
    lines = (tmp_path / "predictions.jsonl").read_text().splitlines()
    (tmp_path / "predictions.jsonl").write_text("\n".join(lines[:40]) + "\n" + lines[41][:9])
    student = Student(records, knows, broken)
    assert evaluate_world_qa(student, tmp_path, **SMALL).accuracy == whole.accuracy
    assert 0 < student.encoded < 30


@pytest.mark.parametrize(
    ("kind", "answer", "truth", "score"),
    [
        ("yes_no", " Yes.", "yes", 1.0),
        ("yes_no", "yes no", "yes", 0.0),
        ("where", "top left", "top left", 1.0),
        ("caption", "a red ring.", "a red ring and a blue star.", 2 * 3 / (3 + 7)),
        ("caption", "", "a red ring.", 0.0),
        ("caption", "a a a", "a ring", 2 / 5),
    ],
)
def test_what_is_right(kind: str, answer: str, truth: str, score: float) -> None:
    assert answer_score(kind, answer, truth) == pytest.approx(score)
