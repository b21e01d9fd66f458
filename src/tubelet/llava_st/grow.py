"""A new LLaVA-ST from a LLaVA-OneVision: its tower, projector and language model, plus words, tables and a packer.

New words start as the mean of the old ones, as published; the coordinate tables as noise of the size of the old rows
(published: size 1, which drowns the features of a small model); the packer is random. The head gets rows of its own.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch

from tubelet.errors import ModelError
from tubelet.llava_st.checkpoint import Bundle
from tubelet.llava_st.config import LlavaSTConfig
from tubelet.llava_st.model import LlavaST
from tubelet.llava_st.words import add_words


def grow(
    base: Any, tokenizer: Any, config: LlavaSTConfig | None = None, seed: int = 0, tables: bool = True
) -> Bundle:
    """base: LlavaOnevisionForConditionalGeneration (unchanged by this); its tokenizer is copied.

    config.vocabulary is filled in. tables: False leaves the coordinate tables at zero, as if there were none
    (`fill_tables`). Raises ModelError for a base whose parts do not fit.
    """
    from transformers import AutoModelForCausalLM

    config = config or LlavaSTConfig()
    settings = base.config
    if settings.projector_hidden_act != "gelu" or settings.text_config.model_type not in ("qwen2", "qwen3"):
        raise ModelError(
            "a LLaVA-ST grows from a base with a gelu projector and a qwen2 or qwen3 language model, got "
            f"{settings.projector_hidden_act} and {settings.text_config.model_type}"
        )
    tokenizer = copy.deepcopy(tokenizer)
    known = len(tokenizer)
    words = add_words(tokenizer, config.bins)
    config = replace(config, vocabulary=words.vocabulary)
    llm_config = copy.deepcopy(settings.text_config)
    llm_config.vocab_size, llm_config.tie_word_embeddings = config.rows, False
    dtype = base.get_input_embeddings().weight.dtype
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        llm = AutoModelForCausalLM.from_config(llm_config).to(dtype)
        body = {k: v for k, v in base.model.language_model.state_dict().items() if k != "embed_tokens.weight"}
        llm.model.load_state_dict(body, strict=False)
        old_head = base.get_output_embeddings().weight
        for new, old in (
            (llm.get_input_embeddings().weight, base.get_input_embeddings().weight),
            (llm.lm_head.weight, old_head),
        ):
            _fill(new, old[:known], config.vocabulary)
        model = LlavaST(llm, _tower(base), config, words)
        projector = base.model.multi_modal_projector
        model.projector[0].load_state_dict(projector.linear_1.state_dict())
        model.projector[2].load_state_dict(projector.linear_2.state_dict())
    if tables:
        fill_tables(model, seed)
    return Bundle(model.to(dtype).eval(), tokenizer, trained=False)


def fill_tables(model: LlavaST, seed: int = 0) -> None:
    """Give a model whose coordinate tables are zero new ones, in place; others stay as they are."""
    first = model.config.vocabulary
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for matrix in (model.embeddings, model.head):
            if not matrix[first:].any():
                noise = torch.randn(matrix[first:].shape, generator=generator)
                matrix[first:] = noise.to(matrix) * float(matrix[:first].float().std())


def _fill(new: torch.Tensor, old: torch.Tensor, vocabulary: int) -> None:
    """Old rows, their mean for the new words, zeros for the anchors; in place."""
    new[: len(old)] = old
    new[len(old) : vocabulary] = old.mean(0)
    new[vocabulary:] = 0.0


def _tower(base: Any) -> Any:
    """A copy of the vision tower that ends at the layer the base reads."""
    layer = base.config.vision_feature_layer
    tower = copy.deepcopy(base.model.vision_tower)
    if not isinstance(layer, int):
        raise ModelError(
            f"the base reads several layers of its tower ({layer}); a LLaVA-ST reads the last one"
        )
    body = getattr(tower, "vision_model", tower)
    total = len(body.encoder.layers)
    keep = layer if layer >= 0 else total + 1 + layer
    if not 1 <= keep <= total:
        raise ModelError(f"the base reads layer {layer} of a tower of {total} layers")
    body.encoder.layers = body.encoder.layers[:keep]
    body.config.num_hidden_layers = keep
    return tower
