"""Text of any script on pictures: measured, cut, wrapped, drawn.

Contract: any string becomes one line of pixels and never an error. Pillow's built-in font (Latin letters) is
used; a font of the system is asked for what it lacks, and a small square stands for what no font has. Sizes
and widths are in pixels. Fonts and text bitmaps are cached, so a label is drawn once per video.
"""

from __future__ import annotations

import math
import os
import unicodedata
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tubelet.errors import OutputError
from tubelet.view.draw import RGB, Pixels, blend

FontFile = str | os.PathLike[str] | None

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


@dataclass(frozen=True, slots=True)
class _Run:
    text: str
    font: int | None  # index into (given font, built-in font, fallbacks...); None: a square per character
    width: float  # in pixels of the oversampled drawing


@lru_cache(maxsize=256)
def _font(which: int, size: int, font: str | None) -> ImageFont.FreeTypeFont | None:
    """The given font (0), the built-in one (1) or a fallback (2...), or None if it is missing."""
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
            raise OutputError(
                f"expected a TrueType or OpenType font file, cannot read {name!r}: {error}"
            ) from error
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
    """The text in pieces of one font each. A word keeps one font where one has all of it, as in "café"."""
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


def lacking(text: str, font: FontFile = None) -> str:
    """The letters of a text that no font at hand has, each once: they are drawn as squares."""
    letters = dict.fromkeys(c for c in _clean(text) if not c.isspace())
    return "".join(
        c
        for c in letters
        if not unicodedata.category(c).startswith("M") and _font_for(c, _name(font)) is None
    )


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
                    pen.rounded_rectangle(
                        inner, radius=0.1 * step, outline=255, width=max(k, round(0.07 * size * k))
                    )
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
    """The text in at most `max_lines` lines of `max_px`; the last one is cut with an ellipsis if need be."""
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


def draw_text(
    image: Pixels, x: float, y: float, text: str, size: int, colour: RGB, font: FontFile = None
) -> None:
    """One line of text with its line box's top left corner at (x, y)."""
    if text:
        blend(image, round(x), round(y), text_mask(text, size, font), colour)
