"""Dense labels: what stands in every visual token's cell, and what it is doing (our addition, training only).

A full-size SpaceVLLM starts from a vision tower that has seen billions of pictures. A pico model starts from
noise, and sentences alone teach it slowly: one question says something about one thing. The toy world knows
everything about everything, so two linear heads read it off each visual token:

    seen:   from the projected vision features: is something here, its box, its attributes (colour, shape, ...)
    doing:  from a middle layer of the LLM, which has read the frames before: which action goes on here

They are trained beside the questions and not used afterwards. Cells are the K tokens of a frame; a thing is in
a cell that it covers by MIN_SHARE (of the cell or of itself, the smaller), the one that covers most wins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import nn

from tubelet.spacevllm.decoder import cxcywh_to_xyxy
from tubelet.spacevllm.loss import cell_targets, giou
from tubelet.training.samples import Things

MIN_SHARE = 0.2


@dataclass(frozen=True, slots=True)
class DenseTruth:
    """Of N frames and K cells: has (N, K); boxes_cxcywh (N, K, 4); attributes (N, K, A); doing (N, K)."""

    has: torch.Tensor
    boxes_cxcywh: torch.Tensor
    attributes: torch.Tensor
    doing: torch.Tensor

    def to(self, device: torch.device | str) -> DenseTruth:
        return DenseTruth(*(getattr(self, name).to(device) for name in self.__slots__))


def dense_truth(things: Sequence[Things], n_cells: int) -> DenseTruth:
    """Labels of all frames of all samples, row after row (as a batch's pixels are)."""
    parts: list[tuple[npt.NDArray[np.generic], ...]] = []
    for thing in things:
        n_things, n_frames = thing.visible.shape
        boxes = np.concatenate(
            [
                (thing.boxes_xyxy[..., :2] + thing.boxes_xyxy[..., 2:]) / 2,
                thing.boxes_xyxy[..., 2:] - thing.boxes_xyxy[..., :2],
            ],
            axis=-1,
        )
        share = cell_targets(torch.from_numpy(boxes).reshape(-1, 4), n_cells).numpy()
        share = share.reshape(n_things, n_frames, n_cells) * thing.visible[..., None]
        owner = share.argmax(axis=0)  # (T, K)
        frame = np.arange(n_frames)[:, None]
        parts.append(
            (
                share.max(axis=0) > MIN_SHARE,
                boxes[owner, frame],
                thing.attributes[owner],
                thing.doing[owner, frame],
            )
        )
    has, boxes_cxcywh, attributes, doing = (np.concatenate(rows) for rows in zip(*parts, strict=True))
    return DenseTruth(
        torch.from_numpy(has),
        torch.from_numpy(boxes_cxcywh).float(),
        torch.from_numpy(attributes).long(),
        torch.from_numpy(doing).long(),
    )


class SeenHead(nn.Module):  # type: ignore[misc]
    """(..., D) -> (..., 1 + 4 + sum of attribute sizes): presence, box, attribute logits."""

    def __init__(self, size: int, attributes: Sequence[int]) -> None:
        super().__init__()
        self.sizes = tuple(attributes)
        self.norm = nn.LayerNorm(size)
        self.out = nn.Linear(size, 5 + sum(attributes))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.out(self.norm(features))
        return y


class DoingHead(nn.Module):  # type: ignore[misc]
    """(..., D) -> (..., actions) logits; class 0 is "nothing"."""

    def __init__(self, size: int, actions: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(size)
        self.out = nn.Linear(size, actions)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.out(self.norm(states))
        return y


def seen_loss(logits: torch.Tensor, sizes: Sequence[int], truth: DenseTruth) -> torch.Tensor:
    """Presence in every cell; box and attributes where something is."""
    logits = logits.float()
    presence = F.binary_cross_entropy_with_logits(logits[..., 0], truth.has.float())
    here = logits[truth.has]
    if not len(here):
        return presence
    boxes, true_boxes = here[:, 1:5].sigmoid(), truth.boxes_cxcywh[truth.has]
    overlap = giou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(true_boxes))
    total = presence + 5 * (boxes - true_boxes).abs().sum(-1).mean() + (1 - overlap).mean()
    at = 5
    for k, size in enumerate(sizes):
        total = total + F.cross_entropy(here[:, at : at + size], truth.attributes[truth.has][:, k])
        at += size
    return total


def doing_loss(logits: torch.Tensor, truth: DenseTruth) -> torch.Tensor:
    """Cross-entropy of the action in cells that hold something: logits (N, K, actions)."""
    here = logits[truth.has].float()
    return F.cross_entropy(here, truth.doing[truth.has]) if len(here) else logits.sum() * 0.0
