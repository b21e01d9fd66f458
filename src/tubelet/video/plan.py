"""How to reach the wanted frames of a video: go on decoding, or jump to a keyframe. Pure functions.

A decoder can only start at a keyframe and must decode everything from there to the wanted frame. Jumping is
cheaper when it skips more frames than a jump costs; whether it is depends on the distance of keyframes and on
nothing that a caller should have to know.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Strategy = Literal["auto", "sequential", "seek"]

SEEK_COST_FRAMES = 8.0
"""What a jump costs beside the frames decoded after it, in decoded frames: as perf/decode.py measures."""


@dataclass(frozen=True, slots=True)
class Run:
    """Wanted rows [first_row, stop_row) of a grid, read from keyframe `start` on (None: the beginning)."""

    start: int | None
    first_row: int
    stop_row: int


def plan_runs(
    keyframes: npt.NDArray[np.int64],
    wanted: npt.NDArray[np.int64],
    *,
    strategy: Strategy = "auto",
    seek_cost: float = SEEK_COST_FRAMES,
) -> list[Run]:
    """How to reach the wanted frames: where to go on decoding and where to jump to a keyframe.

    keyframes, wanted: strictly increasing frame indices. Going on from frame p to frame w decodes w - p
    frames; jumping to the last keyframe k <= w costs `seek_cost` and decodes w - k + 1. For each wanted frame
    the cheaper one is taken, so the sum is the least there is. The cost of a plan is `plan_cost`.
    """
    runs: list[Run] = []
    position = -1  # the last decoded frame
    for row, frame in enumerate(wanted.tolist()):
        at = int(np.searchsorted(keyframes, frame, side="right")) - 1
        key = int(keyframes[at]) if at >= 0 else -1
        saved = key - 1 - position
        jump = {"sequential": False, "seek": saved >= 0 and key > 0, "auto": saved > seek_cost}[strategy]
        if jump or not runs:
            runs.append(Run(key if jump else None, row, row + 1))
        else:
            runs[-1] = Run(runs[-1].start, runs[-1].first_row, row + 1)
        position = frame
    return runs


def plan_cost(runs: list[Run], wanted: npt.NDArray[np.int64], seek_cost: float = SEEK_COST_FRAMES) -> float:
    """Estimated cost of a plan in decoded frames."""
    total = 0.0
    for run in runs:
        last = int(wanted[run.stop_row - 1])
        total += last + 1 if run.start is None else last - run.start + 1 + seek_cost
    return total
