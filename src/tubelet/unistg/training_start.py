"""A start for short training runs: a trained SpaceVLLM's trunk with a new space decoder and new heads.

What is kept: the base (vision tower, projector, LLM, with its query tokens) and the motion layers. What is new, from
`seed`: everything that grounds, that is the space decoder and the heads of the middle layer. The trunk of an embedded
model learnt from the toy world's exact truth; a decoder grown on it is no proof that labels alone suffice, but two
decoders grown on it differ by their labels only.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tubelet.errors import ModelError


def fresh_decoder(model: Path | str, out: Path | str, seed: int = 0) -> Path:
    """Write the folder `out`; returns it. Raises ModelError for a model that has no decoder to renew."""
    import torch

    from tubelet.grounder import find_model
    from tubelet.spacevllm.checkpoint import load_bundle
    from tubelet.spacevllm.model import SpaceVLLM
    from tubelet.spacevllm.saving import save_bundle

    bundle = load_bundle(find_model(str(model)))
    old = bundle.model
    if not bundle.layout.query_tokens:
        raise ModelError(f"{model} has no query tokens: a chat base is a start as it is")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        new = SpaceVLLM(old.base, old.config)
    if old.config.motion_layers:
        new.motion.load_state_dict(old.motion.state_dict())
    return save_bundle(replace(bundle, model=new, trained=False), out)
