"""Every format is read, recognised where that leaves no doubt, and scored under several protocols."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import scoring_files as files
from typer import Typer
from typer.testing import CliRunner

from tubelet.cli.scoring import score as score_command
from tubelet.errors import DataError
from tubelet.scoring import FORMATS, render, score_file
from tubelet.scoring.answers import BoxUnit, TimeUnit
from tubelet.scoring.formats import detect, first_item, matching
from tubelet.scoring.text import read_text


def test_vue_stg_against_tubelet_columns(tmp_path: Path) -> None:
    data = files.vue_data(tmp_path / "data")
    path = files.vue_file(
        tmp_path / "p.csv", files.vue_rows("a", range(2, 6)) + files.vue_rows("b", range(3, 7))
    )
    scores = score_file(path, None, ["vue_stg", "tubelet", "cgstvg"], benchmark="vue-stg", data=data)
    assert scores.format == "vue_stg" and scores.missing == ("c",) and scores.n == 3
    own, ours = scores.columns["vue_stg"], scores.columns["tubelet"]
    assert own.metrics["m_tIoU"].mean == pytest.approx((1 + 4 / 7 + 0) / 3)
    assert own.metrics["tPrecision"].mean == 1.0 and own.metrics["tPrecision"].n == 2
    assert ours.metrics["m_tIoU"].mean == pytest.approx((1 + 4 / 7 + 0) / 3)
    assert ours.metrics["m_vIoU"].mean == pytest.approx((1 + 4 / 7 + 0) / 3)
    assert own.n_failed == ours.n_failed == 1 and ours.failures == {"c": "no prediction"}
    assert scores.columns["cgstvg"].metrics["m_tIoU"].mean == pytest.approx((3 / 4 + 4 / 6 + 0) / 3)


def test_rows_of_a_query_may_be_scattered(tmp_path: Path) -> None:
    data = files.vue_data(tmp_path / "data")
    rows = files.vue_rows("a", range(2, 6)) + files.vue_rows("b", range(3, 7))
    mixed = [rows[k] for k in (0, 4, 1, 5, 2, 6, 3, 7)]
    results = [
        score_file(
            files.vue_file(tmp_path / f"{k}.csv", listed),
            protocols=["vue_stg"],
            benchmark="vue-stg",
            data=data,
        )
        for k, listed in enumerate((rows, mixed))
    ]
    assert results[0].columns["vue_stg"].metrics == results[1].columns["vue_stg"].metrics


def test_tubelet_lines(tmp_path: Path) -> None:
    data = files.vue_data(tmp_path / "data")
    path = files.write_lines(
        tmp_path / "p.jsonl",
        [
            files.tubelet_line("a"),
            files.tubelet_line("b", tubes=[], failure="out of memory"),
            files.tubelet_line("c", tubes=[]),
        ],
    )
    scores = score_file(path, benchmark="vue-stg", data=data)
    assert scores.format == "tubelet" and list(scores.columns) == ["tubelet"]
    column = scores.columns["tubelet"]
    assert column.metrics["m_vIoU"].mean == pytest.approx(1 / 3)
    assert column.failures == {"b": "no-answer: out of memory"} and scores.counts["no-answer"] == 1


def test_moment_detr_windows(tmp_path: Path) -> None:
    data = files.moments_data(tmp_path / "data")
    rows = [
        {"qid": 1, "pred_relevant_windows": [[10, 20, 0.9], [0, 150, 0.1]]},
        {"qid": 2, "pred_relevant_windows": [[60, 80, 0.9]]},
        {"qid": 3, "pred_relevant_windows": [[75, 150, 0.3]]},
    ]
    path = files.write_lines(tmp_path / "p.jsonl", rows)
    scores = score_file(path, benchmark="qvhighlights", data=data)
    assert list(scores.columns) == ["moment_detr", "tubelet"] and scores.task == "tvg"
    assert scores.columns["moment_detr"].metrics["MR-full-R1@0.7"].mean == pytest.approx(2 / 3)
    assert scores.columns["moment_detr"].metrics["MR-short-R1@0.5"].n == 1
    assert scores.columns["tubelet"].metrics["mIoU"].mean == pytest.approx((1 + 1 + 50 / 75) / 3)
    assert "HL-min-Good-mAP" not in scores.columns["moment_detr"].metrics


def test_records_with_their_own_truth_need_no_data(tmp_path: Path) -> None:
    for name, record, protocol in (
        ("llavast", files.llavast_record(), "llavast"),
        ("stvg_r1", files.r1_record(), "stvg_r1"),
        ("doro", files.doro_record(), "doro"),
    ):
        path = files.write_lines(tmp_path / f"{name}.jsonl", [record])
        scores = score_file(path, protocols=[protocol, "tubelet", "hcstvg_official"])
        assert scores.format == name and scores.truth == "its own"
        assert scores.columns[protocol].own and not scores.columns["tubelet"].own
        for column in scores.columns.values():
            assert column.n == 1 and column.n_failed == 0
            assert column.metrics["m_tIoU"].mean > 0.97, (name, column.protocol)
            assert column.metrics["m_vIoU"].mean > 0.9, (name, column.protocol)
    with pytest.raises(DataError, match="carries its own truth"):
        score_file(tmp_path / "llavast.jsonl", benchmark="vue-stg", data=tmp_path)


def test_prediction_txt_of_stvg_r1(tmp_path: Path) -> None:
    path = tmp_path / "prediction.txt"
    answer = "<think>\nfirst\n</think>\n<answer>Target ID: 2, Time range: 2.0 to 4.0</answer>"
    rows = [
        {"id": "v_0", "true": "[2.0, 6.0]", "output": answer},
        {"id": "v_1", "true": "[1.0, 3.5]", "output": "I cannot tell"},
    ]
    path.write_text(files.r1_prediction_txt(rows), encoding="utf-8")
    scores = score_file(path)
    assert scores.format == "stvg_r1" and scores.task == "tvg" and scores.n == 2
    assert scores.columns["tubelet"].metrics["mIoU"].mean == pytest.approx(0.25)
    assert list(scores.columns["tubelet"].failures) == ["v_1"] and scores.counts["unread"] == 1


def test_doro_against_a_dataset(tmp_path: Path) -> None:
    data = files.hcstvg_data(tmp_path / "data")
    row = {
        "item_id": "1_a.mp4",
        "pred_temporal_bound": [10, 29],
        "pred_bboxes": {str(k): files.HCSTVG_BOX for k in range(10, 30)},
        "video_metadata": {"num_frames_sampled": 100},
    }
    path = files.write_lines(tmp_path / "p.jsonl", [row])
    with pytest.raises(DataError, match="holds no truth"):
        score_file(path)
    scores = score_file(path, benchmark="hcstvg-v2", data=data, protocols=["doro", "tubelet", "cgstvg"])
    assert scores.missing == ("2_b.mp4",)
    # all 100 frames were sampled: a perfect answer, and one that is not there
    assert scores.columns["tubelet"].metrics["m_vIoU"].mean == pytest.approx(0.5)
    assert scores.columns["doro"].metrics["m_tIoU"].mean == pytest.approx(0.5)
    assert scores.columns["cgstvg"].metrics["m_tIoU"].mean == pytest.approx(0.5 * 19 / 20)


@pytest.mark.parametrize(
    ("boxes", "times", "answer"),
    [
        (
            "fraction",
            "second",
            "From 2.0 to 6.0 seconds. 2.0: [0.1, 0.1, 0.3, 0.6], 5.0: [0.1, 0.1, 0.3, 0.6]",
        ),
        (
            "1000",
            "second",
            '```json\n[{"time": 2.0, "bbox_2d": [100, 100, 300, 600]}, {"time": "00:05", '
            '"bbox_2d": [100, 100, 300, 600]}, {"start_time": 2.0, "end_time": 6.0}]\n```',
        ),
        ("pixel", "frame", "During the span of {10, 29} 10: [64, 36, 192, 216], 29: [64, 36, 192, 216]"),
        ("pixel:320x180", "frame:5", "<answer>{10, 29} 10: [32, 18, 96, 108]</answer>"),
        ("fraction", "fraction", "{0.1, 0.3} 0.1: [0.1, 0.1, 0.3, 0.6]"),
        ("1000", "second", "2 to 6 s: at 2 s <|box_start|>(100,100),(300,600)<|box_end|>"),
    ],
)
def test_answers_in_words(tmp_path: Path, boxes: str, times: str, answer: str) -> None:
    data = files.hcstvg_data(tmp_path / "data")
    path = files.write_lines(tmp_path / "p.jsonl", [{"id": "1_a.mp4", "answer": answer}])
    scores = score_file(path, benchmark="hcstvg-v2", data=data, boxes=boxes, times=times)
    assert scores.format == "qwen"
    assert scores.columns["tubelet"].metrics["m_vIoU"].mean == pytest.approx(0.5), scores.columns[
        "tubelet"
    ].failures


def test_boxes_in_words_need_a_declared_unit(tmp_path: Path) -> None:
    data = files.hcstvg_data(tmp_path / "data")
    path = files.write_lines(tmp_path / "p.jsonl", [{"id": "1_a.mp4", "answer": "{1, 2} 1: [1, 2, 3, 4]"}])
    with pytest.raises(DataError, match="give --boxes fraction, 1000, pixel"):
        score_file(path, benchmark="hcstvg-v2", data=data)


def test_spans_in_words_under_the_reader_of_lmms_eval(tmp_path: Path) -> None:
    data = files.moments_data(tmp_path / "data")
    rows = [
        {"qid": 1, "answer": "It happens from 20 to 10 seconds."},
        {"qid": 2, "answer": "no idea"},
        {"qid": 3, "answer": "00:01:40 - 00:02:30"},
    ]
    path = files.write_lines(tmp_path / "p.jsonl", rows)
    scores = score_file(path, "qwen", ["charades", "tubelet"], benchmark="qvhighlights", data=data)
    # lmms-eval swaps a reversed span; here it is counted and scores 0
    assert scores.columns["charades"].metrics["mIoU"].mean == pytest.approx(2 / 3)
    assert scores.columns["tubelet"].metrics["mIoU"].mean == pytest.approx(1 / 3)
    assert scores.counts["reversed-span"] == 1 and scores.counts["unread"] == 1


@pytest.mark.parametrize(
    ("text", "span", "n_boxes"),
    [
        ("from 1.5 to 4 seconds", (1.5, 4.0), 0),
        ("<answer>1 - 2</answer> or <answer>3 - 4</answer>", (3.0, 4.0), 0),
        ('{"time": ["00:01", "00:02.5"]}', (1.0, 2.5), 0),
        ('[{"time": 3, "bbox": [1, 2, 3, 4]}, {"time": 4, "bbox": [1, 2, 3, 4]}]', None, 2),
        ("{3, 9} 3: [1, 2, 3, 4], 4: [1,2,3,4]", (3.0, 9.0), 2),
    ],
)
def test_reading_of_text(text: str, span: tuple[float, float] | None, n_boxes: int) -> None:
    said = read_text(text)
    assert said is not None and said.span == span and len(said.boxes) == n_boxes


def test_text_without_anything_is_unread() -> None:
    for text in ("", "I do not know.", "[1, 2", "1" * 400, "{" * 5000, "[" * 100_000):
        assert read_text(text) is None


def test_a_format_is_recognised_only_where_that_leaves_no_doubt(tmp_path: Path) -> None:
    doubt = {**files.doro_record(), "pred_relevant_windows": [[1, 2]]}
    path = files.write_lines(tmp_path / "p.jsonl", [doubt])
    assert matching(first_item(path)) == ["moment_detr", "doro"]
    with pytest.raises(DataError, match="could be moment_detr or doro: give --format") as told:
        detect(path)
    assert all(name in str(told.value) for name in FORMATS)
    with pytest.raises(DataError, match="no format that is recognised"):
        detect(files.write_lines(tmp_path / "q.jsonl", [{"id": 1, "x": 2}]))
    with pytest.raises(DataError, match="no format that is recognised"):
        detect(files.write_lines(tmp_path / "r.csv", ["a,b,c", "1,2,3"]))
    with pytest.raises(DataError, match="unknown format 'vue'"):
        score_file(path, "vue")


def test_errors_of_a_call_say_what_to_do(tmp_path: Path) -> None:
    data = files.vue_data(tmp_path / "data")
    path = files.write_lines(tmp_path / "p.jsonl", [files.tubelet_line("a")])
    with pytest.raises(DataError, match="give --benchmark NAME and --data DIR"):
        score_file(path)
    with pytest.raises(DataError, match="does not score task stvg: there are tubelet"):
        score_file(path, protocols=["moment_detr"], benchmark="vue-stg", data=data)
    with pytest.raises(DataError, match="no labelled queries of task tvg"):
        score_file(path, benchmark="vue-stg", data=data, task="tvg")
    for text in ("pixels", "pixel:0x3", ""):
        with pytest.raises(DataError, match="boxes are in"):
            BoxUnit.parse(text)
    for text in ("frames", "frame:0", "uniform:1", "uniform:2.5"):
        with pytest.raises(DataError, match="times are in"):
            TimeUnit.parse(text)


def test_the_command_prints_one_column_per_protocol_and_writes_json(tmp_path: Path) -> None:
    app = Typer()
    app.command()(score_command)
    data = files.vue_data(tmp_path / "data")
    path = files.vue_file(tmp_path / "p.csv", files.vue_rows("a", range(2, 6)))
    out = tmp_path / "scores.json"
    call = [str(path), "-p", "vue_stg", "-p", "tubelet", "--benchmark", "vue-stg", "--data", str(data)]
    done = CliRunner().invoke(app, [*call, "--json", str(out)])
    assert done.exit_code == 0, done.output
    table = done.stdout.splitlines()
    assert table[2].split() == ["vue_stg", "tubelet", "apart"]
    assert table[3].split() == ["n", "3", "3"] and table[4].split() == ["n_failed", "2", "2"]
    told = json.loads(out.read_text(encoding="utf-8"))
    assert told["protocols"]["vue_stg"]["metrics"]["m_tIoU"]["mean"] == pytest.approx(1 / 3, abs=1e-4)
    assert told["counts"]["missing"]["n"] == 2 and told["missing"] == ["b", "c"]
    assert told["protocols"]["tubelet"]["failures"] == [
        {"id": "b", "reason": "no prediction"},
        {"id": "c", "reason": "no prediction"},
    ]
    bad = files.vue_file(path, [*files.vue_rows("a", range(2, 6)), *files.vue_rows("zzz", [1])])
    assert CliRunner().invoke(app, call).exit_code == 1
    done = CliRunner().invoke(app, [*call, "--keep-going"])
    assert done.exit_code == 1 and "unknown-query: 1" in done.stdout, bad


def test_apart_is_the_distance_between_the_protocols(tmp_path: Path) -> None:
    path = files.write_lines(tmp_path / "p.jsonl", [files.doro_record()])
    scores = score_file(path, protocols=["doro", "cgstvg"])
    line = next(row for row in render(scores).splitlines() if row.startswith("m_tIoU"))
    assert line.split()[-1] == "0.200"  # 5 frames: a perfect answer scores 4/5 under cgstvg
