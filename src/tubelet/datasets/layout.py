"""Where the files of a dataset lie under its folder, as data: `FileSpec`, and finding them.

A dataset's `FILES` says what it is made of. Patterns are globs relative to the data folder, best first, because
people unpack and rename the same files differently. This module looks only at names, never into files.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tubelet.errors import DataError


@dataclass(frozen=True, slots=True)
class FileSpec:
    """One file (or one kind of file) of a dataset.

    role: how the reader asks for it. patterns: globs, best first. what: in words. source: where it is to be had,
    with its terms where they are known. splits: which splits need it, () for all. kind: "annotation" files are
    read, "media" are videos or images. required: False where the reader can do without.
    """

    role: str
    patterns: tuple[str, ...]
    what: str
    source: str
    splits: tuple[str, ...] = ()
    kind: Literal["annotation", "media"] = "annotation"
    required: bool = True


def find_all(folder: Path | str, patterns: Iterable[str]) -> list[Path]:
    """Files of the first pattern that has any, sorted."""
    base = Path(folder)
    for pattern in patterns:
        try:
            found = sorted(path for path in base.glob(pattern) if path.is_file())
        except OSError as error:
            raise DataError(f"cannot look into {base}: {error.strerror or error}") from error
        if found:
            return found
    return []


def find_file(folder: Path | str, files: Sequence[FileSpec], role: str, split: str | None = None) -> Path:
    """The one annotation file of this role (and split); DataError says what was looked for and where it is had.

    `folder` may be the file itself. Several files of one pattern are a DataError too: which is meant is not guessed.
    """
    specs = [s for s in files if s.role == role and (split is None or not s.splits or split in s.splits)]
    if not specs:
        raise DataError(f"no file of role {role!r} for split {split!r}")
    spec = specs[0]
    base = Path(folder)
    if not base.exists():
        raise DataError(f"{base} does not exist: give the folder with {spec.what} ({spec.source})")
    if base.is_file():
        return base
    found = find_all(base, spec.patterns)
    if not found:
        raise DataError(
            f"{base} has no {spec.what}: looked for {', '.join(spec.patterns)}; it is to be had from {spec.source}"
        )
    if len(found) > 1:
        names = ", ".join(str(path.relative_to(base)) for path in found[:4])
        raise DataError(f"{base} has several of {spec.what}: {names}; keep one")
    return found[0]


def check_split(split: str, splits: Sequence[str], dataset: str) -> str:
    """`split` if the dataset has it, else a DataError that lists the splits."""
    if split not in splits:
        raise DataError(f"{dataset} has no split {split!r}; splits are {', '.join(splits)}")
    return split
