"""Every choice of the zero-shot method as an option, and three presets.

    paper      what the text says
    published  what the public code does (K + 1 frames, averaged prompts, middle layers, fixed token, bilinear masks)
    tubelet    our best: area-exact weights, an interval without K, epsilon that follows the number of tokens

Where they differ and why: docs/papers.md.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tubelet.errors import QueryError

QUESTION = "Is there {text} in this video?"
GENERAL_PROMPT = "please describe this video"
PAPER_GENERAL_PROMPT = "Describe this video in details."


@dataclass(frozen=True, slots=True)
class ZeroShotSettings:
    """
    token: which row of attention is read: "raw" (most activated candidate; paper), "relative" (after the division),
        "fixed" (`token_offset` from the end) or "mean" of all candidates (the paper's baseline).
    layers: (first, last) as a slice, for example (-26, -6) as published; None: all.
    question: the wording of a sentence or sub-query, with {text} in it; for models that know another one.
    general: the prompt whose attention divides. epsilon: of the division, at 720 visual tokens; scale_epsilon: keep
        epsilon * n_tokens, so that resolution does not change what it suppresses.
    weights: a track's share of a cell: "area" (exact, small things keep a full cell) or "bilinear" (published).
    interval: "adaptive" (no K), "window" (k + 1 frames around the best, published) or "top_k" (hull of the k best).
    spatial, temporal: tune a visual prompt on the attribute (action) sub-query before reading (LRA). assemble: add the
        maps of the reversed video (TAS; spatial only).
    read: which question is read after tuning: "sub" (published) or "whole" (paper, Algorithm 1).
    loss: "published" (linear, against the general prompt) or "paper" (-exp of the gap). rate, epochs, averaging: of
        plain gradient steps; averaging 0.5 is the published mean of the last two prompts, 1 is none.
    yes_no: "variants" (log-sum-exp over spellings) or "exact" (one lower-case token each, as published).
    absent_below: relative peak under which the answer is "not in this video"; 0: never.
    frames: how many frames the model reads; the model's own limit counts if it is lower.
    """

    token: str = "relative"
    token_offset: int = -3
    layers: tuple[int, int] | None = None
    question: str = QUESTION
    general: str = GENERAL_PROMPT
    epsilon: float = 1e-4
    scale_epsilon: bool = True
    weights: str = "area"
    interval: str = "adaptive"
    k: int = 7
    spatial: bool = False
    temporal: bool = False
    assemble: bool = False
    read: str = "whole"
    loss: str = "published"
    rate: float = 8.0
    epochs: int = 1
    averaging: float = 1.0
    yes_no: str = "variants"
    absent_below: float = 0.0
    frames: int = 20

    def __post_init__(self) -> None:
        for name, options in (
            ("token", ("raw", "relative", "fixed", "mean")),
            ("weights", ("area", "bilinear")),
            ("interval", ("adaptive", "window", "top_k")),
            ("read", ("sub", "whole")),
            ("loss", ("published", "paper")),
            ("yes_no", ("variants", "exact")),
        ):
            if getattr(self, name) not in options:
                raise QueryError(f"{name} is one of {', '.join(options)}, got {getattr(self, name)!r}")
        if "{text}" not in self.question:
            raise QueryError(f"question holds {{text}} where the sentence goes, got {self.question!r}")
        if self.token_offset >= 0 or self.k < 1 or self.epochs < 0 or self.frames < 1:
            raise QueryError(
                "token_offset counts from the end (negative), k and frames are at least 1 and epochs at least 0, "
                f"got {self.token_offset}, {self.k}, {self.frames} and {self.epochs}"
            )
        if self.epsilon <= 0 or self.rate < 0 or not 0 < self.averaging <= 1:
            raise QueryError(
                "epsilon is above 0, rate at least 0 and averaging in (0, 1], "
                f"got {self.epsilon:g}, {self.rate:g} and {self.averaging:g}"
            )

    def with_quality(self) -> ZeroShotSettings:
        """The full method: both tunings and the reversed video."""
        return replace(self, spatial=True, temporal=True, assemble=True)


PRESETS = {
    "tubelet": ZeroShotSettings(),
    "paper": ZeroShotSettings(
        token="raw",
        general=PAPER_GENERAL_PROMPT,
        scale_epsilon=False,
        interval="top_k",
        spatial=True,
        temporal=True,
        assemble=True,
        loss="paper",
        yes_no="exact",
    ),
    "published": ZeroShotSettings(
        token="fixed",
        layers=(-26, -6),
        scale_epsilon=False,
        weights="bilinear",
        interval="window",
        spatial=True,
        temporal=True,
        assemble=True,
        read="sub",
        epochs=2,
        averaging=0.5,
        yes_no="exact",
    ),
}


def preset(name: str) -> ZeroShotSettings:
    """Settings by name; QueryError names the presets."""
    if name not in PRESETS:
        raise QueryError(f"presets are {', '.join(PRESETS)}, got {name!r}")
    return PRESETS[name]
