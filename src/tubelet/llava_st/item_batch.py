"""Training batches from files: items of a mixing list, decoded, as whole conversations.

Batch k is a function of k, the list and the seed: epochs follow each other in new orders, and a resumed run sees what
an uninterrupted one would have seen. A sample that cannot be used is logged, replaced by the next one that can, and
stops the run when there are too many of them (`item_samples.Broken`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from tubelet.llava_st.coordinates import Variables
from tubelet.llava_st.item_samples import Broken, ItemSample, load_sample, sample_or_next
from tubelet.llava_st.loss import IGNORE
from tubelet.llava_st.mixture import Drawn, MixedItems, open_mixture
from tubelet.llava_st.model import LlavaST, Visual
from tubelet.llava_st.prompts import training_ids
from tubelet.training.recipe import ItemList

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ItemBatch:
    """B conversations: ids and labels (B, L), padded behind; pixels[b] uint8 (T, 3, S, S) and positions[b] (T,)."""

    ids: torch.Tensor
    labels: torch.Tensor
    mask: torch.Tensor  # (B, L), True where there is a word
    variables: tuple[Variables, ...]
    pixels: tuple[torch.Tensor, ...]
    positions: tuple[torch.Tensor, ...]
    is_image: tuple[bool, ...]

    @property
    def n_questions(self) -> int:
        """Conversations."""
        return len(self.ids)

    def to(self, device: torch.device | str) -> ItemBatch:
        return replace(
            self,
            ids=self.ids.to(device),
            labels=self.labels.to(device),
            mask=self.mask.to(device),
            pixels=tuple(p.to(device) for p in self.pixels),
            positions=tuple(p.to(device) for p in self.positions),
        )


def item_stream(settings: ItemList, model: LlavaST, tokenizer: Any, seed: int) -> Callable[[int], ItemBatch]:
    """make_batch(k) for a mixing list. DataError names what the list lacks."""
    items = open_mixture(settings.path, seed)
    broken = Broken(settings.broken_share)
    orders: dict[int, Any] = {}

    def load(drawn: Drawn) -> ItemSample:
        config = model.config
        return load_sample(
            drawn.item, drawn.folder, config.frames, model.image_size, config.mode == "official"
        )

    def make_batch(k: int) -> ItemBatch:
        samples = []
        for at in range(k * settings.batch, (k + 1) * settings.batch):
            number = place(items, at, orders)
            before = broken.count
            taken, sample = sample_or_next(items, number, load, broken)
            if broken.count > before:
                log.warning("%s; sample %d stands in", broken.examples[-1], taken)
            samples.append(sample)
        return collate_items(samples, model, tokenizer, settings.supervise)

    return make_batch


def place(items: MixedItems, at: int, orders: dict[int, Any]) -> int:
    """Which item is the `at`-th of the run: all items once per epoch, every epoch in another order."""
    epoch, rank = divmod(at, len(items))
    if epoch not in orders:
        orders.clear()
        orders[epoch] = items.order(epoch)
    return int(orders[epoch][rank])


def collate_items(
    samples: Sequence[ItemSample], model: LlavaST, tokenizer: Any, supervise: str = "official"
) -> ItemBatch:
    """Conversations of any kind of picture; supervise: as in `prompts.training_ids`."""
    rows = []
    for sample in samples:
        counts = model.counts(None if sample.is_image else len(sample.pixels))
        rows.append(training_ids(tokenizer, model.words, sample.turns, counts, supervise))
    length = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), length), model.words.turn_end)
    labels = torch.full((len(rows), length), IGNORE)
    mask = torch.zeros(len(rows), length, dtype=torch.bool)
    for b, row in enumerate(rows):
        n = len(row.ids)
        ids[b, :n], labels[b, :n], mask[b, :n] = torch.tensor(row.ids), torch.tensor(row.labels), True
    return ItemBatch(
        ids=ids,
        labels=labels,
        mask=mask,
        variables=tuple(row.variables for row in rows),
        pixels=tuple(torch.from_numpy(s.pixels.copy()).permute(0, 3, 1, 2) for s in samples),
        positions=tuple(torch.from_numpy(s.positions) for s in samples),
        is_image=tuple(s.is_image for s in samples),
    )


def encode_items(model: LlavaST, batch: ItemBatch) -> list[Visual | None]:
    """The visual tokens of each conversation; the batch's pixels are normalised."""
    out: list[Visual | None] = []
    for pixels, positions, is_image in zip(batch.pixels, batch.positions, batch.is_image, strict=True):
        uniform = model.config.mode == "official"  # as published: frame i of T at i / (T - 1)
        out.append(
            model.encode_image(pixels)
            if is_image
            else model.encode_video(pixels, None if uniform else positions)
        )
    return out
