"""OWLv2 (transformers Owlv2*) on every N-th frame, its boxes joined by overlap.

The lightest of the learned providers: one forward per detection frame, no masks. Memory is that of one frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tubelet.proposals.detections import Detection, Failures, associate, detect_every
from tubelet.proposals.hub import load, need_phrases
from tubelet.proposals.source import Picture, Source, fitted
from tubelet.proposals.track import Found


@dataclass(frozen=True, slots=True)
class Owlv2Settings:
    """model: folder or hub id. every: frames looked at (rows of the grid) between detections. threshold: least score
    of a box.

    min_iou, max_gap_s, min_seen, max_tracks: see `detections.associate`. long_side: pictures are made no larger.
    """

    model: str = "google/owlv2-base-patch16-ensemble"
    every: int = 1
    threshold: float = 0.2
    min_iou: float = 0.3
    max_gap_s: float = 2.0
    min_seen: int = 2
    max_tracks: int = 64
    long_side: int = 960
    device: str | None = None


def propose_owlv2(source: Source, phrases: Sequence[str], settings: Owlv2Settings) -> Found:
    """Tracks of the phrases, best first."""
    import torch

    texts = list(need_phrases("owlv2", tuple(phrases)))
    part = load(settings.model, ("Owlv2Processor", "Owlv2ForObjectDetection"), ("owlv2",), settings.device)

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def detect(picture: Picture) -> list[Detection]:
        height, width = picture.shape[:2]
        inputs = part.processor(
            text=[[f"a photo of {text}" for text in texts]],
            images=picture,
            return_tensors="pt",
            truncation=True,  # its text encoder reads 16 tokens
        ).to(part.device, part.dtype)
        outputs = part.model(**inputs)
        found = part.processor.post_process_grounded_object_detection(
            outputs, threshold=settings.threshold, target_sizes=[(height, width)], text_labels=[texts]
        )[0]
        boxes = found["boxes"].float().cpu().numpy().astype("float64") / [width, height, width, height]
        return [
            Detection(box, float(score), str(label))
            for box, score, label in zip(boxes, found["scores"], found["text_labels"], strict=True)
        ]

    failures = Failures("OWLv2", "long_side, or use a smaller model")
    size = fitted(source, None, settings.long_side)
    found = detect_every(source, settings.every, size, detect, failures)
    tracks, notes, n_clipped = associate(
        found,
        source.grid,
        min_iou=settings.min_iou,
        max_gap_s=settings.max_gap_s,
        min_seen=settings.min_seen,
        max_tracks=settings.max_tracks,
    )
    return Found(tracks, failures.notes() + notes, n_clipped, failures.failed)
