"""Attention rows against eager maps and plain SDPA: time of one forward and peak memory, at 1k, 4k and 8k tokens.

    python perf/attention_rows.py [--tokens 1024 4096 8192] [--layers 2] [--repeats 5] [--device cpu]

One random Qwen2 language model with grouped heads (`--hidden`, `--heads`, `--kv-heads`), one prompt, five rows at its
end, no gradients. "sdpa" reads nothing, "rows" reads five rows of every layer, "eager" makes all maps and stacks them,
as published code does (output_attentions=True). The three take turns in each round; times, and ratios to the same
round's sdpa, are medians of rounds. Ratios are what counts; on shared cores they are
noisy, too: say so with the numbers.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

KINDS = ("sdpa", "rows", "eager")
ROWS = 5


def build(args: argparse.Namespace) -> Any:
    import torch
    from transformers import Qwen2Config, Qwen2Model

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=1000,
        hidden_size=args.hidden,
        intermediate_size=2 * args.hidden,
        num_hidden_layers=args.layers,
        num_attention_heads=args.heads,
        num_key_value_heads=args.kv_heads,
        max_position_embeddings=32768,
    )
    model = Qwen2Model(config).to(args.device, getattr(torch, args.dtype)).eval()
    return model.requires_grad_(False)


def reset_peak(device: str) -> int:
    """Forget earlier peaks; returns the bytes in use now (CPU: resident set; GPU: torch's allocator)."""
    import torch

    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        return int(torch.cuda.memory_allocated())
    Path("/proc/self/clear_refs").write_text("5")  # Linux: VmHWM starts again from the resident set
    return status_bytes("VmRSS")


def peak_bytes(device: str) -> int:
    import torch

    return int(torch.cuda.max_memory_allocated()) if device.startswith("cuda") else status_bytes("VmHWM")


def status_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024


def forwards(args: argparse.Namespace, n: int) -> dict[str, Callable[[], Any]]:
    """What is compared, as functions; the three models have the same weights."""
    import torch

    from tubelet.mllm.attention_rows import RowReader, row_weights, use_row_attention

    models = {kind: build(args) for kind in KINDS}
    use_row_attention(models["rows"])
    models["sdpa"].set_attn_implementation("sdpa")
    models["eager"].set_attn_implementation("eager")
    ids = torch.randint(1000, (1, n), generator=torch.Generator().manual_seed(1)).to(args.device)
    at = torch.arange(n - ROWS, n, device=args.device)
    columns = torch.arange(n - 3 * ROWS, device=args.device)
    weights = row_weights(args.layers, args.heads).to(args.device)

    def rows() -> Any:
        reader = RowReader(at, columns, weights)
        models["rows"](input_ids=ids, row_reader=reader)
        return reader.total

    def eager() -> Any:
        maps = torch.stack(models["eager"](input_ids=ids, output_attentions=True).attentions)
        return maps.mean((0, 2))[:, at][..., columns]

    return {"sdpa": lambda: models["sdpa"](input_ids=ids).last_hidden_state, "rows": rows, "eager": eager}


def timed(call: Callable[[], Any], device: str) -> tuple[float, float, Any]:
    """Seconds, peak MB above what was in use before, and what came out."""
    import torch

    before = reset_peak(device)
    start = time.perf_counter()
    out = call()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - start, (peak_bytes(device) - before) / 1e6, out


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 4096, 8192])
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--kv-heads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args()

    import torch

    torch.set_num_threads(args.threads)
    print(
        f"{args.layers} layers, {args.heads} heads over {args.kv_heads}, width {args.hidden}, {args.dtype}, "
        f"{args.device}; median of {args.repeats} rounds, peak above what is in use before"
    )
    with torch.inference_mode():
        for n in args.tokens:
            calls = forwards(args, n)
            calls["rows"](), calls["sdpa"]()  # first calls are not counted
            found: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS}
            last = {}
            for _ in range(args.repeats):
                for kind, call in calls.items():
                    seconds, peak, last[kind] = timed(call, args.device)
                    found[kind].append((seconds, peak))
            middle = {kind: statistics.median(run[0] for run in runs) for kind, runs in found.items()}
            for kind, runs in found.items():
                peak = statistics.median(run[1] for run in runs)
                ratios = [one[0] / sdpa[0] for one, sdpa in zip(runs, found["sdpa"], strict=True)]
                print(
                    f"{n:6} tokens  {kind:5} {middle[kind]:8.3f} s  {statistics.median(ratios):6.2f} x sdpa  "
                    f"{peak:9.1f} MB"
                )
            difference = float((last["rows"] - last["eager"]).abs().max())
            print(f"{n:6} tokens  rows differ from eager maps by at most {difference:.1e}", flush=True)


if __name__ == "__main__":
    main()
