"""Bad input, seen from a run or a grounder: every failing query is a prediction that counts, and the next is answered.

The same inputs seen from the parts (providers, splitter, loading) are tested where the parts are.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_zeroshot_grounder import clip_of, tracks_on
from test_zeroshot_splitting import GOOD, Endpoint, Server, serve  # noqa: F401

from tubelet.benchmarks.run import run_benchmark
from tubelet.errors import ModelError
from tubelet.proposals import Tracks, propose_tracks, save_tracks
from tubelet.proposals.detections import CRASHES, Failures
from tubelet.zeroshot import grounder as module
from tubelet.zeroshot.grounder import ZeroShotGrounder, load_zero_shot
from tubelet.zeroshot.settings import ZeroShotSettings
from tubelet.zeroshot.splitting import make_splitter

SMALL = ZeroShotSettings(frames=4)
TUNED = replace(SMALL.with_quality(), epochs=1)


@pytest.fixture(scope="module")
def pico() -> ZeroShotGrounder:
    return load_zero_shot("pico-base", settings=SMALL)


@pytest.mark.parametrize(
    "sentence", ["the red circle", "who jumps?", "what does it push?", "left", "spins", "?!"]
)
def test_sentences_without_attributes_or_without_actions(pico: ZeroShotGrounder, sentence: str) -> None:
    """Tuning asks the whole sentence for the part that is not there."""
    clip = clip_of(3)
    grounder = ZeroShotGrounder(pico.mllm, settings=TUNED)
    prediction = grounder.ground(grounder.encode(clip, tracks=tracks_on(clip, 3)), sentence)
    assert prediction.failure is None and prediction.found
    assert prediction.provenance["split_by"] == "rules"


def test_tracks_that_leave_the_frame_are_cut_and_said(pico: ZeroShotGrounder, tmp_path: Path) -> None:
    clip = clip_of(3)
    size = clip.grid.width
    lines = [f"{k + 1},1,{size - 8},8,40,20" for k in range(3)] + [
        f"{k + 1},2,{2 * size},8,40,20" for k in range(3)
    ]
    path = tmp_path / "mot.txt"
    path.write_text("\n".join(lines))
    grounder = ZeroShotGrounder(pico.mllm, "files", SMALL, path=str(path))
    prediction = grounder.ground(grounder.encode(clip), "the red circle")
    assert prediction.found and prediction.tube.boxes_xyxy.max() <= 1.0
    assert prediction.provenance["track"] == 1  # nothing of the other one is in the frame
    assert any("6 boxes of the proposals left the frame" in note for note in prediction.notes)


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ("I think it is about a man.", "no JSON"),
        ('{"attribute": 3, "action": "x"}', "no text under"),
        ("hang", "no answer within"),
    ],
)
def test_an_endpoint_that_fails_is_noted_in_the_prediction(
    pico: ZeroShotGrounder,
    serve: Callable[..., Server],  # noqa: F811
    reply: str,
    said: str,
) -> None:
    endpoint = Endpoint(serve(reply).url, "m", timeout_s=0.15 if reply == "hang" else 5.0)
    grounder = ZeroShotGrounder(pico.mllm, settings=TUNED, splitter=make_splitter(endpoint))
    clip = clip_of(3)
    prediction = grounder.ground(grounder.encode(clip, tracks=tracks_on(clip, 2)), "the man in red sits down")
    assert prediction.found and prediction.provenance["split_by"] == "rules"
    assert any(said in note and "split by rules" in note for note in prediction.notes)


def test_an_endpoint_that_answers_is_recorded(pico: ZeroShotGrounder, serve: Callable[..., Server]) -> None:  # noqa: F811
    grounder = ZeroShotGrounder(
        pico.mllm, settings=TUNED, splitter=make_splitter(Endpoint(serve(GOOD).url, "some-model"))
    )
    clip = clip_of(3)
    state = grounder.encode(clip, tracks=tracks_on(clip, 2))
    prediction = grounder.ground(state, "the man in red stands up and sits down")
    assert prediction.provenance["split_by"] == "the endpoint (some-model)" and prediction.notes == ()


def test_scores_that_are_no_numbers_are_a_failure(
    pico: ZeroShotGrounder, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = clip_of(3)
    state = pico.encode(clip, tracks=tracks_on(clip, 2))
    choose = module.choose

    def broken(*args: Any, **more: Any) -> Any:
        return replace(choose(*args, **more), scores=np.full(2, np.nan))

    monkeypatch.setattr(module, "choose", broken)
    prediction = pico.ground(state, "the red circle")
    assert (
        not prediction.tubes
        and "not a number" in (prediction.failure or "")
        and "dtype" in prediction.failure
    )


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_a_detector_without_memory_says_what_to_lower(error: Exception) -> None:
    failures = Failures("OWLv2", "long_side, or use a smaller model")
    assert isinstance(error, CRASHES)
    with pytest.raises(ModelError, match="OWLv2 ran out of memory: lower long_side"):
        failures.add(0, error)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A RefCOCO of three pictures, two sentences each; proposals of the second are of another picture."""
    folder = tmp_path_factory.mktemp("bad")
    (folder / "proposals").mkdir()
    images, boxes = [], []
    for k in range(3):
        pixels = np.full((48, 64, 3), 100, dtype=np.uint8)
        pixels[8:28, 8 + 10 * k : 28 + 10 * k] = (230, 20, 20)
        Image.fromarray(pixels).save(folder / f"{k}.png")
        for text in ("the red thing", "the red <video> thing" if k == 0 else "red"):
            entry = {"id": len(images), "file_name": f"{k}.png", "width": 64, "height": 48, "original_id": k}
            images.append({**entry, "caption": text})
            place = [8 + 10 * k, 8, 20, 20]
            boxes.append({"id": len(boxes), "image_id": entry["id"], "bbox": place, "category_id": 1})
    for k, shown in enumerate((0, 2, 2)):
        save_tracks(propose_tracks("motion", folder / f"{shown}.png"), folder / f"proposals/{k}.json")
    (folder / "finetune_refcoco_testA.json").write_text(
        json.dumps({"info": {}, "images": images, "annotations": boxes})
    )
    return folder


