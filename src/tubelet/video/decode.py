"""Read frames: exactly those of a grid, or all of them in order, as RGB of the displayed picture.

Contract
- Pixels are uint8 RGB (H, W, 3): turned as the display matrix says, with square pixels.
- A size is (width, height) of the displayed picture. Resizing happens in libav's scaler right after decoding,
  with bicubic interpolation whose kernel widens when the picture shrinks (so it averages, as PIL's `resize`
  does). Only the requested, resized pictures are held in memory.
- Between two wanted frames the decoder runs on, or jumps to a keyframe when that decodes fewer frames
  (`tubelet.video.plan`). Pictures that nothing depends on and nobody wants are not decoded. Neither changes a
  pixel: if a jump does not land where the index says, or a frame is missing or damaged, the clip is read
  again in one plain pass.
- A wanted frame that cannot be decoded is replaced by the nearest decoded earlier picture, else the nearest
  later one, and listed in the `DecodeReport`; so are frames that the decoder had to make up in part, and those that
  it decoded after such a hole, up to the next keyframe: they refer to what is not there. What no decoder can know is
  not listed: H.264 and its kin have no checksums, and a few changed bytes may decode as a valid, wrong picture.

Not known here: tensors, models, and how many frames are wise.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from tubelet.errors import VideoError
from tubelet.frames import Clip, FrameGrid
from tubelet.tube import Span
from tubelet.video.index import decode_packets, set_threads, stream_of
from tubelet.video.plan import SEEK_COST_FRAMES, Run, Strategy, plan_runs
from tubelet.video.probe import Video, open_container
from tubelet.video.sample import frames_in

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

Picture = npt.NDArray[np.uint8]
Decoder = Literal["auto", "pyav", "torchcodec"]


@dataclass(frozen=True, slots=True)
class DecodeReport:
    """What reading a clip met.

    n_wanted: frames of the grid. missing_index: native indices of those that could not be decoded and show a
    neighbour instead. damaged_index: those of which the decoder says that it had to make up a part (not every
    codec's does). after_damage_index: those that were decoded behind a missing or damaged frame and before the next
    keyframe, so that they may show its damage. n_seeks: jumps to keyframes. decoder: "pyav" or "torchcodec" (which
    reports none of these).
    """

    n_wanted: int
    missing_index: tuple[int, ...] = ()
    damaged_index: tuple[int, ...] = ()
    after_damage_index: tuple[int, ...] = ()
    n_seeks: int = 0
    decoder: str = "pyav"

    @property
    def n_missing(self) -> int:
        return len(self.missing_index)

    @property
    def notes(self) -> tuple[str, ...]:
        """What an answer about these frames should say of them: a sentence per kind of damage."""
        of = f"of {self.n_wanted} frames"
        told = (
            (self.n_missing, f"{of} could not be decoded; neighbours stand in"),
            (len(self.damaged_index), f"{of} are damaged in the file; the decoder made up a part of them"),
            (len(self.after_damage_index), f"{of} follow damaged data in the file and may show its damage"),
        )
        return tuple(f"{count} {what}" for count, what in told if count)


def read_clip(
    video: Video,
    grid: FrameGrid,
    size: tuple[int, int] | None = None,
    *,
    decoder: Decoder = "auto",
    strategy: Strategy = "auto",
) -> Clip:
    """The frames of a grid as a `Clip`, resized to `size` (width, height) if one is given.

    Frames that cannot be decoded are replaced by a neighbour; `read_clip_report` also says which. Raises
    VideoError when more than half of the frames cannot be decoded.
    """
    return read_clip_report(video, grid, size, decoder=decoder, strategy=strategy)[0]


def read_clip_report(
    video: Video,
    grid: FrameGrid,
    size: tuple[int, int] | None = None,
    *,
    decoder: Decoder = "auto",
    strategy: Strategy = "auto",
) -> tuple[Clip, DecodeReport]:
    """`read_clip` with a report of the frames that could not be decoded.

    decoder: "pyav", "torchcodec" (optional, see `tubelet.video.torch_decoder`) or "auto", which is PyAV.
    strategy: "auto" jumps to keyframes where that is estimated to be cheaper, "sequential" never jumps,
    "seek" jumps to the nearest keyframe whenever there is one on the way. All three give the same pixels.
    """
    _check_grid(video, grid)
    width, height = checked_size(video, size)
    if decoder == "torchcodec":
        from tubelet.video.torch_decoder import read_pictures

        return Clip(read_pictures(video, grid, (width, height)), grid), DecodeReport(
            len(grid), decoder=decoder
        )
    if decoder not in ("auto", "pyav"):
        raise VideoError(f"a decoder is 'auto', 'pyav' or 'torchcodec', got {decoder!r}")
    runs = plan_runs(np.flatnonzero(video.keyframes), grid.frame_index, strategy=_strategy(video, strategy))
    reading = _Reading(video, grid, width, height)
    if not reading.sparse(runs):
        reading = _Reading(video, grid, width, height)
        reading.plain()
    missing = tuple(int(grid.frame_index[row]) for row in reading.missing)
    if 2 * len(missing) > len(grid):
        raise VideoError(
            f"{len(missing)} of the {len(grid)} wanted frames of {video.path} cannot be decoded: "
            "the file is damaged, copy or download it again"
        )
    damaged, after = (
        tuple(int(grid.frame_index[row]) for row in rows) for rows in (reading.damaged, reading.after_damage)
    )
    return Clip(reading.pixels, grid), DecodeReport(len(grid), missing, damaged, after, reading.n_seeks)


def iter_frames(
    video: Video, size: tuple[int, int] | None = None, window: Span | None = None
) -> Iterator[tuple[int, float, Picture]]:
    """(frame_index, time_s, rgb) of every frame of a window, in order, holding one picture at a time.

    Frames that cannot be decoded are left out, so indices may skip. Raises VideoError for a window without
    frames.
    """
    first, stop = frames_in(video, window)
    convert = PictureConverter(video, *checked_size(video, size))

    def frames() -> Iterator[tuple[int, float, Picture]]:
        keys = np.flatnonzero(video.keyframes)
        before = keys[keys <= first]
        # a jump must skip enough to be worth it; it may land late, then the file is read from its beginning
        starts = [int(before[-1])] if video.seekable and len(before) and before[-1] > SEEK_COST_FRAMES else []
        for start in [*starts, None]:
            decoded = _indexed_frames(video, start)
            try:
                head = next(decoded, None)
                if start is not None and (head is None or head[0] > first):
                    continue
                while head is not None and head[0] < stop:
                    number, frame = head
                    if number >= first:
                        yield number, float(video.times_s[number]), convert(frame)
                    head = next(decoded, None)
                return
            finally:
                decoded.close()

    return frames()


def checked_size(video: Video, size: tuple[int, int] | None) -> tuple[int, int]:
    """(width, height) to read at: the displayed size, or `size` if it makes sense. Raises VideoError."""
    if size is None:
        return video.width, video.height
    whole = len(size) == 2 and all(isinstance(n, int | np.integer) and not isinstance(n, bool) for n in size)
    if not whole or min(size) < 1 or max(size) > 16384:
        raise VideoError(f"a size is (width, height) in whole pixels from 1 to 16384, got {size!r}")
    return int(size[0]), int(size[1])


class PictureConverter:
    """Decoded frames to displayed RGB pictures of one size. Keeps the scaler's tables between frames."""

    def __init__(self, video: Video, width: int, height: int) -> None:
        from av.video.reformatter import VideoReformatter

        self._scaler = VideoReformatter()
        turned = video.rotation_deg in (90, 270)
        self._stored = (height, width) if turned else (width, height)
        self._quarters, self._mirrored = -(video.rotation_deg // 90), video.mirrored

    def __call__(self, frame: VideoFrame) -> Picture:
        width, height = self._stored
        rgb = self._scaler.reformat(
            frame, width=width, height=height, format="rgb24", interpolation="BICUBIC", **_ranges(frame)
        )
        picture: Any = rgb.to_ndarray()
        if self._mirrored:
            picture = picture[:, ::-1]
        if self._quarters:
            picture = np.rot90(picture, self._quarters)
        upright: Picture = np.ascontiguousarray(picture)
        return upright


def _ranges(frame: VideoFrame) -> dict[str, int]:
    """The ranges of a conversion to RGB, said aloud: without them PyAV 14 ignores the tagged matrix."""
    limited, full = 1, 2  # libav's AVCOL_RANGE_MPEG and AVCOL_RANGE_JPEG
    layout = frame.format
    if layout.is_rgb or layout.has_palette or layout.name.startswith(("gray", "mono", "ya")):
        return {}
    is_full = frame.color_range == full or layout.name.startswith("yuvj")
    return {"src_color_range": full if is_full else limited, "dst_color_range": full}


@dataclass
class _Reading:
    """One attempt to fill the pixels of a grid."""

    video: Video
    grid: FrameGrid
    width: int
    height: int
    missing: list[int] = field(default_factory=list)
    damaged: list[int] = field(default_factory=list)
    after_damage: list[int] = field(default_factory=list)
    n_seeks: int = 0
    pixels: Picture = field(init=False)

    def __post_init__(self) -> None:
        shape = (len(self.grid), self.height, self.width, 3)
        try:
            self.pixels = np.empty(shape, dtype=np.uint8)
        except MemoryError as error:
            size_gb = np.prod(shape, dtype=float) / 1e9
            raise VideoError(
                f"{shape[0]} pictures of {shape[2]}x{shape[1]} need {size_gb:.1f} GB of memory: "
                "take fewer, give a smaller size, or use iter_frames"
            ) from error
        self._convert = PictureConverter(self.video, self.width, self.height)

    def sparse(self, runs: list[Run]) -> bool:
        """Follow a plan and skip what is not needed. False as soon as anything is not as the index says."""
        wanted = {int(self.video.pts[i]) for i in self.grid.frame_index}
        with open_container(self.video.path, self.video.data) as media:
            stream = stream_of(media, self.video.stream_index)
            set_threads(stream)
            for run in runs:
                if run.start is not None:
                    if not _seek(media, stream, int(self.video.pts[run.start]) - self.video.seek_back):
                        return False
                    self.n_seeks += 1
                row = run.first_row
                skip = None if self.video.counted else _skipper(stream, wanted)
                for number, frame in _number(self.video, decode_packets(media, stream, skip), strict=True):
                    if number > self.grid.frame_index[row] or frame.is_corrupt:
                        return False
                    if number == self.grid.frame_index[row]:
                        self.pixels[row] = self._convert(frame)
                        row += 1
                        if row == run.stop_row:
                            break
                if row < run.stop_row:
                    return False
        return True

    def plain(self) -> None:
        """One pass from the beginning that decodes everything, and fills holes with neighbours."""
        row, waiting = 0, []
        earlier: VideoFrame | None = None
        count, last = len(self.grid), -1
        errors: list[Packet[VideoStream]] = []  # since the last keyframe
        holed = False  # is there a hole since then?
        for number, frame in _indexed_frames(self.video, None, careful=True, errors=errors):
            holed = holed or bool(errors) or number > last + 1
            if frame.key_frame:
                holed = False
                errors.clear()
            last = number
            while row < count and self.grid.frame_index[row] < number:
                self.missing.append(row)
                if earlier is None:
                    waiting.append(row)
                else:
                    self.pixels[row] = self._convert(earlier)
                row += 1
            earlier = frame
            if waiting:
                self.pixels[waiting] = self._convert(frame)
                waiting = []
            if row < count and self.grid.frame_index[row] == number:
                self.pixels[row] = self._convert(frame)
                if frame.is_corrupt:
                    self.damaged.append(row)
                elif holed:
                    self.after_damage.append(row)
                row += 1
            holed = holed or frame.is_corrupt
            if row == count:
                return
        self.missing.extend(range(row, count))
        if earlier is not None:
            self.pixels[row:] = self._convert(earlier)


def _indexed_frames(
    video: Video,
    start: int | None,
    *,
    careful: bool = False,
    errors: list[Packet[VideoStream]] | None = None,
) -> Generator[tuple[int, VideoFrame], None, None]:
    """(native index, frame) from keyframe `start` on, or from the beginning.

    `careful` keeps no frames in flight, so that an error costs the frames it belongs to and no others. `errors` takes
    the packets that cannot be decoded and that others may refer to, before the frames behind them come.
    """
    with open_container(video.path, video.data) as media:
        stream = stream_of(media, video.stream_index)
        set_threads(stream, in_flight=not careful)
        if start is not None and not _seek(media, stream, int(video.pts[start]) - video.seek_back):
            return
        yield from _number(video, decode_packets(media, stream), strict=False, errors=errors)


def _number(
    video: Video,
    decoded: Iterator[tuple[Packet[VideoStream], list[VideoFrame] | None]],
    *,
    strict: bool,
    errors: list[Packet[VideoStream]] | None = None,
) -> Iterator[tuple[int, VideoFrame]]:
    """Give decoded frames their native index, by timestamp or by counting; unknown ones are left out.

    `strict` ends at the first packet that cannot be decoded.
    """
    count, last = 0, -1
    for packet, frames in decoded:
        if frames is None:
            if strict:
                return
            if errors is not None and not packet.is_disposable:
                errors.append(packet)
            continue
        for frame in frames:
            if video.counted:
                number, known = count, count < video.n_frames
                count += 1
            else:
                stamp = frame.pts if frame.pts is not None else frame.dts
                number = int(np.searchsorted(video.pts, stamp)) if stamp is not None else video.n_frames
                known = number < video.n_frames and int(video.pts[number]) == stamp
            if known and number > last:
                last = number
                yield number, frame


def _skipper(stream: VideoStream, wanted: set[int]) -> Any:
    context = stream.codec_context

    def before(packet: Packet[VideoStream]) -> None:
        context.skip_frame = "DEFAULT" if packet.pts is None or packet.pts in wanted else "NONREF"

    return before


def _seek(media: InputContainer, stream: VideoStream, pts: int) -> bool:
    import av

    try:
        media.seek(pts, stream=stream, backward=True)
    except (av.FFmpegError, OSError):
        return False
    return True


def _strategy(video: Video, strategy: Strategy) -> Strategy:
    if strategy not in ("auto", "sequential", "seek"):
        raise VideoError(f"a strategy is 'auto', 'sequential' or 'seek', got {strategy!r}")
    return strategy if video.seekable else "sequential"


def _check_grid(video: Video, grid: FrameGrid) -> None:
    same = (grid.width, grid.height) == (video.width, video.height) and grid.frame_index[-1] < video.n_frames
    if not same or np.abs(grid.times_s - video.times_s[grid.frame_index]).max() > 1e-5:
        raise VideoError(
            f"this frame grid was not made from {video.path.name} ({video.n_frames} frames, "
            f"{video.width}x{video.height}): sample the video that is read"
        )
