"""Packed questions learn exactly what the same questions learn one by one: the same gradients, within 1e-5."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from tubelet.spacevllm.batch import collate, normalise
from tubelet.spacevllm.loss import LossWeights, space_losses, text_loss, total_loss
from tubelet.training.samples import Sample, WorldMix, world_batch


def gradients_of(bundle: Any, samples: list[Sample]) -> dict[str, torch.Tensor]:
    model = bundle.model
    model.zero_grad(set_to_none=True)
    batch = collate(samples, model.config, bundle.layout, bundle.tokenizer, model.tokens_per_frame)
    out = model(batch.packed, normalise(batch.pixels, bundle.pixel_mean, bundle.pixel_std))
    parts = space_losses(out.decoder, batch.truth)
    parts["text"] = text_loss(out.answer_logits, batch.packed.answer_ids)
    total_loss(parts, LossWeights()).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_packed_gradients_are_those_of_single_questions(
    new_tiny: Callable[..., Any], checkpointing: bool
) -> None:
    bundle = new_tiny(trained_scale=True)
    bundle.model.train()
    if checkpointing:
        bundle.model.base.model.language_model.gradient_checkpointing_enable({"use_reentrant": False})
    samples = world_batch(WorldMix(batch=2, questions=8, frames=4, tasks=("stvg", "tvg", "qa")), 3)
    single = [replace(sample, questions=(question,)) for sample in samples for question in sample.questions]
    assert len(single) >= 12
    packed, alone = gradients_of(bundle, samples), gradients_of(bundle, single)
    assert packed.keys() == alone.keys()
    for name, gradient in packed.items():
        assert torch.allclose(gradient, alone[name], atol=1e-5), (
            name,
            float((gradient - alone[name]).abs().max()),
        )
    assert max(float(g.abs().max()) for g in packed.values()) > 1e-2  # there is something to compare
    fewer = gradients_of(bundle, single[1:])
    assert any(not torch.allclose(packed[name], fewer[name], atol=1e-5) for name in packed)  # it can fail
