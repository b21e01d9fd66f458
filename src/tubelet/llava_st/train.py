"""LLaVA-ST as a job of the training loop: three stages (paper, section 3.4), one recipe each.

    stage         learns                                                       data
    content       packer, embeddings of all ordinary words                     captions
    coordinates   LoRA of the language model, packer, embeddings, six tables    coordinate tasks
    tasks         the same, with a new LoRA                                     all tasks

A stage starts from the folder of the one before: its LoRA is merged when it ends, the packer goes along (the
published scripts start it anew in every stage), the tables appear with the second stage. For models learnt from
scratch there are two more kinds, ours: "all" (every parameter) and "motion" (packer and motion layers, from dense
labels alone).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tubelet.errors import RecipeError
from tubelet.grounder import find_model
from tubelet.llava_st.auxiliary import Auxiliary, AuxiliaryConfig
from tubelet.llava_st.batch import Batch, collate
from tubelet.llava_st.checkpoint import Bundle, load_llava_st, save_llava_st
from tubelet.llava_st.config import LlavaSTConfig
from tubelet.llava_st.grow import fill_tables, grow
from tubelet.llava_st.item_batch import ItemBatch, encode_items, item_stream
from tubelet.llava_st.loss import soft_label_loss, soft_labels
from tubelet.llava_st.model import LlavaST
from tubelet.model_folder import read_json
from tubelet.spacevllm.batch import normalise
from tubelet.spacevllm.calibrate import world_domain
from tubelet.spacevllm.dense import doing_loss, seen_loss
from tubelet.spacevllm.domain import save_domain
from tubelet.spacevllm.loss import edge_loss, middle_loss, pointing_loss, total_loss
from tubelet.training.loop import STAGE_OFFSET, Job
from tubelet.training.lora import add_lora, merged
from tubelet.training.recipe import Recipe, Stage
from tubelet.training.samples import world_batch

HEADS = "auxiliary.safetensors"  # beside a run's model, for its next stage; not part of a model
STAGES = ("content", "coordinates", "tasks", "all", "motion")


class Learner(nn.Module):  # type: ignore[misc]
    """A LLaVA-ST and the heads that only training needs; one module for the training loop."""

    def __init__(self, model: LlavaST, auxiliary: AuxiliaryConfig) -> None:
        super().__init__()
        self.model = model
        self.auxiliary = Auxiliary(model.llm.config.hidden_size, auxiliary)

    def forward(
        self, batch: Batch | ItemBatch, pixels: torch.Tensor | None, reduction: str, dense_only: bool
    ) -> dict[str, Any]:
        """The parts of the loss. pixels: normalised (B, T, 3, S, S); those of items are in the batch."""
        model, heads = self.model, self.auxiliary
        if isinstance(batch, ItemBatch):
            return {"text": self._conversations(batch, reduction)}
        assert pixels is not None
        visuals, base = model.encode_batch(pixels, batch.positions)
        parts: dict[str, Any] = {}
        if batch.dense is not None:
            cells = base.flatten(0, 1)
            if heads.config.attributes:
                parts["seen"] = seen_loss(heads.seen(cells), heads.config.attributes, batch.dense)
            if heads.config.actions and pixels.shape[1] > 1:
                parts["doing"] = doing_loss(heads.doing(cells)[None], batch.dense)
        if dense_only:
            return parts
        rows, truth = batch.rows, batch.truth
        hidden, inner = model.read_rows(
            rows.ids, visuals, rows.variables, rows.segment, rows.position, heads.config.middle
        )
        labels = soft_labels(rows.ids, rows.labels, rows.variables, model.words)
        parts["text"] = soft_label_loss(hidden, model.trained_head(), labels, reduction)
        if inner is not None:
            frames = truth.has_box.shape[1]
            visual = self._slow(inner, rows.visual_at, pixels.shape[1], frames)
            match = heads.match.of_questions(inner[rows.asks_row, rows.asks_at], visual, rows.asks_row)
            parts["middle"] = middle_loss(match[:, 0], truth)
            parts["edges"] = edge_loss(match[:, 1:], truth)
            row, at, question, frame = rows.named.T
            named = heads.match.of_answers(inner[row, at], visual, row)
            window = model.config.packer.time if pixels.shape[1] > 1 else 1
            parts["named"] = pointing_loss(named, truth, question, frame // window)
        return parts

    def _conversations(self, batch: ItemBatch, reduction: str) -> torch.Tensor:
        model = self.model
        visuals = encode_items(model, batch)
        hidden = model(batch.ids, visuals, batch.variables, batch.mask.long())
        labels = soft_labels(batch.ids, batch.labels, batch.variables, model.words)
        return soft_label_loss(hidden, model.trained_head(), labels, reduction)

    def _slow(self, hidden: torch.Tensor, first: torch.Tensor, frames: int, steps: int) -> torch.Tensor:
        """(B, steps, K, C) states of the slow tokens (of the image's, for images)."""
        counts = self.model.counts(None if frames == 1 else frames)
        start, length = int(first[0]) + counts.fast, counts.slow or counts.image
        return hidden[:, start : start + length].unflatten(1, (steps, -1))


def make_job(recipe: Recipe) -> Job:
    """Model, data and loss of a recipe; `start` is a LLaVA-OneVision (it grows) or a LLaVA-ST (it goes on)."""
    torch.manual_seed(recipe.seed)
    kinds = {stage.train for stage in recipe.stages}
    if not kinds <= set(STAGES):
        raise RecipeError(f"a LLaVA-ST learns in stages {', '.join(STAGES)}; got {', '.join(sorted(kinds))}")
    bundle = start_bundle(recipe)
    adapts = kinds & {"coordinates", "tasks"}
    if adapts and recipe.lora.rank:
        add_lora(bundle.model.llm.model, recipe.lora)
    if recipe.gradient_checkpointing:
        bundle.model.llm.gradient_checkpointing_enable({"use_reentrant": False})
    if kinds != {"content"}:
        fill_tables(
            bundle.model, recipe.seed
        )  # a content stage knows no coordinates; they come with the next
    learner = Learner(bundle.model, recipe.auxiliary).train()
    _load_heads(learner.auxiliary, find_model(recipe.start))

    streams: dict[str, Any] = {}

    def make_batch(stage: Stage, k: int) -> Batch | ItemBatch:
        if stage.items is not None:
            if stage.name not in streams:
                streams[stage.name] = item_stream(stage.items, bundle.model, bundle.tokenizer, recipe.seed)
            batch: ItemBatch = streams[stage.name](k % STAGE_OFFSET)
            return batch
        weights = np.array(stage.data_weights or [1.0] * len(stage.data))
        which = int(np.random.default_rng([k, 23]).choice(len(stage.data), p=weights / weights.sum()))
        return collate(world_batch(stage.data[which], k), bundle.model, bundle.tokenizer, recipe.max_boxes)

    def loss(
        model: nn.Module, batch: Batch | ItemBatch, stage: Stage
    ) -> tuple[torch.Tensor, dict[str, Any], int]:
        if isinstance(batch, ItemBatch):
            visuals = [normalise(p, bundle.pixel_mean, bundle.pixel_std) for p in batch.pixels]
            parts = model(replace(batch, pixels=tuple(visuals)), None, recipe.reduction, False)
            return parts["text"], {"loss": parts["text"], **parts}, batch.n_questions
        pixels = normalise(batch.pixels.flatten(0, 1), bundle.pixel_mean, bundle.pixel_std)
        pixels = pixels.unflatten(0, batch.pixels.shape[:2])
        parts = model(batch, pixels, recipe.reduction, stage.train == "motion")
        total = total_loss(parts, stage.losses)
        return total, {"loss": total, **parts}, batch.n_questions

    def save(folder: Path) -> None:
        with merged(bundle.model):
            save_llava_st(replace(bundle, trained=True), folder, getattr(torch, recipe.save_dtype))
        if bundle.config.domain and recipe.stages[-1].data:
            save_domain(world_domain(recipe.stages[-1].data), folder)
        heads = {name: tensor.contiguous() for name, tensor in learner.auxiliary.state_dict().items()}
        if heads:
            save_file(heads, folder / HEADS)

    def prepare(stage: Stage) -> None:
        choose_parameters(learner, stage.train)

    return Job(learner, make_batch, loss, save, prepare=prepare)


def start_bundle(recipe: Recipe) -> Bundle:
    """The model a recipe starts from, in float32 on the CPU."""
    from tubelet.spacevllm.checkpoint import load_bundle

    if not recipe.start:
        raise RecipeError("a llava-st recipe grows from a base: set start to pico-base, a folder or a hub id")
    folder = find_model(recipe.start)
    if read_json(folder / "config.json").get("model_type") == "llava_onevision":
        base = load_bundle(folder)
        grown = grow(base.model.base, base.tokenizer, recipe.llava_st, recipe.seed, tables=False)
        return replace(grown, pixel_mean=base.pixel_mean, pixel_std=base.pixel_std)
    bundle = load_llava_st(folder)
    wanted = replace(recipe.llava_st, vocabulary=bundle.config.vocabulary)
    if recipe.llava_st != LlavaSTConfig() and wanted != bundle.config:
        raise RecipeError(
            f"{recipe.start} was made with other settings than this recipe's llava_st: leave them out, or repeat them "
            f"({bundle.config})"
        )
    return bundle


def _load_heads(heads: Auxiliary, folder: Path) -> None:
    """Training-only heads of the stage before, where they fit these settings."""
    if (folder / HEADS).is_file():
        mine = heads.state_dict()
        saved = load_file(folder / HEADS)
        heads.load_state_dict(
            {k: v for k, v in saved.items() if k in mine and v.shape == mine[k].shape}, strict=False
        )


# --- what learns -----------------------------------------------------------------------------------


def choose_parameters(learner: Learner, train: str) -> None:
    """Freeze all but what a stage trains. Rows of a matrix that stay are frozen by masking their gradients."""
    model = learner.model
    model.requires_grad_(train == "all")
    learner.auxiliary.requires_grad_(True)
    embeddings, head = model.llm.get_input_embeddings().weight, model.llm.get_output_embeddings().weight
    for matrix in (embeddings, head):
        for hook in getattr(matrix, "_tubelet_hooks", ()):
            hook.remove()
        matrix._tubelet_hooks = []
    if train == "all":
        return
    packing = [model.packer, *(model.motion if model.config.motion_layers else ())]
    for part in packing:
        part.requires_grad_(True)
    first = model.config.vocabulary
    if train == "content":
        _learn_rows(embeddings, slice(0, first))
    elif train in ("coordinates", "tasks"):
        embeddings.requires_grad_(True)
        _learn_rows(head, slice(first, None))
        for name, parameter in model.llm.named_parameters():
            if "lora_" in name:
                parameter.requires_grad_(True)


def _learn_rows(matrix: torch.Tensor, rows: slice) -> None:
    mask = torch.zeros(len(matrix), 1, device=matrix.device, dtype=matrix.dtype)
    mask[rows] = 1
    matrix.requires_grad_(True)
    matrix._tubelet_hooks.append(matrix.register_hook(lambda gradient: gradient * mask))  # type: ignore[attr-defined]
