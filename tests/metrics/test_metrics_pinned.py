"""What each protocol does with small cases of our own, worked out by hand: no golden file is needed.

The case of the tube tests: 10 frames at 1 frame per second; true frames 2..5, so the true span is [2, 6); every true
box is [0, 0, 10, 10]; predicted boxes are [0, 0, 10, 5] (IoU 50 / 100 = 0.5).
"""

from __future__ import annotations

import numpy as np
import pytest

from tubelet.errors import DataError, ModelError
from tubelet.metrics.answers import (
    charades_span,
    llavast_caption,
    llavast_span,
    refcoco_box,
    stvg_r1_answer,
    vstar_span,
)
from tubelet.metrics.captions import score_captions
from tubelet.metrics.choices import CHOICE_READERS, read_letter, score_choices
from tubelet.metrics.llavast import score_llavast
from tubelet.metrics.moments import average_precision, highlight_ap, score_didemo, score_moments
from tubelet.metrics.protocols import PROTOCOLS, protocol
from tubelet.metrics.ragged import Ragged, Tubes
from tubelet.metrics.referring import recall_of_boxes, score_boxes
from tubelet.metrics.sampling import llavast_frames, sampled_at_rate
from tubelet.metrics.seconds import quantize_ms, score_vstar, score_vue, vue_slices
from tubelet.metrics.stvg_r1 import chosen_boxes, score_stvg_r1
from tubelet.metrics.targets import score_bostvg, score_targets
from tubelet.metrics.tubes import Rules, score_tubes, stated_spans

TRUE_BOX, HALF_BOX = [0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 5.0]


def tube(span: tuple[float, float] | None, frames: list[float], box: list[float]) -> Tubes:
    return Tubes.stack([span], [frames], [[box] * len(frames)])


TRUTH = tube((2, 6), [2, 3, 4, 5], TRUE_BOX)
INCLUSIVE = tube((2, 5), [2, 3, 4, 5], TRUE_BOX)


def scores(
    given: Tubes, truth: Tubes, name: str, grid: list[int] | None = None
) -> tuple[float, float, float]:
    got = score_tubes(given, truth, PROTOCOLS[name].rules, None if grid is None else Ragged.stack([grid]))
    return float(got.tiou[0]), float(got.viou[0]), float(got.gt_viou[0])


def test_hull_formula() -> None:
    # given [4, 8): shared frames 4, 5 of the 6 in [2, 8): tIoU 2/6, vIoU 2 x 0.5 / 6
    # gt_vIoU: boxes on true frames 4 and 5 of four: 2 x 0.5 / 4
    given = tube((4, 8), [4, 5, 6, 7], HALF_BOX)
    got = score_tubes(given, TRUTH)
    assert (got.tiou[0], got.viou[0]) == pytest.approx((2 / 6, 1 / 6))
    assert got.gt_viou[0] == pytest.approx(0.25)
    assert got.siou[0] == pytest.approx(0.5)  # over the two frames that have both boxes


def test_volume_is_not_the_mean_over_frames() -> None:
    # frame 0: boxes of area 100 and 100, shared 100; frame 1: areas 4 and 4, shared 0
    # mean of frames (1 + 0) / 2; volume 100 / (100 + 4 + 4)
    truth = Tubes.stack([(0, 2)], [[0, 1]], [[TRUE_BOX, [0, 0, 2, 2]]])
    given = Tubes.stack([(0, 2)], [[0, 1]], [[TRUE_BOX, [5, 5, 7, 7]]])
    got = score_tubes(given, truth, Rules(volume=True))
    assert got.viou[0] == pytest.approx(0.5)
    assert got.volume_iou is not None and got.volume_iou[0] == pytest.approx(100 / 108)


@pytest.mark.parametrize("name", ["stcat", "cgstvg"])
def test_inclusive_truth_read_as_exclusive_costs_one_frame(name: str) -> None:
    # truth stored as [2, 5], read as [2, 5): of 4 frames 3 are shared, the hull with [2, 6) has 4
    assert scores(tube((2, 6), [2, 3, 4, 5], TRUE_BOX), INCLUSIVE, name) == pytest.approx((3 / 4, 3 / 4, 1))


