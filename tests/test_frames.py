"""`FrameGrid` and `Clip`: which frames, which moments, which seconds they stand for."""

from __future__ import annotations

import json
import pickle
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tubelet.errors import DataError
from tubelet.frames import Clip, FrameGrid

quick = settings(deadline=None, max_examples=80)
GOOD: dict[str, Any] = {
    "frame_index": [0, 3, 6],
    "times_s": [0.0, 0.1, 0.2],
    "fps": "30000/1001",
    "duration_s": 0.3,
    "width": 640,
    "height": 360,
}


@st.composite
def grids(draw: st.DrawFn) -> FrameGrid:
    index = sorted(draw(st.sets(st.integers(0, 10**6), min_size=1, max_size=8)))
    ticks = sorted(draw(st.sets(st.integers(0, 10**8), min_size=len(index), max_size=len(index))))
    return FrameGrid(
        index,
        [t / 1e6 for t in ticks],
        Fraction(draw(st.integers(1, 120_000)), draw(st.integers(1, 1001))),
        (ticks[-1] + draw(st.integers(1, 10**6))) / 1e6,
        draw(st.integers(1, 8000)),
        draw(st.integers(1, 8000)),
    )


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"frame_index": [], "times_s": []}, "holds at least one frame"),
        ({"frame_index": [0, 1]}, r"frame_index \(T,\) and times_s \(T,\), got \(2,\) and \(3,\)"),
        ({"times_s": [[0.0], [0.1], [0.2]]}, r"got \(3,\) and \(3, 1\)"),
        ({"frame_index": [-1, 3, 6]}, "0-based and increase strictly"),
        ({"frame_index": [0, 3, 3]}, "0-based and increase strictly"),
        ({"frame_index": [6, 3, 0]}, "0-based and increase strictly"),
        ({"times_s": [-0.1, 0.1, 0.2]}, "finite, at or after 0 and increase strictly"),
        ({"times_s": [0.0, 0.1, 0.1]}, "finite, at or after 0 and increase strictly"),
        ({"times_s": [0.0, float("nan"), 0.2]}, "finite, at or after 0 and increase strictly"),
        ({"times_s": [0.0, 0.1, float("inf")]}, "finite, at or after 0 and increase strictly"),
        ({"fps": 0}, "fps, width and height > 0, got 0, 640, 360"),
        ({"fps": "-25/1"}, "fps, width and height > 0"),
        ({"width": 0}, "fps, width and height > 0, got 30000/1001, 0, 360"),
        ({"height": -2}, "fps, width and height > 0"),
        ({"duration_s": 0.2}, r"after the last frame \(0.2 s\), got 0.2"),
        ({"duration_s": float("nan")}, "after the last frame"),
        ({"duration_s": float("inf")}, "after the last frame"),
    ],
)
def test_grid_rules_and_what_they_say(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError, match=says):
        FrameGrid.from_dict(GOOD | changes)


@pytest.mark.parametrize("key", list(GOOD))
def test_a_grid_record_that_lacks_a_field_names_it(key: str) -> None:
    with pytest.raises(DataError, match=f"not a frame grid: .*{key}"):
        FrameGrid.from_dict({k: v for k, v in GOOD.items() if k != key})


@pytest.mark.parametrize(
    "changes",
    [
        {"fps": "1/0"},
        {"fps": "fast"},
        {"fps": None},
        {"fps": float("nan")},
        {"width": "wide"},
        {"width": None},
        {"duration_s": "long"},
        {"duration_s": []},
        {"times_s": ["a", "b", "c"]},
        {"times_s": {}},
        {"times_s": None},
        {"times_s": [[0.0], 1.0, 2.0]},
        {"frame_index": ["a", "b", "c"]},
        {"frame_index": None},
    ],
    ids=str,
)
def test_a_hostile_value_in_a_grid_is_a_data_error(changes: dict[str, Any]) -> None:
    with pytest.raises(DataError):
        FrameGrid.from_dict(GOOD | changes)


@pytest.mark.parametrize("data", [None, 5, "grid", [], [1, 2]], ids=repr)
def test_a_grid_that_is_no_object_is_a_data_error(data: Any) -> None:
    with pytest.raises(DataError, match="not a frame grid"):
        FrameGrid.from_dict(data)


@pytest.mark.parametrize(
    "changes",
    [
        {"frame_index": [0.2, 1.7, 2.9]},
        {"frame_index": ["0", "3", "6"]},
        {"frame_index": [0, 1, 10**400]},
        {"times_s": [0, 1, 10**400]},
        {"duration_s": 10**400},
        {"width": float("inf")},
        {"fps": float("inf")},
    ],
    ids=lambda changes: f"{next(iter(changes))}-{str(next(iter(changes.values())))[:12]}",
)
def test_indices_are_whole_and_numbers_fit_in_floats(changes: dict[str, Any]) -> None:
    with pytest.raises(DataError):
        FrameGrid.from_dict(GOOD | changes)


