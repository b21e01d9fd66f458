"""What every picture of tubelet is made of: colours, text and anti-aliased shapes on uint8 RGB arrays.

Contract: an image is a uint8 (H, W, 3) array that is changed in place; shapes are given in pixel edges as floats
(a box from 0 to W covers the whole picture), are anti-aliased, and are clipped to the picture. Text is any string:
a font of the system is asked for what Pillow's built-in font lacks, and a small square stands for what none has,
so no script and no emoji can stop a picture. Fonts and text bitmaps are cached. Knows nothing of tubes or time.
"""

from __future__ import annotations

import math
import os
import secrets
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from tubelet.errors import OutputError

RGB = tuple[int, int, int]
Pixels = npt.NDArray[np.uint8]
FontFile = str | os.PathLike[str] | None

PALETTE: tuple[RGB, ...] = (
    (255, 159, 28),
    (86, 180, 233),
    (0, 178, 124),
    (240, 228, 66),
    (222, 121, 178),
    (232, 93, 44),
    (64, 132, 214),
)
"""Colours of tubes: Okabe and Ito's, told apart with any colour vision, a little brighter to stand on video."""

WHITE: RGB = (255, 255, 255)
INK: RGB = (17, 20, 25)
_OUTLINE_OPACITY = 0.62
_OVERSAMPLE = 4  # text is drawn this much larger and averaged down: even letter spacing at any size
_FALLBACK_FONTS = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "NotoSansCJK-Regular.ttc",
    "SourceHanSans-Regular.ttc",
    "wqy-zenhei.ttc",
    "PingFang.ttc",
    "Arial Unicode.ttf",
    "msyh.ttc",
    "malgun.ttf",
    "segoeui.ttf",
    "NotoSansArabic-Regular.ttf",
    "NotoSansDevanagari-Regular.ttf",
    "NotoEmoji-Regular.ttf",
)