def test_a_missing_box_is_a_failure_or_a_zero() -> None:
    given = tube((2, 6), [2, 3, 5], TRUE_BOX)
    failed = score_tubes(given, TRUTH, PROTOCOLS["stcat"].rules)
    assert failed.failures == {0: "no predicted box for frame 4 (1 missing in all)"}
    assert (failed.tiou[0], failed.viou[0]) == (0, 0)
    assert scores(given, TRUTH, "cgstvg") == pytest.approx((1, 3 / 4, 3 / 4))
    skipped = score_tubes(given, TRUTH, Rules(missing="skip"))
    assert (skipped.viou[0], skipped.gt_viou[0]) == (1, 1)


def test_two_empty_boxes_are_a_failure_where_the_public_code_gives_nan() -> None:
    point = [3.0, 3.0, 3.0, 3.0]
    got = score_tubes(tube((2, 3), [2], point), tube((2, 3), [2], point), PROTOCOLS["cgstvg"].rules)
    assert "0/0" in got.failures[0]
    assert score_tubes(tube((2, 3), [2], point), tube((2, 3), [2], point)).viou[0] == 0


def test_tubedetr_counts_sampled_frames_only() -> None:
    # sampled 0, 2, 4, 6, 8; given [4, 9): hull [2, 9) holds 2, 4, 6, 8; shared 4; IoU 0.5 -> 0.5 / 4
    # of the true frames 2 and 4 are sampled, both have boxes: gt_vIoU 0.5
    given = tube((4, 9), [2, 4, 6, 8], HALF_BOX)
    assert scores(given, TRUTH, "tubedetr", [0, 2, 4, 6, 8]) == pytest.approx((2 / 7, 0.125, 0.5))
    # one sampled true frame without a box stops the query
    lacking = score_tubes(
        tube((4, 9), [4], HALF_BOX), TRUTH, PROTOCOLS["tubedetr"].rules, Ragged.stack([[0, 2, 4, 6, 8]])
    )
    assert lacking.failures == {0: "no predicted box for frame 2 (1 missing in all)"}


def test_tubedetr_sampling() -> None:
    # 12 fps to 5: the first frame, then whenever floor(f x 5/12) grows: 3 (1.25), 5 (2.08), 8 (3.3), 10 (4.2)
    assert sampled_at_rate(0, 12, 12).tolist() == [0, 3, 5, 8, 10]
    assert sampled_at_rate(0, 100, 5, most=4).tolist() == [0, 25, 50, 75]
    with pytest.raises(DataError, match="4 fps cannot be sampled at 5"):
        sampled_at_rate(0, 10, 4)
    assert llavast_frames(10, 12, 5).tolist() == [10, 10, 11, 12, 12]  # 10.5 and 11.5 are rounded to even


def test_zeroshot_adds_one_frame_to_viou_only() -> None:
    # truth [2, 5] and given [5, 7], both inclusive: they share frame 5 only
    # tIoU: 5 - 5 = 0 frames; vIoU: frame 5 of the six frames 2..7
    assert scores(tube((5, 7), [5, 6, 7], TRUE_BOX), INCLUSIVE, "zeroshot") == pytest.approx(
        (0, 1 / 6, 1 / 4)
    )


def test_stvg_r1_needs_two_shared_frames() -> None:
    assert scores(tube((5, 7), [5, 6, 7], TRUE_BOX), INCLUSIVE, "stvg_r1")[1] == 0
    # given [4, 7]: frames 4 and 5 of 2..7
    assert scores(tube((4, 7), [4, 5, 6, 7], TRUE_BOX), INCLUSIVE, "stvg_r1")[1] == pytest.approx(2 / 6)


def test_official_tiou_counts_boxes() -> None:
    # every second frame has a box: 2 of 4 frames, although the spans are equal
    assert scores(tube((2, 5), [2, 4], TRUE_BOX), INCLUSIVE, "hcstvg_official")[:2] == pytest.approx(
        (0.5, 0.5)
    )
    # a reversed span still has its boxes: hull 2..5, both boxes count
    assert scores(tube((5, 2), [2, 4], TRUE_BOX), INCLUSIVE, "hcstvg_official")[:2] == pytest.approx(
        (0.5, 0.5)
    )


@pytest.mark.parametrize("name", ["llavast", "doro"])
def test_keys_decide_where_spans_are_ignored(name: str) -> None:
    # boxes on 5, 6, 7 against 2..5: one shared key of six; sIoU over that one
    got = score_tubes(tube((0, 1), [5, 6, 7], HALF_BOX), INCLUSIVE, PROTOCOLS[name].rules)
    assert (got.viou[0], got.siou[0], got.tiou[0]) == pytest.approx((0.5 / 6, 0.5, 0))


