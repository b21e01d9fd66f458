"""Small videos whose every frame says which one it is.

Each frame shows its own number as a 4 x 4 board of black and white cells, so a test reads back which frame it
was given, whatever the codec, the size or the rotation did to the picture. The top-left cell is always white
and the bottom-right one black: a picture that was turned or mirrored the wrong way does not read as a number.
"""

from __future__ import annotations

import struct
import wave
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

BITS = 14
CODED_WIDTH, CODED_HEIGHT = 128, 96


def board(number: int, width: int = CODED_WIDTH, height: int = CODED_HEIGHT) -> np.ndarray:
    """(height, width, 3) uint8 picture that shows `number`."""
    if not 0 <= number < 2**BITS:
        raise ValueError(f"a board shows 0..{2**BITS - 1}, got {number}")
    cells = np.zeros(16, dtype=np.uint8)
    cells[0] = 1
    cells[1:15] = [(number >> k) & 1 for k in range(BITS)]
    rows = np.arange(height) * 4 // height
    columns = np.arange(width) * 4 // width
    grey = 40 + 175 * cells.reshape(4, 4)[rows][:, columns]
    return np.repeat(grey[:, :, None], 3, axis=2)


def number(picture: np.ndarray) -> int:
    """The number a board shows; AssertionError when it is no upright board."""
    height, width = picture.shape[:2]
    grey = picture.mean(axis=2)
    ys = ((np.arange(4) + 0.5) * height / 4).astype(int)
    xs = ((np.arange(4) + 0.5) * width / 4).astype(int)
    cells = (grey[np.ix_(ys, xs)] > 127).reshape(-1)
    assert cells[0] and not cells[15], "the picture is not an upright board"
    return int(sum(int(bit) << k for k, bit in enumerate(cells[1:15])))


def numbers(pictures: Iterable[np.ndarray]) -> list[int]:
    return [number(picture) for picture in pictures]


def write(
    path: Path,
    count: int = 30,
    *,
    fps: Fraction | int = 25,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    size: tuple[int, int] = (CODED_WIDTH, CODED_HEIGHT),
    gop: int = 12,
    bframes: int = 0,
    ticks: Sequence[int] | None = None,
    time_base: Fraction | None = None,
    container: str | None = None,
    sar: Fraction | None = None,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    start: int = 0,
    audio: bool = False,
    shown: Callable[[int], int] = lambda k: k,
    turn: Callable[[np.ndarray], np.ndarray] = lambda picture: picture,
) -> Path:
    """Write `count` boards. `ticks` are their times in `time_base`; without them frame k is at k / fps."""
    rate = Fraction(fps)
    base = time_base or 1 / rate
    opts = dict(options or {})
    if codec == "libx264":
        opts = {
            "preset": "ultrafast",
            "crf": "18",
            "bf": str(bframes),
            "sc_threshold": "0",
            "g": str(gop),
        } | opts
    with av.open(str(path), "w", format=container, container_options=container_options or {}) as out:
        stream: Any = out.add_stream(codec, rate=rate, options=opts)
        stream.width, stream.height, stream.pix_fmt = size[0], size[1], pix_fmt
        stream.codec_context.time_base = base
        if codec != "libx264":
            stream.codec_context.gop_size = gop
        if sar is not None:
            stream.codec_context.sample_aspect_ratio = sar
        sound: Any = out.add_stream("aac", rate=16000) if audio else None
        for k in range(count):
            picture = np.ascontiguousarray(turn(board(shown(k), *size)))
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pix_fmt)
            frame.pts = start + (k if ticks is None else ticks[k])
            frame.time_base = base
            for packet in stream.encode(frame):
                out.mux(packet)
        for packet in stream.encode(None):
            out.mux(packet)
        if sound is not None:
            _tone(out, sound, seconds=count / float(rate))
    return path


