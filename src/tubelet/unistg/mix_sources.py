"""What a mixture is drawn from: a build's samples, datasets, conversations, or rows that are instructions already.

    for one in read_source(MixSource("didemo", "data/didemo"), seed=0, on_error=problems): ...   # Instruction | Drop

A source is "samples" (samples.jsonl of `tubelet unistg build`, or its folder), "conversations" (LLaVA's layout,
tasks.py), "rows" (rows.py), or a dataset of `tubelet.datasets`: refcoco gives boxes (rec), the others sentences with
times (vtg). Paths of pictures are written one way ("./a.mp4" and "sub\\\\a.mp4" are a.mp4 and sub/a.mp4), behind the
source's `prefix`; one that does not lie below a folder is a drop of stage "mix", "bad-path".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from tubelet.datasets import DATASETS, check_options, read
from tubelet.datasets.fields import RecordError
from tubelet.datasets.problems import OnError, handle
from tubelet.datasets.reading import stream_jsonl
from tubelet.datasets.record import Record
from tubelet.errors import DataError, RecipeError
from tubelet.unistg.captions import normal_path
from tubelet.unistg.instructions import Instruction
from tubelet.unistg.records import Drop, Sample
from tubelet.unistg.rows import read_rows
from tubelet.unistg.tasks import read_general, rec_of_records, stvg_of_sample, vtg_of_records

STAGE = "mix"
_OWN = {"samples": "stvg", "conversations": "general", "rows": ""}
"""Sources that are no datasets, and the task of each ("": every row says its own)."""
_BOXES = ("refcoco",)


@dataclass(frozen=True, slots=True)
class MixSource:
    """source: "samples", "conversations", "rows" or a dataset. path: its file or folder; split: of a dataset.

    task: of a dataset, vtg or rec (default: rec for refcoco, vtg for the others). prefix: where its pictures lie below
    the folder of all pictures. name: in reports (default: source and split). options: of the dataset's reader.
    """

    source: str
    path: str
    split: str = "train"
    task: str = ""
    prefix: str = ""
    name: str = ""
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.source not in (*_OWN, *DATASETS):
            raise RecipeError(
                f"a source is {', '.join(_OWN)} or one of {', '.join(DATASETS)}; got {self.source!r}"
            )
        allowed = ("vtg", "rec") if self.source in DATASETS else (_OWN[self.source],)
        if self.task and self.task not in allowed:
            raise RecipeError(
                f"{self.source} gives {' or '.join(filter(None, allowed)) or 'the tasks of its rows'}, "
                f"not {self.task!r}: leave task out"
            )
        check_options(self.source, self.options)
        if self.prefix and normal_path(self.prefix) is None:
            raise RecipeError(f"a prefix is a folder below that of all pictures, got {self.prefix!r}")

    @property
    def title(self) -> str:
        return self.name or (f"{self.source}-{self.split}" if self.source in DATASETS else self.source)


def read_source(
    source: MixSource, seed: int = 0, on_error: OnError = "raise", media: Path | None = None
) -> Iterator[Instruction | Drop]:
    """Its instructions, and a Drop for each record that is none; lazily, in its order.

    media: the folder of all pictures, to look for them there ("missing-file"); None: nobody looks. Raises DataError
    where the source cannot be read; broken lines go to on_error.
    """
    for one in _raw(source, seed, on_error, media):
        if isinstance(one, Drop) or one.media == "text":
            yield one
            continue
        plain = normal_path(one.path)
        if plain is None:
            yield Drop(
                one.id,
                STAGE,
                "bad-path",
                f"{source.title}: expected a path below a folder, got {one.path!r:.100}",
            )
            continue
        path = str(PurePosixPath(source.prefix.replace("\\", "/")) / plain) if source.prefix else plain
        if media is not None and not _is_file(media / path):
            yield Drop(one.id, STAGE, "missing-file", f"{source.title}: there is no {path}")
            continue
        yield replace(one, path=path)


def _raw(source: MixSource, seed: int, on_error: OnError, media: Path | None) -> Iterator[Instruction | Drop]:
    path = Path(source.path)
    if source.source == "samples":
        yield from _samples(path / "samples.jsonl" if path.is_dir() else path, seed, on_error)
    elif source.source == "conversations":
        yield from read_general(path, source.name or None, seed, on_error)
    elif source.source == "rows":
        yield from read_rows(path, on_error)
    else:
        records: Iterable[Record] = read(
            source.source, path, source.split, on_error=on_error, **source.options
        )
        if media is not None:
            records = (_found(record, media / source.prefix) for record in records)
        task = source.task or ("rec" if source.source in _BOXES else "vtg")
        yield from rec_of_records(records, seed) if task == "rec" else vtg_of_records(records, seed)


def _samples(path: Path, seed: int, on_error: OnError) -> Iterator[Instruction]:
    for item in stream_jsonl(path, on_error):
        try:
            yield stvg_of_sample(Sample.from_dict(item.data), seed)
        except (DataError, ValueError, TypeError, KeyError) as error:
            handle(on_error, RecordError(item.file, item.where, "", f"no sample of a build: {error!s:.150}"))


def _found(record: Record, folder: Path) -> Record:
    """The record with the one of its video's possible paths that is there."""
    there = record.video.find(folder)
    if there is None:
        return record
    return replace(record, video=replace(record.video, files=(there.relative_to(folder).as_posix(),)))


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name too long for the disk is a name that is not there
        return False
