"""Open a video: its size, its rate and the exact moment of every frame, without decoding it.

Contract
- `open_video` reads the packets of the file once, decodes its first few frames to check the result, and
  returns a `Video`. It never holds pixels: `tubelet.video.decode` reads them, `tubelet.video.sample` says
  which.
- Frame i is the i-th picture a player displays. `times_s[i]` is when, in seconds from the first displayed
  frame. Pictures that are decoded but not displayed (before the cut of an edit list, hidden reference
  pictures) have no number. Variable rates, reordered (B) frames and streams that do not begin at 0 need no
  care from the caller.
- Sizes are displayed sizes: after the display matrix (rotation, mirroring) and with square pixels. As players
  do, the stored width is multiplied by the sample aspect ratio and the height is kept, then the picture is
  turned.
- A still image is a video of one frame that lasts 1/25 s.
- Every problem with a file is a `VideoError` of one sentence.

Not known here: what the frames show, and how many of them a model wants.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import numpy.typing as npt

from tubelet.errors import VideoError
from tubelet.video.explain import check_path, explain_unreadable
from tubelet.video.index import FrameIndex, Head, build_index, read_head

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

IMAGE_RATE = Fraction(25)
"""Rate given to a still image: its one frame lasts 1/25 s."""

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"})

_DEFAULT_STREAM, _ATTACHED_PICTURE = 1, 1 << 10  # libav's AV_DISPOSITION_*

# EXIF orientation -> (clockwise turn in degrees, mirrored left to right first)
_EXIF_TURNS = {
    1: (0, False),
    2: (0, True),
    3: (180, False),
    4: (180, True),
    5: (270, True),
    6: (90, False),
    7: (90, True),
    8: (270, False),
}

# containers that are no video themselves (playlists, text art): libav would open what they point to
_NOT_A_VIDEO = frozenset(
    {"hls", "dash", "concat", "tty", "image2", "lavfi", "sdp", "rtsp", "webm_dash_manifest"}
)


@dataclass(frozen=True, slots=True, eq=False)
class Video:
    """An opened video file. Arrays are read-only; N is the number of displayed frames.

    Args:
        path: the file, or `<memory>` for bytes.
        fps: average rate, a fraction: the nominal rate where the frames keep one, else N / duration.
        constant_rate: whether every frame lies on the grid of `fps` (to one tick of the file's clock).
        times_s: (N,) presentation times in seconds from the first displayed frame, strictly increasing.
        duration_s: when the last frame stops being shown, from the first displayed frame.
        width, height: displayed size in pixels.
        start_offset_s: the file's own timestamp of the first displayed frame.
        codec, container: names as libav gives them ("h264", "mov,mp4,...").
        is_image: a still image.
        rotation_deg: clockwise turn (0, 90, 180, 270) from the stored to the displayed picture.
        mirrored: whether the stored picture is mirrored left to right before that turn.
        sample_aspect_ratio: width of a stored pixel over its height.
        keyframes: (N,) bool, the frames from which decoding can start.
        pts: (N,) int64 timestamps in `time_base` ticks, or 0..N-1 where frames are `counted`.
        seekable: whether a keyframe can be jumped to; if not, reading begins at the first frame.
        seek_back: how many ticks before a keyframe's timestamp a jump to it must aim.
        counted: the file has no usable timestamps, so frames are told apart by counting them.
        data: the encoded file itself if it was opened from memory.
    """

    path: Path
    fps: Fraction
    constant_rate: bool
    times_s: npt.NDArray[np.float64]
    duration_s: float
    width: int
    height: int
    start_offset_s: float
    codec: str
    container: str
    is_image: bool
    rotation_deg: int
    mirrored: bool
    sample_aspect_ratio: Fraction
    has_audio: bool
    byte_size: int
    keyframes: npt.NDArray[np.bool_]
    pts: npt.NDArray[np.int64]
    time_base: Fraction
    stream_index: int
    seekable: bool
    counted: bool
    seek_back: int = 0
    data: bytes | None = field(default=None, repr=False)

    @property
    def n_frames(self) -> int:
        return len(self.times_s)

    @property
    def keyframe_times_s(self) -> npt.NDArray[np.float64]:
        return self.times_s[self.keyframes]

    def __len__(self) -> int:
        return len(self.times_s)

    def to_dict(self) -> dict[str, Any]:
        """What `tubelet info` shows: JSON types only, no list that grows with the video."""
        return {
            "path": str(self.path),
            "width": self.width,
            "height": self.height,
            "n_frames": self.n_frames,
            "duration_s": round(self.duration_s, 6),
            "fps": f"{self.fps.numerator}/{self.fps.denominator}",
            "fps_float": round(float(self.fps), 6),
            "frame_rate": "constant" if self.constant_rate else "variable",
            "start_offset_s": round(self.start_offset_s, 6),
            "codec": self.codec,
            "container": self.container,
            "is_image": self.is_image,
            "rotation_deg": self.rotation_deg,
            "mirrored": self.mirrored,
            "sample_aspect_ratio": "{}/{}".format(*self.sample_aspect_ratio.as_integer_ratio()),
            "has_audio": self.has_audio,
            "byte_size": self.byte_size,
            "n_keyframes": int(self.keyframes.sum()),
            "seekable": self.seekable,
        }


def open_video(source: str | os.PathLike[str] | bytes | BinaryIO) -> Video:
    """Index a video file, a still image, or an encoded file in memory (bytes, or a binary stream read to its
    end).

    Reads every packet once, which is bound by the disk and not by the codec. Files whose timestamps cannot be
    trusted (raw streams, AVI with B-frames, ...) are decoded once instead. Raises VideoError.
    """
    path, data = _load(source)
    byte_size = path.stat().st_size if data is None else len(data)
    with open_container(path, data) as media:
        name = media.format.name
        if name in _NOT_A_VIDEO:
            raise VideoError(
                f"{path} is a list or text that libav reads as {name!r}: give the video file itself"
            )
        stream = _video_stream(path, media)
        is_image = name.endswith("_pipe")
        codec = str(stream.codec_context.name)
        sar = Fraction(stream.sample_aspect_ratio or 1)
        rates = [stream.average_rate, stream.guessed_rate, stream.base_rate]
        time_base = Fraction(stream.time_base or 1)
        stream_index, has_audio = int(stream.index), bool(media.streams.audio)
        announced_s = _announced_duration(media, stream, name)
        head = read_head(media, stream)
    sar = sar if sar > 0 else Fraction(1)

    def reopen() -> Any:
        return open_container(path, data)

    if is_image:
        index = FrameIndex.of_image(head)
        rates = [IMAGE_RATE]
        rotation_deg, mirrored = _photo_orientation(path, data) or (head.rotation_deg, head.mirrored)
        head = replace(head, rotation_deg=rotation_deg, mirrored=mirrored)
    else:
        index = build_index(reopen, stream_index, head)
    if len(index) == 0 or head.width == 0:
        raise VideoError(
            f"{path} holds a {codec} video stream but no frame of it can be decoded: "
            "the file is empty or damaged, copy or download it again"
        )
    video = _assemble(
        path,
        data,
        byte_size,
        name,
        codec,
        sar,
        time_base,
        stream_index,
        has_audio,
        is_image,
        head,
        index,
        rates,
    )
    if video.duration_s < 0.8 * announced_s and announced_s - video.duration_s > 0.5:
        raise VideoError(
            f"{path} is cut off: its header announces {announced_s:.1f} s, only {video.duration_s:.1f} s "
            f"({video.n_frames} frames) can be read: copy or download it again"
        )
    return video


def _announced_duration(media: InputContainer, stream: VideoStream, container: str) -> float:
    """How long an mp4 says its video is, 0 where the container does not say it for sure.

    The shorter of the stream's and the film's length: an edit list shows less than the stream holds, and the
    film may be longer than its pictures by its sound.
    """
    if "mp4" not in container or not stream.duration or not media.duration or stream.time_base is None:
        return 0.0
    import av

    return float(min(stream.duration * stream.time_base, Fraction(media.duration, av.time_base)))


def _assemble(
    path: Path,
    data: bytes | None,
    byte_size: int,
    container: str,
    codec: str,
    sar: Fraction,
    time_base: Fraction,
    stream_index: int,
    has_audio: bool,
    is_image: bool,
    head: Head,
    index: FrameIndex,
    rates: list[Fraction | None],
) -> Video:
    if index.counted or is_image:
        rate = next((Fraction(r) for r in rates if r), IMAGE_RATE)
        times = np.arange(len(index)) / float(rate)
        fps, constant, duration_s, start = rate, True, float(len(index) / rate), 0.0
    else:
        ticks = index.pts - index.pts[0]
        times = ticks_to_seconds(ticks, time_base)
        fps, constant = average_rate(ticks, index.last_ticks, time_base, rates)
        last = float(index.last_ticks * time_base) if index.last_ticks > 0 else float(1 / fps)
        duration_s = float(times[-1]) + last
        start = float(int(index.pts[0]) * time_base)
    mirrored, rotation = head.mirrored, head.rotation_deg
    width, height = max(1, round(head.width * sar)), head.height
    if rotation in (90, 270):
        width, height = height, width
    for array in (times, index.pts, index.keyframes):
        array.flags.writeable = False
    return Video(
        path=path,
        fps=fps,
        constant_rate=constant,
        times_s=times,
        duration_s=duration_s,
        width=width,
        height=height,
        start_offset_s=start,
        codec=codec,
        container=container,
        is_image=is_image,
        rotation_deg=rotation,
        mirrored=mirrored,
        sample_aspect_ratio=sar,
        has_audio=has_audio,
        byte_size=byte_size,
        keyframes=index.keyframes,
        pts=index.pts,
        time_base=time_base,
        stream_index=stream_index,
        seekable=index.seekable,
        counted=index.counted,
        seek_back=index.seek_back,
        data=data,
    )


def ticks_to_seconds(ticks: npt.NDArray[np.int64], time_base: Fraction) -> npt.NDArray[np.float64]:
    """Ticks of a clock in seconds: one multiplication in integers and one division, so correctly rounded."""
    seconds: npt.NDArray[np.float64] = (ticks * time_base.numerator) / time_base.denominator
    return seconds


def average_rate(
    ticks: npt.NDArray[np.int64], last_ticks: int, time_base: Fraction, rates: list[Fraction | None]
) -> tuple[Fraction, bool]:
    """(frames per second, whether the rate is constant).

    A rate that the file announces is taken if every frame lies within one tick of its grid: times of a
    30000/1001 video in a container that counts milliseconds still give 30000/1001. Otherwise the frames are
    counted.
    """
    count = len(ticks)
    numbers = np.arange(count)
    for announced in rates:
        if not announced:
            continue
        step = 1 / (Fraction(announced) * time_base)  # ticks per frame
        grid = numbers * (step.numerator / step.denominator)
        if count > 1 and np.abs(ticks - grid).max() <= 1.0 + 1e-6:
            return Fraction(announced), True
        if count == 1:
            return Fraction(announced), True
    if last_ticks > 0:
        total = int(ticks[-1]) + last_ticks
        rate = Fraction(count) / (total * time_base)
    elif count > 1:
        rate = Fraction(count - 1) / (int(ticks[-1]) * time_base)
    else:
        return IMAGE_RATE, True
    step = 1 / (rate * time_base)
    constant = bool(np.abs(ticks - numbers * (step.numerator / step.denominator)).max() <= 1.0 + 1e-6)
    return rate, constant


def _photo_orientation(path: Path, data: bytes | None) -> tuple[int, bool] | None:
    """How a photo's EXIF says it is displayed, or None if Pillow cannot tell."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data) if data is not None else path) as image:
            return _EXIF_TURNS.get(image.getexif().get(0x0112, 1))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def _load(source: str | os.PathLike[str] | bytes | BinaryIO) -> tuple[Path, bytes | None]:
    if isinstance(source, bytes | bytearray | memoryview):
        path, data = Path("<memory>"), bytes(source)
    elif isinstance(source, str | os.PathLike):
        path = Path(source)
        check_path(path)
        return path, None
    elif hasattr(source, "read"):
        path, data = Path("<memory>"), source.read()
        if not isinstance(data, bytes):
            raise VideoError("a stream given as a video must be opened in binary mode ('rb')")
    else:
        raise VideoError(f"a video is a path, bytes or a binary stream, got {type(source).__name__}")
    if not data:
        raise VideoError("the video in memory is empty (0 bytes)")
    return path, data


@contextmanager
def open_container(path: Path, data: bytes | None) -> Iterator[InputContainer]:
    """An open libav container; every way in which opening fails is a VideoError.

    libav stays silent: PyAV discards its log unless the application asks for it with `av.logging.set_level`.
    """
    import av

    # libav takes "a:b.mp4" for a protocol and "shot[1].png" for a pattern of files; neither is meant here
    target: Any
    if data is not None:
        target = io.BytesIO(data)
    elif path.suffix.lower() in IMAGE_SUFFIXES:
        target = io.BytesIO(path.read_bytes())
    else:
        target = f"file:{path}"
    try:
        media = av.open(
            target, "r", metadata_errors="replace", container_options={"protocol_whitelist": "file,pipe"}
        )
    except (av.FFmpegError, OSError, ValueError) as error:
        raise VideoError(explain_unreadable(path, data, error)) from error
    try:
        yield media
    finally:
        # PyAV frees a decoder while it holds the interpreter; a decoding thread that has something to log waits for
        # the interpreter, and is waited for. Flushing waits for the threads without holding it.
        for stream in media.streams.video:
            if stream.codec_context is not None:
                stream.codec_context.flush_buffers()
        media.close()


def _video_stream(path: Path, media: InputContainer) -> VideoStream:
    # PyAV tells since 14.1 what a stream is for; a cover picture of a sound file is no video
    told = {s.index: getattr(s, "disposition", 0) for s in media.streams.video}
    uses = {
        index: int(getattr(use, "value", use)) for index, use in told.items()
    }  # 14: a flag that is no number
    pictures = [s for s in media.streams.video if not uses[s.index] & _ATTACHED_PICTURE]
    if not pictures:
        if media.streams.audio:
            raise VideoError(f"{path} holds sound but no video stream: give a file with pictures")
        raise VideoError(
            f"{path} was opened as {media.format.name} but holds no video stream: it is empty, give another file"
        )
    # the main one of several views: what a player picks
    stream = max(pictures, key=lambda s: (uses[s.index] & _DEFAULT_STREAM, -s.index))
    if stream.codec_context is None or stream.codec_context.codec is None:
        raise VideoError(
            f"{path} holds video in a codec that this build of libav cannot decode: "
            "convert it to H.264 (ffmpeg -i in -c:v libx264 out.mp4)"
        )
    return stream
