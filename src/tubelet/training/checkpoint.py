"""Resumable checkpoints without pickles: safetensors for tensors, JSON for the rest, written atomically.

A checkpoint is a folder `checkpoint-<n>`; it is written under a temporary name and renamed when complete, so
a run killed at any moment leaves the previous one intact. The two newest are kept.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from tubelet.errors import ModelError, OutputError
from tubelet.model_folder import first_line


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands: steps done in the current stage and over all, questions learnt, seconds spent.

    batches: taken from the current stage by all processes together; with another number of processes, the run goes on
    behind them. processes: that took the last step. Both are 0 in checkpoints that do not say it.
    """

    stage: int = 0
    step: int = 0
    total_steps: int = 0
    questions: int = 0
    seconds: float = 0.0
    batches: int = 0
    processes: int = 0


def save_checkpoint(
    folder: Path,
    model: torch.nn.Module,
    optimisers: Sequence[torch.optim.Optimizer],
    progress: Progress,
    write: bool = True,
) -> Path:
    """Write a checkpoint. Sharded tensors are written whole: every process calls this then, one of them to write.

    Raises OutputError when there is no space; the checkpoint before it stays, and the run goes on from there.
    """
    weights = full_tensors(model.state_dict(), write)
    tensors, scalars = _optimiser_state(optimisers, write)
    if not write:
        return folder
    final = folder / f"checkpoint-{progress.total_steps:08d}"
    for left in folder.glob(".writing-*"):  # of a run that was killed while it wrote
        shutil.rmtree(left, ignore_errors=True)
    temporary = folder / f".writing-{os.getpid()}"
    try:
        temporary.mkdir(parents=True)
        save_file(_unshared(weights), temporary / "model.safetensors")
        save_file(tensors, temporary / "optimiser.safetensors")
        (temporary / "progress.json").write_text(
            json.dumps({"progress": asdict(progress), "scalars": scalars})
        )
        if final.exists():
            shutil.rmtree(final)
        temporary.rename(final)
    except (OSError, SafetensorError) as error:  # safetensors has its own word for a full disk
        reason = (error.strerror if isinstance(error, OSError) else None) or first_line(error)
        raise OutputError(
            f"cannot write the checkpoint {final}: {reason}; {_where_it_goes_on(folder)}"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    # later ones are of a run that was started over: they must neither push out this one nor be resumed
    kept = [path for path in checkpoints(folder) if path.name <= final.name][-2:]
    for old in checkpoints(folder):
        if old not in kept:
            shutil.rmtree(old)
    return final


def _where_it_goes_on(folder: Path) -> str:
    """What to do about a run that could not write."""
    newest = checkpoints(folder)[-1:]
    kept = f"from {newest[0].name}" if newest else "from the beginning, for there is no checkpoint yet"
    return f"make room and start the same command again: the run goes on {kept}"


def _optimiser_state(
    optimisers: Sequence[torch.optim.Optimizer], keep: bool
) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    tensors: dict[str, torch.Tensor] = {}
    scalars: list[dict[str, Any]] = []
    for k, optimiser in enumerate(optimisers):
        scalars.append({})
        for index, entries in optimiser.state_dict()["state"].items():
            for name, value in entries.items():
                if isinstance(value, torch.Tensor):
                    whole = full_tensors({name: value}, keep)
                    tensors |= {f"{k}.{index}.{n}": v.detach().clone().contiguous() for n, v in whole.items()}
                else:
                    scalars[k][f"{index}.{name}"] = value
    return tensors, scalars


def full_tensors(tensors: Mapping[str, torch.Tensor], keep: bool = True) -> dict[str, torch.Tensor]:
    """Sharded tensors gathered from all processes, on the CPU; the others as they are. keep: False drops them again."""
    out = {}
    for name, tensor in tensors.items():
        if hasattr(tensor, "full_tensor"):
            whole = tensor.full_tensor()
            if keep:
                # a gathered tensor may be a view of a longer, padded one: files hold whole storages only
                out[name] = whole.detach().cpu().clone(memory_format=torch.contiguous_format)
        elif keep:
            out[name] = tensor
    return out


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(folder.glob("checkpoint-*"))


def read_progress(path: Path) -> Progress:
    try:
        return Progress(**json.loads((path / "progress.json").read_text())["progress"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{path} is not a checkpoint of this version: {error!r}; delete it to start over"
        ) from error


def load_model_state(path: Path, model: torch.nn.Module) -> None:
    try:
        state = load_file(path / "model.safetensors")
        missing, unexpected = model.load_state_dict(state, strict=False)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"cannot read {path}: {error}; delete it to go on from the one before") from error
    except RuntimeError as error:  # wrong shapes; torch lists them all
        raise ModelError(f"{path} is of another model: {' '.join(str(error).split())[:300]}") from error
    own = model.state_dict()
    loaded = {own[name].data_ptr() for name in state if name in own}
    # tied tensors are stored once
    missing = [name for name in missing if own[name].data_ptr() not in loaded]
    if missing or unexpected:
        raise ModelError(
            f"{path} is of another model: missing {missing[:5]}, not known {list(unexpected)[:5]}"
        )


def load_optimiser_state(path: Path, optimisers: Sequence[torch.optim.Optimizer]) -> None:
    """Raises ModelError for a damaged checkpoint, and for one of other optimisers or parameters."""
    try:
        tensors = load_file(path / "optimiser.safetensors")
        scalars = json.loads((path / "progress.json").read_text())["scalars"]
        by_optimiser = [_by_parameter(tensors, k, told) for k, told in enumerate(scalars)]
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"cannot read the optimiser's state in {path}: {first_line(error)}; delete it to go on from the one before"
        ) from error
    if len(scalars) != len(optimisers):
        raise ModelError(
            f"{path} was written with {len(scalars)} optimiser(s), the recipe now has {len(optimisers)}: "
            "go on with the old recipe, or start over in a new folder"
        )
    for state, optimiser in zip(by_optimiser, optimisers, strict=True):
        parameters = [p for group in optimiser.param_groups for p in group["params"]]
        if state and max(state) >= len(parameters):
            raise ModelError(
                f"{path} holds the state of {max(state) + 1} parameters, the recipe now trains {len(parameters)}: "
                "go on with the old recipe, or start over in a new folder"
            )
        for number, entries in state.items():
            for entry, value in entries.items():
                entries[entry] = _as_sharded(value, parameters[number])
        optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})


