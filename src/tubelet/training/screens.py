"""Videos that are nothing but screens of one colour, one after the other: "when the red screen".

Nothing has to be recognised here, so what is left to learn is how an answer names the time of a frame: find it, and
copy its time. Taught first, that skill is there when what has to be found becomes hard. A stream like the toy world's
(`samples.world_batch`, data kind "screens"): a function of (seed, step) alone.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tubelet.training.samples import POSE, Sample, Target, Things, WorldMix, moments
from tubelet.tube import Span

_SHORTEST_S, _LONGEST_S = 3.0, 12.0
_SCREENS = (2, 7)  # how many a video holds, at least and at most
_NOISE = 6.0  # standard deviation, of 255


def screen_batch(mix: WorldMix, step: int, split: str = "train") -> list[Sample]:
    """Batch number `step` of the stream; deterministic. Uses batch, questions, tasks, absent_rate, frames, size."""
    return [
        _screens(mix, np.random.default_rng([mix.seed, step, k, 29, *split.encode()]))
        for k in range(mix.batch)
    ]


def _screens(mix: WorldMix, rng: np.random.Generator) -> Sample:
    from tubelet.world.scene import COLOURS

    names = list(COLOURS)
    duration_s = float(rng.uniform(_SHORTEST_S, _LONGEST_S))
    times_s = moments(mix, duration_s, rng)
    count = int(rng.integers(_SCREENS[0], min(_SCREENS[1], mix.frames, len(names) - 1) + 1))
    order = rng.permutation(len(names))
    # every screen has at least one frame: changes lie between different pairs of neighbouring frames
    changes = np.sort(rng.choice(mix.frames - 1, count - 1, replace=False)) + 1
    of_frame = np.searchsorted(changes, np.arange(mix.frames), side="right")
    middles = (times_s[changes - 1] + times_s[changes]) / 2
    edges_s = np.concatenate([[0.0], middles, [duration_s]])
    colours = 255 * np.array([COLOURS[names[k]] for k in order[:count]], dtype=np.float64)
    bright = rng.uniform(0.8, 1.1, (mix.frames, 1, 1, 1))
    noise = rng.normal(0.0, _NOISE, (mix.frames, mix.size, mix.size, 1))
    pixels = (colours[of_frame][:, None, None] * bright + noise).clip(0, 255).astype(np.uint8)
    questions = tuple(
        _question(mix, rng, names, order, count, of_frame, edges_s) for _ in range(mix.questions)
    )
    return Sample(pixels, times_s, duration_s, questions, things=_nothing(mix.frames))


def _question(
    mix: WorldMix,
    rng: np.random.Generator,
    names: list[str],
    order: npt.NDArray[np.int64],
    count: int,
    of_frame: npt.NDArray[np.int64],
    edges_s: npt.NDArray[np.float64],
) -> Target:
    present = bool(rng.random() >= mix.absent_rate)
    k = int(rng.integers(count)) if present else int(rng.integers(count, len(order)))
    active = (of_frame == k) & present
    boxes = np.zeros((mix.frames, 4))
    boxes[active] = (0.0, 0.0, 1.0, 1.0)
    return Target(
        task=str(rng.choice(mix.tasks)),
        query=f"the {names[order[k]]} screen",
        present=present,
        boxes_xyxy=boxes,
        has_box=active,
        active=active,
        span=Span(float(edges_s[k]), float(edges_s[k + 1])) if present else None,
        kind="screen",
    )


def _nothing(frames: int) -> Things:
    """No thing is to be seen: dense losses have nothing to count."""
    return Things(
        np.zeros((1, frames, 4)),
        np.zeros((1, frames), dtype=bool),
        np.zeros((1, 4), dtype=np.int64),
        np.zeros((1, frames), dtype=np.int64),
        np.zeros((1, frames, POSE)),
    )
