"""ST-Align's public sources through `assemble`: each becomes items of its kinds, and what cannot is counted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tubelet.datasets import open_dataset, read
from tubelet.errors import DataError, RecipeError
from tubelet.llava_st.assemble import PAPER, AlignSource, Assembly, assemble, load_assembly
from tubelet.llava_st.item_files import read_items
from tubelet.llava_st.item_making import Timeline
from tubelet.llava_st.items import Item
from tubelet.llava_st.talk_items import item_of_talk
from tubelet.world.files import make_world


def write(path: Path, data: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))
    return path


def put(tmp_path: Path, *sources: AlignSource) -> tuple[dict[str, list[Item]], dict[str, Any]]:
    """Items by file, and the report."""
    report = assemble(Assembly(sources, proportions=False), tmp_path / "out")
    made = {}
    for source in sources:
        path = tmp_path / "out" / f"stage{source.stage}" / f"{source.name}.jsonl"
        made[source.kind] = list(read_items(path))
    return made, report


def drops(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tmp_path / "out" / "drops.jsonl").read_text().splitlines()]


def talk(*texts: str, **meta: Any) -> dict[str, Any]:
    turns = [{"from": ("human", "gpt")[k % 2], "value": text} for k, text in enumerate(texts)]
    return {"source": "anet", "id": "v", "conversations": turns, **({"meta": meta} if meta else {})}


TOKENS = {"<s0>": 2, "<e0>": 5, "<s1>": 6, "<e1>": 20}


def test_vtimellm_gives_five_kinds_by_what_is_asked(tmp_path: Path) -> None:
    whole = {"duration": 20.0, "token": TOKENS}
    rows = [
        talk("<video>\nWhen does he run?", "From <s0> to <e0>.", **whole),
        talk("<video>\nDescribe it.", "From <s0> to <e0>, he runs. From <s1> to <e1>, he sits.", **whole),
        talk("<video>\nWhat happens from <s0> to <e0>?", "He runs.", **whole),
        talk("<video>\nWho is it?", "A man.", "When does he sit?", "From <s1> to <e1>.", **whole),
        talk("<video>\nWho is it?", "A man."),
    ]
    path = str(write(tmp_path / "stage3.json", rows))
    kinds = {
        "tvg": 2,
        "dvc": 2,
        "temporal_referring": 2,
        "temporal_grounded_conversation": 3,
        "conversation": 3,
    }
    made, report = put(
        tmp_path, *(AlignSource(n, kind, "vtimellm", path, "stage3") for kind, n in kinds.items())
    )
    assert {kind: len(items) for kind, items in made.items()} == {
        "tvg": 1,
        "dvc": 1,
        "temporal_referring": 1,
        "temporal_grounded_conversation": 4,  # all that speak of a time
        "conversation": 1,
    }
    assert report["other_kinds"]["tvg-vtimellm-stage3"] == 4 and not report["dropped"]
    (item,) = made["tvg"]
    assert item.conversations[0].text == "<video>\nWhen does he run?"
    assert item.conversations[1].text == "During the span of {<TEMP-OUTPUT><TEMP-OUTPUT>}."
    assert item.parts()[1].spans == ((0.1, 0.25),) and item.split is None and item.path == "videos/v.mp4"
    assert made["dvc"][0].parts()[1].spans == ((0.1, 0.25), (0.3, 1.0))
    assert made["temporal_referring"][0].parts()[0].spans == ((0.1, 0.25),)
    assert made["temporal_referring"][0].variables.temporal_input_locations == (0.1, 0.25)


def test_a_clip_needs_its_video_and_becomes_frames(tmp_path: Path) -> None:
    make_world(tmp_path / "toys", n=1, seed=3, height=48)
    (video,) = (tmp_path / "toys" / "videos").iterdir()
    row = talk(
        "<video>\nWhen?", "From <s0> to <e0>.", split=[1.0, 3.0], duration=2.0, token={"<s0>": 0, "<e0>": 1}
    )
    rows = [{**row, "id": video.stem}, {**row, "id": "gone"}]
    path = str(write(tmp_path / "stage2.json", rows))
    made, report = put(tmp_path, AlignSource(2, "tvg", "vtimellm", path, "stage2", str(tmp_path / "toys")))
    (item,) = made["tvg"]
    assert item.split == (15, 44)  # 15 frames per second: [1 s, 3 s)
    assert item.parts()[1].spans[0] == (0.0, pytest.approx(15 / 29, abs=1e-3))
    assert report["dropped"] == {"no-length": 1} and drops(tmp_path)[0]["key"] == "gone/1"


def test_times_outside_of_the_clip_are_no_item(tmp_path: Path) -> None:
    row = talk("<video>\nWhen?", "From <s0> to <e0>.", duration=4.0, token={"<s0>": 1, "<e0>": 9})
    path = str(write(tmp_path / "stage3.json", [row]))
    made, report = put(tmp_path, AlignSource(3, "tvg", "vtimellm", path, "stage3"))
    assert made["tvg"] == [] and report["dropped"] == {"not-this-kind": 1}
    assert "outside of the clip" in drops(tmp_path)[0]["detail"]
    (record,) = read("vtimellm", path, "stage3")
    with pytest.raises(DataError, match="how long its video is"):
        item_of_talk(record, "tvg", None)
    late = item_of_talk(replace(record, id="x"), "tvg", Timeline(np.arange(10.0), 0.0, 9.0, 0, 9))
    assert late.parts()[1].spans == ((0.111, 1.0),)


def test_steps_become_grounding_and_dense_captions(tmp_path: Path) -> None:
    steps = [
        {"index": 0, "heading": "fold it", "absolute_bounds": [10, 20]},
        {"index": 1, "heading": "cut it", "absolute_bounds": [20, 40]},
    ]
    video = {"relevant": True, "clip": True, "v_duration": 100.0, "bounds": [10, 40], "steps": steps}
    path = str(write(tmp_path / "all_data_train.json", {"Make a Boat": {"a.mp4": video}}))
    made, _ = put(
        tmp_path,
        AlignSource(3, "tvg", "hirest", path, "train"),
        AlignSource(3, "dvc", "hirest", path, "train", options={"parts": ["step"]}),
    )
    assert [item.parts()[1].spans for item in made["tvg"]] == [((0.1, 0.4),), ((0.1, 0.2),), ((0.2, 0.4),)]
    assert "make a boat" in made["tvg"][0].conversations[0].text
    (dense,) = made["dvc"]
    assert dense.parts()[1].spans == ((0.1, 0.2), (0.2, 0.4)) and "fold it" in dense.conversations[1].text


def test_captions_of_segments_for_three_kinds(tmp_path: Path) -> None:
    rows = [
        {"video": "a.mp4", "duration": 10.0, "caption": f"a {k}", "start_sec": k, "end_sec": k + 1}
        for k in (1, 4)
    ]
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    kinds = ("tvg", "temporal_referring", "dvc")
    (tmp_path / "a.mp4").write_bytes(b"")  # not in videos/: items name the place where it is
    made, _ = put(
        tmp_path, *(AlignSource(2, kind, "internvid-g", str(path), videos=str(tmp_path)) for kind in kinds)
    )
    assert {item.path for items in made.values() for item in items} == {"a.mp4"}
    assert {kind: len(items) for kind, items in made.items()} == {"tvg": 2, "temporal_referring": 2, "dvc": 1}
    assert made["temporal_referring"][0].parts()[0].spans == ((0.1, 0.2),)
    assert made["temporal_referring"][0].conversations[1].text == "a 1"


def test_moment_10m_and_times_in_brackets(tmp_path: Path) -> None:
    rows = [
        {
            "conversations": [{"User": "When does he run?", "Assistant": "{moment}"}],
            "variables": {"moment": [2, 5]},
        },
        {
            "conversations": [{"User": "Why in {moment}?", "Assistant": "So."}],
            "variables": {"moment": [2, 5]},
        },
    ]
    make_world(tmp_path / "toys", n=1, seed=3, height=48)
    (video,) = (tmp_path / "toys" / "videos").iterdir()
    write(tmp_path / "m" / "Moment-10M_0.json", {video.stem: {"qa_data": rows}})
    toys = str(tmp_path / "toys")
    kind = "temporal_grounded_conversation"
    made, report = put(tmp_path, AlignSource(3, kind, "moment-10m", str(tmp_path / "m"), "train", toys))
    assert len(made[kind]) == 2 and not report["dropped"]
    assert made[kind][0].parts()[1].has("span") and made[kind][1].parts()[0].has("span")
    pairs = [{"q": "When?", "a": "<2> <5> He runs."}]
    path = str(write(tmp_path / "activitynet_train.json", {"v": {"duration": 20.0, "QA": pairs}}))
    made, _ = put(tmp_path, AlignSource(3, kind, "anet-rtl", path))
    assert made[kind][0].parts()[1].spans == ((0.1, 0.25),)


def test_phrases_and_things_in_images(tmp_path: Path) -> None:
    flickr = tmp_path / "flickr"
    (flickr / "Sentences").mkdir(parents=True)
    (flickr / "Annotations").mkdir()
    (flickr / "train.txt").write_text("7\n")
    (flickr / "Sentences" / "7.txt").write_text("[/EN#1/people A cook] lifts [/EN#2/other a lid] .\n")
    box = "<bndbox><xmin>{}</xmin><ymin>1</ymin><xmax>{}</xmax><ymax>50</ymax></bndbox>"
    thing = "<object><name>{}</name>" + box + "</object>"
    things = thing.format(1, 1, 50) + thing.format(2, 51, 100)
    size = "<size><width>100</width><height>50</height></size>"
    (flickr / "Annotations" / "7.xml").write_text(f"<annotation>{size}{things}</annotation>")
    name, path = "flickr30k-entities", str(flickr)
    made, report = put(
        tmp_path,
        AlignSource(3, "dgc", name, path),
        AlignSource(3, "image_grounded_conversation", name, path),
        AlignSource(3, "rec", name, path, options={"tasks": ["rec"]}),
    )
    (dense,) = made["dgc"]
    assert dense.parts()[1].boxes == ((0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)) and dense.is_image
    assert dense.conversations[1].text.startswith("A cook [<WIDTH-OUTPUT>") and not report["dropped"]
    assert len(made["image_grounded_conversation"]) == 1 and len(made["rec"]) == 2


def test_an_image_is_opened_for_its_size(tmp_path: Path) -> None:
    make_world(tmp_path / "toys", n=1, seed=3, tasks=("rec",), height=48)
    picture = next((tmp_path / "toys").rglob("*.png"))
    folder = tmp_path / "toys" / "images"
    folder.mkdir(exist_ok=True)
    (folder / "sa_1.png").write_bytes(picture.read_bytes())
    row = {"attribute": "a red lid", "id": 4, "bbox": [0, 0, 12, 24], "segmentation": None}
    for name in ("sa_1.png", "sa_2.png"):
        write(tmp_path / "grand" / "referring" / f"{name[:4]}.json", {name: [row]})
    made, report = put(
        tmp_path,
        AlignSource(2, "rec", "grand", str(tmp_path / "grand"), "referring", str(tmp_path / "toys")),
        AlignSource(
            2, "region_caption", "grand", str(tmp_path / "grand"), "referring", str(tmp_path / "toys")
        ),
    )
    (box,) = made["rec"][0].parts()[1].boxes
    assert box[3] == 0.5 and made["region_caption"][0].conversations[1].text.startswith("a red lid")
    assert report["dropped"] == {"no-size": 2}  # sa_2 is not there, for both kinds


def test_the_example_recipe_names_every_task_of_stage_2() -> None:
    chosen = load_assembly(Path(__file__).resolve().parents[2] / "recipes" / "unistg" / "st-align.yaml")
    assert {source.kind for source in chosen.sources if source.stage == 2} == set(PAPER[2])
    for source in chosen.sources:
        assert source.split in open_dataset(source.source).SPLITS, source.name


def test_options_are_those_of_the_reader() -> None:
    assert AlignSource(3, "dvc", "hirest", "x", options={"parts": ["step"]}).options == {"parts": ["step"]}
    with pytest.raises(RecipeError, match="no option steps; it has parts"):
        AlignSource(3, "dvc", "hirest", "x", options={"steps": True})
    with pytest.raises(RecipeError, match="it has none"):
        AlignSource(3, "conversation", "conversations", "x", options={"parts": []})
