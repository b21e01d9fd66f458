"""Toy-world scenes: seeded, split, and true: boxes are what is drawn, events do what their names say."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from functools import cache
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tubelet.errors import DataError
from tubelet.world.choreography import SceneConfig, make_scene
from tubelet.world.render import render, signed_distance
from tubelet.world.scene import (
    ACTIONS,
    ASPECTS,
    COLOURS,
    MIN_EVENT_S,
    MIN_VISIBLE,
    SHAPES,
    SIZES,
    SPLITS,
    TEXTURES,
    Actor,
    Event,
    Scene,
    reach,
)

STILL = (0.0, 0.0, 1.0, 0.0)  # a pan of no amplitude
WAYS = {"move_left": (-1, 0), "move_right": (1, 0), "move_up": (0, -1), "move_down": (0, 1)}


@cache
def scenes(count: int = 600, split: str = "val") -> tuple[Scene, ...]:
    return tuple(make_scene(split, 11, index) for index in range(count))


@cache
def steady() -> tuple[Scene, ...]:
    """The same scenes without the camera's motion: what actors do is then what is seen."""
    return tuple(replace(scene, pan=STILL) for scene in scenes())


def events(*actions: str) -> list[tuple[Scene, int, Event]]:
    found = [
        (scene, a, event)
        for scene in steady()
        for a, actor in enumerate(scene.actors)
        for event in actor.events
        if event.action in actions
    ]
    assert len(found) >= 20, "too few events to say anything"
    return found


def alone(actor: Actor, aspect: float = 4 / 3, **changes: Any) -> Scene:
    """One actor on a plain black ground, no noise, no camera motion."""
    scene = Scene((0, 0, 0), 4.0, aspect, (actor,), (0.0, 0.0, 0.0), 0.0, STILL, 0.0)
    return replace(scene, **changes)


def actor(shape: str = "square", radius: float = 0.15, x: float = 0.6, y: float = 0.5, **kw: Any) -> Actor:
    look = {"colour": "white", "texture": "plain", "size": "big", "rgb": COLOURS["white"]} | kw
    return Actor(shape=shape, radius=radius, x=x, y=y, **look)


def drawn_bounds(scene: Scene, time_s: float, height: int) -> tuple[float, float, float, float] | None:
    """x0, y0, x1, y1 in pixel edges of what is a third as light as the outline: tips are thin pixels."""
    width = round(height * scene.aspect)
    picture = render([scene], [[time_s]], height, width)[0, 0].numpy().max(axis=-1)
    level = 0.35 * 0.45 * max(scene.actors[0].rgb) * 255
    rows, columns = np.nonzero((picture > level).any(1))[0], np.nonzero((picture > level).any(0))[0]
    if not len(rows):
        return None
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


# --- seeds and splits ----------------------------------------------------------------------------


@pytest.mark.parametrize("still", [False, True])
def test_a_scene_is_a_function_of_split_seed_and_index(still: bool) -> None:
    config = SceneConfig(still=still)
    for index in range(20):
        assert make_scene("train", 3, index, config) == make_scene("train", 3, index, config)


def test_no_scene_is_in_two_splits_nor_twice_in_one() -> None:
    seen: Counter[tuple[Any, ...]] = Counter()
    for split in SPLITS:
        for seed in (0, 1):
            for index in range(120):
                scene = make_scene(split, seed, index)
                assert scene.seed == (SPLITS[split], seed, index)
                seen[tuple((a.x, a.y, a.radius, a.rgb) for a in scene.actors)] += 1
    assert len(seen) == 3 * 2 * 120 and set(seen.values()) == {1}


def test_unknown_splits_and_impossible_settings_are_refused() -> None:
    with pytest.raises(DataError, match="unknown split 'dev'; splits are train, val, test"):
        make_scene("dev", 0, 0)
    for low, high in ((0, 3), (4, 3), (1, 9)):
        with pytest.raises(DataError, match=rf"1 <= min <= max <= 8, got {low}-{high}"):
            SceneConfig(min_actors=low, max_actors=high)
    for low_s, high_s in ((1.0, 4.0), (6.0, 5.0)):
        with pytest.raises(DataError, match="durations must satisfy"):
            SceneConfig(min_duration_s=low_s, max_duration_s=high_s)


