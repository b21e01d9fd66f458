"""Attention rows: a few rows of the softmax at the price of SDPA, instead of L x H x N x N maps.

`use_row_attention(language_model)` makes a transformers model call `row_attention` in every layer. It returns what
SDPA returns. When the forward is given a `RowReader` (`language_model(..., row_reader=reader)`) it also computes
softmax(q_r K^T) for the rows r that the reader wants and adds them up over layers and heads:

    reader.total   (B, R, C)     sum over layers and heads of weight[layer, head] * softmax(...)[row, column]

C columns are kept of the N keys (the softmax is over all of them). Grouped-query heads, additive and boolean masks
(padding, blocks of packed questions), cached prefixes, half precision (rows are computed in fp32 from the q and k that
the layer has) and autograd (total carries the graph) work. Equal to the mean of eager maps; see tests/mllm. Knows
tensors, no prompts (arXiv 2509.15178, 3.1; the maps that the published code stacks are never made).

`language_model(..., last_layer=k)` ends the forward inside the attention of layer k, where its keys and values are in
the cache and its rows are read, by raising `LastLayerReached`: a cache needs no more of layer k, rows no later layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from tubelet.errors import ModelError

ROW_ATTENTION = "tubelet_rows"
"""Name under which `row_attention` is registered with transformers."""


class LastLayerReached(Exception):
    """Raised by `row_attention` at the layer that was asked for; caught where the forward was called."""


@dataclass(slots=True, eq=False)
class RowReader:
    """What to read during one forward, and what was read.

    rows: (R,) or (B, R) indices of queries of this forward (tokens that are not in a cache).
    columns: (C,) or (B, C) indices of keys, cached ones included; None: all.
    weights: (L, H) fp32 weight of every head of every layer; layers whose weights are all 0 cost nothing.
    keep_layers: the indices of layers whose maps (mean over heads by `weights` as given) are kept in `layers`.
    total: (B, R, C) fp32 after the forward, None before. layers: index -> (B, R, C).
    """

    rows: torch.Tensor
    columns: torch.Tensor | None
    weights: torch.Tensor
    keep_layers: frozenset[int] = frozenset()
    total: torch.Tensor | None = None
    layers: dict[int, torch.Tensor] = field(default_factory=dict)
    wanted: frozenset[int] = field(init=False)

    def __post_init__(self) -> None:
        used = (self.weights != 0).any(dim=1).nonzero().flatten().tolist()
        self.wanted = frozenset(used)

    def add(self, layer: int, query: torch.Tensor, key: torch.Tensor, mask: Any, scaling: float) -> None:
        """query (B, H, Q, d), key (B, H_kv, N, d) with positions applied, mask (B or 1, 1 or H, Q, N) or None."""
        rows = _batched(self.rows, query.shape[0])
        probability = attention_of_rows(query, key, mask, rows, scaling)
        if self.columns is not None:
            columns = _batched(self.columns, query.shape[0])[:, None, None, :]
            probability = probability.gather(-1, columns.expand(*probability.shape[:3], -1))
        weight = self.weights[layer].to(probability.device)
        read = torch.einsum("bhrc,h->brc", probability, weight)
        self.total = read if self.total is None else self.total + read
        if layer in self.keep_layers:
            self.layers[layer] = read


def attention_of_rows(
    query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None, rows: torch.Tensor, scaling: float
) -> torch.Tensor:
    """softmax(q_r K^T * scaling) in fp32: (B, H, R, N) for rows (B, R) of query (B, H, Q, d) and key (B, H_kv, N, d).

    mask None: causal when there are as many queries as keys (as SDPA is called then), everything for one query.
    """
    n_queries, n_keys = query.shape[2], key.shape[2]
    batch, heads, head_size = query.shape[0], query.shape[1], query.shape[3]
    kv_heads, n_rows = key.shape[1], rows.shape[1]
    taken = query.gather(2, rows[:, None, :, None].expand(-1, heads, -1, head_size)).float()
    # heads of one group are stacked as more rows of the same keys: keys are not repeated
    taken = taken.reshape(batch, kv_heads, heads // kv_heads * n_rows, head_size)
    scores = (taken @ key.float().transpose(2, 3)) * scaling
    scores = scores.view(batch, heads, n_rows, n_keys)
    lowest = torch.finfo(scores.dtype).min
    if mask is not None:
        seen = mask.expand(batch, -1, -1, -1)
        seen = seen.gather(2, rows[:, None, :, None].expand(-1, seen.shape[1], -1, seen.shape[3]))
        # a query of padding may see nothing: a finite floor gives it some row instead of NaN
        if seen.dtype == torch.bool:
            scores = scores.masked_fill(~seen, lowest)
        else:
            scores = (scores + seen.float()).clamp_min(lowest)
    elif n_queries > 1:
        later = torch.arange(n_keys, device=rows.device)[None, None, None, :] > rows[:, None, :, None]
        scores = scores.masked_fill(later, lowest)
    return scores.softmax(dim=-1)


def row_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    row_reader: RowReader | None = None,
    last_layer: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface: SDPA, and the reader's rows beside it; LastLayerReached at `last_layer`."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if kwargs.get("s_aux") is not None or kwargs.get("softcap") is not None:
        raise ModelError(
            f"{type(module).__name__} has attention sinks or capped scores, whose rows are not read: "
            "use a model with plain softmax attention"
        )
    if row_reader is not None and module.layer_idx in row_reader.wanted:
        scaling = kwargs.get("scaling")
        row_reader.add(
            module.layer_idx,
            query,
            key,
            attention_mask,
            query.shape[-1] ** -0.5 if scaling is None else scaling,
        )
    if module.layer_idx == last_layer:
        raise LastLayerReached
    if _few_rows_of_groups(query, key, attention_mask) and kwargs.get("position_bias") is None:
        return _grouped_sdpa(query, key, value, attention_mask, kwargs), None
    output: torch.Tensor = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)[0]
    return output, None


def _few_rows_of_groups(query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None) -> bool:
    """Are these packed questions after a cached video, in a model with grouped heads?"""
    shared = mask is not None and mask.shape[1] == 1
    return shared and query.shape[1] > key.shape[1] and 4 * query.shape[2] <= key.shape[2]


def _grouped_sdpa(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, options: dict[str, Any]
) -> torch.Tensor:
    """(B, Q, H, d) of SDPA under a mask that all heads share: heads of one group are more rows of the same keys.

    transformers repeats keys and values for every head of a group as soon as there is a mask. Repeating the mask is
    cheaper where the rows are few.
    """
    batch, heads, n_queries, size = query.shape
    group = heads // key.shape[1]
    rows = query.reshape(batch, key.shape[1], group * n_queries, size)
    out = torch.nn.functional.scaled_dot_product_attention(
        rows,
        key,
        value,
        attn_mask=mask.repeat(1, 1, group, 1),
        dropout_p=options.get("dropout", 0.0),
        scale=options.get("scaling"),
    )
    return out.reshape(batch, heads, n_queries, -1).transpose(1, 2).contiguous()


def use_row_attention(language_model: Any) -> None:
    """Register `row_attention` and make this language model (not a vision tower) use it, masks as for SDPA.

    Raises ModelError for models that do not call transformers' attention interface.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    # an unknown name would get no mask at all: padding would be read silently
    AttentionInterface.register(ROW_ATTENTION, row_attention)
    AttentionMaskInterface.register(ROW_ATTENTION, sdpa_mask)
    name = type(language_model).__name__
    if not getattr(language_model, "_supports_attention_backend", False):
        raise ModelError(f"{name} does not use transformers' attention interface: its rows cannot be read")
    language_model.set_attn_implementation(ROW_ATTENTION)
    if language_model.config._attn_implementation != ROW_ATTENTION:
        raise ModelError(
            f"{name} does not accept an attention implementation from outside: rows cannot be read"
        )


