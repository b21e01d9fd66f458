"""LLaVA-ST as a `Grounder`: encode a video or an image once, ask it many questions.

state = g.encode("clip.mp4")                              # decode, vision tower, keys and values: once
g.ground_many(state, sentences)                           # side by side, each answer within its grammar
g.ground(image, "", task="reg", box_xyxy=(0.1, 0.2, 0.4, 0.6))

| task | about | given | answer |
|---|---|---|---|
| stvg | video | sentence | span and boxes |
| svg  | video | sentence, span | boxes |
| tvg  | video | sentence | span |
| elc  | video | start (of `span`), box there | end, caption (label of the tube), boxes |
| tr   | video | span | caption (label) |
| rec  | image | sentence | box |
| reg  | image | box | phrase (label) |
| dgc  | image | | text, and a tube per phrase with a box |

elc, tr, reg and dgc have questions of their own; a sentence that comes with them is kept, not asked. Dense captions
(dvc) come from `describe_events`, everything else in words from `ask`.

Seconds are fractions of the time from the first to the last sampled frame, as published (readout.py).
`Prediction.confidence` and the score of its tubes are the mean probability of the answer's coordinate words, among
all words and before the grammar; None for an answer without any. Soft labels share the probability of an exact place
between two neighbouring words, so 0.5 is a high one.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tubelet import __version__
from tubelet.errors import ModelError, QueryError, TubeletError
from tubelet.frames import Clip, FrameGrid
from tubelet.llava_st.answers import parse_answer
from tubelet.llava_st.asking import (
    IMAGE_TASKS,
    SENTENCE_TASKS,
    VIDEO_TASKS,
    Asking,
    Job,
    check_task,
    checked_given,
    make_job,
    one_each,
    sentence,
)
from tubelet.llava_st.checkpoint import OFFICIAL_FOLDER, Bundle, build, load_llava_st, parts_of, save_llava_st
from tubelet.llava_st.constrain import Alphabet, Grammar, grammar_for, make_alphabet
from tubelet.llava_st.convert import stored_generation
from tubelet.llava_st.coordinates import Variables, Worded
from tubelet.llava_st.generate import Generated, Read, generate, read_frames, read_nothing
from tubelet.llava_st.prompts import ANSWERS, prompt_ids, question, text_ids
from tubelet.llava_st.readout import clock_of, read_tubes
from tubelet.llava_st.sampling import sample_frames, thin_clip
from tubelet.model_folder import torch_dtype
from tubelet.spacevllm.domain import Domain, domain_note, load_domain
from tubelet.tube import Prediction, Span, Tube
from tubelet.video import Video, open_video, read_clip_report

SIDE_BY_SIDE = 16  # questions in one pass; each holds its own copy of the video's keys and values
ANSWER_TOKENS = 1024  # as published
_SHORT_ANSWERS = {"tvg": 128, "rec": 128, "reg": 256, "tr": 256}

Source = str | Path | Video | Clip
Box = Sequence[float] | npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class EncodedVideo:
    """A video or image as this model knows it; only the model that made it can use it.

    grid: the sampled frames; whole: the part of the video they stand for; read: visual tokens, and keys and values
    of the prompt up to the question. Immutable: questions copy what they extend.
    """

    name: str
    grid: FrameGrid
    is_image: bool
    whole: Span
    read: Read
    model: tuple[str, str]  # name and revision
    timings_s: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def load_grounder(folder: Path, name: str, revision: str, dtype: Any, device: str) -> LlavaSTGrounder:
    """From a tubelet folder or one in the published layout, whose generation settings count as in a conversion."""
    bundle = load_llava_st(folder, dtype, device)
    if bundle.official and not (folder / OFFICIAL_FOLDER).is_dir():
        penalty = float(stored_generation(bundle.official).get("repetition_penalty", 1.0))
        bundle.model.config = replace(bundle.config, repetition_penalty=penalty)
    return LlavaSTGrounder(bundle, name, revision, load_domain(folder))


class LlavaSTGrounder:
    """A loaded LLaVA-ST. Not thread-safe; its states are immutable and may be kept and reused."""

    tasks = (*VIDEO_TASKS, *IMAGE_TASKS)

    def __init__(self, bundle: Bundle, name: str, revision: str = "", domain: Domain | None = None) -> None:
        bundle.model.eval()
        self.bundle, self.name, self.revision, self.domain = bundle, name, revision, domain
        self.config = bundle.config
        self._alphabet: Alphabet | None = None

    @property
    def max_frames(self) -> int:
        return self.config.frames

    def untrained(self, seed: int = 0) -> LlavaSTGrounder:
        """The same model with random weights: what its architecture knows without training."""
        model = self.bundle.model
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            fresh = build(parts_of(self.bundle), self.bundle.words).to(model.device, model.embeddings.dtype)
        bundle = replace(self.bundle, model=fresh.eval(), trained=False)
        return LlavaSTGrounder(bundle, f"{self.name}, untrained", f"seed {seed}", self.domain)

    def save_pretrained(self, folder: str | Path, dtype: str | None = None, card: str = "") -> Path:
        """Write the model as a folder that `tubelet.load` loads again: config.json, safetensors, tokenizer, the small
        files of the published checkpoint it came from, domain.json where it has one, and README.md.

        dtype: float32, bfloat16 or float16; default: as in memory. Complete or not at all; another model there is
        replaced. Raises OutputError for a folder that holds anything else, and when there is no space.
        """
        return save_llava_st(self.bundle, folder, torch_dtype(dtype), card, domain=self.domain)

    # --- encode --------------------------------------------------------------------------------

    def encode(self, video: Source, window: Span | None = None) -> EncodedVideo:
        """Decode up to `max_frames` frames (of the window, if given), first and last included, and read them once."""
        start = time.perf_counter()
        notes: list[str] = []
        if isinstance(video, Clip):
            name, is_image = "clip", len(video) == 1
            clip, rows = thin_clip(video, self.max_frames, self._repeats(is_image))
            whole = Span(0.0, clip.grid.duration_s)
        else:
            opened = video if isinstance(video, Video) else open_video(video)
            name, is_image = str(opened.path), opened.is_image
            grid, rows = sample_frames(opened, self.max_frames, window, self._repeats(is_image))
            side = self.bundle.model.image_size
            clip, report = read_clip_report(opened, grid, size=(side, side))
            whole = Span(0.0, grid.duration_s)
            whole = (window.clip(0.0, grid.duration_s) if window is not None else None) or whole
            notes += report.notes
        decoded = time.perf_counter()
        positions = None
        if not is_image and len(clip) > 1 and self.config.mode != "official":
            clock = clock_of(clip.grid)
            positions = [clock.fraction(float(at)) for at in clip.grid.times_s]
        read = read_frames(self.bundle, clip.pixels[rows], is_image, positions)
        if self.domain is not None:
            note = domain_note(self.domain, clip.pixels, self.config.domain)
            notes += [note] if note else []
        timings = {"decode_s": decoded - start, "encode_s": time.perf_counter() - decoded}
        me = (self.name, self.revision)
        return EncodedVideo(name, clip.grid, is_image, whole, read, me, timings, tuple(notes))

    def encode_many(self, videos: Iterable[Source]) -> list[EncodedVideo]:
        return [self.encode(video) for video in videos]

    def _repeats(self, is_image: bool) -> bool:
        """Mode official has a fixed frame count, so the frames of a short video are repeated."""
        return self.config.mode == "official" and not is_image

    # --- ask -----------------------------------------------------------------------------------

    def ground(
        self,
        video: Source | EncodedVideo,
        query: str = "",
        task: str | None = None,
        span: Span | None = None,
        span_reader: str | None = None,
        box_xyxy: Box | None = None,
        asking: Asking = Asking(),
    ) -> Prediction:
        """One question. `task` defaults to stvg (rec for an image).

        span: for svg, tr, and elc (its start). box_xyxy: for reg and elc, fractions of the frame.
        Raises QueryError for a sentence or task that makes no sense and for a missing span or box, VideoError for the
        file, ModelError for a video that another model encoded.
        """
        sentence(query, may_be_empty=task not in (None, *SENTENCE_TASKS))  # before anything is decoded
        state = self._state(video)
        task = self._task(task, state, span_reader)
        job = self._job(state, task, asking, 0, query, span, box_xyxy)
        return self._answer(state, task, [job], asking)[0]

    def ground_many(
        self,
        video: Source | EncodedVideo,
        queries: Sequence[str],
        task: str | None = None,
        span: Span | Sequence[Span | None] | None = None,
        span_reader: str | None = None,
        box_xyxy: Box | Sequence[Box | None] | None = None,
        asking: Asking = Asking(),
    ) -> list[Prediction]:
        """Questions about one video side by side on its shared keys and values.

        Greedy answers equal those of asking one by one.

        span, box_xyxy: one for all, or one per question. A question that cannot be asked becomes a prediction with
        its failure; the others are answered.
        """
        state = self._state(video)
        task = self._task(task, state, span_reader)
        if isinstance(queries, str):
            raise QueryError("ground_many takes a list of sentences; for one sentence use ground")
        spans, boxes = one_each(span, len(queries), "span"), one_each(box_xyxy, len(queries), "box")
        out: list[Prediction | None] = [None] * len(queries)
        jobs: list[Job] = []
        for place, query in enumerate(queries):
            try:
                jobs.append(self._job(state, task, asking, place, query, spans[place], boxes[place]))
            except TubeletError as error:
                out[place] = self._prediction(state, str(query), task, asking, failure=str(error))
        for job, prediction in zip(jobs, self._answer(state, task, jobs, asking), strict=True):
            out[job.place] = prediction
        return [p for p in out if p is not None]

    def ask(
        self,
        video: Source | EncodedVideo | None,
        question: str,
        max_new_tokens: int = 64,
        asking: Asking = Asking(),
    ) -> str:
        """A free answer; coordinates stay words. None: a question without a picture."""
        asked = Worded(sentence(question), Variables())
        self._check_words(asked)
        read = read_nothing(self.bundle) if video is None else self._state(video).read
        free = replace(asking, constrained=False, max_new_tokens=max_new_tokens)
        return self._generate(read, [asked], [None], "qa", free)[0].text.strip()

    def describe_events(
        self, video: Source | EncodedVideo, asking: Asking = Asking()
    ) -> tuple[tuple[Span, str], ...]:
        """Dense captions (task dvc): spans with a sentence each, in the order of the answer."""
        state = self._state(video)
        if state.is_image:
            raise QueryError(f"events take time, but {state.name} is a single image: use task dgc")
        style = self._style(asking)
        asked = question("dvc", style=style, choice=asking.choice, seed=asking.wording_seed)
        grammar = grammar_for("dvc", self.config.bins)
        (written,) = self._generate(state.read, [asked], [grammar], "dvc", asking)
        answer, clock = parse_answer(written.text, "dvc", self.config.bins), clock_of(state.grid)
        return tuple((clock.span(*event.span, self.config.bins), event.text) for event in answer.events)

    # --- questions -----------------------------------------------------------------------------

    def _state(self, video: Source | EncodedVideo) -> EncodedVideo:
        made_by = getattr(video, "model", None)
        if not isinstance(made_by, tuple):
            return self.encode(video)  # type: ignore[arg-type]
        if not isinstance(video, EncodedVideo) or made_by != (self.name, self.revision):
            encoded, here = (
                " ".join(part for part in (name, revision and f"({revision})") if part)
                for name, revision in (made_by, (self.name, self.revision))
            )
            raise ModelError(f"this video was encoded by {encoded}, not by {here}: encode it again")
        return video

    def _task(self, task: str | None, state: EncodedVideo, span_reader: str | None) -> str:
        task = task or ("rec" if state.is_image else "stvg")
        check_task(task, state.name, state.is_image)
        if span_reader not in (None, "text"):
            raise QueryError(f"LLaVA-ST answers in words: span_reader is text, got {span_reader!r}")
        return task

    def _job(
        self, state: EncodedVideo, task: str, asking: Asking, place: int, query: str, span: Any, box: Any
    ) -> Job:
        """QueryError for what cannot be asked."""
        given = checked_given(task, span, box, state.whole)
        style = self._style(asking)
        job = make_job(place, query, task, given, clock_of(state.grid), self.config.bins, style, asking)
        self._check_words(job.asked)
        return job

    def _check_words(self, asked: Worded) -> None:
        """QueryError for a placeholder in a user's text, before it meets the other questions."""
        prompt_ids(self.bundle.tokenizer, self.bundle.words, asked)

    def _style(self, asking: Asking) -> str:
        return asking.style or self.config.prompts

    # --- answers -------------------------------------------------------------------------------

    def _answer(
        self, state: EncodedVideo, task: str, jobs: Sequence[Job], asking: Asking
    ) -> list[Prediction]:
        out = []
        for low in range(0, len(jobs), SIDE_BY_SIDE):
            part = jobs[low : low + SIDE_BY_SIDE]
            start = time.perf_counter()
            written = self._generate(
                state.read, [job.asked for job in part], [job.grammar for job in part], task, asking
            )
            each = (time.perf_counter() - start) / len(part)
            out += [
                self._read(state, task, job, answer, asking, each)
                for job, answer in zip(part, written, strict=True)
            ]
        return out

    def _generate(
        self,
        read: Read,
        asked: Sequence[Worded],
        grammars: Sequence[Grammar | None],
        task: str,
        asking: Asking,
    ) -> list[Generated]:
        absent: list[int] = []
        if not asking.constrained:
            grammars = [None] * len(asked)
        elif self._alphabet is None:
            self._alphabet = make_alphabet(self.bundle.tokenizer, self.bundle.words)
        if task in SENTENCE_TASKS:
            absent = text_ids(self.bundle.tokenizer, ANSWERS[self._style(asking)]["absent"])
        budget = asking.max_new_tokens
        answers: list[Generated] = generate(
            self.bundle,
            read,
            asked,
            grammars,
            max_new_tokens=_SHORT_ANSWERS.get(task, ANSWER_TOKENS) if budget is None else budget,
            repetition_penalty=asking.repetition_penalty,
            temperature=asking.temperature,
            seed=asking.seed,
            alphabet=self._alphabet,
            absent=absent,
        )
        return answers

    def _read(
        self,
        state: EncodedVideo,
        task: str,
        job: Job,
        written: Generated,
        asking: Asking,
        seconds: float,
    ) -> Prediction:
        anchors = [
            chance
            for token, chance in zip(written.ids, written.probabilities, strict=True)
            if token >= self.config.vocabulary
        ]
        sure = min(max(float(np.mean(anchors)), 0.0), 1.0) if anchors else None
        answer = parse_answer(written.text, task, self.config.bins)
        reading = read_tubes(
            answer, task, state.grid, state.whole, job.given, self.config.bins, job.query, sure
        )
        notes = list(reading.notes)
        if not written.ended:
            notes.append(f"the answer was cut off after {len(written.ids)} words (max_new_tokens)")
        return self._prediction(
            state,
            job.query,
            task,
            asking,
            tubes=reading.tubes,
            text=written.text.strip(),
            confidence=sure,
            seconds=seconds,
            failure=reading.failure,
            notes=notes,
        )

    def _prediction(
        self,
        state: EncodedVideo,
        query: str,
        task: str,
        asking: Asking,
        tubes: Sequence[Tube] = (),
        text: str = "",
        confidence: float | None = None,
        seconds: float = 0.0,
        failure: str | None = None,
        notes: Sequence[str] = (),
    ) -> Prediction:
        random = () if self.bundle.trained else ("this model is untrained: its answers are random",)
        return Prediction(
            video=state.name,
            query=query,
            task=task,
            tubes=tuple(tubes),
            text=text,
            confidence=confidence,
            failure=failure,
            grid=state.grid,
            timings_s={**state.timings_s, "answer_s": seconds},
            provenance={
                "method": "llava_st",
                "model": self.name,
                "revision": self.revision,
                "tubelet": __version__,
                "trained": self.bundle.trained,
                "mode": self.config.mode,
                "prompts": self._style(asking),
                "constrained": asking.constrained,
                "confidence": "mean probability of the coordinate words",
            },
            notes=(*state.notes, *notes, *random),
        )
