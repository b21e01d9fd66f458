"""The pictures: boxes are where and when the tubes say, text fits, files are whole or not there."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tubelet.errors import DataError, OutputError, RecipeError
from tubelet.frames import Clip, FrameGrid
from tubelet.tube import Prediction, Span, Tube
from tubelet.video import VideoWriter, open_video, read_clip, sample_indices
from tubelet.view import (
    OverlayStyle,
    contact_sheet,
    draw,
    draw_timeline,
    draw_tubes,
    letters,
    write_contact_sheet,
    write_overlay,
    write_timeline,
)
from tubelet.view.rows import tiou, truth_rows
from tubelet.view.scene import Area, Box, Line, Text, to_image, to_svg
from tubelet.view.timebar import Lane, layout_bar
from tubelet.view.timeline import nice_ticks

BARE = OverlayStyle(bar="none", labels=False)
COLOUR = draw.PALETTE[0]
HARD_TEXTS = [
    "穿红衣服的男人",
    "Кто сидит?",
    "رجل يرتدي قميصا أحمر",
    "👩‍👩‍👧 waves 👋🏽",
    "café naïve — “quoted”…",
    "tab\there\nnewline \x00\x1b[31m",
    "half \ud83d surrogate \uffff",
    "ก็ e\u0301\u0301\u0301",
    "",
    " ",
]


def grey(height: int = 180, width: int = 320, level: int = 120) -> np.ndarray:
    return np.full((height, width, 3), level, np.uint8)


def tube(
    box: tuple[float, float, float, float] = (0.25, 0.25, 0.5, 0.75),
    start_s: float = 2.0,
    end_s: float = 6.0,
    **kw,
) -> Tube:
    return Tube(Span(start_s, end_s), [start_s, end_s], [box, box], **kw)


def near(image: np.ndarray, colour: tuple[int, int, int], tolerance: int = 12) -> np.ndarray:
    return (np.abs(image.astype(int) - colour) <= tolerance).all(axis=-1)


def extent(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def prediction(query: str = "the red ball", *tubes: Tube, **kw) -> Prediction:
    return Prediction("clips/a.mp4", query, "stvg", tubes, **kw)


def clip(n: int = 8, height: int = 48, width: int = 48, shown: tuple[int, int] = (640, 360)) -> Clip:
    grid = FrameGrid(np.arange(n), np.arange(n) * 1.0, Fraction(25), float(n), *shown)
    return Clip(np.full((n, height, width, 3), 120, np.uint8), grid)


# ------------------------------------------------------------------------------------------- one frame


def test_the_box_line_is_where_the_tube_says_and_nowhere_else() -> None:
    frame = grey()
    out = draw_tubes(frame, 3.0, [tube()], 10, style=BARE)
    assert out.shape == frame.shape and out.dtype == np.uint8
    x0, y0, x1, y1 = extent(near(out, COLOUR))
    assert np.allclose([x0, y0, x1, y1], [80, 45, 160, 135], atol=2)
    changed = (out != frame).any(-1)
    assert not changed[50:130, 85:155].any(), "the inside of the box is covered"
    assert not changed[:40].any() and not changed[:, :75].any() and not changed[:, 165:].any()


def test_a_box_follows_its_tube_between_the_given_moments() -> None:
    moving = Tube(Span(0, 4), [0, 4], [(0, 0.25, 0.25, 0.75), (0.5, 0.25, 0.75, 0.75)])
    lefts = [extent(near(draw_tubes(grey(), t, [moving], 10, style=BARE), COLOUR))[0] for t in (1, 2, 3)]
    assert np.allclose(lefts, [40, 80, 120], atol=2)


@pytest.mark.parametrize("time_s", [0.0, 1.999, 6.0, 9.0])
def test_nothing_is_drawn_outside_the_span(time_s: float) -> None:
    frame = grey()
    out = draw_tubes(frame, time_s, [tube(label="x", score=1.0)], 10, style=OverlayStyle(bar="none"))
    assert np.array_equal(out, frame)


@pytest.mark.parametrize("time_s", [2.0, 2.0 - 4e-7, 5.99])
def test_the_span_is_half_open_and_forgives_rounding(time_s: float) -> None:
    assert near(draw_tubes(grey(), time_s, [tube()], 10, style=BARE), COLOUR).any()


@pytest.mark.parametrize("level", [0, 120, 255])
def test_lines_have_a_dark_halo_that_is_seen_on_any_ground(level: int) -> None:
    out = draw_tubes(grey(level=level), 3, [tube()], 10, style=BARE)
    profile = out[90, 70:90].astype(int).sum(1)
    assert near(out, COLOUR)[90, 70:90].any()
    if level:
        assert profile.min() < 0.75 * 3 * level


def test_the_input_is_not_changed_and_may_be_read_only() -> None:
    frame = np.random.default_rng(0).integers(0, 255, (90, 121, 3), dtype=np.uint8)
    before = frame.copy()
    frame.flags.writeable = False
    draw_tubes(frame, 3, [tube(label="x")], 10, caption="y", truth=[tube()], style=OverlayStyle(bar="over"))
    assert np.array_equal(frame, before)


def test_same_input_same_picture() -> None:
    pictures = [draw_tubes(grey(), 3, [tube(label="ball", score=0.5)], 10, caption="c") for _ in range(2)]
    assert np.array_equal(*pictures)


@pytest.mark.parametrize(
    "box", [(0, 0, 1, 1), (0, 0, 0, 0), (1, 1, 1, 1), (0.5, 0.5, 0.5, 0.5), (0, 0.3, 1, 0.3)]
)
def test_boxes_at_the_border_and_points_are_visible(box: tuple[float, float, float, float]) -> None:
    out = draw_tubes(grey(), 3, [tube(box)], 10, style=BARE)
    assert near(out, COLOUR, 40).sum() >= 4
    if box == (0, 0, 1, 1):
        line = near(out, COLOUR)
        assert all(
            side.mean() > 0.9
            for side in (line[:4].any(0), line[-4:].any(0), line[:, :4].any(1), line[:, -4:].any(1))
        )


def test_every_tube_has_its_own_colour() -> None:
    assert len(set(draw.PALETTE)) == len(draw.PALETTE) >= 6
    boxes = [(0.02 + 0.16 * i, 0.2, 0.14 + 0.16 * i, 0.8) for i in range(6)]
    out = draw_tubes(grey(), 3, [tube(box) for box in boxes], 10, style=BARE)
    for box, colour in zip(boxes, draw.PALETTE, strict=False):
        x0, _, x1, _ = extent(near(out, colour))
        assert abs(x0 - box[0] * 320) < 3 and abs(x1 - box[2] * 320) < 3


def test_the_true_box_is_dashed() -> None:
    out = draw_tubes(grey(), 3, [], 10, truth=[tube()], style=BARE)
    white = near(out, draw.WHITE, 40)
    assert np.allclose(extent(white), [80, 45, 160, 135], atol=2)
    edge = white[43:48, 80:160].any(0)
    assert 0.35 < edge.mean() < 0.8 and np.count_nonzero(np.diff(edge.astype(int))) >= 8
    assert not near(draw_tubes(grey(), 7, [], 10, truth=[tube()], style=BARE), draw.WHITE).any()


@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (17, 31), (64, 64), (361, 203), (640, 360), (360, 640)])
@pytest.mark.parametrize("bar", ["below", "over", "none"])
def test_any_frame_size_works(shape: tuple[int, int], bar: str) -> None:
    tubes = [
        tube(label="the man who sits down", score=0.5),
        tube((0, 0, 1, 1)),
        Tube(Span(1, 9), label="no boxes"),
    ]
    style = OverlayStyle(bar=bar)  # type: ignore[arg-type]
    frame = grey(*shape)
    out = draw_tubes(frame, 3, tubes, 10, truth=[tube()], caption="who sits down?", style=style)
    added = out.shape[0] - shape[0]
    assert out.shape[1:] == (shape[1], 3) and added % 2 == 0
    assert (added > 0) == (bar == "below")
    other = draw_tubes(frame, 9.9, tubes, 10, truth=[tube()], caption="who sits down?", style=style)
    assert other.shape == out.shape, "a video has one size"


@pytest.mark.parametrize("bar", ["below", "over"])
@pytest.mark.parametrize("text", HARD_TEXTS)
def test_any_text_can_be_drawn(text: str, bar: str) -> None:
    style = OverlayStyle(bar=bar)  # type: ignore[arg-type]
    out = draw_tubes(grey(), 3, [tube(label=text, score=0.1)], 10, caption=text, style=style)
    assert near(out, COLOUR).any()


def test_chips_stay_in_the_frame_and_keep_the_score() -> None:
    long = "a very long label that goes on and on " * 5
    frame = grey()
    for box in [(0.9, 0, 1, 0.05), (0, 0, 1, 1), (0.95, 0.95, 1, 1), (0, 0.4, 0.05, 0.5)]:
        scored = draw_tubes(frame, 3, [tube(box, label=long, score=0.25)], 10, style=OverlayStyle(bar="none"))
        plain = draw_tubes(frame, 3, [tube(box)], 10, style=OverlayStyle(bar="none"))
        chip = (scored != plain).any(-1)
        x0, _, x1, _ = extent(chip)
        assert 120 < x1 - x0 <= 0.52 * 320, "a chip takes up to half of the width"
        other = draw_tubes(frame, 3, [tube(box, label=long, score=0.75)], 10, style=OverlayStyle(bar="none"))
        moved = extent((scored != other).any(-1))
        assert x0 < moved[0] and moved[2] <= x1, "a long label pushed the score out of its chip"


def test_chips_do_not_hide_each_other() -> None:
    both = [tube(label="one", score=0.5), tube(label="two", score=0.5)]
    out = draw_tubes(grey(360, 640), 3, both, 10, style=OverlayStyle(bar="none"))
    assert near(out, draw.PALETTE[0], 3)[:86].sum() > 200, "the first chip lies above the box"
    assert near(out, draw.PALETTE[1], 3)[275:].sum() > 200, "the second one below, where the first is not"
    assert not near(out, draw.PALETTE[1], 3)[:86].any()


def test_a_tube_without_boxes_shows_its_label_while_it_is_true() -> None:
    when = Tube(Span(2, 6), label="sits down")
    style = OverlayStyle(bar="none")
    inside = draw_tubes(grey(), 3, [when], 10, style=style)
    assert near(inside, COLOUR)[:40, :120].sum() > 100
    assert np.array_equal(draw_tubes(grey(), 7, [when], 10, style=style), grey())


def test_lines_grow_with_the_frame() -> None:
    def thickness(height: int, width: int) -> int:
        out = draw_tubes(grey(height, width), 3, [tube()], 10, style=BARE)
        return int(near(out, COLOUR)[height // 2, : width * 3 // 8].sum())

    assert thickness(180, 320) < thickness(720, 1280) < thickness(2160, 3840)


@pytest.mark.parametrize(
    "frame",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3)),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_wrong_frames_are_refused(frame: np.ndarray) -> None:
    with pytest.raises(DataError, match="uint8 RGB"):
        draw_tubes(frame, 0, [], 1)


def test_wrong_times_and_styles_are_refused() -> None:
    for time_s, duration_s in ((float("nan"), 1), (0, 0), (0, float("inf"))):
        with pytest.raises(DataError, match="duration"):
            draw_tubes(grey(), time_s, [], duration_s)
    for wrong in ({"scale": 0}, {"bar": "left"}, {"palette": ()}):
        with pytest.raises(RecipeError):
            OverlayStyle(**wrong)
    with pytest.raises(OutputError, match="font"):
        draw_tubes(grey(), 3, [tube(label="x")], 10, style=OverlayStyle(font="no-such-font.ttf"))


# -------------------------------------------------------------------------------------------- time bar


def head_x(time_s: float, tubes: list[Tube], width: int = 400) -> float:
    """Where the play head stands: the middle of the columns that are white through a whole lane."""
    out = draw_tubes(grey(100, width), time_s, tubes, 10, caption="c", style=OverlayStyle(labels=False))
    bar = out[100:]
    lanes = near(bar, (54, 60, 71), 4) | near(bar, COLOUR, 4)
    rows = np.flatnonzero(lanes.mean(1) > 0.5)
    columns = np.flatnonzero(bar[rows].min(axis=(0, 2)) > 200)
    return float(columns.mean() + 0.5)


def test_the_play_head_moves_with_time() -> None:
    times = np.array([1.0, 2.5, 5.0, 7.5, 9.0])
    at = np.array([head_x(t, [tube()]) for t in times])
    slope, start = np.polyfit(times, at, 1)
    assert np.abs(at - (start + slope * times)).max() < 0.75, "not proportional to time"
    assert 0 < start < 20 and 380 < start + 10 * slope < 400
    layout = layout_bar(400, 14, (Lane(COLOUR, (Span(2, 6),)),), 10.0, "c", draw.WHITE, None)
    assert layout.head_x(-5, 10) == layout.track_x0 and layout.head_x(50, 10) == layout.track_x1
    assert layout.head_x(5, 10) == pytest.approx((layout.track_x0 + layout.track_x1) / 2)


def test_spans_are_where_their_times_are() -> None:
    out = draw_tubes(
        grey(100, 400), 9.5, [tube(start_s=2, end_s=6)], 10, caption="c", style=OverlayStyle(labels=False)
    )
    layout = layout_bar(400, 9, (), 10.0, "c", draw.WHITE, None)
    x0, _, x1, _ = extent(near(out[100:], COLOUR, 30))
    track = layout.track_x1 - layout.track_x0
    assert abs(x0 - (layout.track_x0 + 0.2 * track)) < 2 and abs(x1 - (layout.track_x0 + 0.6 * track)) < 2


def test_a_very_short_span_can_be_seen() -> None:
    for start_s, end_s in ((0, 0.001), (3, 3.001), (599.9, 600)):
        out = draw_tubes(grey(100, 400), 300, [tube(start_s=start_s, end_s=end_s)], 600)
        assert near(out[100:], COLOUR, 30).sum() >= 6


def test_the_moment_is_written() -> None:
    def time_text(time_s: float) -> np.ndarray:
        out = draw_tubes(grey(100, 400), time_s, [], 10)
        return out[100:]

    assert np.array_equal(time_text(3.21), time_text(3.24)) and not np.array_equal(
        time_text(3.2), time_text(3.4)
    )


def test_captions_change_only_the_bar() -> None:
    short, long = (draw_tubes(grey(100, 400), 3, [tube()], 10, caption=c) for c in ("c", "many words " * 30))
    assert np.array_equal(short[:100], long[:100]) and len(long) > len(short)
    assert not near(long[100:, 396:], (240, 242, 245), 60).any(), "text runs into the right margin"


def test_many_tubes_do_not_make_a_tower() -> None:
    few, many = (draw_tubes(grey(360, 640), 3, [tube()] * n, 10).shape[0] for n in (12, 60))
    assert few < many < few + 30


def test_the_bar_over_the_picture_lets_it_shine_through() -> None:
    style = OverlayStyle(bar="over")
    dark, light = (
        draw_tubes(grey(level=level), 3, [tube()], 10, style=style)[-3, 5].astype(int).sum()
        for level in (0, 255)
    )
    assert 30 < light - dark < 0.4 * 765


# ------------------------------------------------------------------------------------------------ text


@given(st.text(max_size=60), st.integers(6, 40), st.integers(0, 300))
@settings(max_examples=60, deadline=None)
def test_cut_text_fits(text: str, size: int, room: int) -> None:
    cut = letters.shorten(text, size, room)
    assert letters.text_width(cut, size) <= room
    mask = letters.text_mask(cut, size)
    assert mask.shape[0] == letters.line_height(size) and mask.dtype == np.uint8
    if cut:
        assert mask.shape[1] == letters.text_width(cut, size)
    for line in (lines := letters.wrap(text, size, max(room, 2 * size), 3)):
        assert letters.text_width(line, size) <= max(room, 2 * size)
    assert len(lines) <= 3


def test_wrapping_loses_no_word() -> None:
    sentence = "the man in the red jacket who sits down on the bench"
    assert " ".join(letters.wrap(sentence, 14, 120, 99)) == sentence
    assert letters.wrap(sentence, 14, 120, 2)[-1].endswith("…")
    assert letters.wrap("", 14, 100, 2) == []
    assert "".join(letters.wrap("x" * 50, 14, 60, 99)) == "x" * 50


def test_characters_that_no_font_has_are_squares(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(letters, "_FALLBACK_FONTS", ())
    for cache in (letters._runs, letters._text_mask, letters._font, letters._has_glyph, letters._shorten):
        cache.cache_clear()
    one, two = letters.text_mask("日", 20), letters.text_mask("日本", 20)
    assert one.any() and abs(two.shape[1] - 2 * one.shape[1]) <= 2
    assert not one[:, 5:9].all() and np.array_equal(one, letters.text_mask("本", 20))
    assert letters.text_width("e\u0301", 20) > 0
    for cache in (letters._runs, letters._text_mask, letters._font, letters._has_glyph, letters._shorten):
        cache.cache_clear()


def test_letters_that_are_drawn_as_squares_can_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(letters, "_FALLBACK_FONTS", ())
    assert letters.lacking("the ring, 红色 红 🔴") == "红色🔴"
    assert letters.lacking("plain letters") == letters.lacking("") == ""


def test_ink_is_readable_on_every_colour() -> None:
    for colour in (*draw.PALETTE, draw.WHITE, draw.INK):
        lights = [
            sum(c * w for c, w in zip(rgb, (0.2126, 0.7152, 0.0722), strict=True))
            for rgb in (colour, draw.ink_on(colour))
        ]
        assert abs(lights[0] - lights[1]) > 90


# -------------------------------------------------------------------------------------------- timeline


def test_nice_ticks() -> None:
    for duration_s in (0.04, 0.9, 7, 10, 30.03, 61, 600, 7200.5):
        ticks = nice_ticks(duration_s, 8)
        assert ticks[0] == 0 and ticks[-1] <= duration_s + 1e-9 and 2 <= len(ticks) <= 9
        assert f"{ticks[1]:.0e}"[0] in "125"
    assert nice_ticks(10, 5).tolist() == [0, 2, 4, 6, 8, 10]


def test_a_timeline_shows_every_query() -> None:
    rows = [
        prediction("the red ball", tube(score=0.9)),
        prediction("a purple cow", confidence=0.1),
        prediction("what?", failure="no time in the answer"),
    ]
    heights = [draw_timeline(rows[:n], duration_s=10).height for n in (1, 2, 3)]
    assert heights[0] < heights[1] < heights[2]
    image = np.asarray(draw_timeline(rows, duration_s=10))
    assert image.shape[1] == 1200 and image.dtype == np.uint8
    assert near(image, (190, 30, 32), 30).sum() > 60, "a failure is red"
    assert not near(np.asarray(draw_timeline(rows[:2], duration_s=10)), (190, 30, 32), 30).any()


def test_timeline_bars_are_where_the_spans_are() -> None:
    def bar(start_s: float, end_s: float) -> tuple[int, int]:
        image = np.asarray(
            draw_timeline([prediction("q", tube(start_s=start_s, end_s=end_s, score=1.0))], duration_s=10)
        )
        x0, _, x1, _ = extent(near(image[80:, 400:], COLOUR, 6))
        return x0, x1

    (a, b), (c, d) = bar(0, 5), bar(5, 10)
    assert abs(b - c) <= 4 and abs((b - a) - (d - c)) <= 3
    x0, x1 = bar(2.5, 7.5)
    assert abs((x0 + x1) / 2 - (a + d) / 2) <= 2


def test_a_less_sure_span_is_lighter() -> None:
    def light(score: float) -> float:
        image = np.asarray(
            draw_timeline([prediction("q", tube(start_s=0, end_s=10, score=score))], duration_s=10)
        )
        middle = image[:, 600]
        return float(middle[(middle != 255).any(1)].mean())

    assert light(0.1) > light(0.5) + 5 > light(1.0) + 10


def test_truth_adds_bar_and_tiou() -> None:
    shapes = write_svg_texts(
        [prediction("q", tube(start_s=2, end_s=6))], truth={"q": tube(start_s=4, end_s=8)}
    )
    assert "tIoU" in shapes and "0.33" in shapes and "truth" in shapes
    without = write_svg_texts([prediction("q", tube())])
    assert "tIoU" not in without and "truth" not in without
    absent = write_svg_texts([prediction("q", confidence=0.2)], truth=[()])
    assert "truth: not in this video" in absent and "not in this video (confidence 0.20)" in absent


def write_svg_texts(predictions: list[Prediction], **kw) -> list[str]:
    with TemporaryDirectory() as folder:
        path = write_timeline(predictions, Path(folder) / "t.svg", duration_s=10, **kw)
        root = ET.fromstring(path.read_text(encoding="utf-8"))
    return [element.text or "" for element in root.iter("{http://www.w3.org/2000/svg}text")]


@pytest.mark.parametrize("text", HARD_TEXTS)
def test_svg_is_wellformed_and_keeps_the_script(text: str) -> None:
    texts = write_svg_texts([prediction(text + " <b>&", tube(label=text))])
    assert any("<b>&" in t for t in texts)
    if text.startswith("穿"):
        assert any(text in t for t in texts)


def test_a_svg_has_the_same_layout_as_the_png() -> None:
    shapes = [
        Box(10, 10, 40, 20, (200, 0, 0), 3),
        Line(((0, 0), (50, 30)), (0, 0, 200)),
        Area(((0, 30), (9, 30), (9, 20)), (0, 200, 0)),
        Text(5, 5, "x", 12, (0, 0, 0), "end"),
    ]
    pixels = np.asarray(to_image(shapes, 60, 40, (255, 255, 255)))
    assert pixels.shape == (40, 60, 3) and near(pixels, (200, 0, 0)).sum() > 200
    root = ET.fromstring(to_svg(shapes, 60, 40, (255, 255, 255)))
    assert [child.tag.rsplit("}")[-1] for child in root] == ["rect", "rect", "polyline", "polygon", "text"]
    assert (
        root[1].get("x") == "10.00"
        and root[1].get("width") == "30.00"
        and root[4].get("text-anchor") == "end"
    )


def test_activity_is_drawn_and_checked() -> None:
    one = [prediction("q", tube())]
    times = np.linspace(0, 10, 30)
    flat, curve = (
        draw_timeline(one, duration_s=10),
        draw_timeline(one, duration_s=10, activity=[(times, times * 0.01)]),
    )
    assert curve.height > flat.height
    draw_timeline(one, duration_s=10, activity=[None])
    draw_timeline(one, duration_s=10, activity=[(times, -times)])
    draw_timeline(one, duration_s=10, activity=[(times, times * 0)])
    for wrong in ([], [(times, times[1:])], [(times, times * np.nan)]):
        with pytest.raises(DataError, match="activity"):
            draw_timeline(one, duration_s=10, activity=wrong)


def test_timelines_of_nothing_and_of_odd_widths() -> None:
    assert draw_timeline([]).width == 1200
    rows = [prediction(text, tube(label=text), Tube(Span(9.99, 10), score=0.0)) for text in HARD_TEXTS]
    for width in (320, 777):
        assert draw_timeline(rows, width=width, truth=[tube()] * len(rows)).width == width
    several = [prediction("q"), Prediction("other/b.mp4", "q", "tvg")]
    assert draw_timeline(several).height > 0
    with pytest.raises(RecipeError, match="320"):
        draw_timeline([], width=100)
    with pytest.raises(RecipeError, match="duration_s"):
        draw_timeline([], duration_s=-1)


@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(1, 20)), min_size=1, max_size=5),
    st.lists(st.tuples(st.integers(0, 40), st.integers(1, 20)), min_size=1, max_size=5),
)
@settings(max_examples=50, deadline=None)
def test_tiou_of_sets_counts_seconds(a: list[tuple[int, int]], b: list[tuple[int, int]]) -> None:
    spans = [[Span(start, start + length) for start, length in side] for side in (a, b)]
    seconds = [{s for start, length in side for s in range(start, start + length)} for side in (a, b)]
    assert tiou(*spans) == pytest.approx(len(seconds[0] & seconds[1]) / len(seconds[0] | seconds[1]))
    assert tiou(spans[0][:1], spans[1][:1]) == pytest.approx(spans[0][0].iou(spans[1][0]))
    assert tiou([], spans[0]) == 0 == tiou([], [])


def test_truth_by_query_or_by_row() -> None:
    rows = [prediction("a"), prediction("b")]
    t = tube()
    assert truth_rows(rows, None) == [None, None]
    assert truth_rows(rows, {"b": t, "c": t}) == [None, (t,)]
    assert truth_rows(rows, [(), [t, t]]) == [(), (t, t)]
    with pytest.raises(DataError, match="one entry per prediction"):
        truth_rows(rows, [t])


# ----------------------------------------------------------------------------------------------- sheet


def test_a_sheet_has_the_displayed_shape_and_frames_the_span() -> None:
    image = np.asarray(contact_sheet(clip(8), [tube(start_s=2, end_s=6)], columns=4, width=1000))
    cell_w = (1000 - 48 - 30) // 4
    cell_h = round(cell_w * 360 / 640)
    assert image.shape == (48 + 2 * cell_h + 10, 1000, 3)
    for k in range(8):
        x, y = 24 + (k % 4) * (cell_w + 10), 24 + (k // 4) * (cell_h + 10)
        cell = image[y : y + cell_h, x : x + cell_w]
        inside = 2 <= k < 6
        assert near(cell[cell_h // 2, :4], COLOUR).any() == inside, k
        middle = cell[cell_h // 8, cell_w // 2].mean()
        assert (abs(middle - 120) < 2) if inside else middle > 180, k
        edge = near(cell[cell_h // 2, cell_w // 4 - 4 : cell_w // 4 + 4], COLOUR).any()
        assert edge == inside, k


def test_a_sheet_without_tubes_is_not_dimmed() -> None:
    for found in ([], [prediction("a cow", confidence=0.1)], [prediction("x", failure="no")]):
        image = np.asarray(contact_sheet(clip(3), found, width=400))
        assert near(image, (120, 120, 120), 2).mean() > 0.3
    assert near(
        np.asarray(contact_sheet(clip(3), [prediction("x", failure="no")], width=400)), (190, 30, 32), 40
    ).any()


def test_long_clips_are_thinned_and_portrait_fits() -> None:
    long, short = (contact_sheet(clip(n), [tube()], most_frames=6, columns=3) for n in (200, 6))
    assert long.size == short.size
    portrait = contact_sheet(clip(6, shown=(360, 640)), [prediction("q " * 200, tube(score=0.2))])
    assert portrait.width == 1200
    single = contact_sheet(clip(1, shown=(64, 64)), [tube()], width=160)
    assert single.width == 160
    for text in HARD_TEXTS:
        contact_sheet(clip(1), [prediction(text, tube())], width=200)


def test_sheet_arguments_are_checked() -> None:
    for wrong in ({"width": 10}, {"columns": 0}, {"most_frames": 0}):
        with pytest.raises(RecipeError):
            contact_sheet(clip(2), [], **wrong)
    with pytest.raises(DataError, match="predictions or tubes"):
        contact_sheet(clip(2), [tube(), prediction("q")])  # type: ignore[list-item]
    with pytest.raises(DataError, match="sequence of tubes"):
        contact_sheet(clip(2), [tube()], truth=[None])
    assert contact_sheet(clip(2), [prediction("q", tube())], truth={"q": tube()}).width == 1200


# ----------------------------------------------------------------------------------------------- files


def video_file(path: Path, times_s: list[float], width: int = 96, height: int = 64) -> Path:
    with VideoWriter(path, width, height, Fraction(25)) as writer:
        for time_s in times_s:
            writer.write(grey(height, width), time_s)
    return path


def test_an_overlay_video_keeps_every_time(tmp_path: Path) -> None:
    times = [0.0, 0.04, 0.1, 0.4, 0.44, 0.9]  # not a constant rate
    video = open_video(video_file(tmp_path / "in.mp4", times))
    found = [
        prediction("the red ball", Tube(Span(0.1, 0.9), [0.1, 0.9], [(0.2, 0.2, 0.8, 0.8)] * 2, score=0.5)),
        prediction("a cow", confidence=0.1),
    ]
    seen: list[tuple[int, int]] = []
    out = write_overlay(
        video, found, tmp_path / "out.mp4", truth=[tube(), None], progress=lambda i, n: seen.append((i, n))
    )
    written = open_video(out)
    assert np.allclose(written.times_s, times, atol=1e-4) and written.width == 96 and written.height > 64
    assert seen == [(i + 1, 6) for i in range(6)]
    frames = read_clip(written, sample_indices(written, list(range(6)))).pixels[:, :64]
    orange = [bool(((f[..., 0].astype(int) - f[..., 2]) > 60).any()) for f in frames]
    assert orange == [False, False, True, True, True, False]
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


@pytest.mark.parametrize("size", [(97, 65), (640, 360)])
def test_overlays_are_scaled_to_even_sides(tmp_path: Path, size: tuple[int, int]) -> None:
    video = open_video(video_file(tmp_path / "in.mp4", [0.0, 0.04], *size))
    written = open_video(
        write_overlay(video, [], tmp_path / "o.mp4", max_height=50, style=OverlayStyle(bar="none"))
    )
    assert written.height == 50 and written.width % 2 == 0
    assert abs(written.width / written.height - video.width / video.height) < 0.05
    with pytest.raises(RecipeError, match="max_height"):
        write_overlay(video, [], tmp_path / "o.mp4", max_height=0)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_an_image_becomes_an_image(tmp_path: Path, suffix: str) -> None:
    source = tmp_path / "in.png"
    Image.fromarray(grey(65, 97)).save(source)
    found = [prediction("ball", Tube(Span(0, 1), [0], [(0.2, 0.2, 0.8, 0.8)]))]
    out = write_overlay(open_video(source), found, tmp_path / f"out{suffix}")
    picture = np.asarray(Image.open(out).convert("RGB"))
    assert picture.shape[1] == 97 and picture.shape[0] > 65
    assert near(picture[:65], COLOUR, 60).sum() > 50
    with pytest.raises(OutputError, match=r"\.png"):
        write_overlay(open_video(source), found, tmp_path / "out.mp4")


def test_targets_that_cannot_be_written_are_explained(tmp_path: Path) -> None:
    video = open_video(video_file(tmp_path / "in.mp4", [0.0, 0.04]))
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "folder.mp4").mkdir()
    one = [prediction("q", tube())]
    attempts = [
        lambda: write_overlay(video, one, tmp_path / "out.png"),
        lambda: write_overlay(video, one, tmp_path / "none" / "out.mp4"),
        lambda: write_overlay(video, one, tmp_path / "folder.mp4"),
        lambda: write_timeline(one, tmp_path / "t.gif"),
        lambda: write_timeline(one, tmp_path / "t"),
        lambda: write_timeline(one, tmp_path / "none" / "t.png"),
        lambda: write_timeline(one, tmp_path / "folder.png"),
        lambda: write_contact_sheet(clip(2), one, tmp_path / "s.txt"),
        lambda: write_contact_sheet(clip(2), one, tmp_path / "none" / "s.png"),
    ]
    for attempt in attempts:
        with pytest.raises(OutputError):
            attempt()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder.mp4", "folder.png", "in.mp4"]


def test_files_are_whole_or_untouched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = [prediction("q", tube())]
    target = tmp_path / "t.png"
    write_timeline(one, target)
    before = target.read_bytes()
    assert Image.open(target).format == "PNG"

    def full(self: Image.Image, path: Path, **options: object) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    for write in (write_timeline, lambda p, path: write_contact_sheet(clip(2), p, path)):
        with pytest.raises(OutputError, match="No space left"):
            write(one, target)
    assert target.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["t.png"]


def test_an_interrupted_overlay_leaves_nothing(tmp_path: Path) -> None:
    video = open_video(video_file(tmp_path / "in.mp4", [0.0, 0.04, 0.08]))

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_overlay(video, [], tmp_path / "out.mp4", progress=stop)
    assert [p.name for p in tmp_path.iterdir()] == ["in.mp4"]
