"""What the schedule saves changes nothing: one graph for two tunings, questions asked once; memory; studies go on."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tubelet.errors import ModelError, OutputError, QueryError
from tubelet.frames import Clip, FrameGrid
from tubelet.mllm.memory import memory_guard
from tubelet.zeroshot import grounder as module
from tubelet.zeroshot import method
from tubelet.zeroshot.decompose import SubQueries, question_of
from tubelet.zeroshot.grounder import ZeroShotGrounder, load_zero_shot
from tubelet.zeroshot.maps import consistency
from tubelet.zeroshot.reattention import first_gradients, tune
from tubelet.zeroshot.scoring import frame_scores, track_scores
from tubelet.zeroshot.settings import ZeroShotSettings
from tubelet.zeroshot.study import study

FULL = ZeroShotSettings(spatial=True, temporal=True, assemble=True, read="sub", rate=20.0)


@pytest.fixture(scope="module")
def grounder() -> ZeroShotGrounder:
    return load_zero_shot("pico-base", settings=ZeroShotSettings(frames=4))


def clip_of(frames: int = 4) -> Clip:
    pixels = np.random.default_rng(0).integers(0, 255, (frames, 64, 64, 3), dtype=np.uint8)
    return Clip(pixels, FrameGrid(np.arange(frames), np.arange(frames) / 2, Fraction(2), frames / 2, 64, 64))


def asked(grounder: ZeroShotGrounder, settings: ZeroShotSettings, parts: SubQueries) -> Any:
    visual = grounder.mllm.encode(clip_of())
    weights = np.random.default_rng(1).random((5, *visual.grid.shape))

    def frames_of(found: Any, row: int) -> Any:
        return frame_scores(found, weights)[row]

    return method.choose(
        grounder.mllm, visual, None, weights, "the red circle spins", parts, settings, frames_of
    )


@pytest.mark.parametrize("loss", ["published", "paper"])
@pytest.mark.parametrize("epochs", [0, 1, 2])
def test_tunings_that_begin_together_end_as_if_alone(
    grounder: ZeroShotGrounder, monkeypatch: pytest.MonkeyPatch, loss: str, epochs: int
) -> None:
    settings = replace(FULL, loss=loss, epochs=epochs, averaging=0.5)
    parts = SubQueries("the red circle", "the circle spins", "test")
    together = asked(grounder, settings, parts)
    monkeypatch.setattr(method, "_first_gradients", lambda *args: [None, None])
    alone = asked(grounder, settings, parts)
    assert np.allclose(together.scores, alone.scores, rtol=1e-4)
    assert np.allclose(together.frame_scores, alone.frame_scores, rtol=1e-4)
    untuned = asked(grounder, replace(settings, rate=0.0), parts)
    assert np.allclose(untuned.scores, together.scores, rtol=1e-4) == (epochs == 0)


def test_no_rate_is_the_baseline_bit_for_bit(grounder: ZeroShotGrounder) -> None:
    """Section 10.5 of the note: V = 0 and rate 0 are the method without tuning."""
    parts = SubQueries("the red circle", "the circle spins", "test")
    plain = asked(grounder, ZeroShotSettings(), parts)
    for loss in ("published", "paper"):
        still = asked(
            grounder, ZeroShotSettings(spatial=True, temporal=True, rate=0.0, epochs=2, loss=loss), parts
        )
        assert np.array_equal(still.scores, plain.scores) and still.token == plain.token
        assert np.array_equal(still.frame_scores, plain.frame_scores)
        assert (still.track, still.first, still.last) == (plain.track, plain.first, plain.last)


def test_tuning_for_time_moves_the_frames_and_not_the_track(grounder: ZeroShotGrounder) -> None:
    parts = SubQueries("the red circle", "the circle spins", "test")
    plain = asked(grounder, ZeroShotSettings(), parts)
    timed = asked(grounder, ZeroShotSettings(temporal=True, rate=200.0), parts)
    assert np.array_equal(timed.scores, plain.scores)
    assert not np.allclose(timed.frame_scores, plain.frame_scores, rtol=1e-2)


def test_the_reversed_video_is_tuned_on_its_own_and_its_map_added(grounder: ZeroShotGrounder) -> None:
    """Scores of the sum of two tuned maps, the second of the flipped tokens and turned back."""
    settings = replace(FULL, temporal=False)
    parts = SubQueries("the red circle", None, "test")
    found = asked(grounder, settings, parts)
    visual = grounder.mllm.encode(clip_of())
    weights = np.random.default_rng(1).random((5, *visual.grid.shape))
    question = question_of("the red circle", settings.question)
    ahead, _ = method._tuned_map(grounder.mllm, visual, question, question, settings)
    back, _ = method._tuned_map(grounder.mllm, visual.flipped(), question, question, settings)
    assert np.allclose(found.scores, track_scores(ahead + back[::-1], weights), rtol=1e-5)
    assert not np.allclose(found.scores, track_scores(ahead + back, weights), rtol=1e-3)
    assert found.consistency == pytest.approx(consistency(ahead, back))


@pytest.mark.parametrize(
    ("read", "space", "time"),
    [
        ("sub", "the red circle", "the circle spins"),
        ("whole", "the red circle spins", "the red circle spins"),
        ("mixed", "the red circle", "the red circle spins"),
    ],
)
def test_what_is_read_after_tuning(
    grounder: ZeroShotGrounder, monkeypatch: pytest.MonkeyPatch, read: str, space: str, time: str
) -> None:
    told: list[tuple[str, str]] = []
    tuned = method._tuned_map
    monkeypatch.setattr(method, "_tuned_map", lambda *args: told.append((args[2], args[3])) or tuned(*args))
    settings = replace(FULL, read=read, assemble=False, question="{text}")
    asked(grounder, settings, SubQueries("the red circle", "the circle spins", "test"))
    assert told == [("the red circle", space), ("the circle spins", time)]


def test_how_often_the_video_is_read(grounder: ZeroShotGrounder, monkeypatch: pytest.MonkeyPatch) -> None:
    """One epoch: a graph for both and one for the reversed video, three maps. Equal sub-queries are tuned once."""
    read: list[bool] = []
    prefix = grounder.mllm.prefix

    def counted(visual: Any, delta: Any = None, n_layers: int | None = None) -> Any:
        read.append(torch.is_grad_enabled())
        return prefix(visual, delta, n_layers)

    monkeypatch.setattr(grounder.mllm, "prefix", counted)
    asked(grounder, FULL, SubQueries("the red circle", "the circle spins", "test"))
    assert sorted(read) == [False] * 3 + [True] * 2
    read.clear()
    asked(grounder, FULL, SubQueries(None, None, "test"))
    assert sorted(read) == [False] * 2 + [True] * 2


def test_a_map_is_read_no_further_than_its_layers(
    grounder: ZeroShotGrounder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Videos read for a map hold its layers only; with whole prefixes the scores are the same."""
    n_layers = grounder.mllm.capabilities.n_layers
    settings = replace(FULL, layers=(0, 2))
    read: list[int] = []
    prefix = grounder.mllm.prefix
    whole = False

    def counted(visual: Any, delta: Any = None, n_layers: int | None = None) -> Any:
        made = prefix(visual, delta, None if whole else n_layers)
        read.append(made.n_layers)
        return made

    monkeypatch.setattr(grounder.mllm, "prefix", counted)
    parts = SubQueries("the red circle", "the circle spins", "test")
    found = asked(grounder, settings, parts)
    assert n_layers > 2 and sorted(read) == [2] * 3 + [n_layers] * 2
    whole = True
    again = asked(grounder, settings, parts)
    assert np.allclose(found.scores, again.scores, rtol=1e-6) and found.first == again.first
    assert np.allclose(found.frame_scores, again.frame_scores, rtol=1e-6)


