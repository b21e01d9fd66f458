"""Every family, on a tiny checkpoint in the hub's layout: layout, rows, packing, roles, gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tiny_checkpoints import FAMILIES, clip, clip_for, stock_inputs

from tubelet.errors import QueryError
from tubelet.frames import Clip
from tubelet.mllm.parts import PromptLayout, RowSpec

QUESTION = "Is there the man in purple clothes in this video?"
OTHERS = ("please describe this video", "Is there a man who sits down in this video?", "the red one.")

every_family = pytest.mark.parametrize("family", FAMILIES)


def _stock(pair: Any, video: Clip, text: str) -> Any:
    """What transformers' own processor and forward make of it, with eager maps."""
    inputs = stock_inputs(pair.mllm.processor, pair.family, video, text)
    with torch.no_grad():
        return pair.stock(**inputs, output_attentions=True)


@every_family
def test_layout_is_what_the_processor_makes(family: str, pair_of: Callable[..., Any]) -> None:
    mllm, video = pair_of(family).mllm, clip_for(family)
    visual = mllm.encode(video)
    layout = mllm.prompt(visual, QUESTION)
    inputs = stock_inputs(mllm.processor, family, video, QUESTION)
    assert layout.input_ids.tolist() == inputs["input_ids"][0].tolist()

    grid, named = visual.grid, mllm.capabilities
    assert len(layout.visual) == grid.n_cells == np.prod(grid.shape) == len(layout.tyx)
    assert len(layout.trailing) == named.trailing_tokens
    placeholder = "<IMG_CONTEXT>" if family == "internvl" else mllm.processor.video_token
    where = np.concatenate([layout.visual, layout.trailing])
    assert {mllm.tokenizer.decode([at]) for at in layout.input_ids[where]} == {placeholder}
    assert (layout.input_ids == layout.input_ids[where[0]]).sum() == len(where)
    assert np.array_equal(np.ravel_multi_index(tuple(layout.tyx.T), grid.shape), np.arange(grid.n_cells))
    assert layout.position_ids.shape == (named.position_axes, len(layout))
    assert (np.diff(layout.visual).max() == 1) == named.contiguous
    if named.grid is not None:
        assert named.grid == grid.shape[1:] and named.tokens_per_step == grid.n_rows * grid.n_columns
    assert grid.n_steps == -(-len(video) // named.frames_per_step)
    assert mllm.grid_of(video).shape == grid.shape


@every_family
def test_role_suffix_and_candidates(family: str, pair_of: Callable[..., Any]) -> None:
    mllm = pair_of(family).mllm
    grid = mllm.grid_of(clip_for(family))
    texts = (QUESTION, "the one", "a few?", "assistant", "there is one.", OTHERS[0])
    layouts = [mllm.prompt(grid, text) for text in texts]
    assistant = {"llava_next_video": "ASSISTANT:", "llava_onevision": "<|im_end|><|im_start|>assistant\n"}
    expected = assistant.get(family, "<|im_end|>\n<|im_start|>assistant\n")
    for text, layout in zip(texts, layouts, strict=True):
        assert mllm.tokenizer.decode(layout.input_ids[layout.role]).strip(" ") == expected
        assert layout.candidates[0] == layout.role[0] - 1 and layout.candidates[-1] == len(layout) - 1
        assert mllm.tokenizer.decode([layout.input_ids[layout.candidates[0]]]).strip()[-1:] == text[-1]
        assert RowSpec().offsets(layout) == RowSpec().offsets(layouts[0])
        assert RowSpec("role").offsets(layout) == RowSpec().offsets(layout)[1:]


@every_family
def test_rows_and_logits_equal_the_stock_forward(family: str, pair_of: Callable[..., Any]) -> None:
    """One packed forward after a cached prefix, against transformers' own whole forward with eager maps."""
    pair = pair_of(family)
    mllm, video = pair.mllm, clip_for(family)
    visual = mllm.encode(video, chunk_frames=2)
    prefix = mllm.prefix(visual)
    texts = (QUESTION, *OTHERS)
    readings = mllm.ask(prefix, [mllm.prompt(visual, text) for text in texts], rows=RowSpec())
    kept = mllm.ask(prefix, [mllm.prompt(visual, QUESTION)], rows=RowSpec("role", (-1, 0), per_layer=True))[0]
    for text, reading in zip(texts, readings, strict=True):
        layout: PromptLayout = mllm.prompt(visual, text)
        out = _stock(pair, video, text)
        maps = torch.stack(out.attentions)[:, 0]  # (L, H, N, N)
        at, cells = torch.from_numpy(layout.candidates), torch.from_numpy(layout.visual)
        want = maps.mean((0, 1))[at][:, cells].unflatten(-1, visual.grid.shape)
        assert want.max() > 2.5 / len(layout)  # far from uniform
        assert torch.allclose(reading.rows, want, atol=1e-6, rtol=0), (reading.rows - want).abs().max()
        assert torch.allclose(reading.logits, out.logits[0, -1], atol=2e-5)
        assert reading.offsets == tuple(at - len(layout) for at in layout.candidates)
        if text == QUESTION:
            chosen = maps[[-1, 0]].mean(1)[:, at[1:]][:, :, cells].unflatten(-1, visual.grid.shape)
            assert torch.allclose(kept.rows, chosen, atol=1e-6, rtol=0)


@every_family
def test_packed_equals_separate_and_the_prefix_stays(family: str, pair_of: Callable[..., Any]) -> None:
    mllm = pair_of(family).mllm
    visual = mllm.encode(clip_for(family))
    prefix = mllm.prefix(visual)
    prompts = [mllm.prompt(visual, text) for text in (QUESTION, *OTHERS)]
    spec = RowSpec(layers=(1, 2))
    packed = mllm.ask(prefix, prompts, rows=spec, token_ids=[7, 30])
    for prompt, together in zip(prompts, packed, strict=True):
        alone = mllm.ask(mllm.prefix(visual), [prompt], rows=spec)[0]
        assert torch.allclose(together.rows, alone.rows, atol=1e-6)
        assert torch.allclose(together.logits, alone.logits[[7, 30]], atol=1e-5)
    again = mllm.ask(prefix, prompts, rows=spec, token_ids=[7, 30])
    assert all(torch.equal(a.rows, b.rows) for a, b in zip(packed, again, strict=True))
    assert prefix.cache.get_seq_length() == len(prefix)


@every_family
def test_layers_that_nobody_reads_are_not_run(family: str, pair_of: Callable[..., Any]) -> None:
    """Rows of early layers from a prefix of these layers: the same rows; and what such a prefix cannot answer."""
    mllm = pair_of(family).mllm
    visual = mllm.encode(clip_for(family))
    prompts = [mllm.prompt(visual, text) for text in (QUESTION, OTHERS[0])]
    whole, first = mllm.prefix(visual), mllm.prefix(visual, n_layers=1)
    n_layers = mllm.capabilities.n_layers
    assert n_layers > 1 and (whole.n_layers, first.n_layers) == (n_layers, 1)
    layers = mllm.model.model.language_model.layers
    finished: list[int] = []
    hooks = [
        layer.register_forward_hook(lambda *_, at=at: finished.append(at)) for at, layer in enumerate(layers)
    ]
    try:
        spec = RowSpec(layers=(0,))
        short = mllm.ask(first, prompts, spec, logits=False)
        assert not finished
        stopped = mllm.ask(whole, prompts, spec, logits=False)
        assert not finished
        mllm.prefix(visual)
        assert finished == list(range(n_layers - 1))
        finished.clear()
        full = mllm.ask(whole, prompts, spec)
        assert finished == list(range(n_layers))
    finally:
        for hook in hooks:
            hook.remove()
    for a, b, c in zip(short, stopped, full, strict=True):
        assert a.logits is None and b.logits is None and c.logits is not None
        assert torch.equal(a.rows, b.rows) and torch.allclose(b.rows, c.rows, rtol=0, atol=1e-7)
    with pytest.raises(QueryError, match=f"holds 1 of {n_layers} layers"):
        mllm.ask(first, prompts)
    with pytest.raises(QueryError, match="layer 1 is to be read" if n_layers == 2 else "is to be read"):
        mllm.ask(first, prompts, RowSpec(), logits=False)
    with pytest.raises(QueryError, match="some of the layers"):
        mllm.write(QUESTION, 2, first)
    with pytest.raises(QueryError, match="n_layers is 1 to"):
        mllm.prefix(visual, n_layers=n_layers + 1)
    assert [r.rows for r in mllm.ask(first, prompts, logits=False)] == [None, None]


@every_family
def test_gradients_reach_the_visual_tokens(family: str, pair_of: Callable[..., Any]) -> None:
    """d(yes - no) and d(rows) with respect to an additive prompt, packed and cached, against one whole eager pass."""
    pair = pair_of(family)
    mllm = pair.mllm
    visual = mllm.encode(clip_for(family))
    prompts = [mllm.prompt(visual, text) for text in (QUESTION, OTHERS[0])]
    yes, no = 20, 40

    delta = torch.zeros(visual.grid.n_tokens, visual.tokens.shape[1], requires_grad=True)
    readings = mllm.ask(mllm.prefix(visual, delta), prompts, rows=RowSpec("last"), token_ids=[yes, no])
    margin = [reading.logits[0] - reading.logits[1] for reading in readings]
    (margin[0] - margin[1] + 50 * readings[0].rows.square().sum()).backward()

    whole = torch.zeros_like(delta, requires_grad=True)
    scores = []
    for prompt in prompts:
        where = torch.from_numpy(np.concatenate([prompt.visual, prompt.trailing]))
        embeds = pair.stock.get_input_embeddings()(torch.from_numpy(prompt.input_ids)).detach()
        embeds = embeds.index_copy(0, where, visual.tokens + whole)
        positions = torch.from_numpy(prompt.position_ids)
        extra: dict[str, Any] = {}
        if visual.deepstack:
            extra["visual_pos_masks"] = torch.from_numpy(np.isin(np.arange(len(prompt)), prompt.visual))[None]
            extra["deepstack_visual_embeds"] = list(visual.deepstack)
        out = pair.stock.model.language_model(
            inputs_embeds=embeds[None],
            position_ids=positions if len(positions) == 1 else positions[:, None],
            output_attentions=True,
            **extra,
        )
        logits = pair.stock.lm_head(out.last_hidden_state[0, -1])
        scores.append(
            (logits[yes] - logits[no], torch.stack(out.attentions).mean((0, 2))[0, -1, prompt.visual])
        )
    (scores[0][0] - scores[1][0] + 50 * scores[0][1].square().sum()).backward()
    assert whole.grad is not None and delta.grad is not None
    assert float(whole.grad.norm()) > 1e-3
    error = (delta.grad - whole.grad).norm() / whole.grad.norm()
    assert float(error) < 1e-4, float(error)
    assert all(not parameter.requires_grad for parameter in mllm.model.parameters())


@every_family
def test_cells_lie_where_their_pixels_are(family: str, pair_of: Callable[..., Any]) -> None:
    """Changing the pixels inside one cell changes that cell's token most."""
    mllm = pair_of(family).mllm
    video = clip_for(family, n=4, seed=1)
    before = mllm.encode(video)
    grid = before.grid
    rng = np.random.default_rng(2)
    height, width = video.pixels.shape[1:3]
    for _ in range(6):
        t, y, x = (int(rng.integers(0, n)) for n in grid.shape)
        pixels = video.pixels.copy()
        rows = slice(round(height * (y + 0.1) / grid.n_rows), round(height * (y + 0.9) / grid.n_rows))
        columns = slice(round(width * (x + 0.1) / grid.n_columns), round(width * (x + 0.9) / grid.n_columns))
        pixels[grid.frames[t], rows, columns] = 255 - pixels[grid.frames[t], rows, columns]
        after = mllm.encode(Clip(pixels, video.grid))
        changed = (after.tokens - before.tokens).norm(dim=1)[: grid.n_cells]
        assert np.unravel_index(int(changed.argmax()), grid.shape) == (t, y, x)


@every_family
def test_backwards(family: str, pair_of: Callable[..., Any]) -> None:
    """Flipping tokens equals encoding the reversed frames where a step is one frame; twice is the identity."""
    mllm, video = pair_of(family).mllm, clip_for(family, n=4)
    visual = mllm.encode(video, one_frame_per_step=True)
    assert visual.grid.n_steps == len(video) and visual.grid.one_frame_per_step
    assert np.allclose(visual.grid.times_s, video.grid.times_s)
    backwards = mllm.encode(Clip(video.pixels[::-1].copy(), video.grid), one_frame_per_step=True)
    flipped = visual.flipped()
    assert torch.allclose(flipped.tokens, backwards.tokens, atol=1e-5)
    assert not torch.allclose(flipped.tokens, visual.tokens, atol=1e-2)
    assert len(flipped.deepstack) == mllm.capabilities.deepstack_layers
    for ours, theirs in zip(flipped.deepstack, backwards.deepstack, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)
    assert torch.equal(flipped.flipped().tokens, visual.tokens)
    assert torch.equal(visual.grid.flip(visual.grid.flip(visual.tokens)), visual.tokens)


@every_family
def test_answers_are_those_of_generate(family: str, pair_of: Callable[..., Any]) -> None:
    pair = pair_of(family)
    mllm, video = pair.mllm, clip_for(family)
    visual = mllm.encode(video)
    inputs = stock_inputs(mllm.processor, family, video, QUESTION)
    made = pair.stock.generate(**inputs, max_new_tokens=6, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    want = mllm.tokenizer.decode(made, skip_special_tokens=True).strip()
    assert mllm.write(QUESTION, 6, mllm.prefix(visual)) == want

    rendered = mllm.processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "text", "text": QUESTION}]}],
        add_generation_prompt=True,
        tokenize=False,
    )
    alone = mllm.tokenizer(rendered, return_tensors="pt")["input_ids"]
    text = pair.stock.generate(input_ids=alone, max_new_tokens=6, do_sample=False)[0, alone.shape[1] :]
    assert mllm.write(QUESTION, 6) == mllm.tokenizer.decode(text, skip_special_tokens=True).strip()


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"])
def test_wide_and_odd_clips(family: str, pair_of: Callable[..., Any]) -> None:
    """Frames keep their shape; one frame, and frames that do not divide into steps, are read."""
    mllm = pair_of(family).mllm
    wide = mllm.grid_of(clip(3, 24, 80))
    assert wide.n_columns > 2 * wide.n_rows
    assert wide.frames.tolist() == [[0, 1], [2, 2]] and np.allclose(wide.times_s, [0.25, 1.0])
    image = mllm.encode(clip(1, 40, 40))
    assert image.grid.shape[0] == 1 and len(image.tokens) == image.grid.n_tokens
    reading = mllm.ask(mllm.prefix(image), [mllm.prompt(image, QUESTION)], rows=RowSpec("last"))[0]
    assert reading.rows.shape == (1, *image.grid.shape) and 0 < float(reading.rows.sum()) < 1
