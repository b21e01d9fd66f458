"""Refiner and Filter by hand-made detections: every threshold, both sides of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tubelet.errors import DataError, RecipeError
from tubelet.tube import Span, Tube
from tubelet.unistg.filter import filter_records
from tubelet.unistg.recipe import FilterSettings, RefinerSettings, UniSTGRecipe
from tubelet.unistg.records import Caption, Detected, Drop, Phrase, Refined, Sample
from tubelet.unistg.refiner import refine

BOX = (0.4, 0.4, 0.6, 0.6)


def detected(
    per_frame: list[list[tuple[float, ...]]], scores: float = 0.9, step_s: float = 0.5, **phrase: Any
) -> Detected:
    """Boxes of each frame, frames every `step_s` seconds from 0; the coarse span holds all of them."""
    times = np.arange(len(per_frame)) * step_s
    caption = Caption("c:1", "c", "a.mp4", "a dog runs", Span(0.0, len(per_frame) * step_s), 60.0)
    return Detected(
        Phrase(caption, "a dog", phrase.get("subject", True), "rules"),
        times,
        tuple(np.array(boxes, dtype=float).reshape(-1, 4) for boxes in per_frame),
        tuple(np.full(len(boxes), scores) for boxes in per_frame),
        tuple(np.full(len(boxes), -1, dtype=np.int64) for boxes in per_frame),
        "test",
        "0" * 64,
    )


def judged(per_frame: list[list[tuple[float, ...]]], **options: Any) -> Sample | Drop:
    refined = refine(detected(per_frame, **options))
    assert isinstance(refined, Refined), refined
    (answer,) = filter_records([refined])
    return answer


def test_the_span_is_tightened_to_the_boxes() -> None:
    answer = refine(detected([[]] * 4 + [[BOX]] * 8 + [[]] * 4))
    assert isinstance(answer, Refined)
    assert (answer.span.start_s, answer.span.end_s) == (1.75, 5.75)  # half-way to the frames without a box
    assert answer.times_s.tolist() == [2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 5.5]


@pytest.mark.parametrize(
    ("per_frame", "limits", "reason"),
    [
        ([[]] * 6, {}, "no-boxes"),
        ([[]] * 4 + [[BOX]] * 3 + [[]] * 4, {}, "too-short"),  # 1.5 s
        ([[BOX]] * 20, {"max_s": 9.5}, "too-long"),
    ],
)
def test_spans_outside_the_limits_are_dropped(
    per_frame: list[list[tuple[float, ...]]], limits: dict[str, float], reason: str
) -> None:
    answer = refine(detected(per_frame), RefinerSettings(**limits))
    assert isinstance(answer, Drop) and (answer.stage, answer.reason) == ("refiner", reason)


def test_a_long_hole_parts_the_boxes_and_the_longest_part_is_kept() -> None:
    frames = [[BOX]] * 5 + [[]] * 8 + [[BOX]] * 10
    answer = refine(detected(frames))
    assert isinstance(answer, Refined) and answer.rows[0] == 13
    whole = refine(detected(frames), RefinerSettings(max_gap_s=None))
    assert isinstance(whole, Refined) and whole.rows[0] == 0


def test_the_track_with_the_most_score_is_followed() -> None:
    other = (0.0, 0.0, 0.2, 0.2)
    base = detected([[BOX, other]] * 6)
    ids = tuple(np.array([4, 7]) for _ in range(6))
    scores = tuple(np.array([0.5, 0.6]) for _ in range(6))
    answer = refine(replace(base, track_ids=ids, scores=scores))
    assert isinstance(answer, Refined)
    assert answer.boxes_xyxy.tolist() == [list(other)] * 6 and answer.n_boxes.tolist() == [2] * 6


def grown(ratio: float) -> tuple[float, ...]:
    side = 0.2 * ratio**0.5
    return (0.5 - side / 2, 0.5 - side / 2, 0.5 + side / 2, 0.5 + side / 2)


def test_an_area_that_more_than_doubles_drops_the_tube() -> None:
    assert isinstance(judged([[BOX]] * 3 + [[grown(1.99)]] * 3), Sample)
    answer = judged([[BOX]] * 3 + [[grown(2.05)]] * 3)
    assert isinstance(answer, Drop) and answer.reason == "area-jump"


SLIVER = (0.0, 0.4, 0.05, 0.6)  # a quarter of BOX, cut by the left edge


def with_edge(per_frame: list[list[tuple[float, ...]]], margin: float | None) -> str:
    """The Filter's reason, "" for a sample."""
    refined = refine(detected(per_frame))
    assert isinstance(refined, Refined)
    recipe = UniSTGRecipe(filter=FilterSettings(edge_margin=margin))
    (answer,) = filter_records([refined], recipe)
    return answer.reason if isinstance(answer, Drop) else ""


