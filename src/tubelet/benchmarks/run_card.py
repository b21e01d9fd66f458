"""The card of a run, run.json: what was asked of which model on which data, with versions and hardware.

`make_card` makes one, `read_card` reads and checks one, `check_same` says whether answers may be added to a run. Cards
name no machine and no place on one.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tubelet import __version__
from tubelet.datasets.layout import FileSpec, find_all
from tubelet.datasets.record import Record
from tubelet.errors import DataError

RUN_SCHEMA = 1
CARD = "run.json"
IDENTITY = (
    "benchmark",
    "split",
    "task",
    "model",
    "revision",
    "data_hash",
    "sampling",
    "span_reader",
    "seed",
    "limit",
    "shard",
)
"""Fields of the card that must agree before answers may be added to a run. The protocol is not one of them."""


def data_hash(records: Iterable[Record]) -> str:
    """Sixteen hex digits that name the questions and their truth, in whatever order they come."""
    each = sorted(hashlib.sha256(json.dumps(r.to_dict(), sort_keys=True).encode()).digest() for r in records)
    return hashlib.sha256(b"".join(each)).hexdigest()[:16]


def data_told(folder: Path | str, files: Sequence[FileSpec], split: str) -> dict[str, Any]:
    """Which data folder a run was made of, without naming a place on a machine: its name, the number of annotation
    files of this split, and sixteen hex digits that name what is in them (names and bytes; media are not read).

    Raises DataError for a file that cannot be read.
    """
    base = Path(folder)
    found = [base] if base.is_file() else []
    if not found:
        specs = [s for s in files if s.kind == "annotation" and (not s.splits or split in s.splits)]
        found = sorted({path for spec in specs for path in find_all(base, spec.patterns)})
    whole = hashlib.sha256()
    for path in found:
        try:
            with path.open("rb") as file:
                each = hashlib.file_digest(file, "sha256").digest()
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror or error}") from error
        name = path.name if base.is_file() else path.relative_to(base).as_posix()
        whole.update(name.encode("utf-8", "surrogateescape") + b"\0" + each)
    return {"folder": base.resolve().name, "files": len(found), "sha256": whole.hexdigest()[:16]}


def make_card(
    *,
    benchmark: str,
    split: str,
    task: str,
    model: str,
    revision: str,
    data_hash: str,
    n: int,
    protocol: str = "",
    sampling: Mapping[str, Any] | None = None,
    span_reader: str = "",
    seed: int = 0,
    limit: int | None = None,
    shard: tuple[int, int] = (0, 1),
    data: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """A run card with versions and hardware. task: "" for all that the split has. shard: this one (from 0), of how
    many. data_hash: of the whole selection, before it was cut into shards. data: the folder that was read
    (`data_told`)."""
    return {
        "schema": RUN_SCHEMA,
        "benchmark": benchmark,
        "split": split,
        "task": task,
        "model": model,
        "revision": revision,
        "protocol": protocol,
        "data_hash": data_hash,
        "data": dict(data or {}),
        "n": n,
        "sampling": dict(sampling or {}),
        "span_reader": span_reader,
        "seed": seed,
        "limit": limit,
        "shard": list(shard),
        "versions": versions(),
        "hardware": hardware(),
        "seconds": 0.0,
    }


def versions() -> dict[str, str]:
    from importlib import metadata

    out = {"tubelet": __version__, "python": platform.python_version()}
    for name in ("torch", "transformers", "numpy", "av"):
        try:
            out[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return out


def hardware() -> dict[str, Any]:
    """Processor and, where torch is in use already, its threads and accelerator. Names no machine."""
    import sys

    out: dict[str, Any] = {
        "system": platform.system(),
        "cpu": platform.machine(),
        "cpu_count": os.cpu_count(),
    }
    torch = sys.modules.get("torch")
    if torch is not None:
        out["threads"] = int(torch.get_num_threads())
        if torch.cuda.is_available():
            out["gpu"] = str(torch.cuda.get_device_name())
    return out


def read_card(folder: Path | str) -> dict[str, Any]:
    """run.json; DataError where there is none, it is broken, or of another schema."""
    path = Path(folder) / CARD
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{folder} is no run folder: it has no {CARD}") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON ({error!s:.80})") from error
    if not isinstance(card, dict):
        raise DataError(f"{path} is a run card, an object, got {type(card).__name__}")
    if card.get("schema") != RUN_SCHEMA:
        raise DataError(f"{path} has schema {card.get('schema')!r:.20}, this tubelet reads {RUN_SCHEMA}")
    absent = [key for key in (*IDENTITY, "n") if key not in card]
    if absent:
        raise DataError(f"{path} lacks {', '.join(absent)}")
    _check_card(path, card)
    return {"seconds": 0.0, "versions": {}, **card}


def _check_card(path: Path, card: Mapping[str, Any]) -> None:
    """DataError where a field that is worked with is not what `make_card` wrote."""
    for key in ("benchmark", "split", "task", "model", "revision", "protocol", "data_hash"):
        if not isinstance(card.get(key, ""), str):
            raise DataError(f"{path}: {key} is text, got {card[key]!r:.40}")
    shard = card["shard"]
    good = isinstance(shard, list) and len(shard) == 2 and all(type(x) is int for x in shard)
    if not good or not 0 <= shard[0] < shard[1]:
        raise DataError(f"{path}: shard is which (from 0) of how many, for example [0, 1], got {shard!r:.40}")
    if type(card["n"]) is not int or card["n"] < 0:
        raise DataError(f"{path}: n is a number of queries, got {card['n']!r:.40}")
    seconds = card.get("seconds", 0.0)
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < 1e12:
        raise DataError(f"{path}: seconds is how long the run took, got {seconds!r:.40}")
    for key, kind, what in (
        ("versions", dict, "an object"),
        ("data", dict, "an object"),
        ("resumed_with", list, "a list"),
    ):
        if key in card and not isinstance(card[key], kind):
            raise DataError(f"{path}: {key} is {what}, got {card[key]!r:.40}")


def check_same(there: Mapping[str, Any], wanted: Mapping[str, Any], folder: Path) -> None:
    """DataError when a card is of other data, another model or other settings; names the fields that differ."""
    differ = [key for key in IDENTITY if there.get(key) != wanted.get(key)]
    if differ:
        said = ", ".join(f"{key} {there.get(key)!r} (now {wanted.get(key)!r})" for key in differ)
        raise DataError(f"{folder} belongs to another run: {said}; give another folder, or delete it")
