"""Published layout <-> tubelet folder: exact both ways, its traps, and errors that name what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tubelet.errors import ModelError, OutputError
from tubelet.llava_st.checkpoint import load_llava_st, save_llava_st
from tubelet.llava_st.convert import convert_from_official, convert_to_official, report
from tubelet.llava_st.official_layout import OfficialGeometry, official_name, our_name

Write = Callable[..., Path]


def everything(folder: Path) -> dict[str, torch.Tensor]:
    out: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        out |= load_file(file)
    return out


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return set(one) == set(other) and all(
        one[k].dtype == other[k].dtype and torch.equal(one[k], other[k]) for k in one
    )


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_round_trip_is_exact(
    write_official: Write, geometry: Any, tmp_path: Path, dtype: Any, shards: int
) -> None:
    """Every file comes back byte for byte, also a tensor that is not used and the division into shards."""

    def add_newline(tensors: dict[str, Any]) -> None:
        tensors["model.image_newline"] = torch.arange(32, dtype=dtype)

    source = write_official(tmp_path / "source", add_newline, dtype=dtype, shards=shards)
    findings = {f.what: f for f in convert_from_official(source, tmp_path / "ours", geometry=geometry)}
    assert findings["image_newline"].found.startswith("stored")
    back = convert_to_official(tmp_path / "ours", tmp_path / "back")
    assert same(everything(source), everything(back))
    written = {f.name: f.read_bytes() for f in back.iterdir()}
    for file in source.iterdir():
        assert written[file.name] == file.read_bytes(), file.name
    assert set(written) == {file.name for file in source.iterdir()}
    assert not list(tmp_path.glob(".*"))


def test_round_trip_of_the_golden_checkpoint(golden: Path, tmp_path: Path) -> None:
    geometry = OfficialGeometry(vision_heads=2, packer_heads=4)
    convert_from_official(golden / "checkpoint", tmp_path / "ours", geometry=geometry)
    back = convert_to_official(tmp_path / "ours", tmp_path / "back")
    for file in (golden / "checkpoint").iterdir():
        assert (back / file.name).read_bytes() == file.read_bytes(), file.name
    assert not same(everything(tmp_path / "ours"), everything(back))


def test_both_forms_of_the_golden_config(golden: Path, tmp_path: Path) -> None:
    """model_type llava with words under text_config, and llava_qwen with them at top level."""
    import shutil

    other = tmp_path / "variant"
    other.mkdir()
    for file in (golden / "checkpoint").iterdir():
        shutil.copy(file, other / file.name)
    shutil.copyfile(golden / "config_variant_llava_qwen.json", other / "config.json")
    geometry = OfficialGeometry(vision_heads=2, packer_heads=4)
    bundles = [load_llava_st(folder, geometry=geometry) for folder in (golden / "checkpoint", other)]
    configs = [bundle.model.llm.config.to_dict() for bundle in bundles]
    assert bundles[0].config == bundles[1].config and configs[0] == configs[1]
    assert bundles[0].config.vocabulary == 285 and configs[0]["rope_parameters"]["rope_theta"] == 1e6


def test_loading_as_it_is_equals_converting(official_folder: Path, geometry: Any, tmp_path: Path) -> None:
    convert_from_official(official_folder, tmp_path / "ours", geometry=geometry)
    direct, converted = load_llava_st(official_folder, geometry=geometry), load_llava_st(tmp_path / "ours")
    assert same(dict(direct.model.state_dict()), dict(converted.model.state_dict()))
    assert direct.config.mode == converted.config.mode == "official"
    assert converted.config.repetition_penalty == 1.05  # from generation_config.json
    assert converted.official == direct.official
    assert direct.tokenizer.get_vocab() == converted.tokenizer.get_vocab()
    vocabulary = direct.config.vocabulary
    raw = everything(official_folder)
    assert torch.equal(
        direct.model.embeddings[vocabulary : vocabulary + 100], raw["model.temporal_input_embeddings.weight"]
    )
    assert torch.equal(direct.model.head[-100:], raw["model.spatial_width_output_embeddings.weight"])


def test_mode_is_stored(official_folder: Path, geometry: Any, tmp_path: Path) -> None:
    convert_from_official(official_folder, tmp_path / "ours", mode="fixed", geometry=geometry)
    assert load_llava_st(tmp_path / "ours").config.mode == "fixed"
    assert load_llava_st(tmp_path / "ours", mode="official").config.mode == "official"
    with pytest.raises(ModelError, match="mode is one of"):
        load_llava_st(tmp_path / "ours", mode="best")


def test_save_and_load(small: Any, tmp_path: Path) -> None:
    folder = save_llava_st(small, tmp_path / "saved")
    again = load_llava_st(folder)
    assert same(dict(small.model.state_dict()), dict(again.model.state_dict()))
    assert again.config == small.config and again.official == small.official
    half = save_llava_st(small, tmp_path / "half", torch.float16)
    stored = load_llava_st(half, dtype=None)
    assert stored.model.embeddings.dtype == torch.float16
    assert small.model.embeddings.dtype == torch.float32
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        torch.testing.assert_close(again.model(ids, [None], [None]), small.model(ids, [None], [None]))


def test_a_new_model_in_the_published_layout(small: Any, geometry: Any, tmp_path: Path) -> None:
    """A model that was never published is written with a config of its own, and read back."""
    from dataclasses import replace

    new = replace(small, official={}, aside={})
    save_llava_st(new, tmp_path / "ours")
    out = convert_to_official(tmp_path / "ours", tmp_path / "out")
    again = load_llava_st(out, geometry=geometry)
    assert same(dict(small.model.state_dict()), dict(again.model.state_dict()))
    assert json.loads((out / "config.json").read_text())["model_type"] == "llava_qwen"


def test_what_the_published_code_cannot_run_is_not_written(
    new_tiny: Callable[..., Any], tmp_path: Path
) -> None:
    from tubelet.llava_st.config import LlavaSTConfig, PackerConfig
    from tubelet.llava_st.grow import grow

    start = new_tiny(queries=False)
    config = LlavaSTConfig(frames=6, packer=PackerConfig(width=16, heads=2, space=2, fast=2, time=3))
    folder = save_llava_st(grow(start.model.base, start.tokenizer, config), tmp_path / "ours")
    with pytest.raises(ModelError, match="windows 2, 2, 3"):
        convert_to_official(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert load_llava_st(folder).config.packer == config.packer


def test_names_map_both_ways(official_folder: Path) -> None:
    for name in everything(official_folder):
        if (
            "embed_tokens" not in name
            and "embeddings.weight" not in name.split("vision_tower")[0]
            and name != "lm_head.weight"
        ):
            ours = our_name(name)
            assert not ours.startswith("official."), name
            assert official_name(ours) == name


# --- errors ------------------------------------------------------------------------------------------


def broken(write: Write, folder: Path, geometry: Any, **change: Any) -> str:
    """The message of a conversion that must fail, and leave nothing behind."""
    source = write(folder / "source", **change)
    with pytest.raises(ModelError) as caught:
        convert_from_official(source, folder / "out", geometry=geometry)
    assert not (folder / "out").exists()
    with pytest.raises(ModelError) as loading:
        load_llava_st(source, geometry=geometry)
    assert str(loading.value) == str(caught.value)
    return str(caught.value)


def test_missing_unknown_and_wrong_tensors_are_named(
    write_official: Write, geometry: Any, tmp_path: Path
) -> None:
    packer = "model.vision_resampler.token_packer_slow.devide_attention."

    def change(tensors: dict[str, Any]) -> None:
        del tensors["model.spatial_width_output_embeddings.weight"]
        del tensors[packer + "ln_k.bias"]
        tensors["model.layers.1.mlp.up_proj.weight"] = torch.zeros(7, 32)
        tensors["model.temporal_output_embeddings.weight"] = torch.zeros(99, 32)
        tensors["model.surprise.weight"] = torch.zeros(3)

    message = broken(write_official, tmp_path, geometry, change=change)
    assert "2 missing: model.spatial_width_output_embeddings.weight" in message
    assert "packer.slow.key_norm.bias" in message or packer + "ln_k.bias" in message
    assert "1 not of this model: model.surprise.weight" in message
    assert "model.layers.1.mlp.up_proj.weight (7, 32) instead of (48, 32)" in message


def test_a_table_of_another_size_is_named(write_official: Write, geometry: Any, tmp_path: Path) -> None:
    def change(tensors: dict[str, Any]) -> None:
        tensors["model.temporal_output_embeddings.weight"] = torch.zeros(99, 32)

    assert "model.temporal_output_embeddings.weight" in broken(
        write_official, tmp_path, geometry, change=change
    )


def test_a_stage_one_checkpoint_is_recognised(write_official: Write, geometry: Any, tmp_path: Path) -> None:
    def change(tensors: dict[str, Any]) -> None:
        for name in [n for n in tensors if "put_embeddings" in n]:
            del tensors[name]

    assert "stage 1" in broken(write_official, tmp_path, geometry, change=change)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("text_config", {"vocab_size": 151936}, "speaks of 151936 words"),
        ("mm_resampler_type", "perceiver", "not a LLaVA-ST"),
        ("hidden_size", None, "lacks hidden_size"),
        ("num_hidden_layers", 3, "model.layers.2"),
        ("mm_vision_tower", "some/siglip-patch14-200", "give image_size"),
        ("num_attention_heads", 5, "do not make a model|instead of"),
    ],
)
def test_config_traps(
    write_official: Write, geometry: Any, tmp_path: Path, key: str, value: Any, message: str
) -> None:
    import re

    found = broken(write_official, tmp_path, geometry, config=lambda data: data.update({key: value}))
    assert re.search(message, found), found


def test_no_vocabulary_anywhere_is_fine(write_official: Write, geometry: Any, tmp_path: Path) -> None:
    folder = write_official(tmp_path / "source", config=lambda data: data.pop("text_config"))
    assert (
        load_llava_st(folder, geometry=geometry).config.vocabulary
        == everything(folder)["lm_head.weight"].shape[0]
    )


def test_heads_that_nobody_knows_are_asked_for(official_folder: Path) -> None:
    with pytest.raises(ModelError, match="give vision_heads"):
        load_llava_st(official_folder)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"model_type": "llama"}, "of type 'llama'"),
        ({"model_type": "llava"}, "of type 'llava'"),  # a LLaVA of another kind
        ({"model_type": "tubelet_llava_st"}, "lacks 'llm'"),
        ({"model_type": "tubelet_spacevllm"}, "of type 'tubelet_spacevllm'"),
    ],
)
def test_other_models_are_refused(
    official_folder: Path, tmp_path: Path, data: dict[str, Any], message: str
) -> None:
    import shutil

    folder = tmp_path / "other"
    shutil.copytree(official_folder, folder)
    (folder / "config.json").write_text(json.dumps(data))
    with pytest.raises(ModelError, match=message):
        load_llava_st(folder)
    with pytest.raises(ModelError):
        convert_to_official(folder, tmp_path / "out")


def test_another_tokenizer_is_refused(
    official_folder: Path, geometry: Any, small_tokenizer: Any, pico_vocabulary: Any, tmp_path: Path
) -> None:
    import copy
    import shutil

    folder = tmp_path / "mixed"
    shutil.copytree(official_folder, folder)
    pico_vocabulary.save_pretrained(folder)
    with pytest.raises(ModelError, match="not a LLaVA-ST tokenizer: it lacks <im_start>"):
        load_llava_st(folder, geometry=geometry)
    from tubelet.llava_st.words import add_words, find_words

    shifted = copy.deepcopy(pico_vocabulary)
    assert add_words(shifted).vocabulary == len(pico_vocabulary) + 14
    shifted.save_pretrained(folder)
    with pytest.raises(ModelError, match="mixed tokenizers"):
        load_llava_st(folder, geometry=geometry)
    wrong = copy.deepcopy(pico_vocabulary)
    wrong.add_tokens(["<TEMP-001>"], special_tokens=True)
    with pytest.raises(ModelError, match="consecutive ids"):
        add_words(wrong)
    assert find_words(small_tokenizer).bins == 100


@pytest.mark.parametrize(
    "damage", ["no config", "no weights", "cut weights", "bad json", "no shard", "bad index"]
)
def test_damaged_folders(write_official: Write, geometry: Any, tmp_path: Path, damage: str) -> None:
    folder = write_official(tmp_path / "source", shards=2)
    shard = folder / "model-00002-of-00002.safetensors"
    index = folder / "model.safetensors.index.json"
    match damage:
        case "no config":
            (folder / "config.json").unlink()
        case "no weights":
            for file in (*folder.glob("*.safetensors"), index):
                file.unlink()
        case "cut weights":
            shard.write_bytes(shard.read_bytes()[:500])
        case "bad json":
            (folder / "config.json").write_text("{")
        case "no shard":
            shard.unlink()
        case "bad index":
            index.write_text(json.dumps({"weight_map": {"a": "../../elsewhere"}}))
    with pytest.raises(ModelError, match=r"config.json|model"):
        load_llava_st(folder, geometry=geometry)
    with pytest.raises(ModelError, match="no model folder"):
        load_llava_st(tmp_path / "nowhere")


def test_a_folder_in_the_way(official_folder: Path, geometry: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="cannot write"):
        convert_from_official(official_folder, tmp_path / "file" / "out", geometry=geometry)


# --- report ------------------------------------------------------------------------------------------


def test_report(official_folder: Path) -> None:
    found = {finding.what: finding for finding in report(official_folder)}
    assert "may have been trained" in found["fast packer"].found
    assert (
        "repetition_penalty 1.05" in found["generation settings"].found
        and found["generation settings"].warning
    )
    assert found["dtype"].found.startswith("F32") and not found["dtype"].warning
    assert found["vision tower"].found == "37 tensors, 2 layers"
    assert "at text_config" in found["words"].found
    assert found["image_newline"].found == "not stored"
    norms = everything(official_folder)["model.embed_tokens.weight"].norm(dim=1)
    assert "times the average" in found["<vid_patch>"].found and float(norms.mean()) > 0
    assert str(found["generation settings"]).startswith("! ")


def test_report_of_an_untrained_fast_packer(write_official: Write, tmp_path: Path) -> None:
    def change(tensors: dict[str, Any]) -> None:
        for name in tensors:
            if "token_packer_fast" in name and name.endswith("bias"):
                tensors[name] = torch.zeros_like(tensors[name])
            elif "token_packer_fast" in name and ".ln_" in name:
                tensors[name] = torch.ones_like(tensors[name])
        tensors["model.norm.weight"] = tensors["model.norm.weight"].half()

    folder = write_official(tmp_path / "source", change=change)
    (folder / "generation_config.json").unlink()
    found = {finding.what: finding for finding in report(folder)}
    assert found["fast packer"].warning and "never trained" in found["fast packer"].found
    assert found["dtype"].warning and found["generation settings"].found == "none stored"
