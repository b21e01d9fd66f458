"""Write videos: H.264 in mp4 that a browser plays while it loads, in constant memory, whole or not at all.

Contract
- Frames are uint8 RGB (H, W, 3). They are stored as yuv420p in BT.709, and tagged so.
- H.264 with 4:2:0 needs even sides: an odd side is padded by repeating its last row or column of pixels, so
  the file is one pixel larger there and nothing is lost.
- `VideoWriter` writes to a hidden file beside the target and renames it when the writer is closed without an
  error. After an error or an interrupt the hidden file is gone and an older target is as it was.
- Every failure to write is an `OutputError` of one sentence.
"""

from __future__ import annotations

import errno
import io
import os
import secrets
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from tubelet.errors import OutputError

Picture = npt.NDArray[np.uint8]

SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv")
PRESETS = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow")
_CLOCK = 90_000  # ticks per second of a file with given times
_BT709 = 1  # the code of BT.709 in H.273, for matrix, primaries and transfer
_LIMITED = 1  # libav's code of the 16-235 range


class VideoWriter:
    """Write frames one by one; a context manager.

        with VideoWriter("out.mp4", 640, 360, fps=25) as out:
            for rgb in frames:
                out.write(rgb)

    Args:
        path: .mp4 (also .m4v, .mov, .mkv). Its folder must exist.
        width, height: size of the frames given to `write`.
        fps: rate, a number or better a fraction (30000/1001). With times of your own, the nominal rate, which
            says how long the last frame is shown.
        quality: constant rate factor of H.264, 0 (lossless) to 51; 18 looks lossless, 23 is the usual choice.
        codec: "auto" takes libx264, or mpeg4 (which browsers do not play) where libav has no libx264. Any
            other encoder name of libav is taken as it is.
        preset: speed of libx264, "ultrafast" to "veryslow".
        gop: frames from one keyframe to the next at most, None for the encoder's own.

    Raises OutputError: folder missing or not writable, disk full, target is a folder, wrong or no frames.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        width: int,
        height: int,
        fps: Fraction | float,
        *,
        quality: int = 20,
        codec: str = "auto",
        preset: str = "veryfast",
        gop: int | None = None,
    ) -> None:
        self.path = Path(path)
        _check_target(self.path)
        self._part = self.path.with_name(f".tubelet-{secrets.token_hex(6)}.part")
        container = (
            "matroska"
            if self.path.suffix.lower() == ".mkv"
            else "mov"
            if self.path.suffix.lower() == ".mov"
            else "mp4"
        )
        self._encoder: _Encoder | None = None
        try:
            self._encoder = _Encoder(
                str(self._part),
                container,
                width,
                height,
                fps,
                quality,
                codec,
                preset,
                gop,
                {"movflags": "+faststart"},
            )
        except BaseException as error:
            self._discard()
            if isinstance(error, _failures()):
                raise _output_error(self.path, error) from error
            raise

    @property
    def n_frames(self) -> int:
        return self._encoder.count if self._encoder else 0

    @property
    def codec(self) -> str:
        """The encoder in use."""
        return self._encoder.codec if self._encoder else ""

    def write(self, rgb: Picture, time_s: float | None = None) -> None:
        """Add a frame, uint8 (height, width, 3). Times are given for all frames or for none, and increase."""
        if self._encoder is None:
            raise OutputError(f"{self.path} is closed: frames are written inside the `with` block")
        try:
            self._encoder.write(rgb, time_s)
        except _failures() as error:
            self._discard()
            raise _output_error(self.path, error) from error

    def close(self) -> None:
        """Finish the file and give it its name. Without frames nothing is written: OutputError."""
        if self._encoder is None:
            return
        try:
            self._encoder.finish()
            self._encoder = None
            self._part.replace(self.path)
        except _failures() as error:
            raise _output_error(self.path, error) from error
        finally:
            self._discard()

    def _discard(self) -> None:
        encoder, self._encoder = self._encoder, None
        if encoder is not None:
            encoder.abandon()
        self._part.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._discard()


def write_video(
    path: str | os.PathLike[str], frames: Iterable[Picture], fps: Fraction | float, **options: Any
) -> Path:
    """Write all frames of an iterable (uint8, one size) and return the path. Options as for `VideoWriter`."""
    writer: VideoWriter | None = None
    try:
        for rgb in frames:
            picture = np.asarray(rgb)
            if writer is None:
                _check_picture(picture, None)
                writer = VideoWriter(path, picture.shape[1], picture.shape[0], fps, **options)
            writer.write(picture)
        if writer is None:
            raise OutputError(f"{Path(path)} was not written: there are no frames to write")
        writer.close()
    except BaseException:
        if writer is not None:
            writer._discard()
        raise
    return Path(path)


def encode_bytes(
    frames: Iterable[Picture], fps: Fraction | float, *, crf: int = 20, preset: str = "veryfast"
) -> bytes:
    """An mp4 in memory, for `open_video`. Odd sides are padded as in `VideoWriter`. Raises OutputError."""
    target = io.BytesIO()
    encoder: _Encoder | None = None
    for rgb in frames:
        picture = np.asarray(rgb)
        if encoder is None:
            _check_picture(picture, None)
            height, width = picture.shape[:2]
            encoder = _Encoder(target, "mp4", width, height, fps, crf, "auto", preset, None, {})
        encoder.write(picture, None)
    if encoder is None:
        raise OutputError("there are no frames to encode")
    encoder.finish()
    return target.getvalue()


def roundtrip(
    frames: npt.NDArray[np.uint8], fps: Fraction | float, *, crf: int = 23
) -> npt.NDArray[np.uint8]:
    """(T, H, W, 3) uint8 frames as they look after H.264: the same shape, with the losses of that quality."""
    from tubelet.video.decode import iter_frames
    from tubelet.video.probe import open_video

    out = np.empty_like(frames)
    height, width = frames.shape[1:3]
    video = open_video(encode_bytes(frames, fps, crf=crf))
    if video.n_frames != len(frames):
        raise OutputError(f"encoding {len(frames)} frames gave {video.n_frames}: choose a rate below {fps}")
    for index, _, picture in iter_frames(video):
        out[index] = picture[:height, :width]
    return out


class _Encoder:
    """One video stream being written to a file name or a binary stream."""

    def __init__(
        self,
        target: str | io.BytesIO,
        container: str,
        width: int,
        height: int,
        fps: Fraction | float,
        quality: int,
        codec: str,
        preset: str,
        gop: int | None,
        container_options: dict[str, str],
    ) -> None:
        import av

        self._shape = _checked_shape(width, height)
        rate = _checked_rate(fps)
        if isinstance(quality, bool) or not isinstance(quality, int) or not 0 <= quality <= 51:
            raise OutputError(f"quality is a constant rate factor from 0 (lossless) to 51, got {quality!r}")
        if preset not in PRESETS:
            raise OutputError(f"preset is one of {', '.join(PRESETS)}, got {preset!r}")
        self.codec = _encoder_name(codec)
        self._rate, self.count, self._timed, self._last_tick = rate, 0, False, -1
        if isinstance(target, str):
            target = f"file:{target}"
        self._out = av.open(target, "w", format=container, container_options=container_options)
        try:
            stream: Any = self._out.add_stream(
                self.codec, rate=rate, options=_options(self.codec, quality, preset)
            )
            even_width, even_height = width + width % 2, height + height % 2
            stream.width, stream.height, stream.pix_fmt = even_width, even_height, "yuv420p"
            context = stream.codec_context
            context.colorspace = context.color_primaries = context.color_trc = _BT709
            context.color_range = _LIMITED
            if gop is not None:
                context.gop_size = gop
        except ValueError as error:
            self.abandon()
            raise OutputError(f"encoder {self.codec!r} cannot write {container}: {error}") from error
        self._stream = stream

    def write(self, rgb: Picture, time_s: float | None) -> None:
        import av

        picture = np.asarray(rgb)
        _check_picture(picture, self._shape)
        if self.count == 0:
            self._timed = time_s is not None
            base = Fraction(1, _CLOCK) if self._timed else 1 / self._rate
            self._stream.codec_context.time_base = base
            if self._timed:  # packets in the order of display, so that each span is that of its picture
                self._stream.codec_context.max_b_frames = 0
            self._base = base
        tick = self._tick(time_s)
        height, width = self._shape
        if height % 2 or width % 2:
            picture = np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
        frame.colorspace, frame.color_range = _BT709, _LIMITED
        frame.pts, frame.time_base = tick, self._base
        self._mux(self._stream.encode(frame))
        self.count += 1
        self._last_tick = tick

    def finish(self) -> None:
        if self.count == 0:
            self.abandon()
            raise OutputError("no frames were written: write at least one before the file is closed")
        self._mux(self._stream.encode(None))
        self._out.close()

    def abandon(self) -> None:
        """Let go of the file without caring for what is in it."""
        try:
            self._out.close()
        except _failures():
            return  # what went wrong is already being reported

    def _mux(self, packets: list[Any]) -> None:
        for packet in packets:
            if not packet.duration:
                # without it the last frame of a file with times of its own would be shown for no time
                packet.duration = max(1, round(1 / (self._rate * self._base)))
            self._out.mux(packet)

    def _tick(self, time_s: float | None) -> int:
        if (time_s is not None) != self._timed:
            raise OutputError("give a time for every frame or for none")
        if time_s is None:
            return self.count
        if not np.isfinite(time_s) or time_s < 0:
            raise OutputError(f"the time of a frame is in seconds and >= 0, got {time_s!r}")
        tick = round(float(time_s) * _CLOCK)
        if tick <= self._last_tick:
            raise OutputError(
                f"times of frames must increase, got {time_s:g} s after {self._last_tick / _CLOCK:g} s"
            )
        return tick


def _options(codec: str, quality: int, preset: str) -> dict[str, str]:
    if codec == "libx264":
        return {"crf": str(quality), "preset": preset}
    if codec == "mpeg4":
        scale = str(min(31, max(1, round(quality * 31 / 51))))  # a fixed quantiser of 1..31
        return {"qmin": scale, "qmax": scale}
    return {}


def _encoder_name(codec: str) -> str:
    import av

    for name in ("libx264", "mpeg4") if codec == "auto" else (codec,):
        try:
            av.Codec(name, "w")
        except ValueError:  # av.codec.codec.UnknownCodecError
            continue
        return name
    raise OutputError(
        f"this build of libav has no encoder {'libx264 or mpeg4' if codec == 'auto' else codec!r}"
    )


def _checked_rate(fps: Fraction | float) -> Fraction:
    try:
        rate = Fraction(fps) if isinstance(fps, Fraction | int) else Fraction(fps).limit_denominator(1001)
    except (TypeError, ValueError, OverflowError) as error:
        raise OutputError(
            f"a frame rate is a number or a fraction of frames per second, got {fps!r}"
        ) from error
    if not 0 < rate <= 10_000:
        raise OutputError(f"a frame rate lies above 0 and at most at 10000 frames per second, got {fps!r}")
    return rate


def _checked_shape(width: int, height: int) -> tuple[int, int]:
    for value in (width, height):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or not 1 <= value <= 16384:
            raise OutputError(f"a video is 1 to 16384 pixels wide and high, got {width!r} x {height!r}")
    return int(height), int(width)


def _check_picture(picture: npt.NDArray[Any], shape: tuple[int, int] | None) -> None:
    right = picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3
    if not right or (shape is not None and picture.shape[:2] != shape):
        wanted = "(height, width, 3)" if shape is None else f"({shape[0]}, {shape[1]}, 3)"
        raise OutputError(f"a frame is uint8 RGB {wanted}, got {picture.dtype} {picture.shape}")


def _check_target(path: Path) -> None:
    if path.suffix.lower() not in SUFFIXES:
        raise OutputError(f"a video is written as {', '.join(SUFFIXES)}, got {path.name!r}")
    if path.is_dir():
        raise OutputError(f"{path} is a folder: give the name of a file in it")
    folder = path.absolute().parent
    if not folder.is_dir():
        raise OutputError(f"cannot write {path}: the folder {path.parent} does not exist, make it first")
    if not os.access(folder, os.W_OK):
        raise OutputError(f"cannot write {path}: the folder {path.parent} is not writable by this user")


def _failures() -> tuple[type[Exception], ...]:
    """What writing raises when the system or libav refuses."""
    import av

    return OSError, av.FFmpegError


def _output_error(path: Path, error: BaseException) -> OutputError:
    code = getattr(error, "errno", None)
    if code in (errno.ENOSPC, errno.EDQUOT):
        return OutputError(f"cannot write {path}: the disk is full, make room or choose another folder")
    if code == errno.EFBIG:
        return OutputError(f"cannot write {path}: the file would be larger than this system or user allows")
    return OutputError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}")
