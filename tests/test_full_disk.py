"""A training run whose disk is full, or whose checkpoint is damaged: one sentence, nothing left behind, go on later."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from full_disk import full_disk
from tubelet.errors import ModelError, OutputError
from tubelet.training.checkpoint import Progress, checkpoints, load_optimiser_state, save_checkpoint
from tubelet.training.log import RunLog
from tubelet.training.loop import make_optimisers
from tubelet.training.recipe import Optimiser


def trained(width: int = 64, layers: int = 2) -> tuple[torch.nn.Module, list[torch.optim.Optimizer]]:
    """A model and its optimisers, which have a state after one step."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(*(torch.nn.Linear(width, width) for _ in range(layers)))
    optimisers = make_optimisers(model, Optimiser(kind="muon"))
    model(torch.randn(5, width)).sum().backward()
    for optimiser in optimisers:
        optimiser.step()
    return model, optimisers


def test_a_checkpoint_on_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    """safetensors tells of it in its own exception; what was half-written goes at once, not at the next save."""
    model, optimisers = trained()
    out = tmp_path / "run"
    with full_disk(9000), pytest.raises(OutputError, match="there is no checkpoint yet") as caught:
        save_checkpoint(out, model, optimisers, Progress(total_steps=1))
    assert "\n" not in str(caught.value) and list(out.iterdir()) == []
    save_checkpoint(out, model, optimisers, Progress(total_steps=1))
    with full_disk(9000), pytest.raises(OutputError, match="the run goes on from checkpoint-00000001"):
        save_checkpoint(out, model, optimisers, Progress(total_steps=2))
    assert [path.name for path in out.iterdir()] == ["checkpoint-00000001"]
    load_optimiser_state(checkpoints(out)[-1], trained()[1])


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(OutputError, match="cannot write the checkpoint"):
        save_checkpoint(tmp_path / "run", *trained(), Progress(total_steps=1))


def test_damaged_optimiser_states_are_named(tmp_path: Path) -> None:
    model, optimisers = trained()
    path = save_checkpoint(tmp_path, model, optimisers, Progress(total_steps=1))
    stored, told = path / "optimiser.safetensors", path / "progress.json"
    whole, progress = stored.read_bytes(), told.read_text()

    def fails(match: str, layers: int = 2) -> None:
        with pytest.raises(ModelError, match=match) as caught:
            load_optimiser_state(path, trained(layers=layers)[1])
        assert "\n" not in str(caught.value) and str(path) in str(caught.value)

    for damaged in (whole[:-20], b"", b"\xff" * 60):
        stored.write_bytes(damaged)
        fails("cannot read the optimiser's state in .*; delete it to go on from the one before")
    stored.unlink()
    fails("cannot read the optimiser's state")
    stored.write_bytes(whole)
    for text in ("{", "[]", "{}", json.dumps({"scalars": [1, 2]})):
        told.write_text(text)
        fails("cannot read the optimiser's state")
    told.write_text(progress)
    load_optimiser_state(path, trained()[1])
    fails("holds the state of 2 parameters, the recipe now trains 1", layers=1)


def test_a_log_on_a_full_disk_is_one_sentence_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tubelet.training.log.find_spec", lambda name: None)
    log = RunLog(tmp_path, Progress())
    log.write("videos", 9, Progress(step=1, total_steps=1), {"loss": 1.0})
    size = log.path.stat().st_size
    with (
        full_disk(size + 20),
        pytest.raises(OutputError, match=r"cannot write the log .*; make room") as caught,
    ):
        log.write("videos", 9, Progress(step=2, total_steps=2), {"loss": 0.5})
    assert "\n" not in str(caught.value)
    assert log.path.stat().st_size > size  # half a line
    again = RunLog(tmp_path, Progress(step=1, total_steps=1))
    again.write("videos", 9, Progress(step=2, total_steps=2), {"loss": 0.5})
    lines = [json.loads(line) for line in log.path.read_text().splitlines()]
    assert [line["total_steps"] for line in lines] == [1, 2]


def test_the_log_s_tensorboard_tells_of_a_full_disk_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tubelet.training.log.find_spec", lambda name: None)

    class Full:
        def add_scalar(self, *_: object) -> None:
            raise OSError(28, "No space left on device")

        def close(self) -> None:
            raise OSError(28, "No space left on device")

    log = RunLog(tmp_path, Progress())
    log._board = Full()
    with pytest.raises(OutputError, match="No space left on device; make room"):
        log.write("videos", 9, Progress(step=1, total_steps=1), {"loss": 1.0})
    with pytest.raises(OutputError, match="No space left on device"):
        log.close()
