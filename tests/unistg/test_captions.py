"""Captions out of datasets, InternVid's lines and our own: what is kept, cut, dropped and counted."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tubelet.datasets.problems import Problems
from tubelet.errors import DataError
from tubelet.tube import Span
from tubelet.unistg.captions import (
    CaptionSource,
    Coarse,
    agreed,
    caption_row,
    checked,
    normal_path,
    read_captions,
)
from tubelet.unistg.records import Caption, Drop

SHARED = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"


def coarse(**more: Any) -> Coarse:
    given = {
        "id": "1",
        "source": "s",
        "video": "a.mp4",
        "text": "a dog runs",
        "start_s": 1.0,
        "end_s": 5.0,
        **more,
    }
    return Coarse(**given)


def lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"start_s": 31.0, "end_s": 40.0, "duration_s": 30.0}, "span-outside-video"),
        ({"start_s": 5.0, "end_s": 5.0}, "bad-span"),
        ({"start_s": 5.0, "end_s": 2.0}, "bad-span"),
        ({"start_s": -5.0, "end_s": -1.0}, "bad-span"),
        ({"start_s": float("nan")}, "bad-span"),
        ({"end_s": float("inf")}, "bad-span"),
        ({"duration_s": 0.0}, "bad-span"),
        ({"duration_s": float("nan")}, "bad-span"),
        ({"text": " ... 12"}, "no-words"),
        ({"text": "a \ud800 dog"}, "no-words"),
        ({"video": "/etc/passwd"}, "bad-path"),
        ({"video": "a/../../b.mp4"}, "bad-path"),
        ({"video": "C:\\videos\\b.mp4"}, "bad-path"),
        ({"video": "https://host/b.mp4"}, "bad-path"),
        ({"video": " "}, "bad-path"),
    ],
)
def test_what_cannot_be_used_is_dropped_with_a_reason(more: dict[str, Any], reason: str) -> None:
    counts: Counter[str] = Counter()
    (drop,) = checked([coarse(**more)], counts)
    assert isinstance(drop, Drop) and (drop.key, drop.stage, drop.reason) == ("1", "captions", reason)
    assert counts == {"read": 1, reason: 1}


def test_spans_past_the_end_are_cut_and_counted() -> None:
    counts: Counter[str] = Counter()
    rows = [
        coarse(id="1", end_s=31.5, duration_s=30.0),
        coarse(id="2", start_s=-1.0),
        coarse(id="3", text="a cat"),
    ]
    first, second, third = checked(rows, counts)
    assert isinstance(first, Caption) and first.span == Span(1, 30)
    assert isinstance(second, Caption) and second.span == Span(0, 5)
    assert isinstance(third, Caption) and third.span == Span(1, 5)
    assert counts == {"read": 3, "kept": 3, "clipped": 2}


def test_duplicates_are_dropped_and_counted() -> None:
    counts: Counter[str] = Counter()
    rows = [
        coarse(id="1"),
        coarse(id="2", text="A  dog runs.", video="./a.mp4"),  # the same, written another way
        coarse(id="1", text="another one"),
        coarse(id="3", start_s=2.0),
        coarse(id="4", video="b.mp4"),
    ]
    out = list(checked(rows, counts))
    assert [r.reason if isinstance(r, Drop) else "" for r in out] == ["", "duplicate", "duplicate-id", "", ""]
    assert counts == {"read": 5, "kept": 3, "duplicate": 1, "duplicate-id": 1, "clipped": 0}


def test_mixed_paths_are_one_video() -> None:
    paths = ["a\\b.mp4", "./a/b.mp4", "a//b.mp4", " a/b.mp4 ", "a/./b.mp4"]
    assert {normal_path(path) for path in paths} == {"a/b.mp4"}
    assert normal_path(".") is None and normal_path("a\0b") is None


def test_the_vote_that_the_others_agree_with() -> None:
    assert agreed((Span(0, 5), Span(10, 15), Span(10, 20), Span(10, 15))) == Span(10, 15)
    assert agreed((Span(0, 5), Span(10, 15))) == Span(0, 5)


def test_internvid_lines(tmp_path: Path) -> None:
    path = lines(
        tmp_path / "internvid.jsonl",
        [
            {
                "YoutubeID": "abc",
                "Start_timestamp": "00:01:09.500",
                "End_timestamp": "01:00:11",
                "Caption": "a dog",
            },
            {
                "YoutubeID": "abc",
                "Start_timestamp": 3,
                "End_timestamp": 4.5,
                "Caption": "a cat",
                "UMT_Score": 0.4,
            },
            {"YoutubeID": "abc", "Start_timestamp": "soon", "End_timestamp": 4, "Caption": "a cow"},
            {"YoutubeID": "abc", "Caption": "a cow"},
        ],
    )
    problems = Problems()
    source = CaptionSource("internvid", str(path), video_name="yt/{id}.mp4")
    first, second = read_captions(source, problems)
    assert isinstance(first, Caption) and first.span == Span(69.5, 3611) and first.video == "yt/abc.mp4"
    assert isinstance(second, Caption) and second.id == "internvid:abc:3.000-4.500" and problems.count == 2
    with pytest.raises(DataError, match=r"line 3.*hours:minutes:seconds"):
        list(read_captions(source))


def test_our_own_lines_go_out_and_come_back(tmp_path: Path) -> None:
    whole = [
        Caption("x:1", "mine", "a/b.mp4", "a dog runs", Span(1.25, 3.5), 12.0),
        Caption("x:2", "mine", "a/b.mp4", "caf\u00e9 opens", Span(0, 1), None),
    ]
    path = lines(tmp_path / "own.jsonl", [caption_row(one) for one in whole])
    assert list(read_captions(CaptionSource("jsonl", str(path)))) == whole


def test_our_own_lines_may_say_less(tmp_path: Path) -> None:
    path = lines(
        tmp_path / "clips.jsonl",
        [
            {"video": "a.mp4", "caption": "a dog runs", "span": {"start_s": 1, "end_s": 2}},
            {"video": "a.mp4", "text": 5, "start_s": 1, "end_s": 2},
            {"video": "a.mp4", "text": "a cat", "start_s": "1", "end_s": 2},
            "not json",
            {"video": "a.mp4", "text": "", "start_s": 1, "end_s": 2},
        ],
    )
    problems = Problems()
    first, empty = read_captions(CaptionSource("jsonl", str(path)), problems)
    assert (
        isinstance(first, Caption)
        and (first.id, first.source) == ("clips:1", "clips")
        and problems.count == 3
    )
    assert isinstance(empty, Drop) and (empty.key, empty.reason) == ("clips:5", "no-words")


def test_an_unknown_source_is_an_error() -> None:
    with pytest.raises(DataError, match="unknown dataset"):
        list(read_captions(CaptionSource("nothing", "x")))


@pytest.mark.parametrize(
    ("kind", "file"),
    [
        ("didemo", "didemo/test_data.500.json"),
        ("charades-sta", "charades_sta"),
        ("tacos", "tacos/2dtan_test.json"),
    ],
)
def test_real_captions(kind: str, file: str) -> None:
    if not (SHARED / file).exists():
        pytest.skip("the real annotation slices are not here")
    counts: Counter[str] = Counter()
    problems = Problems()
    out = list(read_captions(CaptionSource(kind, str(SHARED / file), "test"), problems, counts))
    kept = [one for one in out if isinstance(one, Caption)]
    assert (
        counts["kept"] == len(kept) and counts["read"] == len(out) and len({c.id for c in kept}) == len(kept)
    )
    assert all(c.duration_s is None or c.span.end_s <= c.duration_s for c in kept)
    assert all(c.id.startswith(f"{kind}:test:") and c.video and c.text for c in kept)
    dropped = Counter(one.reason for one in out if isinstance(one, Drop))
    assert sum(dropped.values()) < 0.2 * len(out) and set(dropped) <= {"duplicate", "span-outside-video"}
    if kind == "tacos":
        assert counts["duplicate"] > 300  # several annotators wrote the same sentence about the same times
    if kind == "charades-sta":
        assert counts["clipped"] > 20  # spans past the end are a known thing there


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.builds(
            Coarse,
            st.sampled_from(["1", "2", "3"]),
            st.just("s"),
            st.one_of(st.text(max_size=8), st.sampled_from(["a.mp4", "./a.mp4", "..\\a"])),
            st.one_of(st.text(max_size=12), st.just("a dog")),
            st.floats(),
            st.floats(),
            st.none() | st.floats(),
        ),
        max_size=6,
    )
)
def test_anything_is_a_caption_or_a_drop(rows: list[Coarse]) -> None:
    out = list(checked(rows))
    assert len(out) == len(rows) and all(isinstance(one, Caption | Drop) for one in out)
    for one in out:
        if isinstance(one, Caption) and one.duration_s is not None:
            assert one.span.end_s <= one.duration_s
