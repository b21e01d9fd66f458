"""What a recipe will cost, before it runs: parameters, tokens, memory, steps, hours; and whether its data is there.

A model that starts from a folder at hand is built from its config.json, a published 7B or 0.5B one from the shapes of
its family (Qwen2, SigLIP so400m); both on the meta device, without weights. P: parameters, Pt: trainable ones, N:
processes (GPUs), L: layers of the language model, d: its width, i: of its MLP, h: heads, V: vocabulary, n: tokens of a
batch of one process. Bytes per process, per sharding ("none": every process holds all; "zero2": FSDP2 that keeps whole
weights between forward and backward; "zero3" and "fsdp2": weights are cut, too):

    weights       4 P          zero2: 4 P while it computes;  zero3: 4 P / N + the largest block and the root, whole
    gradients     4 Pt         zero2, zero3: / N, + one block's, whole
    optimiser     8 Pt         AdamW's two moments (Muon: one of matrices; counted as AdamW's, an upper bound);
                               zero2, zero3: / N
    activations   n L (c d + 4 i) b          c = 16; b = 2 (bf16) or 4: what a block keeps for its backward pass
                               (inputs of its norms, projections and residuals, SDPA's tensors; no attention maps)
      checkpointed: n L d b + one block's n (c d + 4 i) b
      + vision    n_patches Lv (c dv + 4 iv) b, when the tower learns or something before its end does; else one block's
      + logits    answer tokens x V x 4 x 2, for the text loss

Training keeps float32 weights also under bf16 (autocast), so that small rates are not lost: hence 4 P. Tokens of text
are estimates (constants below). Hours: steps x tokens of a step / tokens per second; or the model's FLOPs (forward 2 P
per token, backward 2 P for activations and 2 Pt for weights; recomputation does not count, as is usual for MFU).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tubelet.errors import DataError, RecipeError
from tubelet.training.recipe import Recipe, Stage

SHARDING = ("none", "fsdp2", "zero2", "zero3")
TEXT_TOKENS = 30  # of a question with its answer
TIME_TOKENS = 7  # of one frame's time in the prompt
CONVERSATION_TOKENS = 250  # of an item of LLaVA-ST: text and coordinates
KEPT = 16  # numbers of width d that a block keeps per token
QWEN_ROWS = 151_660  # of Qwen2's vocabulary with a LLaVA's words, before the coordinates

_PUBLISHED = re.compile(r"(?<![\d.])(7|0\.5)b(?![a-z0-9])", re.IGNORECASE)
_QWEN2 = {
    "7": {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
          "num_key_value_heads": 4, "tie_word_embeddings": False, "vocab_size": 152064},
    "0.5": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
            "num_key_value_heads": 2, "tie_word_embeddings": True, "vocab_size": 152000},
}  # fmt: skip
_SO400M = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 26, "num_attention_heads": 16,
           "image_size": 384, "patch_size": 14, "vision_use_head": False}  # fmt: skip


@dataclass(frozen=True, slots=True)
class StageCost:
    """One stage. Parameters by group; tokens of the language model per optimiser step over all processes.

    memory: bytes of one process by part, for `sharding`. hours: None where no rate was stated.
    """

    name: str
    train: str
    trainable: dict[str, int]
    frozen: dict[str, int]
    tokens_per_step: int
    steps: int
    memory: dict[str, int]
    flops_per_step: float
    hours: float | None = None

    @property
    def memory_bytes(self) -> int:
        return sum(self.memory.values())


@dataclass(frozen=True, slots=True)
class DryRun:
    """A recipe's stages; missing: data that is not there; notes: what was assumed."""

    name: str
    processes: int
    sharding: str
    stages: tuple[StageCost, ...]
    missing: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Built:
    model: Any
    prepare: Callable[[str], None]
    text: Any  # config of the language model
    vision: Any
    tokens_per_frame: int
    video_tokens: Callable[[int], int]


