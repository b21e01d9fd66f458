"""DiDeMo: 5 s segments of Flickr videos, four (rarely more) annotators per sentence (val 4,180, test 4,021 sentences).

    {"video": "...mov", "description": "...", "times": [[2, 2], [2, 3], ...], "num_segments": 6, "annotation_id": 24621}

- `times` are [first, last] chunks of 5 s counted from 0, **both included**: chunk [2, 3] is 10-20 s. One per annotator:
  `spans` are votes (`spans_kind`), in the order of the file, repeated where annotators agree.
- only the first 30 s of a video were annotated: `segment_s` is the part with chunks, 25 or 30 s.
- **the last chunk may be shorter**, and the duration is not in the file: a vote that holds the last chunk is 5 s long
  there (note "last-chunk"). `with_duration(record, duration_s)` cuts it once the video is open.
- the official score works on chunks (`extra["times"]`, inclusive ends) and on the best three votes; a query with fewer
  than three votes is noted "few-votes".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from tubelet.datasets.fields import Item
from tubelet.datasets.layout import FileSpec, check_split, find_file
from tubelet.datasets.moments import pair
from tubelet.datasets.problems import OnError, records
from tubelet.datasets.reading import stream_items
from tubelet.datasets.record import Record, VideoRef
from tubelet.errors import DataError
from tubelet.tube import Span

NAME = "didemo"
SPLITS = ("train", "val", "test")
SOURCE = "github.com/LisaAnne/LocalizingMoments, folder data (BSD-2-Clause)"
CHUNK_S = 5
"""Length of a chunk in seconds; the last one of a video may be shorter."""

MOST_CHUNKS = 6
VOTES_SCORED = 3
FILES = (
    *(
        FileSpec(
            "annotations",
            tuple(
                f"{folder}{split}_data{end}.json"
                for end in ("", ".*")
                for folder in ("", "data/", "didemo/", "annotations/")
            ),
            f"{split} sentences and segments",
            SOURCE,
            (split,),
        )
        for split in SPLITS
    ),
    FileSpec(
        "videos",
        ("**/*.mp4", "**/*.mov", "**/*.avi", "**/*.mpg", "**/*.wmv", "**/*.m4v", "**/*.3gp"),
        "Flickr videos, named as in `video` (some names have no extension), e.g. videos/",
        "the links in that repository (Flickr; some are gone)",
        kind="media",
    ),
)


def read(folder: Path | str, split: str, *, on_error: OnError = "raise") -> Iterator[Record]:
    """Records of `split`, lazily, in file order. `folder` may be the annotation file itself."""
    path = find_file(folder, FILES, "annotations", check_split(split, SPLITS, NAME))
    return records(stream_items(path, on_error), partial(_record, split), on_error)


def with_duration(record: Record, duration_s: float) -> Record:
    """The record of an opened video: votes and segment that hold the last chunk end with the video if that is sooner.

    A vote that lies wholly after the end of the video stays as it is (note "span-past-end"). DataError for a duration
    of 0 or less.
    """
    segment = record.video.segment_s
    if segment is None:
        raise DataError(f"{record.id}: not a DiDeMo record: it has no segment")
    if not duration_s > 0:
        raise DataError(f"a duration is above 0 s, got {duration_s:g}")
    end_s = min(segment.end_s, duration_s)
    spans = tuple(span.clip(0.0, end_s) or span for span in record.spans)
    notes = [note for note in record.notes if not note.startswith("last-chunk:")]
    gone = sum(span.start_s >= end_s for span in record.spans)
    if gone:
        notes.append(
            f"span-past-end: {gone} of {len(spans)} votes lie after the end of the video, {duration_s:g} s"
        )
    video = replace(record.video, duration_s=duration_s, segment_s=Span(0.0, end_s))
    return replace(record, video=video, spans=spans, notes=tuple(notes))


def _record(split: str, item: Item) -> Record:
    name = item.text("video")
    chunks = item.whole("num_segments", 1, MOST_CHUNKS)
    votes = [_chunks(item, f"times[{k}]", value, chunks) for k, value in enumerate(item.items("times"))]
    if not votes:
        raise item.error("times", "expected one [first, last] per annotator, got none")
    notes = []
    to_end = sum(last == chunks - 1 for _, last in votes)
    if to_end:
        notes.append(
            f"last-chunk: {to_end} of {len(votes)} votes hold the last chunk, which may be shorter than {CHUNK_S} s"
        )
    if len(votes) < VOTES_SCORED:
        notes.append(f"few-votes: {len(votes)} votes; the official score takes the best {VOTES_SCORED}")
    return Record(
        dataset=NAME,
        split=split,
        id=item.name_or_number("annotation_id"),
        task="tvg",
        query=item.text("description"),
        video=VideoRef(
            id=name,
            files=tuple(
                f"{folder}{name}{end}" for folder in ("videos/", "video/", "") for end in ("", ".mp4")
            ),
            segment_s=Span(0.0, float(CHUNK_S * chunks)),
        ),
        spans=tuple(Span(float(CHUNK_S * first), float(CHUNK_S * (last + 1))) for first, last in votes),
        spans_kind="votes",
        source={"file": Path(item.file).name, "record": item.where, "link": item.text("dl_link", "")},
        extra={"times": [list(vote) for vote in votes], "num_segments": chunks},
        notes=tuple(notes),
    )


def _chunks(item: Item, key: str, value: object, count: int) -> tuple[int, int]:
    first, last = pair(item, key, value)
    if not (first.is_integer() and last.is_integer() and 0 <= first <= last < count):
        raise item.error(
            key, f"expected 0 <= first <= last < {count} (chunks of 5 s), got {first:g} and {last:g}"
        )
    return int(first), int(last)
