"""Instructions in the formats of others: LLaVA-ST's items, ms-swift's grounding rows, LLaMA-Factory's sharegpt files.

    write_instructions(instructions, folder / "train.jsonl", "rows")          # ours (rows.py); also train.parquet
    write_instructions(instructions, folder / "items.json", "llava-st")
    write_instructions(instructions, folder / "swift.jsonl", "ms-swift")
    write_instructions(instructions, folder / "unistg.jsonl", "llama-factory")  # and folder/dataset_info.json

What is taken from the other side's documentation:

- **LLaVA-ST**: one picture per item, times as fractions of the video (so its duration must be known), coordinates as
  placeholders with values, the published questions (`llava_st.item_words`); checked by `llava_st.items.Item`. Items
  without a picture do not exist there: they are reported and left out.
- **ms-swift** (custom dataset, "Grounding"): {"messages": [{"role", "content"}], "images" or "videos": [paths],
  "objects": {"ref": [texts of <ref-object>], "bbox": [[x0, y0, x1, y1], one per <bbox>], "bbox_type": "norm1"}};
  <image> and <video> mark where the picture is. norm1 are fractions, and ms-swift writes them as the model wants them.
  It needs the size of an *image* for models with absolute coordinates (Qwen2.5-VL): for those, boxes in videos
  cannot be converted there, so write them as text (`boxes="text"`).
- **LLaMA-Factory** (data/README): sharegpt formatting, {"conversations": [{"from", "value"}], "images": [...],
  "videos": [...]}, as many marks as pictures, and an entry of dataset_info.json in the same folder. It knows no boxes:
  they are text, in whole thousandths of the frame, [x0, y0, x1, y1].
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tubelet.errors import DataError, OutputError
from tubelet.unistg.instructions import Box, Instruction
from tubelet.unistg.records import Drop
from tubelet.unistg.rows import span_text, write_lines, write_rows

if TYPE_CHECKING:
    from tubelet.llava_st.items import Item

FORMATS = ("rows", "llava-st", "ms-swift", "llama-factory")
STAGE = "formats"
INFO = "dataset_info.json"
_PICTURE = re.compile(r"<(?:image|video|audio)>")
_SWIFT_MARK = re.compile(r"<(?:image|video|audio|bbox|ref-object)>")
_BOX_TEXT = re.compile(r"\[(\d{1,4}), (\d{1,4}), (\d{1,4}), (\d{1,4})\]")
_TIMED = re.compile(r"(\d+\.\d) s: (\[[^\]]*\])")


def write_instructions(
    instructions: Iterable[Instruction],
    path: Path | str,
    format: str,
    left_out: Callable[[Drop], None] | None = None,
    boxes: str = "objects",
) -> int:
    """One file in one format, whole or not at all; returns how many were written.

    left_out: is told of each instruction that the format cannot hold (default: that is a DataError).
    boxes: of videos for ms-swift, "objects" or "text". Raises OutputError where the file cannot be written.
    """
    path = Path(path)
    if format == "rows":
        return write_rows(instructions, path)
    if format == "llava-st":
        from tubelet.llava_st.item_files import write_items

        _make_folder(path)
        return write_items(_possible(instructions, llava_st_item, left_out), path)
    if format == "ms-swift":
        return write_lines(_possible(instructions, lambda one: swift_row(one, boxes), left_out), path)
    if format == "llama-factory":
        if path.suffix != ".jsonl":
            raise OutputError(f"LLaMA-Factory's file is written as .jsonl, got {path.name}")
        _info(path.with_name(INFO))  # a broken one is found before hours of work
        count = write_lines(_possible(instructions, llama_factory_row, left_out), path)
        add_dataset_info(path)
        return count
    raise OutputError(f"unknown format {format!r}; formats are {', '.join(FORMATS)}")


def _possible(
    instructions: Iterable[Instruction],
    make: Callable[[Instruction], Any],
    left_out: Callable[[Drop], None] | None,
) -> Iterator[Any]:
    for one in instructions:
        try:
            made = make(one)
        except DataError as error:
            if left_out is None:
                raise
            left_out(Drop(one.id, STAGE, "not-in-this-format", str(error)))
            continue
        yield made


# --- LLaVA-ST ------------------------------------------------------------------------------------------


def llava_st_item(instruction: Instruction, max_boxes: int = 20) -> Item:
    """The item of an instruction. DataError without a picture, and for times in a video of unknown duration."""
    from tubelet.llava_st.item_making import Timeline
    from tubelet.llava_st.item_words import Facts, Place, Wording, make_item
    from tubelet.llava_st.items import Item, Turn
    from tubelet.llava_st.words import IMAGE_MARK, VIDEO_MARK

    if instruction.media == "text":
        raise DataError(f"{instruction.id}: LLaVA-ST's items are about an image or a video, this one is text")
    image = instruction.media == "image"
    if instruction.task == "general":
        mark = IMAGE_MARK if image else VIDEO_MARK
        (who, question), *rest = instruction.turns
        turns = (Turn(who, f"{mark}\n{question}"), *(Turn(who, text) for who, text in rest))
        path = instruction.path
        return Item(
            turns,
            image=path if image else None,
            video=None if image else path,
            id=instruction.id,
            kind="conversation",
        )
    place = Place(instruction.path, image)
    wording = Wording(seed=0)
    if instruction.task == "rec":
        x0, y0, x1, y1 = (round(value, 3) for value in instruction.boxes_xyxy[0])
        facts = Facts(query=instruction.query, box=(x0, y0, x1, y1))
        return make_item("rec", place, facts, instruction.id, wording)
    if instruction.duration_s is None or instruction.span is None:
        raise DataError(
            f"{instruction.id}: LLaVA-ST writes times as fractions of the video, whose duration is not known"
        )
    timeline = Timeline(None, 0.0, instruction.duration_s)
    span = timeline.span(instruction.span)
    if instruction.task == "vtg":
        return make_item("tvg", place, Facts(query=instruction.query, span=span), instruction.id, wording)
    timed: dict[float, Box] = {}
    for at, box in _thinned(instruction, max_boxes):
        x0, y0, x1, y1 = (round(value, 3) for value in box)
        timed.setdefault(timeline.fraction(at), (x0, y0, x1, y1))
    facts = Facts(query=instruction.query, span=span, times=tuple(timed), boxes=tuple(timed.values()))
    return make_item("stvg", place, facts, instruction.id, wording)


# --- ms-swift ------------------------------------------------------------------------------------------


def swift_row(instruction: Instruction, boxes: str = "objects", max_boxes: int = 20) -> dict[str, Any]:
    """A row of ms-swift's standard format. boxes: of a video, "objects" (norm1) or "text" (thousandths)."""
    if boxes not in ("objects", "text"):
        raise DataError(f'boxes of videos are written as "objects" or "text", got {boxes!r}')
    _free_of(_SWIFT_MARK, instruction, "ms-swift")
    grounded = instruction.task in ("rec", "stvg")
    as_objects = grounded and (boxes == "objects" or instruction.media == "image")
    listed = _thinned(instruction, max_boxes) if instruction.task == "stvg" else []
    if as_objects:
        timed = "; ".join(f"{at:.1f} s: <bbox>" for at, _ in listed)
        turns = instruction.rendered(span_text(instruction.span), "<bbox>", timed)
    else:
        turns = _as_text(instruction, max_boxes)
    (who, question), *rest = turns
    thing = instruction.phrase or instruction.query
    named = as_objects and bool(thing) and thing in question
    if named:
        question = question.replace(thing, "<ref-object>", 1)
    mark = "" if instruction.media == "text" else f"<{instruction.media}>"
    roles = {"human": "user", "gpt": "assistant"}
    row: dict[str, Any] = {
        "messages": [{"role": roles[who], "content": text} for who, text in ((who, mark + question), *rest)]
    }
    if mark:
        row[f"{instruction.media}s"] = [instruction.path]
    if as_objects:
        written = [list(box) for _, box in listed] or [list(instruction.boxes_xyxy[0])]
        row["objects"] = {"ref": [thing] if named else [], "bbox": written, "bbox_type": "norm1"}
    return row


