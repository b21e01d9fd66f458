"""All 15 task kinds from toy-world questions and dataset records: written, read, equal, and tokenised."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tubelet.datasets.record import FrameRange, Record, Target, VideoRef, as_fps
from tubelet.errors import DataError
from tubelet.llava_st.coordinates import Variables
from tubelet.llava_st.item_files import read_items, write_items
from tubelet.llava_st.item_layout import KINDS
from tubelet.llava_st.item_making import (
    Timeline,
    item_from_record,
    items_joined,
    record_of_question,
    timeline_of,
)
from tubelet.llava_st.item_words import Facts, Place, Wording, interleaved, make_item
from tubelet.llava_st.items import Item
from tubelet.llava_st.loss import IGNORE
from tubelet.llava_st.model import VisualCounts
from tubelet.llava_st.official_text import frame_indices
from tubelet.llava_st.prompts import training_ids
from tubelet.llava_st.words import add_words
from tubelet.tube import Span
from tubelet.world.files import frame_times, scene_with_questions

SHARED = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"
OF_TASK = {
    "tvg": ("tvg", False),
    "temporal_referring": ("tr", False),
    "rec": ("rec", True),
    "dgc": ("dgc", True),
    "region_caption": ("reg", True),
    "stvg": ("stvg", False),
    "elc": ("elc", False),
    "svg": ("svg", False),
    "conversation": ("qa", False),
    "video_captioning": ("qa", False),
    "video_qa": ("qa", False),
    "classification": ("qa", False),
}
JOINED = {
    "dvc": (("tr", "tr", "tr"), False),
    "temporal_grounded_conversation": (("tvg", "qa", "tr"), False),
    "image_grounded_conversation": (("rec", "reg", "qa"), True),
}


def test_every_kind_of_the_mixture_is_tested() -> None:
    assert set(OF_TASK) | set(JOINED) == set(KINDS) and len(KINDS) == 15


@cache
def toy_record(task: str, image: bool, seed: int = 3) -> Record:
    """A question with an answer in words and coordinates, that is true of its scene."""
    for index in range(40):
        scene, questions = scene_with_questions("train", seed, index, (task,), 4, image)
        for question in questions:
            if question.present:
                name = f"scene-{index}.{'png' if image else 'mp4'}"
                return record_of_question(scene, question, f"{task}-{index}", name)
    raise AssertionError(f"no {task} in the toy world")


@cache
def toy_item(kind: str, style: str) -> Item:
    wording = Wording(style, seed=5)
    if kind in OF_TASK:
        return item_from_record(toy_record(*OF_TASK[kind]), kind=kind, wording=wording)
    tasks, image = JOINED[kind]
    for index in range(60):  # a scene that has questions of all of these tasks
        records = []
        for number, task in enumerate(tasks):
            scene, questions = scene_with_questions("train", 11, index, (task,), 4, image)
            good = [q for q in questions if q.present and scene.seed[-1] == index]
            if good:
                name = f"scene-{index}.{'png' if image else 'mp4'}"
                records.append(record_of_question(scene, good[number % len(good)], f"scene-{index}", name))
        if len(records) == len(tasks):
            return items_joined(kind, records, wording=wording, id=f"{kind}-{index}")
    raise AssertionError(f"no scene for {kind}")


@pytest.fixture(scope="module")
def pico(pico_vocabulary: Any) -> tuple[Any, Any]:
    tokenizer = copy.deepcopy(pico_vocabulary)
    return tokenizer, add_words(tokenizer)


@pytest.mark.parametrize("style", ["official", "brief"])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_kind_is_written_read_and_tokenised(
    kind: str, style: str, tmp_path: Path, pico: tuple[Any, Any]
) -> None:
    item = toy_item(kind, style)
    assert item.kind == kind and item.is_image == (KINDS[kind].media == ("image",))
    for name in ("a.json", "a.jsonl"):
        assert write_items([item, item], tmp_path / name) == 2
        assert list(read_items(tmp_path / name)) == [item, item]
    tokenizer, words = pico
    counts = VisualCounts(image=9) if item.is_image else VisualCounts(fast=4, slow=6)
    trained = training_ids(tokenizer, words, item.worded(), counts, supervise="answers")
    assert trained.variables == item.variables
    for (axis, way), token in words.placeholders.items():
        assert trained.ids.count(token) == len(item.variables.of(axis, way))
    # the supervised ids are the answers to the letter
    learnt = tokenizer.decode([t for t in trained.labels if t != IGNORE], skip_special_tokens=False)
    answers = [turn.text for turn in item.conversations if turn.who == "gpt"]
    assert learnt == "".join(f"{answer}<|im_end|>" for answer in answers)
    if kind in JOINED and kind != "dvc":
        assert (
            len(answers) == 3
            and sum("<video>" in t.text or "<image>" in t.text for t in item.conversations) == 1
        )


@pytest.mark.parametrize("kind", ["stvg", "svg", "elc"])
def test_boxes_are_the_truth_at_the_frames_the_model_sees(kind: str) -> None:
    record = toy_record(OF_TASK[kind][0], False)
    item = item_from_record(record, frames=16, max_boxes=5)
    count = record.video.frame_count or 0
    sampled = frame_indices(count, None, 16)
    answer = item.parts()[1]
    assert 1 <= len(answer.timed_boxes) <= 5 and item.split is None
    target, span = record.targets[0], record.spans[0]
    for time, box in answer.timed_boxes:
        native = round(time * (count - 1))
        assert abs(time * (count - 1) - native) < 0.1 * count / 100  # three decimals
        assert native in sampled
        row = int(np.flatnonzero(target.frame_index == native)[0])
        assert np.allclose(box, target.boxes_xyxy[row], atol=6e-4)
    length_s = (count - 1) / float(record.video.fps or 1)
    if kind == "elc":
        assert item.parts()[0].times[0] == pytest.approx(span.start_s / length_s, abs=6e-4)
        assert record.answer in item.conversations[1].text
    else:
        found = (item.parts()[0] if kind == "svg" else answer).spans[0]
        assert found == pytest.approx((span.start_s / length_s, min(span.end_s / length_s, 1)), abs=6e-4)


def test_a_sentence_that_is_true_of_nothing() -> None:
    record = Record(
        "d", "train", "1", "stvg", "a cow", VideoRef("v", ("v.mp4",), as_fps(25), 50), present=False
    )
    item = item_from_record(record)
    assert item.conversations[1].text == "That is not in this video." and item.kind == "stvg"
    assert item.variables == Variables()


def clip_record(**more: Any) -> Record:
    video = VideoRef("v", ("a/v.mp4",), as_fps(25), 200, 100, 50, segment=FrameRange(50, 151))
    index = np.arange(70, 101)
    boxes = np.stack([np.array([10 + k / 10, 5, 40 + k / 10, 45]) for k in range(31)])
    values: dict[str, Any] = {
        "frames": FrameRange(70, 101),
        "spans": (Span(70 / 25, 101 / 25),),
        "targets": (Target(boxes, "pixel", index),),
    }
    return Record("d", "train", "7", "stvg", "a man runs", video, **(values | more))


def test_frames_of_a_clip_become_fractions_of_it_as_published() -> None:
    """(frame - first) / (last - first), rounded to three decimals; the last frame of a span is its end."""
    item = item_from_record(clip_record(), frames=101, max_boxes=3)
    assert item.split == (50, 150) and item.video == "a/v.mp4" and item.id == "7"
    answer = item.parts()[1]
    assert answer.spans == ((0.2, 0.5),)
    assert [time for time, _ in answer.timed_boxes] == [0.2, 0.35, 0.5]
    assert answer.timed_boxes[0][1] == (0.1, 0.1, 0.4, 0.9)
    assert answer.timed_boxes[2][1] == (0.13, 0.1, 0.43, 0.9)
    # the presentation times of the opened video win over the rate
    times = np.concatenate([np.arange(100) / 25, 4 + np.arange(100) / 5])
    late = item_from_record(clip_record(), timeline_of(clip_record(), times))
    assert late.parts()[1].spans[0][1] == round((times[100] - times[50]) / (times[150] - times[50]), 3)


@pytest.mark.parametrize(
    ("record", "kind", "message"),
    [
        (clip_record(targets=()), None, "needs boxes, the record has none"),
        (clip_record(spans=(), frames=None), None, "there is no span"),
        (clip_record(frames=FrameRange(160, 170)), None, "outside of the clip"),
        (clip_record(frames=FrameRange(190, 220)), None, "speaks of frame 219, the video has 200 frames"),
        (clip_record(), "elc", "there is no box"),
        (clip_record(), "video_qa", "answers with a text"),
        (clip_record(), "stg", "unknown kind"),
        (
            clip_record(targets=(Target(np.array([[0, 0, 1, 1.0]]), frame_index=np.array([120])),)),
            None,
            "no box lies",
        ),
    ],
)
def test_records_that_lack_something(record: Record, kind: str | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        item_from_record(record, kind=kind)


def test_what_is_not_known_about_a_video_is_asked_for() -> None:
    unknown = Record("d", "train", "1", "tvg", "a man runs", VideoRef("v"), spans=(Span(1, 2),))
    with pytest.raises(DataError, match="give frame_times_s"):
        item_from_record(unknown)
    item = item_from_record(unknown, timeline_of(unknown, duration_s=10.0))
    assert item.parts()[1].spans == ((0.1, 0.2),) and item.video == "v"
    assert Timeline(None, 0.0, 10_000.0).span(Span(1, 1.5)) == (0.0, 0.001)  # a moment is a span too
    assert Timeline(None, 0.0, 10.0).span(Span(9.9999, 12)) == (0.999, 1.0)
    with pytest.raises(DataError, match="frames 50 to 150 of a video of 100"):
        timeline_of(clip_record(), np.arange(100) / 25)
    with pytest.raises(DataError, match="about several"):
        items_joined("dvc", [replace(unknown, video=VideoRef("w")), clip_record()])
    with pytest.raises(DataError, match="at least one record"):
        items_joined("dvc", [])


def test_multiple_choice_questions_keep_their_choices() -> None:
    record = Record(
        "d",
        "t",
        "1",
        "qa",
        "why?",
        VideoRef("v", ("v.mp4",), duration_s=3.0),
        choices=("x", "y"),
        answer_index=1,
    )
    item = item_from_record(record, kind="video_qa")
    assert item.conversations[0].text == "<video>\nwhy?\n(A) x\n(B) y" and item.conversations[1].text == "y"


def test_descriptions_with_boxes() -> None:
    one, two = (0.1, 0.1, 0.2, 0.2), (0.3, 0.3, 0.4, 0.4)
    text = interleaved("A dog and a dog.", [("dog", one), ("dog", two), ("a cat", one)])
    box = "[<WIDTH-OUTPUT><HEIGHT-OUTPUT><WIDTH-OUTPUT><HEIGHT-OUTPUT>]"
    assert text.text == f"A dog {box} and a dog {box}. a cat {box}"
    assert text.variables.spatial_width_output_locations == (0.1, 0.2, 0.3, 0.4, 0.1, 0.2)
    with pytest.raises(DataError, match="there are none"):
        make_item("dgc", Place("a.jpg", True), Facts(text="A dog."))


@pytest.mark.parametrize(
    ("kind", "facts", "message"),
    [
        ("tvg", Facts("a dog"), "needs a span"),
        ("stvg", Facts("a dog", span=(0.1, 0.2)), "needs boxes with times"),
        ("rec", Facts("a dog"), "needs a box"),
        ("elc", Facts("a dog"), "the start of an event"),
        ("dvc", Facts(), "there are none"),
        ("video_captioning", Facts(), "there is none"),
        ("conversation", Facts(text="yes"), "a question of its own"),
        ("tvg", Facts("a dog", span=(0.3, 0.2)), "ends after it starts"),
    ],
)
def test_facts_that_lack_something(kind: str, facts: Facts, message: str) -> None:
    with pytest.raises(DataError, match=message):
        make_item(kind, Place("a.jpg", "image" in KINDS[kind].media), facts)


def test_wordings_are_drawn_by_seed() -> None:
    facts = Facts(text="a dog runs")
    drawn = {
        make_item("video_captioning", Place("a.mp4"), facts, wording=Wording(seed=seed)).conversations[0].text
        for seed in range(20)
    }
    assert drawn == {"<video>\nPlease describe this video.", "<video>\nWhat is shown in this video?"}
    again = [make_item("video_captioning", Place("a.mp4"), facts, wording=Wording(seed=4)) for _ in range(2)]
    assert again[0] == again[1]


def test_toy_world_record_is_what_the_written_dataset_says(tmp_path: Path) -> None:
    """A question taken directly gives the same item as the one read from a folder of `tubelet world make`."""
    from tubelet.datasets.fields import Item as RawRecord
    from tubelet.datasets.world import _record
    from tubelet.world.files import annotation

    for task, image in (("stvg", False), ("elc", False), ("dgc", True), ("rec", True), ("qa", False)):
        scene, questions = scene_with_questions("train", 3, 0, (task,), 3, image)
        name = f"videos/x.{'png' if image else 'mp4'}"
        for question in questions:
            line = json.loads(json.dumps(annotation(scene, question, "x", name, 15.0)))
            stored = _record("test", RawRecord(line, "annotations.jsonl", "line 1"))
            direct = record_of_question(scene, question, "x", name)
            assert item_from_record(stored).conversations == item_from_record(direct).conversations
            one, two = (item_from_record(r).variables.to_dict() for r in (stored, direct))
            assert all(np.allclose(one[key], two[key], atol=1.1e-3) for key in one)
    assert len(frame_times(scene, 15.0)) > 1


# --- real annotations ----------------------------------------------------------------------------------


def test_real_spans_of_vidstg_are_those_of_the_published_prompts() -> None:
    """VidSTG's rows behind the published demo prompts give the numbers that the prompts hold."""
    prompts = SHARED / "st_align" / "demo_prompts_joined_with_vidstg.json"
    if not prompts.is_file():
        pytest.skip("no real annotations beside this checkout")
    for demo in json.loads(prompts.read_text()):
        if demo["task"] == "elc":
            continue
        span, (first, last) = demo["vidstg_temporal_gt"], demo["split"]
        video = VideoRef(
            demo["video"],
            (demo["video"],),
            as_fps(demo["fps"]),
            demo["frame_count"],
            segment=FrameRange(first, last + 1),
        )
        frames = FrameRange(span["begin_fid"], span["end_fid"])
        record = Record("vidstg", "val", "1", "tvg", "the sentence", video, frames=frames)
        item = item_from_record(record)
        assert item.parts()[1].spans[0] == pytest.approx(demo["derived"]["span_if_end_exclusive"], abs=1e-9)
        assert item.split in ((first, last), None)


