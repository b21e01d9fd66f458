"""Track, Tracks, masks, files of tracks, the cache, and association: no model, no video."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tubelet.errors import DataError, ModelError, OutputError
from tubelet.frames import Clip, FrameGrid
from tubelet.proposals import (
    Track,
    Tracks,
    clip_boxes,
    fill_gaps,
    load_tracks,
    save_tracks,
    to_tube,
    video_hash,
)
from tubelet.proposals.detections import Detection, Failures, associate, windows
from tubelet.proposals.rle import Rle, box_of, decode, encode, text_to_lengths
from tubelet.proposals.store import cached, tracks_to_dict
from tubelet.tube import Span


def grid_of(n: int, step: int = 1) -> FrameGrid:
    index = np.arange(n) * step
    return FrameGrid(index, index / 10, Fraction(10), n * step / 10, 100, 50)


def moving(n: int, number: int = 0, **kwargs: object) -> Track:
    x = np.linspace(0.1, 0.5, n)
    boxes = np.stack([x, np.full(n, 0.2), x + 0.2, np.full(n, 0.6)], axis=1)
    return Track(number, boxes, np.ones(n, dtype=bool), **kwargs)  # type: ignore[arg-type]


def test_rle_is_the_published_code() -> None:
    # 3 x 3, only the middle set: runs 4, 1, 4
    mask = np.zeros((3, 3), dtype=bool)
    mask[1, 1] = True
    assert text_to_lengths(encode(mask).counts) == [4, 1, 4]
    assert encode(mask).counts == "414"
    # a run of 100 takes two letters: 100 = 0b11_00100 -> 4 + 32, 3
    assert Rle.from_dict({"size": [10, 20], "counts": [100, 100]}).counts == "T3T3"
    assert decode(Rle(10, 20, "T3T3")).sum() == 100
    # from the fourth on, the difference to the length two before: 5, 7, 5, 4 -> 5, 7, 5, -3
    assert Rle.from_dict({"size": [3, 7], "counts": [5, 7, 5, 4]}).counts == "575M"


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_rle_round_trip(height: int, width: int, seed: int) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < 0.5
    rle = encode(mask)
    np.testing.assert_array_equal(decode(rle), mask)
    assert Rle.from_dict(json.loads(json.dumps(rle.to_dict()))) == rle


def test_rle_of_other_files_is_refused() -> None:
    for bad in ({"size": [2, 2], "counts": [1]}, {"size": [2, 2], "counts": [2, 3]}):
        with pytest.raises(DataError, match="fill"):
            decode(Rle.from_dict(bad))
    with pytest.raises(DataError, match="size"):
        Rle.from_dict({"counts": "4"})
    with pytest.raises(DataError, match="middle of a number"):
        decode(Rle(2, 2, "T"))


def test_box_of_a_mask_has_pixel_edges() -> None:
    mask = np.zeros((10, 20), dtype=bool)
    mask[2:5, 4:8] = True
    np.testing.assert_allclose(box_of(mask), [0.2, 0.2, 0.4, 0.5])
    assert box_of(np.zeros((3, 3), dtype=bool)) is None


def test_a_track_checks_itself() -> None:
    seen = np.ones(2, dtype=bool)
    good = np.array([[0.1, 0.1, 0.2, 0.2]] * 2)
    for boxes, message in (
        (good * 100, "fractions"),
        (good[:, [2, 3, 0, 1]], "x0 < x1"),
        (good[:1], "one box per frame"),
        (good * np.nan, "finite"),
    ):
        with pytest.raises(DataError, match=message):
            Track(0, boxes, seen)
    with pytest.raises(DataError, match="box_scores"):
        Track(0, good, seen, box_scores=np.ones(3))
    with pytest.raises(DataError, match="score"):
        Track(0, good, seen, score=1.5)
    hidden = Track(0, np.array([[0.1, 0.1, 0.2, 0.2], [9, 9, 9, 9]]), np.array([True, False]))
    assert hidden.boxes_xyxy[1].tolist() == [0, 0, 0, 0]  # what is not visible has no box
    with pytest.raises(ValueError, match="read-only"):
        hidden.boxes_xyxy[0, 0] = 0.5


@pytest.mark.parametrize("count", [0, 1, 500])
def test_any_number_of_tracks_is_kept(count: int, tmp_path: Path) -> None:
    n = 12
    mask = encode(np.eye(5, dtype=bool))
    tracks = Tracks(
        grid_of(n),
        tuple(
            moving(n, k, score=0.5, box_scores=np.full(n, 0.25), masks=(mask,) * n, label="dog")
            for k in range(count)
        ),
        video_hash="clip-1",
        provider="test",
        settings={"a": [1, 2]},
        n_clipped=3,
        notes=("one",),
    )
    assert tracks.boxes_xyxy.shape == (count, n, 4)
    back = load_tracks(save_tracks(tracks, tmp_path / "sub" / "t.json"))
    assert tracks_to_dict(back) == tracks_to_dict(tracks)
    assert back.visible.shape == (count, n)
    assert len(back.best(1)) == min(1, count)
    if count:
        assert back[0].masks is not None
        np.testing.assert_array_equal(decode(back[0].masks[3]), np.eye(5, dtype=bool))  # type: ignore[arg-type]
    assert sorted(p.name for p in (tmp_path / "sub").iterdir()) == ["t.json"]  # nothing half-written


@pytest.mark.parametrize("x", [0.0, 0.4999998, 0.5, 1 - 1e-7])
def test_the_thinnest_box_can_be_read_again(x: float, tmp_path: Path) -> None:
    thin = Track(0, np.array([[x, 0.2, x + 1e-7, 0.6]]), np.ones(1, dtype=bool))
    back = load_tracks(save_tracks(Tracks(grid_of(1), (thin,)), tmp_path / "t.json"))
    np.testing.assert_allclose(back[0].boxes_xyxy, thin.boxes_xyxy, atol=1.1e-6)


def test_tracks_of_another_video_are_refused(tmp_path: Path) -> None:
    path = save_tracks(Tracks(grid_of(3), (moving(3),), video_hash="clip-1"), tmp_path / "t.json")
    load_tracks(path, "clip-1")
    with pytest.raises(DataError, match="another video"):
        load_tracks(path, "clip-2")
    with pytest.raises(DataError, match="another sampling"):
        Tracks(grid_of(4), (moving(3),))
    with pytest.raises(DataError, match="two tracks"):
        Tracks(grid_of(3), (moving(3), moving(3)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 9}, "schema 9"),
        ({"kind": "x"}, "not a file of tracks"),
        ({"tracks": [{"track_id": 0, "rows": [7], "boxes_xyxy": [[0, 0, 1, 1]]}]}, "rows"),
        ({"tracks": [{"track_id": 0, "rows": [0], "boxes_xyxy": []}]}, "boxes_xyxy"),
        ({"tracks": [{"track_id": 0, "rows": [0], "boxes_xyxy": [[0, 0, 2, 1]]}]}, "fractions"),
        ({"tracks": [7]}, "track_id"),
        ({"grid": {}}, "grid"),
    ],
)
def test_broken_files_say_what_is_wrong(change: dict[str, object], message: str, tmp_path: Path) -> None:
    data = tracks_to_dict(Tracks(grid_of(3), (moving(3),))) | change
    path = tmp_path / "t.json"
    path.write_text(json.dumps(data))
    with pytest.raises(DataError, match=message):
        load_tracks(path)


def test_missing_and_unwritable_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no file"):
        load_tracks(tmp_path / "none.json")
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="cannot write"):
        save_tracks(Tracks(grid_of(3)), tmp_path / "file" / "t.json")


def test_boxes_are_interpolated_between_key_frames() -> None:
    sparse, dense = grid_of(3, step=10), grid_of(21)
    track = Tracks(sparse, (moving(3, box_scores=np.array([0.2, 0.4, 0.6])),)).on_grid(dense)[0]
    assert track.visible.all()
    np.testing.assert_allclose(track.boxes_xyxy[5], [0.2, 0.2, 0.4, 0.6])
    np.testing.assert_allclose(track.box_scores[5], 0.3)  # type: ignore[index]
    gone = replace(moving(3), visible=np.array([True, False, True]))
    seen = Tracks(sparse, (gone,)).on_grid(dense)[0]
    assert seen.rows.tolist() == [
        0,
        1,
        2,
        3,
        4,
        5,
        16,
        17,
        18,
        19,
        20,
    ]  # up to half way, where one side shows it
    with pytest.raises(DataError, match="one video"):
        Tracks(sparse, (moving(3),)).on_grid(replace(dense, width=7))


def test_masks_are_those_of_the_nearest_frame() -> None:
    sparse, dense = grid_of(3, step=10), grid_of(21)
    masks = tuple(encode(np.arange(4).reshape(2, 2) == k) for k in range(3))
    wide = moving(3, masks=masks).boxes_xyxy.copy()
    wide[:, 2] = wide[:, 0] + 0.4
    slow = replace(moving(3, masks=masks), boxes_xyxy=wide)
    moved = Tracks(sparse, (slow,), notes=("before",)).on_grid(dense)
    assert moved.notes == ("before",) and moved[0].masks is not None
    nearest = [0] * 6 + [1] * 10 + [2] * 5  # the earlier one half way between
    assert [masks.index(m) for m in moved[0].masks if m is not None] == nearest
    # what moves by more than half of itself within half a step has no mask there, and that is said
    narrow = slow.boxes_xyxy.copy()
    narrow[:, 2] = narrow[:, 0] + 0.1
    fast = Tracks(sparse, (replace(slow, boxes_xyxy=narrow),)).on_grid(dense)
    assert fast[0].visible.all() and fast[0].masks is not None
    # it moves by 0.02 a frame: IoU with itself k frames away (0.1 - 0.02 k) / (0.1 + 0.02 k), 3/7 for k = 2
    assert [row for row, m in enumerate(fast[0].masks) if m is not None] == [0, 1, 9, 10, 11, 19, 20]
    assert "no mask for 14 of the 21 boxes" in fast.notes[0]
    between = FrameGrid(np.array([5, 15]), np.array([0.5, 1.5]), sparse.fps, sparse.duration_s, 100, 50)
    none_left = Tracks(sparse, (replace(slow, boxes_xyxy=narrow),)).on_grid(between)
    assert none_left[0].masks == (None, None) and "no mask for 2 of the 2 boxes" in none_left.notes[0]
    again = fast.on_grid(sparse)  # the note is of the frames that the tracks are on
    assert again.notes == () and again[0].masks is not None and None not in again[0].masks
    boxes_only = Tracks(sparse, (moving(3),)).on_grid(dense)
    assert boxes_only.notes == () and boxes_only[0].masks is None
    # before the first and behind the last frame its mask holds for half a step, as its box does
    around = grid_of(41)
    inner = FrameGrid(sparse.frame_index + 10, sparse.times_s + 1, sparse.fps, around.duration_s, 100, 50)
    held = Tracks(inner, (slow,)).on_grid(around)[0]
    assert held.rows[[0, -1]].tolist() == [5, 35] and held.masks is not None
    assert held.masks[5] == masks[0] and held.masks[35] == masks[2] and held.masks[4] is None


def test_short_gaps_are_filled_and_long_ones_are_not() -> None:
    visible = np.array([1, 0, 1, 0, 0, 0, 0, 1], dtype=bool)
    track = replace(moving(8, box_scores=np.linspace(0.3, 1, 8)), visible=visible)
    filled = fill_gaps(track, grid_of(8), longest_s=0.25)
    assert filled.rows.tolist() == [0, 1, 2, 7]
    np.testing.assert_allclose(filled.boxes_xyxy[1], moving(8).boxes_xyxy[1])
    assert filled.box_scores is not None and filled.box_scores[1] == pytest.approx(0.3)


def test_boxes_outside_are_cut_and_counted() -> None:
    boxes = [[-0.1, 0, 0.5, 0.5], [1.1, 0, 1.2, 0.5], [0, 0, 1, 1], [0, 0, 1 + 1e-9, 1]]
    cut, visible, count = clip_boxes(boxes, [True] * 4)
    assert count == 2 and visible.tolist() == [True, False, True, True]
    np.testing.assert_allclose(cut[0], [0, 0, 0.5, 0.5])


def test_a_track_becomes_a_tube() -> None:
    tube = to_tube(moving(10, score=0.5, label="dog"), grid_of(10), Span(0.2, 0.45))
    assert tube is not None and len(tube.times_s) == 3 and tube.label == "dog"
    nothing = replace(moving(4), visible=np.zeros(4, dtype=bool))
    assert to_tube(nothing, grid_of(4)) is None


def test_hashes_tell_pixels_and_times_apart() -> None:
    clip = Clip(np.zeros((3, 4, 6, 3), dtype=np.uint8), grid_of(3))
    other = clip.pixels.copy()
    other[1, 0, 0, 0] = 1
    hashes = {
        video_hash(clip),
        video_hash(Clip(other, clip.grid)),
        video_hash(Clip(clip.pixels, grid_of(3, 2))),
    }
    assert len(hashes) == 3 and video_hash(clip) == video_hash(Clip(clip.pixels.copy(), grid_of(3)))


def test_the_cache_makes_once_and_survives_damage(tmp_path: Path) -> None:
    made: list[int] = []

    def make() -> Tracks:
        made.append(1)
        return Tracks(grid_of(3), (moving(3),))

    for key in ({"a": 1}, {"a": 1}, {"a": 2}):
        assert len(cached(tmp_path, key, make)) == 1
    assert len(made) == 2
    for path in tmp_path.glob("*.json"):
        path.write_text(path.read_text()[:40])
    assert len(cached(tmp_path, {"a": 1}, make)) == 1 and len(made) == 3


def test_crossing_things_keep_their_names() -> None:
    grid = grid_of(20)
    detections = {}
    for row in range(20):
        a, b = 0.05 + 0.04 * row, 0.81 - 0.04 * row
        boxes = [(a, 0.3), (b, 0.42)]
        detections[row] = [Detection(np.array([x, y, x + 0.15, y + 0.2]), 0.9, "dog") for x, y in boxes]
    tracks, notes, cut = associate(detections, grid)
    assert cut == 0 and notes == [] and len(tracks) == 2
    for track in tracks:
        steps = np.diff(track.boxes_xyxy[:, 0])
        assert track.visible.all() and (np.sign(steps) == np.sign(steps[0])).all()


def test_association_bridges_gaps_keeps_labels_apart_and_counts_cuts() -> None:
    grid = grid_of(30)
    box = np.array([0.2, 0.2, 0.4, 0.4])
    found = {row: [Detection(box, 0.8, "dog")] for row in (0, 5, 20, 25)}
    found[10] = [Detection(box, 0.9, "cat"), Detection(box, 0.3, "cat")]
    found[15] = [Detection(box, 0.9, "cat"), Detection(box + np.array([0, 0.7, 0, 0.7]), 0.5, "low")]
    tracks, _, cut = associate(found, grid, max_gap_s=2.0, min_seen=1)
    rows = {t.label: t.rows.tolist() for t in tracks}
    assert rows == {"dog": list(range(26)), "cat": list(range(10, 16)), "low": [15]}
    assert cut == 1
    apart, _, _ = associate(found, grid, max_gap_s=1.0)
    assert sorted(t.rows.tolist()[0] for t in apart if t.label == "dog") == [0, 20]
    assert associate({}, grid) == ([], [], 0)
    many = {
        r: [Detection(np.array([k / 600, 0, k / 600 + 0.001, 1]), 0.5, "x") for k in range(500)]
        for r in (0, 1)
    }
    assert len(associate(many, grid, max_tracks=1000)[0]) == 500
    fewer, notes, _ = associate(many, grid, max_tracks=60)
    assert len(fewer) == 60 and "500 tracks were found and the best 60 kept" in notes[0]
    # what is over before min_seen frames were looked at counts when there are no more
    assert len(associate({0: found[0]}, grid, min_seen=3)[0]) == 1
    assert associate({0: found[0], 20: [], 25: []}, grid, min_seen=3, max_gap_s=1.0)[0] == []


def test_failures_are_noted_then_refused() -> None:
    few = Failures("it", "the size", tried=3)
    few.add(2, ValueError("broken frame"))
    assert "1 of 3 frames" in few.notes()[0] and "broken frame" in few.notes()[0]
    few.add(1, ValueError("broken frame"))
    with pytest.raises(ModelError, match="failed on 2 of 3"):
        few.notes()
    with pytest.raises(ModelError, match="lower the size"):
        few.add(0, RuntimeError("CUDA out of memory"))


def test_windows_share_one_frame() -> None:
    items = [(k, np.zeros((2, 2, 3), dtype=np.uint8)) for k in range(8)]
    assert [[k for k, _ in run] for run in windows(iter(items), 3)] == [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7]]
    assert [[k for k, _ in run] for run in windows(iter(items[:1]), 3)] == [[0]]
    assert [[k for k, _ in run] for run in windows(iter(items[:4]), 3)] == [[0, 1, 2, 3]]