def test_scenes_keep_to_their_settings_and_use_all_of_the_world() -> None:
    used: dict[str, set[Any]] = {k: set() for k in ("shape", "colour", "texture", "size", "action", "aspect")}
    for scene in scenes():
        assert 1 <= len(scene.actors) <= 4 and 4.0 <= scene.duration_s <= 10.0
        used["aspect"].add(scene.aspect)
        if scene.dark is not None:
            assert scene.dark.end_s <= scene.duration_s + 0.01
        for who in scene.actors:
            for key in ("shape", "colour", "texture", "size"):
                used[key].add(getattr(who, key))
            used["action"] |= {e.action for e in who.events}
            low, high = SIZES[who.size]
            assert low <= who.radius / min(1.0, math.sqrt(scene.aspect)) <= high
            assert np.abs(np.subtract(who.rgb, COLOURS[who.colour])).max() < 0.16
    assert used == {
        "shape": set(SHAPES),
        "colour": set(COLOURS),
        "texture": set(TEXTURES),
        "size": set(SIZES),
        "action": set(ACTIONS),
        "aspect": set(ASPECTS),
    }


def test_a_still_scene_stands_still() -> None:
    for index in range(30):
        scene = make_scene("val", 2, index, SceneConfig(still=True))
        assert scene.duration_s == 1.0 and not any(a.events for a in scene.actors) and scene.dark is None
        boxes, visible = scene.boxes_at([0.0, 0.4, 0.9])
        assert visible.all() and (boxes == boxes[:, :1]).all()
        for one, two in combinations(scene.actors, 2):
            assert math.hypot(one.x - two.x, one.y - two.y) > 1.2 * (one.radius + two.radius)


# --- truth is what is drawn ----------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_boxes_are_the_bounds_of_the_drawn_shape(shape: str, data: st.DataObject) -> None:
    aspect, height = data.draw(st.sampled_from(ASPECTS)), 300
    radius = data.draw(st.floats(0.05, 0.24))
    x, y = data.draw(st.floats(radius, aspect - radius)), data.draw(st.floats(radius, 1 - radius))
    who = actor(shape, radius, x, y, angle_rad=data.draw(st.floats(-math.pi, math.pi)))
    colour = data.draw(st.sampled_from(sorted(COLOURS)))
    scene = alone(replace(who, colour=colour, rgb=COLOURS[colour]), aspect)
    boxes, visible = scene.boxes_at([0.0])
    got = drawn_bounds(scene, 0.0, height)
    assert visible.all() and got is not None
    width = round(height * aspect)
    assert np.abs(boxes[0, 0] * [width, height, width, height] - got).max() <= 1.5


@pytest.mark.parametrize("shape", SHAPES)
def test_boxes_follow_actors_that_spin_grow_and_move(shape: str) -> None:
    acts = (
        Event("spin", 0.2, 1.4),
        Event("grow", 1.4, 2.6, factor=1.7),
        Event("move_right", 2.6, 3.8, dx=0.5),
    )
    scene = alone(actor(shape, 0.12, 0.4, 0.5, events=acts))
    for time_s in np.linspace(0.0, 3.9, 14):
        got = drawn_bounds(scene, time_s, 300)
        assert got is not None
        assert np.abs(scene.boxes_at([time_s])[0][0, 0] * [400, 300, 400, 300] - got).max() <= 1.5


