"""Losses: what is counted and what is not, against restatements; nothing to count is a zero with gradient."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tubelet.spacevllm.batch import collate
from tubelet.spacevllm.decoder import DecoderOutput
from tubelet.spacevllm.loss import (
    LossWeights,
    SpaceTruth,
    box_iou,
    cell_targets,
    edge_loss,
    giou,
    middle_loss,
    pointing_loss,
    space_losses,
    text_loss,
    total_loss,
)
from tubelet.spacevllm.match import clock_loss
from tubelet.spacevllm.pack import ANY_FRAME, NO_FRAME
from tubelet.spacevllm.prompts import seconds, snapped
from tubelet.training.samples import WorldMix, world_batch

Box = tuple[float, float, float, float]

pytestmark = pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad=True:UserWarning")


def restated_giou(a: Box, b: Box) -> float:
    """Rezatofighi et al. 2019, equation by equation, on plain numbers."""
    shared_w = min(a[2], b[2]) - max(a[0], b[0])
    shared_h = min(a[3], b[3]) - max(a[1], b[1])
    shared = shared_w * shared_h if shared_w > 0 and shared_h > 0 else 0.0
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return shared / union - (hull - union) / hull


@st.composite
def boxes(draw: st.DrawFn) -> Box:
    x, y = draw(st.floats(0, 0.9)), draw(st.floats(0, 0.9))
    w, h = draw(st.floats(0.01, 1)), draw(st.floats(0.01, 1))
    return x, y, x + w, y + h


@settings(max_examples=150, deadline=None)
@given(boxes(), boxes())
def test_giou_against_a_restatement(a: Box, b: Box) -> None:
    got = giou(torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64))
    assert float(got) == pytest.approx(restated_giou(a, b), abs=1e-9)
    assert -1 <= float(got) <= 1
    iou = float(box_iou(torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)))
    assert float(got) <= iou + 1e-9


@settings(max_examples=60, deadline=None)
@given(boxes(), boxes())
def test_giou_gradient_is_that_of_the_restatement(a: Box, b: Box) -> None:
    """Central differences of the restatement, away from kinks, where edges of the two boxes meet."""
    edges = [abs(p - q) for axis in (0, 1) for p in (a[axis], a[axis + 2]) for q in (b[axis], b[axis + 2])]
    if min(edges) < 1e-3:
        return
    tensor = torch.tensor(a, dtype=torch.float64, requires_grad=True)
    giou(tensor, torch.tensor(b, dtype=torch.float64)).backward()
    assert tensor.grad is not None
    step = 1e-6
    for k in range(4):
        more, less = list(a), list(a)
        more[k] += step
        less[k] -= step
        slope = (restated_giou(tuple(more), b) - restated_giou(tuple(less), b)) / (2 * step)  # type: ignore[arg-type]
        assert float(tensor.grad[k]) == pytest.approx(slope, rel=1e-4, abs=1e-5)


def test_giou_by_number() -> None:
    box = torch.tensor([0.0, 0.0, 1.0, 1.0])
    assert float(giou(box, box)) == pytest.approx(1.0)
    assert float(giou(box, torch.tensor([1.0, 0.0, 2.0, 1.0]))) == pytest.approx(0.0)  # side by side
    assert float(giou(box, torch.tensor([2.0, 0.0, 3.0, 1.0]))) == pytest.approx(-1 / 3)  # one apart
    empty = torch.zeros(4)
    assert bool(giou(empty, empty).isfinite())


# --- truth and outputs ---------------------------------------------------------------------------


def outputs(n: int, n_frames: int, cells: int = 4, seed: int = 0) -> tuple[DecoderOutput, list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    leaves = [
        torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in ((n, n_frames, 4), (n, n_frames), (n,), (n, n_frames), (n, n_frames, cells))
    ]
    return DecoderOutput(leaves[0].sigmoid(), *leaves[1:]), leaves


def truths(n: int, n_frames: int, **changes: Any) -> SpaceTruth:
    values = {
        "boxes_cxcywh": torch.full((n, n_frames, 4), 0.4, dtype=torch.float64),
        "has_box": torch.ones(n, n_frames, dtype=torch.bool),
        "active": torch.ones(n, n_frames, dtype=torch.bool),
        "timed": torch.ones(n, dtype=torch.bool),
        "present": torch.ones(n, dtype=torch.bool),
        "judged": torch.ones(n, dtype=torch.bool),
        "frame_mask": torch.ones(n, n_frames, dtype=torch.bool),
    }
    return SpaceTruth(**{**values, **changes})


def bce(logit: float, target: float) -> float:
    p = 1 / (1 + math.exp(-logit))
    return -(target * math.log(p) + (1 - target) * math.log(1 - p))


def test_terms_against_loops() -> None:
    """Every term of a small batch, counted one by one in plain Python."""
    out, _ = outputs(3, 4)
    out = DecoderOutput(**{name: getattr(out, name).detach() for name in DecoderOutput.__slots__})
    has = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]], dtype=torch.bool)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0]], dtype=torch.bool)
    active = torch.tensor([[0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]], dtype=torch.bool)
    truth = truths(
        3,
        4,
        boxes_cxcywh=torch.rand(3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        * 0.5
        + 0.2,
        has_box=has,
        frame_mask=mask,
        active=active,
        timed=torch.tensor([True, True, False]),
        present=torch.tensor([True, False, True]),
    )
    got = {name: float(value.detach()) for name, value in space_losses(out, truth).items()}
    sums: dict[str, list[float]] = {
        name: [] for name in ("l1", "giou", "quality", "activity", "cells", "presence")
    }
    assert out.cell_logits is not None
    for q in range(3):
        sums["presence"].append(bce(float(out.presence_logits[q]), float(truth.present[q])))
        for t in range(4):
            box, true = out.boxes_cxcywh[q, t].tolist(), truth.boxes_cxcywh[q, t].tolist()
            corners = [
                (x - w / 2, y - h / 2, x + w / 2, y + h / 2) for x, y, w, h in (tuple(box), tuple(true))
            ]
            if has[q, t]:
                sums["l1"].append(sum(abs(a - b) for a, b in zip(box, true, strict=True)))
                sums["giou"].append(1 - restated_giou(*corners))
                iou = float(box_iou(torch.tensor(corners[0]), torch.tensor(corners[1])))
                sums["quality"].append(bce(float(out.quality_logits[q, t]), iou))
            if mask[q, t] and truth.timed[q]:
                sums["activity"].append(bce(float(out.activity_logits[q, t]), float(active[q, t])))
            if has[q, t] or (not truth.present[q] and mask[q, t]):
                true_cells = cell_targets(truth.boxes_cxcywh[q, t : t + 1], 4)[0] * float(has[q, t])
                sums["cells"] += [
                    bce(float(out.cell_logits[q, t, k]), float(true_cells[k])) for k in range(4)
                ]
    for name, values in sums.items():
        assert got[name] == pytest.approx(float(np.mean(values)), rel=1e-5), name
    assert got.keys() == sums.keys()


def test_boxes_are_learnt_only_where_there_is_one() -> None:
    has = torch.tensor([[True, False, False]])
    out, leaves = outputs(1, 3)
    losses = space_losses(out, truths(1, 3, has_box=has))
    (losses["l1"] + losses["giou"] + losses["quality"]).backward()
    for leaf in (leaves[0], leaves[3]):
        assert leaf.grad is not None
        assert float(leaf.grad[0, 0].abs().sum()) > 0 and float(leaf.grad[0, 1:].abs().sum()) == 0
    # ... and what stands in the other rows is without influence
    other = truths(1, 3, has_box=has)
    other.boxes_cxcywh[0, 1:] = 0.9
    again = space_losses(out, other)
    assert float(again["l1"]) == float(losses["l1"]) and float(again["giou"]) == float(losses["giou"])


def test_padding_and_untimed_questions_teach_no_activity() -> None:
    out, leaves = outputs(2, 3)
    mask = torch.tensor([[True, True, False], [True, True, True]])
    truth = truths(2, 3, frame_mask=mask, timed=torch.tensor([True, False]))
    space_losses(out, truth)["activity"].backward()
    gradient = leaves[1].grad
    assert gradient is not None
    assert gradient[0].abs().gt(0).tolist() == [True, True, False] and float(gradient[1].abs().sum()) == 0


def test_absent_targets_teach_presence_and_empty_cells() -> None:
    out, leaves = outputs(2, 2)
    none = torch.zeros(2, 2, dtype=torch.bool)
    truth = truths(2, 2, has_box=none, active=none, present=torch.tensor([False, False]))
    losses = space_losses(out, truth)
    assert float(losses["l1"]) == float(losses["giou"]) == float(losses["quality"]) == 0
    (losses["presence"] + losses["cells"]).backward()
    assert leaves[2].grad is not None and bool((leaves[2].grad > 0).all())  # pushed down: "not there"
    assert leaves[4].grad is not None and bool((leaves[4].grad > 0).all())  # pushed down: empty


def test_present_but_boxless_says_nothing_about_cells() -> None:
    """Seen in the video, but not on this frame's truth: neither full nor empty cells are known."""
    out, leaves = outputs(1, 2)
    space_losses(out, truths(1, 2, has_box=torch.tensor([[True, False]])))["cells"].backward()
    assert leaves[4].grad is not None
    assert float(leaves[4].grad[0, 1].abs().sum()) == 0 and float(leaves[4].grad[0, 0].abs().sum()) > 0


