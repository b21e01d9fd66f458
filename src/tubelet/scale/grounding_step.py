"""The step of a grounding job: a worker loads the model once; one item is one video with all its questions.

`make_grounding(**options)` is what the engines import. Each window of a video that is asked about is encoded once, all
its questions are asked together. A video that cannot be read fails the item (it is tried again, then set aside); a
question that cannot be asked is a failed prediction of its own. A result is one line of predictions.jsonl: {"id",
"prediction"}, without timings, so that it does not depend on when and where it was made.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tubelet.config_io import from_dict
from tubelet.errors import OutputError, QueryError, TubeletError, VideoError
from tubelet.scale.pairs import Pair, safe_name
from tubelet.tube import Prediction, Span
from tubelet.video import Video, open_video
from tubelet.video.probe import IMAGE_SUFFIXES
from tubelet.zeroshot.options import ZeroShotOptions, load_chosen

OVERLAYS = "overlays"


def make_grounding(
    model: str,
    name: str,
    method: str = "",
    device: str = "",
    dtype: str = "",
    span_reader: str = "",
    threads: int = 0,
    overlays: str = "",
    folder: str = "",
    **zero_shot: Any,
) -> Callable[[str, Sequence[str]], list[str]]:
    """Load the model; returns step(key, payloads of the pairs of one video) -> lines.

    Args:
        model, method, device, dtype: of `tubelet.load`; "" for its default.
        name: what the predictions call the model.
        threads: of torch, in this process; 0 leaves them.
        overlays: "", "video" or "question": annotated videos in `folder`/overlays.
        zero_shot: fields of `zeroshot.options.ZeroShotOptions`.
    """
    import torch

    if threads:
        torch.set_num_threads(threads)
    grounder = load_chosen(
        model, method, from_dict(ZeroShotOptions, zero_shot), device or None, dtype or None
    )

    def step(key: str, payloads: Sequence[str]) -> list[str]:
        if not payloads:  # all its pairs were repeated ids, left out
            return []
        pairs = [Pair.from_json(payload) for payload in payloads]
        opened = open_video(pairs[0].path)
        found = ground_video(grounder, opened, pairs, span_reader or None)
        named = [_named(prediction, name) for prediction in found]
        if not overlays:
            return [line_of(pair, prediction) for pair, prediction in zip(pairs, named, strict=True)]
        drawn = _draw(opened, pairs, named, Path(folder) / OVERLAYS, overlays)
        return [
            line_of(pair, _noted(prediction, target.problem), target.file)
            for pair, prediction, target in zip(pairs, named, drawn, strict=True)
        ]

    return step


def ground_video(
    grounder: Any, video: Video, pairs: Sequence[Pair], span_reader: str | None = None
) -> list[Prediction]:
    """One prediction per pair, in order. Raises what `encode` raises where the whole video is asked about."""
    out: dict[int, Prediction] = {}
    windows: dict[Span | None, list[int]] = {}
    for place, pair in enumerate(pairs):
        windows.setdefault(None if pair.task == "svg" else pair.window, []).append(place)
    for window, places in windows.items():
        try:
            state = _encode(grounder, video, window)
        except TubeletError as error:
            if window is None:
                raise
            for place in places:
                out[place] = failed_prediction(pairs[place], _without_path(str(error), pairs[place]))
            continue
        tasks: dict[str | None, list[int]] = {}
        for place in places:
            tasks.setdefault(pairs[place].task, []).append(place)
        for members in tasks.values():
            asked = [pairs[place] for place in members]
            out |= dict(zip(members, _ask(grounder, state, asked, span_reader), strict=True))
    return [
        replace(out[place], video=pair.video, query=pair.sentence, timings_s={})
        for place, pair in enumerate(pairs)
    ]


def _encode(grounder: Any, video: Video, window: Span | None) -> Any:
    if window is None:
        return grounder.encode(video)
    cut = window.clip(0.0, video.duration_s)
    if video.is_image:
        raise QueryError("start_s and end_s are given for an image, which has no time")
    if cut is None:
        raise VideoError(
            f"the question is about {window.start_s:g}-{window.end_s:g} s, the video lasts {video.duration_s:g} s"
        )
    return grounder.encode(video, cut)


def _ask(grounder: Any, state: Any, pairs: Sequence[Pair], span_reader: str | None) -> list[Prediction]:
    """All of one task at once; if that fails one by one, so that only the culprits fail."""
    task = pairs[0].task
    spans = [pair.window for pair in pairs] if task == "svg" else None
    try:
        found: list[Prediction] = grounder.ground_many(
            state, [pair.sentence for pair in pairs], task, spans, span_reader
        )
        return found
    except (TubeletError, RuntimeError) as error:  # torch says almost everything as RuntimeError
        if len(pairs) == 1:
            reason = " ".join(str(error).split()) or type(error).__name__
            return [failed_prediction(pairs[0], _without_path(reason, pairs[0]))]
    return [_ask(grounder, state, [pair], span_reader)[0] for pair in pairs]


def failed_prediction(pair: Pair, reason: str) -> Prediction:
    image = Path(pair.path).suffix.lower() in IMAGE_SUFFIXES
    task = pair.task or ("rec" if image else "stvg")
    return Prediction(pair.video, pair.sentence, task, failure=reason)


def _without_path(reason: str, pair: Pair) -> str:
    """Sentences name the video as its pair does."""
    return reason.replace(pair.path, pair.video)


def _named(prediction: Prediction, name: str) -> Prediction:
    if "model" not in prediction.provenance:
        return prediction
    return replace(prediction, provenance={**prediction.provenance, "model": name})


def _noted(prediction: Prediction, problem: str | None) -> Prediction:
    return prediction if problem is None else replace(prediction, notes=(*prediction.notes, problem))


def line_of(pair: Pair, prediction: Prediction, overlay: str | None = None) -> str:
    """A line of predictions.jsonl, without its end."""
    line: dict[str, Any] = {"id": pair.id, "prediction": prediction.to_dict()}
    if overlay is not None:
        line["overlay"] = overlay
    return json.dumps(line, ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class _Drawn:
    file: str | None
    problem: str | None = None


def _draw(
    video: Video, pairs: Sequence[Pair], predictions: Sequence[Prediction], folder: Path, each: str
) -> list[_Drawn]:
    """Annotated videos; per question where its picture is, as a path below the folder of the job."""
    path = pairs[0].path
    suffix = ".png" if video.is_image else ".mp4"
    if each == "video":
        target = folder / f"{safe_name(Path(path).stem, path)}{suffix}"
        return [_write(video, predictions, target, folder)] * len(pairs)
    return [
        _write(video, [prediction], folder / f"{safe_name(pair.id)}{suffix}", folder)
        for pair, prediction in zip(pairs, predictions, strict=True)
    ]


def _write(video: Video, predictions: Sequence[Prediction], target: Path, folder: Path) -> _Drawn:
    from tubelet.view import write_overlay

    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_overlay(video, predictions, target)
    except VideoError as error:  # enough frames for the model, not for a picture of all: the answers stay
        return _Drawn(None, f"no overlay: {str(error).replace(os.fspath(video.path), video.path.name)}")
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error.strerror or error}") from error
    return _Drawn(f"{folder.name}/{target.name}")
