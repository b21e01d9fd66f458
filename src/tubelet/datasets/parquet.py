"""Rows of parquet files (the form in which datasets come from the Hugging Face hub), a batch at a time.

Needs pyarrow, which tubelet does not install: without it one sentence says how to get it or how to convert the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path

from tubelet.datasets.fields import Item, RecordError
from tubelet.datasets.problems import OnError, handle
from tubelet.errors import DataError

_BATCH = 512


def stream_parquet(path: Path, columns: Sequence[str], on_error: OnError = "raise") -> Iterator[Item]:
    """One Item per row, with all columns; a file without `columns`, or a broken one, is a problem."""
    try:
        arrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    except ImportError:
        raise DataError(
            f"{path} is a parquet file, which needs pyarrow: 'pip install pyarrow', or write its rows as JSON Lines "
            "once where pandas is installed: pandas.read_parquet(FILE).to_json(OUT, orient='records', lines=True)"
        ) from None
    try:
        source = path.open("rb")
    except OSError as error:
        raise DataError(f"cannot open {path}: {error.strerror or error}") from error
    number = 0
    try:
        with source, parquet.ParquetFile(source) as file:
            there = list(file.schema_arrow.names)
            missing = [name for name in columns if name not in there]
            if missing:
                reason = f"lacks the columns {', '.join(missing)}; it has {', '.join(there)[:120]}"
                handle(on_error, RecordError(str(path), "", "", reason))
                return
            for batch in file.iter_batches(batch_size=_BATCH):
                for row in batch.to_pylist():
                    yield Item(row, str(path), f"row {number}")
                    number += 1
    except (arrow.ArrowException, OSError, ValueError) as error:  # pyarrow says OSError of broken bytes, too
        text = " ".join(str(error).split())
        handle(on_error, RecordError(str(path), f"after row {number}", "", f"not parquet: {text:.100}"))
