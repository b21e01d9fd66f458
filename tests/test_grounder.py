"""The loaded model: every task on real files, packed or one by one, and everything a user may ask wrongly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import video_files
from tubelet.errors import ModelError, QueryError, TubeletError, VideoError
from tubelet.frames import Clip, FrameGrid
from tubelet.spacevllm.config import SpaceVLLMConfig
from tubelet.spacevllm.domain import domain_note, fit_domain, load_domain, save_domain, statistics
from tubelet.spacevllm.grounder import GROUND_TASKS, PACK_LIMIT, SpaceVLLMGrounder
from tubelet.tube import TASKS, Prediction, Span
from tubelet.video import open_video, sample_uniform

SENTENCES = (
    "the red circle that spins",
    "the blue star",
    "what moves to the left?",
    "走っている赤い丸",
    "الدائرة الحمراء",
    "the 🔴 that 🌀",
    "<video> <r_0> <|im_end|>",
)


@pytest.fixture(scope="module")
def encoded(tiny: Any, toy_video: Path) -> Any:
    return tiny.encode(toy_video)


@pytest.fixture(scope="module")
def encoded_image(tiny: Any, toy_image: Path) -> Any:
    return tiny.encode(toy_image)


def assert_alike(a: Prediction, b: Prediction, tolerance: float = 1e-4) -> None:
    assert (a.query, a.task, a.text, a.failure, a.grid) == (b.query, b.task, b.text, b.failure, b.grid)
    assert (a.confidence is None) == (b.confidence is None) and len(a.tubes) == len(b.tubes)
    if a.confidence is not None and b.confidence is not None:
        assert a.confidence == pytest.approx(b.confidence, abs=tolerance)
    for one, other in zip(a.tubes, b.tubes, strict=True):
        assert one.span.start_s == pytest.approx(other.span.start_s, abs=1e-9)
        assert one.span.end_s == pytest.approx(other.span.end_s, abs=1e-9)
        assert np.allclose(one.times_s, other.times_s)
        assert np.allclose(one.boxes_xyxy, other.boxes_xyxy, atol=tolerance)
        assert one.label == other.label


# --- tasks ---------------------------------------------------------------------------------------


def test_stvg(tiny: Any, toy_video: Path, encoded: Any) -> None:
    prediction = tiny.ground(toy_video, "  the red   circle ")
    video = open_video(toy_video)
    assert prediction.task == "stvg" and prediction.query == "the red circle"
    assert prediction.failure is None and prediction.video == str(toy_video)
    tube = prediction.tube
    assert tube is not None and len(tube) >= 2 and tube.label == "the red circle"
    assert tube.span.start_s >= 0 and tube.span.end_s <= video.duration_s
    assert tube.times_s[0] == pytest.approx(tube.span.start_s, abs=1e-6)
    assert tube.times_s[-1] == pytest.approx(tube.span.end_s, abs=1e-6)
    assert prediction.grid is not None and len(prediction.grid) == 4
    assert prediction.grid.width == video.width and prediction.grid.duration_s == video.duration_s
    assert set(prediction.timings_s) == {"decode_s", "encode_s", "answer_s"}
    assert prediction.provenance["method"] == "spacevllm" and prediction.provenance["revision"]
    assert Prediction.from_json(prediction.to_json()).to_dict() == prediction.to_dict()
    assert_alike(prediction, tiny.ground(encoded, "the red circle"))


def test_tvg_says_when_only(tiny: Any, encoded: Any) -> None:
    prediction = tiny.ground(encoded, "the light is off", task="tvg")
    assert prediction.tube is not None and len(prediction.tube) == 0


def test_svg_takes_the_given_span(tiny: Any, encoded: Any) -> None:
    duration = encoded.grid.duration_s
    span = Span(0.2 * duration, 0.7 * duration)
    prediction = tiny.ground(encoded, "the red circle", task="svg", span=span)
    assert prediction.tube is not None and prediction.tube.span == span and len(prediction.tube) >= 2
    # a span that reaches over the end is cut at it; one outside is a failure, not an exception
    long = tiny.ground(encoded, "the red circle", task="svg", span=Span(0.1, duration + 50))
    assert long.tube is not None and long.tube.span == Span(0.1, duration)
    outside = tiny.ground(encoded, "the red circle", task="svg", span=Span(duration + 1, duration + 2))
    assert outside.tube is None and "outside the video" in str(outside.failure)
    # one span per sentence
    spans = [Span(0.0, 1.0), Span(1.0, 2.0)]
    both = tiny.ground_many(encoded, ["a", "b"], "svg", spans)
    assert [p.tube.span for p in both] == spans
    # the span is part of the question: the same sentence with another span gets other boxes
    first, second = (p.tube for p in tiny.ground_many(encoded, ["a", "a"], "svg", spans))
    assert float(np.abs(first.boxes_at([1.0]) - second.boxes_at([1.0])).max()) > 1e-5


def test_rec_on_an_image(tiny: Any, toy_image: Path, encoded_image: Any) -> None:
    prediction = tiny.ground(toy_image, "the red square")
    assert prediction.task == "rec"  # the default for a single image
    tube = prediction.tube
    assert tube is not None and len(tube) == 1 and tube.boxes_xyxy.shape == (1, 4)
    assert_alike(prediction, tiny.ground(encoded_image, "the red square", task="rec"))


def test_rec_sees_the_picture(tiny: Any, tmp_path: Path) -> None:
    boxes = []
    for k, colour in enumerate(((255, 0, 0), (0, 0, 255))):
        path = tmp_path / f"{k}.png"
        picture = np.full((40, 60, 3), 90, dtype=np.uint8)
        picture[5:20, 10 + 20 * k : 30 + 20 * k] = colour
        Image.fromarray(picture).save(path)
        boxes.append(tiny.ground(path, "the square").tube.boxes_xyxy)
    assert float(np.abs(boxes[0] - boxes[1]).max()) > 1e-4


@pytest.mark.parametrize("reader", ["text", "activity", "both"])
@pytest.mark.parametrize("task", ["stvg", "tvg"])
def test_many_equals_one_by_one(tiny: Any, encoded: Any, reader: str, task: str) -> None:
    together = tiny.ground_many(encoded, SENTENCES, task, span_reader=reader)
    assert [p.query for p in together] == list(SENTENCES)
    for sentence, prediction in zip(SENTENCES, together, strict=True):
        assert_alike(prediction, tiny.ground(encoded, sentence, task, span_reader=reader))
        assert bool(prediction.text) or reader == "activity"  # words are written only where they are read
    assert len({round(p.confidence, 6) for p in together}) > 1


def test_many_equals_one_by_one_for_given_spans_and_images(
    tiny: Any, encoded: Any, encoded_image: Any
) -> None:
    spans = [Span(0.1 * k, 1.0 + 0.1 * k) for k in range(len(SENTENCES))]
    together = tiny.ground_many(encoded, SENTENCES, "svg", spans)
    for sentence, span, prediction in zip(SENTENCES, spans, together, strict=True):
        assert_alike(prediction, tiny.ground(encoded, sentence, "svg", span))
    for sentence, prediction in zip(SENTENCES, tiny.ground_many(encoded_image, SENTENCES), strict=True):
        assert_alike(prediction, tiny.ground(encoded_image, sentence))


def test_more_questions_than_one_pass_takes(tiny: Any, encoded: Any) -> None:
    sentences = [f"thing number {k}" for k in range(PACK_LIMIT + 3)]
    together = tiny.ground_many(encoded, sentences, "stvg", span_reader="activity")
    assert [p.query for p in together] == sentences
    for k in (0, PACK_LIMIT - 1, PACK_LIMIT, PACK_LIMIT + 2):
        assert_alike(together[k], tiny.ground(encoded, sentences[k], "stvg", span_reader="activity"))


def test_asking_again_gives_the_same(tiny: Any, encoded: Any) -> None:
    first = tiny.ground(encoded, SENTENCES[0]).to_dict()
    tiny.ground_many(encoded, SENTENCES)
    tiny.ask(encoded, "what colour is it?")
    second = tiny.ground(encoded, SENTENCES[0]).to_dict()
    assert {**first, "timings_s": 0} == {**second, "timings_s": 0}


def test_no_sentences(tiny: Any, encoded: Any) -> None:
    assert tiny.ground_many(encoded, []) == []


# --- asking wrongly ------------------------------------------------------------------------------


def test_one_bad_sentence_among_good_ones(tiny: Any, encoded: Any) -> None:
    """It becomes a failure in its place; the others are answered as if it were not there."""
    sentences = ["the red circle", "   ", "the blue star", "x" * 2001, "the ring"]
    predictions = tiny.ground_many(encoded, sentences)
    assert len(predictions) == 5
    for k, message in ((1, "empty"), (3, "2001 characters")):
        assert message in str(predictions[k].failure) and predictions[k].tubes == ()
        assert predictions[k].grid == encoded.grid
    for k in (0, 2, 4):
        assert_alike(predictions[k], tiny.ground(encoded, sentences[k]))
    without_span = tiny.ground_many(encoded, ["a", "b"], "svg", [Span(0, 1), None])
    assert without_span[0].failure is None and "give span=Span" in str(without_span[1].failure)
    assert [p.failure is None for p in tiny.ground_many(encoded, ["", ""])] == [False, False]


@pytest.mark.parametrize("sentence", ["", "  \n ", "x" * 2001])
def test_one_sentence_alone_is_an_error(tiny: Any, encoded: Any, sentence: str) -> None:
    with pytest.raises(QueryError, match="sentence"):
        tiny.ground(encoded, sentence)


def test_longest_sentence_is_answered(tiny: Any, encoded: Any) -> None:
    prediction = tiny.ground(encoded, "the thing that moves, " * 90 + "走る" * 9)
    assert prediction.failure is None


@pytest.mark.parametrize("sentence", SENTENCES)
def test_any_script(tiny: Any, encoded: Any, sentence: str) -> None:
    assert tiny.ground(encoded, sentence).query == sentence


def test_sentence_that_is_no_text(tiny: Any, encoded: Any) -> None:
    for bad in (None, 3, ["a list"]):
        with pytest.raises(QueryError, match="a query is a sentence"):
            tiny.ground(encoded, bad)


@pytest.mark.parametrize("task", [t for t in TASKS if t not in GROUND_TASKS])
def test_tasks_this_model_has_not(tiny: Any, encoded: Any, task: str) -> None:
    with pytest.raises(QueryError, match=f"for {task} use ask"):
        tiny.ground(encoded, "the red circle", task=task)


def test_tasks_that_do_not_exist(tiny: Any, encoded: Any) -> None:
    with pytest.raises(QueryError, match="unknown task 'segment'"):
        tiny.ground(encoded, "the red circle", task="segment")


@pytest.mark.parametrize("task", ["stvg", "svg", "tvg"])
def test_images_have_no_time(tiny: Any, encoded_image: Any, task: str) -> None:
    with pytest.raises(QueryError, match="single image: use task rec"):
        tiny.ground(encoded_image, "the red circle", task=task, span=Span(0, 1))


def test_spans_that_do_not_fit(tiny: Any, encoded: Any) -> None:
    with pytest.raises(QueryError, match="one span per sentence is needed, got 1 for 2"):
        tiny.ground_many(encoded, ["a", "b"], "svg", [Span(0, 1)])
    with pytest.raises(QueryError, match="span_reader"):
        tiny.ground(encoded, "a", span_reader="guess")


def test_states_of_another_model_are_refused(new_tiny: Callable[..., Any], tiny: Any, encoded: Any) -> None:
    other = SpaceVLLMGrounder(new_tiny(seed=9), "another model")
    with pytest.raises(ModelError, match=r"encoded by .*tiny.* not by another model: encode it again"):
        other.ground(encoded, "the red circle")
    with pytest.raises(ModelError, match="encode it again"):
        other.ask(encoded, "what is it?")


@pytest.mark.parametrize("what", ["missing", "text", "empty"])
def test_files_that_are_no_video(tiny: Any, tmp_path: Path, what: str) -> None:
    path = tmp_path / "clip.mp4"
    if what != "missing":
        path.write_bytes(b"" if what == "empty" else b"not a video at all")
    with pytest.raises(VideoError) as caught:
        tiny.ground(path, "the red circle")
    assert isinstance(caught.value, TubeletError) and "clip.mp4" in str(caught.value)


# --- other inputs --------------------------------------------------------------------------------


def clip_of(n: int, height: int = 30, width: int = 50, seed: int = 0) -> Clip:
    pixels = np.random.default_rng(seed).integers(0, 256, (n, height, width, 3), dtype=np.uint8)
    grid = FrameGrid(np.arange(n) * 3, np.arange(n) * 0.4, Fraction(15, 2), n * 0.4 + 0.1, 640, 384)
    return Clip(pixels, grid)


def test_clips(tiny: Any) -> None:
    """A clip made elsewhere: its own grid and times are kept; too many frames are thinned, evenly."""
    prediction = tiny.ground(clip_of(3), "the red circle")
    assert prediction.failure is None and prediction.grid == clip_of(3).grid and prediction.video == "clip"
    thinned = tiny.encode(clip_of(11))
    assert thinned.grid.frame_index.tolist() == [0, 9, 21, 30] and thinned.grid.width == 640
    still = tiny.ground(clip_of(1), "the red circle")
    assert still.task == "rec" and still.tube is not None
    fitting = clip_of(4, 64, 64)
    assert_alike(tiny.ground(fitting, "a"), tiny.ground(tiny.encode(fitting), "a"))


def test_video_objects_windows_and_many(tiny: Any, toy_video: Path) -> None:
    opened = open_video(toy_video)
    assert_alike(tiny.ground(opened, "the star"), tiny.ground(str(toy_video), "the star"))
    window = Span(0.3 * opened.duration_s, 0.8 * opened.duration_s)
    state = tiny.encode(toy_video, window)
    assert window.start_s <= state.grid.times_s[0] and state.grid.times_s[-1] < window.end_s
    states = tiny.encode_many([toy_video, opened])
    assert len(states) == 2 and states[0].grid == states[1].grid
    assert tiny.max_frames == 4


def test_ask_in_words(tiny: Any, toy_video: Path, encoded: Any) -> None:
    answer = tiny.ask(encoded, "what colour is the circle?", max_new_tokens=5)
    assert isinstance(answer, str) and answer == tiny.ask(toy_video, "what colour is the circle?", 5)
    assert "<|im_end|>" not in answer and "<r_" not in answer
    with pytest.raises(QueryError):
        tiny.ask(encoded, "  ")


def test_an_untrained_twin_has_the_same_shape_and_other_weights(tiny: Any, toy_video: Path) -> None:
    random = tiny.untrained()
    again = tiny.untrained()
    mine, theirs = tiny.model.state_dict(), random.model.state_dict()
    assert {n: t.shape for n, t in mine.items()} == {n: t.shape for n, t in theirs.items()}
    assert not torch.equal(mine["space_decoder.box_head.0.weight"], theirs["space_decoder.box_head.0.weight"])
    assert torch.equal(
        again.model.state_dict()["space_decoder.box_head.0.weight"], theirs["space_decoder.box_head.0.weight"]
    )
    state = random.encode(toy_video)
    assert random.ground_many(state, ["the red circle"])[0].provenance["trained"] is False
    with pytest.raises(ModelError, match=r"encoded by .*untrained \(seed 0\), not by"):
        tiny.ground(state, "the red circle")


# --- what the heads decide -----------------------------------------------------------------------


def with_presence(new_tiny: Callable[..., Any], config: SpaceVLLMConfig, logit: float) -> SpaceVLLMGrounder:
    """A grounder whose presence head says the same of everything."""
    bundle = new_tiny(replace(config, presence_threshold=0.5))
    with torch.no_grad():
        last = bundle.model.space_decoder.presence_head[2]
        last.weight.zero_()
        last.bias.fill_(logit)
    return SpaceVLLMGrounder(bundle, "fixed")


@pytest.mark.parametrize("reader", ["activity", "both"])
def test_presence_decides_whether_it_is_there(
    new_tiny: Callable[..., Any], tiny_config: SpaceVLLMConfig, toy_video: Path, toy_image: Path, reader: str
) -> None:
    for logit, found in ((-3.0, False), (3.0, True)):
        grounder = with_presence(new_tiny, tiny_config, logit)
        for path, task in ((toy_video, "stvg"), (toy_video, "tvg"), (toy_image, "rec")):
            prediction = grounder.ground(path, "the red circle", task, span_reader=reader)
            assert prediction.found == found and prediction.failure is None
            assert prediction.confidence == pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-5)
    # with a calibrated threshold the confidence is told relative to it: 0.5 is always the border
    for logit, found in ((1.0, False), (1.2, True)):
        grounder = with_presence(new_tiny, tiny_config, logit)
        grounder.config = replace(grounder.config, presence_threshold=0.75)  # a logit of 1.0986
        prediction = grounder.ground(toy_video, "the red circle", span_reader=reader)
        assert prediction.found == found and (prediction.confidence > 0.5) == found
        assert prediction.confidence == pytest.approx(1 / (1 + np.exp(np.log(3) - logit)), abs=1e-5)
    # a given span says that it is there: the boxes are given whatever presence says
    absent = with_presence(new_tiny, tiny_config, -3.0)
    assert absent.ground(toy_video, "the red circle", "svg", Span(0.0, 1.0)).found


def test_text_that_cannot_be_read_is_a_failure(
    tiny: Any, encoded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the paper's reader the words decide; the query stays, with the reason."""
    told = {
        "no idea": (None, "no two times"),
        "from 1s to 2s": (Span(1.0, 2.0), None),
        "not in this video.": (None, None),
        "from 900s to 950s": (None, "after the video's end"),
    }
    for text, (span, failure) in told.items():
        monkeypatch.setattr(type(tiny), "_text", lambda self, ids, text=text: text)
        prediction = tiny.ground(encoded, "the red circle", span_reader="text")
        assert prediction.text == text
        assert (prediction.tube.span if prediction.tube else None) == span
        assert (failure or "") in str(prediction.failure or "")
        assert (prediction.failure is None) == (failure is None)


