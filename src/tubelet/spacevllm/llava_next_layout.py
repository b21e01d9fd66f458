"""The checkpoint layout of the LLaVA-NeXT repository (LLaVA-OneVision, LLaVA-Video on Qwen2): names and config.json.

Knows which published tensor is which of transformers' `LlavaOnevisionForConditionalGeneration`, and what config.json
says about the token layout of a video. Traps: `model_type` is "llava" (or "llava_qwen") whatever the language
model is; a nested `text_config` or `vision_config` means nothing; `mm_vision_select_layer` is not read (the published
code cuts the tower's last layer off and takes the raw output of the one before); `mm_spatial_pool_stride` is not read
for videos (2 is fixed); pinpoints are (width, height), in transformers (height, width). Reads no tensor, only shapes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tubelet.errors import ModelError
from tubelet.spacevllm.config import SpaceVLLMConfig

CHAT_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'video' %}{{ '<video>\\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""qwen_1_5 of the published code, with its system turn, for transformers' message parts."""

TOWER = "model.vision_tower.vision_tower.vision_model."
EMBEDDING, HEAD, NEWLINE = "model.embed_tokens.weight", "lm_head.weight", "model.image_newline"
OUR_TOWER = "model.vision_tower."
OUR_EMBEDDING = "model.language_model.embed_tokens.weight"

_PROJECTOR = {"model.mm_projector.0.": "linear_1.", "model.mm_projector.2.": "linear_2."}
_COMPUTED = (".inv_freq", ".position_ids")  # buffers that older versions stored; they are computed
_NEWLINES = {"grid": "grid", "frame": "frame", "one_token": "one", "no_token": "none"}
_POOLS = ("bilinear", "average", "max")
_HEADS_OF_SIGLIP = {768: 12, 1024: 16, 1152: 16}
_LAYERS_OF_SIGLIP = {1152: 27}  # of the whole tower; published checkpoints hold one less
_SIGLIP_BASE: dict[str, Any] = {  # what a SigLIP's config.json leaves out
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 16,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
}
_LLM_KEYS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
)
_LLM_DEFAULTS: dict[str, Any] = {
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 32768,
    "hidden_act": "silu",
    "attention_dropout": 0.0,
    "initializer_range": 0.02,
    "bos_token_id": None,
    "eos_token_id": None,
}


@dataclass(frozen=True, slots=True)
class Tower:
    """Where a SigLIP tower is: tensor names by our names, and its transformers config."""

    names: Mapping[str, str]
    config: Mapping[str, Any]
    cut_layers: int = 0  # last layers that are stored and not used


def is_llava_next(data: Mapping[str, Any]) -> bool:
    """Is this config.json one of the LLaVA-NeXT repository (and not LLaVA-ST, which has a resampler of its own)?"""
    return (
        data.get("model_type") in ("llava", "llava_qwen")
        and "mm_vision_tower" in data
        and data.get("mm_resampler_type") != "fast_slow_resampler"
    )


def check_kind(folder: Path, data: Mapping[str, Any]) -> None:
    """ModelError for what is not a LLaVA on Qwen2 with a two-layer projector and nothing between."""
    where = folder / "config.json"
    if data.get("mm_resampler_type") == "fast_slow_resampler":
        raise ModelError(f"{folder} is a LLaVA-ST: use tubelet convert llava-st")
    if not is_llava_next(data):
        raise ModelError(
            f"{folder} holds a model of type {data.get('model_type')!r} without mm_vision_tower; a checkpoint of the "
            "LLaVA-NeXT repository says llava or llava_qwen and names its vision tower"
        )
    classes = data.get("architectures") or ["LlavaQwenForCausalLM"]
    wrong = []
    if "LlavaQwenForCausalLM" not in classes:
        wrong.append(f"its class is {', '.join(map(str, classes))} instead of LlavaQwenForCausalLM (Qwen2)")
    if "clip" in str(data["mm_vision_tower"]).lower():
        wrong.append(f"its vision tower is {data['mm_vision_tower']}, only SigLIP is read")
    if data.get("mm_projector_type", "mlp2x_gelu") != "mlp2x_gelu":
        wrong.append(f"mm_projector_type is {data['mm_projector_type']!r} instead of mlp2x_gelu")
    if data.get("mm_resampler_type") is not None:
        wrong.append(f"it has a resampler ({data['mm_resampler_type']!r})")
    if data.get("add_faster_video"):
        wrong.append("add_faster_video is set (a second, coarser run of tokens)")
    if wrong:
        raise ModelError(f"{where} describes a LLaVA that cannot be read: {'; '.join(wrong)}")


