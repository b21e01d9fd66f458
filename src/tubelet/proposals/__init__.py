"""Proposals: tracks of what is in a video, from which a method can choose.

    from tubelet.proposals import propose_tracks
    tracks = propose_tracks("motion", tubelet.open_video("clip.mp4"))
    tracks = propose_tracks("grounding-dino-sam2", video, ["person"], cache="~/.cache/tracks")

Every provider is a function in a module of its own; `propose_tracks` chooses one by name, checks its settings, hashes
the video, keeps the result. docs/proposals.md says which provider to use when.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from tubelet.config_io import from_dict, to_dict
from tubelet.errors import ModelError, QueryError
from tubelet.frames import Clip, FrameGrid
from tubelet.proposals.rle import Rle
from tubelet.proposals.source import DEFAULT_FPS, Source, make_source
from tubelet.proposals.store import cached, load_tracks, save_tracks, video_hash
from tubelet.proposals.track import Found, Track, Tracks, clip_boxes, fill_gaps, resample, to_tube
from tubelet.video import Video, open_video

__all__ = [
    "NEED_PHRASES",
    "PROVIDERS",
    "Rle",
    "Source",
    "Track",
    "Tracks",
    "check_provider",
    "clip_boxes",
    "fill_gaps",
    "load_tracks",
    "make_source",
    "propose_tracks",
    "resample",
    "save_tracks",
    "to_tube",
    "unload",
    "video_hash",
]

# name -> module, function, settings
_WHERE = {
    "motion": ("motion", "propose_motion", "MotionSettings"),
    "grounding-dino-sam2": (
        "grounding_dino_sam2",
        "propose_grounding_dino_sam2",
        "GroundingDinoSam2Settings",
    ),
    "sam3": ("sam3", "propose_sam3", "Sam3Settings"),
    "owlv2": ("owlv2", "propose_owlv2", "Owlv2Settings"),
    "files": ("files", "propose_files", "FilesSettings"),
    "world-truth": ("world_truth", "propose_world_truth", "WorldTruthSettings"),
}
PROVIDERS = tuple(_WHERE)
"""Names for `propose_tracks`."""
NEED_PHRASES = ("grounding-dino-sam2", "sam3", "owlv2")
"""Providers that look for what they are told, and for nothing else."""
_MODELS = ("model", "detector", "tracker")  # settings that name a model
_NOT_OF_PROVIDERS = ("phrases", "grid", "fps", "source_hash", "cache")  # other arguments of `propose_tracks`


def check_provider(name: str, settings: Mapping[str, Any]) -> None:
    """Is there such a provider, has it these settings, are its models there? Says so before any video is read.

    settings: as `propose_tracks` takes them, phrases, grid, fps and cache included. Raises ModelError, RecipeError.
    """
    from tubelet.grounder import find_model

    chosen = to_dict(_settings_of(name, {k: v for k, v in settings.items() if k not in _NOT_OF_PROVIDERS}))
    for key in _MODELS:
        if chosen.get(key):
            find_model(chosen[key])


def propose_tracks(
    name: str,
    source: Clip | Video | str | Path,
    phrases: str | Sequence[str] | None = None,
    *,
    grid: FrameGrid | None = None,
    fps: float = DEFAULT_FPS,
    source_hash: str | None = None,
    cache: str | Path | None = None,
    **settings: Any,
) -> Tracks:
    """Tracks of a clip or a video by the provider `name` (one of PROVIDERS).

    Args:
        source: a clip (its own frames), a video or its path (the frames of `grid`, by default `fps` per second).
        phrases: what to look for; needed by grounding-dino-sam2, sam3 and owlv2, ignored by the others.
        source_hash: hash to give the tracks, where a clip's video is known (default: `video_hash(source)`).
        cache: folder in which results are kept by everything they depend on: video hash, provider, phrases, settings,
            the contents of the models' folders, device and dtype, grid and size of the pictures. Results of which a
            model failed on some frames are not kept.
        settings: fields of the provider's settings class.

    Raises ModelError for an unknown provider or model, RecipeError for settings it does not have, QueryError for
    missing phrases, DataError for files that do not fit the video, VideoError for videos that cannot be read.
    """
    chosen = _settings_of(name, settings)
    module_name, function_name, _ = _WHERE[name]
    module = import_module(f"tubelet.proposals.{module_name}")
    if isinstance(source, str | Path):
        source = open_video(source)
    looked_at = make_source(source, grid, fps)
    asked = _phrases(phrases)
    of_video = source_hash if source_hash is not None else video_hash(source)
    if name == "files" and (made_from := module.hash_of_file(chosen, looked_at)) is not None:
        path = module.path_for(chosen, looked_at)
        Tracks(looked_at.grid, video_hash=made_from, provider=f"the file {path}").check_hash(of_video)
    plain = to_dict(chosen)

    def make() -> Tracks:
        found: Found = getattr(module, function_name)(looked_at, asked, chosen)
        return Tracks(
            looked_at.grid,
            tuple(found.tracks),
            video_hash=of_video,
            provider=name,
            settings={"phrases": list(asked), **plain},
            n_clipped=found.n_clipped,
            notes=tuple(found.notes),
            n_failed=found.n_failed,
        )

    if cache is None or name in ("files", "world-truth"):  # as quick to make as to read
        return make()
    key = {
        "video": of_video,
        "provider": name,
        "phrases": list(asked),
        "settings": {k: v for k, v in plain.items() if k != "device"},
        "models": _models(plain),
        "grid": looked_at.grid.to_dict(),
        "pixels": [looked_at.height, looked_at.width],  # a clip may be smaller than its video is shown
    }
    return cached(Path(cache).expanduser(), key, make)


def unload() -> None:
    """Give back the memory of detectors and trackers, which are kept for the next video (see `hub.unload`)."""
    from tubelet.proposals import hub

    hub.unload()


def _settings_of(name: str, settings: Mapping[str, Any]) -> Any:
    """The settings class of a provider, filled in. ModelError for an unknown provider, RecipeError for settings."""
    if name not in _WHERE:
        raise ModelError(f"there is no proposal provider {name!r}; providers are {', '.join(PROVIDERS)}")
    module_name, _, class_name = _WHERE[name]
    return from_dict(
        getattr(import_module(f"tubelet.proposals.{module_name}"), class_name), dict(settings), name
    )


def _phrases(phrases: str | Sequence[str] | None) -> tuple[str, ...]:
    given = (phrases,) if isinstance(phrases, str) else tuple(phrases or ())
    if not all(isinstance(phrase, str) for phrase in given):
        raise QueryError(f"phrases are texts, got {given!r:.80}")
    return given


def _models(plain: dict[str, Any]) -> dict[str, str]:
    """What of the models tracks depend on: their contents, and where and in which dtype they run."""
    named = {key: str(plain[key]) for key in _MODELS if plain.get(key)}
    if not named:
        return {}
    from tubelet.grounder import checked_device
    from tubelet.proposals.hub import dtype_on, fingerprint

    place = checked_device(plain.get("device"))
    told = {key: fingerprint(model) for key, model in named.items()}
    return told | {"device": place.split(":")[0], "dtype": dtype_on(place)}
