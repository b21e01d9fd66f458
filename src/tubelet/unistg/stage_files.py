"""The files of a stage that runs alone: OUT.jsonl, OUT.drops.jsonl, OUT.stage.json, and lines that could not be read.

Each is written whole or not at all, OUT last. `BrokenLines` are problems that become drops of stage "input" (reason
"broken-line"), in their place among the records: a file of drops then names everything that was lost.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tubelet.benchmarks.run_folder import write_whole
from tubelet.config_io import from_dict
from tubelet.datasets.fields import RecordError
from tubelet.datasets.problems import Problems
from tubelet.errors import DataError, OutputError, RecipeError
from tubelet.unistg.analyzer import AnalyzerSettings
from tubelet.unistg.recipe import AnnotatorSettings, RefinerSettings, UniSTGRecipe
from tubelet.unistg.records import Drop
from tubelet.unistg.rows import write_lines

INPUT = "input"
_SETTINGS = {"analyzer": AnalyzerSettings, "annotator": AnnotatorSettings, "refiner": RefinerSettings}


@dataclass(frozen=True, slots=True)
class StageDone:
    """What a stage did. took: records (and broken lines) read; gave: records written; reasons: of the drops.

    broken: lines that were no records. aside: phrases whose video was set aside (its provider failed, a worker died).
    """

    out: Path
    took: int
    gave: int
    reasons: Mapping[str, int]
    broken: int
    aside: int = 0

    @property
    def dropped(self) -> int:
        return sum(self.reasons.values())


def as_it_was(recipe: UniSTGRecipe, before: Mapping[str, Any]) -> UniSTGRecipe:
    """The recipe with the settings that earlier stages were run with (of a .stage.json)."""
    known: dict[str, Any] = {
        name: from_dict(kind, before["settings"][name], name)
        for name, kind in _SETTINGS.items()
        if name in before.get("settings", {})
    }
    return replace(recipe, **known)


@dataclass(slots=True)
class BrokenLines(Problems):
    """Problems that become drops. waiting: those that are not written yet."""

    waiting: list[Drop] = field(default_factory=list)

    def add(self, error: RecordError) -> None:
        Problems.add(self, error)
        what = f"field {error.field}: {error.reason}" if error.field else error.reason
        name = Path(error.file).name  # files hold no machine's paths
        self.waiting.append(Drop(f"{name}, {error.where}", INPUT, "broken-line", what[:300]))

    def take(self) -> list[Drop]:
        out, self.waiting = self.waiting, []
        return out


def with_broken(records: Iterable[Any], broken: BrokenLines) -> Iterator[Any]:
    for record in records:
        yield from broken.take()
        yield record
    yield from broken.take()


def write_stage(
    out: Path,
    stage: str,
    records: Iterable[Any],
    broken: Problems,
    took: Counter[str],
    before: Mapping[str, Any],
    recipe: UniSTGRecipe,
) -> StageDone:
    """Records (with to_dict, or plain) to OUT and drops beside it, then the counts; OUT appears last."""
    reasons: Counter[str] = Counter()
    drops = out.with_name(f"{out.stem}.drops.jsonl")
    part, drops_part = (p.with_name(f".{p.name}.{os.getpid()}.half") for p in (out, drops))
    make_folder(out)
    try:
        with drops_part.open("w", encoding="utf-8") as file:

            def kept() -> Iterator[Mapping[str, Any]]:
                for record in records:
                    if isinstance(record, Drop):
                        reasons[f"{record.stage}: {record.reason}"] += 1
                        file.write(json.dumps(record.to_dict(), ensure_ascii=False) + "\n")
                    else:
                        yield record if isinstance(record, Mapping) else record.to_dict()

            gave = write_lines(kept(), part)
        counts = {
            "stage": stage,
            "took": took["records"] + broken.count,
            "gave": gave,
            "dropped": dict(sorted(reasons.items())),
        }
        settings = {**before.get("settings", {}), stage: recipe.decisive()[stage]}
        told = {"stages": [*before.get("stages", []), counts], "settings": settings}
        drops_part.replace(drops)
        write_whole(_told_path(out), json.dumps(told, indent=1, ensure_ascii=False) + "\n")
        part.replace(out)
    except OSError as error:
        raise OutputError(f"cannot write {out}: {error.strerror or error}") from error
    finally:
        for path in (part, drops_part):
            with suppress(OSError):
                path.unlink(missing_ok=True)
    return StageDone(out, int(counts["took"]), gave, counts["dropped"], broken.count)  # type: ignore[arg-type, call-overload]


def told_before(path: Path | str) -> dict[str, Any]:
    """What the stage that wrote this file said of itself; nothing where there is no such file."""
    told = _told_path(Path(path))
    try:
        data = json.loads(told.read_text(encoding="utf-8"))
        as_it_was(UniSTGRecipe(), data)
        if not isinstance(data["stages"], list):
            raise TypeError("stages are a list")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, RecipeError) as error:
        raise DataError(
            f"{told} does not say how {Path(path).name} was made ({error!s:.120}): remove it"
        ) from error
    return dict(data)


def _told_path(path: Path) -> Path:
    return path.with_name(f"{path.stem}.stage.json")


def place_of(out: Path | str, path: Path | str) -> Path:
    place = Path(out)
    if place.suffix != ".jsonl":
        raise OutputError(
            f"records are written as JSON Lines: a name that ends in .jsonl, got {place.name!r}"
        )
    if place.absolute() == Path(path).absolute():
        raise OutputError(f"{place} is what is read: write to another file")
    return place


def make_folder(out: Path) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {out}: {error.strerror or error}") from error
