"""One training step of a SpaceVLLM with LoRA at full size: tokens/s, pairs/s, MFU, peak of the memory.

    python perf/training_step.py --size 7b [--frames 64] [--questions 8] [--batch 1] [--rounds 5]
        [--precision bf16] [--no-checkpointing] [--peak-tflops 989]
    python perf/training_step.py --size tiny          # the same code on a CPU, for a smoke test: its speed says nothing

The model has the shapes of the published one (Qwen2 and SigLIP so400m; "tiny": a pico model), random weights and the
settings of recipes/spacevllm-7b-lora.yaml: adapters of the language model, space decoder and query tokens learn.
Nothing is downloaded: words are those of the pico vocabulary, pixels are noise, which changes no time. A step is what
`tubelet train` does on one GPU: forward under autocast, the sum of the losses, backward, clipping, AdamW. Data loading
is not in it. Two batches take turns: one video row with all its questions, and the same video with one question.

Model FLOPs of a step (what MFU counts; recomputation by checkpointing, padding and masked-out scores are not in it),
over the weights P of linear and convolution layers, of which Pt learn:

    language model  tokens x (4 P + 2 Pt)           2 P forward, 2 P for the gradients of activations, 2 Pt of weights
    its attention   12 x layers x heads x head width x pairs of tokens that may see each other
    head            answer tokens x (4 P + 2 Pt)    it is read before answer tokens only
    vision tower    2 P x patches + 4 x layers x width x patches of a frame x patches: forward only
    projector       2 P x patches: forward only

    MFU = model FLOPs / seconds of the step / peak rate of the device

The space decoder is left out (1.7 M of 8.4 B parameters), so MFU is a little below the truth. `--peak-tflops` is the
dense bf16 rate of the data sheet; it is known for the GPUs in PEAK_TFLOPS, and there is no MFU without it.

Expectations, printed with what is measured:
- MFU at least 0.35 with 7b, 64 frames and 8 questions in bf16 (what docs/training.md and docs/scale.md assume);
- 8 questions of a video give at least 3 x the pairs/s of one question per step (the target of perf/packed_training.py);
- the peak of the memory within a factor of 1.3 of what `tubelet train --dry-run` states for this batch.

The first two rounds are not counted; times are medians of the others. A CPU that others use too makes all of it worse.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tubelet.pico import VIDEO_TOKEN, pico_config, pico_tokenizer
from tubelet.spacevllm.batch import Batch, collate, normalise
from tubelet.spacevllm.checkpoint import Bundle
from tubelet.spacevllm.loss import space_losses, text_loss, total_loss
from tubelet.spacevllm.model import SpaceVLLM
from tubelet.spacevllm.pack import Packed
from tubelet.spacevllm.prompts import make_layout
from tubelet.spacevllm.train import choose_parameters
from tubelet.training.dry_models import base_config
from tubelet.training.dry_run import largest_parts, memory_bytes
from tubelet.training.loop import make_optimisers
from tubelet.training.lora import add_lora
from tubelet.training.recipe import Recipe, load_recipe
from tubelet.training.samples import WorldMix, world_batch

RECIPE = Path(__file__).parents[1] / "recipes" / "spacevllm-7b-lora.yaml"
STARTS = {"7b": "lmms-lab/LLaVA-Video-7B-Qwen2", "0.5b": "lmms-lab/llava-onevision-qwen2-0.5b-ov", "tiny": ""}
PEAK_TFLOPS = {  # dense bf16 by the data sheets; the first name that the device's holds
    "B200": 2250.0,
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "RTX 4090": 165.0,
    "A10": 125.0,
}
UNCOUNTED = 2
MFU_TARGET, PACKED_TARGET, MEMORY_FACTOR = 0.35, 3.0, 1.3


# --- model and data ------------------------------------------------------------------------------------


def make_bundle(recipe: Recipe, size: str, device: torch.device) -> Bundle:
    """A model of this size with random weights on the device; what a LoRA stage trains has gradients."""
    from transformers import LlavaOnevisionForConditionalGeneration

    tokenizer = pico_tokenizer()
    if size == "tiny":
        config, known = pico_config(tokenizer, hidden=64, layers=2, vision_layers=1), None
    else:
        config, known = base_config(recipe, [])
    settings = recipe.spacevllm.on(known)
    rows = config.text_config.vocab_size
    if rows < len(tokenizer) + settings.max_frames + 1:
        rows = config.text_config.vocab_size = -(-(len(tokenizer) + settings.max_frames + 1) // 8) * 8
    with device:
        base = LlavaOnevisionForConditionalGeneration(config)
        model = SpaceVLLM(base, settings)
        add_lora(base.model.language_model, recipe.lora)
    model.train()
    if recipe.gradient_checkpointing:
        base.model.language_model.gradient_checkpointing_enable({"use_reentrant": False})
    queries = tuple(range(rows - settings.max_frames - 1, rows))
    layout = replace(make_layout(tokenizer, VIDEO_TOKEN, 0), query_tokens=queries)
    bundle = Bundle(model.to(device), tokenizer, layout, (0.5,) * 3, (0.5,) * 3, trained=False)
    choose_parameters(bundle, "lora")
    return bundle


def make_batch(bundle: Bundle, videos: int, frames: int, questions: int) -> Batch:
    """Toy-world questions about videos of noise of the model's size."""
    model = bundle.model
    mix = WorldMix(batch=videos, questions=questions, frames=frames, tasks=("stvg", "tvg"), absent_rate=0.0)
    noise = np.random.default_rng(0)
    shape = (frames, model.image_size, model.image_size, 3)
    samples = [
        replace(sample, pixels=noise.integers(0, 256, shape, dtype=np.uint8))
        for sample in world_batch(mix, 0)
    ]
    return collate(samples, model.config, bundle.layout, bundle.tokenizer, model.tokens_per_frame)


