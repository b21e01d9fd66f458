"""Instructions as flat typed rows: JSON Lines and Parquet that `datasets.load_dataset` reads without a script.

Every row has every column, with one type each: what does not apply is null (numbers), "" (texts) or an empty list.
`conversations` are readable texts (seconds, boxes as fractions); `marked` is the same with marks instead of numbers
(instructions.py), from which `read_rows` makes the instruction again; `provenance` is JSON as text, because its keys
differ from source to source.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from tubelet.datasets.fields import Item, RecordError
from tubelet.datasets.parquet import stream_parquet
from tubelet.datasets.problems import OnError, handle
from tubelet.datasets.reading import stream_jsonl
from tubelet.errors import DataError, OutputError
from tubelet.tube import Span
from tubelet.unistg.instructions import Instruction

COLUMNS = {
    "id": "string",
    "task": "string",
    "source": "string",
    "media": "string",
    "path": "string",
    "query": "string",
    "phrase": "string",
    "start_s": "float64",
    "end_s": "float64",
    "duration_s": "float64",
    "times_s": "list<float64>",
    "boxes_xyxy": "list<list<float64>>",
    "conversations": "list<{from, value}>",
    "marked": "list<{from, value}>",
    "provenance": "string",
}
"""Column -> type. Boxes are x0, y0, x1, y1 in fractions of the displayed frame."""

_BATCH = 2048


def span_text(span: Span | None) -> str:
    return "" if span is None else f"from {span.start_s:.1f} s to {span.end_s:.1f} s"


def row_of(instruction: Instruction) -> dict[str, Any]:
    """All columns of one instruction."""
    texts = [f"[{', '.join(f'{value:.3f}' for value in box)}]" for box in instruction.boxes_xyxy]
    timed = "; ".join(f"{at:.1f} s: {text}" for at, text in zip(instruction.times_s, texts, strict=False))
    shown = instruction.rendered(span_text(instruction.span), texts[0] if texts else "", timed)
    span = instruction.span
    return {
        "id": instruction.id,
        "task": instruction.task,
        "source": instruction.source,
        "media": instruction.media,
        "path": instruction.path,
        "query": instruction.query,
        "phrase": instruction.phrase,
        "start_s": None if span is None else span.start_s,
        "end_s": None if span is None else span.end_s,
        "duration_s": None if instruction.duration_s is None else float(instruction.duration_s),
        "times_s": [float(at) for at in instruction.times_s],
        "boxes_xyxy": [[float(value) for value in box] for box in instruction.boxes_xyxy],
        "conversations": [{"from": who, "value": text} for who, text in shown],
        "marked": [{"from": who, "value": text} for who, text in instruction.turns],
        "provenance": json.dumps(dict(instruction.provenance), ensure_ascii=False, sort_keys=True),
    }


def instruction_of(item: Item) -> Instruction:
    """The instruction of a row. RecordError for a row that is none."""
    try:
        data = item.data
        turns = tuple((turn["from"], turn["value"]) for turn in data["marked"])
        span = None if data["start_s"] is None else Span(data["start_s"], data["end_s"])
        provenance = json.loads(data["provenance"])
        if not isinstance(provenance, dict):
            raise item.error("provenance", "expected an object")
        return Instruction(
            id=data["id"],
            task=data["task"],
            source=data["source"],
            media=data["media"],
            path=data["path"],
            turns=turns,
            query=data["query"],
            phrase=data["phrase"],
            span=span,
            duration_s=data["duration_s"],
            times_s=tuple(data["times_s"]),
            boxes_xyxy=tuple((box[0], box[1], box[2], box[3]) for box in data["boxes_xyxy"]),
            provenance=provenance,
        )
    except RecordError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise item.error("", f"not a row of Uni-STG: {error!s:.100}") from error
    except DataError as error:
        raise item.error("", str(error)) from error


def write_rows(instructions: Iterable[Instruction], path: Path | str) -> int:
    """A .jsonl or .parquet file, whole or not at all; returns the number of rows. Parquet needs pyarrow."""
    path = Path(path)
    if path.suffix == ".jsonl":
        return write_lines((row_of(one) for one in instructions), path)
    if path.suffix == ".parquet":
        return write_parquet((row_of(one) for one in instructions), path, COLUMNS)
    raise OutputError(f"rows are written to .jsonl or .parquet files, got {path.name}")


def read_rows(path: Path | str, on_error: OnError = "raise") -> Iterator[Instruction]:
    """The instructions of a .jsonl or .parquet file, lazily."""
    path = Path(path)
    if path.suffix not in (".jsonl", ".parquet"):
        raise DataError(f"rows are read from .jsonl or .parquet files, got {path.name}")
    columns = tuple(COLUMNS)
    parquet = path.suffix == ".parquet"
    for item in stream_parquet(path, columns, on_error) if parquet else stream_jsonl(path, on_error):
        try:
            yield instruction_of(item)
        except RecordError as error:
            handle(on_error, error)


def write_lines(rows: Iterable[Mapping[str, Any]], path: Path) -> int:
    """JSON Lines, whole or not at all; returns how many. OutputError where it cannot be written."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    count = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("w", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
                count += 1
        part.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
    return count


def write_parquet(rows: Iterable[dict[str, Any]], path: Path, columns: Mapping[str, str]) -> int:
    """One Parquet file, whole or not at all; returns how many rows. columns: name -> type, as in COLUMNS.

    Raises OutputError where pyarrow is missing or the file cannot be written.
    """
    try:
        arrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    except ImportError:
        raise OutputError(
            f"{path.name} is a parquet file, which needs pyarrow: 'pip install pyarrow', or write .jsonl"
        ) from None
    turn = arrow.struct([("from", arrow.string()), ("value", arrow.string())])
    kinds = {
        "string": arrow.string(),
        "float64": arrow.float64(),
        "list<float64>": arrow.list_(arrow.float64()),
        "list<list<float64>>": arrow.list_(arrow.list_(arrow.float64())),
        "list<{from, value}>": arrow.list_(turn),
    }
    schema = arrow.schema([(name, kinds[kind]) for name, kind in columns.items()])
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    count = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with parquet.ParquetWriter(part, schema) as writer:
            batch: list[dict[str, Any]] = []
            for row in rows:
                batch.append(row)
                count += 1
                if len(batch) == _BATCH:
                    writer.write_table(arrow.Table.from_pylist(batch, schema=schema))
                    batch.clear()
            if batch:
                writer.write_table(arrow.Table.from_pylist(batch, schema=schema))
        part.replace(path)
    except (OSError, arrow.ArrowException) as error:
        raise OutputError(f"cannot write {path}: {error!s:.200}") from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
    return count
