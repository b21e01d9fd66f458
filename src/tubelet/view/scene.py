"""A flat picture as a list of shapes, made into pixels (PNG) or text (SVG) from the same layout.

Contract: coordinates are pixels from the top left corner; later shapes lie on top. Only what the timeline
needs: boxes, lines, areas and one-line texts. `Text.y` is the top of its line box (see
`letters.line_height`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

import numpy as np
from PIL import Image, ImageDraw

from tubelet.view import draw, letters
from tubelet.view.draw import RGB, Pixels

_SMOOTH = 4  # lines and areas are drawn this much larger and averaged down


@dataclass(frozen=True, slots=True)
class Box:
    x0: float
    y0: float
    x1: float
    y1: float
    fill: RGB
    radius: float = 0.0
    opacity: float = 1.0


@dataclass(frozen=True, slots=True)
class Line:
    points: tuple[tuple[float, float], ...]
    colour: RGB
    width: float = 1.0


@dataclass(frozen=True, slots=True)
class Area:
    points: tuple[tuple[float, float], ...]
    fill: RGB
    opacity: float = 1.0


@dataclass(frozen=True, slots=True)
class Text:
    """One line of text; `anchor` says whether x is its start, middle or end."""

    x: float
    y: float
    text: str
    size: int
    colour: RGB
    anchor: str = "start"


Shape = Box | Line | Area | Text


def to_image(
    shapes: Sequence[Shape], width: int, height: int, ground: RGB, font: str | None = None
) -> Image.Image:
    """Draw the shapes on a plain ground: an RGB picture of this size."""
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[:] = ground
    for shape in shapes:
        match shape:
            case Box(x0, y0, x1, y1, fill, radius, opacity):
                draw.fill_box(pixels, (x0, y0, x1, y1), fill, radius=radius, opacity=opacity)
            case Text(x, y, text, size, colour, anchor):
                shift = {"start": 0.0, "middle": 0.5, "end": 1.0}[anchor]
                letters.draw_text(
                    pixels, x - shift * letters.text_width(text, size, font), y, text, size, colour, font
                )
            case Line(points, colour, line_px):
                _draw_smooth(pixels, points, colour, 1.0, line_px)
            case Area(points, fill, opacity):
                _draw_smooth(pixels, points, fill, opacity, None)
    return Image.fromarray(pixels)


def _draw_smooth(
    pixels: Pixels,
    points: tuple[tuple[float, float], ...],
    colour: RGB,
    opacity: float,
    line_px: float | None,
) -> None:
    edge = 1 + (line_px or 0) / 2
    left, top = (math.floor(min(p[i] for p in points) - edge) for i in (0, 1))
    right, bottom = (math.ceil(max(p[i] for p in points) + edge) for i in (0, 1))
    canvas = Image.new("L", ((right - left) * _SMOOTH, (bottom - top) * _SMOOTH))
    large = [((x - left) * _SMOOTH, (y - top) * _SMOOTH) for x, y in points]
    if line_px is None:
        ImageDraw.Draw(canvas).polygon(large, fill=255)
    else:
        ImageDraw.Draw(canvas).line(large, fill=255, width=max(1, round(line_px * _SMOOTH)), joint="curve")
    draw.blend(pixels, left, top, np.asarray(canvas.reduce(_SMOOTH)), colour, opacity)


def to_svg(shapes: Sequence[Shape], width: int, height: int, ground: RGB) -> str:
    """The same picture as SVG text; letters stay text, in the reader's own sans-serif font."""
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="Aileron, Helvetica, Arial, sans-serif">',
        f'<rect width="{width}" height="{height}" fill="{_hex(ground)}"/>',
    ]
    for shape in shapes:
        match shape:
            case Box(x0, y0, x1, y1, fill, radius, opacity):
                out.append(
                    f'<rect x="{x0:.2f}" y="{y0:.2f}" width="{x1 - x0:.2f}" height="{y1 - y0:.2f}" '
                    f'rx="{min(radius, (x1 - x0) / 2, (y1 - y0) / 2):.2f}" fill="{_hex(fill)}" '
                    f'fill-opacity="{opacity:g}"/>'
                )
            case Text(x, y, text, size, colour, anchor):
                base = (
                    y + letters.line_height(size) / 2 + size * 0.358
                )  # half a capital letter below the middle
                out.append(
                    f'<text x="{x:.2f}" y="{base:.2f}" font-size="{size}" fill="{_hex(colour)}" '
                    f'text-anchor="{anchor}">{escape(_legal(text))}</text>'
                )
            case Line(points, colour, line_px):
                out.append(
                    f'<polyline points="{_points(points)}" fill="none" stroke="{_hex(colour)}" '
                    f'stroke-width="{line_px:g}" stroke-linejoin="round"/>'
                )
            case Area(points, fill, opacity):
                out.append(
                    f'<polygon points="{_points(points)}" fill="{_hex(fill)}" fill-opacity="{opacity:g}"/>'
                )
    return "\n".join([*out, "</svg>", ""])


def _hex(colour: RGB) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)


def _points(points: tuple[tuple[float, float], ...]) -> str:
    return " ".join(f"{x:.2f},{y:.2f}" for x, y in points)


def _legal(text: str) -> str:
    """Without what XML forbids (control characters, half surrogates, the two non-characters)."""
    return "".join("□" if "\ud800" <= c <= "\udfff" or c in "\ufffe\uffff" else c for c in text if c >= " ")
