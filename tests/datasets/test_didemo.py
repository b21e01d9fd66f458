"""DiDeMo: inclusive 5 s chunks, a vote per annotator, a last chunk that may be shorter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dataset_files as files
import pytest
from annotation_help import codes, count_codes, fails, one
from hypothesis import given
from hypothesis import strategies as st
from test_dataset_fuzz import FUZZ, changed, must_survive

from tubelet.datasets import didemo, read
from tubelet.errors import DataError
from tubelet.tube import Span


def item(**changes: Any) -> dict[str, Any]:
    return {
        "num_segments": 6,
        "description": "a bike rider approaches. ",
        "dl_link": "https://www.flickr.com/video_download.gne?id=7005546265",
        "times": [[2, 2], [2, 3], [2, 3], [5, 5]],
        "video": "72175114@N00_7005546265_effdc91c3b.mov",
        "annotation_id": 24621,
        **changes,
    }


def make(folder: Path, **changes: Any) -> Path:
    files.write_json(folder / "test_data.json", [item(**changes)])
    return folder


def test_votes_are_inclusive_chunks_of_five_seconds(tmp_path: Path) -> None:
    record = one(read("didemo", make(tmp_path), "test"))
    assert record.spans == (Span(10, 15), Span(10, 20), Span(10, 20), Span(25, 30))
    assert (record.spans_kind, record.id, record.query) == ("votes", "24621", "a bike rider approaches.")
    assert record.video.segment_s == Span(0, 30)
    assert record.video.duration_s is None  # not in the file
    assert record.extra["times"] == [[2, 2], [2, 3], [2, 3], [5, 5]]
    assert record.notes == ("last-chunk: 1 of 4 votes hold the last chunk, which may be shorter than 5 s",)
    assert record.video.files[0] == "videos/72175114@N00_7005546265_effdc91c3b.mov"


def test_the_last_chunk_ends_with_the_video(tmp_path: Path) -> None:
    record = one(read("didemo", make(tmp_path), "test"))
    short = didemo.with_duration(record, 27.4)
    assert short.spans == (Span(10, 15), Span(10, 20), Span(10, 20), Span(25, 27.4))
    assert (short.video.segment_s, short.video.duration_s, short.notes) == (Span(0, 27.4), 27.4, ())
    long = didemo.with_duration(record, 95.0)  # only the first 30 s were annotated
    assert (long.spans, long.video.segment_s, long.notes) == (record.spans, Span(0, 30), ())
    broken = didemo.with_duration(record, 12.0)
    assert broken.spans == (Span(10, 12), Span(10, 12), Span(10, 12), Span(25, 30))
    assert codes(broken) == ["span-past-end"]
    for duration_s in (0.0, -1.0, float("nan")):
        with pytest.raises(DataError, match="above 0 s"):
            didemo.with_duration(record, duration_s)


def test_five_chunks_and_few_votes(tmp_path: Path) -> None:
    record = one(read("didemo", make(tmp_path, num_segments=5, times=[[0, 4], [0, 1]]), "test"))
    assert (record.video.segment_s, record.spans[0]) == (Span(0, 25), Span(0, 25))
    assert codes(record) == ["last-chunk", "few-votes"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"times": [[2, 2], [3, 2]]}, r"field times\[1\]: expected 0 <= first <= last < 6"),
        ({"times": [[5, 6]]}, r"field times\[0\]: expected 0 <= first <= last < 6"),
        ({"num_segments": 5, "times": [[5, 5]]}, "last < 5"),
        ({"times": [[0.5, 1]]}, "got 0.5 and 1"),
        ({"times": []}, "field times: expected one"),
        ({"times": [[1]]}, r"field times\[0\]: expected \[start, end\]"),
        ({"num_segments": 7}, "field num_segments: expected a number from 1 to 6, got 7"),
        ({"description": None}, "field description"),
        ({"video": "../a.mp4"}, "lies inside the data folder"),
    ],
)
def test_broken_records(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    fails("didemo", make(tmp_path, **changes), "test", says)


def test_repeated_annotations_are_problems(tmp_path: Path) -> None:
    files.write_json(tmp_path / "test_data.json", [item(), item()])
    fails("didemo", tmp_path, "test", "'24621' was there before")


@pytest.mark.parametrize(("split", "to_end", "seven"), [("val", 142, 2), ("test", 151, 1)])
def test_real_files(split: str, to_end: int, seven: int) -> None:
    records = list(read("didemo", files.real("didemo"), split))
    assert len(records) == 500
    assert count_codes(records) == {"last-chunk": to_end}
    votes = [len(record.spans) for record in records]
    assert (votes.count(4), votes.count(7)) == (500 - seven, seven)
    for record in records:
        assert record.video.segment_s is not None
        for span, (first, last) in zip(record.spans, record.extra["times"], strict=True):
            assert (span.start_s, span.end_s) == (5 * first, 5 * last + 5)
            assert span.end_s <= record.video.segment_s.end_s
    assert sum(record.video.segment_s == Span(0, 25) for record in records) == {"val": 110, "test": 53}[split]
    if split == "test":
        assert records[0].spans == (Span(10, 15), Span(0, 5), Span(10, 15), Span(10, 15))
        assert "." not in {Path(record.video.id).suffix for record in records}
        assert sum(Path(record.video.id).suffix == "" for record in records) == 18


@FUZZ
@given(st.data())
def test_no_json_raises_anything_but_tubelets_errors(tmp_path: Path, data: st.DataObject) -> None:
    value = changed([item(), item(annotation_id=2)], data)
    records, problems = must_survive("didemo", files.write_json(tmp_path / "val_data.json", value), "val")
    assert len(records) + problems.count >= len(value)
    for record in records:
        didemo.with_duration(record, 27.0)
