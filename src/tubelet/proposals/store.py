"""Tracks on disk: JSON with a version, written atomically; the video's hash; a cache by hash and settings.

One file holds the tracks of one video: {"kind": "tubelet.tracks", "schema": 1, "grid": ..., "tracks": [...]}. A track
lists only its visible rows; masks are COCO RLE. docs/proposals.md describes every field.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from tubelet.errors import DataError, OutputError
from tubelet.frames import Clip, FrameGrid
from tubelet.proposals.rle import Rle
from tubelet.proposals.track import FloatArray, Track, Tracks
from tubelet.video import Video

SCHEMA_VERSION = 1
KIND = "tubelet.tracks"
CACHE_VERSION = 2  # grows when a provider gives other tracks for the same settings

_WHOLE_BYTES = 64 << 20  # larger files are hashed by their size and five pieces
_PIECE_BYTES = 4 << 20


def video_hash(source: Video | Clip) -> str:
    """A hash of the pixels' source: of a video file's bytes (`file-...`), of a clip's pixels and times (`clip-...`).

    Files above 64 MB are hashed by their size and five pieces of 4 MB spread over them. Raises DataError when the
    file cannot be read.
    """
    digest = hashlib.sha256()
    if isinstance(source, Clip):
        digest.update(json.dumps(source.grid.to_dict(), sort_keys=True).encode())
        digest.update(str(source.pixels.shape).encode())
        for picture in source.pixels:
            digest.update(picture.tobytes())
        return f"clip-{digest.hexdigest()[:24]}"
    if source.data is not None:
        digest.update(source.data)
        return f"file-{digest.hexdigest()[:24]}"
    try:
        size = source.path.stat().st_size
        with source.path.open("rb") as file:
            if size <= _WHOLE_BYTES:
                while piece := file.read(_PIECE_BYTES):
                    digest.update(piece)
            else:
                digest.update(str(size).encode())
                for part in range(5):
                    file.seek((size - _PIECE_BYTES) * part // 4)
                    digest.update(file.read(_PIECE_BYTES))
    except OSError as error:
        raise DataError(f"cannot read {source.path} to hash it: {error.strerror or error}") from error
    return f"file-{digest.hexdigest()[:24]}"


def save_tracks(tracks: Tracks, path: Path | str) -> Path:
    """Write tracks as JSON, whole or not at all. Raises OutputError."""
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    text = json.dumps(tracks_to_dict(tracks), ensure_ascii=False, separators=(",", ":")) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        with suppress(OSError):  # there may be no such folder
            part.unlink()
        raise OutputError(f"cannot write tracks to {path}: {error.strerror or error}") from error
    return path


def load_tracks(path: Path | str, expected_hash: str | None = None) -> Tracks:
    """Read tracks; DataError when the file is broken, of another version, or of a video with another hash."""
    path = Path(path)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"there is no file of tracks {path}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"cannot read tracks from {path}: {error}") from error
    try:
        tracks = tracks_from_dict(data)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    if expected_hash is not None:
        tracks.check_hash(expected_hash)
    return tracks


def tracks_to_dict(tracks: Tracks) -> dict[str, Any]:
    return {
        "kind": KIND,
        "schema": SCHEMA_VERSION,
        "provider": tracks.provider,
        "settings": dict(tracks.settings),
        "video_hash": tracks.video_hash,
        "grid": tracks.grid.to_dict(),
        "n_clipped": tracks.n_clipped,
        "n_failed": tracks.n_failed,
        "notes": list(tracks.notes),
        "tracks": [_track_to_dict(track) for track in tracks],
    }


def tracks_from_dict(data: Any) -> Tracks:
    """The inverse of `tracks_to_dict`. Raises DataError that says what is missing or wrong."""
    if not isinstance(data, Mapping) or data.get("kind") != KIND:
        raise DataError(f'not a file of tracks: expected a JSON object with "kind": "{KIND}"')
    if data.get("schema") != SCHEMA_VERSION:
        raise DataError(
            f"these tracks are of schema {data.get('schema')!r}, this tubelet reads {SCHEMA_VERSION}: "
            "make them again, or use the tubelet that made them"
        )
    kinds: dict[str, tuple[type, ...]] = {"grid": (Mapping,), "tracks": (list,), "notes": (list,)}
    kinds |= {
        "settings": (Mapping,),
        "provider": (str,),
        "video_hash": (str, type(None)),
        "n_clipped": (int,),
    }
    data = {"n_failed": 0, **data}  # files of before have none
    kinds["n_failed"] = (int,)
    for key, kind in kinds.items():
        if key not in data or not isinstance(data[key], kind):
            raise DataError(f"{key} of a file of tracks is missing or wrong: {data.get(key)!r:.80}")
    grid = FrameGrid.from_dict(data["grid"])
    return Tracks(
        grid,
        tuple(_track_from_dict(item, len(grid)) for item in data["tracks"]),
        video_hash=data["video_hash"],
        provider=data["provider"],
        settings=dict(data["settings"]),
        n_clipped=data["n_clipped"],
        notes=tuple(str(note) for note in data["notes"]),
        n_failed=data["n_failed"],
    )


def _track_to_dict(track: Track) -> dict[str, Any]:
    rows = track.rows
    out: dict[str, Any] = {
        "track_id": track.track_id,
        "label": track.label,
        "score": None if track.score is None else round(track.score, 6),
        "rows": rows.tolist(),
        "boxes_xyxy": _rounded(track.boxes_xyxy[rows]).tolist(),
    }
    if track.box_scores is not None:
        out["box_scores"] = np.round(track.box_scores[rows], 6).tolist()
    if track.masks is not None:
        out["masks"] = [mask.to_dict() if (mask := track.masks[row]) is not None else None for row in rows]
    return out


def _rounded(boxes_xyxy: FloatArray) -> FloatArray:
    """(N, 4) with six digits; a side shorter than that is rounded away from its middle: a box stays a box."""
    low, high = boxes_xyxy[:, :2], boxes_xyxy[:, 2:]
    flat = np.round(high, 6) <= np.round(low, 6)
    low = np.where(flat, np.floor(low * 1e6) / 1e6, np.round(low, 6))
    high = np.where(flat, np.ceil(high * 1e6) / 1e6, np.round(high, 6))
    return np.concatenate([low, high], axis=1)


def _track_from_dict(data: Any, n_frames: int) -> Track:
    if not isinstance(data, Mapping) or not {"track_id", "rows", "boxes_xyxy"} <= set(data):
        raise DataError(f"a track has track_id, rows and boxes_xyxy, got {data!r:.80}")
    try:
        rows = np.array(data["rows"], dtype=np.int64)
        boxes_there = np.array(data["boxes_xyxy"], dtype=np.float64).reshape(-1, 4)
        scores_there = np.array(data.get("box_scores") or [], dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"track {data['track_id']!r}: rows, boxes and scores are numbers: {error}") from error
    if (
        rows.ndim != 1
        or (np.diff(rows) <= 0).any()
        or (len(rows) and not 0 <= rows[0] <= rows[-1] < n_frames)
    ):
        raise DataError(
            f"track {data['track_id']!r}: rows increase and lie in the grid of {n_frames} frames, "
            f"got {data['rows']!r:.60}"
        )
    masks_there = data.get("masks")
    if masks_there is not None and not isinstance(masks_there, list):
        raise DataError(f"track {data['track_id']!r}: masks are a list, got {masks_there!r:.60}")
    counts = {"boxes_xyxy": len(boxes_there)}
    if data.get("box_scores") is not None:
        counts["box_scores"] = len(scores_there)
    if masks_there is not None:
        counts["masks"] = len(masks_there)
    for what, count in counts.items():
        if count != len(rows):
            raise DataError(f"track {data['track_id']!r}: {len(rows)} rows, but {count} {what}")
    boxes, visible = np.zeros((n_frames, 4)), np.zeros(n_frames, dtype=np.bool_)
    boxes[rows], visible[rows] = boxes_there, True
    scores = None
    if data.get("box_scores") is not None:
        scores = np.zeros(n_frames)
        scores[rows] = scores_there
    masks: list[Rle | None] | None = None
    if masks_there is not None:
        masks = [None] * n_frames
        for row, mask in zip(rows.tolist(), masks_there, strict=True):
            masks[row] = None if mask is None else Rle.from_dict(mask)
    return Track(
        data["track_id"],
        boxes,
        visible,
        score=data.get("score"),
        box_scores=scores,
        masks=None if masks is None else tuple(masks),
        label=data.get("label"),
    )


def cached(folder: Path | str, key: Mapping[str, Any], make: Callable[[], Tracks]) -> Tracks:
    """The tracks kept in `folder` under `key`, or those of `make()`, which are then kept there.

    key: everything the tracks depend on (video hash, provider, settings, phrases, grid), plain data. A file that is
    damaged or of another version is made again. Tracks of which a model failed on some frames are not kept: the next
    try may do better.
    """
    text = json.dumps({"cache": CACHE_VERSION, **key}, sort_keys=True, ensure_ascii=False, default=str)
    name = hashlib.sha256(text.encode()).hexdigest()[:24]
    path = Path(folder) / f"{name}.json"
    if path.is_file():
        try:
            return load_tracks(path)
        except DataError:
            path.unlink(missing_ok=True)
    tracks = make()
    if not tracks.n_failed:
        save_tracks(tracks, path)
    return tracks
