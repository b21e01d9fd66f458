"""The training loop: any model, any loss, one process or many (accelerate), CPU or GPU, resumable.

It knows batches, losses and steps; it does not know what is learnt. A `Job` says that: how to make batch k,
what its loss is, how to save the result. Batch k depends on k alone, so a resumed run continues as if never
stopped, also on another number of processes. Weights are whole in every process, or sharded (sharding.py).
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from tubelet.config_io import to_dict
from tubelet.training.checkpoint import (
    Progress,
    checkpoints,
    load_model_state,
    load_optimiser_state,
    read_progress,
    save_checkpoint,
)
from tubelet.training.log import RunLog
from tubelet.training.recipe import Optimiser, Recipe, Stage
from tubelet.training.sharding import (
    average_whole,
    check_shardable,
    clip,
    mask_rows,
    shard,
    unshard,
    wants_sharding,
)

log = logging.getLogger(__name__)

STAGE_OFFSET = 10_000_000  # batch numbers of different stages never meet: a later stage sees new data


@dataclass(frozen=True, slots=True)
class Job:
    """
    model: what is trained. make_batch(stage, k): batch number k of a stage, called in data workers.
    loss(model, batch, stage): (loss, parts for the log, number of questions). save(folder): write the final
    model.
    prepare(stage): choose which parameters learn in a stage.
    """

    model: torch.nn.Module
    make_batch: Callable[[Stage, int], Any]
    loss: Callable[[torch.nn.Module, Any, Stage], tuple[torch.Tensor, dict[str, torch.Tensor], int]]
    save: Callable[[Path], None]
    prepare: Callable[[Stage], None] | None = None


def train(
    recipe: Recipe,
    job: Job,
    resume: bool = True,
    on_step: Callable[[Progress, dict[str, float]], None] | None = None,
) -> Progress:
    """Run all stages; returns the final progress. `resume`: go on from the folder's newest checkpoint."""
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs, set_seed

    folder = recipe.folder
    sharded = wants_sharding()
    if sharded:
        check_shardable(recipe)
    # the vision tower's closing norm is never read, and a stage may train some parameters only
    unread = DistributedDataParallelKwargs(find_unused_parameters=True)
    accelerator = Accelerator(
        mixed_precision="bf16" if recipe.precision == "bf16" else "no", kwargs_handlers=[unread]
    )
    set_seed(recipe.seed)
    folder.mkdir(parents=True, exist_ok=True)
    if accelerator.is_main_process:
        (folder / "recipe.json").write_text(json.dumps(to_dict(recipe), indent=1))
    progress, restore = Progress(), None
    if resume and checkpoints(folder):
        restore = checkpoints(folder)[-1]
        progress = read_progress(restore)
        load_model_state(restore, job.model)
        log.info("resuming from %s", restore)

    run_log = RunLog(folder, progress) if accelerator.is_main_process else None
    started = time.monotonic() - progress.seconds
    last_saved = time.monotonic()
    if sharded:
        if job.prepare is not None:
            job.prepare(recipe.stages[0])  # what learns is fixed when a model is cut
        shard(job.model, accelerator.device)
    model = job.model if sharded else accelerator.prepare(job.model)
    for number in range(progress.stage, len(recipe.stages)):
        stage = recipe.stages[number]
        if number > progress.stage:
            progress = replace(progress, stage=number, step=0, batches=0)
        if job.prepare is not None:
            job.prepare(stage)
        trained = [p for p in model.parameters() if p.requires_grad]
        optimisers = make_optimisers(job.model, stage.optimiser)
        if restore is not None:
            load_optimiser_state(restore, optimisers)
            restore = None
        prepared = optimisers if sharded else [accelerator.prepare(o) for o in optimisers]
        world, rank = accelerator.num_processes, accelerator.process_index
        progress = _dealt(progress, stage, world)
        batches = iter(
            _loader(
                job,
                stage,
                progress.step * stage.accumulate,
                stage.steps * stage.accumulate,
                world,
                rank,
                recipe.workers,
                number,
                progress.batches - progress.step * stage.accumulate * world,
            )
        )
        while progress.step < stage.steps:
            rate = schedule(stage.optimiser, progress.step, stage.steps)
            for optimiser, peak in zip(optimisers, peaks(stage.optimiser), strict=True):
                for group in optimiser.param_groups:
                    group["lr"] = peak * rate * group["scale"]
            parts, asked = _step(accelerator, model, job, stage, batches, sharded)
            if sharded:
                average_whole(trained)
                mask_rows(trained)
                norm = clip(trained, stage.optimiser.clip)
            else:
                norm = accelerator.clip_grad_norm_(trained, stage.optimiser.clip)
            for optimiser in prepared:
                optimiser.step()
                optimiser.zero_grad()
            progress = replace(
                progress,
                step=progress.step + 1,
                total_steps=progress.total_steps + 1,
                questions=progress.questions + asked * world,
                seconds=time.monotonic() - started,
                batches=progress.batches + stage.accumulate * world,
            )
            logs = progress.step % recipe.log_every == 0 or progress.step == stage.steps
            numbers = {name: float(value) for name, value in parts.items()} if logs or on_step else {}
            if logs and world > 1:  # all processes get here, with parts of their own kinds of data
                numbers = _over_processes(numbers)
            if accelerator.is_main_process and (logs or on_step is not None):
                numbers |= {"grad_norm": float(norm), "rate": rate}
                if logs and run_log is not None:
                    run_log.write(stage.name, stage.steps, progress, numbers)
                if on_step is not None:
                    on_step(progress, numbers)
            due = time.monotonic() - last_saved > recipe.checkpoint_s
            if sharded:  # all processes gather, so they have to agree
                due = _agreed(due, accelerator.device)
            if due and (sharded or accelerator.is_main_process):
                save_checkpoint(folder, job.model, optimisers, progress, accelerator.is_main_process)
                last_saved = time.monotonic()
        if sharded or accelerator.is_main_process:
            save_checkpoint(folder, job.model, optimisers, progress, accelerator.is_main_process)
            last_saved = time.monotonic()
    if sharded:
        unshard(job.model, accelerator.is_main_process)
    if run_log is not None:
        run_log.close()
        job.save(folder / "model")
    accelerator.end_training()
    return progress


