"""The tolerant parser: what it reads, what it says about the rest, and that it survives anything."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tubelet.errors import DataError
from tubelet.llava_st.answers import Answer, Clock, caption, parse_answer, tube_of
from tubelet.llava_st.coordinates import anchor, box_anchors, nearest_anchor, span_anchors, value_of

BOX = (10 / 99, 20 / 99, 30 / 99, 40 / 99)
WORDS = "<WIDTH-010><HEIGHT-020><WIDTH-030><HEIGHT-040>"


@pytest.mark.parametrize(
    "text",
    [
        f"It appears at [{WORDS}].",
        f"[ {WORDS} ]",
        WORDS,
        "[<WIDTH-010>, <HEIGHT-020>, <WIDTH-030>, <HEIGHT-040>]",
        "[<HEIGHT-020><WIDTH-010><HEIGHT-040><WIDTH-030>]",  # told by their axes
        f"(({WORDS}))",
        "[<WIDTH-10> <HEIGHT-20> <WIDTH-30> <HEIGHT-40>]",
        "It is at [0.10101, 0.20202,0.30303 ,0.40404]",
    ],
)
def test_boxes_in_every_layout(text: str) -> None:
    answer = parse_answer(text, "rec")
    assert answer.problems == ()
    assert answer.boxes[0] == pytest.approx(BOX, abs=1e-5)


@pytest.mark.parametrize(
    "text",
    [
        "During the period {<TEMP-007><TEMP-055>}",
        "<TEMP-007><TEMP-055>",
        "{ <TEMP-007> , <TEMP-055> }.",
        "{<TEMP-007><TEMP-055>} and again {<TEMP-007><TEMP-055>}",
        "{0.07071,0.55556}",
    ],
)
def test_spans_in_every_layout(text: str) -> None:
    answer = parse_answer(text, "tvg")
    assert answer.problems == ()
    assert len(answer.spans) == 1
    assert answer.spans[0] == pytest.approx((7 / 99, 55 / 99), abs=1e-5)


@pytest.mark.parametrize(
    "text",
    [
        f"{{<TEMP-007><TEMP-055>}}. Object bounding box: <TEMP-007>:[{WORDS}],<TEMP-009>:[{WORDS}]",
        f"{{<TEMP-007><TEMP-055>}} {{<TEMP-007>: [{WORDS}], <TEMP-009>: [{WORDS}]}} {{<TEMP-007><TEMP-055>}}",
        f"{{<TEMP-007><TEMP-055>}}<TEMP-007>{WORDS}<TEMP-009>{WORDS}",
        f"{{<TEMP-007><TEMP-055>}} <TEMP-007> :[{WORDS}] then <TEMP-009>,:[{WORDS}]",
    ],
)
def test_timed_boxes_in_every_layout(text: str) -> None:
    answer = parse_answer(text, "stvg")
    assert answer.problems == ()
    assert answer.spans == ((7 / 99, 55 / 99),)
    assert answer.timed_boxes == ((7 / 99, BOX), (9 / 99, BOX))
    assert answer.phrases == ()


def test_an_elc_answer() -> None:
    text = f"Ends in <TEMP-016>, a child, in red, pushes a toy. Object bounding box: <TEMP-012>:[{WORDS}]"
    answer = parse_answer(text, "elc")
    assert (answer.end, caption(answer), answer.problems) == (16 / 99, "a child, in red, pushes a toy", ())
    spanned = parse_answer("Ends in {<TEMP-012><TEMP-016>}, a dog runs.")
    assert (spanned.spans, spanned.events[0].text) == (((12 / 99, 16 / 99),), "a dog runs")


def test_phrases_and_events() -> None:
    answer = parse_answer(f"There is snow. A cat [{WORDS}] and a dog [{WORDS}].", "dgc")
    assert [phrase.text for phrase in answer.phrases] == ["A cat", "and a dog"]
    assert answer.text == "There is snow. A cat and a dog."
    answer = parse_answer("{<TEMP-000><TEMP-010>}, he sits, alone. {<TEMP-011><TEMP-099>}, he leaves.", "dvc")
    assert [(event.span, event.text) for event in answer.events] == [
        ((0.0, 10 / 99), "he sits, alone"),
        ((11 / 99, 1.0), "he leaves"),
    ]


@pytest.mark.parametrize(
    ("text", "task", "problem", "read"),
    [
        (f"<TEMP-003>:[{WORDS}],<TEMP-004>:[<WIDTH-001><HEIGHT-002><WIDTH-003", "svg", "cut off", 1),
        (f"<TEMP-003>:[{WORDS}],<TEMP-004>:[<WIDTH-001><HEIGHT-002><WIDTH-003>", "svg", "3 of 4", 1),
        (f"<TEMP-003>:[{WORDS}],<TEMP-004>", "svg", "cut off after a time", 1),
        (f"<TEMP-004>:[{WORDS}],<TEMP-003>:[{WORDS}]", "svg", "do not increase", 2),
        (f"<TEMP-004>:[{WORDS}],<TEMP-004>:[{WORDS.replace('010', '005')}]", "svg", "the last one counts", 1),
        ("<TEMP-003>:[<WIDTH-030><HEIGHT-020><WIDTH-010><HEIGHT-040>]", "svg", "inverted", 0),
        (f"<TEMP-100>:[{WORDS}]", "svg", "outside the 100", 0),
        (f"<TEMP-003>:[{WORDS.replace('010', '123')}]", "svg", "outside the 100", 0),
        ("<TEMP-003>:[<WIDTH-001><WIDTH-002><WIDTH-003><HEIGHT-004>]", "svg", "two x and two y", 0),
        (f"<TEMP-003>:[{WORDS}{WORDS}]", "svg", "second box", 1),
        ("nothing to see", "svg", "no timed boxes", 0),
        ("", "svg", "no timed boxes", 0),
        ("<TEMP-OUTPUT>:[<WIDTH-OUTPUT>]", "svg", "placeholder <TEMP-OUTPUT>", 0),
    ],
)
def test_what_cannot_be_read_is_said(text: str, task: str, problem: str, read: int) -> None:
    answer = parse_answer(text, task)
    assert len(answer.timed_boxes) == read
    assert problem in "; ".join(answer.problems)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{<TEMP-050><TEMP-010>}", "ends before it starts"),
        ("{<TEMP-005>}", "stands alone|cut off|no span"),
        ("{<TEMP-005><TEMP-006><TEMP-007>}", "two times, this one has 3"),
        ("{7.0,55.0}", "fractions of the clip"),
        ("from 3 to 5", "no span"),
    ],
)
def test_spans_that_are_none(text: str, problem: str) -> None:
    import re

    answer = parse_answer(text, "tvg")
    assert answer.spans == ()
    assert re.search(problem, "; ".join(answer.problems))


def test_absence_is_an_answer() -> None:
    answer = parse_answer("That is not in this video.", "stvg")
    assert answer.absent and answer.problems == ()
    assert not parse_answer("{<TEMP-001><TEMP-002>}, not in the house", "tvg").absent


def test_no_text() -> None:
    assert parse_answer(None).problems == ("there is no answer text",)


PIECES = st.sampled_from(
    [
        *(
            "<TEMP-000>",
            "<TEMP-099>",
            "<TEMP-100>",
            "<TEMP-12",
            "<WIDTH-003>",
            "<HEIGHT-004>",
            "<WIDTH-1234>",
        ),
        *(
            "<TEMP-OUTPUT>",
            *"[]{}:,.()<>",
            " ",
            "Ends",
            " in ",
            "0.5",
            "12",
            "1e9",
            "nan",
            "-3",
            "\n",
            "é",
            "中",
        ),
        *("Object bounding box:", " not in ", "{0.5,", "[0.1,0.2,0.3,0.4]"),
    ]
)


@given(st.lists(PIECES, max_size=40).map("".join) | st.text(max_size=60))
@settings(max_examples=400, deadline=None)
def test_any_text_gives_valid_numbers(text: str) -> None:
    for task in (None, "stvg", "elc"):
        answer = parse_answer(text, task)
        assert all(0 <= s <= e <= 1 for s, e in answer.spans)
        times = [t for t, _ in answer.timed_boxes]
        assert times == sorted(set(times))
        for box in [*answer.boxes, *(b for _, b in answer.timed_boxes)]:
            assert 0 <= box[0] <= box[2] <= 1 and 0 <= box[1] <= box[3] <= 1
        tube_of(answer, Clock(0.0, 10.0))


BOXES = st.tuples(*[st.integers(0, 98)] * 2, *[st.integers(1, 99)] * 2).map(
    lambda b: (b[0] / 99, b[1] / 99, max(b[2], b[0] + 1) / 99, max(b[3], b[1] + 1) / 99)
)


@given(st.integers(0, 98), st.integers(1, 99), st.lists(BOXES, min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_a_written_answer_reads_back(start: int, length: int, boxes: list[tuple[float, ...]]) -> None:
    end = min(start + length, 99)
    text = f"During the span of {span_anchors(start / 99, end / 99)}. Object bounding box: "
    text += ",".join(f"{anchor('TEMP', k)}:{box_anchors(box)}" for k, box in enumerate(boxes))
    answer = parse_answer(text, "stvg")
    assert answer.problems == ()
    assert answer.spans == ((start / 99, end / 99),)
    assert [t for t, _ in answer.timed_boxes] == [k / 99 for k in range(len(boxes))]
    assert [b for _, b in answer.timed_boxes] == [pytest.approx(box) for box in boxes]


LONG = ["[" * 60_000, "1" * 60_000, " " * 60_000 + "[", "<TEMP-001>" + " " * 90_000 + "<WIDTH-001>"]
LONG += ["<TEMP-001>" * 9000, "<TEMP-001>: [" * 7000, "[0.1, " * 15_000, f"[{WORDS}] " * 2000]


@pytest.mark.parametrize("text", LONG, ids=range(len(LONG)))
def test_long_nonsense_is_read_in_linear_time(text: str) -> None:
    before = time.process_time()
    parse_answer(text, "stvg")
    assert time.process_time() - before < 3.0


def test_seconds_and_tubes() -> None:
    clock = Clock(2.0, 12.0)
    assert clock.seconds(0.5) == 7.0 and clock.fraction(7.0) == 0.5 and clock.fraction(99.0) == 1.0
    answer = parse_answer(
        f"{{<TEMP-000><TEMP-099>}} <TEMP-000>:[{WORDS}],<TEMP-099>:[<WIDTH-030><HEIGHT-020><WIDTH-050><HEIGHT-040>]"
    )
    tube = tube_of(answer, clock)
    assert tube is not None and (tube.span.start_s, tube.span.end_s) == (2.0, 12.0)
    middle = tube.box_at(7.0)  # between keyed frames boxes are interpolated
    assert middle is not None and middle.tolist() == pytest.approx([20 / 99, 20 / 99, 40 / 99, 40 / 99])
    given_span = tube_of(answer, clock, span=(0.25, 0.5))
    assert given_span is not None and len(given_span) == 0 and given_span.span.start_s == 4.5
    elc = parse_answer(f"Ends in <TEMP-050>, x. <TEMP-010>:[{WORDS}]", "elc")
    ends = tube_of(elc, clock, start=0.0)
    assert ends is not None and ends.span.end_s == pytest.approx(2 + 10 * 50 / 99) and len(ends) == 1
    assert tube_of(Answer(), clock) is None
    moment = tube_of(parse_answer("{<TEMP-099><TEMP-099>}"), clock)
    assert moment is not None and moment.span.end_s == 12.0 and moment.span.duration_s > 0
    with pytest.raises(DataError, match="ends after it starts"):
        Clock(3.0, 3.0)


@given(st.floats(0, 1))
def test_the_nearest_anchor(value: float) -> None:
    assert abs(value_of(nearest_anchor(value)) - value) <= 0.5 / 99 + 1e-12