def test_thresholds_strict_or_not() -> None:
    values = np.array([0.3, 0.5, 0.51])
    assert PROTOCOLS["tubelet"].rules.hit(values, 0.5).tolist() == [False, False, True]
    assert PROTOCOLS["llavast"].rules.hit(values, 0.5).tolist() == [False, True, True]


@pytest.mark.parametrize(
    ("extension", "span"),
    [("none", (10, 20)), ("last+1", (10, 21)), ("next", (10, 30)), ("midpoint", (7.5, 25))],
)
def test_span_extension(extension: str, span: tuple[float, float]) -> None:
    # samples 0, 5, 10, 20, 30; boxes on 10 and 20: midway to 5 is 7.5, midway to 30 is 25
    grid = Ragged.stack([[0, 5, 10, 20, 30]])
    spans = stated_spans(tube(None, [10, 20], TRUE_BOX), grid, extension)  # type: ignore[arg-type]
    assert tuple(spans[0]) == span


def test_span_extension_at_the_borders_repeats_the_last_step() -> None:
    spans = stated_spans(tube(None, [0, 30], TRUE_BOX), Ragged.stack([[0, 5, 10, 20, 30]]), "midpoint")
    assert tuple(spans[0]) == (-2.5, 35)
    with pytest.raises(DataError, match="sampled frames"):
        stated_spans(tube(None, [3], TRUE_BOX), Ragged.stack([[0, 5]]), "next")


def test_interpolation() -> None:
    given = Tubes.stack([(0, 10)], [[2, 6]], [[[0, 0, 4, 4], [4, 4, 8, 8]]])
    at, rows = np.array([0.0, 2, 3, 6, 9, 11]), np.zeros(6, dtype=np.int64)
    x0 = [given.boxes_at(at, rows, how)[:, 0] for how in ("none", "linear", "hold")]
    np.testing.assert_array_equal(x0[0], [np.nan, 0, np.nan, 4, np.nan, np.nan])
    np.testing.assert_array_equal(x0[1], [np.nan, 0, 1, 4, np.nan, np.nan])
    np.testing.assert_array_equal(x0[2], [0, 0, 1, 4, 4, np.nan])  # 11 lies outside the span


def test_llavast_record() -> None:
    # split [0, 99]: token k is frame k; size 99 x 99: a coordinate token k is pixel k
    record = {
        "split": [0, 99],
        "width": 99,
        "height": 99,
        "outputs": "During {<TEMP-010><TEMP-029>} <TEMP-010>:[<WIDTH-000><HEIGHT-000><WIDTH-010><HEIGHT-010>]",
        "converted_outputs": "During {0.1, 0.3}",
        "gt": {"tvg": [20, 39], "svg": {"10": [0, 0, 10, 5], "11": [0, 0, 10, 5]}},
    }
    got = score_llavast([record])
    # true span 20/99 = 0.202, 39/99 = 0.394: overlap 0.098 of the hull 0.294; boxes: IoU 0.5 on one of two frames
    assert got.tiou[0] == pytest.approx(0.098 / 0.294)
    assert (got.siou[0], got.viou[0]) == pytest.approx((0.5, 0.25))
    assert got.tokens[0] == {10: (0, 0, 10, 10)}
    silent = score_llavast([{**record, "outputs": "no", "converted_outputs": "no"}])
    assert (silent.tiou[0], silent.viou[0], silent.spans[0]) == (0, 0, None)
    with pytest.raises(DataError, match="stvg, svg and elc"):
        score_llavast([record], "qa")


def test_stvg_r1_takes_another_object_when_its_own_is_gone() -> None:
    own, near, large = [0, 0, 10, 10], [2, 2, 12, 12], [20, 20, 80, 80]
    objects = {0: {"1": own, "2": large}, 1: {"2": large, "3": near}, 2: {"2": large}, 4: {"1": own}}
    chosen = chosen_boxes(objects, 1, 0, 4)
    # frame 1: the object that overlaps the last own box; frame 2: none does, so the largest; frame 3 has no masks
    assert chosen == {0: own, 1: near, 2: large, 4: own}
    # before its first appearance: the nearest frame's box, or what overlaps it
    assert chosen_boxes({0: {"2": large}, 1: {"1": own}}, 1, 0, 1)[0] == own
    assert chosen_boxes({0: {"2": large, "3": near}}, 1, 0, 0)[0] == large


