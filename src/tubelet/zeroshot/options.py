"""What commands and jobs say about the zero-shot method, as plain data, and the grounder that is meant by it.

    options = ZeroShotOptions(proposals_file="tracks/{stem}.json", quality=True, zero_shot={"k": 5})
    grounder = load_with(options, "pico-base")

The fields are flags of `tubelet ground`, `batch` and `eval` and keys of a batch's YAML; what is left out is "", empty
or 0. Nothing is loaded before `load_with`; `check_options` finds what cannot work without loading anything.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from tubelet.errors import QueryError
from tubelet.zeroshot.settings import QUALITY, preset, settings_for

if TYPE_CHECKING:
    from tubelet.zeroshot.grounder import ZeroShotGrounder

_SAID_ELSEWHERE = {
    "phrases": "--phrase",
    "cache": "--cache",
    "device": "--device",
    "grid": "",
    "source_hash": "",
}
"""Arguments of `propose_tracks` that are no settings of a provider here, and the flag to give instead."""


@dataclass(frozen=True, slots=True)
class ZeroShotOptions:
    """
    proposals: a provider; "": motion, or files where there is a proposals_file (any format that `files` reads; "{stem}"
        in it stands for a video's name). phrases: what a detector looks for; none: the subject of each sentence.
    preset: tubelet, paper or published. quality: tuned prompts and the reversed video. zero_shot: fields of
        `ZeroShotSettings`; they win over quality, preset and what the model's folder says.
    provider: settings of the provider (detector, tracker, model, fps, ...). cache: folder for tracks and sub-queries.
    split: who makes sub-queries: rules or model; endpoint, endpoint_model: or this server. max_frame_tokens: visual
        tokens per frame at most; 0: the model's own.
    """

    proposals: str = ""
    proposals_file: str = ""
    phrases: tuple[str, ...] = ()
    preset: str = ""
    quality: bool = False
    zero_shot: dict[str, Any] = field(default_factory=dict)
    provider: dict[str, Any] = field(default_factory=dict)
    cache: str = ""
    split: str = ""
    endpoint: str = ""
    endpoint_model: str = ""
    max_frame_tokens: int = 0

    def __post_init__(self) -> None:
        if self.proposals_file and self.proposals not in ("", "files"):
            raise QueryError(
                f"a file of proposals ({self.proposals_file}) is for the provider files, got {self.proposals}: leave "
                "out one of the two"
            )
        if self.proposals == "files" and not self.proposals_file and not self.provider.get("path"):
            raise QueryError("the provider files needs its file: give --proposals-file PATH")
        if self.split not in ("", "rules", "model"):
            raise QueryError(
                f"sentences are split by rules, by the model, or by an endpoint (--endpoint URL); got {self.split!r}"
            )
        if bool(self.endpoint) != bool(self.endpoint_model):
            raise QueryError(
                "an endpoint needs both: --endpoint URL and the name of its model, --endpoint-model NAME"
            )
        if self.endpoint and self.split:
            raise QueryError(
                f"sentences are split by {self.split} or by an endpoint, not by both: leave out one"
            )
        if self.max_frame_tokens < 0:
            raise QueryError(
                f"max_frame_tokens is at least 1 (0: the model's own), got {self.max_frame_tokens}"
            )
        if self.preset:
            preset(self.preset)  # QueryError names the presets
        if self.proposals == "world-truth":
            raise QueryError("world-truth knows drawn scenes, no files: it is for tubelet study zero-shot")
        for key, instead in _SAID_ELSEWHERE.items():
            if key in self.provider:
                raise QueryError(
                    f"{key} is no setting of a provider" + (f": give {instead}" if instead else "")
                )
        fps = self.provider.get("fps", 1)
        if isinstance(fps, bool) or not isinstance(fps, int | float) or not 0 < fps < float("inf"):
            raise QueryError(f"fps of a provider is a number above 0, got {fps!r}")

    def given(self) -> tuple[str, ...]:
        """Fields that somebody filled in."""
        return tuple(name for name in OPTION_FIELDS if getattr(self, name))

    @property
    def provider_name(self) -> str:
        return self.proposals or ("files" if self.proposals_file else "motion")

    def changes(self) -> dict[str, Any]:
        """For `load_zero_shot(settings=...)`."""
        return {**(QUALITY if self.quality else {}), **self.zero_shot}

    def provider_settings(self) -> dict[str, Any]:
        """For `propose_tracks`."""
        out = dict(self.provider)
        if self.proposals_file:
            out["path"] = self.proposals_file
        if self.phrases:
            out["phrases"] = list(self.phrases)
        return out


OPTION_FIELDS = tuple(f.name for f in fields(ZeroShotOptions))


def options_from(source: Any) -> ZeroShotOptions:
    """Out of an object that has these fields among others (settings of a batch)."""
    return ZeroShotOptions(**{name: getattr(source, name) for name in OPTION_FIELDS})


def means_zero_shot(model: str, method: str) -> bool:
    """Is the zero-shot method meant? Models that ground in no other way need no word for it. Raises ModelError."""
    from tubelet.grounder import grounds_zero_shot

    return method == "zero-shot" or (not method and bool(model) and grounds_zero_shot(model))


def check_options(options: ZeroShotOptions, model: str) -> None:
    """What `load_with` would refuse, found without loading a model. Raises TubeletErrors."""
    from tubelet.grounder import default_model, find_model
    from tubelet.proposals import check_provider

    check_provider(options.provider_name, options.provider_settings())
    folder = find_model(model or default_model("zero-shot"))
    settings_for(folder, options.changes(), options.preset or "tubelet")


def load_with(
    options: ZeroShotOptions, model: str = "", device: str | None = None, dtype: str | None = None
) -> ZeroShotGrounder:
    """The grounder of these options. model: "" for the embedded one. Raises what `load_zero_shot` raises."""
    from tubelet.endpoint import Endpoint
    from tubelet.grounder import default_model
    from tubelet.proposals import check_provider
    from tubelet.zeroshot.grounder import load_zero_shot

    told = options.provider_settings()
    check_provider(options.provider_name, told)  # before they are arguments beside those of load_zero_shot
    proposal_model = told.pop("model", None)
    split: str | Endpoint = options.split or "rules"
    if options.endpoint:
        split = Endpoint(options.endpoint, options.endpoint_model)
    return load_zero_shot(
        model or default_model("zero-shot"),
        options.provider_name,
        options.changes(),
        device,
        dtype,
        split,
        options.cache or None,
        options.max_frame_tokens or None,
        proposal_model=proposal_model,
        preset=options.preset or "tubelet",
        **told,
    )


def load_chosen(
    model: str, method: str, options: ZeroShotOptions, device: str | None = None, dtype: str | None = None
) -> Any:
    """`tubelet.load`, with options where the zero-shot method is meant."""
    from tubelet.grounder import load

    if means_zero_shot(model, method):
        return load_with(options, model, device, dtype)
    return load(model or None, device, dtype, method=method or None)
