"""Reports: every query counts, failures are listed, differences are paired, protocols convert our own types."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from metrics_synthetic import make

from tubelet.errors import DataError
from tubelet.metrics.evaluate import by_group, compare, evaluate
from tubelet.metrics.grounding import score_many, score_tube, siou
from tubelet.metrics.protocols import PROTOCOLS
from tubelet.metrics.truth import Truth
from tubelet.tube import Prediction, Span, Tube

FPS, N = 10, 60
TIMES = np.arange(N) / FPS


def truth(first: int, past: int, box: tuple[float, ...] = (0.2, 0.2, 0.6, 0.6)) -> Truth:
    """True on frames first..past - 1 of 60 at 10 fps."""
    inside = TIMES[first:past]
    return Truth(Span(first / FPS, past / FPS), TIMES, inside, np.tile(box, (len(inside), 1)))


def answer(*tubes: Tube, **more: object) -> Prediction:
    return Prediction("clip.mp4", "a query", "stvg", tubes=tubes, **more)  # type: ignore[arg-type]


def tube(first: int, past: int, box: tuple[float, ...] = (0.2, 0.2, 0.6, 0.6)) -> Tube:
    times = TIMES[first:past]
    return Tube(Span(first / FPS, past / FPS), times, np.tile(box, (len(times), 1)))


def test_everything_counts_and_is_named() -> None:
    truths = {
        "good": truth(10, 30),
        "failed": truth(10, 30),
        "missing": truth(10, 30),
        "rejected": truth(10, 30),
        "absent": replace(truth(10, 30), span=None),
    }
    predictions = {
        "good": answer(tube(10, 30)),
        "failed": answer(failure="the decoder gave up"),
        "rejected": answer(),
        "absent": answer(),
        "stray": answer(tube(0, 3)),
    }
    report = evaluate(predictions, truths)
    assert report.n == 5 and report.ids == ("good", "failed", "missing", "rejected")
    assert report.failures == {"failed": "the decoder gave up", "missing": "no prediction"}
    assert report.unknown == ("stray",)
    assert report.metrics["m_vIoU"].mean == pytest.approx(1 / 4) and report.metrics["m_vIoU"].n == 4
    assert report.metrics["rejection_balanced_accuracy"].mean == pytest.approx((1 / 4 + 1) / 2)
    written = report.to_dict()
    assert written["n_failed"] == 2 and written["failures"][0]["reason"] == "the decoder gave up"
    assert written["protocol"] == "tubelet" and written["metrics"]["m_tIoU"]["n"] == 4


def test_order_of_the_files_does_not_matter() -> None:
    predictions, truths = make()
    backwards = evaluate(dict(reversed(predictions.items())), truths)
    assert backwards.to_dict() == evaluate(predictions, truths).to_dict()


@pytest.mark.parametrize(
    ("name", "tiou", "viou"),
    [
        ("tubelet", 1, 1),
        ("tubedetr", 1, 1),
        ("stcat", 19 / 20, 19 / 20),  # 20 true frames, one lost: the inclusive end is read as exclusive
        ("cgstvg", 19 / 20, 19 / 20),
        ("cgstvg_vidstg", 1, 1),
        ("hcstvg_official", 1, 1),
        ("zeroshot", 1, 1),
        ("llavast", 1, 1),
        ("stvg_r1", 1, 20 / 21),  # frames 10..30, both included: frame 30 has no true box
        ("vue_stg", 1, 1),
        ("bostvg", 19 / 20, 19 / 20),
        ("doro", 1, 1),
    ],
)
def test_a_perfect_answer_under_every_protocol(name: str, tiou: float, viou: float) -> None:
    report = evaluate({"q": answer(tube(10, 30))}, {"q": truth(10, 30)}, name)
    assert not report.failures
    assert report.metrics["m_tIoU"].mean == pytest.approx(tiou)
    assert report.metrics["m_vIoU"].mean == pytest.approx(viou)


def test_every_protocol_reports_what_it_says() -> None:
    predictions, truths = make()
    for name, chosen in PROTOCOLS.items():
        report = evaluate(predictions, truths, name)
        assert set(report.values) == set(chosen.metrics), name
        assert report.n == len(truths) and report.protocol == name
        for metric in chosen.hits:
            for limit in chosen.thresholds:
                assert 0 <= report.metrics[f"{metric}@{limit:g}"].mean <= 1
        for values in report.values.values():
            assert np.nanmin(values) >= 0 and np.nanmax(values) <= 1 + 1e-9


def test_undefined_values_are_counted_in_a_note() -> None:
    report = evaluate({"a": answer(tube(10, 30)), "b": answer()}, {k: truth(10, 30) for k in "ab"}, "vue_stg")
    assert report.metrics["tPrecision"].n == 1 and report.metrics["m_tIoU"].n == 2
    assert "tPrecision is undefined for 1 queries, which are not in its mean" in report.notes


def test_a_box_outside_the_span_is_held_for_gt_viou_only() -> None:
    # given frames 20..29 of the true 10..29: half of the tIoU and vIoU; gt_vIoU asks for all 20 frames
    late = {"q": answer(tube(20, 30))}
    for name in ("stcat", "cgstvg", "tubedetr"):
        report = evaluate(late, {"q": truth(10, 30)}, name)
        assert not report.failures and report.metrics["m_gt_vIoU"].mean == pytest.approx(1)
        assert report.metrics["m_vIoU"].mean == pytest.approx(9 / 20 if name != "tubedetr" else 0.5)
    ours = evaluate(late, {"q": truth(10, 30)})
    assert ours.metrics["m_gt_vIoU"].mean == pytest.approx(0.5) and not ours.notes


def test_vstar_reads_our_types_by_the_second() -> None:
    # true in seconds 1, 2; the answer holds second 2 only, with the half box
    half = (0.2, 0.2, 0.6, 0.4)
    report = evaluate({"q": answer(tube(15, 30, half))}, {"q": truth(10, 30)}, "vstar")
    assert report.metrics["m_tIoU"].mean == pytest.approx(15 / 20)
    assert report.metrics["mIoU"].mean == pytest.approx(0.25)
    assert report.metrics["AP@0.5"].mean == pytest.approx(0.5)


def test_two_reports_are_compared_query_by_query() -> None:
    predictions, truths = make()
    worse = {
        key: replace(p, tubes=(replace(p.tubes[0], boxes_xyxy=p.tubes[0].boxes_xyxy * 0.97),))
        if p.tubes
        else p
        for key, p in predictions.items()
    }
    a, b = evaluate(predictions, truths), evaluate(worse, dict(reversed(truths.items())))
    difference = compare(a, b)
    assert difference["tIoU"].mean == 0 == difference["tIoU"].high
    assert 0 < difference["vIoU"].low < difference["vIoU"].mean < difference["vIoU"].high
    with pytest.raises(DataError, match="different queries"):
        compare(a, evaluate(predictions, {k: v for k, v in truths.items() if k != "q000"}))


def test_groups_add_up() -> None:
    predictions, truths = make()
    report = evaluate(predictions, truths)
    groups = by_group(report, {k: "declarative" if i % 3 else "interrogative" for i, k in enumerate(truths)})
    assert set(groups) == {"declarative", "interrogative"}
    total = sum(g["m_vIoU"].mean * g["m_vIoU"].n for g in groups.values())
    assert total / len(truths) == pytest.approx(report.metrics["m_vIoU"].mean)


def test_several_targets() -> None:
    pytest.importorskip("scipy")
    here, there = (0.2, 0.2, 0.6, 0.6), (0.7, 0.7, 0.9, 0.9)
    truths = {"q": [truth(10, 30, here), truth(10, 30, there)]}
    both = {"q": answer(tube(10, 30, there), tube(10, 30, here))}
    one = {"q": answer(tube(10, 30, here))}
    assert evaluate(both, truths).metrics["m_vIoU"].mean == pytest.approx(1)
    assert evaluate(one, truths).metrics["m_vIoU"].mean == pytest.approx(0.5)
    # per-frame matching averages over the pairs: the missing target is free, the lost last frame is not
    assert evaluate(one, truths, "bostvg").metrics["m_vIoU"].mean == pytest.approx(19 / 20)
    with pytest.raises(DataError, match="one target per query"):
        evaluate(both, truths, "cgstvg")


def test_times_rounded_in_files_lose_no_frame() -> None:
    # 15 fps: frame 10 is shown at 0.666..., written as 0.666667, after the frame itself
    times = np.arange(30) / 15
    rounded = np.round(times, 6)
    box = np.tile([0.1, 0.1, 0.5, 0.5], (10, 1))
    exact = Truth(Span(rounded[10], rounded[20]), times, rounded[10:20], box)
    assert score_tube(Tube(Span(rounded[10], rounded[20]), rounded[10:20], box), exact).viou == pytest.approx(
        1
    )
    for name in ("tubelet", "hcstvg_official", "llavast"):
        got = evaluate(
            {"q": answer(Tube(Span(rounded[10], rounded[20]), rounded[10:20], box))}, {"q": exact}, name
        )
        assert got.metrics["m_vIoU"].mean == pytest.approx(1), name


def test_one_query_at_a_time_is_the_same_as_many() -> None:
    predictions, truths = make()
    keys = list(truths)[:60]
    tubes = [predictions[k].tube for k in keys]
    many = score_many(tubes, [truths[k] for k in keys])
    for row, key in enumerate(keys):
        assert score_tube(tubes[row], truths[key]).viou == many.viou[row]
        assert siou(tubes[row], truths[key]) == many.gt_viou[row]


def test_bad_requests_are_named() -> None:
    with pytest.raises(DataError, match="unknown protocol"):
        evaluate({}, {"q": truth(1, 2)}, "coco")
    with pytest.raises(DataError, match="no truths"):
        evaluate({}, {})
    with pytest.raises(DataError, match="one per query"):
        score_many([None], [])
