"""ActivityNet Captions: two validation files, spaces before sentences, ends after the video."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dataset_files as files
import pytest
from annotation_help import codes, fails, write_lines
from hypothesis import given
from hypothesis import strategies as st
from test_dataset_fuzz import FUZZ, changed, must_survive

from tubelet.datasets import read
from tubelet.datasets.problems import Problems
from tubelet.errors import DataError
from tubelet.tube import Span


def video(**changes: Any) -> dict[str, Any]:
    times = [[0.83, 19.86], [17.37, 82.73 + 1e-14], [80, 83.5]]
    return {
        "duration": 82.73,
        "timestamps": times,
        "sentences": ["A man.", "  He\nsits. ", "End."],
        **changes,
    }


def test_sentences_of_a_video(tmp_path: Path) -> None:
    files.write_json(tmp_path / "captions" / "val_1.json", {"v_abc": video()})
    first, second, third = read("activitynet", tmp_path, "val_1")
    assert [record.id for record in (first, second, third)] == ["v_abc_0", "v_abc_1", "v_abc_2"]
    assert (first.span, first.notes) == (Span(0.83, 19.86), ())
    assert (second.query, second.notes) == ("He\nsits.", ())  # noise of 1e-14 s is no note
    assert (third.span, codes(third)) == (Span(80, 83.5), ["span-past-end"])
    assert third.clipped().span == Span(80, 82.73)
    assert first.video.files[:3] == ("videos/v_abc.mp4", "videos/v_abc.mkv", "videos/v_abc.webm")


def test_names_of_splits_that_mean_two_things_are_refused(tmp_path: Path) -> None:
    for name, split in (("val.json", "val_1"), ("test.json", "val_2"), ("train.json", "train")):
        files.write_json(tmp_path / name, {f"v_{split}": video()})
    for split in ("val_1", "val_2", "train"):
        assert {record.video.id for record in read("activitynet", tmp_path, split)} == {f"v_{split}"}
    with pytest.raises(DataError, match="'test' is val_2 in 2D-TAN and Time-R1"):
        read("activitynet", tmp_path, "test")
    with pytest.raises(DataError, match="'val' is val_1 in 2D-TAN"):
        read("activitynet", tmp_path, "val")


def test_broken_sentences(tmp_path: Path) -> None:
    path = files.write_json(tmp_path / "val_1.json", {"v_abc": video(timestamps=[[0, 1], [5, 3], [2, 4]])})
    fails(
        "activitynet",
        path,
        "val_1",
        r"key 'v_abc': field timestamps\[1\]: expected 0 <= start <= end, got 5 to 3 s",
    )
    problems = Problems()
    assert [record.id for record in read("activitynet", path, "val_1", on_error=problems)] == [
        "v_abc_0",
        "v_abc_2",
    ]
    assert problems.count == 1
    fails("activitynet", files.write_json(path, {"v_abc": video(duration=0)}), "val_1", "field duration")


@pytest.mark.parametrize(("split", "count"), [("val_1", 887), ("val_2", 879)])
def test_real_files(split: str, count: int) -> None:
    path = files.real("activitynet") / f"captions_{split}.250.json"
    records = list(read("activitynet", path, split))
    assert (len(records), len({record.video.id for record in records})) == (count, 250)
    assert all(record.query == record.query.strip() for record in records)
    assert not any(record.notes for record in records)
    past = [r for r in records if r.span.end_s > r.video.duration_s]  # type: ignore[union-attr,operator]
    assert len(past) == {"val_1": 4, "val_2": 5}[split]  # by rounding noise only


def test_real_lighthouse_file_is_val_1() -> None:
    base = files.real("activitynet")
    captions = {
        record.id: record for record in read("activitynet", base / "captions_val_1.250.json", "val_1")
    }
    lines = list(read("activitynet", base / "lighthouse_activitynet_val_release.1000.jsonl", "val_1"))
    shared = [record for record in lines if record.id in captions]
    assert (len(lines), len(shared) > 20) == (1000, True)
    for record in shared:
        assert (record.query, record.span) == (captions[record.id].query, captions[record.id].span)


@FUZZ
@given(st.data())
def test_no_json_raises_anything_but_tubelets_errors(tmp_path: Path, data: st.DataObject) -> None:
    value = changed({"v_a": video(), "v_b": video()}, data)
    must_survive("activitynet", files.write_json(tmp_path / "val_2.json", value), "val_2")
    line = {"qid": 1, "query": "x", "duration": 20, "vid": "v_a", "relevant_windows": [[1, 2]]}
    must_survive("activitynet", write_lines(tmp_path / "a.jsonl", [changed(line, data)]), "val_1")
