"""LLaVA-Video and LLaVA-OneVision in the layout of the LLaVA-NeXT repository: convert them, or load them as they are.

Converted, they are a stock LLaVA-OneVision folder (which transformers alone loads, too) with a tubelet.json beside it
that says what the stock config cannot: where the newlines stand, how frames are pooled, how times are told and which
rows of the vocabulary are words. A tensor keeps its dtype and its bits; only one shard is in memory at a time. Rows are
added to the vocabulary only where there is no room for the two placeholders <image> and <video>.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tubelet.errors import ModelError
from tubelet.llava_st.checkpoint import load_tokenizer
from tubelet.llava_st.convert import Finding
from tubelet.model_folder import (
    INDEX,
    WEIGHTS,
    TensorFolder,
    atomic_folder,
    first_line,
    read_json,
    tensor_report,
    write_tensors,
)
from tubelet.pico import IMAGE_TOKEN, VIDEO_TOKEN
from tubelet.spacevllm.checkpoint import SETTINGS, Bundle
from tubelet.spacevllm.config import SpaceVLLMConfig
from tubelet.spacevllm.llava_next_layout import (
    CHAT_TEMPLATE,
    EMBEDDING,
    HEAD,
    NEWLINE,
    OUR_EMBEDDING,
    TOWER,
    check_kind,
    inner_tower,
    is_computed,
    our_name,
    outer_tower,
    pinpoints,
    published_name,
    text_config,
    video_settings,
)
from tubelet.spacevllm.llava_next_report import text_findings, tower_finding, video_findings
from tubelet.spacevllm.model import SpaceVLLM
from tubelet.spacevllm.prompts import make_layout

_PIXELS = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # SigLIP's mean and std
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True, slots=True)
class Opened:
    """A checkpoint, read but for its tensors.

    sources: our tensor name -> where it is; rows: of the vocabulary as we have it; config: a LlavaOnevisionConfig.
    """

    folder: Path
    data: Mapping[str, Any]
    sources: Mapping[str, tuple[TensorFolder, str]]
    config: Any
    rows: int
    tokenizer: Any
    settings: SpaceVLLMConfig
    findings: tuple[Finding, ...]

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor by our name, as it is stored; the two vocabulary matrices with their new rows (zeros)."""
        if name not in self.sources:
            return torch.zeros(self.config.text_config.hidden_size, dtype=getattr(torch, self.config.dtype))
        folder, source = self.sources[name]
        tensor = folder.get(source)
        new = self.rows - len(tensor) if name in (OUR_EMBEDDING, HEAD) else 0
        return torch.cat([tensor, tensor.new_zeros(new, tensor.shape[1])]) if new > 0 else tensor

    def byte_sizes(self) -> dict[str, int]:
        sizes = {}
        for name, (folder, source) in self.sources.items():
            shape = folder.shapes[source]
            rows = self.rows if name in (OUR_EMBEDDING, HEAD) else shape[0]
            sizes[name] = rows * math.prod(shape[1:]) * folder.itemsize(source)
        return sizes


def convert_llava_next(
    folder: Path | str,
    out: Path | str,
    vision_tower: Path | str | None = None,
    vision_heads: int | None = None,
) -> list[Finding]:
    """Published layout -> a LLaVA-OneVision folder with tubelet's settings. Returns what to know about it.

    Args:
        vision_tower: a SigLIP folder, for a checkpoint without its tower.
        vision_heads: attention heads of a tower in the checkpoint that is not a standard SigLIP.

    ModelError names missing, unknown or wrong-shaped tensors, as the published layout calls them, before anything
    is written.
    """
    opened = open_llava_next(folder, vision_tower, vision_heads)
    out = Path(out)
    sizes = opened.byte_sizes()
    if NEWLINE not in sizes:
        sizes[NEWLINE] = opened.config.text_config.hidden_size * 4
    with atomic_folder(out) as temporary:
        config = {"architectures": ["LlavaOnevisionForConditionalGeneration"], **opened.config.to_dict()}
        _write_json(temporary / "config.json", config)
        _write_json(temporary / SETTINGS, opened.settings.to_dict())
        generation = opened.folder / "generation_config.json"
        if generation.is_file():
            _write_json(temporary / generation.name, read_json(generation))
        _write_processor(temporary, opened)
        opened.tokenizer.save_pretrained(temporary)
        (temporary / "README.md").write_text(_card(opened), encoding="utf-8")
        write_tensors(temporary, sizes, opened.tensor)
    return list(opened.findings)


def load_llava_next(
    folder: Path | str,
    config: SpaceVLLMConfig | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    vision_tower: Path | str | None = None,
    vision_heads: int | None = None,
) -> Bundle:
    """The same without writing: a checkpoint in the published layout as a base in memory, without query tokens."""
    from transformers import LlavaOnevisionForConditionalGeneration

    opened = open_llava_next(folder, vision_tower, vision_heads)
    with _without_memory():
        base = LlavaOnevisionForConditionalGeneration(opened.config)
    state = {name: opened.tensor(name).to(dtype) for name in {**opened.sources, NEWLINE: None}}
    base.load_state_dict(state, strict=False, assign=True)
    base.tie_weights()
    for parameter in base.parameters():
        parameter.requires_grad_(True)
    model = SpaceVLLM(base, (config or opened.settings).on(opened.settings)).to(dtype).to(device)
    layout = make_layout(opened.tokenizer, VIDEO_TOKEN, 0)
    return Bundle(model, opened.tokenizer, layout, *_PIXELS, trained=False)


