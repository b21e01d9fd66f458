"""Numbers of the official LLaVA-NeXT code, through a converted checkpoint, tubelet's own layout and the stock model."""

from __future__ import annotations

import shutil
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import llava_next_files as files
import numpy as np
import pytest
import torch

from tubelet.frames import Clip, FrameGrid
from tubelet.spacevllm.batch import normalise
from tubelet.spacevllm.checkpoint import Bundle, load_bundle
from tubelet.spacevllm.grounder import SpaceVLLMGrounder
from tubelet.spacevllm.llava_next import convert_llava_next, load_llava_next, open_llava_next
from tubelet.spacevllm.model import SpaceVLLM
from tubelet.spacevllm.pack import Packed, Suffix, pack
from tubelet.spacevllm.prompts import encode_query, make_prefix

pytestmark = pytest.mark.skipif(
    not (files.GOLDEN / "README.md").is_file(), reason="no golden files of LLaVA-NeXT beside this checkout"
)

FEATURE, L2, DOT, LATE = 2e-5, 2e-4, 3e-4, 3e-4  # tolerances of the golden README
HEADS = {"video": 3, "onevision": 2}
QUESTIONS = {
    "video": "Please describe this video in detail.",
    "onevision": "Describe what's happening in this video.",
}


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("converted")
    for kind, heads in HEADS.items():
        convert_llava_next(files.GOLDEN / f"checkpoint_{kind}", root / kind, vision_heads=heads)
    return {kind: root / kind for kind in HEADS}


@pytest.fixture(scope="module")
def bundles(converted: dict[str, Path]) -> dict[str, Bundle]:
    return {kind: load_bundle(folder) for kind, folder in converted.items()}


@pytest.fixture(scope="module")
def rendered() -> dict[str, torch.Tensor]:
    return {"video": files.pixels(8, 0.9), "onevision": files.pixels(4, 0.4)}


def prompt(bundle: Bundle, kind: str) -> tuple[Packed, list[int]]:
    """The sample's turn, laid out by tubelet; the packed row and the ids of question and tail."""
    sampling = files.notes("video_video")["sampling"]
    n = 8 if kind == "video" else 4
    times = np.array(sampling["frame_idx"][:n]) / sampling["avg_fps"]
    prefix = make_prefix(
        bundle.model.config,
        bundle.layout,
        bundle.tokenizer,
        times,
        sampling["video_time"],
        bundle.model.tokens_per_frame,
    )
    question = Suffix(tuple(encode_query(bundle.tokenizer, QUESTIONS[kind])), bundle.layout.tail)
    return pack([prefix], [[question]]), list(question.ids)


