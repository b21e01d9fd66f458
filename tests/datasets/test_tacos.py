"""TACoS: timestamps are frames at 29.4 per second; some lie after the end of the video."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import dataset_files as files
import pytest
from annotation_help import codes, count_codes, fails, one, write_lines
from hypothesis import given
from hypothesis import strategies as st
from test_dataset_fuzz import FUZZ, changed, must_survive

from tubelet.datasets import read
from tubelet.datasets.record import FrameRange
from tubelet.errors import DataError


def video(**changes: Any) -> dict[str, Any]:
    return {
        "timestamps": [[147, 294]],
        "sentences": [" She took out kiwi"],
        "fps": 29.4,
        "num_frames": 588,
        **changes,
    }


def make(folder: Path, **changes: Any) -> Path:
    files.write_json(folder / "test.json", {"s30-d52.avi": video(**changes)})
    return folder


def test_frames_become_seconds(tmp_path: Path) -> None:
    record = one(read("tacos", make(tmp_path), "test"))
    assert (record.id, record.query) == ("s30-d52_0", "She took out kiwi")
    assert record.frames == FrameRange(147, 294)
    assert record.span is not None
    assert (record.span.start_s, record.span.end_s) == (5.0, 10.0)  # 147 / 29.4, 294 / 29.4
    assert (record.video.fps, record.video.frame_count) == (Fraction(147, 5), 588)
    assert record.video.duration_s == 20.0
    assert record.video.files[0] == "videos/s30-d52.avi"
    assert record.notes == ()


def test_frames_after_the_end_are_kept_in_seconds(tmp_path: Path) -> None:
    record = one(read("tacos", make(tmp_path, timestamps=[[294, 590]]), "test"))
    assert (record.frames, codes(record)) == (None, ["span-past-end"])
    assert record.span is not None
    assert record.span.end_s == pytest.approx(590 / 29.4)
    assert record.source["frames"] == [294, 590]
    assert record.tubes(duration_s=20.0)[0].span == record.span  # a short video raises nothing
    clipped = record.clipped().span
    assert clipped is not None
    assert clipped.end_s == 20.0


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"timestamps": [[4.8, 12.04]]}, r"field timestamps\[0\]: expected whole frame numbers, got 4.8"),
        ({"timestamps": [[9, 3]]}, r"field timestamps\[0\]: expected 0 <= start <= end"),
        ({"timestamps": [[-3, 9]]}, "expected 0 <= start"),
        ({"timestamps": [[1, 2, 3]]}, r"expected \[start, end\], got list of 3"),
        ({"timestamps": [[1, None]]}, r"field timestamps\[0\]\[1\]: expected a number, got None"),
        ({"timestamps": [[1, 2], [2, 3]]}, "field sentences: expected one per timestamp, got 1 for 2"),
        ({"sentences": [""]}, r"field sentences\[0\]: expected text that is not empty"),
        ({"fps": 0}, "field fps: expected a number from 0.001"),
        ({"num_frames": None}, "field num_frames: expected a number"),
    ],
)
def test_broken_videos(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    fails("tacos", make(tmp_path, **changes), "test", says)


def test_a_list_is_not_this_layout(tmp_path: Path) -> None:
    fails("tacos", files.write_json(tmp_path / "a.json", [video()]), "test", "got a list of objects")
    with pytest.raises(DataError, match=r"\.json or \.jsonl"):
        read("tacos", files.write_json(tmp_path / "a.csv", {}), "test")


def test_real_file_and_lighthouse_agree() -> None:
    base = files.real("tacos")
    records = {record.id: record for record in read("tacos", base / "2dtan_test.json", "test")}
    assert (len(records), len({record.video.id for record in records.values()})) == (4001, 25)
    assert count_codes(records.values()) == {"span-past-end": 5}
    past = [record for record in records.values() if record.notes]
    assert {record.source["frames"][1] for record in past} == {19154}
    assert all(record.frames is None for record in past)
    lighthouse = list(read("tacos", base / "lighthouse_tacos_test_release.1400.jsonl", "test"))
    assert len(lighthouse) == 1400
    for record in lighthouse:
        same = records[record.id]
        assert record.id == record.source["qid"]
        assert record.query == same.query
        assert record.span is not None
        assert same.span is not None
        assert abs(record.span.start_s - same.span.start_s) < 1e-6
        assert abs(record.span.end_s - same.span.end_s) < 1e-6
        assert record.video.duration_s is not None
        assert same.video.duration_s is not None
        assert abs(record.video.duration_s - same.video.duration_s) < 1e-6


@FUZZ
@given(st.data())
def test_no_json_raises_anything_but_tubelets_errors(tmp_path: Path, data: st.DataObject) -> None:
    value = changed({"a.avi": video(), "b.avi": video()}, data)
    must_survive("tacos", files.write_json(tmp_path / "test.json", value), "test")
    line = {"qid": "a_0", "query": "x", "duration": 20.0, "vid": "a", "relevant_windows": [[1.5, 2]]}
    records, problems = must_survive(
        "tacos", write_lines(tmp_path / "a.jsonl", [changed(line, data), line]), "test"
    )
    assert len(records) + problems.count == 2
