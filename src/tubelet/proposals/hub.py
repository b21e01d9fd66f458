"""Loading a detector or tracker as it is on the hub: folder or hub id -> (processor, model), kept for the next video.

`unload` forgets what is kept. `fingerprint` names the contents of a model, for the cache of tracks. Hub ids are
contacted only by `tubelet.grounder.find_model`, so offline they give its clear error.
"""

from __future__ import annotations

import gc
import hashlib
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from tubelet.errors import ModelError, QueryError
from tubelet.grounder import checked_device, find_model
from tubelet.model_folder import first_line, read_json, tensor_report

_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")  # what `find_model` downloads
_WHOLE_BYTES = 64 << 20  # larger files are hashed by their size and pieces
_PIECES, _PIECE_BYTES = 64, 64 << 10


@dataclass(frozen=True, slots=True)
class Loaded:
    """A processor and a model in evaluation mode on `device` with `dtype`."""

    processor: Any
    model: Any
    device: Any
    dtype: Any


def load(model: str, classes: tuple[str, str], model_types: tuple[str, ...], device: str | None) -> Loaded:
    """classes: names of the processor and model classes in transformers. Raises ModelError."""
    import torch

    place = torch.device(checked_device(device))
    return _load(str(find_model(model)), classes, model_types, str(place))


def unload() -> None:
    """Forget the detectors and trackers that are kept for the next video, and give back their memory."""
    _load.cache_clear()
    gc.collect()  # modules hold each other
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def dtype_on(place: str) -> str:
    """The name of the dtype in which models run on a device."""
    return "bfloat16" if place.startswith("cuda") else "float32"


def fingerprint(model: str) -> str:
    """A hash of all files of a model (folder or hub id) that loading may read: configurations, processor, tokenizer and
    weights, the latter above 64 MB by their size and 64 pieces from the first byte to the last. Raises ModelError.
    """
    digest = hashlib.sha256()
    folder = find_model(model)
    for path in sorted({path for pattern in _FILES for path in folder.glob(pattern)}):
        try:
            size = path.stat().st_size
            digest.update(f"{path.name} {size} ".encode())
            with path.open("rb") as file:
                if size <= _WHOLE_BYTES:
                    digest.update(file.read())
                    continue
                for part in range(_PIECES):
                    file.seek((size - _PIECE_BYTES) * part // (_PIECES - 1))
                    digest.update(file.read(_PIECE_BYTES))
        except OSError as error:
            raise ModelError(f"cannot read {path}: {error.strerror or error}") from error
    return digest.hexdigest()[:24]


@lru_cache(maxsize=4)
def _load(folder: str, classes: tuple[str, str], model_types: tuple[str, ...], place: str) -> Loaded:
    import torch
    import transformers
    from safetensors import SafetensorError

    kind = read_json(Path(folder) / "config.json").get("model_type")
    if kind not in model_types:
        raise ModelError(
            f"{folder} holds a model of type {kind!r}, but a {' or '.join(model_types)} is needed here: "
            "give another model"
        )
    missing = [name for name in classes if not hasattr(transformers, name)]
    if missing:
        raise ModelError(
            f"transformers {transformers.__version__} has no {missing[0]}: install a newer transformers"
        )
    dtype = getattr(torch, dtype_on(place))
    try:
        processor = getattr(transformers, classes[0]).from_pretrained(folder, local_files_only=True)
        model_class = getattr(transformers, classes[1])
        model, report = model_class.from_pretrained(
            folder,
            config=_config(folder, model_class),
            dtype=dtype,
            local_files_only=True,
            output_loading_info=True,
        )
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RuntimeError,
        ImportError,
        SafetensorError,
    ) as error:
        raise ModelError(f"cannot load {classes[1]} from {folder}: {first_line(error)}") from error
    absent, wrong = sorted(report["missing_keys"]), sorted(str(e[0]) for e in report["mismatched_keys"])
    if absent or wrong:
        raise ModelError(f"{folder} does not hold a whole {classes[1]}: {tensor_report(absent, [], wrong)}")
    model.to(place).eval().requires_grad_(False)
    return Loaded(processor, model, torch.device(place), dtype)


def _config(folder: str, model_class: Any) -> Any:
    """The model's configuration. transformers up to 5.17 reads SAM 2's mask decoder as if it were a prompt encoder and
    so forgets every value that a checkpoint leaves at its default: it is read again, as what it is."""
    import transformers

    config = model_class.config_class.from_pretrained(folder, local_files_only=True)
    decoder = getattr(config, "mask_decoder_config", None)
    right_class = getattr(transformers, "Sam2VideoMaskDecoderConfig", None)
    if model_class.__name__ == "Sam2VideoModel" and right_class and not isinstance(decoder, right_class):
        written = read_json(Path(folder) / "config.json").get("mask_decoder_config")
        config.mask_decoder_config = right_class(**(written or {}))
    return config


def need_phrases(provider: str, phrases: tuple[str, ...]) -> tuple[str, ...]:
    """The phrases, cleaned; QueryError when there is none."""
    cleaned = tuple(dict.fromkeys(" ".join(p.lower().replace(".", " ").split()) for p in phrases))
    cleaned = tuple(p for p in cleaned if p)
    if not cleaned:
        raise QueryError(
            f"{provider} looks for what it is told: give phrases, for example ('person', 'dog'), "
            "or use the provider 'motion', which needs none"
        )
    return cleaned
