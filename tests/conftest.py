"""Shared fixtures: untrained SpaceVLLMs of pico shape that build in milliseconds, a small video and image.

`tiny` is a loaded grounder, `tiny_folder` its folder, `tiny_bundle` its parts (do not change it), and
`new_tiny(...)` makes a fresh one that a test may change. Their weights are random but large, so that every
input moves every output.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# the same examples in every run: a run that fails says something about the change. New ones: HYPOTHESIS_PROFILE=new
settings.register_profile("same", derandomize=True)
settings.register_profile("new", derandomize=False)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))

# one thread in the tests and in the processes they start: sums come out the same to the last bit, and the parallel
# workers of pytest do not fight for the cores
os.environ["OMP_NUM_THREADS"] = "1"

TINY_FRAMES = 4


@pytest.fixture(scope="session")
def pico_vocabulary() -> Any:
    """The pico tokenizer, without query tokens; trained once per session. Copy it before changing it."""
    from tubelet.pico import pico_tokenizer

    return pico_tokenizer()


@pytest.fixture(scope="session")
def tiny_config() -> Any:
    """Settings with every addition switched on, so that tests meet them."""
    from tubelet.spacevllm.config import DecoderConfig, SpaceVLLMConfig

    return SpaceVLLMConfig(
        max_frames=TINY_FRAMES,
        time_layout="interleaved",
        prompts="brief",
        time_decimals=1,
        span_reader="both",
        mid_layer=1,
        motion_layers=1,
        presence_threshold=0.0,
        decoder=DecoderConfig(width=32, heads=4, temporal_layers=1, grid_position=True, cells=True),
    )


@pytest.fixture(scope="session")
def new_tiny(pico_vocabulary: Any, tiny_config: Any) -> Callable[..., Any]:
    """new_tiny(config=..., seed=0, queries=True, trained_scale=False) -> Bundle.

    trained_scale keeps transformers' own initialisation (as training starts from) instead of large weights.
    """

    def make(
        config: Any = None, seed: int = 0, queries: bool = True, trained_scale: bool = False, hidden: int = 32
    ) -> Any:
        import torch
        from transformers import LlavaOnevisionForConditionalGeneration

        from tubelet.pico import VIDEO_TOKEN, init_pico_vision, pico_config
        from tubelet.spacevllm.checkpoint import Bundle, with_queries
        from tubelet.spacevllm.model import SpaceVLLM
        from tubelet.spacevllm.prompts import make_layout

        config = config or tiny_config
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            tokenizer = copy.deepcopy(pico_vocabulary)
            base = LlavaOnevisionForConditionalGeneration(pico_config(tokenizer, hidden, 2, 2))
            init_pico_vision(base)
            mean = std = (0.5, 0.5, 0.5)
            layout = make_layout(tokenizer, VIDEO_TOKEN, 0)
            bundle = Bundle(SpaceVLLM(base, config), tokenizer, layout, mean, std, trained=True)
            if queries:
                bundle = with_queries(bundle, config)
            if not trained_scale:
                with torch.no_grad():
                    for parameter in bundle.model.parameters():
                        if parameter.ndim >= 2:
                            parameter.normal_(0.0, parameter[0].numel() ** -0.5)
                        else:
                            parameter.add_(torch.randn_like(parameter) * 0.1)
        bundle.model.eval()
        return bundle

    return make


@pytest.fixture(scope="session")
def tiny_bundle(new_tiny: Callable[..., Any]) -> Any:
    return new_tiny()


@pytest.fixture(scope="session")
def tiny_folder(tiny_bundle: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SpaceVLLM folder of untrained pico shape: hidden size 32, 2 layers, 4 frames."""
    from tubelet.spacevllm.saving import save_bundle

    return save_bundle(tiny_bundle, tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> Any:
    """The grounder loaded from `tiny_folder`, on the CPU."""
    import tubelet

    return tubelet.load(tiny_folder, device="cpu")


@pytest.fixture(scope="session")
def tiny_base_folder(new_tiny: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chat base in the stock LLaVA-OneVision layout, without query tokens, as training would start it."""
    from tubelet.spacevllm.saving import save_base

    return save_base(new_tiny(queries=False, trained_scale=True), tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="session")
def toy_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one small toy-world mp4 in videos/ and its annotations."""
    from tubelet.world.files import make_world

    folder = tmp_path_factory.mktemp("world")
    make_world(folder, n=1, seed=3, questions=3, height=48, fps=6.0)
    return folder


@pytest.fixture(scope="session")
def toy_video(toy_world: Path) -> Path:
    return next((toy_world / "videos").glob("*.mp4"))


@pytest.fixture(scope="session")
def toy_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A png with a red square on a grey ground."""
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (80, 60), (120, 120, 120))
    ImageDraw.Draw(picture).rectangle((10, 20, 40, 50), fill=(220, 20, 20))
    path = tmp_path_factory.mktemp("images") / "square.png"
    picture.save(path)
    return path
