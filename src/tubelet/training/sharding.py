"""FSDP2: a model whose weights, gradients and optimiser states are cut among all processes (`fully_shard` of torch).

Chosen by accelerate's configuration (recipes/accelerate/): ACCELERATE_USE_FSDP with FSDP_VERSION 2; with
FSDP_RESHARD_AFTER_FORWARD false, weights stay whole between forward and backward (what ZeRO calls stage 2), else they
are gathered layer by layer (stage 3). torch's own function is called, not accelerate's wrapper, because optimisers are
made anew for every stage and because accelerate shards on accelerators only; gloo on CPUs works here, too.

Blocks of the language model and of the vision tower are the units; everything else is the root, whole during a forward
pass: the parts that a model reads directly (tables, the newline embedding, heads) are there when they are read.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import nn

from tubelet.errors import RecipeError
from tubelet.training.checkpoint import full_tensors
from tubelet.training.recipe import Recipe


def wants_sharding() -> bool:
    """Whether accelerate's configuration asks for FSDP2. RecipeError for FSDP1 and DeepSpeed."""
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
        raise RecipeError(
            "DeepSpeed is not used by tubelet train: ZeRO stages 2 and 3 are recipes/accelerate/zero2.yaml and "
            "zero3.yaml, which are FSDP2 of torch"
        )
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return False
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise RecipeError(
            "sharded training needs FSDP2: set fsdp_version: 2, as in recipes/accelerate/fsdp2.yaml"
        )
    return True


def check_shardable(recipe: Recipe) -> None:
    """RecipeError for what cannot be trained sharded."""
    if len({stage.train for stage in recipe.stages}) > 1:
        raise RecipeError(
            "stages of a sharded run train the same parameters: write one recipe per kind of `train`, each starting "
            "from the model of the one before"
        )
    if any(stage.optimiser.kind != "adamw" for stage in recipe.stages):
        raise RecipeError("a sharded run needs optimiser.kind adamw: Muon needs whole matrices")


def shard(model: nn.Module, device: torch.device) -> None:
    """Cut a model in place; every process calls it with the same weights. Needs a process group."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    world = torch.distributed.get_world_size()
    mesh = init_device_mesh(device.type, (world,))
    keep = os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() == "false"
    for block in blocks(model):
        fully_shard(block, mesh=mesh, reshard_after_forward=not keep)
    # single numbers cannot be cut: every process holds them, and `average_whole` joins their gradients
    numbers = {parameter for parameter in model.parameters() if parameter.ndim == 0}
    for number in numbers:
        number.data = number.data.to(device)
    # the root is needed again where backward begins: it stays whole (torch up to 2.9 would not gather it again, either,
    # because it does not look for tensors in outputs that are dataclasses)
    fully_shard(model, mesh=mesh, reshard_after_forward=False, ignored_params=numbers)


def average_whole(parameters: list[nn.Parameter]) -> None:
    """The mean over all processes of the gradients of parameters that are not cut."""
    world = torch.distributed.get_world_size()
    for parameter in parameters:
        if hasattr(parameter, "full_tensor"):
            continue
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        torch.distributed.all_reduce(parameter.grad)
        parameter.grad /= world


def blocks(model: nn.Module) -> list[nn.Module]:
    """Layers that transformers names as units which are not to be split."""
    names: set[str] = set()
    for module in model.modules():
        names |= {name for name in getattr(module, "_no_split_modules", None) or () if name.endswith("Layer")}
    return [module for module in model.modules() if type(module).__name__ in names]


def mask_rows(parameters: list[nn.Parameter]) -> None:
    """Gradients of rows that stay as they are, of sharded tables: hooks on gradients do not run on these.

    A table that learns some rows only holds which ones as `_tubelet_rows`, (rows, 1).
    """
    for parameter in parameters:
        rows = getattr(parameter, "_tubelet_rows", None)
        if parameter.grad is None:
            continue
        if rows is None:
            if getattr(parameter, "_tubelet_hooks", None):
                raise RecipeError(
                    "this stage learns some rows of a table only, which cannot be done sharded: train it without FSDP2"
                )
            continue
        gradient: Any = parameter.grad
        # torch cuts rows into equal pieces, the last ones shorter or empty
        piece = -(-len(parameter) // gradient.device_mesh.size())
        first = piece * gradient.device_mesh.get_local_rank()
        local = gradient.to_local()
        local.mul_(rows[first : first + len(local)].to(local))


def unshard(model: nn.Module, keep: bool) -> None:
    """Whole weights and no hooks again, on the CPU; all processes take part, those with keep = False hold nothing."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        whole = full_tensors(dict(module.named_parameters(recurse=False)), keep)
        for name, tensor in whole.items():
            module._parameters[name] = nn.Parameter(tensor.detach(), requires_grad=False)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module._forward_pre_hooks.clear()
            module._forward_hooks.clear()
            module.__class__ = type(module).__bases__[1]


def clip(parameters: list[nn.Parameter], limit: float) -> float:
    """Clip to a gradient norm over all shards, as torch does it; returns the norm before."""
    cut: list[torch.Tensor] = []
    whole: list[torch.Tensor] = []
    for parameter in parameters:
        gradient: Any = parameter.grad
        if gradient is not None and hasattr(gradient, "to_local"):
            cut.append(gradient.to_local())
        elif gradient is not None:
            whole.append(gradient)
    device = parameters[0].device
    squares = torch.zeros((), device=device)
    for gradient in cut:
        squares += gradient.float().square().sum()
    torch.distributed.all_reduce(squares)
    for gradient in whole:
        squares += gradient.float().square().sum()
    norm = float(squares.sqrt())
    for gradient in cut + whole:
        gradient.mul_(min(1.0, limit / (norm + 1e-6)))
    return norm
