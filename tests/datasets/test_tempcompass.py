"""TempCompass: four ways of asking; options are lines of the question in several spellings."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import dataset_files as files
import pytest
from annotation_help import fails, one
from hypothesis import given
from hypothesis import strategies as st
from test_dataset_fuzz import FUZZ, changed, must_survive

from tubelet.datasets import read, tempcompass

CHOICE = {
    "question": "What is happening? \nA. He sits\nB. He stands\nC.Both\n D. None",
    "answer": "B. He stands",
}
YES_NO = {"question": "Does he sit?", "answer": "no"}
MATCHING = {
    "question": "Which fits better?\nOption 1: He sits.\nOption 2: He stands.",
    "answer": "Option 2: He stands.",
}
CAPTIONING = {
    "question": "Write a caption.\nInformation A: {'action': 'sits'}\nInformation B: {'action': 'stands'}\n"
    "Generated Caption:",
    "answer": "B. stands",
}
ASKED = dict(zip(tempcompass.SPLITS, (CHOICE, YES_NO, MATCHING, CAPTIONING), strict=True))


def make(
    folder: Path, split: str, dimension: str = "action", video: str = "1021_reverse", **changes: Any
) -> Path:
    value = {video: {dimension: [{**ASKED[split], **changes}]}}
    files.write_json(folder / "questions" / f"{split}.json", value)
    return folder


def test_multi_choice(tmp_path: Path) -> None:
    record = one(read("tempcompass", make(tmp_path, "multi-choice"), "multi-choice"))
    assert record.query == "What is happening?"
    assert record.choices == ("He sits", "He stands", "Both", "None")  # "C.Both" and " D. None" too
    assert (record.answer, record.answer_index) == ("He stands", 1)
    assert record.extra == {"prompt": CHOICE["question"], "answer": "B. He stands"}  # what the rules compare
    assert record.id == "1021_reverse-action-0"
    assert record.tags == {"way": "multi-choice", "dimension": "action", "made": "reverse", "content": []}


def test_yes_no(tmp_path: Path) -> None:
    record = one(read("tempcompass", make(tmp_path, "yes_no", video="55_concat_2"), "yes_no"))
    assert (record.choices, record.answer_index, record.tags["made"]) == (("yes", "no"), 1, "concat")


@pytest.mark.parametrize("label", ["Option", "Sentence", "Caption"])
def test_caption_matching(tmp_path: Path, label: str) -> None:
    first, second = ("1", "2") if label == "Option" else ("A", "B")
    question = f"Which?\n{label} {first}: He: sits.\n{label} {second}: He stands."
    folder = make(tmp_path, "caption_matching", question=question, answer=f"{label} {first}: He: sits.")
    record = one(read("tempcompass", folder, "caption_matching"))
    assert (record.choices, record.answer_index) == (("He: sits.", "He stands."), 0)


def test_captioning_has_no_choices(tmp_path: Path) -> None:
    record = one(read("tempcompass", make(tmp_path, "captioning"), "captioning"))
    assert (record.query, record.answer, record.choices, record.answer_index) == (
        "Write a caption.",
        "stands",
        (),
        None,
    )
    assert record.extra["information"] == ["{'action': 'sits'}", "{'action': 'stands'}"]
    assert record.extra["information_index"] == 1


@pytest.mark.parametrize(
    ("split", "changes", "says"),
    [
        (
            "multi-choice",
            {"question": "What?\nA. x"},
            r"field action\[0\].question: expected a line per option",
        ),
        ("multi-choice", {"question": "What?\nB. x\nC. y"}, "expected a line per option in order"),
        (
            "multi-choice",
            {"question": "What?\nA. x\nC. y"},
            "expected options to the end, got the line 'C. y'",
        ),
        ("multi-choice", {"question": "A. x\nB. y"}, "expected a question before the options"),
        (
            "multi-choice",
            {"answer": "B. He sits"},
            "field action.0..answer: expected one of the option lines",
        ),
        ("multi-choice", {"answer": "B"}, "expected one of the option lines"),
        ("yes_no", {"answer": "maybe"}, "expected yes or no, got 'maybe'"),
        ("caption_matching", {"answer": "Option 3: x"}, "expected one of the option lines"),
        ("captioning", {"answer": "stands"}, "expected 'A. text', got 'stands'"),
        ("captioning", {"answer": "C. runs"}, "expected a letter from A to B, got 'C'"),
        ("yes_no", {"question": None}, r"key '1021_reverse': field action\[0\].question"),
    ],
)
def test_broken_questions(tmp_path: Path, split: str, changes: dict[str, Any], says: str) -> None:
    fails("tempcompass", make(tmp_path, split, **changes), split, says)


def test_unknown_dimensions_are_problems(tmp_path: Path) -> None:
    fails("tempcompass", make(tmp_path, "yes_no", "colour"), "yes_no", "expected a dimension of action")


def test_contents(tmp_path: Path) -> None:
    folder = make(tmp_path, "yes_no")
    files.write_json(folder / "meta_info.json", {"1021_reverse": {"eval_dim": {}, "content": ["food"]}})
    assert one(read("tempcompass", folder, "yes_no")).tags["content"] == ["food"]


@pytest.mark.parametrize(
    ("split", "count"),
    [("multi-choice", 323), ("yes_no", 479), ("caption_matching", 303), ("captioning", 404)],
)
def test_real_files(split: str, count: int) -> None:
    base = files.real("tempcompass")
    records = list(read("tempcompass", base, split))
    assert (len(records), len({record.video.id for record in records})) == (count, 80)
    raw = json.loads((base / f"questions_{split}.80.json").read_text())
    for record in records:
        video, dimension, k = record.id.rsplit("-", 2)
        asked = raw[video][dimension][int(k)]
        assert (record.extra["prompt"], record.extra["answer"]) == (asked["question"], asked["answer"])
        if split in ("multi-choice", "caption_matching"):
            assert record.answer_index is not None
            line = asked["question"].split("\n")[1 + record.answer_index]
            assert line.strip() == asked["answer"].strip()
            assert line.strip().endswith(record.answer)
            assert len(record.choices) == asked["question"].count("\n")
    options = Counter(len(record.choices) for record in records)
    if split == "multi-choice":
        assert options == {3: 189, 4: 133, 2: 1}
    elif split == "yes_no":
        assert Counter(record.answer for record in records) == {"yes": 241, "no": 238}
    elif split == "captioning":
        assert options == {0: count}
    assert any(record.tags["content"] for record in records)
    assert len({record.video.id for record in records if record.tags["made"] == "reverse"}) == 24


@FUZZ
@given(st.data(), st.sampled_from(tempcompass.SPLITS))
def test_no_json_raises_anything_but_tubelets_errors(tmp_path: Path, data: st.DataObject, split: str) -> None:
    value: Any = {"a": {"action": [ASKED[split]], "speed": [ASKED[split]]}, "b": {"order": [ASKED[split]]}}
    meta: Any = {"a": {"content": ["food"]}}
    if data.draw(st.booleans()):
        value = changed(value, data)
    else:
        meta = changed(meta, data)
    files.write_json(tmp_path / f"{split}.json", value)
    files.write_json(tmp_path / "meta_info.json", meta)
    must_survive("tempcompass", tmp_path, split)


@FUZZ
@given(
    text=st.text(alphabet="ABC1 .:\nOption", max_size=40),
    answer=st.text(alphabet="AB1. :Option", max_size=12),
)
def test_no_question_text_raises_anything_but_tubelets_errors(tmp_path: Path, text: str, answer: str) -> None:
    for split in tempcompass.SPLITS:
        must_survive("tempcompass", make(tmp_path, split, question=text, answer=answer), split)