def test_a_thing_that_comes_in_or_goes_out_is_no_area_jump_unless_as_in_the_paper() -> None:
    comes_in, goes_out = [[SLIVER]] + [[BOX]] * 5, [[BOX]] * 5 + [[SLIVER]]
    for frames in (comes_in, goes_out):
        assert with_edge(frames, 0.01) == ""
        assert with_edge(frames, None) == "area-jump"
    assert isinstance(judged(comes_in), Sample)  # it is the default


@pytest.mark.parametrize("side", range(4))
def test_every_edge_of_the_picture_cuts_and_only_within_the_margin(side: int) -> None:
    def small(gap: float) -> tuple[float, ...]:
        box = [0.45, 0.45, 0.55, 0.55]
        box[side] = gap if side < 2 else 1 - gap
        box[(side + 2) % 4] = gap + 0.1 if side < 2 else 0.9 - gap
        return tuple(box)

    assert with_edge([[small(0.01)]] + [[BOX]] * 5, 0.01) == ""
    assert with_edge([[small(0.012)]] + [[BOX]] * 5, 0.01) == "area-jump"
    assert with_edge([[small(0.012)]] + [[BOX]] * 5, 0.02) == ""


def test_a_box_that_grows_to_the_edge_is_still_an_area_jump() -> None:
    assert with_edge([[BOX]] * 3 + [[(0.0, 0.0, 1.0, 1.0)]] + [[BOX]] * 3, 0.01) == "area-jump"
    assert with_edge([[BOX]] * 3 + [[(0.0, 0.2, 0.6, 0.8)]] + [[BOX]] * 3, 0.01) == "area-jump"
    # both are cut: what comes in may be of any size
    assert with_edge([[SLIVER]] + [[(0.0, 0.3, 0.3, 0.7)]] * 5, 0.01) == ""


def test_frames_with_more_than_three_boxes_lose_theirs() -> None:
    four = [BOX, (0.0, 0.0, 0.1, 0.1), (0.8, 0.8, 0.9, 0.9), (0.0, 0.8, 0.1, 0.9)]
    kept = judged([[BOX]] * 3 + [four] + [[BOX]] * 3)
    assert isinstance(kept, Sample) and len(kept.tube) == 6
    assert isinstance(judged([four[:3]] * 6), Sample)
    dropped = judged([four] * 6)
    assert isinstance(dropped, Drop) and dropped.reason == "complex-frames"


def test_short_sparse_and_unsure_tubes_are_dropped() -> None:
    assert judged([[BOX]] * 2, step_s=2.0).reason == "too-few-boxes"  # type: ignore[union-attr]
    sparse = judged([[BOX], [], [], [BOX], [], [], [BOX]])
    assert isinstance(sparse, Drop) and sparse.reason == "too-sparse"
    unsure = judged([[BOX]] * 6, scores=0.29)
    assert isinstance(unsure, Drop) and unsure.reason == "low-confidence"


