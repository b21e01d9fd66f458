"""Items of LLaVA-ST's training data from and to files: .json arrays and .jsonl, one item in memory at a time.

A broken item is a `RecordError` (file, record, field), or is counted by a `Problems` and left out; text-only items,
which the published reader replaces by their neighbour, can be counted apart. items.py says what an item is.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tubelet.datasets.fields import Item as RawRecord
from tubelet.datasets.fields import RecordError, show
from tubelet.datasets.problems import OnError, handle
from tubelet.datasets.reading import stream_items, stream_jsonl
from tubelet.errors import DataError, OutputError
from tubelet.llava_st.coordinates import PLACEHOLDERS, Variables
from tubelet.llava_st.item_layout import KINDS
from tubelet.llava_st.items import LISTS, ROLES, Item, ItemError, Turn

TEXT_ONLY = "text-only item"
_FIELDS = ("id", "type", "image", "video", "conversations", "variables", "meta")


def parse_item(raw: RawRecord) -> Item:
    """An item of the published format. RecordError names file, record and field."""
    image, video = _path(raw, "image"), _path(raw, "video")
    if image is None and video is None:
        raise RecordError(
            raw.file, raw.where, "", f"{TEXT_ONLY}: expected an image or a video (count these with text_only)"
        )
    turns = []
    for turn in raw.children("conversations"):
        who, text = turn.raw("from"), turn.raw("value")
        if not isinstance(who, str) or who not in ROLES:
            raise turn.error("from", f"a turn is from human or gpt, got {show(who)}")
        if not isinstance(text, str):
            raise turn.error("value", f"expected text, got {show(text)}")
        turns.append(Turn(who, text))
    kind = raw.data.get("type")
    known = isinstance(kind, str) and kind.lower() in KINDS
    kept = [key for key in raw.data if key not in _FIELDS or (key == "type" and not known)]
    meta, split = _meta(raw)
    try:
        return Item(
            conversations=tuple(turns),
            image=image,
            video=video,
            variables=_variables(raw, any(word in turn.text for turn in turns for word in PLACEHOLDERS)),
            split=split,
            id=raw.name_or_number("id") if raw.data.get("id") not in (None, "") else "",
            kind=str(kind).lower() if known else "",
            meta=meta,
            other={key: raw.data[key] for key in kept},
        )
    except ItemError as error:
        raise raw.error(error.field, error.reason) from None


def is_text_only(raw: RawRecord) -> bool:
    """True for an item without image and video: the published reader takes the item after it instead."""
    return not raw.data.get("image") and not raw.data.get("video")


def read_items(
    path: Path | str, on_error: OnError = "raise", text_only: OnError | None = None
) -> Iterator[Item]:
    """Items of a .json array or a .jsonl file, lazily, one in memory at a time, in file order.

    on_error: "raise", or a `Problems` that counts broken items and goes on. text_only: the same for items without a
    picture (default: as on_error). For reading in any order see mixture.py.
    """
    for raw in stream_raw(Path(path), on_error):
        how = text_only if text_only is not None and is_text_only(raw) else on_error
        try:
            item = parse_item(raw)
        except RecordError as error:
            handle(how, error)
            continue
        yield item


def stream_raw(path: Path, on_error: OnError = "raise") -> Iterator[RawRecord]:
    """Records of a .json array or .jsonl file that are JSON objects."""
    if path.suffix == ".jsonl":
        return stream_jsonl(path, on_error)
    if path.suffix == ".json":
        return stream_items(path, on_error)
    raise DataError(f"items are read from .json or .jsonl files, got {path.name}")


def write_items(items: Iterable[Item], path: Path | str) -> int:
    """Write a .json array or .jsonl file, one item per line, whole or not at all; returns their number."""
    path = Path(path)
    if path.suffix not in (".json", ".jsonl"):
        raise OutputError(f"items are written to .json or .jsonl files, got {path.name}")
    array = path.suffix == ".json"
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    count = 0
    try:
        with part.open("w", encoding="utf-8") as file:
            for item in items:
                file.write(("[\n" if not count else ",\n") if array else "")
                file.write(_line(item, count) + ("" if array else "\n"))
                count += 1
            if array:
                file.write("\n]\n" if count else "[]\n")
        part.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write items to {path}: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)
    return count


def _line(item: Item, number: int) -> str:
    try:
        text = json.dumps(item.to_dict(), ensure_ascii=False, allow_nan=False)
        text.encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(f"item {number} ({item.id or item.path}) is no JSON: {error}") from error
    return text


def _path(raw: RawRecord, key: str) -> str | None:
    value = raw.data.get(key)
    if isinstance(value, list) and len(value) == 1:  # as in interleaved data; one picture is one picture
        value = value[0]
    if isinstance(value, list) and value:
        raise raw.error(key, f"an item has one {key}, this one has {len(value)}")
    if value is None or value == "" or value == []:
        return None
    if not isinstance(value, str):
        raise raw.error(key, f"expected a path, got {show(value)}")
    return value


def _variables(raw: RawRecord, needed: bool) -> Variables:
    if not raw.has("variables") and not needed:
        return Variables()
    given = raw.child("variables")
    unknown = [str(key) for key in given.data if key not in LISTS]
    if unknown:
        raise raw.error(
            "variables", f"holds {', '.join(unknown)[:80]}, which is not known; lists: {', '.join(LISTS)}"
        )
    return Variables(**{name: tuple(given.numbers(name)) for name in LISTS})


def _meta(raw: RawRecord) -> tuple[dict[str, Any], tuple[int, int] | None]:
    if not raw.has("meta"):
        return {}, None
    meta = raw.child("meta")
    rest = {key: value for key, value in meta.data.items() if key != "split"}
    if not meta.has("split"):
        return rest, None
    ends = meta.numbers("split", 2)
    if not all(end.is_integer() for end in ends):
        raise meta.error("split", f"expected two whole frame numbers, got {show(ends)}")
    return rest, (int(ends[0]), int(ends[1]))
