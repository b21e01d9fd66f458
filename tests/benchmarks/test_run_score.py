"""Whole runs on tiny copies of the benchmarks: perfect answers score 1, failures 0, every task by its own rules."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_models import FRAMES, Fake, Told, lines_of, make_video, make_vstar
from PIL import Image

from tubelet.benchmarks.questions import prompt_of, verdict_of
from tubelet.benchmarks.run import Progress, render_scores, run_benchmark
from tubelet.benchmarks.run_folder import read_run
from tubelet.benchmarks.run_score import protocols_for
from tubelet.benchmarks.run_select import default_split, parse_shard, select
from tubelet.benchmarks.run_shards import merge_shards
from tubelet.datasets import read
from tubelet.datasets.problems import Problems
from tubelet.errors import DataError
from tubelet.tube import Span, Tube


def mean(part: Any, name: str) -> float:
    value = part.metrics[name]
    return float(getattr(value, "mean", value))


def write(path: Path, data: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return path


RIGHT = np.array([[0.125, 0.125, 0.5, 0.5]])


def right(task: str, span: Span | None) -> tuple[Tube, ...]:
    """The truth of every V-STaR item of fake_models."""
    span = span or Span(0.5, 1.5)
    return (Tube(span, score=1.0),) if task == "tvg" else (Tube(span, np.array([1.0]), RIGHT, score=1.0),)


@pytest.fixture(scope="module")
def vstar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_vstar(tmp_path_factory.mktemp("vstar"), videos=4)


def oracle(folder: Path, **options: Any) -> Told:
    return Told(
        {r.query: r.answer if r.task == "qa" else right for r in read("v-star", folder, "test")}, **options
    )


def test_the_truth_scores_one_in_every_task(vstar: Path, tmp_path: Path) -> None:
    model, told = oracle(vstar), []
    scores = run_benchmark(model, "v-star", vstar, tmp_path, progress=told.append)
    assert scores.n == 32 and scores.n_failed == 0
    assert mean(scores.parts["stvg"], "m_tIoU") == mean(scores.parts["tvg"], "mIoU") == 1.0
    # one box at one second: vIoU counts all frames of the span, boxes are held
    assert (
        mean(scores.parts["stvg"], "sIoU_given_span") == mean(scores.parts["svg"], "sIoU_given_span") == 1.0
    )
    assert mean(scores.parts["tvg"], "R1@0.7") == 1.0
    assert "free words" in scores.parts["qa"].notes[0] and not scores.parts["qa"].metrics
    assert set(scores.parts["tvg"].groups["domain"]) == {"home", "sports"}
    # every video once, for four tasks and two items
    assert sorted(name for name, _ in model.encoded) == ["v0.mp4", "v1.mp4", "v2.mp4", "v3.mp4"]
    assert (told[-1].done, told[-1].total, told[-1].left_s) == (32, 32, 0.0) and len(told) == 4
    assert told[0].queries_per_s > 0 and told[0].left_s is not None and "queries" in str(told[0])
    text = render_scores(scores)
    assert "task stvg under tubelet: 8 queries, 0 failed" in text and "by domain" in text
    line = json.loads((tmp_path / "predictions.jsonl").read_text().splitlines()[0])
    assert line["prediction"]["video"] == "videos/v0.mp4"  # below the data folder, not a machine's path
    assert str(tmp_path) not in (tmp_path / "run.json").read_text()


def test_failures_are_predictions_with_reasons_and_count_as_zero(tmp_path: Path) -> None:
    data = make_vstar(tmp_path / "data", videos=4)
    (data / "videos" / "v0.mp4").unlink()
    (data / "videos" / "v1.mp4").write_bytes((data / "videos" / "v1.mp4").read_bytes()[:200])
    model = oracle(data, broken=["v2.mp4"], hopeless=["When does 0 throw it?"])
    scores = run_benchmark(model, "v-star", data, tmp_path / "run")
    run = read_run(tmp_path / "run")
    reasons = {key: line.prediction.failure for key, line in run.lines.items()}
    assert "videos/v0.mp4 is missing from the data folder" in str(reasons["v0-0-when"])
    assert reasons["v1-1-when"] and str(tmp_path) not in str(reasons["v1-1-when"])
    assert reasons["v2-2-when"] == "the video cannot be encoded: no frame to my taste"
    assert reasons["v3-3-when"] == "out of memory"
    assert reasons["v3-7-when"] is None, "the other questions of the pack are answered"
    tvg = scores.parts["tvg"]
    assert (tvg.n, tvg.n_failed, mean(tvg, "mIoU")) == (8, 7, 1 / 8)
    assert (scores.parts["stvg"].n_failed, mean(scores.parts["stvg"], "m_tIoU")) == (6, 0.25)
    assert mean(scores.parts["stvg"], "sIoU_given_span") == 0.25
    assert scores.n_failed == 6 + 6 + 6 + 7
    kept = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert len(kept["parts"]["tvg"]["failures"]) == 7 and kept["n_failed"] == 25


def test_reading_ahead_changes_nothing(vstar: Path, tmp_path: Path) -> None:
    for prefetch in (0, 1, 3):
        run_benchmark(Fake(), "v-star", vstar, tmp_path / str(prefetch), prefetch=prefetch)
    assert lines_of(tmp_path / "0") == lines_of(tmp_path / "1") == lines_of(tmp_path / "3")


def test_limit_shard_and_merge(vstar: Path, tmp_path: Path) -> None:
    whole = run_benchmark(Fake(), "v-star", vstar, tmp_path / "whole", limit=23)
    folders, asked = [], []
    for k in range(3):
        fake = Fake()
        run_benchmark(fake, "v-star", vstar, tmp_path / f"s{k}", limit=23, shard=parse_shard(f"{k + 1}/3"))
        folders.append(tmp_path / f"s{k}")
        asked += [name for name, _ in fake.encoded]
    assert len(asked) == len(set(asked)) == 4, "a shard holds whole videos"
    merged = merge_shards([folders[2], folders[0], folders[1]], tmp_path / "merged")
    assert lines_of(tmp_path / "merged") == lines_of(tmp_path / "whole") and merged.n == whole.n == 23
    assert merged.parts == whole.parts  # the order too, so the intervals
    assert (tmp_path / "merged/records.jsonl").read_bytes() == (tmp_path / "whole/records.jsonl").read_bytes()
    card = json.loads((tmp_path / "merged/run.json").read_text())
    assert card["shard"] == [0, 1] and len(card["merged_from"]) == 3
    for given, says in (
        (folders[:2], "shard 3/3 is missing"),
        ([*folders, folders[1]], "shard 2/3 is given twice"),
        ([], "no shards"),
    ):
        with pytest.raises(DataError, match=says):
            merge_shards(given, tmp_path / "bad")
    run_benchmark(Fake(), "v-star", vstar, tmp_path / "odd", limit=22, shard=(2, 3))
    with pytest.raises(DataError, match=r"another run than .*: data_hash, limit differ"):
        merge_shards([*folders[:2], tmp_path / "odd"], tmp_path / "bad")
    with pytest.raises(DataError, match="holds a run already"):
        merge_shards(folders, tmp_path / "merged")
    (folders[0] / "predictions.jsonl").write_text("")
    with pytest.raises(DataError, match="not finished"):
        merge_shards(folders, tmp_path / "bad")
    assert not (tmp_path / "bad").exists()


def test_what_cannot_be_selected_is_said_first(vstar: Path, tmp_path: Path) -> None:
    fake = Fake()
    for options, says in (
        ({"task": "elc"}, "of task elc: it has qa, tvg, svg, stvg"),
        ({"limit": 0}, "at least 1"),
        ({"shard": (3, 3)}, "0 <= i < n"),
        ({"split": "train"}, "no split 'train'"),
        ({"protocol": "tubedetr", "task": "tvg"}, "scores none of the tasks here"),
    ):
        with pytest.raises(DataError, match=says):
            run_benchmark(fake, "v-star", vstar, tmp_path / "run", **options)
    assert fake.encoded == [] and not (tmp_path / "run").exists()
    assert default_split("hcstvg-v2") == "val" and default_split("video-mme") == "test"
    with pytest.raises(DataError, match=r"no default split: name one of .*refcoco_val"):
        default_split("refcoco")
    for text in ("0/3", "4/3", "x", "1/0", "-1/2", ""):
        with pytest.raises(DataError, match="a shard is i/n"):
            parse_shard(text)
    with pytest.raises(DataError, match="it is empty"):
        select([])
    assert str(Progress(10, 100, 2, 0.5, 4000.0)) == "10/100 queries, 0.50/s, 1:06:40 left, 2 failed"


def test_every_protocol_of_tubes_scores_a_run(vstar: Path, tmp_path: Path) -> None:
    run_benchmark(oracle(vstar), "v-star", vstar, tmp_path, task="stvg")
    for protocol in protocols_for("stvg"):
        scores = run_benchmark(oracle(vstar), "v-star", vstar, tmp_path, task="stvg", protocol=protocol)
        # a box on one frame only: the challenge script counts frames that carry boxes as the span
        least = 0.1 if protocol == "hcstvg_official" else 0.9
        assert mean(scores.parts["stvg"], "m_tIoU") == pytest.approx(max(least, 1.0), abs=1 - least), protocol


def test_broken_annotations_are_counted_on_request(vstar: Path, tmp_path: Path) -> None:
    rows = json.loads((vstar / "V_STaR_test.json").read_text())
    rows[0]["timestamps"] = [2, 1]
    path, problems = write(tmp_path / "broken.json", rows), Problems()
    with pytest.raises(DataError, match="timestamps"):
        run_benchmark(Fake(), "v-star", path, tmp_path / "run", videos=vstar)
    scores = run_benchmark(Fake(), "v-star", path, tmp_path / "run", videos=vstar, on_error=problems)
    assert problems.count == 4 and scores.n == 28
    assert json.loads((tmp_path / "run/run.json").read_text())["broken_records"] == 4


def test_charades_with_a_segment_and_protocols_of_spans(tmp_path: Path) -> None:
    write(tmp_path / "charades_sta_test.txt", "A 0.5 1.5##she sits\nA 1.0 9.9##he stands\n")
    write(tmp_path / "Charades_v1_test.csv", "id,length\nA,2.0\n")
    make_video(tmp_path / "Charades_v1_480" / "A.mp4")
    answers = {"she sits": (Tube(Span(0.5, 1.5)),), "he stands": ()}
    scores = run_benchmark(Told(answers), "charades-sta", tmp_path, tmp_path / "run")
    part = scores.parts["tvg"]
    assert (mean(part, "mIoU"), mean(part, "R1@0.5"), part.n_failed) == (0.5, 0.5, 0)
    scores = run_benchmark(Told(answers), "charades-sta", tmp_path, tmp_path / "run", protocol="moment_detr")
    assert mean(scores.parts["tvg"], "MR-full-mAP") == 0.5


def test_tvgbench_hands_over_only_the_segment(tmp_path: Path) -> None:
    from tubelet.benchmarks.run_video import group_by_video
    from tubelet.datasets.record import Record, VideoRef

    refs = [VideoRef("a", ("a.mp4",), segment_s=s) for s in (Span(0.5, 1), Span(0.5, 1), None, Span(0, 9))]
    records = [Record("d", "s", str(k), "tvg", "q", ref, (Span(0.5, 1),)) for k, ref in enumerate(refs)]
    assert [len(g.records) for g in group_by_video(records)] == [2, 1, 1]


def test_didemo_ranks_segments(tmp_path: Path) -> None:
    rows = [
        {"num_segments": 6, "description": text, "dl_link": "x", "times": [[2, 2]] * 4, "video": "a.mp4",
         "annotation_id": k}
        for k, text in enumerate(("one", "two"))
    ]  # fmt: skip
    write(tmp_path / "test_data.json", rows)
    make_video(tmp_path / "videos" / "a.mp4", frames=60, fps=2)
    answers = {"one": (Tube(Span(10.5, 14.5)),), "two": (Tube(Span(0, 5)),)}
    scores = run_benchmark(Told(answers), "didemo", tmp_path, tmp_path / "run")
    part = scores.parts["tvg"]
    assert part.protocol == "didemo" and (mean(part, "rank@1"), mean(part, "mIoU")) == (0.5, 0.5)


def test_refcoco_boxes(tmp_path: Path) -> None:
    image = {"file_name": "x.jpg", "height": 32, "width": 64}
    boxes = [[16, 8, 16, 8], [0, 0, 64, 32]]
    data = {
        "info": {},
        "images": [{**image, "id": k, "original_id": 7, "caption": c} for k, c in enumerate(("lady", "dog"))],
        "annotations": [
            {"bbox": b, "category_id": 1, "iscrowd": 0, "id": k, "image_id": k} for k, b in enumerate(boxes)
        ],
    }
    write(tmp_path / "finetune_refcoco_testA.json", data)
    Image.new("RGB", (64, 32)).save(tmp_path / "x.jpg")
    box = np.array([[0.25, 0.25, 0.5, 0.5]])
    tube = (Tube(Span(0, 0.04), np.zeros(1), box),)
    model = Told({"lady": tube, "dog": tube})
    scores = run_benchmark(model, "refcoco", tmp_path, tmp_path / "run", split="refcoco_testA")
    part = scores.parts["rec"]
    assert (mean(part, "ACC@0.5"), part.protocol, part.n) == (0.5, "refcoco", 2)
    assert mean(part, "IoU") == pytest.approx((1 + 1 / 16) / 2)


def test_mvbench_asks_its_prompt_about_its_seconds(tmp_path: Path) -> None:
    item = {"question": "What is done?", "candidates": ["Sits", "Stands", "Runs"], "video": "a.mp4"}
    write(tmp_path / "json/action_sequence.json", [{**item, "answer": "Stands", "start": 0.5, "end": 1.5}])
    write(tmp_path / "json/action_antonym.json", [{**item, "answer": "Runs", "question": "And here?"}])
    for place in ("star/Charades_v1_480", "ssv2_video"):
        make_video(tmp_path / "video" / place / "a.mp4")
    model = Told({"What is done?": "(B) Stands", "And here?": ""})
    options = {"tasks": ["action_sequence", "action_antonym"]}
    scores = run_benchmark(model, "mvbench", tmp_path, tmp_path / "run", read_options=options)
    assert model.asked[0] == (
        "a.mp4",
        "Question: What is done?\nOptions:\n(A) Sits\n(B) Stands\n(C) Runs\nOnly give the best option.",
    )
    # two files of one name are two videos; one is asked about a part of it
    assert model.encoded == [("a.mp4", Span(0.5, 1.5)), ("a.mp4", None)]
    assert len(read_run(tmp_path / "run").videos) == 2
    part = scores.parts["qa"]
    # the official check takes an empty answer for right; tubelet's own does not
    assert part.protocol == "mvbench_official"
    assert (mean(part, "accuracy"), mean(part, "accuracy_tubelet")) == (1.0, 0.5)
    assert mean(part, "accuracy") != mean(part, "accuracy_tubelet")
    kinds = part.groups["task_type"]
    assert kinds["action_sequence"]["accuracy_tubelet"].mean == 1.0  # type: ignore[union-attr]
    assert kinds["action_antonym"]["accuracy_tubelet"].mean == 0.0  # type: ignore[union-attr]


def test_an_unanswered_question_is_wrong_whatever_the_reader(tmp_path: Path) -> None:
    item = {"question": "What?", "candidates": ["Sits", "Stands"], "video": "gone.mp4", "answer": "Sits"}
    write(tmp_path / "json/action_antonym.json", [item])
    scores = run_benchmark(
        Told({}), "mvbench", tmp_path, tmp_path / "run", read_options={"tasks": ["action_antonym"]}
    )
    assert mean(scores.parts["qa"], "accuracy") == 0.0 and scores.n_failed == 1


def test_video_mme_and_egoschema(tmp_path: Path) -> None:
    row = {"video_id": "001", "videoID": "abc", "domain": "Life", "sub_category": "x", "task_type": "Counting",
           "question": "How many?", "options": ["A. One.", "B. Two.", "C. Three.", "D. 4."], "answer": "B"}  # fmt: skip
    rows = [{**row, "question_id": f"001-{k}", "duration": d} for k, d in enumerate(("short", "long"))]
    write(tmp_path / "videomme.json", rows)
    make_video(tmp_path / "data/abc.mp4")
    model = Told({"How many?": "The best answer is: B."})
    part = run_benchmark(model, "video-mme", tmp_path, tmp_path / "run").parts["qa"]
    assert mean(part, "accuracy") == 1.0 and set(part.groups["length"]) == {"short", "long"}
    prompt = model.asked[0][1]
    assert prompt.startswith(
        "Select the best answer to the following multiple-choice question based on the video."
    )
    assert prompt.endswith("How many?\nA. One.\nB. Two.\nC. Three.\nD. 4.\nThe best answer is:")
    ego = tmp_path / "ego"
    options = {f"option {k}": f"C does {k}" for k in range(5)}
    write(ego / "questions.json", [{"q_uid": u, "question": "What?", **options} for u in "ab"])
    write(ego / "subset_answers.json", {"b": 4})
    make_video(ego / "videos/b.mp4")
    part = run_benchmark(Told({"What?": "(E)"}), "egoschema", ego, tmp_path / "e1").parts["qa"]
    assert (mean(part, "accuracy"), part.n, part.protocol) == (1.0, 1, "egoschema")
    part = run_benchmark(Told({"What?": "(E)"}), "egoschema", ego, tmp_path / "e2", split="full").parts["qa"]
    assert (part.n, part.n_hidden, dict(part.metrics)) == (2, 2, {}) and "no public truth" in part.notes[0]


TEMPCOMPASS = {
    "multi-choice": ("What is happening? \nA. He sits\nB. He stands", "B. He stands", "give the best option:", [
        ("B", 1.0), ("B. He stands", 1.0), ("A", 0.0), ("B) yes", 1.0), ("He stands", None)]),
    "yes_no": ("Does he sit?", "no", "answer yes or no:", [
        ("No, he stands", 1.0), ("YES", 0.0), ("I think no", None), ("", None)]),
    "caption_matching": ("Which fits?\nOption 1: He sits.\nOption 2: He stands.", "Option 2: He stands.", "option:", [
        ("Option 2", 1.0), ("Option 2.", 1.0), ("He stands.", 1.0), ("2) He stands.", 1.0), ("Option 1", 0.0),
        ("Option 2: He stands.", 1.0), ("He sits.", 0.0), ("the second", None), ("a) ", None)]),
}  # fmt: skip


@pytest.mark.parametrize("way", TEMPCOMPASS)
def test_tempcompass_by_its_own_rules(tmp_path: Path, way: str) -> None:
    question, answer, ends, cases = TEMPCOMPASS[way]
    rows = {"v": {"action": [{"question": question, "answer": answer}]}}
    write(tmp_path / f"questions/{way}.json", rows)
    make_video(tmp_path / "videos/v.mp4")
    (record,) = read("tempcompass", tmp_path, way)
    assert prompt_of(record).startswith(question.split("\n")[0]) and prompt_of(record).endswith(ends)
    for said, verdict in cases:
        assert verdict_of(record, said, "tempcompass") == verdict, said
    model = Told({question.split("?")[0]: cases[0][0]})
    part = run_benchmark(model, "tempcompass", tmp_path, tmp_path / "run", split=way).parts["qa"]
    assert mean(part, "accuracy") == 1.0
    unread = next(said for said, verdict in cases if verdict is None)
    model = Told({question.split("?")[0]: unread})
    part = run_benchmark(model, "tempcompass", tmp_path, tmp_path / "run2", split=way).parts["qa"]
    assert mean(part, "accuracy") == 0.0 and "1 answers name no option" in part.notes[0]


def test_vue_stg_counts_only_the_annotated_seconds(tmp_path: Path) -> None:
    write(tmp_path / "query.csv", "query_id,query_text,video_id\nq,the dog,abc\n")
    write(tmp_path / "video.csv", "video_id,video_duration\nabc,8\n")
    rows = [f"q,{1000 * s},{s / 8},0.25,0.25,0.75,0.75" for s in (1, 2, 5, 6)]
    write(tmp_path / "tubes.csv", "query_id,time_ms,time_normalized,x0,y0,x1,y1\n" + "\n".join(rows) + "\n")
    make_video(tmp_path / "videos/abc.mp4", frames=80)
    box = np.array([[0.25, 0.25, 0.75, 0.75]])
    model = Told({"the dog": lambda task, span: (Tube(Span(1, 7), np.array([1.0]), box),)})
    part = run_benchmark(model, "vue-stg", tmp_path, tmp_path / "run").parts["stvg"]
    # six seconds answered, four of them true: the gap is not
    assert part.protocol == "vue_stg"
    assert mean(part, "m_tIoU") == pytest.approx(4 / 6) and mean(part, "m_vIoU") == pytest.approx(4 / 6)
    assert mean(part, "tRecall") == 1.0 and "2 true windows" in part.notes[-1]


def test_the_toy_world_with_a_real_model(tiny: Any, tmp_path: Path) -> None:
    """A SpaceVLLM: what the thread decodes is what `encode` would have decoded."""
    from tubelet.benchmarks.run_video import group_by_video
    from tubelet.world.files import make_world

    make_world(tmp_path / "data", 4, seed=4, questions=2, height=48, fps=8)
    whole = run_benchmark(tiny, "world", tmp_path / "data", tmp_path / "a", prefetch=2)
    run = read_run(tmp_path / "a")
    for group in group_by_video(run.records):
        state = tiny.encode(str(tmp_path / "data" / group.key))
        alone = tiny.ground_many(state, [r.query for r in group.records], "stvg")
        for record, wanted in zip(group.records, alone, strict=True):
            got = run.lines[record.id].prediction
            assert got.text == wanted.text and got.grid == state.grid and len(got.tubes) == len(wanted.tubes)
            assert [t.to_dict() for t in got.tubes] == [t.to_dict() for t in wanted.tubes]
            assert got.timings_s["decode_s"] > 0 and got.video == record.video.files[0]
    assert whole.parts["stvg"].n == len(run.records) and "sIoU_given_span" in whole.parts["stvg"].metrics
    assert run.card["sampling"]["max_frames"] == tiny.max_frames and run.card["versions"]["torch"]


def test_a_run_of_a_model_without_torch_imports_none() -> None:
    import subprocess

    code = "import sys, tubelet.benchmarks.run; assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
    assert FRAMES == 20
