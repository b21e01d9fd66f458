"""`load()` a model by name, and the interface every loaded method has.

A name is one of: an embedded model (`tubelet models` lists them), a local folder, or a hub id ("org/name").
The hub is contacted only for a hub id, and never when HF_HUB_OFFLINE is set; HF_HOME is respected.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tubelet.errors import ModelError
from tubelet.tube import Prediction, Span

if TYPE_CHECKING:
    from tubelet.spacevllm.config import SpaceVLLMConfig

DEFAULT_MODEL, DEFAULT_ZERO_SHOT = "spacevllm-pico", "pico-base"
_KINDS = {"tubelet_spacevllm": "SpaceVLLM", "tubelet_llava_st": "LLaVA-ST"}
_ZERO_SHOT = ("llava_next_video", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "internvl")
_HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+$")


class Grounder(Protocol):
    """A loaded method. `encode` reads a video once; `ground` and `ground_many` ask about it."""

    name: str

    def encode(self, video: Any, window: Span | None = None) -> Any: ...

    def ground(
        self,
        video: Any,
        query: str,
        task: str | None = None,
        span: Span | None = None,
        span_reader: str | None = None,
    ) -> Prediction: ...

    def ground_many(
        self,
        video: Any,
        queries: Sequence[str],
        task: str | None = None,
        span: Span | Sequence[Span | None] | None = None,
        span_reader: str | None = None,
    ) -> list[Prediction]: ...

    def ask(self, video: Any, question: str, max_new_tokens: int = 64) -> str: ...


@dataclass(frozen=True, slots=True)
class EmbeddedModel:
    """A model that is shipped inside the package."""

    name: str
    folder: Path
    kind: str
    domain: str
    byte_size: int


def embedded_models() -> list[EmbeddedModel]:
    """What is shipped, by name."""
    found = []
    root = Path(str(resources.files("tubelet"))) / "weights"
    for config in sorted(root.glob("*/config.json")):
        data = json.loads(config.read_text())
        kind = _KINDS.get(data["model_type"], "chat base (LLaVA-OneVision)")
        size = sum(f.stat().st_size for f in config.parent.glob("*.safetensors"))
        found.append(EmbeddedModel(config.parent.name, config.parent, kind, "tubelet's toy world", size))
    return found


def load(
    model: str | Path | None = None,
    device: str | None = None,
    dtype: str | None = None,
    config: SpaceVLLMConfig | None = None,
    method: str | None = None,
) -> Grounder:
    """Load a model for inference.

    Args:
        model: embedded name, folder, or hub id; None: spacevllm-pico, for zero-shot pico-base.
            A SpaceVLLM folder continues; a LLaVA-OneVision checkpoint starts a new SpaceVLLM with an untrained
            decoder (`config` sets it up); a base that tubelet trained (pico-base) stays the chat model that it is,
            unless `config` is given; so does a LLaVA-Video or LLaVA-OneVision of the LLaVA-NeXT repository, converted
            or in the published layout. A LLaVA-ST folder, tubelet's or in the published layout, becomes a
            `LlavaSTGrounder`.
            Other video MLLMs (LLaVA-NeXT-Video, Qwen2-VL, Qwen2.5-VL, Qwen3-VL, InternVL) ground zero-shot.
        method: None: what the model was made for; "zero-shot": attention over motion proposals, for a LLaVA-OneVision,
            too (`tubelet.zeroshot.load_zero_shot` has more to choose).
        device: "cpu", "cuda", "cuda:1", ...; default: cuda if there is one.
        dtype: "float32", "bfloat16", "float16"; default: bfloat16 on a GPU, float32 on the CPU.

    Raises ModelError that says what was looked for and what exists.
    """
    model = default_model(method) if model is None else model
    folder = find_model(model)
    is_llava_st = _is_llava_st(folder)
    import torch

    device = checked_device(device)
    dtype = dtype or ("bfloat16" if device.startswith("cuda") else "float32")
    if dtype not in ("float32", "bfloat16", "float16"):
        raise ModelError(f"dtype is float32, bfloat16 or float16, got {dtype!r}")
    if method not in (None, "zero-shot"):
        raise ModelError(f'method is "zero-shot" or left out, got {method!r}')
    if method or grounds_zero_shot(folder):
        from tubelet.zeroshot.grounder import load_zero_shot

        if config is not None:
            raise ModelError(
                f"{model} grounds zero-shot; config sets up a new SpaceVLLM from a LLaVA-OneVision"
            )
        return load_zero_shot(model, device=device, dtype=dtype)
    if is_llava_st:
        from tubelet.llava_st.grounder import load_grounder

        if config is not None:
            raise ModelError(f"{model} is a LLaVA-ST; config sets up a new SpaceVLLM from a LLaVA-OneVision")
        return load_grounder(folder, str(model), revision_of(folder), getattr(torch, dtype), device)

    from tubelet.spacevllm.checkpoint import chat_settings, load_bundle, with_queries
    from tubelet.spacevllm.config import SpaceVLLMConfig
    from tubelet.spacevllm.domain import load_domain
    from tubelet.spacevllm.grounder import SpaceVLLMGrounder

    bundle = load_bundle(folder, config, getattr(torch, dtype), device)
    if not bundle.layout.query_tokens and (config is not None or chat_settings(folder) is None):
        bundle = with_queries(bundle, config or SpaceVLLMConfig())
    return SpaceVLLMGrounder(bundle, str(model), revision_of(folder), load_domain(folder))


def checked_device(device: str | None = None) -> str:
    """The device to use: the one that is asked for, else a GPU if there is one. ModelError says which there are."""
    import torch

    n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not device:
        return "cuda" if n_gpus else "cpu"
    there = ["cpu", *(["cuda"] if n_gpus else []), *(f"cuda:{k}" for k in range(n_gpus))]
    if torch.backends.mps.is_available():
        there.append("mps")
    if device in there:
        return device
    gpus = "" if n_gpus else " (torch sees no GPU)"
    if not re.fullmatch(r"cpu|cuda(:\d+)?|mps", device):
        raise ModelError(f"device is {', '.join(there)} on this machine{gpus}, got {device!r}")
    raise ModelError(
        f"device {device} was asked for, but there is only {', '.join(there)} on this machine{gpus}"
    )


def default_model(method: str | None = None) -> str:
    """The embedded model that answers where none is named."""
    return DEFAULT_ZERO_SHOT if method == "zero-shot" else DEFAULT_MODEL


def grounds_zero_shot(model: str | Path) -> bool:
    """Is it a video MLLM that grounds zero-shot and in no other way (no LLaVA-OneVision, none of our folders)?"""
    folder = find_model(model)
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, RecursionError, AttributeError):
        return False
    return kind in _ZERO_SHOT


def _is_llava_st(folder: Path) -> bool:
    """Does config.json say so, in tubelet's layout or the published one? What cannot be read is left to the loader."""
    try:
        data = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    if not isinstance(data, dict):
        return False
    published = data.get("model_type") in ("llava", "llava_qwen") and "mm_vision_tower" in data
    return data.get("model_type") == "tubelet_llava_st" or (
        published and data.get("mm_resampler_type") == "fast_slow_resampler"
    )


