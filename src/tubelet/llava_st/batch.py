"""From samples (frames, questions, truth) to what LLaVA-ST learns from: worded turns, packed rows, pixels.

Times are fractions from the first to the last frame of a sample, as everywhere in LLaVA-ST; a span is cut to them.
An answer lists at most `max_boxes` boxes, evenly spread over the frames of the span in which the target is seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tubelet.llava_st.coordinates import Worded, box_words, join, span_words, time_words, timed_boxes_words
from tubelet.llava_st.model import LlavaST
from tubelet.llava_st.pack import Rows, Turn, pack_rows
from tubelet.llava_st.prompts import answer, question
from tubelet.spacevllm.dense import DenseTruth, dense_truth
from tubelet.spacevllm.loss import SpaceTruth
from tubelet.training.samples import Sample, Target

TIMED = ("stvg", "tvg", "svg", "elc")
GROUNDED = ("stvg", "tvg", "svg", "rec", "elc")
MIN_SPAN = 1 / 99  # one coordinate step


@dataclass(frozen=True, slots=True)
class Batch:
    """rows; pixels (B, T, 3, S, S) uint8; positions (B, T) fractions; truth of the Q questions at the resolution of
    the slow tokens, for the training-only match; dense labels of the B * T frames."""

    rows: Rows
    pixels: torch.Tensor
    positions: torch.Tensor
    truth: SpaceTruth
    dense: DenseTruth | None
    n_questions: int

    def to(self, device: torch.device | str) -> Batch:
        return replace(
            self,
            rows=self.rows.to(device),
            pixels=self.pixels.to(device),
            positions=self.positions.to(device),
            truth=self.truth.to(device),
            dense=None if self.dense is None else self.dense.to(device),
        )


def collate(
    samples: Sequence[Sample], model: LlavaST, tokenizer: Any, max_boxes: int = 5, style: str | None = None
) -> Batch:
    """Samples of one kind (all images, or all videos of as many frames)."""
    config = model.config
    is_image = samples[0].is_image
    positions = np.stack([fractions(s.times_s) for s in samples])
    turns = [
        [
            worded_turn(target, at, sample.times_s, max_boxes, style or config.prompts)
            for target in sample.questions
        ]
        for sample, at in zip(samples, positions, strict=True)
    ]
    counts = model.counts(None if is_image else positions.shape[1])
    things = [s.things for s in samples if s.things is not None]
    side = -(-model.grid // config.packer.space)
    return Batch(
        rows=pack_rows(tokenizer, model.words, counts, turns),
        pixels=torch.from_numpy(np.stack([s.pixels for s in samples])).permute(0, 1, 4, 2, 3),
        positions=torch.from_numpy(positions),
        truth=match_truth(samples, 1 if is_image else config.packer.time),
        dense=dense_truth(things, side**2) if len(things) == len(samples) else None,
        n_questions=sum(len(s.questions) for s in samples),
    )


def fractions(times_s: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Frame times (T,) as fractions of the time from the first to the last; a single frame is at 0."""
    if len(times_s) == 1:
        return np.zeros(1)
    out: npt.NDArray[np.float64] = (times_s - times_s[0]) / (times_s[-1] - times_s[0])
    return out


def worded_turn(
    target: Target,
    at: npt.NDArray[np.float64],
    times_s: npt.NDArray[np.float64],
    max_boxes: int,
    style: str,
) -> Turn:
    """Question and true answer of a target; at (T,) fractions of its frames."""
    task = target.task
    span = None if target.span is None else span_fractions(target, times_s)
    asked = question(
        task,
        target.query,
        span=span if task in ("svg", "tr") else None,
        start=span[0] if span is not None and task == "elc" else None,
        box=target.given_box,
        style=style,
    )
    if task == "dgc":
        return Turn(asked, dgc_answer(target))
    if not target.present:
        return Turn(asked, answer(task, present=False, style=style))
    chosen = chosen_frames(target, max_boxes)
    boxes = np.clip(target.boxes_xyxy, 0.0, 1.0)
    lists_boxes = task in ("stvg", "svg", "elc")
    said = answer(
        task,
        span=None if span is None else span_words(*span, "OUTPUT"),
        box=box_words(boxes[0].tolist(), "OUTPUT") if task == "rec" else None,
        boxes=timed_boxes_words(at[chosen].tolist(), boxes[chosen].tolist()) if lists_boxes else None,
        end=None if span is None else time_words(span[1], "OUTPUT"),
        text=target.answer,
        style=style,
    )
    return Turn(asked, said, told_frames(target, chosen))


