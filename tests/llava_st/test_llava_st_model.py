"""The model on a tiny checkpoint: packer windows, slots, modes, stock generate, growing from a base."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tubelet.errors import ModelError, QueryError, VideoError
from tubelet.llava_st.config import LlavaSTConfig, PackerConfig
from tubelet.llava_st.constrain import GRAMMARS, grammar_for
from tubelet.llava_st.coordinates import Variables, Worded, box_words, join, span_words
from tubelet.llava_st.generate import generate, read_frames, read_nothing, read_pixels
from tubelet.llava_st.grow import grow
from tubelet.llava_st.model import Visual
from tubelet.llava_st.packer import Packer, PackerBlock, centres
from tubelet.llava_st.pixels import to_pixels
from tubelet.llava_st.prompts import prompt_ids, question

# --- packer ------------------------------------------------------------------------------------------


def block_by_hand(block: PackerBlock, tokens: torch.Tensor) -> torch.Tensor:
    """Window by window, with torch's own multi-head attention."""
    (a, b, c), size = block.window, tokens.shape[:3]
    attention = torch.nn.MultiheadAttention(block.in_weight.shape[1], block.heads, batch_first=True)
    attention.load_state_dict(
        {
            "in_proj_weight": block.in_weight,
            "in_proj_bias": block.in_bias,
            "out_proj.weight": block.out.weight,
            "out_proj.bias": block.out.bias,
        }
    )
    out = torch.empty(*(-(-n // k) for n, k in zip(size, block.window, strict=True)), tokens.shape[-1])
    for t in range(out.shape[0]):
        for h in range(out.shape[1]):
            for w in range(out.shape[2]):
                window = tokens[t * a : t * a + a, h * b : h * b + b, w * c : w * c + c]
                middle = [[(n - 1) // 2, n // 2] for n in window.shape[:3]]
                seed = window[middle[0]][:, middle[1]][:, :, middle[2]].mean((0, 1, 2))
                keys = window.reshape(1, -1, window.shape[-1])
                query = block.query_norm(block.query(seed))[None, None]
                read, _ = attention(
                    query, block.key_norm(block.key(keys)), block.value_norm(block.value(keys))
                )
                out[t, h, w] = seed + block.to_tokens(read[0, 0])
    return out


@pytest.mark.parametrize(
    ("size", "window"),
    [
        ((2, 6, 6), (1, 3, 3)),
        ((3, 8, 8), (1, 3, 3)),  # 8 = 3 + 3 + 2
        ((2, 8, 8), (1, 2, 2)),  # no middle token: the mean of four
        ((2, 5, 7), (1, 3, 2)),
        ((11, 2, 2), (5, 1, 1)),
        ((1, 2, 2), (5, 1, 1)),
        ((6, 3, 3), (4, 2, 2)),
    ],
)
def test_a_packer_block_is_attention_in_windows(
    size: tuple[int, int, int], window: tuple[int, int, int]
) -> None:
    torch.manual_seed(0)
    block = PackerBlock(12, 8, 2, window)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    tokens = torch.randn(*size, 12)
    with torch.no_grad():
        ours = block(tokens)
        torch.testing.assert_close(ours, block_by_hand(block, tokens), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(block(tokens, chunk=1), ours)
        torch.testing.assert_close(block(tokens, chunk=window[0] + 1), ours)


def test_packer_gradients_reach_every_parameter() -> None:
    torch.manual_seed(0)
    packer = Packer(12, PackerConfig(width=8, heads=2))
    base = packer.space(torch.randn(6, 6, 6, 12))
    (packer.slow(base).square().sum() + packer.fast(base).square().sum()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in packer.parameters())
    assert float(packer.space.key[0].weight.grad.norm()) > 0
    assert packer.slow_tokens(6, 6, 6) == 2 * 4 and packer.fast_tokens(6, 6, 6) == 6 * 1
    assert (packer.slow_tokens(100, 27, 27), packer.fast_tokens(100, 27, 27)) == (1620, 900)
    with pytest.raises(ModelError, match="frames, rows, columns"):
        packer.space(torch.randn(6, 36, 12))


def test_an_odd_window_s_centre_is_what_linear_downsampling_takes() -> None:
    x = torch.randn(2, 27, 27, 3)
    small = F.interpolate(x.permute(0, 3, 1, 2), size=(9, 9), mode="bilinear").permute(0, 2, 3, 1)
    torch.testing.assert_close(centres(x, (1, 3, 3)), small)
    even = F.interpolate(x[:, :8, :8].permute(0, 3, 1, 2), size=(4, 4), mode="bilinear").permute(0, 2, 3, 1)
    torch.testing.assert_close(centres(x[:, :8, :8], (1, 2, 2)), even)


# --- prompts and pictures ----------------------------------------------------------------------------


def pixels(bundle: Any, frames: int, seed: int = 0) -> torch.Tensor:
    size = bundle.model.image_size
    return torch.randn(frames, 3, size, size, generator=torch.Generator().manual_seed(seed))


def asked(bundle: Any, text: Worded | str, frames: int | None) -> tuple[torch.Tensor, Variables]:
    prompt = prompt_ids(bundle.tokenizer, bundle.words, text, bundle.model.counts(frames))
    return torch.tensor([prompt.ids]), prompt.variables


@pytest.mark.parametrize("frames", [1, 2, 7, 13])
def test_any_frame_count(small: Any, frames: int) -> None:
    counts = small.model.counts(frames)
    with torch.no_grad():
        visual = small.model.encode_video(pixels(small, frames))
        chunked = small.model.encode_video(pixels(small, frames), chunk=3)
        uniform = torch.linspace(0, 1, frames, dtype=torch.float64)
        placed = small.model.encode_video(pixels(small, frames), uniform)
        ids, variables = asked(small, "what?", frames)
        embeds = small.model.embed(ids, [visual], [variables])
    assert (len(visual.fast), len(visual.slow)) == (counts.fast, counts.slow) == (frames, -(-frames // 5) * 4)
    for a, b, c in ((visual.slow, chunked.slow, placed.slow), (visual.fast, chunked.fast, placed.fast)):
        torch.testing.assert_close(a, b)
        torch.testing.assert_close(a, c, atol=1e-5, rtol=1e-4)
    start = ids[0].tolist().index(small.words.fast.start)
    torch.testing.assert_close(embeds[0, start : start + counts.fast], visual.fast)


def test_modes_differ_in_two_things(small: Any) -> None:
    """The fast stream, and inputs of x."""
    box = box_words((0.1, 0.2, 0.5, 0.9))
    text = join("what is in ", box, " during ", span_words(0.25, 0.5), "?")
    model = copy.copy(small.model)
    frames = pixels(small, 100)
    embeds = {}
    with torch.no_grad():
        for mode in ("official", "fast_fixed", "width_fixed", "fixed"):
            model.config = replace(small.config, mode=mode)
            ids, variables = asked(small, text, 100)
            embeds[mode] = model.embed(ids, [model.encode_video(frames)], [variables])[0]
    row = ids[0]
    fast_at = row.tolist().index(small.words.fast.start)
    fast = torch.zeros(len(row), dtype=torch.bool)
    fast[fast_at : fast_at + model.counts(100).fast] = True
    width = row == small.words.placeholders["WIDTH", "INPUT"]
    assert int(width.sum()) == 2
    for mode, changed in (("fast_fixed", fast), ("width_fixed", width), ("fixed", fast | width)):
        differs = (embeds[mode] != embeds["official"]).any(1)
        assert torch.equal(differs, changed), mode
    plain = small.model.embeddings[row]
    assert torch.equal(embeds["official"][fast | width], plain[fast | width])
    height = row == small.words.placeholders["HEIGHT", "INPUT"]
    first = small.config.first_anchor(1)
    table = small.model.embeddings[first : first + 100]
    exact = 0.2 * 99
    wanted = table[19] * (20 - exact) + table[20] * (exact - 19)
    torch.testing.assert_close(embeds["official"][height][0], wanted, atol=1e-5, rtol=1e-4)


def test_literal_anchors_are_rows_of_the_tables(small: Any) -> None:
    ids, variables = asked(small, "at <TEMP-012>?", None)
    with torch.no_grad():
        visual = small.model.encode_image(pixels(small, 1))
        embeds = small.model.embed(ids, [visual], [variables])[0]
    at = ids[0].tolist().index(small.config.vocabulary + 12)
    assert torch.equal(embeds[at], small.model.embeddings[small.config.vocabulary + 12])


def test_official_mode_takes_its_frame_count_only(small: Any) -> None:
    model = copy.copy(small.model)
    model.config = replace(small.config, mode="official")
    with pytest.raises(ModelError, match="exactly 100 frames, got 16"):
        model.encode_video(pixels(small, 16))
    with pytest.raises(ModelError, match="at least one frame"):
        small.model.counts(0)
    with pytest.raises(ModelError, match=r"\(frames, 3, 84, 84\)"):
        small.model.encode_video(torch.zeros(2, 3, 64, 64))
    with pytest.raises(ModelError, match="one image per sample"):
        small.model.encode_image(pixels(small, 2))


def test_pictures_and_prompts_must_fit(small: Any) -> None:
    ids, variables = asked(small, "what?", 7)
    with torch.no_grad():
        other = small.model.encode_video(pixels(small, 8))
        image = small.model.encode_image(pixels(small, 1))
        right = small.model.encode_video(pixels(small, 7))
        with pytest.raises(QueryError, match="made for other frame counts"):
            small.model.embed(ids, [other], [variables])
        for wrong in (None, image, Visual()):
            with pytest.raises(QueryError, match="one image or one video per prompt"):
                small.model.embed(ids, [wrong], [variables])
        with pytest.raises(QueryError, match="one image or one video per prompt"):
            small.model.embed(torch.cat([ids, ids], 1), [right], [variables])
        with pytest.raises(QueryError, match="need as many pictures"):
            small.model.embed(ids, [right, right], [variables])


def test_more_placeholders_than_values(small: Any) -> None:
    """Width inputs are counted too, also where the mode does not read them."""
    text = box_words((0.1, 0.2, 0.5, 0.9))
    ids, _ = asked(small, text, None)
    for mode in ("official", "fixed"):
        model = copy.copy(small.model)
        model.config = replace(small.config, mode=mode)
        short = Variables((), (), (0.2, 0.9), (), (0.1,), ())
        with torch.no_grad():
            visual = model.encode_image(pixels(small, 1))
            for values in (short, None):
                with pytest.raises(QueryError, match="give one value per placeholder"):
                    model.embed(ids, [visual], [values])


def test_text_only_and_mixed_batches(small: Any) -> None:
    """Rows with a video, an image and no picture side by side are what they are alone."""
    model, counts = small.model, (small.model.counts(7), small.model.counts(None), None)
    with torch.no_grad():
        visuals = [model.encode_video(pixels(small, 7)), model.encode_image(pixels(small, 1)), None]
        prompts = [prompt_ids(small.tokenizer, small.words, "hello there", c) for c in counts]
        longest = max(len(p.ids) for p in prompts)
        ids = torch.tensor([[*p.ids, *[0] * (longest - len(p.ids))] for p in prompts])
        mask = torch.tensor([[1] * len(p.ids) + [0] * (longest - len(p.ids)) for p in prompts])
        together = model(ids, visuals, [p.variables for p in prompts], mask)
        for row, (prompt, visual) in enumerate(zip(prompts, visuals, strict=True)):
            alone = model(torch.tensor([prompt.ids]), [visual], [prompt.variables])
            torch.testing.assert_close(together[row, : len(prompt.ids)], alone[0], atol=2e-5, rtol=1e-4)


# --- generation --------------------------------------------------------------------------------------


def test_answers_equal_stock_generate(small: Any) -> None:
    """Shared prefix, side by side, against one full prompt through transformers' generate."""
    texts = [
        "what?",
        join("where is the man ", span_words(0.25, 0.5), " now, and what of him?"),
        "when the video",
    ]
    read = read_pixels(small, pixels(small, 7))
    ours = generate(small, read, texts, max_new_tokens=10)
    penalised = generate(small, read, texts, max_new_tokens=10, repetition_penalty=1.3)
    with torch.no_grad():
        visual = small.model.encode_video(pixels(small, 7))
        for row, text in enumerate(texts):
            ids, variables = asked(small, text, 7)
            embeds = small.model.embed(ids, [visual], [variables])
            for answers, penalty in ((ours, 1.0), (penalised, 1.3)):
                stock = small.model.llm.generate(
                    inputs_embeds=embeds,
                    attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long),
                    do_sample=False,
                    max_new_tokens=10,
                    repetition_penalty=penalty,
                    eos_token_id=small.words.turn_end,
                    pad_token_id=0,
                )[0].tolist()
                assert list(answers[row].ids) == [k for k in stock if k != small.words.turn_end]
    assert len({answer.ids for answer in ours}) == 3


def test_a_static_cache_works_too(small: Any) -> None:
    ids, variables = asked(small, "what?", None)
    with torch.no_grad():
        embeds = small.model.embed(ids, [small.model.encode_image(pixels(small, 1))], [variables])
        texts = [
            small.model.llm.generate(
                inputs_embeds=embeds,
                attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long),
                do_sample=False,
                max_new_tokens=6,
                cache_implementation=kind,
                pad_token_id=0,
            ).tolist()
            for kind in ("dynamic", "static")
        ]
    assert texts[0] == texts[1]


def test_sampling_is_seeded(small: Any) -> None:
    read = read_pixels(small, pixels(small, 7))
    one, again, other = (
        generate(small, read, ["what?"], max_new_tokens=8, temperature=2.0, seed=seed)[0].ids
        for seed in (1, 1, 2)
    )
    assert one == again and one != other


def test_constrained_answers_of_a_random_model_parse(small: Any) -> None:
    from tubelet.llava_st.answers import parse_answer

    read = read_frames(small, np.random.default_rng(0).integers(0, 255, (6, 30, 40, 3), dtype=np.uint8))
    tasks = ("stvg", "tvg", "svg", "elc", "qa")
    asks = [
        question("stvg", "the man"),
        question("tvg", "The man."),
        question("svg", "the man", span=(0.1, 0.7)),
        question("elc", start=0.2, box=(0.1, 0.1, 0.4, 0.5)),
        question("qa", "who?"),
    ]
    grammars = [grammar_for(task, 100, span=(10, 69) if task == "svg" else None) for task in tasks]
    for temperature in (0.0, 5.0):
        answers = generate(small, read, asks, grammars, max_new_tokens=40, temperature=temperature)
        for task, answer in zip(tasks, answers, strict=True):
            assert parse_answer(answer.text, task).problems == (), (task, answer.text)
    free = generate(small, read, ["what?", asks[1]], [None, GRAMMARS["tvg"]], max_new_tokens=12)
    assert free[0].ids == generate(small, read, ["what?"], max_new_tokens=12)[0].ids


def test_text_only_questions(small: Any) -> None:
    read = read_nothing(small)
    (answer,) = generate(small, read, ["hello?"], max_new_tokens=4)
    assert len(answer.ids) <= 4 and read.visual is None
    assert generate(small, read, [], max_new_tokens=4) == []
    with pytest.raises(QueryError, match="max_new_tokens is at least 1"):
        generate(small, read, ["hello?"], max_new_tokens=0)
    with pytest.raises(QueryError, match="one grammar per question"):
        generate(small, read, ["hello?"], [GRAMMARS["tvg"]] * 2, max_new_tokens=30)


def test_pixels_are_a_plain_square() -> None:
    frame = np.zeros((1, 40, 20, 3), dtype=np.uint8)
    frame[:, :20] = 255
    out = to_pixels(frame, 8, (0.5,) * 3, (0.5,) * 3)
    assert out.shape == (1, 3, 8, 8)
    assert out[0, :, :3].min() > 0.95 and out[0, :, 5:].max() < -0.95
    exact = to_pixels(np.full((1, 8, 8, 3), 51, np.uint8), 8, (0.5,) * 3, (0.5,) * 3)
    assert torch.allclose(exact, torch.tensor((0.2 - 0.5) / 0.5))
    with pytest.raises(VideoError, match="uint8"):
        to_pixels(np.zeros((1, 8, 8, 3)), 8, (0.5,) * 3, (0.5,) * 3)  # type: ignore[arg-type]


# --- growing -----------------------------------------------------------------------------------------


def test_growing_from_a_base(new_tiny: Callable[..., Any]) -> None:
    """The base's parts keep their numbers; new words start as the mean, both matrices get tables."""
    start = new_tiny(queries=False, trained_scale=True)
    base, tokenizer = start.model.base, start.tokenizer
    config = LlavaSTConfig(
        frames=6, prompts="brief", packer=PackerConfig(width=16, heads=2, space=2, fast=2, time=3)
    )
    known = len(tokenizer)
    grown = grow(base, tokenizer, config)
    model = grown.model
    assert len(tokenizer) == known and model.config.mode == "fixed"
    assert model.embeddings.shape[0] == model.head.shape[0] == grown.config.rows == known + 14 + 300
    assert torch.equal(model.embeddings[:known], base.get_input_embeddings().weight[:known])
    torch.testing.assert_close(model.embeddings[known], model.embeddings[:known].mean(0))
    images = torch.randn(2, 3, model.image_size, model.image_size)
    with torch.no_grad():
        features = base.model.get_image_features(
            images[None], torch.tensor([[model.image_size, model.image_size]]), return_dict=True
        ).pooler_output[0]
        ours = model.projector(model.tower(images[:1])).flatten(0, 2)
        read = read_pixels(grown, torch.randn(6, 3, model.image_size, model.image_size))
    torch.testing.assert_close(ours, features[: len(ours)])
    counts = model.counts(6)
    side = model.grid // 2
    assert (counts.slow, counts.fast) == (2 * side**2, 6 * (-(-side // 2)) ** 2)
    (answer,) = generate(grown, read, [question("tvg", "red circle", style="brief")], [GRAMMARS["tvg"]], 20)
    assert "{" in answer.text


def test_growing_needs_parts_that_fit(new_tiny: Callable[..., Any]) -> None:
    start = new_tiny(queries=False)
    base = copy.copy(start.model.base)
    base.config = copy.deepcopy(base.config)
    base.config.projector_hidden_act = "relu"
    with pytest.raises(ModelError, match="gelu projector"):
        grow(base, start.tokenizer)


# --- settings ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "better"}, "official, fast_fixed"),
        ({"prompts": "long"}, "official or brief"),
        ({"bins": 1}, "at least 2"),
        ({"repetition_penalty": 0.0}, "above 0"),
        ({"packer": {"heads": 3}}, "not a multiple"),
        ({"packer": {"space": 0}}, "at least 1"),
        ({"packer": 5}, "must hold fields"),
        ({"colour": "red", "packer": {"depth": 3}}, "colour, packer.depth"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        LlavaSTConfig.from_dict(settings)


def test_settings_round_trip() -> None:
    config = LlavaSTConfig(
        "width_fixed", 285, 100, 50, 2, True, "brief", 1.1, "x", PackerConfig(16, 2, 2, 2, 4)
    )
    assert LlavaSTConfig.from_dict(config.to_dict()) == config
