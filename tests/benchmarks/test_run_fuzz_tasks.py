"""Damaged records of runs on other benchmarks: every way to score reads its own fields, and none of them crashes."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from report_help import write_run

from tubelet.benchmarks.run_folder import read_run
from tubelet.benchmarks.run_score import score_run
from tubelet.benchmarks.submission import write_submission
from tubelet.datasets.record import Record, Target, VideoRef
from tubelet.errors import DataError, TubeletError
from tubelet.tube import Prediction, Span, Tube

FUZZ = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
ODD: Any = (
    st.sampled_from(
        [None, True, -1, 0.5, 1e308, 2**31, 10**30, float("nan"), "", "x", "\0", [], {}, [[]], [[0]], [3, 1]]
    )
    | st.integers()
    | st.text(max_size=4)
)
VIDEO = VideoRef("v", ("videos/v.mp4",), duration_s=20.0)
WORDS = ("Sits.", "Stands.", "Runs.", "Jumps.", "Falls.")


def _moments(name: str, split: str, k: int, **more: Any) -> Record:
    return Record(name, split, f"q{k}", "tvg", "he sits", VIDEO, spans=(Span(2.0, 6.0),), **more)


def _choice(name: str, split: str, k: int, n: int, **more: Any) -> Record:
    chosen = {"choices": WORDS[:n], "answer": WORDS[1], "answer_index": 1}
    return Record(name, split, f"q{k}", "qa", "What?", VIDEO, **chosen, **more)


CASES: dict[str, tuple[str, str, Callable[[int], Record]]] = {
    "didemo": (
        "test", "didemo",
        lambda k: _moments("didemo", "test", k, extra={"times": [[0, 1], [0, 1], [1, 1], [0, 0]], "num_segments": 4}),
    ),
    "qvhighlights": (
        "val", "moment_detr",
        lambda k: _moments(
            "qvhighlights", "val", k, extra={"relevant_clip_ids": [1, 2], "saliency_scores": [[3, 4, 2], [2, 4, 2]]}
        ),
    ),
    "video-mme": ("test", "", lambda k: _choice("video-mme", "test", k, 4, source={"video_id": "001"})),
    "egoschema": ("full", "", lambda k: _choice("egoschema", "full", k, 5)),
    "tempcompass": (
        "caption_matching", "",
        lambda k: _choice(
            "tempcompass", "caption_matching", k, 2,
            extra={"prompt": "Which?\nOption 1: Sits.\nOption 2: Stands.", "answer": "Option 2: Stands."},
        ),
    ),
    "refcoco": (
        "refcoco_val", "",
        lambda k: Record(
            "refcoco", "refcoco_val", f"q{k}", "rec", "her",
            VideoRef("i", ("i.jpg",), width=48, height=32, kind="image"),
            targets=(Target(np.array([[4.0, 4.0, 20.0, 20.0]]), "pixel", np.array([0])),),
        ),
    ),
}  # fmt: skip


def answer(record: Record) -> Prediction:
    if record.task == "qa":
        return Prediction("v", record.query, "qa", text="Option 2: Stands.")
    box = (np.array([0.0]), np.array([[0.1, 0.1, 0.4, 0.6]]))
    tube = Tube(Span(0.0, 0.04), *box) if record.task == "rec" else Tube(Span(1.0, 5.0))
    told = {"saliency_scores": [0.5, 0.9, 0.1]} if record.dataset == "qvhighlights" else {}
    return Prediction("v", record.query, record.task, (tube,), provenance=told)


def make(name: str, folder: Path) -> Path:
    split, protocol, record = CASES[name]
    records = [record(k) for k in range(2)]
    answers = {r.id: answer(r) for r in records}
    return write_run(folder, records, answers, benchmark=name, split=split, protocol=protocol)


@pytest.mark.parametrize("name", CASES)
def test_undamaged_it_is_scored(name: str, tmp_path: Path) -> None:
    (part,) = score_run(read_run(make(name, tmp_path / "run"))).parts.values()
    assert part.n == 2 and part.n_failed == 0 and part.metrics
    written = write_submission(tmp_path / "run")
    assert (written is not None) == (name in ("egoschema", "video-mme", "tempcompass"))


def ways(value: Any, way: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inside: list[Any] = list(value) if isinstance(value, dict) else []
    if isinstance(value, list):
        inside = list(range(min(2, len(value))))
    return ([way] if way else []) + [w for key in inside for w in ways(value[key], (*way, key))]


@pytest.mark.parametrize("name", CASES)
@FUZZ
@given(data=st.data())
def test_any_field_may_be_damaged(name: str, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = make(name, Path(place) / "run")
        path = folder / data.draw(st.sampled_from(["records.jsonl", "records.jsonl", "predictions.jsonl"]))
        rows = [json.loads(line) for line in path.read_text().split("\n")[:-1]]
        *way, last = data.draw(st.sampled_from(ways(rows[0])))
        inner = rows[0]
        for key in way:
            inner = inner[key]
        if data.draw(st.booleans()):
            inner[last] = data.draw(ODD)
        else:
            del inner[last]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        try:
            run = read_run(folder, keep_good=True)
            scores = score_run(run)
            json.dumps(scores.to_dict(run.card))
            assert scores.n == 2
            write_submission(folder)
        except TubeletError as error:
            assert str(error) and "\n" not in str(error)


def changed(name: str, folder: Path, **fields: Any) -> Path:
    """A run whose first record has other fields; None takes one away. Keys are ways: extra__times."""
    path = make(name, folder) / "records.jsonl"
    rows = [json.loads(line) for line in path.read_text().split("\n")[:-1]]
    for key, value in fields.items():
        *way, last = key.split("__")
        place = rows[0]
        for step in way:
            place = place[step]
        place.pop(last)
        if value is not None:
            place[last] = value
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize(
    ("name", "fields", "says"),
    [
        (
            "didemo",
            {"extra__times": []},
            r"q0: times are the first and last chunk of each annotator, got \[\]",
        ),
        ("didemo", {"extra__times": [[0, 1], 3]}, "each annotator, got 3"),
        ("didemo", {"extra__num_segments": 10**9}, "num_segments is a number of 5 s chunks, got 1000000000"),
        ("didemo", {"extra__times": None}, "needs the annotators' chunks"),
        ("qvhighlights", {"video__duration_s": 1e12}, "q0: a video of 1000000000000.0 s has no clips of 2 s"),
        ("tempcompass", {"extra__prompt": None}, "q0: a TempCompass record keeps its prompt and answer"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, name: str, fields: dict[str, Any], says: str) -> None:
    run = read_run(changed(name, tmp_path / "run", **fields))
    with pytest.raises(DataError, match=says):
        score_run(run)


def test_a_fifth_option_has_a_letter_in_the_template(tmp_path: Path) -> None:
    fields = {"choices": list(WORDS), "answer": WORDS[4], "answer_index": 4}
    path = write_submission(changed("video-mme", tmp_path / "run", **fields))
    assert path is not None
    (video,) = json.loads(path.read_text())
    assert [question["answer"] for question in video["questions"]] == ["E", "B"]
