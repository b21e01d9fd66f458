"""The time bar under a picture: one lane per query with its spans, a play head, and the time.

Contract: `layout_bar` lays out and draws all that stays the same during a video, once (it is cached);
`draw_bar` adds what moves. Widths and heights in pixels, times in seconds. Knows nothing of boxes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from tubelet.tube import Span
from tubelet.view import draw
from tubelet.view.draw import RGB, Pixels

GROUND: RGB = (19, 22, 28)
TRACK: RGB = (54, 60, 71)
TEXT: RGB = (240, 242, 245)
MUTED: RGB = (163, 171, 184)
ALARM: RGB = (255, 128, 118)
_MAX_TITLES = 4
_MAX_LANES = 12


@dataclass(frozen=True, slots=True)
class Lane:
    """One query in the bar: when it is predicted, when it is true, and what to write about it."""

    colour: RGB
    spans: tuple[Span, ...] = ()
    truth: tuple[Span, ...] = ()
    title: str | None = None
    note: str | None = None
    failed: bool = False


@dataclass(frozen=True, slots=True)
class Bar:
    """A laid out time bar: its pixels without the play head, and where the moving parts go."""

    pixels: Pixels  # (height, width, 3), read-only
    track_x0: float
    track_x1: float
    heads: tuple[tuple[float, float], ...]  # rows that the play head crosses: one stretch per block of lanes
    time_right: int
    time_y: int
    time_size: int  # 0: there is no room for the time
    total: str  # "/ 10.0 s", or "" where it does not fit
    font: str | None

    @property
    def height(self) -> int:
        return len(self.pixels)

    def head_x(self, time_s: float, duration_s: float) -> float:
        """Where the middle of the play head stands at this moment, pixels."""
        share = min(max(time_s / duration_s, 0.0), 1.0)
        return self.track_x0 + share * (self.track_x1 - self.track_x0)


@lru_cache(maxsize=64)
def layout_bar(
    width: int,
    size: int,
    lanes: tuple[Lane, ...],
    duration_s: float,
    caption: str | None,
    truth_colour: RGB,
    font: str | None,
) -> Bar:
    """Lay out a time bar of this width with letters of this size (pixels). Its height is always even."""
    pad, gap = max(3, round(size * 0.62)), max(2, round(size * 0.36))
    lane_px, truth_px = max(3, round(size * 0.46)), max(2, round(size * 0.18))
    line, inner = draw.line_height(size), width - 2 * pad
    time_size = max(8, round(size * 0.88))
    total = f"/ {duration_s:.1f} s"
    slot = draw.text_width(f"{duration_s:.1f} s {total}", time_size, font)
    if slot > inner:
        total, slot = "", draw.text_width(f"{duration_s:.1f} s", time_size, font)
    if slot > inner:
        time_size = slot = 0
    beside = 0 < slot <= 0.42 * inner  # else the time has a line of its own
    text_px = inner - (slot + 2 * gap if beside else 0)

    titled = sum(lane.title is not None for lane in lanes) <= _MAX_TITLES
    hidden = max(0, len(lanes) - _MAX_LANES)
    lanes = lanes[: _MAX_LANES if hidden else len(lanes)]
    head_lines = draw.wrap(caption, size, text_px, 2, font) if caption else []
    titles = [
        draw.wrap(lane.title, size, text_px - size, 2 if len(lanes) == 1 else 1, font)
        if titled and lane.title
        else []
        for lane in lanes
    ]
    notes = [lane.note if titled and lane.title and lane.note else None for lane in lanes]
    has_text = bool(head_lines) or any(titles)
    track_x1 = width - pad - (0 if has_text or not beside else slot + 2 * gap)

    # one walk down the bar: collect what to draw, then make the picture as high as was needed
    y = pad - (line - size) // 2 if has_text else pad
    texts: list[tuple[float, int, str, RGB]] = []
    swatches: list[tuple[float, float, RGB]] = []
    tracks: list[tuple[int, Lane]] = []
    heads: list[tuple[float, float]] = []
    for text in head_lines:
        texts.append((pad, y, text, TEXT))
        y += line
    for lane, title, note in zip(lanes, titles, notes, strict=True):
        if title:
            swatches.append((pad, y + line / 2, lane.colour))
        for text in title:
            texts.append((pad + size, y, text, TEXT))
            y += line
        if note:
            x = pad + size + draw.text_width(title[-1], size, font) + gap * 2
            if x + draw.text_width(note, size, font) > (pad + text_px if len(texts) == 1 else width - pad):
                x, y = pad + size, y + line  # no room behind the sentence
            tint = ALARM if lane.failed else MUTED
            texts.append((x, y - line, draw.shorten(note, size, width - pad - x, font), tint))
        if lane.spans or lane.truth or not note:
            y += gap if title or head_lines else 0
            tracks.append((y, lane))
            if not heads or title:
                heads.append((y - 2, y))
            y += lane_px * bool(lane.spans or not lane.truth) + (truth_px + 2) * bool(lane.truth)
            heads[-1] = (heads[-1][0], y + 2)
            y += gap
        head_lines = []
    y -= gap if lanes and tracks and tracks[-1][1] is lanes[-1] else 0
    if hidden:
        texts.append((pad, y, draw.shorten(f"+ {hidden} more", size, inner, font), MUTED))
        y += line
    first = tracks[0][0] if tracks else y
    last = y
    if not has_text and beside:
        time_y = round((first + last - draw.line_height(time_size)) / 2)
        extra = max(0, -time_y + 2)
        time_y += extra
    elif beside:
        time_y = texts[0][1] + (line - draw.line_height(time_size)) // 2
    else:
        time_y = y + gap
        y = time_y + (draw.line_height(time_size) if time_size else 0)
    bottom = max(y + pad, time_y + draw.line_height(time_size) + 2 if time_size else 0)
    height = (bottom + 1) // 2 * 2

    pixels = np.empty((height, width, 3), np.uint8)
    pixels[:] = GROUND
    for x, middle, colour in swatches:
        r = size * 0.31
        draw.fill_box(pixels, (x, middle - r, x + 2 * r, middle + r), colour, radius=r * 0.55)
    for x, top, text, colour in texts:
        draw.draw_text(pixels, x, top, text, size, colour, font)
    for top, lane in tracks:
        _draw_track(pixels, (pad, top, track_x1), lane, duration_s, (lane_px, truth_px), truth_colour)
    pixels.flags.writeable = False
    return Bar(pixels, pad, track_x1, tuple(heads), width - pad, time_y, time_size, total, font)


def _draw_track(
    pixels: Pixels,
    place: tuple[float, float, float],
    lane: Lane,
    duration_s: float,
    thick_px: tuple[int, int],
    truth_colour: RGB,
) -> None:
    x0, y, x1 = place
    rows = []
    if lane.spans or not lane.truth:
        rows.append((y, thick_px[0], lane.spans, lane.colour))
        y += thick_px[0] + 2
    if lane.truth:
        rows.append((y, thick_px[1], lane.truth, truth_colour))
    for top, thick, spans, colour in rows:
        draw.fill_box(pixels, (x0, top, x1, top + thick), TRACK, radius=thick / 2)
        for span in spans:
            start, end = span_px(span, duration_s, x0, x1, least_px=thick)
            draw.fill_box(pixels, (start, top, end, top + thick), colour, radius=thick / 2)


def span_px(span: Span, duration_s: float, x0: float, x1: float, least_px: float) -> tuple[float, float]:
    """Where a span lies on an axis from x0 to x1; at least `least_px` wide, so that a moment can be seen."""
    start, end = (x0 + min(t / duration_s, 1.0) * (x1 - x0) for t in (span.start_s, span.end_s))
    if end - start < least_px:
        start = min(max((start + end - least_px) / 2, x0), max(x1 - least_px, x0))
        end = start + least_px
    return start, end


def draw_bar(image: Pixels, y: int, bar: Bar, time_s: float, duration_s: float, opacity: float = 1.0) -> None:
    """Draw the bar at row y of the image, over its whole width, with the play head at this moment."""
    if opacity < 1.0:
        draw.blend(image, 0, y, np.full(bar.pixels.shape[:2], 255, np.uint8), bar.pixels, opacity)
    else:
        rows = image[y : y + bar.height]
        rows[:] = bar.pixels[: len(rows)]
    rows = image[y : y + bar.height]
    x = bar.head_x(time_s, duration_s)
    half = max(1.0, bar.time_size * 0.085)
    for top, end in bar.heads:
        draw.fill_box(rows, (x - half - 1, top - 1, x + half + 1, end + 1), GROUND, radius=half + 1)
        draw.fill_box(rows, (x - half, top, x + half, end), draw.WHITE, radius=half)
    if bar.time_size:
        total = draw.text_width(bar.total, bar.time_size, bar.font)
        space = bar.time_size * 0.28 if total else 0
        now = f"{min(max(time_s, 0.0), duration_s):.1f} s"
        left = bar.time_right - total - space - draw.text_width(now, bar.time_size, bar.font)
        draw.draw_text(rows, left, bar.time_y, now, bar.time_size, TEXT, bar.font)
        draw.draw_text(rows, bar.time_right - total, bar.time_y, bar.total, bar.time_size, MUTED, bar.font)