def _tone(out: Any, stream: Any, seconds: float) -> None:
    wave_form = (np.sin(np.arange(int(16000 * seconds)) * 0.1) * 8000).astype(np.int16)
    for begin in range(0, len(wave_form), 1024):
        chunk = wave_form[begin : begin + 1024][None]
        frame = av.AudioFrame.from_ndarray(chunk, format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 16000, begin, Fraction(1, 16000)
        for packet in stream.encode(frame):
            out.mux(packet)
    for packet in stream.encode(None):
        out.mux(packet)


def audio_only(path: Path) -> Path:
    """A .wav through the standard library, anything else (.m4a, ...) through libav."""
    if path.suffix == ".wav":
        with wave.open(str(path), "wb") as out:
            out.setnchannels(1)
            out.setsampwidth(2)
            out.setframerate(8000)
            out.writeframes(np.zeros(8000, np.int16).tobytes())
        return path
    with av.open(str(path), "w") as out:
        _tone(out, out.add_stream("aac", rate=16000), seconds=1.0)
    return path


# 3 x 3 display matrices of an mp4 track header: 16.16 fixed point, the last column 2.30
_UNIT, _W = 1 << 16, 1 << 30
MATRICES = {
    "0": (_UNIT, 0, 0, 0, _UNIT, 0, 0, 0, _W),
    "90 clockwise": (0, _UNIT, 0, -_UNIT, 0, 0, 0, 0, _W),
    "180": (-_UNIT, 0, 0, 0, -_UNIT, 0, 0, 0, _W),
    "270 clockwise": (0, -_UNIT, 0, _UNIT, 0, 0, 0, 0, _W),
    "mirrored": (-_UNIT, 0, 0, 0, _UNIT, 0, 0, 0, _W),
    "upside down": (_UNIT, 0, 0, 0, -_UNIT, 0, 0, 0, _W),
    "transposed": (0, _UNIT, 0, _UNIT, 0, 0, 0, 0, _W),
    "transversed": (0, -_UNIT, 0, -_UNIT, 0, 0, 0, 0, _W),
}
# what a camera that stores such a matrix recorded: the inverse of what a player will do to the picture
STORED_AS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "0": lambda p: p,
    "90 clockwise": lambda p: np.rot90(p, 1),
    "180": lambda p: np.rot90(p, 2),
    "270 clockwise": lambda p: np.rot90(p, -1),
    "mirrored": lambda p: p[:, ::-1],
    "upside down": lambda p: p[::-1],
    "transposed": lambda p: p.transpose(1, 0, 2),
    "transversed": lambda p: np.rot90(p, 2).transpose(1, 0, 2),
}


def set_matrix(path: Path, name: str) -> Path:
    """Write a display matrix into the track header of an mp4."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    struct.pack_into(">9i", data, at, *MATRICES[name])
    path.write_bytes(data)
    return path


def shift_edit(path: Path, frames: int, fps: int = 25) -> Path:
    """Make the edit list of an mp4 begin `frames` frames later: those before are decoded, never displayed."""
    data = bytearray(path.read_bytes())
    scale = struct.unpack_from(">I", data, data.index(b"mdhd") + 4 + 12)[0]
    at = data.index(b"elst") + 4
    version, entries = data[at], struct.unpack_from(">I", data, at + 4)[0]
    if version != 0 or entries != 1:
        raise ValueError(f"expected one short edit, got version {version} with {entries}")
    duration, media_time = struct.unpack_from(">Ii", data, at + 8)
    movie_scale = struct.unpack_from(">I", data, data.index(b"mvhd") + 4 + 12)[0]
    struct.pack_into(
        ">Ii", data, at + 8, duration - frames * movie_scale // fps, media_time + frames * scale // fps
    )
    path.write_bytes(data)
    return path


def cut_off(path: Path, keep: float) -> Path:
    """Keep only the first part of a file, as an interrupted download does."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    return path


def corrupt_frames(path: Path, frames: Sequence[int], whole: bool = True) -> Path:
    """Overwrite the packets of these frames (decode order) with noise, or only their second half."""
    spots = []
    with av.open(str(path)) as media:
        for k, packet in enumerate(media.demux(video=0)):
            if k in frames and packet.size and packet.pos is not None:
                spots.append((packet.pos, packet.size))
    data = bytearray(path.read_bytes())
    noise = np.random.default_rng(0)
    for at, size in spots:
        begin = 0 if whole else size // 2
        data[at + begin : at + size] = noise.integers(1, 255, size - begin, dtype=np.uint8).tobytes()
    path.write_bytes(data)
    return path


def displayed(path: Path) -> tuple[list[float], list[int]]:
    """(times relative to the first, numbers shown) of every frame that plain decoding gives."""
    times, shown = [], []
    with av.open(str(path)) as media:
        for frame in media.decode(video=0):
            times.append(float(frame.pts * frame.time_base))
            shown.append(number(frame.to_ndarray(format="rgb24")))
    return [t - times[0] for t in times], shown
