"""Providers on transformers' classes: tiny random checkpoints in the hub's layout through the real loading code."""

from __future__ import annotations

import json
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_detectors import write_grounding_dino, write_owlv2, write_sam2, write_sam3

import tubelet.grounder as grounder_module
import tubelet.proposals as proposals_module
from tubelet.errors import ModelError, QueryError
from tubelet.frames import Clip, FrameGrid
from tubelet.proposals import Tracks, propose_tracks, unload
from tubelet.proposals import hub as hub_module
from tubelet.proposals.grounding_dino_sam2 import phrase_of
from tubelet.proposals.rle import box_of, decode

FRAMES = 7


@pytest.fixture(scope="module")
def clip() -> Clip:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 80, (FRAMES, 48, 64, 3)).astype(np.uint8)
    for row in range(FRAMES):
        pixels[row, 10:30, 5 + 4 * row : 25 + 4 * row] = (220, 30, 30)
    grid = FrameGrid(np.arange(FRAMES), np.arange(FRAMES) / 4, 4, 2.0, 64, 48)  # type: ignore[arg-type]
    return Clip(pixels, grid)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    writers = {"owlv2": write_owlv2, "dino": write_grounding_dino, "sam2": write_sam2, "sam3": write_sam3}
    made: dict[str, str] = {}

    def folder(name: str) -> str:
        if name not in made:
            made[name] = str(writers[name](tmp_path_factory.mktemp(name)))
        return made[name]

    return folder


def dino_sam2(folders: Callable[[str], str], clip: Clip, **settings: Any) -> Tracks:
    chosen = {"box_threshold": 0.0, "text_threshold": 0.0, "every": 3, "max_objects": 3} | settings
    return propose_tracks(
        "grounding-dino-sam2",
        clip,
        ["Red circle.", "dog"],
        detector=folders("dino"),
        tracker=folders("sam2"),
        **chosen,
    )


def check_masks(tracks: Tracks) -> None:
    for track in tracks:
        assert track.masks is not None
        for row in track.rows:
            mask = track.masks[row]
            assert mask is not None
            np.testing.assert_allclose(box_of(decode(mask)), track.boxes_xyxy[row])


def test_owlv2_loads_and_finds(folders: Callable[[str], str], clip: Clip) -> None:
    tracks = propose_tracks(
        "owlv2",
        clip,
        ["red circle", "dog"],
        model=folders("owlv2"),
        threshold=0.0,
        min_iou=0.1,
        min_seen=1,
        every=2,
    )
    assert len(tracks) > 0 and tracks.provider == "owlv2"
    assert {t.label for t in tracks} <= {"red circle", "dog"}
    none = propose_tracks("owlv2", clip, "dog", model=folders("owlv2"), threshold=0.999)
    assert len(none) == 0 and none.notes == ()


def test_grounding_dino_and_sam2_load_and_follow(folders: Callable[[str], str], clip: Clip) -> None:
    tracks = dino_sam2(folders, clip, min_seen=1)
    assert tracks.n_failed == 0 and len(tracks.grid) == FRAMES
    (note,) = tracks.notes  # the tiny detector finds more than max_objects = 3
    assert "detections on 2 frames were not followed, as 3 things were already: raise max_objects" in note
    assert dino_sam2(folders, clip, max_objects=40).notes == ()
    assert any(len(t.rows) > 4 for t in tracks)  # carried from one window of 3 frames to the next
    assert {t.label for t in tracks} <= {"red circle", "dog"}
    check_masks(tracks)


def test_sam3_loads_and_follows_in_windows(folders: Callable[[str], str], clip: Clip) -> None:
    tracks = propose_tracks("sam3", clip, ["red circle", "dog"], model=folders("sam3"), window=3, min_seen=1)
    assert tracks.notes == () and len(tracks) > 0
    assert {t.label for t in tracks} == {"red circle", "dog"}
    check_masks(tracks)


