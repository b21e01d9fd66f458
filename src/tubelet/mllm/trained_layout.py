"""The layout a small base was trained in, where that is not the stock one: frame times between the frames.

A LLaVA-OneVision folder that tubelet trained says in its tubelet.json how it was talked to. Attention under a prompt
of another layout says little, so `load_mllm` reads the folder in the layout of its training:

    stock        <|im_start|>user <video>...\\n
    interleaved  <|im_start|>user 0.0s<video>0.5s<video>...\\n      (a picture: no time)

Layouts that list the times in a sentence after the frames are read as stock: that sentence belongs to the question.

Capabilities say so as data: timestamps in the text, tokens that are not contiguous, at most `max_frames` frames.
Layouts whose visual tokens are others (newlines after each frame or row, another pooling) are refused by name.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from tubelet.errors import ModelError
from tubelet.mllm.family import Family
from tubelet.mllm.layout import VisualText
from tubelet.mllm.parts import Capabilities, VisualGrid

LAYOUTS = ("trained", "stock")


def with_trained_layout(family: Family, folder: Path) -> Family:
    """The adapter that lays a folder's prompts out as in its training; the same one for folders that say nothing.

    Raises ModelError for a damaged tubelet.json and for layouts whose visual tokens this family does not make.
    """
    from tubelet.spacevllm.checkpoint import chat_settings
    from tubelet.spacevllm.prompts import seconds

    if family.model_type != "llava_onevision":
        return family
    settings = chat_settings(folder)
    if settings is None:
        return family
    for name, value, known in (
        ("newline", settings.newline, ("base", "one")),
        ("pool", settings.pool, ("base", "bilinear")),
    ):
        if value not in known:
            raise ModelError(
                f"{folder.name} was trained with {name} {value!r}, which is not read zero-shot: only {known[1]!r} is. "
                "Choose a checkpoint in the stock LLaVA-OneVision layout, or layout='stock' to read it nevertheless"
            )
    timed = settings.time_layout == "interleaved"

    def capabilities(model: Any, limit: int | None) -> Capabilities:
        return replace(
            family.capabilities(model, limit),
            timestamps="seconds" if timed else "none",
            contiguous=not timed,
            max_frames=settings.max_frames,
        )

    def video_text(processor: Any, grid: VisualGrid) -> VisualText:
        if grid.n_steps == 1:  # pictures have no time
            return family.video_text(processor, grid)
        cells, token = grid.n_rows * grid.n_columns, processor.video_token
        runs = (cells,) * (grid.n_steps - 1) + (cells + grid.trailing,)
        return VisualText("".join(f"{seconds(settings, float(t))}{token}" for t in grid.times_s), token, runs)

    return replace(family, capabilities=capabilities, video_text=video_text if timed else family.video_text)
