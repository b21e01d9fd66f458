"""QVHighlights: several moments per sentence and a saliency for each of their clips (7,218 / 1,550 / 1,542 queries).

    {"qid": 2579, "query": "...", "duration": 150, "vid": "NUsG9BgSes0_210.0_360.0", "relevant_windows": [[82, 150]],
     "relevant_clip_ids": [41, ...], "saliency_scores": [[1, 1, 2], ...]}

- `relevant_windows` are seconds of the clip file, **one or more** (up to twenty); all of them are the truth.
- `relevant_clip_ids` count clips of 2 s from 0 and are the windows again; where they disagree: note "clips-disagree".
- `saliency_scores`: three annotators, 0 to 4, for the listed clips only; the others are 0 (`saliency(record)`).
- `vid` is YOUTUBEID_START_END of the 150 s cut that the file is; the file may be shorter: `duration` says how long.
- test labels were hidden for years: highlight_test_release.jsonl has none (`labelled` is False), moment_detr's
  highlight_test_with_gt.jsonl has them and is taken where both are there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from tubelet.datasets.fields import Item, show
from tubelet.datasets.layout import FileSpec, check_split, find_file
from tubelet.datasets.moments import pair, window
from tubelet.datasets.problems import OnError, records
from tubelet.datasets.reading import stream_jsonl
from tubelet.datasets.record import FloatArray, Record, VideoRef
from tubelet.errors import DataError
from tubelet.tube import Span

NAME = "qvhighlights"
SPLITS = ("train", "val", "test")
SOURCE = "github.com/jayleicn/moment_detr, folder data (annotations CC BY-NC-SA 4.0)"
CLIP_S = 2
"""Length of the clips that saliency scores are about."""

ANNOTATORS = 3
HIGHEST = 4
_LONGEST_S = 10_000.0  # guards the array of `saliency`; videos last 150 s
_VID = re.compile(r"(.+)_(\d{1,6}\.\d{1,3})_(\d{1,6}\.\d{1,3})", re.ASCII)
_FOLDERS = ("", "data/", "qvhighlights/", "annotations/")
_NAMES = {
    "train": ("highlight_train_release",),
    "val": ("highlight_val_release",),
    "test": ("highlight_test_with_gt", "highlight_test_release"),
}
FILES = (
    *(
        FileSpec(
            "annotations",
            tuple(
                f"{folder}{name}{end}.jsonl"
                for name in _NAMES[split]
                for end in ("", ".*")
                for folder in _FOLDERS
            ),
            f"{split} queries{' (with_gt has the labels)' if split == 'test' else ', windows and saliency'}",
            SOURCE,
            (split,),
        )
        for split in SPLITS
    ),
    FileSpec(
        "videos",
        ("**/*.mp4",),
        "the 150 s cuts, named by vid, e.g. videos/NUsG9BgSes0_210.0_360.0.mp4",
        "the links in github.com/jayleicn/moment_detr",
        kind="media",
    ),
)


def read(folder: Path | str, split: str, *, on_error: OnError = "raise") -> Iterator[Record]:
    """Records of `split`, lazily, in file order. `folder` may be the annotation file itself."""
    path = find_file(folder, FILES, "annotations", check_split(split, SPLITS, NAME))
    return records(stream_jsonl(path, on_error), partial(_record, split), on_error)


def saliency(record: Record) -> FloatArray:
    """(int(duration / 2), 3) scores 0..4 of all clips by the three annotators, 0 where a clip is not listed.

    A listed clip that starts after the end of the video has no row, as in the official code. DataError for a record
    without labels.
    """
    if "relevant_clip_ids" not in record.extra or record.video.duration_s is None:
        raise DataError(f"{record.id}: no saliency scores (the labels are hidden in this file)")
    scores = np.zeros((int(record.video.duration_s / CLIP_S), ANNOTATORS))
    for clip, row in zip(record.extra["relevant_clip_ids"], record.extra["saliency_scores"], strict=True):
        if clip < len(scores):
            scores[clip] = row
    return scores


def truth(record: Record) -> dict[str, Any]:
    """The record in moment_detr's layout, as `tubelet.metrics.score_moments` and the official script take it."""
    out: dict[str, Any] = {
        "qid": record.source["qid"],
        "query": record.query,
        "duration": record.video.duration_s,
        "vid": record.video.id,
    }
    if record.labelled:
        out |= {"relevant_windows": [[span.start_s, span.end_s] for span in record.spans], **record.extra}
    return out


