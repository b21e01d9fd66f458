"""`tubelet data check NAME DIR`: what is there, what is missing, what is broken, and where the files are to be had.

`data_check` reads every annotation (as a user of the dataset would), counts records, repairs and problems, looks
for every video by name, and opens a few of them. It writes and downloads nothing. `CheckReport.render` is the text
for a terminal, `to_dict` the same as JSON, `ok` says whether an evaluation can run on all of it.
"""

from __future__ import annotations

import heapq
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tubelet.datasets import open_dataset
from tubelet.datasets.fields import one_line
from tubelet.datasets.layout import FileSpec, find_all
from tubelet.datasets.media import MediaIndex
from tubelet.datasets.problems import EXAMPLES, Problems
from tubelet.datasets.record import Record, VideoRef
from tubelet.errors import DataError, VideoError


@dataclass(slots=True)
class Tally:
    """How often something was seen, and the first examples."""

    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, example: str) -> None:
        self.count += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append(one_line(example))


@dataclass(slots=True)
class FileReport:
    """One `FileSpec` and what was found of it. needed: required, and of a split that was checked."""

    role: str
    what: str
    source: str
    splits: tuple[str, ...]
    kind: str
    required: bool
    patterns: tuple[str, ...]
    found: list[str] = field(default_factory=list)
    n_found: int = 0
    needed: bool = True


@dataclass(slots=True)
class SplitReport:
    """One split: counts of what was read, repaired (notes by code), broken, and of its videos (or images: `kind`)."""

    split: str
    not_read: str = ""
    records: int = 0
    tasks: dict[str, int] = field(default_factory=dict)
    labelled: int = 0
    boxes: int = 0
    kind: str = "video"
    videos: int = 0
    videos_found: int = 0
    videos_missing: Tally = field(default_factory=Tally)
    notes: dict[str, Tally] = field(default_factory=dict)
    problems: int = 0
    problem_kinds: dict[str, Tally] = field(default_factory=dict)
    opened: int = 0
    unreadable: Tally = field(default_factory=Tally)
    differs: Tally = field(default_factory=Tally)


@dataclass(slots=True)
class CheckReport:
    """What `data_check` found."""

    dataset: str
    folder: str
    files: list[FileReport]
    splits: list[SplitReport]

    @property
    def missing(self) -> list[FileReport]:
        """Needed files of which nothing was found."""
        return [file for file in self.files if file.needed and not file.n_found]

    @property
    def ok(self) -> bool:
        """Every file is there, every record could be read, every video is there and those opened could be read."""
        return not self.missing and all(
            not (s.not_read or s.problems or s.videos_missing.count or s.unreadable.count) and s.records
            for s in self.splits
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "dataset": self.dataset,
            "folder": self.folder,
            "ok": self.ok,
            "files": [asdict(file) for file in self.files],
            "splits": [asdict(split) for split in self.splits],
        }

    def render(self) -> str:
        """Plain text, ending with one line that says whether all is well."""
        out = [f"{self.dataset} in {self.folder}", "", "files"]
        for file in self.files:
            out += _file_lines(file)
        for split in self.splits:
            out += ["", *_split_lines(split)]
        out += ["", self._verdict()]
        return "\n".join(out)

    def _verdict(self) -> str:
        if self.ok:
            return "all there, nothing broken"
        broken = sum(split.problems for split in self.splits)
        absent = sum(split.videos_missing.count for split in self.splits)
        unreadable = sum(split.unreadable.count for split in self.splits)
        kinds = {split.kind for split in self.splits if split.records}
        kind = kinds.pop() if len(kinds) == 1 else "video"
        parts = [
            f"{len(self.missing)} kind{'s' * (len(self.missing) != 1)} of file missing"
            if self.missing
            else "",
            f"{broken} broken record{'s' * (broken != 1)}" if broken else "",
            f"{absent} missing {kind}{'s' * (absent != 1)}" if absent else "",
            f"{unreadable} unreadable {kind}{'s' * (unreadable != 1)}" if unreadable else "",
            "" if any(split.records for split in self.splits) else "no record read",
        ]
        return f"not complete: {', '.join(part for part in parts if part) or 'see above'}"


