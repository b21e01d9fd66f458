"""The published checkpoint layout: its tensor names, its config.json and the traps in it.

Traps: the number of words stands in a nested `text_config` whose other keys mean nothing (or at top level, in the
other variant); the nested `vision_config` means nothing; `image_token_index` collides with <im_start>; the sizes of
the vision tower and the heads of both attentions stand nowhere; keys say "devide"; a tensor `image_newline` may be
there and is not used. Everything that is not needed is kept aside, so that writing back is exact.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tubelet.errors import ModelError
from tubelet.llava_st.config import LlavaSTConfig, PackerConfig

KEPT_ASIDE = "official."  # prefix of tensors that are stored but not used
UNUSED = ("model.image_newline",)

_TABLES = ("temporal", "spatial_height", "spatial_width")
_TOWER = "model.vision_tower.vision_tower.vision_model."
_PACKER = "model.vision_resampler."
_BLOCKS = {"token_packer": "space", "token_packer_slow": "slow", "token_packer_fast": "fast"}
_BLOCK_NAMES = {
    **{f"to_{letter}.{layer}": f"{name}.{layer}" for letter, name in (("q", "query"), ("k", "key"), ("v", "value"))
       for layer in (0, 2)},
    **{f"ln_{letter}": f"{name}_norm" for letter, name in (("q", "query"), ("k", "key"), ("v", "value"))},
    "attn.in_proj_weight": "in_weight",
    "attn.in_proj_bias": "in_bias",
    "attn.out_proj": "out",
    "to_out": "to_tokens",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class OfficialGeometry:
    """What the published files do not say; None: known from the size of the tower, or from its name."""

    image_size: int | None = None
    vision_heads: int | None = None
    packer_heads: int = 8


@dataclass(frozen=True, slots=True)
class ModelParts:
    """Configs to build a LlavaST from: transformers' plain dicts, and ours."""

    llm: dict[str, Any]
    vision: dict[str, Any]
    config: LlavaSTConfig


def table_name(axis: int, direction: str) -> str:
    """model.temporal_input_embeddings.weight and its five siblings."""
    return f"model.{_TABLES[axis]}_{direction}_embeddings.weight"


def sources(names: list[str]) -> dict[str, tuple[str, ...]]:
    """Our tensor name -> published ones, concatenated along the rows. Unknown names map to `KEPT_ASIDE` + name."""
    joined = {
        "llm.model.embed_tokens.weight": (
            "model.embed_tokens.weight",
            *(table_name(a, "input") for a in range(3)),
        ),
        "llm.lm_head.weight": ("lm_head.weight", *(table_name(a, "output") for a in range(3))),
    }
    plan = dict(joined)
    taken = {name for group in joined.values() for name in group}
    for name in names:
        if name not in taken:
            plan[our_name(name)] = (name,)
    return plan


def our_name(name: str) -> str:
    """The name of one published tensor that is not part of the two matrices."""
    if name.startswith(_TOWER):
        return "vision." + name.removeprefix(_TOWER)
    if name.startswith("model.mm_projector."):
        return name.removeprefix("model.mm_")
    if name.startswith(_PACKER):
        block, _, rest = name.removeprefix(_PACKER).partition(".devide_attention.")
        for theirs, ours in _BLOCK_NAMES.items():
            if block in _BLOCKS and (rest == theirs or rest.startswith(theirs + ".")):
                return f"packer.{_BLOCKS[block]}.{ours}{rest.removeprefix(theirs)}"
    if name.startswith(("model.layers.", "model.norm.")):
        return "llm." + name
    return KEPT_ASIDE + name


