"""What a report says in numbers: groups, rejection, calibration, cases; by hand, and equal to `score_run`."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from report_help import BOX, record, tube, write_run

from tubelet.benchmarks.report.breakdown import NOT_OPENED, breakdowns, measure
from tubelet.benchmarks.report.calibration import ece, reliability, wilson
from tubelet.benchmarks.report.cases import FRAMES, Pictures, choose, make_case
from tubelet.benchmarks.report.collect import collect
from tubelet.benchmarks.report.contents import data_of, make_contents, names_of, verdict
from tubelet.benchmarks.report.presence import auroc, calibrations, rejection
from tubelet.benchmarks.report.write import write_report
from tubelet.benchmarks.run_folder import read_run
from tubelet.benchmarks.run_score import score_run
from tubelet.errors import DataError, RecipeError
from tubelet.metrics.bootstrap import Interval, paired_difference
from tubelet.tube import Prediction
from tubelet.video import write_video


def records_of(n: int = 12) -> list:
    """n present queries, one per video, spans of 0.5 to 3 s, boxes that grow; a third as many absent ones."""
    out = [
        record(
            f"q{k}",
            f"v{k}",
            (0.5, 1.0 + 0.2 * (k % 12)),
            (0.1, 0.1, 0.15 + 0.05 * (k % 12), 0.6),
            tags={"kind": ("look", "action")[k % 2], "look_alikes": k % 3},
        )
        for k in range(n)
    ]
    return out + [
        record(f"absent{k}", f"v{k}", None, tags={"kind": "absent_look"}) for k in range(max(1, n // 3))
    ]


def good_and_bad(records: list) -> dict:
    """Every second present query exactly right and sure, the others late and unsure; absent ones rejected but one."""
    out = {}
    for k, r in enumerate(records):
        if not r.present:
            out[r.id] = ((tube(0, 1, BOX, 0.9),), 0.8) if r.id == "absent0" else ((), 0.1)
        elif k % 2:
            out[r.id] = ((tube(2.0, 3.9, BOX, 0.3),), 0.6)
        else:
            box = r.targets[0].boxes_xyxy[0]
            out[r.id] = ((tube(r.spans[0].start_s, r.spans[0].end_s, box, 0.9),), 0.95)
    return out


def test_groups_cover_every_present_query_once(tmp_path: Path) -> None:
    records = records_of()
    runs = collect([write_run(tmp_path / "a", records, good_and_bad(records))])
    found = {b.title: b.groups for b in breakdowns(runs, "stvg")}
    assert list(found)[:4] == ["Span length", "Share of the video", "Box size", "Look-alikes"]
    present = {r.id for r in records if r.present}
    for title, groups in found.items():
        ids = [key for members in groups.values() for key in members]
        assert len(ids) == len(set(ids)) and set(ids) == present, title
    assert found["Span length"]["under 1 s"] == ("q0", "q1", "q2")
    assert found["Look-alikes"]["2"] == ("q2", "q5", "q8", "q11")
    assert "absent_look" not in found["Question type (kind)"]


def test_measures_of_a_query_by_hand(tmp_path: Path) -> None:
    still = record("a", "v0", (1.0, 3.0))
    run = read_run(write_run(tmp_path / "b", [still], {"a": ((), None)}))
    found = measure(still, run.facts(still))
    assert (found.span_s, found.share, found.video_s) == (2.0, 0.5, 4.0)
    assert found.area == pytest.approx(0.16) and found.speed == 0.0
    assert measure(still, None).opened is False


def test_slow_and_fast_things_are_groups_of_the_report(tmp_path: Path) -> None:
    """Half of the things jump by 0.2 of the width each frame, half stand still; the fast ones are missed."""
    records, answers = [], {}
    for k in range(8):
        still = record(f"q{k}", f"v{k}", (1.0, 3.0))
        (target,) = still.targets
        boxes = np.array(target.boxes_xyxy)
        if k % 2:
            boxes[:, [0, 2]] += 0.2 * (np.arange(len(boxes)) % 2)[:, None]
        records.append(replace(still, targets=(replace(target, boxes_xyxy=boxes),)))
        answers[f"q{k}"] = ((), 0.1) if k % 2 else ((tube(1.0, 3.0, BOX),), 0.9)
    folder = write_run(tmp_path / "a", records, answers)
    task = make_contents([folder]).tasks[0]
    (row,) = [r for r in task.rows if r.breakdown.title == "Motion"]
    slow, fast = row.breakdown.groups.values()
    assert slow == ("q0", "q2", "q4", "q6") and fast == ("q1", "q3", "q5", "q7")
    means = next(m for c, m in zip(row.columns, row.means, strict=True) if c == "vIoU")
    assert [i.mean for i in means.values()] == [1.0, 0.0]
    write_report([folder], tmp_path / "out")
    for name in ("report.html", "report.md"):
        assert "Motion" in (tmp_path / "out" / name).read_text(encoding="utf-8")


def test_motion_is_the_path_in_diagonals_per_second(tmp_path: Path) -> None:
    from tubelet.benchmarks.report.breakdown import speed_of
    from tubelet.metrics.truth import Truth
    from tubelet.tube import Span

    times = np.array([0.0, 1.0, 2.0])
    boxes = np.array([[0.0, 0.0, 0.2, 0.2], [0.3, 0.4, 0.5, 0.6], [0.0, 0.0, 0.2, 0.2]])
    truth = Truth(Span(0, 2), times, times, boxes)
    # 30 and 40 pixels there and back on a picture of 100 x 100: 50 pixels a second
    assert speed_of(truth, 100, 100) == pytest.approx(50 / np.hypot(100, 100))
    assert speed_of(Truth(Span(0, 2), times, times[:1], boxes[:1]), 100, 100) is None


def test_videos_that_nobody_opened_are_a_group_of_their_own(tmp_path: Path) -> None:
    records = records_of(6)
    answers = good_and_bad(records)
    answers |= {
        r.id: Prediction("v0", r.query, "stvg", failure="missing") for r in records if r.video.id == "v0"
    }
    runs = collect([write_run(tmp_path / "a", records, answers, opened=[f"v{k}" for k in range(1, 6)])])
    found = {b.title: b.groups for b in breakdowns(runs, "stvg")}
    assert found["Span length"][NOT_OPENED] == ("q0",) and found["Box size"][NOT_OPENED] == ("q0",)
    assert "q0" in found["Look-alikes"]["0"], "tags are known without the video"
    # another run has opened it: then it is known
    other = write_run(tmp_path / "b", records, good_and_bad(records), model="other")
    both = collect([tmp_path / "a", other])
    assert all(NOT_OPENED not in b.groups for b in breakdowns(both, "stvg"))


def test_numbers_of_groups_are_those_of_score_run(tmp_path: Path) -> None:
    records = records_of(24)
    folder = write_run(tmp_path / "a", records, good_and_bad(records))
    part = score_run(read_run(folder)).parts["stvg"]
    task = make_contents([folder]).tasks[0]
    assert task.parts[0].metrics == part.metrics and task.headline == "vIoU"
    rows = next(r for r in task.rows if r.breakdown.title == "Question type (kind)")
    for column, means in zip(rows.columns, rows.means, strict=True):
        for kind in ("look", "action"):
            assert means[kind] == part.groups["kind"][kind][column]


def test_differences_are_paired_and_against_the_first(tmp_path: Path) -> None:
    records = records_of(24)
    worse = {r.id: ((), 0.2) for r in records}
    a = write_run(tmp_path / "a", records, good_and_bad(records), model="good")
    b = write_run(tmp_path / "b", records, worse, model="nothing")
    task = make_contents([a, b]).tasks[0]
    one, two = (score_run(read_run(f)).parts["stvg"].values["vIoU"] for f in (a, b))
    expected = paired_difference([two[k] for k in one], list(one.values()))
    assert task.differences[0]["vIoU"] == expected and expected.high < 0
    assert verdict(expected) == "worse" and verdict(Interval(1, 1, 1, 3)) == ""
    rows = next(r for r in task.rows if r.breakdown.title == "Look-alikes")
    for label, ids in rows.breakdown.groups.items():
        assert rows.differences[0][label].mean == pytest.approx(np.mean([two[k] - one[k] for k in ids]))


def test_rejection_by_hand(tmp_path: Path) -> None:
    records = records_of(6)
    answers = good_and_bad(records)
    answers["q1"] = ((), 0.3)
    answers["absent1"] = Prediction("v1", "x", "stvg", failure="out of memory")
    (run,) = collect([write_run(tmp_path / "a", records, answers)])
    found = rejection(run, "stvg")
    assert found is not None
    assert (found.found.k, found.found.n, found.rejected.k, found.rejected.n) == (5, 6, 1, 2)
    assert (found.failed_present, found.failed_absent) == (0, 1)
    # confidences: present .95 .3 .95 .6 .95 .6, absent .8: three of six pairs are in order
    assert found.auroc is not None and found.auroc.mean == pytest.approx(0.5)
    assert found.roc is not None and found.roc[0].tolist() == [0, 0] and found.roc[-1].tolist() == [1, 1]
    assert (np.diff(found.roc, axis=0) >= 0).all()
    metric = run.scores.parts["stvg"].metrics["rejection_balanced_accuracy"]
    assert (found.found.interval.mean + found.rejected.interval.mean) / 2 == pytest.approx(metric.mean)


def test_auroc_and_wilson() -> None:
    assert auroc(np.array([0.9, 0.5]), np.array([0.5, 0.1])) == pytest.approx((1 + 1 + 0.5 + 1) / 4)
    low, high = wilson(0.5, 10)
    assert (low, high) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert wilson(0.0, 5)[0] == pytest.approx(0.0, abs=1e-12) and wilson(1.0, 5) == pytest.approx(
        (0.5655, 1.0), abs=1e-4
    )


def test_reliability_bins_agree_with_the_ece() -> None:
    rng = np.random.default_rng(0)
    said = rng.random(300)
    right = (rng.random(300) < said**2).astype(float)
    bins = reliability(said, right)
    assert sum(b.n for b in bins) == 300 and bins[0].lo == 0.0 and bins[-1].hi == 1.0
    assert sum(abs(b.said - b.right) * b.n for b in bins) / 300 == pytest.approx(ece(said, right))
    assert all(b.right_low <= b.right <= b.right_high and b.lo <= b.said <= b.hi for b in bins)
    assert reliability([], []) == ()


def test_calibration_of_presence_and_of_tubes(tmp_path: Path) -> None:
    records = records_of(6)
    (run,) = collect([write_run(tmp_path / "a", records, good_and_bad(records))])
    there, right = calibrations(run, "stvg", "vIoU")
    said = [0.95, 0.6] * 3 + [0.8, 0.1]
    assert there.ece == pytest.approx(ece(said, [1] * 6 + [0, 0])) and there.n == there.n_asked == 8
    assert right.n == 6 and right.base_rate == 0.5
    assert right.ece == pytest.approx(ece([0.9, 0.3] * 3, [1, 0] * 3))


def test_cases_are_the_worst_the_best_and_the_false_alarms(tmp_path: Path) -> None:
    records = records_of(12)
    runs = collect([write_run(tmp_path / "a", records, good_and_bad(records))])
    groups = {title: [r.id for r in found] for title, _, found in choose(runs, "stvg", "vIoU", 3)}
    assert list(groups) == ["Worst cases", "False alarms", "Best cases"]
    values = runs[0].scores.parts["stvg"].values["vIoU"]
    assert max(values[k] for k in groups["Worst cases"]) <= min(values[k] for k in groups["Best cases"])
    assert min(values.values()) == values[groups["Worst cases"][0]]
    assert groups["False alarms"] == ["absent0"]
    other = write_run(tmp_path / "b", records, {r.id: ((), 0.2) for r in records}, model="other")
    titles = [t for t, _, _ in choose(collect([tmp_path / "a", other]), "stvg", "vIoU", 2)]
    assert titles[0] == "Largest losses" and "Largest gains" not in titles


def test_frames_show_truth_and_prediction(tmp_path: Path) -> None:
    """The prediction's colour is where its box is, and nowhere in a frame outside its span."""
    records = [record("q", "v0", (1.0, 2.0), (0.1, 0.1, 0.4, 0.6))]
    folder = write_run(tmp_path / "a", records, {"q": ((tube(1.5, 3.0, (0.5, 0.3, 0.9, 0.9)),), 0.9)})
    (folder / "data" / "videos").mkdir(parents=True)
    write_video(folder / "data" / "videos" / "v0.mp4", np.full((40, 64, 96, 3), 90, np.uint8), 10)
    runs = collect([folder])
    assert data_of(runs) == folder / "data"
    case = make_case(runs, records[0], "vIoU", Pictures(folder / "data"))
    assert case.missing is None and len(case.frames) == FRAMES
    for frame in case.frames:
        pixels = np.asarray(Image.open(io.BytesIO(frame.jpeg)).convert("RGB")).astype(int)
        orange = (pixels[:, :, 0] > 180) & (pixels[:, :, 2] < 110)
        assert orange.any() == frame.predicted[0]
        if frame.predicted[0]:
            rows, columns = np.nonzero(orange)
            assert columns.min() >= 0.45 * pixels.shape[1] and rows.min() >= 0.2 * pixels.shape[0]
        bright = (pixels.min(axis=2) > 190)[:, : int(0.44 * pixels.shape[1])]
        assert bright.any() == frame.true
    both = [f for f in case.frames if f.true and f.predicted[0]]
    assert both and all(f.iou[0] is not None and f.iou[0] == 0.0 for f in both)
    assert all(f.iou[0] is None for f in case.frames if not f.predicted[0])


