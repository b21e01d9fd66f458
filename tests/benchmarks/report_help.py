"""Runs small enough for tests of reports, and a reader of pages that is stricter than a browser."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np

from tubelet.benchmarks.run_card import data_hash, make_card
from tubelet.benchmarks.run_folder import Line, RunWriter, create_run
from tubelet.benchmarks.run_truth import VideoFacts
from tubelet.datasets.record import Record, Target, VideoRef
from tubelet.tube import Prediction, Span, Tube

VOID = {"meta", "img", "wbr"}
FPS, FRAMES, WIDTH, HEIGHT = 10, 40, 48, 32


class Page(HTMLParser):
    """Elements, tables and text of a page; an AssertionError where tags are not balanced."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[list[list[str]]] = []
        self.said: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"<{tag}> has an attribute twice: {attrs}"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.said.append(data)
        if "td" in self.open or "th" in self.open:
            self.tables[-1][-1][-1] += data

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.said).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def table(self, first_cell: str) -> list[list[str]]:
        """The first table whose head begins with this cell."""
        return next(t for t in self.tables if t and t[0] and t[0][0].strip() == first_cell)

    def rows(self) -> dict[str, list[str]]:
        """Every row of every table by its first cell; the first of equal ones."""
        out: dict[str, list[str]] = {}
        for table in self.tables:
            for row in table:
                if row:
                    out.setdefault(" ".join(row[0].split()), [" ".join(cell.split()) for cell in row])
        return out


def tube(start_s: float, end_s: float, box: Sequence[float], score: float | None = 0.5) -> Tube:
    times = np.arange(round(start_s * FPS), round(end_s * FPS)) / FPS
    return Tube(Span(start_s, end_s), times, np.tile(box, (len(times), 1)), score=score)


BOX = (0.1, 0.1, 0.5, 0.5)


def record(
    name: str, video: str, span: tuple[float, float] | None, box: Sequence[float] = BOX, **changes: Any
) -> Record:
    """An stvg question about a 4 s video; span None: it is true of nothing."""
    fields: dict[str, Any] = {
        "video": VideoRef(video, (f"videos/{video}.mp4",), fps=Fraction(FPS), frame_count=FRAMES),
        "present": span is not None,
        "query": f"the thing of {name}",
    }
    if span is not None:
        true = tube(*span, box)
        target = Target(true.boxes_xyxy, frame_index=np.rint(true.times_s * FPS).astype(np.int64))
        fields |= {"spans": (Span(*span),), "targets": (target,)}
    return Record("toy", "test", name, "stvg", **(fields | changes))


def write_run(
    folder: Path,
    records: Sequence[Record],
    answers: dict[str, Prediction | tuple[tuple[Tube, ...], float | None]],
    model: str = "m",
    opened: Sequence[str] | None = None,
    **card: Any,
) -> Path:
    """A run folder. answers: prediction, or tubes and confidence, by id; opened: videos with facts, None for all."""
    made = make_card(
        benchmark="toy", split="test", task="", model=model, revision="1", data_hash=data_hash(records), n=len(records)
    )  # fmt: skip
    create_run(folder, {**made, **card}, records, range(len(records)))
    with RunWriter(folder) as writer:
        seen = {r.video.files[0]: r.video.id for r in records}
        for file, video in seen.items():
            if opened is None or video in opened:
                writer.add_video(
                    VideoFacts(
                        file, file, np.arange(FRAMES) / FPS, Fraction(FPS), FRAMES / FPS, WIDTH, HEIGHT
                    )
                )
        for r in records:
            if r.id not in answers:
                continue
            answer = answers[r.id]
            if not isinstance(answer, Prediction):
                answer = Prediction(r.video.id, r.query, r.task, answer[0], confidence=answer[1])
            writer.add_lines([Line(r.id, answer)])
    return folder
