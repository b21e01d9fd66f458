"""What is measured on the validation split after training: presence thresholds, and what the data look like.

Train, val and test never share a scene (`world.choreography.scene_rng`), so neither number has seen the test split.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from tubelet.spacevllm.batch import collate, normalise
from tubelet.spacevllm.checkpoint import Bundle
from tubelet.spacevllm.domain import Domain, fit_domain, statistics
from tubelet.spacevllm.pack import pack
from tubelet.spacevllm.prompts import encode_query, make_prefix, question_text
from tubelet.spacevllm.weigh import text_presences
from tubelet.training.samples import Sample, WorldMix, world_batch


def presence_threshold(bundle: Bundle, mix: WorldMix, questions: int = 600) -> float:
    """The threshold with the best balanced accuracy of "is it in the video?" on the validation split."""
    model = bundle.model.eval()

    def presences(samples: Sequence[Sample]) -> list[float]:
        batch = collate(samples, model.config, bundle.layout, bundle.tokenizer, model.tokens_per_frame)
        batch = batch.to(model.device)
        with torch.no_grad():
            out = model(batch.packed, normalise(batch.pixels, bundle.pixel_mean, bundle.pixel_std))
        found: list[float] = out.decoder.presence_logits.sigmoid().tolist()
        return found

    return _calibrated(presences, mix, questions)


def text_presence_threshold(bundle: Bundle, mix: WorldMix, questions: int = 400) -> float:
    """The same of the answers in words: how likely must a time be, against "not in this video"?"""
    model = bundle.model.eval()
    settings = model.config, bundle.layout, bundle.tokenizer

    def presences(samples: Sequence[Sample]) -> list[float]:
        found = []
        for sample in samples:
            prefix = make_prefix(*settings, sample.times_s, sample.duration_s, model.tokens_per_frame)
            pixels = torch.from_numpy(sample.pixels).permute(0, 3, 1, 2).to(model.device)
            pixels = normalise(pixels, bundle.pixel_mean, bundle.pixel_std).to(model.base.dtype)
            state = model.encode_prefix(pack([prefix], [[]]).to(model.device), pixels)
            words = [question_text(model.config, q.task, q.query) for q in sample.questions]
            asked = [encode_query(bundle.tokenizer, text) for text in words]
            found += text_presences(bundle, state, sample.times_s, asked)
        return found

    return _calibrated(presences, mix, questions)


def _calibrated(presences: Callable[[Sequence[Sample]], list[float]], mix: WorldMix, questions: int) -> float:
    """Presences of at least so many validation questions, two in five of them about nothing, to a threshold."""
    mix = replace(mix, kind="video", batch=8, questions=4, tasks=("stvg",), absent_rate=0.4, answer_rate=0.0)
    present: list[bool] = []
    scores: list[float] = []
    step = 0
    while len(present) < questions:
        samples = world_batch(mix, step, split="val")
        scores += presences(samples)
        present += [question.present for sample in samples for question in sample.questions]
        step += 1
    return best_threshold(np.array(scores), np.array(present))


def best_threshold(scores: npt.NDArray[np.float64], present: npt.NDArray[np.bool_]) -> float:
    """Midway between two neighbouring scores, where (true positive rate + true negative rate) is largest."""
    order = np.argsort(scores)
    sorted_scores, is_present = scores[order], present[order]
    # cutting before position k: everything from k on counts as present
    kept = np.concatenate([[0], np.cumsum(is_present[::-1])])[::-1] / max(1, is_present.sum())
    rejected = np.concatenate([[0], np.cumsum(~is_present)]) / max(1, (~is_present).sum())
    k = int((kept + rejected).argmax())
    edges = np.concatenate([[0.0], sorted_scores, [1.0]])
    return float((edges[k] + edges[k + 1]) / 2)


def world_domain(mixes: Sequence[WorldMix], clips: int = 600) -> Domain:
    """What toy-world pictures of these mixes look like, for the note on footage that is something else."""
    rows: list[npt.NDArray[np.float64]] = []
    step = 0
    while len(rows) < clips:
        mix = replace(mixes[step % len(mixes)], batch=10, questions=1)
        rows += [statistics(sample.pixels) for sample in world_batch(mix, step, split="val")]
        step += 1
    return fit_domain(np.array(rows))
