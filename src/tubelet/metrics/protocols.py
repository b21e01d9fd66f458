"""The named protocols, as data: which rules each public evaluator of tubes follows, and what is odd about it.

A `Protocol` says on which frames a video is scored (`axis`), how that project writes the last frame of a span in
its files (`truth_end`, `prediction_end`), the `Rules` of the formula, and which numbers it reports. Nothing here
computes; `tubelet.metrics.evaluate` scores with it, and docs/metrics.md shows it as a table.

Protocols for spans, boxes in images and multiple choice are in `moments`, `referring` and `choices`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tubelet.errors import DataError
from tubelet.metrics.tubes import Ends, Rules

Axis = Literal["seconds", "frames", "truncated_seconds", "5fps", "100_frames", "every_second"]


@dataclass(frozen=True, slots=True)
class Protocol:
    """One way to score tubes.

    axis: what positions are, and which frames there are.
        seconds: presentation times of all native frames; frames: native frame indices;
        truncated_seconds: those indices, with spans as seconds x fps without the fraction;
        5fps: indices sampled as TubeDETR does, at most 200; 100_frames: LLaVA-ST's uniform frames;
        every_second: whole seconds.
    truth_end, prediction_end: whether a span in that project's files ends after its last frame (exclusive) or on it
        (inclusive). Where the rules then read it differently, a perfect answer does not score 1.
    metrics: the values reported per query. thresholds: of the "@" columns, taken of the metrics in `hits`.
    """

    name: str
    source: str
    axis: Axis
    rules: Rules
    truth_end: Ends = "exclusive"
    prediction_end: Ends = "exclusive"
    metrics: tuple[str, ...] = ("tIoU", "vIoU", "gt_vIoU")
    hits: tuple[str, ...] = ("vIoU",)
    thresholds: tuple[float, ...] = (0.3, 0.5)
    several_targets: bool = False
    surprises: tuple[str, ...] = ()


_STCAT = Rules(missing="error", empty="error")
_CG = Rules(empty="error")
_ONE_FRAME_SHORT = (
    "a perfect answer over n frames scores (n - 1) / n: the true end is inclusive and read as exclusive"
)

PROTOCOLS: dict[str, Protocol] = {
    p.name: p
    for p in (
        Protocol(
            "tubelet",
            "tubelet's default",
            "seconds",
            Rules(interpolate="hold"),
            surprises=("every query counts: failures and wrong rejections are 0 and listed",),
        ),
        Protocol(
            "tubedetr",
            "antoyang/TubeDETR datasets/{hcstvg,vidstg}_eval.py",
            "5fps",
            Rules(frames="listed", missing="error", empty="error"),
            surprises=(
                "only frames at 5 fps count, at most 200 per video: values like exactly 0.5, which > rejects",
                "the last frame of a video is never sampled",
                "a missing box stops the evaluation of the whole set",
            ),
        ),
        Protocol(
            "stcat",
            "jy0205/STCAT datasets/evaluation/hcstvg_eval.py",
            "frames",
            _STCAT,
            truth_end="inclusive",
            surprises=(_ONE_FRAME_SHORT, "a missing box stops the evaluation"),
        ),
        Protocol(
            "cgstvg",
            "HengLan/CGSTVG, HengLan/TA-STVG datasets/evaluation/hcstvg_eval.py",
            "frames",
            _CG,
            truth_end="inclusive",
            surprises=(_ONE_FRAME_SHORT, "a query that was never predicted leaves the mean"),
        ),
        Protocol(
            "cgstvg_vidstg",
            "HengLan/CGSTVG, jy0205/STCAT datasets/evaluation/vidstg_eval.py",
            "frames",
            _STCAT,
            surprises=("stored boxes have one frame more than the span: it enters gt_vIoU only",),
        ),
        Protocol(
            "hcstvg_official",
            "tzhhhh123/HC-STVG eval_hcvg.py",
            "frames",
            Rules(ends="inclusive", tiou="keys", numerator="keys"),
            truth_end="inclusive",
            prediction_end="inclusive",
            metrics=("tIoU", "vIoU"),
            surprises=(
                "tIoU counts frames that carry boxes, not spans: boxes on every third frame are a third of the tIoU",
                "boxes outside the predicted span count; a reversed span can score",
            ),
        ),
        Protocol(
            "zeroshot",
            "zaiquanyang/LLaVA_Next_STVG stvg/datasets/evaluation/hcstvg_eval.py",
            "frames",
            Rules(ends="inclusive", empty="error"),
            truth_end="inclusive",
            prediction_end="inclusive",
            surprises=(
                "vIoU counts the last frame, tIoU does not: a one-frame span has tIoU 0 and vIoU 1",
                "a query whose inference raised leaves the mean",
            ),
        ),
        Protocol(
            "llavast",
            "appletea233/LLaVA-ST inference/src/metrics.py:eval_stvg",
            "100_frames",
            Rules(frames="keys", numerator="keys", strict=False),
            truth_end="inclusive",
            prediction_end="inclusive",
            metrics=("tIoU", "vIoU", "sIoU"),
            hits=("tIoU", "sIoU", "vIoU"),
            thresholds=(0.3, 0.5, 0.7),
            surprises=(
                "vIoU is made of boxes alone, tIoU of the stated span alone",
                "sIoU averages over frames where both have a box: one easy box is a high sIoU",
                "thresholds are >=",
            ),
        ),
        Protocol(
            "stvg_r1",
            "XiaowZhang00/stvg-r1 evaluate.py",
            "truncated_seconds",
            Rules(ends="inclusive", strict=False, point_overlap=False),
            truth_end="inclusive",
            prediction_end="inclusive",
            metrics=("tIoU", "vIoU"),
            hits=("tIoU", "vIoU"),
            thresholds=(0.3, 0.5, 0.7),
            surprises=(
                "seconds x fps is truncated to frames, and both ends count",
                "spans that share one frame score 0",
                "a frame without the chosen object is given another one: the best overlap, else the largest",
            ),
        ),
        Protocol(
            "vue_stg",
            "bytedance/vidi VUE_STG/evaluate.py",
            "every_second",
            Rules(frames="keys", numerator="keys", volume=True),
            truth_end="inclusive",
            prediction_end="inclusive",
            metrics=(
                "tIoU",
                "tRecall",
                "tPrecision",
                "vIoU",
                "vRecall",
                "vPrecision",
                "vIoU_Int",
                "volume_IoU",
            ),
            hits=(),
            thresholds=(),
            surprises=(
                "precision and vIoU_Int of a query without an answer are undefined and leave the mean",
                "a box without area is no box",
            ),
        ),
        Protocol(
            "vstar",
            "V-STaR-Bench/V-STaR eval.py",
            "every_second",
            Rules(missing="zero", strict=False),
            metrics=("tIoU", "mIoU", "AP@0.1", "AP@0.3", "AP@0.5", "AP@0.7", "AP@0.9"),
            hits=("tIoU",),
            thresholds=(0.3, 0.5, 0.7),
            surprises=(
                "boxes are found by the exact text of the second: '12.0' is not '12'",
                "several boxes in a second: the best one counts",
                "the mean over frames has nothing to do with the predicted span",
            ),
        ),
        Protocol(
            "bostvg",
            "JellyYao3000/OmniSTVG datasets/evaluation/bostvg_eval.py",
            "frames",
            _CG,
            truth_end="inclusive",
            several_targets=True,
            surprises=(
                _ONE_FRAME_SHORT,
                "boxes are matched anew in every frame, and a superfluous or missing target costs nothing",
                "the matching cost reads xyxy pixels as centre and size",
            ),
        ),
        Protocol(
            "doro",
            "Themaoqiu/DORO-STVG eval/utils/metrics.py",
            "frames",
            Rules(frames="keys", numerator="keys", strict=False, tiou_ends="inclusive"),
            truth_end="inclusive",
            prediction_end="inclusive",
            metrics=("tIoU", "vIoU", "sIoU"),
            surprises=("vIoU is made of boxes alone, tIoU of the stated span alone", "thresholds are >="),
        ),
    )
}


def protocol(name: str | Protocol) -> Protocol:
    """The protocol of this name. Raises DataError that lists the names there are."""
    if isinstance(name, Protocol):
        return name
    if name not in PROTOCOLS:
        raise DataError(f"unknown protocol {name!r}; tubes are scored by {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]
