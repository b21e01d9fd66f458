"""Attention maps: which token is read, relative to the general prompt, and put together in time (paper, 3.1-3.4).

A map is (T, h, w): the share of one token's attention that each cell gets, meaned over layers and heads. Rows are
candidates: R maps of one question. Nothing here knows a model.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tubelet.errors import QueryError
from tubelet.zeroshot.settings import ZeroShotSettings

FloatArray = npt.NDArray[np.float64]
REFERENCE_TOKENS = 720  # visual tokens of the published setting, for which epsilon was chosen


def epsilon_for(settings: ZeroShotSettings, n_cells: int) -> float:
    """Attention is spread over all tokens, so the same epsilon suppresses more, the more tokens there are."""
    return settings.epsilon * REFERENCE_TOKENS / n_cells if settings.scale_epsilon else settings.epsilon


def relative(numerator: npt.ArrayLike, denominator: npt.ArrayLike, epsilon: float) -> FloatArray:
    """Attention of a question over that of the general prompt (section 7.2), in float64."""
    above, below = (np.asarray(x, dtype=np.float64) for x in (numerator, denominator))
    out: FloatArray = above / (below + epsilon)
    return out


def layer_range(layers: tuple[int, int] | None, n_layers: int) -> tuple[int, ...] | None:
    """Indices of a slice of layers, cut at the first; None: all. QueryError where nothing is left."""
    if layers is None:
        return None
    chosen = tuple(range(n_layers)[slice(*layers)])
    if not chosen:
        raise QueryError(
            f"layers {layers} of a model of {n_layers} layers are none: choose others, or None for all"
        )
    return chosen


def choose_token(
    question: FloatArray, general: FloatArray, offsets: tuple[int, ...], settings: ZeroShotSettings
) -> tuple[FloatArray, int | None]:
    """The relative map (T, h, w) of the token that is read, and its offset from the end (None: the mean of all).

    question, general: (R, T, h, w) rows of the same candidates; the same token is used for both (section 3.2).
    """
    epsilon = epsilon_for(settings, question[0].size)
    if settings.token == "mean":
        return relative(question.mean(0), general.mean(0), epsilon), None
    if settings.token == "fixed":
        if settings.token_offset not in offsets:
            raise QueryError(
                f"token_offset {settings.token_offset} is no candidate of this model ({offsets[0]} to {offsets[-1]})"
            )
        row = offsets.index(settings.token_offset)
    elif settings.token == "raw":
        row = int(question.reshape(len(question), -1).max(1).argmax())
    else:
        row = int(relative(question, general, epsilon).reshape(len(question), -1).max(1).argmax())
    return relative(question[row], general[row], epsilon), offsets[row]


def assemble(forward: npt.ArrayLike, reversed_: npt.ArrayLike) -> FloatArray:
    """TAS: the map of the video plus that of the reversed video, turned back in time (a sum, as published)."""
    out: FloatArray = np.asarray(forward, dtype=np.float64) + np.asarray(reversed_, dtype=np.float64)[::-1]
    return out


def consistency(forward: FloatArray, reversed_: FloatArray) -> float:
    """Temporal consistency of two maps: their cosine (our definition; the paper's is not public)."""
    a, b = forward.ravel(), reversed_[::-1].ravel()
    length = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / length if length > 0 else 0.0