def test_stvg_r1_answer_that_does_not_parse_fails() -> None:
    record = {
        "fps": 10.0,
        "gt_timestamps": [1.0, 2.0],
        "st_frame": 10,
        "gt_bbox_xywh": [[0, 0, 10, 10]] * 11,
        "object_boxes_by_frame_xyxy": {str(f): {"1": [0, 0, 10, 10]} for f in range(10, 21)},
    }
    good, bad = "<answer>Target ID: 1, Time range: 1.0 to 2.0</answer>", "Target ID: 1"
    got = score_stvg_r1([{**record, "response": good}, {**record, "response": bad}])
    assert got.viou.tolist() == [1, 0] and got.tiou.tolist() == [1, 0]
    assert list(got.failures) == [1] and "does not parse" in got.failures[1]


def test_vue_stg_seconds() -> None:
    assert quantize_ms([400, 499, 500, 1499, 1500]).tolist() == [0, 0, 1000, 1000, 2000]
    box, half = [0, 0, 0.4, 0.4], [0, 0, 0.4, 0.2]
    truth = vue_slices([[[0, *box], [1000, *box]], [[0, *box]]])
    given = vue_slices([[[1000, *half], [1400, *box], [2000, *half]], []])
    got = score_vue(truth, given)
    # seconds 0, 1 true, 1, 2 given (1400 is the second box of second 1): 1 of 3; IoU 0.5 once
    assert got["t_iou"][0] == pytest.approx(1 / 3) and got["v_iou"][0] == pytest.approx(0.5 / 3)
    assert got["t_precision"][0] == pytest.approx(0.5) and got["v_iou_intersection"][0] == pytest.approx(0.5)
    # volumes: shared 0.08; true 2 x 0.16, given 2 x 0.08: 0.08 / (0.32 + 0.16 - 0.08)
    assert got["3d_iou"][0] == pytest.approx(0.08 / 0.4)
    assert score_vue(truth, given, "last")["v_iou"][0] == pytest.approx(1 / 3)
    assert score_vue(truth, given, "union")["v_iou"][0] == pytest.approx(1 / 3)
    # nothing was answered: precision is undefined, recall and IoU are 0
    assert np.isnan(got["t_precision"][1]) and got["t_recall"][1] == 0 and got["t_iou"][1] == 0


def test_vstar_keys_are_text() -> None:
    true = [{"timestamp": 12, "xmin": 0, "ymin": 0, "xmax": 10, "ymax": 10}] * 2
    record = {"gt_timestamps": [10, 14], "gt_bboxes": true, "pred_timestamps": "[12, 16]"}
    exact = {**record, "pred_bboxes": {"12": [[0, 0, 1, 1], HALF_BOX]}}
    values, failures = score_vstar(
        [exact, {**record, "pred_bboxes": {"12.0": TRUE_BOX}, "pred_timestamps": "?"}]
    )
    assert values["tIoU"].tolist() == pytest.approx([2 / 6, 0]) and list(failures) == [1]
    assert values["mIoU"].tolist() == pytest.approx([0.5, 0])  # the better of two boxes; "12.0" is not found
    assert (values["AP@0.5"][0], values["AP@0.7"][0]) == (1, 0)


def test_bostvg_lets_a_missing_target_go_free_and_ours_does_not() -> None:
    other = [20.0, 20.0, 30.0, 30.0]
    frames = [0, 1]
    record = {
        "gt_temp_bound": [0, 2],
        "gt_tubes_xyxy": [{"0": TRUE_BOX, "1": TRUE_BOX}, {"0": other, "1": other}],
        "pred": {"sted": [0, 2], "boxes": {"0": [TRUE_BOX], "1": [TRUE_BOX]}},
    }
    assert score_bostvg([record]).viou[0] == pytest.approx(1)
    truth = Tubes.stack([(0, 2)] * 2, [frames] * 2, [[TRUE_BOX] * 2, [other] * 2])
    one = tube((0, 2), [0, 1], TRUE_BOX)
    assert score_targets(one, truth).viou == pytest.approx(0.5)  # one of two targets
    both = Tubes.stack([(0, 2)] * 2, [frames] * 2, [[other] * 2, [TRUE_BOX] * 2])
    matched = score_targets(both, truth)
    assert matched.viou == pytest.approx(1) and matched.pairs == ((0, 1), (1, 0))
    assert score_targets(Tubes.stack([], [], []), truth).viou == 0
    with pytest.raises(DataError, match="without true tubes"):
        score_targets(one, Tubes.stack([], [], []))


