"""What is in a built folder: the funnel, lengths of spans, sizes of boxes; numbers and a picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from tubelet.datasets.reading import stream_jsonl
from tubelet.errors import DataError, OutputError
from tubelet.metrics.boxes import box_area
from tubelet.unistg.records import Sample

_WIDTH, _HEIGHT, _PAD = 400, 300, 24
_TEXT, _BAR = (24, 28, 35), (66, 110, 180)


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
    """Funnel, lengths and box sizes as one picture (PNG by its name)."""
    found, values = stats(folder), _values(Path(folder))
    stages = found["funnel"]["stages"]
    picture = Image.new("RGB", (3 * _WIDTH, _HEIGHT), "white")
    draw = ImageDraw.Draw(picture)
    _bars(draw, 0, "kept after each stage", list(stages), [float(s["kept"]) for s in stages.values()])
    _histogram(draw, _WIDTH, "length of spans, seconds", values["length_s"], None)
    _histogram(
        draw, 2 * _WIDTH, "size of boxes, root of their share", np.sqrt(values["box_area"]), (0.0, 1.0)
    )
    temporary = path.with_name(f".{path.name}.part")
    try:
        picture.save(temporary, format="PNG")
        temporary.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


def _bars(draw: ImageDraw.ImageDraw, x0: int, title: str, names: list[str], values: list[float]) -> None:
    """Horizontal bars with their names and numbers."""
    draw.text((x0 + _PAD, 12), title, fill=_TEXT, font_size=15)
    top, room = max([*values, 1.0]), _WIDTH - 2 * _PAD - 150
    for k, (name, value) in enumerate(zip(names, values, strict=True)):
        y = 48 + k * 36
        draw.text((x0 + _PAD, y + 3), name, fill=_TEXT, font_size=13)
        end = x0 + _PAD + 90 + round(room * value / top)
        draw.rectangle((x0 + _PAD + 90, y, end, y + 22), fill=_BAR)
        draw.text((end + 6, y + 3), f"{value:,.0f}", fill=_TEXT, font_size=13)


def _histogram(
    draw: ImageDraw.ImageDraw, x0: int, title: str, values: Any, limits: tuple[float, float] | None
) -> None:
    """Columns over an axis with its ends; says so where there is nothing to count."""
    draw.text((x0 + _PAD, 12), title, fill=_TEXT, font_size=15)
    if not len(values):
        draw.text((x0 + _PAD, 60), "nothing was kept", fill=_TEXT, font_size=13)
        return
    counts, edges = np.histogram(values, bins=30, range=limits)
    bottom, room = _HEIGHT - 40, _HEIGHT - 100
    step = (_WIDTH - 2 * _PAD) / len(counts)
    for k, count in enumerate(counts):
        height = round(room * count / counts.max())
        left = x0 + _PAD + k * step
        draw.rectangle((left, bottom - height, left + step - 2, bottom), fill=_BAR)
    draw.text((x0 + _PAD, bottom + 8), f"{edges[0]:g}", fill=_TEXT, font_size=13)
    draw.text((x0 + _WIDTH - _PAD - 40, bottom + 8), f"{edges[-1]:.3g}", fill=_TEXT, font_size=13)
    draw.text((x0 + _PAD, 36), f"most in one column: {counts.max()}", fill=_TEXT, font_size=12)


def _values(folder: Path) -> dict[str, Any]:
    lengths, counts, areas = [], [], []
    for item in stream_jsonl(folder / "samples.jsonl", "raise"):
        tube = Sample.from_dict(item.data).tube
        lengths.append(tube.span.duration_s)
        counts.append(len(tube))
        areas.append(box_area(tube.boxes_xyxy))
    area = np.concatenate(areas) if areas else np.zeros(0)
    return {"length_s": np.array(lengths), "boxes_per_tube": np.array(counts), "box_area": area}
