"""Calibration: the threshold against a brute force, and the note on footage that is something else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tubelet.grounder import embedded_models
from tubelet.spacevllm.calibrate import best_threshold, world_domain
from tubelet.spacevllm.domain import domain_note, load_domain, save_domain
from tubelet.training.samples import WorldMix, world_batch
from tubelet.video import open_video, read_clip, sample_uniform

MEDIA = Path(__file__).resolve().parents[1] / ".." / "shared" / "media"


def balanced(scores: np.ndarray, present: np.ndarray, threshold: float) -> float:
    return (scores[present] >= threshold).mean() / 2 + (scores[~present] < threshold).mean() / 2


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 999), st.booleans()), min_size=2, max_size=40, unique_by=lambda r: r[0])
)
def test_no_threshold_is_better(rows: list[tuple[int, bool]]) -> None:
    scores, present = np.array([r[0] / 1000 for r in rows]), np.array([r[1] for r in rows])
    if present.all() or not present.any():
        return
    chosen = balanced(scores, present, best_threshold(scores, present))
    assert chosen >= max(balanced(scores, present, t / 2000) for t in range(2001)) - 1e-12


def test_domain_knows_the_toy_world_and_not_noise(tmp_path) -> None:
    mix = WorldMix(frames=6)
    domain = world_domain([mix], clips=150)
    save_domain(domain, tmp_path)
    loaded = load_domain(tmp_path)
    assert loaded is not None
    toys = [
        s.pixels for k in range(4) for s in world_batch(WorldMix(batch=10, questions=1, frames=6, seed=5), k)
    ]
    wrong = sum(domain_note(loaded, pixels, "the toy world") is not None for pixels in toys)
    assert wrong <= 0.15 * len(toys)
    rng = np.random.default_rng(0)
    note = domain_note(loaded, rng.integers(0, 255, (6, 64, 64, 3), dtype=np.uint8), "the toy world")
    assert note is not None and "knows only the toy world" in note


def test_every_embedded_model_knows_the_toy_world_and_nothing_else() -> None:
    toys = [s.pixels for k in range(3) for s in world_batch(WorldMix(batch=10, questions=1, seed=6), k)]
    for model in embedded_models():
        domain = load_domain(model.folder)
        assert domain is not None, model.name
        wrong = sum(domain_note(domain, pixels, model.domain) is not None for pixels in toys)
        assert wrong <= 3, f"{model.name} takes {wrong} of {len(toys)} toy-world videos for something else"


@pytest.mark.skipif(not MEDIA.is_dir(), reason="the real clips are not here")
@pytest.mark.parametrize(
    "path", sorted(p for p in MEDIA.rglob("*") if p.suffix in (".mp4", ".jpg")), ids=lambda p: p.stem
)
def test_real_footage_is_told(path: Path) -> None:
    video = open_video(path)
    clip = read_clip(video, sample_uniform(video, 16), (64, 64))
    domain = next(load_domain(m.folder) for m in embedded_models() if m.name == "pico-base")
    assert domain is not None
    said = domain_note(domain, clip.pixels, "tubelet's toy world")
    assert said is not None and "knows only tubelet's toy world" in said
