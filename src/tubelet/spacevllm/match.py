"""What answer words have to find, made findable: heads on a middle layer, in training only (our addition).

Words that are written read what lower layers hold. A full-size model comes with that; one that starts from noise gets
it taught, at a middle layer, by comparing words with visual tokens:

    goes on, begins, ends   a question's last word against every cell of every frame (`loss.middle_loss`, `edge_loss`)
    named                   a word of the answer against the cells that it is about to name (`pointing_loss`)
    clock                   every visual token says the time of its frame in digits (`clock_loss`)
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

KINDS, WIDTH = 4, 64  # goes on, begins, ends, is named; size of what is compared
DIGITS = 3  # tens, ones and tenths of a second


class Match(nn.Module):  # type: ignore[misc]
    def __init__(self, size: int) -> None:
        super().__init__()
        self.asks = nn.Linear(size, KINDS * WIDTH)
        self.gives = nn.Linear(size, KINDS * WIDTH)
        self.bias = nn.Parameter(torch.tensor(-2.0))
        self.clock = nn.Linear(size, DIGITS * 10)

    def of_questions(self, words: torch.Tensor, visual: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        """Last words (Q, D) of questions of rows (Q,), visual tokens (B, T, K, D) -> logits (Q, 3, T, K)."""
        asks, gives = self._parts(words, visual)
        match: torch.Tensor = torch.einsum("qnc,qtknc->qntk", asks[:, :-1], gives[..., :-1, :][row])
        return match / math.sqrt(WIDTH) + self.bias

    def of_answers(self, words: torch.Tensor, visual: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        """Words (A, D) of answers in rows (A,), visual tokens (B, T, K, D) -> logits (A, T, K)."""
        asks, gives = self._parts(words, visual)
        match: torch.Tensor = torch.einsum("ac,atkc->atk", asks[:, -1], gives[..., -1, :][row])
        return match / math.sqrt(WIDTH)

    def _parts(self, words: torch.Tensor, visual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        # inner layers are not normalised, and grow in training
        words, visual = (F.layer_norm(x, x.shape[-1:]) for x in (words, visual))
        return self.asks(words).unflatten(-1, (KINDS, WIDTH)), self.gives(visual).unflatten(
            -1, (KINDS, WIDTH)
        )


def clock_loss(logits: torch.Tensor, times_s: torch.Tensor | None) -> torch.Tensor:
    """Cross-entropy of the digits of N frames' times, said by each of their K tokens: logits (N, K, 30).

    0 for images, which have no time; still a function of the logits, as processes that share gradients expect.
    """
    if times_s is None:
        return logits.sum() * 0.0
    tenths = (times_s * 10).round().long().clamp(0, 999)
    digits = torch.stack([tenths // 100, tenths // 10 % 10, tenths % 10], dim=-1)  # (N, 3)
    digits = digits[:, None].expand(-1, logits.shape[1], -1)
    return F.cross_entropy(logits.float().unflatten(-1, (DIGITS, 10)).flatten(0, 2), digits.flatten())
