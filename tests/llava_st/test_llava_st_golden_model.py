"""Against the published code's numbers: whole forward passes, greedy answers, losses and gradients."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import golden_files
import pytest
import torch

from tubelet.llava_st.checkpoint import Bundle, load_llava_st
from tubelet.llava_st.coordinates import Variables, Worded
from tubelet.llava_st.generate import Read, generate, read_pixels
from tubelet.llava_st.loss import soft_label_loss, soft_labels
from tubelet.llava_st.model import LlavaST, Visual
from tubelet.llava_st.official_layout import OfficialGeometry, official_name, table_name
from tubelet.llava_st.official_text import demo_prompt
from tubelet.llava_st.prompts import prompt_ids, split_mark, training_ids

# the tolerances that the golden files' own description suggests
EMBEDS, LOGITS, DOT, LOSS = 2e-4, 5e-4, 1e-3, 1e-4
VIDEO_MODES = ("official", "fast_fixed", "width_fixed", "fixed")


@pytest.fixture(scope="module")
def bundle(golden: Path) -> Bundle:
    return load_llava_st(golden / "checkpoint", geometry=OfficialGeometry(vision_heads=2, packer_heads=4))


@contextmanager
def mode_of(model: LlavaST, mode: str) -> Iterator[None]:
    before = model.config
    model.config = replace(before, mode=mode)
    try:
        yield
    finally:
        model.config = before


_visuals: dict[tuple[str, float], Visual] = {}


def visual_of(bundle: Bundle, modality: str, phase: float, frames: int) -> Visual:
    """With the fast tokens; read once per picture."""
    key = (modality, phase)
    if key not in _visuals:
        with torch.no_grad(), mode_of(bundle.model, "fixed"):
            pixels = golden_files.pixels(frames, phase)
            encode = bundle.model.encode_image if modality == "image" else bundle.model.encode_video
            _visuals[key] = encode(pixels)
    return _visuals[key]


@pytest.fixture(scope="module", params=["image", "video"])
def forward(request: pytest.FixtureRequest, golden: Path, bundle: Bundle) -> dict[str, Any]:
    name = f"forward_{request.param}"
    data: dict[str, Any] = json.loads((golden / f"{name}.json").read_text())
    data["tensors"] = golden_files.tensors(golden, name)
    data["visual"] = visual_of(bundle, data["modality"], data["pixel_phase"], data["frames"])
    return data


def test_visual_features(forward: dict[str, Any], bundle: Bundle) -> None:
    g, visual = forward["tensors"], forward["visual"]
    if forward["modality"] == "video":
        torch.testing.assert_close(visual.slow, g["visual.slow"].flatten(0, 1), atol=EMBEDS, rtol=0)
        torch.testing.assert_close(visual.fast, g["visual.fast"].flatten(0, 1), atol=EMBEDS, rtol=0)
    frames, tokens = g["visual.frames"].long(), g["visual.tokens"].long()
    with torch.no_grad():
        pixels = golden_files.pixels(forward["frames"], forward["pixel_phase"])[frames]
        tower = bundle.model.tower(pixels)
        projected = bundle.model.projector(tower)
    for ours, name in ((tower, "tower"), (projected, "projector")):
        torch.testing.assert_close(ours.flatten(1, 2)[:, tokens], g[f"visual.{name}"], atol=EMBEDS, rtol=0)


def _modes(forward: dict[str, Any]) -> tuple[str, ...]:
    return VIDEO_MODES if forward["modality"] == "video" else ("official", "fixed")


@pytest.mark.parametrize("sequence", ["prompt", "teacher"])
def test_embeddings_and_logits(forward: dict[str, Any], bundle: Bundle, sequence: str) -> None:
    g, model, compared = forward["tensors"], bundle.model, 0
    ids = g[f"{sequence}.input_ids"].long()[None]
    variables = Variables.from_dict(forward["sequences"][sequence]["variables"])
    at = g[f"{sequence}.positions"].long()
    weights = torch.cos(0.37 * torch.arange(64) + 0.1)
    for mode in _modes(forward):
        key = f"{sequence}.{mode}"
        if f"{key}.inputs_embeds" not in g:
            continue
        with torch.no_grad(), mode_of(model, mode):
            visual = forward["visual"] if model.config.splices_fast else replace(forward["visual"], fast=None)
            embeds = model.embed(ids, [visual], [variables])[0]
            hidden = model(ids, [visual], [variables])
            logits = model.logits(hidden[0, -8:])
        torch.testing.assert_close(embeds[at], g[f"{key}.inputs_embeds"], atol=EMBEDS, rtol=0)
        torch.testing.assert_close(embeds.norm(dim=1), g[f"{key}.inputs_embeds_l2"], atol=5e-4, rtol=0)
        torch.testing.assert_close(embeds @ weights, g[f"{key}.inputs_embeds_dot"], atol=DOT, rtol=0)
        torch.testing.assert_close(logits, g[f"{key}.logits_last8"], atol=LOGITS, rtol=0)
        if f"{key}.hidden_last8" in g:
            torch.testing.assert_close(hidden[0, -8:], g[f"{key}.hidden_last8"][-1], atol=LOGITS, rtol=0)
        compared += 1
    assert compared >= 2


def test_prompts_are_made_like_the_published_ones(forward: dict[str, Any], bundle: Bundle) -> None:
    """Text -> ids, with the coordinates of the demo notation, and a whole conversation."""
    frames = None if forward["modality"] == "image" else forward["frames"]
    counts = bundle.model.counts(frames)
    prompt = forward["sequences"]["prompt"]
    _, text = split_mark(prompt["user_text"])
    asked = demo_prompt(text)
    ours = prompt_ids(bundle.tokenizer, bundle.words, asked, counts)
    assert list(ours.ids) == forward["tensors"]["prompt.input_ids"].tolist()
    assert ours.variables.to_dict() == prompt["variables"]
    teacher = forward["sequences"]["teacher"]
    turns = _turns(teacher["conversation"], teacher["variables"])
    trained = training_ids(bundle.tokenizer, bundle.words, turns, counts)
    assert list(trained.ids) == forward["tensors"]["teacher.input_ids"].tolist()
    assert trained.variables.to_dict() == teacher["variables"]


def _turns(conversation: list[dict[str, str]], variables: dict[str, list[float]]) -> list[tuple[str, Worded]]:
    """Hand each turn its share of the value lists."""
    left = {name: list(values) for name, values in variables.items()}
    axes = {"temporal": "TEMP", "spatial_height": "HEIGHT", "spatial_width": "WIDTH"}
    turns = []
    for turn in conversation:
        _, text = split_mark(turn["value"])
        taken = {}
        for name in left:
            axis, direction, _ = name.rsplit("_", 2)
            count = text.count(f"<{axes[axis]}-{direction.upper()}>")
            taken[name], left[name] = tuple(left[name][:count]), left[name][count:]
        turns.append((turn["from"], Worded(text, Variables(**taken))))
    assert not any(left.values())
    return turns


def test_greedy_answers(forward: dict[str, Any], bundle: Bundle) -> None:
    """By stock generate, with its own cache and penalty, and by ours, which shares the prefix."""
    g, model = forward["tensors"], bundle.model
    ids = g["prompt.input_ids"].long()[None]
    prompt = forward["sequences"]["prompt"]
    variables = Variables.from_dict(prompt["variables"])
    question = Worded(split_mark(prompt["formatted_text"])[1], variables)
    for mode in _modes(forward):
        with torch.no_grad(), mode_of(model, mode):
            visual = forward["visual"] if model.config.splices_fast else replace(forward["visual"], fast=None)
            embeds = model.embed(ids, [visual], [variables])
            mask = torch.ones(embeds.shape[:2], dtype=torch.long)
            read = _read(bundle, visual, forward)
            for name, penalty in (("greedy_ids", 1.0), ("greedy_repetition_penalty_ids", 1.05)):
                want = g[f"prompt.{mode}.{name}"].tolist()
                stock = model.llm.generate(
                    inputs_embeds=embeds,
                    attention_mask=mask,
                    do_sample=False,
                    max_new_tokens=12,
                    repetition_penalty=penalty,
                )
                assert stock[0].tolist() == want, (mode, name)
                ours = generate(
                    bundle, read, [question, "hello?"], max_new_tokens=12, repetition_penalty=penalty
                )
                assert list(ours[0].ids) == want, (mode, name)


def _read(bundle: Bundle, visual: Visual, forward: dict[str, Any]) -> Read:
    from tubelet.llava_st import generate as module

    counts = bundle.model.counts(None if forward["modality"] == "image" else forward["frames"])
    return module._read(bundle, visual, counts)


def test_reading_pixels_is_reading_their_tokens(golden: Path, bundle: Bundle) -> None:
    data = json.loads((golden / "forward_image.json").read_text())
    pixels = golden_files.pixels(1, data["pixel_phase"])
    read = read_pixels(bundle, pixels, image=True)
    want = visual_of(bundle, "image", data["pixel_phase"], 1)
    assert read.visual is not None and read.visual.image is not None and want.image is not None
    torch.testing.assert_close(read.visual.image, want.image)


# --- losses and gradients ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def losses(golden: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((golden / "loss.json").read_text())
    return data


def _loss(
    bundle: Bundle, case: dict[str, Any], reduction: str, rows: list[int] | None = None, frozen: bool = False
) -> torch.Tensor:
    """frozen: picture features without gradients, read once."""
    model = bundle.model
    chosen = range(len(case["samples"])) if rows is None else rows
    samples = [case["samples"][row] for row in chosen]
    ids = torch.tensor([case["input_ids"][row] for row in chosen])
    labels = torch.tensor([case["labels"][row] for row in chosen])
    lengths = torch.tensor([sample["length"] for sample in samples])
    mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    visuals = []
    for sample in samples:
        frames = 1 if sample["modality"] == "image" else 100
        if frozen:
            visual = visual_of(bundle, sample["modality"], sample["pixel_phase"], frames)
            visuals.append(visual if model.config.splices_fast else replace(visual, fast=None))
            continue
        pixels = golden_files.pixels(frames, sample["pixel_phase"])
        visuals.append(model.encode_image(pixels) if frames == 1 else model.encode_video(pixels))
    variables = [Variables.from_dict(sample["variables"]) for sample in samples]
    targets = soft_labels(ids, labels, variables, model.words)
    assert len(targets.row) == sum(sample["n_supervised"] for sample in samples)
    hidden = model(ids, visuals, variables, mask)
    return soft_label_loss(hidden, model.trained_head(), targets, reduction)


@pytest.mark.parametrize("mode", ["official", "fixed"])
@pytest.mark.parametrize("name", ["image_rec", "image_caption", "video_tvg"])
def test_loss_and_gradients(bundle: Bundle, losses: dict[str, Any], name: str, mode: str) -> None:
    case, model = losses["cases"][name], bundle.model
    for parameter in model.vision.parameters():
        parameter.requires_grad_(False)
    model.zero_grad(set_to_none=True)
    with mode_of(model, mode):
        loss = _loss(bundle, case, "mean")
        loss.backward()
    assert abs(float(loss.detach()) - case["loss"][mode]) < LOSS
    gradients = official_gradients(model)
    for parameter, norm in case["grad_l2"][mode].items():
        ours = float(gradients[parameter].norm())
        assert ours == pytest.approx(norm or 0.0, rel=1e-3, abs=2e-6), parameter
    if mode == "official":
        for table, rows in case["table_grad_row_l2"].items():
            torch.testing.assert_close(gradients[table].norm(dim=1), torch.tensor(rows), atol=2e-5, rtol=1e-3)
        for table, row in (case["table_grad_row_50"] or {}).items():
            torch.testing.assert_close(gradients[table][50], torch.tensor(row), atol=2e-5, rtol=1e-3)
    model.zero_grad(set_to_none=True)


def official_gradients(model: LlavaST) -> dict[str, torch.Tensor]:
    """By published names; what has no gradient is zero."""
    out = {}
    vocabulary, bins = model.config.vocabulary, model.config.bins
    for name, parameter in model.named_parameters():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        directions = {"llm.model.embed_tokens.weight": "input", "llm.lm_head.weight": "output"}
        if name not in directions:
            out[official_name(name)] = gradient
            continue
        out[official_name(name)] = gradient[:vocabulary]
        for axis in range(3):
            first = vocabulary + axis * bins
            out[table_name(axis, directions[name])] = gradient[first : first + bins]
    return out


def test_losses_of_a_batch(bundle: Bundle, losses: dict[str, Any]) -> None:
    """The published batch loss is a sum; ours is the mean over samples, and each sample's is the same."""
    case = losses["cases"]["batch_image_and_video"]
    with torch.no_grad():
        total = float(_loss(bundle, case, "official_sum", frozen=True))
        mean = float(_loss(bundle, case, "mean", frozen=True))
        alone = [float(_loss(bundle, case, "mean", [row], frozen=True)) for row in range(2)]
        with mode_of(bundle.model, "fixed"):
            fixed = float(_loss(bundle, case, "official_sum", frozen=True))
    assert abs(total - case["loss"]["official"]) < LOSS
    assert abs(fixed - case["loss"]["fixed"]) < LOSS
    assert mean == pytest.approx(total / 2, abs=1e-5)
    assert alone == pytest.approx(case["loss_each_alone"], abs=LOSS)
