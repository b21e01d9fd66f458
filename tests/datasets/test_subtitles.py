"""Subtitles: cues, markup, times; any bytes give cues or one of tubelet's own errors."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tubelet.datasets.subtitles import read_srt, words_at
from tubelet.errors import DataError

TEXT = """\ufeff1
00:00:01,000 --> 00:00:02,500
<font color="white" size=".72c">Hi guys,</font>
{\\an8}I'm going

2
00:00:03.25 --> 00:00:04.000 X1:40
to show you 42

3
00:00:05,000 --> 00:00:05,000
no time at all

4
01:00:00,000 --> 01:00:01,000


5
01:00:02,000 --> 01:00:03,000
the end"""


def test_cues(tmp_path: Path) -> None:
    path = tmp_path / "a.srt"
    path.write_text(TEXT, encoding="utf-8")
    cues = read_srt(path)
    assert cues == (
        (1.0, 2.5, "Hi guys, I'm going"),
        (3.25, 4.0, "to show you 42"),
        (3602.0, 3603.0, "the end"),
    )
    path.write_text(TEXT.replace("\n", "\r\n"), encoding="utf-8")
    assert read_srt(path) == cues


def test_words_at_the_frames_that_are_read() -> None:
    cues = ((1.0, 2.5, "one"), (2.0, 4.0, "two"), (9.0, 9.5, "three"))
    assert words_at(cues, None) == "one\ntwo\nthree"
    assert words_at(cues, [0.0, 2.2, 2.4, 4.0]) == "one\ntwo"  # once each, however many frames show them
    assert words_at(cues, [2.5]) == "two"  # the end is not shown
    assert words_at(cues, []) == "" == words_at((), [1.0])


def test_what_is_no_subtitle_file(tmp_path: Path) -> None:
    path = tmp_path / "a.srt"
    with pytest.raises(DataError, match="cannot read"):
        read_srt(path)
    for text in ("", "WEBVTT\n\nhello", "1\n00:00:05,000 --> 00:00:04,000\nbackwards"):
        path.write_text(text)
        with pytest.raises(DataError, match="has no subtitles"):
            read_srt(path)


lines = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ["1", "", "00:00:01,000 --> 00:00:02,000", "0:0:1 --> 99:99:99.9", "<b>x</b>", "-->", "٣:00:01 --> 1"]
    ),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.one_of(
        st.lists(lines, max_size=8).map("\n".join).map(lambda text: text.encode("utf-8", "replace")),
        st.binary(max_size=60),
    )
)
def test_any_bytes(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "a.srt"
    path.write_bytes(text)
    try:
        cues = read_srt(path)
    except DataError:
        return
    assert cues and all(start < end and words for start, end, words in cues)
    assert words_at(cues, [cues[0][0]])