@quick
@given(grids())
def test_grid_json_there_and_back(grid: FrameGrid) -> None:
    back = FrameGrid.from_dict(json.loads(json.dumps(grid.to_dict())))
    assert back == grid and hash(back) == hash(grid)
    assert back.fps == grid.fps and isinstance(back.fps, Fraction)
    assert pickle.loads(pickle.dumps(grid)) == grid  # noqa: S301


def test_ntsc_rates_stay_fractions() -> None:
    grid = FrameGrid.from_dict(GOOD)
    assert grid.fps == Fraction(30000, 1001) and grid.to_dict()["fps"] == "30000/1001"
    assert FrameGrid([0], [0.0], 25, 1.0, 4, 4).to_dict()["fps"] == "25/1"  # type: ignore[arg-type]


def test_grids_differ_in_every_field() -> None:
    one = FrameGrid.from_dict(GOOD)
    for changes in (
        {"frame_index": [0, 3, 7]},
        {"times_s": [0.0, 0.1, 0.25]},
        {"fps": "30/1"},
        {"duration_s": 0.4},
        {"width": 641},
        {"height": 361},
    ):
        assert FrameGrid.from_dict(GOOD | changes) != one
    assert one != "a grid"


def test_grids_cannot_be_changed() -> None:
    index, times = np.array([0, 3]), np.array([0.0, 0.1])
    grid = FrameGrid(index, times, Fraction(25), 1.0, 4, 4)
    index[0], times[0] = 2, 0.05
    assert grid.frame_index[0] == 0 and grid.times_s[0] == 0.0
    for array in (grid.frame_index, grid.times_s):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
    with pytest.raises(AttributeError):
        grid.width = 5  # type: ignore[misc]


@quick
@given(grids(), st.lists(st.floats(-5, 200), min_size=1, max_size=10))
def test_nearest_is_nearest_and_the_earlier_on_a_tie(grid: FrameGrid, moments: list[float]) -> None:
    rows = grid.nearest(moments)
    for row, moment in zip(rows, moments, strict=True):
        away = [abs(moment - t) for t in grid.times_s.tolist()]
        assert row == away.index(min(away))  # the first of the smallest
    assert np.array_equal(grid.nearest(grid.times_s), np.arange(len(grid)))


def test_nearest_takes_one_moment_as_well() -> None:
    grid = FrameGrid.from_dict(GOOD | {"times_s": [0.0, 1.0, 2.0], "duration_s": 3})
    assert grid.nearest(0.5) == 0 and grid.nearest(0.51) == 1 and grid.nearest(99.0) == 2
    assert grid.nearest([[0.0, 2.0]]).tolist() == [[0, 2]]


@quick
@given(grids())
def test_cells_hold_their_frames_and_tile_the_time_between(grid: FrameGrid) -> None:
    edges = grid.cell_edges_s()
    assert edges.shape == (len(grid) + 1,)
    assert (np.diff(edges) > 0).all()
    assert (edges[:-1] <= grid.times_s).all() and (grid.times_s < edges[1:]).all()
    assert edges[0] >= 0 and edges[-1] <= grid.duration_s
    middles = (edges[1:-1] - grid.times_s[:-1], grid.times_s[1:] - edges[1:-1])
    assert np.allclose(*middles, atol=1e-9)  # a border is as far from the frame before as from the one after
    for row, (lo, hi) in enumerate(pairwise(edges)):
        inside = lo + (hi - lo) * np.array([0.01, 0.5, 0.99])
        assert (grid.nearest(inside) == row).all()


def test_cells_of_a_uniform_grid_and_of_one_frame() -> None:
    grid = FrameGrid.from_dict(GOOD | {"times_s": [0.5, 1.5, 2.5], "duration_s": 3.0})
    assert grid.cell_edges_s().tolist() == [0.0, 1.0, 2.0, 3.0]
    cut = FrameGrid.from_dict(GOOD | {"times_s": [0.0, 1.0, 2.0], "duration_s": 2.25})
    assert cut.cell_edges_s().tolist() == [0.0, 0.5, 1.5, 2.25]
    single = FrameGrid([7], [0.2], Fraction(25), 4.0, 4, 4)
    assert single.cell_edges_s().tolist() == [0.0, 4.0]


def test_a_clip_is_pixels_on_a_grid() -> None:
    grid = FrameGrid.from_dict(GOOD)
    clip = Clip(np.zeros((3, 36, 64, 3), np.uint8), grid)
    assert len(clip) == 3 and clip.grid is grid
    for shape, dtype in (((3, 36, 64), np.uint8), ((3, 36, 64, 4), np.uint8), ((3, 36, 64, 3), np.float32)):
        with pytest.raises(DataError, match=r"must be uint8 \(T, H, W, 3\), got "):
            Clip(np.zeros(shape, dtype), grid)
    with pytest.raises(DataError, match="one picture per grid frame, got 2 for 3"):
        Clip(np.zeros((2, 36, 64, 3), np.uint8), grid)
