"""What a Uni-STG build is made of: every threshold of the four stages, with the paper's values as defaults.

The field names are the keys of a YAML recipe and of `key=value` settings (`tubelet.config_io`). Fields marked "ours"
are not in the paper (SpaceVLLM, the construction of Uni-STG).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tubelet.config_io import from_dict, load_yaml, to_dict, with_overrides
from tubelet.errors import RecipeError
from tubelet.unistg.analyzer import AnalyzerSettings
from tubelet.unistg.captions import CaptionSource

# settings that change speed or place, and no sample
_UNSEEN = {
    "annotator": ("cache",),
    "analyzer": ("cache", "batch_size", "workers", "device", "timeout_s", "pause_s"),
}

MATCHES = ("provider", "only", "largest", "colour", "grounder")


@dataclass(frozen=True, slots=True)
class AnnotatorSettings:
    """provider: a name of `tubelet.proposals`, or "package.module:function" called as `function(source, phrases, grid,
    **options)` that returns Tracks. options: the provider's own settings.

    min_confidence: boxes below are left out (paper: 0.3). fps: frames per second that are boxed. look_fps: frames per
    second that the provider sees (trackers need more than are kept; ours). match: how a phrase gets its tracks
    (`match.py`; "provider": by the label the provider gave). grounder: the model of match "grounder".
    max_boxes_per_frame: the best so many are kept, the rest is counted (ours). cache: folder for tracks.
    """

    provider: str = "grounding-dino-sam2"
    options: dict[str, Any] = field(default_factory=dict)
    min_confidence: float = 0.3
    fps: float = 2.0
    look_fps: float = 8.0
    match: str = "provider"
    grounder: str = "spacevllm-pico"
    max_boxes_per_frame: int = 64
    cache: str | None = None

    def __post_init__(self) -> None:
        _fraction(self.min_confidence, "annotator.min_confidence")
        if self.match not in MATCHES:
            raise RecipeError(f"annotator.match is one of {', '.join(MATCHES)}, got {self.match!r}")
        if not 0 < self.fps <= 1000 or not 0 < self.look_fps <= 1000 or self.max_boxes_per_frame < 1:
            raise RecipeError(
                "annotator.fps and look_fps are above 0 and max_boxes_per_frame is at least 1, got "
                f"{self.fps}, {self.look_fps} and {self.max_boxes_per_frame}"
            )


@dataclass(frozen=True, slots=True)
class RefinerSettings:
    """min_s, max_s: spans outside are dropped (paper: 2 and 120 s). max_gap_s: longer holes without a box part the
    boxes, and the longest part is kept; null: from the first box to the last (ours)."""

    min_s: float = 2.0
    max_s: float = 120.0
    max_gap_s: float | None = 2.0

    def __post_init__(self) -> None:
        if not 0 <= self.min_s < self.max_s or (self.max_gap_s is not None and self.max_gap_s <= 0):
            raise RecipeError(
                "the refiner needs 0 <= min_s < max_s and max_gap_s above 0 or null, "
                f"got {self.min_s}, {self.max_s} and {self.max_gap_s}"
            )


@dataclass(frozen=True, slots=True)
class FilterSettings:
    """max_boxes: frames with more lose their box (paper: 3). max_area_ratio: a larger change of the box's area between
    neighbouring frames drops the tube (paper: 2). edge_margin: boxes within this part of the picture's width or height
    from its edge count as cut by it, and a smaller box that is cut is no jump; null: every change counts, as in the
    paper (ours). min_confidence: of the mean of its boxes (paper: 0.3).
    min_boxes, min_coverage: fewer boxes, or boxes in a smaller part of the span's frames: too short (ours)."""

    max_boxes: int = 3
    max_area_ratio: float = 2.0
    edge_margin: float | None = 0.01
    min_confidence: float = 0.3
    min_boxes: int = 3
    min_coverage: float = 0.5

    def __post_init__(self) -> None:
        _fraction(self.min_confidence, "filter.min_confidence")
        _fraction(self.min_coverage, "filter.min_coverage")
        if self.max_boxes < 1 or self.min_boxes < 1 or self.max_area_ratio < 1:
            raise RecipeError(
                "filter.max_boxes, min_boxes and max_area_ratio are at least 1, "
                f"got {self.max_boxes}, {self.min_boxes} and {self.max_area_ratio}"
            )
        if self.edge_margin is not None and not 0 <= self.edge_margin < 0.5:
            raise RecipeError(
                "filter.edge_margin is a part of the picture's side, in [0, 0.5), or null for none, "
                f"got {self.edge_margin}"
            )


@dataclass(frozen=True, slots=True)
class UniSTGRecipe:
    """sources: where captions come from (`captions.CaptionSource`); videos: the folder their paths are relative to.

    format: jsonl, parquet or both.
    """

    sources: tuple[CaptionSource, ...] = ()
    videos: str = "."
    name: str = "uni-stg"
    analyzer: AnalyzerSettings = field(default_factory=AnalyzerSettings)
    annotator: AnnotatorSettings = field(default_factory=AnnotatorSettings)
    refiner: RefinerSettings = field(default_factory=RefinerSettings)
    filter: FilterSettings = field(default_factory=FilterSettings)
    format: str = "jsonl"

    def __post_init__(self) -> None:
        if self.format not in ("jsonl", "parquet", "both"):
            raise RecipeError(f"format is jsonl, parquet or both, got {self.format!r}")

    def thresholds(self) -> dict[str, Any]:
        """Every number that decided over a sample, for its provenance."""
        return {
            "annotator.min_confidence": self.annotator.min_confidence,
            **{f"refiner.{k}": v for k, v in to_dict(self.refiner).items()},
            **{f"filter.{k}": v for k, v in to_dict(self.filter).items()},
        }

    def decisive(self) -> dict[str, Any]:
        """All that changes samples, as plain data: not where files lie, nor the output's format."""
        plain = {k: v for k, v in to_dict(self).items() if k not in ("sources", "videos", "format", "name")}
        for part, unseen in _UNSEEN.items():
            plain[part] = {k: v for k, v in plain[part].items() if k not in unseen}
        return plain

    def digest(self) -> str:
        """sha256 of all that changes samples."""
        return hashlib.sha256(json.dumps(self.decisive(), sort_keys=True).encode()).hexdigest()


def load_unistg_recipe(path: Path | None, settings: Sequence[str] = ()) -> UniSTGRecipe:
    """A recipe from a YAML file (None: the defaults) and key=value settings. Raises RecipeError."""
    data = with_overrides({} if path is None else load_yaml(path), settings)
    return from_dict(UniSTGRecipe, data)


def _fraction(value: float, what: str) -> None:
    if not 0 <= value <= 1:
        raise RecipeError(f"{what} is in [0, 1], got {value}")
