"""Attention that is taught: the model's own numbers, and a loss that asks for it to fall on the thing asked about."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tubelet.packed import block_mask, mask_for
from tubelet.spacevllm.batch import collate, normalise
from tubelet.spacevllm.looking import attention_of, looking_loss
from tubelet.spacevllm.loss import SpaceTruth, cell_targets
from tubelet.spacevllm.pack import ANY_FRAME, NO_FRAME
from tubelet.training.samples import WorldMix, world_batch


def test_it_is_the_attention_that_the_model_computes(new_tiny: Any) -> None:
    """Equal to transformers' eager maps, mean over heads, at the visual tokens of each row."""
    bundle = new_tiny()
    model = bundle.model
    mix = WorldMix(kind="video", batch=2, questions=4, tasks=("qa",), frames=4)
    batch = collate(
        world_batch(mix, 2), model.config, bundle.layout, bundle.tokenizer, model.tokens_per_frame
    )
    packed, lm = batch.packed, model.base.model.language_model
    pixels = normalise(batch.pixels, bundle.pixel_mean, bundle.pixel_std)
    with torch.no_grad():
        embeds = model.embed(packed, model.with_motion(model.frame_features(pixels), packed.frame_mask))
        lm.set_attn_implementation("eager")
        out = lm(
            inputs_embeds=embeds,
            attention_mask=mask_for(lm, block_mask(packed.segment), embeds.dtype),
            position_ids=packed.position,
            output_attentions=True,
            output_hidden_states=True,
            use_cache=False,
        )
        at = packed.answer_row, packed.answer_at
        for layer in range(len(lm.layers)):
            found = attention_of(lm, layer, out.hidden_states[layer], packed, *at)
            maps = out.attentions[layer].mean(1)[at]  # (A, L)
            wanted = maps.gather(1, packed.visual_at[at[0]].flatten(1)).view_as(found)
            assert torch.allclose(found, wanted, atol=1e-6)
            assert float(found.sum((-2, -1)).max()) < 1


def test_the_loss_wants_attention_on_the_thing_in_any_frame() -> None:
    boxes = torch.tensor([0.25, 0.25, 0.5, 0.5]).expand(2, 3, 4)
    flags = torch.ones(2, dtype=torch.bool)
    truth = SpaceTruth(
        boxes_cxcywh=boxes,
        has_box=torch.zeros(2, 3, dtype=torch.bool),
        active=torch.zeros(2, 3, dtype=torch.bool),
        timed=~flags,
        present=flags,
        judged=~flags,
        frame_mask=torch.ones(2, 3, dtype=torch.bool),
        about=torch.tensor([[True, True, False], [False, False, False]]),
    )
    cell = int(cell_targets(boxes[0, :1], 4)[0].argmax())
    attention = torch.full((2, 3, 4), 0.01)
    attention[0, 1, cell] = 0.6
    question, anywhere = torch.tensor([0, 1]), torch.tensor([ANY_FRAME, ANY_FRAME])
    assert float(looking_loss(attention, truth, question, anywhere)) == pytest.approx(
        -torch.log(torch.tensor(0.61))
    )
    away = attention.clone()
    away[0, 1, cell], away[0, 2, cell] = 0.01, 0.6  # where it is not seen any more
    assert float(looking_loss(away, truth, question, anywhere)) == pytest.approx(
        -torch.log(torch.tensor(0.02))
    )
    none = attention.clone().requires_grad_()
    looking_loss(none, truth, question[1:], anywhere[1:]).backward()
    assert none.grad is not None and not none.grad.any()


def test_words_that_tell_a_time_should_look_at_that_frame() -> None:
    """All of it, whatever it shows; words about other things in the same batch keep their own aim."""
    flags = torch.ones(2, dtype=torch.bool)
    truth = SpaceTruth(
        boxes_cxcywh=torch.tensor([0.25, 0.25, 0.5, 0.5]).expand(2, 3, 4),
        has_box=torch.zeros(2, 3, dtype=torch.bool),
        active=torch.zeros(2, 3, dtype=torch.bool),
        timed=flags,
        present=flags,
        judged=flags,
        frame_mask=torch.ones(2, 3, dtype=torch.bool),
        about=torch.tensor([[False, False, False], [True, False, False]]),
    )
    attention = torch.full((2, 3, 4), 0.01)
    attention[0, 2, 3], attention[1, 0, 0] = 0.4, 0.2
    question = torch.tensor([0, 1])
    told = looking_loss(attention, truth, question, torch.tensor([2, ANY_FRAME]))
    assert float(told) == pytest.approx(-(math.log(0.43) + math.log(0.2)) / 2, rel=1e-5)
    elsewhere = looking_loss(attention, truth, question[:1], torch.tensor([1]))
    assert float(elsewhere) == pytest.approx(-math.log(0.04), rel=1e-5)


def test_training_on_it_draws_the_attention_there(new_tiny: Any) -> None:
    """A few steps on one batch with this loss alone: the share of attention on the target grows several times."""
    bundle = new_tiny()
    model = bundle.model
    mix = WorldMix(kind="image", batch=8, questions=4, tasks=("qa",))
    batch = collate(
        world_batch(mix, 0), model.config, bundle.layout, bundle.tokenizer, model.tokens_per_frame
    )
    pixels = normalise(batch.pixels, bundle.pixel_mean, bundle.pixel_std)
    told = batch.packed.answer_frame != NO_FRAME
    words = batch.packed.answer_question[told], batch.packed.answer_frame[told]
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for _ in range(30):
        loss = looking_loss(model(batch.packed, pixels, False, True).looks, batch.truth, *words)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 1.0
