"""A training mixture as files: sources in, one file in the paper's proportions out, with what was lost and why.

    mixed = make_mixture(load_mix_recipe("recipes/unistg/mix.yaml"), "data/mixture")

    OUT/mixture.jsonl    the drawn instructions, in training order (`file` of the recipe)
    OUT/list.yaml        the mixing list that names it (formats llava-st and spacevllm; llava_st/mixture.py)
    OUT/drops.jsonl      what could not be used: key, stage, reason, detail
    OUT/report.json      counts of every source, task and reason; written last

`format` is "rows" (rows.py), "spacevllm" (the same rows, about a picture each, with a list), "llava-st", "ms-swift" or
"llama-factory" (formats.py). What the format cannot hold is found before the draw, so that the proportions
(mixture.py) hold for what is written. An id that was there before is a drop that names both sources ("duplicate-key").
Sources that cannot be read are all named in one error before anything is written; `skip_unreadable` goes on without
them and counts them. Memory holds ids; the instructions wait in a file beside the output.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from tubelet.benchmarks.run_folder import write_whole
from tubelet.config_io import from_dict, load_yaml, to_dict, with_overrides
from tubelet.datasets.fields import Item
from tubelet.datasets.problems import Problems
from tubelet.errors import DataError, OutputError, RecipeError
from tubelet.unistg import formats
from tubelet.unistg.instructions import TASKS, Instruction
from tubelet.unistg.mix_sources import STAGE, MixSource, read_source
from tubelet.unistg.mixture import Mixture, choose
from tubelet.unistg.records import Drop
from tubelet.unistg.rows import instruction_of, row_of
from tubelet.unistg.stage_files import BrokenLines, with_broken

FORMATS = (*formats.FORMATS, "spacevllm")
LIST, DROPS, REPORT = "list.yaml", "drops.jsonl", "report.json"


@dataclass(frozen=True, slots=True)
class MixRecipe:
    """media: the folder that the paths of all pictures are relative to; check_files: look for each of them there.

    boxes: of videos for ms-swift, "objects" or "text". mixture: proportions, total and seed (mixture.py).
    """

    sources: tuple[MixSource, ...] = ()
    format: str = "rows"
    file: str = "mixture.jsonl"
    media: str = "."
    check_files: bool = False
    skip_unreadable: bool = False
    boxes: str = "objects"
    mixture: Mixture = field(default_factory=Mixture)

    def __post_init__(self) -> None:
        if not self.sources:
            raise RecipeError("a mixture needs sources: a list of {source, path, ...}")
        titles = Counter(source.title for source in self.sources)
        twice = [title for title, count in titles.items() if count > 1]
        if twice:
            raise RecipeError(f"two sources are called {', '.join(twice)}: give each a name of its own")
        if self.format not in FORMATS:
            raise RecipeError(f"format is one of {', '.join(FORMATS)}, got {self.format!r}")
        endings = {"rows": (".jsonl", ".parquet"), "llava-st": (".jsonl", ".json")}.get(
            self.format, (".jsonl",)
        )
        if Path(self.file).name != self.file or not self.file.endswith(endings):
            raise RecipeError(f"file is a name that ends in {' or '.join(endings)}, got {self.file!r}")
        if self.file in (DROPS, REPORT, LIST):
            raise RecipeError(f"file is the name of the data, {self.file} is another output")
        if self.boxes not in ("objects", "text"):
            raise RecipeError(f"boxes is objects or text, got {self.boxes!r}")


@dataclass(frozen=True, slots=True)
class Mixed:
    """What was made. lost: reason -> count of what the sources had and the mixture could not use."""

    file: Path
    written: int
    report: Mapping[str, Any]
    lost: Mapping[str, int]


def load_mix_recipe(path: Path | str, settings: Sequence[str] = ()) -> MixRecipe:
    """A recipe from YAML and key=value settings. RecipeError names the field."""
    return from_dict(MixRecipe, with_overrides(load_yaml(Path(path)), settings))


def make_mixture(recipe: MixRecipe, out: Path | str) -> Mixed:
    """Read, draw, write. DataError names every source that cannot be read, OutputError what cannot be written."""
    folder = Path(out)
    media = Path(recipe.media) if recipe.check_files else None
    unreadable = _unreadable(recipe)
    if unreadable and (not recipe.skip_unreadable or len(unreadable) == len(recipe.sources)):
        said = "; ".join(f"{title}: {reason}" for title, reason in unreadable.items())
        raise DataError(
            f"{len(unreadable)} of {len(recipe.sources)} sources cannot be read, nothing was written "
            f"(skip_unreadable: true goes on without them): {said}"
        )
    pool_path = folder / f".{recipe.file}.{os.getpid()}.pool"
    drops_path = folder / f".{DROPS}.{os.getpid()}.half"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with pool_path.open("wb") as pool_file, drops_path.open("w", encoding="utf-8") as drops_file:
            pool = _Pool(pool_file, drops_file, _fits(recipe))
            for title, reason in unreadable.items():
                pool.drop(title, Drop(title, STAGE, "unreadable-source", _plain(reason)))
            for source in recipe.sources:
                if source.title not in unreadable:
                    pool.take(source, recipe.mixture.seed, media)
        if not pool.origin:
            said = ", ".join(f"{count} {reason}" for reason, count in sorted(pool.lost.items()))
            raise DataError(f"nothing in these sources can be used ({said}), nothing was written")
        drawn = choose({task: list(ids) for task, ids in pool.offsets.items()}, recipe.mixture)
        (folder / REPORT).unlink(missing_ok=True)  # an older one would speak of what is written now
        with pool_path.open("rb") as pool_file:
            written = formats.write_instructions(
                _drawn(pool_file, pool, drawn),
                folder / recipe.file,
                "rows" if recipe.format == "spacevllm" else recipe.format,
                boxes=recipe.boxes,
            )
        if recipe.format in ("llava-st", "spacevllm"):
            _write_list(recipe, folder)
        drops_path.replace(folder / DROPS)
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error.strerror or error}") from error
    finally:
        for path in (pool_path, drops_path):
            with suppress(OSError):
                path.unlink(missing_ok=True)
    report = _report(recipe, pool, drawn, written)
    write_whole(folder / REPORT, json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    return Mixed(folder / recipe.file, written, report, dict(sorted(pool.lost.items())))


# --- parts ---------------------------------------------------------------------------------------------


def _unreadable(recipe: MixRecipe) -> dict[str, str]:
    """Sources whose first record cannot be reached, and why: they are all named before the work begins."""
    out: dict[str, str] = {}
    for source in recipe.sources:
        try:
            for _ in islice(read_source(source, on_error=Problems()), 1):
                pass
        except (DataError, RecipeError) as error:
            out[source.title] = str(error)
    return out


class _Pool:
    """Usable instructions, in a file; where each begins, and from which source it is."""

    def __init__(self, file: BinaryIO, drops: TextIO, fits: Callable[[Instruction], object] | None) -> None:
        self.file, self.drops, self.fits = file, drops, fits
        self.offsets: dict[str, dict[str, int]] = {task: {} for task in TASKS}
        self.origin: dict[str, str] = {}
        self.read: Counter[str] = Counter()
        self.kept: Counter[tuple[str, str]] = Counter()
        self.lost: Counter[str] = Counter()
        self.lost_of: dict[str, Counter[str]] = {}

    def drop(self, title: str, drop: Drop) -> None:
        self.lost[drop.reason] += 1
        self.lost_of.setdefault(title, Counter())[drop.reason] += 1
        row = {"source": title, **drop.to_dict()}
        self.drops.write(json.dumps(row, ensure_ascii=True) + "\n")

    def take(self, source: MixSource, seed: int, media: Path | None) -> None:
        """All of a source. What it has after a place where it cannot be read on is lost, and counted as one."""
        title, broken = source.title, BrokenLines()
        try:
            for one in with_broken(read_source(source, seed, broken, media), broken):
                self.read[title] += 1
                if isinstance(one, Drop):
                    self.drop(title, one)
                else:
                    self._keep(title, one)
        except DataError as error:
            for drop in broken.take():
                self.read[title] += 1
                self.drop(title, drop)
            self.drop(title, Drop(title, STAGE, "unreadable-source", _plain(str(error))))
        if not self.read[title]:
            self.drop(title, Drop(title, STAGE, "empty-source", "it holds no record"))

    def _keep(self, title: str, one: Instruction) -> None:
        before = self.origin.get(one.id)
        if before is not None:
            said = f"{title}: the id was there before, in {before}; the first is kept"
            self.drop(title, Drop(one.id, STAGE, "duplicate-key", said))
            return
        if self.fits is not None:
            try:
                self.fits(one)
            except DataError as error:
                self.drop(title, Drop(one.id, STAGE, "not-in-this-format", str(error)[:300]))
                return
        self.origin[one.id] = title
        self.offsets[one.task][one.id] = self.file.tell()
        self.kept[title, one.task] += 1
        self.file.write(json.dumps(row_of(one), ensure_ascii=False).encode("utf-8") + b"\n")


def _fits(recipe: MixRecipe) -> Callable[[Instruction], object] | None:
    """Raises DataError for an instruction that the format cannot hold; None: it holds all."""

    def has_a_picture(one: Instruction) -> None:
        if one.media == "text":
            raise DataError(f"{one.id}: SpaceVLLM is trained on videos and images, this one is text")

    checks: dict[str, Callable[[Instruction], object]] = {
        "spacevllm": has_a_picture,
        "llava-st": formats.llava_st_item,
        "ms-swift": lambda one: formats.swift_row(one, recipe.boxes),
        "llama-factory": formats.llama_factory_row,
    }
    return checks.get(recipe.format)


def _drawn(file: BinaryIO, pool: _Pool, drawn: Sequence[tuple[str, str]]) -> Iterator[Instruction]:
    for task, key in drawn:
        file.seek(pool.offsets[task][key])
        yield instruction_of(Item(json.loads(file.readline()), "the pool", key))


def _write_list(recipe: MixRecipe, folder: Path) -> None:
    from tubelet.llava_st import mixture as lists

    media = os.path.relpath(recipe.media, folder)  # beside the list, whatever the working directory is
    entry = lists.Entry(recipe.file, Path(media).as_posix(), "all", "mixture")
    lists.write_mixture(lists.Mixture((entry,), folder), folder / LIST)


def _report(recipe: MixRecipe, pool: _Pool, drawn: Sequence[tuple[str, str]], written: int) -> dict[str, Any]:
    of_task = Counter(task for task, _ in drawn)
    of_source = Counter(pool.origin[key] for _, key in drawn)
    titles = [source.title for source in recipe.sources]
    return {
        "format": recipe.format,
        "file": recipe.file,
        "written": written,
        "mixture": to_dict(recipe.mixture),
        "tasks": {
            task: {
                "weight": getattr(recipe.mixture, task),
                "usable": len(pool.offsets[task]),
                "drawn": of_task[task],
            }
            for task in TASKS
        },
        "sources": {
            title: {
                "read": pool.read[title],
                "usable": sum(count for (own, _), count in pool.kept.items() if own == title),
                "drawn": of_source[title],
                "lost": dict(sorted(pool.lost_of.get(title, Counter()).items())),
            }
            for title in titles
        },
        "lost": dict(sorted(pool.lost.items())),
    }


def _plain(reason: str) -> str:
    """Without folders: outputs name no machine's paths."""
    words = [Path(word).name if word.startswith("/") else word for word in reason.split(" ")]
    return " ".join(words)[:300]