def _step(
    accelerator: Any,
    model: torch.nn.Module,
    job: Job,
    stage: Stage,
    batches: Iterator[Any],
    sharded: bool = False,
) -> tuple[dict[str, torch.Tensor], int]:
    """Forward and backward over `accumulate` batches; the loss is their mean."""
    total: dict[str, torch.Tensor] = {}
    asked = 0
    for part in range(stage.accumulate):
        batch = next(batches).to(accelerator.device)
        last = part == stage.accumulate - 1
        with accelerator.autocast():
            loss, parts, count = job.loss(model, batch, stage)
        if sharded:
            model.set_requires_gradient_sync(last)
            (loss / stage.accumulate).backward()
        elif last:
            accelerator.backward(loss / stage.accumulate)
        else:
            with accelerator.no_sync(model):
                accelerator.backward(loss / stage.accumulate)
        asked += count
        for name, value in parts.items():
            total[name] = (
                total.get(name, torch.zeros((), device=value.device)) + value.detach() / stage.accumulate
            )
    return total, asked


def _dealt(progress: Progress, stage: Stage, world: int) -> Progress:
    """With the batches that this stage has taken so far, and from how many processes on."""
    if (
        progress.step and not progress.batches
    ):  # of a checkpoint that does not say it: the same processes as now
        progress = replace(progress, batches=progress.step * stage.accumulate * world)
    elif progress.processes not in (0, world):
        log.info("going on with %d processes instead of %d", world, progress.processes)
    return replace(progress, processes=world)


def _over_processes(numbers: dict[str, float]) -> dict[str, float]:
    """Means over the processes that have the number."""
    from accelerate.utils import gather_object

    told: dict[str, list[float]] = {}
    for one in gather_object([numbers]):
        for name, value in one.items():
            told.setdefault(name, []).append(value)
    return {name: sum(values) / len(values) for name, values in told.items()}


