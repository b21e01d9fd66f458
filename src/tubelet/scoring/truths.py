"""The truth to score against: from a dataset's annotation, without its videos; and `Case`, an answer with its truth.

Where the annotation names no frame rate but boxes by the second (VUE-STG), the frames of a video are those seconds.
Where it names neither, 25 frames per second are assumed, and said in the notes. A run folder of `tubelet eval` knows
the real frame times: its own metrics.json is the better place for our own predictions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from tubelet.benchmarks.run_truth import VideoFacts, truths_of, video_key
from tubelet.datasets import open_dataset, read
from tubelet.datasets.record import Record, as_fps
from tubelet.errors import DataError
from tubelet.metrics.truth import Truth
from tubelet.scoring.answers import Answer, Counts
from tubelet.scoring.checks import Frame, check_windows, to_prediction
from tubelet.tube import Prediction

TASKS = ("stvg", "svg", "tvg")
ASSUMED_FPS = 25.0
DEFAULT_SPLITS = {"hcstvg-v2": "val", "qvhighlights": "val", "activitynet": "val_2"}
"""The split whose truth is public, where it is not called "test"."""


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """One query, its answer and its truth, in tubelet's conventions and (`native`) in the format's own.

    prediction: None where the file has none. windows, true_windows: [start_s, end_s(, score)] for spans.
    failure: why the answer is empty. native: what the format's own evaluator takes.
    """

    id: str
    truths: tuple[Truth, ...] = ()
    prediction: Prediction | None = None
    windows: Sequence[Sequence[float]] = ()
    true_windows: Sequence[Sequence[float]] = ()
    failure: str | None = None
    text: str = ""
    native: Mapping[str, Any] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def weight(self) -> int:
        """About how many numbers the case holds."""
        return sum(len(t.frame_times_s) + 5 * len(t.box_times_s) for t in self.truths) + sum(
            5 * len(t) for t in (self.prediction.tubes if self.prediction else ())
        )


@dataclass(slots=True, eq=False)
class Queries:
    """The queries of one split and task, by id; `notes` grows with what has to be assumed of them."""

    dataset: str
    split: str
    task: str
    records: dict[str, Record]
    fps: float | None = None
    notes: dict[str, int] = field(default_factory=dict)

    def note(self, text: str) -> None:
        self.notes[text] = self.notes.get(text, 0) + 1

    def find(self, name: str) -> Record | None:
        return self.records.get(name)

    def case(self, answer: Answer | None, record: Record, counts: Counts) -> Case:
        """The case of a query; answer None: the file has none."""
        if self.task == "tvg":
            return self._spans(answer, record, counts)
        facts = self._facts(record)
        truths, note = truths_of(record, facts)
        if note:
            self.note(note if "windows" in note else "an annotation does not fit its own video")
        native: Mapping[str, Any] | None = None if answer is None else answer.native
        prediction = None if answer is None else to_prediction(answer, self._frame(record, facts), counts)
        return Case(
            record.id,
            tuple(truths),
            prediction,
            failure="no prediction" if prediction is None else prediction.failure,
            text="" if answer is None else answer.text,
            native=native,
            extra={"targets": record.targets},
        )

    def _spans(self, answer: Answer | None, record: Record, counts: Counts) -> Case:
        windows: list[list[float]] = []
        failure: str | None = "no prediction"
        if answer is not None:
            video = record.video
            frame = Frame(None if video.fps is None else float(video.fps), duration_s=video.duration_s)
            windows, why = check_windows(answer, frame, counts)
            failure = None if why is None else f"{why[0]}: {why[1]}"
            if failure is None and not windows:
                failure = "no window in the answer"
        if record.spans_kind == "votes":
            raise DataError(
                f"{record.dataset} has one span per annotator: score it with `tubelet eval` (protocol didemo)"
            )
        return Case(
            record.id,
            windows=windows,
            true_windows=[[span.start_s, span.end_s] for span in record.spans],
            failure=failure,
            text="" if answer is None else answer.text,
            native=None if answer is None else answer.native,
            extra={"duration": record.video.duration_s, **record.extra},
        )

    def _frame(self, record: Record, facts: VideoFacts) -> Frame:
        video = record.video
        return Frame(
            None if video.fps is None and self.fps is None else self.fps or float(video.fps or 0),
            video.frame_count,
            video.duration_s or (facts.duration_s if video.frame_count and video.fps else None),
            video.width,
            video.height,
        )

    def _facts(self, record: Record) -> VideoFacts:
        """The video as its annotation describes it."""
        video = record.video
        fps: Fraction | None = video.fps if self.fps is None else as_fps(self.fps)
        moments = [t.times_s for t in record.targets if t.frame_index is None and t.times_s is not None]
        if fps is None and moments:
            gaps = np.concatenate([np.diff(at) for at in moments])
            fps = as_fps(1.0 / float(gaps.min())) if len(gaps) else Fraction(1)
            self.note(
                "no frame rate in the annotation: its annotated moments are the frames that are counted"
            )
        if fps is None:
            fps = as_fps(ASSUMED_FPS)
            self.note(
                f"no frame rate in the annotation: {ASSUMED_FPS:g} frames per second are assumed (--fps)"
            )
        spans_end = max((s.end_s for s in record.spans), default=0.0)
        frames_end = max((r.end for r in (record.frames, record.given_frames) if r is not None), default=0)
        for target in record.targets:
            if target.frame_index is not None and len(target.frame_index):
                frames_end = max(frames_end, int(target.frame_index[-1]) + 1)
            elif target.times_s is not None and len(target.times_s):
                frames_end = max(frames_end, int(np.floor(float(target.times_s[-1]) * fps + 1e-6)) + 1)
        stated = video.frame_count or int(np.ceil((video.duration_s or spans_end) * fps))
        count = max(1, stated, frames_end, int(np.ceil(spans_end * fps)) if moments else 0)
        if count > 10_000_000:
            raise DataError(f"{record.id}: a video of {count} frames is no video")
        times = np.arange(count) / float(fps)
        if not (video.width and video.height) and any(t.unit == "pixel" for t in record.targets):
            raise DataError(
                f"{record.id} of {record.dataset}: true boxes are in pixels and the annotation has no frame size"
            )
        duration_s = max(video.duration_s or 0.0, float(count / fps))
        return VideoFacts(video_key(video), "", times, fps, duration_s, video.width or 1, video.height or 1)


def load_queries(
    benchmark: str, data: Path | str, split: str | None, tasks: Sequence[str], fps: float | None
) -> Queries:
    """The labelled queries of one split of a dataset and of the first of `tasks` that it has.

    DataError for an unknown dataset or split, broken annotations, and where nothing is to be scored.
    """
    module = open_dataset(benchmark)
    name = str(module.NAME)
    splits: tuple[str, ...] = tuple(module.SPLITS)
    chosen = split or DEFAULT_SPLITS.get(name, "test" if "test" in splits else splits[0])
    found: dict[str, dict[str, Record]] = {}
    hidden = 0
    for record in read(benchmark, data, chosen):
        if record.video.kind == "image" or not record.labelled:
            hidden += not record.labelled
            continue
        found.setdefault(record.task, {})[record.id] = record
    task = next((t for t in tasks if found.get(t)), None)
    if task is None:
        there = ", ".join(sorted(found)) or "nothing"
        why = f"; {hidden} queries have hidden labels" if hidden else ""
        raise DataError(
            f"{name} {chosen} has no labelled queries of task {' or '.join(tasks)} (there is {there}{why})"
        )
    records = found[task]
    by_qid = {str(r.source["qid"]): r for r in records.values() if "qid" in r.source}
    return Queries(name, chosen, task, {**by_qid, **records} if by_qid else records, fps)
