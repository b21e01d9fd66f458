"""Toy-world videos and what captions say of them, for a proof by training (training_proof.py).

Captions are about things that come or go ("a red circle", true while it is in the picture) and about actions ("a red
circle spins"). Each is true of exactly one thing and one span. Their spans are loose: widened on both sides by 0.3 to
1.0 of their length. In every second scene something comes or goes; in scenes as they are drawn that is rare.

Scenes, words and widths are functions of the scene's seed alone; the split is part of it, so that train and test share
no scene. Knows nothing of builds or models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from tubelet.errors import DataError, OutputError
from tubelet.tube import Span
from tubelet.unistg.captions import caption_row
from tubelet.unistg.records import Caption
from tubelet.unistg.rows import write_lines
from tubelet.video import VideoWriter
from tubelet.world.choreography import make_scene
from tubelet.world.files import annotation, draw_frames, even, frame_times
from tubelet.world.language import ACTION_WORDS, Look, matches, with_article
from tubelet.world.language import Phrase as Meaning
from tubelet.world.scene import SPLITS, Actor, Scene
from tubelet.world.tasks import Question

KINDS = ("presence", "event")
MOST_SAYINGS = 8  # captions of a video; as many as one packed row holds by default
_LOOSE = (0.3, 1.0)  # parts of the true length that are added before and behind, as in world_proof
_SHORTEST_S, _LONGEST_PART = 1.5, 0.85  # of things that come or go, as in world_proof


@dataclass(frozen=True, slots=True)
class ProofData:
    """n, n_test: videos. seed: of the scenes (the split is part of it). height (pixels), fps: of the files."""

    n: int = 500
    n_test: int = 250
    seed: int = 41
    height: int = 96
    fps: float = 8.0

    def __post_init__(self) -> None:
        if self.n < 1 or self.n_test < 1:
            raise DataError(
                f"the proof needs at least one video to learn from and one to test, got {self.n}, {self.n_test}"
            )


def sayings(scene: Scene, rng: np.random.Generator, most: int = MOST_SAYINGS) -> list[Question]:
    """What captions say of this scene, at most so many: each true of one thing and one span, no two alike.

    The same happening is told in several ways ("a red star spins", "a small red star turns around"), as people do;
    every happening is told once before one is told twice.
    """
    happenings: list[list[Question]] = []
    for number, actor in enumerate(scene.actors):
        seen = scene.visible_span(number)
        if seen is not None and _SHORTEST_S <= seen.duration_s < _LONGEST_PART * scene.duration_s:
            looks = _telling(scene, actor, number, None)
            happenings.append([_said(with_article(k.say()), "presence", number, seen) for k in looks])
        for event in actor.events:
            span = event.span.clip(0.0, scene.duration_s)
            if event.target is not None or span is None:
                continue
            looks = _telling(scene, actor, number, event.action)
            texts = [f"{with_article(k.say())} {does}" for does in ACTION_WORDS[event.action] for k in looks]
            happenings.append([_said(text, "event", number, span) for text in texts])
    shuffled = [[told[k] for k in rng.permutation(len(told)).tolist()] for told in happenings]
    rounds = [one for turn in zip_longest(*shuffled) for one in turn if one is not None]
    return rounds[:most]


def _said(text: str, kind: str, actor: int, span: Span) -> Question:
    return Question("stvg", text, kind, actor=actor, span=span, tags={"actor": actor})


def loose(span: Span, duration_s: float, rng: np.random.Generator) -> Span:
    """The span, widened on both sides by parts of its length, inside the video."""
    before, after = rng.uniform(*_LOOSE, size=2) * span.duration_s
    return Span(max(0.0, span.start_s - before), min(duration_s, span.end_s + after))


def scene_of(record: Mapping[str, Any]) -> Scene:
    """The scene of a line of annotations."""
    split, seed, index = record["scene"]["seed"]
    return make_scene(next(name for name, number in SPLITS.items() if number == split), seed, index)


def _telling(scene: Scene, actor: Actor, number: int, action: str | None) -> list[Look]:
    """Descriptions with colour and shape that are true of this actor (doing this, once) and of nothing else."""
    plain = Look(colour=actor.colour, shape=actor.shape)
    looks = [plain]
    if actor.texture != "plain":
        looks.append(replace(plain, texture=actor.texture))
    if all(event.factor == 1.0 for event in actor.events):  # the size word is about the start
        looks.append(replace(plain, size=actor.size))
    found = [matches(scene, Meaning(look, action)) for look in looks]
    return [look for look, one in zip(looks, found, strict=True) if [m.actor for m in one] == [number]]


def choose_scenes(split: str, seed: int, n: int) -> list[Scene]:
    """The first n scenes that can be spoken of; in every second one something comes or goes (it is rare)."""
    scenes: list[Scene] = []
    for index in range(200 * n + 200):
        if len(scenes) == n:
            return scenes
        scene = make_scene(split, seed, index)
        kinds = {question.kind for question in sayings(scene, _words(scene))}
        if kinds and (len(scenes) % 2 or "presence" in kinds):
            scenes.append(scene)
    raise DataError(f"the toy world has no {n} scenes to speak of with seed {seed}")


def _words(scene: Scene) -> np.random.Generator:
    return np.random.default_rng([*scene.seed, 61])


def draw_videos(
    folder: Path,
    split: str,
    n: int,
    settings: ProofData,
    progress: Callable[[str, int, int], None] | None,
) -> list[Scene]:
    """Write the videos of a split that are not there yet; returns their scenes."""
    videos = folder / split / "videos"
    scenes = choose_scenes(split, settings.seed, n)
    try:
        videos.mkdir(parents=True, exist_ok=True)
        for k, scene in enumerate(scenes):
            path = videos / video_name(scene)
            if not path.exists():
                width = even(settings.height * scene.aspect)
                with VideoWriter(path, width, settings.height, settings.fps) as writer:
                    for frame in draw_frames(scene, settings.height, settings.fps):
                        writer.write(frame)
            if progress is not None:
                progress(f"{split} videos", k + 1, n)
    except OSError as error:
        raise OutputError(f"cannot write videos to {videos}: {error.strerror or error}") from error
    return scenes


def video_name(scene: Scene) -> str:
    return f"{scene.seed[1]}-{scene.seed[2]:06d}.mp4"


def write_captions(folder: Path, scenes: Sequence[Scene], settings: ProofData) -> list[dict[str, Any]]:
    """Write captions.jsonl and truth.jsonl; returns the lines of the latter, in the same order."""
    captions, truths = [], []
    for scene in scenes:
        rng = _words(scene)
        video = video_name(scene)
        length = len(frame_times(scene, settings.fps)) / settings.fps
        for k, question in enumerate(sayings(scene, rng)):
            assert question.span is not None
            span = question.span.clip(0.0, length)
            if span is None:
                continue
            name = f"{Path(video).stem}/{k}"
            coarse = loose(span, length, rng)
            caption = Caption(name, "world", video, question.query, coarse, length)
            captions.append(caption_row(caption))
            truths.append(annotation(scene, replace(question, span=span), name, video, settings.fps))
    write_lines(truths, folder / "truth.jsonl")
    write_lines(captions, folder / "captions.jsonl")
    return truths


def query_lines(scenes: Sequence[Scene], settings: ProofData) -> list[dict[str, Any]]:
    """One query per test video: of something that comes or goes where there is such a thing, else an action."""
    lines = []
    for scene in scenes:
        rng = _words(scene)
        said = sayings(scene, rng)
        wanted = [q for q in said if q.kind == "presence"] or said
        question = wanted[int(rng.integers(len(wanted)))]
        video = video_name(scene)
        line = annotation(scene, question, Path(video).stem, f"test/videos/{video}", settings.fps)
        if line["frame_index"]:
            lines.append(line)
    return lines
