"""Training data in files: rows of Uni-STG (video, sentence, span, boxes, or a conversation), as batches of SpaceVLLM.

A mixing list (docs/st-align.md, docs/training.md) names .jsonl files of rows (`unistg.rows`) and the folders of their
videos and images. Rows of the same video are learnt together: up to `ItemList.questions` of them are packed behind one
prefix (packed.py), so that a video is decoded and read once for all.

Batch k is a function of k, the list and the seed; every group comes once per epoch. A group that cannot be used is
logged, counted, replaced by the next one that can, and stops the run when there are too many (`item_samples.Broken`).
Knows files and samples; nothing of models.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tubelet.datasets.fields import RecordError
from tubelet.errors import DataError, VideoError
from tubelet.llava_st.item_samples import Broken, sample_or_next
from tubelet.llava_st.mixture import MixedItems, open_mixture
from tubelet.training.recipe import ItemList
from tubelet.training.samples import Sample, Target

if TYPE_CHECKING:
    from tubelet.unistg.instructions import Instruction

log = logging.getLogger(__name__)

_TASK = {"stvg": "stvg", "vtg": "tvg", "rec": "rec", "general": "qa"}
_TOLERANCE_S = 0.5  # how far behind its last frame a span may end: annotations are rounded


@dataclass(frozen=True, slots=True)
class Group:
    """Rows about one picture: (entry of the list, record of its file) of each."""

    folder: Path
    path: str
    rows: tuple[tuple[int, int], ...]


class Groups:
    """All rows of a mixing list, grouped by picture; in the order of the list, at most `questions` in a group.

    Rows are read once to find their pictures, and again, one group at a time, when they are asked for. A row that is
    none makes a group of its own, which is then found broken where it is counted.
    """

    def __init__(self, items: MixedItems, questions: int, seed: int = 0) -> None:
        self.items, self.seed = items, seed
        open_groups: dict[tuple[int, str], list[tuple[int, int]]] = {}
        found: list[tuple[int, str, list[tuple[int, int]]]] = []
        for number in range(len(items)):
            entry, record = items.place(number)
            path = self._path(entry, record)
            rows = open_groups.get((entry, path))
            if not path or rows is None or len(rows) == questions:
                rows = []
                open_groups[entry, path] = rows
                found.append((entry, path, rows))
            rows.append((entry, record))
        self.groups = tuple(Group(items.folders[e], path, tuple(rows)) for e, path, rows in found)

    def _path(self, entry: int, record: int) -> str:
        try:
            path = self.items.files[entry].read(record).data.get("path")
        except RecordError:
            return ""
        return path if isinstance(path, str) else ""

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, number: int) -> Any:
        return self.groups[number]

    def instructions(self, group: Group) -> list[Instruction]:
        """The rows of a group. RecordError for one that is broken."""
        from tubelet.unistg.rows import instruction_of

        return [instruction_of(self.items.files[entry].read(record)) for entry, record in group.rows]

    def order(self, epoch: int) -> npt.NDArray[np.int64]:
        """A shuffled order of all groups; another one in every epoch, the same in every run."""
        return np.random.default_rng([self.seed, epoch, 37]).permutation(len(self)).astype(np.int64)


def open_groups(settings: ItemList, seed: int) -> Groups:
    """DataError names what the list lacks."""
    return Groups(open_mixture(settings.path, seed), settings.questions, seed)


def sample_stream(
    settings: ItemList, frames: int, size: int, seed: int
) -> Callable[[int], tuple[list[Sample], int]]:
    """make(k): the samples of batch k, and how many of them stand in for broken ones."""
    groups = open_groups(settings, seed)
    broken = Broken(settings.broken_share)
    orders: dict[int, npt.NDArray[np.int64]] = {}

    def load(group: Any) -> Sample:
        return load_group(groups.instructions(group), group.folder, frames, size)

    def make(k: int) -> tuple[list[Sample], int]:
        samples, replaced = [], 0
        for at in range(k * settings.batch, (k + 1) * settings.batch):
            number = place(len(groups), groups.order, at, orders)
            before = broken.count
            taken, sample = sample_or_next(groups, number, load, broken)
            if broken.count > before:
                log.warning("%s; group %d stands in", broken.examples[-1], taken)
            replaced += taken != number
            samples.append(sample)
        return samples, replaced

    return make


def place(
    count: int,
    order: Callable[[int], npt.NDArray[np.int64]],
    at: int,
    orders: dict[int, npt.NDArray[np.int64]],
) -> int:
    """Which of `count` groups is the `at`-th of the run; `orders` keeps the order of the epoch at hand."""
    if not count:
        raise DataError("the mixing list holds no rows to learn from")
    epoch, rank = divmod(at, count)
    if epoch not in orders:
        orders.clear()
        orders[epoch] = order(epoch)
    return int(orders[epoch][rank])


# --- from rows to samples -------------------------------------------------------------------------------


def load_group(instructions: Sequence[Instruction], folder: Path, frames: int, size: int) -> Sample:
    """Decode the picture of these instructions and put their truth on its frames.

    frames: T, uniformly sampled as `SpaceVLLMGrounder.encode` does; size: S. VideoError for a file that cannot be
    read or is not what its rows say, DataError for truth that does not fit it.
    """
    from tubelet.video import open_video, read_clip_report, sample_uniform

    first = instructions[0]
    if first.media == "text":
        raise DataError(f"{first.id}: a SpaceVLLM learns from videos and images, this row is text")
    opened = open_video(folder / first.path)
    for one in instructions:
        if (one.media == "image") != opened.is_image:
            found = "an image" if opened.is_image else "a video"
            raise VideoError(f"{opened.path} is named as {one.media} in row {one.id}, but it is {found}")
    grid = sample_uniform(opened, frames)
    clip, _ = read_clip_report(opened, grid, size=(size, size))
    targets = tuple(
        target for one in instructions for target in targets_of(one, grid.times_s, grid.duration_s)
    )
    return Sample(clip.pixels, grid.times_s, grid.duration_s, targets, is_image=opened.is_image)


def targets_of(one: Instruction, times_s: npt.NDArray[np.float64], duration_s: float) -> list[Target]:
    """What is learnt from an instruction on frames at `times_s` (T,): one target, of a conversation one per answer.

    A frame in the span has the box that is interpolated between its neighbours in time; frames before the first and
    after the last box have none. Questions of a conversation are asked one by one: what was said before is not read.
    """
    count = len(times_s)
    nothing = (np.zeros((count, 4)), np.zeros(count, dtype=bool))
    task = _TASK[one.task]
    if task == "qa":
        pairs = zip(one.turns[::2], one.turns[1::2], strict=True)
        return [
            Target("qa", _plain(asked), True, *nothing, active=nothing[1].copy(), answer=answer)
            for (_, asked), (_, answer) in pairs
        ]
    target = Target(task, one.query, True, *nothing, active=nothing[1].copy(), span=one.span)
    if task == "rec":
        box = np.tile(np.array(one.boxes_xyxy[0]), (count, 1))
        return [replace(target, boxes_xyxy=box, has_box=np.ones(count, dtype=bool))]
    assert one.span is not None  # an Instruction is checked
    if one.span.end_s > duration_s + _TOLERANCE_S:
        raise DataError(
            f"{one.id}: its span ends at {one.span.end_s:g} s, after its video ({duration_s:g} s): another video?"
        )
    active = np.asarray(one.span.contains(times_s))
    boxes, has_box = nothing
    if task == "stvg":
        at, known = np.array(one.times_s), np.array(one.boxes_xyxy)
        order = np.argsort(at, kind="stable")
        at, known = at[order], known[order]
        step = float(np.diff(at).max()) if len(at) > 1 else 0.0
        near = max(step, float(np.diff(times_s).max()) if count > 1 else 0.0) / 2
        has_box = active & (times_s >= at[0] - near) & (times_s <= at[-1] + near)
        boxes = np.stack([np.interp(times_s, at, known[:, k]) for k in range(4)], axis=1)
    return [replace(target, boxes_xyxy=boxes * has_box[:, None], has_box=has_box, active=active)]


def _plain(text: str) -> str:
    """A question without the mark of its picture."""
    for mark in ("<video>", "<image>"):
        text = text.replace(mark, "")
    return text.strip()
