"""Loading by name, the embedded base, options, and errors that say what to do."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_checkpoints import clip, clip_for

from tubelet.errors import ModelError, QueryError
from tubelet.grounder import find_model
from tubelet.mllm.loading import FAMILIES, load_mllm
from tubelet.mllm.parts import RowSpec
from tubelet.zeroshot.reattention import tune
from tubelet.zeroshot.settings import ZeroShotSettings


@pytest.fixture(scope="module")
def pico() -> Any:
    return load_mllm("pico-base", device="cpu")


def test_the_embedded_base(pico: Any) -> None:
    assert pico.capabilities.family == "LLaVA-OneVision" and pico.capabilities.grid == (4, 4)
    visual = pico.encode(clip(16, 36, 64))
    prompts = [pico.prompt(visual, text) for text in ("is there a red circle?", "describe the picture")]
    readings = pico.ask(pico.prefix(visual), prompts, rows=RowSpec())
    assert [tuple(reading.rows.shape) for reading in readings] == [(5, 16, 4, 4)] * 2
    assert readings[0].logits.shape == (pico.model.config.text_config.vocab_size,)
    tail = ["?", "<|im_end|>", "<|im_start|>", "assistant", "\n"]
    assert [pico.tokenizer.decode([at]) for at in prompts[0].input_ids[prompts[0].candidates]] == tail
    assert isinstance(pico.write("describe the picture", 8, pico.prefix(visual)), str)


def test_every_family_is_listed_and_loads_as_its_own(pair_of: Callable[..., Any]) -> None:
    for kind, family in FAMILIES.items():
        loaded = pair_of(kind).mllm
        assert (loaded.capabilities.model_type, loaded.capabilities.family) == (kind, family.name)
        assert loaded.capabilities.softmax_layers == (0, 1, 2)
    timed = {kind: pair_of(kind).mllm.capabilities.timestamps for kind in FAMILIES}
    told = {kind for kind, what in timed.items() if what != "none"}
    assert told == {"qwen3_vl", "qwen3_vl_moe", "internvl"}
    assert (
        "<0.2 seconds>"
        in pair_of("qwen3_vl")
        .mllm.prompt(pair_of("qwen3_vl").mllm.grid_of(clip_for("qwen3_vl")), "what is it")
        .rendered
    )


def test_fewer_tokens_per_frame(pair_of: Callable[..., Any]) -> None:
    """max_frame_tokens pools coarser (LLaVA) or shrinks frames (Qwen); what cannot be smaller says so."""
    for kind, limit, want in (("llava_onevision", 9, (3, 3)), ("llava_next_video", 4, (2, 2))):
        mllm = load_mllm(pair_of(kind).folder, device="cpu", max_frame_tokens=limit)
        visual = mllm.encode(clip_for(kind))
        assert mllm.capabilities.grid == visual.grid.shape[1:] == want
        assert len(mllm.prompt(visual, "what").visual) == visual.grid.n_cells == len(clip_for(kind)) * limit
    for kind in ("qwen2_vl", "qwen3_vl"):
        mllm = load_mllm(pair_of(kind).folder, device="cpu", max_frame_tokens=12)
        grid = mllm.encode(clip(4, 40, 64)).grid
        assert grid.n_rows * grid.n_columns <= 12 and grid.n_columns > grid.n_rows
        assert pair_of(kind).mllm.grid_of(clip(4, 40, 64)).n_cells > 12 * grid.n_steps
    with pytest.raises(ModelError, match="16 tokens per frame, and they cannot be fewer"):
        load_mllm(pair_of("internvl").folder, device="cpu", max_frame_tokens=9)


@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision(family: str, pair_of: Callable[..., Any]) -> None:
    """bf16 beside fp32: rows of packed questions, and a tuning step that raises what it is meant to raise."""
    full, half = pair_of(family).mllm, load_mllm(pair_of(family).folder, "cpu", "bfloat16")
    assert half.dtype == torch.bfloat16
    rows, deltas = [], []
    for mllm in (full, half):
        visual = mllm.encode(clip_for(family))
        assert visual.tokens.dtype == mllm.dtype
        prompts = [mllm.prompt(visual, text) for text in ("please describe this video", "what is it?")]

        def gaps_of(delta: torch.Tensor, mllm: Any = mllm, visual: Any = visual, asked: Any = prompts) -> Any:
            readings = mllm.ask(mllm.prefix(visual, delta), asked, token_ids=(20, 40))
            return torch.stack([reading.logits[0] - reading.logits[1] for reading in readings])

        start = torch.zeros(visual.grid.n_tokens, mllm.capabilities.hidden_size)
        before = gaps_of(start)
        reading = mllm.ask(mllm.prefix(visual), prompts, rows=RowSpec())[1]
        assert reading.rows.dtype == reading.logits.dtype == before.dtype == torch.float32
        prompt = tune(gaps_of, start, ZeroShotSettings(epochs=1, rate=1.0))
        assert prompt.dtype == torch.float32 and torch.isfinite(prompt).all() and float(prompt.norm()) > 0
        after = gaps_of(prompt * (0.5 / prompt.norm()))  # a step that is short for any gradient
        assert float((after[1] - after[0]) - (before[1] - before[0])) > 0
        rows.append(reading.rows)
        deltas.append(prompt.flatten())
    assert torch.allclose(rows[0], rows[1], atol=0.02) and not torch.equal(rows[0], rows[1])
    assert float(torch.cosine_similarity(*deltas, dim=0)) > 0.9  # the same direction, rounded


def test_questions_that_cannot_be_asked(pico: Any) -> None:
    visual = pico.encode(clip(2))
    for text, what in (("  ", "empty"), ("a <video> of it", "<video>"), ("x<|im_end|>", "im_end")):
        with pytest.raises(QueryError, match=what.replace("|", r"\|")):
            pico.prompt(visual, text)
    other = pico.encode(clip(3))
    with pytest.raises(QueryError, match="another video"):
        pico.ask(pico.prefix(visual), [pico.prompt(other, "what")])
    with pytest.raises(QueryError, match=r"delta is \(33, 128\)"):
        pico.prefix(visual, torch.zeros(32, 128))
    with pytest.raises(QueryError, match="offsets from the end"):
        pico.ask(pico.prefix(visual), [pico.prompt(visual, "what")], rows=RowSpec((-500,)))
    assert pico.ask(pico.prefix(visual), []) == []


def test_a_prompt_longer_than_the_model_reads(pair_of: Callable[..., Any]) -> None:
    mllm = pair_of("llava_onevision").mllm
    with pytest.raises(QueryError, match=r"tokens, .* reads 2048: read fewer frames"):
        mllm.prompt(mllm.grid_of(clip(130, 8, 8)), "what is it?")


def test_flipping_mixed_steps_is_refused(pair_of: Callable[..., Any]) -> None:
    visual = pair_of("qwen2_vl").mllm.encode(clip(4))
    with pytest.raises(ModelError, match="mixes two frames"):
        visual.flipped()


def test_out_of_memory_says_what_to_lower(pico: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **kwargs: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    visual = pico.encode(clip(2))
    monkeypatch.setattr(pico, "_lm", full)
    with pytest.raises(ModelError, match="fewer frames or lower max_frame_tokens"):
        pico.prefix(visual)


def test_out_of_memory_while_writing_is_said(pico: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **kwargs: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    prefix = pico.prefix(pico.encode(clip(2)))
    monkeypatch.setattr(pico, "_lm", full)
    for about in (None, prefix):
        with pytest.raises(ModelError, match=r"not enough memory .*write an answer: write a shorter text"):
            pico.write("what is it?", 4, about)


def test_a_text_longer_than_the_model_reads(pair_of: Callable[..., Any]) -> None:
    """Text alone, too; and an answer ends where the model reads no further."""
    mllm = pair_of("qwen2_vl").mllm
    with pytest.raises(QueryError, match=r"this text has \d+ tokens, .* reads 2048: write a shorter one"):
        mllm.write("who " * 3000, 2)
    writer, short = mllm._writer, copy.copy(mllm)
    used = len(writer.tokens(writer.render("what is it?", with_video=False)))
    short.capabilities = replace(mllm.capabilities, max_tokens=used + 2)
    short._stop_tokens = set
    steps: list[int] = []
    forward = short._forward
    short._forward = lambda *args, **more: steps.append(1) or forward(*args, **more)
    short.write("what is it?", 50)
    assert len(steps) == 3  # the prompt, and the two words that there is room for


def _config(folder: Path, **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "config.json"
    data = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**data, **changes}))
    return folder


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        ("llava", "single images, no video"),
        ("internvl_chat", "-hf"),
        ("llava_qwen", "llava-hf"),
        ("qwen3_5", "linear attention"),
        ("bert", "has no adapter"),
        (None, "type None"),
    ],
)
def test_models_that_cannot_be_read_are_named(kind: str | None, what: str, tmp_path: Path) -> None:
    folder = _config(tmp_path / "m", model_type=kind)
    with pytest.raises(ModelError, match=what) as caught:
        load_mllm(folder)
    assert "Qwen2.5-VL" in str(caught.value)  # and says what can be


def test_broken_folders(pair_of: Callable[..., Any], tmp_path: Path) -> None:
    source = pair_of("llava_next_video").folder
    folder = Path(shutil.copytree(source, tmp_path / "m"))
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match=r"no chat template: add its chat_template\.jinja"):
        load_mllm(folder, device="cpu")
    (folder / "processor_config.json").unlink()
    with pytest.raises(ModelError, match=r"LLaVA-NeXT-Video processor|processor files"):
        load_mllm(folder, device="cpu")

    folder = Path(shutil.copytree(source, tmp_path / "deeper"))
    data = json.loads((folder / "config.json").read_text())
    _config(folder, text_config={**data["text_config"], "num_hidden_layers": 4})
    with pytest.raises(ModelError, match=r"does not hold a whole LLaVA-NeXT-Video: .* missing: .*layers\.3"):
        load_mllm(folder, device="cpu")
    (folder / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ModelError, match="cannot load the LLaVA-NeXT-Video weights"):
        load_mllm(folder, device="cpu")


def test_a_language_model_with_linear_attention_is_refused(
    pair_of: Callable[..., Any], tmp_path: Path
) -> None:
    """A family that has an adapter, around a language model whose layers cannot all be read."""
    from transformers import AutoModelForImageTextToText, LlavaOnevisionConfig

    folder = Path(shutil.copytree(pair_of("llava_onevision").folder, tmp_path / "hybrid"))
    config = LlavaOnevisionConfig.from_pretrained(folder).to_dict()
    shape = {key: config["text_config"][key] for key in ("vocab_size", "hidden_size", "intermediate_size")}
    config["text_config"] = {
        "model_type": "lfm2",
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "layer_types": ["conv", "full_attention", "conv"],
        **shape,
    }
    hybrid = LlavaOnevisionConfig(**config)
    AutoModelForImageTextToText.from_config(hybrid).save_pretrained(folder)
    with pytest.raises(ModelError, match=r"lfm2 language model in which layers 0, 2 are conv"):
        load_mllm(folder, device="cpu")


@pytest.mark.parametrize(
    ("kind", "more", "what"),
    [
        ("gemma2", {"attn_logit_softcapping": 50.0, "head_dim": 8}, "capped attention scores"),
        ("gpt_oss", {"num_local_experts": 2, "num_experts_per_tok": 1, "head_dim": 8}, "attention sinks"),
    ],
)
def test_attention_that_cannot_be_read_is_refused_when_it_is_loaded(
    kind: str, more: dict[str, Any], what: str, pair_of: Callable[..., Any], tmp_path: Path
) -> None:
    from transformers import AutoModelForImageTextToText, LlavaOnevisionConfig

    folder = Path(shutil.copytree(pair_of("llava_onevision").folder, tmp_path / kind))
    config = LlavaOnevisionConfig.from_pretrained(folder).to_dict()
    shape = {key: config["text_config"][key] for key in ("vocab_size", "hidden_size", "intermediate_size")}
    config["text_config"] = {
        "model_type": kind,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "layer_types": ["full_attention"] * 2,
        **shape,
        **more,
    }
    made = AutoModelForImageTextToText.from_config(LlavaOnevisionConfig(**config))
    made.save_pretrained(folder)
    with pytest.raises(ModelError, match=f"{kind} language model with {what}.* plain softmax attention"):
        load_mllm(folder, device="cpu")


def test_names_and_arguments(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="hub"):
        load_mllm("someone/nothing-here")
    with pytest.raises(ModelError, match="no model 'nothing'"):
        load_mllm("nothing")
    with pytest.raises(ModelError, match="float32, bfloat16 or float16"):
        load_mllm("pico-base", device="cpu", dtype="int8")
    with pytest.raises(ModelError, match="at least 1"):
        load_mllm("pico-base", device="cpu", max_frame_tokens=0)


def test_delta_moves_the_answer_as_changed_tokens_do(pico: Any) -> None:
    """delta is added to the tokens: the same as encoding other tokens; zero changes nothing."""
    from dataclasses import replace

    visual = pico.encode(clip(2))
    prompts = [pico.prompt(visual, "is it red?")]
    delta = torch.randn(visual.tokens.shape, generator=torch.Generator().manual_seed(0))
    moved = pico.ask(pico.prefix(visual, delta), prompts)[0].logits
    other = pico.ask(pico.prefix(replace(visual, tokens=visual.tokens + delta)), prompts)[0].logits
    same = pico.ask(pico.prefix(visual, torch.zeros_like(delta)), prompts)[0].logits
    plain = pico.ask(pico.prefix(visual), prompts)[0].logits
    assert torch.equal(moved, other) and torch.equal(same, plain)
    assert not np.allclose(moved.numpy(), plain.numpy(), atol=1e-2)


def test_a_folder_is_read_in_the_layout_of_its_training(tmp_path: Path) -> None:
    """The same token ids as its training makes: times between the frames; as data in capabilities, and in stock layout
    when asked for; pictures without times. (pico-base itself was last trained in the stock layout.)"""
    from tubelet.spacevllm.checkpoint import chat_settings
    from tubelet.spacevllm.prompts import make_layout, make_prefix

    folder = Path(shutil.copytree(find_model("pico-base"), tmp_path / "timed"))
    told = json.loads((folder / "tubelet.json").read_text())
    assert told["time_layout"] == "none"
    (folder / "tubelet.json").write_text(json.dumps(told | {"time_layout": "interleaved"}))
    mllm, stock = load_mllm(folder, device="cpu"), load_mllm(folder, device="cpu", layout="stock")
    video, picture = clip(5, 64, 64), clip(1, 64, 64)
    settings = chat_settings(folder)
    assert settings is not None and settings.time_layout == "interleaved"
    layout = make_layout(mllm.tokenizer, "<video>", 0)
    for shown in (video, picture):
        grid = mllm.grid_of(shown)
        cells = grid.n_rows * grid.n_columns
        trained = make_prefix(
            replace(settings, newline="one"),
            layout,
            mllm.tokenizer,
            shown.grid.times_s,
            2.5,
            cells,
            len(shown) == 1,
        )
        made = mllm.prompt(grid, "do you see the red circle?")
        assert made.input_ids[: len(trained.ids)].tolist() == trained.ids.tolist()
        assert np.array_equal(made.visual, trained.visual_at.reshape(-1))
        assert made.trailing.tolist() == [trained.newline_at]
    told, untold = mllm.capabilities, stock.capabilities
    assert (told.timestamps, told.contiguous, told.max_frames) == ("seconds", False, 16)
    assert (untold.timestamps, untold.contiguous, untold.max_frames) == ("none", True, None)
    assert len(mllm.prompt(mllm.grid_of(video), "a")) > len(stock.prompt(stock.grid_of(video), "a"))
    with pytest.raises(ModelError, match="layout is trained or stock"):
        load_mllm("pico-base", layout="own")
