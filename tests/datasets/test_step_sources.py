"""Steps and captions with times: HiREST, InternVid-G, COIN, YouCook2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dataset_files as files
import pytest
from annotation_help import codes, fails, one, write_lines

from tubelet.datasets import read
from tubelet.errors import DataError
from tubelet.tube import Span


def hirest(folder: Path, **more: Any) -> Path:
    step = {"index": 0, "heading": " fold the corner ", "absolute_bounds": [10, 22]}
    video = {"relevant": True, "clip": True, "v_duration": 90.5, "bounds": [10, 80], "steps": [step]}
    whole = {"relevant": True, "clip": False, "v_duration": 50.0, "bounds": [0, 0], "steps": []}
    data = {
        "Fold a Boat": {"a.mp4": {**video, **more}, "b.mp4": whole, "c.mp4": {**whole, "relevant": False}}
    }
    files.write_json(folder / "data" / "splits" / "all_data_val.json", data)
    return folder


def test_hirest_moments_and_steps(tmp_path: Path) -> None:
    moment, step = read("hirest", hirest(tmp_path), "val")
    assert (moment.id, moment.query, moment.span) == ("Fold a Boat/a.mp4", "Fold a Boat", Span(10, 80))
    assert (step.id, step.query, step.span) == ("Fold a Boat/a.mp4/0", "fold the corner", Span(10, 22))
    assert (moment.tags, step.tags, step.extra) == (
        {"part": "moment"},
        {"part": "step"},
        {"query": "Fold a Boat"},
    )
    assert (
        moment.video.duration_s == 90.5 and moment.video.files[0] == "videos/a.mp4" and moment.video.id == "a"
    )
    assert one(read("hirest", tmp_path, "val", parts=("step",))).tags == {"part": "step"}
    with pytest.raises(DataError, match="parts are moment and step"):
        read("hirest", tmp_path, "val", parts=("caption",))


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"bounds": [10]}, "expected 2 numbers"),
        ({"bounds": [80, 10]}, "0 <= start <= end"),
        ({"clip": 1}, "true or false"),
        ({"v_duration": 0}, "v_duration"),
        ({"steps": [{"index": 0, "absolute_bounds": [1, 2]}]}, r"steps\[0\].heading: is missing"),
    ],
)
def test_hirest_what_is_wrong_is_said(tmp_path: Path, more: dict[str, Any], says: str) -> None:
    fails("hirest", hirest(tmp_path, **more), "val", says)


def test_hirest_spans_past_the_end_are_kept_and_noted(tmp_path: Path) -> None:
    record = one(read("hirest", hirest(tmp_path, bounds=[10, 99]), "val", parts=("moment",)))
    assert codes(record) == ["span-past-end"] and record.span == Span(10, 99)


def test_internvid_g(tmp_path: Path) -> None:
    row = {"video": "a.mp4", "duration": 90.5, "caption": "a dog runs", "start_sec": 12.0, "end_sec": 15.5}
    write_lines(
        tmp_path / "train.jsonl", [{**row, "neg_start_sec": 3, "neg_end_sec": 60}, row, {**row, "video": "b"}]
    )
    first, second, third = read("internvid-g", tmp_path, "train")
    assert (first.id, second.id, third.id) == ("a/0", "a/1", "b/0")
    assert (first.query, first.span, first.extra) == (
        "a dog runs",
        Span(12, 15.5),
        {"negative_s": [3.0, 60.0]},
    )
    assert first.video.files[0] == "videos/a.mp4" == third.video.files[0].replace("b", "a")
    write_lines(tmp_path / "train.jsonl", [{**row, "start_sec": 20}])
    fails("internvid-g", tmp_path, "train", "0 <= start <= end")


def test_coin_and_youcook2(tmp_path: Path) -> None:
    steps = [
        {"id": "1", "segment": [12.0, 20.0], "label": "fold"},
        {"id": "2", "segment": [21, 30], "label": "cut"},
    ]
    video = {"duration": 90.5, "class": "Boat", "start": 10, "end": 80, "recipe_type": 7, "annotation": steps}
    coin = {"a": {**video, "subset": "training"}, "b": {**video, "subset": "testing"}}
    files.write_json(tmp_path / "COIN.json", {"database": coin})
    records = list(read("coin", tmp_path, "train"))
    assert [(r.id, r.query, r.span) for r in records] == [
        ("a_0", "fold", Span(12, 20)),
        ("a_1", "cut", Span(21, 30)),
    ]
    assert records[0].tags == {"class": "Boat", "recipe_type": "7"}
    assert records[0].video.files[:2] == ("videos/a.mp4", "videos/a.mkv")
    assert {r.video.id for r in read("coin", tmp_path, "test")} == {"b"} and not list(
        read("coin", tmp_path, "val")
    )
    cooking = {"subset": "validation", "duration": 120.5, "recipe_type": "7"}
    cooking["annotations"] = [{"id": 0, "segment": [10, 22], "sentence": "peel the pear"}]
    files.write_json(tmp_path / "youcookii_annotations_trainval.json", {"database": {"v": cooking}})
    record = one(read("youcook2", tmp_path, "val"))
    assert (record.query, record.span, record.video.duration_s) == ("peel the pear", Span(10, 22), 120.5)
    assert record.video.files[0] == "raw_videos/validation/7/v.mp4"
    cooking["annotations"] = [{"id": 0, "segment": [10, 22]}]
    files.write_json(tmp_path / "youcookii_annotations_trainval.json", {"database": {"v": cooking}})
    fails("youcook2", tmp_path, "val", r"annotations\[0\].sentence: is missing")
    files.write_json(tmp_path / "COIN.json", coin)
    fails("coin", tmp_path, "train", "has no key 'database'")
