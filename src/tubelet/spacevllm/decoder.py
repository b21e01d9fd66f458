"""The query-guided space decoder: all boxes of all frames in one parallel pass (paper, section 3.3).

Inputs are last-layer states of the LLM: query tokens (B, T, D) and visual tokens (B, T, K, D) of B videos of T
frames of K visual tokens, and text tokens (Q, S, D) of Q questions about them.

    look: visual tokens in the decoder's width, with what moved (our addition); once per video
    cross-attention 1: visual tokens read the text           -> text-aware visual tokens
    cross-attention 2: a frame's query reads visual tokens   -> one vector per frame
    heads: box (cx, cy, w, h) through a sigmoid; and, our additions, activity, presence and box quality.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from tubelet.errors import ModelError
from tubelet.motion import MotionLayer, grid_side
from tubelet.spacevllm.config import DecoderConfig


@dataclass(frozen=True, slots=True)
class DecoderOutput:
    """Per question and frame; logits where the name says so."""

    boxes_cxcywh: torch.Tensor  # (Q, T, 4) in [0, 1]
    activity_logits: torch.Tensor  # (Q, T): is it going on at this frame?
    presence_logits: torch.Tensor  # (Q,): is it in the video at all?
    quality_logits: torch.Tensor  # (Q, T): expected IoU of the box
    cell_logits: torch.Tensor | None = None  # (Q, T, K): is the target in this visual token's cell?

    @property
    def boxes_xyxy(self) -> torch.Tensor:
        return cxcywh_to_xyxy(self.boxes_cxcywh)


def cxcywh_to_xyxy(boxes: torch.Tensor) -> torch.Tensor:
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([centre - half, centre + half], dim=-1)


class CrossAttention(nn.Module):  # type: ignore[misc]
    """Multi-head attention with a residual: x reads context. (N, Lx, C), (N, Lc, C) -> (N, Lx, C)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, width)
        self.to_kv = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(
        self, x: torch.Tensor, context: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        n, length, width = x.shape
        q = self.to_q(self.norm(x)).view(n, length, self.heads, -1).transpose(1, 2)
        k, v = self.to_kv(context).view(n, context.shape[1], 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return x + self.out(attended.transpose(1, 2).reshape(n, length, width))


class FeedForward(nn.Module):  # type: ignore[misc]
    def __init__(self, width: int, factor: int = 2) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, factor * width)
        self.down = nn.Linear(factor * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = x + self.down(F.gelu(self.up(self.norm(x))))
        return y


class CellMatch(nn.Module):  # type: ignore[misc]
    """Does a visual token hold what the question's last word means? (N, L, C), (N, C) -> (N, L) logits."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.visual = nn.Linear(width, width)
        self.text = nn.Linear(width, width)
        self.bias = nn.Parameter(torch.tensor(-2.0))  # most cells are empty

    def forward(self, visual: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        match = torch.einsum("nlc,nc->nl", self.visual(visual), self.text(text)) / math.sqrt(visual.shape[-1])
        return match + self.bias


class DecoderLayer(nn.Module):  # type: ignore[misc]
    def __init__(self, width: int, heads: int, cells: bool) -> None:
        super().__init__()
        self.cells = CellMatch(width) if cells else None
        self.visual_reads_text = CrossAttention(width, heads)
        self.visual_feed_forward = FeedForward(width)
        self.context_norm = nn.LayerNorm(width)
        self.query_reads_visual = CrossAttention(width, heads)
        self.feed_forward = FeedForward(width)


class TemporalLayer(nn.Module):  # type: ignore[misc]
    """Self-attention over the T per-frame vectors of one question, both ways in time (our addition)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = CrossAttention(width, heads)
        self.context_norm = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.feed_forward(self.attention(x, self.context_norm(x), mask))
        return y


class SpaceDecoder(nn.Module):  # type: ignore[misc]
    """See the module's text. `hidden_size` is the LLM's D."""

    def __init__(self, hidden_size: int, config: DecoderConfig, n_visual: int = 0) -> None:
        """n_visual: K, needed by motion layers only."""
        super().__init__()
        self.config = config
        projected = config.attention == "projected"
        width = config.width if projected else hidden_size
        self.width = width
        if config.temporal_layers and width % config.heads:
            raise ModelError(
                f"decoder.temporal_layers need a width that decoder.heads ({config.heads}) divides; "
                f"a parameter_free decoder has the language model's width, here {width}"
            )
        if projected:
            self.query_in = nn.Linear(hidden_size, width)
            self.visual_in = nn.Linear(hidden_size, width)
            self.text_in = nn.Linear(hidden_size, width)
            self.layers = nn.ModuleList(
                DecoderLayer(width, config.heads, config.cells) for _ in range(config.layers)
            )
        if config.motion_layers:
            side = grid_side(n_visual)
            self.motion = nn.ModuleList(
                MotionLayer(width, config.heads, side) for _ in range(config.motion_layers)
            )
        self.temporal = nn.ModuleList(
            TemporalLayer(width, config.heads) for _ in range(config.temporal_layers)
        )
        self.frame_norm = nn.LayerNorm(width)
        self.box_head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 4))
        self.activity_head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 2))
        self.presence_head = nn.Sequential(nn.Linear(2 * width, width), nn.GELU(), nn.Linear(width, 1))

    def look(self, visual: torch.Tensor, frame_mask: torch.Tensor) -> torch.Tensor:
        """Visual tokens (B, T, K, D) as the decoder reads them, (B, T, K, C); does not depend on questions."""
        if self.config.attention != "projected":
            return visual
        v: torch.Tensor = self.visual_in(visual)
        if self.config.grid_position:
            v = v + grid_sinusoid(v.shape[2], self.width, v.device).to(v.dtype)
        if self.config.motion_layers:
            for layer in self.motion:
                v = layer(v, frame_mask)
        return v

    def forward(
        self,
        query: torch.Tensor,
        looked: torch.Tensor,
        text: torch.Tensor,
        frame_mask: torch.Tensor,
        text_mask: torch.Tensor,
        row: torch.Tensor | None = None,
    ) -> DecoderOutput:
        """query (B, T, D), looked (B, T, K, C) from `look`, frame_mask (B, T); text (Q, S, D), text_mask (Q, S);
        row (Q,): which video each question is about (None: one question per video). Masks: True is real.
        """
        if self.config.attention == "projected":
            query = self.query_in(query)  # before it is repeated for every question
        if row is not None:
            query, looked, frame_mask = query[row], looked[row], frame_mask[row]
        cells = None
        if self.config.attention == "projected":
            frames, cells = self._projected(query, looked, text, frame_mask, text_mask)
        else:
            frames = self._parameter_free(query, looked, text, frame_mask, text_mask)
        n_frames = frames.shape[1]
        if len(self.temporal):
            position = sinusoid(torch.arange(n_frames, device=frames.device), self.width).to(frames.dtype)
            frames = frames + position
            over_time = frame_mask[:, None, None, :]
            for layer in self.temporal:
                frames = layer(frames, over_time)
        frames = self.frame_norm(frames)
        activity, quality = self.activity_head(frames).unbind(-1)
        masked = frames.masked_fill(~frame_mask[..., None], -torch.inf)
        pooled = torch.cat([masked.amax(1), _mean(frames, frame_mask)], dim=-1)
        return DecoderOutput(
            boxes_cxcywh=self.box_head(frames).float().sigmoid(),
            activity_logits=activity.float(),
            presence_logits=self.presence_head(pooled)[:, 0].float(),
            quality_logits=quality.float(),
            cell_logits=None if cells is None else cells.float(),
        )

    def _projected(
        self,
        x: torch.Tensor,
        v: torch.Tensor,
        text: torch.Tensor,
        frame_mask: torch.Tensor,
        text_mask: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        n, n_frames, n_visual, _ = v.shape
        cells = None
        t = self.text_in(text)
        v = v.reshape(n, n_frames * n_visual, self.width)
        read_text = text_mask[:, None, None, :]
        last_word = t[torch.arange(n, device=t.device), text_mask.sum(1) - 1]
        for layer in self.layers:
            v = layer.visual_feed_forward(layer.visual_reads_text(v, t, read_text))
            keys = layer.context_norm(v)
            bias = None
            if (
                layer.cells is not None
            ):  # a text-aware token says whether it holds the target; queries look there
                cells = layer.cells(keys, last_word).view(n, n_frames, n_visual)
                bias = cells.to(x.dtype)
            if self.config.keys == "own_frame":
                keys = keys.view(n * n_frames, n_visual, self.width)
                if bias is not None:
                    bias = bias.view(n * n_frames, 1, 1, n_visual)
                x = layer.query_reads_visual(x.reshape(n * n_frames, 1, self.width), keys, bias)
                x = x.view(n, n_frames, -1)
            else:
                seen = frame_mask.repeat_interleave(n_visual, dim=1)[:, None, None, :]
                if bias is not None:
                    seen = bias.view(n, 1, 1, -1).masked_fill(~seen, -torch.inf)
                x = layer.query_reads_visual(x, keys, seen)
            x = layer.feed_forward(x)
        return x, cells

    def _parameter_free(
        self,
        query: torch.Tensor,
        visual: torch.Tensor,
        text: torch.Tensor,
        frame_mask: torch.Tensor,
        text_mask: torch.Tensor,
    ) -> torch.Tensor:
        """Plain scaled dot-product attention; states are normalised first (no parameters), for scale."""
        n, n_frames, n_visual, size = visual.shape
        x, v, t = (F.layer_norm(s, (size,)) for s in (query, visual, text))
        if self.config.grid_position:
            v = v + grid_sinusoid(n_visual, size, v.device).to(v.dtype)
        v = v.reshape(n, n_frames * n_visual, size)
        v = v + F.scaled_dot_product_attention(v, t, t, attn_mask=text_mask[:, None, :])
        if self.config.keys == "own_frame":
            keys = v.view(n * n_frames, n_visual, size)
            read = F.scaled_dot_product_attention(x.reshape(n * n_frames, 1, size), keys, keys)
            return x + read.view(n, n_frames, size)
        seen = frame_mask.repeat_interleave(n_visual, dim=1)[:, None, :]
        return x + F.scaled_dot_product_attention(x, v, v, attn_mask=seen)


def _mean(frames: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    weight = mask[..., None].to(frames.dtype)
    return (frames * weight).sum(1) / weight.sum(1).clamp_min(1)


def sinusoid(position: torch.Tensor, width: int) -> torch.Tensor:
    """Sine and cosine code of positions: (...,) -> (..., width)."""
    rate = torch.exp(torch.arange(0, width, 2, device=position.device) * (-math.log(1000.0) / width))
    turn = position.float()[..., None] * rate
    return torch.cat([turn.sin(), turn.cos()], dim=-1)[..., :width]


def grid_sinusoid(n_visual: int, width: int, device: torch.device) -> torch.Tensor:
    """(K, width) code of row and column of a square grid of K visual tokens."""
    side = math.isqrt(n_visual)
    at = torch.arange(n_visual, device=device)
    return torch.cat([sinusoid(at // side, width // 2), sinusoid(at % side, width - width // 2)], dim=-1)