@pytest.mark.parametrize("n", [0, 2])
def test_nothing_to_count_is_a_finite_zero_with_gradient(n: int) -> None:
    out, leaves = outputs(n, 3)
    nothing, nobody = torch.zeros(n, 3, dtype=torch.bool), torch.zeros(n, dtype=torch.bool)
    truth = truths(n, 3, has_box=nothing, active=nothing, timed=nobody, present=~nobody, judged=nobody)
    logits = torch.randn(0, 11, requires_grad=True)
    middle = torch.randn(n, 3, 4, requires_grad=True)
    parts = space_losses(out, truth) | {
        "text": text_loss(logits, torch.zeros(0, dtype=torch.long)),
        "middle": middle_loss(middle, truth),
        "edges": edge_loss(middle[:, None].expand(-1, 2, -1, -1), truth),
    }
    assert all(float(value) == 0.0 for value in parts.values()), parts
    total = total_loss(parts, LossWeights())
    total.backward()
    for leaf in (*leaves, logits, middle):
        assert leaf.grad is not None and bool(leaf.grad.isfinite().all()) and not leaf.grad.any()


def test_weights_switch_terms_off_and_scale() -> None:
    names = {f.name for f in fields(LossWeights)}
    parts = {name: torch.tensor(float(k + 1)) for k, name in enumerate(sorted(names - {"space"}))}
    everything = LossWeights(**dict.fromkeys(names, 0.0))
    assert float(total_loss(parts, everything)) == 0.0
    for name in names - {"space"}:
        one = replace(everything, **{name: 2.0}, space=1.0)
        assert float(total_loss(parts, one)) == 2.0 * float(parts[name])
    assert float(total_loss(parts, replace(everything, l1=2.0))) == 0.0  # space 0 switches both box terms off
    assert float(total_loss(parts, replace(everything, l1=2.0, giou=1.0, space=3.0))) == 3 * (
        2.0 * float(parts["l1"]) + float(parts["giou"])
    )
    assert (
        float(total_loss({"l1": torch.tensor(1.0)}, LossWeights())) == 5.0
    )  # terms that do not exist count 0


