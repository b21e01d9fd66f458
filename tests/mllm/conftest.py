"""One tiny checkpoint per family, written once per session and loaded two ways: by tubelet and by transformers."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")


@dataclass(frozen=True)
class Pair:
    """mllm: loaded by tubelet. stock: the same folder in transformers' own classes with eager attention."""

    family: str
    folder: Path
    mllm: Any
    stock: Any


@pytest.fixture(scope="session")
def pair_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Pair]:
    """pair_of("qwen2_vl") -> Pair; do not change what it holds."""
    made: dict[str, Pair] = {}

    def make(family: str) -> Pair:
        if family not in made:
            from tiny_checkpoints import write_checkpoint
            from transformers import AutoModelForImageTextToText

            from tubelet.mllm.loading import load_mllm

            folder = write_checkpoint(family, tmp_path_factory.mktemp("mllm") / family)
            stock = AutoModelForImageTextToText.from_pretrained(folder, attn_implementation="eager").eval()
            made[family] = Pair(family, folder, load_mllm(folder, device="cpu"), stock)
        return made[family]

    return make
