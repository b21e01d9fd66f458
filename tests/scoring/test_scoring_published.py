"""Published predictions give the published numbers; records of the golden files give their aggregates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scoring_files as files

from tubelet.metrics import score_moments
from tubelet.scoring import score_file

VUE = {
    "t_Precision": "tPrecision",
    "t_Recall": "tRecall",
    "t_IoU": "m_tIoU",
    "v_Precision": "vPrecision",
    "v_Recall": "vRecall",
    "v_IoU": "m_vIoU",
    "v_IoU_Int": "vIoU_Int",
    "3D_IoU": "volume_IoU",
    "3D_Recall": "volume_Recall",
    "3D_Precision": "volume_Precision",
}


def golden(name: str) -> dict[str, Any]:
    path = files.SHARED / "golden" / "metrics" / f"{name}.json"
    if not path.exists():
        pytest.skip(f"no golden file {name}")
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return data


@pytest.mark.parametrize("model", ["vidi2", "gpt-5", "qwen3-vl-32b-instruct", "gemini-3-pro-preview"])
def test_vue_stg_tables_are_reproduced(model: str) -> None:
    summary = golden("vue_stg_published")["summary"][model]
    folder = files.SHARED / "data" / "vue_stg"
    path = folder / f"pred_{model}.300.csv"
    scores = score_file(path, "vue_stg", ["vue_stg"], benchmark="vue-stg", data=folder)
    metrics = scores.columns["vue_stg"].metrics
    for theirs, ours in VUE.items():
        assert f"{metrics[ours].mean:.3f}" == f"{summary[theirs]:.3f}", theirs  # as their table prints
        assert metrics[ours].mean == pytest.approx(summary[theirs], abs=1e-6), theirs
    asked = {line.split(",")[0] for line in path.read_text(encoding="utf-8").splitlines()[1:]}
    assert scores.n == 300 and len(scores.missing) == 300 - len(asked) == scores.counts["missing"]


def test_moment_detr_sample_is_scored_as_score_moments_does() -> None:
    folder = files.SHARED / "data" / "qvhighlights"
    path = folder / "moment_detr_sample_val_preds.150.jsonl"
    if not path.exists():
        pytest.skip("no published moment_detr predictions")

    def lines(name: str) -> list[Any]:
        return [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]

    wanted = score_moments(lines(path.name), lines("highlight_val_release.300.jsonl"), "moment_detr").metrics
    scores = score_file(path, protocols=["moment_detr"], benchmark="qvhighlights", data=folder)
    got = scores.columns["moment_detr"].metrics
    assert set(got) == set(wanted) and len(wanted) > 90
    for name, value in wanted.items():
        assert got[name].mean == pytest.approx(value, abs=1e-9), name
    assert len(scores.missing) == 150


@pytest.mark.parametrize("task", ["stvg", "svg", "elc"])
def test_llavast_aggregates(task: str, tmp_path: Path) -> None:
    told = golden(f"llavast_{task}")
    kept = set(told["aggregate"]["case_ids"])
    rows = [{"id": c["id"], **c["input"]} for c in told["cases"] if c["id"] in kept]
    path = tmp_path / "results.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    scores = score_file(path, protocols=["llavast"])
    assert scores.format == "llavast" and scores.task == task and scores.n == len(rows)
    metrics = scores.columns["llavast"].metrics
    wanted = told["aggregate"]["result"]
    for theirs, ours in (("mtiou", "m_tIoU"), ("msiou", "m_sIoU"), ("mstiou", "m_vIoU")):
        assert metrics[ours].mean == pytest.approx(wanted[theirs], abs=1e-6)
    for name in ("tIoU", "sIoU", "vIoU"):
        for limit in ("0.3", "0.5", "0.7"):
            assert 100 * metrics[f"{name}@{limit}"].mean == pytest.approx(
                wanted[f"{name.lower()}@{limit}"], abs=1e-6
            )


@pytest.mark.parametrize(("name", "file"), [("stvg_r1", "stvg_r1"), ("doro", "doro_stvg")])
def test_means_of_golden_cases(name: str, file: str, tmp_path: Path) -> None:
    cases = golden(file)["cases"]
    path = files.write_lines(tmp_path / "p.jsonl", [{"id": c["id"], **c["input"]} for c in cases])
    scores = score_file(path, protocols=[name])
    assert scores.format == name and scores.n == len(cases) == 200
    for key in ("tIoU", "vIoU"):
        mean = np.mean([c["output"][key] for c in cases])
        assert scores.columns[name].metrics[f"m_{key}"].mean == pytest.approx(mean, abs=1e-9)


def test_doro_reads_its_published_record(tmp_path: Path) -> None:
    path = files.SHARED / "data" / "hcstvg" / "qwen3vl_prediction_sample.json"
    if not path.exists():
        pytest.skip("no published DORO record")
    data = files.hcstvg_data(tmp_path / "data")
    text = (data / "val_v2.json").read_text(encoding="utf-8").replace("1_a.mp4", "50_TM5MPJIq1Is.mkv")
    (data / "val_v2.json").write_text(text, encoding="utf-8")
    scores = score_file(path, benchmark="hcstvg-v2", data=data)
    assert scores.format == "doro" and scores.missing == ("2_b.mp4",)
    # frames 0-10 of 100 against 10-29: one frame of thirty is shared
    assert scores.columns["tubelet"].metrics["m_tIoU"].mean == pytest.approx(1 / 30 / 2)
