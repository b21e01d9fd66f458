"""The time bar under a picture: one lane per query with its spans, a play head, and the time.

Contract: `layout_bar` lays out and draws all that stays the same during a video, once (it is cached);
`draw_bar` adds what moves. Widths and heights in pixels, times in seconds. Knows nothing of boxes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from tubelet.tube import Span
from tubelet.view import draw, letters
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


@dataclass(frozen=True, slots=True)
class _Measures:
    """Sizes in pixels that follow from the width of the bar, the size of its letters and the time's text."""

    width: int
    size: int
    pad: int
    gap: int
    line: int
    lane: int
    truth: int
    time_size: int
    total: str
    slot: int  # width kept free for the time

    @property
    def inner(self) -> int:
        return self.width - 2 * self.pad

    @property
    def beside(self) -> bool:
        """Whether the time stands to the right of something else, and not in a line of its own."""
        return 0 < self.slot <= 0.42 * self.inner

    @property
    def text_px(self) -> int:
        """Room for text in a line that the time may share."""
        return self.inner - (self.slot + 2 * self.gap if self.beside else 0)

    @property
    def time_height(self) -> int:
        return letters.line_height(self.time_size) if self.time_size else 0


@dataclass(slots=True)
class _Flow:
    """What goes where, collected on one walk down the bar; y is where the next thing goes."""

    y: int
    texts: list[tuple[float, int, str, RGB]] = field(default_factory=list)
    swatches: list[tuple[float, RGB]] = field(default_factory=list)
    tracks: list[tuple[int, Lane]] = field(default_factory=list)
    heads: list[tuple[float, float]] = field(default_factory=list)


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
    """Lay out a time bar of this width with letters of this size (pixels). Its height is always even.

    Up to 4 lanes are titled, up to 12 are drawn; how many more there are is written.
    """
    m = _measure(width, size, duration_s, font)
    lines = letters.wrap(caption, size, m.text_px, 2, font) if caption else []
    titled = sum(lane.title is not None for lane in lanes) <= _MAX_TITLES and any(
        lane.title for lane in lanes
    )
    flow = _Flow(m.pad - (m.line - size) // 2 if lines or titled else m.pad)
    for text in lines:
        flow.texts.append((m.pad, flow.y, text, TEXT))
        flow.y += m.line
    for i, lane in enumerate(lanes[:_MAX_LANES]):
        under_text = bool(lines) and i == 0
        if titled and lane.title:
            _add_title(flow, m, lane, 2 if len(lanes) == 1 else 1, font)
            under_text = True
        if lane.spans or lane.truth or not (titled and lane.title and lane.note):
            flow.y += m.gap if under_text or i else 0
            _add_track(flow, m, lane, new_block=under_text)
    if len(lanes) > _MAX_LANES:
        more = letters.shorten(f"+ {len(lanes) - _MAX_LANES} more", size, m.inner, font)
        flow.texts.append((m.pad, flow.y, more, MUTED))
        flow.y += m.line

    if not m.beside:
        time_y = flow.y + m.gap
        flow.y = time_y + m.time_height
    elif lines or titled:
        time_y = flow.texts[0][1] + (m.line - m.time_height) // 2
    else:  # in the middle of the lanes, which it may overtop
        middle = (m.pad + flow.y) / 2
        time_y = max(2, round(middle - m.time_height / 2))
    height = (max(flow.y + m.pad, time_y + m.time_height + 2) + 1) // 2 * 2
    track_x1 = width - m.pad - (m.slot + 2 * m.gap if m.beside and not (lines or titled) else 0)

    pixels = np.empty((height, width, 3), np.uint8)
    pixels[:] = GROUND
    radius = size * 0.31
    for middle, colour in flow.swatches:
        swatch = (m.pad, middle - radius, m.pad + 2 * radius, middle + radius)
        draw.fill_box(pixels, swatch, colour, radius=radius * 0.55)
    for x, y, text, colour in flow.texts:
        letters.draw_text(pixels, x, y, text, size, colour, font)
    for y, lane in flow.tracks:
        _draw_track(pixels, (m.pad, y, track_x1), lane, duration_s, (m.lane, m.truth), truth_colour)
    pixels.flags.writeable = False
    return Bar(pixels, m.pad, track_x1, tuple(flow.heads), width - m.pad, time_y, m.time_size, m.total, font)


def _measure(width: int, size: int, duration_s: float, font: str | None) -> _Measures:
    pad, time_size = max(3, round(size * 0.62)), max(8, round(size * 0.88))
    total = f"/ {duration_s:.1f} s"
    slot = letters.text_width(f"{duration_s:.1f} s {total}", time_size, font)
    if slot > width - 2 * pad:  # too narrow: only the moment
        total, slot = "", letters.text_width(f"{duration_s:.1f} s", time_size, font)
    if slot > width - 2 * pad:
        time_size = slot = 0
    return _Measures(
        width=width,
        size=size,
        pad=pad,
        gap=max(2, round(size * 0.36)),
        line=letters.line_height(size),
        lane=max(3, round(size * 0.46)),
        truth=max(2, round(size * 0.18)),
        time_size=time_size,
        total=total,
        slot=slot,
    )


def _add_title(flow: _Flow, m: _Measures, lane: Lane, most_lines: int, font: str | None) -> None:
    """The sentence with its swatch, and the note behind it, or under it where that is too narrow."""
    flow.y += m.gap if flow.tracks else 0
    shared = not flow.texts  # the first line may share its row with the time
    flow.swatches.append((flow.y + m.line / 2, lane.colour))
    x, title = m.pad + m.size, letters.wrap(lane.title or "", m.size, m.text_px - m.size, most_lines, font)
    for text in title:
        flow.texts.append((x, flow.y, text, TEXT))
        flow.y += m.line
    if lane.note is None:
        return
    right = m.pad + (m.text_px if shared and len(title) == 1 else m.inner)
    behind = x + letters.text_width(title[-1] if title else "", m.size, font) + 2 * m.gap
    colour = ALARM if lane.failed else MUTED
    if behind + letters.text_width(lane.note, m.size, font) <= right:
        flow.texts.append((behind, flow.y - m.line, lane.note, colour))
    else:
        flow.texts.append((x, flow.y, letters.shorten(lane.note, m.size, m.width - m.pad - x, font), colour))
        flow.y += m.line


def _add_track(flow: _Flow, m: _Measures, lane: Lane, *, new_block: bool) -> None:
    top = flow.y
    flow.tracks.append((top, lane))
    flow.y += m.lane * bool(lane.spans or not lane.truth) + (m.truth + 2) * bool(lane.truth)
    if new_block or not flow.heads:
        flow.heads.append((top - 2, flow.y + 2))
    else:
        flow.heads[-1] = (flow.heads[-1][0], flow.y + 2)


def _draw_track(
    pixels: Pixels,
    place: tuple[float, float, float],
    lane: Lane,
    duration_s: float,
    thick_px: tuple[int, int],
    truth_colour: RGB,
) -> None:
    x0, y, x1 = place
    rows: list[tuple[float, int, tuple[Span, ...], RGB]] = []
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
        total = letters.text_width(bar.total, bar.time_size, bar.font)
        space = bar.time_size * 0.28 if total else 0
        now = f"{min(max(time_s, 0.0), duration_s):.1f} s"
        left = bar.time_right - total - space - letters.text_width(now, bar.time_size, bar.font)
        letters.draw_text(rows, left, bar.time_y, now, bar.time_size, TEXT, bar.font)
        letters.draw_text(rows, bar.time_right - total, bar.time_y, bar.total, bar.time_size, MUTED, bar.font)
