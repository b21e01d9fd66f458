"""SpaceVLLM (and the chat base it grows from) as jobs of the training loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tubelet.errors import RecipeError
from tubelet.grounder import find_model
from tubelet.spacevllm.batch import Batch, collate, normalise
from tubelet.spacevllm.calibrate import presence_threshold, text_presence_threshold, world_domain
from tubelet.spacevllm.checkpoint import Bundle, load_bundle, new_pico, with_queries, with_settings
from tubelet.spacevllm.config import SpaceVLLMConfig
from tubelet.spacevllm.dense import doing_loss, seen_loss
from tubelet.spacevllm.item_rows import sample_stream
from tubelet.spacevllm.looking import looking_loss
from tubelet.spacevllm.loss import (
    edge_loss,
    middle_loss,
    pointing_loss,
    space_losses,
    text_loss,
    total_loss,
)
from tubelet.spacevllm.match import clock_loss
from tubelet.spacevllm.pack import NO_FRAME
from tubelet.spacevllm.saving import save_base, save_bundle
from tubelet.training.loop import STAGE_OFFSET, Job
from tubelet.training.lora import add_lora, merged
from tubelet.training.recipe import ItemList, Recipe, Stage
from tubelet.training.samples import world_batch

DENSE_STAGES = ("vision", "motion", "trunk")  # learn from dense labels alone: no questions are asked


def make_job(recipe: Recipe) -> Job:
    """Model, data and loss of a recipe. A pico-base has no query tokens; spacevllm grows from `start`."""
    torch.manual_seed(recipe.seed)
    if recipe.model == "pico-base":
        if recipe.spacevllm.motion_layers:
            raise RecipeError("a pico-base keeps the stock layout: spacevllm.motion_layers must be 0")
        start = find_model(recipe.start) if recipe.start else None
        bundle = load_bundle(start, recipe.spacevllm) if start else new_pico(recipe.spacevllm)
    else:
        if not recipe.start:
            raise RecipeError(
                "a spacevllm recipe grows from a base: set start to pico-base, a folder or a hub id"
            )
        bundle = with_queries(load_bundle(find_model(recipe.start), recipe.spacevllm), recipe.spacevllm)
        if recipe.spacevllm not in (SpaceVLLMConfig(), bundle.model.config):
            bundle = with_settings(bundle, recipe.spacevllm)
    bundle.model.train()
    adapts = any(stage.train == "lora" for stage in recipe.stages)
    if adapts and not recipe.lora.rank:
        raise RecipeError("a lora stage trains adapters of the LLM: set lora.rank, for example to 128")
    if recipe.lora.rank and not adapts:
        raise RecipeError("lora.rank is set but no stage learns adapters: set train: lora, or lora.rank: 0")
    if adapts:
        add_lora(bundle.model.base.model.language_model, recipe.lora)
    if recipe.gradient_checkpointing:
        bundle.model.base.model.language_model.gradient_checkpointing_enable({"use_reentrant": False})

    streams: dict[str, Any] = {}

    def make_batch(stage: Stage, k: int) -> Batch:
        if stage.items is not None:
            if stage.name not in streams:
                streams[stage.name] = item_stream(bundle, stage.items, recipe.seed)
            batch: Batch = streams[stage.name](k % STAGE_OFFSET)
            return batch
        weights = np.array(stage.data_weights or [1.0] * len(stage.data))
        which = int(np.random.default_rng([k, 23]).choice(len(stage.data), p=weights / weights.sum()))
        return make_world_batch(bundle, stage.data[which], k, asks=stage.train not in DENSE_STAGES)

    def loss(model: torch.nn.Module, batch: Batch, stage: Stage) -> tuple[torch.Tensor, dict[str, Any], int]:
        pixels = normalise(batch.pixels, bundle.pixel_mean, bundle.pixel_std)
        out = model(
            None if stage.train == "vision" else batch.packed,
            pixels,
            stage.train == "motion",
            stage.losses.looks > 0,
        )
        parts: dict[str, Any] = {}
        if batch.truth is not None:
            parts = space_losses(out.decoder, batch.truth)
            parts["text"] = text_loss(out.answer_logits, batch.packed.answer_ids)
        if out.middle_logits is not None and batch.truth is not None:
            parts["middle"] = middle_loss(out.middle_logits[:, 0], batch.truth)
            parts["edges"] = edge_loss(out.middle_logits[:, 1:], batch.truth)
            told, packed = batch.packed.answer_frame != NO_FRAME, batch.packed
            words = packed.answer_question[told], packed.answer_frame[told]
            parts["named"] = pointing_loss(out.named_logits, batch.truth, *words)
            parts["clock"] = clock_loss(out.clock_logits, batch.times_s)
            if out.looks is not None:
                parts["looks"] = looking_loss(out.looks, batch.truth, *words)
        if batch.dense is not None and out.seen_logits is not None:
            parts["seen"] = seen_loss(out.seen_logits, bundle.model.config.dense_attributes, batch.dense)
        if batch.dense is not None and out.doing_logits is not None:
            parts["doing"] = doing_loss(out.doing_logits, batch.dense)
        total = total_loss(parts, stage.losses)
        if stage.items is not None:
            parts["replaced"] = total.new_tensor(float(batch.replaced))
        return total, {"loss": total, **parts}, batch.n_questions

    def save(folder: Path) -> None:
        dtype = getattr(torch, recipe.save_dtype)
        with merged(bundle.model):
            if recipe.model == "pico-base":
                mixes = recipe.stages[-1].data
                domain = world_domain(mixes) if bundle.model.config.domain and mixes else None
                save_base(bundle, folder, dtype, domain=domain)
            else:
                finish(bundle, recipe, folder, dtype)

    def prepare(stage: Stage) -> None:
        choose_parameters(bundle, stage.train)

    return Job(bundle.model, make_batch, loss, save, prepare=prepare)


def finish(bundle: Bundle, recipe: Recipe, folder: Path, dtype: torch.dtype) -> None:
    """Calibrate on the validation split and write the final SpaceVLLM folder.

    Rows in files hold no sentences that match nothing: a model that learnt from them has no presence to calibrate.
    """
    mixes, learnt = recipe.stages[-1].data, recipe.stages[-1].losses
    model = bundle.model
    threshold = round(presence_threshold(bundle, mixes[0]), 4) if mixes and learnt.presence > 0 else 0.0
    model.config = replace(model.config, presence_threshold=threshold)
    if mixes and model.config.snap_answers and learnt.text > 0:
        told = round(text_presence_threshold(bundle, mixes[0]), 4)
        model.config = replace(model.config, text_presence_threshold=told)
    domain = world_domain(mixes) if model.config.domain and mixes else None
    save_bundle(replace(bundle, trained=True), folder, dtype, domain=domain)


def choose_parameters(bundle: Bundle, train: str) -> None:
    """Train "all"; the "decoder": the new parts only, of the vocabulary only the query tokens' rows; or, on
    dense labels alone, "vision": the vision tower and its projector; "motion": the motion layers behind them;
    "trunk": the LLM behind those and how the decoder looks at its visual tokens. "lora": as "decoder", and the
    adapters of the LLM."""
    model = bundle.model
    model.requires_grad_(train == "all")
    table = model.base.get_input_embeddings().weight
    for hook in getattr(table, "_tubelet_hooks", ()):
        hook.remove()
    table._tubelet_hooks, table._tubelet_rows = [], None
    if train == "all":
        return
    if train in DENSE_STAGES:
        if not (model.config.dense_attributes if train == "vision" else model.config.dense_actions):
            raise RecipeError(
                f"a {train} stage learns from dense labels: set spacevllm.dense_attributes and dense_actions"
            )
        inside = model.base.model
        seeing = (inside.vision_tower, inside.multi_modal_projector, model.seen_head)
        decoder = model.space_decoder
        reading = [inside.language_model, model.doing_head, model.last_doing_head]
        if decoder.config.attention == "projected":
            reading += [decoder.visual_in, *(decoder.motion if decoder.config.motion_layers else ())]
        if train == "motion" and not model.config.motion_layers:
            raise RecipeError(
                "a motion stage trains the motion layers before the LLM: set spacevllm.motion_layers"
            )
        moving = [model.motion, model.first_doing_head] if model.config.motion_layers else []
        for part in {"vision": seeing, "motion": moving, "trunk": reading}[train]:
            part.requires_grad_(True)
        return
    for name, parameter in model.named_parameters():
        if not name.startswith("base.") or (train == "lora" and ".lora_" in name):
            parameter.requires_grad_(True)
    if bundle.layout.query_tokens:
        rows = torch.zeros(len(table), 1, device=table.device, dtype=table.dtype)
        rows[list(bundle.layout.query_tokens)] = 1
        table.requires_grad_(True)
        table._tubelet_rows = rows  # of sharded tables, whose hooks do not run
        table._tubelet_hooks.append(table.register_hook(lambda gradient: gradient * rows))


def item_stream(bundle: Bundle, items: ItemList, seed: int) -> Callable[[int], Batch]:
    """make_batch(k) for rows in files (item_rows.py)."""
    model = bundle.model
    make = sample_stream(items, model.config.max_frames, model.image_size, seed)

    def make_batch(k: int) -> Batch:
        samples, replaced = make(k)
        batch = collate(samples, model.config, bundle.layout, bundle.tokenizer, model.tokens_per_frame)
        return replace(batch, replaced=replaced)

    return make_batch


def make_world_batch(bundle: Bundle, mix: Any, k: int, asks: bool = True) -> Batch:
    samples = world_batch(mix, k)
    if not asks:
        samples = [replace(sample, questions=()) for sample in samples]
    return collate(
        samples, bundle.model.config, bundle.layout, bundle.tokenizer, bundle.model.tokens_per_frame
    )