def official_name(name: str) -> str:
    """The inverse of `our_name`."""
    if name.startswith(KEPT_ASIDE):
        return name.removeprefix(KEPT_ASIDE)
    if name.startswith("vision."):
        return _TOWER + name.removeprefix("vision.")
    if name.startswith("projector."):
        return "model.mm_" + name
    if name.startswith("packer."):
        _, block, rest = name.split(".", 2)
        theirs_of = {ours: theirs for theirs, ours in _BLOCK_NAMES.items()}
        block_of = {ours: theirs for theirs, ours in _BLOCKS.items()}
        stem, _, leaf = rest.rpartition(".")
        if rest in theirs_of:
            return f"{_PACKER}{block_of[block]}.devide_attention.{theirs_of[rest]}"
        return f"{_PACKER}{block_of[block]}.devide_attention.{theirs_of[stem]}.{leaf}"
    return name.removeprefix("llm.")


def is_official(data: Mapping[str, Any]) -> bool:
    """Is this config.json one of the published layout?"""
    return data.get("model_type") in ("llava", "llava_qwen") and "mm_vision_tower" in data


def read_parts(
    folder: Path, data: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], geometry: OfficialGeometry
) -> ModelParts:
    """Configs from config.json and the tensors' shapes. ModelError says what does not fit."""
    if not is_official(data):
        raise ModelError(
            f"{folder} holds a model of type {data.get('model_type')!r} without a vision tower of LLaVA; "
            "a published LLaVA-ST says llava or llava_qwen"
        )
    if data.get("mm_resampler_type") != "fast_slow_resampler":
        raise ModelError(
            f"{folder} is a LLaVA, but not a LLaVA-ST: mm_resampler_type is {data.get('mm_resampler_type')!r} "
            "instead of fast_slow_resampler"
        )
    needed = (
        "model.embed_tokens.weight",
        table_name(0, "input"),
        _TOWER + "embeddings.patch_embedding.weight",
        _TOWER + "embeddings.position_embedding.weight",
        _TOWER + "encoder.layers.0.mlp.fc1.weight",
        _PACKER + "token_packer.devide_attention.to_out.weight",
    )
    missing = [name for name in needed if name not in shapes]
    if missing:
        raise ModelError(
            f"the weights in {folder} do not make a LLaVA-ST, they lack {', '.join(missing)}"
            + (
                ": a checkpoint of stage 1 has no coordinate tables"
                if table_name(0, "input") in missing
                else ""
            )
        )
    rows = shapes["model.embed_tokens.weight"][0]
    said = vocabulary_of(data)
    if said is not None and said != rows:
        raise ModelError(
            f"{folder / 'config.json'} speaks of {said} words, but model.embed_tokens.weight has {rows} rows: "
            "config and weights are of different checkpoints"
        )
    config = LlavaSTConfig(
        mode="official",
        vocabulary=rows,
        bins=shapes[table_name(0, "input")][0],
        frames=100,
        pack_images=bool(data.get("use_downsample_image", False)),
        packer=PackerConfig(
            width=shapes[_PACKER + "token_packer.devide_attention.to_out.weight"][1],
            heads=geometry.packer_heads,
        ),
    )
    return ModelParts(_llm(folder, data, config), _vision(data, shapes, geometry), config)


def vocabulary_of(data: Mapping[str, Any]) -> int | None:
    """V as config.json tells it: under text_config, or at top level; None where it does not."""
    nested = data.get("text_config")
    for place in (nested if isinstance(nested, Mapping) else {}, data):
        if isinstance(place.get("vocab_size"), int):
            return int(place["vocab_size"])
    return None


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


def _llm(folder: Path, data: Mapping[str, Any], config: LlavaSTConfig) -> dict[str, Any]:
    missing = [key for key in _LLM_KEYS if not isinstance(data.get(key), int)]
    if missing:
        raise ModelError(f"{folder / 'config.json'} lacks {', '.join(missing)} at top level")
    llm = {key: data[key] for key in _LLM_KEYS}
    llm |= {key: data.get(key, default) for key, default in _LLM_DEFAULTS.items()}
    return {
        "model_type": "qwen2",
        **llm,
        "vocab_size": config.rows,
        "tie_word_embeddings": False,
        "use_sliding_window": False,
        # the published code drops any rope_scaling
        "rope_parameters": {"rope_type": "default", "rope_theta": float(data.get("rope_theta", 1e6))},
    }


