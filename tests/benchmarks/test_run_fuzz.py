"""A run folder damaged at any place in any way is read, or is one of tubelet's own errors; nothing is lost silently."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from fake_models import Fake, make_vstar
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tubelet.benchmarks.run import read_scores, run_benchmark
from tubelet.benchmarks.run_card import read_card
from tubelet.benchmarks.run_folder import read_ids, read_run
from tubelet.benchmarks.run_score import score_run
from tubelet.benchmarks.run_shards import merge_shards
from tubelet.benchmarks.submission import write_submission
from tubelet.errors import TubeletError

FUZZ = settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
FILES = ("run.json", "records.jsonl", "videos.jsonl", "predictions.jsonl", "metrics.json")
ODD: Any = (
    st.sampled_from(
        [None, True, -1, 0.5, 1e308, 2**63, 10**30, float("nan"), float("inf"), "", "\0", [], {}, [[]]]
    )
    | st.integers()
    | st.floats()
    | st.text(max_size=6)
)


class Files(dict[str, bytes]):
    """The files of a finished run; shown in few words when a test fails."""

    def __repr__(self) -> str:
        return ", ".join(self)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("finished")
    run_benchmark(Fake(), "v-star", make_vstar(folder / "data", videos=2, items=1), folder / "run")  # type: ignore[arg-type]
    return Files({path.name: path.read_bytes() for path in (folder / "run").iterdir() if path.is_file()})


def places(value: Any, way: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The ways to every place in a JSON value, the first two elements of a list standing for the rest."""
    inside: list[Any] = list(value) if isinstance(value, dict) else []
    if isinstance(value, list):
        inside = list(range(min(2, len(value))))
    return ([way] if way else []) + [p for key in inside for p in places(value[key], (*way, key))]


def damaged_line(text: str, data: st.DataObject) -> str:
    """One place of a JSON line replaced or taken away."""
    value = json.loads(text)
    *way, last = data.draw(st.sampled_from(places(value)))
    place = value
    for key in way:
        place = place[key]
    if data.draw(st.booleans()):
        place[last] = data.draw(ODD)
    else:
        del place[last]
    return json.dumps(value)


def damaged(whole: bytes, name: str, data: st.DataObject) -> bytes:
    kind = data.draw(st.sampled_from(["bytes", "json", "line twice", "line gone", "empty"]))
    lines = whole.decode().splitlines() if name.endswith(".jsonl") else [whole.decode()]
    at = data.draw(st.integers(0, len(lines) - 1))
    if kind == "bytes":
        start = data.draw(st.integers(0, len(whole)))
        gone = data.draw(st.sampled_from([0, 1, 9, 80, len(whole)]))
        return whole[:start] + data.draw(st.binary(max_size=6)) + whole[start + gone :]
    if kind == "json":
        lines[at] = damaged_line(lines[at], data)
    elif kind == "line twice":
        lines.insert(at, lines[at])
    elif kind == "line gone":
        del lines[at]
    else:
        return b""
    return "".join(line + "\n" for line in lines).encode("utf-8", "replace")


@FUZZ
@given(data=st.data())
def test_any_damage(finished: Files, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for name, content in finished.items():
            (folder / name).write_bytes(content)
        name = data.draw(st.sampled_from(FILES))
        (folder / name).write_bytes(damaged(finished[name], name, data))
        for keep_good, unfinished in ((False, False), (True, False), (True, True)):
            try:
                run = read_run(folder, keep_good=keep_good, unfinished=unfinished)
                scores = score_run(run)
                text = json.dumps(scores.to_dict(run.card))
            except TubeletError as error:
                assert str(error) and str(error).count("\n") == 0
                continue
            # whoever is not answered counts, and is listed
            assert scores.n == len(run.records) and set(run.lines) <= {r.id for r in run.records}
            listed = {key for part in scores.parts.values() for key in part.failures}
            assert set(run.missing) <= listed, text
            if not keep_good:
                assert not run.problems
        for read in (read_card, read_scores, write_submission, lambda f: read_ids(f / "predictions.jsonl")):
            try:
                read(folder)
            except TubeletError as error:
                assert str(error)
        try:
            merge_shards([folder], folder / "merged")
        except TubeletError as error:
            assert str(error)
        try:
            again = Fake()
            run_benchmark(again, "v-star", folder / "nowhere", folder)  # type: ignore[arg-type]
        except TubeletError as error:
            assert str(error) and not again.asked
