"""`data_check`: what is there, what is missing, what is broken, with counts and examples, and nothing written."""

from __future__ import annotations

import json
from pathlib import Path

import dataset_files as files
import numpy as np
import pytest
from PIL import Image

from tubelet.datasets.check import data_check
from tubelet.datasets.media import MediaIndex
from tubelet.datasets.record import VideoRef
from tubelet.errors import DataError
from tubelet.video import write_video


def clip(path: Path, frames: int = 12, width: int = 64, height: int = 48, fps: int = 6) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, np.zeros((frames, height, width, 3), dtype=np.uint8), fps=fps)
    return path


def bostvg_folder(folder: Path, **changes: object) -> Path:
    """Three clips of 12 frames, 64 x 48: a.mp4 and b.mp4 are there, c.mp4 is missing."""
    small = {
        "width": 64,
        "height": 48,
        "img_num": 12,
        "fps": 6,
        "st_frame": 3,
        "end_frame": 4,
        "st_time": 2 / 6,
        "ed_time": 4 / 6,
        "bbox": [{"id": 0, "bbox": [[0, 0, 10, 10]] * 2, "temp": [2, 4]}],
    }
    item = files.bostvg(**{**small, **changes})
    files.write_json(folder / "annos" / "test.json", dict.fromkeys(("a.mp4", "b.mp4", "c.mp4"), item))
    clip(folder / "videos" / "a.mp4")
    clip(folder / "videos" / "b.mp4")
    return folder


def test_a_complete_folder_is_ok(tmp_path: Path) -> None:
    folder = bostvg_folder(tmp_path)
    clip(folder / "elsewhere" / "deep" / "c.mp4")  # unpacked in another way: found by its name
    before = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))
    report = data_check("bostvg", folder)
    assert report.ok, report.render()
    (split,) = report.splits  # train is not there, so test is checked
    assert (split.split, split.records, split.tasks, split.labelled, split.boxes) == (
        "test",
        3,
        {"stvg": 3},
        3,
        6,
    )
    assert (split.videos, split.videos_found, split.opened, split.differs.count) == (3, 3, 3, 0)
    assert report.render().endswith("all there, nothing broken")
    assert "absent   train annotations" in report.render()
    assert sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*")) == before


def test_missing_and_unreadable_and_different_videos(tmp_path: Path) -> None:
    folder = bostvg_folder(tmp_path, img_num=13)
    (folder / "videos" / "b.mp4").write_bytes(b"not a video")
    report = data_check("bostvg", folder, ["test"])
    (split,) = report.splits
    assert (split.videos_found, split.videos_missing.count, split.videos_missing.examples) == (
        2,
        1,
        ["videos/c.mp4"],
    )
    assert (split.unreadable.count, split.differs.count) == (1, 1)
    assert "a.mp4: the annotation says 13 frames, it has 12" in split.differs.examples[0]
    assert not report.ok
    assert report.render().endswith("not complete: 1 missing video, 1 unreadable video")
    assert data_check("bostvg", folder, ["test"], probe=0).splits[0].opened == 0


def test_broken_records_are_counted_with_first_examples(tmp_path: Path) -> None:
    good = files.hcstvg_v1()
    data = {f"{k}.mp4": files.hcstvg_v1(st_frame=0) for k in range(5)} | {"x.mp4": good, "y.mp4": 3}
    files.write_json(tmp_path / "train.json", data)
    report = data_check("hcstvg-v1", tmp_path)
    (split,) = report.splits
    assert (split.records, split.problems) == (1, 6)
    tally = split.problem_kinds["train.json: st_frame"]
    assert (tally.count, len(tally.examples)) == (5, 3)
    text = report.render()
    assert "BROKEN   5 x train.json: st_frame" in text
    assert "key '0.mp4': field st_frame: expected a number from 1" in text
    assert json.loads(json.dumps(report.to_dict()))["ok"] is False


def test_repairs_are_counted_by_code(tmp_path: Path) -> None:
    late = files.hcstvg_v1(st_frame=598, st_time=None, ed_time=None)
    files.write_json(tmp_path / "train.json", {"a.mp4": late, "b.mp4": late, "10__Gvp-cj3bmIY.mp4": late})
    notes = data_check("hcstvg-v1", tmp_path).splits[0].notes
    assert {code: tally.count for code, tally in notes.items()} == {"span-past-end": 3, "known-missing": 1}
    assert notes["span-past-end"].examples[0] == "a.mp4: the tube ends with frame 602 of 600"


