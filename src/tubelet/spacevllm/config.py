"""Settings of a SpaceVLLM that are not in its LLaVA-OneVision base. Stored in the checkpoint's config.json.

Every field that the paper leaves open is an option here; docs/papers.md lists them with our defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from tubelet.errors import ModelError

SPAN_READERS = ("text", "activity", "both")


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """The query-guided space decoder (paper, section 3.3).

    attention: "parameter_free" (plain scaled dot-product attention over the LLM's features) or "projected".
    keys: which visual tokens a frame's query may read: "own_frame" or "all_frames".
    width, heads, layers: for "projected" only.
    motion_layers: visual tokens first read the frames before and after, for "projected" only (our addition).
    temporal_layers: self-attention over the per-frame vectors (our addition; 0 in the paper).
    grid_position: add a position code to the visual tokens before they are read (our addition).
    cells: each text-aware visual token also says whether the target is in its cell; this is learnt from the
        true boxes and added to the scores of cross-attention 2 (our addition).
    """

    attention: str = "projected"
    keys: str = "own_frame"
    width: int = 128
    heads: int = 4
    layers: int = 1
    motion_layers: int = 0
    temporal_layers: int = 0
    grid_position: bool = False
    cells: bool = False

    def __post_init__(self) -> None:
        if self.attention not in ("parameter_free", "projected"):
            raise ModelError(f"decoder.attention is parameter_free or projected, got {self.attention!r}")
        if self.keys not in ("own_frame", "all_frames"):
            raise ModelError(f"decoder.keys is own_frame or all_frames, got {self.keys!r}")
        if self.motion_layers < 0 or (self.motion_layers and self.attention != "projected"):
            raise ModelError(
                "decoder.motion_layers is at least 0, and 0 for a parameter_free decoder, "
                f"got {self.motion_layers}"
            )
        if min(self.width, self.heads, self.layers) < 1 or self.temporal_layers < 0:
            raise ModelError(
                "decoder.width, decoder.heads and decoder.layers must be at least 1 and "
                f"decoder.temporal_layers at least 0, got {self.width}, {self.heads}, {self.layers} and "
                f"{self.temporal_layers}"
            )
        if self.width % self.heads:
            raise ModelError(f"decoder.width {self.width} is not a multiple of decoder.heads {self.heads}")


@dataclass(frozen=True, slots=True)
class SpaceVLLMConfig:
    """
    max_frames: N_v, how many frames are sampled; there are N_v + 1 query tokens, the last for single images.
    time_layout: where frame times are told: "list" after the frames (paper), "interleaved" before each
        frame, "llava_video" after the frames in the words that LLaVA-Video was trained on, or "none".
    prompts: "full" sentences, or "brief" ones for models with a small vocabulary.
    span_reader: what the span is read from by default: "text" (paper), "activity" or "both" (our additions).
    time_decimals: of the seconds in prompts and answers.
    snap_answers: answers name the first and the last sampled frame instead of exact seconds (our addition).
    motion_layers: visual tokens read the frames before and after before they enter the LLM (our addition; 0 in
        the paper).
    mid_layer: layer of the LLM whose states also predict, during training, where and when it goes on, begins and
        ends (our addition; 0: none).
    dense_attributes, dense_actions: class counts of the dense labels learnt beside the questions when a model is
        trained from scratch (our addition; none: no such heads).
    presence_threshold: presence below it means "not in this video" (our addition; 0 switches the presence head off).
        Answers show presence relative to it, so that 0.5 is the border (`readout.calibrated`).
    domain: what the model knows, for the warning when it is used on something else.
    newline: where the base's newline embedding stands: "one" after the last frame (LLaVA-OneVision), "frame" after
        each frame, "grid" after each row of each frame (LLaVA-Video), "none"; "base": as the base was trained, which
        its folder says (`llava_next`), and "one" where it says nothing.
    pool: how a frame's patches become visual tokens: "bilinear" (27 x 27 to 14 x 14), "average" or "max" (13 x 13);
        "base": as the base was trained, "bilinear" where it says nothing.
    weigh_answers: where answers name sampled frames, read the span with the highest expected overlap over all of them
        (`answer_tree`) instead of the one that is written greedily (our addition).
    text_presence_threshold: where answers are weighed, "not in this video" is read when all others together have a
        smaller share of the probability than this; calibrated on validation data (our addition; 0.5: the likelier one).
    words: rows of the vocabulary that may be written in answers: the rows after them are padding or placeholders of a
        published base, which were never trained as words (0: all rows; a base that says so sets it).
    """

    max_frames: int = 64
    time_layout: str = "list"
    prompts: str = "full"
    span_reader: str = "text"
    time_decimals: int = 2
    snap_answers: bool = False
    motion_layers: int = 0
    mid_layer: int = 0
    dense_attributes: tuple[int, ...] = ()
    dense_actions: int = 0
    presence_threshold: float = 0.5
    domain: str = ""
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    newline: str = "base"
    pool: str = "base"
    words: int = 0
    weigh_answers: bool = True
    text_presence_threshold: float = 0.5

    def __post_init__(self) -> None:
        for name, options in (
            ("time_layout", ("list", "interleaved", "llava_video", "none")),
            ("prompts", ("full", "brief")),
            ("span_reader", SPAN_READERS),
            ("newline", ("base", "one", "frame", "grid", "none")),
            ("pool", ("base", "bilinear", "average", "max")),
        ):
            if getattr(self, name) not in options:
                raise ModelError(f"{name} is one of {', '.join(options)}, got {getattr(self, name)!r}")
        if self.dense_actions and not self.mid_layer:
            raise ModelError("dense_actions are read from the middle layer: set mid_layer")
        if self.max_frames < 1 or self.motion_layers < 0:
            raise ModelError(
                "max_frames must be at least 1 and motion_layers at least 0, "
                f"got {self.max_frames} and {self.motion_layers}"
            )
        if not (0 <= self.presence_threshold <= 1 and 0 <= self.text_presence_threshold <= 1):
            raise ModelError(
                "presence_threshold and text_presence_threshold are probabilities, "
                f"got {self.presence_threshold:g} and {self.text_presence_threshold:g}"
            )
        if self.words < 0:
            raise ModelError(f"words is a number of rows of the vocabulary, 0 for all, got {self.words}")

    def on(self, base: SpaceVLLMConfig | None) -> SpaceVLLMConfig:
        """These settings, with what they leave to the base taken from the base's own; None: it has none."""
        if base is None:
            return self
        return replace(
            self,
            newline=base.newline if self.newline == "base" else self.newline,
            pool=base.pool if self.pool == "base" else self.pool,
            words=self.words or base.words,
        )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SpaceVLLMConfig:
        decoder = data.get("decoder", {})
        if not isinstance(decoder, Mapping):
            raise ModelError(f"the checkpoint's decoder settings must hold fields, got {decoder!r}")
        unknown = set(data) - {f.name for f in fields(cls)}
        unknown |= {f"decoder.{name}" for name in set(decoder) - {f.name for f in fields(DecoderConfig)}}
        if unknown:
            raise ModelError(
                f"the checkpoint has settings this tubelet does not know: {', '.join(sorted(unknown))}; "
                "it was written by a newer version"
            )
        values = dict(data)
        values["decoder"] = DecoderConfig(**decoder)
        values["dense_attributes"] = tuple(data.get("dense_attributes", ()))
        return cls(**values)
