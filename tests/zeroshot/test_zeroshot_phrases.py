"""Sentences read by rules: their parts, what is looked for, the same over real annotations; and providers that must be
told what to look for: the subject of each sentence, looked for once, or general things."""

from __future__ import annotations

import json
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tubelet.errors import ModelError, RecipeError
from tubelet.frames import Clip, FrameGrid
from tubelet.proposals import Track, Tracks
from tubelet.zeroshot import grounder as module
from tubelet.zeroshot.decompose import by_rules, phrases_of, question_of, subject_of
from tubelet.zeroshot.grounder import ZeroShotGrounder, load_zero_shot
from tubelet.zeroshot.questions import GENERAL_PHRASES, read_sentence
from tubelet.zeroshot.settings import QUESTION, ZeroShotSettings

SETTINGS = ZeroShotSettings(frames=4)


@pytest.mark.parametrize(
    ("sentence", "subject"),
    [
        ("the tall man in red sits down", "man"),
        ("The woman who stands up and leaves.", "woman"),
        ("a white dog on the left of the sofa", "dog"),
        ("the green ring that spins", "ring"),
        ("guy standing on left", "guy"),
        ("the man wearing a hat", "man"),
        ("the tall red building", "building"),
        ("which red ball rolls to the left?", "ball"),
        ("where is the blue star?", "star"),
        ("who opens the door?", "person"),
        ("lady", "lady"),
        ('"umbrella", open', "umbrella"),
        ("there is a goat on the roof", "goat"),
        ("there are two kites above the hill", "kites"),
        ("a small goat away from a farmer", "goat"),
        ("the tall farmer inside the barn", "farmer"),
        ("the kite beneath the cloud", "kite"),
        ("the two farmers wrestle", "farmers"),
        ("the girl does a handstand", "girl"),
        ("an adult jumps", "adult"),
        ("the kite is red", "kite"),
        ("a stop sign next to the gate", "stop sign"),
        ("a group of farmers dance", "farmers"),
        ("she feeds the goat", "person"),
        ("the woman in blue holding a lamb smiles", "woman"),
        ("which of the goats jumps?", "goats"),
        ("what kind of lamp does the woman lift?", "lamp"),
        ("where does the goat in the barn sleep?", "goat"),
        ("the red", None),
        ("what does the child push?", None),
        ("the one on the left", None),
        ("left", None),
        ("12 34", None),
        ("", None),
    ],
)
def test_what_a_sentence_is_about(sentence: str, subject: str | None) -> None:
    assert subject_of(sentence) == subject


@given(st.text(max_size=80))
def test_a_subject_is_of_the_sentence_or_none(sentence: str) -> None:
    found = subject_of(sentence)
    letters = "".join(sentence.lower().replace("_", " ").split())
    assert found is None or found == "person" or (found.strip() and "".join(found.split()) in letters)
    assert all(phrase.strip() for phrase in phrases_of(sentence).phrases)


def test_what_is_looked_for() -> None:
    assert phrases_of("the goat on the roof jumps").phrases == ("goat",)
    assert phrases_of("the goat on the roof jumps").note == ""
    assert phrases_of("who feeds the goat?").phrases == ("person", "animal")  # a dog may be who chases a ball
    asked = phrases_of("what does the farmer lift?")
    assert asked.phrases == GENERAL_PHRASES and "asks for a thing without naming it" in asked.note
    named = phrases_of("the one on the left")
    assert named.phrases == ("person", *GENERAL_PHRASES) and "names no thing" in named.note
    assert {"ball", "bicycle", "dog", "chair", "car"} <= set(GENERAL_PHRASES)
    assert len(". ".join(GENERAL_PHRASES).split()) < 100  # detectors read 256 tokens


