"""Lists of training data: YAML, sampling, random access to records of big files, and the check before training."""

from __future__ import annotations

import json
import math
import re
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tubelet.datasets.fields import RecordError
from tubelet.datasets.problems import Problems
from tubelet.errors import DataError, OutputError
from tubelet.llava_st import record_index
from tubelet.llava_st.coordinates import Variables
from tubelet.llava_st.item_files import read_items, write_items
from tubelet.llava_st.item_words import Facts, Place, make_item
from tubelet.llava_st.items import Item
from tubelet.llava_st.mixture import Entry, Mixture, open_mixture, read_mixture, write_mixture
from tubelet.llava_st.mixture_check import check_mixture
from tubelet.llava_st.record_index import index_records


def some_items(count: int, path: str = "v{}.mp4") -> list[Item]:
    facts = [Facts(f"a dog {{number {k}}} [runs]", span=(0.1, 0.2 + 0.7 * k / count)) for k in range(count)]
    return [make_item("tvg", Place(path.format(k)), fact, id=str(k)) for k, fact in enumerate(facts)]


def ids(mixture: Any, seed: int = 0) -> list[str]:
    return [drawn.item.id for drawn in open_mixture(mixture, seed)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_items(some_items(10), tmp_path / "a.json")
    write_items(some_items(7), tmp_path / "b.jsonl")
    (tmp_path / "videos").mkdir()
    return tmp_path


def one(folder: Path, strategy: str, json_path: str = "a.json") -> Mixture:
    return Mixture((Entry(json_path, "videos", strategy),), folder)


@pytest.mark.parametrize(
    ("strategy", "taken"),
    [
        ("all", range(10)),
        ("first:3", range(3)),
        ("first:30", range(10)),
        ("first:25%", range(3)),  # rounded up, as published
        ("first:0.1%", range(1)),
        ("end:4", range(6, 10)),
        ("end:100%", range(10)),
        ("end:25%", range(7, 10)),
        ("first:70%", range(7)),  # 70 * 10 / 100 is 7, not a little more
    ],
)
def test_sampling_strategies(folder: Path, strategy: str, taken: range) -> None:
    assert ids(one(folder, strategy)) == [str(k) for k in taken]


def test_random_shares_are_a_function_of_seed_and_file(folder: Path) -> None:
    drawn = ids(one(folder, "random:4"), seed=1)
    assert len(set(drawn)) == 4 and drawn == sorted(drawn)
    assert drawn == ids(one(folder, "random:4"), seed=1)
    assert len({tuple(ids(one(folder, "random:4"), seed)) for seed in range(8)}) > 3
    # another entry before it changes nothing
    pair = Mixture((Entry("b.jsonl", "videos", "random:50%"), Entry("a.json", "videos", "random:4")), folder)
    assert ids(pair, seed=1)[4:] == drawn and len(ids(pair, seed=1)) == 8
    # every record has the same chance
    counts = sum(
        np.bincount(Entry("a.json", "v", "random:3").share(10, seed), minlength=10) for seed in range(600)
    )
    assert abs(counts - 180).max() < 60


@given(st.integers(0, 2000), st.integers(1, 100), st.sampled_from(["first", "end", "random"]))
def test_percentages_are_rounded_up(count: int, percent: int, how: str) -> None:
    rows = Entry("a.json", "v", f"{how}:{percent}%").share(count, 3)
    assert len(rows) == math.ceil(percent * count / 100) and len(set(rows.tolist())) == len(rows)
    assert not len(rows) or (rows[0] >= 0 and rows[-1] < count)


@pytest.mark.parametrize(
    "strategy",
    [
        "",
        "last:3",
        "first",
        "first:",
        "first:0",
        "first:-1",
        "first:x",
        "first:1.5",
        "random:0%",
        "end:101%",
        "all:3",
        "first:%",
    ],
)
def test_strategies_that_make_no_sense(strategy: str) -> None:
    with pytest.raises(DataError, match="sampling_strategy is all, first:N, end:N or random:N"):
        Entry("a.json", "videos", strategy)


def test_lists_are_read_and_written(folder: Path) -> None:
    (folder / "list.yaml").write_text(
        "datasets:\n"
        "  - json_path: a.json\n    sampling_strategy: end:2\n    source: one\n    data_folder: videos\n"
        "  - {json_path: b.jsonl, data_folder: videos, source: null}\n"
    )
    mixture = read_mixture(folder / "list.yaml")
    assert mixture.entries == (Entry("a.json", "videos", "end:2", "one"), Entry("b.jsonl", "videos"))
    assert [entry.name for entry in mixture.entries] == ["one", "b"]
    assert ids(folder / "list.yaml") == ["8", "9", *map(str, range(7))]
    write_mixture(mixture, folder / "again.yaml")
    assert read_mixture(folder / "again.yaml") == mixture
    rows = yaml.safe_load((folder / "again.yaml").read_text())["datasets"]
    assert rows[0] == {
        "json_path": "a.json",
        "sampling_strategy": "end:2",
        "source": "one",
        "data_folder": "videos",
    }
    assert "source" not in rows[1]
    with pytest.raises(OutputError, match="cannot write the list"):
        write_mixture(mixture, folder / "none" / "x.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds 'datasets'"),
        ("- json_path: a.json", "holds 'datasets'"),
        ("datasets: a.json", "holds 'datasets'"),
        ("datasets: []", "is empty"),
        ("datasets: [a.json]", "entry 0: expected json_path"),
        ("datasets: [{json_path: a.json}]", "entry 0, data_folder: expected text, got nothing"),
        ("datasets: [{data_folder: v}]", "entry 0, json_path"),
        ("datasets: [{json_path: a.csv, data_folder: v}]", "entry 0: json_path is a .json or .jsonl"),
        ("datasets: [{json_path: 3, data_folder: v}]", "entry 0, json_path: expected text, got 3"),
        (
            "datasets: [{json_path: a.json, data_folder: v, sampling_stategy: first:3}]",
            "no field sampling_stategy",
        ),
        (
            "datasets: [{json_path: a.json, data_folder: v, sampling_strategy: some}]",
            "entry 0: sampling_strategy is",
        ),
        ("datasets: [{json_path: a.json, data_folder: v}]\nweights: 3", "'datasets' only, not weights"),
        ("datasets: [", "cannot read the list"),
        ("!!python/object/apply:os.system ['true']", "cannot read the list"),
    ],
)
def test_lists_that_make_no_sense(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "list.yaml"
    path.write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        read_mixture(path)
    assert "list.yaml" in str(caught.value) and "\n" not in str(caught.value)


@settings(max_examples=80, deadline=None)
@given(st.text(max_size=40) | st.text(alphabet="datses:-[]{} jpon_h\n.%01&*!", max_size=60))
def test_only_data_errors_come_out_of_a_list(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.mktemp("list") / "x.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(DataError):
        read_mixture(path)


def test_files_beside_the_list_come_before_the_working_directory(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path_factory.mktemp("lists")
    mixture = Mixture((Entry("a.json", "videos", "first:1"),), elsewhere)
    with pytest.raises(DataError, match=r"there is no file .*a.json \(json_path: a.json\)"):
        open_mixture(mixture)
    monkeypatch.chdir(folder)  # as published
    assert open_mixture(mixture)[0].folder == Path("videos")
    write_items(some_items(3)[2:], elsewhere / "a.json")
    assert ids(mixture) == ["2"]


def test_items_in_any_order(folder: Path) -> None:
    mixture = Mixture((Entry("a.json", "videos", "end:3"), Entry("b.jsonl", "videos", "first:2")), folder)
    items = open_mixture(mixture, seed=4)
    assert len(items) == 5
    assert [(d.entry, d.record, d.item.id) for d in items] == [
        (0, 7, "7"),
        (0, 8, "8"),
        (0, 9, "9"),
        (1, 0, "0"),
        (1, 1, "1"),
    ]
    assert items[4].item == list(read_items(folder / "b.jsonl"))[1] and items[4].folder == folder / "videos"
    for wrong in (-1, 5):
        with pytest.raises(IndexError):
            items[wrong]
    orders = [items.order(epoch).tolist() for epoch in range(6)]
    assert all(sorted(order) == list(range(5)) for order in orders) and len(set(map(tuple, orders))) > 2
    assert orders == [open_mixture(mixture, seed=4).order(epoch).tolist() for epoch in range(6)]


# --- where records lie ---------------------------------------------------------------------------------

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(alphabet='a"\\[]{},:é \n', max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(alphabet='k"\\{]', max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)
ROWS = st.lists(st.dictionaries(st.text(max_size=3), VALUES, max_size=3), max_size=5)


@settings(max_examples=80, deadline=None)
@given(ROWS, st.integers(1, 40), st.booleans(), st.sampled_from([None, 1]))
def test_records_are_found_whatever_they_hold(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[Any],
    chunk: int,
    ascii_only: bool,
    indent: int | None,
) -> None:
    path = tmp_path_factory.mktemp("index") / "x.json"
    path.write_text(json.dumps(rows, ensure_ascii=ascii_only, indent=indent), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(record_index, "CHUNK", chunk)  # so that records and texts lie across pieces
        index = index_records(path)
    assert [dict(index.read(k).data) for k in range(len(index))] == rows
    lines = path.with_suffix(".jsonl")
    lines.write_text("\n \n".join(json.dumps(row) for row in rows), encoding="utf-8-sig")
    index = index_records(lines)
    assert [dict(index.read(k).data) for k in range(len(index))] == rows


@settings(max_examples=80, deadline=None)
@given(
    st.binary(max_size=30) | st.text(alphabet='[]{}",\\: a1', max_size=24).map(str.encode), st.integers(1, 9)
)
def test_only_data_errors_come_out_of_the_index(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, chunk: int
) -> None:
    path = tmp_path_factory.mktemp("index") / "x.json"
    path.write_bytes(data)
    problems = Problems()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(record_index, "CHUNK", chunk)
        index = index_records(path, problems)
    try:
        value = json.loads(data)
    except ValueError:
        value = None
    if isinstance(value, list) and all(isinstance(row, dict) for row in value):
        assert not problems.count and len(index) == len(value)
    elif not problems.count:  # brackets fit, but what is inside of a record does not
        with pytest.raises(RecordError):
            [index.read(k) for k in range(len(index))]
    else:
        with pytest.raises(DataError):
            index_records(path)


@pytest.mark.parametrize(
    ("text", "message", "kept"),
    [
        ("", "the file is empty", 0),
        ('{"a": 1}', "expected a list of items", 0),
        ("[{}, 3, {}]", "expected an item", 1),
        ("[{} {}]", "commas between items", 1),
        ('[{}, {"a": "x', "ends too early", 1),
        ("[{}, {}", "ends too early", 2),
        ("[{}] {}", "more text after the end", 1),
    ],
)
def test_broken_arrays_keep_what_is_before(tmp_path: Path, text: str, message: str, kept: int) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(RecordError, match=message):
        index_records(path)
    problems = Problems()
    assert len(index_records(path, problems)) == kept and problems.count == 1


def test_a_broken_record_is_broken_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('[{"a": 1}, {"a": nope}, {"a": 3}]')
    index = index_records(path)
    assert len(index) == 3 and index.read(2).data == {"a": 3}
    with pytest.raises(RecordError, match=r"x.json, record 1: not JSON"):
        index.read(1)
    lines = tmp_path / "x.jsonl"
    lines.write_text('{"a": 1}\n[3]\n\n{"a": 4}')
    index = index_records(lines)
    assert index.read(2).data == {"a": 4}
    with pytest.raises(RecordError, match="record 1: expected a JSON object"):
        index.read(1)
    lines.write_text("{}")
    with pytest.raises(RecordError, match="written anew"):
        index.read(2)
    with pytest.raises(DataError, match="cannot open"):
        index_records(tmp_path / "none.json")


def test_memory_does_not_grow_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_index, "CHUNK", 1 << 14)
    row = json.dumps({"id": "1", "text": "x" * 2000, "values": [0.125] * 100})
    path = tmp_path / "big.json"
    path.write_text("[" + ",\n".join([row] * 2000) + "]")
    tracemalloc.start()
    index = index_records(path)
    index.read(1234)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(index) == 2000 and path.stat().st_size > 5_000_000
    assert peak < 500_000


# --- the check -----------------------------------------------------------------------------------------


def test_check_counts_what_is_there_and_what_is_not(folder: Path) -> None:
    items = some_items(6)
    good = [json.dumps(item.to_dict()) for item in items]
    text_only = json.dumps(
        {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]}
    )
    inverted = json.loads(good[1])
    inverted["variables"]["temporal_output_locations"] = [0.9, 0.1]
    image = json.dumps(
        Item(
            make_item("conversation", Place("x.jpg", True), Facts("why?", "so")).conversations, image="x.jpg"
        ).to_dict()
    )
    rows = [*good, text_only, json.dumps(inverted), image, good[0], '{"x": nope}']
    (folder / "c.jsonl").write_text("\n".join(rows))
    for k in (0, 1, 2):
        (folder / "videos" / f"v{k}.mp4").write_bytes(b"x")
    entries = (Entry("c.jsonl", "videos", "all", "c"), Entry("a.json", "videos", "first:3", "a"))
    report = check_mixture(Mixture(entries, folder))
    first, second = report.entries
    assert (first.records, first.taken, first.items, first.text_only) == (11, 11, 8, 1)
    assert (first.images, first.videos, first.missing) == (1, 6, 4)
    assert first.kinds == {"tvg": 7, "": 1} and first.problems.count == 3
    assert {kind for _, kind in first.problems.by_kind} == {
        "text-only item",
        "conversations[].value",
        "not JSON (Expecting value",
    }
    assert (second.records, second.taken, second.items, second.missing, second.ok) == (10, 3, 3, 0, True)
    assert not report.ok and not first.ok and report.items == 11
    assert json.loads(json.dumps(report.to_dict()))["entries"][0]["broken"] == 3
    text = "\n".join(report.lines())
    assert "c: 8 items of 11 taken, 11 in the file (no kind 1, tvg 7)" in text and "4 of them missing" in text
    assert "missing: v3.mp4" in text and "a span ends after it starts" in text
    assert check_mixture(Mixture(entries[1:], folder)).ok
    assert check_mixture(Mixture(entries, folder), media=False).entries[0].missing == 0


def test_check_names_missing_files_and_folders(folder: Path) -> None:
    entries = (
        Entry("none.json", "videos", source="s"),
        Entry("a.json", "elsewhere", source="s"),
        Entry("b.jsonl", "videos"),
    )
    report = check_mixture(Mixture(entries, folder))
    assert "cannot open" in report.entries[0].failure and "no folder" in report.entries[1].failure
    assert report.entries[1].items == 10 and not report.ok
    assert any("two data folders" in note for note in report.notes)
    assert any("b.jsonl has no source" in note for note in report.notes)


def test_check_opens_videos(folder: Path) -> None:
    import video_files

    video_files.write(folder / "videos" / "v0.mp4", 20)
    (folder / "videos" / "v1.mp4").write_bytes(b"no video at all")
    turns = some_items(1)[0]
    rows = [
        Item(turns.conversations, video=f"v{k}.mp4", variables=turns.variables, split=split)
        for k, split in ((0, (0, 19)), (0, (5, 20)), (0, None), (1, None))
    ]
    write_items(rows, folder / "d.json")
    quick = check_mixture(one(folder, "all", "d.json"))
    assert quick.ok and quick.entries[0].videos == 2
    report = check_mixture(one(folder, "all", "d.json"), open_videos=True)
    entry = report.entries[0]
    assert (entry.splits_outside, entry.unreadable, entry.missing, report.ok) == (1, 1, 0, False)
    assert any("v0.mp4 has 20 frames, meta.split is [5, 20]" in text for text in entry.examples)
    assert Variables.from_dict(rows[0].to_dict()["variables"]) == turns.variables


def test_the_page_about_it_is_true(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/st-align.md: its item is valid, its table holds the kinds, and its code runs on a toy world."""
    from tubelet.llava_st.assemble import load_assembly
    from tubelet.llava_st.item_layout import KINDS
    from tubelet.world.files import make_world

    page = (Path(__file__).resolve().parents[2] / "docs" / "st-align.md").read_text(encoding="utf-8")
    (example,), (recipe, listed) = (
        re.findall(rf"```{kind}\n(.*?)```", page, re.DOTALL) for kind in ("json", "yaml")
    )
    (tmp_path / "recipe.yaml").write_text(recipe)
    assert [source.kind for source in load_assembly(tmp_path / "recipe.yaml").sources] == [
        "stvg",
        "elc",
        "rec",
        "conversation",
    ]
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \| ([\d, ]+) \| (\w+) \|", page, re.MULTILINE)
    assert {name: (label, stages) for name, label, stages, _ in rows} == {
        name: (kind.label, ", ".join(map(str, kind.stages))) for name, kind in KINDS.items()
    }
    assert all(
        medium == ("any" if len(KINDS[name].media) > 1 else KINDS[name].media[0])
        for name, _, _, medium in rows
    )
    make_world(tmp_path / "toys", n=3, seed=7, height=32, fps=5)
    (tmp_path / "stage3").mkdir()
    (tmp_path / "videos" / "vidor").mkdir(parents=True)
    for name in ("stvg.json", "stage3/stvg.json"):
        (tmp_path / name).write_text(f"[{example}]")
    (tmp_path / "list.yaml").write_text(listed)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    code = [
        block.replace("100, 384", "16, 32") for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    ]
    exec("\n".join(code), names)
    assert names["items"].mixture.entries[0].source == "toys" and len(names["items"]) == 3
    assert names["sample"].pixels.shape[1:] == (32, 32, 3)
    assert [entry.missing for entry in names["report"].entries] == [0, 1]
    assert next(read_items("stvg.clean.jsonl")).to_dict() == json.loads(example)
