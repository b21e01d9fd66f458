"""What the tests of single datasets share: reading one record, codes of notes, JSON Lines."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from tubelet.datasets import read
from tubelet.datasets.fields import RecordError
from tubelet.datasets.record import Record


def one(records: Iterable[Record]) -> Record:
    (record,) = records
    return record


def codes(record: Record) -> list[str]:
    return [note.partition(":")[0] for note in record.notes]


def count_codes(records: Iterable[Record]) -> Counter[str]:
    """How many records carry each code."""
    return Counter(code for record in records for code in set(codes(record)))


def write_lines(path: Path, rows: Iterable[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def fails(name: str, folder: Path, split: str, says: str, **options: Any) -> None:
    """Reading raises one sentence with these words, and names the file."""
    with pytest.raises(RecordError, match=says) as error:
        list(read(name, folder, split, **options))
    assert str(folder) in str(error.value)
