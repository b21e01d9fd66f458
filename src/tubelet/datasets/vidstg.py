"""VidSTG: declarative and interrogative sentences about relations in VidOR videos, joined with VidOR's boxes.

An entry of {train,val,test}_annotations.json has one declarative caption and up to two questions; each is a record
(`tags["qtype"]` says which). Conversions, each proved on the public files (research note, 3.2):

- `temporal_gt.end_fid` is **exclusive** (it equals frame_count for spans that end with the video) and
  `used_segment.end_fid` is **inclusive** (it equals frame_count - 1). Both become half-open here.
- frame ids are of the whole video, not of the segment; so are all seconds.
- VidSTG has no boxes. They are VidOR trajectories with tid == target_id on frames [begin, end). VidSTG train and
  val are in VidOR *training*, test is in VidOR *validation*; the video id alone finds the file.
- frames of the span without a box stay without (note "boxes-gap"); peers repeat the last box, drop, or fail.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

from tubelet.datasets import vidor
from tubelet.datasets.fields import Item, RecordError
from tubelet.datasets.layout import FileSpec, check_split, find_file
from tubelet.datasets.problems import OnError, attempt, handle, unique
from tubelet.datasets.reading import stream_items
from tubelet.datasets.record import FrameRange, Record, Target, VideoRef, as_fps
from tubelet.errors import DataError

NAME = "vidstg"
SPLITS = ("train", "val", "test")
SOURCE = "github.com/Guaranteer/VidSTG-Dataset (folder annotations)"
_VIDOR = "the download page of VidOR (xdshang.github.io/docs/vidor.html)"
FILES = (
    *(
        FileSpec(
            "annotations",
            tuple(
                f"{place}{split}_annotations{end}.json"
                for end in ("", ".*")
                for place in ("annotations/", "vidstg/annotations/", "vidstg/", "")
            ),
            f"{split} annotations (sentences, spans)",
            SOURCE,
            (split,),
        )
        for split in SPLITS
    ),
    FileSpec(
        "trajectories",
        tuple(f"{folder}/**/*.json" for folder in vidor.FOLDERS),
        "VidOR annotations (the boxes), e.g. vidor/annotation/{training,validation}/FOLDER/VIDEO.json",
        _VIDOR,
    ),
    FileSpec("videos", ("**/*.mp4",), "VidOR videos, e.g. video/FOLDER/VIDEO.mp4", _VIDOR, kind="media"),
)

Boxes = Literal["auto", "require", "skip"]
QTYPES = {"captions": "declarative", "questions": "interrogative"}


def read(
    folder: Path | str,
    split: str,
    *,
    on_error: OnError = "raise",
    boxes: Boxes = "auto",
    vidor_folder: Path | str | None = None,
) -> Iterator[Record]:
    """Records of `split`, lazily: two or three per entry, in file order.

    boxes: "auto" joins the trajectories where they are found (a record without says so in its notes), "require"
    makes a missing one an error, "skip" reads sentences and spans only. vidor_folder: where VidOR's annotation
    files are, when not under `folder`.
    """
    if boxes not in ("auto", "require", "skip"):
        raise DataError(f"boxes is auto, require or skip, got {boxes!r}")
    path = find_file(folder, FILES, "annotations", check_split(split, SPLITS, NAME))
    tracks = None
    if boxes != "skip":
        tracks = vidor.open_vidor(folder) if vidor_folder is None else vidor.VidOR(vidor_folder)
        if boxes == "require" and not tracks:
            raise DataError(
                f"no VidOR trajectories under {vidor_folder or folder} (looked for "
                f"{', '.join(vidor.FOLDERS)}); they are to be had from {_VIDOR}"
            )
    return _read(path, split, tracks, boxes, on_error)


def _read(
    path: Path, split: str, tracks: vidor.VidOR | None, boxes: Boxes, on_error: OnError
) -> Iterator[Record]:
    def pairs() -> Iterator[tuple[Item, Record | None]]:
        for number, item in enumerate(stream_items(path, on_error)):
            try:
                shared = _shared(item, split)
                asked = [
                    (key, sentence)
                    for key in QTYPES
                    if key == "captions" or item.has(key)
                    for sentence in item.children(key)
                ]
            except DataError as error:
                located = isinstance(error, RecordError)
                handle(on_error, error if located else RecordError(item.file, item.where, "", str(error)))  # type: ignore[arg-type]
                continue
            for key, sentence in asked:
                yield (
                    sentence,
                    attempt(
                        on_error, sentence, partial(_record, number, key, sentence, shared, tracks, boxes)
                    ),
                )

    yield from unique(pairs(), on_error)


def _shared(item: Item, split: str) -> dict[str, Any]:
    """What the sentences of one entry share."""
    vid = item.name_or_number("vid")
    count = item.whole("frame_count", 1)
    used, truth = item.child("used_segment"), item.child("temporal_gt")
    segment = FrameRange(used.whole("begin_fid"), used.whole("end_fid") + 1)  # inclusive there
    frames = FrameRange(truth.whole("begin_fid"), truth.whole("end_fid"))  # exclusive there
    notes = []
    if frames.end > count:
        notes.append(f"span-past-end: the span ends with frame {frames.end} of {count}")
    if frames.begin < segment.begin or frames.end > segment.end:
        notes.append(
            f"span-outside-segment: frames [{frames.begin}, {frames.end}) reach outside the used segment "
            f"[{segment.begin}, {segment.end})"
        )
    if segment.end > count:
        notes.append(f"segment-past-end: the used segment ends with frame {segment.end} of {count}")
    categories = {
        entry.whole("tid"): entry.text("category")
        for entry in (item.children("subject/objects") if item.has("subject/objects") else [])
    }
    predicate = item.child("used_relation").text("predicate", "") if item.has("used_relation") else ""
    fps = as_fps(item.number("fps", 0.001, 1000))
    return {
        "split": split,
        "video": VideoRef(
            id=vid,
            files=(f"video/{vid}.mp4", f"videos/{vid}.mp4", f"{vid}.mp4"),
            fps=fps,
            frame_count=count,
            width=item.whole("width", 1, 10**6),
            height=item.whole("height", 1, 10**6),
            duration_s=float(count / fps),
            segment=segment,
            segment_s=segment.span(fps),
        ),
        "frames": frames,
        "categories": categories,
        "predicate": predicate,
        "notes": notes,
    }


def _record(
    number: int, key: str, sentence: Item, shared: dict[str, Any], tracks: vidor.VidOR | None, boxes: Boxes
) -> Record:
    video: VideoRef = shared["video"]
    frames: FrameRange = shared["frames"]
    notes: list[str] = list(shared["notes"])
    tid = sentence.whole("target_id")
    name = shared["categories"].get(tid, "")
    if shared["categories"] and not name:
        raise sentence.error("target_id", f"{tid} is none of the entry's subject/objects")
    targets: tuple[Target, ...] = ()
    if boxes != "skip":
        found, said, video = _join(video, frames, tid, name, tracks)
        if found is None and boxes == "require":
            raise sentence.error("target_id", said[0] if said else "has no boxes")
        targets = () if found is None else (found,)
        notes += said
    k = sentence.path.rsplit("[", 1)[-1].rstrip("]")
    return Record(
        dataset=NAME,
        split=shared["split"],
        id=f"{video.id}-{number}-{key[0]}{k}",
        task="stvg",
        query=sentence.text("description"),
        video=video,
        spans=(frames.span(video.fps),) if video.fps is not None else (),
        frames=frames,
        targets=targets,
        source={"file": Path(sentence.file).name, "entry": number, "field": sentence.path, "target_id": tid},
        tags={
            "qtype": QTYPES[key],
            "target_type": sentence.text("type", ""),
            "category": name,
            "predicate": shared["predicate"],
        },
        notes=tuple(notes),
    )


def _join(
    video: VideoRef, frames: FrameRange, tid: int, name: str, tracks: vidor.VidOR | None
) -> tuple[Target | None, list[str], VideoRef]:
    """Boxes of one target, notes, and the video with the place VidOR gives it."""
    if tracks is None:
        return None, ["boxes-missing: no VidOR trajectories in the data folder"], video
    item = tracks.get(video.id)
    if item is None:
        return None, [f"boxes-missing: VidOR has no file {video.id}.json here"], video
    assert (
        video.width is not None and video.height is not None and video.frame_count is not None
    )  # from _shared
    notes = vidor.check_same(item, video.width, video.height, video.frame_count)
    found, said = vidor.target(item, tid, frames, video.width, video.height, name)
    place = item.text("video_path", "")
    if place:
        files = (*(f"{base}{place}" for base in ("video/", "videos/", "vidor/video/", "")), *video.files)
        video = VideoRef(
            video.id,
            files,
            video.fps,
            video.frame_count,
            video.width,
            video.height,
            video.duration_s,
            video.segment,
            video.segment_s,
        )
    return found, notes + said, video