def data_check(
    name: str,
    folder: Path | str,
    splits: Sequence[str] | None = None,
    *,
    videos: Path | str | None = None,
    probe: int = 4,
    limit: int | None = None,
) -> CheckReport:
    """Check a dataset on disk.

    Args:
        name: a name of `tubelet.datasets.DATASETS`.
        folder: the data folder. videos: where the videos are, when not below it.
        splits: which; None checks all whose annotation files are there (all, when none is).
        probe: how many videos per split are opened (chosen by their id, the same every time); 0 opens none.
        limit: stop after this many records per split.

    Raises DataError for an unknown dataset or split and a folder that does not exist; everything else is reported.
    """
    module = open_dataset(name)
    base = Path(folder)
    if not base.is_dir():
        raise DataError(f"{base} is not a folder: give the folder that holds the files of {module.NAME}")
    unknown = set(splits or ()) - set(module.SPLITS)
    if unknown:
        raise DataError(
            f"{module.NAME} has no split {', '.join(sorted(unknown))}; splits are {', '.join(module.SPLITS)}"
        )
    files = [_look(spec, base, videos) for spec in module.FILES]
    wanted = tuple(splits) if splits else _splits_there(files, module.SPLITS)
    for file in files:
        file.needed = file.required and (not file.splits or not set(file.splits).isdisjoint(wanted))
    if splits:  # what is there, and what belongs to these
        files = [f for f in files if f.n_found or not f.splits or not set(f.splits).isdisjoint(wanted)]
    media = MediaIndex(*((base,) if videos is None else (Path(videos), base)))
    checked = [_check_split(module, base, split, media, probe, limit) for split in wanted]
    return CheckReport(str(module.NAME), str(base), files, checked)


def _look(spec: FileSpec, base: Path, videos: Path | str | None) -> FileReport:
    places = [base] if videos is None or spec.kind != "media" else [Path(videos), base]
    found: list[Path] = []
    for place in places:
        found = found or find_all(place, spec.patterns)
    return FileReport(
        spec.role,
        spec.what,
        spec.source,
        spec.splits,
        spec.kind,
        spec.required,
        spec.patterns,
        [str(path) for path in found[:EXAMPLES]],
        len(found),
    )


def _splits_there(files: list[FileReport], splits: Sequence[str]) -> tuple[str, ...]:
    """Splits for which every annotation file of their own is there; all splits when there is none."""
    own = [file for file in files if file.kind == "annotation" and file.splits]
    there = tuple(
        split
        for split in splits
        if any(split in file.splits and file.n_found for file in own)
        or not any(split in file.splits for file in own)
    )
    return there or tuple(splits)


def _check_split(
    module: Any, base: Path, split: str, media: MediaIndex, probe: int, limit: int | None
) -> SplitReport:
    report, problems = SplitReport(split), Problems()
    tasks: Counter[str] = Counter()
    seen: set[str] = set()
    sample: list[tuple[int, str, Path, VideoRef]] = []  # the `probe` videos whose ids hash lowest
    try:
        for record in module.read(base, split, on_error=problems):
            report.records += 1
            tasks[record.task] += 1
            report.labelled += record.labelled
            report.boxes += sum(len(target) for target in record.targets)
            for note in record.notes:
                code, _, said = note.partition(":")
                report.notes.setdefault(code, Tally()).add(f"{record.id}: {said.strip()}")
            if record.video.id not in seen:
                seen.add(record.video.id)
                report.kind = record.video.kind
                _find(record, media, report, sample, probe)
            if limit is not None and report.records >= limit:
                break
    except DataError as error:
        report.not_read = str(error)
    report.tasks = dict(sorted(tasks.items()))
    report.videos = len(seen)
    report.problems = problems.count
    for (file, kind), count in problems.by_kind.items():
        report.problem_kinds[f"{Path(file).name}: {kind}"] = Tally(count, problems.examples[file, kind])
    for _, _, path, video in sorted(sample, key=lambda entry: entry[1]):
        _open(path, video, report)
    return report


