"""Rows, LLaVA-ST items, ms-swift and LLaMA-Factory files: written, and read back where somebody reads them."""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tubelet.datasets.problems import Problems
from tubelet.errors import DataError, OutputError
from tubelet.tube import Span
from tubelet.unistg.formats import (
    llama_factory_row,
    llava_st_item,
    read_thousandths,
    swift_row,
    write_instructions,
)
from tubelet.unistg.instructions import Instruction, question_and_answer
from tubelet.unistg.records import Drop
from tubelet.unistg.rows import COLUMNS, read_rows, row_of, write_rows

TIMES = tuple(2.0 + k for k in range(5))
BOXES = tuple((0.1 + 0.01 * k, 0.2, 0.3 + 0.01 * k, 0.4) for k in range(5))
STVG = Instruction(
    "s:1",
    "stvg",
    "uni-stg",
    "video",
    "a/b.mp4",
    question_and_answer("stvg", "s:1", "a red dog runs", "a red dog", 0),
    "a red dog runs",
    "a red dog",
    Span(2, 6.5),
    20.0,
    TIMES,
    BOXES,
    {"models": ["x"], "threshold": 0.3},
)
VTG = Instruction(
    "v:1",
    "vtg",
    "didemo",
    "video",
    "c.mp4",
    question_and_answer("vtg", "v:1", "a cat sits", "", 0),
    "a cat sits",
    "",
    Span(5, 10),
    30.0,
)
REC = Instruction(
    "r:1",
    "rec",
    "refcoco",
    "image",
    "d.jpg",
    question_and_answer("rec", "r:1", "left dog", "", 0),
    "left dog",
    "left dog",
    boxes_xyxy=((0.1, 0.2, 0.5, 0.8),),
)
TALK = Instruction(
    "g:1",
    "general",
    "llava",
    "image",
    "e.jpg",
    (("human", "What is it?"), ("gpt", "A {box}."), ("human", "Why?"), ("gpt", "So.")),
)
TEXT = Instruction("g:2", "general", "llava", "text", "", (("human", "Hi."), ("gpt", "Hello, \u00e9.")))
ALL = [STVG, VTG, REC, TALK, TEXT]


# --- rows ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [".jsonl", ".parquet"])
def test_rows_go_out_and_come_back(tmp_path: Path, end: str) -> None:
    if end == ".parquet":
        pytest.importorskip("pyarrow")
    path = tmp_path / "new" / f"train{end}"
    assert write_instructions(ALL, path, "rows") == 5
    assert list(read_rows(path)) == ALL and not list(path.parent.glob("*.part"))


def test_every_row_has_every_column_of_one_type() -> None:
    rows = [row_of(one) for one in ALL]
    kinds: dict[str, type | tuple[type, ...]] = {"string": str, "float64": (float, type(None))}
    for row in rows:
        assert list(row) == list(COLUMNS)
        for name, kind in COLUMNS.items():
            assert isinstance(row[name], kinds.get(kind, list)), name
    answer = rows[0]["conversations"][1]["value"]
    assert "rom 2.0 s to 6.5 s" in answer and "2.0 s: [0.100, 0.200, 0.300, 0.400]; 3.0 s: [0.110" in answer
    assert "[0.100, 0.200, 0.500, 0.800]" in rows[2]["conversations"][1]["value"]
    assert rows[3]["conversations"][1]["value"] == "A {box}."


def test_rows_have_one_arrow_schema(tmp_path: Path) -> None:
    """What `datasets` does with JSON Lines: infer a schema; null columns and mixed types would break it."""
    pytest.importorskip("pyarrow")
    from pyarrow import json as arrow_json

    write_rows(ALL, tmp_path / "a.jsonl")
    table = arrow_json.read_json(tmp_path / "a.jsonl")
    assert table.num_rows == 5 and table.column_names == list(COLUMNS)
    assert str(table.schema.field("boxes_xyxy").type) == "list<item: list<item: double>>"
    assert str(table.schema.field("start_s").type) == "double"


def test_broken_rows_are_counted(tmp_path: Path) -> None:
    good = row_of(VTG)
    bad: list[Any] = [
        {**good, "marked": [{"from": "human"}]},
        {"id": "x"},
        {**good, "task": "zzz"},
        {**good, "start_s": 9, "end_s": 1},
        {**good, "provenance": "{"},
        {**good, "provenance": "[]"},
        {**good, "boxes_xyxy": [[1]]},
        {**good, "times_s": None},
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [good, *bad, good]))
    problems = Problems()
    assert list(read_rows(path, problems)) == [VTG, VTG] and problems.count == len(bad)
    with pytest.raises(DataError, match="line 2"):
        list(read_rows(path))


