"""Where a language model looks while it answers, taught: the attention of one layer as a loss (training only, ours).

Large chat models look at what they speak of, and nobody told them to: the zero-shot method lives from that. A model of
two million parameters that starts from noise finds other ways (its words carry what they ask for, so that it need not
look). Here the attention of the answer's words, in the layer behind the middle one, is asked to fall on what they are
about. `pico-base` learns so; no other model does.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.models.qwen2.modeling_qwen2 import apply_rotary_pos_emb

from tubelet.packed import block_mask
from tubelet.spacevllm.loss import SpaceTruth, cell_targets
from tubelet.spacevllm.pack import ANY_FRAME, Packed


def attention_of(
    lm: Any, layer: int, states: torch.Tensor, packed: Packed, row: torch.Tensor, at: torch.Tensor
) -> torch.Tensor:
    """(A, T, K): softmax over all that a token sees, mean over heads, on the visual tokens of its row.

    lm: Qwen2 (or alike) of transformers; states (B, L, D): what enters layer `layer`; row, at (A,): the tokens.
    """
    block = lm.layers[layer]
    attention = block.self_attn
    normed = block.input_layernorm(states)
    heads = (*normed.shape[:-1], -1, attention.head_dim)
    query = attention.q_proj(normed).view(heads).transpose(1, 2)
    key = attention.k_proj(normed).view(heads).transpose(1, 2)
    cos, sin = lm.rotary_emb(normed, packed.position)
    query, key = apply_rotary_pos_emb(query, key, cos, sin)
    key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    sees = block_mask(packed.segment)[row, 0, at]  # (A, L)
    scores = torch.einsum("ahd,ahld->ahl", query[row, :, at], key[row]) * attention.scaling
    found = scores.float().masked_fill(~sees[:, None], -torch.inf).softmax(-1).mean(1)
    return found.gather(1, packed.visual_at[row].flatten(1)).view(-1, *packed.visual_at.shape[1:])


def looking_loss(
    attention: torch.Tensor, truth: SpaceTruth, question: torch.Tensor, frame: torch.Tensor
) -> torch.Tensor:
    """Minus log of the attention that falls where it should: attention (A, T, K) of words of questions (A,).

    frame (A,): the frame whose time a word tells, all of which counts; or ANY_FRAME: what the question is about counts,
    wherever it is seen (words of questions about nothing in particular count nothing).
    """
    if not len(question):
        return attention.sum() * 0.0
    at = torch.arange(attention.shape[1], device=frame.device)
    shares = (at == frame[:, None])[..., None].to(attention.dtype).expand_as(attention)
    if truth.about is not None:
        row, seen = (truth.about[question] & (frame == ANY_FRAME)[:, None]).nonzero(as_tuple=True)
        cells = cell_targets(truth.boxes_cxcywh[question[row], seen], attention.shape[-1])
        shares = shares.index_put((row, seen), cells.to(shares.dtype))
    known = shares.flatten(1).any(-1)
    if not known.any():
        return attention.sum() * 0.0
    return -(attention[known] * shares[known]).sum((-2, -1)).clamp_min(1e-6).log().mean()
