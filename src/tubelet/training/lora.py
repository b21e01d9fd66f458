"""LoRA on the blocks of a language model (Hu et al. 2021), through peft: put in, merged for saving."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from tubelet.errors import RecipeError
from tubelet.training.recipe import LoraSettings

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def add_lora(language_model: nn.Module, settings: LoraSettings) -> None:
    """Adapters on every linear layer of the blocks, in place; only the adapters learn afterwards.

    Raises RecipeError when peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise RecipeError(
            "LoRA needs peft, which is not installed: pip install 'tubelet[train]', or set lora.rank to 0"
        ) from error
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(TARGETS),
    )
    inject_adapter_in_model(config, language_model)


@contextmanager
def merged(model: nn.Module) -> Iterator[None]:
    """The model with its adapters added to the weights and out of the way; afterwards they are back."""
    found = [(name, module) for name, module in model.named_modules() if hasattr(module, "lora_A")]
    for name, module in found:
        module.merge()
        _put(model, name, module.get_base_layer())
    try:
        yield
    finally:
        for name, module in found:
            _put(model, name, module)
            module.unmerge()


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)
