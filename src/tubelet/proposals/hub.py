"""Loading a detector or tracker as it is on the hub: folder or hub id -> (processor, model), kept for the next video.

Hub ids are contacted only by `tubelet.grounder.find_model`, so offline they give its clear error.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from tubelet.errors import ModelError, QueryError
from tubelet.grounder import checked_device, find_model
from tubelet.model_folder import first_line, read_json, tensor_report


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
    dtype = torch.bfloat16 if place.startswith("cuda") else torch.float32
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
