"""Model folders: tensors by name without loading everything, shards, atomic writing. Knows nothing of models."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from tubelet.errors import ModelError, OutputError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD_BYTES = 5 * 10**9


class TensorFolder:
    """The tensors of a folder's safetensors files, read one by one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file_of: dict[str, Any] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._dtypes: dict[str, str] = {}
        for name in self._file_names():
            path = folder / name
            if not path.is_file():
                raise ModelError(f"{folder} lacks the weight file {name}: copy or download the folder again")
            try:
                file: Any = safe_open(path, framework="pt")
                for key in file.keys():  # noqa: SIM118 - not a dict, and not iterable
                    self._file_of[key] = file
                    part = file.get_slice(key)
                    self.shapes[key], self._dtypes[key] = tuple(part.get_shape()), part.get_dtype()
            except (OSError, SafetensorError) as error:
                raise ModelError(f"cannot read the weights in {path}: {first_line(error)}") from error

    def _file_names(self) -> list[str]:
        index = self.folder / INDEX
        if not index.is_file():
            return [WEIGHTS]
        return sorted(set(weight_map(index).values()))

    def dtype(self, name: str) -> str:
        """As safetensors calls it: F32, F16, BF16, ..."""
        return self._dtypes[name]

    def itemsize(self, name: str) -> int:
        """Bytes per number."""
        digits = "".join(c for c in self._dtypes[name].split("_")[0] if c.isdigit())
        return max(1, int(digits or 8) // 8)

    def get(self, name: str) -> torch.Tensor:
        try:
            tensor: torch.Tensor = self._file_of[name].get_tensor(name)
        except SafetensorError as error:
            raise ModelError(f"cannot read {name} in {self.folder}: {first_line(error)}") from error
        return tensor


def weight_map(index: Path) -> dict[str, str]:
    """Tensor name -> file name."""
    found = read_json(index).get("weight_map")
    if not isinstance(found, dict) or not all(
        isinstance(file, str) and Path(file).name == file for file in found.values()
    ):
        raise ModelError(f"{index} must map tensor names to files of its folder")
    return found


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; ModelError when it is not there or not one."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"{path.parent} is not a model folder: it has no {path.name}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"cannot read {path}: {first_line(error)}") from error
    if not isinstance(data, dict):
        raise ModelError(f"{path} must hold a JSON object")
    return data


def write_tensors(
    folder: Path,
    sizes: Mapping[str, int],
    get: Callable[[str], torch.Tensor],
    files: Mapping[str, str] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write tensors shard by shard, so that only one shard is in memory.

    sizes: bytes per tensor, in the order to write; files: tensor -> file name, to repeat an earlier division.
    """
    if files is None:
        files = _divided(sizes, shard_bytes)
    for file in dict.fromkeys(files.values()):
        tensors = {name: get(name).contiguous() for name in sizes if files[name] == file}
        save_file(tensors, folder / file, metadata={"format": "pt"})
    if set(files.values()) != {WEIGHTS}:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": dict(files)}
        (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _divided(sizes: Mapping[str, int], shard_bytes: int) -> dict[str, str]:
    shards: list[list[str]] = [[]]
    used = 0
    for name, size in sizes.items():
        if used and used + size > shard_bytes:
            shards.append([])
            used = 0
        shards[-1].append(name)
        used += size
    if len(shards) == 1:
        return dict.fromkeys(shards[0], WEIGHTS)
    n = len(shards)
    return {
        name: f"model-{number:05d}-of-{n:05d}.safetensors"
        for number, names in enumerate(shards, start=1)
        for name in names
    }


def tensor_report(missing: list[str], unknown: list[str], wrong: list[str], shown: int = 8) -> str:
    """One clause per kind, naming the tensors."""
    parts = []
    for what, names in (("missing", missing), ("not of this model", unknown), ("wrong shape", wrong)):
        if names:
            more = f" and {len(names) - shown} more" if len(names) > shown else ""
            parts.append(f"{len(names)} {what}: {', '.join(names[:shown])}{more}")
    return "; ".join(parts)


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Write into a sibling, then rename over the target; nothing half-written stays behind."""
    temporary = folder.with_name(f".{folder.name}-{os.getpid()}")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    except OSError as error:
        raise OutputError(f"cannot write a model to {folder}: {error.strerror or error}") from error
    try:
        yield temporary
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
    except OSError as error:
        raise OutputError(f"cannot write a model to {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


@contextmanager
def no_bars() -> Iterator[None]:
    """transformers draws progress bars for weights even where nobody watches; ours are the only ones."""
    from transformers.utils import logging

    drawn = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if drawn:
            logging.enable_progress_bar()
