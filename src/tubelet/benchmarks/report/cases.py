"""Single queries worth looking at, as frames with truth (dashed white) and predictions (one colour per run).

    one run        the worst and the best, by the headline value; absent things that were found all the same
    several runs   where the last run wins and loses most against the first; the worst and the best on average

Equal values are ordered by confidence, the most confident first; a group shows a video once. A video that is not
there, or cannot be read, leaves a case without frames and with the reason. Only the frames that are shown are decoded.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from tubelet.benchmarks.report.breakdown import facts_of
from tubelet.benchmarks.report.collect import Scored
from tubelet.benchmarks.run_truth import VideoFacts, image_box, truths_of, video_key
from tubelet.datasets.media import MediaIndex
from tubelet.datasets.record import Record
from tubelet.errors import DataError, VideoError
from tubelet.frames import Clip
from tubelet.metrics.boxes import paired_iou
from tubelet.tube import Prediction, Span, Tube
from tubelet.video import open_video, read_clip, sample_at
from tubelet.view.overlay import Mark, OverlayStyle, draw_boxes
from tubelet.view.rows import absence, shown

FRAMES, FRAME_WIDTH, QUALITY = 6, 320, 82
_STYLE = OverlayStyle(bar="none", labels=False, scale=2.4)  # shown at about half their size


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame with what was drawn on it. iou: per run, None where it has no box or the truth has none here."""

    jpeg: bytes
    time_s: float
    true: bool
    predicted: tuple[bool, ...]
    iou: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class Case:
    """values and answers: per run. missing: why there are no frames."""

    id: str
    query: str
    video: str
    truth: str
    true_spans: tuple[Span, ...]
    values: tuple[float | None, ...]
    answers: tuple[str, ...]
    spans: tuple[tuple[Span, ...], ...]
    duration_s: float
    frames: tuple[Frame, ...] = ()
    missing: str | None = None
    is_image: bool = False


@dataclass(frozen=True, slots=True)
class CaseGroup:
    title: str
    what: str
    cases: tuple[Case, ...] = field(default=())


class Pictures:
    """Finds the videos of records: below `data`, or nowhere. Looks at the folder once, when it is first needed."""

    def __init__(self, data: Path | None) -> None:
        self.data = data
        self._index: MediaIndex | None = None

    def find(self, record: Record, facts: VideoFacts | None) -> Path | None:
        if self.data is None:
            return None
        if facts is not None and not Path(facts.file).is_absolute() and ".." not in Path(facts.file).parts:
            path = self.data / facts.file
            if path.is_file():
                return path
        if self._index is None:
            self._index = MediaIndex(self.data)
        return self._index.find(record.video)


def choose(
    runs: Sequence[Scored], task: str, headline: str | None, count: int
) -> list[tuple[str, str, list[Record]]]:
    """(title, what, records) of every group of cases that has any; `count` records each at most."""
    records = {r.id: r for r in runs[0].run.records if r.task == task and r.labelled}
    columns = [dict(s.scores.parts[task].values.get(headline or "", {})) for s in runs]
    shared = [k for k in columns[0] if all(np.isfinite(c.get(k, np.nan)) for c in columns)]
    sure = {k: max((_sureness(s, k) for s in runs), default=0.0) for k in records}
    mean = {k: float(np.mean([c[k] for c in columns])) for k in shared}
    groups: list[tuple[str, str, list[Record]]] = []

    def add(title: str, what: str, ids: Sequence[str], key: Callable[[str], tuple[float, ...]]) -> None:
        chosen: list[Record] = []
        seen: set[str] = set()
        for name in sorted(ids, key=lambda k: (*key(k), k)):
            video = video_key(records[name].video)
            if video not in seen and len(chosen) < count:
                seen.add(video)
                chosen.append(records[name])
        if chosen:
            groups.append((title, what, chosen))

    several = len(runs) > 1
    average = f" on average, by {headline}" if several else f", by {headline}"
    if several:
        gain = {k: columns[-1][k] - columns[0][k] for k in shared}
        against = f"{headline} of the last run against the first."
        add("Largest gains", against, [k for k in shared if gain[k] > 0], lambda k: (-gain[k], -sure[k]))
        add("Largest losses", against, [k for k in shared if gain[k] < 0], lambda k: (gain[k], -sure[k]))
    add(
        "Worst cases",
        f"Lowest{average}; of equals the most confident.",
        shared,
        lambda k: (mean[k], -sure[k]),
    )
    absent = [k for k, r in records.items() if not r.present and any(_finds(s, k) for s in runs)]
    add(
        "False alarms",
        "The sentence is true of nothing in the video, and something was found; the most confident first.",
        absent,
        lambda k: (-sure[k],),
    )
    worst = {r.id for _, _, found in groups for r in found}
    add(
        "Best cases",
        f"Highest{average}.",
        [k for k in shared if k not in worst],
        lambda k: (-mean[k], -sure[k]),
    )
    return groups


