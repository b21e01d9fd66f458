"""What happens in a toy-world scene: actors, timed events, camera, light. Seeded, exact, no pixels.

World coordinates: the picture is 1 high and `aspect` wide, x to the right, y down. Everything is a
closed-form function of time, so positions, boxes and spans are exact at any moment and any frame rate.

Scenes are hard on purpose: often an actor has a *twin* (same look, other actions: only the action tells them
apart) and a *mime* (same action, other look: only the look tells them apart).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from tubelet.errors import DataError
from tubelet.tube import Span

FloatArray = npt.NDArray[np.float64]

SHAPES = ("circle", "square", "triangle", "star", "ring", "cross")
COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.90, 0.12, 0.12),
    "green": (0.10, 0.68, 0.18),
    "blue": (0.12, 0.25, 0.92),
    "yellow": (0.96, 0.88, 0.12),
    "purple": (0.58, 0.14, 0.72),
    "orange": (0.98, 0.52, 0.06),
    "cyan": (0.10, 0.84, 0.88),
    "white": (0.97, 0.97, 0.97),
}
TEXTURES = ("plain", "striped", "dotted")
SIZES = {"small": (0.085, 0.11), "big": (0.145, 0.185)}  # radius, as a fraction of the picture's height
DIRECTIONS = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0)}
MOVES = tuple(f"move_{name}" for name in DIRECTIONS)
ACTIONS = (*MOVES, "grow", "shrink", "spin", "blink", "bounce", "enter", "leave", "touch", "follow")

ASPECTS = (16 / 9, 4 / 3, 1.0, 9 / 16)
SPLITS = {"train": 0, "val": 1, "test": 2}

MIN_EVENT_S = 1.2
MIN_VISIBLE = 0.25  # an actor has a box where at least this fraction of its own box is inside the picture
_BLINK_PERIOD_S = 0.7
_BOUNCE_PERIOD_S = 0.9
_BOUNCE_HEIGHT = 0.13
_SPIN_RAD_PER_S = math.radians(100)
_TOUCH_TRAVEL_S = 0.6


@dataclass(frozen=True, slots=True)
class Event:
    """One action of one actor in [start_s, end_s). dx, dy: net displacement; factor: net change of radius."""

    action: str
    start_s: float
    end_s: float
    dx: float = 0.0
    dy: float = 0.0
    factor: float = 1.0
    target: int | None = None  # index of the other actor, for touch and follow

    @property
    def span(self) -> Span:
        return Span(self.start_s, self.end_s)


@dataclass(frozen=True, slots=True)
class Actor:
    """A coloured shape. `radius`, `x`, `y`, `angle_rad` hold at time 0."""

    shape: str
    colour: str
    texture: str
    size: str
    rgb: tuple[float, float, float]
    radius: float
    x: float
    y: float
    angle_rad: float = 0.0
    events: tuple[Event, ...] = ()

    @property
    def look(self) -> tuple[str, str, str, str]:
        return (self.size, self.texture, self.colour, self.shape)


@dataclass(frozen=True)
class Scene:
    """Everything needed to draw a scene and to know the truth about it."""

    seed: tuple[int, ...]
    duration_s: float
    aspect: float
    actors: tuple[Actor, ...]
    background_rgb: tuple[float, float, float]
    background_contrast: float
    pan: tuple[float, float, float, float]  # amplitude x, y (world units), period (s), phase (rad)
    noise: float
    dark: Span | None = None

    def pan_at(self, times_s: FloatArray) -> FloatArray:
        """Camera offset (T, 2) in world units: added to what is shown at the picture's origin."""
        ax, ay, period, phase = self.pan
        swing = np.sin(2 * math.pi * times_s / period + phase) - math.sin(phase)
        return np.stack([ax * swing, ay * swing], axis=1)

    def states(self, times_s: npt.ArrayLike) -> States:
        return actor_states(self, np.asarray(times_s, dtype=np.float64))

    def boxes_at(self, times_s: npt.ArrayLike) -> tuple[FloatArray, npt.NDArray[np.bool_]]:
        """Truth at any moments: boxes (A, T, 4) xyxy fractions of the picture, visible (A, T).

        Boxes are the exact bounds of the drawn shape, cut at the picture's border; where an actor is not
        visible (less than MIN_VISIBLE of its box is inside) the row is 0.
        """
        states = self.states(times_s)
        half_w, half_h, off_x, off_y = shape_extents(self.actors, states.angle_rad)
        x0 = (states.x + (off_x - half_w) * states.radius) / self.aspect
        x1 = (states.x + (off_x + half_w) * states.radius) / self.aspect
        y0 = states.y + (off_y - half_h) * states.radius
        y1 = states.y + (off_y + half_h) * states.radius
        full = np.stack([x0, y0, x1, y1], axis=-1)
        cut = np.clip(full, 0.0, 1.0)
        area = np.prod(full[..., 2:] - full[..., :2], axis=-1)
        inside = np.prod(cut[..., 2:] - cut[..., :2], axis=-1)
        visible = inside >= MIN_VISIBLE * area
        return np.where(visible[..., None], cut, 0.0), visible

    def visible_span(self, actor: int) -> Span | None:
        """From the first to the last moment the actor can be seen, to within 20 ms; None if it never is."""
        first, last, visible = self._visible_spans
        if not visible[actor]:
            return None
        return Span(float(first[actor]), float(last[actor]))

    @cached_property
    def _visible_spans(self) -> tuple[FloatArray, FloatArray, npt.NDArray[np.bool_]]:
        step_s = 0.02
        times = np.arange(0.0, self.duration_s, step_s)
        seen = self.boxes_at(times)[1]
        first = times[seen.argmax(axis=1)]
        last = np.minimum(times[len(times) - 1 - seen[:, ::-1].argmax(axis=1)] + step_s, self.duration_s)
        return first, last, np.asarray(seen.any(axis=1))


