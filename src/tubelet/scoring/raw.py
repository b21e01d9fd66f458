"""Numbers, spans and boxes of a record as they are: NaN and nonsense pass, what is no number is a RecordError.

`checks` judges the values; a record is broken only where there is no value of the right shape.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tubelet.datasets.fields import Item, show

Box = tuple[float, float, float, float]
IDS = ("id", "qid", "query_id", "item_id", "question_id")
LONGEST = 1_000_000  # boxes of one answer; more is a broken file


def number(item: Item, key: str, value: Any) -> float:
    """A float, perhaps NaN or infinite; in a CSV file its text (nothing is NaN)."""
    if item.textual and isinstance(value, str):
        try:
            return float(value) if value.strip() else float("nan")
        except ValueError:
            raise item.error(key, f"expected a number, got {show(value)}") from None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise item.error(key, f"expected a number, got {show(value)}")
    try:
        return float(value)
    except OverflowError:
        return float("inf")


def pair(item: Item, key: str, value: Any) -> tuple[float, float]:
    """Two numbers: a span."""
    if not isinstance(value, list) or len(value) != 2:
        raise item.error(key, f"expected [start, end], got {show(value)}")
    return number(item, f"{key}[0]", value[0]), number(item, f"{key}[1]", value[1])


def box(item: Item, key: str, value: Any) -> Box:
    """Four numbers."""
    if not isinstance(value, list) or len(value) != 4:
        raise item.error(key, f"expected a box of four numbers, got {show(value)}")
    a, b, c, d = (number(item, f"{key}[{k}]", x) for k, x in enumerate(value))
    return a, b, c, d


def keyed_boxes(item: Item, key: str) -> dict[str, Box]:
    """{moment as text: box}, in the order of the file."""
    value = item.raw(key)
    if not isinstance(value, dict) or len(value) > LONGEST:
        raise item.error(key, f"expected moment -> box, got {show(value)}")
    return {str(moment): box(item, f"{key}.{show(moment)}", row) for moment, row in value.items()}


def moments(item: Item, key: str, texts: Iterator[str] | list[str]) -> list[float]:
    """Keys of boxes as numbers."""
    out = []
    for text in texts:
        try:
            out.append(float(text))
        except ValueError:
            raise item.error(key, f"expected boxes by number, got the key {show(text)}") from None
    return out


def record_id(item: Item, names: tuple[str, ...] = IDS) -> str:
    """The first id there is, as text."""
    for name in names:
        if item.has(name):
            return item.name_or_number(name)
    raise item.error(names[0], f"is missing: a record needs one of {', '.join(names)}")
