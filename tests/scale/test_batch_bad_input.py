"""What users give `tubelet batch` by mistake: one clear sentence, counted, never a traceback."""

from __future__ import annotations

import importlib.util
import json
import os
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_batch import inline, read, write_pairs

import video_files
from tubelet import cli
from tubelet.errors import OutputError
from tubelet.scale import grounding

GOOD = {"id": "good", "video": "clip.mp4", "sentence": "something spins"}


@pytest.fixture
def batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    def call(*args: object, pairs: Path | None = None, out: Path | None = None) -> tuple[int, str, str]:
        source, target = pairs or tmp_path / "pairs.jsonl", out or tmp_path / "out"
        monkeypatch.setattr(
            sys, "argv", ["tubelet", "batch", str(source), "--out", str(target), *map(str, args)]
        )
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        told = capsys.readouterr()
        assert "Traceback" not in told.err
        return code, told.out, told.err

    return call


@pytest.fixture
def no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails the test where a mistake is found only after work has begun."""

    def begun(*_: Any) -> None:
        raise AssertionError("work has begun")

    monkeypatch.setattr("tubelet.scale.local.run_local", begun)


def one_sentence(told: tuple[int, str, str], *words: str) -> None:
    code, out, err = told
    lines = [line for line in err.splitlines() if line.strip()]
    assert code == 1 and out == "" and len(lines) == 1, told
    for word in words:
        assert word in lines[0], (word, lines[0])


BAD_LINES = [
    ('{"video": "a.mp4", ', "no JSON"),
    ("[1, 2]", "no JSON object"),
    ('{"sentence": "x"}', "no 'video'"),
    ('{"video": "a.mp4"}', "no 'sentence'"),
    ('{"video": "a.mp4", "sentence": " "}', "empty sentence"),
    ('{"video": "", "sentence": "x"}', "empty video"),
    ('{"video": 3, "sentence": "x"}', "video that is no text"),
    ('{"video": "a\\u0000.mp4", "sentence": "x"}', "null character"),
    ('{"video": "a.mp4", "sentence": "\\ud800"}', "half a character"),
    ('{"video": "a.mp4", "sentence": "x", "task": "dance"}', "task 'dance'"),
    ('{"video": "a.mp4", "sentence": "x", "task": ["stvg"]}', "task ['stvg']"),
    ('{"video": "a.mp4", "sentence": "x", "task": "svg"}', "without its span"),
    ('{"video": "a.mp4", "sentence": "x", "start_s": 3}', "only one of"),
    ('{"video": "a.mp4", "sentence": "x", "start_s": 3, "end_s": 2}', "ends after it starts"),
    ('{"video": "a.mp4", "sentence": "x", "start_s": NaN, "end_s": 2}', "finite"),
    ('{"video": "a.mp4", "sentence": "x", "id": true}', "neither text nor a whole number"),
    ('{"video": "a.mp4", "sentence": "x", "id": "good"}', "repeats the id 'good' of line 1"),
    ("[" * 100_000, "no JSON"),
    (b'{"video": "\xff.mp4", "sentence": "x"}', "not UTF-8"),
]


@pytest.mark.parametrize(("line", "word"), BAD_LINES, ids=[word for _, word in BAD_LINES])
def test_a_bad_line_stops_before_the_work_with_its_number(
    batch: Any, no_worker: None, tmp_path: Path, line: str | bytes, word: str
) -> None:
    raw = line if isinstance(line, bytes) else line.encode()
    (tmp_path / "pairs.jsonl").write_bytes(json.dumps(GOOD).encode() + b"\n\n" + raw + b"\n")
    one_sentence(batch(), "pairs.jsonl, line 3 ", word, "--skip-bad-lines")
    assert not (tmp_path / "out/ledger.sqlite").exists()  # mend the file and call again: no --resume needed


def test_bad_lines_are_left_out_and_counted_when_asked(
    batch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grounding, "_engine", lambda name: inline)
    video_files.write(tmp_path / "clip.mp4", 8)
    raw = [line if isinstance(line, bytes) else line.encode() for line, _ in BAD_LINES]
    (tmp_path / "pairs.jsonl").write_bytes(
        b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\n" + b"\n".join(raw)
    )
    code, out, err = batch("--skip-bad-lines")
    assert code == 1 and "1 pairs of 1 videos, 1 answered" in out
    assert f"{len(BAD_LINES)} bad lines" in err
    card = json.loads((tmp_path / "out/job.json").read_text())
    assert card["counts"]["bad_lines"] == len(BAD_LINES) == len(card["bad_lines"])
    assert card["bad_lines"][0].startswith("line 2 ") and "repeats the id" in "".join(card["bad_lines"])


def test_videos_that_cannot_be_read_fail_and_the_others_are_answered(
    batch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grounding, "_engine", lambda name: inline)
    video_files.write(tmp_path / "clip.mp4", 8)
    video_files.cut_off(video_files.write(tmp_path / "cut.mp4", 8), 0.5)
    (tmp_path / "text.mp4").write_text("this is no video\n" * 9)
    (tmp_path / "folder.mp4").mkdir()
    names = ["missing", "cut", "text", "folder", "clip"]
    write_pairs(
        tmp_path / "pairs.jsonl",
        *({"id": name, "video": f"{name}.mp4", "sentence": "something spins"} for name in names),
        {"id": "missing2", "video": "missing2.mp4", "sentence": "something spins"},
        {"id": "long", "video": "clip.mp4", "sentence": "x" * 100_000},
    )
    code, out, err = batch()
    assert code == 1 and "7 pairs of 6 videos, 1 answered" in out and "6 failed" in out
    told = {line["id"]: line["prediction"]["failure"] for line in read(tmp_path / "out")}
    assert list(told) == [*names, "missing2", "long"] and told["clip"] is None
    assert told["missing"].startswith("no video at missing.mp4")
    assert "cut.mp4" in told["cut"] and "holds text" in told["text"] and "is a folder" in told["folder"]
    assert "100000 characters" in told["long"]
    assert not any(str(tmp_path) in reason for reason in told.values() if reason)
    card = json.loads((tmp_path / "out/job.json").read_text())
    assert card["counts"]["failed"] == sum(card["failures"].values()) == 6
    assert card["failures"]["no video at <video>: check the name"] == 2
    assert "2 failed: no video at <video>: check the name" in err


@pytest.mark.usefixtures("no_worker")
def test_what_is_wrong_is_said_before_any_worker_starts(
    batch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_sentence(batch(), "there is no file", "pairs.jsonl")
    one_sentence(batch(pairs=tmp_path), "cannot read")
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n\n")
    one_sentence(batch(pairs=empty), "holds no pair")
    write_pairs(tmp_path / "pairs.jsonl", GOOD)
    one_sentence(batch("--model", "no-such-model"), "no-such-model")
    (tmp_path / "model").mkdir()
    one_sentence(batch("--model", tmp_path / "model"), "no config.json")
    one_sentence(batch("--workers", 0), "workers is at least 1, got 0")
    one_sentence(batch("--threads", -1), "threads is at least 1")
    one_sentence(batch("--engine", "spark"), "engine is one of: local, ray; got 'spark'")
    one_sentence(batch("--order", "random"), "order is one of")
    one_sentence(batch("--task", "qa"), "task is one of")
    one_sentence(batch("--videos", tmp_path / "nowhere"), "no folder", "--videos")
    one_sentence(batch("--set", "wokers=2"), "no field wokers")
    for options, named in (
        (("--quality",), "quality"),
        (("--phrase", "dog"), "phrases"),
        (("--set", "zero_shot.k=3"), "zero_shot"),
        (("--provider-set", "fps=4"), "provider"),
    ):
        one_sentence(batch(*options), named, "add the method zero-shot")
    zero_shot = ("--method", "zero-shot")
    one_sentence(batch(*zero_shot, "--set", "zero_shot.kk=3"), "no field kk")
    one_sentence(batch(*zero_shot, "--proposals", "guessing"), "guessing", "motion")
    one_sentence(batch(*zero_shot, "--provider-set", "fsp=4"), "no field fsp")
    one_sentence(batch(*zero_shot, "--preset", "best"), "presets are")
    one_sentence(batch(*zero_shot, "--proposals", "files"), "--proposals-file")
    (tmp_path / "file").write_text("")
    one_sentence(batch(out=tmp_path / "file" / "out"), "cannot make the folder")
    one_sentence(batch(out=tmp_path / "file"), "cannot make the folder")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    one_sentence(batch("--engine", "ray"), "tubelet[scale]", "--engine local")


@pytest.mark.usefixtures("no_worker")
def test_ledgers_that_are_not_of_this_job(batch: Any, tmp_path: Path) -> None:
    write_pairs(tmp_path / "pairs.jsonl", GOOD)
    out = tmp_path / "out"
    out.mkdir()
    (out / "ledger.sqlite").write_text("this is no database, whatever its name says\n" * 30)
    one_sentence(batch(), "is no ledger")
    (out / "ledger.sqlite").unlink()
    with sqlite3.connect(out / "ledger.sqlite") as base:
        base.execute("CREATE TABLE songs (name TEXT)")
    base.close()
    one_sentence(batch("--resume"), "database of something else")
    (out / "ledger.sqlite").unlink()
    grounding.open_ledger(out / "ledger.sqlite").close()
    base = sqlite3.connect(out / "ledger.sqlite")
    base.execute("PRAGMA user_version = 99")
    base.close()
    one_sentence(batch("--resume"), "version 99")


def test_another_job_and_a_job_at_work(batch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grounding, "_engine", lambda name: lambda job, ledger, report: None)
    pairs = write_pairs(tmp_path / "pairs.jsonl", GOOD)
    batch()
    one_sentence(batch("--task", "tvg"), "--resume")
    one_sentence(batch("--resume", "--task", "tvg"), "task was not given and is tvg")
    one_sentence(batch("--resume", "--model", "pico-base"), "model was spacevllm-pico and is pico-base")
    write_pairs(pairs, GOOD, GOOD | {"id": "more"})
    one_sentence(batch("--resume"), "the file of pairs has changed")
    with grounding.open_ledger(tmp_path / "out/ledger.sqlite"):
        one_sentence(batch("--resume"), "another run is at work")


def test_a_kill_while_the_ledger_was_filled_leaves_nothing_in_the_way(
    batch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grounding, "_engine", lambda name: lambda job, ledger, report: None)
    write_pairs(tmp_path / "pairs.jsonl", GOOD)
    (tmp_path / "out").mkdir()
    grounding.open_ledger(tmp_path / "out/ledger.sqlite").close()  # begun, not filled
    _, out, _ = batch()
    assert "1 pairs of 1 videos" in out


def test_a_full_disk_stops_the_job_and_resume_goes_on(
    batch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grounding, "_engine", lambda name: inline)
    video_files.write(tmp_path / "clip.mp4", 8)
    write_pairs(tmp_path / "pairs.jsonl", GOOD)

    def full(*_: Any, **__: Any) -> None:
        raise OutputError(f"cannot write the video: {os.strerror(28)}")

    with monkeypatch.context() as patched:
        patched.setattr("tubelet.view.write_overlay", full)
        one_sentence(batch("--overlays", "video"), "No space left", "--resume")
    assert not (tmp_path / "out/predictions.jsonl").exists()
    (tmp_path / "out/predictions.jsonl").mkdir()  # and one where the last step cannot write
    one_sentence(batch("--overlays", "video", "--resume"), "cannot write", "--resume")
    (tmp_path / "out/predictions.jsonl").rmdir()
    code, out, _ = batch("--overlays", "video", "--resume")
    assert code == 0 and "1 answered" in out
    assert not list((tmp_path / "out").glob(".*"))


def test_flags_yaml_and_settings_are_the_same_fields(
    batch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grounding, "_engine", lambda name: lambda job, ledger, report: None)
    write_pairs(tmp_path / "pairs.jsonl", GOOD)
    config = tmp_path / "batch.yaml"
    config.write_text("workers: 3\ntask: tvg\norder: video\n")
    batch("--config", config, "--set", "order=input", "--workers", 2)
    card = json.loads((tmp_path / "out/job.json").read_text())["settings"]
    assert (card["workers"], card["task"], card["order"]) == (2, "tvg", "input")

    config.write_text(
        "method: zero-shot\nphrases: [dog]\npreset: paper\nprovider: {fps: 2, low: 5}\nzero_shot: {k: 3, token: raw}\n"
    )
    more = ("--set", "zero_shot.k=4", "--provider-set", "fps=3", "--phrase", "cat", "--phrase", "red ball")
    batch("--config", config, *more, "--quality", "--max-frame-tokens", 9, out=tmp_path / "zero-shot")
    card = json.loads((tmp_path / "zero-shot/job.json").read_text())["settings"]
    assert card["zero_shot"] == {"k": 4, "token": "raw"} and card["provider"] == {"fps": 3, "low": 5}
    assert card["phrases"] == ["cat", "red ball"] and card["preset"] == "paper" and card["quality"] is True
    assert card["max_frame_tokens"] == 9 and card["model"] == "pico-base"