def largest(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape
    return float((a.double() - b.double()).abs().max())


def digests(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    w = torch.cos(0.37 * torch.arange(rows.shape[-1], dtype=torch.float64) + 0.1)
    return rows.double().norm(dim=-1), rows.double() @ w


@pytest.mark.parametrize("kind", ["video", "onevision"])
def test_a_whole_turn(kind: str, bundles: dict[str, Bundle], rendered: dict[str, torch.Tensor]) -> None:
    bundle, g = bundles[kind], files.tensors(f"{kind}_video")
    model, config = bundle.model, bundle.model.config
    assert (config.newline, config.time_layout) == (
        ("grid", "llava_video") if kind == "video" else ("one", "none")
    )
    packed, _ = prompt(bundle, kind)

    # ids: the marker -200 stands for all visual tokens
    ids = packed.ids[0].tolist()
    at, n_visual = ids.index(bundle.layout.video_token), ids.count(bundle.layout.video_token)
    assert [*ids[:at], -200, *ids[at + n_visual :]] == g["input_ids"].tolist()
    assert packed.newline_at[0].tolist() == g["newline_positions"].tolist()

    with torch.no_grad():
        features = model.frame_features(rendered[kind])
        assert largest(features, g["visual.pooled"]) < FEATURE
        embeds = model.embed(packed, features)
        assert largest(embeds[0, files.notes(f"{kind}_video")["positions"]], g["inputs_embeds"]) < FEATURE
        l2, dot = digests(embeds[0])
        assert largest(l2, g["inputs_embeds_l2"]) < L2
        assert largest(dot, g["inputs_embeds_dot"]) < DOT
        out = model.base.model.language_model(inputs_embeds=embeds, output_hidden_states=True)
        logits = model.base.lm_head(out.last_hidden_state[0, -8:])
    hidden = torch.stack([state[0, -8:] for state in out.hidden_states])
    assert largest(hidden, g["hidden_last8"]) < LATE
    assert largest(logits, g["logits_last8"]) < LATE


@pytest.mark.parametrize("kind", ["video", "onevision"])
def test_greedy_answers(kind: str, bundles: dict[str, Bundle], rendered: dict[str, torch.Tensor]) -> None:
    """Through the prefix cache, as `ask` does it; padding rows of the vocabulary are never written."""
    bundle, g = bundles[kind], files.tensors(f"{kind}_video")
    packed, words = prompt(bundle, kind)
    alone = replace(
        packed,
        ids=packed.ids[:, : -len(words)],
        position=packed.position[:, : -len(words)],
        segment=packed.segment[:, : -len(words)],
    )
    state = bundle.model.encode_prefix(alone, rendered[kind])

    def answer(model: SpaceVLLM) -> list[int]:
        return model.ask(state, [words], [len(words) - len(bundle.layout.tail)], 8, -1).answers[0]

    assert answer(bundle.model) == g["greedy_ids"].tolist()
    kept = files.notes(f"{kind}_video")["greedy"]["ids_if_padding_rows_are_kept"]
    assert answer(SpaceVLLM(bundle.model.base, replace(bundle.model.config, words=0))) == kept


@pytest.mark.parametrize(
    "variant, newline, pool",
    [
        ("one_token", "one", "bilinear"),
        ("frame", "frame", "bilinear"),
        ("no_token", "none", "bilinear"),
        ("grid_average", "grid", "average"),
        ("grid_max", "grid", "max"),
        ("grid_stride4_in_config", "grid", "bilinear"),
    ],
)
def test_other_newlines_and_pooling(
    variant: str, newline: str, pool: str, bundles: dict[str, Bundle], rendered: dict[str, torch.Tensor]
) -> None:
    bundle, g = bundles["video"], files.tensors("video_variants")
    config = replace(bundle.model.config, newline=newline, pool=pool)
    model = SpaceVLLM(bundle.model.base, config)
    prefix = make_prefix(config, bundle.layout, bundle.tokenizer, range(8), 8.0, model.tokens_per_frame)
    packed = pack([prefix], [[]])
    with torch.no_grad():
        embeds = model.embed(packed, model.frame_features(rendered["video"]))
    l2, dot = digests(embeds[0, packed.ids[0] == bundle.layout.video_token])
    assert largest(l2, g[f"{variant}.l2"]) < L2
    assert largest(dot, g[f"{variant}.dot"]) < DOT


@pytest.mark.parametrize("name", ["onevision_image", "onevision_image_large"])
def test_images_through_transformers(name: str, bundles: dict[str, Bundle]) -> None:
    """The converted folder is a stock LLaVA-OneVision: its images are cut and merged as the official code does."""
    base, told, g = bundles["onevision"].model.base, files.notes(name), files.tensors(name)
    at, n_visual, ids = told["marker_positions"][0], told["n_visual"], g["input_ids"]
    image = torch.full((n_visual,), base.config.image_token_id)
    ids = torch.cat([ids[:at], image, ids[at + 1 :]])[None].long()
    width, height = told["image_size_wh"]
    pixels = files.pixels(told["crops"], told["pixel_phase"])[None]
    with torch.no_grad():
        found = base.model.get_image_features(pixels, torch.tensor([[height, width]]), return_dict=True)
        embeds = base.get_input_embeddings()(ids)
        embeds[0, at : at + n_visual] = torch.cat(list(found.pooler_output))
    l2, dot = digests(embeds[0])
    assert largest(embeds[0, told["positions"]], g["inputs_embeds"]) < FEATURE
    assert largest(l2, g["inputs_embeds_l2"]) < L2 and largest(dot, g["inputs_embeds_dot"]) < DOT
    if "logits_last8" in g:
        with torch.no_grad():
            logits = base(inputs_embeds=embeds).logits[0, -8:]
        assert largest(logits, g["logits_last8"]) < LATE


def test_unconverted_checkpoint_loads_to_the_same_weights(
    converted: dict[str, Path], bundles: dict[str, Bundle]
) -> None:
    for kind, heads in HEADS.items():
        straight = load_llava_next(files.GOLDEN / f"checkpoint_{kind}", vision_heads=heads)
        there, here = straight.model.base.state_dict(), bundles[kind].model.base.state_dict()
        assert there.keys() == here.keys() and all(torch.equal(there[k], here[k]) for k in here)
        assert straight.model.config == bundles[kind].model.config
        assert straight.layout == bundles[kind].layout


def test_a_tokenizer_of_two_files(tmp_path: Path, bundles: dict[str, Bundle]) -> None:
    """vocab.json and merges.txt without tokenizer.json give the same words."""
    folder = tmp_path / "two"
    shutil.copytree(files.GOLDEN / "checkpoint_video", folder)
    (folder / "tokenizer.json").unlink()
    opened = open_llava_next(folder, vision_heads=HEADS["video"])
    text = "<|im_start|>user\n<video>\nThe video lasts for 10.01 seconds.Please answer"
    assert opened.tokenizer(text)["input_ids"] == bundles["video"].tokenizer(text)["input_ids"]
    assert opened.settings.words == 271


def test_frames_are_prepared_as_published(bundles: dict[str, Bundle]) -> None:
    """Frames squeezed to the square and normalised: the official preprocessing of integer images."""
    told, g = files.notes("pixels"), files.tensors("pixels")
    grounder = SpaceVLLMGrounder(bundles["onevision"], "golden")
    c, y, x = np.array(told["points_channel_row_column"]).T
    cases = [(k, case) for k, case in enumerate(told["cases"]) if case["kind"] == "video"]
    assert len(cases) == 2
    for k, case in cases:
        (width, height), phase = case["size_wh"], case["phase"]
        frames = np.stack([files.integer_image(width, height, phase + f) for f in range(2)])
        clip = Clip(frames, FrameGrid(np.arange(2), np.arange(2.0), Fraction(1), 2.0, width, height))
        small = torch.from_numpy(grounder._fit(clip).pixels).permute(0, 3, 1, 2)
        ours = normalise(small, grounder.bundle.pixel_mean, grounder.bundle.pixel_std)
        assert largest(ours[:, c, y, x], g[f"{k}.points"]) < 1e-6
        assert largest(ours.mean(dim=(2, 3)), g[f"{k}.mean"]) < 1e-5


def test_mistakes_are_seen(bundles: dict[str, Bundle], rendered: dict[str, torch.Tensor]) -> None:
    """The comparison above can fail: a change of 1e-3 in one number is beyond its tolerance."""
    bundle, g = bundles["video"], files.tensors("video_video")
    packed, _ = prompt(bundle, "video")
    newline: Any = bundle.model.base.model.image_newline
    with torch.no_grad():
        newline[0] += 1e-3
        embeds = bundle.model.embed(packed, torch.zeros(8, 196, 80))
        newline[0] -= 1e-3
    _, dot = digests(embeds[0, packed.newline_at[0]])
    assert largest(dot, g["inputs_embeds_dot"][g["newline_positions"].long()]) > DOT
