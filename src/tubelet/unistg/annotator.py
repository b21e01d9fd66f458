"""Annotator: phrases of one video -> boxes per sampled frame of their coarse spans (Uni-STG, stage 2).

All phrases of a video go together: the video is opened, hashed and decoded once, over the union of their spans, and
the provider is asked once. Which of the tracks a phrase means is `match.py`. Boxes with confidence below 0.3 are left
out; of thousands in one frame the best `max_boxes_per_frame` are kept and the others counted.

A video that cannot be read, or on which the provider fails, gives Drops with the reason ("no-video", "broken-video",
"provider-failed") for its phrases and nothing else stops. What cannot be written (OutputError) and settings that make
no sense (RecipeError) are not about one video: they are raised.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from tubelet.config_io import to_dict
from tubelet.errors import (
    DataError,
    ModelError,
    OutputError,
    QueryError,
    RecipeError,
    TubeletError,
    VideoError,
)
from tubelet.frames import Clip, FrameGrid
from tubelet.grounder import Grounder
from tubelet.proposals import PROVIDERS, propose_tracks
from tubelet.proposals.store import video_hash
from tubelet.proposals.track import Tracks
from tubelet.tube import Span
from tubelet.unistg.match import (
    Matched,
    by_colour,
    by_label,
    by_tube,
    colour_of,
    colour_shares,
    largest,
    only,
)
from tubelet.unistg.recipe import AnnotatorSettings
from tubelet.unistg.records import Detected, Drop, Phrase
from tubelet.video import Video, open_video, read_clip, sample_indices, sample_rate

Propose = Callable[..., Tracks]
STAGE = "annotator"
_COLOUR_FRAMES = 6
_COLOUR_SIDE = 128


@dataclass(frozen=True, slots=True)
class Annotator:
    """Settings with the provider and, for match "grounder", the model ready; `load_annotator` makes one."""

    settings: AnnotatorSettings
    propose: Propose
    grounder: Grounder | None = None

    @property
    def name(self) -> str:
        """Provider and settings in one line, for provenance."""
        plain = {k: v for k, v in to_dict(self.settings).items() if k not in ("provider", "cache")}
        if self.settings.match != "grounder":
            plain.pop("grounder")
        return f"{self.settings.provider} {json.dumps(plain, sort_keys=True)}"


def load_annotator(settings: AnnotatorSettings) -> Annotator:
    """Raises RecipeError for an unknown provider, ModelError for a grounder that is not there."""
    grounder: Grounder | None = None
    if settings.match == "grounder":
        from tubelet.grounder import load

        grounder = load(settings.grounder)
    if settings.provider in PROVIDERS:
        return Annotator(settings, _builtin(settings), grounder)
    module, colon, name = settings.provider.partition(":")
    if not colon:
        raise RecipeError(
            f"there is no proposal provider {settings.provider!r}: it is one of {', '.join(PROVIDERS)}, or "
            '"package.module:function"'
        )
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise RecipeError(f"there is no provider {settings.provider!r} (module:function): {error}") from error
    return Annotator(settings, _own(function, settings), grounder)


def annotate_file(
    phrases: Sequence[Phrase], folder: Path | str, annotator: Annotator
) -> list[Detected | Drop]:
    """`annotate` on the video that the phrases name, below `folder`; one answer per phrase, in order."""
    if len({p.caption.video for p in phrases}) > 1:
        raise DataError("annotate_file takes the phrases of one video; `annotate_all` takes any")
    if not phrases:
        return []
    try:
        path = video_path(phrases[0].caption.video, folder)
        if not path.is_file():
            return _drop_all(phrases, "no-video", f"there is no {phrases[0].caption.video}")
        video = open_video(path)
    except (VideoError, DataError, OSError) as error:
        return _drop_all(phrases, "broken-video", str(error))
    return annotate(phrases, video, annotator)


def annotate_all(
    phrases: Sequence[Phrase], folder: Path | str, annotator: Annotator
) -> Iterator[Detected | Drop]:
    """Phrases of any videos, video by video in the order in which they first appear."""
    groups: dict[str, list[Phrase]] = {}
    for phrase in phrases:
        groups.setdefault(normal_video(phrase.caption.video, folder), []).append(phrase)
    for group in groups.values():
        first = group[0].caption.video
        same = [p if p.caption.video == first else _renamed(p, first) for p in group]
        yield from annotate_file(same, folder, annotator)


def annotate(phrases: Sequence[Phrase], source: Video | Clip, annotator: Annotator) -> list[Detected | Drop]:
    """One Detected or Drop per phrase, in order, all of one video or clip."""
    from tubelet.proposals.detections import (
        CRASHES,
    )  # it loads torch, which stages without a model do not need

    settings = annotator.settings
    duration_s = source.grid.duration_s if isinstance(source, Clip) else source.duration_s
    spans = [p.caption.span.clip(0.0, duration_s) for p in phrases]
    out: list[Detected | Drop] = [
        Drop(p.key, STAGE, "span-outside-video", _outside(p, duration_s)) for p in phrases
    ]
    asked = [(k, p, span) for k, (p, span) in enumerate(zip(phrases, spans, strict=True)) if span is not None]
    if not asked:
        return out
    try:
        grid = _grid(source, [span for _, _, span in asked], settings.look_fps)
        tracks = annotator.propose(source, list(dict.fromkeys(p.text for _, p, _ in asked)), grid)
        if tracks.grid != grid:
            tracks = tracks.on_grid(grid)
        of_video = tracks.video_hash or video_hash(source)
        colours = _colours([p for _, p, _ in asked], source, tracks, settings)
        for k, phrase, span in asked:
            inside = np.asarray(span.contains(grid.times_s), dtype=np.bool_)
            matched = _match(phrase, span, source, tracks, inside, colours, annotator)
            out[k] = _detected(phrase, span, matched, grid, inside, annotator, of_video)
    except (OutputError, RecipeError):
        raise
    except (VideoError, DataError) as error:
        reason = "broken-video" if isinstance(error, VideoError) else "provider-failed"
        return _failed(out, asked, reason, error)
    except (QueryError, OSError, MemoryError, *CRASHES) as error:  # a ModelError is no matter of this video
        return _failed(out, asked, "provider-failed", error)
    return out


def normal_video(video: str, folder: Path | str) -> str:
    """One spelling per video: "./a/b.mp4", "a//b.mp4", "a\\\\b.mp4" and its absolute path are "a/b.mp4".

    Paths that lead out of the folder stay absolute or keep their dots: `video_path` refuses the latter.
    """
    plain = video.replace("\\", "/")
    root = str(Path(folder).absolute()).replace("\\", "/").rstrip("/")
    if plain.startswith(root + "/"):
        plain = plain[len(root) + 1 :]
    return os.path.normpath(plain).replace("\\", "/")


def video_path(video: str, folder: Path | str) -> Path:
    """Where a caption's video lies. Raises DataError for relative paths that lead out of the folder."""
    name = normal_video(video, folder)
    if ".." in PurePosixPath(name).parts:
        raise DataError(f"the video {video!r:.120} leads out of the videos' folder")
    return Path(folder) / name


