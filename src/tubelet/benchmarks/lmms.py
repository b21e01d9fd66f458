"""A plugin for lmms-eval: its tasks, its prompts and its metrics, with a tubelet model answering.

    python -m tubelet.benchmarks.lmms --model tubelet --model_args pretrained=spacevllm-pico \
        --tasks mvbench,videomme,tempcompass --batch_size 1 --output_path logs

Everything after the module's name goes to lmms-eval's own command line. Programs that start lmms-eval themselves call
`register()` before; packages that are installed announce `manifest` as an entry point of the group
`lmms_eval.models`. lmms_eval is imported when one of these is used, never by importing this module.

The model is one of lmms-eval's "simple" models. Requests about one video are answered together, so that it is decoded
and encoded once. Several pictures of one size are the frames of a video (MVBench's episodic_reasoning), one a second:
lmms-eval does not say when they were taken. Tasks that compare likelihoods, several rounds of talk and agents are
refused with a sentence: a tubelet model answers in words. An answer that fails is "" (lmms-eval has no other way to
count it as wrong) and a warning.

Written against lmms-eval 0.7.3 (api/model.py, api/instance.py, models/registry_v2.py, evaluator.py); the
table of models that `register` falls back to is that of 0.2 to 0.5.
"""

from __future__ import annotations

import io
import logging
import os
import re
import sys
from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np

from tubelet.errors import ModelError, TubeletError
from tubelet.frames import Clip, FrameGrid

MODEL_ID = "tubelet"
CLASS_PATH = "tubelet.benchmarks.lmms.TubeletLmms"
DEFAULT_NEW_TOKENS = 64

_log = logging.getLogger(__name__)
_PLACEHOLDER = re.compile(r"<(?:image|video|img|vid)\d*>\s*")


def __getattr__(name: str) -> Any:
    """`TubeletLmms`, made when lmms-eval looks it up by its path."""
    if name == "TubeletLmms":
        return model_class()
    raise AttributeError(name)


def manifest() -> Any:
    """What the registry of lmms-eval 0.6 and later wants to know (entry point group `lmms_eval.models`)."""
    _need()
    try:
        from lmms_eval.models.registry_v2 import ModelManifest  # type: ignore[import-not-found]
    except ImportError as error:
        raise ModelError(
            "this lmms-eval has no model registry with manifests: use 'python -m tubelet.benchmarks.lmms', "
            "or a version from 0.6 on"
        ) from error
    return ModelManifest(model_id=MODEL_ID, simple_class_path=CLASS_PATH)


def register() -> None:
    """Make lmms-eval know `--model tubelet`, in its registry of manifests or, before that, its table of models."""
    _need()
    import lmms_eval.models as models  # type: ignore[import-not-found]

    registry = getattr(models, "MODEL_REGISTRY_V2", None)
    if registry is not None:
        registry.register_manifest(manifest(), overwrite=True)
        return
    for table in ("AVAILABLE_SIMPLE_MODELS", "AVAILABLE_MODELS"):
        if hasattr(models, table):
            getattr(models, table)[MODEL_ID] = CLASS_PATH
            return
    raise ModelError("this lmms-eval has neither MODEL_REGISTRY_V2 nor AVAILABLE_MODELS: use another version")


def main() -> None:
    """lmms-eval's command line, with the tubelet model known to it."""
    register()
    from lmms_eval.__main__ import cli_evaluate  # type: ignore[import-not-found]

    cli_evaluate()


def _need() -> None:
    try:
        import lmms_eval  # noqa: F401
    except ImportError as error:
        raise ModelError(
            "lmms-eval is not installed: pip install lmms-eval (it is only needed for this plugin; "
            "'tubelet eval' runs mvbench, video-mme, egoschema and tempcompass without it)"
        ) from error


@cache
def model_class() -> type:
    """The class that lmms-eval makes an object of; a subclass of its `lmms`."""
    _need()
    from lmms_eval.api.model import lmms  # type: ignore[import-not-found]

    class TubeletLmms(lmms):  # type: ignore[misc]
        is_simple = True

        def __init__(
            self,
            pretrained: str = "spacevllm-pico",
            device: str | None = None,
            dtype: str | None = None,
            batch_size: int | str = 1,
            max_batch_size: int | None = None,
            **unknown: Any,
        ) -> None:
            super().__init__()
            if unknown:
                raise ModelError(
                    f"--model_args of tubelet are pretrained, device and dtype; got {', '.join(sorted(unknown))}"
                )
            if int(os.environ.get("WORLD_SIZE", "1")) > 1:
                raise ModelError(
                    "the tubelet model runs in one process: start lmms-eval without accelerate launch"
                )
            from tubelet.grounder import load

            if not str(batch_size).isdecimal():
                raise ModelError(
                    f"--batch_size is a number here (questions are asked in turn), got {batch_size!r}"
                )
            self.pretrained, self.batch_size_per_gpu = pretrained, int(batch_size)
            self.grounder = load(pretrained, device or None, dtype)
            self._rank, self._world_size = 0, 1

        @property
        def batch_size(self) -> int:
            return self.batch_size_per_gpu

        def generate_until(self, requests: Sequence[Any]) -> list[str]:
            return answer_requests(self.grounder, self.task_dict, requests, self.cache_hook)

        def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
            raise ModelError(
                "the tubelet model answers one question at a time, not several rounds: choose another task"
            )

        def generate_until_agentic(self, requests: Sequence[Any]) -> list[str]:
            raise ModelError("the tubelet model answers questions and uses no tools: choose another task")

        def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
            raise ModelError(
                "the tubelet model answers in words and has no likelihoods: choose the task's generating variant "
                "(for example egoschema_subset instead of egoschema_subset_mcppl)"
            )

    return TubeletLmms


