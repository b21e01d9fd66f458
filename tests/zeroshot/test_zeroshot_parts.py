"""The parts of the zero-shot method: identities, weights of small things, intervals, sub-queries."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tubelet.errors import ModelError, QueryError
from tubelet.zeroshot.decompose import INSTRUCTION, by_model, by_rules, question_of
from tubelet.zeroshot.intervals import SIGNIFICANT, adaptive, best_run, interval, otsu, p_of_run
from tubelet.zeroshot.maps import assemble, choose_token, consistency, epsilon_for, relative
from tubelet.zeroshot.reattention import gap, objective, tune, yes_no_ids
from tubelet.zeroshot.scoring import (
    bilinear_weights,
    box_weights,
    mask_weights,
    pixel_frame_scores,
    track_scores,
)
from tubelet.zeroshot.settings import QUESTION, ZeroShotSettings, preset

# --- tuning ----------------------------------------------------------------------------------------


def quadratic(prompt: torch.Tensor) -> torch.Tensor:
    """Gaps of a general prompt and a sub-query that depend on the prompt in different ways."""
    return torch.stack(
        [prompt.sum() * 0.1, (prompt * torch.arange(6.0, dtype=prompt.dtype)).sum() - prompt.square().sum()]
    )


def gradient_at(prompt: torch.Tensor) -> torch.Tensor:
    prompt = prompt.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(objective(quadratic(prompt), "published"), prompt)
    return gradient


def test_effective_steps_of_the_published_averaging() -> None:
    """Rate 8, averaging 0.5: -4 g0 after one epoch, -8 g0 - 2 g1 after two (section 10.5 of the note)."""
    start = torch.zeros(6, dtype=torch.float64)
    published = {"rate": 8.0, "averaging": 0.5}
    one = tune(quadratic, start, ZeroShotSettings(epochs=1, **published))
    g0, g1 = gradient_at(start), gradient_at(one)
    torch.testing.assert_close(one, -4 * g0)
    torch.testing.assert_close(
        tune(quadratic, start, ZeroShotSettings(epochs=2, **published)), -8 * g0 - 2 * g1
    )
    plain = tune(quadratic, start, ZeroShotSettings(epochs=1, rate=8.0))
    torch.testing.assert_close(plain, -8 * g0)


def test_no_rate_and_no_epoch_change_nothing() -> None:
    start = torch.zeros(6)
    assert not tune(quadratic, start, ZeroShotSettings(rate=0.0, epochs=3)).any()
    assert not tune(quadratic, start, ZeroShotSettings(epochs=0)).any()
    with pytest.raises(QueryError, match="at least one sub-query"):
        objective(torch.zeros(1), "published")


def test_gap_counts_all_spellings() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, 5.0])
    assert float(gap(logits, (1, 2), (0,))) == pytest.approx(np.log(np.e + np.e**2))
    assert float(gap(logits, (3,), (2,))) == 3.0


def test_yes_and_no_come_from_the_tokenizer() -> None:
    from tubelet.pico import pico_tokenizer

    tokenizer = pico_tokenizer()
    yes, no = yes_no_ids(tokenizer, "exact")
    assert tokenizer.decode([yes[0]]).strip() == "yes" and tokenizer.decode([no[0]]).strip() == "no"
    assert set(yes) <= set(yes_no_ids(tokenizer, "variants")[0])

    class Letters:
        unk_token_id = 0

        def convert_tokens_to_ids(self, piece: str) -> int:
            return 0

        def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
            return {"input_ids": [ord(c) for c in text]}

    with pytest.raises(ModelError, match="no single token for 'yes'"):
        yes_no_ids(Letters(), "variants")


def test_exact_yes_is_the_piece_without_a_space() -> None:
    """Vicuna has "yes" and " yes", and its tokenizer writes the second; the published ids are the first."""

    class Spaced:
        unk_token_id = 0
        vocabulary = ("<unk>", "yes", "\u2581yes", "no", "\u2581no", "\u2581Yes", "\u2581No")

        def convert_tokens_to_ids(self, piece: str) -> int:
            return self.vocabulary.index(piece) if piece in self.vocabulary else 0

        def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
            return {"input_ids": [self.convert_tokens_to_ids("\u2581" + word) for word in text.split()]}

    assert yes_no_ids(Spaced(), "exact") == ((1,), (3,))
    assert yes_no_ids(Spaced(), "variants") == ((1, 2, 5), (3, 4, 6))


# --- maps ------------------------------------------------------------------------------------------


def test_reversing_twice_is_the_identity_and_maps_add_up() -> None:
    forward = np.random.default_rng(0).random((4, 2, 3))
    np.testing.assert_allclose(assemble(np.zeros_like(forward), forward[::-1]), forward)
    assert consistency(forward, forward[::-1]) == pytest.approx(1.0)
    assert consistency(forward, np.zeros_like(forward)) == 0.0
    assert consistency(forward, forward) < 1.0


def test_the_token_is_chosen_by_the_rule() -> None:
    """Row 0 is bright everywhere in both prompts, row 1 only where the question looks."""
    question, general = np.full((2, 1, 2, 2), 0.01), np.full((2, 1, 2, 2), 0.01)
    question[0], general[0] = 0.2, 0.2
    question[1, 0, 1, 0] = 0.1
    offsets = (-4, -3)
    assert choose_token(question, general, offsets, ZeroShotSettings(token="raw"))[1] == -4
    found, token = choose_token(question, general, offsets, ZeroShotSettings(token="relative"))
    assert token == -3 and int(found.argmax()) == 2
    assert choose_token(question, general, offsets, ZeroShotSettings(token="fixed", token_offset=-4))[1] == -4
    mean, none = choose_token(question, general, offsets, ZeroShotSettings(token="mean"))
    assert none is None
    np.testing.assert_allclose(
        mean, relative(question.mean(0), general.mean(0), epsilon_for(ZeroShotSettings(), 4))
    )
    with pytest.raises(QueryError, match="no candidate"):
        choose_token(question, general, offsets, ZeroShotSettings(token="fixed", token_offset=-9))


def test_epsilon_follows_the_number_of_tokens() -> None:
    assert epsilon_for(ZeroShotSettings(), 720) == pytest.approx(1e-4)
    assert epsilon_for(ZeroShotSettings(), 7200) == pytest.approx(1e-5)
    assert epsilon_for(ZeroShotSettings(scale_epsilon=False), 7200) == 1e-4


# --- weights ---------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    x=st.floats(0, 0.9),
    y=st.floats(0, 0.9),
    w=st.floats(0.005, 0.5),
    h=st.floats(0.005, 0.5),
    n=st.integers(1, 9),
)
def test_nothing_vanishes(x: float, y: float, w: float, h: float, n: int) -> None:
    """However small, a box keeps a weight: at least a quarter in one cell (it can lie on a corner of four)."""
    box = np.array([[[x, y, min(x + w / n, 1.0), min(y + h / n, 1.0)]]])  # at most half a cell wide and high
    weights = box_weights(box, np.ones((1, 1), dtype=bool), (n, n))
    assert weights.shape == (1, 1, n, n) and 0.2499 <= weights.max() <= 1.0
    assert not box_weights(box, np.zeros((1, 1), dtype=bool), (n, n)).any()


def test_weights_are_areas() -> None:
    box = np.array([[[0.0, 0.0, 0.75, 0.5]]])
    weights = box_weights(box, np.ones((1, 1), dtype=bool), (2, 2))[0, 0]
    np.testing.assert_allclose(weights, [[1.0, 0.5], [0.0, 0.0]])
    mask = np.zeros((1, 1, 8, 8), dtype=bool)
    mask[0, 0, :4, :6] = True
    np.testing.assert_allclose(mask_weights(mask, (2, 2))[0, 0], weights)
    tiny = np.zeros((1, 1, 60, 60), dtype=bool)
    tiny[0, 0, 2, 2] = True
    assert not bilinear_weights(tiny, (6, 6)).any()  # published: it is not there
    assert mask_weights(tiny, (6, 6))[0, 0, 0, 0] == 1.0
    odd = mask_weights(np.ones((1, 1, 7, 5), dtype=bool), (3, 2))
    np.testing.assert_allclose(odd, 1.0)


@pytest.mark.parametrize("seed", range(6))
def test_masks_are_only_looked_at_where_they_are(seed: int) -> None:
    """Equal to the plain definitions over all pixels; empty masks, one pixel and full pictures included."""
    rng = np.random.default_rng(seed)
    masks = rng.random((2, 3, 17, 11)) < rng.uniform(0.02, 0.6)
    masks[0, 0], masks[0, 1] = False, True
    masks[1, 0] = False
    masks[1, 0, 4, 7] = True
    values = rng.normal(size=(3, 4, 3))  # also below 0: pixels outside of a mask count as 0
    large = np.stack([bilinear_weights(v[None, None], (17, 11))[0, 0] for v in values])
    wanted = np.where(masks, large, 0.0).max((2, 3))
    np.testing.assert_allclose(pixel_frame_scores(values, masks), wanted, atol=1e-12)
    for p, t in np.ndindex(2, 3):
        fine = np.repeat(
            np.repeat(masks[p, t], 4, axis=0), 3, axis=1
        )  # pixels cut so that cells hold whole pieces
        area = fine.reshape(4, 17, 3, 11).sum((1, 3)) / 12
        smaller = max(min(masks[p, t].sum(), 17 * 11 / 12), 1e-12)
        np.testing.assert_allclose(
            mask_weights(masks, (4, 3))[p, t], np.minimum(area / smaller, 1), atol=1e-12
        )


def test_no_track_one_track_and_many() -> None:
    rel = np.random.default_rng(0).random((3, 2, 2))
    assert track_scores(rel, np.zeros((0, 3, 2, 2))).shape == (0,)
    assert track_scores(rel, np.ones((1, 3, 2, 2)))[0] == rel.max()
    many = np.zeros((500, 3, 2, 2))
    many[321, 1, 0, 1] = 1.0
    assert int(track_scores(rel, many).argmax()) == 321


# --- intervals -------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(
    scores=st.lists(st.floats(0, 5), min_size=1, max_size=25),
    rule=st.sampled_from(["window", "top_k", "adaptive"]),
    k=st.integers(1, 12),
)
def test_an_interval_lies_in_the_clip(scores: list[float], rule: str, k: int) -> None:
    first, last = interval(scores, rule, k)
    assert 0 <= first <= last < len(scores)
    if rule == "window":
        assert first <= int(np.argmax(scores)) <= last and last - first <= k


def test_intervals_by_number() -> None:
    scores = np.array([0.1, 0.2, 0.9, 0.8, 0.85, 0.1, 0.15, 0.1])
    assert best_run(scores) == (2, 4) and 0.2 < otsu(scores) < 0.8
    assert interval(scores, "window", 2) == (2, 4)
    assert interval(scores, "top_k", 3) == (2, 4)
    assert adaptive(np.full(5, 0.3)) == best_run(np.full(5, 0.3)) == (0, 4)
    with pytest.raises(QueryError, match="interval rules"):
        interval(scores, "best")
    with pytest.raises(QueryError, match="one score per frame"):
        interval([], "window")


def overlap(a: tuple[int, int], b: tuple[int, int]) -> float:
    shared = max(0, min(a[1], b[1]) - max(a[0], b[0]) + 1)
    return shared / (a[1] - a[0] + b[1] - b[0] + 2 - shared)


def test_scores_without_signal_give_the_visible_time() -> None:
    """Attention scores that know nothing of time: a run of the highest would be much worse than all of it."""
    rng = np.random.default_rng(3)
    visible = np.ones(20, dtype=bool)
    visible[[0, 1, 9, 19]] = False
    truth, told, before = (6, 14), [], []
    for _ in range(60):
        scores = np.where(visible, rng.lognormal(0, 0.5, 20), 0.0)
        told.append(overlap(adaptive(scores, visible), truth))
        before.append(overlap(best_run(scores), truth))
    whole = overlap((2, 18), truth)
    assert np.mean(told) > 0.97 * whole and np.mean(before) < 0.8 * whole


def test_an_event_in_the_scores_is_found() -> None:
    rng = np.random.default_rng(4)
    visible = np.ones(20, dtype=bool)
    visible[:3] = False
    found = []
    for start in range(3, 13):
        scores = np.where(visible, 0.5 + 0.1 * rng.random(20), 0.0)
        scores[start : start + 7] += 0.5
        found.append(overlap(adaptive(scores, visible), (start, start + 6)))
    assert np.mean(found) > 0.95
    gap = np.array([0.1] * 5 + [0.9, 0.9, 0.9, 0.0, 0.9, 0.9, 0.9] + [0.1] * 8)
    assert adaptive(gap, gap > 0) == (5, 11)  # not seen for one frame: bridged


def test_when_scores_say_something_about_time() -> None:
    spike = np.array([9.0] + [1.0, 1.1] * 8)
    assert p_of_run(spike) > 0.5 and adaptive(spike) == (0, 16)
    step = np.array([0.1] * 6 + [0.9] * 6 + [0.1] * 6)
    assert p_of_run(step) <= SIGNIFICANT and adaptive(step) == (6, 11)
    assert p_of_run(step) == p_of_run(1e-9 * step) and adaptive(step * 1e-9) == (6, 11)
    assert p_of_run(np.array([0.1, 0.9, 0.9, 0.1])) > SIGNIFICANT  # four frames cannot tell
    assert p_of_run(np.full(9, 0.3)) == p_of_run(np.ones(1)) == 1.0
    assert adaptive(step, np.zeros(18, dtype=bool)) == (0, 17)


# --- sub-queries -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sentence", "attribute", "action"),
    [
        ("the red circle spins", "the red circle", "the circle spins"),
        (
            "The tall man in purple clothes walks away and sits down.",
            "The tall man in purple clothes",
            "the man walks away and sits down",
        ),
        ("the woman who holds a cup", "the woman", "the woman holds a cup"),
        ("a white dog on the left of the sofa", "a white dog on the left of the sofa", None),
        ("which red ball rolls away?", "the red ball", "the ball rolls away"),
        ("what does the child push?", "an object that the child pushes", "an object that the child pushes"),
        ("who opens the door?", "a person who opens the door", "a person opens the door"),
        (
            "the woman in a green dress beside the glass door",
            "the woman in a green dress beside the glass door",
            None,
        ),
    ],
)
def test_rules_split_sentences(sentence: str, attribute: str | None, action: str | None) -> None:
    parts = by_rules(sentence)
    assert (parts.attribute, parts.action, parts.source) == (attribute, action, "rules")


def test_the_wording_of_a_sub_query() -> None:
    assert question_of("the man in red. ", QUESTION) == "Is there the man in red in this video?"
    assert question_of("a dog", "do you see {text}?") == "do you see a dog?"


@settings(max_examples=150, deadline=None)
@given(sentence=st.text(max_size=60), answer=st.text(max_size=80))
def test_no_sentence_and_no_answer_break_it(sentence: str, answer: str) -> None:
    for parts in (by_rules(sentence), by_model(sentence, lambda _: answer, "model")):
        assert parts.attribute is None or parts.attribute.strip()
        assert parts.action is None or parts.action.strip()


def test_a_model_is_asked_once_more_and_then_the_rules_decide() -> None:
    answers = iter(["I think", '{"attribute": "the red circle", "action": "the circle spins"} and more'])
    parts = by_model("the red circle spins", lambda _: next(answers), "helper")
    assert (parts.attribute, parts.action, parts.source) == ("the red circle", "the circle spins", "helper")
    asked: list[str] = []

    def prose(text: str) -> str:
        asked.append(text)
        return '{"attribute": 3}'

    parts = by_model("the red circle spins", prose, "helper")
    assert len(asked) == 2 and asked[0].rstrip().endswith("the red circle spins")
    assert asked[1].startswith(asked[0]) and "no text under 'attribute'" in asked[1][len(asked[0]) :]
    assert parts.source == "rules" and "helper gave no usable parts" in parts.note
    other = json.dumps({"attribute": "quux", "action": ""})
    assert "not made of words" in by_model("the red circle", lambda _: other, "helper").note


def test_a_request_without_an_answer_is_repeated_as_it_was() -> None:
    asked: list[str] = []

    def silent(text: str) -> str:
        asked.append(text)
        raise ValueError("nobody there")

    assert "nobody there" in by_model("the red circle spins", silent, "helper").note
    assert len(asked) == 2 and asked[0] == asked[1]


@pytest.mark.parametrize(
    ("sentence", "attribute", "action"),
    [
        ("who feeds the goat by the fence?", "", "a person feeds the goat by the fence"),
        ("who is near the goat?", "a person near the goat", None),
        ("what does the girl kick?", "", "an object that the girl kicks"),
        ("who is near the goat?", "someone", ""),
        ("the man is seated at the desk", "the man", "the man sits at the desk"),
        ("a boy carried the two boxes", "a boy", "a boy carries two boxes"),
        ("the children fought", "the children", "the child fights"),
        ("穿红衣服的男人站起来然后坐下", "穿红衣服的男人", "男人站起来然后坐下"),
    ],
)
def test_good_answers_are_kept(sentence: str, attribute: str | None, action: str | None) -> None:
    reply = json.dumps({"attribute": attribute, "action": action})
    parts = by_model(sentence, lambda _: reply, "helper")
    assert parts.source == "helper" and parts.note == ""
    assert not attribute or parts.attribute == attribute
    assert not action or parts.action == action


@pytest.mark.parametrize(
    ("sentence", "part"),
    [
        ("the goat runs", "a person"),  # stands for nothing in a statement
        ("who feeds the goat?", "a person juggles knives"),
        ("the man is seated at the desk", "the woman dances slowly"),
        ("穿红衣服的男人站起来", "一只白色小狗"),
    ],
)
def test_words_from_elsewhere_are_not(sentence: str, part: str) -> None:
    reply = json.dumps({"attribute": part, "action": ""})
    assert "not made of words" in by_model(sentence, lambda _: reply, "helper").note


def test_the_last_usable_object_of_an_answer_counts() -> None:
    good = '{"attribute": "the red circle", "action": "the circle spins"}'
    draft = '{"attribute": "the red", "action": ""}'
    for answer in (
        f"<think>perhaps {draft}, or {{no}}</think>\n{good}",
        f"{draft}\nOn second thoughts:\n```json\n{good}\n```",
        f'{good} {{"attribute": "a zebra", "action": "it eats"}} {{broken',
        f'{{"answer": {good}}}',
    ):
        parts = by_model("the red circle spins", lambda _, answer=answer: answer, "helper")
        assert (parts.attribute, parts.action, parts.source) == (
            "the red circle",
            "the circle spins",
            "helper",
        )
    for answer, said in ((f"<think>perhaps {draft}", "before its thoughts do"), ("{" * 9000, "broken JSON")):
        assert said in by_model("the red circle spins", lambda _, answer=answer: answer, "helper").note


def test_the_examples_of_the_instruction_speak_of_the_target() -> None:
    """Every example passes the check of answers, and of a question it describes what is asked for, not the asker."""
    lines = INSTRUCTION.splitlines()
    pairs = [(lines[k], lines[k + 1]) for k, line in enumerate(lines[:-1]) if line.startswith("Sentence: ")]
    questions = 0
    for line, answer in pairs:
        sentence = line.removeprefix("Sentence: ")
        parts = by_model(sentence, lambda _, answer=answer: answer, "helper")
        assert parts.source == "helper" and not parts.note
        said = json.loads(answer)
        if sentence.startswith(("what", "who")):
            questions += 1
            target = "an object" if sentence.startswith("what") else "a person"
            assert all(not part or part.startswith(target) for part in said.values())
            assert all(part.startswith(target) for part in (parts.attribute, parts.action) if part)
    assert questions >= 3


def test_presets_and_mistakes() -> None:
    assert (
        preset("published").averaging == 0.5
        and preset("paper").loss == "paper"
        and not preset("tubelet").spatial
    )
    full = preset("tubelet").with_quality()
    assert full.spatial and full.temporal and full.assemble
    with pytest.raises(QueryError, match="presets are"):
        preset("best")
    for wrong in ({"token": "loud"}, {"k": 0}, {"averaging": 0.0}, {"question": "is it?"}):
        with pytest.raises(QueryError):
            ZeroShotSettings(**wrong)