def _detected(
    phrase: Phrase,
    span: Span,
    matched: Sequence[Matched],
    grid: FrameGrid,
    inside: Any,
    annotator: Annotator,
    of_video: str,
) -> Detected | Drop:
    settings = annotator.settings
    rows = _sampled(grid, span, settings.fps)
    if not len(rows):
        return Drop(phrase.key, STAGE, "no-frames", f"no frame in {span.start_s:g}-{span.end_s:g} s")
    boxes, scores, ids, n_cut = [], [], [], 0
    for row in rows.tolist():
        seen = [m for m in matched if m.track.visible[row] and m.scores[row] >= settings.min_confidence]
        n_cut += max(0, len(seen) - settings.max_boxes_per_frame)
        if len(seen) > settings.max_boxes_per_frame:
            best = sorted(seen, key=lambda m: (-m.scores[row], m.track.track_id))
            seen = best[: settings.max_boxes_per_frame]
        boxes.append(np.array([m.track.boxes_xyxy[row] for m in seen], dtype=np.float64).reshape(-1, 4))
        scores.append(np.array([m.scores[row] for m in seen], dtype=np.float64))
        ids.append(np.array([m.track.track_id for m in seen], dtype=np.int64))
    if not any(len(s) for s in scores):
        what = (
            f"{phrase.text!r} was not found in {len(rows)} frames with confidence {settings.min_confidence:g}"
        )
        return Drop(phrase.key, STAGE, "not-found", what)
    low_s, high_s = np.round((span.start_s, span.end_s), 6).tolist()
    return Detected(  # rounded as files have it: a chain of files and a build judge the same numbers
        phrase,
        np.round(grid.times_s[rows], 6),
        tuple(np.round(b, 6) for b in boxes),
        tuple(np.round(s, 6) for s in scores),
        tuple(ids),
        annotator.name,
        of_video,
        Span(low_s, high_s) if high_s > low_s else span,
        n_cut,
    )


