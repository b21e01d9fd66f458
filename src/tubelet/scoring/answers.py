"""`Answer`: what one record of a prediction file says, as it says it; its units; `Counts` of what is odd.

Numbers are kept raw: NaN, reversed and of whatever unit. `checks` turns an answer into a `Prediction` and says what is
wrong with it. Nothing here knows a format or a protocol.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from tubelet.datasets.fields import one_line
from tubelet.datasets.record import FloatArray
from tubelet.errors import DataError

EXAMPLES = 3
"""How many examples of each odd thing are kept."""

KINDS: dict[str, str] = {
    "broken": "lines or records that cannot be read; left out",
    "duplicate-id": "records whose id was there before; the first is kept",
    "unknown-query": "records of queries that the data does not have; left out",
    "missing": "queries without a prediction; scored as the protocol scores an empty answer",
    "no-answer": "answers that say themselves that they failed; scored as empty",
    "unread": "texts in which no span or box was found; scored as empty",
    "not-finite": "answers with NaN, infinite or absurdly large numbers; failed",
    "reversed-span": "answers with a span that starts before 0 or ends before it starts; a tube fails, a window is 0",
    "inverted-box": "answers with a box whose right or lower edge lies before the other; failed",
    "mixed-units": "answers that mix pixels and fractions; failed",
    "other-unit": "answers in another unit than the declared one; failed",
    "repeated-moment": "answers with several boxes at one moment; the first counts",
    "box-outside-frame": "answers with boxes that reach outside the frame; clipped to it",
    "box-outside-span": "answers with boxes outside their own span; those boxes are left out",
    "span-outside-video": "answers whose span ends after the video; scored as they are",
    "span-from-boxes": "answers without a span; it is taken from the first and the last box",
}
"""Every count there is, and what happens to what is counted."""

Numbers = tuple[float, float]


@dataclass(slots=True)
class Counts:
    """How often each odd thing was seen, with the first examples."""

    count: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, example: str, times: int = 1) -> None:
        self.count[kind] = self.count.get(kind, 0) + times
        kept = self.examples.setdefault(kind, [])
        if len(kept) < EXAMPLES:
            kept.append(one_line(example)[:300])

    def __getitem__(self, kind: str) -> int:
        return self.count.get(kind, 0)


@dataclass(frozen=True, slots=True)
class BoxUnit:
    """What boxes are written in: fractions of the frame, thousandths of it, or pixels (of the video, or of `size`)."""

    kind: Literal["fraction", "1000", "pixel"] = "fraction"
    size: tuple[int, int] | None = None

    @classmethod
    def parse(cls, text: str) -> BoxUnit:
        """ "fraction", "1000", "pixel" or "pixel:640x360" (width x height of what the model saw)."""
        if text in ("fraction", "1000", "pixel"):
            return cls(text)  # type: ignore[arg-type]
        found = re.fullmatch(r"pixel:([1-9]\d{0,4})x([1-9]\d{0,4})", text)
        if found is None:
            raise DataError(f"boxes are in fraction, 1000, pixel or pixel:WIDTHxHEIGHT, got {text!r:.40}")
        return cls("pixel", (int(found[1]), int(found[2])))


@dataclass(frozen=True, slots=True)
class TimeUnit:
    """What times are written in: seconds, fractions of the video, native frames, frames taken at `rate` per second,
    or the numbers of frames of `of` that were taken uniformly."""

    kind: Literal["second", "fraction", "frame", "uniform"] = "second"
    rate: float | None = None
    of: int | None = None

    @classmethod
    def parse(cls, text: str) -> TimeUnit:
        """ "second", "fraction", "frame", "frame:2" (taken at 2 per second) or "uniform:100"."""
        if text in ("second", "fraction", "frame"):
            return cls(text)  # type: ignore[arg-type]
        found = re.fullmatch(r"(frame|uniform):(\d{1,6}(?:\.\d{1,6})?)", text)
        if found is not None and found[1] == "frame" and float(found[2]) > 0:
            return cls("frame", rate=float(found[2]))
        if found is not None and found[1] == "uniform" and found[2].isdigit() and int(found[2]) > 1:
            return cls("uniform", of=int(found[2]))
        raise DataError(
            f"times are in second, fraction, frame, frame:RATE or uniform:NUMBER, got {text!r:.40}"
        )


@dataclass(frozen=True, slots=True, eq=False)
class RawTube:
    """span: (start, end) or None; times (N,) and boxes (N, 4) in the answer's units, in any order."""

    span: Numbers | None
    times: FloatArray
    boxes: FloatArray
    score: float | None = None

    @classmethod
    def make(
        cls, span: Numbers | None, times: Any = (), boxes: Any = (), score: float | None = None
    ) -> RawTube:
        return cls(
            span,
            np.array(times, dtype=np.float64).reshape(-1),
            np.array(boxes, dtype=np.float64).reshape(-1, 4),
            score,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """One record. tubes: in rank order; failure: why there are none, as (kind, sentence).

    inclusive: whether a span that is counted in frames ends *on* its last frame. native: what the format's own
    evaluator needs, raw. truth: the record's own truth, for formats that carry it (see `truths.own_case`).
    """

    id: str
    where: str
    tubes: tuple[RawTube, ...] = ()
    text: str = ""
    failure: tuple[str, str] | None = None
    boxes_unit: BoxUnit = BoxUnit()
    times_unit: TimeUnit = TimeUnit()
    inclusive: bool = False
    repeats: int = 0
    size: tuple[int, int] | None = None
    native: Mapping[str, Any] | None = None
