"""Files of a dataset that its reader can do without: found by name like the others, None where there is none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tubelet.datasets.layout import FileSpec, find_all
from tubelet.errors import DataError


def optional_file(
    folder: Path, files: Sequence[FileSpec], role: str, split: str | None = None
) -> Path | None:
    """The one file of this role, None where there is none; DataError where there are several."""
    patterns = [
        pattern
        for spec in files
        if spec.role == role and (split is None or not spec.splits or split in spec.splits)
        for pattern in spec.patterns
    ]
    found = find_all(folder, patterns)
    if len(found) > 1:
        names = ", ".join(str(path.relative_to(folder)) for path in found[:4])
        raise DataError(f"{folder} has several files for {role}: {names}; keep one")
    return found[0] if found else None
