"""`ground_pairs` and `tubelet batch` on real toy-world videos: answers, grouping, files, kill and resume."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import tubelet
from tubelet.cli import batching
from tubelet.errors import DataError, OutputError
from tubelet.scale import grounding
from tubelet.scale.grounding import BatchSettings, ground_pairs
from tubelet.scale.job import Job, JobProgress, Meter, Report, make_step, reason_of, run_step
from tubelet.scale.ledger import Ledger
from tubelet.tube import Prediction
from tubelet.world.files import make_world

SENTENCES = ("the red circle", "something spins", "the blue square moves left")


def inline(job: Job, ledger: Ledger, report: Report | None = None) -> None:
    """An engine in this process: the same steps and the same ledger, no workers to start."""
    stage, meter = job.stages[0], Meter(ledger, report, every_s=0.0)
    step = make_step(stage)
    while items := ledger.claim(1, job.lease_s):
        for item in items:
            try:
                ledger.finish(item.seq, run_step(stage, step, item.key, item.payloads))
                meter.add(done=1)
            except OutputError:
                raise
            except Exception as error:  # noqa: BLE001  as the engines do
                meter.add(aside=int(ledger.fail(item.seq, reason_of(stage, error), job.max_tries)))


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grounding, "_engine", lambda name: inline)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    make_world(folder, 3, seed=11, height=64, fps=4)
    for index, path in enumerate(sorted(folder.glob("videos/*.mp4"))):
        path.rename(folder / f"{index}.mp4")
    return folder


def write_pairs(path: Path, *lines: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def asked(*videos: object) -> list[dict[str, Any]]:
    """Sentence by sentence through all videos: pairs of a video are far from each other."""
    return [
        {"id": f"{k}-{v}", "video": str(video), "sentence": sentence}
        for k, sentence in enumerate(SENTENCES)
        for v, video in enumerate(videos)
    ]


def read(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]


def without_timings(prediction: Prediction) -> dict[str, Any]:
    return prediction.to_dict() | {"timings_s": {}, "video": ""}


def equal(a: Any, b: Any) -> bool:
    """The same JSON; numbers within what packing several questions into one pass does to float32."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, float) and isinstance(b, float):
        return abs(a - b) < 2e-5
    return bool(a == b)


