"""RefCOCO, RefCOCO+, RefCOCOg: sentences for objects in COCO train2014 images (task rec). No video, one box each.

Split names say data set, author of the split where there are two, and split: "refcoco_testA" and "refcoco+_val" (unc),
"refcocog_test" (umd: use it; in "refcocog_google_*" train and val share images), "refcoco_google_test". Two layouts:

    refcoco/instances.json + refcoco/refs(unc).json      the authors'; box = annotation with the ref's ann_id
    finetune_refcoco_testA.json                          MDETR's; one sentence per "image", one annotation each

- **the authors' refs are pickles, and loading a pickle runs whatever its maker put into it: tubelet never does.**
  Convert them once with `CONVERT`, where you trust the file or nothing can be lost (a container without network), or
  take MDETR's files, which need no pickle. One file {"instances": {...}, "refs": [...]} is read as well.
- boxes are xywh pixels, top-left based; here xyxy fractions of the image.
- a ref has no box: join by `ann_id`. Its `file_name` ends in the annotation's number and names no file: ignored.
- a ref has several sentences: one record each. `query` is the cleaned `sent`, the wording as typed is `extra["raw"]`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tubelet.datasets.fields import RecordError
from tubelet.datasets.layout import FileSpec, check_split, find_all, find_file
from tubelet.datasets.optional import optional_file
from tubelet.datasets.problems import OnError, handle
from tubelet.datasets.reading import load_json, stream_items
from tubelet.datasets.record import Record
from tubelet.datasets.refcoco_layouts import Part, join, read_mdetr
from tubelet.errors import DataError

NAME = "refcoco"
CONVERT = (
    "python3 -c \"import json, pickle; json.dump(pickle.load(open('refs(unc).p', 'rb'), encoding='latin1'), "
    "open('refs(unc).json', 'w'))\""
)
"""Shell command that turns a pickle of refs into JSON. It runs whatever the pickle says: only for files you trust."""

_SETS = {
    ("refcoco", "unc"): ("train", "val", "testA", "testB"),
    ("refcoco+", "unc"): ("train", "val", "testA", "testB"),
    ("refcocog", "umd"): ("train", "val", "test"),
    ("refcoco", "google"): ("train", "val", "test"),
    ("refcocog", "google"): ("train", "val"),
}
PARTS = {
    part.split: part
    for (data, by), names in _SETS.items()
    for name in names
    for part in (Part(f"{data}_google_{name}" if by == "google" else f"{data}_{name}", data, by, name),)
}
"""Split -> data set, author of the split, the value of a ref's `split`."""

SPLITS = tuple(PARTS)
SOURCE = "github.com/lichengunc/refer; its refs are pickles, docs/datasets.md says how to convert them"
_MDETR = "github.com/ashkamath/mdetr (mdetr_annotations.tar.gz)"
_FOLDERS = {
    "refcoco": ("refcoco",),
    "refcoco+": ("refcoco+", "refcocoplus"),
    "refcocog": ("refcocog", "refcocoG"),
}


def _under(data: str, file: str) -> tuple[str, ...]:
    return tuple(f"{base}{folder}/{file}" for folder in _FOLDERS[data] for base in ("", "data/"))


FILES = (
    *(
        FileSpec(
            "refs",
            _under(data, f"refs({by}).json"),
            f"sentences of {data}, split by {by}, as JSON",
            SOURCE,
            tuple(part.split for part in PARTS.values() if (part.data, part.by) == (data, by)),
            required=False,  # one layout of two is enough
        )
        for data, by in _SETS
    ),
    *(
        FileSpec(
            "instances",
            _under(data, "instances.json"),
            f"boxes of {data} (instances.json)",
            SOURCE,
            tuple(part.split for part in PARTS.values() if part.data == data),
            required=False,
        )
        for data in _FOLDERS
    ),
    *(
        FileSpec(
            "mdetr",
            tuple(
                f"{folder}finetune_{part.data}_{part.part}.json"
                for folder in ("mdetr_annotations/", "OpenSource/", "annotations/", "")
            ),
            f"sentences and boxes of {part.data} {part.part} in MDETR's layout",
            _MDETR,
            (part.split,),
            required=False,
        )
        for part in PARTS.values()
        if part.by != "google"
    ),
    FileSpec(
        "images",
        ("**/COCO_train2014_*.jpg", "**/train2017/*.jpg"),
        "COCO train2014 images, e.g. train2014/COCO_train2014_000000098304.jpg",
        "cocodataset.org (train2014.zip)",
        kind="media",
    ),
)


def read(folder: Path | str, split: str, *, on_error: OnError = "raise") -> Iterator[Record]:
    """Records of `split` in file order; `folder` may be one file with all of it (MDETR's, or instances and refs).

    The authors' layout is taken where both are there. Boxes and sizes of the split are held in memory; the first record
    comes after instances.json has been read through.
    """
    part = PARTS[check_split(split, SPLITS, NAME)]
    base = Path(folder)
    if not base.exists():
        raise DataError(f"{base} does not exist: give the folder that holds {part.data}/ ({SOURCE})")
    if base.is_file():
        if base.name.startswith("finetune_"):
            return read_mdetr(base, part, on_error)
        return _read_whole(base, part, on_error)
    if base.resolve().name in _FOLDERS[part.data]:
        base = base.resolve().parent  # DIR/refcoco is as good as DIR
    refs = optional_file(base, FILES, "refs", split)
    if refs is not None:
        return _read_refs(refs, find_file(base, FILES, "instances", split), part, on_error)
    mdetr = optional_file(base, FILES, "mdetr", split)
    if mdetr is not None:
        return read_mdetr(mdetr, part, on_error)
    pickles = find_all(base, _under(part.data, f"refs({part.by}).p"))
    if pickles:
        raise DataError(
            f"{pickles[0]} is a pickle, which can run any program when it is loaded, so tubelet does not load it: if "
            f"you trust it, convert it once in its folder: {CONVERT.replace('unc', part.by)}"
        )
    mdetr_name = "" if part.by == "google" else f", and for finetune_{part.data}_{part.part}.json ({_MDETR})"
    raise DataError(
        f"{base} has no sentences of {split}: looked for {part.data}/refs({part.by}).json with "
        f"{part.data}/instances.json (from {SOURCE}){mdetr_name}"
    )


def _read_refs(refs: Path, instances: Path, part: Part, on_error: OnError) -> Iterator[Record]:
    images = stream_items(instances, on_error, inside="images")
    annotations = stream_items(instances, on_error, inside="annotations")
    yield from join(stream_items(refs, on_error), images, annotations, part, on_error)


def _read_whole(path: Path, part: Part, on_error: OnError) -> Iterator[Record]:
    """One file with "instances" and "refs" (loaded whole, to be joined), or MDETR's under another name (streamed)."""
    try:
        whole = load_json(path)
        if not whole.has("refs") and not whole.has("images"):
            raise whole.error(
                "", 'expected "instances" and "refs", or "images" and "annotations" as MDETR has'
            )
        refs = whole.children("refs") if whole.has("refs") else None
        instances = whole.child("instances") if refs is not None else whole
        images, annotations = instances.children("images"), instances.children("annotations")
    except RecordError as error:
        handle(on_error, error)
        return
    if refs is None:
        yield from read_mdetr(path, part, on_error)
    else:
        yield from join(refs, images, annotations, part, on_error)
