"""LLaVA-ST folders: load (ours or the published layout), save.

A tubelet LLaVA-ST folder:

    config.json          {"model_type": "tubelet_llava_st", "llm": <Qwen config>, "vision": <SigLIP config>,
                          "llava_st": <LlavaSTConfig>, ...}
    model*.safetensors   "llm.*" (stock Qwen names, V + 300 rows), "vision.*", "projector.*", "packer.*",
                         "official.*" (tensors of a published checkpoint that are not used)
    tokenizer files      with the 314 words of LLaVA-ST
    official/            the small files of the published checkpoint it was converted from, unchanged, if any
    README.md            model card

Conversion between the layouts, folder to folder, is in convert.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from tubelet import __version__
from tubelet.errors import ModelError
from tubelet.llava_st.config import MODES, LlavaSTConfig
from tubelet.llava_st.model import LlavaST
from tubelet.llava_st.official_layout import (
    KEPT_ASIDE,
    UNUSED,
    ModelParts,
    OfficialGeometry,
    is_official,
    read_parts,
    sources,
)
from tubelet.llava_st.words import Words, find_words
from tubelet.model_folder import (
    TensorFolder,
    atomic_folder,
    card_facts,
    card_licence,
    first_line,
    pixel_numbers,
    read_json,
    tensor_report,
    write_tensors,
)
from tubelet.spacevllm.domain import Domain, save_domain

MODEL_TYPE = "tubelet_llava_st"
OFFICIAL_FOLDER = "official"
_PIXELS = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@dataclass(frozen=True, slots=True)
class Bundle:
    """A model and everything needed to talk to it.

    official: texts of the small files of the published checkpoint it came from, by file name; aside: its unused
    tensors. Both are only there to write it back.
    """

    model: LlavaST
    tokenizer: Any
    pixel_mean: tuple[float, float, float] = _PIXELS[0]
    pixel_std: tuple[float, float, float] = _PIXELS[1]
    trained: bool = True
    official: Mapping[str, str] = field(default_factory=dict)
    aside: Mapping[str, torch.Tensor] = field(default_factory=dict)

    @property
    def words(self) -> Words:
        return self.model.words

    @property
    def config(self) -> LlavaSTConfig:
        return self.model.config


def load_llava_st(
    folder: Path | str,
    dtype: torch.dtype | None = torch.float32,
    device: torch.device | str = "cpu",
    mode: str | None = None,
    geometry: OfficialGeometry | None = None,
) -> Bundle:
    """Load a tubelet LLaVA-ST folder, or a folder in the published layout as it is.

    Args:
        dtype: of the weights in memory; None: as stored.
        mode: official, fast_fixed, width_fixed or fixed; default: what the checkpoint says.
        geometry: for a published layout whose tower is not SigLIP so400m: what its files do not say.

    Raises ModelError that names missing, unknown or wrong-shaped tensors, or what the tokenizer lacks.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ModelError(f"there is no model folder {folder}")
    data = read_json(folder / "config.json")
    tensors = TensorFolder(folder)
    if data.get("model_type") == MODEL_TYPE:
        parts = saved_parts(folder, data)
        plan: dict[str, tuple[str, ...]] = {name: (name,) for name in tensors.shapes}
    elif is_official(data):
        parts = read_parts(folder, data, tensors.shapes, geometry or OfficialGeometry())
        plan = sources(list(tensors.shapes))
    else:
        raise ModelError(
            f"{folder} holds a model of type {data.get('model_type')!r}; a LLaVA-ST is {MODEL_TYPE}, or llava or "
            "llava_qwen in the published layout"
        )
    if mode is not None:
        if mode not in MODES:
            raise ModelError(f"mode is one of {', '.join(MODES)}, got {mode!r}")
        parts = replace(parts, config=replace(parts.config, mode=mode))
    tokenizer = load_tokenizer(folder)
    model = build(parts, find_words(tokenizer, parts.config.bins), meta=True)
    check_plan(folder, model, plan, tensors)
    state = {name: _joined(tensors, group) for name, group in plan.items()}
    if dtype is not None:
        state = {n: t if n.startswith(KEPT_ASIDE) else t.to(dtype) for n, t in state.items()}
    aside = {n.removeprefix(KEPT_ASIDE): state.pop(n) for n in list(state) if n.startswith(KEPT_ASIDE)}
    _assign(model, state)
    model.to(device).eval()
    return Bundle(
        model,
        tokenizer,
        pixel_numbers(data.get("pixel_mean", _PIXELS[0]), "pixel_mean", folder / "config.json"),
        pixel_numbers(data.get("pixel_std", _PIXELS[1]), "pixel_std", folder / "config.json"),
        bool(data.get("trained", True)),
        official_files(folder if is_official(data) else folder / OFFICIAL_FOLDER),
        aside,
    )


