"""What must hold for any tubes: ranges, perfection, symmetry, order, and equality with a plain loop over frames."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tubelet.metrics.answers import (
    charades_span,
    llavast_box,
    llavast_span,
    refcoco_box,
    stvg_r1_answer,
    vstar_span,
)
from tubelet.metrics.bootstrap import bootstrap_mean, bootstrap_means, bootstrap_table, paired_difference
from tubelet.metrics.boxes import box_area, pairwise_iou, span_iou
from tubelet.metrics.choices import CHOICE_READERS, read_letter
from tubelet.metrics.llavast import read_tokens
from tubelet.metrics.moments import SPAN_PROTOCOLS, average_precision, recall_ious
from tubelet.metrics.ragged import Ragged, Tubes, count_before, is_listed, last_not_after, merge, rows_of
from tubelet.metrics.seconds import _covered
from tubelet.metrics.targets import score_targets, take
from tubelet.metrics.tubes import Rules, score_tubes

FRAMES = 24

boxes = st.tuples(*[st.integers(0, 12) for _ in range(4)]).map(
    lambda v: (min(v[0], v[2]), min(v[1], v[3]), max(v[0], v[2]), max(v[1], v[3]))
)
real_boxes = boxes.map(lambda b: (b[0], b[1], b[2] + 1, b[3] + 1))  # with an area
Query = tuple[tuple[int, int], dict[int, Any]]


@st.composite
def queries(draw: st.DrawFn, dense: bool = False) -> Query:
    start = draw(st.integers(0, FRAMES - 1))
    end = draw(st.integers(start + 1, FRAMES))
    inside = range(start, end)
    frames = list(inside) if dense else sorted(draw(st.sets(st.sampled_from(list(inside)))))
    return (start, end), {f: draw(real_boxes if dense else boxes) for f in frames}


def tubes_of(listed: list[Query]) -> Tubes:
    return Tubes.stack(
        [q[0] for q in listed], [list(q[1]) for q in listed], [list(q[1].values()) for q in listed]
    )


pairs = st.lists(st.tuples(queries(), queries(dense=True)), min_size=1, max_size=5)


def loop(
    given_: Query, true: Query, grid: list[int] | None, closed: bool, skip: bool
) -> tuple[float, float, float]:
    """The plain reference: one frame at a time."""
    (s, e), given_boxes = given_
    (a, b), true_boxes = true
    overlap, hull = min(b, e) - max(a, s), max(b, e) - min(a, s)
    tiou = overlap / hull if overlap > 0 else 0.0
    frames = range(-5, FRAMES + 5) if grid is None else grid

    def within(f: int, low: int, high: int) -> bool:
        return low <= f <= high if closed else low <= f < high

    counted = sum(within(f, min(a, s), max(b, e)) for f in frames)
    total = inside = 0.0
    lacking = lacking_inside = 0
    true_frames = [f for f in true_boxes if f in frames]
    for f in true_frames:
        both = within(f, a, b) and within(f, s, e)
        if f not in given_boxes:
            lacking += 1
            lacking_inside += both
            continue
        p, t = given_boxes[f], true_boxes[f]
        width, height = min(p[2], t[2]) - max(p[0], t[0]), min(p[3], t[3]) - max(p[1], t[1])
        shared = max(width, 0) * max(height, 0)
        union = (p[2] - p[0]) * (p[3] - p[1]) + (t[2] - t[0]) * (t[3] - t[1]) - shared
        iou = shared / union if union > 0 else 0.0
        total += iou
        inside += iou if both else 0.0
    if skip:
        return tiou, inside / max(counted - lacking_inside, 1), total / max(len(true_frames) - lacking, 1)
    return tiou, inside / max(counted, 1), total / max(len(true_frames), 1)


@settings(max_examples=120, deadline=None)
@given(pairs, st.sampled_from(["exclusive", "inclusive"]), st.booleans(), st.integers(1, 4))
def test_vectorised_is_the_plain_loop(listed: list[Any], ends: Any, skip: bool, step: int) -> None:
    rules = Rules(ends=ends, missing="skip" if skip else "zero", frames="listed" if step > 1 else "all")
    grid = list(range(0, FRAMES, step)) if step > 1 else None
    got = score_tubes(
        tubes_of([p for p, _ in listed]),
        tubes_of([t for _, t in listed]),
        rules,
        None if grid is None else Ragged.stack([grid] * len(listed)),
    )
    for row, (p, t) in enumerate(listed):
        wanted = loop(p, t, grid, ends == "inclusive", skip)
        assert (got.tiou[row], got.viou[row], got.gt_viou[row]) == pytest.approx(wanted, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(pairs)
def test_ranges_and_viou_below_tiou(listed: list[Any]) -> None:
    got = score_tubes(tubes_of([p for p, _ in listed]), tubes_of([t for _, t in listed]), Rules(volume=True))
    for values in (got.tiou, got.viou, got.gt_viou, got.siou, got.volume_iou):
        assert values is not None and (values >= 0).all() and (values <= 1 + 1e-12).all()
    assert (got.viou <= got.tiou + 1e-12).all()  # every frame of the intersection adds at most 1


@settings(max_examples=60, deadline=None)
@given(st.lists(queries(dense=True), min_size=1, max_size=5))
def test_a_perfect_answer_scores_one(listed: list[Query]) -> None:
    tubes = tubes_of(listed)
    for rules in (Rules(), Rules(frames="keys", numerator="keys"), Rules(interpolate="hold")):
        got = score_tubes(tubes, tubes, replace(rules, volume=True))
        for values in (got.tiou, got.viou, got.gt_viou, got.siou, got.volume_iou):
            assert values == pytest.approx(1)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(queries(dense=True), queries(dense=True)), min_size=1, max_size=4))
def test_viou_is_symmetric(listed: list[Any]) -> None:
    a, b = tubes_of([p for p, _ in listed]), tubes_of([t for _, t in listed])
    rules = Rules(volume=True)
    one, other = score_tubes(a, b, rules), score_tubes(b, a, rules)
    for name in ("tiou", "viou", "siou", "volume_iou"):
        assert getattr(one, name) == pytest.approx(getattr(other, name))


@settings(max_examples=40, deadline=None)
@given(pairs, st.randoms(use_true_random=False))
def test_order_of_queries_does_not_matter(listed: list[Any], random: Any) -> None:
    order = list(range(len(listed)))
    random.shuffle(order)
    a, b = tubes_of([p for p, _ in listed]), tubes_of([t for _, t in listed])
    rows = np.array(order, dtype=np.int64)
    straight, shuffled = score_tubes(a, b), score_tubes(take(a, rows), take(b, rows))
    assert shuffled.viou.tolist() == straight.viou[rows].tolist()
    assert shuffled.gt_viou.tolist() == straight.gt_viou[rows].tolist()


def test_blocks_do_not_change_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    listed = []
    for _ in range(60):
        a, b = sorted(rng.choice(FRAMES, 2, replace=False).tolist())
        listed.append(((a, b), {f: (0, 0, *rng.integers(1, 9, 2).tolist()) for f in range(a, b)}))
    given_, truth = tubes_of(listed), tubes_of(listed[::-1])
    whole = score_tubes(given_, truth, Rules(missing="error", volume=True))
    monkeypatch.setattr("tubelet.metrics.tubes.BLOCK_BOXES", 30)
    parts = score_tubes(given_, truth, Rules(missing="error", volume=True))
    assert whole.failures == parts.failures and len(parts.failures) > 3
    assert whole.viou.tolist() == parts.viou.tolist()
    assert whole.volume_iou is not None and parts.volume_iou is not None
    assert whole.volume_iou.tolist() == parts.volume_iou.tolist()


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.sets(st.floats(-50, 50)).map(sorted), min_size=1, max_size=5),
    st.lists(st.tuples(st.integers(0, 4), st.floats(-60, 60)), min_size=1),
)
def test_lookups_are_searches_in_each_list(lists: list[list[float]], asked: list[tuple[int, float]]) -> None:
    ragged = Ragged.stack(lists)
    rows = np.array([r % len(lists) for r, _ in asked])
    at = np.array([x for _, x in asked])
    at[::2] = [
        lists[r][len(lists[r]) // 2] if lists[r] else x for r, x in zip(rows[::2], at[::2], strict=True)
    ]
    last = last_not_after(ragged.at, ragged.offsets, at, rows) - ragged.offsets[rows]
    before = count_before(ragged, at, rows)
    listed = is_listed(ragged, at, rows)
    for k, (row, x) in enumerate(zip(rows, at, strict=True)):
        assert max(last[k], -1) == sum(v <= x for v in lists[row]) - 1
        assert before[k] == sum(v < x for v in lists[row])
        assert listed[k] == (x in lists[row])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sets(st.integers(0, 9)), st.sets(st.integers(0, 9))), min_size=1, max_size=4))
def test_merge_is_the_union(listed: list[Any]) -> None:
    merged = merge(Ragged.stack([sorted(a) for a, _ in listed]), Ragged.stack([sorted(b) for _, b in listed]))
    rows = rows_of(merged.offsets)
    for k, (a, b) in enumerate(listed):
        assert merged.at[rows == k].tolist() == sorted(a | b)


@settings(max_examples=60, deadline=None)
@given(st.lists(boxes, min_size=1, max_size=4), st.lists(boxes, min_size=1, max_size=4))
def test_area_of_unions_is_counted_cells(a: list[Any], b: list[Any]) -> None:
    canvas = np.zeros((2, 13, 13), dtype=bool)
    for layer, listed in zip(canvas, (a, b), strict=True):
        for x0, y0, x1, y1 in listed:
            layer[x0:x1, y0:y1] = True
    got = _covered(np.array(a, dtype=np.float64), np.array(b, dtype=np.float64))
    assert got == (canvas[0].sum(), canvas[1].sum(), (canvas[0] & canvas[1]).sum())


@settings(max_examples=40, deadline=None)
@given(st.lists(real_boxes, min_size=1, max_size=5), st.lists(real_boxes, min_size=1, max_size=5))
def test_pairwise_iou_is_symmetric_and_one_on_itself(a: list[Any], b: list[Any]) -> None:
    assert pairwise_iou(a, b) == pytest.approx(pairwise_iou(b, a).T)
    assert np.diag(pairwise_iou(a, a)) == pytest.approx(1)
    assert (box_area(a) > 0).all()


spans = st.tuples(st.floats(0, 50), st.floats(0.1, 20)).map(lambda v: (v[0], v[0] + v[1]))


@settings(deadline=None)
@given(spans, spans)
def test_span_iou(a: tuple[float, float], b: tuple[float, float]) -> None:
    got = float(span_iou(a, b))
    assert 0 <= got <= 1 and got == float(span_iou(b, a)) and float(span_iou(a, a)) == 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(spans, st.floats(0, 1)), max_size=12), st.lists(spans, min_size=1, max_size=4))
def test_average_precision_is_the_greedy_loop(given_: list[Any], true: list[Any]) -> None:
    windows = [[*s, score] for s, score in given_]
    for limit in (0.3, 0.5):
        ranked = sorted(windows[:10], key=lambda w: -w[2])
        taken: set[int] = set()
        hit = []
        for w in ranked:
            ious = [float(span_iou(w[:2], t)) for t in true]
            free = [k for k in range(len(true)) if k not in taken and ious[k] >= limit]
            best = max(free, key=lambda k: (ious[k], k), default=None)
            hit.append(best is not None)
            if best is not None:
                taken.add(best)
        precision = [sum(hit[: k + 1]) / (k + 1) for k in range(len(hit))]
        wanted = sum(max(precision[k:]) for k in range(len(hit)) if hit[k]) / len(true)
        assert average_precision([windows], [true], [limit])[0, 0] == pytest.approx(wanted)
    ious = [recall_ious([windows], [true], k, SPAN_PROTOCOLS["tubelet"])[0] for k in (1, 3, 5)]
    assert ious == sorted(ious) and 0 <= ious[0] <= ious[-1] <= 1


@settings(max_examples=40, deadline=None)
@given(st.lists(queries(dense=True), min_size=1, max_size=3), st.randoms(use_true_random=False))
def test_targets_match_in_any_order(listed: list[Query], random: Any) -> None:
    pytest.importorskip("scipy")
    order = list(range(len(listed)))
    random.shuffle(order)
    truth = tubes_of(listed)
    got = score_targets(take(truth, np.array(order, dtype=np.int64)), truth)
    assert (got.tiou, got.viou) == pytest.approx((1, 1))


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=40), st.lists(st.text(min_size=1, max_size=8), min_size=2, max_size=5))
def test_readers_of_choices_take_any_text(text: str, options: list[str]) -> None:
    letter = read_letter(text, options)
    assert letter is None or letter in "ABCDE"[: len(options)]
    for reader in CHOICE_READERS.values():
        assert reader(text, options, "A") in (None, 0.0, 1.0)


pieces = st.lists(
    st.one_of(
        st.sampled_from(
            [
                "<answer>",
                "</answer>",
                "Target ID: ",
                "Time range: ",
                " to ",
                "-",
                "{",
                "}",
                "[",
                "]",
                ",",
                ":",
            ]
        ),
        st.sampled_from(
            ["<TEMP-012>", "<WIDTH-003>", "<HEIGHT-099>", "starts ", "ends\n", "00:04", "9" * 400, "1..2"]
        ),
        st.integers(-5, 200).map(str),
        st.text(max_size=3),
    ),
    max_size=20,
).map("".join)


@settings(max_examples=200, deadline=None)
@given(pieces)
def test_readers_of_answers_take_any_text(text: str) -> None:
    for reader, size in (
        (charades_span, 2),
        (llavast_span, 2),
        (refcoco_box, 4),
        (llavast_box, 4),
        (vstar_span, 2),
    ):
        got = reader(text)
        assert got is None or (len(got) == size and all(isinstance(x, float) for x in got))
    answer = stvg_r1_answer(text)
    assert answer is None or len(answer) == 3
    assert all(len(v) == 4 for v in read_tokens(text).values())


def test_bootstrap_table_shares_its_draws_and_skips_undefined_values() -> None:
    rng = np.random.default_rng(1)
    a = rng.random(300)
    table = bootstrap_table({"a": a, "b": a + 1, "none": np.full(300, np.nan)})
    assert table["b"].low - table["a"].low == pytest.approx(1) and table["none"].n == 0
    holes = a.copy()
    holes[::3] = np.nan
    defined = bootstrap_table({"x": holes})["x"]
    assert defined.n == 200 and defined.mean == pytest.approx(np.nanmean(holes))
    assert defined.low < defined.mean < defined.high
    assert bootstrap_means(a, 50) == pytest.approx(bootstrap_means(np.stack([a, a], axis=1), 50)[:, 1])


def test_paired_differences_are_narrower_than_two_means() -> None:
    rng = np.random.default_rng(2)
    hard = rng.random(500)
    a, b = hard + rng.normal(0, 0.02, 500) + 0.01, hard + rng.normal(0, 0.02, 500)
    paired, alone = paired_difference(a, b), bootstrap_mean(a)
    assert paired.high - paired.low < (alone.high - alone.low) / 5
    assert paired.low > 0 and paired.mean == pytest.approx((a - b).mean())
