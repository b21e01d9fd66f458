"""A run as a folder: create, append, read, check. The folder alone is enough to score and to report.

    RUN/run.json           the run card: what was asked of which model on which data (`run_card`)
    RUN/records.jsonl      the questions and their truth, `Record.to_dict` each, and their row in the whole selection
    RUN/videos.jsonl       what scoring needs of every video that was opened (`run_truth.VideoFacts`)
    RUN/predictions.jsonl  {"id", "prediction", "given_span"?, "seconds"?}, appended as the answers come
    RUN/metrics.json       scores; can be made again from the other files (`tubelet.benchmarks.run.rescore`)

The card and the records are written once, whole or not at all, before the first question; answers are appended, a
video at a time, and flushed. A process killed at any moment leaves at most one half-written last line, which the
next writer cuts off. Readers never repair: what is broken is a DataError that names file and line, or, with
`keep_good=True`, is left out and listed in `Run.problems`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from tubelet.benchmarks.record_json import record_from_dict
from tubelet.benchmarks.run_card import CARD, check_same, read_card
from tubelet.benchmarks.run_truth import VideoFacts, truths_of, video_key
from tubelet.datasets.fields import RecordError
from tubelet.datasets.problems import OnError, Problems, handle
from tubelet.datasets.reading import stream_jsonl
from tubelet.datasets.record import Record
from tubelet.errors import DataError, OutputError
from tubelet.metrics.evaluate import Targets
from tubelet.tube import Prediction, Tube

RECORDS, VIDEOS, PREDICTIONS, METRICS = (
    "records.jsonl",
    "videos.jsonl",
    "predictions.jsonl",
    "metrics.json",
)


@dataclass(frozen=True, slots=True)
class Line:
    """One line of predictions.jsonl. given_span: tubes of the same question asked with its true span given."""

    id: str
    prediction: Prediction
    given_span: tuple[Tube, ...] | None = None
    seconds: float | None = None

    def to_dict(self) -> dict[str, Any]:
        out: dict[str, Any] = {"id": self.id, "prediction": self.prediction.to_dict()}
        if self.given_span is not None:
            out["given_span"] = [tube.to_dict() for tube in self.given_span]
        if self.seconds is not None:
            out["seconds"] = round(self.seconds, 6)
        return out

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Line:
        """Raises DataError for anything that is no such line."""
        name, given, seconds = data.get("id"), data.get("given_span"), data.get("seconds")
        if not isinstance(name, str) or not name:
            raise DataError(f"a line of predictions needs the id of its query, got {name!r:.60}")
        if not isinstance(data.get("prediction"), Mapping):
            raise DataError("a line of predictions needs a prediction (an object)")
        if given is not None and not isinstance(given, list):
            raise DataError(f"given_span is a list of tubes, got {given!r:.60}")
        if seconds is not None and (isinstance(seconds, bool) or not isinstance(seconds, int | float)):
            raise DataError(f"seconds is a number, got {seconds!r:.60}")
        tubes = None if given is None else tuple(Tube.from_dict(tube) for tube in given)
        return cls(name, Prediction.from_dict(data["prediction"]), tubes, seconds)


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """A run folder in memory. records: in order; videos: by `video_key`; lines: by the id of the query.

    problems: what `keep_good=True` left out, one sentence each; empty otherwise.
    """

    folder: Path
    card: Mapping[str, Any]
    records: tuple[Record, ...]
    videos: Mapping[str, VideoFacts]
    lines: Mapping[str, Line]
    problems: tuple[str, ...] = ()

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(record.task for record in self.records))

    def facts(self, record: Record) -> VideoFacts | None:
        """Of the record's video; None where it was not opened."""
        return self.videos.get(video_key(record.video))

    @property
    def missing(self) -> tuple[str, ...]:
        """Ids of queries without a prediction, in order."""
        return tuple(record.id for record in self.records if record.id not in self.lines)

    def predictions(self, task: str | None = None) -> dict[str, Prediction]:
        """By query id, in the order of the records; of one task, or all."""
        return {
            record.id: self.lines[record.id].prediction
            for record in self.records
            if record.id in self.lines and task in (None, record.task)
        }

    def truths(self, task: str | None = None) -> dict[str, Targets]:
        """By query id, as `tubelet.metrics.evaluate` takes them: of one task, or of all that are tubes.

        Raises DataError when labels are hidden.
        """
        out: dict[str, Targets] = {}
        for record in self.records:
            if record.task in ("qa", "tr", "reg", "dgc") or task not in (None, record.task):
                continue
            true, _ = truths_of(record, self.facts(record))
            out[record.id] = true[0] if len(true) == 1 else true
        return out

    def truth_notes(self) -> dict[str, str]:
        """Query id -> what is odd about its truth (an annotation that does not fit its video, several windows)."""
        notes: dict[str, str] = {}
        for record in self.records:
            if record.task in ("stvg", "svg", "elc") and record.labelled:
                _, note = truths_of(record, self.facts(record))
                notes |= {record.id: note} if note else {}
        return notes


# --- write -----------------------------------------------------------------------------------------


def create_run(
    folder: Path | str, card: Mapping[str, Any], records: Sequence[Record], rows: Sequence[int]
) -> None:
    """Make a run folder, or check that the one that is there is of the same run (then nothing is written).

    rows: the place of every record in the whole selection. Raises DataError for a folder of another run.
    """
    base = Path(folder)
    if (base / CARD).exists():
        check_same(read_card(base), card, base)
        return
    if (base / PREDICTIONS).exists():
        raise DataError(f"{base} holds {PREDICTIONS} but no {CARD}: it is no run folder, give another one")
    text = "".join(
        json.dumps({"row": row, **record.to_dict()}, ensure_ascii=False) + "\n"
        for row, record in zip(rows, records, strict=True)
    )
    try:
        base.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {base}: {error.strerror or error}") from error
    write_whole(base / RECORDS, text)
    write_whole(base / CARD, json.dumps(card, ensure_ascii=False, indent=1) + "\n")  # last: now it is a run


