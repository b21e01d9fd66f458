"""SpaceVLLM learns from files: rows to truth on frames, packed by video; broken ones are replaced and counted."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tubelet.errors import DataError
from tubelet.llava_st.mixture import Entry, Mixture, write_mixture
from tubelet.spacevllm.config import SpaceVLLMConfig
from tubelet.spacevllm.item_rows import open_groups, sample_stream, targets_of
from tubelet.spacevllm.train import make_job
from tubelet.training.loop import _loader, train
from tubelet.training.recipe import ItemList, Recipe, Stage
from tubelet.tube import Span
from tubelet.unistg.instructions import Instruction
from tubelet.unistg.rows import write_rows

TURNS = (("human", "find it {boxes}"), ("gpt", "{span}"))


def stvg(name: str, video: str, span: Span = Span(1.0, 3.0)) -> Instruction:
    boxes = ((0.1, 0.1, 0.3, 0.3), (0.3, 0.3, 0.5, 0.5))
    return Instruction(
        name, "stvg", "t", "video", video, TURNS, "a red ring", "ring", span, 4.0, (1.0, 3.0), boxes
    )


def general(name: str, video: str) -> Instruction:
    turns = (("human", "<video>\nwhat?"), ("gpt", "a ring."), ("human", "and?"), ("gpt", "no."))
    return Instruction(name, "general", "t", "video", video, turns)


def test_truth_on_frames_by_hand() -> None:
    times = np.array([0.5, 1.5, 2.5, 3.5])
    (target,) = targets_of(stvg("a", "v.mp4"), times, 4.0)
    assert target.task == "stvg" and target.active.tolist() == [False, True, True, False]
    assert target.has_box.tolist() == [False, True, True, False]
    assert target.boxes_xyxy[1] == pytest.approx([0.15, 0.15, 0.35, 0.35])
    assert target.boxes_xyxy[2] == pytest.approx([0.25, 0.25, 0.45, 0.45])
    first, second = targets_of(general("g", "v.mp4"), times, 4.0)
    assert (first.query, first.answer, second.query, second.answer) == ("what?", "a ring.", "and?", "no.")
    assert not first.has_box.any()
    rec = Instruction("r", "rec", "t", "image", "p.png", TURNS, "a ring", boxes_xyxy=((0.1, 0.2, 0.3, 0.4),))
    (seen,) = targets_of(rec, np.zeros(1), 1.0)
    assert seen.task == "rec" and seen.has_box.all() and seen.span is None
    vtg = Instruction("v", "vtg", "t", "video", "v.mp4", TURNS, "a ring", span=Span(0.0, 1.0))
    (timed,) = targets_of(vtg, times, 4.0)
    assert (
        timed.task == "tvg"
        and timed.active.tolist() == [True, False, False, False]
        and not timed.has_box.any()
    )
    with pytest.raises(DataError, match="after its video"):
        targets_of(stvg("a", "v.mp4", Span(1.0, 9.0)), times, 4.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three short videos."""
    import av

    out = tmp_path_factory.mktemp("videos")
    for k in range(3):
        with av.open(str(out / f"v{k}.mp4"), "w") as container:
            stream = container.add_stream("mpeg4", rate=5)
            stream.width = stream.height = 64
            for frame in range(20):
                picture = np.full((64, 64, 3), 40 * k + 5 * frame, dtype=np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())
    return out


@pytest.fixture
def listed(folder: Path, tmp_path: Path) -> Callable[..., str]:
    def make(rows: list[Instruction], *more: str) -> str:
        write_rows(rows, tmp_path / "rows.jsonl")
        with (tmp_path / "rows.jsonl").open("a") as file:
            file.writelines(line + "\n" for line in more)
        write_mixture(Mixture((Entry("rows.jsonl", str(folder)),)), tmp_path / "list.yaml")
        return str(tmp_path / "list.yaml")

    return make


def test_rows_of_a_video_are_packed(listed: Callable[..., str]) -> None:
    rows = [stvg(f"a{k}", f"v{k % 2}.mp4") for k in range(8)] + [general("g", "v2.mp4")]
    groups = open_groups(ItemList(listed(rows), questions=3), 0)
    assert [len(group.rows) for group in groups.groups] == [3, 3, 1, 1, 1]
    names = [one.id for number in range(len(groups)) for one in groups.instructions(groups[number])]
    assert sorted(names) == sorted(row.id for row in rows)  # each once


def test_broken_rows_are_replaced_and_counted(
    listed: Callable[..., str], caplog: pytest.LogCaptureFixture
) -> None:
    path = listed([stvg("a", "v0.mp4"), stvg("b", "gone.mp4"), stvg("c", "v1.mp4")], '{"path": "v2.mp4"}')
    settings = ItemList(path, batch=4)
    with caplog.at_level(logging.WARNING, "tubelet"):
        samples, replaced = sample_stream(settings, 4, 64, 0)(0)
    assert replaced == 2 and len(samples) == 4
    assert "gone.mp4" in caplog.text and "not a row" in caplog.text and "stands in" in caplog.text
    make = sample_stream(settings, 4, 64, 0)
    make(1)  # what was asked before plays no part
    again, count = make(0)
    assert count == 2
    assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(samples, again, strict=True))


def test_too_many_broken_rows_stop_the_run(listed: Callable[..., str]) -> None:
    rows = [stvg(f"b{k}", f"gone{k}.mp4") for k in range(40)] + [stvg("a", "v0.mp4")]
    make = sample_stream(ItemList(listed(rows), batch=1, broken_share=0.01), 4, 64, 0)
    with pytest.raises(DataError, match=r"could not be used, at most 1%"):
        for k in range(41):
            make(k)


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
def test_it_trains_from_files_and_workers_change_nothing(
    listed: Callable[..., str],
    tiny_base_folder: Path,
    tiny_config: SpaceVLLMConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tubelet.training.log.find_spec", lambda name: None)
    rows = [stvg("a", "v0.mp4"), stvg("b", "v0.mp4"), general("g", "v1.mp4"), stvg("x", "gone.mp4")]
    stage = Stage("files", 3, items=ItemList(listed(rows), batch=2, questions=2))
    recipe = Recipe(
        "t", "spacevllm", (stage,), str(tiny_base_folder), str(tmp_path / "run"), workers=0, log_every=1,
        spacevllm=tiny_config,
    )  # fmt: skip
    job = make_job(recipe)
    before = job.model.base.lm_head.weight.detach().clone()
    alone, worked = (list(_loader(job, stage, 0, 3, 1, 0, workers, 0)) for workers in (0, 2))
    for one, other in zip(alone, worked, strict=True):
        assert torch.equal(one.pixels, other.pixels) and torch.equal(one.packed.ids, other.packed.ids)
        assert one.replaced == other.replaced
    assert sum(batch.replaced for batch in alone) == 2  # six draws of three groups: two epochs
    told: list[Any] = []
    done = train(recipe, job, on_step=lambda _, numbers: told.append(numbers["replaced"]))
    assert sum(told) == 2 and done.total_steps == 3
    assert not torch.equal(before, job.model.base.lm_head.weight)
    assert (tmp_path / "run" / "model" / "config.json").is_file()