# --- parts of sentences ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sentence", "attribute", "action"),
    [
        # who and what ask for the target
        ("who is beside the goat?", "a person beside the goat", None),
        ("who is feeding the goat?", None, "a person feeding the goat"),
        ("who lifts the lamp near the door?", None, "a person lifts the lamp near the door"),
        ("who is wearing a green scarf?", "a person wearing a green scarf", None),
        ("who is in green and lifts a lamp?", "a person in green", "a person lifts a lamp"),
        ("who does the girl in blue tickle?", None, "a person that the girl tickles"),
        ("who's behind the barn?", "a person behind the barn", None),
        ("what does the farmer in the green coat carry?", None, "an object that the farmer carries"),
        ("what do the farmers in green carry?", None, "an object that the farmers carry"),
        ("what does the farmer caress in the barn?", None, "an object that the farmer caresses in the barn"),
        ("who does the goat shake hands with?", None, "a person that the goat shakes hands with"),
        ("what does the girl with the toy train push?", None, "an object that the girl pushes"),
        ("what is the girl in blue next to?", "an object that the girl in blue is next to", None),
        ("what is the girl in blue sitting on?", None, "an object that the girl is sitting on"),
        ("what is the girl in blue wearing?", None, "an object that the girl is wearing"),
        ("what is above the old barn?", "something above the old barn", None),
        ("what chases the goat?", None, "something chases the goat"),
        ("which lamp does the girl lift?", "the lamp", "the lamp that the girl lifts"),
        ("where does the goat with a bell sleep?", "the goat with a bell", "the goat sleeps"),
        ("what does the goat with a bell do?", "the goat with a bell", None),
        # "is" and a place, "is ...ing"
        ("an adult is behind a goat in the yard", "an adult behind a goat in the yard", None),
        ("the girl in blue is feeding a goat", "the girl in blue", "the girl is feeding a goat"),
        ("the girl is lifted by a man", "the girl", "the girl is lifted by a man"),
        ("the kite is red", "the kite that is red", None),
        ("there is a goat licking a gate", "a goat", "a goat licking a gate"),
        ("there is a lamp beneath the shelf", "a lamp beneath the shelf", None),
        # verbs
        ("the two men fight", "the two men", "the two men fight"),
        ("the girl does a handstand", "the girl", "the girl does a handstand"),
        ("the girl has a green scarf", "the girl with a green scarf", None),
        ("the goat jumps outdoors", "the goat", "the goat jumps outdoors"),
        ("a kite upwards of the barn", "a kite upwards of the barn", None),
        ("the farmer carried two lamps", "the farmer", "the farmer carried two lamps"),
        ("the farmer hopped forward and sneezed", "the farmer", "the farmer hopped forward and sneezed"),
        ("the man in black turns", "the man in black", "the man turns"),
        ("a girl in green clothes ride a goat", "a girl in green clothes", "a girl ride a goat"),
        # participles of the description
        ("the woman holding roses smiles", "the woman holding roses", "the woman smiles"),
        ("the sitting girl gets up", "the sitting girl", "the girl gets up"),
        ("the man covered by a blanket came in", "the man covered by a blanket", "the man came in"),
        ("sitting by the fire, the girl yawns", "the girl sitting by the fire", "the girl yawns"),
        ("the girl that the goat licks laughs", "the girl that the goat licks", "the girl laughs"),
        ("the man who is near the fire stands up", "the man near the fire", "the man stands up"),
        ("an adult man opens the gate", "an adult man", "a man opens the gate"),
        ("the man opposite the goat sneezes", "the man opposite the goat", "the man sneezes"),
        ("the boy and the girl hug", "the boy and the girl", "the boy and the girl hug"),
        ("opens the gate", None, "someone opens the gate"),
        ("the lamp that's on a shelf", "the lamp on a shelf", None),
        ("Anna Berg who yawns", "Anna Berg", "Anna Berg yawns"),
        ("the barn where two goats walked to the gate", "the barn where two goats walked to the gate", None),
        ("after the girl in blue yawns, she sits", "the girl in blue", "the girl yawns, she sits"),
    ],
)
def test_parts_by_rules(sentence: str, attribute: str | None, action: str | None) -> None:
    found = read_sentence(sentence)
    assert (found.attribute, found.action) == (attribute, action)
    parts = by_rules(sentence)
    if found.restated:  # a question cannot be put into a wording: its statement stands for the missing part
        assert parts.attribute == (attribute or found.whole) and parts.action == (action or found.whole)
        said = [question_of(text or "", QUESTION).lower() for text in (parts.attribute, parts.action)]
        assert not any(f"is there {asks}" in text for text in said for asks in ("who ", "what ", "there "))
    else:
        assert (parts.attribute, parts.action) == (attribute, action)