def test_answers_equal_asking_one_by_one_and_each_video_is_encoded_once(
    in_process: None, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tubelet.spacevllm.grounder import SpaceVLLMGrounder

    lines = asked("0.mp4", world / "1.mp4")
    lines += [
        {
            "id": "again",
            "video": str(world / "0.mp4"),
            "sentence": "which star spins?",
        },  # the same file: absolute
        {"id": "dots", "video": "../" + world.name + "/1.mp4", "sentence": "something blinks", "task": "tvg"},
        {
            "id": "when",
            "video": "0.mp4",
            "sentence": "the red circle",
            "task": "svg",
            "start_s": 1,
            "end_s": 2,
        },
    ]
    shuffled = lines[::2] + lines[1::2]
    pairs = write_pairs(world / "equal.jsonl", *shuffled)
    encoded: Counter[str] = Counter()
    encode = SpaceVLLMGrounder.encode

    def count(self: Any, video: Any, window: Any = None) -> Any:
        encoded[video.path.name] += 1
        return encode(self, video, window)

    told: list[JobProgress] = []
    with monkeypatch.context() as patched:
        patched.setattr(SpaceVLLMGrounder, "encode", count)
        result = ground_pairs(pairs, tmp_path / "out", report=told.append)
    assert encoded == {"0.mp4": 1, "1.mp4": 1}
    assert result.ok and (result.videos, result.pairs, result.answered) == (2, 9, 9)
    assert (told[-1].done, told[-1].total) == (2, 2)

    found = read(tmp_path / "out")
    assert [line["id"] for line in found] == [line["id"] for line in shuffled]
    grounder = tubelet.load("spacevllm-pico")
    for line, pair in zip(found, shuffled, strict=True):
        span = tubelet.Span(1, 2) if "start_s" in pair else None
        one = grounder.ground(world / pair["video"], pair["sentence"], pair.get("task"), span)
        got = Prediction.from_dict(line["prediction"])
        assert equal(without_timings(got), without_timings(one))
        assert got.video == pair["video"] and line["prediction"]["timings_s"] == {}
    card = json.loads((tmp_path / "out/job.json").read_text())
    assert card["revision"] == grounder.revision and card["counts"]["pairs"] == 9


def test_windows_are_encoded_apart_and_one_outside_the_video_fails_alone(
    in_process: None, world: Path, tmp_path: Path
) -> None:
    pairs = write_pairs(
        tmp_path / "pairs.jsonl",
        {"id": "part", "video": "0.mp4", "sentence": "something spins", "start_s": 1.0, "end_s": 3.0},
        {"id": "outside", "video": "0.mp4", "sentence": "something spins", "start_s": 900, "end_s": 901},
        {"id": "all", "video": "0.mp4", "sentence": "something spins"},
    )
    result = ground_pairs(pairs, tmp_path / "out", BatchSettings(videos=str(world)))
    part, outside, whole = (line["prediction"] for line in read(tmp_path / "out"))
    assert part["grid"]["times_s"][0] >= 1.0 and part["grid"]["times_s"][-1] < 3.0
    assert whole["grid"]["times_s"][0] < 1.0 and whole["failure"] is None
    assert "900-901 s" in outside["failure"] and result.failed == 1 and not result.ok


def test_order_by_video_and_ids_of_pairs_without_one(in_process: None, world: Path, tmp_path: Path) -> None:
    lines = [{k: v for k, v in line.items() if k != "id"} for line in asked("0.mp4", "1.mp4")]
    pairs = write_pairs(world / "noid.jsonl", *lines)
    ground_pairs(pairs, tmp_path / "a", BatchSettings(order="video"))
    ground_pairs(pairs, tmp_path / "b")
    by_video, by_line = read(tmp_path / "a"), read(tmp_path / "b")
    assert [line["prediction"]["video"] for line in by_video] == ["0.mp4"] * 3 + ["1.mp4"] * 3
    assert [line["prediction"]["video"] for line in by_line] == ["0.mp4", "1.mp4"] * 3
    assert len({line["id"] for line in by_line}) == 6
    key = lambda line: line["id"]  # noqa: E731
    assert sorted(by_video, key=key) == sorted(by_line, key=key)

    moved = tmp_path / "elsewhere"  # the digest does not depend on where the folder is
    shutil.copytree(world, moved)
    ground_pairs(moved / "noid.jsonl", tmp_path / "c")
    assert [line["id"] for line in read(tmp_path / "c")] == [line["id"] for line in by_line]


def test_overlays_of_videos_and_of_questions(in_process: None, world: Path, tmp_path: Path) -> None:
    lines = [
        {"id": "a/../b", "video": "0.mp4", "sentence": "something spins"},
        {"id": "plain", "video": "0.mp4", "sentence": "the red circle"},
    ]
    pairs = write_pairs(world / "drawn.jsonl", *lines)
    ground_pairs(pairs, tmp_path / "v", BatchSettings(overlays="video"))
    ground_pairs(pairs, tmp_path / "q", BatchSettings(overlays="question"))
    (of_video,) = {line["overlay"] for line in read(tmp_path / "v")}
    of_questions = [line["overlay"] for line in read(tmp_path / "q")]
    assert of_questions[1] == "overlays/plain.mp4" and len(set(of_questions)) == 2
    n = tubelet.open_video(world / "0.mp4").n_frames
    assert tubelet.open_video(tmp_path / "v" / of_video).n_frames == n
    for name in of_questions:
        assert (tmp_path / "q" / name).parent == tmp_path / "q/overlays"
        assert tubelet.open_video(tmp_path / "q" / name).n_frames == n


def test_killed_and_resumed_is_byte_identical(
    in_process: None, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    videos = []
    for k in range(8):  # eight different files
        videos.append(world / f"copy{k}.mp4")
        shutil.copy(world / f"{k % 3}.mp4", videos[-1])
    missing = {"id": "gone", "video": "gone.mp4", "sentence": "something spins"}
    pairs = write_pairs(world / "killed.jsonl", *asked(*videos), missing)
    settings = BatchSettings(overlays="video")
    whole = ground_pairs(pairs, tmp_path / "whole", settings)
    monkeypatch.undo()  # from here on with the real engine

    out = tmp_path / "out"
    command = [sys.executable, "-m", "tubelet", "batch", pairs, "--out", out, "--overlays", "video"]
    with (tmp_path / "log").open("w") as log:
        driver = subprocess.Popen(list(map(str, command)), stdout=log, stderr=log, start_new_session=True)
    until = time.monotonic() + 200
    while not list(out.glob("overlays/*.mp4")):
        assert driver.poll() is None and time.monotonic() < until, (tmp_path / "log").read_text()
        time.sleep(0.02)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    assert not (out / "predictions.jsonl").exists()  # it was in the middle

    with pytest.raises(DataError, match="--resume"):
        ground_pairs(pairs, out, settings)
    with pytest.raises(DataError, match="overlays was video and is not given"):
        ground_pairs(pairs, out, resume=True)
    two = BatchSettings(overlays="video", workers=2)
    result = ground_pairs(pairs, out, two, resume=True)
    assert (out / "predictions.jsonl").read_bytes() == (tmp_path / "whole/predictions.jsonl").read_bytes()
    assert result.failed == whole.failed == 1 and result.videos_aside == 1
    names = sorted(path.name for path in (out / "overlays").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "whole/overlays").iterdir())
    assert len(names) == 8


def test_interrupted_says_how_to_go_on(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tubelet import cli

    def stop(job: Job, ledger: Ledger, report: Report | None = None) -> None:
        raise KeyboardInterrupt

    pairs = write_pairs(world / "stopped.jsonl", *asked("0.mp4"))
    call = ["tubelet", "batch", str(pairs), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", call)
    monkeypatch.setattr(grounding, "_engine", lambda name: stop)
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 130 and "--resume" in capsys.readouterr().err

    monkeypatch.setattr(sys, "argv", [*call, "--resume"])
    monkeypatch.setattr(grounding, "_engine", lambda name: inline)
    cli_code = 0
    try:
        cli.main()
    except SystemExit as ended:
        cli_code = int(ended.code or 0)
    told = capsys.readouterr()
    assert cli_code == 0 and "3 pairs of 1 videos, 3 answered" in told.out, told


def test_aside_is_tried_again_when_asked(in_process: None, world: Path, tmp_path: Path) -> None:
    pairs = write_pairs(world / "late.jsonl", {"id": "x", "video": "late.mp4", "sentence": "something spins"})
    out = tmp_path / "out"
    assert ground_pairs(pairs, out).failed == 1
    shutil.copy(world / "0.mp4", world / "late.mp4")
    assert ground_pairs(pairs, out, resume=True).failed == 1  # set aside stays set aside
    assert ground_pairs(pairs, out, resume=True, retry_aside=True).ok
    assert read(out)[0]["prediction"]["failure"] is None


def test_the_zero_shot_method_takes_its_options(in_process: None, world: Path, tmp_path: Path) -> None:
    """Tracks of a file per video, tuning, choices: as the same grounder answers alone, and a job of its own."""
    from tubelet.proposals import propose_tracks, save_tracks
    from tubelet.zeroshot.grounder import load_zero_shot

    pairs = write_pairs(world / "zero-shot.jsonl", *asked("0.mp4", "1.mp4")[:3])
    for name in "01":
        save_tracks(propose_tracks("motion", world / f"{name}.mp4"), tmp_path / "tracks" / f"{name}.json")
    settings = BatchSettings(
        method="zero-shot",
        proposals_file=str(tmp_path / "tracks" / "{stem}.json"),
        quality=True,
        zero_shot={"assemble": False, "layers": [-2, -1], "frames": 6},
    )
    result = ground_pairs(pairs, tmp_path / "out", settings)
    assert result.ok and result.answered == 3
    alone = load_zero_shot(
        "pico-base",
        "files",
        {"spatial": True, "temporal": True, "layers": (-2, -1), "frames": 6},
        path=str(tmp_path / "tracks" / "{stem}.json"),
    )
    for line, pair in zip(read(tmp_path / "out"), asked("0.mp4", "1.mp4")[:3], strict=True):
        got = Prediction.from_dict(line["prediction"])
        one = alone.ground(world / pair["video"], pair["sentence"])
        assert equal(without_timings(got), without_timings(one))
        assert got.provenance["proposals"] == "files" and got.provenance["model"] == "pico-base"
    card = json.loads((tmp_path / "out/job.json").read_text())["settings"]
    assert card["zero_shot"]["layers"] == [-2, -1] and card["quality"] is True
    again = ground_pairs(pairs, tmp_path / "out", replace(settings, cache=str(tmp_path / "c")), resume=True)
    assert again.answered == 3  # where tracks are kept decides nothing
    for other in (
        replace(settings, quality=False),
        replace(settings, zero_shot={**settings.zero_shot, "k": 3}),
        replace(settings, proposals_file="", proposals="motion"),
        replace(settings, preset="paper"),
    ):
        with pytest.raises(DataError, match="holds another job"):
            ground_pairs(pairs, tmp_path / "out", other, resume=True)


def test_jobs_of_a_version_that_knew_less_go_on(in_process: None, world: Path, tmp_path: Path) -> None:
    pairs = write_pairs(world / "older.jsonl", *asked("0.mp4")[:1])
    ground_pairs(pairs, tmp_path / "out")
    with grounding.open_ledger(tmp_path / "out" / grounding.LEDGER) as ledger:
        before = json.loads(ledger.meta("identity") or "")
        for name in ("proposals", "phrases", "quality", "zero_shot", "max_frame_tokens"):
            before.pop(name)
        ledger.set_meta("identity", json.dumps(before))
    assert ground_pairs(pairs, tmp_path / "out", resume=True).ok


def test_workers_share_a_cache_of_tracks(in_process: None, world: Path, tmp_path: Path) -> None:
    pairs = write_pairs(world / "cached.jsonl", *asked("0.mp4", "1.mp4")[:4])
    settings = BatchSettings(method="zero-shot", cache=str(tmp_path / "kept"), provider={"fps": 4})
    assert ground_pairs(pairs, tmp_path / "out", settings).ok
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "kept" / "tracks").iterdir()}
    assert len(kept) == 2  # one per video
    assert ground_pairs(pairs, tmp_path / "again", replace(settings, workers=2)).ok
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "kept" / "tracks").iterdir()} == kept
    assert read(tmp_path / "out") == read(tmp_path / "again")


def test_progress_in_words() -> None:
    now = JobProgress(done=3, aside=1, total=10, items_per_s=0.5, left_s=3725.0)
    assert batching.words(now) == "4/10 videos, 0.50/s, 1 set aside, 1:02:05 left"
