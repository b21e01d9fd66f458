"""Reading frames: exactly the wanted ones, the same pixels by every strategy, and damage is reported."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import video_files as files
from tubelet.errors import VideoError
from tubelet.tube import Span
from tubelet.video import (
    encode_bytes,
    iter_frames,
    open_video,
    read_clip,
    read_clip_report,
    sample_indices,
    sample_uniform,
    torch_decoder,
)
from tubelet.video.decode import DecodeReport
from tubelet.video.plan import SEEK_COST_FRAMES, Run, Strategy, plan_cost, plan_runs

STRATEGIES: tuple[Strategy, ...] = ("auto", "sequential", "seek")


def written(name: str, folder: Path) -> Path:
    path = folder / name
    makers: dict[str, Callable[[], Path]] = {
        "closed.mp4": lambda: files.write(path, 90, bframes=3),
        "pyramid.mp4": lambda: files.write(path, 90, gop=30, bframes=3, options={"preset": "medium"}),
        "tiny_gop.mp4": lambda: files.write(path, 60, gop=2, bframes=3, options={"keyint_min": "1"}),
        "open.mp4": lambda: files.write(path, 90, gop=10, bframes=3, options={"x264-params": "open-gop=1"}),
        "open.ts": lambda: files.write(path, 90, gop=10, bframes=3, options={"x264-params": "open-gop=1"}),
        "refresh.mp4": lambda: files.write(path, 60, gop=10, options={"intra-refresh": "1"}),
        "edit.mp4": lambda: files.shift_edit(files.write(path, 60, bframes=3), 0),
        "hevc.mp4": lambda: files.write(
            path,
            60,
            codec="libx265",
            options={"preset": "ultrafast", "x265-params": "log-level=none:keyint=12:bframes=3"},
        ),
        "vp9.webm": lambda: files.write(
            path, 60, codec="libvpx-vp9", options={"deadline": "realtime", "cpu-used": "8"}
        ),
        "mpeg4.mp4": lambda: files.write(path, 60, codec="mpeg4"),
        "frames.gif": lambda: files.write(path, 30, codec="gif", pix_fmt="rgb8"),
    }
    return makers[name]()


@pytest.mark.parametrize(
    "name",
    [
        "closed.mp4",
        "pyramid.mp4",
        "tiny_gop.mp4",
        "open.mp4",
        "open.ts",
        "refresh.mp4",
        "edit.mp4",
        "hevc.mp4",
        "vp9.webm",
        "mpeg4.mp4",
        "frames.gif",
    ],
)
def test_every_strategy_reads_the_wanted_frames_with_equal_pixels(name: str, tmp_path: Path) -> None:
    video = open_video(written(name, tmp_path))
    rng = np.random.default_rng(3)
    n_seeks = 0
    for size in (1, 2, 5, 12):
        wanted = np.sort(rng.choice(video.n_frames, size, replace=False))
        grid = sample_indices(video, wanted)
        clips = {s: read_clip_report(video, grid, strategy=s) for s in STRATEGIES}
        for clip, report in clips.values():
            assert files.numbers(clip.pixels) == wanted.tolist()
            assert (report.n_wanted, report.n_missing, report.damaged_index) == (size, 0, ())
            np.testing.assert_array_equal(clip.pixels, clips["sequential"][0].pixels)
        assert clips["sequential"][1].n_seeks == 0
        n_seeks += clips["seek"][1].n_seeks
    if name == "frames.gif":
        assert n_seeks == 0, "there is one keyframe only"
    elif name != "refresh.mp4":  # a gradual refresh is only sometimes complete before the wanted frame
        assert n_seeks > 0


def test_a_resized_picture_averages_what_it_covers(tmp_path: Path) -> None:
    from PIL import Image

    rng = np.random.default_rng(0)
    noise = rng.integers(60, 200, (1, 96, 128, 1), dtype=np.uint8).repeat(2, axis=0).repeat(3, axis=3)
    video = open_video(encode_bytes(noise, 10, crf=0))
    grid = sample_uniform(video, 1)
    full = read_clip(video, grid).pixels[0]
    for size in ((32, 24), (64, 48), (200, 150), (33, 71)):
        ours = read_clip(video, grid, size).pixels[0].astype(float)
        assert ours.shape == (size[1], size[0], 3)
        theirs = np.asarray(Image.fromarray(full).resize(size, Image.Resampling.BICUBIC)).astype(float)
        assert np.abs(ours.mean(axis=2) - theirs.mean(axis=2)).mean() < 4
    picked = full[2::4, 2::4].astype(float)  # what taking single pixels would give
    small = read_clip(video, grid, (32, 24)).pixels[0].astype(float)
    assert small.std() < 0.6 * picked.std()


def test_colours_survive(tmp_path: Path) -> None:
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (120, 200, 40)]
    frames = np.stack([np.full((64, 64, 3), c, np.uint8) for c in colours])
    video = open_video(encode_bytes(frames, 5, crf=10))
    pixels = read_clip(video, sample_uniform(video, 6)).pixels
    assert np.abs(pixels.astype(int) - frames).max() <= 6


@pytest.mark.parametrize("size", [(0, 5), (5,), (5.0, 5), (True, 5), (20000, 5)])
def test_sizes_that_make_no_sense(size: Any, tmp_path: Path) -> None:
    video = open_video(files.write(tmp_path / "a.mp4", 2))
    with pytest.raises(VideoError, match=r"a size is \(width, height\)"):
        read_clip(video, sample_uniform(video, 1), size)


def test_a_grid_of_another_video_is_refused(tmp_path: Path) -> None:
    one = open_video(files.write(tmp_path / "a.mp4", 20))
    for other in (
        files.write(tmp_path / "b.mp4", 20, fps=30),
        files.write(tmp_path / "c.mp4", 40),
        files.write(tmp_path / "d.mp4", 20, size=(64, 64)),
    ):
        grid = sample_uniform(open_video(other), 40)
        with pytest.raises(VideoError, match=r"was not made from a\.mp4"):
            read_clip(one, grid)


def test_options_with_other_words(tmp_path: Path) -> None:
    video = open_video(files.write(tmp_path / "a.mp4", 2))
    with pytest.raises(VideoError, match="a strategy is"):
        read_clip(video, sample_uniform(video, 1), strategy="fast")  # type: ignore[arg-type]
    with pytest.raises(VideoError, match="a decoder is"):
        read_clip(video, sample_uniform(video, 1), decoder="opencv")  # type: ignore[arg-type]


def test_iter_frames_gives_all_in_order(tmp_path: Path) -> None:
    for name in ("closed.mp4", "open.ts", "refresh.mp4", "edit.mp4"):
        video = open_video(written(name, tmp_path))
        seen = [(index, time_s, files.number(rgb)) for index, time_s, rgb in iter_frames(video, (64, 48))]
        assert [index for index, _, _ in seen] == [shown for _, _, shown in seen]
        assert [index for index, _, _ in seen] == list(range(video.n_frames))
        np.testing.assert_array_equal([time_s for _, time_s, _ in seen], video.times_s)


def test_iter_frames_of_a_window(tmp_path: Path) -> None:
    for name in ("closed.mp4", "open.mp4", "refresh.mp4"):
        video = open_video(written(name, tmp_path))
        seen = [(k, files.number(rgb)) for k, _, rgb in iter_frames(video, window=Span(1.6, 1.8))]
        assert seen == [(40, 40), (41, 41), (42, 42), (43, 43), (44, 44)]
    with pytest.raises(VideoError, match="after the end"):
        iter_frames(video, window=Span(99, 100))


def test_iter_frames_can_be_left_early(tmp_path: Path) -> None:
    video = open_video(written("closed.mp4", tmp_path))
    frames = iter_frames(video)
    assert next(frames)[0] == 0
    frames.close()  # type: ignore[attr-defined]
    assert next(frames, None) is None


# --- plans --------------------------------------------------------------------------------


def brute_force(keyframes: list[int], wanted: list[int], seek_cost: float) -> float:
    """The cheapest way over all ways to choose, for each wanted frame, to go on or to jump."""
    best = {-1: 0.0}
    for frame in wanted:
        here = [k for k in keyframes if k <= frame]
        cost = min(c + frame - p for p, c in best.items())
        if here:
            cost = min(cost, min(best.values()) + seek_cost + frame - here[-1] + 1)
        best = {frame: cost}
    return best[wanted[-1]]


@given(
    st.sets(st.integers(0, 400), max_size=30),
    st.sets(st.integers(0, 400), min_size=1, max_size=30),
    st.sampled_from([0.0, 3.0, SEEK_COST_FRAMES, 50.0]),
)
def test_plans_cover_every_row_and_cost_the_least(keys: set[int], frames: set[int], seek_cost: float) -> None:
    keyframes, wanted = np.array(sorted(keys), dtype=np.int64), np.array(sorted(frames))
    for strategy in STRATEGIES:
        runs = plan_runs(keyframes, wanted, strategy=strategy, seek_cost=seek_cost)
        assert [row for run in runs for row in range(run.first_row, run.stop_row)] == list(range(len(wanted)))
        for run in runs:
            assert run.start is None or (run.start in keys and run.start <= wanted[run.first_row])
        assert [run.start for run in runs[1:]].count(None) == 0
    cost = plan_cost(plan_runs(keyframes, wanted, seek_cost=seek_cost), wanted, seek_cost)
    assert cost == pytest.approx(brute_force(sorted(keys), sorted(frames), seek_cost))
    assert len(plan_runs(keyframes, wanted, strategy="sequential")) == 1


def test_plans_by_number() -> None:
    keyframes = np.array([0, 100, 200])
    assert plan_runs(keyframes, np.array([5, 50, 205])) == [Run(None, 0, 2), Run(200, 2, 3)]
    assert plan_runs(keyframes, np.array([95, 101])) == [Run(None, 0, 2)]
    assert plan_runs(keyframes, np.array([150, 160, 250])) == [Run(100, 0, 2), Run(200, 2, 3)]
    assert plan_runs(np.array([0]), np.arange(0, 300, 10)) == [Run(None, 0, 30)]
    assert plan_cost([Run(None, 0, 2), Run(200, 2, 3)], np.array([5, 50, 205])) == 51 + 6 + SEEK_COST_FRAMES


# --- damage --------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_lost_frames_are_replaced_and_reported(codec: str, tmp_path: Path) -> None:
    path = files.write(tmp_path / "a.mp4", 60, codec=codec, gop=60)
    video = open_video(files.corrupt_frames(path, [30]))
    assert video.n_frames == 60
    for strategy in STRATEGIES:
        clip, report = read_clip_report(video, sample_indices(video, [10, 29, 30]), strategy=strategy)
        assert (report.n_wanted, report.n_missing, report.missing_index) == (3, 1, (30,))
        assert files.numbers(clip.pixels) == [10, 29, 29], "the nearest earlier picture stands in"
    assert read_clip_report(video, sample_indices(video, [10, 29]))[1].n_missing == 0
    assert 30 not in [index for index, _, _ in iter_frames(video)]


def test_a_lost_beginning_is_replaced_by_what_follows(tmp_path: Path) -> None:
    path = files.corrupt_frames(files.write(tmp_path / "a.mp4", 60, gop=12), [0])
    video = open_video(path)
    assert video.n_frames == 60, "times must not move because the beginning is damaged"
    clip, report = read_clip_report(video, sample_indices(video, [3, 12, 20, 30]))
    assert report.missing_index == (3,)
    assert files.numbers(clip.pixels) == [12, 12, 20, 30]


def test_a_lost_end(tmp_path: Path) -> None:
    video = open_video(files.corrupt_frames(files.write(tmp_path / "a.mp4", 60, codec="mpeg4"), [58, 59]))
    clip, report = read_clip_report(video, sample_indices(video, [20, 40, 57, 58, 59]))
    assert report.missing_index == (58, 59)
    assert files.numbers(clip.pixels) == [20, 40, 57, 57, 57]


def test_more_than_half_lost_is_an_error(tmp_path: Path) -> None:
    path = files.corrupt_frames(files.write(tmp_path / "a.mp4", 60, codec="mpeg4"), range(20, 60))
    video = open_video(path)
    with pytest.raises(VideoError, match=r"40 of the 60 wanted frames of .* cannot be decoded"):
        read_clip(video, sample_uniform(video, 60))
    assert read_clip_report(video, sample_indices(video, [5, 10, 30]))[1].n_missing == 1


def test_concealed_frames_are_reported(tmp_path: Path) -> None:
    path = files.corrupt_frames(files.write(tmp_path / "a.mp4", 40), [16], whole=False)
    video = open_video(path)
    clips = [read_clip_report(video, sample_uniform(video, 40), strategy=s) for s in STRATEGIES]
    for clip, report in clips:
        assert (report.n_missing, report.damaged_index) == (0, (16,))
        np.testing.assert_array_equal(clip.pixels, clips[0][0].pixels)


def flipped(data: bytes, seed: int, n: int = 200) -> bytes:
    """A file with `n` random bytes somewhere in the middle."""
    rng = np.random.default_rng(seed)
    at = int(len(data) * rng.uniform(0.2, 0.8))
    return data[:at] + rng.bytes(n) + data[at + n :]


@pytest.mark.parametrize("bframes", [0, 2])
def test_random_bytes_in_the_middle_are_told(tmp_path: Path, bframes: int) -> None:
    """Frames behind the damage, up to the next keyframe, refer to what is not there: wrong pictures are in the report.

    The clean frames (another group of pictures) are not.
    """
    size = (320, 240)
    path = files.write(
        tmp_path / "a.mp4", 60, gop=20, bframes=bframes, size=size, options={"preset": "medium"}
    )
    video = open_video(path)
    whole = read_clip(video, sample_uniform(video, 60)).pixels.astype(int)
    told_of = 0
    for seed in range(8):
        bad = tmp_path / f"{seed}.mp4"
        bad.write_bytes(flipped(path.read_bytes(), seed))
        try:
            opened = open_video(bad)
        except VideoError:
            continue  # the index of the file was hit: an error of its own
        clip, report = read_clip_report(opened, sample_indices(opened, range(60)))
        off = np.abs(clip.pixels - whole).mean(axis=(1, 2, 3))
        listed = {*report.missing_index, *report.damaged_index, *report.after_damage_index}
        if not listed:
            continue  # a valid, wrong picture: nobody can tell
        told_of += 1
        assert set(np.flatnonzero(off > 4).tolist()) <= listed, "a wrong picture that nobody tells of"
        assert len(listed) < 60 and report.notes
        # asked for one frame behind the damage only: its own packet is whole, and it is told all the same
        behind = [k for k in report.after_damage_index if off[k] > 4]
        if behind:
            alone = read_clip_report(opened, sample_indices(opened, [behind[-1]]))[1]
            assert alone.after_damage_index == (behind[-1],) and "may show its damage" in alone.notes[0]
    assert told_of >= 4


def test_what_a_report_says() -> None:
    assert DecodeReport(8).notes == ()
    said = DecodeReport(8, (1,), (2, 3), (4, 5, 6)).notes
    assert [note.split()[0] for note in said] == ["1", "2", "3"] and all(
        "of 8 frames" in note for note in said
    )


def test_a_file_that_vanishes(tmp_path: Path) -> None:
    video = open_video(files.write(tmp_path / "a.mp4", 5))
    grid = sample_uniform(video, 2)
    video.path.unlink()
    with pytest.raises(VideoError, match="cannot be read"):
        read_clip(video, grid)


# --- torchcodec --------------------------------------------------------------------------------


class FakeDecoder:
    """What tubelet uses of torchcodec's VideoDecoder, on top of PyAV."""

    shift = 0
    broken = ""

    def __init__(self, source: Any, dimension_order: str = "NCHW", stream_index: int = 0) -> None:
        if self.broken:
            raise RuntimeError(self.broken)
        import torch

        self._torch, self._order = torch, dimension_order
        self._video = open_video(source)

    def get_frame_at(self, index: int) -> Any:
        grid = sample_indices(self._video, [index])
        pixels = self._torch.from_numpy(read_clip(self._video, grid).pixels[0])
        at = float(grid.times_s[0]) + self._video.start_offset_s + self.shift
        return types.SimpleNamespace(
            data=pixels if self._order == "NHWC" else pixels.permute(2, 0, 1), pts_seconds=at
        )


