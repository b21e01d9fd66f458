"""Tiny random checkpoints of every family, in the hub's layout: config, weights, tokenizer, chat template, processor.

`write_checkpoint(family, folder)` writes one; `clip(...)` makes frames; `stock_inputs(...)` are what transformers' own
processor makes of the same clip and question, for the stock forward to compare with.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tubelet.frames import Clip, FrameGrid

FAMILIES = (
    "llava_onevision",
    "llava_next_video",
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "qwen3_vl_moe",
    "internvl",
)
SQUARE = {"llava_onevision": 56, "llava_next_video": 48, "internvl": 32}  # pixels of a frame's side

_SENTENCES = [
    "Is there the man in purple clothes in this video?",
    "Describe this video in details.",
    "please describe this video",
    "system user assistant You are a helpful assistant. USER: ASSISTANT:",
    "Frame1: Frame2: <0.5 seconds> the one a few? yes no Yes No",
] * 4

_CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'video' %}{{ 'VIDEO' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_SYSTEM = "{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}"
_ONEVISION = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + ' ' }}"
    "{% for part in message['content'] if part['type'] == 'video' %}{{ '<video>' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ '\\n' + part['text'] }}{% endfor %}"
    "{{ '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_VICUNA = (
    "{% for message in messages %}{{ 'USER: ' if message['role'] == 'user' else 'ASSISTANT: ' }}"
    "{% for part in message['content'] if part['type'] == 'video' %}{{ '<video>\\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] + ' ' }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
_QWEN_VIDEO = "<|vision_start|><|video_pad|><|vision_end|>"
TEMPLATES = {
    "llava_onevision": _ONEVISION,
    "llava_next_video": _VICUNA,
    "qwen2_vl": _SYSTEM + _CHATML.replace("VIDEO", _QWEN_VIDEO),
    "qwen2_5_vl": _SYSTEM + _CHATML.replace("VIDEO", _QWEN_VIDEO),
    "qwen3_vl": _CHATML.replace("VIDEO", _QWEN_VIDEO),
    "qwen3_vl_moe": _CHATML.replace("VIDEO", _QWEN_VIDEO),
    "internvl": _CHATML.replace("VIDEO", "<video>\\n"),
}
ROLE_TEXT = {
    "llava_onevision": ["<|im_end|>", "<|im_start|>", "assistant", "\n"],
    "llava_next_video": ["ASSISTANT:"],  # pieces, joined
    "internvl": ["<|im_end|>", "\n", "<|im_start|>", "assistant", "\n"],
}


def clip(n: int = 5, height: int = 48, width: int = 48, seed: int = 0) -> Clip:
    """Noise, two frames a second."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 255, (n, height, width, 3), dtype=np.uint8)
    grid = FrameGrid(np.arange(n) * 5, np.arange(n) / 2, Fraction(10), n / 2, width, height)
    return Clip(pixels, grid)


def clip_for(family: str, n: int = 5, seed: int = 0) -> Clip:
    """A clip whose frames the family's own processor keeps whole (square for LLaVA-NeXT-Video's centre crop)."""
    side = SQUARE.get(family)
    return clip(n, side or 34, side or 46, seed)


def chat_tokenizer(special: list[str], **kwargs: Any) -> Any:
    """Byte-level BPE with Qwen2's splitting, as ChatML models have."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    pattern = r"(?i:'s|'t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *special]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=names,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_SENTENCES, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=names[1:2] + special,
        **kwargs,
    )


def vicuna_tokenizer() -> Any:
    """Spaces become ▁, a start token is added: as LLaMA's tokenizer does."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    special = ["<unk>", "<s>", "</s>", "<image>", "<video>"]
    letters = [chr(at) for at in range(33, 127)] + ["▁", "\n"]
    trainer = trainers.BpeTrainer(
        vocab_size=200, special_tokens=special, initial_alphabet=letters, show_progress=False
    )
    tokenizer.train_from_iterator(_SENTENCES, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<unk>",
        additional_special_tokens=["<image>", "<video>"],
    )


def _text(vocab: int, tokenizer: Any, **kwargs: Any) -> dict[str, Any]:
    return {
        "vocab_size": vocab,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        **kwargs,
    }


def _llava(family: str) -> tuple[Any, Any]:
    import transformers as hf

    if family == "llava_onevision":
        tokenizer = chat_tokenizer(["<image>", "<video>"])
        vision = hf.SiglipVisionConfig(
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=56,
            patch_size=8,
            vision_use_head=False,
        )
        text = hf.Qwen2Config(**_text(len(tokenizer), tokenizer))
        config: Any = hf.LlavaOnevisionConfig(
            vision_config=vision,
            text_config=text,
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
            image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
            video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        )
        size = {"height": 56, "width": 56}
        processor: Any = hf.LlavaOnevisionProcessor(
            image_processor=hf.LlavaOnevisionImageProcessor(size=size),
            video_processor=hf.LlavaOnevisionVideoProcessor(size=size),
            tokenizer=tokenizer,
            num_image_tokens=49,
            vision_feature_select_strategy="full",
            chat_template=TEMPLATES[family],
        )
        return hf.LlavaOnevisionForConditionalGeneration(config), processor
    tokenizer = vicuna_tokenizer()
    vision = hf.CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=48,
        patch_size=8,
        projection_dim=8,
    )
    text = hf.LlamaConfig(**_text(len(tokenizer), tokenizer))
    config = hf.LlavaNextVideoConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
    )
    square = {"height": 48, "width": 48}
    processor = hf.LlavaNextVideoProcessor(
        image_processor=hf.LlavaNextImageProcessor(size={"shortest_edge": 48}, crop_size=square),
        video_processor=hf.LlavaNextVideoVideoProcessor(size={"shortest_edge": 48}, crop_size=square),
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATES[family],
    )
    return hf.LlavaNextVideoForConditionalGeneration(config), processor