def newline_of(folder: Path, data: Mapping[str, Any]) -> str:
    """`SpaceVLLMConfig.newline` of a checkpoint, as the published code decides."""
    merge = str(data.get("mm_patch_merge_type", "flat"))
    if merge == "flat":
        return "none"
    if not merge.startswith("spatial"):
        raise ModelError(
            f"{folder / 'config.json'}: mm_patch_merge_type is flat or spatial..., got {merge!r}"
        )
    said = str(data.get("mm_newline_position", "one_token"))
    if said not in _NEWLINES:
        raise ModelError(
            f"{folder / 'config.json'}: mm_newline_position is one of {', '.join(_NEWLINES)}, got {said!r}"
        )
    return "none" if said == "one_token" and "unpad" not in merge else _NEWLINES[said]


def video_settings(folder: Path, data: Mapping[str, Any], words: int) -> SpaceVLLMConfig:
    """How the published code shows a video to this model.

    The time sentence is told when config.json says so, and to every model with grid newlines: LLaVA-Video was trained
    with it, and its model card passes it whatever config.json says.
    """
    newline = newline_of(folder, data)
    pool = str(data.get("mm_spatial_pool_mode", "bilinear"))
    if pool not in _POOLS:
        raise ModelError(
            f"{folder / 'config.json'}: mm_spatial_pool_mode is one of {', '.join(_POOLS)}, got {pool!r}"
        )
    told = bool(data.get("add_time_instruction")) or newline == "grid"
    return SpaceVLLMConfig(
        max_frames=64 if told else 32,
        time_layout="llava_video" if told else "none",
        newline=newline,
        pool=pool,
        words=words,
    )


def our_name(name: str) -> str | None:
    """transformers' name of a published tensor outside the tower; None for one that has no place."""
    if name in (NEWLINE, HEAD):
        return name
    for theirs, ours in _PROJECTOR.items():
        if name.startswith(theirs):
            return f"model.multi_modal_projector.{ours}{name.removeprefix(theirs)}"
    if name == EMBEDDING or name.startswith(("model.layers.", "model.norm.")):
        return "model.language_model." + name.removeprefix("model.")
    return None


def published_name(name: str) -> str:
    """The inverse of `our_name`, and of the names of a tower in the checkpoint."""
    if name.startswith(OUR_TOWER):
        return TOWER + name.removeprefix(OUR_TOWER)
    for theirs, ours in _PROJECTOR.items():
        name = name.replace(f"model.multi_modal_projector.{ours}", theirs)
    return name.replace("model.language_model.", "model.")


def is_computed(name: str) -> bool:
    return name.endswith(_COMPUTED)


def inner_tower(
    folder: Path, data: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], heads: int | None
) -> Tower:
    """The tower that lies in the checkpoint."""
    names = {name.removeprefix(TOWER): name for name in shapes if name.startswith(TOWER)}
    parts = {inner: shapes[name] for inner, name in names.items()}
    needed = ("patch_embedding.weight", "position_embedding.weight")
    missing = [TOWER + "embeddings." + n for n in needed if "embeddings." + n not in parts]
    if "encoder.layers.0.mlp.fc1.weight" not in parts:
        missing.append(TOWER + "encoder.layers.0.mlp.fc1.weight")
    if missing:
        raise ModelError(f"the vision tower in {folder} is not whole, it lacks {', '.join(missing)}")
    hidden, _, patch, _ = parts["embeddings.patch_embedding.weight"]
    grid = round(parts["embeddings.position_embedding.weight"][0] ** 0.5)
    named = re.search(r"patch(\d+)-(\d+)$", str(data["mm_vision_tower"]))
    image_size = int(named[2]) if named and int(named[1]) == patch else grid * patch
    if image_size // patch != grid:
        raise ModelError(
            f"the vision tower in {folder} has {grid} x {grid} positions, which images of {image_size} pixels (the "
            f"size in mm_vision_tower, {data['mm_vision_tower']!r}) in patches of {patch} do not give"
        )
    heads = heads or _HEADS_OF_SIGLIP.get(hidden)
    if heads is None or hidden % heads:
        raise ModelError(
            f"the checkpoint does not say how many heads its vision tower (width {hidden}) has"
            + (f", and {heads} do not divide it" if heads else "")
            + ": give --vision-heads (vision_heads)"
        )
    layers = _count_layers(parts)
    cut = 1 if _LAYERS_OF_SIGLIP.get(hidden) == layers else 0
    config = {
        "model_type": "siglip_vision_model",
        "hidden_size": hidden,
        "intermediate_size": parts["encoder.layers.0.mlp.fc1.weight"][0],
        "num_attention_heads": heads,
        "image_size": image_size,
        "patch_size": patch,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6,
    }
    return _tower(names, config, layers, cut)


