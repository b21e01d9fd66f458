"""One image and a referring expression: from the command line, and scored as RefCOCO with true boxes to choose from."""

from __future__ import annotations

import json
import shutil
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tubelet import cli
from tubelet.benchmarks.run import run_benchmark
from tubelet.errors import DataError
from tubelet.frames import Clip, FrameGrid
from tubelet.grounder import find_model
from tubelet.metrics.referring import score_boxes
from tubelet.proposals import Track, Tracks, load_tracks, propose_tracks, save_tracks
from tubelet.world.files import make_world, read_annotations
from tubelet.zeroshot.grounder import ZeroShotGrounder, load_zero_shot

PATTERN = "proposals/{stem}.json"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Toy-world images as a RefCOCO in MDETR's layout, and their true boxes as proposals, a file per image."""
    folder = tmp_path_factory.mktemp("images")
    make_world(folder, 4, seed=5, tasks=("rec",), questions=2, height=96)
    images: list[dict[str, Any]] = []
    boxes: list[dict[str, Any]] = []
    (folder / "proposals").mkdir()
    for number, line in enumerate(line for line in read_annotations(folder) if line["present"]):
        path = folder / line["video"]
        width, height = Image.open(path).size
        x0, y0, x1, y1 = np.array(line["boxes_xyxy"][0]) * [width, height, width, height]
        entry = {"id": number, "file_name": path.name, "width": width, "height": height}
        images.append({**entry, "original_id": number, "caption": line["query"]})
        boxes.append({"id": number, "image_id": number, "bbox": [x0, y0, x1 - x0, y1 - y0], "category_id": 1})
        _, seed, index = line["scene"]["seed"]
        tracks = propose_tracks("world-truth", path, split="test", seed=seed, index=index, still=True)
        assert any(np.abs(t.boxes_xyxy[0] - line["boxes_xyxy"][0]).max() < 1e-4 for t in tracks)
        save_tracks(tracks, folder / PATTERN.format(stem=path.stem))
    assert len(images) >= 5
    file = {"info": {}, "images": images, "annotations": boxes}
    (folder / "finetune_refcoco_testA.json").write_text(json.dumps(file))
    return folder


@pytest.fixture(scope="module")
def grounder(data: Path) -> ZeroShotGrounder:
    return load_zero_shot("pico-base", "files", settings={"absent_below": 0}, path=str(data / PATTERN))


def iou(a: Any, b: Any) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0.0, width) * max(0.0, height)
    area = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return float(shared / area)


def run_lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]


def test_refcoco_is_answered_by_a_proposal_and_scored(
    data: Path, grounder: ZeroShotGrounder, tmp_path: Path
) -> None:
    scores = run_benchmark(grounder, "refcoco", data, tmp_path, split="refcoco_testA")
    part = scores.parts["rec"]
    truth = json.loads((data / "finetune_refcoco_testA.json").read_text())
    overlaps = []
    for line in run_lines(tmp_path):
        prediction = line["prediction"]
        number = int(line["id"].removeprefix("mdetr-"))
        image, (x, y, w, h) = truth["images"][number], truth["annotations"][number]["bbox"]
        (box,) = prediction["tubes"][0]["boxes_xyxy"]
        there = load_tracks(data / PATTERN.format(stem=Path(image["file_name"]).stem))
        assert min(float(np.abs(t.boxes_xyxy[0] - box).max()) for t in there) < 1e-5
        assert prediction["query"] == image["caption"] and prediction["task"] == "rec"
        size = np.array([image["width"], image["height"]] * 2)
        overlaps.append(iou(box, np.array([x, y, x + w, y + h]) / size))
    assert part.n == len(truth["images"]) == len(overlaps) and part.n_failed == 0
    assert part.metrics["ACC@0.5"].mean == pytest.approx(np.mean(np.array(overlaps) >= 0.5))  # type: ignore[union-attr]
    assert part.metrics["IoU"].mean == pytest.approx(np.mean(overlaps), abs=1e-4)  # type: ignore[union-attr]


def test_a_run_goes_on_under_the_same_settings_only(
    data: Path, grounder: ZeroShotGrounder, tmp_path: Path
) -> None:
    run_benchmark(grounder, "refcoco", data, tmp_path, split="refcoco_testA", limit=1)
    told = json.loads((tmp_path / "run.json").read_text())["sampling"]
    assert told["proposals"] == {"provider": "files", "path": "{stem}.json"}  # no place on a machine
    assert told["split"] == "rules" and told["zero_shot"]["token"] == grounder.settings.token
    run_benchmark(grounder, "refcoco", data, tmp_path, split="refcoco_testA", limit=1)
    motion = ZeroShotGrounder(grounder.mllm)
    tuned = ZeroShotGrounder(
        grounder.mllm, "files", grounder.settings.with_quality(), **grounder.proposal_settings
    )
    for other in (motion, tuned):
        with pytest.raises(DataError, match="sampling"):
            run_benchmark(other, "refcoco", data, tmp_path, split="refcoco_testA", limit=1)


