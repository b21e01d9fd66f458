"""Golden files of public evaluators and how their inputs become tubes. The files lie outside the repository."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tubelet.metrics.ragged import Tubes
from tubelet.metrics.tubes import Rules, TubeScores

SHARED = Path(__file__).resolve().parents[2] / ".." / "shared"


def load(name: str) -> dict[str, Any]:
    path = SHARED / "golden" / "metrics" / f"{name}.json"
    if not path.exists():
        pytest.skip(f"no golden file {name}")
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return data


def keyed(boxes: Mapping[str, Sequence[float]]) -> tuple[list[int], list[Sequence[float]]]:
    frames = sorted(boxes, key=int)
    return [int(f) for f in frames], [boxes[f] for f in frames]


def stack(spans: Sequence[Any], boxes: Sequence[Mapping[str, Sequence[float]]]) -> Tubes:
    pairs = [keyed(b) for b in boxes]
    return Tubes.stack(spans, [p[0] for p in pairs], [p[1] for p in pairs])


def tube_columns(scores: TubeScores, rules: Rules) -> dict[str, np.ndarray]:
    out = {"tiou": scores.tiou, "viou": scores.viou, "gt_viou": scores.gt_viou}
    for limit in (0.3, 0.5):
        out[f"viou@{limit}"] = rules.hit(scores.viou, limit)
        out[f"gt_viou@{limit}"] = rules.hit(scores.gt_viou, limit)
    return out


def mismatches(
    cases: Sequence[Mapping[str, Any]],
    got: Mapping[str, np.ndarray],
    failures: Mapping[int, str],
    names: Mapping[str, str] | None = None,
    tolerance: float = 1e-6,
) -> tuple[list[str], int, int]:
    """What differs, how many numbers were compared, and how many cases failed on both sides."""
    wrong: list[str] = []
    compared = failed = 0
    for row, case in enumerate(cases):
        output = case["output"]
        if "error" in output:
            failed += 1
            if not failures.get(row):
                wrong.append(f"case {case['id']} raises {output['error']!r} there and scores here")
            continue
        if row in failures:
            wrong.append(f"case {case['id']} scores there and fails here: {failures[row]}")
        for theirs, ours in (names or {k: k for k in got}).items():
            if theirs not in output:
                continue
            wanted = math.nan if output[theirs] in (None, "NaN") else float(output[theirs])
            value = float(got[ours][row])
            compared += 1
            if not (abs(value - wanted) <= tolerance or (math.isnan(value) and math.isnan(wanted))):
                wrong.append(f"case {case['id']} ({case['kind']}): {theirs} is {wanted} there, {value} here")
    return wrong, compared, failed
