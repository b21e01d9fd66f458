"""VidOR trajectories: the boxes of VidSTG. One JSON per video; per frame a list of {tid, bbox, generated, tracker}.

    annotation/{training,validation}/FOLDER/VIDEO.json
    {"video_path": "1164/5663362261.mp4", "frame_count": ..., "trajectories": [[{"tid": 0, "bbox": {...}}], ...]}

A frame may lack a tid. Boxes are pixels; right and bottom are called inclusive there, which every user of VidSTG
ignores, and so do we.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from tubelet.datasets.boxes import box_rows, from_pixels
from tubelet.datasets.fields import Item, RecordError, show
from tubelet.datasets.reading import load_json
from tubelet.datasets.record import FrameRange, Target
from tubelet.errors import DataError

FOLDERS = (
    "vidor/annotation",
    "vidor/annotations",
    "VidOR/annotation",
    "annotation",
    "vidor_annotation",
    "vidor",
)
"""Where the trajectories may lie under the data folder; each is searched for VIDEO.json at any depth."""

_KEPT = 8  # parsed videos kept: entries of one video come together in most files


class VidOR:
    """Trajectories by video id, read when asked for. Knows the files of one folder by name only."""

    def __init__(self, folder: Path | str) -> None:
        self.paths: dict[str, Path] = {}
        base = Path(folder)
        for root, _, names in os.walk(base):
            for name in names:
                if name.endswith(".json"):
                    self.paths.setdefault(name[:-5], Path(root) / name)
        self._parsed: OrderedDict[str, Item | RecordError] = OrderedDict()

    def __len__(self) -> int:
        return len(self.paths)

    def get(self, video: str) -> Item | None:
        """The parsed file of a video, None when there is none; RecordError when it is broken."""
        if video not in self.paths:
            return None
        if video not in self._parsed:
            try:
                parsed: Item | RecordError = load_json(self.paths[video])
            except RecordError as error:
                parsed = error
            self._parsed[video] = parsed
            if len(self._parsed) > _KEPT:
                self._parsed.popitem(last=False)
        self._parsed.move_to_end(video)
        found = self._parsed[video]
        if isinstance(found, RecordError):
            raise RecordError(found.file, found.where, found.field, found.reason)
        return found


def open_vidor(folder: Path | str) -> VidOR | None:
    """The trajectories under a data folder, None when there are none."""
    for name in FOLDERS:
        path = Path(folder) / name
        if path.is_dir():
            found = VidOR(path)
            if len(found):
                return found
    return None


def target(
    item: Item, tid: int, frames: FrameRange, width: int, height: int, name: str
) -> tuple[Target | None, list[str]]:
    """Boxes of one trajectory on `frames` as fractions, None where there is not one, and notes about gaps."""
    per_frame = item.items("trajectories")
    index: list[int] = []
    rows: list[Any] = []
    for frame in range(frames.begin, min(frames.end, len(per_frame))):
        found = per_frame[frame]
        if not isinstance(found, list):
            raise item.error(f"trajectories[{frame}]", f"expected a list, got {show(found)}")
        for entry in found:
            if isinstance(entry, dict) and entry.get("tid") == tid and type(entry["tid"]) is int:
                box = entry.get("bbox")
                if not isinstance(box, dict) or not {"xmin", "ymin", "xmax", "ymax"} <= box.keys():
                    reason = f"expected xmin, ymin, xmax, ymax, got {show(box)}"
                    raise item.error(f"trajectories[{frame}].bbox", reason)
                index.append(frame)
                rows.append([box["xmin"], box["ymin"], box["xmax"], box["ymax"]])
                break
    if not rows:
        return None, [f"boxes-missing: trajectory {tid} has no box on frames {frames.begin}-{frames.end - 1}"]
    boxes, unit, notes = from_pixels(
        item, "trajectories", box_rows(item, "trajectories", rows, "xyxy"), width, height
    )
    if len(rows) < len(frames):
        notes.append(f"boxes-gap: {len(frames) - len(rows)} of {len(frames)} frames of the span have no box")
    return Target(boxes, unit, np.array(index), id=str(tid), name=name), notes


def check_same(item: Item, width: int, height: int, frame_count: int) -> list[str]:
    """A note where VidOR and VidSTG disagree about the video; DataError when boxes would be of another size."""
    notes = []
    for key, ours in (("width", width), ("height", height), ("frame_count", frame_count)):
        theirs = item.whole(key, 1) if item.has(key) else ours
        if theirs != ours and key != "frame_count":
            raise DataError(f"VidOR says {key} {theirs}, VidSTG {ours}: boxes of one do not fit the other")
        if theirs != ours:
            notes.append(f"vidor-differs: VidOR says {theirs} frames, VidSTG {ours}")
    return notes
