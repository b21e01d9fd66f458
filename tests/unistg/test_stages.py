"""Each stage as a command of its own: the chain is the build, and bad lines, keys and paths are counted."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tubelet.cli import main
from tubelet.config_io import from_dict
from tubelet.errors import DataError, OutputError
from tubelet.unistg.build import build
from tubelet.unistg.captions import CaptionSource
from tubelet.unistg.recipe import RefinerSettings, UniSTGRecipe
from tubelet.unistg.records import Caption, Detected, Drop, Phrase, Refined, Sample
from tubelet.unistg.refiner import refine
from tubelet.unistg.stages import run_analyzer, run_annotator, run_filter, run_refiner

MOTION = {"provider": "motion", "match": "colour", "fps": 4.0}
STEADY = {"provider": "unistg_providers:steady"}


def recipe(toys: Path, **more: Any) -> UniSTGRecipe:
    return from_dict(UniSTGRecipe, {"videos": str(toys / "videos"), "annotator": STEADY, **more})


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def command(*words: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["tubelet", "unistg", *words])
        with pytest.raises(SystemExit) as ended:
            main()
    return int(ended.value.code or 0)


def test_the_four_commands_in_a_row_are_the_build(
    toys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "recipe.json"  # YAML holds JSON
    sources = [{"kind": "jsonl", "path": str(toys / "captions.jsonl")}]
    path.write_text(json.dumps({"videos": str(toys / "videos"), "sources": sources, "annotator": MOTION}))
    chosen = from_dict(UniSTGRecipe, json.loads(path.read_text()))
    build(chosen, tmp_path / "built")
    named = {n: str(tmp_path / f"{n}.jsonl") for n in ("phrases", "detected", "refined", "samples")}
    with_recipe = ("--recipe", str(path))
    assert command("analyze", str(toys / "captions.jsonl"), named["phrases"], *with_recipe) == 0
    assert command("annotate", named["phrases"], named["detected"], *with_recipe) == 0
    assert command("refine", named["detected"], named["refined"], *with_recipe) == 0
    assert command("filter", named["refined"], named["samples"], *with_recipe) == 0
    built = tmp_path / "built" / "samples.jsonl"
    assert built.read_text() and (tmp_path / "samples.jsonl").read_bytes() == built.read_bytes()
    drops = [d for name in named for d in lines(tmp_path / f"{name}.drops.jsonl")]
    by_key = {(d["key"], d["stage"]): d for d in drops}
    assert by_key == {(d["key"], d["stage"]): d for d in lines(tmp_path / "built" / "drops.jsonl")}
    told = json.loads((tmp_path / "samples.stage.json").read_text())
    assert [s["stage"] for s in told["stages"]] == ["analyzer", "annotator", "refiner", "filter"]
    for before, after in zip(told["stages"], told["stages"][1:], strict=False):
        assert before["gave"] == after["took"] == before["took"] - sum(before["dropped"].values())
    funnel = json.loads((tmp_path / "built" / "funnel.json").read_text())
    assert {k: v for s in told["stages"] for k, v in s["dropped"].items()} == funnel["reasons"]
    assert f"{funnel['kept']} written" in capsys.readouterr().out
    assert str(tmp_path) not in "".join(p.read_text() for p in tmp_path.glob("*.jsonl"))


def test_what_earlier_stages_were_run_with_is_what_samples_say(
    toys: Path, tmp_path: Path, providers: None
) -> None:
    strict = recipe(toys, refiner={"min_s": 2.5}, filter={"max_boxes": 2})
    run_analyzer(CaptionSource("jsonl", str(toys / "captions.jsonl")), tmp_path / "p.jsonl", strict)
    run_annotator(tmp_path / "p.jsonl", tmp_path / "d.jsonl", strict)
    run_refiner(tmp_path / "d.jsonl", tmp_path / "r.jsonl", strict)
    other = UniSTGRecipe(refiner=RefinerSettings(min_s=0.5))
    done = run_filter(tmp_path / "r.jsonl", tmp_path / "s.jsonl", other)
    samples = [Sample.from_dict(row) for row in lines(tmp_path / "s.jsonl")]
    assert done.gave == len(samples) >= 3
    for sample in samples:
        thresholds = sample.provenance["thresholds"]
        assert isinstance(thresholds, dict)
        assert (thresholds["refiner.min_s"], thresholds["filter.max_boxes"]) == (2.5, 3)
        assert str(sample.provenance["annotator"]).startswith("unistg_providers:steady")
        assert str(sample.provenance["video_hash"]).startswith("file-")
    (tmp_path / "r.stage.json").write_text('{"settings": {"refiner": {"min_s": "long"}}}')
    with pytest.raises(DataError, match="does not say how"):
        run_filter(tmp_path / "r.jsonl", tmp_path / "s2.jsonl", other)


def test_bad_lines_and_repeated_keys_are_named_and_set_aside(
    toys: Path, tmp_path: Path, providers: None, capsys: pytest.CaptureFixture[str]
) -> None:
    good = toys / "captions.jsonl"
    captions = tmp_path / "captions.jsonl"
    captions.write_text(
        good.read_text().replace("\n", "\n{broken\n", 1) + '{"id": "x", "text": "a dog", "video": 7}\n'
    )
    assert command("analyze", str(captions), str(tmp_path / "p.jsonl")) == 1
    assert "2 lines are no records" in capsys.readouterr().err
    aside = [d for d in lines(tmp_path / "p.drops.jsonl") if d["reason"] == "broken-line"]
    last = len(captions.read_text().splitlines())
    assert [d["key"] for d in aside] == ["captions.jsonl, line 2", f"captions.jsonl, line {last}"]
    assert "field video" in aside[1]["detail"]
    phrases = (tmp_path / "p.jsonl").read_text()
    run_analyzer(CaptionSource("jsonl", str(good)), tmp_path / "clean.jsonl", UniSTGRecipe())
    assert phrases == (tmp_path / "clean.jsonl").read_text()

    first = phrases.splitlines()[0]
    (tmp_path / "p.jsonl").write_text(f"{first}\n[]\n" + phrases + '{"text": "a dog"}\n')
    done = run_annotator(tmp_path / "p.jsonl", tmp_path / "d.jsonl", recipe(toys))
    assert (done.broken, done.reasons["input: broken-line"], done.reasons["input: duplicate-key"]) == (
        2,
        2,
        1,
    )
    assert done.took == len(phrases.splitlines()) + 3 == done.gave + done.dropped
    for run, path, name in ((run_refiner, "d.jsonl", "r.jsonl"), (run_filter, "r.jsonl", "s.jsonl")):
        rows = (tmp_path / path).read_text()
        (tmp_path / path).write_text(f"{rows}{rows.splitlines()[0]}\nnull\n{{}}\n")
        done = run(tmp_path / path, tmp_path / name, recipe(toys))
        assert (done.broken, done.reasons["input: duplicate-key"]) == (2, 1)
        assert done.took == len(rows.splitlines()) + 3 == done.gave + done.dropped


def test_what_cannot_be_read_or_written_leaves_the_output_alone(toys: Path, tmp_path: Path) -> None:
    run_analyzer(CaptionSource("jsonl", str(toys / "captions.jsonl")), tmp_path / "p.jsonl", UniSTGRecipe())
    out = tmp_path / "out.jsonl"
    out.write_text("kept\n")
    with pytest.raises(DataError, match="no records of `tubelet unistg annotate`"):
        run_refiner(tmp_path / "p.jsonl", out, UniSTGRecipe())
    with pytest.raises(DataError):
        run_refiner(tmp_path / "gone.jsonl", out, UniSTGRecipe())
    assert out.read_text() == "kept\n" and not list(tmp_path.glob(".*"))
    with pytest.raises(OutputError, match="what is read"):
        run_filter(tmp_path / "p.jsonl", tmp_path / "p.jsonl", UniSTGRecipe())
    with pytest.raises(OutputError, match=r"ends in \.jsonl"):
        run_filter(tmp_path / "p.jsonl", tmp_path / "p.json", UniSTGRecipe())
    with pytest.raises(OutputError, match="cannot write"):
        run_filter(tmp_path / "p.jsonl", out / "x.jsonl", UniSTGRecipe())


def test_one_video_by_many_names_is_looked_at_once(toys: Path, tmp_path: Path, providers: None) -> None:
    run_analyzer(CaptionSource("jsonl", str(toys / "captions.jsonl")), tmp_path / "p.jsonl", UniSTGRecipe())
    row = lines(tmp_path / "p.jsonl")[0]
    video = row["caption"]["video"]
    rows = []
    for k, name in enumerate((video, f"./{video}", f".\\{video}", str((toys / "videos" / video).absolute()))):
        rows.append({**row, "caption": {**row["caption"], "id": f"n{k}", "video": name}})
    outside = {**row["caption"], "id": "out", "video": f"../{video}"}
    rows.append({**row, "caption": outside})
    late = {**row["caption"], "id": "late", "span": {"start_s": 500.0, "end_s": 510.0}}
    rows.append({**row, "caption": late})
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    told = []
    done = run_annotator(tmp_path / "p.jsonl", tmp_path / "d.jsonl", recipe(toys), report=told.append)
    assert told[-1].total == 2  # the video, and the one outside
    found = [Detected.from_dict(r) for r in lines(tmp_path / "d.jsonl")]
    assert [d.phrase.caption.id for d in found] == ["n0", "n1", "n2", "n3"]
    assert {d.phrase.caption.video for d in found} == {video}
    assert done.reasons == {"annotator: broken-video": 1, "annotator: span-outside-video": 1}


def test_a_crash_on_one_video_is_tried_again(toys: Path, tmp_path: Path, providers: None) -> None:
    run_analyzer(CaptionSource("jsonl", str(toys / "captions.jsonl")), tmp_path / "p.jsonl", UniSTGRecipe())
    flag = tmp_path / "crash"
    flag.touch()
    video = lines(tmp_path / "p.jsonl")[0]["caption"]["video"]
    options = {"fails_on": video, "while_there": str(flag)}
    chosen = recipe(toys, annotator={**STEADY, "options": options})
    done = run_annotator(tmp_path / "p.jsonl", tmp_path / "d.jsonl", chosen)
    assert done.aside == done.reasons["annotator: provider-failed"] >= 1 and done.gave >= 1
    with pytest.raises(DataError, match="--resume"):
        run_annotator(tmp_path / "p.jsonl", tmp_path / "d.jsonl", chosen)
    with pytest.raises(DataError, match="other phrases or settings"):
        run_annotator(tmp_path / "p.jsonl", tmp_path / "d.jsonl", recipe(toys), resume=True)
    flag.unlink()
    again = run_annotator(tmp_path / "p.jsonl", tmp_path / "d.jsonl", chosen, resume=True, retry_aside=True)
    assert (again.aside, again.gave) == (0, done.gave + done.aside)
    places = {Phrase.from_dict(r).key: k for k, r in enumerate(lines(tmp_path / "p.jsonl"))}
    order = [places[Detected.from_dict(r).phrase.key] for r in lines(tmp_path / "d.jsonl")]
    assert order == sorted(order)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=True) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["start_s", "x"]), inner),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_damaged_record_is_a_data_error_and_nothing_else(data: st.DataObject) -> None:
    span = {"start_s": 0.0, "end_s": 3.0}
    caption = {"id": "1", "source": "s", "video": "a.mp4", "text": "a dog", "span": span, "duration_s": 9.0}
    phrase = {"caption": caption, "text": "a dog", "subject": True, "analyzer": "rules"}
    detected: dict[str, Any] = {"phrase": phrase, "span": span, "times_s": [0.0, 1.0], "annotator": "x"}
    detected |= {"boxes_xyxy": [[[0.1, 0.1, 0.5, 0.5]], []], "scores": [[0.5], []], "track_ids": [[1], []]}
    detected |= {"video_sha256": "0", "n_cut": 0}
    refined: dict[str, Any] = {"detected": detected, "span": span, "rows": [0], "scores": [0.5]}
    refined |= {"boxes_xyxy": [[0.1, 0.1, 0.5, 0.5]], "n_boxes": [1]}
    kinds: list[tuple[Any, dict[str, Any]]] = [
        (Caption, caption), (Phrase, phrase), (Detected, detected), (Refined, refined),
    ]  # fmt: skip
    kind, whole = data.draw(st.sampled_from(kinds))
    assert kind.from_dict(whole).to_dict() == whole
    name = data.draw(st.sampled_from(sorted(whole)))
    with pytest.raises(DataError, match="places"):
        Refined.from_dict({**refined, "rows": 0})
    try:
        record = kind.from_dict({**whole, name: data.draw(JSON)})
    except DataError:
        return
    again = kind.from_dict(json.loads(json.dumps(record.to_dict())))
    assert again.to_dict() == record.to_dict()
    if isinstance(record, Detected):
        assert isinstance(refine(record), Refined | Drop)


@pytest.mark.parametrize("provider", ["owlv2", "grounding-dino-sam2"])
def test_a_build_with_a_detector_that_reads_the_phrase(
    provider: str, toys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tiny random checkpoints in the hub's layout: what they find means nothing, how it gets there does."""
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "proposals"))
    from tiny_detectors import write_grounding_dino, write_owlv2, write_sam2

    if provider == "owlv2":
        options: dict[str, Any] = {"model": str(write_owlv2(tmp_path / "owl")), "threshold": 0.0}
        options |= {"min_iou": 0.1, "min_seen": 1, "every": 4}
    else:
        options = {"detector": str(write_grounding_dino(tmp_path / "dino")), "box_threshold": 0.0}
        options |= {"tracker": str(write_sam2(tmp_path / "sam2")), "text_threshold": 0.0}
        options |= {"every": 8, "max_objects": 2}
    videos = tmp_path / "videos"
    videos.mkdir()
    name = lines(toys / "captions.jsonl")[0]["video"]
    shutil.copy(toys / "videos" / name, videos / name)
    row = {"video": name, "text": "a red circle moves around", "start_s": 0.0, "end_s": 2.5}
    (tmp_path / "c.jsonl").write_text(
        json.dumps({**row, "id": "1"}) + "\n" + json.dumps({**row, "id": "2", "text": "it is so"})
    )
    chosen = from_dict(
        UniSTGRecipe,
        {
            "videos": str(videos),
            "sources": [{"kind": "jsonl", "path": str(tmp_path / "c.jsonl")}],
            "annotator": {"provider": provider, "options": options, "min_confidence": 0.0, "look_fps": 4.0},
            "refiner": {"min_s": 0.1, "max_gap_s": None},
            "filter": {
                "max_boxes": 64,
                "max_area_ratio": 1e9,
                "min_confidence": 0.0,
                "min_boxes": 1,
                "min_coverage": 0.0,
            },
        },
    )
    done = build(chosen, tmp_path / "out")
    drops = (tmp_path / "out" / "drops.jsonl").read_text()
    assert (done.kept, done.dropped, done.aside) == (1, 1, 0), drops
    assert json.loads(drops)["stage"] == "analyzer"
    (sample,) = (Sample.from_dict(r) for r in lines(tmp_path / "out" / "samples.jsonl"))
    assert sample.sentence == row["text"] and sample.provenance["phrase"] == "a red circle"
    assert str(sample.provenance["annotator"]).startswith(provider) and len(sample.tube) >= 1
