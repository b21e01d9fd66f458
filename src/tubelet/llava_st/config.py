"""Settings of a LLaVA-ST that are not in its language model or vision tower. Stored in the checkpoint.

`mode` decides two things that the published code does differently from the paper:

    mode          fast stream reaches the language model    width inputs are read
    official      no                                        no       (matches released weights)
    fast_fixed    yes                                       no
    width_fixed   no                                        yes
    fixed         yes                                       yes      (the paper; new models)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from tubelet.errors import ModelError
from tubelet.llava_st.coordinates import BINS

MODES = ("official", "fast_fixed", "width_fixed", "fixed")


@dataclass(frozen=True, slots=True)
class PackerConfig:
    """The spatial-temporal packer (paper, section 3.3).

    width, heads: of the window attention.
    space: patches per side of a window of the first block; fast: of the fast block; time: frames per window of
        the slow block.
    kind: "attention" (paper), or "average": the mean of every window, for comparisons.
    """

    width: int = 1024
    heads: int = 8
    space: int = 3
    fast: int = 3
    time: int = 5
    kind: str = "attention"

    def __post_init__(self) -> None:
        if min(self.width, self.heads, self.space, self.fast, self.time) < 1:
            raise ModelError(f"every setting of the packer is at least 1, got {asdict(self)}")
        if self.kind not in ("attention", "average"):
            raise ModelError(f"packer.kind is attention or average, got {self.kind!r}")
        if self.width % self.heads:
            raise ModelError(f"packer.width {self.width} is not a multiple of packer.heads {self.heads}")


@dataclass(frozen=True, slots=True)
class LlavaSTConfig:
    """
    mode: see above.
    vocabulary: rows of ordinary words V; the anchors follow as rows V .. V + 3 * bins - 1.
    bins: anchors per axis.
    frames: how many frames are sampled from a video. `official` takes exactly these; the other modes any number.
    motion_layers: visual tokens read the frames before and after, between the first block of the packer and the
        other two (our addition; 0 in the paper).
    inject: add the coordinate embeddings to the visual features (paper); False only for comparisons.
    pack_images: images go through the packer's first and slow block instead of straight to the language model.
    prompts: "official" wordings or our "brief" ones, for models with a small vocabulary.
    repetition_penalty: what generation uses by default; the release inherits one from its base, see the report of
        a conversion.
    domain: what the model knows, for the warning when it is used on something else.
    """

    mode: str = "fixed"
    vocabulary: int = 0
    bins: int = BINS
    frames: int = 100
    motion_layers: int = 0
    pack_images: bool = False
    prompts: str = "official"
    repetition_penalty: float = 1.0
    domain: str = ""
    packer: PackerConfig = field(default_factory=PackerConfig)
    inject: bool = True

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ModelError(f"mode is one of {', '.join(MODES)}, got {self.mode!r}")
        if self.prompts not in ("official", "brief"):
            raise ModelError(f"prompts are official or brief, got {self.prompts!r}")
        if self.bins < 2 or self.frames < 1 or min(self.vocabulary, self.motion_layers) < 0:
            raise ModelError(
                "bins are at least 2, frames at least 1, the vocabulary and motion_layers at least 0; "
                f"got {self.bins}, {self.frames}, {self.vocabulary}, {self.motion_layers}"
            )
        if self.motion_layers and self.mode == "official":
            raise ModelError("official mode has no motion_layers: choose mode fixed")
        if self.repetition_penalty <= 0:
            raise ModelError(f"repetition_penalty is above 0 (1: none), got {self.repetition_penalty}")

    @property
    def splices_fast(self) -> bool:
        return self.mode in ("fast_fixed", "fixed")

    @property
    def reads_width(self) -> bool:
        return self.mode in ("width_fixed", "fixed")

    @property
    def rows(self) -> int:
        """Rows of the embedding matrix and of the head."""
        return self.vocabulary + 3 * self.bins

    def first_anchor(self, axis: int) -> int:
        """Row of the first anchor of an axis (0: time, 1: height, 2: width)."""
        return self.vocabulary + axis * self.bins

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LlavaSTConfig:
        packer = data.get("packer", {})
        if not isinstance(packer, Mapping):
            raise ModelError(f"the checkpoint's packer settings must hold fields, got {packer!r}")
        unknown = set(data) - {f.name for f in fields(cls)}
        unknown |= {f"packer.{name}" for name in set(packer) - {f.name for f in fields(PackerConfig)}}
        if unknown:
            raise ModelError(
                f"the checkpoint has settings this tubelet does not know: {', '.join(sorted(unknown))}; "
                "it was written by a newer version"
            )
        return cls(**{**data, "packer": PackerConfig(**packer)})