def _record(split: str, item: Item) -> Record:
    vid, qid = item.text("vid"), item.name_or_number("qid")
    duration_s = item.number("duration", CLIP_S, _LONGEST_S)
    spans: list[Span] = []
    notes: list[str] = []
    extra: dict[str, Any] = {}
    if item.has("relevant_windows"):
        windows = item.items("relevant_windows")
        if not windows:
            raise item.error("relevant_windows", "expected at least one window, got none")
        for k, value in enumerate(windows):
            key = f"relevant_windows[{k}]"
            span, said = window(item, key, *pair(item, key, value), duration_s)
            spans.append(span)
            notes += said
        if any(a.end_s > b.start_s for a, b in pairwise(spans)):
            notes.append("windows-overlap: windows overlap or are not in order of time")
        extra, said = _clips(item, spans)
        notes += said
    elif split != "test":
        item.raw("relevant_windows")  # says that it is missing
        raise item.error("relevant_windows", "expected windows, got null")
    return Record(
        dataset=NAME,
        split=split,
        id=qid,
        task="tvg",
        query=item.text("query"),
        video=VideoRef(
            vid, tuple(f"{folder}{vid}.mp4" for folder in ("videos/", "video/", "")), duration_s=duration_s
        ),
        spans=tuple(spans),
        source={"file": Path(item.file).name, "line": item.where, "qid": item.raw("qid"), **_origin(vid)},
        tags={"windows": len(spans)},
        extra=extra,
        notes=tuple(notes),
    )


def _origin(vid: str) -> dict[str, Any]:
    """The YouTube id and the cut, in seconds of the original video, where `vid` says them."""
    found = _VID.fullmatch(vid)
    return {} if found is None else {"youtube": found[1], "cut_s": [float(found[2]), float(found[3])]}


def _clips(item: Item, spans: list[Span]) -> tuple[dict[str, Any], list[str]]:
    """Clip ids and their scores as they are, checked, and notes; none where the file has windows only."""
    if not item.has("relevant_clip_ids"):
        return {}, []
    ids = item.numbers("relevant_clip_ids", minimum=0)
    if not all(clip.is_integer() for clip in ids) or len(set(ids)) != len(ids):
        raise item.error("relevant_clip_ids", "expected different whole numbers")
    rows = item.items("saliency_scores")
    if len(rows) != len(ids):
        raise item.error("saliency_scores", f"expected one per listed clip ({len(ids)}), got {len(rows)}")
    for k, row in enumerate(rows):
        good = isinstance(row, list) and len(row) == ANNOTATORS
        if not good or not all(type(x) is int and 0 <= x <= HIGHEST for x in row):
            raise item.error(
                f"saliency_scores[{k}]",
                f"expected {ANNOTATORS} whole numbers 0 to {HIGHEST}, got {show(row)}",
            )
    notes = []
    listed = {int(clip) for clip in ids}
    inside = {clip for clip in listed if any(span.contains((clip + 0.5) * CLIP_S) for span in spans)}
    length = sum(span.duration_s for span in spans) / CLIP_S
    if inside != listed or abs(length - len(listed)) > 1e-6:
        notes.append(
            f"clips-disagree: {len(listed)} clips of {CLIP_S} s are listed, the windows hold {length:g}"
        )
    return {"relevant_clip_ids": [int(clip) for clip in ids], "saliency_scores": rows}, notes
