"""The demo: an example video of the toy world, sentences about it, and pictures of the answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tubelet.benchmarks.run_folder import write_whole
from tubelet.grounder import load
from tubelet.tube import Prediction, Tube
from tubelet.video import VideoWriter, open_video, read_clip, sample_uniform
from tubelet.view import write_contact_sheet, write_overlay, write_timeline
from tubelet.world.choreography import make_scene
from tubelet.world.files import draw_frames, even
from tubelet.world.scene import Scene
from tubelet.world.tasks import Question, make_questions, truth_boxes

# a test scene chosen because the model does well on it; how well it does on all of them is in docs/results.md
DEMO_SEED, DEMO_INDEX = 2026, 79
HEIGHT, FPS = 360, 25.0


@dataclass(frozen=True, slots=True)
class DemoResult:
    predictions: list[Prediction]
    files: dict[str, Path]


def run_demo(folder: Path, model: str, progress: Callable[[int, int], None] | None = None) -> DemoResult:
    """Write example.mp4, annotated.mp4, timeline.png, sheet.png and answers.json into `folder`."""
    scene, questions = demo_scene()
    path = folder / "example.mp4"
    with VideoWriter(path, even(HEIGHT * scene.aspect), HEIGHT, FPS) as writer:
        for frame in draw_frames(scene, HEIGHT, FPS):
            writer.write(frame)
    video = open_video(path)
    grounder = load(model)
    predictions = grounder.ground_many(grounder.encode(video), [q.query for q in questions])
    truth = [truth_tubes(scene, question) for question in questions]
    files = {
        "example": path,
        "annotated video": write_overlay(
            video, predictions, folder / "annotated.mp4", truth=truth, progress=progress
        ),
        "timeline": write_timeline(
            predictions, folder / "timeline.png", duration_s=video.duration_s, truth=truth
        ),
    }
    clip = read_clip(
        video, sample_uniform(video, 12), size=(480, round(480 * video.height / video.width / 2) * 2)
    )
    files["contact sheet"] = write_contact_sheet(clip, predictions, folder / "sheet.png", truth=truth)
    answers = folder / "answers.json"
    write_whole(answers, json.dumps([p.to_dict() for p in predictions], ensure_ascii=False, indent=1) + "\n")
    files["JSON"] = answers
    return DemoResult(predictions, files)


def demo_scene(index: int = DEMO_INDEX) -> tuple[Scene, list[Question]]:
    """The example: a fixed test scene, two sentences about different events and one that is true of nothing."""
    scene = make_scene("test", DEMO_SEED, index)
    rng = np.random.default_rng(DEMO_SEED)
    found = make_questions(scene, rng, ("stvg",), 12, absent_rate=0.3)
    events = {(q.actor, q.tags["action"]): q for q in reversed(found) if q.present and q.tags.get("action")}
    absent = [q for q in found if not q.present]
    return scene, [*list(events.values())[:2], *absent[:1]]


def truth_tubes(scene: Scene, question: Question) -> tuple[Tube, ...]:
    """The truth of a question as tubes, for pictures (none for an absent target)."""
    if question.span is None or question.actor is None:
        return ()
    times = np.arange(question.span.start_s, question.span.end_s, 0.05)
    boxes, has = truth_boxes(scene, question, times)
    return (Tube(question.span, times[has], boxes[has]),)
