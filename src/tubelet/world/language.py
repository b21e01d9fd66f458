"""How the toy world is spoken about: descriptions of actors and actions, and what they are true of.

A `Phrase` is the meaning of a referring sentence; `matches` finds everything in a scene it is true of, `say`
puts it into words. Sentences are made by drawing a meaning and checking with `matches` that it is true of
exactly one thing (or of nothing, for absent targets): no sentence is ever ambiguous by accident.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tubelet.tube import Span
from tubelet.world.scene import DIRECTIONS, MOVES, Actor, Event, Scene

ACTION_WORDS: dict[str, tuple[str, ...]] = {
    "move_left": ("moves left", "moves to the left", "goes left"),
    "move_right": ("moves right", "moves to the right", "goes right"),
    "move_up": ("moves up", "goes up"),
    "move_down": ("moves down", "goes down"),
    "grow": ("grows", "gets bigger"),
    "shrink": ("shrinks", "gets smaller"),
    "spin": ("spins", "turns around"),
    "blink": ("blinks", "flashes"),
    "bounce": ("bounces", "hops"),
    "enter": ("enters", "comes in"),
    "leave": ("leaves", "goes away"),
    "touch": ("touches",),
    "follow": ("follows",),
}
RELATIONS = {
    "left_of": "to the left of",
    "right_of": "to the right of",
    "above": "above",
    "below": "below",
}
MIN_RELATION_GAP = 0.12  # of the picture's width or height: smaller differences are not spoken about


@dataclass(frozen=True, slots=True)
class Look:
    """A description: every attribute that is given must hold."""

    size: str | None = None
    texture: str | None = None
    colour: str | None = None
    shape: str | None = None

    def fits(self, actor: Actor) -> bool:
        given = (self.size, self.texture, self.colour, self.shape)
        return all(want is None or want == has for want, has in zip(given, actor.look, strict=True))

    def say(self, noun: str = "thing") -> str:
        texture = None if self.texture == "plain" else self.texture
        return " ".join(word for word in (self.size, texture, self.colour, self.shape or noun) if word)


@dataclass(frozen=True, slots=True)
class Phrase:
    """The meaning of a referring sentence.

    look: of the one spoken about; action: what it does (None: nothing is said); other: whom it touches,
    follows or stands next to; relation: where it stands relative to `other`; wants: "doer", or "other" for
    questions such as "what does the red circle touch?".
    """

    look: Look = Look()
    action: str | None = None
    other: Look | None = None
    relation: str | None = None
    wants: str = "doer"


@dataclass(frozen=True, slots=True)
class Match:
    """One thing a phrase is true of: the actor to box, when, and the event (None: it names no action)."""

    actor: int
    span: Span
    event: Event | None


def matches(scene: Scene, phrase: Phrase) -> list[Match]:
    """Everything in the scene that the phrase is true of."""
    found: list[Match] = []
    for a, actor in enumerate(scene.actors):
        if not phrase.look.fits(actor):
            continue
        if phrase.action is None:
            span = scene.visible_span(a)
            if span is not None and _related(scene, phrase, a, span.start_s):
                found.append(Match(a, span, None))
            continue
        for event in actor.events:
            if not looks_like(event, phrase.action):
                continue
            if event.target is not None and phrase.other is not None and phrase.relation is None:
                if phrase.wants == "doer" and not phrase.other.fits(scene.actors[event.target]):
                    continue
            elif not _related(scene, phrase, a, event.start_s):
                continue
            boxed = a if phrase.wants == "doer" or event.target is None else event.target
            found.append(Match(boxed, event.span, event))
    return found


def looks_like(event: Event, action: str) -> bool:
    """Whether an onlooker would call the event this action.

    Who enters, leaves, follows or goes to touch something also moves in some direction, to the eye.
    """
    if event.action == action:
        return True
    if action not in MOVES or event.action not in ("enter", "leave", "follow", "touch"):
        return False
    ux, uy = DIRECTIONS[action.removeprefix("move_")]
    along, across = event.dx * ux + event.dy * uy, abs(event.dx * uy) + abs(event.dy * ux)
    if event.action == "touch":  # there and back, at any slant
        return abs(along) >= 0.4 * across
    return along > across


def _related(scene: Scene, phrase: Phrase, actor: int, time_s: float) -> bool:
    """Whether the actor stands in the phrase's relation to the only other actor that fits, at that moment."""
    if phrase.relation is None or phrase.other is None:
        return True
    others = [k for k, o in enumerate(scene.actors) if k != actor and phrase.other.fits(o)]
    if len(others) != 1:
        return False
    boxes, visible = scene.boxes_at([time_s])
    if not visible[actor, 0] or not visible[others[0], 0]:
        return False
    middle = (boxes[:, 0, :2] + boxes[:, 0, 2:]) / 2
    gap = middle[actor] - middle[others[0]]
    return {
        "left_of": bool(gap[0] < -MIN_RELATION_GAP),
        "right_of": bool(gap[0] > MIN_RELATION_GAP),
        "above": bool(gap[1] < -MIN_RELATION_GAP),
        "below": bool(gap[1] > MIN_RELATION_GAP),
    }[phrase.relation]


