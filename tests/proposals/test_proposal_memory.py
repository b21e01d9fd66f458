"""What providers hold while they work: one window and what can be a result, however long the video.

What is left out is said. The models are stand-ins that find new things all the time: many more than are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from types import SimpleNamespace
from typing import Any
from weakref import WeakSet

import numpy as np
import pytest

from tubelet.frames import Clip, FrameGrid
from tubelet.proposals import Tracks, propose_tracks
from tubelet.proposals import detections as detections_module
from tubelet.proposals import grounding_dino_sam2 as dino_module
from tubelet.proposals import mask_paths as mask_paths_module
from tubelet.proposals import motion as motion_module
from tubelet.proposals import owlv2 as owlv2_module
from tubelet.proposals import sam3 as sam3_module
from tubelet.proposals.detections import Detection
from tubelet.proposals.regions import Region

SHORT, LONG = 200, 2000
KEPT = 6  # max_tracks
SIDE = 24


def clip_of(n: int) -> Clip:
    grid = FrameGrid(np.arange(n), np.arange(n) / 8, Fraction(8), n / 8, SIDE, SIDE)
    return Clip(np.zeros((n, SIDE, SIDE, 3), dtype=np.uint8), grid)


class Held:
    """How many frames of things are held at most, over all things that are alive."""

    def __init__(self, kind: type, of: Callable[[Any], int]) -> None:
        alive: WeakSet[Any] = WeakSet()
        start = kind.__init__

        class Watched(kind):  # type: ignore[misc, valid-type]  # has weak references, which slots have not
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                start(self, *args, **kwargs)
                alive.add(self)

        self.kind, self.most, self.alive, self.of = Watched, 0, alive, of

    def look(self) -> None:
        self.most = max(self.most, sum(self.of(path) for path in self.alive))


def places(k: int) -> np.ndarray[Any, Any]:
    """A box that is not where those before and after it are."""
    x, y = 0.2 * (k % 4), 0.3 * (k // 4 % 3)
    return np.array([x, y, x + 0.2, y + 0.25])


def mask_of(box: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    x0, y0, x1, y1 = (box * SIDE).round().astype(int)
    mask[y0:y1, x0:x1] = True
    return mask


def ask_dino(n: int, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> tuple[Held, Tracks]:
    """Two new things in each window of 5 frames, which are gone at its end."""
    held = Held(mask_paths_module.MaskPath, lambda path: len(path.seen))
    calls = iter(range(n))

    def detect(*_: Any) -> list[Detection]:
        k = 2 * next(calls)
        return [Detection(places(k + j), 0.5 + 0.4 * ((k + j) % 7) / 7, "thing") for j in range(2)]

    def follow(_: Any, window: Any, followed: Any, started: Any) -> Any:
        held.look()
        assert not followed
        there = [mask_of(box) for _, box in started]
        last = len(window) - 1
        return [[(m if k < last else m & False, 1.0) for m in there] for k in range(len(window))]

    monkeypatch.setattr(mask_paths_module, "MaskPath", held.kind)
    monkeypatch.setattr(dino_module, "load", lambda *_: None)
    monkeypatch.setattr(dino_module, "detect", detect)
    monkeypatch.setattr(dino_module, "_follow", follow)
    wanted = {"every": 5, "max_tracks": KEPT} | settings
    return held, propose_tracks("grounding-dino-sam2", clip_of(n), "thing", device="cpu", **wanted)


def ask_sam3(n: int, monkeypatch: pytest.MonkeyPatch) -> tuple[Held, Tracks]:
    """A thing for four frames at each place, then another one at the next."""
    held = Held(mask_paths_module.MaskPath, lambda path: len(path.seen))
    row = iter(range(10 * n))

    def step(*_: Any) -> Any:
        held.look()
        k = next(row) // 4
        return {k: (mask_of(places(k)), 0.5 + 0.4 * (k % 7) / 7, "thing")}

    monkeypatch.setattr(mask_paths_module, "MaskPath", held.kind)
    monkeypatch.setattr(sam3_module, "load", lambda *_: None)
    monkeypatch.setattr(sam3_module, "_session", lambda *_: None)
    monkeypatch.setattr(sam3_module, "_step", step)
    return held, propose_tracks("sam3", clip_of(n), "thing", window=10, max_tracks=KEPT, device="cpu")


def ask_owlv2(n: int, monkeypatch: pytest.MonkeyPatch) -> tuple[Held, Tracks]:
    held = Held(detections_module._Path, lambda path: len(path.rows))
    found: WeakSet[Any] = WeakSet()
    detections_held: list[int] = []

    class Watched(Detection):
        pass

    def detect_every(*_: Any) -> Iterator[tuple[int, list[Detection]]]:
        for row in range(n):
            held.look()
            detections_held.append(len(found))
            here = [Watched(places(row // 4), 0.5 + 0.4 * (row // 4 % 7) / 7, "thing")]
            found.update(here)
            yield row, here
            del here

    monkeypatch.setattr(detections_module, "_Path", held.kind)
    monkeypatch.setattr(owlv2_module, "load", lambda *_: None)
    monkeypatch.setattr(owlv2_module, "detect_every", detect_every)
    tracks = propose_tracks("owlv2", clip_of(n), "thing", max_tracks=KEPT, max_gap_s=0.5, device="cpu")
    assert max(detections_held) <= 2
    return held, tracks


def ask_motion(n: int, monkeypatch: pytest.MonkeyPatch) -> tuple[Held, Tracks]:
    held = Held(motion_module._Path, lambda path: len(path.rows))
    row = iter(range(n))

    def find_regions(distance: Any, *_: Any) -> list[list[Region]]:
        out = []
        for _ in range(len(distance)):
            k = next(row) // 8
            box = places(k) * SIDE
            inside = np.ones((round(box[3] - box[1]), round(box[2] - box[0])), dtype=bool)
            out.append([Region(box, inside, np.array([1.0 * (k % 3), 0.5]), 10.0 + k % 5)])
            held.look()
        return out

    monkeypatch.setattr(motion_module, "_Path", held.kind)
    monkeypatch.setattr(motion_module, "find_regions", find_regions)
    return held, propose_tracks("motion", clip_of(n), max_tracks=KEPT, window=16, max_gap_s=0.5)


PROVIDERS = {"dino": ask_dino, "sam3": ask_sam3, "owlv2": ask_owlv2, "motion": ask_motion}


@pytest.mark.parametrize("name", list(PROVIDERS))
def test_what_is_held_does_not_grow_with_the_video(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    most = {}
    for n in (SHORT, LONG):
        with monkeypatch.context() as patch:
            held, tracks = PROVIDERS[name](n, patch)
        most[n] = held.most
        assert len(tracks) == KEPT and all(len(track.rows) >= 2 for track in tracks)
        (note,) = [note for note in tracks.notes if "max_tracks" in note]
        assert f"the best {KEPT} kept" in note
        assert int(note.split()[0]) > n / 10  # all that were found are counted
    assert 0 < most[LONG] <= most[SHORT] + 2


def test_what_is_kept_is_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        _, few = ask_dino(SHORT, patch)
    with monkeypatch.context() as patch:
        _, all_of_them = ask_dino(SHORT, patch, max_tracks=1000)
    assert len(all_of_them) == 80 and all_of_them.notes == ()
    ranks = [(track.score or 0) * len(track.rows) ** 0.5 for track in all_of_them]
    assert ranks == sorted(ranks, reverse=True)
    assert [(t.score, t.rows.tolist()) for t in few] == [
        (t.score, t.rows.tolist()) for t in all_of_them[:KEPT]
    ]


def test_things_that_are_not_followed_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    _, tracks = ask_dino(50, monkeypatch, max_objects=1, max_tracks=100)
    assert len(tracks) == 10
    assert tracks.notes == (
        "10 detections on 10 frames were not followed, as 1 things were already: raise max_objects",
    )


def test_no_masks_are_kept_that_nobody_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(mask: Any) -> Any:
        raise AssertionError("a mask was encoded")

    monkeypatch.setattr(mask_paths_module, "encode", refuse)
    _, tracks = ask_dino(50, monkeypatch, masks=False)
    assert len(tracks) == KEPT and all(track.masks is None for track in tracks)


def test_things_seen_before_a_crash_of_sam3_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A session that crashes is begun anew: what it had found and is gone by then stays found."""
    rows = iter(range(20))

    def step(*_: Any) -> Any:
        row = next(rows)
        if row == 6:
            raise RuntimeError("bad frame")
        k = 0 if row < 4 else 1
        return {k: (mask_of(places(k)), 0.9, f"thing {k}")}

    monkeypatch.setattr(sam3_module, "load", lambda *_: None)
    monkeypatch.setattr(sam3_module, "_session", lambda *_: SimpleNamespace())
    monkeypatch.setattr(sam3_module, "_step", step)
    tracks = propose_tracks("sam3", clip_of(16), "thing", window=15, device="cpu")
    rows_of = {track.label: track.rows.tolist() for track in tracks}
    assert rows_of == {"thing 0": [0, 1, 2, 3], "thing 1": [4, 5, *range(7, 16)]}
    assert tracks.n_failed == 1
