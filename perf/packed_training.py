"""Supervised pairs (video, sentence) per second: several questions of a video in one packed row, or one per sample.

    python perf/packed_training.py [--questions 8] [--frames 16] [--rounds 3]

Both ways learn from the same videos and questions with the same loss, forward and backward, in turns; the weights are
random, which changes no time. One question per sample encodes each video once per question. Prints pairs per second of
both, their ratio, and the largest difference of the two gradients relative to the largest gradient.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from tubelet.spacevllm.batch import Batch, collate, normalise
from tubelet.spacevllm.checkpoint import Bundle, new_pico, with_queries
from tubelet.spacevllm.config import DecoderConfig, SpaceVLLMConfig
from tubelet.spacevllm.loss import LossWeights, space_losses, text_loss, total_loss
from tubelet.training.samples import Sample, WorldMix, world_batch


def one_by_one(samples: Sequence[Sample]) -> list[Sample]:
    """The same questions, each with a video of its own."""
    return [replace(sample, questions=(question,)) for sample in samples for question in sample.questions]


def make_batch(bundle: Bundle, samples: Sequence[Sample]) -> Batch:
    model = bundle.model
    return collate(samples, model.config, bundle.layout, bundle.tokenizer, model.tokens_per_frame)


def step(bundle: Bundle, batch: Batch) -> float:
    """Forward and backward; gradients are left in the model."""
    bundle.model.zero_grad(set_to_none=True)
    out = bundle.model(batch.packed, normalise(batch.pixels, bundle.pixel_mean, bundle.pixel_std))
    parts = space_losses(out.decoder, batch.truth)
    parts["text"] = text_loss(out.answer_logits, batch.packed.answer_ids)
    total = total_loss(parts, LossWeights())
    total.backward()
    return float(total.detach())


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.detach().clone() for name, p in model.named_parameters() if p.grad is not None}


def difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The largest difference of two gradients, as a share of the largest element."""
    largest = max(float(g.abs().max()) for g in other.values())
    return max(float((one[name] - other[name]).abs().max()) for name in other) / largest


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--questions", type=int, default=8)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--videos", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    torch.manual_seed(0)
    config = SpaceVLLMConfig(
        max_frames=chosen.frames, time_layout="interleaved", prompts="brief", time_decimals=1,
        decoder=DecoderConfig(temporal_layers=1),
    )  # fmt: skip
    bundle = with_queries(new_pico(config), config)
    mix = WorldMix(
        batch=chosen.videos, questions=chosen.questions, frames=chosen.frames, tasks=("stvg", "tvg", "qa")
    )
    samples = world_batch(mix, 0)
    packed, single = make_batch(bundle, samples), make_batch(bundle, one_by_one(samples))
    step(bundle, packed)
    together = gradients(bundle.model)
    step(bundle, single)
    gap = difference(together, gradients(bundle.model))
    times: dict[str, list[float]] = {"packed": [], "single": []}
    for _ in range(chosen.rounds):
        times["packed"].append(seconds(lambda: step(bundle, packed)))
        times["single"].append(seconds(lambda: step(bundle, single)))
    best = {name: min(found) for name, found in times.items()}
    for name in ("packed", "single"):
        print(f"{name:6}  {packed.n_questions / best[name]:8.1f} pairs/s  (best of {chosen.rounds})")
    print(
        f"packed / single: {best['single'] / best['packed']:.2f}x; gradients differ by {gap:.1e} of the largest"
    )


if __name__ == "__main__":
    main()
