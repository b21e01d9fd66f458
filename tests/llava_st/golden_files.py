"""Reading the golden files: pixels are rebuilt from a formula, tensors and cases are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file


def tensors(golden: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(golden / f"{name}.safetensors")


def cases(golden: Path, group: str) -> list[dict[str, Any]]:
    data: dict[str, Any] = json.loads((golden / "formatting.json").read_text())
    found: list[dict[str, Any]] = data[group]["cases"]
    assert found, group
    return found


def pixels(frames: int, phase: float) -> torch.Tensor:
    """(frames, 3, 384, 384) float32, by the formula of the golden README.

    The sines of sums are put together from sines of rows, columns and frames, which are few.
    """
    y, x = np.arange(384)[:, None], np.arange(384)[None]
    crossed = np.exp(1j * 0.0009 * x * y)
    first = np.exp(1j * 0.03 * y) * np.exp(1j * 0.05 * x)
    second = np.exp(1j * 0.11 * y) * np.exp(-1j * 0.07 * x)
    out = np.empty((frames, 3, 384, 384), dtype=np.float32)
    for f in range(frames):
        for c in range(3):
            a = np.exp(1j * (0.7 * c + 0.2 * f + phase))
            b = np.exp(1j * (1.3 * c - 0.05 * f + 0.5 * phase))
            d = np.exp(1j * (0.13 * f * (c + 1) + 2 * phase))
            out[f, c] = (0.5 * a * first + 0.3 * b * second + 0.2 * d * crossed).imag
    return torch.from_numpy(out)
