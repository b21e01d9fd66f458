"""Tiny data sets and prediction files of every format, made up for the tests of scoring."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

SHARED = Path(__file__).resolve().parents[2] / ".." / "shared"
BOX = [0.2, 0.2, 0.6, 0.8]


def write_lines(path: Path, rows: Iterable[Any]) -> Path:
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8"
    )
    return path


def vue_data(folder: Path) -> Path:
    """Queries a, b, c: one box per second, 2-5, 3-9 and 0-0 s of videos of 20, 20 and 8 s."""
    folder.mkdir(exist_ok=True)
    write_lines(
        folder / "query.csv", ["query_id,query_text,video_id", "a,a man,v1", "b,a dog,v1", "c,a cat,v2"]
    )
    write_lines(folder / "video.csv", ["video_id,video_duration", "v1,20.0", "v2,8.0"])
    rows = ["query_id,time_ms,time_normalized,x0,y0,x1,y1"]
    for name, seconds in (("a", range(2, 6)), ("b", range(3, 10)), ("c", range(1))):
        rows += [f"{name},{s}000,0.5," + ",".join(map(str, BOX)) for s in seconds]
    write_lines(folder / "tubes.csv", rows)
    return folder


def vue_rows(name: str, seconds: Iterable[int], box: Iterable[float] = BOX) -> list[str]:
    box = list(box)
    return [f"{name},{s}000," + ",".join(map(str, box)) for s in seconds]


def vue_file(path: Path, rows: Iterable[str]) -> Path:
    return write_lines(path, ["query_id,time_ms,x0,y0,x1,y1", *rows])


def tubelet_line(
    name: str, span: tuple[float, float] = (2.0, 6.0), box: Iterable[Any] = BOX, **more: Any
) -> dict[str, Any]:
    box = list(box)
    times = [span[0] + k for k in range(3)] if span[1] - span[0] > 3 else [span[0]]
    tube = {
        "span": {"start_s": span[0], "end_s": span[1]},
        "times_s": times,
        "boxes_xyxy": [box] * len(times),
        "score": None,
    }
    told = {"schema": 1, "video": "v", "query": "q", "task": "stvg", "tubes": [tube], "text": ""}
    return {"id": name, "prediction": {**told, **more}}


def hcstvg_data(folder: Path) -> Path:
    """Two clips of 20 s at 5 fps: boxes on frames 10-29 and 40-59 (0-based) of 640 x 360 pixels."""
    folder.mkdir(exist_ok=True)
    rows = {
        name: {
            "bbox": [[64, 36, 128, 180]] * 20,
            "st_frame": first + 1,
            "img_num": 100,
            "English": "a woman turns",
            "img_size": [360, 640, 3],
        }
        for name, first in (("1_a.mp4", 10), ("2_b.mp4", 40))
    }
    (folder / "val_v2.json").write_text(json.dumps(rows), encoding="utf-8")
    return folder


HCSTVG_BOX = [0.1, 0.1, 0.3, 0.6]


def moments_data(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    rows = [
        {"qid": k, "query": "x", "duration": 150, "vid": f"v{k}_0.0_150.0", "relevant_windows": windows}
        for k, windows in ((1, [[10, 20]]), (2, [[0, 40], [60, 80]]), (3, [[100, 150]]))
    ]
    write_lines(folder / "highlight_val_release.jsonl", rows)
    return folder


def llavast_record(name: str = "a") -> dict[str, Any]:
    """A perfect answer: token k is native frame 2 k."""
    tokens = range(10, 15)
    outputs = "During the span of {<TEMP-010><TEMP-014>} " + ", ".join(
        f"<TEMP-{k:03d}>:[<WIDTH-000><HEIGHT-000><WIDTH-099><HEIGHT-099>]" for k in tokens
    )
    converted = "During the span of {0.10101,0.14141} " + ", ".join(
        f"{k / 99:.5f},:[0.00000,0.00000,1.00000,1.00000]" for k in tokens
    )
    return {
        "id": name,
        "outputs": outputs,
        "converted_outputs": converted,
        "split": [0, 198],
        "width": 200,
        "height": 100,
        "gt": {"tvg": [20, 28], "svg": {str(2 * k): [0, 0, 200, 100] for k in tokens}},
    }


def r1_record(name: str = "a") -> dict[str, Any]:
    return {
        "id": name,
        "response": "<think>..</think><answer>Target ID: 2, Time range: 1.0 to 2.0</answer>",
        "fps": 10.0,
        "gt_timestamps": [1.0, 2.0],
        "st_frame": 10,
        "gt_bbox_xywh": [[10, 20, 30, 40]] * 11,
        "object_boxes_by_frame_xyxy": {
            str(f): {"1": [50, 50, 60, 60], "2": [10, 20, 40, 60]} for f in range(5, 25)
        },
    }


def doro_record(name: str = "a") -> dict[str, Any]:
    boxes = {str(k): BOX for k in range(4, 9)}
    return {
        "item_id": name,
        "pred_temporal_sampled": [4, 8],
        "pred_bboxes_sampled": boxes,
        "gt_temporal_sampled": [4, 8],
        "gt_bboxes_sampled": boxes,
    }


def r1_prediction_txt(rows: Iterable[Mapping[str, str]]) -> str:
    """prediction.txt as STVG-R1's evaluate.py writes it."""
    return "".join(
        f"ID: {row['id']}\nQuery: the man\nGround Truth: 3, {row['true']}\nPrediction:  2, [0, 0]\nIoU: 0.5\n"
        f"Marker Value: 0\nModel Output: {row['output']}\n{'-' * 80}\n"
        for row in rows
    )
