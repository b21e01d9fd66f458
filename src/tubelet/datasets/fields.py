"""`Item`: one raw record of a source file with checked access to its fields; `RecordError`: what is wrong with one.

    item.text("caption")            a non-empty string, stripped
    item.whole("st_frame", 1)       a whole number, at least 1
    item.child("temporal_gt")       a nested object, errors say "temporal_gt.begin_fid"

Every accessor raises a RecordError that names file, record and field. No value is ever converted silently, except
that whole numbers may be written 3.0, and that the fields of CSV files are text (`textual=True`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tubelet.errors import DataError

_ABSENT: Any = object()
_INDEX = re.compile(r"\[\d+\]")
LARGEST = 2.0**53  # whole numbers beyond it are not exact as floats, and no annotation needs them


class RecordError(DataError):
    """A broken record: which file, which record in it (line, number or key), which field, and why."""

    def __init__(self, file: str, where: str, field: str, reason: str) -> None:
        self.file, self.where, self.field, self.reason = (one_line(x) for x in (file, where, field, reason))
        at = f"{self.file}, {self.where}" if where else self.file
        super().__init__(f"{at}: {f'field {self.field}: ' if field else ''}{self.reason}")

    @property
    def kind(self) -> str:
        """What problems are counted by: the field without indices, or the reason where no field is to blame."""
        return _INDEX.sub("[]", self.field) or self.reason.split(":")[0].split(",")[0][:60]


def one_line(text: str) -> str:
    """The text with everything that does not print (line ends, lone surrogates, ...) as escapes."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def is_text(value: str) -> bool:
    """False for strings that JSON can spell but no file can hold: lone surrogates."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def show(value: Any) -> str:
    """A short repr for error messages; never raises (numbers of thousands of digits have no repr)."""
    if isinstance(value, dict | list | tuple):
        return f"{type(value).__name__} of {len(value)}"
    try:
        text = repr(value)
    except ValueError:
        return "a number of thousands of digits"
    return text if len(text) <= 60 else text[:57] + "..."


@dataclass(frozen=True, slots=True)
class Item:
    """One object of a source file. where: "record 3", "line 7", "key 'a.mp4'"; path: the way from there, "a.b[2]"."""

    data: Mapping[str, Any]
    file: str
    where: str
    path: str = ""
    textual: bool = False

    def name(self, key: str) -> str:
        return f"{self.path}.{key}" if self.path else key

    def error(self, key: str, reason: str) -> RecordError:
        return RecordError(self.file, self.where, self.name(key) if key else self.path, reason)

    def has(self, key: str) -> bool:
        """True when the field is there and is not null (or empty, in a CSV file)."""
        return self.data.get(key) is not None and not (self.textual and self.data[key] == "")

    def raw(self, key: str) -> Any:
        if key not in self.data:
            there = ", ".join(str(name) for name in list(self.data)[:8])
            raise self.error(key, f"is missing (there are: {there[:120] or 'none'})")
        return self.data[key]

    def text(self, key: str, default: str = _ABSENT) -> str:
        """A non-empty string, stripped. A number is not text; `default` is for absent and null fields only."""
        if default is not _ABSENT and not self.has(key):
            return default
        value = self.raw(key)
        if not isinstance(value, str) or not value.strip() or not is_text(value):
            raise self.error(key, f"expected text that is not empty, got {show(value)}")
        return value.strip()

    def name_or_number(self, key: str) -> str:
        """An id that may be written as text or as a whole number."""
        value = self.raw(key)
        if isinstance(value, int) and not isinstance(value, bool):
            return str(self.whole(key, minimum=None))
        return self.text(key)

    def number(self, key: str, minimum: float | None = None, maximum: float = LARGEST) -> float:
        """A finite number in [minimum, maximum]."""
        return check_number(self.raw(key), self, key, minimum, maximum)

    def whole(self, key: str, minimum: int | None = 0, maximum: float = LARGEST) -> int:
        """A whole number in [minimum, maximum]; 3.0 is one."""
        value = self.number(key, minimum, maximum)
        if not value.is_integer():
            raise self.error(key, f"expected a whole number, got {value:g}")
        return int(value)

    def numbers(self, key: str, length: int | None = None, minimum: float | None = None) -> list[float]:
        """A list of finite numbers, of this length."""
        values = self.items(key)
        if length is not None and len(values) != length:
            raise self.error(key, f"expected {length} numbers, got {len(values)}")
        return [check_number(value, self, f"{key}[{k}]", minimum) for k, value in enumerate(values)]

    def items(self, key: str) -> list[Any]:
        value = self.raw(key)
        if not isinstance(value, list):
            raise self.error(key, f"expected a list, got {show(value)}")
        return value

    def texts(self, key: str) -> list[str]:
        """A list of non-empty strings."""
        values = self.items(key)
        for k, value in enumerate(values):
            if not isinstance(value, str) or not value.strip() or not is_text(value):
                raise self.error(f"{key}[{k}]", f"expected text that is not empty, got {show(value)}")
        return [value.strip() for value in values]

    def child(self, key: str) -> Item:
        return self._nested(self.raw(key), self.name(key))

    def children(self, key: str) -> list[Item]:
        """A list of objects."""
        return [self._nested(value, f"{self.name(key)}[{k}]") for k, value in enumerate(self.items(key))]

    def _nested(self, value: Any, path: str) -> Item:
        if not isinstance(value, Mapping):
            raise RecordError(self.file, self.where, path, f"expected an object, got {show(value)}")
        return Item(value, self.file, self.where, path, self.textual)


def check_number(
    value: Any, item: Item, key: str, minimum: float | None = None, maximum: float = LARGEST
) -> float:
    """`value` as a finite float in [minimum, maximum] (|value| <= 2**53 always); RecordError for field `key`."""
    if item.textual and isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise item.error(key, f"expected a number, got {show(value)}") from None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise item.error(key, f"expected a number, got {show(value)}")
    if not -LARGEST <= value <= LARGEST or (isinstance(value, float) and not math.isfinite(value)):
        raise item.error(key, f"expected a finite number of sensible size, got {show(value)}")
    if (minimum is not None and value < minimum) or value > maximum:
        low = "any" if minimum is None else f"{minimum:g}"
        high = "any" if maximum == LARGEST else f"{maximum:g}"
        raise item.error(key, f"expected a number from {low} to {high}, got {value:g}")
    return float(value)
