"""Grounders without a model, and a tiny V-STaR whose videos take milliseconds: what the tests of runs need.

As a program it evaluates, so that a test can kill it: python fake_models.py DATA OUT DELAY_S
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tubelet.errors import ModelError
from tubelet.tube import Prediction, Span, Tube
from tubelet.video import Video, write_video

N_VIDEOS, ITEMS = 6, 2
FPS, FRAMES, WIDTH, HEIGHT = 10, 20, 48, 32


class Fake:
    """Answers are a function of video and query alone; `encoded` and `asked` say what was done."""

    name, revision = "fake", "r1"

    def __init__(
        self, delay_s: float = 0.0, broken: Sequence[str] = (), hopeless: Sequence[str] = ()
    ) -> None:
        self.delay_s, self.broken, self.hopeless = delay_s, set(broken), set(hopeless)
        self.encoded: list[tuple[str, Span | None]] = []
        self.asked: list[tuple[str, str]] = []

    def encode(self, video: Any, window: Span | None = None) -> str:
        assert isinstance(video, Video)
        self.encoded.append((video.path.name, window))
        if video.path.name in self.broken:
            raise ModelError("no frame to my taste")
        return video.path.name

    def ground_many(
        self, state: str, queries: Sequence[str], task: str, span: Any = None, span_reader: str | None = None
    ) -> list[Prediction]:
        time.sleep(self.delay_s)
        self.asked += [(state, task)] * len(queries)
        if self.hopeless & set(queries):
            raise RuntimeError("out of memory")
        spans = span if span is not None else [None] * len(queries)
        return [self.answer(state, q, task, s) for q, s in zip(queries, spans, strict=True)]

    def answer(self, state: str, query: str, task: str, span: Span | None) -> Prediction:
        draw = np.random.default_rng(list(hashlib.sha256(f"{state} {query} {task}".encode()).digest()))
        start, x, y = draw.uniform(0, 1.2), *draw.uniform(0, 0.5, 2)
        span = span or Span(start, start + draw.uniform(0.2, 0.7))
        boxes = np.array([[x, y, x + 0.4, y + 0.4]])
        if task == "tvg":
            return Prediction(state, query, task, (Tube(span, score=0.5),))
        return Prediction(state, query, task, (Tube(span, np.array([span.start_s]), boxes, score=0.5),))

    def ask(self, state: str, question: str, max_new_tokens: int = 64) -> str:
        self.asked.append((state, "qa"))
        return "a red ball"


class Told(Fake):
    """Says what it is told to: answers[query] -> text, or a function (task, span) -> tubes."""

    name = "told"

    def __init__(self, answers: dict[str, Any], **options: Any) -> None:
        super().__init__(**options)
        self.answers = answers

    def answer(self, state: str, query: str, task: str, span: Span | None) -> Prediction:
        found: Any = self.answers[query]
        make: Callable[[str, Span | None], tuple[Tube, ...]] = found if callable(found) else lambda *_: found
        return Prediction(state, query, task, make(task, span))

    def ask(self, state: str, question: str, max_new_tokens: int = 64) -> str:
        self.asked.append((state, question))
        return str(next(text for key, text in self.answers.items() if key in question))


def make_video(path: Path, frames: int = FRAMES, fps: float = FPS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    shade = np.arange(frames, dtype=np.uint8)[:, None, None, None] * 8
    write_video(path, np.broadcast_to(shade, (frames, HEIGHT, WIDTH, 3)), fps)
    return path


def make_vstar(folder: Path, videos: int = N_VIDEOS, items: int = ITEMS) -> Path:
    """V-STaR: per item a qa, a tvg, an svg and an stvg question; items of a video are not next to each other."""
    rows = [
        {
            "vid": f"v{k}",
            "domain": ("sports", "home")[k % 2],
            "fps": FPS,
            "width": WIDTH,
            "height": HEIGHT,
            "frame_count": FRAMES,
            "question": f"What does {item} throw?",
            "object": "ball",
            "answer": "a red ball",
            "temporal_question": f"When does {item} throw it?",
            "timestamps": [0.5, 1.5],
            "spatial_question": f"Where is the ball of {item}?",
            "spatial_question_2": f"Where is the ball that {item} throws?",
            "bboxes": [{"timestamp": 1, "frame_index": 10, "xmin": 6, "ymin": 4, "xmax": 24, "ymax": 16}],
        }
        for item in range(items)
        for k in range(videos)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(videos):
        make_video(folder / "videos" / f"v{k}.mp4")
    (folder / "V_STaR_test.json").write_text(json.dumps(rows))
    return folder


def lines_of(folder: Path) -> dict[str, dict[str, Any]]:
    """predictions.jsonl by id, without what differs from run to run (timings)."""
    out: dict[str, dict[str, Any]] = {}
    for text in (folder / "predictions.jsonl").read_text().splitlines():
        line = json.loads(text)
        assert line["id"] not in out, f"{line['id']} was asked twice"
        line.pop("seconds", None)
        line["prediction"].pop("timings_s")
        out[line["id"]] = line
    return out


if __name__ == "__main__":
    from tubelet.benchmarks.run import run_benchmark

    run_benchmark(Fake(float(sys.argv[3])), "v-star", sys.argv[1], sys.argv[2])  # type: ignore[arg-type]
