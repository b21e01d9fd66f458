"""LLaVA-OneVision and LLaVA-NeXT-Video: square frames, pooled patch tokens, all in one run.

OneVision: SigLIP patches, projected, then bilinearly pooled by 2 (27 x 27 -> 14 x 14), one newline token at the end.
NeXT-Video: CLIP patches, average-pooled by the config's stride (2), then projected (the authors' code projects first;
small numeric differences). `max_frame_tokens` picks the smallest stride that fits: 36 gives the 6 x 6 of the published
zero-shot runs for both (strides 5 and 4).
"""

from __future__ import annotations

import math
from typing import Any

from tubelet.errors import ModelError
from tubelet.mllm.family import Family, Features, Size, first_side, square_pixels, text_shape
from tubelet.mllm.layout import VisualText
from tubelet.mllm.parts import Capabilities, VisualGrid

_ONEVISION, _NEXT_VIDEO = "LLaVA-OneVision", "LLaVA-NeXT-Video"


def _patches(model: Any) -> int:
    vision = model.config.vision_config
    return first_side(vision.image_size) // first_side(vision.patch_size)


def _ceil_side(model: Any, limit: int | None) -> int:
    """Side of OneVision's pooled grid: patches / stride, rounded up; the stock stride is 2."""
    patches = _patches(model)
    strides = range(2, patches + 1)
    return next(s for s in (math.ceil(patches / stride) for stride in strides) if s * s <= (limit or s * s))


def _next_stride(model: Any, limit: int | None) -> int:
    patches, stride = _patches(model), int(model.config.spatial_pool_stride)
    fits = [s for s in range(stride, patches + 1) if (patches // s) ** 2 <= (limit or patches**2)]
    if fits[0] != stride and model.config.spatial_pool_mode == "conv":
        raise ModelError(
            f"this {_NEXT_VIDEO} pools with learned weights: max_frame_tokens cannot change its grid"
        )
    return fits[0]


def _cells_onevision(model: Any, size: Size, limit: int | None) -> Size:
    side = _ceil_side(model, limit)
    return side, side


def _cells_next(model: Any, size: Size, limit: int | None) -> Size:
    side = _patches(model) // _next_stride(model, limit)
    return side, side


def _frame_size(processor: Any, model: Any, shape: tuple[int, int, int], limit: int | None) -> Size:
    side = first_side(model.config.vision_config.image_size)
    return side, side


def _projected(model: Any, pixels: Any, pool: Any = None) -> Any:
    """(n, patches, D): the chosen layer(s) of the vision tower, pooled when `pool` is given, projected."""
    import torch

    config, core = model.config, model.model
    hidden = core.vision_tower(pixels, output_hidden_states=True).hidden_states
    layer = config.vision_feature_layer
    chosen = hidden[layer] if isinstance(layer, int) else torch.cat([hidden[at] for at in layer], dim=-1)
    if config.vision_feature_select_strategy == "default":
        chosen = chosen[:, 1:]
    return core.multi_modal_projector(chosen if pool is None else pool(chosen))


def _features_onevision(model: Any, processor: Any, frames: Any, size: Size, limit: int | None) -> Features:
    from torch.nn.functional import interpolate

    pixels = square_pixels(processor, frames, size[0]).to(model.dtype)
    features, patches = _projected(model, pixels), _patches(model)
    picture = features.unflatten(1, (patches, patches)).permute(0, 3, 1, 2).contiguous()
    pooled = interpolate(picture, size=_cells_onevision(model, size, limit), mode="bilinear")
    return Features(pooled.permute(0, 2, 3, 1).flatten(0, 2))


def _features_next(model: Any, processor: Any, frames: Any, size: Size, limit: int | None) -> Features:
    from torch.nn.functional import avg_pool2d, max_pool2d

    stride, patches = _next_stride(model, limit), _patches(model)

    def pool(features: Any) -> Any:
        if model.config.spatial_pool_mode == "conv":
            return model.model.vision_resampler(features)
        picture = features.unflatten(1, (patches, patches)).permute(0, 3, 1, 2)
        pooling = avg_pool2d if model.config.spatial_pool_mode == "average" else max_pool2d
        return pooling(picture, stride).flatten(2).transpose(1, 2).contiguous()

    pixels = square_pixels(processor, frames, size[0]).to(model.dtype)
    return Features(_projected(model, pixels, pool).flatten(0, 1))


def _newline(model: Any) -> Any:
    return model.model.image_newline[None]


def _video_text(processor: Any, grid: VisualGrid) -> VisualText:
    return VisualText(processor.video_token, processor.video_token, (grid.n_tokens,))


def _capabilities(model: Any, family: str, cells: Size, trailing: int) -> Capabilities:
    return Capabilities(
        family=family,
        model_type=model.config.model_type,
        grid=cells,
        tokens_per_step=cells[0] * cells[1],
        frames_per_step=1,
        timestamps="none",
        contiguous=True,
        trailing_tokens=trailing,
        position_axes=1,
        deepstack_layers=0,
        **text_shape(model, family),
    )


LLAVA_ONEVISION = Family(
    name=_ONEVISION,
    model_type="llava_onevision",
    capabilities=lambda model, limit: _capabilities(
        model, _ONEVISION, _cells_onevision(model, (0, 0), limit), 1
    ),
    frame_size=_frame_size,
    cells=_cells_onevision,
    features=_features_onevision,
    trailing=_newline,
    video_text=_video_text,
    positions=None,
)

LLAVA_NEXT_VIDEO = Family(
    name=_NEXT_VIDEO,
    model_type="llava_next_video",
    capabilities=lambda model, limit: _capabilities(model, _NEXT_VIDEO, _cells_next(model, (0, 0), limit), 0),
    frame_size=_frame_size,
    cells=_cells_next,
    features=_features_next,
    trailing=None,
    video_text=_video_text,
    positions=None,
)