def test_sessions_are_bounded(
    folders: Callable[[str], str], clip: Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tubelet.proposals import grounding_dino_sam2 as module

    lengths: list[int] = []
    follow = module._follow

    def watched(part: Any, window: Any, *rest: Any) -> Any:
        lengths.append(len(window))
        return follow(part, window, *rest)

    monkeypatch.setattr(module, "_follow", watched)
    dino_sam2(folders, clip)
    assert lengths and max(lengths) == 4  # every = 3, and the shared frame


def test_sessions_of_sam3_are_bounded(
    folders: Callable[[str], str], clip: Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tubelet.proposals import sam3 as module

    frames: list[int] = []  # per session
    session, step = module._session, module._step

    def started(*args: Any) -> Any:
        frames.append(0)
        return session(*args)

    def stepped(*args: Any) -> Any:
        frames[-1] += 1
        return step(*args)

    monkeypatch.setattr(module, "_session", started)
    monkeypatch.setattr(module, "_step", stepped)
    propose_tracks("sam3", clip, ["dog"], model=folders("sam3"), window=2, min_seen=1)
    assert frames == [3, 3, 3]  # 7 frames in windows of 2, and the shared frame


def test_detection_is_every_nth_frame(
    folders: Callable[[str], str], clip: Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tubelet.proposals import grounding_dino_sam2 as module

    seen: list[int] = []
    detect = module.detect

    def watched(part: Any, picture: Any, *rest: Any) -> Any:
        seen.extend(k for k in range(FRAMES) if np.array_equal(picture, clip.pixels[k]))
        return detect(part, picture, *rest)

    monkeypatch.setattr(module, "detect", watched)
    dino_sam2(folders, clip)
    assert seen == [
        0,
        3,
    ]  # every = 3; frame 6 ends the second window


def test_a_frame_that_crashes_is_noted_and_the_rest_is_found(
    folders: Callable[[str], str], clip: Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = hub_module.load(folders("owlv2"), ("Owlv2Processor", "Owlv2ForObjectDetection"), ("owlv2",), None)
    calls: list[int] = []
    forward = part.model.forward

    def broken(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("bad frame")
        return forward(*args, **kwargs)

    monkeypatch.setattr(part.model, "forward", broken)
    found = propose_tracks(
        "owlv2", clip, "dog", model=folders("owlv2"), threshold=0.0, min_iou=0.1, min_seen=1
    )
    assert len(found) > 0 and "1 of 7 frames" in found.notes[0] and "bad frame" in found.notes[0]
    assert found.n_failed == 1
    monkeypatch.setattr(part.model, "forward", lambda *a, **k: (_ for _ in ()).throw(RuntimeError("always")))
    with pytest.raises(ModelError, match="failed on 7 of 7"):
        propose_tracks("owlv2", clip, "dog", model=folders("owlv2"))


def test_results_are_cached_by_what_they_depend_on(
    folders: Callable[[str], str], clip: Clip, tmp_path: Path
) -> None:
    def made(**settings: Any) -> int:
        propose_tracks("owlv2", clip, "dog", model=folders("owlv2"), cache=tmp_path, **settings)
        return len(list(tmp_path.glob("*.json")))

    assert [made(device="cpu"), made(device="cpu"), made(every=2, device="cpu")] == [1, 1, 2]


def copy_of(folder: str, to: Path) -> Path:
    return Path(shutil.copytree(folder, to))


@pytest.mark.parametrize("changed", ["tokenizer.json", "preprocessor_config.json", "model.safetensors"])
def test_a_model_that_changes_in_any_file_is_asked_again(
    folders: Callable[[str], str], clip: Clip, tmp_path: Path, changed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy_of(folders("owlv2"), tmp_path / "model")
    if not (folder / changed).is_file():
        changed = "processor_config.json"
    before = hub_module.fingerprint(str(folder))
    assert before == hub_module.fingerprint(str(folder))
    monkeypatch.setattr(hub_module, "_WHOLE_BYTES", 1000)  # weights count by pieces
    monkeypatch.setattr(hub_module, "_PIECE_BYTES", 64)
    by_pieces = hub_module.fingerprint(str(folder))
    data = bytearray((folder / changed).read_bytes())
    data[-1] ^= 1  # one bit of the last byte: the size stays
    (folder / changed).write_bytes(data)
    assert hub_module.fingerprint(str(folder)) != by_pieces
    monkeypatch.undo()
    assert hub_module.fingerprint(str(folder)) != before


def test_the_key_of_the_cache_holds_models_device_dtype_and_size(
    folders: Callable[[str], str], clip: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    folder = copy_of(folders("owlv2"), tmp_path / "snapshot")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *args, **kwargs: str(folder))
    keys: list[dict[str, Any]] = []

    def kept(where: Path, key: dict[str, Any], make: Callable[[], Tracks]) -> Tracks:
        keys.append(json.loads(json.dumps(key)))
        return Tracks(key_clip.grid)

    monkeypatch.setattr(proposals_module, "cached", kept)
    key_clip = clip

    def ask(**changes: Any) -> dict[str, Any]:
        propose_tracks(
            "owlv2", key_clip, "dog", model="org/owl", cache=tmp_path, source_hash="file-1", **changes
        )
        return keys[-1]

    first = ask(device="cpu")
    assert first["models"]["device"] == "cpu" and first["models"]["dtype"] == "float32"
    # another revision of the same hub id
    (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
    second = ask(device="cpu")
    assert second["models"]["model"] != first["models"]["model"]
    # a GPU computes in another dtype
    monkeypatch.setattr(grounder_module, "checked_device", lambda device: device or "cuda:1")
    assert ask()["models"] == second["models"] | {"device": "cuda", "dtype": "bfloat16"}
    # the same frames of the same video, in a smaller size
    key_clip = Clip(np.ascontiguousarray(clip.pixels[:, ::2, ::2]), clip.grid)
    smaller = ask(device="cpu")
    assert smaller["grid"] == second["grid"] and smaller["pixels"] == [24, 32] != second["pixels"]


def test_tracks_with_failed_frames_are_not_kept(
    folders: Callable[[str], str], clip: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = hub_module.load(folders("owlv2"), ("Owlv2Processor", "Owlv2ForObjectDetection"), ("owlv2",), None)
    calls: list[int] = []
    forward = part.model.forward

    def broken_once(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("bad frame")
        return forward(*args, **kwargs)

    monkeypatch.setattr(part.model, "forward", broken_once)
    how: dict[str, Any] = {"model": folders("owlv2"), "threshold": 0.0, "min_iou": 0.1, "cache": tmp_path}
    failed = propose_tracks("owlv2", clip, "dog", **how)
    assert failed.n_failed == 1 and list(tmp_path.iterdir()) == []
    again = propose_tracks("owlv2", clip, "dog", **how)
    assert again.n_failed == 0 and again.notes == () and len(calls) == 2 * FRAMES
    propose_tracks("owlv2", clip, "dog", **how)
    assert len(calls) == 2 * FRAMES and len(list(tmp_path.iterdir())) == 1


def test_unload_gives_detectors_back(folders: Callable[[str], str]) -> None:
    classes = ("Owlv2Processor", "Owlv2ForObjectDetection")
    held = weakref.ref(hub_module.load(folders("owlv2"), classes, ("owlv2",), None).model)
    assert held() is not None and hub_module.load(folders("owlv2"), classes, ("owlv2",), None).model is held()
    unload()
    assert held() is None


def test_errors_say_what_to_do(
    folders: Callable[[str], str], clip: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("owlv2", "sam3", "grounding-dino-sam2"):
        with pytest.raises(QueryError, match="give phrases"):
            propose_tracks(name, clip)
    with pytest.raises(ModelError, match=r"'owlv2'.*sam3_video"):
        propose_tracks("sam3", clip, "dog", model=folders("owlv2"))
    with pytest.raises(ModelError, match="not an embedded model"):
        propose_tracks("sam3", clip, "dog", model=str(tmp_path / "none"))
    import huggingface_hub
    from huggingface_hub.errors import OfflineModeIsEnabled

    def offline(*args: Any, **kwargs: Any) -> str:
        raise OfflineModeIsEnabled("offline")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(ModelError, match="hub cannot be reached"):
        propose_tracks("sam3", clip, "dog", model="facebook/sam3")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text(json.dumps({"model_type": "owlv2"}))
    with pytest.raises(ModelError, match="cannot load"):
        propose_tracks("owlv2", clip, "dog", model=str(broken))


def test_words_are_given_to_their_phrase() -> None:
    phrases = ("red circle", "green circle", "dog")
    assert phrase_of("red circle", phrases) == "red circle"
    assert phrase_of("green", phrases) == "green circle"
    assert phrase_of("dog circle", phrases) == "dog"
