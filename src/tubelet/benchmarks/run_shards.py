"""`merge_shards`: the runs of all shards of one evaluation become one run, as if it had never been cut.

Whole or not at all: every shard must be there once, be finished and of the same model, data and settings; the merged
records must have the hash that each shard's card states for the whole selection.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tubelet.benchmarks.run_card import CARD, IDENTITY, data_hash, read_card
from tubelet.benchmarks.run_folder import RECORDS, Run, RunWriter, create_run, read_run
from tubelet.benchmarks.run_score import RunScores, rescore
from tubelet.benchmarks.submission import write_submission
from tubelet.datasets.reading import stream_jsonl
from tubelet.datasets.record import Record
from tubelet.errors import DataError


def merge_shards(folders: Sequence[Path | str], out: Path | str, protocol: str | None = None) -> RunScores:
    """Merge finished shard runs into the run folder `out`, which must not exist as a run, and score it.

    Raises DataError that names the shard for a missing, repeated, unfinished or foreign one.
    """
    if not folders:
        raise DataError("there are no shards to merge")
    if (Path(out) / CARD).exists():
        raise DataError(f"{out} holds a run already: give another folder, or delete it")
    cards = [read_card(folder) for folder in folders]
    _check(folders, cards)
    runs = [read_run(folder) for folder in folders]
    rows: list[tuple[int, Record, Run]] = []
    for run in runs:
        rows += [(row, record, run) for row, record in zip(_rows(run), run.records, strict=True)]
    rows.sort(key=lambda entry: entry[0])
    records = [record for _, record, _ in rows]
    if [row for row, _, _ in rows] != list(range(len(rows))) or data_hash(records) != cards[0]["data_hash"]:
        raise DataError(
            f"the shards do not make up the selection with hash {cards[0]['data_hash']}: "
            "their records were changed after they were written"
        )
    card: dict[str, Any] = {**cards[0], "shard": [0, 1], "n": len(records)}
    card["seconds"] = round(sum(float(c["seconds"]) for c in cards), 2)
    card["merged_from"] = [
        {
            "shard": c["shard"],
            "seconds": c["seconds"],
            "hardware": c.get("hardware"),
            "versions": c.get("versions"),
        }
        for c in sorted(cards, key=lambda c: c["shard"][0])
    ]
    create_run(out, card, records, range(len(records)))
    with RunWriter(out) as writer:
        for run in runs:
            for facts in run.videos.values():
                writer.add_video(facts)
        writer.add_lines(run.lines[record.id] for _, record, run in rows)
    scores = rescore(out, protocol)
    write_submission(out)
    return scores


def _rows(run: Run) -> list[int]:
    return [item.whole("row") for item in stream_jsonl(run.folder / RECORDS)]


def _check(folders: Sequence[Path | str], cards: Sequence[dict[str, Any]]) -> None:
    first = cards[0]
    count = first["shard"][1]
    for folder, card in zip(folders, cards, strict=True):
        differ = [key for key in IDENTITY if key != "shard" and card.get(key) != first.get(key)]
        if card["shard"][1] != count:
            differ.append("number of shards")
        if differ:
            raise DataError(
                f"{folder} is a shard of another run than {folders[0]}: {', '.join(differ)} differ"
            )
    indices = [card["shard"][0] for card in cards]
    twice = next((k for k in sorted(indices) if indices.count(k) > 1), None)
    if twice is not None:
        raise DataError(f"shard {twice + 1}/{count} is given twice: give each of the {count} shards once")
    if len(indices) < count:  # a damaged card may say any number of shards: they are not counted through
        absent = next(k for k in range(len(indices) + 1) if k not in indices)
        raise DataError(f"shard {absent + 1}/{count} is missing: give each of the {count} shards once")
