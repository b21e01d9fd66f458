"""InternVL (2.5, 3, 3.5) in transformers' own layout: square frames, "Frame1: " and image tags around every frame."""

from __future__ import annotations

from typing import Any

from tubelet.errors import ModelError
from tubelet.mllm.family import Family, Features, Size, first_side, square_pixels, text_shape
from tubelet.mllm.layout import VisualText
from tubelet.mllm.parts import Capabilities, VisualGrid

_NAME = "InternVL"


def _cells(model: Any, size: Size, limit: int | None) -> Size:
    config = model.config
    patches = first_side(config.vision_config.image_size) // first_side(config.vision_config.patch_size)
    side = int(patches * config.downsample_ratio)
    if limit is not None and side * side > limit:
        raise ModelError(
            f"this {_NAME} has {side * side} tokens per frame, and they cannot be fewer: leave max_frame_tokens out, "
            "or read fewer frames"
        )
    return side, side


def _capabilities(model: Any, limit: int | None) -> Capabilities:
    cells = _cells(model, (0, 0), limit)
    return Capabilities(
        family=_NAME,
        model_type=model.config.model_type,
        grid=cells,
        tokens_per_step=cells[0] * cells[1],
        frames_per_step=1,
        timestamps="frame numbers",
        contiguous=False,
        trailing_tokens=0,
        position_axes=1,
        deepstack_layers=0,
        **text_shape(model, _NAME),
    )


def _frame_size(processor: Any, model: Any, shape: tuple[int, int, int], limit: int | None) -> Size:
    side = first_side(model.config.vision_config.image_size)
    return side, side


def _features(model: Any, processor: Any, frames: Any, size: Size, limit: int | None) -> Features:
    pixels = square_pixels(processor, frames, size[0]).to(model.dtype)
    return Features(
        model.model.get_image_features(pixel_values=pixels, return_dict=True).pooler_output.flatten(0, 1)
    )


def _video_text(processor: Any, grid: VisualGrid) -> VisualText:
    frame = f"{processor.start_image_token}{processor.image_token}{processor.end_image_token}"
    text = "\n".join(f"Frame{number}: {frame}" for number in range(1, grid.n_steps + 1))
    return VisualText(text, processor.image_token, (grid.n_rows * grid.n_columns,) * grid.n_steps)


INTERNVL = Family(
    name=_NAME,
    model_type="internvl",
    capabilities=_capabilities,
    frame_size=_frame_size,
    cells=_cells,
    features=_features,
    trailing=None,
    video_text=_video_text,
    positions=None,
)