def make_case(runs: Sequence[Scored], record: Record, headline: str | None, pictures: Pictures) -> Case:
    """Everything about one query; frames where its video can be read."""
    facts = facts_of(runs, record)
    true, truth = _truth(record, facts)
    predictions = [s.run.lines[record.id].prediction if record.id in s.run.lines else None for s in runs]
    columns = [s.scores.parts[record.task].values.get(headline or "", {}) for s in runs]
    tubes = tuple(() if p is None else p.tubes for p in predictions)
    ends = [t.span.end_s for row in (true, *tubes) for t in row]
    duration_s = facts.duration_s if facts is not None else max([record.video.duration_s or 0.0, *ends, 1e-3])
    frames, missing = _frames(record, facts, true, tubes, pictures)
    return Case(
        id=record.id,
        query=record.query,
        video=facts.file if facts is not None else video_key(record.video),
        truth=truth,
        true_spans=tuple(t.span for t in true),
        values=tuple(c.get(record.id) for c in columns),
        answers=tuple(_said(p, record) for p in predictions),
        spans=tuple(tuple(t.span for t in row) for row in tubes),
        duration_s=duration_s,
        frames=frames,
        missing=missing,
        is_image=record.video.kind == "image",
    )


def _finds(scored: Scored, key: str) -> bool:
    return key in scored.run.lines and scored.run.lines[key].prediction.found


def _sureness(scored: Scored, key: str) -> float:
    """How sure a run is of what it says; 0 where it does not say."""
    line = scored.run.lines.get(key)
    if line is None or line.prediction.failure is not None:
        return 0.0
    tube = line.prediction.tube
    told = line.prediction.confidence if tube is None or tube.score is None else tube.score
    return 0.0 if told is None else told


def _truth(record: Record, facts: VideoFacts | None) -> tuple[tuple[Tube, ...], str]:
    """True tubes, and the truth in words."""
    if not record.present:
        return (), "not in this video"
    if record.task == "qa":
        return (), record.answer or (
            record.choices[record.answer_index] if record.answer_index is not None else ""
        )
    if record.video.kind == "image":
        tube = Tube(Span(0.0, 0.04), np.zeros(1), image_box(record, facts)[None])
        return (tube,), "one box"
    if record.task == "tvg":
        return tuple(Tube(span) for span in record.spans), _in_words(record.spans)
    try:
        truths, _ = truths_of(record, facts)
    except DataError as error:
        return (), str(error)
    tubes = tuple(
        Tube(t.span, *_inside(t.span, t.box_times_s, t.boxes_xyxy)) for t in truths if t.span is not None
    )
    return tubes, _in_words([t.span for t in tubes])


def _inside(
    span: Span,
    times_s: np.ndarray[tuple[int], np.dtype[np.float64]],
    boxes: np.ndarray[tuple[int, int], np.dtype[np.float64]],
) -> tuple[np.ndarray[tuple[int], np.dtype[np.float64]], np.ndarray[tuple[int, int], np.dtype[np.float64]]]:
    kept = (times_s >= span.start_s - 1e-6) & (times_s <= span.end_s + 1e-6)
    return times_s[kept], boxes[kept]


