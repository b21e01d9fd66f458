"""Questions about toy-world scenes, with exact answers: every task tubelet knows.

| task | given | asked | answer |
|---|---|---|---|
| stvg | sentence | when and where | span + boxes, or "not in this video" |
| svg  | sentence, span | where | boxes |
| tvg  | sentence | when | span |
| rec  | sentence (image) | where | one box |
| elc  | start, box at the start | until when, what, where | span, caption, boxes |
| reg  | box (image) | what is it | phrase |
| tr   | span | what happens then | caption |
| dgc  | (image) | describe, with boxes | caption, one box per phrase |
| qa   | question | answer | text |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from tubelet.errors import DataError
from tubelet.tube import TASKS, Span
from tubelet.world.language import (
    ACTION_WORDS,
    RELATIONS,
    Look,
    Match,
    Phrase,
    caption,
    describe_event,
    full_look,
    matches,
    say,
    shortened,
    with_article,
)
from tubelet.world.scene import ACTIONS, COLOURS, SHAPES, Scene


@dataclass(frozen=True, slots=True)
class Question:
    """One question about a scene and its true answer.

    query: the sentence, or the question for qa, reg, tr, dgc, elc (short; models wrap it in their prompts).
    actor: index of the target, None where nothing is boxed (absent targets, tvg about light, text tasks).
    span: the true span (also the given one, for svg and tr). present: False when it is true of nothing.
    answer: text of the answer for text tasks. given_box: for reg and elc. phrases: for dgc, (text, actor).
    kind: how the question was made, for breakdowns in reports. about: the one actor that a qa answer is about;
    about_span: while it does what the question or the answer says (None: as long as it is seen).
    """

    task: str
    query: str
    kind: str
    actor: int | None = None
    span: Span | None = None
    present: bool = True
    answer: str = ""
    given_box: tuple[float, float, float, float] | None = None
    phrases: tuple[tuple[str, int], ...] = ()
    tags: dict[str, Any] = field(default_factory=dict)
    about: int | None = None
    about_span: Span | None = None


VIDEO_TASKS = ("stvg", "svg", "tvg", "elc", "tr", "qa")
IMAGE_TASKS = ("rec", "reg", "dgc", "qa")


def make_questions(
    scene: Scene,
    rng: np.random.Generator,
    tasks: Sequence[str] = ("stvg",),
    count: int = 4,
    absent_rate: float = 0.2,
) -> list[Question]:
    """Up to `count` questions of these tasks (chosen at random per question), no two alike.

    A scene in which nothing happens has no questions of some tasks; the list may be shorter than `count`.
    """
    unknown = set(tasks) - set(TASKS)
    if unknown:
        raise DataError(f"unknown task {', '.join(sorted(unknown))}; tasks are {', '.join(TASKS)}")
    out: list[Question] = []
    said: set[tuple[Any, ...]] = set()
    for _ in range(4 * count):
        if len(out) == count:
            break
        task = str(tasks[int(rng.integers(len(tasks)))])
        question = _make_one(scene, rng, task, absent_rate)
        if question is None:
            continue
        asks = (task, question.query, question.given_box, question.span)
        if asks not in said:
            said.add(asks)
            out.append(question)
    return out


def truth_boxes(
    scene: Scene, question: Question, times_s: npt.ArrayLike
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Truth of a question at any moments: boxes (T, 4) and has (T,), which is in the span and visible."""
    times = np.asarray(times_s, dtype=np.float64)
    if question.actor is None:
        return np.zeros((len(times), 4)), np.zeros(len(times), dtype=bool)
    boxes, visible = scene.boxes_at(times)
    has = visible[question.actor]
    if question.span is not None:
        has = has & question.span.contains(times)
    return np.where(has[:, None], boxes[question.actor], 0.0), has


