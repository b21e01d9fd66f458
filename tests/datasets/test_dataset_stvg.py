"""HC-STVG, VidSTG, ST-Align, VUE-STG, V-STaR, BOSTVG, the toy world: every known trap, and the real slices."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import dataset_files as files
import numpy as np
import pytest

from tubelet.datasets import DATASETS, bostvg, open_dataset, read, st_align, vidstg, vstar, vue_stg
from tubelet.datasets.fields import RecordError
from tubelet.datasets.problems import Problems
from tubelet.datasets.record import FrameRange, Record
from tubelet.errors import DataError
from tubelet.tube import Span


def one(records: Iterable[Record]) -> Record:
    (record,) = records
    return record


def codes(record: Record) -> set[str]:
    return {note.partition(":")[0] for note in record.notes}


def hcstvg(folder: Path, version: int = 1, name: str = "55_vfjywN5CN0Y.mp4", **changes: Any) -> Record:
    """The record of one clip with these changes."""
    split, file = ("train", "train.json") if version == 1 else ("val", "val_v2.json")
    made = files.hcstvg_v1(**changes) if version == 1 else files.hcstvg_v2(**changes)
    files.write_json(folder / file, {name: made})
    return one(read(f"hcstvg-v{version}", folder, split))


# --- HC-STVG


def test_hcstvg_counts_frames_from_one_and_gives_xywh_pixels(tmp_path: Path) -> None:
    record = hcstvg(tmp_path)
    assert record.frames == FrameRange(267, 272)  # st_frame 268, five boxes
    assert record.targets[0].frame_index.tolist() == [267, 268, 269, 270, 271]  # type: ignore[union-attr]
    assert record.targets[0].boxes_xyxy[0].tolist() == pytest.approx(
        [10 / 640, 20 / 360, 110.5 / 640, 220 / 360]
    )
    assert record.span == Span(267 / 30, 272 / 30)
    assert record.query == "The woman in red clothes turns in a circle."
    assert record.video.files[0] == "v1_video/55_vfjywN5CN0Y.mp4"
    assert record.notes == ()
    (tube,) = record.tubes()
    assert len(tube) == 5


def test_hcstvg_v2_has_other_names_for_the_same(tmp_path: Path) -> None:
    record = hcstvg(tmp_path, 2)
    assert (record.query, record.video.width, record.video.height) == ("The man sits.", 640, 360)
    assert record.targets[0].boxes_xyxy[0].tolist() == pytest.approx(
        [10 / 640, 20 / 360, 110.5 / 640, 220 / 360]
    )


def test_hcstvg_seconds_that_disagree_lose_against_frames(tmp_path: Path) -> None:
    """The real scalars of issue 9: 25 fps, frames 372-437, but ed_time 17.898 s is frame 447."""
    path = files.real("hcstvg") / "field_examples.json"
    real = json.loads(path.read_text())["issue_9"][0]
    boxes = [[1, 1, 10, 10]] * (real["ed_frame"] - real["st_frame"] + 1)
    keys = ("st_frame", "ed_frame", "st_time", "ed_time", "img_num")
    record = hcstvg(tmp_path, bbox=boxes, **{key: real[key] for key in keys})
    assert record.frames == FrameRange(371, 437)
    assert record.span == Span(371 / 25, 437 / 25)
    assert codes(record) == {"seconds-disagree"}


def test_hcstvg_readme_example_agrees_within_a_frame(tmp_path: Path) -> None:
    """The real scalars of the README: seconds x 30 are frames 267.4-526.3 when st_frame 268 counts from 1."""
    path = files.real("hcstvg") / "field_examples.json"
    name, real = next(iter(json.loads(path.read_text())["readme_example"].items()))
    length = round((real["ed_time"] - real["st_time"]) * 30)
    record = hcstvg(tmp_path, name=name, **{**real, "bbox": [[1, 1, 10, 10]] * length})
    assert record.notes == ()
    assert record.span is not None
    assert record.span.start_s == pytest.approx(real["st_time"], abs=1 / 30)
    assert record.query == "The woman in red clothes turns in a circle."


def test_hcstvg_ends(tmp_path: Path) -> None:
    assert codes(hcstvg(tmp_path, ed_frame=272)) == set()  # 1-based, inclusive
    assert codes(hcstvg(tmp_path, ed_frame=273)) == {"end-disagrees"}
    late = hcstvg(tmp_path, st_frame=598, st_time=None, ed_time=None)
    assert (late.frames, codes(late)) == (FrameRange(597, 602), {"span-past-end"})
    assert hcstvg(tmp_path, st_frame=596, st_time=None, ed_time=None).notes == ()  # ends with the video


def test_hcstvg_clips_that_peers_drop_are_kept(tmp_path: Path) -> None:
    assert codes(hcstvg(tmp_path, name="10__Gvp-cj3bmIY.mp4")) == {"known-missing"}


def test_hcstvg_boxes_outside_are_clipped_and_counted(tmp_path: Path) -> None:
    record = hcstvg(tmp_path, bbox=[[600, 300, 50, 61], [1, 1, 0, 5], *[[1, 1, 5, 5]] * 3])
    assert codes(record) == {"box-outside", "box-empty"}
    assert record.notes[0].startswith("box-outside: 1 of 5 boxes")
    assert record.targets[0].boxes_xyxy[0].tolist() == pytest.approx([600 / 640, 300 / 360, 1, 1])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"st_frame": 0}, "field st_frame: expected a number from 1"),
        ({"bbox": []}, "field bbox: expected one box"),
        ({"bbox": [[1, 2, 3]]}, r"field bbox\[0\]: expected a box of four numbers"),
        ({"bbox": [[1, 2, 3, 4], [1, 2, 3, "4"]]}, r"field bbox\[1\]\[3\]: expected a number"),
        ({"bbox": [[1, 2, 3, float("nan")]]}, r"field bbox\[0\]\[3\]: expected a finite number"),
        ({"bbox": [[1, 2, -3, 4]]}, "width and height at or above 0"),
        ({"bbox": [[0.1, 0.2, 0.3, 0.4]] * 2}, "look like fractions: expected pixels"),
        ({"bbox": [[0.1, 0.2, 0.3, 0.4], [10, 20, 30, 40]]}, "mix fractions and pixels"),
        ({"bbox": [[1900, 1000, 30, 40]] * 2}, "wholly outside the 640 x 360 frame"),
        ({"img_num": None}, "field img_num: is missing"),
        ({"caption": ""}, "field caption: expected text"),
    ],
)
def test_hcstvg_broken_records(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(RecordError, match=says) as error:
        hcstvg(tmp_path, **changes)
    assert "train.json, key '55_vfjywN5CN0Y.mp4'" in str(error.value)


def test_hcstvg_pixels_without_a_size_stay_pixels(tmp_path: Path) -> None:
    record = hcstvg(tmp_path, width=None, height=None)
    assert record.targets[0].unit == "pixel"
    assert record.tubes(width=640, height=360)[0].boxes_xyxy[0, 2] == pytest.approx(110.5 / 640)


def test_hcstvg_broken_records_are_counted_and_the_rest_is_read(tmp_path: Path) -> None:
    data = {
        "a.mp4": files.hcstvg_v1(),
        "b.mp4": files.hcstvg_v1(st_frame=0),
        "c.mp4": 3,
        "d.mkv": files.hcstvg_v1(),
    }
    files.write_json(tmp_path / "test.json", data)
    problems = Problems()
    records = list(read("hcstvg-v1", tmp_path, "test", on_error=problems))
    assert [record.id for record in records] == ["a.mp4", "d.mkv"]
    assert problems.count == 2
    with pytest.raises(DataError, match="raise"):
        list(read("hcstvg-v1", tmp_path, "test", on_error="ignore"))  # type: ignore[arg-type]


def test_hcstvg_v2_test_has_captions_only() -> None:
    records = list(read("hcstvg_v2", files.real("hcstvg"), "test"))
    assert len(records) == 2000
    assert not any(record.labelled for record in records)
    assert {Path(record.id).suffix for record in records} == {".mp4", ".mkv"}
    assert records[0].query == "The man in blue clothes stands up and raises his hand."


# --- VidSTG


def vidstg_folder(folder: Path, entry: dict[str, Any], tracks: dict[str, Any] | None = None) -> Path:
    files.write_json(folder / "annotations" / "val_annotations.json", [entry])
    if tracks is not None:
        files.write_json(folder / "vidor" / "annotation" / "training" / "0042" / "1001.json", tracks)
    return folder


def test_vidstg_ends_are_exclusive_for_spans_and_inclusive_for_segments(tmp_path: Path) -> None:
    declarative, interrogative = read("vidstg", vidstg_folder(tmp_path, files.vidstg()), "val")
    assert declarative.frames == FrameRange(90, 100)
    assert declarative.video.segment == FrameRange(10, 100)
    assert declarative.span == Span(90 * 1001 / 30000, 100 * 1001 / 30000)
    assert declarative.tags["qtype"] == "declarative"
    assert (interrogative.tags["qtype"], interrogative.tags["category"]) == ("interrogative", "dog")
    assert codes(declarative) == {"boxes-missing"}  # not the span


def test_vidstg_joins_vidor(tmp_path: Path) -> None:
    folder = vidstg_folder(tmp_path, files.vidstg(), files.vidor(without=(92, 93)))
    adult, dog = vidstg.read(folder, "val", boxes="require")
    assert adult.targets[0].frame_index.tolist() == list(range(90, 100))  # type: ignore[union-attr]
    assert adult.targets[0].boxes_xyxy[0].tolist() == pytest.approx([90 / 640, 10 / 480, 154 / 640, 58 / 480])
    assert (adult.targets[0].id, adult.targets[0].name, adult.notes) == ("0", "adult", ())
    assert dog.targets[0].frame_index.tolist() == [90, 91, *range(94, 100)]  # type: ignore[union-attr]
    assert codes(dog) == {"boxes-gap"}
    assert dog.video.files[0] == "video/0042/1001.mp4"
    assert vidstg.read(folder, "val", boxes="skip").__next__().targets == ()


def test_vidstg_join_that_cannot_be_made(tmp_path: Path) -> None:
    bare = vidstg_folder(tmp_path / "bare", files.vidstg())
    with pytest.raises(DataError, match="no VidOR trajectories"):
        vidstg.read(bare, "val", boxes="require")
    other = vidstg_folder(tmp_path / "other", files.vidstg(vid="7"), files.vidor())
    assert codes(next(vidstg.read(other, "val"))) == {"boxes-missing"}
    with pytest.raises(RecordError, match=r"VidOR has no file 7.json"):
        list(vidstg.read(other, "val", boxes="require"))
    gone = vidstg_folder(tmp_path / "gone", files.vidstg(), files.vidor(frames=80))
    assert codes(next(vidstg.read(gone, "val"))) == {"boxes-missing", "vidor-differs"}
    small = vidstg_folder(tmp_path / "small", files.vidstg(), files.vidor(width=320))
    with pytest.raises(RecordError, match="VidOR says width 320, VidSTG 640"):
        list(vidstg.read(small, "val"))
    broken = vidstg_folder(tmp_path / "broken", files.vidstg(), files.vidor(trajectories=[3] * 100))
    problems = Problems()
    assert list(vidstg.read(broken, "val", on_error=problems)) == []
    assert problems.count == 2  # both sentences
    assert "1001.json: field trajectories[90]" in str(problems.examples)
    elsewhere = tmp_path / "other" / "vidor"
    assert next(vidstg.read(bare, "val", vidor_folder=elsewhere)).targets


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"temporal_gt": {"begin_fid": 90, "end_fid": 101}}, "span-past-end"),
        ({"temporal_gt": {"begin_fid": 5, "end_fid": 20}}, "span-outside-segment"),
        ({"used_segment": {"begin_fid": 0, "end_fid": 100}}, "segment-past-end"),
    ],
)
def test_vidstg_suspicious_spans_are_noted(tmp_path: Path, changes: dict[str, Any], code: str) -> None:
    record = next(vidstg.read(vidstg_folder(tmp_path, files.vidstg(**changes)), "val", boxes="skip"))
    assert code in codes(record)


def test_vidstg_one_broken_question_does_not_take_the_caption_with_it(tmp_path: Path) -> None:
    entry = files.vidstg(questions=[{"description": "who?", "type": "person", "target_id": 9}])
    problems = Problems()
    records = list(vidstg.read(vidstg_folder(tmp_path, entry), "val", on_error=problems))
    assert [record.tags["qtype"] for record in records] == ["declarative"]
    assert "record 0: field questions[0].target_id: 9 is none of" in str(problems.examples)


@pytest.mark.parametrize("split", ["val", "test"])
def test_vidstg_real_slice(split: str) -> None:
    folder = files.real("vidstg")
    raw = json.loads((folder / f"{split}_annotations.200.json").read_text())
    records = list(vidstg.read(folder, split, boxes="skip"))
    assert len(records) == sum(len(entry["captions"]) + len(entry["questions"]) for entry in raw)
    assert Counter(record.tags["qtype"] for record in records)["declarative"] == 200
    assert len({record.id for record in records}) == len(records)
    assert not any(
        record.notes for record in records
    )  # no span or segment past the end, none outside its segment
    ending = [r for r in records if r.frames is not None and r.frames.end == r.video.frame_count]
    assert (
        len(ending) >= 25
    )  # the slice was cut so: end_fid == frame_count is the last frame, not one too many
    assert all(r.video.segment is not None and r.video.segment.end == r.video.frame_count for r in ending)
    rates = {record.video.fps for record in records if record.video.fps is not None}
    assert all(rate.denominator in (1, 1001) for rate in rates)
    for entry, record in zip(raw, (r for r in records if r.tags["qtype"] == "declarative"), strict=True):
        assert record.source["entry"] == raw.index(entry)
        assert record.frames == FrameRange(entry["temporal_gt"]["begin_fid"], entry["temporal_gt"]["end_fid"])
        assert record.span is not None
        assert record.span.end_s == pytest.approx(entry["temporal_gt"]["end_fid"] / entry["fps"], rel=1e-3)


# --- ST-Align


def test_st_align_ends_are_inclusive(tmp_path: Path) -> None:
    files.write_json(tmp_path / "stvg.json", [files.st_align()] * 2)
    record = next(iter(read("st-align", tmp_path, "stvg")))
    assert record.frames == FrameRange(20, 30)
    assert record.video.segment == FrameRange(10, 110)
    assert record.targets[0].boxes_xyxy[0].tolist() == pytest.approx([0.1, 0.1, 0.2, 0.2])
    assert record.query == "When does the dog run? Please describe its location."
    assert (record.video.fps, record.spans) == (None, ())  # the file does not say
    assert record.tubes(np.arange(200) / 25)[0].span == Span(0.8, 1.2)
    assert st_align.local_times(record) == (0.101, 0.192)


def test_st_align_svg_and_elc_hand_things_over(tmp_path: Path) -> None:
    files.write_json(tmp_path / "svg.json", [files.st_align("svg")])
    files.write_json(tmp_path / "elc.json", [files.st_align("elc")])
    svg, elc = one(read("st-align", tmp_path, "svg")), one(read("st-align", tmp_path, "elc"))
    assert (svg.task, svg.given_frames, svg.given_box) == ("svg", FrameRange(20, 30), None)
    assert elc.answer == "a dog runs."
    assert elc.given_box is not None
    assert elc.given_box.boxes_xyxy.tolist() == [pytest.approx([0.1, 0.1, 0.2, 0.2])]
    assert elc.given_box.frame_index.tolist() == [20]  # type: ignore[union-attr]


def test_st_align_only_the_first_2000_are_official(tmp_path: Path) -> None:
    files.write_json(tmp_path / "stvg.json", [files.st_align()] * 2001)
    records = list(read("st-align", tmp_path, "stvg"))
    assert [record.tags["official"] for record in records[1999:]] == [True, False]


def test_st_align_prompts_of_the_demo_agree_with_vidstg() -> None:
    """`<e>` is end_fid - 1: it gives the fractions that the published prompts print."""
    path = files.real("st_align") / "demo_prompts_joined_with_vidstg.json"
    told = 0
    for prompt in json.loads(path.read_text()):
        truth, first, last = prompt["vidstg_temporal_gt"], *prompt["split"]
        exclusive = FrameRange(truth["begin_fid"], truth["end_fid"])  # as vidstg reads it
        fractions = [round((f - first) / (last - first), 3) for f in (exclusive.begin, exclusive.end - 1)]
        assert fractions == prompt["derived"]["span_if_end_exclusive"]
        told += fractions != prompt["derived"]["span_if_end_inclusive"]
    assert told >= 2


@pytest.mark.parametrize(
    ("meta", "says"),
    [
        ({"split": [10]}, "field meta.split: expected 2 numbers"),
        ({"split": [0.5, 3]}, "field meta.split: expected two whole"),
        ({"time_token": {"<s>": 20}}, "field meta.time_token.<e>: is missing"),
        ({"spatial_token": {"<bboxes>": {}}}, "expected boxes by frame number"),
        ({"spatial_token": {"<bboxes>": {"x": [1, 2, 3, 4]}}}, "expected boxes by frame number"),
        ({"spatial_token": {"<bboxes>": {"9" * 5000: [1, 2, 3, 4]}}}, "expected boxes by frame number"),
        ({"time_token": {"<s>": 30, "<e>": 20}}, "starts at or after 0 and ends after"),
    ],
)
def test_st_align_broken(tmp_path: Path, meta: dict[str, Any], says: str) -> None:
    files.write_json(tmp_path / "stvg.json", [files.st_align(**meta)])
    with pytest.raises(RecordError, match=says):
        list(read("st-align", tmp_path, "stvg"))


# --- VUE-STG


def test_vue_stg_boxes_are_fractions_of_whole_seconds(tmp_path: Path) -> None:
    record = one(read("vue-stg", files.vue_stg(tmp_path), "test"))
    assert record.query == "a man, who waves"
    assert record.spans == (Span(3, 5),)
    assert record.targets[0].times_s.tolist() == [3, 4]  # type: ignore[union-attr]
    assert record.targets[0].boxes_xyxy[1].tolist() == [0.1, 0.2, 0.5, 0.7]


def test_vue_stg_gaps_and_ends(tmp_path: Path) -> None:
    rows = [f"q1,{t}000,0,0.1,0.2,0.5,0.6" for t in (9, 3, 4)]
    record = one(read("vue-stg", files.vue_stg(tmp_path, rows, 9.5), "test"))
    assert record.spans == (Span(3, 5), Span(9, 9.5))
    assert codes(record) == {"several-windows", "span-past-end"}
    assert [len(tube) for tube in record.tubes()] == [2, 1]


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([], "q1 has no row in tubes.csv"),
        (["q1,3000,0,0.1,0.2,0.5,0.6"] * 2, "line 3: field time_ms: 3000 ms has two boxes"),
        (["q1,3250,0,0.1,0.2,0.5,0.6"], "whole seconds, got 3250 ms"),
        (["q1,3000,0,0.5,0.2,0.1,0.6"], "x0 <= x1"),
        (["q1,3000,0,10,20,50,60"], "look like pixels"),
        (["q1,3000,0,nan,0.2,0.5,0.6"], "field x0: expected a finite number"),
        (["q1,3000,0,0.1,0.2,0.5,0.6", "q1,4000,0,0.1"], "line 3: expected 7 fields"),
        (["q1,3000,0,0.1,0.2,0.5,0.6", "q9,3000,0,0.1,0.2,0.5,0.6"], "q9 is no query"),
    ],
)
def test_vue_stg_broken(tmp_path: Path, rows: list[str], says: str) -> None:
    with pytest.raises(RecordError, match=says):
        list(read("vue-stg", files.vue_stg(tmp_path, rows), "test"))


def test_vue_stg_real_slice() -> None:
    folder = files.real("vue_stg")
    records = list(vue_stg.read(folder))
    with (folder / "tubes.300.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(records) == 300
    assert sum(len(record.targets[0]) for record in records) == len(rows)
    assert sum("several-windows" in codes(record) for record in records) == 57
    assert sum("span-past-end" in codes(record) for record in records) == 17
    for record in records:
        assert sum(len(tube) for tube in record.tubes()) == len(record.targets[0])  # no second is lost
        assert record.video.duration_s is not None
        assert record.spans[-1].end_s <= record.video.duration_s


def test_vue_stg_predictions_are_not_taken_for_truth(tmp_path: Path) -> None:
    real = files.real("vue_stg")
    for name in ("query", "video"):
        (tmp_path / f"{name}.csv").write_bytes((real / f"{name}.300.csv").read_bytes())
    (tmp_path / "tubes.csv").write_bytes((real / "pred_vidi2.300.csv").read_bytes())
    problems = Problems()
    list(read("vue-stg", tmp_path, "test", on_error=problems))
    assert "a prediction file?" in str(problems.examples)


# --- V-STaR


def test_vstar_asks_four_things(tmp_path: Path) -> None:
    files.write_json(tmp_path / "V_STaR_test.json", [files.vstar()])
    what, when, where, where2 = read("v-star", tmp_path, "test")
    assert [r.task for r in (what, when, where, where2)] == ["qa", "tvg", "svg", "stvg"]
    assert (what.answer, what.spans) == ("a red ball", ())
    assert when.span == Span(11.5, 14.0)
    assert (where.given_span, where2.given_span) == (Span(11.5, 14.0), None)
    assert where.targets[0].times_s.tolist() == [12, 13, 14]  # type: ignore[union-attr]
    assert len(where.tubes()[0]) == 3  # the box at the end of the span is one of them
    assert where.extra["frame_index"] == [360, 390, 420]
    assert what.tags["length"] == "medium"
    assert [r.id for r in vstar.read(tmp_path, parts=("when",))] == ["abc-0-when"]
    with pytest.raises(DataError, match="no part"):
        vstar.read(tmp_path, parts=("who",))


def test_vstar_reads_the_boxes_as_its_readme_prints_them(tmp_path: Path) -> None:
    box = {"xmin": 64, "ymin": 48, "xmax": 128, "ymax": 96}
    boxes = [{"13_390": box}, {"12_360": box, "14_420": box}]
    files.write_json(tmp_path / "a" / "vstar.json", [files.vstar()])
    files.write_json(tmp_path / "b" / "vstar.json", [files.vstar(bboxes=boxes)])
    plain, keyed = (list(vstar.read(tmp_path / name)) for name in "ab")
    assert [r.to_dict() for r in plain] == [r.to_dict() for r in keyed]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"timestamps": [14, 11]}, "field timestamps: a span ends after it starts"),
        ({"timestamps": [14]}, "field timestamps: expected 2 numbers"),
        ({"bboxes": []}, "at least one box"),
        ({"bboxes": [{"x_y": {}}]}, "TIMESTAMP_FRAME"),
        ({"bboxes": [{"nan_3": {"xmin": 1, "ymin": 1, "xmax": 2, "ymax": 2}}]}, "finite number"),
        ({"bboxes": files.vstar()["bboxes"][:1] * 2}, "two boxes"),
    ],
)
def test_vstar_broken(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    files.write_json(tmp_path / "vstar.json", [files.vstar(**changes)])
    with pytest.raises(RecordError, match=says):
        list(vstar.read(tmp_path))


def test_vstar_suspicious(tmp_path: Path) -> None:
    files.write_json(tmp_path / "vstar.json", [files.vstar(timestamps=[12.5, 91.0])])
    where = list(vstar.read(tmp_path))[2]
    assert codes(where) == {"span-past-end", "boxes-outside-span"}


# --- BOSTVG


def test_bostvg_has_two_ways_to_count_frames(tmp_path: Path) -> None:
    files.write_json(tmp_path / "annos" / "test.json", {"a.mp4": files.bostvg()})
    record = one(read("bostvg", tmp_path, "test"))
    assert record.frames == FrameRange(20, 30)  # 1-based and inclusive in the file
    assert [target.frames for target in record.targets] == [
        FrameRange(20, 30),
        FrameRange(24, 28),
    ]  # as they are
    assert record.notes == ()
    assert [tube.span for tube in record.tubes()] == [Span(0.8, 1.2), Span(0.96, 1.12)]
    assert record.targets[1].boxes_xyxy[0].tolist() == [0.5, 0.5, 1, 1]


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"end_frame": 101, "ed_time": None}, "span-past-end"),
        ({"end_frame": 25, "ed_time": None}, "target-outside-span"),
        ({"st_time": 2.0}, "seconds-disagree"),
    ],
)
def test_bostvg_suspicious(tmp_path: Path, changes: dict[str, Any], code: str) -> None:
    files.write_json(tmp_path / "test.json", {"a.mp4": files.bostvg(**changes)})
    assert code in codes(one(bostvg.read(tmp_path, "test")))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"img_num": None}, "field img_num: expected a number, got None"),
        ({"end_frame": 20}, "field end_frame"),
        ({"bbox": []}, "at least one target"),
        (
            {"bbox": [{"id": 0, "bbox": [[0, 0, 1, 1]], "temp": [20, 30]}]},
            r"bbox\[0\].bbox: expected 10 boxes",
        ),
        ({"bbox": [{"id": 0, "bbox": [], "temp": [20, 20]}]}, r"field bbox\[0\].temp"),
    ],
)
def test_bostvg_broken(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    files.write_json(tmp_path / "test.json", {"a.mp4": files.bostvg(**changes)})
    with pytest.raises(RecordError, match=says):
        list(bostvg.read(tmp_path, "test"))


# --- the toy world


def test_world_folder_as_it_is_made(tmp_path: Path) -> None:
    from tubelet.world.files import make_world, read_annotations

    make_world(
        tmp_path / "v", 3, seed=3, tasks=("stvg", "svg", "tvg", "elc", "qa"), questions=4, height=32, fps=4
    )
    make_world(tmp_path / "i", 3, seed=3, tasks=("rec", "reg", "dgc"), questions=4, height=32)
    for folder in (tmp_path / "v", tmp_path / "i"):
        records, lines = list(read("world", folder, "test")), read_annotations(folder)
        assert [record.id for record in records] == [line["id"] for line in lines]
        for record, line in zip(records, lines, strict=True):
            assert record.video.find(folder) is not None
            assert (record.task, record.present, record.answer) == (
                line["task"],
                line["present"],
                line["answer"],
            )
            if line["boxes_xyxy"]:
                assert record.targets[0].boxes_xyxy.tolist() == line["boxes_xyxy"]
                assert record.targets[0].frame_index.tolist() == line["frame_index"]  # type: ignore[union-attr]
            assert (record.given_box is not None) == (line["given_box"] is not None)
            if record.task == "dgc":
                assert [target.name for target in record.targets] == [p["text"] for p in line["phrases"]]
            if record.targets and record.video.kind == "video":
                assert len(record.tubes()[0]) == len(line["times_s"])


def test_world_of_another_schema_is_refused(tmp_path: Path) -> None:
    (tmp_path / "annotations.jsonl").write_text(json.dumps({**files.world(), "schema": 9}) + "\n")
    with pytest.raises(RecordError, match="this tubelet reads 1"):
        list(read("world", tmp_path, "test"))


# --- what all share


def test_names_and_splits() -> None:
    with pytest.raises(DataError, match="datasets are"):
        open_dataset("imagenet")
    for name in ("hcstvg-v1", "HCSTVG_V2", "vidstg", "st-align", "vue-stg", "v-star", "bostvg", "world"):
        module = open_dataset(name)
        assert DATASETS[module.NAME] == module.__name__
        with pytest.raises(DataError, match="splits are"):
            module.read(".", "nope")
        assert {spec.kind for spec in module.FILES} == {"annotation", "media"}
        assert all(spec.source and spec.what and spec.patterns for spec in module.FILES)


def test_missing_files_say_where_they_are_had(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"to be had from github.com/Guaranteer/VidSTG-Dataset"):
        read("vidstg", tmp_path, "val")
    with pytest.raises(DataError, match="does not exist"):
        read("bostvg", tmp_path / "none", "test")
    files.write_json(tmp_path / "query_v2.1.json", {})
    files.write_json(tmp_path / "query_v2.2.json", {})
    with pytest.raises(DataError, match="has several"):
        read("hcstvg-v2", tmp_path, "test")


def test_repeated_ids_are_problems(tmp_path: Path) -> None:
    line = json.dumps(files.world())
    (tmp_path / "annotations.jsonl").write_text(f"{line}\n{line}\n")
    problems = Problems()
    assert len(list(read("world", tmp_path, "test", on_error=problems))) == 1
    assert "was there before" in str(problems.examples)


def test_importing_the_list_of_datasets_imports_none_of_them() -> None:
    import subprocess
    import sys

    code = (
        "import sys, tubelet.datasets as d; d.DATASETS['vidstg']; "
        "print([m for m in sys.modules if m.startswith('tubelet.datasets.')], 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] False"
