"""SpaceVLLM folders and stock bases, written whole or not at all; `checkpoint` says what is in them and reads them."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tubelet import __version__
from tubelet.model_folder import atomic_folder, card_facts, card_licence, no_bars
from tubelet.spacevllm.checkpoint import AUXILIARY, MODEL_TYPE, PREPROCESSOR, SETTINGS, Bundle, tied_names
from tubelet.spacevllm.domain import Domain, save_domain
from tubelet.spacevllm.model import SpaceVLLM


def save_bundle(
    bundle: Bundle,
    folder: Path | str,
    dtype: torch.dtype | None = None,
    card: str = "",
    max_shard_size: str = "5GB",
    domain: Domain | None = None,
) -> Path:
    """Write a SpaceVLLM folder, atomically: it appears complete or not at all. `dtype` e.g. torch.float16.

    domain: what its training pictures look like, for the note on other footage. Raises OutputError.
    """
    from huggingface_hub import save_torch_state_dict

    folder = Path(folder)
    model = bundle.model
    data = {
        "model_type": MODEL_TYPE,
        "tubelet_version": __version__,
        "trained": bundle.trained,
        "base": model.base.config.to_dict(),
        "spacevllm": model.config.to_dict(),
    }
    with atomic_folder(folder) as temporary:
        (temporary / "config.json").write_text(json.dumps(data, indent=1, default=str) + "\n")
        state = {k: v.detach().to("cpu", dtype or v.dtype) for k, v in _saved_state(model).items()}
        save_torch_state_dict(state, temporary, max_shard_size=max_shard_size)
        bundle.tokenizer.save_pretrained(temporary)
        preprocessor = json.dumps(_preprocessor(bundle), indent=1)
        (temporary / PREPROCESSOR).write_text(preprocessor + "\n")
        if domain is not None:
            save_domain(domain, temporary)
        (temporary / "README.md").write_text(card or model_card(bundle), encoding="utf-8")
    return folder


def _preprocessor(bundle: Bundle) -> dict[str, Any]:
    """From decoded RGB pictures to the vision tower's input, in the words of transformers' image processors."""
    side = bundle.model.image_size
    return {
        "do_resize": True,
        "size": {"height": side, "width": side},
        "resample": 3,  # bicubic
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(bundle.pixel_mean),
        "image_std": list(bundle.pixel_std),
    }


def save_base(
    bundle: Bundle,
    folder: Path | str,
    dtype: torch.dtype | None = None,
    auxiliary: bool = True,
    domain: Domain | None = None,
) -> Path:
    """Write the base in the stock LLaVA-OneVision layout (model, tokenizer, processor), atomically.

    auxiliary: also keep the training-only heads beside it, for a SpaceVLLM that grows from it.
    """
    folder = Path(folder)
    with atomic_folder(folder) as temporary:
        base = bundle.model.base
        if dtype not in (None, base.dtype):
            base = copy.deepcopy(base).to(dtype)  # the model in memory keeps its precision
        with no_bars():
            base.save_pretrained(temporary)
        processor = _processor(bundle)
        if processor is not None:
            processor.save_pretrained(temporary)
        bundle.tokenizer.save_pretrained(temporary)
        (temporary / SETTINGS).write_text(json.dumps(bundle.model.config.to_dict(), indent=1) + "\n")
        if auxiliary:
            heads = {
                k: v.contiguous() for k, v in bundle.model.state_dict().items() if not k.startswith("base.")
            }
            save_file(heads, temporary / AUXILIARY)
        if domain is not None:
            save_domain(domain, temporary)
        (temporary / "README.md").write_text(base_card(bundle.model.config.domain), encoding="utf-8")
    return folder


def _saved_state(model: SpaceVLLM) -> dict[str, torch.Tensor]:
    """Names to write: a tied head is left out."""
    tied = tied_names(model.base, "base.")
    return {name: tensor for name, tensor in model.state_dict().items() if name not in tied}


def _processor(bundle: Bundle) -> Any:
    """The stock processor, so that transformers alone can load and run the base; None without torchvision."""
    from transformers import (
        LlavaOnevisionImageProcessor,
        LlavaOnevisionProcessor,
        LlavaOnevisionVideoProcessor,
    )

    size, model = bundle.model.image_size, bundle.model
    square = {"height": size, "width": size}
    vision = model.base.config.vision_config
    mean, std = list(bundle.pixel_mean), list(bundle.pixel_std)
    return LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessor(
            size=square, image_grid_pinpoints=[[size, size]], image_mean=mean, image_std=std
        ),
        video_processor=LlavaOnevisionVideoProcessor(size=square, image_mean=mean, image_std=std),
        tokenizer=bundle.tokenizer,
        num_image_tokens=(vision.image_size // vision.patch_size) ** 2,
        vision_feature_select_strategy="full",
        chat_template=bundle.tokenizer.chat_template,
    )


def model_card(bundle: Bundle) -> str:
    config = bundle.model.config
    n = sum(p.numel() for p in bundle.model.parameters())
    return (
        f"---\nlibrary_name: tubelet\n{card_licence(config.domain)}tags: [spatio-temporal-video-grounding]\n---\n\n"
        f"# SpaceVLLM ({n / 1e6:.1f} M parameters)\n\n"
        "A video and a sentence go in, a tube (time span + one box per moment) comes out.\n\n"
        f"- Frames: up to {config.max_frames}\n- Span read from: {config.span_reader}\n"
        f"{card_facts(config.domain, bundle.trained)}\n"
        '```python\nimport tubelet\ng = tubelet.load("this folder")\n'
        'print(g.ground("clip.mp4", "a sentence").tube)\n```\n'
    )


def base_card(domain: str = "") -> str:
    return (
        f"---\nlibrary_name: transformers\n{card_licence(domain)}tags: [video-text-to-text]\n---\n\n# pico-base\n\n"
        "A small chat model for videos and images, in the stock LLaVA-OneVision layout: captions, yes/no questions,\n"
        "questions. It knows nothing but what it was trained on.\n\n"
        f"{card_facts(domain, True)}"
    )
