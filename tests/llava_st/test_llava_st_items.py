"""The published item format: what is read, what is written, and that every defect is an error that says where."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tubelet.datasets.fields import Item as RawRecord
from tubelet.datasets.fields import RecordError
from tubelet.datasets.problems import Problems
from tubelet.errors import DataError, OutputError
from tubelet.llava_st.coordinates import Variables
from tubelet.llava_st.item_files import parse_item, read_items, write_items
from tubelet.llava_st.item_layout import KINDS, read_parts, split_values
from tubelet.llava_st.items import Item, ItemError, Turn

SHARED = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"
LISTS = list(Variables().to_dict())
BOX = "[<WIDTH-OUTPUT><HEIGHT-OUTPUT><WIDTH-OUTPUT><HEIGHT-OUTPUT>]"


def lists(**given: list[float]) -> dict[str, list[float]]:
    return {name: given.get(name, []) for name in LISTS}


# as the published stvg items are: the span at the beginning and again at the end
STVG: dict[str, Any] = {
    "id": "12",
    "type": "stvg",
    "video": "1010/8665030691.mp4",
    "conversations": [
        {"from": "human", "value": "<video>\nAt which time interval in the video can we see a dog?"},
        {
            "from": "gpt",
            "value": "During the span of {<TEMP-OUTPUT><TEMP-OUTPUT>}. Object bounding box: "
            f"<TEMP-OUTPUT>:{BOX},<TEMP-OUTPUT>:{BOX} {{<TEMP-OUTPUT><TEMP-OUTPUT>}}",
        },
    ],
    "variables": lists(
        temporal_output_locations=[0.1, 0.5, 0.1, 0.3, 0.1, 0.5],
        spatial_width_output_locations=[0.2, 0.6, 0.25, 0.65],
        spatial_height_output_locations=[0.1, 0.9, 0.15, 1],
    ),
    "meta": {"split": [0, 829], "fps": 29.97},
    "vid": "8665030691",
}
REC: dict[str, Any] = {
    "image": "COCO_train2014_000000580957.jpg",
    "conversations": [
        {"from": "human", "value": "Where is bowl of carrots situated within this image?\n<image>"},
        {"from": "gpt", "value": f"It appears at {BOX}."},
        {
            "from": "human",
            "value": "And what is in [<WIDTH-INPUT><HEIGHT-INPUT><WIDTH-INPUT><HEIGHT-INPUT>]?",
        },
        {"from": "gpt", "value": "A spoon."},
    ],
    "variables": lists(
        spatial_width_output_locations=[0.242, 0.949],
        spatial_height_output_locations=[0.333, 0.989],
        spatial_width_input_locations=[0.1, 0.2],
        spatial_height_input_locations=[0.3, 0.4],
    ),
}


def raw(data: dict[str, Any]) -> RawRecord:
    return RawRecord(data, "items.json", "record 3")


def parsed(data: dict[str, Any]) -> Item:
    return parse_item(raw(data))


def test_reads_the_published_format() -> None:
    item = parsed(STVG)
    assert (item.path, item.is_image, item.split, item.id, item.kind) == (
        "1010/8665030691.mp4",
        False,
        (0, 829),
        "12",
        "stvg",
    )
    assert item.meta == {"fps": 29.97} and item.other == {"vid": "8665030691"}
    answer = item.parts()[1]
    assert answer.spans == ((0.1, 0.5), (0.1, 0.5))
    assert answer.timed_boxes == ((0.1, (0.2, 0.1, 0.6, 0.9)), (0.3, (0.25, 0.15, 0.65, 1.0)))
    assert item.to_dict() == STVG and json.loads(json.dumps(item.to_dict())) == STVG


def test_turns_get_their_own_values_and_lose_the_mark() -> None:
    item = parsed(REC)
    turns = item.worded()
    assert [who for who, _ in turns] == ["human", "gpt", "human", "gpt"]
    assert turns[0][1].text == "Where is bowl of carrots situated within this image?"
    assert turns[1][1].variables == Variables(
        spatial_width_output_locations=(0.242, 0.949), spatial_height_output_locations=(0.333, 0.989)
    )
    assert turns[2][1].variables.spatial_width_input_locations == (0.1, 0.2)
    assert turns[3][1].variables == Variables()
    together = sum((worded.variables for _, worded in turns), Variables())
    assert together == item.variables


def test_small_freedoms_of_the_format() -> None:
    data = copy.deepcopy(REC)
    data |= {"id": 7, "type": "REC", "image": ["a.jpg"], "meta": None}
    item = parsed(data)
    assert (item.id, item.kind, item.image, item.split) == ("7", "rec", "a.jpg", None)
    plain = {
        "video": "a.mp4",
        "type": "vcg-plus",
        "meta": {"split": None},
        "conversations": [
            {"from": "gpt", "value": "skipped, as published"},
            {"from": "human", "value": "<video> what is this QA_GT_caption_based_noisy"},
            {"from": "gpt", "value": "A dog at <TEMP-050>."},
        ],
    }
    item = parsed(plain)
    assert item.kind == "" and item.other == {"type": "vcg-plus"} and item.variables == Variables()
    assert item.to_dict()["type"] == "vcg-plus"
    assert item.worded()[1][1].text == "what is this"


def set_at(*path: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(data: dict[str, Any]) -> None:
        place: Any = data
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value

    return change


def without(key: str) -> Callable[[dict[str, Any]], None]:
    return lambda data: data.pop(key)


T_OUT, W_OUT = "temporal_output_locations", "spatial_width_output_locations"


@pytest.mark.parametrize(
    ("change", "field", "message"),
    [
        (set_at("image", value="a.jpg"), "image", "this one has both"),
        (without("video"), "", "text-only item"),
        (set_at("video", value="/data/a.mp4"), "video", "data_folder"),
        (set_at("video", value="../a.mp4"), "video", "below the data folder"),
        (set_at("video", value="a\0.mp4"), "video", "expected a path"),
        (set_at("video", value=7), "video", "expected a path"),
        (set_at("video", value=["a.mp4", "b.mp4"]), "video", "has one video, this one has 2"),
        (without("conversations"), "conversations", "is missing"),
        (set_at("conversations", value=[]), "conversations", "a question and an answer"),
        (
            set_at("conversations", 0, "from", value="user"),
            "conversations[0].from",
            "human or gpt, got 'user'",
        ),
        (set_at("conversations", 0, "from", value=["human"]), "conversations[0].from", "human or gpt"),
        (set_at("conversations", 1, "from", value="human"), "conversations[1].from", "take turns"),
        (set_at("conversations", 1, "value", value=None), "conversations[1].value", "expected text"),
        (set_at("conversations", 1, "value", value=" "), "conversations[1].value", "not empty"),
        (
            set_at("conversations", 0, "value", value="<video>\n<video>\nx"),
            "conversations[0].value",
            "2 marks",
        ),
        (
            set_at("conversations", 0, "value", value="<video>\n<image>\nx"),
            "conversations[0].value",
            "2 marks",
        ),
        (set_at("conversations", 0, "value", value="<image>\nx"), "conversations[0].value", "mark <video>"),
        (set_at("conversations", 0, "value", value="where?"), "conversations[0].value", "mark <video>"),
        (
            set_at("conversations", 1, "value", value="<video> there"),
            "conversations[1].value",
            "only the first",
        ),
        (
            set_at("conversations", 0, "value", value="<video>\nfrom <TEMP-INPUT>"),
            "variables",
            "1 <TEMP-INPUT> but there are 0 values",
        ),
        (set_at("variables", T_OUT, value=[0.1, 0.5, 0.1, 0.3, 0.1]), "variables", "there are 5 values"),
        (set_at("variables", T_OUT, value=[0.1] * 7), "variables", "there are 7 values"),
        (
            set_at("variables", T_OUT, value=[0.1, 12, 0.1, 0.3, 0.1, 0.5]),
            f"variables.{T_OUT}[1]",
            "in [0, 1]",
        ),
        (set_at("variables", T_OUT, 2, value=-0.01), f"variables.{T_OUT}[2]", "in [0, 1]"),
        (set_at("variables", T_OUT, 2, value=float("nan")), f"variables.{T_OUT}[2]", "finite"),
        (set_at("variables", T_OUT, 2, value=True), f"variables.{T_OUT}[2]", "expected a number"),
        (set_at("variables", T_OUT, 2, value=10**400), f"variables.{T_OUT}[2]", "finite"),
        (set_at("variables", T_OUT, value=0.1), f"variables.{T_OUT}", "expected a list"),
        (lambda d: d["variables"].pop(W_OUT), f"variables.{W_OUT}", "is missing"),
        (set_at("variables", "locations", value=[]), "variables", "not known"),
        (without("variables"), "variables", "is missing"),
        (set_at("variables", T_OUT, 0, value=0.6), "conversations[1].value", "a span ends after it starts"),
        (set_at("variables", W_OUT, 0, value=0.7), "conversations[1].value", "xywh given"),
        (set_at("variables", T_OUT, 2, value=0.4), "conversations[1].value", "times of boxes increase"),
        (set_at("meta", "split", value=[829, 0]), "meta.split", "got 829 and 0"),
        (set_at("meta", "split", value=[-1, 9]), "meta.split", "got -1 and 9"),
        (set_at("meta", "split", value=[0, 9.5]), "meta.split", "whole frame numbers"),
        (set_at("meta", "split", value=[0]), "meta.split", "expected 2 numbers"),
        (set_at("meta", "split", value="all"), "meta.split", "expected a list"),
        (set_at("meta", value=[]), "meta", "expected an object"),
        (set_at("id", value={}), "id", "expected text"),
        (set_at("type", value="rec"), "type", "a task about image, this item has video"),
    ],
)
def test_every_defect_names_file_record_and_field(change: Any, field: str, message: str) -> None:
    data = copy.deepcopy(STVG)
    change(data)
    with pytest.raises(RecordError) as caught:
        parsed(data)
    assert (caught.value.file, caught.value.where, caught.value.field) == ("items.json", "record 3", field)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("at <TEMP-INPUT>", "an answer holds output placeholders"),
        ("at [<WIDTH-012><HEIGHT-012><WIDTH-050>]", "stands outside of a box"),
        ("at [<HEIGHT-012><WIDTH-012><HEIGHT-050><WIDTH-050>]", "stands outside of a box"),
        ("at [<WIDTH-050><HEIGHT-012><WIDTH-012><HEIGHT-050>]", "x0 <= x1"),
        ("at {<TEMP-050>, <TEMP-012>}", "got 0.505051 and 0.121212"),
        ("at <TEMP-100>", "no coordinate word"),
        ("at <TEMP-7>", "no coordinate word"),
    ],
)
def test_coordinates_in_an_answer_are_checked(answer: str, message: str) -> None:
    given = Variables(temporal_input_locations=(0.5,)) if "INPUT" in answer else Variables()
    turns = (Turn("human", "<video>\nwhen?"), Turn("gpt", answer))
    with pytest.raises(ItemError, match=message.replace("<", ".")):
        Item(turns, video="a.mp4", variables=given)


def test_a_split_belongs_to_a_video_and_pictures_are_one() -> None:
    turns = (Turn("human", "<image>\nwhere?"), Turn("gpt", "there"))
    with pytest.raises(ItemError, match="an image has no frames"):
        Item(turns, image="a.jpg", split=(0, 3))
    with pytest.raises(ItemError, match="neither"):
        Item(turns)
    with pytest.raises(ItemError, match="the last question has no answer"):
        Item((*turns, Turn("human", "and then?")), image="a.jpg")
    with pytest.raises(ItemError, match="takes no coordinates"):
        Item((Turn("gpt", "<TEMP-OUTPUT>"), *turns), image="a.jpg", variables=Variables((), (0.5,)))
    with pytest.raises(ItemError, match="unknown kind"):
        Item(turns, image="a.jpg", kind="stg")
    with pytest.raises(ItemError, match="whole frame numbers"):
        Item((Turn("human", "<video> x"), turns[1]), video="a.mp4", split=(0, 1.5))  # type: ignore[arg-type]


def test_layouts_that_are_understood() -> None:
    values = Variables((), (0.2, 0.4, 0.3, 0.3), (), (0.1, 0.2, 0.1, 0.2), (), (0.5, 0.6, 0.5, 0.6))
    spread = BOX.replace("><", ">, <")
    parts = read_parts(
        f"{{ <TEMP-OUTPUT>, <TEMP-OUTPUT> }} {{<TEMP-OUTPUT>: {spread}}} a dog {BOX} <TEMP-OUTPUT>", values
    )
    box = (0.5, 0.1, 0.6, 0.2)
    assert parts.spans == ((0.2, 0.4),) and parts.timed_boxes == ((0.3, box),)
    assert parts.boxes == (box,) and parts.times == (0.3,)
    assert parts.names == ("span", "time", "box", "timed boxes")
    again = Variables((), (0.5, 0.2), (), (0.1, 0.2) * 2, (), (0.5, 0.6) * 2)
    two = read_parts(f"the dog <TEMP-OUTPUT>:{BOX}; the cat <TEMP-OUTPUT>:{BOX}", again)
    assert [time for time, _ in two.timed_boxes] == [0.5, 0.2]  # another list: it may begin anew
    assert split_values(("<TEMP-INPUT>", "<TEMP-INPUT><TEMP-INPUT>"), Variables((0.1, 0.2, 0.3)))[
        1
    ].temporal_input_locations == (0.2, 0.3)


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_write_and_read(tmp_path: Path, suffix: str) -> None:
    items = [parsed(STVG), parsed(REC)]
    path = tmp_path / f"items{suffix}"
    assert write_items(iter(items), path) == 2
    assert list(read_items(path)) == items
    assert list(tmp_path.iterdir()) == [path]
    assert write_items([], path) == 0
    if suffix == ".json":
        assert json.loads(path.read_text()) == [] and list(read_items(path)) == []


def test_writing_is_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "items.json"
    path.write_text("[]")
    odd = Item(
        parsed(REC).conversations, image="a.jpg", variables=parsed(REC).variables, other={"x": float("nan")}
    )
    with pytest.raises(DataError, match=r"item 1 \(a.jpg\) is no JSON"):
        write_items([parsed(REC), odd], path)
    assert path.read_text() == "[]" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(OutputError, match=r"\.json or \.jsonl"):
        write_items([], tmp_path / "items.txt")
    with pytest.raises(OutputError, match="cannot write"):
        write_items([], tmp_path / "none" / "items.json")
    with pytest.raises(DataError, match=r"\.json or \.jsonl"):
        list(read_items(tmp_path / "items.txt"))


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_text_only_items_are_an_error_or_counted(tmp_path: Path, suffix: str) -> None:
    text_only = {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]}
    broken = {**REC, "image": "/abs.jpg"}
    rows = [json.dumps(row) for row in (REC, text_only, STVG, text_only, broken)]
    path = tmp_path / f"items{suffix}"
    path.write_text("[" + ",".join(rows) + "]" if suffix == ".json" else "\n".join(rows))
    with pytest.raises(RecordError, match="text-only item"):
        list(read_items(path))
    skipped = Problems()
    with pytest.raises(RecordError, match="data_folder"):  # only text-only items are let through
        list(read_items(path, text_only=skipped))
    assert skipped.count == 2
    problems, skipped = Problems(), Problems()
    assert [item.path for item in read_items(path, problems, skipped)] == [REC["image"], STVG["video"]]
    assert (problems.count, skipped.count) == (1, 2)
    assert list(problems.by_kind) == [(str(path), "image")]
    everything = Problems()
    list(read_items(path, everything))
    assert everything.by_kind == {(str(path), "text-only item"): 2, (str(path), "image"): 1}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
PIECES = st.sampled_from(
    [
        "<video>",
        "<image>",
        "\n",
        "a dog",
        "{",
        "}",
        "[",
        "]",
        ":",
        ",",
        "<TEMP-012>",
        "<TEMP-999>",
        "<WIDTH-001>",
    ]
    + [f"<{axis}-{way}>" for axis in ("TEMP", "HEIGHT", "WIDTH") for way in ("INPUT", "OUTPUT")]
    + [BOX, "{<TEMP-OUTPUT><TEMP-OUTPUT>}"]
)
TEXT = st.lists(PIECES, max_size=8).map("".join) | st.text(max_size=12)
NUMBERS = st.lists(st.floats(0, 1) | JSON, max_size=4)
NEARLY = st.fixed_dictionaries(
    {
        "conversations": st.lists(
            st.fixed_dictionaries({"from": st.sampled_from(["human", "gpt"]) | JSON, "value": TEXT | JSON}),
            max_size=4,
        )
        | JSON,
    },
    optional={
        "video": st.text(max_size=8) | JSON,
        "image": st.text(max_size=8) | JSON,
        "id": JSON,
        "type": st.sampled_from(list(KINDS)) | JSON,
        "variables": st.fixed_dictionaries(dict.fromkeys(LISTS, NUMBERS)) | JSON,
        "meta": st.fixed_dictionaries({"split": st.lists(st.integers() | JSON, max_size=3) | JSON}) | JSON,
        "extra": JSON,
    },
)


@settings(max_examples=300, deadline=None)
@given(NEARLY | st.dictionaries(st.text(max_size=8), JSON, max_size=4))
def test_only_record_errors_come_out_of_the_reader(data: dict[str, Any]) -> None:
    try:
        item = parsed(data)
    except RecordError:
        return
    assert parsed(item.to_dict()) == item
    assert sum((worded.variables for _, worded in item.worded()), Variables()) == item.variables


PLACES = st.lists(
    st.sampled_from(["conversations", "variables", "meta", "video", 0, 1, "value", "from", "split", T_OUT]),
    max_size=3,
)


@settings(max_examples=300, deadline=None)
@given(PLACES, JSON | TEXT | NUMBERS)
def test_one_broken_place_is_a_record_error(path: list[Any], value: Any) -> None:
    """A good item with one value replaced: it is read, or the error is one of ours."""
    data = copy.deepcopy(STVG)
    place: Any = data
    for key in path[:-1]:
        fits = isinstance(key, str) == isinstance(place, dict) and isinstance(place, dict | list)
        place = place[key] if fits and (not isinstance(place, dict) or key in place) else data
    if path and isinstance(path[-1], str) == isinstance(place, dict) and isinstance(place, dict | list):
        place[path[-1]] = value
    try:
        assert parsed(data).video
    except RecordError as error:
        assert error.where == "record 3"


@settings(max_examples=150, deadline=None)
@given(
    st.binary(max_size=60) | st.lists(NEARLY, max_size=2).map(lambda rows: json.dumps(rows).encode()),
    st.integers(0, 400),
)
def test_only_data_errors_come_out_of_files(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, cut: int
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    for suffix in (".json", ".jsonl"):
        path = folder / f"x{suffix}"
        path.write_bytes(data[:cut])
        problems = Problems()
        kept = list(read_items(path, problems))
        assert problems.count or kept or not data[:cut].strip(b" \t\r\n\x0b\x0c[]\xef\xbb\xbf")
        try:
            assert list(read_items(path)) == kept and not problems.count
        except DataError:
            assert problems.count


def test_published_demo_prompts_as_items() -> None:
    """The real prompts with their splits, in the demo's notation of numbers."""
    from tubelet.llava_st.official_text import demo_prompt

    path = SHARED / "st_align" / "demo_prompts_joined_with_vidstg.json"
    if not path.is_file():
        pytest.skip("no real prompts beside this checkout")
    wanted = {"stvg": ((), (), ()), "svg": (2, 0, 0), "elc": (1, 2, 2)}
    for record in json.loads(path.read_text()):
        asked = demo_prompt(record["prompt"].replace(">,<", "><").replace(">, <", "><"))
        item = parsed(
            {
                "video": record["video"],
                "conversations": [
                    {"from": "human", "value": f"<video>\n{asked.text}"},
                    {"from": "gpt", "value": "no answer is published"},
                ],
                "variables": asked.variables.to_dict(),
                "meta": {"split": record["split"]},
            }
        )
        assert item.split == tuple(record["split"]) and item.split[1] < record["frame_count"]
        question = item.parts()[0]
        assert question.has("span") is (record["task"] == "svg") and question.has("box") is (
            record["task"] == "elc"
        )
        if record["task"] != "stvg":
            start = question.spans[0][0] if question.spans else question.times[0]
            assert start == pytest.approx(record["derived"]["span_if_end_exclusive"][0], abs=1e-3)
            assert len(item.variables.temporal_input_locations) == wanted[record["task"]][0]
