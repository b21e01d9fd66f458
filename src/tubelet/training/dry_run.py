"""What a recipe will cost, before it runs: parameters, tokens, memory, steps, hours; and whether its data is there.

The model is built without weights (`dry_models`). P: parameters, Pt: trainable ones, N:
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

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from tubelet.errors import DataError, RecipeError
from tubelet.training.dry_models import Built, build
from tubelet.training.recipe import Recipe, Stage

SHARDING = ("none", "fsdp2", "zero2", "zero3")
TEXT_TOKENS = 30  # of a question with its answer
CONVERSATION_TOKENS = 250  # of an item of LLaVA-ST: text and coordinates
KEPT = 16  # numbers of width d that a block keeps per token


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
    built = build(recipe, notes)
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


def _cost(recipe: Recipe, stage: Stage, built: Built, processes: int, sharding: str) -> StageCost:
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


def _batch(recipe: Recipe, stage: Stage, built: Built) -> tuple[int, int, int, int]:
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