@pytest.mark.parametrize("shape", SHAPES)
def test_boxes_are_cut_at_the_border(shape: str) -> None:
    for x, y in ((0.02, 0.5), (4 / 3, 0.5), (0.6, -0.02), (0.6, 1.0)):
        scene = alone(actor(shape, 0.2, x, y))
        (box,) = scene.boxes_at([0.0])[0][0]
        assert box.min() >= 0.0 and box.max() <= 1.0
        got = drawn_bounds(scene, 0.0, 300)
        assert got is not None
        px = box * [400, 300, 400, 300]
        # what is seen lies in the box, and reaches the border that cuts it
        assert (np.subtract(got, px)[:2] >= -1.5).all() and (np.subtract(got, px)[2:] <= 1.5).all()
        if x < 0.1:
            assert got[0] == px[0] == 0.0
        if x > 1.3:
            assert got[2] == px[2] == 400.0
        if y < 0.1:
            assert got[1] == px[1] == 0.0
        if y > 0.9:
            assert got[3] == px[3] == 300.0


def test_an_actor_is_seen_while_a_quarter_of_its_box_is() -> None:
    half = 0.86 * 0.1  # of an upright square of radius 0.1
    for inside in (MIN_VISIBLE - 0.02, MIN_VISIBLE + 0.02):
        scene = alone(actor("square", 0.1, half * (2 * inside - 1), 0.5))
        boxes, visible = scene.boxes_at([0.0])
        assert visible[0, 0] == (inside > MIN_VISIBLE)
        assert boxes[0, 0].any() == visible[0, 0]


def test_visible_span_is_from_the_first_to_the_last_moment_seen() -> None:
    for scene in scenes()[:80]:
        times = np.arange(0.0, scene.duration_s, 0.005)
        seen = scene.boxes_at(times)[1]
        for a in range(len(scene.actors)):
            span = scene.visible_span(a)
            assert span is not None and 0.0 <= span.start_s < span.end_s <= scene.duration_s
            assert abs(span.start_s - times[seen[a]][0]) <= 0.0201
            assert abs(span.end_s - times[seen[a]][-1]) <= 0.0251
    assert alone(actor(x=-1.0)).visible_span(0) is None


# --- events do what they say ---------------------------------------------------------------------


def test_events_lie_in_the_video_one_after_the_other() -> None:
    for scene in scenes():
        for who in scene.actors:
            for event in who.events:
                assert 0.0 <= event.start_s < event.end_s <= scene.duration_s
                assert event.end_s - event.start_s >= MIN_EVENT_S - 0.011
                assert (event.span.start_s, event.span.end_s) == (event.start_s, event.end_s)
            for before, after in pairwise(who.events):
                assert before.end_s <= after.start_s and before.action != after.action


def test_nothing_changes_outside_of_events() -> None:
    for scene in steady()[:200]:
        times = np.arange(0.0, scene.duration_s, 0.05)
        states = scene.states(times)
        for a, who in enumerate(scene.actors):
            quiet = np.ones(len(times) - 1, bool)
            for event in who.events:
                travel = 0.6 if event.action == "touch" else 0.0
                quiet &= (times[1:] <= event.start_s - travel) | (times[:-1] >= event.end_s + travel)
            for values in (states.x, states.y, states.radius, states.angle_rad, states.opacity):
                assert np.abs(np.diff(values[a])[quiet]).max(initial=0.0) < 1e-12


def test_moves_go_where_they_say_and_stay_in_the_picture() -> None:
    for scene, a, event in events(*WAYS):
        states = scene.states(np.linspace(event.start_s, event.end_s, 9))
        way_x, way_y = WAYS[event.action]
        along = states.x[a] * way_x + states.y[a] * way_y
        across = states.x[a] * way_y + states.y[a] * way_x
        assert (np.diff(along) > 0).all() and along[-1] - along[0] >= 0.28 - 1e-9
        assert np.ptp(across) < 1e-12
        assert scene.boxes_at([event.end_s])[1][a, 0]


