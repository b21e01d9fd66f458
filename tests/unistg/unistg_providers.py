"""Providers that fail, importable by worker processes."""

from __future__ import annotations

from typing import Any

from tubelet.errors import ModelError


def crashes(source: Any, phrases: Any, grid: Any) -> Any:
    raise RuntimeError("an index is out of range")


def cannot_load(source: Any, phrases: Any, grid: Any) -> Any:
    raise ModelError("the folder sam2 has no model.safetensors")
