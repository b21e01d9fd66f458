"""The model of a recipe without its weights, on the meta device: what `dry_run` counts.

One that starts from a folder at hand is built from its config.json, a published 7B or 0.5B one from the shapes of its
family (Qwen2, SigLIP so400m).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tubelet.errors import RecipeError
from tubelet.training.recipe import Recipe

TIME_TOKENS = 7  # of one frame's time in the prompt
QWEN_ROWS = 151_660  # of Qwen2's vocabulary with a LLaVA's words, before the coordinates

_PUBLISHED = re.compile(r"(?<![\d.])(7|0\.5)b(?![a-z0-9])", re.IGNORECASE)
_QWEN2 = {
    "7": {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
          "num_key_value_heads": 4, "tie_word_embeddings": False, "vocab_size": 152064},
    "0.5": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
            "num_key_value_heads": 2, "tie_word_embeddings": True, "vocab_size": 152000},
}  # fmt: skip
_SO400M = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 26, "num_attention_heads": 16,
           "image_size": 384, "patch_size": 14, "vision_use_head": False}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Built:
    """A model on the meta device; prepare(train) chooses what learns; video_tokens(frames) are those of its prompt."""

    model: Any
    prepare: Callable[[str], None]
    text: Any  # config of the language model
    vision: Any
    tokens_per_frame: int
    video_tokens: Callable[[int], int]


def build(recipe: Recipe, notes: list[str]) -> Built:
    """The model that a recipe trains; what had to be assumed is added to the notes."""
    config, known = base_config(recipe, notes)
    with _meta():
        return _llava_st(recipe, config) if recipe.model == "llava-st" else _spacevllm(recipe, config, known)


def base_config(recipe: Recipe, notes: list[str]) -> tuple[Any, Any]:
    """A LlavaOnevisionConfig, and the settings that the folder of the start holds (None: none)."""
    from transformers import LlavaOnevisionConfig

    from tubelet.grounder import embedded_models
    from tubelet.model_folder import read_json
    from tubelet.spacevllm.checkpoint import chat_settings
    from tubelet.spacevllm.config import SpaceVLLMConfig

    folder = {m.name: m.folder for m in embedded_models()}.get(recipe.start, Path(recipe.start or "-"))
    if not recipe.start and recipe.model == "pico-base":
        from tubelet.pico import pico_config, pico_tokenizer

        return pico_config(pico_tokenizer()), None
    if (folder / "config.json").is_file():
        data = read_json(folder / "config.json")
        if data.get("model_type") == "llava_onevision":
            return LlavaOnevisionConfig.from_dict(data), chat_settings(folder)
        if isinstance(data.get("base"), dict) and isinstance(data.get("spacevllm"), dict):
            return LlavaOnevisionConfig.from_dict(data["base"]), SpaceVLLMConfig.from_dict(data["spacevllm"])
    found = _PUBLISHED.search(recipe.start)
    if found:
        size = found[1]
        notes.append(
            f"{recipe.start}: shapes of Qwen2-{size}B with SigLIP so400m were taken, no file was read"
        )
        own = SpaceVLLMConfig(newline="grid") if "video" in recipe.start.lower() else None
        text = {"model_type": "qwen2", "max_position_embeddings": 32768, **_QWEN2[size]}
        vision = {"model_type": "siglip_vision_model", **_SO400M}
        base = LlavaOnevisionConfig(text_config=text, vision_config=vision, vision_feature_layer=-1)
        base.tie_word_embeddings = _QWEN2[size]["tie_word_embeddings"]
        return base, own
    if "pico" in recipe.start:
        from tubelet.pico import pico_config, pico_tokenizer

        notes.append(f"{recipe.start} is not there yet: the shapes of a pico model were taken")
        return pico_config(pico_tokenizer()), None
    raise RecipeError(
        f"the shape of {recipe.start or 'the start'} is not known: it is no folder with a config.json, and no name "
        "that says 7b or 0.5b. Train the stage before it first, or --set start=FOLDER"
    )


def _spacevllm(recipe: Recipe, config: Any, known: Any) -> Built:
    import torch
    from transformers import LlavaOnevisionForConditionalGeneration

    from tubelet.spacevllm.checkpoint import Bundle
    from tubelet.spacevllm.model import SpaceVLLM
    from tubelet.spacevllm.prompts import PromptLayout
    from tubelet.spacevllm.train import choose_parameters
    from tubelet.training.lora import add_lora

    settings = recipe.spacevllm.on(known)
    queries: tuple[int, ...] = ()
    if recipe.model != "pico-base":
        rows = config.text_config.vocab_size
        if rows < QWEN_ROWS:  # no spare rows: the vocabulary grows
            config.text_config.vocab_size = -(-(rows + settings.max_frames + 1) // 8) * 8
        queries = tuple(
            range(config.text_config.vocab_size - settings.max_frames - 1, config.text_config.vocab_size)
        )
    base = LlavaOnevisionForConditionalGeneration(config)
    base.tie_weights()
    model = SpaceVLLM(base, settings)
    if recipe.lora.rank:
        add_lora(base.model.language_model, recipe.lora)
    layout = PromptLayout((), (), (), (), 0, queries)
    bundle = Bundle(model, None, layout, (0.5,) * 3, (0.5,) * 3, trained=False)
    per_frame = model.tokens_per_frame
    newlines = {"grid": round(per_frame**0.5), "frame": 1}.get(settings.newline, 0)
    told = 0 if settings.time_layout == "none" else TIME_TOKENS

    def video_tokens(frames: int) -> int:
        return int(min(frames, settings.max_frames) * (per_frame + newlines + 1 + told))

    def prepare(train: str) -> None:
        with torch.device("meta"):
            choose_parameters(bundle, train)

    text, vision = config.text_config, config.vision_config
    return Built(model, prepare, text, vision, per_frame, video_tokens)


def _llava_st(recipe: Recipe, config: Any) -> Built:
    import torch
    from transformers import AutoModelForCausalLM, SiglipVisionModel

    from tubelet.llava_st.model import LlavaST
    from tubelet.llava_st.train import Learner, choose_parameters
    from tubelet.training.lora import add_lora

    text = config.text_config
    small = text.vocab_size < QWEN_ROWS
    own = replace(recipe.llava_st, vocabulary=text.vocab_size if small else QWEN_ROWS)
    text.vocab_size, text.tie_word_embeddings = own.rows, False
    words: Any = SimpleNamespace(vocabulary=own.vocabulary, bins=own.bins)
    llm = AutoModelForCausalLM.from_config(text)
    model = LlavaST(llm, SiglipVisionModel(config.vision_config), own, words)
    if recipe.lora.rank and {stage.train for stage in recipe.stages} & {"coordinates", "tasks"}:
        add_lora(llm.model, recipe.lora)
    learner = Learner(model, recipe.auxiliary)

    def prepare(train: str) -> None:
        with torch.device("meta"):
            choose_parameters(learner, train)

    def video_tokens(frames: int) -> int:
        counts = model.counts(own.frames if own.mode == "official" else min(frames, own.frames))
        return int(counts.fast + counts.slow)

    return Built(learner, prepare, text, config.vision_config, model.counts(None).image, video_tokens)


@contextmanager
def _meta() -> Iterator[None]:
    """Parameters without memory and without the time to fill them."""
    import torch
    from transformers.initialization import no_init_weights

    with torch.device("meta"), no_init_weights():
        yield
