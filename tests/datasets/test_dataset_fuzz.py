"""No annotation file, however broken, raises anything but tubelet's own errors, and none loses a record silently."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dataset_files as files
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tubelet.datasets import read
from tubelet.datasets.check import data_check
from tubelet.datasets.problems import Problems
from tubelet.datasets.record import Record
from tubelet.errors import TubeletError

FUZZ = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
ODD: st.SearchStrategy[Any] = (
    st.sampled_from(
        [
            None,
            True,
            -1,
            0,
            0.5,
            1e308,
            -1e-9,
            2**63,
            10**30,
            math.nan,
            math.inf,
            "",
            " ",
            "1",
            "\0",
            "../x",
            "/x",
            [],
            {},
        ]
    )
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.lists(st.integers(-5, 5) | st.floats(), max_size=5)
    | st.dictionaries(st.text(max_size=4), st.integers(), max_size=3)
)


def paths(value: Any, way: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The ways to every place in a JSON value, the first element of long lists standing for the rest."""
    out = [way] if way else []
    if isinstance(value, dict):
        for key in value:
            out += paths(value[key], (*way, key))
    elif isinstance(value, list):
        for k in range(min(2, len(value))):
            out += paths(value[k], (*way, k))
    return out


def changed(value: Any, data: st.DataObject) -> Any:
    """A copy with one to three places replaced, deleted or doubled."""
    value = copy.deepcopy(value)
    for _ in range(data.draw(st.integers(1, 3))):
        ways = paths(value)
        if not ways:
            return value
        *way, last = data.draw(st.sampled_from(ways))
        place = value
        for key in way:
            place = place[key]
        act = data.draw(st.sampled_from(["replace", "replace", "replace", "delete", "double"]))
        if act == "replace":
            place[last] = data.draw(ODD)
        elif act == "delete":
            del place[last]
        elif isinstance(place, list):
            place.insert(last, copy.deepcopy(place[last]))
        else:
            place[data.draw(st.text(max_size=4))] = copy.deepcopy(place[last])
    return value


def keyed(record: dict[str, Any]) -> dict[str, Any]:
    return {"a.mp4": record, "b.mp4": copy.deepcopy(record)}


JSON_FILES: dict[str, tuple[str, str, str, Callable[[], Any], int]] = {
    "hcstvg-v1": ("hcstvg-v1", "test", "test.json", lambda: keyed(files.hcstvg_v1()), 1),
    "hcstvg-v2": ("hcstvg-v2", "val", "val_v2.json", lambda: keyed(files.hcstvg_v2()), 1),
    "hcstvg-v2-queries": (
        "hcstvg-v2",
        "test",
        "query_v2.json",
        lambda: {"a.mp4": "x", "b.mp4": {"English": "y"}},
        1,
    ),
    "vidstg": ("vidstg", "val", "val_annotations.json", lambda: [files.vidstg(), files.vidstg()], 1),
    "stvg": ("st-align", "stvg", "stvg.json", lambda: [files.st_align(), files.st_align()], 1),
    "elc": ("st-align", "elc", "elc.json", lambda: [files.st_align("elc"), files.st_align("elc")], 1),
    "v-star": ("v-star", "test", "vstar.json", lambda: [files.vstar(), files.vstar()], 4),
    "bostvg": ("bostvg", "test", "test.json", lambda: keyed(files.bostvg()), 1),
}


def must_survive(name: str, folder: Path, split: str, **options: Any) -> tuple[list[Record], Problems]:
    """Read with both choices: collecting raises nothing, raising raises a TubeletError exactly if one was collected."""
    problems = Problems()
    records = list(read(name, folder, split, on_error=problems, **options))
    for record in records:
        json.dumps(record.to_dict(), allow_nan=False)
        assert all(": " in note for note in record.notes)
    if problems.count:
        with pytest.raises(TubeletError) as error:
            list(read(name, folder, split, **options))
        assert len(str(error.value).splitlines()) == 1
    else:
        assert len(list(read(name, folder, split, **options))) == len(records)
    return records, problems


@pytest.mark.parametrize("case", JSON_FILES)
@FUZZ
@given(st.data())
def test_changed_json(case: str, tmp_path: Path, data: st.DataObject) -> None:
    name, split, file, make, each = JSON_FILES[case]
    value = changed(make(), data)
    files.write_json(tmp_path / file, value)
    options = {"boxes": "skip"} if name == "vidstg" else {}
    records, problems = must_survive(name, tmp_path, split, **options)
    if isinstance(value, list | dict) and case != "vidstg":  # an entry of vidstg may have no sentence at all
        assert len(records) + problems.count >= (each if case != "v-star" else 1) * len(value)


@FUZZ
@given(st.data())
def test_changed_vidor(tmp_path: Path, data: st.DataObject) -> None:
    files.write_json(tmp_path / "val_annotations.json", [files.vidstg()])
    tracks = files.vidor()
    tracks["trajectories"] = tracks["trajectories"][:90] + changed(tracks["trajectories"][90:], data)
    files.write_json(
        tmp_path / "vidor" / "1001.json", data.draw(st.sampled_from([tracks, changed(tracks, data)]))
    )
    records, problems = must_survive("vidstg", tmp_path, "val")
    assert len(records) + problems.count == 2


@FUZZ
@given(st.data())
def test_changed_world(tmp_path: Path, data: st.DataObject) -> None:
    lines = [changed(files.world(), data) for _ in range(2)]
    (tmp_path / "annotations.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    records, problems = must_survive("world", tmp_path, "test")
    assert len(records) + problems.count == 2


@pytest.mark.parametrize("field", ["tags", "phrases"])
def test_a_number_that_no_json_holds_is_named(tmp_path: Path, field: str) -> None:
    """What goes into records as it is must not keep them from being written."""
    line = files.world()
    line[field] = {"action": math.inf} if field == "tags" else [{"text": "it", "score": math.nan}]
    (tmp_path / "annotations.jsonl").write_text(json.dumps(line))
    records, problems = must_survive("world", tmp_path, "test")
    assert not records and problems.count == 1
    with pytest.raises(TubeletError, match=f"{field}: holds a number that is not finite"):
        list(read("world", tmp_path, "test"))


@FUZZ
@given(st.data())
def test_changed_vue_stg(tmp_path: Path, data: st.DataObject) -> None:
    files.vue_stg(tmp_path)
    for name in ("query", "video", "tubes"):
        path = tmp_path / f"{name}.csv"
        cells = [line.split(",") for line in path.read_text().splitlines()]
        if data.draw(st.booleans()):
            cells = changed(cells, data)
        rows = [",".join(str(c) for c in row) if isinstance(row, list) else str(row) for row in cells]
        path.write_text("\n".join(rows), encoding="utf-8", errors="replace")
    must_survive("vue-stg", tmp_path, "test")


@FUZZ
@given(st.data(), st.binary(max_size=12))
def test_bytes_changed_anywhere(tmp_path: Path, data: st.DataObject, noise: bytes) -> None:
    name, split, file, make, _ = JSON_FILES[data.draw(st.sampled_from(sorted(JSON_FILES)))]
    whole = json.dumps(make()).encode()
    at = data.draw(st.integers(0, len(whole)))
    path = tmp_path / name / file
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(whole[:at] + noise + whole[at + data.draw(st.integers(0, 40)) :])
    must_survive(name, path.parent, split)
    report = data_check(name, path.parent, [split])
    assert not report.ok  # no videos, at the least
    assert report.render().splitlines()[-1].startswith("not complete")
