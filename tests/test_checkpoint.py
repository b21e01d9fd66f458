"""Model folders: what is saved comes back; what is broken is named; the hub's layout; no network."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import tubelet
from tubelet.errors import ModelError, OutputError
from tubelet.grounder import embedded_models, find_model
from tubelet.pico import VIDEO_TOKEN
from tubelet.spacevllm.batch import collate, normalise
from tubelet.spacevllm.checkpoint import Bundle, check_tensors, load_bundle, read_tensors, with_queries
from tubelet.spacevllm.config import DecoderConfig, SpaceVLLMConfig
from tubelet.spacevllm.loss import LossWeights, space_losses, text_loss, total_loss
from tubelet.spacevllm.saving import save_base, save_bundle
from tubelet.training.samples import WorldMix, world_batch

MIX = WorldMix(kind="video", batch=2, questions=2, tasks=("stvg", "qa"), frames=4, seed=5)
MLP = "base.model.language_model.layers.0.mlp.up_proj.weight"


def batch_of(bundle: Bundle) -> Any:
    model = bundle.model
    return collate(world_batch(MIX, 0), model.config, bundle.layout, bundle.tokenizer, model.tokens_per_frame)


def outputs(bundle: Bundle) -> dict[str, torch.Tensor]:
    batch = batch_of(bundle)
    pixels = normalise(batch.pixels, bundle.pixel_mean, bundle.pixel_std).to(bundle.model.base.dtype)
    with torch.no_grad():
        out = bundle.model.eval()(batch.packed, pixels)
    return {
        "boxes": out.decoder.boxes_cxcywh,
        "activity": out.decoder.activity_logits,
        "presence": out.decoder.presence_logits,
        "answers": out.answer_logits.float(),
    }


def assert_same(a: Bundle, b: Bundle, tolerance: float = 0.0) -> None:
    first, second = outputs(a), outputs(b)
    for name, value in first.items():
        assert float((second[name] - value).abs().max()) <= tolerance, name


def copy_of(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], None], name: str = "model") -> None:
    path = folder / f"{name}.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def rewrite_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


# --- round trips ---------------------------------------------------------------------------------


def test_round_trip_is_exact(new_tiny: Callable[..., Bundle], tmp_path: Path) -> None:
    bundle = replace(new_tiny(seed=4), pixel_mean=(0.4, 0.5, 0.6), pixel_std=(0.2, 0.3, 0.4))
    again = load_bundle(save_bundle(bundle, tmp_path / "model"))
    assert again.model.config == bundle.model.config and again.layout == bundle.layout
    assert (again.pixel_mean, again.pixel_std) == (bundle.pixel_mean, bundle.pixel_std)
    state, other = bundle.model.state_dict(), again.model.state_dict()
    assert state.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in state.items())
    assert again.model.base.lm_head.weight is again.model.base.get_input_embeddings().weight  # still tied
    assert_same(bundle, again)
    assert not again.model.training


def test_half_precision_round_trip(tiny_bundle: Bundle, tmp_path: Path) -> None:
    folder = save_bundle(tiny_bundle, tmp_path / "half", dtype=torch.float16)
    stored = read_tensors(folder)
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    again = load_bundle(folder)
    assert next(again.model.parameters()).dtype == torch.float32
    assert_same(tiny_bundle, again, tolerance=0.05)
    low = load_bundle(folder, dtype=torch.bfloat16)
    assert next(low.model.parameters()).dtype == torch.bfloat16
    assert all(bool(v.isfinite().all()) for v in outputs(low).values())
    assert next(tiny_bundle.model.parameters()).dtype == torch.float32  # what was saved is as it was


def test_saving_a_base_in_half_precision_leaves_the_model_as_it_is(
    new_tiny: Callable[..., Bundle], tmp_path: Path
) -> None:
    bundle = new_tiny(queries=False)
    before = {name: tensor.clone() for name, tensor in bundle.model.state_dict().items()}
    folder = save_base(bundle, tmp_path / "base", dtype=torch.float16)
    assert {t.dtype for t in load_file(folder / "model.safetensors").values()} == {torch.float16}
    assert all(torch.equal(tensor, before[name]) for name, tensor in bundle.model.state_dict().items())


def test_shards(tiny_bundle: Bundle, tmp_path: Path) -> None:
    folder = save_bundle(tiny_bundle, tmp_path / "sharded", max_shard_size="100KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 2 and (folder / "model.safetensors.index.json").is_file()
    assert not (folder / "model.safetensors").exists()
    assert_same(tiny_bundle, load_bundle(folder))
    shards[1].unlink()
    with pytest.raises(ModelError, match=f"lacks the weight file {shards[1].name}"):
        load_bundle(folder)


def test_large_models_are_built_without_memory(new_tiny: Callable[..., Bundle], tmp_path: Path) -> None:
    """From a hidden size of 512 on, models are built on the meta device; nothing of them may stay there."""
    bundle = new_tiny(hidden=512)
    again = load_bundle(save_bundle(bundle, tmp_path / "large"))
    assert not any(t.is_meta for t in (*again.model.parameters(), *again.model.buffers()))
    assert_same(bundle, again)


def test_writing_is_all_or_nothing(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_bundle(tiny_bundle, tmp_path / "model")
    before = sorted(p.name for p in folder.iterdir())
    monkeypatch.setattr(type(tiny_bundle.tokenizer), "save_pretrained", _no_space)
    with pytest.raises(OutputError, match="no space"):
        save_bundle(tiny_bundle, folder)
    with pytest.raises(OutputError, match="no space"):
        save_bundle(tiny_bundle, tmp_path / "new")
    assert sorted(p.name for p in folder.iterdir()) == before  # the old one is intact
    assert [p.name for p in tmp_path.iterdir()] == ["model"]  # and nothing half-written stays
    monkeypatch.undo()
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot write a model"):
        save_bundle(tiny_bundle, tmp_path / "file" / "model")


def _no_space(*_: Any, **__: Any) -> None:
    raise OSError(28, "no space left")


def test_saving_again_replaces(new_tiny: Callable[..., Bundle], tmp_path: Path) -> None:
    save_bundle(new_tiny(seed=1), tmp_path / "model")
    (tmp_path / "model" / "old.txt").write_text("left over")
    newer = new_tiny(seed=2)
    save_bundle(newer, tmp_path / "model")
    assert_same(newer, load_bundle(tmp_path / "model"))
    assert not (tmp_path / "model" / "old.txt").exists()


def test_untrained_stays_untrained(new_tiny: Callable[..., Bundle], tmp_path: Path) -> None:
    """Only training makes a model trained; saving does not."""
    folder = save_bundle(replace(new_tiny(), trained=False), tmp_path / "model")
    assert load_bundle(folder).trained is False
    assert load_bundle(save_bundle(new_tiny(), tmp_path / "trained")).trained is True


# --- broken folders ------------------------------------------------------------------------------


def test_tensors_that_do_not_fit_are_named(tiny_folder: Path, tmp_path: Path) -> None:
    folder = copy_of(tiny_folder, tmp_path)
    taken: dict[str, torch.Tensor] = {}

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        taken.update(tensors)
        del tensors[MLP]
        tensors["space_decoder.extra.weight"] = torch.zeros(2)
        tensors["space_decoder.box_head.2.bias"] = torch.zeros(7)

    rewrite(folder, spoil)
    with pytest.raises(ModelError) as caught:
        load_bundle(folder)
    text = str(caught.value)
    assert f"1 missing: {MLP}" in text and "1 not of this model: space_decoder.extra.weight" in text
    assert "1 wrong shape: space_decoder.box_head.2.bias (7,) instead of (4,)" in text
    many = {name: tensor for name, tensor in taken.items() if "mlp" not in name}
    with pytest.raises(ModelError, match=r"missing: .* and \d+ more"):
        check_tensors(folder, load_bundle(tiny_folder).model, many)


def test_a_head_may_be_missing_only_where_it_is_tied(tiny_bundle: Bundle, tmp_path: Path) -> None:
    folder = save_bundle(tiny_bundle, tmp_path / "model")
    assert "base.lm_head.weight" not in read_tensors(folder)  # tied: stored once
    config = json.loads((folder / "config.json").read_text())
    config["base"]["tie_word_embeddings"] = config["base"]["text_config"]["tie_word_embeddings"] = False
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"1 missing: base\.lm_head\.weight"):
        load_bundle(folder)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: shutil.rmtree(f), "there is no model folder"),
        (lambda f: (f / "config.json").unlink(), "has no config.json"),
        (lambda f: (f / "config.json").write_text("{"), "cannot read"),
        (lambda f: (f / "config.json").write_text("[1]"), "must hold a JSON object"),
        (lambda f: (f / "config.json").write_bytes(b"\xff\xfe\x00"), "cannot read"),
        (lambda f: rewrite_config(f, model_type="llama"), "type 'llama'"),
        (lambda f: rewrite_config(f, model_type=None), "type None"),
        (lambda f: (f / "config.json").write_text('{"model_type": "tubelet_spacevllm"}'), "lacks 'base'"),
        (lambda f: (f / "model.safetensors").unlink(), "lacks the weight file model.safetensors"),
        (lambda f: os.truncate(f / "model.safetensors", 5000), "cannot read the weights"),
        (lambda f: os.truncate(f / "model.safetensors", 3), "cannot read the weights"),
        (lambda f: (f / "tokenizer.json").unlink(), "cannot load the tokenizer"),
    ],
    ids=[
        "no folder",
        "no config",
        "half config",
        "list config",
        "binary config",
        "unknown type",
        "no type",
        "half written",
        "no weights",
        "truncated",
        "cut header",
        "no tokenizer",
    ],
)
def test_broken_folders(
    tiny_folder: Path, tmp_path: Path, spoil: Callable[[Path], Any], message: str
) -> None:
    folder = copy_of(tiny_folder, tmp_path)
    spoil(folder)
    with pytest.raises(ModelError, match=message) as caught:
        load_bundle(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_settings_of_a_newer_version(tiny_folder: Path, tmp_path: Path) -> None:
    folder = copy_of(tiny_folder, tmp_path)
    settings = json.loads((folder / "config.json").read_text())["spacevllm"]
    rewrite_config(folder, spacevllm={**settings, "memory": "long"})
    with pytest.raises(ModelError, match=r"does not know: memory; it was written by a newer version"):
        load_bundle(folder)
    rewrite_config(folder, spacevllm={**settings, "decoder": {**settings["decoder"], "rings": 3}})
    with pytest.raises(ModelError, match=r"does not know: decoder\.rings; it was written by a newer version"):
        load_bundle(folder)


def test_settings_survive_json() -> None:
    config = SpaceVLLMConfig(
        max_frames=7, span_reader="both", decoder=DecoderConfig(keys="all_frames", cells=True)
    )
    assert SpaceVLLMConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    for bad in (
        {"time_layout": "x"},
        {"prompts": "x"},
        {"span_reader": "x"},
        {"max_frames": 0},
        {"decoder": 3},
    ):
        with pytest.raises(ModelError):
            SpaceVLLMConfig.from_dict(bad)


# --- the hub's layout ----------------------------------------------------------------------------


def hub_layout(bundle: Bundle, folder: Path) -> Path:
    """A LLaVA-OneVision checkpoint as the hub has it: older tensor names, shards, separate processor files.

    The chat template with the video in it stands beside the tokenizer, whose own template knows text only.
    """
    save_base(bundle, folder, auxiliary=False)
    (folder / "README.md").unlink()
    tensors = load_file(folder / "model.safetensors")
    renamed = {n.replace("vision_tower.", "vision_tower.vision_model."): t for n, t in tensors.items()}
    names = sorted(renamed)
    index = {}
    for k, part in enumerate((names[::2], names[1::2]), start=1):
        shard = f"model-{k:05d}-of-00002.safetensors"
        save_file({n: renamed[n] for n in part}, folder / shard, metadata={"format": "pt"})
        index |= dict.fromkeys(part, shard)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    text_only = "{% for message in messages %}{{ '<|im_start|>' + message['content'] }}{% endfor %}"
    (folder / "chat_template.jinja").write_text(text_only)
    processor = json.loads((folder / "processor_config.json").read_text())
    for part, name in (("image_processor", "preprocessor"), ("video_processor", "video_preprocessor")):
        statistics = {"image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28]}
        (folder / f"{name}_config.json").write_text(json.dumps({**processor.pop(part), **statistics}))
    (folder / "processor_config.json").write_text(json.dumps(processor))
    return folder


def test_hub_checkpoint_becomes_a_spacevllm(
    new_tiny: Callable[..., Bundle], tmp_path: Path, toy_video: Path
) -> None:
    """Load through tubelet.load, answer (and say that it is untrained), learn one step, save, load again."""
    source = new_tiny(queries=False)
    folder = hub_layout(source, tmp_path / "llava-onevision")
    config = SpaceVLLMConfig(
        max_frames=4, span_reader="activity", presence_threshold=0.0, decoder=DecoderConfig(width=16)
    )
    grounder: Any = tubelet.load(folder, device="cpu", config=config)
    bundle: Bundle = grounder.bundle
    assert len(bundle.layout.query_tokens) == 5
    assert bundle.pixel_mean == (0.48, 0.46, 0.41) and bundle.pixel_std == (0.27, 0.26, 0.28)
    for name, tensor in source.model.base.state_dict().items():
        loaded = bundle.model.base.state_dict()[name]
        words = len(source.tokenizer) if "embed_tokens" in name or "lm_head" in name else None
        assert torch.equal(loaded[:words], tensor[:words]), name  # rows after the words are free for queries
    prediction = grounder.ground(toy_video, "the red circle", task="stvg")
    assert prediction.failure is None and any("untrained" in note for note in prediction.notes)
    assert prediction.provenance["trained"] is False

    batch = batch_of(bundle)
    optimiser = torch.optim.SGD(bundle.model.parameters(), lr=1e-2)
    losses = []
    for _ in range(2):
        out = bundle.model(batch.packed, normalise(batch.pixels, bundle.pixel_mean, bundle.pixel_std))
        parts = space_losses(out.decoder, batch.truth)
        parts["text"] = text_loss(out.answer_logits, batch.packed.answer_ids)
        loss = total_loss(parts, LossWeights())
        optimiser.zero_grad()
        loss.backward()
        losses.append(float(loss.detach()))
        optimiser.step()
    assert losses[1] < losses[0]
    queries = bundle.model.base.get_input_embeddings().weight.grad[list(bundle.layout.query_tokens[:4])]
    assert bool((queries.abs().sum(1) > 0).all())  # the query tokens learn

    saved = save_bundle(replace(bundle, trained=True), tmp_path / "spacevllm")
    again: Any = tubelet.load(saved, device="cpu")
    assert_same(bundle, again.bundle)
    prediction = again.ground(toy_video, "the red circle", task="stvg")
    assert not prediction.notes and prediction.provenance["trained"] is True


def test_broken_hub_checkpoints_are_named(tiny_base_folder: Path, tmp_path: Path) -> None:
    name = "language_model.model.layers.0.mlp.up_proj.weight"
    folder = copy_of(tiny_base_folder, tmp_path)
    rewrite(folder, lambda tensors: tensors.__delitem__(name))
    with pytest.raises(ModelError, match=r"1 missing: .*layers\.0\.mlp\.up_proj\.weight"):
        load_bundle(folder)
    rewrite(folder, lambda tensors: tensors.update({name: torch.zeros(3, 3)}))
    with pytest.raises(ModelError, match=r"1 wrong shape: .*up_proj\.weight \(3, 3\) instead of \(96, 32\)"):
        load_bundle(folder)
    os.truncate(folder / "model.safetensors", 5000)
    with pytest.raises(ModelError, match="cannot load"):
        load_bundle(folder)


def test_heads_of_a_base(
    new_tiny: Callable[..., Bundle], tiny_config: SpaceVLLMConfig, tmp_path: Path
) -> None:
    """A base carries its training-only heads; a SpaceVLLM with the same settings starts from them."""
    source = new_tiny(queries=False)
    folder = save_base(source, tmp_path / "base")
    grown = load_bundle(folder, tiny_config)
    ours, theirs = grown.model.state_dict(), source.model.state_dict()
    heads = [name for name in theirs if not name.startswith("base.")]
    assert heads and all(torch.equal(ours[name], theirs[name]) for name in heads)
    other = replace(tiny_config, decoder=replace(tiny_config.decoder, width=16))
    with pytest.raises(ModelError, match=r"do not fit these settings of the decoder.*space_decoder"):
        load_bundle(folder, other)
    (folder / "auxiliary.safetensors").unlink()
    assert load_bundle(folder, other).model.space_decoder.width == 16


def test_query_tokens_are_added_once(new_tiny: Callable[..., Bundle], tiny_config: SpaceVLLMConfig) -> None:
    base = new_tiny(queries=False)
    rows = base.model.base.get_input_embeddings().weight.shape[0]
    plain = base.model.base.get_input_embeddings().weight.detach().clone()
    grown = with_queries(base, tiny_config)
    table = grown.model.base.get_input_embeddings().weight
    tokens = list(grown.layout.query_tokens)
    assert len(set(tokens)) == 5 and min(tokens) == max(len(base.tokenizer) - 5, min(tokens))
    assert table.shape[0] >= len(grown.tokenizer) and table.shape[0] % 8 == 0 and table.shape[0] >= rows
    assert torch.equal(table[: min(tokens)], plain[: min(tokens)])  # old words are as they were
    assert grown.model.base.lm_head.weight.shape == table.shape
    assert with_queries(grown, tiny_config) is grown


def test_transformers_alone_runs_a_saved_base(tiny_base_folder: Path, tiny_config: SpaceVLLMConfig) -> None:
    """AutoModel and AutoProcessor, no tubelet: a video prompt through the processor = our own path."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(tiny_base_folder).eval()
    processor = AutoProcessor.from_pretrained(tiny_base_folder)
    words = "what colour is the circle?"
    messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": words}]}]
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
    frames = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    inputs = processor(text=prompt, videos=[frames], return_tensors="pt")
    assert int((inputs["input_ids"] == model.config.video_token_id).sum()) == 3 * 16 + 1
    with torch.no_grad():
        logits = model(**inputs).logits
        out = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert out.shape[1] <= inputs["input_ids"].shape[1] + 3

    # the same turn through tubelet: same ids, same pixels, same logits
    from tubelet.spacevllm.pack import Suffix, pack
    from tubelet.spacevllm.prompts import encode_query, make_prefix

    bundle = load_bundle(tiny_base_folder, replace(tiny_config, time_layout="none"))
    prefix = make_prefix(bundle.model.config, bundle.layout, bundle.tokenizer, [0.0, 1.0, 2.0], 3.0, 16)
    suffix = Suffix(tuple(encode_query(bundle.tokenizer, words)), bundle.layout.tail)
    packed = pack([prefix], [[suffix]])
    assert packed.ids.tolist() == inputs["input_ids"].tolist()
    pixels = normalise(torch.from_numpy(frames).permute(0, 3, 1, 2), bundle.pixel_mean, bundle.pixel_std)
    assert torch.allclose(pixels[None], inputs["pixel_values_videos"], atol=1e-5)
    with torch.no_grad():
        embeds = bundle.model.embed(packed, bundle.model.frame_features(pixels))
        hidden = bundle.model.base.model.language_model(inputs_embeds=embeds).last_hidden_state
        ours = bundle.model.base.lm_head(hidden)
    assert float((ours - logits).abs().max()) < 1e-4
    assert bundle.tokenizer.convert_ids_to_tokens(bundle.layout.video_token) == VIDEO_TOKEN


