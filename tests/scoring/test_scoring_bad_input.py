"""Bad input: a clear message, a count in the result, nothing repaired silently."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import scoring_files as files

from tubelet.errors import DataError
from tubelet.scoring import FileScores, render, score_file
from tubelet.scoring.answers import KINDS


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return files.vue_data(tmp_path / "data")


def scored(path: Path, data: Path, **options: Any) -> FileScores:
    return score_file(path, "tubelet", benchmark="vue-stg", data=data, **options)


def mean(scores: FileScores, name: str = "m_vIoU", protocol: str = "tubelet") -> float:
    return scores.columns[protocol].metrics[name].mean


def test_a_truncated_line_stops_and_is_named_or_is_counted(tmp_path: Path, data: Path) -> None:
    good = [json.dumps(files.tubelet_line(name)) for name in "abc"]
    path = files.write_lines(tmp_path / "p.jsonl", [good[0], good[1][:60], good[2]])
    with pytest.raises(DataError, match=r"p\.jsonl, line 2: .*truncated line.*--keep-going"):
        scored(path, data)
    scores = scored(path, data, keep_going=True)
    assert scores.counts["broken"] == 1 and scores.left_out == 1 and scores.missing == ("b",)
    assert "line 2" in scores.counts.examples["broken"][0]
    assert "broken: 1" in render(scores)


@pytest.mark.parametrize("cut", [0.3, 0.6, 0.95])
def test_a_truncated_json_array_keeps_what_is_before_the_end(tmp_path: Path, cut: float) -> None:
    text = json.dumps([files.doro_record(str(k)) for k in range(10)])
    path = tmp_path / "p.json"
    path.write_text(text[: int(len(text) * cut)], encoding="utf-8")
    with pytest.raises(DataError, match="ends too early"):
        score_file(path, "doro")
    scores = score_file(path, "doro", keep_going=True)
    assert scores.counts["broken"] == 1 and scores.n == int(10 * cut)


def test_every_broken_line_is_counted(tmp_path: Path, data: Path) -> None:
    lines = [json.dumps(files.tubelet_line("a")), *(["{"] * 7), '"text"', "[1]", json.dumps({"id": "b"})]
    path = files.write_lines(tmp_path / "p.jsonl", lines)
    scores = scored(path, data, keep_going=True)
    assert scores.counts["broken"] == 10 and len(scores.counts.examples["broken"]) == 3


def test_broken_rows_of_csv(tmp_path: Path, data: Path) -> None:
    rows = [*files.vue_rows("a", range(2, 6)), "a,7000,0.1", "b,x,0.2,0.2,0.6,0.8"]
    path = files.vue_file(tmp_path / "p.csv", rows)
    with pytest.raises(DataError, match="line 6: expected 6 fields, got 3: a truncated line"):
        score_file(path, benchmark="vue-stg", data=data)
    scores = score_file(path, benchmark="vue-stg", data=data, keep_going=True)
    assert scores.counts["broken"] == 2 and mean(scores, "m_tIoU", "vue_stg") == pytest.approx(1 / 3)
    path.write_text("query_id,time_ms,x0\na,1,2\n", encoding="utf-8")
    with pytest.raises(DataError, match="header lacks y0, x1, y1"):
        score_file(path, "vue_stg", benchmark="vue-stg", data=data)


def test_only_a_line_feed_ends_a_line_of_json(tmp_path: Path, data: Path) -> None:
    line = files.tubelet_line("a")
    line["prediction"]["text"] = "first\u2028{second\x85third"
    path = tmp_path / "p.jsonl"
    rows = [json.dumps(row, ensure_ascii=False) for row in (line, files.tubelet_line("c", (0.0, 1.0)))]
    path.write_text("".join(row + "\n" for row in rows), encoding="utf-8")
    scores = scored(path, data)
    assert scores.counts["broken"] == 0 and scores.missing == ("b",)


def test_repeated_ids(tmp_path: Path, data: Path) -> None:
    path = files.write_lines(
        tmp_path / "p.jsonl", [files.tubelet_line("a"), files.tubelet_line("a", (8.0, 9.0))]
    )
    with pytest.raises(DataError, match="line 2: the id 'a' was there before"):
        scored(path, data)
    scores = scored(path, data, keep_going=True)
    assert scores.counts["duplicate-id"] == 1 and mean(scores) == pytest.approx(1 / 3)  # the first is kept
    own = files.write_lines(tmp_path / "own.jsonl", [files.doro_record(), files.doro_record()])
    with pytest.raises(DataError, match="was there before"):
        score_file(own)
    assert score_file(own, keep_going=True).n == 1


def test_predictions_for_unknown_queries(tmp_path: Path, data: Path) -> None:
    path = files.write_lines(tmp_path / "p.jsonl", [files.tubelet_line("a"), files.tubelet_line("zz")])
    with pytest.raises(DataError, match="line 2: there is no query 'zz' in vue-stg test"):
        scored(path, data)
    scores = scored(path, data, keep_going=True)
    assert scores.counts["unknown-query"] == 1 and scores.n == 3
    only = files.write_lines(tmp_path / "q.jsonl", [files.tubelet_line("zz")])
    with pytest.raises(DataError, match="no prediction for any query"):
        scored(only, data, keep_going=True)


def test_missing_predictions_are_zero_and_listed(tmp_path: Path, data: Path) -> None:
    path = files.write_lines(tmp_path / "p.jsonl", [files.tubelet_line("a")])
    scores = scored(path, data)
    assert scores.missing == ("b", "c") and scores.counts["missing"] == 2 and scores.left_out == 0
    assert mean(scores) == pytest.approx(1 / 3) and scores.columns["tubelet"].n == 3
    assert scores.columns["tubelet"].failures == {"b": "no prediction", "c": "no prediction"}
    assert "missing: 2" in render(scores) and "b, c" in render(scores)


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("line", "kind", "says"),
    [
        (files.tubelet_line("a", box=[0.2, NAN, 0.6, 0.8]), "not-finite", "NaN"),
        (files.tubelet_line("a", box=[0.2, 0.2, INF, 0.8]), "not-finite", "infinite"),
        (files.tubelet_line("a", span=(NAN, 6.0)), "not-finite", "NaN"),
        (files.tubelet_line("a", box=[0.6, 0.2, 0.2, 0.8]), "inverted-box", "3 of 3 boxes"),
        (files.tubelet_line("a", span=(6.0, 2.0)), "reversed-span", "6 to 2 s"),
        (files.tubelet_line("a", span=(-1.0, 6.0)), "reversed-span", "-1 to 6 s"),
        (files.tubelet_line("a", box=[20, 30, 200, 300]), "other-unit", "look like pixels"),
    ],
)
def test_impossible_values_fail_the_query(
    tmp_path: Path, data: Path, line: dict[str, Any], kind: str, says: str
) -> None:
    path = files.write_lines(tmp_path / "p.jsonl", [line, files.tubelet_line("c", (0.0, 1.0))])
    scores = scored(path, data)
    assert scores.counts[kind] == 1
    reason = scores.columns["tubelet"].failures["a"]
    assert reason.startswith(f"{kind}: ") and says in reason
    assert "line 1, id a" in scores.counts.examples[kind][0]
    assert mean(scores) == pytest.approx(1 / 3)  # the other answer still counts, this one is 0


def test_mixed_pixels_and_fractions_are_detected_and_named(tmp_path: Path, data: Path) -> None:
    line = files.tubelet_line("a")
    line["prediction"]["tubes"][0]["boxes_xyxy"][1] = [128, 72, 384, 288]
    path = files.write_lines(tmp_path / "p.jsonl", [line, files.tubelet_line("c", (0.0, 1.0))])
    scores = scored(path, data)
    reason = scores.columns["tubelet"].failures["a"]
    assert scores.counts["mixed-units"] == 1
    assert "fractions, [0.2, 0.2, 0.6, 0.8], and pixels, [128, 72, 384, 288]" in reason
    assert any(note.startswith("mixed coordinates: 1 of 3 answers") for note in scores.notes)


@pytest.mark.parametrize("declared", ["pixel:100x100", "1000"])
def test_fractions_where_others_were_declared(tmp_path: Path, declared: str) -> None:
    data = files.hcstvg_data(tmp_path / "data")
    rows = [{"id": "1_a.mp4", "answer": "{2, 6} 2: [0.1, 0.1, 0.3, 0.6], 3: [10, 10, 30, 60]"}]
    path = files.write_lines(tmp_path / "p.jsonl", rows)
    scores = score_file(path, "qwen", benchmark="hcstvg-v2", data=data, boxes=declared)
    assert scores.counts["mixed-units"] == 1 and mean(scores) == 0.0


def test_boxes_over_the_edge_are_clipped_and_counted(tmp_path: Path, data: Path) -> None:
    path = files.write_lines(tmp_path / "p.jsonl", [files.tubelet_line("a", box=[-0.2, 0.2, 0.6, 1.1])])
    scores = scored(path, data)
    assert scores.counts["box-outside-frame"] == 1 and scores.columns["tubelet"].n_failed == 2
    # [0, 0.2, 0.6, 1] against [0.2, 0.2, 0.6, 0.8]
    assert mean(scores) == pytest.approx((0.4 * 0.6) / (0.6 * 0.8) / 3)


def test_spans_and_boxes_outside(tmp_path: Path, data: Path) -> None:
    lines = [files.tubelet_line("a", (2.0, 60.0)), files.tubelet_line("b", (3.0, 10.0))]
    lines[1]["prediction"]["tubes"][0]["times_s"] = [1.0, 4.0, 12.0]
    scores = scored(files.write_lines(tmp_path / "p.jsonl", lines), data)
    assert scores.counts["span-outside-video"] == 1 and scores.counts["box-outside-span"] == 1
    assert "2-60 s of 20 s" in scores.counts.examples["span-outside-video"][0]
    assert mean(scores, "m_tIoU") == pytest.approx((4 / 58 + 1) / 3)  # not cut at the end of the video


def test_several_boxes_at_one_moment(tmp_path: Path, data: Path) -> None:
    rows = files.vue_rows("a", range(2, 6)) + files.vue_rows("a", [2], [0.0, 0.0, 0.1, 0.1])
    scores = score_file(files.vue_file(tmp_path / "p.csv", rows), benchmark="vue-stg", data=data)
    assert scores.counts["repeated-moment"] == 1
    assert mean(scores, "m_vIoU", "vue_stg") == pytest.approx(
        1 / 3
    )  # the first counts, as its evaluator does


def test_own_evaluators_see_what_is_in_the_file(tmp_path: Path, data: Path) -> None:
    rows = files.vue_rows("a", range(2, 6), [0.6, 0.8, 0.2, 0.2])
    path = files.vue_file(tmp_path / "p.csv", rows)
    scores = score_file(path, protocols=["vue_stg", "tubelet"], benchmark="vue-stg", data=data)
    assert scores.counts["inverted-box"] == 1
    assert mean(scores, "m_vIoU", "vue_stg") == pytest.approx(1 / 3)  # VUE-STG sorts the corners
    assert mean(scores) == 0.0
    assert any("scored as its own evaluator" in note for note in scores.notes)


@pytest.mark.parametrize("text", ["", " \n\n", "\ufeff"])
def test_empty_files(tmp_path: Path, data: Path, text: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(text, encoding="utf-8")
    for fmt in (None, "tubelet", "vue_stg", "llavast", "stvg_r1", "doro", "qwen"):
        with pytest.raises(DataError, match=r"p\.jsonl is empty: there is no prediction in it"):
            score_file(path, fmt, benchmark="vue-stg", data=data) if fmt not in (
                "llavast",
                "stvg_r1",
            ) else score_file(path, fmt)
    with pytest.raises(DataError, match="cannot open"):
        score_file(tmp_path / "nothing.jsonl")
    path.write_text("[]", encoding="utf-8")
    with pytest.raises(DataError, match="no record"):
        score_file(path, "llavast")
    header = files.vue_file(tmp_path / "p.csv", [])
    with pytest.raises(DataError, match="no prediction for any query"):
        score_file(header, benchmark="vue-stg", data=data)


def test_binary_files(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(b"{\0\1\2" * 100)
    with pytest.raises(DataError, match="is no text file"):
        score_file(path)


def test_records_of_another_task_are_not_mixed_in(tmp_path: Path) -> None:
    other = {"id": "x", "converted_outputs": "{0.1, 0.2}", "gt": [0.1, 0.2]}
    path = files.write_lines(tmp_path / "p.jsonl", [files.llavast_record(), other])
    with pytest.raises(DataError, match="a record of task tvg among records of task stvg"):
        score_file(path)
    assert score_file(path, keep_going=True).n == 1


def test_a_truncated_prediction_txt(tmp_path: Path) -> None:
    answer = "<answer>Target ID: 2, Time range: 2.0 to 4.0</answer>"
    text = files.r1_prediction_txt({"id": f"v_{k}", "true": "[2.0, 6.0]", "output": answer} for k in range(3))
    path = tmp_path / "prediction.txt"
    path.write_text(text[:-120], encoding="utf-8")
    with pytest.raises(DataError, match="the block has no end"):
        score_file(path)
    scores = score_file(path, keep_going=True)
    assert scores.n == 2 and scores.counts["broken"] == 1


def peak(path: Path, data: Path, fmt: str, protocol: str) -> int:
    tracemalloc.start()
    try:
        score_file(path, fmt, [protocol], benchmark="vue-stg", data=data, keep_going=True)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_file(tmp_path: Path, data: Path) -> None:
    """Files of 1.5 and of 6 MB: four times the lines, the same peak. (200 MB: see docs/scoring.md.)"""
    long = files.tubelet_line("a")
    long["prediction"]["text"] = "word " * 2000
    other = {**long, "id": "nobody"}
    block = "".join(json.dumps(row) + "\n" for row in (long, other, other))
    peaks = []
    for times in (50, 200):
        path = tmp_path / f"{times}.jsonl"
        path.write_text(block * times, encoding="utf-8")
        peaks.append((peak(path, data, "tubelet", "tubelet"), path.stat().st_size))
    assert peaks[1][1] > 6_000_000 and peaks[1][0] < peaks[0][0] + 300_000, peaks
    rows = files.vue_rows("a", range(2, 6)) * 2000
    csv = [files.vue_file(tmp_path / f"{k}.csv", rows * k) for k in (1, 4)]
    csv_peaks = [peak(path, data, "vue_stg", "vue_stg") for path in csv]
    assert csv_peaks[1] < csv_peaks[0] + 300_000, csv_peaks


def test_every_count_is_reached_by_a_test_here_or_in_formats() -> None:
    """The list of counts and the tests of this folder name the same things."""
    folder = Path(__file__).parent
    text = "".join(path.read_text(encoding="utf-8") for path in folder.glob("test_scoring_*.py"))
    assert not [kind for kind in KINDS if f'"{kind}"' not in text]


def test_a_span_may_come_from_the_boxes(tmp_path: Path) -> None:
    data = files.hcstvg_data(tmp_path / "data")
    answer = (
        "2: [0.1, 0.1, 0.3, 0.6], 3: [0.1, 0.1, 0.3, 0.6], 4: [0.1, 0.1, 0.3, 0.6], 5: [0.1, 0.1, 0.3, 0.6]"
    )
    path = files.write_lines(tmp_path / "p.jsonl", [{"id": "1_a.mp4", "answer": answer}])
    scores = score_file(path, "qwen", benchmark="hcstvg-v2", data=data, boxes="fraction")
    assert scores.counts["span-from-boxes"] == 1 and mean(scores) == pytest.approx(0.5)
