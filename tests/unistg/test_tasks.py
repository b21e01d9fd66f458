"""VTG, REC, general conversations in one format; the mixture."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tubelet.datasets.problems import Problems
from tubelet.datasets.record import Record, Target, VideoRef
from tubelet.errors import DataError, RecipeError
from tubelet.tube import Span, Tube
from tubelet.unistg.instructions import MARKS, Instruction, question_and_answer, templates
from tubelet.unistg.mixture import Mixture, choose, mix, sizes
from tubelet.unistg.records import Drop, Sample
from tubelet.unistg.tasks import read_general, rec_of_records, stvg_of_sample, vtg_of_records

SHARED = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"


def moment(id: str = "1", **more: Any) -> Record:
    given = {
        "dataset": "d",
        "split": "train",
        "id": id,
        "task": "tvg",
        "query": "a dog runs.",
        "video": VideoRef("v", ("v.mp4",), duration_s=30.0),
        "spans": (Span(2, 9),),
        **more,
    }
    return Record(**given)


def image(id: str = "1", **more: Any) -> Record:
    box = Target(np.array([[10.0, 20.0, 50.0, 80.0]]), "pixel", frame_index=np.zeros(1, dtype=np.int64))
    given = {
        "dataset": "refcoco",
        "split": "refcoco_train",
        "id": id,
        "task": "rec",
        "query": "left dog",
        "video": VideoRef("i", ("i.jpg",), width=100, height=100, kind="image"),
        "targets": (box,),
        **more,
    }
    return Record(**given)


def sample(id: str = "s1") -> Sample:
    tube = Tube(Span(2, 5), np.array([2.0, 3.0]), np.array([[0.1, 0.2, 0.3, 0.4], [0.2, 0.2, 0.4, 0.4]]))
    return Sample(id, "v.mp4", "a dog runs.", tube, {"phrase": "a dog", "duration_s": 20.0})


def test_templates_hold_what_they_must() -> None:
    for task, mark in {"stvg": "{boxes}", "vtg": "{span", "rec": "{box}"}.items():
        parts = templates()[task]
        assert len(parts["questions"]) >= 5 and all("{query}" in one for one in parts["questions"])
        assert all(mark in one for one in parts["answers"]), task
        assert not any(m in one for one in parts["questions"] for m in MARKS)
    assert all("{span" in one for one in templates()["stvg"]["answers"])


def test_wordings_depend_on_seed_and_id_alone() -> None:
    first = [question_and_answer("vtg", str(k), "a dog runs", "", 0) for k in range(60)]
    assert first == [question_and_answer("vtg", str(k), "a dog runs", "", 0) for k in range(60)]
    assert len({one[0][1] for one in first}) == len(templates()["vtg"]["questions"])
    assert first != [question_and_answer("vtg", str(k), "a dog runs", "", 1) for k in range(60)]


def test_sentences_with_braces_are_left_as_they_are() -> None:
    (_, asked), _ = question_and_answer("vtg", "1", "he says {phrase} and {x}", "", 0)
    assert "he says {phrase} and {x}" in asked
    (drop,) = vtg_of_records([moment(query="what {span} is")])
    assert isinstance(drop, Drop) and drop.reason == "bad-value" and "marks" in drop.detail


def test_vtg_of_records() -> None:
    votes = (Span(0, 5), Span(10, 15), Span(10, 15))
    rows = [
        moment("1"),
        moment("2", spans=votes, spans_kind="votes"),
        moment("3", spans=(Span(20, 40),)),
        moment("4", spans=(Span(31, 40),)),
        moment("5", spans=()),
    ]
    out = list(vtg_of_records(rows))
    kept = [one for one in out if isinstance(one, Instruction)]
    assert [one.span for one in kept] == [Span(2, 9), Span(10, 15), Span(20, 30)]
    assert [one.reason for one in out if isinstance(one, Drop)] == ["no-span", "no-span"]
    assert (
        kept[0].id == "d:train:1"
        and "a dog runs" in kept[0].turns[0][1]
        and "runs." not in kept[0].turns[0][1]
    )
    assert kept[0].provenance == {"dataset": "d", "split": "train", "record": "1"}
    shown = kept[0].rendered("from 2.0 s to 9.0 s", "", "")[1][1]
    assert "rom 2.0 s to 9.0 s" in shown and "{" not in shown


def test_rec_of_records() -> None:
    unknown = image("2", video=VideoRef("i", ("i.jpg",), kind="image"))
    out = list(rec_of_records([image(), unknown, moment(), image("3", targets=())]))
    (kept,) = [one for one in out if isinstance(one, Instruction)]
    assert (
        kept.boxes_xyxy == ((0.1, 0.2, 0.5, 0.8),)
        and kept.media == "image"
        and "left dog" in kept.turns[0][1]
    )
    assert [one.reason for one in out if isinstance(one, Drop)] == ["no-size", "no-box", "no-box"]


def test_stvg_of_a_sample() -> None:
    made = stvg_of_sample(sample())
    assert (made.task, made.path, made.span, made.duration_s) == ("stvg", "v.mp4", Span(2, 5), 20.0)
    assert (
        made.times_s == (2.0, 3.0) and made.phrase == "a dog" and made.boxes_xyxy[1] == (0.2, 0.2, 0.4, 0.4)
    )
    assert stvg_of_sample(sample(), duration_s=50).duration_s == 50


def conversation(*texts: str, **more: Any) -> dict[str, Any]:
    turns = [{"from": ("human", "gpt")[k % 2], "value": text} for k, text in enumerate(texts)]
    return {"conversations": turns, **more}


GENERAL: list[tuple[dict[str, Any], str]] = [
    (conversation("<image>\nWhat is it?", "A dog.", "Why?", "It barks.", id="1", image="a.jpg"), ""),
    (conversation("What is <b>it</b>? <video>", "A {span} dog.", id=2, video="b.mp4"), ""),
    (conversation("Say hello.", "Hello.", id="3"), ""),
    ({"id": "4", "image": ["c.jpg"], "caption": "A cat on a mat."}, ""),
    ({"id": "5", "video": "c.mp4", "question": "Who?", "answer": "The cook."}, ""),
    (conversation("a", "b", id="6", image="a.jpg", video="b.mp4"), "several-media"),
    (conversation("a", "b", id="7", image=["a.jpg", "b.jpg"]), "several-media"),
    (conversation("a", id="8"), "bad-turns"),
    (conversation("a", "b", "c", id="9"), "bad-turns"),
    (conversation("a", " ", id="10"), "bad-turns"),
    ({"id": "11", "conversations": [{"from": "human"}, 3]}, "bad-turns"),
    ({"id": "12"}, "bad-turns"),
    (conversation("a", "b", id="13", image="/etc/a.jpg"), "bad-path"),
    (conversation("a", "b\ud800", id="14"), "bad-text"),
    (conversation("a", "b", id="1"), "duplicate-id"),
    ({"id": "16", "question": "Who?"}, "bad-turns"),
]


@pytest.mark.parametrize("end", [".json", ".jsonl"])
def test_general_conversations(tmp_path: Path, end: str) -> None:
    path = tmp_path / f"llava{end}"
    rows = [row for row, _ in GENERAL]
    path.write_text(json.dumps(rows) if end == ".json" else "".join(json.dumps(row) + "\n" for row in rows))
    out = list(read_general(path))
    assert [one.reason if isinstance(one, Drop) else "" for one in out] == [reason for _, reason in GENERAL]
    first, second, third, fourth, fifth = (one for one in out if isinstance(one, Instruction))
    assert first.id == "llava:1" and first.turns == (
        ("human", "What is it?"),
        ("gpt", "A dog."),
        ("human", "Why?"),
        ("gpt", "It barks."),
    )
    assert second.path == "b.mp4" and second.rendered("x", "y", "z")[1][1] == "A {span} dog."  # never touched
    assert (third.media, third.path) == ("text", "")
    assert (
        fourth.turns[0][1] in templates()["caption"]["questions"] and fourth.turns[1][1] == "A cat on a mat."
    )
    assert fifth.turns == (("human", "Who?"), ("gpt", "The cook."))


def test_a_broken_file_of_conversations(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"id": 1\n' + json.dumps(conversation("a", "b", id=2)) + "\n")
    problems = Problems()
    assert len(list(read_general(path, on_error=problems))) == 1 and problems.count == 1
    with pytest.raises(DataError, match="line 1"):
        list(read_general(path))
    with pytest.raises(DataError, match=r"\.json or \.jsonl"):
        list(read_general(tmp_path / "x.txt"))


def test_the_papers_proportions_are_the_default() -> None:
    many = {"vtg": 10**6, "rec": 10**6, "stvg": 10**6, "general": 10**6}
    assert sizes(many, Mixture(total=680_000)) == {
        "vtg": 50_000,
        "rec": 320_000,
        "stvg": 110_000,
        "general": 200_000,
    }
    assert sizes({**many, "stvg": 11_000}) == {"vtg": 5_000, "rec": 32_000, "stvg": 11_000, "general": 20_000}
    assert sum(sizes(many, Mixture(total=1001)).values()) == 1001
    assert sizes({"vtg": 5, "rec": 64, "general": 0}) == {"vtg": 5, "rec": 32, "stvg": 0, "general": 0}
    assert sizes({"vtg": 1, "rec": 1}, Mixture(total=370, repeat=True)) == {
        "vtg": 50,
        "rec": 320,
        "stvg": 0,
        "general": 0,
    }


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.integers(0, 500), min_size=4, max_size=4),
    st.lists(st.integers(0, 9), min_size=4, max_size=4),
    st.none() | st.integers(1, 400),
)
def test_sizes_never_ask_for_more_than_there_is(
    there: list[int], weights: list[int], total: int | None
) -> None:
    names = ("vtg", "rec", "stvg", "general")
    if not any(a and b for a, b in zip(there, weights, strict=True)):
        return
    out = sizes(dict(zip(names, there, strict=True)), Mixture(*weights, total=total))
    assert all(0 <= out[name] <= have for name, have in zip(names, there, strict=True))
    assert total is None or sum(out.values()) <= total


def test_drawing_is_deterministic_and_stable() -> None:
    ids = {"vtg": [f"v{k}" for k in range(400)], "rec": [f"r{k}" for k in range(640)]}
    chosen = choose(ids, Mixture(total=370))
    assert chosen == choose({task: own[::-1] for task, own in reversed(ids.items())}, Mixture(total=370))
    assert Counter(task for task, _ in chosen) == {"vtg": 50, "rec": 320} and len(set(chosen)) == 370
    more = choose({**ids, "rec": [*ids["rec"], "new"]}, Mixture(total=370))
    assert len(set(chosen) ^ set(more)) <= 2
    assert choose(ids, Mixture(total=370, seed=1)) != chosen
    tasks = [task for task, _ in chosen]
    assert 10 <= tasks[:185].count("vtg") <= 40  # in mixed order
    repeated = choose({"vtg": ["a", "b"]}, Mixture(total=5, repeat=True))
    assert len(repeated) == 5 and sorted(Counter(repeated).values()) == [2, 3]


def test_mixing_instructions() -> None:
    vtg = [one for one in vtg_of_records(moment(str(k)) for k in range(10)) if isinstance(one, Instruction)]
    rec = [one for one in rec_of_records(image(str(k)) for k in range(64)) if isinstance(one, Instruction)]
    out = list(mix({"vtg": vtg, "rec": rec}))
    assert Counter(one.task for one in out) == {"vtg": 10, "rec": 64}
    with pytest.raises(DataError, match="twice"):
        list(mix({"vtg": [*vtg, vtg[0]]}))
    with pytest.raises(DataError, match="unknown tasks"):
        choose({"qa": ["1"]})
    with pytest.raises(DataError, match="needs items"):
        choose({"vtg": []})
    for bad in ({"vtg": -1}, {"vtg": 0, "rec": 0, "stvg": 0, "general": 0}, {"total": 0}):
        with pytest.raises(RecipeError):
            Mixture(**bad)


@pytest.mark.parametrize(
    ("task", "more"),
    [
        ("vtg", {"span": None}),
        ("vtg", {"media": "image"}),
        ("vtg", {"path": ""}),
        ("vtg", {"turns": (("gpt", "x"),)}),
        ("stvg", {"times_s": (1.0,)}),
        ("stvg", {"boxes_xyxy": ((0.5, 0.1, 0.2, 0.2),), "times_s": (1.0,)}),
        ("rec", {"media": "image"}),
        ("qa", {}),
    ],
)
def test_instructions_that_lack_a_part_are_refused(task: str, more: dict[str, Any]) -> None:
    given = {
        "id": "1",
        "task": task,
        "source": "s",
        "media": "video",
        "path": "a.mp4",
        "span": Span(0, 1),
        "turns": (("human", "x"), ("gpt", "y")),
        **more,
    }
    with pytest.raises(DataError):
        Instruction(**given)


def test_real_sentences_become_vtg() -> None:
    from tubelet.datasets import read

    path = SHARED / "didemo" / "test_data.500.json"
    if not path.exists():
        pytest.skip("the real annotation slices are not here")
    out = list(vtg_of_records(read("didemo", path, "test", on_error=Problems())))
    assert len(out) > 490 and all(isinstance(one, Instruction) for one in out)
