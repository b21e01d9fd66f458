"""Dense labels: what stands in every visual token's cell, and what it is doing (our addition, training only).

A full-size SpaceVLLM starts from a vision tower that has seen billions of pictures. A pico model starts from
noise, and sentences alone teach it slowly: one question says something about one thing. The toy world knows
everything about everything, so two linear heads read it off each visual token:

    seen:   from the projected vision features: is something here, its box, its attributes (colour, shape, ...),
            how it is turned
    doing:  from a middle and the last layer of the LLM, which have read the frames before: which action goes on
            here, and how its box has changed since the frame before

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
from tubelet.training.samples import POSE, Things

MIN_SHARE = 0.2
CHANGE_SCALE = 10.0  # boxes change by about a tenth of the picture from frame to frame


@dataclass(frozen=True, slots=True)
class DenseTruth:
    """Of N frames and K cells: has (N, K); boxes_cxcywh (N, K, 4); attributes (N, K, A); pose (N, K, POSE);
    doing (N, K); change (N, K, 4) of the box since the frame before, where has_change (N, K).
    """

    has: torch.Tensor
    boxes_cxcywh: torch.Tensor
    attributes: torch.Tensor
    pose: torch.Tensor
    doing: torch.Tensor
    change: torch.Tensor
    has_change: torch.Tensor

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
        has = share.max(axis=0) > MIN_SHARE
        before = np.maximum(frame - 1, 0)
        parts.append(
            (
                has,
                boxes[owner, frame].astype(np.float32),
                thing.attributes[owner],
                thing.pose[owner, frame].astype(np.float32),
                thing.doing[owner, frame],
                (boxes[owner, frame] - boxes[owner, before]).astype(np.float32),
                has & (frame > 0) & thing.visible[owner, before],
            )
        )
    return DenseTruth(*(torch.from_numpy(np.concatenate(rows)) for rows in zip(*parts, strict=True)))


class SeenHead(nn.Module):  # type: ignore[misc]
    """(..., D) -> (..., 1 + 4 + POSE + sum of attribute sizes): presence, box, pose, attribute logits."""

    def __init__(self, size: int, attributes: Sequence[int]) -> None:
        super().__init__()
        self.sizes = tuple(attributes)
        self.norm = nn.LayerNorm(size)
        self.out = nn.Linear(size, 5 + POSE + sum(attributes))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.out(self.norm(features))
        return y


class DoingHead(nn.Module):  # type: ignore[misc]
    """(..., D) -> (..., 4 + actions): change of the box, action logits; class 0 is "nothing"."""

    def __init__(self, size: int, actions: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(size)
        self.out = nn.Linear(size, 4 + actions)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.out(self.norm(states))
        return y


def seen_loss(logits: torch.Tensor, sizes: Sequence[int], truth: DenseTruth) -> torch.Tensor:
    """Presence in every cell; box, pose and attributes where something is."""
    logits = logits.float()
    presence = F.binary_cross_entropy_with_logits(logits[..., 0], truth.has.float())
    here = logits[truth.has]
    if not len(here):
        return presence
    boxes, true_boxes = here[:, 1:5].sigmoid(), truth.boxes_cxcywh[truth.has]
    overlap = giou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(true_boxes))
    total = presence + 5 * (boxes - true_boxes).abs().sum(-1).mean() + (1 - overlap).mean()
    total = total + (here[:, 5 : 5 + POSE] - truth.pose[truth.has]).square().sum(-1).mean()
    at = 5 + POSE
    for k, size in enumerate(sizes):
        total = total + F.cross_entropy(here[:, at : at + size], truth.attributes[truth.has][:, k])
        at += size
    return total


def doing_loss(logits: torch.Tensor, truth: DenseTruth) -> torch.Tensor:
    """Cross-entropy of the action and L1 of the box's change, in cells that hold something.

    logits: (..., N, K, 4 + actions), the mean over what stands before N.
    """
    here = logits[..., truth.has, 4:].float()
    if not here.numel():
        return logits.sum() * 0.0
    action = F.cross_entropy(here.flatten(0, -2), truth.doing[truth.has].expand(here.shape[:-1]).reshape(-1))
    if not truth.has_change.any():
        return action
    moved = logits[..., truth.has_change, :4].float() - CHANGE_SCALE * truth.change[truth.has_change]
    return action + moved.abs().sum(-1).mean()
