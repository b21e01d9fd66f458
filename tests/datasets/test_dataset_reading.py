"""Streaming readers: any size, any cut, any garbage; problems that say where."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tubelet.datasets import reading
from tubelet.datasets.fields import Item, RecordError
from tubelet.datasets.problems import Problems
from tubelet.errors import DataError

# every example writes the same file anew
FUZZ = settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**12), 10**12)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


def put(folder: Path, data: bytes | str) -> Path:
    path = folder / "data.json"
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


@FUZZ
@given(
    st.lists(JSON, max_size=5) | st.dictionaries(st.text(max_size=5), JSON, max_size=5),
    st.integers(1, 40),
    st.booleans(),
)
def test_any_chunk_size_reads_what_json_reads(
    tmp_path: Path, data: object, chunk: int, ascii_only: bool
) -> None:
    path = put(tmp_path, json.dumps(data, ensure_ascii=ascii_only, indent=chunk % 3 or None))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "CHUNK", chunk)
        got = list(reading.stream_json(path))
    if isinstance(data, list):
        assert got == list(enumerate(data))
    else:
        assert isinstance(data, dict)
        assert dict(got) == data


@FUZZ
@given(st.lists(JSON, min_size=1, max_size=4), st.floats(0, 1, exclude_max=True))
def test_a_cut_file_keeps_the_records_before_the_cut_and_says_so(
    tmp_path: Path, data: list[object], where: float
) -> None:
    whole = json.dumps(data).encode()
    path = put(tmp_path, whole[: int(where * len(whole))])
    problems = Problems()
    got = [value for _, value in reading.stream_json(path, problems)]
    kept = got[:-1]  # the last may be a number that lost digits: nothing can tell
    assert kept == data[: len(kept)]
    assert problems.count == 1
    with pytest.raises(RecordError, match=r"data\.json"):
        list(reading.stream_json(path))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "empty"),
        ("  \n", "empty"),
        ("3", "expected"),
        ('{"a": 1, "a": 2}', "twice"),
        ("[1, 2,]", "not JSON"),
        ("[1 2]", "expected , or ]"),
        ("[1] [2]", "after the end"),
        ('{"a" 1}', "expected :"),
        ("{1: 2}", "key"),
        ('[{"a": 1', "too early"),
        ('["abc', "too early"),
        ("[" * 100_000, "deeply"),
        ("[" + "9" * 5000 + "]", "digits"),
        (b"[\xff\xfe]", "UTF-8"),
        ('["a\nb", 1]', "not JSON"),
    ],
)
def test_broken_json_says_what_is_broken(tmp_path: Path, text: str | bytes, says: str) -> None:
    problems = Problems()
    list(reading.stream_json(put(tmp_path, text), problems))
    assert problems.count == 1
    assert says in next(iter(problems.examples.values()))[0]


def test_records_before_a_broken_one_are_kept(tmp_path: Path) -> None:
    problems = Problems()
    got = list(reading.stream_json(put(tmp_path, '[{"a": 1}, {"b": 2}, {"c": nope}, {"d": 4}]'), problems))
    assert got == [(0, {"a": 1}), (1, {"b": 2})]
    assert "record 2" in next(iter(problems.examples.values()))[0]


def test_byte_order_mark_and_inside(tmp_path: Path) -> None:
    path = put(tmp_path, b'\xef\xbb\xbf{"info": [1, {"x": 2}], "annotations": [{"id": 5}], "rest": 0}')
    assert [item.data for item in reading.stream_items(path, inside="annotations")] == [{"id": 5}]
    with pytest.raises(RecordError, match="has no key 'images'"):
        list(reading.stream_items(path, inside="images"))


def test_a_large_file_is_not_held_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "large.json"
    row = json.dumps({"caption": "x" * 900, "bbox": [1.5, 2, 3, 4]})
    with path.open("w") as file:
        file.write("[" + row)
        for _ in range(24_000):
            file.write("," + row)
        file.write("]")
    assert path.stat().st_size > 20 * 2**20
    tracemalloc.start()
    count = sum(1 for _ in reading.stream_json(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 24_001
    assert peak < 8 * 2**20


def test_reading_is_lazy(tmp_path: Path) -> None:
    lines = reading.stream_json(put(tmp_path, '[{"a": 1}, broken'))
    assert next(lines) == (0, {"a": 1})
    with pytest.raises(RecordError, match="record 1"):
        next(lines)


def test_jsonl_reports_the_line_and_keeps_the_rest(tmp_path: Path) -> None:
    path = put(tmp_path, b'{"a": 1}\n\n[2]\n{"a": \n\xff\n{"a": 6}\n{"a": 7')
    problems = Problems()
    assert [item.data["a"] for item in reading.stream_jsonl(path, problems)] == [1, 6]
    assert problems.count == 4
    said = [text for kept in problems.examples.values() for text in kept]
    assert {int(text.split("line ")[1].split(":")[0]) for text in said} == {3, 4, 5, 7}
    with pytest.raises(RecordError, match="line 3"):
        list(reading.stream_jsonl(path))


def test_csv_reports_the_line_and_keeps_the_rest(tmp_path: Path) -> None:
    path = put(tmp_path, 'b,a\r\n1,"x, y"\r\n2\r\n\r\n3,z')
    problems = Problems()
    items = list(reading.stream_csv(path, ("a", "b"), problems))
    assert [(item.text("a"), item.whole("b"), item.where) for item in items] == [
        ("x, y", 1, "line 2"),
        ("z", 3, "line 5"),
    ]
    assert problems.count == 1
    assert "line 3: expected 2 fields, got 1" in next(iter(problems.examples.values()))[0]


@pytest.mark.parametrize(
    ("data", "says"),
    [(b"", "empty"), (b"a\n1\n", "lacks b"), (b"a,b\n1,2\n\xff,3\n", "UTF-8"), (b"a,b\n1,\x00\n", "")],
)
def test_broken_csv(tmp_path: Path, data: bytes, says: str) -> None:
    problems = Problems()
    rows = list(reading.stream_csv(put(tmp_path, data), ("a", "b"), problems))
    assert problems.count == (1 if says else problems.count)
    assert says in str(problems.examples)
    assert len(rows) + problems.count >= 1


def test_missing_files_and_folders_are_data_errors(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path, tmp_path / "a\0b"):
        for stream in (reading.stream_json, reading.stream_jsonl):
            with pytest.raises(DataError, match="cannot"):
                list(stream(path))
        with pytest.raises(DataError, match="cannot"):
            reading.load_json(path)


def test_load_json_wants_one_object(tmp_path: Path) -> None:
    assert reading.load_json(put(tmp_path, '{"a": 1}')).data == {"a": 1}
    for text in ("[1]", "{", "[" * 100_000, b"\xff"):
        with pytest.raises(RecordError, match=r"data\.json"):
            reading.load_json(put(tmp_path, text))


def test_fields_name_file_record_and_field() -> None:
    item = Item(
        {"a": {"b": [1, "x"]}, "n": float("nan"), "s": " ", "t": True, "big": 10**400}, "f.json", "record 3"
    )
    for call, says in [
        (
            lambda: item.child("a").numbers("b"),
            r"f.json, record 3: field a.b\[1\]: expected a number, got 'x'",
        ),
        (lambda: item.number("n"), "field n: expected a finite number"),
        (lambda: item.text("s"), "field s: expected text that is not empty"),
        (lambda: item.whole("t"), "field t: expected a number, got True"),
        (lambda: item.whole("big"), "field big: expected a finite number"),
        (lambda: item.text("zzz"), "field zzz: is missing"),
        (lambda: item.children("a"), "field a: expected a list"),
        (lambda: item.child("s"), "field s: expected an object"),
    ]:
        with pytest.raises(RecordError, match=says):
            call()


@FUZZ
@given(st.binary(max_size=300))
def test_no_bytes_raise_anything_but_tubelets_errors(tmp_path: Path, data: bytes) -> None:
    path = put(tmp_path, data)
    for read in (
        lambda on: list(reading.stream_json(path, on)),
        lambda on: list(reading.stream_items(path, on, inside="a")),
        lambda on: list(reading.stream_jsonl(path, on)),
        lambda on: list(reading.stream_csv(path, ("a",), on)),
    ):
        problems = Problems()
        read(problems)
        if problems.count:
            with pytest.raises(RecordError):
                read("raise")
        else:
            read("raise")