@dataclass(frozen=True, slots=True)
class States:
    """Actors over T moments, each (A, T): centre in the picture (camera applied), radius, angle, opacity."""

    x: FloatArray
    y: FloatArray
    radius: FloatArray
    angle_rad: FloatArray
    opacity: FloatArray


def actor_states(scene: Scene, times_s: FloatArray) -> States:
    shape = (len(scene.actors), len(times_s))
    x, y, radius, angle = (np.empty(shape) for _ in range(4))
    opacity = np.ones(shape)
    for a, actor in enumerate(scene.actors):
        x[a], y[a], radius[a], angle[a] = actor.x, actor.y, actor.radius, actor.angle_rad
        for event in actor.events:
            duration = event.end_s - event.start_s
            progress = np.clip((times_s - event.start_s) / duration, 0.0, 1.0)
            during = (times_s >= event.start_s) & (times_s < event.end_s)
            elapsed = np.clip(times_s - event.start_s, 0.0, duration)
            if event.action == "touch":  # go there before, stay for the event, come back after
                away = np.clip((times_s - event.start_s) / _TOUCH_TRAVEL_S + 1, 0.0, 1.0)
                back = np.clip((times_s - event.end_s) / _TOUCH_TRAVEL_S, 0.0, 1.0)
                x[a] += event.dx * (away - back)
                y[a] += event.dy * (away - back)
                continue
            x[a] += event.dx * progress
            y[a] += event.dy * progress
            if event.factor != 1.0:
                radius[a] *= event.factor**progress
            if event.action == "spin":
                angle[a] += _SPIN_RAD_PER_S * elapsed
            elif event.action == "bounce":
                y[a] -= _BOUNCE_HEIGHT * np.abs(np.sin(math.pi * elapsed / _BOUNCE_PERIOD_S)) * during
            elif event.action == "blink":
                off = (elapsed % _BLINK_PERIOD_S) >= _BLINK_PERIOD_S / 2
                opacity[a] = np.where(during & off, 0.15, opacity[a])
    pan = scene.pan_at(times_s)
    return States(x - pan[:, 0], y - pan[:, 1], radius, angle, opacity)


# --- geometry of the shapes (unit radius) --------------------------------------------------------

SQUARE_HALF = 0.86
CROSS_HALF, CROSS_ARM = 1.0, 0.34
STAR_INNER = 0.45


def _polygon(shape: str) -> FloatArray | None:
    """Vertices (V, 2) of the convex hull, or None for round shapes."""
    if shape == "square":
        return SQUARE_HALF * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], dtype=float)
    if shape == "triangle":
        turns = -math.pi / 2 + np.arange(3) * 2 * math.pi / 3
        return np.stack([np.cos(turns), np.sin(turns)], axis=1)
    if shape == "star":
        turns = -math.pi / 2 + np.arange(5) * 2 * math.pi / 5
        return np.stack([np.cos(turns), np.sin(turns)], axis=1)
    if shape == "cross":
        corners = [(sx * CROSS_HALF, sy * CROSS_ARM) for sx in (-1, 1) for sy in (-1, 1)]
        corners += [(sx * CROSS_ARM, sy * CROSS_HALF) for sx in (-1, 1) for sy in (-1, 1)]
        return np.array(corners)
    return None


def shape_extents(actors: Sequence[Actor], angle_rad: FloatArray) -> tuple[FloatArray, ...]:
    """Half width, half height and centre offset (x, y) of shapes' exact bounds, each (A, T), unit radius."""
    half_w, half_h = np.ones_like(angle_rad), np.ones_like(angle_rad)
    off_x, off_y = np.zeros_like(angle_rad), np.zeros_like(angle_rad)
    for a, actor in enumerate(actors):
        corners = _polygon(actor.shape)
        if corners is None:
            continue
        cos, sin = np.cos(angle_rad[a]), np.sin(angle_rad[a])
        x = corners[:, :1] * cos - corners[:, 1:] * sin
        y = corners[:, :1] * sin + corners[:, 1:] * cos
        half_w[a], off_x[a] = (x.max(0) - x.min(0)) / 2, (x.max(0) + x.min(0)) / 2
        half_h[a], off_y[a] = (y.max(0) - y.min(0)) / 2, (y.max(0) + y.min(0)) / 2
    return half_w, half_h, off_x, off_y


# --- making scenes -------------------------------------------------------------------------------


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
    return _replace(actor, x=start_x, y=start_y, events=tuple(events))


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
        return Event(action, start, end) if y - radius > _BOUNCE_HEIGHT else None
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
    far = math.hypot(b.x - a.x, b.y - a.y)
    go = far - 0.9 * (a.radius + b.radius)
    if go < 0.1:
        return None
    event = Event("touch", start, end, (b.x - a.x) / far * go, (b.y - a.y) / far * go, target=other)
    return _replace(a, events=(event,))


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
    return _replace(a, x=x, y=y, events=(event,))


def _replace(actor: Actor, **changes: object) -> Actor:
    from dataclasses import replace

    return replace(actor, **changes)  # type: ignore[arg-type]
