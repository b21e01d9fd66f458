"""Conversations with times between the words: VTimeLLM, Moment-10M, ANet-RTL, Grounded-VideoLLM, VTG-IT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dataset_files as files
import pytest
from annotation_help import fails, one

from tubelet.datasets import read
from tubelet.datasets.problems import Problems
from tubelet.datasets.record import Record
from tubelet.datasets.talks import kind_of, times_of
from tubelet.tube import Span


def turns(*texts: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[k % 2], "value": text} for k, text in enumerate(texts)]


def said(record: Record) -> list[str]:
    return [turn["value"] for turn in record.extra["turns"]]


def vtimellm(folder: Path, *texts: str, split: str = "stage2", **more: Any) -> Path:
    meta = {
        "split": [20.0, 50.0],
        "duration": 30.0,
        "token": {"<s0>": 2, "<e0>": 9.5, "<s1>": 12, "<e1>": 30},
    }
    row = {"source": "internvid", "id": "abc", "conversations": turns(*texts), "meta": meta, **more}
    files.write_json(folder / f"{split}.json", [{k: v for k, v in row.items() if v is not None}])
    return folder


@pytest.mark.parametrize(
    ("texts", "kind"),
    [
        (
            ("When does he run?", "From <t0> to <t1>."),
            "temporal_grounded_conversation",
        ),  # not joined: moments
        (("When does he run?", "During the span of {<t0><t1>}."), "tvg"),
        (("Describe it.", "During the span of {<t0><t1>}, he runs."), "dvc"),
        (("Describe it.", "{<t0><t1>}: he runs. {<t2><t3>}: he sits."), "dvc"),
        (("What happens during {<t0><t1>}?", "He runs."), "temporal_referring"),
        (("What happens at <t0>?", "He runs until <t1>."), "temporal_grounded_conversation"),
        (("Who is it?", "A man.", "When?", "During {<t0><t1>}."), "temporal_grounded_conversation"),
        (("Who is it?", "A man."), "conversation"),
    ],
)
def test_what_a_conversation_is_good_for(texts: tuple[str, ...], kind: str) -> None:
    assert kind_of(texts) == kind


def test_vtimellm_times_are_of_the_clip_and_records_of_the_file(tmp_path: Path) -> None:
    folder = vtimellm(tmp_path, "<video>\nWhen does he run?", "From <s0> to <e0>.")
    record = one(read("vtimellm", folder, "stage2"))
    assert (record.id, record.task, record.tags) == ("abc/0", "tvg", {"source": "internvid", "kind": "tvg"})
    assert record.spans == (Span(22.0, 29.5),) and times_of(record) == [22.0, 29.5]
    assert said(record) == ["When does he run?", "During the span of {<t0><t1>}."]
    assert record.query == "When does he run?" and record.video.files[0] == "videos/abc.mp4"
    assert record.video.segment_s == Span(20.0, 50.0) and record.video.duration_s is None


def test_vtimellm_stage_2_asks_each_question_for_itself(tmp_path: Path) -> None:
    texts = ("What is seen from <s0> to <e0>?", "A dog.", "When is the cat there?", "From <s1> to <e1>.")
    two = list(read("vtimellm", vtimellm(tmp_path, *texts), "stage2"))
    assert [(r.id, r.task, r.tags["kind"]) for r in two] == [
        ("abc/0/0", "tr", "temporal_referring"),
        ("abc/0/1", "tvg", "tvg"),
    ]
    assert two[0].given_span == Span(22.0, 29.5) and two[0].answer == "A dog."
    assert two[1].spans == (Span(32.0, 50.0),) and times_of(two[1]) == [32.0, 50.0]
    whole = one(read("vtimellm", tmp_path, "stage2", pairs=False))
    assert whole.tags["kind"] == "temporal_grounded_conversation" and len(said(whole)) == 4
    other = vtimellm(tmp_path, *texts, split="stage3", source="anet")
    assert len(said(one(read("vtimellm", other, "stage3")))) == 4


def test_vtimellm_dense_captions_and_talk_without_times(tmp_path: Path) -> None:
    dense = "From <s0> to <e0>, a dog runs. Between <s1> and <e1>, it sits."
    record = one(read("vtimellm", vtimellm(tmp_path, "<video>\nDescribe.", dense), "stage2"))
    assert record.tags["kind"] == "dvc" and len(record.spans) == 2
    assert said(record)[1].startswith(
        "During the span of {<t0><t1>}, a dog runs. During the span of {<t2><t3>}"
    )
    plain = one(read("vtimellm", vtimellm(tmp_path, "<video>\nWho?", "A man.", meta=None), "stage2"))
    assert (plain.task, plain.tags["kind"], plain.answer, times_of(plain)) == (
        "qa",
        "conversation",
        "A man.",
        [],
    )
    assert plain.video.segment_s is None


@pytest.mark.parametrize(
    ("texts", "more", "says"),
    [
        (("When?", "From <s0> to <e7>."), {}, "<e7>.*is missing"),
        (("When?", "From <s0> to <e0>."), {"meta": None}, "stands for no time"),
        (("When?", "From <e0> to <s0>."), {}, "ends before it starts"),
        (("When?",), {}, "human and gpt in turns"),
        (("When?", "Then.", "And?"), {}, "human and gpt in turns|questions with their answers"),
        (("When?", "Then."), {"id": None}, "field id: is missing"),
        (("When?", "Then."), {"conversations": [{"from": "me", "value": "x"}]}, "expected human or gpt"),
        (("When?", "Then."), {"meta": {"duration": 0, "token": {}}}, "duration"),
        (("When?", "Then."), {"meta": {"duration": 5, "split": [9, 3]}}, "split"),
    ],
)
def test_vtimellm_what_is_wrong_is_said(
    tmp_path: Path, texts: tuple[str, ...], more: dict[str, Any], says: str
) -> None:
    fails("vtimellm", vtimellm(tmp_path, *texts, **more), "stage2", says)
    problems = Problems()
    assert list(read("vtimellm", tmp_path, "stage2", on_error=problems)) == [] and problems.count == 1


def moment(folder: Path, question: str, answer: str, variables: Any, **more: Any) -> Path:
    row = {"conversations": [{"User": question, "Assistant": answer}], "variables": variables, **more}
    files.write_json(folder / "Moment-10M_0.json", {"vid": {"segment_locate_data": [row]}})
    return folder


def test_moment_10m_writes_its_variables_out(tmp_path: Path) -> None:
    folder = moment(
        tmp_path,
        "When does the {instance_class} run?",
        "{moment}",
        {"moment": [3, 9.5], "instance_class": "dog"},
    )
    record = one(read("moment-10m", folder, "train"))
    assert said(record) == ["When does the dog run?", "{<t0><t1>}"]
    assert (record.id, record.task, record.spans) == ("vid/segment_locate_data/0", "tvg", (Span(3, 9.5),))
    assert record.video.files[0] == "videos/vid.mp4" and record.video.duration_s is None
    several = {"moment": [[1, 2], [3, 4], [5, 6]], "SOURCE_CLIP": [0.5, 7]}
    record = one(
        read("moment-10m", moment(tmp_path, "In {SOURCE_CLIP}, when?", "{moment}.", several), "train")
    )
    assert said(record) == ["In {<t0><t1>}, when?", "{<t2><t3>}, {<t4><t5>} and {<t6><t7>}."]
    assert record.tags["kind"] == "temporal_grounded_conversation"
    click = {"click_position": [4.5, [0.25, 0.5]]}
    record = one(
        read("moment-10m", moment(tmp_path, "Who is at {click_position}?", "A dog.", click), "train")
    )
    assert said(record)[0] == "Who is at (0.25, 0.50) at <t0>?" and times_of(record) == [4.5]
    assert record.tags["kind"] == "temporal_referring"


def test_moment_10m_scores_and_parts(tmp_path: Path) -> None:
    moment(tmp_path, "When?", "{moment}", {"moment": [1, 2]}, match_score=1.067)
    assert one(read("moment-10m", tmp_path, "train")).extra["score"] == 1.067
    assert (
        list(read("moment-10m", tmp_path, "train", scored=True)) == []
    )  # more than the threshold is asked for
    row = {"conversations": {"User": "Why?", "Assistant": "So."}, "variables": {}, "clip_similarity": 0.2}
    files.write_json(tmp_path / "Moment-10M_1.json", {"vid": {"qa_data": [row]}, "other": {"qa_data": [row]}})
    assert [r.id for r in read("moment-10m", tmp_path, "train")] == [
        "vid/segment_locate_data/0",
        "vid/qa_data/0",
        "other/qa_data/0",
    ]
    assert [r.id for r in read("moment-10m", tmp_path, "train", scored=True)] == [
        "vid/qa_data/0",
        "other/qa_data/0",
    ]


def test_moment_10m_event_sequences(tmp_path: Path) -> None:
    files.write_json(
        tmp_path / "GESM_data.json", {"v": {"timestamps": [[0, 4.1], [4.1, 9]], "captions": ["a", "b"]}}
    )
    records = list(read("moment-10m", tmp_path, "gesm"))
    assert [(r.id, r.query, r.span) for r in records] == [
        ("v_0", "a", Span(0, 4.1)),
        ("v_1", "b", Span(4.1, 9)),
    ]
    files.write_json(tmp_path / "GESM_data.json", {"v": {"timestamps": [[0, 4.1]], "captions": ["a", "b"]}})
    fails("moment-10m", tmp_path, "gesm", "one per timestamp")


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({}, "moment: a text names it"),
        ({"moment": [1]}, r"expected \[start, end\]"),
        ({"moment": [9, 2]}, "ends before it starts"),
        ({"moment": [-1, 2]}, "at or after 0 s"),
        ({"moment": "soon"}, r"expected \[start, end\]"),
    ],
)
def test_moment_10m_what_is_wrong_is_said(tmp_path: Path, variables: Any, says: str) -> None:
    fails("moment-10m", moment(tmp_path, "When?", "{moment}", variables), "train", says)


def test_anet_rtl(tmp_path: Path) -> None:
    pairs = [
        {"q": "When does she need help?", "a": "<12.5> <20> She falls."},
        {"q": "Why?", "a": "She is tired."},
    ]
    files.write_json(tmp_path / "activitynet_train_x.json", {"v_a": {"duration": 60.5, "QA": pairs}})
    first, second = read("anet-rtl", tmp_path, "train")
    assert said(first)[1] == "{<t0><t1>} She falls." and times_of(first) == [12.5, 20.0]
    assert (first.id, first.spans, first.video.duration_s) == ("v_a/0", (Span(12.5, 20.0),), 60.5)
    assert second.tags["kind"] == "conversation"
    files.write_json(
        tmp_path / "activitynet_train_x.json", {"v_a": {"duration": 60.5, "QA": [{"q": "When?"}]}}
    )
    fails("anet-rtl", tmp_path, "train", "QA.0..a: is missing")


def test_grounded_videollm(tmp_path: Path) -> None:
    talk = turns("<image>\nWhat is done?", "From <12.0> to <20.5>, fold it.\nFrom <21.0> to <30.0>, cut it.")
    row = {"video_id": "a", "question_id": "a", "video_file": "coin/videos/a.mp4", "conversation": talk}
    files.write_json(tmp_path / "mix_sft_grounding.json", [{**row, "dataset_name": "COIN"}, row])
    first, second = read("grounded-videollm", tmp_path, "grounding")
    assert (first.id, second.id) == ("0", "1") and first.tags["origin"] == "COIN"
    assert first.tags["kind"] == "dvc" and times_of(first) == [12.0, 20.5, 21.0, 30.0]
    assert first.video.files == ("coin/videos/a.mp4", "a.mp4")
    files.write_json(tmp_path / "mix_sft_grounding.json", [{**row, "video_file": "../a.mp4"}])
    fails("grounded-videollm", tmp_path, "grounding", "inside the data folder")


def digits(number: str) -> str:
    names = ("ZERO", "ONE", "TWO", "THREE", "FOUR", "FIVE", "SIX", "SEVEN", "EIGHT", "NINE")
    return "".join(f"<TIME_{'DOT' if c == '.' else names[int(c)]}>" for c in number)


def test_vtg_it_spells_its_times(tmp_path: Path) -> None:
    answer = f"{digits('0012.5')} - {digits('0020.0')} seconds, a man runs."
    row = {"video": "/their/videos/video-abc.mp4", "QA": [{"q": "Describe.", "a": answer}]}
    files.write_json(tmp_path / "vtg-it-120k.json", [row])
    record = one(read("vtg-it", tmp_path, "train"))
    assert said(record)[1] == "{<t0><t1>}, a man runs." and times_of(record) == [12.5, 20.0]
    assert (
        record.tags["kind"] == "dvc" and record.video.id == "abc" and "videos/abc.mp4" in record.video.files
    )
    row["QA"] = [{"q": "When?", "a": f"At {digits('12..5')}."}]
    files.write_json(tmp_path / "vtg-it-120k.json", [row])
    fails("vtg-it", tmp_path, "train", "digits that make seconds")
