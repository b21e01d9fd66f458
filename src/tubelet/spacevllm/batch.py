"""From samples to what `SpaceVLLM.forward` takes: text to ids, boxes to tensors, questions by video."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tubelet.errors import ModelError
from tubelet.spacevllm.config import SpaceVLLMConfig
from tubelet.spacevllm.dense import DenseTruth, dense_truth
from tubelet.spacevllm.loss import SpaceTruth
from tubelet.spacevllm.pack import ANY_FRAME, NO_FRAME, Packed, Suffix, pack
from tubelet.spacevllm.prompts import (
    Prefix,
    PromptLayout,
    answer_text,
    encode,
    encode_query,
    make_prefix,
    question_text,
    seconds,
    snapped,
)
from tubelet.training.samples import Sample


@dataclass(frozen=True, slots=True)
class Batch:
    packed: Packed
    pixels: torch.Tensor  # (N, 3, S, S) uint8, all frames of all samples, row after row
    truth: SpaceTruth | None  # None: no questions
    n_questions: int  # without any, the number of samples
    dense: DenseTruth | None = None
    times_s: torch.Tensor | None = None  # (N,) of the frames of videos; None: images
    replaced: int = 0  # samples that stand in for broken ones (of files)

    def to(self, device: torch.device | str) -> Batch:
        dense = None if self.dense is None else self.dense.to(device)
        return replace(
            self,
            packed=self.packed.to(device),
            pixels=self.pixels.to(device),
            truth=None if self.truth is None else self.truth.to(device),
            dense=dense,
            times_s=None if self.times_s is None else self.times_s.to(device),
        )


def collate(
    samples: Sequence[Sample],
    config: SpaceVLLMConfig,
    layout: PromptLayout,
    tokenizer: Any,
    tokens_per_frame: int,
) -> Batch:
    """Samples to one batch (each with a question, or none with any); frames may differ in number between them."""
    prefixes, suffixes = [], []
    for sample in samples:
        prefixes.append(
            make_prefix(
                config,
                layout,
                tokenizer,
                sample.times_s,
                sample.duration_s,
                tokens_per_frame,
                sample.is_image,
            )
        )
        suffixes.append([_suffix(sample, k, config, layout, tokenizer) for k in range(len(sample.questions))])
    packed = pack(prefixes, suffixes)
    n_questions = sum(len(s.questions) for s in samples)
    things = [s.things for s in samples if s.things is not None]
    wants_dense = config.dense_attributes or config.dense_actions
    return Batch(
        packed=packed,
        pixels=torch.from_numpy(np.concatenate([s.pixels for s in samples])).permute(0, 3, 1, 2),
        truth=_truth(samples, packed.frame_mask.shape[1]) if n_questions else None,
        n_questions=n_questions or len(samples),
        dense=dense_truth(things, tokens_per_frame) if wants_dense and len(things) == len(samples) else None,
        times_s=None
        if samples[0].is_image
        else torch.from_numpy(np.concatenate([s.times_s for s in samples])),
    )


def _suffix(sample: Sample, k: int, config: SpaceVLLMConfig, layout: PromptLayout, tokenizer: Any) -> Suffix:
    question = sample.questions[k]
    span = question.span
    named = None if span is None else (span.start_s, span.end_s)
    if span is not None and config.snap_answers and not sample.is_image and question.task in ("stvg", "tvg"):
        named = snapped(span, sample.times_s)
    words = question_text(config, question.task, question.query, question.span)
    if (
        not question.learn_answer
    ):  # the decoder reads the question's words only: the rest would be wasted work
        return Suffix(question=tuple(encode_query(tokenizer, words)), tail=())
    answer = answer_text(config, question.task, named, question.present, question.answer)
    ids = (*encode(tokenizer, answer), *layout.end)
    frames: tuple[int, ...] = ()
    if named is not None and config.snap_answers and question.present and question.task in ("stvg", "tvg"):
        frames = _told_frames(ids, named, sample, config, tokenizer)
    elif question.about is not None:
        frames = (ANY_FRAME,) * (len(ids) - len(layout.end)) + (NO_FRAME,) * len(layout.end)
    return Suffix(tuple(encode_query(tokenizer, words)), layout.tail, ids, frames)


def _told_frames(
    ids: Sequence[int], named_s: tuple[float, float], sample: Sample, config: SpaceVLLMConfig, tokenizer: Any
) -> tuple[int, ...]:
    """The frame whose time each answer token tells: the digits of the first time, then those of the second."""
    frames = [-1] * len(ids)
    at = 0
    for time_s in named_s:
        digits = encode(tokenizer, seconds(config, time_s))
        frame = int(np.abs(sample.times_s - time_s).argmin())
        start = next((k for k in range(at, len(ids)) if list(ids[k : k + len(digits)]) == digits), None)
        if start is None:
            raise ModelError(
                f"the tokenizer writes {seconds(config, time_s)!r} in an answer otherwise than alone, so its words for "
                "it cannot be found: set snap_answers: false, or take a tokenizer that writes digits one by one"
            )
        at = start + len(digits)
        frames[start:at] = [frame] * len(digits)
    return tuple(frames)


def _truth(samples: Sequence[Sample], n_frames: int) -> SpaceTruth:
    rows: dict[str, list[npt.NDArray[Any]]] = {"boxes": [], "has": [], "active": [], "mask": [], "about": []}
    flags: list[tuple[bool, bool, bool]] = []
    for sample in samples:
        n = len(sample.times_s)
        for question in sample.questions:
            pad = (0, n_frames - n)
            rows["boxes"].append(np.pad(_to_cxcywh(question.boxes_xyxy), (pad, (0, 0))))
            rows["has"].append(np.pad(question.has_box, pad))
            rows["active"].append(np.pad(question.active, pad))
            about = np.zeros(n, dtype=bool) if question.about is None else question.about
            rows["about"].append(np.pad(about, pad))
            rows["mask"].append(np.pad(np.ones(n, dtype=bool), pad))
            grounded = question.task in ("stvg", "tvg", "svg", "rec")
            flags.append((question.task in ("stvg", "tvg"), question.present, grounded))
    flag = torch.tensor(flags, dtype=torch.bool).reshape(-1, 3)
    return SpaceTruth(
        boxes_cxcywh=torch.from_numpy(np.stack(rows["boxes"])).float(),
        has_box=torch.from_numpy(np.stack(rows["has"])),
        active=torch.from_numpy(np.stack(rows["active"])),
        timed=flag[:, 0],
        present=flag[:, 1],
        judged=flag[:, 2],
        frame_mask=torch.from_numpy(np.stack(rows["mask"])),
        about=torch.from_numpy(np.stack(rows["about"])),
    )


def _to_cxcywh(boxes: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], axis=1)


def normalise(pixels: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """uint8 (N, 3, S, S) to the vision tower's input, on the pixels' device (send uint8, normalise there)."""
    scale = 1 / (255 * torch.tensor(std, device=pixels.device))
    shift = torch.tensor(mean, device=pixels.device) / torch.tensor(std, device=pixels.device)
    return pixels.float() * scale[:, None, None] - shift[:, None, None]


__all__ = ["Batch", "Prefix", "collate", "normalise"]
