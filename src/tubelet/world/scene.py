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
BOUNCE_HEIGHT = 0.13
_SPIN_RAD_PER_S = math.radians(100)
_TOUCH_TRAVEL_S = 0.6
TOUCH_DEPTH = 0.93  # touching shapes overlap a little, along the line between their centres


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
                y[a] -= BOUNCE_HEIGHT * np.abs(np.sin(math.pi * elapsed / _BOUNCE_PERIOD_S)) * during
            elif event.action == "blink":
                off = (elapsed % _BLINK_PERIOD_S) >= _BLINK_PERIOD_S / 2
                opacity[a] = np.where(during & off, 0.15, opacity[a])
    pan = scene.pan_at(times_s)
    return States(x - pan[:, 0], y - pan[:, 1], radius, angle, opacity)


# --- geometry of the shapes (unit radius) --------------------------------------------------------

SQUARE_HALF = 0.86
CROSS_HALF, CROSS_ARM = 1.0, 0.34
STAR_INNER = 0.45
SYMMETRY = {
    "circle": 0,
    "square": 4,
    "triangle": 3,
    "star": 5,
    "ring": 0,
    "cross": 4,
}  # turns that change nothing


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


def reach(shape: str, turn_rad: float) -> float:
    """How far a shape of unit radius reaches from its centre in a direction of its own frame (0: to the right)."""
    a, b = abs(math.cos(turn_rad)), abs(math.sin(turn_rad))
    if shape == "square":
        return SQUARE_HALF / max(a, b)
    if shape == "cross":
        across = min(CROSS_HALF / max(a, 1e-9), CROSS_ARM / max(b, 1e-9))
        down = min(CROSS_ARM / max(a, 1e-9), CROSS_HALF / max(b, 1e-9))
        return max(across, down)
    if shape == "triangle":  # three sides at distance 1/2, their normals at 90, -30 and -150 degrees
        return 0.5 / max(math.cos(turn_rad - math.pi * k) for k in (1 / 2, -1 / 6, -5 / 6))
    if shape == "star":  # the line from a tip (1, 0) to a notch at STAR_INNER, 36 degrees
        fold = abs(math.remainder(turn_rad + math.pi / 2, 2 * math.pi / 5))
        notch_x, notch_y = STAR_INNER * math.cos(math.pi / 5), STAR_INNER * math.sin(math.pi / 5)
        return notch_y / (notch_y * math.cos(fold) + (1 - notch_x) * math.sin(fold))
    return 1.0


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
