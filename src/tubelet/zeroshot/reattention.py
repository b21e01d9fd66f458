"""Logit-guided re-attention: a visual prompt that makes the model say yes (paper, 3.3; LRA).

A prompt U is added to the visual tokens. For every question the gap is the logit of "yes" minus that of "no" at the
first word of the answer. Plain gradient steps on

    published   sum over sub-queries of 1 - (gap of the sub-query - gap of the general prompt)
    paper       sum over sub-queries of -exp(gap)      (equation 4)

The published code uses the mean of the last two prompts and steps on the newer one: with averaging b and rate r,
U after one epoch is -b r g0, not -r g0 (`tests/zeroshot`). averaging = 1 is plain descent. All in float32 or better.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from tubelet.errors import ModelError, QueryError
from tubelet.zeroshot.settings import ZeroShotSettings

if TYPE_CHECKING:
    import torch

YES, NO = ("yes", "Yes", " yes", " Yes"), ("no", "No", " no", " No")


def objective(gaps: torch.Tensor, loss: str) -> torch.Tensor:
    """gaps (Q,): the general prompt first, then the sub-queries."""
    if len(gaps) < 2:
        raise QueryError("re-attention needs at least one sub-query beside the general prompt")
    if loss == "published":
        return (1 - (gaps[1:] - gaps[0])).sum()
    return -gaps[1:].exp().sum()


def tune(
    gaps_of: Callable[[torch.Tensor], torch.Tensor],
    start: torch.Tensor,
    settings: ZeroShotSettings,
    first: torch.Tensor | None = None,
) -> torch.Tensor:
    """The prompt U that is in force after all epochs.

    gaps_of: U -> (Q,) gaps, differentiable. start: zeros of the prompt's shape (float32 or float64).
    first: the gradient at `start`, where it is known (see `first_gradients`).
    """
    import torch

    share, rate = settings.averaging, settings.rate
    newer = older = start.detach().clone()
    for epoch in range(settings.epochs):
        in_force = (share * newer + (1 - share) * older).requires_grad_()
        if epoch == 0 and first is not None:
            gradient = first
        else:
            with torch.enable_grad():
                loss = objective(gaps_of(in_force), settings.loss)
                (gradient,) = torch.autograd.grad(loss, in_force)
        # in the first epoch old and new are one variable, afterwards only the newer one moves
        step = rate * gradient * (1.0 if epoch == 0 else share)
        newer, older = newer - step, newer
    return share * newer + (1 - share) * older


def first_gradients(
    gaps_of: Callable[[torch.Tensor], torch.Tensor], start: torch.Tensor, loss: str
) -> list[torch.Tensor]:
    """Gradients of several tunings that all begin at `start`, from one graph.

    gaps_of: U -> (1 + n,) gaps, of the general prompt and of n sub-queries, each of which is tuned on its own.
    """
    import torch

    with torch.enable_grad():
        at = start.detach().clone().requires_grad_()
        gaps = gaps_of(at)
        losses = [objective(torch.stack([gaps[0], gap_]), loss) for gap_ in gaps[1:]]
        last = len(losses) - 1
        return [torch.autograd.grad(one, at, retain_graph=k < last)[0] for k, one in enumerate(losses)]


def yes_no_ids(tokenizer: Any, rule: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Ids of "yes" and of "no": one lower-case token each ("exact"), or all spellings that are one token.

    "exact" is the piece without a space before it, as published, if the vocabulary has it: 3582 in Vicuna's, where the
    tokenizer itself writes the other one, 4874. Raises ModelError for a tokenizer without them.
    """
    found = []
    for words in (YES, NO):
        ids: list[int] = []
        for word in words[:1] if rule == "exact" else words:
            for at in (_piece(tokenizer, word), _encoded(tokenizer, word)):
                if at is not None and at not in ids:
                    ids.append(at)
        if not ids:
            raise ModelError(
                f"this model's tokenizer has no single token for {words[0]!r}, so its answer cannot guide attention: "
                "switch spatial and temporal tuning off"
            )
        found.append(tuple(ids[:1] if rule == "exact" else ids))
    return found[0], found[1]


def _piece(tokenizer: Any, word: str) -> int | None:
    """The vocabulary's own entry for a word; None where it has none."""
    at = tokenizer.convert_tokens_to_ids(word)
    return None if at is None or at == tokenizer.unk_token_id else int(at)


def _encoded(tokenizer: Any, word: str) -> int | None:
    """What the tokenizer writes for a word, if it is one token."""
    pieces = tokenizer(word, add_special_tokens=False)["input_ids"]
    return int(pieces[0]) if len(pieces) == 1 and pieces[0] != tokenizer.unk_token_id else None


def gap(logits: torch.Tensor, yes: Sequence[int], no: Sequence[int]) -> torch.Tensor:
    """Logit of yes minus logit of no, each the log-sum-exp of its spellings; logits (V,)."""
    return logits[list(yes)].logsumexp(0) - logits[list(no)].logsumexp(0)