def _match(
    phrase: Phrase,
    span: Span,
    source: Video | Clip,
    tracks: Tracks,
    inside: Any,
    colours: dict[str, Any],
    annotator: Annotator,
) -> list[Matched]:
    how = annotator.settings.match
    if how == "provider":
        return by_label(tracks, phrase.text)
    if how == "colour":
        return by_colour(tracks, inside, phrase.text, colours)
    if how == "grounder":
        assert annotator.grounder is not None
        return by_tube(
            tracks, inside, annotator.grounder.ground(source, phrase.caption.text, "stvg").tube, span
        )
    return largest(tracks, inside) if how == "largest" else only(tracks, inside)


def _grid(source: Video | Clip, spans: Sequence[Span], fps: float) -> FrameGrid:
    """The frames to look at: those in any of the spans, in order."""
    if isinstance(source, Clip):
        return source.grid
    chosen = np.concatenate([sample_rate(source, fps, span).frame_index for span in spans])
    return sample_indices(source, np.unique(chosen))


def _sampled(grid: FrameGrid, span: Span, fps: float) -> Any:
    """Rows of the grid in the span, `fps` per second of it."""
    rows = np.nonzero(np.asarray(span.contains(grid.times_s)))[0]
    if not len(rows):
        return rows
    moments = np.arange(span.start_s, span.end_s, 1.0 / fps)
    near = grid.nearest(moments + min(0.5 / fps, span.duration_s / 2))
    return np.unique(near[(near >= rows[0]) & (near <= rows[-1])])


def _colours(
    phrases: Sequence[Phrase], source: Video | Clip, tracks: Tracks, settings: AnnotatorSettings
) -> Any:
    if settings.match != "colour" or not len(tracks):
        return {c: np.zeros(0) for c in map(_colour, phrases) if c}
    colours = list(dict.fromkeys(c for c in map(_colour, phrases) if c))
    if not colours:
        return {}
    rows = np.unique(np.linspace(0, len(tracks.grid) - 1, _COLOUR_FRAMES).round().astype(int))
    # a frame per track, too: a thing that is there for a moment has a colour
    rows = np.unique(
        np.concatenate([rows, [t.rows[len(t.rows) // 2] for t in tracks if len(t.rows)]]).astype(int)
    )
    index = tracks.grid.frame_index[rows]
    if isinstance(source, Clip):
        chosen = FrameGrid(
            index, tracks.grid.times_s[rows], source.grid.fps, source.grid.duration_s,
            source.grid.width, source.grid.height,
        )  # fmt: skip
        return colour_shares(Clip(source.pixels[rows], chosen), tracks, colours)
    scale = min(1.0, _COLOUR_SIDE / min(source.width, source.height))
    size = (max(16, 2 * round(source.width * scale / 2)), max(16, 2 * round(source.height * scale / 2)))
    return colour_shares(read_clip(source, sample_indices(source, index), size), tracks, colours)


def _colour(phrase: Phrase) -> str | None:
    return colour_of(phrase.text)


def _builtin(settings: AnnotatorSettings) -> Propose:
    def propose(source: Video | Clip, phrases: Sequence[str], grid: FrameGrid) -> Tracks:
        return propose_tracks(
            settings.provider,
            source,
            phrases,
            grid=None if isinstance(source, Clip) else grid,
            cache=settings.cache,
            **settings.options,
        )

    return propose


def _own(function: Callable[..., Tracks], settings: AnnotatorSettings) -> Propose:
    def propose(source: Video | Clip, phrases: Sequence[str], grid: FrameGrid) -> Tracks:
        tracks = function(source, phrases, grid, **settings.options)
        if not isinstance(tracks, Tracks):
            raise ModelError(f"{settings.provider} must return Tracks, got {type(tracks).__name__}")
        return tracks

    return propose


def _failed(
    out: list[Detected | Drop], asked: Sequence[tuple[int, Phrase, Span]], reason: str, error: BaseException
) -> list[Detected | Drop]:
    said = " ".join(str(error).split())[:300]
    detail = said if isinstance(error, TubeletError) else f"{type(error).__name__}: {said}"
    for k, phrase, _ in asked:
        out[k] = Drop(phrase.key, STAGE, reason, detail)
    return out


def _drop_all(phrases: Sequence[Phrase], reason: str, detail: str) -> list[Detected | Drop]:
    return [Drop(p.key, STAGE, reason, detail) for p in phrases]


def _outside(phrase: Phrase, duration_s: float) -> str:
    span = phrase.caption.span
    return f"the span {span.start_s:g}-{span.end_s:g} s lies outside a video of {duration_s:g} s"


def _renamed(phrase: Phrase, video: str) -> Phrase:
    from dataclasses import replace

    return replace(phrase, caption=replace(phrase.caption, video=video))