def say(phrase: Phrase, rng: np.random.Generator, form: str = "declarative") -> str:
    """The phrase in words. Forms: declarative, interrogative ("what ...?"), noun ("the ring that ...")."""
    if phrase.wants == "other":
        return f"what does the {phrase.look.say()} {_base_form(phrase.action)}?"
    placed = phrase.relation is not None and phrase.other is not None
    nothing_said = phrase.look == Look() and not placed
    who = "something" if nothing_said else f"the {phrase.look.say()}"
    if phrase.relation is not None and phrase.other is not None:
        who = f"{who} {RELATIONS[phrase.relation]} the {phrase.other.say()}"
    if phrase.action is None:
        return who
    does = str(rng.choice(ACTION_WORDS[phrase.action]))
    if phrase.action in ("touch", "follow") and phrase.other is not None and phrase.relation is None:
        does = f"{does} the {phrase.other.say()}"
    if form == "interrogative":
        if nothing_said:
            return f"what {does}?"
        return f"which {who.removeprefix('the ')} {does}?"
    if form == "noun" and not nothing_said:
        return f"{who} that {does}"
    return f"{who} {does}"


def _base_form(action: str | None) -> str:
    return {"touch": "touch", "follow": "follow"}[str(action)]


def with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def full_look(actor: Actor, with_size: bool = True) -> Look:
    return Look(actor.size if with_size else None, actor.texture, actor.colour, actor.shape)


def shortened(look: Look, rng: np.random.Generator) -> Look:
    """A description with some attributes left out, as people do: colour and shape are kept most often."""
    keep = {
        "size": rng.random() < 0.25,
        "texture": look.texture != "plain" and rng.random() < 0.6,
        "colour": rng.random() < 0.8,
        "shape": rng.random() < 0.85,
    }
    return Look(**{key: getattr(look, key) if keep[key] else None for key in keep})


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """What is there and what it does, actors from left to right (at their first visible moment)."""
    boxes, visible = scene.boxes_at(np.linspace(0, scene.duration_s, 9)[:-1])
    parts: list[tuple[float, str]] = []
    for a, actor in enumerate(scene.actors):
        if not visible[a].any():
            continue
        first = int(visible[a].argmax())
        text = with_article(full_look(actor, with_size=False).say())
        done = [describe_event(scene, e, rng) for e in actor.events]
        if done:
            text = f"{text} that {' and then '.join(done)}"
        parts.append((float(boxes[a, first, 0]), text))
    texts = [text for _, text in sorted(parts)]
    if len(texts) == 1:
        return f"{texts[0]}."
    return f"{', '.join(texts[:-1])} and {texts[-1]}."


def describe_event(scene: Scene, event: Event, rng: np.random.Generator) -> str:
    text = str(rng.choice(ACTION_WORDS[event.action]))
    if event.target is not None:
        text = f"{text} the {full_look(scene.actors[event.target], with_size=False).say()}"
    return text
