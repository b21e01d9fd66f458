"""Files of proposals that know little of their video: masks on other frames than the model's, shapes, no hash."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tubelet.errors import DataError, RecipeError
from tubelet.frames import Clip
from tubelet.mllm.loading import load_mllm
from tubelet.mllm.parts import Mllm
from tubelet.proposals import Track, Tracks, check_provider, propose_tracks, save_tracks, video_hash
from tubelet.proposals.files import FilesSettings, propose_files
from tubelet.proposals.rle import encode
from tubelet.proposals.source import make_source
from tubelet.video import Video, open_video, read_clip, sample_indices, sample_rate, write_video
from tubelet.zeroshot.grounder import ZeroShotGrounder
from tubelet.zeroshot.settings import ZeroShotSettings, preset

FRAMES, WIDTH, HEIGHT = 160, 96, 64  # 8 s at 20 per second


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Video:
    path = tmp_path_factory.mktemp("video") / "v.mp4"
    pixels = np.full((FRAMES, HEIGHT, WIDTH, 3), 90, dtype=np.uint8)
    for row in range(FRAMES):
        pixels[row, 16:48, row // 4 : row // 4 + 48] = (230, 30, 30)
    write_video(path, pixels, fps=20)
    return open_video(path)


@pytest.fixture(scope="module")
def mllm() -> Mllm:
    return load_mllm("pico-base")


def box_px(frame: int) -> list[float]:
    return [frame // 4, 16.0, frame // 4 + 48.0, 48.0]


def mask(frame: int) -> Any:
    """The left half of the box, so that it can be told from the box."""
    pixels = np.zeros((HEIGHT, WIDTH), dtype=bool)
    pixels[16:48, frame // 4 : frame // 4 + 24] = True
    return encode(pixels)


def released(path: Path, every: int = 10, without: tuple[int, ...] = (), **change: Any) -> Path:
    frames = range(0, FRAMES, every)
    track = {
        "id": 1,
        "boxes": [[box_px(f)] for f in frames],
        "masks": [None if f in without else mask(f).to_dict() for f in frames],
        "class": "person",
        "format": "xyxy",
        "width": WIDTH,
        "height": HEIGHT,
    }
    data = {"sample_frames": [f"{f:05d}.jpg" for f in frames], "dino_sam2_proposals": [track | change]}
    path.write_text(json.dumps(data))
    return path


def ours(path: Path, video: Video) -> Path:
    grid = sample_rate(video, 8.0)
    boxes = np.array([box_px(f) for f in grid.frame_index]) / [WIDTH, HEIGHT, WIDTH, HEIGHT]
    seen = np.ones(len(grid), dtype=bool)
    track = Track(0, boxes, seen, score=1.0, masks=tuple(mask(f) for f in grid.frame_index))
    return save_tracks(Tracks(grid, (track,), video_hash=video_hash(video)), path)


@pytest.mark.parametrize("form", ["published", "tubelet"])
@pytest.mark.parametrize("n_frames", [5, 16])
def test_every_step_of_the_model_has_its_mask(
    form: str, n_frames: int, video: Video, mllm: Mllm, tmp_path: Path
) -> None:
    path = tmp_path / "t.json"
    path = released(path) if form == "published" else ours(path, video)
    settings = ZeroShotSettings(frames=n_frames)
    state = ZeroShotGrounder(mllm, "files", settings, path=str(path)).encode(video)
    (track,) = state.tracks
    assert len(state.tracks.grid) == n_frames and track.visible.all() and track.masks is not None
    assert [m is not None for m in track.masks] == [True] * n_frames
    assert not any("no mask" in note for note in state.notes)
    step = 5 if form == "published" else 2  # half of what lies between two frames of the file
    for frame, shown in zip(state.tracks.grid.frame_index.tolist(), track.masks, strict=True):
        near = [mask(f) for f in range(max(0, frame - step), min(FRAMES, frame + step + 1))]
        assert shown in near, f"frame {frame} shows a mask of another time"
    # what is weighed is the mask, not the box
    boxes = ZeroShotGrounder(mllm, "files", replace(settings, region="box"), path=str(path)).encode(video)
    assert state.weights.sum() < 0.65 * boxes.weights.sum()


@pytest.mark.parametrize("sampling", ["cells", "published"])
def test_a_released_file_and_the_published_preset_use_masks_only(
    sampling: str, video: Video, mllm: Mllm, tmp_path: Path
) -> None:
    settings = replace(preset("published"), frames=16, sampling=sampling)
    grounder = ZeroShotGrounder(mllm, "files", settings, path=str(released(tmp_path / "t.json")))
    state = grounder.encode(video)
    (track,) = state.tracks
    assert track.masks is not None and None not in track.masks and len(track.masks) == 16
    assert not any("no mask" in note for note in grounder.ground(state, "the red square").notes)


def test_what_has_no_mask_is_counted_and_said(video: Video, mllm: Mllm, tmp_path: Path) -> None:
    path = released(tmp_path / "t.json", without=(0, 10, 20, 30))
    grounder = ZeroShotGrounder(mllm, "files", ZeroShotSettings(frames=16), path=str(path))
    state = grounder.encode(video)
    (track,) = state.tracks
    missing = sum(m is None for m in track.masks or ())
    assert 2 <= missing <= 5 and track.visible.all()
    said = f"no mask for {missing} of the 16 boxes"
    assert sum(note.startswith(said) for note in state.notes) == 1
    prediction = grounder.ground(state, "the red square")
    assert any(note.startswith(said) for note in prediction.notes)


@pytest.mark.parametrize(
    ("size", "fits"),
    [((96, 64), True), ((1920, 1280), True), ((853, 568), True), ((64, 96), False), ((640, 360), False)],
)
def test_pictures_of_another_shape_are_of_another_video(
    size: tuple[int, int], fits: bool, video: Video, tmp_path: Path
) -> None:
    path = released(tmp_path / "t.json", width=size[0], height=size[1], masks=[])
    if fits:
        assert len(propose_tracks("files", video, path=str(path))) == 1
        return
    with pytest.raises(
        DataError, match=rf"pictures of {size[0]}x{size[1]}, but this video is 96x64.*another"
    ):
        propose_tracks("files", video, path=str(path))


def test_masks_of_another_shape_are_of_another_video(video: Video, tmp_path: Path) -> None:
    turned = encode(np.ones((WIDTH, HEIGHT), dtype=bool)).to_dict()
    path = released(tmp_path / "t.json", masks=[turned] * (FRAMES // 10))
    with pytest.raises(DataError, match="masks of 64x96, but this video is 96x64"):
        propose_tracks("files", video, path=str(path))


def test_stored_pixels_that_are_not_square_fit_too(video: Video, tmp_path: Path) -> None:
    """Public readers show an anamorphic video as it is stored: 72 pixels that are 4/3 wide are shown as 96."""
    from fractions import Fraction

    path = released(tmp_path / "t.json", width=72, masks=[], boxes=[[[0, 16, 36, 48]]] * (FRAMES // 10))
    with pytest.raises(DataError, match="another shape"):
        propose_files(make_source(video), (), FilesSettings(str(path)))
    wide = replace(video, sample_aspect_ratio=Fraction(4, 3))
    (track,) = propose_files(make_source(wide), (), FilesSettings(str(path))).tracks
    np.testing.assert_allclose(track.boxes_xyxy[0], [0, 0.25, 0.5, 0.75])
    # turned by a quarter, the stored width is the height that is shown
    upright = replace(wide, width=HEIGHT, height=WIDTH, rotation_deg=90)
    path = released(
        tmp_path / "u.json", width=64, height=72, masks=[], boxes=[[[0, 0, 9, 9]]] * (FRAMES // 10)
    )
    assert len(propose_files(make_source(upright), (), FilesSettings(str(path))).tracks) == 1


def test_files_without_a_hash_say_so(video: Video, mllm: Mllm, tmp_path: Path) -> None:
    path = released(tmp_path / "t.json")
    state = ZeroShotGrounder(mllm, "files", ZeroShotSettings(frames=4), path=str(path)).encode(video)
    assert sum("t.json carries no hash of its video" in note for note in state.notes) == 1
    mot = tmp_path / "m.txt"
    mot.write_text("1,7,1,1,48,32,0.5\n")
    assert "m.txt carries no hash" in propose_tracks("files", video, path=str(mot)).notes[0]
    own = ours(tmp_path / "o.json", video)
    assert propose_tracks("files", video, path=str(own)).notes == ()
    nameless = json.loads(own.read_text()) | {"video_hash": None}
    own.write_text(json.dumps(nameless))
    assert "o.json carries no hash" in propose_tracks("files", video, path=str(own)).notes[0]


def test_a_clip_with_fewer_frames_than_the_file_has_masks_too(video: Video, tmp_path: Path) -> None:
    clip = read_clip(video, sample_indices(video, [3, 47, 101, 158]))
    assert isinstance(clip, Clip)
    (track,) = propose_tracks("files", clip, path=str(released(tmp_path / "t.json")))
    # frame 158 lies more than half a step behind the last of the file
    assert track.masks == (mask(0), mask(50), mask(100), None) and track.rows.tolist() == [0, 1, 2]


def test_files_without_a_path_say_what_to_give(video: Video) -> None:
    for ask in (lambda: check_provider("files", {}), lambda: propose_tracks("files", video)):
        with pytest.raises(RecipeError, match=r"the provider files reads tracks.*give path") as caught:
            ask()
        assert "Settings" not in str(caught.value)
    with pytest.raises(RecipeError, match=r"^world-truth needs split, seed, index"):
        check_provider("world-truth", {})
    with pytest.raises(RecipeError, match=r"^motion has no field speed"):
        check_provider("motion", {"speed": 3})
