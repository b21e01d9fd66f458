"""Grounding DINO finds, SAM 2 follows (transformers GroundingDino* and Sam2Video*): the paper's proposals.

arXiv 2509.15178, section 4: thresholds 0.4 / 0.4, detection every 10 frames of the video. Here `every` counts the
frames that are looked at (rows of the grid): docs/proposals.md says what that is in seconds. The video is worked on in
windows of `every` such frames, each in a SAM 2 session of its own: memory is that of one window and of the results,
whose masks are kept (see `mask_paths`). On the first frame of a window the detector runs; things that are already
followed enter by their mask, new ones by their box.

Boxes are those of the masks. A box's score is that of the thing's last detection times SAM 2's belief that it is
visible. A thing that leaves and comes back is a new track.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tubelet.errors import RecipeError
from tubelet.metrics.boxes import pairwise_iou
from tubelet.proposals.detections import CRASHES, Detection, Failures, suppress, windows
from tubelet.proposals.hub import Loaded, load, need_phrases
from tubelet.proposals.mask_paths import MaskPath, MaskPaths
from tubelet.proposals.rle import Mask, box_of
from tubelet.proposals.source import Picture, Source, fitted, pictures
from tubelet.proposals.track import Found, clip_boxes


@dataclass(frozen=True, slots=True)
class GroundingDinoSam2Settings:
    """detector, tracker: folders or hub ids. every: frames looked at (rows of the grid, not of the video) between
    detections. box_threshold, text_threshold: least score of a box and of the words it is named by. min_iou: a
    detection that overlaps a followed thing this much is that thing. max_objects: followed at a time. max_tracks:
    results. long_side: pictures (and masks) are made no larger."""

    detector: str = "IDEA-Research/grounding-dino-tiny"
    tracker: str = "facebook/sam2.1-hiera-tiny"
    every: int = 10
    box_threshold: float = 0.4
    text_threshold: float = 0.4
    min_iou: float = 0.5
    max_objects: int = 32
    max_tracks: int = 64
    min_seen: int = 2
    long_side: int = 1024
    masks: bool = True
    device: str | None = None

    def __post_init__(self) -> None:
        if self.every < 1 or self.max_objects < 1:
            raise RecipeError(f"every and max_objects are at least 1, got {self.every}, {self.max_objects}")


def propose_grounding_dino_sam2(
    source: Source, phrases: Sequence[str], settings: GroundingDinoSam2Settings
) -> Found:
    """Tracks with masks of the phrases, best first."""
    texts = need_phrases("grounding-dino-sam2", tuple(phrases))
    detector = load(
        settings.detector,
        ("GroundingDinoProcessor", "GroundingDinoForObjectDetection"),
        ("grounding-dino",),
        settings.device,
    )
    # the weights of SAM 2 for images and for videos are the same ones
    tracker = load(
        settings.tracker, ("Sam2VideoProcessor", "Sam2VideoModel"), ("sam2_video", "sam2"), settings.device
    )
    size = fitted(source, None, settings.long_side)
    failed_finding = Failures("Grounding DINO", "long_side, or use a smaller detector")
    failed_following = Failures("SAM 2", "max_objects, every or long_side, or use a smaller tracker")
    paths = MaskPaths(len(source.grid), settings.min_seen, settings.max_tracks, settings.masks)
    followed: list[tuple[MaskPath, Mask]] = []  # with the mask on the first frame of the coming window
    n_clipped = n_refused = n_full = 0
    for window in windows(pictures(source, size), settings.every):
        row, picture = window[0]
        failed_finding.tried += 1
        found: list[Detection] = []
        try:
            found = detect(detector, picture, texts, settings.box_threshold, settings.text_threshold)
        except CRASHES as error:
            failed_finding.add(row, error)
        fresh, cut = _match(found, followed, settings)
        n_clipped += cut
        room = max(0, settings.max_objects - len(followed))
        n_full += len(fresh) > room
        n_refused += max(0, len(fresh) - room)
        started = [(paths.start(d.label, d.score), d.box) for d in fresh[:room]]
        if not started and not followed:
            continue
        failed_following.tried += 1
        try:
            masks = _follow(tracker, window, followed, started)
        except CRASHES as error:
            failed_following.add(row, error)
            followed = []
            paths.only(())
            continue
        everyone = [*(path for path, _ in followed), *(path for path, _ in started)]
        for (at, _), frame in zip(window, masks, strict=True):
            for path, (mask, presence) in zip(everyone, frame, strict=True):
                path.see(at, mask, path.score * presence)
        followed = [
            (path, mask)
            for path, (mask, presence) in zip(everyone, masks[-1], strict=True)
            if presence > 0.5 and mask.any()
        ]
        paths.only(path for path, _ in followed)
    tracks, notes = paths.finish()
    if n_refused:
        notes.append(
            f"{n_refused} detections on {n_full} frames were not followed, as {settings.max_objects} things were "
            "already: raise max_objects"
        )
    return Found(
        tracks,
        [*failed_finding.notes(), *failed_following.notes(), *notes],
        n_clipped,
        failed_finding.failed + failed_following.failed,
    )


def detect(
    part: Loaded, picture: Picture, phrases: Sequence[str], box_threshold: float, text_threshold: float
) -> list[Detection]:
    """Boxes of the phrases in one picture, as fractions of it."""
    import torch

    with torch.inference_mode():
        inputs = part.processor(images=picture, text=". ".join(phrases) + ".", return_tensors="pt")
        inputs = inputs.to(part.device, part.dtype)
        outputs = part.model(**inputs)
        found = part.processor.post_process_grounded_object_detection(
            outputs,
            inputs["input_ids"],
            threshold=box_threshold,
            text_threshold=text_threshold,
            target_sizes=[(1, 1)],
        )[0]
    boxes = found["boxes"].float().cpu().numpy().astype(np.float64)
    return [
        Detection(box, float(score), phrase_of(str(words), phrases))
        for box, score, words in zip(boxes, found["scores"], found["text_labels"], strict=True)
    ]


def phrase_of(words: str, phrases: Sequence[str]) -> str:
    """The phrase that the detector's words (parts of phrases, sometimes of two) are of: most words in common."""
    said = set(words.split())
    return max(phrases, key=lambda p: (p == words, len(said & set(p.split())) / len(set(p.split()))))


