"""Run a model over a benchmark: grouped by video, decoded ahead, written as it goes, resumed after a kill, scored.

    scores = run_benchmark(grounder, "vidstg", "data/vidstg", "runs/vidstg", split="test")

Every query gets a prediction: a missing or broken video, and a model that cannot answer, are predictions with a
reason. Each video (and each segment of it that is asked about) is decoded and encoded once for all its questions.
While the model works on one video a thread reads the next. `run_folder` says what is on disk, `run_score` how it is
scored; the scores are always those of the files. Nothing here knows a method: a grounder is a
`tubelet.grounder.Grounder`.

A grounder may offer two more things: `read_clip(video, window) -> (Clip, notes)`, so that decoding can happen in the
thread, and `sampling` (JSON) for the run card.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from tubelet.benchmarks.ahead import ahead
from tubelet.benchmarks.run_card import CARD, data_told, make_card, read_card, versions
from tubelet.benchmarks.run_folder import (
    METRICS,
    PREDICTIONS,
    VIDEOS,
    Line,
    RunWriter,
    create_run,
    read_ids,
    write_whole,
)
from tubelet.benchmarks.run_score import Number, RunScores, check_protocol, rescore
from tubelet.benchmarks.run_select import Selection, default_split, parse_shard, select
from tubelet.benchmarks.run_truth import video_key
from tubelet.benchmarks.run_video import Group, Ready, answer_group, facts_of, group_by_video, read_group
from tubelet.benchmarks.submission import write_submission
from tubelet.datasets import open_dataset
from tubelet.datasets.media import MediaIndex
from tubelet.datasets.problems import Problems
from tubelet.datasets.record import Record
from tubelet.errors import DataError
from tubelet.grounder import Grounder
from tubelet.metrics.bootstrap import Interval

_SAVE_CARD_S = 10.0


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands. done counts what earlier sessions answered too; rate and time left are of this one."""

    done: int
    total: int
    failed: int
    queries_per_s: float
    left_s: float | None

    def __str__(self) -> str:
        left = "" if self.left_s is None else f", {_clock(self.left_s)} left"
        failed = f", {self.failed} failed" if self.failed else ""
        return f"{self.done}/{self.total} queries, {self.queries_per_s:.2f}/s{left}{failed}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def run_benchmark(
    grounder: Grounder,
    name: str,
    data_folder: Path | str,
    out: Path | str,
    split: str | None = None,
    task: str | None = None,
    limit: int | None = None,
    shard: tuple[int, int] = (0, 1),
    span_reader: str | None = None,
    protocol: str | None = None,
    seed: int = 0,
    progress: Callable[[Progress], None] | None = None,
    *,
    videos: Path | str | None = None,
    given_span: bool = True,
    on_error: Problems | None = None,
    prefetch: int = 2,
    read_options: dict[str, Any] | None = None,
) -> RunScores:
    """Evaluate a model on one split of a dataset; the same call on the same folder resumes.

    Args:
        name: of `tubelet.datasets.DATASETS`. data_folder: its files; videos: where the videos are, when elsewhere.
        out: the run folder. split: None for `default_split`. task: None for all tasks that the split has.
        limit: the first so many queries. shard: (i, n), this part of n (see `merge_shards`).
        protocol: how to score (`run_score.protocols_for`); None: the default of benchmark and task.
        given_span: for stvg, ask once more with the true span given (sIoU).
        on_error: broken annotations are counted there and left out; None: the first one raises.
        prefetch: how many videos are read ahead; 0 reads each when it is its turn.
        read_options: more arguments for the dataset's reader, for example {"tasks": ["action_count"]} for MVBench.

    Benchmarks with a script or server of their own get their file too (`submission`).

    Raises DataError for data, protocols and folders that do not fit together, before the model is asked anything.
    """
    module = open_dataset(name)
    chosen = split or default_split(name)
    read = module.read(data_folder, chosen, on_error=on_error or "raise", **(read_options or {}))
    selection = select(read, task, limit, shard)
    check_protocol(protocol, selection.tasks)
    base = Path(data_folder)
    index = MediaIndex(
        *([Path(videos)] if videos is not None else []), *([base] if base.is_dir() else [base.parent])
    )
    card = make_card(
        benchmark=module.NAME,
        split=chosen,
        task=task or "",
        model=grounder.name,
        revision=str(getattr(grounder, "revision", "")),
        data_hash=selection.hash,
        n=len(selection.records),
        protocol=protocol or "",
        sampling=sampling_of(grounder),
        span_reader=span_reader or "",
        seed=seed,
        limit=limit,
        shard=shard,
        data=data_told(data_folder, module.FILES, chosen),
    )
    if on_error is not None and on_error.count:
        card["broken_records"] = on_error.count
    _set_seed(seed)
    answer_all(
        grounder, out, card, selection, index, span_reader, progress, given_span=given_span, prefetch=prefetch
    )
    scores = rescore(out, protocol)
    if shard == (0, 1):
        write_submission(out)
    return scores


def sampling_of(grounder: Any) -> dict[str, Any]:
    """What the run card says of how a grounder samples frames."""
    told = getattr(grounder, "sampling", None)
    if isinstance(told, dict):
        return dict(told)
    most = getattr(grounder, "max_frames", None)
    return {} if most is None else {"frames": "uniform", "max_frames": int(most)}


def _set_seed(seed: int) -> None:
    """Answers are greedy; a method that draws draws the same every time."""
    import random
    import sys

    random.seed(seed)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.manual_seed(seed)


