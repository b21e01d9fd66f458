"""Rejection and confidence: what a run says about sentences that are true of nothing, and about its own answers.

`rejection` needs queries that are absent from their video. `calibrations` compares two confidences with what they
claim: `Prediction.confidence` (the thing is in the video) and `Tube.score` (this answer is right, which is judged
as more than 0.5 of the headline value). A query that failed has no confidence and is counted apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tubelet.benchmarks.report.calibration import Bin, ece, reliability, wilson
from tubelet.benchmarks.report.collect import Scored
from tubelet.datasets.record import Record
from tubelet.metrics.bootstrap import Interval

RIGHT_ABOVE = 0.5
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Share:
    """k of n, with the 95 % Wilson interval of k / n."""

    k: int
    n: int

    @property
    def interval(self) -> Interval:
        share = self.k / self.n if self.n else float("nan")
        low, high = wilson(share, self.n) if self.n else (share, share)
        return Interval(share, low, high, self.n)


@dataclass(frozen=True, slots=True)
class Rejection:
    """found: of the present queries; rejected: of the absent ones (a failure finds nothing, so it is among them).

    absent_kinds: rejected, by the question type of the absent queries. roc: (M, 2) false alarms and finds as the
    threshold on the confidence falls; auroc: the area below it; both None where nothing has a confidence.
    """

    found: Share
    rejected: Share
    failed_present: int
    failed_absent: int
    absent_kinds: Mapping[str, Share]
    auroc: Interval | None
    roc: FloatArray | None


@dataclass(frozen=True, slots=True)
class Calibration:
    """title and claim say which confidence this is; n of n_asked queries have one."""

    title: str
    claim: str
    bins: tuple[Bin, ...]
    ece: float
    n: int
    n_asked: int
    base_rate: float


def rejection(scored: Scored, task: str) -> Rejection | None:
    """None where all queries of the task, or none, are true of something."""
    records = [r for r in scored.run.records if r.task == task and r.labelled]
    present, absent = [r for r in records if r.present], [r for r in records if not r.present]
    if not present or not absent:
        return None
    kinds: dict[str, list[Record]] = {}
    for record in absent:
        kinds.setdefault(str(record.tags.get("kind", "")), []).append(record)
    auroc, roc = _roc(scored, present, absent)
    return Rejection(
        found=Share(sum(_found(scored, r) for r in present), len(present)),
        rejected=Share(sum(not _found(scored, r) for r in absent), len(absent)),
        failed_present=sum(_failed(scored, r) for r in present),
        failed_absent=sum(_failed(scored, r) for r in absent),
        absent_kinds={
            kind: Share(sum(not _found(scored, r) for r in members), len(members))
            for kind, members in sorted(kinds.items())
            if len(kinds) > 1
        },
        auroc=auroc,
        roc=roc,
    )


def calibrations(scored: Scored, task: str, headline: str | None) -> tuple[Calibration, ...]:
    """Of every confidence that the run gives for this task."""
    records = [r for r in scored.run.records if r.task == task and r.labelled]
    out = []
    asked = [(_confidence(scored, r), float(r.present)) for r in records]
    if len({there for _, there in asked}) == 2:
        out.append(
            _calibration(
                "Is it there?",
                "confidence of the prediction, against: the sentence is true in the video",
                asked,
            )
        )
    values = scored.scores.parts[task].values.get(headline or "", {})
    judged = [(_score(scored, r), float(values[r.id] > RIGHT_ABOVE)) for r in records if r.id in values]
    name = headline or ""
    out.append(
        _calibration("Is it right?", f"score of the tube, against: {name} above {RIGHT_ABOVE:g}", judged)
    )
    return tuple(c for c in out if c is not None)


def _calibration(title: str, claim: str, pairs: Sequence[tuple[float | None, float]]) -> Calibration | None:
    given = [(said, right) for said, right in pairs if said is not None]
    if not given:
        return None
    said, right = np.array(given).T
    return Calibration(
        title, claim, reliability(said, right), ece(said, right), len(given), len(pairs), float(right.mean())
    )


def _confidence(scored: Scored, record: Record) -> float | None:
    line = scored.run.lines.get(record.id)
    return None if line is None or line.prediction.failure is not None else line.prediction.confidence


def _score(scored: Scored, record: Record) -> float | None:
    line = scored.run.lines.get(record.id)
    tube = None if line is None else line.prediction.tube
    return None if tube is None else tube.score


def _found(scored: Scored, record: Record) -> bool:
    line = scored.run.lines.get(record.id)
    return line is not None and line.prediction.found


def _failed(scored: Scored, record: Record) -> bool:
    line = scored.run.lines.get(record.id)
    return line is None or line.prediction.failure is not None


def _roc(
    scored: Scored, present: Sequence[Record], absent: Sequence[Record]
) -> tuple[Interval | None, FloatArray | None]:
    ups = np.array([c for r in present if (c := _confidence(scored, r)) is not None], dtype=np.float64)
    downs = np.array([c for r in absent if (c := _confidence(scored, r)) is not None], dtype=np.float64)
    if not len(ups) or not len(downs):
        return None, None
    limits = np.unique(np.concatenate([ups, downs]))[::-1]
    ups_sorted, downs_sorted = np.sort(ups), np.sort(downs)
    curve = np.stack(
        [
            1 - np.searchsorted(downs_sorted, limits, side="left") / len(downs),
            1 - np.searchsorted(ups_sorted, limits, side="left") / len(ups),
        ],
        axis=1,
    )
    points: FloatArray = np.concatenate([[[0.0, 0.0]], curve])
    low, high = _auroc_interval(ups, downs)
    return Interval(auroc(ups, downs), low, high, len(ups) + len(downs)), points


def auroc(ups: FloatArray, downs: FloatArray) -> float:
    """The share of pairs (present, absent) in which the present one has the higher confidence; ties are half."""
    below = np.searchsorted(np.sort(downs), ups, side="left")
    upto = np.searchsorted(np.sort(downs), ups, side="right")
    return float((below + upto).mean() / 2 / len(downs))


def _auroc_interval(ups: FloatArray, downs: FloatArray, resamples: int = 500) -> tuple[float, float]:
    """95 % bootstrap interval, both groups redrawn on their own."""
    rng = np.random.default_rng(0)
    drawn = [auroc(rng.choice(ups, len(ups)), rng.choice(downs, len(downs))) for _ in range(resamples)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)
