"""Drawing toy-world scenes: the same alone or in a batch, on any raster, and near to what a codec makes."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tubelet.tube import Span
from tubelet.world.choreography import make_scene
from tubelet.world.render import render, signed_distance, soften
from tubelet.world.scene import COLOURS, Actor, Event, Scene

STILL = (0.0, 0.0, 1.0, 0.0)
GREY = (0.4, 0.4, 0.4)


@cache
def scenes(count: int = 24) -> tuple[Scene, ...]:
    return tuple(make_scene("val", 5, index) for index in range(count))


def moments(scene: Scene, count: int = 3) -> np.ndarray:
    return (np.arange(count) + 0.5) * scene.duration_s / count


def plain(*actors: Actor, aspect: float = 1.0, **changes: Any) -> Scene:
    return replace(Scene((0, 0, 1), 4.0, aspect, actors, GREY, 0.0, STILL, 0.0), **changes)


def actor(shape: str = "square", radius: float = 0.2, x: float = 0.5, y: float = 0.5, **kw: Any) -> Actor:
    look = {"colour": "red", "texture": "plain", "size": "big", "rgb": COLOURS["red"]} | kw
    return Actor(shape=shape, radius=radius, x=x, y=y, **look)


# --- one scene, one picture ----------------------------------------------------------------------


def test_a_scene_looks_the_same_alone_and_in_a_batch() -> None:
    some = scenes()[:8]
    together = render(some, [moments(s) for s in some], 48, 64)
    assert together.shape == (8, 3, 48, 64, 3) and together.dtype == torch.uint8
    for scene, pictures in zip(some, together, strict=True):
        assert torch.equal(render([scene], [moments(scene)], 48, 64)[0], pictures)
        for t, picture in zip(moments(scene), pictures, strict=True):
            assert torch.equal(render([scene], [[t]], 48, 64)[0, 0], picture)
    back = render(some[::-1], [moments(s) for s in some[::-1]], 48, 64)
    assert torch.equal(back.flip(0), together)


def test_scenes_and_moments_look_different() -> None:
    some = scenes()[:6]
    pictures = render(some, [moments(s) for s in some], 48, 64).flatten(0, 1)
    for k, one in enumerate(pictures):
        for other in pictures[:k]:
            assert (one.int() - other.int()).abs().float().mean() > 0.5


@pytest.mark.parametrize("raster", [(64, 64), (17, 31), (31, 17), (1, 1), (2, 90), (180, 320)])
def test_any_raster(raster: tuple[int, int]) -> None:
    pictures = render(scenes()[:2], [moments(s, 2) for s in scenes()[:2]], *raster)
    assert pictures.shape == (2, 2, *raster, 3) and pictures.dtype == torch.uint8


def test_a_squashed_raster_is_the_picture_resized() -> None:
    """A 16:9 scene drawn on a square raster is the wide picture squashed: fractions keep their meaning."""
    for scene in [replace(s, noise=0.0) for s in scenes() if s.aspect > 1.5][:4]:
        at = [moments(scene, 2)]
        wide, square = render([scene], at, 288, 512)[0].numpy(), render([scene], at, 64, 64)[0].numpy()
        for one, other in zip(wide, square, strict=True):
            small = np.asarray(Image.fromarray(one).resize((64, 64), Image.Resampling.BOX), np.float64)
            assert np.abs(small - other).mean() < 2.0


def test_devices_by_name_and_by_object() -> None:
    scene = scenes()[0]
    named = render([scene], [moments(scene)], 32, 32, device="cpu")
    assert named.device.type == "cpu"
    assert torch.equal(named, render([scene], [moments(scene)], 32, 32, device=torch.device("cpu")))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_draws_the_same_pictures() -> None:
    some = scenes()[:8]
    at = [moments(s) for s in some]
    here, there = render(some, at, 96, 96), render(some, at, 96, 96, device="cuda")
    assert there.device.type == "cuda"
    difference = (here.int() - there.cpu().int()).abs()
    assert difference.float().mean() < 0.05 and (difference > 2).float().mean() < 1e-3


# --- what is drawn -------------------------------------------------------------------------------


BORDERS = {  # nearest and farthest border of each shape of unit radius, from its centre
    "circle": (1.0, 1.0),
    "square": (0.86, 0.86 * math.sqrt(2)),
    "triangle": (0.5, 1.0),
    "star": (0.45, 1.0),
    "cross": (0.34 * math.sqrt(2), math.hypot(1, 0.34)),
}


@pytest.mark.parametrize("shape", BORDERS)
def test_shapes_end_where_their_geometry_says(shape: str) -> None:
    """Distance 0 along rays from the centre, by bisection."""
    turns = np.linspace(0, 2 * math.pi, 1441)
    near, far = np.zeros(len(turns)), np.full(len(turns), 2.0)

    def outside(reach: np.ndarray) -> np.ndarray:
        u, v = torch.from_numpy(reach * np.cos(turns)), torch.from_numpy(reach * np.sin(turns))
        return signed_distance(shape, u, v).numpy() > 0

    assert not outside(near).any() and outside(far).all()
    for _ in range(40):
        middle = (near + far) / 2
        out = outside(middle)
        near, far = np.where(out, near, middle), np.where(out, middle, far)
    assert (near.min(), near.max()) == pytest.approx(BORDERS[shape], abs=0.005)


def test_a_ring_is_as_thick_as_it_says() -> None:
    across = torch.linspace(0, 1.2, 1201)
    inside = across[signed_distance("ring", across, torch.zeros(1201)) < 0]
    assert inside.min() == pytest.approx(0.48, abs=0.002) and inside.max() == pytest.approx(1.0, abs=0.002)


def test_an_unknown_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown shape 'blob'"):
        signed_distance("blob", torch.zeros(1), torch.zeros(1))


@pytest.mark.parametrize("colour", sorted(COLOURS))
def test_a_full_shape_has_its_colour_inside_and_a_dark_outline(colour: str) -> None:
    scene = plain(actor("square", rgb=COLOURS[colour]))
    picture = render([scene], [[0.0]], 200, 200)[0, 0].numpy() / 255
    assert np.abs(picture[100, 100] - COLOURS[colour]).max() < 0.01
    edge = round(200 * (0.5 - 0.86 * 0.2)) + 2
    assert np.abs(picture[100, edge] - 0.45 * np.array(COLOURS[colour])).max() < 0.02
    assert np.abs(picture[5, 5] - 0.4).max() < 0.01


def test_a_ring_has_a_hole_and_textures_are_seen() -> None:
    ring = render([plain(actor("ring"))], [[0.0]], 200, 200)[0, 0]
    assert (ring[100, 100] == ring[0, 0]).all()
    looks = [plain(actor("circle", texture=t)) for t in ("plain", "striped", "dotted")]
    inner = render(looks, [[0.0]] * 3, 200, 200)[:, 0, 80:120, 80:120].float()
    assert inner[0].std(dim=(0, 1)).max() < 1.0
    assert inner[1, :, :, 0].std() > 20 and inner[2, :, :, 0].std() > 20
    assert inner[1, :, :, 0].std(dim=0).max() < 1.0  # stripes run along one axis, dots along none
    assert inner[2, :, :, 0].std(dim=0).max() > 20


def test_later_actors_lie_on_top() -> None:
    red, blue = actor("square"), actor("circle", 0.1, rgb=COLOURS["blue"])
    over = render([plain(red, blue)], [[0.0]], 100, 100)[0, 0]
    under = render([plain(blue, red)], [[0.0]], 100, 100)[0, 0]
    assert over[50, 50].argmax() == 2 and under[50, 50].argmax() == 0


def test_blinking_fades_and_darkness_dims() -> None:
    lit = render([plain(actor("square"))], [[0.6]], 100, 100)[0, 0, 50, 50].float()
    blink = plain(actor("square", events=(Event("blink", 0.0, 2.0),)))
    off = render([blink], [[0.6]], 100, 100)[0, 0, 50, 50].float()
    assert (off - 102).abs().max() < 0.2 * (lit - 102).abs().max()
    dark = plain(actor("square"), dark=Span(1.0, 2.0))
    inside, outside = render([dark], [[1.5, 2.0]], 100, 100)[0].float()
    assert (inside / outside).flatten().median() == pytest.approx(0.35, abs=0.02)


def test_noise_is_gaussian_and_belongs_to_the_moment() -> None:
    quiet, noisy = plain(actor(x=-5.0)), plain(actor(x=-5.0), noise=0.03)
    clean = render([quiet], [[0.5]], 90, 120)[0, 0].float()
    first, again, later = (render([noisy], [[t]], 90, 120)[0, 0].float() - clean for t in (0.5, 0.5, 0.6))
    assert clean.std() < 0.5
    assert torch.equal(first, again) and not torch.equal(first, later)
    for noise in (first, later):
        assert noise.std().item() == pytest.approx(0.03 * 255, rel=0.05) and abs(noise.mean().item()) < 0.6
    correlation = torch.corrcoef(torch.stack([first.flatten(), later.flatten()]))[0, 1]
    assert abs(correlation) < 0.05


def test_the_camera_moves_ground_and_actors_together() -> None:
    """A pan of whole pixels shifts the whole picture by exactly these."""
    height, aspect = 120, 4 / 3
    base = replace(
        make_scene("val", 5, 1), aspect=aspect, noise=0.0, dark=None, background_contrast=0.14, pan=STILL
    )
    base = replace(base, actors=(actor("star", 0.15, 0.6, 0.5), actor("cross", 0.1, 0.9, 0.3)))
    for dx, dy in ((7, 0), (0, 6), (-5, 4)):
        panned = replace(base, pan=(dx / height, dy / height, 4.0, 0.0))  # a quarter period: the full swing
        rest, moved = (render([s], [[1.0]], height, 160)[0, 0].int() for s in (base, panned))
        assert not torch.equal(rest, moved)
        ys, xs = slice(12, 108), slice(12, 148)
        shifted = rest[12 + dy : 108 + dy, 12 + dx : 148 + dx]
        assert (moved[ys, xs] - shifted).abs().float().mean() < 0.3
        assert (moved[ys, xs] - shifted).abs().max() <= 12
        x_fraction = panned.boxes_at([1.0])[0] - base.boxes_at([1.0])[0]
        assert np.allclose(x_fraction[:, 0], np.array([dx / 160, dy / 120] * 2) * -1)


# --- near to a codec -----------------------------------------------------------------------------


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 23), st.integers(0, 2**31), st.sampled_from([(64, 64), (33, 47), (7, 5)]))
def test_softened_pictures_stay_close(index: int, seed: int, raster: tuple[int, int]) -> None:
    scene = scenes()[index]
    pictures = render([scene], [moments(scene, 4)], *raster)[0]
    before = pictures.clone()
    soft = soften(pictures, torch.Generator().manual_seed(seed))
    assert soft.shape == pictures.shape and soft.dtype == torch.uint8
    assert torch.equal(pictures, before)
    assert torch.equal(soft, soften(pictures, torch.Generator().manual_seed(seed)))
    if min(raster) > 30:
        difference = (soft.float() - pictures.float()).abs()
        assert difference.mean() < 9.0
        brightness = torch.tensor([0.299, 0.587, 0.114])
        luma = ((soft.float() - pictures.float()) @ brightness).abs()
        assert luma.mean() < 5.0  # even if all are blurred the most


def test_softening_keeps_plain_pictures_as_they_are() -> None:
    for level in (0, 97, 255):
        flat = torch.full((4, 16, 16, 3), level, dtype=torch.uint8)
        assert (soften(flat).int() - level).abs().max() <= 1


def test_softening_blurs_about_half_of_the_pictures() -> None:
    checker = (torch.arange(32)[:, None] + torch.arange(32)) % 2 * 200
    pictures = checker[None, :, :, None].expand(200, 32, 32, 3).to(torch.uint8).contiguous()
    soft = soften(pictures, torch.Generator().manual_seed(0)).float()
    blurred = (soft - pictures.float()).abs().mean(dim=(1, 2, 3)) > 1.0
    assert 70 < blurred.sum() < 130


def test_decoded_h264_looks_like_what_is_rendered_for_a_model() -> None:
    """A scene that went through a real file and was resized is near to the picture drawn at model size."""
    from tubelet.video import roundtrip

    times = np.arange(8) / 8.0
    some = scenes()[:4]
    drawn = render([replace(s, noise=0.0) for s in some], [times] * 4, 64, 64).numpy()
    for scene, clean in zip(some, drawn, strict=True):
        width = 2 * round(90 * scene.aspect)
        decoded = roundtrip(render([scene], [times], 180, width)[0].numpy(), 8, crf=23)
        resized = np.stack(
            [np.asarray(Image.fromarray(p).resize((64, 64), Image.Resampling.BILINEAR)) for p in decoded]
        ).astype(np.float64)
        # a large picture's noise is averaged away when it is resized
        assert np.abs(resized - clean).mean() < 4.0
        small = render([scene], [times], 64, 64)[0]
        softened = soften(small, torch.Generator().manual_seed(1)).numpy()
        assert np.abs(resized - softened).mean() < 6.0
        away = [np.abs(resized - other).mean() for other in drawn]
        assert sorted(away)[1] > 10.0  # no other scene is anywhere near