_HEADS_OF_SIGLIP = {768: 12, 1024: 16, 1152: 16}


def _vision(
    data: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], geometry: OfficialGeometry
) -> dict[str, Any]:
    hidden, _, patch, _ = shapes[_TOWER + "embeddings.patch_embedding.weight"]
    grid = round(shapes[_TOWER + "embeddings.position_embedding.weight"][0] ** 0.5)
    named = re.search(r"patch(\d+)-(\d+)$", str(data["mm_vision_tower"]))
    image_size = geometry.image_size or (int(named[2]) if named and int(named[1]) == patch else grid * patch)
    heads = geometry.vision_heads or _HEADS_OF_SIGLIP.get(hidden)
    if heads is None:
        raise ModelError(
            f"the checkpoint does not say how many heads its vision tower (width {hidden}) has: give vision_heads"
        )
    if image_size // patch != grid:
        raise ModelError(
            f"the vision tower has {grid} x {grid} positions, which images of {image_size} pixels in patches of "
            f"{patch} do not give: give image_size"
        )
    layer = re.compile(re.escape(_TOWER) + r"encoder\.layers\.(\d+)\.")
    return {
        "model_type": "siglip_vision_model",
        "hidden_size": hidden,
        "intermediate_size": shapes[_TOWER + "encoder.layers.0.mlp.fc1.weight"][0],
        "num_hidden_layers": 1 + max(int(found[1]) for name in shapes if (found := layer.match(name))),
        "num_attention_heads": heads,
        "image_size": image_size,
        "patch_size": patch,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6,
        "vision_use_head": False,
    }


def new_official_config(parts: ModelParts, tower_name: str) -> dict[str, Any]:
    """A config.json in the published layout, for a model that did not come from it.

    ModelError for what the published code has as constants: window sizes, 100 anchors, a Qwen2.
    """
    llm, config = parts.llm, parts.config
    wrong = []
    if llm.get("model_type") != "qwen2":
        wrong.append(f"a {llm.get('model_type')} language model")
    if (config.packer.space, config.packer.fast, config.packer.time) != (3, 3, 5):
        wrong.append(f"windows {config.packer.space}, {config.packer.fast}, {config.packer.time}")
    if config.bins != 100 or config.frames != 100:
        wrong.append(f"{config.bins} anchors per axis and {config.frames} frames")
    if llm.get("tie_word_embeddings"):
        wrong.append("a head tied to the embeddings")
    if wrong:
        raise ModelError(
            f"the published code cannot run this model: it has {', '.join(wrong)}, which there are a Qwen2, "
            "windows 3, 3, 5, 100 anchors, 100 frames and a head of its own"
        )
    rope = llm.get("rope_parameters") or {}
    return {
        "architectures": ["LlavaQwenForCausalLM"],
        "model_type": "llava_qwen",
        "vocab_size": config.vocabulary,
        **{key: llm[key] for key in _LLM_KEYS},
        **{key: llm.get(key, default) for key, default in _LLM_DEFAULTS.items()},
        "rope_theta": rope.get("rope_theta", 1e6),
        "rope_scaling": None,
        "tie_word_embeddings": False,
        "use_cache": True,
        "use_sliding_window": False,
        "mm_vision_tower": tower_name,
        "vision_tower": tower_name,
        "mm_hidden_size": parts.vision["hidden_size"],
        "mm_projector_type": "mlp2x_gelu",
        "mm_patch_merge_type": "flat",
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_resampler_type": "fast_slow_resampler",
        "mm_perceiver_depth": 3,
        "mm_perceiver_ff_mult": 4,
        "mm_perceiver_latents": 81,
        "mm_perceiver_latents_fast": 9,
        "mm_perceiver_pretrained": None,
        "num_spatial_tokens": 100,
        "num_temporal_tokens": 100,
        "use_downsample_image": config.pack_images,
        "use_mm_proj": True,
        "image_aspect_ratio": "square",
        "tokenizer_model_max_length": llm.get("max_position_embeddings", 32768),
        "tokenizer_padding_side": "right",
    }
