"""RefCOCO, RefCOCO+, RefCOCOg: pickles are refused, refs are joined with boxes, xywh pixels become fractions."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
from pathlib import Path
from typing import Any

import dataset_files as files
import pytest
from annotation_help import codes, fails, one
from hypothesis import given
from hypothesis import strategies as st
from test_dataset_fuzz import FUZZ, changed, must_survive

from tubelet.datasets import read, refcoco
from tubelet.datasets.problems import Problems
from tubelet.datasets.record import Record
from tubelet.errors import DataError


def ref(**changes: Any) -> dict[str, Any]:
    return {
        "sent_ids": [0, 1],
        "file_name": "COCO_train2014_000000581857_16.jpg",
        "ann_id": 1719310,
        "ref_id": 0,
        "image_id": 581857,
        "split": "testA",
        "sentences": [
            {"tokens": ["lady"], "raw": "THE LADY", "sent_id": 0, "sent": "the lady"},
            {"tokens": ["blue"], "raw": "blue shirt", "sent_id": 1, "sent": "blue shirt"},
        ],
        "category_id": 1,
        **changes,
    }


def instances(**changes: Any) -> dict[str, Any]:
    box = {"bbox": [64.0, 48.0, 128.0, 96.5], "image_id": 581857, "category_id": 1, "id": 1719310}
    image = {"file_name": "COCO_train2014_000000581857.jpg", "height": 480, "width": 640, "id": 581857}
    return {
        "info": {},
        "images": [{"id": 1, "file_name": "x.jpg", "height": 2, "width": 2}, image],
        "annotations": [{**box, "id": 5, "segmentation": [[1.0] * 6]}, {**box, **changes}],
    }


def make(folder: Path, *refs: dict[str, Any], data: str = "refcoco", by: str = "unc", **changes: Any) -> Path:
    files.write_json(folder / data / "instances.json", instances(**changes))
    files.write_json(folder / data / f"refs({by}).json", list(refs))
    return folder


def mdetr(**changes: Any) -> dict[str, Any]:
    image = {"file_name": "COCO_train2014_000000581857.jpg", "height": 480, "width": 640, "id": 0}
    images = [
        {**image, "original_id": 581857, "caption": "the lady", **changes},
        {**image, "id": 1, "caption": "b"},
    ]
    box = {"bbox": [64.0, 48.0, 128.0, 96.5], "category_id": 1, "iscrowd": 0}
    return {"info": {}, "images": images, "annotations": [{**box, "id": k, "image_id": k} for k in (0, 1)]}


def test_a_record_per_sentence(tmp_path: Path) -> None:
    lady, blue = read("refcoco", make(tmp_path, ref()), "refcoco_testA")
    assert (lady.id, lady.task, lady.query, lady.extra["raw"]) == ("0-0", "rec", "the lady", "THE LADY")
    assert (blue.id, blue.query) == ("0-1", "blue shirt")
    (target,) = lady.targets
    assert target.boxes_xyxy.tolist() == [
        pytest.approx([0.1, 0.1, 0.3, 144.5 / 480])
    ]  # xywh -> xyxy, fractions
    assert (target.unit, target.frame_index.tolist()) == ("fraction", [0])  # type: ignore[union-attr]
    assert (lady.video.id, lady.video.kind) == ("581857", "image")
    assert (lady.video.width, lady.video.height) == (640, 480)
    assert lady.video.files[0] == "train2014/COCO_train2014_000000581857.jpg"  # not the ref's ..._16.jpg
    assert lady.video.files[-1] == "train2017/000000581857.jpg"
    assert lady.source["ann_id"] == 1719310
    assert lady.labelled


def test_splits_of_data_sets_and_authors(tmp_path: Path) -> None:
    for data, by in (("refcoco", "unc"), ("refcoco", "google"), ("refcoco+", "unc"), ("refcocog", "umd")):
        refs = [
            ref(ref_id=k, split=split, sentences=[{"sent_id": k, "sent": f"{data} {by} {split}", "raw": "x"}])
            for k, split in enumerate(("train", "val", "test", "testA", "testB"))
        ]
        make(tmp_path, *refs, data=data, by=by)
    for split, said in {
        "refcoco_val": "refcoco unc val",
        "refcoco_testB": "refcoco unc testB",
        "refcoco_google_test": "refcoco google test",
        "refcoco+_testA": "refcoco+ unc testA",
        "refcocog_test": "refcocog umd test",
    }.items():
        assert one(read("refcoco", tmp_path, split)).query == said
    inside = tmp_path / "refcoco+"  # the folder of one data set is as good, that of another is not
    assert one(read("refcoco", inside, "refcoco+_val")).query == "refcoco+ unc val"
    with pytest.raises(DataError, match="has no sentences of refcoco_val"):
        read("refcoco", inside, "refcoco_val")
    with pytest.raises(DataError, match=r"has no sentences of refcocog_google_val.*refs\(google\)\.json"):
        read("refcoco", tmp_path, "refcocog_google_val")
    for split in ("val", "refcocog_testA", "refcoco+_google_val"):
        with pytest.raises(DataError, match="splits are"):
            read("refcoco", tmp_path, split)


class _Bomb:
    """What a hostile pickle does: it runs a command when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    folder = tmp_path / "refcoco"
    files.write_json(folder / "instances.json", instances())
    (folder / "refs(unc).p").write_bytes(pickle.dumps(_Bomb(tmp_path / "boom")))
    with pytest.raises(
        DataError, match=r"is a pickle, which can run any program.*python3 -c .*refs\(unc\)\.json"
    ):
        read("refcoco", tmp_path, "refcoco_testA")
    fails("refcoco", folder / "refs(unc).p", "refcoco_testA", "not JSON")
    assert not (tmp_path / "boom").exists()


