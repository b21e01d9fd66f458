"""Conversations of other sources in which times stand between the words (`datasets.talks`), as items.

Their marks become placeholders (INPUT in questions, OUTPUT in answers) with fractions of the clip; their words stay. A
span is {<TEMP-..><TEMP-..>}, any other time <TEMP-..>. Knows nothing of files; the timeline says how long the video is.
"""

from __future__ import annotations

from tubelet.datasets.record import Record
from tubelet.datasets.talks import MARK, is_talk, times_of
from tubelet.errors import DataError
from tubelet.llava_st.coordinates import Variables
from tubelet.llava_st.item_making import Timeline
from tubelet.llava_st.items import Item, Turn
from tubelet.llava_st.words import IMAGE_MARK, VIDEO_MARK

SLACK_S = 0.5
"""A time may lie this much outside of the clip: durations are rounded."""

_WITHOUT_TIMES = ("conversation", "video_qa", "classification", "video_captioning")


def talk_fits(record: Record, kind: str) -> bool:
    """Whether a conversation can be an item of this kind: what it is (`talks.kind_of`), any with times as a temporal
    grounded conversation, any without as a kind that has none."""
    if not is_talk(record):
        return False
    if kind == record.tags.get("kind"):
        return True
    if kind == "temporal_grounded_conversation":
        return bool(times_of(record))
    return kind in _WITHOUT_TIMES and not times_of(record)


def item_of_talk(record: Record, kind: str, timeline: Timeline | None, path: str | None = None) -> Item:
    """The item of a conversation. DataError without a timeline where there are times, and for times outside of it."""
    times = times_of(record)
    if times and timeline is None:
        raise DataError(f"{record.id}: its times are fractions of the clip: say how long its video is")
    values: dict[str, list[float]] = {"INPUT": [], "OUTPUT": []}
    turns: list[Turn] = []
    for turn in record.extra["turns"]:
        way = "INPUT" if turn["from"] == "human" else "OUTPUT"
        for found in MARK.finditer(turn["value"]):
            assert timeline is not None
            values[way].append(_fraction(record, timeline, times[int(found[1])]))
        mark = "" if turns else f"{IMAGE_MARK if record.video.kind == 'image' else VIDEO_MARK}\n"
        turns.append(Turn(turn["from"], mark + MARK.sub(f"<TEMP-{way}>", turn["value"])))
    where = path or (record.video.files[0] if record.video.files else record.video.id)
    split = None
    if timeline is not None and timeline.times_s is not None:
        whole = (timeline.first, timeline.last) == (0, len(timeline.times_s) - 1)
        split = None if whole else (timeline.first, timeline.last)
    image = record.video.kind == "image"
    return Item(
        tuple(turns),
        image=where if image else None,
        video=None if image else where,
        variables=Variables(
            temporal_input_locations=tuple(values["INPUT"]),
            temporal_output_locations=tuple(values["OUTPUT"]),
        ),
        split=split,
        id=record.id,
        kind=kind,
    )


def _fraction(record: Record, timeline: Timeline, time_s: float) -> float:
    if not timeline.start_s - SLACK_S <= time_s <= timeline.end_s + SLACK_S:
        raise DataError(
            f"{record.id}: {time_s:g} s lies outside of the clip ({timeline.start_s:g}-{timeline.end_s:g} s)"
        )
    return timeline.fraction(time_s)
