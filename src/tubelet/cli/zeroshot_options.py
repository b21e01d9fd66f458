"""The flags of the zero-shot method, shared by `ground` and `eval`, and the grounder that they mean."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tubelet.errors import QueryError

if TYPE_CHECKING:
    from tubelet.tube import Prediction
    from tubelet.zeroshot.options import ZeroShotOptions

Method = Annotated[str, typer.Option(help='"zero-shot": attention of a video MLLM over proposals.')]
Proposals = Annotated[
    str, typer.Option(help="For zero-shot: motion (default), grounding-dino-sam2, sam3, owlv2, files.")
]
ProposalsFile = Annotated[
    str,
    typer.Option(
        help="For zero-shot: tracks that were made before; {stem} in it stands for the video's name."
    ),
]
Phrases = Annotated[
    list[str] | None,
    typer.Option(
        help="For zero-shot: what a detector looks for, once per phrase; default: each sentence's subject."
    ),
]
Quality = Annotated[
    bool, typer.Option("--quality", help="For zero-shot: tuned prompts and the reversed video.")
]
Preset = Annotated[str, typer.Option(help="For zero-shot: start from tubelet (default), paper or published.")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="For zero-shot: key=value, any option of docs/zero-shot.md; wins over the rest."
    ),
]
ProviderSettings = Annotated[
    list[str] | None,
    typer.Option(
        "--provider-set", help="For zero-shot: key=value of the proposals (detector, tracker, fps, ...)."
    ),
]
Cache = Annotated[str, typer.Option(help="For zero-shot: folder that keeps tracks and sub-queries.")]
Split = Annotated[str, typer.Option(help="For zero-shot: rules (default) or model make the sub-queries.")]
EndpointUrl = Annotated[
    str, typer.Option("--endpoint", help="For zero-shot: or this OpenAI-compatible server does.")
]
EndpointModel = Annotated[str, typer.Option(help="The name of the endpoint's model.")]
MaxFrameTokens = Annotated[
    int, typer.Option(help="For zero-shot: visual tokens per frame at most; 0: the model's own.", min=0)
]

_FLAGS = {"phrases": "--phrase", "zero_shot": "--set", "provider": "--provider-set"}  # others: by their name


def options_of(
    proposals: str = "",
    proposals_file: str = "",
    phrases: Iterable[str] | None = None,
    quality: bool = False,
    preset: str = "",
    settings: Sequence[str] | None = None,
    provider_settings: Sequence[str] | None = None,
    cache: str = "",
    split: str = "",
    endpoint: str = "",
    endpoint_model: str = "",
    max_frame_tokens: int = 0,
) -> ZeroShotOptions:
    """Flags as options. Raises RecipeError for a --set that is no key=value, QueryError for what excludes itself."""
    from tubelet.config_io import with_overrides
    from tubelet.zeroshot.options import ZeroShotOptions

    return ZeroShotOptions(
        proposals,
        proposals_file,
        tuple(phrases or ()),
        preset,
        quality,
        with_overrides({}, settings or []),
        with_overrides({}, provider_settings or []),
        cache,
        split,
        endpoint,
        endpoint_model,
        max_frame_tokens,
    )


def load_grounder(
    model: str, method: str, options: ZeroShotOptions, device: str = "", dtype: str = ""
) -> Any:
    """The grounder of the options, which are never ignored. Models that only ground zero-shot need no --method."""
    from tubelet.zeroshot.options import load_chosen, means_zero_shot

    if options.given() and not means_zero_shot(model, method):
        name = options.given()[0]
        flag = _FLAGS.get(name, f"--{name.replace('_', '-')}")
        raise QueryError(f"{flag} is for attention over proposals: add --method zero-shot")
    return load_chosen(model, method, options, device or None, dtype or None)


def what_answered(grounder: Any, predictions: Iterable[Prediction]) -> str | None:
    """Such as: pico-base, zero-shot, 5 motion proposals. None for other methods."""
    provider = getattr(grounder, "proposals", None)
    if not isinstance(provider, str):
        return None
    counts = {p.provenance["n_proposals"] for p in predictions if "n_proposals" in p.provenance}
    number = "-".join(str(n) for n in sorted({min(counts), max(counts)})) + " " if counts else ""
    return f"{grounder.name}, {number}{provider} proposal{'' if counts == {1} else 's'}"
