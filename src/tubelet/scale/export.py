"""Results of a ledger as a JSON-lines file, one line per part, streamed and written atomically."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tubelet.errors import OutputError
from tubelet.scale.ledger import Ledger

Line = Callable[[str, str, str | None, str | None], Any]


def export_lines(ledger: Ledger, path: Path | str, line: Line | None = None, in_order: bool = True) -> int:
    """Write `line(item key, payload, result, reason)` of every part as JSON; returns how many.

    in_order: in the order of the input, else by item. A kill leaves the old file or the new one, whole.
    """
    place = Path(path)
    part = place.with_name(place.name + ".part")
    written = 0
    try:
        with part.open("w", encoding="utf-8") as file:
            for key, payload, result, reason in ledger.results(in_order):
                value = line(key, payload, result, reason) if line else [key, payload, result, reason]
                file.write(json.dumps(value, ensure_ascii=False) + "\n")
                written += 1
        part.replace(place)
    except OSError as error:
        raise OutputError(f"cannot write {place}: {error.strerror or error}; make space and go on") from error
    return written
