"""LLaVA-ST learns: packed rows against single ones, what each stage trains, LoRA, chained stages, rates."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tubelet.config_io import from_dict
from tubelet.errors import ModelError, RecipeError
from tubelet.llava_st.auxiliary import AuxiliaryConfig
from tubelet.llava_st.batch import chosen_frames, collate, fractions, match_truth, span_fractions
from tubelet.llava_st.checkpoint import load_llava_st
from tubelet.llava_st.config import LlavaSTConfig, PackerConfig
from tubelet.llava_st.grow import fill_tables, grow
from tubelet.llava_st.loss import soft_label_loss, soft_labels
from tubelet.llava_st.train import Learner, choose_parameters, make_job
from tubelet.spacevllm.checkpoint import new_pico
from tubelet.spacevllm.config import SpaceVLLMConfig
from tubelet.training.loop import make_optimisers, train
from tubelet.training.lora import add_lora, merged
from tubelet.training.recipe import LoraSettings, Optimiser, Recipe, Stage
from tubelet.training.samples import Sample, Target, WorldMix, world_batch
from tubelet.tube import Span

PACKER = PackerConfig(width=16, heads=2, space=2, fast=2, time=2)
SETTINGS = LlavaSTConfig(frames=4, prompts="brief", pack_images=True, motion_layers=1, packer=PACKER)
AUXILIARY = AuxiliaryConfig(middle=2, attributes=(8, 6, 3, 2), actions=14)
VIDEO = WorldMix(
    batch=2, questions=3, tasks=("stvg", "svg", "tvg", "elc", "tr", "qa"), frames=4, sampling="ends"
)
IMAGE = WorldMix(kind="image", batch=2, questions=3, tasks=("rec", "reg", "dgc", "qa"))


@pytest.fixture(scope="module")
def base() -> Any:
    torch.manual_seed(0)
    return new_pico(SpaceVLLMConfig(max_frames=4, prompts="brief"))


@pytest.fixture
def bundle(base: Any) -> Any:
    """A LLaVA-ST grown from a pico base, with layers that say something."""
    grown = grow(base.model.base, base.tokenizer, SETTINGS)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in grown.model.motion.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return grown


@pytest.fixture(scope="module")
def base_folder(base: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tubelet.spacevllm.saving import save_base

    return save_base(base, tmp_path_factory.mktemp("base") / "model", auxiliary=False)


def pixels_of(batch: Any) -> torch.Tensor:
    return batch.pixels.float() / 127.5 - 1


# --- rows ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mix", [VIDEO, IMAGE], ids=["video", "image"])
def test_packed_questions_learn_as_single_ones(bundle: Any, mix: WorldMix) -> None:
    """States of answers, and the gradients of a sum over labels, equal those of one question per row."""
    model = bundle.model
    samples = world_batch(mix, 3)
    together = collate(samples, model, bundle.tokenizer)
    single = [
        collate([replace(s, questions=(q,))], model, bundle.tokenizer) for s in samples for q in s.questions
    ]
    assert together.n_questions == len(single) == len(together.rows.asks_row) >= 5

    def states(batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        rows = batch.rows
        visuals, _ = model.encode_batch(pixels_of(batch), batch.positions)
        hidden, _ = model.read_rows(rows.ids, visuals, rows.variables, rows.segment, rows.position, middle=2)
        labels = soft_labels(rows.ids, rows.labels, rows.variables, model.words)
        loss = soft_label_loss(hidden, model.trained_head(), labels) * 0
        each = hidden[labels.row, labels.at]
        loss = loss + (each @ model.trained_head()[labels.low].T).diagonal().sum()
        model.zero_grad()
        loss.backward()
        gradient = torch.cat([model.packer.space.value[0].weight.grad, model.motion[0].out.weight.grad.T])
        return each.detach(), gradient.clone()

    whole, gradient = states(together)
    parts, total = zip(*(states(one) for one in single), strict=True)
    torch.testing.assert_close(whole, torch.cat(parts), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(gradient, sum(total), atol=2e-3, rtol=1e-3)
    assert float(gradient.norm()) > 0


def test_labels_stand_on_answers_only(bundle: Any) -> None:
    batch = collate(world_batch(VIDEO, 0), bundle.model, bundle.tokenizer)
    rows, words = batch.rows, bundle.words
    for row in range(len(rows.ids)):
        for k in range(1, int(rows.segment[row].max()) + 1):
            at = rows.segment[row] == k
            ids, labels = rows.ids[row][at], rows.labels[row][at]
            asked = int((ids == words.turn_start).nonzero()[0])
            start = asked + 1 + len(bundle.tokenizer("assistant\n", add_special_tokens=False)["input_ids"])
            assert bool((labels[:start] == -100).all()) and torch.equal(labels[start:], ids[start:])
            assert int(ids[-1]) == words.turn_end
    assert bool((rows.labels[rows.segment <= 0] == -100).all())
    assert all(int(rows.segment[r, at]) > 0 for r, at in zip(rows.asks_row, rows.asks_at, strict=True))


def test_every_coordinate_word_knows_its_frame(bundle: Any) -> None:
    """Spans name the first and the last active frame, boxes the frame they stand in."""
    samples = world_batch(replace(VIDEO, batch=4, tasks=("stvg", "svg", "tvg", "elc"), frames=8), 1)
    batch = collate(samples, bundle.model, bundle.tokenizer, max_boxes=3)
    targets = [t for s in samples for t in s.questions]
    rows = batch.rows
    coordinates = [bundle.words.output_placeholder(axis) for axis in range(3)]
    told: dict[int, list[int]] = {}
    for row, at, question, frame in rows.named.tolist():
        assert int(rows.labels[row, at + 1]) in coordinates  # the word after it is the one that is named
        told.setdefault(question, []).append(frame)
    assert {t.task for k, t in enumerate(targets) if k in told} == {"stvg", "svg", "tvg", "elc"}
    for k, frames in told.items():
        target, active = targets[k], np.nonzero(targets[k].active)[0]
        chosen = chosen_frames(target, 3).tolist()
        if target.task in ("stvg", "tvg") and len(active):
            assert frames[:2] == [active[0], active[-1]]
            frames = frames[2:]
        if target.task == "elc" and len(active):
            assert frames.pop(0) == active[-1]
        if target.task != "tvg" and len(active):
            assert frames == [f for f in chosen for _ in range(5)]


@pytest.mark.parametrize("frames", [2, 4, 5])
def test_a_batch_of_videos_is_encoded_as_one_by_one(bundle: Any, frames: int) -> None:
    """Also where the slow block's windows do not divide the frames; and frames read their neighbours."""
    model, size = bundle.model, bundle.model.image_size
    pixels = torch.randn(3, frames, 3, size, size)
    positions = torch.rand(3, frames, dtype=torch.float64).sort().values
    with torch.no_grad():
        together, cells = model.encode_batch(pixels, positions)
        for k in range(3):
            alone = model.encode_video(pixels[k], positions[k], chunk=2)
            torch.testing.assert_close(together[k].slow, alone.slow, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(together[k].fast, alone.fast, atol=1e-5, rtol=1e-4)
        other = pixels.clone()
        other[:, -1] += 1.0
        moved = model.encode_batch(other, positions)[1]
    assert cells.shape == (3, frames, 16, 128)
    assert float((moved[:, -2] - cells[:, -2]).abs().max()) > 1e-3


def test_a_batch_of_images_is_encoded_as_one_by_one(bundle: Any, base: Any) -> None:
    model, size = bundle.model, bundle.model.image_size
    pixels = torch.randn(3, 1, 3, size, size)
    with torch.no_grad():
        together, _ = model.encode_batch(pixels, torch.zeros(3, 1))
        for k in range(3):
            torch.testing.assert_close(
                together[k].image, model.encode_image(pixels[k]).image, atol=1e-5, rtol=1e-4
            )
    plain = grow(base.model.base, base.tokenizer, replace(SETTINGS, pack_images=False))
    with pytest.raises(ModelError, match="pack_images"):
        plain.model.encode_batch(pixels, torch.zeros(3, 1))


# --- truth to words --------------------------------------------------------------------------------


def target(task: str, span: Span | None, has: list[bool], active: list[bool]) -> Target:
    n = len(has)
    boxes = np.tile([0.1, 0.2, 0.3, 0.4], (n, 1)) + 0.05 * np.arange(n)[:, None]
    return Target(task, "the cat", True, boxes, np.array(has), np.array(active), span)


def test_spans_are_cut_to_the_frames_and_have_a_length() -> None:
    times = np.array([1.0, 2.0, 3.0, 5.0])
    assert fractions(times).tolist() == [0.0, 0.25, 0.5, 1.0]
    flags = [True] * 4
    assert span_fractions(target("tvg", Span(2.0, 9.0), flags, flags), times) == (0.25, 1.0)
    start, end = span_fractions(target("tvg", Span(7.0, 9.0), flags, flags), times)
    assert end == 1.0 and 0 < end - start < 0.02  # after the last frame: one coordinate step
    assert fractions(np.array([3.0])).tolist() == [0.0]


def test_an_answer_lists_seen_and_active_frames_evenly() -> None:
    active = [False, True, True, True, True, True, True, True]
    seen = [True, True, True, False, True, True, True, True]
    assert chosen_frames(target("stvg", Span(0, 1), seen, active), 3).tolist() == [1, 4, 7]
    assert chosen_frames(target("stvg", Span(0, 1), seen, active), 9).tolist() == [1, 2, 4, 5, 6, 7]
    assert chosen_frames(target("rec", None, [True], [False]), 3).tolist() == [0]
    # between two frames: the first frame in which it is seen at all
    assert chosen_frames(target("stvg", Span(0, 1), seen, [False] * 8), 3).tolist() == [0]


def test_the_match_learns_windows_of_frames() -> None:
    one = target("stvg", Span(0, 1), [True, True, False, True, False], [False, True, True, False, False])
    sample = Sample(np.zeros((5, 2, 2, 3), np.uint8), np.arange(5.0), 5.0, (one,))
    truth = match_truth([sample], 2)
    assert truth.has_box.tolist() == [[True, True, False]] and truth.active.tolist() == [[True, True, False]]
    expected = (one.boxes_xyxy[0] + one.boxes_xyxy[1]) / 2
    centre = [(expected[0] + expected[2]) / 2, (expected[1] + expected[3]) / 2]
    assert truth.boxes_cxcywh[0, 0, :2].tolist() == pytest.approx(centre)
    assert truth.boxes_cxcywh[0, 1, 0] == pytest.approx((one.boxes_xyxy[3, 0] + one.boxes_xyxy[3, 2]) / 2)


# --- stages ----------------------------------------------------------------------------------------


def stage_of(kind: str, steps: int = 2, **changes: Any) -> Stage:
    return Stage(kind, steps, (VIDEO,), train=kind, optimiser=Optimiser(lr=1e-2, weight_decay=0.0, **changes))


def recipe_of(folder: Path, start: Path | str, kind: str, **changes: Any) -> Recipe:
    settings: dict[str, Any] = {"llava_st": SETTINGS} if changes.pop("grows", True) else {}
    stage = changes.pop("stage", stage_of(kind))
    return Recipe("t", "llava-st", (stage,), str(start), str(folder), workers=0, **settings, **changes)


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_each_stage_trains_what_was_published(base_folder: Path, tmp_path: Path) -> None:
    """Content: packer and ordinary embeddings. Coordinates: LoRA (merged), packer, embeddings, six tables."""
    first = recipe_of(tmp_path / "1", base_folder, "content")
    job = make_job(first)
    model = job.model.model
    vocabulary = model.config.vocabulary
    before = {k: v.clone() for k, v in model.state_dict().items()}
    assert not before["llm.lm_head.weight"][vocabulary:].any()  # content alignment knows no coordinates
    train(first, job)
    one = load_llava_st(tmp_path / "1" / "model").model.state_dict()
    moved = changed(before, one)
    assert moved and all(n.startswith(("packer.", "motion.", "llm.model.embed_tokens")) for n in moved)
    assert any(n.startswith("packer.slow") for n in moved) and any(n.startswith("packer.fast") for n in moved)
    table = "llm.model.embed_tokens.weight"
    assert not torch.equal(before[table][:vocabulary], one[table][:vocabulary])
    assert torch.equal(before[table][vocabulary:], one[table][vocabulary:])

    lora = LoraSettings(rank=4, alpha=8.0, dropout=0.0)
    second = recipe_of(tmp_path / "2", tmp_path / "1" / "model", "coordinates", grows=False, lora=lora)
    job = make_job(second)
    start = job.model.model.state_dict()
    for name in one:  # the packer goes along: nothing is begun anew
        if name.startswith(("packer.", "motion.", "vision.", "projector.")):
            assert torch.equal(start[name], one[name]), name
    assert start["llm.lm_head.weight"][vocabulary:].any()  # the tables appear
    head = start["llm.lm_head.weight"].clone()
    train(second, job)
    two = load_llava_st(tmp_path / "2" / "model").model.state_dict()
    assert set(two) == set(one)  # no adapter is left
    frozen = {n for n in one if n.startswith(("vision.", "projector.")) or "layernorm" in n}
    assert not changed({n: one[n] for n in frozen}, two)
    assert "llm.model.layers.0.self_attn.q_proj.weight" in changed(one, two)
    assert torch.equal(two["llm.lm_head.weight"][:vocabulary], one["llm.lm_head.weight"][:vocabulary])
    assert not torch.equal(two["llm.lm_head.weight"][vocabulary:], head[vocabulary:])


def test_training_only_heads_go_along_but_are_not_part_of_the_model(
    base_folder: Path, tmp_path: Path
) -> None:
    first = recipe_of(tmp_path / "1", base_folder, "motion", auxiliary=AUXILIARY)
    job = make_job(first)
    train(first, job)
    heads = {k: v.clone() for k, v in job.model.auxiliary.state_dict().items()}
    assert heads
    second = recipe_of(tmp_path / "2", tmp_path / "1" / "model", "all", grows=False, auxiliary=AUXILIARY)
    again = make_job(second).model
    assert not changed(heads, again.auxiliary.state_dict())
    assert not any("auxiliary" in name for name in load_llava_st(tmp_path / "1" / "model").model.state_dict())


def test_lora_changes_nothing_at_first_and_merges_exactly(bundle: Any) -> None:
    model = bundle.model
    ids = torch.randint(0, 200, (1, 9))
    plain = model.llm(input_ids=ids).logits
    add_lora(model.llm.model, LoraSettings(rank=4, alpha=16.0, dropout=0.0))
    names = set(model.state_dict())
    torch.testing.assert_close(model.llm(input_ids=ids).logits, plain, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    adapted = model.llm(input_ids=ids).logits
    assert float((adapted - plain).detach().abs().max()) > 1e-2
    with merged(model):
        assert not any("lora" in name for name in model.state_dict())
        torch.testing.assert_close(model.llm(input_ids=ids).logits, adapted, atol=1e-4, rtol=1e-4)
    assert set(model.state_dict()) == names
    torch.testing.assert_close(model.llm(input_ids=ids).logits, adapted, atol=1e-4, rtol=1e-4)


def test_rates_of_groups_really_apply(bundle: Any) -> None:
    """AdamW's first step is the rate itself: what a scale says is what the parameters do."""
    learner = Learner(bundle.model, AuxiliaryConfig())
    choose_parameters(learner, "all")
    settings = Optimiser(lr=1e-2, weight_decay=0.0, scales={"packer": 0.1, "embed_tokens": 0.0})
    (optimiser,) = make_optimisers(learner, settings)
    before = {n: p.detach().clone() for n, p in learner.named_parameters()}
    for parameter in learner.parameters():
        parameter.grad = torch.ones_like(parameter)
    for group in optimiser.param_groups:
        group["lr"] = settings.lr * group["scale"]
    optimiser.step()
    for name, parameter in learner.named_parameters():
        step = float((before[name] - parameter.detach()).abs().mean())
        rate = 0.0 if "embed_tokens" in name else 1e-3 if "packer" in name else 1e-2
        assert step == pytest.approx(rate, rel=1e-2, abs=1e-9), name


def test_it_learns_where_a_thing_is(bundle: Any, base: Any) -> None:
    """A few steps on the same pictures: the loss of their answers falls far below where it starts."""
    fresh = grow(base.model.base, base.tokenizer, SETTINGS)
    learner = Learner(fresh.model, AuxiliaryConfig(middle=2)).train()
    choose_parameters(learner, "all")
    batch = collate(world_batch(replace(IMAGE, batch=6, tasks=("rec",)), 0), fresh.model, fresh.tokenizer)
    optimiser = torch.optim.AdamW(learner.parameters(), lr=3e-3)
    losses = []
    for _ in range(25):
        parts = learner(batch, pixels_of(batch), "mean", False)
        optimiser.zero_grad()
        (parts["text"] + parts["middle"]).backward()
        optimiser.step()
        losses.append(float(parts["text"].detach()))
    assert losses[0] > 3 and losses[-1] < 0.6 * losses[0]


def test_checkpointed_layers_have_the_same_gradients(bundle: Any) -> None:
    """Recomputed layers change memory, not numbers."""
    learner = Learner(bundle.model, AuxiliaryConfig(middle=2)).train()
    choose_parameters(learner, "all")
    batch = collate(world_batch(VIDEO, 2), bundle.model, bundle.tokenizer)

    def gradients() -> dict[str, torch.Tensor]:
        learner.zero_grad()
        learner(batch, pixels_of(batch), "mean", False)["text"].backward()
        return {n: p.grad.clone() for n, p in learner.named_parameters() if p.grad is not None}

    plain = gradients()
    bundle.model.llm.gradient_checkpointing_enable({"use_reentrant": False})
    again = gradients()
    assert plain.keys() == again.keys() and len(plain) > 50
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient, atol=1e-5, rtol=1e-3)


def test_tables_appear_once(bundle: Any, base: Any) -> None:
    empty = grow(base.model.base, base.tokenizer, SETTINGS, tables=False)
    first = empty.config.vocabulary
    assert not empty.model.embeddings[first:].any() and not empty.model.head[first:].any()
    fill_tables(empty.model)
    kept = empty.model.embeddings.detach().clone()
    assert kept[first:].any() and kept[first:].std() == pytest.approx(float(kept[:first].std()), rel=0.1)
    fill_tables(empty.model, seed=5)
    assert torch.equal(empty.model.embeddings, kept)


def test_mistakes_are_named(base_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="grows from a base"):
        make_job(recipe_of(tmp_path, "", "all"))
    with pytest.raises(RecipeError, match="learns in stages"):
        make_job(recipe_of(tmp_path, base_folder, "decoder"))
    with pytest.raises(RecipeError, match=r"lora\.rank"):
        LoraSettings(rank=-1)
    with pytest.raises(RecipeError, match="max_boxes"):
        recipe_of(tmp_path, base_folder, "all", max_boxes=0)
    with pytest.raises(RecipeError, match="sampling"):
        WorldMix(sampling="middle")
    with pytest.raises(ModelError, match="official mode has no motion_layers"):
        LlavaSTConfig(mode="official", motion_layers=1)
    data = {"name": "x", "model": "llava-st", "stages": [{"name": "a", "steps": 1, "data": [{}]}]}
    data["stages"][0]["optimiser"] = {"scales": {"packer": 0.1}}
    assert from_dict(Recipe, data).stages[0].optimiser.scales == {"packer": 0.1}
    first = recipe_of(tmp_path / "1", base_folder, "motion", stage=stage_of("motion", 1), auxiliary=AUXILIARY)
    train(first, make_job(first))
    other = replace(
        recipe_of(tmp_path / "2", tmp_path / "1" / "model", "all"), llava_st=replace(SETTINGS, bins=50)
    )
    with pytest.raises(RecipeError, match="other settings"):
        make_job(other)
