"""ST-Align's task mixture out of public sources that tubelet reads, in the official item format, with its lists.

    assemble(load_assembly("st_align.yaml"), "data/st-align")

A recipe names its sources; `kind` is what their records become (item_layout.KINDS), `stage` the training stage:

    sources:
      - {stage: 3, kind: stvg, source: vidstg, path: data/vidstg, split: train, videos: data/vidstg/video}
      - {stage: 3, kind: elc, source: vidstg, path: data/vidstg, split: train, videos: data/vidstg/video}
      - {stage: 3, kind: rec, source: refcoco, path: data/refcoco, split: refcoco_train, videos: data/coco/train2014}
      - {stage: 3, kind: conversation, source: conversations, path: vcg.json, videos: data/vcg}

`source` is a dataset of `tubelet.datasets`, "items" (a file in the official format) or "conversations" (LLaVA's).
Out come OUT/stage3/stvg-vidstg.jsonl, ..., the lists OUT/stage1.yaml to stage3.yaml (mixture.py), OUT/drops.jsonl and
OUT/report.json. A list draws the paper's proportions (`PAPER`, samples per task; figure "data" of LLaVA-ST): the task
with the least data for its share decides how many there are of each; `proportions: false` takes everything.

One tube makes stvg, svg and elc (box and time where it begins in, its end and boxes out); one box rec and
region_caption; sentences of one video a dvc. Times need to know how long a video is: where the annotation does not say,
the video (or image, for its size) is opened below `videos`. Conversations in which times stand between the words
(vtimellm, moment-10m, ...; `datasets.talks`) give what they are good for: of a source, those that are of its kind, the
others are counted ("other_kinds"). `options` go to the reader. docs/st-align.md says which sources of the paper have a
reader; the others come in as "items" or "conversations", or not at all: report.json then says 0 of their task.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

from tubelet.config_io import from_dict, load_yaml
from tubelet.datasets import DATASETS, check_options, read
from tubelet.datasets.problems import Problems
from tubelet.datasets.record import Record
from tubelet.datasets.talks import is_talk, times_of
from tubelet.errors import DataError, OutputError, RecipeError, VideoError
from tubelet.llava_st.item_files import read_items, write_items
from tubelet.llava_st.item_layout import KINDS
from tubelet.llava_st.item_making import Timeline, item_from_record, items_joined, timeline_of
from tubelet.llava_st.items import Item
from tubelet.llava_st.mixture import Entry, Mixture, write_mixture
from tubelet.llava_st.talk_items import item_of_talk, talk_fits

PAPER: Mapping[int, Mapping[str, int]] = {
    1: {"video_captioning": 1_280_000},
    2: {
        "tvg": 149_000,
        "dvc": 92_000,
        "temporal_referring": 95_000,
        "rec": 101_000,
        "dgc": 150_000,
        "region_caption": 100_000,
    },
    3: {
        "temporal_grounded_conversation": 459_000,
        "tvg": 84_000,
        "dvc": 41_000,
        "image_grounded_conversation": 190_000,
        "rec": 288_000,
        "dgc": 22_000,
        "region_caption": 288_000,
        "stvg": 81_000,
        "elc": 36_000,
        "svg": 81_000,
        "conversation": 222_000,
        "video_qa": 338_000,
        "classification": 66_000,
        "video_captioning": 168_000,
    },
}
"""Samples of each task in the three stages."""


@dataclass(frozen=True, slots=True)
class AlignSource:
    """path: of the annotations; videos: the folder that the items' paths are below (default: path); options: of the
    dataset's reader."""

    stage: int
    kind: str
    source: str
    path: str
    split: str = "train"
    videos: str = ""
    options: dict[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if self.stage not in PAPER or self.kind not in KINDS:
            raise RecipeError(
                f"a source has a stage (1, 2, 3) and a kind ({', '.join(KINDS)}), got {self.stage}, {self.kind!r}"
            )
        if self.source not in (*DATASETS, "items", "conversations"):
            raise RecipeError(
                f"a source is items, conversations or one of {', '.join(DATASETS)}; got {self.source!r}"
            )

        check_options(self.source, self.options)

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.source}" + (f"-{self.split}" if self.source in DATASETS else "")


