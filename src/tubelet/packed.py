"""One prefix (a video), many suffixes (questions) in one row, exactly as if asked one by one.

    row:        [ prefix | suffix 1 | suffix 2 | ... | padding ]
    positions:    0..P-1 | P..      | P..      |       (every suffix restarts at P)
    attention:    causal; a suffix sees the prefix and itself, nothing of other suffixes

Because the prefix precedes every suffix and sees none of them, its states, its KV cache and its gradients are
shared by all questions. This is where "4-10 supervised questions for the price of one video" comes from. Knows
segments and a language model of transformers, no prompts.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import DynamicCache


def block_mask(segment: torch.Tensor, first: int = 0) -> torch.Tensor:
    """Who sees whom: (B, L) segments -> (B, 1, L - first, L) boolean, True where a query may read the key.

    segment: 0 in the prefix, k in the row's k-th suffix, -1 in padding. first: leave out the queries before this
    column.
    """
    length = segment.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=segment.device).tril()[first:]
    asks, gives = segment[:, first:, None], segment[:, None, :]
    same = (gives == asks) | ((gives == 0) & (asks > 0))
    # padding sees itself only: a row of the softmax with nothing to see would be NaN
    mask = same & causal & (gives >= 0)
    return (mask | torch.eye(length, dtype=torch.bool, device=segment.device)[first:])[:, None]


def suffix_mask(
    segment: torch.Tensor, prefix_length: int, past_segment: torch.Tensor | None = None
) -> torch.Tensor:
    """The same rule, with the prefix in the cache: (1, 1, n, P + past + n) for suffix tokens `segment` (n,).

    past_segment: (m,) segments of suffix tokens that are already in the cache, after the prefix.
    """
    n = len(segment)
    before = past_segment if past_segment is not None else segment[:0]
    prefix = torch.ones(n, prefix_length, dtype=torch.bool, device=segment.device)
    earlier = segment[:, None] == before[None, :]
    now = (segment[:, None] == segment[None, :]) & torch.ones(
        n, n, dtype=torch.bool, device=segment.device
    ).tril()
    return torch.cat([prefix, earlier, now], dim=1)[None, None]


def mask_for(model: Any, mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A boolean mask in the form that a model's attention implementation takes."""
    if model.config._attn_implementation == "sdpa":
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, torch.finfo(dtype).min)


def read_packed(
    lm: Any, embeds: torch.Tensor, segment: torch.Tensor, position: torch.Tensor, middle: int = 0
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Last states (B, L, D) of packed rows, and those of layer `middle` (0: None).

    Two passes, the same numbers as one: what is prefix in every row goes first, plainly causal (no mask to
    build, half of the scores to compute); the rest reads its keys and values, with the block mask.
    """
    alone = not bool((segment > 0).any())  # plainly causal: padding comes last and is not read
    # a cache and checkpointing exclude each other
    checkpointing = getattr(lm, "gradient_checkpointing", False)
    split = 0 if alone or checkpointing else int((segment == 0).sum(1).min())
    mask = None if alone else mask_for(lm, block_mask(segment, split), embeds.dtype)
    if split == 0:
        out = lm(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=position,
            use_cache=False,
            output_hidden_states=bool(middle),
        )
        return out.last_hidden_state, out.hidden_states[middle] if middle else None
    cache = DynamicCache(config=lm.config)
    before, after = (
        lm(
            inputs_embeds=embeds[:, part],
            attention_mask=seen,
            position_ids=position[:, part],
            past_key_values=cache,
            use_cache=True,
            output_hidden_states=bool(middle),
        )
        for part, seen in ((slice(0, split), None), (slice(split, None), mask))
    )
    hidden = torch.cat([before.last_hidden_state, after.last_hidden_state], dim=1)
    if not middle:
        return hidden, None
    return hidden, torch.cat([before.hidden_states[middle], after.hidden_states[middle]], dim=1)
