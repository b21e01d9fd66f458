"""From a choice to a `Prediction`: tubes, confidence, and what was asked of which model with which settings.

Answers and failures carry the same provenance, grid, timings and notes. Two numbers say two things:

    confidence      is the thing in the video at all? The model's yes against its no to the question (`method.presence`)
    score of a tube which track is it? The share of its track among the scores of all tracks: 1 for a single one

No model here.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import numpy as np

from tubelet import __version__
from tubelet.errors import ModelError
from tubelet.tube import Prediction, Span, Tube
from tubelet.zeroshot.decompose import SubQueries
from tubelet.zeroshot.encoded import EncodedVideo, nothing_found, span_of, tube_of
from tubelet.zeroshot.method import Choice
from tubelet.zeroshot.settings import ZeroShotSettings


def changed(settings: ZeroShotSettings) -> dict[str, Any]:
    """The settings that differ from the defaults, as JSON has them."""
    plain, own = asdict(ZeroShotSettings()), asdict(settings)
    return dict(json.loads(json.dumps({name: value for name, value in own.items() if value != plain[name]})))


def common_fields(
    model: str,
    state: EncodedVideo,
    settings: ZeroShotSettings,
    parts: SubQueries | None,
    found: Choice | None,
    seconds: float,
    notes: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Of every prediction of this video, failing ones too.

    settings: those in force for the model. parts: sub-queries that were asked; None: the whole sentence alone.
    found: None where nothing was chosen. notes: of every answer of this grounder.
    """
    row = None if found is None else found.track
    return {
        "grid": state.grid,
        "timings_s": {**state.timings_s, "answer_s": seconds},
        "provenance": {
            "method": "zero-shot",
            "model": model,
            "revision": state.model[1],
            "tubelet": __version__,
            "settings": changed(settings),
            "sampling": state.sampled,
            "proposals": state.tracks.provider,
            "n_proposals": len(state.tracks),
            "token": None if found is None else found.token,
            "track": None if row is None else state.tracks[row].track_id,
            "sub_queries": None
            if parts is None
            else {"attribute": parts.attribute, "action": parts.action, "by": parts.source},
            "split_by": None if parts is None else parts.source,
            "consistency": None if found is None else found.consistency,
        },
        "notes": (*notes, *state.notes, *([parts.note] if parts is not None and parts.note else [])),
    }


def answer(
    state: EncodedVideo,
    query: str,
    task: str,
    span: Span | None,
    settings: ZeroShotSettings,
    found: Choice,
    common: dict[str, Any],
) -> Prediction:
    """Tubes of what was found, best first; a failure where there was nothing to choose from.

    span: given from outside (svg). Raises ModelError for scores that are not numbers.
    """
    if found.track is None:
        return Prediction(state.name, query, task, failure=nothing_found(state), **common)
    if not np.isfinite(found.scores).all():
        raise ModelError(
            f"the attention of {common['provenance']['model']} is not a number on this video: load it in another "
            "dtype (bfloat16 or float32)"
        )
    total = float(found.scores.sum())

    def share(row: int) -> float:
        return float(found.scores[row]) / total if total > 0 else 0.0

    if found.sure is not None and found.sure < settings.absent_below:
        return Prediction(state.name, query, task, confidence=found.sure, **common)
    tubes: list[Tube] = []
    for row, first, last in ((found.track, found.first, found.last), *found.others):
        when = span or span_of(state, first, last)
        tubes.append(tube_of(state, row, when, share(row), query, with_boxes=task != "tvg"))
    return Prediction(state.name, query, task, tuple(tubes), confidence=found.sure, **common)