@pytest.mark.parametrize(
    ("name", "split", "file"),
    [
        ("vidstg", "test", "vidstg/test_annotations.200.json"),
        ("charades-sta", "test", "charades_sta/lighthouse_charades_test_release.1800.jsonl"),
        ("activitynet", "val_1", "activitynet/captions_val_1.250.json"),
        ("qvhighlights", "val", "qvhighlights/highlight_val_release.300.jsonl"),
        ("tacos", "test", "tacos/2dtan_test.json"),
    ],
)
def test_real_datasets_become_items(name: str, split: str, file: str, tmp_path: Path) -> None:
    from tubelet.datasets import open_dataset

    path = SHARED / file
    if not path.is_file():
        pytest.skip("no real annotations beside this checkout")
    items, by_video, skipped = [], {}, 0
    for record in open_dataset(name).read(path, split):
        if len(items) == 150:
            break
        if record.span is None and record.frames is None:
            skipped += 1
            continue
        try:
            items.append(item_from_record(record, kind="tvg"))
        except DataError as error:  # a span behind the end of its video, as the source has it
            assert "outside of the clip" in str(error)
            skipped += 1
            continue
        by_video.setdefault(record.video.id, []).append(record)
    assert len(items) >= 100 and skipped <= 20
    write_items(items, tmp_path / "items.jsonl")
    assert list(read_items(tmp_path / "items.jsonl")) == items
    many = max(by_video.values(), key=len)
    if len(many) > 1 and name != "vidstg":
        events = items_joined("dvc", many)
        assert len(events.parts()[1].spans) == len(many)
        assert list(events.parts()[1].spans) == sorted(events.parts()[1].spans)
