"""The toy world on disk: files that open, annotations true of their pixels, calls that can be repeated."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tubelet.errors import DataError, OutputError
from tubelet.tube import TASKS, Tube
from tubelet.video import open_video, read_clip, sample_indices
from tubelet.world import files
from tubelet.world.choreography import SceneConfig, make_scene
from tubelet.world.files import even, frame_times, make_world, read_annotations, scene_with_questions
from tubelet.world.render import render
from tubelet.world.scene import ACTIONS, SPLITS
from tubelet.world.tasks import truth_boxes

SMALL: dict[str, Any] = {"seed": 7, "height": 48, "fps": 5.0}


def lines_of(folder: Path) -> list[str]:
    return (folder / "annotations.jsonl").read_text(encoding="utf-8").splitlines()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight videos of 120 rows with three questions each."""
    folder = tmp_path_factory.mktemp("world")
    assert make_world(folder, 8, seed=7, questions=3, height=120, fps=10.0) == folder / "annotations.jsonl"
    return folder


def test_videos_are_as_annotated(world: Path) -> None:
    records = read_annotations(world)
    assert len({r["id"] for r in records}) == len(records) > 16
    assert sorted({r["video"] for r in records}) == [f"videos/test-7-{k:05d}.mp4" for k in range(8)]
    for record in {r["video"]: r for r in records}.values():
        video = open_video(world / record["video"])
        scene = make_scene("test", *record["scene"]["seed"][1:])
        assert video.n_frames == record["n_frames"] == round(scene.duration_s * 10)
        assert video.fps == record["fps"] == 10 and video.constant_rate and video.codec == "h264"
        assert (video.width, video.height) == (even(120 * scene.aspect), 120)
        assert np.abs(video.times_s - frame_times(scene, 10.0)).max() < 1e-4
        assert video.duration_s == pytest.approx(record["duration_s"], abs=0.1)


def test_annotations_are_the_exact_truth_of_native_frames(world: Path) -> None:
    for record in read_annotations(world):
        assert record["schema"] == 1 and record["task"] == "stvg" and record["query"]
        times = np.array(record["times_s"])
        assert np.allclose(times, np.array(record["frame_index"]) / 10, atol=1e-6)
        if not record["present"]:
            assert record["span"] is None and record["boxes_xyxy"] == []
            continue
        span = record["span"]
        assert 0 <= span["start_s"] < span["end_s"] <= record["duration_s"]
        assert len(Tube.from_dict(record | {"score": None})) == len(times) > 0  # a record holds a valid tube
        split, seed, index = record["scene"]["seed"]
        scene, questions = scene_with_questions("test", seed, index % 1_000_000, ("stvg",), 3, False)
        assert split == SPLITS["test"] and scene.seed == (split, seed, index)
        (question,) = [q for q in questions if q.query == record["query"]]
        boxes, has = truth_boxes(scene, question, np.arange(record["n_frames"]) / 10)
        assert np.flatnonzero(has).tolist() == record["frame_index"]
        assert np.abs(boxes[has] - record["boxes_xyxy"]).max() <= 0.51e-5


