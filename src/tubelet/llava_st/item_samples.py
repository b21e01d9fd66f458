"""From an `Item` and the folder of its picture to what training needs: frames, when they are, and turns with values.

Frames are taken and resized as in `grounder.encode` (sampling.py, published rule; a square picture, the aspect ratio is
not kept), so that a model sees in training what it sees when it is asked. `meta.split` limits them to its frames, both
ends included.

A sample that cannot be used (missing or damaged file, clip outside of the video, broken item) is counted in a `Broken`
and the next one of the list taken instead, always the same; too many of them are an error, not a different data set.
Knows nothing of tokenizers, models and the training loop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from tubelet.errors import DataError, QueryError, VideoError
from tubelet.frames import FrameGrid
from tubelet.llava_st.coordinates import Worded
from tubelet.llava_st.items import Item
from tubelet.llava_st.mixture import Drawn
from tubelet.llava_st.readout import clock_of
from tubelet.llava_st.sampling import sample_frames
from tubelet.tube import Span
from tubelet.video import Video, open_video, read_clip_report


@dataclass(frozen=True, slots=True, eq=False)
class ItemSample:
    """An item, decoded.

    pixels: uint8 (T, S, S, 3) RGB. positions: (T,) fractions of the clip, 0 the first and 1 the last sampled frame; of
    a single frame [0]. grid: the distinct frames that `rows` (T,) repeat (in short videos of mode official). turns:
    ("human" or "gpt", text and values) for `prompts.training_ids`. notes: frames for which a neighbour stands in.
    """

    item: Item
    pixels: npt.NDArray[np.uint8]
    positions: npt.NDArray[np.float64]
    turns: tuple[tuple[str, Worded], ...]
    grid: FrameGrid
    rows: npt.NDArray[np.int64]
    notes: tuple[str, ...] = ()

    @property
    def is_image(self) -> bool:
        return self.item.is_image


def load_sample(item: Item, folder: Path | str, frames: int, size: int, repeat: bool = False) -> ItemSample:
    """Decode an item's picture.

    Args:
        folder: the data folder that the item's path is below.
        frames: T of a video, fewer where it has fewer; repeat: exactly `frames`, short ones repeated (mode official).
        size: S in pixels.

    Raises VideoError for a file that is missing, cannot be read or is no image (video), and for a clip outside of it.
    """
    opened = open_video(Path(folder) / item.path)
    if opened.is_image != item.is_image:
        named, found = ("image", "a video") if item.is_image else ("video", "an image")
        raise VideoError(f"{opened.path} is named as {named} in its item, but it is {found}")
    window = split_window(opened, item.split) if item.split is not None else None
    grid, rows = sample_frames(opened, frames, window, repeat and not item.is_image)
    clip, report = read_clip_report(opened, grid, size=(size, size))
    notes = report.notes
    positions = np.zeros(len(grid))
    if len(grid) > 1:
        clock = clock_of(grid)
        positions = np.array([clock.fraction(float(at)) for at in grid.times_s])
    return ItemSample(item, clip.pixels[rows], positions[rows], item.worded(), grid, rows, notes)


def split_window(video: Video, split: tuple[int, int]) -> Span:
    """The time of frames first to last, both included. VideoError when they are not all in the video."""
    first, last = split
    if not 0 <= first <= last < video.n_frames:
        raise VideoError(
            f"meta.split is frames {first} to {last}, both included, but {video.path.name} has frames 0 to "
            f"{video.n_frames - 1}"
        )
    end_s = video.duration_s if last + 1 == video.n_frames else float(video.times_s[last + 1])
    return Span(float(video.times_s[first]), end_s)


# --- broken samples ------------------------------------------------------------------------------------


@dataclass(slots=True)
class Broken:
    """How many samples could not be used, and where to stop.

    share: the largest fraction of the samples asked for that may be broken; few: so many are allowed in any case.
    numbers: which ones, each once however often it is asked for. by_error: how many of each class of error.
    """

    share: float = 0.02
    few: int = 20
    asked: int = 0
    numbers: set[int] = field(default_factory=set)
    by_error: dict[str, int] = field(default_factory=dict)
    examples: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1 or self.few < 0:
            raise DataError(f"share is a fraction and few at least 0, got {self.share!r} and {self.few!r}")

    @property
    def count(self) -> int:
        return len(self.numbers)

    def add(self, number: int, error: Exception) -> None:
        """Count a broken sample. DataError when there are too many."""
        if number in self.numbers:
            return
        self.numbers.add(number)
        name = type(error).__name__
        self.by_error[name] = self.by_error.get(name, 0) + 1
        if len(self.examples) < 10:
            self.examples.append(f"sample {number}: {error}")
        if self.count > max(self.few, self.share * self.asked):
            raise DataError(
                f"{self.count} samples of about {self.asked} asked for could not be used, at most {self.share:.0%} "
                f"(or {self.few}) may; check the data with check_mixture. The first: {self.examples[0]}"
            ) from error


class Samples(Protocol):
    """What samples are drawn from: `mixture.MixedItems`, or any sequence of `Drawn`."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int, /) -> Drawn: ...


Loaded = TypeVar("Loaded")


def sample_or_next(
    items: Samples, number: int, load: Callable[[Drawn], Loaded], broken: Broken
) -> tuple[int, Loaded]:
    """load(items[number]); where that fails, of the first one behind it (from the end on to the beginning) that works.

    Returns the number of the sample that was taken, too. Which one that is depends on the data alone, not on what was
    asked before. DataError when `broken` has had enough, or nothing works.
    """
    if not len(items):
        raise DataError("there are no samples to take")
    broken.asked += 1
    for step in range(len(items)):
        at = (number + step) % len(items)
        if at in broken.numbers:
            continue
        try:
            return at, load(items[at])
        except (VideoError, DataError, QueryError) as error:
            broken.add(at, error)
    raise DataError(f"none of the {len(items)} samples can be used; the first: {broken.examples[0]}")
