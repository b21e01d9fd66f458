"""Numbers of reports: calibration by hand, and clear errors."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from tubelet.benchmarks.report.calibration import ece
from tubelet.benchmarks.report.collect import collect, differences
from tubelet.benchmarks.run_card import data_hash, make_card
from tubelet.benchmarks.run_folder import Line, RunWriter, create_run
from tubelet.benchmarks.run_truth import VideoFacts
from tubelet.datasets.record import Record, VideoRef
from tubelet.errors import DataError
from tubelet.tube import Prediction, Span, Tube


def test_ece_by_hand() -> None:
    # bin 0.9-1: mean 0.95, right 1/2, gap 0.45 of 2/4; bin 0.1-0.2: gap 0.15 of 1/4; 1.0 shares the last bin
    assert ece([0.9, 1.0, 0.15, 0.55], [1, 0, 0, 1]) == pytest.approx((2 * 0.45 + 0.15 + 0.45) / 4)
    assert math.isnan(ece([], []))
    with pytest.raises(DataError, match="lie in"):
        ece([1.2], [1])


def test_a_report_needs_runs() -> None:
    with pytest.raises(DataError, match="at least one"):
        collect([])


def a_run(folder: Path, ends: list[float | None], ids: str = "abcd", revision: str = "1") -> Path:
    """Span queries that are true for 0-4 s; each is answered with 0 to an end, or has failed (None)."""
    records = [
        Record("toy", "test", i, "tvg", "a dog", VideoRef("v", ("v.mp4",), duration_s=8.0), (Span(0, 4),))
        for i in ids
    ]
    card = make_card(
        benchmark="toy", split="test", task="tvg", model="m", revision=revision,
        data_hash=data_hash(records), n=len(records),
    )  # fmt: skip
    create_run(folder, card, records, range(len(records)))
    with RunWriter(folder) as writer:
        writer.add_video(VideoFacts("v.mp4", "v.mp4", np.arange(80) / 10, Fraction(10), 8.0, 64, 48))
        for i, end in zip(ids, ends, strict=False):
            tubes = () if end is None else (Tube(Span(0, end)),)
            failed = "no frame" if end is None else None
            writer.add_lines([Line(i, Prediction("v", "a dog", "tvg", tubes, failure=failed))])
    return folder


def test_scores_and_paired_differences(tmp_path: Path) -> None:
    a, b = collect(
        [a_run(tmp_path / "a", [4, 4, 2, None]), a_run(tmp_path / "b", [2, 8, 2, 4], revision="2")]
    )
    part = a.scores.parts["tvg"]
    assert part.metrics["mIoU"].mean == pytest.approx((1 + 1 + 0.5 + 0) / 4)
    assert dict(part.failures) == {"d": "no frame"} and part.n == 4
    found = differences(a, b, "tvg")["tIoU"]
    assert found.mean == pytest.approx((0.5 + 0.5 + 0 - 1) / 4) and found.low <= found.mean <= found.high


def test_runs_that_cannot_be_reported(tmp_path: Path) -> None:
    good = a_run(tmp_path / "a", [4, 4, 4, 4])
    with pytest.raises(DataError, match="no predictions"):
        collect([a_run(tmp_path / "b", [])])
    with pytest.raises(DataError, match="different queries, such as 'd'"):
        collect([good, a_run(tmp_path / "c", [4, 4, 4, 4], "abce")])