WORDS = "the a man men red in is are holding who what does , and jumps ride left"


@given(st.lists(st.sampled_from(WORDS.split())))
def test_no_order_of_words_breaks_the_rules(words: list[str]) -> None:
    sentence = " ".join(words)
    found = read_sentence(sentence)
    assert all(part is None or part.strip() for part in (found.attribute, found.action, found.whole))
    assert phrases_of(sentence).phrases and by_rules(sentence).source == "rules"


# --- real annotations ------------------------------------------------------------------------------

DATA = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"
NAMES = {
    "adult": {"adults", "man", "men", "woman", "women", "person", "people"},
    "child": {"children", "kid", "boy", "girl", "person"},
    "baby": {"person"},
    "watercraft": {"boat"},
}


def vidstg(kind: str) -> list[tuple[str, str]]:
    """(sentence, category of its target) of the annotations at hand."""
    files = sorted((DATA / "vidstg").glob("*_annotations.*.json"))
    if not files:
        pytest.skip("no VidSTG annotations here")
    out = []
    for file in files:
        for entry in json.loads(file.read_text(encoding="utf-8")):
            category = {thing["tid"]: thing["category"] for thing in entry["subject/objects"]}
            out += [(said["description"], category[said["target_id"]]) for said in entry[kind]]
    return out


def is_hit(phrases: Sequence[str], category: str) -> bool:
    names = {name.replace("_", " ") for name in category.split("/")}
    names |= {name.split("_")[-1] for name in category.split("/")} | NAMES.get(category, set())
    return (
        any(phrase in names or phrase.removesuffix("s") in names for phrase in phrases) or category in phrases
    )


@pytest.mark.parametrize(("kind", "floor"), [("captions", 0.98), ("questions", 0.95)])
def test_real_targets_are_looked_for(kind: str, floor: float) -> None:
    pairs = vidstg(kind)
    hits = sum(is_hit(phrases_of(text).phrases, category) for text, category in pairs)
    assert hits >= floor * len(pairs) > 0


def test_real_questions_have_parts_about_their_target() -> None:
    texts = [text for text, _ in vidstg("questions")]
    asked = ("a person ", "an object that ", "something ", "people ", "the people ")
    for text in texts:
        found = read_sentence(text)
        own = [part for part in (found.attribute, found.action) if part]
        assert own and found.restated, text
        assert all(part.startswith(asked) for part in own), (text, own)
        assert not any(f" {word} " in f" {part} " for part in own for word in ("who", "what", "does")), (
            text,
            own,
        )


def test_real_statements_have_actions_unless_they_are_about_a_place() -> None:
    places = ("behind", "beneath", "above", "next", "front", "away", "towards", "inside", "around")
    for text, _ in vidstg("captions"):
        found = read_sentence(text)
        assert found.attribute
        assert found.action or any(place in text.split() for place in places), text


def test_real_sentences_about_people_have_both_parts() -> None:
    file = DATA / "hcstvg" / "query_v2.2000.json"
    if not file.is_file():
        pytest.skip("no HC-STVG captions here")
    texts = list(json.loads(file.read_text(encoding="utf-8")).values())
    found = [read_sentence(text) for text in texts]
    both = sum(part.attribute is not None and part.action is not None for part in found)
    short = sum(len((part.attribute or "").split()) <= 12 for part in found)
    assert both >= 0.99 * len(texts) and short >= 0.98 * len(texts)


