"""TVGBench: answers as text, parts of files, answers without length, moved answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dataset_files as files
import pytest
from annotation_help import codes, count_codes, fails, one
from hypothesis import given
from hypothesis import strategies as st
from test_dataset_fuzz import FUZZ, changed, must_survive

from tubelet.datasets import read
from tubelet.tube import Span


def item(**changes: Any) -> dict[str, Any]:
    return {
        "path": "./dataset/timer1/videos/tvgbench_data/P6JGZ.mp4",
        "question": "person opening a cabinet.",
        "answer": "0.0-4.4",
        "start": None,
        "end": None,
        "duration": 11.46,
        "question_type": "video temporal grounding",
        "dataset_name": "charades",
        "qsemtype": "Human Action (Simple)",
        "bins": {"videolen": 0, "dataset": "charades"},
        **changes,
    }


def make(folder: Path, **changes: Any) -> Path:
    files.write_json(folder / "tvgbench.json", [item(**changes)])
    return folder


def test_a_question_about_a_whole_video(tmp_path: Path) -> None:
    record = one(read("tvgbench", make(tmp_path), "test"))
    assert (record.id, record.span, record.notes) == ("tvgbench-0", Span(0, 4.4), ())
    assert (record.video.id, record.video.duration_s, record.video.segment_s) == ("P6JGZ", 11.46, None)
    assert record.video.files == (
        "videos/tvgbench_data/P6JGZ.mp4",
        "tvgbench_data/P6JGZ.mp4",
        "videos/P6JGZ.mp4",
        "P6JGZ.mp4",
    )
    assert record.tags == {"qsemtype": "Human Action (Simple)", "origin": "charades", "part": False}


def test_answers_count_from_the_start_of_the_part(tmp_path: Path) -> None:
    folder = make(tmp_path, start=40.5, end=140.5, duration=100.0, answer="31.5-41.5", dataset_name="hirest")
    record = one(read("tvgbench", folder, "test"))
    assert (record.span, record.video.segment_s) == (Span(72, 82), Span(40.5, 140.5))
    assert (record.video.duration_s, record.extra["duration_s"]) == (
        None,
        100.0,
    )  # the part's, not the file's
    assert (record.extra["answer_s"], record.tags["part"], record.notes) == ([31.5, 41.5], True, ())


def test_moved_answers_are_noted(tmp_path: Path) -> None:
    folder = make(
        tmp_path, start=0.0, end=100.0, duration=100.0, answer="20.441-38.441", dataset_name="hirest"
    )
    assert codes(one(read("tvgbench", folder, "test"))) == ["answer-moved"]
    folder = make(tmp_path, start=0.0, end=100.0, duration=100.0, answer="20.441-38.441", dataset_name="anet")
    assert codes(one(read("tvgbench", folder, "test"))) == []  # only HiREST has whole seconds


def test_ends_and_lengths(tmp_path: Path) -> None:
    assert codes(one(read("tvgbench", make(tmp_path, answer="9-15.0"), "test"))) == ["span-past-end"]
    empty = one(read("tvgbench", make(tmp_path, answer="9.5 - 9.5"), "test"))
    assert (empty.span, codes(empty)) == (Span(9.5, 9.501), ["span-empty"])


def test_the_name_of_the_origin(tmp_path: Path) -> None:
    value = item(bins={"dataset": "egonlq", "odd": [1]})
    del value["dataset_name"]
    record = one(read("tvgbench", files.write_json(tmp_path / "tvgbench.json", [value]), "test"))
    assert (record.tags["origin"], record.extra["bins"]) == ("egonlq", {"dataset": "egonlq"})


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"answer": "4.4"}, "field answer: expected 'start-end' in seconds, got '4.4'"),
        ({"answer": "5-4"}, "field answer: expected 0 <= start <= end"),
        ({"answer": "-5-4"}, "field answer: expected 'start-end'"),
        ({"answer": "nan-4"}, "field answer: expected 'start-end'"),
        ({"start": 5.0}, "field end: expected a number, got None"),
        ({"start": 5.0, "end": 2.0}, "field end: a span ends after it starts"),
        ({"start": 5.0, "end": 9.0}, "field duration: expected end - start = 4 s"),
        ({"duration": None}, "field duration"),
        ({"path": ".."}, "lies inside the data folder"),
    ],
)
def test_broken_records(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    fails("tvgbench", make(tmp_path, **changes), "test", says)


def test_real_slice() -> None:
    records = list(read("tvgbench", files.real("tvgbench"), "test"))
    assert len(records) == 350
    assert count_codes(records) == {"span-past-end": 17, "answer-moved": 8, "span-empty": 3}
    parts = [record for record in records if record.tags["part"]]
    assert len(parts) == 108
    hirest = [record for record in parts if record.tags["origin"] == "hirest"]
    whole = 0
    for record in hirest:  # HiREST annotates whole seconds of the file: that is what start + answer must be
        assert record.span is not None
        assert record.video.segment_s is not None
        near = all(abs(x - round(x)) < 1e-6 for x in (record.span.start_s, record.span.end_s))
        assert near == (record.video.segment_s.start_s > 0)
        assert near == ("answer-moved" not in codes(record))
        whole += near
    assert (len(hirest), whole) == (36, 28)
    assert {record.tags["origin"] for record in records} == {"charades", "anet", "tacos", "hirest", "egonlq"}


@FUZZ
@given(st.data())
def test_no_json_raises_anything_but_tubelets_errors(tmp_path: Path, data: st.DataObject) -> None:
    value = changed([item(), item(start=1.0, end=12.46)], data)
    records, problems = must_survive("tvgbench", files.write_json(tmp_path / "tvgbench.json", value), "test")
    assert len(records) + problems.count >= len(value)
