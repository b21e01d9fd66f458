"""All readers at once: a small folder of every dataset, one of its files damaged at any place in any way.

Which readers there are is taken from `DATASETS`: a new one without a folder here fails.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dataset_files as files
import pytest
from annotation_help import write_lines
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_dataset_fuzz import changed, must_survive

from tubelet.benchmarks.record_json import record_from_dict
from tubelet.datasets import DATASETS
from tubelet.datasets.check import data_check

Folder = Callable[[Path], tuple[str, ...]]
"""Writes the files of a dataset; the splits that can be read of them."""


def _json(name: str, value: Any, *splits: str) -> Folder:
    def make(folder: Path) -> tuple[str, ...]:
        files.write_json(folder / name, value)
        return splits

    return make


def _vidstg(folder: Path) -> tuple[str, ...]:
    files.write_json(folder / "val_annotations.json", [files.vidstg()])
    files.write_json(folder / "vidor" / "1001.json", files.vidor())
    return ("val",)


def _st_align(folder: Path) -> tuple[str, ...]:
    for task in ("stvg", "svg", "elc"):
        files.write_json(folder / f"{task}.json", [files.st_align(task)] * 2)
    return ("stvg", "svg", "elc")


def _vue_stg(folder: Path) -> tuple[str, ...]:
    files.vue_stg(folder)
    return ("test",)


def _world(folder: Path) -> tuple[str, ...]:
    write_lines(folder / "annotations.jsonl", [files.world(), {**files.world(), "id": "another"}])
    return ("test",)


def _charades(folder: Path) -> tuple[str, ...]:
    (folder / "charades_sta_test.txt").write_text("AAAAA 0.5 9.5##a person sits.\nBBBBB 1.0 2.0##runs.\n")
    (folder / "Charades_v1_test.csv").write_text("id,subject,length\nAAAAA,x,30.5\nBBBBB,y,12.0\n")
    return ("test",)


def _qvhighlights(folder: Path) -> tuple[str, ...]:
    row = {"qid": 1, "query": "x", "duration": 150, "vid": "a_0.0_150.0", "relevant_windows": [[2, 6]]}
    row |= {"relevant_clip_ids": [1, 2], "saliency_scores": [[3, 4, 2], [2, 4, 2]]}
    write_lines(folder / "highlight_val_release.jsonl", [row, {**row, "qid": 2}])
    return ("val",)


def _refcoco(folder: Path) -> tuple[str, ...]:
    image = {"id": 7, "file_name": "COCO_train2014_000000000007.jpg", "width": 640, "height": 480}
    box = {"id": 3, "image_id": 7, "category_id": 1, "bbox": [64.0, 48.0, 128.0, 96.5]}
    ref = {"ref_id": 0, "ann_id": 3, "image_id": 7, "category_id": 1, "split": "val", "sent_ids": [0]}
    ref |= {
        "file_name": "x.jpg",
        "sentences": [{"sent_id": 0, "sent": "her", "raw": "HER", "tokens": ["her"]}],
    }
    files.write_json(folder / "refcoco" / "instances.json", {"images": [image], "annotations": [box]})
    files.write_json(folder / "refcoco" / "refs(unc).json", [ref])
    mdetr = {
        "images": [{**image, "id": 0, "caption": "her"}],
        "annotations": [{**box, "id": 0, "image_id": 0}],
    }
    files.write_json(folder / "finetune_refcoco+_testA.json", mdetr)
    return ("refcoco_val", "refcoco+_testA")


def _videomme(folder: Path) -> tuple[str, ...]:
    row = {"video_id": "001", "videoID": "a", "duration": "short", "domain": "x", "sub_category": "y"}
    row |= {"task_type": "z", "question_id": "001-1", "question": "How many?", "answer": "B"}
    row |= {"options": ["A. One.", "B. Two.", "C. Three.", "D. 4."]}
    files.write_json(folder / "videomme.json", [row, {**row, "question_id": "001-2"}])
    (folder / "subtitle").mkdir()
    (folder / "subtitle" / "a.srt").write_text("1\n00:00:01,000 --> 00:00:02,000\nhello\n")
    return ("test", "test_subtitles")


def _egoschema(folder: Path) -> tuple[str, ...]:
    asked = {"question": "What?", **{f"option {k}": f"C does {k}" for k in range(5)}}
    files.write_json(folder / "questions.json", [{"q_uid": u, **asked} for u in "ab"])
    files.write_json(folder / "subset_answers.json", {"a": 0, "b": 4})
    return ("subset", "full")


def _tempcompass(folder: Path) -> tuple[str, ...]:
    asked = {
        "multi-choice": ("What is it?\nA. He sits\nB. He stands", "B. He stands"),
        "yes_no": ("Does he sit?", "no"),
        "caption_matching": ("Which fits?\nOption 1: He sits.\nOption 2: He stands.", "Option 2: He stands."),
        "captioning": (
            "Describe.\nInformation A: sits\nInformation B: stands\nGenerated Caption:",
            "B. stands",
        ),
    }
    for way, (question, answer) in asked.items():
        rows = {"v": {"action": [{"question": question, "answer": answer}]}}
        files.write_json(folder / "questions" / f"{way}.json", rows)
    return tuple(asked)


def _flickr30k(folder: Path) -> tuple[str, ...]:
    (folder / "Sentences").mkdir()
    (folder / "Annotations").mkdir()
    (folder / "val.txt").write_text("7\n8\n")
    for name in "78":
        (folder / "Sentences" / f"{name}.txt").write_text(
            "[/EN#1/people A cook] lifts [/EN#2/other a lid] .\n"
        )
        (folder / "Annotations" / f"{name}.xml").write_text(
            "<annotation><size><width>100</width><height>50</height></size><object><name>1</name><bndbox><xmin>1</xmin>"
            "<ymin>1</ymin><xmax>50</xmax><ymax>50</ymax></bndbox></object></annotation>"
        )
    return ("val",)


_TALK = [{"from": "human", "value": "<video>\nWhen?"}, {"from": "gpt", "value": "From <s0> to <e0>."}]
_VTIMELLM = {"source": "internvid", "id": "a", "conversations": _TALK}
_VTIMELLM |= {"meta": {"split": [5, 9.5], "duration": 4.5, "token": {"<s0>": 1, "<e0>": 2.5}}}
_M10M = {"conversations": [{"User": "When?", "Assistant": "{moment}"}], "variables": {"moment": [1, 2.5]}}
_RTL = {"duration": 20.0, "QA": [{"q": "When?", "a": "<1.5> <2.0> so"}, {"q": "And?", "a": "At <4.0>"}]}
_SFT = {"video_id": "a", "question_id": "a", "video_file": "x/a.mp4", "dataset_name": "COIN"}
_SFT |= {
    "conversation": [{"from": "human", "value": "<image>\nWhen?"}, {"from": "gpt", "value": "At <4.0>."}]
}
_VTG_IT = {"video": "x/a.mp4", "QA": [{"q": "When?", "a": "<TIME_ONE><TIME_DOT><TIME_TWO> seconds"}]}
_VIDG = {"video": "a.mp4", "duration": 9.5, "caption": "x", "start_sec": 1, "end_sec": 2.5}
_STEP = {"index": 0, "heading": "fold", "absolute_bounds": [2, 3]}
_HIREST = {
    "relevant": True,
    "clip": True,
    "v_duration": 9.5,
    "bounds": [2, 8],
    "steps": [_STEP, {**_STEP, "index": 1}],
}
_COIN = {"duration": 9.5, "class": "Boat", "subset": "training", "recipe_type": 7}
_COIN |= {"annotation": [{"id": "1", "segment": [1.0, 2.0], "label": "fold"}]}
_COOK = {"duration": 9.5, "subset": "validation", "recipe_type": "7"}
_COOK |= {"annotations": [{"id": 0, "segment": [1, 2], "sentence": "peel it"}]}
_MASK = {"size": [50, 100], "counts": "x"}
_GRAND = {
    "id": 1,
    "bbox": [10, 5, 20, 15.5],
    "labels": ["lid"],
    "attributes": ["a red lid"],
    "segmentation": _MASK,
}
_SHORT = {"phrase": "a lid", "tokens_positive": [0, 5], "id": 1, "bbox": [10, 5, 20, 15.5]}

_EVENTS = {"duration": 20.0, "timestamps": [[1, 2], [3, 4.5]], "sentences": ["a", "b"]}
_DIDEMO = {"num_segments": 6, "description": "x", "dl_link": "x", "times": [[2, 2]] * 4, "video": "a.mp4"}
_TVG = {"path": "tvgbench_data/charades/A.mp4", "question": "he sits", "answer": "1.0-2.0", "duration": 30.0}
_TVG |= {"start": None, "end": None, "qsemtype": "Action", "dataset_name": "charades"}
_MV = {"question": "What?", "candidates": ["Sits", "Stands"], "video": "a.mp4", "answer": "Sits"}

FOLDERS: dict[str, Folder] = {
    "hcstvg-v1": _json("test.json", {"a.mp4": files.hcstvg_v1(), "b.mp4": files.hcstvg_v1()}, "test"),
    "hcstvg-v2": _json("val_v2.json", {"a.mp4": files.hcstvg_v2(), "b.mp4": files.hcstvg_v2()}, "val"),
    "vidstg": _vidstg,
    "st-align": _st_align,
    "vue-stg": _vue_stg,
    "v-star": _json("V_STaR_test.json", [files.vstar(), files.vstar()], "test"),
    "bostvg": _json("annos/test.json", {"a.mp4": files.bostvg(), "b.mp4": files.bostvg()}, "test"),
    "world": _world,
    "charades-sta": _charades,
    "didemo": _json("val_data.json", [{**_DIDEMO, "annotation_id": k} for k in (1, 2)], "val"),
    "tacos": _json(
        "test.json",
        {"a.avi": {**_EVENTS, "timestamps": [[1, 50], [60, 90]], "fps": 29.4, "num_frames": 600}},
        "test",
    ),
    "activitynet": _json("val_2.json", {"v_a": _EVENTS}, "val_2"),
    "qvhighlights": _qvhighlights,
    "tvgbench": _json("tvgbench.json", [_TVG, {**_TVG, "question": "he runs"}], "test"),
    "refcoco": _refcoco,
    "mvbench": _json("json/action_antonym.json", [_MV, {**_MV, "question": "And?"}], "test"),
    "video-mme": _videomme,
    "egoschema": _egoschema,
    "tempcompass": _tempcompass,
    "vtimellm": _json("stage2.json", [_VTIMELLM, {**_VTIMELLM, "conversations": _TALK * 2}], "stage2"),
    "moment-10m": _json("Moment-10M_0.json", {"a": {"qa_data": [_M10M]}, "b": {"qa_data": [_M10M]}}, "train"),
    "anet-rtl": _json("temporal_reasoning/activitynet_train.json", {"v_a": _RTL, "v_b": _RTL}, "train"),
    "grounded-videollm": _json("mix_sft.json", [_SFT, _SFT], "sft"),
    "vtg-it": _json("vtg-it-120k.json", [_VTG_IT, _VTG_IT], "train"),
    "internvid-g": lambda folder: write_lines(folder / "train.jsonl", [_VIDG, _VIDG]) and ("train",),
    "hirest": _json("all_data_val.json", {"Fold": {"a.mp4": _HIREST, "b.mp4": _HIREST}}, "val"),
    "coin": _json("COIN.json", {"database": {"a": _COIN, "b": _COIN}}, "train"),
    "youcook2": _json("youcookii_annotations_trainval.json", {"database": {"a": _COOK, "b": _COOK}}, "val"),
    "flickr30k-entities": _flickr30k,
    "grand": _json(
        "sa_1.json",
        {"sa_1.jpg": {"objects": [_GRAND], "short_captions": [{"caption": "a lid", "details": [_SHORT]}]}},
        "referring",
        "captions",
    ),
}
OPTIONS: dict[str, dict[str, Any]] = {"mvbench": {"tasks": ["action_antonym"]}}
DAMAGE = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))


def test_every_reader_is_here() -> None:
    assert set(FOLDERS) == set(DATASETS)


@pytest.mark.parametrize("name", sorted(DATASETS))
def test_undamaged_every_folder_is_read_whole(name: str, tmp_path: Path) -> None:
    for split in FOLDERS[name](tmp_path):
        records, problems = must_survive(name, tmp_path, split, **OPTIONS.get(name, {}))
        assert records and not problems.count, problems.examples
        for record in records:  # a run folder keeps them as JSON
            assert record_from_dict(json.loads(json.dumps(record.to_dict()))).to_dict() == record.to_dict()


@pytest.mark.parametrize("name", sorted(DATASETS))
@DAMAGE
@given(data=st.data())
def test_damage_anywhere_is_one_of_our_errors(name: str, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        split = data.draw(st.sampled_from(FOLDERS[name](folder)))
        path = data.draw(st.sampled_from(sorted(p for p in folder.rglob("*") if p.is_file())))
        whole = path.read_bytes()
        if path.suffix == ".json" and data.draw(st.booleans()):
            whole = json.dumps(changed(json.loads(whole), data)).encode("utf-8", "replace")
        else:
            at = data.draw(st.integers(0, len(whole)))
            gone = data.draw(st.sampled_from([0, 1, 7, 60, len(whole)]))
            whole = whole[:at] + data.draw(st.binary(max_size=8)) + whole[at + gone :]
        path.write_bytes(whole)
        records, _ = must_survive(name, folder, split, **OPTIONS.get(name, {}))
        for record in records:
            assert record_from_dict(json.loads(json.dumps(record.to_dict()))).to_dict() == record.to_dict()
        report = data_check(name, folder, [split], probe=0)
        assert report.render().splitlines()[-1].startswith("not complete")  # no videos, at the least
