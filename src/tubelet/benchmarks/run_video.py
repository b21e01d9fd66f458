"""One video of a run: find it, open it, decode it where that can be done ahead, ask all its questions.

`read_group` runs in a background thread and knows no model beyond how it samples; `answer_group` runs the model. Every
question gets a line: a missing or broken video and a model that cannot answer are predictions with a reason. When a
pack of questions fails they are asked one by one, so that only the culprits fail. Errors that are neither tubelet's
own nor torch's (RuntimeError) are defects and are not caught.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from inspect import signature
from pathlib import Path
from typing import Any

from tubelet.benchmarks.questions import ASK_TOKENS, prompt_of, subtitles_of
from tubelet.benchmarks.run_folder import Line
from tubelet.benchmarks.run_truth import VideoFacts, truths_of, video_key
from tubelet.datasets.media import MediaIndex
from tubelet.datasets.record import FrameRange, Record
from tubelet.errors import DataError, TubeletError, VideoError
from tubelet.frames import Clip
from tubelet.grounder import Grounder
from tubelet.tube import Prediction, Span, Tube
from tubelet.video import Video, open_video, read_clip_report, sample_uniform

_MODEL_ERRORS = (
    TubeletError,
    RuntimeError,
)  # torch says almost everything, out of memory too, as RuntimeError


_WITH_SPAN, _WITH_BOX = ("svg", "tr", "elc"), ("elc", "reg")
_START_S = 1e-3
"""Of task elc a model is told the start only: its span is this long."""


@dataclass(frozen=True, slots=True)
class Given:
    """What a question hands over beside its words: the span (svg, tr; of elc the start), and a box (elc, reg)."""

    span: Span | None = None
    box_xyxy: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """The questions about one piece of one video. key: its `video_key`."""

    key: str
    segment: FrameRange | None
    segment_s: Span | None
    records: tuple[Record, ...]


@dataclass(frozen=True, slots=True)
class Ready:
    """A group whose video has been read: what the model encodes, or why there is nothing to encode."""

    source: Video | Clip | None
    facts: VideoFacts | None
    window: Span | None
    failure: str | None = None
    notes: tuple[str, ...] = ()
    decode_s: float = 0.0
    folders: tuple[Path, ...] = ()


def group_by_video(records: Iterable[Record]) -> list[Group]:
    """Records of one piece of one video together, in order of first appearance."""
    groups: dict[tuple[str, FrameRange | None, Span | None], list[Record]] = {}
    for record in records:
        video = record.video
        groups.setdefault((video_key(video), video.segment, video.segment_s), []).append(record)
    return [Group(key, a, b, tuple(members)) for (key, a, b), members in groups.items()]


def read_group(group: Group, media: MediaIndex, grounder: Grounder) -> Ready:
    """Open and, where the grounder's sampling is known, decode. Runs in the background thread."""
    started = time.perf_counter()
    video = group.records[0].video
    path = media.find(video)
    if path is None:
        looked = video.files[0] if video.files else video.id
        return Ready(None, None, None, f"the {video.kind} {looked} is missing from the data folder")
    file = _relative(path, media)
    facts: VideoFacts | None = None
    try:
        opened = open_video(path)
        facts = VideoFacts.of(group.key, file, opened)
        window = _window(group, facts)
        clip, notes = _decoded(grounder, opened, window)
    except VideoError as error:
        # messages name the file as it is below the data folder
        return Ready(
            None, facts, None, str(error).replace(str(path), file), decode_s=time.perf_counter() - started
        )
    except OSError as error:
        return Ready(None, facts, None, f"cannot read {file}: {error.strerror or error}")
    return Ready(clip or opened, facts, window, None, notes, time.perf_counter() - started, media.folders)


def facts_of(group: Group, media: MediaIndex) -> VideoFacts | None:
    """What scoring needs of a group's video, without decoding it; None where it cannot be opened."""
    path = media.find(group.records[0].video)
    try:
        return None if path is None else VideoFacts.of(group.key, _relative(path, media), open_video(path))
    except (VideoError, OSError):
        return None