def _find(
    record: Record,
    media: MediaIndex,
    report: SplitReport,
    sample: list[tuple[int, str, Path, VideoRef]],
    probe: int,
) -> None:
    path = media.find(record.video)
    if path is None:
        wanted = record.video.files[0] if record.video.files else record.video.id
        report.videos_missing.add(wanted)
        return
    report.videos_found += 1
    if probe > 0:
        entry = (-zlib.crc32(record.video.id.encode("utf-8", "replace")), record.video.id, path, record.video)
        if len(sample) < probe:
            heapq.heappush(sample, entry)
        elif entry[:2] > sample[0][:2]:
            heapq.heapreplace(sample, entry)


def _open(path: Path, video: VideoRef, report: SplitReport) -> None:
    """Open one video or image and compare it with what its annotation says."""
    from tubelet.video import open_video

    report.opened += 1
    try:
        there = open_video(path)
    except VideoError as error:
        report.unreadable.add(str(error))
        return
    says = []
    if (video.kind == "image") != there.is_image:
        is_a = "an image" if there.is_image else f"a video of {there.n_frames} frames"
        says.append(f"{'an' if video.kind == 'image' else 'a'} {video.kind}, it is {is_a}")
    if video.width is not None and (video.width, video.height) != (there.width, there.height):
        says.append(f"{video.width} x {video.height} pixels, it has {there.width} x {there.height}")
    if video.kind == "video" and not there.is_image:
        if video.frame_count is not None and video.frame_count != there.n_frames:
            says.append(f"{video.frame_count} frames, it has {there.n_frames}")
        if video.fps is not None and abs(video.fps - there.fps) > video.fps / 500:
            says.append(f"{float(video.fps):.3f} fps, it has {float(there.fps):.3f}")
        if video.duration_s is not None and abs(video.duration_s - there.duration_s) > 0.5:
            says.append(f"{video.duration_s:.2f} s, it has {there.duration_s:.2f} s")
    if says:
        report.differs.add(f"{path.name}: the annotation says {'; '.join(says)}")


def _file_lines(file: FileReport) -> list[str]:
    if file.n_found:
        more = f" and {file.n_found - 1} more" if file.n_found > 1 else ""
        return [f"  there    {file.what}: {file.found[0]}{more}"]
    head = "MISSING" if file.needed else "absent "
    shown = ", ".join(file.patterns[:3]) + (", ..." if len(file.patterns) > 3 else "")
    return [
        f"  {head}  {file.what}",
        f"           looked for {shown}",
        f"           to be had from {file.source}",
    ]


def _split_lines(split: SplitReport) -> list[str]:
    if split.not_read and not split.records:
        return [f"split {split.split}: not read", f"  {split.not_read}"]
    tasks = ", ".join(f"{count} {task}" for task, count in split.tasks.items())
    out = [
        f"split {split.split}: {split.records} records ({tasks or 'none'}), {split.labelled} with truth, "
        f"{split.boxes} boxes, {split.videos} {split.kind}s"
    ]
    if split.not_read:
        out.append(f"  STOPPED  {split.not_read}")
    out.append(f"  {split.kind + 's':8} {split.videos_found} of {split.videos} found, {split.opened} opened")
    out += _tally_lines("MISSING", split.kind, split.videos_missing)
    out += _tally_lines("BROKEN", f"{split.kind} cannot be read", split.unreadable)
    out += _tally_lines("differs", f"{split.kind} is not what its annotation says", split.differs)
    for kind, tally in split.problem_kinds.items():
        out += _tally_lines("BROKEN", kind, tally)
    for code, tally in sorted(split.notes.items()):
        out += _tally_lines("noted", code, tally)
    return out


def _tally_lines(head: str, what: str, tally: Tally) -> list[str]:
    if not tally.count:
        return []
    lines = [f"  {head:8} {tally.count} x {what}", *(f"             {example}" for example in tally.examples)]
    return [*lines, "             ..."] if tally.count > len(tally.examples) else lines
