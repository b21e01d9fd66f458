"""Checkpoints in the layout of the LLaVA-NeXT repository, written from names and shapes; reading the golden files.

Nothing here uses the library's own names: tensors are written as the published files have them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

GOLDEN = Path(__file__).resolve().parents[2] / ".." / "shared" / "golden" / "llava_next"

HIDDEN, MLP, LAYERS, HEADS, KV_HEADS = 32, 48, 2, 4, 2
TOWER, TOWER_MLP, TOWER_LAYERS, TOWER_HEADS = 16, 24, 2, 2
IMAGE_SIZE, PATCH, GRID = 64, 7, 9  # 9 x 9 patches: 5 x 5 pooled tokens, 4 x 4 by average
ROWS_BEYOND = 21  # padding rows after the tokenizer's words
INNER_TOWER = "model.vision_tower.vision_tower.vision_model."


def tower_shapes(layers: int = TOWER_LAYERS) -> dict[str, tuple[int, ...]]:
    """A SigLIP vision tower without head, names from "embeddings." on."""
    d, mlp = TOWER, TOWER_MLP
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.patch_embedding.weight": (d, 3, PATCH, PATCH),
        "embeddings.patch_embedding.bias": (d,),
        "embeddings.position_embedding.weight": (GRID * GRID, d),
        "post_layernorm.weight": (d,),
        "post_layernorm.bias": (d,),
    }
    for k in range(layers):
        layer = f"encoder.layers.{k}."
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= {f"{layer}self_attn.{part}.weight": (d, d), f"{layer}self_attn.{part}.bias": (d,)}
        for norm in ("layer_norm1", "layer_norm2"):
            shapes |= {f"{layer}{norm}.weight": (d,), f"{layer}{norm}.bias": (d,)}
        shapes |= {f"{layer}mlp.fc1.weight": (mlp, d), f"{layer}mlp.fc1.bias": (mlp,)}
        shapes |= {f"{layer}mlp.fc2.weight": (d, mlp), f"{layer}mlp.fc2.bias": (d,)}
    return shapes


def model_shapes(rows: int, tied: bool = False, tower: bool = True) -> dict[str, tuple[int, ...]]:
    """Every tensor of a LlavaQwenForCausalLM."""
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (rows, HIDDEN),
        "model.image_newline": (HIDDEN,),
        "model.mm_projector.0.weight": (HIDDEN, TOWER),
        "model.mm_projector.0.bias": (HIDDEN,),
        "model.mm_projector.2.weight": (HIDDEN, HIDDEN),
        "model.mm_projector.2.bias": (HIDDEN,),
        "model.norm.weight": (HIDDEN,),
    }
    if not tied:
        shapes["lm_head.weight"] = (rows, HIDDEN)
    for k in range(LAYERS):
        layer, kv = f"model.layers.{k}.", HIDDEN // HEADS * KV_HEADS
        for part, size in (("q_proj", HIDDEN), ("k_proj", kv), ("v_proj", kv)):
            shapes |= {
                f"{layer}self_attn.{part}.weight": (size, HIDDEN),
                f"{layer}self_attn.{part}.bias": (size,),
            }
        shapes[f"{layer}self_attn.o_proj.weight"] = (HIDDEN, HIDDEN)
        shapes |= {f"{layer}mlp.{part}.weight": (MLP, HIDDEN) for part in ("gate_proj", "up_proj")}
        shapes[f"{layer}mlp.down_proj.weight"] = (HIDDEN, MLP)
        shapes |= {f"{layer}{norm}_layernorm.weight": (HIDDEN,) for norm in ("input", "post_attention")}
    if tower:
        shapes |= {INNER_TOWER + name: shape for name, shape in tower_shapes().items()}
    return shapes


def config_of(rows: int, **changes: Any) -> dict[str, Any]:
    """config.json with its meaningless nested parts, which must not be read."""
    return {
        "architectures": ["LlavaQwenForCausalLM"],
        "model_type": "llava",
        "vocab_size": rows,
        "hidden_size": HIDDEN,
        "intermediate_size": MLP,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "max_position_embeddings": 32768,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "image_aspect_ratio": "anyres_max_9",
        "image_grid_pinpoints": "(1x1),...,(2x3)",
        "mm_vision_tower": f"nowhere/siglip-tiny-patch{PATCH}-{IMAGE_SIZE}",
        "mm_hidden_size": TOWER,
        "mm_projector_type": "mlp2x_gelu",
        "mm_patch_merge_type": "spatial_unpad",
        "mm_newline_position": "grid",
        "mm_spatial_pool_mode": "bilinear",
        "mm_spatial_pool_stride": 2,
        "mm_vision_select_layer": -2,
        "mm_resampler_type": None,
        "image_token_index": 271,
        "text_config": {"model_type": "llama", "hidden_size": 999},
        "vision_config": {"model_type": "clip_vision_model", "hidden_size": 1024},
        **changes,
    }


def random_tensors(
    shapes: dict[str, tuple[int, ...]], dtype: torch.dtype = torch.float32, seed: int = 0
) -> dict[str, torch.Tensor]:
    """Large enough that every input moves every output; norms around 1."""
    generator = torch.Generator().manual_seed(seed)
    out = {}
    for name, shape in shapes.items():
        value = torch.randn(shape, generator=generator)
        if len(shape) > 1:
            value = value * float(np.prod(shape[1:])) ** -0.5
        else:
            value = value * 0.1 + (1.0 if name.endswith("norm.weight") or "layer_norm" in name else 0.0)
        out[name] = value.to(dtype)
    return out


def write_checkpoint(
    folder: Path,
    tokenizer: Any,
    dtype: torch.dtype = torch.float32,
    tied: bool = False,
    tower: bool = True,
    beyond: int = ROWS_BEYOND,
    shards: int = 1,
    **changes: Any,
) -> dict[str, torch.Tensor]:
    """A whole folder; returns its tensors."""
    folder.mkdir(parents=True)
    rows = len(tokenizer) + beyond
    config = config_of(rows, tie_word_embeddings=tied, **changes)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"repetition_penalty": 1.05}))
    tokenizer.save_pretrained(folder)
    tensors = random_tensors(model_shapes(rows, tied, tower), dtype)
    write_weights(folder, tensors, shards)
    return tensors


def write_weights(folder: Path, tensors: dict[str, torch.Tensor], shards: int = 1) -> None:
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return
    names, index = sorted(tensors), {}
    for k in range(shards):
        file = f"model-{k + 1:05d}-of-{shards:05d}.safetensors"
        save_file({name: tensors[name] for name in names[k::shards]}, folder / file)
        index |= dict.fromkeys(names[k::shards], file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


# --- golden files --------------------------------------------------------------------------------


def tensors(name: str) -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / f"{name}.safetensors")


def notes(name: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((GOLDEN / f"{name}.json").read_text())
    return data


def pixels(frames: int, phase: float) -> torch.Tensor:
    """(frames, 3, 384, 384) float32, by the formula of the golden README."""
    y, x = np.arange(384, dtype=np.float64)[:, None], np.arange(384, dtype=np.float64)[None]
    out = np.empty((frames, 3, 384, 384), dtype=np.float32)
    for f in range(frames):
        for c in range(3):
            out[f, c] = (
                0.5 * np.sin(0.05 * x + 0.03 * y + 0.7 * c + 0.2 * f + phase)
                + 0.3 * np.sin(0.11 * y - 0.07 * x + 1.3 * c - 0.05 * f + 0.5 * phase)
                + 0.2 * np.sin(0.0009 * x * y + 0.13 * f * (c + 1) + 2 * phase)
            )
    return torch.from_numpy(out)


def integer_image(width: int, height: int, phase: float) -> np.ndarray[Any, Any]:
    """(height, width, 3) uint8, by the formula of the golden README."""
    y, x = np.arange(height, dtype=np.float64)[:, None], np.arange(width, dtype=np.float64)[None]
    planes = [
        np.floor(
            127.5
            + 127.5 * np.sin(0.031 * x + 0.017 * y + 0.9 * c + phase) * np.cos(0.00021 * x * y + 0.4 * c)
        )
        for c in range(3)
    ]
    return np.stack(planes, axis=-1).astype(np.uint8)