def _make_one(scene: Scene, rng: np.random.Generator, task: str, absent_rate: float) -> Question | None:
    if task in ("stvg", "svg", "tvg"):
        if task == "tvg" and scene.dark is not None and rng.random() < 0.4:
            query = str(rng.choice(("the picture is dark", "when is the picture dark?", "the light is off")))
            return Question("tvg", query, "light", span=scene.dark)
        if task != "svg" and rng.random() < absent_rate:
            return _absent(scene, rng, task)
        return _referring(scene, rng, task, want_event=rng.random() < 0.9)
    if task == "rec":
        if rng.random() < absent_rate:
            return _absent(scene, rng, task)
        return _referring(scene, rng, task, want_event=False)
    if task == "elc":
        return _elc(scene, rng)
    if task == "reg":
        return _reg(scene, rng)
    if task == "tr":
        return _tr(scene, rng)
    if task == "dgc":
        return _dgc(scene, rng)
    return _qa(scene, rng)


def _referring(scene: Scene, rng: np.random.Generator, task: str, want_event: bool) -> Question | None:
    """A sentence that is true of exactly one actor (and event)."""
    for _ in range(12):
        a = int(rng.integers(len(scene.actors)))
        actor = scene.actors[a]
        if want_event and not actor.events:
            continue
        phrase, kind = _draw_phrase(scene, rng, a, want_event)
        if phrase is None:
            continue
        found = matches(scene, phrase)
        if len(found) != 1 or (phrase.wants == "doer" and found[0].actor != a):
            continue
        form = "declarative"
        if phrase.action is not None:
            form = str(rng.choice(("declarative", "interrogative", "noun"), p=[0.6, 0.25, 0.15]))
        query = say(phrase, rng, form)
        return _question(scene, task, query, kind, found[0], phrase)
    return None


def _draw_phrase(
    scene: Scene, rng: np.random.Generator, a: int, want_event: bool
) -> tuple[Phrase | None, str]:
    actor = scene.actors[a]
    # the size word is about the start; where the size changes it would mislead
    sized = all(e.factor == 1.0 for e in actor.events)
    look = shortened(full_look(actor, with_size=sized), rng)
    if not want_event:
        if rng.random() < 0.3 and len(scene.actors) >= 2:
            return _with_relation(scene, rng, a, look, None), "relation"
        if look == Look():
            look = Look(colour=actor.colour, shape=actor.shape)
        return Phrase(look), "look"
    event = actor.events[int(rng.integers(len(actor.events)))]
    if event.target is not None:
        other = shortened(full_look(scene.actors[event.target]), rng)
        if rng.random() < 0.3 and look != Look():
            return Phrase(look, event.action, wants="other"), "object"
        return Phrase(look, event.action, Look(colour=other.colour, shape=other.shape)), "interaction"
    draw = rng.random()
    if draw < 0.15:
        return Phrase(Look(), event.action), "action_only"
    if draw < 0.27 and len(scene.actors) >= 2:
        return _with_relation(scene, rng, a, look, event.action), "relation"
    return Phrase(look, event.action), "look_and_action"


def _with_relation(
    scene: Scene, rng: np.random.Generator, a: int, look: Look, action: str | None
) -> Phrase | None:
    others = [k for k in range(len(scene.actors)) if k != a]
    other = scene.actors[others[int(rng.integers(len(others)))]]
    relation = str(rng.choice(tuple(RELATIONS)))
    return Phrase(look, action, Look(colour=other.colour, shape=other.shape), relation)


def _question(
    scene: Scene, task: str, query: str, kind: str, match: Match, phrase: Phrase
) -> Question | None:
    if task == "rec":
        return Question("rec", query, kind, actor=match.actor)
    span = match.span.clip(0.0, scene.duration_s)
    if span is None:
        return None
    target = scene.actors[match.actor]
    tags = {
        "action": phrase.action,
        "twin": sum(o.look == target.look for o in scene.actors) > 1,
        "mime": sum(any(e.action == phrase.action for e in o.events) for o in scene.actors) > 1,
    }
    return Question(task, query, kind, actor=match.actor, span=span, tags=tags)


