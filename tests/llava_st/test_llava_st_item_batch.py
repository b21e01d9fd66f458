"""Training from files: every item once per epoch, batches that depend on their number alone, a step that learns."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import video_files
from tubelet.errors import DataError, RecipeError
from tubelet.llava_st import item_batch
from tubelet.llava_st.config import LlavaSTConfig, PackerConfig
from tubelet.llava_st.grow import grow
from tubelet.llava_st.item_batch import collate_items, encode_items, item_stream, place
from tubelet.llava_st.item_files import write_items
from tubelet.llava_st.item_samples import Broken, load_sample
from tubelet.llava_st.item_words import Facts, Place, make_item
from tubelet.llava_st.loss import soft_label_loss, soft_labels
from tubelet.llava_st.mixture import Entry, Mixture, open_mixture, write_mixture
from tubelet.llava_st.train import make_job
from tubelet.spacevllm.checkpoint import new_pico
from tubelet.spacevllm.config import SpaceVLLMConfig
from tubelet.spacevllm.saving import save_base
from tubelet.training.loop import train
from tubelet.training.recipe import ItemList, Optimiser, Recipe, Stage

CONFIG = LlavaSTConfig(
    frames=4,
    prompts="brief",
    pack_images=True,
    packer=PackerConfig(width=16, heads=2, space=2, fast=2, time=2),
)


@pytest.fixture(scope="module")
def base() -> Any:
    torch.manual_seed(0)
    return new_pico(SpaceVLLMConfig(max_frames=4, prompts="brief"))


@pytest.fixture(scope="module")
def bundle(base: Any) -> Any:
    return grow(base.model.base, base.tokenizer, CONFIG)


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A list of two files: five videos (one of them broken) and two pictures."""
    from PIL import Image

    out = tmp_path_factory.mktemp("items")
    for k in range(2):
        video_files.write(out / f"{k}.mp4", 12 + k)
    (out / "broken.mp4").write_bytes(b"no video at all")
    Image.fromarray(video_files.board(3)).save(out / "p.png")
    names = ("0.mp4", "1.mp4", "broken.mp4", "0.mp4", "1.mp4")
    videos = [
        make_item("tvg", Place(n, False, None), Facts(f"a dog runs {k}", span=(0.1 * k, 0.6)), f"v{k}")
        for k, n in enumerate(names)
    ]
    pictures = [
        make_item("rec", Place("p.png", True), Facts(f"a cat {k}", box=(0.1, 0.2, 0.3, 0.4)), f"p{k}")
        for k in range(2)
    ]
    write_items(videos, out / "videos.jsonl")
    write_items(pictures, out / "pictures.json")
    entries = tuple(Entry(json_path=name, data_folder=".") for name in ("videos.jsonl", "pictures.json"))
    write_mixture(Mixture(entries), out / "list.yaml")
    return out / "list.yaml"


def test_every_item_once_per_epoch_in_another_order(listed: Path) -> None:
    items = open_mixture(listed, seed=4)
    orders: dict[int, Any] = {}
    drawn = [place(items, at, orders) for at in range(3 * len(items))]
    epochs = [drawn[k : k + 7] for k in (0, 7, 14)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs) and epochs[0] != epochs[1]
    assert [place(items, at, {}) for at in range(9, 21)] == drawn[9:]  # a resumed run goes on with the same


def test_a_batch_depends_on_its_number_alone(
    bundle: Any, listed: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = ItemList(str(listed), batch=3)
    with caplog.at_level(logging.WARNING, "tubelet"):
        batches = [item_stream(settings, bundle.model, bundle.tokenizer, 4)(k) for k in (2, 0)]
    make = item_stream(settings, bundle.model, bundle.tokenizer, 4)
    first, _, third = make(0), make(1), make(2)
    for one, other in ((batches[0], third), (batches[1], first)):
        assert torch.equal(one.ids, other.ids) and one.variables == other.variables
        assert all(torch.equal(a, b) for a, b in zip(one.pixels, other.pixels, strict=True))
    assert "broken.mp4" in caplog.text and "stands in" in caplog.text


def test_too_many_broken_samples_stop_the_run(
    bundle: Any, listed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(item_batch, "Broken", lambda share: Broken(share, few=0))
    make = item_stream(ItemList(str(listed), batch=7, broken_share=0.0), bundle.model, bundle.tokenizer, 4)
    with pytest.raises(DataError, match=r"could not be used, at most 0%"):
        make(0)


def test_conversations_of_several_pictures_equal_single_ones(bundle: Any, listed: Path) -> None:
    """A padded batch of a video and an image: the same losses as one by one."""
    model, items = bundle.model, open_mixture(listed, 4)
    samples = [load_sample(items[k].item, items[k].folder, 4, model.image_size) for k in (0, 1, 5)]
    assert Counter(s.is_image for s in samples) == {False: 2, True: 1}

    def loss(some: list[Any]) -> float:
        batch = collate_items(some, model, bundle.tokenizer)
        batch = replace(batch, pixels=tuple(p.float() / 127.5 - 1 for p in batch.pixels))
        with torch.no_grad():
            hidden = model(batch.ids, encode_items(model, batch), batch.variables, batch.mask.long())
            labels = soft_labels(batch.ids, batch.labels, batch.variables, model.words)
            return float(soft_label_loss(hidden, model.head, labels))

    alone = [loss([sample]) for sample in samples]
    assert loss(samples) == pytest.approx(np.mean(alone), rel=1e-4)
    assert len({round(value, 4) for value in alone}) == 3


def test_a_recipe_learns_from_files(base: Any, listed: Path, tmp_path: Path) -> None:
    folder = save_base(base, tmp_path / "base", auxiliary=False)
    stage = Stage("tasks", 3, items=ItemList(str(listed)), train="all", optimiser=Optimiser(lr=1e-3))
    recipe = Recipe(
        "files", "llava-st", (stage,), str(folder), str(tmp_path / "run"), workers=0, llava_st=CONFIG
    )
    lines: list[dict[str, float]] = []
    train(recipe, make_job(recipe), on_step=lambda _, numbers: lines.append(numbers))
    assert len(lines) == 3 and all(0 < line["text"] < 20 for line in lines)
    assert (tmp_path / "run" / "model" / "config.json").is_file()
    with pytest.raises(RecipeError, match="one of them"):
        Stage("x", 1)
    with pytest.raises(RecipeError, match=r"items\.supervise"):
        ItemList("a", supervise="all")
