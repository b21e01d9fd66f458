"""The losses of SpaceVLLM (paper, equation 3): text cross-entropy, L1 and GIoU of boxes; and our additions.

    L = text + lambda * (lambda_1 * L1 + lambda_2 * (1 - GIoU)) + activity + presence + quality + middle + dense

Box losses count only frames that have a true box (paper: inside the true span); every frame weighs the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from tubelet.spacevllm.decoder import DecoderOutput, cxcywh_to_xyxy
from tubelet.spacevllm.pack import ANY_FRAME


@dataclass(frozen=True, slots=True)
class LossWeights:
    """Weights of the sum; l1 and giou are DETR's 5 and 2 (the paper names none). 0 switches a term off."""

    text: float = 1.0
    space: float = 1.0
    l1: float = 5.0
    giou: float = 2.0
    activity: float = 1.0
    presence: float = 0.5
    quality: float = 0.2
    middle: float = 0.5
    edges: float = 0.1
    named: float = 0.1
    clock: float = 0.1
    cells: float = 1.0
    seen: float = 0.5
    doing: float = 1.0
    looks: float = 0.0  # of `looking`: attention of the answer's words


def giou(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Generalised IoU of paired xyxy boxes (..., 4) -> (...,), in [-1, 1] (Rezatofighi et al. 2019)."""
    overlap, union = _overlap_and_union(a, b)
    hull = (
        (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).clamp_min(0).prod(-1)
    )
    return overlap / union.clamp_min(1e-9) - (hull - union) / hull.clamp_min(1e-9)


def box_iou(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """IoU of paired xyxy boxes (..., 4) -> (...,)."""
    overlap, union = _overlap_and_union(a, b)
    return overlap / union.clamp_min(1e-9)


def _overlap_and_union(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    shared = (
        (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp_min(0).prod(-1)
    )
    areas = [(box[..., 2:] - box[..., :2]).clamp_min(0).prod(-1) for box in (a, b)]
    return shared, areas[0] + areas[1] - shared


@dataclass(frozen=True, slots=True)
class SpaceTruth:
    """Truth of Q questions over T frames.

    boxes_cxcywh (Q, T, 4), has_box (Q, T); active (Q, T) with timed (Q,): whether activity is to be learnt;
    present (Q,) with judged (Q,): whether presence is; frame_mask (Q, T): real frames. about (Q, T): frames whose box
    is that of the thing a question in words is about (`pointing_loss` only); None: no such question.
    """

    boxes_cxcywh: torch.Tensor
    has_box: torch.Tensor
    active: torch.Tensor
    timed: torch.Tensor
    present: torch.Tensor
    judged: torch.Tensor
    frame_mask: torch.Tensor
    about: torch.Tensor | None = None

    def to(self, device: torch.device | str) -> SpaceTruth:
        parts = {name: getattr(self, name) for name in self.__slots__}
        return SpaceTruth(**{name: None if part is None else part.to(device) for name, part in parts.items()})


def text_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy over answer tokens: logits (N, V) of the positions before them, labels (N,)."""
    if len(labels) == 0:
        return logits.sum() * 0.0
    return F.cross_entropy(logits.float(), labels)


def space_losses(output: DecoderOutput, truth: SpaceTruth) -> dict[str, torch.Tensor]:
    """The terms, each a mean over what it counts (0 where there is nothing to count)."""
    rows = truth.has_box
    predicted, true = output.boxes_cxcywh[rows], truth.boxes_cxcywh[rows]
    count = max(int(rows.sum()), 1)
    predicted_xyxy, true_xyxy = cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(true)
    losses = {
        "l1": (predicted - true).abs().sum(-1).sum() / count,
        "giou": (1 - giou(predicted_xyxy, true_xyxy)).sum() / count,
    }
    iou = box_iou(predicted_xyxy, true_xyxy).detach()
    losses["quality"] = _mean_bce(output.quality_logits[rows], iou)
    counted = truth.frame_mask & truth.timed[:, None]
    losses["activity"] = _mean_bce(output.activity_logits[counted], truth.active[counted].float())
    if output.cell_logits is not None:
        # where the target is absent every cell is empty; where it is present but boxless, nothing is known
        known = rows | ((truth.judged & ~truth.present)[:, None] & truth.frame_mask)
        true_cells = cell_targets(truth.boxes_cxcywh[known], output.cell_logits.shape[-1])
        losses["cells"] = _mean_bce(output.cell_logits[known], true_cells * rows[known][:, None])
    losses["presence"] = _mean_bce(output.presence_logits[truth.judged], truth.present[truth.judged].float())
    return losses


def cell_targets(boxes_cxcywh: torch.Tensor, n_cells: int) -> torch.Tensor:
    """Share of a box in each cell of a square grid, (N, 4) -> (N, K): shared area over the smaller area."""
    side = math.isqrt(n_cells)
    at = torch.arange(n_cells, device=boxes_cxcywh.device)
    corner = torch.stack([at % side, at // side], dim=-1) / side
    cells = torch.cat([corner, corner + 1 / side], dim=-1).to(boxes_cxcywh.dtype)  # (K, 4)
    boxes = cxcywh_to_xyxy(boxes_cxcywh)[:, None]
    shared, _ = _overlap_and_union(boxes, cells[None])
    area = (boxes[..., 2:] - boxes[..., :2]).clamp_min(0).prod(-1).clamp_min(1e-6)
    return (shared / area.clamp_max(1 / n_cells)).clamp(0, 1)


def middle_loss(logits: torch.Tensor, truth: SpaceTruth) -> torch.Tensor:
    """What goes on where, read from a middle layer of the LLM (our addition): logits (Q, T, K), the first kind.

    A cell counts as true where it holds the target, in timed questions only while the event goes on.
    """
    going_on = truth.has_box & (truth.active | ~truth.timed[:, None])
    idle = (truth.timed[:, None] & ~truth.active) | (truth.judged & ~truth.present)[:, None]
    known = (going_on | idle) & truth.frame_mask
    cells = cell_targets(truth.boxes_cxcywh[known], logits.shape[-1])
    return _mean_bce(logits[known], cells * going_on[known][:, None])


def edge_loss(logits: torch.Tensor, truth: SpaceTruth) -> torch.Tensor:
    """Where it begins and ends, read from a middle layer (our addition): logits (Q, 2, T, K).

    Cross-entropy over all cells of all frames against the target's cells in the first and the last frame of the
    span: what an answer token's attention has to find.
    """
    going_on = truth.has_box & truth.active & truth.timed[:, None] & truth.frame_mask
    asked = going_on.any(-1)
    if not asked.any():
        return logits.sum() * 0.0
    going_on, logits = going_on[asked], logits[asked].float()
    n_frames = going_on.shape[1]
    first = going_on.float().argmax(-1)
    last = n_frames - 1 - going_on.flip(-1).float().argmax(-1)
    rows = torch.arange(len(first), device=logits.device)
    scores = logits.masked_fill(~truth.frame_mask[asked][:, None, :, None], -1e4)
    chances = scores.flatten(2).log_softmax(-1).unflatten(-1, logits.shape[2:])
    total = logits.new_zeros(())
    for kind, frame in enumerate((first, last)):
        cells = cell_targets(truth.boxes_cxcywh[asked][rows, frame], logits.shape[-1]).clamp_min(1e-6)
        cells = cells / cells.sum(-1, keepdim=True)
        total = total - (cells * chances[rows, kind, frame]).sum(-1).mean()
    return total / 2


def pointing_loss(
    logits: torch.Tensor, truth: SpaceTruth, question: torch.Tensor, frame: torch.Tensor
) -> torch.Tensor:
    """Which cell of which frame does a word name? (our addition): logits (A, T, K), of questions and frames (A,).

    Cross-entropy over all cells of all frames against those that the target covers in that frame, or, for ANY_FRAME,
    in all frames that show what the question is about; words about a frame in which it has no box count nothing.
    """
    at = torch.arange(truth.has_box.shape[1], device=frame.device)
    frames = (at == frame[:, None]) & truth.has_box[question]  # (A, T): where the word points to
    if truth.about is not None:
        frames = frames | (truth.about[question] & (frame == ANY_FRAME)[:, None])
    known = frames.any(-1)
    if not known.any():
        return logits.sum() * 0.0
    logits, question, frames = logits[known].float(), question[known], frames[known]
    cells = torch.zeros_like(logits)
    row, frame = frames.nonzero(as_tuple=True)
    shares = cell_targets(truth.boxes_cxcywh[question[row], frame], logits.shape[-1])
    cells[row, frame] = shares.clamp_min(1e-6).to(cells.dtype)
    scores = logits.masked_fill(~truth.frame_mask[question][..., None], -1e4)
    chances = scores.flatten(1).log_softmax(-1)
    return -(cells / cells.sum((-2, -1), keepdim=True)).flatten(1).mul(chances).sum(-1).mean()


def _mean_bce(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    if logits.numel() == 0:
        return logits.sum() * 0.0
    return F.binary_cross_entropy_with_logits(logits.float(), targets)


def total_loss(parts: dict[str, torch.Tensor], weights: LossWeights) -> torch.Tensor:
    zero = next(iter(parts.values())) * 0.0
    space = weights.l1 * parts.get("l1", zero) + weights.giou * parts.get("giou", zero)
    return (
        weights.text * parts.get("text", zero)
        + weights.space * space
        + weights.activity * parts.get("activity", zero)
        + weights.presence * parts.get("presence", zero)
        + weights.quality * parts.get("quality", zero)
        + weights.middle * parts.get("middle", zero)
        + weights.edges * parts.get("edges", zero)
        + weights.named * parts.get("named", zero)
        + weights.clock * parts.get("clock", zero)
        + weights.cells * parts.get("cells", zero)
        + weights.seen * parts.get("seen", zero)
        + weights.doing * parts.get("doing", zero)
        + weights.looks * parts.get("looks", zero)
    )