def test_an_image_whose_proposals_are_missing_fails_and_counts(data: Path, tmp_path: Path) -> None:
    for file in (data / "proposals").glob("*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    sorted(tmp_path.glob("*.json"))[0].unlink()
    partly = load_zero_shot("pico-base", "files", path=str(tmp_path / "{stem}.json"))
    part = run_benchmark(partly, "refcoco", data, tmp_path / "run", split="refcoco_testA").parts["rec"]
    lines = run_lines(tmp_path / "run")
    failed = [line["prediction"]["failure"] for line in lines if line["prediction"]["failure"]]
    assert 0 < part.n_failed == len(failed) < part.n == len(lines)
    assert all("no file of tracks" in reason for reason in failed)
    assert part.metrics["ACC@0.5"].n == part.n  # type: ignore[union-attr]


@settings(max_examples=12, deadline=None)
@given(
    st.lists(st.tuples(*[st.floats(0, 0.85)] * 2, *[st.floats(0.05, 0.15)] * 2), min_size=1, max_size=6),
    st.data(),
)
def test_whatever_is_picked_is_a_proposal_and_scored_right(
    grounder: ZeroShotGrounder, places: list[tuple[float, ...]], draw: st.DataObject
) -> None:
    pixels = np.random.default_rng(len(places)).integers(0, 255, (1, 48, 64, 3), dtype=np.uint8)
    clip = Clip(pixels, FrameGrid(np.zeros(1, dtype=int), np.zeros(1), Fraction(1), 1.0, 64, 48))
    boxes = [np.array([[x, y, x + w, y + h]]) for x, y, w, h in places]
    tracks = Tracks(clip.grid, tuple(Track(k, box, np.ones(1, dtype=bool)) for k, box in enumerate(boxes)))
    state = grounder.encode(clip, tracks=tracks)
    prediction = grounder.ground(state, draw.draw(st.sampled_from(["the red circle", "left thing", "dog?"])))
    assert prediction.task == "rec" and len(prediction.tube) == 1
    box = prediction.tube.boxes_xyxy[0]
    np.testing.assert_allclose(box, boxes[prediction.provenance["track"]][0])
    truth = draw.draw(st.sampled_from(boxes))[0]
    scores = score_boxes([tuple(box)], [tuple(truth)])
    assert scores.values["IoU"][0] == pytest.approx(iou(box, truth), abs=1e-6)
    assert scores.values["ACC@0.5"][0] == float(iou(box, truth) >= 0.5)


def test_a_file_of_tracks_for_each_video_needs_a_video_file(grounder: ZeroShotGrounder) -> None:
    clip = Clip(
        np.zeros((1, 32, 32, 3), dtype=np.uint8),
        FrameGrid(np.zeros(1, dtype=int), np.zeros(1), Fraction(1), 1.0, 32, 32),
    )
    with pytest.raises(DataError, match="a clip has no file name"):
        grounder.encode(clip)


def ground(monkeypatch: pytest.MonkeyPatch, *args: object) -> int:
    monkeypatch.setattr(sys, "argv", ["tubelet", "ground", *map(str, args), "--method", "zero-shot"])
    try:
        cli.main()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    return 0


def test_a_picture_from_the_command_line(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    image = sorted((data / "images").glob("*.png"))[0]
    out = tmp_path / "answer.png"
    said = ("the red circle", "the thing on the left")
    words = (*said, "--set", "absent_below=0", "--json", tmp_path / "a.json", "--out", out)
    assert ground(monkeypatch, image, *words) == 0
    shown = capsys.readouterr()
    assert [line.split(":")[0] for line in shown.out.splitlines()] == list(said)
    assert "toy world" not in shown.err  # a picture of it: the model knows it
    there = propose_tracks("motion", image)
    for prediction in json.loads((tmp_path / "a.json").read_text()):
        assert prediction["task"] == "rec" and prediction["failure"] is None
        (box,) = prediction["tubes"][0]["boxes_xyxy"]
        assert min(float(np.abs(t.boxes_xyxy[0] - box).max()) for t in there) < 1e-5
    with Image.open(out) as drawn, Image.open(image) as plain:
        assert drawn.width == plain.width and drawn.height > plain.height  # a line of text per sentence
        below = drawn.convert("RGB").crop((0, drawn.height - plain.height, *drawn.size))
        assert below.tobytes() != plain.convert("RGB").tobytes()


@pytest.mark.parametrize("quality", [False, True])
def test_a_video_from_the_command_line(
    quality: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Offline, with the embedded model and motion proposals; --quality tunes and reads the reversed video."""
    make_world(tmp_path, 1, seed=3, height=96, fps=10)
    asked = next(row for row in read_annotations(tmp_path) if row["present"])
    video, query = tmp_path / asked["video"], asked["query"]
    more = ["--quality"] if quality else []
    assert ground(monkeypatch, video, query, "--json", tmp_path / "a.json", *more) == 0
    (prediction,) = json.loads((tmp_path / "a.json").read_text())
    told = prediction["provenance"]
    assert (told["method"], told["proposals"], told["model"]) == ("zero-shot", "motion", "pico-base")
    assert (told["consistency"] is not None) == quality and prediction["tubes"][0]["boxes_xyxy"]
    assert "toy world" not in capsys.readouterr().err


def test_footage_that_is_not_the_toy_world_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a domain.json the footage is judged; without one every answer of a small model says what it knows."""
    noise = np.random.default_rng(0).integers(0, 255, (96, 128, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    ground(monkeypatch, tmp_path / "noise.png", "the red circle")
    assert (
        "this model knows only tubelet's toy world, and this video does not look like it"
        in capsys.readouterr().err
    )
    folder = Path(shutil.copytree(find_model("pico-base"), tmp_path / "pico"))
    (folder / "domain.json").unlink()
    always = load_zero_shot(folder)
    assert always.domain is None
    assert (
        always.about is not None
        and "pico is a small model that knows only tubelet's toy world" in always.about
    )


def test_a_picture_without_anything_to_choose_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    grey = tmp_path / "grey.png"
    Image.new("RGB", (96, 64), (90, 90, 90)).save(grey)
    assert ground(monkeypatch, grey, "the dog") == 1
    shown = capsys.readouterr()
    assert "motion found nothing in this picture" in shown.out and "owlv2" in shown.out
    assert "one picture shows no motion" in shown.err and "Traceback" not in shown.err
