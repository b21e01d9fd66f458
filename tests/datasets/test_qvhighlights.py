"""QVHighlights: several windows, clips of 2 s, three annotators' saliency, hidden test labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import dataset_files as files
import pytest
from annotation_help import codes, fails, one, write_lines
from hypothesis import given
from hypothesis import strategies as st
from test_dataset_fuzz import FUZZ, changed, must_survive

from tubelet.datasets import qvhighlights, read
from tubelet.errors import DataError
from tubelet.tube import Span


def line(**changes: Any) -> dict[str, Any]:
    row = {
        "qid": 7920,
        "query": "Woman talks.",
        "duration": 150,
        "vid": "_6hnl_BrFvs_60.0_210.0",
        "relevant_clip_ids": [67, 68, 70, 71],
        "saliency_scores": [[3, 4, 2], [2, 4, 2], [2, 2, 1], [0, 0, 4]],
        "relevant_windows": [[134, 138], [140, 144]],
        **changes,
    }
    return {key: value for key, value in row.items() if value != "absent"}


def make(folder: Path, **changes: Any) -> Path:
    write_lines(folder / "highlight_val_release.jsonl", [line(**changes)])
    return folder


def test_several_windows_and_saliency(tmp_path: Path) -> None:
    record = one(read("qvhighlights", make(tmp_path), "val"))
    assert (record.id, record.spans, record.notes) == ("7920", (Span(134, 138), Span(140, 144)), ())
    assert record.source["youtube"] == "_6hnl_BrFvs"
    assert record.source["cut_s"] == [60.0, 210.0]  # seconds of the original video, not of the file
    assert len(record.tubes()) == 2
    scores = qvhighlights.saliency(record)
    assert scores.shape == (75, 3)
    assert scores[[66, 67, 69, 71]].tolist() == [[0, 0, 0], [3, 4, 2], [0, 0, 0], [0, 0, 4]]
    assert scores.sum() == 26
    assert qvhighlights.truth(record) == line()


def test_clips_after_the_end_have_no_row(tmp_path: Path) -> None:
    record = one(read("qvhighlights", make(tmp_path, duration=142), "val"))
    assert codes(record) == ["span-past-end"]
    assert qvhighlights.saliency(record).shape == (71, 3)
    assert qvhighlights.saliency(record).sum() == 22


def test_clips_and_windows_that_disagree_are_noted(tmp_path: Path) -> None:
    assert codes(one(read("qvhighlights", make(tmp_path, relevant_windows=[[134, 144]]), "val"))) == [
        "clips-disagree"
    ]
    moved = make(tmp_path, relevant_windows=[[0, 8]])
    assert codes(one(read("qvhighlights", moved, "val"))) == ["clips-disagree"]
    swapped = make(tmp_path, relevant_windows=[[140, 144], [134, 138]])
    assert codes(one(read("qvhighlights", swapped, "val"))) == ["windows-overlap"]


def test_test_labels(tmp_path: Path) -> None:
    hidden = line(relevant_windows="absent", relevant_clip_ids="absent", saliency_scores="absent")
    write_lines(tmp_path / "highlight_test_release.jsonl", [hidden])
    record = one(read("qvhighlights", tmp_path, "test"))
    assert (record.labelled, record.spans, qvhighlights.truth(record)) == (False, (), hidden)
    with pytest.raises(DataError, match="labels are hidden"):
        qvhighlights.saliency(record)
    write_lines(tmp_path / "highlight_test_with_gt.jsonl", [line()])  # is taken where both are there
    assert one(read("qvhighlights", tmp_path, "test")).labelled


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"relevant_windows": "absent"}, "field relevant_windows: is missing"),
        ({"relevant_windows": None}, "field relevant_windows: expected windows, got null"),
        ({"relevant_windows": []}, "field relevant_windows: expected at least one"),
        ({"relevant_windows": [[1, 2], [5, 3]]}, r"field relevant_windows\[1\]: expected 0 <= start"),
        (
            {"saliency_scores": [[1, 1, 1]]},
            r"field saliency_scores: expected one per listed clip \(4\), got 1",
        ),
        (
            {"saliency_scores": [[1, 1, 1]] * 3 + [[1, 1]]},
            r"field saliency_scores\[3\]: expected 3 whole numbers",
        ),
        ({"saliency_scores": [[1, 1, 5]] * 4}, r"saliency_scores\[0\]: expected 3 whole numbers 0 to 4"),
        ({"saliency_scores": "absent"}, "field saliency_scores: is missing"),
        ({"relevant_clip_ids": [1, 1, 2, 3]}, "expected different whole numbers"),
        ({"relevant_clip_ids": [0.5, 1, 2, 3]}, "expected different whole numbers"),
        ({"duration": 0}, "field duration: expected a number from 2"),
        ({"qid": None}, "field qid"),
    ],
)
def test_broken_lines(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    fails("qvhighlights", make(tmp_path, **changes), "val", says)


@pytest.mark.parametrize(
    ("name", "split", "count"),
    [
        ("highlight_train_release.150", "train", 150),
        ("highlight_val_release.300", "val", 300),
        ("highlight_test_with_gt.200", "test", 200),
        ("highlight_test_release.300", "test", 300),
    ],
)
def test_real_files_come_back_as_they_are(name: str, split: str, count: int) -> None:
    path = files.real("qvhighlights") / f"{name}.jsonl"
    records = list(read("qvhighlights", path, split))
    rows = [json.loads(text) for text in path.read_text().splitlines()]
    assert len(records) == count
    assert [qvhighlights.truth(record) for record in records] == rows
    assert not any(record.notes for record in records)
    for record, row in zip(records, rows, strict=True):
        name, start, end = row["vid"].rsplit("_", 2)
        assert (record.source["youtube"], record.source["cut_s"]) == (name, [float(start), float(end)])
        if record.labelled:
            assert qvhighlights.saliency(record).sum() == sum(map(sum, row["saliency_scores"]))
    if name.startswith("highlight_val"):
        assert sum(len(record.spans) > 1 for record in records) == 98
        assert max(len(record.spans) for record in records) == 14


def test_real_folder_takes_the_test_file_with_labels() -> None:
    records = list(read("qvhighlights", files.real("qvhighlights"), "test"))
    assert (len(records), all(record.labelled for record in records)) == (200, True)


@FUZZ
@given(st.data())
def test_no_json_raises_anything_but_tubelets_errors(tmp_path: Path, data: st.DataObject) -> None:
    rows = [changed(line(), data), line(qid=2)]
    path = write_lines(tmp_path / "a.jsonl", rows)
    records, problems = must_survive("qvhighlights", path, data.draw(st.sampled_from(["val", "test"])))
    assert len(records) + problems.count == 2
    for record in records:
        if "relevant_clip_ids" in record.extra:
            assert qvhighlights.saliency(record).max() <= 4
        qvhighlights.truth(record)