def _absent(scene: Scene, rng: np.random.Generator, task: str) -> Question | None:
    """A sentence that is true of nothing here, but nearly is: one word of a true one is wrong."""
    for _ in range(12):
        a = int(rng.integers(len(scene.actors)))
        actor = scene.actors[a]
        want_event = task != "rec" and bool(actor.events) and rng.random() < 0.85
        look, action, kind = shortened(full_look(actor, with_size=False), rng), None, "absent_look"
        if want_event:
            action = actor.events[int(rng.integers(len(actor.events)))].action
            if action in ("touch", "follow"):
                continue
        draw = rng.random()
        if action is not None and draw < 0.5:
            done_here = [
                e.action for o in scene.actors for e in o.events if e.action not in ("touch", "follow")
            ]
            options = done_here if rng.random() < 0.6 and done_here else list(ACTIONS[:-2])
            action, kind = str(rng.choice(options)), "absent_action"
        elif draw < 0.8 or action is None:
            look = Look(look.size, look.texture, str(rng.choice(tuple(COLOURS))), look.shape)
        else:
            look = Look(look.size, look.texture, look.colour, str(rng.choice(SHAPES)))
        phrase = Phrase(look, action)
        if look == Look() or matches(scene, phrase):
            continue
        form = "declarative" if action is None or rng.random() < 0.7 else "interrogative"
        return Question(task, say(phrase, rng, form), kind, present=False, tags={"action": action})
    return None


# --- tasks whose answer is text ------------------------------------------------------------------


def _elc(scene: Scene, rng: np.random.Generator) -> Question | None:
    doers = [(a, e) for a, actor in enumerate(scene.actors) for e in actor.events]
    if not doers:
        return None
    a, event = doers[int(rng.integers(len(doers)))]
    boxes, visible = scene.boxes_at([event.start_s + 0.05])
    if not visible[a, 0]:
        return None
    answer = f"the {full_look(scene.actors[a], with_size=False).say()} {describe_event(scene, event, rng)}"
    return Question(
        "elc",
        "what does the thing in this box do, and until when?",
        "elc",
        actor=a,
        span=event.span,
        answer=answer,
        given_box=tuple(boxes[a, 0].tolist()),
    )


def _reg(scene: Scene, rng: np.random.Generator) -> Question | None:
    boxes, visible = scene.boxes_at([0.0])
    shown = np.nonzero(visible[:, 0])[0]
    if not len(shown):
        return None
    a = int(rng.choice(shown))
    answer = f"the {full_look(scene.actors[a]).say()}"
    return Question(
        "reg", "what is in this box?", "reg", actor=a, answer=answer, given_box=tuple(boxes[a, 0].tolist())
    )


def _tr(scene: Scene, rng: np.random.Generator) -> Question | None:
    doers = [(a, e) for a, actor in enumerate(scene.actors) for e in actor.events]
    if not doers:
        return None
    _, event = doers[int(rng.integers(len(doers)))]
    during = [
        f"the {full_look(scene.actors[b], with_size=False).say()} {describe_event(scene, e, rng)}"
        for b, e in doers
        if e.span.intersection_s(event.span) > 0.5 * min(e.span.duration_s, event.span.duration_s)
    ]
    return Question("tr", "what happens in this span?", "tr", span=event.span, answer=" and ".join(during))


def _dgc(scene: Scene, rng: np.random.Generator) -> Question | None:
    boxes, visible = scene.boxes_at([0.0])
    shown = sorted(np.nonzero(visible[:, 0])[0].tolist(), key=lambda a: float(boxes[a, 0, 0]))
    if not shown:
        return None
    phrases = tuple((with_article(full_look(scene.actors[a], with_size=False).say()), a) for a in shown)
    texts = [text for text, _ in phrases]
    answer = texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"
    return Question("dgc", "describe the picture with boxes.", "dgc", answer=f"{answer}.", phrases=phrases)


