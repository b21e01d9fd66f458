"""The two JSON layouts of the RefCOCO family: refs joined with instances, and MDETR's files. See `refcoco`.

Both yield one record per sentence with one box: xywh pixels become xyxy fractions of the image. `Part` says of which
split they are. Polygons are most of these files; they are read past and never kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from tubelet.datasets.boxes import box_rows, from_pixels
from tubelet.datasets.fields import Item, RecordError
from tubelet.datasets.problems import OnError, attempt, handle, unique
from tubelet.datasets.reading import stream_items
from tubelet.datasets.record import Record, Target, VideoRef


@dataclass(frozen=True, slots=True)
class Part:
    """One split: the name it has here, the data set, who split it, and what a ref's `split` says."""

    split: str
    data: str
    by: str
    part: str


KNOWN = frozenset(
    {"train", "val", "test", "testA", "testB", "testC", "testAB", "testBC", "testAC", "testABC"}
)
"""What a ref's `split` may say; anything else is a problem, not another split."""

_NEEDED = ("id", "image_id", "bbox", "category_id", "file_name", "width", "height")


def _of_split(refs: Iterable[Item], part: Part, on_error: OnError) -> Iterator[Item]:
    """Refs of this split; one whose `split` is no split at all is a problem in every one."""
    for ref in refs:
        try:
            found = ref.text("split")
            if found not in KNOWN:
                raise ref.error("split", f"expected {', '.join(sorted(KNOWN)[-5:])}, got {found!r:.40}")
        except RecordError as error:
            handle(on_error, error)
            continue
        if found == part.part:
            yield ref


def join(
    refs: Iterable[Item], images: Iterable[Item], annotations: Iterable[Item], part: Part, on_error: OnError
) -> Iterator[Record]:
    """Records of this part, in the order of `refs`, which is read first; only its boxes and sizes are held."""
    wanted = list(_of_split(refs, part, on_error))
    ann_ids = {key for ref in wanted if isinstance(key := ref.data.get("ann_id"), int)}
    image_ids = {key for ref in wanted if isinstance(key := ref.data.get("image_id"), int)}
    boxes = _by_id(annotations, ann_ids, on_error)
    sizes = _by_id(images, image_ids, on_error)

    def pairs() -> Iterator[tuple[Item, Record | None]]:
        for ref in wanted:
            try:
                sentences = ref.children("sentences")
                if not sentences:
                    raise ref.error("sentences", "expected at least one sentence, got none")
            except RecordError as error:
                handle(on_error, error)
                continue
            for sentence in sentences:
                yield (
                    sentence,
                    attempt(on_error, sentence, partial(_record, ref, sentence, boxes, sizes, part)),
                )

    yield from unique(pairs(), on_error)


def _by_id(items: Iterable[Item], ids: set[int], on_error: OnError) -> dict[int, Item]:
    """Items with one of these ids, without what is not needed (polygons are most of the file)."""
    kept: dict[int, Item] = {}
    for item in items:
        try:
            key = item.whole("id")
        except RecordError as error:
            handle(on_error, error)
            continue
        if key in ids:
            data = {name: item.data[name] for name in _NEEDED if name in item.data}
            kept.setdefault(key, Item(data, item.file, item.where, item.path))
    return kept


def _record(ref: Item, sentence: Item, boxes: dict[int, Item], sizes: dict[int, Item], part: Part) -> Record:
    ann, image = ref.whole("ann_id"), ref.whole("image_id")
    if ann not in boxes:
        raise ref.error("ann_id", f"{ann} is no annotation of instances.json")
    if image not in sizes:
        raise ref.error("image_id", f"{image} is no image of instances.json")
    box = boxes[ann]
    if box.has("image_id") and box.whole("image_id") != image:
        raise ref.error("ann_id", f"{ann} is on image {box.whole('image_id')}, the ref is on image {image}")
    target, notes = _target(box, sizes[image], str(ann))
    number, sent = ref.whole("ref_id"), sentence.whole("sent_id")
    return Record(
        dataset="refcoco",
        split=part.split,
        id=f"{number}-{sent}",
        task="rec",
        query=sentence.text("sent"),
        video=_image(sizes[image], image),
        targets=(target,),
        source={
            "file": Path(ref.file).name,
            "ref_id": number,
            "sent_id": sent,
            "ann_id": ann,
            "image_id": image,
        },
        tags={"data": part.data, "part": part.part, "category_id": _category(ref)},
        extra={"raw": sentence.text("raw", "")},
        notes=tuple(notes),
    )


def read_mdetr(path: Path, part: Part, on_error: OnError) -> Iterator[Record]:
    """One record per "image"; the two lists run in parallel in the official files, here they are joined by image_id."""
    found: dict[int, Item] = {}
    doubled: set[int] = set()
    for item in stream_items(path, on_error, inside="annotations"):
        try:
            key = item.whole("image_id")
        except RecordError as error:
            handle(on_error, error)
            continue
        if key in found:
            doubled.add(key)
        data = {name: item.data[name] for name in _NEEDED if name in item.data}
        found.setdefault(key, Item(data, item.file, f"annotations, {item.where}"))

    def one(item: Item) -> Record:
        number = item.whole("id")
        if number not in found:
            raise item.error("id", f"image {number} has no annotation")
        if number in doubled:
            raise item.error(
                "id", f"image {number} has several annotations: one box per sentence was expected"
            )
        target, notes = _target(found[number], item, "")
        original = item.whole("original_id") if item.has("original_id") else None
        return Record(
            dataset="refcoco",
            split=part.split,
            id=f"mdetr-{number}",
            task="rec",
            query=item.text("caption"),
            video=_image(item, original),
            targets=(target,),
            source={"file": path.name, "id": number, "image_id": original},
            tags={"data": part.data, "part": part.part, "category_id": _category(found[number])},
            notes=tuple(notes),
        )

    def pairs() -> Iterator[tuple[Item, Record | None]]:
        for item in stream_items(path, on_error, inside="images"):
            yield item, attempt(on_error, item, partial(one, item))

    yield from unique(pairs(), on_error)


def _category(item: Item) -> int | None:
    return item.whole("category_id") if item.has("category_id") else None


def _target(box: Item, image: Item, name: str) -> tuple[Target, list[str]]:
    width, height = image.whole("width", 1, 10**6), image.whole("height", 1, 10**6)
    pixels = box_rows(box, "bbox", [box.items("bbox")], "xywh")
    boxes, unit, notes = from_pixels(box, "bbox", pixels, width, height)
    return Target(boxes, unit, np.array([0]), np.array([0.0]), id=name), notes


def _image(item: Item, image_id: int | None) -> VideoRef:
    """COCO's image; the 2017 release has the same pictures without "COCO_train2014_" in their names."""
    name = PurePosixPath(item.text("file_name")).name
    newer: tuple[str, ...] = (
        (name.removeprefix("COCO_train2014_"),) if name.startswith("COCO_train2014_") else ()
    )
    return VideoRef(
        id=str(image_id) if image_id is not None else name,
        files=(
            *(
                f"{folder}{name}"
                for folder in (
                    "train2014/",
                    "images/train2014/",
                    "images/mscoco/images/train2014/",
                    "images/",
                    "",
                )
            ),
            *(f"train2017/{other}" for other in newer),
        ),
        width=item.whole("width", 1, 10**6),
        height=item.whole("height", 1, 10**6),
        kind="image",
    )