def told_frames(target: Target, chosen: npt.NDArray[np.int64]) -> tuple[int, ...]:
    """The frame of each coordinate word: ends of the span, then time and four sides of each listed box."""
    active = np.nonzero(target.active)[0]
    ends = [int(active[0]), int(active[-1])] if len(active) else [-1, -1]
    boxes = [int(frame) for frame in chosen for _ in range(5)]
    match target.task:
        case "rec":
            return (0,) * 4
        case "tvg":
            return tuple(ends)
        case "stvg":
            return (*ends, *boxes)
        case "svg":
            return tuple(boxes)
        case "elc":
            return (ends[1], *boxes)
    return ()


def span_fractions(target: Target, times_s: npt.NDArray[np.float64]) -> tuple[float, float]:
    """The true span between the first and the last frame, at least one coordinate step long."""
    assert target.span is not None
    first, length = times_s[0], max(times_s[-1] - times_s[0], 1e-6)
    start, end = (
        float(np.clip((edge - first) / length, 0.0, 1.0)) for edge in (target.span.start_s, target.span.end_s)
    )
    if end - start < MIN_SPAN:
        start = min(start, 1.0 - MIN_SPAN)
        end = start + MIN_SPAN
    return start, end


def chosen_frames(target: Target, max_boxes: int) -> npt.NDArray[np.int64]:
    """Frames whose boxes an answer lists: seen and (for spans) active ones, evenly spread; the nearest if none."""
    seen = target.has_box & target.active if target.span is not None else target.has_box
    frames = np.nonzero(seen)[0]
    if not len(frames):
        frames = np.nonzero(target.has_box)[0][:1]
    if len(frames) > max_boxes:
        frames = frames[np.unique(np.linspace(0, len(frames) - 1, max_boxes).round().astype(int))]
    return frames


def dgc_answer(target: Target) -> Worded:
    """The description, each phrase followed by its box."""
    parts: list[str | Worded] = []
    rest = target.answer
    for text, box in target.phrases:
        before, _, rest = rest.partition(text)
        parts += [before, text, box_words(np.clip(box, 0.0, 1.0).tolist(), "OUTPUT")]
    return join(*parts, rest)


def match_truth(samples: Sequence[Sample], step: int) -> SpaceTruth:
    """Truth of all questions per window of `step` frames: a box is the mean of those seen in the window."""
    rows: list[tuple[Any, ...]] = []
    flags: list[tuple[bool, bool, bool]] = []
    for sample in samples:
        for target in sample.questions:
            low, high = target.boxes_xyxy[:, :2], target.boxes_xyxy[:, 2:]
            centre = np.concatenate([(low + high) / 2, high - low], axis=1)
            has, active = (_windows(x, step) for x in (target.has_box, target.active))
            weight = has.astype(np.float64)
            boxes = (_windows(centre, step) * weight[..., None]).sum(1)
            boxes = boxes / np.maximum(weight.sum(1), 1.0)[:, None]
            rows.append((boxes, np.any(has, axis=1), np.any(active, axis=1)))
            flags.append((target.task in TIMED, target.present, target.task in GROUNDED))
    flag = torch.tensor(flags, dtype=torch.bool).reshape(-1, 3)
    boxes, has, active = (torch.from_numpy(np.stack(x)) for x in zip(*rows, strict=True))
    return SpaceTruth(
        boxes_cxcywh=boxes.float(),
        has_box=has,
        active=active,
        timed=flag[:, 0],
        present=flag[:, 1],
        judged=flag[:, 2],
        frame_mask=torch.ones_like(has),
    )


def _windows(values: npt.NDArray[Any], step: int) -> npt.NDArray[Any]:
    """(T, ...) -> (T', step, ...), the last window filled up with zeros."""
    missing = -len(values) % step
    padded = np.concatenate([values, np.zeros((missing, *values.shape[1:]), dtype=values.dtype)])
    return padded.reshape(-1, step, *values.shape[1:])