@dataclass(frozen=True, slots=True)
class Assembly:
    """What to put together. max_boxes: of a tube that are written."""

    sources: tuple[AlignSource, ...] = ()
    proportions: bool = True
    max_boxes: int = 20

    def __post_init__(self) -> None:
        names = Counter((one.stage, one.name) for one in self.sources)
        twice = [name for (_, name), count in names.items() if count > 1]
        if not self.sources or twice:
            raise RecipeError(
                f"an assembly has sources, each once; twice: {', '.join(twice) or 'there are none'}"
            )


@dataclass(slots=True)
class _Told:
    drops: list[dict[str, str]] = field(default_factory=list)
    problems: Problems = field(default_factory=Problems)
    other: Counter[str] = field(default_factory=Counter)

    def drop(self, source: AlignSource, key: str, reason: str, detail: object) -> None:
        row = {"stage": str(source.stage), "source": source.name, "key": key}
        self.drops.append({**row, "reason": reason, "detail": str(detail)[:300]})


def load_assembly(path: Path | str) -> Assembly:
    """A recipe from YAML. RecipeError names the field."""
    return from_dict(Assembly, load_yaml(Path(path)))


def assemble(assembly: Assembly, out: Path | str) -> dict[str, Any]:
    """Write items, lists, drops and report; returns the report. A source that gives no item has no line in a list.

    Raises DataError for a source that cannot be read, OutputError where nothing can be written.
    """
    from tubelet.benchmarks.run_folder import write_whole
    from tubelet.unistg.rows import write_lines

    folder, told = Path(out), _Told()
    counts: dict[AlignSource, int] = {}
    for source in assembly.sources:
        path = folder / f"stage{source.stage}" / f"{source.name}.jsonl"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
        counts[source] = write_items(_items(source, assembly, told), path)
    report: dict[str, Any] = {"stages": {}, "dropped": dict(Counter(d["reason"] for d in told.drops))}
    for stage in sorted({source.stage for source in counts}):
        here = {source: count for source, count in counts.items() if source.stage == stage and count}
        drawn = shares(here, stage) if assembly.proportions else here
        entries = [
            Entry(
                f"stage{stage}/{source.name}.jsonl",
                source.videos or source.path,
                "all" if drawn[source] == count else f"random:{drawn[source]}",
                source.name,
            )
            for source, count in here.items()
            if drawn[source]
        ]
        if entries:
            write_mixture(Mixture(tuple(entries), folder), folder / f"stage{stage}.yaml")
        report["stages"][str(stage)] = {
            kind: {
                "paper": paper,
                "items": sum(n for source, n in here.items() if source.kind == kind),
                "drawn": sum(drawn[source] for source in here if source.kind == kind),
            }
            for kind, paper in PAPER[stage].items()
        }
    report["broken_records"] = told.problems.count
    report["other_kinds"] = dict(told.other)
    write_lines(told.drops, folder / "drops.jsonl")
    write_whole(folder / "report.json", json.dumps(report, indent=1) + "\n")
    return report


def shares(counts: Mapping[AlignSource, int], stage: int) -> dict[AlignSource, int]:
    """How many of each source are drawn, so that kinds are as in the paper; within a kind by what there is.

    The kind with the least for its share decides. Kinds without any item, or that the paper does not have in this
    stage (these are taken whole), play no part.
    """
    by_kind: Counter[str] = Counter()
    for source, count in counts.items():
        by_kind[source.kind] += count
    parts = [by_kind[kind] / paper for kind, paper in PAPER[stage].items() if by_kind[kind]]
    scale = min(parts, default=0.0)
    out: dict[AlignSource, int] = {}
    for kind, have in by_kind.items():
        own = [source for source in counts if source.kind == kind]
        wanted = max(1, round(scale * PAPER[stage][kind])) if kind in PAPER[stage] else have
        exact = {source: wanted * counts[source] / have for source in own}
        out.update({source: int(value + 1e-9) for source, value in exact.items()})
        left = wanted - sum(out[source] for source in own)
        for source in sorted(own, key=lambda s: out[s] - exact[s])[:left]:
            out[source] += 1
    return out


def item_of(record: Record, kind: str, timeline: Timeline | None, max_boxes: int = 20) -> Item:
    """One record as an item of a kind that it can be, also where its dataset asks something else of it.

    DataError where it lacks what the kind needs.
    """
    if is_talk(record):
        return item_of_talk(record, kind, timeline)
    if kind in ("elc", "region_caption") and record.given_box is None and record.targets:
        record = replace(record, given_box=record.targets[0])
    if kind in ("elc", "region_caption", "temporal_referring") and not record.answer:
        record = replace(record, answer=record.query)
    return item_from_record(record, timeline, kind, max_boxes=max_boxes)