def test_gradients_of_one_graph_are_those_of_two() -> None:
    torch.manual_seed(0)
    matrix, start = torch.randn(3, 6, dtype=torch.float64), torch.zeros(6, dtype=torch.float64)

    def gaps(rows: list[int]) -> Any:
        return lambda u: torch.tanh(matrix[rows] @ u + 0.1)

    settings = ZeroShotSettings(loss="paper", epochs=2, averaging=0.5)
    first = first_gradients(gaps([0, 1, 2]), start, "paper")
    for k, gradient in enumerate(first, start=1):
        alone = tune(gaps([0, k]), start, settings)
        assert torch.allclose(tune(gaps([0, k]), start, settings, gradient), alone, rtol=0, atol=1e-14)
    assert not torch.allclose(first[0], first[1])


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
        ),
        MemoryError(),
    ],
)
def test_out_of_memory_says_what_to_lower(error: Exception) -> None:
    with (
        pytest.raises(ModelError, match=r"not enough memory.* tune: lower it"),
        memory_guard("tune", "lower it"),
    ):
        raise error


def test_other_errors_are_not_about_memory() -> None:
    with pytest.raises(RuntimeError, match="shapes"), memory_guard("tune", "lower it"):
        raise RuntimeError("shapes do not fit")


def test_out_of_memory_while_tuning_is_a_prediction(
    grounder: ZeroShotGrounder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def grad(*args: Any, **more: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.autograd, "grad", grad)
    full = ZeroShotGrounder(grounder.mllm, settings=replace(FULL, frames=4))
    from tubelet.proposals import Track, Tracks

    clip = clip_of()
    box = np.tile([0.1, 0.1, 0.5, 0.5], (4, 1))
    state = full.encode(clip, tracks=Tracks(clip.grid, (Track(0, box, np.ones(4, dtype=bool)),)))
    failure = full.ground(state, "the red circle that spins").failure or ""
    assert "not enough memory" in failure and "fewer frames" in failure and "tuning off" in failure


def test_a_stopped_study_goes_on(grounder: ZeroShotGrounder, tmp_path: Path) -> None:
    """Broken last line, fewer queries asked before: the same numbers as in one go, and nothing is asked twice."""
    whole = study(grounder, n=4, seed=3, variants=("mean", "+ token"))
    study(grounder, n=2, seed=3, variants=("mean", "+ token"), out=tmp_path)
    path = tmp_path / "queries.jsonl"
    path.write_text(path.read_text() + '{"index": 2, "varia')
    calls: list[str] = []
    ground = grounder.ground
    try:
        grounder.ground = lambda *args: calls.append(args[1]) or ground(*args)  # type: ignore[method-assign,func-returns-value]
        again = study(grounder, n=4, seed=3, variants=("mean", "+ token"), out=tmp_path)
    finally:
        del grounder.ground
    assert len(calls) == 4 and again.rows == whole.rows
    assert len(path.read_text().splitlines()) == 3 * 4 + 1
    data = json.loads((tmp_path / "study.json").read_text())
    assert data["n"] == 4 and data["split"] == "test" and data["settings"]["frames"] == 4
    assert set(data["better_than_random"]) == {"mean", "+ token"}
    with pytest.raises(OutputError, match="other settings"):
        study(grounder, n=4, seed=4, variants=("mean",), out=tmp_path)
    with pytest.raises(QueryError, match="split is val or test"):
        study(grounder, n=2, split="train")


def test_a_query_that_fails_counts_and_the_study_goes_on(
    grounder: ZeroShotGrounder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever breaks, in reading a video or in answering: 0 for it, and the next one is asked."""
    whole = study(grounder, n=4, seed=3, variants=("+ token",))
    encode, choose = grounder.encode, module.choose
    calls = {"encode": 0, "choose": 0}

    def failing(*args: Any, **more: Any) -> Any:
        calls["encode"] += 1
        if calls["encode"] == 2:
            raise ModelError("not enough memory")
        return encode(*args, **more)

    def broken(*args: Any, **more: Any) -> Any:
        calls["choose"] += 1
        if calls["choose"] == 3:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return choose(*args, **more)

    monkeypatch.setattr(module, "choose", broken)
    grounder.encode = failing  # type: ignore[method-assign]
    try:
        partly = study(grounder, n=4, seed=3, variants=("+ token",))
    finally:
        del grounder.encode
    assert calls == {"encode": 4, "choose": 3}
    assert partly.failed == {"random": 0, "+ token": 2} and partly.rows["+ token"]["m_vIoU"].n == 4
    assert partly.rows["+ token"]["m_tIoU"].mean < whole.rows["+ token"]["m_tIoU"].mean


def test_splits_of_a_study_are_different_scenes(grounder: ZeroShotGrounder) -> None:
    made = [
        study(grounder, n=4, seed=3, variants=(), split=split).rows["random"] for split in ("val", "test")
    ]
    assert made[0]["m_tIoU"] != made[1]["m_tIoU"]


def test_parts_are_read_without_tuning(grounder: ZeroShotGrounder, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attribute chooses the track and the action its frames; "sub" without tuning reads the whole sentence."""
    read: list[str] = []
    reader = method._read_question
    monkeypatch.setattr(method, "_read_question", lambda *args: read.append(args[3]) or reader(*args))
    parts = SubQueries("the red circle", "the circle spins", "test")
    plain = ZeroShotSettings(question="find {text}")
    found = asked(grounder, replace(plain, read="parts"), parts)
    assert read == ["find the red circle", "find the circle spins"]
    read.clear()
    whole = asked(grounder, replace(plain, read="sub"), parts)
    assert read == ["find the red circle spins"] and not np.allclose(found.scores, whole.scores)
    read.clear()
    asked(grounder, replace(plain, read="parts"), SubQueries("the red circle", None, "test"))
    assert read == ["find the red circle", "find the red circle spins"]
