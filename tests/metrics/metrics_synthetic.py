"""Seeded predictions for the page docs/metrics.md: HC-STVG-like queries, answered on 64 uniform frames.

400 clips of 500 frames at 25 fps; true spans of 1 to 18 s; a prediction names two of the 64 sampled frames, holds a box
on each sample between them, and ends midway to the next sample. 25 % follow somebody else, 8 % fail.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tubelet.metrics.bootstrap import bootstrap_mean
from tubelet.metrics.convert import prepare
from tubelet.metrics.evaluate import evaluate
from tubelet.metrics.protocols import PROTOCOLS
from tubelet.metrics.ragged import Ragged, Tubes
from tubelet.metrics.truth import Truth
from tubelet.metrics.tubes import Rules, score_tubes, stated_spans, volume_iou
from tubelet.tube import Prediction, Span, Tube

FPS, FRAMES, SAMPLES, QUERIES = 25, 500, 64, 400


def make(seed: int = 0) -> tuple[dict[str, Prediction], dict[str, Truth]]:
    rng = np.random.default_rng(seed)
    times = np.arange(FRAMES) / FPS
    samples = np.linspace(0, FRAMES - 1, SAMPLES).round().astype(int)
    predictions: dict[str, Prediction] = {}
    truths: dict[str, Truth] = {}
    for k in range(QUERIES):
        length = int(np.clip(rng.gamma(4, 1.6 * FPS), FPS, 450))
        start = int(rng.integers(0, FRAMES - length + 1))
        size = rng.uniform(0.1, 0.25, 2)
        path = rng.uniform(0.3, 0.7, 2) + np.cumsum(rng.normal(0, 0.003, (FRAMES, 2)), axis=0)
        path = np.clip(path, size / 2, 1 - size / 2)
        boxes = np.concatenate([path - size / 2, path + size / 2], axis=1)
        key = f"q{k:03d}"
        span = slice(start, start + length)
        truths[key] = Truth(Span(start / FPS, (start + length) / FPS), times, times[span], boxes[span])
        query = {"video": f"{key}.mp4", "query": "the woman in red who sits down", "task": "stvg"}
        if rng.random() < 0.08:
            predictions[key] = Prediction(**query, failure="the answer does not parse")
            continue
        ends = np.array([start, start + length - 1]) + rng.normal(0, 0.15 * length + 6, 2)
        first, last = np.sort([int(np.abs(samples - e).argmin()) for e in ends])
        last = min(max(last, first + 1), SAMPLES - 1)
        first = min(first, last - 1)
        shift = np.array([0.3, 0, 0.3, 0]) if rng.random() < 0.25 else rng.normal(0, 0.015, 4)
        taken = samples[first : last + 1]
        given = np.clip(boxes[taken] + shift + rng.normal(0, 0.006, (len(taken), 4)), 0, 1)
        given = np.concatenate(
            [np.minimum(given[:, :2], given[:, 2:]), np.maximum(given[:, :2], given[:, 2:])], axis=1
        )
        until = (samples[last] + samples[min(last + 1, SAMPLES - 1)] + 1) / 2
        tube = Tube(Span(taken[0] / FPS, until / FPS), taken / FPS, given)
        predictions[key] = Prediction(**query, tubes=(tube,))
    return predictions, truths


def row(name: str, tiou: float, viou: float, at3: float, at5: float) -> str:
    return f"| {name} | {100 * tiou:.1f} | {100 * viou:.1f} | {100 * at3:.1f} | {100 * at5:.1f} |"


def protocol_rows() -> list[str]:
    """m_tIoU, m_vIoU, vIoU@0.3, vIoU@0.5 (percent) of the same predictions under every protocol for one target.

    The last column: how far the vIoU of a query lies from the default's, on average and at most.
    """
    predictions, truths = make()
    default = evaluate(predictions, truths).values["vIoU"]
    out = []
    for name in PROTOCOLS:
        if name == "vstar":
            continue  # it has no vIoU
        report = evaluate(predictions, truths, name)
        rules = PROTOCOLS[name].rules
        viou = report.values["vIoU"]
        moved = 100 * np.abs(viou - default)
        line = row(
            f"`{name}`",
            report.metrics["m_tIoU"].mean,
            report.metrics["m_vIoU"].mean,
            float(rules.hit(viou, 0.3).mean()),
            float(rules.hit(viou, 0.5).mean()),
        )
        out.append(f"{line} {moved.mean():.1f} / {moved.max():.1f} |")
    return out


def choice_rows() -> list[str]:
    """The default protocol with one choice changed at a time."""
    predictions, truths = make()
    default = PROTOCOLS["tubelet"]
    base = evaluate(predictions, truths)
    tiou, viou = base.values["tIoU"], base.values["vIoU"]
    kept = np.array([key not in base.failures for key in base.ids])
    sparse = evaluate(predictions, truths, replace(default, rules=replace(default.rules, interpolate="none")))
    linear = evaluate(
        predictions, truths, replace(default, rules=replace(default.rules, interpolate="linear"))
    )
    ready = prepare([predictions[k].tube for k in base.ids], [truths[k] for k in base.ids], default)
    volume = volume_iou(ready.predicted, ready.truth, default.rules, ready.grid)

    def of(name: str, t: np.ndarray, v: np.ndarray) -> str:
        return row(name, t.mean(), v.mean(), (v > 0.3).mean(), (v > 0.5).mean())

    return [
        of("tubelet's default", tiou, viou),
        of("failed queries leave the mean", tiou[kept], viou[kept]),
        of(
            "boxes interpolated, not held to the ends of the span",
            linear.values["tIoU"],
            linear.values["vIoU"],
        ),
        of("boxes not interpolated", sparse.values["tIoU"], sparse.values["vIoU"]),
        of("volumes instead of the mean over frames", tiou, volume),
    ]


def extension_rows() -> list[str]:
    """An oracle that names exactly the right ones of 64 frames, by how its span is extended to native frames."""
    _, truths = make()
    samples = np.linspace(0, FRAMES - 1, SAMPLES).round()
    spans, keys = [], []
    for truth in truths.values():
        assert truth.span is not None
        inside = samples[truth.span.contains(samples / FPS)]
        spans.append((truth.span.start_s * FPS, truth.span.end_s * FPS))
        keys.append(inside)
    given = Tubes.stack([None] * len(keys), keys, [np.zeros((len(k), 4)) for k in keys])
    grid = Ragged.stack([samples] * len(keys))
    true = Tubes.stack(spans, [[]] * len(spans), [[]] * len(spans))
    out = []
    for extension in ("none", "last+1", "next", "midpoint"):
        stated = replace(given, spans=stated_spans(given, grid, extension))
        tiou = score_tubes(stated, true, Rules()).tiou
        out.append(
            f"| {extension} | {100 * bootstrap_mean(tiou).mean:.1f} | {100 * (tiou > 0.5).mean():.1f} |"
        )
    return out


def rule_rows() -> list[str]:
    """The options of every tube protocol, as the table of the page shows them."""
    out = []
    for name, p in PROTOCOLS.items():
        r = p.rules
        ends = r.ends if r.ends == r.tiou_ends else f"{r.ends} (tIoU {r.tiou_ends})"
        out.append(
            f"| `{name}` | {p.axis} | {r.frames} | {ends} | {'>' if r.strict else '>='} | {r.missing} | "
            f"{r.interpolate} | {r.tiou} / {r.numerator} | {', '.join(p.metrics)} |"
        )
    return out