def _relative(path: Path, media: MediaIndex) -> str:
    for folder in media.folders:
        if path.is_relative_to(folder):
            return path.relative_to(folder).as_posix()
    return path.name


def _window(group: Group, facts: VideoFacts) -> Span | None:
    """The piece that the questions are about, in seconds of the file; None for all of it."""
    if group.segment is not None:
        times = facts.times_s
        first, end = group.segment.begin, group.segment.end
        if first >= len(times):
            raise VideoError(
                f"the questions are about frames {first} to {end - 1}, {facts.file} has {len(times)} frames"
            )
        if first == 0 and end >= len(times):
            return None
        return Span(float(times[first]), float(times[end]) if end < len(times) else facts.duration_s)
    if group.segment_s is not None:
        cut = group.segment_s.clip(0.0, facts.duration_s)
        if cut is None:
            raise VideoError(
                f"the questions are about {group.segment_s.start_s:g}-{group.segment_s.end_s:g} s, "
                f"{facts.file} lasts {facts.duration_s:g} s"
            )
        return None if cut.start_s == 0 and cut.end_s >= facts.duration_s - 1e-6 else cut
    return None


def _decoded(grounder: Any, video: Video, window: Span | None) -> tuple[Clip | None, tuple[str, ...]]:
    """The frames as `encode` would take them, or None where only the grounder knows which."""
    own = getattr(grounder, "read_clip", None)
    if own is not None:
        clip, notes = own(video, window)
        return clip, tuple(notes)
    if (
        not type(grounder).__module__.startswith("tubelet.spacevllm.")
        or (video.n_frames == 1) != video.is_image
    ):
        return None, ()
    grid = sample_uniform(video, grounder.max_frames, window)
    if len(grid) == 1 and not video.is_image:
        return None, ()  # one frame of a video is no image
    side = grounder.model.image_size
    clip, report = read_clip_report(video, grid, size=(side, side))
    return clip, report.notes


def answer_group(
    grounder: Grounder, group: Group, ready: Ready, span_reader: str | None, given_span: bool
) -> list[Line]:
    """One line per question of the group, whatever happens."""
    shown = ready.facts.file if ready.facts is not None else group.key
    started = time.perf_counter()
    failure, state = ready.failure, None
    if failure is None:
        try:
            if isinstance(ready.source, Clip) or ready.window is None:
                state = grounder.encode(ready.source)
            else:
                state = grounder.encode(ready.source, ready.window)
        except _MODEL_ERRORS as error:
            failure = f"the video cannot be encoded: {error}"
    by_task: dict[str, list[Record]] = {}
    for record in group.records:
        by_task.setdefault(record.task, []).append(record)
    lines: list[Line] = []
    for task, records in by_task.items():
        if failure is not None:
            predictions = [Prediction(shown, r.query, task, failure=failure) for r in records]
            tubes: dict[str, tuple[Tube, ...]] = {}
        else:
            predictions, tubes = _ask_task(grounder, state, records, task, ready, span_reader, given_span)
        for record, prediction in zip(records, predictions, strict=True):
            finished = replace(
                prediction,
                video=shown,
                query=record.query,
                notes=(*ready.notes, *prediction.notes),
                timings_s={
                    **prediction.timings_s,
                    "decode_s": prediction.timings_s.get("decode_s", 0.0) + ready.decode_s,
                },
            )
            lines.append(Line(record.id, finished, tubes.get(record.id)))
    each = (time.perf_counter() - started) / len(lines)
    return [replace(line, seconds=each) for line in lines]


