"""Dense labels: the right thing in the right cell, and heads that learn them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tubelet.errors import ModelError, RecipeError
from tubelet.spacevllm.checkpoint import new_pico
from tubelet.spacevllm.config import DecoderConfig, SpaceVLLMConfig
from tubelet.spacevllm.dense import DenseTruth, dense_truth, doing_loss, seen_loss
from tubelet.spacevllm.model import SpaceVLLM
from tubelet.spacevllm.train import choose_parameters, make_world_batch
from tubelet.training.samples import (
    WORLD_ACTIONS,
    WORLD_ATTRIBUTES,
    Things,
    WorldMix,
    sample_times,
    world_things,
)
from tubelet.world.choreography import make_scene
from tubelet.world.scene import ACTIONS, COLOURS, SHAPES, SIZES, TEXTURES

CONFIG = SpaceVLLMConfig(
    max_frames=16,
    time_layout="interleaved",
    prompts="brief",
    mid_layer=3,
    dense_attributes=WORLD_ATTRIBUTES,
    dense_actions=WORLD_ACTIONS,
    decoder=DecoderConfig(width=32, heads=2),
)


def test_class_counts_are_the_worlds() -> None:
    assert (len(COLOURS), len(SHAPES), len(TEXTURES), len(SIZES)) == WORLD_ATTRIBUTES
    assert 1 + len(ACTIONS) == WORLD_ACTIONS


def test_a_cell_belongs_to_the_thing_that_covers_most_of_it() -> None:
    # 2 x 2 cells; thing 0 fills the left half, thing 1 a corner of the top right cell, thing 2 is out of sight
    boxes = np.array([[[0.0, 0.0, 0.5, 1.0]], [[0.7, 0.0, 1.0, 0.3]], [[0.0, 0.0, 1.0, 1.0]]])
    things = Things(
        boxes,
        np.array([[True], [True], [False]]),
        np.array([[1, 2], [3, 4], [5, 6]]),
        np.array([[7], [8], [9]]),
    )
    truth = dense_truth([things], 4)
    assert truth.has.tolist() == [[True, True, True, False]]  # top left, top right, bottom left, bottom right
    assert truth.attributes[0, :3].tolist() == [[1, 2], [3, 4], [1, 2]]
    assert truth.doing[0, :3].tolist() == [7, 8, 7]
    assert truth.boxes_cxcywh[0, 1].tolist() == pytest.approx([0.85, 0.15, 0.3, 0.3])


def test_the_worlds_things_do_what_their_events_say() -> None:
    checked = 0
    for index in range(30):
        scene = make_scene("val", 5, index)
        times = sample_times(scene.duration_s, 16)
        things = world_things(scene, times)
        for a, actor in enumerate(scene.actors):
            for t, time_s in enumerate(times):
                now = [e.action for e in actor.events if e.start_s <= time_s < e.end_s]
                assert things.doing[a, t] == (1 + ACTIONS.index(now[0]) if now else 0)
                checked += bool(now)
    assert checked > 100


def test_perfect_logits_cost_nothing_but_boxes_their_rounding() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = DenseTruth(
        torch.rand(5, 4, generator=generator) > 0.5,
        torch.rand(5, 4, 4, generator=generator) * 0.5 + 0.25,
        torch.randint(0, 2, (5, 4, 2), generator=generator),
        torch.randint(0, 3, (5, 4), generator=generator),
    )
    logits = torch.cat(
        [
            (truth.has.float() * 80 - 40)[..., None],
            truth.boxes_cxcywh.logit(),
            *(torch.nn.functional.one_hot(truth.attributes[..., k], 2) * 80.0 for k in range(2)),
        ],
        dim=-1,
    )
    assert float(seen_loss(logits, (2, 2), truth)) < 1e-4
    assert float(seen_loss(logits.flip(-1), (2, 2), truth)) > 1
    assert float(doing_loss(torch.nn.functional.one_hot(truth.doing, 3) * 80.0, truth)) < 1e-4
    nothing = DenseTruth(torch.zeros_like(truth.has), truth.boxes_cxcywh, truth.attributes, truth.doing)
    assert float(doing_loss(torch.ones(5, 4, 3), nothing)) == 0.0


def test_a_batch_carries_dense_labels_in_the_order_of_its_frames() -> None:
    bundle = new_pico(CONFIG)
    mix = WorldMix(kind="video", batch=3, questions=2, frames=8)
    batch = make_world_batch(bundle, mix, 0)
    assert batch.dense is not None and batch.dense.has.shape == (24, 16)
    out = bundle.model(batch.packed, batch.pixels.float())
    assert out.seen_logits.shape == (24, 16, 5 + sum(WORLD_ATTRIBUTES))
    assert out.doing_logits.shape == (24, 16, WORLD_ACTIONS)


def test_a_vision_stage_trains_what_sees_and_nothing_else() -> None:
    torch.manual_seed(0)
    bundle = new_pico(CONFIG)
    choose_parameters(bundle, "vision")
    names = {
        n.split(".")[0] + "." + n.split(".")[2] for n, p in bundle.model.named_parameters() if p.requires_grad
    }
    assert all("vision" in n or "projector" in n or n.startswith("seen_head") for n in names)
    mix = WorldMix(kind="image", batch=16, questions=1, tasks=("rec",))
    batch = make_world_batch(bundle, mix, 0)
    assert batch.dense is not None
    optimiser = torch.optim.Adam([p for p in bundle.model.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(25):
        out = bundle.model(None, batch.pixels.float() / 127.5 - 1)
        assert out.decoder is None
        loss = seen_loss(out.seen_logits, WORLD_ATTRIBUTES, batch.dense)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss))
    assert losses[-1] < 0.8 * losses[0]


def test_mistakes_are_named() -> None:
    with pytest.raises(ModelError, match="set mid_layer"):
        SpaceVLLMConfig(dense_actions=3)
    bundle = new_pico(SpaceVLLMConfig(decoder=DecoderConfig(width=32, heads=2)))
    assert isinstance(bundle.model, SpaceVLLM)
    with pytest.raises(RecipeError, match=r"dense_attributes"):
        choose_parameters(bundle, "vision")
