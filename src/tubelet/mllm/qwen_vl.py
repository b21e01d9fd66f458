"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL (dense, and with experts): frames keep their shape, two per step of time, positions
in three axes.

The grid is (H / 28) x (W / 28) cells of the resized frame (Qwen3-VL: / 32). Qwen2.5-VL counts time positions in
seconds; Qwen3-VL writes "<1.5 seconds>" before every step, and adds features of some vision layers to its first layers
(deepstack). M-RoPE positions come from the model's own `get_rope_index` and are always passed explicitly: without them
transformers silently falls back to 1-D positions. `max_frame_tokens` bounds the cells of a frame, keeping its shape:
the checkpoints' own bound is far above what an attention map needs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from tubelet.mllm.family import Family, Features, Size, first_side, text_shape
from tubelet.mllm.layout import VisualText
from tubelet.mllm.parts import Capabilities, IntArray, VisualGrid

_NAMES = {
    "qwen2_vl": "Qwen2-VL",
    "qwen2_5_vl": "Qwen2.5-VL",
    "qwen3_vl": "Qwen3-VL",
    "qwen3_vl_moe": "Qwen3-VL-MoE",
}
_QWEN3 = ("qwen3_vl", "qwen3_vl_moe")  # one design; the second has experts in its language model


def _cell_pixels(model: Any) -> int:
    vision = model.config.vision_config
    return first_side(vision.patch_size) * int(vision.spatial_merge_size)


def _frame_size(processor: Any, model: Any, shape: tuple[int, int, int], limit: int | None) -> Size:
    """As the checkpoint's video processor would resize this many frames together, with at most `limit` cells."""
    n_frames, height, width = shape
    video, cell = processor.video_processor, _cell_pixels(model)
    n_frames = max(n_frames, video.temporal_patch_size)
    least, most = int(video.size["shortest_edge"]), int(video.size["longest_edge"])
    capped = bool(video.cap_pixels_per_frame)
    if model.config.model_type in _QWEN3:
        from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize as resize_all

        # the bound is on all frames together
        if capped:
            most = max(min(video.max_video_tokens * cell**2, most // n_frames), int(least * 1.05)) * n_frames
        if limit is not None:
            most = min(most, limit * cell**2 * n_frames)
        resized = resize_all(n_frames, height, width, video.temporal_patch_size, cell, least, most)
    else:
        from transformers.models.qwen2_vl.video_processing_qwen2_vl import smart_resize

        if capped:
            all_pixels = int(video.max_video_tokens * cell**2 * 0.9)
            most = max(min(most, all_pixels * video.temporal_patch_size // n_frames), int(least * 1.05))
        if limit is not None:
            most = min(most, limit * cell**2)
        resized = smart_resize(height, width, cell, least, most)
    return int(resized[0]), int(resized[1])


def _cells(model: Any, size: Size, limit: int | None) -> Size:
    cell = _cell_pixels(model)
    return size[0] // cell, size[1] // cell


def _features(model: Any, processor: Any, frames: Any, size: Size, limit: int | None) -> Features:
    from torchvision.transforms.v2 import functional

    # resized here: the processor would choose a size for these frames alone
    resized = functional.resize(
        frames, list(size), interpolation=functional.InterpolationMode.BICUBIC, antialias=True
    )
    batch = processor.video_processor(
        videos=[resized], do_resize=False, do_sample_frames=False, return_tensors="pt"
    )
    grid = batch["video_grid_thw"].to(model.device)
    out = model.model.get_video_features(
        batch["pixel_values_videos"].to(model.dtype), video_grid_thw=grid, return_dict=True
    )
    deepstack = getattr(out, "deepstack_features", None) or ()
    # one tensor per video, or, in older versions of transformers, one for all of them: (N, D) either way
    rows = tuple(part if getattr(part, "ndim", 0) == 2 else part[0] for part in deepstack)
    return Features(out.pooler_output[0], rows)


def _video_text(processor: Any, grid: VisualGrid) -> VisualText:
    return VisualText(processor.video_token, processor.video_token, (grid.n_tokens,))


def _timed_text(processor: Any, grid: VisualGrid) -> VisualText:
    step = f"{processor.vision_start_token}{processor.video_token}{processor.vision_end_token}"
    text = "".join(f"<{time_s:.1f} seconds>{step}" for time_s in grid.times_s)
    return VisualText(text, processor.video_token, (grid.n_rows * grid.n_columns,) * grid.n_steps)


def _positions(model: Any, grid: VisualGrid) -> Callable[[IntArray, IntArray], IntArray]:
    import torch

    merge = int(model.config.vision_config.spatial_merge_size)
    patches = torch.tensor([[grid.n_steps, grid.n_rows * merge, grid.n_columns * merge]])
    seconds = torch.tensor([grid.seconds_per_step])

    def positions(ids: IntArray, is_visual: IntArray) -> IntArray:
        kinds = torch.from_numpy(is_visual.astype(np.int64) * 2)[None]  # 2: video
        found, _ = model.model.get_rope_index(
            torch.from_numpy(ids)[None], kinds, video_grid_thw=patches, second_per_grid_ts=seconds
        )
        array: IntArray = found[:, 0].numpy()
        return array

    return positions


def _capabilities(model_type: str, model: Any, limit: int | None) -> Capabilities:
    name, vision = _NAMES[model_type], model.config.vision_config
    timed = model_type in _QWEN3
    return Capabilities(
        family=name,
        model_type=model_type,
        grid=None,
        tokens_per_step=None,
        frames_per_step=first_side(vision.temporal_patch_size),
        timestamps="seconds" if timed else "none",
        contiguous=not timed,
        trailing_tokens=0,
        position_axes=3,
        deepstack_layers=len(vision.deepstack_visual_indexes) if timed else 0,
        **text_shape(model, name),
    )


def _family(model_type: str) -> Family:
    return Family(
        name=_NAMES[model_type],
        model_type=model_type,
        capabilities=partial(_capabilities, model_type),
        frame_size=_frame_size,
        cells=_cells,
        features=_features,
        trailing=None,
        video_text=_timed_text if model_type in _QWEN3 else _video_text,
        positions=_positions,
    )


QWEN2_VL, QWEN2_5_VL, QWEN3_VL, QWEN3_VL_MOE = (_family(name) for name in _NAMES)
