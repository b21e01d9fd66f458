"""Real annotation slices (skipped where they are not there) and small files with every known trap."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

SHARED = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"


def real(name: str) -> Path:
    """A folder of real slices; skips the test where it is absent."""
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"no real slice {name} here")
    return path


def write_json(path: Path, data: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


def hcstvg_v1(**changes: Any) -> dict[str, Any]:
    """A clip in the shape of version 1: 5 boxes from frame 268 (1-based) of 600, 640 x 360."""
    record = {
        "bbox": [[10 + k, 20, 100.5, 200] for k in range(5)],
        "st_time": 267 / 30,
        "ed_time": 272 / 30,
        "img_num": 600,
        "caption": " The woman in red clothes turns in a circle. ",
        "width": 640,
        "height": 360,
        "st_frame": 268,
    }
    return {key: value for key, value in {**record, **changes}.items() if value is not None}


def hcstvg_v2(**changes: Any) -> dict[str, Any]:
    """The same in the shape of version 2: English, img_size."""
    return hcstvg_v1(
        **{
            "caption": None,
            "width": None,
            "height": None,
            "English": "The man sits.",
            "img_size": [360, 640, 3],
        }
        | changes
    )


def vidstg(**changes: Any) -> dict[str, Any]:
    """An entry in VidSTG's shape whose span ends with the video: end_fid 100 of 100 frames."""
    entry: dict[str, Any] = {
        "vid": "1001",
        "fps": 29.97002997002997,
        "frame_count": 100,
        "used_segment": {"begin_fid": 10, "end_fid": 99},
        "width": 640,
        "height": 480,
        "subject/objects": [{"tid": 0, "category": "adult"}, {"tid": 2, "category": "dog"}],
        "used_relation": {
            "subject_tid": 0,
            "object_tid": 2,
            "predicate": "hold",
            "begin_fid": 90,
            "end_fid": 100,
        },
        "temporal_gt": {"begin_fid": 90, "end_fid": 100},
        "captions": [{"description": "an adult holds a dog.", "type": "person", "target_id": 0}],
        "questions": [{"description": "what does the adult hold?", "type": "object", "target_id": 2}],
    }
    return {**copy.deepcopy(entry), **changes}


def vidor(frames: int = 100, without: tuple[int, ...] = (), **changes: Any) -> dict[str, Any]:
    """VidOR's file for that video: tid 0 moves right, tid 2 is missing on the frames `without`."""
    trajectories = []
    for f in range(frames):
        row = [
            {
                "tid": 0,
                "bbox": {"xmin": f, "ymin": 10, "xmax": f + 64, "ymax": 58},
                "generated": 0,
                "tracker": "none",
            }
        ]
        if f not in without:
            row.append(
                {
                    "tid": 2,
                    "bbox": {"xmin": 320, "ymin": 240, "xmax": 640, "ymax": 480},
                    "generated": 1,
                    "tracker": "kcf",
                }
            )
        trajectories.append(row)
    return {
        "video_id": "1001",
        "video_path": "0042/1001.mp4",
        "frame_count": frames,
        "fps": 29.97002997002997,
        "width": 640,
        "height": 480,
        "trajectories": trajectories,
        **changes,
    }


def st_align(task: str = "stvg", **meta: Any) -> dict[str, Any]:
    """A record in ST-Align's shape: frames 20..29 (both included) of the segment 10..109."""
    prompts = {
        "stvg": ("<image>\nWhen does the dog run? Please describe its location.", "From <s> to <e> <bboxes>"),
        "svg": ("<image>\nWhere is the dog from <s> to <e>?", "<bboxes>"),
        "elc": (
            "<image>\nStarts in <s>, what happened within the region <region>?",
            "Ends in <e>, a dog runs. Object bounding box: <bboxes>",
        ),
    }
    spatial: dict[str, Any] = {"<bboxes>": {str(f): [64, 48, 64, 48] for f in range(20, 30)}}
    if task == "elc":
        spatial["<region>"] = [64, 48, 64, 48]
    return {
        "video_path": "1001.mp4",
        "meta": {
            "width": 640,
            "height": 480,
            "split": [10, 109],
            "time_token": {"<s>": 20, "<e>": 29},
            "spatial_token": spatial,
            **meta,
        },
        "conversations": [
            {"from": "human", "value": prompts[task][0]},
            {"from": "gpt", "value": prompts[task][1]},
        ],
    }


def vstar(**changes: Any) -> dict[str, Any]:
    """An item in V-STaR's shape."""
    return {
        "vid": "abc",
        "domain": "sports",
        "fps": 30.0,
        "width": 640,
        "height": 480,
        "frame_count": 2700,
        "question": "What does she throw?",
        "chain": "<think>...<think>",
        "object": "ball",
        "answer": "a red ball",
        "temporal_question": "When does she throw it?",
        "timestamps": [11.5, 14.0],
        "spatial_question": "Where is the ball?",
        "spatial_question_2": "Where is the ball that she throws?",
        "bboxes": [
            {"timestamp": t, "frame_index": 30 * t, "xmin": 64, "ymin": 48, "xmax": 128, "ymax": 96}
            for t in (12, 13, 14)
        ],
        **changes,
    }


def bostvg(**changes: Any) -> dict[str, Any]:
    """An item in BOSTVG's shape: frames 21..30 (1-based, both included), two targets."""
    return {
        "width": 640,
        "height": 480,
        "img_num": 100,
        "fps": 25,
        "st_frame": 21,
        "end_frame": 30,
        "st_time": 0.8,
        "ed_time": 1.2,
        "caption": "a man gives a dog a bone",
        "bbox": [
            {"id": 0, "bbox": [[0, 0, 64, 48]] * 10, "temp": [20, 30]},
            {"id": 1, "bbox": [[320, 240, 640, 480]] * 4, "temp": [24, 28]},
        ],
        **changes,
    }


def vue_stg(folder: Path, tubes: list[str] | None = None, duration_s: float = 10.0) -> Path:
    """A VUE-STG folder with one query; `tubes` are its rows."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "query.csv").write_text('query_id,query_text,video_id\nq1,"a man, who waves",AbC-_12\n')
    (folder / "video.csv").write_text(f"video_id,video_duration\nAbC-_12,{duration_s}\n")
    rows = ["q1,3000,0.3,0.1,0.2,0.5,0.6", "q1,4000,0.4,0.1,0.2,0.5,0.7"] if tubes is None else tubes
    header = "query_id,time_ms,time_normalized,x0,y0,x1,y1"
    (folder / "tubes.csv").write_text("\n".join([header, *rows]) + "\n")
    return folder


def world() -> dict[str, Any]:
    """A line in the shape of the toy world's annotations."""
    return {
        "schema": 1,
        "id": "test-7-00000-0",
        "video": "videos/test-7-00000.mp4",
        "task": "stvg",
        "query": "the yellow circle touches the blue circle",
        "present": True,
        "span": {"start_s": 1.56, "end_s": 2.76},
        "frame_index": [8, 9],
        "times_s": [1.6, 1.8],
        "boxes_xyxy": [[0.5, 0.2, 0.6, 0.4], [0.5, 0.3, 0.6, 0.5]],
        "answer": "",
        "given_box": None,
        "phrases": [],
        "kind": "interaction",
        "tags": {"action": "touch"},
        "duration_s": 8.5,
        "fps": 5.0,
        "n_frames": 42,
    }
