"""The zero-shot method as a `Grounder`: a frozen video MLLM and a proposal provider.

    g = load_zero_shot("pico-base")                        # offline, with motion proposals
    g.ground("clip.mp4", "the red circle that spins")

encode() decodes, reads the video into the model and makes the proposals, once; every sentence then is a forward of two
questions. Confidence is the share of the chosen track among the scores of all tracks (of two equal ones 0.5).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from tubelet import __version__
from tubelet.errors import ModelError, QueryError, TubeletError
from tubelet.frames import Clip, FrameGrid
from tubelet.mllm.parts import Mllm, Prefix, VisualTokens
from tubelet.proposals import Tracks, propose_tracks
from tubelet.proposals.store import video_hash
from tubelet.spacevllm.prompts import check_query
from tubelet.tube import Prediction, Span, Tube
from tubelet.video import Video, open_video, read_clip, sample_uniform
from tubelet.zeroshot.decompose import SubQueries, by_rules
from tubelet.zeroshot.method import Choice, choose
from tubelet.zeroshot.scoring import box_weights
from tubelet.zeroshot.settings import ZeroShotSettings

Source = str | Path | Video | Clip
TASKS = ("stvg", "tvg", "svg", "rec")


@dataclass(frozen=True, slots=True)
class EncodedVideo:
    """A video as the model read it, and its proposals on the map's steps; only the model that made it can use it.

    grid: one moment per step of the map. weights: (P, T, h, w) of the tracks.
    """

    name: str
    grid: FrameGrid
    is_image: bool
    visual: VisualTokens
    prefix: Prefix
    tracks: Tracks
    weights: Any
    model: tuple[str, str]
    timings_s: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def load_zero_shot(
    model: str | Path = "pico-base",
    proposals: str = "motion",
    settings: ZeroShotSettings = ZeroShotSettings(),
    device: str | None = None,
    dtype: str | None = None,
    **proposal_settings: Any,
) -> ZeroShotGrounder:
    """Load a video MLLM (embedded name, folder or hub id) for grounding without training."""
    from tubelet.mllm.loading import load_mllm

    return ZeroShotGrounder(load_mllm(model, device, dtype), proposals, settings, **proposal_settings)


class ZeroShotGrounder:
    """Not thread-safe; its states are immutable and may be kept and reused."""

    tasks = TASKS

    def __init__(
        self,
        mllm: Mllm,
        proposals: str = "motion",
        settings: ZeroShotSettings = ZeroShotSettings(),
        **proposal_settings: Any,
    ) -> None:
        self.mllm, self.proposals, self.settings = mllm, proposals, settings
        self.proposal_settings = proposal_settings
        self.name, self.revision = f"{mllm.name}, zero-shot", mllm.revision

    @property
    def max_frames(self) -> int:
        return self.settings.frames

    # --- encode --------------------------------------------------------------------------------

    def encode(self, video: Source, window: Span | None = None, tracks: Tracks | None = None) -> EncodedVideo:
        """Decode, read, propose. tracks: proposals made before; DataError when they are of another video."""
        start = time.perf_counter()
        if isinstance(video, Clip):
            name, whole, clip = "clip", video, video
            keep = np.unique(
                np.linspace(0, len(video) - 1, min(len(video), self.max_frames)).round().astype(int)
            )
            if len(keep) < len(video):
                grid = video.grid
                part = replace(grid, frame_index=grid.frame_index[keep], times_s=grid.times_s[keep])
                clip = Clip(video.pixels[keep], part)
            source: Video | Clip = whole
        else:
            source = video if isinstance(video, Video) else open_video(video)
            name = str(source.path)
            clip = read_clip(source, sample_uniform(source, self.max_frames, window))
        decoded = time.perf_counter()
        visual = self.mllm.encode(clip)
        steps = visual.grid
        middle = steps.frames[:, steps.frames.shape[1] // 2]
        grid = replace(
            clip.grid, frame_index=clip.grid.frame_index[middle], times_s=clip.grid.times_s[middle]
        )
        prefix = self.mllm.prefix(visual)
        read = time.perf_counter()
        if tracks is None:
            tracks = propose_tracks(self.proposals, source, **self.proposal_settings)
        else:
            tracks.check_hash(video_hash(source))
        placed = tracks.on_grid(grid)
        weights = box_weights(placed.boxes_xyxy, placed.visible, (steps.n_rows, steps.n_columns))
        timings = {
            "decode_s": decoded - start,
            "encode_s": read - decoded,
            "proposals_s": time.perf_counter() - read,
        }
        me = (self.name, self.revision)
        notes = [*tracks.notes]
        if tracks.n_clipped:
            notes.append(f"{tracks.n_clipped} boxes of the proposals left the frame and were cut")
        return EncodedVideo(
            name, grid, len(clip) == 1, visual, prefix, placed, weights, me, timings, tuple(notes)
        )

    # --- ask -----------------------------------------------------------------------------------

    def ground(
        self,
        video: Source | EncodedVideo,
        query: str,
        task: str | None = None,
        span: Span | None = None,
        span_reader: str | None = None,
    ) -> Prediction:
        """When and where one sentence is true; `task` defaults to stvg (rec for an image). svg needs `span`."""
        check_query(query)
        return self.ground_many(video, [query], task, span, span_reader)[0]

    def ground_many(
        self,
        video: Source | EncodedVideo,
        queries: Sequence[str],
        task: str | None = None,
        span: Span | Sequence[Span | None] | None = None,
        span_reader: str | None = None,
    ) -> list[Prediction]:
        """One after another on the video that was read once. A query that fails is a prediction with its failure."""
        state = video if isinstance(video, EncodedVideo) else self.encode(video)
        if state.model != (self.name, self.revision):
            raise ModelError(
                f"this video was encoded by {state.model[0]}, not by {self.name}: encode it again"
            )
        task = task or ("rec" if state.is_image else "stvg")
        if task not in TASKS:
            raise QueryError(f"the zero-shot method takes {', '.join(TASKS)}, got task {task!r}")
        if span_reader is not None:
            raise QueryError("span_reader chooses among heads of a SpaceVLLM; the zero-shot method has none")
        spans = [span] * len(queries) if span is None or isinstance(span, Span) else list(span)
        if len(spans) != len(queries):
            raise QueryError(f"one span per sentence is needed, got {len(spans)} for {len(queries)}")
        return [self._one(state, query, task, given) for query, given in zip(queries, spans, strict=True)]

    def ask(self, video: Source | EncodedVideo, question: str, max_new_tokens: int = 64) -> str:
        """A free answer in words."""
        state = video if isinstance(video, EncodedVideo) else self.encode(video)
        return self.mllm.write(question, max_new_tokens, state.prefix)

    def _one(self, state: EncodedVideo, query: str, task: str, span: Span | None) -> Prediction:
        start = time.perf_counter()
        try:
            text = check_query(query)
            if task == "svg" and span is None:
                raise QueryError(
                    "task svg asks where something is in a given span: give span=Span(start_s, end_s)"
                )
            parts = by_rules(text)
            found = choose(self.mllm, state.visual, state.prefix, state.weights, text, parts, self.settings)
            return self._prediction(state, text, task, span, parts, found, time.perf_counter() - start)
        except TubeletError as error:
            return Prediction(state.name, str(query), task, failure=str(error))

    def _prediction(
        self,
        state: EncodedVideo,
        query: str,
        task: str,
        span: Span | None,
        parts: SubQueries,
        found: Choice,
        seconds: float,
    ) -> Prediction:
        common: dict[str, Any] = {
            "grid": state.grid,
            "timings_s": {**state.timings_s, "answer_s": seconds},
            "provenance": {
                "method": "zero-shot",
                "model": self.mllm.name,
                "revision": self.revision,
                "tubelet": __version__,
                "proposals": state.tracks.provider,
                "n_proposals": len(state.tracks),
                "token": found.token,
                "split_by": parts.source,
                "consistency": found.consistency,
            },
            "notes": (*state.notes, *([parts.note] if parts.note else [])),
        }
        if found.track is None:
            return Prediction(
                state.name,
                query,
                task,
                failure=f"no proposals: {state.tracks.provider} found nothing",
                **common,
            )
        total = float(found.scores.sum())
        sure = float(found.scores[found.track]) / total if total > 0 else 0.0
        if found.scores[found.track] < self.settings.absent_below:
            return Prediction(state.name, query, task, confidence=sure, **common)
        edges = state.grid.cell_edges_s()
        if span is None:
            span = (
                Span(0.0, state.grid.duration_s)
                if state.is_image
                else Span(float(edges[found.first]), float(edges[found.last + 1]))
            )
        tube = _tube(state, found.track, span, sure, query, with_boxes=task != "tvg")
        return Prediction(state.name, query, task, (tube,), confidence=sure, **common)


def _tube(
    state: EncodedVideo, track: int, span: Span, score: float, label: str, with_boxes: bool = True
) -> Tube:
    """The track's boxes inside the span; the nearest one it has, where it has none there."""
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