def row_weights(
    n_layers: int,
    n_heads: int,
    layers: Sequence[int] | None = None,
    layer_weights: Sequence[float] | None = None,
    head_weights: Sequence[Any] | None = None,
) -> torch.Tensor:
    """(L, H) weights of a `RowReader`: mean over the chosen layers and over heads, unless weights are given.

    layers: may be negative (from the end); None: all. layer_weights: one per chosen layer, as given.
    head_weights: (H,) or (chosen layers, H), as given.
    """
    chosen = list(range(n_layers)) if layers is None else [_layer(at, n_layers) for at in layers]
    if not chosen or len(set(chosen)) != len(chosen):
        raise ModelError(f"layers to read are distinct and at least one, got {list(layers or [])}")
    by_layer = torch.full((len(chosen),), 1 / len(chosen))
    if layer_weights is not None:
        by_layer = torch.tensor(layer_weights, dtype=torch.float32)
    by_head = torch.full((n_heads,), 1 / n_heads)
    if head_weights is not None:
        by_head = torch.tensor(head_weights, dtype=torch.float32)
    if by_layer.shape != (len(chosen),) or by_head.shape not in ((n_heads,), (len(chosen), n_heads)):
        raise ModelError(
            f"weights must be ({len(chosen)},) for layers and ({n_heads},) or ({len(chosen)}, {n_heads}) for heads, "
            f"got {tuple(by_layer.shape)} and {tuple(by_head.shape)}"
        )
    weights = torch.zeros(n_layers, n_heads)
    weights[chosen] = by_layer[:, None] * by_head
    return weights


def _layer(at: int, n_layers: int) -> int:
    if not -n_layers <= at < n_layers:
        raise ModelError(f"there is no layer {at}: the model has {n_layers}, 0 to {n_layers - 1}")
    return at % n_layers


def _batched(index: torch.Tensor, batch: int) -> torch.Tensor:
    return index if index.ndim == 2 else index.expand(batch, -1)
