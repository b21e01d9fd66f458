"""docs/scoring.md: its examples are read, its commands parse, its counts and its table are the real ones."""

from __future__ import annotations

import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest
import scoring_files as files
import typer
from typer.testing import CliRunner

from tubelet.cli.scoring import score
from tubelet.errors import DataError
from tubelet.metrics.moments import SPAN_PROTOCOLS
from tubelet.metrics.protocols import PROTOCOLS
from tubelet.scoring import FORMATS, score_file
from tubelet.scoring.answers import KINDS
from tubelet.scoring.formats import detect

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "scoring.md").read_text(encoding="utf-8")


def example(name: str) -> str:
    """The first block of the section on a format."""
    return PAGE.split(f"### `{name}`\n", 1)[1].split("```\n", 2)[1]


def test_every_format_has_a_section_and_no_other_does() -> None:
    assert sorted(re.findall(r"^### `(\w+)`$", PAGE, re.MULTILINE)) == sorted(FORMATS)


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_examples_are_read_and_recognised(name: str, tmp_path: Path) -> None:
    path = tmp_path / "example"
    path.write_text(example(name), encoding="utf-8")
    assert detect(path).name == name
    data = {
        "tubelet": ("vue-stg", files.vue_data),
        "vue_stg": ("vue-stg", files.vue_data),
        "moment_detr": ("qvhighlights", files.moments_data),
        "qwen": ("hcstvg-v2", files.hcstvg_data),
    }
    if name in data:
        benchmark, make = data[name]
        folder = make(tmp_path / "data")
        boxes = "1000" if name == "qwen" else None
        scores = score_file(path, name, benchmark=benchmark, data=folder, boxes=boxes)
    else:
        scores = score_file(path, name)
    for column in scores.columns.values():
        metric = column.metrics.get("m_tIoU") or column.metrics.get("mIoU") or column.metrics["MR-full-mIoU"]
        assert metric.mean > 0
        assert scores.n - len(scores.missing) == 1 and column.n_failed == len(scores.missing)
    assert set(scores.counts.count) <= {"missing"}


def test_every_count_is_explained_in_its_own_words() -> None:
    table = PAGE.split("| count |", 1)[1].split("\n\n", 1)[0]
    said = dict(re.findall(r"^\| `([\w-]+)` \| (.*) \|$", table, re.MULTILINE))
    assert said == KINDS
    assert list(said)[:3] == ["broken", "duplicate-id", "unknown-query"]  # "the first three stop the scoring"


def test_commands_have_options_that_exist() -> None:
    """Every command is called, and gets as far as looking for its files; formats and protocols are real ones."""
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(score)
    commands = [line.strip() for line in PAGE.splitlines() if line.startswith("    tubelet score ")]
    assert len(commands) > 8
    for command in commands:
        arguments = shlex.split(command)[2:]
        if "FORMAT" in arguments:  # the pattern of all of them
            continue
        result = CliRunner().invoke(app, arguments)
        assert isinstance(result.exception, DataError), (command, result.output)
        assert re.search(r"cannot open|DIR does not exist", str(result.exception)), (
            command,
            result.exception,
        )
        named = [b for a, b in pairwise(arguments) if a == "-p"]
        assert set(named) <= {*PROTOCOLS, *SPAN_PROTOCOLS}, command


def test_options_of_the_command_are_on_the_page() -> None:
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(score)
    options = {
        name
        for parameter in typer.main.get_command(app).params
        for name in parameter.opts
        if name.startswith("--")
    }
    assert {o for o in options if f"`{o}`" not in PAGE} <= {
        "--install-completion",
        "--show-completion",
        "--help",
    }


def test_the_table_of_conventions_is_measured() -> None:
    rows = re.findall(
        r"^\| ([\w.-]+) \| (0\.\d+) \| (0\.\d+) \| (0\.\d+) \| (0\.\d+) \| (\d+) \|$", PAGE, re.MULTILINE
    )
    assert len(rows) == 4
    folder = files.SHARED / "data" / "vue_stg"
    if not folder.exists():
        pytest.skip("no published predictions")
    for model, *told in rows:
        scores = score_file(
            folder / f"pred_{model}.300.csv",
            "vue_stg",
            ["vue_stg", "tubelet"],
            benchmark="vue-stg",
            data=folder,
        )
        got = [
            f"{scores.columns[protocol].metrics[metric].mean:.3f}"
            for metric in ("m_tIoU", "m_vIoU")
            for protocol in ("vue_stg", "tubelet")
        ]
        assert told == [*got, str(len(scores.missing))], model
