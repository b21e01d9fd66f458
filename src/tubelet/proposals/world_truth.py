"""The toy world's true tracks as proposals: for studies of everything that comes after proposals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tubelet.frames import FrameGrid
from tubelet.proposals.source import Source
from tubelet.proposals.track import Found, Track
from tubelet.world import Scene, make_scene
from tubelet.world.choreography import SceneConfig


@dataclass(frozen=True, slots=True)
class WorldTruthSettings:
    """Which scene the video or picture shows: as in `world.make_scene`. The `scene.seed` of an annotation has seed and
    index too. still: a scene of an image task, in which nothing moves."""

    split: str
    seed: int
    index: int
    still: bool = False


def propose_world_truth(source: Source, phrases: Sequence[str], settings: WorldTruthSettings) -> Found:
    """One track per actor that is ever visible on the source's grid. Phrases are ignored."""
    config = SceneConfig(still=settings.still)
    scene = make_scene(settings.split, settings.seed, settings.index, config)
    return Found(tracks_of_scene(scene, source.grid))


def tracks_of_scene(scene: Scene, grid: FrameGrid) -> list[Track]:
    """The true track of every actor that is visible on the grid; its number is the actor's place in the scene."""
    boxes, visible = scene.boxes_at(grid.times_s)
    seen = visible & (boxes[..., 2] > boxes[..., 0]) & (boxes[..., 3] > boxes[..., 1])
    return [
        Track(number, boxes[number], seen[number], score=1.0, label=f"{actor.colour} {actor.shape}")
        for number, actor in enumerate(scene.actors)
        if seen[number].any()
    ]