def test_average_precision_by_hand() -> None:
    # ranked: hit, miss, hit of two true windows -> precision 1 and 2/3 at the hits: (1 + 2/3) / 2
    truth = [[[0, 10], [20, 30]]]
    given = [[[0, 10, 0.9], [40, 50, 0.8], [20, 30, 0.7]]]
    assert average_precision(given, truth, [0.5])[0, 0] == pytest.approx(5 / 6)
    # the same window twice: the second takes nothing
    assert average_precision([[[0, 10, 0.9], [0, 10, 0.8]]], [[[0, 10]]], [0.5])[0, 0] == 1
    assert average_precision([[[0, 10, 0.1], [40, 50, 0.8]]], [[[0, 10]]], [0.5])[0, 0] == 0.5
    # a reversed window as long as the truth has the IoU 0/0: a hit in the public code, 0 by default
    reversed_window = [[[30, 20, 0.9]]]
    assert average_precision(reversed_window, [[[0, 10]]], [0.5])[0, 0] == 0
    assert average_precision(reversed_window, [[[0, 10]]], [0.5], undefined_hits=True)[0, 0] == 1


def test_highlight_average_precision_by_hand() -> None:
    # by score: clip 1 (hit), clip 0 (miss), clip 2 (hit): (1 + 2/3) / 2
    assert highlight_ap([0, 1, 1], [0.5, 0.9, 0.1]) == pytest.approx(5 / 6)
    assert highlight_ap([0, 0], [1, 2]) == 0 and highlight_ap([1, 1], [1, 2]) == 1
    assert highlight_ap([1, 0], [0.5, 0.5]) == 0.5  # a tie: both clips at once


def test_moments_count_every_query() -> None:
    truth = [{"qid": q, "relevant_windows": [[0, 20]], "duration": 150} for q in "ab"]
    got = score_moments([{"qid": "a", "pred_relevant_windows": [[0, 10, 1.0]]}], truth, "moment_detr")
    assert got.n == 2 and got.failures == {"b": "no prediction"}
    assert got.metrics["MR-full-mIoU"] == pytest.approx(0.25) and got.metrics["MR-full-R1@0.5"] == 0.5
    assert got.metrics["MR-short-mAP"] is None and any(n.startswith("short") for n in got.notes)
    with pytest.raises(DataError, match="unknown queries"):
        score_moments([{"qid": "z", "pred_relevant_windows": [[0, 1, 1]]}], truth)


def test_didemo_by_hand() -> None:
    # chunks are inclusive: [0, 1] against [1, 2] share one of three
    got = score_didemo([[[0, 1], [1, 2]]], [[[0, 1], [0, 1], [0, 1], [1, 2]]])
    assert got.metrics == {"rank@1": 1.0, "rank@5": 1.0, "mIoU": 1.0}  # the three best annotators
    got = score_didemo([[[0, 1], [1, 2]], []], [[[1, 2]] * 3, [[0, 0]]])
    assert got.metrics["mIoU"] == pytest.approx((1 / 3) / 2) and got.metrics["rank@1"] == 0
    assert got.failures == {1: "no ranked segment"}
    assert "not among" in score_didemo([[[0, 1]]], [[[2, 2]]]).failures[0]


def test_boxes_in_images() -> None:
    got = score_boxes([TRUE_BOX, HALF_BOX, None], [TRUE_BOX] * 3)
    assert got.metrics["ACC@0.5"].mean == pytest.approx(2 / 3)  # IoU 0.5 is a hit here
    assert got.failures == {2: "the answer holds no box"}
    assert score_boxes([HALF_BOX, None], [TRUE_BOX] * 2, "llavast_rec").metrics["ACC@0.5"].mean == 1
    assert recall_of_boxes([[HALF_BOX, TRUE_BOX], []], [TRUE_BOX, TRUE_BOX], 1, 0.6).tolist() == [0, 0]
    assert recall_of_boxes([[HALF_BOX, TRUE_BOX], []], [TRUE_BOX, TRUE_BOX], 2, 0.6).tolist() == [1, 0]
    with pytest.raises(DataError, match="unknown protocol"):
        score_boxes([], [], "coco")


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("The event happens in 22.6 - 20.9 seconds", (20.9, 22.6)),
        ("from 2 to 3.5", (2, 3.5)),
        ("Starts at 1 second.\nEnds at 8.9 seconds.", (1, 8.9)),
        ("in 00:04 - 01:05", (4, 65)),
        ("It starts at 23.6", None),
        ("1..5 - 2", None),
        ("", None),
    ],
)
def test_charades_span(text: str, span: tuple[float, float] | None) -> None:
    assert charades_span(text) == span


