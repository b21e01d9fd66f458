"""What moved: every visual token reads the frame before and the frame after (our addition).

The LLM is causal and its visual tokens lie in one long row, so "the same thing, one frame earlier" has to be
learnt as a distance in that row; a small model needs very many videos for it. Here a token compares itself with
all tokens of its two neighbouring frames, by what they look like and by how far away they are, and takes the
difference: once per video, before any question is known.

Shapes: B videos, T frames, K visual tokens on a square grid, width C.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from tubelet.errors import ModelError


class MotionLayer(nn.Module):  # type: ignore[misc]
    """x + what changed since the frame before + what will change until the frame after."""

    def __init__(self, width: int, heads: int, side: int) -> None:
        super().__init__()
        self.heads, self.side = heads, side
        self.norm = nn.LayerNorm(width)
        self.match = nn.Linear(
            width, width
        )  # one projection for both frames: what is alike matches from the start
        self.value = nn.Linear(width, width)
        self.sharpness = nn.Parameter(torch.full((heads,), 10.0))
        far = torch.arange(2 * side - 1) - (side - 1)
        near = -(far.abs()[:, None] + far.abs()[None, :]).float() / 2
        self.distance_bias = nn.Parameter(near.expand(2, heads, -1, -1).clone())  # before, after
        self.out = nn.Linear(2 * width, width)
        self.feed_norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def start_silent(self) -> None:
        """Change nothing at first: a trained model gets the layer without forgetting what it knows."""
        for last in (self.out, self.down):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, x: torch.Tensor, frame_mask: torch.Tensor) -> torch.Tensor:
        """x (B, T, K, C), frame_mask (B, T) -> (B, T, K, C)."""
        n_videos, n_frames, n_tokens, width = x.shape
        if n_tokens != self.side**2:
            raise ModelError(
                f"these motion layers were made for {self.side} x {self.side} visual tokens a frame, "
                f"got {n_tokens}"
            )
        normed = self.norm(x)
        match = F.normalize(self._split(self.match(normed)), dim=-1)  # (B, T, H, K, C / H)
        value = self._split(self.value(normed))
        changes = []
        for way, step in ((0, 1), (1, -1)):
            other_match, other_value = match.roll(step, dims=1), value.roll(step, dims=1)
            scores = self.sharpness[:, None, None] * (match @ other_match.transpose(-1, -2))
            weights = (scores + self._bias(way)).softmax(-1)
            seen = weights @ other_value - value
            seen = seen.masked_fill(~self._has_neighbour(frame_mask, step)[..., None, None, None], 0.0)
            changes.append(seen.transpose(2, 3).reshape(n_videos, n_frames, n_tokens, width))
        x = x + self.out(torch.cat(changes, dim=-1))
        y: torch.Tensor = x + self.down(F.gelu(self.up(self.feed_norm(x))))
        return y

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(2, 3)

    def _bias(self, way: int) -> torch.Tensor:
        """(H, K, K): how much a distance on the grid is preferred."""
        at = torch.arange(self.side**2, device=self.distance_bias.device)
        down = (at[None] // self.side - at[:, None] // self.side) + self.side - 1
        across = (at[None] % self.side - at[:, None] % self.side) + self.side - 1
        return self.distance_bias[way][:, down, across]

    @staticmethod
    def _has_neighbour(frame_mask: torch.Tensor, step: int) -> torch.Tensor:
        """(B, T): the frame before (step 1) or after (step -1) is there."""
        shifted = frame_mask.roll(step, dims=1).clone()
        shifted[:, 0 if step == 1 else -1] = False
        return shifted


def grid_side(n_visual: int) -> int:
    """Side of the square grid of visual tokens."""
    side = math.isqrt(n_visual)
    if side * side != n_visual:
        raise ModelError(f"motion layers need a square grid of visual tokens, got {n_visual} tokens a frame")
    return side