# --- finding models, and the network -------------------------------------------------------------


def test_names_that_are_no_model(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    for name, message in (
        ("no-such-model", "there is no model 'no-such-model'"),
        (str(tmp_path / "nothing"), "not a folder"),
        ("./org/name", "not a folder"),
        ("", "there is no model ''"),
        ("a/b/c", "hub id of the form org/name"),
        (str(tmp_path / "model.safetensors"), "is a file; a model is a folder"),
    ):
        with pytest.raises(ModelError, match=message):
            find_model(name)
    with pytest.raises(ModelError, match="there is no model"):
        find_model(Path("org/name"))  # a Path is never a hub id


@pytest.mark.parametrize(("device", "dtype"), [("cpu", "int8"), ("cpu", "float64"), ("cuda:0", None)])
def test_devices_and_dtypes(tiny_folder: Path, device: str, dtype: str | None) -> None:
    if device.startswith("cuda") and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(ModelError, match=r"no GPU|dtype is"):
        tubelet.load(tiny_folder, device=device, dtype=dtype)


def test_hub_id_offline_is_one_clear_error(tmp_path: Path) -> None:
    """In a process of its own, as the variable is read when the hub's library is imported."""
    code = (
        "from tubelet.grounder import find_model\n"
        "from tubelet.errors import ModelError\n"
        "try:\n    find_model('some-org/some-model')\n"
        "except ModelError as error:\n    print(error)\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.strip().splitlines()
    assert len(lines) == 1
    assert "'some-org/some-model' is neither a local folder nor in the hub cache" in lines[0]
    assert "offline" in lines[0] and "Traceback" not in done.stderr


def test_folders_and_embedded_models_never_touch_the_network(
    tiny_folder: Path,
    tiny_base_folder: Path,
    tiny_config: SpaceVLLMConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[Any] = []

    def refuse(*args: Any, **_: Any) -> Any:
        calls.append(args)
        raise OSError("the network was asked for")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    tubelet.load(tiny_folder, device="cpu")
    tubelet.load(str(tiny_base_folder), device="cpu", config=tiny_config)
    for model in embedded_models():
        tubelet.load(model.name, device="cpu")
    for name in ("no-such-model", "./org/name"):
        with pytest.raises(ModelError):
            tubelet.load(name)
    assert not calls
    with pytest.raises(OSError, match="the network was asked for"):  # the guard itself works
        socket.create_connection(("localhost", 9))
