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

from collections.abc import Iterator, Mapping
from importlib import import_module
from inspect import signature
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from tubelet.errors import DataError, RecipeError

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
    "vtimellm": "tubelet.datasets.vtimellm",
    "moment-10m": "tubelet.datasets.moment_10m",
    "anet-rtl": "tubelet.datasets.anet_rtl",
    "grounded-videollm": "tubelet.datasets.grounded_videollm",
    "vtg-it": "tubelet.datasets.vtg_it",
    "internvid-g": "tubelet.datasets.internvid_g",
    "hirest": "tubelet.datasets.hirest",
    "coin": "tubelet.datasets.coin",
    "youcook2": "tubelet.datasets.youcook2",
    "flickr30k-entities": "tubelet.datasets.flickr30k_entities",
    "grand": "tubelet.datasets.grand",
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


def check_options(source: str, options: Mapping[str, Any]) -> None:
    """RecipeError for options that the reader of a source (of a recipe) does not take; a source that is no dataset
    takes none."""
    known: tuple[str, ...] = ()
    if options and source in DATASETS:
        given = signature(open_dataset(source).read).parameters
        known = tuple(key for key in given if key not in ("folder", "split", "on_error"))
    wrong = [key for key in options if key not in known]
    if wrong:
        raise RecipeError(f"{source} has no option {', '.join(wrong)}; it has {', '.join(known) or 'none'}")


def read(
    name: str, folder: Path | str, split: str, *, on_error: OnError = "raise", **options: Any
) -> Iterator[Record]:
    """Records of one split of a dataset, lazily; see the module of the dataset for its options."""
    records: Iterator[Record] = open_dataset(name).read(folder, split, on_error=on_error, **options)
    return records
