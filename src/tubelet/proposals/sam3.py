"""SAM 3 video (transformers Sam3Video*): finds and follows everything a phrase names, with masks.

The model detects on every frame and tracks by itself. It keeps all frames of a session, so the video is worked on
in windows: a session each, things joined over the frame that two windows share. Memory is that of one window and of
the results (see `mask_paths`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tubelet.errors import RecipeError
from tubelet.proposals.detections import CRASHES, Failures, windows
from tubelet.proposals.hub import Loaded, load, need_phrases
from tubelet.proposals.mask_paths import MaskPath, MaskPaths
from tubelet.proposals.rle import Mask
from tubelet.proposals.source import Picture, Source, fitted, pictures
from tubelet.proposals.track import Found

Seen = dict[int, tuple[Mask, float, str]]  # the model's number of a thing -> mask, score, phrase


@dataclass(frozen=True, slots=True)
class Sam3Settings:
    """model: folder or hub id. window: frames per session. min_iou: masks of one thing overlap this much on the frame
    that two windows share. long_side: pictures (and masks) are made no larger. threshold: least score of a mask."""

    model: str = "facebook/sam3"
    window: int = 60
    min_iou: float = 0.5
    threshold: float = 0.0
    max_tracks: int = 64
    min_seen: int = 2
    long_side: int = 1024
    masks: bool = True
    device: str | None = None

    def __post_init__(self) -> None:
        if self.window < 1:
            raise RecipeError(f"window is at least 1 frame, got {self.window}")


def propose_sam3(source: Source, phrases: Sequence[str], settings: Sam3Settings) -> Found:
    """Tracks with masks of the phrases, best first (masks cannot leave the frame)."""
    texts = need_phrases("sam3", tuple(phrases))
    part = load(settings.model, ("Sam3VideoProcessor", "Sam3VideoModel"), ("sam3_video",), settings.device)
    failures = Failures("SAM 3", "window or long_side")
    paths = MaskPaths(len(source.grid), settings.min_seen, settings.max_tracks, settings.masks)
    shared: list[tuple[MaskPath, Mask]] = []  # who was where on the frame that begins the coming window
    for window in windows(pictures(source, fitted(source, None, settings.long_side)), settings.window):
        session = _session(part, texts)
        path_of: dict[int, MaskPath] = {}
        last: list[tuple[MaskPath, Mask]] = []
        for place, (row, picture) in enumerate(window):
            failures.tried += 1
            try:
                seen = _step(part, session, picture)
            except CRASHES as error:
                failures.add(row, error)
                session, path_of = _session(part, texts), {}  # its state may be half changed
                shared = last
                paths.only(path for path, _ in shared)
                continue
            last = []
            for number, (mask, score, label) in seen.items():
                if score < settings.threshold:
                    continue
                if number not in path_of:
                    known = _known(mask, label, shared, settings.min_iou)
                    path_of[number] = known or paths.start(label, score)
                    shared = [item for item in shared if item[0] is not path_of[number]]
                path = path_of[number]
                path.score = max(path.score, score)
                path.see(row, mask, path.score)
                last.append((path, mask))
            if place == len(window) - 1:
                shared = last
        paths.only(path for path, _ in shared)
    tracks, notes = paths.finish()
    return Found(tracks, failures.notes() + notes, n_failed=failures.failed)


def _session(part: Loaded, texts: Sequence[str]) -> Any:
    session = part.processor.init_video_session(inference_device=part.device, dtype=part.dtype)
    part.processor.add_text_prompt(session, list(texts))
    return session


def _step(part: Loaded, session: Any, picture: Picture) -> Seen:
    import torch

    with torch.inference_mode():
        inputs = part.processor(images=picture, return_tensors="pt")
        result = part.model(
            inference_session=session, frame=inputs["pixel_values"][0].to(part.device, part.dtype)
        )
        found = part.processor.postprocess_outputs(
            session, result, original_sizes=[[picture.shape[0], picture.shape[1]]]
        )
    label_of = {number: text for text, numbers in found["prompt_to_obj_ids"].items() for number in numbers}
    masks = found["masks"].cpu().numpy().astype(np.bool_)
    return {
        int(number): (mask, float(score), label_of[int(number)])
        for number, mask, score in zip(found["object_ids"].tolist(), masks, found["scores"], strict=True)
    }


def _known(
    mask: Mask, label: str, shared: Sequence[tuple[MaskPath, Mask]], min_iou: float
) -> MaskPath | None:
    """Who of the window before this mask is."""
    best, path = min_iou, None
    for known, other in shared:
        if known.label == label and other.shape == mask.shape:
            iou = float((mask & other).sum() / max(1, (mask | other).sum()))
            if iou >= best:
                best, path = iou, known
    return path
