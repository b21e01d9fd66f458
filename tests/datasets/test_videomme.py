"""Video-MME: rows of a parquet file, the result template, lettered options. All data here is made up."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import dataset_files as files
import pytest
from annotation_help import fails, one, write_lines
from hypothesis import given
from hypothesis import strategies as st
from test_dataset_fuzz import FUZZ, changed, must_survive

from tubelet.datasets import read
from tubelet.datasets.problems import Problems
from tubelet.errors import DataError


def row(**changes: Any) -> dict[str, Any]:
    return {
        "video_id": "001",
        "videoID": "aBc-_123",
        "duration": "short",
        "domain": "Life Record",
        "sub_category": "Pet & Animal",
        "task_type": "Counting Problem",
        "question_id": "001-1",
        "question": "How many cats?",
        "options": ["A. One.", "B. Two.", "C. Three.", "D. 4."],
        "answer": "B",
        **changes,
    }


def template() -> list[dict[str, Any]]:
    shared = {key: row()[key] for key in ("video_id", "duration", "domain", "sub_category")}
    asked = {key: row()[key] for key in ("task_type", "question", "options", "answer")}
    return [{**shared, "questions": [{**asked, "question_id": f"001-{k}", "response": "A"} for k in (1, 2)]}]


def test_letters_become_texts_and_an_index(tmp_path: Path) -> None:
    files.write_json(tmp_path / "videomme.json", [row()])
    record = one(read("video-mme", tmp_path, "test"))
    assert record.choices == ("One.", "Two.", "Three.", "4.")
    assert (record.answer, record.answer_index, record.id) == ("Two.", 1, "001-1")
    assert record.extra["options"] == row()["options"]
    assert (record.video.id, record.video.files[0]) == ("aBc-_123", "data/aBc-_123.mp4")
    assert (record.video.duration_s, record.tags["length"]) == (None, "short")  # a class, not seconds
    assert record.source["video_id"] == "001"


def test_template_and_rows_are_the_same_questions(tmp_path: Path) -> None:
    path = files.write_json(tmp_path / "output_test_template.json", template())
    first, second = read("video-mme", path, "test")
    assert (first.id, second.id, first.video.id) == ("001-1", "001-2", "001")
    lines = write_lines(tmp_path / "rows.jsonl", [row(), row(question_id="001-2")])
    assert [record.id for record in read("video-mme", lines, "test")] == ["001-1", "001-2"]
    rows = list(read("video-mme", lines, "test"))
    assert [record.choices for record in rows] == [first.choices, second.choices]


def test_the_published_template_is_not_json_and_the_error_says_where(tmp_path: Path) -> None:
    text = json.dumps(template()).replace('"response": "A"}]', '"response": "A"},]')
    path = tmp_path / "output_test_template.json"
    path.write_text(text)
    fails("video-mme", path, "test", "record 0: .*not JSON")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"answer": "E"}, "field answer: expected a letter from A to D, got 'E'"),
        ({"answer": "Two."}, "field answer: expected a letter"),
        ({"options": ["A. x", "B. y", "C. z"]}, "field options: expected 4 options, got 3"),
        (
            {"options": ["A. x", "C. y", "B. z", "D. w"]},
            r"field options\[1\]: expected 'B. text', got 'C. y'",
        ),
        ({"options": ["A. x", "B.", "C. z", "D. w"]}, r"field options\[1\]: expected 'B. text'"),
        ({"duration": 61}, "field duration: expected text"),
        ({"duration": "tiny"}, "field duration: expected one of short, medium, long"),
        ({"question_id": ""}, "field question_id"),
    ],
)
def test_broken_rows(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    fails("video-mme", files.write_json(tmp_path / "a.json", [row(**changes)]), "test", says)


def test_options_without_letters_stay_as_they_are(tmp_path: Path) -> None:
    plain = ["a cat", "C. elegans", "b", "A. B. C."]
    record = one(read("video-mme", files.write_json(tmp_path / "a.json", [row(options=plain)]), "test"))
    assert record.choices == tuple(plain)


def test_a_parquet_file_without_pyarrow_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "videomme").mkdir()
    (tmp_path / "videomme" / "test-00000-of-00001.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(
        DataError, match=r"needs pyarrow: 'pip install pyarrow', or write its rows as JSON Lines"
    ):
        list(read("video-mme", tmp_path, "test"))


def test_parquet_rows(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "test-00000-of-00001.parquet"
    rows = [row(question_id=f"{k:03d}-1") for k in range(1200)]
    parquet.write_table(arrow.Table.from_pylist(rows), path)
    records = list(read("video-mme", tmp_path, "test"))
    assert [record.id for record in records] == [r["question_id"] for r in rows]
    assert records[0].choices == ("One.", "Two.", "Three.", "4.")
    parquet.write_table(arrow.Table.from_pylist([{"a": 1}]), path)
    fails("video-mme", tmp_path, "test", "lacks the columns video_id, duration")
    for broken in (b"", b"PAR1", b"PAR1" + b"\0" * 40 + b"PAR1", b"[1]"):
        path.write_bytes(broken)
        problems = Problems()
        assert list(read("video-mme", tmp_path, "test", on_error=problems)) == []
        assert problems.count == 1
        assert "not parquet" in str(problems.examples)


@FUZZ
@given(st.data(), st.binary(max_size=8))
def test_no_damaged_parquet_raises_anything_but_tubelets_errors(
    tmp_path: Path, data: st.DataObject, noise: bytes
) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "test-00000-of-00001.parquet"
    parquet.write_table(arrow.Table.from_pylist([row(), row(question_id="001-2")]), path)
    whole = path.read_bytes()
    at = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:at] + noise + whole[at + data.draw(st.sampled_from([0, 1, 4, 60])) :])
    records, problems = must_survive("video-mme", tmp_path, "test")
    assert len(records) <= 2 and (records or problems.count)


def test_the_made_up_template_of_the_research_folder() -> None:
    records = list(read("video-mme", files.real("videomme_synthetic"), "test"))
    assert [record.id for record in records] == ["001-1", "001-2", "001-3", "301-1", "301-2", "301-3"]
    assert [record.answer_index for record in records] == [1, 0, 2, 0, 2, 3]
    assert [record.tags["length"] for record in records] == ["short"] * 3 + ["medium"] * 3


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"\.parquet, \.json or \.jsonl"):
        read("video-mme", files.write_json(tmp_path / "a.txt", []), "test")


@FUZZ
@given(st.data())
def test_no_json_raises_anything_but_tubelets_errors(tmp_path: Path, data: st.DataObject) -> None:
    value = changed([row(), row(question_id="2")], data)
    records, problems = must_survive("video-mme", files.write_json(tmp_path / "a.json", value), "test")
    if not any(isinstance(entry, dict) and "questions" in entry for entry in value):
        assert len(records) + problems.count >= len(value)
    must_survive("video-mme", files.write_json(tmp_path / "a.json", changed(template(), data)), "test")
    must_survive("video-mme", write_lines(tmp_path / "a.jsonl", [changed(row(), data)]), "test")
