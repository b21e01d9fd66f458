"""The zero-shot method as a `Grounder`: a frozen video MLLM and a proposal provider.

    g = load_zero_shot("pico-base")                        # offline, with motion proposals
    g.ground("clip.mp4", "the red circle that spins")

encode() decodes, reads the video into the model and makes the proposals, once; every sentence then is a forward of two
questions. A provider that must be told what to look for, and was told nothing, looks for the subject of each sentence
when it is asked, once per subject. Confidence is how surely the model says yes to the question, the score of a tube is
the share of its track among the scores of all tracks (answers.py).
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tubelet.errors import ModelError, QueryError, TubeletError
from tubelet.frames import Clip, FrameGrid
from tubelet.mllm.memory import memory_guard
from tubelet.mllm.parts import Mllm
from tubelet.proposals import NEED_PHRASES, Tracks, check_provider, fill_gaps, propose_tracks
from tubelet.proposals.source import DEFAULT_FPS
from tubelet.proposals.store import video_hash
from tubelet.spacevllm.domain import Domain, domain_note, load_domain
from tubelet.spacevllm.prompts import check_query
from tubelet.tube import Prediction, Span
from tubelet.video import Video, open_video, read_clip_report, sample_indices, sample_rate
from tubelet.zeroshot.answers import answer, common_fields
from tubelet.zeroshot.crashes import named_crashes
from tubelet.zeroshot.decompose import SubQueries, by_rules, phrases_of
from tubelet.zeroshot.encoded import EncodedVideo, Later, backwards, same_target, step_edges_s
from tubelet.zeroshot.method import Choice, choose
from tubelet.zeroshot.regions import scores_per_frame, weights_on_steps
from tubelet.zeroshot.sampling import frames_to_read, grid_of_files, rows_to_read
from tubelet.zeroshot.settings import ZeroShotSettings, settings_for
from tubelet.zeroshot.splitting import Endpoint, Splitter, make_splitter

Source = str | Path | Video | Clip
TASKS = ("stvg", "tvg", "svg", "rec")
_FULL_SIZE = "--model Qwen/Qwen2.5-VL-7B-Instruct --proposals grounding-dino-sam2"  # for any footage
_LESS_MEMORY = "read fewer frames, lower max_frame_tokens, or give fewer proposals"
_LONGEST_GAP_S = 1.0  # boxes are interpolated over gaps up to here (key frames, short occlusions)


def load_zero_shot(
    model: str | Path = "pico-base",
    proposals: str = "motion",
    settings: Mapping[str, Any] | ZeroShotSettings | None = None,
    device: str | None = None,
    dtype: str | None = None,
    split: str | Endpoint = "rules",
    cache: str | Path | None = None,
    max_frame_tokens: int | None = None,
    layout: str = "trained",
    proposal_model: str | None = None,
    preset: str = "tubelet",
    **proposal_settings: Any,
) -> ZeroShotGrounder:
    """Load a video MLLM (embedded name, folder or hub id) for grounding without training.

    settings: changes ({"token": "relative"}) of `preset` and of what the model's folder says (`settings_for` tells
    what wins); or a whole ZeroShotSettings, which is taken as it is, whatever the folder says.
    split: who makes sub-queries for tuning: "rules", "model" or an `Endpoint`. cache: folder for sub-queries and
    proposals. max_frame_tokens, layout: as in `load_mllm`. proposal_settings: of `propose_tracks` (phrases, ...).
    Without phrases, a provider that needs some looks for the subject of each sentence ("man"). proposal_model: the
    setting `model` of owlv2 and sam3 (here `model` is the video MLLM). device: also of a provider that has one.
    """
    from tubelet.grounder import find_model
    from tubelet.mllm.loading import load_mllm

    if proposal_model is not None:
        proposal_settings["model"] = proposal_model
    if device is not None and proposals in NEED_PHRASES:
        proposal_settings.setdefault("device", device)
    check_provider(proposals, proposal_settings)
    if not isinstance(settings, ZeroShotSettings):
        settings = settings_for(find_model(model) if layout == "trained" else None, settings, preset)
    elif preset != "tubelet":
        raise QueryError(
            f"whole settings are taken as they are: give changes to the preset {preset}, or no preset"
        )
    mllm = load_mllm(model, device, dtype, max_frame_tokens, layout)
    folder = None if cache is None else Path(cache).expanduser()
    if folder is not None:
        proposal_settings.setdefault("cache", folder / "tracks")
    splitter = make_splitter(split, mllm, None if folder is None else folder / "sub-queries")
    grounder = ZeroShotGrounder(mllm, proposals, settings, splitter, **proposal_settings)
    grounder.split_by = split if isinstance(split, str) else f"endpoint, {split.model}"
    where = find_model(model)
    knows, domain = _what_it_knows(where), load_domain(where)
    if knows is not None and domain is not None:
        grounder.domain = Known(domain, knows, int(mllm.model.config.vision_config.image_size))
    elif knows is not None:
        grounder.about = (
            f"{Path(mllm.name).name} is a small model that knows only {knows}; for other footage load a full-size "
            "video MLLM (for example Qwen/Qwen2.5-VL-7B-Instruct)"
        )
    return grounder


def _what_it_knows(folder: Path) -> str | None:
    """The small domain that a model was made for, as its tubelet.json says; None for the others."""
    from tubelet.spacevllm.checkpoint import chat_settings

    told = chat_settings(folder)
    return (told.domain or None) if told is not None else None


@dataclass(frozen=True, slots=True)
class Known:
    """What the footage of a small model looks like: statistics of pictures of `side` x `side` pixels (domain.py)."""

    domain: Domain
    name: str
    side: int

    def note(self, clip: Clip) -> str | None:
        """One sentence about a clip that looks like something else, else None."""
        from PIL import Image

        pictures = [
            np.asarray(Image.fromarray(p).resize((self.side, self.side), Image.Resampling.BICUBIC))
            for p in clip.pixels
        ]
        return domain_note(self.domain, np.stack(pictures), self.name, _FULL_SIZE)


class ZeroShotGrounder:
    """Not thread-safe; its states are immutable and may be kept and reused."""

    tasks = TASKS

    def __init__(
        self,
        mllm: Mllm,
        proposals: str = "motion",
        settings: ZeroShotSettings = ZeroShotSettings(),
        splitter: Splitter = by_rules,
        **proposal_settings: Any,
    ) -> None:
        self.splitter = splitter
        self.mllm, self.proposals, self.settings = mllm, proposals, settings
        self.proposal_settings = proposal_settings
        self.name, self.revision = f"{mllm.name}, zero-shot", mllm.revision
        self.split_by = "rules" if splitter is by_rules else "a function"
        self.about: str | None = None  # a note for every answer: what a small model knows
        self.domain: Known | None = None  # else: how to tell by the footage whether there is one

    @property
    def max_frames(self) -> int:
        most = self.mllm.capabilities.max_frames
        return self.settings.frames if most is None else min(most, self.settings.frames)

    @property
    def sampling(self) -> dict[str, Any]:
        """For a run's card (JSON): what answers depend on beside the weights. Files and folders by their last name."""
        own = {key: value for key, value in self.proposal_settings.items() if key not in ("cache", "device")}
        for key, value in own.items():
            if isinstance(value, str | Path) and (key == "path" or Path(value).expanduser().exists()):
                own[key] = Path(value).name
            elif isinstance(value, FrameGrid):
                own[key] = value.to_dict()
        told = {
            "frames": "uniform",
            "max_frames": self.max_frames,
            "zero_shot": asdict(self.settings),
            "split": self.split_by,
            "proposals": {"provider": self.proposals, **own},
        }
        return dict(json.loads(json.dumps(told)))

    # --- encode --------------------------------------------------------------------------------

    def encode(self, video: Source, window: Span | None = None, tracks: Tracks | None = None) -> EncodedVideo:
        """Decode, read, propose. tracks: proposals made before; DataError when they are of another video."""
        source = video if isinstance(video, Video | Clip) else open_video(video)
        with named_crashes("reading this video"):
            return self._encode(source, window, tracks)

    def _encode(self, source: Video | Clip, window: Span | None, tracks: Tracks | None) -> EncodedVideo:
        start = time.perf_counter()
        notes: list[str] = []
        if tracks is not None:
            tracks.check_hash(video_hash(source))
        own = self._frames_of_proposals(source, tracks)
        if isinstance(source, Clip):
            name, clip, grid = "clip", source, source.grid
            rows = rows_to_read(source, self.max_frames, own)
            if len(rows) < len(source):
                part = replace(grid, frame_index=grid.frame_index[rows], times_s=grid.times_s[rows])
                clip = Clip(source.pixels[rows], part)
        else:
            name = str(source.path)
            clip, report = read_clip_report(source, frames_to_read(source, self.max_frames, window, own))
            notes += report.notes
        strange = None if self.domain is None else self.domain.note(clip)
        notes += [strange] if strange else []
        decoded = time.perf_counter()
        visual = self.mllm.encode(clip)
        steps = visual.grid
        prefix = self.mllm.prefix(visual)
        read = time.perf_counter()
        state = EncodedVideo(
            name,
            clip.grid,
            step_edges_s(steps, clip.grid),
            len(clip) == 1,
            visual,
            prefix,
            Tracks(clip.grid, provider=self.proposals),
            np.zeros((0, *steps.shape)),
            (self.name, self.revision),
            {"decode_s": decoded - start, "encode_s": read - decoded, "proposals_s": 0.0},
            notes=tuple(notes),
            clip=None if steps.one_frame_per_step else clip,
            sampled="cells" if own is None else "published",
        )
        if tracks is None:
            if self.proposals in NEED_PHRASES and not self.proposal_settings.get("phrases"):
                return replace(state, later=Later(source, clip.grid))
            tracks = self._propose(source, clip.grid, own=own)
        return self._with_tracks(state, tracks, time.perf_counter() - read)

    def _frames_of_proposals(self, source: Video | Clip, tracks: Tracks | None) -> FrameGrid | None:
        """For published sampling, where proposals are there before the video is read: given, or in files."""
        if self.settings.sampling != "published":
            return None
        if tracks is not None:
            return tracks.grid
        return grid_of_files(source, self.proposal_settings) if self.proposals == "files" else None

    def _with_tracks(self, state: EncodedVideo, tracks: Tracks, seconds: float) -> EncodedVideo:
        """The video with these proposals, on the frames that the model read and weighed in the steps of its map."""
        filled = tuple(fill_gaps(track, tracks.grid, _LONGEST_GAP_S) for track in tracks)
        dense = replace(tracks, tracks=filled)
        placed = dense.on_grid(state.grid)
        chosen = self._for_model
        notes = [*state.notes, *(placed if chosen.region == "mask" else tracks).notes]
        if tracks.n_clipped:
            notes.append(f"{tracks.n_clipped} boxes of the proposals left the frame and were cut")
        return replace(
            state,
            tracks=placed,
            weights=weights_on_steps(placed, dense, state.visual.grid, state.edges_s, chosen),
            timings_s={**state.timings_s, "proposals_s": seconds},
            notes=tuple(notes),
            dense=dense,
            later=None,
        )

    def _looked_for(self, state: EncodedVideo, later: Later, text: str) -> EncodedVideo:
        """The video with proposals of what the sentence is about, made once for each such thing."""
        wanted = phrases_of(text)
        if wanted.phrases not in later.found:
            start = time.perf_counter()
            tracks = self._propose(later.source, later.read, wanted.phrases)
            found = self._with_tracks(state, tracks, time.perf_counter() - start)
            notes = (*found.notes, wanted.note) if wanted.note else found.notes
            later.found[wanted.phrases] = replace(found, notes=notes)
        return later.found[wanted.phrases]

    @property
    def _for_model(self) -> ZeroShotSettings:
        capabilities = self.mllm.capabilities
        return self.settings.for_model(capabilities.family, capabilities.n_layers)

    def _propose(
        self, source: Video | Clip, read: FrameGrid, phrases: Sequence[str] = (), own: FrameGrid | None = None
    ) -> Tracks:
        """Proposals on the usual frames and on those that the model reads, so that masks meet its steps; or on frames
        of their own."""
        wanted = dict(self.proposal_settings)
        if phrases:
            wanted["phrases"] = list(phrases)
        if isinstance(source, Video) and own is not None:
            wanted.pop("fps", None)
            wanted["grid"] = own
        elif isinstance(source, Video) and not source.is_image and "grid" not in wanted:
            usual = sample_rate(source, float(wanted.pop("fps", DEFAULT_FPS)))
            both = np.union1d(usual.frame_index, read.frame_index)
            wanted["grid"] = sample_indices(source, both)
        return propose_tracks(self.proposals, source, **wanted)

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
        chosen = self._for_model
        parts: SubQueries | None = None
        found: Choice | None = None

        def common() -> dict[str, Any]:
            seconds = time.perf_counter() - start
            return common_fields(self.mllm.name, state, chosen, parts, found, seconds, self._always())

        try:
            with named_crashes("answering this sentence"), memory_guard("answer this sentence", _LESS_MEMORY):
                text = check_query(query)
                if state.later is not None:
                    state = self._looked_for(state, state.later, text)
                if task == "svg" and span is None:
                    raise QueryError(
                        "task svg asks where something is in a given span: give span=Span(start_s, end_s)"
                    )
                if chosen.spatial or chosen.temporal or chosen.read == "parts":
                    parts = self.splitter(text)
                asked = text.lower() if chosen.lower_case else text
                found = self._choose(state, asked, parts, chosen)
                return answer(state, query, task, span, chosen, found, common())
        except TubeletError as error:
            return Prediction(state.name, str(query), task, failure=str(error), **common())

    def _choose(
        self, state: EncodedVideo, text: str, parts: SubQueries | None, chosen: ZeroShotSettings
    ) -> Choice:
        steps = state.visual.grid.frames
        return choose(
            self.mllm,
            state.visual,
            state.prefix,
            state.weights,
            text,
            parts or SubQueries(None, None, "nobody"),
            chosen,
            lambda seen, row: scores_per_frame(seen, state.tracks, row, state.weights, chosen, steps),
            lambda: backwards(self.mllm, state.visual, state.clip),
            lambda one, other: same_target(state, one, other),
        )

    def _always(self) -> tuple[str, ...]:
        """Notes of every answer: what a small model knows, and layers that it has not."""
        notes = [] if self.about is None else [self.about]
        if self.settings.layers is not None and self._for_model.layers is None:
            first, last = self.settings.layers
            n_layers = self.mllm.capabilities.n_layers
            notes.append(f"none of the layers {first}:{last} is in this model of {n_layers}: all were read")
        return tuple(notes)
