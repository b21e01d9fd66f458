"""No prediction file, however broken, raises anything but tubelet's own errors."""

from __future__ import annotations

import copy
import json
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import scoring_files as files
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tubelet.errors import TubeletError
from tubelet.scoring import render, score_file
from tubelet.scoring.score import to_dict
from tubelet.scoring.text import read_text

FUZZ = settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
ODD: st.SearchStrategy[Any] = (
    st.sampled_from(
        [
            *(
                None,
                True,
                -1,
                0,
                0.5,
                1e308,
                -1e308,
                -1e-9,
                2**63,
                10**30,
                10**400,
                math.nan,
                math.inf,
                -math.inf,
            ),
            *("", " ", "1", "\0", "\ud800", "{1, 2} 3: [1, 2, 3, 4]", "<TEMP-" + "9" * 30 + ">", "9" * 5000),
            [],
            {},
            [[]],
            [[1, 2]],
            [[1, 2, 3, 4]],
            {"1": [1, 2, 3, 4]},
            {"²": [1, 2, 3, 4]},
            {"-1": [math.nan] * 4},
            "<answer>Target ID: 2, Time range: 0 to " + "9" * 400 + "</answer>",
            "{0.1, 1" + "0" * 400 + "}",
        ]
    )
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.lists(st.integers(-5, 5) | st.floats(), max_size=5)
)
PROTOCOLS = {
    "tubelet": ["tubelet", "hcstvg_official", "vue_stg"],
    "vue_stg": ["vue_stg", "tubelet", "vstar"],
    "moment_detr": ["moment_detr", "charades"],
    "llavast": ["llavast", "tubelet", "tubedetr"],
    "stvg_r1": ["stvg_r1", "tubelet", "zeroshot"],
    "qwen": ["tubelet", "doro"],
    "doro": ["doro", "tubelet", "bostvg"],
}
RECORDS: dict[str, Callable[[], dict[str, Any]]] = {
    "tubelet": lambda: files.tubelet_line("a"),
    "moment_detr": lambda: {
        "qid": 1,
        "pred_relevant_windows": [[10, 20, 0.9], [0, 30, 0.1]],
        "pred_saliency_scores": [0.5, 0.2],
    },
    "llavast": files.llavast_record,
    "stvg_r1": files.r1_record,
    "qwen": lambda: {"id": "a", "answer": "{2, 6} 2: [0.1, 0.2, 0.3, 0.4]", "width": 10, "height": 10},
    "doro": files.doro_record,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("fuzz")
    files.vue_data(base / "vue")
    files.moments_data(base / "moments")
    return base


def try_to_score(path: Path, fmt: str | None, folder: Path, data: bool = True) -> None:
    """Score with everything that may be declared; only tubelet's own errors may come out."""
    options: dict[str, Any] = {"keep_going": True}
    if data and fmt in ("tubelet", "vue_stg", "qwen"):
        options |= {"benchmark": "vue-stg", "data": folder / "vue"}
    if fmt == "moment_detr":
        options |= {"benchmark": "qvhighlights", "data": folder / "moments"}
    if fmt == "qwen":
        options |= {"boxes": "fraction", "times": "second"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for keep_going in (True, False):
            try:
                scores = score_file(
                    path, fmt, PROTOCOLS.get(fmt or "", ()), **{**options, "keep_going": keep_going}
                )
            except TubeletError as error:
                assert str(error)
                continue
            for column in scores.columns.values():
                assert column.n == scores.n
                for name, value in column.metrics.items():
                    if name.startswith(("m_", "mIoU", "vIoU@", "MR-")) and value.n:
                        assert -1e-9 <= value.mean <= 1 + 1e-9, (name, value)
            render(scores).encode("utf-8")
            json.dumps(to_dict(scores), allow_nan=False).encode("utf-8")


def places(value: Any, way: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The ways to every place in a JSON value; of long lists the first two elements."""
    out = [way] if way else []
    if isinstance(value, dict):
        for key in list(value)[:12]:
            out += places(value[key], (*way, key))
    elif isinstance(value, list):
        for k in range(min(2, len(value))):
            out += places(value[k], (*way, k))
    return out


def changed(value: Any, way: tuple[Any, ...], new: Any, delete: bool) -> Any:
    out = copy.deepcopy(value)
    inner = out
    for step in way[:-1]:
        inner = inner[step]
    if delete and isinstance(inner, dict):
        del inner[way[-1]]
    else:
        inner[way[-1]] = new
    return out


@pytest.mark.parametrize("fmt", sorted(RECORDS))
def test_any_value_in_any_place(fmt: str, folder: Path) -> None:
    record = RECORDS[fmt]()
    path = folder / f"{fmt}.jsonl"

    @FUZZ
    @given(way=st.sampled_from(places(record)), new=ODD, delete=st.booleans(), broken_first=st.booleans())
    def check(way: tuple[Any, ...], new: Any, delete: bool, broken_first: bool) -> None:
        odd = changed(record, way, new, delete)
        rows = [odd, record] if broken_first else [record, odd]
        if not broken_first:
            for key in ("id", "qid", "item_id"):
                if odd.get(key) == record.get(key) and key in odd:
                    odd[key] = 2 if key == "qid" else "b"
        files.write_lines(path, rows)
        try_to_score(path, fmt, folder)

    check()


@pytest.mark.parametrize("fmt", [None, *sorted(PROTOCOLS)])
def test_any_bytes(fmt: str | None, folder: Path) -> None:
    path = folder / f"bytes_{fmt}"
    starts = [b"", b"[", b"{", b"query_id,time_ms,x0,y0,x1,y1\n", b"ID: a\n\nModel Output:", b'{"id": "a", ']

    @settings(FUZZ, max_examples=25)
    @given(
        start=st.sampled_from(starts),
        data=st.binary(max_size=60)
        | st.text(max_size=40).map(lambda text: text.encode("utf-8", "surrogatepass")),
    )
    def check(start: bytes, data: bytes) -> None:
        path.write_bytes(start + data)
        try_to_score(path, fmt, folder)

    check()


def test_any_rows_of_csv(folder: Path) -> None:
    path = folder / "rows.csv"
    cell = st.sampled_from(
        ["a", "b", "zz", "", "nan", "inf", "-1", "1e400", "0.5", "2000", "1e308", '"', "9" * 5000]
    )

    @FUZZ
    @given(st.lists(st.lists(cell | st.text(max_size=4), min_size=5, max_size=7), max_size=6))
    def check(rows: list[list[str]]) -> None:
        lines = ["query_id,time_ms,x0,y0,x1,y1", *files.vue_rows("a", [2]), *(",".join(row) for row in rows)]
        path.write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))
        try_to_score(path, "vue_stg", folder)

    check()


@settings(FUZZ, max_examples=200)
@given(
    st.lists(
        st.sampled_from(
            [
                "1",
                "2.5",
                "{",
                "}",
                "[",
                "]",
                ",",
                ":",
                " ",
                "-",
                "to",
                "(",
                ")",
                "<|box_start|>",
                '"time"',
                "00:01",
                '"bbox_2d"',
                "NaN",
                "Infinity",
                "1e999",
                "```json\n",
                "<answer>",
                "</answer>",
                "s",
                "\n",
                "9" * 26,
            ]
        )
        | st.text(max_size=3),
        max_size=30,
    ).map("".join)
)
def test_any_text(text: str) -> None:
    said = read_text(text)
    if said is not None:
        assert said.span is not None or said.boxes
        assert all(len(box) == 4 for _, box in said.boxes)
