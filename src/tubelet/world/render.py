"""Draw toy-world scenes: batches of scenes to uint8 pictures, on CPU or GPU.

Each actor is drawn only in a small window around it (a signed distance field, anti-aliased), then all windows
of one drawing layer are blended into all pictures at once. Pixels are a function of the scene and the moment
alone: the same scene drawn alone, in a batch or at another time of the day is the same picture.

Shapes: B scenes, T moments, A actors, pictures (B, T, H, W, 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from tubelet.world.scene import (
    CROSS_ARM,
    CROSS_HALF,
    SHAPES,
    SQUARE_HALF,
    STAR_INNER,
    TEXTURES,
    Scene,
)

_REACH = 1.25  # a window reaches this many radii from the centre: the corners of a turned square
_BACKGROUND_CELLS = 10
_NOISE_SIDE = 512


@torch.no_grad()  # type: ignore[untyped-decorator]
def render(
    scenes: Sequence[Scene],
    times_s: Sequence[npt.ArrayLike],
    height: int,
    width: int,
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """Pictures (B, T, H, W, 3) uint8 of `scenes` at their `times_s` (B sequences of equal length T).

    The raster may have any shape: a scene of aspect 16:9 drawn on a square raster is squashed, as a video
    resized for a model is.
    """
    device = torch.device(device)
    times = np.stack([np.asarray(t, dtype=np.float64) for t in times_s])
    batch, n_times = times.shape
    canvas = _background(scenes, times, height, width, device)

    n_actors = max(len(scene.actors) for scene in scenes)
    fields = np.zeros((6, batch, n_actors, n_times), dtype=np.float32)  # x, y, radius, cos, sin, opacity
    looks = np.zeros((batch, n_actors, 5), dtype=np.float32)  # shape, texture, rgb
    for b, scene in enumerate(scenes):
        states, a = scene.states(times[b]), len(scene.actors)
        fields[0, b, :a], fields[1, b, :a], fields[2, b, :a] = states.x, states.y, states.radius
        fields[3, b, :a], fields[4, b, :a] = np.cos(states.angle_rad), np.sin(states.angle_rad)
        fields[5, b, :a] = states.opacity
        for k, actor in enumerate(scene.actors):
            looks[b, k] = (SHAPES.index(actor.shape), TEXTURES.index(actor.texture), *actor.rgb)

    aspect = np.array([scene.aspect for scene in scenes], dtype=np.float32)[:, None, None]
    scale_x, scale_y = width / aspect, float(height)  # pixels per world unit
    centre_x, centre_y = fields[0] * scale_x, fields[1] * scale_y
    reach_x, reach_y = _REACH * fields[2] * scale_x, _REACH * fields[2] * scale_y
    drawn = (
        (fields[5] > 0)
        & (centre_x > -reach_x)
        & (centre_x < width + reach_x)
        & (centre_y > -reach_y)
        & (centre_y < height + reach_y)
    )
    b_at, a_at, t_at = np.nonzero(drawn)
    if len(b_at):
        order = np.argsort(a_at, kind="stable")
        b_at, a_at, t_at = b_at[order], a_at[order], t_at[order]
        pick = (b_at, a_at, t_at)
        numbers = np.stack([f[pick] for f in (centre_x, centre_y, *fields[2:])])
        numbers = np.concatenate([numbers, np.broadcast_to(scale_x, centre_x.shape)[pick][None]])
        win_w, win_h = int(np.ceil(2 * reach_x[pick].max())) + 2, int(np.ceil(2 * reach_y[pick].max())) + 2
        _draw_actors(
            canvas,
            torch.from_numpy(numbers).to(device),
            torch.from_numpy(looks[b_at, a_at]).to(device),
            b_at * n_times + t_at,
            a_at,
            (win_h, win_w),
            scale_y,
        )
    for b, scene in enumerate(scenes):
        if scene.dark is not None:
            dim = np.where(scene.dark.contains(times[b]), 0.35, 1.0).astype(np.float32)
            canvas[b].mul_(torch.from_numpy(dim).to(device)[:, None, None, None])
    _add_noise(canvas, scenes, times)
    return canvas.mul_(255).add_(0.5).clamp_(0, 255).to(torch.uint8)


def _background(
    scenes: Sequence[Scene], times: npt.NDArray[np.float64], height: int, width: int, device: torch.device
) -> torch.Tensor:
    """Smooth random texture, fixed in the world (it moves when the camera pans): (B, T, H, W, 3) float."""
    batch, n_times = times.shape
    grids = np.empty((batch, 3, _BACKGROUND_CELLS, _BACKGROUND_CELLS), dtype=np.float32)
    offset = np.empty((batch, n_times, 2), dtype=np.float32)
    aspect = np.array([scene.aspect for scene in scenes], dtype=np.float32)
    for b, scene in enumerate(scenes):
        rng = np.random.default_rng([*scene.seed, 1])
        light = rng.standard_normal((1, _BACKGROUND_CELLS, _BACKGROUND_CELLS))
        tint = rng.standard_normal((3, _BACKGROUND_CELLS, _BACKGROUND_CELLS))
        base = np.array(scene.background_rgb)[:, None, None]
        grids[b] = base + scene.background_contrast * (light + 0.3 * tint)
        offset[b] = scene.pan_at(times[b])
    # world coordinates of pixel centres, mapped so that the whole picture and a margin lie on the texture
    ys = torch.linspace(-1, 1, 2 * height + 1, device=device)[1::2] * 0.8
    xs = torch.linspace(-1, 1, 2 * width + 1, device=device)[1::2] * 0.8
    shift = torch.from_numpy(offset / np.stack([aspect / 2, np.ones_like(aspect) / 2], axis=1)[:, None]).to(
        device
    )
    grid = torch.empty(batch, n_times, height, width, 2, device=device)
    grid[..., 0] = xs + 0.8 * shift[..., 0, None, None]
    grid[..., 1] = ys[:, None] + 0.8 * shift[..., 1, None, None]
    grid = grid.view(batch, n_times * height, width, 2)
    texture = torch.from_numpy(grids).to(device)
    # a picture varies smoothly: smooth the cells once instead of sampling bicubically at every pixel
    texture = F.interpolate(texture, scale_factor=4, mode="bicubic", align_corners=False)
    drawn = F.grid_sample(texture, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    return drawn.view(batch, 3, n_times, height, width).permute(0, 2, 3, 4, 1).contiguous()


def _draw_actors(
    canvas: torch.Tensor,
    numbers: torch.Tensor,
    looks: torch.Tensor,
    frame_at: npt.NDArray[np.int64],
    layer_at: npt.NDArray[np.int64],
    window: tuple[int, int],
    scale_y: float,
) -> None:
    """Blend N actor windows into the canvas, in place.

    numbers: (7, N) centre x, y (pixels), radius (world), cos, sin, opacity, pixels per world unit in x;
    looks: (N, 5) shape, texture, r, g, b; frame_at: (N,) which of the B*T pictures; layer_at: (N,) ascending.
    """
    height, width = canvas.shape[2:4]
    win_h, win_w = window
    device = canvas.device
    cx, cy, radius, cos, sin, opacity, scale_x = (row[:, None, None] for row in numbers)
    left = torch.floor(numbers[0] - win_w / 2).long()
    top = torch.floor(numbers[1] - win_h / 2).long()
    px = left[:, None, None] + torch.arange(win_w, device=device)
    py = top[:, None, None] + torch.arange(win_h, device=device)[:, None]
    across = (px + 0.5 - cx) / (scale_x * radius)
    down = (py + 0.5 - cy) / (scale_y * radius)
    u = cos * across + sin * down  # turn back into the shape's own frame, unit radius
    v = cos * down - sin * across
    # pixels per unit radius; the geometric mean is exact on an undistorted raster, close on a squashed one
    per_unit = radius * (scale_x * scale_y).sqrt()

    distance = torch.empty_like(u)
    for k, shape in enumerate(SHAPES):
        rows = (looks[:, 0] == k).nonzero()[:, 0]
        if len(rows):
            distance[rows] = signed_distance(shape, u[rows], v[rows])
    alpha = (0.5 - distance * per_unit).clamp_(0, 1) * opacity
    inner = (0.5 - (distance + 0.13) * per_unit).clamp_(0, 1)  # 1 inside, 0 on the dark outline
    shade = 0.45 + 0.55 * inner
    kind = looks[:, 1, None, None]
    stripes = 1 - 0.6 * (torch.sin(5.5 * u) * 3 + 0.5).clamp(0, 1)
    dots = 1 - 0.6 * (torch.sin(5.5 * u) * torch.sin(5.5 * v) * 5).clamp(0, 1)
    shade = shade * torch.where(kind == 1, stripes, torch.where(kind == 2, dots, 1.0))
    colour = looks[:, None, None, 2:] * shade[..., None]

    inside = (px >= 0) & (px < width) & (py >= 0) & (py < height)
    alpha = alpha * inside
    frame = torch.from_numpy(frame_at).to(device)[:, None, None]
    place = (frame * height + py.clamp(0, height - 1)) * width + px.clamp(0, width - 1)
    flat = canvas.view(-1, 3)
    bounds = np.searchsorted(layer_at, np.arange(layer_at[-1] + 2))
    for lo, hi in pairwise(bounds):
        # one layer holds at most one actor per picture, so no pixel is written twice within it, except by
        # windows' clamped parts outside the picture: those are dropped
        keep = inside[lo:hi]
        where = place[lo:hi][keep]
        under = flat[where]
        weight = alpha[lo:hi][keep][:, None]
        flat[where] = under + weight * (colour[lo:hi][keep] - under)


def signed_distance(shape: str, u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Signed distance to a shape of unit radius (negative inside), elementwise."""
    if shape == "circle":
        return torch.hypot(u, v) - 1
    if shape == "ring":
        return (torch.hypot(u, v) - 0.74).abs() - 0.26
    if shape == "square":
        return torch.maximum(u.abs(), v.abs()) - SQUARE_HALF
    if shape == "cross":
        a, b = u.abs(), v.abs()
        return torch.minimum(
            torch.maximum(a - CROSS_HALF, b - CROSS_ARM), torch.maximum(a - CROSS_ARM, b - CROSS_HALF)
        )
    if shape == "triangle":  # three half-planes at distance 1/2 from the centre; one corner up
        return torch.maximum(v, torch.maximum(0.8660254 * u - 0.5 * v, -0.8660254 * u - 0.5 * v)) - 0.5
    if shape == "star":
        # fold the plane into one tenth of the star: there the border is one straight line
        turn = torch.atan2(u, -v)
        fold = torch.remainder(turn + np.pi / 5, 2 * np.pi / 5) - np.pi / 5
        far = torch.hypot(u, v)
        along, across = far * torch.cos(fold), far * torch.sin(fold).abs()
        # the line from the tip (1, 0) to the notch at STAR_INNER, 36 degrees
        notch_x, notch_y = STAR_INNER * np.cos(np.pi / 5), STAR_INNER * np.sin(np.pi / 5)
        nx, ny = notch_y, 1 - notch_x
        return ((along - 1) * nx + across * ny) / float(np.hypot(nx, ny))
    raise ValueError(f"unknown shape {shape!r}")