def llava_next_settings(folder: Path) -> SpaceVLLMConfig:
    """How a checkpoint in the published layout is talked to (`words` needs its tokenizer)."""
    data = read_json(folder / "config.json")
    check_kind(folder, data)
    return video_settings(folder, data, len(_stored_tokenizer(folder)))


def open_llava_next(
    folder: Path | str, vision_tower: Path | str | None = None, vision_heads: int | None = None
) -> Opened:
    """Read names, shapes, config and tokenizer of a checkpoint, and check that they make a whole model."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ModelError(f"there is no model folder {folder}")
    data = read_json(folder / "config.json")
    check_kind(folder, data)
    _refuse_pickles(folder)
    tensors = TensorFolder(folder)
    sources, unknown = _sources(tensors, bool(data.get("tie_word_embeddings")))
    if EMBEDDING not in tensors.shapes:
        raise ModelError(f"the weights in {folder} are no whole model: they lack {EMBEDDING}")
    stored = tensors.shapes[EMBEDDING][0]
    if isinstance(data.get("vocab_size"), int) and data["vocab_size"] != stored:
        raise ModelError(
            f"{folder / 'config.json'} speaks of {data['vocab_size']} words, but {EMBEDDING} has {stored} rows: "
            "config and weights are of different checkpoints"
        )
    if any(name.startswith(TOWER) for name in tensors.shapes):
        tower, home = inner_tower(folder, data, tensors.shapes, vision_heads), tensors
        told = "in the checkpoint" + ("" if vision_tower is None else f" ({vision_tower} is not used)")
    else:
        place = _tower_folder(folder, data, vision_tower)
        home = TensorFolder(place)
        tower, told = outer_tower(place, read_json(place / "config.json"), home.shapes), f"from {place.name}"
    sources |= {ours: (home, name) for ours, name in tower.names.items()}
    tokenizer, words = _tokenizer(folder, stored)
    settings = video_settings(folder, data, words)
    config = _config(folder, data, tower.config, max(stored, len(tokenizer)), tokenizer, tensors)
    opened = Opened(
        folder,
        data,
        sources,
        config,
        max(stored, len(tokenizer)),
        tokenizer,
        settings,
        (
            tower_finding(told, tower),
            *video_findings(data, settings, NEWLINE in tensors.shapes),
            *text_findings(data, tensors, words, stored, len(tokenizer)),
        ),
    )
    _check(opened, unknown)
    return opened


def _sources(tensors: TensorFolder, tied: bool) -> tuple[dict[str, tuple[TensorFolder, str]], list[str]]:
    """Our name -> place of everything but the tower, and published names that have no place."""
    sources, unknown = {}, []
    for name in tensors.shapes:
        if is_computed(name) or name.startswith(TOWER) or (tied and name == HEAD):
            continue
        ours = our_name(name)
        if ours is None:
            unknown.append(name)
        else:
            sources[ours] = (tensors, name)
    return sources, unknown


def _refuse_pickles(folder: Path) -> None:
    if (folder / WEIGHTS).is_file() or (folder / INDEX).is_file():
        return
    pickles = sorted(path.name for path in folder.glob("*.bin"))
    if pickles:
        raise ModelError(
            f"{folder} holds its weights as pickles ({', '.join(pickles[:3])}), which can run any code and are not "
            "read: get the safetensors of this model, or convert them where you trust their source"
        )


def _tower_folder(folder: Path, data: Mapping[str, Any], given: Path | str | None) -> Path:
    named = str(data["mm_vision_tower"])
    place = Path(given) if given is not None else Path(named)
    if not place.is_dir():
        raise ModelError(
            f"the checkpoint in {folder} does not hold its vision tower ({named}), and {place} is no folder: download "
            "that tower and give its folder to tubelet convert llava-next as --vision-tower (vision_tower)"
        )
    _refuse_pickles(place)
    return place


def _stored_tokenizer(folder: Path) -> Any:
    """Also from vocab.json and merges.txt alone, which AutoTokenizer does not take from a folder that says llava."""
    if (folder / "tokenizer.json").is_file() or not (folder / "vocab.json").is_file():
        return load_tokenizer(folder)
    from transformers import Qwen2Tokenizer

    try:
        return Qwen2Tokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"cannot load the tokenizer in {folder}: {first_line(error)}") from error


def _tokenizer(folder: Path, rows: int) -> tuple[Any, int]:
    """The tokenizer with both placeholders and a chat template that places them; how many words it had before."""
    tokenizer = _stored_tokenizer(folder)
    words = len(tokenizer)
    if words > rows:
        raise ModelError(f"the tokenizer in {folder} has {words} words, the model only {rows} rows for them")
    lacks = [token for token in ("<|im_start|>", "<|im_end|>") if token not in tokenizer.get_vocab()]
    if lacks:
        raise ModelError(f"the tokenizer in {folder} is not Qwen's: it lacks {' and '.join(lacks)}")
    tokenizer.add_tokens([IMAGE_TOKEN, VIDEO_TOKEN], special_tokens=True)
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer, words


def _config(
    folder: Path,
    data: Mapping[str, Any],
    vision: Mapping[str, Any],
    rows: int,
    tokenizer: Any,
    tensors: TensorFolder,
) -> Any:
    from transformers import LlavaOnevisionConfig, Qwen2Config, SiglipVisionConfig

    aspect = str(data.get("image_aspect_ratio"))
    text = text_config(folder, data, rows)
    try:
        config = LlavaOnevisionConfig(
            vision_config=SiglipVisionConfig.from_dict(dict(vision)),
            text_config=Qwen2Config.from_dict(text),
            image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
            video_token_index=tokenizer.convert_tokens_to_ids(VIDEO_TOKEN),
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
            tie_word_embeddings=text["tie_word_embeddings"],
            image_grid_pinpoints=pinpoints(folder, data, vision["image_size"]),
            vision_aspect_ratio=aspect if aspect.startswith("anyres_max_") else "anyres_max_9",
        )
    except (TypeError, ValueError, KeyError) as error:
        raise ModelError(f"the settings in {folder} do not make a model: {first_line(error)}") from error
    config.dtype = _DTYPES.get(tensors.dtype(EMBEDDING), "float32")
    return config


def _check(opened: Opened, unknown: list[str]) -> None:
    """ModelError that names every missing, unknown or wrong-shaped tensor; the newline only where it is used."""
    from transformers import LlavaOnevisionForConditionalGeneration

    try:
        with _without_memory():
            base = LlavaOnevisionForConditionalGeneration(opened.config)
    except (TypeError, ValueError) as error:
        raise ModelError(
            f"the settings in {opened.folder} do not make a model: {first_line(error)}"
        ) from error
    wanted = {name: tuple(tensor.shape) for name, tensor in base.state_dict().items()}
    optional = {HEAD} if opened.config.tie_word_embeddings else set()
    if opened.settings.newline == "none":
        optional.add(NEWLINE)
    missing = sorted(published_name(ours) for ours in set(wanted) - set(opened.sources) - optional)
    extra = [source for ours, (_, source) in opened.sources.items() if ours not in wanted]
    wrong = []
    for ours, (folder, source) in opened.sources.items():
        found = folder.shapes[source]
        if ours in (OUR_EMBEDDING, HEAD) and found[0] == folder.shapes.get(EMBEDDING, found)[0]:
            found = (opened.rows, *found[1:])
        if ours in wanted and found != wanted[ours]:
            wrong.append(f"{source} {folder.shapes[source]} instead of {wanted[ours]}")
    if missing or unknown or extra or wrong:
        report = tensor_report(missing, sorted([*unknown, *extra]), sorted(wrong))
        raise ModelError(f"the weights in {opened.folder} do not fit its config.json: {report}")


def _without_memory() -> Any:
    from accelerate import init_empty_weights

    return init_empty_weights(include_buffers=False)


# --- files ---------------------------------------------------------------------------------------


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=1, default=str) + "\n", encoding="utf-8")


def _write_processor(folder: Path, opened: Opened) -> None:
    """The stock processor, so that transformers alone can load the folder; nothing without torchvision."""
    from transformers import (
        LlavaOnevisionImageProcessor,
        LlavaOnevisionProcessor,
        LlavaOnevisionVideoProcessor,
    )
    from transformers.utils import is_torchvision_available

    if not is_torchvision_available():
        return
    vision, tokenizer = opened.config.vision_config, opened.tokenizer
    square = {"height": vision.image_size, "width": vision.image_size}
    pixels = {"image_mean": list(_PIXELS[0]), "image_std": list(_PIXELS[1])}
    tokenizer.image_token, tokenizer.video_token = IMAGE_TOKEN, VIDEO_TOKEN
    LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessor(
            size=square, image_grid_pinpoints=opened.config.image_grid_pinpoints, **pixels
        ),
        video_processor=LlavaOnevisionVideoProcessor(size=square, **pixels),
        tokenizer=tokenizer,
        num_image_tokens=(vision.image_size // vision.patch_size) ** 2,
        vision_feature_select_strategy="full",
        vision_aspect_ratio=opened.config.vision_aspect_ratio,
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(folder)


def _card(opened: Opened) -> str:
    settings = opened.settings
    return (
        "---\nlibrary_name: tubelet\ntags: [video-text-to-text]\n---\n\n"
        f"# {opened.folder.resolve().name}, converted from the LLaVA-NeXT layout\n\n"
        f"Videos: newlines {settings.newline}, pooling {settings.pool}, times {settings.time_layout} "
        "(tubelet.json). transformers alone always places one newline after bilinear pooling.\n"
    )
