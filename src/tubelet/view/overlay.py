"""Tubes drawn onto a video: boxes and labels on the picture, and under it when each sentence is true.

Contract: a frame goes in as uint8 RGB (H, W, 3) and is not changed; an annotated copy comes out, with the
time bar's rows under it unless the style says otherwise. A box is drawn in the frames whose time lies in its
tube's half-open span. Lines and letters scale with the frame. `write_overlay` holds one frame at a time and
keeps every frame's own time. Knows nothing of models; reading and writing video is `tubelet.video`'s.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image

from tubelet.errors import DataError, RecipeError
from tubelet.tube import FloatArray, Prediction, Tube
from tubelet.view import draw, letters
from tubelet.view.draw import RGB, Pixels
from tubelet.view.rows import Truth, absence, shown, truth_rows
from tubelet.view.timebar import Bar, Lane, draw_bar, layout_bar

if TYPE_CHECKING:
    from tubelet.video import Video

Box = tuple[float, float, float, float]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_OVER_OPACITY = 0.78


@dataclass(frozen=True, slots=True)
class OverlayStyle:
    """How overlays look.

    Args:
        scale: factor on lines and letters, which otherwise follow the size of the frame.
        bar: the time bar "below" the picture (adds rows), "over" its lower edge (half transparent), or
            "none".
        labels: draw a chip with label and score at each box.
        palette: colours of the tubes (of the queries in `write_overlay`), used in turn.
        truth_colour: colour of the dashed true boxes and of their spans.
        font: name or path of a TrueType font to use instead of the built-in one.
    """

    scale: float = 1.0
    bar: Literal["below", "over", "none"] = "below"
    labels: bool = True
    palette: tuple[RGB, ...] = draw.PALETTE
    truth_colour: RGB = draw.WHITE
    font: str | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and 0 < self.scale <= 20):
            raise RecipeError(f"OverlayStyle.scale is a factor above 0 and up to 20, got {self.scale!r}")
        if self.bar not in ("below", "over", "none"):
            raise RecipeError(f'OverlayStyle.bar is "below", "over" or "none", got {self.bar!r}')
        if not self.palette:
            raise RecipeError("OverlayStyle.palette needs at least one colour")

    def colour(self, i: int) -> RGB:
        return self.palette[i % len(self.palette)]


@dataclass(frozen=True, slots=True)
class Mark:
    """One tube on the picture: its colour and what its chip says."""

    tube: Tube
    colour: RGB
    label: str | None = None


def draw_tubes(
    rgb: Pixels,
    time_s: float,
    tubes: Sequence[Tube],
    duration_s: float,
    *,
    truth: Sequence[Tube] = (),
    caption: str | None = None,
    style: OverlayStyle = OverlayStyle(),
) -> Pixels:
    """One annotated frame: the boxes of this moment, their labels, and a time bar.

    Args:
        rgb: (H, W, 3) uint8, not changed.
        time_s: when this frame is shown, seconds.
        tubes: each gets its own colour; a tube without boxes shows its label in the corner while it is true.
        duration_s: length of the video in seconds, > 0 (any positive number for a still image).
        truth: true tubes: dashed boxes, thin spans in the bar.
        caption: the sentence, written in the bar.
    Returns:
        (H + P, W, 3) uint8, where P (even) is the height of the time bar if `style.bar` is "below", else 0.
    Raises:
        DataError: `rgb` is not uint8 (H, W, 3), or a time makes no sense.
    """
    marks = [Mark(tube, style.colour(i), tube.label) for i, tube in enumerate(tubes)]
    lanes = [Lane(mark.colour, (mark.tube.span,)) for mark in marks]
    if truth:
        lanes.append(Lane(style.truth_colour, truth=tuple(tube.span for tube in truth)))
    return _annotate(rgb, time_s, marks, tuple(lanes), duration_s, truth, caption, style)


def write_overlay(
    video: Video,
    predictions: Sequence[Prediction],
    path: str | os.PathLike[str],
    *,
    truth: Truth | None = None,
    max_height: int | None = 1080,
    style: OverlayStyle = OverlayStyle(),
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write an annotated copy of a video (.mp4, .mov, .mkv) or of an image (.png, .jpg, .webp), atomically.

    One frame is in memory at a time, and every frame keeps its time. Each query has one colour and one row in
    the time bar, also when it is not in the video or has failed.

    Args:
        truth: true tubes by query, or one entry per prediction.
        max_height: larger pictures are scaled down to this height (the bar not counted); None keeps their
            size.
        progress: called with (frames done, frames in the video) after every frame.
    Raises:
        OutputError: the target cannot be written, or its suffix does not suit the input.
        VideoError: the video cannot be decoded.
    """
    from tubelet.video import VideoWriter, iter_frames

    if max_height is not None and max_height < 2:
        raise RecipeError(f"max_height is a number of pixels, at least 2, got {max_height!r}")
    rows = truth_rows(predictions, truth)
    true_tubes = [tube for row in rows for tube in row or ()]
    marks: list[Mark] = []
    lanes: list[Lane] = []
    for i, (prediction, row) in enumerate(zip(predictions, rows, strict=True)):
        lanes.append(_lane(prediction, row, style.colour(i)))
        in_bar = len(predictions) == 1 and style.bar != "none"  # then the chip need not repeat the sentence
        for tube in prediction.tubes:
            label = tube.label if tube.label != prediction.query else None
            marks.append(Mark(tube, style.colour(i), label or (None if in_bar else prediction.query)))
    shrink = 1.0 if max_height is None else min(1.0, max_height / video.height)
    step = 1 if video.is_image else 2  # video codecs want even sides
    width, height = (max(step, round(side * shrink / step) * step) for side in (video.width, video.height))

    def annotate(rgb: Pixels, time_s: float) -> Pixels:
        return _annotate(rgb, time_s, marks, tuple(lanes), video.duration_s, true_tubes, None, style)

    frames = iter_frames(video, (width, height))
    if video.is_image:
        with draw.replacing(path, IMAGE_SUFFIXES) as part:
            for _, time_s, rgb in frames:
                Image.fromarray(annotate(rgb, time_s)).save(part, quality=95)
        if progress is not None:
            progress(1, 1)
        return Path(path)
    bar = _bar(width, height, tuple(lanes), video.duration_s, None, style)
    total = height + (bar.height if bar is not None and style.bar == "below" else 0)
    with VideoWriter(path, width, total, video.fps) as writer:  # atomic by itself
        for done, (_, time_s, rgb) in enumerate(frames, start=1):
            writer.write(annotate(rgb, time_s), time_s)
            if progress is not None:
                progress(done, video.n_frames)
    return Path(path)