@pytest.fixture
def fake_torchcodec(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FakeDecoder]]:
    module = types.ModuleType("torchcodec.decoders")
    decoder = type("VideoDecoder", (FakeDecoder,), {})
    module.VideoDecoder = decoder  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchcodec", types.ModuleType("torchcodec"))
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", module)
    torch_decoder.why_not.cache_clear()
    yield decoder
    torch_decoder.why_not.cache_clear()


def test_torchcodec_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    torch_decoder.why_not.cache_clear()
    video = open_video(files.write(tmp_path / "a.mp4", 5))
    with pytest.raises(VideoError, match=r"cannot be imported.*pip install torchcodec.*decoder='pyav'"):
        read_clip(video, sample_uniform(video, 2), decoder="torchcodec")
    torch_decoder.why_not.cache_clear()


def test_torchcodec_that_imports_but_cannot_decode(
    tmp_path: Path, fake_torchcodec: type[FakeDecoder]
) -> None:
    fake_torchcodec.broken = "Could not load libtorchcodec.\nLikely causes:\n..."
    video = open_video(files.write(tmp_path / "a.mp4", 5))
    with pytest.raises(VideoError, match=r"cannot decode a test video \(Could not load libtorchcodec\.\)"):
        read_clip(video, sample_uniform(video, 2), decoder="torchcodec")


