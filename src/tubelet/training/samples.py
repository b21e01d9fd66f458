"""What is learnt from: `Sample` (frames + questions with their truth), and the toy world as a stream of them.

A stream is a function of (seed, step) alone: batch number k is the same in every run, so a resumed run sees
exactly what an uninterrupted one would have seen.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tubelet.errors import RecipeError
from tubelet.tube import Span

if TYPE_CHECKING:
    import torch

    from tubelet.world.scene import Scene
    from tubelet.world.tasks import Question


@dataclass(frozen=True, slots=True)
class Target:
    """One question and its truth on the sample's T frames.

    boxes_xyxy (T, 4) fractions; has_box (T,) frames whose box is learnt; active (T,) frames in the span;
    given_box: a box that is asked about; phrases: parts of the answer with the box of each. about (T,): frames that
    show what a question in words is about, at boxes_xyxy (training may tell a model where to look; no box is asked).
    """

    task: str
    query: str
    present: bool
    boxes_xyxy: npt.NDArray[np.float64]
    has_box: npt.NDArray[np.bool_]
    active: npt.NDArray[np.bool_]
    span: Span | None = None
    answer: str = ""
    kind: str = ""
    learn_answer: bool = True  # False: only boxes, activity and presence are learnt from it
    given_box: tuple[float, float, float, float] | None = None
    phrases: tuple[tuple[str, tuple[float, float, float, float]], ...] = ()
    about: npt.NDArray[np.bool_] | None = None


POSE = 3
LAST_FRAME_S = (1 / 30, 1 / 10)  # how long the last frame of a video is shown


@dataclass(frozen=True, slots=True)
class Things:
    """Everything in a sample's frames: A things, T frames.

    boxes_xyxy (A, T, 4) fractions, visible (A, T); attributes (A, n) and doing (A, T): class numbers;
    pose (A, T, POSE): numbers in [-1, 1] that say how it is turned and how clearly it shows.
    """

    boxes_xyxy: npt.NDArray[np.float64]
    visible: npt.NDArray[np.bool_]
    attributes: npt.NDArray[np.int64]
    doing: npt.NDArray[np.int64]
    pose: npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Sample:
    """Frames of one video or image, uint8 (T, S, S, 3), and the questions about it."""

    pixels: npt.NDArray[np.uint8]
    times_s: npt.NDArray[np.float64]
    duration_s: float
    questions: tuple[Target, ...]
    is_image: bool = False
    things: Things | None = None


@dataclass(frozen=True, slots=True)
class WorldMix:
    """What a batch of toy-world samples holds.

    kind: "video", "image" (a scene in which nothing moves) or "moment" (one frame of a video: things turn, grow,
    are dark or half out of sight; for stages that learn from dense labels only) or "screens" (see `screens`);
    batch: samples per batch;
    questions: per sample (packed);
    tasks: drawn per question, with repetition as weight; frames and size: T and S of the pixels;
    sampling: frames at "centres" of equal parts, or at the "ends": the first and the last frame of the video are in;
    box_frames: "span" (paper: boxes are learnt inside the true span) or "visible" (wherever it is seen);
    window: fraction of the video that is seen, at a random place; below 1 a question's event may lie outside;
    yes_no_rate: fraction of stvg and rec questions that are asked as "is it true?", for models that answer in words;
    answer_rate: fraction of grounding questions whose answer text is learnt too (text tokens cost the most).
    """

    kind: str = "video"
    batch: int = 16
    questions: int = 6
    tasks: tuple[str, ...] = ("stvg",)
    absent_rate: float = 0.2
    frames: int = 16
    size: int = 64
    sampling: str = "centres"
    box_frames: str = "span"
    answer_rate: float = 1.0
    max_actors: int = 4
    window: float = 1.0
    seed: int = 0
    yes_no_rate: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in ("image", "moment", "video", "screens"):
            raise RecipeError(f"data.kind is image, moment, video or screens, got {self.kind!r}")
        if not 0 < self.window <= 1:
            raise RecipeError(f"data.window is a fraction of the video above 0, got {self.window:g}")
        if self.sampling not in ("centres", "ends"):
            raise RecipeError(f"data.sampling is centres or ends, got {self.sampling!r}")
        if self.box_frames not in ("span", "visible"):
            raise RecipeError(f"data.box_frames is span or visible, got {self.box_frames!r}")
        if min(self.batch, self.questions, self.frames, self.size) < 1:
            raise RecipeError("data.batch, data.questions, data.frames and data.size must be at least 1")


def world_batch(mix: WorldMix, step: int, split: str = "train") -> list[Sample]:
    """Batch number `step` of the stream; deterministic. Scenes without any question are skipped."""
    if mix.kind == "screens":
        from tubelet.training.screens import screen_batch

        return screen_batch(mix, step, split)
    from tubelet.world.choreography import SceneConfig, make_scene
    from tubelet.world.render import render, soften
    from tubelet.world.tasks import make_questions

    still = mix.kind == "image"
    config = SceneConfig(still=still, max_actors=mix.max_actors + (1 if still else 0))
    rng = np.random.default_rng([mix.seed, step, 17])
    scenes: list[Scene] = []
    asked: list[list[Question]] = []
    times: list[npt.NDArray[np.float64]] = []
    index = 0
    while len(scenes) < mix.batch:
        scene = make_scene(split, mix.seed, step * 4 * mix.batch + index, config)
        index += 1
        questions = make_questions(scene, rng, mix.tasks, mix.questions, mix.absent_rate)
        if not questions and index < 4 * mix.batch:
            continue
        scenes.append(scene)
        asked.append(questions)
        times.append(moments(mix, scene.duration_s, rng))
    pixels = render(scenes, times, mix.size, mix.size)
    soft = (
        soften(pixels.view(-1, mix.size, mix.size, 3), _generator(mix.seed, step)).view(pixels.shape).numpy()
    )
    samples = []
    for scene, questions, t, picture in zip(scenes, asked, times, soft, strict=True):
        samples.append(
            Sample(
                pixels=picture,
                times_s=t,
                duration_s=scene.duration_s,
                questions=tuple(
                    _as_asked(
                        world_target(scene, q, t, mix.box_frames, bool(rng.random() < mix.answer_rate)),
                        mix,
                        rng,
                    )
                    for q in questions
                ),
                is_image=mix.kind != "video",
                things=world_things(scene, t),
            )
        )
    return [s for s in samples if s.questions]


def moments(mix: WorldMix, duration_s: float, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """When the frames of one sample are seen, seconds."""
    if mix.kind == "image":
        return np.zeros(1)
    if mix.kind == "moment":
        return rng.uniform(0, duration_s, 1)
    seen_s = mix.window * duration_s
    start_s = rng.uniform(0, duration_s - seen_s) if mix.window < 1 else 0.0
    if mix.sampling == "ends":
        # the last frame of a video starts one frame before its end
        return start_s + np.linspace(0.0, seen_s - rng.uniform(*LAST_FRAME_S), mix.frames)
    return start_s + sample_times(seen_s, mix.frames, rng)


def sample_times(
    duration_s: float, count: int, rng: np.random.Generator | None = None
) -> npt.NDArray[np.float64]:
    """Centres of `count` equal parts; with a generator, moved by up to a tenth of a part, as frames are."""
    part = duration_s / count
    times = (np.arange(count, dtype=np.float64) + 0.5) * part
    return times if rng is None else times + rng.uniform(-0.1, 0.1) * part


def world_target(
    scene: Scene,
    question: Question,
    times_s: npt.NDArray[np.float64],
    box_frames: str = "span",
    learn_answer: bool = True,
) -> Target:
    """A toy-world question and its truth on these moments."""
    boxes, visible = np.zeros((len(times_s), 4)), np.zeros(len(times_s), dtype=bool)
    active = np.zeros(len(times_s), dtype=bool)
    if question.span is not None:
        active = np.asarray(question.span.contains(times_s))
    if question.actor is not None and question.task in ("stvg", "svg", "tvg", "rec", "elc"):
        all_boxes, all_visible = scene.boxes_at(times_s)
        boxes, visible = all_boxes[question.actor], all_visible[question.actor]
    about = None
    if question.about is not None:
        all_boxes, all_visible = scene.boxes_at(times_s)
        boxes, about = all_boxes[question.about], all_visible[question.about]
        if question.kind == "where":  # "at the start"
            about = about & (np.arange(len(times_s)) == 0)
        if (
            question.about_span is not None
            and (during := about & question.about_span.contains(times_s)).any()
        ):
            about = during
    inside = visible if question.span is None or box_frames == "visible" else visible & active
    return Target(
        task=question.task,
        query=question.query,
        present=question.present,
        boxes_xyxy=boxes,
        has_box=inside,
        active=active,
        span=question.span,
        answer=question.answer,
        kind=question.kind,
        learn_answer=learn_answer or question.task not in ("stvg", "tvg", "svg", "rec"),
        given_box=question.given_box,
        phrases=_phrases(scene, question),
        about=about,
    )


def _as_asked(target: Target, mix: WorldMix, rng: np.random.Generator) -> Target:
    """The question as it is, or as one to be answered with yes or no; sentences that ask something stay."""
    if not mix.yes_no_rate or rng.random() >= mix.yes_no_rate:
        return target
    if target.task not in ("stvg", "rec") or "?" in target.query:
        return target
    from tubelet.world.tasks import as_yes_no

    about = target.has_box & target.active if target.span is not None else target.has_box
    return replace(
        target,
        task="qa",
        kind="yes_no",
        query=as_yes_no(target.query, plain=rng.random() < 0.5),
        answer="yes" if target.present else "no",
        has_box=np.zeros_like(target.has_box),
        active=np.zeros_like(target.active),
        span=None,
        present=True,
        about=about if about.any() else None,
        learn_answer=True,
    )


def _phrases(scene: Scene, question: Question) -> tuple[tuple[str, tuple[float, float, float, float]], ...]:
    """Parts of a picture's description with their boxes."""
    if not question.phrases:
        return ()
    boxes = scene.boxes_at([0.0])[0][:, 0]
    return tuple((text, tuple(boxes[actor].tolist())) for text, actor in question.phrases)