# --- a step --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Runner:
    """What a step needs. bf16: autocast, with float32 weights, as in training."""

    bundle: Bundle
    recipe: Recipe
    optimisers: list[torch.optim.Optimizer]
    device: torch.device

    def step(self, batch: Batch) -> float:
        stage = self.recipe.stages[0]
        with self._autocast():
            pixels = normalise(batch.pixels, self.bundle.pixel_mean, self.bundle.pixel_std)
            out = self.bundle.model(batch.packed, pixels)
            parts = space_losses(out.decoder, batch.truth)
            parts["text"] = text_loss(out.answer_logits, batch.packed.answer_ids)
            loss = total_loss(parts, stage.losses)
        loss.backward()
        learnt = [p for p in self.bundle.model.parameters() if p.requires_grad]
        torch.nn.utils.clip_grad_norm_(learnt, stage.optimiser.clip)
        for optimiser in self.optimisers:
            optimiser.step()
            optimiser.zero_grad()
        return float(loss.detach())  # waits for the device

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.recipe.precision != "bf16":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)


# --- arithmetic ----------------------------------------------------------------------------------------


def model_flops(model: SpaceVLLM, packed: Packed) -> dict[str, float]:
    """Model FLOPs of a step by part (formulas above)."""
    config, inside = model.base.config, model.base.model
    text, vision = config.text_config, config.vision_config
    tokens, answers = int((packed.segment >= 0).sum()), len(packed.answer_ids)
    all_, learnt = matrix_weights(inside.language_model)
    head, head_learnt = matrix_weights(model.base.lm_head)
    per_frame = (vision.image_size // vision.patch_size) ** 2
    patches = int(packed.frame_mask.sum()) * per_frame
    width = text.num_attention_heads * (text.hidden_size // text.num_attention_heads)
    seeing = 4.0 * vision.num_hidden_layers * vision.hidden_size * per_frame * patches
    return {
        "language model": tokens * (4.0 * all_ + 2.0 * learnt),
        "attention": 12.0 * text.num_hidden_layers * width * visible_pairs(packed.segment),
        "head": answers * (4.0 * head + 2.0 * head_learnt),
        "vision tower": 2.0 * matrix_weights(inside.vision_tower)[0] * patches + seeing,
        "projector": 2.0 * matrix_weights(inside.multi_modal_projector)[0] * patches,
    }


def matrix_weights(module: nn.Module) -> tuple[int, int]:
    """Weights of linear and convolution layers in a module, and how many of them learn."""
    found = [m.weight for m in module.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    return sum(w.numel() for w in found), sum(w.numel() for w in found if w.requires_grad)


def visible_pairs(segment: torch.Tensor) -> int:
    """Pairs (token, token it may see): causal, and of the suffixes only its own (`tubelet.packed`)."""
    total = 0
    for row in segment:
        prefix = int((row == 0).sum())
        total += prefix * (prefix + 1) // 2
        for k in range(1, int(row.max()) + 1):
            n = int((row == k).sum())
            total += n * prefix + n * (n + 1) // 2
    return total


def peak_tflops(stated: float | None, device: torch.device, precision: str) -> float | None:
    """TFLOP/s of the data sheet; None: not known."""
    if stated is not None or device.type != "cuda" or precision != "bf16":
        return stated
    name = torch.cuda.get_device_name(device)
    return next((peak for word, peak in PEAK_TFLOPS.items() if word in name), None)


def stated_memory(bundle: Bundle, recipe: Recipe, batch: Batch) -> int:
    """Bytes that a dry run states for one process with this batch."""
    model = bundle.model
    config, packed = model.base.config, batch.packed
    total = sum(p.numel() for p in model.parameters())
    learnt = sum(p.numel() for p in model.parameters() if p.requires_grad)
    parts = memory_bytes(
        recipe, config.text_config, config.vision_config, total, learnt, packed.ids.numel(),
        len(batch.pixels), len(packed.answer_ids), 1, "none", False, largest_parts(model),
    )  # fmt: skip
    return sum(parts.values())


# --- measuring -----------------------------------------------------------------------------------------


def reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: VmHWM starts again from the resident set


def peak_bytes(device: torch.device) -> int:
    """GPU: the allocator's peak. CPU: the peak of the resident set, Python and libraries included."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


def seconds(work: Callable[[], Any], device: torch.device) -> float:
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def settings_of(chosen: argparse.Namespace) -> Recipe:
    """The shipped recipe with what the command line says."""
    start = STARTS[chosen.size] or "''"
    words = [
        f"start={start}",
        f"precision={chosen.precision}",
        f"gradient_checkpointing={'true' if chosen.checkpointing else 'false'}",
        f"spacevllm.max_frames={chosen.frames}",
        f"lora.rank={chosen.rank}",
    ]
    return load_recipe(RECIPE, words + (["spacevllm.prompts=brief"] if chosen.size == "tiny" else []))


def arguments(words: list[str]) -> argparse.Namespace:
    tiny = "tiny" in words
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=sorted(STARTS), required=True)
    parser.add_argument("--frames", type=int, default=4 if tiny else 64)
    parser.add_argument("--questions", type=int, default=8, help="per video, in one packed row")
    parser.add_argument("--batch", type=int, default=1, help="videos of a step")
    parser.add_argument("--rank", type=int, default=4 if tiny else 128, help="of the adapters")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--checkpointing", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--peak-tflops", type=float, help="dense rate of the device in this precision")
    chosen = parser.parse_args(words)
    if chosen.device == "cpu" and chosen.size != "tiny":
        parser.error(
            f"a model of size {chosen.size} needs a GPU, and there is none: --size tiny is for a CPU"
        )
    if min(chosen.frames, chosen.questions, chosen.batch, chosen.rank, chosen.rounds) < 1:
        parser.error("--frames, --questions, --batch, --rank and --rounds are at least 1")
    return chosen


def measure(runner: Runner, batches: dict[str, Batch], rounds: int) -> dict[str, tuple[float, int]]:
    """Median seconds and peak bytes of a step with each batch, taking turns."""
    took: dict[str, list[float]] = {name: [] for name in batches}
    peaks = dict.fromkeys(batches, 0)
    for number in range(UNCOUNTED + rounds):
        for name, batch in batches.items():
            reset_peak(runner.device)
            one = seconds(partial(runner.step, batch), runner.device)
            if number >= UNCOUNTED:
                took[name].append(one)
                peaks[name] = max(peaks[name], peak_bytes(runner.device))
    return {name: (statistics.median(took[name]), peaks[name]) for name in batches}


def told(runner: Runner, batch: Batch, step_s: float, peak_memory: int, tflops: float | None) -> list[str]:
    """What one batch came to, in lines."""
    tokens = int((batch.packed.segment >= 0).sum())
    parts = model_flops(runner.bundle.model, batch.packed)
    flops = sum(parts.values())
    stated = stated_memory(runner.bundle, runner.recipe, batch)
    mfu = "no MFU without --peak-tflops"
    if tflops is not None:
        mfu = f"MFU {flops / step_s / (tflops * 1e12):.3f} of {tflops:g} TFLOP/s"
    shares = ", ".join(f"{name} {100 * value / flops:.1f} %" for name, value in parts.items())
    return [
        f"  {batch.n_questions} pairs, {tokens:,} tokens, {len(batch.pixels)} frames: {step_s:.3f} s a step",
        f"  {tokens / step_s:,.0f} tokens/s, {batch.n_questions / step_s:,.2f} pairs/s",
        f"  {flops / 1e12:,.4f} TFLOP a step: {shares}",
        f"  {flops / step_s / 1e12:,.4f} TFLOP/s, {mfu} (target with 7b on a GPU: at least {MFU_TARGET})",
        f"  {peak_memory / 2**30:,.2f} GiB at the peak, {peak_memory / stated:.2f} x the {stated / 2**30:,.2f} of a "
        f"dry run (target on a GPU: {1 / MEMORY_FACTOR:.2f} to {MEMORY_FACTOR}; on a CPU the libraries count, too)",
    ]


def main() -> None:
    chosen = arguments(sys.argv[1:])
    device = torch.device(chosen.device)
    torch.manual_seed(0)
    recipe = settings_of(chosen)
    bundle = make_bundle(recipe, chosen.size, device)
    runner = Runner(bundle, recipe, make_optimisers(bundle.model, recipe.stages[0].optimiser), device)
    batches = {
        f"{count} question{'s' if count > 1 else ''}": make_batch(
            bundle, chosen.batch, chosen.frames, count
        ).to(device)
        for count in dict.fromkeys((chosen.questions, 1))
    }
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    counts = [p.numel() for p in bundle.model.parameters()]
    learnt = sum(p.numel() for p in bundle.model.parameters() if p.requires_grad)
    print(
        f"size {chosen.size} on {name}, {chosen.precision}, checkpointing {'on' if chosen.checkpointing else 'off'}"
    )
    print(f"{sum(counts) / 1e6:,.2f} M parameters, {learnt / 1e6:,.2f} M of them learn")
    peak = peak_tflops(chosen.peak_tflops, device, chosen.precision)
    found = measure(runner, batches, chosen.rounds)
    rates = {}
    for words, (step_s, memory) in found.items():
        print(f"{words}, median of {chosen.rounds} rounds")
        print("\n".join(told(runner, batches[words], step_s, memory, peak)))
        rates[words] = batches[words].n_questions / step_s
    if len(rates) == 2:
        packed, single = rates.values()
        print(
            f"{' / '.join(rates)}: {packed / single:.2f} x the pairs/s (target with 8: at least {PACKED_TARGET:g})"
        )


if __name__ == "__main__":
    main()