def test_an_empty_folder_says_what_is_needed_and_where_it_is_had(tmp_path: Path) -> None:
    report = data_check("vidstg", tmp_path)
    assert len(report.missing) == 5  # three splits, trajectories, videos
    text = report.render()
    assert text.count("MISSING") == 5
    assert "github.com/Guaranteer/VidSTG-Dataset" in text
    assert "xdshang.github.io" in text
    assert text.endswith("no record read")


def test_wrong_questions_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="datasets are"):
        data_check("nope", tmp_path)
    with pytest.raises(DataError, match="no split nope; splits are train, val, test"):
        data_check("vidstg", tmp_path, ["nope"])
    with pytest.raises(DataError, match="is not a folder"):
        data_check("vidstg", tmp_path / "none")
    with pytest.raises(DataError, match="is not a folder"):
        data_check("vidstg", tmp_path, videos=tmp_path / "none")


def test_videos_may_be_elsewhere_and_a_check_may_be_short(tmp_path: Path) -> None:
    folder = bostvg_folder(tmp_path / "data")
    (folder / "videos").rename(tmp_path / "clips")
    report = data_check("bostvg", folder, ["test"], videos=tmp_path / "clips", limit=2)
    (split,) = report.splits
    assert (split.records, split.videos_found) == (2, 2)
    assert report.ok


@pytest.mark.parametrize(("name", "split", "records"), [("vidstg", "val", 420), ("vue-stg", "test", 300)])
def test_real_slices(name: str, split: str, records: int) -> None:
    report = data_check(name, files.real(name.replace("-", "_")), [split])
    (checked,) = report.splits
    assert (checked.records, checked.labelled, checked.problems) == (records, records, 0)
    assert checked.videos_missing.count == checked.videos > 0
    assert not report.ok


def test_media_are_found_by_path_then_name_then_id(tmp_path: Path) -> None:
    for place in ("b/x.mp4", "a/y.webm", "z/.hidden.mp4", "z/notes.txt"):
        path = tmp_path / place
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    index = MediaIndex(tmp_path)
    assert index.count == 2
    assert index.find(VideoRef("x", ("b/x.mp4",))) == tmp_path / "b" / "x.mp4"
    assert index.find(VideoRef("q", ("c/x.mp4",))) == tmp_path / "b" / "x.mp4"
    assert index.find(VideoRef("y", ("c/y.mp4",))) == tmp_path / "a" / "y.webm"
    assert index.find(VideoRef("notes", ("z/notes.mp4",))) is None


def touched(folder: Path, *places: str) -> MediaIndex:
    for place in places:
        path = folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return MediaIndex(folder)


def test_media_are_found_under_another_extension_or_none(tmp_path: Path) -> None:
    index = touched(tmp_path, "a/one.MKV", "a/two", "b/three.webm", "b/three.jpg", "b/four.jpg")
    assert index.count == 4  # a name without extension may be anything: it is not counted
    assert index.find(VideoRef("q1", ("v/one.mp4",))) == tmp_path / "a/one.MKV"
    assert index.find(VideoRef("q2", ("v/two.mp4",))) == tmp_path / "a/two"
    assert index.find(VideoRef("two")) == tmp_path / "a/two"
    assert index.find(VideoRef("three.mp4")) == tmp_path / "b/three.webm"  # never the picture of that name
    assert index.find(VideoRef("four", ("v/four.mp4",))) is None
    assert index.find(VideoRef("v/one")) == tmp_path / "a/one.MKV"
    assert index.find(VideoRef("5")) is None


def test_a_map_of_segments_is_not_the_image(tmp_path: Path) -> None:
    index = touched(tmp_path, "maps/7.png", "maps/8.png", "images/8.JPEG", "clips/7.mp4")
    assert index.find(VideoRef("7", ("train/7.jpg",), kind="image")) is None
    assert index.find(VideoRef("8", ("train/8.jpg",), kind="image")) == tmp_path / "images/8.JPEG"
    assert index.find(VideoRef("7", kind="image")) == tmp_path / "maps/7.png"  # where nothing says which
    assert index.find(VideoRef("7", ("x.mp4",))) == tmp_path / "clips/7.mp4"