def find_model(model: str | Path) -> Path:
    """The folder of a model name; downloads only a hub id, and only when that is allowed."""
    text = str(model)
    embedded = {m.name: m.folder for m in embedded_models()}
    if text in embedded:
        return embedded[text]
    path = Path(text).expanduser()
    if text and path.is_dir():
        return path
    if path.is_file():
        raise ModelError(f"{text} is a file; a model is a folder with config.json and safetensors")
    if isinstance(model, Path) or not _HUB_ID.match(text) or text.startswith("."):
        raise ModelError(
            f"there is no model {text!r}: it is not an embedded model "
            f"({', '.join(embedded) or 'none shipped'}), not a folder, and not a hub id of the form org/name"
        )
    return _download(text)


def _download(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        return Path(
            snapshot_download(
                hub_id, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
            )
        )
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise ModelError(
            f"{hub_id!r} is neither a local folder nor in the hub cache, and the hub cannot be reached "
            "(offline, or HF_HUB_OFFLINE is set): download it where there is a network, or give a folder"
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise ModelError(f"cannot download {hub_id!r} from the hub: {str(error).splitlines()[0]}") from error


def revision_of(folder: Path) -> str:
    """Short hash of a model's config and weight files' names and sizes; of small files, of the bytes."""
    digest = hashlib.sha256()
    for path in sorted([folder / "config.json", *folder.glob("*.safetensors")]):
        digest.update(path.name.encode())
        if path.stat().st_size < 64 << 20:
            digest.update(path.read_bytes())
        else:
            digest.update(str(path.stat().st_size).encode())
    return digest.hexdigest()[:12]