def ink_on(colour: RGB) -> RGB:
    """Black or white: whichever is read better on this colour (WCAG relative luminance)."""
    linear = [(c / 255 / 12.92) if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return INK if (luminance + 0.05) ** 2 > 0.05 * 1.05 else WHITE


def mix(colour: RGB, other: RGB, share: float) -> RGB:
    """`colour` with this share of `other` in it."""
    r, g, b = (round(a * (1 - share) + c * share) for a, c in zip(colour, other, strict=True))
    return (r, g, b)


# ---------------------------------------------------------------------------------------------------------- text


@dataclass(frozen=True, slots=True)
class _Run:
    text: str
    font: int | None  # index into (given font, built-in font, fallbacks...); None: a square per character
    width: float  # in pixels of the oversampled drawing


@lru_cache(maxsize=256)
def _font(which: int, size: int, font: str | None) -> ImageFont.FreeTypeFont | None:
    """The given font (0), the built-in one (1) or a fallback (2...); None if this machine does not have it."""
    if which == 1:
        built_in = ImageFont.load_default(size=size)
        return built_in if isinstance(built_in, ImageFont.FreeTypeFont) else None
    name = font if which == 0 else _FALLBACK_FONTS[which - 2]
    if name is None:
        return None
    try:
        return ImageFont.truetype(name, size)
    except OSError as error:
        if which == 0:
            raise OutputError(f"expected a TrueType or OpenType font file, cannot read {name!r}: {error}") from error
        return None


@lru_cache(maxsize=8192)
def _has_glyph(which: int, char: str, font: str | None) -> bool:
    face = _font(which, 16, font)
    if face is None:
        return False
    drawn = face.getmask(char)
    missing = face.getmask("\U0010fffe")  # a code point that stays unassigned for ever
    return drawn.getbbox() is not None and (drawn.size, bytes(drawn)) != (missing.size, bytes(missing))


def _clean(text: str) -> str:
    """One line, composed, without marks that only make sense inside a shaped emoji or a terminal."""
    composed = unicodedata.normalize("NFC", " ".join(text.split()))
    return "".join(
        c
        for c in composed
        if unicodedata.category(c) not in ("Cc", "Cf")
        and not "\ufe00" <= c <= "\ufe0f"
        and not "\U0001f3fb" <= c <= "\U0001f3ff"
    )


def _font_for(text: str, font: str | None) -> int | None:
    for which in range(2 + len(_FALLBACK_FONTS)):
        if all(_has_glyph(which, c, font) for c in text):
            return which
    return None


@lru_cache(maxsize=2048)
def _runs(text: str, size: int, font: str | None) -> tuple[_Run, ...]:
    """The text in pieces of one font each. A word keeps one font if any has all of it: "café" looks like one word."""
    pieces: list[tuple[str, int | None]] = []
    for i, word in enumerate(_clean(text).split(" ")):
        if i and pieces:
            pieces[-1] = (pieces[-1][0] + " ", pieces[-1][1])
        whole = _font_for(word, font) if word else None
        chars = [(word, whole)] if whole is not None else [(c, _font_for(c, font)) for c in word]
        for piece, which in chars:
            if which is None and unicodedata.category(piece).startswith("M"):
                continue  # an accent that no font has: the letter under it is still read
            if pieces and pieces[-1][1] == which:
                pieces[-1] = (pieces[-1][0] + piece, which)
            else:
                pieces.append((piece, which))
    big = size * _OVERSAMPLE
    out = []
    for piece, which in pieces:
        face = None if which is None else _font(which, big, font)
        width = face.getlength(piece) if face else sum(0.3 if c == " " else 0.72 for c in piece) * big
        out.append(_Run(piece, which, width))
    return tuple(out)


def _name(font: FontFile) -> str | None:
    return None if font is None else os.fspath(font)


def text_width(text: str, size: int, font: FontFile = None) -> int:
    """Width in whole pixels of one line of text, as `text_mask` draws it."""
    width = sum(run.width for run in _runs(text, size, _name(font)))
    return math.ceil(width / _OVERSAMPLE) + 1 if width else 0


def line_height(size: int) -> int:
    """Height in pixels of one line; capital letters stand in its vertical middle."""
    return math.ceil(size * 1.3)


@lru_cache(maxsize=1024)
def _text_mask(text: str, size: int, font: str | None) -> Pixels:
    width, height, k = text_width(text, size, font), line_height(size), _OVERSAMPLE
    canvas = Image.new("L", (max(width, 1) * k, height * k))
    pen = ImageDraw.Draw(canvas)
    cap = round(size * 0.715) * k  # the built-in font's cap height: whole pixels keep the baseline sharp
    x, base = 0.0, ((height * k - cap) // 2 // k) * k + cap
    for run in _runs(text, size, font):
        face = None if run.font is None else _font(run.font, size * k, font)
        if face is not None:
            pen.text((x, base), run.text, font=face, anchor="ls", fill=255)
        else:
            step = 0.72 * size * k
            at = x
            for c in run.text:
                if c != " ":
                    inner = (at + 0.08 * step, base - cap, at + 0.86 * step, base)
                    pen.rounded_rectangle(inner, radius=0.1 * step, outline=255, width=max(k, round(0.07 * size * k)))
                at += step if c != " " else 0.3 * size * k
        x += run.width
    mask = np.asarray(canvas.reduce(k)).copy()
    mask.flags.writeable = False
    return mask


def text_mask(text: str, size: int, font: FontFile = None) -> Pixels:
    """(line_height, width) uint8 coverage of one line of text. Read-only: it is cached."""
    return _text_mask(text, size, _name(font))


@lru_cache(maxsize=1024)
def _shorten(text: str, size: int, max_px: int, font: str | None) -> str:
    text = _clean(text)
    if text_width(text, size, font) <= max_px:
        return text
    lo, hi = 0, len(text)
    while lo < hi:
        middle = (lo + hi + 1) // 2
        if text_width(text[:middle].rstrip() + "…", size, font) <= max_px:
            lo = middle
        else:
            hi = middle - 1
    if lo == 0:
        return "…" if text_width("…", size, font) <= max_px else ""
    return text[:lo].rstrip(" ,;:") + "…"


def shorten(text: str, size: int, max_px: float, font: FontFile = None) -> str:
    """The text, cut with an ellipsis if it is wider than `max_px`; "" where not even that fits."""
    return _shorten(text, size, int(max_px), _name(font))


def wrap(text: str, size: int, max_px: float, max_lines: int, font: FontFile = None) -> list[str]:
    """The text in at most `max_lines` lines of `max_px`; the last one is cut with an ellipsis if it must be."""
    rest, lines = _clean(text), list[str]()
    while rest and len(lines) < max_lines - 1 and text_width(rest, size, font) > max_px:
        lo, hi = 1, len(rest)
        while lo < hi:  # the longest prefix that fits
            middle = (lo + hi + 1) // 2
            lo, hi = (middle, hi) if text_width(rest[:middle], size, font) <= max_px else (lo, middle - 1)
        if rest[lo] != " " and " " in rest[:lo].strip():
            lo = rest[:lo].rstrip().rindex(" ")  # at a space where there is one, else inside the word
        lines.append(rest[:lo].rstrip())
        rest = rest[lo:].lstrip()
    if rest:
        lines.append(shorten(rest, size, max_px, font))
    return lines


def draw_text(image: Pixels, x: float, y: float, text: str, size: int, colour: RGB, font: FontFile = None) -> None:
    """One line of text with its line box's top left corner at (x, y)."""
    if text:
        blend(image, round(x), round(y), text_mask(text, size, font), colour)


# -------------------------------------------------------------------------------------------------------- shapes


def blend(
    image: Pixels, x: int, y: int, coverage: Pixels, colour: RGB | Pixels, opacity: float = 1.0
) -> None:
    """Mix a colour, or a small picture (h, w, 3), into the image where `coverage` (h, w; 0-255) says.

    The top left corner of `coverage` lies at (x, y); what lies outside the image is left out.
    """
    x0, y0 = max(x, 0), max(y, 0)
    x1, y1 = min(x + coverage.shape[1], image.shape[1]), min(y + coverage.shape[0], image.shape[0])
    if x1 <= x0 or y1 <= y0:
        return
    part = (slice(y0 - y, y1 - y), slice(x0 - x, x1 - x))
    alpha = coverage[part].astype(np.uint16)
    if opacity < 1.0:
        alpha = (alpha * np.uint16(round(opacity * 256))) >> np.uint16(8)
    alpha = alpha[:, :, None]
    source = np.array(colour, np.uint16) if isinstance(colour, tuple) else colour[part].astype(np.uint16)
    region = image[y0:y1, x0:x1]
    mixed = region * (np.uint16(255) - alpha) + alpha * source + np.uint16(128)
    region[...] = (mixed + (mixed >> np.uint16(8))) >> np.uint16(8)  # exact division by 255


def _distance(
    x: tuple[int, int], y: tuple[int, int], box: tuple[float, float, float, float], radius: float
) -> npt.NDArray[np.float32]:
    """Signed distance in pixels from pixel centres to a rounded box's edge; negative inside."""
    x0, y0, x1, y1 = box
    px = np.arange(*x, dtype=np.float32) + np.float32(0.5)
    py = np.arange(*y, dtype=np.float32) + np.float32(0.5)
    qx = np.abs(px - np.float32((x0 + x1) / 2)) - np.float32((x1 - x0) / 2 - radius)
    qy = np.abs(py - np.float32((y0 + y1) / 2)) - np.float32((y1 - y0) / 2 - radius)
    outside = np.hypot(np.maximum(qx, 0)[None, :], np.maximum(qy, 0)[:, None])
    inside = np.minimum(np.maximum(qx[None, :], qy[:, None]), 0)
    return outside + inside - np.float32(radius)


def _coverage(distance: npt.NDArray[np.float32]) -> Pixels:
    return (np.clip(np.float32(0.5) - distance, 0, 1) * np.float32(255) + np.float32(0.5)).astype(np.uint8)


def fill_box(
    image: Pixels,
    box: tuple[float, float, float, float],
    colour: RGB,
    *,
    radius: float = 0.0,
    opacity: float = 1.0,
) -> None:
    """A filled box (x0, y0, x1, y1 in pixel edges) with round corners."""
    x0, y0, x1, y1 = box
    if x1 <= x0 or y1 <= y0:
        return
    height, width = image.shape[:2]
    xs = (max(math.floor(x0), 0), min(math.ceil(x1), width))
    ys = (max(math.floor(y0), 0), min(math.ceil(y1), height))
    if xs[1] <= xs[0] or ys[1] <= ys[0]:
        return
    radius = min(radius, (x1 - x0) / 2, (y1 - y0) / 2)
    if radius > 0.3:
        cover = _coverage(_distance(xs, ys, box, radius))
    else:  # exact area of every pixel, also for boxes thinner than one
        cx = np.clip(np.minimum(np.arange(*xs) + 1, x1) - np.maximum(np.arange(*xs), x0), 0, 1)
        cy = np.clip(np.minimum(np.arange(*ys) + 1, y1) - np.maximum(np.arange(*ys), y0), 0, 1)
        cover = np.rint(cy[:, None] * cx[None, :] * 255).astype(np.uint8)
    blend(image, xs[0], ys[0], cover, colour, opacity)


def _inside(box: tuple[float, float, float, float], width: int, height: int, edge: float) -> tuple[float, ...]:
    """The box moved and grown so that a line of half-width `edge` around it can be seen whole."""
    out = []
    for lo, hi, size in ((box[0], box[2], width), (box[1], box[3], height)):
        edge_px = min(edge, size / 2)
        lo, hi = min(max(lo, edge_px), size - edge_px), min(max(hi, edge_px), size - edge_px)
        if hi - lo < 2.0:
            middle = min(max((lo + hi) / 2, edge_px + 1), max(size - edge_px - 1, edge_px + 1))
            lo, hi = middle - 1, middle + 1
        out.append((lo, hi))
    return out[0][0], out[1][0], out[0][1], out[1][1]


def outline_box(
    image: Pixels,
    box: tuple[float, float, float, float],
    colour: RGB,
    *,
    line_px: float,
    halo_px: float = 0.0,
    radius: float = 0.0,
) -> None:
    """A box line with a dark halo on both sides, kept inside the picture. Only pixels near the line are touched."""
    height, width = image.shape[:2]
    reach = line_px / 2 + halo_px
    x0, y0, x1, y1 = _inside(box, width, height, reach)
    radius = min(radius, (x1 - x0) / 2, (y1 - y0) / 2)
    band = math.ceil(reach + radius * 0.3 + 1)  # a round corner leaves its edge by (1 - sqrt(1/2)) of its radius
    left, right = max(math.floor(x0 - reach), 0), min(math.ceil(x1 + reach), width)
    top, bottom = max(math.floor(y0 - reach), 0), min(math.ceil(y1 + reach), height)
    upper, lower = min(math.floor(y0) + band, bottom), max(math.ceil(y1) - band, top)
    lower = max(lower, upper)
    inner, outer = min(math.floor(x0) + band, right), max(math.ceil(x1) - band, left)
    outer = max(outer, inner)
    strips = (
        ((left, right), (top, upper)),
        ((left, right), (lower, bottom)),
        ((left, inner), (upper, lower)),
        ((outer, right), (upper, lower)),
    )
    for xs, ys in strips:
        if xs[1] <= xs[0] or ys[1] <= ys[0]:
            continue
        distance = np.abs(_distance(xs, ys, (x0, y0, x1, y1), radius))
        if halo_px > 0:
            blend(image, xs[0], ys[0], _coverage(distance - np.float32(reach)), INK, _OUTLINE_OPACITY)
        blend(image, xs[0], ys[0], _coverage(distance - np.float32(line_px / 2)), colour)


def _ramp(lo: float, hi: float, first: int, last: int) -> npt.NDArray[np.float64]:
    """How much of each pixel first..last-1 lies in [lo, hi]."""
    at = np.arange(first, last)
    return np.clip(np.minimum(at + 1, hi) - np.maximum(at, lo), 0, 1)


def dash_box(
    image: Pixels,
    box: tuple[float, float, float, float],
    colour: RGB,
    *,
    line_px: float,
    dash_px: float,
    halo_px: float = 0.0,
) -> None:
    """A dashed box line with a dark halo, solid at its corners, kept inside the picture."""
    height, width = image.shape[:2]
    x0, y0, x1, y1 = _inside(box, width, height, line_px / 2 + halo_px)
    edge = line_px / 2
    for grow, tint, opacity in ((halo_px, INK, _OUTLINE_OPACITY), (0.0, colour, 1.0)):
        if tint is INK and halo_px <= 0:
            continue
        half = edge + grow
        along_x = _dashes(x0 - edge, x1 + edge, dash_px, grow, width)
        along_y = _dashes(y0 - edge, y1 + edge, dash_px, grow, height)
        for y in (y0, y1):
            top = math.floor(y - half)
            cover = _ramp(y - half, y + half, top, math.ceil(y + half))[:, None] * along_x[None, :]
            blend(image, 0, top, np.rint(cover * 255).astype(np.uint8), tint, opacity)
        for x in (x0, x1):
            left = math.floor(x - half)
            cover = along_y[:, None] * _ramp(x - half, x + half, left, math.ceil(x + half))[None, :]
            blend(image, left, 0, np.rint(cover * 255).astype(np.uint8), tint, opacity)


def _dashes(lo: float, hi: float, dash_px: float, grow: float, size: int) -> npt.NDArray[np.float64]:
    """(size,) coverage of a dashed line from lo to hi that begins and ends with a dash."""
    n_gaps = max(0, round((hi - lo - dash_px) / (dash_px * 1.75)))
    period = (hi - lo - dash_px) / n_gaps if n_gaps else 0.0
    out = np.zeros(size)
    for i in range(n_gaps + 1):
        end = hi if n_gaps == 0 else lo + i * period + dash_px
        out = np.maximum(out, _ramp(lo + i * period - grow, end + grow, 0, size))
    return out


# --------------------------------------------------------------------------------------------------------- files


@contextmanager
def replacing(path: str | os.PathLike[str], suffixes: tuple[str, ...]) -> Iterator[Path]:
    """A temporary sibling to write to; it becomes `path` only if the block ends well, and is removed if not.

    Raises OutputError for a suffix not in `suffixes`, a missing folder, a folder in the way, and any OSError.
    """
    target = Path(path)
    if target.suffix.lower() not in suffixes:
        raise OutputError(f"expected a file name ending in {' or '.join(suffixes)}, got {target.name!r}")
    if target.is_dir():
        raise OutputError(f"expected a file to write, but {target} is a folder")
    if not target.parent.is_dir():
        raise OutputError(f"the folder {target.parent} does not exist: make it first")
    part = target.with_name(f".{target.stem[:60]}.{secrets.token_hex(4)}.part{target.suffix.lower()}")
    try:
        yield part
        part.replace(target)
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)
