"""A tiny random LLaVA-ST in the published layout, written tensor by tensor, without the library's own names.

Tower: 84 pixels in patches of 14, so 6 x 6 tokens; packer width 16; language model width 32, 2 layers.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

GOLDEN = Path(__file__).resolve().parents[2] / ".." / "shared" / "golden" / "llava_st"

HIDDEN, MLP, LAYERS, HEADS, KV_HEADS = 32, 48, 2, 4, 2
TOWER, TOWER_MLP, TOWER_LAYERS, TOWER_HEADS = 16, 24, 2, 2
PACKER, PACKER_HEADS = 16, 2
IMAGE_SIZE, PATCH = 84, 14
MARKS = [
    "<im_start>",
    "<im_end>",
    "<im_patch>",
    "<vid_start>",
    "<vid_end>",
    "<vid_patch>",
    "<slow_vid_start>",
    "<slow_vid_end>",
    "<TEMP-INPUT>",
    "<TEMP-OUTPUT>",
    "<HEIGHT-INPUT>",
    "<HEIGHT-OUTPUT>",
    "<WIDTH-INPUT>",
    "<WIDTH-OUTPUT>",
]


@pytest.fixture(scope="session")
def golden() -> Path:
    if not (GOLDEN / "README.md").is_file():
        pytest.skip("no golden files of LLaVA-ST beside this checkout")
    return GOLDEN


@pytest.fixture(scope="session")
def small_tokenizer() -> Any:
    """Bytes, a few merges, Qwen's two turn marks, and the 314 words of LLaVA-ST in the published order."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    lines = ["the man is here ]: [ ], ]. }. :[ {[ the video where when what", "Object bounding box: ],"] * 20
    tokenizer.train_from_iterator(lines, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    fast.add_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"], special_tokens=True)
    fast.pad_token, fast.eos_token = "<|endoftext|>", "<|im_end|>"
    fast.add_tokens(MARKS, special_tokens=True)
    anchors = [f"<{axis}-{k:03d}>" for axis in ("TEMP", "HEIGHT", "WIDTH") for k in range(100)]
    fast.add_tokens(anchors, special_tokens=True)
    return fast


def official_tensors(rows: int, seed: int = 0) -> dict[str, Any]:
    """Every tensor of the published layout, random, none of them at its usual start."""
    import torch

    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (rows, HIDDEN),
        "lm_head.weight": (rows, HIDDEN),
        "model.norm.weight": (HIDDEN,),
        "model.mm_projector.0.weight": (HIDDEN, TOWER),
        "model.mm_projector.0.bias": (HIDDEN,),
        "model.mm_projector.2.weight": (HIDDEN, HIDDEN),
        "model.mm_projector.2.bias": (HIDDEN,),
    }
    for axis in ("temporal", "spatial_height", "spatial_width"):
        for direction in ("input", "output"):
            shapes[f"model.{axis}_{direction}_embeddings.weight"] = (100, HIDDEN)
    kv = HIDDEN // HEADS * KV_HEADS
    for number in range(LAYERS):
        layer = f"model.layers.{number}."
        for name, size in (("q_proj", HIDDEN), ("k_proj", kv), ("v_proj", kv)):
            shapes[f"{layer}self_attn.{name}.weight"] = (size, HIDDEN)
            shapes[f"{layer}self_attn.{name}.bias"] = (size,)
        shapes[f"{layer}self_attn.o_proj.weight"] = (HIDDEN, HIDDEN)
        shapes[f"{layer}mlp.gate_proj.weight"] = shapes[f"{layer}mlp.up_proj.weight"] = (MLP, HIDDEN)
        shapes[f"{layer}mlp.down_proj.weight"] = (HIDDEN, MLP)
        shapes[f"{layer}input_layernorm.weight"] = (HIDDEN,)
        shapes[f"{layer}post_attention_layernorm.weight"] = (HIDDEN,)
    for block in ("token_packer", "token_packer_slow", "token_packer_fast"):
        part = f"model.vision_resampler.{block}.devide_attention."
        for letter in "qkv":
            shapes[f"{part}to_{letter}.0.weight"] = (PACKER, HIDDEN)
            shapes[f"{part}to_{letter}.2.weight"] = (PACKER, PACKER)
            for name in (
                f"to_{letter}.0.bias",
                f"to_{letter}.2.bias",
                f"ln_{letter}.weight",
                f"ln_{letter}.bias",
            ):
                shapes[part + name] = (PACKER,)
        shapes[part + "attn.in_proj_weight"] = (3 * PACKER, PACKER)
        shapes[part + "attn.in_proj_bias"] = (3 * PACKER,)
        shapes[part + "attn.out_proj.weight"] = (PACKER, PACKER)
        shapes[part + "attn.out_proj.bias"] = (PACKER,)
        shapes[part + "to_out.weight"] = (HIDDEN, PACKER)
    tower = "model.vision_tower.vision_tower.vision_model."
    shapes[tower + "embeddings.patch_embedding.weight"] = (TOWER, 3, PATCH, PATCH)
    shapes[tower + "embeddings.patch_embedding.bias"] = (TOWER,)
    shapes[tower + "embeddings.position_embedding.weight"] = ((IMAGE_SIZE // PATCH) ** 2, TOWER)
    shapes[tower + "post_layernorm.weight"] = shapes[tower + "post_layernorm.bias"] = (TOWER,)
    for number in range(TOWER_LAYERS):
        layer = f"{tower}encoder.layers.{number}."
        for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"):
            shapes[f"{layer}{name}.weight"] = (TOWER, TOWER)
        shapes[f"{layer}mlp.fc1.weight"] = (TOWER_MLP, TOWER)
        shapes[f"{layer}mlp.fc2.weight"] = (TOWER, TOWER_MLP)
        shapes[f"{layer}mlp.fc1.bias"] = (TOWER_MLP,)
        for name in (
            "self_attn.q_proj",
            "self_attn.k_proj",
            "self_attn.v_proj",
            "self_attn.out_proj",
            "mlp.fc2",
        ):
            shapes[f"{layer}{name}.bias"] = (TOWER,)
        for name in ("layer_norm1", "layer_norm2"):
            shapes[f"{layer}{name}.weight"] = shapes[f"{layer}{name}.bias"] = (TOWER,)
    generator = torch.Generator().manual_seed(seed)
    out = {}
    for name, shape in sorted(shapes.items()):
        scale = 0.3 if len(shape) == 1 else shape[-1] ** -0.5 * (1 if len(shape) == 2 else 0.1)
        out[name] = torch.randn(shape, generator=generator) * scale
        if len(shape) == 1 and ("norm" in name or ".ln_" in name) and name.endswith("weight"):
            out[name] += 1
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        out[name] *= 3  # clear winners among the words
    return out


def official_config(rows: int) -> dict[str, Any]:
    """config.json in the form a published checkpoint has: words under text_config, other nested keys misleading."""
    return {
        "architectures": ["LlavaQwenForCausalLM"],
        "model_type": "llava",
        "hidden_size": HIDDEN,
        "intermediate_size": MLP,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "max_position_embeddings": 32768,
        "image_token_index": 1,
        "mm_vision_tower": f"some/siglip-patch{PATCH}-{IMAGE_SIZE}",
        "mm_hidden_size": TOWER,
        "mm_projector_type": "mlp2x_gelu",
        "mm_resampler_type": "fast_slow_resampler",
        "num_spatial_tokens": 100,
        "num_temporal_tokens": 100,
        "use_downsample_image": False,
        "text_config": {"model_type": "llama", "vocab_size": rows, "hidden_size": 4096},
        "vision_config": {"model_type": "clip_vision_model", "image_size": 336, "hidden_size": 1024},
        "torch_dtype": "float16",
    }


@pytest.fixture(scope="session")
def write_official(small_tokenizer: Any) -> Callable[..., Path]:
    """write_official(folder, change=..., config=..., dtype=..., shards=1) -> folder in the published layout."""

    def write(
        folder: Path,
        change: Callable[[dict[str, Any]], None] | None = None,
        config: Callable[[dict[str, Any]], None] | None = None,
        dtype: Any = None,
        shards: int = 1,
    ) -> Path:
        import torch
        from safetensors.torch import save_file

        folder.mkdir(parents=True)
        rows = small_tokenizer.convert_tokens_to_ids("<TEMP-000>")
        tensors = {k: v.to(dtype or torch.float32) for k, v in official_tensors(rows).items()}
        data = official_config(rows)
        if change is not None:
            change(tensors)
        if config is not None:
            config(data)
        (folder / "config.json").write_text(json.dumps(data, indent=2) + "\n")
        settings = {"do_sample": True, "temperature": 0.7, "repetition_penalty": 1.05}
        (folder / "generation_config.json").write_text(json.dumps(settings))
        small_tokenizer.save_pretrained(folder)
        names = sorted(tensors)
        files = [f"model-{k + 1:05d}-of-{shards:05d}.safetensors" for k in range(shards)]
        files = files if shards > 1 else ["model.safetensors"]
        place = {name: files[k * shards // len(names)] for k, name in enumerate(names)}
        for file in files:
            part = {name: tensors[name] for name in names if place[name] == file}
            save_file(part, folder / file, metadata={"format": "pt"})
        if shards > 1:
            size = sum(t.numel() * t.element_size() for t in tensors.values())
            index = {"metadata": {"total_size": size}, "weight_map": place}
            (folder / "model.safetensors.index.json").write_text(
                json.dumps(index, indent=2, sort_keys=True) + "\n"
            )
        return folder

    return write


@pytest.fixture(scope="session")
def geometry() -> Any:
    from tubelet.llava_st.official_layout import OfficialGeometry

    return OfficialGeometry(vision_heads=TOWER_HEADS, packer_heads=PACKER_HEADS)


@pytest.fixture(scope="session")
def official_folder(write_official: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_official(tmp_path_factory.mktemp("official") / "llava-st")


@pytest.fixture(scope="session")
def small(official_folder: Path, geometry: Any) -> Any:
    """The bundle loaded from `official_folder`, in mode fixed. Do not change it."""
    from tubelet.llava_st.checkpoint import load_llava_st

    return load_llava_st(official_folder, mode="fixed", geometry=geometry)
