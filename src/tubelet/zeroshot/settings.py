"""Every choice of the zero-shot method as an option, and three presets.

    paper      what the text says
    published  what the public code does (K + 1 frames, averaged prompts, middle layers, fixed token, bilinear masks)
    tubelet    our best: area-exact weights, an interval without K, epsilon that follows the number of tokens

Where they differ and why: docs/papers.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tubelet.config_io import from_dict, to_dict
from tubelet.errors import ModelError, QueryError, RecipeError

QUESTION = "Is there {text} in this video?"
GENERAL_PROMPT = "please describe this video"
FOLDER_FILE = "zero_shot.json"
QUALITY: dict[str, Any] = {"spatial": True, "temporal": True, "assemble": True}
"""What the full method switches on: both tunings and the reversed video."""
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
    interval: "adaptive" (no K; the visible time where scores say nothing about time), "window" (k + 1 frames around
        the best, published) or "top_k" (hull of the k best).
    spatial, temporal: tune a visual prompt on the attribute (action) sub-query before reading (LRA). assemble: add the
        maps of the reversed video (TAS; spatial only).
    read: which question is read after tuning: "sub" (published), "whole" (paper, Algorithm 1) or "mixed" (the
        attribute for space, the whole sentence for time; published for Qwen2-VL). "parts": the sub-queries also
        without tuning, the attribute for the track and the action for its frames (ours).
    loss: "published" (linear, against the general prompt) or "paper" (-exp of the gap). rate, epochs, averaging: of
        plain gradient steps; averaging 0.5 is the published mean of the last two prompts, 1 is none.
    yes_no: "variants" (log-sum-exp over spellings) or "exact" (one lower-case token each, as published).
    candidates: how many last tokens are looked at (the published, dormant rule: 6); 0: the role tokens and the one
        before.
    general_tuned: is the tuned prompt there for the general prompt, too (published), or not (paper, Algorithm 1)?
    lower_case: lower the sentence first (published). region: "mask" where tracks have masks, or "box" (paper).
    as_published: for the loaded family what the public scripts do: token -5 of LLaVA-NeXT-Video, the reversed video for
        LLaVA-NeXT-Video and LLaVA-OneVision only, mixed reading for Qwen, no tuning for time for InternVL. See
        `for_model`.
    targets: at most so many tubes; others than the best need `target_share` of its score, and a place of their own.
    absent_below: confidence under which the answer is "not in this video", 0.5 where the model says no; 0: never.
    frames: how many frames the model reads; the model's own limit counts if it is lower.
    sampling: "cells" (the middles of equal pieces of the video) or "published" (evenly over the frames that the
        proposals were made on, both ends included, where they are there before the video is read: given or in files).
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
    candidates: int = 0
    general_tuned: bool = True
    lower_case: bool = False
    region: str = "mask"
    as_published: bool = False
    targets: int = 1
    target_share: float = 0.8
    absent_below: float = 0.0
    frames: int = 20
    sampling: str = "cells"

    def __post_init__(self) -> None:
        for name, options in (
            ("token", ("raw", "relative", "fixed", "mean")),
            ("weights", ("area", "bilinear")),
            ("interval", ("adaptive", "window", "top_k")),
            ("read", ("sub", "whole", "mixed", "parts")),
            ("loss", ("published", "paper")),
            ("yes_no", ("variants", "exact")),
            ("region", ("mask", "box")),
            ("sampling", ("cells", "published")),
        ):
            if getattr(self, name) not in options:
                raise QueryError(f"{name} is one of {', '.join(options)}, got {getattr(self, name)!r}")
        if "{text}" not in self.question:
            raise QueryError(f"question holds {{text}} where the sentence goes, got {self.question!r}")
        if self.layers is not None and len(self.layers) != 2:
            raise QueryError(
                f"layers is first and last, as a slice, for example (-4, -1); got {self.layers!r}"
            )
        if self.token_offset >= 0 or self.k < 1 or self.epochs < 0 or self.frames < 1:
            raise QueryError(
                "token_offset counts from the end (negative), k and frames are at least 1 and epochs at least 0, "
                f"got {self.token_offset}, {self.k}, {self.frames} and {self.epochs}"
            )
        if self.candidates < 0 or self.targets < 1 or not 0 < self.target_share <= 1:
            raise QueryError(
                "candidates is at least 0, targets at least 1 and target_share in (0, 1], "
                f"got {self.candidates}, {self.targets} and {self.target_share:g}"
            )
        if self.epsilon <= 0 or self.rate < 0 or not 0 < self.averaging <= 1:
            raise QueryError(
                "epsilon is above 0, rate at least 0 and averaging in (0, 1], "
                f"got {self.epsilon:g}, {self.rate:g} and {self.averaging:g}"
            )

    def with_quality(self) -> ZeroShotSettings:
        """The full method: both tunings and the reversed video."""
        return replace(self, **QUALITY)

    def for_model(self, family: str, n_layers: int) -> ZeroShotSettings:
        """What these settings are for a family (`Capabilities.family`) of so many layers.

        A range of layers of which a small model has none means all of them: the published code divides nothing by
        nothing there, and every query would be lost.
        """
        made = self
        if self.layers is not None and not range(n_layers)[slice(*self.layers)]:
            made = replace(made, layers=None)
        if not self.as_published:
            return made
        offset = -5 if family == "LLaVA-NeXT-Video" and self.token_offset == -3 else self.token_offset
        reverses = family in ("LLaVA-NeXT-Video", "LLaVA-OneVision")
        mixed = self.read == "sub" and family.startswith("Qwen")
        return replace(
            made,
            token_offset=offset,
            assemble=self.assemble and reverses,
            temporal=self.temporal and family != "InternVL",  # its public code tunes space only
            read="mixed" if mixed else self.read,
        )


PRESETS = {
    "tubelet": ZeroShotSettings(),
    "paper": ZeroShotSettings(
        token="raw",
        general=PAPER_GENERAL_PROMPT,
        scale_epsilon=False,
        general_tuned=False,
        region="box",
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
        lower_case=True,
        as_published=True,
        interval="window",
        spatial=True,
        temporal=True,
        assemble=True,
        read="sub",
        epochs=2,
        averaging=0.5,
        yes_no="exact",
        sampling="published",
    ),
}


def settings_for(
    folder: Path | None, changes: Mapping[str, Any] | None = None, start: str = "tubelet"
) -> ZeroShotSettings:
    """Settings for a model, from the weakest word to the strongest: defaults, the folder, the preset, the changes.

    folder: may say in zero_shot.json how its model is asked (any fields of these settings); None: nothing is asked.
    start: name of a preset. It speaks only for the fields that it is about, those where it differs from the defaults:
    the folder's words answer a published question, but not a published token. changes: what somebody chose, whatever
    the value. Raises QueryError and RecipeError for choices that make no sense, ModelError for a damaged file.
    """
    plain = to_dict(ZeroShotSettings())
    own = {name: value for name, value in to_dict(preset(start)).items() if value != plain[name]}
    told = {} if folder is None else _told(folder)
    return from_dict(ZeroShotSettings, plain | told | own | dict(changes or {}))


def _told(folder: Path) -> dict[str, Any]:
    """What a folder says, checked. Raises ModelError."""
    path = folder / FOLDER_FILE
    if not path.is_file():
        return {}
    from tubelet.model_folder import read_json

    data = read_json(path)
    try:
        from_dict(ZeroShotSettings, data)
    except (RecipeError, QueryError) as error:
        raise ModelError(f"cannot read {path}: {error}") from error
    return dict(data)


def preset(name: str) -> ZeroShotSettings:
    """Settings by name; QueryError names the presets."""
    if name not in PRESETS:
        raise QueryError(f"presets are {', '.join(PRESETS)}, got {name!r}")
    return PRESETS[name]
