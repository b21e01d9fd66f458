"""Items with their pictures: the frames that are taken, what stands in for broken samples, and when it stops."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import video_files
from tubelet.errors import DataError, ModelError, VideoError
from tubelet.llava_st import grounder
from tubelet.llava_st.checkpoint import load_llava_st
from tubelet.llava_st.item_files import write_items
from tubelet.llava_st.item_samples import Broken, ItemSample, load_sample, sample_or_next, split_window
from tubelet.llava_st.item_words import Facts, Place, make_item
from tubelet.llava_st.items import Item
from tubelet.llava_st.mixture import Drawn, Entry, Mixture, open_mixture
from tubelet.llava_st.official_text import frame_indices
from tubelet.video import open_video

SIZE = 64


def an_item(path: str = "a.mp4", split: tuple[int, int] | None = None, image: bool = False) -> Item:
    if image:
        return make_item("rec", Place(path, True), Facts("a dog", box=(0.1, 0.2, 0.3, 0.4)))
    return make_item("tvg", Place(path, False, split), Facts("a dog runs", span=(0.1, 0.6)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from PIL import Image

    out = tmp_path_factory.mktemp("media")
    video_files.write(out / "a.mp4", 60)
    video_files.write(out / "short.mp4", 5)
    Image.fromarray(video_files.board(77)).save(out / "p.png")
    (out / "broken.mp4").write_bytes(b"no video at all")
    return out


@pytest.mark.parametrize("split", [None, (0, 59), (10, 40), (57, 59), (20, 20)])
@pytest.mark.parametrize("count", [8, 100])
def test_frames_are_the_published_ones(folder: Path, split: tuple[int, int] | None, count: int) -> None:
    sample = load_sample(an_item(split=split), folder, count, SIZE, repeat=True)
    wanted = frame_indices(60, split, count)
    assert sample.pixels.shape == (count, SIZE, SIZE, 3) and sample.pixels.dtype == np.uint8
    assert video_files.numbers(sample.pixels) == wanted
    assert sample.grid.frame_index[sample.rows].tolist() == wanted and not sample.is_image
    first, last = wanted[0], wanted[-1]
    assert np.allclose(sample.positions, [(k - first) / max(last - first, 1) for k in wanted], atol=1e-6)
    fewer = load_sample(an_item(split=split), folder, count, SIZE)  # no frame twice
    length = last - first + 1
    assert len(fewer.pixels) == min(count, length) and (np.diff(fewer.grid.frame_index) > 0).all()
    assert video_files.numbers(fewer.pixels) == frame_indices(60, split, min(count, length))


@pytest.mark.parametrize("mode", ["fixed", "official"])
@pytest.mark.parametrize("name", ["a.mp4", "short.mp4", "p.png"])
def test_frames_are_those_that_a_question_meets(
    folder: Path, official_folder: Path, geometry: Any, mode: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `LlavaSTGrounder.encode` hands to the model: the same pixels at the same positions."""
    bundle = load_llava_st(official_folder, mode=mode, geometry=geometry)
    met: list[Any] = []

    def catch(_: Any, pixels: Any, is_image: bool, positions: Any) -> Any:
        met.append((pixels, is_image, positions))
        raise ModelError("enough")

    monkeypatch.setattr(grounder, "read_frames", catch)
    with pytest.raises(ModelError, match="enough"):
        grounder.LlavaSTGrounder(bundle, "tiny").encode(folder / name)
    ((pixels, is_image, positions),) = met
    item = an_item(name, image=is_image)
    sample = load_sample(item, folder, bundle.config.frames, bundle.model.image_size, mode == "official")
    assert np.array_equal(sample.pixels, pixels)
    assert len(pixels) == (1 if is_image else 100 if mode == "official" else min(len(pixels), 60))
    if positions is not None:
        assert np.allclose(sample.positions, positions)


def test_turns_and_images(folder: Path) -> None:
    sample = load_sample(an_item("p.png", image=True), folder, 16, SIZE, repeat=True)
    assert (
        sample.pixels.shape == (1, SIZE, SIZE, 3) and sample.positions.tolist() == [0.0] and sample.is_image
    )
    assert video_files.numbers(sample.pixels) == [77]
    (asker, question), (answerer, reply) = sample.turns
    assert (asker, answerer) == ("human", "gpt") and "<image>" not in question.text
    assert reply.variables.spatial_width_output_locations == (0.1, 0.3)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (an_item("none.mp4"), "none.mp4"),
        (an_item("broken.mp4"), "broken.mp4"),
        (an_item(split=(0, 60)), "meta.split is frames 0 to 60, both included, but a.mp4 has frames 0 to 59"),
        (an_item("p.png"), "named as video in its item, but it is an image"),
        (an_item("a.mp4", image=True), "named as image in its item, but it is a video"),
    ],
)
def test_pictures_that_cannot_be_used(folder: Path, item: Item, message: str) -> None:
    with pytest.raises(VideoError, match=message):
        load_sample(item, folder, 8, SIZE)


