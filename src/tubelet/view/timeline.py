"""When each sentence is true, as a chart: one row per query, the spans on a common time axis.

Contract: predictions of one video (or of several, then each row names its video) go in; a picture comes out,
or a PNG or SVG file. No pixels of the video are needed. Spans are shaded by their score, the truth lies under
them, "not in this video" is a hatched row and a failure a red one: no query is left out. Boxes play
no role.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from tubelet.errors import DataError, RecipeError
from tubelet.tube import FloatArray, Prediction, Tube
from tubelet.view import draw, letters
from tubelet.view.draw import RGB
from tubelet.view.rows import Truth, absence, tiou, truth_rows
from tubelet.view.scene import Area, Box, Line, Shape, Text, to_image, to_svg
from tubelet.view.timebar import span_px

Activity = Sequence[tuple[npt.ArrayLike, npt.ArrayLike] | None]
"""Per prediction: times (T,) in seconds and values (T,) of how much the sentence seems true, or None."""

_GROUND: RGB = (255, 255, 255)
_TEXT: RGB = (24, 28, 35)
_MUTED: RGB = (104, 112, 125)
_FAINT: RGB = (228, 231, 236)
_TRACK: RGB = (243, 244, 247)
_TRUTH: RGB = (62, 70, 84)
_ALARM: RGB = (190, 30, 32)
_MARGIN, _GAP, _ROW_PAD = 28, 24, 14
_TITLE, _SENTENCE, _SMALL = 18, 14, 12
_BAR, _TRUE_BAR, _CURVE = 24, 7, 34


@dataclass(frozen=True, slots=True)
class _Axis:
    x0: float
    x1: float
    duration_s: float

    def x(self, time_s: float) -> float:
        return self.x0 + min(max(time_s / self.duration_s, 0.0), 1.0) * (self.x1 - self.x0)


def draw_timeline(
    predictions: Sequence[Prediction],
    *,
    duration_s: float | None = None,
    truth: Truth | None = None,
    activity: Activity | None = None,
    width: int = 1200,
    title: str | None = None,
    font: str | None = None,
) -> Image.Image:
    """The chart as an RGB picture `width` pixels wide and as high as its rows need.

    Args:
        duration_s: end of the time axis; by default the longest video's, or the last moment that is known.
        truth: true tubes by query, or one entry per prediction; adds a column with the tIoU.
        activity: per prediction (times_s, values), drawn as a curve scaled to its own largest value, or None.
        title: by default the name of the video.
        font: name or path of a TrueType font to use instead of the built-in one.
    Raises:
        DataError: truth or activity do not fit the predictions. RecipeError: a size or duration makes no
            sense.
    """
    shapes, height = _layout(predictions, duration_s, truth, activity, width, title, font)
    return to_image(shapes, width, height, _GROUND, font)


def write_timeline(
    predictions: Sequence[Prediction],
    path: str | os.PathLike[str],
    *,
    duration_s: float | None = None,
    truth: Truth | None = None,
    activity: Activity | None = None,
    width: int = 1200,
    title: str | None = None,
    font: str | None = None,
) -> Path:
    """Write the chart of `draw_timeline` to a .png or .svg file, atomically. Raises OutputError as well."""
    with draw.replacing(path, (".png", ".svg")) as part:
        shapes, height = _layout(predictions, duration_s, truth, activity, width, title, font)
        if part.suffix == ".svg":
            part.write_text(to_svg(shapes, width, height, _GROUND), encoding="utf-8")
        else:
            to_image(shapes, width, height, _GROUND, font).save(part)
    return Path(path)


def nice_ticks(duration_s: float, most: int) -> FloatArray:
    """0 and up to `most` round moments after it, until `duration_s`; 1, 2 or 5 times 10^n apart."""
    step = 10.0 ** math.floor(math.log10(duration_s / max(most, 1)))
    step = next(step * k for k in (1, 2, 5, 10, 20) if duration_s / (step * k) <= max(most, 1) + 1e-9)
    return step * np.arange(math.floor(duration_s / step + 1e-9) + 1, dtype=np.float64)


def _duration(
    predictions: Sequence[Prediction], rows: Sequence[tuple[Tube, ...] | None], given: float | None
) -> float:
    if given is not None:
        if not (math.isfinite(given) and given > 0):
            raise RecipeError(f"duration_s is a number of seconds above 0, got {given!r}")
        return float(given)
    grids = [p.grid.duration_s for p in predictions if p.grid is not None]
    ends = [tube.span.end_s for p in predictions for tube in p.tubes]
    ends += [tube.span.end_s for row in rows for tube in row or ()]
    return max(grids + ends, default=1.0)


def _layout(
    predictions: Sequence[Prediction],
    duration_s: float | None,
    truth: Truth | None,
    activity: Activity | None,
    width: int,
    title: str | None,
    font: str | None,
) -> tuple[list[Shape], int]:
    if width < 320:
        raise RecipeError(f"a timeline needs a width of at least 320 pixels, got {width}")
    rows = truth_rows(predictions, truth)
    curves = _curves(predictions, activity)
    duration_s = _duration(predictions, rows, duration_s)
    videos = list(dict.fromkeys(Path(p.video).name for p in predictions))
    known = any(row is not None for row in rows)
    names_px = min(round(width * 0.3), 420)
    axis = _Axis(_MARGIN + names_px + _GAP, width - _MARGIN - (72 if known else 20), duration_s)

    shapes: list[Shape] = []
    legend_x = _legend(shapes, width - _MARGIN, known, any(c is not None for c in curves), font)
    heading = title or (
        videos[0] if len(videos) == 1 else f"{len(videos)} videos" if videos else "no predictions"
    )
    heading = letters.shorten(heading, _TITLE, legend_x - _MARGIN - _GAP, font)
    shapes.append(Text(_MARGIN, _MARGIN - 6, heading, _TITLE, _TEXT))
    top = _MARGIN + 52
    y: float = top + 6
    content: list[Shape] = []
    for i, (prediction, row, curve) in enumerate(zip(predictions, rows, curves, strict=True)):
        if i:
            content.append(Box(_MARGIN, y, width - _MARGIN, y + 1, _FAINT))
        colour = draw.PALETTE[i % len(draw.PALETTE)]
        lines = letters.wrap(prediction.query, _SENTENCE, names_px - 20, 3, font)
        meta = _meta(prediction, len(videos) > 1)
        text_px = len(lines) * letters.line_height(_SENTENCE) + bool(meta) * letters.line_height(_SMALL)
        lanes_px = (
            _BAR + (_CURVE + 4 if curve is not None else 0) + (_TRUE_BAR + 5 if row else 18 * (row == ()))
        )
        inner = max(text_px, lanes_px)
        y += _ROW_PAD
        _names(content, y + (inner - text_px) / 2, lines, meta, colour, names_px, font)
        _lanes(content, y + (inner - lanes_px) / 2, prediction, row, curve, colour, axis, font)
        if known:
            text = (
                "-" if not row else f"{tiou([t.span for t in prediction.tubes], [t.span for t in row]):.2f}"
            )
            middle = y + (inner - letters.line_height(_SENTENCE)) / 2
            content.append(Text(width - _MARGIN, middle, text, _SENTENCE, _TEXT if row else _MUTED, "end"))
        y += inner + _ROW_PAD
    if not predictions:
        content.append(Text(_MARGIN, y + _ROW_PAD, "no queries were asked", _SENTENCE, _MUTED))
        y += 2 * _ROW_PAD + letters.line_height(_SENTENCE)
    _axis(shapes, axis, top, y, font)
    if known:
        shapes.append(Text(width - _MARGIN, top - 20, "tIoU", _SMALL, _MUTED, "end"))
    return shapes + content, round(y) + _MARGIN * 3 // 4


def _curves(
    predictions: Sequence[Prediction], activity: Activity | None
) -> list[tuple[FloatArray, FloatArray] | None]:
    if activity is None:
        return [None] * len(predictions)
    if len(activity) != len(predictions):
        raise DataError(
            f"activity has one (times_s, values) or None per prediction ({len(predictions)}), "
            f"got {len(activity)}"
        )
    out: list[tuple[FloatArray, FloatArray] | None] = []
    for entry in activity:
        if entry is None:
            out.append(None)
            continue
        times, values = (np.asarray(part, dtype=np.float64) for part in entry)
        if times.ndim != 1 or times.shape != values.shape or not np.isfinite([times, values]).all():
            raise DataError(
                f"activity is finite times_s (T,) and values (T,), "
                f"got shapes {times.shape} and {values.shape}"
            )
        low, high = min(0.0, values.min(initial=0.0)), max(values.max(initial=0.0), 0.0)
        out.append((times, (values - low) / max(high - low, 1e-12)) if len(times) > 1 else None)
    return out


def _meta(prediction: Prediction, several_videos: bool) -> str:
    parts = [Path(prediction.video).name] if several_videos else []
    if prediction.confidence is not None and prediction.found:
        parts.append(f"confidence {prediction.confidence:.2f}")
    return " · ".join(parts)


def _legend(shapes: list[Shape], right: float, truth: bool, curves: bool, font: str | None) -> float:
    """Write the legend from the right; returns where it begins."""
    entries: list[tuple[str, RGB, float]] = [("predicted", draw.PALETTE[0], 12)]
    if truth:
        entries.append(("truth", _TRUTH, 5))
    if curves:
        entries.append(("activity", draw.mix(draw.PALETTE[0], _GROUND, 0.4), 2))
    x, middle = right, _MARGIN - 6 + letters.line_height(_TITLE) / 2
    for name, colour, thick in reversed(entries):
        x -= letters.text_width(name, _SMALL, font)
        shapes.append(Text(x, middle - letters.line_height(_SMALL) / 2, name, _SMALL, _MUTED))
        shapes.append(Box(x - 28, middle - thick / 2, x - 7, middle + thick / 2, colour, thick / 3))
        x -= 46
    return x


def _axis(shapes: list[Shape], axis: _Axis, top: float, bottom: float, font: str | None) -> None:
    room = max(2, int((axis.x1 - axis.x0) // 76))
    for tick in nice_ticks(axis.duration_s, room):
        x = axis.x(float(tick))
        shapes.append(Box(x - 0.5, top, x + 0.5, bottom, _FAINT))
        shapes.append(Text(x, top - 20, f"{tick:g} s", _SMALL, _MUTED, "middle"))
    shapes.append(Box(axis.x0, top, axis.x1, top + 1, draw.mix(_FAINT, _MUTED, 0.35)))


def _names(
    shapes: list[Shape], y: float, lines: list[str], meta: str, colour: RGB, width: int, font: str | None
) -> None:
    middle = y + letters.line_height(_SENTENCE) / 2
    shapes.append(Box(_MARGIN, middle - 5, _MARGIN + 10, middle + 5, colour, 3))
    for line in lines:
        shapes.append(Text(_MARGIN + 20, y, line, _SENTENCE, _TEXT))
        y += letters.line_height(_SENTENCE)
    if meta:
        shapes.append(Text(_MARGIN + 20, y, letters.shorten(meta, _SMALL, width - 20, font), _SMALL, _MUTED))


def _lanes(
    shapes: list[Shape],
    y: float,
    prediction: Prediction,
    row: tuple[Tube, ...] | None,
    curve: tuple[FloatArray, FloatArray] | None,
    colour: RGB,
    axis: _Axis,
    font: str | None,
) -> None:
    if curve is not None:
        points = [(axis.x(float(t)), y + _CURVE * (1 - float(v))) for t, v in zip(*curve, strict=True)]
        foot = [(points[-1][0], y + _CURVE), (points[0][0], y + _CURVE)]
        shapes.append(Area(tuple(points + foot), colour, 0.16))
        shapes.append(Line(tuple(points), draw.mix(colour, _GROUND, 0.25), 1.5))
        y += _CURVE + 4
    if prediction.found:
        _spans(shapes, y, prediction.tubes, colour, axis, font)
    else:
        _absent(shapes, y, prediction, axis, font)
    y += _BAR + 5
    for tube in row or ():
        x0, x1 = span_px(tube.span, axis.duration_s, axis.x0, axis.x1, least_px=3)
        shapes.append(Box(x0, y, x1, y + _TRUE_BAR, _TRUTH, 2.5))
    if row == ():
        shapes.append(Text(axis.x0, y - 1, "truth: not in this video", _SMALL, _MUTED))


def _spans(
    shapes: list[Shape], y: float, tubes: Sequence[Tube], colour: RGB, axis: _Axis, font: str | None
) -> None:
    """The bars of one row, lighter where less sure, each with its times in it or beside it."""
    shapes.append(Box(axis.x0, y, axis.x1, y + _BAR, _TRACK, 5))
    places = [span_px(tube.span, axis.duration_s, axis.x0, axis.x1, least_px=4) for tube in tubes]
    taken = list(places)
    text_y = y + (_BAR - letters.line_height(_SMALL)) / 2
    for tube, (x0, x1) in sorted(zip(tubes, places, strict=True), key=lambda item: item[1][1] - item[1][0])[
        ::-1
    ]:
        fill = colour if tube.score is None else draw.mix(colour, _GROUND, 0.62 * (1 - tube.score))
        shapes.append(Box(x0, y, x1, y + _BAR, draw.mix(colour, _TEXT, 0.12), 5))
        shapes.append(Box(x0 + 1.25, y + 1.25, x1 - 1.25, y + _BAR - 1.25, fill, 4))
        label = f"{tube.span.start_s:.1f} - {tube.span.end_s:.1f} s"
        label += "" if tube.score is None else f" · {tube.score:.2f}"
        wide = letters.text_width(label, _SMALL, font)
        if wide + 14 <= x1 - x0:
            shapes.append(Text((x0 + x1) / 2, text_y, label, _SMALL, draw.ink_on(fill), "middle"))
            continue
        for left in (x1 + 6, x0 - 6 - wide):
            free = axis.x0 <= left and left + wide <= axis.x1
            if free and not any(left < b + 4 and a - 4 < left + wide for a, b in taken if (a, b) != (x0, x1)):
                shapes.append(Text(left, text_y, label, _SMALL, _TEXT))
                taken.append((left, left + wide))
                break


def _absent(shapes: list[Shape], y: float, prediction: Prediction, axis: _Axis, font: str | None) -> None:
    """A hatched row for "not in this video", a red one for a failure."""
    failed = prediction.failure is not None
    tint = draw.mix(_ALARM, _GROUND, 0.92) if failed else _GROUND
    shapes.append(Box(axis.x0, y, axis.x1, y + _BAR, tint, 5))
    if not failed:
        for k in range(math.ceil((axis.x1 - axis.x0 + _BAR) / 9)):
            foot = axis.x0 + 9 * k  # from (foot, bottom) up to the right, cut at both ends of the row
            low, high = max(foot - _BAR, axis.x0), min(foot, axis.x1)
            if high > low:
                ends = ((low, y + _BAR - (low - foot + _BAR)), (high, y + _BAR - (high - foot + _BAR)))
                shapes.append(Line(ends, _FAINT, 1.5))
    text = letters.shorten(absence(prediction), _SMALL, axis.x1 - axis.x0 - 20, font)
    wide, text_y = letters.text_width(text, _SMALL, font), y + (_BAR - letters.line_height(_SMALL)) / 2
    if failed:
        shapes.append(Box(axis.x0, y, axis.x0 + 3, y + _BAR, _ALARM, 1.5))
    else:
        shapes.append(Box(axis.x0 + 6, y + 3, axis.x0 + wide + 18, y + _BAR - 3, _GROUND, 4))
    shapes.append(Text(axis.x0 + 12, text_y, text, _SMALL, _ALARM if failed else _MUTED))