def saved_parts(folder: Path, data: Mapping[str, Any]) -> ModelParts:
    """The configs in a tubelet folder's config.json."""
    for key in ("llm", "vision", "llava_st"):
        if not isinstance(data.get(key), Mapping):
            raise ModelError(f"{folder / 'config.json'} lacks {key!r}; was the folder written completely?")
    return ModelParts(dict(data["llm"]), dict(data["vision"]), LlavaSTConfig.from_dict(data["llava_st"]))


def build(parts: ModelParts, words: Words, meta: bool = False) -> LlavaST:
    """A LlavaST with random weights; meta: shapes only, and buffers that are computed."""
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM, SiglipVisionConfig, SiglipVisionModel

    if parts.llm.get("model_type") not in ("qwen2", "qwen3"):
        raise ModelError(
            f"the language model of a LLaVA-ST is a qwen2 or qwen3, got {parts.llm.get('model_type')!r}"
        )
    try:
        llm_config = AutoConfig.for_model(**parts.llm)
        vision_config = SiglipVisionConfig.from_dict(parts.vision)
        if not meta:
            llm = AutoModelForCausalLM.from_config(llm_config)
            return LlavaST(llm, SiglipVisionModel(vision_config), parts.config, words)
        with init_empty_weights(include_buffers=False):
            llm = AutoModelForCausalLM.from_config(llm_config)
            return LlavaST(llm, SiglipVisionModel(vision_config), parts.config, words)
    except (TypeError, ValueError) as error:
        raise ModelError(
            f"the settings of the checkpoint do not make a model: {first_line(error)}"
        ) from error


def check_plan(
    folder: Path, model: LlavaST, plan: Mapping[str, tuple[str, ...]], tensors: TensorFolder
) -> None:
    """ModelError that names every missing, unknown or wrong-shaped tensor, as the folder calls it."""
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    tied = {"llm.lm_head.weight"} if model.llm.config.tie_word_embeddings else set()
    missing = [part for group in plan.values() for part in group if part not in tensors.shapes]
    missing += sorted(set(wanted) - set(plan) - tied)
    unknown = sorted(
        group[0]
        for ours, group in plan.items()
        if ours not in wanted
        and not (ours.startswith(KEPT_ASIDE) and ours.removeprefix(KEPT_ASIDE) in UNUSED)
    )
    wrong = []
    for ours, group in plan.items():
        found = [tensors.shapes[part] for part in group if part in tensors.shapes]
        if ours not in wanted or len(found) < len(group):
            continue
        joined = (sum(shape[0] for shape in found), *found[0][1:]) if len(found) > 1 else found[0]
        if joined != wanted[ours] or any(shape[1:] != found[0][1:] for shape in found):
            shapes = " + ".join(str(shape) for shape in found)
            wrong.append(f"{' + '.join(group)} {shapes} instead of {wanted[ours]}")
    if missing or unknown or wrong:
        raise ModelError(
            f"the weights in {folder} do not fit its config.json: {tensor_report(missing, unknown, sorted(wrong))}"
        )


def _joined(tensors: TensorFolder, group: tuple[str, ...]) -> torch.Tensor:
    if len(group) == 1:
        return tensors.get(group[0])
    return torch.cat([tensors.get(name) for name in group])


def _assign(model: LlavaST, state: Mapping[str, torch.Tensor]) -> None:
    model.load_state_dict(dict(state), strict=False, assign=True)
    model.llm.tie_weights()
    for parameter in model.parameters():
        parameter.requires_grad_(True)