def test_growing_and_shrinking_change_the_size_of_the_box() -> None:
    for scene, a, event in events("grow", "shrink"):
        centred = replace(scene.actors[a], x=scene.aspect / 2, y=0.5)
        quiet = tuple(e if e is event else replace(e, dx=0.0, dy=0.0) for e in centred.events)
        one = alone(replace(centred, events=quiet), scene.aspect)
        (before, after), _ = (v[0] for v in one.boxes_at([event.start_s, event.end_s]))
        ratio = (after[2:] - after[:2]) / (before[2:] - before[:2])
        assert ratio.tolist() == pytest.approx([1.7 if event.action == "grow" else 1 / 1.7] * 2)


def test_spinning_turns_shapes_that_can_be_seen_to_turn() -> None:
    for scene, a, event in events("spin"):
        assert scene.actors[a].shape not in ("circle", "ring")
        angle = scene.states(np.array([event.start_s, event.end_s])).angle_rad[a]
        degrees = math.degrees(angle[1] - angle[0])
        assert degrees == pytest.approx(100 * (event.end_s - event.start_s)) and degrees >= 115


def test_blinking_goes_off_and_on_and_only_then() -> None:
    for scene, a, event in events("blink"):
        step = 0.01
        times = np.arange(0.0, scene.duration_s, step)
        opacity = scene.states(times).opacity[a]
        during = (times >= event.start_s) & (times < event.end_s)
        assert (opacity[~during] == 1.0).all() and set(np.unique(opacity[during])) == {0.15, 1.0}
        offs = np.sum((opacity[1:] < 1) & (opacity[:-1] == 1))
        assert offs >= math.floor((event.end_s - event.start_s) / 0.7)
        assert 0.3 < np.mean(opacity[during] < 1) < 0.6


def test_bouncing_goes_up_and_comes_back() -> None:
    for scene, a, event in events("bounce"):
        times = np.linspace(event.start_s, event.end_s, 200, endpoint=False)
        states = scene.states(times)
        floor = states.y[a, 0]
        height = floor - states.y[a]
        assert height.min() >= -1e-9 and height.max() == pytest.approx(0.13, abs=0.001)
        assert np.sum((height[1:-1] < height[:-2]) & (height[1:-1] < height[2:])) >= 1  # it lands in between
        assert np.ptp(states.x[a]) < 1e-12
        assert scene.states(np.array([event.end_s])).y[a, 0] == pytest.approx(floor)


def test_who_enters_was_not_there_and_who_leaves_is_gone() -> None:
    for scene, a, event in events("enter", "leave"):
        entering = event.action == "enter"
        away = (
            np.arange(0.0, event.start_s, 0.02)
            if entering
            else np.arange(event.end_s, scene.duration_s, 0.02)
        )
        boxes, seen = scene.boxes_at(away)
        assert not seen[a].any() and not boxes[a].any()
        there = scene.boxes_at([event.end_s if entering else event.start_s])[1][a, 0]
        assert there
        span = scene.visible_span(a)
        assert span is not None
        if entering:
            assert event.start_s < span.start_s < event.end_s
        else:
            assert event.start_s < span.end_s < event.end_s


def gap(scene: Scene, a: int, b: int, time_s: float) -> float:
    """How far two drawn shapes are apart, world units; 0 or less where they touch. On a fine grid."""
    states = scene.states(np.array([time_s]))
    reach = 1.3 * states.radius[a, 0]
    px, py = np.meshgrid(
        states.x[a, 0] + np.linspace(-reach, reach, 161), states.y[a, 0] + np.linspace(-reach, reach, 161)
    )

    def distance(k: int) -> np.ndarray:
        radius, cos, sin = (
            states.radius[k, 0],
            math.cos(states.angle_rad[k, 0]),
            math.sin(states.angle_rad[k, 0]),
        )
        dx, dy = (px - states.x[k, 0]) / radius, (py - states.y[k, 0]) / radius
        u, v = torch.from_numpy(cos * dx + sin * dy), torch.from_numpy(cos * dy - sin * dx)
        return signed_distance(scene.actors[k].shape, u, v).numpy() * radius

    step = 2 * reach / 160
    return float(distance(b)[distance(a) <= step].min()) - step


