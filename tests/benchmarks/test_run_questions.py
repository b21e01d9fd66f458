"""The general benchmarks: subtitles, the project's own readings, hidden answers, and the files their scripts take."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake_models import Fake, Told, make_video

from tubelet.benchmarks.questions import OFFICIAL_READERS, prompt_of, subtitles_of, verdict_of
from tubelet.benchmarks.run import run_benchmark
from tubelet.benchmarks.run_select import parse_shard
from tubelet.benchmarks.run_shards import merge_shards
from tubelet.benchmarks.submission import write_submission
from tubelet.datasets import read
from tubelet.datasets.check import data_check
from tubelet.errors import DataError
from tubelet.metrics.choices import CHOICE_READERS

SRT = "1\n00:00:00,000 --> 00:00:00,500\nHello.\n\n2\n00:00:00,900 --> 00:00:02,000\nTwo cats.\n"


def write(path: Path, data: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return path


def mean(part: Any, name: str) -> float:
    return float(part.metrics[name].mean)


@pytest.fixture
def videomme(tmp_path: Path) -> Path:
    folder = tmp_path / "mme"
    row = {"domain": "Life Record", "sub_category": "x", "task_type": "Counting Problem", "duration": "short",
           "options": ["A. One.", "B. Two.", "C. Three.", "D. 4."], "answer": "B"}  # fmt: skip
    rows = [
        {
            **row,
            "video_id": f"00{k}",
            "videoID": name,
            "question_id": f"00{k}-1",
            "question": f"How many {name}?",
        }
        for k, name in ((1, "cats"), (2, "dogs"))
    ]
    write(folder / "videomme.json", rows)
    for name in ("cats", "dogs"):
        make_video(folder / "data" / f"{name}.mp4")
    write(folder / "subtitle" / "cats.srt", SRT)
    return folder


class Reader(Told):
    """Says which frames it reads."""

    def encode(self, video: Any, window: Any = None) -> Any:
        super().encode(video, window)
        return SimpleNamespace(name=video.path.name, grid=SimpleNamespace(times_s=np.array([1.0, 1.5])))

    def ask(self, state: Any, question: str, max_new_tokens: int = 64) -> str:
        return super().ask(state.name, question, max_new_tokens)


def test_video_mme_with_subtitles_of_the_frames_that_are_read(videomme: Path, tmp_path: Path) -> None:
    cats, dogs = read("video-mme", videomme, "test_subtitles")
    assert cats.extra["subtitles"]["file"] == "subtitle/cats.srt" and dogs.extra["subtitles"] is None
    assert dogs.notes[0].startswith("subtitles-missing")
    model = Reader({"cats": "B", "dogs": "B"})
    part = run_benchmark(model, "video-mme", videomme, tmp_path / "run", split="test_subtitles").parts["qa"]  # type: ignore[arg-type]
    assert mean(part, "accuracy") == 1.0
    asked = dict(model.asked)
    plain = "Select the best answer to the following multiple-choice question based on the video. "
    assert asked["cats.mp4"].startswith(f"This video's subtitles are listed below:\nTwo cats.\n{plain}")
    assert asked["dogs.mp4"].startswith(plain)
    # without subtitles it is another split, so another run
    model = Reader({"cats": "B", "dogs": "B"})
    run_benchmark(model, "video-mme", videomme, tmp_path / "plain")  # type: ignore[arg-type]
    assert all(said.startswith(plain) for _, said in model.asked)
    with pytest.raises(DataError, match="split"):
        run_benchmark(model, "video-mme", videomme, tmp_path / "run", split="test")  # type: ignore[arg-type]


def test_subtitles_that_cannot_be_had_are_said(videomme: Path, tmp_path: Path) -> None:
    cats, dogs = read("video-mme", videomme, "test_subtitles")
    assert subtitles_of(cats, [tmp_path, videomme]) == "Hello.\nTwo cats."
    assert subtitles_of(dogs, [videomme]) == ""
    write(videomme / "subtitle" / "cats.srt", SRT + "\n")
    with pytest.raises(DataError, match="have changed since the run was started"):
        subtitles_of(cats, [videomme])
    (videomme / "subtitle" / "cats.srt").unlink()
    with pytest.raises(DataError, match="are missing from the data folder"):
        subtitles_of(cats, [videomme])
    with pytest.raises(DataError, match="has no subtitles named by videoID"):
        read("video-mme", videomme, "test_subtitles")
    with pytest.raises(DataError, match="is one file"):
        read("video-mme", videomme / "videomme.json", "test_subtitles")
    report = data_check("video-mme", videomme)
    assert [split.split for split in report.splits] == ["test"]  # the other needs files that are not there
    # a file that breaks while a run goes on fails its questions, and nothing else
    write(videomme / "subtitle" / "cats.srt", SRT)

    class Late(Told):
        def encode(self, video: Any, window: Any = None) -> Any:
            write(videomme / "subtitle" / "cats.srt", "gone")
            return super().encode(video, window)

    model = Late({"cats": "B", "dogs": "B"})
    part = run_benchmark(model, "video-mme", videomme, tmp_path / "run", split="test_subtitles").parts["qa"]  # type: ignore[arg-type]
    assert part.n_failed == 1 and "have changed" in next(iter(part.failures.values()))


@pytest.mark.parametrize(
    ("said", "verdict"),
    [
        ("B", 1.0),
        ("The best answer is: B.", 1.0),
        ("(B) Two.", 1.0),
        ("The answer is C", 0.0),
        ("Answer: B", 0.0),  # the A of "Answer" is the first capital
        ("Both cats", 1.0),  # the B of "Both"
        ("two", None),
        ("", None),
    ],
)
def test_video_mme_is_read_as_its_own_script_does(said: str, verdict: float | None) -> None:
    """evaluation/eval_your_results.py: the first capital A to D after its phrases; none leaves its mean."""
    assert OFFICIAL_READERS["video-mme"] == "videomme_official"
    assert CHOICE_READERS["videomme_official"](said, ("One.", "Two.", "Three.", "4."), "B") == verdict


def test_its_template_is_filled(videomme: Path, tmp_path: Path) -> None:
    model = Told({"cats": "The best answer is: B.", "dogs": "hm"})
    run_benchmark(model, "video-mme", videomme, tmp_path / "run")  # type: ignore[arg-type]
    filled = json.loads((tmp_path / "run/submission_video-mme_test.json").read_text())
    assert [(v["video_id"], v["duration"], v["duration_category"], v["missing"]) for v in filled] == [
        ("001", "short", "short", False),
        ("002", "short", "short", False),
    ]
    (question,) = filled[0]["questions"]
    assert (question["answer"], question["response"]) == ("B", "The best answer is: B.")
    assert question["task_type"] == "Counting Problem" and question["options"][1] == "B. Two."
    # it is what the reader takes for a template
    write(tmp_path / "again" / "output_test_template.json", filled)
    again = [record.id for record in read("video-mme", tmp_path / "again", "test")]
    assert again == ["001-1", "002-1"]


def make_egoschema(folder: Path, uids: str = "abcd") -> Path:
    options = {f"option {k}": f"C does {k}" for k in range(5)}
    write(folder / "questions.json", [{"q_uid": u, "question": f"What does {u}?", **options} for u in uids])
    write(folder / "subset_answers.json", {"b": 4})
    for uid in uids[:-1]:
        make_video(folder / "videos" / f"{uid}.mp4")
    return folder


def test_egoschema_full_set_is_a_file_for_the_server(tmp_path: Path) -> None:
    data = make_egoschema(tmp_path / "ego")
    said = {"does a": "(E)", "does b": "Option C.", "does c": "I cannot see it"}  # d has no video
    part = run_benchmark(Told(said), "egoschema", data, tmp_path / "run", split="full").parts["qa"]  # type: ignore[arg-type]
    assert (part.n, part.n_hidden, part.metrics) == (4, 4, {})
    sent = json.loads((tmp_path / "run/submission_egoschema_full.json").read_text())
    assert sent == {"a": 4, "b": 2, "c": -1, "d": -1}  # every question, also those without an option
    # shards make none, their merge does
    for k in (1, 2):
        run_benchmark(
            Told(said), "egoschema", data, tmp_path / f"s{k}", split="full", shard=parse_shard(f"{k}/2")
        )  # type: ignore[arg-type]
        assert not list((tmp_path / f"s{k}").glob("submission*"))
    merge_shards([tmp_path / "s1", tmp_path / "s2"], tmp_path / "merged")
    assert json.loads((tmp_path / "merged/submission_egoschema_full.json").read_text()) == sent


def test_tempcompass_captions_are_kept_for_its_judge(tmp_path: Path) -> None:
    question = (
        "Please describe the video.\nInformation A: he sits\nInformation B: he stands\nGenerated Caption:"
    )
    rows = {"v": {"action": [{"question": question, "answer": "B. he stands"}]}}
    write(tmp_path / "questions/captioning.json", rows)
    make_video(tmp_path / "videos/v.mp4")
    (record,) = read("tempcompass", tmp_path, "captioning")
    assert prompt_of(record) == question  # its last line says what is wanted: nothing is added
    with pytest.raises(DataError, match="no public answer"):
        verdict_of(record, "A man stands up.", "tempcompass")
    model = Told({"describe": "A man stands up."})
    part = run_benchmark(model, "tempcompass", tmp_path, tmp_path / "run", split="captioning").parts["qa"]  # type: ignore[arg-type]
    assert not part.metrics and "1 answers in free words are kept, not scored" in part.notes[0]
    kept = json.loads((tmp_path / "run/submission_tempcompass_captioning.json").read_text())
    assert kept == {
        "v": {"action": [{"question": question, "answer": "B. he stands", "prediction": "A man stands up."}]}
    }


@pytest.mark.parametrize("way", ["multi-choice", "yes_no", "caption_matching", "captioning"])
def test_the_four_ways_of_tempcompass_read_the_real_slices(way: str) -> None:
    path = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "tempcompass"
    if not path.is_dir():
        pytest.skip("the slices are not there")
    records = list(read("tempcompass", path / f"questions_{way}.80.json", way))
    assert records and all(prompt_of(r).startswith(str(r.extra["prompt"])) for r in records)
    for record in records:
        if way == "captioning":
            assert record.answer_index is None
        else:
            assert verdict_of(record, str(record.extra["answer"]), "tempcompass") == 1.0, record.id


def test_benchmarks_without_a_file_of_their_own_get_none(tmp_path: Path) -> None:
    item = {"question": "What?", "candidates": ["Sits", "Stands"], "video": "a.mp4", "answer": "Sits"}
    write(tmp_path / "json/action_antonym.json", [item])
    make_video(tmp_path / "video/ssv2_video/a.mp4")
    options = {"tasks": ["action_antonym"]}
    run_benchmark(Fake(), "mvbench", tmp_path, tmp_path / "run", read_options=options)  # type: ignore[arg-type]
    assert write_submission(tmp_path / "run") is None and not list((tmp_path / "run").glob("submission*"))