# --- damaged files -------------------------------------------------------------------------------


def test_damage_in_the_middle_of_a_file_is_noted(tiny: Any, tmp_path: Path) -> None:
    """200 bytes of another kind inside one frame: every answer says that it was read from damaged frames."""
    path = video_files.write(tmp_path / "a.mp4", 40, gop=40, size=(320, 240), options={"preset": "medium"})
    assert tiny.ground(path, "the red circle").notes == ()
    video_files.corrupt_frames(path, [12], whole=False)  # not one of the frames that are read
    video = open_video(path)
    read = sample_uniform(video, tiny.max_frames).frame_index.tolist()
    assert 12 not in read
    notes = tiny.ground(path, "the red circle").notes
    behind = sum(index > 12 for index in read)
    assert notes == (
        f"{behind} of {len(read)} frames follow damaged data in the file and may show its damage",
    )


# --- the domain note -----------------------------------------------------------------------------


def test_domain_note(new_tiny: Callable[..., Any], toy_video: Path, tmp_path: Path) -> None:
    """Pictures unlike the training pictures are noted in every prediction; those alike are not."""
    rng = np.random.default_rng(0)

    def flat(k: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        picture = np.full((2, 64, 64, 3), rng.integers(60, 200, 3), dtype=np.uint8)
        picture[:, 10:30, 10 + k % 20 : 40] = rng.integers(0, 256, 3)
        return np.clip(picture + rng.integers(0, 3, picture.shape), 0, 255).astype(np.uint8)

    domain = fit_domain(np.stack([statistics(flat(k)) for k in range(200)]))
    save_domain(domain, tmp_path)
    again = load_domain(tmp_path)
    assert again is not None and load_domain(tmp_path / "nothing") is None
    assert again.limit == pytest.approx(domain.limit, abs=1e-4)
    noise = rng.integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    assert domain_note(again, noise, "squares") is not None and "squares" in str(
        domain_note(again, noise, "squares")
    )
    assert sum(domain_note(again, flat(k), "squares") is None for k in range(50)) >= 45
    grounder = SpaceVLLMGrounder(new_tiny(), "noted", domain=again)
    grid = FrameGrid(np.arange(2), np.arange(2.0), Fraction(1), 2.0, 64, 64)
    assert any("do not trust" in note for note in grounder.ground(Clip(noise, grid), "a").notes)
    assert not grounder.ground(Clip(flat(3), grid), "a").notes