BREAKS = [
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    IndexError("index 4 is out of bounds"),
    ValueError("operands could not be broadcast together"),
    KeyError("attention_mask"),
    TypeError("unsupported operand"),
    ZeroDivisionError("division by zero"),
    AttributeError("'NoneType' object has no attribute 'shape'"),
    AssertionError("never so"),
    OSError(5, "Input/output error"),
]


@pytest.mark.parametrize("error", BREAKS, ids=lambda error: type(error).__name__)
def test_failing_queries_stop_no_run_and_stay_in_the_mean(
    error: Exception,
    pico: ZeroShotGrounder,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Proposals of another picture, a query the model cannot be asked, and whatever nobody foresaw."""
    grounder = ZeroShotGrounder(pico.mllm, "files", SMALL, path=str(pictures / "proposals/{stem}.json"))
    choose = module.choose

    def sometimes(mllm: Any, visual: Any, prefix: Any, weights: Any, text: str, *rest: Any) -> Any:
        if text == "red":
            raise error
        return choose(mllm, visual, prefix, weights, text, *rest)

    monkeypatch.setattr(module, "choose", sometimes)
    part = run_benchmark(grounder, "refcoco", pictures, tmp_path, split="refcoco_testA").parts["rec"]
    lines = {}
    for line in (tmp_path / "predictions.jsonl").read_text().splitlines():
        data = json.loads(line)
        lines[data["id"]] = data["prediction"]["failure"]
    failed = {name: reason for name, reason in lines.items() if reason}
    assert set(failed) == {"mdetr-1", "mdetr-2", "mdetr-3", "mdetr-5"}
    assert "another video" in failed["mdetr-2"] and "another video" in failed["mdetr-3"]
    for word in (type(error).__name__, str(error), "this is a bug", "report it"):
        assert word in failed["mdetr-5"]
    assert (part.n, part.n_failed) == (6, 4)
    accuracy: Any = part.metrics["ACC@0.5"]
    assert accuracy.n == 6 and accuracy.mean == pytest.approx(2 / 6)  # one proposal each: the right one


def test_the_other_sentences_are_answered(pico: ZeroShotGrounder, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = clip_of(3)
    state = pico.encode(clip, tracks=tracks_on(clip, 2))
    choose = module.choose

    def sometimes(mllm: Any, visual: Any, prefix: Any, weights: Any, text: str, *rest: Any) -> Any:
        if text == "second":
            raise IndexError("index 4 is out of bounds")
        if text == "third":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return choose(mllm, visual, prefix, weights, text, *rest)

    monkeypatch.setattr(module, "choose", sometimes)
    first, second, third, fourth = pico.ground_many(state, ["first", "second", "third", "fourth"])
    assert first.found and fourth.found
    assert "answering this sentence stopped with IndexError: index 4" in (second.failure or "")
    assert "not enough memory" in (third.failure or "") and "fewer frames" in (third.failure or "")
    assert "bug" not in (third.failure or "")


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_who_stops_a_run_stops_it(
    stop: type[BaseException], pico: ZeroShotGrounder, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = clip_of(3)
    state = pico.encode(clip, tracks=tracks_on(clip, 2))

    def stopped(*args: Any, **more: Any) -> Any:
        raise stop

    monkeypatch.setattr(module, "choose", stopped)
    with pytest.raises(stop):
        pico.ground(state, "the red circle")


def test_what_breaks_while_a_video_is_read_is_named(
    pico: ZeroShotGrounder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an error of tubelet's own, so that a run goes on with the next video."""

    def broken(*args: Any, **more: Any) -> Any:
        raise IndexError("index 4 is out of bounds")

    monkeypatch.setattr(pico.mllm, "prefix", broken)
    with pytest.raises(ModelError, match=r"reading this video stopped with IndexError.* report it"):
        pico.encode(clip_of(3))


def test_no_memory_to_split_a_sentence_is_a_note(
    pico: ZeroShotGrounder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model itself splits, and memory ends there: rules split, and the sentence is answered."""
    clip = clip_of(3)
    grounder = ZeroShotGrounder(pico.mllm, settings=TUNED, splitter=make_splitter("model", pico.mllm))
    state = grounder.encode(clip, tracks=tracks_on(clip, 2))
    lm = pico.mllm._lm

    def full(*args: Any, **more: Any) -> Any:
        if "visual" not in more and more.get("past_key_values") is None:  # text alone
            raise torch.OutOfMemoryError("CUDA out of memory")
        return lm(*args, **more)

    monkeypatch.setattr(pico.mllm, "_lm", full)
    for prediction in grounder.ground_many(state, ["the man in red sits down", "the woman stands up"]):
        assert prediction.found and prediction.provenance["sub_queries"]["by"] == "rules"
        assert any("not enough memory" in note and "split by rules" in note for note in prediction.notes)


def test_no_proposals_fail_and_count(pico: ZeroShotGrounder) -> None:
    clip = clip_of(2)
    state = pico.encode(clip, tracks=Tracks(clip.grid, provider="owlv2", settings={"phrases": ["dog"]}))
    prediction = pico.ground(state, "the dog")
    assert "owlv2 found nothing for 'dog'" in (prediction.failure or "") and not prediction.tubes