def test_the_command_that_converts_a_pickle_works(tmp_path: Path) -> None:
    folder = make(tmp_path, ref())
    path = folder / "refcoco" / "refs(unc).json"
    expected = json.loads(path.read_text())
    path.unlink()
    (path.parent / "refs(unc).p").write_bytes(pickle.dumps(expected, protocol=2))
    subprocess.run(refcoco.CONVERT, shell=True, check=True, cwd=path.parent)
    assert json.loads(path.read_text()) == expected
    assert len(list(read("refcoco", folder, "refcoco_testA"))) == 2


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"ann_id": 7}, r"record 0: field ann_id: 7 is no annotation of instances.json"),
        ({"image_id": 7}, "field image_id: 7 is no image of instances.json"),
        ({"image_id": 1}, "field ann_id: 1719310 is on image 581857, the ref is on image 1"),
        ({"split": "tset"}, "field split: expected test"),
        ({"split": None}, "field split"),
        ({"sentences": []}, "field sentences: expected at least one"),
        ({"sentences": [{"sent_id": 1, "sent": " "}]}, r"field sentences\[0\].sent: expected text"),
        ({"ref_id": "x"}, "field ref_id: expected a number"),
    ],
)
def test_broken_refs(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    fails("refcoco", make(tmp_path, ref(**changes)), "refcoco_testA", says)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"bbox": [1, 2, -3, 4]}, r"instances.json, record 1: field bbox\[0\]: expected width and height"),
        ({"bbox": [0.1, 0.2, 0.3, 0.4]}, "look like fractions"),
        ({"bbox": [5000, 5000, 10, 10]}, "wholly outside the 640 x 480 frame"),
        ({"bbox": [1, 2, 3]}, "expected a box of four numbers"),
        ({"id": None}, "field id: expected a number, got None"),
    ],
)
def test_broken_boxes(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    fails("refcoco", make(tmp_path, ref(), **changes), "refcoco_testA", says)


def test_boxes_over_the_edge_are_clipped_and_noted(tmp_path: Path) -> None:
    record = next(read("refcoco", make(tmp_path, ref(), bbox=[600, 400, 60, 80.5]), "refcoco_testA"))
    assert codes(record) == ["box-outside"]
    assert record.targets[0].boxes_xyxy[0].tolist() == pytest.approx([600 / 640, 400 / 480, 1, 1])


def test_instances_must_be_there(tmp_path: Path) -> None:
    folder = make(tmp_path, ref())
    (folder / "refcoco" / "instances.json").unlink()
    with pytest.raises(DataError, match=r"boxes of refcoco \(instances.json\)"):
        read("refcoco", folder, "refcoco_testA")
    files.write_json(folder / "refcoco" / "instances.json", {"images": []})
    fails("refcoco", folder, "refcoco_testA", "has no key 'annotations'")


def test_mdetr_layout(tmp_path: Path) -> None:
    path = files.write_json(tmp_path / "mdetr_annotations" / "finetune_refcocog_val.json", mdetr())
    first, second = read("refcoco", tmp_path, "refcocog_val")
    assert (first.id, first.query, first.video.id) == ("mdetr-0", "the lady", "581857")
    assert first.targets[0].boxes_xyxy.tolist() == [pytest.approx([0.1, 0.1, 0.3, 144.5 / 480])]
    assert second.video.id == "COCO_train2014_000000581857.jpg"  # no original_id
    assert [record.id for record in read("refcoco", path, "refcocog_val")] == ["mdetr-0", "mdetr-1"]
    renamed = path.rename(tmp_path / "mine.json")
    assert [record.id for record in read("refcoco", renamed, "refcocog_val")] == ["mdetr-0", "mdetr-1"]
    double = mdetr()
    double["annotations"][1]["image_id"] = 0
    problems = Problems()
    assert list(read("refcoco", files.write_json(renamed, double), "refcocog_val", on_error=problems)) == []
    assert {"has several annotations", "has no annotation"} == {
        text.split("image ")[1][2:].split(":")[0] for kept in problems.examples.values() for text in kept
    }


def test_real_layout_sample() -> None:
    """One real image, annotation and ref (of different objects): they do not join until they are made to."""
    path = files.real("refcoco") / "refer_layout_sample.json"
    fails("refcoco", path, "refcoco_train", r"field refs\[0\].ann_id: 1719310 is no annotation")
    assert list(read("refcoco", path, "refcoco_testA")) == []
    problems = Problems()
    assert list(read("refcoco", path, "refcoco_train", on_error=problems)) == []
    assert problems.count == 3  # one per sentence


def test_real_image_annotation_and_ref_joined(tmp_path: Path) -> None:
    sample = json.loads((files.real("refcoco") / "refer_layout_sample.json").read_text())
    sample["refs"][0] |= {"ann_id": 3007, "image_id": 98304}
    whole = files.write_json(tmp_path / "one.json", sample)
    files.write_json(tmp_path / "refcoco" / "instances.json", sample["instances"])
    files.write_json(tmp_path / "refcoco" / "refs(unc).json", sample["refs"])

    def check(records: list[Record]) -> None:
        assert [record.query for record in records] == [
            "the lady with the blue shirt",
            "lady with back to us",
            "blue shirt",
        ]
        x, y, w, h = 263.87, 216.88, 21.13, 15.17
        expected = [x / 640, y / 424, (x + w) / 640, (y + h) / 424]
        for record in records:
            assert record.targets[0].boxes_xyxy[0].tolist() == pytest.approx(expected)
            assert record.video.files[0] == "train2014/COCO_train2014_000000098304.jpg"
            assert record.notes == ()

    check(list(read("refcoco", whole, "refcoco_train")))
    check(list(read("refcoco", tmp_path, "refcoco_train")))


@pytest.mark.parametrize(
    "name", ["refer_sample_expressions_testA", "grefexp_sample_results_comprehension.400"]
)
def test_real_prediction_files_are_not_taken_for_truth(name: str) -> None:
    path = files.real("refcoco") / f"{name}.json"
    fails("refcoco", path, "refcoco_testA", 'expected ("instances" and "refs"|a JSON object)')


@FUZZ
@given(st.data())
def test_no_json_raises_anything_but_tubelets_errors(tmp_path: Path, data: st.DataObject) -> None:
    refs, boxes = [ref(), ref(ref_id=1, ann_id=5)], instances()
    if data.draw(st.booleans()):
        refs = changed(refs, data)
    else:
        boxes = changed(boxes, data)
    files.write_json(tmp_path / "refcoco" / "refs(unc).json", refs)
    files.write_json(tmp_path / "refcoco" / "instances.json", boxes)
    must_survive("refcoco", tmp_path, "refcoco_testA")
    whole: Any = {"refs": copy.deepcopy(refs), "instances": boxes}
    must_survive("refcoco", files.write_json(tmp_path / "one.json", changed(whole, data)), "refcoco_testA")
    must_survive(
        "refcoco", files.write_json(tmp_path / "finetune_x.json", changed(mdetr(), data)), "refcocog_val"
    )
