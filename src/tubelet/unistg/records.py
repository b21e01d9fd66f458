"""The records between the four stages: Caption -> Phrase -> Detected -> Refined -> Sample, or Drop at any stage.

Analyzer makes Phrases of a Caption, Annotator a Detected of a Phrase, Refiner a Refined of it, Filter a Sample of that.
Times are seconds of the whole video, spans half-open, boxes xyxy as fractions of the displayed frame. Every record
carries the one before it, so provenance is never looked up: it is there. All of them go to JSON and back (`to_dict`,
`from_dict`; numbers with 6 decimals); a record that breaks its rules raises DataError.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from tubelet.errors import DataError
from tubelet.tube import Span, Tube

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Caption:
    """One sentence about a stretch of a video, with the coarse times of its source.

    id: unique within the build ("didemo:train:1234"). source: dataset. video: path relative to the videos' folder.
    duration_s: of the whole video where the source says it. The text may be empty: the analyzer says so, and counts it.
    """

    id: str
    source: str
    video: str
    text: str
    span: Span
    duration_s: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.id, str) or not self.id or not isinstance(self.source, str):
            raise DataError(f"a caption has an id and a source (texts), got {self.id!r} and {self.source!r}")
        if not isinstance(self.video, str) or not self.video:
            raise DataError(f"caption {self.id!r:.80} names no video: got {self.video!r}")
        if not isinstance(self.text, str):
            raise DataError(f"caption {self.id!r:.80}: the text is a string, got {self.text!r:.80}")
        if not isinstance(self.span, Span):
            raise DataError(f"caption {self.id!r:.80}: the span is a Span, got {self.span!r:.80}")
        d = self.duration_s
        if d is not None and (isinstance(d, bool) or not isinstance(d, int | float) or not 0 < d < math.inf):
            raise DataError(f"caption {self.id!r:.80}: duration_s is seconds above 0 or null, got {d!r}")

    def to_dict(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "source": self.source,
            "video": self.video,
            "text": self.text,
            "span": self.span.to_dict(),
            "duration_s": None if self.duration_s is None else round(self.duration_s, 6),
        }

    @classmethod
    def from_dict(cls, data: Any) -> Caption:
        got = _fields(data, ("id", "source", "video", "text", "span"), "caption")
        span = Span.from_dict(got["span"])
        return cls(got["id"], got["source"], got["video"], got["text"], span, got.get("duration_s"))


@dataclass(frozen=True, slots=True)
class Phrase:
    """A thing of the caption that can be located. subject: it is what the sentence is about (the first one).

    text: the noun phrase for the detector ("a red ball"). analyzer: which one said so ("rules", or a model's name).
    """

    caption: Caption
    text: str
    subject: bool
    analyzer: str

    def __post_init__(self) -> None:
        if not isinstance(self.text, str) or not self.text.strip():
            raise DataError(f"a phrase of caption {self.caption.id!r:.80} has words, got {self.text!r}")
        if not isinstance(self.subject, bool) or not isinstance(self.analyzer, str):
            raise DataError(f"phrase {self.text!r:.80}: subject is true or false, analyzer is a text")

    @property
    def key(self) -> str:
        """Unique within the build: the caption's id and the phrase."""
        return f"{self.caption.id}#{self.text}"

    def to_dict(self) -> dict[str, Any]:
        return {
            "caption": self.caption.to_dict(),
            "text": self.text,
            "subject": self.subject,
            "analyzer": self.analyzer,
        }

    @classmethod
    def from_dict(cls, data: Any) -> Phrase:
        got = _fields(data, ("caption", "text", "subject", "analyzer"), "phrase")
        return cls(Caption.from_dict(got["caption"]), got["text"], got["subject"], got["analyzer"])


@dataclass(frozen=True, slots=True, eq=False)
class Detected:
    """The boxes of a phrase in the sampled frames of the coarse span, before anything is judged.

    times_s: (T,) moments of the sampled frames. boxes_xyxy: (T) arrays (N_t, 4), scores: (T) arrays (N_t,).
    track_ids: (T) integer arrays (N_t,), -1 where the provider does not track.
    annotator: provider and its settings; video_sha256: content of the video that was looked at
    (`proposals.video_hash`). span: the coarse span cut at the ends of the video, what was looked at.
    n_cut: boxes beyond the most that are kept per frame, which were left out.
    """

    phrase: Phrase
    times_s: FloatArray
    boxes_xyxy: tuple[FloatArray, ...]
    scores: tuple[FloatArray, ...]
    track_ids: tuple[IntArray, ...]
    annotator: str
    video_sha256: str
    span: Span | None = None
    n_cut: int = 0

    def __post_init__(self) -> None:
        times = _numbers(self.times_s, "times_s")
        if times.ndim != 1 or not len(times) or (np.diff(times) <= 0).any() or times[0] < 0:
            raise DataError(
                "a Detected has at least one moment, times_s (T,) at or after 0 that increase strictly"
            )
        n = len(times)
        if not len(self.boxes_xyxy) == len(self.scores) == len(self.track_ids) == n:
            raise DataError(
                f"boxes, scores and track ids are one array per moment: {n} moments, got "
                f"{len(self.boxes_xyxy)}, {len(self.scores)} and {len(self.track_ids)}"
            )
        boxes = tuple(_boxes(b) for b in self.boxes_xyxy)
        scores = tuple(_numbers(s, "scores").reshape(-1) for s in self.scores)
        ids = tuple(np.asarray(i, dtype=np.int64).reshape(-1) for i in self.track_ids)
        if any(not len(b) == len(s) == len(i) for b, s, i in zip(boxes, scores, ids, strict=True)):
            raise DataError("every box of a Detected has a score and a track id (-1: none)")
        _check_boxes(np.concatenate(boxes), np.concatenate(scores))
        for name, value in (
            ("times_s", times),
            ("boxes_xyxy", boxes),
            ("scores", scores),
            ("track_ids", ids),
        ):
            object.__setattr__(self, name, value)

    @property
    def coarse(self) -> Span:
        return self.phrase.caption.span if self.span is None else self.span

    def to_dict(self) -> dict[str, Any]:
        return {
            "phrase": self.phrase.to_dict(),
            "span": None if self.span is None else self.span.to_dict(),
            "times_s": _plain(self.times_s),
            "boxes_xyxy": [_plain(b) for b in self.boxes_xyxy],
            "scores": [_plain(s) for s in self.scores],
            "track_ids": [i.tolist() for i in self.track_ids],
            "annotator": self.annotator,
            "video_sha256": self.video_sha256,
            "n_cut": self.n_cut,
        }

    @classmethod
    def from_dict(cls, data: Any) -> Detected:
        names = ("phrase", "times_s", "boxes_xyxy", "scores", "track_ids", "annotator", "video_sha256")
        got = _fields(data, names, "detected")
        rows = [_rows(got[name], name) for name in ("boxes_xyxy", "scores", "track_ids")]
        n_cut = got.get("n_cut", 0)
        if isinstance(n_cut, bool) or not isinstance(n_cut, int):
            raise DataError(f"n_cut is a whole number, got {n_cut!r:.80}")
        return cls(
            phrase=Phrase.from_dict(got["phrase"]),
            times_s=_numbers(got["times_s"], "times_s"),
            boxes_xyxy=tuple(_numbers(b, "boxes_xyxy") for b in rows[0]),
            scores=tuple(_numbers(s, "scores") for s in rows[1]),
            track_ids=tuple(_whole(i, "track_ids") for i in rows[2]),
            annotator=str(got["annotator"]),
            video_sha256=str(got["video_sha256"]),
            span=None if got.get("span") is None else Span.from_dict(got["span"]),
            n_cut=n_cut,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Refined:
    """One box per moment and the tightened span. rows: (N,) places in `detected.times_s`; boxes_xyxy: (N, 4);
    scores: (N,); n_boxes: (N,) how many boxes the frame held in all (what the Filter judges)."""

    detected: Detected
    span: Span
    rows: IntArray
    boxes_xyxy: FloatArray
    scores: FloatArray
    n_boxes: IntArray

    def __post_init__(self) -> None:
        if self.rows.ndim != 1:
            raise DataError(f"rows of a Refined are (N,) places, got {self.rows.shape}")
        n = len(self.rows)
        shapes = (self.boxes_xyxy.shape, self.scores.shape, self.n_boxes.shape)
        if not n or shapes != ((n, 4), (n,), (n,)):
            raise DataError(
                f"a Refined holds rows (N,), boxes (N, 4), scores (N,), n_boxes (N,), got {n}, {shapes}"
            )
        if self.rows[0] < 0 or self.rows[-1] >= len(self.detected.times_s) or (np.diff(self.rows) <= 0).any():
            raise DataError("rows of a Refined are places in the moments of its Detected, in order")

    @property
    def times_s(self) -> FloatArray:
        return self.detected.times_s[self.rows]

    def to_dict(self) -> dict[str, Any]:
        return {
            "detected": self.detected.to_dict(),
            "span": self.span.to_dict(),
            "rows": self.rows.tolist(),
            "boxes_xyxy": _plain(self.boxes_xyxy),
            "scores": _plain(self.scores),
            "n_boxes": self.n_boxes.tolist(),
        }

    @classmethod
    def from_dict(cls, data: Any) -> Refined:
        got = _fields(data, ("detected", "span", "rows", "boxes_xyxy", "scores", "n_boxes"), "refined")
        boxes, scores = _boxes(got["boxes_xyxy"]), _numbers(got["scores"], "scores")
        _check_boxes(boxes, scores)
        whole = [_whole(got[k], k) for k in ("rows", "n_boxes")]
        span = Span.from_dict(got["span"])
        return cls(Detected.from_dict(got["detected"]), span, whole[0], boxes, scores, whole[1])


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One kept training sample: sentence, video, tube. provenance: ids, models, thresholds, hashes (JSON values)."""

    id: str
    video: str
    sentence: str
    tube: Tube
    provenance: dict[str, object] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "task": "stvg",
            "video": self.video,
            "sentence": self.sentence,
            "tube": self.tube.to_dict(),
            "provenance": self.provenance,
        }

    @classmethod
    def from_dict(cls, data: Any) -> Sample:
        got = _fields(data, ("id", "video", "sentence", "tube"), "sample")
        if not all(isinstance(got[k], str) and got[k] for k in ("id", "video", "sentence")):
            raise DataError(f"a sample has an id, a video and a sentence, got {got!r:.120}")
        provenance = _fields(got.get("provenance", {}), (), "provenance")
        return cls(got["id"], got["video"], got["sentence"], Tube.from_dict(got["tube"]), dict(provenance))


@dataclass(frozen=True, slots=True)
class Drop:
    """What was not kept: at which stage ("input", "analyzer", "annotator", "refiner", "filter"), why as a code, and in
    words."""

    key: str
    stage: str
    reason: str
    detail: str = ""

    def to_dict(self) -> dict[str, str]:
        return {"key": self.key, "stage": self.stage, "reason": self.reason, "detail": self.detail}

    @classmethod
    def from_dict(cls, data: Any) -> Drop:
        got = _fields(data, ("key", "stage", "reason"), "drop")
        values = [got["key"], got["stage"], got["reason"], got.get("detail", "")]
        if not all(isinstance(value, str) for value in values):
            raise DataError(f"key, stage, reason and detail of a drop are texts, got {values!r:.120}")
        return cls(*values)


def _fields(data: Any, names: tuple[str, ...], what: str) -> Mapping[str, Any]:
    if not isinstance(data, Mapping):
        raise DataError(f"a {what} is a JSON object, got {type(data).__name__}")
    missing = [name for name in names if name not in data]
    if missing:
        raise DataError(
            f"a {what} needs {', '.join(missing)}; it has {', '.join(map(str, data)) or 'nothing'}"
        )
    return data


def _rows(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise DataError(f"{what} is a list with one list per moment, got {value!r:.80}")
    return list(value)


def _numbers(values: Any, what: str) -> FloatArray:
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{what} must be numbers, got {values!r:.80}") from error
    if not np.isfinite(array).all():
        raise DataError(f"{what} must be finite, it holds NaN or infinity")
    return array


def _boxes(values: Any) -> FloatArray:
    array = _numbers(values, "boxes_xyxy")
    if array.size % 4:
        raise DataError(f"a box has four numbers, got {array.shape}")
    return array.reshape(-1, 4)


def _whole(values: Any, what: str) -> IntArray:
    array = _numbers(values, what)
    if (array != np.round(array)).any() or (np.abs(array) > 2**53).any():
        raise DataError(f"{what} are whole numbers, got {values!r:.80}")
    return array.astype(np.int64)


def _check_boxes(boxes: FloatArray, scores: FloatArray) -> None:
    if len(boxes) and (boxes.min() < -1e-6 or boxes.max() > 1 + 1e-6 or (boxes[:, 2:] < boxes[:, :2]).any()):
        raise DataError(
            "boxes are x0, y0, x1, y1 as fractions of the frame in [0, 1] (pixels or xywh given?)"
        )
    if len(scores) and (scores.min() < 0 or scores.max() > 1):
        raise DataError(f"scores are in [0, 1], got {scores.min():g} to {scores.max():g}")


def _plain(array: FloatArray) -> list[Any]:
    rounded: list[Any] = np.round(array, 6).tolist()
    return rounded