def _by_parameter(
    tensors: Mapping[str, torch.Tensor], k: int, scalars: Mapping[str, Any]
) -> dict[int, dict[str, Any]]:
    """The k-th optimiser's state, by number of the parameter."""
    state: dict[int, dict[str, Any]] = {}
    for key, value in (*tensors.items(), *((f"{k}.{n}", v) for n, v in scalars.items())):
        which, index, name = key.split(".", 2)
        if int(which) == k:
            state.setdefault(int(index), {})[name] = value
    return state


def _as_sharded(value: Any, parameter: torch.Tensor) -> Any:
    """State of a sharded parameter, cut as the parameter is."""
    if not hasattr(parameter, "full_tensor") or not isinstance(value, torch.Tensor):
        return value
    if value.shape != parameter.shape:
        return value  # a step count
    from torch.distributed.tensor import distribute_tensor

    local = value.to(parameter.device)
    return distribute_tensor(local, parameter.device_mesh, parameter.placements)


def _unshared(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """One copy of tied tensors: safetensors refuses two names for one memory."""
    out: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name in sorted(state):
        tensor = state[name]
        if tensor.data_ptr() in seen and tensor.numel():
            continue
        seen.add(tensor.data_ptr())
        out[name] = tensor.detach().contiguous()
    return out
