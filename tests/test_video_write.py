"""Writing: what is written is read back, a browser can play it, and a failure leaves nothing behind."""

from __future__ import annotations

import errno
import struct
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

import video_files as files
from tubelet.errors import OutputError
from tubelet.video import (
    VideoWriter,
    encode_bytes,
    open_video,
    read_clip,
    roundtrip,
    sample_uniform,
    write_video,
)
from tubelet.video import write as write_module


def boards(count: int, width: int = 128, height: int = 96) -> Iterator[np.ndarray]:
    return (files.board(k, width, height) for k in range(count))


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def top_boxes(data: bytes) -> list[bytes]:
    names, at = [], 0
    while at < len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        names.append(name)
        at += length
    return names


@pytest.mark.parametrize("fps", [25, Fraction(30000, 1001), 29.97, 0.5, 7.5])
def test_written_is_read_back(fps: float | Fraction, tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", boards(12), fps)
    video = open_video(path)
    assert (video.n_frames, video.width, video.height) == (12, 128, 96)
    assert video.fps == (fps if isinstance(fps, Fraction) else Fraction(str(fps)))
    assert video.constant_rate and video.start_offset_s == 0
    assert video.duration_s == pytest.approx(12 / float(fps), abs=1e-3)
    assert files.numbers(read_clip(video, sample_uniform(video, 12)).pixels) == list(range(12))
    assert left_in(tmp_path) == ["a.mp4"]


def test_a_browser_plays_it_while_it_loads(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", boards(30), 25)
    names = top_boxes(path.read_bytes())
    assert names[0] == b"ftyp" and names.index(b"moov") < names.index(b"mdat")
    with av.open(str(path)) as media:
        context = media.streams.video[0].codec_context
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
        assert (context.colorspace, context.color_primaries, context.color_trc) == (1, 1, 1)


def test_variable_rate(tmp_path: Path) -> None:
    times = [0.0, 0.04, 0.5, 0.52, 2.0]
    with VideoWriter(tmp_path / "a.mp4", 128, 96, 25) as out:
        for time_s, rgb in zip(times, boards(5), strict=True):
            out.write(rgb, time_s)
    video = open_video(tmp_path / "a.mp4")
    np.testing.assert_allclose(video.times_s, times, atol=1 / 90000)
    assert not video.constant_rate and video.duration_s == pytest.approx(2.04, abs=1e-3)
    assert files.numbers(read_clip(video, sample_uniform(video, 5)).pixels) == list(range(5))


@pytest.mark.parametrize("size", [(65, 49), (64, 49), (65, 48), (1, 1)])
def test_odd_sizes_are_padded_with_their_border(size: tuple[int, int], tmp_path: Path) -> None:
    width, height = size
    picture = np.full((height, width, 3), 30, np.uint8)
    picture[-1], picture[:, -1] = 220, 220
    path = write_video(tmp_path / "a.mp4", [picture] * 3, 10, quality=5)
    video = open_video(path)
    assert (video.width, video.height) == (width + width % 2, height + height % 2)
    got = read_clip(video, sample_uniform(video, 1)).pixels[0]
    assert got[-1].min() > 200 and got[:, -1].min() > 200


@pytest.mark.parametrize("suffix", [".mp4", ".m4v", ".mov", ".mkv"])
def test_containers_and_the_codec_for_builds_without_x264(suffix: str, tmp_path: Path) -> None:
    for codec, named in (("auto", "libx264"), ("mpeg4", "mpeg4")):
        with VideoWriter(tmp_path / f"a{suffix}", 128, 96, 25, codec=codec) as out:
            for rgb in boards(9):
                out.write(rgb)
        assert (out.codec, out.n_frames) in (("", 0), (named, 9))
        video = open_video(tmp_path / f"a{suffix}")
        assert video.codec == ("h264" if codec == "auto" else "mpeg4")
        assert files.numbers(read_clip(video, sample_uniform(video, 9)).pixels) == list(range(9))


def test_auto_falls_back_to_mpeg4(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = av.Codec

    def codec(name: str, mode: str = "r") -> Any:
        if name == "libx264":
            raise ValueError("unknown codec")
        return real(name, mode)

    monkeypatch.setattr(av, "Codec", codec)
    assert open_video(write_video(tmp_path / "a.mp4", boards(3), 25)).codec == "mpeg4"


def test_quality_is_a_trade(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 255, (5, 96, 128, 3), dtype=np.uint8)
    sizes = [len(encode_bytes(frames, 25, crf=crf)) for crf in (5, 25, 45)]
    assert sizes[0] > sizes[1] > sizes[2]


def test_roundtrip_keeps_shape_and_looks() -> None:
    frames = np.stack(list(boards(20, 101, 77)))
    again = roundtrip(frames, 10, crf=20)
    assert again.shape == frames.shape and again.dtype == np.uint8
    assert files.numbers(again) == list(range(20))
    assert 0 < np.abs(again.astype(int) - frames).mean() < 3
    assert (
        np.abs(roundtrip(frames, 10, crf=45).astype(int) - frames).mean()
        > np.abs(again.astype(int) - frames).mean()
    )


def test_encode_bytes_is_a_video() -> None:
    video = open_video(encode_bytes(boards(15), Fraction(24000, 1001)))
    assert (video.n_frames, video.fps) == (15, Fraction(24000, 1001))


@pytest.mark.parametrize("stop", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_the_old_file_and_nothing_else(stop: type[BaseException], tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"old")
    with pytest.raises(stop), VideoWriter(path, 128, 96, 25) as out:
        for rgb in boards(30):
            out.write(rgb)
        assert len(left_in(tmp_path)) == 2
        raise stop
    assert left_in(tmp_path) == ["a.mp4"] and path.read_bytes() == b"old"

    def frames() -> Iterator[np.ndarray]:
        yield from boards(30)
        raise stop

    with pytest.raises(stop):
        write_video(path, frames(), 25)
    assert left_in(tmp_path) == ["a.mp4"] and path.read_bytes() == b"old"


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise av.error.OSError(errno.ENOSPC, "No space left on device")

    with VideoWriter(tmp_path / "a.mp4", 128, 96, 25) as out:
        monkeypatch.setattr(write_module._Encoder, "_mux", full)
        with pytest.raises(OutputError, match="the disk is full"):
            out.write(files.board(0))
        assert left_in(tmp_path) == []
        with pytest.raises(OutputError, match="is closed"):
            out.write(files.board(1))
    assert left_in(tmp_path) == []


LIMITED = """
import resource, signal, sys
import numpy as np
from tubelet.errors import OutputError
from tubelet.video import VideoWriter
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
noise = np.random.default_rng(0)
try:
    with VideoWriter(sys.argv[1], 320, 240, 25) as out:
        for _ in range(40):
            out.write(noise.integers(0, 255, (240, 320, 3), dtype=np.uint8))
except OutputError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits of file size are a POSIX thing")
@pytest.mark.parametrize("limit", [1000, 100_000])
def test_the_system_refuses_to_write_on(limit: int, tmp_path: Path) -> None:
    command = [sys.executable, "-c", LIMITED, str(tmp_path / "a.mp4"), str(limit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "larger than this system or user allows" in done.stdout
    assert (done.returncode, done.stderr, left_in(tmp_path)) == (0, "", [])


def test_targets_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder.mp4").mkdir()
    for path, message in (
        (tmp_path / "folder.mp4", "is a folder"),
        (tmp_path / "no" / "a.mp4", "does not exist, make it first"),
        (tmp_path / "a.avi", "written as .mp4"),
        (tmp_path / "a", "written as .mp4"),
    ):
        with pytest.raises(OutputError, match=message):
            VideoWriter(path, 64, 48, 25)
    monkeypatch.setattr(write_module.os, "access", lambda *_: False)
    with pytest.raises(OutputError, match="not writable"):
        VideoWriter(tmp_path / "a.mp4", 64, 48, 25)
    assert left_in(tmp_path) == ["folder.mp4"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 0}, "1 to 16384 pixels"),
        ({"width": 2.5}, "1 to 16384 pixels"),
        ({"fps": 0}, "frame rate lies above 0"),
        ({"fps": float("nan")}, "frame rate is a number"),
        ({"fps": "fast"}, "frame rate is a number"),
        ({"quality": 99}, "quality is a constant rate factor"),
        ({"codec": "nothing"}, "no encoder 'nothing'"),
        ({"codec": "gif"}, "cannot write mp4"),
        ({"preset": "warp"}, "preset is one of"),
    ],
)
def test_arguments_that_make_no_sense(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=message):
        VideoWriter(tmp_path / "a.mp4", **({"width": 64, "height": 48, "fps": 25} | arguments))
    assert left_in(tmp_path) == []


def test_frames_that_make_no_sense(tmp_path: Path) -> None:
    for bad in (
        np.zeros((48, 64, 3), np.float32),
        np.zeros((64, 48, 3), np.uint8),
        np.zeros((48, 64), np.uint8),
        np.zeros((48, 64, 4), np.uint8),
    ):
        with (
            pytest.raises(OutputError, match=r"a frame is uint8 RGB \(48, 64, 3\), got"),
            VideoWriter(tmp_path / "a.mp4", 64, 48, 25) as out,
        ):
            out.write(bad)
    for times, message in (
        ([0.0, None], "for every frame or for none"),
        ([None, 1.0], "for every frame or for none"),
        ([0.5, 0.5], "must increase"),
        ([-1.0], ">= 0"),
        ([float("nan")], ">= 0"),
    ):
        with (
            pytest.raises(OutputError, match=message),
            VideoWriter(tmp_path / "a.mp4", 64, 48, 25) as out,
        ):
            for time_s in times:
                out.write(np.zeros((48, 64, 3), np.uint8), time_s)
    for nothing in (lambda: write_video(tmp_path / "a.mp4", [], 25), lambda: encode_bytes([], 25)):
        with pytest.raises(OutputError, match="no frames to"):
            nothing()
    with pytest.raises(OutputError, match="no frames were written"), VideoWriter(tmp_path / "a.mp4", 8, 8, 5):
        pass
    assert left_in(tmp_path) == []
