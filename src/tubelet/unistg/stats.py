"""What is in a built folder: the funnel, lengths of spans, sizes of boxes; numbers and a picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from tubelet.datasets.reading import stream_jsonl
from tubelet.errors import DataError, OutputError
from tubelet.metrics.boxes import box_area
from tubelet.unistg.records import Sample


def stats(folder: Path | str) -> dict[str, Any]:
    """funnel (as in funnel.json), and 5, 50, 95 % quantiles of lengths (s), boxes per tube and areas (fractions)."""
    place = Path(folder)
    try:
        funnel = json.loads((place / "funnel.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{place} is no finished Uni-STG build (funnel.json): {error}") from error
    values = _values(place)
    quantiles = {
        name: [round(float(q), 4) for q in np.quantile(v, [0.05, 0.5, 0.95])] if len(v) else None
        for name, v in values.items()
    }
    return {"funnel": funnel, "quantiles": quantiles}


def lines(found: dict[str, Any]) -> list[str]:
    """`stats` as text."""
    out = [f"{'stage':12}{'took':>12}{'kept':>12}{'dropped':>12}"]
    for name, s in found["funnel"]["stages"].items():
        out.append(f"{name:12}{s['took']:12,}{s['kept']:12,}{s['dropped']:12,}")
    out += [f"  {count:10,}  {reason}" for reason, count in found["funnel"]["reasons"].items()]
    for name, q in found["quantiles"].items():
        out.append(f"{name:16}" + ("none" if q is None else f"5 % {q[0]:g}, median {q[1]:g}, 95 % {q[2]:g}"))
    return out


def plot(folder: Path | str, path: Path) -> None:
    """Funnel, lengths and box sizes as one png."""
    from matplotlib.figure import Figure

    found, values = stats(folder), _values(Path(folder))
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    first, second, third = figure.subplots(1, 3)
    stages = found["funnel"]["stages"]
    first.barh(list(stages), [s["kept"] for s in stages.values()])
    first.invert_yaxis()
    first.set(title="kept after each stage", xlabel="records")
    second.hist(values["length_s"], bins=30)
    second.set(title="length of spans", xlabel="seconds")
    third.hist(np.sqrt(values["box_area"]), bins=30, range=(0, 1))
    third.set(title="size of boxes", xlabel="square root of area, fraction of frame")
    temporary = path.with_name(f".{path.name}.part")
    try:
        figure.savefig(temporary, format="png", dpi=100)
        temporary.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


def _values(folder: Path) -> dict[str, Any]:
    lengths, counts, areas = [], [], []
    for item in stream_jsonl(folder / "samples.jsonl", "raise"):
        tube = Sample.from_dict(item.data).tube
        lengths.append(tube.span.duration_s)
        counts.append(len(tube))
        areas.append(box_area(tube.boxes_xyxy))
    area = np.concatenate(areas) if areas else np.zeros(0)
    return {"length_s": np.array(lengths), "boxes_per_tube": np.array(counts), "box_area": area}