def test_zero_weight_gives_no_gradient() -> None:
    out, leaves = outputs(2, 3)
    weights = LossWeights(activity=0, presence=0, quality=0, cells=0)
    total_loss(space_losses(out, truths(2, 3)), weights).backward()
    assert leaves[0].grad is not None and bool(leaves[0].grad.any())
    assert not any(leaf.grad is not None and leaf.grad.any() for leaf in leaves[1:])


def test_middle_loss_counts_going_on_and_idle() -> None:
    logits = torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True)
    truth = truths(
        3,
        2,
        has_box=torch.tensor([[True, True], [True, False], [False, False]]),
        active=torch.tensor([[True, False], [False, False], [False, False]]),
        timed=torch.tensor([True, False, True]),
        present=torch.tensor([True, True, True]),
    )
    values = []
    for q, t, full in ((0, 0, True), (0, 1, False), (1, 0, True), (2, 0, False), (2, 1, False)):
        cells = cell_targets(truth.boxes_cxcywh[q, t : t + 1], 4)[0] * float(full)
        values += [bce(float(logits[q, t, k]), float(cells[k])) for k in range(4)]
    assert float(middle_loss(logits, truth)) == pytest.approx(float(np.mean(values)), rel=1e-5)


def test_edge_loss_asks_for_the_cells_of_the_first_and_the_last_frame() -> None:
    """One timed question: going on in frames 1 and 2 of 4, of which the last is padding."""
    truth = truths(
        2,
        4,
        has_box=torch.tensor([[True, True, True, True], [True, True, True, True]]),
        active=torch.tensor([[False, True, True, False], [True, True, True, True]]),
        timed=torch.tensor([True, False]),
        frame_mask=torch.tensor([[True, True, True, False]] * 2),
    )
    cells = [cell_targets(truth.boxes_cxcywh[0, t : t + 1], 4)[0].clamp_min(1e-6) for t in (1, 2)]
    right = torch.full((2, 2, 4, 4), -40.0, dtype=torch.float64)
    for kind, frame in ((0, 1), (1, 2)):
        right[0, kind, frame] = cells[kind].log()
    entropy = sum(float(-(c / c.sum() * (c / c.sum()).log()).sum()) for c in cells) / 2
    assert float(edge_loss(right, truth)) == pytest.approx(entropy, rel=1e-4)
    swapped = right.flip(1)
    assert float(edge_loss(swapped, truth)) > entropy + 10
    padding = right.clone()
    padding[:, :, 3] = 1e3  # what stands in a frame that is not there counts nothing
    assert float(edge_loss(padding, truth)) == pytest.approx(entropy, rel=1e-4)


