"""A toy-world run read as any other: the same scores as it wrote itself, and a report on it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from report_help import Page

from tubelet.benchmarks.report.contents import make_contents
from tubelet.benchmarks.report.write import write_report
from tubelet.benchmarks.run_score import score_run
from tubelet.benchmarks.world import WorldResult, evaluate_world, judge, resumed_lines
from tubelet.benchmarks.world_qa import evaluate_world_qa
from tubelet.benchmarks.world_run import is_world_run, look_alikes, read_world_run
from tubelet.errors import DataError, TubeletError
from tubelet.tube import Prediction, Span, Tube
from tubelet.world.files import read_annotations

N = 12


class Nearly:
    """Answers a little late, with a little too large a box; one video is broken. Captions and words: constants."""

    name, revision = "nearly", "r1"

    def __init__(self, folder: Path, late_s: float = 0.2) -> None:
        self.folder, self.late_s = folder, late_s
        self.known: dict[str, list[dict[str, Any]]] = {}

    def encode(self, video: str) -> str:
        if not self.known:
            for r in read_annotations(self.folder / "data"):
                self.known.setdefault(Path(r["video"]).name, []).append(r)
        if Path(video).name.endswith("00002.mp4"):
            raise DataError("no frame to my taste")
        return Path(video).name

    def ground_many(
        self, video: str, queries: Sequence[str], task: str, span: Any = None, span_reader: Any = None
    ) -> list[Prediction]:
        return [self._answer(video, q, task) for q in queries]

    def _answer(self, video: str, query: str, task: str) -> Prediction:
        r = next(r for r in self.known[video] if r["query"] == query)
        if r["span"] is None or not r["times_s"]:
            return Prediction(video, query, task, confidence=0.1)
        lo = r["span"]["start_s"] + self.late_s
        span = Span(lo, max(lo + 0.1, r["span"]["end_s"]))
        boxes = np.clip(np.array(r["boxes_xyxy"][:1]) + np.array([-0.02, -0.02, 0.02, 0.02]), 0, 1)
        return Prediction(video, query, task, (Tube(span, np.array([lo]), boxes, score=0.7),), confidence=0.9)

    def ask(self, video: str, question: str) -> str:
        return "yes"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, WorldResult]:
    folder = tmp_path_factory.mktemp("world")
    model, bad = Nearly(folder), Nearly(folder, late_s=1.0)
    bad.name = "nearly, untrained"
    return folder, evaluate_world(model, folder, n=N, seed=7, height=48, fps=10, untrained=bad)  # type: ignore[arg-type]


def test_its_scores_are_those_that_it_wrote(world: tuple[Path, WorldResult]) -> None:
    folder, result = world
    run = read_world_run(folder)
    part = score_run(run).parts["stvg"]
    assert part.n == N and part.n_failed == result.n_failed == 1
    same = {"sIoU": "sIoU_given_span"}
    for name, value in result.metrics.items():
        found = part.metrics[same.get(name, name)]
        assert (found.mean, found.low, found.high, found.n) == pytest.approx(  # type: ignore[union-attr]
            (value.mean, value.low, value.high, value.n), abs=1e-9
        ), name
    assert run.card["model"] == "nearly" and run.card["benchmark"] == "world" and run.card["seed"] == 7
    assert set(run.card["baselines"]) == {"untrained", "constant_centre", "random_track"}


def test_the_truth_loses_no_box_to_rounding(world: tuple[Path, WorldResult]) -> None:
    """Exact answers on exact frames: every box counts, also where microseconds would round it off its frame."""
    folder, _ = world
    records = [r for r in read_annotations(folder / "data") if r["present"]]
    lines = {}
    for r in records:
        boxes = np.array(r["boxes_xyxy"])
        times = np.array(r["frame_index"]) / r["fps"]
        tube = Tube(Span(times[0], times[-1] + 1 / r["fps"]), times, boxes)
        lines[r["id"]] = {"id": r["id"], "prediction": Prediction("v", "q", "svg", (tube,)).to_dict()}
        r["span"] = tube.span.to_dict()
    assert judge(records, lines, "svg").metrics["sIoU"].mean > 0.9999


def test_look_alikes_agree_with_the_twin_tag(world: tuple[Path, WorldResult]) -> None:
    folder, _ = world
    run = read_world_run(folder)
    told = {r.id: (r.tags["look_alikes"], r.tags["twin"]) for r in run.records if "look_alikes" in r.tags}
    assert len(told) == sum(r.present for r in run.records)
    assert all((count > 0) == twin for count, twin in told.values()) and len(set(told.values())) > 1
    for line in read_annotations(folder / "data"):  # what is written is what is found from the boxes
        assert line["tags"].get("look_alikes") == look_alikes(line)
    absent = next(r for r in read_annotations(folder / "data") if not r["present"])
    assert look_alikes(absent) is None


def test_it_can_be_reported_beside_its_untrained_model(
    world: tuple[Path, WorldResult], tmp_path: Path
) -> None:
    folder, result = world
    page = Page(write_report([folder], tmp_path / "one")[0].read_text())
    row = page.rows()["m_vIoU"]
    assert row[2] == str(result.metrics["m_vIoU"]) and "baseline: random track" in page.text
    assert any(str(result.baselines["random_track"]["m_vIoU"]) == cell for cell in row)
    assert page.all("img") and "no frame to my taste" in page.text
    assert is_world_run(folder / "untrained.jsonl") and not is_world_run(folder / "metrics.json")
    page = Page(write_report([folder, folder / "untrained.jsonl"], tmp_path / "two", cases=0)[0].read_text())
    assert "nearly, untrained" in page.text and "Paired differences" in page.text
    for name in ("constant_centre", "random_track"):
        shown = str(result.baselines[name]["m_vIoU"])
        assert f"baseline: {name.replace('_', ' ')}" in page.text and shown in page.rows()["m_vIoU"]
    assert "baseline: untrained" not in page.text, "it is a run of this report"


def test_untrained_models_of_two_runs_are_told_apart(world: tuple[Path, WorldResult], tmp_path: Path) -> None:
    folder, _ = world
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    kept = json.loads((other / "metrics.json").read_text())
    kept["baselines"]["untrained"]["m_vIoU"]["mean"] = 0.9876
    (other / "metrics.json").write_text(json.dumps(kept))
    made = make_contents([folder, other], cases=0)
    names = list(made.tasks[0].baselines)
    untrained = [f"untrained of {name}" for name in made.names]
    assert set(names) == {"constant_centre", "random_track", *untrained}
    assert made.tasks[0].baselines[untrained[1]]["m_vIoU"].mean == 0.9876
    assert not (folder / "report.html").exists(), "with --out nothing is written into the run"


def test_files_that_are_no_such_run(world: tuple[Path, WorldResult], tmp_path: Path) -> None:
    folder, _ = world
    (tmp_path / "data").symlink_to(folder / "data")
    lines = (folder / "predictions.jsonl").read_text().splitlines()

    def reading(*rows: str) -> Path:
        (tmp_path / "predictions.jsonl").write_text("\n".join(rows) + "\n")
        return tmp_path

    assert len(read_world_run(reading(*lines[:4])).lines) == 3, "unfinished runs can be read"
    for rows, said in (
        (lines[1:], "has no header"),
        ([*lines[:2], lines[2][:50]], "line 3: not JSON"),
        ([*lines[:2], lines[1]], "was there before"),
        ([*lines[:2], lines[2].replace('"id": "test', '"id": "train')], "is no query of"),
        ([*lines[:2], '{"id": "x"}'], "line 3: a line of predictions needs a prediction"),
        ([*lines[:2], '{"id": "x", "answer": 3}'], "line 3: an answer in words has"),
        ([*lines[:2], "[]"], "line 3: expected an object"),
    ):
        with pytest.raises(DataError, match=said):
            read_world_run(reading(*rows))


def test_answers_in_words_score_as_they_did(tmp_path: Path) -> None:
    model = Nearly(tmp_path)
    model.encode = lambda video: "any"  # type: ignore[method-assign]
    result = evaluate_world_qa(model, tmp_path, n=5, seed=4, height=48, fps=10)  # type: ignore[arg-type]
    part = score_run(read_world_run(tmp_path)).parts["qa"]
    for name, kind in (("exact_answer", "all"), ("caption_word_F1", "caption")):
        found, told = part.metrics[name], result.accuracy[kind]
        assert (found.mean, found.n) == (pytest.approx(told.mean), told.n)  # type: ignore[union-attr]
    page = Page(write_report([tmp_path], cases=1)[0].read_text())
    assert str(part.metrics["exact_answer"]) in page.text and "Questions (qa)" in page.text
    assert (
        json.loads((tmp_path / "metrics.json").read_text())["accuracy"]["all"]["n"]
        == part.metrics["exact_answer"].n
    )  # type: ignore[union-attr]


SEPARATOR = "a\u2028b\x85c"  # line ends to str.splitlines(), not to JSON


def test_only_a_line_feed_ends_a_line(world: tuple[Path, WorldResult], tmp_path: Path) -> None:
    folder, _ = world
    (tmp_path / "data").symlink_to(folder / "data")
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    rows[1]["prediction"]["text"] = SEPARATOR
    path = tmp_path / "predictions.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    assert read_world_run(tmp_path).lines[rows[1]["id"]].prediction.text == SEPARATOR
    assert len(resumed_lines(path, rows[0]["run"])) == len(rows) - 1


def test_a_resume_drops_half_a_last_line_and_no_other(
    world: tuple[Path, WorldResult], tmp_path: Path
) -> None:
    whole = (world[0] / "predictions.jsonl").read_bytes()
    lines, path = whole.splitlines(keepends=True), tmp_path / "predictions.jsonl"
    header = json.loads(lines[0])["run"]
    path.write_bytes(b"".join(lines[:3]) + lines[3][:40] + b"\xc3")  # in the middle of a character
    assert len(resumed_lines(path, header)) == 2 and path.read_bytes() == b"".join(lines[:3])
    for middle, said in (
        (lines[2][:40] + b"\n", "line 3: not JSON"),
        (b"[]\n", "line 3: neither the header of a run nor an answer"),
        (b'{"id": 3}\n', "line 3: neither"),
        (b'{"run": {"model": "other"}}\n', "belongs to another run"),
    ):
        damaged = lines[0] + lines[1] + middle + lines[3]
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=said):
            resumed_lines(path, header)
        assert path.read_bytes() == damaged, "nothing is thrown away"


ODD = (
    st.sampled_from([None, True, -1, 0.5, 1e308, 10**30, float("nan"), "", "x", [], {}, [[]]]) | st.integers()
)


def ways(value: Any, way: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inside: list[Any] = list(value) if isinstance(value, dict) else []
    if isinstance(value, list):
        inside = list(range(min(2, len(value))))
    return ([way] if way else []) + [w for key in inside for w in ways(value[key], (*way, key))]


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_damage_is_one_of_our_errors(
    world: tuple[Path, WorldResult], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    names = ("predictions.jsonl", "metrics.json", "data/annotations.jsonl")
    (folder / "data").mkdir()
    whole = {name: (world[0] / name).read_bytes() for name in names}
    name = data.draw(st.sampled_from(names))
    if data.draw(st.booleans()):
        lines = whole[name].decode().split("\n")[:-1] if name.endswith("l") else [whole[name].decode()]
        at = data.draw(st.integers(0, min(3, len(lines) - 1)))
        value = json.loads(lines[at])
        *way, last = data.draw(st.sampled_from(ways(value)))
        place = value
        for key in way:
            place = place[key]
        place[last] = data.draw(ODD)
        lines[at] = json.dumps(value)
        whole[name] = "".join(line + "\n" for line in lines).encode()
    else:
        at, gone = (
            data.draw(st.integers(0, len(whole[name]))),
            data.draw(st.sampled_from([0, 1, 9, 80, 10**6])),
        )
        whole[name] = whole[name][:at] + data.draw(st.binary(max_size=6)) + whole[name][at + gone :]
    for other, content in whole.items():
        (folder / other).write_bytes(content)
    for read in (
        lambda: json.dumps(score_run(read_world_run(folder)).n),
        lambda: resumed_lines(folder / "predictions.jsonl", {}),
    ):
        try:
            read()
        except TubeletError as error:
            assert str(error)
