"""The words of tubelet: `Span`, `Tube`, `Prediction`, and their JSON.

Conventions, used everywhere inside the library (every other one lives at an edge, in one converter):

- time is in seconds from the first displayed frame; a span is half-open, [start_s, end_s);
- boxes are xyxy, as fractions of the *displayed* frame (after rotation and non-square pixels), in [0, 1];
- a box belongs to a moment (`times_s`), never to a row number.

This module knows numpy and JSON, nothing of videos or models. The JSON schema is described in docs/json.md.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from tubelet.errors import DataError
from tubelet.frames import FrameGrid

FloatArray = npt.NDArray[np.float64]

SCHEMA_VERSION = 1
"""Version of the JSON written by `Prediction.to_dict`. It grows when a field changes its meaning."""

TASKS = ("stvg", "svg", "tvg", "rec", "elc", "reg", "tr", "dgc", "qa")
"""Task names (see docs/world.md for an example of each)."""

_EPS_S = 1e-6  # times are written with microseconds: two roundings of one moment may differ by this much


def _number(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | np.floating | np.integer):
        raise DataError(f"{what} must be a number, got {value!r}")
    try:
        number = float(value)
    except OverflowError as error:
        raise DataError(f"{what} is too large a number") from error
    if not math.isfinite(number):
        raise DataError(f"{what} must be finite, got {value!r}")
    return number


@dataclass(frozen=True, slots=True)
class Span:
    """A half-open interval of time, [start_s, end_s), in seconds from the first displayed frame."""

    start_s: float
    end_s: float

    def __post_init__(self) -> None:
        start_s, end_s = _number(self.start_s, "Span.start_s"), _number(self.end_s, "Span.end_s")
        if start_s < 0:
            raise DataError(f"a span starts at or after 0 s, got start_s={start_s:g}")
        if end_s <= start_s:
            raise DataError(f"a span ends after it starts, got start_s={start_s:g}, end_s={end_s:g}")
        object.__setattr__(self, "start_s", start_s)
        object.__setattr__(self, "end_s", end_s)

    @property
    def duration_s(self) -> float:
        return self.end_s - self.start_s

    def contains(self, time_s: float | npt.ArrayLike) -> Any:
        """True where start_s <= time_s < end_s; scalar in, bool out; array in, boolean array out."""
        inside = (np.asarray(time_s) >= self.start_s) & (np.asarray(time_s) < self.end_s)
        return bool(inside) if inside.ndim == 0 else inside

    def intersection_s(self, other: Span) -> float:
        return max(0.0, min(self.end_s, other.end_s) - max(self.start_s, other.start_s))

    def iou(self, other: Span) -> float:
        """Temporal intersection over union (tIoU): shared seconds over seconds covered by either."""
        shared = self.intersection_s(other)
        return shared / (self.duration_s + other.duration_s - shared)

    def clip(self, start_s: float, end_s: float) -> Span | None:
        """The part inside [start_s, end_s), or None if nothing is left."""
        lo, hi = max(self.start_s, start_s), min(self.end_s, end_s)
        return Span(lo, hi) if hi > lo else None

    def to_dict(self) -> dict[str, float]:
        # rounded as times are: a time at the start of its span stays inside
        start_s, end_s = _rounded(np.array([self.start_s, self.end_s]))
        return {"start_s": start_s, "end_s": end_s}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Span:
        _require(data, ("start_s", "end_s"), "span")
        return cls(data["start_s"], data["end_s"])


@dataclass(frozen=True, slots=True, eq=False)
class Tube:
    """When and where one thing is: a span, and a box for some of its moments.

    Args:
        span: when the sentence is true.
        times_s: (N,) strictly increasing moments inside the span (its end included), seconds.
        boxes_xyxy: (N, 4) one box per moment, fractions of the displayed frame in [0, 1], x0 <= x1, y0 <= y1.
        score: confidence in [0, 1] that this tube is right, None if the method has none.
        box_scores: (N,) confidence per box in [0, 1], or None.
        label: what the box is about, for pictures.

    N = 0 is allowed: a tube without boxes answers "when" only (task tvg).
    Arrays are copied and made read-only. Raises DataError when a rule is broken.
    """

    span: Span
    times_s: FloatArray = field(default_factory=lambda: np.empty(0))
    boxes_xyxy: FloatArray = field(default_factory=lambda: np.empty((0, 4)))
    score: float | None = None
    box_scores: FloatArray | None = None
    label: str | None = None

    def __post_init__(self) -> None:
        times = _readonly(self.times_s, "Tube.times_s")
        boxes = _readonly(self.boxes_xyxy, "Tube.boxes_xyxy")
        if boxes.size == 0:
            boxes = _readonly(np.empty((0, 4)), "Tube.boxes_xyxy")
        if times.ndim != 1 or boxes.ndim != 2 or boxes.shape[1] != 4 or len(times) != len(boxes):
            raise DataError(
                f"a tube has one box per time: times_s (N,) and boxes_xyxy (N, 4), got {times.shape} and {boxes.shape}"
            )
        if len(times):
            if (np.diff(times) <= 0).any():
                raise DataError("Tube.times_s must increase strictly")
            if times[0] < self.span.start_s - _EPS_S or times[-1] > self.span.end_s + _EPS_S:
                raise DataError(
                    f"Tube.times_s must lie in the span {self.span.start_s:g}-{self.span.end_s:g} s, "
                    f"got {times[0]:g}-{times[-1]:g} s"
                )
            if boxes.min() < -1e-6 or boxes.max() > 1 + 1e-6:
                raise DataError(
                    "Tube.boxes_xyxy are fractions of the frame in [0, 1], "
                    f"got values from {boxes.min():g} to {boxes.max():g} (pixels? divide by width and height)"
                )
            if (boxes[:, 2:] < boxes[:, :2] - 1e-9).any():
                raise DataError("Tube.boxes_xyxy are x0, y0, x1, y1 with x0 <= x1 and y0 <= y1 (xywh given?)")
            boxes = _readonly(np.clip(boxes, 0.0, 1.0), "Tube.boxes_xyxy")
        object.__setattr__(self, "times_s", times)
        object.__setattr__(self, "boxes_xyxy", boxes)
        if self.score is not None:
            object.__setattr__(self, "score", _fraction(self.score, "Tube.score"))
        if self.box_scores is not None:
            scores = _readonly(self.box_scores, "Tube.box_scores")
            if scores.shape != times.shape or (len(scores) and (scores.min() < 0 or scores.max() > 1)):
                raise DataError("Tube.box_scores must be (N,), one value in [0, 1] per box")
            object.__setattr__(self, "box_scores", scores)

    def __len__(self) -> int:
        return len(self.times_s)

    def __bool__(self) -> bool:
        """A tube is an answer, also one that holds a span and no boxes."""
        return True

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Tube):
            return NotImplemented
        same_scores = (
            self.box_scores is None
            if other.box_scores is None
            else self.box_scores is not None and np.array_equal(self.box_scores, other.box_scores)
        )
        return (
            (self.span, self.score, self.label) == (other.span, other.score, other.label)
            and np.array_equal(self.times_s, other.times_s)
            and np.array_equal(self.boxes_xyxy, other.boxes_xyxy)
            and same_scores
        )

    def __hash__(self) -> int:
        return hash((self.span, self.score, self.label, self.times_s.tobytes(), self.boxes_xyxy.tobytes()))

    def boxes_at(self, times_s: npt.ArrayLike) -> FloatArray:
        """Boxes at any moments, linearly interpolated: (M,) -> (M, 4), NaN where the tube says nothing.

        Inside the span, before the first and after the last box, the nearest box is held: a span is usually a
        little wider than the sampled moments. Outside the span, and in a tube without boxes, rows are NaN.
        """
        at = np.atleast_1d(np.asarray(times_s, dtype=np.float64))
        out = np.full((len(at), 4), np.nan)
        if len(self) == 0:
            return out
        inside = (at >= self.span.start_s - _EPS_S) & (at <= self.span.end_s + _EPS_S)
        for k in range(4):
            out[inside, k] = np.interp(at[inside], self.times_s, self.boxes_xyxy[:, k])
        return out

    def box_at(self, time_s: float) -> FloatArray | None:
        """The (4,) box at one moment, or None where the tube says nothing."""
        box = self.boxes_at([time_s])[0]
        return None if np.isnan(box[0]) else box

    def boxes_px(self, width: int, height: int) -> FloatArray:
        """(N, 4) boxes in pixels of a displayed frame of this size, as floats: pixel edges, not centres."""
        return self.boxes_xyxy * np.array([width, height, width, height], dtype=np.float64)

    def to_dict(self) -> dict[str, Any]:
        out: dict[str, Any] = {
            "span": self.span.to_dict(),
            "times_s": _rounded(self.times_s),
            "boxes_xyxy": _rounded(self.boxes_xyxy),
            "score": None if self.score is None else round(self.score, 6),
        }
        if self.box_scores is not None:
            out["box_scores"] = _rounded(self.box_scores)
        if self.label is not None:
            out["label"] = self.label
        return out

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Tube:
        _require(data, ("span", "times_s", "boxes_xyxy"), "tube")
        return cls(
            span=Span.from_dict(data["span"]),
            times_s=data["times_s"],
            boxes_xyxy=data["boxes_xyxy"],
            score=data.get("score"),
            box_scores=data.get("box_scores"),
            label=data.get("label"),
        )


@dataclass(frozen=True, slots=True)
class Prediction:
    """What any method answers for one (video, query).

    `tubes` holds usually one tube, several for several targets, and none when the answer is "not in this video".
    A query that could not be answered has a `failure` (one sentence) and no tubes: it counts as 0 and is never
    dropped. `confidence` is the probability, in [0, 1], that the queried thing is in the video at all.
    """

    video: str
    query: str
    task: str
    tubes: tuple[Tube, ...] = ()
    text: str = ""
    confidence: float | None = None
    failure: str | None = None
    grid: FrameGrid | None = None
    timings_s: Mapping[str, float] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise DataError(f"unknown task {self.task!r}; tasks are {', '.join(TASKS)}")
        if self.failure is not None and self.tubes:
            raise DataError("a failed prediction has no tubes")
        object.__setattr__(self, "tubes", tuple(self.tubes))
        object.__setattr__(self, "notes", tuple(self.notes))
        if self.confidence is not None:
            object.__setattr__(self, "confidence", _fraction(self.confidence, "Prediction.confidence"))

    @property
    def tube(self) -> Tube | None:
        """The best tube (the first), or None for "not in this video" and for failures."""
        return self.tubes[0] if self.tubes else None

    @property
    def found(self) -> bool:
        return bool(self.tubes)

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA_VERSION,
            "video": self.video,
            "query": self.query,
            "task": self.task,
            "found": self.found,
            "confidence": None if self.confidence is None else round(self.confidence, 6),
            "tubes": [tube.to_dict() for tube in self.tubes],
            "text": self.text,
            "failure": self.failure,
            "notes": list(self.notes),
            "grid": None if self.grid is None else self.grid.to_dict(),
            "timings_s": {k: round(v, 6) for k, v in self.timings_s.items()},
            "provenance": dict(self.provenance),
        }

    def to_json(self, indent: int | None = None) -> str:
        return json.dumps(self.to_dict(), ensure_ascii=False, indent=indent)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Prediction:
        _require(data, ("schema", "video", "query", "task", "tubes"), "prediction")
        if data["schema"] != SCHEMA_VERSION:
            raise DataError(
                f"this is schema {data['schema']!r} of a prediction, this tubelet reads {SCHEMA_VERSION}: "
                "use the tubelet that wrote the file, or a newer one"
            )
        for key, kind in _JSON_TYPES.items():
            if key in data and not isinstance(data[key], kind):
                raise DataError(f"{key} of a prediction is {_JSON_NAMES[kind[0]]}, got {data[key]!r:.80}")
        grid = data.get("grid")
        timings = data.get("timings_s", {})
        return cls(
            video=data["video"],
            query=data["query"],
            task=data["task"],
            tubes=tuple(Tube.from_dict(tube) for tube in data["tubes"]),
            text=data.get("text", ""),
            confidence=data.get("confidence"),
            failure=data.get("failure"),
            grid=None if grid is None else FrameGrid.from_dict(grid),
            timings_s={key: _number(value, f"timings_s.{key}") for key, value in timings.items()},
            provenance=data.get("provenance", {}),
            notes=tuple(data.get("notes", ())),
        )

    @classmethod
    def from_json(cls, text: str) -> Prediction:
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"not a JSON prediction: {error}") from error
        if not isinstance(data, dict):
            raise DataError(f"a prediction is a JSON object, got {type(data).__name__}")
        return cls.from_dict(data)


_JSON_TYPES: dict[str, tuple[type, ...]] = {
    "video": (str,),
    "query": (str,),
    "text": (str,),
    "failure": (str, type(None)),
    "tubes": (list, tuple),
    "notes": (list, tuple),
    "timings_s": (Mapping,),
    "provenance": (Mapping,),
}
_JSON_NAMES: dict[type, str] = {str: "text", list: "a list", Mapping: "an object"}


def _readonly(values: npt.ArrayLike, what: str) -> FloatArray:
    try:
        array = np.array(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{what} must be an array of numbers, got {values!r:.80}") from error
    if not np.isfinite(array).all():
        raise DataError(f"{what} must be finite, it holds NaN or infinity")
    array.flags.writeable = False
    return array


def _fraction(value: Any, what: str) -> float:
    number = _number(value, what)
    if not 0.0 <= number <= 1.0:
        raise DataError(f"{what} must be in [0, 1], got {number:g}")
    return number


def _rounded(array: FloatArray) -> list[Any]:
    rounded: list[Any] = np.round(array, 6).tolist()
    return rounded


def _require(data: Any, keys: Sequence[str], what: str) -> None:
    if not isinstance(data, Mapping):
        raise DataError(f"a {what} is a JSON object, got {type(data).__name__}")
    missing = [key for key in keys if key not in data]
    if missing:
        raise DataError(f"a {what} needs {', '.join(missing)}; it has {', '.join(data) or 'nothing'}")
