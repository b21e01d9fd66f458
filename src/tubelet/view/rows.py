"""What the pictures say about predictions: their truth, what to write for no tube, when a tube is shown.

Contract: pure functions on `Prediction` and `Tube`; no pixels. Used by all three pictures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tubelet.errors import DataError
from tubelet.tube import Prediction, Span, Tube

Truth = Mapping[str, Tube | Sequence[Tube]] | Sequence[Tube | Sequence[Tube] | None]
"""True tubes by query, or one entry per prediction. None or a missing query: unknown; (): not in it."""

_EPS_S = 1e-6  # times are written with microseconds


def truth_rows(predictions: Sequence[Prediction], truth: Truth | None) -> list[tuple[Tube, ...] | None]:
    """The true tubes of each prediction; None where they are not known, () where the thing is not in the
    video.

    Raises DataError if a sequence does not have one entry per prediction.
    """
    if truth is None:
        return [None] * len(predictions)
    given: Sequence[Tube | Sequence[Tube] | None]
    if isinstance(truth, Mapping):
        given = [truth.get(prediction.query) for prediction in predictions]
    elif len(truth) == len(predictions):
        given = truth
    else:
        raise DataError(
            f"truth has one entry per prediction ({len(predictions)}; None where it is not known), "
            f"got {len(truth)}; or give a mapping from query to tubes"
        )
    return [None if t is None else (t,) if isinstance(t, Tube) else tuple(t) for t in given]


def absence(prediction: Prediction) -> str:
    """What to write about a prediction without tubes."""
    if prediction.failure is not None:
        return f"failed: {prediction.failure}"
    if prediction.confidence is None:
        return "not in this video"
    return f"not in this video (confidence {prediction.confidence:.2f})"


def shown(tube: Tube, time_s: float) -> bool:
    """Whether a tube is on the picture at this moment: in its half-open span, microseconds apart or not."""
    return tube.span.start_s - _EPS_S <= time_s < tube.span.end_s - _EPS_S


def union(spans: Sequence[Span]) -> list[Span]:
    """The same seconds as disjoint spans in order of time."""
    out: list[Span] = []
    for span in sorted(spans, key=lambda s: s.start_s):
        if out and span.start_s <= out[-1].end_s:
            out[-1] = Span(out[-1].start_s, max(out[-1].end_s, span.end_s))
        else:
            out.append(span)
    return out


def tiou(predicted: Sequence[Span], true: Sequence[Span]) -> float:
    """Shared seconds over covered seconds of two sets of spans; for one span each it is `Span.iou`."""
    ours, theirs = union(predicted), union(true)
    shared = sum(a.intersection_s(b) for a in ours for b in theirs)
    covered = sum(span.duration_s for span in union([*ours, *theirs]))
    return shared / covered if covered else 0.0