def _agreed(flag: bool, device: torch.device) -> bool:
    """What the first process says."""
    said = torch.tensor(int(flag), device=device)
    torch.distributed.broadcast(said, src=0)
    return bool(said)


def schedule(optimiser: Optimiser, step: int, steps: int) -> float:
    """Fraction of the peak rate: linear warm-up, then cosine to `final`."""
    warm = max(1, round(optimiser.warmup * steps))
    if step < warm:
        return (step + 1) / warm
    along = (step - warm) / max(1, steps - warm)
    return optimiser.final + (1 - optimiser.final) * 0.5 * (1 + math.cos(math.pi * along))


def peaks(optimiser: Optimiser) -> list[float]:
    return [optimiser.lr] if optimiser.kind == "adamw" else [optimiser.lr, optimiser.muon_lr]


def make_optimisers(model: torch.nn.Module, settings: Optimiser) -> list[torch.optim.Optimizer]:
    """AdamW for all, or AdamW for vectors, tables and heads and Muon (Jordan 2024) for inner matrices."""
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    inner = [n for n, p in named if p.ndim == 2 and settings.kind == "muon" and not _is_table(n)]
    rest = [(n, p) for n, p in named if n not in set(inner)]
    decaying = [(n, p) for n, p in rest if _decays(n, p)]
    groups = [
        *_groups(decaying, settings, settings.weight_decay),
        *_groups([(n, p) for n, p in rest if not _decays(n, p)], settings, 0.0),
    ]
    out: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=settings.lr, betas=(0.9, 0.98))]
    if settings.kind == "muon":
        matrices = [(n, p) for n, p in named if n in set(inner)]
        out.append(
            torch.optim.Muon(
                _groups(matrices, settings, settings.weight_decay),
                lr=settings.muon_lr,
                weight_decay=settings.weight_decay,
                adjust_lr_fn="original",
            )
        )
    return out


def _groups(
    named: list[tuple[str, torch.nn.Parameter]], settings: Optimiser, weight_decay: float
) -> list[dict[str, Any]]:
    """Parameter groups by their factor on the rate; the first key that a name holds counts."""
    by_scale: dict[float, list[torch.nn.Parameter]] = {1.0: []}
    for name, parameter in named:
        scale = next((value for key, value in settings.scales.items() if key in name), 1.0)
        by_scale.setdefault(scale, []).append(parameter)
    return [
        {"params": parameters, "weight_decay": weight_decay, "scale": scale}
        for scale, parameters in by_scale.items()
        if parameters or scale == 1.0
    ]


def _decays(name: str, parameter: torch.nn.Parameter) -> bool:
    """Vectors do not decay; nor do embedding tables, where a row that is not seen would only shrink."""
    return parameter.ndim >= 2 and "embed" not in name


def _is_table(name: str) -> bool:
    return any(
        word in name
        for word in (
            "embed",
            "lm_head",
            "position_embedding",
            "box_head.2",
            "activity_head.2",
            "presence_head.2",
        )
    )


class _Stream(IterableDataset[Any]):  # type: ignore[misc]
    """Batches first..last of this process, dealt to data workers in turn so that their order is kept."""

    def __init__(
        self, job: Job, stage: Stage, first: int, last: int, world: int, rank: int, offset: int
    ) -> None:
        self.job, self.stage, self.first, self.last = job, stage, first, last
        self.world, self.rank, self.offset = world, rank, offset

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        stride, offset = (info.num_workers, info.id) if info is not None else (1, 0)
        for k in range(self.first + offset, self.last, stride):
            yield self.job.make_batch(self.stage, self.offset + k * self.world + self.rank)


def _loader(
    job: Job,
    stage: Stage,
    first: int,
    last: int,
    world: int,
    rank: int,
    workers: int,
    number: int,
    shift: int = 0,
) -> DataLoader[Any]:
    """shift: by how much the batches of all processes lie behind those of a run that had `world` from its start."""
    stream = _Stream(job, stage, first, last, world, rank, number * STAGE_OFFSET + shift)
    if workers == 0:
        return DataLoader(stream, batch_size=None)
    return DataLoader(
        stream,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=4,
        worker_init_fn=_one_thread,
        multiprocessing_context="fork",
    )


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)
