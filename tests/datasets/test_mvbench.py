"""MVBench: twenty files, answers as text, seconds of five tasks, folders of pictures."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import dataset_files as files
import pytest
from annotation_help import codes, fails, one
from hypothesis import given
from hypothesis import strategies as st
from test_dataset_fuzz import FUZZ, changed, must_survive

from tubelet.datasets import mvbench, read
from tubelet.datasets.problems import Problems
from tubelet.errors import DataError
from tubelet.tube import Span


def item(**changes: Any) -> dict[str, Any]:
    row = {
        "video": "166583.webm",
        "question": "What is the action?",
        "candidates": ["Not sure", "Scattering something down", "Piling something up"],
        "answer": "Piling something up",
        **changes,
    }
    return {key: value for key, value in row.items() if value != "absent"}


def task(folder: Path, name: str, **changes: Any) -> Path:
    return files.write_json(folder / "json" / f"{name}.json", [item(**changes)])


def test_the_answer_is_the_text_of_a_candidate(tmp_path: Path) -> None:
    task(tmp_path, "action_antonym", answer=" Piling something up ")
    record = one(read("mvbench", tmp_path, "test", tasks=["action_antonym"]))
    assert (record.id, record.task) == ("action_antonym-0", "qa")
    assert (record.answer, record.answer_index, len(record.choices)) == ("Piling something up", 2, 3)
    assert record.video.files[0] == "video/ssv2_video/166583.webm"
    assert (record.notes, record.video.segment_s) == ((), None)


def test_seconds_bound_the_video(tmp_path: Path) -> None:
    task(tmp_path, "action_sequence", start=3.5, end=12.0, video="ZS9XR.mp4")
    record = one(read("mvbench", tmp_path, "test", tasks=["action_sequence"]))
    assert (record.video.segment_s, record.spans) == (Span(3.5, 12.0), ())  # not what is asked for
    assert record.video.files[0] == "video/star/Charades_v1_480/ZS9XR.mp4"
    task(tmp_path, "action_sequence", start=12.0, end=3.5)
    record = one(read("mvbench", tmp_path, "test", tasks=["action_sequence"]))
    assert (record.video.segment_s, codes(record)) == (None, ["segment-unusable"])


def test_episodic_reasoning_is_a_folder_of_pictures(tmp_path: Path) -> None:
    task(tmp_path, "episodic_reasoning", start=0, end=8.2, video="castle_s05e01_seg02_clip_00")
    record = one(read("mvbench", tmp_path, "test", tasks=["episodic_reasoning"]))
    assert codes(record) == ["frames-folder"]
    assert record.video.fps == Fraction(3)
    assert record.video.files[0] == "video/tvqa/frames_fps3_hq/castle_s05e01_seg02_clip_00.mp4"


def test_an_answer_that_is_listed_twice(tmp_path: Path) -> None:
    task(tmp_path, "action_count", candidates=["2", "3", "3"], answer="3")
    record = one(read("mvbench", tmp_path, "test", tasks=["action_count"]))
    assert (record.answer_index, codes(record)) == (1, ["answer-twice"])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"answer": "C"}, "field answer: expected the text of a candidate, got 'C'"),
        ({"answer": None}, "field answer: expected text"),
        ({"candidates": ["a"], "answer": "a"}, "field candidates: expected 2 to 26 candidates, got 1"),
        ({"candidates": ["a", ""], "answer": "a"}, r"field candidates\[1\]"),
        ({"start": 1.0}, "field end: is missing"),
        ({"video": None}, "field video"),
    ],
)
def test_broken_records(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    path = task(tmp_path, "action_antonym", **changes)
    fails("mvbench", path, "test", says)


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"action_sequence\.json \(200 questions\).*huggingface.co/datasets/OpenGVLab"
    ):
        read("mvbench", tmp_path, "test")
    for name in mvbench.TASKS[:-1]:
        task(tmp_path, name)
    with pytest.raises(DataError, match="counterfactual_inference"):
        read("mvbench", tmp_path, "test")
    problems = Problems()
    assert len(list(read("mvbench", tmp_path, "test", on_error=problems))) == 19
    assert problems.count == 1
    assert "counterfactual_inference" in str(problems.examples)
    task(tmp_path, mvbench.TASKS[-1])
    records = list(read("mvbench", tmp_path, "test"))
    assert [record.tags["task_type"] for record in records] == list(mvbench.TASKS)
    with pytest.raises(DataError, match="MVBench has no task walking"):
        read("mvbench", tmp_path, "test", tasks=["walking"])
    with pytest.raises(DataError, match="is named by its task"):
        read("mvbench", files.write_json(tmp_path / "x.json", []), "test")


def test_real_records(tmp_path: Path) -> None:
    sample = json.loads((files.real("mvbench") / "records_from_public_docs.json").read_text())
    antonym, sequence = (entry["data"] for entry in sample)
    files.write_json(tmp_path / "json" / "action_antonym.json", [antonym])
    record = one(read("mvbench", tmp_path, "test", tasks=["action_antonym"]))
    assert (record.answer_index, record.video.id) == (2, "166583.webm")
    files.write_json(tmp_path / "json" / "action_sequence.json", [sequence])  # its answer was not printed
    fails("mvbench", tmp_path, "test", "field video: expected text", tasks=["action_sequence"])


@FUZZ
@given(st.data())
def test_no_json_raises_anything_but_tubelets_errors(tmp_path: Path, data: st.DataObject) -> None:
    value = changed([item(), item(start=1, end=2.5)], data)
    path = files.write_json(tmp_path / f"{data.draw(st.sampled_from(mvbench.TASKS))}.json", value)
    records, problems = must_survive("mvbench", path, "test")
    assert len(records) + problems.count >= len(value)