# --- LLaMA-Factory -------------------------------------------------------------------------------------


def llama_factory_row(instruction: Instruction, max_boxes: int = 20) -> dict[str, Any]:
    """A row of sharegpt formatting."""
    _free_of(_PICTURE, instruction, "LLaMA-Factory")
    (who, question), *rest = _as_text(instruction, max_boxes)
    mark = "" if instruction.media == "text" else f"<{instruction.media}>"
    turns = ((who, mark + question), *rest)
    return {
        "id": instruction.id,
        "conversations": [{"from": who, "value": text} for who, text in turns],
        "images": [instruction.path] if instruction.media == "image" else [],
        "videos": [instruction.path] if instruction.media == "video" else [],
    }


def dataset_info(path: Path) -> dict[str, Any]:
    """The entry of dataset_info.json for a file of `llama_factory_row`s."""
    return {
        "file_name": path.name,
        "formatting": "sharegpt",
        "columns": {"messages": "conversations", "images": "images", "videos": "videos"},
        "tags": {"role_tag": "from", "content_tag": "value", "user_tag": "human", "assistant_tag": "gpt"},
    }


def add_dataset_info(path: Path) -> Path:
    """Name the file in the dataset_info.json beside it (other entries stay); returns its path."""
    info = path.with_name(INFO)
    entries = {**_info(info), path.stem: dataset_info(path)}
    part = info.with_name(f".{info.name}.{os.getpid()}.part")
    try:
        part.write_text(json.dumps(entries, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        part.replace(info)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        raise OutputError(f"cannot write {info}: {error.strerror or error}") from error
    return info


def _info(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise OutputError(
            f"{path} is there and is no JSON ({error!s:.80}): move it away or repair it"
        ) from error
    if not isinstance(data, dict):
        raise OutputError(f"{path} is there and holds no entries: move it away or repair it")
    return data


# --- parts ---------------------------------------------------------------------------------------------


def read_thousandths(text: str) -> list[tuple[float | None, Box]]:
    """The boxes of an answer in text, as fractions, with their seconds where there are some."""
    timed = {found.start(2): float(found[1]) for found in _TIMED.finditer(text)}
    out: list[tuple[float | None, Box]] = []
    for found in _BOX_TEXT.finditer(text):
        x0, y0, x1, y1 = (int(value) / 1000 for value in found.groups())
        out.append((timed.get(found.start()), (x0, y0, x1, y1)))
    return out


def _as_text(instruction: Instruction, max_boxes: int) -> tuple[tuple[str, str], ...]:
    listed = _thinned(instruction, max_boxes) if instruction.task == "stvg" else []
    one = _thousandths(instruction.boxes_xyxy[0]) if instruction.boxes_xyxy else ""
    timed = "; ".join(f"{at:.1f} s: {_thousandths(box)}" for at, box in listed)
    return instruction.rendered(span_text(instruction.span), one, timed)


def _thousandths(box: Box) -> str:
    return f"[{', '.join(str(round(value * 1000)) for value in box)}]"


def _thinned(instruction: Instruction, most: int) -> list[tuple[float, Box]]:
    """At most `most` of the boxes, evenly chosen, with the first and the last."""
    pairs = list(zip(instruction.times_s, instruction.boxes_xyxy, strict=True))
    if len(pairs) <= most:
        return pairs
    if most < 2:
        return pairs[:most]
    step = (len(pairs) - 1) / (most - 1)
    return [pairs[round(k * step)] for k in range(most)]


def _free_of(mark: re.Pattern[str], instruction: Instruction, who: str) -> None:
    for _, text in instruction.turns:
        found = mark.search(text)
        if found:
            raise DataError(f"{instruction.id}: the text holds {found[0]}, which {who} takes for a mark")


def _make_folder(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
