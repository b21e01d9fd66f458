"""Providers without weights: motion on the toy world, files, the world's truth; and `propose_tracks` itself."""

from __future__ import annotations

import gc
import json
import weakref
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tubelet.errors import DataError, ModelError, RecipeError
from tubelet.frames import Clip, FrameGrid
from tubelet.metrics.boxes import paired_iou
from tubelet.proposals import Tracks, propose_tracks, save_tracks, video_hash
from tubelet.proposals.rle import encode
from tubelet.proposals.saliency import camera_shifts
from tubelet.proposals.source import make_source, pictures
from tubelet.video import open_video, read_clip, sample_indices, write_video
from tubelet.world import make_scene
from tubelet.world.render import render


def clip_of(pixels: Any, fps: int = 8) -> Clip:
    n, height, width = pixels.shape[:3]
    grid = FrameGrid(np.arange(n), np.arange(n) / fps, Fraction(fps), n / fps, width, height)
    return Clip(np.asarray(pixels, dtype=np.uint8), grid)


def scene_clip(index: int, side: int = 72, split: str = "test") -> tuple[Any, Clip]:
    scene = make_scene(split, 21, index)
    times = np.arange(int(scene.duration_s * 8)) / 8
    scale = side / min(1.0, scene.aspect)
    pixels = render([scene], [times], 2 * round(scale / 2), 2 * round(scale * scene.aspect / 2))[0].numpy()
    return scene, clip_of(pixels)


def best_viou(boxes: Any, visible: Any, tracks: Tracks) -> float:
    best = 0.0
    for track in tracks:
        both = visible & track.visible
        if both.any():
            overlap = paired_iou(boxes[both], track.boxes_xyxy[both]).sum()
            best = max(best, float(overlap / (visible | track.visible).sum()))
    return best


def test_motion_finds_the_actors_of_the_toy_world() -> None:
    found = []
    for index in range(5):
        scene, clip = scene_clip(index)
        tracks = propose_tracks("motion", clip)
        boxes, visible = scene.boxes_at(clip.grid.times_s)
        found += [best_viou(b, v, tracks) for b, v in zip(boxes, visible, strict=True) if v.sum() > 1]
    assert len(found) >= 10
    assert np.mean(np.array(found) >= 0.5) >= 0.8 and np.mean(found) >= 0.65


def test_motion_follows_in_windows_and_keeps_masks() -> None:
    scene, clip = scene_clip(1)
    whole, parts = propose_tracks("motion", clip), propose_tracks("motion", clip, window=16, masks=True)
    boxes, visible = scene.boxes_at(clip.grid.times_s)
    for b, v in zip(boxes, visible, strict=True):
        assert best_viou(b, v, parts) >= best_viou(b, v, whole) - 0.2
    track = parts[0]
    assert track.masks is not None and any(mask is not None for mask in track.masks)


