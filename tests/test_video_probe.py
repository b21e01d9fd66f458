"""`open_video`: the index equals what decoding displays, sizes are displayed sizes, and errors teach."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

import video_files as files
from tubelet.errors import VideoError
from tubelet.video import open_video, read_clip, sample_indices, sample_uniform
from tubelet.video.index import FrameIndex, from_decoding, stream_of
from tubelet.video.probe import Video, average_rate

NTSC = Fraction(30000, 1001)
UNEVEN = [0, 1, 5, 6, 7, 20, 22, 23, 40, 41, 43, 50]

# name -> how to write it; every one has true timestamps, so libav's own decoding says what is displayed
KINDS: dict[str, Callable[[Path], Path]] = {
    "constant.mp4": lambda p: files.write(p),
    "b_frames.mp4": lambda p: files.write(p, bframes=3, options={"preset": "veryfast"}, audio=True),
    "ntsc.mp4": lambda p: files.write(p, fps=NTSC, bframes=2),
    "ntsc.mkv": lambda p: files.write(p, fps=NTSC, bframes=3),
    "variable.mp4": lambda p: files.write(p, 12, ticks=UNEVEN, time_base=Fraction(1, 50)),
    "variable_b.mkv": lambda p: files.write(p, 12, ticks=UNEVEN, time_base=Fraction(1, 50), bframes=2),
    "gop250.mp4": lambda p: files.write(p, 300, gop=250),
    "one_frame.mp4": lambda p: files.write(p, 1),
    "two_frames.mp4": lambda p: files.write(p, 2),
    "late.ts": lambda p: files.write(p, bframes=3, start=100, container="mpegts"),
    "late.mp4": lambda p: files.write(p, start=50),
    "program.mpg": lambda p: files.write(p, codec="mpeg2video"),
    "edit_list.mp4": lambda p: files.shift_edit(files.write(p, 40, bframes=3), 7),
    "open_gop.ts": lambda p: files.write(p, 60, gop=10, bframes=3, options={"x264-params": "open-gop=1"}),
    "odd.mkv": lambda p: files.write(p, 5, codec="ffv1", size=(101, 77)),
    "motion.avi": lambda p: files.write(p, codec="mjpeg", pix_fmt="yuvj420p"),
    "loop.gif": lambda p: files.write(
        p, 12, codec="gif", pix_fmt="rgb8", ticks=[2 * t for t in UNEVEN], time_base=Fraction(1, 100)
    ),
    "hidden.webm": lambda p: files.write(
        p, 60, codec="libvpx", options={"auto-alt-ref": "1", "lag-in-frames": "16", "cpu-used": "5"}
    ),
    "vp9.webm": lambda p: files.write(
        p, 40, codec="libvpx-vp9", options={"deadline": "realtime", "cpu-used": "8"}
    ),
}


@pytest.mark.parametrize("name", KINDS)
def test_index_is_what_decoding_displays(name: str, tmp_path: Path) -> None:
    path = KINDS[name](tmp_path / name)
    video = open_video(path)
    times, shown = files.displayed(path)
    assert video.n_frames == len(video) == len(times)
    np.testing.assert_allclose(video.times_s, times, atol=1e-9)
    assert files.numbers(read_clip(video, sample_uniform(video, 1000)).pixels) == shown
    assert video.duration_s > video.times_s[-1]
    assert not video.times_s.flags.writeable


def test_the_packet_index_equals_a_decoding_pass(tmp_path: Path) -> None:
    for name in ("b_frames.mp4", "edit_list.mp4", "open_gop.ts", "variable_b.mkv"):
        path = KINDS[name](tmp_path / name)
        video = open_video(path)
        assert video.seekable
        with av.open(str(path)) as media:
            decoded: FrameIndex = from_decoding(media, stream_of(media, video.stream_index))
        np.testing.assert_array_equal(video.pts, decoded.pts)


def test_edit_list_drops_the_frames_before_its_cut(tmp_path: Path) -> None:
    video = open_video(KINDS["edit_list.mp4"](tmp_path / "e.mp4"))
    assert (video.n_frames, video.times_s[0], video.duration_s) == (33, 0.0, pytest.approx(33 / 25))
    assert files.numbers(read_clip(video, sample_indices(video, [0, 32])).pixels) == [7, 39]
    assert not video.keyframes[0], "the first displayed frame needs the frames before the cut"


@pytest.mark.parametrize("suffix", [".avi", ".h264"])
def test_without_timestamps_frames_are_counted(suffix: str, tmp_path: Path) -> None:
    path = files.write(
        tmp_path / f"raw{suffix}", 30, bframes=2, container=None if suffix == ".avi" else "h264"
    )
    video = open_video(path)
    assert video.counted and not video.seekable
    assert (video.n_frames, video.fps, video.duration_s) == (30, 25, pytest.approx(1.2))
    np.testing.assert_allclose(video.times_s, np.arange(30) / 25)
    assert files.numbers(read_clip(video, sample_indices(video, [0, 11, 29])).pixels) == [0, 11, 29]


@pytest.mark.parametrize(
    ("name", "fps", "constant", "duration_s"),
    [
        ("constant.mp4", Fraction(25), True, 1.2),
        ("ntsc.mp4", NTSC, True, 30 * 1001 / 30000),
        ("ntsc.mkv", NTSC, True, 1.001),  # this container counts milliseconds
        ("variable.mp4", Fraction(12) / Fraction(52, 50), False, 1.04),  # the last frame lasts 1/25 s
        ("one_frame.mp4", Fraction(25), True, 0.04),
        ("late.ts", Fraction(25), True, 1.2),
    ],
)
def test_rate_and_duration(
    name: str, fps: Fraction, constant: bool, duration_s: float, tmp_path: Path
) -> None:
    video = open_video(KINDS[name](tmp_path / name))
    assert (video.fps, video.constant_rate) == (fps, constant)
    assert video.duration_s == pytest.approx(duration_s, abs=2e-3)


def test_average_rate_does_not_take_a_drifting_announcement() -> None:
    ticks = np.arange(1000, dtype=np.int64) * 1001  # 30000/1001 on a clock of 30000
    assert average_rate(ticks, 1001, Fraction(1, 30000), [Fraction(30), NTSC]) == (NTSC, True)
    assert average_rate(ticks, 1001, Fraction(1, 30000), [None]) == (NTSC, True)
    ticks[500:] += 15000
    rate, constant = average_rate(ticks, 1001, Fraction(1, 30000), [NTSC])
    assert not constant and float(rate) == pytest.approx(1000 / (1000 * 1001 / 30000 + 0.5))


def test_start_offset(tmp_path: Path) -> None:
    assert open_video(KINDS["late.ts"](tmp_path / "a.ts")).start_offset_s == pytest.approx(4.0)
    assert open_video(KINDS["constant.mp4"](tmp_path / "b.mp4")).start_offset_s == 0.0


@pytest.mark.parametrize("matrix", files.MATRICES)
def test_rotation_and_mirroring(matrix: str, tmp_path: Path) -> None:
    stored = files.STORED_AS[matrix](files.board(0))
    path = tmp_path / "turned.mp4"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=25, options={"crf": "10", "preset": "ultrafast"})
        stream.height, stream.width = stored.shape[:2]
        stream.pix_fmt = "yuv420p"
        for k in range(3):
            picture = np.ascontiguousarray(files.STORED_AS[matrix](files.board(k)))
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode(None))
    video = open_video(files.set_matrix(path, matrix))
    assert (video.width, video.height) == (files.CODED_WIDTH, files.CODED_HEIGHT)
    assert video.rotation_deg == {"90 clockwise": 90, "180": 180, "270 clockwise": 270}.get(
        matrix, video.rotation_deg
    )
    assert video.mirrored == (matrix in ("mirrored", "upside down", "transposed", "transversed"))
    grid = sample_uniform(video, 3)
    assert files.numbers(read_clip(video, grid).pixels) == [0, 1, 2]
    small = read_clip(video, grid, size=(64, 40)).pixels
    assert small.shape == (3, 40, 64, 3) and files.numbers(small) == [0, 1, 2]


@pytest.mark.parametrize(("sar", "width"), [(Fraction(4, 3), 171), (Fraction(1, 2), 64), (Fraction(1), 128)])
def test_non_square_pixels(sar: Fraction, width: int, tmp_path: Path) -> None:
    video = open_video(files.write(tmp_path / "sar.mp4", 3, sar=sar))
    assert (video.width, video.height, video.sample_aspect_ratio) == (width, 96, sar)
    pixels = read_clip(video, sample_uniform(video, 3)).pixels
    assert pixels.shape == (3, 96, width, 3) and files.numbers(pixels) == [0, 1, 2]


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".webp"])
def test_still_images(suffix: str, tmp_path: Path) -> None:
    from PIL import Image

    # a name that libav would take for a pattern of numbered files
    path = tmp_path / f"shot[1]_%03d{suffix}"
    Image.fromarray(files.board(1234)).save(path)
    video = open_video(path)
    assert video.is_image and (video.n_frames, video.duration_s) == (1, 0.04)
    assert (video.width, video.height) == (128, 96)
    assert files.numbers(read_clip(video, sample_uniform(video, 8)).pixels) == [1234]


EXIF = ["0", "mirrored", "180", "upside down", "transposed", "90 clockwise", "transversed", "270 clockwise"]


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_exif_orientation_of_a_photo(suffix: str, tmp_path: Path) -> None:
    from PIL import Image

    for code, matrix in enumerate(EXIF, start=1):
        exif = Image.Exif()
        exif[0x0112] = code
        path = tmp_path / f"phone{code}{suffix}"
        stored = np.ascontiguousarray(files.STORED_AS[matrix](files.board(77)))
        Image.fromarray(stored).save(path, exif=exif)
        for video in (open_video(path), open_video(path.read_bytes())):
            assert (video.width, video.height) == (128, 96)
            assert files.numbers(read_clip(video, sample_uniform(video, 1)).pixels) == [77]


def test_from_memory(tmp_path: Path) -> None:
    path = files.write(tmp_path / "a.mp4", bframes=3)
    wanted = open_video(path)
    with path.open("rb") as stream:
        for video in (open_video(path.read_bytes()), open_video(stream)):
            np.testing.assert_array_equal(video.times_s, wanted.times_s)
            assert video.byte_size == wanted.byte_size
            assert files.numbers(read_clip(video, sample_indices(video, [3, 21])).pixels) == [3, 21]


def test_names_that_look_like_protocols(tmp_path: Path) -> None:
    assert open_video(files.write(tmp_path / "a.mp4").rename(tmp_path / "http:x %d.mp4")).n_frames == 30


def test_to_dict_is_short_json(tmp_path: Path) -> None:
    for name, rate in (("gop250.mp4", "constant"), ("variable.mp4", "variable")):
        info = open_video(KINDS[name](tmp_path / name)).to_dict()
        text = json.dumps(info)
        assert len(text) < 1000 and info["frame_rate"] == rate
    assert info["n_frames"] == 12 and info["n_keyframes"] == 1


def test_audio_is_noticed(tmp_path: Path) -> None:
    assert open_video(KINDS["b_frames.mp4"](tmp_path / "a.mp4")).has_audio
    assert not open_video(KINDS["constant.mp4"](tmp_path / "b.mp4")).has_audio


def test_a_stream_that_begins_in_the_middle_of_a_group(tmp_path: Path) -> None:
    whole = files.write(tmp_path / "whole.ts", 60, gop=12, bframes=2, container="mpegts")
    cut = tmp_path / "cut.ts"
    with av.open(str(whole)) as media, av.open(str(cut), "w", format="mpegts") as out:
        stream = out.add_stream_from_template(media.streams.video[0])
        for k, packet in enumerate(media.demux(video=0)):
            if k >= 5 and packet.size:
                packet.stream = stream
                out.mux(packet)
    video = open_video(cut)
    times, shown = files.displayed(cut)
    assert shown[0] == 12 and video.n_frames == len(shown)
    np.testing.assert_allclose(video.times_s, times, atol=1e-9)


def test_a_truncated_file_with_its_index_says_so(tmp_path: Path) -> None:
    """Its header is whole and announces more than the file holds: no answer on a part of the video."""
    path = files.write(tmp_path / "a.mp4", 60, container_options={"movflags": "+faststart"})
    with pytest.raises(VideoError, match=r"a.mp4 is cut off: its header announces 2.4 s, only \d"):
        open_video(files.cut_off(path, 0.6))


def test_a_file_that_lacks_its_last_frames_gives_what_is_there(tmp_path: Path) -> None:
    path = files.write(tmp_path / "a.mp4", 60, container_options={"movflags": "+faststart"})
    video = open_video(files.cut_off(path, 0.95))
    assert 50 < video.n_frames < 60
    shown = files.numbers(read_clip(video, sample_indices(video, range(video.n_frames - 2))).pixels)
    assert shown == list(range(video.n_frames - 2))


def _no_codec(path: Path) -> Path:
    files.write(path, 3, codec="ffv1")
    data = path.read_bytes()
    assert b"FFV1" in data
    path.write_bytes(data.replace(b"FFV1", b"ZZZZ"))
    return path


def _empty_track(path: Path) -> Path:
    files.write(path, 3, codec="mjpeg", pix_fmt="yuvj420p")
    return files.corrupt_frames(path, [0, 1, 2])


def _no_track(path: Path) -> Path:
    """An mp4 whose recording was stopped before its first picture."""
    with av.open(str(path), "w") as out:
        out.add_stream("libx264", rate=25)
        out.start_encoding()
    return path


def _write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


BROKEN: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing": (lambda d: d / "none.mp4", "no video at .*check the name"),
    "missing folder": (lambda d: d / "no" / "none.mp4", "folder .* does not exist either"),
    "folder": (lambda d: d, "is a folder, not a video"),
    "nul in the name": (lambda d: Path("a\0b.mp4"), "cannot be looked up|no video at"),
    "name too long": (lambda d: d / ("x" * 5000), "cannot be looked up|no video at"),
    "empty": (lambda d: _write(d / "a.mp4", b""), "is empty"),
    "text": (lambda d: _write(d / "a.mp4", b"not a video\n" * 99), "holds text .*'not a video"),
    "web page": (lambda d: _write(d / "a.mp4", b"<!DOCTYPE html><html>" + b" " * 900), "holds a web page"),
    "git-lfs": (lambda d: _write(d / "a.mp4", b"version https://git-lfs.github.com/spec/v1\n"), "git-lfs"),
    "playlist": (lambda d: _write(d / "a.m3u8", b"#EXTM3U\n#EXT-X-VERSION:3\n"), "holds text"),
    "noise": (
        lambda d: _write(d / "a.mp4", np.random.default_rng(1).bytes(9000)),
        "cannot be read as a video|holds no video|no frame of it",
    ),
    "moov missing": (lambda d: files.cut_off(files.write(d / "a.mp4"), 0.5), "cut off before its index"),
    "sound": (lambda d: files.audio_only(d / "a.wav"), "sound but no video"),
    "sound in mp4": (lambda d: files.audio_only(d / "a.m4a"), "sound but no video"),
    "codec": (lambda d: _no_codec(d / "a.mkv"), "codec .* cannot decode: convert it"),
    "no track": (lambda d: _no_track(d / "a.mp4"), "no video stream: it is empty"),
    "no frame": (lambda d: _empty_track(d / "a.mp4"), "no frame of it can be decoded"),
    "text art": (
        lambda d: _write(d / "a.ans", b"\x1b[31mhello\x1b[0m" * 50),
        "list or text|holds text|cannot",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_video_is_one_sentence(name: str, tmp_path: Path) -> None:
    make, message = BROKEN[name]
    path = make(tmp_path)
    with pytest.raises(VideoError, match=message) as caught:
        open_video(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_damage_anywhere_is_a_video_or_a_video_error(tmp_path: Path) -> None:
    originals = [
        files.write(tmp_path / "a.mp4", 12, bframes=2, audio=True).read_bytes(),
        files.write(tmp_path / "a.mkv", 12, bframes=2).read_bytes(),
        files.write(tmp_path / "a.ts", 12, container="mpegts").read_bytes(),
        files.write(tmp_path / "a.avi", 12, codec="mpeg4").read_bytes(),
        files.write(tmp_path / "a.gif", 6, codec="gif", pix_fmt="rgb8").read_bytes(),
    ]
    rng = np.random.default_rng(5)
    opened = refused = 0
    for k in range(100):
        data = bytearray(originals[k % len(originals)])
        for _ in range(rng.integers(1, 20)):
            data[rng.integers(len(data) if k % 3 else 1200)] = rng.integers(256)
        try:
            video = open_video(bytes(data[: rng.integers(len(data) // 2, len(data) + 1)]))
            read_clip(video, sample_uniform(video, 4), (32, 24))
        except VideoError as error:
            refused += 1
            assert "\n" not in str(error)
        else:
            opened += 1
    assert opened > 10 and refused > 10


def test_no_sources() -> None:
    with pytest.raises(VideoError, match="0 bytes"):
        open_video(b"")
    with pytest.raises(VideoError, match="path, bytes or a binary stream"):
        open_video(3)  # type: ignore[arg-type]


def test_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = files.write(tmp_path / "a.mp4", 2)
    path.chmod(stat.S_IWUSR)
    if os.access(path, os.R_OK):  # a superuser may read everything
        monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(VideoError, match="may not be read"):
        open_video(path)


def test_libav_does_not_write_to_stderr(tmp_path: Path) -> None:
    broken = files.corrupt_frames(files.write(tmp_path / "a.mp4", bframes=3), range(5, 15))
    lost = files.cut_off(files.write(tmp_path / "b.mp4"), 0.5)
    code = (
        "import sys\n"
        "from tubelet.video import *\n"
        "from tubelet.errors import VideoError\n"
        "video = open_video(sys.argv[1])\n"
        "read_clip(video, sample_uniform(video, 9))\n"
        "try:\n    open_video(sys.argv[2])\nexcept VideoError: print('refused')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(broken), str(lost)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "refused", "")


def test_importing_is_light() -> None:
    code = "import sys, tubelet.video; print([m for m in ('av', 'torch', 'PIL') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def _real_clips() -> list[dict[str, object]]:
    index = Path(__file__).resolve().parents[1] / ".." / "shared" / "media" / "index.json"
    if not index.exists():
        return []
    items = json.loads(index.read_text())["items"]
    found = {i["file"]: i["media"] | {"path": index.parent / i["file"]} for i in items if i.get("media")}
    return [media for media in found.values() if "frames_decoded" in media]


@pytest.mark.skipif(not _real_clips(), reason="the shared media are not here")
def test_real_clips_have_the_frames_that_were_counted() -> None:
    for media in _real_clips():
        video: Video = open_video(media["path"])  # type: ignore[arg-type]
        assert video.n_frames == media["frames_decoded"], media["path"]
        assert float(video.fps) == pytest.approx(media["fps"], rel=1e-3)
        assert video.duration_s == pytest.approx(media["duration_s"], abs=0.05)
