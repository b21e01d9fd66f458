"""Charades-STA: three layouts, durations from another file, spans past the end of the video."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dataset_files as files
import pytest
from annotation_help import codes, count_codes, fails, one, write_lines
from hypothesis import given
from hypothesis import strategies as st
from test_dataset_fuzz import FUZZ, changed, must_survive

from tubelet.datasets import charades, read
from tubelet.datasets.problems import Problems
from tubelet.errors import DataError
from tubelet.tube import Span

NAME = "charades-sta"
CSV = 'id,descriptions,length\nAAAAA,"one, two",30.50\nBBBBB,x,20.00\n'


def folder(path: Path, lines: str, csv: str | None = CSV) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "charades_sta_test.txt").write_text(lines, encoding="utf-8")
    if csv is not None:
        (path / "Charades_v1_test.csv").write_text(csv, encoding="utf-8")
    return path


def test_a_line(tmp_path: Path) -> None:
    record = one(read(NAME, folder(tmp_path, "AAAAA 24.3 30.4##person turn a light on. \r\n"), "test"))
    assert (record.id, record.task, record.query) == ("AAAAA_0", "tvg", "person turn a light on.")
    assert (record.span, record.video.duration_s, record.notes) == (Span(24.3, 30.4), 30.5, ())
    assert record.video.files[0] == "Charades_v1_480/AAAAA.mp4"
    (tube,) = record.tubes()
    assert (tube.span, len(tube)) == (Span(24.3, 30.4), 0)


def test_spans_past_the_end_are_kept_and_cut_on_request(tmp_path: Path) -> None:
    lines = "AAAAA 24.3 32.0##a\nAAAAA 24.3 30.5##b\nBBBBB 19.0 20.0##c\nBBBBB 20.5 21##d"
    late, exact, other, gone = read(NAME, folder(tmp_path, lines), "test")
    assert (late.span, codes(late)) == (Span(24.3, 32.0), ["span-past-end"])
    assert late.clipped().span == Span(24.3, 30.5)
    assert (exact.notes, other.notes) == ((), ())
    assert gone.notes == ("span-past-end: the span starts at 20.5 s of 20 s",)
    assert [record.id for record in (late, exact, other, gone)] == [
        "AAAAA_0",
        "AAAAA_1",
        "BBBBB_0",
        "BBBBB_1",
    ]


def test_without_a_duration_nothing_is_cut(tmp_path: Path) -> None:
    bare = one(read(NAME, folder(tmp_path / "a", "AAAAA 1 99##x", None), "test"))
    assert (codes(bare), bare.video.duration_s, bare.clipped()) == (["duration-missing"], None, bare)
    lacking = one(read(NAME, folder(tmp_path / "b", "CCCCC 1 99##x"), "test"))
    assert lacking.notes == ("duration-missing: Charades_v1_test.csv lacks this video",)


def test_the_same_line_twice_counts_twice(tmp_path: Path) -> None:
    assert len(list(read(NAME, folder(tmp_path, "AAAAA 1 2##x\nAAAAA 1 2##x\n"), "test"))) == 2


def test_a_span_without_length_still_counts(tmp_path: Path) -> None:
    record = one(read(NAME, folder(tmp_path, "AAAAA 2.0 2.0##x"), "test"))
    assert (record.span, codes(record)) == (Span(2.0, 2.001), ["span-empty"])


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("AAAAA 1 2 no mark", r"line 1: expected VIDEO start end##sentence"),
        ("AAAAA 1##x", "expected VIDEO start end##sentence"),
        ("AAAAA one 2##x", "field start: expected a number, got 'one'"),
        ("AAAAA 1 nan##x", "field end: expected a finite number"),
        ("AAAAA 3 2##x", "field end: expected 0 <= start <= end, got 3 to 2 s"),
        ("AAAAA -1 2##x", "field end: expected 0 <= start"),
        ("AAAAA 1 2##  ", "field sentence: expected text"),
        ("../AAAAA 1 2##x", "lies inside the data folder"),
    ],
)
def test_broken_lines(tmp_path: Path, line: str, says: str) -> None:
    fails(NAME, folder(tmp_path, line), "test", says)


def test_broken_lines_are_counted_and_the_rest_is_read(tmp_path: Path) -> None:
    problems = Problems()
    path = folder(tmp_path, "AAAAA 1 2##a\nAAAAA 3 2##b\nAAAAA 1 3##c\nAAA", CSV + "DDDDD,x,long\n")
    records = list(read(NAME, path, "test", on_error=problems))
    assert [record.id for record in records] == ["AAAAA_0", "AAAAA_2"]  # numbers do not move up
    assert problems.count == 3
    assert "field length: expected a number, got 'long'" in str(problems.examples)


def test_other_layouts(tmp_path: Path) -> None:
    value = {"AAAAA": {"duration": 30.5, "timestamps": [[24.3, 32.0]], "sentences": [" a. "]}}
    files.write_json(tmp_path / "json" / "Charades_sta_test.json", value)
    line = {"qid": 7, "query": "a.", "duration": 30.5, "vid": "AAAAA", "relevant_windows": [[24.3, 30.5]]}
    write_lines(tmp_path / "jsonl" / "charades_test_release.jsonl", [line])
    grouped = one(read(NAME, tmp_path / "json", "test"))
    cut = one(read(NAME, tmp_path / "jsonl", "test"))
    assert (grouped.id, grouped.query, codes(grouped)) == (cut.id, cut.query, ["span-past-end"])
    assert grouped.clipped().span == cut.span
    assert cut.source["qid"] == 7
    with pytest.raises(DataError, match=r"\.txt, \.json or \.jsonl"):
        read(NAME, files.write_json(tmp_path / "x.xml", {}), "test")


def test_splits_and_missing_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="splits are train, test"):
        read(NAME, tmp_path, "val")
    with pytest.raises(DataError, match=r"to be had from github\.com/jiyanggao/TALL"):
        read(NAME, tmp_path, "test")
    folder(tmp_path, "AAAAA 1 2##x", None)
    for k in "12":
        (tmp_path / f"Charades_v1_test.{k}.csv").write_text(CSV)
    with pytest.raises(DataError, match="several files for durations"):
        read(NAME, tmp_path, "test")


def test_real_durations_and_spans_past_the_end() -> None:
    records = list(read(NAME, files.real("charades_sta"), "test"))
    assert len(records) == 3713
    known = [record for record in records if record.video.duration_s is not None]
    assert len({record.video.id for record in known}) == 251
    assert count_codes(known) == {"span-past-end": 104}
    assert count_codes(records)["duration-missing"] == 3713 - len(known)
    (example,) = [
        record for record in records if record.video.id == "5INX3" and record.span == Span(32.5, 46.0)
    ][:1]
    assert example.video.duration_s == 44.67
    assert example.clipped().span == Span(32.5, 44.67)
    over = [record.span.end_s - record.video.duration_s for record in known if record.notes]  # type: ignore[union-attr,operator]
    assert max(over) == pytest.approx(1.5, abs=0.01)


def test_real_layouts_agree() -> None:
    base = files.real("charades_sta")
    text = {record.id: record for record in read(NAME, base, "test")}
    timer1 = list(read(NAME, base / "timer1_charades_test.300.json", "test"))
    lighthouse = list(read(NAME, base / "lighthouse_charades_test_release.1800.jsonl", "test"))
    assert (len(timer1), len(lighthouse)) == (800, 1800)
    for record in timer1:
        assert (record.query, record.span) == (text[record.id].query, text[record.id].span)
    compared = 0
    for record in lighthouse:
        same = text[record.id]
        assert record.query == same.query
        if same.video.duration_s is not None:
            assert record.video.duration_s == same.video.duration_s
            assert record.span == same.clipped().span
            compared += 1
    assert compared == 675


def test_real_train_lines() -> None:
    records = list(read(NAME, files.real("charades_sta"), "train"))
    assert (len(records), records[0].query) == (1000, "a person is putting a book on a shelf.")


@FUZZ
@given(st.data(), st.binary(max_size=8))
def test_no_text_raises_anything_but_tubelets_errors(
    tmp_path: Path, data: st.DataObject, noise: bytes
) -> None:
    path = folder(tmp_path, "")
    whole = b"AAAAA 24.3 30.4##person turn a light on.\nBBBBB 0.0 4.0##a person opens the door.\n"
    at = data.draw(st.integers(0, len(whole)))
    (path / "charades_sta_test.txt").write_bytes(
        whole[:at] + noise + whole[at + data.draw(st.integers(0, 9)) :]
    )
    cut = data.draw(st.integers(0, len(CSV)))
    (path / "Charades_v1_test.csv").write_bytes(CSV.encode()[:cut] + noise + CSV.encode()[cut:])
    must_survive(NAME, path, "test")


@FUZZ
@given(st.data())
def test_no_json_raises_anything_but_tubelets_errors(tmp_path: Path, data: st.DataObject) -> None:
    video = {"duration": 30.5, "timestamps": [[1, 2], [3, 4.5]], "sentences": ["a", "b"]}
    value: Any = changed({"AAAAA": video, "BBBBB": dict(video)}, data)
    must_survive(NAME, files.write_json(tmp_path / "a.json", value), "test")
    line = {"qid": 7, "query": "a.", "duration": 30.5, "vid": "AAAAA", "relevant_windows": [[1, 2]]}
    rows = [changed(line, data), line]
    records, problems = must_survive(NAME, write_lines(tmp_path / "a.jsonl", rows), "test")
    assert len(records) + problems.count == 2


def test_durations_alone(tmp_path: Path) -> None:
    folder(tmp_path, "")
    assert charades.read_durations(tmp_path / "Charades_v1_test.csv") == {"AAAAA": 30.5, "BBBBB": 20.0}