def test_a_file_is_whole_or_not_there(tmp_path: Path) -> None:
    def broken() -> Any:
        yield VTG
        raise RuntimeError("the source broke")

    for name in ("a.jsonl", "a.parquet") if find_spec("pyarrow") else ("a.jsonl",):
        with pytest.raises(RuntimeError):
            write_rows(broken(), tmp_path / name)
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        write_rows([VTG], tmp_path / "file" / "a.jsonl")
    with pytest.raises(OutputError, match=r"\.jsonl or \.parquet"):
        write_rows([VTG], tmp_path / "a.csv")
    with pytest.raises(OutputError, match="formats are"):
        write_instructions([VTG], tmp_path / "a.jsonl", "coco")


# --- LLaVA-ST ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [".json", ".jsonl"])
def test_items_are_read_by_the_reader_of_the_official_format(tmp_path: Path, end: str) -> None:
    from tubelet.llava_st.item_files import read_items

    path = tmp_path / f"items{end}"
    left: list[Drop] = []
    assert write_instructions(ALL, path, "llava-st", left.append) == 4
    assert [(drop.key, drop.reason) for drop in left] == [("g:2", "not-in-this-format")]
    stvg, vtg, rec, talk = read_items(path)
    assert [item.kind for item in (stvg, vtg, rec, talk)] == ["stvg", "tvg", "rec", "conversation"]
    (answer,) = [part for part in stvg.parts() if part.has("timed boxes")]
    assert answer.spans == ((0.1, 0.325),) and stvg.path == "a/b.mp4"
    assert [at for at, _ in answer.timed_boxes] == [at / 20 for at in TIMES]
    assert answer.timed_boxes[1][1] == pytest.approx(BOXES[1])
    assert vtg.parts()[1].spans == ((0.167, 0.333),) and "a cat sits" in vtg.conversations[0].text
    assert rec.parts()[1].boxes == ((0.1, 0.2, 0.5, 0.8),) and rec.image == "d.jpg"
    assert [turn.text for turn in talk.conversations[1:]] == ["A {box}.", "Why?", "So."]


def test_items_need_the_length_of_the_video() -> None:
    unknown = Instruction("v:2", "vtg", "d", "video", "c.mp4", VTG.turns, "a cat sits", "", Span(5, 10))
    with pytest.raises(DataError, match="duration is not known"):
        llava_st_item(unknown)


def test_long_tubes_are_thinned() -> None:
    times = tuple(k / 10 for k in range(200))
    long = Instruction(
        "s:2",
        "stvg",
        "u",
        "video",
        "a.mp4",
        STVG.turns,
        "a red dog runs",
        "",
        Span(0, 20),
        20.0,
        times,
        ((0.1, 0.1, 0.2, 0.2),) * 200,
    )
    (answer,) = [part for part in llava_st_item(long).parts() if part.has("timed boxes")]
    found = [at for at, _ in answer.timed_boxes]
    assert len(found) == 20 and found[0] == 0 and found[-1] == pytest.approx(19.9 / 20, abs=1e-3)
    assert len(swift_row(long)["objects"]["bbox"]) == 20


# --- ms-swift ------------------------------------------------------------------------------------------


def filled(row: dict[str, Any]) -> list[str]:
    """The messages as ms-swift fills them: each mark takes the next value."""
    objects = row.get("objects", {"ref": [], "bbox": []})
    refs, boxes = iter(objects["ref"]), iter(objects["bbox"])
    out = [
        re.sub(
            "<ref-object>|<bbox>",
            lambda m: str(next(refs if m[0] == "<ref-object>" else boxes)),
            turn["content"],
        )
        for turn in row["messages"]
    ]
    assert next(refs, None) is None and next(boxes, None) is None  # nothing is left over
    return out


def test_swift_rows_have_one_value_per_mark() -> None:
    rec = swift_row(REC)
    assert rec["images"] == ["d.jpg"] and "videos" not in rec
    assert rec["objects"] == {"ref": ["left dog"], "bbox": [[0.1, 0.2, 0.5, 0.8]], "bbox_type": "norm1"}
    assert [turn["role"] for turn in rec["messages"]] == ["user", "assistant"]
    question, answer = filled(rec)
    assert question == f"<image>{REC.turns[0][1]}" and "[0.1, 0.2, 0.5, 0.8]" in answer
    stvg = swift_row(STVG)
    assert stvg["videos"] == ["a/b.mp4"] and stvg["objects"]["ref"] == ["a red dog"]
    question, answer = filled(stvg)
    assert question == f"<video>{STVG.turns[0][1]}" and f"3.0 s: {list(BOXES[1])}" in answer
    assert "objects" not in swift_row(VTG) and "rom 5.0 s to 10.0 s" in filled(swift_row(VTG))[1]
    assert set(swift_row(TEXT)) == {"messages"} and filled(swift_row(TALK))[1] == "A {box}."


