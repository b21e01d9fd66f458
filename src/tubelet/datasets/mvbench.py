"""MVBench: 20 tasks x 200 multiple-choice questions on clips of eleven other datasets (OpenGVLab/MVBench).

    json/action_antonym.json    [{"video": "166583.webm", "question": "...", "candidates": [...], "answer": "..."}]

- `answer` is the **text** of a candidate, not a letter or an index; 2 to 5 candidates. Where the same text is listed
  twice the first counts (note "answer-twice"; the official code takes the last, lmms-eval the first).
- five tasks have `start` and `end`: the question is about these seconds of the file (`segment_s`). lmms-eval's copy of
  the videos is already cut ("..._segment" folders): with those files the seconds must not be used again.
- start and end that make no span (they occur in episodic_reasoning) leave the whole video, note "segment-unusable".
- episodic_reasoning's official "videos" are folders of pictures at 3 per second, times are pictures / 3: make videos
  of them (note "frames-folder"), e.g. ffmpeg -framerate 3 -i NAME/%05d.jpg NAME.mp4
- the videos of each task lie in a folder of their own dataset: `VIDEO_FOLDERS`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path

from tubelet.datasets.fields import Item, RecordError
from tubelet.datasets.layout import FileSpec, check_split, find_file
from tubelet.datasets.lettered import MOST
from tubelet.datasets.problems import OnError, Problems, attempt, handle, unique
from tubelet.datasets.reading import stream_items
from tubelet.datasets.record import Record, VideoRef
from tubelet.errors import DataError
from tubelet.tube import Span

NAME = "mvbench"
SPLITS = ("test",)
SOURCE = "huggingface.co/datasets/OpenGVLab/MVBench (folders json and video; the parts have their own terms)"
VIDEO_FOLDERS = {
    "action_sequence": "star/Charades_v1_480",
    "action_prediction": "star/Charades_v1_480",
    "action_antonym": "ssv2_video",
    "fine_grained_action": "Moments_in_Time_Raw/videos",
    "unexpected_action": "FunQA_test/test",
    "object_existence": "clevrer/video_validation",
    "object_interaction": "star/Charades_v1_480",
    "object_shuffle": "perception/videos",
    "moving_direction": "clevrer/video_validation",
    "action_localization": "sta/sta_video",
    "scene_transition": "scene_qa/video",
    "action_count": "perception/videos",
    "moving_count": "clevrer/video_validation",
    "moving_attribute": "clevrer/video_validation",
    "state_change": "perception/videos",
    "fine_grained_pose": "nturgbd",
    "character_order": "perception/videos",
    "egocentric_navigation": "vlnqa",
    "episodic_reasoning": "tvqa/frames_fps3_hq",
    "counterfactual_inference": "clevrer/video_validation",
}
"""Task -> where its videos lie under video/."""

TASKS = tuple(VIDEO_FOLDERS)
_FRAMES_TASK, _FRAMES_FPS = "episodic_reasoning", 3
FILES = (
    *(
        FileSpec(
            task,
            tuple(f"{folder}{task}.json" for folder in ("json/", "mvbench/json/", "MVBench/json/", "")),
            f"{task}.json (200 questions)",
            SOURCE,
        )
        for task in TASKS
    ),
    FileSpec(
        "videos",
        ("**/*.mp4", "**/*.webm", "**/*.avi", "**/*.gif"),
        "clips, e.g. video/star/Charades_v1_480/ZS9XR.mp4",
        SOURCE,
        kind="media",
    ),
)


def read(
    folder: Path | str,
    split: str = "test",
    *,
    on_error: OnError = "raise",
    tasks: Sequence[str] | None = None,
) -> Iterator[Record]:
    """Records of these tasks (None: all twenty), lazily, task by task.

    A missing file is an error, or a problem that is counted where `on_error` is a `Problems`; none at all is an
    error. `folder` may be one task's file (ACTION.json): then only that task is read.
    """
    check_split(split, SPLITS, NAME)
    unknown = set(tasks or ()) - set(TASKS)
    if unknown:
        raise DataError(f"MVBench has no task {', '.join(sorted(unknown))}; tasks are {', '.join(TASKS)}")
    wanted = TASKS if tasks is None else tuple(tasks)
    if Path(folder).is_file():
        if Path(folder).stem not in wanted:
            raise DataError(f"{folder}: one file of MVBench is named by its task, e.g. action_antonym.json")
        wanted = (Path(folder).stem,)
    paths: dict[str, Path] = {}
    missing: list[DataError] = []
    for task in wanted:
        try:
            paths[task] = find_file(folder, FILES, task)
        except DataError as error:
            missing.append(error)
    if missing and (not paths or not isinstance(on_error, Problems)):
        raise missing[0]
    for absent in missing:
        handle(on_error, RecordError(str(folder), "", "", str(absent)))
    return _read(paths, split, on_error)


def _read(paths: dict[str, Path], split: str, on_error: OnError) -> Iterator[Record]:
    def pairs() -> Iterator[tuple[Item, Record | None]]:
        for task, path in paths.items():
            for number, item in enumerate(stream_items(path, on_error)):
                yield item, attempt(on_error, item, partial(_record, item, split, task, number))

    yield from unique(pairs(), on_error)


def _record(item: Item, split: str, task: str, number: int) -> Record:
    name = item.text("video").lstrip("/")
    choices = tuple(item.texts("candidates"))
    if not 2 <= len(choices) <= MOST:
        raise item.error("candidates", f"expected 2 to {MOST} candidates, got {len(choices)}")
    answer = item.text("answer")
    if answer not in choices:
        raise item.error("answer", f"expected the text of a candidate, got {answer!r:.60}")
    notes = []
    if choices.count(answer) > 1:
        notes.append(f"answer-twice: {choices.count(answer)} candidates have the text of the answer")
    segment_s = None
    if item.has("start") or item.has("end"):
        start_s, end_s = item.number("start"), item.number("end")
        if 0 <= start_s < end_s:
            segment_s = Span(start_s, end_s)
        else:
            notes.append(f"segment-unusable: start {start_s:g} s and end {end_s:g} s make no span")
    place = f"{VIDEO_FOLDERS[task]}/{name}"
    names = [f"video/{place}", f"videos/{place}", place, name]
    if task == _FRAMES_TASK:
        notes.append("frames-folder: officially a folder of pictures at 3 per second: make a video of it")
        names = [file if file.endswith(".mp4") else f"{file}.mp4" for file in names]
    return Record(
        dataset=NAME,
        split=split,
        id=f"{task}-{number}",
        task="qa",
        query=item.text("question"),
        video=VideoRef(
            id=name,
            files=tuple(names),
            fps=Fraction(_FRAMES_FPS) if task == _FRAMES_TASK else None,
            segment_s=segment_s,
        ),
        choices=choices,
        answer=answer,
        answer_index=choices.index(answer),
        source={"file": Path(item.file).name, "record": number},
        tags={"task_type": task},
        notes=tuple(notes),
    )