def write_whole(path: Path, text: str) -> None:
    """Write a small file whole or not at all."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)


class RunWriter:
    """Appends to a run folder; one writer at a time. Opening it cuts off a half-written last line."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self._files = {name: self._open(self.folder / name) for name in (VIDEOS, PREDICTIONS)}

    def _open(self, path: Path) -> Any:
        try:
            file = path.open("ab+", buffering=0)
            cut_last_line(file)
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
        return file

    def add_video(self, facts: VideoFacts) -> None:
        self._append(VIDEOS, [facts.to_dict()])

    def add_lines(self, lines: Iterable[Line]) -> None:
        self._append(PREDICTIONS, [line.to_dict() for line in lines])

    def _append(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode("utf-8", "replace")
        try:
            while data:
                data = data[self._files[name].write(data) :]
        except OSError as error:
            raise OutputError(f"cannot write {self.folder / name}: {error.strerror or error}") from error

    def close(self) -> None:
        for file in self._files.values():
            file.close()

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def cut_last_line(file: Any) -> None:
    """Truncate an open file (bytes, read and write) after its last line end."""
    size = end = file.seek(0, os.SEEK_END)
    while end > 0:
        start = max(0, end - (1 << 16))
        file.seek(start)
        at = file.read(end - start).rfind(b"\n")
        if at >= 0:
            end = start + at + 1
            break
        end = start
    if end < size:
        file.truncate(end)


# --- read ------------------------------------------------------------------------------------------


def read_run(
    folder: Path | str,
    *,
    keep_good: bool = False,
    unfinished: bool = False,
    expect: Mapping[str, Any] | None = None,
) -> Run:
    """A whole run.

    keep_good: leave out broken and superfluous lines and list them, instead of raising. unfinished: accept queries
    without a prediction (they score 0). expect: fields that the card must have, e.g. {"model": ..., "data_hash": ...}.

    DataError for lines that are no JSON or no prediction, ids that come twice, predictions for unknown queries,
    missing predictions, videos without facts, and a run of other data or another model.
    """
    base = Path(folder)
    card = read_card(base)
    for key, value in (expect or {}).items():
        if card.get(key) != value:
            raise DataError(f"{base} is a run with {key} {card.get(key)!r}, expected {value!r}")
    problems = Problems()
    on_error: OnError = problems if keep_good else "raise"
    said: list[str] = []
    records = _read_records(base, card)
    videos = _by_id(base / VIDEOS, on_error, VideoFacts.from_dict)
    known = {record.id for record in records}
    lines = _by_id(base / PREDICTIONS, on_error, Line.from_dict, known)
    for examples in problems.examples.values():
        said += examples
    if problems.count > len(said):
        said.append(f"and {problems.count - len(said)} more broken lines")
    for record in records:
        line = lines.get(record.id)
        if line is not None and line.prediction.failure is None and video_key(record.video) not in videos:
            problem = f"{base / VIDEOS} says nothing of the video {record.video.id!r} of query {record.id!r}"
            if not keep_good:
                raise DataError(f"{problem}: the file was cut; run the evaluation again")
            said.append(f"{problem}: its prediction is left out")
            lines.pop(record.id)
    run = Run(base, card, tuple(records), videos, lines, tuple(said))
    missing = run.missing
    if missing and not (unfinished or keep_good):
        raise DataError(
            f"{base} is not finished: {len(missing)} of {len(records)} queries have no prediction, "
            f"the first is {missing[0]!r}; run the same evaluation again to resume it"
        )
    return run


def read_ids(path: Path) -> set[str]:
    """The ids of a file of lines, for who adds to it; DataError for a broken line or an id that comes twice."""
    out: set[str] = set()
    if not path.exists():
        return out
    for item in stream_jsonl(path):
        name = item.text("id")
        if name in out:
            raise RecordError(item.file, item.where, "id", f"{name!r:.80} was there before")
        out.add(name)
    return out


def _read_records(base: Path, card: Mapping[str, Any]) -> list[Record]:
    """Records are the truth: a broken one always raises."""
    out: list[Record] = []
    seen: set[str] = set()
    for item in stream_jsonl(base / RECORDS):
        try:
            record = record_from_dict(item.data)
        except RecordError:
            raise
        except DataError as error:
            raise RecordError(item.file, item.where, "", str(error)) from error
        if record.id in seen:
            raise RecordError(item.file, item.where, "id", f"{record.id!r:.80} was there before")
        seen.add(record.id)
        out.append(record)
    if len(out) != card["n"]:
        raise DataError(f"{base / RECORDS} has {len(out)} records, {CARD} says {card['n']}: the file was cut")
    return out


def _by_id(path: Path, on_error: OnError, make: Any, known: set[str] | None = None) -> dict[str, Any]:
    """Lines by their id; `known`: the only ids there may be."""
    out: dict[str, Any] = {}
    if not path.exists():
        return out
    for item in stream_jsonl(path, on_error):
        try:
            value = make(item.data)
        except DataError as error:
            handle(on_error, RecordError(item.file, item.where, "", str(error)))
            continue
        if value.id in out:
            reason = f"the id {value.id!r:.80} was there before: one line per id, the first is kept"
            handle(on_error, RecordError(item.file, item.where, "id", reason))
        elif known is not None and value.id not in known:
            reason = f"there is no query {value.id!r:.80} in {RECORDS}"
            handle(on_error, RecordError(item.file, item.where, "id", reason))
        else:
            out[value.id] = value
    return out