def _said(prediction: Prediction | None, record: Record) -> str:
    if prediction is None:
        return "no prediction"
    if prediction.failure is not None:
        return f"failed: {prediction.failure}"
    if record.task in ("qa", "tr", "reg", "dgc"):
        return prediction.text or "(an empty answer)"
    if record.video.kind == "image" and prediction.tubes:
        score = prediction.tubes[0].score
        return "one box" + ("" if score is None else f" (score {score:.2f})")
    if not prediction.tubes:
        return absence(prediction)
    score = prediction.tubes[0].score
    return _in_words([t.span for t in prediction.tubes]) + ("" if score is None else f" (score {score:.2f})")


def _in_words(spans: Sequence[Span]) -> str:
    return ", ".join(f"{s.start_s:.2f} – {s.end_s:.2f} s" for s in spans)


def _frames(
    record: Record,
    facts: VideoFacts | None,
    true: Sequence[Tube],
    tubes: Sequence[Sequence[Tube]],
    pictures: Pictures,
) -> tuple[tuple[Frame, ...], str | None]:
    if pictures.data is None:
        return (), "no frames: the folder with the videos is not known (give it with --data)"
    path = pictures.find(record, facts)
    if path is None:
        return (), f"no frames: {record.video.kind} {video_key(record.video)} is not below the data folder"
    try:
        video = open_video(path)
        grid = sample_at(video, _moments([*true, *(t for row in tubes for t in row)], video.duration_s))
        width = min(FRAME_WIDTH, video.width)
        clip = read_clip(video, grid, size=(width, max(2, round(width * video.height / video.width))))
    except (VideoError, OSError) as error:
        told = str(error).replace(str(path), path.name)
        return (), f"no frames: {told}"
    return tuple(_draw(clip, k, true, tubes) for k in range(len(clip))), None


def _moments(tubes: Sequence[Tube], duration_s: float) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """FRAMES moments, from a little before the first span to a little after the last; all of it without any."""
    lo = min((t.span.start_s for t in tubes), default=0.0)
    hi = max((t.span.end_s for t in tubes), default=duration_s)
    margin = 0.12 * (hi - lo)
    lo, hi = max(0.0, lo - margin), min(duration_s, hi + margin)
    if hi <= lo:
        lo, hi = 0.0, duration_s
    middles = lo + (np.arange(FRAMES) + 0.5) / FRAMES * (hi - lo)
    return np.clip(middles, 0.0, np.nextafter(duration_s, 0.0))


def _draw(clip: Clip, k: int, true: Sequence[Tube], tubes: Sequence[Sequence[Tube]]) -> Frame:
    time_s = float(clip.grid.times_s[k])
    pixels = np.array(clip.pixels[k])
    marks = [Mark(tube, _STYLE.colour(run)) for run, row in enumerate(tubes) for tube in row]
    draw_boxes(pixels, time_s, marks, true, _STYLE)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=QUALITY, optimize=True)
    here = [t for t in true if shown(t, time_s)]
    ious = tuple(_iou(row, here, time_s) for row in tubes)
    predicted = tuple(any(shown(t, time_s) for t in row) for row in tubes)
    return Frame(out.getvalue(), time_s, bool(here), predicted, ious)


def _iou(row: Sequence[Tube], true: Sequence[Tube], time_s: float) -> float | None:
    """Of the first tube's box and the best true one; None where either has no box at this moment."""
    ours = next((b for t in row if shown(t, time_s) and (b := t.box_at(time_s)) is not None), None)
    theirs = [b for t in true if (b := t.box_at(time_s)) is not None]
    if ours is None or not theirs:
        return None
    return max(float(paired_iou(ours[None], b[None])[0]) for b in theirs)


def case_groups(
    runs: Sequence[Scored], task: str, headline: str | None, count: int, pictures: Pictures
) -> tuple[CaseGroup, ...]:
    """The groups of `choose`, drawn."""
    made: Mapping[str, Case]
    out = []
    for title, what, records in choose(runs, task, headline, count):
        made = {r.id: make_case(runs, r, headline, pictures) for r in records}
        out.append(CaseGroup(title, what, tuple(made.values())))
    return tuple(out)
