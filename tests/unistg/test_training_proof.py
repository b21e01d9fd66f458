"""The proof by training: arms that differ by their labels only, and paired differences of what was learnt from them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tubelet.benchmarks.world import truth_of
from tubelet.errors import DataError
from tubelet.metrics.grounding import score_many
from tubelet.spacevllm.item_rows import open_groups
from tubelet.training.recipe import load_recipe
from tubelet.tube import Span, Tube
from tubelet.unistg.instructions import Instruction
from tubelet.unistg.records import Sample
from tubelet.unistg.rows import read_rows
from tubelet.unistg.tasks import stvg_of_sample
from tubelet.unistg.training_compare import METRICS, compare, tables
from tubelet.unistg.training_proof import ARMS, Arms, prepare, recipe_of
from tubelet.unistg.training_start import fresh_decoder
from tubelet.unistg.training_world import ProofData, choose_scenes, loose, sayings, scene_of
from tubelet.world.scene import SPLITS

SETTINGS = ProofData(n=4, n_test=3, seed=3, height=64)
RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "unistg-pico.yaml"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Arms:
    return prepare(tmp_path_factory.mktemp("proof"), SETTINGS)


def rows(made: Arms, arm: str) -> list[Instruction]:
    return list(read_rows(made.folder / f"{arm}.jsonl"))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# --- the arms ------------------------------------------------------------------------------------------


def test_exact_and_built_differ_by_their_labels_only(made: Arms) -> None:
    exact, built, coarse = (rows(made, arm) for arm in ARMS)
    assert len(exact) == len(built) == made.rows["built"] >= 3

    def unlabelled(one: Instruction) -> Instruction:
        return replace(one, span=Span(0, 1), times_s=(0.0,), boxes_xyxy=((0, 0, 1, 1),), provenance={})

    assert [unlabelled(one) for one in exact] == [unlabelled(one) for one in built]
    assert all(a.span != b.span or a.boxes_xyxy != b.boxes_xyxy for a, b in zip(exact, built, strict=True))
    assert {(one.path, one.query) for one in built} <= {(one.path, one.query) for one in coarse}


def test_built_rows_are_what_the_build_kept(made: Arms) -> None:
    samples = [Sample.from_dict(line) for line in lines(made.folder / "build" / "samples.jsonl")]
    built = rows(made, "built")
    assert built == [one for one in map(stvg_of_sample, samples) if one.id in {b.id for b in built}]
    assert len(built) >= 0.8 * len(samples)  # a thing that no sampled frame shows has no exact twin
    assert {one.provenance["recipe"] for one in built} == {recipe_of(made.folder).digest()}
    funnel = json.loads((made.folder / "build" / "funnel.json").read_text())
    assert funnel["kept"] == len(samples) and funnel["records"] == made.captions


def test_exact_rows_are_the_truth_at_the_sampled_frames(made: Arms) -> None:
    truths = {line["id"]: line for line in lines(made.folder / "truth.jsonl")}
    for one in rows(made, "exact"):
        truth = truths[one.provenance["caption_id"]]
        assert one.span == Span.from_dict(truth["span"]) and one.query == truth["query"]
        boxes, visible = scene_of(truth).boxes_at(one.times_s)
        actor = truth["tags"]["actor"]
        assert visible[actor].all() and one.span is not None and np.all(one.span.contains(one.times_s))
        assert np.array(one.boxes_xyxy) == pytest.approx(boxes[actor], abs=1e-4)
        steps = np.diff(one.times_s)
        assert len(steps) == 0 or steps.min() > 0.12  # sampled frames (4 a second), not all native ones


def test_coarse_rows_have_the_spans_of_the_captions(made: Arms) -> None:
    captions = {line["id"]: line for line in lines(made.folder / "captions.jsonl")}
    coarse = rows(made, "coarse")
    assert len(coarse) == made.rows["coarse"] >= made.rows["built"]
    for one in coarse:
        caption = captions[one.provenance["caption_id"]]
        assert one.span is not None
        assert (one.span.start_s, one.span.end_s) == pytest.approx((caption["start_s"], caption["end_s"]))


def test_precision_of_labels_is_against_the_truth(made: Arms) -> None:
    labels = made.labels
    assert labels["exact"]["all"]["tIoU"].mean == pytest.approx(1.0)
    assert labels["exact"]["all"]["vIoU"].mean > 0.85  # boxes between samples are interpolated
    truths = {line["id"]: line for line in lines(made.folder / "truth.jsonl")}
    built = rows(made, "built")
    tubes: list[Tube | None] = []
    for one in built:
        assert one.span is not None
        tubes.append(Tube(one.span, np.array(one.times_s), np.array(one.boxes_xyxy)))
    scores = score_many(tubes, [truth_of(truths[one.provenance["caption_id"]]) for one in built])
    assert labels["built"]["all"]["vIoU"].mean == pytest.approx(float(scores.viou.mean()), abs=2e-3)
    assert labels["built"]["all"]["vIoU"].mean < labels["exact"]["all"]["vIoU"].mean


def test_a_second_call_changes_nothing_and_other_settings_are_refused(made: Arms) -> None:
    names = [f"{arm}.{kind}" for arm in ARMS for kind in ("jsonl", "yaml")] + ["queries.jsonl", "arms.json"]
    before = {name: (made.folder / name).read_bytes() for name in names}
    told: list[tuple[str, int, int]] = []
    prepare(made.folder, SETTINGS, progress=lambda *now: told.append(now))
    assert {name: (made.folder / name).read_bytes() for name in names} == before
    assert ("train videos", 4, 4) in told and ("test videos", 3, 3) in told
    with pytest.raises(DataError, match="other settings"):
        prepare(made.folder, replace(SETTINGS, n=5))


def test_the_recipe_reads_the_lists(made: Arms) -> None:
    recipe = load_recipe(RECIPE, [f"stages.0.items.path={made.folder / 'exact.yaml'}"])
    items = recipe.stages[0].items
    assert items is not None and recipe.spacevllm.span_reader == "activity"
    groups = open_groups(items, seed=0)
    assert sum(len(group.rows) for group in groups.groups) == made.rows["exact"]
    assert len(groups) == made.videos["exact"]  # at most 8 questions a video here: packed by video
    assert all((group.folder / group.path).is_file() for group in groups.groups)


# --- what is said --------------------------------------------------------------------------------------


def test_sentences_are_true_of_one_thing_and_spans_are_loose() -> None:
    scenes = choose_scenes("train", 8, 8)
    kinds = []
    for k, scene in enumerate(scenes):
        said = sayings(scene, np.random.default_rng(0))
        texts = [question.query for question in said]
        assert 0 < len(set(texts)) == len(texts) <= 8
        here = [question.kind for question in said]
        assert k % 2 or "presence" in here
        kinds += here
        for question in said:
            assert question.actor is not None and question.span is not None
            assert scene.actors[question.actor].colour in question.query
            wide = loose(question.span, scene.duration_s, np.random.default_rng(k))
            assert wide.start_s <= question.span.start_s and wide.end_s >= question.span.end_s
            assert wide.duration_s > question.span.duration_s
    assert {"presence", "event"} == set(kinds)


def test_train_and_test_share_no_scene(made: Arms) -> None:
    learnt = {tuple(line["scene"]["seed"]) for line in lines(made.folder / "truth.jsonl")}
    queries = lines(made.folder / "queries.jsonl")
    tested = {tuple(line["scene"]["seed"]) for line in queries}
    assert {seed[0] for seed in learnt} == {SPLITS["train"]} and {seed[0] for seed in tested} == {
        SPLITS["test"]
    }
    assert len(queries) == made.queries == len({line["video"] for line in queries})
    assert all((made.folder / line["video"]).is_file() for line in queries)


# --- what was learnt -----------------------------------------------------------------------------------


def test_differences_are_paired() -> None:
    rng = np.random.default_rng(0)
    exact = rng.uniform(0.2, 0.9, size=(60, 3))
    built = exact - 0.1
    kinds = ["presence", "event"] * 30
    found = tables({"exact": exact, "built": built}, kinds, {"exact": 0, "built": 0})
    gap = found.differences["built - exact"]["all"]["m_vIoU"]
    assert (gap.mean, gap.low, gap.high, gap.n) == pytest.approx((-0.1, -0.1, -0.1, 60))
    own = found.models["built"]["all"]["m_vIoU"]
    assert own.high - own.low > 0.05  # the models' own intervals are wide, their difference is not
    row = found.models["exact"]["presence"]
    assert row["sIoU"].mean == pytest.approx(exact[::2, 2].mean()) and row["sIoU"].n == 30
    assert list(row) == list(METRICS)
    with pytest.raises(DataError, match="same 60 queries"):
        tables({"exact": exact, "built": built[:50]}, kinds, {})


def test_a_model_compared_with_itself_and_with_a_fresh_decoder(made: Arms, tmp_path: Path) -> None:
    import torch

    from tubelet.spacevllm.checkpoint import load_bundle

    fresh = fresh_decoder("spacevllm-pico", tmp_path / "start")
    new, old = (load_bundle(folder).model.state_dict() for folder in (fresh, _embedded()))
    same = {name for name in old if torch.equal(old[name], new[name])}
    assert all(name in same for name in old if name.startswith(("base.", "motion.")))
    assert any(name not in same for name in old if name.startswith("space_decoder."))
    found = compare(made.folder, {"exact": _embedded(), "twin": _embedded(), "fresh": fresh})
    assert all(i.mean == i.low == i.high == 0 for i in found.differences["twin - exact"]["all"].values())
    assert found.differences["fresh - exact"]["all"]["sIoU"].mean < -0.1
    assert found.models["exact"]["all"]["sIoU"].mean > 0.3
    answers = lines(made.folder / "answers-exact.jsonl")
    assert [a["id"] for a in answers] == [q["id"] for q in lines(made.folder / "queries.jsonl")]
    told = json.loads((made.folder / "compare.json").read_text())
    assert told["models"]["exact"]["all"]["m_tIoU"]["n"] == made.queries == told["run"]["n"]
    assert _means(answers) == pytest.approx([found.models["exact"]["all"][m].mean for m in METRICS])


def test_a_query_that_fails_counts_as_zero(made: Arms, tmp_path: Path) -> None:
    (tmp_path / "queries.jsonl").write_text((made.folder / "queries.jsonl").read_text())  # and no videos
    found = compare(tmp_path, {"exact": _embedded()}, limit=2)
    assert found.n_failed == {"exact": 2} and not found.differences
    assert all(i.mean == 0 and i.n == 2 for i in found.models["exact"]["all"].values())
    with pytest.raises(DataError, match=r"has no queries\.jsonl"):
        compare(tmp_path / "nothing", {"exact": _embedded()})
    with pytest.raises(DataError, match="is no SpaceVLLM"):
        compare(tmp_path, {"other": "llava-st-pico"})


def _embedded() -> Path:
    from tubelet.grounder import find_model

    return find_model("spacevllm-pico")


def _means(answers: Sequence[dict[str, Any]]) -> list[float]:
    return [float(np.mean([a["scores"][m] for a in answers])) for m in METRICS]