def _qa(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Captions, yes/no questions (balanced), attributes, counting, places, light."""
    moving = [(a, e) for a, actor in enumerate(scene.actors) for e in actor.events if e.target is None]
    draw = rng.random()
    if draw < 0.12:
        return Question(
            "qa",
            "describe the video." if moving else "describe the picture.",
            "caption",
            answer=caption(scene, rng),
        )
    if draw < 0.47:
        return _yes_no(scene, rng)
    if draw < 0.62:
        return _where(scene, rng)
    if draw < 0.70:
        n = len([a for a in range(len(scene.actors)) if scene.visible_span(a) is not None])
        return Question("qa", "how many things are there?", "count", answer=str(n))
    if draw < 0.75 and scene.dark is not None:
        middle = (scene.dark.start_s + scene.dark.end_s) / 2 / scene.duration_s
        part = "start" if middle < 0.4 else "end" if middle > 0.6 else "middle"
        return Question(
            "qa", "is the picture dark at the start, in the middle or at the end?", "light", answer=part
        )
    if moving and draw < 0.88:
        a, event = moving[int(rng.integers(len(moving)))]
        actor, phrase = scene.actors[a], Phrase(Look(), event.action)
        found = matches(scene, phrase)
        if len({m.actor for m in found}) == 1:
            does = str(rng.choice(ACTION_WORDS[event.action]))
            if rng.random() < 0.5:
                query, answer = f"what colour is the thing that {does}?", actor.colour
            else:
                query, answer = f"what shape is the thing that {does}?", actor.shape
            span = event.span if len(found) == 1 else None
            return Question("qa", query, "attribute", answer=answer, about=a, about_span=span)
    if moving and draw < 0.95:
        a, event = moving[int(rng.integers(len(moving)))]
        look = full_look(scene.actors[a], with_size=False)
        if len(matches(scene, Phrase(look))) == 1 and len(scene.actors[a].events) == 1:
            return Question(
                "qa",
                f"what does the {look.say()} do?",
                "action",
                answer=ACTION_WORDS[event.action][0],
                about=a,
                about_span=event.span,
            )
    a = int(rng.integers(len(scene.actors)))
    actor = scene.actors[a]
    if sum(o.shape == actor.shape for o in scene.actors) == 1:
        return Question("qa", f"what colour is the {actor.shape}?", "attribute", answer=actor.colour, about=a)
    if sum(o.colour == actor.colour for o in scene.actors) == 1:
        return Question(
            "qa", f"what shape is the {actor.colour} thing?", "attribute", answer=actor.shape, about=a
        )
    return None


def _yes_no(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Half of the answers are yes; a no is one word away from a yes."""
    if rng.random() < 0.5:
        asked = _referring_any(scene, rng)
        if asked is None:
            return None
        sentence, about, span = asked
        return Question("qa", as_yes_no(sentence), "yes_no", answer="yes", about=about, about_span=span)
    absent = _absent(scene, rng, "rec" if rng.random() < 0.5 else "stvg")
    if absent is None or "?" in absent.query:
        return None
    return Question("qa", as_yes_no(absent.query), "yes_no", answer="no")


def _referring_any(scene: Scene, rng: np.random.Generator) -> tuple[str, int | None, Span | None] | None:
    """A sentence that is true of something; of what, where it is one thing; when, where it tells one action."""
    a = int(rng.integers(len(scene.actors)))
    actor = scene.actors[a]
    look = shortened(full_look(actor, with_size=False), rng)
    if look == Look():
        return None
    events = [e for e in actor.events if e.target is None]
    phrase = Phrase(look)
    if events and rng.random() < 0.6:
        phrase = Phrase(look, events[int(rng.integers(len(events)))].action)
    found = matches(scene, phrase)
    if {match.actor for match in found} != {a}:
        return say(phrase, rng), None, None
    return say(phrase, rng), a, found[0].span if phrase.action and len(found) == 1 else None


def as_yes_no(sentence: str, plain: bool = False) -> str:
    """The question whether a sentence is true of the video (or picture); plain: in the same words for all of them."""
    if not plain and any(words in sentence for words in _ACTION_TEXTS):
        return f"is it true: {sentence}?"
    return f"do you see {sentence}?"


_ACTION_TEXTS = tuple(words for options in ACTION_WORDS.values() for words in options)


def _where(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Where something stands at its first visible moment, in nine places."""
    a = int(rng.integers(len(scene.actors)))
    look = shortened(full_look(scene.actors[a], with_size=False), rng)
    if look == Look() or len(matches(scene, Phrase(look))) != 1:
        return None
    span = scene.visible_span(a)
    if span is None or span.start_s > 0:
        return None
    box = scene.boxes_at([0.0])[0][a, 0]
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    column = "left" if x < 1 / 3 else "right" if x > 2 / 3 else "middle"
    row = "top" if y < 1 / 3 else "bottom" if y > 2 / 3 else "middle"
    return Question(
        "qa",
        f"where is the {look.say()}?"
        if scene.duration_s <= 1.0
        else f"where is the {look.say()} at the start?",
        "where",
        answer=f"{row} {column}",
        about=a,
    )
