"""Language-aligned positional embedding: the coordinate tables and what is done with them (paper, section 3.2).

Six tables (bins, C): an input and an output one for time, height and width. They are the last 3 * bins rows of the
language model's embedding matrix and of its head, so a stock model reads and writes coordinates by itself. Here:

- `propagate`: neighbour propagation, W + M W - stopgrad(M W) with M[i, j] = 2^-|i-j|. Its value is W; only the
  gradient of a table changes, to (I + M)^T g. So it is an identity with that gradient, and costs nothing at inference.
- `blend`: an exact value as a row, (1 - r) E[low] + r E[high].
- `add_to_grid`: (input + output) / 2 of each axis, added to the visual features before the packer.

Nothing here knows tokens, prompts or models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from tubelet.errors import DataError, ModelError


def neighbour_matrix(bins: int, like: torch.Tensor) -> torch.Tensor:
    """M (bins, bins) = 2^-|i-j| in the dtype and on the device of `like`."""
    at = torch.arange(bins, device=like.device)
    return torch.exp2(-(at[:, None] - at[None, :]).abs().float()).to(like.dtype)


def reparameterise(table: torch.Tensor) -> torch.Tensor:
    """The published three operations, (W + M W) - stopgrad(M W), with their rounding in half precision.

    For comparisons only: the library uses `propagate`, which has the same gradient and returns W itself.
    """
    spread = neighbour_matrix(len(table), table) @ table
    return table + spread - spread.detach()


class _Propagate(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, matrix: torch.Tensor, first: int, bins: int) -> torch.Tensor:
        ctx.first, ctx.bins = first, bins
        return matrix.view_as(matrix)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        grad = grad.clone()  # autograd may still hold the one that came in
        for table in grad[ctx.first :].split(ctx.bins):
            table += neighbour_matrix(ctx.bins, table) @ table  # M is symmetric
        return grad, None, None


def propagate(matrix: torch.Tensor, first: int, bins: int) -> torch.Tensor:
    """A matrix whose rows from `first` on are tables of `bins` rows: the same values, propagated gradients."""
    if not (torch.is_grad_enabled() and matrix.requires_grad):
        return matrix
    result: torch.Tensor = _Propagate.apply(matrix, first, bins)
    return result


def bins_of(values: torch.Tensor, bins: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Fractions (N,) -> lower bin (N,), upper bin (N,), weight of the upper (N,) in float64; clipped to [0, 1]."""
    if not torch.isfinite(values).all():
        raise DataError("a coordinate is a finite number, got NaN or infinity")
    at = values.double().clamp(0.0, 1.0) * (bins - 1)
    low = at.floor()
    return low.long(), at.ceil().long(), at - low


def blend(table: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Rows for exact values: table (bins, C), fractions (N,) -> (N, C)."""
    low, high, weight = bins_of(values, len(table))
    ratio = weight.to(table.dtype)[:, None]
    return (1 - ratio) * table[low] + ratio * table[high]


def resize(table: torch.Tensor, cells: int) -> torch.Tensor:
    """(bins, C) -> (cells, C): linear between bin centres, cell i at (i + 0.5) * bins / cells - 0.5."""
    if cells == len(table):
        return table
    return F.interpolate(table.T[None], size=cells, mode="linear", align_corners=False)[0].T


@dataclass(frozen=True, slots=True)
class GridOffsets:
    """What is added to the visual features: time (T, C) per frame, height (H, C) per row, width (W, C) per column."""

    time: torch.Tensor
    height: torch.Tensor
    width: torch.Tensor

    def frames(self, start: int, stop: int) -> GridOffsets:
        """The offsets of some of the frames."""
        return GridOffsets(self.time[start:stop], self.height, self.width)


def grid_offsets(
    inputs: torch.Tensor,
    outputs: torch.Tensor,
    size: tuple[int, int, int],
    positions: torch.Tensor | None = None,
) -> GridOffsets:
    """(input + output) / 2 of each axis, brought to a grid.

    inputs, outputs: (3 * bins, C) the input and output tables of time, height, width. size: frames, rows, columns.
    positions: (T,) frame times as fractions; None: uniform, frame i of T at i / (T - 1), a single one at 0. With as
    many uniform frames as bins every frame gets exactly its own row of the time table, as published.
    """
    bins = len(inputs) // 3
    time, height, width = ((inputs + outputs) / 2).split(bins)
    if positions is not None:
        if positions.shape != (size[0],):
            raise ModelError(f"one position per frame: {size[0]} frames, positions {tuple(positions.shape)}")
        time = blend(time, positions)
    elif size[0] != bins:
        time = blend(time, torch.linspace(0.0, 1.0, size[0], dtype=torch.float64, device=time.device))
    return GridOffsets(time, resize(height, size[1]), resize(width, size[2]))


def add_to_grid(features: torch.Tensor, offsets: GridOffsets) -> torch.Tensor:
    """Visual features (T, H, W, C) plus the embeddings of each token's row, column and frame."""
    return features + offsets.height[:, None] + offsets.width + offsets.time[:, None, None]