def test_a_sample_says_where_it_comes_from() -> None:
    sample = judged([[BOX]] * 6)
    assert isinstance(sample, Sample) and sample.sentence == "a dog runs"
    told = sample.provenance
    assert told["caption_id"] == "c:1" and told["annotator"] == "test" and told["duration_s"] == 60.0
    assert told["thresholds"]["filter.max_boxes"] == 3  # type: ignore[index]
    assert Sample.from_dict(sample.to_dict()).to_dict() == sample.to_dict()
    other = judged([[BOX]] * 6, subject=False)
    assert isinstance(other, Sample) and other.sentence == "a dog"  # the caption is not about it


def test_thousands_of_boxes_in_a_frame_are_a_complex_frame() -> None:
    many = [BOX] * 5000
    answer = judged([many] * 5)
    assert isinstance(answer, Drop) and answer.reason == "complex-frames"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=30), st.integers(0, 2**31))
def test_many_at_once_are_judged_as_one_by_one(counts: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    records = []
    for count in counts:
        frames = [
            [tuple(np.sort(rng.random(4))[[0, 1, 2, 3]]) for _ in range(rng.integers(0, 5))]
            for _ in range(count + 4)
        ]
        answer = refine(detected(frames), RefinerSettings(min_s=0.1))
        if isinstance(answer, Refined):
            records.append(answer)
    together = [a.to_dict() for a in filter_records(records)]
    alone = [a.to_dict() for record in records for a in filter_records([record])]
    assert together == alone


def test_wrong_thresholds_are_said() -> None:
    with pytest.raises(RecipeError, match="min_s < max_s"):
        RefinerSettings(min_s=5.0, max_s=2.0)
    with pytest.raises(RecipeError, match="at least 1"):
        FilterSettings(max_boxes=0)
    for margin in (-0.01, 0.5):
        with pytest.raises(RecipeError, match="edge_margin"):
            FilterSettings(edge_margin=margin)
    assert UniSTGRecipe().thresholds()["filter.edge_margin"] == 0.01
    assert UniSTGRecipe().digest() != UniSTGRecipe(filter=FilterSettings(max_boxes=2)).digest()


def filter_in_a_loop(record: Refined, recipe: UniSTGRecipe) -> Sample | Drop:
    """The Filter's rules, record by record and box by box, with nothing shared with the module."""
    s, n = recipe.filter, len(record.rows)
    keep = [int(count) <= s.max_boxes for count in record.n_boxes]
    areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in record.boxes_xyxy]
    jump = False
    for k in range(1, n):
        if keep[k] and keep[k - 1] and record.rows[k] - record.rows[k - 1] == 1:
            small, large = sorted((k - 1, k), key=lambda i: areas[i])
            if s.edge_margin is not None:
                x0, y0, x1, y1 = record.boxes_xyxy[small].tolist()
                if min(x0, y0, 1 - x1, 1 - y1) <= s.edge_margin + 1e-9:
                    continue
            jump |= bool(areas[large] > s.max_area_ratio * areas[small] * (1 + 1e-9))
    total = 0.0
    for k in range(n):
        total += float(record.scores[k]) if keep[k] else 0.0
    kept = sum(keep)
    frames = int(record.rows[-1] - record.rows[0]) + 1
    reasons = {
        "complex-frames": kept == 0,
        "area-jump": jump,
        "too-few-boxes": kept < s.min_boxes,
        "too-sparse": kept < s.min_coverage * frames - 1e-9,
        "low-confidence": total / max(kept, 1) < s.min_confidence - 1e-9,
    }
    phrase = record.detected.phrase
    for reason, holds in reasons.items():
        if holds:
            return Drop(phrase.key, "filter", reason, f"{kept} of {n} boxes left")
    mask = np.array(keep)
    scores = np.clip(record.scores[mask], 0.0, 1.0)
    tube = Tube(
        record.span,
        record.times_s[mask],
        record.boxes_xyxy[mask],
        score=round(float(scores.mean()), 6),
        box_scores=scores,
        label=phrase.text,
    )
    told = {
        "caption_id": phrase.caption.id,
        "source": phrase.caption.source,
        "phrase": phrase.text,
        "subject": phrase.subject,
        "coarse_span": phrase.caption.span.to_dict(),
        "duration_s": phrase.caption.duration_s,
        "analyzer": phrase.analyzer,
        "annotator": record.detected.annotator,
        "video_hash": record.detected.video_sha256,
        "frames": len(record.detected.times_s),
        "boxes_cut": record.detected.n_cut,
        "thresholds": recipe.thresholds(),
        "recipe": recipe.digest(),
    }
    sentence = phrase.caption.text if phrase.subject else phrase.text
    return Sample(phrase.key, phrase.caption.video, sentence, tube, told)


