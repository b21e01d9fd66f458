"""LLaVA-ST as a grounder: every task on real files, side by side or one by one, and what a user may ask wrongly."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import FrozenInstanceError, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tubelet
from tubelet.errors import ModelError, QueryError, VideoError
from tubelet.frames import Clip, FrameGrid
from tubelet.llava_st import generate, official_layout
from tubelet.llava_st import grounder as grounder_module
from tubelet.llava_st.answers import parse_answer
from tubelet.llava_st.asking import IMAGE_TASKS, VIDEO_TASKS, Asking
from tubelet.llava_st.checkpoint import load_llava_st, save_llava_st
from tubelet.llava_st.convert import convert_to_official
from tubelet.llava_st.coordinates import span_anchors
from tubelet.llava_st.grounder import SIDE_BY_SIDE, EncodedVideo, LlavaSTGrounder
from tubelet.llava_st.prompts import ANSWERS, prompt_ids, text_ids
from tubelet.llava_st.readout import Given, clock_of, read_tubes
from tubelet.llava_st.sampling import sample_frames, thin_clip
from tubelet.tube import TASKS, Prediction, Span
from tubelet.video import open_video, read_clip
from tubelet.world.files import make_world

FRAMES = 8
SHORT = Asking(max_new_tokens=18)
FREE = Asking(constrained=False, max_new_tokens=6)
BOX = (0.1, 0.2, 0.5, 0.7)
SENTENCES = (
    "the red circle that spins",
    "the blue star",
    "what moves to the left?",
    "走っている赤い丸",
    "<video> <|im_end|> <TEMP-012>",
)


@pytest.fixture(scope="module")
def folder(official_folder: Path, geometry: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tubelet folder: mode fixed, 8 frames."""
    bundle = load_llava_st(official_folder, mode="fixed", geometry=geometry)
    bundle.model.config = replace(bundle.config, frames=FRAMES, domain="noise")
    return save_llava_st(replace(bundle, official={}), tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def tiny(folder: Path) -> Any:
    return tubelet.load(folder, device="cpu")


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    world = tmp_path_factory.mktemp("pictures")
    make_world(world, n=1, seed=4, tasks=("rec",), height=48)
    return next((world / "images").glob("*.png"))


@pytest.fixture(scope="module")
def encoded(tiny: Any, toy_video: Path) -> Any:
    return tiny.encode(toy_video)


@pytest.fixture(scope="module")
def encoded_image(tiny: Any, picture: Path) -> Any:
    return tiny.encode(picture)


def given_for(task: str, state: EncodedVideo) -> dict[str, Any]:
    duration = state.grid.duration_s
    span = Span(0.25 * duration, 0.75 * duration) if task in ("svg", "tr", "elc") else None
    return {"span": span, "box_xyxy": BOX if task in ("reg", "elc") else None}


@pytest.fixture
def write(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """write(answer, ...) -> list of the questions asked; the model is replaced by these answers."""

    def use(*answers: str, chance: float = 0.25, ended: bool = True) -> list[str]:
        asked: list[str] = []
        left = list(answers)

        def fake(bundle: Any, read: Any, questions: Sequence[Any], *_: Any, **__: Any) -> list[Any]:
            out = []
            for question in questions:
                asked.append(question.text)
                text = left.pop(0)
                ids = tuple(text_ids(bundle.tokenizer, text))
                out.append(generate.Generated(ids, text, -1.0, ended, (chance,) * len(ids)))
            return out

        monkeypatch.setattr(grounder_module, "generate", fake)
        return asked

    return use


# --- the model answers -----------------------------------------------------------------------------


@pytest.mark.parametrize("task", [*VIDEO_TASKS, *IMAGE_TASKS])
def test_every_task(tiny: Any, encoded: Any, encoded_image: Any, task: str) -> None:
    state = encoded if task in VIDEO_TASKS else encoded_image
    extra = given_for(task, state)
    prediction = tiny.ground(state, "the red  circle ", task, **extra, asking=SHORT)
    assert prediction.task == task and prediction.query == "the red circle"
    assert prediction.video == state.name and prediction.grid == state.grid
    assert set(prediction.timings_s) == {"decode_s", "encode_s", "answer_s"}
    assert (
        prediction.provenance["method"] == "llava_st" and prediction.provenance["revision"] == tiny.revision
    )
    assert Prediction.from_json(prediction.to_json()).to_dict() == prediction.to_dict()
    if task in ("reg", "tr"):  # free words: random weights may write none
        assert prediction.tube is not None or "no words" in str(prediction.failure)
        return
    assert prediction.failure is None
    tube = prediction.tube
    assert tube is not None and prediction.confidence == tube.score and 0 < prediction.confidence <= 1
    assert len(tube) >= (0 if task == "tvg" else 1)
    assert (np.diff(tube.boxes_xyxy.reshape(-1, 2, 2), axis=1) > 0).all()
    if task in VIDEO_TASKS:
        assert tube.span.end_s <= state.grid.times_s[-1] + (1e-6 if task != "svg" else state.grid.duration_s)
    if task == "svg":
        assert tube.span == extra["span"]
    if task == "elc":
        assert tube.span.start_s == extra["span"].start_s


def test_constrained_answers_always_parse(tiny: Any, encoded: Any, encoded_image: Any) -> None:
    """Random weights, 30 questions, a tight budget."""
    asking, predictions = Asking(max_new_tokens=18, temperature=1.0, seed=3), []
    for task, count in (("stvg", 12), ("svg", 6), ("elc", 4), ("tvg", 4), ("rec", 4)):
        state = encoded if task in VIDEO_TASKS else encoded_image
        queries = [f"the thing number {number}" for number in range(count)]
        predictions += tiny.ground_many(state, queries, task, **given_for(task, state), asking=asking)
    assert len(predictions) == 30
    assert [p.failure for p in predictions if p.failure] == []
    assert all(p.tube is not None for p in predictions)
    assert len({p.text for p in predictions}) > 20
    free = tiny.ground_many(encoded, ["a", "b", "c"], "stvg", asking=FREE)
    assert all("there is no span in the answer" in str(p.failure) for p in free)  # without it nothing parses


@pytest.mark.parametrize("task", ["stvg", "svg", "tvg", "elc"])
def test_many_equals_one_by_one(tiny: Any, encoded: Any, task: str) -> None:
    extra = given_for(task, encoded)
    together = tiny.ground_many(encoded, SENTENCES, task, **extra, asking=SHORT)
    assert [p.query for p in together] == list(SENTENCES)
    for sentence, prediction in zip(SENTENCES, together, strict=True):
        alone = tiny.ground(encoded, sentence, task, **extra, asking=SHORT)
        assert (prediction.text, prediction.failure, prediction.notes) == (
            alone.text,
            alone.failure,
            alone.notes,
        )
        assert prediction.confidence == pytest.approx(alone.confidence, abs=1e-4)
        assert [replace(t, score=None) for t in prediction.tubes] == [
            replace(t, score=None) for t in alone.tubes
        ]
    if task != "elc":  # its question has no sentence
        assert len({p.text for p in together}) > 1


def test_more_questions_than_one_pass_takes(tiny: Any, encoded: Any) -> None:
    queries = [f"thing number {number}" for number in range(SIDE_BY_SIDE + 2)]
    asking = Asking(max_new_tokens=8)
    together = tiny.ground_many(encoded, queries, "tvg", asking=asking)
    assert [p.query for p in together] == queries
    for number in (0, SIDE_BY_SIDE - 1, SIDE_BY_SIDE, SIDE_BY_SIDE + 1):
        assert together[number].text == tiny.ground(encoded, queries[number], "tvg", asking=asking).text


def test_one_span_and_one_box_per_question(tiny: Any, encoded: Any) -> None:
    spans, boxes = [Span(0.2, 1.0), Span(1.0, 2.0)], [BOX, (0.0, 0.0, 0.3, 0.3)]
    both = tiny.ground_many(encoded, ["a", "b"], "elc", spans, box_xyxy=boxes, asking=SHORT)
    for span, box, prediction in zip(spans, boxes, both, strict=True):
        alone = tiny.ground(encoded, "a", "elc", span, box_xyxy=np.array(box), asking=SHORT)
        assert prediction.text == alone.text and prediction.tube.span.start_s == span.start_s
    assert both[0].text != both[1].text  # start and box are part of the question


def test_encode_once_ask_many(tiny: Any, toy_video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = {"tower": 0, "decode": 0}
    tower, decode = tiny.bundle.model.tower, grounder_module.read_clip_report

    def counted_tower(*args: Any) -> Any:
        calls["tower"] += 1
        return tower(*args)

    def counted_decode(*args: Any, **kwargs: Any) -> Any:
        calls["decode"] += 1
        return decode(*args, **kwargs)

    monkeypatch.setattr(tiny.bundle.model, "tower", counted_tower)
    monkeypatch.setattr(grounder_module, "read_clip_report", counted_decode)
    state = tiny.encode(toy_video)
    assert calls == {"tower": 1, "decode": 1}
    tiny.ground_many(state, SENTENCES, "tvg", asking=SHORT)
    tiny.ground(state, "a", "svg", Span(0.5, 1.0), asking=SHORT)
    tiny.ask(state, "what is it?", 4)
    assert calls == {"tower": 1, "decode": 1}
    tiny.ground(toy_video, "a", "tvg", asking=SHORT)
    assert calls == {"tower": 2, "decode": 2}


def test_states_do_not_change(tiny: Any, toy_video: Path) -> None:
    state = tiny.encode(toy_video)
    before = [(k.clone(), v.clone()) for k, v in state.read.cache]
    first = tiny.ground(state, SENTENCES[0], asking=SHORT)
    tiny.ground_many(state, SENTENCES, asking=SHORT)
    tiny.ask(state, "what colour is it?", 4)
    again = tiny.ground(state, SENTENCES[0], asking=SHORT)
    assert (first.text, first.tubes) == (again.text, again.tubes)
    for (keys, values), (old_keys, old_values) in zip(state.read.cache, before, strict=True):
        assert torch.equal(keys, old_keys) and torch.equal(values, old_values)
    with pytest.raises(FrozenInstanceError):
        state.grid = None
    with pytest.raises(ValueError, match="read-only"):
        state.grid.times_s[0] = 1.0


def test_ask_and_events(tiny: Any, encoded: Any, encoded_image: Any) -> None:
    answer = tiny.ask(encoded, "what colour is it?", 6)
    assert isinstance(answer, str) and tiny.ask(encoded, "what colour is it?", 6) == answer
    assert isinstance(tiny.ask(None, "what is two plus two?", 4), str)  # no picture at all
    events = tiny.describe_events(encoded, SHORT)
    assert events and all(isinstance(span, Span) and isinstance(text, str) for span, text in events)
    with pytest.raises(QueryError, match="single image"):
        tiny.describe_events(encoded_image)


def test_confidence_is_the_model_s_own_probability(tiny: Any, encoded: Any) -> None:
    """Of the coordinate words of a greedy answer, recomputed from one pass over question and answer."""
    bundle = tiny.bundle
    (written,) = generate.generate(bundle, encoded.read, ["when?"], None, max_new_tokens=6)
    prompt = prompt_ids(bundle.tokenizer, bundle.words, "when?", encoded.read.counts)
    ids = torch.tensor([[*prompt.ids, *written.ids]])
    with torch.no_grad():
        chances = bundle.model.logits(bundle.model(ids, [encoded.read.visual], [None])).softmax(-1)[0]
    expected = [float(chances[len(prompt.ids) - 1 + k, token]) for k, token in enumerate(written.ids)]
    assert written.probabilities == pytest.approx(expected, abs=1e-4) and len(expected) > 0


def test_wordings(tiny: Any, encoded: Any, write: Callable[..., list[str]]) -> None:
    asked = write(*["{<TEMP-010><TEMP-020>}<TEMP-012>:[<WIDTH-010><HEIGHT-010><WIDTH-030><HEIGHT-030>]"] * 24)
    span = Span(0.5, 1.5)
    for asking in (Asking(), Asking(wording=3), Asking(style="brief")):
        tiny.ground(encoded, "it spins", "svg", span, asking=asking)
    assert asked[0].startswith("During the span of {<TEMP-INPUT><TEMP-INPUT>}, it spins.")
    assert asked[1].startswith("Within the time frame of") and asked[2].endswith("find it spins")
    drawn = []
    for _ in range(2):
        asked.clear()
        queries = [f"it spins {number}" for number in range(8)]
        tiny.ground_many(encoded, queries, "svg", span, asking=Asking(wording_seed=5))
        drawn.append([text.split(" {")[0] for text in asked])
    assert drawn[0] == drawn[1] and len(set(drawn[0])) > 2
    with pytest.raises(QueryError, match="wordings 0 to 7"):
        tiny.ground(encoded, "it spins", "svg", span, asking=Asking(wording=8))


# --- from answers to predictions --------------------------------------------------------------------

TIMED = "<TEMP-{t:03d}>:[<WIDTH-020><HEIGHT-030><WIDTH-060><HEIGHT-090>]"


def test_fractions_run_from_the_first_to_the_last_frame(
    tiny: Any, encoded: Any, write: Callable[..., list[str]]
) -> None:
    write(f"During the span of {span_anchors(0.0, 1.0)}. Object bounding box: {TIMED.format(t=33)}")
    prediction = tiny.ground(encoded, "it spins")
    times = encoded.grid.times_s
    video = open_video(encoded.name)
    assert times[0] == 0.0 and times[-1] == video.times_s[-1] < video.duration_s
    tube = prediction.tube
    assert tube.span == Span(0.0, float(times[-1]))
    assert tube.times_s == pytest.approx([float(times[-1]) / 3])
    assert tube.boxes_xyxy[0] == pytest.approx(np.array([20, 30, 60, 90]) / 99)
    assert prediction.confidence == tube.score == pytest.approx(0.25) and prediction.notes == ()
    assert tube.boxes_at([0.0, float(times[-1])]) == pytest.approx(np.tile(tube.boxes_xyxy, (2, 1)))


def test_windows_have_their_own_clock(tiny: Any, toy_video: Path, write: Callable[..., list[str]]) -> None:
    state = tiny.encode(toy_video, Span(1.0, 2.0))
    assert state.whole == Span(1.0, 2.0) and state.grid.times_s[0] >= 1.0 and state.grid.times_s[-1] < 2.0
    write(span_anchors(0.0, 1.0))
    span = tiny.ground(state, "a", "tvg").tube.span
    assert (span.start_s, span.end_s) == (state.grid.times_s[0], state.grid.times_s[-1])
    with pytest.raises(QueryError, match="outside the video"):
        tiny.ground(state, "a", "svg", Span(2.5, 3.0))


def test_what_can_be_read_is_used(tiny: Any, encoded: Any, write: Callable[..., list[str]]) -> None:
    cut = f"{span_anchors(0.2, 0.6)} {TIMED.format(t=30)}, {TIMED.format(t=50)}, <TEMP-055>:[<WIDTH-010>"
    write(cut, "no idea", ANSWERS["official"]["absent"], ended=False)
    answered, lost, absent = tiny.ground_many(encoded, ["a", "b", "c"], "stvg")
    assert len(answered.tube) == 2 and answered.text == cut and answered.failure is None
    assert any("cut off inside a box" in note for note in answered.notes)
    assert any("max_new_tokens" in note for note in answered.notes)
    assert lost.tubes == () and "there is no span in the answer" in lost.failure and lost.text == "no idea"
    assert lost.confidence is None
    assert absent.tubes == () and absent.failure is None and not absent.found and absent.confidence is None


def test_absence_may_be_said_within_the_grammar(
    tiny: Any, encoded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that wants to say so can, one that writes something else must give coordinates."""
    ids = text_ids(tiny.bundle.tokenizer, ANSWERS["official"]["absent"])
    end, model = tiny.bundle.words.turn_end, tiny.bundle.model
    wanted = [*ids, end]
    step = iter(range(1000))

    def says_so(hidden: torch.Tensor) -> torch.Tensor:
        scores = torch.zeros(len(hidden), model.config.rows)
        scores[:, wanted[min(next(step), len(ids))]] = 9.0
        return scores

    monkeypatch.setattr(model, "logits", says_so)
    prediction = tiny.ground(encoded, "a", asking=Asking(max_new_tokens=len(ids) + 40))
    assert (
        prediction.failure is None
        and not prediction.found
        and prediction.text == ANSWERS["official"]["absent"]
    )
    wanted, step = [*ids[:2], end], iter(range(1000))
    ids = ids[:2]
    other = tiny.ground(encoded, "a", asking=Asking(max_new_tokens=40))
    assert other.found and len(other.tube) >= 1


def test_given_spans_are_kept_exactly(tiny: Any, encoded: Any, write: Callable[..., list[str]]) -> None:
    clock, duration = clock_of(encoded.grid), encoded.grid.duration_s
    start_s, end_s = clock.seconds(0.304), clock.seconds(0.696)  # between coordinate words
    at = [TIMED.format(t=t) for t in (30, 50, 69, 95)]
    write(", ".join(at), TIMED.format(t=5), at[0][8 + 3 :].lstrip(":"), "nothing", TIMED.format(t=99))
    extra = Span(start_s, end_s)
    first, outside, untimed, empty = tiny.ground_many(encoded, list("abcd"), "svg", extra)
    tube = first.tube
    assert tube.span == extra and len(tube) == 3 and tube.times_s[0] == start_s
    assert any("1 boxes lie outside" in note for note in first.notes)
    assert outside.failure is not None and "outside the span" in outside.failure
    assert untimed.tube.times_s.tolist() == [start_s] and any("no time" in n for n in untimed.notes)
    assert empty.failure == "there is no timed boxes in the answer"
    # behind the last sampled frame, but in the video
    last = tiny.ground(encoded, "a", "svg", Span(duration - 0.01, duration + 5))
    assert last.tube.span == Span(duration - 0.01, duration) and len(last.tube) == 1


def test_events_start_where_they_were_given(tiny: Any, encoded: Any, write: Callable[..., list[str]]) -> None:
    asked = write(
        f"Ends in <TEMP-080>, a man waves. Object bounding box: {TIMED.format(t=50)}",
        f"Ends in <TEMP-010>, a man waves. Object bounding box: {TIMED.format(t=50)}",
        f"a man waves {span_anchors(0.5, 0.9)}",
        "a man waves",
    )
    clock = clock_of(encoded.grid)
    start_s = clock.seconds(0.41)
    good, early, span, lost = tiny.ground_many(
        encoded, ["", "", "", ""], "elc", Span(start_s, start_s + 0.1), box_xyxy=BOX
    )
    assert asked[0].startswith("Starts in <TEMP-INPUT>, what happened")
    assert good.tube.label == "a man waves" and good.tube.span.start_s == start_s
    assert good.tube.span.end_s == pytest.approx(clock.seconds(80 / 99)) and len(good.tube) == 1
    assert "before the given start" in early.failure
    assert span.tube.span.end_s == pytest.approx(clock.seconds(89 / 99)) and len(span.tube) == 0
    assert "there is no end in the answer" in lost.failure


def test_image_answers(tiny: Any, encoded_image: Any, write: Callable[..., list[str]]) -> None:
    one, two = (
        "[<WIDTH-020><HEIGHT-030><WIDTH-060><HEIGHT-090>]",
        "[<WIDTH-000><HEIGHT-000><WIDTH-099><HEIGHT-099>]",
    )
    write(f"It appears at {one} {two}.", f"A man {one} on a field {two}.", "the zebra in the back")
    rec = tiny.ground(encoded_image, "the zebra")
    dgc = tiny.ground(encoded_image, task="dgc")
    reg = tiny.ground(encoded_image, task="reg", box_xyxy=BOX)
    assert rec.task == "rec" and rec.tube.boxes_xyxy[0] == pytest.approx(np.array([20, 30, 60, 90]) / 99)
    assert rec.tube.label == "the zebra" and any("2 boxes were given" in note for note in rec.notes)
    assert [t.label for t in dgc.tubes] == ["A man", "on a field"]
    assert dgc.tubes[1].boxes_xyxy.tolist() == [[0, 0, 1, 1]]
    assert reg.text == reg.tube.label == "the zebra in the back" and reg.confidence is None
    assert reg.tube.boxes_xyxy[0].tolist() == list(BOX)


def test_readings_without_a_model(encoded: Any) -> None:
    whole = Span(0.0, encoded.grid.duration_s)
    for task in ("svg", "tr", "elc"):
        with pytest.raises(QueryError, match="asked with a span"):
            read_tubes(parse_answer("some words"), task, encoded.grid, whole)
    with pytest.raises(QueryError, match="no tubes"):
        read_tubes(parse_answer("x"), "qa", encoded.grid, whole)
    empty = read_tubes(parse_answer(""), "tr", encoded.grid, whole, Given(Span(0, 1)))
    assert empty.failure == "the answer holds no words"


_PIECES = st.sampled_from(
    [*"{}[]:,. ", "a man", "Ends in", "<TEMP-000>", "<TEMP-040>", "<TEMP-099>", "<WIDTH-099>", "<HEIGHT-007>",
     "{<TEMP-030><TEMP-030>}", "{<TEMP-020><TEMP-070>}", TIMED.format(t=30), TIMED.format(t=99),
     "[<WIDTH-020><HEIGHT-030><WIDTH-060><HEIGHT-090>]"]
)  # fmt: skip


@given(st.lists(_PIECES, max_size=12), st.sampled_from([*VIDEO_TASKS, *IMAGE_TASKS]), st.floats(0, 0.98))
@settings(max_examples=300, deadline=None)
def test_any_answer_is_tubes_or_a_reason(pieces: list[str], task: str, at: float) -> None:
    times = np.array([0.0, 0.4, 0.9, 1.5])
    grid = FrameGrid(np.arange(4), times, Fraction(2), 2.0, 64, 48)
    whole = Span(0.0, 2.0)
    text = "".join(pieces)
    reading = read_tubes(
        parse_answer(text, task), task, grid, whole, Given(Span(2 * at, 2.0), BOX), label="x"
    )
    assert bool(reading.tubes) != (reading.failure is not None)
    for tube in reading.tubes:
        assert tube.span.end_s <= 2.0
        if task in ("svg", "elc", "tr"):
            assert tube.span.start_s == 2 * at


# --- frames ---------------------------------------------------------------------------------------


def test_frames_follow_the_published_rule(toy_video: Path) -> None:
    video = open_video(toy_video)
    n = video.n_frames
    expected = [round(i / 99 * (n - 1)) for i in range(100)]
    grid, rows = sample_frames(video, 100, repeat=True)
    assert n < 100 and grid.frame_index[rows].tolist() == expected and len(grid) == n
    grid, rows = sample_frames(video, 7)
    assert grid.frame_index.tolist() == [round(i / 6 * (n - 1)) for i in range(7)] and rows.tolist() == list(
        range(7)
    )
    grid, rows = sample_frames(video, 1000)
    assert len(grid) == len(rows) == n
    grid, _ = sample_frames(video, 1, Span(1.0, 2.0))
    assert len(grid) == 1
    clip = read_clip(video, sample_frames(video, 20)[0])
    thin, rows = thin_clip(clip, 5)
    assert len(thin) == len(rows) == 5 and thin.grid.times_s[-1] == clip.grid.times_s[-1]
    same, rows = thin_clip(clip, 30, repeat=True)
    assert len(same) == 20 and len(rows) == 30 and (np.diff(rows) >= 0).all()


def test_variable_rate_videos_are_even_in_time(toy_video: Path) -> None:
    video = open_video(toy_video)
    keep = np.r_[0:4, 5 : video.n_frames : 3]  # dense, then sparse
    uneven = replace(
        video,
        times_s=video.times_s[keep],
        keyframes=video.keyframes[keep],
        pts=video.pts[keep],
        constant_rate=False,
    )
    grid, rows = sample_frames(uneven, 6, repeat=True)
    moments = np.linspace(uneven.times_s[0], uneven.times_s[-1], 6)
    gap = float(np.diff(uneven.times_s).max())
    assert np.abs(grid.times_s[rows] - moments).max() <= gap / 2 + 1e-9


def test_clips_and_single_frames(tiny: Any, toy_video: Path) -> None:
    video = open_video(toy_video)
    clip = read_clip(video, sample_frames(video, FRAMES)[0], size=(84, 84))
    state, from_file = tiny.encode(clip), tiny.encode(video)
    assert state.name == "clip" and state.grid == from_file.grid and not state.is_image
    assert tiny.ground(state, "a", asking=SHORT).text == tiny.ground(from_file, "a", asking=SHORT).text
    one = Clip(clip.pixels[:1], replace(clip.grid, frame_index=[0], times_s=[0.0]))
    assert tiny.encode(one).is_image and tiny.ground(one, "a", asking=SHORT).task == "rec"
    single = tiny.encode(video, Span(0.0, 0.1))
    assert len(single.grid) == 1 and not single.is_image
    assert tiny.ground(single, "a", "tvg", asking=SHORT).failure is None
    assert [s.name for s in tiny.encode_many([clip, video])] == ["clip", str(toy_video)]


def test_frames_are_placed_at_their_times(tiny: Any, toy_video: Path) -> None:
    clip = read_clip(open_video(toy_video), sample_frames(open_video(toy_video), 6)[0])
    even = np.arange(6) * 0.3

    def slow(times_s: Any) -> torch.Tensor:
        tokens: torch.Tensor = tiny.encode(
            Clip(clip.pixels, replace(clip.grid, times_s=times_s))
        ).read.visual.slow
        return tokens

    assert torch.allclose(slow(even), slow(even + 0.1), atol=1e-5)  # fractions, not seconds
    assert not torch.allclose(slow(even), slow(even**2), atol=1e-3)


# --- asking wrongly -------------------------------------------------------------------------------


def test_mistakes_are_query_errors(tiny: Any, encoded: Any, encoded_image: Any) -> None:
    span = Span(0.5, 1.0)
    for state, query, task, extra, message in (
        (encoded, " ", "stvg", {}, "sentence is empty"),
        (encoded, "x" * 4001, "tvg", {}, "4001 characters"),
        (encoded, 3, "stvg", {}, "a query is a sentence"),
        (encoded, "where is <TEMP-INPUT>?", "stvg", {}, "one value per placeholder"),
        (encoded, "a", "svg", {}, "give span=Span"),
        (encoded, "a", "svg", {"span": (0.0, 1.0)}, "give span=Span"),
        (encoded, "", "tr", {}, "give span=Span"),
        (encoded, "", "elc", {"box_xyxy": BOX}, "give span=Span"),
        (encoded, "", "elc", {"span": span}, "give box_xyxy"),
        (encoded_image, "", "reg", {}, "give box_xyxy"),
        (encoded_image, "", "reg", {"box_xyxy": (10, 20, 30, 40)}, "pixels"),
        (encoded_image, "", "reg", {"box_xyxy": (0.5, 0.2, 0.1, 0.7)}, "x0 <= x1"),
        (encoded_image, "", "reg", {"box_xyxy": (0.5, 0.2)}, "four numbers"),
        (encoded_image, "", "reg", {"box_xyxy": "a box"}, "four numbers"),
        (encoded, "a", "svg", {"span": Span(100, 101)}, "outside the video"),
        (encoded, "a", "segment", {}, "unknown task 'segment'"),
        (encoded, "a", "qa", {}, "use ask"),
        (encoded, "a", "dvc", {}, "describe_events"),
        (encoded, "a", "stvg", {"span_reader": "activity"}, "span_reader is text"),
        (encoded, "a", "stvg", {"asking": Asking(style="mine")}, "no 'mine' question"),
        (encoded, "a", "stvg", {"asking": Asking(max_new_tokens=5)}, "max_new_tokens is 5"),
        *((encoded, "a", task, {"box_xyxy": BOX}, "asks about an image") for task in IMAGE_TASKS),
        *((encoded_image, "a", task, {"span": span}, "single image") for task in VIDEO_TASKS),
    ):
        with pytest.raises(QueryError, match=message):
            tiny.ground(state, query, task, **extra)
    with pytest.raises(QueryError, match="list of sentences"):
        tiny.ground_many(encoded, "a sentence")
    with pytest.raises(QueryError, match="one span per sentence"):
        tiny.ground_many(encoded, ["a", "b"], "svg", [span])
    with pytest.raises(QueryError, match="one box per sentence"):
        tiny.ground_many(encoded_image, ["a", "b"], "reg", box_xyxy=[BOX])
    with pytest.raises(QueryError, match="sentence is empty"):
        tiny.ask(encoded, " ")
    with pytest.raises(VideoError):
        tiny.ground("nowhere.mp4", "a")
    assert set(VIDEO_TASKS + IMAGE_TASKS) | {"qa"} == set(TASKS)


def test_one_bad_question_among_good_ones(tiny: Any, encoded: Any) -> None:
    queries = ["the red circle", " ", "the <WIDTH-INPUT> star", "x" * 4001, "the ring"]
    predictions = tiny.ground_many(encoded, queries, "stvg", asking=SHORT)
    for place, message in ((1, "empty"), (2, "placeholder"), (3, "4001")):
        assert message in str(predictions[place].failure) and predictions[place].grid == encoded.grid
    for place in (0, 4):
        assert predictions[place].text == tiny.ground(encoded, queries[place], "stvg", asking=SHORT).text
    partly = tiny.ground_many(encoded, ["a", "b"], "svg", [Span(0, 1), None], asking=SHORT)
    assert partly[0].failure is None and "give span=Span" in str(partly[1].failure)
    assert tiny.ground_many(encoded, []) == []


def test_states_of_other_models(tiny: Any, encoded: Any, small: Any) -> None:
    for name, revision in (("another", tiny.revision), (tiny.name, "another")):
        other = LlavaSTGrounder(small, name, revision)
        with pytest.raises(ModelError, match="encode it again"):
            other.ground(encoded, "a")
    from tubelet.spacevllm.grounder import EncodedVideo as OtherState

    theirs = OtherState("clip.mp4", encoded.grid, False, None, (tiny.name, tiny.revision))  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="encode it again"):
        tiny.ground(theirs, "a")


def test_untrained_models_say_so(tiny: Any, toy_video: Path, encoded: Any) -> None:
    fresh = tiny.untrained(seed=1)
    prediction = fresh.ground(toy_video, "a", asking=SHORT)
    assert prediction.notes[-1] == "this model is untrained: its answers are random"
    assert prediction.provenance["trained"] is False and prediction.failure is None
    trained = tiny.ground(encoded, "a", asking=SHORT)
    assert trained.provenance["trained"] is True and not any("untrained" in note for note in trained.notes)
    same, other = tiny.untrained(seed=1), tiny.untrained(seed=2)
    assert torch.equal(fresh.bundle.model.embeddings, same.bundle.model.embeddings)
    assert not torch.equal(fresh.bundle.model.embeddings, other.bundle.model.embeddings)


# --- loading --------------------------------------------------------------------------------------


def test_load_tubelet_layout(folder: Path, tiny: Any, toy_video: Path) -> None:
    assert isinstance(tiny, LlavaSTGrounder) and tiny.max_frames == FRAMES and tiny.config.mode == "fixed"
    assert tiny.name == str(folder) and tiny.bundle.model.embeddings.dtype == torch.float32
    half = tubelet.load(folder, device="cpu", dtype="bfloat16")
    assert half.bundle.model.embeddings.dtype == torch.bfloat16  # type: ignore[attr-defined]
    assert half.ground(toy_video, "a", asking=SHORT).failure is None  # type: ignore[call-arg]


def test_load_published_layout(
    official_folder: Path, toy_video: Path, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelError, match="vision_heads"):
        tubelet.load(official_folder, device="cpu")  # its tower is none that is known by its width
    monkeypatch.setitem(official_layout._HEADS_OF_SIGLIP, 16, 2)
    model: Any = tubelet.load(str(official_folder), device="cpu")
    assert isinstance(model, LlavaSTGrounder) and model.config.mode == "official"
    assert model.config.repetition_penalty == 1.05  # of its generation_config.json
    state = model.encode(toy_video)  # shorter than 100 frames: they are repeated
    assert state.read.counts.slow == model.bundle.model.counts(100).slow and len(state.grid) < 100
    assert model.ground(state, "the red circle", "tvg", asking=SHORT).failure is None
    assert model.ground(picture, "the red circle", asking=SHORT).failure is None


def test_load_what_was_written_back(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """100 frames are the published code's; the model_type is then llava_qwen."""
    bundle = load_llava_st(folder)
    bundle.model.config = replace(bundle.config, frames=100)
    back = convert_to_official(save_llava_st(bundle, tmp_path / "ours"), tmp_path / "back")
    monkeypatch.setitem(official_layout._HEADS_OF_SIGLIP, 16, 2)
    assert isinstance(tubelet.load(back, device="cpu"), LlavaSTGrounder)


def test_hub_id_is_downloaded_and_loaded_alike(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: list[str] = []

    def download(name: str, **_: Any) -> str:
        asked.append(name)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    model = tubelet.load("appletea2333/LLaVA-ST-Qwen2-7B", device="cpu")
    assert asked == ["appletea2333/LLaVA-ST-Qwen2-7B"] == [model.name] and isinstance(model, LlavaSTGrounder)


def test_load_errors(folder: Path, write_official: Callable[..., Path], tmp_path: Path) -> None:
    from tubelet.spacevllm.config import SpaceVLLMConfig

    with pytest.raises(ModelError, match="is a LLaVA-ST; config"):
        tubelet.load(folder, device="cpu", config=SpaceVLLMConfig())
    with pytest.raises(ModelError, match="dtype is"):
        tubelet.load(folder, device="cpu", dtype="int8")
    plain = write_official(tmp_path / "plain", config=lambda data: data.update(mm_resampler_type=None))
    with pytest.raises(ModelError):
        tubelet.load(plain, device="cpu")  # another LLaVA
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text('["tubelet_llava_st"]')
    with pytest.raises(ModelError):
        tubelet.load(broken, device="cpu")
    lacking = write_official(tmp_path / "lacking", change=lambda tensors: tensors.pop("model.norm.weight"))
    with pytest.raises(ModelError, match=r"model\.norm\.weight|vision_heads"):
        tubelet.load(lacking, device="cpu")


def test_importing_load_needs_no_torch() -> None:
    code = "import sys, tubelet.grounder; tubelet.grounder.load; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "False"
