"""A contact sheet: sampled frames side by side, with boxes and times, those in the span framed in colour.

Contract: a `Clip` and its predictions (or bare tubes) go in, a picture comes out. Cells have the *displayed*
shape of the source (`grid.width` x `grid.height`): the clip's own pixels may be squashed. A frame in which no
tube is shown is dimmed; without any tube no frame is. Knows nothing of files but how to write its own.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
from PIL import Image

from tubelet.errors import DataError, RecipeError
from tubelet.frames import Clip
from tubelet.tube import Prediction, Tube
from tubelet.view import draw, letters
from tubelet.view.draw import RGB, Pixels
from tubelet.view.overlay import IMAGE_SUFFIXES, Mark, OverlayStyle, draw_boxes
from tubelet.view.rows import Truth, absence, shown, truth_rows

_GROUND: RGB = (255, 255, 255)
_TEXT: RGB = (24, 28, 35)
_MUTED: RGB = (104, 112, 125)
_ALARM: RGB = (190, 30, 32)
_CAPTION: RGB = (16, 19, 24)
_MARGIN, _GAP = 24, 10
_SIZE, _SMALL = 15, 12
_DIM = 0.62  # how much of the ground covers a frame outside the span


def contact_sheet(
    clip: Clip,
    found: Sequence[Prediction] | Sequence[Tube],
    *,
    columns: int | None = None,
    truth: Truth | Sequence[Tube] | None = None,
    width: int = 1200,
    most_frames: int = 24,
    style: OverlayStyle = OverlayStyle(),
) -> Image.Image:
    """Sampled frames in a grid, in order of time.

    Args:
        found: predictions (each query gets a line on top and one colour) or tubes (each gets a colour).
        columns: cells per row; by default as many as keep them readable (about 230 pixels for landscape).
        truth: with predictions, true tubes by query or one entry per prediction; with tubes, true tubes.
        width: of the sheet in pixels, at least 160.
        most_frames: a longer clip is thinned evenly, its first and last frame kept.
    Returns:
        An RGB picture, `width` wide and as high as it needs.
    Raises:
        DataError: truth does not fit. RecipeError: a size or count makes no sense.
    """
    if width < 160:
        raise RecipeError(f"a contact sheet needs a width of at least 160 pixels, got {width}")
    if most_frames < 1 or (columns is not None and columns < 1):
        raise RecipeError(f"columns and most_frames are at least 1, got {columns} and {most_frames}")
    predictions, tubes, true_tubes = _sorted_out(found, truth)
    marks = [Mark(tube, style.colour(i)) for i, row in enumerate(tubes) for tube in row]
    picked = _picked(len(clip), most_frames)
    aspect = clip.grid.width / clip.grid.height
    room = width - 2 * _MARGIN
    if columns is None:
        wish = 230 if aspect >= 1 else 230 * max(math.sqrt(aspect), 0.45)
        wish = min(wish, max(90, room / 3 - _GAP))  # three in a row also on a narrow sheet
        columns = max(1, round(room / (wish + _GAP)))
        n_rows = math.ceil(len(picked) / columns)
        columns = min(
            columns, max(math.ceil(len(picked) / n_rows), min(3, columns))
        )  # no nearly empty last row
    cell_w = max(8, (room - (columns - 1) * _GAP) // columns)
    cell_h = max(8, round(cell_w / aspect))

    header = _header(predictions, room, style)
    top = _MARGIN + len(header) + (14 if len(header) else 0)
    n_rows = math.ceil(len(picked) / columns)
    sheet = np.empty((top + n_rows * (cell_h + _GAP) - _GAP + _MARGIN, width, 3), np.uint8)
    sheet[:] = _GROUND
    sheet[_MARGIN : _MARGIN + len(header), _MARGIN : _MARGIN + room] = header
    for k, frame in enumerate(picked):
        x = _MARGIN + (k % columns) * (cell_w + _GAP)
        y = top + (k // columns) * (cell_h + _GAP)
        small = Image.fromarray(clip.pixels[frame]).resize((cell_w, cell_h), Image.Resampling.LANCZOS)
        cell = np.array(small)
        _draw_cell(cell, float(clip.grid.times_s[frame]), marks, true_tubes, style)
        rounded = np.zeros_like(cell)
        draw.fill_box(rounded, (0, 0, cell_w, cell_h), draw.WHITE, radius=5)
        draw.blend(sheet, x, y, rounded[:, :, 0], cell)
    return Image.fromarray(sheet)


def write_contact_sheet(
    clip: Clip,
    found: Sequence[Prediction] | Sequence[Tube],
    path: str | os.PathLike[str],
    *,
    columns: int | None = None,
    truth: Truth | Sequence[Tube] | None = None,
    width: int = 1200,
    most_frames: int = 24,
    style: OverlayStyle = OverlayStyle(),
) -> Path:
    """Write `contact_sheet` to a .png, .jpg or .webp file, atomically. Raises OutputError as well."""
    with draw.replacing(path, IMAGE_SUFFIXES) as part:
        sheet = contact_sheet(
            clip, found, columns=columns, truth=truth, width=width, most_frames=most_frames, style=style
        )
        sheet.save(part, quality=92)
    return Path(path)


def _sorted_out(
    found: Sequence[Prediction] | Sequence[Tube], truth: Truth | Sequence[Tube] | None
) -> tuple[list[Prediction], list[tuple[Tube, ...]], list[Tube]]:
    """Predictions (if any), the tubes of each colour, and all true tubes."""
    kinds = {isinstance(item, Prediction) for item in found}
    if len(kinds) == 2 or not all(isinstance(item, Prediction | Tube) for item in found):
        raise DataError("a contact sheet takes predictions or tubes, not both and nothing else")
    if kinds == {True}:
        predictions = cast("list[Prediction]", list(found))
        rows = truth_rows(predictions, truth)
        return predictions, [p.tubes for p in predictions], [tube for row in rows for tube in row or ()]
    flat = [] if truth is None else list(truth)
    if not all(isinstance(tube, Tube) for tube in flat):
        raise DataError("with tubes, the truth of a contact sheet is a sequence of tubes")
    return [], [(tube,) for tube in cast("Sequence[Tube]", found)], cast("list[Tube]", flat)


def _picked(n_frames: int, most: int) -> list[int]:
    """At most `most` rows of the clip, evenly spread, the first and the last among them."""
    if n_frames <= most:
        return list(range(n_frames))
    return [int(i) for i in np.unique(np.rint(np.linspace(0, n_frames - 1, most)).astype(int))]


def _draw_cell(
    cell: Pixels, time_s: float, marks: Sequence[Mark], truth: Sequence[Tube], style: OverlayStyle
) -> None:
    height, width = cell.shape[:2]
    active = list(dict.fromkeys(mark.colour for mark in marks if shown(mark.tube, time_s)))
    if marks and not active:
        draw.fill_box(cell, (0, 0, width, height), _GROUND, opacity=_DIM)
    draw_boxes(cell, time_s, marks, truth, replace(style, scale=style.scale * 1.7))  # cells are small
    line = max(2.5, width / 75)
    for i, colour in enumerate(active[:4]):  # nested, so that every query of this moment is seen
        inset = (i + 0.5) * line
        edges = (inset, inset, width - inset, height - inset)
        draw.outline_box(cell, edges, colour, line_px=line, radius=max(5 - inset, 1))
    text = f"{time_s:.2f} s"
    size = min(_SMALL, max(7, round(width * 0.075)))
    wide, high = letters.text_width(text, size, style.font), letters.line_height(size)
    inset = round(line * max(1, len(active[:4]))) + 3
    if wide + 8 + 2 * inset <= width and high + 2 * inset <= height:
        y = height - inset - high
        draw.fill_box(cell, (inset, y, inset + wide + 8, y + high), _CAPTION, radius=3, opacity=0.72)
        letters.draw_text(cell, inset + 4, y, text, size, draw.WHITE, style.font)


def _header(predictions: Sequence[Prediction], width: int, style: OverlayStyle) -> Pixels:
    """One block per query: a swatch, the sentence in up to two lines, and what was found."""
    drawn: list[tuple[int, int, str, int, RGB]] = []
    swatches: list[tuple[int, RGB]] = []
    line, small = letters.line_height(_SIZE), letters.line_height(_SMALL)
    y = 0
    for i, prediction in enumerate(predictions):
        swatches.append((y + line // 2, style.colour(i)))
        for text in letters.wrap(prediction.query, _SIZE, width - 20, 2, style.font):
            drawn.append((20, y, text, _SIZE, _TEXT))
            y += line
        note = ", ".join(
            f"{tube.span.start_s:.2f} - {tube.span.end_s:.2f} s"
            + ("" if tube.score is None else f" (score {tube.score:.2f})")
            for tube in prediction.tubes
        )
        note = letters.shorten(note or absence(prediction), _SMALL, width - 20, style.font)
        drawn.append((20, y, note, _SMALL, _ALARM if prediction.failure is not None else _MUTED))
        y += small + 8
    header = np.empty((max(0, y - 8), width, 3), np.uint8)
    header[:] = _GROUND
    for middle, colour in swatches:
        draw.fill_box(header, (0, middle - 6, 12, middle + 6), colour, radius=3)
    for x, top, text, size, tint in drawn:
        letters.draw_text(header, x, top, text, size, tint, style.font)
    return header
