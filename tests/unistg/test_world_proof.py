"""The proof on the toy world: whether its numbers are those of the tubes, and what it proves in small."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tubelet.errors import DataError
from tubelet.unistg import world_proof
from tubelet.unistg.recipe import FilterSettings, load_unistg_recipe
from tubelet.unistg.world_proof import Proof, _selection, prove, world_recipe

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "unistg" / "world.yaml"


@pytest.fixture(scope="module")
def proof() -> Proof:
    return prove(12, seed=4)


def test_the_proof_runs_the_recipe_of_the_toy_world() -> None:
    shipped = load_unistg_recipe(RECIPE)
    assert shipped.decisive() == world_recipe().decisive()
    assert shipped.filter.max_boxes == 1 and FilterSettings().max_boxes == 3


def test_the_gain_of_a_choice_is_what_was_kept_minus_all() -> None:
    before, after = [0.2, 0.4, 0.6, 0.8], [None, None, 0.7, 0.8]
    found = _selection(before, after)
    assert found.mean == pytest.approx(0.75 - 0.5) and found.n == 4
    assert found.low <= found.mean <= found.high
    assert _selection(before, list(before)).high == 0.0  # nothing dropped, nothing changed: no gain, for sure
    assert np.isnan(_selection(before, [None] * 4).mean)


def test_every_caption_is_counted_once_per_filter(proof: Proof) -> None:
    early = sum(n for name, n in proof.drops.items() if not name.startswith("filter"))
    assert proof.stages["refined"]["tIoU"].n == proof.captions - early
    for which in ("", " (default)", " (paper)"):
        dropped = sum(n for name, n in proof.drops.items() if name.startswith(f"filter{which}:"))
        row = proof.stages["filtered" + which]
        assert row["vIoU"].n + dropped == proof.captions - early
        gain = proof.gains["filter, after minus before" + which]["vIoU"]
        assert gain.mean == pytest.approx(row["vIoU"].mean - proof.stages["refined"]["vIoU"].mean)


def test_refiner_and_the_filter_of_the_toy_world_raise_precision(proof: Proof) -> None:
    gains = proof.gains
    refiner = gains["refiner, same captions"]["tIoU"]
    rows = proof.stages
    assert refiner.mean == pytest.approx(rows["refined"]["tIoU"].mean - rows["coarse"]["tIoU"].mean)
    assert refiner.mean > 0 and refiner.low >= 0
    ours, paper = (gains["filter, after minus before" + which]["vIoU"] for which in ("", " (paper)"))
    assert ours.mean > 0.05 and ours.mean > paper.mean
    assert proof.drops.get("filter (default): area-jump", 0) < proof.drops["filter (paper): area-jump"]


def test_an_unknown_kind_is_said() -> None:
    with pytest.raises(DataError, match="presence or event"):
        prove(2, kind="colour")


def test_captions_come_from_the_seed() -> None:
    first = [truth.span for _, _, truth in world_proof._captions(2, 4, "event")]
    assert first == [truth.span for _, _, truth in world_proof._captions(2, 4, "event")]
    assert first != [truth.span for _, _, truth in world_proof._captions(2, 5, "event")]