# --- providers -------------------------------------------------------------------------------------


class Detector:
    """Stands in for `propose_tracks`: finds a thing for every phrase but "unicorn", and counts."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, ...]] = []

    def __call__(self, name: str, source: Any, phrases: Sequence[str] = (), **settings: Any) -> Tracks:
        self.asked.append(tuple(phrases))
        there = [] if "unicorn" in phrases else [Track(0, *self.box(source), label=phrases[0])]
        return Tracks(source.grid, tuple(there), provider=name, settings={"phrases": list(phrases)})

    def box(self, source: Any) -> tuple[Any, Any]:
        n = len(source.grid)
        return np.tile([0.2, 0.3, 0.5, 0.6], (n, 1)), np.ones(n, dtype=bool)


@pytest.fixture
def detector(monkeypatch: pytest.MonkeyPatch) -> Detector:
    made = Detector()
    monkeypatch.setattr(module, "propose_tracks", made)
    return made


@pytest.fixture(scope="module")
def pico() -> ZeroShotGrounder:
    return load_zero_shot("pico-base", settings=SETTINGS)


def clip_of(frames: int) -> Clip:
    pixels = np.random.default_rng(frames).integers(0, 255, (frames, 48, 64, 3), dtype=np.uint8)
    return Clip(
        pixels, FrameGrid(np.arange(frames), np.arange(frames) * 0.5, Fraction(2), frames / 2, 64, 48)
    )


@pytest.mark.parametrize("frames", [1, 3])
def test_subjects_are_looked_for_once_each(pico: ZeroShotGrounder, detector: Detector, frames: int) -> None:
    grounder = ZeroShotGrounder(pico.mllm, "owlv2", SETTINGS)
    state = grounder.encode(clip_of(frames))
    assert detector.asked == []  # nothing to look for yet
    asked = ["the man in red", "a dog runs", "the man who sits", "what does he push?", "a unicorn", ""]
    found = grounder.ground_many(state, asked)
    assert detector.asked == [("man",), ("dog",), GENERAL_PHRASES, ("unicorn",)]
    assert [p.query for p in found] == asked
    assert [p.failure is None for p in found] == [True] * 4 + [False] * 2
    np.testing.assert_allclose(found[0].tube.boxes_xyxy, np.tile([0.2, 0.3, 0.5, 0.6], (frames, 1)))
    assert found[0].tube == grounder.ground(state, "the man in red").tube and len(detector.asked) == 4
    assert any("general things were looked for" in note for note in found[3].notes)
    assert not any("general things" in note for k in (0, 1, 2) for note in found[k].notes)
    assert "found nothing for 'unicorn'" in found[4].failure and "empty" in found[5].failure


def test_given_phrases_are_looked_for_at_once(pico: ZeroShotGrounder, detector: Detector) -> None:
    grounder = ZeroShotGrounder(pico.mllm, "owlv2", SETTINGS, phrases=["person"])
    state = grounder.encode(clip_of(2))
    assert detector.asked == [("person",)]
    assert grounder.ground(state, "what does he push?").found and len(detector.asked) == 1


def test_a_provider_is_checked_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no proposal provider 'yolo'"):
        load_zero_shot("pico-base", "yolo")
    with pytest.raises(RecipeError, match="no field thresold"):
        load_zero_shot("pico-base", "owlv2", thresold=0.1)
    with pytest.raises(ModelError, match="there is no model"):
        load_zero_shot("pico-base", "sam3", proposal_model=str(tmp_path / "none"))
    with pytest.raises(ModelError, match="there is no model"):
        load_zero_shot("pico-base", "grounding-dino-sam2", detector=str(tmp_path / "none"))