def dry_run(
    recipe: Recipe,
    processes: int = 1,
    sharding: str = "none",
    tokens_per_s: float | None = None,
    mfu: float | None = None,
    gpu_tflops: float | None = None,
) -> DryRun:
    """What a recipe costs on `processes` GPUs.

    tokens_per_s: of all GPUs together; or mfu (a fraction) with gpu_tflops (peak of one GPU): one of the two gives
    hours. RecipeError for a recipe that cannot run, or a model of unknown shape.
    """
    if processes < 1 or sharding not in SHARDING:
        raise RecipeError(f"processes are at least 1 and sharding is one of {', '.join(SHARDING)}")
    if (mfu is None) != (gpu_tflops is None):
        raise RecipeError("an MFU needs the peak rate of the GPU: give --mfu and --gpu-tflops together")
    if mfu is not None and (tokens_per_s is not None or not 0 < mfu <= 1):
        raise RecipeError("state either tokens per second or an MFU, a fraction above 0 and up to 1")
    if (tokens_per_s is not None and tokens_per_s <= 0) or (gpu_tflops is not None and gpu_tflops <= 0):
        raise RecipeError("tokens per second and the GPU's peak rate are above 0")
    notes: list[str] = []
    built = _build(recipe, notes)
    stages = []
    for stage in recipe.stages:
        built.prepare(stage.train)
        cost = _cost(recipe, stage, built, processes, sharding)
        seconds: float | None = None
        if tokens_per_s is not None:
            seconds = cost.steps * cost.tokens_per_step / tokens_per_s
        elif mfu is not None and gpu_tflops is not None:
            seconds = cost.steps * cost.flops_per_step / (mfu * gpu_tflops * 1e12 * processes)
        stages.append(replace(cost, hours=None if seconds is None else seconds / 3600))
    return DryRun(recipe.name, processes, sharding, tuple(stages), tuple(missing_data(recipe)), tuple(notes))


# --- data ----------------------------------------------------------------------------------------------


def missing_data(recipe: Recipe) -> Iterator[str]:
    """What the stages name and is not there: mixing lists, their files of items, their folders."""
    from tubelet.llava_st.mixture import read_mixture

    for stage in recipe.stages:
        if stage.items is None:
            continue
        try:
            mixture = read_mixture(stage.items.path)
        except DataError as error:
            yield f"stage {stage.name}: {error}"
            continue
        for entry in mixture.entries:
            if not mixture.find(entry.json_path).is_file():
                yield f"stage {stage.name}, {entry.name}: there is no file {mixture.find(entry.json_path)}"
            if not mixture.find(entry.data_folder).is_dir():
                yield f"stage {stage.name}, {entry.name}: there is no folder {mixture.find(entry.data_folder)}"


# --- models without weights ----------------------------------------------------------------------------


def _build(recipe: Recipe, notes: list[str]) -> _Built:
    config, known = base_config(recipe, notes)
    with _meta():
        return _llava_st(recipe, config) if recipe.model == "llava-st" else _spacevllm(recipe, config, known)


def base_config(recipe: Recipe, notes: list[str]) -> tuple[Any, Any]:
    """A LlavaOnevisionConfig, and the settings that the folder of the start holds (None: none)."""
    from transformers import LlavaOnevisionConfig

    from tubelet.grounder import embedded_models
    from tubelet.model_folder import read_json
    from tubelet.spacevllm.checkpoint import chat_settings
    from tubelet.spacevllm.config import SpaceVLLMConfig

    folder = {m.name: m.folder for m in embedded_models()}.get(recipe.start, Path(recipe.start or "-"))
    if not recipe.start and recipe.model == "pico-base":
        from tubelet.pico import pico_config, pico_tokenizer

        return pico_config(pico_tokenizer()), None
    if (folder / "config.json").is_file():
        data = read_json(folder / "config.json")
        if data.get("model_type") == "llava_onevision":
            return LlavaOnevisionConfig.from_dict(data), chat_settings(folder)
        if isinstance(data.get("base"), dict) and isinstance(data.get("spacevllm"), dict):
            return LlavaOnevisionConfig.from_dict(data["base"]), SpaceVLLMConfig.from_dict(data["spacevllm"])
    found = _PUBLISHED.search(recipe.start)
    if found:
        size = found[1]
        notes.append(
            f"{recipe.start}: shapes of Qwen2-{size}B with SigLIP so400m were taken, no file was read"
        )
        own = SpaceVLLMConfig(newline="grid") if "video" in recipe.start.lower() else None
        text = {"model_type": "qwen2", "max_position_embeddings": 32768, **_QWEN2[size]}
        vision = {"model_type": "siglip_vision_model", **_SO400M}
        base = LlavaOnevisionConfig(text_config=text, vision_config=vision, vision_feature_layer=-1)
        base.tie_word_embeddings = _QWEN2[size]["tie_word_embeddings"]
        return base, own
    if "pico" in recipe.start:
        from tubelet.pico import pico_config, pico_tokenizer

        notes.append(f"{recipe.start} is not there yet: the shapes of a pico model were taken")
        return pico_config(pico_tokenizer()), None
    raise RecipeError(
        f"the shape of {recipe.start or 'the start'} is not known: it is no folder with a config.json, and no name "
        "that says 7b or 0.5b. Train the stage before it first, or --set start=FOLDER"
    )