def test_boxes_lie_on_the_thing_in_the_decoded_file(world: Path) -> None:
    """At the middle of its box a full shape has its own colour, where nothing else is drawn over it."""
    checked = 0
    for record in read_annotations(world):
        if not record["present"]:
            continue
        scene = make_scene("test", *record["scene"]["seed"][1:])
        boxes, visible = scene.boxes_at(record["times_s"])
        (a,) = [
            k
            for k in range(len(scene.actors))
            if visible[k].all() and np.abs(boxes[k] - record["boxes_xyxy"]).max() < 1e-4
        ]
        actor = scene.actors[a]
        if (
            actor.shape == "ring"
            or actor.texture != "plain"
            or any(e.action == "blink" for e in actor.events)
        ):
            continue
        rows = np.arange(0, len(record["times_s"]), 6)
        video = open_video(world / record["video"])
        clip = read_clip(video, sample_indices(video, [record["frame_index"][r] for r in rows]))
        for picture, row in zip(clip.pixels, rows, strict=True):
            time_s = record["times_s"][row]
            x0, y0, x1, y1 = boxes[a, row]
            x, y = (x0 + x1) / 2, (y0 + y1) / 2
            covered = any(
                b[0] - 0.02 < x < b[2] + 0.02 and b[1] - 0.02 < y < b[3] + 0.02
                for k, b in enumerate(boxes[:, row])
                if k != a
            )
            cut = min(x0, y0) <= 0 or max(x1, y1) >= 1
            if covered or cut or (scene.dark is not None and scene.dark.contains(time_s)):
                continue
            height, width = picture.shape[:2]
            here = picture[int(y * height), int(x * width)].astype(float)
            assert np.abs(here - np.array(actor.rgb) * 255).max() < 45
            checked += 1
    assert checked > 30


def test_frames_of_the_file_are_those_of_the_scene(world: Path) -> None:
    record = read_annotations(world)[0]
    scene = make_scene("test", *record["scene"]["seed"][1:])
    video = open_video(world / record["video"])
    clip = read_clip(video, sample_indices(video, [0, 7, video.n_frames - 1]))
    drawn = render([scene], [clip.grid.times_s], 120, even(120 * scene.aspect))[0].numpy()
    for decoded, direct in zip(clip.pixels, drawn, strict=True):
        assert np.abs(decoded.astype(float) - direct).mean() < 6.0


def test_drawing_frame_by_frame_is_drawing_at_once() -> None:
    scene = make_scene("test", 7, 0)
    width = even(32 * scene.aspect)
    frames = list(islice(files.draw_frames(scene, 32, 15.0), 40))  # more than one chunk
    assert len(frames) == 40 and frames[0].shape == (32, width, 3)
    assert np.array_equal(np.stack(frames), render([scene], [np.arange(40) / 15], 32, width)[0].numpy())


@pytest.mark.parametrize("height", [49, 16, 7])
def test_any_height_is_made_even(tmp_path: Path, height: int) -> None:
    make_world(tmp_path, 1, seed=7, height=height, fps=2.0)
    video = open_video(tmp_path / read_annotations(tmp_path)[0]["video"])
    assert video.height == even(height) and video.height % 2 == 0 and video.width % 2 == 0


# --- made again ----------------------------------------------------------------------------------


def test_the_same_call_makes_the_same_world(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        make_world(folder, 2, questions=2, **SMALL)
    assert lines_of(one) == lines_of(two)
    for path in sorted((one / "videos").iterdir()):
        videos = [open_video(folder / "videos" / path.name) for folder in (one, two)]
        assert np.array_equal(videos[0].times_s, videos[1].times_s)
        clips = [read_clip(v, sample_indices(v, range(v.n_frames))).pixels.astype(float) for v in videos]
        # the pictures drawn are the same; libx264's macroblock tree is not exact from run to run
        assert np.abs(clips[0] - clips[1]).mean() < 4.0
    make_world(two, 3, questions=2, **SMALL)  # more of the same begins with the same
    assert lines_of(two)[: len(lines_of(one))] == lines_of(one)


def test_splits_and_seeds_make_different_worlds(tmp_path: Path) -> None:
    for split in SPLITS:
        for seed in (0, 1):
            make_world(tmp_path / f"{split}{seed}", 1, **(SMALL | {"seed": seed}), split=split)
    firsts = [json.loads(lines_of(f)[0]) for f in sorted(tmp_path.iterdir())]
    assert len({json.dumps(r["scene"]["actors"]) for r in firsts}) == 6
    assert {tuple(r["scene"]["seed"][:2]) for r in firsts} == {(s, k) for s in (0, 1, 2) for k in (0, 1)}


def test_an_interrupted_call_is_repeated_without_drawing_again(tmp_path: Path) -> None:
    whole, halted = tmp_path / "whole", tmp_path / "halted"
    make_world(whole, 3, **SMALL)

    def stop(done: int, total: int) -> None:
        assert total == 3
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_world(halted, 3, **SMALL, progress=stop)
    assert not (halted / "annotations.jsonl").exists()
    made = {path: path.stat().st_mtime_ns for path in (halted / "videos").iterdir()}
    assert len(made) == 2
    make_world(halted, 3, **SMALL)
    assert lines_of(halted) == lines_of(whole)
    assert all(path.stat().st_mtime_ns == then for path, then in made.items())
    names = sorted(p.name for p in halted.rglob("*") if p.is_file())
    assert names == sorted(p.name for p in whole.rglob("*") if p.is_file())  # and nothing half made


@pytest.mark.parametrize("tasks", [("stvg",), ("rec",)])
def test_what_is_half_drawn_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tasks: tuple[str, ...]
) -> None:
    def cut_short(*args: Any) -> Any:
        yield from islice(real(*args), 0 if tasks == ("rec",) else 5)
        raise KeyboardInterrupt

    real: Callable[..., Any] = files.draw_frames
    monkeypatch.setattr(files, "draw_frames", cut_short)
    with pytest.raises(KeyboardInterrupt):
        make_world(tmp_path, 1, tasks=tasks, **SMALL)
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["world.json"]


