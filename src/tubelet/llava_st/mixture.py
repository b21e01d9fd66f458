"""Lists of training data: which files of items, how many of each, and where their videos are.

    datasets:
      - json_path: stage3/stvg.json        # .json array or .jsonl
        sampling_strategy: random:20%      # all, first:N, end:N, random:N; N may be x%. Default: all
        source: stvg                       # a name, for reports
        data_folder: videos/vidor

Relative paths are looked for beside the list first, then in the working directory, as published. An entry's share is
taken from its records in file order: x% is rounded up, N above their number takes all of them, and `random` depends on
the seed and json_path only, so that adding an entry changes no other. Whether items are valid plays no part in it.

`open_mixture` finds every record (record_index.py) and parses none: items are read one by one, in any order.
"""

from __future__ import annotations

import math
import os
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tubelet.datasets.fields import show
from tubelet.datasets.problems import OnError
from tubelet.errors import DataError, OutputError
from tubelet.llava_st.item_files import parse_item
from tubelet.llava_st.items import Item
from tubelet.llava_st.record_index import RecordIndex, index_records

_STRATEGY = re.compile(r"(first|end|random):(\d{1,12}(?:\.\d{1,6})?)(%?)")
_KEYS = ("json_path", "sampling_strategy", "source", "data_folder")


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a list; the fields are the keys of the published format."""

    json_path: str
    data_folder: str
    sampling_strategy: str = "all"
    source: str = ""

    def __post_init__(self) -> None:
        if not self.json_path.endswith((".json", ".jsonl")):
            raise DataError(f"json_path is a .json or .jsonl file, got {show(self.json_path)}")
        _strategy(self.sampling_strategy)

    @property
    def name(self) -> str:
        """The source, or the file's name where there is none."""
        return self.source or Path(self.json_path).stem

    def share(self, count: int, seed: int = 0) -> npt.NDArray[np.int64]:
        """Which of `count` records are taken: increasing numbers."""
        how, amount, percent = _strategy(self.sampling_strategy)
        if how == "all":
            return np.arange(count, dtype=np.int64)
        wanted = math.ceil(round(amount * count / 100, 9)) if percent else int(amount)
        wanted = min(wanted, count)
        if how == "first":
            return np.arange(wanted, dtype=np.int64)
        if how == "end":
            return np.arange(count - wanted, count, dtype=np.int64)
        rng = np.random.default_rng([seed, zlib.crc32(self.json_path.encode("utf-8", "replace"))])
        chosen: npt.NDArray[np.int64] = np.sort(rng.permutation(count)[:wanted]).astype(np.int64)
        return chosen


@dataclass(frozen=True, slots=True)
class Mixture:
    """A list of data. folder: where it lies, for its relative paths (None: only the working directory counts)."""

    entries: tuple[Entry, ...]
    folder: Path | None = None

    def find(self, path: str) -> Path:
        """Where a path of the list is: beside it, or in the working directory."""
        beside = Path(path) if self.folder is None else self.folder / path
        return beside if beside.exists() or not Path(path).exists() else Path(path)


@dataclass(frozen=True, slots=True)
class Drawn:
    """An item of a mixture: folder is where its picture lies; entry and record are its numbers in list and file."""

    item: Item
    folder: Path
    entry: int
    record: int


class MixedItems:
    """All chosen records of a mixture, one sequence in the order of the list. Nothing is parsed before it is asked for.

    Reading item k opens a file: instances can be shared by processes. `DataError` (with file, record and field) for an
    item that is broken; item_samples.py takes the next one then.
    """

    def __init__(self, mixture: Mixture, files: tuple[RecordIndex, ...], seed: int = 0) -> None:
        self.mixture, self.files, self.seed = mixture, files, seed
        self.chosen = tuple(
            entry.share(len(file), seed) for entry, file in zip(mixture.entries, files, strict=True)
        )
        self.folders = tuple(mixture.find(entry.data_folder) for entry in mixture.entries)
        self._ends = np.cumsum([len(rows) for rows in self.chosen], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, number: int) -> Drawn:
        entry, record = self.place(number)
        item = parse_item(self.files[entry].read(record))
        return Drawn(item, self.folders[entry], entry, record)

    def __iter__(self) -> Iterator[Drawn]:
        return (self[number] for number in range(len(self)))

    def place(self, number: int) -> tuple[int, int]:
        """The entry of the list, and the record of its file."""
        if not 0 <= number < len(self):
            raise IndexError(f"item {number} of {len(self)}")
        entry = int(np.searchsorted(self._ends, number, side="right"))
        return entry, int(self.chosen[entry][number - int(self._ends[entry])])

    def order(self, epoch: int = 0) -> npt.NDArray[np.int64]:
        """A shuffled order of all items; another one in every epoch, the same in every run."""
        return np.random.default_rng([self.seed, epoch, 31]).permutation(len(self)).astype(np.int64)


