"""A training recipe: everything that decides what comes out. A YAML file whose keys are these fields."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tubelet.config_io import from_dict, load_yaml, with_overrides
from tubelet.errors import RecipeError
from tubelet.llava_st.auxiliary import AuxiliaryConfig
from tubelet.llava_st.config import LlavaSTConfig
from tubelet.spacevllm.config import SpaceVLLMConfig
from tubelet.spacevllm.loss import LossWeights
from tubelet.training.samples import WorldMix


@dataclass(frozen=True, slots=True)
class Optimiser:
    """
    kind: "muon" (orthogonalised momentum for matrices, AdamW for the rest) or "adamw".
    lr: peak rate of AdamW parameters; muon_lr: of matrices under Muon. Cosine to `final` of the peak, after a
    linear warm-up over the fraction `warmup` of the stage's steps. clip: gradient norm.
    scales: factors on the rates of parameters whose name holds a key, for example {packer: 0.1, embed_tokens: 0.1}.
    """

    kind: str = "adamw"
    lr: float = 1e-3
    muon_lr: float = 0.01
    weight_decay: float = 0.01
    warmup: float = 0.03
    final: float = 0.0
    clip: float = 1.0
    scales: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in ("muon", "adamw"):
            raise RecipeError(f"optimiser.kind is muon or adamw, got {self.kind!r}")
        if not all(0 < value < math.inf for value in (self.lr, self.muon_lr, self.clip)):
            raise RecipeError("optimiser.lr, optimiser.muon_lr and optimiser.clip must be above 0 and finite")
        if not (0 <= self.warmup <= 1 and 0 <= self.final <= 1 and 0 <= self.weight_decay < math.inf):
            raise RecipeError(
                "optimiser.warmup and optimiser.final are fractions in [0, 1], optimiser.weight_decay is at "
                f"least 0, got {self.warmup:g}, {self.final:g} and {self.weight_decay:g}"
            )


@dataclass(frozen=True, slots=True)
class LoraSettings:
    """rank: 0 for none. alpha: the adapter counts alpha / rank. Published for LLaVA-ST: 128, 256, 0.05."""

    rank: int = 0
    alpha: float = 256.0
    dropout: float = 0.05

    def __post_init__(self) -> None:
        if self.rank < 0 or self.alpha <= 0 or not 0 <= self.dropout < 1:
            raise RecipeError(
                "lora.rank is at least 0, lora.alpha above 0 and lora.dropout in [0, 1), "
                f"got {self.rank}, {self.alpha:g} and {self.dropout:g}"
            )


@dataclass(frozen=True, slots=True)
class ItemList:
    """Training data in files: `path` of a mixing list (docs/st-align.md, docs/training.md).

    batch: samples per batch: conversations (llava-st), or pictures with their questions (spacevllm).
    supervise: "official" (turn marks and line breaks are learnt, too) or "answers"; llava-st only.
    broken_share: more unusable samples than this stop the run (20 are allowed in any case).
    questions: of one video, learnt together in one packed row, at most this many; spacevllm only.
    """

    path: str
    batch: int = 2
    supervise: str = "official"
    broken_share: float = 0.02
    questions: int = 8

    def __post_init__(self) -> None:
        if self.questions < 1:
            raise RecipeError(f"items.questions is at least 1, got {self.questions}")
        if self.batch < 1 or not 0 <= self.broken_share <= 1:
            raise RecipeError(
                "items.batch is at least 1 and items.broken_share a fraction, "
                f"got {self.batch} and {self.broken_share:g}"
            )
        if self.supervise not in ("official", "answers"):
            raise RecipeError(f"items.supervise is official or answers, got {self.supervise!r}")


@dataclass(frozen=True, slots=True)
class Stage:
    """
    steps: optimiser steps, each of `accumulate` batches; data: mixes, one drawn per batch with its weight; or
    items: files;
    train: which parameters learn: "all", "decoder" (queries and decoder), or, from dense labels alone, "vision"
    (the vision tower and its projector), "motion" (the motion layers behind
    them) or "trunk" (the LLM behind those, and how the decoder looks at its visual tokens); "lora": the recipe's
    adapters of the LLM, and what "decoder" learns. Of a LLaVA-ST:
    "content", "coordinates", "tasks" (as published), "all" or "motion", see llava_st/train.py.
    """

    name: str
    steps: int
    data: tuple[WorldMix, ...] = ()
    data_weights: tuple[float, ...] = ()
    optimiser: Optimiser = field(default_factory=Optimiser)
    losses: LossWeights = field(default_factory=LossWeights)
    accumulate: int = 1
    train: str = "all"
    items: ItemList | None = None

    def __post_init__(self) -> None:
        if self.steps < 1 or self.accumulate < 1:
            raise RecipeError(f"stage {self.name}: steps and accumulate must be at least 1")
        if bool(self.data) == (self.items is not None):
            raise RecipeError(
                f"stage {self.name}: data is empty; a stage learns from data or from items, one of them"
            )
        if self.data_weights and len(self.data_weights) != len(self.data):
            raise RecipeError(f"stage {self.name}: data_weights needs one weight per data mix")
        if self.data_weights and (min(self.data_weights) < 0 or sum(self.data_weights) <= 0):
            raise RecipeError(f"stage {self.name}: data_weights must not be negative, nor all 0")
        if self.train not in TRAINABLE:
            raise RecipeError(
                f"stage {self.name}: train is one of {', '.join(TRAINABLE)}, got {self.train!r}"
            )


TRAINABLE = ("all", "decoder", "vision", "motion", "trunk", "content", "coordinates", "tasks", "lora")


@dataclass(frozen=True, slots=True)
class Recipe:
    """
    model: "pico-base" (a chat model in the stock layout), "spacevllm" or "llava-st".
    start: "" for random weights at pico size, or a model name, folder or hub id to grow from.
    out: run folder (checkpoints, log, final model). precision: "fp32" or "bf16"; save_dtype: of the final
    model. gradient_checkpointing: recompute the language model's layers in the backward pass, to save memory.
    workers: data processes.
    lora: adapters of the language model, merged when the run ends.
    auxiliary, max_boxes, reduction: of a llava-st: training-only heads, boxes that an answer lists, and how the loss
        of samples is joined: "mean", or "official_sum" as published.
    checkpoint_s: seconds between resumable checkpoints; log_every: steps between log lines.
    """

    name: str
    model: str
    stages: tuple[Stage, ...]
    start: str = ""
    out: str = ""
    seed: int = 0
    precision: str = "fp32"
    gradient_checkpointing: bool = False
    save_dtype: str = "float32"
    workers: int = 1
    checkpoint_s: float = 120.0
    log_every: int = 20
    spacevllm: SpaceVLLMConfig = field(default_factory=SpaceVLLMConfig)
    llava_st: LlavaSTConfig = field(default_factory=LlavaSTConfig)
    auxiliary: AuxiliaryConfig = field(default_factory=AuxiliaryConfig)
    lora: LoraSettings = field(default_factory=LoraSettings)
    max_boxes: int = 5
    reduction: str = "mean"

    def __post_init__(self) -> None:
        if self.model not in ("pico-base", "spacevllm", "llava-st"):
            raise RecipeError(f"model is pico-base, spacevllm or llava-st, got {self.model!r}")
        if self.max_boxes < 1 or self.reduction not in ("mean", "official_sum"):
            raise RecipeError(
                "max_boxes is at least 1 and reduction mean or official_sum, "
                f"got {self.max_boxes} and {self.reduction!r}"
            )
        if self.precision not in ("fp32", "bf16"):
            raise RecipeError(f"precision is fp32 or bf16, got {self.precision!r}")
        if self.save_dtype not in ("float32", "float16", "bfloat16"):
            raise RecipeError(f"save_dtype is float32, float16 or bfloat16, got {self.save_dtype!r}")
        if not self.stages:
            raise RecipeError("a recipe has at least one stage")
        if self.workers < 0 or self.log_every < 1 or self.checkpoint_s < 0:
            raise RecipeError(
                "workers and checkpoint_s must be at least 0 and log_every at least 1, "
                f"got {self.workers}, {self.checkpoint_s:g} and {self.log_every}"
            )

    @property
    def folder(self) -> Path:
        return Path(self.out or f"runs/{self.name}")


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe, apply key=value settings, validate. Raises RecipeError naming the field."""
    return from_dict(Recipe, with_overrides(load_yaml(Path(path)), overrides))
