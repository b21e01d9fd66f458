"""Damaged model folders end in one sentence that names the file; saving never deletes what is no model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tubelet
from full_disk import full_disk
from tubelet.errors import ModelError, OutputError
from tubelet.model_folder import atomic_folder, check_replaceable, pixel_numbers, torch_dtype
from tubelet.spacevllm.checkpoint import Bundle, load_bundle
from tubelet.spacevllm.domain import N_STATISTICS, Domain, fit_domain, load_domain, save_domain
from tubelet.spacevllm.saving import save_base, save_bundle

Spoil = Callable[[Path], Any]


def change_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def settings_of(folder: Path, **values: Any) -> dict[str, Any]:
    return {**json.loads((folder / "config.json").read_text())["spacevllm"], **values}


def as_older_folder(folder: Path, **values: Any) -> None:
    """Pixel statistics in config.json, as tubelet wrote them first."""
    (folder / "preprocessor_config.json").unlink()
    half = [0.5, 0.5, 0.5]
    change_json(folder / "config.json", **{"pixel_mean": half, "pixel_std": half, **values})


def a_domain() -> Domain:
    import numpy as np

    return fit_domain(np.random.default_rng(0).normal(size=(40, N_STATISTICS)))


# --- loading -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda f: change_json(f / "config.json", base="text"),
            "'base' in .* must hold settings, got 'text'",
        ),
        (lambda f: change_json(f / "config.json", base=None), "'base' in .* must hold settings, got None"),
        (lambda f: change_json(f / "config.json", spacevllm=[1]), "'spacevllm' in .* must hold settings"),
        (
            lambda f: change_json(f / "config.json", base={"text_config": "no"}),
            "settings in .* do not make a model",
        ),
        (
            lambda f: change_json(f / "config.json", spacevllm=settings_of(f, max_frames="many")),
            "settings in .* do not make a model",
        ),
        (
            lambda f: (f / "model.safetensors.index.json").write_text(
                '{"weight_map": ["model.safetensors"]}'
            ),
            "must map tensor names to files",
        ),
        (lambda f: (f / "model.safetensors.index.json").write_text("[]"), "must hold a JSON object"),
        (
            lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../x"}}'),
            "must map tensor names to files",
        ),
        (lambda f: as_older_folder(f, pixel_mean=0.5), "pixel_mean in .*config.json must be three numbers"),
        (lambda f: as_older_folder(f, pixel_std=[0.5, 0.5]), "pixel_std in .* must be three numbers"),
        (lambda f: as_older_folder(f, pixel_std=[0.5, 0.5, "x"]), "pixel_std in .* must be three numbers"),
        (lambda f: as_older_folder(f, pixel_std=[0.5, 0.5, 0]), "pixel_std in .* above 0"),
        (
            lambda f: (f / "preprocessor_config.json").unlink(),
            "lacks the file preprocessor_config.json",
        ),
        (
            lambda f: change_json(f / "preprocessor_config.json", image_mean="grey"),
            "image_mean in .*preprocessor_config.json must be three numbers",
        ),
        (
            lambda f: change_json(f / "preprocessor_config.json", size={"height": 1, "width": 1}),
            "must make pictures of 64x64",
        ),
        (lambda f: (f / "tokenizer.json").unlink(), "it has no tokenizer.json"),
        (lambda f: (f / "tokenizer.json").write_text("{"), "cannot read .*tokenizer.json"),
    ],
)
def test_damaged_spacevllm_folders(tiny_folder: Path, tmp_path: Path, spoil: Spoil, message: str) -> None:
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    spoil(folder)
    with pytest.raises(ModelError, match=message) as caught:
        load_bundle(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "tokenizer.json").unlink(), "it has no tokenizer.json"),
        (
            lambda f: change_json(f / "processor_config.json", video_processor="x"),
            "video_processor in .* must hold settings",
        ),
        (
            lambda f: change_json(
                f / "processor_config.json", video_processor={"image_mean": 1, "image_std": [1, 1, 1]}
            ),
            "image_mean in .* must be three numbers",
        ),
    ],
)
def test_damaged_bases(tiny_base_folder: Path, tmp_path: Path, spoil: Spoil, message: str) -> None:
    folder = Path(shutil.copytree(tiny_base_folder, tmp_path / "base"))
    spoil(folder)
    with pytest.raises(ModelError, match=message) as caught:
        load_bundle(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["{}", "[]", "{", '{"mean": [1], "precision": [[1]], "limit": 2}', '{"mean": "x"}']
)
def test_damaged_domains(tiny_folder: Path, tmp_path: Path, text: str) -> None:
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    save_domain(a_domain(), folder)
    assert load_domain(folder) is not None
    (folder / "domain.json").write_text(text)
    with pytest.raises(ModelError, match=r"domain\.json") as caught:
        tubelet.load(folder, device="cpu")
    assert "\n" not in str(caught.value)


def test_numbers_that_are_none() -> None:
    assert pixel_numbers([1, 2, 3.5], "pixel_mean", Path("c.json")) == (1.0, 2.0, 3.5)
    for bad in (None, [1, 2, float("nan")], [True, 1, 1], {"a": 1}):
        with pytest.raises(ModelError, match=r"pixel_mean in c\.json must be three numbers"):
            pixel_numbers(bad, "pixel_mean", Path("c.json"))


def test_a_tokenizer_that_joins_digits_is_named(tiny_bundle: Bundle) -> None:
    """Answers whose times cannot be found in their own words are an error of the model, not a StopIteration."""
    import numpy as np

    from tubelet.spacevllm.batch import _told_frames
    from tubelet.spacevllm.prompts import encode
    from tubelet.training.samples import WorldMix, world_batch

    sample = world_batch(WorldMix(kind="video", batch=1, questions=1, frames=4), 0)[0]
    config, tokenizer = tiny_bundle.model.config, tiny_bundle.tokenizer
    named = (float(sample.times_s[0]), float(sample.times_s[-1]))
    words = encode(tokenizer, f"{named[0]:.1f}s-{named[1]:.1f}s.")
    assert max(_told_frames(words, named, sample, config, tokenizer)) == len(np.unique(sample.times_s)) - 1
    with pytest.raises(ModelError, match=r"the tokenizer writes '.*s' in an answer otherwise than alone"):
        _told_frames(words[:1], named, sample, config, tokenizer)


# --- devices -------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["foo", "cpu:7", "cuda:x", "meta"])
def test_devices_that_do_not_exist(tiny_folder: Path, device: str) -> None:
    with pytest.raises(ModelError, match=rf"device is cpu.* on this machine.*, got '{device}'") as caught:
        tubelet.load(tiny_folder, device=device)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("gpus", "device", "message"),
    [
        (
            0,
            "cuda",
            r"device cuda was asked for, but there is only cpu on this machine \(torch sees no GPU\)",
        ),
        (2, "cuda:2", r"device cuda:2 was asked for, but there is only cpu, cuda, cuda:0, cuda:1 on"),
    ],
)
def test_gpus_that_do_not_exist(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, gpus: int, device: str, message: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for method in (None, "zero-shot"):
        with pytest.raises(ModelError, match=message):
            tubelet.load(tiny_folder, device=device, method=method)


# --- saving --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config", [None, "{}", '{"name": "a web project"}', "no json"], ids=["none", "empty", "other", "text"]
)
def test_folders_that_are_no_model_are_left_alone(
    tiny_bundle: Bundle, tmp_path: Path, config: str | None
) -> None:
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "thesis.tex").write_text("ten years of work")
    if config is not None:
        (folder / "config.json").write_text(config)
    for save in (save_bundle, save_base):
        with pytest.raises(
            OutputError, match=r"no model .* saving would delete them: give a new or empty folder"
        ):
            save(tiny_bundle, folder)
    assert (folder / "thesis.tex").read_text() == "ten years of work"
    assert [path.name for path in tmp_path.iterdir()] == ["thesis"]


def test_training_does_not_start_where_its_model_could_not_be_saved(
    tiny_base_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from tubelet import cli

    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "run" / "model" / "notes.txt").write_text("mine")
    (tmp_path / "recipe.yaml").write_text(
        f"name: a\nmodel: pico-base\nstart: {tiny_base_folder}\nout: {tmp_path / 'run'}\n"
        "stages:\n  - {name: s, steps: 1, data: [{kind: image, batch: 2, questions: 2, tasks: [qa]}]}\n"
    )
    monkeypatch.setattr("sys.argv", ["tubelet", "train", str(tmp_path / "recipe.yaml")])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    said = capsys.readouterr().err
    assert stop.value.code == 1 and "saving would delete them: give a new or empty folder" in said
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["model"]


def test_a_folder_that_fills_while_a_model_is_written(tmp_path: Path) -> None:
    with (
        pytest.raises(OutputError, match="saving would delete them"),
        atomic_folder(tmp_path / "model") as new,
    ):
        (new / "config.json").write_text("{}")
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "notes.txt").write_text("mine")
    assert (tmp_path / "model" / "notes.txt").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_empty_folders_and_models_are_replaced(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    save_bundle(tiny_bundle, tmp_path / "empty")
    save_bundle(tiny_bundle, tmp_path / "empty")
    check_replaceable(tmp_path / "nothing")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    save_bundle(tiny_bundle, ".")
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "here"):
        assert load_bundle(tmp_path / name).layout == tiny_bundle.layout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "here"]
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="a file of this name is in the way"):
        save_bundle(tiny_bundle, tmp_path / "file")


def test_the_older_model_comes_back_when_the_new_one_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "old"}')
    rename = Path.rename

    def fails(self: Path, target: Path) -> Path:
        if target == folder and not self.name.endswith("-before"):
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(OutputError, match="Input/output error"), atomic_folder(folder) as new:
        (new / "config.json").write_text('{"model_type": "new"}')
    assert json.loads((folder / "config.json").read_text()) == {"model_type": "old"}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("save", [save_bundle, save_base])
def test_a_full_disk(tiny_bundle: Bundle, tmp_path: Path, save: Callable[..., Path]) -> None:
    with full_disk(100_000), pytest.raises(OutputError, match="cannot write a model to") as caught:
        save(tiny_bundle, tmp_path / "model")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_saving_a_base_draws_no_bars(
    tiny_bundle: Bundle, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    save_base(tiny_bundle, tmp_path / "base")
    assert capfd.readouterr().err == ""


# --- from Python ---------------------------------------------------------------------------------


def test_save_pretrained(tiny: Any, toy_video: Path, tmp_path: Path) -> None:
    grounder = type(tiny)(tiny.bundle, tiny.name, tiny.revision, a_domain())
    folder = grounder.save_pretrained(tmp_path / "mine")
    again: Any = tubelet.load(folder, device="cpu")
    assert again.domain == load_domain(folder) and again.domain is not None
    one, two = (g.ground(toy_video, "the red circle") for g in (tiny, again))
    assert one.tubes == two.tubes and one.confidence == two.confidence
    card = (folder / "README.md").read_text()
    for said in ("license:", "Licence:", "What it knows:", "Numbers:", "tubelet.load"):
        assert said in card, said
    assert {"config.json", "model.safetensors", "tokenizer.json", "preprocessor_config.json"} <= {
        path.name for path in folder.iterdir()
    }
    # once more, in half the bytes and with a card of one's own
    half = again.save_pretrained(tmp_path / "half", dtype="float16", card="# mine\n")
    sizes = [(path / "model.safetensors").stat().st_size for path in (folder, half)]
    assert sizes[1] < 0.6 * sizes[0] and (half / "README.md").read_text() == "# mine\n"
    assert tubelet.load(half, device="cpu").domain == again.domain  # type: ignore[attr-defined]
    with pytest.raises(ModelError, match="dtype is float32, bfloat16 or float16, got 'int8'"):
        grounder.save_pretrained(tmp_path / "wrong", dtype="int8")
    assert torch_dtype(None) is None and not (tmp_path / "wrong").exists()


def test_what_a_preprocessor_says_is_used(tiny_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    change_json(folder / "preprocessor_config.json", image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6])
    bundle = load_bundle(folder)
    assert (bundle.pixel_mean, bundle.pixel_std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    as_older_folder(folder, pixel_mean=[0.7, 0.7, 0.7])
    assert load_bundle(folder).pixel_mean == (0.7, 0.7, 0.7)


def test_cards_of_the_toy_world_say_whose_they_are(new_tiny: Callable[..., Bundle], tmp_path: Path) -> None:
    from dataclasses import replace

    bundle = new_tiny()
    bundle.model.config = replace(bundle.model.config, domain="tubelet's toy world")
    for folder in (save_bundle(bundle, tmp_path / "space"), save_base(bundle, tmp_path / "base")):
        card = (folder / "README.md").read_text()
        assert "license: apache-2.0" in card and "trained on tubelet's toy world" in card
        assert "docs/results.md" in card


def test_training_a_base_writes_what_its_pictures_look_like(
    tiny_base_folder: Path, tiny_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    from tubelet.spacevllm.train import make_job
    from tubelet.training.recipe import Recipe, Stage
    from tubelet.training.samples import WorldMix

    domain = a_domain()
    monkeypatch.setattr("tubelet.spacevllm.train.world_domain", lambda mixes: domain)
    stages = (Stage("chat", 1, (WorldMix(kind="image", batch=2, questions=2, tasks=("qa",)),)),)
    for name in ("tubelet's toy world", ""):
        config = replace(tiny_config, motion_layers=0, domain=name)
        recipe = Recipe(
            name="base",
            model="pico-base",
            start=str(tiny_base_folder),
            out=str(tmp_path),
            spacevllm=config,
            stages=stages,
        )
        make_job(recipe).save(tmp_path / "model")
        written = load_domain(tmp_path / "model")
        assert (written is not None) == bool(name)
        if written is not None:
            assert written.limit == pytest.approx(domain.limit, abs=1e-3)
