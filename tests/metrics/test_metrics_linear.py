"""Readers of answers take time in proportion to the text, and find what the public patterns find."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tubelet.metrics.answers import NUMBER, charades_span, stvg_r1_answer
from tubelet.metrics.choices import read_letter
from tubelet.metrics.llavast import read_tokens

# All of it together takes a few seconds of processor time; one quadratic pattern alone would need minutes.
LONG = """
import resource
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))  # processor time: a busy machine does not decide
from tubelet.metrics import answers, llavast
from tubelet.metrics.choices import CHOICE_READERS
from tubelet.scoring.text import read_text

SIZE = 100_000
PIECES = ("1", "1.", ".", "1 ", "1.1", " ", "<answer>", "<think>", "</answer>", "[", "[1,", "{1,", "1,:", "1,:[1,",
          "1-",
          "<TEMP-", "<TEMP-1", "start", "to", "12:", "Target ID: ", "Time range: 1", "answer is ", "A or ", "(A", "a.")
HEADS = ("", "<answer>Target ID: 1 Time range: ")
OPTIONS = ("one", "two", "three", "four")
READERS = [getattr(answers, name) for name in (
    "charades_span", "refcoco_box", "llavast_box", "llavast_span", "llavast_caption", "stvg_r1_answer", "vstar_span"
)] + [llavast.read_tokens, read_text] + [lambda t, f=f: f(t, OPTIONS, "A") for f in CHOICE_READERS.values()]
for read in READERS:
    for piece in PIECES:
        for head in HEADS:
            read(head + piece * (SIZE // len(piece)))
print(len(READERS))
"""


def test_long_answers_are_read_in_linear_time() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LONG], capture_output=True, text=True, timeout=1800, check=False
    )
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
    assert int(done.stdout) >= 16


def pieces(*words: str) -> st.SearchStrategy[str]:
    return st.lists(st.sampled_from(words), max_size=14).map("".join)


@given(pieces("1", "23", ".", "..", "-", " ", "to", "a", "\n"))
def test_charades_spans_are_those_of_the_public_pattern(text: str) -> None:
    public = re.search(r"(\d+\.*\d*)\s*-\s*(\d+\.*\d*)", text.replace("to", "-"))
    if public is None:
        assert charades_span(text) is None
        return
    try:
        expected = sorted((float(public[1]), float(public[2])))
    except ValueError:
        assert charades_span(text) is None
    else:
        assert charades_span(text) == tuple(expected)


@given(
    pieces(
        "<answer>",
        "</answer>",
        "Target ID: ",
        "Time range: ",
        "1",
        "20",
        ".",
        " to ",
        " and ",
        "\n",
        "\u0663",
        "x",
    )
)
def test_the_last_block_of_stvg_r1_is_that_of_the_public_pattern(text: str) -> None:
    blocks = re.findall(r"<answer>(.*?)</answer>", text, re.DOTALL)
    last = blocks[-1] if blocks else ""
    target = re.search(r"Target ID:\s*(\d+)", last, re.IGNORECASE)
    times = re.search(r"Time range:\s*(\d+\.?\d*)\s*(?:to|and)\s*(\d+\.?\d*)", last, re.IGNORECASE)
    if target and times:
        assert stvg_r1_answer(text) == (int(target[1]), float(times[1]), float(times[2]))
    else:
        assert stvg_r1_answer(text) is None


@given(
    pieces(
        "1",
        "07",
        ".",
        ",",
        ",:",
        "[",
        "]",
        " ",
        "\n",
        "1,:[2,3,4,5]",
        "<TEMP-09>",
        "<WIDTH-3>",
        ": ",
        "[<HEIGHT-1>",
    )
)
def test_tokens_are_those_of_the_public_pattern(text: str) -> None:
    token = re.compile(r"<(?:WIDTH|HEIGHT|TEMP)-(\d+)>")
    plain = token.sub(lambda m: f"{int(m[1])},", text).replace(",]", "]").replace(",}", "}")
    public = re.compile(rf"({NUMBER}),:\s*\[({NUMBER}),\s*({NUMBER}),\s*({NUMBER}),\s*({NUMBER})\]")
    rows = public.findall(plain.replace(" ", ""))
    assert read_tokens(text) == {int(float(r[0])): tuple(map(float, r[1:])) for r in rows}


@given(pieces("<think>", "</think>", "A", "B", "(C)", " ", "answer is "))
def test_thoughts_are_left_out_as_by_the_pattern(text: str) -> None:
    options = ("one", "two", "three", "four")
    plain = re.sub(r"<think>.*?</think>", "", text, flags=re.DOTALL)
    assert read_letter(text, options) == read_letter(plain.replace("<think>", "<thinking>"), options)


@pytest.mark.parametrize("digits", [19, 400, 5000])
def test_absurd_numbers_are_no_answer(digits: int) -> None:
    many = "9" * digits
    assert stvg_r1_answer(f"<answer>Target ID: {many} Time range: 1 to 2</answer>") is None
    assert read_tokens(f"<TEMP-{many}>: [1, 2, 3, 4]") == {}
    assert read_tokens(f"<TEMP-1>: [1, 2, 3, <HEIGHT-{many}>]") == {}
