"""Which frames a file displays and when, from its packets where that is reliable and by decoding where not.

A packet is not a displayed frame in general. What is used here, and was checked against decoding:
- libav marks packets before the cut of an edit list (mp4) with the discard flag; the decoder swallows their
  frames.
- Packets come in decoding order. Sorted by presentation timestamp (pts), they are in display order.
- Nothing before the first keyframe can be decoded, nor may the pictures that lead it in an open group.
- Containers without presentation timestamps (raw streams, AVI) get guessed ones, wrong for reordered frames.
- VP8 packets may be hidden reference pictures.

So packets are believed for containers that store real timestamps, if these are unique and if the first frames
that the decoder really gives are the ones the index promises. In all other cases the file is decoded once,
one frame in memory at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

# demuxers whose packets carry the presentation timestamps of the file
_TRUSTED = frozenset({"mov", "mp4", "matroska", "webm", "mpegts", "gif", "apng", "flv", "ogg", "mpeg"})
# streams without a table of their own are searched by decoding timestamp, which lies before a keyframe's pts
_SEEK_BY_DTS = frozenset({"mpegts"})
_STREAMS = frozenset({"mpegts", "mpeg"})  # may begin anywhere; a file with a table that does so is damaged
_NO_JUMPS = frozenset({"mpeg"})  # libav finds no keyframe in a program stream
_HIDDEN_PICTURES = frozenset({"vp8"})
_CHECKED_FRAMES = 8
_MAX_REORDER = 64  # frames; H.264 and HEVC allow 16. More means that the clock of the file jumped
_HEAD_PACKETS = 2000  # give up looking for a first picture after this many packets


@dataclass(frozen=True, slots=True)
class Head:
    """What the first decoded frames say: stored size, display matrix, timestamps (or None)."""

    width: int
    height: int
    rotation_deg: int
    mirrored: bool
    pts: tuple[int | None, ...]
    n_errors: int
    whole: bool  # the file has no further frames


@dataclass(frozen=True, slots=True, eq=False)
class FrameIndex:
    """Displayed frames in display order.

    pts (N,) timestamps in ticks, keyframes (N,) mask, last_ticks how long the last frame lasts (0: unknown),
    seek_back how many ticks before a keyframe's timestamp a jump to it must aim.
    """

    pts: npt.NDArray[np.int64]
    keyframes: npt.NDArray[np.bool_]
    last_ticks: int
    seekable: bool
    counted: bool
    seek_back: int = 0

    def __len__(self) -> int:
        return len(self.pts)

    @classmethod
    def of_image(cls, head: Head) -> FrameIndex:
        count = min(1, len(head.pts))
        return cls(np.arange(count), np.ones(count, bool), 0, seekable=False, counted=True)


def build_index(
    reopen: Callable[[], AbstractContextManager[InputContainer]], stream_index: int, head: Head
) -> FrameIndex:
    """Index the stream from its packets, or by decoding everything when the packets cannot be believed."""
    with reopen() as media:
        index = from_packets(media, stream_of(media, stream_index), head)
    if index is not None:
        return index
    with reopen() as media:
        return from_decoding(media, stream_of(media, stream_index))


def stream_of(media: InputContainer, index: int) -> VideoStream:
    """The video stream with this index."""
    return cast("VideoStream", media.streams[index])


def read_head(media: InputContainer, stream: VideoStream) -> Head:
    """Decode the first displayed frames. No frames at all gives a Head of size 0."""
    stream.codec_context.thread_count = 1  # no frames in flight: the first one comes out at once
    pts: list[int | None] = []
    errors = 0
    first: VideoFrame | None = None
    whole = True
    for number, (_, frames) in enumerate(decode_packets(media, stream)):
        if frames is None:
            errors += 1
            frames = []
        for frame in frames:
            first = first or frame
            pts.append(frame.pts)
        if len(pts) >= _CHECKED_FRAMES or (number >= _HEAD_PACKETS and first is None):
            whole = False
            break
    if first is None:
        return Head(0, 0, 0, False, (), errors, whole)
    rotation, mirrored = orientation(first)
    return Head(first.width, first.height, rotation, mirrored, tuple(pts), errors, whole)


def decode_packets(
    media: InputContainer,
    stream: VideoStream,
    before: Callable[[Packet[VideoStream]], None] | None = None,
) -> Iterator[tuple[Packet[VideoStream], list[VideoFrame] | None]]:
    """Packets of a stream with the frames that came out when each was decoded; None where decoding failed.

    A read error ends the stream (a file that was cut off). `before` is called before each packet is decoded.
    """
    import av

    packets = media.demux(stream)
    while True:
        try:
            packet = next(packets)
        except (StopIteration, av.FFmpegError):
            break
        if before is not None:
            before(packet)
        try:
            frames = packet.decode()
        except av.FFmpegError:
            frames = None
        yield packet, frames
        if packet.size == 0 and packet.pts is None and packet.dts is None:
            return  # the packet that empties the decoder: nothing follows it
    try:
        tail = stream.codec_context.decode(None)
    except av.FFmpegError:  # the decoder was already emptied
        return
    if tail:
        yield packet, tail


def from_packets(media: InputContainer, stream: VideoStream, head: Head) -> FrameIndex | None:
    """The index as the packets tell it, or None when they cannot be believed."""
    import av

    kinds = set(media.format.name.split(","))
    codec = stream.codec_context
    intra_only = bool(codec.codec.intra_only) if hasattr(codec.codec, "intra_only") else False
    if (
        codec.name in _HIDDEN_PICTURES
        or not (kinds & _TRUSTED or intra_only)
        or None in head.pts
        or not head.pts
    ):
        return None
    pts: list[int] = []
    keys: list[bool] = []
    shown: list[bool] = []
    spans: list[int] = []
    delay = 0
    packets = media.demux(stream)
    while True:
        try:
            packet = next(packets)
        except (StopIteration, av.FFmpegError):
            break
        if packet.size == 0:
            continue
        if packet.pts is None:
            return None
        if not keys and not packet.is_keyframe and kinds & _STREAMS:
            continue
        pts.append(packet.pts)
        keys.append(bool(packet.is_keyframe))
        shown.append(not packet.is_discard)
        spans.append(packet.duration or 0)
        if packet.dts is not None:
            delay = max(delay, packet.pts - packet.dts)
    if not pts:
        return None
    index = _checked(np.array(pts), np.array(keys), np.array(shown), np.array(spans), head)
    if index is None:
        return None
    return replace(index, seekable=not kinds & _NO_JUMPS, seek_back=delay if kinds & _SEEK_BY_DTS else 0)


def _checked(
    pts: npt.NDArray[np.int64],
    keys: npt.NDArray[np.bool_],
    shown: npt.NDArray[np.bool_],
    spans: npt.NDArray[np.int64],
    head: Head,
) -> FrameIndex | None:
    order = np.argsort(pts, kind="stable")
    if np.abs(order - np.arange(len(order))).max() > _MAX_REORDER:
        return None
    order = order[shown[order]]
    decoded = [p for p in head.pts if p is not None]
    if decoded[0] >= pts[0]:
        # pictures that lead the first keyframe (its group is open) refer to what was cut off before it. A
        # decoder that gives none of them starts at that keyframe, which is the first one in decoding order
        order = order[pts[order] >= pts[0]]
    sorted_pts = pts[order]
    if (
        len(order) == 0
        or (np.diff(sorted_pts) <= 0).any()
        or not _agrees(sorted_pts, keys[order], head, decoded)
    ):
        return None
    gaps = np.diff(sorted_pts)
    last = int(spans[order[-1]])
    reordered = bool((np.diff(order) < 0).any())
    if len(gaps) and (last <= 0 or (reordered and int(np.ptp(spans[order])) > 2)):
        # the span of a packet is the time to the next one in decoding order: with reordered frames and a
        # variable rate it does not say how long its picture is shown
        last = int(np.median(gaps))
    return FrameIndex(sorted_pts, keys[order], last, seekable=True, counted=False)


def _agrees(pts: npt.NDArray[np.int64], keys: npt.NDArray[np.bool_], head: Head, decoded: list[int]) -> bool:
    """Whether an index promises the frames that decoding the head of the file really gave."""
    if head.n_errors:  # a damaged head: some are missing, none may be new
        return set(decoded) <= set(pts.tolist())
    begin = int(np.searchsorted(pts, decoded[0]))
    if pts[begin : begin + len(decoded)].tolist() != decoded:
        return False
    if head.whole and len(pts) != begin + len(decoded):
        return False
    # some decoders say nothing about a damaged first group and begin at the next keyframe: those frames are
    # missing, and the clock does not move for it
    return begin == 0 or bool(keys[begin])


def from_decoding(media: InputContainer, stream: VideoStream) -> FrameIndex:
    """The index as decoding every frame gives it; if timestamps do not increase, frames are counted."""
    stamps: list[int | None] = []
    keys: list[bool] = []
    last = 0
    set_threads(stream)
    for packet, frames in decode_packets(media, stream):
        for frame in frames or ():
            stamps.append(frame.pts if frame.pts is not None else frame.dts)
            keys.append(bool(frame.key_frame))
        last = packet.duration or last
    known = np.array([s for s in stamps if s is not None], dtype=np.int64)
    count = len(stamps)
    if count and len(known) == count and (np.diff(known) > 0).all():
        gaps = np.diff(known)
        return FrameIndex(
            known,
            np.array(keys),
            last or (int(np.median(gaps)) if len(gaps) else 0),
            seekable=False,
            counted=False,
        )
    return FrameIndex(np.arange(count), np.array(keys, dtype=bool), 0, seekable=False, counted=True)


def set_threads(stream: VideoStream, *, in_flight: bool = True) -> None:
    """Decode on the processors this process may use, at most 8: each holds frames of its own in memory.

    `in_flight` allows several frames at once, else the threads share the slices of one frame.
    """
    import os

    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    stream.thread_type = "AUTO" if in_flight else "SLICE"
    stream.codec_context.thread_count = max(1, min(8, available))


def orientation(frame: VideoFrame) -> tuple[int, bool]:
    """(clockwise turn in degrees, mirrored first): the nearest of the eight upright display matrices."""
    from av.sidedata.sidedata import Type

    try:
        everything: Any = frame.side_data
    except (
        ValueError
    ):  # PyAV refuses all side data of a frame when libav attached a kind it does not know yet
        return -90 * round(frame.rotation / 90) % 360, False
    side = everything.get(Type.DISPLAYMATRIX)
    if side is None:
        return 0, False
    a, b, _, c, d, *_ = np.frombuffer(bytes(side), dtype=np.int32)[:9].astype(np.float64)
    found = np.array([[a, c], [b, d]])  # (x, y) of the stored picture -> (x, y) of the displayed one, y down
    turn = np.array([[0.0, -1.0], [1.0, 0.0]])  # 90 degrees clockwise
    best, best_fit = (0, False), 0.0
    for mirrored in (False, True):
        matrix = np.diag([-1.0, 1.0]) if mirrored else np.eye(2)
        for degrees in (0, 90, 180, 270):
            fit = float((matrix * found).sum())
            if fit > best_fit * (1 + 1e-9):
                best, best_fit = (degrees, mirrored), fit
            matrix = turn @ matrix
    return best