def _spacevllm(recipe: Recipe, config: Any, known: Any) -> _Built:
    import torch
    from transformers import LlavaOnevisionForConditionalGeneration

    from tubelet.spacevllm.checkpoint import Bundle
    from tubelet.spacevllm.model import SpaceVLLM
    from tubelet.spacevllm.prompts import PromptLayout
    from tubelet.spacevllm.train import choose_parameters
    from tubelet.training.lora import add_lora

    settings = recipe.spacevllm.on(known)
    queries: tuple[int, ...] = ()
    if recipe.model != "pico-base":
        rows = config.text_config.vocab_size
        if rows < QWEN_ROWS:  # no spare rows: the vocabulary grows
            config.text_config.vocab_size = -(-(rows + settings.max_frames + 1) // 8) * 8
        queries = tuple(
            range(config.text_config.vocab_size - settings.max_frames - 1, config.text_config.vocab_size)
        )
    base = LlavaOnevisionForConditionalGeneration(config)
    base.tie_weights()
    model = SpaceVLLM(base, settings)
    if recipe.lora.rank:
        add_lora(base.model.language_model, recipe.lora)
    layout = PromptLayout((), (), (), (), 0, queries)
    bundle = Bundle(model, None, layout, (0.5,) * 3, (0.5,) * 3, trained=False)
    per_frame = model.tokens_per_frame
    newlines = {"grid": round(per_frame**0.5), "frame": 1}.get(settings.newline, 0)
    told = 0 if settings.time_layout == "none" else TIME_TOKENS

    def video_tokens(frames: int) -> int:
        return int(min(frames, settings.max_frames) * (per_frame + newlines + 1 + told))

    def prepare(train: str) -> None:
        with torch.device("meta"):
            choose_parameters(bundle, train)

    text, vision = config.text_config, config.vision_config
    return _Built(model, prepare, text, vision, per_frame, video_tokens)


def _llava_st(recipe: Recipe, config: Any) -> _Built:
    import torch
    from transformers import AutoModelForCausalLM, SiglipVisionModel

    from tubelet.llava_st.model import LlavaST
    from tubelet.llava_st.train import Learner, choose_parameters
    from tubelet.training.lora import add_lora

    text = config.text_config
    small = text.vocab_size < QWEN_ROWS
    own = replace(recipe.llava_st, vocabulary=text.vocab_size if small else QWEN_ROWS)
    text.vocab_size, text.tie_word_embeddings = own.rows, False
    words: Any = SimpleNamespace(vocabulary=own.vocabulary, bins=own.bins)
    llm = AutoModelForCausalLM.from_config(text)
    model = LlavaST(llm, SiglipVisionModel(config.vision_config), own, words)
    if recipe.lora.rank and {stage.train for stage in recipe.stages} & {"coordinates", "tasks"}:
        add_lora(llm.model, recipe.lora)
    learner = Learner(model, recipe.auxiliary)

    def prepare(train: str) -> None:
        with torch.device("meta"):
            choose_parameters(learner, train)

    def video_tokens(frames: int) -> int:
        counts = model.counts(own.frames if own.mode == "official" else min(frames, own.frames))
        return int(counts.fast + counts.slow)

    return _Built(learner, prepare, text, config.vision_config, model.counts(None).image, video_tokens)


@contextmanager
def _meta() -> Iterator[None]:
    """Parameters without memory and without the time to fill them."""
    import torch
    from transformers.initialization import no_init_weights

    with torch.device("meta"), no_init_weights():
        yield


# --- arithmetic ----------------------------------------------------------------------------------------


def group_of(name: str) -> str:
    """Which part of a model a parameter belongs to."""
    for word, group in (
        ("lora_", "LoRA"), ("vision", "vision tower"), ("projector", "projector"), ("embed_tokens", "word embeddings"),
        ("lm_head", "head"), ("space_decoder", "space decoder"), ("packer", "packer"), ("motion", "motion layers"),
        ("language_model", "language model"), ("llm", "language model"),
    ):  # fmt: skip
        if word in name:
            return group
    return "other"


def _cost(recipe: Recipe, stage: Stage, built: _Built, processes: int, sharding: str) -> StageCost:
    trainable: Counter[str] = Counter()
    frozen: Counter[str] = Counter()
    for name, parameter in built.model.named_parameters():
        rows = getattr(parameter, "_tubelet_rows", None)
        if not parameter.requires_grad:
            frozen[group_of(name)] += parameter.numel()
        else:  # the whole table has gradients and moments, also where only some rows learn
            trainable[group_of(name) + (" (some rows)" if rows is not None else "")] += parameter.numel()
    if not trainable:
        raise RecipeError(f"stage {stage.name}: nothing learns with train: {stage.train}")
    _, frames, tokens, answers = _batch(recipe, stage, built)
    total, learnt = sum(trainable.values()) + sum(frozen.values()), sum(trainable.values())
    memory = memory_bytes(recipe, built.text, built.vision, total, learnt, tokens, frames, answers, processes, sharding,
                          _vision_learns(trainable), largest_parts(built.model))  # fmt: skip
    per_step = tokens * stage.accumulate * processes
    language = _count(built.model, "language model", "LoRA", "head")
    vision = _count(built.model, "vision tower")
    learnt_share = sum(n for group, n in trainable.items() if group in ("language model", "LoRA", "head"))
    patches = (
        frames * (built.vision.image_size // built.vision.patch_size) ** 2 * stage.accumulate * processes
    )
    only_vision = stage.train == "vision"
    flops = 0.0 if only_vision else per_step * (4.0 * language + 2.0 * learnt_share)
    flops += patches * vision * (6.0 if _vision_learns(trainable) else 2.0)
    return StageCost(
        stage.name, stage.train, dict(trainable), dict(frozen), per_step, stage.steps, memory, flops
    )


def _batch(recipe: Recipe, stage: Stage, built: _Built) -> tuple[int, int, int, int]:
    """Rows, frames, tokens and answer tokens of the (average) batch of one process."""
    if stage.items is not None:
        rows = stage.items.batch
        if recipe.model == "llava-st":
            frames = rows * recipe.llava_st.frames
            return (
                rows,
                frames,
                rows * (built.video_tokens(recipe.llava_st.frames) + CONVERSATION_TOKENS),
                rows * 100,
            )
        frames = rows * recipe.spacevllm.max_frames
        words = stage.items.questions * TEXT_TOKENS
        return (
            rows,
            frames,
            rows * (built.video_tokens(recipe.spacevllm.max_frames) + words),
            rows * words // 2,
        )
    weights = stage.data_weights or (1.0,) * len(stage.data)
    rows_, frames_, tokens_, answers_ = 0.0, 0.0, 0.0, 0.0
    for mix, weight in zip(stage.data, weights, strict=True):
        share = weight / sum(weights)
        n = 1 if mix.kind in ("image", "moment") else mix.frames
        seen = built.tokens_per_frame + 1 if n == 1 else built.video_tokens(n)
        rows_ += share * mix.batch
        frames_ += share * mix.batch * n
        tokens_ += share * mix.batch * (seen + mix.questions * TEXT_TOKENS)
        answers_ += share * mix.batch * mix.questions * TEXT_TOKENS * mix.answer_rate / 2
    return round(rows_), round(frames_), round(tokens_), round(answers_)


def memory_bytes(
    recipe: Recipe,
    text: Any,
    vision: Any,
    total: int,
    learnt: int,
    tokens: int,
    frames: int,
    answers: int,
    processes: int,
    sharding: str,
    vision_learns: bool,
    largest: tuple[int, int],
) -> dict[str, int]:
    """Bytes of one process by part (formulas above). largest: parameters of the largest block and of the root."""
    width = 2 if recipe.precision == "bf16" else 4
    cut = processes if sharding != "none" else 1
    block, root = largest
    weights = 4 * total
    if sharding in ("zero3", "fsdp2"):
        weights = min(4 * total, 4 * total // processes + 4 * (block + root))
    gradients = 4 * learnt // cut + (4 * min(block, learnt) if cut > 1 else 0)
    per_layer = tokens * (KEPT * text.hidden_size + 4 * text.intermediate_size) * width
    layers = text.num_hidden_layers
    activations = per_layer * layers
    if recipe.gradient_checkpointing:
        activations = tokens * layers * text.hidden_size * width + per_layer
    patches = frames * (vision.image_size // vision.patch_size) ** 2
    seen = patches * (KEPT * vision.hidden_size + 4 * vision.intermediate_size) * width
    return {
        "weights": weights,
        "gradients": gradients,
        "optimiser": 8 * learnt // cut,
        "activations": activations,
        "vision": seen * (vision.num_hidden_layers if vision_learns else 1),
        "logits": answers * text.vocab_size * 4 * 2,
    }


def _vision_learns(trainable: Counter[str]) -> bool:
    return trainable["vision tower"] > 0


def largest_parts(model: Any) -> tuple[int, int]:
    """Parameters of the largest block, and of everything that is in none (sharding.py)."""
    from tubelet.training.sharding import blocks

    found = [sum(p.numel() for p in block.parameters()) for block in blocks(model)]
    total = sum(p.numel() for p in model.parameters())
    return max(found, default=0), total - sum(found)


def _count(model: Any, *groups: str) -> int:
    return sum(p.numel() for name, p in model.named_parameters() if group_of(name) in groups)


# --- words ---------------------------------------------------------------------------------------------


def report(found: DryRun) -> str:
    """For people: one paragraph per stage."""
    lines = [f"{found.name}: {found.processes} process(es), sharding {found.sharding}"]
    for cost in found.stages:
        learnt, still = sum(cost.trainable.values()), sum(cost.frozen.values())
        lines += [
            f"stage {cost.name} (train: {cost.train})",
            f"  trainable {_count_text(learnt)} of {_count_text(learnt + still)}: "
            + _groups_text(cost.trainable),
            "  frozen    " + (_groups_text(cost.frozen) or "nothing"),
            f"  {cost.tokens_per_step:,} tokens a step, {cost.steps:,} steps, "
            f"{cost.steps * cost.tokens_per_step / 1e9:,.2f} G tokens, {cost.flops_per_step / 1e12:,.1f} TFLOP a step",
            f"  memory per GPU about {cost.memory_bytes / 2**30:,.1f} GiB: "
            + ", ".join(f"{part} {size / 2**30:,.1f}" for part, size in cost.memory.items()),
            "  hours: state --tokens-per-s, or --mfu with --gpu-tflops"
            if cost.hours is None
            else f"  hours: {cost.hours:,.1f} at the stated throughput",
        ]
    lines += [f"note: {note}" for note in found.notes]
    lines += [f"missing: {path}" for path in found.missing]
    return "\n".join(lines)


def _groups_text(groups: dict[str, int]) -> str:
    ordered = sorted(groups.items(), key=lambda pair: -pair[1])
    return ", ".join(f"{name} {_count_text(count)}" for name, count in ordered)


def _count_text(count: int) -> str:
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return str(count)


__all__ = ["DryRun", "StageCost", "dry_run", "missing_data", "report"]
