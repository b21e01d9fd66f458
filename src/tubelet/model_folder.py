"""Model folders: tensors by name without loading everything, shards, atomic writing. Knows nothing of models."""

from __future__ import annotations

import json
import math
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
DTYPES = ("float32", "bfloat16", "float16")
TOY_WORLD = "tubelet's toy world"


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


def pixel_numbers(values: Any, name: str, path: Path) -> tuple[float, float, float]:
    """pixel_mean or pixel_std of a folder: one finite number per colour. ModelError names the file."""
    plain = isinstance(values, list | tuple) and len(values) == 3
    if not plain or not all(_is_number(value) for value in values):
        raise ModelError(
            f"{name} in {path} must be three numbers, one per colour, got {values!r:.80}: "
            "copy or download the folder again"
        )
    if "std" in name and min(values) <= 0:
        raise ModelError(f"{name} in {path} must be three numbers above 0, got {values!r:.80}")
    return float(values[0]), float(values[1]), float(values[2])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def load_fast_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder that holds a tokenizer.json: no need to guess a tokenizer class."""
    from transformers import PreTrainedTokenizerFast

    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ModelError(
            f"cannot load the tokenizer in {folder}: it has no tokenizer.json; copy or download the folder again"
        )
    read_json(path)  # what it says about damaged JSON is clearer
    try:
        return PreTrainedTokenizerFast.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"cannot load the tokenizer in {folder}: {first_line(error)}") from error


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
    """Write into a sibling, then put it where the target is; nothing half-written stays behind.

    An older model folder there is replaced as a whole. Raises OutputError for anything else that is in the way
    (`check_replaceable`), and when there is no space or no permission.
    """
    check_replaceable(folder)
    target = folder.resolve()  # "." has no name to make a sibling's of
    temporary = target.with_name(f".{target.name}-{os.getpid()}")
    before = target.with_name(f".{target.name}-{os.getpid()}-before")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    except OSError as error:
        raise OutputError(f"cannot write a model to {folder}: {error.strerror or error}") from error
    try:
        yield temporary
        _put(temporary, target, before)
    except OSError as error:
        raise OutputError(f"cannot write a model to {folder}: {error.strerror or error}") from error
    except SafetensorError as error:  # a full disk, as safetensors tells it
        raise OutputError(f"cannot write a model to {folder}: {first_line(error)}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _put(temporary: Path, target: Path, before: Path) -> None:
    """The new folder in the place of the old one, which comes back if that fails."""
    if not target.exists():
        temporary.rename(target)
        return
    check_replaceable(target)  # writing may have taken long
    target.rename(before)
    try:
        temporary.rename(target)
    except OSError:
        before.rename(target)
        raise
    shutil.rmtree(before, ignore_errors=True)


def check_replaceable(folder: Path) -> None:
    """OutputError unless a model may be written here: nothing is there, an empty folder, or another model."""
    try:
        if not folder.exists():
            return
        if not folder.is_dir():
            raise OutputError(f"cannot write a model to {folder}: a file of this name is in the way")
        if not any(folder.iterdir()) or _is_model(folder):
            return
    except OSError as error:
        raise OutputError(f"cannot write a model to {folder}: {error.strerror or error}") from error
    raise OutputError(
        f"{folder} holds other files and no model (no config.json with a model_type), and saving would delete them: "
        "give a new or empty folder"
    )


def _is_model(folder: Path) -> bool:
    try:
        data = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(data, dict) and "model_type" in data


def card_licence(domain: str) -> str:
    """The line of a card's head: models of the toy world are tubelet's own; others carry their base's licence, too."""
    return "license: apache-2.0\n" if domain == TOY_WORLD else "license: other\n"


def card_facts(domain: str, trained: bool) -> str:
    """Lines of a card: what it was trained on, its licence, where numbers stand."""
    told = domain or "not stated; whoever trained it should say it here"
    what = f"trained on {told}" if trained else "not trained: its answers are random"
    if domain == TOY_WORLD:
        licence = "Apache-2.0, as tubelet's; all of its weights were trained from scratch on generated videos"
        numbers = "docs/results.md of tubelet, with the seeds, the time and the hardware of their training"
    else:
        licence = "tubelet's own parts are Apache-2.0; weights that it was grown from keep the licence they came with"
        numbers = "none came with this folder; `tubelet eval` measures it"
    return f"- What it knows: {what}\n- Licence: {licence}\n- Numbers: {numbers}\n"


def torch_dtype(name: str | None) -> torch.dtype | None:
    """A dtype by its name; ModelError for others than the three that models are stored in."""
    if name is None:
        return None
    if name not in DTYPES:
        raise ModelError(f"dtype is {', '.join(DTYPES[:-1])} or {DTYPES[-1]}, got {name!r}")
    dtype: torch.dtype = getattr(torch, name)
    return dtype


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
