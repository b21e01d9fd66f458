"""SpaceVLLM folders: what is in them; load one, or start from a LLaVA-OneVision (`saving` writes them).

A tubelet SpaceVLLM folder:

    config.json          {"model_type": "tubelet_spacevllm", "base": <LlavaOnevisionConfig>,
                          "spacevllm": <SpaceVLLMConfig>}
    model*.safetensors   names "base.*" (the stock model's own) and "space_decoder.*"; sharded when large
    tokenizer files      with the query tokens <r_0> .. <r_N_v>
    preprocessor_config.json   how pixels become the vision tower's input: size, mean, std
    domain.json          what its training pictures look like (domain.py), of models that know one small domain
    README.md            model card

Older folders say the mean and std in config.json. There is no processor of transformers: its processors know no query
tokens, which stand between the frames (prompts.py).

A folder in the stock LLaVA-OneVision layout also loads: it starts a new SpaceVLLM with an untrained decoder. So does
one in the layout of the LLaVA-NeXT repository (llava_next.py).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from tubelet.errors import ModelError
from tubelet.model_folder import (
    first_line,
    load_fast_tokenizer,
    no_bars,
    pixel_numbers,
    read_json,
    tensor_report,
    weight_map,
)
from tubelet.pico import VIDEO_TOKEN, init_pico_vision, pico_config, pico_tokenizer
from tubelet.spacevllm.config import SpaceVLLMConfig
from tubelet.spacevllm.llava_next_layout import is_llava_next
from tubelet.spacevllm.model import SpaceVLLM
from tubelet.spacevllm.prompts import PromptLayout, make_layout, query_token

log = logging.getLogger(__name__)

MODEL_TYPE = "tubelet_spacevllm"
SETTINGS = "tubelet.json"  # beside a stock base: how it was talked to in training
PREPROCESSOR = "preprocessor_config.json"
AUXILIARY = "auxiliary.safetensors"  # a base's training-only heads, so that a SpaceVLLM can grow from them
_VOCABULARIES = ("tokenizer.json", "vocab.json", "tokenizer.model")
_DEFAULT_PIXELS = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # SigLIP's mean and std


@dataclass(frozen=True, slots=True)
class Bundle:
    """A model and everything needed to talk to it."""

    model: SpaceVLLM
    tokenizer: Any
    layout: PromptLayout
    pixel_mean: tuple[float, float, float]
    pixel_std: tuple[float, float, float]
    trained: bool  # False: the decoder holds random weights


def new_pico(config: SpaceVLLMConfig) -> Bundle:
    """A random pico base (no query tokens yet) in the stock layout, with untrained heads."""
    from transformers import LlavaOnevisionForConditionalGeneration

    tokenizer = pico_tokenizer()
    base = LlavaOnevisionForConditionalGeneration(pico_config(tokenizer))
    init_pico_vision(base)
    layout = make_layout(tokenizer, VIDEO_TOKEN, 0)
    return Bundle(SpaceVLLM(base, config), tokenizer, layout, *_DEFAULT_PIXELS, trained=False)


def with_queries(bundle: Bundle, config: SpaceVLLMConfig) -> Bundle:
    """Give a base its N_v + 1 query tokens: rows in vocabulary, embedding, head. No-op when it has them."""
    if bundle.layout.query_tokens:
        return bundle
    tokenizer, base = bundle.tokenizer, bundle.model.base
    tokenizer.add_tokens([query_token(i) for i in range(config.max_frames + 1)], special_tokens=True)
    old = base.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > old:
        base.resize_token_embeddings(-(-len(tokenizer) // 8) * 8, mean_resizing=False)
    first = tokenizer.convert_tokens_to_ids(query_token(0))
    with torch.no_grad():
        table = base.get_input_embeddings().weight
        table[first:].normal_(0.0, float(table[:first].std()))
    layout = make_layout(tokenizer, _video_token(base, tokenizer), config.max_frames)
    return replace(bundle, layout=layout)


def with_settings(bundle: Bundle, config: SpaceVLLMConfig) -> Bundle:
    """The same weights under other settings: parts that only `config` has start with random weights (and are
    logged), parts that it lacks are left out."""
    old = bundle.model
    grown = SpaceVLLM(old.base, config.on(old.config)).to(old.device)
    wanted = grown.state_dict()
    kept = {k: v for k, v in old.state_dict().items() if k in wanted and v.shape == wanted[k].shape}
    grown.load_state_dict(kept, strict=False)
    new = sorted({name.split(".")[0] for name in wanted if name not in kept})
    if new:
        log.info("new settings: %s start with random weights", ", ".join(new))
    return replace(bundle, model=grown)


def load_bundle(
    folder: Path | str,
    config: SpaceVLLMConfig | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Bundle:
    """Load a SpaceVLLM folder, or a LLaVA-OneVision folder (`config` then sets up a new SpaceVLLM)."""
    folder = Path(folder)
    data = _read_config(folder)
    kind = data.get("model_type")
    if kind == MODEL_TYPE:
        return _load_saved(folder, data, dtype, device)
    if kind == "llava_onevision":
        stored = chat_settings(folder)
        return _load_base(folder, (config or stored or SpaceVLLMConfig()).on(stored), dtype, device)
    if is_llava_next(data):
        from tubelet.spacevllm.llava_next import load_llava_next

        return load_llava_next(folder, config, dtype, device)
    raise ModelError(
        f"{folder} holds a model of type {kind!r}; "
        f"tubelet's SpaceVLLM loads {MODEL_TYPE} and llava_onevision folders, and llava or llava_qwen ones of the "
        "LLaVA-NeXT repository"
    )


def chat_settings(folder: Path) -> SpaceVLLMConfig | None:
    """Settings that a base was trained with: of those that tubelet trained or converted, and of the LLaVA-NeXT
    repository's; None for other bases."""
    path = folder / SETTINGS
    if not path.is_file():
        if not is_llava_next(_read_config(folder)):
            return None
        from tubelet.spacevllm.llava_next import llava_next_settings

        return llava_next_settings(folder)
    try:
        return SpaceVLLMConfig.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(f"cannot read {path}: {error}") from error