def draw_boxes(
    image: Pixels, time_s: float, marks: Sequence[Mark], truth: Sequence[Tube], style: OverlayStyle
) -> list[Box | None]:
    """Draw the boxes of one moment into the image; returns each mark's box in pixels, or None."""
    height, width = image.shape[:2]
    factor, _ = _scales(width, height, style.scale)
    line, halo = _line_px(factor)
    places: list[Box | None] = []
    for mark in marks:
        box = mark.tube.box_at(time_s) if shown(mark.tube, time_s) else None
        at = None if box is None else _in_pixels(box, width, height)
        if at is not None:
            draw.outline_box(image, at, mark.colour, line_px=line, halo_px=halo, radius=line * 1.8)
        places.append(at)
    for tube in truth:  # on top and thinner: both are seen where they agree
        box = tube.box_at(time_s) if shown(tube, time_s) else None
        if box is not None:
            place = _in_pixels(box, width, height)
            thin = max(1.0, line * 0.62)
            draw.dash_box(
                image, place, style.truth_colour, line_px=thin, dash_px=line * 3, halo_px=halo * 0.8
            )
    return places


def _scales(width: int, height: int, scale: float) -> tuple[float, int]:
    """Factor on line widths, and letter size in pixels: 14 for 640x360, 33 for 1080p, never below 9."""
    factor = (math.sqrt(width * height) / 480) ** 0.78 * scale
    return factor, max(9, round(14 * factor))


def _line_px(factor: float) -> tuple[float, float]:
    """Width of a box line and of the dark halo on each side of it, pixels."""
    return max(2.0, 2.4 * factor), max(0.8, 1.1 * factor)


def _lane(prediction: Prediction, row: tuple[Tube, ...] | None, colour: RGB) -> Lane:
    return Lane(
        colour,
        tuple(tube.span for tube in prediction.tubes),
        tuple(tube.span for tube in row or ()),
        title=prediction.query,
        note=None if prediction.found else absence(prediction),
        failed=prediction.failure is not None,
    )


def _bar(
    width: int,
    height: int,
    lanes: tuple[Lane, ...],
    duration_s: float,
    caption: str | None,
    style: OverlayStyle,
) -> Bar | None:
    if style.bar == "none":
        return None
    _, size = _scales(width, height, style.scale)
    return layout_bar(width, size, lanes, duration_s, caption, style.truth_colour, style.font)