def test_a_picture_that_cannot_be_saved_is_not_taken_for_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(self: Image.Image, path: Path, **options: Any) -> None:
        Path(path).write_bytes(b"\x89PNG")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Image.Image, "save", full_disk)
        with pytest.raises(OutputError, match="No space left on device"):
            make_world(tmp_path, 1, tasks=("rec",), **SMALL)
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["world.json"]
    make_world(tmp_path, 1, tasks=("rec",), **SMALL)
    (path,) = tmp_path.rglob("*.png")
    assert open_video(path).is_image


def test_other_settings_are_refused_and_the_folder_is_left_alone(tmp_path: Path) -> None:
    make_world(tmp_path, 1, **SMALL)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    for changes in ({"fps": 10.0}, {"height": 64}, {"tasks": ("tvg",)}, {"questions": 2}):
        with pytest.raises(DataError, match="holds a toy world with other settings"):
            make_world(tmp_path, 1, **(SMALL | changes))
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    assert json.loads((tmp_path / "world.json").read_text())["fps"] == 5.0


# --- images --------------------------------------------------------------------------------------


def test_image_tasks_write_images(tmp_path: Path) -> None:
    make_world(tmp_path, 6, tasks=("rec", "reg", "dgc"), questions=4, **SMALL)
    records = read_annotations(tmp_path)
    assert {r["task"] for r in records} == {"rec", "reg", "dgc"}
    for record in records:
        assert record["video"].startswith("images/") and record["n_frames"] == 1 and record["span"] is None
        picture = open_video(tmp_path / record["video"])
        scene = make_scene("test", *record["scene"]["seed"][1:], SceneConfig(still=True))
        assert picture.is_image and (picture.width, picture.height) == (even(48 * scene.aspect), 48)
        if record["task"] == "rec" and record["present"]:
            assert record["frame_index"] == [0] and record["times_s"] == [0.0]
            ((x0, y0, x1, y1),) = record["boxes_xyxy"]
            assert 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1
        if record["task"] == "reg":
            assert record["given_box"] and record["answer"].startswith("the ")
        if record["task"] == "dgc":
            assert record["phrases"] and record["answer"].endswith(".")
            for phrase in record["phrases"]:
                box = scene.boxes_at([0.0])[0][phrase["actor"], 0]
                assert phrase["text"] in record["answer"] and phrase["box_xyxy"] == pytest.approx(
                    box, abs=1e-5
                )
    drawn = render([scene], [[0.0]], 48, even(48 * scene.aspect))[0, 0].numpy()
    assert np.array_equal(np.asarray(Image.open(tmp_path / record["video"])), drawn)  # png loses nothing