def test_pointing_loss_asks_for_the_cells_of_the_named_frame() -> None:
    """Words of question 0 name frame 1, of question 1 frame 2 (where it has no box: that word counts nothing)."""
    truth = truths(
        2,
        3,
        has_box=torch.tensor([[True, True, True], [True, True, False]]),
        frame_mask=torch.tensor([[True, True, False], [True, True, True]]),
    )
    question, frame = torch.tensor([0, 1]), torch.tensor([1, 2])
    cells = cell_targets(truth.boxes_cxcywh[0, 1:2], 4)[0].clamp_min(1e-6)
    cells = cells / cells.sum()
    logits = torch.full((2, 3, 4), -30.0)
    logits[0, 1] = cells.log()
    logits[0, 2] = 1e3  # a frame that is not there
    entropy = float(-(cells * cells.log()).sum())
    assert float(pointing_loss(logits, truth, question, frame)) == pytest.approx(entropy, rel=1e-4)
    assert float(pointing_loss(logits.roll(1, dims=2), truth, question, frame)) > entropy + 0.01
    nothing = logits.clone().requires_grad_()
    zero = pointing_loss(nothing, truth, torch.tensor([1, 1]), torch.tensor([2, 2]))
    zero.backward()
    assert float(zero.detach()) == 0 and nothing.grad is not None and not nothing.grad.any()


