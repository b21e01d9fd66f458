"""Providers that fail or always find something, importable by worker processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tubelet.errors import ModelError
from tubelet.proposals.track import Track, Tracks


def crashes(source: Any, phrases: Any, grid: Any) -> Any:
    raise RuntimeError("an index is out of range")


def cannot_load(source: Any, phrases: Any, grid: Any) -> Any:
    raise ModelError("the folder sam2 has no model.safetensors")


def steady(
    source: Any, phrases: Any, grid: Any, fails_on: str = "", while_there: str = "", each: int = 1
) -> Tracks:
    """`each` slowly drifting boxes per phrase, labelled with it. Fails on one video while a file is there."""
    if fails_on and source.path.name == fails_on and Path(while_there).exists():
        raise RuntimeError("out of memory")
    share = np.linspace(0, 0.1, len(grid))[:, None]
    tracks = [
        Track(
            len(phrases) * n + k,
            np.array([0.2, 0.2, 0.5, 0.55]) + share + 0.001 * (k % 7),
            np.ones(len(grid), dtype=bool),
            box_scores=np.full(len(grid), 0.9 - 0.1 * n / each),
            label=phrase,
        )
        for n in range(each)
        for k, phrase in enumerate(phrases)
    ]
    return Tracks(grid, tuple(tracks), provider="steady")