def test_torchcodec_reads_the_same_frames(tmp_path: Path, fake_torchcodec: type[FakeDecoder]) -> None:
    video = open_video(files.write(tmp_path / "a.ts", 30, start=50, container="mpegts"))
    grid = sample_uniform(video, 7)
    clip, report = read_clip_report(video, grid, decoder="torchcodec")
    assert report.decoder == "torchcodec"
    np.testing.assert_array_equal(clip.pixels, read_clip(video, grid).pixels)
    small = read_clip(video, grid, (64, 48), decoder="torchcodec").pixels
    assert small.shape == (7, 48, 64, 3) and files.numbers(small) == files.numbers(clip.pixels)


def test_torchcodec_with_other_times_is_refused(tmp_path: Path, fake_torchcodec: type[FakeDecoder]) -> None:
    fake_torchcodec.shift = 1
    video = open_video(files.write(tmp_path / "a.mp4", 5))
    with pytest.raises(VideoError, match="the file says"):
        read_clip(video, sample_uniform(video, 2), decoder="torchcodec")
    sar = open_video(files.write(tmp_path / "b.mp4", 5, sar=Fraction(4, 3)))
    with pytest.raises(VideoError, match="non-square pixels"):
        read_clip(sar, sample_uniform(sar, 2), decoder="torchcodec")
    memory = open_video(video.path.read_bytes())
    with pytest.raises(VideoError, match="video files with timestamps"):
        read_clip(memory, sample_uniform(memory, 2), decoder="torchcodec")
