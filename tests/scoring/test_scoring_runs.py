"""Our own run files as they lie on disk, JSON objects by id, broken bytes, and means over what was answered."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
import scoring_files as files
import typer
from typer.testing import CliRunner

from tubelet.benchmarks.run_folder import Line
from tubelet.cli.scoring import score
from tubelet.errors import DataError
from tubelet.scoring import render, score_file
from tubelet.scoring.formats import detect
from tubelet.scoring.text import last_answer
from tubelet.tube import Prediction

HEADER = {"run": {"model": "m", "revision": "r", "n": 3, "seed": 7, "task": "stvg"}}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return files.vue_data(tmp_path / "data")


def test_the_first_line_of_a_toy_world_run_is_no_prediction(tmp_path: Path, data: Path) -> None:
    path = files.write_lines(tmp_path / "predictions.jsonl", [HEADER, files.tubelet_line("a")])
    assert detect(path).name == "tubelet"
    scores = score_file(path, benchmark="vue-stg", data=data)
    assert scores.counts["broken"] == 0 and scores.missing == ("b", "c")
    later = files.write_lines(tmp_path / "later.jsonl", [files.tubelet_line("a"), HEADER])
    with pytest.raises(DataError, match="line 2: field id: is missing"):
        score_file(later, benchmark="vue-stg", data=data)


def test_what_a_run_writes_is_what_is_read(tmp_path: Path, data: Path) -> None:
    told = Prediction.from_dict(files.tubelet_line("a")["prediction"])
    lost = Prediction("v", "q", "stvg", failure="out of memory")
    rows = [Line("a", told).to_dict(), Line("b", lost).to_dict()]
    scores = score_file(
        files.write_lines(tmp_path / "predictions.jsonl", rows), benchmark="vue-stg", data=data
    )
    column = scores.columns["tubelet"]
    assert column.metrics["m_vIoU"].mean == pytest.approx(1 / 3)
    assert column.failures == {"b": "no-answer: out of memory", "c": "no prediction"}


def test_means_over_answered_queries_stand_beside_the_real_ones(tmp_path: Path, data: Path) -> None:
    path = files.write_lines(tmp_path / "p.jsonl", [files.tubelet_line("a"), files.tubelet_line("b")])
    scores = score_file(path, benchmark="vue-stg", data=data)
    metrics = scores.columns["tubelet"].metrics
    assert (metrics["m_tIoU"].n, metrics["m_tIoU_answered"].n) == (3, 2)
    assert metrics["m_tIoU"].mean == pytest.approx((1 + 3 / 8) / 3)
    assert metrics["m_tIoU_answered"].mean == pytest.approx((1 + 3 / 8) / 2)
    assert "m_vIoU_answered" in render(scores) and "n=2" in render(scores)
    full = [files.tubelet_line("a"), files.tubelet_line("b"), files.tubelet_line("c", (0.0, 1.0))]
    scores = score_file(files.write_lines(tmp_path / "full.jsonl", full), benchmark="vue-stg", data=data)
    assert "m_tIoU_answered" not in scores.columns["tubelet"].metrics  # nothing failed: there is one mean


def test_answers_of_one_json_object_by_id(tmp_path: Path, data: Path) -> None:
    path = tmp_path / "p.json"
    rows = {"a": {"answer": "2 - 6"}, "b": {"answer": "3 - 10"}}
    for text in (json.dumps(rows), json.dumps(rows, indent=1)):
        path.write_text(text, encoding="utf-8")
        scores = score_file(path, "qwen", benchmark="vue-stg", data=data)
        assert scores.missing == ("c",)
        assert scores.columns["tubelet"].metrics["m_tIoU"].mean == pytest.approx(2 / 3)


def test_lines_that_are_no_text_are_counted_in_a_prediction_txt(tmp_path: Path) -> None:
    answer = "<answer>Target ID: 2, Time range: 2.0 to 6.0</answer>"
    text = files.r1_prediction_txt({"id": f"v_{k}", "true": "[2.0, 6.0]", "output": answer} for k in range(2))
    path = tmp_path / "prediction.txt"
    head, rest = text.encode("utf-8").split(b"\n", 1)
    path.write_bytes(head + b"\n\xff\xfe broken\n" + rest)
    with pytest.raises(DataError, match="line 2: not UTF-8 text"):
        score_file(path)
    scores = score_file(path, keep_going=True)
    assert scores.counts["broken"] == 1 and scores.n == 2


def test_thousandths_read_as_fractions_are_named(tmp_path: Path, data: Path) -> None:
    path = files.write_lines(tmp_path / "p.jsonl", [files.tubelet_line("a", box=[200, 200, 600, 800])])
    scores = score_file(path, benchmark="vue-stg", data=data)
    assert scores.counts["other-unit"] == 1
    assert (
        "look like pixels (or thousandths), fractions were declared"
        in scores.columns["tubelet"].failures["a"]
    )
    assert any("were --boxes right?" in note for note in scores.notes)


def test_odd_characters_can_be_printed_and_written(tmp_path: Path, data: Path) -> None:
    """A JSON text may hold half a surrogate pair and control characters; what is written is UTF-8 all the same."""
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(score)
    rows = [
        files.tubelet_line("a", tubes=[], failure="\ud800 \x1b[31m"),
        files.tubelet_line("b", text="\ud800"),
    ]
    path, out = files.write_lines(tmp_path / "p.jsonl", rows), tmp_path / "out.json"
    call = [str(path), "--benchmark", "vue-stg", "--data", str(data), "--json", str(out)]
    result = CliRunner().invoke(app, call, catch_exceptions=False)
    assert result.exit_code == 0 and "\x1b" not in result.output and "no-answer: 1" in result.output
    column = json.loads(out.read_text(encoding="utf-8"))["protocols"]["tubelet"]
    assert column["failures"][0] == {"id": "a", "reason": "no-answer: \\ud800 \\x1b[31m"}


@pytest.mark.parametrize("repeated", ["1 ", "<TEMP-010>", "{1, ", "[1, ", "1: [1, ", "(1,1),", "<answer>"])
def test_an_answer_that_repeats_itself_is_read_in_no_time(tmp_path: Path, data: Path, repeated: str) -> None:
    """100,000 characters of a model that does not stop; patterns that go back take minutes over them."""
    text = (repeated * 100_000)[:100_000]
    own = {**files.llavast_record(), "outputs": text, "converted_outputs": text}
    spent = time.process_time()
    assert score_file(files.write_lines(tmp_path / "l.jsonl", [own]), "llavast").n == 1
    chosen = {**files.r1_record(), "response": text + "<answer>Target ID: 2, Time range: 1.0 to 2.0</answer>"}
    assert score_file(files.write_lines(tmp_path / "r.jsonl", [chosen]), "stvg_r1").n == 1
    other = [{"id": "a", "answer": text}]
    path = files.write_lines(tmp_path / "q.jsonl", other)
    assert score_file(path, "qwen", benchmark="vue-stg", data=data, boxes="1000").n == 3
    assert time.process_time() - spent < 5.0


@pytest.mark.parametrize(
    "text",
    [
        "<answer>a</answer>",
        "<answer>a</answer> <answer>b</answer> c",
        "<answer>a <answer>b</answer>",
        "<answer>a</answer></answer>",
        "</answer><answer>a",
        "<answer></answer>",
        "<answer>a</answer><answer>",
        "a",
        "",
    ],
)
def test_the_last_answer_is_the_one_that_the_projects_pattern_finds(text: str) -> None:
    found = re.findall(r"<answer>(.*?)</answer>", text, re.DOTALL)
    assert last_answer(text) == (found[-1] if found else None)