_noise_banks: dict[str, torch.Tensor] = {}


def _add_noise(canvas: torch.Tensor, scenes: Sequence[Scene], times: npt.NDArray[np.float64]) -> None:
    """Sensor noise: a window of one fixed bank of Gaussian noise, placed by scene and moment."""
    _, n_times, height, width, _ = canvas.shape
    key = str(canvas.device)
    if key not in _noise_banks:
        generator = torch.Generator().manual_seed(20261120)
        bank = torch.randn(_NOISE_SIDE * _NOISE_SIDE, generator=generator)
        _noise_banks[key] = bank.to(canvas.device)
    bank = _noise_banks[key]
    size = height * width * 3
    if size > len(bank):
        bank = bank.repeat(size // len(bank) + 1)
    for b, scene in enumerate(scenes):
        if scene.noise <= 0:
            continue
        for t in range(n_times):
            mixed = round(times[b, t] * 1000) * 7919
            for part in scene.seed:
                mixed = mixed * 1_000_003 + part
            start = mixed % (len(bank) - size + 1)
            canvas[b, t].view(-1).add_(bank[start : start + size], alpha=scene.noise)


@torch.no_grad()  # type: ignore[untyped-decorator]
def soften(pictures: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    """What a video codec does to small pictures, cheaply and without a codec: (N, H, W, 3) uint8 -> uint8.

    Half-resolution colour (4:2:0), and for half of the pictures a slight blur of the luma. A model trained on
    softened pictures works on decoded H.264 (tested); real round trips are in `tubelet.world.files`.
    """
    n, height, width, _ = pictures.shape
    rgb = pictures.permute(0, 3, 1, 2).float()
    luma = 0.299 * rgb[:, 0] + 0.587 * rgb[:, 1] + 0.114 * rgb[:, 2]
    colour = rgb - luma[:, None]
    half = F.avg_pool2d(colour, 2, ceil_mode=True)
    colour = F.interpolate(half, size=(height, width), mode="bilinear", align_corners=False)
    blurred = F.avg_pool2d(F.pad(luma[:, None], (1, 1, 1, 1), mode="replicate"), 3, stride=1)[:, 0]
    amount = torch.rand(n, 1, 1, generator=generator).to(luma.device)
    amount = torch.where(amount < 0.5, torch.zeros_like(amount), (amount - 0.5) * 1.2)
    luma = luma + amount * (blurred - luma)
    return (luma[:, None] + colour).add_(0.5).clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
