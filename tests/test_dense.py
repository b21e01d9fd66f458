"""Dense labels: the right thing in the right cell, and heads that learn them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tubelet.errors import ModelError, RecipeError
from tubelet.spacevllm.checkpoint import new_pico, with_settings
from tubelet.spacevllm.config import DecoderConfig, SpaceVLLMConfig
from tubelet.spacevllm.dense import DenseTruth, dense_truth, doing_loss, seen_loss
from tubelet.spacevllm.model import SpaceVLLM
from tubelet.spacevllm.train import choose_parameters, make_world_batch
from tubelet.training.samples import (
    POSE,
    WORLD_ACTIONS,
    WORLD_ATTRIBUTES,
    Things,
    WorldMix,
    sample_times,
    world_things,
)
from tubelet.world.choreography import make_scene
from tubelet.world.scene import ACTIONS, COLOURS, SHAPES, SIZES, SYMMETRY, TEXTURES

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
        np.zeros((3, 1, 3)),
    )
    truth = dense_truth([things], 4)
    assert truth.has.tolist() == [[True, True, True, False]]  # top left, top right, bottom left, bottom right
    assert truth.attributes[0, :3].tolist() == [[1, 2], [3, 4], [1, 2]]
    assert truth.doing[0, :3].tolist() == [7, 8, 7]
    assert truth.boxes_cxcywh[0, 1].tolist() == pytest.approx([0.85, 0.15, 0.3, 0.3])


def test_a_box_changes_since_the_frame_before() -> None:
    boxes = np.array([[[0.0, 0.0, 0.4, 0.4], [0.1, 0.0, 0.5, 0.4], [0.6, 0.0, 1.0, 0.6]]])
    seen = np.array([[True, True, True]])
    classes = np.zeros((1, 1), dtype=np.int64), np.zeros((1, 3), dtype=np.int64), np.zeros((1, 3, 3))
    truth = dense_truth([Things(boxes, seen, *classes)], 4)
    assert truth.has_change.any(1).tolist() == [False, True, True]
    assert truth.change[1, 0].tolist() == pytest.approx([0.1, 0.0, 0.0, 0.0])
    assert truth.change[2, 1].tolist() == pytest.approx([0.5, 0.1, 0.0, 0.2])
    blinked = dense_truth([Things(boxes, np.array([[True, False, True]]), *classes)], 4)
    assert not blinked.has_change.any()


def test_pose_is_the_same_after_a_turn_that_changes_nothing() -> None:
    for index in range(40):
        scene = make_scene("val", 6, index)
        for a, actor in enumerate(scene.actors):
            spin = next((e for e in actor.events if e.action == "spin"), None)
            pose = world_things(scene, np.linspace(0, scene.duration_s, 7)).pose[a]
            assert np.abs(pose).max() <= 1 and (pose[:, 2] > 0).all()
            if actor.shape in ("circle", "ring"):
                assert not pose[:, :2].any()
            elif spin is None:
                assert np.ptp(pose[:, :2], axis=0).max() == 0
            else:
                turns_s = 2 * np.pi / SYMMETRY[actor.shape] / np.radians(100)
                if spin.end_s - spin.start_s > turns_s + 0.2:
                    at = spin.start_s + 0.1 + np.array([0, turns_s / 2, turns_s])
                    first, half, whole = world_things(scene, at).pose[a, :, :2]
                    assert whole == pytest.approx(first, abs=1e-6) and half == pytest.approx(-first, abs=1e-6)


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


def test_perfect_logits_cost_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = DenseTruth(
        has=torch.rand(5, 4, generator=generator) > 0.5,
        boxes_cxcywh=torch.rand(5, 4, 4, generator=generator) * 0.5 + 0.25,
        attributes=torch.randint(0, 2, (5, 4, 2), generator=generator),
        pose=torch.rand(5, 4, 3, generator=generator),
        doing=torch.randint(0, 3, (5, 4), generator=generator),
        change=torch.rand(5, 4, 4, generator=generator) - 0.5,
        has_change=torch.rand(5, 4, generator=generator) > 0.3,
    )
    logits = torch.cat(
        [
            (truth.has.float() * 80 - 40)[..., None],
            truth.boxes_cxcywh.logit(),
            truth.pose,
            *(torch.nn.functional.one_hot(truth.attributes[..., k], 2) * 80.0 for k in range(2)),
        ],
        dim=-1,
    )
    assert float(seen_loss(logits, (2, 2), truth)) < 1e-4
    assert float(seen_loss(logits.flip(-1), (2, 2), truth)) > 1
    told = torch.cat([10 * truth.change, torch.nn.functional.one_hot(truth.doing, 3) * 80.0], dim=-1)
    assert float(doing_loss(told[None].expand(2, -1, -1, -1), truth)) < 1e-4
    half_wrong = torch.stack([told, -told])
    assert float(doing_loss(half_wrong, truth)) == pytest.approx(float(doing_loss(-told[None], truth)) / 2)
    nothing = replace(truth, has=torch.zeros_like(truth.has))
    assert float(doing_loss(told[None], nothing)) == 0.0


def test_a_batch_carries_dense_labels_in_the_order_of_its_frames() -> None:
    bundle = new_pico(CONFIG)
    mix = WorldMix(kind="video", batch=3, questions=2, frames=8)
    batch = make_world_batch(bundle, mix, 0)
    assert batch.dense is not None and batch.dense.has.shape == (24, 16)
    out = bundle.model(batch.packed, batch.pixels.float())
    assert out.seen_logits.shape == (24, 16, 5 + POSE + sum(WORLD_ATTRIBUTES))
    assert out.doing_logits.shape == (2, 24, 16, 4 + WORLD_ACTIONS)
    # what the trunk is doing does not depend on the questions behind it
    alone = make_world_batch(bundle, mix, 0, asks=False)
    assert alone.truth is None and alone.n_questions == 3
    bare = bundle.model(alone.packed, alone.pixels.float())
    assert bare.decoder is None and torch.allclose(bare.doing_logits, out.doing_logits, atol=1e-4)


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
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]


def test_a_trunk_stage_leaves_the_vision_tower_alone() -> None:
    bundle = new_pico(CONFIG)
    choose_parameters(bundle, "trunk")
    names = [n for n, p in bundle.model.named_parameters() if p.requires_grad]
    parts = ("language_model", "doing_head", "visual_in")
    assert names and all(any(part in n for part in parts) for n in names)


def test_motion_layers_change_nothing_at_first_and_learn_alone() -> None:
    """Given to a model that has none, they leave every output as it was; a motion stage trains them only."""
    torch.manual_seed(0)
    plain = new_pico(CONFIG)
    grown = with_settings(plain, replace(CONFIG, motion_layers=2))
    mix = WorldMix(kind="video", batch=2, questions=2, frames=6)
    batch = make_world_batch(plain, mix, 0)
    pixels = batch.pixels.float() / 127.5 - 1
    before, after = (bundle.model(batch.packed, pixels) for bundle in (plain, grown))
    assert torch.allclose(before.decoder.boxes_cxcywh, after.decoder.boxes_cxcywh, atol=1e-5)
    assert after.doing_logits.shape[0] == 3 and torch.allclose(
        before.doing_logits, after.doing_logits[:2], atol=1e-4
    )
    choose_parameters(grown, "motion")
    learning = [(n, p) for n, p in grown.model.named_parameters() if p.requires_grad]
    assert learning and all(n.startswith(("motion.", "first_doing_head.")) for n, _ in learning)
    optimiser = torch.optim.Adam([p for _, p in learning], lr=3e-3)
    losses = []
    for _ in range(25):
        out = grown.model(batch.packed, pixels, only_motion=True)
        assert out.decoder is None
        loss = doing_loss(out.doing_logits, batch.dense)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]
    # now they speak, and what they say of a frame depends on its neighbours
    features = grown.model.frame_features(pixels)
    mask = batch.packed.frame_mask
    together = grown.model.with_motion(features, mask)
    alone = grown.model.with_motion(features[:1], torch.ones(1, 1, dtype=torch.bool))
    assert not torch.allclose(together[0], alone[0], atol=1e-3)


def test_mistakes_are_named() -> None:
    with pytest.raises(ModelError, match="motion_layers at least 0"):
        SpaceVLLMConfig(motion_layers=-1)
    with pytest.raises(RecipeError, match=r"motion_layers"):
        choose_parameters(new_pico(CONFIG), "motion")
    with pytest.raises(ModelError, match="set mid_layer"):
        SpaceVLLMConfig(dense_actions=3)
    bundle = new_pico(SpaceVLLMConfig(decoder=DecoderConfig(width=32, heads=2)))
    assert isinstance(bundle.model, SpaceVLLM)
    with pytest.raises(RecipeError, match=r"dense_attributes"):
        choose_parameters(bundle, "vision")