def test_motion_finds_what_moves_on_cluttered_ground() -> None:
    rng = np.random.default_rng(3)
    ground = rng.integers(0, 255, (24, 36, 3)).astype(np.uint8).repeat(4, axis=0).repeat(4, axis=1)
    thing = rng.integers(0, 255, (20, 20, 3)).astype(np.uint8)
    pixels = np.stack([ground[8:80, 8 + k // 4 : 120 + k // 4] for k in range(32)])  # the camera pans slowly
    for row in range(32):
        pixels[row, 20:40, 8 + 2 * row : 28 + 2 * row] = thing
    tracks = propose_tracks("motion", clip_of(pixels))
    assert "what stands still there was not looked for" in tracks.notes[0]
    x = (8 + 2 * np.arange(32)) / 112
    truth = np.stack([x, np.full(32, 20 / 72), x + 20 / 112, np.full(32, 40 / 72)], axis=1)
    assert best_viou(truth, np.ones(32, dtype=bool), tracks) > 0.5


def test_camera_movement_is_measured() -> None:
    light = np.random.default_rng(0).random((90, 120)).astype(np.float32)
    frames = np.stack([light[10 + k : 70 + k, 10 + 2 * k : 90 + 2 * k] for k in range(5)])
    np.testing.assert_array_equal(camera_shifts(frames), [(-k, -2 * k) for k in range(5)])


@pytest.mark.parametrize("value", [0, 127, 255])
def test_nothing_is_found_where_nothing_is(value: int) -> None:
    assert len(propose_tracks("motion", clip_of(np.full((5, 40, 60, 3), value)))) == 0
    assert len(propose_tracks("motion", clip_of(np.full((1, 40, 60, 3), value)))) == 0


def test_a_still_picture_has_tracks_of_one_frame() -> None:
    pixels = np.full((1, 72, 72, 3), 100)
    pixels[0, 20:40, 30:50] = (230, 20, 20)
    (track,) = propose_tracks("motion", clip_of(pixels))
    assert paired_iou(track.boxes_xyxy, np.array([[30, 20, 50, 40]]) / 72)[0] > 0.6


def test_world_truth_is_exact() -> None:
    scene, clip = scene_clip(2)
    tracks = propose_tracks("world-truth", clip, split="test", seed=21, index=2)
    boxes, visible = scene.boxes_at(clip.grid.times_s)
    for track in tracks:
        np.testing.assert_allclose(track.boxes_xyxy, boxes[track.track_id])
        np.testing.assert_array_equal(track.visible, visible[track.track_id])
        assert scene.actors[track.track_id].colour in (track.label or "")


def test_unknown_names_and_settings() -> None:
    clip = clip_of(np.zeros((2, 16, 16, 3)))
    with pytest.raises(ModelError, match=r"no proposal provider 'yolo'.*motion"):
        propose_tracks("yolo", clip)
    with pytest.raises(RecipeError, match="no field speed"):
        propose_tracks("motion", clip, speed=3)
    with pytest.raises(RecipeError, match="cue is one of"):
        propose_tracks("motion", clip, cue="smell")
    with pytest.raises(DataError, match="own grid"):
        propose_tracks("motion", clip, grid=clip_of(np.zeros((3, 16, 16, 3))).grid)
    with pytest.raises(DataError, match="Clip or a Video"):
        propose_tracks("motion", 7)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def video_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("video") / "v.mp4"
    pixels = np.full((60, 64, 96, 3), 90, dtype=np.uint8)
    for row in range(60):
        pixels[row, 20:40, row : row + 20] = (230, 30, 30)
    write_video(path, pixels, fps=20)
    return path


def test_a_video_is_streamed_hashed_and_cached(video_path: Path, tmp_path: Path) -> None:
    video = open_video(video_path)
    tracks = propose_tracks("motion", video_path, cache=tmp_path)
    assert tracks.video_hash == video_hash(video) and tracks.video_hash.startswith("file-")
    assert len(tracks.grid) == 24 and len(tracks) == 1  # 3 s at 8 per second
    (kept,) = tmp_path.glob("*.json")
    stamp = kept.stat().st_mtime_ns
    again = propose_tracks("motion", video, cache=tmp_path)
    assert kept.stat().st_mtime_ns == stamp and len(list(tmp_path.iterdir())) == 1
    np.testing.assert_allclose(again[0].boxes_xyxy, tracks[0].boxes_xyxy, atol=1e-6)
    other = propose_tracks("motion", video, fps=4, cache=tmp_path)
    assert len(other.grid) == 12 and len(list(tmp_path.iterdir())) == 2


def test_another_video_is_not_answered_from_the_cache(tmp_path: Path) -> None:
    pixels = np.full((4, 40, 60, 3), 90)
    pixels[:, 10:25, 10:25] = (230, 30, 30)
    other = pixels.copy()
    other[:, 10:25, 10:25], other[:, 20:35, 40:55] = 90, (230, 30, 30)
    one, two = (propose_tracks("motion", clip_of(p), cache=tmp_path) for p in (pixels, other))
    assert len(list(tmp_path.glob("*.json"))) == 2 and one.video_hash != two.video_hash
    assert one[0].boxes_xyxy[0, 0] < 0.3 < 0.6 < two[0].boxes_xyxy[0, 0]


def test_a_video_is_never_held_as_a_whole(video_path: Path) -> None:
    """Pictures are handed out one after another: of 60 only a few are alive at a time."""
    video = open_video(video_path)
    alive: list[Any] = []
    most = 0
    gc.freeze()  # what was there before need not be looked through sixty times
    for _, picture in pictures(make_source(video, sample_indices(video, range(60)))):
        alive.append(weakref.ref(picture))
        del picture
        gc.collect()
        most = max(most, sum(known() is not None for known in alive))
    gc.unfreeze()
    assert len(alive) == 60 and 1 <= most <= 4


def test_pictures_of_a_video_are_those_of_its_clip(video_path: Path) -> None:
    video = open_video(video_path)
    for index in ([0, 7, 8, 30], [0, 59], [5]):
        grid = sample_indices(video, index)
        got = list(pictures(make_source(video, grid), (48, 32)))
        assert [row for row, _ in got] == list(range(len(index)))
        np.testing.assert_array_equal(np.stack([p for _, p in got]), read_clip(video, grid, (48, 32)).pixels)


def test_our_own_files_must_be_of_this_video(video_path: Path, tmp_path: Path) -> None:
    tracks = propose_tracks("motion", video_path)
    path = save_tracks(tracks, tmp_path / "t.json")
    grid = sample_indices(open_video(video_path), [0, 10, 20, 40])
    back = propose_tracks("files", video_path, grid=grid, path=str(path))
    assert len(back.grid) == 4 and back[0].visible.all()
    with pytest.raises(DataError, match="another video"):
        propose_tracks("files", clip_of(np.zeros((3, 16, 16, 3))), path=str(path))


def published(**change: Any) -> dict[str, Any]:
    empty = encode(np.zeros((64, 96), dtype=bool)).to_dict()
    track = {
        "id": 4,
        "boxes": [[[0, 10, 48, 32]], [[0, 0, 0, 0]], [[20, 10, 120, 32]]],
        "masks": [encode(np.ones((64, 96), dtype=bool)).to_dict(), empty, empty],
        "class": "person",
        "format": "xyxy",
        "width": 96,
        "height": 64,
    }
    return {
        "sample_frames": ["00000.jpg", "00010.jpg", "00020.jpg"],
        "dino_sam2_proposals": [track],
    } | change


def test_published_proposals(video_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(published()))
    grid = sample_indices(open_video(video_path), [0, 10, 20])
    tracks = propose_tracks("files", video_path, grid=grid, path=str(path))
    assert tracks.n_clipped == 1  # 120 of 96 pixels
    np.testing.assert_allclose(tracks[0].boxes_xyxy[0], [0, 10 / 64, 0.5, 0.5])
    assert tracks[0].visible.tolist() == [True, False, True] and tracks[0].label == "person"
    assert tracks[0].masks is not None and tracks[0].masks[1] is None
    (tmp_path / "b.json").write_text(json.dumps(published()))
    assert (
        len(propose_tracks("files", video_path, grid=grid, path=str(tmp_path))) == 2
    )  # one file per category
    for change, message in (
        ({"sample_frames": ["a.jpg"]}, "frame number"),
        ({"sample_frames": ["1.jpg", "2.jpg", "999.jpg"]}, "another video"),
        ({"dino_sam2_proposals": [{"id": 1}]}, "seven entries"),
        (
            {"dino_sam2_proposals": [published()["dino_sam2_proposals"][0] | {"format": "xywh"}]},
            "says its boxes are 'xywh'",
        ),
        (
            {"dino_sam2_proposals": [published()["dino_sam2_proposals"][0] | {"boxes": [[0, 0, 1, 1]]}]},
            "3 boxes",
        ),
    ):
        path.write_text(json.dumps(published(**change)))
        with pytest.raises(DataError, match=message):
            propose_tracks("files", video_path, path=str(path))


def test_mot_text(video_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text("1,7,1,1,48,32,0.5,-1,-1\n11,7,25,1,48,32,1,-1,-1\n11,9,90,1,48,32,-1\n")
    grid = sample_indices(open_video(video_path), [0, 10, 12])
    tracks = propose_tracks("files", video_path, grid=grid, path=str(path))
    assert [t.track_id for t in tracks] == [7, 9] and tracks.n_clipped == 1
    np.testing.assert_allclose(tracks[0].boxes_xyxy[0], [0, 0, 0.5, 0.5])  # pixels count from 1
    np.testing.assert_allclose(tracks[0].boxes_xyxy[1], [0.25, 0, 0.75, 0.5])
    assert tracks[0].visible.tolist() == [True, True, False]
    for text, message in (
        ("1,7,1\n", "line 1"),
        ("0,7,1,1,2,2\n", "first_frame"),
        ("1,7,1,1,x,2\n", "numbers"),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=message):
            propose_tracks("files", video_path, path=str(path))
    path.write_text("")
    assert len(propose_tracks("files", video_path, path=str(path))) == 0
    with pytest.raises(DataError, match="no file"):
        propose_tracks("files", video_path, path=str(tmp_path / "none.json"))


def test_one_picture_of_many_colours_is_looked_at_by_colour_and_says_so() -> None:
    blocks = np.full((1, 96, 144, 3), 120)
    colours = np.random.default_rng(0).integers(0, 255, (8, 3, 3))
    blocks[0, :, :72] = colours.repeat(12, axis=0).repeat(24, axis=1)
    found = propose_tracks("motion", clip_of(blocks))
    assert len(found) > 0 and "one picture shows no motion" in found.notes[0] and "owlv2" in found.notes[0]
    still = propose_tracks("motion", clip_of(np.repeat(blocks, 4, axis=0)))
    assert len(still) == 0 and "stands still there was not looked for" in still.notes[0]
    assert propose_tracks("motion", clip_of(blocks), cue="colour").notes == ()
    with pytest.raises(RecipeError, match="one picture shows none moving"):
        propose_tracks("motion", clip_of(blocks), cue="motion")


def test_a_file_for_each_video(video_path: Path, tmp_path: Path) -> None:
    tracks = propose_tracks("motion", video_path)
    save_tracks(tracks, tmp_path / f"{video_path.stem}.json")
    found = propose_tracks("files", video_path, path=str(tmp_path / "{stem}.json"))
    assert len(found) == len(tracks)
    (tmp_path / f"{video_path.stem}.json").unlink()
    with pytest.raises(DataError, match=f"no file of tracks .*{video_path.stem}.json"):
        propose_tracks("files", video_path, path=str(tmp_path / "{stem}.json"))
    with pytest.raises(DataError, match="a clip has no file name"):
        propose_tracks("files", clip_of(np.zeros((2, 32, 32, 3))), path=str(tmp_path / "{stem}.json"))