def _read_config(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise ModelError(f"there is no model folder {folder}")
    return read_json(folder / "config.json")


def _load_saved(
    folder: Path, data: Mapping[str, Any], dtype: torch.dtype, device: torch.device | str
) -> Bundle:
    from huggingface_hub.errors import StrictDataclassError
    from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration

    path = folder / "config.json"
    for key in ("base", "spacevllm"):
        if key not in data:
            raise ModelError(f"{path} lacks {key!r}; was the folder written completely?")
        if not isinstance(data[key], Mapping):
            raise ModelError(
                f"{key!r} in {path} must hold settings, got {data[key]!r:.80}: copy or download the folder again"
            )
    try:
        config = SpaceVLLMConfig.from_dict(data["spacevllm"])
        base_config = LlavaOnevisionConfig.from_dict(dict(data["base"]))
        with _no_memory_for_weights(base_config):
            model = SpaceVLLM(LlavaOnevisionForConditionalGeneration(base_config), config)
    except (
        TypeError,
        ValueError,
        KeyError,
        AttributeError,
        ArithmeticError,
        RuntimeError,
        StrictDataclassError,
    ) as error:
        raise ModelError(f"the settings in {path} do not make a model: {first_line(error)}") from error
    mean, std = _saved_pixels(folder, data, model.image_size)
    model.to(dtype)
    state = {name: tensor.to(dtype) for name, tensor in read_tensors(folder).items()}
    check_tensors(folder, model, state)
    model.load_state_dict(state, strict=False, assign=True)
    model.base.tie_weights()
    model.to(device).eval()
    tokenizer = load_fast_tokenizer(folder)
    layout = make_layout(tokenizer, _video_token(model.base, tokenizer), config.max_frames)
    return Bundle(model, tokenizer, layout, mean, std, trained=bool(data.get("trained", True)))


def _saved_pixels(
    folder: Path, data: Mapping[str, Any], side: int
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and std of a SpaceVLLM folder: of its preprocessor file; of config.json where there is none."""
    path, names = folder / PREPROCESSOR, ("image_mean", "image_std")
    if path.is_file():
        data = read_json(path)
        if data.get("size") != {"height": side, "width": side}:
            raise ModelError(
                f"{path} must make pictures of {side}x{side}, as config.json says, got {data.get('size')!r:.80}"
            )
    else:
        path, names = folder / "config.json", ("pixel_mean", "pixel_std")
        if not all(name in data for name in names):
            raise ModelError(f"{folder} lacks the file {PREPROCESSOR}: copy or download the folder again")
    return pixel_numbers(data.get(names[0]), names[0], path), pixel_numbers(
        data.get(names[1]), names[1], path
    )


def _load_base(
    folder: Path, config: SpaceVLLMConfig, dtype: torch.dtype, device: torch.device | str
) -> Bundle:
    from transformers import LlavaOnevisionForConditionalGeneration

    try:
        with no_bars():
            base, info = LlavaOnevisionForConditionalGeneration.from_pretrained(
                str(folder),
                dtype=dtype,
                output_loading_info=True,
                local_files_only=True,
                ignore_mismatched_sizes=True,  # they are an error below, which names them
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"cannot load {folder} as a LLaVA-OneVision model: {first_line(error)}") from error
    missing = sorted(set(info["missing_keys"]) - tied_names(base, ""))
    wrong = sorted(
        f"{name} {tuple(found)} instead of {tuple(wanted)}"
        for name, found, wanted in info.get("mismatched_keys", ())
    )
    if missing or wrong:
        raise ModelError(_tensor_report(folder, missing, [], wrong))
    model = SpaceVLLM(base, config).to(dtype).to(device)
    auxiliary = folder / AUXILIARY
    if auxiliary.is_file():
        _load_auxiliary(auxiliary, model)
    tokenizer = _load_tokenizer(folder)
    mean, std = _pixel_statistics(folder)
    layout = make_layout(tokenizer, _video_token(base, tokenizer), 0)
    return Bundle(model, tokenizer, layout, mean, std, trained=False)


def _load_auxiliary(path: Path, model: SpaceVLLM) -> None:
    """Training-only heads that were saved beside a base; those that the new SpaceVLLM lacks are left out."""
    try:
        model.load_state_dict(load_file(path), strict=False)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"cannot read {path}: {first_line(error)}") from error
    except RuntimeError as error:
        raise ModelError(
            f"the heads in {path} do not fit these settings of the decoder: train the base with the same "
            f"settings, or delete the file to start with new heads ({' '.join(str(error).split())[:300]})"
        ) from error


def _no_memory_for_weights(config: Any) -> AbstractContextManager[Any]:
    """Large models on the meta device (weights are assigned later); small ones as they are: faster."""
    if config.text_config.hidden_size < 512:
        return nullcontext()
    from accelerate import init_empty_weights

    return cast(AbstractContextManager[Any], init_empty_weights(include_buffers=False))


def read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder's model.safetensors, single or sharded with its index."""
    index = folder / "model.safetensors.index.json"
    try:
        if index.is_file():
            names = sorted(set(weight_map(index).values()))
        else:
            names = ["model.safetensors"]
        tensors: dict[str, torch.Tensor] = {}
        for name in names:
            if not (folder / name).is_file():
                raise ModelError(f"{folder} lacks the weight file {name}: copy or download the folder again")
            tensors.update(load_file(folder / name))
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(f"cannot read the weights in {folder}: {first_line(error)}") from error
    return tensors


def check_tensors(folder: Path, model: SpaceVLLM, state: Mapping[str, torch.Tensor]) -> None:
    """ModelError that names every missing, unknown or wrong-shaped tensor (tied ones are stored once)."""
    wanted = model.state_dict()
    missing = sorted(set(wanted) - set(state) - tied_names(model.base, "base."))
    unknown = sorted(name for name in state if name not in wanted)
    wrong = sorted(
        f"{name} {tuple(state[name].shape)} instead of {tuple(wanted[name].shape)}"
        for name in state
        if name in wanted and state[name].shape != wanted[name].shape
    )
    if missing or unknown or wrong:
        raise ModelError(_tensor_report(folder, missing, unknown, wrong))


def tied_names(base: Any, prefix: str) -> set[str]:
    """Tensors that need not be stored: a head that is the embedding."""
    return {f"{prefix}lm_head.weight"} if base.config.tie_word_embeddings else set()


def _tensor_report(folder: Path, missing: list[str], unknown: list[str], wrong: list[str]) -> str:
    said = tensor_report(missing, unknown, wrong, shown=5)
    return f"the weights in {folder} do not fit its config.json: {said}"


def _load_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    template = folder / "chat_template.json"
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        if template.is_file():  # the processor's; the tokenizer's own may know text only
            tokenizer.chat_template = json.loads(template.read_text(encoding="utf-8"))["chat_template"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        if not any((folder / name).is_file() for name in _VOCABULARIES):
            raise ModelError(
                f"cannot load the tokenizer in {folder}: it has no tokenizer.json (nor one of the older files "
                f"{', '.join(_VOCABULARIES[1:])}); copy or download the folder again"
            ) from error
        raise ModelError(f"cannot load the tokenizer in {folder}: {first_line(error)}") from error
    return tokenizer


def _pixel_statistics(folder: Path) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and std of the processor: of its video part where there is one, in old and new file layouts."""
    for name, part in (
        ("processor_config.json", "video_processor"),
        ("video_preprocessor_config.json", None),
        ("preprocessor_config.json", None),
    ):
        path = folder / name
        if path.is_file():
            data = read_json(path)
            data = data.get(part, {}) if part else data
            if not isinstance(data, dict):
                raise ModelError(f"{part} in {path} must hold settings, got {data!r:.80}")
            if "image_mean" in data and "image_std" in data:
                mean = pixel_numbers(data["image_mean"], "image_mean", path)
                return mean, pixel_numbers(data["image_std"], "image_std", path)
    return _DEFAULT_PIXELS


def _video_token(base: Any, tokenizer: Any) -> str:
    token: str = tokenizer.convert_ids_to_tokens(base.config.video_token_id)
    return token
