"""Public datasets in one schema (`tubelet.datasets.record.Record`), read lazily from the files their authors publish.

A dataset is a module with plain functions and data, imported when it is asked for:

    NAME    what it is called here
    SPLITS  the splits it has
    FILES   the files it is made of: patterns under the data folder, what each is, where it is to be had
    read(folder, split, *, on_error="raise") -> Iterator[Record]

`DATASETS` maps names to modules; `open_dataset(name)` imports one; `read(name, folder, split)` reads one.
Nothing here downloads anything. docs/datasets.md has a section per dataset.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from tubelet.errors import DataError

if TYPE_CHECKING:
    from tubelet.datasets.problems import OnError
    from tubelet.datasets.record import Record

DATASETS: dict[str, str] = {
    "hcstvg-v1": "tubelet.datasets.hcstvg_v1",
    "hcstvg-v2": "tubelet.datasets.hcstvg_v2",
    "vidstg": "tubelet.datasets.vidstg",
    "st-align": "tubelet.datasets.st_align",
    "vue-stg": "tubelet.datasets.vue_stg",
    "v-star": "tubelet.datasets.vstar",
    "bostvg": "tubelet.datasets.bostvg",
    "world": "tubelet.datasets.world",
    "charades-sta": "tubelet.datasets.charades",
    "didemo": "tubelet.datasets.didemo",
    "tacos": "tubelet.datasets.tacos",
    "activitynet": "tubelet.datasets.activitynet",
    "qvhighlights": "tubelet.datasets.qvhighlights",
    "tvgbench": "tubelet.datasets.tvgbench",
    "refcoco": "tubelet.datasets.refcoco",
    "mvbench": "tubelet.datasets.mvbench",
    "video-mme": "tubelet.datasets.videomme",
    "egoschema": "tubelet.datasets.egoschema",
    "tempcompass": "tubelet.datasets.tempcompass",
}
"""Name -> module. Names are lower case with hyphens; underscores and capitals are accepted by `open_dataset`."""


def open_dataset(name: str) -> ModuleType:
    """The module of a dataset; DataError that lists the names when there is none of that name."""
    key = name.strip().lower().replace("_", "-")
    if key not in DATASETS:
        raise DataError(f"unknown dataset {name!r}; datasets are {', '.join(sorted(DATASETS))}")
    return import_module(DATASETS[key])


def read(
    name: str, folder: Path | str, split: str, *, on_error: OnError = "raise", **options: Any
) -> Iterator[Record]:
    """Records of one split of a dataset, lazily; see the module of the dataset for its options."""
    records: Iterator[Record] = open_dataset(name).read(folder, split, on_error=on_error, **options)
    return records
