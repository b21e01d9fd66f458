"""Soft-label cross-entropy: a coordinate's label is spread over its two neighbouring anchors (paper, section 3.2).

A label is two words and a weight, (1 - w) on `low` and w on `high`; an ordinary word is both, with w = 0. So targets
take O(labels) memory, and only supervised positions get logits. The value equals that of dense (L, V + 300) targets:

    -sum_k target_k log softmax(z)_k = logsumexp(z) - (1 - w) z[low] - w z[high]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from tubelet.errors import DataError
from tubelet.llava_st.coordinates import AXES, Variables
from tubelet.llava_st.lape import bins_of
from tubelet.llava_st.model import values_of
from tubelet.llava_st.words import Words

IGNORE = -100


@dataclass(frozen=True, slots=True)
class SoftLabels:
    """N labels of B samples: the hidden state at (row, at) predicts `low` and `high` with weights 1 - w and w."""

    row: torch.Tensor  # (N,)
    at: torch.Tensor  # (N,)
    low: torch.Tensor  # (N,)
    high: torch.Tensor  # (N,)
    weight: torch.Tensor  # (N,) float32, of `high`
    samples: int  # B


def soft_labels(
    ids: torch.Tensor, labels: torch.Tensor, variables: Sequence[Variables | None], words: Words
) -> SoftLabels:
    """ids, labels (B, L), labels -100 where nothing is supervised; the shift by one happens here.

    The i-th output placeholder of an axis in a row's ids takes the i-th value, supervised or not.
    Raises QueryError when a row has more placeholders than values.
    """
    if ids.shape != labels.shape:
        raise DataError(f"ids and labels have one shape, got {tuple(ids.shape)} and {tuple(labels.shape)}")
    low, high = labels.clone(), labels.clone()
    weight = torch.zeros(labels.shape, dtype=torch.float32, device=labels.device)
    for axis, name in enumerate(AXES):
        where = ids == words.output_placeholder(axis)
        values = values_of(where, variables, name, "OUTPUT").to(labels.device)
        if len(values):
            first = words.vocabulary + axis * words.bins
            lower, upper, ratio = bins_of(values, words.bins)
            low[where], high[where], weight[where] = first + lower, first + upper, ratio.float()
    row, at = (labels[:, 1:] != IGNORE).nonzero(as_tuple=True)
    return SoftLabels(row, at, low[row, at + 1], high[row, at + 1], weight[row, at + 1], len(ids))


def soft_label_loss(
    hidden: torch.Tensor, head: torch.Tensor, labels: SoftLabels, reduction: str = "mean", chunk: int = 0
) -> torch.Tensor:
    """Scalar loss of last hidden states (B, L, C) under a head (V + 300, C); 0 without labels.

    reduction: every sample counts as the mean over its labels; "mean" takes the mean over samples that have labels,
        "official_sum" their sum, which is what the published code minimises.
    chunk: labels per pass (0: all at once); with it logits are recomputed in the backward pass, so that memory is
        O(chunk * V) however long the answers are.
    """
    if reduction not in ("mean", "official_sum"):
        raise DataError(f"reduction is mean or official_sum, got {reduction!r}")
    states = hidden[labels.row, labels.at]
    each = _each(states, head, labels.low, labels.high, labels.weight, chunk)
    zeros = torch.zeros(labels.samples, dtype=each.dtype, device=each.device)
    count = zeros.index_add(0, labels.row, torch.ones_like(each))
    per_sample = zeros.index_add(0, labels.row, each) / count.clamp_min(1)
    total = per_sample.sum()
    return total if reduction == "official_sum" else total / (count > 0).sum().clamp_min(1)


def _each(
    states: torch.Tensor,
    head: torch.Tensor,
    low: torch.Tensor,
    high: torch.Tensor,
    weight: torch.Tensor,
    chunk: int,
) -> torch.Tensor:
    """(N,) loss of every label, float32."""
    if not chunk or len(states) <= chunk:
        return _cross_entropy(states, head, low, high, weight)
    pieces = zip(*(t.split(chunk) for t in (states, low, high, weight)), strict=True)
    return torch.cat(
        [checkpoint(_cross_entropy, s, head, lo, hi, w, use_reentrant=False) for s, lo, hi, w in pieces]
    )


def _cross_entropy(
    states: torch.Tensor, head: torch.Tensor, low: torch.Tensor, high: torch.Tensor, weight: torch.Tensor
) -> torch.Tensor:
    logits = F.linear(states, head).float()
    picked = logits.gather(1, torch.stack([low, high], dim=1))
    return logits.logsumexp(1) - torch.lerp(picked[:, 0], picked[:, 1], weight)
