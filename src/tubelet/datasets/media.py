"""Finding the videos and images of records, however a user has unpacked them. Looks at names, never into files."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

from tubelet.datasets.record import VideoRef
from tubelet.errors import DataError

EXTENSIONS = frozenset(
    {".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".flv", ".wmv", ".ts", ".3gp", ".ogv"}
    | {".gif", ".jpg", ".jpeg", ".png", ".bmp", ".webp"}
)


class MediaIndex:
    """Every media file under one or more folders, by name and by name without extension.

    A `VideoRef` is found by its own candidate paths first, then by the name of a candidate anywhere below, then by
    its id as a name without extension. Two files of one name: the first in order of path is taken.
    """

    def __init__(self, *folders: Path | str) -> None:
        self.folders = tuple(Path(folder) for folder in folders)
        self._names: dict[str, Path] = {}
        self._stems: dict[str, Path] = {}
        self.count = 0
        for folder in self.folders:
            if not folder.is_dir():
                raise DataError(f"{folder} is not a folder: give the folder with the videos")
            for root, below, names in os.walk(folder):
                below.sort()
                for name in sorted(names):
                    stem, extension = os.path.splitext(name)  # noqa: PTH122 - a million names: no Path objects
                    if extension.lower() in EXTENSIONS and not name.startswith("."):
                        self.count += 1
                        path = Path(root) / name
                        self._names.setdefault(name, path)
                        self._stems.setdefault(stem, path)

    def find(self, video: VideoRef) -> Path | None:
        for folder in self.folders:
            found = video.find(folder)
            if found is not None:
                return found
        for name in (PurePosixPath(file).name for file in video.files):
            if name in self._names:
                return self._names[name]
        name = PurePosixPath(video.id).name
        return self._names.get(name) or self._stems.get(name)