def test_words_about_a_thing_point_to_it_in_every_frame_that_shows_it() -> None:
    """ANY_FRAME: the share of each cell of each frame; where nothing is known of a question, nothing counts."""
    truth = truths(
        2,
        3,
        has_box=torch.zeros(2, 3, dtype=torch.bool),
        about=torch.tensor([[True, False, True], [False, False, False]]),
    )
    question, frame = torch.tensor([0, 1]), torch.tensor([ANY_FRAME, ANY_FRAME])
    cells = cell_targets(truth.boxes_cxcywh[0, :1], 4)[0].clamp_min(1e-6)
    shares = torch.stack([cells, torch.zeros(4, dtype=cells.dtype), cells])
    shares = shares / shares.sum()
    logits = torch.full((2, 3, 4), -30.0)
    logits[0, [0, 2]] = shares[[0, 2]].log().float()
    entropy = float(-(shares[[0, 2]] * shares[[0, 2]].log()).sum())
    assert float(pointing_loss(logits, truth, question, frame)) == pytest.approx(entropy, rel=1e-4)
    assert float(pointing_loss(logits.roll(1, dims=1), truth, question, frame)) > entropy + 1
    named = torch.tensor([0, 1]), torch.tensor([0, 1])  # a frame by name is one with a box that is asked for
    assert float(pointing_loss(logits, truth, *named)) == 0


def test_answers_in_words_know_what_they_are_about(tiny_bundle: Any) -> None:
    """All words of an answer about one thing point to it, the end of the turn to nothing; captions point nowhere."""
    bundle = tiny_bundle
    mix = WorldMix(kind="video", batch=6, questions=8, tasks=("qa",), frames=4)
    samples = world_batch(mix, 1)
    batch = collate(
        samples, bundle.model.config, bundle.layout, bundle.tokenizer, bundle.model.tokens_per_frame
    )
    targets = [t for s in samples for t in s.questions]
    kinds = set()
    for q, target in enumerate(targets):
        frames = batch.packed.answer_frame[batch.packed.answer_question == q].tolist()
        about = target.about is not None
        kinds.add((target.kind, about))
        n_end = len(bundle.layout.end)
        assert set(frames[:-n_end]) == {ANY_FRAME if about else NO_FRAME}
        assert set(frames[-n_end:]) == {NO_FRAME}
        assert batch.truth is not None and batch.truth.about is not None
        assert batch.truth.about[q].tolist() == (target.about.tolist() if about else [False] * 4)
        assert not batch.truth.has_box[q].any()
    assert {("caption", False), ("where", True), ("yes_no", True), ("yes_no", False)} <= kinds


def test_clock_loss_reads_the_digits_of_a_time() -> None:
    logits = torch.full((2, 3, 30), -40.0)
    for frame, digits in ((0, (0, 3, 4)), (1, (1, 2, 0))):  # 3.42 s is 03.4, 11.98 s is 12.0
        for place, digit in enumerate(digits):
            logits[frame, :, 10 * place + digit] = 40.0
    times = torch.tensor([3.42, 11.98], dtype=torch.float64)
    assert float(clock_loss(logits, times)) < 1e-6
    assert float(clock_loss(logits, times.flip(0))) > 10
    assert float(clock_loss(logits, None)) == 0.0


def test_text_loss_is_cross_entropy_of_answer_tokens_only(tiny_bundle: Any) -> None:
    """On real samples: the tokens counted are exactly the answers, each predicted from the token before."""
    bundle = tiny_bundle
    mix = WorldMix(kind="video", batch=2, questions=3, tasks=("stvg", "qa"), frames=4, answer_rate=0.5)
    samples = world_batch(mix, 1)
    batch = collate(
        samples, bundle.model.config, bundle.layout, bundle.tokenizer, bundle.model.tokens_per_frame
    )
    packed, end = batch.packed, bundle.layout.end[0]
    told = [q for s in samples for q in s.questions]
    learnt = [q for q in told if q.learn_answer]
    assert 0 < len(learnt) < len(told), "the mix should hold both kinds"
    # the labels are the tokens that follow the positions read, and they form the answers, in order
    assert torch.equal(packed.ids[packed.answer_row, packed.answer_at + 1], packed.answer_ids)
    assert (packed.segment[packed.answer_row, packed.answer_at] > 0).all()
    texts = "".join(bundle.tokenizer.decode(packed.answer_ids.tolist())).split("<|im_end|>")
    assert texts[-1] == "" and len(texts) - 1 == len(learnt) == int((packed.answer_ids == end).sum())
    assert all(text == q.answer for text, q in zip(texts, learnt, strict=False) if q.task == "qa")
    # the loss is their mean cross-entropy; other positions have no part in it
    logits = torch.randn(len(packed.answer_ids), 600, generator=torch.Generator().manual_seed(0))
    expected = -logits.log_softmax(-1)[torch.arange(len(logits)), packed.answer_ids].mean()
    assert float(text_loss(logits, packed.answer_ids)) == pytest.approx(float(expected), rel=1e-6)


