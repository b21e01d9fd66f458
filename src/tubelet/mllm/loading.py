"""Load a video MLLM by name: an embedded model, a folder in the hub's layout, or a hub id.

The checkpoint is used as it is: transformers' Auto classes, its processor, its chat template. The hub is contacted
only for a hub id (see tubelet.grounder). What cannot be read says so by name: families without an adapter, models
without video, language models with layers that have no softmax attention.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tubelet.errors import ModelError
from tubelet.grounder import checked_device, find_model, revision_of
from tubelet.mllm.family import Family, check_plain_softmax
from tubelet.mllm.internvl import INTERNVL
from tubelet.mllm.llava import LLAVA_NEXT_VIDEO, LLAVA_ONEVISION
from tubelet.mllm.qwen_vl import QWEN2_5_VL, QWEN2_VL, QWEN3_VL, QWEN3_VL_MOE
from tubelet.mllm.trained_layout import LAYOUTS, with_trained_layout
from tubelet.model_folder import first_line, no_bars, read_json, tensor_report

if TYPE_CHECKING:
    import torch

    from tubelet.mllm.model import LoadedMllm

FAMILIES = {
    f.model_type: f
    for f in (LLAVA_ONEVISION, LLAVA_NEXT_VIDEO, QWEN2_VL, QWEN2_5_VL, QWEN3_VL, QWEN3_VL_MOE, INTERNVL)
}
"""transformers' model_type -> adapter."""

# what users are likely to try, and what to do instead
_INSTEAD = {
    "internvl_chat": "load the checkpoint whose name ends in -hf (for example OpenGVLab/InternVL3-8B-hf)",
    "llava_qwen": "load the llava-hf conversion (for example llava-hf/llava-onevision-qwen2-7b-ov-hf)",
    "llava_llama": "load the llava-hf conversion (for example llava-hf/LLaVA-NeXT-Video-7B-hf)",
    "llava": "it reads single images, no video",
    "llava_next": "it reads single images, no video: load a LLaVA-NeXT-Video",
    "qwen3_5": "most of its layers are linear attention, which has no attention rows",
    "qwen3_next": "most of its layers are linear attention, which has no attention rows",
}


def load_mllm(
    model: str | Path,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    max_frame_tokens: int | None = None,
    layout: str = "trained",
) -> LoadedMllm:
    """Load a frozen video MLLM, ready to be read.

    Args:
        model: embedded name ("pico-base"), folder, or hub id ("Qwen/Qwen2.5-VL-7B-Instruct").
        device: "cpu", "cuda", ...; default: cuda if there is one.
        dtype: "float32", "bfloat16", "float16" or a torch dtype; default: bfloat16 on a GPU, float32 on the CPU.
        max_frame_tokens: at most so many visual tokens per frame (LLaVA: coarser pooling; Qwen: smaller frames);
            None: as many as the checkpoint has.
        layout: "trained", as a folder's tubelet.json says (for example frame times between the frames; folders
            without one: stock), or "stock", as transformers' processor lays prompts out.

    Raises ModelError that says what was looked for, or why this model cannot be read.
    """
    import torch

    from tubelet.mllm.attention_rows import use_row_attention
    from tubelet.mllm.model import LoadedMllm

    folder = find_model(model)
    family = family_of(folder)
    if layout not in LAYOUTS:
        raise ModelError(f"layout is {' or '.join(LAYOUTS)}, got {layout!r}")
    if layout == "trained":
        family = with_trained_layout(family, folder)
    if max_frame_tokens is not None and max_frame_tokens < 1:
        raise ModelError(f"max_frame_tokens is at least 1, got {max_frame_tokens}")
    place = torch.device(checked_device(device))
    precision = _dtype(dtype or ("bfloat16" if place.type == "cuda" else "float32"))
    processor = _processor(folder, family)
    check_plain_softmax(_text_config(folder, family), family.name)  # before gigabytes are read
    network = _network(folder, family, precision)
    capabilities = family.capabilities(network, max_frame_tokens)
    use_row_attention(network.model.language_model)
    network.to(place).eval().requires_grad_(False)
    return LoadedMllm(
        str(model), revision_of(folder), family, capabilities, network, processor, max_frame_tokens
    )


def family_of(folder: Path) -> Family:
    """The adapter of a model folder; ModelError that names the family when there is none."""
    data = read_json(folder / "config.json")
    kind = data.get("model_type")
    if isinstance(kind, str) and kind in FAMILIES:
        return FAMILIES[kind]
    known = ", ".join(family.name for family in FAMILIES.values())
    instead = _INSTEAD.get(str(kind), "it has no adapter")
    raise ModelError(
        f"{folder.name} holds a model of type {kind!r}, which cannot be read as a video MLLM: {instead} "
        f"(supported: {known})"
    )


def _dtype(dtype: Any) -> Any:
    import torch

    names = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    found = names.get(dtype, dtype) if isinstance(dtype, str) else dtype
    if found not in names.values():
        raise ModelError(f"dtype is float32, bfloat16 or float16, got {dtype!r}")
    return found


def _processor(folder: Path, family: Family) -> Any:
    from transformers import AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise ModelError(
            f"cannot load the {family.name} processor of {folder}: {first_line(error)}"
        ) from error
    missing = [part for part in ("tokenizer", "video_processor") if getattr(processor, part, None) is None]
    if missing:
        raise ModelError(
            f"{folder} has no {' and no '.join(missing)}: copy the checkpoint's tokenizer and processor files into it"
        )
    return processor


def _text_config(folder: Path, family: Family) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True).get_text_config()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"cannot read the {family.name} config of {folder}: {first_line(error)}") from error


def _network(folder: Path, family: Family, dtype: Any) -> Any:
    from safetensors import SafetensorError
    from transformers import AutoModelForImageTextToText

    try:
        with no_bars():
            network, report = AutoModelForImageTextToText.from_pretrained(
                folder,
                dtype=dtype,
                local_files_only=True,
                output_loading_info=True,
                attn_implementation="sdpa",
            )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"cannot load the {family.name} weights of {folder}: {first_line(error)}") from error
    missing = sorted(report["missing_keys"])
    wrong = sorted(str(entry[0]) for entry in report["mismatched_keys"])
    if missing or wrong:
        raise ModelError(f"{folder} does not hold a whole {family.name}: {tensor_report(missing, [], wrong)}")
    return network
