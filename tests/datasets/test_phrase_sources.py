"""Phrases with boxes in images: Flickr30k Entities, GranD."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dataset_files as files
import pytest
from annotation_help import codes, fails, one

from tubelet.datasets import read
from tubelet.datasets.fields import Item
from tubelet.datasets.flickr30k_entities import parse_caption
from tubelet.datasets.problems import Problems
from tubelet.errors import DataError

BOX = "<object>{names}<bndbox><xmin>{0}</xmin><ymin>{1}</ymin><xmax>{2}</xmax><ymax>{3}</ymax></bndbox></object>"
NONE = "<object><name>9</name><scene>1</scene><nobndbox>0</nobndbox></object>"


def thing(*box: Any, chains: str = "1") -> str:
    return BOX.format(*box, names="".join(f"<name>{chain}</name>" for chain in chains.split()))


def flickr(folder: Path, caption: str, *things: str, name: str = "7") -> Path:
    for place in ("Sentences", "Annotations"):
        (folder / place).mkdir(exist_ok=True)
    (folder / "val.txt").write_text(f"{name}\n")
    (folder / "Sentences" / f"{name}.txt").write_text(caption + "\n")
    size = "<size><width>100</width><height>50</height><depth>3</depth></size>"
    (folder / "Annotations" / f"{name}.xml").write_text(f"<annotation>{size}{''.join(things)}</annotation>")
    return folder


CAPTION = "[/EN#1/people Two cooks] lift [/EN#2/other a red lid] in [/EN#9/scene a kitchen] ."


def test_flickr30k_captions_with_boxes_behind_their_phrases(tmp_path: Path) -> None:
    things = (thing(1, 1, 50, 50), thing(51, 1, 100, 50), thing(11, 6, 20, 10, chains="2 5"), NONE)
    record = one(read("flickr30k-entities", flickr(tmp_path, CAPTION, *things), "val"))
    assert (record.id, record.task, record.answer) == (
        "7/0",
        "dgc",
        "Two cooks lift a red lid in a kitchen .",
    )
    assert [target.name for target in record.targets] == ["Two cooks", "Two cooks", "a red lid"]
    # pixels count from 1, both ends included
    assert record.targets[0].boxes_xyxy.tolist() == [[0.0, 0.0, 0.5, 1.0]]
    assert record.targets[2].boxes_xyxy.tolist() == [[0.1, 0.1, 0.2, 0.2]]
    assert (record.video.kind, record.video.width, record.video.height) == ("image", 100, 50)
    assert record.video.files[0] == "flickr30k-images/7.jpg" and record.notes == ()
    assert record.extra["phrases"][1] == {
        "first_character": 15,
        "chain": "2",
        "types": ["other"],
        "text": "a red lid",
    }
    only = one(read("flickr30k-entities", tmp_path, "val", tasks=("rec",)))
    assert (only.id, only.task, only.query) == ("7/0/1", "rec", "a red lid")  # two cooks are two boxes
    assert only.tags == {"types": ["other"]} and only.extra["caption"] == record.answer
    assert len(list(read("flickr30k-entities", tmp_path, "val", tasks=("dgc", "rec")))) == 2


def test_flickr30k_without_boxes_is_noted(tmp_path: Path) -> None:
    record = one(read("flickr30k-entities", flickr(tmp_path, CAPTION, NONE), "val"))
    assert codes(record) == ["boxes-missing"] and record.targets == ()


@pytest.mark.parametrize(
    ("caption", "things", "says"),
    [
        ("[/EN#1/people Two cooks lift", (thing(1, 1, 9, 9),), r"a phrase is \[/EN#chain"),
        (CAPTION, (thing(9, 1, 3, 9),), "x0 <= x1"),
        (CAPTION, (thing("a", 1, 3, 9),), "xmin: expected a whole number"),
        (CAPTION, ("<object>",), "not XML"),
        (CAPTION, (thing(901, 1, 950, 9),), "wholly outside"),
    ],
)
def test_flickr30k_what_is_wrong_is_said(
    tmp_path: Path, caption: str, things: tuple[str, ...], says: str
) -> None:
    fails("flickr30k-entities", flickr(tmp_path, caption, *things), "val", says)


def test_flickr30k_files_that_are_not_there(tmp_path: Path) -> None:
    flickr(tmp_path, CAPTION, thing(1, 1, 9, 9))
    (tmp_path / "val.txt").write_text("7\n8\n../up\n")
    problems = Problems()
    assert [r.id for r in read("flickr30k-entities", tmp_path, "val", on_error=problems)] == ["7/0"]
    assert problems.count == 2
    said = " ".join(text for texts in problems.examples.values() for text in texts)
    assert "8.xml" in said and "the id of an image" in said
    (tmp_path / "Annotations" / "7.xml").write_text(
        '<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>'
    )
    fails("flickr30k-entities", tmp_path, "val", "without declarations")
    with pytest.raises(DataError, match="tasks are dgc and rec"):
        read("flickr30k-entities", tmp_path, "val", tasks=("stvg",))


def test_phrases_keep_their_place() -> None:
    plain, phrases = parse_caption(Item({}, "f", "line 1"), "A [/EN#3/other/body hand  here] .")
    assert plain == "A hand here ." and [(at, p.chain, p.types, p.text) for at, p in phrases] == [
        (2, "3", ("other", "body"), "hand here")
    ]


MASK = {"size": [50, 100], "counts": "x"}
THING = {"id": 4, "bbox": [10, 5, 20, 15], "segmentation": MASK}


def test_grand_published(tmp_path: Path) -> None:
    things = [
        {**THING, "labels": ["red_lid"], "attributes": ["Assistant: something else", "a red lid on a pot"]},
        {**THING, "id": 5, "labels": ["cup"], "attributes": "the white one"},
        {**THING, "id": 6, "labels": ["pot"], "attributes": None},
    ]
    details = [
        {"phrase": "a pot", "tokens_positive": [11, 16], "id": 6, "bbox": [50, 10, 100, 50]},
        {"phrase": "a lid", "tokens_positive": [0, 5], "id": 4, "bbox": [10, 5, 20, 15]},
        {"phrase": "on", "tokens_positive": [6, 8], "id": 9, "bbox": None},
    ]
    captions = [{"caption": "a lid on / a pot", "details": details}]
    files.write_json(tmp_path / "sa_1.json", {"sa_1.jpg": {"objects": things, "short_captions": captions}})
    first, second = read("grand", tmp_path, "referring")
    assert (first.id, first.task, first.query) == ("sa_1.jpg/0/0", "rec", "a red lid on a pot")
    assert first.targets[0].boxes_xyxy.tolist() == [[0.1, 0.1, 0.2, 0.3]] and second.query == "the white one"
    assert first.video.files == ("images/sa_1.jpg", "sa_1.jpg") and first.video.width == 100
    caption = one(read("grand", tmp_path, "captions"))
    assert [target.name for target in caption.targets] == ["a lid", "a pot"]  # by their place in the caption
    assert (caption.task, caption.answer, codes(caption)) == ("dgc", "a lid on / a pot", ["boxes-missing"])


def test_grand_prepared_and_without_a_size(tmp_path: Path) -> None:
    row = {"attribute": "a red lid", "id": 4, "bbox": [10, 5, 20, 15], "segmentation": None}
    files.write_json(tmp_path / "referring" / "sa_1.json", {"sa_1.jpg": [row, {**row, "attribute": "a lid"}]})
    first, second = read("grand", tmp_path, "referring")
    assert (first.id, second.id) == ("sa_1.jpg/0", "sa_1.jpg/1")
    assert first.targets[0].unit == "pixel" and first.video.width is None
    with pytest.raises(DataError, match="are these referring expressions"):
        list(read("grand", tmp_path / "referring" / "sa_1.json", "captions"))
    files.write_json(tmp_path / "captions" / "sa_1.json", {"sa_1.jpg": [{"caption": "a lid", "details": []}]})
    assert codes(one(read("grand", tmp_path, "captions"))) == ["boxes-missing"]


@pytest.mark.parametrize(
    ("thing_", "says"),
    [
        ({**THING, "attributes": ["a lid"], "labels": [], "bbox": [1, 2, 3]}, "four numbers"),
        ({**THING, "attributes": ["a lid"], "labels": [], "bbox": [9, 2, 3, 4]}, "x0 <= x1"),
        (
            {**THING, "attributes": ["a lid"], "labels": [], "bbox": [0.1, 0.2, 0.3, 0.4]},
            "look like fractions",
        ),
        ({**THING, "attributes": [3], "labels": []}, r"attributes\[0\]"),
    ],
)
def test_grand_what_is_wrong_is_said(tmp_path: Path, thing_: dict[str, Any], says: str) -> None:
    files.write_json(tmp_path / "sa_1.json", {"sa_1.jpg": {"objects": [thing_], "short_captions": []}})
    fails("grand", tmp_path, "referring", says)
