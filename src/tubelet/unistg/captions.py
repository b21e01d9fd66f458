"""Captions with coarse times, out of what people have: dataset readers, InternVid's lines, or lines of one's own.

    captions = read_captions(CaptionSource("didemo", "data/didemo", "train"))      # Iterator[Caption | Drop]

Sources: a dataset of `tubelet.datasets` whose records have a sentence and a span (didemo, charades-sta, tacos,
activitynet, qvhighlights, ...); "internvid", JSON Lines as OpenGVLab publishes them, one clip of a YouTube video each:

    {"YoutubeID": "abc", "Start_timestamp": "00:00:09.500", "End_timestamp": "00:00:11.500", "Caption": "..."}

and "jsonl", our own (`caption_row` writes them):

    {"id": "1", "source": "mine", "video": "a/b.mp4", "text": "...", "start_s": 2.0, "end_s": 9.5, "duration_s": 30.0}

Where id is missing it is the line, source is the file's name, `span` {"start_s", "end_s"} and `caption` are read too.

What cannot be used is a Drop of stage "captions", one each: span-outside-video, bad-span, bad-path, no-words, duplicate
(same video, words and times), duplicate-id. A span that ends after its video is cut, and counted as "clipped". Paths
are written one way ("a\\\\b.mp4" and "./a/b.mp4" are a/b.mp4), so that one video is one video. Broken lines go to
`on_error` as everywhere (`tubelet.datasets.problems`). Whether there is a noun in a caption, the analyzer says.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from tubelet.datasets import read
from tubelet.datasets.fields import Item, RecordError, is_text
from tubelet.datasets.problems import OnError, handle
from tubelet.datasets.reading import stream_jsonl
from tubelet.datasets.record import Record
from tubelet.errors import DataError
from tubelet.tube import Span
from tubelet.unistg.records import Caption, Drop

STAGE = "captions"
INTERNVID = "internvid"
JSONL = "jsonl"
_CLOCK = re.compile(r"(?:(\d+):)?(\d{1,2}):(\d{1,2}(?:\.\d+)?)")
_DRIVE = re.compile(r"[A-Za-z]:")
_WORD = re.compile(r"[^\W\d_]")


@dataclass(frozen=True, slots=True)
class CaptionSource:
    """Where captions come from. kind: a dataset's name, "internvid" or "jsonl". path: its folder or file.

    video_name: the video's file for sources that only know an id ("{id}.mp4"; InternVid).
    """

    kind: str
    path: str
    split: str = "train"
    video_name: str = "{id}.mp4"


@dataclass(frozen=True, slots=True)
class Coarse:
    """A caption before it is checked; times may be anything."""

    id: str
    source: str
    video: str
    text: str
    start_s: float
    end_s: float
    duration_s: float | None = None


def read_captions(
    source: CaptionSource, on_error: OnError = "raise", counts: Counter[str] | None = None
) -> Iterator[Caption | Drop]:
    """Checked captions of a source, lazily, in its order. counts grows by read, kept, clipped, and drop reasons."""
    if source.kind == INTERNVID:
        raw = read_internvid(Path(source.path), source.video_name, on_error)
    elif source.kind == JSONL:
        raw = read_rows(Path(source.path), on_error)
    else:
        raw = of_records(read(source.kind, source.path, source.split, on_error=on_error))
    yield from checked(raw, counts)


def checked(raw: Iterable[Coarse], counts: Counter[str] | None = None) -> Iterator[Caption | Drop]:
    """Captions that can be used, and a Drop for each that cannot. Remembers 16 bytes per caption."""
    counts = Counter() if counts is None else counts
    ids: set[bytes] = set()
    seen: set[bytes] = set()
    for coarse in raw:
        counts["read"] += 1
        made = _check(coarse)
        if isinstance(made, Caption):
            words = " ".join(made.text.lower().split()).rstrip(" .")
            span = f"{made.span.start_s:.2f}-{made.span.end_s:.2f}"
            own, said = _short(made.id), _short(f"{made.video}\n{words}\n{span}")
            if own in ids:
                made = Drop(coarse.id, STAGE, "duplicate-id", f"{made.video}: {made.text:.100}")
            elif said in seen:
                made = Drop(coarse.id, STAGE, "duplicate", f"{made.video} {span} s: {made.text:.100}")
            else:
                ids.add(own)
                seen.add(said)
        if isinstance(made, Drop):
            counts[made.reason] += 1
        else:
            counts["kept"] += 1
            counts["clipped"] += made.span.end_s < coarse.end_s or made.span.start_s > coarse.start_s
        yield made


def _check(coarse: Coarse) -> Caption | Drop:
    def drop(reason: str, detail: str) -> Drop:
        return Drop(coarse.id, STAGE, reason, detail)

    text = " ".join(coarse.text.split())
    if not _WORD.search(text) or not is_text(text):
        return drop("no-words", f"{text!r:.80}")
    video = normal_path(coarse.video)
    if video is None:
        return drop("bad-path", f"expected a path below the videos' folder, got {coarse.video!r:.100}")
    start_s, end_s, limit_s = coarse.start_s, coarse.end_s, coarse.duration_s
    if not start_s < end_s or end_s <= 0:
        return drop("bad-span", f"expected start < end, got {start_s:g} to {end_s:g} s")
    if limit_s is not None and not limit_s > 0:
        return drop("bad-span", f"a video lasts more than 0 s, got {limit_s:g}")
    if limit_s is not None and start_s >= limit_s:
        return drop("span-outside-video", f"{start_s:g}-{end_s:g} s of a video of {limit_s:g} s")
    low_s, high_s = max(0.0, start_s), end_s if limit_s is None else min(end_s, limit_s)
    try:
        return Caption(coarse.id, coarse.source, video, text, Span(low_s, high_s), limit_s)
    except DataError as error:
        return drop("bad-span", str(error))


def normal_path(path: str) -> str | None:
    """One spelling per file: POSIX, relative, without "."; None for what does not lie below a folder."""
    plain = path.strip().replace("\\", "/")
    if not plain or not is_text(plain) or "\0" in plain or "://" in plain or _DRIVE.match(plain):
        return None
    pure = PurePosixPath(plain)
    return None if pure.is_absolute() or ".." in pure.parts or str(pure) == "." else str(pure)


# --- sources -------------------------------------------------------------------------------------------


def of_records(records: Iterable[Record]) -> Iterator[Coarse]:
    """Sentences with a span. Of several votes (DiDeMo) the one the others agree with most; of several windows, each."""
    for record in records:
        if not record.spans or record.video.kind == "image":
            continue
        spans = (agreed(record.spans),) if record.spans_kind == "votes" else record.spans
        for number, span in enumerate(spans):
            yield Coarse(
                id=f"{record.dataset}:{record.split}:{record.id}" + (f"/{number}" if len(spans) > 1 else ""),
                source=record.dataset,
                video=record.video.files[0] if record.video.files else record.video.id,
                text=record.query,
                start_s=span.start_s,
                end_s=span.end_s,
                duration_s=record.video.duration_s,
            )


def agreed(votes: tuple[Span, ...]) -> Span:
    """The vote with the highest sum of tIoU with all of them; the first of equals."""
    return max(votes, key=lambda vote: sum(vote.iou(other) for other in votes))


def read_internvid(path: Path, video_name: str = "{id}.mp4", on_error: OnError = "raise") -> Iterator[Coarse]:
    """InternVid's lines (YoutubeID, Start_timestamp, End_timestamp, Caption). One file per YouTube video."""
    for item in stream_jsonl(path, on_error):
        try:
            video, text = item.text("YoutubeID"), item.text("Caption")
            start_s, end_s = _clock(item, "Start_timestamp"), _clock(item, "End_timestamp")
        except RecordError as error:
            handle(on_error, error)
            continue
        key = f"{INTERNVID}:{video}:{start_s:.3f}-{end_s:.3f}"
        yield Coarse(key, INTERNVID, video_name.replace("{id}", video), text, start_s, end_s)


