"""The toy-world benchmark: exact answers score 1, baselines are where they belong, nothing is dropped."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tubelet.benchmarks.world import baseline, evaluate_world, truth_of
from tubelet.errors import DataError, QueryError, VideoError
from tubelet.tube import Prediction, Span, Tube
from tubelet.world.files import make_world, read_annotations


class Oracle:
    """Answers from the annotations; optionally fails on some videos."""

    name = "oracle"

    def __init__(self, records: Sequence[dict[str, Any]], broken: Sequence[str] = ()) -> None:
        self.by_video = {Path(r["video"]).name: r for r in records}
        self.broken = set(broken)
        self.encoded: list[str] = []

    def encode(self, video: str, window: Span | None = None) -> str:
        name = Path(video).name
        if name in self.broken:
            raise VideoError(f"{name} is broken")
        self.encoded.append(name)
        return name

    def ground_many(self, video, queries, task=None, span=None, span_reader=None) -> list[Prediction]:
        record = self.by_video[video]
        truth = truth_of(record)
        tubes: tuple[Tube, ...] = ()
        if truth.span is not None:
            tubes = (Tube(truth.span, truth.box_times_s, truth.boxes_xyxy, score=1.0),)
        return [Prediction(video, q, task or "stvg", tubes) for q in queries]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    make_world(folder / "data", 24, seed=4, height=96, fps=10)
    return folder


def run_folder(data: Path, tmp_path: Path) -> Path:
    """A fresh run folder on the same videos: the benchmark keeps videos that are there."""
    (tmp_path / "data").symlink_to(data / "data")
    return tmp_path


def test_an_unknown_span_reader_is_refused_before_videos_are_made(tmp_path: Path) -> None:
    with pytest.raises(QueryError, match="span_reader is text, activity or both, got 'words'"):
        evaluate_world(Oracle([]), tmp_path / "run", n=24, span_reader="words")
    assert list(tmp_path.iterdir()) == []


def test_the_truth_scores_one(data: Path, tmp_path: Path) -> None:
    records = read_annotations(data / "data")
    result = evaluate_world(Oracle(records), run_folder(data, tmp_path), n=24, seed=4, height=96, fps=10)
    assert result.n == 24 and result.n_failed == 0
    assert result.metrics["m_tIoU"].mean == pytest.approx(1.0, abs=1e-6)
    # frames of the true span on which the target cannot be seen have no box and count against everyone
    assert result.metrics["m_vIoU"].mean > 0.9
    assert result.metrics["rejection_balanced_accuracy"].mean == 1.0
    report = json.loads((tmp_path / "metrics.json").read_text())
    assert report["n_present"] == result.metrics["m_tIoU"].n < 24


def test_failures_count_as_zero_and_are_listed(data: Path, tmp_path: Path) -> None:
    records = read_annotations(data / "data")
    present = [Path(r["video"]).name for r in records if r["present"]]
    oracle = Oracle(records, broken=present[:3])
    result = evaluate_world(oracle, run_folder(data, tmp_path), n=24, seed=4, height=96, fps=10)
    n = result.metrics["m_tIoU"].n
    assert result.n_failed == 3 and n == len(present)
    assert result.metrics["m_tIoU"].mean == pytest.approx((n - 3) / n)
    report = json.loads((tmp_path / "metrics.json").read_text())
    assert [f["reason"] for f in report["failures"]] == [f"{name} is broken" for name in present[:3]]


def test_a_second_run_asks_only_what_is_missing(data: Path, tmp_path: Path) -> None:
    records = read_annotations(data / "data")
    folder = run_folder(data, tmp_path)
    whole = evaluate_world(Oracle(records), folder, n=24, seed=4, height=96, fps=10)
    lines = (folder / "predictions.jsonl").read_text().splitlines()
    for keep in (1, 7, 24):
        (folder / "predictions.jsonl").write_text("\n".join(lines[:keep]) + "\n" + lines[-1][:40])
        oracle = Oracle(records)
        again = evaluate_world(oracle, folder, n=24, seed=4, height=96, fps=10)
        assert len(oracle.encoded) == 24 - (keep - 1)
        assert again.metrics == whole.metrics
        assert sorted((folder / "predictions.jsonl").read_text().splitlines()) == sorted(lines)


def test_an_untrained_model_is_scored_beside_it(data: Path, tmp_path: Path) -> None:
    records = read_annotations(data / "data")
    broken = Oracle(records, broken=[Path(r["video"]).name for r in records])
    told: list[tuple[int, int]] = []
    result = evaluate_world(
        Oracle(records),
        run_folder(data, tmp_path),
        n=24,
        seed=4,
        height=96,
        fps=10,
        untrained=broken,
        progress=lambda done, total: told.append((done, total)),
    )
    assert list(result.baselines) == ["untrained", "constant_centre", "random_track"]
    assert result.baselines["untrained"]["m_tIoU"].mean == 0.0 and result.n_failed == 0
    assert result.metrics["m_tIoU"].mean == pytest.approx(1.0, abs=1e-6)
    assert len((tmp_path / "untrained.jsonl").read_text().splitlines()) == 25
    assert told[-1] == (48, 48) and told == sorted(told)


def test_baselines_are_between_nothing_and_the_truth(data: Path) -> None:
    records = read_annotations(data / "data")
    centre, track = (baseline(name, records) for name in ("constant_centre", "random_track"))
    assert 0.2 < centre["m_tIoU"].mean < 0.7
    assert centre["m_vIoU"].mean < 0.2
    # a random actor's own track is right about one time in n actors, and then its boxes are exact
    assert 0.1 < track["sIoU"].mean < 0.7
    assert track["sIoU"].mean > centre["sIoU"].mean


def test_other_tasks_and_wrong_ones(data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="stvg"):
        evaluate_world(Oracle([]), tmp_path / "x", task="qa")
    truth = truth_of(next(r for r in read_annotations(data / "data") if not r["present"]))
    assert truth.span is None and len(truth.box_times_s) == 0
    assert np.diff(truth.frame_times_s) == pytest.approx(0.1)


def test_events_are_asked_with_a_box_and_their_captions_are_scored(tmp_path: Path) -> None:
    """elc: start and box are given, never the end; the caption is the tube's label."""
    make_world(tmp_path / "data", 8, seed=4, tasks=("elc",), height=96, fps=10)
    records = read_annotations(tmp_path / "data")
    asked: list[tuple[Span, Any]] = []

    class Teller(Oracle):
        tasks = ("elc",)

        def ground_many(self, video, queries, task=None, span=None, span_reader=None, box_xyxy=None):
            found = super().ground_many(video, queries, task)
            asked.extend(zip(span, box_xyxy, strict=True))
            told = self.by_video[video]["answer"]
            half = " ".join(told.split()[: len(told.split()) // 2]) if len(asked) % 2 else told.upper() + "."
            return [replace(p, tubes=(replace(p.tubes[0], label=half),)) for p in found]

    result = evaluate_world(Teller(records), tmp_path, n=8, seed=4, task="elc", height=96, fps=10)
    assert result.metrics["m_tIoU"].mean == pytest.approx(1.0)
    assert result.metrics["caption_exact"].mean == pytest.approx(0.5)
    assert 0.7 < result.metrics["caption_F1"].mean < 0.9
    for (start, box), record in zip(asked, records, strict=True):
        assert start.start_s == record["span"]["start_s"] and start.duration_s < 0.01
        assert box == record["given_box"]
    with pytest.raises(DataError, match="does not take task elc"):
        evaluate_world(Oracle(records), tmp_path / "other", n=8, seed=4, task="elc", height=96, fps=10)
