"""Run folders: what is written is read back, and every way in which a folder can be bad is a sentence."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_models import FRAMES, Fake, make_video, make_vstar
from hypothesis import given, settings
from hypothesis import strategies as st

from tubelet.benchmarks.record_json import record_from_dict
from tubelet.benchmarks.run import run_benchmark
from tubelet.benchmarks.run_card import data_hash, data_told, read_card
from tubelet.benchmarks.run_folder import Line, RunWriter, read_run
from tubelet.benchmarks.run_score import rescore, score_run
from tubelet.benchmarks.run_shards import merge_shards
from tubelet.benchmarks.run_truth import VideoFacts, truths_of
from tubelet.datasets import open_dataset, read
from tubelet.datasets.record import FrameRange, Record, Target, VideoRef
from tubelet.errors import DataError, TubeletError
from tubelet.metrics import evaluate
from tubelet.tube import Prediction, Span, Tube
from tubelet.video import open_video

SHARED = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    run_benchmark(Fake(), "v-star", make_vstar(folder / "data", videos=2, items=1), folder / "run")
    return folder / "run"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    for path in finished.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def edit(path: Path, change: Any) -> None:
    path.write_text("".join(line + "\n" for line in change(path.read_text().splitlines())))


def test_a_run_is_read_and_scored_from_its_folder_alone(run: Path) -> None:
    got = read_run(run)
    assert len(got.records) == len(got.lines) == 8 and len(got.videos) == 2
    assert set(got.tasks) == {"qa", "tvg", "svg", "stvg"} and got.missing == () and got.problems == ()
    truths = got.truths("stvg")
    assert list(truths) == ["v0-0-where2", "v1-1-where2"]
    truth = truths["v0-0-where2"]
    assert truth.span == Span(0.5, 1.5) and len(truth.frame_times_s) == FRAMES
    assert truth.boxes_xyxy == pytest.approx(np.array([[0.125, 0.125, 0.5, 0.5]]))
    report = evaluate(got.predictions("stvg"), truths)
    assert report.metrics["m_tIoU"] == score_run(got).parts["stvg"].metrics["m_tIoU"]
    for key in ("schema", "benchmark", "split", "task", "model", "revision", "protocol", "data_hash", "sampling",
                "versions", "hardware", "seed", "shard", "limit", "seconds"):  # fmt: skip
        assert key in got.card, key
    assert got.card["versions"]["tubelet"] and got.card["seconds"] > 0


def test_the_card_names_the_data_and_no_place(tmp_path: Path) -> None:
    """The name of the folder and what is in its annotations; the same wherever it lies."""
    told = []
    for place in ("one", "two"):
        data = make_vstar(tmp_path / place / "v-star-data", videos=1, items=1)
        out = tmp_path / place / "run"
        run_benchmark(Fake(), "v-star", data, out)  # type: ignore[arg-type]
        assert str(tmp_path) not in (out / "run.json").read_text()
        told.append(read_card(out)["data"])
    assert told[0] == told[1]
    assert told[0]["folder"] == "v-star-data" and told[0]["files"] == 1 and len(told[0]["sha256"]) == 16
    (annotations,) = (tmp_path / "two" / "v-star-data").glob("*.json")
    annotations.write_text(annotations.read_text() + "\n")
    changed = data_told(annotations.parent, open_dataset("v-star").FILES, "test")
    assert changed["sha256"] != told[0]["sha256"] and changed["folder"] == "v-star-data"


def test_metrics_are_made_again_from_the_other_files(run: Path) -> None:
    first = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").unlink()
    rescore(run)
    assert json.loads((run / "metrics.json").read_text()) == first
    other = rescore(run, "llavast")
    assert other.parts["stvg"].protocol == "llavast" and other.parts["tvg"].protocol == "tubelet"
    whens = rescore(run, "vstar").parts
    assert whens["tvg"].protocol == whens["stvg"].protocol == "vstar"
    assert "R1@0.7" in whens["tvg"].metrics and "AP@0.9" in whens["stvg"].metrics
    with pytest.raises(DataError, match=r"'nonsense' scores none of the tasks here \(qa, tvg"):
        rescore(run, "nonsense")


BROKEN = {
    "truncated": (lambda x: [x[0], x[1], x[2][:50], *x[3:]], "line 3: not JSON"),
    "not an object": (lambda x: [x[0], "[]", *x[2:]], "line 2: expected a JSON object"),
    "no id": (lambda x: ['{"prediction": {}}', *x[1:]], "line 1: a line of predictions needs the id"),
    "no prediction": (lambda x: ['{"id": "v0-0-what"}', *x[1:]], "line 1: a line of predictions needs a prediction"),
    "twice": (lambda x: [*x, x[0]], "line 9: field id: the id 'v0-0-what' was there before"),
    "unknown": (lambda x: [x[0].replace("v0-0", "v9-0"), *x[1:]], "line 1: field id: there is no query 'v9-0-what'"),
    "NaN": (lambda x: [_changed(line, np.nan) for line in x], "line 3: .*finite"),
    "pixels": (lambda x: [_changed(line, 30.0) for line in x], r"line 3: .*fractions of the frame in \[0, 1\]"),
    "inverted": (lambda x: [_changed(line, 0.999, 0) for line in x], "line 3: .*x0 <= x1"),
    "missing": (lambda x: x[:-1], "not finished: 1 of 8 queries have no prediction, the first is 'v1-1-where2'"),
}  # fmt: skip


def _changed(line: str, value: float, corner: int = 2) -> str:
    """The line with another box corner; where there are boxes."""
    data = json.loads(line)
    for tube in data["prediction"]["tubes"]:
        for box in tube["boxes_xyxy"]:
            box[corner] = value
    return json.dumps(data)


@pytest.mark.parametrize("what", BROKEN)
def test_bad_predictions_are_said_with_their_line_and_left_out_on_request(run: Path, what: str) -> None:
    change, says = BROKEN[what]
    edit(run / "predictions.jsonl", change)
    with pytest.raises(DataError, match=says):
        rescore(run)
    scores = rescore(run, keep_good=True)
    kept = json.loads((run / "metrics.json").read_text())
    assert scores.n == 8 and kept["n_missing"] == len(read_run(run, keep_good=True).missing)
    if what == "missing":
        assert kept["n_missing"] == 1 and kept["n_failed"] == 1
    else:
        assert kept["problems"], "what was left out is listed"
    if what != "twice":
        assert kept["n_failed"] >= 1  # the broken ones are failures, not gaps
        assert any(f["reason"] == "no prediction" for p in kept["parts"].values() for f in p["failures"])


def test_other_files_that_are_bad(run: Path, finished: Path) -> None:
    card = json.loads((run / "run.json").read_text())
    with pytest.raises(DataError, match="model 'fake', expected 'other'"):
        read_run(run, expect={"model": "other"})
    edit(run / "videos.jsonl", lambda x: x[:1])
    with pytest.raises(DataError, match="says nothing of the video 'v1' of query 'v1-1-what'"):
        read_run(run)
    assert len(read_run(run, keep_good=True).lines) == 4
    fake = Fake()  # as the message says: running it again finds the facts anew and asks nothing
    run_benchmark(fake, "v-star", finished.parent / "data", run)
    assert fake.encoded == [] and len(read_run(run).videos) == 2
    edit(run / "records.jsonl", lambda x: x[:-1])
    with pytest.raises(DataError, match=r"has 7 records, run.json says 8"):
        read_run(run)
    for text, says in (
        ("", "not JSON"),
        ("[]", "an object"),
        (json.dumps({**card, "schema": 99}), "schema 99"),
        (json.dumps({k: v for k, v in card.items() if k != "model"}), "lacks model"),
    ):
        (run / "run.json").write_text(text)
        with pytest.raises(DataError, match=says):
            read_card(run)
    (run / "run.json").unlink()
    with pytest.raises(DataError, match="is no run folder"):
        read_run(run)


def test_absurd_numbers_take_no_memory_and_no_time(run: Path) -> None:
    """Numbers of a damaged file are not believed before there is room for them: each is a sentence at once."""
    card = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**card, "shard": [0, 10**30]}))
    with pytest.raises(DataError, match=r"shard 2/10{30} is missing"):
        merge_shards([run], run / "merged")
    (run / "run.json").write_text(json.dumps(card))
    facts = [json.loads(line) for line in (run / "videos.jsonl").read_text().splitlines()]
    facts[1]["n_frames"] = 2**31 - 1
    (run / "videos.jsonl").write_text("".join(json.dumps(line) + "\n" for line in facts))
    with pytest.raises(DataError, match=r"line 2: 2147483647 frames at 10 per second do not fit into 2 s"):
        read_run(run)
    # a video that nobody opened: its truth stands in, however long the annotation says that it is
    edit(run / "videos.jsonl", lambda x: x[:1])
    rows = [json.loads(line) for line in (run / "records.jsonl").read_text().splitlines()]
    for row in rows:
        row["video"] |= {"frame_count": 2**40 - 1, "duration_s": 1e12}
        row["spans"] = [{"start_s": 0.5, "end_s": 1e308}] if row["spans"] else []
    (run / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert rescore(run, keep_good=True).n_missing == 4
    for row in rows:
        row["video"] |= {"frame_count": None, "duration_s": None}
    (run / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert rescore(run, keep_good=True).n_missing == 4


def test_boxes_outside_frame_and_spans_outside_video(run: Path) -> None:
    """A span past the end is legal and costs tIoU; a box outside the frame is refused when it is read."""

    def late(lines: list[str]) -> list[str]:
        data = [json.loads(line) for line in lines]
        for line in data:
            if line["id"].endswith("when"):
                line["prediction"]["tubes"][0]["span"] = {"start_s": 0.5, "end_s": 99.0}
        return [json.dumps(line) for line in data]

    edit(run / "predictions.jsonl", late)
    assert rescore(run).parts["tvg"].metrics["mIoU"].mean == pytest.approx(1 / 98.5)  # type: ignore[union-attr]


def test_the_last_line_is_cut_only_where_it_has_no_end(tmp_path: Path) -> None:
    line = Line("a", Prediction("v", "q", "stvg", (Tube(Span(0, 1)),)), (), 0.5)
    for tail, left in ((b"", 1), (b'{"id"', 1), (b"x" * 200_000, 1), (b"{}\n", 2)):
        (tmp_path / "predictions.jsonl").unlink(missing_ok=True)
        with RunWriter(tmp_path) as writer:
            writer.add_lines([line])
        with (tmp_path / "predictions.jsonl").open("ab") as file:
            file.write(tail)
        RunWriter(tmp_path).close()
        text = (tmp_path / "predictions.jsonl").read_text()
        assert text.endswith("\n") and text.count("\n") == left
    assert Line.from_dict(json.loads(text.splitlines()[0])) == line


REAL = [
    ("charades-sta", "charades_sta", "test"),
    ("didemo", "didemo", "val"),
    ("vue-stg", "vue_stg", "test"),
    ("qvhighlights", "qvhighlights", "val"),
    ("vidstg", "vidstg", "val"),
]


@pytest.mark.parametrize(("name", "place", "split"), REAL)
def test_records_survive_json(name: str, place: str, split: str) -> None:
    folder = SHARED / place
    if not folder.exists():
        pytest.skip(f"no real slice {place} here")
    seen = 0
    try:
        for record in read(name, folder, split):
            text = json.dumps(record.to_dict())
            again = record_from_dict(json.loads(text))
            assert json.dumps(again.to_dict()) == text and data_hash([again]) == data_hash([record])
            seen += 1
            if seen == 40:
                break
    except DataError as error:
        pytest.skip(str(error))
    assert seen


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_no_json_raises_anything_but_tubelets_errors(data: st.DataObject) -> None:
    record = Record("d", "s", "a", "stvg", "q", VideoRef("v", ("v.mp4",), segment=FrameRange(0, 9)), (Span(0, 1),),
                    targets=(Target(np.array([[0, 0, 1, 1.0]]), times_s=np.array([0.5])),))  # fmt: skip
    line = Line("a", Prediction("v", "q", "stvg", (Tube(Span(0, 1)),)), (Tube(Span(0, 1)),), 1.0)
    facts = VideoFacts("v", "v", np.arange(3) / 2, Fraction(2), 1.5, 4, 4)
    for make, whole in ((record_from_dict, record), (Line.from_dict, line), (VideoFacts.from_dict, facts)):
        changed: Any = json.loads(json.dumps(whole.to_dict()))  # type: ignore[attr-defined]
        place = changed
        while data.draw(st.booleans()) and isinstance(place.get("video"), dict):
            place = place["video"]
        place[data.draw(st.sampled_from(sorted(place)))] = data.draw(json_values)
        try:
            make(changed)
        except TubeletError:
            continue


def test_facts_of_a_video_with_a_constant_and_a_variable_rate(tmp_path: Path) -> None:
    video = open_video(make_video(tmp_path / "v.mp4"))
    facts = VideoFacts.of("v", "v.mp4", video)
    assert facts.to_dict()["times_s"] is None and facts.to_dict()["n_frames"] == FRAMES
    again = VideoFacts.from_dict(json.loads(json.dumps(facts.to_dict())))
    assert again.times_s == pytest.approx(video.times_s, abs=1e-6) and again.duration_s == video.duration_s
    uneven = VideoFacts("v", "v.mp4", np.array([0, 0.1, 0.4]), facts.fps, 0.5, 4, 4)
    assert uneven.to_dict()["times_s"] == [0, 0.1, 0.4]
    assert VideoFacts.from_dict(uneven.to_dict()).times_s.tolist() == [0, 0.1, 0.4]


def test_truths(tmp_path: Path) -> None:
    facts = VideoFacts.of("v", "v.mp4", open_video(make_video(tmp_path / "v.mp4")))
    box = np.array([[0, 0, 24, 16.0]])

    def record(**changes: Any) -> Record:
        return Record(
            "d", "s", "a", "stvg", "q", VideoRef("v", ("v.mp4",), **changes.pop("video", {})), **changes
        )

    # frames of the file decide the seconds; pixels need the size of the opened video
    target = Target(box, "pixel", np.array([6]))
    (truth,), note = truths_of(record(frames=FrameRange(5, 10), targets=(target,)), facts)
    assert truth.span == Span(0.5, 1.0) and truth.boxes_xyxy.tolist() == [[0, 0, 0.5, 0.5]] and not note
    # only the frames of the segment are there
    part = record(video={"segment": FrameRange(4, 12)}, spans=(Span(0.5, 1.0),))
    assert truths_of(part, facts)[0][0].frame_times_s.tolist() == pytest.approx(np.arange(4, 12) / 10)
    # windows of one target become one span; two targets stay two
    two = record(spans=(Span(0, 0.4), Span(1, 1.5)), targets=(Target(box / 48, times_s=np.array([1.2])),))
    (truth,), note = truths_of(two, facts)
    assert truth.span == Span(0, 1.5) and len(truth.box_times_s) == 1 and "2 true windows" in note
    assert (
        len(truths_of(record(spans=(Span(0, 1),), targets=(target, target), video={"fps": 10}), facts)[0])
        == 2
    )
    # a truth that ends after the file does is cut there, and said
    late = Target(box.repeat(2, axis=0), "pixel", np.array([18, 25]))
    (truth,), note = truths_of(record(frames=FrameRange(15, 40), targets=(late,)), facts)
    assert truth.span == Span(1.5, 2.0) and truth.box_times_s.tolist() == pytest.approx([1.8])
    assert note.startswith(
        "span-past-video: the annotation speaks of frames up to 39, the video has 20 frames"
    )
    # one that begins there is scored by its own seconds, and said
    (truth,), note = truths_of(record(frames=FrameRange(30, 40), targets=(target,)), facts)
    assert truth.span == Span(3.0, 4.0) and "does not fit the video" in note
    # a video that was not opened
    (truth,), _ = truths_of(record(frames=FrameRange(25, 50), targets=(target,)), None)
    assert truth.span == Span(1.0, 2.0) and len(truth.frame_times_s)
    assert truths_of(record(present=False), facts)[0][0].span is None
    with pytest.raises(DataError, match="labels are hidden"):
        truths_of(record(), facts)
