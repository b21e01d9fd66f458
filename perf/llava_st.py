"""LLaVA-ST: a decode step, a loss step and the packer, each against what the published code does instead.

    python perf/llava_st.py [decode] [loss] [packer] [--words 151660] [--repeats 3]

The other side is restated from its description, with the same numbers coming out (checked here):
  decode   six re-parameterised tables and two concatenated matrices per generated word
  loss     a dense (L, V + 300) target filled by a loop, logits and log-softmax at every position
  packer   multi-head attention with one query per batch element, keys and values projected one by one

Each variant runs in a process of its own, so that its peak memory is its own. Ratios are of one run on one
machine; where others use it too, go by the processor time.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

BINS, LABELS = 100, 60
VARIANTS = {"decode": ("ours", "restated"), "loss": ("ours", "restated"), "packer": ("ours", "restated")}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("which", nargs="*", help="decode, loss, packer; default: all")
    parser.add_argument("--words", type=int, default=151_660, help="rows of ordinary words (decode)")
    parser.add_argument(
        "--loss-words", type=int, default=20_000, help="the same for the loss: 151660 needs 8 GB"
    )
    parser.add_argument("--length", type=int, default=3000, help="prompt length of the loss step")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", help="run one variant in this process and print JSON (used by itself)")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(one(args)))
        return
    unknown = set(args.which) - set(VARIANTS)
    if unknown:
        parser.error(f"there is no {', '.join(sorted(unknown))}")
    for which in args.which or VARIANTS:
        found = {variant: child(args, f"{which}-{variant}") for variant in VARIANTS[which]}
        ours, restated = found["ours"], found["restated"]
        difference = abs(ours["check"] - restated["check"])
        print(f"{which}: {ours['what']}")
        for name, values in found.items():
            wall, cpu = values["seconds"] * 1e3, values["cpu_seconds"] * 1e3
            print(f"  {name:9} {wall:9.1f} ms, {cpu:9.1f} ms of processor time, +{values['peak_mb']:.0f} MB")
        faster, lighter = (restated[key] / ours[key] for key in ("seconds", "cpu_seconds"))
        memory = restated["peak_mb"] / max(ours["peak_mb"], 1.0)
        print(f"  {faster:.2f}x faster ({lighter:.2f}x in processor time), {memory:.1f}x less memory,")
        print(f"  results differ by {difference:.1e}\n")
        assert difference < 1e-3 * max(1.0, abs(restated["check"])), "the two do not compute the same"


def child(args: argparse.Namespace, variant: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--one", variant]
    for name in ("words", "loss_words", "length", "repeats"):
        command += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
    out = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(out.stdout.splitlines()[-1])
    return found


def one(args: argparse.Namespace) -> dict[str, Any]:
    which, variant = args.one.split("-")
    make = {"decode": decode, "loss": loss, "packer": packer}[which]
    what, step = make(args, variant == "ours")
    before = peak_mb()
    step()
    check = step()
    seconds, cpu_seconds = [], []
    for _ in range(args.repeats):
        start, cpu_start = time.perf_counter(), time.process_time()
        step()
        seconds.append(time.perf_counter() - start)
        cpu_seconds.append(time.process_time() - cpu_start)
    return {
        "what": what,
        "seconds": statistics.median(seconds),
        "cpu_seconds": statistics.median(cpu_seconds),
        "peak_mb": peak_mb() - before,
        "check": check,
    }


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# --- decode ------------------------------------------------------------------------------------------


def decode(args: argparse.Namespace, ours: bool) -> tuple[str, Callable[[], float]]:
    """Greedy words of a small language model with a large vocabulary, after a short prompt."""
    import torch
    from transformers import DynamicCache, Qwen2Config, Qwen2ForCausalLM

    from tubelet.llava_st.lape import reparameterise

    torch.manual_seed(0)
    rows, width, words = args.words + 3 * BINS, 256, 16
    config = Qwen2Config(
        vocab_size=rows,
        hidden_size=width,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    )
    llm = Qwen2ForCausalLM(config).eval()
    prompt = torch.randn(1, 8, width)
    sizes = [args.words, BINS, BINS, BINS]
    inputs, outputs = (
        m.detach().split(sizes) for m in (llm.get_input_embeddings().weight, llm.lm_head.weight)
    )

    def published_embedding(token: torch.Tensor) -> torch.Tensor:
        tables = [reparameterise(table) for table in (*inputs[1:], *outputs[1:])]
        return torch.cat([inputs[0], *tables[:3]])[token]

    def published_logits(hidden: torch.Tensor) -> torch.Tensor:
        return hidden @ torch.cat(outputs).T

    embed = llm.get_input_embeddings() if ours else published_embedding
    logits = llm.lm_head if ours else published_logits

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def step() -> float:
        cache = DynamicCache(config=config)
        hidden = llm.model(inputs_embeds=prompt, past_key_values=cache, use_cache=True).last_hidden_state[
            :, -1
        ]
        total = 0.0
        for _ in range(words):
            best = logits(hidden).max(-1)
            total += float(best.values)
            embeds = embed(best.indices)[:, None]
            hidden = llm.model(inputs_embeds=embeds, past_key_values=cache, use_cache=True).last_hidden_state[
                :, -1
            ]
        return total

    return f"{words} words, {rows:,} rows of width {width}, 2 layers", step


# --- loss --------------------------------------------------------------------------------------------


def loss(args: argparse.Namespace, ours: bool) -> tuple[str, Callable[[], float]]:
    """Loss and its gradient for the hidden states of one long prompt with a short answer."""
    import torch
    import torch.nn.functional as F

    from tubelet.llava_st.loss import SoftLabels, soft_label_loss

    torch.manual_seed(0)
    rows, length, width = args.loss_words + 3 * BINS, args.length, 64
    hidden = torch.randn(1, length, width).requires_grad_(True)
    head = torch.randn(rows, width) * 0.1
    at = torch.arange(length - LABELS - 1, length - 1)
    low = torch.randint(args.loss_words, rows - 1, (LABELS,))
    high, weight = low + 1, torch.rand(LABELS)

    def step() -> float:
        hidden.grad = None
        if ours:
            labels = SoftLabels(torch.zeros_like(at), at, low, high, weight, 1)
            value = soft_label_loss(hidden, head, labels)
        else:
            labels_of_row = torch.full((length,), -100)
            labels_of_row[at + 1] = low
            targets = torch.zeros(length, rows)
            for position in range(length):  # as described: filled position by position
                if int(labels_of_row[position]) != -100:
                    number = position - int(at[0]) - 1
                    targets[position, low[number]] = 1 - weight[number]
                    targets[position, high[number]] = weight[number]
            logits = F.linear(hidden[0], head)
            each = -(targets[1:] * logits[:-1].log_softmax(-1)).sum(-1)
            value = each[labels_of_row[1:] != -100].mean()
        value.backward()
        return float(value.detach())

    return f"{LABELS} labels at L = {length:,}, {rows:,} classes", step


# --- packer ------------------------------------------------------------------------------------------


def packer(args: argparse.Namespace, ours: bool) -> tuple[str, Callable[[], float]]:
    """The first block on twenty frames of 27 x 27 tokens; ours goes through them two by two."""
    import torch

    from tubelet.llava_st.packer import PackerBlock, centres

    torch.manual_seed(0)
    frames, dim, width, heads = 20, 512, 256, 8
    block = PackerBlock(dim, width, heads, (1, 3, 3)).eval()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    attention = torch.nn.MultiheadAttention(width, heads)
    attention.load_state_dict(
        {
            "in_proj_weight": block.in_weight,
            "in_proj_bias": block.in_bias,
            "out_proj.weight": block.out.weight,
            "out_proj.bias": block.out.bias,
        }
    )
    tokens = torch.randn(frames, 27, 27, dim)

    def cut(x: torch.Tensor) -> torch.Tensor:
        """(T, 27, 27, E) -> (9 keys, T * 81 batch elements, E)."""
        split = x.view(frames, 9, 3, 9, 3, -1).permute(2, 4, 0, 1, 3, 5)
        return split.reshape(9, frames * 81, -1)

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def step() -> float:
        if ours:
            return float(block(tokens, chunk=2).double().abs().mean())
        seeds = centres(tokens, (1, 3, 3))
        query = block.query_norm(block.query(seeds)).reshape(1, frames * 81, width)
        key, value = block.key_norm(block.key(tokens)), block.value_norm(block.value(tokens))
        read, _ = attention(query, cut(key), cut(value))
        out = seeds + block.to_tokens(read[0]).view_as(seeds)
        return float(out.double().abs().mean())

    return f"{frames} frames of 27 x 27 tokens, width {dim} / {width}, {heads} heads", step


if __name__ == "__main__":
    main()