def _clock(item: Item, key: str) -> float:
    """ "00:01:09.500" (hours may be missing), or a number of seconds."""
    value = item.raw(key)
    if not isinstance(value, str):
        return item.number(key, 0)
    found = _CLOCK.fullmatch(value.strip())
    if found is None:
        raise item.error(key, f"expected hours:minutes:seconds, got {value!r:.40}")
    return int(found[1] or 0) * 3600 + int(found[2]) * 60 + float(found[3])


def read_rows(path: Path, on_error: OnError = "raise") -> Iterator[Coarse]:
    """Lines of our own format (see above)."""
    for item in stream_jsonl(path, on_error):
        try:
            yield _coarse_of_row(item, path.stem)
        except RecordError as error:
            handle(on_error, error)


def _coarse_of_row(item: Item, name: str) -> Coarse:
    times = item.child("span") if item.has("span") else item
    source = item.text("source", name)
    line = item.where.removeprefix("line ")
    text = item.raw("text" if "text" in item.data or "caption" not in item.data else "caption")
    if not isinstance(text, str):
        raise item.error("text", f"expected text, got {text!r:.40}")
    return Coarse(
        id=item.name_or_number("id") if item.has("id") else f"{source}:{line}",
        source=source,
        video=item.text("video"),
        text=text,
        start_s=times.number("start_s"),
        end_s=times.number("end_s"),
        duration_s=item.number("duration_s") if item.has("duration_s") else None,
    )


def caption_row(caption: Caption) -> dict[str, Any]:
    """A line of our own format."""
    return {
        "id": caption.id,
        "source": caption.source,
        "video": caption.video,
        "text": caption.text,
        "start_s": caption.span.start_s,
        "end_s": caption.span.end_s,
        "duration_s": caption.duration_s,
    }


def _short(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest()