def test_other_readers() -> None:
    assert refcoco_box("at [0.1, 0.2,0.3, 0.4] or [1,2,3,4]") == (0.1, 0.2, 0.3, 0.4)
    assert refcoco_box("(0.1, 0.2, 0.3, 0.4)") is None
    assert llavast_span("Ends in 0.3, {0.1, 0.3}") == (0.1, 0.3) and llavast_span("Ends in 0.3") is None
    assert llavast_caption("Ends in <TEMP-030>, a man, who sits. Box") == " who sits"
    assert stvg_r1_answer("<answer>Target ID: 3, Time range: 1 and 2.5</answer>") == (3, 1.0, 2.5)
    assert vstar_span("[1, 2.5]") == (1, 2.5) and vstar_span("(1)") is None and vstar_span([1, "2"]) is None


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("(b)", "B"),
        ("b.", "B"),
        ("**C**", "C"),
        ("The answer is (C) a dog.", "C"),
        ("Option B", "B"),
        ("A. a red ball", "A"),
        ("<think>(A) or (B)</think><answer>(C)</answer>", "C"),
        ("a red ball", "A"),
        ("I think it is a dog, because A man holds it.", None),
        ("A or B", None),
        ("(A) and (B)", None),
        ("", None),
        ("E", None),
    ],
)
def test_read_letter(text: str, letter: str | None) -> None:
    assert read_letter(text, ["a red ball", "a blue car", "a dog"]) == letter


def test_choices_differ_by_evaluator() -> None:
    options = ["a red ball", "a blue car"]
    read = {name: reader("", options, "B") for name, reader in CHOICE_READERS.items()}
    assert read["mvbench_official"] == 1.0  # an empty answer is right there
    assert read["tubelet"] is None and read["timer1"] is None and read["egoschema"] is None
    got = score_choices(["B", "", "(B) a blue car"], [options] * 3, "BBB")
    assert got.accuracy.mean == pytest.approx(2 / 3) and got.unread == (1,)
    with pytest.raises(DataError, match="right letter"):
        score_choices(["B"], [options], ["C"])
    with pytest.raises(DataError, match="unknown way"):
        score_choices([], [], [], "mmmu")


def test_captions_say_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    import builtins
    import sys
    import types

    real = builtins.__import__

    def without(name: str, *rest: object, **more: object) -> object:
        if name.startswith("pycocoevalcap"):
            raise ImportError(name)
        return real(name, *rest, **more)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(builtins, "__import__", without)
        with pytest.raises(ModelError, match=r"tubelet\[captions\]"):
            score_captions(["a"], ["a"])
    for path, name in (
        ("bleu.bleu", "Bleu"),
        ("cider.cider", "Cider"),
        ("meteor.meteor", "Meteor"),
        ("rouge.rouge", "Rouge"),
        ("tokenizer.ptbtokenizer", "PTBTokenizer"),
    ):
        parts = f"pycocoevalcap.{path}".split(".")
        for k in range(1, len(parts) + 1):
            module = types.ModuleType(".".join(parts[:k]))
            setattr(module, name, None)
            monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr("shutil.which", lambda program: None)
    with pytest.raises(ModelError, match="Java"):
        score_captions(["a"], ["a"])
    with pytest.raises(DataError, match="unknown caption metric"):
        score_captions(["a"], ["a"], ["SPICE"])
    with pytest.raises(DataError, match="2 captions for 1"):
        score_captions(["a", "b"], ["a"])


def test_unknown_protocol_lists_the_names() -> None:
    with pytest.raises(DataError, match="tubelet, tubedetr, stcat"):
        protocol("coco")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tube((0, 1), [1, 1], TRUE_BOX), "increase strictly"),
        (lambda: tube((0, 1), [float("nan")], TRUE_BOX), "finite"),
        (
            lambda: Tubes(np.zeros((1, 2)), np.arange(2.0), np.zeros((1, 4)), np.array([0, 2])),
            "one box per position",
        ),
        (lambda: score_tubes(tube((0, 1), [0], TRUE_BOX), Tubes.stack([], [], [])), "row by row"),
        (lambda: score_tubes(TRUTH, TRUTH, Rules(frames="listed")), "give grid"),
    ],
)
def test_bad_input_is_named(call: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        call()  # type: ignore[operator]