WORLD_ATTRIBUTES = (8, 6, 3, 2)  # colours, shapes, textures, sizes
WORLD_ACTIONS = 14  # nothing, or one of the world's actions


def world_things(scene: Scene, times_s: npt.NDArray[np.float64]) -> Things:
    """All actors of a toy-world scene at these moments."""
    from tubelet.world.scene import ACTIONS, COLOURS, SHAPES, SIZES, SYMMETRY, TEXTURES

    boxes, visible = scene.boxes_at(times_s)
    colours, sizes = tuple(COLOURS), tuple(SIZES)
    doing = np.zeros(visible.shape, dtype=np.int64)
    for a, actor in enumerate(scene.actors):
        for event in actor.events:
            doing[a, event.span.contains(times_s)] = 1 + ACTIONS.index(event.action)
    looks = [
        (colours.index(a.colour), SHAPES.index(a.shape), TEXTURES.index(a.texture), sizes.index(a.size))
        for a in scene.actors
    ]
    states = scene.states(times_s)
    folds = np.array([SYMMETRY[a.shape] for a in scene.actors])[
        :, None
    ]  # a square turned by 90 degrees is itself
    turn, turns = folds * states.angle_rad, folds > 0
    pose = np.stack([np.cos(turn) * turns, np.sin(turn) * turns, states.opacity], axis=-1)
    return Things(boxes, visible, np.array(looks, dtype=np.int64), doing, pose)


def _generator(seed: int, step: int) -> torch.Generator:
    import torch

    return torch.Generator().manual_seed(seed * 1_000_003 + step)
