"""EgoSchema: hidden answers of the full set, public answers of the subset, options 0 to 4."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import dataset_files as files
import pytest
from annotation_help import fails, one
from hypothesis import given
from hypothesis import strategies as st
from test_dataset_fuzz import FUZZ, changed, must_survive

from tubelet.datasets import read
from tubelet.datasets.problems import Problems
from tubelet.errors import DataError


def question(uid: str = "001934bb", **changes: Any) -> dict[str, Any]:
    options = {f"option {k}": f"C does {k}" for k in range(5)}
    return {"q_uid": uid, "google_drive_id": "x", "question": "What does c do?", **options, **changes}


def make(folder: Path, answers: Any = None, *questions: dict[str, Any]) -> Path:
    files.write_json(folder / "questions.json", list(questions) or [question(), question("b")])
    files.write_json(folder / "subset_answers.json", {"b": 4} if answers is None else answers)
    return folder


def test_the_subset_has_answers_and_the_full_set_has_none(tmp_path: Path) -> None:
    record = one(read("egoschema", make(tmp_path), "subset"))
    assert (record.id, record.answer_index, record.answer, record.labelled) == ("b", 4, "C does 4", True)
    assert record.choices == tuple(f"C does {k}" for k in range(5))
    assert record.video.files[0] == "videos/b.mp4"
    full = list(read("egoschema", tmp_path, "full"))
    assert [record.id for record in full] == ["001934bb", "b"]
    assert not any(record.labelled for record in full)


def test_ego4d_times_are_of_the_original(tmp_path: Path) -> None:
    cut = {"b": {"video_uid": "2fa7", "starting_sec": 240, "ending_sec": 420}}
    files.write_json(make(tmp_path) / "uid_to_ego4d.json", cut)
    record = one(read("egoschema", tmp_path, "subset"))
    assert record.source["ego4d_video"] == "2fa7"
    assert record.source["ego4d_s"] == [240, 420]
    assert record.video.segment_s is None  # the file is already the cut


@pytest.mark.parametrize(
    ("answers", "says"),
    [
        ({"b": 5}, r"subset_answers.json, key 'b': expected q_uid -> 0 to 4, got 5"),
        ({"b": "4"}, "expected q_uid -> 0 to 4, got '4'"),
        ({"b": True}, "got True"),
        ([4], "record 0: expected q_uid"),
        ({"b": 4, "zzz": 1}, "key 'zzz': no question of questions.json has this q_uid"),
    ],
)
def test_broken_answers(tmp_path: Path, answers: Any, says: str) -> None:
    fails("egoschema", make(tmp_path, answers), "subset", says)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"option 3": None}, "field option 3: expected text"),
        ({"question": ""}, "field question"),
        ({"q_uid": 3}, "q_uid"),
    ],
)
def test_broken_questions(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    fails("egoschema", make(tmp_path, None, question("b", **changes)), "full", says)


def test_missing_files(tmp_path: Path) -> None:
    path = files.write_json(tmp_path / "questions.json", [question()])
    assert len(list(read("egoschema", tmp_path, "full"))) == 1  # needs no answers
    with pytest.raises(DataError, match=r"has no subset_answers\.json"):
        read("egoschema", tmp_path, "subset")
    with pytest.raises(DataError, match="is one file: give the folder"):
        read("egoschema", path, "full")


def test_real_questions() -> None:
    records = list(read("egoschema", files.real("egoschema"), "full"))
    assert len(records) == 20
    assert all(len(record.choices) == 5 and not record.labelled for record in records)
    assert all(r.source["ego4d_s"][1] - r.source["ego4d_s"][0] == 180 for r in records)


def test_real_answers(tmp_path: Path) -> None:
    """The 20 questions of the early file are none of the subset: all 500 answers are without a question."""
    problems = Problems()
    assert list(read("egoschema", files.real("egoschema"), "subset", on_error=problems)) == []
    assert problems.count == 500
    answers = json.loads((files.real("egoschema") / "subset_answers.json").read_text())
    asked = json.loads((files.real("egoschema") / "questions.20.json").read_text())
    made = [{**asked[k % 20], "q_uid": uid} for k, uid in enumerate(answers)]
    make(tmp_path, answers, *made)
    records = list(read("egoschema", tmp_path, "subset"))
    assert {record.id: record.answer_index for record in records} == answers
    assert all(record.answer == record.choices[answers[record.id]] for record in records)


@FUZZ
@given(st.data())
def test_no_json_raises_anything_but_tubelets_errors(tmp_path: Path, data: st.DataObject) -> None:
    value = [question(), question("b")]
    answers: Any = {"b": 4, "001934bb": 0}
    cut: Any = {"b": {"video_uid": "2fa7", "starting_sec": 240, "ending_sec": 420}}
    which = data.draw(st.integers(0, 2))
    files.write_json(tmp_path / "questions.json", changed(value, data) if which == 0 else value)
    files.write_json(tmp_path / "subset_answers.json", changed(answers, data) if which == 1 else answers)
    files.write_json(tmp_path / "uid_to_ego4d.json", changed(cut, data) if which == 2 else cut)
    must_survive("egoschema", tmp_path, "subset")
    must_survive("egoschema", tmp_path, "full")
