"""Flickr30k Entities: five captions per image, with boxes for their phrases.

    train.txt, val.txt, test.txt    ids of images, one per line
    Sentences/ID.txt                one caption per line: [/EN#12/people A cook] lifts [/EN#13/other a lid] .
    Annotations/ID.xml              PASCAL VOC: size; objects named by chain ids, with a bndbox, or scene / nobndbox

- a number after # is a chain: the same thing in several captions. Chain 0 ("notvisual") has no boxes.
- xmin to ymax are pixels that count from 1, both ends included: edges are xmin - 1, ymin - 1, xmax, ymax.
- a chain has several boxes where the phrase means several things; scenes and things that cannot be seen have none.
- each caption is a record (dgc): its words, and a target per box, in the order of the phrases (`name`: the phrase).
  `tasks=("rec",)` gives a record per phrase that has exactly one box instead, `tasks=("dgc", "rec")` both.
- captions that do not belong to their image are in UNRELATED_CAPTIONS; that file is not read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from tubelet.datasets.boxes import box_rows, from_pixels
from tubelet.datasets.fields import Item, RecordError
from tubelet.datasets.layout import FileSpec, check_split, find_file
from tubelet.datasets.problems import OnError, attempt, handle, unique
from tubelet.datasets.reading import stream_lines
from tubelet.datasets.record import Record, Target, VideoRef
from tubelet.errors import DataError

NAME = "flickr30k-entities"
SPLITS = ("train", "val", "test")
TASKS = ("dgc", "rec")
SOURCE = "github.com/BryanPlummer/flickr30k_entities (annotations.zip and the lists)"
FILES = (
    *(
        FileSpec(
            "list",
            (f"{split}.txt", f"flickr30k_entities/{split}.txt", f"annotations/{split}.txt"),
            f"ids of {split} images",
            SOURCE,
            (split,),
        )
        for split in SPLITS
    ),
    FileSpec("sentences", ("Sentences/*.txt", "*/Sentences/*.txt"), "captions with phrases", SOURCE),
    FileSpec("boxes", ("Annotations/*.xml", "*/Annotations/*.xml"), "boxes of the phrases", SOURCE),
    FileSpec(
        "images",
        ("**/*.jpg",),
        "Flickr30k images, e.g. flickr30k-images/ID.jpg",
        "the Flickr30k page of the University of Illinois, on request; Flickr's terms apply",
        kind="media",
    ),
)
_PHRASE = re.compile(r"\[/EN#(\d+)((?:/[^\s/\]]+)*)\s+([^\]]*)\]")
_MOST = 1 << 22  # bytes of one XML file


@dataclass(frozen=True, slots=True)
class Phrase:
    """chain: the id of the thing; types: as annotated; text: its words."""

    chain: str
    types: tuple[str, ...]
    text: str


@dataclass(frozen=True, slots=True)
class Boxes:
    """Of one image: its size, and edges in pixels by chain."""

    item: Item
    width: int
    height: int
    by_chain: dict[str, list[list[float]]]


def read(
    folder: Path | str, split: str, *, tasks: Sequence[str] = ("dgc",), on_error: OnError = "raise"
) -> Iterator[Record]:
    """Records of `split`, lazily, an image at a time, in the order of the list."""
    wrong = [task for task in tasks if task not in TASKS]
    if wrong or not tasks:
        raise DataError(f"tasks are {' and '.join(TASKS)}, got {', '.join(map(str, wrong)) or 'none'}")
    listed = find_file(folder, FILES, "list", check_split(split, SPLITS, NAME))
    if listed == Path(folder):
        raise DataError(f"{folder} is a file: give the folder with Sentences and Annotations ({SOURCE})")
    base = _folder_of(Path(folder), "sentences").parent

    def pairs() -> Iterator[tuple[Item, Record | None]]:
        for number, name in stream_lines(listed, on_error):
            here = Item({}, str(listed), f"line {number}")
            if not re.fullmatch(r"\w[\w.-]*", name):
                handle(on_error, here.error("", f"expected the id of an image, got {name!r:.60}"))
                continue
            path = base / "Sentences" / f"{name}.txt"
            try:
                boxes = read_boxes(base / "Annotations" / f"{name}.xml")
            except DataError as error:
                handle(on_error, _as_record_error(error, here))
                continue
            try:
                for line, text in stream_lines(path, on_error):
                    item = Item({}, str(path), f"line {line}")
                    for made in _of_caption(split, name, line - 1, text, boxes, tasks):
                        yield item, attempt(on_error, item, partial(made, item))
            except RecordError:
                raise
            except DataError as error:
                handle(on_error, _as_record_error(error, here))

    return unique(pairs(), on_error)


def _folder_of(folder: Path, role: str) -> Path:
    """The folder in which the files of a role lie; DataError where there is none."""
    for spec in FILES:
        if spec.role == role:
            for pattern in spec.patterns:
                found = next(folder.glob(pattern), None)
                if found is not None:
                    return found.parent
            raise DataError(
                f"{folder} has no {spec.what}: looked for {', '.join(spec.patterns)}; from {spec.source}"
            )
    raise DataError(f"no file of role {role!r}")


def parse_caption(item: Item, text: str) -> tuple[str, tuple[tuple[int, Phrase], ...]]:
    """The plain caption, and its phrases with the place of their first character. RecordError for other brackets."""
    plain, phrases, at = "", [], 0
    for found in _PHRASE.finditer(text):
        plain += text[at : found.start()]
        words = " ".join(found[3].split())
        if not words:
            raise item.error("", f"a phrase has words, got {found[0]!r:.60}")
        phrases.append((len(plain), Phrase(found[1], tuple(found[2].split("/")[1:]), words)))
        plain += words
        at = found.end()
    plain += text[at:]
    if "[/EN#" in plain:
        raise item.error("", f"a phrase is [/EN#chain/type words], got {plain!r:.80}")
    return plain.strip(), tuple(phrases)


def read_boxes(path: Path) -> Boxes:
    """The boxes of one image. RecordError for what is no annotation; entities are not resolved."""
    try:
        with path.open("rb") as file:
            data = file.read(_MOST + 1)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    item = Item({}, str(path), "")
    if len(data) > _MOST or b"<!DOCTYPE" in data or b"<!ENTITY" in data:
        raise item.error("", "expected a small XML file without declarations")
    try:
        root = ElementTree.fromstring(data)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise item.error("", f"not XML ({error!s:.80})") from None
    size = root.find("size")
    if size is None:
        raise item.error("size", "is missing")
    width, height = (_whole(item, size, f"size.{key}", 1) for key in ("width", "height"))
    by_chain: dict[str, list[list[float]]] = {}
    for number, thing in enumerate(root.iter("object")):
        box = thing.find("bndbox")
        if box is None:
            continue
        x0, y0, x1, y1 = (
            _whole(item, box, f"object[{number}].{key}", -10) for key in ("xmin", "ymin", "xmax", "ymax")
        )
        for name in thing.iter("name"):
            by_chain.setdefault((name.text or "").strip(), []).append(
                [x0 - 1.0, y0 - 1.0, float(x1), float(y1)]
            )
    return Boxes(item, width, height, by_chain)


def _whole(item: Item, parent: ElementTree.Element, key: str, least: int) -> int:
    found = (parent.findtext(key.rsplit(".", 1)[-1]) or "").strip()
    if not re.fullmatch(r"-?\d{1,7}", found) or int(found) < least:
        raise item.error(key, f"expected a whole number of at least {least}, got {found!r:.20}")
    return int(found)


def _of_caption(
    split: str, name: str, number: int, text: str, boxes: Boxes, tasks: Sequence[str]
) -> Iterator[partial[Record]]:
    if "dgc" in tasks:
        yield partial(_dense, split, name, number, text, boxes)
    if "rec" in tasks:
        for place in range(len(_PHRASE.findall(text))):
            chain = _PHRASE.findall(text)[place][0]
            if len(boxes.by_chain.get(chain, ())) == 1:
                yield partial(_one, split, name, number, text, boxes, place)


def _image(name: str, boxes: Boxes) -> VideoRef:
    files = tuple(f"{place}{name}.jpg" for place in ("flickr30k-images/", "flickr30k_images/", "images/", ""))
    return VideoRef(name, files, width=boxes.width, height=boxes.height, kind="image")


def _dense(split: str, name: str, number: int, text: str, boxes: Boxes, item: Item) -> Record:
    plain, phrases = parse_caption(item, text)
    targets: list[Target] = []
    notes: list[str] = []
    for _, phrase in phrases:
        rows = boxes.by_chain.get(phrase.chain, [])
        for row in rows:
            target, said = _target(boxes, phrase, row)
            targets.append(target)
            notes += said
    if not plain:
        raise item.error("", "expected a caption, got an empty line")
    if not targets:
        notes.append("boxes-missing: no phrase of this caption has a box")
    return Record(
        dataset=NAME,
        split=split,
        id=f"{name}/{number}",
        task="dgc",
        query="",
        video=_image(name, boxes),
        targets=tuple(targets),
        answer=plain,
        source={"file": Path(item.file).name, "record": item.where},
        extra={
            "phrases": [
                {"first_character": at, "chain": p.chain, "types": list(p.types), "text": p.text}
                for at, p in phrases
            ]
        },
        notes=tuple(dict.fromkeys(notes)),
    )


def _one(split: str, name: str, number: int, text: str, boxes: Boxes, place: int, item: Item) -> Record:
    plain, phrases = parse_caption(item, text)
    phrase = phrases[place][1]
    target, notes = _target(boxes, phrase, boxes.by_chain[phrase.chain][0])
    return Record(
        dataset=NAME,
        split=split,
        id=f"{name}/{number}/{place}",
        task="rec",
        query=phrase.text,
        video=_image(name, boxes),
        targets=(target,),
        source={"file": Path(item.file).name, "record": item.where, "chain": phrase.chain},
        tags={"types": list(phrase.types)},
        extra={"caption": plain},
        notes=tuple(notes),
    )


def _target(boxes: Boxes, phrase: Phrase, row: list[float]) -> tuple[Target, list[str]]:
    pixels = box_rows(boxes.item, "bndbox", [row], "xyxy")
    fractions, unit, notes = from_pixels(boxes.item, "bndbox", pixels, boxes.width, boxes.height)
    return Target(fractions, unit, np.zeros(1, dtype=np.int64), id=phrase.chain, name=phrase.text), notes


def _as_record_error(error: DataError, here: Item) -> RecordError:
    return error if isinstance(error, RecordError) else here.error("", str(error))
