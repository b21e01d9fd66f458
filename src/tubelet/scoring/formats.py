"""The formats as data: what each is, whether it carries its own truth, its usual protocol; and telling them apart.

A format is recognised only by keys or columns that no other format has; whatever is left open is an error that lists
the formats. `own_truth`: "always", "never", or "some" (decided by the first record).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tubelet.datasets.fields import Item, RecordError
from tubelet.errors import DataError
from tubelet.scoring.answers import Counts
from tubelet.scoring.lines import Source, head_of, json_items
from tubelet.scoring.read_stvg_r1 import is_prediction_txt
from tubelet.scoring.readers import TEXTS, VUE_COLUMNS, without_header


@dataclass(frozen=True, slots=True)
class Format:
    """name, what it is in words, `protocol` by default for each task, whether records carry their truth."""

    name: str
    what: str
    own_truth: Literal["always", "never", "some"]
    protocols: tuple[tuple[str, str], ...]
    tasks: tuple[str, ...] = ("stvg", "svg", "tvg")

    def protocol(self, task: str) -> str:
        return dict(self.protocols).get(task, "tubelet")


FORMATS: dict[str, Format] = {
    f.name: f
    for f in (
        Format("tubelet", "predictions.jsonl of `tubelet eval`", "never", ()),
        Format("vue_stg", "VUE-STG's CSV of boxes by second", "never", (("stvg", "vue_stg"),), ("stvg",)),
        Format(
            "moment_detr", "moment_detr's JSON Lines of windows", "never", (("tvg", "moment_detr"),), ("tvg",)
        ),
        Format(
            "llavast",
            "LLaVA-ST's result records",
            "always",
            (
                ("stvg", "llavast"),
                ("svg", "llavast"),
                ("elc", "llavast"),
                ("tvg", "llavast_tvg"),
                ("rec", "llavast_rec"),
            ),
        ),
        Format("stvg_r1", "STVG-R1's answers, or its prediction.txt", "always", (("stvg", "stvg_r1"),)),
        Format("qwen", "answers in words with spans and boxes in them", "never", ()),
        Format("doro", "DORO-STVG's results", "some", (("stvg", "doro"),), ("stvg",)),
    )
}


def format_of(name: str) -> Format:
    if name not in FORMATS:
        raise DataError(f"unknown format {name!r}; formats are {describe()}")
    return FORMATS[name]


def describe() -> str:
    return ", ".join(f"{f.name} ({f.what})" for f in FORMATS.values())


def detect(path: Path) -> Format:
    """The format of a file, where its first record leaves no doubt; DataError that lists the formats otherwise."""
    head = head_of(path)
    if is_prediction_txt(head):
        return FORMATS["stvg_r1"]
    if head[0] not in "[{":
        names = {name.strip().strip('"') for name in head.splitlines()[0].split(",")}
        if set(VUE_COLUMNS) <= names:
            return FORMATS["vue_stg"]
        raise DataError(f"{path} is of no format that is recognised: give --format, one of {describe()}")
    found = matching(first_item(path))
    if len(found) == 1:
        return FORMATS[found[0]]
    why = f"could be {' or '.join(found)}" if found else "is of no format that is recognised"
    raise DataError(f"{path} {why}: give --format, one of {describe()}")


def matching(item: Item) -> list[str]:
    """Formats that a record could be of."""
    keys, out = set(item.data), []
    told = item.data.get("prediction")
    if isinstance(told, dict) and {"tubes", "schema"} <= set(told):
        out.append("tubelet")
    if "pred_relevant_windows" in keys:
        out.append("moment_detr")
    if "converted_outputs" in keys:
        out.append("llavast")
    if "response" in keys and "gt_timestamps" in keys:
        out.append("stvg_r1")
    if keys & {"pred_temporal_bound", "pred_temporal_sampled", "pred_span_inclusive"}:
        out.append("doro")
    if isinstance(told, list) and told and isinstance(told[0], dict) and "temporal_span" in told[0]:
        out.append("doro")
    if not out and any(isinstance(item.data.get(key), str) for key in TEXTS):
        out.append("qwen")
    return out


def first_item(path: Path) -> Item:
    """The first record that can be read; DataError where there is none."""
    try:
        for item in without_header(json_items(Source(path, Counts(), keep_going=True))):
            return item
    except RecordError as error:
        raise DataError(str(error)) from error
    raise DataError(f"{path} holds no record: is it JSON or JSON Lines of objects?")
