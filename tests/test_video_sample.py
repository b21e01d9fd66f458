"""Sampling: properties over any video, and the conventions by number."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tubelet.errors import VideoError
from tubelet.tube import Span
from tubelet.video import sample_at, sample_indices, sample_rate, sample_uniform
from tubelet.video.probe import Video, average_rate, ticks_to_seconds


def made_of(ticks: list[int], last: int = 40, time_base: Fraction = Fraction(1, 1000)) -> Video:
    """A Video with frames at these ticks, without a file."""
    pts = np.array(ticks, dtype=np.int64)
    times = ticks_to_seconds(pts - pts[0], time_base)
    fps, constant = average_rate(pts - pts[0], last, time_base, [])
    return Video(
        path=Path("made.mp4"),
        fps=fps,
        constant_rate=constant,
        times_s=times,
        duration_s=float(times[-1] + last * time_base),
        width=64,
        height=48,
        start_offset_s=float(pts[0] * time_base),
        codec="h264",
        container="mp4",
        is_image=False,
        rotation_deg=0,
        mirrored=False,
        sample_aspect_ratio=Fraction(1),
        has_audio=False,
        byte_size=1,
        keyframes=np.arange(len(pts)) == 0,
        pts=pts,
        time_base=time_base,
        stream_index=0,
        seekable=True,
        counted=False,
    )


def constant(count: int, step: int = 40) -> Video:
    return made_of([step * k for k in range(count)], last=step)


gaps = st.lists(st.integers(1, 3000), max_size=60)
videos = st.one_of(
    st.builds(lambda g, last: made_of(np.cumsum([0, *g]).tolist(), last), gaps, st.integers(1, 3000)),
    st.builds(constant, st.integers(1, 300), st.sampled_from([1, 33, 40, 1000])),
)


@st.composite
def windows(draw: st.DrawFn) -> tuple[Video, Span | None]:
    video = draw(videos)
    if draw(st.booleans()):
        return video, None
    start = draw(st.floats(0, video.duration_s * 1.2))
    return video, Span(start, start + draw(st.floats(1e-3, video.duration_s + 1)))


def inside(video: Video, window: Span | None) -> np.ndarray:
    if window is None:
        return np.arange(video.n_frames)
    # the tolerance of a microsecond is part of the contract
    return np.flatnonzero((video.times_s >= window.start_s - 1e-6) & (video.times_s < window.end_s - 1e-6))


@given(windows(), st.integers(1, 400), st.booleans())
def test_uniform_gives_distinct_frames_of_the_window(
    case: tuple[Video, Span | None], count: int, ends: bool
) -> None:
    video, window = case
    available = inside(video, window)
    if len(available) == 0:
        with pytest.raises(VideoError, match=r"begins? .*the (window|end)"):
            sample_uniform(video, count, window, ends=ends)
        return
    grid = sample_uniform(video, count, window, ends=ends)
    assert len(grid) == min(count, len(available))
    assert np.isin(grid.frame_index, available).all()
    np.testing.assert_array_equal(grid.times_s, video.times_s[grid.frame_index])
    if ends and len(grid) > 1:
        assert (grid.frame_index[0], grid.frame_index[-1]) == (available[0], available[-1])


@given(st.integers(1, 2000), st.integers(1, 200))
def test_uniform_with_a_constant_rate_is_index_arithmetic(n: int, count: int) -> None:
    video = constant(n)
    if count < n:
        centres = [int((Fraction(2 * k + 1, 2) * n) / count) for k in range(count)]
        assert sample_uniform(video, count).frame_index.tolist() == centres
        ends = np.linspace(0, n - 1, count).astype(int)
        assert sample_uniform(video, count, ends=True).frame_index.tolist() == ends.tolist()


def test_uniform_by_number() -> None:
    video = constant(10)
    assert sample_uniform(video, 2).frame_index.tolist() == [2, 7]
    assert sample_uniform(video, 2, ends=True).frame_index.tolist() == [0, 9]
    assert sample_uniform(video, 1).frame_index.tolist() == [5]
    assert sample_uniform(video, 99).frame_index.tolist() == list(range(10))
    assert sample_uniform(video, 2, Span(0.2, 0.36)).frame_index.tolist() == [6, 8]
    assert sample_uniform(video, 9, Span(0.2, 0.36)).frame_index.tolist() == [5, 6, 7, 8]


def test_uniform_is_even_in_time_when_the_rate_varies() -> None:
    # a burst of 50 frames in the first half second, then one frame a second
    video = made_of([10 * k for k in range(50)] + [1000 * k for k in range(1, 10)], last=1000)
    assert not video.constant_rate
    times = sample_uniform(video, 5).times_s  # moments 1, 3, 5, 7, 9
    np.testing.assert_allclose(times, [1, 3, 5, 7, 9])
    assert len(sample_uniform(video, 40)) == 40


@given(windows(), st.floats(0.01, 2000), st.none() | st.integers(1, 50))
def test_rate_takes_the_frames_on_display(
    case: tuple[Video, Span | None], fps: float, max_frames: int | None
) -> None:
    video, window = case
    available = inside(video, window)
    if len(available) == 0:
        with pytest.raises(VideoError):
            sample_rate(video, fps, window, max_frames=max_frames)
        return
    grid = sample_rate(video, fps, window, max_frames=max_frames)
    assert np.isin(grid.frame_index, available).all()
    if max_frames is not None:
        assert len(grid) <= max_frames
    else:
        length = (min(window.end_s, video.duration_s) - window.start_s) if window else video.duration_s
        assert len(grid) <= length * fps + 2


def test_rate_by_number() -> None:
    video = constant(100)  # 25 frames per second, 4 s
    assert sample_rate(video, 1).frame_index.tolist() == [0, 25, 50, 75]
    assert sample_rate(video, 25).frame_index.tolist() == list(range(100))
    assert sample_rate(video, 1e6).frame_index.tolist() == list(range(100))
    assert sample_rate(video, 10).frame_index.tolist()[:4] == [0, 2, 5, 7]
    assert sample_rate(video, 2, Span(1, 2)).frame_index.tolist() == [25, 37]
    assert sample_rate(video, 0.1).frame_index.tolist() == [0]
    assert len(sample_rate(video, 25, max_frames=7)) == 7
    ntsc = made_of([1001 * k for k in range(300)], 1001, Fraction(1, 30000))
    assert sample_rate(ntsc, float(ntsc.fps)).frame_index.tolist() == list(range(300))


@given(videos, st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_at_gives_the_frame_on_display(video: Video, parts: list[float]) -> None:
    moments = np.array(parts) * video.duration_s
    grid = sample_at(video, moments)
    slow = sorted({max(i for i, t in enumerate(video.times_s) if t <= m + 1e-6 or i == 0) for m in moments})
    assert grid.frame_index.tolist() == slow


@given(videos)
def test_a_written_time_finds_its_frame(video: Video) -> None:
    grid = sample_at(video, np.round(video.times_s, 6))
    assert grid.frame_index.tolist() == list(range(video.n_frames))
    assert sample_at(video, [video.duration_s]).frame_index.tolist() == [video.n_frames - 1]


@given(videos, st.lists(st.integers(0, 59), min_size=1))
def test_indices_are_sorted_and_taken_once(video: Video, wanted: list[int]) -> None:
    wanted = [k % video.n_frames for k in wanted]
    grid = sample_indices(video, wanted)
    assert grid.frame_index.tolist() == sorted(set(wanted))
    assert (grid.fps, grid.duration_s, grid.width, grid.height) == (video.fps, video.duration_s, 64, 48)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda v: sample_uniform(v, 0), "whole number >= 1, got 0"),
        (lambda v: sample_uniform(v, 2.5), "whole number"),
        (lambda v: sample_uniform(v, True), "whole number"),
        (lambda v: sample_uniform(v, 4, Span(9, 10)), "after the end of made.mp4, which lasts 0.4 s"),
        (lambda v: sample_uniform(v, 4, Span(0.041, 0.06)), "no frame of made.mp4 begins in the window"),
        (lambda v: sample_rate(v, 0), "> 0, got 0"),
        (lambda v: sample_rate(v, float("nan")), "> 0, got nan"),
        (lambda v: sample_rate(v, 25, max_frames=0), "max_frames"),
        (lambda v: sample_at(v, [0.1, 7.0]), "7 s lies outside made.mp4, which lasts 0-0.4 s"),
        (lambda v: sample_at(v, [-1]), "-1 s lies outside"),
        (lambda v: sample_at(v, []), "at least one moment"),
        (lambda v: sample_at(v, [float("nan")]), "finite"),
        (lambda v: sample_indices(v, [0, 10]), "frame 10 is not in made.mp4: its 10 frames are 0 to 9"),
        (lambda v: sample_indices(v, [-1]), "frame -1"),
        (lambda v: sample_indices(v, []), "at least one"),
        (lambda v: sample_indices(v, [0.5]), "whole numbers.*sample_at"),
    ],
)
def test_errors_teach(call: object, message: str) -> None:
    with pytest.raises(VideoError, match=message):
        call(constant(10))  # type: ignore[operator]