def answer_all(
    grounder: Grounder,
    out: Path | str,
    card: dict[str, Any],
    selection: Selection,
    media: MediaIndex,
    span_reader: str | None = None,
    progress: Callable[[Progress], None] | None = None,
    *,
    given_span: bool = True,
    prefetch: int = 2,
) -> None:
    """Answer what the run folder does not hold yet. The folder is made, or must be of the same run."""
    folder = Path(out)
    create_run(folder, card, selection.records, selection.rows)
    card = read_card(folder)  # with what earlier sessions noted
    if card["versions"] != versions() and versions() not in card.get("resumed_with", []):
        card["resumed_with"] = [*card.get("resumed_with", []), versions()]
    started, before = time.monotonic(), float(card["seconds"])
    with RunWriter(folder) as writer:
        done, known = read_ids(folder / PREDICTIONS), read_ids(folder / VIDEOS)
        todo = [r for r in selection.records if r.id not in done]
        if len(done) != len(selection.records) - len(todo):
            raise DataError(f"{folder / PREDICTIONS} holds predictions for queries that are not in this run")
        _restore_facts(writer, known, [r for r in selection.records if r.id in done], media)
        count = Count(len(selection.records), len(done), started)
        saved = started

        def prepare(group: Group) -> Ready:
            return read_group(group, media, grounder)

        with closing(ahead(prepare, group_by_video(todo), prefetch)) as results:
            for group, ready in results:
                if ready.facts is not None and group.key not in known:
                    writer.add_video(ready.facts)
                    known.add(group.key)
                lines = answer_group(grounder, group, ready, span_reader, given_span)
                writer.add_lines(lines)
                count.add(lines)
                now = time.monotonic()
                if now - saved > _SAVE_CARD_S:
                    saved = now
                    _save_seconds(folder, card, before + now - started)
                if progress is not None:
                    progress(count.progress(now))
    if todo or not (folder / METRICS).exists():
        _save_seconds(folder, card, before + time.monotonic() - started)


def _restore_facts(writer: RunWriter, known: set[str], answered: Sequence[Record], media: MediaIndex) -> None:
    """Facts of videos that were asked about and are not in videos.jsonl: the file was damaged, or they failed."""
    for group in group_by_video(r for r in answered if video_key(r.video) not in known):
        facts = facts_of(group, media)
        if facts is not None and group.key not in known:
            writer.add_video(facts)
            known.add(group.key)


def _save_seconds(folder: Path, card: dict[str, Any], seconds: float) -> None:
    card["seconds"] = round(seconds, 2)
    write_whole(folder / CARD, json.dumps(card, ensure_ascii=False, indent=1) + "\n")


@dataclass(slots=True)
class Count:
    """What `Progress` is made of."""

    total: int
    before: int
    started: float
    answered: int = 0
    failed: int = 0

    def add(self, lines: Sequence[Line]) -> None:
        self.answered += len(lines)
        self.failed += sum(line.prediction.failure is not None for line in lines)

    def progress(self, now: float) -> Progress:
        rate = self.answered / max(now - self.started, 1e-9)
        left = self.total - self.before - self.answered
        return Progress(
            self.before + self.answered, self.total, self.failed, rate, left / rate if rate else None
        )


def read_scores(folder: Path | str) -> dict[str, Any]:
    """metrics.json of a run, as written."""
    path = Path(folder) / METRICS
    try:
        return cast(dict[str, Any], json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise DataError(f"{folder} has no {METRICS}: the run is not finished") from error
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {error!s:.100}") from error


def eval_benchmark(
    name: str,
    model: str | Callable[[], Grounder],
    data_folder: Path | str,
    out: Path | str,
    *,
    split: str | None = None,
    task: str | None = None,
    limit: int | None = None,
    shard: str = "1/1",
    span_reader: str | None = None,
    protocol: str | None = None,
    seed: int = 0,
    device: str | None = None,
    dtype: str | None = None,
    videos: Path | str | None = None,
    skip_broken: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> tuple[RunScores, Problems]:
    """What `tubelet eval` does: load the model, `run_benchmark`, and the broken annotations that were left out.

    model: a name, or a function that loads one its own way. shard: "i/n", from "1/n". skip_broken: leave broken
    annotations out and count them, instead of stopping.
    """
    from tubelet.grounder import load

    open_dataset(name)  # a wrong name or shard is said before a model is loaded
    part = parse_shard(shard)
    problems = Problems()
    scores = run_benchmark(
        load(model, device, dtype) if isinstance(model, str) else model(),
        name,
        data_folder,
        out,
        split,
        task,
        limit,
        part,
        span_reader,
        protocol,
        seed,
        progress,
        videos=videos,
        on_error=problems if skip_broken else None,
    )
    return scores, problems


def render_scores(scores: RunScores) -> str:
    """Scores as plain text for a terminal: a block per task, its breakdowns below it."""
    out: list[str] = []
    for task, part in scores.parts.items():
        hidden = f", {part.n_hidden} without public truth" if part.n_hidden else ""
        protocol = f" under {part.protocol}" if part.protocol else ""
        out.append(f"task {task}{protocol}: {part.n} queries, {part.n_failed} failed{hidden}")
        out += [f"  {name:28} {_shown(value)}" for name, value in part.metrics.items()]
        for tag, kinds in part.groups.items():
            out.append(f"  by {tag}")
            for kind, metrics in kinds.items():
                first = ", ".join(f"{name} {_shown(value)}" for name, value in list(metrics.items())[:3])
                out.append(f"    {kind:26} {first}")
        out += [f"  note: {note}" for note in part.notes]
    out += [f"left out: {problem}" for problem in scores.problems]
    return "\n".join(out)


def _shown(value: Number) -> str:
    if value is None:
        return "-"
    return f"{value} (n {value.n})" if isinstance(value, Interval) else f"{value:.3f}"