def test_truth_of_a_batch(tiny_bundle: Any) -> None:
    """Samples to SpaceTruth: boxes, padding and flags."""
    video = WorldMix(kind="video", batch=2, questions=2, tasks=("stvg", "svg", "tvg"), frames=4)
    image = WorldMix(kind="image", batch=2, questions=2, tasks=("rec", "qa"))
    samples = world_batch(video, 0) + world_batch(image, 0)
    config, layout = tiny_bundle.model.config, tiny_bundle.layout
    batch = collate(samples, config, layout, tiny_bundle.tokenizer, tiny_bundle.model.tokens_per_frame)
    told = [(s, q) for s in samples for q in s.questions]
    assert batch.n_questions == len(told) == len(batch.truth.timed)
    assert batch.pixels.dtype == torch.uint8 and len(batch.pixels) == sum(len(s.times_s) for s in samples)
    for k, (sample, question) in enumerate(told):
        n = len(sample.times_s)
        assert batch.truth.frame_mask[k].tolist() == [True] * n + [False] * (4 - n)
        assert not batch.truth.has_box[k, n:].any() and not batch.truth.active[k, n:].any()
        assert bool(batch.truth.timed[k]) == (question.task in ("stvg", "tvg"))
        assert bool(batch.truth.judged[k]) == (question.task != "qa")
        assert bool(batch.truth.present[k]) == question.present
        box = batch.truth.boxes_cxcywh[k, :n].double().numpy()
        corners = np.concatenate([box[:, :2] - box[:, 2:] / 2, box[:, :2] + box[:, 2:] / 2], axis=1)
        assert np.allclose(corners, question.boxes_xyxy, atol=1e-6)


def test_answer_tokens_know_the_frame_whose_time_they_tell(tiny_bundle: Any) -> None:
    """Digits of the first time name the first active frame, those of the second the last; nothing else names one."""
    bundle = tiny_bundle
    config = replace(bundle.model.config, snap_answers=True)
    mix = WorldMix(
        kind="video", batch=3, questions=4, tasks=("stvg", "tvg", "svg"), frames=4, absent_rate=0.3
    )
    samples = world_batch(mix, 5)
    batch = collate(samples, config, bundle.layout, bundle.tokenizer, bundle.model.tokens_per_frame)
    packed = batch.packed
    targets = [t for s in samples for t in s.questions]
    times = [s.times_s for s in samples for _ in s.questions]
    seen = set()
    for q, target in enumerate(targets):
        at = packed.answer_question == q
        frames, ids = packed.answer_frame[at].tolist(), packed.answer_ids[at].tolist()
        if target.task == "svg" or not target.present:
            assert set(frames) == {-1}
            continue
        first, last = (round(float(t), 6) for t in snapped(target.span, times[q]))
        told: dict[int, list[int]] = {}
        for frame, token in zip(frames, ids, strict=True):
            told.setdefault(frame, []).append(token)
        words = {frame: bundle.tokenizer.decode(tokens) for frame, tokens in told.items() if frame >= 0}
        named = [int(np.abs(times[q] - t).argmin()) for t in (first, last)]
        assert set(words) == set(named)
        if named[0] != named[1]:
            assert [words[f] for f in named] == [seconds(config, t) for t in (first, last)]
            seen.add(target.task)
    assert seen
