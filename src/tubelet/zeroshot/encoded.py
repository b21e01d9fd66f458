"""A video as the zero-shot method keeps it, and what is read off it: spans, tubes, whether two tracks are one target.

Proposals are in it from the start, or wait for a sentence that says what to look for (`Later`). Of a model only how it
reads a video backwards (`backwards`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from tubelet.frames import Clip, FrameGrid
from tubelet.mllm.parts import Mllm, Prefix, VisualGrid, VisualTokens
from tubelet.proposals import NEED_PHRASES, Tracks
from tubelet.tube import Span, Tube
from tubelet.video import Video

FloatArray = npt.NDArray[np.float64]
_SAME_PLACE = 0.5  # mean IoU from which two tracks are one target


@dataclass(frozen=True, slots=True)
class EncodedVideo:
    """A video as the model read it, and its proposals; only the model that made it can use it.

    grid: the F frames that the model read. edges_s: (T + 1,) the borders in time of the map's steps, each of which
    stands for one frame or several (`visual.grid.frames`). tracks: on that grid. weights: (P, T, h, w) of the tracks.
    dense: the same tracks on the grid they were made on, small gaps filled; the boxes of answers. sampled: how the
    frames were chosen (`ZeroShotSettings.sampling`, "cells" where proposals have no frames of their own). clip: the
    frames, kept only for models whose steps mix frames (the reversed video must be encoded again). later: proposals
    that wait for a sentence; there are no tracks then.
    """

    name: str
    grid: FrameGrid
    edges_s: FloatArray
    is_image: bool
    visual: VisualTokens
    prefix: Prefix
    tracks: Tracks
    weights: Any
    model: tuple[str, str]
    timings_s: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    dense: Tracks | None = None
    clip: Clip | None = None
    later: Later | None = None
    sampled: str = "cells"


@dataclass(frozen=True, slots=True, eq=False)
class Later:
    """Where proposals will be looked for. read: the frames that the model read. found: the video with its proposals,
    by the phrases that were looked for; it grows as sentences come."""

    source: Video | Clip
    read: FrameGrid
    found: dict[tuple[str, ...], EncodedVideo] = field(default_factory=dict)


def step_edges_s(steps: VisualGrid, read: FrameGrid) -> FloatArray:
    """(T + 1,) borders in time of a map's steps: a step lasts as long as all of its frames stand for."""
    edges = read.cell_edges_s()
    borders: FloatArray = np.append(edges[steps.frames[:, 0]], edges[steps.frames[-1, -1] + 1])
    return borders


def backwards(mllm: Mllm, visual: VisualTokens, clip: Clip | None) -> VisualTokens:
    """The reversed video: step t shows the frames of step T - 1 - t, in cells of the same size.

    clip: the frames, for a model whose steps mix frames; None: the tokens are flipped. Times and labels stay where
    they are (docs of `VisualTokens.flipped`): only what is seen goes backwards.
    """
    if clip is None:
        return visual.flipped()
    order = visual.grid.frames.reshape(-1)[::-1]
    times = np.linspace(0.0, clip.grid.duration_s, len(order), endpoint=False)
    grid = replace(clip.grid, frame_index=np.arange(len(order)), times_s=times)
    # an odd clip becomes one frame longer, and some models would then read all frames smaller
    turned = mllm.encode(Clip(clip.pixels[order], grid), like=clip)
    return replace(turned, grid=visual.grid)


def span_of(state: EncodedVideo, first: int, last: int) -> Span:
    """The time of steps first to last; all of an image."""
    if state.is_image:
        return Span(0.0, state.grid.duration_s)
    return Span(float(state.edges_s[first]), float(state.edges_s[last + 1]))


def same_target(state: EncodedVideo, a: int, b: int) -> bool:
    """Do two proposals follow one thing? By mean IoU of their boxes where both are seen."""
    from tubelet.metrics.boxes import paired_iou

    tracks = state.dense or state.tracks
    one, two = tracks[a], tracks[b]
    both = one.visible & two.visible
    if not both.any():
        return False
    return float(paired_iou(one.boxes_xyxy[both], two.boxes_xyxy[both]).mean()) >= _SAME_PLACE


def tube_of(
    state: EncodedVideo, track: int, span: Span, score: float, label: str, with_boxes: bool = True
) -> Tube:
    """The track's boxes inside the span; the nearest one it has, where it has none there."""
    tracks = state.dense or state.tracks
    chosen, times = tracks[track], tracks.grid.times_s
    if not chosen.visible.any():
        chosen, times = state.tracks[track], state.grid.times_s
    if not with_boxes:
        return Tube(span, score=score, label=label)
    keep = chosen.visible & (times >= span.start_s) & (times <= span.end_s)
    if keep.any():
        return Tube(span, times[keep], chosen.boxes_xyxy[keep], score=score, label=label)
    seen = np.nonzero(chosen.visible)[0]
    middle = (span.start_s + span.end_s) / 2
    nearest = int(seen[np.abs(times[seen] - middle).argmin()])
    return Tube(span, np.array([middle]), chosen.boxes_xyxy[nearest : nearest + 1], score=score, label=label)


def nothing_found(state: EncodedVideo) -> str:
    """Why there is nothing to choose from, and what to do."""
    provider = state.tracks.provider or "the tracks that were given"
    looked = ", ".join(state.tracks.settings.get("phrases") or ())
    where = "picture" if state.is_image else "video"
    if provider == "motion":
        hint = "a provider that detects what it is told (owlv2, grounding-dino-sam2, sam3) may"
        return f"no proposals: motion found nothing in this {where} that stands out or moves; {hint}"
    if provider in NEED_PHRASES:
        return f"no proposals: {provider} found nothing for {looked!r}: give other phrases, or lower its threshold"
    return f"no proposals: {provider} found nothing in this {where}"
