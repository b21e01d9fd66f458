"""`record_from_dict`: the inverse of `tubelet.datasets.record.Record.to_dict`.

A run folder holds its questions and their truth as JSON, so that it can be scored without the data set. Unknown keys
are ignored (a newer tubelet may have added some); whatever else does not fit is a DataError.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tubelet.datasets.record import FrameRange, Record, Target, VideoRef, as_fps
from tubelet.errors import DataError
from tubelet.tube import Span


def record_from_dict(data: Any) -> Record:
    """A Record from its JSON; `record_from_dict(r.to_dict()).to_dict() == r.to_dict()`. Raises DataError."""
    if not isinstance(data, Mapping):
        raise DataError(f"a record is a JSON object, got {type(data).__name__}")
    missing = [key for key in ("dataset", "split", "id", "task", "query", "video") if key not in data]
    if missing:
        raise DataError(
            f"a record needs {', '.join(missing)}; it has {', '.join(map(str, data)) or 'nothing'}"
        )
    try:
        return _record(data)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, IndexError) as error:
        raise DataError(f"not a record: {type(error).__name__} {error!s:.80}") from error


def _record(data: Mapping[str, Any]) -> Record:
    given = data.get("given_box")
    return Record(
        dataset=_text(data["dataset"]),
        split=_text(data["split"]),
        id=_text(data["id"]),
        task=_text(data["task"]),
        query=_text(data["query"]),
        video=_video(data["video"]),
        spans=tuple(Span.from_dict(span) for span in data.get("spans", ())),
        frames=_frames(data.get("frames")),
        targets=tuple(_target(target) for target in data.get("targets", ())),
        present=bool(data.get("present", True)),
        choices=tuple(_text(choice) for choice in data.get("choices", ())),
        answer=_text(data.get("answer", "")),
        answer_index=data.get("answer_index"),
        given_span=_span(data.get("given_span")),
        given_frames=_frames(data.get("given_frames")),
        given_box=None if given is None else _target(given),
        spans_kind=data.get("spans_kind", "windows"),
        source=dict(data.get("source", {})),
        tags=dict(data.get("tags", {})),
        extra=dict(data.get("extra", {})),
        notes=tuple(data.get("notes", ())),
    )


def _video(data: Mapping[str, Any]) -> VideoRef:
    fps = data.get("fps")
    return VideoRef(
        id=_text(data["id"]),
        files=tuple(_text(name) for name in data.get("files", ())),
        fps=None if fps is None else as_fps(fps),
        frame_count=data.get("frame_count"),
        width=data.get("width"),
        height=data.get("height"),
        duration_s=data.get("duration_s"),
        segment=_frames(data.get("segment")),
        segment_s=_span(data.get("segment_s")),
        kind=data.get("kind", "video"),
    )


def _target(data: Mapping[str, Any]) -> Target:
    index, times = data.get("frame_index"), data.get("times_s")
    return Target(
        boxes_xyxy=np.asarray(data["boxes_xyxy"], dtype=np.float64).reshape(-1, 4),
        unit=data.get("unit", "fraction"),
        frame_index=None if index is None else np.asarray(index, dtype=np.int64),
        times_s=None if times is None else np.asarray(times, dtype=np.float64),
        id=_text(data.get("id", "")),
        name=_text(data.get("name", "")),
        frames=_frames(data.get("frames")),
        span=_span(data.get("span")),
    )


def _frames(data: Any) -> FrameRange | None:
    return None if data is None else FrameRange(data[0], data[1])


def _span(data: Any) -> Span | None:
    return None if data is None else Span.from_dict(data)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise DataError(f"expected text in a record, got {value!r:.60}")
    return value
