"""Checkpoints of the LLaVA-NeXT layout: converted, loaded, trained, saved; and what is wrong with them, in words."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llava_next_files as files
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import tubelet
from tubelet import cli
from tubelet.errors import ModelError
from tubelet.spacevllm.batch import collate, normalise
from tubelet.spacevllm.checkpoint import Bundle, load_bundle, with_queries, with_settings
from tubelet.spacevllm.config import DecoderConfig, SpaceVLLMConfig
from tubelet.spacevllm.llava_next import convert_llava_next, load_llava_next, open_llava_next
from tubelet.spacevllm.loss import LossWeights, space_losses, text_loss, total_loss
from tubelet.spacevllm.pack import pack
from tubelet.spacevllm.prompts import make_prefix
from tubelet.spacevllm.saving import save_bundle
from tubelet.training.samples import WorldMix, world_batch

DECODER = DecoderConfig(width=16, heads=2)
HEADS = files.TOWER_HEADS


@pytest.fixture(scope="session")
def qwen_like() -> Any:
    """Bytes, a few merges and Qwen's three marks, without a template for videos."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=290, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(["the video lasts for seconds, and the frames are"] * 20, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    fast.add_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"], special_tokens=True)
    return fast


@pytest.fixture(scope="session")
def published(qwen_like: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published") / "LLaVA-Video-tiny"
    files.write_checkpoint(folder, qwen_like)
    return folder


@pytest.fixture(scope="session")
def converted(published: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("converted") / "ours"
    convert_llava_next(published, out, vision_heads=HEADS)
    return out


@pytest.fixture
def broken(published: Path, tmp_path: Path) -> Callable[..., Path]:
    """broken(config={...}, tensors=function, seen=name): a copy of the published folder with something wrong in it."""

    def make(
        config: dict[str, Any] | None = None, tensors: Callable[[dict[str, Any]], Any] | None = None
    ) -> Path:
        folder = tmp_path / "broken"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(published, folder)
        if config is not None:
            data = json.loads((folder / "config.json").read_text()) | config
            (folder / "config.json").write_text(json.dumps({k: v for k, v in data.items() if v != "drop"}))
        if tensors is not None:
            state = load_file(folder / "model.safetensors")
            tensors(state)
            save_file(state, folder / "model.safetensors")
        return folder

    return make


def call(monkeypatch: pytest.MonkeyPatch, *args: object) -> int:
    monkeypatch.setattr(sys, "argv", ["tubelet", "convert", *map(str, args)])
    try:
        cli.main()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    return 0


# --- conversion ----------------------------------------------------------------------------------


def test_every_tensor_keeps_its_bits(published: Path, converted: Path) -> None:
    theirs, ours = load_file(published / "model.safetensors"), load_file(converted / "model.safetensors")
    assert len(theirs) == len(ours)
    left = dict(ours)
    for name, tensor in theirs.items():
        found = [k for k, v in left.items() if v.shape == tensor.shape and torch.equal(v, tensor)]
        assert len(found) == 1, name
        # the end of the name says the same in both layouts
        assert found[0].split(".")[-1] == name.split(".")[-1]
        left.pop(found[0])
    assert not left


def test_stock_transformers_loads_it_whole(converted: Path) -> None:
    from transformers import AutoProcessor, LlavaOnevisionForConditionalGeneration

    _, info = LlavaOnevisionForConditionalGeneration.from_pretrained(converted, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    processor = AutoProcessor.from_pretrained(converted)
    told = json.loads((converted / "config.json").read_text())
    assert processor.tokenizer.convert_tokens_to_ids("<video>") == told["video_token_index"]
    # "(1x1),...,(2x3)" is (width, height) there, (height, width) here
    sizes = {(h * 64, w * 64) for w in (1, 2) for h in (1, 2, 3)}
    assert {tuple(pair) for pair in told["image_grid_pinpoints"]} == sizes
    assert json.loads((converted / "generation_config.json").read_text()) == {"repetition_penalty": 1.05}


def test_settings_that_the_stock_config_cannot_hold(published: Path, converted: Path, qwen_like: Any) -> None:
    model = load_bundle(converted).model
    assert model.config == SpaceVLLMConfig(
        max_frames=64, time_layout="llava_video", newline="grid", pool="bilinear", words=len(qwen_like)
    )
    assert model.tokens_per_frame == 25 and model.image_size == 64
    assert model.base.config.vision_config.num_attention_heads == HEADS


@pytest.mark.parametrize(
    "said, newline, times",
    [
        ({"mm_newline_position": "frame"}, "frame", "none"),
        ({"mm_newline_position": "no_token"}, "none", "none"),
        ({"mm_newline_position": "one_token", "add_time_instruction": True}, "one", "llava_video"),
        ({"mm_newline_position": "drop"}, "one", "none"),
        ({"mm_newline_position": "one_token", "mm_patch_merge_type": "spatial"}, "none", "none"),
        ({"mm_patch_merge_type": "flat"}, "none", "none"),
        ({"mm_spatial_pool_mode": "average", "mm_spatial_pool_stride": 4}, "grid", "llava_video"),
    ],
)
def test_newlines_as_the_published_code_decides(
    said: dict[str, Any], newline: str, times: str, broken: Callable[..., Path]
) -> None:
    opened = open_llava_next(broken(said), vision_heads=HEADS)
    assert (opened.settings.newline, opened.settings.time_layout) == (newline, times)
    assert opened.settings.pool == said.get("mm_spatial_pool_mode", "bilinear")
    report = "\n".join(map(str, opened.findings))
    assert ("mm_spatial_pool_stride: 4" in report) == (said.get("mm_spatial_pool_stride") == 4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_shards_and_half_precision(dtype: torch.dtype, qwen_like: Any, tmp_path: Path) -> None:
    theirs = files.write_checkpoint(tmp_path / "in", qwen_like, dtype, shards=3)
    convert_llava_next(tmp_path / "in", tmp_path / "out", vision_heads=HEADS)
    ours = load_file(tmp_path / "out" / "model.safetensors")
    assert {t.dtype for t in ours.values()} == {dtype}
    q = "layers.1.self_attn.q_proj.weight"
    assert torch.equal(ours[f"model.language_model.{q}"], theirs[f"model.{q}"])
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == str(dtype).removeprefix(
        "torch."
    )
    both = load_bundle(tmp_path / "out"), load_llava_next(tmp_path / "in", vision_heads=HEADS)
    a, b = (bundle.model.base.state_dict() for bundle in both)
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_tied_embeddings_and_no_room_for_placeholders(qwen_like: Any, tmp_path: Path) -> None:
    theirs = files.write_checkpoint(tmp_path / "in", qwen_like, tied=True, beyond=1)
    words = len(qwen_like)
    findings = convert_llava_next(tmp_path / "in", tmp_path / "out", vision_heads=HEADS)
    assert any("1 added for placeholders" in str(finding) for finding in findings)
    ours = load_file(tmp_path / "out" / "model.safetensors")
    assert "lm_head.weight" not in ours
    table = ours["model.language_model.embed_tokens.weight"]
    assert table.shape[0] == words + 2 and torch.equal(
        table[: words + 1], theirs["model.embed_tokens.weight"]
    )
    for bundle in (load_bundle(tmp_path / "out"), load_llava_next(tmp_path / "in", vision_heads=HEADS)):
        base = bundle.model.base
        assert base.lm_head.weight is base.get_input_embeddings().weight and base.lm_head.weight.requires_grad
        assert bundle.layout.video_token == words + 1 and bundle.model.config.words == words


def test_a_stored_head_that_is_tied_is_left_out_and_told(qwen_like: Any, tmp_path: Path) -> None:
    theirs = files.write_checkpoint(tmp_path / "in", qwen_like, tied=True)
    for head, told in ((theirs["model.embed_tokens.weight"].clone(), False), (torch.zeros(1), True)):
        head = torch.zeros_like(theirs["model.embed_tokens.weight"]) if told else head
        files.write_weights(tmp_path / "in", theirs | {"lm_head.weight": head})
        opened = open_llava_next(tmp_path / "in", vision_heads=HEADS)
        assert any("differs" in str(f) and f.warning for f in opened.findings) == told


def test_no_newline_is_needed_where_none_is_used(broken: Callable[..., Path], tmp_path: Path) -> None:
    def drop(state: dict[str, Any]) -> None:
        del state["model.image_newline"]

    with pytest.raises(ModelError, match=r"1 missing: model\.image_newline"):
        convert_llava_next(broken({}, drop), tmp_path / "out", vision_heads=HEADS)
    folder = broken({"mm_newline_position": "no_token"}, drop)
    convert_llava_next(folder, tmp_path / "out", vision_heads=HEADS)
    assert not load_bundle(tmp_path / "out").model.base.model.image_newline.any()
    assert not load_llava_next(folder, vision_heads=HEADS).model.base.model.image_newline.any()


@pytest.mark.parametrize("prefix", ["vision_model.", ""])
def test_a_tower_outside_the_checkpoint(prefix: str, published: Path, qwen_like: Any, tmp_path: Path) -> None:
    """Its last layer, its head and its text half are not used, as in the published code."""
    files.write_checkpoint(tmp_path / "in", qwen_like, tower=False)
    tower = tmp_path / "siglip"
    tower.mkdir()
    shapes = {prefix + name: shape for name, shape in files.tower_shapes(layers=3).items()}
    shapes |= (
        {"vision_model.head.probe": (1, 1, 16), "text_model.final_layer_norm.weight": (16,)} if prefix else {}
    )
    stored = files.random_tensors(shapes, seed=5)
    save_file(stored, tower / "model.safetensors")
    vision = {
        "model_type": "siglip_vision_model",
        "hidden_size": files.TOWER,
        "intermediate_size": files.TOWER_MLP,
        "num_hidden_layers": 3,
        "num_attention_heads": HEADS,
        "image_size": files.IMAGE_SIZE,
        "patch_size": files.PATCH,
    }
    whole = {"model_type": "siglip", "vision_config": vision} if prefix else vision
    (tower / "config.json").write_text(json.dumps(whole))
    convert_llava_next(tmp_path / "in", tmp_path / "out", vision_tower=tower)
    ours = load_file(tmp_path / "out" / "model.safetensors")
    kept = {name.removeprefix("model.vision_tower."): t for name, t in ours.items() if "vision_tower" in name}
    assert kept.keys() == files.tower_shapes(layers=2).keys()
    assert all(torch.equal(tensor, stored[prefix + name]) for name, tensor in kept.items())
    assert load_bundle(tmp_path / "out").model.base.config.vision_config.num_hidden_layers == 2

    with pytest.raises(
        ModelError, match=r"does not hold its vision tower .*tubelet convert llava-next.*--vision-tower"
    ):
        convert_llava_next(tmp_path / "in", tmp_path / "again")
    assert not (tmp_path / "again").exists()


# --- what is wrong with it -----------------------------------------------------------------------


def test_wrong_tensors_are_named(broken: Callable[..., Path], tmp_path: Path) -> None:
    def spoil(state: dict[str, Any]) -> None:
        del state["model.layers.1.mlp.up_proj.weight"], state["model.mm_projector.0.weight"]
        state["model.mm_projector.2.bias"] = torch.zeros(3)
        state["model.vision_resampler.query"] = torch.zeros(2)
        state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(4)  # computed: no word about it

    with pytest.raises(ModelError) as caught:
        convert_llava_next(broken({}, spoil), tmp_path / "out", vision_heads=HEADS)
    said = str(caught.value)
    assert "2 missing: model.layers.1.mlp.up_proj.weight, model.mm_projector.0.weight;" in said
    assert "1 not of this model: model.vision_resampler.query" in said
    assert "1 wrong shape: model.mm_projector.2.bias (3,) instead of (32,)" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "said, message",
    [
        (
            {"architectures": ["LlavaLlamaForCausalLM"]},
            "LlavaLlamaForCausalLM instead of LlavaQwenForCausalLM",
        ),
        ({"mm_vision_tower": "openai/clip-vit-large-patch14-336"}, "only SigLIP"),
        ({"mm_projector_type": "linear"}, "'linear' instead of mlp2x_gelu"),
        ({"mm_resampler_type": "spatial_pool"}, "a resampler"),
        ({"mm_resampler_type": "fast_slow_resampler"}, "convert llava-st"),
        ({"add_faster_video": True}, "add_faster_video"),
        ({"mm_newline_position": "column"}, "mm_newline_position is one of grid, frame"),
        ({"mm_spatial_pool_mode": "conv"}, "mm_spatial_pool_mode is one of bilinear"),
        ({"mm_patch_merge_type": "odd"}, "mm_patch_merge_type is flat or spatial"),
        ({"vocab_size": 5}, "speaks of 5 words"),
        ({"hidden_size": "drop"}, "lacks hidden_size"),
        ({"model_type": "qwen2"}, "type 'qwen2'"),
        ({"mm_vision_tower": "a/siglip-patch7-384"}, "9 x 9 positions"),
        ({"image_grid_pinpoints": "all"}, "image_grid_pinpoints are pairs"),
    ],
)
def test_configs_that_cannot_be_read(
    said: dict[str, Any], message: str, broken: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=message):
        convert_llava_next(broken(said), tmp_path / "out", vision_heads=HEADS)
    assert not (tmp_path / "out").exists()


def test_heads_must_be_known(published: Path, tmp_path: Path) -> None:
    for heads in (None, 3):
        with pytest.raises(ModelError, match="--vision-heads"):
            convert_llava_next(published, tmp_path / "out", vision_heads=heads)


def test_pickles_are_refused(broken: Callable[..., Path], tmp_path: Path) -> None:
    folder = broken()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pickles \(pytorch_model\.bin\).*safetensors"):
        convert_llava_next(folder, tmp_path / "out", vision_heads=HEADS)


def test_on_the_command_line(
    published: Path,
    qwen_like: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    assert call(monkeypatch, "llava-next", published, out, "--vision-heads", HEADS) == 0
    told = capsys.readouterr()
    assert told.out.strip() == str(out) and "video newlines: grid" in told.err
    assert f"words: {len(qwen_like)} in {len(qwen_like) + files.ROWS_BEYOND} rows" in told.err
    for wrong in (
        ("llava-next", published, tmp_path / "no"),
        ("llava-next", published, out, "--to-official"),
    ):
        assert call(monkeypatch, *wrong) == 1
        assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert call(monkeypatch, "llava-st", published, tmp_path / "no", "--vision-tower", out) == 1
    assert not (tmp_path / "no").exists()


# --- in use --------------------------------------------------------------------------------------


def test_load_keeps_it_a_chat_model(
    published: Path, converted: Path, toy_video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat: Any = tubelet.load(converted, device="cpu")
    assert chat.bundle.layout.query_tokens == () and not chat.bundle.trained
    state = chat.encode(toy_video)
    n, total = len(state.grid), len(tubelet.open_video(toy_video).times_s)
    assert state.prefix.length > n * 5 * 6 and n == min(64, total)
    assert len(chat.ask(state, "What happens?", 4)) >= 0
    # a folder in the published layout loads alike, when its tower is one that needs no --vision-heads
    monkeypatch.setattr("tubelet.spacevllm.llava_next_layout._HEADS_OF_SIGLIP", {files.TOWER: HEADS})
    straight: Any = tubelet.load(published, device="cpu")
    assert straight.config == chat.config and straight.bundle.layout == chat.bundle.layout
    again = straight.encode(toy_video)
    assert torch.equal(again.prefix.visual, state.prefix.visual)
    assert straight.ask(again, "What happens?", 4) == chat.ask(state, "What happens?", 4)


def test_frames_are_chosen_as_published(converted: Path, toy_video: Path) -> None:
    """First and last frame included, until it becomes a SpaceVLLM, which has its own rule."""
    config = SpaceVLLMConfig(max_frames=5, time_layout="llava_video", decoder=DECODER)
    started: Any = tubelet.load(converted, device="cpu", config=config)
    chat = type(started)(load_bundle(converted, config), "chat")
    total = len(tubelet.open_video(toy_video).times_s)
    wanted = np.linspace(0, total - 1, 5).astype(int).tolist()
    assert chat.encode(toy_video).grid.frame_index.tolist() == wanted
    assert started.encode(toy_video).grid.frame_index.tolist() != wanted


def start(folder: Path, **changes: Any) -> Bundle:
    config = SpaceVLLMConfig(max_frames=4, decoder=DECODER, **changes)
    return with_queries(load_bundle(folder, config), config)


def test_a_spacevllm_started_from_it_sees_grid_newlines(converted: Path, qwen_like: Any) -> None:
    torch.manual_seed(0)
    bundle = start(converted)
    config = bundle.model.config
    assert (config.newline, config.pool, config.words) == ("grid", "bilinear", len(qwen_like))
    assert config.time_layout == "list"  # what is asked for stays asked for
    assert with_settings(bundle, SpaceVLLMConfig(max_frames=4, decoder=DECODER)).model.config == config
    assert start(converted, newline="one", pool="average").model.config.newline == "one"

    prefix = make_prefix(config, bundle.layout, bundle.tokenizer, [0.0, 1.0], 2.0, 25)
    video, query = bundle.layout.video_token, bundle.layout.query_tokens
    packed = pack([prefix], [[]])
    features = torch.randn(2, 25, files.HIDDEN)
    embeds = bundle.model.embed(packed, features)[0]
    at = len(bundle.layout.head)
    for i in range(2):
        for row in range(5):
            assert torch.equal(embeds[at : at + 5], features[i, row * 5 : row * 5 + 5])
            assert torch.equal(embeds[at + 5], bundle.model.base.model.image_newline)
            assert prefix.ids[at : at + 6].tolist() == [video] * 6
            at += 6
        assert prefix.ids[at] == query[i] and prefix.query_at[i] == at
        at += 1
    assert (prefix.ids == video).sum() == 2 * 5 * 6


@pytest.mark.parametrize("newline", ["frame", "none"])
def test_other_newlines(newline: str, converted: Path) -> None:
    bundle = start(converted, newline=newline, time_layout="llava_video")
    args = (bundle.model.config, bundle.layout, bundle.tokenizer)
    short, long = make_prefix(*args, [0.0], 2.0, 25), make_prefix(*args, [0.0, 1.0, 1.5], 2.0, 25)
    packed = pack([short, long], [[], []])
    each = newline == "frame"
    assert [int((row >= 0).sum()) for row in packed.newline_at] == ([1, 3] if each else [0, 0])
    assert (long.ids == bundle.layout.video_token).sum() == 3 * (25 + each)
    embeds = bundle.model.embed(packed, torch.zeros(4, 25, files.HIDDEN))
    found = (embeds == bundle.model.base.model.image_newline).all(-1)
    assert found.sum(1).tolist() == ([1, 3] if each else [0, 0])
    if each:
        assert found[1].nonzero()[:, 0].tolist() == (long.visual_at[:, -1] + 1).tolist()
    told = bundle.tokenizer.decode(long.ids)
    assert told.endswith(
        "The video lasts for 2.00 seconds, and 3 frames are uniformly sampled from it. These frames are located at "
        "0.00s,1.00s,1.50s.Please answer the following questions related to this video.\n"
    )


def test_a_grid_needs_a_square() -> None:
    bundle_free = SpaceVLLMConfig(max_frames=4, newline="grid")
    with pytest.raises(ModelError, match="each row of a square frame"):
        make_prefix(bundle_free, _layout(), None, [0.0], 1.0, 6)
    for wrong in ({"newline": "rows"}, {"pool": "mean"}, {"words": -1}):
        with pytest.raises(ModelError):
            SpaceVLLMConfig(**wrong)


def _layout() -> Any:
    from tubelet.spacevllm.prompts import PromptLayout

    return PromptLayout((1,), (), (), (2,), 3, ())


@pytest.mark.parametrize("pool, cells", [("bilinear", 25), ("average", 16)])
def test_a_step_of_training_saved_and_loaded_again(
    pool: str, cells: int, converted: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    bundle = start(converted, pool=pool, time_layout="llava_video")
    model = bundle.model.train()
    assert model.tokens_per_frame == cells
    mix = WorldMix(kind="video", batch=2, questions=2, tasks=("stvg", "qa"), frames=4, seed=5)
    batch = collate(world_batch(mix, 0), model.config, bundle.layout, bundle.tokenizer, cells)
    pixels = normalise(batch.pixels, bundle.pixel_mean, bundle.pixel_std)

    def losses() -> torch.Tensor:
        out = model(batch.packed, pixels)
        assert batch.truth is not None
        parts = space_losses(out.decoder, batch.truth)
        parts["text"] = text_loss(out.answer_logits, batch.packed.answer_ids)
        return total_loss(parts, LossWeights())

    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    first = losses()
    first.backward()
    newline = model.base.model.image_newline
    assert newline.grad is not None and float(newline.grad.abs().sum()) > 0
    optimizer.step()
    assert float(losses().detach()) < float(first.detach())
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    # the tower's last norm is not used, and a bias of keys without positions moves no softmax
    still = {name for name in before if name not in moved}
    assert all(
        ".vision_tower." in name and ("post_layernorm" in name or "k_proj.bias" in name) for name in still
    )

    save_bundle(bundle, tmp_path / "saved")
    again = load_bundle(tmp_path / "saved")
    assert again.model.config == model.config and again.layout == bundle.layout
    model.eval()
    with torch.no_grad():
        a, b = model(batch.packed, pixels), again.model(batch.packed, pixels)
    assert torch.equal(a.answer_logits, b.answer_logits)
    assert torch.equal(a.decoder.boxes_cxcywh, b.decoder.boxes_cxcywh)


def test_packed_questions_equal_single_ones_under_grid_newlines(converted: Path) -> None:
    """The cache of the prefix and the one-pass training forward say the same."""
    torch.manual_seed(0)
    bundle = start(converted)
    model = bundle.model.eval()
    mix = WorldMix(kind="video", batch=1, questions=2, tasks=("stvg",), frames=3, seed=6)
    sample = world_batch(mix, 0)
    batch = collate(sample, model.config, bundle.layout, bundle.tokenizer, 25)
    pixels = normalise(batch.pixels, bundle.pixel_mean, bundle.pixel_std)
    with torch.no_grad():
        whole = model(batch.packed, pixels).decoder
    prefix = make_prefix(
        model.config, bundle.layout, bundle.tokenizer, sample[0].times_s, sample[0].duration_s, 25
    )
    state = model.encode_prefix(pack([prefix], [[]]), pixels)
    for q in range(2):
        ids = batch.packed.ids[0, batch.packed.text_at[q][batch.packed.text_mask[q]]].tolist()
        alone = model.ask(state, [[*ids, *bundle.layout.tail]], [len(ids)]).decoder
        assert torch.allclose(alone.boxes_cxcywh[0], whole.boxes_cxcywh[q], atol=1e-5)


def test_words_bound_what_is_written(converted: Path) -> None:
    """A row beyond the words wins every step, and is never written."""
    config = SpaceVLLMConfig(max_frames=4, decoder=DECODER)
    for words, wins in ((0, False), (100_000, True)):
        bundle = load_bundle(converted, SpaceVLLMConfig(max_frames=4, decoder=DECODER, words=words))
        model, last = bundle.model.eval(), bundle.model.base.lm_head.weight.shape[0] - 1
        prefix = make_prefix(config.on(model.config), bundle.layout, bundle.tokenizer, [0.0], 1.0, 25)
        state = model.encode_prefix(pack([prefix], [[]]), torch.zeros(1, 3, 64, 64))
        with torch.no_grad():
            model.base.lm_head.weight *= 0.01
            model.base.lm_head.weight[last] = 100 * model.base.model.language_model.norm.weight
            asked = [model.ask(state, [[5, 6]], [2], 3, -1).answers[0]]
            model.base.lm_head.weight[last] *= -1  # one of the two signs wins the first step
            asked.append(model.ask(state, [[5, 6]], [2], 3, -1).answers[0])
        assert any(last in ids for ids in asked) == wins