def _annotate(
    rgb: Pixels,
    time_s: float,
    marks: Sequence[Mark],
    lanes: tuple[Lane, ...],
    duration_s: float,
    truth: Sequence[Tube],
    caption: str | None,
    style: OverlayStyle,
) -> Pixels:
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or 0 in rgb.shape:
        raise DataError(f"expected a frame as uint8 RGB (H, W, 3), got {rgb.dtype} {rgb.shape}")
    if not (math.isfinite(time_s) and math.isfinite(duration_s) and duration_s > 0):
        raise DataError(f"expected a finite time and a duration above 0 s, got {time_s!r} and {duration_s!r}")
    height, width = rgb.shape[:2]
    bar = _bar(width, height, lanes, duration_s, caption, style)
    below = bar.height if bar is not None and style.bar == "below" else 0
    out = np.empty((height + below, width, 3), np.uint8)
    out[:height] = rgb
    picture = out[:height]
    places = draw_boxes(picture, time_s, marks, truth, style)
    free = height
    if bar is not None:
        top = height if style.bar == "below" else max(0, height - bar.height)
        draw_bar(out, top, bar, time_s, duration_s, 1.0 if style.bar == "below" else _OVER_OPACITY)
        free = min(height, top)
    if style.labels:
        _draw_chips(picture[:free], time_s, marks, places, style, _scales(width, height, style.scale))
    return out


def _in_pixels(box: FloatArray, width: int, height: int) -> Box:
    x0, y0, x1, y1 = box.tolist()
    return x0 * width, y0 * height, x1 * width, y1 * height


@lru_cache(maxsize=256)
def _chip(
    label: str | None, score: float | None, colour: RGB, size: int, max_px: int, font: str | None
) -> tuple[Pixels, Pixels] | None:
    """A chip's pixels (h, w, 3) and coverage (h, w): label, cut if it must be, and score, which never is."""
    number = "" if score is None else f"{score:.2f}"
    pad, gap = round(size * 0.42), round(size * 0.5)
    number_px = letters.text_width(number, size, font)
    room = max_px - 2 * pad - (number_px + gap if number else 0)
    text = letters.shorten(label or "", size, room, font)
    text_px = letters.text_width(text, size, font)
    if not text and not number:
        return None
    width = text_px + number_px + 2 * pad + (gap if text and number else 0)
    height = letters.line_height(size) + 2 * max(1, round(size * 0.1))
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[:] = colour
    ink = draw.ink_on(colour)
    y = (height - letters.line_height(size)) / 2
    letters.draw_text(pixels, pad, y, text, size, ink, font)
    quiet = ink if not text else draw.mix(ink, colour, 0.3)
    letters.draw_text(pixels, width - pad - number_px, y, number, size, quiet, font)
    coverage = np.zeros((height, width, 3), np.uint8)
    draw.fill_box(coverage, (0, 0, width, height), draw.WHITE, radius=size * 0.3)
    return pixels, coverage[:, :, 0]


def _draw_chips(
    picture: Pixels,
    time_s: float,
    marks: Sequence[Mark],
    places: Sequence[Box | None],
    style: OverlayStyle,
    scales: tuple[float, int],
) -> None:
    """Chips of the tubes of this moment, each where it hides no other chip and stays in the picture."""
    height, width = picture.shape[:2]
    factor, size = scales
    line, halo = _line_px(factor)
    reach = line / 2 + halo
    margin, taken = round(reach), list[Box]()
    for mark, place in zip(marks, places, strict=True):
        if not shown(mark.tube, time_s):
            continue
        max_px = min(width - 2 * margin, max(round(width * 0.5), 16 * size))
        chip = _chip(mark.label, mark.tube.score, mark.colour, size, max_px, style.font)
        if chip is None:
            continue
        pixels, coverage = chip
        h, w = coverage.shape
        if place is None:  # a tube without boxes: stacked in the corner
            x, spots = margin * 2.0, [margin * 2.0 + k * (h + margin) for k in range(len(marks))]
        else:
            x0, y0, _, y1 = place
            x = x0 - reach
            spots = [y0 - reach - h - 1, y1 + reach + 1, y0 + reach + 1, y1 - reach - h - 1]
        x = min(max(x, margin / 2), max(width - w - margin / 2, 0))
        inside = [y for y in spots if 0 <= y <= height - h] or [min(max(spots[0], 0), max(height - h, 0))]
        y = next((y for y in inside if not any(_overlap((x, y, x + w, y + h), t) for t in taken)), inside[0])
        taken.append((x, y, x + w, y + h))
        draw.blend(picture, round(x), round(y), coverage, pixels)


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
