"""Looks at all of a mixture before training: files, items, pictures, clips; counts everything, raises nothing.

`check_mixture(list)` says per entry how many records there are, how many are taken, which of these are broken and why,
and how many pictures are missing. With `open_videos` it also opens every video, and finds what only that shows: files
that cannot be read, and clips (`meta.split`) outside of their video.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tubelet.datasets.fields import RecordError
from tubelet.datasets.problems import EXAMPLES, Problems
from tubelet.errors import DataError, VideoError
from tubelet.llava_st.item_files import is_text_only, parse_item
from tubelet.llava_st.items import Item
from tubelet.llava_st.mixture import Entry, Mixture, read_mixture
from tubelet.llava_st.record_index import index_records


@dataclass(slots=True)
class EntryReport:
    """What one entry of a list holds.

    records: in the file; taken: by its sampling_strategy; items: valid ones of these; text_only: taken, without a
    picture (also counted in `problems`). images, videos: different ones; missing: of these, not in data_folder;
    unreadable: there, but cannot be opened (only with open_videos). kinds: items by task kind ("" where none is named).
    """

    name: str
    json_path: str
    data_folder: str
    records: int = 0
    taken: int = 0
    items: int = 0
    text_only: int = 0
    images: int = 0
    videos: int = 0
    missing: int = 0
    unreadable: int = 0
    splits_outside: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    problems: Problems = field(default_factory=Problems)
    failure: str = ""

    @property
    def ok(self) -> bool:
        bad = self.missing + self.unreadable + self.splits_outside + self.problems.count
        return not self.failure and not bad and self.items > 0

    def to_dict(self) -> dict[str, Any]:
        broken = {
            f"{kind}": {"count": count, "examples": self.problems.examples[file, kind]}
            for (file, kind), count in self.problems.by_kind.items()
        }
        return {
            "name": self.name,
            "json_path": self.json_path,
            "data_folder": self.data_folder,
            "ok": self.ok,
            "failure": self.failure,
            "records": self.records,
            "taken": self.taken,
            "items": self.items,
            "broken": self.problems.count,
            "text_only": self.text_only,
            "images": self.images,
            "videos": self.videos,
            "missing": self.missing,
            "unreadable": self.unreadable,
            "splits_outside": self.splits_outside,
            "kinds": dict(sorted(self.kinds.items())),
            "examples": list(self.examples),
            "problems": broken,
        }

    def lines(self) -> list[str]:
        """For people: the counts, and what is wrong."""
        if self.failure:
            return [f"{self.name}: {self.failure}"]
        kinds = ", ".join(f"{name or 'no kind'} {count}" for name, count in sorted(self.kinds.items()))
        out = [
            f"{self.name}: {self.items} items of {self.taken} taken, {self.records} in the file ({kinds or 'none'})"
        ]
        pictures = f"  {self.images} images, {self.videos} videos, {self.missing} of them missing"
        out.append(pictures + (f", {self.unreadable} cannot be read" if self.unreadable else ""))
        if self.splits_outside:
            out.append(f"  {self.splits_outside} clips lie outside of their video")
        for (file, kind), count in sorted(self.problems.by_kind.items(), key=lambda pair: -pair[1]):
            out.append(f"  {count} x {kind}: {self.problems.examples[file, kind][0]}")
        return out + [f"  {example}" for example in self.examples]


@dataclass(frozen=True, slots=True)
class MixtureReport:
    """Reports of all entries, and notes about the list itself."""

    entries: tuple[EntryReport, ...]
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return all(entry.ok for entry in self.entries)

    @property
    def items(self) -> int:
        return sum(entry.items for entry in self.entries)

    def to_dict(self) -> dict[str, Any]:
        return {
            "ok": self.ok,
            "items": self.items,
            "missing": sum(entry.missing for entry in self.entries),
            "entries": [entry.to_dict() for entry in self.entries],
            "notes": list(self.notes),
        }

    def lines(self) -> list[str]:
        head = f"{self.items} items of {sum(entry.taken for entry in self.entries)} records"
        return [head, *(line for entry in self.entries for line in entry.lines()), *self.notes]


def check_mixture(
    mixture: Mixture | Path | str, seed: int = 0, media: bool = True, open_videos: bool = False
) -> MixtureReport:
    """Read every item that the list takes. media: look for its picture; open_videos: open it, too (slow).

    DataError only for a list that cannot be read.
    """
    if not isinstance(mixture, Mixture):
        mixture = read_mixture(mixture)
    reports = tuple(_check_entry(mixture, entry, seed, media, open_videos) for entry in mixture.entries)
    return MixtureReport(reports, tuple(_notes(mixture)))


def _check_entry(mixture: Mixture, entry: Entry, seed: int, media: bool, open_videos: bool) -> EntryReport:
    report = EntryReport(entry.name, entry.json_path, entry.data_folder)
    folder = mixture.find(entry.data_folder)
    try:
        index = index_records(mixture.find(entry.json_path), report.problems)
    except DataError as error:
        report.failure = str(error)
        return report
    if media and not folder.is_dir():
        report.failure = f"there is no folder {folder} (data_folder)"
    rows = entry.share(len(index), seed)
    report.records, report.taken = len(index), len(rows)
    seen: dict[str, int | None] = {}  # path -> frames, None where it is missing or was not opened
    for row in rows:
        try:
            raw = index.read(int(row))
            report.text_only += is_text_only(raw)
            item = parse_item(raw)
        except RecordError as error:
            report.problems.add(error)
            continue
        report.items += 1
        report.kinds[item.kind] += 1
        if item.path not in seen:
            report.images += item.is_image
            report.videos += not item.is_image
            seen[item.path] = _look(report, item, folder, media, open_videos) if not report.failure else None
        frames = seen[item.path]
        if frames is not None and item.split is not None and item.split[1] >= frames:
            report.splits_outside += 1
            _example(
                report, f"record {row}: {item.path} has {frames} frames, meta.split is {list(item.split)}"
            )
    return report


def _look(report: EntryReport, item: Item, folder: Path, media: bool, open_videos: bool) -> int | None:
    """Is the picture there? Its number of frames, where it was opened."""
    path = folder / item.path
    if not media:
        return None
    try:
        there = path.is_file()
    except OSError:  # a name too long for the disk is a name that is not there
        there = False
    if not there:
        report.missing += 1
        _example(report, f"missing: {item.path}")
        return None
    if not open_videos:
        return None
    from tubelet.video import open_video

    try:
        video = open_video(path)
    except VideoError as error:
        report.unreadable += 1
        _example(report, str(error))
        return None
    if video.is_image != item.is_image:
        report.unreadable += 1
        _example(report, f"{item.path} is named as {'an image' if item.is_image else 'a video'} and is none")
        return None
    return video.n_frames


def _example(report: EntryReport, text: str) -> None:
    if len(report.examples) < 3 * EXAMPLES:
        report.examples.append(text)


def _notes(mixture: Mixture) -> list[str]:
    """What the published reader would understand in another way."""
    folders: dict[str, str] = {}
    out = []
    for entry in mixture.entries:
        if not entry.source:
            out.append(f"{entry.json_path} has no source: the published reader ignores its data_folder")
        elif folders.setdefault(entry.source, entry.data_folder) != entry.data_folder:
            out.append(
                f"source {entry.source} has two data folders: the published reader takes the last one for all its items"
            )
    return out
