"""Which GPUs the workers of this machine get: what `Stage.gpus` asks for, dealt out like Ray does it.

A worker sees its own GPUs only, through CUDA_VISIBLE_DEVICES, and calls the first of them cuda:0. Workers that ask for
a fraction share one. Stages that ask for none are left alone: they see what the driver sees.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tubelet.errors import RecipeError
from tubelet.scale.job import Stage

VISIBLE = "CUDA_VISIBLE_DEVICES"


def visible_devices(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Names of the GPUs that this process may use: those of CUDA_VISIBLE_DEVICES, else all there are."""
    told = environ.get(VISIBLE)
    if told is None:
        import torch

        return tuple(str(k) for k in range(torch.cuda.device_count()))
    names: list[str] = []
    for name in told.split(","):
        if not name.strip() or name.strip() == "-1":  # CUDA, too, stops reading at the first that is none
            break
        names.append(name.strip())
    return tuple(names)


def share_out(stages: Sequence[Stage], devices: Sequence[str]) -> list[list[str | None]]:
    """CUDA_VISIBLE_DEVICES of every worker of every stage; None: as it is. Raises RecipeError for too few GPUs."""
    free = dict.fromkeys(devices, 1.0)
    return [[_take(stage, free, len(devices)) for _ in range(stage.workers)] for stage in stages]


def _take(stage: Stage, free: dict[str, float], count: int) -> str | None:
    if not stage.gpus:
        return None
    share = min(stage.gpus, 1.0)
    fitting = [name for name, left in free.items() if left >= share - 1e-6]
    wanted = max(1, round(stage.gpus))
    if len(fitting) < wanted:
        raise RecipeError(
            f"stage {stage.name!r} asks for {stage.workers} workers of {stage.gpus:g} GPUs each, this machine shows "
            f"{count} GPUs: ask for fewer workers or a smaller share, or leave gpus at 0 to let all see the same"
        )
    chosen = fitting[:wanted]
    for name in chosen:
        free[name] -= share
    return ",".join(chosen)