def test_a_split_holds_exactly_its_frames(folder: Path) -> None:
    video = open_video(folder / "a.mp4")
    for first, last in ((0, 0), (3, 9), (59, 59), (0, 59)):
        inside = np.flatnonzero(split_window(video, (first, last)).contains(video.times_s))
        assert (inside[0], inside[-1]) == (first, last)


# --- broken samples ------------------------------------------------------------------------------------


@pytest.fixture
def mixed(folder: Path, tmp_path: Path) -> Any:
    names = ["a.mp4", "none.mp4", "broken.mp4", "short.mp4", "a.mp4", "none.mp4"]
    items = [replace(an_item(name), id=str(k)) for k, name in enumerate(names)]
    write_items(items, tmp_path / "items.jsonl")
    with (tmp_path / "items.jsonl").open("a") as file:
        file.write('{"video": "a.mp4", "conversations": []}\n')  # number 6: a broken item
    return open_mixture(Mixture((Entry("items.jsonl", str(folder)),), tmp_path))


def load(drawn: Drawn) -> ItemSample:
    return load_sample(drawn.item, drawn.folder, 8, SIZE)


def test_broken_samples_are_replaced_by_the_next_and_counted(mixed: Any) -> None:
    broken = Broken()
    taken = [sample_or_next(mixed, number, load, broken)[0] for number in range(7)]
    assert taken == [0, 3, 3, 3, 4, 0, 0]  # 5 and 6 wrap around to the beginning
    assert broken.numbers == {1, 2, 5, 6} and broken.count == 4 and broken.asked == 7
    assert broken.by_error == {"VideoError": 3, "RecordError": 1}
    assert "none.mp4" in broken.examples[0] and broken.examples[0].startswith("sample 1: ")
    # the same ones again, in another order: the same answers, and nothing is counted twice
    assert [sample_or_next(mixed, number, load, broken)[0] for number in (6, 2, 1, 0)] == [0, 3, 3, 0]
    assert broken.count == 4
    number, sample = sample_or_next(mixed, 2, load, Broken())
    assert number == 3 and sample.item.id == "3" and len(sample.pixels) == 5


def test_too_many_broken_samples_stop(mixed: Any) -> None:
    broken = Broken(share=0.0, few=1)
    assert sample_or_next(mixed, 1, lambda drawn: drawn.item.id, broken) == (1, "1")
    with pytest.raises(
        DataError, match=r"2 samples of about 2 asked for could not be used.*check_mixture.*sample 1"
    ):
        sample_or_next(mixed, 1, load, broken)


def test_the_share_counts_when_there_are_many() -> None:
    broken = Broken(share=0.1, few=2, asked=100)
    for number in range(10):
        broken.add(number, VideoError("gone"))
    with pytest.raises(DataError, match="11 samples of about 100"):
        broken.add(10, VideoError("gone"))
    for wrong in ({"share": 1.5}, {"share": -0.1}, {"few": -1}):
        with pytest.raises(DataError, match="share is a fraction"):
            Broken(**wrong)


@dataclass
class NoSamples:
    def __len__(self) -> int:
        return 0

    def __getitem__(self, number: int, /) -> Drawn:
        raise AssertionError("nothing is asked of an empty list")


def test_nothing_to_take_and_defects_of_the_code(mixed: Any) -> None:
    with pytest.raises(DataError, match="no samples"):
        sample_or_next(NoSamples(), 0, load, Broken())

    def fails(_: Drawn) -> None:
        raise VideoError("gone")

    with pytest.raises(DataError, match="none of the 7 samples can be used"):
        sample_or_next(mixed, 3, fails, Broken())

    def wrong(_: Drawn) -> None:
        raise ZeroDivisionError

    broken = Broken()
    with pytest.raises(ZeroDivisionError):  # a defect is no broken sample
        sample_or_next(mixed, 0, wrong, broken)
    assert broken.count == 0