def load_tokenizer(folder: Path) -> Any:
    """From tokenizer.json where there is one, so that no class has to be guessed."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    kind = PreTrainedTokenizerFast if (folder / "tokenizer.json").is_file() else AutoTokenizer
    try:
        return kind.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"cannot load the tokenizer in {folder}: {first_line(error)}") from error


OFFICIAL_FILES = (
    "config.json",
    "generation_config.json",
    "added_tokens.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "chat_template.jinja",
    "model.safetensors.index.json",
)


def official_files(folder: Path) -> dict[str, str]:
    """Texts of the small files of a published checkpoint, by name."""
    out = {}
    for name in OFFICIAL_FILES:
        path = folder / name
        if path.is_file():
            try:
                out[name] = path.read_bytes().decode("utf-8")  # no translation of line ends
            except (OSError, UnicodeDecodeError) as error:
                raise ModelError(f"cannot read {path}: {first_line(error)}") from error
    return out


# --- saving --------------------------------------------------------------------------------------


def parts_of(bundle: Bundle) -> ModelParts:
    """The configs of a model in memory."""
    model = bundle.model
    return ModelParts(model.llm.config.to_dict(), model.vision.config.to_dict(), model.config)


def saved_config(
    parts: ModelParts,
    trained: bool = True,
    mean: tuple[float, ...] = _PIXELS[0],
    std: tuple[float, ...] = _PIXELS[1],
) -> str:
    """config.json of a tubelet folder."""
    data = {
        "model_type": MODEL_TYPE,
        "tubelet_version": __version__,
        "trained": trained,
        "llm": parts.llm,
        "vision": parts.vision,
        "llava_st": parts.config.to_dict(),
        "pixel_mean": list(mean),
        "pixel_std": list(std),
    }
    return json.dumps(data, indent=1, default=str) + "\n"


def save_llava_st(
    bundle: Bundle,
    folder: Path | str,
    dtype: torch.dtype | None = None,
    card: str = "",
    domain: Domain | None = None,
) -> Path:
    """Write a tubelet LLaVA-ST folder, atomically: it appears complete or not at all. `dtype` e.g. torch.float16.

    domain: what its training pictures look like, for the note on other footage. Raises OutputError.
    """
    folder = Path(folder)
    state = our_state(bundle)
    with atomic_folder(folder) as temporary:
        config = saved_config(parts_of(bundle), bundle.trained, bundle.pixel_mean, bundle.pixel_std)
        (temporary / "config.json").write_text(config, encoding="utf-8")
        bundle.tokenizer.save_pretrained(temporary)
        write_official_files(temporary, bundle.official)
        (temporary / "README.md").write_text(card or model_card(bundle), encoding="utf-8")
        if domain is not None:
            save_domain(domain, temporary)

        def get(name: str) -> torch.Tensor:
            tensor = state[name].detach().cpu()
            return tensor if name.startswith(KEPT_ASIDE) or dtype is None else tensor.to(dtype)

        write_tensors(temporary, {name: _bytes(tensor, dtype) for name, tensor in state.items()}, get)
    return folder


def our_state(bundle: Bundle) -> dict[str, torch.Tensor]:
    """Tensors to write: a tied head is left out, unused ones of the published checkpoint are kept."""
    state: dict[str, torch.Tensor] = dict(bundle.model.state_dict())
    if bundle.model.llm.config.tie_word_embeddings:
        state.pop("llm.lm_head.weight", None)
    return state | {KEPT_ASIDE + name: tensor for name, tensor in bundle.aside.items()}


def write_official_files(folder: Path, files: Mapping[str, str]) -> None:
    """Keep the small files of a published checkpoint beside the converted weights."""
    if files:
        (folder / OFFICIAL_FOLDER).mkdir()
        for name, text in files.items():
            (folder / OFFICIAL_FOLDER / name).write_bytes(text.encode("utf-8"))


def _bytes(tensor: torch.Tensor, dtype: torch.dtype | None) -> int:
    return int(tensor.numel() * (dtype or tensor.dtype).itemsize)


def model_card(bundle: Bundle) -> str:
    config = bundle.config
    n = sum(p.numel() for p in bundle.model.parameters())
    return (
        f"---\nlibrary_name: tubelet\n{card_licence(config.domain)}tags: [spatio-temporal-video-grounding]\n---\n\n"
        f"# LLaVA-ST ({n / 1e6:.1f} M parameters)\n\n"
        "Coordinates are words: boxes and times are read and written as tokens.\n\n"
        f"- Frames: {config.frames}\n- Mode: {config.mode}\n{card_facts(config.domain, bundle.trained)}"
    )
