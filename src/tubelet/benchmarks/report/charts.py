"""Charts as inline SVG: small, in the page's own colours (CSS classes, so light and dark), readable without colour.

Every chart says in words what it shows (`title` and `desc` for screen readers); glyphs inside table cells are
decoration, the cell has the numbers. Classes: `r0`, `r1`, ... is the colour of a run; `axis`, `grid`, `faint`, `ink`
are lines and texts of the page (`style.css`). Pure functions on numbers; lengths are user units (pixels at 100 %).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tubelet.benchmarks.report.calibration import Bin
from tubelet.benchmarks.report.markup import Markup, Node, el, join
from tubelet.metrics.bootstrap import Interval
from tubelet.tube import Span

FloatArray = npt.NDArray[np.float64]
GLYPH_WIDTH, GLYPH_HEIGHT = 86, 14
_LEFT, _BOTTOM, _TOP, _RIGHT = 38, 36, 10, 12


def interval_glyph(value: Interval, low: float = 0.0, high: float = 1.0, run: int = 0) -> Markup:
    """A mean and its interval on a line from `low` to `high`; a mark at 0 where 0 is inside. Empty for NaN."""
    if not all(map(math.isfinite, (value.mean, value.low, value.high))) or high <= low:
        return Markup("")

    def x(v: float) -> float:
        return 4 + (min(max(v, low), high) - low) / (high - low) * (GLYPH_WIDTH - 8)

    middle = GLYPH_HEIGHT / 2
    a, b = x(value.low), x(value.high)
    parts = [_line(4, middle, GLYPH_WIDTH - 4, middle, "track")]
    if low < 0 < high:
        parts.append(_line(x(0), 1, x(0), GLYPH_HEIGHT - 1, "zero"))
    parts.append(_box(a, middle - 3, max(b - a, 1), 6, "whisker", rx=3))
    parts.append(el("circle", cx=_n(x(value.mean)), cy=_n(middle), r=2.8, klass="dot"))
    return el(
        "svg",
        *parts,
        klass=f"glyph r{run}",
        width=GLYPH_WIDTH,
        height=GLYPH_HEIGHT,
        viewBox=f"0 0 {GLYPH_WIDTH} {GLYPH_HEIGHT}",
        aria_hidden="true",
        focusable="false",
    )


def histogram(columns: Sequence[Sequence[float]], names: Sequence[str], title: str, axis: str) -> Markup:
    """How per-query values in [0, 1] are spread: 20 bins, one outline per run, as shares of its queries."""
    width, height = 460, 210
    shares = []
    for column in columns:
        values = np.asarray(column, dtype=np.float64)
        values = values[np.isfinite(values)]
        counts, _ = np.histogram(np.clip(values, 0, 1), bins=20, range=(0, 1))
        shares.append(counts / max(len(values), 1))
    top = _nice(max((float(s.max()) for s in shares), default=1.0) or 1.0)
    x, y = _scales(width, height, top)
    parts = _frame(width, height, [0, 0.25, 0.5, 0.75, 1], [0, top / 2, top], top, axis, "share of queries")
    for k, share in enumerate(shares):
        points = [(x(0), y(0))]
        for i, value in enumerate(share):
            points += [(x(i / 20), y(value)), (x((i + 1) / 20), y(value))]
        points.append((x(1), y(0)))
        parts.append(el("polygon", points=_points(points), klass=f"area r{k}"))
        parts.append(el("polyline", points=_points(points), klass=f"curve r{k}"))
    said = "; ".join(
        f"{name}: {share[0]:.0%} below 0.05, {share[10:].sum():.0%} at 0.5 or more"
        for name, share in zip(names, shares, strict=True)
    )
    return _chart(width, height, parts, title, said)


def reliability_chart(bins: Sequence[Bin], title: str, run: int = 0) -> Markup:
    """Share that was right over mean confidence, with 95 % intervals, and below it how many queries a bin holds."""
    width, height, strip = 300, 300, 46
    x, y = _scales(width, height, 1.0)
    parts = _frame(width, height, [0, 0.5, 1], [0, 0.5, 1], 1.0, "confidence", "share that was right")
    parts.append(_line(x(0), y(0), x(1), y(1), "diagonal"))
    for b in bins:
        parts.append(_line(x(b.said), y(b.right_low), x(b.said), y(b.right_high), f"error r{run}"))
    most = max((b.n for b in bins), default=1)
    for b in bins:
        size = 2.5 + 4.5 * math.sqrt(b.n / most)
        parts.append(el("circle", cx=_n(x(b.said)), cy=_n(y(b.right)), r=_n(size), klass=f"dot r{run}"))
    floor = height + strip
    for b in bins:
        tall = max(1.0, b.n / most * (strip - 16))
        parts.append(_box(x(b.lo) + 1, floor - tall, x(b.hi) - x(b.lo) - 2, tall, f"bar r{run}"))
        if b.n == most:
            parts.append(_text((x(b.lo) + x(b.hi)) / 2, floor - tall - 4, f"{b.n}", "tick", "middle"))
    parts.append(_line(x(0), floor, x(1), floor, "axis"))
    said = "; ".join(f"confidence {b.said:.2f}: {b.right:.2f} right, {b.n} queries" for b in bins)
    return _chart(width, floor + 4, parts, title, said)


def roc_chart(curves: Sequence[tuple[int, FloatArray]], names: Sequence[str], title: str) -> Markup:
    """Finds over false alarms as the threshold on the confidence falls; (run, (M, 2)) each."""
    width, height = 300, 300
    x, y = _scales(width, height, 1.0)
    parts = _frame(width, height, [0, 0.5, 1], [0, 0.5, 1], 1.0, "absent, but found", "present and found")
    parts.append(_line(x(0), y(0), x(1), y(1), "diagonal"))
    for run, curve in curves:
        points = [(x(float(a)), y(float(b))) for a, b in _thinned(curve)]
        parts.append(el("polyline", points=_points(points), klass=f"curve r{run}"))
    return _chart(width, height, parts, title, f"One curve per run: {', '.join(names)}")


def pair_chart(
    a: Sequence[float], b: Sequence[float], names: tuple[str, str], title: str, run: int = 1
) -> Markup:
    """The same queries under two runs: squares of a 20 x 20 grid, their size says how many queries lie there."""
    width, height, cells = 300, 300, 20
    x, y = _scales(width, height, 1.0)
    parts = _frame(width, height, [0, 0.5, 1], [0, 0.5, 1], 1.0, names[0], names[1])
    parts.append(_line(x(0), y(0), x(1), y(1), "diagonal"))
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    good = np.isfinite(first) & np.isfinite(second)
    counts, _, _ = np.histogram2d(
        np.clip(first[good], 0, 1), np.clip(second[good], 0, 1), bins=cells, range=[[0, 1], [0, 1]]
    )
    most = counts.max() if counts.size else 1.0
    step = x(1 / cells) - x(0)
    for i, j in np.argwhere(counts > 0):
        side = step * (0.25 + 0.75 * math.sqrt(counts[i, j] / most))
        parts.append(
            _box(
                x((i + 0.5) / cells) - side / 2,
                y((j + 0.5) / cells) - side / 2,
                side,
                side,
                f"cell r{run}",
                rx=1.5,
            )
        )
    better, worse = int((second[good] > first[good]).sum()), int((second[good] < first[good]).sum())
    said = f"{names[1]} is better for {better} and worse for {worse} of {int(good.sum())} queries"
    return _chart(width, height, parts, title, said)


def span_bar(spans: Sequence[Span], duration_s: float, klass: str) -> Markup:
    """When something is true or predicted, on a bar over the whole video. Stretches with its container."""
    parts: list[Node] = [_box(0, 0, 1000, 10, "rail")]
    for span in spans:
        start = min(max(span.start_s / duration_s, 0.0), 1.0) * 1000
        end = min(max(span.end_s / duration_s, 0.0), 1.0) * 1000
        parts.append(_box(min(start, 994), 0, max(end - start, 6), 10, "span"))
    return el(
        "svg",
        *parts,
        klass=f"spans {klass}",
        viewBox="0 0 1000 10",
        preserveAspectRatio="none",
        aria_hidden="true",
        focusable="false",
    )


# --- parts -----------------------------------------------------------------------------------------


class _Scale:
    """A number on an axis -> a place in the picture."""

    def __init__(self, start: float, end: float, top: float) -> None:
        self.start, self.end, self.top = start, end, top

    def __call__(self, value: float) -> float:
        return self.start + min(max(value / self.top, 0.0), 1.0) * (self.end - self.start)


def _scales(width: float, height: float, top: float) -> tuple[_Scale, _Scale]:
    return _Scale(_LEFT, width - _RIGHT, 1.0), _Scale(height - _BOTTOM, _TOP, top)


def _frame(
    width: float,
    height: float,
    xs: Sequence[float],
    ys: Sequence[float],
    top: float,
    below: str,
    beside: str,
) -> list[Node]:
    """Grid, ticks and what the axes are."""
    x, y = _scales(width, height, top)
    parts: list[Node] = []
    for value in ys:
        parts.append(_line(x(0), y(value), x(1), y(value), "axis" if value == 0 else "grid"))
        parts.append(_text(x(0) - 6, y(value) + 4, f"{value:.3g}", "tick", "end"))
    parts += [_text(x(value), y(0) + 15, f"{value:g}", "tick", "middle") for value in xs]
    parts.append(_text((x(0) + x(1)) / 2, height - 5, _short(below), "label", "middle"))
    middle = (y(0) + y(top)) / 2
    parts.append(
        el(
            "text",
            _short(beside),
            x=0,
            y=0,
            klass="label",
            text_anchor="middle",
            transform=f"translate(10 {_n(middle)}) rotate(-90)",
        )
    )
    return parts


def _chart(width: float, height: float, parts: Sequence[Node], title: str, said: str) -> Markup:
    return el(
        "svg",
        el("title", title),
        el("desc", said),
        join(parts),
        klass="chart",
        role="img",
        aria_label=f"{title}. {said}",
        viewBox=f"0 0 {_n(width)} {_n(height)}",
        style=f"width:{_n(width)}px",
    )


def _thinned(curve: FloatArray, most: int = 200) -> FloatArray:
    if len(curve) <= most:
        return curve
    kept: FloatArray = curve[np.unique(np.rint(np.linspace(0, len(curve) - 1, most)).astype(int))]
    return kept


def _nice(value: float) -> float:
    """The next 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(power * k for k in (1, 2, 5, 10) if power * k >= value - 1e-12)


def _short(label: str, most: int = 40) -> str:
    return label if len(label) <= most else label[: most - 1] + "…"


def _line(x0: float, y0: float, x1: float, y1: float, klass: str) -> Markup:
    return el("line", x1=_n(x0), y1=_n(y0), x2=_n(x1), y2=_n(y1), klass=klass)


def _box(x: float, y: float, width: float, height: float, klass: str, rx: float | None = None) -> Markup:
    return el("rect", x=_n(x), y=_n(y), width=_n(width), height=_n(height), klass=klass, rx=rx)


def _text(x: float, y: float, said: str, klass: str, anchor: str) -> Markup:
    return el("text", said, x=_n(x), y=_n(y), klass=klass, text_anchor=anchor)


def _points(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{_n(x)},{_n(y)}" for x, y in points)


def _n(value: float) -> str:
    return f"{value:.1f}".rstrip("0").rstrip(".")