def test_swift_boxes_of_videos_may_be_text(tmp_path: Path) -> None:
    row = swift_row(STVG, "text")
    assert "objects" not in row and "<bbox>" not in str(row)
    assert read_thousandths(row["messages"][1]["content"])[1] == (3.0, pytest.approx(BOXES[1]))
    assert "objects" in swift_row(REC, "text")  # images can always be converted
    with pytest.raises(DataError, match="objects"):
        swift_row(STVG, "pixels")
    assert write_instructions(ALL, tmp_path / "s.jsonl", "ms-swift") == 5
    rows = [json.loads(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()]
    assert rows[0] == swift_row(STVG) and len(rows) == 5


@pytest.mark.parametrize("make", [swift_row, llama_factory_row])
def test_texts_that_hold_marks_are_reported(make: Any) -> None:
    odd = Instruction(
        "g:3", "general", "llava", "text", "", (("human", "What does <image> mean?"), ("gpt", "A mark."))
    )
    with pytest.raises(DataError, match="<image>"):
        make(odd)


# --- LLaMA-Factory -------------------------------------------------------------------------------------


def test_llama_factory_files(tmp_path: Path) -> None:
    (tmp_path / "dataset_info.json").write_text('{"other": {"file_name": "o.json"}}')
    path = tmp_path / "unistg.jsonl"
    assert write_instructions(ALL, path, "llama-factory") == 5
    info = json.loads((tmp_path / "dataset_info.json").read_text())
    assert info["other"] == {"file_name": "o.json"}
    entry = info["unistg"]
    assert (entry["file_name"], entry["formatting"]) == ("unistg.jsonl", "sharegpt")
    columns, tags = entry["columns"], entry["tags"]
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for row, one in zip(rows, ALL, strict=True):
        turns = row[columns["messages"]]
        assert [t[tags["role_tag"]] for t in turns] == [tags["user_tag"], tags["assistant_tag"]] * (
            len(turns) // 2
        )
        whole = "".join(t[tags["content_tag"]] for t in turns)
        assert whole.count("<image>") == len(row[columns["images"]]) == (one.media == "image")
        assert whole.count("<video>") == len(row[columns["videos"]]) == (one.media == "video")
    found = read_thousandths(rows[0]["conversations"][1]["value"])
    assert found == [(at, pytest.approx(box)) for at, box in zip(TIMES, BOXES, strict=True)]
    assert read_thousandths(rows[2]["conversations"][1]["value"]) == [(None, (0.1, 0.2, 0.5, 0.8))]


def test_a_broken_dataset_info_is_found_before_work(tmp_path: Path) -> None:
    (tmp_path / "dataset_info.json").write_text("{")
    with pytest.raises(OutputError, match="no JSON"):
        write_instructions(ALL, tmp_path / "u.jsonl", "llama-factory")
    assert not (tmp_path / "u.jsonl").exists() and (tmp_path / "dataset_info.json").read_text() == "{"
    with pytest.raises(OutputError, match=r"\.jsonl"):
        write_instructions(ALL, tmp_path / "u.json", "llama-factory")


corner = st.floats(0, 1).map(lambda v: round(v, 4))
box = st.tuples(corner, corner, corner, corner).map(
    lambda b: (min(b[0], b[2]), min(b[1], b[3]), max(b[0], b[2]), max(b[1], b[3]))
)


@settings(max_examples=100, deadline=None)
@given(st.lists(box, min_size=1, max_size=6), st.text(min_size=1, max_size=20), st.integers(0, 99))
def test_boxes_survive_every_format(boxes: list[Any], query: str, seed: int) -> None:
    plain = " ".join(query.split())
    if not plain.strip(" ."):
        return
    try:
        one = Instruction(
            "s:9",
            "stvg",
            "u",
            "video",
            "a.mp4",
            question_and_answer("stvg", "s:9", plain, "", seed),
            plain,
            "",
            Span(0, 9),
            9.0,
            tuple(float(k) for k in range(len(boxes))),
            tuple(boxes),
        )
        row, text = swift_row(one), llama_factory_row(one)
    except (DataError, UnicodeEncodeError):
        return  # half a character, or a mark
    assert [tuple(b) for b in row["objects"]["bbox"]] == boxes
    filled(row)
    for (at, found), (k, true) in zip(
        read_thousandths(text["conversations"][1]["value"]), enumerate(boxes), strict=True
    ):
        assert at == k and found == pytest.approx(true, abs=5.1e-4)
