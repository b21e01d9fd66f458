"""Making scenes: who is where, and who does what when. All randomness of the toy world's scenes is here.

A scene is a function of (split, seed, index, config); the split is part of the seed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from tubelet.errors import DataError
from tubelet.tube import Span
from tubelet.world.scene import (
    ACTIONS,
    ASPECTS,
    BOUNCE_HEIGHT,
    COLOURS,
    DIRECTIONS,
    MIN_EVENT_S,
    MOVES,
    SHAPES,
    SIZES,
    SPLITS,
    TEXTURES,
    TOUCH_DEPTH,
    Actor,
    Event,
    Scene,
    reach,
)


@dataclass(frozen=True, slots=True)
class SceneConfig:
    """How scenes are drawn from a seed. Times in seconds."""

    min_actors: int = 2
    max_actors: int = 4
    min_duration_s: float = 4.0
    max_duration_s: float = 10.0
    twin_rate: float = 0.5
    mime_rate: float = 0.5
    pan_rate: float = 0.5
    dark_rate: float = 0.15
    still: bool = False  # no events, no pan: single images

    def __post_init__(self) -> None:
        if not 1 <= self.min_actors <= self.max_actors <= 8:
            raise DataError(
                f"actors must satisfy 1 <= min <= max <= 8, got {self.min_actors}-{self.max_actors}"
            )
        if not 2.0 <= self.min_duration_s <= self.max_duration_s:
            raise DataError("durations must satisfy 2 s <= min <= max")


def scene_rng(split: str, seed: int, index: int) -> np.random.Generator:
    """One generator per scene. The split is part of the seed: train, val and test can never share a scene."""
    if split not in SPLITS:
        raise DataError(f"unknown split {split!r}; splits are {', '.join(SPLITS)}")
    if seed < 0 or index < 0:
        raise DataError(
            f"seeds and numbers of scenes are whole numbers from 0 on, got seed {seed}, scene {index}"
        )
    return np.random.default_rng([SPLITS[split], seed, index])


def make_scene(split: str, seed: int, index: int, config: SceneConfig = SceneConfig()) -> Scene:
    rng = scene_rng(split, seed, index)
    aspect = float(rng.choice(ASPECTS, p=[0.5, 0.2, 0.15, 0.15]))
    duration = (
        1.0 if config.still else float(np.round(rng.uniform(config.min_duration_s, config.max_duration_s), 1))
    )
    actors = _place(rng, _looks(rng, config), aspect)
    pan = (0.0, 0.0, 1.0, 0.0)
    dark = None
    if not config.still:
        actors = _choreograph(rng, actors, aspect, duration, config)
        if rng.random() < config.pan_rate:
            amplitude, turn = rng.uniform(0.02, 0.07), rng.uniform(0, 2 * math.pi)
            pan = (
                amplitude * math.cos(turn),
                amplitude * math.sin(turn),
                rng.uniform(0.8, 2.0) * duration,
                rng.uniform(0, 2 * math.pi),
            )
        if rng.random() < config.dark_rate:
            length = rng.uniform(0.2, 0.5) * duration
            start = rng.uniform(0, duration - length)
            dark = Span(round(start, 2), round(start + length, 2))
    grey, tint = rng.uniform(0.25, 0.6), rng.normal(0, 0.05, 3)
    return Scene(
        seed=(SPLITS[split], seed, index),
        duration_s=duration,
        aspect=aspect,
        actors=tuple(actors),
        background_rgb=tuple(np.clip(grey + tint, 0.1, 0.8).tolist()),
        background_contrast=float(rng.uniform(0.02, 0.14)),
        pan=(float(pan[0]), float(pan[1]), float(pan[2]), float(pan[3])),
        noise=float(rng.uniform(0.0, 0.03)),
        dark=dark,
    )


def _looks(rng: np.random.Generator, config: SceneConfig) -> list[dict[str, str]]:
    n = int(rng.integers(config.min_actors, config.max_actors + 1))
    looks = [
        {
            "shape": str(rng.choice(SHAPES)),
            "colour": str(rng.choice(tuple(COLOURS))),
            "texture": str(rng.choice(TEXTURES, p=[0.7, 0.15, 0.15])),
            "size": str(rng.choice(tuple(SIZES))),
        }
        for _ in range(n)
    ]
    if n >= 2 and rng.random() < config.twin_rate:
        looks[1] = dict(looks[0])
    elif n >= 2 and rng.random() < 0.5:  # near-twin: one attribute differs, so that the attribute matters
        looks[1] = dict(looks[0]) | {
            key: looks[1][key] for key in [str(rng.choice(("shape", "colour", "size")))]
        }
    return looks


def _place(rng: np.random.Generator, looks: list[dict[str, str]], aspect: float) -> list[Actor]:
    """Resting places that do not touch; when the picture is too full, the last actors are left out."""
    actors: list[Actor] = []
    for look in looks:
        low, high = SIZES[look["size"]]
        radius = float(rng.uniform(low, high)) * min(1.0, math.sqrt(aspect))
        rgb = np.clip(np.array(COLOURS[look["colour"]]) + rng.normal(0, 0.03, 3), 0, 1)
        for _ in range(30):
            x, y = rng.uniform(radius, aspect - radius), rng.uniform(radius, 1 - radius)
            if all(math.hypot(x - o.x, y - o.y) > 1.25 * (radius + o.radius) for o in actors):
                break
        else:
            continue
        # small tilts only: a square turned by 45 degrees would look like another shape
        angle = float(rng.uniform(-0.2, 0.2))
        actors.append(
            Actor(
                shape=look["shape"],
                colour=look["colour"],
                texture=look["texture"],
                size=look["size"],
                rgb=tuple(rgb.tolist()),
                radius=radius,
                x=float(x),
                y=float(y),
                angle_rad=angle,
            )
        )
    return actors


def _choreograph(
    rng: np.random.Generator, actors: list[Actor], aspect: float, duration: float, config: SceneConfig
) -> list[Actor]:
    out: list[Actor] = []
    for a, actor in enumerate(actors):
        count = int(rng.choice([0, 1, 2], p=[0.2, 0.5, 0.3])) if a else int(rng.choice([1, 2]))
        wanted = None
        if a and out[0].events and rng.random() < config.mime_rate and actor.look != out[0].look:
            wanted = out[0].events[0].action  # a mime does what the first actor does
        taken = {e.action for o in out if o.look == actor.look for e in o.events}  # twins never act alike
        out.append(_give_events(rng, actor, count, aspect, duration, wanted, taken))
    if len(out) >= 2 and rng.random() < 0.35:
        out = _interact(rng, out, aspect, duration)
    return out


def _give_events(
    rng: np.random.Generator,
    actor: Actor,
    count: int,
    aspect: float,
    duration: float,
    wanted: str | None,
    taken: set[str],
) -> Actor:
    events: list[Event] = []
    x, y, radius = actor.x, actor.y, actor.radius
    start_x, start_y = actor.x, actor.y
    used = set(taken)
    for slot in range(count):
        lo, hi = duration * slot / count, duration * (slot + 1) / count
        low, high = (0.25, 0.6) if count == 1 else (0.35, 0.8)
        length = rng.uniform(max(MIN_EVENT_S, low * (hi - lo)), max(MIN_EVENT_S, high * (hi - lo)))
        if length > hi - lo - 0.2:
            continue
        start = float(np.round(rng.uniform(lo + 0.1, hi - length - 0.1), 2))
        end = float(np.round(start + length, 2))
        options = [a for a in ACTIONS[:-2] if a not in used]
        if slot == 0 and wanted in options:
            options = [str(wanted)]
        for action in rng.permutation(options).tolist():
            made = _single_event(rng, action, actor.shape, x, y, radius, aspect, start, end, slot, count)
            if made is None:
                continue
            if action == "enter":  # the resting place is where it arrives
                start_x, start_y = x - made.dx, y - made.dy
            else:
                x, y, radius = x + made.dx, y + made.dy, radius * made.factor
            used.add(action)
            events.append(made)
            break
        if events and events[-1].action == "leave":
            break
    return replace(actor, x=start_x, y=start_y, events=tuple(events))


def _single_event(
    rng: np.random.Generator,
    action: str,
    shape: str,
    x: float,
    y: float,
    radius: float,
    aspect: float,
    start: float,
    end: float,
    slot: int,
    count: int,
) -> Event | None:
    """The event if there is room for it, else None."""
    if action in MOVES:
        ux, uy = DIRECTIONS[action.removeprefix("move_")]
        room = _room(x, y, radius, ux, uy, aspect)
        if room < 0.28:
            return None
        far = rng.uniform(0.28, min(room, 0.75))
        return Event(action, start, end, ux * far, uy * far)
    if action in ("enter", "leave"):
        if (action == "enter" and slot) or (action == "leave" and slot < count - 1):
            return None
        ux, uy = list(DIRECTIONS.values())[int(rng.integers(4))]
        far = _room(x, y, radius, ux, uy, aspect) + 2.6 * radius
        if far > 1.2:
            return None
        sign = -1 if action == "enter" else 1  # enter: come from that side; dx leads to the resting place
        return Event(action, start, end, sign * ux * far, sign * uy * far)
    if action == "grow":
        return Event(action, start, end, factor=1.7) if radius <= 0.14 else None
    if action == "shrink":
        return Event(action, start, end, factor=1 / 1.7) if radius >= 0.11 else None
    if action == "spin":
        return Event(action, start, end) if shape not in ("circle", "ring") else None
    if action == "bounce":
        return Event(action, start, end) if y - radius > BOUNCE_HEIGHT else None
    return Event(action, start, end)


def _room(x: float, y: float, radius: float, ux: float, uy: float, aspect: float) -> float:
    """How far an actor can go in a direction before its edge reaches the border."""
    if ux:
        return (aspect - radius - x) if ux > 0 else x - radius
    return (1 - radius - y) if uy > 0 else y - radius


def _interact(rng: np.random.Generator, actors: list[Actor], aspect: float, duration: float) -> list[Actor]:
    """Let one actor touch or follow another; unchanged when the scene has no room for it."""
    order = rng.permutation(len(actors)).tolist()
    for doer in order:
        for other in order:
            if doer == other or actors[doer].look == actors[other].look:
                continue
            made = _touch(rng, actors, doer, other, duration) if rng.random() < 0.6 else None
            made = made or _follow(actors, doer, other, aspect, duration)
            if made is not None:
                return [made if a == doer else actor for a, actor in enumerate(actors)]
    return actors


def _touch(
    rng: np.random.Generator, actors: list[Actor], doer: int, other: int, duration: float
) -> Actor | None:
    a, b = actors[doer], actors[other]
    if b.events or duration < 4.5:  # the touched one keeps still
        return None
    length = float(rng.uniform(MIN_EVENT_S, 0.5 * duration))
    start = float(np.round(rng.uniform(0.8, max(0.9, duration - length - 0.8)), 2))
    end = float(np.round(start + length, 2))
    if end > duration - 0.5:
        return None
    far, turn = math.hypot(b.x - a.x, b.y - a.y), math.atan2(b.y - a.y, b.x - a.x)
    reach_a = a.radius * reach(a.shape, turn - a.angle_rad)
    reach_b = b.radius * reach(b.shape, turn + math.pi - b.angle_rad)
    go = far - TOUCH_DEPTH * (reach_a + reach_b)
    if go < 0.1:
        return None
    event = Event("touch", start, end, (b.x - a.x) / far * go, (b.y - a.y) / far * go, target=other)
    return replace(a, events=(event,))


def _follow(actors: list[Actor], doer: int, other: int, aspect: float, duration: float) -> Actor | None:
    a, b = actors[doer], actors[other]
    lead = next((e for e in b.events[:1] if e.action in MOVES), None)
    if lead is None or lead.end_s + 0.3 > duration:
        return None
    length = math.hypot(lead.dx, lead.dy)
    behind = 1.25 * (a.radius + b.radius) / length
    x, y = b.x - lead.dx * behind, b.y - lead.dy * behind
    if not (a.radius <= x <= aspect - a.radius and a.radius <= y <= 1 - a.radius):
        return None
    if any(
        k not in (doer, other) and math.hypot(x - o.x, y - o.y) < a.radius + o.radius
        for k, o in enumerate(actors)
    ):
        return None
    event = Event(
        "follow", round(lead.start_s + 0.2, 2), round(lead.end_s + 0.2, 2), lead.dx, lead.dy, target=other
    )
    return replace(a, x=x, y=y, events=(event,))
