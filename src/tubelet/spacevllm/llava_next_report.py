"""What to know about a converted LLaVA-NeXT checkpoint: its tower, its video tokens, its vocabulary, and worries."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch

from tubelet.llava_st.convert import Finding
from tubelet.model_folder import TensorFolder
from tubelet.spacevllm.config import SpaceVLLMConfig
from tubelet.spacevllm.llava_next_layout import EMBEDDING, HEAD, Tower


def tower_finding(told: str, tower: Tower) -> Finding:
    """told: where the tower was found."""
    layers, heads = tower.config["num_hidden_layers"], tower.config["num_attention_heads"]
    cut = f"; the last {tower.cut_layers} stored is not used" if tower.cut_layers else ""
    return Finding("vision tower", f"{told}, {layers} layers, {heads} heads{cut}")


def video_findings(data: Mapping[str, Any], settings: SpaceVLLMConfig, stored: bool) -> list[Finding]:
    """How a video becomes tokens; stored: is there an image_newline?"""
    stride = data.get("mm_spatial_pool_stride", 2)
    aspect = str(data.get("image_aspect_ratio"))
    out = [
        Finding(
            "video newlines",
            f"{settings.newline} (mm_newline_position {data.get('mm_newline_position', 'not given')})"
            + ("" if stored else "; no image_newline is stored, and none is used"),
        ),
        Finding("pooling", settings.pool),
        Finding("time sentence", "told" if settings.time_layout == "llava_video" else "not told"),
    ]
    if stride != 2:
        out.append(
            Finding("mm_spatial_pool_stride", f"{stride} is not read by the published code: 2", warning=True)
        )
    if settings.newline != "one" or settings.pool != "bilinear":
        out.append(
            Finding(
                "transformers alone",
                "reads videos with one newline after bilinear pooling, which this model was not trained on: load "
                "it with tubelet",
                warning=True,
            )
        )
    if not aspect.startswith("anyres_max_"):
        out.append(Finding("image_aspect_ratio", f"{aspect}: written as anyres_max_9", warning=True))
    return out


def text_findings(
    data: Mapping[str, Any], tensors: TensorFolder, words: int, rows: int, wanted: int
) -> list[Finding]:
    """Vocabulary, dtypes, head. words of the tokenizer, rows that are stored, rows that are wanted."""
    kinds = Counter(tensors.dtype(name) for name in tensors.shapes)
    shown = ", ".join(f"{kind} ({count} tensors)" for kind, count in kinds.most_common())
    grown = f", {wanted - rows} added for placeholders" if wanted > rows else ""
    out = [
        Finding("words", f"{words} in {rows} rows{grown}; the rows after {words} are never written"),
        Finding("dtype", shown, warning=len(kinds) > 1),
    ]
    if data.get("tie_word_embeddings"):
        same = HEAD not in tensors.shapes or torch.equal(tensors.get(HEAD), tensors.get(EMBEDDING))
        note = "" if same else ", though the stored lm_head.weight differs: it is left out"
        out.append(Finding("head", f"tied to the embeddings{note}", warning=not same))
    if data.get("rope_scaling") is not None:
        out.append(
            Finding(
                "rope_scaling", f"{data['rope_scaling']} is dropped, as the published code does", warning=True
            )
        )
    return out