def _ask_task(
    grounder: Grounder,
    state: Any,
    records: Sequence[Record],
    task: str,
    ready: Ready,
    span_reader: str | None,
    given_span: bool,
) -> tuple[list[Prediction], dict[str, tuple[Tube, ...]]]:
    """Predictions of all questions of one task, and tubes of stvg questions asked with their true span."""
    if task == "qa":
        return [_ask(grounder, state, record, ready.folders) for record in records], {}
    facts = ready.facts
    given = _handed_over(grounder, records, task, facts)
    if isinstance(given, str):
        return [Prediction("", r.query, task, failure=given) for r in records], {}
    predictions = _ground(grounder, state, records, task, given, span_reader)
    tubes: dict[str, tuple[Tube, ...]] = {}
    if task == "stvg" and given_span:
        spans = [_true_span(r, facts) for r in records]
        asked = [(r, s) for r, s in zip(records, spans, strict=True) if s is not None]
        if asked:
            known = [Given(span) for _, span in asked]
            found = _ground(grounder, state, [r for r, _ in asked], "svg", known, None)
            if any(p.failure is None for p in found):  # else this model does not take spans
                tubes = {r.id: p.tubes for (r, _), p in zip(asked, found, strict=True)}
    return predictions, tubes


def _handed_over(
    grounder: Any, records: Sequence[Record], task: str, facts: VideoFacts | None
) -> list[Given] | str:
    """What each question comes with; one sentence where this model does not take such questions."""
    offered = getattr(grounder, "tasks", None)
    if task in _WITH_BOX and (
        "box_xyxy" not in signature(grounder.ground_many).parameters
        or (offered is not None and task not in offered)
    ):
        return f"{grounder.name} does not take task {task}, which hands over a box: a LLaVA-ST does"
    out = []
    for record in records:
        span = _true_span(record, facts) if task in _WITH_SPAN else None
        if task == "elc" and span is not None:
            span = Span(span.start_s, span.start_s + _START_S)  # the end is what is asked for
        out.append(Given(span, _given_box(record, facts) if task in _WITH_BOX else None))
    return out


def _given_box(record: Record, facts: VideoFacts | None) -> tuple[float, ...] | None:
    box = record.given_box
    if box is None or not len(box):
        return None
    width, height = (None, None) if facts is None else (facts.width, facts.height)
    fractions = box.fractions(record.video.width or width, record.video.height or height)[0]
    return tuple(float(x) for x in fractions)


def _ground(
    grounder: Grounder,
    state: Any,
    records: Sequence[Record],
    task: str,
    given: Sequence[Given],
    span_reader: str | None,
) -> list[Prediction]:
    """All at once; if that fails one by one, so that only the culprits fail."""
    queries = [r.query for r in records]
    handed = [g.span for g in given] if task in _WITH_SPAN else None
    more: dict[str, Any] = {"box_xyxy": [g.box_xyxy for g in given]} if task in _WITH_BOX else {}
    try:
        found = grounder.ground_many(state, queries, task, handed, span_reader=span_reader, **more)
        if len(found) != len(queries):
            raise DataError(f"the model gave {len(found)} answers to {len(queries)} questions")
        return found
    except _MODEL_ERRORS as error:
        if len(records) == 1:
            return [Prediction("", queries[0], task, failure=str(error) or type(error).__name__)]
    return [
        _ground(grounder, state, [record], task, [known], span_reader)[0]
        for record, known in zip(records, given, strict=True)
    ]


def _ask(grounder: Grounder, state: Any, record: Record, folders: Sequence[Path]) -> Prediction:
    started = time.perf_counter()
    grid = getattr(state, "grid", None)  # which frames the model reads, where it says so
    try:
        spoken = subtitles_of(record, folders, None if grid is None else grid.times_s)
        text = grounder.ask(
            state, prompt_of(record, spoken), max_new_tokens=ASK_TOKENS if record.choices else 64
        )
    except _MODEL_ERRORS as error:
        return Prediction("", record.query, "qa", failure=str(error) or type(error).__name__)
    return Prediction(
        "",
        record.query,
        "qa",
        text=text,
        timings_s={"answer_s": time.perf_counter() - started},
        provenance={"model": grounder.name, "revision": str(getattr(grounder, "revision", ""))},
    )


def _true_span(record: Record, facts: VideoFacts | None) -> Span | None:
    """The span that svg, tr and elc hand over; None where there is none to hand over (absent, hidden, an image)."""
    if not record.present or not (record.labelled or record.given_span or record.given_frames):
        return None
    if record.task != "stvg" and record.given_span is not None and record.given_frames is None:
        return record.given_span
    return truths_of(record, facts)[0][0].span