def test_cases_without_their_video_say_why(tmp_path: Path) -> None:
    records = records_of(3)
    runs = collect([write_run(tmp_path / "a", records, good_and_bad(records))])
    assert data_of(runs) is None
    assert "--data" in str(make_case(runs, records[0], "vIoU", Pictures(None)).missing)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "videos/v0.mp4 is not below" in str(make_case(runs, records[0], "vIoU", Pictures(empty)).missing)
    (empty / "videos").mkdir()
    (empty / "videos" / "v0.mp4").write_bytes(b"no video at all")
    case = make_case(runs, records[0], "vIoU", Pictures(empty))
    assert case.missing and not case.frames and str(tmp_path) not in case.missing


def test_a_run_cannot_point_outside_the_data_folder(tmp_path: Path) -> None:
    secret = tmp_path / "secret.mp4"
    write_video(secret, np.zeros((40, 32, 48, 3), np.uint8), 10)
    records = records_of(1)
    folder = write_run(tmp_path / "a", records, good_and_bad(records))
    (tmp_path / "data").mkdir()
    for told in ("../secret.mp4", str(secret)):
        text = (folder / "videos.jsonl").read_text().replace('"file": "videos/v0.mp4"', f'"file": "{told}"')
        (folder / "videos.jsonl").write_text(text)
        runs = collect([folder])
        assert runs[0].run.facts(records[0]).file == told
        assert Pictures(tmp_path / "data").find(records[0], runs[0].run.facts(records[0])) is None
        (folder / "videos.jsonl").write_text(text.replace(told, "videos/v0.mp4"))


def test_names_tell_runs_apart(tmp_path: Path) -> None:
    records = records_of(2)
    answers = good_and_bad(records)
    a, b = (write_run(tmp_path / name, records, answers) for name in "ab")
    c = write_run(tmp_path / "c", records, answers, revision="2")
    assert names_of(collect([a])) == ("m",)
    assert names_of(collect([a, c])) == ("m @1", "m @2")
    assert names_of(collect([a, b])) == ("m (a)", "m (b)")
    with pytest.raises(DataError, match="given twice"):
        make_contents([a, a])
    with pytest.raises(DataError, match="is not a folder"):
        make_contents([a], data=tmp_path / "nowhere")
    with pytest.raises(RecipeError, match="at least 0"):
        make_contents([a], cases=-1)
