"""From the published layout to a tubelet folder and back, tensor by tensor, exactly; and the report of a conversion.

Only one shard is in memory at a time. A tensor keeps its dtype and its bits both ways; the two large matrices are
the published ones with the coordinate tables as further rows.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tubelet.errors import ModelError
from tubelet.llava_st.checkpoint import (
    MODEL_TYPE,
    OFFICIAL_FOLDER,
    build,
    check_plan,
    load_tokenizer,
    official_files,
    saved_config,
    saved_parts,
    write_official_files,
)
from tubelet.llava_st.official_layout import (
    OfficialGeometry,
    new_official_config,
    official_name,
    read_parts,
    sources,
    table_name,
    vocabulary_of,
)
from tubelet.llava_st.words import VISUAL_WORDS, find_words
from tubelet.model_folder import INDEX, TensorFolder, atomic_folder, read_json, weight_map, write_tensors


@dataclass(frozen=True, slots=True)
class Finding:
    """One quick test of a published checkpoint: what was looked at, what was found, and whether to worry."""

    what: str
    found: str
    warning: bool = False

    def __str__(self) -> str:
        return f"{'! ' if self.warning else '  '}{self.what}: {self.found}"


def convert_from_official(
    folder: Path | str, out: Path | str, mode: str | None = None, geometry: OfficialGeometry | None = None
) -> list[Finding]:
    """Published layout -> tubelet folder. Returns the report of the quick tests.

    ModelError names missing, unknown or wrong-shaped tensors before anything is written.
    """
    from dataclasses import replace

    folder, out = Path(folder), Path(out)
    data = read_json(folder / "config.json")
    tensors = TensorFolder(folder)
    parts = read_parts(folder, data, tensors.shapes, geometry or OfficialGeometry())
    files = official_files(folder)
    penalty = stored_generation(files).get("repetition_penalty", 1.0)
    config = replace(parts.config, repetition_penalty=float(penalty), mode=mode or parts.config.mode)
    parts = replace(parts, config=config)
    tokenizer = load_tokenizer(folder)
    words = find_words(tokenizer, config.bins)
    plan = sources(list(tensors.shapes))
    check_plan(folder, build(parts, words, meta=True), plan, tensors)

    def get(name: str) -> torch.Tensor:
        group = plan[name]
        return tensors.get(group[0]) if len(group) == 1 else torch.cat([tensors.get(part) for part in group])

    with atomic_folder(out) as temporary:
        (temporary / "config.json").write_text(saved_config(parts), encoding="utf-8")
        tokenizer.save_pretrained(temporary)
        write_official_files(temporary, files)
        (temporary / "README.md").write_text(_card(folder.name, config.mode), encoding="utf-8")
        sizes = {name: sum(_size(tensors, part) for part in group) for name, group in plan.items()}
        write_tensors(temporary, sizes, get)
    return report(folder)


def convert_to_official(folder: Path | str, out: Path | str) -> Path:
    """Tubelet folder -> published layout, with the files it was converted from where there are any."""
    folder, out = Path(folder), Path(out)
    data = read_json(folder / "config.json")
    if data.get("model_type") != MODEL_TYPE:
        raise ModelError(
            f"{folder} holds a model of type {data.get('model_type')!r}, only {MODEL_TYPE} is written back"
        )
    parts = saved_parts(folder, data)
    tensors = TensorFolder(folder)
    files = official_files(folder / OFFICIAL_FOLDER)
    config = parts.config
    if "config.json" not in files:
        tower = f"siglip-patch{parts.vision['patch_size']}-{parts.vision['image_size']}"
        files["config.json"] = json.dumps(new_official_config(parts, tower), indent=2, sort_keys=True) + "\n"
    plan = _official_plan(tensors, config.vocabulary, config.bins)
    with atomic_folder(out) as temporary:
        for name, text in files.items():
            if name != INDEX:
                (temporary / name).write_bytes(text.encode("utf-8"))
        if "tokenizer.json" not in files:
            load_tokenizer(folder).save_pretrained(temporary)
        sizes = {name: _rows_bytes(tensors, source, rows) for name, (source, rows) in plan.items()}
        write_tensors(temporary, sizes, _getter(tensors, plan), _old_shards(folder, files, plan))
        if INDEX in files:
            (temporary / INDEX).write_bytes(files[INDEX].encode("utf-8"))
    return out


_Rows = tuple[int, int] | None


def _official_plan(tensors: TensorFolder, vocabulary: int, bins: int) -> dict[str, tuple[str, _Rows]]:
    """Published name -> (our tensor, its rows)."""
    plan: dict[str, tuple[str, _Rows]] = {}
    matrices = {
        "llm.lm_head.weight": ("lm_head.weight", "output"),
        "llm.model.embed_tokens.weight": ("model.embed_tokens.weight", "input"),
    }
    for name in tensors.shapes:
        if name not in matrices:
            plan[official_name(name)] = (name, None)
            continue
        official, direction = matrices[name]
        plan[official] = (name, (0, vocabulary))
        for axis in range(3):
            first = vocabulary + axis * bins
            plan[table_name(axis, direction)] = (name, (first, first + bins))
    return dict(sorted(plan.items()))


def _getter(tensors: TensorFolder, plan: dict[str, tuple[str, _Rows]]) -> Callable[[str], torch.Tensor]:
    def get(name: str) -> torch.Tensor:
        source, rows = plan[name]
        tensor = tensors.get(source)
        return tensor if rows is None else tensor[rows[0] : rows[1]].clone()

    return get


def _old_shards(folder: Path, files: dict[str, str], plan: dict[str, Any]) -> dict[str, str] | None:
    """The division into files of the checkpoint it came from, when it holds the same tensors."""
    if INDEX not in files:
        return None
    shards = weight_map(folder / OFFICIAL_FOLDER / INDEX)
    return shards if set(shards) == set(plan) else None


def _size(tensors: TensorFolder, name: str) -> int:
    return math.prod(tensors.shapes[name]) * tensors.itemsize(name)


def _rows_bytes(tensors: TensorFolder, name: str, rows: _Rows) -> int:
    shape = tensors.shapes[name]
    count = math.prod(shape) if rows is None else (rows[1] - rows[0]) * math.prod(shape[1:])
    return count * tensors.itemsize(name)


def stored_generation(files: Mapping[str, str]) -> dict[str, Any]:
    """generation_config.json of a published checkpoint, {} where there is none."""
    try:
        data = json.loads(files.get("generation_config.json", "{}"))
    except ValueError as error:
        raise ModelError(f"generation_config.json is not JSON: {error}") from error
    return data if isinstance(data, dict) else {}


def _card(name: str, mode: str) -> str:
    return (
        "---\nlibrary_name: tubelet\ntags: [spatio-temporal-video-grounding]\n---\n\n"
        f"# LLaVA-ST, converted from {name}\n\nMode: {mode}. `tubelet convert --to-official` writes it back exactly.\n"
    )


# --- the report ------------------------------------------------------------------------------------


def report(folder: Path | str) -> list[Finding]:
    """The quick tests of a checkpoint in the published layout."""
    folder = Path(folder)
    data, tensors = read_json(folder / "config.json"), TensorFolder(folder)
    files = official_files(folder)
    return [
        _fast_packer(tensors),
        _patch_norms(folder, tensors),
        _generation_settings(files),
        _dtypes(tensors),
        _newline(tensors),
        _vision_tensors(tensors),
        _words(data, tensors),
    ]


def _fast_packer(tensors: TensorFolder) -> Finding:
    """Was it ever trained? Biases start at 0 and norm weights at 1, and training moves both."""
    prefix = "model.vision_resampler.token_packer_fast."
    names = [name for name in tensors.shapes if name.startswith(prefix)]
    biases = [name for name in names if name.endswith("bias")]
    norms = [name for name in names if name.endswith("weight") and ".ln_" in name]
    untrained = all(not tensors.get(n).any() for n in biases) and all(
        (tensors.get(n) == 1).all() for n in norms
    )
    if untrained:
        return Finding(
            "fast packer",
            "never trained (all biases are 0, all norm weights 1): stay in mode official, or train it",
            warning=True,
        )
    return Finding("fast packer", "its weights have moved from their start: it may have been trained")


def _patch_norms(folder: Path, tensors: TensorFolder) -> Finding:
    """The fast slots hold the plain embedding of <vid_patch> in official mode: how large is it?"""
    words = find_words(load_tokenizer(folder), tensors.shapes[table_name(0, "input")][0])
    norms = tensors.get("model.embed_tokens.weight").float().norm(dim=1)
    patch, mean = float(norms[words.fast.patch]), float(norms.mean())
    return Finding(
        VISUAL_WORDS[5], f"embedding norm {patch:.4g}, {patch / mean:.2f} times the average word's"
    )


def _generation_settings(files: dict[str, str]) -> Finding:
    settings = stored_generation(files)
    if not settings:
        return Finding("generation settings", "none stored")
    known = ("do_sample", "temperature", "top_k", "top_p", "repetition_penalty")
    shown = ", ".join(f"{key} {settings[key]}" for key in known if key in settings) or "defaults"
    penalised = settings.get("repetition_penalty", 1.0) != 1.0
    note = (
        " (the penalty makes repeated coordinates less likely; the published scripts keep it)"
        if penalised
        else ""
    )
    return Finding("generation settings", shown + note, warning=penalised)


def _dtypes(tensors: TensorFolder) -> Finding:
    found = Counter(str(tensors.dtype(name)) for name in tensors.shapes)
    shown = ", ".join(f"{dtype} ({count} tensors)" for dtype, count in found.most_common())
    return Finding("dtype", shown, warning=len(found) > 1)


def _newline(tensors: TensorFolder) -> Finding:
    there = "model.image_newline" in tensors.shapes
    return Finding("image_newline", "stored, not used, kept for writing back" if there else "not stored")


def _vision_tensors(tensors: TensorFolder) -> Finding:
    names = [name for name in tensors.shapes if name.startswith("model.vision_tower.")]
    return Finding("vision tower", f"{len(names)} tensors, {(len(names) - 5) // 16} layers")


def _words(data: dict[str, Any], tensors: TensorFolder) -> Finding:
    rows, said = tensors.shapes["model.embed_tokens.weight"][0], vocabulary_of(data)
    place = "text_config" if "text_config" in data and "vocab_size" in data["text_config"] else "top level"
    return Finding(
        "words", f"{rows} (config.json: {said} at {place if said is not None else 'no place'}), + anchors"
    )