def refcoco_folder(folder: Path) -> Path:
    """Four images of 64 x 48: a JPEG, a PNG, one that is missing and one that is not an image."""
    names = [f"COCO_train2014_{k:012}.{'png' if k == 2 else 'jpg'}" for k in (1, 2, 3, 4)]
    images = [{"id": k, "file_name": name, "width": 64, "height": 48} for k, name in enumerate(names)]
    boxes = [{"id": k, "image_id": k, "category_id": 1, "bbox": [8, 8, 16, 12]} for k in range(4)]
    refs = [
        {
            "ref_id": k,
            "ann_id": k,
            "image_id": k,
            "category_id": 1,
            "split": "val",
            "file_name": "",
            "sent_ids": [k],
        }
        | {"sentences": [{"sent_id": k, "sent": f"thing {k}", "raw": "x", "tokens": []}]}
        for k in range(4)
    ]
    files.write_json(folder / "refcoco" / "instances.json", {"images": images, "annotations": boxes})
    files.write_json(folder / "refcoco" / "refs(unc).json", refs)
    picture = Image.fromarray(np.full((48, 64, 3), 200, dtype=np.uint8))
    (folder / "train2014").mkdir()
    picture.save(folder / "train2014" / "COCO_train2014_000000000001.jpg")
    picture.save(folder / "train2014" / "COCO_train2014_000000000002.png")
    (folder / "train2014" / "COCO_train2014_000000000004.jpg").write_bytes(b"no picture")
    return folder


def test_images_are_opened_too(tmp_path: Path) -> None:
    folder = refcoco_folder(tmp_path)
    report = data_check("refcoco", folder, ["refcoco_val"])
    (split,) = report.splits
    assert (split.records, split.tasks, split.boxes, split.kind) == (4, {"rec": 4}, 4, "image")
    assert (split.videos, split.videos_found, split.opened) == (4, 3, 3)
    assert split.videos_missing.examples == ["train2014/COCO_train2014_000000000003.jpg"]
    assert (split.unreadable.count, split.differs.count) == (1, 0)
    assert "COCO_train2014_000000000004.jpg" in split.unreadable.examples[0]
    text = report.render()
    assert "4 images" in text and "MISSING  1 x image" in text and "BROKEN   1 x image cannot be read" in text
    assert text.endswith("not complete: 1 missing image, 1 unreadable image")
    assert "finetune_refcoco+_train.json" not in text  # of splits that were not asked for
    picture = Image.fromarray(np.zeros((48, 64, 3), dtype=np.uint8))
    picture.save(folder / "train2014" / "COCO_train2014_000000000003.jpg")
    picture.resize((32, 24)).save(folder / "train2014" / "COCO_train2014_000000000004.jpg")
    report = data_check("refcoco", folder, ["refcoco_val"])
    assert report.ok and report.splits[0].opened == 4
    assert report.splits[0].differs.examples == [
        "COCO_train2014_000000000004.jpg: the annotation says 64 x 48 pixels, it has 32 x 24"
    ]


def test_a_picture_where_a_video_is_expected_and_the_other_way_round(tmp_path: Path) -> None:
    folder = bostvg_folder(tmp_path / "a")
    Image.fromarray(np.zeros((48, 64, 3), dtype=np.uint8)).save(folder / "videos" / "b.png")
    (folder / "videos" / "b.png").replace(folder / "videos" / "b.mp4")
    differs = data_check("bostvg", folder, ["test"]).splits[0].differs
    assert differs.examples == ["b.mp4: the annotation says a video, it is an image"]
    folder = refcoco_folder(tmp_path / "b")
    clip(folder / "x.mp4").replace(folder / "train2014" / "COCO_train2014_000000000001.jpg")
    differs = data_check("refcoco", folder, ["refcoco_val"]).splits[0].differs
    assert differs.examples == [
        "COCO_train2014_000000000001.jpg: the annotation says an image, it is a video of 12 frames"
    ]
