"""The zero-shot method on models of published size: seconds per query, cheap and with tuning, and peak memory.

    python perf/zero_shot_sizes.py --size 7b [--families llava_onevision qwen2_5_vl] [--frames 20 64] [--device cuda]
    python perf/zero_shot_sizes.py --size tiny --device cpu    # the same code, for a smoke test: its speed says nothing

LLaVA-OneVision-7B (SigLIP so400m, 36 visual tokens a frame as published, and 196, its own) and Qwen2.5-VL-7B (frames of
640 x 360, at most 64 and 256 tokens a frame, two frames a step) with the shapes of the published configurations, random
weights in bfloat16 and the words of the pico vocabulary. Nothing is downloaded; frames are noise, which changes no
time. One line per family, number of frames and tokens:

    encode      the vision tower over all frames
    cheap       the first sentence after that: the video is read, two questions are asked
    second      another sentence on the same video
    quality     preset "tubelet" with_quality(): both tunings and the reversed video, after encoding
    published   preset "published" through the same code (two epochs)
    peak        memory above the weights during all of these (of torch's allocator on a GPU, resident set on a CPU)

Medians of `--repeats` after one round that is not counted. Expected for 7B at 720 tokens in bf16, from 11.8 TFLOP a
pass (docs/zero-shot.md has the memory): cheap about 1.1 passes, quality 8.3, published 14.5, so 0.03, 0.25 and 0.4 s on
a GPU that does 400 TFLOP/s, and less than 5 GB above 16.1 GB of weights.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
from attention_rows import timed

SENTENCE, OTHER = "the red circle that spins and moves down", "the blue star that grows"
FAMILIES = ("llava_onevision", "qwen2_5_vl")
FRAME_TOKENS = {"llava_onevision": (36, 196), "qwen2_5_vl": (64, 256)}
_CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}{% for part in message['content'] %}"
    "{% if part['type'] == 'video' %}{{ '<|vision_start|><|video_pad|><|vision_end|>' }}"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_TEXT: dict[str, dict[str, Any]] = {
    "7b": {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
           "num_key_value_heads": 4, "vocab_size": 152064, "max_position_embeddings": 32768},
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4,
             "num_key_value_heads": 2, "vocab_size": 1024, "max_position_embeddings": 32768},
}  # fmt: skip
_SIGLIP: dict[str, dict[str, Any]] = {
    "7b": {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 26,
        "num_attention_heads": 16,
    },
    "tiny": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
}
_QWEN_VISION: dict[str, dict[str, Any]] = {
    "7b": {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584,
           "fullatt_block_indexes": [7, 15, 23, 31]},
    "tiny": {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64,
             "fullatt_block_indexes": [1]},
}  # fmt: skip


def llava_onevision(size: str) -> tuple[Any, Any]:
    """(config, processor): frames of 384 pixels are 27 x 27 patches."""
    from transformers import AutoProcessor, LlavaOnevisionConfig, Qwen2Config, SiglipVisionConfig

    from tubelet.grounder import find_model

    processor = AutoProcessor.from_pretrained(find_model("pico-base"), local_files_only=True)
    image, video = processor.tokenizer.convert_tokens_to_ids(["<image>", "<video>"])
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(
            **_SIGLIP[size], image_size=384, patch_size=14, vision_use_head=False
        ),
        text_config=Qwen2Config(**_TEXT[size]),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_token_index=image,
        video_token_index=video,
    )
    return config, processor


def qwen2_5_vl(size: str) -> tuple[Any, Any]:
    """(config, processor): cells of 28 pixels."""
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
    )

    from tubelet.pico import pico_tokenizer

    names = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer = pico_tokenizer()
    tokenizer.add_tokens(names, special_tokens=True)
    tokenizer.image_token, tokenizer.video_token = names[2:]
    start, end, image, video = tokenizer.convert_tokens_to_ids(names)
    heads = _TEXT[size]["hidden_size"] // _TEXT[size]["num_attention_heads"] // 2
    rope = {
        "rope_type": "default",
        "rope_theta": 1e6,
        "mrope_section": [heads // 4, 3 * heads // 8, 3 * heads // 8],
    }
    config = Qwen2_5_VLConfig(
        vision_config=_QWEN_VISION[size],
        text_config=_TEXT[size] | {"rope_parameters": rope, "eos_token_id": tokenizer.eos_token_id},
        vision_start_token_id=start,
        vision_end_token_id=end,
        image_token_id=image,
        video_token_id=video,
    )
    processor = Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(cap_pixels_per_frame=False),
        chat_template=_CHATML,
    )
    return config, processor


def build(family: str, size: str, device: str, dtype: str) -> tuple[Any, Any, Any]:
    """(adapter, network, processor) with random weights on the device."""
    import torch
    from transformers import AutoModelForImageTextToText

    from tubelet.mllm.attention_rows import use_row_attention
    from tubelet.mllm.loading import FAMILIES as ADAPTERS

    config, processor = {"llava_onevision": llava_onevision, "qwen2_5_vl": qwen2_5_vl}[family](size)
    torch.manual_seed(0)
    with torch.device(device):
        network = AutoModelForImageTextToText.from_config(
            config, dtype=getattr(torch, dtype), attn_implementation="sdpa"
        )
    use_row_attention(network.model.language_model)
    return ADAPTERS[family], network.to(device).eval().requires_grad_(False), processor


def make_clip(frames: int) -> Any:
    from tubelet.frames import Clip, FrameGrid

    pixels = np.random.default_rng(0).integers(0, 255, (frames, 360, 640, 3), dtype=np.uint8)
    times = np.arange(frames) / 2
    return Clip(pixels, FrameGrid(np.arange(frames), times, Fraction(2), frames / 2, 640, 360))


def one_round(mllm: Any, clip: Any, device: str) -> tuple[dict[str, float], float]:
    """Seconds of each part, and the highest peak in GB."""
    import torch

    from tubelet.frames import Clip
    from tubelet.zeroshot.decompose import by_rules, question_of
    from tubelet.zeroshot.method import choose, read_map
    from tubelet.zeroshot.scoring import frame_scores
    from tubelet.zeroshot.settings import ZeroShotSettings, preset

    seconds: dict[str, float] = {}
    peaks: list[float] = []

    def part(name: str, call: Any) -> Any:
        seconds[name], peak, out = timed(call, device)
        peaks.append(peak / 1000)
        return out

    def read(sentence: str, prefix: Any) -> Any:
        settings = ZeroShotSettings()
        with torch.no_grad():
            return read_map(mllm, visual, prefix, question_of(sentence, settings.question), settings)

    visual = part("encode", lambda: mllm.encode(clip))
    kept: list[Any] = []

    def cheap() -> Any:
        with torch.no_grad():
            kept.append(mllm.prefix(visual))
        return read(SENTENCE, kept[0])

    part("cheap", cheap)
    part("second", lambda: read(OTHER, kept[0]))
    kept.clear()
    # where a step of time is two frames, tokens cannot be turned round: the reversed frames are encoded
    turned = None if mllm.capabilities.frames_per_step == 1 else Clip(clip.pixels[::-1], clip.grid)
    backwards = None if turned is None else lambda: mllm.encode(turned)
    weights = (np.random.default_rng(1).random((8, *visual.grid.shape)) < 0.2).astype(np.float64)
    published = preset("published")
    if mllm.capabilities.n_layers < 28:
        published = replace(published, layers=None)  # it names layers of models of 28 and more
    for name, settings in (("quality", preset("tubelet").with_quality()), ("published", published)):

        def full(settings: Any = settings) -> Any:
            return choose(
                mllm, visual, None, weights, SENTENCE, by_rules(SENTENCE), settings,
                lambda found, row: frame_scores(found, weights)[row], backwards,
            )  # fmt: skip

        part(name, full)
    return seconds, max(peaks)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", choices=tuple(_TEXT), default="7b")
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--frames", type=int, nargs="+", default=[20, 64])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()

    from tubelet.mllm.model import LoadedMllm

    names = ("encode", "cheap", "second", "quality", "published")
    print(
        f"| {args.size}, {args.dtype}, {args.device} | frames | visual tokens | {' | '.join(names)} | peak GB |"
    )
    print("|---" * (len(names) + 4) + "|")
    for family in args.families:
        adapter, network, processor = build(family, args.size, args.device, args.dtype)
        for frames in args.frames:
            clip = make_clip(frames)
            for tokens in FRAME_TOKENS[family]:
                able = adapter.capabilities(network, tokens)
                mllm = LoadedMllm("random", "0", adapter, able, network, processor, tokens)
                rounds = [one_round(mllm, clip, args.device) for _ in range(args.repeats + 1)][1:]
                times = [f"{statistics.median(s[name] for s, _ in rounds):.3f}" for name in names]
                n = mllm.grid_of(clip).n_cells
                peak = max(peak for _, peak in rounds)
                print(f"| {adapter.name} | {frames} | {n:,} | {' | '.join(times)} | {peak:.2f} |", flush=True)
        del network, mllm


if __name__ == "__main__":
    main()
