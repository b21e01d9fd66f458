"""What is said about toy-world scenes is true: a second, independent reader of the sentences checks it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pytest

from tubelet.errors import DataError
from tubelet.tube import TASKS, Span
from tubelet.world.choreography import SceneConfig, make_scene
from tubelet.world.language import (
    ACTION_WORDS,
    Look,
    Phrase,
    caption,
    full_look,
    matches,
    say,
    shortened,
    with_article,
)
from tubelet.world.scene import ACTIONS, COLOURS, SHAPES, SIZES, TEXTURES, Actor, Event, Scene
from tubelet.world.tasks import IMAGE_TASKS, VIDEO_TASKS, Question, make_questions, truth_boxes

# --- the reader ----------------------------------------------------------------------------------

MEANING = {
    "moves left": "move_left", "moves to the left": "move_left", "goes left": "move_left",
    "moves right": "move_right", "moves to the right": "move_right", "goes right": "move_right",
    "moves up": "move_up", "goes up": "move_up", "moves down": "move_down", "goes down": "move_down",
    "grows": "grow", "gets bigger": "grow", "shrinks": "shrink", "gets smaller": "shrink",
    "spins": "spin", "turns around": "spin", "blinks": "blink", "flashes": "blink",
    "bounces": "bounce", "hops": "bounce", "enters": "enter", "comes in": "enter",
    "leaves": "leave", "goes away": "leave", "touches": "touch", "follows": "follow",
}  # fmt: skip
SIDES = {"to the left of": (0, -1), "to the right of": (0, 1), "above": (1, -1), "below": (1, 1)}
_DESC = (
    rf"(?:(?:{'|'.join(SIZES)}) )?(?:(?:{'|'.join(TEXTURES)}) )?(?:(?:{'|'.join(COLOURS)}) )?"
    rf"(?:{'|'.join(SHAPES)}|thing)"
)
_ACT = "|".join(sorted(MEANING, key=len, reverse=True))
_SENTENCE = re.compile(
    rf"(?:(?P<some>something)|what|which (?P<which>{_DESC})|the (?P<the>{_DESC}))"
    rf"(?: (?P<side>{'|'.join(SIDES)}) the (?P<beside>{_DESC}))?"
    rf"(?: that)?(?: (?P<act>{_ACT})(?: the (?P<whom>{_DESC}))?)?\??"
)
_OBJECT = re.compile(rf"what does the (?P<who>{_DESC}) (?P<act>touch|follow)\?")


@dataclass(frozen=True)
class Read:
    """What a sentence says, as words."""

    who: frozenset[str]
    action: str | None
    whom: frozenset[str] | None = None
    side: str | None = None
    beside: frozenset[str] | None = None
    asks_object: bool = False


def words(description: str | None) -> frozenset[str]:
    return frozenset((description or "").split()) - {"thing"}


def read(sentence: str) -> Read:
    asked = _OBJECT.fullmatch(sentence)
    if asked:
        return Read(words(asked["who"]), asked["act"], asks_object=True)
    said = _SENTENCE.fullmatch(sentence)
    assert said, f"the reader does not understand {sentence!r}"
    return Read(
        words(said["which"] or said["the"]),
        MEANING[said["act"]] if said["act"] else None,
        words(said["whom"]) if said["whom"] else None,
        said["side"],
        words(said["beside"]) if said["beside"] else None,
    )


def fits(actor: Actor, description: frozenset[str]) -> bool:
    return description <= {actor.size, actor.texture, actor.colour, actor.shape}


def stands(scene: Scene, a: int, b: int, side: str, time_s: float) -> bool:
    boxes, visible = scene.boxes_at([time_s])
    axis, sign = SIDES[side]
    middles = [(boxes[k, 0, axis] + boxes[k, 0, axis + 2]) / 2 for k in (a, b)]
    return bool(visible[a, 0] and visible[b, 0] and (middles[0] - middles[1]) * sign > 0.12)


def true_of(scene: Scene, said: Read) -> list[tuple[int, float, float]]:
    """(thing to box, start, end) of everything the sentence is true of."""
    out = []
    for a, actor in enumerate(scene.actors):
        if not fits(actor, said.who):
            continue
        moments: list[tuple[float, float, int | None]] = []
        if said.action is None:
            times = np.arange(0, scene.duration_s, 0.02)
            seen = times[scene.boxes_at(times)[1][a]]
            moments = [(seen[0], min(seen[-1] + 0.02, scene.duration_s), None)] if len(seen) else []
        for event in actor.events:
            if event.action == said.action or said.action in seen_as(event):
                moments.append((event.start_s, event.end_s, event.target))
        for start, end, target in moments:
            if said.whom is not None and (target is None or not fits(scene.actors[target], said.whom)):
                continue
            if said.side is not None and said.beside is not None:
                others = [b for b, o in enumerate(scene.actors) if b != a and fits(o, said.beside)]
                if len(others) != 1 or not stands(scene, a, others[0], said.side, start):
                    continue
            out.append((target if said.asks_object and target is not None else a, start, end))
    return out


def seen_as(event: Event) -> set[str]:
    """Moves that an onlooker sees in who enters, leaves, follows or goes to touch something and comes back."""
    if event.action not in ("enter", "leave", "follow", "touch"):
        return set()
    ways = {"move_right": event.dx, "move_left": -event.dx, "move_down": event.dy, "move_up": -event.dy}
    size = max(abs(event.dx), abs(event.dy))
    if event.action == "touch":
        other = {"move_right": "y", "move_left": "y", "move_down": "x", "move_up": "x"}
        across = {"x": abs(event.dx), "y": abs(event.dy)}
        return {way for way, far in ways.items() if abs(far) >= 0.4 * across[other[way]]}
    return {way for way, far in ways.items() if far == size}


# --- many scenes and questions -------------------------------------------------------------------

Pair = tuple[Scene, Question]


@cache
def asked(tasks: tuple[str, ...], still: bool = False, count: int = 400) -> tuple[Pair, ...]:
    out: list[Pair] = []
    for index in range(count):
        scene = make_scene("val", 21, index, SceneConfig(still=still))
        questions = make_questions(scene, np.random.default_rng([21, index]), tasks, 4)
        out += [(scene, q) for q in questions]
    assert len(out) > count
    return tuple(out)


def referring() -> list[Pair]:
    return [(s, q) for s, q in (*asked(("stvg", "svg", "tvg")), *asked(("rec",), True)) if q.kind != "light"]


def test_every_true_sentence_is_true_of_one_thing_which_is_the_answer() -> None:
    kinds: Counter[str] = Counter()
    for scene, q in referring():
        if not q.present:
            continue
        kinds[q.kind] += 1
        found = true_of(scene, read(q.query))
        assert len(found) == 1, (q.query, found)
        thing, start, end = found[0]
        assert thing == q.actor
        if q.task != "rec":
            assert q.span is not None
            assert (q.span.start_s, q.span.end_s) == pytest.approx(
                (start, min(end, scene.duration_s)), abs=1e-9
            )
    assert set(kinds) == {"look", "relation", "object", "interaction", "action_only", "look_and_action"}
    assert min(kinds.values()) >= 5


def test_every_absent_sentence_is_true_of_nothing_and_nearly_true_of_something() -> None:
    absent = [(s, q) for s, q in referring() if not q.present]
    assert {q.kind for _, q in absent} == {"absent_look", "absent_action"}
    for scene, q in absent:
        said = read(q.query)
        assert true_of(scene, said) == [] and q.actor is None and q.span is None
        wrong = [
            len(said.who - {a.size, a.texture, a.colour, a.shape})
            + (
                said.action is not None
                and all(e.action != said.action and said.action not in seen_as(e) for e in a.events)
            )
            for a in scene.actors
        ]
        assert min(wrong) == 1, (q.query, wrong)


def test_absent_sentences_come_as_often_as_asked() -> None:
    grounded = [q for _, q in asked(("stvg",)) if q.task == "stvg"]
    share = np.mean([not q.present for q in grounded])
    assert 0.14 < share < 0.26
    assert all(q.present for _, q in asked(("svg",)))
    for rate in (0.0, 1.0):
        scene = make_scene("val", 21, 3)
        made = make_questions(scene, np.random.default_rng(0), ("stvg",), 6, absent_rate=rate)
        assert made and all(q.present == (rate == 0.0) for q in made)


def test_the_second_reader_agrees_with_matches() -> None:
    """On random phrases, true or not: both find the same things."""
    rng = np.random.default_rng(4)
    seen: Counter[int] = Counter()
    for index in range(150):
        scene = make_scene("val", 22, index)
        for _ in range(8):
            actor = scene.actors[int(rng.integers(len(scene.actors)))]
            look = shortened(full_look(actor), rng)
            if look == Look():
                continue
            action = None if rng.random() < 0.4 else str(rng.choice(ACTIONS))
            other = full_look(scene.actors[int(rng.integers(len(scene.actors)))])
            related = rng.random() < 0.3 and action not in ("touch", "follow")
            phrase = Phrase(
                look,
                action,
                Look(colour=other.colour, shape=other.shape)
                if related or action in ("touch", "follow")
                else None,
                str(rng.choice(("left_of", "right_of", "above", "below"))) if related else None,
            )
            form = str(rng.choice(("declarative", "interrogative", "noun")))
            found = sorted((m.actor, m.span.start_s, m.span.end_s) for m in matches(scene, phrase))
            again = sorted(true_of(scene, read(say(phrase, rng, form))))
            assert [f[0] for f in found] == [f[0] for f in again]
            assert np.allclose([f[1:] for f in found], [f[1:] for f in again])
            seen[len(found)] += 1
    assert min(seen[0], seen[1], seen[2]) > 10


def test_a_question_says_its_relation() -> None:
    phrase = Phrase(Look(), "spin", Look(colour="red", shape="ring"), "left_of")
    assert "to the left of the red ring" in say(phrase, np.random.default_rng(0), "interrogative")


# --- words ---------------------------------------------------------------------------------------


def test_every_action_can_be_said_and_read() -> None:
    assert set(ACTION_WORDS) == set(ACTIONS) == set(MEANING.values())
    for action, options in ACTION_WORDS.items():
        assert all(MEANING[words] == action for words in options)


@pytest.mark.parametrize(
    ("phrase", "form", "text"),
    [
        (
            Phrase(Look(colour="red", shape="circle"), "leave"),
            "declarative",
            "the red circle (leaves|goes away)",
        ),
        (Phrase(Look(size="big"), "spin"), "noun", "the big thing that (spins|turns around)"),
        (Phrase(Look(colour="red"), "grow"), "interrogative", r"which red thing (grows|gets bigger)\?"),
        (Phrase(Look(), "blink"), "interrogative", r"what (blinks|flashes)\?"),
        (Phrase(Look(), "blink"), "noun", "something (blinks|flashes)"),
        (Phrase(Look(None, "striped", "blue", "star")), "declarative", "the striped blue star"),
        (Phrase(Look(None, "plain", "blue", "star")), "declarative", "the blue star"),
        (
            Phrase(Look(shape="ring"), None, Look(colour="cyan"), "left_of"),
            "declarative",
            "the ring to the left of the cyan thing",
        ),
        (
            Phrase(Look(shape="ring"), "touch", Look(shape="cross")),
            "declarative",
            "the ring touches the cross",
        ),
        (Phrase(Look(shape="ring"), "follow", wants="other"), "declarative", r"what does the ring follow\?"),
    ],
)
def test_phrases_in_words(phrase: Phrase, form: str, text: str) -> None:
    assert re.fullmatch(text, say(phrase, np.random.default_rng(0), form))


def test_shortened_descriptions_leave_out_but_never_change() -> None:
    rng = np.random.default_rng(0)
    look = Look("big", "striped", "red", "star")
    short = [shortened(look, rng) for _ in range(300)]
    for one in short:
        for key in ("size", "texture", "colour", "shape"):
            assert getattr(one, key) in (None, getattr(look, key))
    assert sum(s.size is None for s in short) > 180 and sum(s.shape is None for s in short) < 90
    assert all(shortened(replace(look, texture="plain"), rng).texture is None for _ in range(50))
    assert (with_article("orange ring"), with_article("red ring")) == ("an orange ring", "a red ring")


def test_a_relation_needs_one_other_thing_well_apart() -> None:
    def at(x: float, colour: str) -> Actor:
        return Actor("circle", colour, "plain", "small", COLOURS[colour], 0.05, x, 0.5)

    def scene(*actors: Actor) -> Scene:
        return Scene((0, 0, 0), 4.0, 1.0, actors, (0.5, 0.5, 0.5), 0.0, (0, 0, 1, 0), 0.0)

    left_of_red = Phrase(Look(colour="blue"), None, Look(colour="red"), "left_of")
    assert [m.actor for m in matches(scene(at(0.3, "blue"), at(0.7, "red")), left_of_red)] == [0]
    assert not matches(scene(at(0.7, "blue"), at(0.3, "red")), left_of_red)
    assert not matches(scene(at(0.5, "blue"), at(0.6, "red")), left_of_red)
    assert not matches(scene(at(0.3, "blue"), at(0.7, "red"), at(0.9, "red")), left_of_red)
    above = replace(left_of_red, relation="above")
    assert not matches(scene(at(0.3, "blue"), at(0.7, "red")), above)


def test_captions_name_everything_that_is_seen_and_all_it_does() -> None:
    rng = np.random.default_rng(1)
    for index in range(80):
        scene = make_scene("val", 23, index)
        text = caption(scene, rng)
        assert text.endswith(".") and text[0] == "a"
        for a, actor in enumerate(scene.actors):
            if scene.visible_span(a) is not None:
                assert f"{actor.colour} {actor.shape}" in text
        n_said = len(re.findall(rf"(?:that|then) (?:{_ACT})", text))
        assert n_said == sum(len(a.events) for a in scene.actors)


# --- questions -----------------------------------------------------------------------------------


def test_every_task_is_asked() -> None:
    assert set(VIDEO_TASKS) | set(IMAGE_TASKS) == set(TASKS)
    for tasks, still in ((VIDEO_TASKS, False), (IMAGE_TASKS, True)):
        counts = Counter(q.task for _, q in asked(tasks, still))
        assert set(counts) == set(tasks) and min(counts.values()) > 50


def test_questions_have_what_their_task_needs() -> None:
    for scene, q in (*asked(VIDEO_TASKS), *asked(IMAGE_TASKS, True)):
        assert q.query and q.query == q.query.strip() and q.query == q.query.lower()
        if q.span is not None:
            assert 0.0 <= q.span.start_s < q.span.end_s <= scene.duration_s
        if q.task in ("stvg", "svg", "tvg"):
            assert (q.span is not None) == q.present
            assert (q.actor is not None) == (q.present and q.kind != "light")
        if q.task == "rec":
            assert q.span is None and (q.actor is not None) == q.present
        if q.task in ("elc", "reg"):
            assert q.actor is not None and q.given_box is not None and q.answer
            x0, y0, x1, y1 = q.given_box
            assert 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1
        if q.task in ("elc", "tr"):
            assert q.span is not None and q.answer
        if q.task in ("qa", "dgc", "reg", "tr", "elc"):
            assert q.answer and q.present
        if q.task == "dgc":
            lefts = [scene.boxes_at([0.0])[0][a, 0, 0] for _, a in q.phrases]
            assert lefts == sorted(lefts) and len(q.phrases) == len(scene.actors)
            assert all(text in q.answer and scene.actors[a].shape in text for text, a in q.phrases)


def test_no_question_is_asked_twice() -> None:
    for index in range(150):
        scene = make_scene("val", 24, index)
        made = make_questions(scene, np.random.default_rng(index), VIDEO_TASKS, 12)
        assert len(made) <= 12
        assert len({(q.task, q.query, q.given_box, q.span) for q in made}) == len(made)


def test_questions_are_a_function_of_the_generator() -> None:
    scene = make_scene("val", 24, 0)
    one, two, three = (make_questions(scene, np.random.default_rng(k), VIDEO_TASKS, 8) for k in (1, 1, 2))
    assert one == two and one != three


def test_unknown_tasks_are_refused() -> None:
    with pytest.raises(DataError, match="unknown task find; tasks are stvg, svg"):
        make_questions(make_scene("val", 0, 0), np.random.default_rng(0), ("stvg", "find"))


def qa(kind: str) -> list[Pair]:
    found = [(s, q) for s, q in (*asked(("qa",)), *asked(("qa",), True)) if q.kind == kind]
    assert len(found) >= 10
    return found


def test_yes_and_no_are_balanced_in_videos_and_in_images() -> None:
    for still in (False, True):
        answers = Counter(q.answer for _, q in asked(("qa",), still) if q.kind == "yes_no")
        assert set(answers) == {"yes", "no"} and answers.total() > 200
        assert 0.4 <= answers["yes"] / answers.total() <= 0.6


def test_yes_means_that_it_is_true() -> None:
    for scene, q in qa("yes_no"):
        asks = re.fullmatch(r"(?:is it true: |do you see )(.*)\?", q.query)
        assert asks, q.query
        said = read(asks[1])
        moments = true_of(scene, said)
        true = {who for who, _, _ in moments}
        assert bool(true) == (q.answer == "yes"), (q.query, q.answer)
        assert q.about == (next(iter(true)) if len(true) == 1 else None)
        if said.action and len(moments) == 1:
            assert q.about_span is not None
            assert (q.about_span.start_s, q.about_span.end_s) == moments[0][1:]
        else:
            assert q.about_span is None


def test_counting_light_and_places() -> None:
    for scene, q in qa("count"):
        times = np.arange(0, scene.duration_s, 0.02)
        assert q.answer == str(int(scene.boxes_at(times)[1].any(axis=1).sum()))
    for scene, q in qa("light"):
        assert scene.dark is not None
        middle = (scene.dark.start_s + scene.dark.end_s) / (2 * scene.duration_s)
        assert q.answer == ("start" if middle < 0.4 else "end" if middle > 0.6 else "middle")
    for scene, q in qa("where"):
        named = re.fullmatch(rf"where is the ({_DESC})(?: at the start)?\?", q.query)
        assert named, q.query
        (a,) = [k for k, actor in enumerate(scene.actors) if fits(actor, words(named[1]))]
        assert q.about == a
        x0, y0, x1, y1 = scene.boxes_at([0.0])[0][a, 0]
        row = ("top", "middle", "bottom")[int(np.clip((y0 + y1) / 2 * 3, 0, 2))]
        column = ("left", "middle", "right")[int(np.clip((x0 + x1) / 2 * 3, 0, 2))]
        assert q.answer == f"{row} {column}"


def test_attributes_and_actions_are_those_of_the_one_named() -> None:
    for scene, q in qa("attribute"):
        named = re.fullmatch(rf"what (colour|shape) is the (?:thing that ({_ACT})|({_DESC}))\?", q.query)
        assert named, q.query
        if named[2]:
            who = [a for a in scene.actors if any(e.action == MEANING[named[2]] for e in a.events)]
        else:
            who = [a for a in scene.actors if fits(a, words(named[3]))]
        assert len(who) == 1 and q.answer == getattr(who[0], named[1])
        assert q.about is not None and scene.actors[q.about] is who[0]
        moments = true_of(scene, Read(frozenset(), MEANING[named[2]])) if named[2] else []
        if len(moments) == 1:
            assert q.about_span is not None
            assert (q.about_span.start_s, q.about_span.end_s) == moments[0][1:]
        else:
            assert q.about_span is None
    for scene, q in qa("action"):
        named = re.fullmatch(rf"what does the ({_DESC}) do\?", q.query)
        assert named, q.query
        (actor,) = [a for a in scene.actors if fits(a, words(named[1]))]
        assert [e.action for e in actor.events] == [MEANING[q.answer]]
        assert q.about is not None and scene.actors[q.about] is actor
        assert q.about_span == actor.events[0].span


def overlap(one: Event, other: Event) -> float:
    return max(0.0, min(one.end_s, other.end_s) - max(one.start_s, other.start_s))


def test_spans_of_tr_and_elc_are_those_of_what_is_told() -> None:
    for scene, q in asked(("tr", "elc")):
        everything = [(actor, e) for actor in scene.actors for e in actor.events]
        (own,) = [e for _, e in everything if (e.start_s, e.end_s) == (q.span.start_s, q.span.end_s)][:1]
        during: Sequence[tuple[Actor, Event]]
        if q.task == "elc":
            during = [(scene.actors[q.actor], own)]
        else:
            during = [
                (actor, e)
                for actor, e in everything
                if overlap(e, own) > 0.5 * min(e.end_s - e.start_s, own.end_s - own.start_s)
            ]
        said = [read(part) for part in q.answer.split(" and ")]
        assert [s.action for s in said] == [e.action for _, e in during]
        assert all(fits(actor, s.who) for s, (actor, _) in zip(said, during, strict=True))


def test_truth_boxes_are_those_of_the_target_in_the_span() -> None:
    for scene, q in asked(("stvg", "svg", "tvg"))[:200]:
        times = np.linspace(0, scene.duration_s, 23, endpoint=False)
        boxes, has = truth_boxes(scene, q, times)
        assert boxes.shape == (23, 4) and has.shape == (23,) and not boxes[~has].any()
        if q.actor is None:
            assert not has.any()
            continue
        all_boxes, visible = scene.boxes_at(times)
        inside = [q.span.start_s <= t < q.span.end_s for t in times]
        assert has.tolist() == [bool(i and v) for i, v in zip(inside, visible[q.actor], strict=True)]
        assert np.array_equal(boxes[has], all_boxes[q.actor][has])


def test_darkness_is_asked_for_and_has_no_box() -> None:
    light = [(s, q) for s, q in asked(("tvg",)) if q.kind == "light"]
    assert len(light) >= 10
    for scene, q in light:
        assert q.span == scene.dark and isinstance(q.span, Span) and q.actor is None
        assert "dark" in q.query or "light" in q.query
