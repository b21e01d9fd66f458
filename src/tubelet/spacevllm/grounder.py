"""SpaceVLLM as a `Grounder`: encode a video once, ask it many sentences.

state = g.encode("clip.mp4")                    # decode, vision tower, prefix: once
g.ground(state, "the red circle that spins")    # a few milliseconds
g.ground_many(state, sentences)                 # packed: one pass for all
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tubelet import __version__
from tubelet.errors import ModelError, QueryError, TubeletError
from tubelet.frames import Clip, FrameGrid
from tubelet.model_folder import torch_dtype
from tubelet.spacevllm.batch import normalise
from tubelet.spacevllm.checkpoint import Bundle
from tubelet.spacevllm.config import SPAN_READERS
from tubelet.spacevllm.domain import Domain, domain_note
from tubelet.spacevllm.model import Asked, PrefixState
from tubelet.spacevllm.pack import pack
from tubelet.spacevllm.prompts import (
    SpanAnswer,
    check_query,
    check_question,
    encode_query,
    make_prefix,
    parse_span,
    question_text,
)
from tubelet.spacevllm.readout import FrameReading, calibrated, make_tube, read_span
from tubelet.spacevllm.saving import save_bundle
from tubelet.spacevllm.weigh import weighed_answers
from tubelet.tube import TASKS, Prediction, Span, Tube
from tubelet.video import Video, open_video, read_clip_report, sample_uniform

GROUND_TASKS = ("stvg", "svg", "tvg", "rec")
PACK_LIMIT = 64  # questions in one pass; more are asked in turns, so memory stays bounded
_ANSWER_TOKENS = {"full": 32, "brief": 16}


@dataclass(frozen=True, slots=True)
class EncodedVideo:
    """A video as this model knows it; only the model that made it can use it."""

    name: str
    grid: FrameGrid
    is_image: bool
    prefix: PrefixState
    model: tuple[str, str]  # name and revision
    timings_s: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class SpaceVLLMGrounder:
    """A loaded SpaceVLLM. Not thread-safe; its states are immutable and may be kept and reused."""

    def __init__(self, bundle: Bundle, name: str, revision: str = "", domain: Domain | None = None) -> None:
        self.bundle, self.name, self.revision, self.domain = bundle, name, revision, domain
        self.model = bundle.model.eval()
        self.config = bundle.model.config

    @property
    def max_frames(self) -> int:
        return self.config.max_frames

    def untrained(self, seed: int = 0) -> SpaceVLLMGrounder:
        """The same model with random weights: what its architecture knows without training.

        Nothing is "not in this video" to it: a calibrated threshold means nothing to random presence.
        """
        from transformers import LlavaOnevisionForConditionalGeneration

        from tubelet.spacevllm.model import SpaceVLLM

        config = replace(self.config, presence_threshold=0.0, text_presence_threshold=0.0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = SpaceVLLM(LlavaOnevisionForConditionalGeneration(self.model.base.config), config)
        model.to(self.model.device, self.model.base.dtype)
        bundle = replace(self.bundle, model=model, trained=False)
        return SpaceVLLMGrounder(bundle, f"{self.name}, untrained", f"seed {seed}", self.domain)

    def save_pretrained(self, folder: str | Path, dtype: str | None = None, card: str = "") -> Path:
        """Write the model as a folder that `tubelet.load` loads again: config.json, safetensors, tokenizer,
        preprocessor_config.json, domain.json where it has one, and README.md (`card`, or a model card made here).

        dtype: float32, bfloat16 or float16; default: as in memory. Complete or not at all; another model there is
        replaced. Raises OutputError for a folder that holds anything else, and when there is no space.
        """
        return save_bundle(self.bundle, folder, torch_dtype(dtype), card, domain=self.domain)

    # --- encode --------------------------------------------------------------------------------

    def encode(self, video: str | Path | Video | Clip, window: Span | None = None) -> EncodedVideo:
        """Decode up to `max_frames` uniformly spaced frames (of the window, if given) and read them once."""
        start = time.perf_counter()
        notes: list[str] = []
        if isinstance(video, Clip):
            clip, name, is_image = self._fit(video), "clip", len(video) == 1
        else:
            opened = video if isinstance(video, Video) else open_video(video)
            name, is_image = str(opened.path), opened.is_image
            # a LLaVA-Video that is still a chat model: first and last frame included, as it was trained
            as_published = self.config.time_layout == "llava_video" and not self.bundle.layout.query_tokens
            grid = sample_uniform(opened, self.max_frames, window, ends=as_published)
            side = self.model.image_size
            clip, report = read_clip_report(opened, grid, size=(side, side))
            notes += report.notes
        decoded = time.perf_counter()
        state: EncodedVideo = self._encode_clip(clip, name, is_image, notes, decoded - start)
        return state

    def encode_many(self, videos: Iterable[str | Path | Video | Clip]) -> list[EncodedVideo]:
        return [self.encode(video) for video in videos]

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def _encode_clip(
        self, clip: Clip, name: str, is_image: bool, notes: list[str], decode_s: float
    ) -> EncodedVideo:
        start = time.perf_counter()
        model, device = self.model, self.model.device
        prefix = make_prefix(
            self.config,
            self.bundle.layout,
            self.bundle.tokenizer,
            clip.grid.times_s,
            clip.grid.duration_s,
            model.tokens_per_frame,
            is_image,
        )
        packed = pack([prefix], [[]]).to(device)
        pixels = torch.from_numpy(np.ascontiguousarray(clip.pixels)).permute(0, 3, 1, 2).to(device)
        pixels = normalise(pixels, self.bundle.pixel_mean, self.bundle.pixel_std).to(model.base.dtype)
        state = model.encode_prefix(packed, pixels)
        if self.domain is not None:
            note = domain_note(self.domain, clip.pixels, self.config.domain)
            notes = [*notes, note] if note else notes
        timings = {"decode_s": decode_s, "encode_s": time.perf_counter() - start}
        return EncodedVideo(
            name, clip.grid, is_image, state, (self.name, self.revision), timings, tuple(notes)
        )

    def _fit(self, clip: Clip) -> Clip:
        """A clip made elsewhere, thinned to max_frames and resized to the model's square."""
        from PIL import Image

        keep = np.unique(np.linspace(0, len(clip) - 1, min(len(clip), self.max_frames)).round().astype(int))
        side, grid = self.model.image_size, clip.grid
        pixels = clip.pixels[keep]
        if pixels.shape[1:3] != (side, side):
            pixels = np.stack(
                [
                    np.asarray(Image.fromarray(p).resize((side, side), Image.Resampling.BICUBIC))
                    for p in pixels
                ]
            )
        return Clip(pixels, replace(grid, frame_index=grid.frame_index[keep], times_s=grid.times_s[keep]))

    # --- ask -----------------------------------------------------------------------------------

    def ground(
        self,
        video: str | Path | Video | Clip | EncodedVideo,
        query: str,
        task: str | None = None,
        span: Span | None = None,
        span_reader: str | None = None,
    ) -> Prediction:
        """When and where one sentence is true. `task` defaults to stvg (rec for a single image).

        svg needs `span`. Raises QueryError for a sentence or task that makes no sense, VideoError for the
        file.
        """
        check_query(query)
        state = video if isinstance(video, EncodedVideo) else self.encode(video)
        return self.ground_many(state, [query], task, span, span_reader)[0]

    def ground_many(
        self,
        video: str | Path | Video | Clip | EncodedVideo,
        queries: Sequence[str],
        task: str | None = None,
        span: Span | Sequence[Span | None] | None = None,
        span_reader: str | None = None,
    ) -> list[Prediction]:
        """All sentences about one video in one packed pass; equal to asking them one by one.

        A sentence that cannot be asked becomes a prediction with its failure; the others are answered.
        """
        state = self._state(video)
        task = task or ("rec" if state.is_image else "stvg")
        self._check_task(task, state)
        reader = span_reader or self.config.span_reader
        if reader not in SPAN_READERS:
            raise QueryError(f"span_reader is text, activity or both, got {reader!r}")
        spans = [span] * len(queries) if span is None or isinstance(span, Span) else list(span)
        if len(spans) != len(queries):
            raise QueryError(f"one span per sentence is needed, got {len(spans)} for {len(queries)}")
        out: list[Prediction | None] = [None] * len(queries)
        jobs: list[tuple[int, str, list[int]]] = []
        for k, query in enumerate(queries):
            try:
                text = check_query(query)
                words = question_text(self.config, task, text, spans[k])
                jobs.append((k, text, encode_query(self.bundle.tokenizer, words)))
            except TubeletError as error:
                out[k] = self._prediction(state, str(query), task, failure=str(error))
        for lo in range(0, len(jobs), PACK_LIMIT):
            part = jobs[lo : lo + PACK_LIMIT]
            start = time.perf_counter()
            questions = [ids for _, _, ids in part]
            wants_text = task in ("stvg", "tvg") and reader != "activity"
            weighs = wants_text and self.config.snap_answers and self.config.weigh_answers
            asked = self._ask(state, questions, wants_text and not weighs)
            told: list[float] = []
            if weighs:
                answers, told = weighed_answers(self.bundle, state.prefix, state.grid, questions)
                asked = replace(asked, answers=answers)
            each = (time.perf_counter() - start) / len(part)
            for row, (k, text, _) in enumerate(part):
                presence = self._presence(asked, row, told[row] if told and reader == "text" else None)
                out[k] = self._read(state, asked, row, presence, text, task, spans[k], reader, each)
        return [p for p in out if p is not None]

    def ask(
        self, video: str | Path | Video | Clip | EncodedVideo, question: str, max_new_tokens: int = 64
    ) -> str:
        """A free answer in words (captions, yes/no, questions)."""
        state = self._state(video)
        ids = encode_query(self.bundle.tokenizer, check_question(question))
        return self._text(self._ask(state, [ids], True, max_new_tokens).answers[0])

    def _state(self, video: str | Path | Video | Clip | EncodedVideo) -> EncodedVideo:
        if not isinstance(video, EncodedVideo):
            return self.encode(video)
        if video.model != (self.name, self.revision):
            encoded, here = (
                " ".join(part for part in (name, revision and f"({revision})") if part)
                for name, revision in (video.model, (self.name, self.revision))
            )
            raise ModelError(f"this video was encoded by {encoded}, not by {here}: encode it again")
        return video

    def _check_task(self, task: str, state: EncodedVideo) -> None:
        if task not in TASKS:
            raise QueryError(f"unknown task {task!r}; tasks are {', '.join(TASKS)}")
        if task not in GROUND_TASKS:
            raise QueryError(
                f"SpaceVLLM grounds {', '.join(GROUND_TASKS)}; for {task} use ask(), or another model"
            )
        if task in ("stvg", "tvg", "svg") and state.is_image:
            raise QueryError(f"task {task} asks about time, but {state.name} is a single image: use task rec")

    def _ask(
        self, state: EncodedVideo, questions: list[list[int]], text: bool, tokens: int | None = None
    ) -> Asked:
        layout = self.bundle.layout
        limit = (tokens or _ANSWER_TOKENS[self.config.prompts]) if text else 0
        asked: Asked = self.model.ask(
            state.prefix,
            [[*q, *layout.tail] for q in questions],
            [len(q) for q in questions],
            limit,
            layout.end[0],
        )
        return asked

    def _text(self, ids: Sequence[int]) -> str:
        text: str = self.bundle.tokenizer.decode(ids, skip_special_tokens=True)
        return text.strip()

    def _presence(self, asked: Asked, row: int, told: float | None) -> float:
        """As a probability that is 0.5 at the threshold of where it comes from: the decoder's head, or the words."""
        if told is None:
            return calibrated(float(asked.decoder.presence_logits[row]), self.config.presence_threshold)
        logit = math.log(max(told, 1e-12) / max(1 - told, 1e-12))
        return calibrated(logit, self.config.text_presence_threshold)

    def _read(
        self,
        state: EncodedVideo,
        asked: Asked,
        row: int,
        presence: float,
        query: str,
        task: str,
        given: Span | None,
        reader: str,
        seconds: float,
    ) -> Prediction:
        decoder = asked.decoder
        reading = FrameReading(
            boxes_xyxy=decoder.boxes_xyxy[row].double().cpu().numpy(),
            activity=decoder.activity_logits[row].sigmoid().double().cpu().numpy(),
            quality=decoder.quality_logits[row].sigmoid().double().cpu().numpy(),
            presence=presence,
        )
        text = self._text(asked.answers[row]) if asked.answers else ""
        grid = state.grid
        common: dict[str, Any] = {"text": text, "confidence": reading.presence, "seconds": seconds}
        if task == "svg":
            span = given.clip(0.0, grid.duration_s) if given is not None else None
            if span is None:
                return self._prediction(
                    state,
                    query,
                    task,
                    failure=f"the given span lies outside the video (0-{grid.duration_s:g} s)",
                )
            return self._prediction(state, query, task, self._tube(span, reading, grid, 1.0, query), **common)
        if task == "rec":
            if self._absent(reading, None, "activity"):
                return self._prediction(state, query, task, **common)
            whole = Span(0.0, grid.duration_s)
            tube = Tube(
                whole,
                grid.times_s[:1],
                np.clip(reading.boxes_xyxy[:1], 0, 1),
                score=reading.presence,
                box_scores=reading.quality[:1],
                label=query,
            )
            return self._prediction(state, query, task, tube, **common)
        named = grid if self.config.snap_answers else None
        answer = parse_span(text, grid.duration_s, named) if asked.answers else None
        if self._absent(reading, answer, reader):
            return self._prediction(state, query, task, **common)
        span, sure, problem = read_span(reader, reading, answer, grid)
        if span is None:
            return self._prediction(state, query, task, failure=problem, **common)
        tube = (
            Tube(span, score=float(np.clip(sure, 0, 1)), label=query)
            if task == "tvg"
            else self._tube(span, reading, grid, sure, query)
        )
        return self._prediction(state, query, task, tube, **common)

    def _absent(self, reading: FrameReading, answer: SpanAnswer | None, reader: str) -> bool:
        if reader == "text":
            return answer is not None and answer.absent
        return self.config.presence_threshold > 0 and reading.presence < 0.5

    def _tube(self, span: Span, reading: FrameReading, grid: FrameGrid, sure: float, query: str) -> Tube:
        return make_tube(span, reading, grid, sure, query)

    def _prediction(
        self,
        state: EncodedVideo,
        query: str,
        task: str,
        tube: Tube | None = None,
        text: str = "",
        confidence: float | None = None,
        seconds: float = 0.0,
        failure: str | None = None,
    ) -> Prediction:
        return Prediction(
            video=state.name,
            query=query,
            task=task,
            tubes=() if tube is None else (tube,),
            text=text,
            confidence=confidence,
            failure=failure,
            grid=state.grid,
            timings_s={**state.timings_s, "answer_s": seconds},
            provenance={
                "method": "spacevllm",
                "model": self.name,
                "revision": self.revision,
                "tubelet": __version__,
                "trained": self.bundle.trained,
            },
            notes=state.notes
            + (
                ()
                if self.bundle.trained
                else ("the space decoder of this model is untrained: answers are random",)
            ),
        )