def _match(
    found: list[Detection], followed: list[tuple[MaskPath, Mask]], settings: GroundingDinoSam2Settings
) -> tuple[list[Detection], int]:
    """Detections of things not yet followed, best first, cut at the frame; followed things take the new scores."""
    n_clipped = 0
    fresh: list[Detection] = []
    boxes = [box for _, mask in followed if (box := box_of(mask)) is not None]
    for detection in suppress(found, 0.7):
        cut, visible, n_cut = clip_boxes(detection.box[None], [True])
        n_clipped += n_cut
        if not visible[0]:
            continue
        overlap = pairwise_iou(np.stack(boxes), cut)[:, 0] if boxes else np.zeros(1)
        if overlap.max() >= settings.min_iou:
            path = followed[int(overlap.argmax())][0]
            path.score = max(0.5 * path.score + 0.5 * detection.score, detection.score)
        else:
            fresh.append(Detection(cut[0], detection.score, detection.label))
    return fresh, n_clipped


def _follow(
    part: Loaded,
    window: list[tuple[int, Picture]],
    followed: list[tuple[MaskPath, Mask]],
    started: list[tuple[MaskPath, Any]],
) -> list[list[tuple[Mask, float]]]:
    """Masks and presence in [0, 1] of all things (followed, then started) on every frame of the window."""
    import torch

    height, width = window[0][1].shape[:2]
    session = part.processor.init_video_session(inference_device=part.device, dtype=part.dtype)
    session.video_height, session.video_width = height, width
    old, new = list(range(len(followed))), list(range(len(followed), len(followed) + len(started)))
    if old:
        part.processor.add_inputs_to_inference_session(
            session, 0, list(old), input_masks=[mask for _, mask in followed]
        )
    if new:
        scale = np.array([width, height, width, height])
        part.processor.add_inputs_to_inference_session(
            session,
            0,
            list(new),
            input_boxes=[[(box * scale).tolist() for _, box in started]],
            original_size=(height, width),
        )
    session.obj_with_new_inputs = [*old, *new]  # the second call forgot the first
    out = []
    with torch.inference_mode():
        for _, picture in window:
            frame = part.processor(images=picture, return_tensors="pt")
            result = part.model(
                inference_session=session, frame=frame["pixel_values"][0].to(part.device, part.dtype)
            )
            masks = part.processor.post_process_masks(
                [result.pred_masks.float()], original_sizes=[[height, width]], binarize=True
            )[0]
            presence = torch.sigmoid(result.object_score_logits.float().reshape(-1)).cpu().numpy()
            shown = masks.reshape(-1, height, width).cpu().numpy().astype(np.bool_)
            out.append([(mask, float(p)) for mask, p in zip(shown, presence, strict=True)])
    return out
