"""Say in one sentence why a file is no video that can be read.

libav's own words for most of these are "Invalid data found when processing input". The first bytes of the
file usually tell more: a text page saved under a video's name, a download that was cut off, a pointer of
git-lfs.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

from tubelet.errors import VideoError

_HEAD_BYTES = 512


def check_path(path: Path) -> None:
    """Raise VideoError for what can be seen without reading the file: missing, a folder, empty, forbidden."""
    try:
        if not path.exists():
            parent = path.absolute().parent
            hint = "check the name" if parent.is_dir() else f"the folder {path.parent} does not exist either"
            raise VideoError(f"no video at {path}: {hint}")
        if path.is_dir():
            raise VideoError(f"{path} is a folder, not a video: give one file of it")
        if not os.access(path, os.R_OK):
            raise VideoError(f"{path} may not be read by this user: change its permissions")
        if path.is_file() and path.stat().st_size == 0:
            raise VideoError(f"{path} is empty (0 bytes): the copy or download that made it failed")
    except (OSError, ValueError) as error:  # a name too long, a NUL in it, a folder that may not be entered
        reason = getattr(error, "strerror", None) or error
        raise VideoError(f"{str(path)!r:.200} cannot be looked up: {reason}") from error


def explain_unreadable(path: Path, data: bytes | None, error: Exception) -> str:
    """One sentence for a file that libav refused."""
    try:
        head, is_mp4, has_index = _sniff(path, data)
    except OSError as reading:
        return f"{path} cannot be read: {reading.strerror or reading}"
    if head.startswith(b"version https://git-lfs"):
        return f"{path} is a git-lfs pointer, not the video itself: run `git lfs pull` where it came from"
    if _is_text(head):
        start = " ".join(head.decode("utf-8", "replace").split())[:40]
        kind = "a web page" if start.lower().startswith(("<!doctype", "<html")) else "text"
        return f"{path} holds {kind} (it begins with {start!r}), not a video: download or name the right file"
    if is_mp4 and not has_index:
        return f"{path} is an mp4 cut off before its index (no moov box): record or download it again"
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return f"{path} cannot be read as a video ({reason}): it is damaged or of a kind that libav does not know"


def _sniff(path: Path, data: bytes | None) -> tuple[bytes, bool, bool]:
    """(first bytes, whether they are an mp4's, whether a moov box begins inside the file)."""
    if data is not None:
        head = data[:_HEAD_BYTES]
        boxes = _top_boxes(len(data), lambda at: data[at : at + 16])
    else:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)

            def at(offset: int) -> bytes:
                file.seek(offset)
                return file.read(16)

            boxes = _top_boxes(path.stat().st_size, at)
    return head, head[4:8] in (b"ftyp", b"mdat", b"moov", b"wide", b"free", b"skip"), b"moov" in boxes


def _top_boxes(size: int, read_at: object) -> list[bytes]:
    names: list[bytes] = []
    offset = 0
    while offset + 8 <= size and len(names) < 10_000:
        header = read_at(offset)  # type: ignore[operator]
        if len(header) < 8:
            break
        length, name = struct.unpack(">I4s", header[:8])
        if length == 1 and len(header) == 16:
            length = struct.unpack(">Q", header[8:])[0]
        if length < 8:
            length = size - offset
        if name != b"moov" or offset + length <= size:
            names.append(name)
        offset += length
    return names


def _is_text(head: bytes) -> bool:
    if not head or b"\0" in head:
        return False
    try:
        text = head[: len(head) - 4].decode("utf-8") if len(head) == _HEAD_BYTES else head.decode("utf-8")
    except UnicodeDecodeError as error:
        # a character may be cut in two by the end of the head, not before
        if error.start < len(head) - 8:
            return False
        text = head[: error.start].decode("utf-8")
    return all(letter.isprintable() or letter.isspace() for letter in text)