def open_mixture(mixture: Mixture | Path | str, seed: int = 0, on_error: OnError = "raise") -> MixedItems:
    """Find all records of a list (or of its file). DataError names what is missing.

    on_error: for files that end too early: "raise", or a `Problems` that counts them; what is before is kept.
    """
    if not isinstance(mixture, Mixture):
        mixture = read_mixture(mixture)
    files = []
    for entry in mixture.entries:
        path = mixture.find(entry.json_path)
        if not path.is_file():
            raise DataError(f"{entry.name}: there is no file {path} (json_path: {entry.json_path})")
        files.append(index_records(path, on_error))
    return MixedItems(mixture, tuple(files), seed)


# --- the list itself -----------------------------------------------------------------------------------


def read_mixture(path: Path | str) -> Mixture:
    """Read a YAML list. DataError names the entry and the field."""
    import yaml

    path = Path(path)
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"there is no list of data {path}") from error
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"cannot read the list of data {path}: {reason:.160}") from error
    if not isinstance(data, Mapping) or not isinstance(data.get("datasets"), list):
        raise DataError(f"{path}: a list of data holds 'datasets', a list of entries, got {show(data)}")
    unknown = [str(key) for key in data if key != "datasets"]
    if unknown:
        raise DataError(f"{path}: a list of data holds 'datasets' only, not {', '.join(unknown)[:80]}")
    if not data["datasets"]:
        raise DataError(f"{path}: 'datasets' is empty")
    entries = [_entry(given, f"{path}, entry {number}") for number, given in enumerate(data["datasets"])]
    return Mixture(tuple(entries), path.parent)


def write_mixture(mixture: Mixture, path: Path | str) -> None:
    """Write a YAML list, whole or not at all. Paths are written as they are, so relative ones mean the new place."""
    import yaml

    path = Path(path)
    rows = []
    for entry in mixture.entries:
        row = {"json_path": entry.json_path, "sampling_strategy": entry.sampling_strategy}
        rows.append(
            {**row, **({"source": entry.source} if entry.source else {}), "data_folder": entry.data_folder}
        )
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_text(
            yaml.safe_dump({"datasets": rows}, sort_keys=False, allow_unicode=True), encoding="utf-8"
        )
        part.replace(path)
    except (OSError, UnicodeEncodeError) as error:
        raise OutputError(f"cannot write the list of data {path}: {error}") from error
    finally:
        part.unlink(missing_ok=True)


def _entry(given: Any, where: str) -> Entry:
    if not isinstance(given, Mapping):
        raise DataError(f"{where}: expected json_path and data_folder, got {show(given)}")
    unknown = [str(key) for key in given if key not in _KEYS]
    if unknown:
        raise DataError(f"{where} has no field {', '.join(unknown)[:80]}; its fields are {', '.join(_KEYS)}")
    texts = {}
    for key in _KEYS:
        value = given.get(key)
        if value is None and key in ("source", "sampling_strategy"):
            continue
        if not isinstance(value, str) or not value.strip() or "\0" in value:
            raise DataError(
                f"{where}, {key}: expected text, got {'nothing' if value is None else show(value)}"
            )
        texts[key] = value.strip()
    try:
        return Entry(**texts)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None


def _strategy(text: str) -> tuple[str, float, bool]:
    """("random", 20.0, True) of "random:20%"."""
    if text == "all":
        return "all", 0.0, False
    found = _STRATEGY.fullmatch(text)
    amount, percent = (float(found[2]), found[3] == "%") if found else (0.0, False)
    if (
        found is None
        or amount <= 0
        or (percent and amount > 100)
        or (not percent and not amount.is_integer())
    ):
        raise DataError(
            "sampling_strategy is all, first:N, end:N or random:N with a whole N of at least 1, or a percentage "
            f"above 0% and up to 100%, got {show(text)}"
        )
    return found[1], amount, percent
