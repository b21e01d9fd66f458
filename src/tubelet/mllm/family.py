"""What differs between model families, as functions: preprocessing, grid, visual features, how a video is written.

A family is a `Family` value: llava.py, qwen_vl.py and internvl.py make them, `FAMILIES` in loading.py lists them. No
family knows prompts, caches or attention.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tubelet.errors import ModelError
from tubelet.frames import Clip
from tubelet.mllm.layout import VisualText
from tubelet.mllm.parts import Capabilities, IntArray, VisualGrid

Size = tuple[int, int]
_WITH_SINKS = (
    "gpt_oss",
    "granite_swa",
    "mimo_v2_flash",
)  # language models that other checkpoints are built around


@dataclass(frozen=True, slots=True)
class Features:
    """Visual features of some frames: cells (n, D) by (t, y, x), deepstack: (n, D) per layer."""

    cells: Any
    deepstack: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class Family:
    """The parts of an adapter. `model` and `processor` are transformers' own objects.

    capabilities(model, max_frame_tokens): what the model is like; ModelError when it cannot have so few tokens.
    frame_size(processor, model, (T, H, W) of the clip, limit): (height, width) in pixels that frames are resized to.
    cells(model, frame_size, limit): (h, w) of the token grid for frames of that size.
    features(model, processor, frames uint8 (n, 3, H, W) on the device, frame_size, limit): `Features`.
    trailing(model): (K, D) tokens after the cells, or None.
    video_text(processor, grid): how the video is written into the prompt.
    positions(model, grid): (input_ids, is_visual) -> (A, N) position ids, or None for 0, 1, 2, ...
    """

    name: str
    model_type: str
    capabilities: Callable[[Any, int | None], Capabilities]
    frame_size: Callable[[Any, Any, tuple[int, int, int], int | None], Size]
    cells: Callable[[Any, Size, int | None], Size]
    features: Callable[[Any, Any, Any, Size, int | None], Features]
    trailing: Callable[[Any], Any] | None
    video_text: Callable[[Any, VisualGrid], VisualText]
    positions: Callable[[Any, VisualGrid], Callable[[IntArray, IntArray], IntArray]] | None


def softmax_layers(text_config: Any, family: str) -> tuple[int, ...]:
    """All layers; ModelError that names those whose attention is no softmax over the whole prompt."""
    n_layers = text_config.num_hidden_layers
    types = getattr(text_config, "layer_types", None) or ["full_attention"] * n_layers
    other = {kind: [i for i, t in enumerate(types) if t == kind] for kind in set(types) - {"full_attention"}}
    if other:
        named = "; ".join(
            f"layers {', '.join(map(str, at))} are {kind}" for kind, at in sorted(other.items())
        )
        raise ModelError(
            f"this {family} has a {text_config.model_type} language model in which {named}: attention rows and packed "
            "questions need softmax attention over the whole prompt in every layer (full_attention)"
        )
    return tuple(range(n_layers))


def check_plain_softmax(text: Any, family: str, modules: Iterable[Any] = ()) -> None:
    """ModelError for a language model whose scores are capped, or whose softmax has a sink beside the tokens.

    text: its config; modules: its parts, where it is loaded (sinks are no matter of the config in most models).
    """
    capped = getattr(text, "attn_logit_softcapping", None) is not None
    sinks = text.model_type in _WITH_SINKS or any(hasattr(module, "sinks") for module in modules)
    if capped or sinks:
        raise ModelError(
            f"this {family} has a {text.model_type} language model with "
            f"{'capped attention scores' if capped else 'attention sinks'}, whose rows are not read: use a model with "
            "plain softmax attention"
        )


def text_shape(model: Any, family: str) -> dict[str, Any]:
    """The fields of `Capabilities` that describe the language model; ModelError for attention that cannot be read."""
    text = model.config.text_config
    check_plain_softmax(text, family, model.model.language_model.modules())
    return {
        "n_layers": text.num_hidden_layers,
        "n_heads": text.num_attention_heads,
        "hidden_size": text.hidden_size,
        "max_tokens": text.max_position_embeddings,
        "softmax_layers": softmax_layers(text, family),
    }


def visual_grid(clip: Clip, cells: Size, frames_per_step: int, repeat: bool, trailing: int) -> VisualGrid:
    """Steps of time of a clip: `frames_per_step` neighbours each, or each frame so often (repeat)."""
    n = len(clip)
    if repeat or frames_per_step == 1:
        frames = np.arange(n)[:, None].repeat(frames_per_step, axis=1)
    else:
        frames = np.minimum(np.arange(-(-n // frames_per_step) * frames_per_step), n - 1).reshape(
            -1, frames_per_step
        )
    times = clip.grid.times_s[frames].mean(axis=1)
    moments = clip.grid.times_s
    apart = float(moments[-1] - moments[0]) / (n - 1) if n > 1 else 1.0
    step = apart * (1 if repeat else frames_per_step)
    return VisualGrid(len(frames), *cells, frames.astype(np.int64), times, step, trailing)


def first_side(size: Any) -> int:
    """Image sizes are a number or a pair in configs; frames are squares here."""
    return int(size[0] if isinstance(size, list | tuple) else size)


def square_pixels(processor: Any, frames: Any, side: int) -> Any:
    """uint8 (n, 3, H, W) -> float (n, 3, side, side), normalised as the checkpoint's video processor does.

    The whole frame is squeezed into the square: a centre crop (LLaVA-NeXT-Video's own setting) would hide what is
    to be found at the borders; the published zero-shot code squeezes, too.
    """
    batch = processor.video_processor(
        videos=[frames],
        size={"height": side, "width": side},
        do_resize=True,
        do_center_crop=False,
        do_sample_frames=False,
        return_tensors="pt",
    )
    return batch["pixel_values_videos"].flatten(0, 1)