@st.composite
def refined_records(draw: st.DrawFn) -> list[Refined]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    out = []
    for length in draw(st.lists(st.integers(1, 40), min_size=1, max_size=12)):
        holes = rng.random(length) < draw(st.sampled_from([0.0, 0.1, 0.6]))
        holes[rng.integers(length)] = False
        steady = np.array([0.3, 0.3, 0.7, 0.7]) + rng.normal(0, draw(st.sampled_from([0.0, 0.01, 0.1])), 4)
        frames, at_edge = [], draw(st.sampled_from([0.0, 0.1]))
        for hole in holes:
            wild = np.sort(rng.random((rng.integers(1, 6), 2, 2)), axis=1).reshape(-1, 4)
            near = steady + rng.normal(0, 0.005, 4)
            if rng.random() < at_edge:
                near[rng.integers(4)] += rng.choice([-0.3, 0.3])
            near = np.clip(near, 0.0, 1.0 + 9e-7)
            near = np.sort(near.reshape(2, 2), axis=0).reshape(4)  # noise may have turned it inside out
            crowd = draw(st.sampled_from(["one", "one", "one", "many"]))
            frames.append(
                [] if hole else [tuple(near)] + ([tuple(b) for b in wild] if crowd == "many" else [])
            )
        base = detected(frames, subject=bool(rng.integers(2)))
        scores = tuple(rng.uniform(draw(st.sampled_from([0.0, 0.3])), 1.0, len(f)) for f in frames)
        answer = refine(replace(base, scores=scores), RefinerSettings(min_s=0.0, max_gap_s=None))
        assert isinstance(answer, Refined)
        out.append(answer)
    return out


@settings(max_examples=80, deadline=None)
@given(
    refined_records(),
    st.sampled_from([1, 3, 9]),
    st.sampled_from([1.05, 2.0, 50.0]),
    st.sampled_from([None, 0.0, 0.01, 0.2]),
)
def test_the_filter_is_the_plain_loop_bit_by_bit(
    records: list[Refined], most: int, ratio: float, margin: float | None
) -> None:
    recipe = UniSTGRecipe(filter=FilterSettings(max_boxes=most, max_area_ratio=ratio, edge_margin=margin))
    for record, answer in zip(records, filter_records(records, recipe), strict=True):
        wanted = filter_in_a_loop(record, recipe)
        assert answer.to_dict() == wanted.to_dict()
        if isinstance(answer, Sample) and isinstance(wanted, Sample):
            for name in ("times_s", "boxes_xyxy", "box_scores"):
                ours, theirs = getattr(answer.tube, name), getattr(wanted.tube, name)
                assert ours.dtype == theirs.dtype and ours.tobytes() == theirs.tobytes()
                assert not ours.flags.writeable
            assert (answer.tube.span, answer.tube.score) == (wanted.tube.span, wanted.tube.score)


def test_a_tube_that_cannot_be_is_an_error_as_before() -> None:
    answer = refine(detected([[BOX]] * 6))
    assert isinstance(answer, Refined)
    with pytest.raises(DataError, match="must lie in the span"):
        list(filter_records([answer, replace(answer, span=Span(9.0, 12.0))]))
    with pytest.raises(DataError, match="fractions of the frame"):
        list(filter_records([replace(answer, boxes_xyxy=answer.boxes_xyxy + 0.5)]))