def test_questions_alone_are_about_videos(tmp_path: Path) -> None:
    make_world(tmp_path, 1, tasks=("qa",), **SMALL)
    assert read_annotations(tmp_path)[0]["video"].endswith(".mp4")


# --- mistakes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"tasks": ("stvg", "rec")}, "image tasks .* and video tasks cannot be in one folder: make two"),
        ({"tasks": ("find",)}, "unknown task find; tasks are stvg"),
        ({"tasks": ()}, "a toy world needs n, questions .* and a task, got 1, 1, 48, 5.0 and none"),
        ({"split": "dev"}, "unknown split 'dev'; splits are train, val, test"),
        ({"seed": -1}, "seeds and numbers of scenes are whole numbers from 0 on, got seed -1, scene 0"),
        ({"n": 0}, "a toy world needs n"),
        ({"questions": 0}, "a toy world needs n, questions"),
        ({"fps": 0.0}, "fps above 0"),
        ({"fps": float("nan")}, "fps above 0"),
        ({"fps": float("inf")}, "fps above 0"),
        ({"height": -4}, "height of at least 1"),
    ],
    ids=str,
)
def test_calls_that_make_no_sense(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError, match=says):
        make_world(tmp_path / "world", **({"n": 1} | SMALL | changes))
    assert not (tmp_path / "world").exists()


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_text("a file")
    for folder in (taken, taken / "below"):
        with pytest.raises(OutputError, match=r"cannot write the toy world to .*taken"):
            make_world(folder, 1, **SMALL)
    assert taken.read_text() == "a file"
    (tmp_path / "world" / "annotations.jsonl").mkdir(parents=True)
    with pytest.raises(OutputError, match=r"cannot write the toy world to .*world"):
        make_world(tmp_path / "world", 1, **SMALL)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"id": "a", "vid', r"line 3: not JSON \("),
        ("nonsense", r"line 3: not JSON \("),
        ("5", "line 3: expected a JSON object, got int"),
        ("[1]", "line 3: expected a JSON object, got list"),
        ('{"id": "a", "video": "v.mp4", "query": "q"}', "line 3: lacks task, present"),
        (
            '{"schema": 2, "id": "a", "video": "v", "task": "stvg", "query": "q", "present": true}',
            "line 3: schema 2, this tubelet reads 1",
        ),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, line: str, says: str) -> None:
    good = '{"schema": 1, "id": "a", "video": "v", "task": "stvg", "query": "q", "present": true}'
    (tmp_path / "annotations.jsonl").write_text(f"{good}\n\n{line}\n{good}\n")
    with pytest.raises(DataError, match=says) as caught:
        read_annotations(tmp_path)
    assert "annotations.jsonl" in str(caught.value)


def test_annotations_that_are_missing_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no annotations.jsonl: make it with 'tubelet world make"):
        read_annotations(tmp_path)
    (tmp_path / "annotations.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"cannot read .*annotations.jsonl"):
        read_annotations(tmp_path)


def test_blank_lines_are_no_records(world: Path, tmp_path: Path) -> None:
    (tmp_path / "annotations.jsonl").write_text("\n\n".join(lines_of(world)) + "\n\n")
    assert read_annotations(tmp_path) == read_annotations(world)


def test_the_example_in_the_docs_is_what_is_written(tmp_path: Path) -> None:
    text = (Path(__file__).parents[1] / "docs" / "json.md").read_text(encoding="utf-8")
    example = json.loads(re.findall(r"```json\n(.*?)```", text, re.DOTALL)[1])
    make_world(tmp_path, 1, seed=7, fps=5.0)
    (record,) = read_annotations(tmp_path)
    assert record == example
    for key in record:
        assert f"`{key}`" in text, f"docs/json.md does not describe {key}"


def test_the_docs_name_every_action_and_task() -> None:
    text = (Path(__file__).parents[1] / "docs" / "world.md").read_text(encoding="utf-8")
    for name in (*ACTIONS, *TASKS):
        assert f"`{name}`" in text, f"docs/world.md does not describe {name}"