def _qwen(family: str) -> tuple[Any, Any]:
    import transformers as hf

    pads = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer = chat_tokenizer(pads)
    ids = dict(zip(pads, tokenizer.convert_tokens_to_ids(pads), strict=True))
    tokens = {
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
    }
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
    vision: dict[str, Any] = {"depth": 2, "num_heads": 2, "patch_size": 4, "temporal_patch_size": 2}
    text = _text(len(tokenizer), tokenizer, rope_parameters=rope)
    pixels = {
        "size": {"shortest_edge": 256, "longest_edge": 2048},
        "patch_size": 4,
        "cap_pixels_per_frame": False,
    }
    if family == "qwen2_vl":
        vision |= {"embed_dim": 16, "hidden_size": 32, "mlp_ratio": 2}
        config: Any = hf.Qwen2VLConfig(vision_config=vision, text_config=text, **tokens)
        model: Any = hf.Qwen2VLForConditionalGeneration(config)
        kind, video = hf.Qwen2VLProcessor, hf.Qwen2VLVideoProcessor(**pixels)
    elif family == "qwen2_5_vl":
        vision |= {"hidden_size": 16, "intermediate_size": 24, "out_hidden_size": 32, "window_size": 16}
        vision |= {"fullatt_block_indexes": [1], "tokens_per_second": 2}
        config = hf.Qwen2_5_VLConfig(vision_config=vision, text_config=text, **tokens)
        model = hf.Qwen2_5_VLForConditionalGeneration(config)
        kind, video = hf.Qwen2_5_VLProcessor, hf.Qwen2VLVideoProcessor(**pixels)
    else:
        vision |= {"hidden_size": 16, "intermediate_size": 24, "out_hidden_size": 32}
        vision |= {"num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1], "depth": 3}
        text |= {"head_dim": 8, "rope_parameters": {**rope, "mrope_interleaved": True}}
        if family == "qwen3_vl_moe":
            text |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
            config = hf.Qwen3VLMoeConfig(vision_config=vision, text_config=text, **tokens)
            model = hf.Qwen3VLMoeForConditionalGeneration(config)
        else:
            config = hf.Qwen3VLConfig(vision_config=vision, text_config=text, **tokens)
            model = hf.Qwen3VLForConditionalGeneration(config)
        pixels["size"] = {"shortest_edge": 512, "longest_edge": 9000}
        kind, video = hf.Qwen3VLProcessor, hf.Qwen3VLVideoProcessor(**pixels)
    image = hf.Qwen2VLImageProcessor(size={"shortest_edge": 256, "longest_edge": 2048}, patch_size=4)
    processor = kind(
        image_processor=image, tokenizer=tokenizer, video_processor=video, chat_template=TEMPLATES[family]
    )
    return model, processor


def _internvl() -> tuple[Any, Any]:
    import transformers as hf

    names = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    tokenizer = chat_tokenizer(list(names.values()), model_specific_special_tokens=names)
    config = hf.InternVLConfig(
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": [32, 32],
            "patch_size": [4, 4],
        },
        text_config=hf.Qwen2Config(**_text(len(tokenizer), tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=16,
        tie_word_embeddings=False,
    )
    size = {"height": 32, "width": 32}
    processor = hf.InternVLProcessor(
        image_processor=hf.GotOcr2ImageProcessor(size=size),
        video_processor=hf.InternVLVideoProcessor(size=size),
        tokenizer=tokenizer,
        image_seq_length=16,
        chat_template=TEMPLATES["internvl"],
    )
    return hf.InternVLForConditionalGeneration(config), processor


def make_checkpoint(family: str, seed: int = 0) -> tuple[Any, Any]:
    """A model whose attention is far from uniform, and its processor."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if family.startswith("llava"):
            model, processor = _llava(family)
        elif family == "internvl":
            model, processor = _internvl()
        else:
            model, processor = _qwen(family)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "norm" in name:
                    if "q_norm" in name:
                        parameter.fill_(2.0)  # Qwen3 scales queries here
                    continue
                parameter.normal_(0.0, parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1)
                if "language_model" in name and ("q_proj" in name or "k_proj" in name):
                    parameter.mul_(1.8)  # sharp rows: an error in them shows
    return model.eval(), processor


def write_checkpoint(family: str, folder: Path) -> Path:
    model, processor = make_checkpoint(family)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def stock_inputs(processor: Any, family: str, video: Clip, text: str) -> dict[str, Any]:
    """What transformers' own chat template and processor make of it, as tensors for the stock forward."""
    content = [{"type": "video"}, {"type": "text", "text": text}]
    rendered = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    metadata = {
        "total_num_frames": round(video.grid.duration_s * video.grid.fps),
        "fps": float(video.grid.fps),
        "frames_indices": video.grid.frame_index.tolist(),
    }
    extra = {"video_metadata": [metadata]} if family.startswith("qwen") else {}
    batch = dict(
        processor(
            text=[rendered],
            videos=[torch.from_numpy(video.pixels).permute(0, 3, 1, 2)],
            do_sample_frames=False,
            return_tensors="pt",
            **extra,
        )
    )
    return {key: value for key, value in batch.items() if isinstance(value, torch.Tensor)}