# --- parts ---------------------------------------------------------------------------------------------


def _items(source: AlignSource, assembly: Assembly, told: _Told) -> Iterator[Item]:
    if source.source == "items":
        yield from read_items(Path(source.path), told.problems)
    elif source.source == "conversations":
        yield from _conversations(source, told)
    else:
        records = _timed(source, told)
        first = next(records, None)
        if first is None:
            return
        records = chain((first,), records)
        if source.kind == "dvc" and not is_talk(first[0]):
            yield from _captions_of_videos(source, records, assembly, told)
            return
        for record, timeline in records:
            try:
                item = item_of(record, source.kind, timeline, assembly.max_boxes)
            except DataError as error:
                told.drop(source, record.id, "not-this-kind", error)
                continue
            yield replace(item, id=f"{record.dataset}:{record.split}:{record.id}")


def _timed(source: AlignSource, told: _Told) -> Iterator[tuple[Record, Timeline | None]]:
    """Records with their clips. Videos are opened where the annotation does not say how long they are, images where it
    says no size; conversations of another kind are only counted."""
    folder = Path(source.videos or source.path)
    known: tuple[Path, Any] | None = None
    for record in read(source.source, source.path, source.split, on_error=told.problems, **source.options):
        talk = is_talk(record)
        if talk and not talk_fits(record, source.kind):
            told.other[source.name] += 1
            continue
        path = record.video.find(folder)
        if path is not None:  # of several places where it may lie, the one where it does
            there = path.relative_to(folder).as_posix()
            record = replace(record, video=replace(record.video, files=(there,)))
        image = record.video.kind == "image"
        if image and not _lacks_size(record):
            yield record, None
            continue
        if talk and not times_of(record) and record.video.segment_s is None:
            yield record, None
            continue
        why: object = "the annotation names no size of the image"
        if not image:
            try:
                yield record, _clip_of(record)
                continue
            except DataError as error:
                why = error
        if path is None:
            told.drop(source, record.id, "no-size" if image else "no-length", why)
            continue
        try:
            if known is None or known[0] != path:
                from tubelet.video import open_video

                known = (path, open_video(path))
            if image:
                yield _sized(record, known[1].width, known[1].height), None
                continue
            timeline = timeline_of(record, frame_times_s=known[1].times_s)
        except (VideoError, DataError) as error:
            told.drop(source, record.id, "broken-image" if image else "broken-video", error)
            continue
        yield record, timeline


def _clip_of(record: Record) -> Timeline:
    """The clip, as far as the annotation says. DataError where only the frames of the video tell."""
    video = record.video
    if is_talk(record) and video.segment_s is not None and video.frame_count is None:
        raise DataError(f"{record.id}: which frames its clip is, only the video says")
    return timeline_of(record)


def _lacks_size(record: Record) -> bool:
    targets = (*record.targets, *((record.given_box,) if record.given_box is not None else ()))
    return record.video.width is None and any(target.unit == "pixel" for target in targets)


def _sized(record: Record, width: int, height: int) -> Record:
    return replace(record, video=replace(record.video, width=width, height=height))


def _captions_of_videos(
    source: AlignSource,
    records: Iterator[tuple[Record, Timeline | None]],
    assembly: Assembly,
    told: _Told,
) -> Iterator[Item]:
    """Dense captions: all sentences of a video, which is why their records are held in memory."""
    videos: dict[str, tuple[Timeline | None, list[Record]]] = {}
    for record, timeline in records:
        videos.setdefault(record.video.id, (timeline, []))[1].append(record)
    for name, (timeline, own) in videos.items():
        try:
            yield items_joined(
                "dvc", own, timeline, max_boxes=assembly.max_boxes, id=f"{source.source}:{name}"
            )
        except DataError as error:
            told.drop(source, name, "not-this-kind", error)


def _conversations(source: AlignSource, told: _Told) -> Iterator[Item]:
    from tubelet.unistg.formats import llava_st_item
    from tubelet.unistg.instructions import Instruction
    from tubelet.unistg.tasks import read_general

    for one in read_general(source.path, on_error=told.problems):
        if not isinstance(one, Instruction):
            told.drop(source, one.key, one.reason, one.detail)
            continue
        try:
            yield replace(llava_st_item(one), kind=source.kind)
        except DataError as error:
            told.drop(source, one.id, "not-this-kind", error)