def test_touching_means_standing_at_the_other_for_the_whole_span() -> None:
    for scene, a, event in events("touch"):
        assert event.target is not None and event.target != a
        one, other = scene.actors[a], scene.actors[event.target]
        assert not other.events and one.events == (event,) and one.look != other.look
        around = one.radius + other.radius  # where the circles around both would meet
        times = np.linspace(event.start_s, event.end_s, 20)
        states = scene.states(times)
        apart = np.hypot(states.x[a] - states.x[event.target], states.y[a] - states.y[event.target])
        assert np.ptp(apart) < 1e-9 and apart[0] < around
        before_after = scene.states(np.array([event.start_s - 0.6, event.end_s + 0.6]))
        far = np.hypot(
            before_after.x[a] - before_after.x[event.target], before_after.y[a] - before_after.y[event.target]
        )
        assert far.min() > around


def test_shapes_that_touch_overlap_and_only_then() -> None:
    pairs = set()
    for scene, a, event in events("touch"):
        assert event.target is not None
        assert gap(scene, a, event.target, event.start_s) <= 0.0
        assert gap(scene, a, event.target, event.end_s - 0.01) <= 0.0
        pairs.add((scene.actors[a].shape, scene.actors[event.target].shape))
    assert len(pairs) > 10


@pytest.mark.parametrize("shape", SHAPES)
def test_reach_is_where_the_drawn_shape_ends(shape: str) -> None:
    for turn in np.linspace(-7, 7, 57):
        far = np.linspace(0.3, 1.4, 1101)
        u, v = torch.from_numpy(far * math.cos(turn)), torch.from_numpy(far * math.sin(turn))
        inside = signed_distance(shape, u, v).numpy() <= 0
        assert reach(shape, float(turn)) == pytest.approx(far[inside].max(), abs=2e-3)


def test_followers_go_where_their_leader_goes_just_after_and_behind() -> None:
    for scene, a, event in events("follow"):
        assert event.target is not None
        lead = scene.actors[event.target].events[0]
        assert lead.action in WAYS and (event.dx, event.dy) == (lead.dx, lead.dy)
        assert event.start_s == pytest.approx(lead.start_s + 0.2, abs=0.011)
        way_x, way_y = WAYS[lead.action]
        times = np.linspace(lead.start_s, event.end_s, 30)
        times = times[times <= lead.end_s]
        states = scene.states(times)
        ahead = (states.x[event.target] - states.x[a]) * way_x + (
            states.y[event.target] - states.y[a]
        ) * way_y
        assert ahead.min() > scene.actors[a].radius
        across = (states.x[event.target] - states.x[a]) * way_y + (
            states.y[event.target] - states.y[a]
        ) * way_x
        assert np.abs(across).max() < 1e-9


def test_twins_never_act_alike() -> None:
    twins = 0
    for scene in scenes():
        for one, two in combinations(scene.actors, 2):
            if one.look == two.look:
                twins += 1
                assert not {e.action for e in one.events} & {e.action for e in two.events}
    assert twins > 100  # about every third scene


def test_mimes_do_what_another_look_does() -> None:
    mimes = sum(
        any(
            one.look != two.look and {e.action for e in one.events} & {e.action for e in two.events}
            for one, two in combinations(scene.actors, 2)
        )
        for scene in scenes()
    )
    assert mimes > 0.2 * len(scenes())


def test_the_camera_moves_everything_by_the_same_amount() -> None:
    panned = [s for s in scenes() if s.pan[0] or s.pan[1]]
    assert 0.3 < len(panned) / len(scenes()) < 0.7
    for scene in panned[:40]:
        times = np.linspace(0, scene.duration_s, 12)
        moved, still = scene.states(times), replace(scene, pan=STILL).states(times)
        offset = scene.pan_at(times)
        assert np.allclose(still.x - moved.x, offset[:, 0]) and np.allclose(still.y - moved.y, offset[:, 1])
        assert np.abs(offset[0]).max() == 0.0 and np.abs(offset).max() > 0.005
