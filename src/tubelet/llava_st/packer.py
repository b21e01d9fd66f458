"""The spatial-temporal packer: three blocks of window attention (paper, section 3.3).

A block cuts a video (T, H, W, C) into windows of t x h x w tokens and makes one token of each: the window's centre
asks, the window answers, and what it says is added to the centre. The first block packs space; from its output the
slow block packs time and the fast block packs space once more.

    tokens (T, 27, 27, C) --space 3x3--> (T, 9, 9, C) --slow, 5 frames--> (T/5, 9, 9, C)
                                                      --fast, 3x3-------> (T, 3, 3, C)

Any grid, frame count and width: windows at the border may be smaller. For odd windows the centre is one token (what
the published linear downsampling takes), for even ones the mean of the middle ones.

One query per window leaves no reason to project every key and value: the query is moved into the space of the keys
(W_k^T q, per head), and the values are projected after they were averaged. The heads then are the queries of one
scaled_dot_product_attention per window. The keys' bias adds the same to all scores of a query and falls out.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from tubelet.errors import ModelError
from tubelet.llava_st.config import PackerConfig

Window = tuple[int, int, int]


def packed_size(size: tuple[int, int, int], window: Window) -> tuple[int, int, int]:
    """How many windows there are along each axis."""
    t, h, w = (-(-n // k) for n, k in zip(size, window, strict=True))
    return t, h, w


class PackerBlock(nn.Module):  # type: ignore[misc]
    """(T, H, W, dim) -> one token per window (T', H', W', dim)."""

    def __init__(self, dim: int, width: int, heads: int, window: Window) -> None:
        super().__init__()
        self.window, self.heads = window, heads
        self.query = _mlp(dim, width)
        self.key = _mlp(dim, width)
        self.value = _mlp(dim, width)
        self.query_norm = nn.LayerNorm(width)
        self.key_norm = nn.LayerNorm(width)
        self.value_norm = nn.LayerNorm(width)
        self.in_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_bias = nn.Parameter(torch.zeros(3 * width))
        self.out = nn.Linear(width, width)
        self.to_tokens = nn.Linear(width, dim, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As published: truncated normal 0.02, zero biases, Xavier for the projections of the attention."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()
        nn.init.xavier_uniform_(self.in_weight)
        nn.init.zeros_(self.in_bias)

    def forward(self, tokens: torch.Tensor, chunk: int | None = None) -> torch.Tensor:
        """chunk: frames per pass (rounded up to whole windows): bounds memory, changes no number."""
        if tokens.ndim != 4:
            raise ModelError(
                f"the packer takes tokens (frames, rows, columns, width), got {tuple(tokens.shape)}"
            )
        if chunk is None or chunk >= len(tokens):
            return self._pack(tokens)
        step = -(-chunk // self.window[0]) * self.window[0]
        return torch.cat([self._pack(part) for part in tokens.split(step)])

    def _pack(self, tokens: torch.Tensor) -> torch.Tensor:
        seeds = centres(tokens, self.window)
        query = self.query_norm(self.query(seeds)).flatten(0, 2)  # (B, E), B windows
        key = self.key_norm(self.key(tokens))
        value = self.value_norm(self.value(tokens))
        key, keep = windows(key, self.window)  # (B, S, E)
        value, _ = windows(value, self.window)
        read = self.out(self._attend(query, key, value, keep))
        return seeds + self.to_tokens(read).view_as(seeds)

    def _attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, keep: torch.Tensor | None
    ) -> torch.Tensor:
        """(B, E) queries read their windows (B, S, E) -> (B, E)."""
        n, width = query.shape
        size = width // self.heads
        to_query, to_key, to_value = self.in_weight.view(3, self.heads, size, width)
        query_bias, _, value_bias = self.in_bias.view(3, width)
        asked = F.linear(query, to_query.reshape(width, width), query_bias).view(n, self.heads, size)
        asked = torch.einsum("bhd,hde->bhe", asked, to_key)
        if keep is not None:
            keep = keep[:, None, None]
        heard = F.scaled_dot_product_attention(
            asked[:, None], key[:, None], value[:, None], attn_mask=keep, scale=size**-0.5
        )[:, 0]  # (B, heads, E)
        return torch.einsum("bhe,hde->bhd", heard, to_value).reshape(n, width) + value_bias


class AverageBlock(nn.Module):  # type: ignore[misc]
    """(T, H, W, dim) -> the mean of every window: what the packer is compared with. It learns nothing."""

    def __init__(self, dim: int, width: int, heads: int, window: Window) -> None:
        super().__init__()
        self.window = window

    def forward(self, tokens: torch.Tensor, chunk: int | None = None) -> torch.Tensor:
        """chunk: as in `PackerBlock`; nothing here needs it."""
        size = packed_size((tokens.shape[0], tokens.shape[1], tokens.shape[2]), self.window)
        cut, keep = windows(tokens, self.window)  # (B, S, dim)
        count = torch.full((len(cut), 1), cut.shape[1]) if keep is None else keep.sum(1, keepdim=True)
        return (cut.sum(1) / count.to(cut)).view(*size, -1)


class Packer(nn.Module):  # type: ignore[misc]
    """The three blocks: `space` first, then `slow` and `fast` side by side on its output."""

    def __init__(self, dim: int, config: PackerConfig) -> None:
        super().__init__()
        self.config = config
        sizes = (dim, config.width, config.heads)
        block: Any = AverageBlock if config.kind == "average" else PackerBlock
        self.space = block(*sizes, window=(1, config.space, config.space))
        self.slow = block(*sizes, window=(config.time, 1, 1))
        self.fast = block(*sizes, window=(1, config.fast, config.fast))

    def slow_tokens(self, frames: int, rows: int, columns: int) -> int:
        t, h, w = self._base(frames, rows, columns)
        return -(-t // self.config.time) * h * w

    def fast_tokens(self, frames: int, rows: int, columns: int) -> int:
        t, h, w = packed_size(self._base(frames, rows, columns), self.fast.window)
        return t * h * w

    def _base(self, frames: int, rows: int, columns: int) -> tuple[int, int, int]:
        return packed_size((frames, rows, columns), self.space.window)


def _mlp(dim: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, width), nn.GELU(), nn.Linear(width, width))


def centres(tokens: torch.Tensor, window: Window) -> torch.Tensor:
    """The middle token of every window, or the mean of the middle ones: (T, H, W, C) -> (T', H', W', C)."""
    for axis, step in enumerate(window):
        if step == 1:
            continue
        n = tokens.shape[axis]
        first = torch.arange(0, n, step, device=tokens.device)
        last = (first + step).clamp_max(n) - 1
        low, high = (first + last) // 2, (first + last + 1) // 2
        picked = tokens.index_select(axis, low)
        if not torch.equal(low, high):
            picked = (picked + tokens.index_select(axis, high)) / 2
        tokens = picked
    return tokens


def windows(tokens: torch.Tensor, window: Window) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(T, H, W, E) -> (B, S, E), one row per window in order of the windows, and (B, S) which are real tokens.

    The mask is None when the windows cover the tokens exactly.
    """
    size = tokens.shape[:3]
    t, h, w = packed_size((size[0], size[1], size[2]), window)
    missing = [n * k - real for n, k, real in zip((t, h, w), window, size, strict=True)]
    keep = None
    if any(missing):
        pad = (0, 0, 0, missing[2], 0, missing[1], 0, missing[0])
        real = torch.ones(*size, 1, dtype=torch.bool, device=tokens.device)
        keep = _cut(F.pad(real, pad), (t, h, w), window)[..., 0]
        tokens = F.pad(tokens, pad)
    return _cut(tokens, (t, h, w), window), keep


def _cut(tokens: torch.Tensor, count: tuple[int, int, int], window: Window) -> torch.Tensor:
    (t, h, w), (a, b, c) = count, window
    split = tokens.view(t, a, h, b, w, c, -1).permute(0, 2, 4, 1, 3, 5, 6)
    return split.reshape(t * h * w, a * b * c, -1)
