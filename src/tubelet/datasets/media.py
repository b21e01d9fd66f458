"""Finding the videos and images of records, however a user has unpacked them. Looks at names, never into files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from tubelet.datasets.record import VideoRef
from tubelet.errors import DataError

VIDEO_EXTENSIONS = frozenset(
    {".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".flv", ".wmv", ".ts", ".3gp", ".ogv"}
    | {".gif"}
)
IMAGE_EXTENSIONS = frozenset({".gif", ".jpg", ".jpeg", ".png", ".bmp", ".webp"})
EXTENSIONS = VIDEO_EXTENSIONS | IMAGE_EXTENSIONS


class MediaIndex:
    """Every media file under one or more folders, by name and by name without extension.

    A `VideoRef` is found by its own candidate paths first, then by the name of a candidate anywhere below, then by
    a candidate's name with another extension, then by its id as a name without extension. A video may have any
    extension of a video, or none at all (as some downloaders leave it); an image only another spelling of its own
    (a .png beside a .jpg is often a map of its segments, not the picture). Two files of one name: the first in order
    of path is taken.
    """

    def __init__(self, *folders: Path | str) -> None:
        self.folders = tuple(Path(folder) for folder in folders)
        self._names: dict[str, Path] = {}
        self._stems: dict[tuple[str, str], Path] = {}  # (kind of file, name without extension)
        self.count = 0
        for folder in self.folders:
            if not folder.is_dir():
                raise DataError(f"{folder} is not a folder: give the folder with the videos")
            for root, below, names in os.walk(folder):
                below.sort()
                for name in sorted(names):
                    stem, extension = os.path.splitext(name)  # noqa: PTH122 - a million names: no Path objects
                    kinds = _kinds(extension)
                    if not kinds or name.startswith("."):
                        continue
                    path = Path(root) / name
                    for kind in kinds:
                        self._stems.setdefault((kind, stem), path)
                    if extension:
                        self.count += 1
                        self._names.setdefault(name, path)

    def find(self, video: VideoRef) -> Path | None:
        """The file of a video or image; None where there is none."""
        for folder in self.folders:
            found = video.find(folder)
            if found is not None:
                return found
        for name in (PurePosixPath(file).name for file in video.files):
            if name in self._names:
                return self._names[name]
        own = PurePosixPath(video.id).name
        if own in self._names:
            return self._names[own]
        return next((self._stems[key] for key in _other_names(video) if key in self._stems), None)


def _kinds(extension: str) -> tuple[str, ...]:
    """Under which kinds of file a name is listed: "video", an image's own extension, "bare" without one."""
    known = extension.lower()
    if not known:
        return ("bare",)
    kinds = ("video",) if known in VIDEO_EXTENSIONS else ()
    return (*kinds, _image_kind(known)) if known in IMAGE_EXTENSIONS else kinds


def _image_kind(extension: str) -> str:
    return ".jpg" if extension == ".jpeg" else extension


def _other_names(video: VideoRef) -> Iterator[tuple[str, str]]:
    """Names without extension that would do, best first."""
    own = PurePosixPath(video.id).name
    stems = dict.fromkeys([*(PurePosixPath(file).stem for file in video.files), own])
    if _kinds(PurePosixPath(own).suffix) not in ((), ("bare",)):
        stems[PurePosixPath(own).stem] = None  # the id is a file name
    if video.kind == "image":
        said = dict.fromkeys(_image_kind(PurePosixPath(file).suffix.lower()) for file in video.files)
        kinds = [kind for kind in said if kind in IMAGE_EXTENSIONS] or [
            ".jpg",
            ".png",
            ".webp",
            ".bmp",
            ".gif",
        ]
    else:
        kinds = ["video", "bare"]
    for kind in kinds:
        for stem in stems:
            yield kind, stem