def outer_tower(folder: Path, data: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Tower:
    """The tower of a SigLIP folder (whole or vision part), whose last layer the published code cuts off."""
    nested = data.get("vision_config")
    config = dict(nested) if isinstance(nested, Mapping) else dict(data)
    if config.get("model_type") != "siglip_vision_model":
        raise ModelError(f"{folder} holds a {data.get('model_type')!r}, a vision tower is a siglip")
    config = {**_SIGLIP_BASE, **config}
    prefix = "vision_model." if any(name.startswith("vision_model.") for name in shapes) else ""
    parts = ("embeddings.", "encoder.", "post_layernorm.")
    names = {
        name.removeprefix(prefix): name
        for name in shapes
        if name.startswith(tuple(prefix + part for part in parts))
    }
    layers = _count_layers(names)
    if layers < 2:
        raise ModelError(f"{folder} holds a vision tower of {layers} layers: at least 2 are needed")
    return _tower(names, config, layers, 1)


def _tower(names: Mapping[str, str], config: Mapping[str, Any], layers: int, cut: int) -> Tower:
    used = layers - cut
    kept = {
        OUR_TOWER + inner: name
        for inner, name in names.items()
        if not is_computed(inner) and not inner.startswith("head.") and _layer(inner) < used
    }
    return Tower(kept, {**config, "num_hidden_layers": used, "vision_use_head": False}, cut)


def _layer(name: str) -> int:
    found = re.match(r"encoder\.layers\.(\d+)\.", name)
    return int(found[1]) if found else -1


def _count_layers(names: Mapping[str, Any]) -> int:
    return 1 + max((_layer(name) for name in names), default=-1)


def text_config(folder: Path, data: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """The Qwen2 from the top level of config.json."""
    missing = [key for key in _LLM_KEYS if not isinstance(data.get(key), int)]
    if missing:
        raise ModelError(f"{folder / 'config.json'} lacks {', '.join(missing)} at top level")
    sliding = ("use_sliding_window", "sliding_window", "max_window_layers")
    return {
        "model_type": "qwen2",
        **{key: data[key] for key in _LLM_KEYS},
        **{key: data.get(key, default) for key, default in _LLM_DEFAULTS.items()},
        **({key: data[key] for key in sliding if key in data} if data.get("use_sliding_window") else {}),
        "vocab_size": rows,
        "tie_word_embeddings": bool(data.get("tie_word_embeddings", False)),
        # the published code drops any rope_scaling
        "rope_parameters": {"rope_type": "default", "rope_theta": float(data.get("rope_theta", 1e6))},
    }


def pinpoints(folder: Path, data: Mapping[str, Any], image_size: int) -> list[list[int]]:
    """image_grid_pinpoints as transformers has them, (height, width); also from the short form "(1x1),...,(6x6)"."""
    said = data.get("image_grid_pinpoints")
    if isinstance(said, str) and (ends := re.findall(r"\((\d+)x(\d+)\)", said)):
        (first_w, first_h), (last_w, last_h) = ((int(w), int(h)) for w, h in (ends[0], ends[-1]))
        said = [
            [w * image_size, h * image_size]
            for w in range(first_w, last_w + 1)
            for h in range(first_h, last_h + 1)
        ]
    elif isinstance(said, str):
        try:
            said = json.loads(said.replace("(", "[").replace(")", "]"))
        except ValueError as error:
            raise ModelError(
                f"{folder / 'config.json'}: image_grid_pinpoints are pairs, got {said[:60]!r}"
            ) from error
    if said is None:
        return [[image_size, image_size]]
    if not isinstance(said, list) or not all(
        isinstance(pair, list | tuple) and len(pair) == 2 for pair in said
    ):
        raise ModelError(f"{folder / 'config.json'}: image_grid_pinpoints are pairs, got {said!r:.60}")
    return [[int(height), int(width)] for width, height in said]
