"""What Uni-STG holds beside tubes, in one format (`instructions.Instruction`): VTG, REC, general conversations.

    vtg = vtg_of_records(read("didemo", folder, "train"))          # a sentence, its times
    rec = rec_of_records(read("refcoco", folder, "refcoco_train"))  # a phrase, its box in an image
    stvg = (stvg_of_sample(sample) for sample in kept)             # a sentence, its tube
    general = read_general("llava_video.jsonl")                    # VQA, dialogue, captions

General data are JSON arrays or JSON Lines in LLaVA's layout, {"id", "image" | "video", "conversations": [{"from":
"human", "value": "<image>\\nWhat is this?"}, {"from": "gpt", "value": "..."}]}; {"question", "answer"} and {"caption"}
instead of conversations are read too. Marks of pictures are taken out; every output format puts in its own. What cannot
be used is a Drop of stage "tasks" with a reason: no-span, no-box, no-size (boxes in pixels of an unknown size),
bad-text, bad-path, bad-turns, several-media, bad-value, duplicate-id.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tubelet.datasets.fields import Item
from tubelet.datasets.problems import OnError
from tubelet.datasets.reading import stream_items, stream_jsonl
from tubelet.datasets.record import Record
from tubelet.errors import DataError
from tubelet.unistg.captions import agreed, normal_path
from tubelet.unistg.instructions import Box, Instruction, caption_question, question_and_answer
from tubelet.unistg.records import Drop, Sample

STAGE = "tasks"
_PICTURE = re.compile(r"\s*<(?:image|video)>\s*")
_MOST_TURNS = 200


def stvg_of_sample(sample: Sample, seed: int = 0, duration_s: float | None = None) -> Instruction:
    """A kept sample as question and answer. duration_s: of its video (else its provenance says)."""
    known = sample.provenance.get("duration_s")
    length = (
        duration_s if duration_s is not None else float(known) if isinstance(known, int | float) else None
    )
    phrase = sample.provenance.get("phrase")
    name = phrase if isinstance(phrase, str) else ""
    return Instruction(
        id=sample.id,
        task="stvg",
        source="uni-stg",
        media="video",
        path=sample.video,
        turns=question_and_answer("stvg", sample.id, sample.sentence, name, seed),
        query=sample.sentence,
        phrase=name,
        span=sample.tube.span,
        duration_s=length,
        times_s=tuple(sample.tube.times_s.tolist()),
        boxes_xyxy=tuple(_box(row) for row in sample.tube.boxes_xyxy.tolist()),
        provenance=sample.provenance,
    )


def vtg_of_records(records: Iterable[Record], seed: int = 0) -> Iterator[Instruction | Drop]:
    """Sentences with times (DiDeMo, Charades-STA, TACoS). Votes: the one most agreed with. Spans end with the video."""
    for record in records:
        key = _key(record)
        spans = record.spans
        if not spans or record.video.kind == "image":
            yield Drop(key, STAGE, "no-span", f"{record.query:.100}")
            continue
        span = agreed(spans) if record.spans_kind == "votes" else spans[0]
        end_s = record.video.duration_s
        cut = span if end_s is None else span.clip(0.0, end_s)
        if cut is None:
            yield Drop(key, STAGE, "no-span", f"{span.start_s:g}-{span.end_s:g} s of a video of {end_s:g} s")
            continue
        yield _made(
            key,
            id=key,
            task="vtg",
            source=record.dataset,
            media="video",
            path=_path(record),
            turns=question_and_answer("vtg", key, record.query, "", seed),
            query=record.query,
            span=cut,
            duration_s=end_s,
            provenance=_origin(record),
        )


def rec_of_records(records: Iterable[Record], seed: int = 0) -> Iterator[Instruction | Drop]:
    """Phrases with a box in an image (RefCOCO, RefCOCO+, RefCOCOg). Boxes are rounded to four decimals."""
    for record in records:
        key = _key(record)
        if record.video.kind != "image" or not record.targets or not len(record.targets[0]):
            yield Drop(key, STAGE, "no-box", f"{record.query:.100}")
            continue
        try:
            box = _box(record.targets[0].fractions(record.video.width, record.video.height)[0].tolist())
        except DataError as error:
            yield Drop(key, STAGE, "no-size", str(error))
            continue
        yield _made(
            key,
            id=key,
            task="rec",
            source=record.dataset,
            media="image",
            path=_path(record),
            turns=question_and_answer("rec", key, record.query, "", seed),
            query=record.query,
            phrase=record.query,
            boxes_xyxy=(box,),
            provenance=_origin(record),
        )


def read_general(
    path: Path | str, source: str | None = None, seed: int = 0, on_error: OnError = "raise"
) -> Iterator[Instruction | Drop]:
    """Conversations of a .json or .jsonl file, lazily. source: its name in ids (default: the file's name)."""
    path = Path(path)
    if path.suffix not in (".json", ".jsonl"):
        raise DataError(f"conversations are read from .json or .jsonl files, got {path.name}")
    name = source or path.stem
    seen: set[str] = set()
    for item in stream_jsonl(path, on_error) if path.suffix == ".jsonl" else stream_items(path, on_error):
        made = _general(item, name, seed)
        if isinstance(made, Instruction) and made.id in seen:
            made = Drop(made.id, STAGE, "duplicate-id", item.where)
        if isinstance(made, Instruction):
            seen.add(made.id)
        yield made


def _general(item: Item, source: str, seed: int) -> Instruction | Drop:
    given = item.data.get("id")
    own = given if isinstance(given, str) and given else given if isinstance(given, int) else item.where
    key = f"{source}:{own}"
    found: list[tuple[str, Any]] = []
    for media in ("image", "video"):
        value = item.data.get(media)
        values = value if isinstance(value, list) else [] if value in (None, "") else [value]
        found += [(media, one) for one in values]
    if len(found) > 1:
        return Drop(key, STAGE, "several-media", f"{len(found)} images or videos in one conversation")
    media, where = "text", ""
    if found:
        media, given_path = found[0]
        where = (normal_path(given_path) if isinstance(given_path, str) else None) or ""
        if not where:
            return Drop(
                key, STAGE, "bad-path", f"expected a path below the data folder, got {given_path!r:.80}"
            )
    turns = _turns(item, key, seed)
    if isinstance(turns, Drop):
        return turns
    return _made(
        key,
        id=key,
        task="general",
        source=source,
        media=media,
        path=where,
        turns=turns,
        provenance={"dataset": source, "record": item.where},
    )


def _turns(item: Item, key: str, seed: int) -> tuple[tuple[str, str], ...] | Drop:
    raw = item.data.get("conversations")
    if raw is None and isinstance(item.data.get("caption"), str):
        raw = [
            {"from": "human", "value": caption_question(key, seed)},
            {"from": "gpt", "value": item.data["caption"]},
        ]
    elif raw is None and "question" in item.data:
        raw = [
            {"from": "human", "value": item.data["question"]},
            {"from": "gpt", "value": item.data.get("answer")},
        ]
    if not isinstance(raw, list) or not 2 <= len(raw) <= _MOST_TURNS:
        return Drop(
            key, STAGE, "bad-turns", f"{item.where}: expected conversations, caption, or question and answer"
        )
    turns: list[tuple[str, str]] = []
    for turn in raw:
        who = turn.get("from") if isinstance(turn, dict) else None
        text = turn.get("value") if isinstance(turn, dict) else None
        if not isinstance(who, str) or not isinstance(text, str):
            return Drop(key, STAGE, "bad-turns", f"{item.where}: a turn has from and value, both texts")
        if who != "system":
            plain = (
                _PICTURE.sub(" ", text).strip() if "<image>" in text or "<video>" in text else text.strip()
            )
            turns.append(({"user": "human", "assistant": "gpt"}.get(who, who), plain))
    return tuple(turns)


def _made(key: str, **parts: Any) -> Instruction | Drop:
    try:
        instruction = Instruction(**parts)
        "".join(text for _, text in instruction.turns).encode("utf-8")
        return instruction
    except UnicodeEncodeError:
        return Drop(key, STAGE, "bad-text", "holds half a character (a lone surrogate)")
    except DataError as error:
        return Drop(key, STAGE, "bad-turns" if "take turns" in str(error) else "bad-value", str(error))


def _key(record: Record) -> str:
    return f"{record.dataset}:{record.split}:{record.id}"


def _path(record: Record) -> str:
    return record.video.files[0] if record.video.files else record.video.id


def _origin(record: Record) -> dict[str, Any]:
    return {"dataset": record.dataset, "split": record.split, "record": record.id}


def _box(row: list[float]) -> Box:
    x0, y0, x1, y1 = (round(min(max(value, 0.0), 1.0), 4) for value in row)
    return x0, y0, x1, y1