def answer_requests(
    grounder: Any, task_dict: Mapping[str, Any], requests: Sequence[Any], cache_hook: Any = None
) -> list[str]:
    """Answers in the order of the requests; those about the same video are asked after one `encode`.

    A request's `args` are (context, generation settings, doc_to_visual, doc_id, task, split).
    """
    answers = [""] * len(requests)
    groups: dict[Any, list[int]] = {}
    for k, request in enumerate(requests):
        groups.setdefault(_same(task_dict, request), []).append(k)
    for members in groups.values():
        try:
            state = grounder.encode(_source(_visuals(task_dict, requests[members[0]])))
        except (TubeletError, RuntimeError) as error:
            _log.warning("%d questions are not answered: %s", len(members), error)
            continue
        for k in members:
            context, settings = requests[k].args[:2]
            try:
                answers[k] = _answer(grounder, state, context, settings)
            except (TubeletError, RuntimeError) as error:
                _log.warning("a question is not answered: %s", error)
            if cache_hook is not None:
                cache_hook.add_partial("generate_until", (context, settings), answers[k])
    return answers


def _same(task_dict: Mapping[str, Any], request: Any) -> tuple[Any, ...]:
    """Equal for requests about the same thing: a video is known by its path, pictures by their document.

    Pictures are made again when it is their turn: those of a whole benchmark do not fit into memory.
    """
    shown = _visuals(task_dict, request)
    return tuple(shown) if shown and all(isinstance(v, str) for v in shown) else tuple(request.args[3:6])


def _visuals(task_dict: Mapping[str, Any], request: Any) -> list[Any]:
    """What a request shows: paths of videos, pictures; none for a question without any."""
    _, _, doc_to_visual, doc_id, task, split = request.args
    shown = doc_to_visual(task_dict[task][split][doc_id])
    return [] if shown is None else list(shown) if isinstance(shown, list | tuple) else [shown]


def _answer(grounder: Any, state: Any, context: str, settings: Mapping[str, Any]) -> str:
    words = _PLACEHOLDER.sub("", context).strip()
    text = str(
        grounder.ask(state, words, max_new_tokens=int(settings.get("max_new_tokens", DEFAULT_NEW_TOKENS)))
    )
    stops = settings.get("until") or []
    for stop in [stops] if isinstance(stops, str) else stops:
        if stop:
            text = text.split(stop)[0]
    return text.strip()


def _source(shown: Sequence[Any]) -> Any:
    """What the grounder encodes: an opened video or image, or pictures in memory as the frames of a clip."""
    from tubelet.video import open_video

    if len(shown) > 1 and all(hasattr(v, "save") for v in shown) and len({v.size for v in shown}) == 1:
        return _frames(shown)
    if len(shown) != 1:
        what = "no picture or video" if not shown else f"{len(shown)} of them"
        raise ModelError(f"the tubelet model is asked about one video or one image, this question has {what}")
    if isinstance(shown[0], str):
        return open_video(shown[0])
    if not hasattr(shown[0], "save"):
        raise ModelError(f"expected a path or a picture, got {type(shown[0]).__name__}")
    data = io.BytesIO()
    shown[0].convert("RGB").save(data, format="PNG")
    return open_video(data.getvalue())


def _frames(pictures: Sequence[Any]) -> Clip:
    """Pictures as the frames of a video, in their order, one a second."""
    width, height = pictures[0].size
    grid = FrameGrid(
        np.arange(len(pictures)),
        np.arange(len(pictures), dtype=np.float64),
        Fraction(1),
        float(len(pictures)),
        width,
        height,
    )
    return Clip(np.stack([np.asarray(picture.convert("RGB")) for picture in pictures]), grid)


if __name__ == "__main__":
    try:
        main()
    except TubeletError as error:
        sys.stderr.write(f"tubelet: {error}\n")
        raise SystemExit(1) from None
